"""Two domains of images made of MNIST, without pairs: what CycleGAN learns to turn into one another."""

from typing import Literal

import numpy as np

from functrain.config import ConfigError, Count, configclass
from functrain.data.dataset import SPLITS, Dataset, dataset
from functrain.data.mnist_digits import MnistDigits


@configclass
class MnistDomains(MnistDigits):
    """Digits as they are, and other digits that were changed: inverted and turned by a quarter, or only their edges.

    In each split one half of the digits, drawn at random, is domain x, and the other half, changed, domain `other`: no
    digit is in both. Test images are made of test digits, those for validation of a sixth of the training digits.
    """

    kind: Literal["mnist_domains"] = "mnist_domains"
    change: Literal["inverted", "edges"] = "inverted"
    """What the other domain is: dark for bright and turned by a quarter, or the length of each pixel's slope."""
    limit: Count = 0
    """At most so many images of each domain in a split; 0 is all."""
    domain_seed: Count = 0
    """Which digits are in which domain."""

    def load(self) -> Dataset:
        """x and other [n, height, width] uint8; y and y_other [n], their labels.

        Raises:
          ConfigError: a file is missing or no IDX file, or holds no square images of bytes.
        """
        pools, parts = self.pools(self.domain_seed), {}
        for number, split in enumerate(SPLITS):
            parts[split] = self._domains(pools[split], np.random.default_rng([self.domain_seed, number]))
        return dataset("data: mnist_domains", parts)

    def scaled(self, batch: dict) -> dict:
        """Bytes to 0..1, of both domains."""
        other = {"other": super().scaled({"x": batch["other"]})["x"]} if "other" in batch else {}
        return super().scaled(batch) | other

    def _domains(self, pool: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        x, y = pool["x"], pool["y"]
        if x.shape[1] != x.shape[2]:
            raise ConfigError(f"data.images: found {x.dtype} {list(x.shape)}; expected square images of bytes")
        rows = rng.permutation(len(x))
        n = min(len(x) // 2, self.limit or len(x))
        ours, others = rows[:n], rows[n : 2 * n]
        changed = _edges(x[others]) if self.change == "edges" else 255 - np.rot90(x[others], axes=(1, 2))
        return {"x": x[ours], "other": np.ascontiguousarray(changed), "y": y[ours], "y_other": y[others]}


def _edges(x: np.ndarray) -> np.ndarray:
    """The length of each pixel's slope, by central differences, as bytes.

    >>> _edges(np.array([[[0, 0, 0], [0, 0, 200], [0, 0, 0]]], np.uint8))[0].tolist()
    [[0, 0, 200], [0, 100, 200], [0, 0, 200]]
    """
    down, across = np.gradient(x.astype(np.float32), axis=(1, 2))
    return np.clip(np.rint(np.hypot(down, across)), 0, 255).astype(np.uint8)
