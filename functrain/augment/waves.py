"""Kinds that change waves: x [n, samples], in -1..1.

A batch may have `length` [n], how many samples of each example are sound. The rest is zeros and stays zeros; without
it all samples are sound. Nothing is cut off at -1 and 1: a louder wave may reach beyond.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from functrain import tree
from functrain.augment.base import Augment, Probability
from functrain.config import Positive, configclass


@configclass
class Shift(Augment):
    """Moves a sound in time; what it leaves is filled with zeros."""

    kind: Literal["shift"] = "shift"
    share: Probability = 0.1
    """The farthest shift, to both sides, as a share of the sound's length; every one is equally likely."""

    def apply(self, batch: dict[str, Any], *, key: jax.Array) -> dict[str, Any]:
        """x; what leaves the sound's length at one end is lost, and the length stays.

        Raises:
          ValueError: x is no batch of waves, or targets lie on their samples.
        """
        x, length = waves(batch)
        _refuse_targets(batch)
        most = jnp.floor(self.share * length).astype(jnp.int32)
        at = jnp.arange(x.shape[1]) - jax.random.randint(key, length.shape, -most, most + 1)[:, None]
        inside = (at >= 0) & (at < length[:, None]) & _sound(x, length)
        return batch | {"x": jnp.where(inside, _read(x, at), 0)}


@configclass
class WhiteNoise(Augment):
    """Adds white normal noise at a ratio to the power of the sound."""

    kind: Literal["white_noise"] = "white_noise"
    snr: tuple[float, float] = (10.0, 30.0)
    """Least and largest signal-to-noise ratio in decibels, drawn uniformly: 20 is a hundredth of the sound's power."""

    def __post_init__(self):
        _ascending("snr", self.snr)

    def apply(self, batch: dict[str, Any], *, key: jax.Array) -> dict[str, Any]:
        """x + noise, where there is sound; the ratio is met exactly, and silence stays silent.

        Raises:
          ValueError: x is no batch of waves.
        """
        x, length = waves(batch)
        ratio, drawn = jax.random.split(key)
        wide = tree.wide(x)
        sound = _sound(x, length)
        noise = jnp.where(sound, jax.random.normal(drawn, x.shape, wide.dtype), 0)
        signal, power = (jnp.square(jnp.where(sound, a, 0)).sum(1) for a in (wide, noise))
        decibels = jax.random.uniform(ratio, length.shape, wide.dtype, *self.snr)
        amplitude = jnp.sqrt(signal / jnp.where(power > 0, power, 1) * 10 ** (-decibels / 10))
        return batch | {"x": (wide + amplitude[:, None] * noise).astype(x.dtype)}


@configclass
class Speed(Augment):
    """Plays a sound faster or slower, and so higher or lower (Ko et al. 2015)."""

    kind: Literal["speed"] = "speed"
    factor: tuple[Positive, Positive] = (0.9, 1.1)
    """Least and largest factor, drawn uniformly; 2 is twice as fast and half as long."""

    def __post_init__(self):
        _ascending("factor", self.factor)

    def apply(self, batch: dict[str, Any], *, key: jax.Array) -> dict[str, Any]:
        """x at sample i is x at i * factor, read between its samples on a straight line.

        The last sample is read at or before the last of the sound: length becomes floor((length - 1) / factor) + 1, or
        all samples where it would be more, and the rest of the sound is lost. A straight line dulls the highest
        frequencies a little, and what is above half the rate after speeding up is folded back.

        Raises:
          ValueError: x is no batch of waves, or targets lie on their samples.
        """
        x, length = waves(batch)
        _refuse_targets(batch)
        wide = tree.wide(x)
        factor = jax.random.uniform(key, length.shape, wide.dtype, *self.factor)
        after = jnp.floor((length - 1) / factor).astype(jnp.int32) + 1
        after = jnp.clip(after, 0, x.shape[1])
        place = jnp.arange(x.shape[1]) * factor[:, None]
        before = jnp.floor(place)
        share, at = place - before, before.astype(jnp.int32)
        y = (1 - share) * _read(wide, at) + share * _read(wide, at + 1)
        changed = batch | {"x": jnp.where(_sound(x, after), y, 0).astype(x.dtype)}
        return changed | {"length": after.astype(batch["length"].dtype)} if "length" in batch else changed


@configclass
class Gain(Augment):
    """Makes a sound louder or softer."""

    kind: Literal["gain"] = "gain"
    decibels: tuple[float, float] = (-6.0, 6.0)
    """Least and largest gain, drawn uniformly: 6 is about twice the amplitude, -6 half."""

    def __post_init__(self):
        _ascending("decibels", self.decibels)

    def apply(self, batch: dict[str, Any], *, key: jax.Array) -> dict[str, Any]:
        """10^(decibels / 20) * x.

        Raises:
          ValueError: x is no batch of waves.
        """
        x, length = waves(batch)
        wide = tree.wide(x)
        factor = 10 ** (jax.random.uniform(key, length.shape, wide.dtype, *self.decibels) / 20)
        return batch | {"x": (factor[:, None] * wide).astype(x.dtype)}


def waves(batch: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
    """The waves of a batch [n, samples], and how many samples of each are sound [n].

    Raises:
      ValueError: x is no batch of waves, or not of floating point; length is no whole number for each.

    >>> waves({"x": jnp.zeros((2, 8))})[1].tolist()
    [8, 8]
    """
    x = batch.get("x")
    if x is None or x.ndim != 2:
        found = "none" if x is None else f"shape {tuple(x.shape)}"
        raise ValueError(f"x must be waves [n, samples]; found {found}")
    if not tree.is_float(x):
        raise ValueError(f"x must be samples in -1..1 of floating point; found {x.dtype}")
    return x, lengths(batch, *x.shape)


def lengths(batch: dict[str, Any], n: int, longest: int) -> jax.Array:
    """How much of each of n examples is sound [n]; `longest` where the batch does not say.

    Raises:
      ValueError: length is no whole number for each example.

    >>> lengths({"length": jnp.array([3, 5])}, 2, 8).tolist(), lengths({}, 2, 8).tolist()
    ([3, 5], [8, 8])
    """
    length = batch.get("length")
    if length is None:
        return jnp.full(n, longest, jnp.int32)
    if length.shape != (n,) or not jnp.issubdtype(length.dtype, jnp.integer):
        raise ValueError(f"length must be whole numbers [n]; found {length.dtype} {tuple(length.shape)} for n = {n}")
    return length.astype(jnp.int32)


def _refuse_targets(batch):
    """Raises a ValueError where a target has a value for each sample, which would have to move with it."""
    size = batch["x"].shape
    if found := [name for name in ("y", "mask", "weight") if name in batch and batch[name].shape[:2] == size]:
        raise ValueError(f"{found[0]} lies on the samples and cannot follow them here")


def _sound(x, length):
    """Which samples [n, samples] are sound."""
    return jnp.arange(x.shape[1]) < length[:, None]


def _read(x, at):
    """x at places [n, samples]; one outside reads the nearest."""
    return jnp.take_along_axis(x, jnp.clip(at, 0, x.shape[1] - 1), 1, mode="promise_in_bounds")


def _ascending(name, pair):
    if pair[0] > pair[1]:
        raise ValueError(f"{name}: found {list(pair)}; expected the least first")
