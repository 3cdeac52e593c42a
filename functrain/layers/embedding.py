"""The embedding: a row of a table for each id. Learned positions are one too, with positions for ids."""

from typing import Any

import jax
import jax.numpy as jnp

from functrain.layers import initializers, linear


def init(
    key: jax.Array,
    count: int,
    features: int,
    *,
    table_init: str | initializers.Initializer = "normal",
    dtype: Any = float,
) -> dict[str, jax.Array]:
    """`{"table": [count, features]}`.

    "normal" has standard deviation 0.02; torch.nn.Embedding draws with standard deviation 1. By name (see
    `initializers`), or `f(key, shape, dtype)`.
    """
    return {"table": initializers.by_name(table_init)(key, (count, features), dtype)}


def apply(params: dict[str, jax.Array], ids: jax.Array) -> jax.Array:
    """table[ids]: integers [...] -> [..., features].

    An id below 0 or from count on gives a row of nan, and no gradient to any row: a wrong id never reads another's row.

    Raises:
      TypeError: the ids are no integers.

    >>> table = jnp.array([[0.0, 1.0], [2.0, 3.0]])
    >>> apply({"table": table}, jnp.array([1, 0, 2, -1])).tolist()
    [[2.0, 3.0], [0.0, 1.0], [nan, nan], [nan, nan]]
    """
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(f"ids must be integers, not {ids.dtype}")
    return jnp.asarray(params["table"]).at[ids].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


def known(params: dict[str, jax.Array], ids: jax.Array) -> jax.Array:
    """`apply`, but zeros and no gradient where an id is below 0: that is something of which nothing is known.

    >>> known({"table": jnp.array([[0.0, 1.0], [2.0, 3.0]])}, jnp.array([1, -1])).tolist()
    [[2.0, 3.0], [0.0, 0.0]]
    """
    rows = apply(params, jnp.maximum(ids, 0))
    return jnp.where((ids >= 0)[..., None], rows, jnp.zeros((), rows.dtype))


def attend(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """x @ table.T: [..., features] -> logits [..., count], in the table's dtype; the tied head of Press, Wolf 2017.

    >>> attend({"table": jnp.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])}, jnp.array([3.0, 4.0])).tolist()
    [3.0, 8.0, 7.0]
    """
    return linear.product(x.astype(params["table"].dtype), params["table"].T)
