"""Layer normalisation over the last axis (Ba, Kiros, Hinton 2016, eq. 3 and 4)."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from functrain.layers import forms


def init(key: jax.Array | None, features: int, *, bias: bool = True, dtype: Any = float) -> dict[str, jax.Array]:
    """`{"scale": ones [features], "bias": zeros [features]}`; nothing is drawn, so the key may be None."""
    del key
    params = {"scale": jnp.ones(features, dtype)}
    return params | {"bias": jnp.zeros(features, dtype)} if bias else params


def apply(params: dict[str, jax.Array], x: jax.Array, *, epsilon: Any = 1e-5) -> jax.Array:
    """(x - mean) / sqrt(var + epsilon) * scale + bias, for x [..., features]; var is the biased one.

    Computed in at least float32, returned in the dtype of x.

    >>> y = apply(init(None, 4), jnp.array([1.0, 2.0, 3.0, 4.0]))
    >>> bool(abs(y.mean()) < 1e-6), bool(abs(y.std() - 1) < 1e-4)
    (True, True)
    """
    h = forms.fenced(x).astype(jnp.promote_types(x.dtype, jnp.float32))
    h = h - h.mean(-1, keepdims=True)
    h = h * lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + epsilon)
    y = h * params["scale"].astype(h.dtype)
    if "bias" in params:
        y = y + params["bias"].astype(h.dtype)
    return y.astype(x.dtype)
