"""Metrics that cannot be summed: the rows of every example are kept, and scored once, on the host."""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from functrain.metrics.accumulators import Accumulator


class Rows(Accumulator):
    """An accumulator of examples in place of sums: average precision, verification, text.

    A subclass is a `flax.struct.dataclass` whose leaves all have a leading axis of examples, `mask` [n] among them; it
    has `parts` and `numbers()`. Evaluation joins the rows of its batches (see `join`), so that `numbers()` has NumPy
    arrays of every example that counts, once. A step's metrics are summed: only those of an evaluation may be rows.
    """

    mask: Any


R = TypeVar("R", bound=Rows)


def join(parts: Sequence[R]) -> R:
    """The rows that count of several batches, on the host, in their order; all of the same kind.

    >>> from flax import struct
    >>> @struct.dataclass
    ... class Largest(Rows):
    ...     values: Any
    ...     mask: Any
    >>> part = Largest(np.array([1.0, 9.0]), mask=np.array([1.0, 0.0]))
    >>> join([part, part]).values.tolist()
    [1.0, 1.0]
    """
    parts = jax.device_get(list(parts))
    counts = np.concatenate([np.asarray(part.mask) != 0 for part in parts])
    names = [field.name for field in dataclasses.fields(parts[0])]  # pyright: ignore[reportArgumentType]
    joined = {name: np.concatenate([np.asarray(getattr(part, name)) for part in parts])[counts] for name in names}
    return type(parts[0])(**joined)
