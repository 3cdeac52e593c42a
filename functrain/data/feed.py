"""Feeds: how batches reach the device.

window(step, count) -> arrays    on the host: what the steps [step, step + count) need, put on the device
batch(window, step) -> batch     pure and traced: one step's batch out of the window

Memory    all examples on the device; a step gathers its own (nothing travels)
Mixed     several sources on the device: so many of each in every batch
Windows   blocks out of one long sequence on the device
Stream    rows read on the host, ahead of the chunk that needs them; the same order
Whole     the same batch at each step: full-batch methods, and {} for an environment
Augmented another feed's batches, changed at random, otherwise at each step
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functrain.data.ahead import Ahead
from functrain.data.order import order
from functrain.data.reading import Batches


def as_is(batch: Any) -> Any:
    """The batch itself: no preparation."""
    return batch


@dataclass(frozen=True)
class Memory:
    """Arrays that live on the device; each step's batch is gathered inside the program.

    >>> feed = Memory({"x": jnp.arange(10)}, size=4)
    >>> feed.batch(feed.window(0, 1), jnp.int32(0))["x"].shape
    (4,)
    """

    arrays: Any = field(hash=False)
    size: int
    seed: int = 0
    prepare: Callable[[Any], Any] = as_is

    def window(self, step: int, count: int) -> Any:
        """The arrays, whatever the step."""
        return self.arrays

    def batch(self, window: Any, step: Any) -> Any:
        """The examples of one step, prepared."""
        n = len(jax.tree.leaves(window)[0])
        i = order(self.seed, step, n, self.size)
        return self.prepare(jax.tree.map(lambda x: x[i], window))


@dataclass(frozen=True)
class Mixed:
    """Arrays of several sources on the device, one source after the other; so many of each in every batch.

    Each source has its own order, by its own seed, and so its own epochs.

    parts: (examples, examples in a batch) of each source.

    >>> feed = Mixed({"x": jnp.array([0, 0, 0, 0, 1, 1])}, parts=((4, 3), (2, 1)))
    >>> feed.batch(feed.window(0, 1), jnp.int32(0))["x"].tolist()
    [0, 0, 0, 1]
    """

    arrays: Any = field(hash=False)
    parts: tuple[tuple[int, int], ...]
    seed: int = 0
    prepare: Callable[[Any], Any] = as_is

    def window(self, step: int, count: int) -> Any:
        """The arrays, whatever the step."""
        return self.arrays

    def batch(self, window: Any, step: Any) -> Any:
        """The examples of one step, prepared."""
        rows, start = [], 0
        for k, (n, size) in enumerate(self.parts):
            # Far apart, and that of the first is the seed itself, which may be traced.
            seed = jnp.asarray(self.seed).astype(jnp.uint32) ^ jnp.uint32(k * 0x9E3779B9 % 2**32)
            rows.append(start + order(seed, step, n, size))
            start += n
        i = jnp.concatenate(rows)
        return self.prepare(jax.tree.map(lambda x: x[i], window))


@dataclass(frozen=True)
class Windows:
    """Blocks out of one long sequence on the device: `block` tokens x, and y the token that follows each.

    Every place of the sequence is a start once in an epoch of the order.

    >>> feed = Windows({"tokens": jnp.arange(10)}, block=3, size=2)
    >>> batch = feed.batch(feed.window(0, 1), jnp.int32(0))
    >>> batch["x"].shape, (batch["y"] - batch["x"]).tolist()
    ((2, 3), [[1, 1, 1], [1, 1, 1]])
    """

    arrays: Any = field(hash=False)
    block: int
    size: int
    seed: int = 0
    prepare: Callable[[Any], Any] = as_is

    def window(self, step: int, count: int) -> Any:
        """The sequence, whatever the step."""
        return self.arrays

    def batch(self, window: Any, step: Any) -> Any:
        """x and y [size, block], int32, prepared."""
        tokens = window["tokens"]
        start = order(self.seed, step, len(tokens) - self.block, self.size)
        rows = tokens[start[:, None] + jnp.arange(self.block + 1)].astype(jnp.int32)
        return self.prepare({"x": rows[:, :-1], "y": rows[:, 1:]})


def blocks(tokens: np.ndarray, block: int, most: int = 0) -> dict[str, np.ndarray]:
    """A sequence cut into blocks that do not overlap: x, y and mask [n, block]; each token is predicted once.

    most: how many blocks there are at most, spread evenly; 0 is all.

    >>> {name: a.tolist() for name, a in blocks(np.arange(6), 3).items()}
    {'x': [[0, 1, 2], [3, 4, 4]], 'y': [[1, 2, 3], [4, 5, 5]], 'mask': [[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]]}
    """
    n = len(tokens) - 1
    there = -(-n // block)
    kept = min(most or there, there)
    which = np.arange(kept) * there // max(kept, 1)
    at = (which[:, None] * block + np.arange(block)).ravel()
    x, y = tokens[np.minimum(at, n - 1)], tokens[np.minimum(at, n - 1) + 1]
    return {
        "x": x.reshape(-1, block).astype(np.int32),
        "y": y.reshape(-1, block).astype(np.int32),
        "mask": (at < n).reshape(-1, block).astype(np.float32),
    }


@dataclass(frozen=True)
class Stream:
    """Rows that `read(indices)` brings from somewhere, stacked for a chunk.

    longest: the most steps that one window holds; shorter ones are filled up, so that one program serves all.
    workers: so many threads, or processes, read ahead of need (see functrain.data.ahead); 0 reads in the caller.
    processes: which of them.
    sharding: where the rows go; None is the default device.
    ahead: what reads ahead, once there is room for it.
    """

    read: Callable[[np.ndarray], Any] = field(hash=False)
    n: int
    size: int
    longest: int
    seed: int = 0
    prepare: Callable[[Any], Any] = as_is
    workers: int = 0
    processes: bool = False
    sharding: Any = field(default=None, hash=False)
    ahead: Ahead | None = field(default=None, compare=False)

    def with_room(self, longest: int, sharding: Any) -> "Stream":
        """The stream with windows of `longest` steps, on these devices; its workers begin."""
        ahead = Ahead(self._batches, longest, self.workers, self.processes) if self.workers else None
        return dataclasses.replace(self, longest=longest, sharding=sharding, ahead=ahead)

    def window(self, step: int, count: int) -> Any:
        """(its first step, rows [longest, size, ...]) on the device."""
        if count > self.longest:
            raise ValueError(f"a window of {count} steps from a stream that holds {self.longest}")
        if self.ahead is None:
            batches = self._batches
            rows = [batches[s] for s in range(step, step + count)]
            rows += rows[-1:] * (self.longest - count)
            return jax.device_put((np.int32(step), jax.tree.map(lambda *x: np.stack(x), *rows)), self.sharding)
        window = self.ahead.window(step, count)
        rows = window.rows(step, count)
        if window.placed is None:  # by the caller: while the device still computes the chunk before
            window.placed = jax.device_put((np.int32(window.first), rows), self.sharding)
        return window.placed

    @property
    def _batches(self) -> Batches:
        return Batches(self.read, self.n, self.size, self.seed)

    def batch(self, window: Any, step: Any) -> Any:
        """The rows of one step, prepared."""
        first, rows = window
        return self.prepare(jax.tree.map(lambda x: x[step - first], rows))


@dataclass(frozen=True)
class Whole:
    """The same batch at each step."""

    arrays: Any = field(default_factory=dict, hash=False)
    prepare: Callable[[Any], Any] = as_is

    def window(self, step: int, count: int) -> Any:
        """The batch."""
        return self.arrays

    def batch(self, window: Any, step: Any) -> Any:
        """The batch, prepared."""
        return self.prepare(window)


@dataclass(frozen=True)
class Augmented:
    """Another feed's batches, changed at random on the device: a function of the seed and the step, like the order.

    feed: gives batches as the source scales them.
    augments: what changes them, in this order, each `apply(batch, *, key) -> batch`.
    then: the source's normalisation, after all but those that are `on_features`: they change what it gives.
    """

    feed: Any
    augments: tuple[Any, ...]
    then: Callable[[Any], Any] = as_is
    seed: int = 0

    def window(self, step: int, count: int) -> Any:
        """The feed's own."""
        return self.feed.window(step, count)

    def batch(self, window: Any, step: Any) -> Any:
        """The feed's batch of one step, augmented."""
        feed = dataclasses.replace(self.feed, seed=self.seed)  # which may be traced, one of several
        batch = feed.batch(window, step)
        # Not 0 and 1: with those, the train state's own keys are folded from that of the seed.
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed), 2), step)
        for _, change in self.changes():
            batch = change(batch, key)
        return batch

    def changes(self) -> Iterator[tuple[int | None, Callable[[Any, jax.Array], Any]]]:
        """What is done to a batch, in this order: (which of the augments, None for `then`; change(batch, key))."""

        def of(on_features):
            for i, augment in enumerate(self.augments):
                if getattr(augment, "on_features", False) == on_features:
                    yield i, lambda batch, key, i=i, one=augment: one.apply(batch, key=jax.random.fold_in(key, i))

        yield from of(False)
        yield None, lambda batch, key: self.then(batch)
        yield from of(True)


@dataclass(frozen=True)
class InOrder:
    """Every example once, in order, for evaluation: the last batch is filled up and its `mask` says so.

    >>> feed = InOrder({"x": jnp.arange(5)}, size=4)
    >>> [feed.batch(feed.arrays, i)["mask"].tolist() for i in range(len(feed))]
    [[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0]]
    """

    arrays: Any = field(hash=False)
    size: int
    prepare: Callable[[Any], Any] = as_is

    def __len__(self) -> int:
        """How many batches there are; one, of nothing, where there are no arrays (an environment)."""
        return -(-len(jax.tree.leaves(self.arrays)[0]) // self.size) if self.arrays else 1

    def batch(self, arrays: Any, i: Any) -> Any:
        """Batch i, prepared."""
        if not arrays:
            return {}
        n = len(jax.tree.leaves(arrays)[0])
        at = i * self.size + jnp.arange(self.size)
        batch = jax.tree.map(lambda x: x[jnp.minimum(at, n - 1)], arrays)
        real = (at < n).astype(jnp.float32)
        mask = batch.get("mask")
        mask = real if mask is None else mask * real.reshape(-1, *[1] * (mask.ndim - 1))
        return self.prepare(batch | {"mask": mask})
