"""Pairs of digits of MNIST, one over the other (Sabour, Frosst, Hinton 2017, section 6; Sener, Koltun 2018)."""

from typing import Literal

import jax.numpy as jnp
import numpy as np

from functrain.config import ConfigError, Count, Size, Text, configclass
from functrain.data.base import Source
from functrain.data.dataset import SPLITS, Dataset, dataset, find
from functrain.data.idx import Idx


@configclass
class MnistPairs(Source):
    """Two digits of different classes on one canvas, each pixel the brighter of the two: MultiMNIST.

    The first digit lies at the top left, the second at the bottom right; with the size of 36 their boxes have four
    fifths of each side in common. Test pairs are made of test digits, those for validation of a sixth of the training
    digits, which no training pair uses.
    """

    kind: Literal["mnist_pairs"] = "mnist_pairs"
    size: Size = 36
    """Height and width of the canvas."""
    train: Size = 60000
    """How many training pairs are made."""
    validation: Count = 5000
    """How many pairs are made to choose by."""
    test: Count = 10000
    """How many pairs are made to be read once, at the end."""
    pair_seed: Count = 0
    """Which pairs."""
    images: Text = "mnist/train-images-idx3-ubyte.gz"
    """The file of the training digits; looked for in the working directory, then where FUNCTRAIN_DATA points."""
    labels: Text = "mnist/train-labels-idx1-ubyte.gz"
    """The file of their labels."""
    test_images: Text = "mnist/t10k-images-idx3-ubyte.gz"
    """The file of the test digits."""
    test_labels: Text = "mnist/t10k-labels-idx1-ubyte.gz"
    """The file of their labels."""

    def load(self) -> Dataset:
        """x [n, size, size] uint8; y [n, 2] int32, the digit at the top left and that at the bottom right.

        Raises:
          ConfigError: a file is missing or no IDX file of images of bytes, or the digits do not fit the canvas.
        """
        for name in ("images", "labels", "test_images", "test_labels"):
            try:
                find(f"data.{name}", getattr(self, name))
            except ConfigError as error:
                raise ConfigError(f"{error}; MNIST is had by: functrain data get mnist") from None
        files = {name: getattr(self, name) for name in ("images", "labels", "test_images", "test_labels")}
        pools = Idx(**files, validation=1 / 6, split_seed=self.pair_seed).load()
        parts = {}
        for number, (split, count) in enumerate(zip(SPLITS, (self.train, self.validation, self.test))):
            if count:
                rng = np.random.default_rng([self.pair_seed, number])
                parts[split] = self._pairs(pools.split(split), count, rng)
        return dataset("data: mnist_pairs", parts)

    def scaled(self, batch: dict) -> dict:
        """Bytes to 0..1."""
        return batch | {"x": batch["x"].astype(jnp.float32) / 255}

    def _pairs(self, pool: dict[str, np.ndarray], count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        x, y = (pool.get(name, np.zeros(0)) for name in "xy")
        if x.ndim != 3 or x.dtype != np.uint8 or len(np.unique(y)) < 2:
            raise ConfigError("data.images: expected bytes [n, height, width] of two classes or more in each split")
        if max(x.shape[1:]) > self.size:
            raise ConfigError(f"data.size: found {self.size}; the digits are {x.shape[1]} x {x.shape[2]}")
        first = rng.integers(len(x), size=count)
        second = rng.integers(len(x), size=count)
        while len(alike := np.flatnonzero(y[first] == y[second])):
            second[alike] = rng.integers(len(x), size=len(alike))
        canvas = np.zeros((count, self.size, self.size), np.uint8)
        height, width = x.shape[1:]
        canvas[:, :height, :width] = x[first]
        corner = canvas[:, self.size - height :, self.size - width :]
        np.maximum(corner, x[second], out=corner)
        return {"x": canvas, "y": np.stack([y[first], y[second]], 1).astype(np.int32)}
