"""Views of an image: what a task sees of it after augmentations of its own."""

from collections.abc import Sequence
from typing import Any

import jax


def view(augments: Sequence[Any], x: jax.Array, key: jax.Array) -> jax.Array:
    """Images x [n, ...] in 0..1, changed by one augmentation after another, each with a key of its own."""
    batch = {"x": x}
    for i, augment in enumerate(augments):
        batch = augment.apply(batch, key=jax.random.fold_in(key, i))
    return batch["x"]
