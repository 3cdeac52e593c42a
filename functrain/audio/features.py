"""Features of speech and sound from spectra: mel filters, log-mel energies, cepstra, and how they change in time."""

import math
import warnings
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from functrain import tree
from functrain.audio.spectra import Centre, spectrogram

Scale = Literal["slaney", "htk"]
"""slaney: linear up to 1000 Hz, logarithmic above (Auditory Toolbox, 1998); htk: 2595 log10(1 + f / 700)."""


def mel_filters(
    rate: int,
    size: int,
    mels: int,
    *,
    low: float = 0.0,
    high: float | None = None,
    scale: Scale = "slaney",
    norm: bool = True,
) -> np.ndarray:
    """Triangles over the frequencies, evenly spaced in mels, each from the peak before to the peak after its own.

    Args:
      rate: samples a second.
      size: of a frame, in samples.
      mels: how many filters.
      low, high: where the first triangle begins and the last ends, in hertz; None is rate / 2.
      scale: what a mel is; see `Scale`.
      norm: whether every triangle has area 1 over hertz, or else height 1.

    Returns:
      [size // 2 + 1, mels], float64: a spectrogram [..., frames, bins] @ it is [..., frames, mels].

    Raises:
      ValueError: not 0 <= low < high <= rate / 2, or an unknown scale.

    Warns:
      UserWarning: a triangle so narrow that no bin lies in it: its energy is always 0.

    >>> mel_filters(8, 8, 2, high=4.0, norm=False).round(2).tolist()
    [[0.0, 0.0], [0.75, 0.0], [0.5, 0.5], [0.0, 0.75], [0.0, 0.0]]
    """
    high = rate / 2 if high is None else high
    if not 0 <= low < high <= rate / 2:
        raise ValueError(f"low, high: found {low:g} and {high:g} Hz; expected 0 <= low < high <= {rate / 2:g}")
    if scale not in _SCALES:
        raise ValueError(f"scale: found {scale!r}; expected one of {', '.join(_SCALES)}")
    to_mel, to_hertz = _SCALES[scale]
    corners = to_hertz(np.linspace(to_mel(low), to_mel(high), mels + 2))
    left, peak, right = corners[:-2], corners[1:-1], corners[2:]
    bins = np.arange(size // 2 + 1)[:, None] * (rate / size)
    filters = np.maximum(0, np.minimum((bins - left) / (peak - left), (right - bins) / (right - peak)))
    if empty := int((filters.max(0) == 0).sum()):
        warnings.warn(f"{empty} of {mels} mel filters hold no bin of {size // 2 + 1}; use fewer", stacklevel=2)
    return filters * (2 / (right - left)) if norm else filters


def log_mel(
    x: jax.Array,
    *,
    rate: int,
    size: int,
    hop: int,
    mels: int = 80,
    low: float = 0.0,
    high: float | None = None,
    scale: Scale = "slaney",
    norm: bool = True,
    window: str = "hann",
    length: int | None = None,
    centre: Centre = "zero",
    floor: Any = 1e-10,
) -> jax.Array:
    """log(max(energy, floor)), the natural logarithm of the energies that the mel filters see.

    Args:
      x: [..., samples].
      rate, mels, low, high, scale, norm: as in `mel_filters`.
      size, hop, window, length, centre: as in `stft`.
      floor: the least energy; below it, silence included, the slope is 0.

    Returns:
      [..., frames, mels]; `frame_count` says how many frames.

    Raises:
      ValueError: as `stft` and `mel_filters`.

    >>> log_mel(jnp.zeros((2, 800)), rate=8000, size=256, hop=80, mels=40, floor=1.0).shape
    (2, 11, 40)
    """
    power = spectrogram(x, size=size, hop=hop, window=window, length=length, centre=centre)
    filters = mel_filters(rate, size, mels, low=low, high=high, scale=scale, norm=norm)
    return jnp.log(jnp.maximum(_dot(power, filters), floor))


def decibels(power: jax.Array, *, floor: Any = 1e-10, top_db: Any = 80.0) -> jax.Array:
    """10 log10(max(power, floor)), and no value more than `top_db` below the largest of its [frames, bins].

    power: [..., frames, bins], of a spectrogram or of mel energies. top_db: None is off.

    >>> decibels(jnp.array([[1.0, 100.0, 0.0]])).round().tolist()
    [[0.0, 20.0, -60.0]]
    """
    y = 10 / math.log(10) * jnp.log(jnp.maximum(tree.wide(power), floor))
    return y if top_db is None else jnp.maximum(y, y.max((-2, -1), keepdims=True) - top_db)


def mfcc(mel: jax.Array, count: int = 13) -> jax.Array:
    """Mel-frequency cepstral coefficients: the first `count` of the orthonormal DCT-II over the mels.

    c_k = s_k sum over m of mel_m cos(pi k (m + 1/2) / mels), with s_0 = sqrt(1 / mels) and s_k = sqrt(2 / mels)
    otherwise (Davis and Mermelstein 1980). librosa's and torchaudio's are those of `decibels`; those of `log_mel` are
    smaller by 10 / ln 10, but for what top_db cuts off.

    Args:
      mel: [..., mels], logarithmic.

    Returns:
      [..., count].

    Raises:
      ValueError: more coefficients than mels.

    >>> mfcc(jnp.array([1.0, 1.0, 1.0, 1.0]), 2).round(3).tolist()
    [2.0, 0.0]
    """
    mels = mel.shape[-1]
    if not 1 <= count <= mels:
        raise ValueError(f"count: found {count} coefficients; expected 1 to {mels}, the number of mels")
    basis = np.cos(np.pi / mels * (np.arange(mels)[:, None] + 0.5) * np.arange(count)) * np.sqrt(2 / mels)
    basis[:, 0] /= np.sqrt(2)
    return _dot(tree.wide(mel), basis)


def deltas(x: jax.Array, *, reach: int = 2, length: jax.Array | None = None) -> jax.Array:
    """The slope of the line through 2 reach + 1 frames, by least squares; before the first and after the last frame
    stands that frame again.

    d_t = sum over n of n (x_{t + n} - x_{t - n}) / (2 sum over n of n^2), n = 1 .. reach (Young et al., The HTK Book,
    section 5.9): torchaudio's compute_deltas, and librosa's delta of order 1 in mode "nearest". Second derivatives are
    the deltas of deltas.

    Args:
      x: [..., frames, features].
      length: frames of each that are sound, [...]; None is all. What lies past them has no part in the others.

    Returns:
      Like x, in at least float32; past the length it says nothing.

    Raises:
      ValueError: a reach below 1.

    >>> deltas(jnp.array([0.0, 1.0, 2.0, 3.0, 4.0])[:, None], reach=1)[:, 0].tolist()
    [0.5, 1.0, 1.0, 1.0, 0.5]
    """
    if reach < 1:
        raise ValueError(f"reach: found {reach} frames; expected at least 1")
    x, count = tree.wide(x), x.shape[-2]
    last = count - 1 if length is None else length[..., None] - 1
    at = jnp.broadcast_to(jnp.clip(jnp.arange(-reach, count + reach), 0, last), (*x.shape[:-2], count + 2 * reach))
    padded = jnp.take_along_axis(x, at[..., None], -2)

    slope = jnp.zeros_like(x)
    for n in range(1, reach + 1):
        later, earlier = (padded[..., reach + k : reach + k + count, :] for k in (n, -n))
        slope += n * (later - earlier)
    return slope / (2 * sum(n * n for n in range(1, reach + 1)))


def _dot(x, matrix):
    """In full precision where the device has a faster one: energies span many orders of magnitude."""
    return jnp.matmul(x, jnp.asarray(matrix, x.dtype), precision="highest")


_LINEAR, _KNEE, _STEP = 200 / 3, 1000.0, np.log(6.4) / 27
"""Slaney's scale: hertz a mel below the knee, the knee, and the logarithm of a mel's factor above it."""


def _hertz_to_slaney(f):
    return np.where(f < _KNEE, f / _LINEAR, _KNEE / _LINEAR + np.log(np.maximum(f, _KNEE) / _KNEE) / _STEP)


def _slaney_to_hertz(m):
    above = m - _KNEE / _LINEAR
    return np.where(above < 0, m * _LINEAR, _KNEE * np.exp(np.maximum(above, 0) * _STEP))


_SCALES: dict[str, Any] = {
    "slaney": (_hertz_to_slaney, _slaney_to_hertz),
    "htk": (lambda f: 2595 * np.log10(1 + f / 700), lambda m: 700 * (10 ** (m / 2595) - 1)),
}
"""Hertz to mels, and back."""
