"""Geometry by given numbers: flips, shifts, and affine maps with bilinear interpolation.

Images are [n, height, width, channels]. An affine map is a matrix [n, 2, 3] that takes the place (u, v, 1) of a pixel
of the result to the place of the image where it is read; u goes to the right, v down, both in pixels from the centre.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

Fill = Literal["zero", "reflect"]


def flip(x: jax.Array, which: jax.Array, axis: int) -> jax.Array:
    """The images (or maps) [n, height, width, ...] for which `which` [n] holds, turned round along the axis.

    >>> flip(jnp.array([[[1, 2]], [[1, 2]]]), jnp.array([True, False]), 2).tolist()
    [[[2, 1]], [[1, 2]]]
    """
    return jnp.where(which.reshape(-1, *(1,) * (x.ndim - 1)), jnp.flip(x, axis), x)


def crop(x: jax.Array, offset: jax.Array, padding: int, fill: Fill = "zero") -> jax.Array:
    """A window as large as the image, out of the image with `padding` pixels more at each side.

    y[i, j] = padded[i + top, j + left]: an offset of `padding` gives the image itself.

    Args:
      x: [n, height, width, ...].
      offset: (top, left) of each image, [n, 2], in 0..2 * padding.
      fill: what stands outside: zeros, or the image mirrored at its outermost pixels.

    Raises:
      ValueError: the image is too small to be mirrored so far.

    >>> crop(jnp.array([[[1, 2, 3]]]), jnp.array([[1, 2]]), 1).tolist()
    [[[2, 3, 0]]]
    """
    size = x.shape[1:]
    if fill == "reflect" and padding >= min(size[:2]):
        raise ValueError(f"padding {padding} must be less than the sides of the images, {size[0]} x {size[1]}")
    widths = [(0, 0), (padding, padding), (padding, padding), *[(0, 0)] * (x.ndim - 3)]
    padded = jnp.pad(x, widths, mode="constant" if fill == "zero" else "reflect")
    return jax.vmap(lambda p, at: lax.dynamic_slice(p, (at[0], at[1], *[0] * (p.ndim - 2)), size))(padded, offset)


def affine(
    angle: Any = 0.0, translate: tuple[Any, Any] = (0.0, 0.0), scale: Any = 1.0, shear: tuple[Any, Any] = (0.0, 0.0)
) -> jax.Array:
    """The matrix [..., 2, 3] by which an image is sheared, scaled, turned clockwise and shifted, in this order.

    The inverse of T R(angle) S(scale) H, where H is [[1, -tan(x)], [-tan(y), 1 + tan(x) tan(y)]] of the shears (x, y):
    the convention of torchvision's `affine`.

    angle, shear: degrees. translate: pixels to the right, and down. scale: above 0. Each one number, or [n].

    >>> (affine(translate=(2.0, 1.0), scale=2.0) + 0).tolist()
    [[0.5, 0.0, -1.0], [0.0, 0.5, -0.5]]
    """
    angle, right, down, scale, *sheared = jnp.broadcast_arrays(angle, *translate, scale, *shear)
    turn, x, y = map(jnp.deg2rad, (angle, *sheared))
    a, c = (f(turn - y) / jnp.cos(y) for f in (jnp.cos, jnp.sin))
    b, d = -a * jnp.tan(x) - jnp.sin(turn), -c * jnp.tan(x) + jnp.cos(turn)
    inverse = jnp.stack([jnp.stack([d, -b], -1), jnp.stack([-c, a], -1)], -2) / scale[..., None, None]
    shift = (inverse * -jnp.stack([right, down], -1)[..., None, :]).sum(-1, keepdims=True)
    return jnp.concatenate([inverse, shift], -1)


def warp(x: jax.Array, matrix: jax.Array, fill: float = 0.0) -> jax.Array:
    """Each image through its affine map, read between its pixels bilinearly; outside it stands `fill`.

    A pixel of the result that is read on the edge is a mixture of the image and `fill`.

    x: [n, height, width, channels]. matrix: [n, 2, 3], see `affine`.

    >>> warp(jnp.array([1.0, 2.0, 3.0]).reshape(1, 1, 3, 1), affine(translate=(0.5, 0.0))[None]).ravel().tolist()
    [0.5, 1.5, 2.5]
    """
    height, width = x.shape[1:3]
    m = matrix.astype(x.dtype)[:, :, :, None, None]
    u = (jnp.arange(width, dtype=x.dtype) - (width - 1) / 2)[None, None, :]
    v = (jnp.arange(height, dtype=x.dtype) - (height - 1) / 2)[None, :, None]
    column = m[:, 0, 0] * u + m[:, 0, 1] * v + m[:, 0, 2] + (width - 1) / 2
    row = m[:, 1, 0] * u + m[:, 1, 1] * v + m[:, 1, 2] + (height - 1) / 2
    return sample(x, row, column) if fill == 0 else sample(x - fill, row, column) + fill


def resized_crop(x: jax.Array, top: Any, left: Any, height: Any, width: Any) -> jax.Array:
    """A rectangle of each image, drawn out to the size of the image, bilinearly.

    Nothing outside the rectangle is read, as if it were cut out before it is resized.

    x: [n, height, width, channels]. top, left, height, width: [n], in pixels, not necessarily whole; the rectangle lies
    in the image.

    >>> resized_crop(jnp.arange(4.0).reshape(1, 1, 4, 1), *jnp.array([[0.0], [1.0], [1.0], [2.0]])).ravel().tolist()
    [1.0, 1.25, 1.75, 2.0]
    """

    def along(size, start, length):
        start, length = (jnp.asarray(a, x.dtype)[:, None] for a in (start, length))
        at = (jnp.arange(size, dtype=x.dtype) + 0.5) * (length / size) - 0.5
        return start + jnp.clip(at, 0, jnp.maximum(length - 1, 0))

    row, column = along(x.shape[1], top, height), along(x.shape[2], left, width)
    return sample(x, row[:, :, None], column[:, None, :])


def sample(x: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
    """Images [n, h, w, c] read bilinearly at places in pixels, (0, 0) the centre of the first; zeros are all around.

    row, column: what broadcasts to [n, *place]. Returns [n, *place, c].

    >>> sample(jnp.array([[[[1.0], [3.0]]]]), jnp.zeros((1, 3)), jnp.array([[0.5, 1.0, 1.5]])).ravel().tolist()
    [2.0, 3.0, 1.5]
    """
    n, height, width, channels = x.shape
    row, column = jnp.broadcast_arrays(jnp.clip(row, -1, height), jnp.clip(column, -1, width))
    above, before = jnp.floor(row), jnp.floor(column)
    down, right = (row - above)[..., None], (column - before)[..., None]
    padded = jnp.pad(x, ((0, 0), (1, 2), (1, 2), (0, 0)))  # so that no neighbour of a place is outside
    pitch = width + 3
    flat = padded.reshape(n, -1, channels)
    at = (above.astype(jnp.int32) + 1) * pitch + before.astype(jnp.int32) + 1

    def read(step):
        index = (at + step).reshape(n, -1, 1)
        return jnp.take_along_axis(flat, index, 1, mode="promise_in_bounds").reshape(*at.shape, channels)

    upper = (1 - right) * read(0) + right * read(1)
    return (1 - down) * upper + down * ((1 - right) * read(pitch) + right * read(pitch + 1))
