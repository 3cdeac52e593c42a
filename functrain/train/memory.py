"""Memory: how much there is, and the fewest micro-batches with which a step fits into it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from functrain.config import ConfigError

_SHARE = 0.9
"""Of what is free: allocators waste some, and others come and go."""


@dataclass(frozen=True)
class Fit:
    """Which cut of a batch fits.

    chosen: into how many micro-batches.
    needs: of each number that was tried, bytes of a step.
    limit: bytes that there were.
    """

    batch: int
    chosen: int
    needs: dict[int, int]
    limit: int

    def __str__(self):
        """One line: what was chosen, and what each candidate would need.

        >>> print(Fit(32, 2, {1: 7_000_000_000, 2: 3_600_000_000}, 4_000_000_000))
        train.accumulate = 2: micro-batches of 16 need 3.6 GB of 4 GB (whole: 7 GB)
        """
        others = ", ".join(f"{_named(n)}: {_gb(needs)}" for n, needs in self.needs.items() if n != self.chosen)
        cut = "the whole batch needs" if self.chosen == 1 else f"micro-batches of {self.batch // self.chosen} need"
        tried = f" ({others})" if others else ""
        return f"train.accumulate = {self.chosen}: {cut} {_gb(self.needs[self.chosen])} of {_gb(self.limit)}{tried}"


def fewest(needs: Callable[[int], int], batch: int, devices: int, limit: int) -> Fit:
    """The fewest micro-batches whose step fits: divisors of the batch, in turn from 1, until one does.

    Args:
      needs: into how many -> bytes that a step takes then.
      batch: examples in a step.
      devices: over which each micro-batch is cut evenly.
      limit: bytes there are.

    Raises:
      ConfigError: not even single examples fit.

    >>> fewest(lambda n: 100 + 800 // n, 8, 1, 300).chosen
    4
    """
    tried = {}
    for n in divisors(batch // devices):
        tried[n] = needs(n)
        if tried[n] <= limit:
            return Fit(batch, n, tried, limit)
    least = min(tried, key=lambda n: tried[n])
    smallest = batch // least
    raise ConfigError(
        f"train.accumulate: no cut of a batch of {batch} fits; with {smallest} example{'s' * (smallest > 1)} at a time "
        f"a step needs {_gb(tried[least])}, and there are {_gb(limit)}; see train.remat and train.memory_gb"
    )


def divisors(n: int) -> Iterable[int]:
    """In ascending order.

    >>> list(divisors(12))
    [1, 2, 3, 4, 6, 12]
    """
    return (d for d in range(1, n + 1) if n % d == 0)


def available(device: Any, limit_gb: float = 0.0) -> int:
    """Bytes that a step may take on a device: the limit, or nine tenths of what is free.

    Of an accelerator, what its allocator may still take; of a CPU, what the machine can give this process.

    Raises:
      ConfigError: the device does not say.
    """
    if limit_gb:
        return round(limit_gb * 1e9)
    if device.platform == "cpu":
        free = _free_here()
    else:
        statistics = device.memory_stats() or {}
        free = statistics.get("bytes_limit", 0) - statistics.get("bytes_in_use", 0)
    if free <= 0:
        raise ConfigError(f"train.memory_gb: missing; {device.device_kind} does not say how much memory there is")
    return int(_SHARE * free)


def _free_here(meminfo: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that can be had without swapping, of the machine and of the control group; 0 where nothing says so."""
    found = []
    try:
        line = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable"))
        found.append(1024 * int(line.split()[1]))
        found.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError, StopIteration):  # no Linux, or a group without a limit
        pass
    return min(found, default=0)


def _named(n):
    return "whole" if n == 1 else str(n)


def _gb(n):
    return f"{n / 1e9:.3g} GB"
