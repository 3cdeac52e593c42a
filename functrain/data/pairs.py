"""Pairs of digits of MNIST, one over the other (Sabour, Frosst, Hinton 2017, section 6; Sener, Koltun 2018)."""

from typing import Literal

import numpy as np

from functrain.config import ConfigError, Count, Size, configclass
from functrain.data.dataset import SPLITS, Dataset, dataset
from functrain.data.mnist_digits import MnistDigits


@configclass
class MnistPairs(MnistDigits):
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

    def load(self) -> Dataset:
        """x [n, size, size] uint8; y [n, 2] int32, the digit at the top left and that at the bottom right.

        Raises:
          ConfigError: a file is missing or no IDX file of images of bytes, or the digits do not fit the canvas.
        """
        pools, parts = self.pools(self.pair_seed), {}
        for number, (split, count) in enumerate(zip(SPLITS, (self.train, self.validation, self.test))):
            if count:
                rng = np.random.default_rng([self.pair_seed, number])
                parts[split] = self._pairs(pools[split], count, rng)
        return dataset("data: mnist_pairs", parts)

    def _pairs(self, pool: dict[str, np.ndarray], count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        x, y = pool["x"], pool["y"]
        if len(np.unique(y)) < 2:
            raise ConfigError("data.labels: expected digits of two classes or more in each split")
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
