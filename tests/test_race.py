"""The race of benchmarks/race.py, run small: equal losses, unequal ones, mistakes, and peers that are not here."""

import importlib.util
import io
import json
import re

import numpy as np
import pytest
from small_data import write_mnist

TORCH = importlib.util.find_spec("torch") is not None


@pytest.fixture
def race(root, tmp_path, monkeypatch):
    """The module, with a small MNIST at hand."""
    write_mnist(tmp_path / "mnist", np.random.default_rng(0))
    monkeypatch.setenv("FUNCTRAIN_DATA", str(tmp_path))
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    import race

    return race


def small(race, *arguments):
    """The status of a race over few steps."""
    return race.main(["mlp", "--rounds", "1", "--steps", "32", *arguments])


def test_peers_that_do_the_same_work_have_equal_losses(race, tmp_path, capsys):
    """functrain, jax by hand and torch: times of all, losses equal but for rounding; the files say the same."""
    peers = ["jax"] + ["torch-eager"] * TORCH
    file, page = tmp_path / "race.json", tmp_path / "race.md"
    assert small(race, "--peers", ",".join(peers), "--json", str(file), "--markdown", str(page)) == 0
    shown = capsys.readouterr().out
    worst = re.search(r"losses after 32 steps are equal \(largest difference (\S+)\)", shown)
    assert worst
    assert float(worst[1]) < 1e-4
    assert "not installed: none" in shown
    assert re.search(r"\| functrain +\|", page.read_text())
    report = json.loads(file.read_text())
    rows = {row["peer"]: row for row in report["works"][0]["peers"]}
    assert set(rows) == {"functrain", *peers}
    assert report["versions"].keys() >= {"functrain", "jax"}
    base = rows["torch-eager" if TORCH else "functrain"]["wall_ms"][0]
    for row in rows.values():
        assert row["wall_ms"][0] > 0
        assert row["wall_ratio"] == pytest.approx(base / row["wall_ms"][0])
        assert row["loss"] == pytest.approx(rows["functrain"]["loss"], rel=1e-4)


def test_a_wrong_start_is_found(race, monkeypatch, capsys):
    """A parameter that the peers are given otherwise: status 1, and the peer is named."""

    def planted(work, path):
        export(work, path)
        with np.load(path) as file:
            arrays = dict(file)
        arrays["params/layer1/bias"][3] += 0.1
        np.savez(path, **arrays)

    export = race.export
    monkeypatch.setattr(race, "export", planted)
    assert small(race, "--peers", "jax") == 1
    shown = capsys.readouterr().out
    assert "losses after 32 steps are NOT equal: jax (" in shown


def test_a_peer_that_fails_says_why(race, tmp_path):
    """The error in its last lines, and a row in the table."""
    np.savez(tmp_path / "work.npz", settings=json.dumps({"path": ""}), order=np.zeros((1, 1)))
    peer = race.Peer("jax", tmp_path / "work.npz", 1)
    with pytest.raises(race.Failed, match=r"^jax: TypeError: .* missing 3 required"):
        peer.answer()
    peer.close()
    said = io.StringIO(
        "Traceback:\n  at f\njax.errors.JaxRuntimeError: no memory\n----\nFor simplicity, frames are left out\n"
    )
    assert race.last_words(said) == "jax.errors.JaxRuntimeError: no memory"
    rows = [{"peer": "jax", "failed": "jax: TypeError: so", "equal": False}]
    assert re.search(r"\| jax +\| failed +\|", race.table(rows))
    assert "failed: jax: TypeError: so" in race.verdict(rows, "losses")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["chess"], "work: found 'chess'; expected mlp, mlp-large"),
        (["mlp", "--peers", "jax,caffe"], "peer: found 'caffe'; expected torch-eager"),
        (["mlp", "--rounds", "0"], "--rounds: found 0; expected at least 1"),
    ],
)
def test_a_mistake_is_one_line(race, capsys, given, said):
    """Before anything runs; status 2."""
    assert race.main(given) == 2
    told = capsys.readouterr()
    assert not told.out
    assert told.err.startswith(f"race.py: {said}")
    assert told.err.count("\n") == 1


def test_a_peer_that_is_not_installed_is_named(race, monkeypatch, capsys):
    """With what it needs; the others run."""

    def nothing(work, peers, *_):
        return [{"peer": peer, "failed": "", "equal": False} for peer in peers]

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "keras" else find(name))
    monkeypatch.setattr(race, "race", nothing)
    assert small(race, "--peers", "keras,jax") == 1
    shown = capsys.readouterr().out
    assert "not installed: keras (needs keras)" in shown
    assert re.search(r"\| jax +\|", shown)
    assert not re.search(r"\| keras +\|", shown)
