"""CIFAR's binary form: records of labels and pixels, one after another (A. Krizhevsky, "The CIFAR-10 dataset", 2009).

A record is one byte a label (CIFAR-100 has two: the coarse one, then the fine one) and 3,072 bytes of pixels: the red
plane of 32 rows of 32, the green, the blue.
"""

from typing import Literal

import jax.numpy as jnp
import numpy as np

from functrain.config import ConfigError, Size, Text, configclass
from functrain.data.base import Normalised, Split
from functrain.data.dataset import Dataset, dataset, find


@configclass
class CifarBinary(Split, Normalised):
    """Images and labels in CIFAR's binary form."""

    kind: Literal["cifar_binary"] = "cifar_binary"
    files: tuple[Text, ...]
    """The files of the training images, in their order."""
    test_files: tuple[Text, ...]
    """The files of those to be read once."""
    labels: Size = 1
    """How many labels each image has; the last one counts."""
    classes: Size = 10
    """How many classes the labels have."""

    def load(self) -> Dataset:
        """x [n, 32, 32, 3] uint8, y [n]."""
        train, test = (self._read(key) for key in ("files", "test_files"))
        whole = dataset("data", {"train": train, "test": test}, self.classes)
        return self.measured(dataset("data", self.split(whole.train, {"test": whole.test}), self.classes), 255.0)

    def scaled(self, batch: dict) -> dict:
        """Pixels to 0..1."""
        return batch | {"x": batch["x"].astype(jnp.float32) / 255}

    def _read(self, key: str) -> dict[str, np.ndarray]:
        parts = [read_records(f"data.{key}: {p}", find(f"data.{key}", p), self.labels) for p in getattr(self, key)]
        x, y = (np.concatenate(arrays) for arrays in zip(*parts))
        return {"x": x, "y": y.astype(np.int32)}


def read_records(name: str, path, labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, 32, 32, 3] uint8 and their last labels [n] uint8 of a file.

    Args:
      name: what messages call the file.
      path: the file.
      labels: how many each record begins with.

    Raises:
      ConfigError: it cannot be read, or its length is that of no number of records.
    """
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror or error}") from None
    record = labels + 3072
    if not data.size or data.size % record:
        raise ConfigError(f"{name}: {data.size} bytes; expected records of {record}")
    rows = data.reshape(-1, record)
    images = rows[:, labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), rows[:, labels - 1]
