"""Masked language modelling (Devlin et al. 2019, section 3.1): tokens taken out of a text, from those around them."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from functrain import losses, tree
from functrain.config import ConfigError, Count, Fraction, Part, configclass
from functrain.metrics import Perplexity, mean_of
from functrain.models.base import fill
from functrain.tasks.base import OneLoss


@configclass
class MaskedLanguage(OneLoss):
    """Some tokens of a text are hidden, and told by softmax cross-entropy; perplexity and accuracy as metrics.

    Each token is chosen with the chance `share`; a chosen one becomes the mask token, a token at random, or stays. Only
    the chosen ones count. In training they are drawn anew at each step, for the whole batch at once, so that
    micro-batches see the same as the whole. In evaluation the draw of an example depends on its own tokens alone,
    whatever the batch, and is the same each time.

    The mask token is one beyond the data's, where `mask_token` names none of them.
    """

    kind: Literal["masked_language"] = "masked_language"
    share: Fraction = 0.15
    """The chance of a token to be chosen."""
    masked: Fraction = 0.8
    """Of the chosen, the share that the mask token stands for."""
    random: Fraction = 0.1
    """Of the chosen, the share that another token stands for, any of the vocabulary; the rest stay as they are."""
    tokens: Count = 0
    """How many tokens the data has; taken from the data."""
    mask_token: Count = 0
    """The number of the mask token, such as that of weights to start from; 0 is one beyond the data's tokens."""
    model: Part = None
    learner: Part = None
    beside = ("segments",)

    def __post_init__(self):
        numbers = all(isinstance(share, (int, float)) for share in (self.masked, self.random))
        if numbers and self.masked + self.random > 1:
            raise ValueError(f"random: found {self.random}; with masked = {self.masked} it is above 1")

    def sized(self, dataset) -> "MaskedLanguage":
        """The task with the number of the data's tokens."""
        if not dataset.block:
            raise ConfigError("task.kind: masked_language needs a text as data, such as data.kind = text")
        return dataclasses.replace(self, tokens=fill("task.tokens", self.tokens, dataset.classes))

    def outputs(self, dataset) -> int:
        """One logit a token of the vocabulary, the mask token among them."""
        return max(self.tokens, self._mask + 1)

    def update(self, train_state: Any, batch: Any, *, key: jax.Array) -> tuple[Any, dict[str, Any]]:
        """One step of the learner, on tokens that this step's key hides."""
        hide_key, key = jax.random.split(key)
        return super().update(train_state, self._hidden(batch, self._draw(hide_key, batch["x"].shape)), key=key)

    def full_loss(self, params, state, batch, *, key, train):
        """The loss at the hidden tokens; what is not hidden yet is by the example's own key."""
        if "chosen" not in batch:
            drawn = jax.vmap(lambda x: self._draw(key_of(x), x.shape))(batch["x"])
            batch = self._hidden(batch, drawn)
        return super().full_loss(params, state, batch, key=key, train=train)

    def loss(self, outputs, batch, *, train):
        """Cross-entropy of logits [batch, length, vocabulary] with the tokens y, in nats a chosen token."""
        loss = losses.cross_entropy(outputs, batch["y"], mask=batch["chosen"])
        if train:
            return loss, {}
        accuracy = mean_of(outputs.argmax(-1) == batch["y"], batch["chosen"])
        return loss, {"accuracy": accuracy, "perplexity": Perplexity(loss.total, loss.count)}

    def outputs_of(self, train_state: Any, x: Any) -> jax.Array:
        """The trained model's logits [n, length, vocabulary] for tokens x, hidden ones by the mask token's number."""

        def apply(params, state, batch, *, key):
            return self.model.apply(params, state, batch["x"], segments=jnp.ones_like(batch["x"]), train=False)[0]

        weights = self.learner.weights(train_state.players["model"])
        return tree.wide(self.learner.precision(apply)(weights, train_state.state, {"x": x}, key=None))

    def predict(self, outputs) -> dict[str, Any]:
        """`token` [n, length], the likeliest at each place, and its `probability`."""
        return {"token": outputs.argmax(-1), "probability": jax.nn.softmax(outputs).max(-1)}

    @property
    def _mask(self) -> int:
        return self.mask_token or self.tokens

    def _draw(self, key, shape):
        """(whether each token is chosen, what becomes of it in 0..1, another token), for tokens of a shape."""
        chosen, fate, other = jax.random.split(key, 3)
        return (
            jax.random.uniform(chosen, shape, jnp.float32) < self.share,
            jax.random.uniform(fate, shape, jnp.float32),
            jax.random.randint(other, shape, 0, self.tokens, jnp.int32),
        )

    def _hidden(self, batch, drawn):
        """The batch with tokens hidden in x, the true ones as y, and `chosen` [n, length], 1 for those that count."""
        (chosen, fate, other), x = drawn, batch["x"]
        stands = jnp.where(fate < self.masked, self._mask, jnp.where(fate < self.masked + self.random, other, x))
        real = jnp.ones(x.shape, jnp.float32)
        if "mask" in batch:
            real = losses.weighted(real, batch["mask"]) if batch["mask"].ndim == 1 else batch["mask"]
        segments = jnp.ones_like(x) if batch.get("mask", x[:, 0]).ndim == 1 else (real != 0).astype(x.dtype)
        given = {"x": jnp.where(chosen, stands, x), "y": x, "chosen": chosen * real}
        return batch | {"segments": segments} | given


def key_of(tokens: jax.Array) -> jax.Array:
    """A random key that depends on a sequence of tokens [length] alone: by sum_i (t_i + 1) 2654435761^i, modulo 2^32.

    >>> a, b = (jax.random.key_data(key_of(jnp.array(x))).tolist() for x in ([1, 2], [2, 1]))
    >>> a == b
    False
    """
    powers = jnp.cumprod(jnp.full(tokens.shape, 2654435761, jnp.uint32))
    return jax.random.fold_in(jax.random.key(0), jnp.sum((tokens + 1).astype(jnp.uint32) * powers, dtype=jnp.uint32))
