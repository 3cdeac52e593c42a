"""Bucketing: the examples of a step are of similar length, so that little padding is computed.

Ragged examples are arrays filled up with 0 along their second axis. A bucket is a width for each such array, and an
example is of the first bucket that holds all of it. `widths` says it: {"x": (10, 20, 40), "y": (12, 24, 40)}.

choose(lengths, buckets)             -> widths that leave the least padding
Bucketed.of(arrays, widths, size)    -> a feed whose batches are each of one bucket
Ragged                               what sources of such examples share: the setting `buckets`

The batch keeps its full width; `functrain.train.trim` cuts it, for a program has static shapes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from functrain.config import Size, configclass
from functrain.data.base import Source
from functrain.data.dataset import Dataset
from functrain.data.feed import as_is
from functrain.data.order import shuffled


def lengths_of(array: Any) -> np.ndarray:
    """The length of each example [n, longest, ...]: up to the last that is not 0.

    >>> lengths_of([[5, 0, 7, 0], [0, 0, 0, 0]]).tolist()
    [3, 0]
    """
    filled = np.asarray(array) != 0
    filled = filled.any(tuple(range(2, filled.ndim)))
    return np.where(filled.any(1), filled.shape[1] - filled[:, ::-1].argmax(1), 0)


def choose(lengths: Any, buckets: int) -> tuple[int, ...]:
    """The widths of so many buckets that leave the least padding in all; fewer where there are fewer lengths.

    By dynamic programming over the lengths that occur: exact.

    >>> choose([1, 1, 2, 8, 9], 2)
    (2, 9)
    """
    widths, counts = np.unique(np.maximum(lengths, 1), return_counts=True)
    examples = np.cumsum(counts)  # up to each width
    cost, before = widths * examples, []  # places up to each width, with one bucket more each round
    for _ in range(min(buckets, len(widths)) - 1):
        each = cost + widths[:, None] * (examples[:, None] - examples)  # [width, the width of the bucket below]
        each = np.where(np.tri(len(widths), dtype=bool), each, each.max() + 1)
        cost = each.min(1)
        before.append(each.argmin(1))
    chosen = [len(widths) - 1]
    for below in reversed(before):
        chosen.append(int(below[chosen[-1]]))
    return tuple(widths[sorted(set(chosen))].tolist())


def place(seed: Any, step: Any, counts: tuple[int, ...], size: int, xp: Any = jnp) -> tuple[Any, Any]:
    """Which examples a step sees, of examples that are sorted by bucket, the widest first.

    In each epoch the examples of a bucket are shuffled, all of them cut into batches from the widest to the narrowest,
    and the batches shuffled. A batch that holds examples of two buckets is of the wider one. What fills no batch is
    left out at the two ends, a random part of it at each, so that no example is left out always.

    Args:
      seed, step: whole numbers; the result is a function of them alone.
      counts: examples of each bucket, the narrowest first.
      size: examples in a step.
      xp: jax.numpy or numpy; both give the same bits.

    Returns:
      (indices [size], all different; the bucket, a number).

    >>> steps = [place(7, np.int64(step), (4, 4), 4, np) for step in range(2)]
    >>> sorted((sorted(index.tolist()), int(bucket)) for index, bucket in steps)
    [([0, 1, 2, 3], 1), ([4, 5, 6, 7], 0)]
    """
    n = sum(counts)
    steps = n // size
    epoch, at = step // steps, step % steps

    def mixed(k, i, n):  # another permutation for each k
        apart = xp.asarray(seed).astype(xp.uint32) ^ xp.uint32(k * 0x9E3779B9 % 2**32)
        return shuffled(apart, epoch, xp.asarray(i), n, xp)

    first = mixed(0, 0, n % size + 1) + size * mixed(1, at, steps)
    position = first + xp.arange(size, dtype=xp.int32)
    index, start, narrower = position, 0, -1
    for k, count in enumerate(reversed(counts)):
        narrower = narrower + (first >= start)
        if count:
            here = (position >= start) & (position < start + count)
            within = xp.clip(position - start, 0, count - 1)
            index = xp.where(here, start + mixed(k + 2, within, count), index)
        start += count
    return index, xp.asarray(len(counts) - 1 - narrower, xp.int32)


@dataclass(frozen=True)
class Bucketed:
    """Arrays on the device; the batch of a step is of one bucket, and carries its number as `bucket`.

    rows: the examples, those of the widest bucket first.
    counts: how many each bucket has, the narrowest first.
    widths: of each bucket, by the name of the array.

    >>> x = jnp.array([[1, 0, 0], [1, 1, 1], [2, 0, 0], [2, 2, 2]])
    >>> feed = Bucketed.of({"x": x}, {"x": (1, 3)}, size=2)
    >>> batch = feed.batch(feed.window(0, 1), jnp.int32(0))
    >>> feed.counts, batch["x"].shape, int(batch["bucket"]) == int(batch["x"][0, 1] > 0)
    ((2, 2), (2, 3), True)
    """

    arrays: Any = field(hash=False)
    rows: Any = field(hash=False)
    counts: tuple[int, ...]
    widths: Mapping[str, tuple[int, ...]] = field(hash=False)
    size: int
    seed: int = 0
    prepare: Callable[[Any], Any] = as_is

    @classmethod
    def of(
        cls,
        arrays: Any,
        widths: Mapping[str, tuple[int, ...]],
        size: int,
        seed: int = 0,
        prepare: Callable[[Any], Any] = as_is,
    ) -> "Bucketed":
        """The feed of arrays [n, longest, ...] that are cut, and others, with as many widths for each that is cut.

        Raises:
          ValueError: widths of an array that is not there, that do not rise, of another number, or too narrow for an
            example.
        """
        buckets = len(next(iter(widths.values()), ()))
        bucket = np.zeros(len(jax.tree.leaves(arrays)[0]), np.int32)
        for name, each in widths.items():
            if name not in arrays:
                raise ValueError(f"widths of {name!r}; the arrays are: {', '.join(arrays)}")
            if not each or len(each) != buckets or list(each) != sorted(set(each)) or each[0] < 1:
                raise ValueError(f"widths of {name!r}: {each}; expected {max(buckets, 1)} that rise from 1 or more")
            lengths = lengths_of(arrays[name])
            if lengths.max() > each[-1]:
                i = int(lengths.argmax())
                raise ValueError(f"{name}[{i}]: length {lengths[i]}; the widest bucket is {each[-1]}")
            bucket = np.maximum(bucket, np.searchsorted(each, lengths).astype(np.int32))
        rows = np.argsort(-bucket, kind="stable").astype(np.int32)
        sharding = getattr(jax.tree.leaves(arrays)[0], "sharding", None)
        counts = tuple(np.bincount(bucket, minlength=buckets).tolist())
        return cls(arrays, jax.device_put(rows, sharding), counts, dict(widths), size, seed, prepare)

    def window(self, step: int, count: int) -> Any:
        """The arrays and the rows by bucket, whatever the step."""
        return self.arrays, self.rows

    def batch(self, window: Any, step: Any) -> Any:
        """The examples of one step in their full width, prepared, and their bucket."""
        arrays, rows = window
        index, bucket = place(self.seed, step, self.counts, self.size)
        i = rows[index]
        return self.prepare(jax.tree.map(lambda x: x[i], arrays)) | {"bucket": bucket}


@configclass
class Ragged(Source):
    """A source whose examples differ in length and are filled up with 0; `ragged` names the arrays that are."""

    buckets: Size = 1
    """Into how many widths examples are sorted, so that a step computes less padding; 1 is none."""
    ragged: ClassVar[tuple[str, ...]] = ("x",)

    def feed(self, dataset: Dataset, arrays: Any, seed: int) -> Any:
        """Batches of one bucket each, whose widths are chosen by the longest of an example's ragged arrays."""
        if self.buckets == 1:
            return super().feed(dataset, arrays, seed)
        longest = np.max([lengths_of(dataset.train[name]) for name in self.ragged], 0)
        widths = dict.fromkeys(self.ragged, choose(longest, self.buckets))
        return Bucketed.of(arrays, widths, self.batch_size, seed, self.prepare)
