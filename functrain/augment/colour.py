"""Colour by given numbers: the operations of torchvision's functional transforms, on pixels in 0..1.

Images are [n, height, width, channels], of 1 or 3 channels; a factor is one number, or one for each image, [n].
"""

from typing import Any

import jax
import jax.numpy as jnp

from functrain.augment.base import per_image

_LUMA = (0.2989, 0.587, 0.114)
"""How red, green and blue add up to grey: ITU-R BT.601, as torchvision rounds it."""


def grey(x: jax.Array) -> jax.Array:
    """0.2989 red + 0.587 green + 0.114 blue, [n, h, w, 1]; an image of one channel as it is.

    >>> round(grey(jnp.array([[[[1.0, 0.0, 0.0]]]])).item(), 4)
    0.2989
    """
    if x.shape[-1] == 1:
        return x
    return sum(weight * x[..., i : i + 1] for i, weight in enumerate(_LUMA))  # pyright: ignore[reportReturnType]


def blend(x: jax.Array, other: jax.Array, factor: Any) -> jax.Array:
    """factor * x + (1 - factor) * other, cut off at 0 and 1; a factor above 1 goes away from `other`."""
    factor = per_image(factor, x)
    return jnp.clip(factor * x + (1 - factor) * other, 0, 1)


def brightness(x: jax.Array, factor: Any) -> jax.Array:
    """factor * x, cut off at 1.

    >>> brightness(jnp.full((1, 1, 1, 1), 0.25), 2.0).item()
    0.5
    """
    return jnp.clip(per_image(factor, x) * x, 0, 1)


def contrast(x: jax.Array, factor: Any) -> jax.Array:
    """A blend with the mean of the image's grey."""
    return blend(x, mean_grey(x), factor)


def mean_grey(x: jax.Array) -> jax.Array:
    """The mean of each image's grey, [n, 1, 1, 1]."""
    return grey(x.mean((1, 2), keepdims=True))


def saturation(x: jax.Array, factor: Any) -> jax.Array:
    """A blend with the grey of each pixel; an image of one channel as it is."""
    return blend(x, grey(x), factor) if x.shape[-1] == 3 else x


def hue(x: jax.Array, shift: Any) -> jax.Array:
    """The hue turned by `shift` times a full circle, in the space of hue, saturation and value; grey stays as it is.

    With v the largest channel, d the range of the channels and h in 0..6 the hue, turned: channel c of the result is
    v - d * clip(min(k, 4 - k), 0, 1), where k = (c' + h) mod 6 and c' is 5, 3, 1 for red, green, blue (the inverse of
    the hexcone of Smith 1978).

    >>> hue(jnp.array([[[[1.0, 0.0, 0.0]]]]), 1 / 3).round(3).ravel().tolist()   # red to green
    [0.0, 1.0, 0.0]
    """
    if x.shape[-1] == 1:
        return x
    red, green, blue = (x[..., i : i + 1] for i in range(3))
    value = x.max(-1, keepdims=True)
    span = value - x.min(-1, keepdims=True)
    over = jnp.where(span > 0, span, 1)
    sector = jnp.where(
        value == red,
        (green - blue) / over,
        jnp.where(value == green, 2 + (blue - red) / over, 4 + (red - green) / over),
    )
    k = jnp.array([5, 3, 1], x.dtype) + sector + 6 * per_image(shift, x)
    k = k - 6 * jnp.floor(k / 6)  # the remainder, several times as fast as jnp.mod
    return value - span * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)


def posterize(x: jax.Array, bits: Any) -> jax.Array:
    """Pixels as bytes, with all but their `bits` highest bits set to 0; 8 bits are the image as it is.

    bits: whole numbers in 0..8, one for all images or [n].

    >>> (posterize(jnp.array([[[[0.0, 100 / 255, 1.0]]]]), 2) * 255).round().ravel().tolist()
    [0.0, 64.0, 192.0]
    """
    bits = jnp.asarray(bits, jnp.int32)
    bits = bits.reshape(*bits.shape, 1, 1, 1)
    kept = to_bytes(x) & -jnp.left_shift(1, 8 - bits)
    return jnp.where(bits >= 8, x, kept.astype(x.dtype) / 255)


def solarize(x: jax.Array, threshold: Any) -> jax.Array:
    """1 - x where x is at least the threshold, else x.

    >>> solarize(jnp.array([[[[0.25, 0.75]]]]), 0.5).ravel().tolist()
    [0.25, 0.25]
    """
    return jnp.where(x >= per_image(threshold, x), 1 - x, x)


def autocontrast(x: jax.Array) -> jax.Array:
    """Each channel of each image stretched, so that its least pixel is 0 and its largest 1; a constant one as it is.

    >>> autocontrast(jnp.array([0.25, 0.5]).reshape(1, 1, 2, 1)).ravel().tolist()
    [0.0, 1.0]
    """
    low, high = x.min((1, 2), keepdims=True), x.max((1, 2), keepdims=True)
    varies = high > low
    return jnp.clip((x - jnp.where(varies, low, 0)) / jnp.where(varies, high - low, 1), 0, 1)


def equalize(x: jax.Array) -> jax.Array:
    """Each channel of each image as bytes, replaced by their rank, so that the histogram becomes level.

    Byte b becomes (pixels below b + step // 2) // step, at most 255, where step is the number of pixels below the
    largest byte, over 255, rounded down; where that is 0, the channel stays (the rule of Pillow and of torchvision).

    >>> x = jnp.arange(1024.0).reshape(1, 32, 32, 1) / 2048
    >>> float(equalize(x).min()), float(equalize(x).max())
    (0.0, 1.0)
    """
    n, *_, channels = x.shape
    pixels = to_bytes(x).reshape(n, -1, channels)
    # One flat index for image, channel and byte: half the time of a scatter along three axes.
    first = 256 * (channels * jnp.arange(n)[:, None, None] + jnp.arange(channels))
    counts = jnp.zeros(n * channels * 256, jnp.int32).at[first + pixels].add(1, mode="promise_in_bounds")
    counts = counts.reshape(n, channels, 256)
    below = jnp.cumsum(counts, -1) - counts
    step = jnp.take_along_axis(below, pixels.max(1)[..., None], -1) // 255
    table = jnp.clip((below + step // 2) // jnp.maximum(step, 1), 0, 255)
    ranks = table.reshape(-1).at[first + pixels].get(mode="promise_in_bounds").reshape(x.shape)
    return jnp.where((step > 0).reshape(n, 1, 1, channels), ranks.astype(x.dtype) / 255, x)


def sharpness(x: jax.Array, factor: Any) -> jax.Array:
    """A blend with the smoothed image: a factor below 1 blurs, one above 1 sharpens."""
    return blend(x, smoothed(x), factor)


def smoothed(x: jax.Array) -> jax.Array:
    """(the sum of a pixel and its 8 neighbours + 4 times the pixel) / 13; the outermost pixels are as they were.

    Images of fewer than three pixels a side are as they are.
    """
    if min(x.shape[1:3]) <= 2:
        return x
    across = x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]
    around = across[:, :-2] + across[:, 1:-1] + across[:, 2:]
    inner = x[:, 1:-1, 1:-1]
    return x.at[:, 1:-1, 1:-1].set((around + 4 * inner) / 13)


def to_bytes(x: jax.Array) -> jax.Array:
    """0..1 as whole numbers in 0..255, rounded, int32."""
    return jnp.round(jnp.clip(x, 0, 1) * 255).astype(jnp.int32)
