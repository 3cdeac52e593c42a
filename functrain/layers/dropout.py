"""Dropout (Srivastava et al. 2014), inverted: what is kept is divided by the share kept."""

from typing import Any

import jax
import jax.numpy as jnp


def apply(x: jax.Array, rate: Any, *, key: jax.Array | None, train: bool) -> jax.Array:
    """Each element zero with probability `rate`, else x / (1 - rate); x itself in evaluation.

    Args:
      x: any shape.
      rate: in [0, 1); a Python 0.0 is off and leaves nothing in the program, an array may be traced.
      key: needed in training unless the rate is a Python 0.0.
      train: whether to drop at all.

    Raises:
      ValueError: training without a key.

    >>> x = jnp.ones(1000)
    >>> y = apply(x, 0.25, key=jax.random.key(0), train=True)
    >>> bool(abs(y.mean() - 1) < 0.05), bool((apply(x, 0.25, key=None, train=False) == x).all())
    (True, True)
    """
    if not train or (isinstance(rate, float) and rate == 0.0):
        return x
    if key is None:
        raise ValueError("dropout in training needs a key")
    keep = 1 - rate
    return jnp.where(jax.random.bernoulli(key, keep, x.shape), x / keep, 0).astype(x.dtype)
