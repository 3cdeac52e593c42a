"""Group normalisation (Wu, He 2018, eq. 7) and instance normalisation (Ulyanov et al. 2016), channels last."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def init(key: jax.Array | None, features: int, *, dtype: Any = float) -> dict[str, jax.Array]:
    """`{"scale": ones [features], "bias": zeros [features]}`; nothing is drawn, so the key may be None."""
    del key
    return {"scale": jnp.ones(features, dtype), "bias": jnp.zeros(features, dtype)}


def apply(params: dict[str, jax.Array], x: jax.Array, groups: int, *, epsilon: Any = 1e-5) -> jax.Array:
    """(x - mean) / sqrt(var + epsilon) * scale + bias, for x [batch, *space, features].

    Mean and (biased) variance are taken for each example and each of `groups` runs of features / groups neighbouring
    channels, over space. Computed in at least float32, returned in the dtype of x. Without "scale" and "bias"
    (params {}) it only normalises.

    Raises:
      ValueError: groups do not divide the features.

    >>> apply({}, jnp.array([[1.0, 3.0, 10.0, 30.0]]), 2).round(3).tolist()
    [[-1.0, 1.0, -1.0, 1.0]]
    """
    if x.shape[-1] % groups:
        raise ValueError(f"groups {groups} must divide the {x.shape[-1]} features")
    h = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    h = h.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
    axes = (*range(1, x.ndim - 1), x.ndim)
    h = h - h.mean(axes, keepdims=True)
    h = h * lax.rsqrt(jnp.square(h).mean(axes, keepdims=True) + epsilon)
    y = h.reshape(x.shape)
    if "scale" in params:
        y = y * params["scale"].astype(h.dtype)
    if "bias" in params:
        y = y + params["bias"].astype(h.dtype)
    return y.astype(x.dtype)


def instance(params: dict[str, jax.Array], x: jax.Array, *, epsilon: Any = 1e-5) -> jax.Array:
    """Instance normalisation: each channel of each example by itself, over space; params {} for no scale and bias.

    >>> instance({}, jnp.array([[[1.0, 10.0], [3.0, 30.0]]])).round(3).tolist()
    [[[-1.0, -1.0], [1.0, 1.0]]]
    """
    return apply(params, x, x.shape[-1], epsilon=epsilon)
