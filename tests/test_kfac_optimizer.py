"""K-FAC as an optimizer: where its curvature is exact, what it leaves alone, in runs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_equal_runs

from functrain.cli import main
from functrain.config import ConfigError
from functrain.losses import cross_entropy, squared_error
from functrain.observe.events import history
from functrain.optim import KFAC, Learner, Scored, objective
from functrain.optim.kfac import KFACState


@pytest.fixture
def _double():
    with jax.enable_x64(True):
        yield


double = pytest.mark.usefixtures("_double")

KEY = jax.random.key(0)
PLAIN = KFAC(peak_lr=1.0, momentum=0.0, trust=0.0, damping=1e-12, targets="exact", weight_decay=0.0)


def linear(score=squared_error, likelihood="normal"):
    """The loss of one dense layer."""

    def predict(params, state, batch, *, key):
        return batch["x"] @ params["kernel"] + params["bias"], state

    return Scored(predict, lambda y, batch: (score(y, batch["y"], mask=batch.get("mask")), {}), likelihood)


def regression(n=20, inputs=4, outputs=3):
    rng = np.random.default_rng(0)
    batch = {"x": rng.normal(size=(n, inputs)), "y": rng.normal(size=(n, outputs))}
    params = {"kernel": jnp.asarray(rng.normal(size=(inputs, outputs))), "bias": jnp.zeros(outputs)}
    return params, {name: jnp.asarray(x) for name, x in batch.items()}


def least_squares(batch):
    x = np.column_stack([batch["x"], np.ones(len(batch["x"]))])
    return np.linalg.lstsq(x, np.asarray(batch["y"]), rcond=None)[0]


@double
def test_one_step_solves_linear_regression():
    """Of one dense layer under squared error the factors are the Hessian: a step of rate 1 is Newton's."""
    params, batch = regression()
    learner = Learner(optimizer=PLAIN)
    player, _, _ = learner.update(linear(), learner.init(params), {}, batch, key=KEY)
    found = np.vstack([player.params["kernel"], player.params["bias"]])
    assert found == pytest.approx(least_squares(batch), abs=1e-5)


@double
def test_masked_examples_count_nothing():
    """Neither in the gradient nor in the factors."""
    params, batch = regression()
    mask = jnp.arange(20) < 12
    masked = {"x": jnp.where(mask[:, None], batch["x"], 100.0), "y": batch["y"], "mask": mask}
    learner = Learner(optimizer=PLAIN)
    player, _, _ = learner.update(linear(), learner.init(params), {}, masked, key=KEY)
    found = np.vstack([player.params["kernel"], player.params["bias"]])
    kept = {name: x[:12] for name, x in batch.items()}
    assert found == pytest.approx(least_squares(kept), abs=1e-5)


@double
def test_drawn_targets_give_the_same_in_the_mean():
    """Factor G of many drawn targets comes near the exact one, for each distribution."""
    params, batch = regression(n=4000, outputs=3)
    cases = {
        "normal": (linear(), batch),
        "categorical": (linear(cross_entropy, "categorical"), batch | {"y": jnp.arange(4000) % 3}),
    }
    for loss, given in cases.values():
        exact, drawn = (
            _factors(dataclasses.replace(PLAIN, targets=targets), loss, params, given) for targets in ("exact", "mc")
        )
        assert drawn[0] == pytest.approx(exact[0], rel=1e-9)
        assert drawn[1] == pytest.approx(exact[1], abs=0.05 * abs(exact[1]).max())
        assert abs(drawn[1] - exact[1]).max() > 0


def _factors(optimizer, loss, params, batch):
    learner = Learner(optimizer=optimizer)
    player, _, _ = learner.update(loss, learner.init(params), {}, batch, key=KEY)
    return [np.asarray(x) for x in optimizer.stage_state(player.optimizer, KFACState).factors["kernel"]]


@double
def test_running_means():
    """The first step's factors are its own; later ones weigh 1/t, and no less than 1 - b2."""
    params, batch = regression()
    learner = Learner(optimizer=dataclasses.replace(PLAIN, b2=0.75, factor_every=1))
    player, expected = learner.init(params), None
    for step in range(6):
        rng = np.random.default_rng(step)
        batch = batch | {"x": jnp.asarray(rng.normal(size=(20, 4)))}
        player, _, _ = learner.update(linear(), player, {}, batch, key=jax.random.key(step))
        rows = np.column_stack([batch["x"], np.ones(20)])
        own, decay = rows.T @ rows / 20, min(1 - 1 / (step + 1), 0.75)
        expected = own if expected is None else decay * expected + (1 - decay) * own
        factors = learner.optimizer.stage_state(player.optimizer, KFACState).factors
        assert factors["kernel"][0] == pytest.approx(expected, rel=1e-6, abs=1e-7)


@double
def test_what_is_no_layer_is_divided_by_its_squares():
    """And what is larger than `largest`."""
    params, batch = regression()

    def predict(params, state, batch, *, key):
        return (batch["x"] @ params["dense"]["kernel"] + params["dense"]["bias"]) * params["scale"], state

    loss = Scored(predict, lambda y, batch: (squared_error(y, batch["y"]), {}), "normal")
    params = {"dense": params, "scale": jnp.full(3, 2.0)}
    gradients = objective(loss, {}, batch, KEY).gradient(params)[0]
    for optimizer, others in (
        (dataclasses.replace(PLAIN, damping=0.1), ["scale"]),
        (dataclasses.replace(PLAIN, damping=0.1, largest=3), ["scale", "kernel", "bias"]),
    ):
        learner = Learner(optimizer=optimizer)
        player, _, _ = learner.update(loss, learner.init(params), {}, batch, key=KEY)
        for name in ("scale", "kernel", "bias"):
            g, old, new = (
                t["scale"] if name == "scale" else t["dense"][name] for t in (gradients, params, player.params)
            )
            plain = old - g / (20 * g**2 + 0.1)
            assert bool(np.allclose(new, plain, rtol=1e-9)) == (name in others)


@double
def test_trust_bounds_the_step():
    """In the metric of the curvature, d.Fd is at most `trust`: here F is the Hessian."""
    params, batch = regression()
    learner = Learner(optimizer=dataclasses.replace(PLAIN, trust=1e-3))
    player, _, _ = learner.update(linear(), learner.init(params), {}, batch, key=KEY)
    d = np.vstack([player.params["kernel"] - params["kernel"], [player.params["bias"] - params["bias"]]])
    rows = np.column_stack([batch["x"], np.ones(20)])
    assert ((rows @ d) ** 2).sum() * 2 / 60 == pytest.approx(1e-3, rel=1e-4)


def test_examples_of_an_objective():
    """The mean over rows, by their weights, of one row's score is the loss; a row of a mask weighs nothing."""
    params, batch = regression()
    batch["mask"] = jnp.arange(20) % 3 > 0
    goal = objective(linear(), {}, batch, KEY)
    weights = goal.apart.weights(params)
    rows = [jax.tree.map(lambda x, i=i: x[i], batch) for i in range(20)]
    scores = jnp.stack([goal.apart.score_one(goal.apart.predict_one(params, row), row) for row in rows])
    assert float((weights * scores).sum() / weights.sum()) == pytest.approx(float(goal.value(params)[0]), rel=1e-6)
    assert (weights > 0).tolist() == batch["mask"].tolist()
    assert float(goal.apart.score(goal.apart.predict(params))) == pytest.approx(float(goal.value(params)[0]), rel=1e-6)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """With a config of a small MLP on digits."""
    monkeypatch.chdir(tmp_path)
    lines = [
        "[task]",
        'kind = "classification"',
        "[model]",
        'kind = "mlp"',
        "hidden = [16]",
        "[data]",
        'kind = "digits"',
    ]
    lines += ["batch_size = 64", "[train]", "steps = 12", "log_every = 4", "[observe]", "figures = false"]
    (tmp_path / "c.toml").write_text("\n".join([*lines, "[optimizer]", 'kind = "kfac"']))
    return tmp_path


def test_a_run(folder):
    """1 and 4 steps a dispatch are the same, bitwise; the loss falls further than AdamW's."""
    assert main(["train", "c.toml", "--out", "a", "train.chunk=1"]) == 0
    assert main(["train", "c.toml", "--out", "b", "train.chunk=4"]) == 0
    assert_equal_runs(folder / "a", folder / "b")
    assert main(["train", "c.toml", "--out", "c", "optimizer.kind=adamw", "optimizer.peak_lr=1e-2"]) == 0
    ends = [history(folder / run / "metrics.jsonl")[-1]["loss"] for run in "ac"]
    assert ends[0] < 0.8 * ends[1]


def test_refusals(folder, capsys):
    """One line each, status 2, nothing written."""
    for given, parts in {
        "train.accumulate=2": ("kfac", "train.accumulate = 1"),
        "task.label_smoothing=0.1": ("optimizer.targets", "of no distribution", "exact"),
    }.items():
        assert main(["train", "c.toml", "--out", "r", given]) == 2
        error = capsys.readouterr().err.strip()
        assert all(part in error for part in parts), error
        assert "\n" not in error
        assert not (folder / "r").exists()


@double
def test_frozen_parameters_stay():
    """And take no part."""
    params, batch = regression()
    learner = Learner(optimizer=dataclasses.replace(PLAIN, freeze=("bias",)))
    player, _, _ = learner.update(linear(), learner.init(params), {}, batch, key=KEY)
    assert (player.params["bias"] == params["bias"]).all()
    free = np.linalg.lstsq(np.asarray(batch["x"]), np.asarray(batch["y"]), rcond=None)[0]
    assert player.params["kernel"] == pytest.approx(free, abs=1e-5)


def test_a_loss_that_is_no_score():
    """One line."""
    learner = Learner(optimizer=KFAC())

    def loss(params, state, batch, *, key):
        return squared_error(params, params), state, {}

    with pytest.raises(ConfigError, match="is for a loss that is a score of outputs"):
        learner.update(loss, learner.init(jnp.ones((2, 2))), {}, {"x": jnp.ones(1)}, key=KEY)
