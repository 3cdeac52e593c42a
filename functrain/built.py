"""An experiment put together, and what is had of it: its states, its batches and the programs of the loop.

Built                       config, task, feeds and devices
compile(built)   -> Compiled   the first train state and the programs of the loop
"""

import dataclasses
import functools
import operator
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functrain import precise, transfer
from functrain.assembly import teacher_of_run, weights_of_run
from functrain.autodiff.remat import compiler_options
from functrain.data import Dataset, Whole
from functrain.data.feed import as_is
from functrain.experiment import Experiment
from functrain.metrics import read, scalars
from functrain.parallel import batch_placer, replicate
from functrain.tasks.teacher import teachers
from functrain.train import members, memory, state, step
from functrain.train.evaluate import make_evaluate
from functrain.train.loop import Plan
from functrain.train.program import Program, compile_program


@dataclasses.dataclass(frozen=True)
class Built:
    """An experiment put together.

    config: with everything that was automatic written out; it builds again to the same.
    feeds: the training feed under "train", and an `InOrder` for each other split there is.
    """

    config: Experiment
    task: Any
    feeds: dict[str, Any]
    mesh: jax.sharding.Mesh
    dataset: Dataset | None
    flops: int  # of the matrix products in a step of one member
    metrics: Any  # shapes of what such a step counts
    monitor: str  # "" where nothing is evaluated
    chosen: precise.Choice | None = None  # of precision.kind = "auto"
    fit: memory.Fit | None = None  # of train.accumulate = 0

    @property
    def batch_size(self) -> int:
        """Examples in a step; 0 where there is no data."""
        if self.dataset is not None and hasattr(self.config.task, "whole"):
            return len(self.dataset)
        return self.config.data.batch_size if self.config.data else 0

    @property
    def plan(self) -> Plan:
        """When what happens."""
        config, train = self.config, self.config.train
        assert train.steps is not None
        observe = config.observe
        observed = observe.tensorboard or observe.wandb or observe.mlflow or observe.figures
        return Plan(
            steps=train.steps,
            chunk=train.chunk,
            log_every=train.log_every,
            evaluate_every=config.evaluate.every if "validation" in self.feeds else 0,
            checkpoint_every=config.checkpoint.every,
            norms_every=observe.norms_every if observed else 0,
            draw_every=config.observe.draw_every if config.observe.figures else 0,
            watch_every=getattr(config.precision, "watch_every", 0),
            patience=config.evaluate.patience,
            halts=train.on_nonfinite == "stop",
        )

    @property
    def replicated(self) -> jax.sharding.NamedSharding:
        """A copy on each device."""
        return jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec())

    @functools.cached_property
    def start(self) -> transfer.Loaded | None:
        """The weights to start from, read when first asked for: a resumed run never asks, nor does an evaluation.

        Raises:
          ConfigError: there are none, or they do not fit.
        """
        start = self.config.start
        if start is None:
            return None
        if start.run is None:
            return transfer.match(start, transfer.of_file(start), self.task)
        return transfer.match(start, weights_of_run(start), self.task)

    @functools.cached_property
    def teachers(self) -> dict[str, tuple[dict[str, Any], dict[str, np.ndarray]]]:
        """Of each other run that the task asks: where it is from, and its arrays by path; read as `start` is.

        Raises:
          ConfigError: the run is gone, or has other arrays.
        """
        return {name: teacher_of_run(name, teacher) for name, teacher in teachers(self.config.task).items()}

    def start_record(self) -> dict[str, Any]:
        """What the run starts from, as plain data; {} where every array is drawn."""
        record = self.start.record() if self.start is not None else {}
        origins = {name: origin for name, (origin, _) in self.teachers.items()}
        return record | ({"teachers": origins} if origins else {})

    @functools.cached_property
    def place(self) -> Callable[[Any], Any]:
        """Cuts a batch over the devices; what a task takes whole, it lays out itself."""
        return as_is if hasattr(self.config.task, "whole") else batch_placer(self.mesh)


@dataclasses.dataclass
class Compiled:
    """A built experiment, ready to run.

    program: of the loop.
    train_state, metrics: where it starts.
    evaluate: split -> `evaluate(train_state)`.
    seconds: spent on tracing and compiling.
    """

    program: Program
    train_state: Any
    metrics: Any
    evaluate: dict[str, Callable[[Any], Any]]
    seconds: float


def first_state(built: Built) -> Any:
    """The state of the first member before its first step, on every device: one program."""
    return _init(built)(jax.random.key(built.config.train.seed), _start_arrays(built))


def after(built: Built, steps: int) -> Any:
    """The state of the first member after so many steps of training."""
    feed, train_state = built.feeds["train"], first_state(built)
    take = jax.jit(step.make_body(built.task, feed, built.place), donate_argnums=0)
    zero = step.zero_metrics(built.task, feed, train_state, feed.window(0, 1))
    for i in range(steps):
        train_state, _ = take(train_state, zero, feed.window(i, 1))
    return train_state


def batches(built: Built, first: int, count: int) -> list[Any]:
    """The batches that the steps from `first` on train on."""
    feed = built.feeds["train"]
    batch = jax.jit(lambda window, step: built.place(feed.batch(window, step)))
    return [batch(feed.window(i, 1), np.int32(i)) for i in range(first, first + count)]


def _init(built: Built, over: Callable[..., Any] = lambda f, axes: f) -> Callable[[Any, Any], Any]:
    """(key, arrays to start from, for all members the same) -> train state, compiled."""
    init = over(lambda key, arrays: state.init(built.task, key, start=arrays), (0, None))
    return jax.jit(init, out_shardings=built.replicated)


def _start_arrays(built: Built) -> dict[str, np.ndarray]:
    arrays = dict(built.start.arrays) if built.start is not None else {}
    if built.dataset is not None:
        arrays |= {f"state/{path}": array for path, array in built.dataset.constants.items()}
    return functools.reduce(operator.or_, (more for _, more in built.teachers.values()), arrays)


def first_states(built: Built, arrays: dict[str, np.ndarray]) -> Any:
    """The state before the first step: of the one member, stacked where several go together, or else a tuple.

    arrays: in place of those that the task draws (see functrain.train.state).
    """
    train = built.config.train
    seeds = range(train.seed, train.seed + train.seeds)
    if train.seeds == 1:
        return _init(built)(jax.random.key(train.seed), arrays)
    if train.members == "in_turn":
        init = _init(built)
        return tuple(init(key, arrays) for key in map(jax.random.key, seeds))
    return _init(built, jax.vmap)(jax.vmap(jax.random.key)(np.array(seeds)), arrays)


def compile(built: Built, resume: Callable[[Any], Any] | None = None) -> Compiled:
    """The programs of the loop, compiled, and the state they start from.

    resume: `resume(payload) -> payload` puts the arrays of a checkpoint in place of {"state", "metrics"}.
    """
    start = time.perf_counter()
    train_state = first_states(built, _start_arrays(built) if resume is None else {})
    program, evaluate = programs(built, train_state)
    metrics = program.fresh()
    if resume is not None:
        payload = replicate(resume({"state": train_state, "metrics": metrics}), built.mesh)
        copy = jax.jit(lambda x: jax.tree.map(jnp.copy, x), out_shardings=built.replicated)
        own = copy(payload)  # donated later: no buffer of the host's arrays
        train_state, metrics = own["state"], own["metrics"]
    jax.block_until_ready(train_state)
    return Compiled(program, train_state, metrics, evaluate, time.perf_counter() - start)


def programs(built: Built, train_state: Any) -> tuple[Program, dict[str, Callable[[Any], Any]]]:
    """The loop's programs, and an evaluation for each split but the training one."""
    task, place, train, replicated = built.task, built.place, built.config.train, built.replicated
    evaluate = {s: make_evaluate(task, feed, place, replicated) for s, feed in built.feeds.items() if s != "train"}
    feed, several = built.feeds["train"], train.seeds > 1
    stacked = several and train.members == "together"
    seeds = np.arange(train.seed, train.seed + train.seeds, dtype=np.uint32)
    if several:
        apart = members.unstacked(train.seeds) if stacked else list
        evaluate = {split: members.each(one, apart) for split, one in evaluate.items()}
        feed = members.Seeded(feed, replicate(seeds if stacked else seeds[0], built.mesh))
    program = compile_program(
        task,
        feed,
        train_state[0] if several and not stacked else train_state,
        metrics=jax.tree.map(lambda x: jax.ShapeDtypeStruct((train.seeds, *x.shape), x.dtype), built.metrics)
        if stacked
        else built.metrics,
        loop=train.loop,
        place=place,
        sharding=replicated,
        evaluate=evaluate.get("validation"),
        seen=0 < built.plan.norms_every < built.plan.steps and not several,
        watch=precise.watch(task) if built.plan.watch_every and not several else None,
        stacked=stacked,
        options=compiler_options(jax.default_backend()),
    )
    if stacked:
        program = members.together(program, train.seeds)
    elif several:
        program = members.in_turn(program, built.feeds["train"], [replicate(seed, built.mesh) for seed in seeds])
    return program, evaluate


def overfit(built: Built, steps: int = 500) -> list[tuple[int, float]]:
    """Drive the first batch towards zero loss: [(step, mean loss since the last)].

    The first check of any model: one that cannot learn one batch by heart is wired wrongly. Nothing is
    turned off or changed; only the data is one batch.
    """
    feed = built.feeds["train"]
    batch = jax.jit(feed.batch)(feed.window(0, 1), np.int32(0))
    train_state, whole = first_state(built), Whole(batch)
    advance = jax.jit(step.make_chunk(built.task, whole, built.place), donate_argnums=(0, 1))
    losses, at = [], 0
    while at < steps:
        count = min(max(1, steps // 10), steps - at)
        zero = step.zero_metrics(built.task, whole, train_state, batch)
        train_state, metrics = advance(train_state, zero, batch, np.int32(count))
        at += count
        losses.append((at, scalars(read(metrics)).get("loss", float("nan"))))
    return losses
