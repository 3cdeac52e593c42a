"""The learner: guard, loss scale, decay, clipping; what a step that is not finite may touch."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import digits_feed, leaves, mlp_task, same, start, train

from functrain.config import ConfigError
from functrain.data import Memory
from functrain.metrics import Mean, mean_of, read
from functrain.models import MLP
from functrain.optim import SGD, Adam, AdamW, Cosine, Learner, Linear
from functrain.precision import BFloat16, Float16, LossScale
from functrain.tasks import Classification
from functrain.train import step


def _poisoned(digits, row=7):
    """The digits with nan in one row: one step of each epoch is not finite."""
    x = (digits.train["x"] / 16).astype("float32")
    x[row] = np.nan
    return Memory({"x": jnp.asarray(x), "y": jnp.asarray(digits.train["y"])}, 32)


def test_a_step_that_is_not_finite_changes_nothing_but_its_count(digits):
    """Parameters, moments and state stay as they were, bit for bit; the metrics leave the step out."""
    task = mlp_task()
    one_step = jax.jit(step.make_step(task))
    before = start(task)
    batch = digits_feed(digits).batch(digits_feed(digits).arrays, jnp.int32(0))
    bad = batch | {"x": batch["x"].at[3, 2, 2].set(jnp.nan)}
    after, metrics = one_step(before, bad)
    assert same(after.players["model"].replace(skipped=jnp.int32(0)), before.players["model"])
    assert int(after.players["model"].skipped) == 1
    assert int(after.step) == 1
    assert all(float(x) == 0 for metric in metrics.values() for x in jax.tree.leaves(metric))
    good, metrics = one_step(before, batch)
    assert not same(good.players["model"].params, before.players["model"].params)
    assert all(np.isfinite(value) for value in read(metrics).values())


def test_a_poisoned_example_costs_one_step_an_epoch(digits):
    """Training goes on around it: 39 steps an epoch, one skipped in each, everything finite."""
    outcome, log = train(mlp_task(), _poisoned(digits), steps=39 * 3, chunk=39, log_every=39)
    player = outcome.train_state.players["model"]
    assert int(player.skipped) == 3
    assert all(np.isfinite(x).all() for x in leaves(player.params))
    assert all(np.isfinite(list(values.values())).all() for _, _, values in log.lines)


def test_float16_finds_its_scale_and_skips_on_overflow(digits):
    """An absurd first scale overflows, is halved until it does not, and training goes on."""
    task = mlp_task(precision=Float16(initial_scale=2.0**40, growth_every=50))
    outcome, log = train(task, digits_feed(digits), steps=200, chunk=50, log_every=100)
    player = outcome.train_state.players["model"]
    assert 1 <= int(player.skipped) <= 40
    assert 1 <= float(player.scale.value) < 2**40
    assert log.lines[-1][2]["loss"] < 0.6 * log.lines[0][2]["loss"]
    assert all(x.dtype == np.float32 for x in leaves(player.params))


def test_precision_reaches_the_matrix_products(digits):
    """Under a 16-bit policy every matrix product takes that dtype, and loss and norms stay in float32."""
    from functrain import _compat

    for policy, dtype in ((BFloat16(), "bfloat16"), (Float16(), "float16")):
        task = mlp_task(precision=policy)
        train_state, feed = start(task), digits_feed(digits)
        batch = jax.eval_shape(feed.batch, feed.arrays, train_state.step)
        dtypes = []

        def walk(jaxpr, dtypes=dtypes):
            for equation in jaxpr.eqns:
                if equation.primitive.name == "dot_general":
                    dtypes.append(equation.invars[0].aval.dtype.name)
                for inner in _compat.inner_jaxprs(equation):
                    walk(inner)

        walk(_compat.live_jaxpr(jax.make_jaxpr(step.make_step(task))(train_state, batch)))
        assert dtypes
        assert set(dtypes) == {dtype}
        _, metrics = jax.eval_shape(step.make_step(task), train_state, batch)
        assert metrics["loss"].total.dtype == jnp.float32


def test_the_loss_scale_follows_its_rule():
    """Doubled after growth_every good steps in a row, halved at once, and counting anew after either."""
    scale, seen = LossScale(jnp.float32(8), jnp.int32(0)), []
    for finite in [1, 1, 1, 1, 0, 1, 1, 1, 0, 0]:
        scale = scale.updated(jnp.bool_(finite), 3)
        seen.append(float(scale.value))
    assert seen == [8, 8, 16, 16, 8, 8, 8, 16, 8, 4]
    top = LossScale(jnp.float32(2.0**127), jnp.int32(0)).updated(True, 1)
    bottom = LossScale(jnp.finfo(jnp.float32).tiny, jnp.int32(0)).updated(False, 1)
    assert (float(top.value), float(bottom.value)) == (2.0**127, 2.0**-126)  # never inf, never 0: it could not return


def _quadratic(params, state, batch, *, key):
    return Mean(sum(jnp.sum(p**2) for p in jax.tree.leaves(params)) / 2, jnp.ones(())), state, {}


def test_decay_and_clipping_touch_what_they_say():
    """By default one-axis parameters do not decay; a pattern chooses others; the clip bounds the whole norm."""
    params = {"layer0": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    zero = jax.tree.map(jnp.zeros_like, params)

    def decayed(optimizer):
        updates, _ = optimizer.build().update(zero, optimizer.build().init(params), params)
        return {path: float(np.abs(leaf).max()) for path, leaf in zip(("bias", "kernel"), leaves(updates))}

    assert decayed(AdamW(peak_lr=0.5, weight_decay=0.1)) == pytest.approx({"bias": 0.0, "kernel": 0.05})
    assert decayed(AdamW(peak_lr=0.5, weight_decay=0.1, decay=("bias",))) == pytest.approx({"bias": 0.05, "kernel": 0})
    assert decayed(SGD(peak_lr=0.5, weight_decay=0.1)) == pytest.approx({"bias": 0.0, "kernel": 0.05})
    with pytest.raises(ConfigError, match=r"pattern 'gamma' matches no parameter; there are: layer0/bias"):
        AdamW(decay=("gamma",)).check(params)
    learner = Learner(optimizer=SGD(peak_lr=1.0, clip_norm=0.1))
    player, _, metrics = learner.update(_quadratic, learner.init(params), {}, {}, key=jax.random.key(0))
    moved = np.sqrt(sum(((1 - x) ** 2).sum() for x in leaves(player.params)))
    assert moved == pytest.approx(0.1, rel=1e-5)
    assert read(metrics)["gradient_norm"] == pytest.approx(np.sqrt(6), rel=1e-6)  # before clipping


def test_schedules_reach_their_ends():
    """Warmup rises from peak / warmup to the peak; linear and cosine end at `final`; later updates stay there."""
    for schedule in (Linear(warmup=4, steps=20, final=0.1), Cosine(warmup=4, steps=20, final=0.1)):
        share = [float(schedule.share(i)) for i in range(25)]
        assert share[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
        assert share[4] == pytest.approx(1.0)
        assert share[12] == pytest.approx(0.55)
        assert share[20:] == pytest.approx([0.1] * 5)
    assert Adam(schedule=Cosine(warmup=2)).sized(100).schedule.steps == 100


def test_live_numbers_equal_constants_and_can_be_swept(digits):
    """A rate swept to another value gives the run that was configured with it."""
    feed = digits_feed(digits)
    swept = start(mlp_task(), sweep={"learner.optimizer.peak_lr": 1e-2})
    a, _ = train(mlp_task(), feed, train_state=swept)
    task = Classification(model=mlp_task().model, learner=Learner(optimizer=AdamW(peak_lr=1e-2)))
    b, _ = train(task, feed)
    assert same(a.train_state.players, b.train_state.players)
    with pytest.raises(ValueError, match="AdamW has no number 'peek'; it has: peak_lr"):
        start(mlp_task(), sweep={"learner.optimizer.peek": 1.0})


def test_masked_values_that_are_not_finite_count_nothing():
    """A mask selects: nan under it is no nan in the mean."""
    assert float(mean_of(jnp.array([1.0, jnp.nan, 3.0]), jnp.array([1.0, 0.0, 1.0])).value) == 2.0


def test_a_model_of_its_own_dtype_keeps_it():
    """Parameters in bfloat16 stay so through a step."""
    model = MLP(inputs=(3,), outputs=2, hidden=(4,))
    task = Classification(model=model, learner=Learner())
    train_state = start(task)
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), train_state.players["model"].params)
    train_state = train_state.replace(players={"model": task.learner.init(low)})
    batch = {"x": jnp.ones((4, 3)), "y": jnp.zeros(4, jnp.int32)}
    after, _ = jax.jit(step.make_step(task))(train_state, batch)
    assert {str(x.dtype) for x in jax.tree.leaves(after.players["model"].params)} == {"bfloat16"}


@pytest.mark.parametrize("optimizer", [SGD(momentum=0.9), Adam(), AdamW()], ids=lambda o: o.kind)
def test_sixty_four_bit_types(optimizer):
    """With them enabled, a model made there is float64 throughout, and float32 parameters stay float32."""
    with jax.enable_x64(True):
        task = Classification(model=MLP(inputs=(3,), outputs=2, norm="layer"), learner=Learner(optimizer=optimizer))
        train_state = start(task)
        batch = {"x": jnp.ones((4, 3)), "y": jnp.zeros(4, int)}
        for dtype in (jnp.float64, jnp.float32):
            params = jax.tree.map(lambda x, dtype=dtype: x.astype(dtype), train_state.players["model"].params)
            this = train_state.replace(players={"model": task.learner.init(params)})
            after, _ = jax.jit(step.make_step(task))(this, batch)
            moved = jax.tree.leaves((after.players["model"].params, after.players["model"].optimizer))
            assert {x.dtype for x in moved if jnp.issubdtype(x.dtype, jnp.floating)} == {jnp.dtype(dtype)}
        assert {x.dtype for x in jax.tree.leaves(train_state.players["model"].params)} == {jnp.dtype(jnp.float64)}


def test_each_step_has_a_key_of_its_own():
    """The key of a step is fold_in(root key, step): other units are dropped each step, the same ones in a repeat."""

    @dataclass(frozen=True)
    class Dice:
        learners = {"none": None}  # noqa: RUF012 - a constant

        def init(self, key):
            return {"none": {}}, {}

        def update(self, train_state, batch, *, key):
            return train_state, {"drawn": Mean(jax.random.uniform(key), jnp.ones(()))}

    task, drawn = Dice(), []
    train_state = root = start(task)
    for i in range(4):
        train_state, metrics = jax.jit(step.make_step(task))(train_state, {})
        drawn.append(float(metrics["drawn"].total))
        assert drawn[-1] == float(jax.random.uniform(jax.random.fold_in(root.key, i)))
    assert len(set(drawn)) == 4


def test_the_logged_loss_weighs_by_what_was_counted():
    """Two steps, one of four examples and one of one: the logged loss is the mean over the five."""
    task = mlp_task()
    train_state, rng = start(task), np.random.default_rng(0)
    total, wanted = None, []
    for counted in (4, 1):
        batch = {"x": rng.random((4, 8, 8), np.float32), "y": np.arange(4), "mask": (np.arange(4) < counted) * 1.0}
        key = jax.random.fold_in(train_state.key, train_state.step)
        means = task.full_loss(train_state.players["model"].params, {}, batch, key=key, train=True)[0]
        wanted.append((float(means.total), float(means.count)))
        train_state, metrics = task.update(train_state, batch, key=key)
        total = metrics if total is None else jax.tree.map(jnp.add, total, metrics)
    sums = np.sum(wanted, 0)
    assert float(read(total)["loss"]) == pytest.approx(sums[0] / sums[1], rel=1e-5)
    assert abs(sums[0] / sums[1] - np.mean([t / c for t, c in wanted])) > 1e-3  # a mean of means is something else
