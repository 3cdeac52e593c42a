"""Datasets: arrays for training, validation and test, and what every source needs to make one.

A batch is a dict of arrays whose first axis is the example: `x`, `y`, `mask` where some count and others do not, and
`weight` where some count more than others.
"""

import dataclasses
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from functrain.config import LARGEST, ConfigError
from functrain.data.known import folders

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Arrays by name for each split; `{}` for a split that there is none of.

    classes: how many classes the labels `y` have; 0 where `y` is no label.
    block: where it is not 0, each split is one long sequence, `tokens` [n], and an example is `block` of them with the
      token after each (see functrain.data.feed.Windows); `classes` is then the size of the vocabulary.
    vocabulary: how many tokens there are, where x are tokens and the classes something else; else 0.
    shape: of one example as the source prepares it, where that is not the shape of x.
    fields: where x [n, columns] holds categories by number, how many each column has, and 0 for a column of numbers. A
      number below 0 is a category that the training part does not have.
    constants: arrays that belong to the model's state from the start, by path: what is known of each item, say.
    found: settings of the source that its training part told, by name (see functrain.data.base).
    """

    train: dict[str, np.ndarray]
    validation: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    test: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    classes: int = 0
    block: int = 0
    vocabulary: int = 0
    shape: tuple[int, ...] = ()
    fields: tuple[int, ...] = ()
    constants: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    found: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        """How many training examples there are; of a long sequence, how many blocks that do not overlap."""
        n = len(next(iter(self.train.values())))
        return (n - 1) // self.block if self.block else n

    def split(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of one split."""
        return getattr(self, name)

    @property
    def inputs(self) -> tuple[int, ...]:
        """The shape of one example, as the model sees it.

        Raises:
          ConfigError: there is no array x.
        """
        if self.block or self.shape:
            return self.shape or (self.block,)
        if "x" not in self.train:
            raise ConfigError(f"data: there is no array x; it has: {', '.join(self.train)}")
        return self.train["x"].shape[1:]


def dataset(name: str, splits: Mapping[str, Mapping[str, Any]], classes: int = 0) -> Dataset:
    """Checked arrays: lengths agree, nothing is empty, labels lie inside the classes.

    Args:
      name: what messages call the data.
      splits: {"train": {"x": ..., "y": ...}, "validation": ..., "test": ...}; train is needed.
      classes: 0 takes it from the training labels, where they are integers.

    Raises:
      ConfigError: with the split, the array and the example.

    >>> dataset("mine", {"train": {"x": np.ones((3, 2)), "y": np.array([0, 1, 5])}}).classes
    6
    """
    if not splits.get("train"):
        raise ConfigError(f"{name}: no training examples")
    checked = {}
    for split, given in splits.items():
        if split not in SPLITS:
            raise ConfigError(f"{name}: {split!r} is no split; there are: {', '.join(SPLITS)}")
        arrays = {key: _numbers(f"{name}: {split} {key}", value) for key, value in given.items()}
        lengths = {key: len(a) for key, a in arrays.items()}
        if len(set(lengths.values())) > 1:
            raise ConfigError(f"{name}: {split}: {', '.join(f'{k} has {n}' for k, n in lengths.items())} examples")
        if arrays and 0 in lengths.values():
            raise ConfigError(f"{name}: {split}: no examples")
        missing = set(checked.get("train", arrays)) ^ set(arrays)
        if arrays and missing:
            raise ConfigError(f"{name}: {split}: the arrays differ from those of train: {', '.join(sorted(missing))}")
        for key, array in arrays.items():
            first = checked.get("train", arrays)[key]
            if array.shape[1:] != first.shape[1:]:
                raise ConfigError(f"{name}: {split} {key}: shape {array.shape[1:]}; in train it is {first.shape[1:]}")
        mask, labels = arrays.get("mask"), arrays.get("y")
        if mask is not None and labels is not None and mask.shape != labels.shape[: mask.ndim]:
            raise ConfigError(
                f"{name}: {split} mask: shape {mask.shape}; expected the first axes of y's {labels.shape}"
            )
        checked[split] = arrays
    labels = checked["train"].get("y")
    if labels is not None and np.issubdtype(labels.dtype, np.integer) and labels.ndim == 1:
        classes = classes or int(labels.max()) + 1
        for split, arrays in checked.items():
            if arrays:
                _check_labels(f"{name}: {split} y", arrays["y"], classes)
                arrays["y"] = arrays["y"].astype(np.int32)
    else:
        classes = 0
    return Dataset(**checked, classes=classes)


def _numbers(where, value):
    try:
        array = np.asarray(value)
    except ValueError:
        raise ConfigError(f"{where}: rows of different lengths make no array") from None
    if array.dtype.kind not in "biuf" or array.ndim == 0:
        raise ConfigError(f"{where}: dtype {array.dtype}, {array.ndim} axes; expected numbers with an axis of examples")
    if array.dtype.kind == "b":
        return array.astype(np.int32)
    if 0 in array.shape[1:]:
        raise ConfigError(f"{where}: shape {array.shape}; an example holds nothing")
    if array.dtype.kind in "iu" and array.dtype.itemsize > 4 and array.size:
        if wrong := np.flatnonzero((array.ravel() > LARGEST) | (array.ravel() < -LARGEST)).tolist():
            at = wrong[0] // (array.size // len(array))
            kind = "label" if where.endswith(" y") and array.ndim == 1 else "found"
            raise ConfigError(f"{where}[{at}]: {kind} {array.ravel()[wrong[0]]}; beyond 32 bits")
        return array.astype(np.int32)
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _check_labels(where, labels, classes):
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise ConfigError(f"{where}[{wrong[0]}]: label {labels[wrong[0]]}; expected 0 to {classes - 1}")


def split_at_random(
    arrays: Mapping[str, np.ndarray], *, validation: float, test: float, seed: int
) -> dict[str, dict[str, np.ndarray]]:
    """A random part of the examples for validation and for test, the rest for training.

    >>> parts = split_at_random({"x": np.arange(10)}, validation=0.2, test=0.3, seed=0)
    >>> {name: len(part["x"]) for name, part in parts.items()}
    {'train': 5, 'validation': 2, 'test': 3}
    """
    n = len(next(iter(arrays.values())))
    mixed = np.random.default_rng(seed).permutation(n)
    at_test, at_validation = round(n * test), round(n * test) + round(n * validation)
    parts = {"train": mixed[at_validation:], "validation": mixed[at_test:at_validation], "test": mixed[:at_test]}
    return {name: {k: a[i] for k, a in arrays.items()} if len(i) else {} for name, i in parts.items()}


def fold_at_random(
    arrays: Mapping[str, np.ndarray], folds: int, fold: int, *, validation: float, seed: int
) -> dict[str, dict[str, np.ndarray]]:
    """K-fold cross-validation: part `fold` of `folds` equal ones is the test, a share of the rest the validation.

    Over all folds, each example is in the test once; the parts depend on the seed alone.

    Raises:
      ConfigError: there are fewer examples than folds.

    >>> parts = [fold_at_random({"x": np.arange(7)}, 3, k, validation=0.0, seed=0)["test"]["x"] for k in range(3)]
    >>> sorted(np.concatenate(parts).tolist()), [len(p) for p in parts]
    ([0, 1, 2, 3, 4, 5, 6], [2, 2, 3])
    """
    n = len(next(iter(arrays.values())))
    if folds > n:
        raise ConfigError(f"data.folds: found {folds}; there are {n} examples")
    mixed = np.random.default_rng(seed).permutation(n)
    low, high = n * fold // folds, n * (fold + 1) // folds
    rest = np.concatenate([mixed[:low], mixed[high:]])
    at = round(len(rest) * validation)
    parts = {"train": rest[at:], "validation": rest[:at], "test": mixed[low:high]}
    return {name: {k: a[i] for k, a in arrays.items()} if len(i) else {} for name, i in parts.items()}


def find(key: str, path: str, folder: bool = False) -> Path:
    """A file (or folder) as named: absolute, from the working directory, where FUNCTRAIN_DATA points, or the downloads.

    Raises:
      ConfigError: it is in none of them.
    """
    places = [Path(path)] if Path(path).is_absolute() else [place / path for place in folders()]
    for place in places:
        # and not Path.is_file, which raises where a name is too long
        if os.path.isdir(place) if folder else os.path.isfile(place):
            return place
    raise ConfigError(f"{key}: no {'folder' if folder else 'file'} {' or '.join(str(p)[:110] for p in places)}")


def read_text(name: str, path: str | Path) -> str:
    """The text of a UTF-8 file, without a byte-order mark; `name` is what a message calls it.

    Raises:
      ConfigError: it cannot be read, or is no UTF-8.
    """
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror}") from None


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file.

    Raises:
      ConfigError: it is none, or damaged, or an array holds Python objects (which would be code).
    """
    arrays, name = {}, ""
    with open(path, "rb") as file:
        if file.read(2) != b"PK":
            raise ConfigError(f"{path}: no .npz file")
        file.seek(0)
        try:
            with np.load(file, allow_pickle=False) as members:
                for name in members.files:
                    arrays[name] = members[name]
        except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            what = f"its array {name!r}" if name else "it"
            pickled = "allow_pickle" in str(error)
            why = "holds Python objects; expected numbers" if pickled else f"cannot be read: {error}"
            raise ConfigError(f"{path}: {what} {why}") from None
    return {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}
