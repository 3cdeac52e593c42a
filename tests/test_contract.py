"""The contract of tasks: three toys of quite different kinds through one loop that does not know them apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import digits_feed, gap, metrics_of, mlp_task, same, start, train
from toys import TinyALS, TinyControl, TinyGAN

from functrain.data import InOrder, Memory, Whole
from functrain.models import Pure
from functrain.observe import flops
from functrain.tasks import Classification
from functrain.train import state, step
from functrain.train.checkpoint import from_arrays, to_arrays

LAYOUT = ("NHWC", "HWIO", "NHWC")


def _gan():
    points = np.random.default_rng(0).normal([2.0, -1.0], 0.3, (400, 2)).astype(np.float32)
    return TinyGAN(), Memory({"x": jnp.asarray(points)}, 64), InOrder({"x": jnp.asarray(points[:64])}, 64)


def _als():
    rng = np.random.default_rng(1)
    table = (rng.normal(size=(20, 2)) @ rng.normal(size=(2, 15))).astype(np.float32)
    seen = (rng.random((20, 15)) < 0.8).astype(np.float32)
    arrays = {"x": jnp.asarray(table), "seen": jnp.asarray(seen)}
    return TinyALS(), Whole(arrays), None


def _control():
    return TinyControl(), Whole(), InOrder({}, 1)


TOYS = {"gan": _gan, "als": _als, "control": _control}


@pytest.mark.parametrize("toy", TOYS)
def test_chunks_and_resume_are_bitwise(toy):
    """Chunks of 1, 10 and 40, and a run cut at step 23 and taken up from its arrays, end in the same state and log."""
    task, feed, _ = TOYS[toy]()
    whole, log = train(task, feed, chunk=40)
    for chunk in (1, 10):
        other, other_log = train(task, feed, chunk=chunk)
        assert same(other.train_state, whole.train_state)
        assert other_log.lines == log.lines
    half, _ = train(task, feed, steps=23)
    restored = from_arrays(to_arrays(half.train_state), half.train_state)
    restored = jax.tree.map(jnp.copy, restored)
    assert not same(restored, whole.train_state)
    again, _ = train(task, feed, train_state=restored)
    assert same(again.train_state, whole.train_state)


def test_two_players_in_turn_learn():
    """The generator's mean comes near the data's, and both players' metrics are logged apart."""
    task, feed, evaluation = _gan()
    before = metrics_of(task, start(task), evaluation)["gap"]
    outcome, log = train(task, feed, steps=1500, chunk=100, log_every=500)
    after = metrics_of(task, outcome.train_state, evaluation)["gap"]
    assert after < before / 3  # it goes round the mean, as such games do
    assert {"d_loss", "g_loss", "d_gradient_norm", "g_learning_rate"} <= log.lines[-1][2].keys()


def test_a_closed_form_update_needs_no_learner():
    """Alternating least squares recovers a rank-2 table, through the same loop."""
    task, feed, _ = _als()
    _, log = train(task, feed, steps=60)
    assert log.lines[0][2]["loss"] > 10 * log.lines[-1][2]["loss"]
    assert log.lines[-1][2]["loss"] < 1e-3


def test_an_environment_inside_the_step_learns():
    """The policy brings the point home; the replay buffer filled by the step is in the state."""
    task, feed, evaluation = _control()
    before = metrics_of(task, start(task), evaluation)["distance"]
    outcome, _ = train(task, feed, steps=600, chunk=100)
    after = metrics_of(task, outcome.train_state, evaluation)["distance"]
    assert after < 0.05 * before
    assert (leaf := np.asarray(outcome.train_state.state["replay"])).any(axis=1).all(), leaf


@pytest.mark.parametrize("toy", ["gan", "control", "mlp"])
def test_a_population_of_learning_rates_under_vmap(toy, digits):
    """Three members of other seeds and rates at once: each equals, to rounding, the member trained alone."""
    if toy == "mlp":
        task, feed, path = mlp_task(), digits_feed(digits), "learner.optimizer.peak_lr"
    else:
        task, feed, _ = TOYS[toy]()
        path = {"gan": "generator_learner.optimizer.peak_lr", "control": "learner.optimizer.peak_lr"}[toy]
    rates, keys = jnp.array([1e-4, 1e-3, 1e-2]), jax.random.split(jax.random.key(5), 3)
    init = jax.jit(jax.vmap(lambda key, rate: state.init(task, key, {path: rate})))
    population = init(keys, rates)
    one = jax.tree.map(lambda x: x[1], population)
    zero = step.zero_metrics(task, feed, one, feed.window(0, 1))
    chunk = step.make_chunk(task, feed)
    zeros = jax.tree.map(lambda x: jnp.stack([x] * 3), zero)
    window, count = feed.window(0, 1), jnp.int32(30)
    together, metrics = jax.jit(jax.vmap(chunk, (0, 0, None, None)))(population, zeros, window, count)
    alone, _ = jax.jit(chunk)(one, zero, window, count)
    params = {name: player.params for name, player in together.players.items()}
    for name, player in alone.players.items():
        assert gap(jax.tree.map(lambda x: x[1], params[name]), player.params) < 1e-4
        moved = [gap(jax.tree.map(lambda x, i=i: x[i], params[name]), player.params) for i in (0, 2)]
        assert min(moved) > 1e-3  # the members do differ
    assert np.shape(metrics[next(iter(metrics))].total) == (3,)


def test_the_loop_names_no_task():
    """Nothing in functrain.train imports a model, a task or an experiment."""
    import ast
    from pathlib import Path

    import functrain.train as package

    for file in Path(package.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                known = ("functrain.tasks", "functrain.models", "functrain.experiment")
                assert not (node.module or "").startswith(known)


def test_a_step_at_a_time_for_convolutions(digits):
    """On a CPU a program with convolutions is dispatched a step at a time: the loop's result to 1e-6 after one step.

    The rule reads the program; one without convolutions keeps the loop. Chunks of 1, 10 and 40 are bitwise there too.
    """
    feed = digits_feed(digits)

    def convolution(params, x):
        y = jax.lax.conv_general_dilated(x[..., None], params["kernel"], (1, 1), "SAME", dimension_numbers=LAYOUT)
        return jax.nn.relu(y).mean((1, 2)) @ params["out"]

    def init(key):
        return {"kernel": jax.random.normal(key, (3, 3, 1, 8)) / 3, "out": jnp.zeros((8, 10))}

    task = Classification(model=Pure(init, convolution), learner=mlp_task().learner)
    names = {}
    for name, this in (("conv", task), ("mlp", mlp_task())):
        batch = jax.eval_shape(feed.batch, feed.arrays, jnp.int32(0))
        names[name] = flops.count(step.make_step(this), start(this), batch)[1]
    assert step.choose_loop(names["conv"], "cpu") == "step"
    assert step.choose_loop(names["conv"], "gpu") == step.choose_loop(names["mlp"], "cpu") == "loop"

    loop, _ = train(task, feed, steps=1, loop="loop")
    plain, _ = train(task, feed, steps=1, loop="step")
    assert gap(plain.train_state.players["model"].params, loop.train_state.players["model"].params) < 1e-6
    whole, log = train(task, feed, chunk=40, loop="step")
    for chunk in (1, 10):
        other, other_log = train(task, feed, chunk=chunk, loop="step")
        assert same(other.train_state, whole.train_state)
        assert other_log.lines == log.lines


def test_the_chunk_is_a_rule_on_the_flops():
    """More work in a step, fewer steps in a dispatch; between 1 and 100; no clock anywhere near."""
    assert [step.choose_chunk(n, "cpu") for n in (1, 10**8, 10**9, 10**12)] == [100, 50, 5, 1]
    assert "time" not in step.__dict__
