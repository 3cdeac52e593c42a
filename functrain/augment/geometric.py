"""Kinds that move pixels. Flip and crop take boxes and label maps along; the others refuse them."""

from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from pydantic import Field

from functrain.augment import space
from functrain.augment.base import Augment, Probability, images, maps, refuse_targets, with_images
from functrain.config import NonNegative, Positive, Size, configclass

Degrees = Annotated[float, Field(ge=0, le=180)]


@configclass
class Flip(Augment):
    """Turns an image round, left to right or upside down; its boxes and label maps too."""

    kind: Literal["flip"] = "flip"
    probability: Probability = 0.5
    """Of an image to be turned round."""
    axis: Literal["horizontal", "vertical"] = "horizontal"
    """horizontal: left and right change places; vertical: above and below."""

    def apply(self, batch: dict[str, Any], *, key: jax.Array) -> dict[str, Any]:
        """x, maps and boxes (x0, y0, x1, y1): of those turned round left to right, x0 becomes width - x1."""
        x, axis = images(batch), 2 if self.axis == "horizontal" else 1
        which = jax.random.bernoulli(key, self.probability, (len(x),))
        moved = with_images(batch, space.flip(x, which, axis))
        moved |= {name: space.flip(batch[name], which, axis) for name in maps(batch)}
        if "boxes" not in batch:
            return moved
        boxes, at = batch["boxes"], 2 - axis
        low, high = boxes[..., at], boxes[..., at + 2]
        turned = boxes.at[..., at].set(x.shape[axis] - high).at[..., at + 2].set(x.shape[axis] - low)
        return moved | {"boxes": jnp.where(which[:, None, None] & _real(batch), turned, boxes)}


@configclass
class Crop(Augment):
    """Moves an image by up to `padding` pixels in each direction; its boxes (fill zero) or label maps (reflect) too."""

    kind: Literal["crop"] = "crop"
    padding: Size = 4
    """Pixels by which an image may move, as many in each direction."""
    fill: Literal["zero", "reflect"] = "zero"
    """What comes in at the edge: zeros (black), or the image mirrored at its outermost pixels."""

    def apply(self, batch: dict[str, Any], *, key: jax.Array) -> dict[str, Any]:
        """x, maps and boxes: every shift is equally likely.

        A box is cut off at the image's edge; one that has left it becomes padding, with label -1.

        Raises:
          ValueError: the targets have nothing to say about what comes in: no labels for a map filled with zeros, no
            boxes for what is mirrored; or the image is too small to be mirrored so far.
        """
        x, labelled = images(batch), maps(batch)
        if labelled and self.fill == "zero":
            raise ValueError(f'{labelled[0]} has no labels for what comes in at the edge; set fill = "reflect"')
        if "boxes" in batch and self.fill == "reflect":
            raise ValueError('boxes do not say what is mirrored at the edge; set fill = "zero"')
        offset = jax.random.randint(key, (len(x), 2), 0, 2 * self.padding + 1)
        moved = with_images(batch, space.crop(x, offset, self.padding, self.fill))
        moved |= {name: space.crop(batch[name], offset, self.padding, self.fill) for name in labelled}
        if "boxes" not in batch:
            return moved
        boxes, (height, width) = batch["boxes"], x.shape[1:3]
        shift = (self.padding - offset)[:, None, jnp.array([1, 0, 1, 0])].astype(boxes.dtype)
        cut = jnp.clip(boxes + shift, 0, jnp.array([width, height] * 2, boxes.dtype))
        moved["boxes"] = jnp.where(_real(batch), cut, boxes)
        if "labels" in batch:
            left = (cut[..., 2:] <= cut[..., :2]).any(-1)
            moved["labels"] = jnp.where(left, -1, batch["labels"])
        return moved


@configclass
class ResizedCrop(Augment):
    """Draws a part of an image, of random size and shape, out to the whole (Szegedy et al. 2015, section 6)."""

    kind: Literal["resized_crop"] = "resized_crop"
    scale: tuple[Positive, Positive] = (0.08, 1.0)
    """Least and largest share of the image's area, drawn uniformly."""
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    """Least and largest width over height, drawn with a uniform logarithm."""

    def __post_init__(self):
        if not self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale: found {list(self.scale)}; expected two shares, the least first, at most 1")
        _ascending("ratio", self.ratio)

    def apply(self, batch: dict[str, Any], *, key: jax.Array) -> dict[str, Any]:
        """x: a rectangle of the area and ratio that were drawn, its sides cut off at those of the image.

        (torchvision draws again, up to ten times, where a side is longer than the image, and takes the middle at last.)

        Raises:
          ValueError: the batch has boxes or label maps.
        """
        refuse_targets(batch)
        x = images(batch)
        n, rows, columns = x.shape[:3]
        keys = jax.random.split(key, 4)
        area = rows * columns * _uniform(keys[0], n, *self.scale)
        ratio = jnp.exp(_uniform(keys[1], n, *jnp.log(jnp.array(self.ratio))))
        height, width = jnp.minimum(jnp.sqrt(area / ratio), rows), jnp.minimum(jnp.sqrt(area * ratio), columns)
        top, left = _uniform(keys[2], n, 0, 1) * (rows - height), _uniform(keys[3], n, 0, 1) * (columns - width)
        return with_images(batch, space.resized_crop(x, top, left, height, width))


@configclass
class Rotate(Augment):
    """Turns an image by a random angle, about its centre."""

    kind: Literal["rotate"] = "rotate"
    degrees: Degrees = 15.0
    """The largest angle, to both sides; drawn uniformly."""
    fill: Probability = 0.0
    """What stands outside the image: 0 is black, 1 is white."""

    def apply(self, batch: dict[str, Any], *, key: jax.Array) -> dict[str, Any]:
        """x, read between its pixels bilinearly.

        Raises:
          ValueError: the batch has boxes or label maps.
        """
        refuse_targets(batch)
        x = images(batch)
        angle = _uniform(key, len(x), -self.degrees, self.degrees)
        return with_images(batch, space.warp(x, space.affine(angle), self.fill))


@configclass
class Affine(Augment):
    """Turns, shifts, scales and shears an image, in one map."""

    kind: Literal["affine"] = "affine"
    degrees: Degrees = 0.0
    """The largest angle, to both sides."""
    translate: Probability = 0.0
    """The largest shift, to all sides, as a share of the image's width and height."""
    scale: tuple[Positive, Positive] = (1.0, 1.0)
    """Least and largest factor of size."""
    shear: Annotated[NonNegative, Field(lt=90)] = 0.0
    """The largest angle of shear, in degrees, along each axis."""
    fill: Probability = 0.0
    """What stands outside the image: 0 is black, 1 is white."""

    def __post_init__(self):
        _ascending("scale", self.scale)

    def apply(self, batch: dict[str, Any], *, key: jax.Array) -> dict[str, Any]:
        """x, read between its pixels bilinearly; every number is drawn uniformly.

        Raises:
          ValueError: the batch has boxes or label maps.
        """
        refuse_targets(batch)
        x = images(batch)
        n, height, width = x.shape[:3]
        a, b, c, d, e, f = jax.random.split(key, 6)
        matrix = space.affine(
            _uniform(a, n, -self.degrees, self.degrees),
            (
                width * _uniform(b, n, -self.translate, self.translate),
                height * _uniform(c, n, -self.translate, self.translate),
            ),
            _uniform(d, n, *self.scale),
            (_uniform(e, n, -self.shear, self.shear), _uniform(f, n, -self.shear, self.shear)),
        )
        return with_images(batch, space.warp(x, matrix, self.fill))


def _uniform(key, n, low, high):
    return jax.random.uniform(key, (n,), minval=low, maxval=high)


def _ascending(name, pair):
    if pair[0] > pair[1]:
        raise ValueError(f"{name}: found {list(pair)}; expected the least first")


def _real(batch):
    """Which boxes [n, m, 1] are none that fill up."""
    labels = batch.get("labels")
    return jnp.ones((*batch["boxes"].shape[:2], 1), bool) if labels is None else (labels >= 0)[..., None]
