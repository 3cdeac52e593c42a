"""Bits a sample of an order-1 Markov model of a config's mu-law codes: what a model of waves has to beat.

    FUNCTRAIN_DATA=... python benchmarks/markov_of_codes.py configs/fsdd_wavenet.toml

Counts of each code after each in the training clips, 0.1 added to each; the first code follows silence, as in the task.
"""

import sys

import numpy as np

from functrain import config
from functrain.data.sounds import PADDING
from functrain.experiment import Experiment


def main(path: str) -> None:
    """Print the bits of each split."""
    source = config.parse(Experiment, config.read(path)).data
    dataset, levels = source.load(), source.features.levels
    counts = np.full((levels, levels), 0.1)
    for split in ("train", "validation", "test"):
        x = dataset.split(split)["x"]
        codes = np.asarray(source.features.apply(np.where(x == PADDING, 0, x) / np.float32(32768), None, 1)[0])
        before = np.concatenate([np.full((len(x), 1), levels // 2), codes[:, :-1]], 1)
        pairs = before[x != PADDING], codes[x != PADDING]
        if split == "train":
            counts += np.bincount(pairs[0] * levels + pairs[1], minlength=levels**2).reshape(levels, levels)
        chance = counts / counts.sum(1, keepdims=True)
        print(f"{split}: {-np.log2(chance[pairs]).mean():.3f} bits a sample")


if __name__ == "__main__":
    main(sys.argv[1])
