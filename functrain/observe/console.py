"""What a person sees: a table before the first step, a progress line while it runs, the results at the end.

Where there is no terminal, the line becomes plain log lines, at most one a few seconds.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

_SHOWN = 24  # rows of parameters in the table; a large model's middle is left out


def human(number: float, unit: str = "") -> str:
    """A number that is easy to read.

    >>> human(1294336, "FLOP"), human(0.5), human(2048)
    ('1.29 MFLOP', '0.5', '2.05 k')
    """
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= factor:
            return f"{number / factor:.3g} {prefix}{unit}"
    return f"{number:.3g} {unit}".strip()


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    >>> duration(0.25), duration(75), duration(7260)
    ('0.25 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.3g} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"


def parameter_table(rows: list[tuple[str, tuple[int, ...], int]]) -> Table:
    """Path, shape and count of each parameter."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("parameter")
    table.add_column("shape")
    table.add_column("count", justify="right")
    left_out = max(0, len(rows) - _SHOWN)
    for i, (path, shape, size) in enumerate(rows):
        if left_out and i == _SHOWN // 2:
            table.add_row(f"... {left_out} more ...", "", "")
        if not left_out or not _SHOWN // 2 <= i < _SHOWN // 2 + left_out:
            table.add_row(path, " x ".join(map(str, shape)) or "scalar", f"{size:,}")
    table.add_row("all", "", f"{sum(size for _, _, size in rows):,}", style="bold")
    return table


def fact_table(facts: dict[str, str]) -> Table:
    """Names and values, a line each."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, value)
    return table


class ProgressLine:
    """The sink that shows the run: step, loss, learning rate, examples/s, share of the matmul peak, time left."""

    def __init__(self, console: Console, *, steps: int, at: int, batch: int, flops: int, peak: float, watch: str):
        """
        Args:
          steps, at: how many there are, and how many are done.
          batch: examples in a step.
          flops: of a step.
          peak: of the machine, FLOP/s.
          watch: the metric to show beside the losses, of training where it is measured, and of validation.
        """
        self._console, self._steps, self._batch = console, steps, batch
        self._flops, self._peak, self._watch = flops, peak, watch
        # Metrics are read one interval late, the last two at once: the rate is taken over several.
        self._past = deque([(time.perf_counter(), at)], maxlen=5)
        self._last_line, self._best = 0.0, ""
        self._live = None
        if console.is_terminal:
            self._live = Progress(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(bar_width=None),
                TaskProgressColumn(),
                TextColumn("{task.description}"),
                TimeRemainingColumn(compact=True),
                console=console,
                transient=True,
            )
            self._task = self._live.add_task("compiling", total=steps, completed=at)
            self._live.start()

    def scalars(self, step: int, split: str, values: dict[str, float]) -> None:
        """Show a step's metrics."""
        if split == "validation":
            if self._watch in values:
                self._best = f"validation {self._watch} {values[self._watch]:.4g}"
            return
        if set(values) == {"gradient_error"}:  # measured apart, at steps of its own
            return
        now = time.perf_counter()
        seconds, steps = now - self._past[0][0], step - self._past[0][1]
        self._past.append((now, step))
        rate = steps / seconds if seconds > 0 else 0.0
        # A task of several players has several; one that has not learned yet has none.
        shown = [name for name, value in values.items() if name.endswith("loss") and math.isfinite(value)]
        if self._watch not in shown and math.isfinite(values.get(self._watch, math.nan)):
            shown.append(self._watch)
        parts = [f"{name.replace('_', ' ')} {values[name]:.4g}" for name in shown]
        parts += [f"rate {values['learning_rate']:.4g}"] if "learning_rate" in values else []
        parts += [f"{human(rate * self._batch)} examples/s" if self._batch else f"{human(rate)} steps/s"]
        if self._peak:
            parts += [f"{rate * self._flops / self._peak:.1%} of peak"]
        parts += [self._best] if self._best else []
        if self._live is not None:
            self._live.update(self._task, completed=step, description=" · ".join(parts))
        elif now - self._last_line > 2 or step == self._steps:
            left = f"{duration((self._steps - step) / rate)} left" if rate and step < self._steps else ""
            self._console.print(f"step {step}/{self._steps}  " + "  ".join([*parts, left]).strip(), soft_wrap=True)
            self._last_line = now

    def pictures(self, step: int, paths: Mapping[str, Path]) -> None:
        """They lie in figures/."""

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Take the line away."""
        if self._live is not None:
            self._live.stop()


def progress(console: Console, what: str) -> Callable[[int, int], None]:
    """`tell(done, of)` that shows how far a measurement is, where somebody looks."""
    start = time.perf_counter()

    def tell(done, of):
        if console.is_terminal:
            end = "\n" if done == of else "\r"
            console.print(f"{what}: part {done} of {of}, {duration(time.perf_counter() - start)}", end=end)

    return tell


class BoundLine:
    """The sink that warns where the error of a gradient in low precision is above its bound, and where it doubles."""

    def __init__(self, warn: Callable[[str], None], bound: float):
        self._warn, self._bound, self._told = warn, bound, bound

    def scalars(self, step: int, split: str, values: dict[str, float]) -> None:
        """Look at a step's gradient_error."""
        error = values.get("gradient_error", 0.0)
        if error > self._told:
            self._warn(
                f"step {step}: the gradient's relative error is {error:.2g}, above precision.bound = {self._bound:g}"
            )
            self._told = 2 * error

    def pictures(self, step: int, paths: Mapping[str, Path]) -> None:
        """None."""

    def flush(self) -> None:
        """Nothing is held back."""


def result_table(result: dict[str, Any]) -> Table:
    """Metrics of the last and the best step and of the test, side by side; and of several members as one."""
    columns = {name: result[name] for name in ("final", "best", "test", "ensemble") if result.get(name)}
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for name, found in columns.items():
        where = {"final": "validation, last step", "best": "validation, best step"}.get(name, name)
        table.add_column(f"{where} ({found['step']})", justify="right")
    names: list[str] = []
    for found in columns.values():
        names += [n for n in found if n not in ("step", "split", *names) and not n.endswith("_deviation")]
    for name in names:
        cells = [(found.get(name), found.get(f"{name}_deviation")) for found in columns.values()]
        table.add_row(name.replace("_", " "), *map(_cell, cells))
    return table


def _cell(number: tuple[float | None, float | None]) -> str:
    """A mean, with its deviation where there is one."""
    mean, deviation = number
    if mean is None:
        return ""
    return f"{mean:.4g}" if deviation is None else f"{mean:.4g} ± {deviation:.2g}"


def choice_table(rows: Iterable[tuple[str, str, str, dict[str, float], float, float]]) -> Table:
    """(part, class of primitives, dtype, {dtype: error of it alone}, share of FLOPs, share of numbers), a line each."""
    table = Table(box=None, pad_edge=False, header_style="bold", title="dtypes chosen", title_justify="left")
    for name in ("part", "class", "dtype"):
        table.add_column(name)
    for name in ("alone bfloat16", "float16", "FLOPs", "numbers"):
        table.add_column(name, justify="right")
    for part, of, dtype, errors, flops, numbers in rows:
        shares = (f"{flops:.1%}" if flops else "", f"{numbers:.1%}")
        table.add_row(part, of, dtype, f"{errors['bfloat16']:.1e}", f"{errors['float16']:.1e}", *shares)
    return table
