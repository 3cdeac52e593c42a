"""Pooling over the spatial axes of [batch, *space, channels], with the sizes that torch gives.

Of equal largest values in a window, the first takes the whole gradient.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
from jax import lax

from functrain.layers.conv import per_axis

Sizes = int | tuple[int, ...]
_FEW = 16
"""Elements of a window up to which they are compared one by one."""


def max(x: jax.Array, window: Sizes, *, stride: Sizes | None = None, padding: Sizes = 0) -> jax.Array:
    """The largest value of each window, channel by channel.

    Args:
      x: [batch, *space, channels]; where `window` is a tuple, any number of leading axes.
      window: for all spatial axes, or one for each.
      stride: from window to window; None is the window's size.
      padding: at both ends of each axis, never chosen; at most half the window.

    Returns:
      [batch, *space, channels], floor((n + 2 * padding - window) / stride) + 1 long on each axis.

    Raises:
      ValueError: a setting for another number of axes, too much padding, or no room for one window.

    >>> max(jnp.array([1.0, 3.0, 2.0, 5.0, 4.0]).reshape(1, 5, 1), 2).ravel().tolist()
    [3.0, 5.0]
    """
    least = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    if math.prod(_window(x, window)) <= _FEW:
        return _largest(x, window, stride, padding, least)
    return _reduce(x, window, stride, padding, least, lax.max)


def average(
    x: jax.Array, window: Sizes, *, stride: Sizes | None = None, padding: Sizes = 0, count_padding: bool = True
) -> jax.Array:
    """The mean of each window, channel by channel, in at least float32; arguments and sizes as in `max`.

    Args:
      count_padding: whether the zeros of the padding count as elements (torch's count_include_pad).

    >>> x = jnp.array([2.0, 4.0, 6.0]).reshape(1, 3, 1)
    >>> average(x, 2, padding=1).ravel().tolist(), average(x, 2, padding=1, count_padding=False).ravel().tolist()
    ([1.0, 5.0], [2.0, 5.0])
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    total = _reduce(wide, window, stride, padding, 0, lax.add)
    if count_padding:
        count = math.prod(_window(x, window))
    else:
        size = _window(x, window)
        ones = jnp.ones((*x.shape[-len(size) - 1 : -1], 1), wide.dtype)
        count = _reduce(ones, size, stride, padding, 0, lax.add)
    return (total / count).astype(x.dtype)


def global_average(x: jax.Array) -> jax.Array:
    """[batch, *space, channels] -> [batch, channels]: the mean over all places, in at least float32.

    >>> global_average(jnp.arange(6.0).reshape(1, 3, 2)).tolist()
    [[2.0, 3.0]]
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return x.mean(range(1, x.ndim - 1), dtype=wide).astype(x.dtype)


def global_max(x: jax.Array) -> jax.Array:
    """[batch, *space, channels] -> [batch, channels]: the largest over all places.

    >>> global_max(jnp.arange(6.0).reshape(1, 3, 2)).tolist()
    [[4.0, 5.0]]
    """
    return max(x, x.shape[1:-1]).reshape(x.shape[0], x.shape[-1])


def adaptive_average(x: jax.Array, size: Sizes) -> jax.Array:
    """The mean of each of `size` bins an axis: bin i of m holds floor(i n / m) to ceil((i + 1) n / m), less one.

    Args:
      x: [batch, *space, channels].
      size: of the output, for all spatial axes or one for each; may exceed the input's.

    >>> adaptive_average(jnp.array([1.0, 2.0, 3.0]).reshape(1, 3, 1), 2).ravel().tolist()
    [1.5, 2.5]
    """
    (size,) = per_axis(x.ndim - 2, size=size)
    space = x.shape[1:-1]
    if not any(n % m for n, m in zip(space, size)):
        return average(x, tuple(n // m for n, m in zip(space, size)))
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    for axis, (n, m) in enumerate(zip(space, size), 1):
        # A bin is a product of intervals, so its mean is the means along each axis in turn, each a small matrix.
        start, end = _bins(n, m)
        inside = (jnp.arange(n) >= start[:, None]) & (jnp.arange(n) < end[:, None])
        matrix = inside / (end - start)[:, None].astype(y.dtype)
        y = jnp.moveaxis(jnp.tensordot(matrix, y, (1, axis), precision=lax.Precision.HIGHEST), 0, axis)
    return y.astype(x.dtype)


def adaptive_max(x: jax.Array, size: Sizes) -> jax.Array:
    """The largest value of each bin; the bins are those of `adaptive_average`.

    >>> adaptive_max(jnp.array([1.0, 3.0, 2.0]).reshape(1, 3, 1), 2).ravel().tolist()
    [3.0, 3.0]
    """
    (size,) = per_axis(x.ndim - 2, size=size)
    windows = []
    for axis, m in enumerate(size, 1):
        n = x.shape[axis]
        start, end = _bins(n, m)
        width = -(-n // m) if n % m == 0 else n // m + 2
        # Bins of one width, short ones filled with their own last element, stand side by side for one pooling.
        inside = jnp.minimum(start[:, None] + jnp.arange(width), end[:, None] - 1)
        x = jnp.take(x, inside.ravel(), axis)
        windows.append(width)
    return max(x, tuple(windows))


def _bins(n, m):
    i = jnp.arange(m)
    return i * n // m, -(-(i + 1) * n // m)


def _window(x, window):
    return per_axis(x.ndim - 2 if isinstance(window, int) else len(window), window=window)[0]


def _settled(x, window, stride, padding):
    """Window, stride and padding, each an int an axis."""
    window = _window(x, window)
    n = len(window)
    stride, padding = per_axis(n, stride=window if stride is None else stride, padding=padding)
    if x.ndim < n + 1 or any(2 * p > w for p, w in zip(padding, window)):
        raise ValueError(f"padding {padding} must be at most half the window {window}, and x {x.shape} have its axes")
    if any(size + 2 * p < w for size, p, w in zip(x.shape[-n - 1 :], padding, window)):
        raise ValueError(f"the window {window} does not fit into x {x.shape} with padding {padding}")
    return window, stride, padding


def _largest(x, window, stride, padding, least):
    """The largest of the elements at each place of the window, one place after another.

    The gradient is a selection, element by element, where that of lax.reduce_window scatters: 128 x 28 x 28 x 6 by
    2 x 2 took 0.34 ms in place of 3.85 (value and gradient, two busy CPU cores, jax 0.10.2).
    """
    window, stride, padding = _settled(x, window, stride, padding)
    n = len(window)
    around = [(0, 0, 0)] * (x.ndim - n - 1) + [(p, p, 0) for p in padding] + [(0, 0, 0)]
    x = lax.pad(x, x.dtype.type(least), around)
    space = x.shape[-n - 1 : -1]
    count = [(size - w) // s + 1 for size, w, s in zip(space, window, stride)]
    ends = [(m - 1) * s + 1 for m, s in zip(count, stride)]

    def at(place):
        return x[(..., *(slice(t, t + end, s) for t, end, s in zip(place, ends, stride)), slice(None))]

    def larger(best, here):
        # Of equal ones the first; a nan is larger than any number, as in reduce_window.
        return jnp.where((here > best) | (here != here), here, best)

    return functools.reduce(larger, map(at, itertools.product(*map(range, window))))


def _reduce(x, window, stride, padding, start, operator):
    window, stride, padding = _settled(x, window, stride, padding)
    n = len(window)
    lead = x.ndim - n - 1

    def around(values, neutral):
        return (neutral,) * lead + tuple(values) + (neutral,)

    return lax.reduce_window(
        x,
        x.dtype.type(start),
        operator,
        around(window, 1),
        around(stride, 1),
        around([(p, p) for p in padding], (0, 0)),
    )
