"""What augmentation does to examples, to be looked at."""

from typing import Any

import jax
import jax.numpy as jnp

from functrain.augment.base import images


def preview(augments: Any, batch: dict[str, Any], *, key: jax.Array, copies: int) -> jax.Array:
    """Each example as it is, and after it `copies` of it, augmented under a key each: [n * (copies + 1), h, w, c].

    Args:
      augments: what is applied, in this order.
      batch: n examples as the source scales them.

    >>> preview((), {"x": jnp.zeros((2, 8, 8))}, key=jax.random.key(0), copies=3).shape
    (8, 8, 8, 1)
    """
    rows = [images(batch)]
    for copy in range(copies):
        changed, own = batch, jax.random.fold_in(key, copy)
        for i, augment in enumerate(augments):
            changed = augment.apply(changed, key=jax.random.fold_in(own, i))
        rows.append(images(changed))
    x = jnp.stack(rows, 1)
    return x.reshape(-1, *x.shape[2:])
