"""Reading ahead: the windows of a stream are made before they are asked for, by threads or processes.

What is read ahead is a cache and nothing else. A window is kept by its steps; asked for other steps than those that
come next, it starts again from there. The batches are a function of the step, so that neither how many workers there
are, nor whether they are threads or processes, nor how many steps a window has changes a bit of them.

Threads are plain ones: grain's cost as much a batch and 0.8 s to import. Processes are grain's, which hand arrays over
in shared memory; they are spawned (a process that has started jax must not be forked) and never touch a device.
"""

import collections
import multiprocessing
import os
import queue
import signal
import threading
import weakref
from collections.abc import Generator, Iterator
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np

from functrain.config import ConfigError
from functrain.data.reading import Batches

_ALIGNED = 64
"""Bytes: a CPU's jax takes an array whose memory begins at a multiple of it as it is, without a copy."""


class Window:
    """Rows of the steps from `first` on, perhaps not yet made.

    placed: them on the device, once they are there.
    """

    def __init__(self, first: int, length: int):
        self.first, self.length, self.placed = first, length, None
        self._made: Future = Future()

    def covers(self, step: int, count: int) -> bool:
        """Whether it is of these steps, and nothing went wrong before them."""
        if not (self.first <= step and step + count <= self.first + self.length):
            return False
        return not self._made.done() or step <= self.first + self._made.result()[1]

    def wanted(self) -> bool:
        """Whether it is still to be made; from now on it cannot be dropped."""
        return self._made.set_running_or_notify_cancel()

    def make(self, rows: Any, good: int, error: BaseException | None) -> None:
        """rows [length, size, ...], of how many steps they are, and what went wrong at the next."""
        self._made.set_result((rows, good, error))

    def drop(self) -> None:
        """Nobody wants it."""
        self._made.cancel()

    def rows(self, step: int, count: int) -> Any:
        """The rows [length, size, ...], when they are there; only those of these steps need be right.

        Raises:
          ConfigError: one of these steps could not be read.
        """
        rows, good, error = self._made.result()
        if step + count > self.first + good:
            assert error is not None
            raise error
        return rows


class Ahead:
    """Windows made ahead of need. Its workers end with it, or with the process.

    Args:
      batches: by step.
      length: steps in a window.
      workers: how many threads, or processes.
      processes: which of them.

    >>> ahead = Ahead(Batches(lambda i: {"x": i}, n=10, size=5, seed=7), length=4, workers=2)
    >>> window = ahead.window(3, 2)
    >>> window.first, window.rows(3, 2)["x"].shape
    (3, (4, 5))
    """

    def __init__(self, batches: Batches, length: int, workers: int, processes: bool = False):
        self._length, self._held, self._inbox = length, [], queue.SimpleQueue()
        reader = _Processes(batches, workers) if processes else _Threads(batches, workers)
        over = threading.Event()
        maker = threading.Thread(target=_make, args=(self._inbox, reader, over), name="functrain-windows", daemon=True)
        maker.start()
        self.close = weakref.finalize(self, _end, self._inbox, over, maker)  # at the latest when the process ends

    def window(self, step: int, count: int) -> Window:
        """One that has the steps [step, step + count); what comes next is made from now on."""
        held, self._held = self._held, []
        for window in held:  # one step back too: who looks at two steps and then takes them comes back
            near = window.first <= step + 2 * self._length and step - 1 < window.first + window.length
            self._held.append(window) if near else window.drop()
        found = self._covering(step, count) or self._begin(step)
        if not self._covering(step + count, count):
            self._begin(step + count)
        return found

    def _covering(self, step: int, count: int) -> Window | None:
        return next((window for window in self._held if window.covers(step, count)), None)

    def _begin(self, step: int) -> Window:
        window = Window(step, self._length)
        self._held.append(window)
        self._inbox.put(window)
        return window


def _make(inbox: queue.SimpleQueue, reader: "_Threads | _Processes", over: threading.Event) -> None:
    """The thread that puts batches together to windows."""
    coming, last = None, None  # the batches after the window made last, and that window: (first, rows)
    while (window := inbox.get()) is not None:
        if not window.wanted():
            continue
        if coming is None or last is None or not last[0] <= window.first <= last[0] + window.length:
            if coming is not None:
                coming.close()
            coming, last = reader.batches(window.first), None
        rows, good, error = _stacked(window, coming, last, over)
        last = (window.first, rows)
        if error is not None:
            coming.close()
            coming = None
        window.make(rows, good, error)
        del window, rows, error
    if coming is not None:
        coming.close()
    reader.stop()


def _stacked(window: Window, coming: Iterator[Any], last: tuple[int, Any] | None, over: threading.Event) -> tuple:
    """(rows, of how many steps, the error at the next one); the first of them are those that the last window has."""
    there = 0 if last is None else last[0] + window.length - window.first
    rows, k = None, there
    if last is not None and there:
        rows = jax.tree.map(lambda x: _empty(x.shape, x.dtype), last[1])
        for to, old in zip(jax.tree.leaves(rows), jax.tree.leaves(last[1])):
            to[:there] = old[window.length - there :]
    try:
        for k in range(there, window.length):
            if over.is_set():
                break
            batch = next(coming)
            if rows is None:
                rows = jax.tree.map(lambda x: _empty((window.length, *x.shape), x.dtype), batch)
            for to, one in zip(jax.tree.leaves(rows), jax.tree.leaves(batch)):
                to[k] = one
            del batch, one  # in shared memory, perhaps, which an error must not keep
    except BaseException as error:
        return rows, k, error
    return rows, window.length, None


def _empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """np.empty, aligned."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    raw = np.empty(size + _ALIGNED, np.uint8)
    start = -raw.ctypes.data % _ALIGNED
    return raw[start : start + size].view(dtype).reshape(shape)


def _end(inbox: queue.SimpleQueue, over: threading.Event, maker: threading.Thread) -> None:
    over.set()
    inbox.put(None)
    if threading.current_thread() is not maker:  # the garbage collector runs where it likes
        maker.join(timeout=30)


class _Threads:
    """Batches read by threads, two for each of them ahead."""

    def __init__(self, batches: Batches, workers: int):
        self._tasks, self._workers = queue.SimpleQueue(), workers
        for i in range(workers):  # daemons, for those of concurrent.futures read all that is queued before they end
            name = f"functrain-reader-{i}"
            threading.Thread(target=_read, args=(self._tasks, batches), name=name, daemon=True).start()

    def batches(self, first: int) -> Generator[Any, None, None]:
        """Those of the steps from `first` on."""
        flying: collections.deque[Future] = collections.deque()
        step = first
        try:
            while True:
                while len(flying) < 2 * self._workers:
                    flying.append(Future())
                    self._tasks.put((step, flying[-1]))
                    step += 1
                yield flying.popleft().result()
        finally:
            for future in flying:
                future.cancel()

    def stop(self) -> None:
        """End the threads."""
        for _ in range(self._workers):
            self._tasks.put(None)


def _read(tasks: queue.SimpleQueue, batches: Batches) -> None:
    while (task := tasks.get()) is not None:
        step, future = task
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(batches[step])
            except BaseException as error:
                future.set_exception(error)
        del task, future


class _Processes:
    """Batches read by grain's worker processes."""

    def __init__(self, batches: Batches, workers: int):
        self._grain = _grain()
        self._batches, self._workers = batches, workers

    def batches(self, first: int) -> Generator[Any, None, None]:
        """Those of the steps from `first` on."""
        grain = self._grain
        steps = grain.MapDataset.source(_From(self._batches, first))
        inside = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        options = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=2)
        # A pipe is quicker than shared memory for small arrays, such as labels.
        shared = grain.experimental.DatasetOptions(min_shm_size=1 << 16)
        steps = grain.experimental.WithOptionsIterDataset(steps.to_iter_dataset(inside), shared)
        found = iter(steps.mp_prefetch(options, worker_init_fn=_begin_worker))
        try:
            yield from found
        except ConfigError as error:  # without what grain has to say of its own traceback
            raise ConfigError(str(error)) from None
        finally:
            found.close()

    def stop(self) -> None:
        """Nothing: they end with the generator of their batches."""


class _From:
    """Batches from a step on, as grain wants a source."""

    def __init__(self, batches: Batches, first: int):
        self._batches, self._first = batches, first

    def __len__(self) -> int:
        return len(self._batches) - self._first

    def __getitem__(self, i: int) -> Any:
        return self._batches[self._first + int(i)]


def _begin_worker(index: int, count: int) -> None:
    """Of a worker process: Ctrl-C and SIGTERM are for the parent, which ends it; and it is gone when the parent is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    jax.config.update("jax_platforms", "cpu")
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _grain() -> Any:
    """grain: an optional dependency, imported where processes are asked for."""
    try:
        import grain
        from absl import flags
    except ImportError:
        raise ConfigError("data.processes: needs grain: pip install 'functrain[stream]'") from None
    if not flags.FLAGS.is_parsed():  # grain reads its own, and asks for a program that has parsed them
        flags.FLAGS.mark_as_parsed()
    return grain
