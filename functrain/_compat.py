"""The only file that knows jax versions (0.10 to 0.12)."""

import jax
import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval


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


def live_jaxpr(closed):
    """The jaxpr without what no output needs, as XLA will drop it."""
    jaxpr = getattr(closed, "jaxpr", closed)
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]
