"""A replay buffer: the newest transitions, as arrays on the device (Lin 1992; Mnih et al. 2015).

It is part of the train state, so that chunks, resume and members under vmap serve it. A step writes some rows in place
and reads some: what it costs does not depend on the capacity, as long as no `cond` takes the buffer in or gives it out.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Replay:
    """Transitions, the oldest of which are written over."""

    transitions: Any  # a tree of arrays [capacity, ...]
    index: Any  # int32: the row that is written next
    count: Any  # int32: how many rows hold a transition


def empty(like: Any, capacity: int) -> Replay:
    """A buffer of `capacity` rows, all zeros and none of them counted.

    like: one transition, a tree of arrays or of their shapes (`jax.eval_shape`).

    >>> replay = empty({"reward": jnp.zeros(()), "action": jnp.zeros(2)}, capacity=3)
    >>> {name: rows.shape for name, rows in replay.transitions.items()}, int(replay.count)
    ({'action': (3, 2), 'reward': (3,)}, 0)
    """
    transitions = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), like)
    return Replay(transitions, jnp.int32(0), jnp.int32(0))


def add(replay: Replay, transitions: Any) -> Replay:
    """The buffer with n transitions more, in place of the n oldest where it is full.

    transitions: a tree of arrays [n, ...] as in the buffer, n at most the capacity.

    Raises:
      ValueError: more transitions than the buffer has rows.

    >>> replay = empty({"reward": jnp.zeros(())}, capacity=3)
    >>> for rewards in ([1.0, 2.0], [3.0, 4.0]):
    ...     replay = add(replay, {"reward": jnp.array(rewards)})
    >>> replay.transitions["reward"].tolist(), int(replay.index), int(replay.count)
    ([4.0, 2.0, 3.0], 1, 3)
    """
    capacity, n = _rows(replay.transitions), _rows(transitions)
    if n > capacity:
        raise ValueError(f"transitions: found {n}; the buffer has {capacity} rows")
    at = (replay.index + jnp.arange(n, dtype=jnp.int32)) % capacity
    written = jax.tree.map(
        lambda rows, new: rows.at[at].set(new, unique_indices=True, mode="promise_in_bounds"),
        replay.transitions,
        transitions,
    )
    return Replay(written, (replay.index + n) % capacity, jnp.minimum(replay.count + n, capacity))


def sample(replay: Replay, n: int, *, key: jax.Array) -> Any:
    """n transitions drawn uniformly with replacement, a tree of arrays [n, ...]; the buffer must hold one at least.

    >>> replay = add(empty({"reward": jnp.zeros(())}, capacity=100), {"reward": jnp.array([5.0, 5.0])})
    >>> sample(replay, 4, key=jax.random.key(0))["reward"].tolist()
    [5.0, 5.0, 5.0, 5.0]
    """
    at = jax.random.randint(key, (n,), 0, replay.count)
    return jax.tree.map(lambda rows: rows.at[at].get(mode="promise_in_bounds"), replay.transitions)


def _rows(tree: Any) -> int:
    return jax.tree.leaves(tree)[0].shape[0]
