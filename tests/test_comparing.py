"""`compare-estimators`: budgets, rates, refusals, and the same twice."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from functrain import comparing, runs
from functrain.building import build
from functrain.built import compile as compiled
from functrain.comparing import compare, of_kind, search
from functrain.config import ConfigError, parse
from functrain.experiment import Experiment
from functrain.metrics import read, scalars
from functrain.observe.comparison_figure import spread
from functrain.optim import CMAES, AdamW, Constant, Cosine

CONFIG = {
    "model": {"kind": "mlp", "hidden": [3], "dropout": 0.1},
    "task": {"kind": "classification"},
    "data": {"kind": "digits", "batch_size": 64},
    "optimizer": {"kind": "adam", "peak_lr": 0.01, "schedule": {"kind": "cosine", "warmup": 50}},
    "evaluate": {"monitor": "accuracy", "mode": "max"},
    "train": {"epochs": 40},
}
PARAMETERS = 64 * 3 + 3 + 3 * 10 + 10


@pytest.fixture
def config():
    """Of a small model of the digits."""
    return parse(Experiment, CONFIG)


def test_budgets_and_refusals(config, quick):
    """Steps are the budget over what a step costs; what cannot take ten of them, or refuses, says so; nothing twice."""
    told = []
    kinds = ("reverse", "spsa:directions=4", "central", "forward:most=3", "cma_es", "cma_es:most=9")
    rates = {"reverse": 0.03, "spsa:directions=4": 0.01, "cma_es": 0.2}
    found = compare(config, kinds, evaluations=600, rates=rates, tell=lambda *at: told.append(at))
    assert told == [(i, 6) for i in range(7)]
    assert (found.parameters, found.budget, found.monitor) == (PARAMETERS, 600, "accuracy")
    ways = {way.name: way for way in found.ways}
    assert tuple(ways) == kinds
    cost = {"reverse": 3, "spsa:directions=4": 9, "cma_es": 5 + int(3 * math.log(PARAMETERS))}
    for name, per_step in cost.items():
        way = ways[name]
        assert (way.refused, way.per_step, way.steps, way.value) == ("", per_step, 600 // per_step, rates[name])
        assert way.evaluations[-1] == per_step * way.steps
        assert way.evaluations[0] == per_step
        assert len(way.evaluations) == len(way.seconds) == len(way.losses)
        assert (np.diff(way.seconds) > 0).all()
        assert way.searched == 0
        assert set(way.scores) == {"validation", "test"}
        assert 0 <= way.scores["test"]["accuracy"] <= 1
    assert (ways["reverse"].setting, ways["cma_es"].setting) == ("peak_lr", "sigma")
    assert ways["reverse"].losses[-1] < ways["reverse"].losses[0] - 0.2
    assert ways["central"].refused == "a step costs 471 evaluations; 10 are not in 600"
    assert "forward would cost" in ways["forward:most=3"].refused
    assert "optimizer.most: the covariance of 235 parameters" in ways["cma_es:most=9"].refused
    facts = json.loads(comparing.summary(found))
    assert facts["ways"][0]["test"] == pytest.approx(ways["reverse"].scores["test"])
    assert facts["ways"][2] == {"name": "central", "refused": ways["central"].refused}


def test_it_is_the_run_itself(config, quick):
    """With the same settings the real program, step after step, ends with the same losses and scores, bit for bit."""
    found = compare(config, ["reverse"], evaluations=90, rates={"reverse": 0.03}).ways[0]
    optimizer = dataclasses.replace(config.optimizer, peak_lr=0.03, schedule=Constant())
    run = dataclasses.replace(config.train, epochs=None, steps=30)
    parts = compiled(build(dataclasses.replace(config, optimizer=optimizer, train=run)))
    train_state, losses, ends = parts.train_state, [], (found.evaluations / 3).round().astype(int)
    for start, end in zip((0, *ends), ends):
        metrics = parts.program.fresh()
        for i in range(start, end):
            train_state, metrics, _ = parts.program.advance(train_state, metrics, parts.program.window(i, 1), 1)
        losses.append(parts.program.scalars(metrics)["loss"])
    np.testing.assert_array_equal(found.losses, losses)
    for split in ("validation", "test"):
        assert found.scores[split] == scalars(read(parts.evaluate[split](train_state)))


def test_a_rate_is_searched_for(config, quick):
    """From rates far off to either side it comes to the same region, that trains; what it took is told."""
    last = {}
    for start in (1e-4, 3.0):
        given = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, peak_lr=start))
        way = compare(given, ["reverse"], evaluations=300, share=0.3).ways[0]
        trials = way.searched / (30 * 3)
        assert trials == int(trials)
        assert 3 <= trials <= 9
        assert 1e-2 < way.value < 1
        last[start] = way.losses[-1]
    assert max(last.values()) < 1.5
    given = compare(config, ["reverse"], evaluations=300, rates={"reverse": 1e-4}).ways[0]
    assert given.losses[-1] > max(last.values())


def test_twice_is_the_same(config, quick):
    """Bit for bit, but for seconds; and what stands before in the list changes nothing."""
    kinds = ["spsa", "simulated_annealing:proposals=4"]
    first, second = (compare(config, k, evaluations=200) for k in (kinds, kinds[1:]))
    a, b = first.ways[1], second.ways[0]
    assert (a.name, a.value, a.searched, a.scores) == (b.name, b.value, b.searched, b.scores)
    np.testing.assert_array_equal(a.losses, b.losses)


def test_search():
    """To the best of its neighbours, at most nine; over what diverges it goes down."""
    for best in (1e-4, 1e-2, 1.0, 10.0):
        found, tried = search(lambda rate: abs(math.log10(rate / best)), 0.1)  # noqa: B023
        assert found == pytest.approx(best, rel=1e-9)
        assert tried == {1e-2: 5, 1e-4: 9, 1.0: 5, 10.0: 7}[best]
    found, _ = search(lambda rate: math.inf if rate > 2e-3 else -rate, 0.1)
    assert found == pytest.approx(1e-3)
    assert search(lambda rate: 1.0, 0.5) == (0.5, 3)
    assert search(lambda rate: math.nan, 1.0)[1] == 9


def test_kinds(config):
    """An estimator with the config's optimizer; an optimizer by values with none; settings; what is already there."""
    spsa = of_kind(config, "spsa:directions=3,direction=normal")
    assert (spsa.estimator.kind, spsa.estimator.directions, spsa.estimator.direction) == ("spsa", 3, "normal")
    assert spsa.optimizer == config.optimizer
    assert of_kind(config, "cma_es:covariance=diagonal").optimizer == CMAES(covariance="diagonal")
    own = dataclasses.replace(spsa, optimizer=CMAES(sigma=0.5, freeze=("layer0",)))
    assert of_kind(own, "spsa:radius=0.1").estimator == dataclasses.replace(spsa.estimator, radius=0.1)
    assert of_kind(own, "reverse").optimizer == AdamW(freeze=("layer0",))
    assert of_kind(own, "cma_es:population=9").optimizer == dataclasses.replace(own.optimizer, population=9)
    assert of_kind(own, "particle_swarm").optimizer.freeze == ("layer0",)
    assert isinstance(config.optimizer.schedule, Cosine)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("spsaa", "kind 'spsaa': expected one of: reverse, sam"),
        ("adamw", "kind 'adamw': expected one of"),
        ("spsa:directon=3", 'directon: unknown key; did you mean "direction'),
        ("spsa:directions=0", "directions: found 0"),
        ("spsa:3", "expected key=value"),
    ],
)
def test_mistakes(config, name, says):
    """One line."""
    with pytest.raises(ConfigError) as error:
        compare(config, [name])
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_more_mistakes(config):
    """Numbers and names."""
    for settings in ({"evaluations": 0}, {"share": 0.0}, {"share": 1.5}):
        with pytest.raises(ConfigError, match=r"expected 1, 0\.\.1, 1"):
            compare(config, ["reverse"], **settings)
    with pytest.raises(ConfigError, match="a rate of 'sam', which is not compared"):
        compare(config, ["reverse"], rates={"sam": 1.0})


def test_what_is_shown(config, tmp_path, capsys, quick):
    """A table with each way and each refusal, and a picture."""
    kinds = ["reverse", "sam", "central"]
    found = compare(config, kinds, evaluations=120, rates={"reverse": 0.03, "sam": 0.03})
    comparing.show(runs.make_console(), found, tmp_path / "c.png")
    out = capsys.readouterr().out
    assert all(name in out for name in (*kinds, "peak_lr 0.03", "a step costs 471 evaluations"))
    assert Path(tmp_path / "c.png").read_bytes()[:4] == b"\x89PNG"
    nothing = dataclasses.replace(found, ways=[found.ways[-1]])
    comparing.show(runs.make_console(), nothing, tmp_path / "none.png")
    broken = dataclasses.replace(found.ways[0], losses=np.full_like(found.ways[0].losses, np.nan))
    comparing.show(runs.make_console(), dataclasses.replace(found, ways=[broken]), tmp_path / "nan.png")
    assert json.loads(comparing.summary(dataclasses.replace(found, ways=[broken])))["ways"][0]["loss"] is None


def test_labels_do_not_meet():
    """Each at least so far from the next, in their order, moved little; within the panel."""
    for heights in (np.zeros(12), np.ones(12), np.linspace(0.4, 0.5, 12), np.array([0, 0.5, 0.51, 1])):
        placed = spread(heights, 0.05)
        assert (np.diff(placed) > 0.049).all()
        assert placed.min() >= -1e-9
        assert placed.max() <= 1 + 1e-9
    np.testing.assert_allclose(spread(np.array([0.1, 0.9]), 0.05), [0.1, 0.9])
