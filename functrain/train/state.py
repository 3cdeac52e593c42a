"""The train state: all that a step reads and writes, one pytree."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from functrain import tree
from functrain.optim import Player
from functrain.train import hyper as live


@struct.dataclass
class TrainState:
    """A run between two steps."""

    step: Any  # int32: how many steps were taken
    key: Any  # the root key; the key of a step is fold_in(key, step)
    hyper: Any  # {"learner.optimizer.peak_lr": array, ...}: the live numbers
    players: Any  # {name: Player}
    state: Any  # what no optimizer touches: statistics, targets, a replay buffer, a pool, a teacher


def init(
    task: Any, key: jax.Array, sweep: Mapping[str, Any] | None = None, start: Mapping[str, Any] | None = None
) -> TrainState:
    """The state before the first step; run it under jit.

    Args:
      task: see functrain.tasks.base.
      key: of the whole run.
      sweep: live numbers to set, by path: {"learner.optimizer.peak_lr": 0.1}; under vmap, an axis of them is a
        population.
      start: arrays in place of some that the task draws, by path: {"params/model/conv0/kernel": ...,
        "state/norm0/mean": ...}. Averages and slow weights begin from them too.

    Raises:
      ValueError: a path in `start` that the task does not draw.
    """
    numbers = live.arrays(task, sweep)
    task = live.bind(task, numbers)
    root, key = jax.random.split(key)
    params, state = task.init(key)
    if start:
        drawn = _replaced({"params": params, "state": state}, start)
        params, state = drawn["params"], drawn["state"]
    players = {
        name: learner.init(params[name]) if learner is not None else Player(params[name], skipped=jnp.int32(0))
        for name, learner in task.learners.items()
    }
    train_state = TrainState(jnp.int32(0), root, numbers, players, state)
    return jax.tree.map(jnp.copy, train_state)  # it will be donated: no buffer may stand in it twice


def _replaced(drawn: Any, arrays: Mapping[str, Any]) -> Any:
    if unknown := arrays.keys() - tree.by_path(drawn).keys():
        raise ValueError(f"{min(unknown)}: the task draws no such array")
    return tree.map_by_path(lambda path, x: jnp.asarray(arrays[path], x.dtype) if path in arrays else x, drawn)


def skipped(train_state: TrainState) -> Any:
    """How many updates were skipped, over all players (on the device)."""
    return sum(player.skipped for player in train_state.players.values())
