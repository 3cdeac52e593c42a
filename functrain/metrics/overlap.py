"""How well maps of classes lie over one another: intersection over union and Dice, from sums that are exact."""

from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from functrain.metrics.accumulators import Accumulator, divided

_UNIT = 1 << 16


@struct.dataclass
class Overlap(Accumulator):
    """Counts of places by class: [right, true, predicted; class; whole units of 65,536, the rest], integers.

    In two parts they add exactly over 32,768 batches, up to 10^14 places (float32 alone loses places from 2^24 on).

    background: whether class 0 counts in the means.

    >>> overlap = overlap_of(jnp.array([[0, 1, 1, 1]]), jnp.array([[0, 0, 1, 1]]), 3)
    >>> overlap.iou("none").round(3).tolist(), overlap.dice("none").round(3).tolist()
    ([0.5, 0.667, nan], [0.667, 0.8, nan])
    >>> overlap.iou().round(3)
    np.float64(0.583)
    """

    own: ClassVar[str] = "overlap"
    parts: ClassVar[tuple[str, ...]] = ("mean_iou", "mean_dice")

    counts: Any
    background: bool = struct.field(pytree_node=False, default=True)

    def numbers(self) -> dict[str, Any]:
        """Mean IoU and mean Dice."""
        return {"mean_iou": self.iou(), "mean_dice": self.dice()}

    def iou(self, average: Literal["mean", "none"] = "mean") -> np.ndarray:
        """right / (true + predicted - right) (Jaccard 1912): "none" gives it by class, nan for one that does not occur.

        The mean is over the classes that occur, as true or as predicted.
        """
        right, true, predicted = self._sums()
        return self._average(divided(right, true + predicted - right), average)

    def dice(self, average: Literal["mean", "none"] = "mean") -> np.ndarray:
        """2 right / (true + predicted) (Dice 1945), the F1 of the class; as in `iou`."""
        right, true, predicted = self._sums()
        return self._average(divided(2 * right, true + predicted), average)

    def _sums(self):
        units, rest = np.moveaxis(np.asarray(self.counts, np.float64), -1, 0)
        return np.moveaxis(units * _UNIT + rest, -2, 0)

    def _average(self, values, average):
        if average == "none":
            return values
        values = values if self.background else values[..., 1:]
        occurs = ~np.isnan(values)
        return divided(np.where(occurs, values, 0).sum(-1), occurs.sum(-1))


def overlap_of(
    predicted: jax.Array, labels: jax.Array, classes: int, mask: jax.Array | None = None, *, background: bool = True
) -> Overlap:
    """Where each class is, where it is predicted, and where both.

    Args:
      predicted, labels: [batch, ...] integers in [0, classes), of one shape.
      mask: leads the labels' shape; a place counts where it is not zero. None counts all.
      background: whether class 0 counts in the means.

    Raises:
      ValueError: shapes that differ, or a mask that does not lead them.
    """
    if predicted.shape != labels.shape:
        raise ValueError(f"predicted {predicted.shape} and labels {labels.shape} differ in shape")
    numbers = jnp.arange(classes, dtype=jnp.int32)
    true, said = (x.astype(jnp.int32)[..., None] == numbers for x in (labels, predicted))
    if mask is not None:
        if mask.shape != labels.shape[: mask.ndim]:
            raise ValueError(f"mask {mask.shape} does not lead the shape {labels.shape}")
        counted = (mask != 0).reshape(mask.shape + (1,) * (true.ndim - mask.ndim))
        true, said = true & counted, said & counted
    sums = jnp.stack([x.sum(tuple(range(labels.ndim)), dtype=jnp.int32) for x in (true & said, true, said)])
    return Overlap(jnp.stack([sums // _UNIT, sums % _UNIT], -1), background)
