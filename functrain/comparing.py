"""What each way to an improvement costs and brings: `functrain compare-estimators`, one config by many of them."""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from functrain import tree
from functrain.autodiff import AnyEstimator, Reverse
from functrain.building import build
from functrain.built import Built, Compiled, compile, first_state
from functrain.config import ConfigError, Source, kind_table, listed, override, parse
from functrain.experiment import Experiment
from functrain.metrics import read, scalars
from functrain.observe.comparison_figure import comparison_picture
from functrain.observe.console import duration, fact_table, human
from functrain.optim import AdamW, AnyOptimizer, Constant
from functrain.precise.gradient import check_one_player
from functrain.train import hyper as live

KINDS = (
    "reverse",
    "sam",
    "forward",
    "forward:directions=16",
    "central",
    "spsa",
    "spsa:direction=normal",
    "evolution",
    "cma_es",
    "cma_es:covariance=diagonal",
    "simulated_annealing",
    "particle_swarm",
)
"""What is compared where nothing is named."""

_FEWEST = 10  # steps
_POINTS = 60  # of a curve, evenly on a log scale
_MOST_TRIALS = 9
_FACTOR = math.sqrt(10)
_SEARCHED = ("peak_lr", "sigma")  # the learning rate, or what stands for it


@dataclass(frozen=True)
class Way:
    """One way, and how it went.

    evaluations, seconds: [points], at the end of each interval, of the run alone: no search, compiling or evaluation.
    losses: [points], the mean training loss over the interval.
    setting, value: what was searched for, and found.
    searched: evaluations that the search took, beside the budget.
    scores: split -> the task's metrics at the end.
    refused: why there is none of that; else empty.
    """

    name: str
    refused: str = ""
    per_step: float = 0.0
    steps: int = 0
    setting: str = ""
    value: float = math.nan
    searched: float = 0.0
    compiling: float = 0.0
    evaluations: np.ndarray = field(default_factory=lambda: np.zeros(0))
    seconds: np.ndarray = field(default_factory=lambda: np.zeros(0))
    losses: np.ndarray = field(default_factory=lambda: np.zeros(0))
    scores: dict[str, dict[str, float]] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """Plain data: the last point in place of the curve."""
        if self.refused:
            return {"name": self.name, "refused": self.refused}
        last = {"evaluations": self.evaluations[-1], "seconds": self.seconds[-1], "loss": self.losses[-1]}
        finite = {name: float(x) if math.isfinite(x) else None for name, x in last.items()}
        names = {"name": self.name, "steps": self.steps, "per_step": self.per_step, self.setting or "rate": self.value}
        return names | {"searched": self.searched} | finite | self.scores


@dataclass(frozen=True)
class Comparison:
    """Ways to train one config.

    parameters: how many are trained.
    budget: evaluations of the loss that each way has.
    monitor: the metric that says how good a model is, "" where none does.
    """

    ways: list[Way]
    parameters: int
    budget: int
    monitor: str

    def facts(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "parameters": self.parameters,
            "evaluations": self.budget,
            "monitor": self.monitor,
            "ways": [way.facts() for way in self.ways],
        }


def compare(
    config: Experiment,
    kinds: Sequence[str] = KINDS,
    *,
    evaluations: int = 10_000,
    share: float = 0.2,
    rates: dict[str, float] | None = None,
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> Comparison:
    """Train the config from one start, on one order of batches, by each kind, within a budget of loss evaluations.

    A gradient by reverse mode counts as two evaluations beside the one for the loss (see functrain.autodiff). The
    optimizer is the config's, with a constant rate; a kind of optimizer that needs no estimator is its own.

    Args:
      kinds: of estimators and of optimizers, with settings where wanted: "spsa:directions=16,radius=0.01". An estimator
        of the config's kind, or an optimizer, has its settings for defaults.
      evaluations: the budget of each.
      share: of the budget's steps, that each trial of a rate takes (at least 10 steps). From the config's own rate they
        go up or down by sqrt(10) until the mean loss of a trial's last quarter gets no better. What the search takes is
        told, not counted.
      rates: kind, as in `kinds` -> its rate; then there is no search for it. For an optimizer without a learning rate
        it is its sigma.
      tell: called with how many kinds are done.

    Raises:
      ConfigError: a kind that there is none of, a task that has not one player, numbers that make no sense. A kind that
        refuses this config, or cannot take 10 steps within the budget, is among the results with its reason.
    """
    if evaluations < 1 or not 0 < share <= 1 or not kinds:
        raise ConfigError(f"{evaluations} evaluations, a share of {share:g}, {len(kinds)} kinds: expected 1, 0..1, 1")
    rates = dict(rates or {})
    if unknown := rates.keys() - set(kinds):
        raise ConfigError(f"a rate of {min(unknown)!r}, which is not compared; there are: {', '.join(kinds)}")
    config = _plain(config)
    changed = [of_kind(config, name) for name in kinds]
    exact = build(_sized(dataclasses.replace(config, estimator=Reverse()), 1))
    check_one_player(exact.task, "compare-estimators: a way")
    params = jax.eval_shape(lambda: exact.task.init(jax.random.key(0))[0]["model"])
    parameters = tree.size(exact.task.learners["model"].trained(params))
    ways = []
    for done, (name, one) in enumerate(zip(kinds, changed)):
        tell(done, len(kinds))
        ways.append(_way(one, name, parameters, evaluations, share, rates.get(name)))
    tell(len(kinds), len(kinds))
    return Comparison(ways, parameters, evaluations, exact.monitor)


def of_kind(config: Experiment, name: str) -> Experiment:
    """The config with the estimator or optimizer that `name` names, such as "spsa:directions=16".

    Raises:
      ConfigError: there is no such kind, or it takes no such settings.
    """
    kind, _, settings = name.partition(":")
    tables = {"estimator": kind_table(AnyEstimator), "optimizer": kind_table(AnyOptimizer)}
    section = next((section for section, table in tables.items() if kind in table), None)
    if section is None or not hasattr(tables[section][kind], "evaluations"):
        known = [k for table in tables.values() for k, c in table.items() if hasattr(c, "evaluations")]
        raise ConfigError(f"kind {kind!r}: expected one of: {listed(known)}")
    given = override(Source({"kind": kind}, f"kind {name!r}"), [s for s in settings.split(",") if s])
    wanted = parse(tables[section][kind], given)
    own = getattr(config, section)
    if own.kind == kind:
        wanted = dataclasses.replace(own, **{key: getattr(wanted, key) for key in given.data})
    elif section == "optimizer":
        wanted = dataclasses.replace(wanted, freeze=own.freeze)  # pyright: ignore
    changes: dict[str, Any] = {section: wanted}
    if section == "estimator" and not config.optimizer.by_gradient:
        changes["optimizer"] = AdamW(freeze=config.optimizer.freeze)
    return dataclasses.replace(config, **changes)


def _plain(config: Experiment) -> Experiment:
    """One member, the same rate all along."""
    optimizer = config.optimizer
    if hasattr(optimizer, "schedule"):
        optimizer = dataclasses.replace(optimizer, schedule=Constant())
    return dataclasses.replace(config, optimizer=optimizer, train=dataclasses.replace(config.train, seeds=1))


def _sized(config: Experiment, steps: int) -> Experiment:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, steps=steps, epochs=None))


def _way(config: Experiment, name: str, parameters: int, budget: int, share: float, rate: float | None) -> Way:
    """One way, searched and run, or why not."""
    costs = config.estimator if config.optimizer.by_gradient else config.optimizer
    per_step = costs.evaluations(parameters)
    steps = int(budget / per_step)
    try:
        built = build(_sized(config, max(1, steps)))
    except ConfigError as error:
        return Way(name, str(error), per_step)
    if steps < _FEWEST:
        return Way(name, f"a step costs {per_step:,.0f} evaluations; {_FEWEST} are not in {budget:,}", per_step)
    run = _Run(built, compile(built))
    value, trials = rate, 0
    if rate is None and run.value is not None:
        trial = min(steps, max(_FEWEST, math.ceil(share * steps)))
        value, trials = search(lambda rate: run.trial(rate, trial), run.value)
        trials *= trial
    ends, losses, seconds, scores = run.whole(value, steps)
    return Way(
        name=name,
        per_step=per_step,
        steps=steps,
        setting=run.setting,
        value=math.nan if value is None else value,
        searched=trials * per_step,
        compiling=run.compiled.seconds,
        evaluations=ends * per_step,
        seconds=seconds,
        losses=losses,
        scores=scores,
    )


def search(loss: Callable[[float], float], start: float) -> tuple[float, int]:
    """(the best number, how many were tried), by steps of a factor sqrt(10) from `start` while the loss gets better.

    >>> number, tried = search(lambda x: abs(math.log10(x) + 3), 0.1)
    >>> f"{number:.3g}", tried
    ('0.001', 7)
    """
    tried: dict[int, float] = {}

    def at(i):
        if i not in tried:
            found = loss(start * _FACTOR**i)
            tried[i] = found if math.isfinite(found) else math.inf
        return tried[i]

    best = min((0, -1, 1), key=at)  # of equals the one with the start's rate
    best = best if at(best) < math.inf else -1
    while best and len(tried) < _MOST_TRIALS:
        further = best + int(math.copysign(1, best))
        if at(further) >= at(best) and at(best) < math.inf:
            break
        best = further
    return start * _FACTOR**best, len(tried)


class _Run:
    """A compiled experiment that starts again and again, from the same state but for one number."""

    def __init__(self, built: Built, compiled: Compiled):
        self.built, self.compiled, self._first = built, compiled, first_state(built)
        optimizer = built.task.learners["model"].optimizer
        self.setting = next((name for name in _SEARCHED if getattr(optimizer, name, 0)), "")
        self.value = getattr(optimizer, self.setting) if self.setting else None
        path = f"learner.optimizer.{self.setting}"
        if self.setting and path not in self._first.hyper:
            raise ConfigError(f"compare-estimators: the task has no {path} to search for")

        def start(first, value):
            numbers = first.hyper | ({path: jnp.asarray(value, first.hyper[path].dtype)} if self.setting else {})
            learner = live.bind(built.task, numbers).learners["model"]
            players = {"model": learner.init(first.players["model"].params)}
            return jax.tree.map(jnp.copy, first.replace(hyper=numbers, players=players))  # what runs is donated

        self._start = jax.jit(start, out_shardings=built.replicated)

    def _advanced(self, train_state, start, end):
        """(the state after step `end`, the mean loss on the way, seconds)."""
        program, metrics = self.compiled.program, self.compiled.program.fresh()
        begin = time.perf_counter()
        while start < end:
            count = min(end - start, self.built.config.train.chunk)
            train_state, metrics, mark = program.advance(train_state, metrics, program.window(start, count), count)
            start += count
            jax.block_until_ready(mark)
        seconds = time.perf_counter() - begin
        return train_state, program.scalars(metrics).get("loss", math.nan), seconds

    def trial(self, value: float, steps: int) -> float:
        """The mean loss of the last quarter of so many steps; not finite where one of the steps was not."""
        last = steps - max(1, steps // 4)
        train_state, _, _ = self._advanced(self._start(self._first, value), 0, last)
        train_state, loss, _ = self._advanced(train_state, last, steps)
        return loss if int(train_state.players["model"].skipped) == 0 else math.inf

    def whole(self, value: float | None, steps: int) -> tuple[Any, ...]:
        """(last steps of intervals, mean losses, seconds by then, metrics of the other splits at the end)."""
        ends = np.unique(np.geomspace(1, steps, _POINTS).round().astype(int))
        begin = 0.0 if value is None else value
        self._advanced(self._start(self._first, begin), 0, 1)  # the first dispatch is slower than the others
        train_state, at, losses, seconds = self._start(self._first, begin), 0, [], []
        for end in ends:
            train_state, loss, took = self._advanced(train_state, at, int(end))
            losses.append(loss)
            seconds.append(took)
            at = int(end)
        scores = {split: scalars(read(f(train_state))) for split, f in self.compiled.evaluate.items()}
        return ends.astype(float), np.array(losses), np.cumsum(seconds), scores


# -- for a person ---------------------------------------------------------------------------------


def show(console: Console, found: Comparison, figure: Path | None = None) -> None:
    """A comparison as a table, and, in `figure`, as a picture."""
    console.print(
        fact_table(
            {
                "parameters": f"{found.parameters:,}",
                "budget": f"{found.budget:,} evaluations of the loss on a batch; a gradient counts as two more",
                "not counted": "compiling, and the search for each rate by factors of sqrt(10)",
            }
        )
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "evaluations a step", "steps", "found", "searched", "last loss", *_columns(found), "seconds"):
        table.add_column(name, justify="right" if name else "left")
    for way in found.ways:
        if not way.refused:
            table.add_row(way.name, *_cells(found, way))
    console.print(table)
    for way in found.ways:
        if way.refused:
            console.print(f"{way.name}: {way.refused}", markup=False, highlight=False, soft_wrap=True)
    if figure is not None:
        curves = [(way.name, way.evaluations, way.seconds, way.losses) for way in found.ways if not way.refused]
        comparison_picture(curves, figure)
        console.print(f"loss by evaluations and seconds: {figure}")


def _columns(found: Comparison) -> list[str]:
    """The splits at which the monitored metric is known, as headings."""
    splits = dict.fromkeys(split for way in found.ways for split in way.scores)
    return [f"{split} {_metric(found)}" for split in splits]


def _metric(found: Comparison) -> str:
    return found.monitor or "loss"


def _cells(found: Comparison, way: Way) -> list[str]:
    """A row of the table."""
    scores = [way.scores.get(name.split(" ")[0], {}).get(_metric(found), math.nan) for name in _columns(found)]
    setting = f"{way.setting} {way.value:.2g}" if way.setting else ""
    numbers = [f"{way.per_step:,.0f}", f"{way.steps:,}", setting, human(way.searched), f"{way.losses[-1]:.4g}"]
    return [*numbers, *(f"{score:.4g}" for score in scores), duration(way.seconds[-1])]


def summary(found: Comparison) -> str:
    """A line of JSON: every way's last point."""
    return json.dumps(found.facts())
