"""Kinds that choose among a table of operations: RandAugment and AugMix.

At each place of an image's chain one operation is chosen. All images of a batch take a place together: one affine map
for each (the identity, where another operation was chosen), and each operation of colour once for the batch.
"""

from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from pydantic import Field

from functrain.augment import colour, space
from functrain.augment.base import (
    Augment,
    Probability,
    coloured,
    dirichlet,
    images,
    per_image,
    refuse_targets,
    with_images,
)
from functrain.config import Count, Positive, Size, configclass

SPACE = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
BLENDS = ("brightness", "colour", "contrast", "sharpness")
TONES = ("posterize", "solarize", "autocontrast", "equalize")
RAND_AUGMENT = ("identity", *SPACE, *BLENDS, *TONES)
AUG_MIX = (*SPACE, *TONES)


def operate(
    x: jax.Array, names: tuple[str, ...], chosen: jax.Array, strength: jax.Array, fill: float = 0.0
) -> jax.Array:
    """One operation on each image.

    Args:
      x: [n, height, width, channels] in 0..1.
      names: the operations there are to choose from.
      chosen: which of the names, [n].
      strength: of the operation chosen, [n]. shear: pixels a pixel, from the corner above on the left; translate:
        pixels, rounded towards 0; rotate: degrees, against the clock; brightness, colour, contrast, sharpness: what is
        added to a factor of 1; posterize: bits; solarize: the threshold; the others take none.
      fill: what stands outside an image that was moved.

    Returns:
      [n, height, width, channels]; what torchvision's automatic augmentations do, with bilinear interpolation.

    >>> x = jnp.array([0.25, 0.75]).reshape(1, 1, 2, 1)
    >>> operate(x, ("identity", "solarize"), jnp.array([1]), jnp.array([0.5])).ravel().tolist()
    [0.25, 0.25]
    """

    def where(name, value, otherwise):
        """`value` for the images whose operation has this name."""
        if name not in names:
            return otherwise
        one = chosen == names.index(name)
        return jnp.where(one.reshape(-1, *(1,) * (jnp.ndim(value) - 1)), value, otherwise)

    y = space.warp(x, _matrix(x, strength, where), fill)
    if any(name in names for name in BLENDS):
        other = where("brightness", jnp.zeros_like(x), x)
        other = where("colour", colour.grey(x), other)
        other = where("contrast", colour.mean_grey(x), other)
        other = where("sharpness", colour.smoothed(x), other)
        blended = colour.blend(x, other, 1 + strength)
        for name in BLENDS:
            y = where(name, blended, y)
    y = where("posterize", colour.posterize(x, jnp.clip(strength, 0, 8)), y)
    y = where("solarize", colour.solarize(x, strength), y)
    y = where("autocontrast", colour.autocontrast(x), y)
    return where("equalize", colour.equalize(x), y)


def _matrix(x, strength, where):
    """The affine map of each image's operation, [n, 2, 3]."""
    (height, width), s = x.shape[1:3], strength.astype(x.dtype)
    zero, one = jnp.zeros_like(s), jnp.ones_like(s)

    def rows(a, b, c, d, e, f):
        return jnp.stack([jnp.stack([a, b, c], -1), jnp.stack([d, e, f], -1)], -2)

    turn = jnp.deg2rad(s)
    matrix = rows(one, zero, zero, zero, one, zero)
    matrix = where("shear_x", rows(one, s, s * (height / 2), zero, one, zero), matrix)
    matrix = where("shear_y", rows(one, zero, zero, s, one, s * (width / 2)), matrix)
    matrix = where("translate_x", rows(one, zero, -jnp.trunc(s), zero, one, zero), matrix)
    matrix = where("translate_y", rows(one, zero, zero, zero, one, -jnp.trunc(s)), matrix)
    cos, sin = jnp.cos(turn), jnp.sin(turn)
    return where("rotate", rows(cos, -sin, zero, sin, cos, zero), matrix)


@configclass
class RandAugment(Augment):
    """Operations drawn from a table, all at one magnitude (Cubuk et al. 2020)."""

    kind: Literal["randaugment"] = "randaugment"
    operations: Count = 2
    """How many follow one another on each image."""
    magnitude: Annotated[Count, Field(le=30)] = 9
    """How strong they are, in 0..30."""
    fill: Probability = 0.0
    """What stands outside an image that was moved: 0 is black, 1 is white."""

    def apply(self, batch: dict[str, Any], *, key: jax.Array) -> dict[str, Any]:
        """x; the table and the magnitudes are torchvision's, signs are drawn.

        With magnitude 0 autocontrast and equalize still do what they do, and solarize turns what is fully white.

        Raises:
          ValueError: neither 1 nor 3 channels; boxes or label maps.
        """
        refuse_targets(batch)
        x = coloured(images(batch))
        table = jnp.array(self.strengths(*x.shape[1:3]), x.dtype)
        signed = jnp.array([name in (*SPACE, *BLENDS) for name in RAND_AUGMENT])

        def one(place, x):
            choice, sign = jax.random.split(jax.random.fold_in(key, place))
            chosen = jax.random.randint(choice, (len(x),), 0, len(RAND_AUGMENT))
            turned = jax.random.bernoulli(sign, shape=(len(x),)) & signed[chosen]
            strength = jnp.where(turned, -table[chosen], table[chosen])
            return operate(x, RAND_AUGMENT, chosen, strength, self.fill)

        return with_images(batch, lax.fori_loop(0, self.operations, one, x))

    def strengths(self, height: int, width: int) -> list[float]:
        """The strength of each operation of the table at this magnitude (see `operate`), before its sign.

        >>> [round(s, 2) for s in RandAugment(magnitude=30).strengths(32, 32)]
        [0.0, 0.3, 0.3, 14.5, 14.5, 30.0, 0.9, 0.9, 0.9, 0.9, 4, 0.0, 0.0, 0.0]
        """
        level = self.magnitude / 30
        shifts = [150 / 331 * side * level for side in (width, height)]
        moved = [0.3 * level, 0.3 * level, *shifts, 30.0 * level]
        return [0.0, *moved, *[0.9 * level] * 4, round(8 - 4 * level), 1 - level, 0.0, 0.0]


@configclass
class AugMix(Augment):
    """A mixture of an image with several chains of operations on it (Hendrycks et al. 2020)."""

    kind: Literal["augmix"] = "augmix"
    severity: Annotated[Positive, Field(le=10)] = 3.0
    """How strong the operations are: a level drawn from 0.1 (or this, if less) to this, over 10, of the largest."""
    width: Size = 3
    """How many chains are mixed."""
    depth: Count = 0
    """Operations in a chain; 0 draws 1, 2 or 3 for each."""
    alpha: Positive = 1.0
    """Of the Dirichlet distribution of the chains' shares, and of the Beta distribution of the image's own."""

    def apply(self, batch: dict[str, Any], *, key: jax.Array) -> dict[str, Any]:
        """x: m x + (1 - m) sum over i of w[i] chain_i(x), w ~ Dirichlet(alpha), m ~ Beta(alpha, alpha) (algorithm 1).

        The operations are the nine of the paper, none of which is among its test corruptions. Its consistency loss is
        not part of it.

        Raises:
          ValueError: neither 1 nor 3 channels; boxes or label maps.
        """
        refuse_targets(batch)
        x = coloured(images(batch))
        n, most = len(x), self.depth or 3
        own, shares, depths, places = jax.random.split(key, 4)
        depth = jnp.full(self.width * n, most) if self.depth else jax.random.randint(depths, (self.width * n,), 1, 4)

        def one(place, chains):
            choice, strong, sign = jax.random.split(jax.random.fold_in(places, place), 3)
            chosen = jax.random.randint(choice, (len(chains),), 0, len(AUG_MIX))
            least = min(0.1, self.severity)
            level = jax.random.uniform(strong, (len(chains),), x.dtype, least, self.severity) / 10
            turned = jax.random.bernoulli(sign, shape=(len(chains),))
            strength = self._strength(chosen, level, jnp.where(turned, -1, 1), *x.shape[1:3])
            moved = operate(chains, AUG_MIX, chosen, strength)
            return jnp.where((place < depth)[:, None, None, None], moved, chains)

        chains = lax.fori_loop(0, most, one, jnp.tile(x, (self.width, 1, 1, 1)))
        m = per_image(dirichlet(own, self.alpha, n, 2)[:, 0], x)
        w = per_image(dirichlet(shares, self.alpha, n, self.width).T, x)
        mixture = (w * chains.reshape(self.width, *x.shape)).sum(0)
        return with_images(batch, m * x + (1 - m) * mixture)

    def _strength(self, chosen, level, sign, height, width):
        """By the paper's program: shear 0.3, shifts of a third, 30 degrees, four bits; whole bits, rounded down."""
        largest = jnp.array([0.3, 0.3, width / 3, height / 3, 30.0, 4.0, 1.0, 0.0, 0.0], level.dtype)[chosen] * level
        strength = jnp.where(chosen < len(SPACE), sign * largest, 1 - largest)
        return jnp.where(chosen == AUG_MIX.index("posterize"), 4 - jnp.floor(largest), strength)
