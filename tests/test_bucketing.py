"""Bucketing and trimming: each example once an epoch, nothing but padding cut off, and training as without it."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Log, same, start

from functrain.data import Bucketed
from functrain.data.bucketing import choose, lengths_of, place
from functrain.data.packing import padded
from functrain.models import GPT
from functrain.optim import AdamW, Learner
from functrain.tasks import Language
from functrain.train import hyper
from functrain.train.loop import Best, Plan, run
from functrain.train.program import compile_program
from functrain.train.trim import trimmed

VOCABULARY, LONGEST, SIZE = 9, 12, 8
WIDTHS = (5, LONGEST)


def sentences(n=75, seed=0):
    """x, y, segments and mask [n, 12] of random tokens, most of them short."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.geometric(0.2, n), 2, LONGEST)
    return padded([rng.integers(1, VOCABULARY, k) for k in lengths], LONGEST)


def feed_of(arrays, size=SIZE, seed=0):
    return Bucketed.of(jax.device_put(arrays), dict.fromkeys(arrays, WIDTHS), size, seed)


def task_of(cls=Language, **learner):
    model = GPT(inputs=(LONGEST,), outputs=VOCABULARY, layers=1, heads=2, width=8)
    return cls(model=model, learner=Learner(**learner))


def test_lengths_end_at_the_last_token():
    """Zeros inside count, whatever is behind the second axis."""
    x = np.zeros((4, 5, 2))
    x[1, 0, 1], x[2, 4, 0], x[3, 2], x[3, 0] = 1, 1, 2, 3
    assert lengths_of(x).tolist() == [0, 1, 5, 3]
    assert lengths_of(x.any(2)).tolist() == [0, 1, 5, 3]


@pytest.mark.parametrize("buckets", [1, 2, 3, 4, 9])
def test_chosen_widths_leave_the_least_padding(buckets):
    """No other choice of widths, all of them tried, computes fewer places."""
    lengths = np.random.default_rng(0).geometric(0.3, 60)

    def places(widths):
        return np.array(widths)[np.searchsorted(widths, lengths)].sum()

    found, there = choose(lengths, buckets), sorted({*lengths.tolist()})
    assert len(found) == min(buckets, len(there))
    others = itertools.combinations(there[:-1], len(found) - 1)
    assert places(found) == min(places((*other, there[-1])) for other in others)


@pytest.mark.parametrize("counts", [(40, 25, 10), (16, 0, 8), (0, 0, 9), (3, 1, 20), (8,), (1, 1, 1, 30)])
def test_an_epoch_has_each_example_once(counts):
    """All different in each epoch, and each seen in some epoch; a batch's bucket is the widest of its examples."""
    n, size = sum(counts), 8
    bucket = np.repeat(np.arange(len(counts))[::-1], counts[::-1])  # of examples, the widest first
    seen, orders = np.zeros(n, int), set()
    for epoch in range(40):
        steps = [place(3, np.int64(epoch * (n // size) + s), counts, size, np) for s in range(n // size)]
        index = np.concatenate([i for i, _ in steps])
        assert len(set(index.tolist())) == len(index) == n // size * size
        assert all(bucket[i].max() == b for i, b in steps)
        np.add.at(seen, index, 1)
        orders.add(index.tobytes())
    assert seen.min() > 0
    assert seen.sum() == 40 * (n // size * size)
    assert len(orders) == 40 or n // size == 1
    # Few batches are of two buckets: one at each border.
    assert sum(len(set(bucket[i].tolist())) > 1 for i, _ in steps) < len(counts)


def test_batches_of_all_buckets_are_shuffled():
    """The bucket of an epoch's first step varies as the buckets' shares do, and says nothing of the second's."""
    firsts = np.array([[int(place(0, np.int64(40 * e + s), (200, 120), 8, np)[1]) for s in (0, 1)] for e in range(400)])
    assert abs(firsts.mean(0) - 120 / 320).max() < 5 * np.sqrt(0.24 / 400)
    assert abs(np.corrcoef(firsts.T)[0, 1]) < 5 / np.sqrt(400)


def test_host_and_device_agree():
    """Bit for bit, under jit and vmap over seeds."""
    counts = (40, 25, 10)
    on_device = jax.jit(jax.vmap(lambda seed, step: place(seed, step, counts, SIZE), (0, None)))
    for step in (0, 8, 9, 1000):
        index, bucket = on_device(np.arange(3, dtype=np.uint32), np.int32(step))
        for seed in range(3):
            host = place(seed, np.int64(step), counts, SIZE, np)
            assert (index[seed] == host[0]).all()
            assert bucket[seed] == host[1]


def test_a_batch_is_as_wide_as_its_bucket_says():
    """All that is cut off is 0, and the rows are whole examples of the data."""
    arrays = sentences()
    feed = feed_of(arrays)
    assert sum(feed.counts) == len(arrays["x"])
    rows = {a.tobytes() for a in arrays["x"]}
    batch_of = jax.jit(feed.batch)
    for step in range(2 * 75 // SIZE):
        batch = jax.device_get(batch_of(feed.window(step, 1), jnp.int32(step)))
        width = WIDTHS[int(batch["bucket"])]
        assert all((batch[name][:, width:] == 0).all() for name in arrays)
        assert {a.tobytes() for a in batch["x"]} <= rows
    other = jax.jit(dataclasses.replace(feed, seed=5).batch)(feed.window(0, 1), jnp.int32(0))
    assert (other["x"] != batch_of(feed.window(0, 1), jnp.int32(0))["x"]).any()


def test_source_and_target_have_widths_of_their_own():
    """An example is of the first bucket that holds all of its arrays; each array is cut to its own width."""
    x, y = np.zeros((3, 6), int), np.zeros((3, 9), int)
    x[0, :2], y[0, :2], x[1, :2], y[1, :5], x[2, :6], y[2, :1] = 1, 1, 2, 2, 3, 3
    arrays = {"x": x, "y": y, "z": np.arange(3)}
    feed = Bucketed.of(jax.device_put(arrays), {"x": (2, 6), "y": (4, 9)}, 1)
    assert feed.counts == (1, 2)

    @dataclasses.dataclass(frozen=True)
    class Shapes:
        def update(self, train_state, batch, *, key):
            return train_state, {"cells": jnp.asarray(batch["x"].size + 100 * batch["y"].size), "of": batch["z"][0]}

    cut = trimmed(Shapes(), feed.widths)
    batches = [jax.jit(feed.batch)(feed.window(s, 1), jnp.int32(s)) for s in range(3)]
    found = [cut.update(0, batch, key=None)[1] for batch in batches]
    assert {int(f["of"]): int(f["cells"]) for f in found} == {0: 402, 1: 906, 2: 906}


def test_widths_that_do_not_fit_are_named():
    arrays = sentences(20)
    for widths, said in (
        ({"z": (3, 12)}, "widths of 'z'; the arrays are: x, y"),
        ({"x": (7, 3, 12)}, "expected 3 that rise"),
        ({"x": (3, 12), "y": (12,)}, "expected 2 that rise"),
        ({"x": (3, 5)}, r"x\[\d+\]: length \d+; the widest bucket is 5"),
    ):
        with pytest.raises(ValueError, match=said):
            Bucketed.of(arrays, widths, 4)


class Gradients(Language):
    """The language task, whose update gives the gradient in place of a step."""

    def update(self, train_state, batch, *, key):
        def loss(params):
            mean = self.full_loss(params, {}, batch, key=None, train=True)[0]
            return mean.total / mean.count

        return train_state, jax.grad(loss)(train_state)


def largest_errors(dtype):
    """Of the gradients of trimmed batches of each bucket, beside those of the whole, by their largest element; and of
    batches cut to the width of the bucket below their own."""
    arrays, task = sentences(), task_of(Gradients)
    params = task.model.init(jax.random.key(0))[0]
    params = jax.tree.map(lambda p: ((5 if p.ndim > 1 else 1) * p).astype(dtype), params)
    feed = feed_of(arrays | {"mask": arrays["mask"].astype(dtype)})
    trim = trimmed(task, feed.widths)
    both = jax.jit(lambda p, b: (trim.update(p, b, key=None)[1], task.update(p, b, key=None)[1]))
    errors, too_narrow, seen, batch_of = [], [], set(), jax.jit(feed.batch)

    def error(ours, whole):
        return max(jax.tree.leaves(jax.tree.map(lambda a, b: float(abs(a - b).max() / abs(b).max()), ours, whole)))

    for step in range(9):
        batch = batch_of(feed.window(step, 1), jnp.int32(step))
        ours, whole = both(params, batch)
        assert jax.tree.leaves(ours)[0].dtype == dtype
        seen.add(int(batch["bucket"]))
        errors.append(error(ours, whole))
        if batch["bucket"] > 0:
            too_narrow.append(error(*both(params, batch | {"bucket": batch["bucket"] - 1})))
    assert seen == {0, 1}
    return max(errors), min(too_narrow)


@pytest.mark.usefixtures("quick")
def test_trimmed_gradients_are_those_of_the_whole_batch_in_float64(float64):
    """To 1e-12; not where tokens are cut off too."""
    right, wrong = largest_errors(jnp.float64)
    assert right < 1e-12
    assert wrong > 1e-3


@pytest.mark.usefixtures("quick")
def test_trimmed_gradients_are_those_of_the_whole_batch_in_float32():
    """To 1e-6 of each array's largest element."""
    assert largest_errors(jnp.float32)[0] < 1e-6


@pytest.mark.usefixtures("quick")
def test_the_result_depends_on_no_chunk_and_a_run_resumes():
    """One step a dispatch or forty, at once or after a stop: bitwise the same state and the same log."""
    feed = feed_of(sentences())
    task = trimmed(task_of(optimizer=AdamW(peak_lr=1e-2)), feed.widths)
    parts = compile_program(task, feed, start(task))

    def train(train_state, steps, chunk):
        log = Log()
        plan = Plan(steps=steps, chunk=chunk, log_every=10)
        return run(parts, train_state, parts.fresh(), plan, best=Best(), sinks=[log]).train_state, log.lines

    whole, lines = train(start(task), 40, 40)
    single, lines_of_single = train(start(task), 40, 1)
    assert same(whole, single)
    assert lines == lines_of_single
    assert same(whole, train(train(start(task), 23, 40)[0], 40, 40)[0])
    assert lines[-1][2]["loss"] < lines[0][2]["loss"]


def test_a_trimmed_task_is_the_task_but_for_its_update():
    """Live numbers have the same names, so that what is saved is the same; micro-batches are cut alike."""
    task = task_of(accumulate=2)
    trim = trimmed(task, dict.fromkeys(("x", "y", "segments", "mask"), WIDTHS))
    assert isinstance(trim, Language)
    assert type(trim).evaluate is type(task).evaluate
    assert hyper.numbers(trim) == hyper.numbers(task)
    assert dataclasses.asdict(trim) == dataclasses.asdict(task)
    feed = feed_of(sentences())
    batch = jax.eval_shape(feed.batch, feed.window(0, 1), jnp.int32(0))
    state = jax.eval_shape(lambda: start(trim))
    updated = jax.eval_shape(lambda s, b: trim.update(s, b, key=jax.random.key(0)), state, batch)[0]
    assert jax.tree.structure(updated) == jax.tree.structure(state)
