"""A run that a loss without a value ends: where it was, and what made it."""

import json

import pytest
from helpers import final_arrays, same

from functrain.cli import main
from functrain.observe.events import history

ROOTS = """
import jax.numpy as jnp
import numpy as np


def data(bad: int = 37):
    x = np.linspace(0.5, 2.0, 100, dtype="float32")[:, None]
    x[bad] = -1.0
    return {"train": {"x": x, "y": np.log(np.abs(x))}}


def model(inputs: tuple, outputs: int):
    def init(key):
        return {"scale": jnp.ones(1)}

    def apply(params, x):
        return jnp.log(params["scale"] * x)  # of a negative x there is none

    return init, apply
"""
CONFIG = """
[task]
kind = "regression"
[model]
kind = "custom"
target = "roots:model"
[data]
kind = "custom"
target = "roots:data"
batch_size = 10
[optimizer]
kind = "sgd"
peak_lr = 0.1
[train]
steps = 20
log_every = 1
[observe]
figures = false
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """With a data set of which one example, in the first pass over it, has no loss."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "roots.py").write_text(ROOTS)
    (tmp_path / "c.toml").write_text(CONFIG)
    return tmp_path


def _first_bad(folder):
    """The step that is not finite, by a run that goes on without it."""
    assert main(["train", "c.toml", "--out", "skips"]) == 0
    lines = [line for line in history(folder / "skips" / "metrics.jsonl") if line["split"] == "train"]
    assert json.loads((folder / "skips" / "result.json").read_text())["skipped_steps"] == 2  # once in each pass
    return next(line["step"] for line in lines if line["loss"] is None) - 1


@pytest.mark.parametrize("chunk", [1, 7])
def test_the_run_ends_with_its_cause(folder, capsys, chunk):
    """Status 1; the step, the line of the log and what it was given; nothing has changed since."""
    bad = _first_bad(folder)
    given = ["train.on_nonfinite=stop", "train.log_every=20", f"train.chunk={chunk}"]
    assert main(["train", "c.toml", "--out", "stops", *given]) == 1
    told = (folder / "stops" / "nonfinite.txt").read_text()
    assert f"step {bad}: the loss or its gradient is not finite" in told
    assert "forward: the first nan is the value of" in told
    assert "roots.py:17" in told
    assert "from -1" in told
    assert told.splitlines()[1] in capsys.readouterr().out
    assert not (folder / "stops" / "result.json").exists()


def test_a_finite_run_is_the_same(folder):
    """Bitwise, with and without."""
    (folder / "fine.py").write_text(ROOTS.replace("x[bad] = -1.0", ""))
    ends = []
    for name in ("skip", "stop"):
        given = [f"train.on_nonfinite={name}", "data.target='fine:data'"]
        assert main(["train", "c.toml", "--out", name, *given]) == 0
        ends.append(final_arrays(folder / name)[1])
    assert same(*ends)


def test_members_are_told_by_their_seeds(folder):
    """Of several seeds, the one that it was."""
    given = ["train.on_nonfinite=stop", "train.seeds=2", "train.seed=5"]
    assert main(["train", "c.toml", "--out", "two", *given]) == 1
    told = (folder / "two" / "nonfinite.txt").read_text()
    assert "train.seeds=1 train.seed=" in told


def test_a_loss_scale_is_made_to_skip(folder, capsys):
    """One line."""
    assert main(["train", "c.toml", "--out", "r", "train.on_nonfinite=stop", "precision.kind=float16"]) == 2
    assert "train.on_nonfinite" in capsys.readouterr().err
    assert not (folder / "r").exists()
