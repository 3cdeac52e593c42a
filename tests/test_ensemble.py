"""Several seeds as one model: their predictions averaged, then scored."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import agree, draw

from functrain import trained
from functrain.cli import main
from functrain.tasks import Binary, Classification, Regression

TOML = """
[task]
kind = "classification"
[model]
kind = "mlp"
hidden = [8]
[data]
kind = "digits"
[optimizer]
peak_lr = 1e-2
[train]
steps = 60
seeds = 3
[evaluate]
every = 30
[observe]
tensorboard = false
"""


@pytest.mark.usefixtures("float64")
def test_what_is_averaged():
    """Probabilities of classes, of yes and no far out too; numbers as they are."""
    logits = draw(0, 3, 5, 4) * 30
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p = (p / p.sum(-1, keepdims=True)).mean(0)
    agree(jnp.exp(Classification().averaged(list(jnp.asarray(logits)))), p, 1e-13)
    yes, no = (1 / (1 + np.exp(-sign * logits)) for sign in (1, -1))
    agree(Binary().averaged(list(jnp.asarray(logits))), np.log(yes.mean(0) / no.mean(0)), 1e-12)
    agree(Regression().averaged(list(jnp.asarray(logits))), logits.mean(0), 1e-14)


@pytest.mark.parametrize("members", ["together", "in_turn"])
def test_an_ensemble_is_its_members_mean(tmp_path, monkeypatch, capsys, members):
    """Loss, accuracy and calibration of the mean probability of what each member says; drawn, and told by `eval`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.toml").write_text(TOML)
    assert main(["train", "c.toml", "--out", "r", f"train.members={members}"]) == 0
    assert "ensemble" in capsys.readouterr().out
    result = json.loads((tmp_path / "r" / "result.json").read_text())
    test = trained.load("r").config.data.load().test
    p = np.mean([jax.nn.softmax(trained.load("r", member=i)(test["x"])) for i in range(3)], 0)
    found, y = result["ensemble"], test["y"]
    assert found["split"] == "test"
    assert found["step"] == result["test"]["step"]
    assert found["accuracy"] == pytest.approx((p.argmax(1) == y).mean(), abs=1e-6)
    assert found["loss"] == pytest.approx(-np.log(p[np.arange(len(y)), y]).mean(), rel=1e-4)
    confidence, right = p.max(1), p.argmax(1) == y
    bins = np.minimum((confidence * 15).astype(int), 14)
    error = sum(abs(right[bins == b].sum() - confidence[bins == b].sum()) for b in range(15)) / len(y)
    assert found["calibration_error"] == pytest.approx(error, abs=2e-3)
    assert found["loss"] < result["test"]["loss"]
    assert {"ensemble_calibration.png", "ensemble_confusion.png"} <= {
        p.name for p in (tmp_path / "r/figures").iterdir()
    }
    assert main(["eval", "r"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ensemble"] == {name: found[name] for name in told["ensemble"]}


def test_one_seed_is_no_ensemble(tmp_path, monkeypatch):
    """Nothing is said of one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.toml").write_text(TOML.replace("seeds = 3", "seeds = 1"))
    assert main(["train", "c.toml", "--out", "r", "train.steps=2", "observe.figures=false"]) == 0
    assert "ensemble" not in json.loads((tmp_path / "r" / "result.json").read_text())
