"""Convolution and transposed convolution over any number of spatial axes, channels last.

Here "convolution" is cross-correlation, as in every library of neural networks: the kernel is not turned round.
One kernel layout, [*kernel, inputs // groups, outputs], serves both directions.
"""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from functrain.layers import forms, initializers, linear

Padding = str | int | tuple[int | tuple[int, int], ...]


def init(
    key: jax.Array,
    inputs: int,
    outputs: int,
    *,
    kernel: int | tuple[int, ...],
    groups: int = 1,
    bias: bool = True,
    kernel_init: str | initializers.Initializer = "lecun_normal",
    bias_init: str | initializers.Initializer = "zeros",
    dtype: Any = float,
) -> dict[str, jax.Array]:
    """`{"kernel": [*kernel, inputs // groups, outputs], "bias": [outputs]}`, for `apply` and for `transpose`.

    Args:
      kernel: the kernel's size along each spatial axis; their number is the number of spatial axes. An int is a
        square in two dimensions, and (3,) is one dimension.
      groups: output channel o sees only the inputs of its group, o // (outputs / groups); must divide both counts.
        `groups=inputs` is depthwise.
      kernel_init, bias_init: by name (see `initializers`), or `f(key, shape, dtype)`.

    Raises:
      ValueError: groups do not divide inputs and outputs.

    >>> jax.tree.map(jnp.shape, init(jax.random.key(0), 4, 6, kernel=3, groups=2))
    {'bias': (6,), 'kernel': (3, 3, 2, 6)}
    """
    if inputs % groups or outputs % groups:
        raise ValueError(f"groups {groups} must divide inputs {inputs} and outputs {outputs}")
    size = (kernel, kernel) if isinstance(kernel, int) else tuple(kernel)
    kernel_key, bias_key = jax.random.split(key)
    params = {"kernel": initializers.by_name(kernel_init)(kernel_key, (*size, inputs // groups, outputs), dtype)}
    if bias:
        params["bias"] = initializers.by_name(bias_init)(bias_key, (outputs,), dtype)
    return params


def apply(
    params: dict[str, jax.Array],
    x: jax.Array,
    *,
    stride: int | tuple[int, ...] = 1,
    dilation: int | tuple[int, ...] = 1,
    padding: Padding = "same",
    groups: int = 1,
) -> jax.Array:
    """y[i, o] = bias[o] + sum over t, c of x[stride * i + dilation * t - padding, c] * kernel[t, c, o], per axis.

    Args:
      x: [batch, *space, inputs]; any number of leading axes instead of one, none too.
      stride, dilation: for all spatial axes, or one for each (dilation: Yu, Koltun 2016, eq. 2).
      padding: zeros around x.
        "same": ceil(n / stride) outputs, XLA's and TensorFlow's SAME. What is missing is split over both
        ends, the odd one at the end; so with a stride it depends on n, and differs from torch's symmetric padding.
        "valid": none. "causal" (one spatial axis): dilation * (kernel - 1) at the start, so that y[i] sees nothing
        after x[stride * i] (van den Oord et al. 2016). An int p: p at both ends of every axis, torch's padding=p. A
        tuple: an int or a pair (start, end) for each axis.
      groups: as given to `init`.

    Returns:
      [batch, *space, outputs] in the kernel's dtype, floor((n + padding - dilation * (kernel - 1) - 1) / stride) + 1
      long on each axis.

    Raises:
      ValueError: shapes or settings that do not fit one another, or a kernel larger than the padded input.

    >>> params = {"kernel": jnp.ones((2, 1, 1))}
    >>> apply(params, jnp.array([[[1.0], [2.0], [3.0]]]), padding="causal").ravel().tolist()
    [1.0, 3.0, 5.0]
    """
    kernel = params["kernel"]
    n, (stride, dilation) = kernel.ndim - 2, per_axis(kernel.ndim - 2, stride=stride, dilation=dilation)
    if n == 2 and groups == max(stride) == max(dilation) == 1 and _form(kernel, x) == "rows":
        return _by_rows(params, x, _padding(padding, n, kernel.shape, dilation))
    return _convolve(
        params,
        x,
        kernel,
        groups,
        window_strides=stride,
        rhs_dilation=dilation,
        padding=_padding(padding, n, kernel.shape, dilation),
    )


def transpose(
    params: dict[str, jax.Array],
    x: jax.Array,
    *,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    output_padding: int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
) -> jax.Array:
    """The transposed convolution: x[i] adds x[i] * kernel[t] to y[stride * i + dilation * t - padding].

    It is the adjoint of `apply` with the same settings (Dumoulin, Visin 2016, chapter 4), with the conventions of
    torch.nn.ConvTranspose.

    Args:
      params: as of `init(key, inputs, outputs, ...)`, where inputs are the channels of x.
      x: [batch, *space, inputs]; any number of leading axes instead of one.
      padding: cuts so much off both ends of the full output.
      output_padding: makes the end of the output longer; less than the stride or the dilation.

    Returns:
      [batch, *space, outputs], (n - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1 long on
      each axis.

    Raises:
      ValueError: shapes or settings that do not fit one another.

    >>> params = {"kernel": jnp.array([1.0, 2.0, 3.0]).reshape(3, 1, 1)}
    >>> transpose(params, jnp.array([[[1.0], [10.0]]]), stride=2).ravel().tolist()
    [1.0, 2.0, 13.0, 20.0, 30.0]
    """
    kernel = params["kernel"]
    n = kernel.ndim - 2
    stride, dilation, padding, extra = per_axis(
        n, stride=stride, dilation=dilation, padding=padding, output_padding=output_padding
    )
    if any(e >= max(s, d) for e, s, d in zip(extra, stride, dilation)):
        raise ValueError(f"output_padding {extra} must be less than the stride {stride} or the dilation {dilation}")
    _check(x, kernel, groups)
    if max(stride) > 1 and max(dilation) == 1:
        lead = x.shape[: -n - 1]
        x = x.astype(kernel.dtype).reshape(math.prod(lead), *x.shape[-n - 1 :])
        return _finish(params, lead, _by_phases(kernel, x, stride, padding, extra, groups))
    reach = [d * (k - 1) for d, k in zip(dilation, kernel.shape)]
    return _convolve(
        params,
        x,
        jnp.flip(kernel, range(n)),
        groups,
        window_strides=(1,) * n,
        lhs_dilation=stride,
        rhs_dilation=dilation,
        padding=[(r - p, r - p + e) for r, p, e in zip(reach, padding, extra)],
    )


def per_axis(axes: int, **settings: int | tuple[int, ...]) -> list[tuple[int, ...]]:
    """Each setting as one int for each of `axes` spatial axes.

    Raises:
      ValueError: a tuple of another length; the message has the setting's name.

    >>> per_axis(2, stride=3, dilation=(1, 2))
    [(3, 3), (1, 2)]
    """
    each = [(value,) * axes if isinstance(value, int) else tuple(value) for value in settings.values()]
    for name, value in zip(settings, each):
        if len(value) != axes:
            raise ValueError(f"{name} {value} must be an int, or one for each of the {axes} spatial axes")
    return each


def _padding(padding, n, kernel_shape, dilation):
    if isinstance(padding, str):
        if padding in ("same", "valid"):
            return padding.upper()
        if padding != "causal":
            raise ValueError(f'padding {padding!r} is not one of: "same", "valid", "causal", an int, a tuple')
        if n != 1:
            raise ValueError(f"causal padding is for one spatial axis; the kernel has {n}")
        return [(dilation[0] * (kernel_shape[0] - 1), 0)]
    each = (padding,) * n if isinstance(padding, int) else tuple(padding)
    if len(each) != n:
        raise ValueError(f"padding {padding} must be an int, or an int or a pair for each of the {n} spatial axes")
    return [(p, p) if isinstance(p, int) else tuple(p) for p in each]


def _check(x, kernel, groups):
    n, channels = kernel.ndim - 2, kernel.shape[-2] * groups
    if x.ndim < n + 1 or x.shape[-1] != channels:
        raise ValueError(
            f"x {x.shape} must be [batch, {n} spatial axes, {channels} channels] for a kernel {kernel.shape} "
            f"with groups {groups}"
        )


def _convolve(params, x, kernel, groups, **settings):
    _check(x, kernel, groups)
    n = kernel.ndim - 2
    lead = x.shape[: -n - 1]
    last = (0, n + 1, *range(1, n + 1))
    x = x.astype(kernel.dtype).reshape(math.prod(lead), *x.shape[-n - 1 :])
    y = lax.conv_general_dilated(
        forms.fenced(x),
        kernel,
        dimension_numbers=lax.ConvDimensionNumbers(last, (n + 1, n, *range(n)), last),
        feature_group_count=groups,
        **settings,
    )
    return _finish(params, lead, y)


def _finish(params, lead, y):
    if 0 in y.shape[1:-1]:
        raise ValueError(f"no output is left for a kernel {params['kernel'].shape}: x as padded is too small")
    if "bias" in params:
        y = y + params["bias"]
    return y.reshape(*lead, *y.shape[1:])


def _form(kernel, x):
    """What is faster on a CPU: rows for few outputs of large kernels, whose band is no more than 7 times its kernel."""
    few = kernel.shape[1] >= 5 and kernel.shape[-1] <= 16 and x.shape[-2] <= 7 * kernel.shape[1]
    return forms.form("convolution", "rows" if few and forms.on_cpu() else "lax")


def _by_rows(params, x, padding):
    """The convolution with a row of outputs by one product: the rows of x that it sees, by a band of kernels.

    The band holds the kernel once for each place in the row, and zeros: more to multiply, but as one large product.
    """
    kernel = params["kernel"]
    _check(x, kernel, 1)
    lead, (high, wide, _, outputs) = x.shape[:-3], kernel.shape
    if padding in ("SAME", "VALID"):
        padding = lax.padtype_to_pads(x.shape[-3:-1], (high, wide), (1, 1), padding)
    x = x.astype(kernel.dtype).reshape(math.prod(lead), *x.shape[-3:])
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((start, end, 0) for start, end in padding), (0, 0, 0)])
    rows, columns = (max(0, size - k + 1) for size, k in zip(x.shape[1:3], (high, wide)))
    # place[t, u, v]: element t of the kernel is on column u for output v.
    place = (jnp.arange(wide)[:, None, None] + jnp.arange(columns)) == jnp.arange(x.shape[2])[:, None]
    band = jnp.einsum("htio,tuv->huivo", kernel, place.astype(kernel.dtype), precision=lax.Precision.HIGHEST)
    lines = x.reshape(len(x), x.shape[1], -1)
    seen = jnp.concatenate([lines[:, a : a + rows] for a in range(high)], -1)
    y = linear.product(seen, band.reshape(seen.shape[-1], columns * outputs))
    return _finish(params, lead, y.reshape(len(x), rows, columns, outputs))


def _by_phases(kernel, x, stride, padding, extra, groups):
    """The transposed convolution as one matrix product, with no zeros between the elements of x.

    With m = stride * u + r, the full output at m is the sum over a of x[u - a] * kernel[stride * a + r]: each
    of the phases r is a short convolution of x itself. XLA's own way, x spread out with zeros, multiplies stride^axes
    as often, and its gradient on a CPU was 5 times slower where this was measured.
    """
    n, inputs, outputs = kernel.ndim - 2, kernel.shape[-2], kernel.shape[-1] // groups
    taps = [-(-k // s) for k, s in zip(kernel.shape, stride)]
    full = jnp.pad(kernel, [(0, a * s - k) for a, s, k in zip(taps, stride, kernel.shape)] + [(0, 0)] * 2)
    full = full.reshape(*(size for pair in zip(taps, stride) for size in pair), inputs, groups, outputs)
    full = full.transpose(2 * n + 1, *range(0, 2 * n, 2), 2 * n, *range(1, 2 * n, 2), 2 * n + 2)
    full = full.reshape(groups, -1, math.prod(stride) * outputs)  # [groups, taps * inputs, phases * outputs]

    size = [m + a - 1 for m, a in zip(x.shape[1:], taps)]
    padded = jnp.pad(x, [(0, 0), *((a - 1, a - 1) for a in taps), (0, 0)]).reshape(
        x.shape[0], *(u + a - 1 for u, a in zip(size, taps)), groups, inputs
    )
    near = [
        padded[(slice(None), *(slice(a - 1 - t, a - 1 - t + u) for a, t, u in zip(taps, tap, size)))]
        for tap in itertools.product(*map(range, taps))
    ]
    y = jnp.einsum("...gi,gio->...go", jnp.concatenate(near, -1), full)

    # [batch, *size, groups, *phases, outputs] -> [batch, *(size, phase), groups, outputs]
    y = y.reshape(x.shape[0], *size, groups, *stride, outputs)
    y = y.transpose(0, *(axis for i in range(n) for axis in (1 + i, n + 2 + i)), n + 1, 2 * n + 2)
    spans = [u * s for u, s in zip(size, stride)]
    y = y.reshape(x.shape[0], *spans, groups * outputs)
    ends = [
        (m - 1) * s + k + e - p - span
        for m, s, k, e, p, span in zip(x.shape[1:], stride, kernel.shape, extra, padding, spans)
    ]
    return lax.pad(y, jnp.zeros((), y.dtype), [(0, 0, 0), *((-p, e, 0) for p, e in zip(padding, ends)), (0, 0, 0)])
