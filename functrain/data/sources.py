"""Sources: what the examples are. A source's config has two methods:

    load()         -> Dataset    arrays on the host, split into train, validation and test
    prepare(batch) -> batch      pure and traced: what is done to every batch on the device (scaling)

A batch is a dict of arrays whose first axis is the example: `x`, `y`, and `mask` where some count and others do not.
"""

import dataclasses
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from functrain import custom
from functrain.config import LARGEST, ConfigError, Count, Fraction, Positive, Size, Text, configclass, kinds

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Arrays by name for each split; `{}` for a split that there is none of.

    classes: how many classes the labels `y` have; 0 where `y` is no label.
    """

    train: dict[str, np.ndarray]
    validation: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    test: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    classes: int = 0

    def split(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of one split."""
        return getattr(self, name)

    @property
    def inputs(self) -> tuple[int, ...]:
        """The shape of one example.

        Raises:
          ConfigError: there is no array x.
        """
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


def find(key: str, path: str) -> Path:
    """A file as named: absolute, from the working directory, or from the folder that FUNCTRAIN_DATA names.

    Raises:
      ConfigError: it is in none of them.
    """
    places = [Path(path)]
    if "FUNCTRAIN_DATA" in os.environ and not Path(path).is_absolute():
        places.append(Path(os.environ["FUNCTRAIN_DATA"]) / path)
    for place in places:
        if os.path.isfile(place):  # and not Path.is_file, which raises where a name is too long
            return place
    raise ConfigError(f"{key}: no file {' or '.join(str(p)[:200] for p in places)}")


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


@configclass
class Digits:
    """1,797 images of handwritten digits, 8 x 8 (UCI; part of the package, nothing to download)."""

    kind: Literal["digits"] = "digits"
    batch_size: Size = 32
    """Examples in a step, over all devices."""
    validation: Fraction = 0.15
    """Share of the images kept apart to choose by."""
    test: Fraction = 0.15
    """Share of the images kept apart to be read once, at the end."""
    split_seed: Count = 0
    """Which images go where."""

    def load(self) -> Dataset:
        """x [n, 8, 8] uint8 in 0..16, y [n] in 0..9."""
        with np.load(Path(__file__).parent / "files" / "digits.npz") as file:
            arrays = {"x": file["x"], "y": file["y"]}
        parts = split_at_random(arrays, validation=self.validation, test=self.test, seed=self.split_seed)
        return dataset("digits", parts, classes=10)

    def prepare(self, batch: dict) -> dict:
        """Pixels to 0..1."""
        return batch | {"x": batch["x"].astype(jnp.float32) / 16}


@configclass
class Npz:
    """Your own arrays in a NumPy .npz file: x and y, or x_train, y_train, x_validation, ... x_test, y_test."""

    kind: Literal["npz"] = "npz"
    path: Text
    """The file; looked for in the working directory, then where FUNCTRAIN_DATA points."""
    batch_size: Size = 32
    """Examples in a step, over all devices."""
    classes: Count = 0
    """How many classes integer labels have; 0 takes the largest training label."""
    scale: Positive = 1.0
    """What x is multiplied by, on the device; 0.00392156862745098 (1/255) for bytes."""
    validation: Fraction = 0.1
    """Share of the training examples kept apart to choose by, where the file has no x_validation."""
    test: Fraction = 0.1
    """Share kept apart for the test, where the file has no x_test."""
    split_seed: Count = 0
    """Which examples go where, where they are split at random."""

    def load(self) -> Dataset:
        """The file's arrays; pickled objects are refused."""
        path = find("data.path", self.path)
        try:
            arrays = read_npz(path)
        except ConfigError as error:
            raise ConfigError(f"data.path: {error}") from None
        splits = {s: {k.removesuffix(f"_{s}"): a for k, a in arrays.items() if k.endswith(f"_{s}")} for s in SPLITS}
        if not splits["train"]:
            splits["train"] = {k: a for k, a in arrays.items() if k in ("x", "y", "mask")}
        if "x" not in splits["train"]:
            raise ConfigError(f"data.path: {path} holds {', '.join(arrays) or 'nothing'}; expected x or x_train")
        name = f"data.path: {path}"
        whole = dataset(name, {"train": splits["train"]}, self.classes)  # checked before rows change their index
        parts = split_at_random(
            whole.train,
            validation=0.0 if splits["validation"] else self.validation,
            test=0.0 if splits["test"] else self.test,
            seed=self.split_seed,
        )
        parts |= {s: splits[s] for s in ("validation", "test") if splits[s]}
        return dataset(name, parts, self.classes or whole.classes)

    def prepare(self, batch: dict) -> dict:
        """x times `scale`."""
        return batch if self.scale == 1.0 else batch | {"x": batch["x"].astype(jnp.float32) * self.scale}


@configclass
class CustomData:
    """Your own source: `target` is called with `args` and returns a dict of splits, each a dict of arrays."""

    kind: Literal["custom"] = "custom"
    target: Text
    """What to call, as "package.module:name"; looked for in the working directory too."""
    args: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Keyword arguments, checked against the signature."""
    batch_size: Size = 32
    """Examples in a step, over all devices."""
    classes: Count = 0
    """How many classes integer labels have; 0 takes the largest training label."""

    def load(self) -> Dataset:
        """What `target` returns, checked."""
        made = custom.call("data", self.target, self.args, {})
        if isinstance(made, Dataset):
            made, classes = {split: made.split(split) for split in SPLITS}, made.classes or self.classes
        else:
            classes = self.classes
        if not isinstance(made, dict) or not all(isinstance(v, dict) for v in made.values()):
            raise ConfigError(f"data.target: {self.target} returned no dict of splits, each a dict of arrays")
        return dataset(f"data.target: {self.target}", made, classes)

    def prepare(self, batch: dict) -> dict:
        """The batch as it is."""
        return batch


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Arrays at hand, for `functrain.fit`; no config text can name them."""

    examples: Dataset = dataclasses.field(hash=False)
    batch_size: int = 32

    def load(self) -> Dataset:
        """The arrays."""
        return self.examples

    def prepare(self, batch: dict) -> dict:
        """The batch as it is."""
        return batch


AnyData = kinds(Digits, Npz, CustomData)
"""[data]: every source a config can name."""
