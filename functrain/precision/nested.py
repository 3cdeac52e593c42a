"""Equations that hold functions (loops, branches, nested jits, custom derivatives), bound again by autocast.

A handler is called with the interpreter, the equation, its inputs and its scope, and gives the outputs. Most bind the
same primitive around a rewritten body. What a loop carries, and what the branches of a `cond` give, stays in the dtype
that it was written in, for it must be the same each time.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from functrain import _compat
from functrain.precision.equations import as_written, bind, cast, dtype_of


def _jit(interpreter, equation, values, scope):
    return _bound(equation, values, jaxpr=interpreter.rewritten(equation.params["jaxpr"], _dtypes(values), scope))


def _scan(interpreter, equation, values, scope):
    body = equation.params["jaxpr"]
    consts, carried = _compat.scan_counts(equation.params)
    variables = _compat.opened(body)[0].outvars[:carried]
    kept = _kept(interpreter, variables)
    values = [*values[:consts], *_cast(values[consts : consts + carried], kept), *values[consts + carried :]]
    return _bound(equation, values, jaxpr=interpreter.rewritten(body, _dtypes(values), scope, kept))


def _while(interpreter, equation, values, scope):
    of_condition, of_body = equation.params["cond_nconsts"], equation.params["body_nconsts"]
    condition, body = equation.params["cond_jaxpr"], equation.params["body_jaxpr"]
    first, carry = values[:of_condition], values[of_condition + of_body :]
    kept = _kept(interpreter, _compat.opened(body)[0].outvars)
    consts, carry = values[of_condition : of_condition + of_body], _cast(carry, kept)
    return _bound(
        equation,
        [*first, *consts, *carry],
        cond_jaxpr=interpreter.rewritten(condition, _dtypes([*first, *carry]), scope),
        body_jaxpr=interpreter.rewritten(body, _dtypes([*consts, *carry]), scope, kept),
    )


def _cond(interpreter, equation, values, scope):
    kept, dtypes = _kept(interpreter, equation.outvars), _dtypes(values[1:])
    branches = [interpreter.rewritten(branch, dtypes, scope, kept) for branch in equation.params["branches"]]
    return _bound(equation, values, branches=tuple(branches))


def _call(interpreter, equation, values, scope):
    body = equation.params.get("call_jaxpr", equation.params.get("jaxpr"))
    return interpreter.run(*_compat.opened(body), values, scope)


def _shard_map(interpreter, equation, values, scope):
    params = equation.params
    jaxpr, consts = _compat.opened(params["jaxpr"])
    return jax.shard_map(
        lambda *shards: interpreter.run(jaxpr, consts, shards, scope),
        mesh=params["mesh"],
        in_specs=tuple(params["in_specs"]),
        out_specs=list(params["out_specs"]),
        check_vma=params["check_vma"],
        axis_names=set(_compat.manual_axes(params)),
    )(*values)


def _custom_jvp(interpreter, equation, values, scope):
    """The rule is traced as the derivative of the primitive itself, and evaluated like everything else."""
    dtypes = _dtypes(values)
    inputs, outputs = _floats(equation.invars), _floats(equation.outvars)

    def moved(primals, tangents):
        def of_floats(*floats):
            filled = list(primals)
            for i, x in zip(inputs, floats):
                filled[i] = x
            found = bind(equation, filled)
            return [found[i] for i in outputs]

        return jax.jvp(of_floats, [primals[i] for i in inputs], tangents)[1]

    @jax.custom_jvp
    def f(held, *xs):
        body, _ = interpreter.holding(held).function(equation.params["call_jaxpr"], dtypes, scope)
        return tuple(body(*xs))

    @f.defjvp
    def _(primals, tangents):
        (held, *primals), (_, *tangents) = primals, tangents
        given = [tangents[i] for i in inputs]
        written = as_written(primals, equation.invars), as_written(given, [equation.invars[i] for i in inputs])
        found = f(held, *primals)
        tangents_out = [np.zeros(x.shape, jax.dtypes.float0) for x in found]
        within = interpreter.for_tangents()
        for i, t in zip(outputs, within.evaluate(moved, written, (primals, given), scope=scope)):
            tangents_out[i] = cast(t, found[i].dtype)
        return found, tuple(tangents_out)

    return list(f(interpreter.held, *values))


def _custom_vjp(interpreter, equation, values, scope):
    """Both rules are traced as those of the primitive itself, and evaluated like everything else."""
    body_of, dtypes = equation.params["call_jaxpr"], _dtypes(values)
    gives = interpreter.function(body_of, dtypes, scope)[1]
    closed = equation.params.get("num_consts", 0)
    # What the function closed over has no derivative. f closes over it too, so that jax itself says so to whoever asks
    # for one; but where arrays are held, loops are evaluated in place, and no custom rule in them may close over any.
    apart = values[:closed] if interpreter.held is not None else []

    def pulled(consts, *xs):
        return jax.vjp(lambda *xs: bind(equation, [*consts, *xs]), *xs)

    @jax.custom_vjp
    def f(held, *xs):
        array, consts = held
        consts = consts or values[:closed]
        return tuple(interpreter.holding(array).function(body_of, dtypes, scope)[0](*consts, *xs))

    def forward(held, *xs):
        array, consts = held
        consts = consts or values[:closed]
        written = as_written([*consts, *xs], equation.invars)
        written, given, within = (written[:closed], *written[closed:]), (consts, *xs), interpreter.holding(array)
        (outputs, pull), likes = within.evaluate(pulled, written, given, scope=scope, likes=True)
        return tuple(_cast(outputs, gives)), (array, pull, likes[1], [_like(x) for x in xs])

    def backward(saved, cotangents):
        array, pull, likes, inputs = saved
        written = jax.tree.map(lambda x, like: cast(x, like.dtype), pull, likes)
        given = list(cotangents)
        as_pulled, within = (written, as_written(given, equation.outvars)), interpreter.holding(array)
        found = within.evaluate(lambda pull, given: pull(given), as_pulled, (pull, given), scope=scope)
        return None, *(None if like is None else cast(x, like.dtype) for x, like in zip(found, inputs))

    f.defvjp(forward, backward)
    return list(f((interpreter.held, apart), *values[closed:]))


def _as_they_are(interpreter, equation, values, scope):
    return bind(equation, values)


def _reduce_precision(interpreter, equation, values, scope):
    """A value in another dtype than it was written in is left: what keeps it exact there would round it here."""
    written = equation.invars[0].aval.dtype
    return bind(equation, values) if dtype_of(values[0]) == written else list(values)


def _scatter(interpreter, equation, values, scope):
    """In the wider of both, by lax's own functions: the equation holds a function of the dtype it was written in."""
    operand, indices, updates = values
    dtypes = [d for d in map(dtype_of, (operand, updates)) if interpreter.rules.casts(d)]
    if len(dtypes) < 2:
        return bind(equation, as_written(values, equation.invars))
    dtype = jnp.promote_types(*dtypes)
    names = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
    bound = {name: equation.params[name] for name in names}
    function = getattr(lax, equation.primitive.name.replace("-", "_"))
    return [function(cast(operand, dtype), indices, cast(updates, dtype), **bound)]


HANDLERS = {
    "jit": _jit,
    "pjit": _jit,
    "remat2": _jit,
    "checkpoint": _jit,
    "remat": _jit,
    "closed_call": _call,
    "core_call": _call,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "shard_map": _shard_map,
    "custom_jvp_call": _custom_jvp,
    "custom_vjp_call": _custom_vjp,
    "optimization_barrier": _as_they_are,
    "device_put": _as_they_are,
    "reduce_precision": _reduce_precision,
    "scatter": _scatter,
    "scatter-add": _scatter,
    "scatter-sub": _scatter,
    "scatter-mul": _scatter,
    "scatter-min": _scatter,
    "scatter-max": _scatter,
}
"""Name of a primitive -> what binds it again."""


def _bound(equation, values, **bodies):
    outputs = equation.primitive.bind(*values, **(equation.params | bodies))
    return list(outputs)


def _dtypes(values: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(map(dtype_of, values))


def _kept(interpreter, variables):
    """The dtypes in which a loop keeps variables."""
    return tuple(interpreter.rules.carried(getattr(v.aval, "dtype", None)) for v in variables)


def _cast(values, dtypes):
    return [cast(x, dtype) for x, dtype in zip(values, dtypes, strict=True)]


def _floats(variables):
    """Which variables have derivatives."""
    return [i for i, v in enumerate(variables) if jnp.issubdtype(v.aval.dtype, jnp.inexact)]


def _like(x):
    """A scalar that remembers a dtype; None where there is no derivative."""
    return jnp.zeros((), x.dtype) if jnp.issubdtype(x.dtype, jnp.inexact) else None
