"""What the trackers of experiments (W&B, MLflow) have in common: one run there for one run directory, and no harm.

A tracker keeps RUN/<name>/run.json: {"id": of the run there, "of": its project, "sent": {what: last step}}. A resumed
run goes on with that id, and what a killed run had sent past its checkpoint is not sent again: it would be the same.
"""

import importlib
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from functrain import config as configs
from functrain.config import ConfigError
from functrain.observe.seen import Seen


def library(name: str) -> Any:
    """The tracker's library, imported late.

    Raises:
      ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ConfigError(f"observe.{name}: not installed here; pip install 'functrain[{name}]'") from None


class Tracker(ABC):
    """A sink that sends to a tracker. A subclass gives

    _start(id) -> id       begin a run there, or go on with the one of this id; the config is sent with a new one
    _log(step, values)     named metrics of a step
    _look(step, seen)      what is seen of a step by parameter; by itself the finite numbers of it, no histograms
    _show(step, paths)     named pictures of a step
    _summarize(results)    what came out
    _finish(complete)      the end; complete where there are results

    Whatever fails there is one line on standard error; after it, nothing more is sent and training goes on.
    """

    name: str

    def __init__(self, of: str, out: Path, config: Any, resumed_at: int | None = None):
        """
        Args:
          of: the project or experiment in the tracker.
          out: the run directory.
          config: of the run.
          resumed_at: the step of the checkpoint, where the run goes on; None begins anew.

        Raises:
          ConfigError: the library is not installed.
        """
        self._library = library(self.name)
        self._of, self._out, self._config = of, out, configs.flatten(config)
        self._failed, self._complete, self._floor = False, False, -1
        self._file = out / self.name / "run.json"
        record = _read(self._file) if resumed_at is not None else {}
        record = record if record.get("of") == of else {}
        self._sent: dict[str, int] = record.get("sent", {})
        self._id = self._attempt(lambda: self._start(record.get("id")))
        self._keep()

    def scalars(self, step: int, split: str, values: dict[str, float]) -> None:
        """`train/loss`, `validation/accuracy` and the like."""
        named = {f"{split}/{name}": float(value) for name, value in values.items()}
        self._send(split, step, lambda: self._log(step, named))

    def layers(self, step: int, seen: Seen) -> None:
        """What is seen by parameter, under its own names."""
        self._send("norms", step, lambda: self._look(step, seen))

    def pictures(self, step: int, paths: Mapping[str, Path]) -> None:
        """PNG files by name."""
        self._send("pictures", step, lambda: self._show(step, paths))

    def _send(self, what: str, step: int, act: Callable[[], Any]) -> None:
        """What was not sent before."""
        if self._failed or step <= max(self._floor, self._sent.get(what, -1)):
            return
        self._attempt(act)
        self._sent[what] = step
        self._keep()

    def hyperparameters(self, config: dict[str, Any], results: dict[str, float]) -> None:
        """The results, as the run's summary; the config stands there from the start."""
        self._attempt(lambda: self._summarize({name: float(value) for name, value in results.items()}))
        self._complete = True

    def flush(self) -> None:  # noqa: B027 - nothing to do is right for most
        """Nothing is held back."""

    def close(self) -> None:
        """End the run there: complete if there were results, else stopped."""
        self._attempt(lambda: self._finish(self._complete))

    def _attempt(self, act: Callable[[], Any]) -> Any:
        if self._failed:
            return None
        try:
            return act()
        except Exception as error:  # whatever it is, it is no reason to lose a training run
            self._failed = True
            reason = (str(error).strip().splitlines() or [""])[0][:200]
            what = f"observe.{self.name}: {type(error).__name__}: {reason}"
            print(f"functrain: warning: {what}; training goes on without it", file=sys.stderr)

    def _keep(self) -> None:
        """Write run.json whole: a killed process leaves the one before."""

        def write():
            self._file.parent.mkdir(parents=True, exist_ok=True)
            partial = self._file.with_suffix(".partial")
            partial.write_text(json.dumps({"id": self._id, "of": self._of, "sent": self._sent}) + "\n")
            partial.replace(self._file)

        self._attempt(write)

    def _look(self, step: int, seen: Seen) -> None:
        self._log(step, {name: float(value) for name, value in seen.numbers.items() if np.isfinite(value)})

    # -- of each tracker --------------------------------------------------------------------------

    @abstractmethod
    def _start(self, known: str | None) -> str: ...

    @abstractmethod
    def _log(self, step: int, values: dict[str, float]) -> None: ...

    @abstractmethod
    def _show(self, step: int, paths: Mapping[str, Path]) -> None: ...

    @abstractmethod
    def _summarize(self, results: dict[str, float]) -> None: ...

    @abstractmethod
    def _finish(self, complete: bool) -> None: ...


def _read(path: Path) -> dict[str, Any]:
    """The record; empty where there is none that can be read."""
    try:
        record = json.loads(path.read_text())
        sent = record.get("sent", {})
        sound = isinstance(record.get("id"), str) and all(isinstance(step, int) for step in sent.values())
        return record if sound else {}
    except (OSError, ValueError, AttributeError):
        return {}
