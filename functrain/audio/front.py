"""What a model sees of a wave, as a config says: the wave, its codes, a spectrogram, log-mel energies or cepstra.

Each kind has

    shape(samples, rate)           -> the shape of one example
    apply(x, length, rate)         -> (features [n, frames, ...] of waves x [n, samples], their length [n] in frames)
    continuous                     whether features are numbers that may be standardised
    codes                          how many codes there are, where features are codes
"""

from abc import ABC, abstractmethod
from typing import Any, Literal

import jax
import jax.numpy as jnp

from functrain.audio.features import deltas, log_mel, mfcc
from functrain.audio.spectra import frame_count, spectrogram
from functrain.audio.waves import mu_law_encode
from functrain.config import Count, NonNegative, Positive, Size, configclass, kinds


@configclass
class Frames(ABC):
    """What spectral features share."""

    window: Positive = 25.0
    """Milliseconds of a frame, under a Hann window."""
    hop: Positive = 10.0
    """Milliseconds from a frame to the next."""
    floor: Positive = 1e-6
    """The least energy; below it, silence included, all is alike."""
    deltas: Count = 0
    """How many orders of slopes over time stand beside the features: 1 is speed, 2 acceleration too."""

    continuous = True
    codes = 0

    def shape(self, samples: int, rate: int) -> tuple[int, ...]:
        """(frames, features) of a wave of so many samples."""
        x = jax.eval_shape(lambda x: self.apply(x, None, rate)[0], jax.ShapeDtypeStruct((1, samples), jnp.float32))
        return x.shape[1:]

    def apply(self, x: jax.Array, length: Any, rate: int) -> tuple[jax.Array, Any]:
        """Features [n, frames, features] of x [n, samples] with `length` [n], and the frames of each."""
        size = self._samples(self.window, rate)
        shape: dict[str, Any] = {"size": 2 ** (size - 1).bit_length(), "hop": self._samples(self.hop, rate)}
        frames = None if length is None else frame_count(length, **shape)
        y = self._of(x, rate, shape | {"length": size})
        parts = [y]
        for _ in range(self.deltas):
            parts.append(deltas(parts[-1], length=frames))
        return jnp.concatenate(parts, -1), frames

    @abstractmethod
    def _of(self, x: jax.Array, rate: int, shape: dict[str, Any]) -> jax.Array:
        """Features [n, frames, features] of x, in frames of that shape."""

    @staticmethod
    def _samples(milliseconds: float, rate: int) -> int:
        return max(1, round(milliseconds * rate / 1000))


@configclass
class Spectrogram(Frames):
    """The logarithm of the power at each frequency."""

    kind: Literal["spectrogram"] = "spectrogram"

    def _of(self, x, rate, shape):
        return jnp.log(jnp.maximum(spectrogram(x, **shape), self.floor))


@configclass
class LogMel(Frames):
    """The logarithm of the energy in bands that are as wide as they sound: log-mel energies."""

    kind: Literal["log_mel"] = "log_mel"
    mels: Size = 40
    """Bands."""
    low: NonNegative = 0.0
    """Where the lowest begins, in hertz."""
    high: NonNegative = 0.0
    """Where the highest ends, in hertz; 0 is half the samples a second."""

    def _of(self, x, rate, shape):
        given: dict[str, Any] = {
            "rate": rate,
            "mels": self.mels,
            "low": self.low,
            "high": self.high or None,
            "floor": self.floor,
        }
        return log_mel(x, **given, **shape)


@configclass
class MFCC(LogMel):
    """Mel-frequency cepstral coefficients, of log-mel energies."""

    kind: Literal["mfcc"] = "mfcc"
    coefficients: Size = 13
    """How many are kept."""

    def _of(self, x, rate, shape):
        return mfcc(super()._of(x, rate, shape), self.coefficients)


@configclass
class Wave:
    """The wave itself, [n, samples]."""

    kind: Literal["wave"] = "wave"

    continuous = False  # its own scale is one of its facts
    codes = 0

    def shape(self, samples: int, rate: int) -> tuple[int, ...]:
        """(samples,)."""
        return (samples,)

    def apply(self, x: jax.Array, length: Any, rate: int) -> tuple[jax.Array, Any]:
        """x as it is."""
        return x, length


@configclass
class MuLaw:
    """The wave's samples as codes of 8 bits, finer where it is quiet (ITU-T G.711), [n, samples] int32."""

    kind: Literal["mu_law"] = "mu_law"
    levels: Size = 256
    """How many codes there are."""

    continuous = False

    @property
    def codes(self) -> int:
        """How many codes there are."""
        return self.levels

    def shape(self, samples: int, rate: int) -> tuple[int, ...]:
        """(samples,)."""
        return (samples,)

    def apply(self, x: jax.Array, length: Any, rate: int) -> tuple[jax.Array, Any]:
        """The codes of x."""
        return mu_law_encode(x, levels=self.levels).astype(jnp.int32), length


AnyFeatures = kinds(LogMel, MFCC, Spectrogram, Wave, MuLaw)
"""data.features of sounds: every kind a config can name."""
