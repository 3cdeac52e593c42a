"""Waves [..., samples] as codes (mu-law), and at another rate."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functrain.audio.spectra import frames, wave


def mu_law_encode(x: jax.Array, *, levels: int = 256) -> jax.Array:
    """Samples as codes that are finer near 0: f(x) = sign(x) ln(1 + mu |x|) / ln(1 + mu), with mu = levels - 1,
    rounded to the nearest of `levels` codes from -1 to 1.

    van den Oord et al. 2016 (WaveNet), section 2.2; ITU-T G.711's curve, not its byte.

    Args:
      x: any shape, in -1..1; what lies beyond is cut off.

    Returns:
      Codes 0 .. levels - 1 of the same shape, int32.

    Raises:
      ValueError: x is not of floating point.

    >>> mu_law_encode(jnp.array([-1.0, -0.01, 0.0, 0.01, 1.0])).tolist()
    [0, 98, 128, 157, 255]
    """
    mu = levels - 1
    x = jnp.clip(wave(x), -1, 1)
    f = jnp.sign(x) * jnp.log1p(mu * jnp.abs(x)) / math.log1p(mu)
    return jnp.floor((f + 1) / 2 * mu + 0.5).astype(jnp.int32)


def mu_law_decode(codes: jax.Array, *, levels: int = 256, dtype: Any = float) -> jax.Array:
    """The sample in -1..1 that stands for each code, f^-1(y) = sign(y) ((1 + mu)^|y| - 1) / mu; see `mu_law_encode`.

    >>> mu_law_decode(jnp.array([0, 127, 128, 255])).round(5).tolist()
    [-1.0, -9.000000136438757e-05, 9.000000136438757e-05, 1.0]
    """
    mu = levels - 1
    y = 2 * codes.astype(dtype) / mu - 1
    return jnp.sign(y) * jnp.expm1(jnp.abs(y) * math.log1p(mu)) / mu


def sample_count(length: Any, old: int, new: int) -> Any:
    """How many samples `resample` makes of `length`: ceil(length * new / old). An int, or an array, traced or not.

    >>> sample_count(441, 44100, 16000)
    160
    """
    old, new = _lowest(old, new)
    return length // old * new + -(length % old * new // -old)  # in parts: int32 holds no minute of audio times a rate


def resample(x: jax.Array, old: int, new: int, *, lobes: int = 6, rolloff: float = 0.99) -> jax.Array:
    """A wave at another rate, less what the lower of the two rates cannot hold: band-limited interpolation.

    y[m] = sum over k of c / old * h(c (k / old - m / new)) x[k], where c = rolloff * min(old, new) and
    h(t) = sinc(t) cos^2(pi t / (2 lobes)) within `lobes`, 0 beyond (Smith and Gossett 1984; torchaudio's resample by
    sinc_interp_hann). Zeros are taken to lie around the wave.

    Args:
      x: [..., samples].
      old, new: samples a second, whole numbers. With old / new in lowest terms, the filter bank has new filters of
        about old taps and 2 lobes more on the way: rates that share no factor are costly.
      lobes: zeros of the sinc on either side: more is sharper and slower.
      rolloff: where the filter cuts off, as a share of the lower rate's highest frequency.

    Returns:
      [..., ceil(samples * new / old)]; x itself where the rates are equal.

    Raises:
      ValueError: x is not of floating point, or a rate below 1.

    >>> resample(jnp.ones(100), 16000, 8000)[20:23].round(2).tolist()
    [1.0, 1.0, 1.0]
    """
    x = wave(x)
    if min(old, new) < 1:
        raise ValueError(f"rates: found {old} and {new}; expected at least 1")
    if old == new:
        return x
    count = sample_count(x.shape[-1], old, new)
    old, new = _lowest(old, new)
    cutoff = rolloff * min(old, new)
    reach = math.ceil(lobes * old / cutoff)
    # Each stretch of `old` samples becomes `new` ones, and all stretches by the same filters: a product of matrices.
    taps = np.arange(-reach, old + reach)[:, None] / old - np.arange(new) / new
    t = np.clip(cutoff * taps, -lobes, lobes)
    filters = cutoff / old * np.sinc(t) * np.cos(np.pi * t / (2 * lobes)) ** 2
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(reach, reach + old)])
    pieces = frames(padded, old + 2 * reach, old)
    y = jnp.matmul(pieces, jnp.asarray(filters, x.dtype), precision="highest")
    return y.reshape(*x.shape[:-1], -1)[..., :count]


def _lowest(old, new):
    """The rates in lowest terms."""
    common = math.gcd(old, new)
    return old // common, new // common
