"""What is seen of a step by parameter: norms, the update-to-parameter ratio, dead units, cosines, histograms.

A learner that `shows` gives, beside its metrics, the arrays of a step themselves, each a `Mean`: `gradient/PATH`
(before clipping), `update/PATH` (what is added to the parameter) and `parameter/PATH` (before it is) of each trained
parameter, with the player's name before the path where there are several. Of a player that is improved several times in
a step, they are the mean. `see` makes numbers and histograms of them, on the device:

    gradient_norm/PATH, update_norm/PATH, parameter_norm/PATH
    update_ratio/PATH      |update| / |parameter|; around 1e-3 is a rule of thumb
    dead_units/PATH        of a kernel: the share of its output units (the last axis, with the bias) whose gradient is
                           zero over the whole batch; of a norm's scale likewise
    gradient_cosine/PATH   of the gradients of two successive steps; of all parameters together, `gradient_cosine/all`
    gradient/PATH, update/PATH, parameter/PATH    histograms

What is not defined is nan: a ratio to a parameter that is zero, an update that was skipped. Of a table of which a step
reads some rows (see functrain.optim.sparse) those rows are meant, and it has no cosine; embeddings have no units.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from functrain import tree
from functrain.metrics import Mean

SHOWN = ("gradient", "update", "parameter")
"""Of what there are norms and histograms."""
LOWEST, HIGHEST = -40, 20
"""The bins are [2^k, 2^(k + 1)) for k from LOWEST (1e-12) below HIGHEST (1e6), and their mirror images."""
_SIDE = HIGHEST - LOWEST + 1
BINS = 2 * _SIDE + 1
_POWERS = 2.0 ** np.arange(LOWEST, HIGHEST + 2)
EDGES = np.concatenate([-_POWERS[::-1], _POWERS])
"""Of all bins [BINS + 1]; the outermost, which end at 2^(HIGHEST + 1) here, hold whatever lies beyond as well."""


class Histogram(NamedTuple):
    """How many numbers lie in each bin: always the same bins, so that histograms of steps, seeds and layers add up.

    counts: [BINS], between EDGES, of what is neither zero nor inf nor nan; a number on an edge is in the bin that is
      farther from zero.
    zeros, nonfinite: how many numbers are zero; how many are inf or nan.
    """

    counts: Any
    zeros: Any
    nonfinite: Any


@struct.dataclass
class Seen:
    """What was seen of a step: `numbers` and `histograms` by name. They are held in two arrays: two leave the device.

    values: [len(names)].
    counts: int32 [len(arrays), BINS + 2]; after the bins how many are zero, and how many are not finite.
    """

    values: Any
    counts: Any
    names: tuple[str, ...] = struct.field(pytree_node=False)
    arrays: tuple[str, ...] = struct.field(pytree_node=False)

    @property
    def numbers(self) -> dict[str, Any]:
        """Norms, ratios and the like; nan where one is not defined."""
        return dict(zip(self.names, self.values))

    @property
    def histograms(self) -> dict[str, Histogram]:
        """Of gradients, updates and parameters."""
        return {name: Histogram(row[:BINS], row[BINS], row[BINS + 1]) for name, row in zip(self.arrays, self.counts)}


def shown(metrics: Mapping[str, Any]) -> dict[str, Mean]:
    """Of a step's metrics the arrays themselves."""
    return {name: metric for name, metric in metrics.items() if name.partition("/")[0] in SHOWN}


def see(step: Mapping[str, Mean], after: Mapping[str, Mean] | None = None, players: Sequence[str] = ()) -> Seen:
    """What is to be seen of a step's arrays.

    Args:
      step: what `shown` gives.
      after: the same of the step that follows, for the cosines; only its gradients are looked at.
      players: their names, where there are several.

    >>> one = jnp.ones(())
    >>> arrays = {"gradient/kernel": [[0.0, 3.0], [0.0, 4.0]], "update/kernel": [[0.0, 0.0], [0.0, -0.5]]}
    >>> found = see({name: Mean(jnp.array(x), one) for name, x in arrays.items()})
    >>> {name: float(number) for name, number in found.numbers.items()}
    {'gradient_norm/kernel': 5.0, 'update_norm/kernel': 0.5, 'dead_units/kernel': 0.5}
    >>> update = found.histograms["update/kernel"]
    >>> int(update.zeros), [float(EDGES[i]) for i in np.flatnonzero(update.counts)]
    (3, [-1.0])
    """
    numbers: dict[str, Any] = {}
    arrays = {name: _Array(mean) for name, mean in step.items()}
    for name, array in arrays.items():
        what, _, path = name.partition("/")
        numbers[f"{what}_norm/{path}"] = array.norm()
    for path in _paths("parameter", arrays):
        ratio = numbers[f"update_norm/{path}"] / numbers[f"parameter_norm/{path}"]
        numbers[f"update_ratio/{path}"] = jnp.where(jnp.isfinite(ratio), ratio, jnp.nan)
    gradients = {path: arrays[f"gradient/{path}"] for path in _paths("gradient", arrays)}
    for path, array in gradients.items():
        *scope, leaf = path.split("/")
        if array.whole and (leaf == "scale" or (leaf == "kernel" and array.x.ndim > 1)):
            numbers[f"dead_units/{path}"] = _dead(array, gradients.get("/".join([*scope, "bias"])))
    if after is not None:
        numbers |= _cosines(gradients, {path: _Array(after[f"gradient/{path}"]) for path in gradients}, players)
    return Seen(jnp.stack(list(numbers.values())), _counts(list(arrays.values())), tuple(numbers), tuple(arrays))


def _counts(arrays: "Sequence[_Array]") -> jax.Array:
    """The histograms as rows: [len(arrays), BINS + 2]. A number's bin is its exponent: nothing is rounded.

    One scatter for all of them: one for each would be twice the time of a small model's step.
    """
    rows = len(arrays)
    places = jnp.concatenate([_place(array).ravel() * rows + i for i, array in enumerate(arrays)])
    return jnp.zeros((BINS + 2) * rows, jnp.int32).at[places].add(1, mode="drop").reshape(BINS + 2, rows).T


def _place(array: "_Array") -> jax.Array:
    """Where in a row each number is counted; beyond it, where it is not."""
    x = array.x
    exponent = jnp.frexp(x)[1] - 1  # |x| is in [2^exponent, 2^(exponent + 1))
    distance = jnp.clip(exponent, LOWEST - 1, HIGHEST) - (LOWEST - 1)
    place = _SIDE + jnp.where(x < 0, -distance, distance)
    place = jnp.where(x == 0, BINS, jnp.where(jnp.isfinite(x), place, BINS + 1))
    return jnp.where(array.counted, place, BINS + 2)


class _Array:
    """An array of a step: x in at least float32, and which of its numbers count.

    All of them or none (a skipped update), or of a table the rows that the batch reads (see functrain.optim.sparse).
    """

    def __init__(self, mean: Mean):
        self.whole = jnp.ndim(mean.count) == 0
        self.counted = mean.count > 0
        self.x = tree.wide(mean.total / jnp.maximum(mean.count, 1))

    def norm(self) -> jax.Array:
        norm = tree.norm(jnp.where(self.counted, self.x, 0))
        return jnp.where(jnp.any(self.counted), norm, jnp.nan)


def _paths(what: str, arrays: Mapping[str, Any]) -> list[str]:
    return [name.partition("/")[2] for name in arrays if name.startswith(f"{what}/")]


def _dead(array: _Array, bias: _Array | None) -> jax.Array:
    """The share of the last axis along which all gradients are zero, that of the bias with them.

    With the bias: a unit whose inputs all happen to be zero is not dead. nan is not zero.
    """
    alive = jnp.any(array.x != 0, tuple(range(array.x.ndim - 1)))
    if bias is not None and bias.x.shape == alive.shape:
        alive |= bias.x != 0
    return jnp.where(array.counted, jnp.mean(~alive, dtype=array.x.dtype), jnp.nan)


def _cosines(a: Mapping[str, _Array], b: Mapping[str, _Array], players: Sequence[str]) -> dict[str, jax.Array]:
    """The cosine of two gradients by parameter, and of all parameters of each player together.

    Tables of which a step has some rows are left out: two steps have different ones.
    """
    products: dict[str, Any] = {}
    for path in a:
        if not a[path].whole:
            continue
        x, y = a[path].x, b[path].x
        pair = jnp.stack([jnp.sum(x * y), jnp.sum(x * x), jnp.sum(y * y)])
        pair = jnp.where(a[path].counted & b[path].counted, pair, jnp.nan)
        products[path] = pair
        player = path.split("/")[0] if path.split("/")[0] in players else ""
        all_of = f"{player}/all" if player else "all"
        products[all_of] = products.get(all_of, 0) + pair
    return {f"gradient_cosine/{path}": xy / jnp.sqrt(xx) / jnp.sqrt(yy) for path, (xy, xx, yy) in products.items()}


# -- on the host ----------------------------------------------------------------------------------


def drawn(found: Histogram) -> tuple[np.ndarray, np.ndarray]:
    """(counts [n], edges [n + 1]) as a histogram is drawn: zeros in the middle bin, no empty bins at the ends."""
    counts = np.array(found.counts)
    counts[_SIDE] += found.zeros
    there = np.flatnonzero(counts)
    if not len(there):
        return counts[:0], EDGES[:1]
    first, last = there[0], there[-1]
    return counts[first : last + 1], EDGES[first : last + 2]


def folded(found: Histogram) -> np.ndarray:
    """How many numbers there are by size, whatever their sign: [zeros, below 2^LOWEST, then bin by bin, beyond]."""
    sizes = np.array(found.counts[_SIDE:])
    sizes[1:] += found.counts[:_SIDE][::-1]
    return np.concatenate([[found.zeros], sizes])


def compact(found: Seen) -> dict[str, Any]:
    """What was seen as plain data for JSON: a number that is not finite is None; counts without zeros at the ends.

    >>> line = compact(see({"gradient/w": Mean(jnp.array([0.1, 0, 0]), jnp.ones(()))}))
    >>> line["numbers"], line["histograms"]
    ({'gradient_norm/w': 0.1}, {'gradient/w': {'from': 98, 'counts': [1], 'zeros': 2}})
    """
    numbers = {name: float(str(x)) if np.isfinite(x) else None for name, x in found.numbers.items()}  # its own digits
    histograms = {}
    for name, one in found.histograms.items():
        there = np.flatnonzero(one.counts)
        first, last = (int(there[0]), int(there[-1])) if len(there) else (0, -1)
        rest = {"zeros": int(one.zeros), "nonfinite": int(one.nonfinite)}
        counts = np.asarray(one.counts[first : last + 1]).tolist()
        histograms[name] = {"from": first, "counts": counts} | {k: v for k, v in rest.items() if v}
    return {"numbers": numbers, "histograms": histograms}


def expanded(line: Mapping[str, Any]) -> Seen:
    """What `compact` was given: None is nan again, and all bins are there."""
    numbers, histograms = line["numbers"], line["histograms"]
    counts = np.zeros((len(histograms), BINS + 2), np.int64)
    for row, one in zip(counts, histograms.values()):
        row[one["from"] : one["from"] + len(one["counts"])] = one["counts"]
        row[BINS:] = one.get("zeros", 0), one.get("nonfinite", 0)
    values = np.array([np.nan if x is None else x for x in numbers.values()])
    return Seen(values, counts, tuple(numbers), tuple(histograms))
