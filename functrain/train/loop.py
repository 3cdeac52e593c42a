"""The loop: dispatch chunks, and at each boundary log, evaluate, checkpoint and stop, in plain sight.

The host never waits for the steps it has just dispatched: metrics stay on the device and are read one interval late,
and at most two chunks are in flight. It waits where it must know: at an evaluation, for a picture, and to copy a
checkpoint.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import numpy as np

from functrain.autodiff.remat import Remat
from functrain.config import ConfigError, Count, NonNegative, Positive, Size, configclass
from functrain.observe.events import LayerSink, Sink
from functrain.observe.seen import Seen
from functrain.train.checkpoint import Store, better
from functrain.train.program import Program
from functrain.train.stop import Stop


@configclass
class Train:
    """[train]: how long, from which seed, and how the steps are dispatched."""

    steps: Size | None = None
    """How many updates; give this or epochs."""
    epochs: Positive | None = None
    """How many passes over the training examples; written out as steps."""
    seed: Count = 0
    """Of the parameters, the order of the examples and all that is random in a step."""
    seeds: Size = 1
    """How many members the run has: seed, seed + 1 ...; results are their mean and standard deviation."""
    members: Literal["auto", "together", "in_turn"] = "auto"
    """Several seeds in one program by vmap, or a dispatch for each; auto goes by the program and the memory."""
    accumulate: Count = 1
    """Micro-batches into which a step's batch is cut, to save memory; the gradient is the same. 0 is the fewest that
    fit the memory there is, found by compiling; written out as their number."""
    memory_gb: NonNegative = 0.0
    """What a step may take where accumulate is 0, in 1e9 bytes; 0 is nine tenths of what the device has free."""
    remat: Remat = "none"
    """What the way back keeps and what it computes again: none computes nothing again, dots keeps matrix products,
    blocks what goes from block to block, full nothing but the inputs; offload is dots, kept in the host's memory."""
    chunk: Count = 0
    """Steps in one dispatch; 0 chooses by the FLOPs of a step. The result does not depend on it, bit for bit."""
    loop: Literal["auto", "loop", "step"] = "auto"
    """A chunk as one program, or a dispatch a step; auto takes steps for convolutions on a CPU."""
    on_nonfinite: Literal["skip", "stop"] = "skip"
    """After a step whose loss or gradient is not finite: go on without it, or stop and say where it came from."""
    devices: Count = 0
    """Local devices over which each batch is cut; 0 is all."""
    log_every: Count = 0
    """Steps between logged means; 0 is a hundredth of the run."""

    def __post_init__(self):
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give steps or epochs, not both")


@dataclass(frozen=True)
class Plan:
    """The steps at which something happens; 0 is never."""

    steps: int
    chunk: int
    log_every: int
    evaluate_every: int = 0
    checkpoint_every: int = 0
    norms_every: int = 0
    draw_every: int = 0
    watch_every: int = 0
    patience: int = 0
    halts: bool = False  # whether a step that is not finite ends the run: none after it changes anything

    def __post_init__(self):
        if self.chunk < 1 or self.log_every < 1:
            raise ConfigError("train.chunk and train.log_every: expected at least 1")

    def next_stop(self, at: int) -> int:
        """Where the chunk that starts at step `at` ends: never past a boundary."""
        ends = [self.steps, at + self.chunk]
        for every in (
            self.log_every,
            self.evaluate_every,
            self.checkpoint_every,
            self.norms_every,
            self.draw_every,
            self.watch_every,
        ):
            if every:
                ends.append((at // every + 1) * every)
        return min(ends)

    def due(self, every: int, at: int) -> bool:
        """Whether something that happens each `every` steps, and at the end, happens after step `at`."""
        return bool(every) and (at % every == 0 or at == self.steps)


@dataclass
class Best:
    """The best evaluation so far, and how many have come since. A fold over the validation history, so that a
    resumed run knows it from its log."""

    monitor: str = "loss"
    mode: str = "min"
    step: int | None = None
    value: float = np.nan
    stale: int = 0

    def see(self, step: int, values: dict[str, float]) -> bool:
        """Take note of an evaluation; whether it is the best."""
        value = values.get(self.monitor, np.nan)
        improved = better(value, self.value, self.mode)
        if improved:
            self.step, self.value, self.stale = step, value, 0
        else:
            self.stale += 1
        return improved


@dataclass
class Seconds:
    """Where the time of a run went.

    PARTS: of `train`, what the host did then; `cpu` apart, they add up to little less than `train`. `dispatch` is
    waiting too where a backend takes no more steps, as a CPU's does when each is dispatched by itself.
    """

    compile: float = 0.0
    train: float = 0.0
    evaluate: float = 0.0
    checkpoint: float = 0.0
    data: float = 0.0  # reading what the next steps need
    dispatch: float = 0.0  # handing steps to the device
    device: float = 0.0  # waiting for the device, and for its metrics
    log: float = 0.0  # telling the sinks
    cpu: float = 0.0  # of all the process's threads, in `train`

    PARTS: ClassVar = ("data", "dispatch", "device", "log", "cpu")


@dataclass
class Outcome:
    """What a loop ended with."""

    train_state: Any
    step: int
    ended: str  # "finished", "early" (patience), "stopped" (a signal) or "nonfinite"
    validation: dict[str, float] = field(default_factory=dict)  # of the last evaluation


def run(
    program: Program,
    train_state: Any,
    metrics: Any,
    plan: Plan,
    *,
    best: Best,
    draw: Callable[[Any, int], Mapping[str, Path]] | None = None,
    sinks: Sequence[Sink] = (),
    store: Store | None = None,
    stop: Stop | None = None,
    seconds: Seconds | None = None,
) -> Outcome:
    """Train from the state's step to the plan's last, or until patience or a signal ends it.

    Args:
      program: the compiled parts.
      train_state, metrics: where to start; both are donated. `metrics` is the running sum since the last log.
      plan: what happens when.
      best: the history so far; it is brought up to date.
      draw: `draw(state of the first member, step) -> paths` by name of pictures.
      sinks: where metrics and pictures go.
      store: where checkpoints go.
      stop: the request to end.
      seconds: the account to which time is added.
    """
    seconds = seconds or Seconds()
    at = int(jax.device_get(program.members(train_state)[0].step))
    late: deque[tuple[int, Any]] = deque()  # (step, metrics or what is seen, on the device), not yet read
    flying: deque[Any] = deque()  # marks of the chunks in flight
    validation: dict[str, float] = {}
    ended = "finished"
    clock = time.perf_counter

    def timed(part, f, *args):
        start = clock()
        result = f(*args)
        setattr(seconds, part, getattr(seconds, part) + clock() - start)
        return result

    def aside(part, f, *args):  # what is no part of `train`
        cpu = time.process_time()
        result = timed(part, f, *args)
        seconds.cpu -= time.process_time() - cpu
        return result

    def tell(step, split, values):
        for sink in sinks:
            sink.scalars(step, split, values)

    def tell_layers(step, seen):
        for sink in sinks:
            if isinstance(sink, LayerSink):
                sink.layers(step, seen)

    def read_late(keep):
        while len(late) > keep:
            step, waiting = late.popleft()
            if isinstance(waiting, Seen):
                timed("log", tell_layers, step, timed("device", jax.device_get, waiting))
            else:
                timed("log", tell, step, "train", timed("device", program.scalars, waiting))

    def pictures(train_state):
        with jax.transfer_guard("allow"):  # a task draws with what is at hand
            paths = draw(program.members(train_state)[0], at)  # pyright: ignore[reportOptionalCall]
        for sink in sinks:
            sink.pictures(at, paths)

    def evaluation(train_state):
        return program.scalars(program.evaluate(train_state))  # pyright: ignore[reportOptionalCall]

    def flush():
        for sink in sinks:
            sink.flush()

    def save():
        flush()  # a checkpoint vouches for every line up to its step
        if store is not None:
            store.save(at, {"state": train_state, "metrics": metrics}, validation if evaluated else {})

    if plan.patience and best.stale >= plan.patience:  # a finished run, resumed
        return Outcome(train_state, at, "early")
    began, before, cpu = clock(), seconds.evaluate + seconds.checkpoint, time.process_time()
    with jax.transfer_guard("disallow"):
        while at < plan.steps:
            count = plan.next_stop(at) - at
            window = timed("data", program.window, at, count)
            train_state, metrics, mark = timed("dispatch", program.advance, train_state, metrics, window, count)
            at += count
            flying.append(mark)
            if len(flying) == 1:  # the first steps are under way
                program.prepare()
            if len(flying) > 2 and plan.halts and timed("device", _any, flying[0]):
                break
            if len(flying) > 2:
                timed("device", jax.block_until_ready, flying.popleft())
            if plan.due(plan.log_every, at):
                late.append((at, metrics))
                metrics = program.fresh()
                read_late(1)
            if program.seen is not None and plan.norms_every and at % plan.norms_every == 0 and at < plan.steps:
                windows = [timed("data", program.window, step, 1) for step in (at, at + 1)]
                late.append((at, timed("dispatch", program.seen, train_state, *windows)))
            if program.watch is not None and plan.watch_every and at % plan.watch_every == 0 and at < plan.steps:
                window = timed("data", program.window, at, 1)
                late.append((at, timed("dispatch", program.watch, train_state, window)))
            if draw is not None and plan.draw_every and at % plan.draw_every == 0 and at < plan.steps:
                timed("device", jax.block_until_ready, mark)
                read_late(0)  # a sink is told things in the order of their steps
                aside("evaluate", pictures, train_state)
            evaluated = program.evaluate is not None and plan.due(plan.evaluate_every, at)
            improved = False
            if evaluated:
                timed("device", jax.block_until_ready, mark)  # so that what is timed is the evaluation
                read_late(0)
                validation = aside("evaluate", evaluation, train_state)
                timed("log", tell, at, "validation", validation)
                improved = best.see(at, validation)
                if plan.patience and best.stale >= plan.patience:
                    ended = "early"
            if stop is not None and stop.requested and at < plan.steps:
                ended = "stopped"
            if improved or ended != "finished" or plan.due(plan.checkpoint_every, at):
                read_late(0)
                aside("checkpoint", save)
            if ended != "finished":
                break
        timed("device", jax.block_until_ready, train_state)
        read_late(0)
        if plan.halts and any(map(_any, flying)):
            ended = "nonfinite"
    timed("log", flush)
    seconds.train += clock() - began - (seconds.evaluate + seconds.checkpoint - before)
    seconds.cpu += time.process_time() - cpu
    return Outcome(train_state, at, ended, validation)


def _any(mark) -> bool:
    """Whether an update was skipped, in any member of the run."""
    return any(np.any(skipped) for skipped in jax.tree.leaves(jax.device_get(mark)))
