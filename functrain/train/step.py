"""Step and chunk: pure functions, and the rules by which a program is chosen. No task or model is known here.

step(train_state, batch)                       -> (train_state, metrics)
body(train_state, metrics, window)             -> (train_state, metrics)      a step on the feed's own batch
chunk(train_state, metrics, window, count)     -> (train_state, metrics)      `count` of them, count traced
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from functrain import tree
from functrain.data.feed import as_is
from functrain.train import hyper as live

_TOGETHER = 2 * 2**30
"""Bytes of state up to which the members of a run go in one program."""


def make_step(task: Any) -> Callable[[Any, Any], tuple[Any, dict[str, Any]]]:
    """One step of a task: its live numbers bound, its update taken, the step counted."""

    def step(train_state, batch):
        key = jax.random.fold_in(train_state.key, train_state.step)
        train_state, metrics = live.bind(task, train_state.hyper).update(train_state, batch, key=key)
        return train_state.replace(step=train_state.step + 1), metrics

    return step


def make_body(task: Any, feed: Any, place: Callable[[Any], Any] = as_is) -> Callable[..., Any]:
    """A step that takes its batch from the feed's window and adds its metrics to a running sum."""
    step = make_step(task)

    def body(train_state, metrics, window):
        train_state, new = step(train_state, place(feed.batch(window, train_state.step)))
        return train_state, tree.add(metrics, new)

    return body


def make_chunk(task: Any, feed: Any, place: Callable[[Any], Any] = as_is) -> Callable[..., Any]:
    """Many steps in one program. The count is traced, so that every count runs the same code: bitwise the same state.

    A population is `jax.vmap(make_chunk(...), (0, 0, None, None))`.
    """
    body = make_body(task, feed, place)

    def chunk(train_state, metrics, window, count):
        return lax.fori_loop(0, count, lambda _, carry: body(*carry, window), (train_state, metrics))

    return chunk


def zero_metrics(task: Any, feed: Any, train_state: Any, window: Any) -> dict[str, Any]:
    """The running sum before any step; traced by shapes alone, so that nothing runs."""
    batch = jax.eval_shape(feed.batch, window, train_state.step)
    return tree.zeros_like(jax.eval_shape(make_step(task), train_state, batch)[1])


def choose_loop(primitives: set[str], backend: str) -> str:
    """How a chunk runs: "loop" in one program, or "step", a dispatch a step.

    On a CPU, XLA's convolution inside a loop is about four times slower than outside (jax-ml/jax issue 12868); all else
    is faster in a loop. A rule on the program, never a clock: the two differ in rounding where there are convolutions.
    """
    return "step" if backend == "cpu" and "conv_general_dilated" in primitives else "loop"


def choose_members(loop: str, state_bytes: int) -> str:
    """How several seeds go: "together" under vmap, or "in_turn".

    In turn where a dispatch is one step (convolutions on a CPU: under vmap they become grouped ones, which are slow
    there) and where the states of all members would not fit.
    """
    return "in_turn" if loop == "step" or state_bytes > _TOGETHER else "together"


def choose_chunk(flops: int, backend: str) -> int:
    """How many steps a dispatch takes: enough to hide its cost, few enough to stop soon when asked to (about 0.1 s)."""
    return int(min(100, max(1, (5e9 if backend == "cpu" else 5e12) // max(flops, 1))))
