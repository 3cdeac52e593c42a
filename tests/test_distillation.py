"""A student and its teacher: the loss is its formula, the teacher reads what it learned to read and never changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import agree, draw

from functrain import trained
from functrain.cli import main
from functrain.models import MLP
from functrain.optim import Learner
from functrain.tasks import Distillation
from functrain.tasks.teacher import Teacher

TEACHER = """
[task]
kind = "classification"
[model]
kind = "mlp"
hidden = [24]
[data]
kind = "npz"
path = "digits.npz"
batch_size = 64
normalise = "standard"
[optimizer]
kind = "adamw"
peak_lr = 1e-2
[train]
steps = 150
[observe]
figures = false
tensorboard = false
"""
STUDENT = (
    TEACHER.replace('"classification"', '"distillation"\nteacher = { run = "teacher" }')
    .replace("hidden = [24]", "hidden = [6]")
    .replace('normalise = "standard"', 'normalise = "none"')
    .replace("steps = 150", "steps = 120")
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, digits):
    """A directory with the digits, both configs, and a teacher that was trained."""
    folder = tmp_path_factory.mktemp("school")
    splits = {"": digits.train, "_validation": digits.validation, "_test": digits.test}
    arrays = {name + split: x for split, part in splits.items() for name, x in part.items()}
    np.savez(folder / "digits.npz", **{name: x / 16.0 if name[0] == "x" else x for name, x in arrays.items()})
    (folder / "teacher.toml").write_text(TEACHER)
    (folder / "student.toml").write_text(STUDENT)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "teacher.toml", "--out", "teacher"]) == 0
    return folder


@pytest.mark.usefixtures("float64")
def test_the_loss_is_its_formula():
    """Hard, soft and matched parts in numpy; a masked row counts nothing; no slope leads into the teacher."""
    big, small = (MLP(inputs=(5,), outputs=3, hidden=(n,), activation="tanh") for n in (7, 4))
    teacher = Teacher(run="r", model=big, centre=(0.5,), spread=(2.0,), data_centre=(-1.0,), data_spread=(3.0,))
    task = Distillation(teacher=teacher, temperature=3.0, soft=0.6, matching=0.25)
    task = task.assemble(small, lambda name: Learner())
    params, state = task.init(jax.random.key(0))
    params = params["model"]
    assert params["regressor"]["kernel"].shape == (4, 7)
    batch = {"x": jnp.asarray(draw(0, 6, 5)), "y": jnp.array([0, 1, 2, 2, 1, 0]), "mask": jnp.array([1.0] * 5 + [0.0])}
    means, new, _ = task.full_loss(params, state, batch, key=None, train=True)
    assert new == state or jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), new, state))

    def layer(p, x):
        return x @ np.asarray(p["kernel"]) + np.asarray(p["bias"])

    def log_softmax(z):
        return z - np.log(np.exp(z).sum(-1, keepdims=True))

    x = np.asarray(batch["x"])[:5]
    mine, theirs = np.tanh(layer(params["layer0"], x)), state["teacher"]["params"]
    features = np.tanh(layer(theirs["layer0"], ((x * 3 - 1) - 0.5) / 2))
    logits, answers = layer(params["layer1"], mine), layer(theirs["layer1"], features)
    hard = -log_softmax(logits)[np.arange(5), [0, 1, 2, 2, 1]].mean()
    target = log_softmax(answers / 3)
    soft = (np.exp(target) * (target - log_softmax(logits / 3))).sum(-1).mean()
    apart = ((layer(params["regressor"], mine) - features) ** 2).mean()
    expected = {"hard": 0.4 * hard, "soft": 0.6 * 9 * soft, "features": 0.25 * apart}
    assert means.keys() == expected.keys()
    for name, value in expected.items():
        agree(means[name].value, np.asarray(value), 1e-13)

    def total(params, state):
        means, *_ = task.full_loss(params, state, batch, key=None, train=True)
        return sum(m.total / m.count for m in means.values())

    slopes = jax.grad(total, (0, 1))(params, state)
    assert all((x == 0).all() for x in jax.tree.leaves(slopes[1]))
    assert all((x != 0).any() for x in jax.tree.leaves(slopes[0]))


def test_a_student_learns(folder, monkeypatch):
    """In units of its own; the teacher is as good as it was, and is not handed on with the student's weights."""
    monkeypatch.chdir(folder)
    assert main(["train", "student.toml", "--out", "student", "task.matching=0.1"]) == 0
    found, taught = trained.evaluate(folder / "student"), trained.evaluate(folder / "teacher")
    assert found["teacher_accuracy"] == pytest.approx(taught["accuracy"], abs=1e-9)
    assert taught["accuracy"] > 0.9
    assert found["agreement"] > 0.6
    before, after = (trained.load(name) for name in ("teacher", "student"))
    for a, b in zip(*map(jax.tree.leaves, (before.params, after.train_state.state["teacher"]["params"])), strict=True):
        np.testing.assert_array_equal(a, b)
    classification = STUDENT.replace('"distillation"\nteacher = { run = "teacher" }', '"classification"')
    (folder / "on.toml").write_text(classification + '[start]\nrun = "student"\n')
    assert main(["train", "on.toml", "--out", "on", "train.steps=1", "optimizer.peak_lr=1e-9"]) == 0
    x = np.asarray(draw(0, 4, 8, 8), np.float32)
    np.testing.assert_allclose(trained.load("on")(x), after(x), atol=1e-5)
    assert "teacher" not in (folder / "on" / "start.json").read_text()


def test_stopped_and_resumed(folder, monkeypatch):
    """A run that was stopped and went on, without the teacher's run, is the whole one, bit for bit."""
    monkeypatch.chdir(folder)
    assert main(["train", "student.toml", "--out", "whole", "train.steps=30", "train.log_every=10"]) == 0
    assert main(["train", "student.toml", "--out", "part", "train.steps=10", "train.log_every=10"]) == 0
    (folder / "teacher").rename(folder / "away")
    try:
        assert main(["train", "--resume", "part", "train.steps=30"]) == 0
    finally:
        (folder / "away").rename(folder / "teacher")
    for a, b in zip(*(jax.tree.leaves(trained.load(name, step=30).train_state.players) for name in ("whole", "part"))):
        np.testing.assert_array_equal(a, b)


def test_mistakes(folder, monkeypatch, capsys):
    """One line each: another number of classes, a model without features, on either side."""
    monkeypatch.chdir(folder)
    other = TEACHER.replace('path = "digits.npz"', 'path = "two.npz"')
    with np.load("digits.npz") as arrays:
        np.savez("two.npz", **{name: x % 2 if name[0] == "y" else x for name, x in arrays.items()})
    (folder / "two.toml").write_text(other)
    assert main(["train", "two.toml", "--out", "two", "train.steps=1"]) == 0
    for arguments, said in (
        (["task.teacher.run=two"], "task.teacher.run: its outputs are [2]; expected [10]"),
        (["task.soft=1.5"], "task.soft"),
        (["task.temperature=0"], "task.temperature"),
        (["task.matching=1.0", "model.kind=recurrent"], "model"),
    ):
        capsys.readouterr()
        assert main(["train", "student.toml", "--out", "r", *arguments]) == 2
        line = capsys.readouterr().err.strip()
        assert said in line
        assert "\n" not in line
        assert not (folder / "r").exists()
