"""Translation: a sentence from a sentence, by an encoder and a decoder (Sutskever et al. 2014; Vaswani et al. 2017)."""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
from jax.tree_util import Partial

from functrain import losses
from functrain.config import ConfigError, Count, Fraction, NonNegative, Part, Size, configclass
from functrain.data.tokens import BEGIN, END, PADDING, Sentences
from functrain.generation import Sampling, beam_search, generate
from functrain.metrics import Perplexity, mean_of
from functrain.metrics.text import library, texts_of
from functrain.tasks.base import OneLoss


@configclass
class Translation(OneLoss):
    """Each token of a translation from those before it and the source, by softmax cross-entropy; BLEU and chrF.

    A batch has the source x [n, S] and the translation y [n, T]: begin, its tokens, end, filled up with 0. The decoder
    is given y without its last place and is to tell y without its first (teacher forcing); padding does not count.

    In evaluation sentences are translated too, from their sources alone, and scored against y as text by sacrebleu
    (extra `scores`).
    """

    kind: Literal["translation"] = "translation"
    label_smoothing: Fraction = 0.0
    """Share of each target spread evenly over the vocabulary, in training; 0 is off."""
    decode: Literal["greedy", "beam", "none"] = "greedy"
    """How evaluation translates: the likeliest token at each place, a beam search, or not at all."""
    beams: Size = 4
    """Translations that a beam search keeps at each place."""
    length_penalty: NonNegative = 0.6
    """The exponent of the length by which a beam search divides log-probabilities; 0 favours short translations."""
    longest: Count = 0
    """Tokens of a translation at most, its end among them; 0 is the longest of the data."""
    tokenizer: str = ""
    """The tokens' text, as JSON of the library tokenizers; taken from the data."""
    model: Part = None
    learner: Part = None

    def sized(self, dataset) -> "Translation":
        """The task with the text of the data's tokens, and how long a translation may be."""
        tokenizer = dataset.found.get("tokenizer", "")
        if dataset.block or not tokenizer or getattr(dataset.train.get("y"), "ndim", 0) != 2:
            raise ConfigError("task.kind: translation needs pairs of sentences (data.kind = parallel_text)")
        if self.decode != "none":
            library()  # now rather than after an epoch
        longest = max(part["y"].shape[1] for part in (dataset.train, dataset.validation, dataset.test) if part) - 1
        return dataclasses.replace(self, tokenizer=tokenizer, longest=self.longest or longest)

    def outputs(self, dataset) -> int:
        """One logit a token of the vocabulary."""
        return dataset.classes

    def assemble(self, model, learner) -> "Translation":
        """The task with its model, which must encode and decode."""
        if not all(hasattr(model, name) for name in ("encode", "decode", "remember")):
            raise ConfigError("model.kind: task.kind = translation needs an encoder and a decoder (transformer)")
        room = getattr(model, "room", None)
        if room is not None and room < self.longest:
            raise ConfigError(
                f"model.longest: room for {room} tokens; expected at least {self.longest}, as a translation may have"
            )
        return super().assemble(model, learner)

    def full_loss(self, params, state, batch, *, key, train):
        """`loss` of the logits of each token of y but the first."""
        self._check_room(batch["x"])
        logits, state = self.model.apply(params, state, batch["x"], batch["y"][:, :-1], key=key, train=train)
        loss, metrics = self.loss(logits, batch, train=train)
        return loss, state, metrics

    def loss(self, outputs, batch, *, train):
        """Cross-entropy of logits [batch, T - 1, vocabulary] with y [batch, T] but its first, in nats a token."""
        tokens = batch["y"][:, 1:]
        mask = losses.weighted(batch.get("mask"), batch.get("weight"))
        mask = losses.weighted((tokens != PADDING).astype(jnp.float32), mask)
        loss = losses.cross_entropy(outputs, tokens, mask=mask, smoothing=self.label_smoothing if train else 0.0)
        if train:  # the largest of a whole vocabulary at each place takes its time
            return loss, {}
        accuracy = mean_of(outputs.argmax(-1) == tokens, mask)
        return loss, {"accuracy": accuracy, "perplexity": Perplexity(loss.total, loss.count)}

    def evaluate(self, train_state, batch, *, key):
        """Loss, perplexity, accuracy, and the translations with what they should be."""
        metrics = super().evaluate(train_state, batch, key=key)
        if self.decode == "none":
            return metrics
        found = self.outputs_of(train_state, batch["x"])["tokens"]
        mask = batch.get("mask", jnp.ones(len(found)))
        return metrics | {"texts": texts_of(Sentences(self.tokenizer))(found, batch["y"], mask=mask)}

    def outputs_of(self, train_state: Any, x: Any) -> dict[str, Any]:
        """The trained model's translations of sources x [n, S]: `tokens` [n, longest], 0 after the end."""

        def translate(params, state, batch, *, key):
            return self._translate(params, batch["x"])

        weights = self.learner.weights(train_state.players["model"])
        return {"tokens": self.learner.precision(translate)(weights, train_state.state, {"x": x}, key=None)}

    def _translate(self, params, x):
        self._check_room(x)
        state = self.model.remember(self.model.encode(params, x), len(x), self.longest)
        advance, begin = Partial(self.model.decode, params), jnp.full((len(x), 1), BEGIN)
        given: dict[str, Any] = {"length": self.longest, "end": END, "padding": PADDING}
        if self.decode != "beam":
            return generate(advance, state, begin, sampling=Sampling(temperature=0.0), **given)[0]
        found, _ = beam_search(advance, state, begin, beams=self.beams, length_penalty=self.length_penalty, **given)
        return found[:, 0]

    def _check_room(self, x):
        room = getattr(self.model, "room", None)
        if room is not None and x.shape[1] > room:
            raise ConfigError(f"model.longest: room for {room} tokens; found a source of {x.shape[1]}")

    def predict(self, outputs) -> dict[str, Any]:
        """`tokens` [n, longest] of each translation; `readable` has their text."""
        return outputs

    def readable(self, row: dict[str, Any]) -> dict[str, Any]:
        """`translation`, the text of one example's prediction on the host."""
        return {"translation": Sentences(self.tokenizer).decode(row["tokens"])}
