"""Kinds that change pixels where they are; boxes and label maps stay as they are."""

from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from pydantic import Field

from functrain.augment import colour
from functrain.augment.base import Augment, Probability, coloured, images, with_images
from functrain.config import NonNegative, Size, configclass


@configclass
class Cutout(Augment):
    """Covers squares of an image (DeVries, Taylor 2017)."""

    kind: Literal["cutout"] = "cutout"
    size: Size = 8
    """The side of a square, in pixels; an odd one is one less."""
    count: Size = 1
    """Squares in each image."""
    fill: Probability = 0.5
    """What a square is filled with; the paper's is the mean of all pixels, 0 after normalising."""

    def apply(self, batch: dict[str, Any], *, key: jax.Array) -> dict[str, Any]:
        """x, with squares around pixels that are drawn uniformly; what reaches over the edge is lost."""
        x = images(batch)
        n, height, width = x.shape[:3]

        def near(key, length):
            centre = jax.random.randint(key, (n, self.count, 1), 0, length)
            away = jnp.arange(length) - centre
            return (away >= -(self.size // 2)) & (away < self.size // 2)

        across, down = jax.random.split(key)
        covered = near(down, height)[..., :, None] & near(across, width)[..., None, :]
        return with_images(batch, jnp.where(covered.any(1)[..., None], jnp.asarray(self.fill, x.dtype), x))


@configclass
class Colour(Augment):
    """Changes brightness, contrast, saturation and hue: torchvision's ColorJitter."""

    kind: Literal["colour"] = "colour"
    brightness: NonNegative = 0.0
    """b: the factor is drawn from max(0, 1 - b) .. 1 + b; 0 is off."""
    contrast: NonNegative = 0.0
    """Likewise: below 1 towards the mean grey of the image."""
    saturation: NonNegative = 0.0
    """Likewise: below 1 towards the grey of each pixel; grey images stay as they are."""
    hue: Annotated[NonNegative, Field(le=0.5)] = 0.0
    """The hue is turned by -h .. h, where 1 is the full circle; grey images stay as they are."""

    def apply(self, batch: dict[str, Any], *, key: jax.Array) -> dict[str, Any]:
        """x; the numbers are each image's own, the order of the operations is drawn once for the batch.

        Raises:
          ValueError: neither 1 nor 3 channels.
        """
        x = coloured(images(batch))
        keys = jax.random.split(key, 5)
        operations = []
        for at, (name, operation) in enumerate(_COLOURS.items()):
            if strength := getattr(self, name):
                middle = 0 if name == "hue" else 1
                low = -strength if name == "hue" else max(0.0, 1 - strength)
                number = jax.random.uniform(keys[at], (len(x),), minval=low, maxval=middle + strength)
                operations.append(lambda x, operation=operation, number=number: operation(x, number))
        if len(operations) <= 1:
            return with_images(batch, operations[0](x) if operations else x)
        order = jax.random.permutation(keys[4], len(operations))
        return with_images(
            batch, lax.fori_loop(0, len(operations), lambda i, x: lax.switch(order[i], operations, x), x)
        )


_COLOURS = {
    "brightness": colour.brightness,
    "contrast": colour.contrast,
    "saturation": colour.saturation,
    "hue": colour.hue,
}


@configclass
class Grey(Augment):
    """Takes the colour from an image; it keeps its channels."""

    kind: Literal["grey"] = "grey"
    probability: Probability = 0.1
    """Of an image to become grey."""

    def apply(self, batch: dict[str, Any], *, key: jax.Array) -> dict[str, Any]:
        """x; images of one channel stay as they are.

        Raises:
          ValueError: neither 1 nor 3 channels.
        """
        x = coloured(images(batch))
        which = jax.random.bernoulli(key, self.probability, (len(x), 1, 1, 1))
        return with_images(batch, jnp.where(which, colour.grey(x), x))


@configclass
class Noise(Augment):
    """Adds normal noise to every pixel and channel, cut off at 0 and 1."""

    kind: Literal["noise"] = "noise"
    deviation: NonNegative = 0.05
    """The standard deviation, where 1 is from black to white."""

    def apply(self, batch: dict[str, Any], *, key: jax.Array) -> dict[str, Any]:
        """x + deviation * noise, in 0..1."""
        x = images(batch)
        return with_images(batch, jnp.clip(x + self.deviation * jax.random.normal(key, x.shape, x.dtype), 0, 1))
