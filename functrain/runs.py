"""Run directories: train into one, resume it.

config.toml        the config, everything automatic written out; the run is a function of it
metrics.jsonl      a line for each step and split
layers.jsonl       a line for each step at which gradients, updates and parameters were looked at, by layer
result.json        what came out, and where the time went
environment.json   versions, devices, flags, the command
start.json         where it starts from other weights, or asks other runs: which, and what became of each array
checkpoints/       the newest and the best
tensorboard/  figures/
"""

import dataclasses
import fcntl
import functools
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from functrain import config as configs
from functrain import tree
from functrain.building import build
from functrain.built import Built, compile
from functrain.config import ConfigError
from functrain.curvature import stationary_point
from functrain.data.known import cache_folder
from functrain.experiment import MAY_CHANGE, Experiment
from functrain.metrics import finite, read, scalars
from functrain.observe import figures, flops
from functrain.observe.console import (
    BoundLine,
    ProgressLine,
    choice_table,
    duration,
    fact_table,
    human,
    parameter_table,
    progress,
    result_table,
)
from functrain.observe.events import JSONLines, LayerLines, history, layer_history
from functrain.observe.layers_figure import layers_figure
from functrain.observe.mlflow import MLflow
from functrain.observe.tensorboard import TensorBoard
from functrain.observe.tracking import library
from functrain.observe.wandb import WandB
from functrain.optim.second_order import SecondOrder
from functrain.parallel import replicate
from functrain.pictures import drawer
from functrain.precise import Choice
from functrain.precision import dtype_of
from functrain.tracing import trace_nonfinite
from functrain.train import state
from functrain.train.checkpoint import Directory, from_arrays
from functrain.train.evaluate import make_ensemble
from functrain.train.loop import Best, Seconds, run
from functrain.train.members import pooled
from functrain.train.stop import EXIT_STATUS, Stop
from functrain.transfer import config_of, start_table
from functrain.version import __version__

FILES = ("config.toml", "metrics.jsonl", "result.json", "environment.json")


def make_console() -> Console:
    """A console on standard output; wide where it is no terminal, so that lines in a log stay whole."""
    console = Console(highlight=False, markup=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, width=160)


def use_compilation_cache() -> None:
    """Keep compiled programs between processes. The command calls it; importing functrain does not."""
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


# -- training -------------------------------------------------------------------------------------


def train(
    config: Experiment, out: Path, *, console: Console | None = None, stop: Stop | None = None, imported: float = 0.0
) -> int:
    """A new run in the directory `out`; nothing is written before config, data and model are known to fit.

    imported: seconds spent on imports, for the account.

    Returns:
      The exit status: 0, or 75 and 130 where SIGTERM or Ctrl-C ended it with a checkpoint.

    Raises:
      ConfigError: the directory exists and is not empty, or the config is wrong.
    """
    console = console or make_console()
    _check_out(out)
    _check_trackers(config)
    built = build(config, progress(console, "precision"))
    record = built.start_record()  # read before anything is shown: what is wrong with it is one line
    show_before(console, built)
    if built.start is not None:
        console.print(start_table(built.start))
    for name, origin in record.get("teachers", {}).items():
        console.print(f"{name}  {origin['run']}, step {origin['step']}")
    compiled = compile(built)
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out):
        (out / "config.toml").write_text(configs.dump(built.config))
        (out / "environment.json").write_text(json.dumps(environment(), indent=1) + "\n")
        if record:
            (out / "start.json").write_text(json.dumps(record, indent=1) + "\n")
        return _train(built, compiled, out, console, stop, imported, resumed_at=None)


def _check_trackers(config: Experiment) -> None:
    """Raises a ConfigError where a tracker is asked for whose library is not installed: before anything is written."""
    for name in ("wandb", "mlflow"):
        if getattr(config.observe, name):
            library(name)


def _check_out(out: Path) -> None:
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"--out: {out} exists; choose another, or go on with it: functrain train --resume {out}")
    parent = next(p for p in (out, *out.absolute().parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError(f"--out: {out}: {parent} is {'not writable' if parent.is_dir() else 'no directory'}")


def resume(
    out: Path,
    overrides: list[str] | tuple[str, ...] = (),
    *,
    console: Console | None = None,
    stop: Stop | None = None,
    imported: float = 0.0,
) -> int:
    """Go on with a run from its newest sound checkpoint; the result is bitwise that of the run uninterrupted.

    Raises:
      ConfigError: no run is there, another process has it, no checkpoint is sound, or an override changes what
        may not change.
    """
    console = console or make_console()
    source = config_of(out)
    wanted = configs.override(source, overrides)
    for key, (before, after) in configs.differences(source.data, wanted.data).items():
        if before is not None and not key.startswith(MAY_CHANGE):
            may = ", ".join(k.rstrip(".") for k in MAY_CHANGE)
            raise ConfigError(f"{key}: {before} in the run, {after} asked for; a resumed run may change only: {may}")
    if "start" in wanted.data and "start" not in source.data:
        raise ConfigError("start: a resumed run goes on from its own checkpoint; leave it out")
    new = configs.parse(Experiment, wanted)
    _check_trackers(new)
    with _locked(out):
        built = build(new)
        if changed := configs.differences(new, built.config):
            key, (before, after) = next(iter(changed.items()))
            raise ConfigError(f"{key}: {before} in the run, {after} on this machine and data")
        store = Directory(out / "checkpoints", monitor=built.monitor, mode=new.evaluate.mode)
        found = store.load(report=_warn)
        if found is None:
            raise ConfigError(f"--resume: {out} has no sound checkpoint; begin again with another --out")
        at, arrays = found
        assert built.config.train.steps is not None
        if at > built.config.train.steps:
            raise ConfigError(f"train.steps: {built.config.train.steps}, but the run is at step {at} already")
        show_before(console, built)
        try:
            compiled = compile(built, functools.partial(from_arrays, arrays))
        except ValueError as error:
            raise ConfigError(f"--resume: {out}: {error}") from None
        (out / "config.toml").write_text(configs.dump(built.config))
        console.print(f"resumed at step {at}")
        return _train(built, compiled, out, console, stop, imported, resumed_at=at)


def _warn(line: str) -> None:
    print(f"functrain: warning: {line}", file=sys.stderr)


def _train(built, compiled, out, console, stop, imported, resumed_at):
    """The loop with its sinks, then the results."""
    settings, plan = built.config, built.plan
    best = Best(built.monitor, settings.evaluate.mode)
    lines, layers = JSONLines(out / "metrics.jsonl", resumed_at), LayerLines(out / "layers.jsonl", resumed_at)
    for entry in history(out / "metrics.jsonl"):
        if entry["split"] == "validation":
            best.see(entry["step"], {k: v for k, v in entry.items() if isinstance(v, (int, float))})
    peak = flops.matmul_peak(dtype_of(settings.precision), cache_folder() / "peak.json")
    progress = ProgressLine(
        console,
        steps=plan.steps,
        at=resumed_at or 0,
        batch=built.batch_size * settings.train.seeds,
        flops=built.flops * settings.train.seeds,
        peak=peak * built.mesh.size,
        watch=settings.evaluate.monitor or "accuracy",
    )
    trackers = _trackers(built.config, out, resumed_at)
    sinks = [lines, layers, progress, *trackers]
    if bound := getattr(settings.precision, "bound", 0.0):
        sinks.append(BoundLine(_warn, bound))
    store = Directory(
        out / "checkpoints", settings.checkpoint.keep, built.monitor, settings.evaluate.mode, _constant(built.task)
    )
    seconds = Seconds(compile=compiled.seconds)
    try:
        outcome = run(
            compiled.program,
            compiled.train_state,
            compiled.metrics,
            plan,
            best=best,
            draw=_drawer(built, out / "figures"),
            sinks=sinks,
            store=store,
            stop=stop,
            seconds=seconds,
        )
        store.close()
    finally:
        progress.close()
        lines.close()
        layers.close()
    if outcome.ended == "nonfinite":
        for tracker in trackers:
            tracker.close()
        found = trace_nonfinite(built, compiled.program.members(outcome.train_state))
        write_whole(out / "nonfinite.txt", found + "\n")
        console.print(found, style="bold red", markup=False, soft_wrap=True)
        return 1
    if outcome.ended == "stopped":
        assert stop is not None
        assert stop.signal is not None
        for tracker in trackers:
            tracker.close()
        console.print(
            f"{stop.signal.name}: stopped after step {outcome.step} with a checkpoint; "
            f"go on with: functrain train --resume {out}"
        )
        return EXIT_STATUS[stop.signal]
    result, drawn = _finish(built, compiled, outcome, best, store, seconds, out, imported, resumed_at or 0, peak)
    reached = {f"{part}/{k}": v for part in ("final", "best", "test") for k, v in (result[part] or {}).items()}
    for tracker in trackers:
        tracker.pictures(outcome.step, drawn)
        tracker.hyperparameters(configs.flatten(settings), {k: v for k, v in reached.items() if v is not None})
        tracker.close()
    _show_after(console, result, out)
    return 0


def _constant(task: Any) -> str:
    """The pattern of what of the state never changes; it stands in checkpoints below a member's number, if at all."""
    names = (*getattr(task, "constant", ()), *getattr(getattr(task, "model", None), "constant", ()))
    return rf"state/(\d+/)?state/({'|'.join(names)})/" if names else ""


def _trackers(settings: Experiment, out: Path, resumed_at: int | None) -> list[Any]:
    """The sinks beside metrics.jsonl and the console."""
    observe = settings.observe
    board = [TensorBoard(out / "tensorboard", resumed_at)] if observe.tensorboard else []
    wandb = [WandB(observe.wandb, out, settings, resumed_at)] if observe.wandb else []
    mlflow = [MLflow(observe.mlflow, out, settings, resumed_at)] if observe.mlflow else []
    return [*board, *wandb, *mlflow]


def _drawer(built: Built, figures: Path) -> Callable[[Any, int], dict[str, Path]] | None:
    """Pictures while it trains, of validation examples: figures/step00000100/samples.png and the like."""
    draw = drawer(built, next((split for split in ("validation", "test") if split in built.feeds), None))
    return draw and (lambda train_state, step: _named(draw(train_state, figures / f"step{step:08d}")))


def _named(paths: Iterable[Path]) -> dict[str, Path]:
    """Pictures by their names; other files that a task writes (waves) are none."""
    return {path.stem: path for path in paths if path.suffix == ".png"}


def _finish(
    built, compiled, outcome, best, store, seconds, out, imported, began_at, peak
) -> tuple[dict[str, Any], dict[str, Path]]:
    """The test read once, at the best step where validation chose one; result.json and the figures, which by name."""
    settings, lines = built.config, history(out / "metrics.jsonl")
    validation = {e["step"]: _metrics_of(e) for e in lines if e["split"] == "validation"}
    chosen, train_state = outcome.step, outcome.train_state
    if best.step is not None and best.step != outcome.step:
        try:
            _, arrays = store.load(best.step)
        except OSError as error:
            _warn(f"the best checkpoint cannot be used; the test is read at the last step: {error}")
        else:
            payload = {"state": train_state, "metrics": compiled.program.fresh()}
            chosen, train_state = best.step, replicate(from_arrays(arrays, payload)["state"], built.mesh)
    start = time.perf_counter()
    members = compiled.program.members(outcome.train_state)
    shown = next((split for split in ("test", "validation") if split in compiled.evaluate), None)
    metrics = compiled.evaluate[shown](train_state) if shown else None
    test = compiled.program.scalars(metrics) if shown == "test" else None
    seconds.evaluate += time.perf_counter() - start
    steps = outcome.step - began_at
    rate = steps / seconds.train if steps and seconds.train > 0 else None
    examples = rate and rate * built.batch_size * settings.train.seeds
    step_flops = built.flops * settings.train.seeds
    spent = dataclasses.asdict(seconds)
    of_train = {part: spent.pop(part) for part in Seconds.PARTS}
    result = {
        "ended": outcome.ended,
        "steps": outcome.step,
        "final": _at(outcome.step, validation.get(outcome.step)),
        "best": _at(best.step, validation.get(best.step)),
        "test": _at(chosen, None if test is None else finite(test)),
        "train": _at(outcome.step, next((_metrics_of(e) for e in reversed(lines) if e["split"] == "train"), None)),
        "monitor": built.monitor or None,
        "parameters": sum(tree.size(p.params) for p in members[0].players.values()),
        "skipped_steps": sum(int(jax.device_get(state.skipped(member))) for member in members),
        "steps_per_s": rate,
        "examples_per_s": examples,
        "tokens_per_s": (examples and examples * built.dataset.block) or None,
        "flops_per_step": step_flops,
        "peak_flops_per_s": peak * built.mesh.size,
        "peak_fraction": rate and rate * step_flops / (peak * built.mesh.size),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "seconds": {"import": imported} | spent,
        "train_seconds": of_train,
    }
    if len(members) == 1 and isinstance(getattr(built.task.learners.get("model"), "optimizer", None), SecondOrder):
        result["point"] = str(stationary_point(built, members[0]))
    if len(members) > 1 and metrics is not None and test is not None:
        each = (finite(scalars(read(member))) for member in metrics)
        result["members"] = [{"seed": settings.train.seed + i} | numbers for i, numbers in enumerate(each)]
    ensemble = {}
    if len(members) > 1 and shown and hasattr(built.task, "averaged"):
        together = make_ensemble(built.task, built.feeds[shown], built.place, built.replicated)
        ensemble = read(together(tuple(compiled.program.members(train_state))))
        result["ensemble"] = {"step": chosen, "split": shown} | finite(scalars(ensemble))
    write_whole(out / "result.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    drawn = []
    if settings.observe.figures:
        folder = out / "figures"
        drawn.append(folder / "curves.png")
        figures.curves({out.name: lines}, drawn[0])
        if seen := layer_history(out / "layers.jsonl"):
            drawn.append(folder / "layers.png")
            layers_figure(seen, drawn[-1])
        if shown:
            drawn += figures.draw(read(pooled(metrics)), folder, f"{shown}, step {chosen}")
            named = {f"ensemble_{name}": metric for name, metric in ensemble.items()}
            drawn += figures.draw(named, folder, f"{shown}, step {chosen}, all members as one")
        if (draw := drawer(built, shown)) is not None:
            drawn += draw(compiled.program.members(train_state)[0], folder)
    return result, _named(drawn)


def _metrics_of(entry):
    return {k: v for k, v in entry.items() if k not in ("step", "split")}


def _at(step, metrics):
    return None if step is None or metrics is None else {"step": step} | metrics


def write_whole(path: Path, text: str) -> None:
    """A text file that is there whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)


class _locked:
    """One process a run directory: a lock that ends with the process."""

    def __init__(self, out: Path):
        self._out = out

    def __enter__(self):
        self._file = open(self._out / ".lock", "w")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise ConfigError(f"{self._out}: another process is training there") from None

    def __exit__(self, *_):
        self._file.close()


# -- what a person sees ---------------------------------------------------------------------------


def parameters_of(built: Built) -> list[tuple[str, tuple[int, ...], int]]:
    """(path, shape, count) of every parameter; with the player's name where there are several."""
    players = jax.eval_shape(lambda: state.init(built.task, jax.random.key(0))).players
    several = len(players) > 1
    return [
        (f"{name}/{path}" if several else path, leaf.shape, leaf.size)
        for name, player in players.items()
        for path, leaf in tree.by_path(player.params).items()
    ]


def show_before(console: Console, built: Built) -> None:
    """The table before the first step: parameters, device, FLOPs, memory, steps, data."""
    train_state = jax.eval_shape(lambda: state.init(built.task, jax.random.key(0)))
    settings, devices = built.config, built.mesh.devices.flat
    console.print(parameter_table(parameters_of(built)))
    facts = {
        "device": f"{built.mesh.size} x {devices[0].device_kind} ({devices[0].platform}), jax {jax.__version__}",
        "step": f"{human(built.flops, 'FLOP')} in matrix products, {settings.precision.kind}",
        "memory": f"state {human(tree.nbytes(train_state), 'B')}",
        "steps": f"{settings.train.steps}, {settings.train.chunk} a dispatch",
    }
    if built.dataset is not None:
        splits = {s: built.dataset.split(s) for s in ("train", "validation", "test")}
        counts = ", ".join(f"{len(next(iter(a.values()))):,} {s}" for s, a in splits.items() if a)
        facts["data"] = f"{counts}; {built.batch_size} a step"
        held = [a for part in splits.values() if part for a in part.values() if not isinstance(a, np.memmap)]
        facts["memory"] += f", examples {human(sum(a.nbytes for a in held), 'B')}"
    console.print(fact_table(facts))
    if built.fit is not None:
        console.print(str(built.fit), soft_wrap=True)
    if built.chosen is not None:
        show_choice(console, built.chosen)


def show_choice(console: Console, chosen: Choice) -> None:
    """What a search for dtypes chose, part by part, with the errors that made it choose so."""
    parts = sorted(chosen.parts, key=lambda part: (-part.flops, -part.numbers))
    rows = [(p.scope or "elsewhere", p.of, p.dtype, p.errors, p.flops, p.numbers) for p in parts]
    console.print(choice_table(rows))
    console.print(
        f"precision: the gradient differs by {chosen.error:.2g} from that in float32 (bound {chosen.policy.bound:g}); "
        f"{chosen.low:.1%} of the matrix products' FLOPs are in 16 bits"
    )


def _show_after(console: Console, result: dict[str, Any], out: Path) -> None:
    if any(result[s] for s in ("final", "best", "test")):
        console.print(result_table(result))
    seconds = result["seconds"]
    facts = {"steps": f"{result['steps']}" + (" (ended early)" if result["ended"] == "early" else "")}
    if "point" in result:
        facts["point"] = result["point"]
    if result["skipped_steps"]:
        facts["skipped"] = f"{result['skipped_steps']} steps were not finite and changed nothing"
    if result["steps_per_s"]:
        each = {name: result[f"{name}_per_s"] for name in ("examples", "tokens")}
        speed = "".join(f"{human(rate)} {name}/s, " for name, rate in each.items() if rate)
        facts["speed"] = f"{human(result['steps_per_s'])} steps/s, {speed}{result['peak_fraction']:.1%} of matmul peak"
    facts["time"] = ", ".join(f"{name} {duration(s)}" for name, s in seconds.items())
    *parts, (_, cpu) = result["train_seconds"].items()
    facts["train"] = ", ".join(f"{name} {duration(s)}" for name, s in parts) + f"; {duration(cpu)} of processors"
    facts["run"] = f"{out}/  (config.toml, metrics.jsonl, result.json, checkpoints/, figures/, tensorboard/)"
    console.print(fact_table(facts))


def environment() -> dict[str, Any]:
    """What a run ran on: versions, devices, flags and the command."""
    from importlib.metadata import PackageNotFoundError, version

    packages = {}
    for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pydantic"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    return {
        "functrain": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "packages": packages,
        "devices": [f"{d.platform}:{d.id} {d.device_kind}" for d in jax.devices()],
        "flags": {k: v for k, v in sorted(os.environ.items()) if k.startswith(("JAX_", "XLA_", "FUNCTRAIN_"))},
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


# -- reading a run --------------------------------------------------------------------------------


def read_config(out: Path) -> Experiment:
    """The config of a run, everything written out.

    Raises:
      ConfigError: no run is there.
    """
    return configs.parse(Experiment, config_of(out))
