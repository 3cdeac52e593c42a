"""Random examples, made when they are asked for: for trying things out."""

from typing import Literal

import numpy as np

from functrain.config import Size, configclass
from functrain.data.base import Split
from functrain.data.dataset import Dataset, dataset


@configclass
class Random(Split):
    """Random numbers: x normal, y a class by a random linear rule or by chance; nothing to download."""

    kind: Literal["random"] = "random"
    examples: Size = 1000
    """How many."""
    features: tuple[Size, ...] = (10,)
    """Shape of one example."""
    classes: Size = 2
    """How many classes; 2 give y of 0 and 1."""
    rule: Literal["linear", "chance"] = "linear"
    """linear: the largest of `classes` random projections of x, which can be learned; chance: by heart alone."""

    def load(self) -> Dataset:
        """x [n, *features] float32, y [n]; drawn from split_seed."""
        rng = np.random.default_rng(self.split_seed)
        x = rng.standard_normal((self.examples, *self.features), np.float32)
        if self.rule == "linear":
            y = (x.reshape(len(x), -1) @ rng.standard_normal((int(np.prod(self.features)), self.classes))).argmax(-1)
        else:
            y = rng.integers(self.classes, size=len(x))
        return dataset("random", self.split({"x": x, "y": y}), self.classes)
