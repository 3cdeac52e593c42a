"""Where a run's numbers go: a sink takes the scalars of one step and split. All sinks are given the same."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO, runtime_checkable

from functrain.metrics import finite
from functrain.observe.seen import Seen, compact


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


@runtime_checkable
class LayerSink(Sink, Protocol):
    """A sink that keeps what is seen by parameter as well."""

    def layers(self, step: int, seen: Seen) -> None:
        """What was seen of the step that follows `step` steps, on the host."""
        ...


class JSONLines:
    """metrics.jsonl: a line for each step and split, {"step", "split", "loss", metrics by name}.

    A number that is not finite is null, so that every line is JSON. Nothing in it depends on time or place: two runs
    of one config write the same bytes.
    """

    def __init__(self, path: Path, resume_at: int | None = None):
        """Start the file, or cut it after step `resume_at`: what follows will be written again."""
        if resume_at is not None:
            _cut(path, history(path), resume_at)
        self._file: TextIO = open(path, "a")  # noqa: SIM115 - closed by close()

    def scalars(self, step: int, split: str, values: dict[str, float]) -> None:
        """Write a line."""
        short = finite(values)
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


class LayerLines:
    """layers.jsonl: a line for each step that was looked at, {"step"} and what `seen.compact` gives.

    As with metrics.jsonl, two runs of one config write the same bytes, and a resumed run cuts what it writes again.
    There is no file before there is a line.
    """

    def __init__(self, path: Path, resume_at: int | None = None):
        """Go on after step `resume_at`, or begin."""
        self._path = path
        self._file: TextIO | None = None
        if resume_at is not None and path.exists():
            _cut(path, layer_history(path), resume_at)

    def layers(self, step: int, seen: Seen) -> None:
        """Write a line."""
        if self._file is None:
            self._file = open(self._path, "a")  # noqa: SIM115 - closed by close()
        self._file.write(_line({"step": step} | compact(seen)))

    def scalars(self, step: int, split: str, values: dict[str, float]) -> None:
        """They stand in metrics.jsonl."""

    def pictures(self, step: int, paths: Mapping[str, Path]) -> None:
        """They lie in figures/."""

    def flush(self) -> None:
        """To the disk."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def history(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl that are whole; a killed run may have left half a line at the end."""
    return _entries(path, "step", "split")


def layer_history(path: Path) -> list[dict[str, Any]]:
    """The lines of a layers.jsonl that are whole; `seen.expanded` says what they stand for."""
    return _entries(path, "step", "numbers", "histograms")


def _entries(path, *keys):
    entries = []
    if path.exists():
        for line in path.read_text().split("\n"):
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and all(key in entry for key in keys):
                entries.append(entry)
    return entries


def _cut(path, entries, step):
    """Leave the entries up to a step in the file."""
    partial = path.with_suffix(".partial")
    partial.write_text("".join(_line(entry) for entry in entries if entry["step"] <= step))
    partial.replace(path)


def _line(entry) -> str:
    return json.dumps(entry, allow_nan=False) + "\n"
