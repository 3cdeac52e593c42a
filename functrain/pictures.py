"""Pictures of what a model makes of examples: while it trains, and at the end of a run.

A task that has them gives `draw` (see functrain.tasks.base); a task without it has none.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from functrain.built import Built
from functrain.data.base import reader
from functrain.tasks.base import beside

_EXAMPLES = 16
"""How many examples a task is given to draw, unless it says how many it wants."""


def drawer(built: Built, split: str | None) -> Callable[[Any, Path], list[Path]] | None:
    """`draw(train_state, folder) -> paths` of pictures for one member; None where the task draws none.

    split: whose first examples are drawn, always the same ones; a task without data is given none.
    """
    if not hasattr(built.task, "draw") or split is None:
        return None
    if built.config.data is None:
        return _alone(built.task) if hasattr(built.task, "drawn") else None
    task, data, feed = built.task, built.config.data, built.feeds[split]
    count = getattr(task, "examples_drawn", _EXAMPLES)
    feed = dataclasses.replace(feed, size=min(count, len(jax.tree.leaves(feed.arrays)[0])))
    # Pictures have the colours of the data: x as the source scales it, not as the model reads it.
    scaled = dataclasses.replace(feed, prepare=data.scaled)
    names = tuple(getattr(reader(data), "class_names", ()))

    @jax.jit
    def drawn(train_state, arrays, i):
        batch = feed.batch(arrays, i)
        if hasattr(task, "drawn"):
            outputs = task.drawn(train_state, batch)
        else:
            outputs = task.outputs_of(train_state, batch["x"], **beside(task, batch))
        return outputs, batch | {"x": scaled.batch(arrays, i)["x"]}

    def draw(train_state, folder):
        folder.mkdir(parents=True, exist_ok=True)
        first = jax.device_put(np.int32(0), built.replicated)
        return task.draw(*jax.device_get(drawn(train_state, feed.arrays, first)), folder, names)

    return draw


def _alone(task: Any) -> Callable[[Any, Path], list[Path]]:
    """`draw(train_state, folder) -> paths` of a task that makes its own data."""
    drawn = jax.jit(lambda train_state: task.drawn(train_state, {}))

    def draw(train_state, folder):
        folder.mkdir(parents=True, exist_ok=True)
        return task.draw(jax.device_get(drawn(train_state)), {}, folder, ())

    return draw
