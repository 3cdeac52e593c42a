"""What every augmentation shares: the images of a batch, and the targets that lie on them.

    apply(batch, *, key) -> batch      pure and traced

x is [n, height, width, channels], or [n, height, width] without channels, in 0..1. Each example draws its own numbers,
all of them from `key`: the same key gives the same batch.
"""

from abc import ABC, abstractmethod
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from pydantic import Field

from functrain import tree
from functrain.config import configclass

Probability = Annotated[float, Field(ge=0, le=1)]
"""From 0 to 1, both included."""


@configclass
class Augment(ABC):
    """What every kind has."""

    @abstractmethod
    def apply(self, batch: dict[str, Any], *, key: jax.Array) -> dict[str, Any]:
        """The batch, changed at random."""


def images(batch: dict[str, Any]) -> jax.Array:
    """The images of a batch, [n, height, width, channels].

    Raises:
      ValueError: x is no batch of images, or not of floating point.

    >>> images({"x": jnp.zeros((2, 8, 8))}).shape
    (2, 8, 8, 1)
    """
    x = batch.get("x")
    if x is None or x.ndim not in (3, 4):
        found = "none" if x is None else f"shape {tuple(x.shape)}"
        raise ValueError(f"x must be images [n, height, width] or [n, height, width, channels]; found {found}")
    if not tree.is_float(x):
        raise ValueError(f"x must be pixels in 0..1 of floating point; found {x.dtype}")
    return x if x.ndim == 4 else x[..., None]


def with_images(batch: dict[str, Any], x: jax.Array) -> dict[str, Any]:
    """The batch with x [n, height, width, channels] for its images, in the shape and dtype that they had."""
    old = batch["x"]
    return batch | {"x": x.reshape(old.shape).astype(old.dtype)}


def coloured(x: jax.Array) -> jax.Array:
    """x, if it has one channel (grey) or three (red, green, blue).

    Raises:
      ValueError: another number of channels.
    """
    if x.shape[-1] not in (1, 3):
        raise ValueError(f"colours need images of 1 or 3 channels; found {x.shape[-1]}")
    return x


def maps(batch: dict[str, Any]) -> list[str]:
    """Which of y, mask and weight have a value for each pixel: [n, height, width, ...].

    Raises:
      ValueError: one has two axes of space or more, but not those of the images: nothing says how it lies on them.

    >>> maps({"x": jnp.zeros((2, 8, 6, 3)), "y": jnp.zeros((2, 8, 6), int), "mask": jnp.ones(2)})
    ['y']
    """
    size, found = images(batch).shape[1:3], []
    for name in ("y", "mask", "weight"):
        if name in batch and batch[name].ndim >= 3:
            if batch[name].shape[1:3] != size:
                raise ValueError(f"{name} {tuple(batch[name].shape)} does not lie on images of {size[0]} x {size[1]}")
            found.append(name)
    return found


def refuse_targets(batch: dict[str, Any]) -> None:
    """Nothing, where the targets do not lie on the images.

    Raises:
      ValueError: the batch has boxes or label maps.
    """
    if found := [name for name in ("boxes",) if name in batch] + maps(batch):
        raise ValueError(f"{found[0]} lies on the images and cannot follow them here; flip and crop are followed")


def dirichlet(key: jax.Array, alpha: float, n: int, parts: int) -> jax.Array:
    """Shares [n, parts] from the symmetric Dirichlet distribution; the first of two is Beta(alpha, alpha).

    Gamma numbers over their sum, in logarithms: for a small alpha too a share is one of 0..1 and never nan.

    >>> float(dirichlet(jax.random.key(0), 0.01, 4, 3).sum())
    4.0
    """
    return jax.nn.softmax(jax.random.loggamma(key, alpha, (n, parts)))


def per_image(value: Any, like: jax.Array) -> jax.Array:
    """A number for each image, [n] or one for all, of the dtype of `like`, to be broadcast with [n, h, w, c]."""
    value = jnp.asarray(value, like.dtype)
    return value.reshape(*value.shape, 1, 1, 1)
