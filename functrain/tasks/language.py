"""Language modelling: each token from those before it."""

from typing import Any, Literal

import jax

from functrain import losses
from functrain.config import ConfigError, Fraction, Part, configclass, off
from functrain.metrics import Perplexity, mean_of
from functrain.tasks.base import OneLoss


@configclass
class Language(OneLoss):
    """The next token at every place of a sequence, by softmax cross-entropy; perplexity and accuracy as metrics."""

    kind: Literal["language"] = "language"
    label_smoothing: Fraction = 0.0
    """Share of each target spread evenly over the vocabulary, in training; 0 is off."""
    model: Part = None
    learner: Part = None
    beside = ("segments",)

    def outputs(self, dataset) -> int:
        """One logit a token of the vocabulary."""
        if not dataset.block and "segments" not in dataset.train:
            raise ConfigError("task.kind: language needs a text as data, such as data.kind = text or python_source")
        return dataset.classes

    @property
    def likelihood(self):
        """Tokens by softmax, where the loss is their plain cross-entropy."""
        return "categorical" if off(self.label_smoothing) else ""

    def places(self, dataset) -> int:
        """One at each token of a row."""
        return dataset.inputs[0]

    def loss(self, outputs, batch, *, train):
        """Cross-entropy of logits [batch, length, vocabulary] with the tokens y [batch, length], in nats a token."""
        tokens, mask = batch["y"], batch.get("mask")
        loss = losses.cross_entropy(outputs, tokens, mask=mask, smoothing=self.label_smoothing if train else 0.0)
        if train:  # the loss says it all, and the largest of a whole vocabulary at each place takes its time
            return loss, {}
        accuracy = mean_of(outputs.argmax(-1) == tokens, mask)
        return loss, {"accuracy": accuracy, "perplexity": Perplexity(loss.total, loss.count)}

    def predict(self, outputs) -> dict[str, Any]:
        """`token` [n], the likeliest after each sequence, and its `probability`."""
        last = outputs[:, -1]
        return {"token": last.argmax(-1), "probability": jax.nn.softmax(last).max(-1)}
