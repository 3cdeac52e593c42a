"""Rows: metrics that are no sums, and training batches that are augmented."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from functrain import losses, tree
from functrain.building import build
from functrain.built import compile
from functrain.config import Source, configclass, parse
from functrain.data import Augmented, Digits, InOrder, Memory
from functrain.experiment import Experiment
from functrain.metrics import Mean, Rows, join, read, scalars
from functrain.models import MLP
from functrain.optim import Learner
from functrain.tasks import Classification
from functrain.train import state
from functrain.train.evaluate import make_evaluate
from functrain.train.loop import Best, run
from functrain.train.members import pooled


@struct.dataclass
class Median(Rows):
    """The median of a value: no sum tells it."""

    parts: ClassVar[tuple[str, ...]] = ("median", "rows")

    values: Any
    mask: Any

    def numbers(self):
        return {"median": np.median(self.values), "rows": len(self.values)}


class Scored(Classification):
    """A classifier that has the median of its largest logit."""

    def evaluate(self, train_state, batch, *, key):
        metrics = super().evaluate(train_state, batch, key=key)
        logits = self.outputs_of(train_state, batch["x"])
        return metrics | {"score": Median(logits.max(-1), batch["mask"])}


def scored(digits, size):
    task = Scored(model=MLP(inputs=(8, 8), outputs=10, hidden=(8,)), learner=Learner())
    train_state = state.init(task, jax.random.key(0))
    feed = InOrder(jax.device_put(digits.test), size, Digits().prepare)
    return task, train_state, make_evaluate(task, feed)(train_state)


@pytest.mark.parametrize("size", [7, 64, 500])
def test_rows_are_those_of_the_whole_split(digits, size):
    """Whatever the batches, and the rows that fill up the last: the median is that of every example once."""
    task, train_state, metrics = scored(digits, size)
    x = Digits().prepare({"x": jnp.asarray(digits.test["x"])})["x"]
    expected = np.median(np.asarray(task.outputs_of(train_state, x)).max(-1))
    found = scalars(read(metrics))
    assert found["score_rows"] == len(x)
    np.testing.assert_allclose(found["score_median"], expected, rtol=1e-6)
    assert 0 < found["accuracy"] < 1


def test_rows_of_members_are_joined(digits):
    """For the pictures of several seeds: sums are added, rows come one after another."""
    _, _, one = scored(digits, 64)
    both = pooled([one, one])
    assert scalars(read(both))["score_rows"] == 2 * len(digits.test["x"])
    np.testing.assert_array_equal(both["loss"].count, 2 * one["loss"].count)
    assert pooled(one) is one


def test_join_keeps_order_and_drops_what_is_masked():
    """Rows in the order of the batches."""
    parts = [Median(jnp.array([1.0, 2.0]), jnp.array([1.0, 0.0])), Median(jnp.array([3.0, 4.0]), jnp.array([0.5, 1.0]))]
    assert join(parts).values.tolist() == [1.0, 3.0, 4.0]


class Halves(Scored):
    """A classifier whose loss has two parts."""

    def loss(self, outputs, batch, *, train):
        mean, metrics = super().loss(outputs, batch, train=train)
        return {"first": mean, "second": Mean(3 * mean.total, mean.count)}, metrics


def test_a_loss_of_parts_is_their_sum_in_evaluation_too(digits):
    """By the name of loss, so that the best step is chosen by it."""
    task = Halves(model=MLP(inputs=(8, 8), outputs=10, hidden=(8,)), learner=Learner())
    feed = InOrder(jax.device_put(digits.test), 64, Digits().prepare)
    found = scalars(read(make_evaluate(task, feed)(state.init(task, jax.random.key(0)))))
    assert found["loss"] == pytest.approx(found["first"] + found["second"], rel=1e-6)
    assert found["second"] == pytest.approx(3 * found["first"], rel=1e-6)


# -- augmented batches ----------------------------------------------------------------------------


@configclass
class Noise:
    """Adds normal numbers."""

    kind: str = "noise"

    def apply(self, batch, *, key):
        return batch | {"x": batch["x"] + jax.random.normal(key, batch["x"].shape)}


def test_an_augmented_batch_is_a_function_of_seed_and_step():
    """The same again for the same seed and step, otherwise for another; the order stays; normalised last."""
    memory = Memory({"x": jnp.arange(20.0)}, size=4, seed=3)
    feed = Augmented(memory, (Noise(), Noise()), lambda batch: batch | {"x": batch["x"] * 10}, seed=3)
    window = feed.window(0, 1)
    plain, batch = memory.batch(window, 5)["x"], feed.batch(window, 5)["x"]
    noise = batch / 10 - plain
    np.testing.assert_array_equal(feed.batch(window, 5)["x"], batch)
    np.testing.assert_array_equal(jax.jit(feed.batch)(window, jnp.int32(5))["x"] > 0, batch > 0)
    assert 0.1 < np.std(noise) < 5
    others = [
        feed.batch(window, 6)["x"] / 10 - memory.batch(window, 6)["x"],
        dataclasses.replace(feed, seed=4).batch(window, 5)["x"] / 10
        - dataclasses.replace(memory, seed=4).batch(window, 5)["x"],
    ]
    for other in others:
        assert not np.isclose(noise, other).any()
    one = dataclasses.replace(feed, augments=(Noise(),)).batch(window, 5)["x"] / 10 - plain
    assert not np.isclose(noise - one, one).any()  # the second has its own numbers


SMALL = {
    "task": {"kind": "classification"},
    "model": {"kind": "mlp", "hidden": [16]},
    "data": {"kind": "digits", "batch_size": 64},
    "augment": [{"kind": "crop", "padding": 1}, {"kind": "mixup"}],
    "train": {"steps": 12, "log_every": 4},
    "observe": {"tensorboard": False},
}


def trained(**train):
    built = build(parse(Experiment, Source(SMALL | {"train": SMALL["train"] | train})))
    compiled = compile(built)
    return built, run(compiled.program, compiled.train_state, compiled.metrics, built.plan, best=Best()).train_state


@pytest.mark.usefixtures("quick")
def test_augmented_runs_do_not_depend_on_chunks():
    """One step a dispatch and twelve: bitwise the same; several seeds in turn are the runs of each seed."""
    _, one = trained(chunk=1)
    _, many = trained(chunk=12)
    _, both = trained(seeds=2, members="in_turn")
    _, second = trained(seed=1)
    for a, b in ((one, many), (both[0], one), (both[1], second)):
        for path, leaf in tree.by_path(a.players).items():
            np.testing.assert_array_equal(leaf, tree.by_path(b.players)[path], err_msg=path)


def test_mixed_labels_weigh_in_the_loss():
    """share l(y) + (1 - share) l(y_mixed), for every example; counted as before."""
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
    y, other, share = jnp.array([0, 1, 2]), jnp.array([3, 1, 0]), jnp.array([0.2, 0.5, 1.0])
    mask = jnp.array([1.0, 0.0, 1.0])
    batch = {"y": y, "y_mixed": other, "share": share, "mask": mask}
    mean, _ = Classification(label_smoothing=0.1).loss(logits, batch, train=True)
    rows = []
    for i in range(3):
        own, mixed = (losses.cross_entropy(logits[i : i + 1], t[i : i + 1], smoothing=0.1).value for t in (y, other))
        rows.append(share[i] * own + (1 - share[i]) * mixed)
    np.testing.assert_allclose(mean.value, (rows[0] + rows[2]) / 2, rtol=1e-6)
    assert float(mean.count) == 2.0
