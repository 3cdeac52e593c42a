"""Metrics as sums: each is a pytree that adds over batches, micro-batches, steps and devices.

A metric is divided once, when it is read (`value`); so a mean over ragged batches is exact.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from functrain import tree


@struct.dataclass
class Mean:
    """A weighted sum and the sum of its weights.

    >>> float(tree.add(Mean(6.0, 3.0), Mean(2.0, 1.0)).value)
    2.0
    """

    total: Any
    count: Any

    @property
    def value(self) -> np.ndarray:
        """total / count, on the host; nan where nothing was counted."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.true_divide(np.asarray(self.total), np.asarray(self.count))


@struct.dataclass
class Confusion:
    """Counts[true class, predicted class]."""

    counts: Any

    @property
    def value(self) -> np.ndarray:
        """The counts, on the host."""
        return np.asarray(self.counts)


def mean_of(values: jax.Array, mask: jax.Array | None = None) -> Mean:
    """The mean of an array over every element, or over those its mask (or weights) counts.

    Args:
      values: [batch, ...], summed in at least float32.
      mask: weights that lead `values`' shape, [batch] or [batch, ...]; None counts all.

    >>> mean_of(jnp.array([1.0, 5.0, 9.0]), jnp.array([1.0, 1.0, 0.0])).value
    np.float32(3.0)
    """
    values = tree.wide(values)
    if mask is None:
        return Mean(values.sum(), jnp.asarray(values.size, values.dtype))
    mask = mask.astype(values.dtype).reshape(mask.shape + (1,) * (values.ndim - mask.ndim))
    mask = jnp.broadcast_to(mask, values.shape)
    # A masked value may be nan or inf (0 * inf is nan): it is selected away, not multiplied away. (Its gradient is
    # still 0 * inf: a loss whose masked rows are not finite must mask its inputs.)
    return Mean(jnp.where(mask != 0, values * mask, 0).sum(), mask.sum())


def confusion_of(predicted: jax.Array, labels: jax.Array, classes: int, mask: jax.Array | None = None) -> Confusion:
    """How often each class (row) was taken for each class (column); `predicted` and `labels` are [batch] integers."""
    weights = jnp.ones(labels.shape) if mask is None else mask.astype(jnp.float32)
    return Confusion(jnp.zeros((classes, classes)).at[labels, predicted].add(weights))


def is_metric(x: Any) -> bool:
    """Whether `x` is an accumulator (for `is_leaf`)."""
    return isinstance(x, (Mean, Confusion))


def read(metrics: dict[str, Any]) -> dict[str, Any]:
    """Accumulators fetched from the device (in one transfer) and divided: name -> number or array."""
    return {name: metric.value for name, metric in jax.device_get(metrics).items()}


def scalars(values: dict[str, Any]) -> dict[str, float]:
    """The entries of `read` that are single numbers, as Python floats."""
    return {name: float(value) for name, value in values.items() if np.ndim(value) == 0}
