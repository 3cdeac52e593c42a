"""What the configs of sources share: the batch, a split at random, k folds, normalisation.

A source has two methods, and a third where its files have a format of their own:

    load()            -> Dataset      arrays on the host, split into train, validation and test
    prepare(batch)    -> batch        pure and traced: what is done to every batch on the device: `scaled` (into the
                                      units of the data, such as pixels from 0 to 1), then `normalised`
    read_inputs(path) -> x or None    inputs for a trained model, such as the rows of a table

What `load` learns from the training part (a mean, a vocabulary) it returns in `Dataset.found`, by the name of the
source's own setting. An experiment writes it into the run's config, so that the run needs no data to be used, and a
resumed run uses what the first one found.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from functrain.config import ConfigError, Count, Fraction, Size, configclass
from functrain.data.dataset import Dataset, fold_at_random, split_at_random
from functrain.data.feed import Memory, Windows


@configclass
class Source(ABC):
    """The settings of every source."""

    batch_size: Size = 32
    """Examples in a step, over all devices."""

    evaluated = 0  # blocks of a text that stand for a split where it is evaluated; 0 is all

    @property
    def streamed(self) -> bool:
        """Whether the training part stays in its files."""
        return False

    @abstractmethod
    def load(self) -> Dataset:
        """The examples."""

    def scaled(self, batch: dict) -> dict:
        """The batch in the units of the data, which augmentation works in; here as it is."""
        return batch

    def normalised(self, batch: dict) -> dict:
        """A scaled batch as the model sees it; here as it is."""
        return batch

    def prepare(self, batch: dict) -> dict:
        """What is done to every batch: `scaled`, then `normalised`."""
        return self.normalised(self.scaled(batch))

    def read_inputs(self, path: str) -> np.ndarray | None:
        """Inputs for a trained model from a file of the source's own format; None where it has none, or not this."""
        return None

    def feed(self, dataset: Dataset, arrays: Any, seed: int) -> Any:
        """The training feed: `arrays` are the dataset's training part, on the device."""
        if dataset.block:
            return Windows(arrays, dataset.block, self.batch_size, seed, self.prepare)
        return Memory(arrays, self.batch_size, seed, self.prepare)


def reader(source: Any) -> Any:
    """The source that reads the files, of one that stands for it (a name, few labels); a mixture is its own."""
    while hasattr(source, "source"):
        source = source.source
    return source


@configclass
class Split(Source):
    """A source whose examples are split at random where the files do not say how."""

    validation: Fraction = 0.1
    """Share of the examples kept apart to choose by, where the files have none for that."""
    test: Fraction = 0.1
    """Share kept apart to be read once, at the end, where the files have none for that."""
    split_seed: Count = 0
    """Which examples go where, where they are split at random."""
    folds: Count = 0
    """For k-fold cross-validation: k, and `fold` says which of the k parts is the test; 0 is off."""
    fold: Count = 0
    """Which of the folds is the test, from 0."""
    held_out: tuple[Count, ...] = ()
    """Classes that the test alone has, and it no others: what is learned from the rest is tried on unseen ones."""

    def __post_init__(self):
        if self.folds == 1:
            raise ValueError("folds: found 1; expected at least 2, or 0 for none")
        if self.fold and self.fold >= self.folds:
            raise ValueError(f"fold: found {self.fold}; expected one below folds = {self.folds}")

    def split(self, arrays: Mapping[str, np.ndarray], given: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The arrays as splits: `given` ones as they are, the others taken at random from `arrays`.

        Raises:
          ConfigError: folds and test examples are both given, there are fewer examples than folds, or a class to
            hold out does not occur.
        """
        given = {name: part for name, part in (given or {}).items() if part}
        if self.folds and "test" in given:
            raise ConfigError(f"data.folds: found {self.folds}; the test examples are given; expected 0, or none given")
        share = {name: 0.0 if name in given else getattr(self, name) for name in ("validation", "test")}
        if self.folds:
            parts = fold_at_random(arrays, self.folds, self.fold, validation=share["validation"], seed=self.split_seed)
        else:
            parts = split_at_random(arrays, **share, seed=self.split_seed)
        return self._held_out(parts | given) if self.held_out else parts | given

    def _held_out(self, parts: dict[str, Any]) -> dict[str, Any]:
        """The classes of `held_out` in the test alone, the others in the other splits alone."""
        where, kept = f"data.held_out: found {list(self.held_out)}", {}
        for split, part in parts.items():
            y = part.get("y") if part else np.zeros(0, int)
            if y is None or y.ndim != 1 or y.dtype.kind not in "iu":
                raise ConfigError(f"{where}; needs examples with integer labels y [n]")
            if split == "test" and (missing := [c for c in self.held_out if c not in y]):
                there = ", ".join(map(str, np.unique(y).tolist())) or "none"
                raise ConfigError(f"{where}; no test example is of class {missing[0]}; there are: {there[:160]}")
            of = np.isin(y, self.held_out) == (split == "test")
            kept[split] = {name: a[of] for name, a in part.items()} if of.any() else {}
        return kept


@configclass
class Normalised(Source):
    """A source of numbers that may be normalised, by what the training part alone says."""

    normalise: Literal["none", "standard", "range"] = "none"
    """standard: less the mean, over the deviation; range: to 0..1; by column of a table, by channel of images."""
    centre: tuple[float, ...] = ()
    """What is subtracted; taken from the training part."""
    spread: tuple[float, ...] = ()
    """What is divided by; taken from the training part."""

    def measured(self, dataset: Dataset, unit: float = 1.0) -> Dataset:
        """The dataset, with the centre and spread of its training part, in units of `unit`, in `found`.

        Columns (the last axis of [n, columns]) and channels (of [n, height, width, channels]) each have their own;
        images without channels have one. What does not vary has spread 1.
        """
        if self.normalise == "none" or self.spread:
            return dataset
        x = self.learned(dataset.train["x"])
        x = x.reshape(-1, x.shape[-1] if x.ndim in (2, 4) else 1)
        if self.normalise == "standard":
            centre, spread = _mean_and_deviation(x)
        else:
            centre, spread = x.min(0).astype(np.float64), x.max(0).astype(np.float64) - x.min(0)
        spread = np.where(spread > 0, spread, unit)
        found = {"centre": tuple(map(float, centre / unit)), "spread": tuple(map(float, spread / unit))}
        return dataclasses.replace(dataset, found={**dataset.found, **found})

    def learned(self, x: Any) -> np.ndarray:
        """Training inputs from which is learned: all of them."""
        return x

    def normalised(self, batch: dict) -> dict:
        """x less its centre, over its spread."""
        if not self.spread:
            return batch
        centre, spread = (jnp.asarray(v, jnp.float32) for v in (self.centre, self.spread))
        return batch | {"x": (batch["x"].astype(jnp.float32) - centre) / spread}


def _mean_and_deviation(x: np.ndarray, rows: int = 1 << 18) -> tuple[np.ndarray, np.ndarray]:
    """Of each column of x [n, columns], in float64, some rows at a time: a float64 copy of all images is too much."""
    parts = [x[start : start + rows] for start in range(0, len(x), rows)]
    mean = np.sum([part.sum(0, dtype=np.float64) for part in parts], 0) / len(x)
    variance = np.sum([((part.astype(np.float64) - mean) ** 2).sum(0) for part in parts], 0) / len(x)
    return mean, np.sqrt(variance)
