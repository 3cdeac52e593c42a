"""Metrics as sums: each is a pytree that adds over batches, micro-batches, steps and devices.

A metric is divided once, when it is read; so a mean over ragged batches is exact. An accumulator stands for one number,
its `value`, or for several, its `parts`, which `numbers` gives; both are computed on the host. One's own is a
`flax.struct.dataclass` that subclasses `Accumulator` and has the one or the other.

    read(metrics)                     -> name -> number, or the accumulator itself on the host where it has parts
    scalars(read(metrics))            -> name -> float, parts by their own names
    scalar_names(name, accumulator)   -> those names, from its type and shapes alone
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from functrain import tree


class Accumulator:
    """What all metrics are: `value`, or `parts` and `numbers`.

    own: the name under which a task mostly has it; see `scalar_names`.
    parts: the names of its numbers, where it has several.
    """

    own: ClassVar[str] = ""
    parts: ClassVar[tuple[str, ...]] = ()

    @property
    def value(self) -> np.ndarray:
        """The number that it stands for, on the host."""
        raise TypeError(f"{type(self).__name__} stands for several numbers: {', '.join(self.parts)}")

    def numbers(self) -> dict[str, Any]:
        """Its parts by name, on the host; nan where one is not defined."""
        raise TypeError(f"{type(self).__name__} stands for one number, its value")


@struct.dataclass
class Mean(Accumulator):
    """A weighted sum and the sum of its weights.

    >>> float(tree.add(Mean(6.0, 3.0), Mean(2.0, 1.0)).value)
    2.0
    """

    total: Any
    count: Any

    @property
    def value(self) -> np.ndarray:
        """total / count; nan where nothing was counted."""
        return divided(np.asarray(self.total), np.asarray(self.count))

    def times(self, weight: Any) -> "Mean":
        """The mean of `weight` times what this is the mean of.

        >>> float(Mean(6.0, 3.0).times(0.5).value)
        1.0
        """
        return Mean(weight * self.total, self.count)


@struct.dataclass
class Perplexity(Mean):
    """exp(total / count) of a mean of -log p: `Perplexity(loss.total, loss.count)`.

    >>> Perplexity(6.0, 3.0).value.round(4)   # e^2
    np.float64(7.3891)
    """

    @property
    def value(self) -> np.ndarray:
        """exp(total / count), inf where that is beyond float64; nan where nothing was counted."""
        with np.errstate(over="ignore"):
            return np.exp(divided(self.total, self.count, np.float64))


@struct.dataclass
class RootMean(Mean):
    """sqrt(total / count) of a mean of squares: `RootMean(loss.total, loss.count)`.

    >>> float(RootMean(12.0, 3.0).value)
    2.0
    """

    @property
    def value(self) -> np.ndarray:
        """sqrt(total / count); nan where nothing was counted."""
        return np.sqrt(divided(self.total, self.count, np.float64))


@struct.dataclass
class Total(Accumulator):
    """The sum of several means with counts of their own: a loss of several parts, as one number.

    >>> float(Total((Mean(6.0, 3.0), Mean(1.0, 2.0))).value)
    2.5
    """

    means: Any

    @property
    def value(self) -> np.ndarray:
        """The sum of their values."""
        return np.sum([mean.value for mean in self.means], 0)


def mean_of(values: jax.Array, mask: jax.Array | None = None) -> Mean:
    """The mean of an array over every element, or over those its mask (or weights) counts.

    Args:
      values: [batch, ...], summed in at least float32.
      mask: weights that lead `values`' shape, [batch] or [batch, ...]; None counts all.

    Raises:
      ValueError: the mask does not lead the values' shape.

    >>> mean_of(jnp.array([1.0, 5.0, 9.0]), jnp.array([1.0, 1.0, 0.0])).value
    np.float32(3.0)
    """
    values = tree.wide(values)
    if mask is None:
        return Mean(values.sum(), jnp.asarray(values.size, values.dtype))
    mask = over(mask, values)
    # A masked value may be nan or inf (0 * inf is nan): it is selected away, not multiplied away. (Its gradient is
    # still 0 * inf: a loss whose masked rows are not finite must mask its inputs.)
    return Mean(jnp.where(mask != 0, values * mask, 0).sum(), mask.sum())


def over(mask: jax.Array | None, values: jax.Array) -> jax.Array:
    """The weight of each element of `values`, in at least float32, from a mask that leads their shape; 1 for None.

    Raises:
      ValueError: the mask does not lead the values' shape.
    """
    dtype = jnp.promote_types(values.dtype, jnp.float32)
    if mask is None:
        return jnp.ones(values.shape, dtype)
    if mask.shape != values.shape[: mask.ndim]:
        raise ValueError(f"mask {mask.shape} does not lead the shape {values.shape}")
    return jnp.broadcast_to(mask.astype(dtype).reshape(mask.shape + (1,) * (values.ndim - mask.ndim)), values.shape)


def divided(a: Any, b: Any, dtype: Any = None) -> np.ndarray:
    """a / b on the host; nan (or inf) where b is zero, and no warning."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.true_divide(np.asarray(a, dtype), np.asarray(b, dtype))


def is_metric(x: Any) -> bool:
    """Whether `x` is an accumulator (for `is_leaf`)."""
    return isinstance(x, Accumulator)


def read(metrics: dict[str, Any]) -> dict[str, Any]:
    """Accumulators fetched in one transfer: name -> number or array, the accumulator itself where it has parts.

    >>> read({"loss": Mean(jnp.float32(6.0), jnp.float32(3.0))})["loss"]
    np.float32(2.0)
    """
    return {name: metric if metric.parts else metric.value for name, metric in jax.device_get(metrics).items()}


def scalars(values: dict[str, Any]) -> dict[str, float]:
    """The single numbers of what `read` gives, as Python floats; parts by their names (see `scalar_names`).

    >>> scalars({"loss": np.float32(2.0), "by_layer": np.ones(3)})
    {'loss': 2.0}
    """
    found = {}
    for name, value in values.items():
        if is_metric(value):
            found |= {part_name(name, value, part): number for part, number in value.numbers().items()}
        else:
            found[name] = value
    return {name: float(number) for name, number in found.items() if np.ndim(number) == 0}


def finite(values: dict[str, float]) -> dict[str, float | None]:
    """Numbers as JSON has them: None for one that is not finite.

    >>> finite({"loss": 0.5, "fid": float("nan")})
    {'loss': 0.5, 'fid': None}
    """
    return {name: value if np.isfinite(value) else None for name, value in values.items()}


def scalar_names(name: str, accumulator: Any) -> tuple[str, ...]:
    """The names under which `scalars` will have an accumulator, from its type and shapes alone (no number is needed).

    A part stands in for the accumulator's own name: the precision of `confusion` is `precision`, that of
    `teacher_confusion` is `teacher_precision`; under another name it is added to it, `rare_precision`.

    >>> scalar_names("loss", jax.eval_shape(lambda x: mean_of(x), jnp.zeros(3)))
    ('loss',)
    """
    if accumulator.parts:
        return tuple(part_name(name, accumulator, part) for part in accumulator.parts)
    return (name,) if all(leaf.ndim == 0 for leaf in jax.tree.leaves(accumulator)) else ()


def part_name(name: str, accumulator: Accumulator, part: str) -> str:
    """The name of a part of the accumulator that stands under `name`."""
    return prefix(name, accumulator) + part


def prefix(name: str, accumulator: Accumulator) -> str:
    """What is left before an accumulator's own name; all of the name where it is another."""
    if name == accumulator.own or name.endswith("_" + accumulator.own):
        return name[: len(name) - len(accumulator.own)]
    return name + "_"
