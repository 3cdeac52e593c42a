"""What the configs of sources share that can leave their training examples where they are.

Validation and test are in memory all the same. Decoding, cropping and resizing run in the workers; augmentation runs
on the device, in the step, as it does for examples in memory.
"""

from typing import Any

import numpy as np

from functrain.config import Count, Size, configclass
from functrain.data.base import Source
from functrain.data.dataset import Dataset
from functrain.data.feed import Stream
from functrain.data.order import shuffled
from functrain.data.reading import Rows


@configclass
class Workers(Source):
    """A source that reads while it trains."""

    workers: Count = 2
    """Threads, or processes, that read ahead of need; 0 reads at need. Batches do not depend on it, bit for bit."""
    processes: bool = False
    """Whether the workers are processes (extra `stream`): for what Python itself decodes, such as CSV. They start in
    seconds, and need a second processor."""


@configclass
class Streaming(Workers):
    """A source whose training examples may stay in their files."""

    stream: bool = False
    """Whether training examples stay in their files and are read while it trains; else all are in memory."""
    learned_from: Size = 4096
    """Of a stream: training examples, drawn at random, by which it is normalised; all, where there are fewer."""

    @property
    def streamed(self) -> bool:
        """Whether the training part stays in its files."""
        return self.stream

    def learned(self, x: Any) -> np.ndarray:
        """Training inputs from which is learned: all of them, of a stream so many."""
        return x[some(len(x), self.learned_from)] if isinstance(x, Rows) else x

    def feed(self, dataset: Dataset, arrays: Any, seed: int) -> Any:
        """The training feed: of examples in memory, or of a stream."""
        x = dataset.train["x"]
        if not isinstance(x, Rows):
            return super().feed(dataset, arrays, seed)
        read = x.examples.read_batch
        return Stream(read, len(x), self.batch_size, 1, seed, self.prepare, self.workers, self.processes)


def some(n: int, most: int) -> np.ndarray:
    """The numbers below n, or `most` of them at random, always the same, rising.

    >>> some(3, 5).tolist(), len(some(100, 5))
    ([0, 1, 2], 5)
    """
    return np.arange(n) if n <= most else np.sort(shuffled(0, 0, np.arange(most), n, np))
