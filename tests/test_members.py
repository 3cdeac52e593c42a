"""Several seeds in one run, and k folds."""

import json

import numpy as np
import pytest

from functrain import config, runs, trained
from functrain.cli import main
from functrain.data import SPLITS, Digits
from functrain.train.checkpoint import Directory

BASE = """\
[task]
kind = "classification"
[model]
kind = "mlp"
hidden = [8]
dropout = 0.1
[data]
kind = "digits"
[optimizer]
peak_lr = 3e-3
[train]
steps = 30
[evaluate]
every = 10
[checkpoint]
every = 10
keep = 9
[observe]
tensorboard = false
figures = false
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a config."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.toml").write_text(BASE)
    return tmp_path


def arrays(run, step=None):
    """The arrays of a checkpoint."""
    return Directory(run / "checkpoints").load(step)[1]


def test_members_are_the_runs_of_their_seeds(here, capsys):
    """In turn: bit for bit the single runs. Together: to rounding. Mean and deviation are of those runs."""
    for i in range(3):
        assert main(["train", "c.toml", f"train.seed={5 + i}", "--out", f"one{i}"]) == 0
    for way in ("in_turn", "together"):
        arguments = ["train", "c.toml", "train.seed=5", "train.seeds=3", f"train.members={way}", "--out", way]
        assert main(arguments) == 0
    singles = [arrays(here / f"one{i}") for i in range(3)]
    in_turn, together = arrays(here / "in_turn"), arrays(here / "together")
    for i, single in enumerate(singles):
        for path, array in single.items():
            if not path.startswith("state/"):
                continue
            rest = path.removeprefix("state/")
            assert in_turn[f"state/{i}/{rest}"].tobytes() == array.tobytes(), path
            np.testing.assert_allclose(together[path][i], array, rtol=2e-4, atol=2e-6)
    assert any((together[p][0] != a).any() for p, a in singles[1].items() if p.startswith("state/players"))

    last = [_last_validation(here / f"one{i}") for i in range(3)]
    for way in ("in_turn", "together"):
        entry = _last_validation(here / way)
        for name in ("loss", "accuracy"):
            values = [one[name] for one in last]
            assert entry[name] == pytest.approx(np.mean(values), rel=1e-5)
            assert entry[f"{name}_deviation"] == pytest.approx(np.std(values, ddof=1), rel=1e-3, abs=1e-6)
        result = json.loads((here / way / "result.json").read_text())
        assert [m["seed"] for m in result["members"]] == [5, 6, 7]
        assert result["test"]["loss"] == pytest.approx(np.mean([m["loss"] for m in result["members"]]))
        assert result["parameters"] == 8 * 64 + 8 + 80 + 10


@pytest.mark.parametrize("way", ["in_turn", "together"])
def test_members_resume_and_load(here, way, capsys):
    """Stopped and resumed, or step by step, the run ends bit for bit alike; each member loads by its number."""
    common = ["train.seeds=2", f"train.members={way}", "optimizer.schedule.kind=constant"]
    assert main(["train", "c.toml", *common, "--out", "whole"]) == 0
    assert main(["train", "c.toml", *common, "train.steps=20", "--out", "half"]) == 0
    assert main(["train", "--resume", "half", "train.steps=30"]) == 0
    assert main(["train", "c.toml", *common, "train.chunk=1", "--out", "single"]) == 0
    whole = arrays(here / "whole")
    for other in (arrays(here / "half"), arrays(here / "single")):
        assert whole.keys() == other.keys()
        assert all(whole[path].tobytes() == other[path].tobytes() for path in whole)
    models = [trained.load(here / "whole", member=i) for i in range(2)]
    x = np.zeros((3, 8, 8), np.float32)
    assert models[0](x).shape == (3, 10)
    assert not np.allclose(models[0].params["layer0"]["kernel"], models[1].params["layer0"]["kernel"])
    capsys.readouterr()
    assert main(["eval", "whole"]) == 0
    found, result = json.loads(capsys.readouterr().out), json.loads((here / "whole" / "result.json").read_text())
    assert found["accuracy"] == pytest.approx(result["test"]["accuracy"])
    assert found["loss_deviation"] == pytest.approx(result["test"]["loss_deviation"], rel=1e-3)
    with pytest.raises(config.ConfigError, match="member 2"):
        trained.load(here / "whole", member=2)


def _last_validation(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return next(line for line in reversed(lines) if line["split"] == "validation")


def _all_digits():
    splits = Digits().load()
    return np.concatenate([splits.split(name)["x"] for name in SPLITS])


def test_folds_cover_the_data_and_go_on(here, capsys, monkeypatch):
    """Each example is in the test once; mean and deviation are of the folds; finished folds are not trained again."""
    assert main(["folds", "c.toml", "data.folds=3", "train.steps=10", "--out", "k"]) == 0
    summary = json.loads((here / "k" / "result.json").read_text())
    each = [json.loads((here / f"k/fold-{i}/result.json").read_text())["test"] for i in range(3)]
    assert summary["folds"] == each
    parts = [runs.read_config(here / f"k/fold-{i}").data.load().test["x"] for i in range(3)]
    assert sorted(x.tobytes() for part in parts for x in part) == sorted(x.tobytes() for x in _all_digits())
    assert summary["mean"]["accuracy"] == pytest.approx(np.mean([fold["accuracy"] for fold in each]))
    assert summary["deviation"]["loss"] == pytest.approx(np.std([fold["loss"] for fold in each], ddof=1))
    (here / "k" / "fold-1" / "result.json").unlink()
    trained_again = []
    monkeypatch.setattr(runs, "train", lambda *a, **k: trained_again.append(a))
    assert main(["folds", "c.toml", "data.folds=3", "train.steps=10", "--out", "k"]) == 0
    assert trained_again == []
    assert json.loads((here / "k" / "result.json").read_text())["mean"] == summary["mean"]


def test_the_rate_finder_finds_a_rate(here, capsys):
    """It prints a rate at which the loss falls, draws its picture, and training at that rate learns."""
    assert main(["find-rate", "c.toml", "--figure", "rates.png"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 1e-4 < found["suggestion"] < 0.3
    assert (here / "rates.png").read_bytes().startswith(b"\x89PNG")
    assert main(["find-rate", "c.toml", "--from", "1", "--to", "0.1"]) == 2
