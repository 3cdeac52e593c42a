"""Examples that are read when they are asked for: what a stream of batches takes them from.

Examples        len, and read(i), pure in i
Rows            one array of them, [n, ...], which is read where it is indexed
Batches         the batch of each step, a function of (seed, step)
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from functrain.config import LARGEST, ConfigError
from functrain.data.dataset import Dataset, dataset
from functrain.data.order import shuffled

_BLOCK = 64
"""Steps whose order is computed together: one by one it costs ten times as much."""


class Examples(ABC):
    """Examples at random access. Example i is the same whenever and wherever it is read, so that nothing of what has
    been read needs to be kept; and all of it can be pickled, for workers that are processes."""

    @abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    @abstractmethod
    def read(self, i: int) -> dict[str, np.ndarray]:
        """Arrays of example i by name, always of the same shapes and dtypes: float32, or integers of at most 32 bits.

        Raises:
          ConfigError: it cannot be read; with the file.
        """

    def read_batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """These examples, [size, ...] each."""
        rows = [self.read(i) for i in indices.tolist()]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


class Rows:
    """An array [n, ...] of examples that are read where it is indexed.

    It has what is asked of a dataset's arrays (shape, dtype, some rows), and refuses to become an array as a whole.
    """

    nbytes = 0  # of memory

    def __init__(self, examples: Examples, name: str, like: np.ndarray):
        """like: the array of some examples, for its shape and dtype."""
        self.examples, self.name = examples, name
        self.shape, self.dtype = (len(examples), *like.shape[1:]), like.dtype
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, key: Any) -> np.ndarray:
        i = np.arange(*key.indices(len(self))) if isinstance(key, slice) else np.asarray(key)
        if i.dtype == bool:
            i = np.flatnonzero(i)
        if not i.size:
            return np.zeros((0, *self.shape[1:]), self.dtype)
        rows = self.examples.read_batch(np.atleast_1d(i) % len(self))[self.name]
        return rows if i.ndim else rows[0]

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise ConfigError(
            f"data.stream: found true; here {self.name} of all {len(self)} training examples is needed in memory: "
            "expected false"
        )


def streamed(
    name: str,
    examples: Examples,
    splits: Mapping[str, Mapping[str, Any]],
    classes: int = 0,
    known: Mapping[str, np.ndarray] | None = None,
) -> Dataset:
    """A checked dataset whose training part is read when it is asked for.

    Args:
      name: what messages call the data.
      examples: the training part; the first one is read, to be checked against the other splits.
      splits: validation and test, in memory.
      classes: of integer labels, which the examples keep to.
      known: arrays of the training part that are in memory all the same: labels, which many tasks look at.

    Raises:
      ConfigError: as `functrain.data.dataset` does.
    """
    first = examples.read_batch(np.arange(1))
    made = dataset(name, {**splits, "train": first}, classes)
    for key, array in made.train.items():
        assert array.dtype == first[key].dtype, f"{key}: {first[key].dtype}, which would become {array.dtype}"
    train: dict[str, Any] = {key: Rows(examples, key, array) for key, array in made.train.items()} | dict(known or {})
    return Dataset(train, made.validation, made.test, made.classes)


def narrowed(array: np.ndarray) -> np.ndarray:
    """Numbers as a dataset has them: of 64 bits (and truth values) those of 32."""
    to = {"f8": np.float32, "i8": np.int32, "u8": np.int32, "b1": np.int32}.get(array.dtype.str[1:])
    return array if to is None else array.astype(to)


class Batches:
    """The batch of each step: a function of the seed and the step, whoever computes it.

    Args:
      read: indices [size] -> rows, a pytree of arrays [size, ...].
      n, size, seed: of the order.

    >>> batches = Batches(lambda i: {"x": i}, n=10, size=5, seed=7)
    >>> sorted(np.concatenate([batches[0]["x"], batches[1]["x"]]).tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """

    def __init__(self, read: Callable[[np.ndarray], Any], n: int, size: int, seed: int):
        self._read, self._order = read, (seed, n, size)

    def __len__(self) -> int:
        return LARGEST

    def __getitem__(self, step: int) -> Any:
        seed, n, size = self._order
        return self._read(_indices(seed, step // _BLOCK, n, size)[step % _BLOCK])


@functools.lru_cache(8)
def _indices(seed: int, block: int, n: int, size: int) -> np.ndarray:
    """`order` of the steps of a block: [_BLOCK, size]."""
    steps, epoch = np.arange(block * _BLOCK, (block + 1) * _BLOCK), n // size
    found = np.empty((_BLOCK, size), np.int32)
    for number in np.unique(steps // epoch):
        here = steps // epoch == number
        places = (steps[here] % epoch)[:, None] * size + np.arange(size)
        found[here] = shuffled(seed, number, places.ravel(), n, np).reshape(-1, size)
    return found
