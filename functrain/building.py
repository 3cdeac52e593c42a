"""`build`, the one place that knows every part.

build(config)    -> Built   data loaded, task put together, everything that was automatic written out
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functrain import precise, transfer, tree
from functrain.assembly import assemble, settings_of
from functrain.autodiff import DPSGD, Reverse
from functrain.built import Built, batches, first_state, first_states, programs
from functrain.config import LARGEST, ConfigError, kind_table, listed
from functrain.data import AnyData, Augmented, Bucketed, Dataset, InOrder, Stream, Whole, blocks
from functrain.data.base import reader
from functrain.experiment import Experiment
from functrain.layers import forms
from functrain.metrics import scalar_names
from functrain.models import HuggingFace
from functrain.observe import flops
from functrain.parallel import device_mesh, replicate
from functrain.precision import Auto, Float32
from functrain.tasks.teacher import teachers
from functrain.train import memory, state, step
from functrain.train.loop import Train
from functrain.train.program import with_learners
from functrain.train.trim import trimmed


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
        return programs(one, states)[0].needs() + waiting

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
    once = dataclasses.replace(task, vocabulary_block=0) if getattr(task, "vocabulary_block", 0) else task
    plain = step.make_step(with_learners(once, remat="none"))  # what is computed twice counts once
    counted = flops.count(plain, train_state, batch)
    if config.train.remat != "none":
        _check_remat(config, task, flops.count(step.make_step(task), train_state, batch).primitives)
    config = _program_written_out(config, counted.flops, counted.primitives, tree.nbytes(train_state))
    feeds["train"] = _with_room(feeds["train"], config.train, mesh)
    monitor = _monitor(config, task, feeds, train_state)
    return Built(config, task, feeds, mesh, dataset, counted.flops, counted.outputs[1], monitor)


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
            settings = settings_of(teacher.run, f"task.{name}.run")
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


def _feeds(config: Experiment, dataset: Dataset | None, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """The training feed, and every example in order for the other splits."""
    if config.data is None or dataset is None:
        return {"train": Whole(), "validation": InOrder({}, 1)}
    if hasattr(config.task, "whole"):
        feed: Any = Whole(replicate(config.task.whole(dataset), mesh))
    else:
        arrays = dataset.train
        if not config.data.streamed:  # what can only be read is no array, and says so
            arrays = replicate({name: np.asarray(array) for name, array in arrays.items()}, mesh)
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
    return feed.with_room(train.chunk, everywhere)


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
