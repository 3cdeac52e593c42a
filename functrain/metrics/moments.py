"""How much of the targets' variance predictions explain, from sums that do not cancel.

R^2 needs the spread of the targets about a mean that is known only at the end. Sums of y and y^2 would give it, but in
float32 they cancel where the mean is large beside the spread (calendar years: nothing is left). So each target is
summed in the bin of its first 14 bits (sign, exponent and five bits of the mantissa), less the middle of that bin:
what is summed is small, the difference is exact, and the bins are put together in float64 when they are read.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from functrain import tree
from functrain.metrics.accumulators import Accumulator, divided, over
from functrain.metrics.floats import number_of, ordered

_BITS = 14
_DROPPED = 32 - _BITS


def _middles():
    """The middle of each bin, float32; zero where that is not finite."""
    values = number_of((np.arange(1 << _BITS) << _DROPPED) + (1 << (_DROPPED - 1)), np.float32)
    return np.where(np.isfinite(values), values, np.float32(0))


@struct.dataclass
class Moments(Accumulator):
    """Sums over each of several targets; every number is the mean over the targets.

    targets: [targets, 3, bins]: weights; of the targets less the middle of their bin, the sum and the sum of squares.
    errors: [targets, 2]: the sum of target - prediction, and of its square.

    nan where a target does not vary. 0.2 megabytes a target.

    >>> y = jnp.array([1996.0, 1998.0, 2000.0])
    >>> moments = moments_of(y + jnp.array([1.0, 0.0, 0.0]), y)
    >>> float(moments.r2())   # 1 - 1 / 8
    0.875
    """

    own: ClassVar[str] = "moments"
    parts: ClassVar[tuple[str, ...]] = ("r2", "explained_variance")

    targets: Any
    errors: Any

    def numbers(self) -> dict[str, Any]:
        """R^2 and the explained variance."""
        return {"r2": self.r2(), "explained_variance": self.explained_variance()}

    def r2(self) -> np.ndarray:
        """1 - sum (y - p)^2 / sum (y - mean y)^2, the mean over the targets."""
        _, spread = self._targets()
        return _one_less(np.asarray(self.errors, np.float64)[..., 1], spread)

    def explained_variance(self) -> np.ndarray:
        """1 - var(y - p) / var(y), the mean over the targets: R^2, but for what a constant could mend."""
        count, spread = self._targets()
        errors = np.asarray(self.errors, np.float64)
        with np.errstate(all="ignore"):
            return _one_less(errors[..., 1] - divided(errors[..., 0] ** 2, count), spread)

    def _targets(self):
        """(sum of weights, sum of squares about the mean) of each target."""
        weight, low, square = np.moveaxis(np.asarray(self.targets, np.float64), -2, 0)
        middles = _middles().astype(np.float64)
        count = weight.sum(-1)
        with np.errstate(all="ignore"):  # a target that is not finite
            mean = divided((weight * middles + low).sum(-1), count)
            off = np.where(weight != 0, middles - mean[..., None], 0)
            return count, (weight * off**2 + 2 * off * low + square).sum(-1)


def moments_of(predictions: jax.Array, targets: jax.Array, mask: jax.Array | None = None) -> Moments:
    """What R^2 and the explained variance need of predictions and targets.

    Args:
      predictions, targets: [batch] or [batch, targets], of one shape.
      mask: weights that lead the targets' shape; None counts all.
    """
    if predictions.shape != targets.shape:
        raise ValueError(f"predictions {predictions.shape} and targets {targets.shape} differ in shape")
    predictions, targets = tree.wide(predictions), tree.wide(targets)
    weights = over(mask, targets)
    predictions, targets, weights = (x.reshape(len(x), -1) for x in (predictions, targets, weights))
    error = jnp.where(weights != 0, targets - predictions, 0)
    at = (ordered(targets.astype(jnp.float32)) >> _DROPPED).astype(jnp.int32)
    low = jnp.where(weights != 0, targets - jnp.asarray(_middles(), targets.dtype)[at], 0)
    sums = jnp.stack([weights, weights * low, weights * low**2], -1)
    wide = targets.shape[1]
    binned = jnp.zeros((wide, 1 << _BITS, 3), targets.dtype).at[jnp.arange(wide)[None, :], at].add(sums)
    errors = jnp.stack([(weights * error).sum(0), (weights * error**2).sum(0)], -1)
    return Moments(binned.swapaxes(-1, -2), errors)


def _one_less(a, b):
    """The mean over the targets of 1 - a / b; nan where one does not vary."""
    with np.errstate(all="ignore"):
        return (1 - np.where(b > 0, divided(a, b), np.nan)).mean(-1)
