"""What sources that are made of MNIST's digits have in common: where the digits are, and which split uses which."""

import jax.numpy as jnp
import numpy as np

from functrain.config import ConfigError, Text, configclass
from functrain.data.base import Source
from functrain.data.dataset import SPLITS, find
from functrain.data.idx import Idx


@configclass
class MnistDigits(Source):
    """The files of the digits. Bytes are scaled to 0..1."""

    images: Text = "mnist/train-images-idx3-ubyte.gz"
    """The file of the training digits; looked for in the working directory, then where FUNCTRAIN_DATA points."""
    labels: Text = "mnist/train-labels-idx1-ubyte.gz"
    """The file of their labels."""
    test_images: Text = "mnist/t10k-images-idx3-ubyte.gz"
    """The file of the test digits."""
    test_labels: Text = "mnist/t10k-labels-idx1-ubyte.gz"
    """The file of their labels."""

    def pools(self, seed: int) -> dict[str, dict[str, np.ndarray]]:
        """The digits of each split, x [n, height, width] uint8 and y [n]: no digit is in two.

        Those for validation are a sixth of the training digits, drawn with the seed.

        Raises:
          ConfigError: a file is missing or no IDX file, holds no images of bytes, or too few for a split.
        """
        files = {name: getattr(self, name) for name in ("images", "labels", "test_images", "test_labels")}
        for name, path in files.items():
            try:
                find(f"data.{name}", path)
            except ConfigError as error:
                raise ConfigError(f"{error}; MNIST is had by: functrain data get mnist") from None
        read = Idx(**files, validation=1 / 6, split_seed=seed).load()
        pools = {split: read.split(split) for split in SPLITS}
        if not all(pools.values()):
            raise ConfigError("data.images: holds too few digits to keep a sixth of them apart for validation")
        x = pools["train"]["x"]
        if x.ndim != 3 or x.dtype != np.uint8:
            raise ConfigError(f"data.images: found {x.dtype} {list(x.shape)}; expected bytes [n, 28, 28] or the like")
        return pools

    def scaled(self, batch: dict) -> dict:
        """Bytes to 0..1."""
        return batch | {"x": batch["x"].astype(jnp.float32) / 255}
