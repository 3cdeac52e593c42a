"""Weights & Biases: the run's metrics in a project there. Its own environment says the rest (WANDB_MODE, ...)."""

from typing import Any

from functrain.observe.seen import drawn
from functrain.observe.tracking import Tracker


class WandB(Tracker):
    """A W&B run for a run directory; a resumed run goes on in it.

    W&B takes the metrics of a step only until it has seen a later one, and says where a run stands: what it has is not
    sent again. Offline it cannot say; then a process has a folder of its own, RUN/wandb/offline-run-*, all with one id,
    and after a kill two of them may hold the same numbers of the same step. What a killed process had not yet handed on
    is lost to W&B (metrics.jsonl has it).
    """

    name = "wandb"
    _run: Any

    def _start(self, known):
        self._run = self._library.init(
            project=self._of, dir=str(self._out), name=self._out.name, id=known, resume="allow" if known else None
        )
        self._sent, self._floor = {}, self._run.step - 1  # not what was sent counts, but what arrived
        self._run.config.update(self._config, allow_val_change=True)  # a resumed run may be longer
        return self._run.id

    def _log(self, step, values):
        self._run.log(values, step=step)

    def _look(self, step, seen):
        super()._look(step, seen)
        found = {name: drawn(one) for name, one in seen.histograms.items()}
        shown = {name: self._library.Histogram(np_histogram=one) for name, one in found.items() if len(one[0])}
        self._run.log(shown, step=step)

    def _show(self, step, paths):
        self._run.log({name: self._library.Image(str(path)) for name, path in paths.items()}, step=step)

    def _summarize(self, results):
        self._run.summary.update(results)

    def _finish(self, complete):
        self._run.finish()
