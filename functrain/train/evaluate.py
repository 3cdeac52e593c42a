"""Evaluation over a whole split: a pure function of the state, summed over batches and divided once."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np

from functrain import tree
from functrain.config import Count, Size, configclass
from functrain.data.feed import InOrder, as_is
from functrain.metrics import Rows, join
from functrain.train import hyper as live
from functrain.train.later import Later, shape


@configclass
class Evaluate:
    """[evaluate]: when the validation examples are looked at, and what is read from them."""

    every: Count = 0
    """Steps between evaluations; 0 is once an epoch, but at most 50 times in a run."""
    batch_size: Size = 512
    """Examples at once; at most as many as there are."""
    monitor: str = ""
    """The validation metric by which the best step is chosen; empty is the loss."""
    mode: Literal["min", "max"] = "min"
    """Whether lower or higher is better."""
    patience: Count = 0
    """Evaluations in a row without a better one after which the run ends early; 0 is never."""


@dataclasses.dataclass
class Evaluation:
    """`evaluation(train_state) -> metrics`."""

    run: Callable[[Any], dict[str, Any]]
    compile: Callable[[Any], None]
    pending: Later | None = None

    def prepare(self, train_state: Any) -> None:
        """Have it compiled in a thread of its own, for a state of these shapes; who calls it waits until it is."""
        self.pending = Later(lambda: self.compile(train_state))
        self.pending.start()

    def __call__(self, train_state: Any) -> dict[str, Any]:
        if self.pending is not None:
            self.pending.result()
        return self.run(train_state)


def make_evaluate(task: Any, feed: InOrder, place: Callable[[Any], Any] = as_is, sharding: Any = None) -> Evaluation:
    """`evaluate(train_state) -> metrics` over every batch of a feed: sums on the device, rows joined on the host.

    place, sharding: cuts a batch over devices, and where what the host sends lies.
    """

    def measure(train_state, batch, i):
        key = jax.random.fold_in(train_state.key, i)
        return live.bind(task, train_state.hyper).evaluate(train_state, batch, key=key)

    return over_feed(measure, feed, place, sharding)


def make_ensemble(task: Any, feed: InOrder, place: Callable[[Any], Any] = as_is, sharding: Any = None) -> Evaluation:
    """`evaluate(train states) -> metrics` of several members as one: their predictions are averaged, then scored.

    task: one with `averaged(outputs of each member) -> outputs` beside `answers` and `loss`.
    """

    def measure(train_states, batch, i):
        outputs = [live.bind(task, one.hyper).answers(one, batch) for one in train_states]
        means, metrics = task.loss(task.averaged(outputs), batch, train=False)
        return metrics | {"loss": means}

    return over_feed(measure, feed, place, sharding)


def over_feed(
    measure: Callable[[Any, Any, Any], dict[str, Any]], feed: InOrder, place: Callable[[Any], Any], sharding: Any
) -> Evaluation:
    """`f(train_state) -> metrics`: the sum of `measure(train_state, batch, i)` over every batch of a feed."""

    def batch_metrics(train_state, arrays, i):
        metrics = measure(train_state, place(feed.batch(arrays, i)), i)
        rows = {name: metric for name, metric in metrics.items() if isinstance(metric, Rows)}
        return {name: metric for name, metric in metrics.items() if name not in rows}, rows

    def add(sums, train_state, arrays, i):
        new, rows = batch_metrics(train_state, arrays, i)
        return tree.add(sums, new), rows

    add = jax.jit(add, donate_argnums=0)  # from zero on, so that one program serves every batch

    def zero(train_state, arrays):
        return tree.zeros_like(jax.eval_shape(batch_metrics, train_state, arrays, np.int32(0))[0])

    zero = jax.jit(zero, out_shardings=sharding)

    def compile(train_state):
        """jax keeps what is compiled for these shapes, and finds it when `evaluate` asks."""
        arrays = jax.tree.map(shape, feed.arrays)
        zero.lower(train_state, arrays).compile()
        put = functools.partial(shape, sharding=sharding)
        sums = jax.tree.map(put, jax.eval_shape(zero, train_state, arrays))
        add.lower(sums, train_state, arrays, put(jax.ShapeDtypeStruct((), np.int32))).compile()

    def evaluate(train_state):
        sums, rows = zero(train_state, feed.arrays), []
        for i in range(len(feed)):
            sums, new = add(sums, train_state, feed.arrays, jax.device_put(np.int32(i), sharding))
            rows.append(new)
        return sums | {name: join([batch[name] for batch in rows]) for name in rows[0]}

    return Evaluation(evaluate, compile)
