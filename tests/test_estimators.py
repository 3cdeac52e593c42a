"""Estimators of gradients: the exact ones against reverse mode, the random ones against their means and variances."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_equal_runs, gap, leaves, same
from jax.flatten_util import ravel_pytree

from functrain.autodiff import SAM, SPSA, Central, Evolution, Forward, MinNorm, Reverse
from functrain.autodiff.directions import combined, draw, keys_of
from functrain.autodiff.zeroth_order import centred_ranks
from functrain.cli import main
from functrain.config import ConfigError
from functrain.metrics import Mean, mean_of
from functrain.observe import flops
from functrain.optim import SGD, Learner, objective
from functrain.precision import Float16

EXACT = [Forward(), Central()]
DRAWN = [
    Forward(directions=3),
    SPSA(directions=3, radius=0.5),
    SPSA(directions=3, radius=0.5, direction="normal"),
    Evolution(population=8, sigma=0.5, shaping="ranks", block=4),
]
KEY = jax.random.key(3)


def name_of(estimator):
    """The kind and what is set, for the ids of tests."""
    return repr(estimator).replace("kind=", "")


every = pytest.mark.parametrize("estimator", EXACT + DRAWN, ids=name_of)


# -- small losses ---------------------------------------------------------------------------------


def network(dtype=np.float32):
    """(loss, params, batch): tanh layers, masked; leaves of several shapes, a single number among them."""
    rng = np.random.default_rng(0)
    shapes = {"scale": (), "out": (3,), "hidden": {"bias": (3,), "kernel": (2, 3)}}
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s), dtype), shapes, is_leaf=lambda s: type(s) is tuple)
    batch = {"x": rng.normal(size=(12, 2)), "y": rng.normal(size=12), "mask": rng.random(12) < 0.6}

    def loss(params, state, batch, *, key):
        hidden = jnp.tanh(batch["x"] @ params["hidden"]["kernel"] + params["hidden"]["bias"])
        errors = (params["scale"] * (hidden @ params["out"]) - batch["y"]) ** 2
        state = {"calls": state["calls"] + 1, "seen": state["seen"] + params["scale"]}
        return (
            mean_of(errors, batch["mask"]),
            state,
            {"bias": Mean(params["hidden"]["bias"].sum(), batch["mask"].sum())},
        )

    return loss, params, {k: jnp.asarray(v, dtype) for k, v in batch.items()}


def network_goal(dtype=np.float32, accumulate=1, scale=None):
    """(objective, params) of the network."""
    loss, params, batch = network(dtype)
    state = {"calls": jnp.int32(0), "seen": jnp.zeros((), dtype)}
    return objective(loss, state, batch, KEY, accumulate=accumulate, scale=scale), params


def goal_of(f):
    """The objective of a function of the parameters alone, or of them and the key."""

    def loss(params, state, batch, *, key):
        value = f(params, key) if f.__code__.co_argcount == 2 else f(params)
        return Mean(value, jnp.ones((), value.dtype)), state, {}

    return objective(loss, {}, {"x": jnp.ones(1)}, KEY)


def quadratic():
    """(objective, params, the gradient there) of 6 parameters in two leaves."""
    rng = np.random.default_rng(1)
    a, b, w = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((6, 6), 6, 6))
    a = a + a.T
    goal = goal_of(lambda p: (x := flat(p)) @ a @ x / 2 + b @ x)
    return goal, {"a": w[:2], "b": w[2:].reshape(2, 2)}, a @ w + b


def flat(params):
    """The numbers of a tree in a row."""
    return jnp.concatenate([x.ravel() for x in jax.tree.leaves(params)])


def estimate(estimator, goal, params, key=KEY):
    """What the estimator gives, in one program."""
    return jax.jit(lambda params, key: estimator(goal, params, key))(params, key)


def samples(estimator, goal, params, number=4096):
    """[number, n]: gradients from as many keys."""
    one = lambda key: flat(estimator(goal, params, key)[0])  # noqa: E731
    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(KEY, number)))


# -- the exact ones -------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 5, 16])
def test_forward_mode_is_reverse_mode(block, quick):
    """A derivative for each of 13 parameters, however many side by side: 1e-6 in float32."""
    goal, params = network_goal()
    assert gap(estimate(Forward(block=block), goal, params)[0], goal.gradient(params)[0]) < 1e-6


def test_forward_mode_in_float64(float64, quick):
    """1e-12."""
    goal, params = network_goal(np.float64)
    assert gap(estimate(Forward(block=4), goal, params)[0], goal.gradient(params)[0]) < 1e-12


def third(goal, params):
    """The third derivative along each parameter's axis, as a row."""
    row, back = ravel_pytree(params)
    f = lambda x: goal.value(back(x))[0]  # noqa: E731

    def along(axis):
        def down(g):
            return lambda x: jax.jvp(g, (x,), (axis,))[1]

        return down(down(down(f)))(row)

    return np.asarray(jax.vmap(along)(jnp.eye(row.size, dtype=row.dtype)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_central_differences_err_as_theory_says(dtype, float64, quick):
    """With the step that it chooses, entry by entry: h^2 / 6 |f'''| by the series, and by rounding a few eps |f| / h.

    That is below 1e-3 in float32 and 2e-9 in float64 here; a step thirty times as long, or as short, errs more.
    """
    goal, params = network_goal(dtype)
    eps = float(jnp.finfo(dtype).eps)
    exact, value, _ = goal.gradient(params)
    h = eps ** (1 / 3) * np.maximum(np.abs(flat(params)), 1)
    bound = 1.1 * h**2 / 6 * np.abs(third(goal, params)) + 4 * eps * float(value) / h
    error = np.abs(np.asarray(flat(estimate(Central(), goal, params)[0]) - flat(exact)))
    assert (error < bound).all(), error / bound
    assert bound.max() < {np.float32: 1e-3, np.float64: 2e-9}[dtype]
    for step in (eps ** (1 / 3) * 30, eps ** (1 / 3) / 30):
        worse = np.abs(np.asarray(flat(estimate(Central(step=step), goal, params)[0]) - flat(exact)))
        assert np.linalg.norm(worse) > 2 * np.linalg.norm(error)


def test_the_error_of_a_long_step_is_its_series(float64, quick):
    """h^2 / 6 f''' for a step that is given, to 1 %."""
    goal, params = network_goal(np.float64)
    off = flat(estimate(Central(step=1e-3, block=1), goal, params)[0]) - flat(goal.gradient(params)[0])
    np.testing.assert_allclose(off, 1e-6 / 6 * third(goal, params), rtol=0.01, atol=1e-11)


def test_central_differences_of_large_parameters(quick):
    """Steps grow with parameters, and are what the dtype holds of them: exact for a line where 1e-4 is one or two."""
    w = jnp.array([1000.3, -999.7, 1.0])
    np.testing.assert_array_equal(estimate(Central(step=1e-4), goal_of(lambda w: w[0]), w)[0], [1, 0, 0])
    far = estimate(Central(), goal_of(lambda w: (w * 1e-6) ** 2), jnp.asarray(1e6))[0]
    np.testing.assert_allclose(far, 2e-6, rtol=1e-4)


# -- the random ones ------------------------------------------------------------------------------

UNBIASED = [
    Forward(directions=1),
    Forward(directions=5, block=2),
    SPSA(radius=0.5),
    SPSA(radius=0.5, direction="normal", directions=2),
    Evolution(population=2, sigma=0.5),
    Evolution(population=8, sigma=0.5, block=3),
]


@pytest.mark.parametrize("estimator", UNBIASED, ids=name_of)
def test_mean_and_variance_on_a_quadratic(estimator, quick):
    """The mean over 4,096 keys is the gradient within 4 standard errors, and the noise is what the formula says.

    Of one direction, standard normal, variances sum to (n + 1) |g|^2 (E v v' v v' = (n + 2) I), of 1 and -1 to
    (n - 1) |g|^2; of k directions to a k-th of it. A quadratic has no third derivative: no bias, whatever the radius.
    """
    goal, params, exact = quadratic()
    found = samples(estimator, goal, params)
    errors = found.std(0) / np.sqrt(len(found))
    assert (np.abs(found.mean(0) - exact) < 4 * errors).all()
    assert (4 * errors < 0.3 * np.linalg.norm(exact)).all()
    number = getattr(estimator, "directions", getattr(estimator, "population", 0) // 2)
    factor = 5 if getattr(estimator, "direction", "normal") == "rademacher" else 7
    np.testing.assert_allclose(found.var(0).sum(), factor * np.sum(exact**2) / number, rtol=0.1)


def test_evolution_has_the_smoothed_gradient(quick):
    """Of a cosine: E cos(w + s v) = e^(-s^2 / 2) cos w, so at s = 1 the gradient is 0.61 of what it is at a point."""
    w = jnp.array([0.5, 1.5])
    found = samples(Evolution(population=4, sigma=1.0), goal_of(lambda w: jnp.cos(w).sum()), w)
    errors = found.std(0) / np.sqrt(len(found))
    smoothed = -np.exp(-0.5) * np.sin(w)
    assert (np.abs(found.mean(0) - smoothed) < 4 * errors).all()
    assert (np.abs(-np.sin(w) - smoothed) > 8 * errors).all()


def test_three_ways_along_the_same_directions(quick):
    """On a quadratic, derivatives, differences and pairs of one key are (g . v) v of the same v: they agree."""
    goal, params, exact = quadratic()
    ways = [
        Forward(directions=4),
        SPSA(directions=4, radius=0.5, direction="normal"),
        Evolution(population=8, sigma=0.5),
    ]
    found = [flat(estimate(estimator, goal, params)[0]) for estimator in ways]
    directions = jnp.stack([flat(draw(k, params, "normal")) for k in keys_of(KEY, 4)])
    by_hand = (directions @ exact) @ directions / 4
    for each in found:
        np.testing.assert_allclose(each, by_hand, rtol=1e-4, atol=1e-4)


def test_pairs_cancel_what_is_even(quick):
    """At the centre of a symmetric function every estimate is 0, to the bit; beside it, none is."""
    goal = goal_of(lambda w: jnp.abs(w["a"]).sum() + (w["b"] ** 2).sum() + jnp.cos(w["b"]).sum())
    centre = {"a": jnp.zeros(3), "b": jnp.zeros((2, 2))}
    beside = jax.tree.map(lambda x: x + 0.3, centre)
    for estimator in [*DRAWN[1:], Evolution(population=6)]:
        assert not np.any(flat(estimate(estimator, goal, centre)[0]))
        assert np.all(flat(estimate(estimator, goal, beside)[0]))


def test_directions_are_drawn_apart(quick):
    """Numbers of mean 0 and variance 1, independent over keys and leaves; and no key that a loss may draw from."""
    params = {"a": jnp.zeros(300), "b": jnp.zeros((3, 100))}
    for law in ("normal", "rademacher"):
        drawn = np.stack([flat(draw(k, params, law)) for k in keys_of(KEY, 8)]).reshape(16, 300)
        np.testing.assert_allclose(drawn @ drawn.T / 300, np.eye(16), atol=0.35)
        assert (np.abs(drawn) == 1).all() == (law == "rademacher")
    ours = {leaf.tobytes() for leaf in leaves([*keys_of(KEY, 4)])}
    others = [*jax.random.split(KEY, 4), *(jax.random.fold_in(KEY, i) for i in range(32)), KEY]
    assert not ours & {leaf.tobytes() for leaf in leaves(others)}
    weights = jnp.array([2.0, -1.0])
    first, second = (draw(k, params, "normal")["b"] for k in keys_of(KEY, 2))
    np.testing.assert_allclose(combined(weights, keys_of(KEY, 2), params, "normal")["b"], 2 * first - second, rtol=1e-5)


def test_ranks():
    """Those of scipy, centred; equal losses alike. What is monotone of the loss changes nothing of the gradient."""
    stats = pytest.importorskip("scipy.stats", reason="scipy comes with jax")
    losses = np.array([3.0, -1, 7, 3, 3, 0, -1], np.float32)
    np.testing.assert_allclose(centred_ranks(jnp.asarray(losses)), (stats.rankdata(losses) - 1) / 6 - 0.5, atol=1e-7)
    np.testing.assert_array_equal(centred_ranks(jnp.array([jnp.nan, 1.0, 2.0])), [0.5, -0.5, 0])
    w = jnp.array([0.5, -1.0, 2.0])
    plain, curved = goal_of(lambda w: (w**2).sum()), goal_of(lambda w: jnp.exp((w**2).sum() / 3))
    for shaping, alike in (("ranks", True), ("none", False)):
        estimator = Evolution(population=16, sigma=0.1, shaping=shaping)
        a, b = estimate(estimator, plain, w)[0], estimate(estimator, curved, w)[0]
        assert same(a, b) == alike
        assert a @ w > 0
    # Of one pair, what went up weighs 1/2 and what went down -1/2: v / (2 sigma), uphill.
    v = draw(keys_of(KEY, 1)[0], w, "normal")
    one = Evolution(population=2, sigma=0.1, shaping="ranks")(goal_of(lambda w: w.sum()), w, KEY)[0]
    np.testing.assert_allclose(one, jnp.sign(v.sum()) * v / 0.2, rtol=1e-5)


# -- all of them ----------------------------------------------------------------------------------


@every
def test_the_key_decides_everything(estimator, quick):
    """The same key: bitwise the same; another: another, but for the exact ones. Many keys at once: as one by one."""
    goal, params = network_goal()
    run = jax.jit(lambda key: estimator(goal, params, key))
    first = run(KEY)
    assert same(first, run(KEY))
    other = jax.random.key(4)
    assert same(first[0], run(other)[0]) == (estimator in EXACT)
    together = jax.jit(jax.vmap(run))(jnp.stack([KEY, other]))
    for i, key in enumerate((KEY, other)):
        apart = gap(jax.tree.map(lambda x, i=i: x[i], together), run(key))
        assert apart < (3e-3 if estimator == Central() else 2e-5)  # differences multiply what rounding leaves


@every
def test_results_are_those_of_reverse_mode_in_form(estimator, quick):
    """Gradients in at least float32, shaped as the parameters; value, state and metrics of these as they are."""
    goal, params = network_goal(accumulate=3)
    params["out"] = params["out"].astype(jnp.bfloat16)
    gradients, *rest = estimate(estimator, goal, params)
    form = lambda t: jax.tree.map(lambda x: (x.shape, x.dtype), t)  # noqa: E731
    exact, *expected = goal.gradient(params)
    assert form(gradients) == form(exact)
    assert form(rest) == form(expected)
    assert gap(rest, expected) < 1e-6
    assert int(rest[1][0]["calls"]) == 3
    assert np.dot(flat(gradients), flat(exact)) > 0


@every
def test_accumulated_equals_whole(estimator, float64, quick):
    """Three micro-batches with ragged masks, the same key: 1e-9 in float64, differences divided by their steps."""
    whole, params = network_goal(np.float64)
    cut, _ = network_goal(np.float64, accumulate=3)
    a, b = (estimate(estimator, goal, params)[:2] for goal in (whole, cut))
    assert gap(a, b) < 1e-9
    mask = network()[2]["mask"]
    assert len({float(mask[i::3].sum()) for i in range(3)}) > 1  # counts by which a mean of means would go wrong


@every
def test_the_same_noise_on_both_sides(estimator, quick):
    """A loss with noise, as of dropout, is one function of the parameters: slopes are not those of two draws."""
    goal = goal_of(lambda w, key: w["a"] * jax.random.bernoulli(key) + 100 * jax.random.normal(key))
    gradient = estimate(estimator, goal, {"a": jnp.asarray(0.5)})[0]["a"]
    assert jnp.abs(gradient) < 10
    if estimator in EXACT:
        np.testing.assert_allclose(gradient, goal.gradient({"a": jnp.asarray(0.5)})[0]["a"], atol=2e-3)


@every
def test_the_loss_scale_changes_nothing(estimator, quick):
    """No backward pass, no scale: with 65,536 the same bits."""
    scaled, params = network_goal(scale=jnp.float32(65536))
    plain, _ = network_goal()
    assert same(estimate(estimator, scaled, params), estimate(estimator, plain, params))


@pytest.mark.parametrize("estimator", [EXACT[0], DRAWN[-1]], ids=name_of)
def test_a_step_in_float16(estimator, quick):
    """Near that of reverse mode where it is exact; where the loss is not a number, nothing changes but a count."""
    loss, params, batch = network()
    state = {"calls": jnp.int32(0), "seen": jnp.float32(0)}

    def step(estimator, factor):
        learner = Learner(optimizer=SGD(peak_lr=0.1), precision=Float16(initial_scale=64.0), estimator=estimator)
        scaled = lambda *args, key: _times(factor, loss(*args, key=key))  # noqa: E731
        return jax.jit(lambda player: learner.update(scaled, player, state, batch, key=KEY))(learner.init(params))

    player, _, metrics = step(estimator, 1.0)
    assert metrics["loss"].value.dtype == jnp.float32
    assert int(player.skipped) == 0
    assert not same(player.params, params)
    if estimator in EXACT:
        assert gap(player.params, step(Reverse(), 1.0)[0].params) < 2e-3
    lost = step(estimator, jnp.nan)[0]
    assert int(lost.skipped) == 1
    assert same(lost.params, params)


def _times(factor, result):
    """A loss's result, its sum multiplied."""
    mean, state, metrics = result
    return Mean(factor * mean.total, mean.count), state, metrics


PRICED = [*EXACT, *DRAWN, Reverse(), SAM(), MinNorm(), Forward(directions=40), Forward(block=100)]


@pytest.mark.parametrize("estimator", PRICED, ids=name_of)
def test_what_it_costs(estimator):
    """`evaluations` is what the FLOPs of the program say: differences to the last one, derivatives to a tenth.

    A derivative costs a little less than what is said: the first layer's input has none.
    """
    sizes = (4, 4, 4, 4, 4, 4, 4, 4)
    params = [jnp.full((4, 4), 0.3) for _ in sizes]

    def loss(params, state, batch, *, key):
        x = batch["x"]
        for w in params:
            x = jnp.tanh(x @ w)
        means = Mean((x**2).sum(), jnp.ones(()))
        if estimator.kind == "min_norm":
            means = {"a": means, "b": Mean(jnp.sin(x).sum(), jnp.ones(()))}
        return means, state, {}

    goal = objective(loss, {}, {"x": jnp.ones((50, 4))}, KEY)
    cost = flops.count(lambda p: estimator(goal, p, KEY), params)[0] / flops.count(goal.value, params)[0]
    said = estimator.evaluations(16 * len(sizes))
    if estimator.kind in ("reverse", "sam", "min_norm", "forward"):
        assert 0.9 * said < cost <= said
    else:
        assert cost == said


def test_memory_does_not_grow_with_directions(quick):
    """Directions are drawn again from their keys: XLA sets aside as much for 64 as for 2."""
    params = {"a": jnp.zeros(50_000), "b": jnp.zeros((100, 500))}
    goal = goal_of(lambda w: (w["a"] ** 2).sum() + jnp.sin(w["b"]).sum())

    def room(estimator):
        program = jax.jit(lambda p, key: estimator(goal, p, key)[0]).lower(params, KEY).compile()
        return program.memory_analysis().temp_size_in_bytes

    for few, many in (
        (SPSA(directions=2, direction="normal"), SPSA(directions=64, direction="normal")),
        (Evolution(population=4), Evolution(population=128)),
        (Forward(directions=2, block=1), Forward(directions=64, block=1)),
    ):
        assert room(many) < room(few) + 10_000
        assert room(many) < 8 * 400_000


def test_refused_above_a_count(quick):
    """`most` itself is taken, one parameter more is not; along random directions any number is."""
    goal = goal_of(lambda w: (w**2).sum())
    for kind, words in ((Forward, "6 parameters.*set estimator.directions"), (Central, "13 loss evaluations.*spsa")):
        kind(most=6)(goal, jnp.ones(6), None)
        with pytest.raises(ConfigError, match=words):
            kind(most=5)(goal, jnp.ones(6), None)
    Forward(most=5, directions=1)(goal, jnp.ones(6), KEY)
    assert Forward().most == Central().most == 100_000
    with pytest.raises(ConfigError, match="population: found 5"):
        Evolution(population=5)(goal, jnp.ones(6), KEY)


# -- runs -----------------------------------------------------------------------------------------

TOML = """
[model]
kind = "mlp"
hidden = [4]
dropout = 0.1
[task]
kind = "classification"
[data]
kind = "digits"
batch_size = 32
[optimizer]
kind = "adam"
peak_lr = 2e-2
[train]
steps = 40
log_every = 20
[observe]
tensorboard = false
figures = false
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with small.toml in it."""
    (tmp_path / "small.toml").write_text(TOML)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "settings",
    [
        ["forward", "estimator.block=62"],
        ["central", "train.accumulate=2"],
        ["spsa", "estimator.directions=20", "estimator.direction=normal"],
        ["evolution", "estimator.population=40", "estimator.shaping=ranks"],
    ],
    ids=lambda settings: settings[0],
)
def test_runs(folder, settings, quick):
    """Each learns, and a step a dispatch is bitwise 20 steps a dispatch."""
    settings = [f"estimator.kind={settings[0]}", *settings[1:]]
    for chunk in (1, 20):
        assert main(["train", "small.toml", "--out", f"r{chunk}", f"train.chunk={chunk}", *settings]) == 0
    assert_equal_runs("r1", "r20")
    lines = [json.loads(line) for line in Path("r1/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["split"] == "train"]
    assert losses[-1] < losses[0] - 0.03


def test_two_seeds_side_by_side(folder, quick):
    """Under vmap over members of a run, with live numbers."""
    settings = ["estimator.kind=evolution", "estimator.block=4", "train.seeds=2", "train.steps=4"]
    assert main(["train", "small.toml", "--out", "r", *settings]) == 0
    assert (folder / "r" / "result.json").exists()


@pytest.mark.parametrize("kind", ["forward", "central"])
def test_a_refusal_is_one_line(folder, capsys, kind):
    """Status 2; what it would cost, of how many parameters, and what to do instead; nothing written."""
    assert main(["train", "small.toml", "--out", "r", f"estimator.kind={kind}", "estimator.most=309"]) == 2
    line = capsys.readouterr().err.strip()
    evaluations, instead = {"forward": ("641", "set estimator.directions"), "central": ("621", "spsa")}[kind]
    assert f"{kind} would cost {evaluations} loss evaluations a step for 310 parameters" in line
    assert "at most 309; raise estimator.most, or" in line
    assert instead in line
    assert "\n" not in line
    assert not (folder / "r").exists()


@pytest.mark.parametrize("estimator", [Forward(), Forward(directions=2), Central(), SPSA(), Evolution(population=4)])
def test_frozen_parameters_are_not_moved(estimator):
    """Nor counted: what is estimated is the gradient of a loss of the others alone."""

    def loss(params, state, batch, *, key):
        return Mean((params["a"] ** 2 * params["b"] ** 3).sum(), jnp.ones(())), state, {}

    def alone(params, state, batch, *, key):
        return loss({"a": frozen, "b": params["b"]}, state, batch, key=key)

    frozen, batch, key = jnp.full(8, 2.0), {"x": jnp.ones(1)}, jax.random.key(3)
    params = {"a": frozen, "b": jnp.ones(1)}
    learner = Learner(optimizer=SGD(peak_lr=1e-4, freeze=("a",)), estimator=estimator)
    player, _, metrics = learner.update(loss, learner.init(params), {}, batch, key=key)
    other = Learner(optimizer=SGD(peak_lr=1e-4), estimator=learner.estimator)
    expected, _, _ = other.update(alone, other.init({"b": params["b"]}), {}, batch, key=key)
    assert (player.params["a"] == frozen).all()
    moved, wanted = (float(p.params["b"][0]) - 1 for p in (player, expected))
    assert moved == pytest.approx(wanted, rel=1e-2)  # a difference of losses: rounded otherwise
    assert moved != 0
    assert np.isfinite(metrics["gradient_norm"].value)
