"""The task of a config, put together: its model and learners, the model's ends fitted to the data.

assemble(config, dataset)   -> config, task
settings_of(run), weights_of_run(start), teacher_of_run(name, teacher)   what one run has of another
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from functrain import transfer, tree
from functrain.config import ConfigError, kind_table, listed, parse
from functrain.data import Dataset
from functrain.experiment import Experiment, PlayerConfig
from functrain.models import AnyModel
from functrain.models.base import fill
from functrain.optim import Learner, NoAverage
from functrain.optim.base import matches
from functrain.tasks.teacher import Teacher


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


def settings_of(run: str, key: str) -> Experiment:
    """The config of another run, which `key` names."""
    try:
        return parse(Experiment, transfer.config_of(run))
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from None


def weights_of_run(start: transfer.Start) -> transfer.Weights:
    """What evaluation uses in the run that another starts from."""
    assert start.run is not None
    settings = settings_of(start.run, "start.run")
    try:
        _, task = assemble(settings, None)
    except ConfigError as error:
        raise ConfigError(f"start.run: {error}") from None
    return transfer.of_run(start, settings, task)


def teacher_of_run(name: str, teacher: Teacher) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(what a record says of it, path in the train state -> array) of a run that the task asks."""
    try:
        found = weights_of_run(transfer.Start(run=teacher.run, step=teacher.step, member=teacher.member))
    except ConfigError as error:
        raise ConfigError(str(error).replace("start.", f"task.{name}.", 1)) from None
    wanted = tree.by_path(jax.eval_shape(teacher.init, jax.random.key(0)))
    arrays = {path: found.read(path) for path in found.names}
    if {path: like.shape for path, like in wanted.items()} != {path: a.shape for path, a in arrays.items()}:
        raise ConfigError(f"task.{name}.run: {teacher.run} is no run of one model")
    return found.origin, {f"state/{name}/{path}": a for path, a in arrays.items()}
