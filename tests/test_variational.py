"""The evidence lower bound, its noise and its samples; what is refused; runs that learn, resume and are drawn."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DIGITS_VAE, assert_equal_runs, gap
from jax.scipy.stats import norm

from functrain import losses
from functrain.cli import main
from functrain.metrics import read
from functrain.models import VAE
from functrain.optim import SGD, Learner
from functrain.tasks import Variational
from functrain.train import state
from functrain.trained import load

QUIET = ["observe.figures=false"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory with vae.toml, and flat.npz of numbers that are no image."""
    rng = np.random.default_rng(0)
    (tmp_path / "vae.toml").write_text(DIGITS_VAE)
    np.savez(tmp_path / "flat.npz", x=rng.random((80, 5), np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def small(accumulate=1, **settings):
    """The task with a small VAE, and 12 examples of which some do not count."""
    model = VAE(inputs=(4, 3), outputs=12, hidden=(7,), latent=3, activation="tanh")
    task = Variational(model=model, learner=Learner(optimizer=SGD(peak_lr=0.1), accumulate=accumulate), **settings)
    x = np.random.default_rng(0).random((12, 4, 3))
    return task, {"x": jnp.asarray(x), "mask": jnp.asarray(np.arange(12) % 5 > 0, float)}


def started(task):
    return jax.jit(lambda: state.init(task, jax.random.key(0)))()


# -- the bound ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick", "float64")
def test_the_divergence_from_a_standard_normal():
    """As its formula says, and as the integral of q (log q - log p) over a grid; 0 where q is p."""
    rng = np.random.default_rng(0)
    mean, log_variance, mask = rng.normal(size=(5, 3)), rng.normal(size=(5, 3)), np.arange(5) % 2
    found = losses.normal_kl(jnp.asarray(mean), jnp.asarray(log_variance), mask=jnp.asarray(mask))
    each = 0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance)
    np.testing.assert_allclose(found.value, each.sum(-1)[mask == 1].mean(), rtol=1e-13)
    z = np.linspace(-60, 60, 200_001)
    log_q = norm.logpdf(z, mean[..., None], np.exp(log_variance / 2)[..., None])
    integral = np.sum(np.exp(log_q) * (log_q - norm.logpdf(z)), -1) * (z[1] - z[0])
    np.testing.assert_allclose(integral, each, rtol=1e-9)
    np.testing.assert_allclose(losses.normal_kl(jnp.asarray(mean), jnp.asarray(log_variance)).value, integral.sum() / 5)
    assert losses.normal_kl(jnp.zeros((2, 3)), jnp.zeros((2, 3))).total == 0
    with pytest.raises(ValueError, match="log_variance"):
        losses.normal_kl(jnp.zeros((2, 3)), jnp.zeros((1, 3)))


@pytest.mark.usefixtures("quick", "float64")
@pytest.mark.parametrize("accumulate", [3, 12])
def test_accumulated_equals_whole(accumulate):
    """One noise for the whole batch: what an update changes, and every metric, to rounding, with a ragged mask."""
    changes, metrics = [], []
    for parts in (1, accumulate):
        task, batch = small(parts)
        before = started(task)
        update = jax.jit(task.update)
        after, found = update(before, batch, key=jax.random.key(1))
        changes.append(jax.tree.map(jnp.subtract, after.players["model"].params, before.players["model"].params))
        metrics.append(read(found))
        assert ("scan" in str(jax.make_jaxpr(task.update)(before, batch, key=jax.random.key(1)))) == (parts > 1)
    assert gap(changes[1], changes[0]) < 1e-12
    assert {"loss", "reconstruction", "kl", "negative_elbo"} <= metrics[0].keys()
    assert metrics[1] == pytest.approx(metrics[0], rel=1e-12)
    other, _ = update(before, batch, key=jax.random.key(2))
    assert gap(other.players["model"].params, after.players["model"].params) > 1e-4


@pytest.mark.usefixtures("quick", "float64")
@pytest.mark.parametrize("beta", [1.0, 4.0])
@pytest.mark.parametrize("likelihood", ["bernoulli", "normal"])
def test_what_an_evaluation_says(likelihood, beta):
    """negative_elbo is reconstruction + kl whatever beta is; the loss is reconstruction + beta kl."""
    task, batch = small(beta=beta, likelihood=likelihood)
    found = read(jax.jit(task.evaluate)(started(task), batch, key=jax.random.key(1)))
    assert found["kl"] > 1e-3
    assert found["negative_elbo"] == pytest.approx(found["reconstruction"] + found["kl"], rel=1e-14)
    assert found["loss"] == pytest.approx(found["reconstruction"] + beta * found["kl"], rel=1e-14)


@pytest.mark.usefixtures("quick", "float64")
def test_several_samples_are_averaged():
    """With samples = 3 each metric is the mean of those with three noises; their counts are those of one."""
    task, batch = small(samples=3, beta=2.0)
    train_state, key = started(task), jax.random.key(1)
    params = train_state.players["model"].params
    found = jax.jit(task.evaluate)(train_state, batch, key=key)
    alone = []
    for k in jax.random.split(key, 3):
        noise = {"noise": jax.random.normal(k, (12, 3))}
        loss, _, metrics = task.full_loss(params, {}, batch | noise, key=None, train=False)
        alone.append(read(metrics | {"loss": loss}))
    assert found["loss"].count == batch["mask"].sum()
    for name, value in read(found).items():
        each = [one[name] for one in alone]
        assert value == pytest.approx(np.mean(each), rel=1e-13)
        assert name == "kl" or np.ptp(each) > 1e-3


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["data.kind=npz", "data.path=flat.npz", "data.normalise=standard"],
            "functrain: data.normalise: found 'standard'; task.kind = 'variational' needs \"none\"\n",
        ),
        (
            ["model={ kind = 'mlp', hidden = [16] }"],
            "functrain: model.kind: task.kind = variational needs a model with a latent vector (vae)\n",
        ),
    ],
)
def test_a_mistake_is_one_line(overrides, line, folder, capsys):
    """Bernoulli numbers that are normalised; a model that has no latent vector."""
    assert main(["train", "vae.toml", *overrides, "--out", "r"]) == 2
    assert capsys.readouterr().err == line
    assert not (folder / "r").exists()


@pytest.mark.usefixtures("quick")
def test_a_normal_likelihood_takes_what_is_normalised(folder):
    """And it learns it."""
    data = ["data.kind=npz", "data.path=flat.npz", "data.normalise=standard", "task.likelihood=normal"]
    assert main(["train", "vae.toml", *data, *QUIET, "--out", "r"]) == 0
    assert np.isfinite(json.loads((folder / "r" / "result.json").read_text())["test"]["negative_elbo"])


# -- runs -----------------------------------------------------------------------------------------


def test_chunks_and_resume_are_bitwise(folder):
    """Chunk 1 and chunk 40, and a run that ended at step 20 and was resumed; another seed is another run."""
    for name, overrides in (
        ("whole", ["train.chunk=40"]),
        ("ones", ["train.chunk=1"]),
        ("cut", ["train.chunk=40", "train.steps=20"]),
        ("other", ["train.seed=1"]),
    ):
        assert main(["train", "vae.toml", *QUIET, *overrides, "--out", name]) == 0
    assert main(["train", "--resume", "cut", "train.steps=40"]) == 0
    assert_equal_runs("whole", "ones")
    assert_equal_runs("whole", "cut")
    with pytest.raises(AssertionError):
        assert_equal_runs("whole", "other")


@pytest.mark.usefixtures("quick")
def test_it_learns_and_predicts_where_examples_lie(folder, capsys):
    """The bound of digits falls; `load` and `predict` give mean and log variance, and digits decoded from the mean."""
    longer = ["train.steps=300", "evaluate.every=100", "model.latent=2"]
    assert main(["train", "vae.toml", *longer, *QUIET, "--out", "r"]) == 0
    lines = [json.loads(line) for line in (folder / "r" / "metrics.jsonl").read_text().splitlines()]
    first = next(line for line in lines if line["split"] == "train")["negative_elbo"]
    last = json.loads((folder / "r" / "result.json").read_text())["test"]["negative_elbo"]
    assert first > 35  # 64 log 2 = 44 says nothing
    assert last < 0.8 * first
    model = load("r")
    test = model.config.data.load().test
    found = model.predict(test["x"])
    assert {name: value.shape for name, value in found.items()} == dict.fromkeys(
        ("mean", "log_variance"), (len(test["x"]), 2)
    )
    decoded = np.asarray(model(test["x"])["decoded"])
    assert decoded.shape == test["x"].shape
    x = test["x"] / 16
    assert np.square(decoded - x).mean() < 0.8 * np.square(x - x.mean(0)).mean()  # the mean image says nothing
    np.savez("few.npz", x=test["x"][:3])
    capsys.readouterr()
    assert main(["predict", "r", "few.npz"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [sorted(row) for row in rows] == [["log_variance", "mean"]] * 3
    np.testing.assert_allclose([row["mean"] for row in rows], found["mean"][:3], rtol=1e-5, atol=1e-6)


IMAGES = {"latent.png", "reconstructions.png", "samples.png", "plane.png"}


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (["model.latent=1"], IMAGES),
        (["model.latent=2"], IMAGES),
        (["data.kind=npz", "data.path=flat.npz"], {"latent.png"}),
    ],
    ids=["one unit", "two units", "flat"],
)
@pytest.mark.usefixtures("quick")
def test_what_is_drawn(overrides, wanted, folder):
    """Of a latent vector of one and of two units; of numbers that are no image only where they lie."""
    assert main(["train", "vae.toml", "train.steps=2", *overrides, "--out", "r"]) == 0
    assert {path.name for path in (folder / "r" / "figures").iterdir()} == wanted | {"curves.png"}
