"""Attacks stay within reach and do harm, and the robust task learns to bear them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import gap

from functrain.autodiff import attacks
from functrain.data import Memory
from functrain.metrics import read, scalars
from functrain.models import MLP
from functrain.optim import SGD, Adam, Learner
from functrain.tasks import Classification
from functrain.tasks.robust import Robust
from functrain.train import state, step

pytestmark = pytest.mark.usefixtures("quick")

NORMS = pytest.mark.parametrize("norm", ["inf", "l2"])
DEFENCES = pytest.mark.parametrize("defence", ["none", "adversarial", "trades", "fast"])


def pixels(seed=0, shape=(7, 3, 5)):
    """Numbers of which some are exactly 0 or 1."""
    return jnp.asarray(np.clip(np.random.default_rng(seed).normal(0.5, 0.5, shape), 0, 1), jnp.float32)


def curved(x):
    """A loss that is not linear, [n]."""
    weights = jnp.asarray(np.random.default_rng(5).normal(size=x.shape[1:]), x.dtype)
    return jnp.sin(3 * (x * weights).reshape(len(x), -1).sum(-1)) + jnp.square(x).reshape(len(x), -1).mean(-1)


def length(change, norm):
    change = np.asarray(change, np.float64).reshape(len(change), -1)
    return np.abs(change).max(-1) if norm == "inf" else np.sqrt((change**2).sum(-1))


def within(z, x, epsilon, norm):
    """Whether all points lie in the ball, but for rounding, and are pixels."""
    z = np.asarray(z)
    return (length(z - np.asarray(x), norm) <= epsilon + 2e-7).all() and z.min() >= 0 and z.max() <= 1


# -- attacks --------------------------------------------------------------------------------------


@NORMS
def test_what_is_found_is_within_reach(norm):
    """Steps that are much too long, from every kind of start, stay in the ball and in 0..1."""
    x, ball = pixels(), {"epsilon": 0.3, "norm": norm}
    inside = x + 0.01 * (0.5 - x)

    @jax.jit
    def points(x, key):
        several = {"key": key, "steps": 5, "restarts": 2, "unroll": 0} | ball
        return [
            attacks.random_point(x, key=key, **ball),
            attacks.project(x + 5 * (pixels(1) - 0.5), x, **ball),
            attacks.fgsm(curved, x, **ball),
            attacks.pgd(curved, x, step_size=0.02, **several),
            attacks.pgd(curved, x, step_size=7.0, **several),
        ], attacks.project(inside, x, **ball)

    found, same = points(x, jax.random.key(1))
    assert all(within(z, x, 0.3, norm) for z in found)
    assert gap(same, inside) < 1e-7


@NORMS
def test_random_points_fill_the_ball(norm):
    """In two dimensions half of the points lie beyond what holds half of the ball; none is cut where no end is near."""
    x = jnp.full((4000, 2), 0.5)
    draw = jax.jit(lambda key: attacks.random_point(x, key=key, epsilon=0.4, norm=norm) - x)
    change = draw(jax.random.key(0))
    assert abs((length(change, norm) > 0.4 * np.sqrt(0.5)).mean() - 0.5) < 0.03
    assert np.abs(np.asarray(change).mean(0)).max() < 0.02


@NORMS
@pytest.mark.parametrize("targeted", [False, True])
def test_a_linear_loss_is_raised_as_far_as_can_be(norm, targeted):
    """The maximum over the ball is known: epsilon |w|_1, or epsilon |w|_2; the minimum is its negative."""
    x, w = jnp.full((3, 8), 0.5), jnp.asarray(np.random.default_rng(0).normal(size=8), jnp.float32)
    best = float(0.1 * (jnp.abs(w).sum() if norm == "inf" else jnp.linalg.norm(w))) * (-1 if targeted else 1)
    ball = {"epsilon": 0.1, "norm": norm, "targeted": targeted}
    many = {"step_size": 0.03, "steps": 12, "restarts": 2} | ball

    @jax.jit
    def raised(key):
        found = attacks.fgsm(lambda x: x @ w, x, **ball), attacks.pgd(lambda x: x @ w, x, key=key, **many)
        return [(z - x) @ w for z in found]

    once, often = raised(jax.random.key(0))
    np.testing.assert_allclose(once, best, rtol=1e-5)
    np.testing.assert_allclose(often, best, rtol=1e-2 if norm == "l2" else 1e-5)


@NORMS
def test_nothing_within_reach_is_x_itself(norm):
    """Epsilon 0 gives x back, bit for bit; also one that is traced."""
    x, settings = pixels(), {"key": jax.random.key(0), "step_size": 0.1, "steps": 3, "norm": norm}
    attack = jax.jit(lambda e: attacks.pgd(curved, x, epsilon=e, **settings))
    np.testing.assert_array_equal(attack(0.0), x)
    assert length(attack(0.2) - x, norm).min() > 0.1
    fixed = jax.jit(lambda x: attacks.fgsm(curved, x, epsilon=0.0, norm=norm))
    np.testing.assert_array_equal(fixed(x), x)


@NORMS
def test_the_key_says_all(norm):
    """One key gives one result, another gives another; the first of several restarts is the single one."""
    x, ball = pixels(), {"epsilon": 0.2, "step_size": 0.02, "steps": 3, "norm": norm, "unroll": 0}
    attack = jax.jit(lambda key, restarts: attacks.pgd(curved, x, key=key, restarts=restarts, **ball), static_argnums=1)
    a, b = jax.random.key(0), jax.random.key(1)
    one, three = attack(a, 1), attack(a, 3)
    np.testing.assert_array_equal(attack(a, 1), one)
    assert np.abs(one - attack(b, 1)).max() > 0.01
    same = np.all(np.asarray(one) == np.asarray(three), axis=(1, 2))
    assert 0 < same.sum() < len(x)
    assert (np.asarray(curved(three) - curved(one))[~same] > 0).all()


def test_a_loop_is_the_same_as_steps_written_out():
    """`unroll` decides how the program is written and nothing else, also over restarts."""
    x, ball = pixels(), {"epsilon": 0.2, "step_size": 0.02, "steps": 4, "restarts": 2, "key": jax.random.key(0)}
    programs = [jax.jit(lambda x, n=n: attacks.pgd(curved, x, unroll=n, **ball)) for n in (7, 8)]
    texts = [str(jax.make_jaxpr(program)(x)) for program in programs]
    assert ["while" in text or "scan" in text for text in texts] == [True, False]
    np.testing.assert_allclose(programs[0](x), programs[1](x), atol=1e-6)


def test_small_and_missing_gradients():
    """A loss without a slope leaves x where it is; one whose squares round to zero says where to go all the same."""
    x = pixels()
    attack = jax.jit(lambda size: attacks.fgsm(lambda x: size * curved(x), x, epsilon=0.2, norm="l2"))
    np.testing.assert_array_equal(attack(0.0), x)
    np.testing.assert_allclose(attack(1e-30), attack(1.0), atol=1e-6)
    assert length(attack(1.0) - x, "l2").min() > 0.1


@NORMS
def test_low_precision(norm):
    """The attack is computed in the dtype of x; what it finds is within reach up to that dtype's rounding."""
    x, key = pixels().astype(jnp.bfloat16), jax.random.key(0)
    attack = jax.jit(lambda e: attacks.pgd(curved, x, key=key, epsilon=e, step_size=e / 4, steps=4, norm=norm))
    found = attack(jnp.float32(0.2))
    assert found.dtype == jnp.bfloat16
    change = np.asarray(found, np.float64) - np.asarray(x, np.float64)
    assert 0.1 < length(change, norm).max() <= 0.2 + 2**-8 * (1 if norm == "inf" else np.sqrt(15))


def test_mistakes():
    """A mean in place of losses, restarts without a random start, a random start without a key."""
    x, ball = pixels(), {"epsilon": 0.2, "step_size": 0.1, "steps": 1}
    with pytest.raises(ValueError, match="expected one for each of 7"):
        jax.eval_shape(lambda x: attacks.fgsm(lambda x: curved(x).mean(), x, epsilon=0.1), x)
    with pytest.raises(ValueError, match="expected random_start"):
        attacks.pgd(curved, x, random_start=False, restarts=2, **ball)
    with pytest.raises(ValueError, match="needs a key"):
        attacks.pgd(curved, x, **ball)


# -- the task -------------------------------------------------------------------------------------


def robust(**settings):
    """The task with a small MLP, and 12 examples of which some do not count."""
    model = MLP(inputs=(6,), outputs=3, hidden=(5,), activation="tanh")
    settings = {"epsilon": 0.1, "steps": 2, "step_size": 0.02, "evaluate_steps": 3} | settings
    rng = np.random.default_rng(2)
    batch = {"x": pixels(3, (12, 6)), "y": jnp.asarray(rng.integers(0, 3, 12)), "mask": jnp.arange(12) % 5 > 0}
    return Robust(model=model, learner=Learner(optimizer=SGD(peak_lr=0.5)), **settings), batch


def started(task):
    return jax.jit(lambda: state.init(task, jax.random.key(0)))()


@pytest.mark.parametrize("defence", ["adversarial", "trades", "fast"])
def test_a_step_in_training(defence):
    """A compiled step with live numbers: it changes the parameters by its key alone, and the loss is a number."""
    task, batch = robust(defence=defence)
    train_state = started(task)
    advance = jax.jit(step.make_step(task))
    after, metrics = advance(train_state, batch)
    assert {"loss", "accuracy"} <= set(metrics)
    assert np.isfinite(read(metrics)["loss"])
    assert int(state.skipped(after)) == 0
    assert "epsilon" in train_state.hyper
    again, _ = advance(train_state, batch)
    other, _ = advance(train_state.replace(key=jax.random.key(9)), batch)
    params = [s.players["model"].params for s in (after, again, other, train_state)]
    assert gap(params[0], params[1]) == 0
    assert gap(params[0], params[2]) > 1e-6
    assert gap(params[0], params[3]) > 1e-3


def test_accumulated_equals_whole():
    """Without a random start, for each micro-batch draws noise of its own."""
    task, batch = robust(random_start=False)
    after = []
    for parts in (1, 3):
        cut = dataclasses.replace(task, learner=dataclasses.replace(task.learner, accumulate=parts))
        after.append(jax.jit(cut.update)(started(cut), batch, key=jax.random.key(1)))
    assert gap(after[0][0].players["model"].params, after[1][0].players["model"].params) < 2e-6
    for name in ("loss", "accuracy"):
        assert abs(read(after[0][1])[name] - read(after[1][1])[name]) < 2e-6


@dataclasses.dataclass(frozen=True)
class Reader:
    """A learner that reads the loss at the parameters as they are, and learns nothing."""

    def update(self, loss, player, state, batch, *, key):
        return player, state, {"loss": loss(player, state, batch, key=key)[0]}


def losses_read(task, batch, steps):
    """The loss that the learner is given at each of these steps."""
    params, _ = task.model.init(jax.random.key(0))
    task = dataclasses.replace(task, learner=Reader())

    @jax.jit
    def loss(at):
        train_state = state.TrainState(at, None, {}, {"model": params}, {})
        return task.update(train_state, batch, key=jax.random.key(1))[1]["loss"]

    return [read({"loss": loss(jnp.int32(at))})["loss"] for at in steps]


@DEFENCES
def test_epsilon_zero_is_classification(defence):
    """With nothing within reach every defence is cross-entropy."""
    task, batch = robust(defence=defence, epsilon=0.0)
    plain = Classification(model=task.model)
    assert abs(losses_read(task, batch, [0])[0] - losses_read(plain, batch, [0])[0]) < 1e-6


@pytest.mark.parametrize("step_size", [0.0, 0.04])
def test_epsilon_rises(step_size):
    """At update 2 of a ramp of 8 epsilon is 3/8 of what it will be, and a step that was given is as well."""
    task, batch = robust(ramp=8, step_size=step_size)
    flat = dataclasses.replace(task, ramp=0)
    less = dataclasses.replace(flat, epsilon=0.1 * 3 / 8, step_size=step_size * 3 / 8)
    third, full = losses_read(less, batch, [2])[0], losses_read(flat, batch, [9])[0]
    rising = losses_read(task, batch, [2, 7, 9])
    assert np.abs(np.subtract(rising, [third, full, full])).max() < 1e-6
    assert full - third > 1e-3


def test_what_is_masked_does_not_count():
    """Other numbers in the rows that do not count change no metric of an evaluation."""
    task, batch = robust(restarts=2, step_size=0.0)
    train_state, key = started(task), jax.random.key(1)
    evaluate = jax.jit(lambda batch: task.evaluate(train_state, batch, key=key))
    metrics = evaluate(batch)
    assert {"accuracy", "robust_accuracy", "loss", "robust_loss", "calibration", "confusion"} == set(metrics)
    assert float(metrics["robust_accuracy"].count) == float(batch["mask"].sum()) == 9
    off = batch["mask"][:, None]
    changed = batch | {"x": jnp.where(off, batch["x"], 1 - batch["x"]), "y": jnp.where(batch["mask"], batch["y"], 0)}
    assert gap(evaluate(changed), metrics) == 0
    numbers = scalars(read(metrics))
    assert numbers["robust_loss"] > numbers["loss"] + 0.01
    harmless = dataclasses.replace(task, epsilon=0.0, restarts=1)
    metrics = scalars(read(jax.jit(harmless.evaluate)(train_state, batch, key=key)))
    assert metrics["robust_accuracy"] == metrics["accuracy"]
    assert abs(metrics["robust_loss"] - metrics["loss"]) < 1e-6
    without = dataclasses.replace(task, evaluate_steps=0)
    assert "robust_accuracy" not in jax.eval_shape(lambda b: without.evaluate(train_state, b, key=key), batch)


def one_strong_many_weak(n, seed):
    """Tsipras et al. 2019, section 2.1: one column that is right 9 times in 10, and 60 weak ones that can be moved."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    side = 2 * y - 1
    strong = 0.5 + 0.3 * side * np.where(rng.random(n) < 0.9, 1, -1)
    weak = 0.5 + 0.04 * side[:, None] + 0.1 * rng.normal(size=(n, 60))
    x = np.clip(np.concatenate([strong[:, None], weak], 1), 0, 1)
    return {"x": jnp.asarray(x, jnp.float32), "y": jnp.asarray(y)}


def test_a_defence_defends():
    """Plain training leans on the weak columns, which an attack turns round; each defence on the strong one."""
    train, test = one_strong_many_weak(1024, 0), one_strong_many_weak(1000, 1)
    found = {}
    for defence in ("none", "adversarial", "fast", "trades"):
        task = Robust(
            defence=defence,
            model=MLP(inputs=(61,), outputs=2, hidden=()),
            learner=Learner(optimizer=Adam(peak_lr=0.05)),
            epsilon=0.1,
            steps=5,
            evaluate_steps=20,
            unroll=0,
        )
        feed, train_state = Memory(train, 64, 0), started(task)
        chunk = jax.jit(step.make_chunk(task, feed))
        zero = step.zero_metrics(task, feed, train_state, feed.arrays)
        train_state, _ = chunk(train_state, zero, feed.arrays, 200)
        found[defence] = scalars(read(jax.jit(task.evaluate)(train_state, test, key=jax.random.key(2))))
    accuracy = {name: (numbers["accuracy"], numbers["robust_accuracy"]) for name, numbers in found.items()}
    assert accuracy["none"][1] < 0.35, accuracy
    for defence in ("adversarial", "fast", "trades"):
        assert accuracy[defence][1] > 0.85, accuracy
