"""Cross-entropy by blocks of the vocabulary: that of all logits, values and gradients, and never all of them held."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import gap, start, train

from functrain import _compat, losses
from functrain.config import ConfigError
from functrain.data import Windows
from functrain.losses_blocked import by_tokens, cross_entropy_of
from functrain.models import GPT, MLP
from functrain.optim import SGD, Learner
from functrain.precision import Autocast, BFloat16, Float32
from functrain.tasks import Language


def _case(vocabulary, dtype=jnp.float64, shape=(3, 5), features=7):
    rng = np.random.default_rng(0)
    hidden, table, bias = (
        jnp.asarray(rng.normal(size=s), dtype) for s in ((*shape, features), (vocabulary, features), (vocabulary,))
    )
    labels = jnp.asarray(rng.integers(0, vocabulary, shape))
    mask = jnp.asarray(rng.integers(0, 3, shape) / 2, dtype)
    return hidden, table, bias, labels, mask


def _plain(hidden, table, labels, *, bias=None, mask=None, smoothing=0.0):
    logits = hidden @ table.T + (0 if bias is None else bias)
    return losses.cross_entropy(logits, labels, mask=mask, smoothing=smoothing)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("vocabulary", "block"), [(12, 4), (11, 4), (11, 5), (13, 1), (6, 50), (300, 256)])
def test_it_is_the_plain_loss(vocabulary, block, smoothing):
    """Value, count, likeliest class and gradients by hidden states, table, bias and smoothing, to 1e-12."""
    hidden, table, bias, labels, mask = _case(vocabulary)

    def total(f, hidden, table, bias, smoothing, **given):
        mean = f(hidden, table, labels, bias=bias, mask=mask, smoothing=smoothing, **given)
        return mean.total / mean.count, mean

    live = smoothing and jnp.asarray(smoothing)
    by = (0, 1, 2, 3) if smoothing else (0, 1, 2)
    found, wanted = (
        jax.value_and_grad(lambda *a, f=f, g=g: total(f, *a, **g), by, has_aux=True)(hidden, table, bias, live)
        for f, g in ((cross_entropy_of, {"block": block}), (_plain, {}))
    )
    assert gap(found, wanted) < 1e-12
    bare, plain = (jax.grad(lambda t, f=f: f(hidden, t, labels).total)(table) for f in (cross_entropy_of, _plain))
    assert gap(bare, plain) < 1e-12
    likeliest = by_tokens(hidden, table, labels, bias=bias, block=block)[1]
    np.testing.assert_array_equal(likeliest, (hidden @ table.T + bias).argmax(-1))


def test_equal_logits_have_the_first_as_likeliest():
    """As argmax, over blocks too."""
    hidden, table = jnp.ones((1, 1)), jnp.array([0.0, 2.0, 1.0, 2.0, 2.0])[:, None]
    assert by_tokens(hidden, table, jnp.array([0]), block=2)[1].tolist() == [1]


def test_logits_large_and_small():
    """No overflow at 1e4, nor of -inf through a block; a label that is no class gives nan, a masked one nothing."""
    hidden, table, _, labels, _ = _case(11, jnp.float32)
    big = by_tokens(1e4 * hidden, table, labels, block=4)[0]
    each = -jax.nn.log_softmax(1e4 * hidden @ table.T)
    np.testing.assert_allclose(big, jnp.take_along_axis(each, labels[..., None], -1)[..., 0], rtol=1e-5, atol=1e-2)
    never = jnp.where(jnp.arange(11) < 5, -jnp.inf, 0)
    labels = jnp.maximum(labels, 5)

    def f(f, hidden, **given):
        return f(hidden, table, labels, bias=never, **given).total

    np.testing.assert_allclose(f(cross_entropy_of, hidden, block=4), f(_plain, hidden), rtol=1e-6)
    slopes = [
        jax.grad(lambda h, g=g, k=k: f(g, h, **k))(hidden) for g, k in ((cross_entropy_of, {"block": 4}), (_plain, {}))
    ]
    assert gap(*slopes) < 1e-5
    wrong = labels.at[0, 0].set(11).at[0, 1].set(-1)
    assert np.isnan(by_tokens(hidden, table, wrong, block=4)[0]).sum() == 2
    mask = jnp.ones(labels.shape).at[0, :2].set(0)
    kept = cross_entropy_of(hidden, table, wrong, mask=mask, block=4)
    assert kept.total == pytest.approx(float(cross_entropy_of(hidden, table, labels, mask=mask).total), rel=1e-6)
    slope = jax.grad(lambda h: cross_entropy_of(h, table, wrong, mask=mask, block=4).total)(hidden)
    assert not slope[0, :2].any()
    assert np.isfinite(slope).all()


def test_bfloat16_is_summed_in_float32():
    """Against float64, not worse than logits in bfloat16, and the loss far better; gradients in the given dtypes."""
    wide = _case(4000, jnp.float32, shape=(64,), features=64)
    hidden, table, _, labels, _ = (x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x for x in wide)

    def both(f, hidden, table):
        # Not compiled as one: XLA for a CPU would leave out a rounding to bfloat16 here and there.
        return jax.value_and_grad(lambda h, t: f(h, t, labels).total, (0, 1))(hidden, table)

    found, plain = both(cross_entropy_of, hidden, table), both(_plain, hidden, table)
    assert [x.dtype for x in found[1]] == [jnp.bfloat16] * 2
    assert found[0].dtype == jnp.float32
    with jax.enable_x64(True):
        exact = both(_plain, hidden.astype(float), table.astype(float))
    errors = [
        [gap(a.astype(float), b) for a, b in zip(jax.tree.leaves(f), jax.tree.leaves(exact))] for f in (found, plain)
    ]
    assert errors[0][0] < 1e-5
    assert errors[0][0] < 0.1 * errors[1][0]
    assert all(mine < 1.05 * theirs for mine, theirs in zip(errors[0], errors[1]))


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        (((2, 3), (5, 4), (2,)), r"hidden \(2, 3\) and table \(5, 4\): expected \[..., n\] and \[vocabulary, n\]"),
        (((2, 3), (5, 3), (3,)), r"hidden \(2, 3\) and labels \(3,\): expected labels \(2,\)"),
    ],
)
def test_shapes_must_fit(shapes, said):
    """Said in one line."""
    hidden, table, labels = (jnp.zeros(s) for s in shapes)
    with pytest.raises(ValueError, match=said):
        cross_entropy_of(hidden, table, labels.astype(int))
    with pytest.raises(ValueError, match=r"block: found 0"):
        cross_entropy_of(jnp.zeros((2, 3)), jnp.zeros((5, 3)), jnp.zeros(2, int), block=0)
    with pytest.raises(ValueError, match=r"bias \(3,\) and table \(5, 3\): expected bias \(5,\)"):
        cross_entropy_of(jnp.zeros((2, 3)), jnp.zeros((5, 3)), jnp.zeros(2, int), bias=jnp.zeros(3))


# -- the language task ----------------------------------------------------------------------------

VOCABULARY = 97


def _task(block, *, precision=None, **settings):
    model = GPT(inputs=(8,), outputs=VOCABULARY, layers=1, heads=2, width=16, **settings)
    learner = Learner(optimizer=SGD(peak_lr=0.5), precision=precision or Float32())
    return Language(model=model, learner=learner, vocabulary_block=block, label_smoothing=0.05)


def _feed():
    return Windows({"tokens": jax.random.randint(jax.random.key(5), (400,), 0, VOCABULARY)}, block=8, size=16, seed=0)


def _largest(f, *args):
    """The most elements that any array in a program has."""

    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (math.prod(v.aval.shape) for v in equation.outvars)
            for inner in _compat.inner_jaxprs(equation):
                yield from sizes(inner)

    return max(sizes(jax.make_jaxpr(f)(*args).jaxpr))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("tied", [True, False])
def test_a_language_model_trains_the_same(tied):
    """Ten steps and an evaluation: parameters and metrics equal but for rounding, segments and a mask of tokens too."""
    feed, found = _feed(), []
    for block in (0, 16):
        task = _task(block, tied=tied)
        first = start(task)
        outcome, log = train(task, feed, steps=10, chunk=5, log_every=5, train_state=first)
        batch = feed.batch(feed.window(3, 1), jnp.int32(3))
        segments = jnp.broadcast_to(1 + jnp.arange(8) // 4, (16, 8))
        more = {"mask": (batch["y"] % 3 > 0).astype("float32"), "segments": segments}
        metrics = task.evaluate(outcome.train_state, batch | more, key=jax.random.key(0))
        assert set(metrics) == {"loss", "accuracy", "perplexity"}
        found.append((outcome.train_state.players["model"].params, [line[2]["loss"] for line in log.lines], metrics))
    assert gap(found[1], found[0]) < 1e-5


def test_no_array_has_all_logits():
    """Nor a step of training nor one of evaluation; with the plain loss both do."""
    batch = {"x": jnp.zeros((16, 8), int), "y": jnp.zeros((16, 8), int)}
    for block, all_logits in ((0, True), (8, False)):
        task = _task(block)
        train_state = start(task)
        for f in (task.update, task.evaluate):
            largest = _largest(lambda ts, b, f=f: f(ts, b, key=jax.random.key(0)), train_state, batch)
            assert (largest >= 16 * 8 * VOCABULARY) == all_logits


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("precision", [BFloat16(), Autocast()])
def test_in_low_precision(precision):
    """Under each policy the gradient is that of float32 but for its rounding."""
    feed = _feed()
    batch = feed.batch(feed.window(0, 1), jnp.int32(0))
    gradients = []
    for policy in (precision, Float32()):
        task = _task(16, precision=policy)
        player = start(task).players["model"]
        goal = task.learner.goal(task.scored(train=True), player, {}, batch, key=jax.random.key(0))
        gradients.append(jax.jit(lambda params, goal=goal: goal.gradient(params)[0])(player.params)["tokens"])
    assert 1e-4 < gap(*gradients) < 2e-2


def test_a_model_that_gives_logits_alone_is_refused():
    """With its kind."""
    with pytest.raises(ConfigError, match=r"task\.vocabulary_block: a model of kind 'mlp' gives logits alone"):
        Language(vocabulary_block=8).assemble(MLP(inputs=(2,), outputs=3), lambda name: Learner())


def test_it_holds_less(quick):
    """XLA's own account of a step's temporaries, 512 tokens and 8,192 classes: less than a third."""
    del quick
    hidden, table, labels = jnp.zeros((512, 16)), jnp.zeros((8192, 16)), jnp.zeros(512, int)
    taken = []
    for f in (_plain, lambda *a: cross_entropy_of(*a, block=1024)):
        program: Any = jax.jit(jax.grad(lambda h, t, f=f: f(h, t, labels).total, (0, 1))).lower(hidden, table).compile()
        taken.append(program.memory_analysis().temp_size_in_bytes)
    assert taken[1] < taken[0] / 3
