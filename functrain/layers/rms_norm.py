"""Root-mean-square normalisation over the last axis (Zhang, Sennrich 2019, eq. 4)."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def init(key: jax.Array | None, features: int, *, dtype: Any = float) -> dict[str, jax.Array]:
    """`{"scale": ones [features]}`; nothing is drawn, so the key may be None."""
    del key
    return {"scale": jnp.ones(features, dtype)}


def apply(params: dict[str, jax.Array], x: jax.Array, *, epsilon: Any = 1e-6) -> jax.Array:
    """x / sqrt(mean(x^2) + epsilon) * scale, for x [..., features].

    Computed in at least float32, returned in the dtype of x. (The default epsilon of torch.nn.RMSNorm is the
    dtype's machine epsilon.)

    >>> [round(y, 3) for y in apply(init(None, 2), jnp.array([3.0, 4.0])).tolist()]   # divided by sqrt(12.5)
    [0.849, 1.131]
    """
    h = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    y = h * lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + epsilon)
    return (y * params["scale"].astype(h.dtype)).astype(x.dtype)
