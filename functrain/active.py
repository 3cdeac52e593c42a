"""Active learning: a loop over runs, each with a few more labels than the last, asked for where they teach most.

Every round is a run like any other, trained from the beginning on the labels that there are (the source few_labels);
its model looks at the examples without labels, and a criterion says which get theirs next (Settles 2009, sections 2.3
and 3.1). A larger score is asked for first:

    entropy      - sum of p log p over the classes
    margin       - (probability of the likeliest class - that of the second)
    confidence   - probability of the likeliest class
    random       nothing of the model: what the others are compared with
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from functrain import config as configs
from functrain import runs, trained
from functrain.building import build
from functrain.config import ConfigError
from functrain.data import FewLabels
from functrain.experiment import Experiment
from functrain.observe import figures
from functrain.tasks import Classification
from functrain.train.stop import Stop

CRITERIA = ("entropy", "margin", "confidence", "random")
_AT_ONCE = 1024
"""Examples that a model looks at together."""


def learn(
    config: Experiment,
    out: Path,
    *,
    by: Sequence[str] = ("margin", "random"),
    rounds: int = 5,
    add: int = 100,
    console: Console | None = None,
    stop: Stop | None = None,
) -> int:
    """Runs in out/start and then, for each criterion, out/margin/round-1, round-2 ...; with how good each became.

    rows-1.json and so on, beside the runs, say which training examples have labels. At the end out/result.json has the
    metrics of every run by criterion and number of labels, and out/curve.png draws them. A run that is finished is left
    as it is, one that was stopped goes on: the same command again is the resumption, and with more rounds it adds them.

    by: criteria, of `CRITERIA`.
    rounds: how often labels are added.
    add: how many each time.

    Returns:
      The exit status of the first run that was stopped, or 0.

    Raises:
      ConfigError: the data are no few_labels of classes, there are not so many examples, or `out` has other runs.
    """
    source = config.data
    if not isinstance(source, FewLabels):
        raise ConfigError('data.kind: active learning begins with few labels; expected "few_labels"')
    if not isinstance(config.task, Classification):
        raise ConfigError("task.kind: active learning asks for classes; expected classification or a kind of it")
    if unknown := [name for name in by if name not in CRITERIA]:
        raise ConfigError(f"--by: found {unknown[0]!r}; there are: {', '.join(CRITERIA)}")
    if rounds < 1 or add < 1:
        raise ConfigError(f"found --rounds {rounds}, --add {add}; expected both to be at least 1")
    whole = source.whole()
    first = source.chosen(whole)
    if len(first) + rounds * add > len(whole):
        raise ConfigError(f"--add: {len(first)} + {rounds} x {add} labels; there are {len(whole)} training examples")
    _check_out(config, out)
    console = console or runs.make_console()
    loop = _Loop(config, whole.train["x"], add, console, stop)
    begun = {"labels": len(first)}
    curves: dict[str, list[dict[str, Any]]] = {}
    status = loop.run(out / "start", first)
    if status:
        return status
    for name in dict.fromkeys(by):
        curves[name] = [begun | _reached(out / "start")]
        rows, place = first, out / "start"
        for number in range(1, rounds + 1):
            rows = loop.more(name, rows, place, out / name / f"rows-{number}.json")
            place = out / name / f"round-{number}"
            if status := loop.run(place, rows, out / name / f"rows-{number}.json"):
                return status
            curves[name].append({"labels": len(rows)} | _reached(place))
    watched = config.evaluate.monitor or "accuracy"
    runs.write_whole(out / "result.json", json.dumps(curves, indent=1, allow_nan=False) + "\n")
    figures.against(curves, "labels", watched, out / "curve.png")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("labels", *curves):
        table.add_column(heading, justify="right")
    for points in zip(*curves.values()):
        values = [point.get(watched) for point in points]  # none where it was not finite
        table.add_row(str(points[0]["labels"]), *("" if value is None else f"{value:.4g}" for value in values))
    console.print(table)
    console.print(f"runs and curve.png  {out}/")
    return 0


def scores(by: str, p: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How much the label of each example is asked for, [n], from the probabilities p [n, classes] of a model.

    >>> p = np.array([[0.5, 0.5, 0.0], [0.6, 0.2, 0.2], [1.0, 0.0, 0.0]])
    >>> [[round(float(s), 2) + 0.0 for s in scores(by, p, np.random.default_rng(0))] for by in CRITERIA[:3]]
    [[0.69, 0.95, 0.0], [0.0, -0.4, -1.0], [-0.5, -0.6, -1.0]]
    """
    if by == "random":
        return rng.random(len(p))
    rising = np.sort(p, -1)
    if by == "entropy":
        return -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(-1)
    return rising[:, -2] - rising[:, -1] if by == "margin" else -rising[:, -1]


@dataclasses.dataclass(frozen=True)
class _Loop:
    """What all rounds share. x: of all training examples, as the source reads them."""

    config: Experiment
    x: np.ndarray
    add: int
    console: Console
    stop: Stop | None

    def run(self, place: Path, rows: np.ndarray, file: Path | None = None) -> int:
        """Train in `place`, or go on, unless it is done; the exit status."""
        if (place / "result.json").is_file():
            return 0
        self.console.print(f"{place}: {len(rows)} labels")
        if (place / "config.toml").is_file():
            return runs.resume(place, console=self.console, stop=self.stop)
        data = self.config.data
        if file is not None:
            data = dataclasses.replace(data, labels=0, rows=str(file))  # pyright: ignore
        return runs.train(dataclasses.replace(self.config, data=data), place, console=self.console, stop=self.stop)

    def more(self, by: str, rows: np.ndarray, place: Path, file: Path) -> np.ndarray:
        """The rows with labels in the next round: those of `file`, else these and `add` more by the run in `place`."""
        if file.is_file():
            chosen = np.array(json.loads(file.read_text()))
            if len(chosen) != len(rows) + self.add:
                raise ConfigError(f"--add: found {self.add}; {file} adds {len(chosen) - len(rows)}")
            return chosen
        others = np.setdiff1d(np.arange(len(self.x)), rows)
        rng = np.random.default_rng([self.config.data.labels_seed, len(rows)])  # pyright: ignore
        asked = scores(by, probabilities(place, self.x[others]), rng)
        chosen = np.sort(np.concatenate([rows, others[np.argsort(-asked, kind="stable")[: self.add]]]))
        file.parent.mkdir(parents=True, exist_ok=True)
        runs.write_whole(file, json.dumps(chosen.tolist()) + "\n")
        return chosen


def probabilities(run: Path, x: np.ndarray) -> np.ndarray:
    """Of each class for examples x as the source reads them, [n, classes]; of several seeds the mean of all."""
    made = []
    for model in trained.members(run):
        parts = [jax.nn.softmax(model(x[i : i + _AT_ONCE])) for i in range(0, len(x), _AT_ONCE)]
        made.append(np.concatenate([np.asarray(part, np.float64) for part in parts]))
    return np.mean(made, 0)


def _reached(run: Path) -> dict[str, Any]:
    """What the run's best step reached on the test, or where there is none, on validation."""
    found = json.loads((run / "result.json").read_text())
    return found["test"] or found["best"] or found["final"] or {}


def _check_out(config: Experiment, out: Path) -> None:
    """Make `out` with the config of all its runs; raises a ConfigError where it has another, or this fits no data."""
    file = out / "config.toml"
    if file.is_file():
        before = configs.parse(Experiment, configs.read(file))
        if changed := configs.differences(before, config):
            key, (old, new) = next(iter(changed.items()))
            raise ConfigError(f"--out: {out} has runs with another {key}: {old}, now {new}; choose another --out")
        return
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"--out: {out} exists and holds something else; choose another")
    build(config)  # so that what is wrong with it is told before anything is written
    out.mkdir(parents=True, exist_ok=True)
    runs.write_whole(file, configs.dump(config))
