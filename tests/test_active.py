"""Active learning: who is asked for, that the runs hold what the files say, that a broken loop goes on."""

import json
import shutil

import numpy as np
import pytest

from functrain import active, runs, trained
from functrain.cli import main
from functrain.data import Digits

TOML = """
[task]
kind = "classification"
[model]
kind = "mlp"
hidden = [16]
[data]
kind = "few_labels"
labels = 20
unlabelled = false
batch_size = 20
source = { kind = "digits" }
[optimizer]
kind = "adamw"
peak_lr = 1e-2
[train]
steps = 30
[evaluate]
every = 30
[observe]
tensorboard = false
figures = false
"""
ASKED = ["active", "active.toml", "--out", "loop", "--rounds", "2", "--add", "15", "--by", "entropy,random"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A working directory with active.toml and a loop of two criteria that is done."""
    folder = tmp_path_factory.mktemp("active")
    (folder / "active.toml").write_text(TOML)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(ASKED) == 0
    return folder


@pytest.fixture
def folder(finished, tmp_path, monkeypatch):
    """Of the same, a copy to work in."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows_of(folder, by, number):
    """The rows with labels in a round."""
    return np.array(json.loads((folder / "loop" / by / f"rows-{number}.json").read_text()))


def test_the_most_uncertain_are_asked_for(folder):
    """Each round keeps its labels and adds those with the largest entropy under the last round's model, by hand."""
    config = runs.read_config(folder / "loop" / "start")
    before, place = config.data.chosen(Digits().load()), folder / "loop" / "start"
    x = Digits().load().train["x"]
    for number in (1, 2):
        after = rows_of(folder, "entropy", number)
        assert set(before) < set(after)
        assert len(after) == len(before) + 15
        logits = np.asarray(trained.load(place)(x), np.float64)
        p = np.exp(logits - logits.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        entropy = -(p * np.log(p)).sum(-1)
        new, left = np.setdiff1d(after, before), np.setdiff1d(np.arange(len(x)), after)
        assert entropy[new].min() >= entropy[left].max()
        place = folder / "loop" / "entropy" / f"round-{number}"
        used = runs.read_config(place).data.load().train
        np.testing.assert_array_equal(used["x"], x[after])
        np.testing.assert_array_equal(used["y"], Digits().load().train["y"][after])
        before = after
    assert set(rows_of(folder, "random", 1)) != set(rows_of(folder, "entropy", 1))


def test_what_it_says_is_what_the_runs_reached(folder, capsys):
    """result.json has each run's test by criterion; the picture is there; the same command again trains nothing."""
    found = json.loads((folder / "loop" / "result.json").read_text())
    assert list(found) == ["entropy", "random"]
    for by, points in found.items():
        places = [folder / "loop" / "start", *(folder / "loop" / by / f"round-{i}" for i in (1, 2))]
        for point, place, labels in zip(points, places, (20, 35, 50), strict=True):
            test = json.loads((place / "result.json").read_text())["test"]
            assert point == {"labels": labels} | test
    assert (folder / "loop" / "curve.png").read_bytes().startswith(b"\x89PNG")
    times = {path: path.stat().st_mtime_ns for path in (folder / "loop").rglob("checkpoints")}
    assert main(ASKED) == 0
    assert times == {path: path.stat().st_mtime_ns for path in (folder / "loop").rglob("checkpoints")}
    assert "labels" in capsys.readouterr().out


def test_a_broken_loop_goes_on(folder, monkeypatch):
    """A round that was stopped is resumed, one that was lost is trained again: to the same bits."""
    before = {path: path.read_text() for path in (folder / "loop").rglob("rows-*.json")}
    result = (folder / "loop" / "result.json").read_text()
    shutil.rmtree(folder / "loop" / "entropy" / "round-2")
    (folder / "loop" / "entropy" / "rows-2.json").unlink()
    shutil.rmtree(folder / "loop" / "random" / "round-1")

    real, calls = runs.train, []

    def train(config, out, **settings):
        calls.append(out)
        return 75 if len(calls) == 1 else real(config, out, **settings)

    monkeypatch.setattr(runs, "train", train)
    assert main(ASKED) == 75
    assert main(ASKED) == 0
    assert len(calls) == 3  # round 2 in vain, round 2, and random's round 1
    assert before == {path: path.read_text() for path in (folder / "loop").rglob("rows-*.json")}
    assert json.loads(result) == json.loads((folder / "loop" / "result.json").read_text())


def test_several_seeds_are_one_committee(folder):
    """Their mean probability is what is asked by, and the curve has their deviation."""
    command = ["active", "active.toml", "--out", "seeds", "--rounds", "1", "--add", "5", "--by", "margin"]
    assert main([*command, "train.seeds=2", "train.steps=3"]) == 0
    x = Digits().load().train["x"]
    found = active.probabilities(folder / "seeds" / "start", x)
    each = []
    for member in (0, 1):
        logits = np.asarray(trained.load(folder / "seeds" / "start", member=member)(x), np.float64)
        p = np.exp(logits - logits.max(-1, keepdims=True))
        each.append(p / p.sum(-1, keepdims=True))
    assert np.abs(each[0] - each[1]).max() > 0.01
    np.testing.assert_allclose(found, np.mean(each, 0), atol=1e-6)
    assert "accuracy_deviation" in json.loads((folder / "seeds" / "result.json").read_text())["margin"][1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--by", "luck"], "--by: found 'luck'; there are: entropy, margin, confidence, random"),
        (["--add", "0"], "found --rounds 2, --add 0; expected both to be at least 1"),
        (["--add", "900"], "--add: 20 + 2 x 900 labels; there are 1257 training examples"),
        (["data={kind='digits'}"], 'data.kind: active learning begins with few labels; expected "few_labels"'),
        (["task={kind='regression'}"], "task.kind: active learning asks for classes"),
        (["train.steps=31"], "--out: loop has runs with another train.steps: 30, now 31; choose another --out"),
        (["--add", "14", "--rounds", "1"], "--add: found 14; loop/entropy/rows-1.json adds 15"),
        (["--out", "."], "--out: . exists and holds something else"),
        (["--out", "new", "model={kind='lenet'}"], "model.kind: lenet"),
    ],
)
def test_mistakes(folder, capsys, arguments, words):
    """What does not fit, and other runs in the place: one line, status 2, nothing written."""
    before = sorted((folder).rglob("*"))
    assert main([*ASKED, *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert sorted((folder).rglob("*")) == before
