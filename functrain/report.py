"""What `inspect`, `compare` and `list` print."""

import json
from pathlib import Path
from typing import Any, get_args

import jax
from rich.console import Console
from rich.table import Table

from functrain import config as configs
from functrain import tree
from functrain.config import ConfigError, kind_table
from functrain.data import AnyData
from functrain.experiment import Built, compile, overfit
from functrain.layers import activations, initializers
from functrain.models import AnyModel
from functrain.observe import figures
from functrain.observe.console import fact_table, human
from functrain.observe.events import history
from functrain.optim import AnyOptimizer, AnySchedule
from functrain.precision import AnyPrecision
from functrain.runs import read_config, show_before
from functrain.tasks import AnyTask
from functrain.train import state

TABLES = {
    "model": AnyModel,
    "task": AnyTask,
    "data": AnyData,
    "optimizer": AnyOptimizer,
    "optimizer.schedule": AnySchedule,
    "precision": AnyPrecision,
}
"""Section -> the union of what its `kind` may be."""


def list_parts(console: Console, folder: Path = Path("configs")) -> None:
    """Every kind of every section with a line each, and the configs in `folder` with the first line of each."""
    for section, union in TABLES.items():
        table = Table(box=None, pad_edge=False, show_header=False, title=f"[{section}] kind =", title_justify="left")
        table.add_column(style="bold", min_width=14)
        table.add_column()
        for kind, cls in kind_table(union).items():
            table.add_row(kind, (cls.__doc__ or "").strip().split("\n")[0])
        console.print(table)
    names = {"model.activation": activations.Name, "model.kernel_init": initializers.Name}
    console.print(fact_table({key: ", ".join(get_args(name)) for key, name in names.items()}))
    found = sorted(folder.glob("*.toml"))
    if found:
        console.print(fact_table({str(p): p.read_text().split("\n")[0].lstrip("# ") for p in found}))


def inspect(console: Console, built: Built, *, try_overfit: bool = False) -> bool:
    """Everything but running: parameters, FLOPs, XLA's memory analysis, the schedule, who decays.

    Returns:
      False where `try_overfit` was asked for and the loss of one batch did not fall below a hundredth.
    """
    show_before(console, built)
    compiled = compile(built)
    memory = ", ".join(f"{name} {human(size, 'B')}" for name, size in compiled.program.memory.items())
    console.print(fact_table({"XLA memory": memory}))
    train_state = jax.eval_shape(lambda: state.init(built.task, jax.random.key(0)))
    steps = built.plan.steps
    for name, learner in built.task.learners.items():
        if learner is None:
            continue
        params, optimizer = train_state.players[name].params, learner.optimizer
        decaying = [path for path, decays in tree.by_path(optimizer.decays(params)).items() if decays]
        at = sorted({0, steps // 4, steps // 2, 3 * steps // 4, steps - 1})
        facts = {
            "player": name,
            "optimizer": optimizer.kind,
            "learning rate": ", ".join(f"step {i} {float(optimizer.rate(i)):.3g}" for i in at),
            "decaying": f"{len(decaying)} of {len(jax.tree.leaves(params))} parameters: {', '.join(decaying[:8])}"
            if optimizer.weight_decay
            else "nothing (weight_decay is 0)",
        }
        console.print(fact_table(facts))
    if not try_overfit:
        return True
    losses = overfit(built)
    first, last = losses[0][1], losses[-1][1]
    console.print(fact_table({"one batch": ", ".join(f"step {at} loss {loss:.3g}" for at, loss in losses)}))
    learnt = last < 0.01 * max(1.0, first)
    console.print("learnt by heart" if learnt else f"NOT learnt by heart: loss {last:.3g} after {losses[-1][0]} steps")
    return learnt


_SHOWN = ("steps", "parameters", "steps_per_s", "peak_fraction", "skipped_steps", "peak_rss_mb")


def _result(run: Path) -> dict[str, Any]:
    try:
        result = json.loads((run / "result.json").read_text())
    except (OSError, ValueError):
        raise ConfigError(f"{run}: not finished: it has no result.json") from None
    if not isinstance(result, dict) or not {"final", "best", "test", *_SHOWN} <= result.keys():
        raise ConfigError(f"{run}/result.json: not what a run writes")
    return result


def compare(console: Console, runs: list[Path], figure: Path | None = None) -> None:
    """Runs side by side: the keys in which their configs differ, their results, and, in `figure`, their curves.

    Raises:
      ConfigError: one of them is no run, or has not finished.
    """
    if figure is not None and (figure.suffix != ".png" or figure.is_dir() or not figure.absolute().parent.is_dir()):
        raise ConfigError(f"--figure: found {figure}; expected a file .png in a directory that exists")
    flat = {run: configs.flatten(read_config(run)) for run in runs}
    results = {run: _result(run) for run in runs}
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for run in runs:
        table.add_column(str(run), justify="right")

    def row(name: str, values: list[Any]) -> None:
        table.add_row(name, *("" if v is None else f"{v:.5g}" if isinstance(v, float) else str(v) for v in values))

    keys = dict.fromkeys(key for config in flat.values() for key in config)
    for key in keys:
        values = [flat[run].get(key) for run in runs]
        if any(v != values[0] for v in values):
            row(key, values)
    table.add_section()
    for part in ("final", "best", "test"):
        names = dict.fromkeys(n for r in results.values() for n in (r[part] or {}))
        for name in names:
            row(f"{part} {name.replace('_', ' ')}", [(results[run][part] or {}).get(name) for run in runs])
    for name in _SHOWN:
        row(name.replace("_", " "), [results[run][name] for run in runs])
    console.print(table)
    if figure is not None:
        figures.curves({str(run): history(run / "metrics.jsonl") for run in runs}, figure)
        console.print(f"curves: {figure}")
