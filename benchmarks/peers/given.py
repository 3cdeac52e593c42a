"""What a peer is given, and the clock: NumPy alone, for every peer imports it.

A peer is a module with `build(given, name) -> runner`, and a runner has two methods:

  after(n) -> float         trains n steps from the start; the loss that step n + 1 then finds
  run(n) -> (wall, CPU)     trains n more steps; seconds of the training, or None where the peer does not know
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Given:
    """A work as a file has it.

    config: the config that functrain trains, everything written out.
    path: of that config.
    checked: after how many steps the losses are compared; peers that dispatch several steps at once take so many.
    order: [steps, batch], which examples each step sees, or where in the text each row begins.
    data: {"x", "y"} of images of bytes, or {"tokens"}.
    params, state: where training starts, by path: {"layer0/kernel": [inputs, outputs], ...}.
    """

    config: dict[str, Any]
    path: str
    checked: int
    classes: int
    order: np.ndarray
    data: dict[str, np.ndarray]
    params: dict[str, np.ndarray]
    state: dict[str, np.ndarray]

    @property
    def model(self) -> dict[str, Any]:
        """The model's settings."""
        return self.config["model"]

    @property
    def block(self) -> int:
        """Tokens in a row; 0 where the data are images."""
        return self.config["data"].get("block") or 0

    def rows(self, at: int, steps: int) -> Iterator[np.ndarray]:
        """The order of the steps from `at` on; after the last it begins again."""
        return (self.order[i % len(self.order)] for i in range(at, at + steps))

    @property
    def normal(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(centre, spread) of images in 0..1, by channel; None where they are taken as they are."""
        data = self.config["data"]
        return (np.float32(data["centre"]), np.float32(data["spread"])) if data.get("spread") else None

    def units(self, x: Any) -> Any:
        """Images of bytes, by now floats, as the model is to see them: for NumPy and for jax."""
        x = x / 255
        return x if self.normal is None else (x - self.normal[0]) / self.normal[1]


def read(path: str) -> Given:
    """The work in a file that `works.export` wrote."""
    with np.load(path) as file:
        parts: dict[str, dict[str, np.ndarray]] = {"data": {}, "params": {}, "state": {}}
        for name in file.files:
            if "/" in name:
                part, rest = name.split("/", 1)
                parts[part][rest] = file[name]
        return Given(**json.loads(str(file["settings"])), order=file["order"], **parts)


def now() -> np.ndarray:
    """(wall, CPU) seconds since some moment; the CPU's are those of every thread of the process."""
    return np.array([time.perf_counter(), time.process_time()])


def timed(f: Callable[[], Any]) -> tuple[np.ndarray, Any]:
    """((wall, CPU) seconds, what f gave)."""
    began = now()
    result = f()
    return now() - began, result
