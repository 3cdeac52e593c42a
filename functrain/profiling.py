"""Where the time of a run's steps goes, operation by operation: `functrain profile`.

The steps are those of `functrain train`, dispatched by the same program; jax's profiler says when each operation ran,
XLA's text of the program what it is and which line of the source made it.

    profile(built, folder) -> Profile          takes the steps, writes the trace, reads it
    summary(trace, programs, steps) -> [Operation]
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from functrain.built import Built, compile
from functrain.config import ConfigError
from functrain.data.known import cache_folder
from functrain.observe import flops, hlo
from functrain.observe.console import fact_table, human
from functrain.observe.device_trace import Trace, busy, read
from functrain.precision import dtype_of

_TIMED = 0.3
"""Seconds for which steps are timed without the profiler, at least once."""


@dataclass(frozen=True)
class Operation:
    """One operation of the compiled step. seconds, times: a step; share: of the device time."""

    name: str
    what: str
    part: str
    backward: bool
    source: str
    seconds: float
    times: float
    share: float


@dataclass(frozen=True)
class Profile:
    """Some steps of a run.

    wall, traced, device: seconds a step without the profiler and under it, and of those in which an operation was at
      work.
    flops: of the matrix products in a step, from the jaxpr; peak: of the devices, FLOP/s.
    operations: all, the costliest first.
    parts: (part of the model, or source file, seconds forward, seconds backward), the costliest first.
    """

    folder: Path
    steps: int
    wall: float
    traced: float
    device: float
    flops: int
    peak: float
    operations: list[Operation]
    parts: list[tuple[str, float, float]]

    def record(self, top: int = 10) -> dict[str, Any]:
        """As plain data."""
        return {
            "steps": self.steps,
            "seconds": {name: _rounded(getattr(self, name)) for name in ("wall", "traced", "device")},
            "flops_per_step": self.flops,
            "peak_fraction": _rounded(self.flops / (self.wall * self.peak)),
            "operations": [
                {name: _rounded(x) if isinstance(x, float) else x for name, x in asdict(operation).items()}
                for operation in self.operations[:top]
            ],
            "parts": {name: list(map(_rounded, spent)) for name, *spent in self.parts[:top]},
        }


def _rounded(x: float) -> float:
    return float(f"{x:.4g}")


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.4g}"


# -- taking the steps -----------------------------------------------------------------------------


def profile(
    built: Built,
    folder: Path,
    *,
    steps: int = 20,
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> Profile:
    """Take steps of a run as it would be trained, after as many that warm it up, and say where their time went.

    Args:
      folder: where the trace is written: `plugins/profile/` for TensorBoard, in it a `trace.json.gz` for Perfetto.
      steps: how many are traced.
      tell: called with how much is done.

    Raises:
      ConfigError: the folder holds something, `steps` makes no sense, or the profiler names no operation here.
    """
    if steps < 1:
        raise ConfigError(f"--steps: found {steps}; expected at least 1")
    check_folder(folder)
    tell(0, 3)
    with own_lines():
        compiled = compile(built)
    program, train_state, metrics = compiled.program, compiled.train_state, compiled.metrics
    at, end = 0, 0

    def take():  # as the loop dispatches them
        nonlocal train_state, metrics, at, end
        start, end = time.perf_counter(), at + steps
        while at < end:
            count = min(built.config.train.chunk, end - at)
            train_state, metrics, _ = program.advance(train_state, metrics, program.window(at, count), count)
            at += count
        jax.block_until_ready(train_state)
        return (time.perf_counter() - start) / steps

    take()
    tell(1, 3)
    walls = [take()]
    while sum(walls) * steps < _TIMED:
        walls.append(take())
    tell(2, 3)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # it would slow the dispatch of a step
    with jax.profiler.trace(str(folder), profiler_options=options):
        traced = take()
    trace = read(folder)
    if not trace.times:
        raise ConfigError(f"profile: the profiler names no operation on {jax.default_backend()}; the trace: {folder}")
    programs = _programs(built.mesh.devices.flat[0].client, trace)
    operations = summary(trace, programs, steps)
    tell(3, 3)
    settings = built.config
    return Profile(
        folder,
        steps,
        wall=statistics.median(walls),
        traced=traced,
        device=sum(operation.seconds for operation in operations),
        flops=built.flops * settings.train.seeds,
        peak=flops.matmul_peak(dtype_of(settings.precision), cache_folder() / "peak.json") * built.mesh.size,
        operations=operations,
        parts=by_part(operations),
    )


def check_folder(folder: Path) -> None:
    """Raises a ConfigError where a trace cannot be written to the folder, or another one is there."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--out: {folder} exists; choose another")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out: {folder}: {error.strerror}") from None


@contextmanager
def own_lines():
    """Programs from the cache of compiled ones only where they are of the same source lines as this one."""
    name = "jax_compilation_cache_include_metadata_in_key"
    before = jax.config.values[name]
    jax.config.update(name, True)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _programs(client: Any, trace: Trace) -> dict[str, hlo.Program]:
    """The text of each module in the trace; of several of one name, of that which has the most of the operations."""
    seen: dict[str, set[str]] = defaultdict(set)
    for module, name in trace.times:
        seen[module].add(name)
    found: dict[str, hlo.Program] = {}
    for executable in client.live_executables():
        for module in executable.hlo_modules():
            if names := seen.get(module.name):
                program = hlo.parse(module.to_string())
                had = found.get(module.name)
                if had is None or len(names & program.instructions.keys()) > len(names & had.instructions.keys()):
                    found[module.name] = program
    return found


# -- making sense of it ----------------------------------------------------------------------------


def summary(trace: Trace, programs: dict[str, hlo.Program], steps: int) -> list[Operation]:
    """The operations of a trace of so many steps, the costliest first."""

    def runs_others(module, name):
        known = programs[module].instructions.get(name) if module in programs else None
        return known is not None and known.opcode in hlo.CONTAINERS

    own = busy(trace, [op for op in trace.times if runs_others(*op)])
    whole = sum(own.values())
    found = []
    for (module, name), spent in sorted(own.items(), key=lambda item: -item[1]):
        told = hlo.about(programs[module], name) if module in programs else hlo.About(module)
        about = (told.what, told.part, told.backward, told.source)
        found.append(Operation(name, *about, spent / 1e9 / steps, trace.times[module, name] / steps, spent / whole))
    return found


def by_part(operations: Iterable[Operation]) -> list[tuple[str, float, float]]:
    """(part, seconds forward, seconds backward), the costliest first; outside of all parts, by the source file."""
    found: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for one in operations:
        file = one.source.removeprefix("near ").rpartition(":")[0]
        found[one.part or file or "made by XLA"][one.backward] += one.seconds
    rows = [(name, forward, backward) for name, (forward, backward) in found.items()]
    return sorted(rows, key=lambda row: -row[1] - row[2])


# -- for a person ---------------------------------------------------------------------------------


def show(console: Console, found: Profile, top: int = 10) -> None:
    """The costliest operations and parts, and the totals."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("share", "ms a step", "times"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("operation", "what", "part", "source"):
        table.add_column(name, overflow="fold")
    for one in found.operations[:top]:
        numbers = (f"{one.share:.1%}", _ms(one.seconds), f"{one.times:.3g}")
        part = f"{one.part or '-'}{', backward' if one.backward else ''}"
        table.add_row(*numbers, one.name, one.what, part, one.source or "-")
    console.print(table)
    console.print()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("share", "forward, ms", "backward, ms"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("part, or else file", overflow="fold")
    for name, forward, backward in found.parts[:top]:
        share = f"{(forward + backward) / found.device:.1%}"
        table.add_row(share, _ms(forward), _ms(backward) if backward else "", name)
    console.print(table)
    console.print()
    traced = f"{_ms(found.traced)} ms, in {_ms(found.device)} ms of them one of {len(found.operations)} operations runs"
    achieved = found.flops / found.wall
    facts = {
        "a step": f"{_ms(found.wall)} ms without the profiler; under it {traced}",
        "speed": f"{human(found.flops, 'FLOP')} a step in matrix products, {human(achieved, 'FLOP/s')}, "
        f"{achieved / found.peak:.1%} of matmul peak",
        "trace": f"{found.folder}/  (TensorBoard; plugins/profile/*/*.trace.json.gz opens in ui.perfetto.dev)",
    }
    console.print(fact_table(facts))
