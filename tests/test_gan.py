"""Two players in one step: its laws of resuming and accumulation, the judge, and what is said of generated images."""

import dataclasses
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import draw
from helpers import same

from functrain import trained, tree
from functrain.cli import main
from functrain.metrics import Generated, frechet_distance, join
from functrain.models import DCGAN
from functrain.optim import SGD, Learner
from functrain.tasks import GAN
from functrain.train import state
from functrain.train.checkpoint import Directory, _read

JUDGE = """
[task]
kind = "classification"
[model]
kind = "cnn"
channels = [4]
hidden = [12]
[data]
kind = "npz"
path = "images.npz"
batch_size = 16
normalise = "standard"
[train]
steps = 20
[observe]
figures = false
tensorboard = false
"""
TOML = """
[task]
kind = "gan"
[task.judge]
run = "judge"
[model]
kind = "dcgan"
width = 4
latent = 6
[data]
kind = "npz"
path = "images.npz"
batch_size = 16
normalise = "none"
[optimizer]
kind = "adam"
peak_lr = 2e-3
b1 = 0.5
schedule = { kind = "constant" }
[players.generator.average]
kind = "ema"
decay = 0.9
[train]
steps = 24
log_every = 5
[checkpoint]
every = 8
keep = 9
[observe]
tensorboard = false
figures = false
"""


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A directory with images, configs, and a judge that was trained."""
    folder = tmp_path_factory.mktemp("judged")
    (folder / "judge.toml").write_text(JUDGE)
    (folder / "gan.toml").write_text(TOML)
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 90)
    x = rng.uniform(0, 1, (90, 8, 8)) * (np.arange(8) // 3 == y[:, None])[:, None]
    np.savez(folder / "images.npz", x=x.astype(np.float32), y=y)
    np.savez(folder / "grey.npz", x=255 * x.astype(np.float32), y=y)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "judge.toml", "--out", "judge"]) == 0
    return folder


@pytest.fixture
def folder(judged, tmp_path, monkeypatch):
    """Of the same, a copy to work in."""
    shutil.copytree(judged, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def arrays_of(out):
    """(step, arrays) of a run's newest checkpoint."""
    return Directory(Path(out) / "checkpoints").load()


def test_runs(folder, capsys):
    """Chunks and a stop change no bit; the judge is kept once, needed no more, and its own weights; pictures."""
    every = ["observe.figures=true", "observe.draw_every=12"]
    assert main(["train", "gan.toml", "--out", "a", "train.chunk=1", *every]) == 0
    shown = capsys.readouterr().out
    assert "judge  judge, step 20" in shown
    assert {p.name for p in (folder / "a" / "figures").rglob("*.png")} == {"curves.png", "layers.png", "samples.png"}
    assert (folder / "a" / "figures" / "step00000012" / "samples.png").is_file()
    shutil.move("judge", "gone")
    step, arrays = arrays_of("a")
    _, judge = arrays_of("gone")
    kept = {path: a for path, a in arrays.items() if path.startswith("state/state/judge/")}
    assert (step, len(kept)) == (24, 6)
    for path, array in kept.items():
        np.testing.assert_array_equal(
            array, judge[path.replace("state/state/judge/params", "state/players/model/params")]
        )
    assert set(_read(folder / "a" / "checkpoints" / "constant" / "state")) == set(kept)
    assert main(["train", "--resume", "a"]) == 0  # of a finished run: all of it is read, nothing is done

    shutil.move("gone", "judge")
    assert main(["train", "gan.toml", "--out", "b", "train.chunk=40", "train.steps=8"]) == 0
    assert main(["train", "--resume", "b", "train.steps=24"]) == 0
    lines = [(folder / out / "metrics.jsonl").read_text() for out in "ab"]
    assert same(arrays, arrays_of("b")[1])
    assert lines[0].splitlines()[-2:] == lines[1].splitlines()[-2:]
    found = trained.evaluate(Path("a"), "test")
    assert {"fid", "inception_score", "classes", "confident", "real_accuracy", "fake_accuracy"} <= found.keys()
    model = trained.load("a")
    assert model.predict(np.zeros((3, 8, 8)))["score"].shape == (3,)
    images = model.task.sample(model.train_state, 5, key=jax.random.key(0))
    assert images.shape == (5, 8, 8)
    assert 0 <= float(images.min()) < float(images.max()) <= 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["task.judge.run=nowhere"], ("task.judge.run: nowhere: no run is there",)),
        (["task.judge.step=7"], ("task.judge.step: found 7", "20")),
        (["task.judge.member=3"], ("task.judge.member: found 3",)),
        (["task.critic_steps=5"], ("task.critic_steps: found 5", "16")),
        (["task.loss=hinge", "task.smoothing=0.1"], ("task.smoothing", "logistic")),
        (["data.normalise=standard"], ("data.normalise", '"none"')),
        (["data.path=grey.npz"], ("data: inputs are in 0..25", "'gan' needs 0..1")),
        (["model.kind=mlp", "model.width=4"], ("model.width",)),
    ],
    ids=str,
)
def test_mistakes(folder, capsys, arguments, said):
    """One line, and nothing written."""
    assert main(["train", "gan.toml", "--out", "r", *arguments]) == 2
    line = capsys.readouterr().err.strip()
    assert "\n" not in line
    assert all(part in line for part in said), line
    assert not (folder / "r").exists()


def test_models_without_players_or_features(folder, capsys):
    """Each is one line."""
    text = TOML.replace('kind = "dcgan"\nwidth = 4\nlatent = 6', 'kind = "mlp"')
    (folder / "mlp.toml").write_text(text)
    assert main(["train", "mlp.toml", "--out", "r"]) == 2
    assert "model.kind: task.kind = gan needs a model of two players" in capsys.readouterr().err
    (folder / "judge.toml").write_text(
        JUDGE.replace('kind = "cnn"\nchannels = [4]\nhidden = [12]', 'kind = "cifar_resnet"\nlayers = 8\nwidth = 4')
    )
    assert main(["train", "judge.toml", "--out", "resnet", "train.steps=1"]) == 0
    assert main(["train", "gan.toml", "--out", "r", "task.judge.run=resnet"]) == 2
    assert "task.judge.run: a model of kind 'cifar_resnet' gives no features" in capsys.readouterr().err


def test_a_teacher_is_given_what_it_learned_from(folder):
    """The judge's outputs on images as they are, and those of its own run on the same."""
    assert main(["train", "gan.toml", "--out", "a", "train.steps=1"]) == 0
    model, judge = trained.load("a"), trained.load("judge")
    x = np.random.default_rng(0).uniform(0, 1, (5, 8, 8)).astype(np.float32)
    task, held = model.task.judge, model.train_state.state["judge"]
    np.testing.assert_allclose(task.apply(held, jnp.asarray(x)), judge(x), rtol=1e-5, atol=1e-5)
    last = judge.params["linear1"]
    features = task.features(held, jnp.asarray(x))
    np.testing.assert_allclose(features @ last["kernel"] + last["bias"], judge(x), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("float64", "quick")
def test_accumulated_is_whole():
    """A discriminator without batch norm learns the same from micro-batches; with it, another thing."""

    def learned(norm, accumulate):
        learner = Learner(optimizer=SGD(peak_lr=0.1), accumulate=accumulate)
        model = DCGAN(latent=3, width=2, norm=norm, inputs=(16, 16))
        parts = {"model": model, "generator_learner": Learner(), "discriminator_learner": learner}
        task = dataclasses.replace(GAN(gradient_penalty=1.0), **parts)
        train_state = jax.jit(lambda: state.init(task, jax.random.key(0)))()
        batch = {"x": jnp.asarray(1 / (1 + np.exp(-draw(0, 8, 16, 16))))}
        new, _ = jax.jit(task.update)(train_state, batch, key=jax.random.key(1))
        before, after = (s.players["discriminator"].params for s in (train_state, new))
        return np.concatenate([(a - b).ravel() for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(before))])

    whole, cut = learned("none", 1), learned("none", 4)
    assert np.abs(whole).max() > 1e-5
    np.testing.assert_allclose(cut, whole, rtol=0, atol=1e-12 * np.abs(whole).max())
    assert np.abs(learned("batch", 4) - learned("batch", 1)).max() > 1e-6


@pytest.mark.usefixtures("quick")
def test_statistics_are_moved_by_their_own_loss():
    """With a generator that does not learn, its statistics move once a step; the discriminator's twice."""
    model = DCGAN(latent=3, width=2, inputs=(16, 16), norm="batch")
    frozen = Learner(optimizer=SGD(peak_lr=1e-20))
    task = dataclasses.replace(GAN(), model=model, generator_learner=frozen, discriminator_learner=frozen)
    train_state = jax.jit(lambda: state.init(task, jax.random.key(0)))()
    x = jnp.asarray(draw(1, 6, 16, 16), jnp.float32) * 0.1 + 0.5
    new, _ = jax.jit(task.update)(train_state, {"x": x}, key=jax.random.key(1))
    z = jax.random.normal(jax.random.split(jax.random.key(1), 4)[0], (6, 3))
    generate, judge = (jax.jit(part.apply, static_argnames="train") for part in (model.generator, model.discriminator))
    made, generator = generate(train_state.players["generator"].params, train_state.state["generator"], z, train=True)
    params, discriminator = train_state.players["discriminator"].params, train_state.state["discriminator"]
    for images in (2 * x - 1, made):
        _, discriminator = judge(params, discriminator, images, train=True)
    for name, expected in (("generator", generator), ("discriminator", discriminator)):
        assert expected
        for path, leaf in tree.by_path(expected).items():
            np.testing.assert_allclose(tree.by_path(new.state[name])[path], leaf, rtol=2e-5, atol=1e-7, err_msg=path)


def test_frechet_distance():
    """Known for normal distributions of one axis and of commuting covariances; zero of itself; of few rows too."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 2, (50, 1)), rng.normal(-1, 0.5, (70, 1))
    (s, t), (m, n) = (a.std(ddof=1), b.std(ddof=1)), (a.mean(), b.mean())
    np.testing.assert_allclose(frechet_distance(a, b), (m - n) ** 2 + (s - t) ** 2, rtol=1e-12)
    c = rng.normal(size=(40, 5)) @ rng.normal(size=(5, 5))
    np.testing.assert_allclose(
        frechet_distance(c, 3 * c - 1), ((2 * c.mean(0) - 1) ** 2).sum() + 4 * np.trace(np.cov(c.T)), rtol=1e-9
    )
    assert abs(frechet_distance(c, c)) < 1e-9
    scipy = pytest.importorskip("scipy.linalg", reason="scipy comes with jax")
    d = rng.normal(size=(30, 5)) @ rng.normal(size=(5, 5)) + 1
    root = scipy.sqrtm(np.cov(c.T) @ np.cov(d.T)).real
    expected = ((c.mean(0) - d.mean(0)) ** 2).sum() + np.trace(np.cov(c.T) + np.cov(d.T) - 2 * root)
    np.testing.assert_allclose(frechet_distance(c, d), expected, rtol=1e-9)
    assert np.isfinite(frechet_distance(c[:3], d[:3]))


def test_numbers_of_generated_images():
    """The Inception Score of its definition, classes of the first thousand, masked rows left out, nan of one row."""
    rng = np.random.default_rng(1)
    p = rng.dirichlet(np.full(4, 0.3), 1200)
    p[:1000, 3], p[1000:, 3] = 0, 5  # class 3 after the first thousand alone
    p /= p.sum(1, keepdims=True)
    features = rng.normal(size=(1200, 3))
    mask = np.ones(1200)
    whole = Generated(features, features + 2, p, mask=mask)
    found = whole.numbers()
    expected = np.exp(np.mean([sum(q * np.log(q / m) for q, m in zip(row, p.mean(0)) if q > 0) for row in p]))
    np.testing.assert_allclose(found["inception_score"], expected, rtol=1e-12)
    np.testing.assert_allclose(found["fid"], 12, rtol=1e-9)
    assert found["classes"] == 3
    np.testing.assert_allclose(found["confident"], np.mean(p.max(1) >= 0.9))
    assert 0.05 < found["confident"] < 0.95
    padded = Generated(
        *(np.concatenate([x, 9 + x[:5]]) for x in (features, features + 2, p)), mask=np.append(mask, np.zeros(5))
    )
    joined = join([padded]).numbers()
    assert all(joined[name] == found[name] for name in found)
    assert np.isnan(list(Generated(features[:1], features[:1], p[:1], mask=mask[:1]).numbers().values())).all()
