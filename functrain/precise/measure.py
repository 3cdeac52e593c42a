"""What low precision does to a gradient: its error by parameters, by classes of primitives, by parts of the model."""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functrain import tree
from functrain.precise.gradient import check_one_player, gradient, in_float64, relative
from functrain.precise.imitation import Imitation
from functrain.precision import Float32, Rules, class_of
from functrain.precision.autocast import Interpreter
from functrain.precision.emulate import CLASSES, DTYPES, Unit


@dataclass(frozen=True)
class Group:
    """The gradient of some parameters: its relative error by the policy and in float32, against float64.

    under, over: shares of its numbers that the policy makes zero, or not finite, and float64 does not.
    """

    name: str
    error: float
    exact: float
    under: float
    over: float


@dataclass(frozen=True)
class Primitives:
    """A class of primitives in low precision.

    alone: the gradient's error where this class alone is in the low dtype (imitated: `functrain.precision.emulate`).
    rest: where all classes are but this one.
    under, over: shares of what its primitives give, forward and backward, that the dtype would make zero or infinite.
    flops, numbers: its shares of the model's products, and of what is read and written.
    """

    name: str
    alone: float
    rest: float
    under: float
    over: float
    flops: float
    numbers: float


@dataclass(frozen=True)
class Measured:
    """What `measure` found. Errors are the largest over the batches.

    low: the dtype that the classes and parts are imitated in; the policy's, or bfloat16 where that is float32.
    parts: (class, part of the model) -> the error where it alone is in the low dtype.
    seconds: of a gradient, by the policy and in float32, median; and what each took to compile.
    """

    low: str
    error: float
    exact: float
    groups: tuple[Group, ...]
    classes: tuple[Primitives, ...]
    parts: dict[Unit, float]
    seconds: dict[str, float]


def measure(
    task: Any, train_state: Any, batches: Sequence[Any], tell: Callable[[int, int], None] = lambda done, of: None
) -> Measured:
    """The gradient of a task by its own policy, in float32 and in float64, on the same batches.

    Raises:
      ConfigError: the task has no player, or several.
    """
    check_one_player(task, "precision: an error")
    policy, scale = task.learner.precision, train_state.players["model"].scale
    scale = None if scale is None else scale.value
    runs, seconds = {}, {}
    for name, f in (("policy", gradient(task)), ("float32", gradient(task, Float32()))):
        start = time.perf_counter()
        runs[name] = jax.jit(f).lower(train_state, batches[0], scale).compile()
        seconds[f"compile {name}"] = time.perf_counter() - start
    exact = in_float64(gradient(task, Float32()))
    found = [[f(train_state, b, scale) for f in runs.values()] + [exact(train_state, b)] for b in batches]
    seconds |= _timed({name: functools.partial(f, train_state, batches[0], scale) for name, f in runs.items()})
    split = [[_by_group(part) for part in each] for each in found]
    groups = tuple(_group(name, [[part[name] for part in each] for each in split]) for name in split[0][0])
    whole = _group("", found)

    low = str(jnp.dtype(getattr(policy, "dtype", "bfloat16")))
    imitation = Imitation(task, train_state, batches[0])
    units, number = list(imitation.units), DTYPES.index(low)
    loss_scale = 1.0 if scale is None else float(scale)
    references = [imitation.gradient(b, [0] * len(units)) for b in batches]

    def error(chosen):
        numbers = [number * (unit in chosen) for unit in units]
        return max(imitation.error(b, numbers, r, loss_scale) for b, r in zip(batches, references))

    shares = _out_of_range(gradient(task, Float32()), low, train_state, batches[0], scale)
    parts, classes = {}, []
    for i, unit in enumerate(units):
        parts[unit] = error({unit})
        tell(i + 1, len(units))
    costs = imitation.units
    flops_all = max(sum(cost.flops for cost in costs.values()), 1)
    numbers_all = max(sum(cost.numbers for cost in costs.values()), 1)
    for name in CLASSES:
        own = {unit for unit in units if unit[0] == name}
        of_class = [costs[unit] for unit in own]
        classes.append(
            Primitives(
                name,
                error(own),
                error(set(units) - own),
                *shares.get(name, (0.0, 0.0)),
                sum(cost.flops for cost in of_class) / flops_all,
                sum(cost.numbers for cost in of_class) / numbers_all,
            )
        )
    return Measured(low, whole.error, whole.exact, groups, tuple(classes), parts, seconds)


def _by_group(gradients):
    """Part of the model -> the gradients of its parameters."""
    groups: dict[str, list[Any]] = {}
    for path, leaf in tree.by_path(gradients).items():
        groups.setdefault("/".join(path.split("/")[:-1][:2]) or path, []).append(leaf)
    return groups


def _group(name, found):
    """A `Group` of [(by the policy, in float32, in float64) for each batch]."""
    errors, exact, under, over, size = [], [], 0, 0, 0
    for each in found:
        low, single, double = ([np.asarray(x, np.float64) for x in jax.tree.leaves(part)] for part in each)
        errors.append(float(relative(low, double, np)))  # in float32 squares below 1e-38 are zero
        exact.append(float(relative(single, double, np)))
        under += sum(int(np.sum((x == 0) & (y != 0))) for x, y in zip(low, double))
        over += sum(int(np.sum(~np.isfinite(x) & np.isfinite(y))) for x, y in zip(low, double))
        size += sum(x.size for x in low)
    return Group(name, max(errors), max(exact), under / max(size, 1), over / max(size, 1))


def _timed(runs, rounds=7):
    """The median seconds of each, taken turn about."""
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            spent[name].append(time.perf_counter() - start)
    return {name: float(np.median(each)) for name, each in spent.items()}


def _out_of_range(f, low, *args):
    """{class: (share that is zero in the dtype and not in float32, share that is infinite there)} of what it gives."""
    counts: dict[str, np.ndarray] = {}

    def add(name, total, under, over):
        counts[name] = counts.get(name, np.zeros(3)) + np.array([total, under, over])

    def tap(equation, scope, outputs):
        name = class_of(equation.primitive.name)
        for x in outputs if name in CLASSES else ():
            if getattr(x, "dtype", None) == jnp.float32:
                y = x.astype(low)
                under, over = jnp.sum((x != 0) & (y == 0)), jnp.sum(jnp.isfinite(x) & ~jnp.isfinite(y))
                jax.debug.callback(functools.partial(add, name, x.size), under, over)

    watched = Interpreter(Rules("float32"), tap)
    jax.block_until_ready(jax.jit(lambda *args: watched.evaluate(f, args))(*args))
    jax.effects_barrier()
    return {name: (float(under / total), float(over / total)) for name, (total, under, over) in counts.items()}
