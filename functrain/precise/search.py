"""The cheapest dtypes for which a gradient's error stays below a bound."""

import bisect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functrain.precise.gradient import gradient, relative
from functrain.precise.imitation import Imitation
from functrain.precision import Auto, Autocast, Float32, Rule
from functrain.precision.emulate import DTYPES, LOSS

MARGIN = 0.7
"""A search leaves this share of its bound for batches that it has not seen."""

_NUMBER = 10
"""FLOPs of matrix products that cost what a number costs that a primitive reads or writes. An H100 does about 1,000
in bfloat16 while it moves 4 bytes, a CPU about 50; but of the numbers of a fused loop, XLA moves few."""


@dataclass(frozen=True)
class Part:
    """A class of primitives in a part of the model: what was found of it, and what was chosen."""

    of: str
    scope: str
    dtype: str
    errors: dict[str, float]  # of the whole gradient, by the dtype that this part alone has
    flops: float  # share of the model's
    numbers: float  # share of what is read and written


@dataclass(frozen=True)
class Choice:
    """What a search chose.

    error: the largest over the batches, of the gradient as the policy gives it.
    low: share of the FLOPs of matrix products that are in 16 bits.
    """

    policy: Autocast
    parts: tuple[Part, ...]
    error: float
    low: float


def search(
    task: Any,
    train_state: Any,
    batches: Sequence[Any],
    settings: Auto,
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> Choice:
    """The cheapest dtypes for which the gradient's relative error stays below `settings.bound` on the batches.

    Each unit's error is measured alone, in bfloat16 and float16, and orders the choices: from all units in bfloat16 on,
    the next choice makes the one change that takes the most error for its cost, were errors independent (float16 costs
    what bfloat16 does, float32 twice that). The first choice whose error, imitated, is below the bound's share `MARGIN`
    is measured as the run will compute it; where that is above the bound, the next one is tried.

    Args:
      tell: called with how many of the measurements are done.
    """
    imitation = Imitation(task, train_state, batches[0])
    units = list(imitation.units)
    scale = imitation.scale(batches[0])
    zero = [0] * len(units)
    references = [imitation.gradient(batch, zero) for batch in batches]

    def error(choice, count):
        pairs = list(zip(batches, references))[:count]
        return max(imitation.error(batch, choice, reference, scale or 1.0) for batch, reference in pairs)

    errors = np.zeros((len(units), len(DTYPES)))
    for i in range(len(units)):
        alone = [[*zero[:i], dtype, *zero[i + 1 :]] for dtype in (1, 2)]
        errors[i, 1] = error(alone[0], 2)
        errors[i, 2] = np.inf if scale is None else error(alone[1], 2)
        tell(i + 1, len(units))
    choices = _choices(errors, _costs(imitation.units))
    at = bisect.bisect_left(choices, True, key=lambda choice: error(choice, len(batches)) <= MARGIN * settings.bound)
    exact = jax.jit(gradient(task, Float32()))
    references = [exact(train_state, batch) for batch in batches]
    while True:
        chosen = choices[min(at, len(choices) - 1)]
        policy = _policy(units, chosen, settings, scale)
        low = jax.jit(gradient(task, policy))
        s = None if policy.init_scale() is None else jnp.float32(policy.initial_scale)
        found = max(float(relative(low(train_state, b, s), r)) for b, r in zip(batches, references))
        if found <= settings.bound or at >= len(choices) - 1:
            return Choice(policy, _parts(imitation.units, chosen, errors), found, _low(imitation.units, chosen))
        at += 1


def _costs(units):
    """What each unit costs in float32, in FLOPs."""
    return np.array([cost.flops + _NUMBER * cost.numbers for cost in units.values()], float)


def _choices(errors, costs):
    """Choices of a dtype for each unit, from all in bfloat16 to no error at all, each by one change from the last."""
    chosen = np.ones(len(errors), int)
    squares, price, choices = errors**2, np.array([1.0, 0.5, 0.5]), [chosen.tolist()]
    while True:
        now = squares[np.arange(len(chosen)), chosen]
        gain = np.where(np.isinf(now)[:, None], 1e300, now[:, None] - squares)
        cost = np.maximum((price - price[chosen][:, None]) * costs[:, None], 1e-9 * costs.sum())
        worth = np.where(gain > 0, gain / cost, -np.inf)
        i, dtype = np.unravel_index(np.argmax(worth), worth.shape)
        if not gain[i, dtype] > 0:
            return choices
        chosen[i] = dtype
        choices.append(chosen.tolist())


def _policy(units, chosen, settings, scale):
    """The choice as rules, as few as may be."""
    by_class: dict[Any, dict[str, Any]] = {}
    for (of, part), number in zip(units, chosen):
        by_class.setdefault(of, {})[part] = DTYPES[number]
    dtypes = list(by_class.get("matmul", {"": "bfloat16"}).values())
    low: Any = max(("bfloat16", "float16"), key=dtypes.count)
    rules = []
    for of, parts in by_class.items():
        usual: Any = max(DTYPES, key=list(parts.values()).count)
        rules += [Rule(of=of, dtype=dtype, scope=_pattern(part)) for part, dtype in parts.items() if dtype != usual]
        if (of, usual) != ("matmul", low):
            rules.append(Rule(of=of, dtype=usual))
        if usual != "float32":
            rules.insert(0, Rule(of=of, dtype="float32", scope=_pattern(LOSS)))
    return Autocast(
        dtype=low,
        rules=tuple(rules),
        bound=settings.bound,
        watch_every=settings.watch_every,
        initial_scale=min(settings.initial_scale, scale or settings.initial_scale),
        growth_every=settings.growth_every,
    )


def _pattern(part):
    """What matches the scopes of a part, and no other's."""
    return "^$" if not part else f"^{re.escape(part)}(/|$)"


def _parts(units, chosen, errors):
    flops_all = max(sum(cost.flops for cost in units.values()), 1)
    numbers_all = max(sum(cost.numbers for cost in units.values()), 1)
    return tuple(
        Part(of, scope, DTYPES[n], dict(zip(DTYPES, e.tolist())), cost.flops / flops_all, cost.numbers / numbers_all)
        for ((of, scope), cost), n, e in zip(units.items(), chosen, errors)
    )


def _low(units, chosen):
    flops_all = max(sum(cost.flops for cost in units.values()), 1)
    return sum(cost.flops for cost, n in zip(units.values(), chosen) if n) / flops_all
