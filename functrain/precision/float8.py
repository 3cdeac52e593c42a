"""Products in float8: inputs and kernels in e4m3, gradients in e5m2, each array times a scale of its own.

Of a function of parameters, every product x @ kernel with a chosen parameter of two axes becomes

    forward    q(x) @ q(kernel)                         e4m3 and e4m3
    backward   q(dy) @ q(kernel)^T,  q(x)^T @ q(dy)     e5m2 and e4m3

summed in float32 (Micikevicius et al. 2022). A product of two float8 arrays is what XLA hands to cuBLASLt on GPUs that
have it; precision "default" there is the fast accumulation, taken forward alone, as Transformer Engine does. Elsewhere
XLA widens the arrays first, with the same result but for the order of the sum.

Scales are powers of two, so that scaling rounds nothing: the largest by which an array's greatest magnitude stays
within the dtype. Current scaling takes the magnitude of the array itself; delayed scaling (Transformer Engine's
recipe) that of the steps before, so that no array is read twice, and what is too large now is cut to the largest.
"""

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jax.extend import core, source_info_util

from functrain import _compat, tree
from functrain.layers import forms
from functrain.precision.equations import asks_for_more, bind

FORWARD, BACKWARD = jnp.float8_e4m3fn, jnp.float8_e5m2
_DTYPES = (FORWARD, FORWARD, BACKWARD)
"""Of inputs, kernels and gradients: the order of scales and of what was greatest everywhere here."""
_WIDEST = 60
"""Scales are from 2^-60 to 2^60: the product of two is a number in bfloat16 too."""
_FIRST = (1.0, 1.0, 1024.0)
"""Scales before anything was seen. Gradients of a mean over a batch are small: at 1, e5m2 loses those below 1e-5."""


# -- scales ---------------------------------------------------------------------------------------


def scale_of(greatest: jax.Array, dtype: Any) -> jax.Array:
    """The largest power of two, from 2^-60 to 2^60, that takes a magnitude to no more than the dtype's largest number.

    1 for 0; nan for a magnitude that is not finite: so is then all that it scales, and a learner skips the step.

    >>> scale_of(jnp.array([448.0, 449.0, 1.0, 0.0, jnp.inf]), FORWARD).tolist()
    [1.0, 0.5, 256.0, 1.0, nan]
    """
    part, exponent = jnp.frexp(jnp.asarray(greatest, jnp.float32))
    most_part, most_exponent = jnp.frexp(jnp.float32(jnp.finfo(dtype).max))
    exponent = jnp.clip(most_exponent - exponent - (part > most_part), -_WIDEST, _WIDEST)
    scale = jnp.ldexp(jnp.float32(1), jnp.where(greatest > 0, exponent, 0))
    return jnp.where(jnp.isfinite(greatest), scale, jnp.nan)


def quantised(x: jax.Array, dtype: Any, scale: jax.Array) -> jax.Array:
    """x * scale in the dtype, to the nearest; what is too large is cut to the largest, and nan stays nan.

    >>> quantised(jnp.array([0.3, -1000.0, jnp.nan]), FORWARD, jnp.float32(2)).astype(float).tolist()
    [0.625, -448.0, nan]
    """
    most = float(jnp.finfo(dtype).max)
    return jnp.clip(x * scale.astype(x.dtype), -most, most).astype(dtype)


@struct.dataclass
class History:
    """What was greatest in a kernel's products, step by step, and the scales that the next step takes.

    greatest: [3, length], of inputs, kernels and gradients; the newest first, 0 where nothing was seen yet.
    scale: [3].
    """

    greatest: Any
    scale: Any

    @classmethod
    def start(cls, length: int, kernel: Any = None) -> "History":
        """Before the first step; the kernel is known by then."""
        scale = jnp.array(_FIRST, jnp.float32)
        if kernel is not None:
            scale = scale.at[1].set(scale_of(_greatest(kernel), FORWARD))
        return cls(jnp.zeros((3, length), jnp.float32), scale)

    def updated(self, greatest: jax.Array) -> "History":
        """After a step in which these [3] were greatest: scales by the greatest of all that is remembered.

        Where that is 0 or not finite, the scale stays.

        >>> history = History.start(2).updated(jnp.array([448.0, 1.0, 0.0])).updated(jnp.array([1.0, 2.0, 0.0]))
        >>> history.scale.tolist(), history.updated(jnp.array([1.0, 1.0, 7.0])).scale.tolist()
        ([1.0, 128.0, 1024.0], [256.0, 128.0, 8192.0])
        """
        remembered = jnp.concatenate([greatest[:, None], self.greatest[:, :-1]], 1)
        most = remembered.max(1)
        scale = jnp.stack([scale_of(m, dtype) for m, dtype in zip(most, _DTYPES)])
        return History(remembered, jnp.where((most > 0) & jnp.isfinite(most), scale, self.scale))


def _greatest(x):
    return jnp.abs(x).max().astype(jnp.float32)


# -- the product ----------------------------------------------------------------------------------


class Probe(NamedTuple):
    """How the backward pass tells what was greatest: as the gradient by zeros [3, parts], in one part's place.

    Handed from one product of a kernel to the next, it gathers the greatest of them.
    """

    zeros: Any
    part: Any


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array, scale: Any, probe: Any) -> tuple[jax.Array, Any]:
    """(x @ kernel, the probe): [..., inputs] and [inputs, outputs] -> [..., outputs], in the dtype of x.

    Args:
      scale: [3] of delayed scaling; None scales by the arrays themselves.
      probe: a `Probe`, or None where nobody asks.

    >>> x, kernel = jnp.array([[1.0, 3.1]], jnp.bfloat16), jnp.array([[2.0], [1.0]], jnp.bfloat16)
    >>> product(x, kernel, None, None)[0].tolist()   # 3.1 is 3.0 or 3.25 in e4m3
    [[5.0]]
    """
    return _forward(x, kernel, scale, probe)[0]


def _forward(x, kernel, scale, probe):
    greatest = _greatest(x), _greatest(kernel)  # XLA drops what is not used
    by_x, by_kernel = [scale_of(m, FORWARD) for m in greatest] if scale is None else (scale[0], scale[1])
    low_x, low_kernel = quantised(x, FORWARD, by_x), quantised(kernel, FORWARD, by_kernel)
    y = _dot(low_x, low_kernel, (x.ndim - 1, 0), x.dtype, lax.Precision.DEFAULT) * _back(by_x, by_kernel, x.dtype)
    likes = jnp.zeros((), x.dtype), jnp.zeros((), kernel.dtype)
    return (y, probe), (low_x, low_kernel, by_x, by_kernel, scale, probe, greatest, likes)


def _backward(saved, cotangents):
    low_x, low_kernel, by_x, by_kernel, scale, probe, greatest, likes = saved
    slope, gathered = cotangents
    most = _greatest(slope)
    by_slope = scale_of(most, BACKWARD) if scale is None else scale[2]
    low = quantised(slope, BACKWARD, by_slope)
    last, high = low.ndim - 1, lax.Precision.HIGHEST
    dx = _dot(low, low_kernel, (last, 1), likes[0].dtype, high) * _back(by_slope, by_kernel, likes[0].dtype)
    rows = low_x.reshape(-1, low_x.shape[-1]), low.reshape(-1, low.shape[-1])
    dkernel = _dot(*rows, (0, 0), likes[1].dtype, high) * _back(by_slope, by_x, likes[1].dtype)
    if probe is None:
        return dx, dkernel, None, None
    here = jnp.stack([*greatest, most])[:, None] * (jnp.arange(probe.zeros.shape[1]) == probe.part)
    return dx, dkernel, None, Probe(jnp.maximum(gathered.zeros, here), None)


product.defvjp(_forward, _backward)


def _dot(a, b, axes, dtype, precision):
    contracted = ((axes[0],), (axes[1],)), ((), ())
    return lax.dot_general(a, b, contracted, precision=precision, preferred_element_type=dtype)


def _back(a, b, dtype):
    """What takes the product of scaled arrays back: a power of two, exact."""
    return (1 / (a * b)).astype(dtype)


# -- of a function --------------------------------------------------------------------------------


def with_float8(
    f: Callable[..., Any],
    chosen: Collection[str],
    histories: Mapping[str, History] | None = None,
    probes: Mapping[str, Probe] | None = None,
) -> Callable[..., Any]:
    """A function of parameters and more, with its products by chosen parameters in float8.

    A product counts that is of 16-bit arrays without batch axes, with the kernel on its right, moved or not; those in
    loops, branches and custom derivatives stay as they are.

    Args:
      f: `f(params, *args, **kwargs)`, of pytrees of arrays.
      chosen: paths of parameters of two axes.
      histories, probes: by path, of delayed scaling; None scales by the arrays themselves.

    >>> f = with_float8(lambda params, x: x @ params["kernel"], ["kernel"])
    >>> params, x = {"kernel": jnp.ones((2, 3), jnp.bfloat16)}, jnp.ones((4, 2), jnp.bfloat16)
    >>> "f8_e4m3fn" in str(jax.make_jaxpr(f)(params, x)), f(params, x).dtype
    (True, dtype(bfloat16))
    """

    @functools.wraps(f)
    def g(params, *args, **kwargs):
        leaves, form = jax.tree.flatten((params, args, kwargs))
        forms_out = []

        def flat(*leaves):
            params, args, kwargs = jax.tree.unflatten(form, leaves)
            outputs, out_form = jax.tree.flatten(f(params, *args, **kwargs))
            forms_out.append(out_form)
            return outputs

        with forms.using(product="plain"):
            jaxpr, consts = _compat.opened(jax.make_jaxpr(flat)(*leaves))
        paths = [path if path in chosen else None for path in tree.by_path(params)]
        paths += [None] * (len(leaves) - len(paths))
        outputs, _ = _Frame(histories or {}, dict(probes or {})).run(jaxpr, consts, leaves, paths)
        return jax.tree.unflatten(forms_out[-1], outputs)

    return g


class _Frame:
    """A jaxpr evaluated with products in float8; it holds the probes, which go from one product to the next."""

    def __init__(self, histories: Mapping[str, History], probes: dict[str, Probe]):
        self._histories, self._probes = histories, probes

    def run(self, jaxpr: Any, consts: Any, args: Any, paths: Any) -> tuple[list[Any], list[Any]]:
        """(outputs, of which parameter each is, moved or not); paths: of which parameter each argument is, or None."""
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
        known = {v: path for v, path in zip(jaxpr.invars, paths, strict=True) if path is not None}

        def read(v):
            return v.val if isinstance(v, core.Literal) else values[v]

        def path_of(v):
            return None if isinstance(v, core.Literal) else known.get(v)

        for equation in jaxpr.eqns:
            info, moved = equation.source_info, [path_of(v) for v in equation.invars]
            stack = source_info_util.current_name_stack() + info.name_stack
            # Errors and profiles name the line that the user wrote, not this one.
            with source_info_util.user_context(info.traceback, name_stack=stack), equation.ctx.manager:
                outputs, paths = self._outputs(equation, [read(v) for v in equation.invars], moved)
            values.update(zip(equation.outvars, outputs, strict=True))
            known.update((v, path) for v, path in zip(equation.outvars, paths) if path is not None)
        return [read(v) for v in jaxpr.outvars], [path_of(v) for v in jaxpr.outvars]

    def _outputs(self, equation, inputs, paths):
        """An equation's outputs, and of which parameter each is."""
        name = equation.primitive.name
        if any(paths) and name in ("jit", "pjit", "closed_call"):
            body, consts = _compat.opened(equation.params.get("jaxpr", equation.params.get("call_jaxpr")))
            return self.run(body, consts, inputs, paths)
        if name == "dot_general" and paths[1] is not None and _fits(equation):
            return [self._product(equation, inputs[0], inputs[1], paths[1])], []
        return bind(equation, inputs), paths if name in _MOVES else []

    def _product(self, equation, x, kernel, path):
        ((axis,), (rows,)), _ = equation.params["dimension_numbers"]
        x, kernel = jnp.moveaxis(x, axis, -1), kernel if rows == 0 else kernel.T
        history, probe = self._histories.get(path), self._probes.get(path)
        y, probe = product(x, kernel, None if history is None else history.scale, probe)
        if probe is not None:
            self._probes[path] = probe
        return y.astype(equation.outvars[0].aval.dtype)


_MOVES = ("transpose", "convert_element_type", "copy", "optimization_barrier")
"""Primitives whose outputs are their inputs, moved or in another dtype."""


def _fits(equation):
    """Whether a product is one of an array with a matrix, both of 16 bits, and nobody asked for more."""
    (contracted, _), batch = equation.params["dimension_numbers"]
    x, kernel = (v.aval for v in equation.invars)
    low = x.dtype == kernel.dtype and x.dtype.itemsize == 2
    return low and kernel.ndim == 2 and len(contracted) == 1 and batch == ((), ()) and not asks_for_more(equation)
