"""Trimming: a batch cut to the width of its bucket, so that padding is not computed (see functrain.data.bucketing).

The widths are few and known, so each is compiled once, with static shapes, as a branch of one program.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jax import lax


def trimmed(task: Any, widths: Mapping[str, tuple[int, ...]]) -> Any:
    """The task, whose `update` sees of each batch no more than the widths of its bucket.

    It is of a class of its own that differs from the task's in `update` alone: settings, live numbers, evaluation
    and what is saved are the task's. What is cut off must be padding that the task counts nowhere; then the gradients
    are those of the whole batch. Random numbers are drawn in the shape that is left, so with dropout they are others.

    Args:
      task: a dataclass with `update` (see functrain.tasks.base); its batches carry `bucket`, a number.
      widths: of each bucket, by the name of the array that is cut along its second axis.

    >>> import jax.numpy as jnp
    >>> @dataclasses.dataclass(frozen=True)
    ... class Count:
    ...     def update(self, train_state, batch, *, key):
    ...         return train_state, jnp.asarray(batch["x"].size)
    >>> batch = {"x": jnp.ones((3, 8)), "bucket": jnp.int32(0)}
    >>> int(trimmed(Count(), {"x": (2, 8)}).update(0, batch, key=None)[1])
    6
    """
    kind = type(task)

    def update(self, train_state, batch, *, key):
        """The task's update on the batch as wide as its bucket."""
        whole = {name: array for name, array in batch.items() if name != "bucket"}

        def to(*each):
            def branch(train_state, whole, key):
                cut = {name: whole[name][:, :width] for name, width in zip(widths, each)}
                return kind.update(self, train_state, whole | cut, key=key)

            return branch

        return lax.switch(batch["bucket"], [to(*each) for each in zip(*widths.values())], train_state, whole, key)

    made = type(f"Trimmed{kind.__name__}", (kind,), {"update": update})
    return made(**{f.name: getattr(task, f.name) for f in dataclasses.fields(task) if f.init})
