"""Layers: modules with `init(key, ...) -> params` and `apply(params, x, ...) -> y`, and nothing else.

`params` are plain nested dicts of arrays, so every tool for pytrees works on them. A layer without
parameters has `apply` alone; a layer with state takes and returns it. The parameters' dtype is the
computing dtype: `apply` casts its input to it, and so a precision policy is a cast of the parameters. Nothing
here imports more than jax.

>>> import jax, jax.numpy as jnp
>>> params = linear.init(jax.random.key(0), 3, 2)
>>> jax.tree.map(jnp.shape, params)
{'bias': (2,), 'kernel': (3, 2)}
>>> linear.apply(params, jnp.ones((5, 3))).shape
(5, 2)
"""

from functrain.layers import (
    activations,
    attention,
    batch_norm,
    conv,
    dropout,
    embedding,
    group_norm,
    initializers,
    layer_norm,
    linear,
    pool,
    positions,
    recurrent,
    rms_norm,
)

__all__ = [
    "activations",
    "attention",
    "batch_norm",
    "conv",
    "dropout",
    "embedding",
    "group_norm",
    "initializers",
    "layer_norm",
    "linear",
    "pool",
    "positions",
    "recurrent",
    "rms_norm",
]
