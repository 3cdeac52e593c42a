"""Clips of sound in files: as int16 at one rate and of one length, one by one or as examples."""

import dataclasses
import io
import math
import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from functrain.config import ConfigError
from functrain.data.reading import Examples

PADDING = -32768
"""What stands past the end of a clip; no clip has it, for its own samples are from -32767 up."""


@dataclasses.dataclass(frozen=True)
class Clips(Examples):
    """Sound files with labels: x [samples] int16, cut off or filled up with PADDING; y int32.

    where: what messages call the folder.
    files: their paths.
    labels: [n].
    rate: samples a second, to which they are brought.
    only: whether clips of another rate are refused in place of that.
    samples: of each.
    """

    where: str
    files: tuple[str, ...]
    labels: np.ndarray
    rate: int
    only: bool
    samples: int

    def __len__(self) -> int:
        return len(self.files)

    def read(self, i: int) -> dict[str, np.ndarray]:
        """One clip and its label."""
        found, rate = read_sound(f"{self.where}: {self.files[i]}", Path(self.files[i]))
        if self.only and rate != self.rate:
            had = f"{self.where}: {self.files[i]}: {rate} samples a second"
            raise ConfigError(f"data.rate: missing; {had}, the first training clip {self.rate}")
        return {"x": filled([resampled(found, rate, self.rate)], self.samples)[0], "y": self.labels[i]}


def read_sound(name: str, file: bytes | Path) -> tuple[np.ndarray, int]:
    """A sound as [samples] int16, the mean of its channels, from -32767; and its samples a second.

    Args:
      name: what messages call it.
      file: its bytes, or its path.

    Raises:
      ConfigError: it cannot be read, has no samples, or needs soundfile, which is not installed.
    """
    try:
        data = file if isinstance(file, bytes) else file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror}") from None
    try:
        found, rate = _read_wav(data)
    except (wave.Error, EOFError, ValueError):
        found, rate = _read_other(name, data)
    if not len(found):
        raise ConfigError(f"{name}: holds no samples")
    mean = found.mean(1) if found.shape[1] > 1 else found[:, 0]
    return _whole(mean * 32768), rate


def write_wav(path: str | Path, x: np.ndarray, rate: int) -> None:
    """Write a wave [samples] in -1..1 as a WAV file of 16 bits, one channel; what is beyond is cut."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(_whole(np.asarray(x, np.float64) * 32768).astype("<i2").tobytes())


def resampled(x: np.ndarray, rate: int, to: int) -> np.ndarray:
    """Samples int16 at another rate, by a windowed sinc."""
    if rate == to:
        return x
    from scipy.signal import resample_poly  # late: a third of a second, and only other rates need it

    common = math.gcd(rate, to)
    return _whole(resample_poly(x.astype(np.float64), to // common, rate // common))


def _whole(x: np.ndarray) -> np.ndarray:
    """Samples as int16, from -32767 up."""
    return np.clip(np.rint(x), -32767, 32767).astype(np.int16)


def _read_wav(data: bytes) -> tuple[np.ndarray, int]:
    """[samples, channels] in -1..1 of a WAV file of whole numbers of 8, 16, 24 or 32 bits."""
    with wave.open(io.BytesIO(data)) as file:
        channels, width, rate, count = file.getparams()[:4]
        frames = np.frombuffer(file.readframes(count), np.uint8)
    frames = frames[: len(frames) // (channels * width) * channels * width].reshape(-1, channels, width)
    if width == 1:  # from 0 to 255, unlike all others
        return (frames[..., 0] - 128.0) / 128, rate
    whole = np.zeros((*frames.shape[:2], 4), np.uint8)
    whole[..., 4 - width :] = frames  # the high bytes of 32 bits, little end first
    return whole.view("<i4")[..., 0] / 2.0**31, rate


def _read_other(name: str, data: bytes) -> tuple[np.ndarray, int]:
    try:
        import soundfile  # late: an extra
    except ImportError:
        raise ConfigError(f"{name}: no WAV of whole numbers; others need: pip install 'functrain[audio]'") from None
    try:
        return soundfile.read(io.BytesIO(data), dtype="float64", always_2d=True)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"{name}: cannot be read as a sound: {' '.join(str(error).split())}") from None


def filled(clips: Sequence[np.ndarray], samples: int) -> np.ndarray:
    """Clips as one array [n, samples] int16: cut off, or filled up with PADDING."""
    x = np.full((len(clips), samples), PADDING, np.int16)
    for row, clip in zip(x, clips):
        row[: len(clip)] = clip[:samples]
    return x
