"""The only file that knows jax versions (0.10 to 0.12)."""

import jax
import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval

LOSES_BARRIERS = jax.__version_info__ < (0, 11)
"""Whether XLA's compiler for CPUs takes out optimization barriers before it fuses and orders operations."""


def data_mesh(devices) -> jax.sharding.Mesh:
    """A one-axis mesh named `data`; the axis is Auto (the default of `jax.make_mesh` became Explicit)."""
    return jax.sharding.Mesh(np.asarray(devices), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def inner_jaxprs(equation) -> list:
    """The jaxprs that an equation's parameters hold; ClosedJaxpr became Jaxpr in jax 0.11."""
    found = []
    for value in equation.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            jaxpr = getattr(item, "jaxpr", item)
            if isinstance(jaxpr, core.Jaxpr):
                found.append(jaxpr)
    return found


def live_jaxpr(closed, keep_inputs=False):
    """The jaxpr without what no output needs, as XLA will drop it; keep_inputs: with all inputs all the same."""
    jaxpr = getattr(closed, "jaxpr", closed)
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=keep_inputs)[0]


def opened(body) -> tuple:
    """(jaxpr, consts) of the body of an equation; ClosedJaxpr became Jaxpr in jax 0.11."""
    return getattr(body, "jaxpr", body), list(getattr(body, "consts", ()) or ())


def closed_like(body, closed):
    """A traced function as a body of the same kind as another: a remat equation's is a plain Jaxpr before 0.11."""
    if isinstance(body, core.ClosedJaxpr):
        return closed
    jaxpr, consts = opened(closed)
    if consts:
        raise TypeError(f"found {len(consts)} constants in a body that takes none")
    return jaxpr


def scan_counts(params) -> tuple[int, int]:
    """(constants, carried values) of a scan equation's inputs; since jax 0.11 in a tree, `ft_in`."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(consts), len(carry)


def manual_axes(params) -> frozenset:
    """The mesh axes over which a shard_map equation is written by hand."""
    return params["newly_manual_axes"]


def with_dtype(aval, dtype):
    """The type of an array in another dtype, as `jax.make_jaxpr` takes it."""
    if dtype is None or aval.dtype == dtype:
        return aval
    return aval.update(dtype=dtype, weak_type=False)


def rule_name(params) -> str:
    """The name of the function that a custom_jvp or custom_vjp equation calls; "" of any other equation."""
    if "call_jaxpr" not in params:
        return ""
    debug = getattr(opened(params["call_jaxpr"])[0], "debug_info", None)
    name = params.get("name") or getattr(debug, "func_name", "") or ""
    return "" if name.startswith("<") else name
