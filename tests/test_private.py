"""Differential privacy: DP-SGD against its formula, the law of its noise, and what it says it spends."""

import builtins
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import gap, same
from jax.flatten_util import ravel_pytree

from functrain.autodiff import per_example
from functrain.autodiff.estimators import AnyEstimator
from functrain.autodiff.private import DPSGD, epsilon, noise_for
from functrain.config import ConfigError, kind_table, parse
from functrain.layers import batch_norm
from functrain.metrics import mean_of
from functrain.models import MLP
from functrain.observe import flops
from functrain.optim import objective
from functrain.precision import Autocast, BFloat16, Float16
from functrain.tasks import Classification

KEY = jax.random.key(3)


# -- small losses ---------------------------------------------------------------------------------


def network(n=7, dtype=np.float64):
    """(a task's loss, params, batch) of two layers; leaves of several shapes, a number among them."""
    rng = np.random.default_rng(0)
    shapes = {"scale": (), "out": (3,), "hidden": {"bias": (3,), "kernel": (2, 3)}}
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s), dtype), shapes, is_leaf=lambda s: type(s) is tuple)
    batch = {"x": rng.normal(size=(n, 2)), "y": rng.normal(size=n), "mask": np.arange(n) % 4 != 1}

    def loss(params, state, batch, *, key):
        x = batch["x"] if key is None else batch["x"] * jax.random.bernoulli(key, 0.5, batch["x"].shape)
        hidden = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
        errors = (params["scale"] * (hidden @ params["out"]) - batch["y"]) ** 2
        return mean_of(errors, batch["mask"]), state, {"error": mean_of(jnp.abs(errors), batch["mask"])}

    return loss, params, {k: jnp.asarray(v, dtype) for k, v in batch.items()}


def by_hand(loss, params, batch, key, clip):
    """The clipped mean, from gradients one by one."""

    def gradient(i):
        one = jax.tree.map(lambda x: x[i][None], batch)
        goal = objective(loss, {}, one, None if key is None else jax.random.fold_in(key, i))
        return ravel_pytree(goal.gradient(params)[0])[0]

    rows = np.stack([jax.jit(gradient)(i) for i in range(len(batch["x"]))])
    return np.mean([row / max(1, np.linalg.norm(row) / clip) for row in rows], 0)


# -- the estimator --------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 3, 7, 50])
def test_the_clipped_mean(block, float64, quick):
    """Without noise: over the rows there are, masked ones too; dropout by example; a loss scale changes nothing."""
    loss, params, batch = network()
    for key, scale, clip in ((None, None, 0.5), (KEY, 1024.0, 0.5), (KEY, None, 1e-3))[:: 1 if block == 3 else 2]:
        estimator = DPSGD(clip=clip, noise=0.0, block=block)
        goal = objective(loss, {}, batch, key, scale=scale)
        found = jax.jit(lambda p, e=estimator, g=goal: e(g, p, KEY)[0])(params)
        exact = by_hand(loss, params, batch, key, clip)
        np.testing.assert_allclose(ravel_pytree(found)[0], exact, rtol=0, atol=1e-13 * np.abs(exact).max())
    assert np.linalg.norm(ravel_pytree(found)[0]) < 1e-3 * 5 / 7


def test_a_wide_clip_is_the_gradient(float64, quick):
    """Of no masks and no noise, with value, state and metrics of reverse mode, and their forms."""
    loss, params, batch = network()
    batch["mask"] = jnp.ones(7)
    goal = objective(loss, {}, batch, None)
    gradients, value, (state, metrics) = DPSGD(clip=1e9, noise=0.0, block=2)(goal, params, KEY)
    exact, expected, (_, others) = goal.gradient(params)
    assert gap((gradients, value), (exact, expected)) < 1e-13
    assert state == {}
    assert float(metrics.pop("clipped").value) == 0
    assert gap(metrics, others) < 1e-13
    form = lambda t: jax.tree.map(lambda x: (x.shape, x.dtype), t)  # noqa: E731
    assert form((gradients, value, metrics)) == form((exact, expected, others))


def test_the_share_that_was_clipped(float64, quick):
    """Of the rows there are."""
    loss, params, batch = network()
    norms = np.asarray(per_example.norms(loss, params, batch, state={}))
    clip = float(np.median(norms))
    found = DPSGD(clip=clip, noise=0.0, block=3)(objective(loss, {}, batch, None), params, KEY)[2][1]["clipped"]
    assert (float(found.total), float(found.count)) == ((norms > clip).sum(), 7)
    assert 0 < float(found.value) < 1


def test_one_example_moves_the_sum_by_the_clip_at_most(float64, quick):
    """Whatever it is: taken out by its mask, put in another's place, or scaled to a million."""
    loss, params, batch = network(12)
    batch["mask"] = jnp.ones(12)
    clip = 0.3

    @jax.jit
    def total(batch):
        found = DPSGD(clip=clip, noise=0.0, block=5)(objective(loss, {}, batch, None), params, KEY)[0]
        return 12 * ravel_pytree(found)[0]

    whole = total(batch)
    for i in range(12):
        assert 0 < np.linalg.norm(total(batch | {"mask": batch["mask"].at[i].set(0)}) - whole) <= clip * (1 + 1e-12)
        other = batch | {"y": batch["y"].at[i].set(1e6)}
        assert np.linalg.norm(total(other) - whole) <= 2 * clip * (1 + 1e-12)


def test_the_noise(float64, quick):
    """Normal, of deviation noise clip / n in every number, independent; by the key alone, and not that of the loss."""
    loss, params, batch = network()
    goal = objective(loss, {}, batch, KEY)
    still = ravel_pytree(DPSGD(clip=0.5, noise=0.0)(goal, params, KEY)[0])[0]
    noisy = DPSGD(clip=0.5, noise=3.0, block=2)
    draws = jax.jit(jax.vmap(lambda key: ravel_pytree(noisy(goal, params, key)[0])[0]))(jax.random.split(KEY, 4000))
    noise = (np.asarray(draws) - still) / (3.0 * 0.5 / 7)
    assert np.abs(noise.mean(0)).max() < 4.5 / np.sqrt(4000)
    np.testing.assert_allclose(noise.T @ noise / 4000, np.eye(13), atol=0.12)
    np.testing.assert_allclose((noise**4).mean(), 3, atol=0.2)
    np.testing.assert_allclose((noise**2).mean(), 1, atol=0.03)
    first, second = noisy(goal, params, KEY)[0], noisy(objective(loss, {}, batch, None), params, KEY)[0]
    assert same(first, noisy(goal, params, KEY)[0])
    others = objective(loss, {}, jax.tree.map(lambda x: 2 * x, batch), KEY)
    drawn = [np.asarray(ravel_pytree(g)[0]) for g in (first, second, noisy(others, params, KEY)[0])]
    calm = [
        np.asarray(ravel_pytree(DPSGD(clip=0.5, noise=0.0)(g, params, KEY)[0])[0])
        for g in (goal, objective(loss, {}, batch, None), others)
    ]
    # The noise hangs on the key alone, on no example.
    np.testing.assert_allclose(drawn[0] - calm[0], drawn[1] - calm[1], atol=1e-13)
    np.testing.assert_allclose(drawn[0] - calm[0], drawn[2] - calm[2], atol=1e-13)


def test_live_numbers(quick):
    """Settings may be traced, as in a sweep: many clips and noises side by side."""
    loss, params, batch = network(dtype=np.float32)
    goal = objective(loss, {}, batch, None)
    run = lambda c, s: dataclasses.replace(DPSGD(), clip=c, noise=s)(goal, params, KEY)[0]  # noqa: E731
    clips, noises = jnp.array([0.1, 2.0]), jnp.array([1.0, 0.5])
    together = jax.jit(jax.vmap(run))(clips, noises)
    for i in range(2):
        one = DPSGD(clip=float(clips[i]), noise=float(noises[i]))(goal, params, KEY)[0]
        assert gap(jax.tree.map(lambda x, i=i: x[i], together), one) < 1e-5
        assert {g.dtype for g in jax.tree.leaves(one)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("precision", [Autocast(), BFloat16(), Float16()], ids=lambda p: p.kind)
def test_in_low_precision(precision, quick):
    """The state of a model passes a precision as it is; gradients are in float32 and near."""
    task = Classification(model=MLP(inputs=(8,), outputs=3, hidden=(16,)))
    params, _ = task.model.init(KEY)
    batch = {"x": jax.random.normal(KEY, (6, 8)), "y": jnp.arange(6) % 3}

    def loss(params, state, batch, *, key):
        means, _, metrics = task.full_loss(params, {}, batch, key=key, train=True)
        return means, state, metrics

    state = {"constant": jnp.ones(3), "number": jnp.int32(3)}
    estimator = DPSGD(clip=0.1, noise=0.0, block=4)
    found = jax.jit(lambda p: estimator(objective(precision(loss), state, batch, KEY, scale=8.0), p, KEY)[0])(params)
    assert {g.dtype for g in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}
    assert gap(found, estimator(objective(loss, state, batch, KEY), params, KEY)[0]) < 0.03


def test_batch_norm_is_refused(quick):
    """In training it changes its state from many examples: one line that says so, before a batch of one is tried."""

    def loss(params, state, batch, *, key):
        x, state = batch_norm.apply(params, state, batch["x"], train=True)
        return mean_of(x**2), state, {}

    params, state = batch_norm.init(None, 3)
    goal = objective(loss, state, {"x": jnp.ones((4, 3))}, None)
    with pytest.raises(ConfigError, match=r"estimator.kind: the loss changes its state \(as batch norm does\)"):
        DPSGD()(goal, params, KEY)


def test_what_it_costs():
    """`evaluations` is what the FLOPs of the program say, to a tenth: a gradient's."""
    params = [jnp.full((4, 4), 0.3) for _ in range(8)]

    def loss(params, state, batch, *, key):
        x = batch["x"]
        for w in params:
            x = jnp.tanh(x @ w)
        return mean_of((x**2).sum(-1)), state, {}

    batch = {"x": jnp.ones((50, 4))}
    goal = objective(loss, {}, batch, None)
    cost = flops.count(lambda p: DPSGD(block=8)(goal, p, KEY), params)[0]
    share = cost / flops.count(lambda p: loss(p, {}, batch, key=None)[0].total, params)[0]
    said = DPSGD().evaluations(128)
    # Beside the gradients: the products that add them up, here half an evaluation, for of small layers it is most.
    assert 0.9 * said < share <= said + 1


def test_it_is_a_kind():
    """Of [estimator], with bounds."""
    kind = kind_table(AnyEstimator)["dp_sgd"]
    assert kind.__name__ == "DPSGD"
    assert parse(AnyEstimator, {"kind": "dp_sgd", "clip": 0.5, "noise": 0.7}) == kind(clip=0.5, noise=0.7)
    for bad in ({"clip": 0.0}, {"noise": -1.0}, {"block": 0}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            parse(DPSGD, {"kind": "dp_sgd"} | bad)


# -- accounting -----------------------------------------------------------------------------------

RUN = {"steps": 1000, "sampling_rate": 0.01, "delta": 1e-5}


def delta_of(epsilon, mu):
    """The delta of Gaussian noise of deviation 1 / mu, by its two integrals (Balle and Wang 2018, theorem 8)."""
    below = lambda x: math.erfc(-x / math.sqrt(2)) / 2  # noqa: E731
    return below(mu / 2 - epsilon / mu) - math.exp(epsilon) * below(-mu / 2 - epsilon / mu)


@pytest.fixture
def library():
    """dp-accounting, or none of these tests."""
    return pytest.importorskip("dp_accounting", reason="pip install 'functrain[privacy]'")


RUNS = [(1000, 0.01, 10), (1, 0.01, 1), (101, 0.01, 2), (5, 1.0, 5), (198, 1 / 99, 2), (10, 0.3, 4)]


@pytest.mark.parametrize(("steps", "rate", "epochs"), RUNS)
def test_shuffled_batches_meet_the_noise_once_an_epoch(library, steps, rate, epochs):
    """The epsilon of so many Gaussian mechanisms: it gives back delta, to 1e-9."""
    spent = epsilon(steps=steps, sampling_rate=rate, noise=5.0, delta=1e-5)
    assert delta_of(spent.epsilon, math.sqrt(epochs) / 5.0) == pytest.approx(1e-5, rel=1e-9)
    assert spent.accountant == "exact"


def test_poisson_batches(library):
    """Far less is spent, by either way; distributions less than Renyi; at sampling rate 1, as much as without."""
    by = {a: epsilon(noise=1.1, sampling="poisson", accountant=a, **RUN).epsilon for a in ("rdp", "pld")}
    assert by["pld"] < by["rdp"] < 1.3 * by["pld"] < 0.2 * epsilon(noise=1.1, **RUN).epsilon
    all_of_them = RUN | {"sampling_rate": 1.0, "steps": 10}
    exact = epsilon(noise=8.0, **all_of_them).epsilon
    found = epsilon(noise=8.0, sampling="poisson", accountant="pld", **all_of_them).epsilon
    assert exact <= found < 1.01 * exact
    # What the paper had in 2016 as an upper bound, by moments: q 0.01, sigma 4, 10,000 steps, epsilon 1.26.
    paper = {"steps": 10_000, "sampling_rate": 0.01, "noise": 4.0, "delta": 1e-5}
    assert 0.8 < epsilon(sampling="poisson", accountant="rdp", **paper).epsilon < 1.26


@pytest.mark.parametrize(("sampling", "accountant"), [("shuffled", "pld"), ("poisson", "rdp"), ("poisson", "pld")])
@pytest.mark.parametrize("target", [0.5, 8.0])
def test_calibration_comes_back(library, sampling, accountant, target):
    """The noise spends no more than was asked, and a hundredth less of it does."""
    how = {"sampling": sampling, "accountant": accountant}
    noise = noise_for(epsilon=target, **RUN, **how)
    assert epsilon(noise=noise, **RUN, **how).epsilon <= target * (1 + 1e-9)
    assert epsilon(noise=0.99 * noise, **RUN, **how).epsilon > target


def test_what_is_assumed_is_said(library):
    """In words, with what it was computed of; no noise, no privacy."""
    said = str(epsilon(noise=1.1, sampling="poisson", accountant="rdp", **RUN))
    assert "at delta 1e-05 (rdp, 1,000 steps, noise 1.1, sampling rate 0.01); assumes poisson batches: each" in said
    assert "assumes shuffled batches: each example at most once in an epoch" in str(epsilon(noise=1.1, **RUN))
    assert epsilon(noise=0.0, **RUN).epsilon == math.inf


def test_what_is_refused(library):
    """One line, of what no run has."""
    given = RUN | {"noise": 1.0}
    for bad in ({"steps": 0}, {"sampling_rate": 1.5}, {"delta": 0.0}, {"noise": -1.0}, {"sampling": "none"}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} .*; expected"):
            epsilon(**given | bad)
    with pytest.raises(ValueError, match="accountant 'gdp'; expected"):
        epsilon(accountant="gdp", **given)
    with pytest.raises(ValueError, match="epsilon 0; expected more than 0"):
        noise_for(epsilon=0, **RUN)


def test_without_the_library(monkeypatch):
    """The extra by its name; DP-SGD itself needs none."""
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("dp_accounting"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    for sampling in ("shuffled", "poisson"):
        with pytest.raises(ConfigError, match=r"pip install 'functrain\[privacy\]'"):
            epsilon(noise=1.0, sampling=sampling, **RUN)
