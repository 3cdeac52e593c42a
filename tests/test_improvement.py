"""What stands around an optimizer: averages of the parameters, sharpness-aware gradients, frozen parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import digits_feed, gap, metrics_of, mlp_task, same, start, train

from functrain.autodiff import SAM
from functrain.data import InOrder
from functrain.metrics import Mean
from functrain.optim import EMA, SGD, SWA, AdamW, Learner
from functrain.train.step import make_step


def quadratic(params, state, batch, *, key):
    """A loss whose gradient is easy: the mean of (x - w)^2 / 2 over the rows of x."""
    return Mean(0.5 * jnp.sum((batch["x"] - params["w"]) ** 2), jnp.asarray(float(len(batch["x"])))), state, {}


def updates(learner, count, w=(1.0, -2.0), batches=None):
    """The players after each of `count` updates."""
    rng = np.random.default_rng(0)
    player, players = learner.init({"w": jnp.array(w)}), []
    step = jax.jit(lambda player, x: learner.update(quadratic, player, {}, {"x": x}, key=jax.random.key(0))[0])
    for i in range(count):
        x = jnp.asarray(rng.normal(size=(4, 2)), jnp.float32) if batches is None else batches[i]
        player = step(player, x)
        players.append(player)
    return players


@pytest.mark.parametrize("warmup", [True, False])
def test_ema_is_its_formula(warmup):
    """The weights that evaluation uses, after each update, with the decay that rises and without."""
    players = updates(Learner(optimizer=SGD(peak_lr=0.3), average=EMA(decay=0.8, warmup=warmup)), 12)
    average = np.array([1.0, -2.0])
    for t, player in enumerate(players):
        decay = min(0.8, (1 + t) / (10 + t)) if warmup else 0.8
        average = decay * average + (1 - decay) * np.asarray(player.params["w"], float)
        found = Learner(average=EMA()).weights(player)["w"]
        np.testing.assert_allclose(found, average, rtol=1e-5)
        assert not np.allclose(found, player.params["w"], rtol=1e-3)


def test_swa_is_the_mean_of_the_last_part():
    """Before its start the parameters themselves; from there the mean of every second one."""
    learner = Learner(optimizer=SGD(peak_lr=0.3), average=SWA(start=0.5, every=2, steps=12))
    players = updates(learner, 12)
    for t, player in enumerate(players):
        counted = [np.asarray(p.params["w"]) for i, p in enumerate(players[: t + 1]) if i >= 6 and (i - 6) % 2 == 0]
        wanted = np.mean(counted, 0) if counted else player.params["w"]
        np.testing.assert_allclose(learner.weights(player)["w"], wanted, rtol=1e-5)


def test_an_average_ignores_what_is_not_finite():
    """A batch of nan changes neither parameters nor average."""
    learner = Learner(optimizer=SGD(peak_lr=0.3), average=EMA(decay=0.5))
    x = jnp.ones((4, 2))
    first, second = updates(learner, 2, batches=[x, x * jnp.nan])
    assert int(second.skipped) == 1
    assert same((first.params, first.average), (second.params, second.average))


def test_evaluation_uses_the_average(digits):
    """A run with an average and one without train alike, bit for bit, and are evaluated at different weights."""
    x, y = jax.device_put((digits.test["x"].astype("float32") / 16, digits.test["y"]))
    test, feed = InOrder({"x": x, "y": y}, 270), digits_feed(digits)
    plain, averaged = mlp_task(), mlp_task(average=EMA(decay=0.9))
    a, b = (train(task, feed, 40)[0].train_state for task in (plain, averaged))
    assert same(a.players["model"].params, b.players["model"].params)
    assert metrics_of(plain, a, test)["loss"] != metrics_of(averaged, b, test)["loss"]
    held = b.replace(players={"model": b.players["model"].replace(params=averaged.learner.weights(b.players["model"]))})
    assert metrics_of(plain, a.replace(players=held.players), test)["loss"] == metrics_of(averaged, b, test)["loss"]


@pytest.mark.parametrize("adaptive", [False, True])
def test_sam_is_the_gradient_at_the_worst_point(adaptive):
    """One update against the formula in NumPy; and value and metrics are those of the point itself."""
    w, x, rho, rate = np.array([1.0, -2.0]), np.random.default_rng(0).normal(size=(4, 2)), 0.3, 0.1
    learner = Learner(optimizer=SGD(peak_lr=rate), estimator=SAM(rho=rho, adaptive=adaptive))
    player = learner.init({"w": jnp.asarray(w, jnp.float32)})
    new, _, metrics = learner.update(quadratic, player, {}, {"x": jnp.asarray(x, jnp.float32)}, key=jax.random.key(0))

    gradient = w - x.mean(0)
    size = np.abs(w) if adaptive else 1.0
    worst = w + rho * size**2 * gradient / np.linalg.norm(size * gradient)
    np.testing.assert_allclose(new.params["w"], w - rate * (worst - x.mean(0)), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"].value, 0.5 * ((x - w) ** 2).sum(1).mean(), rtol=1e-5)


def test_sam_accumulated_is_sam_on_the_whole(digits):
    """Four micro-batches give the gradient of one batch, at both points."""
    feed = digits_feed(digits)
    states = []
    for accumulate in (1, 4):
        task = mlp_task(optimizer=SGD(peak_lr=0.1), estimator=SAM(), accumulate=accumulate)
        task = dataclasses.replace(task, model=dataclasses.replace(task.model, dropout=0.0))
        train_state = start(task)
        after = jax.jit(make_step(task))(train_state, feed.batch(feed.arrays, jnp.int32(0)))[0]
        states.append(after.players["model"].params)
    assert gap(*states) < 2e-6


def test_frozen_parameters_cost_and_change_nothing(digits):
    """Their values and no moments of them; XLA drops their gradients: the step has fewer matrix products."""
    from functrain.observe import flops

    feed = digits_feed(digits)
    tasks = [mlp_task(), mlp_task(optimizer=AdamW(peak_lr=3e-3, freeze=("layer0",)))]
    batch = feed.batch(feed.arrays, jnp.int32(0))
    counts = [flops.count(make_step(task), start(task), batch)[0] for task in tasks]
    assert counts[1] < 0.7 * counts[0]
    before = start(tasks[1])
    after = jax.jit(make_step(tasks[1]))(before, batch)[0].players["model"]
    assert same(before.players["model"].params["layer0"], after.params["layer0"])
    assert not same(before.players["model"].params["layer1"], after.params["layer1"])
    moments = sum(x.size for x in jax.tree.leaves(after.optimizer))
    assert moments < 2.2 * sum(x.size for x in jax.tree.leaves(after.params["layer1"]))
