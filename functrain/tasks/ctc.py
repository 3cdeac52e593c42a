"""Labels of a sequence without their places: connectionist temporal classification (Graves et al. 2006)."""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp

from functrain import ctc, losses
from functrain.config import ConfigError, Part, Size, configclass
from functrain.metrics import mean_of
from functrain.metrics.edits import Errors
from functrain.tasks.base import OneLoss


@configclass
class CTC(OneLoss):
    """The labels said in a sequence of frames, in order; as a metric, how many of them are read wrongly.

    A batch has x [n, frames, features], `length` [n] in frames, and y [n, most] integers, -1 after the last label. The
    model gives logits of a blank (0) and each label (1 + label) for frames that may be fewer; its `frames(length)` says
    how many.
    """

    kind: Literal["ctc"] = "ctc"
    decode: Literal["greedy", "beam"] = "greedy"
    """How evaluation reads the outputs: the likeliest of each frame, or the likeliest labels by prefix search."""
    beams: Size = 16
    """Prefixes that a search keeps after each frame."""
    zero_infinity: bool = False
    """Whether a sequence too short for its labels counts as a loss of 0; else the loss is infinite."""
    symbols: tuple[str, ...] = ()
    """What each label stands for; taken from the data."""
    model: Part = None
    learner: Part = None
    beside = ("length",)

    def sized(self, dataset) -> "CTC":
        """The task with the names of the data's labels."""
        y = dataset.train.get("y")
        if y is None or y.ndim != 2 or y.dtype.kind not in "iu" or not dataset.classes:
            raise ConfigError("task.kind: ctc needs several labels for each example (data.kind = joined_sounds)")
        return dataclasses.replace(self, symbols=tuple(dataset.found.get("class_names", self.symbols)))

    def outputs(self, dataset) -> int:
        """A logit for the blank and for each label."""
        return dataset.classes + 1

    def assemble(self, model, learner) -> "CTC":
        """The task with its model, which must say how many frames it gives."""
        if not hasattr(model, "frames"):
            raise ConfigError("model.kind: task.kind = ctc needs outputs for each frame (deepspeech)")
        return super().assemble(model, learner)

    def loss(self, outputs, batch, *, train):
        """-log p(labels) in nats an example; in evaluation the error rate of the labels too."""
        y, mask = batch["y"], losses.weighted(batch.get("mask"), batch.get("weight"))
        frames = self.model.frames(batch["length"])
        count = (y >= 0).sum(1)
        each = ctc.loss(
            outputs, jnp.where(y >= 0, y + 1, 0), lengths=frames, label_lengths=count, zero_infinity=self.zero_infinity
        )
        loss = mean_of(each, mask)
        if train:
            return loss, {}
        found = self._read(outputs, frames)
        real = batch.get("mask", jnp.ones(len(y)))
        return loss, {"errors": Errors(found, (found >= 0).sum(1), y, count, mask=real)}

    def outputs_of(self, train_state, x, **beside) -> dict[str, Any]:
        """`labels` [n, frames] of inputs x, -1 after the last."""
        length = beside.get("length", jnp.full(len(x), x.shape[1]))
        logits = super().outputs_of(train_state, x, length=length)
        return {"labels": self._read(logits, self.model.frames(length))}

    def _read(self, logits, frames):
        """Labels [n, frames], -1 after the last."""
        if self.decode == "beam":
            labels = ctc.beam(logits, frames, width=self.beams)[0][:, 0]
        else:
            labels, _ = ctc.greedy(logits, frames)
        return jnp.where(labels > 0, labels - 1, -1)

    def predict(self, outputs) -> dict[str, Any]:
        """`labels` [n, frames], -1 after the last; `readable` has what they stand for."""
        return outputs

    def readable(self, row: dict[str, Any]) -> dict[str, Any]:
        """`labels` of one example, by their names."""
        return {"labels": [self.symbols[i] if self.symbols else i for i in row["labels"] if i >= 0]}
