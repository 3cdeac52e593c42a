"""Positions of tokens as numbers: sinusoidal tables and rotary turns. Learned positions are `embedding`."""

from typing import Any

import jax
import jax.numpy as jnp


def sinusoidal(length: int, features: int, *, base: Any = 10000.0) -> jax.Array:
    """[length, features] with sin(p / base^(2i / features)) in column 2i and the cosine in 2i + 1, at position p.

    Vaswani et al. 2017, section 3.5. In float32, or float64 where jax has 64-bit types enabled.

    >>> sinusoidal(2, 3).round(3).tolist()[0]
    [0.0, 1.0, 0.0]
    """
    even = jnp.arange(0, features, 2)
    angles = jnp.arange(length)[:, None] * jnp.asarray(base, float) ** (-even / features)
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], -1).reshape(length, -1)[:, :features]


def turns(features: int, *, base: Any = 10000.0, dtype: Any = float) -> jax.Array:
    """[features / 2]: base^(-2i / features), the angle by which `rotary` turns pair i from a position to the next.

    >>> [round(turn, 3) for turn in turns(4, base=100.0).tolist()]
    [1.0, 0.1]
    """
    return jnp.asarray(base, dtype) ** (-jnp.arange(0, features, 2, dtype=dtype) / features)


def stretched(turns: jax.Array, *, factor: Any, length: int, slow: Any = 1.0, fast: Any = 4.0) -> jax.Array:
    """The turns of a model trained on `length` tokens, made slower so that it reads up to `factor` times as many.

    A pair that goes round fewer than `slow` times within `length` turns factor times slower, one that goes round more
    than `fast` times as before, those between by a straight line; Grattafiori et al. 2024 (Llama 3.1), section 3.4.2.

    >>> stretched(jnp.array([1.0, 0.001]), factor=8.0, length=1000).tolist()
    [1.0, 0.0001250000059371814]
    """
    rounds = length * turns / (2 * jnp.pi)
    share = jnp.clip((rounds - slow) / (fast - slow), 0, 1)
    return (1 - share) * turns / factor + share * turns


def rotary(
    x: jax.Array,
    positions: jax.Array,
    *,
    base: Any = 10000.0,
    by: jax.Array | None = None,
    interleaved: bool = False,
) -> jax.Array:
    """Pair i of x's features turned by the angle position * base^(-2i / features); Su et al. 2021, eq. 34.

    The inner product of two rows so turned depends on their features and the difference of their positions alone.

    Args:
      x: [..., length, heads, features], features even.
      positions: [..., length] integers, the leading axes those of x or fewer.
      by: [features / 2], the angle of each pair from a position to the next, in place of the base; see `stretched`.
      interleaved: which features are a pair: False takes i and i + features / 2 (Llama's weights as published by
        Hugging Face), True takes 2i and 2i + 1 (the paper). They differ by a fixed order of the features.

    Returns:
      In the dtype of x; computed in at least float32, where an angle errs by about 1e-7 of its position.

    Raises:
      ValueError: an odd number of features.

    >>> [round(y, 3) for y in rotary(jnp.array([[[1.0, 0.0]]]), jnp.array([1])).ravel().tolist()]   # cos 1, sin 1
    [0.54, 0.841]
    """
    features = x.shape[-1]
    if features % 2:
        raise ValueError(f"rotary needs an even number of features a head, not {features}")
    wide = jnp.promote_types(x.dtype, jnp.float32)
    angles = positions[..., None, None].astype(wide) * (turns(features, base=base, dtype=wide) if by is None else by)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    h = x.astype(wide)
    if interleaved:
        a, b = h[..., 0::2], h[..., 1::2]
        y = jnp.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(x.shape)
    else:
        a, b = jnp.split(h, 2, -1)
        y = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
    return y.astype(x.dtype)
