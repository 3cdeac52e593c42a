"""Trained models: a run as a function, its metrics on a split, inputs from files."""

import csv
import dataclasses
import functools
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from functrain import transfer
from functrain.assembly import assemble
from functrain.building import build, in_order
from functrain.config import ConfigError
from functrain.data.dataset import read_npz
from functrain.experiment import Experiment
from functrain.metrics import finite, read, scalars
from functrain.parallel import replicate
from functrain.runs import read_config
from functrain.tasks.base import beside
from functrain.train.evaluate import make_ensemble, make_evaluate
from functrain.train.members import summary


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained model as a function: `model(x)` gives its outputs.

    config: of its run. step: whose weights these are. train_state: all of it.
    """

    config: Experiment
    task: Any
    step: int
    train_state: Any
    apply: Callable[[Any], Any]

    @property
    def params(self) -> Any:
        """The parameters, a plain tree of arrays; by player where there are several."""
        players = {name: player.params for name, player in self.train_state.players.items()}
        return players["model"] if set(players) == {"model"} else players

    def __call__(self, x: Any) -> Any:
        """The model's outputs for raw inputs x [n, ...], prepared as in training."""
        return self.apply(x)

    def predict(self, x: Any) -> dict[str, Any]:
        """What the task makes of the outputs: class and probability, or the prediction."""
        return self.task.predict(self.apply(x))

    def rows(self, x: np.ndarray, batch_size: int = 1024) -> Iterator[dict[str, Any]]:
        """`predict`, an example at a time, as plain Python values."""
        for start in range(0, len(x), batch_size):
            found = jax.device_get(self.predict(x[start : start + batch_size]))
            for i in range(len(x[start : start + batch_size])):
                row = {name: _json(values[i]) for name, values in found.items()}
                yield self.task.readable(row) if hasattr(self.task, "readable") else row


def _json(value: np.ndarray) -> Any:
    """Plain numbers; None for one that is not finite, which JSON has no word for."""
    return np.where(np.isfinite(value), value.astype(object), None).tolist()  # pyright: ignore


def load(out: str | Path, step: int | None = None, member: int = 0) -> Trained:
    """The trained model of a run, without its data: the best step where validation chose one, else the newest.

    step: another checkpoint's.
    member: which one, of a run of several seeds.

    Raises:
      ConfigError: no run, no sound checkpoint, no such step, or a task that is not one model with one loss.
    """
    found = members(Path(out), step)
    if not 0 <= member < len(found):
        raise ConfigError(f"{out}: member {member}; the run has {len(found)}, counted from 0")
    return found[member]


def members(out: Path, step: int | None = None) -> list[Trained]:
    """Every member of a run, from one checkpoint, which is read once."""
    settings = read_config(out)
    _, task = assemble(settings, None)
    at, states = transfer.members_of(out, settings, task, step)
    if not hasattr(task, "outputs_of"):
        raise ConfigError(f"{out}: a task of kind {settings.task.kind!r} is no single function to load")
    prepare = settings.data.prepare if settings.data else lambda batch: batch

    @jax.jit
    def outputs(train_state, x):
        batch = prepare({"x": x})
        return task.outputs_of(train_state, batch["x"], **beside(task, batch))

    return [Trained(settings, task, at, one, functools.partial(outputs, one)) for one in states]


def evaluate(out: Path, split: str = "test", step: int | None = None) -> dict[str, Any]:
    """A run's metrics on a split: {"step", "split", metrics by name}; of several seeds, mean and deviation,
    and under "ensemble" those of all members as one.

    Raises:
      ConfigError: no run, or its data has no such split.
    """
    trained = members(out, step)
    built = build(trained[0].config)
    if split not in built.feeds:
        raise ConfigError(f"--split: found {split!r}; the run has: {', '.join(built.feeds)}")
    feed = built.feeds[split]
    if split == "train" and built.dataset is not None:
        feed = in_order(built.config, built.dataset, split, built.mesh)
    metrics_of = make_evaluate(built.task, feed, built.place, built.replicated)
    metrics = [metrics_of(replicate(one.train_state, built.mesh)) for one in trained]
    values = summary(metrics) if len(metrics) > 1 else scalars(read(metrics[0]))
    found = {"step": trained[0].step, "split": split} | finite(values)
    if len(trained) > 1 and hasattr(built.task, "averaged"):
        together = make_ensemble(built.task, feed, built.place, built.replicated)
        states = tuple(replicate(one.train_state, built.mesh) for one in trained)
        found["ensemble"] = finite(scalars(read(together(states))))
    return found


def read_inputs(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """Inputs [n, *shape] from a file, or from standard input for "-".

    .npy      an array [n, ...]
    .npz      its array x, or x_test
    .csv      a row of numbers for each example; a first row that is none is taken as names
    .jsonl    (and "-") a line for each example: a list, or an object with "x"

    An example may be flat; it is given its shape.

    Raises:
      ConfigError: no such file, not what its name says, or another number of values; with the line, where it has lines.
    """
    kind = ".jsonl" if path == "-" else Path(path).suffix
    readers = {".npy": _read_npy, ".npz": _read_npz, ".csv": _read_csv, ".json": _read_lines, ".jsonl": _read_lines}
    if kind not in readers:
        raise ConfigError(f"{path}: expected a file .npy, .npz, .csv or .jsonl, or - for standard input")
    try:
        x = readers[kind](path, math.prod(shape))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    if x.dtype.kind not in "biuf" or x.ndim == 0 or x.size == 0:
        raise ConfigError(f"{path}: holds no numbers")
    if math.prod(x.shape[1:]) != math.prod(shape):
        raise ConfigError(f"{path}: examples of shape {list(x.shape[1:])}; the model takes {list(shape)}")
    return x.reshape(-1, *shape)


def _read_npy(path, size):
    with open(path, "rb") as file:
        if file.read(6) != b"\x93NUMPY":
            raise ConfigError(f"{path}: no .npy file")
        file.seek(0)
        try:
            return np.load(file, allow_pickle=False)
        except (ValueError, EOFError) as error:
            pickled = "allow_pickle" in str(error)
            raise ConfigError(f"{path}: {'holds Python objects' if pickled else 'cut short or damaged'}") from None


def _read_npz(path, size):
    arrays = read_npz(Path(path))
    for name in ("x", "x_test"):
        if name in arrays:
            return arrays[name]
    raise ConfigError(f"{path}: holds {', '.join(arrays) or 'nothing'}; expected x or x_test")


def _read_csv(path, size):
    rows = []
    with open(path, newline="") as file:
        reader = csv.reader(file)
        try:
            for row in reader:
                try:
                    rows.append(_example([float(cell) for cell in row], size))
                except ValueError as error:
                    if reader.line_num > 1 or str(error).startswith("expected"):  # else names of columns
                        raise ConfigError(f"{path}: line {reader.line_num}: {_numbers_only(error)}") from None
        except (csv.Error, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: line {reader.line_num + 1}: {error}") from None
    return np.array(rows)


def _read_lines(path, size):
    rows = []
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text()
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text") from None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            rows.append(_example(value["x"] if isinstance(value, dict) else value, size))
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path}: line {number}: not JSON: {error.msg} (column {error.colno})") from None
        except KeyError:
            raise ConfigError(f'{path}: line {number}: no "x"; it has: {", ".join(value)}') from None
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise ConfigError(f"{path}: line {number}: {_numbers_only(error)}") from None
    return np.array(rows)


def _numbers_only(error) -> str:
    return str(error) if str(error).startswith("expected") else "not all numbers"


def _example(values, size):
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise ValueError("not all numbers")
    if array.size != size:
        raise ValueError(f"expected {size} numbers, found {array.size}")
    return array.astype(np.float32)
