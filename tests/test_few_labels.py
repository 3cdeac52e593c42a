"""Few labels and many examples: which are kept, FixMatch's two losses, features of two views and what they are for."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import agree, draw
from helpers import assert_equal_runs

from functrain import losses, trained
from functrain.augment import Crop
from functrain.building import build
from functrain.cli import main
from functrain.config import ConfigError
from functrain.data import Digits, Npz
from functrain.data.few_labels import FewLabels
from functrain.experiment import Experiment
from functrain.models import MLP
from functrain.optim import Learner
from functrain.tasks import FixMatch, SimCLR
from functrain.tasks.views import view

# -- the source -----------------------------------------------------------------------------------


@pytest.fixture
def digits_whole():
    """The digits as their source gives them."""
    return Digits().load()


def test_a_few_keep_their_labels(digits_whole):
    """So many of each class, over and over to the share asked for; of the others the labels are gone."""
    source = FewLabels(source=Digits(), labels=20, share=0.25)
    made, n = source.load(), len(digits_whole)
    few = made.train["labelled"] == 1
    assert (~few).sum() == n
    np.testing.assert_array_equal(made.train["x"][~few], digits_whole.train["x"])
    assert not made.train["y"][~few].any()
    assert few.mean() == pytest.approx(0.25, abs=0.01)
    rows, counts = np.unique(made.train["x"][few].reshape(few.sum(), -1), axis=0, return_counts=True)
    assert len(rows) == 20
    assert len(set(counts)) == 1
    labels = {tuple(x.ravel()): y for x, y in zip(digits_whole.train["x"], digits_whole.train["y"])}
    assert all(labels[tuple(x.ravel())] == y for x, y in zip(made.train["x"][few], made.train["y"][few]))
    assert np.bincount(made.train["y"][few]).tolist() == [few.sum() / 10] * 10
    for split in ("validation", "test"):
        np.testing.assert_array_equal(made.split(split)["y"], digits_whole.split(split)["y"])
        assert made.split(split)["labelled"].all()
    other = FewLabels(source=Digits(), labels=20, labels_seed=1)
    assert not np.array_equal(source.chosen(digits_whole), other.chosen(digits_whole))
    alone = FewLabels(source=Digits(), labels=20, unlabelled=False).load()
    assert len(alone) == 20
    np.testing.assert_array_equal(alone.train["x"], digits_whole.train["x"][source.chosen(digits_whole)])


def test_rows_of_a_file(digits_whole, tmp_path, monkeypatch):
    """The very rows; what is no list of rows is refused with one line."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.json").write_text("[7, 3, 100]")
    made = FewLabels(source=Digits(), labels=0, rows="rows.json", unlabelled=False).load()
    np.testing.assert_array_equal(made.train["y"], digits_whole.train["y"][[3, 7, 100]])
    for text in ("[1, 1]", "[-1]", "[99999]", "{}", "[]", "[1.5]", "rows"):
        (tmp_path / "rows.json").write_text(text)
        with pytest.raises(ConfigError, match=r"data.rows: rows.json"):
            FewLabels(source=Digits(), labels=0, rows="rows.json").load()


def test_mistakes(tmp_path, monkeypatch):
    """Numbers of labels that do not go round, sources without classes, both or neither of labels and rows."""
    monkeypatch.chdir(tmp_path)
    np.savez("numbers.npz", x=np.zeros((30, 2), np.float32), y=np.zeros(30, np.float32))
    for source, words in (
        (FewLabels(source=Digits(), labels=15), "data.labels: found 15; expected a multiple of the 10 classes"),
        (FewLabels(source=Digits(), labels=9000), "data.labels: found 9000; class 0 has"),
        (FewLabels(source=Npz(path="numbers.npz")), "data.source: expected examples with integer labels"),
        (FewLabels(source=Npz(path="gone.npz")), r"data\.source.*gone\.npz"),
    ):
        with pytest.raises(ConfigError, match=words):
            source.load()
    for given in ({"labels": 0}, {"labels": 10, "rows": "a.json"}):
        with pytest.raises(ValueError, match="give labels"):
            FewLabels(source=Digits(), **given)


def test_units_are_the_sources(tmp_path, monkeypatch):
    """Normalised by the training part of the source, through the wrapper."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.savez("a.npz", x=rng.normal(5, 2, (60, 3)).astype(np.float32), y=np.arange(60) % 3)
    source = FewLabels(source=Npz(path="a.npz", normalise="standard"), labels=6, batch_size=8)
    settings = Experiment(task=FixMatch(weak=(), strong=()), data=source)
    made = source.load()
    found = made.found["source"]
    batch = FewLabels(source=found, labels=6).prepare({"x": jnp.asarray(made.train["x"]), "labelled": jnp.ones(3)})
    x = np.asarray(batch["x"])[made.train["labelled"] == 0]
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(x.std(0), 1, atol=1e-4)
    assert batch["labelled"].shape == (3,)
    with pytest.raises(ConfigError, match=r"data\.normalise: found .standard"):
        build(settings)


# -- FixMatch -------------------------------------------------------------------------------------


class Table:
    """A model whose logits are looked up: x [n, 1] is the row."""

    def apply(self, params, state, x, *, key=None, train=False):
        """The rows, and how many images the model was shown."""
        return params[x[:, 0].astype(int)], state | {"shown": len(x)}


@pytest.mark.usefixtures("float64")
def test_fixmatch_is_its_formula():
    """Labelled rows by their labels; of the others those that are sure, by their own class, over all of them."""
    logits = draw(0, 10, 3) * 2
    logits[4:6] *= 9  # rows 4 and 5 are sure, and 6 and 7 not
    task = FixMatch(threshold=0.95, weight=0.5, weak=(), strong=())
    task = task.assemble(Table(), lambda name: Learner())
    x = jnp.arange(8.0)[:, None]
    batch = {
        "x": x,
        "strong": (x + 2) % 10,
        "y": jnp.array([2, 0, 1, 0, 0, 0, 0, 0]),
        "labelled": jnp.array([1.0] * 3 + [0.0] * 5),
        "mask": jnp.array([1.0, 1, 0, 1, 1, 1, 1, 0]),
    }
    means, state, metrics = task.full_loss(jnp.asarray(logits), {}, batch, key=None, train=True)
    assert state["shown"] == 16
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    agree(means["supervised"].value, np.asarray(-(log_p[0, 2] + log_p[1, 0]) / 2), 1e-13)
    others = [3, 4, 5, 6]
    sure = [i for i in others if np.exp(log_p[i]).max() >= 0.95]
    assert 0 < len(sure) < 4
    each = [-log_p[i + 2, log_p[i].argmax()] for i in sure]
    agree(means["unsupervised"].value, np.asarray(0.5 * sum(each) / 4), 1e-13)
    assert metrics["confident"].value == len(sure) / 4

    def total(logits):
        return task.full_loss(logits, {}, batch, key=None, train=True)[0]["unsupervised"].total

    slope = np.asarray(jax.grad(total)(jnp.asarray(logits)))
    assert set(np.flatnonzero(np.abs(slope).sum(1))) == {i + 2 for i in sure}  # none through what is believed


def test_views_are_drawn_each_by_itself():
    """Two augmentations of one kind draw different numbers, two keys too; one key the same ones."""
    x = jnp.arange(4 * 36.0).reshape(4, 6, 6)
    crop = (Crop(padding=3),)
    a, b = (view(crop, x, jax.random.key(i)) for i in (0, 1))
    assert (a != b).any()
    np.testing.assert_array_equal(a, view(crop, x, jax.random.key(0)))
    first = Crop(padding=3).apply({"x": x}, key=jax.random.fold_in(jax.random.key(0), 0))
    second = Crop(padding=3).apply(first, key=jax.random.fold_in(jax.random.key(0), 1))
    np.testing.assert_array_equal(view(crop * 2, x, jax.random.key(0)), second["x"])


TOML = """
[task]
kind = "fixmatch"
weak = [{ kind = "crop", padding = 1 }]
strong = [{ kind = "crop", padding = 1 }, { kind = "cutout", size = 3 }]
threshold = 0.8
[model]
kind = "cnn"
channels = [8]
hidden = [32]
[data]
kind = "few_labels"
labels = 40
batch_size = 64
source = { kind = "digits" }
[optimizer]
kind = "adamw"
peak_lr = 5e-3
[train]
steps = 300
log_every = 25
[evaluate]
every = 150
[observe]
tensorboard = false
figures = false
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with fixmatch.toml."""
    (tmp_path / "fixmatch.toml").write_text(TOML)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_of_fixmatch(folder):
    """It learns, and grows sure; whole and resumed are the same bit for bit; the few labels alone are another run."""
    assert main(["train", "fixmatch.toml", "--out", "whole"]) == 0
    assert main(["train", "fixmatch.toml", "--out", "cut", "train.steps=150"]) == 0
    assert main(["train", "--resume", "cut", "train.steps=300"]) == 0
    assert_equal_runs("whole", "cut")
    assert json.loads((folder / "whole" / "result.json").read_text())["test"]["accuracy"] > 0.6
    lines = [json.loads(line) for line in (folder / "whole" / "metrics.jsonl").read_text().splitlines()]
    confident = [line["confident"] for line in lines if "confident" in line]
    assert confident[0] < 0.2 < confident[-1]
    assert trained.load("whole").predict(np.zeros((2, 8, 8)))["class"].shape == (2,)
    alone = ["data.unlabelled=false", "data.batch_size=40", "train.steps=2"]
    assert main(["train", "fixmatch.toml", "--out", "alone", *alone]) == 0
    line = json.loads((folder / "alone" / "metrics.jsonl").read_text().splitlines()[0])
    assert line["unsupervised"] is None  # of no example


# -- SimCLR ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
def test_features_without_labels(folder):
    """Nearest examples are of one class more often than pixels say; a classification starts from them."""
    text = TOML[TOML.index("[optimizer]") :]
    (folder / "simclr.toml").write_text(
        '[task]\nkind = "simclr"\nwidth = 24\nviews = [{ kind = "crop", padding = 1 }, { kind = "affine" }]\n'
        '[model]\nkind = "cnn"\nchannels = [8]\nhidden = [32]\n[data]\nkind = "digits"\nbatch_size = 64\n' + text
    )
    assert main(["train", "simclr.toml", "--out", "simclr"]) == 0
    assert main(["train", "simclr.toml", "--out", "cut", "train.steps=150"]) == 0
    assert main(["train", "--resume", "cut", "train.steps=300"]) == 0
    assert_equal_runs("simclr", "cut")
    found = json.loads((folder / "simclr" / "result.json").read_text())
    lines = [json.loads(line) for line in (folder / "simclr" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["split"] == "train"]
    assert losses[-1] < 0.85 * losses[0]
    assert found["test"]["recall_at_1"] > 0.85
    model = trained.load("simclr")
    assert model.predict(np.zeros((2, 8, 8)))["features"].shape == (2, 24)
    (folder / "probe.toml").write_text(
        '[task]\nkind = "classification"\n[model]\nkind = "cnn"\nchannels = [8]\nhidden = [32]\n'
        '[data]\nkind = "digits"\n[start]\nrun = "simclr"\nrename = [["^trunk/", ""]]\nfresh = ["^linear1/"]\n' + text
    )
    assert main(["train", "probe.toml", "--out", "probe", "train.steps=1", "optimizer.peak_lr=1e-9"]) == 0
    mine, theirs = trained.load("probe").params, model.params["trunk"]
    np.testing.assert_allclose(mine["conv0"]["kernel"], theirs["conv0"]["kernel"], rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("float64")
def test_simclr_is_nt_xent_of_its_projection():
    """Of both views through one batch; masked rows are neither asked nor compared with."""
    task = SimCLR(width=5, projection=(6, 3), temperature=0.3, views=())
    task = task.assemble(MLP(inputs=(4,), outputs=5, hidden=(7,)), lambda name: Learner())
    params, state = task.init(jax.random.key(0))
    params = params["model"]
    first, second = jnp.asarray(draw(0, 6, 4)), jnp.asarray(draw(1, 6, 4))
    mask = jnp.array([1.0, 1, 1, 1, 0, 1])
    batch = {"x": first, "first": first, "second": second, "mask": mask}
    found, _, _ = task.full_loss(params, state, batch, key=None, train=True)

    def projected(x):
        h = np.maximum(np.asarray(task.model.apply(params["trunk"], state, x)[0]), 0)
        for name in ("linear0", "linear1"):
            h = h @ np.asarray(params["projection"][name]["kernel"]) + np.asarray(params["projection"][name]["bias"])
            h = np.maximum(h, 0) if name == "linear0" else h
        return jnp.asarray(h)

    expected = losses.nt_xent(projected(first), projected(second), mask=mask, temperature=0.3)
    agree(found.value, expected.value, 1e-13)
