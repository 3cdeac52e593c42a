"""Where a run's numbers go: a sink takes the scalars of one step and split. All sinks are given the same."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO


class Sink(Protocol):
    """Something that keeps or shows metrics."""

    def scalars(self, step: int, split: str, values: dict[str, float]) -> None:
        """The metrics of a split after `step` steps."""
        ...

    def pictures(self, step: int, paths: Mapping[str, Path]) -> None:
        """Pictures drawn after `step` steps, PNG files by name."""
        ...

    def flush(self) -> None:
        """Make what was given safe."""
        ...

    def close(self) -> None:
        """The run is over."""
        ...


class JSONLines:
    """metrics.jsonl: a line for each step and split, {"step", "split", "loss", metrics by name}.

    A number that is not finite is null, so that every line is JSON. Nothing in it depends on time or place: two runs
    of one config write the same bytes. Norms by parameter go to TensorBoard alone.
    """

    def __init__(self, path: Path, resume_at: int | None = None):
        """Start the file, or cut it after step `resume_at`: what follows will be written again."""
        if resume_at is not None:
            kept = [line for line in history(path) if line["step"] <= resume_at]
            partial = path.with_suffix(".partial")
            partial.write_text("".join(_line(entry) for entry in kept))
            partial.replace(path)
        self._file: TextIO = open(path, "a")  # noqa: SIM115 - closed by close()

    def scalars(self, step: int, split: str, values: dict[str, float]) -> None:
        """Write a line."""
        short = {n: value if math.isfinite(value) else None for n, value in values.items() if not by_parameter(n)}
        if short:
            loss = {"loss": short.pop("loss")} if "loss" in short else {}
            self._file.write(_line({"step": step, "split": split} | loss | dict(sorted(short.items()))))

    def pictures(self, step: int, paths: Mapping[str, Path]) -> None:
        """They lie in figures/."""

    def flush(self) -> None:
        """To the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def by_parameter(name: str) -> bool:
    """Whether a metric is the norm of one parameter, such as gradient_norm/layer0/kernel."""
    return "_norm/" in name


def history(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl that are whole; a killed run may have left half a line at the end."""
    entries = []
    if path.exists():
        for line in path.read_text().split("\n"):
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and "step" in entry and "split" in entry:
                entries.append(entry)
    return entries


def _line(entry) -> str:
    return json.dumps(entry, allow_nan=False) + "\n"
