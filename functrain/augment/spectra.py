"""SpecAugment: stretches of time and of frequency masked in features [n, frames, bins] (Park et al. 2019, section 2).

What is masked becomes 0, the mean of standardised features, and so these kinds follow the source's normalisation. A
batch may have `length` [n], the frames of each example that are sound: masks of time lie within them.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from functrain import tree
from functrain.augment.base import Augment, Probability
from functrain.augment.waves import lengths
from functrain.config import Size, configclass


@configclass
class MaskTime(Augment):
    """Masks stretches of time: all bins of some frames."""

    kind: Literal["mask_time"] = "mask_time"
    count: Size = 1
    """Masks on each example; they may overlap."""
    width: Size = 20
    """T: the widest mask, in frames; each width from 0 is equally likely."""
    share: Probability = 1.0
    """p: and the widest as a share of the frames that are sound."""

    on_features = True  # applied to features as the model sees them, after normalisation

    def apply(self, batch: dict[str, Any], *, key: jax.Array) -> dict[str, Any]:
        """x, with 0 in frames t0 .. t0 + t - 1: t from 0 .. min(T, p tau), t0 from 0 .. tau - t, of tau that are sound.

        (The paper draws t0 below tau - t, by which the last frame would never be masked.)

        Raises:
          ValueError: x is no batch of features.
        """
        x, length = features(batch)
        widest = jnp.minimum(self.width, jnp.floor(self.share * length).astype(jnp.int32))
        masked = _stretches(key, self.count, widest, length, x.shape[1])
        return batch | {"x": _zeroed(x, masked[:, :, None])}


@configclass
class MaskFrequency(Augment):
    """Masks stretches of frequency: some bins of all frames."""

    kind: Literal["mask_frequency"] = "mask_frequency"
    count: Size = 1
    """Masks on each example; they may overlap."""
    width: Size = 8
    """F: the widest mask, in bins; each width from 0 is equally likely."""

    on_features = True  # applied to features as the model sees them, after normalisation

    def apply(self, batch: dict[str, Any], *, key: jax.Array) -> dict[str, Any]:
        """x, with 0 in bins f0 .. f0 + f - 1: f from 0 .. F, or all bins where they are fewer, f0 from 0 .. bins - f.

        Raises:
          ValueError: x is no batch of features.
        """
        x, _ = features(batch)
        bins = jnp.full(len(x), x.shape[2], jnp.int32)
        masked = _stretches(key, self.count, jnp.minimum(self.width, bins), bins, x.shape[2])
        return batch | {"x": _zeroed(x, masked[:, None, :])}


def features(batch: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
    """The features of a batch, [n, frames, bins] or [n, frames, bins, channels], and how many frames are sound [n].

    Raises:
      ValueError: x is no batch of features, or not of floating point; length is no whole number for each.

    >>> features({"x": jnp.zeros((2, 8, 4)), "length": jnp.array([8, 5])})[1].tolist()
    [8, 5]
    """
    x = batch.get("x")
    if x is None or x.ndim not in (3, 4):
        found = "none" if x is None else f"shape {tuple(x.shape)}"
        raise ValueError(f"x must be features [n, frames, bins] or [n, frames, bins, channels]; found {found}")
    if not tree.is_float(x):
        raise ValueError(f"x must be features of floating point; found {x.dtype}")
    return x, lengths(batch, *x.shape[:2])


def _stretches(key, count, widest, length, size):
    """Which places [n, size] lie in one of `count` stretches: each up to `widest` [n] long and within `length` [n]."""
    long, first = jax.random.split(key)
    shape, widest, length = (count, *length.shape), widest[None], length[None]
    width = jax.random.randint(long, shape, 0, widest + 1)
    start = jax.random.randint(first, shape, 0, length - width + 1)[..., None]
    at = jnp.arange(size)
    return ((at >= start) & (at < start + width[..., None])).any(0)


def _zeroed(x, masked):
    """0 where `masked`, which broadcasts with [n, frames, bins]."""
    return jnp.where(masked if x.ndim == 3 else masked[..., None], jnp.zeros((), x.dtype), x)
