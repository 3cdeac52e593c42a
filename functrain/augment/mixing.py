"""Kinds that mix each example with another of its batch: mixup and CutMix.

The batch gains `y_mixed` [n], the partners' labels, and `share` [n], how much of each example is its own. The loss of
an example is then

    share * l(y) + (1 - share) * l(y_mixed)

Masked examples are not mixed, nor mixed in. Where examples have a `weight`, both terms keep their own: with w that of
the example and v that of its partner, weight becomes share * w + (1 - share) * v and share becomes share * w over that,
so that weight times the loss above is share * w * l(y) + (1 - share) * v * l(y_mixed).
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from functrain.augment.base import Augment, Probability, dirichlet, images, per_image, refuse_targets, with_images
from functrain.config import Positive, configclass


@configclass
class Mixup(Augment):
    """Each image averaged with another, and so the losses of both labels (Zhang et al. 2018)."""

    kind: Literal["mixup"] = "mixup"
    alpha: Positive = 0.2
    """The own share is drawn from Beta(alpha, alpha): 1 is uniform, and below it one of the two is mostly near all."""
    probability: Probability = 1.0
    """Of an example to be mixed."""

    def apply(self, batch: dict[str, Any], *, key: jax.Array) -> dict[str, Any]:
        """x: share * x + (1 - share) * partner; y_mixed and share for the loss share * l(y) + (1 - share) * l(y_mixed).

        Raises:
          ValueError: y is no class for each example, the batch is mixed already, boxes or label maps.
        """
        x = images(batch)
        partner, share, _ = _draw(batch, x, self.alpha, self.probability, key)
        kept = per_image(share, x)
        return _mixed(batch, kept * x + (1 - kept) * x[partner], partner, share)


@configclass
class CutMix(Augment):
    """A rectangle of each image replaced by another's, and the losses of both labels by area (Yun et al. 2019)."""

    kind: Literal["cutmix"] = "cutmix"
    alpha: Positive = 1.0
    """The own share of the area is drawn from Beta(alpha, alpha), before the rectangle is cut off at the edge."""
    probability: Probability = 1.0
    """Of an example to be mixed."""

    def apply(self, batch: dict[str, Any], *, key: jax.Array) -> dict[str, Any]:
        """x with a rectangle of its partner's; y_mixed and share for the loss share * l(y) + (1 - share) * l(y_mixed).

        The rectangle has sqrt(1 - s) of each side, s as drawn, around a pixel that is drawn uniformly (equation 2);
        share is the area that is left.

        Raises:
          ValueError: y is no class for each example, the batch is mixed already, boxes or label maps.
        """
        x = images(batch)
        height, width = x.shape[1:3]
        partner, share, place = _draw(batch, x, self.alpha, self.probability, key)
        across, down = jax.random.split(place)
        side = jnp.sqrt(1 - share)

        def within(key, length):
            half = (side * length).astype(jnp.int32)[:, None] // 2
            centre = jax.random.randint(key, (len(x), 1), 0, length)
            return (jnp.arange(length) >= centre - half) & (jnp.arange(length) < centre + half)

        rows, columns = within(down, height), within(across, width)
        taken = rows[:, :, None, None] & columns[:, None, :, None]
        area = (rows.sum(1) * columns.sum(1)).astype(share.dtype)
        return _mixed(batch, jnp.where(taken, x[partner], x), partner, 1 - area / (height * width))


def _draw(batch, x, alpha, probability, key):
    """(partner [n], own share [n], a key for the rest); a share of 1 where an example is not to be mixed."""
    refuse_targets(batch)
    y = batch.get("y")
    if y is None or y.ndim != 1 or not jnp.issubdtype(y.dtype, jnp.integer):
        found = "none" if y is None else f"{y.dtype} {tuple(y.shape)}"
        raise ValueError(f"y must be a class for each example, whole numbers [n]; found {found}")
    if "share" in batch:
        raise ValueError("the batch is mixed already; one of mixup and cutmix can be used")
    order, some, own, rest = jax.random.split(key, 4)
    n = len(x)
    partner = jax.random.permutation(order, n)
    mixed = jax.random.bernoulli(some, probability, (n,))
    if "mask" in batch:
        counted = batch["mask"] != 0
        mixed &= counted & counted[partner]
    share = dirichlet(own, alpha, n, 2)[:, 0]
    return partner, jnp.where(mixed, share, 1), rest


def _mixed(batch, x, partner, share):
    made = with_images(batch, x) | {"y_mixed": batch["y"][partner], "share": share.astype(jnp.float32)}
    if "weight" in batch:
        own, other = made["share"] * batch["weight"], (1 - made["share"]) * batch["weight"][partner]
        weight = own + other
        made["weight"] = weight.astype(batch["weight"].dtype)
        made["share"] = jnp.where(weight > 0, own / jnp.where(weight > 0, weight, 1), 1).astype(jnp.float32)
    return made
