"""Products in float8: bit for bit an independent computation, scales by a written-out rule, and runs that learn."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from helpers import assert_equal_runs, digits_feed, gap, leaves, same, start, train

from functrain import _compat, tree
from functrain.autodiff import SAM
from functrain.cli import main
from functrain.config import ConfigError
from functrain.data import Windows
from functrain.metrics import Mean
from functrain.models import GPT, MLP
from functrain.optim import SGD, AdamW, Learner
from functrain.precision import BFloat16, Float8, Float32
from functrain.precision.float8 import BACKWARD, FORWARD, History, Probe, product, quantised, scale_of, with_float8
from functrain.tasks import Classification, Language
from functrain.train import step

E4M3, E5M2, LOW = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.bfloat16
LARGEST = {E4M3: 448.0, E5M2: 57344.0}


# -- numpy's own ----------------------------------------------------------------------------------


def _scale(greatest, dtype):
    """The largest power of two by which a magnitude stays within the dtype, found by trying them."""
    if not math.isfinite(greatest):
        return math.nan
    if greatest == 0:
        return 1.0
    return max(2.0**k for k in range(-60, 61) if greatest * 2.0**k <= LARGEST[dtype] or k == -60)


def _low(x, dtype, scale):
    """x * scale in the dtype, cut to its largest, as float64."""
    scaled = np.clip(x.astype(np.float64) * scale, -LARGEST[dtype], LARGEST[dtype])
    return scaled.astype(np.float32).astype(dtype).astype(np.float64)


def _expected(x, kernel, slope, scales=None):
    """x @ kernel and both gradients, in float64 between roundings, rounded once to bfloat16."""
    arrays = ((x, E4M3), (kernel, E4M3), (slope, E5M2))
    found = [_scale(float(np.abs(a.astype(np.float64)).max()), dtype) for a, dtype in arrays]
    sx, sk, sg = scales or found
    x, kernel, slope = (_low(a, dtype, s) for (a, dtype), s in zip(arrays, (sx, sk, sg)))

    def product(a, b, scale):
        return (a @ b).astype(np.float32).astype(LOW).astype(np.float64) / scale

    dkernel = product(x.reshape(-1, x.shape[-1]).T, slope.reshape(-1, slope.shape[-1]), sx * sg)
    return product(x, kernel, sx * sk), product(slope, kernel.T, sg * sk), dkernel


def _arrays(shape, exponent, rng):
    """Numbers within four binades, of either sign, some 0: sums of products of a few are exact in float32."""
    x = (
        rng.uniform(1, 2, shape)
        * 2.0 ** rng.integers(exponent - 3, exponent + 1, shape)
        * rng.choice([-1, 0, 1], shape)
    )
    return x.astype(LOW)


@pytest.mark.parametrize("delayed", [False, True])
@pytest.mark.parametrize("exponents", [(0, 0, 0), (5, -7, -20), (-40, 3, 30)])
def test_it_is_numpys_bit_for_bit(delayed, exponents):
    """Forward and both gradients; with delayed scales some numbers are cut, and some vanish."""
    rng = np.random.default_rng(0)
    shapes = ((2, 4, 8), (8, 5), (2, 4, 5))
    x, kernel, slope = (_arrays(s, e, rng) for s, e in zip(shapes, exponents))
    scales = None
    if delayed:  # of a step in which all were other sizes
        greatest = (2.0 ** (exponents[0] - 1), 2.0 ** (exponents[1] + 5), 2.0 ** exponents[2])
        scales = [_scale(m, dtype) for m, dtype in zip(greatest, (E4M3, E4M3, E5M2))]

    @jax.jit
    def f(x, kernel, slope):
        y, pull = jax.vjp(lambda x, k: product(x, k, None if scales is None else jnp.array(scales), None)[0], x, kernel)
        return y, *pull(slope)

    found = f(*map(jnp.asarray, (x, kernel, slope)))
    for mine, theirs in zip(found, _expected(x, kernel, slope, scales)):
        assert mine.dtype == jnp.bfloat16
        np.testing.assert_array_equal(np.asarray(mine).astype(np.float64), theirs)
    assert np.abs(theirs).max() > 0


@pytest.mark.parametrize(("dtype", "theirs"), [(FORWARD, E4M3), (BACKWARD, E5M2)])
def test_scales_are_the_largest_that_fit(dtype, theirs):
    """Of magnitudes over 80 binades, at the edge and beside it; 1 for what is no magnitude."""
    rng = np.random.default_rng(0)
    most = np.float32(LARGEST[theirs])
    near = [most, np.nextafter(most, np.float32(0)), np.nextafter(most, np.float32(1e9)), most * 2.0**9]
    x = np.array([*(rng.uniform(1, 2, 200) * 2.0 ** rng.integers(-70, 80, 200)), *near, 0, np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(scale_of(jnp.asarray(x), dtype), [_scale(float(m), theirs) for m in x])


def test_what_is_too_large_is_cut_and_what_is_not_finite_is_seen():
    """The largest with the sign; an array with an infinity, scaled by itself, gives nan throughout."""
    x = jnp.array([1e4, -1e4, 448.0, 460.0, jnp.nan], jnp.bfloat16)
    found = np.asarray(quantised(x, FORWARD, jnp.float32(1))).astype(np.float32)
    np.testing.assert_array_equal(found, [448, -448, 448, 448, np.nan])
    x = jnp.array([[1.0, jnp.inf], [1.0, 1.0]], jnp.bfloat16)
    assert np.isnan(np.asarray(product(x, jnp.eye(2, dtype=x.dtype), None, None)[0]).astype(np.float32)).all()


def test_histories_follow_the_written_out_rule():
    """120 steps of growing, shrinking and missing magnitudes, and infinities: scales and all that is remembered."""
    rng, length = np.random.default_rng(1), 5
    history = History.start(length, jnp.full((2, 2), 3.0))
    remembered, scales = [[0.0] * length for _ in range(3)], [1.0, 128.0, 1024.0]
    update = jax.jit(lambda history, greatest: history.updated(greatest))
    for i in range(120):
        greatest = (1.5 ** (i % 40) * rng.uniform(0.1, 10, 3) * (rng.random(3) > 0.2)).astype(np.float32)
        if 60 <= i < 70:
            greatest[:] = 0
        if i in (30, 90):
            greatest[i % 3] = np.inf
        history = update(history, jnp.asarray(greatest))
        for j, dtype in enumerate((E4M3, E4M3, E5M2)):
            remembered[j] = [float(greatest[j]), *remembered[j][:-1]]
            if (most := max(remembered[j])) > 0 and math.isfinite(most):
                scales[j] = _scale(most, dtype)
        np.testing.assert_array_equal(history.greatest, remembered)
        np.testing.assert_array_equal(history.scale, scales)


# -- functions ------------------------------------------------------------------------------------


def _dtypes(f, *args):
    """The dtypes of the inputs of every matrix product in a program."""
    found = []

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                found.append("x".join(v.aval.dtype.name for v in equation.invars))
            for inner in _compat.inner_jaxprs(equation):
                walk(inner)

    walk(_compat.live_jaxpr(jax.make_jaxpr(f)(*args)))
    return found


def _language(policy, *, accumulate=1, remat="none", **settings):
    model = GPT(inputs=(16,), outputs=17, **{"layers": 1, "heads": 2, "width": 16, **settings})
    learner = Learner(optimizer=AdamW(peak_lr=3e-3), precision=policy, accumulate=accumulate, remat=remat)
    return Language(model=model, learner=learner)


def _text():
    rng = np.random.default_rng(0)
    tokens = np.cumsum(rng.integers(0, 2, 2000)) % 17
    return Windows({"tokens": jnp.asarray(tokens)}, block=16, size=16, seed=0)


@pytest.mark.usefixtures("quick")
def test_linear_layers_alone_are_in_float8():
    """Of a GPT: four a block, forward and twice backward; attention and the tied head in bfloat16."""
    feed = _text()
    batch = feed.batch(feed.window(0, 1), jnp.int32(0))
    e4m3, e5m2 = "float8_e4m3fn", "float8_e5m2"
    for policy, count in ((Float8(history=4), 8), (Float8(scaling="current", layers=("qkv/kernel$",)), 2)):
        task = _language(policy, layers=2)
        train_state = start(task)
        found = _dtypes(step.make_step(task), train_state, batch)
        by_x, by_kernel = found.count(f"{e5m2}x{e4m3}"), found.count(f"{e4m3}x{e5m2}")
        assert (found.count(f"{e4m3}x{e4m3}"), by_x, by_kernel) == (count, count, count)
        assert len(found) == 3 * (8 + 4 + 1)  # beside them attention's two a block, and the head
        assert sum("float8" in dtypes for dtypes in found) == 3 * count
        evaluated = _dtypes(lambda ts, b, t=task: t.evaluate(ts, b, key=jax.random.key(0)), train_state, batch)
        assert evaluated.count(f"{e4m3}x{e4m3}") == count


def test_what_is_no_product_with_a_kernel_stays():
    """In a loop, with batch axes, kept wide, asked for more, on the other side; nested in jit and moved it counts."""
    w, x = jnp.ones((4, 4), jnp.bfloat16), jnp.ones((2, 4), jnp.bfloat16)

    def f(params, x):
        w = params["w"]
        a = jax.lax.scan(lambda c, _: (c @ w, None), x, None, length=2)[0]
        b = jnp.einsum("bij,bjk->bik", x[None], w[None])
        c = x.astype(jnp.float32) @ w.astype(jnp.float32)
        d = jnp.matmul(x, w, precision="highest")
        return a.sum() + b.sum() + c.sum() + d.sum() + (w @ x.T).sum()

    assert not any("float8" in d for d in _dtypes(with_float8(f, ["w"]), {"w": w}, x))
    by = jax.jit(lambda w, x: x @ w.T)
    g = with_float8(lambda p, x: by(2 * p["w"], x) + by(p["w"], x), ["w"])
    assert [("float8" in d) for d in _dtypes(g, {"w": w}, x)] == [False, True]
    slope = jax.grad(lambda p: with_float8(lambda p, x: (x @ p["w"].T)[:, :2].sum(), ["w"])(p, x))({"w": w})
    np.testing.assert_array_equal(slope["w"].astype(float), [[2.0] * 4] * 2 + [[0.0] * 4] * 2)


def test_a_probe_gathers_the_greatest_of_all_uses():
    """Of a kernel that is used twice; in the place of its part alone."""

    def f(params, x, zeros):
        two = lambda p, x: (x @ p["w"]).sum() + 2 * (10 * x @ p["w"]).sum()  # noqa: E731
        return with_float8(two, ["w"], {"w": History.start(2)}, {"w": Probe(zeros, jnp.int32(1))})(params, x)

    params, x = {"w": -3 * jnp.ones((2, 2), jnp.bfloat16)}, jnp.ones((1, 2), jnp.bfloat16)
    found = jax.grad(f, 2)(params, x, jnp.zeros((3, 4)))
    np.testing.assert_array_equal(found, np.array([[10], [3], [2]]) * [[0, 1, 0, 0]])


# -- learners -------------------------------------------------------------------------------------


@functools.cache
def _observed(accumulate):
    """(the history after two steps, parameters before each, the batches) of a linear classifier."""
    learner = Learner(optimizer=SGD(peak_lr=0.1), precision=Float8(history=3), accumulate=accumulate)
    task = Classification(model=MLP(inputs=(6,), outputs=3, hidden=()), learner=learner)
    rng, train_state, seen, update = np.random.default_rng(2), start(task), [], jax.jit(task.update)
    for _ in range(2):
        batch = {"x": jnp.asarray(rng.normal(size=(8, 6)), jnp.float32), "y": jnp.asarray(rng.integers(0, 3, 8))}
        seen.append((train_state.players["model"].params["layer0"]["kernel"], batch))
        train_state, _ = update(train_state, batch, key=jax.random.key(0))
    return train_state.players["model"].history["layer0/kernel"], seen


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.usefixtures("quick")
def test_a_history_has_what_was_greatest(accumulate):
    """Inputs, kernels and gradients of the whole batch at each step, however it is cut; the newest first."""
    history, seen = _observed(accumulate)
    for i, (kernel, batch) in enumerate(reversed(seen)):
        x = np.asarray(batch["x"].astype(jnp.bfloat16)).astype(float)
        assert history.greatest[0, i] == np.abs(x).max()
        assert history.greatest[1, i] == np.abs(np.asarray(kernel.astype(jnp.bfloat16)).astype(float)).max()
        shares = jax.nn.softmax(x @ np.asarray(kernel))
        slope = np.abs(shares - jax.nn.one_hot(batch["y"], 3)).max() / 8
        assert history.greatest[2, i] == pytest.approx(float(slope), rel=0.02)
    assert not np.asarray(history.greatest[:, 2]).any()
    wanted = [_scale(float(m), dtype) for m, dtype in zip(history.greatest.max(1), (E4M3, E4M3, E5M2))]
    np.testing.assert_array_equal(history.scale, wanted)


def test_micro_batches_give_the_same_history():
    """Bit for bit, of inputs and kernels."""
    np.testing.assert_array_equal(_observed(1)[0].greatest[:2], _observed(4)[0].greatest[:2])


def test_a_step_that_is_not_finite_is_not_remembered():
    """History, scales and parameters stay; the step counts as skipped."""
    learner = Learner(optimizer=SGD(peak_lr=0.1), precision=Float8(history=3))
    player = learner.init({"kernel": jnp.ones((2, 2))})

    def loss(params, state, batch, *, key):
        return Mean((batch["x"] @ params["kernel"]).astype(jnp.float32).sum(), jnp.float32(1)), state, {}

    for x, moved in ((jnp.ones((4, 2)), True), (jnp.full((4, 2), jnp.inf), False), (jnp.full((4, 2), 2.0), True)):
        before = player
        player, _, _ = learner.update(loss, player, {}, {"x": x}, key=jax.random.key(0))
        assert same(before.history, player.history) != moved
        assert same(before.params, player.params) != moved
    assert int(player.skipped) == 1
    assert player.history["kernel"].greatest[0].tolist() == [2, 1, 0]


@pytest.mark.usefixtures("quick")
def test_another_policy_may_look_at_the_player():
    """float32's gradient of a player that remembers is that of one that does not."""
    batch = {"x": jnp.ones((4, 6)), "y": jnp.arange(4) % 3}
    found = []
    for policy in (Float8(), Float32()):
        task = Classification(model=MLP(inputs=(6,), outputs=3, hidden=()), learner=Learner(precision=policy))
        player, looking = start(task).players["model"], dataclasses.replace(task.learner, precision=Float32())
        goal = looking.goal(task.scored(train=True), player, {}, batch, key=jax.random.key(0))
        found.append(goal.gradient(player.params)[0])
    assert gap(*found) < 1e-6


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("scaling", ["delayed", "current"])
def test_a_gpt_learns_as_in_float32(scaling):
    """The mean losses of 80 steps, by twenties, within 1 % of float32's, and gradients within 10 % at the start."""
    feed, lines, gradients = _text(), {}, {}
    for policy in (Float32(), Float8(scaling=scaling, history=16)):
        task = _language(policy)
        train_state = start(task)
        batch = feed.batch(feed.window(0, 1), jnp.int32(0))
        player, key = train_state.players["model"], jax.random.key(0)
        goal = task.learner.goal(task.scored(train=True), player, {}, batch, key=key)
        gradients[policy.kind] = jax.jit(lambda params, goal=goal: goal.gradient(params)[0])(player.params)
        lines[policy.kind] = train(task, feed, steps=80, chunk=40, log_every=20, train_state=train_state)[1].lines
    mine, theirs = ([line[2]["loss"] for line in lines[kind]] for kind in ("float8", "float32"))
    assert theirs[-1] < 0.75 * theirs[0]
    np.testing.assert_allclose(mine, theirs, rtol=0.01)
    # Attention's output and feed-forward's down are scaled to be small; the key's bias has no gradient at all.
    kernels = [{p: g for p, g in tree.by_path(g).items() if p.endswith("kernel")} for g in gradients.values()]
    assert 0.005 < gap(kernels[1], kernels[0]) < 0.1


@pytest.mark.usefixtures("quick")
def test_blocks_computed_again_and_micro_batches():
    """With remat, with accumulation: the same step but for the rounding of sums."""
    feed, found = _text(), []
    batch = feed.batch(feed.window(0, 1), jnp.int32(0))
    for remat, accumulate in (("none", 1), ("blocks", 1), ("none", 2)):
        task = _language(Float8(history=4), remat=remat, accumulate=accumulate)
        train_state, _ = jax.jit(functools.partial(task.update, key=jax.random.key(0)))(start(task), batch)
        found.append([history.greatest for history in train_state.players["model"].history.values()])
    assert gap(found[1], found[0]) < 0.02
    assert gap(found[2], found[0]) < 0.02


@pytest.mark.usefixtures("quick")
def test_it_trains_in_any_chunk(digits):
    """Chunks of 1 and of 40 are the same bit for bit, histories too."""
    found = []
    for chunk in (1, 40):
        model = MLP(inputs=(8, 8), outputs=10, hidden=(16,), dropout=0.1)
        task = Classification(model=model, learner=Learner(precision=Float8(history=8)))
        found.append(train(task, digits_feed(digits), steps=80, chunk=chunk, log_every=80)[0].train_state)
    assert same(*(f.players["model"] for f in found))
    assert all(leaf.all() for leaf in leaves(found[0].players["model"].history))


CONFIG = """
[task]
kind = "classification"
[model]
kind = "mlp"
hidden = [16]
[data]
kind = "digits"
[precision]
kind = "float8"
history = 8
[optimizer]
peak_lr = 1e-3
schedule.kind = "constant"
[train]
steps = 20
log_every = 5
[evaluate]
every = 10
[checkpoint]
every = 5
[observe]
tensorboard = false
figures = false
"""


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, monkeypatch, capsys):
    """Ten steps, then ten more from the checkpoint: the same state, histories included, and the same log."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.toml").write_text(CONFIG)
    assert main(["train", "c.toml", "--out", "whole"]) == 0
    assert main(["train", "c.toml", "train.steps=10", "--out", "cut"]) == 0
    assert main(["train", "--resume", "cut", "train.steps=20"]) == 0
    assert_equal_runs("whole", "cut")
    capsys.readouterr()


def test_mistakes_are_told():
    """A pattern of nothing, one of vectors alone, and an estimator that sees no way back."""
    params = {"layer0": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    with pytest.raises(ConfigError, match=r"precision\.layers: pattern 'qkv' matches no parameter"):
        Float8(layers=("qkv",)).check(params, "precision")
    with pytest.raises(ConfigError, match=r"precision\.layers: found \['bias'\]; they match no kernel of two axes"):
        Float8(layers=("bias",)).check(params, "precision")
    with pytest.raises(ConfigError, match=r"precision\.keep: pattern 'head'"):
        Float8(keep=("head",)).check(params, "precision")
    learner = Learner(precision=Float8(), estimator=SAM())
    with pytest.raises(ConfigError, match=r'"delayed" takes estimator.kind = "reverse"; expected "current"'):
        learner.update(None, learner.init(params), {}, {"x": jnp.ones(2)}, key=jax.random.key(0))
    assert Learner(precision=Float8(scaling="current")).init(params).history is None
    assert Learner(precision=BFloat16()).init(params).history is None
