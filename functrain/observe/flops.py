"""FLOPs counted from the jaxpr, and the machine's measured matmul peak.

XLA's own `cost_analysis` counts the body of a scan once; here it is counted as often as it runs.
"""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from functrain import _compat
from functrain.layers import forms


class Counted(NamedTuple):
    """What a function does: FLOPs, the names of all primitives in it, and the shapes of what it gives."""

    flops: int
    primitives: set[str]
    outputs: Any


def count(f: Callable[..., Any], *args: Any) -> Counted:
    """FLOPs of the matrix products and convolutions of `f(*args)`, traced for the shapes of its arguments.

    A multiply and an add are two. What no output needs is not counted, nor what a form of a layer does beyond the
    convolution that it is (see functrain.layers.forms), though the primitives are those of the form. Of the branches
    of a `cond` the costliest counts; the body of a `while` of unknown length counts once.

    >>> count(lambda a, b: a @ b, jnp.ones((2, 3)), jnp.ones((3, 5)))
    Counted(flops=60, primitives={'dot_general'}, outputs=ShapeDtypeStruct(shape=(2, 5), dtype=float32))
    """
    primitives: set[str] = set()
    with forms.noted() as taken:
        total, outputs = _of(f, args, primitives)
    if taken & {("convolution", "rows"), ("attention", "cudnn")}:
        with forms.using(**forms.PLAIN):
            total, _ = _of(f, args, set())
    return Counted(total, primitives, outputs)


def _of(f, args, primitives):
    # A function of its own each time: jax keeps what it traced, by function, and not by form.
    jaxpr, outputs = jax.make_jaxpr(lambda *args: f(*args), return_shape=True)(*args)
    return _flops(_compat.live_jaxpr(jaxpr), primitives), outputs


def _flops(jaxpr, primitives) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        primitives.add(name)
        inner = [_flops(j, primitives) for j in _compat.inner_jaxprs(equation)]
        times = equation.params["length"] if name == "scan" else 1
        total += of_equation(equation) + times * (max(inner, default=0) if name == "cond" else sum(inner))
    return total


def of_equation(equation: Any) -> int:
    """FLOPs of an equation that is a matrix product or a convolution; 0 of any other."""
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
    if equation.primitive.name == "conv_general_dilated":
        kernel, layout = equation.invars[1].aval.shape, equation.params["dimension_numbers"].rhs_spec
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // kernel[layout[0]]
    return 0


def matmul_peak(dtype: Any, cache: Path | None = None) -> float:
    """FLOP/s of a large matrix product on this machine's first device, the best of several; about 0.2 s.

    cache: a JSON file in which the figure is kept, by device, dtype and version of jax. Each time it is asked for, one
      more product is timed: where others had the machine at first, a later process sees what it can do.
    """
    name = f"{jax.devices()[0].device_kind} {jnp.dtype(dtype).name} jax {jax.__version__} on {_processors()}"
    known = _read(cache)
    n = 1024 if jax.default_backend() == "cpu" else 8192
    x = jnp.ones((n, n), dtype)
    product = jax.jit(lambda x: x @ x)
    product(x).block_until_ready()
    best, spent = math.inf, 0.0
    while spent < (0.01 if name in known else 0.2):
        start = time.perf_counter()
        product(x).block_until_ready()
        best = min(best, time.perf_counter() - start)
        spent += time.perf_counter() - start
    if (found := 2 * n**3 / best) <= known.get(name, 0.0):
        return known[name]
    known[name] = found
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        partial = cache.with_suffix(f".{time.time_ns()}")
        partial.write_text(json.dumps(known, indent=1))
        partial.replace(cache)
    return known[name]


def _read(cache):
    try:
        return json.loads(cache.read_text()) if cache is not None else {}
    except (OSError, ValueError):
        return {}


def _processors() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return jax.devices()[0].platform
