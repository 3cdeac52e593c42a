"""What `inspect`, `compare` and `list` print."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from functrain import config as configs
from functrain import tree
from functrain.augment import AnyAugment, preview
from functrain.autodiff import AnyEstimator, drawing
from functrain.autodiff.check import WHOLE, Checked
from functrain.autodiff.traces import Trace, first_nonfinite
from functrain.built import Built, after, compile, overfit
from functrain.built import batches as batches_from
from functrain.config import ConfigError, kind_table
from functrain.data import AnyData
from functrain.data.base import reader
from functrain.finder import Found
from functrain.layers import activations, initializers
from functrain.models import AnyModel
from functrain.observe import figures
from functrain.observe.console import duration, fact_table, human
from functrain.observe.events import history
from functrain.observe.grid import grid
from functrain.observe.precision_figure import precision_picture
from functrain.optim import AnyAverage, AnyOptimizer, AnySchedule
from functrain.precise import Measured, measure
from functrain.precision import AnyPrecision
from functrain.runs import read_config, show_before
from functrain.tasks import AnyTask
from functrain.train import state
from functrain.transfer import start_table

TABLES = {
    "model": AnyModel,
    "task": AnyTask,
    "data": AnyData,
    "augment": AnyAugment,
    "optimizer": AnyOptimizer,
    "optimizer.schedule": AnySchedule,
    "average": AnyAverage,
    "estimator": AnyEstimator,
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


def inspect(
    console: Console,
    built: Built,
    *,
    try_overfit: bool = False,
    figure: Path | None = None,
    examples: Path | None = None,
) -> bool:
    """Everything but running: parameters, FLOPs, XLA's memory analysis, the schedule (drawn too), who decays.

    figure: a PNG into which the learning rate over the run is drawn.
    examples: a PNG into which images of the first batch are drawn, each as it is and as it is augmented.

    Returns:
      False where `try_overfit` was asked for and the loss of one batch did not fall below a hundredth.
    """
    start = built.start  # read before anything is shown: what is wrong with it is one line
    show_before(console, built)
    if start is not None:
        console.print(start_table(start))
    source = reader(built.config.data)  # of a known set, what reads it
    if describe := getattr(source, "describe", None):
        console.print(fact_table(describe()))
    compiled = compile(built)
    memory = ", ".join(f"{name} {human(size, 'B')}" for name, size in compiled.program.memory.items())
    console.print(fact_table({"XLA memory": memory}))
    train_state = jax.eval_shape(lambda: state.init(built.task, jax.random.key(0)))
    steps = built.plan.steps
    rates = {}
    for name, learner in built.task.learners.items():
        if learner is None:
            continue
        params, optimizer = train_state.players[name].params, learner.optimizer
        decaying = [path for path, decays in tree.by_path(optimizer.decays(params)).items() if decays]
        at = sorted({0, steps // 4, steps // 2, 3 * steps // 4, steps - 1})
        facts = {"player": name, "optimizer": optimizer.kind}
        if optimizer.rate(0) is not None:
            rates[name] = np.asarray(jax.vmap(optimizer.rate)(np.arange(steps)))
            facts["learning rate"] = ", ".join(f"step {i} {float(optimizer.rate(i)):.3g}" for i in at)
            facts["over the run"] = sparkline(rates[name])
        facts |= {
            "decaying": f"{len(decaying)} of {len(jax.tree.leaves(params))} parameters: {', '.join(decaying[:8])}"
            if optimizer.weight_decay
            else "nothing (weight_decay is 0)",
        }
        if (trainable := optimizer.trainable(params)) is not None:
            held = [path for path, trains in tree.by_path(trainable).items() if not trains]
            facts["frozen"] = f"{len(held)} of {len(jax.tree.leaves(params))} parameters: {', '.join(held[:8])}"
        console.print(fact_table(facts))
    if figure is not None and rates:
        figures.schedule(rates, figure)
        console.print(f"learning rate: {figure}")
    if examples is not None:
        draw_examples(built, examples)
        console.print(f"examples: {examples}")
    if not try_overfit:
        return True
    losses = overfit(built)
    first, last = losses[0][1], losses[-1][1]
    console.print(fact_table({"one batch": ", ".join(f"step {at} loss {loss:.3g}" for at, loss in losses)}))
    learnt = last < 0.01 * max(1.0, first)
    console.print("learnt by heart" if learnt else f"NOT learnt by heart: loss {last:.3g} after {losses[-1][0]} steps")
    return learnt


_EXAMPLES, _COPIES = 8, 7


def draw_examples(built: Built, path: Path) -> None:
    """The first images of the first batch, a row each: as it is, then augmented under other keys.

    Raises:
      ConfigError: the examples are no images.
    """
    feed = built.feeds["train"]
    feed = feed.feed if built.config.augment else feed
    if built.config.data is None or not hasattr(feed, "size") or _axes(built) not in (2, 3):
        raise ConfigError("--examples: draws images [height, width(, channels)]; the data has none")
    batch = jax.jit(dataclasses.replace(feed, prepare=built.config.data.scaled).batch)(feed.window(0, 1), np.int32(0))
    batch = jax.tree.map(lambda x: x[:_EXAMPLES], batch)
    copies = _COPIES if built.config.augment else 0
    seed = jax.random.key(built.config.train.seed)
    images = jax.jit(lambda batch: preview(built.config.augment, batch, key=seed, copies=copies))(batch)
    grid(np.asarray(images), path, columns=copies + 1 if copies else _EXAMPLES)


def _axes(built: Built) -> int:
    """How many axes an example has; 0 where there is no x."""
    arrays = built.dataset.train if built.dataset is not None else {}
    return arrays["x"].ndim - 1 if "x" in arrays else 0


def sparkline(values: np.ndarray, width: int = 60) -> str:
    """A line of text whose characters stand as high as the values, from 0 to the largest.

    >>> sparkline(np.array([0.0, 0.5, 1.0]), 3)
    '▁▅█'
    """
    bars = "▁▂▃▄▅▆▇█"
    shown = values[np.linspace(0, len(values) - 1, min(width, len(values))).astype(int)]
    share = shown / max(float(np.max(values)), np.finfo(float).tiny)
    return "".join(bars[min(int(s * len(bars)), len(bars) - 1)] for s in share)


def found_rate(console: Console, found: Found, figure: Path | None = None) -> None:
    """What the learning-rate finder found, in text and, in `figure`, as a picture."""
    ends = f"{found.rates[0]:.3g} to {found.rates[-1]:.3g}"
    facts = {
        "rates tried": f"{len(found.rates)}, from {ends}",
        "loss": f"{found.losses[0]:.4g} at first, {found.losses.min():.4g} at {found.rates[found.losses.argmin()]:.3g}",
        "suggestion": f"optimizer.peak_lr = {found.suggestion:.2g}, where it falls fastest",
    }
    console.print(fact_table(facts))
    if figure is not None:
        figures.learning_rate_finder(found.rates, found.losses, found.suggestion, figure)
        console.print(f"loss against rate: {figure}")


def precision(
    console: Console,
    built: Built,
    *,
    batches: int = 2,
    steps: int = 0,
    figure: Path | None = None,
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> Measured:
    """What low precision does to the gradient on batches of the training data: in tables, and in `figure` as a picture.

    Args:
      batches: how many.
      steps: of training that come first.
      tell: called with how much of it is done.

    Raises:
      ConfigError: a task that has not one player, or numbers below what makes sense.
    """
    if batches < 1 or steps < 0:
        raise ConfigError(f"--batches {batches} --steps {steps}: expected at least 1 and 0")
    policy, train_state = built.config.precision, after(built, steps)
    found = measure(built.task, train_state, batches_from(built, steps, batches), tell)
    errors = f"{found.error:.2g} ({policy.kind}), {found.exact:.2g} (float32)"
    console.print(fact_table({"relative error of the gradient": f"{errors}; {batches} batches after {steps} steps"}))
    table = Table(box=None, pad_edge=False, header_style="bold", title="by parameters", title_justify="left")
    for name in ("parameters", policy.kind, "float32", "underflow", "overflow"):
        table.add_column(name, justify="left" if name == "parameters" else "right")
    groups = sorted(found.groups, key=lambda group: -group.error)
    for group in groups:
        errors = (f"{group.error:.1e}", f"{group.exact:.1e}")
        table.add_row(group.name, *errors, *map(_share, (group.under, group.over)))
    console.print(table)
    title = f"by primitives, in {found.low}"
    table = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left")
    for name in ("class", "it alone", "all but it", "underflow", "overflow", "FLOPs", "numbers"):
        table.add_column(name, justify="left" if name == "class" else "right")
    for row in found.classes:
        errors = (f"{row.alone:.1e}", f"{row.rest:.1e}")
        table.add_row(row.name, *errors, *map(_share, (row.under, row.over, row.flops, row.numbers)))
    console.print(table)
    parts = sorted(((error, of, part) for (of, part), error in found.parts.items()), reverse=True)
    named = [(f"{of} in {part}" if part else f"{of} elsewhere", error) for error, of, part in parts]
    worst = ", ".join(f"{name} ({error:.1e})" for name, error in named[:5])
    seconds, ratio = found.seconds, found.seconds["policy"] / found.seconds["float32"]
    facts = {
        "most error": worst,
        "cost": f"{ratio:.2f} of float32's time ({duration(seconds['policy'])} and {duration(seconds['float32'])}); to "
        f"compile {duration(seconds['compile policy'])} and {duration(seconds['compile float32'])}",
    }
    console.print(fact_table(facts))
    if figure is not None:
        of_groups = [(group.name, group.error, group.exact) for group in groups]
        of_classes = [(row.name, row.alone) for row in found.classes]
        precision_picture(policy.kind, found.low, of_groups[:40], of_classes, named[:40], figure)
        console.print(f"errors: {figure}")
    return found


def checked(console: Console, found: Checked) -> None:
    """What a check of the gradient found: errors by parameters, what was skipped and why, and each wrong number."""
    names = {"differences": "vs differences", "complex step": "vs complex step", "forward mode": "vs forward mode"}
    skipped = {row.check: row.note for row in found.rows if row.verdict == "skipped"}
    shown = [name for name in names if not all(r.verdict == "skipped" for r in found.rows if r.check == name)]
    table = Table(box=None, pad_edge=False, header_style="bold", title="reverse mode", title_justify="left")
    for name in ("parameters", *(names[name] for name in shown), "verdict"):
        table.add_column(name, justify="left" if name in ("parameters", "verdict") else "right", overflow="fold")
    for path in dict.fromkeys(row.path for row in found.rows):
        rows = {row.check: row for row in found.rows if row.path == path}
        errors = ["skipped" if rows[n].verdict == "skipped" else f"{rows[n].error:.1e}" for n in shown]
        verdicts = [row.verdict for row in rows.values()]
        verdict = next((v for v in ("wrong", "unclear", "kink") if v in verdicts), "ok")
        table.add_row("all of them" if path == WHOLE else path, *errors, verdict)
    console.print(table)
    console.print(fact_table({f"no {check}": note for check, note in skipped.items()}))
    for row in found.failed:
        console.print(str(row), markup=False, highlight=False, soft_wrap=True)


def traced(console: Console, found: Trace) -> None:
    """A trace as a table, part by part in the order of computation, and the first number that is not finite."""
    root = drawing.scopes(found)
    results = [node for node in found.nodes if not node.argument]
    facts = {"loss": f"{float(found.output):.6g}", "results": f"{len(results)}, each with its gradient"}
    console.print(fact_table(facts))
    table = Table(box=None, pad_edge=False, header_style="bold")
    names = (
        "part",
        "results",
        "value, median rms",
        "gradient, median rms",
        "smallest",
        "largest",
        "zeros in gradients",
    )
    for name in names:
        table.add_column(name, justify="left" if name == "part" else "right")
    for part in root.parts:
        nodes = list(part.nodes()) if isinstance(part, drawing.Scope) else [part]
        inside = [node for node in nodes if not node.argument] or nodes
        counts = [drawing.count_of(node) for node in inside]
        values = [drawing.size_of(node.value, n) for node, n in zip(inside, counts)]
        gradients = [drawing.size_of(node.gradient, n) for node, n in zip(inside, counts)]
        zeros = sum(int(np.sum(node.gradient.zeros)) for node in inside) / max(sum(counts), 1)
        sizes = [np.median(values), np.median(gradients), min(gradients), max(gradients)]
        table.add_row(part.name, str(len(inside)), *(f"{size:.2g}" for size in sizes), _share(zeros))
    console.print(table)
    for bad in first_nonfinite(found):
        console.print(str(bad), style="bold red", markup=False, soft_wrap=True)


def _share(x: float) -> str:
    """A share as it is read: nothing where there is none."""
    return f"{x:.1%}" if x >= 5e-4 else f"{x:.0e}" if x else ""


def check_figure(path: Path | None, option: str = "--figure", suffix: str = ".png") -> None:
    """Raises a ConfigError where no such file can be written to `path`; None is none."""
    if path is not None and (path.suffix != suffix or path.is_dir() or not path.absolute().parent.is_dir()):
        raise ConfigError(f"{option}: found {path}; expected a file {suffix} in a directory that exists")


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
    check_figure(figure)
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
