"""A source of which few examples keep their labels: what semi-supervised and active learning begin with."""

import dataclasses
import json
from typing import Any, Literal

import numpy as np

from functrain.config import ConfigError, Count, Fraction, configclass, kinds
from functrain.data.base import Source
from functrain.data.dataset import Dataset, dataset, find
from functrain.data.mixture import MIXABLE

# pyright: reportInvalidTypeForm=false
# The union of kinds is built by a function, which a static checker cannot follow.


@configclass
class FewLabels(Source):
    """Another source with labels for a few training examples alone; validation and test are as they were.

    The training part is all of its examples without labels, and the few with them over and over, so that they are a
    share of every epoch: `labelled` [n] is 1 for those and 0 for the others, whose y is 0 and means nothing. With
    `unlabelled = false` it is the few alone, each once: what supervised learning has.
    """

    kind: Literal["few_labels"] = "few_labels"
    source: kinds(*MIXABLE)
    """The source, a table with a kind; batch_size is here alone."""
    labels: Count = 100
    """How many labels there are, as many of each class, drawn at random; 0 where `rows` says which."""
    rows: str = ""
    """A JSON file with the numbers of the training examples that keep their labels, in place of drawing them."""
    labels_seed: Count = 0
    """Which examples are drawn."""
    unlabelled: bool = True
    """Whether the examples without labels are there."""
    share: Fraction = 0.125
    """The share of the labelled examples in the training part; 1 to 7, as in Sohn et al. 2020, is 0.125."""

    def __post_init__(self):
        if bool(self.labels) == bool(self.rows):
            raise ValueError("give labels, how many, or rows, which (and labels = 0)")
        if self.source.batch_size != Source.batch_size:
            raise ValueError(f"source.batch_size: found {self.source.batch_size}; few_labels has its own, beside it")

    def load(self) -> Dataset:
        """The arrays of the source, with `labelled` [n] float32 in each split.

        Raises:
          ConfigError: the source's own, its labels are no classes, or there are not so many examples of a class.
        """
        whole = self.whole()
        few = self.chosen(whole)
        parts = {"train": {name: array[few] for name, array in whole.train.items()} | {"labelled": _flags(len(few), 1)}}
        if self.unlabelled:
            copies = max(1, round(self.share / (1 - self.share) * len(whole) / len(few)))
            hidden = whole.train | {"y": np.zeros_like(whole.train["y"]), "labelled": _flags(len(whole), 0)}
            parts["train"] = {
                name: np.concatenate([array, np.repeat(parts["train"][name], copies, 0)])
                for name, array in hidden.items()
            }
        for split in ("validation", "test"):
            if part := whole.split(split):
                parts[split] = part | {"labelled": _flags(len(part["y"]), 1)}
        made = dataset("data.source", parts, whole.classes)
        return dataclasses.replace(made, found={"source": dataclasses.replace(self.source, **whole.found)})

    def whole(self) -> Dataset:
        """The source's own examples, all with their labels; raises what `load` does."""
        try:
            whole = self.source.load()
        except ConfigError as error:
            raise ConfigError(str(error).replace("data", "data.source", 1)) from None
        if not whole.classes or whole.block:
            raise ConfigError("data.source: expected examples with integer labels y [n]")
        return whole

    def chosen(self, whole: Dataset) -> np.ndarray:
        """The rows of the training part that keep their labels, rising."""
        y = whole.train["y"]
        if self.rows:
            return _read_rows(self.rows, len(y))
        each, rest = divmod(self.labels, whole.classes)
        if rest:
            raise ConfigError(f"data.labels: found {self.labels}; expected a multiple of the {whole.classes} classes")
        rng, few = np.random.default_rng(self.labels_seed), []
        for c in range(whole.classes):
            rows = np.flatnonzero(y == c)
            if len(rows) < each:
                raise ConfigError(f"data.labels: found {self.labels}; class {c} has {len(rows)} training examples")
            few.append(rng.choice(rows, each, replace=False))
        return np.sort(np.concatenate(few))

    def scaled(self, batch: dict) -> dict:
        """As the source scales it."""
        return self._by_source(batch, self.source.scaled)

    def normalised(self, batch: dict) -> dict:
        """As the source normalises it."""
        return self._by_source(batch, self.source.normalised)

    def _by_source(self, batch, f):
        own = {name: value for name, value in batch.items() if name == "labelled"}
        return f({name: value for name, value in batch.items() if name not in own}) | own

    def read_inputs(self, path: str) -> Any:
        """What the source makes of a file of inputs."""
        return self.source.read_inputs(path)


def _flags(n: int, value: float) -> np.ndarray:
    return np.full(n, value, np.float32)


def _read_rows(name: str, n: int) -> np.ndarray:
    """Row numbers below n, rising, from a JSON list."""
    path = find("data.rows", name)
    try:
        rows = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"data.rows: {name}: not JSON: {error}") from None
    sound = isinstance(rows, list) and rows and all(isinstance(row, int) and 0 <= row < n for row in rows)
    if not sound or len(set(rows)) < len(rows):
        raise ConfigError(f"data.rows: {name}: expected a list of different whole numbers from 0 to {n - 1}")
    return np.sort(np.array(rows))
