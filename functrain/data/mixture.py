"""A weighted mixture of sources: each batch has so many examples of each."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from functrain.config import ConfigError, Count, Positive, configclass, kinds
from functrain.data.base import Source
from functrain.data.dataset import SPLITS, Dataset, dataset
from functrain.data.feed import Mixed
from functrain.data.idx import Idx
from functrain.data.images import ImageFolder
from functrain.data.named import Known
from functrain.data.random import Random
from functrain.data.sources import CustomData, Digits, Npz
from functrain.data.table import Csv

# pyright: reportInvalidTypeForm=false
# The union of kinds is built by a function, which a static checker cannot follow.

MIXABLE = (Digits, Known, Idx, Csv, ImageFolder, Npz, Random, CustomData)
"""The kinds of sources whose examples can be mixed: those that are no mixture, and no long sequence."""
_FURTHEST = 1_000_000


@configclass
class Mixture(Source):
    """Several sources in one: each batch has a fixed number of examples of each, by the weights."""

    kind: Literal["mixture"] = "mixture"
    sources: tuple[kinds(*MIXABLE), ...]
    """The sources, each a table with a kind; batch_size is the mixture's alone."""
    weights: tuple[Positive, ...] = ()
    """The share of each source in a batch, up to a factor; empty is the same for all."""
    inputs_of: Count = 0
    """The source, from 0, like whose inputs those given to the trained model are prepared."""

    def __post_init__(self):
        if len(self.sources) < 2:
            raise ValueError(f"sources: found {len(self.sources)}; expected at least 2")
        if self.weights and len(self.weights) != len(self.sources):
            raise ValueError(f"weights: found {len(self.weights)}; expected {len(self.sources)}, one for each source")
        if self.inputs_of >= len(self.sources):
            raise ValueError(f"inputs_of: found {self.inputs_of}; expected one below {len(self.sources)}")
        for k, source in enumerate(self.sources):
            if source.batch_size != Source.batch_size:
                raise ValueError(f"sources.{k}.batch_size: found {source.batch_size}; a mixture has its own, beside it")

    def load(self) -> Dataset:
        """The sources' arrays, one source after the other, and `source` [n]: which one an example is of."""
        made = []
        for k, source in enumerate(self.sources):
            try:
                made.append(source.load())
            except ConfigError as error:
                raise ConfigError(_at(k, str(error))) from None
        self._check(made)
        splits = {}
        for split in SPLITS:
            parts = [(k, one.split(split)) for k, one in enumerate(made) if one.split(split)]
            splits[split] = {name: np.concatenate([part[name] for _, part in parts]) for name in made[0].train if parts}
            if parts:
                rows = [np.full(len(next(iter(part.values()))), k, np.int32) for k, part in parts]
                splits[split]["source"] = np.concatenate(rows)
        found = tuple(dataclasses.replace(source, **one.found) for source, one in zip(self.sources, made))
        whole = dataset("data.sources", splits, max(one.classes for one in made))
        return dataclasses.replace(whole, found={"sources": found})

    def scaled(self, batch: dict) -> dict:
        """Each example as its own source scales it; x alone, with no `source`, as source `inputs_of` does."""
        return self._by_source(batch, lambda source, rows: source.scaled(rows))

    def normalised(self, batch: dict) -> dict:
        """Each example as its own source normalises it; x alone as in `scaled`."""
        return self._by_source(batch, lambda source, rows: source.normalised(rows))

    def _by_source(self, batch, f):
        if "source" not in batch:
            return f(self.sources[self.inputs_of], batch)
        which = batch["source"]
        bare = {name: value for name, value in batch.items() if name != "source"}
        made = [f(source, bare) for source in self.sources]  # all by each: rows stand in any order
        return {name: _chosen(name, which, [one[name] for one in made]) for name in made[0]} | {"source": which}

    def feed(self, dataset: Dataset, arrays: Any, seed: int) -> Mixed:
        """So many of each source in every batch."""
        counts = np.bincount(dataset.train["source"], minlength=len(self.sources)).tolist()
        return Mixed(arrays, tuple(zip(counts, self.shares())), seed, self.prepare)

    def shares(self) -> tuple[int, ...]:
        """Examples of each source in a batch.

        Raises:
          ConfigError: a source would have none.
        """
        weights = self.weights or (1.0,) * len(self.sources)
        shares = apportion(self.batch_size, weights)
        if 0 in shares:
            size = next((b for b in range(len(weights), _FURTHEST) if 0 not in apportion(b, weights)), None)
            size = size or math.ceil(sum(weights) / min(weights))
            raise ConfigError(
                f"data.batch_size: found {self.batch_size}: none would be of sources.{shares.index(0)}; "
                f"expected at least {size}"
            )
        return shares

    def _check(self, made: Sequence[Dataset]) -> None:
        """The sources' examples are alike, and each has enough of them."""
        first = made[0]
        for k, one in enumerate(made):
            if one.block or first.block:
                raise ConfigError(_at(k, "one long sequence; expected examples"))
            if one.train.keys() != first.train.keys():
                raise ConfigError(_at(k, f"has {', '.join(one.train)}; sources.0 has {', '.join(first.train)}"))
            for name, array in one.train.items():
                if array.shape[1:] != first.train[name].shape[1:]:
                    raise ConfigError(
                        _at(k, f"{name}: shape {array.shape[1:]}; in sources.0 it is {first.train[name].shape[1:]}")
                    )
            if bool(one.classes) != bool(first.classes):
                kinds_of_y = [f"y is {'a class' if each.classes else 'a number'}" for each in (one, first)]
                raise ConfigError(_at(k, f"{kinds_of_y[0]}; in sources.0 {kinds_of_y[1]}"))
        for k, (one, share) in enumerate(zip(made, self.shares())):
            if len(one) < share:
                raise ConfigError(
                    _at(k, f"{len(one)} training examples; a batch of {self.batch_size} has {share} of them")
                )


def apportion(size: int, weights: Sequence[float]) -> tuple[int, ...]:
    """`size` cut into whole numbers in proportion to the weights, by the largest remainder (Hamilton's method).

    >>> apportion(10, [3.0, 2.0, 2.0])
    (4, 3, 3)
    """
    exact = [size * weight / math.fsum(weights) for weight in weights]
    shares = [math.floor(share) for share in exact]
    largest = sorted(range(len(exact)), key=lambda k: shares[k] - exact[k])  # stable: of equal ones the first
    for k in largest[: size - sum(shares)]:
        shares[k] += 1
    return tuple(shares)


def _chosen(name: str, which: Any, values: list[Any]) -> Any:
    """Of each row, what its own source made of it."""
    chosen = values[0]
    for k, value in enumerate(values[1:], 1):
        if value.shape != chosen.shape:
            raise ConfigError(_at(k, f"{name}: prepared to {value.shape[1:]}; in sources.0 it is {chosen.shape[1:]}"))
        chosen = jnp.where((which == k).reshape(-1, *[1] * (value.ndim - 1)), value, chosen)
    return chosen


def _at(k: int, message: str) -> str:
    """The message, said of source k."""
    return (
        f"data.sources.{k}.{message.removeprefix('data.')}"
        if message.startswith("data.")
        else f"data.sources.{k}: {message}"
    )
