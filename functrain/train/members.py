"""Several seeds in one run: members that differ in their seed alone and advance side by side.

together   one program, vmapped over the members: the train state and the metrics have a leading axis
in_turn    one program, dispatched for each member in turn: the train state and the metrics are tuples

A member in turn is bit for bit the run of its seed alone; members together agree with it to rounding.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from functrain import tree
from functrain.metrics import Rows, join, read, scalars
from functrain.train.program import Program


@dataclass(frozen=True)
class Seeded:
    """A feed whose seed travels in the window, so that one program serves every member.

    seeds: uint32, a number or one for each member, on the device.
    """

    feed: Any
    seeds: Any

    def window(self, step: int, count: int) -> Any:
        """(the feed's own window, the seeds)."""
        return self.feed.window(step, count), self.seeds

    def batch(self, window: Any, step: Any) -> Any:
        """The feed's batch, by the seed in the window."""
        arrays, seed = window
        feed = dataclasses.replace(self.feed, seed=seed) if hasattr(self.feed, "seed") else self.feed
        return feed.batch(arrays, step)


def in_turn(program: Program, feed: Any, seeds: Sequence[Any]) -> Program:
    """The program of one member as that of all: states, metrics and marks are tuples.

    program: compiled with `Seeded(feed, seed)` as its feed.
    seeds: of each member, as arrays on the device.
    """

    def advance(train_states, metrics, window, count):
        advanced = [program.advance(s, m, (window, seed), count) for s, m, seed in zip(train_states, metrics, seeds)]
        return tuple(zip(*advanced))

    return dataclasses.replace(
        program,
        advance=advance,
        window=feed.window,
        fresh=lambda: tuple(program.fresh() for _ in seeds),
        members=list,
        scalars=summary,
    )


def each(evaluate: Callable[[Any], Any], members: Callable[[Any], list[Any]]) -> Callable[[Any], list[Any]]:
    """An evaluation of every member, one after another."""
    return lambda train_state: [evaluate(member) for member in members(train_state)]


def together(program: Program, count: int) -> Program:
    """The program of stacked members, whose numbers are their mean and deviation.

    program: compiled with `stacked`.
    """
    members = unstacked(count)

    def numbers(metrics):
        return summary(metrics if isinstance(metrics, list) else members(jax.device_get(metrics)))

    return dataclasses.replace(program, members=members, scalars=numbers)


def unstacked(count: int) -> Callable[[Any], list[Any]]:
    """`members(tree) -> list`: a tree with a leading axis of members, on the device or the host, as one tree each."""

    def split(tree):
        return [jax.tree.map(operator.itemgetter(i), tree) for i in range(count)]

    on_device = jax.jit(split)

    def members(tree):
        on_host = all(isinstance(x, np.ndarray) for x in jax.tree.leaves(tree))
        return split(tree) if on_host else on_device(tree)

    return members


def summary(metrics: Sequence[Any]) -> dict[str, float]:
    """Mean and standard deviation over the members: {"loss": ..., "loss_deviation": ...}."""
    each = [scalars(read(member)) for member in metrics]
    found = {}
    for name in each[0]:
        values = [member[name] for member in each]
        found |= {name: float(np.mean(values)), f"{name}_deviation": float(np.std(values, ddof=1))}
    return found


def pooled(metrics: Any) -> Any:
    """The metrics of all members taken together, for pictures; of one member, its own."""
    if not isinstance(metrics, list):
        return metrics

    def both(a, b):
        return join([a, b]) if isinstance(a, Rows) else tree.add(a, b)

    return {name: functools.reduce(both, [member[name] for member in metrics]) for name in metrics[0]}
