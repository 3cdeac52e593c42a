"""Language modelling: each token from those before it."""

from typing import Any, Literal

import jax

from functrain import losses, losses_blocked
from functrain.config import ConfigError, Count, Fraction, Part, configclass, off
from functrain.metrics import Perplexity, mean_of
from functrain.tasks.base import OneLoss, beside


@configclass
class Language(OneLoss):
    """The next token at every place of a sequence, by softmax cross-entropy; perplexity and accuracy as metrics."""

    kind: Literal["language"] = "language"
    label_smoothing: Fraction = 0.0
    """Share of each target spread evenly over the vocabulary, in training; 0 is off."""
    vocabulary_block: Count = 0
    """At most so many of a token's logits are held at once (such as 8192): less memory for a large vocabulary, and one
    product of its size more; the loss is the same. 0 holds all of them. See functrain.losses_blocked."""
    model: Part = None
    learner: Part = None
    beside = ("segments",)

    def outputs(self, dataset) -> int:
        """One logit a token of the vocabulary."""
        if not dataset.block and "segments" not in dataset.train:
            raise ConfigError("task.kind: language needs a text as data, such as data.kind = text or python_source")
        return dataset.classes

    def assemble(self, model, learner):
        """The task with its model and learner."""
        if self.vocabulary_block and not hasattr(model, "output_table"):
            kind = getattr(model, "kind", type(model).__name__)
            raise ConfigError(f"task.vocabulary_block: a model of kind {kind!r} gives logits alone; leave the key out")
        return super().assemble(model, learner)

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
        return loss, _metrics(loss, outputs.argmax(-1) == tokens, mask)

    def scored(self, *, train):
        """The model applied to a batch's x, and `loss` of what it gives; by blocks of the vocabulary, where asked."""
        if not self.vocabulary_block:
            return super().scored(train=train)

        def by_blocks(params, state, batch, *, key):
            given = beside(self, batch)
            hidden, state = self.model.features(params, state, batch["x"], **given, key=key, train=train)
            with jax.named_scope("loss"):
                smoothing, mask = self.label_smoothing if train else 0.0, batch.get("mask")
                settings = {"smoothing": smoothing, "block": self.vocabulary_block}
                table, bias = self.model.output_table(params)
                each, likeliest = losses_blocked.by_tokens(hidden, table, batch["y"], bias=bias, **settings)
                loss = mean_of(each, mask)
                return loss, state, {} if train else _metrics(loss, likeliest == batch["y"], mask)

        return by_blocks

    def predict(self, outputs) -> dict[str, Any]:
        """`token` [n], the likeliest after each sequence, and its `probability`."""
        last = outputs[:, -1]
        return {"token": last.argmax(-1), "probability": jax.nn.softmax(last).max(-1)}


def _metrics(loss, right, mask):
    return {"accuracy": mean_of(right, mask), "perplexity": Perplexity(loss.total, loss.count)}
