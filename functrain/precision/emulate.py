"""Low precision imitated in float32, each unit's dtype a traced number: one program tries every choice of dtypes.

A unit is a class of primitives (`functrain.precision.rules`) in a part of the function. Where a unit is in bfloat16 or
float16, the inputs and outputs of its primitives are rounded to that, and so are their cotangents, as if it computed
there with sums in float32, as matrix units do.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

from functrain import _compat
from functrain.precision.autocast import Interpreter
from functrain.precision.equations import are_numbers, bind, made_of_bits
from functrain.precision.nested import HANDLERS
from functrain.precision.rules import EXEMPT, TABLE, class_of

DTYPES = ("float32", "bfloat16", "float16")
"""What a unit's number stands for."""

CLASSES = ("matmul", "exponential", "reduction", "elementwise")
"""The classes of which units are made."""


LOSS = "loss"
"""The scope of a task's loss, which is no unit: it stays in float32, for people read it."""


@dataclasses.dataclass
class Cost:
    """What a unit does in a call of the function: FLOPs of its products, and numbers that it reads and writes."""

    flops: int = 0
    numbers: int = 0


Unit = tuple[str, str]
"""(class, part of the function)."""


def part_of(scope: str) -> str:
    """The part of a function that an equation's scope names: its first two names, without those of transformations.

    >>> part_of("jvp(block0)/attention/jit(_where)"), part_of("block0/attention/query"), part_of("")
    ('block0/attention', 'block0/attention', '')
    """
    names = re.sub(r"\b(jit|pjit|checkpoint|remat\d?|rematted_computation|while|body|cond|closed_call)\b", "", scope)
    names = re.sub(r"\w*\(|\)", "/", names)
    named = [name for name in names.split("/") if name and not name.startswith("_") and "->" not in name]  # no einsum's
    return "/".join(named[:2])


def emulated(
    f: Callable[..., Any],
    units: dict[Unit, Cost],
    choice: Any = None,
    flops: Callable[[Any], int] = lambda equation: 0,
) -> Callable[..., Any]:
    """The function with the units' dtypes imitated.

    Args:
      units: the units of the function, in order; those that are not yet in it are added, and their costs.
      choice: int32, for each unit a place in `DTYPES`; None is float32 for all.
      flops: of an equation.

    >>> units = {}
    >>> f = lambda x: jnp.sum(jnp.exp(x @ x))
    >>> x = jnp.full((2, 2), 1 + 2.0**-9)
    >>> exact = emulated(f, units)(x)
    >>> list(units)
    [('matmul', ''), ('exponential', ''), ('reduction', '')]
    >>> bool(exact == f(x)), bool(emulated(f, units, jnp.array([1, 0, 0]))(x) == f(jnp.ones((2, 2))))
    (True, True)
    """

    @functools.wraps(f)
    def g(*args, **kwargs):
        imitation = _Emulator(rules=TABLE, units=units, choice=choice, flops=flops)
        return imitation.evaluate(lambda args, kwargs: f(*args, **kwargs), (args, kwargs))

    return g


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class _Emulator(Interpreter):
    units: dict[Unit, Cost]
    choice: Any
    flops: Callable[[Any], int]
    times: int = 1  # how often a loop runs what is evaluated

    def run(self, jaxpr, consts, args, scope=""):
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
        drawn = set()

        def read(v):
            return v.val if isinstance(v, core.Literal) else values[v]

        for equation in jaxpr.eqns:
            stack = str(equation.source_info.name_stack)
            inner, inputs = f"{scope}/{stack}", [read(v) for v in equation.invars]
            if EXEMPT in inner or made_of_bits(equation, drawn):
                outputs = bind(equation, inputs)
                drawn.update(equation.outvars if made_of_bits(equation, drawn) else ())
            elif equation.primitive.name in _HANDLERS:
                outputs = _HANDLERS[equation.primitive.name](self, equation, inputs, inner)
            else:
                outputs = self._computed(equation, inputs, inner)
            values.update(zip(equation.outvars, outputs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def function(self, body, dtypes, scope):
        jaxpr, consts = _compat.opened(body)
        return lambda *xs: self.run(jaxpr, consts, xs, scope), [v.aval.dtype for v in jaxpr.outvars]

    @property
    def held(self):
        return self.choice

    def holding(self, held):
        return dataclasses.replace(self, choice=held)

    def for_tangents(self):
        return dataclasses.replace(self, units={}, choice=None)  # rounding has a custom_vjp, which no rule may hold

    def _computed(self, equation, inputs, scope):
        found = class_of(equation.primitive.name)
        unit = found, part_of(scope)
        if found not in CLASSES or unit[1] == LOSS or are_numbers(equation) or not any(map(_is_float32, inputs)):
            return bind(equation, inputs)
        cost = self.units.setdefault(unit, Cost())
        if self.choice is None:
            outputs = bind(equation, inputs)
            cost.flops += self.times * self.flops(equation)
            cost.numbers += self.times * sum(jnp.size(x) for x in [*inputs, *outputs] if _is_float32(x))
            return outputs
        chosen = self.choice[list(self.units).index(unit)]
        outputs = bind(equation, [_rounded(x, chosen) if _is_float32(x) else x for x in inputs])
        return [_rounded(x, chosen) if _is_float32(x) else x for x in outputs]


def _is_float32(x):
    return getattr(jax.typeof(x), "dtype", None) == jnp.float32


@jax.custom_vjp
def _rounded(x, chosen):
    """x rounded to the dtype of that number, and so is its cotangent."""
    tiny = 2.0**-24  # float16 has numbers below its smallest normal one, 2^-14, in steps of this
    half = jnp.where(jnp.abs(x) < 2.0**-14, jnp.round(x / tiny) * tiny, lax.reduce_precision(x, 5, 10))
    return jnp.where(chosen == 1, lax.reduce_precision(x, 8, 7), jnp.where(chosen == 2, half, x))


_rounded.defvjp(lambda x, chosen: (_rounded(x, chosen), chosen), lambda chosen, g: (_rounded(g, chosen), None))


# -- bodies, evaluated in place: they must see the choice, which is traced -----------------------------


def _inline(emulator, equation, values, scope):
    body = equation.params.get("call_jaxpr", equation.params.get("jaxpr"))
    return emulator.run(*_compat.opened(body), values, scope)


def _scan(emulator, equation, values, scope):
    params = equation.params
    first, carried = _compat.scan_counts(params)
    jaxpr, consts = _compat.opened(params["jaxpr"])
    within = dataclasses.replace(emulator, times=emulator.times * params["length"])

    def body(carry, xs):
        outputs = within.run(jaxpr, consts, [*values[:first], *carry, *xs], scope)
        return outputs[:carried], outputs[carried:]

    start, rest = values[first : first + carried], values[first + carried :]
    carry, ys = lax.scan(body, start, rest, params["length"], params["reverse"], params["unroll"])
    return [*carry, *ys]


def _while(emulator, equation, values, scope):
    of_condition, of_body = equation.params["cond_nconsts"], equation.params["body_nconsts"]
    condition, body = (_compat.opened(equation.params[name]) for name in ("cond_jaxpr", "body_jaxpr"))
    first, second = values[:of_condition], values[of_condition : of_condition + of_body]
    return lax.while_loop(
        lambda carry: emulator.run(*condition, [*first, *carry], scope)[0],
        lambda carry: emulator.run(*body, [*second, *carry], scope),
        values[of_condition + of_body :],
    )


def _cond(emulator, equation, values, scope):
    branches = [_compat.opened(branch) for branch in equation.params["branches"]]
    taken = [lambda *xs, b=branch: emulator.run(*b, xs, scope) for branch in branches]
    return lax.switch(values[0], taken, *values[1:])


_HANDLERS = HANDLERS | {
    "jit": _inline,
    "pjit": _inline,
    "remat2": _inline,
    "checkpoint": _inline,
    "remat": _inline,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}
