"""The root config, and `build`: the one file that knows every part.

Experiment                  the config of a run, as TOML sections
build(config)    -> Built   data loaded, task put together, everything that was automatic written out
compile(built)   -> Compiled   the first train state and the programs of the loop
"""

import dataclasses
import functools
import math
import operator
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functrain import precise, transfer, tree
from functrain.augment import AnyAugment
from functrain.autodiff import DPSGD, AnyEstimator, Reverse
from functrain.autodiff.remat import compiler_options
from functrain.config import LARGEST, ConfigError, configclass, kind_table, listed, parse
from functrain.data import AnyData, Augmented, Bucketed, Dataset, InOrder, Stream, Whole, blocks
from functrain.data.base import reader
from functrain.data.feed import as_is
from functrain.layers import forms
from functrain.metrics import read, scalar_names, scalars
from functrain.models import AnyModel, HuggingFace, LoRA
from functrain.models.base import fill
from functrain.observe import Observe, flops
from functrain.optim import AdamW, AnyAverage, AnyOptimizer, Learner, NoAverage
from functrain.optim.base import matches
from functrain.parallel import batch_placer, device_mesh, replicate
from functrain.precision import AnyPrecision, Auto, Float32
from functrain.tasks import AnyTask
from functrain.tasks.teacher import Teacher, teachers
from functrain.train import members, memory, state, step
from functrain.train.checkpoint import Checkpoint
from functrain.train.evaluate import Evaluate, make_evaluate
from functrain.train.loop import Plan, Train
from functrain.train.program import Program, compile_program, with_learners
from functrain.train.trim import trimmed

# pyright: reportInvalidTypeForm=false
# The unions of kinds are built from tables by a function, which a static checker cannot follow.


@configclass
class PlayerConfig:
    """[players.NAME]: what one player of a task has differently."""

    optimizer: AnyOptimizer | None = None
    """Its own optimizer, in place of [optimizer]."""
    precision: AnyPrecision | None = None
    """Its own precision, in place of [precision]."""
    estimator: AnyEstimator | None = None
    """Its own way to a gradient, in place of [estimator]."""
    average: AnyAverage | None = None
    """Its own average, in place of [average]."""


@configclass
class Experiment:
    """A training run, whole: the same config gives the same run."""

    task: AnyTask
    """What is learned."""
    model: AnyModel | None = None
    """What learns it; a task that owns its models needs none."""
    data: AnyData | None = None
    """The examples; a task that makes its own (an environment) needs none."""
    augment: tuple[AnyAugment, ...] = ()
    """What is changed at random in the examples that are trained on, one after another, at each step otherwise."""
    optimizer: AnyOptimizer = dataclasses.field(default_factory=AdamW)
    """How every player's parameters are improved."""
    precision: AnyPrecision = dataclasses.field(default_factory=Float32)
    """In which dtype is computed."""
    estimator: AnyEstimator = dataclasses.field(default_factory=Reverse)
    """How gradients are had."""
    average: AnyAverage = dataclasses.field(default_factory=NoAverage)
    """Which average of the parameters evaluation uses."""
    players: dict[str, PlayerConfig] = dataclasses.field(default_factory=dict)
    """What single players have differently, by name."""
    lora: LoRA | None = None
    """Trains an addition of low rank to some kernels in place of the parameters; absent, all of them."""
    start: transfer.Start | None = None
    """From which weights it starts, another run's or a file's; absent, all of them are drawn from the seed."""
    train: Train = dataclasses.field(default_factory=Train)
    evaluate: Evaluate = dataclasses.field(default_factory=Evaluate)
    checkpoint: Checkpoint = dataclasses.field(default_factory=Checkpoint)
    observe: Observe = dataclasses.field(default_factory=Observe)

    def __post_init__(self):
        start, folder = self.start, isinstance(self.model, HuggingFace)  # the folder's own weights are meant
        if start is not None and start.run is None and start.file is None and not folder:
            raise ValueError("start: give run or file, one of them")


MAY_CHANGE = ("train.steps", "train.log_every", "evaluate.patience", "checkpoint.", "observe.")
"""Keys (or beginnings of keys) that a resumed run may change; the first ones say how long and how it is seen."""


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
        return transfer.match(start, _weights_of_run(start), self.task)

    @functools.cached_property
    def teachers(self) -> dict[str, tuple[dict[str, Any], dict[str, np.ndarray]]]:
        """Of each other run that the task asks: where it is from, and its arrays by path; read as `start` is.

        Raises:
          ConfigError: the run is gone, or has other arrays.
        """
        return {name: _teacher_of_run(name, teacher) for name, teacher in teachers(self.config.task).items()}

    def start_record(self) -> dict[str, Any]:
        """What the run starts from, as plain data; {} where every array is drawn."""
        record = self.start.record() if self.start is not None else {}
        origins = {name: origin for name, (origin, _) in self.teachers.items()}
        return record | ({"teachers": origins} if origins else {})

    @functools.cached_property
    def place(self) -> Callable[[Any], Any]:
        """Cuts a batch over the devices; what a task takes whole, it lays out itself."""
        return as_is if hasattr(self.config.task, "whole") else batch_placer(self.mesh)


def build(config: Experiment, tell: Callable[[int, int], None] = lambda done, of: None) -> Built:
    """Load the data, put the task together, and write out what was automatic. Nothing is trained, nothing written.

    tell: called while `precision.kind = "auto"` measures, with how much of it is done.

    Raises:
      ConfigError: the parts do not fit one another.
    """
    try:
        forms.of_environment()
    except ValueError as error:
        raise ConfigError(f"FUNCTRAIN_FORMS: {error}") from None
    for name, player in config.players.items():
        if isinstance(player.precision, Auto):
            raise ConfigError(f'players.{name}.precision.kind: "auto" is for a task of one player')
    if not isinstance(config.precision, Auto):
        return _fitted(_build(config))
    exact = _build(dataclasses.replace(config, precision=Float32()))
    chosen = _search(exact, config.precision, tell)
    built = _build(dataclasses.replace(exact.config, precision=chosen.policy), exact.dataset)
    return _fitted(dataclasses.replace(built, chosen=chosen))


def _fitted(built: Built) -> Built:
    """With the fewest micro-batches that fit the memory there is, where that was left open."""
    train = built.config.train
    if train.accumulate:
        return built
    if built.config.data is None or hasattr(built.config.task, "whole"):
        kind = built.config.task.kind
        raise ConfigError(f"train.accumulate: 0 chooses how a batch of [data] is cut; task.kind = {kind!r} takes none")

    def cut(n):
        config = dataclasses.replace(built.config, train=dataclasses.replace(train, accumulate=n))
        return dataclasses.replace(built, config=config, task=with_learners(built.task, accumulate=n))

    def needs(n):
        one = cut(n)
        states = jax.eval_shape(lambda: first_states(one, {}))
        states = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=built.replicated), states)
        waiting = tree.nbytes(states[1:]) if isinstance(states, tuple) else 0  # members that are not having their turn
        return _programs(one, states)[0].needs() + waiting

    limit = memory.available(built.mesh.devices.flat[0], train.memory_gb)
    if not train.memory_gb:  # what is there already is an argument of the step too
        limit += tree.nbytes(built.feeds["train"].window(0, 1))
    fit = memory.fewest(needs, built.batch_size, built.mesh.size, limit)
    return dataclasses.replace(cut(fit.chosen), fit=fit)


def _search(built: Built, settings: Auto, tell: Callable[[int, int], None]) -> precise.Choice:
    """What the search for dtypes chooses at the start of a run, on its first batches."""
    return precise.search(built.task, first_state(built), batches(built, 0, settings.batches), settings, tell)


def _build(config: Experiment, loaded: Dataset | None = None) -> Built:
    """`build`, of a config whose precision is no longer automatic; loaded: the data, where they are at hand."""
    if config.data is None and hasattr(config.task, "model"):
        raise ConfigError(f"data: missing; a table with a kind: {listed(kind_table(AnyData))}")
    config = _with_teachers(_from_hub(config))
    _check_units(config)
    dataset = loaded
    if loaded is None and config.data is not None:
        dataset = config.data.load()
    if config.data is not None and dataset is not None and dataset.found:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, **dataset.found))
    _check_range(config, dataset)
    config = _with_units_of_data(config)
    config, batch_size = _steps_written_out(config, dataset)
    config, task = assemble(config, dataset)
    _check_players(config, task)

    mesh = device_mesh(_devices(config), batch_size)
    feeds = _feeds(config, dataset, mesh)
    if isinstance(feed := getattr(feeds["train"], "feed", feeds["train"]), Bucketed):  # perhaps augmented
        task = trimmed(task, feed.widths)
    params, drawn = jax.eval_shape(task.init, jax.random.key(0))
    if dataset is not None and (more := dataset.constants.keys() - tree.by_path(drawn).keys()):
        raise ConfigError(f"data: it has {min(more)} of each item; the model and task have no place for that")
    for name, learner in task.learners.items():
        if learner is not None:
            own = name in config.players and config.players[name].optimizer is not None
            learner.optimizer.check(params[name], f"players.{name}.optimizer" if own else "optimizer")
            own = name in config.players and config.players[name].precision is not None
            learner.precision.check(params[name], f"players.{name}.precision" if own else "precision")
            if not learner.optimizer.by_gradient and not isinstance(learner.estimator, Reverse):
                kinds = f"{learner.estimator.kind!r} beside optimizer.kind = {learner.optimizer.kind!r}"
                raise ConfigError(f"estimator.kind: found {kinds}, which takes no gradient; leave it out")
            if isinstance(learner.estimator, DPSGD):
                _check_private(config)
            if learner.halts and learner.precision.init_scale() is not None:
                raise ConfigError(
                    'train.on_nonfinite: "stop" takes a policy without a loss scale, which is made to skip'
                )
    train_state = jax.eval_shape(lambda: state.init(task, jax.random.key(0)))
    window = feeds["train"].window(0, 1)
    batch = jax.eval_shape(feeds["train"].batch, window, train_state.step)
    if dataset is not None:
        _check_outputs(config, task, dataset, train_state, batch)
    plain = step.make_step(with_learners(task, remat="none"))  # what is computed twice counts once
    step_flops, primitives = flops.count(plain, train_state, batch)
    if config.train.remat != "none":
        _check_remat(config, task, flops.count(step.make_step(task), train_state, batch)[1])
    config = _program_written_out(config, step_flops, primitives, tree.nbytes(train_state))
    feeds["train"] = _with_room(feeds["train"], config.train, mesh)
    monitor = _monitor(config, task, feeds, train_state)
    return Built(config, task, feeds, mesh, dataset, step_flops, monitor)


def _check_remat(config: Experiment, task: Any, primitives: set[str]) -> None:
    """Raises a ConfigError where train.remat would change nothing; primitives: of a step."""
    remat, model = config.train.remat, config.model
    kind = f"model.kind = {model.kind!r}" if model is not None else f"task.kind = {config.task.kind!r}"
    if remat == "offload" and jax.default_backend() == "cpu":
        raise ConfigError("train.remat: 'offload' is to the host's memory; a CPU has no other: expected none or dots")
    if not any(learner is not None and learner.optimizer.by_gradient for learner in task.learners.values()):
        raise ConfigError(f"train.remat: found {remat!r}; no gradient is taken here: leave it out")
    if not {"checkpoint", "remat", "remat2"} & primitives:
        raise ConfigError(f"train.remat: found {remat!r}; {kind} has no blocks: expected none, dots, full or offload")


def _check_private(config: Experiment) -> None:
    """Raises a ConfigError where what a step does gives single examples away, whatever noise is on its gradient."""
    if config.optimizer.sparse:
        raise ConfigError("optimizer.sparse: which rows a step touches gives examples away; leave it out with dp_sgd")
    for i, augment in enumerate(config.augment):
        if augment.kind in ("mixup", "cutmix"):
            raise ConfigError(f"augment.{i}: {augment.kind} makes one row of two examples; leave it out with dp_sgd")


def _from_hub(config: Experiment) -> Experiment:
    """With the model that a Hugging Face folder describes in the folder's place, and its weights to start from."""
    start = config.start
    if isinstance(config.model, HuggingFace):
        start = start or transfer.Start()
        if start.run is None and start.file is None:
            start = dataclasses.replace(start, file=config.model.folder)
        config = dataclasses.replace(config, model=config.model.found(), start=start)
    return config


def _with_teachers(config: Experiment) -> Experiment:
    """With the models of the runs that the task asks written out, and what their data were normalised by."""
    changes = {}
    for name, teacher in teachers(config.task).items():
        if teacher.model is None:
            settings = _settings_of(teacher.run, f"task.{name}.run")
            if settings.model is None:
                raise ConfigError(f"task.{name}.run: {teacher.run} is no run of one model")
            centre, spread = _units(settings.data)
            changes[name] = dataclasses.replace(teacher, model=settings.model, centre=centre, spread=spread)
    return dataclasses.replace(config, task=dataclasses.replace(config.task, **changes)) if changes else config


def _with_units_of_data(config: Experiment) -> Experiment:
    """With what the task's inputs were normalised by told to the runs that it asks."""
    centre, spread = _units(config.data)
    changes = {
        name: dataclasses.replace(teacher, data_centre=centre, data_spread=spread)
        for name, teacher in teachers(config.task).items()
    }
    return dataclasses.replace(config, task=dataclasses.replace(config.task, **changes)) if changes else config


def _units(data: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What inputs are normalised by: (what is subtracted, what they are divided by), empty where nothing is."""
    source = reader(data)
    return getattr(source, "centre", ()), getattr(source, "spread", ())


def _settings_of(run: str, key: str) -> Experiment:
    """The config of another run, which `key` names."""
    try:
        return parse(Experiment, transfer.config_of(run))
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from None


def _check_units(config: Experiment) -> None:
    """Raises a ConfigError where a task needs inputs in their own units, and the source normalises them."""
    normalise = getattr(reader(config.data), "normalise", "none")
    if getattr(config.task, "in_units", False) and normalise != "none":
        raise ConfigError(f'data.normalise: found {normalise!r}; task.kind = {config.task.kind!r} needs "none"')


def _check_range(config: Experiment, dataset: Dataset | None) -> None:
    """Raises a ConfigError where a task needs inputs in 0..1, and the first ones are not."""
    if dataset is None or config.data is None or not getattr(config.task, "in_units", False):
        return
    x = np.asarray(config.data.scaled({name: a[:256] for name, a in dataset.train.items()})["x"])
    if x.min() < 0 or x.max() > 1:
        raise ConfigError(f"data: inputs are in {x.min():g}..{x.max():g}; task.kind = {config.task.kind!r} needs 0..1")


def _weights_of_run(start: transfer.Start) -> transfer.Weights:
    """What evaluation uses in the run that another starts from."""
    assert start.run is not None
    settings = _settings_of(start.run, "start.run")
    try:
        _, task = assemble(settings, None)
    except ConfigError as error:
        raise ConfigError(f"start.run: {error}") from None
    return transfer.of_run(start, settings, task)


def _teacher_of_run(name: str, teacher: Teacher) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(what a record says of it, path in the train state -> array) of a run that the task asks."""
    try:
        found = _weights_of_run(transfer.Start(run=teacher.run, step=teacher.step, member=teacher.member))
    except ConfigError as error:
        raise ConfigError(str(error).replace("start.", f"task.{name}.", 1)) from None
    wanted = tree.by_path(jax.eval_shape(teacher.init, jax.random.key(0)))
    arrays = {path: found.read(path) for path in found.names}
    if {path: like.shape for path, like in wanted.items()} != {path: a.shape for path, a in arrays.items()}:
        raise ConfigError(f"task.{name}.run: {teacher.run} is no run of one model")
    return found.origin, {f"state/{name}/{path}": a for path, a in arrays.items()}


def _feeds(config: Experiment, dataset: Dataset | None, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """The training feed, and every example in order for the other splits."""
    if config.data is None or dataset is None:
        return {"train": Whole(), "validation": InOrder({}, 1)}
    if hasattr(config.task, "whole"):
        feed: Any = Whole(replicate(config.task.whole(dataset), mesh))
    else:
        arrays = dataset.train if config.data.streamed else replicate(dataset.train, mesh)
        feed = config.data.feed(dataset, arrays, config.train.seed)
    if config.augment:
        if any(dataset.fields):
            raise ConfigError("augment: it changes numbers; the data has categories by number")
        scaled = dataclasses.replace(feed, prepare=config.data.scaled)
        feed = Augmented(scaled, config.augment, config.data.normalised, config.train.seed)
        _check_augment(feed, config.task)
    feeds: dict[str, Any] = {"train": feed}
    return feeds | {s: in_order(config, dataset, s, mesh) for s in ("validation", "test") if dataset.split(s)}


def _with_room(feed: Any, train: Train, mesh: jax.sharding.Mesh) -> Any:
    """The training feed; one that reads from the host with room for a chunk of steps, and every device to put it on."""
    if isinstance(feed, Augmented):
        return dataclasses.replace(feed, feed=_with_room(feed.feed, train, mesh))
    if not isinstance(feed, Stream):
        return feed
    if train.seeds > 1:
        raise ConfigError(f"train.seeds: found {train.seeds}; what is read from a file has one order: expected 1")
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return dataclasses.replace(feed, longest=train.chunk, sharding=everywhere)


def _check_augment(feed: Augmented, task: Any) -> None:
    """Raises a ConfigError where the data are not what an augmentation changes, or the task not one of mixed labels."""
    batch = jax.eval_shape(feed.feed.batch, feed.window(0, 1), np.int32(0))
    for i, change in feed.changes():
        where = "data" if i is None else f"augment.{i}: {feed.augments[i].kind}"
        try:
            batch = jax.eval_shape(change, batch, jax.random.key(0))
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from None
        if "share" in batch and not getattr(task, "mixes", False):
            raise ConfigError(f"{where} mixes labels; task.kind = {task.kind!r} has no loss of them")


def in_order(config: Experiment, dataset: Dataset, split: str, mesh: jax.sharding.Mesh) -> InOrder:
    """Every example of a split once, in order, for evaluation."""
    assert config.data is not None
    arrays = dataset.split(split)
    if hasattr(config.task, "examples"):
        arrays = config.task.examples(dataset, split)
    elif dataset.block:
        arrays = blocks(arrays["tokens"], dataset.block, config.data.evaluated)
    size = min(config.evaluate.batch_size, len(next(iter(arrays.values()))))
    size = math.ceil(size / mesh.size) * mesh.size
    return InOrder(replicate(arrays, mesh), size, config.data.prepare)


def assemble(config: Experiment, dataset: Dataset | None) -> tuple[Experiment, Any]:
    """The task with its model and learners; the model's ends fitted to the data, where data is given."""
    if dataset is not None and hasattr(config.task, "sized"):
        config = dataclasses.replace(config, task=config.task.sized(dataset))
    if config.model is not None and dataset is not None and (outputs := config.task.outputs(dataset)) is not None:
        sized = _with_fields(_with_vocabulary(config.model, dataset), dataset, config.task)
        config = dataclasses.replace(config, model=sized.sized(dataset.inputs, outputs))
    model = config.model.build() if config.model is not None else None
    if model is None and hasattr(config.task, "model"):
        raise ConfigError(f"model: missing; a table with a kind: {listed(kind_table(AnyModel))}")
    if config.lora is not None:
        if model is None:
            raise ConfigError(f"lora: it adapts [model]; there is none beside task.kind = {config.task.kind!r}")
        model = config.lora.adapt(model)

    def learner(name: str) -> Learner:
        own = config.players.get(name, PlayerConfig())
        optimizer, average = own.optimizer or config.optimizer, own.average or config.average
        return Learner(
            optimizer=optimizer,
            precision=own.precision or config.precision,
            estimator=own.estimator or config.estimator,
            average=average,
            accumulate=config.train.accumulate or 1,
            remat=config.train.remat,
            halts=config.train.on_nonfinite == "stop",
            rows=_rows_read(model, optimizer, average) if optimizer.sparse else None,
        )

    return config, config.task.assemble(model, learner)


def _rows_read(model: Any, optimizer: Any, average: Any) -> Callable[[Any], dict[str, jax.Array]]:
    """batch -> the rows that the model reads of the tables that `optimizer.sparse` names."""
    if not hasattr(model, "rows"):
        kind = getattr(model, "kind", type(model).__name__)
        raise ConfigError(f"optimizer.sparse: a model of kind {kind!r} has no tables that it only looks up")
    if not isinstance(average, NoAverage):
        raise ConfigError(f"average.kind: {average.kind!r} needs whole tables; leave it out, or optimizer.sparse")

    def rows(batch):
        read = model.rows(batch["x"])
        if other := [pattern for pattern in optimizer.sparse if not any(matches([pattern], path) for path in read)]:
            raise ConfigError(f"optimizer.sparse: pattern {other[0]!r} matches no table; there are: {', '.join(read)}")
        return {path: ids for path, ids in read.items() if matches(optimizer.sparse, path)}

    return rows


def _with_vocabulary(model: Any, dataset: Dataset) -> Any:
    """The config of a model that reads tokens and gives something else, with a table for all of them."""
    if not dataset.vocabulary or not hasattr(model, "vocabulary") or model.vocabulary >= dataset.vocabulary:
        return model
    if model.vocabulary:
        raise ConfigError(
            f"model.vocabulary: found {model.vocabulary}; too small for the {dataset.vocabulary} tokens of the data"
        )
    return dataclasses.replace(model, vocabulary=dataset.vocabulary)


def _with_fields(model: Any, dataset: Dataset, task: Any) -> Any:
    """The config of a model of categories, with what the data says of them.

    fields: how many each column has. content: how many numbers describe an item. mean: what it begins from, where it is
    to tell numbers.
    """
    if not hasattr(model, "fields"):
        if any(dataset.fields) and model.kind not in ("custom", "flax"):
            raise ConfigError(f"model.kind: {model.kind!r} reads numbers; the data has categories by number")
        return model
    if not dataset.fields:
        raise ConfigError(
            f"model.kind: {model.kind!r} reads categories by number; they are those of data.kind = "
            '"csv" with categories = "numbers", or "ratings"'
        )
    changes: dict[str, Any] = {"fields": fill("model.fields", model.fields, dataset.fields)}
    if "content" in dataset.constants and hasattr(model, "content"):
        changes["content"] = fill("model.content", model.content, dataset.constants["content"].shape[-1])
    if getattr(model, "mean", 0.0) is None:
        changes["mean"] = float(dataset.train["y"].mean(dtype=np.float64)) if task.kind == "regression" else 0.0
    return dataclasses.replace(model, **changes)


def _steps_written_out(config: Experiment, dataset: Dataset | None) -> tuple[Experiment, int]:
    """Epochs as steps, and every interval; the batch size with it."""
    replace, train = dataclasses.replace, config.train
    batch_size, epoch = 1, 0
    if dataset is not None:
        n = len(dataset)
        batch_size = config.data.batch_size  # pyright: ignore[reportOptionalMemberAccess]
        if batch_size > n:
            raise ConfigError(f"data.batch_size: found {batch_size}; there are {n} training examples")
        if batch_size % (train.accumulate or 1):
            raise ConfigError(f"train.accumulate: found {train.accumulate}; it does not divide a batch of {batch_size}")
        epoch = 1 if hasattr(config.task, "whole") else n // batch_size
    steps = train.steps
    if train.epochs is not None:
        if not epoch:
            raise ConfigError("train.epochs: there is no [data] to pass over; give train.steps")
        steps = max(1, round(train.epochs * epoch))
        if steps > LARGEST:
            raise ConfigError(f"train.epochs: found {train.epochs}: {steps} steps; there can be at most {LARGEST}")
    if steps is None:
        raise ConfigError("train: missing steps or epochs")
    log_every = train.log_every or max(1, steps // 100)
    evaluate_every = config.evaluate.every or max(epoch, steps // 50, 1)
    config = replace(
        config,
        train=replace(train, steps=steps, epochs=None, log_every=log_every),
        evaluate=replace(config.evaluate, every=evaluate_every),
        checkpoint=replace(config.checkpoint, every=config.checkpoint.every or max(1, steps // 10)),
        observe=replace(config.observe, norms_every=config.observe.norms_every or steps // 20 or steps),
        optimizer=config.optimizer.sized(steps),
        average=config.average.sized(steps),
        players={
            name: replace(
                player,
                optimizer=player.optimizer and player.optimizer.sized(steps),
                average=player.average and player.average.sized(steps),
            )
            for name, player in config.players.items()
        },
    )
    return config, batch_size


def _program_written_out(config: Experiment, step_flops: int, primitives: set[str], state_bytes: int) -> Experiment:
    """How the steps are dispatched: by rules on the program (see functrain.train.step)."""
    train, backend = config.train, jax.default_backend()
    loop = step.choose_loop(primitives, backend) if train.loop == "auto" else train.loop
    chunk = train.chunk or step.choose_chunk(step_flops, backend)
    changes: dict[str, Any] = {"loop": loop, "chunk": chunk}
    if train.seeds > 1 and train.members == "auto":
        # Together, a choice between widths would become the computation of all of them.
        bucketed = getattr(config.data, "buckets", 1) > 1
        changes["members"] = "in_turn" if bucketed else step.choose_members(loop, train.seeds * state_bytes)
    return dataclasses.replace(config, train=dataclasses.replace(train, **changes))


def _devices(config: Experiment) -> int:
    """Over how many devices a step is cut (0: all); not at all where the task takes the data whole."""
    if not hasattr(config.task, "whole"):
        return config.train.devices
    if config.train.devices > 1:
        raise ConfigError(f"train.devices: found {config.train.devices}; task.kind = {config.task.kind!r} takes one")
    if config.augment:
        raise ConfigError(f"augment: task.kind = {config.task.kind!r} takes the data as they are; leave it out")
    return 1


def _check_players(config: Experiment, task: Any) -> None:
    if unknown := config.players.keys() - task.learners.keys():
        raise ConfigError(f"players.{min(unknown)}: no such player; this task has: {', '.join(task.learners)}")


def _check_outputs(config: Experiment, task: Any, dataset: Dataset, train_state: Any, batch: Any) -> None:
    """A user's own model gives as many outputs as the task wants; else a loss may broadcast, and say nothing."""
    wanted = config.task.outputs(dataset)
    if wanted is None or not hasattr(task, "outputs_of"):
        return
    places = math.prod(dataset.inputs) if dataset.block else 1  # a text has an output at every place
    if not dataset.vocabulary:  # where outputs are tokens, the model may know more of them than the data have
        wanted = max(wanted, getattr(config.model, "vocabulary", 0))
    if hasattr(config.task, "places"):
        places = config.task.places(dataset)
    x = jax.ShapeDtypeStruct((2, *dataset.inputs), batch["x"].dtype)
    given = jax.eval_shape(task.outputs_of, train_state, x)
    if hasattr(given, "shape") and math.prod(given.shape) != 2 * places * wanted:
        raise ConfigError(
            f"model: gives outputs of shape [n, {', '.join(map(str, given.shape[1:]))}]; expected [n, {wanted}]"
        )


def _monitor(config: Experiment, task: Any, feeds: dict[str, Any], train_state: Any) -> str:
    """The validation metric by which the best step is chosen."""
    wanted = config.evaluate.monitor
    if "validation" not in feeds:
        if wanted or config.evaluate.patience:
            raise ConfigError("evaluate.monitor, evaluate.patience: there are no validation examples")
        return ""
    feed = feeds["validation"]
    batch = jax.eval_shape(feed.batch, feed.arrays, jax.ShapeDtypeStruct((), jnp.int32))
    metrics = jax.eval_shape(lambda ts, b: task.evaluate(ts, b, key=jax.random.key(0)), train_state, batch)
    found = [number for name, metric in metrics.items() for number in scalar_names(name, metric)]
    if wanted and wanted not in found:
        raise ConfigError(f"evaluate.monitor: found {wanted!r}; the task evaluates: {', '.join(sorted(found))}")
    if not wanted and config.evaluate.patience and "loss" not in found:
        raise ConfigError(f"evaluate.monitor: missing; one of: {', '.join(sorted(found))}")
    return wanted or ("loss" if "loss" in found else "")


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
    program, evaluate = _programs(built, train_state)
    metrics = program.fresh()
    if resume is not None:
        payload = replicate(resume({"state": train_state, "metrics": metrics}), built.mesh)
        copy = jax.jit(lambda x: jax.tree.map(jnp.copy, x), out_shardings=built.replicated)
        own = copy(payload)  # donated later: no buffer of the host's arrays
        train_state, metrics = own["state"], own["metrics"]
    jax.block_until_ready(train_state)
    return Compiled(program, train_state, metrics, evaluate, time.perf_counter() - start)


def _programs(built: Built, train_state: Any) -> tuple[Program, dict[str, Callable[[Any], Any]]]:
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
