"""Checkpoints: Orbax writes the arrays; a manifest of digests says that they are what was written.

    checkpoints/00001000/state/         the arrays, by Orbax
    checkpoints/00001000/manifest.json  step, validation metrics, SHA-256 of every file beside it
    checkpoints/constant/               where some never change, those, once, in the same form

A checkpoint is written under another name and renamed when whole. Before one is used its digests are checked;
a damaged one is named and passed over for the next older. What is loaded are arrays, never code.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from functrain import tree
from functrain.config import Count, Size, configclass

Arrays = dict[str, np.ndarray]


@configclass
class Checkpoint:
    """[checkpoint]: when the state is saved. The best and the last step always are."""

    every: Count = 0
    """Steps between checkpoints; 0 is a tenth of the run."""
    keep: Size = 2
    """How many of the newest are kept, beside the best."""


class Store(Protocol):
    """What the loop needs of checkpoints."""

    def save(self, step: int, payload: Any, validation: dict[str, float]) -> None:
        """Keep the payload (a pytree) of a step; `validation` may be empty."""
        ...


@dataclass
class InMemory:
    """The arrays of the best checkpoint, on the host: for a run without a directory."""

    monitor: str
    mode: str
    best: tuple[int, Arrays] | None = None
    value: float = field(default=np.nan)

    def save(self, step: int, payload: Any, validation: dict[str, float]) -> None:
        """Keep it if it is the best so far."""
        value = validation.get(self.monitor)
        if value is not None and (self.best is None or better(value, self.value, self.mode)):
            self.best, self.value = (step, to_arrays(payload)), value


def better(value: float, than: float, mode: str) -> bool:
    """Whether a monitored value improves on another; nan never does, and anything improves on nan.

    >>> better(0.5, 0.6, "min"), better(np.nan, 0.6, "min"), better(0.1, np.nan, "max")
    (True, False, True)
    """
    if np.isnan(value) or np.isnan(than):
        return not np.isnan(value)
    return value < than if mode == "min" else value > than


@dataclass
class Directory:
    """Checkpoints in a folder: the newest `keep`, and the best by the monitored validation metric.

    constant: a pattern of the paths of arrays that never change (`re.match`); "" is none.
    """

    folder: Path
    keep: int = 2
    monitor: str = ""
    mode: str = "min"
    constant: str = ""
    _writer: ThreadPoolExecutor | None = None
    _pending: Future | None = None

    def save(self, step: int, payload: Any, validation: dict[str, float]) -> None:
        """Copy the payload to the host and write it in the background; waits for the write before it.

        Raises:
          OSError: of the write before it (a full disk).
        """
        self.wait()
        arrays, constant = to_arrays(payload, self._is_constant), None
        if self.constant and not (self.folder / "constant").exists():
            constant = to_arrays(payload, lambda path: not self._is_constant(path))
        self._writer = self._writer or ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending = self._writer.submit(self._write, step, arrays, validation, constant)

    def wait(self) -> None:
        """Until what was saved is on disk."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait, and end the background thread."""
        self.wait()
        if self._writer is not None:
            self._writer.shutdown()
            self._writer = None

    def steps(self) -> list[int]:
        """The steps there are checkpoints of, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(p.name) for p in self.folder.iterdir() if re.fullmatch(r"\d{8}", p.name))

    def best(self) -> int | None:
        """The step with the best monitored metric, the earliest of equals; None where nothing was evaluated."""
        best = None
        for step in self.steps():
            value = (_manifest(self._place(step)) or {}).get("validation", {}).get(self.monitor)
            value = np.nan if value is None else value
            if not np.isnan(value) and (best is None or better(value, best[1], self.mode)):
                best = step, value
        return best and best[0]

    def load(
        self, step: int | None = None, report: Callable[[str], None] = lambda line: None
    ) -> tuple[int, Arrays] | None:
        """The arrays of a step, or of the newest sound one; None if none is.

        report: told, in a line each, of damaged ones that were passed over.

        Raises:
          OSError: the step asked for is missing or damaged.
        """
        constant = self.folder / "constant"
        for candidate in [step] if step is not None else reversed(self.steps()):
            place = self._place(candidate)
            fault = damage(place)
            if fault is None and constant.exists() and (fault := damage(constant)) is not None:
                fault = f"../constant: {fault}"
            if fault is None:
                return candidate, _read(place / "state") | (_read(constant / "state") if constant.exists() else {})
            if step is not None:
                raise OSError(f"{place}: {fault}")
            report(f"checkpoint passed over: {place}: {fault}")
        return None

    def _place(self, step) -> Path:
        return self.folder / f"{step:08d}"

    def _is_constant(self, path: str) -> bool:
        return bool(self.constant) and re.match(self.constant, path) is not None

    def _write(self, step, arrays, validation, constant):
        place = self._place(step)
        if place.exists():
            return  # of the same step, and so the same state
        if constant is not None:
            _write_folder(self.folder / "constant", constant, {"step": step, "validation": {}})
        # nan is no JSON; a metric that was not finite is left out.
        finite = {k: v for k, v in validation.items() if np.isfinite(v)}
        _write_folder(place, arrays, {"step": step, "validation": finite})
        best = self.best()
        for old in self.steps()[: -self.keep]:
            if old != best:
                gone = self._place(old).with_suffix(".deleted")  # renamed first: half a checkpoint is never seen
                os.rename(self._place(old), gone)
                shutil.rmtree(gone)


def _write_folder(place: Path, arrays: Arrays, manifest: dict[str, Any]) -> None:
    """Arrays and their manifest, there when both are whole."""
    partial = place.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _checkpointer().save((partial / "state").absolute(), arrays)
    digests = {str(p.relative_to(partial)): _digest(p) for p in sorted(partial.rglob("*")) if p.is_file()}
    _write_through(partial / "manifest.json", manifest | {"sha256": digests})
    os.rename(partial, place)
    _sync(place.parent)


def to_arrays(payload: Any, skip: Callable[[str], bool] = lambda path: False) -> Arrays:
    """Path -> array on the host, for any pytree; random keys by their data. One transfer.

    Left out are arrays of no elements (Orbax refuses them; `from_arrays` makes them again) and those that `skip` names.
    """
    raw = {
        path: jax.random.key_data(x) if _is_key(x) else x
        for path, x in tree.by_path(payload).items()
        if x.size and not skip(path)
    }
    return {path: np.asarray(x) for path, x in jax.device_get(raw).items()}


def from_arrays(arrays: Arrays, like: Any) -> Any:
    """The pytree that `to_arrays` took apart; `like` has its structure, shapes and dtypes.

    Raises:
      ValueError: an array is missing, left over, or of another shape or dtype: the checkpoint is of another config.
    """
    wanted = {path: x for path, x in tree.by_path(like).items() if x.size}
    if missing := sorted(wanted.keys() ^ arrays.keys()):
        raise ValueError(f"the checkpoint and the config differ in: {', '.join(missing[:5])}")

    def place(path, x):
        if not x.size:
            return np.zeros(x.shape, x.dtype)
        array = arrays[path]
        if _is_key(x):
            return jax.random.wrap_key_data(jnp.asarray(array))
        if array.shape != x.shape or array.dtype != x.dtype:
            raise ValueError(f"{path}: {array.dtype}{array.shape} in the checkpoint, {x.dtype}{x.shape} in the config")
        return array

    return tree.map_by_path(place, like)


def damage(place: Path) -> str | None:
    """What is wrong with a checkpoint's files; None where every one is what was written."""
    manifest = _manifest(place)
    if manifest is None:
        return "no manifest that can be read"
    found = {str(p.relative_to(place)) for p in place.rglob("*") if p.is_file()} - {"manifest.json"}
    if strange := sorted(found ^ manifest["sha256"].keys()):
        return f"{strange[0]} is missing or was not written by this run"
    for name, digest in manifest["sha256"].items():
        if _digest(place / name) != digest:
            return f"{name} is not what was written"
    return None


def _is_key(x) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _checkpointer():
    import orbax.checkpoint  # late: a third of a second, and only a run that saves needs it

    return orbax.checkpoint.PyTreeCheckpointer()


def _read(place: Path) -> Arrays:
    import orbax.checkpoint

    checkpointer = _checkpointer()
    names = checkpointer.metadata(place.absolute()).item_metadata.tree  # pyright: ignore
    as_numpy = {name: orbax.checkpoint.RestoreArgs(restore_type=np.ndarray) for name in names}
    return checkpointer.restore(place.absolute(), restore_args=as_numpy)


def _manifest(place: Path) -> dict | None:
    try:
        manifest = json.loads((place / "manifest.json").read_text())
        return manifest if isinstance(manifest["sha256"], dict) and isinstance(manifest["validation"], dict) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_through(path: Path, data: Any) -> None:
    with open(path, "w") as file:
        json.dump(data, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
