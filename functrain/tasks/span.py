"""Extractive question answering (Rajpurkar et al. 2016; the head of Devlin et al. 2019, section 4.2)."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from functrain import losses, tree
from functrain.config import ConfigError, Count, Part, Size, configclass
from functrain.metrics import Mean, mean_of
from functrain.models.base import fill
from functrain.tasks.base import OneLoss

_NEVER = -1e9
"""A logit of what is no place for an answer: its probability is 0 in every dtype, its sums finite."""


@configclass
class Span(OneLoss):
    """Where in a text the answer is: the places of its first and its last token; exact match and F1 as metrics.

    A batch has tokens x [n, length], y [n, 2] (first, last; both included), and beside x `segments` (0 is padding)
    and `types` (1 is the text, 0 the question). An answer is in the text, or at place 0, which stands for none; what
    is padding, or the question, is no place for one. The loss is the mean of the cross-entropies of both ends. Where
    y is negative, the answer is not in x: that counts as wrong, and not in the loss.

    exact_match: both ends are right. f1: of the places of the answer and of the true one.
    """

    kind: Literal["span"] = "span"
    longest: Size = 30
    """Tokens in an answer, at most; in prediction and in the metrics, not in the loss."""
    separator: Count = 0
    """The token after the question and after the text, by which types are told where there are none beside x; taken
    from the data, 0 is none."""
    model: Part = None
    learner: Part = None
    beside = ("segments", "types")

    def sized(self, dataset) -> "Span":
        """The task with the data's separator."""
        y = dataset.train.get("y")
        if dataset.block or y is None or y.shape[1:] != (2,) or y.dtype.kind not in "iu" or len(dataset.inputs) != 1:
            raise ConfigError(
                "task.kind: span needs tokens x [n, length] and integers y [n, 2], such as data.kind = questions"
            )
        if "separator" not in dataset.found:
            return self
        return dataclasses.replace(self, separator=fill("task.separator", self.separator, dataset.found["separator"]))

    def outputs(self, dataset) -> int:
        """Start and end, at each token."""
        return 2

    def places(self, dataset) -> int:
        """As many as an example has tokens."""
        return dataset.inputs[0]

    def loss(self, outputs, batch, *, train):
        """The mean of both ends' cross-entropies, of logits [n, length, 2] with places y [n, 2]."""
        y, mask = batch["y"], batch.get("mask")
        logits = _at(outputs, answerable(batch["x"], batch.get("segments"), batch.get("types")))
        there = (y >= 0).all(-1)
        counts = losses.weighted(mask, there.astype(jnp.float32))
        counts = losses.weighted(counts, batch.get("weight"))
        start, end = (losses.cross_entropy(logits[..., i], jnp.maximum(y[:, i], 0), mask=counts) for i in (0, 1))
        loss = Mean((start.total + end.total) / 2, start.count)
        if train:
            return loss, {}
        found = best(logits, self.longest)
        first, last = found["start"], found["end"]
        exact = (first == y[:, 0]) & (last == y[:, 1])
        both = jnp.maximum(jnp.minimum(last, y[:, 1]) - jnp.maximum(first, y[:, 0]) + 1, 0)
        f1 = 2 * both / (last - first + y[:, 1] - y[:, 0] + 2)
        return loss, {"exact_match": mean_of(exact, mask), "f1": mean_of(f1, mask)}

    def outputs_of(self, train_state: Any, x: Any) -> jax.Array:
        """The trained model's logits [n, length, 2] for tokens x; types are by the separator, where there is one."""
        beside = {}
        if self.separator:
            beside = {"types": types_of(x, self.separator)}

        def apply(params, state, batch, *, key):
            return self.model.apply(params, state, batch["x"], **beside, train=False)[0]

        weights = self.learner.weights(train_state.players["model"])
        logits = tree.wide(self.learner.precision(apply)(weights, train_state.state, {"x": x}, key=None))
        return _at(logits, answerable(x, None, beside.get("types")))

    def predict(self, outputs) -> dict[str, Any]:
        """`start` and `end` [n], the likeliest places (0 and 0 for none), and `score`, their joint probability."""
        return best(outputs, self.longest)


def types_of(x: jax.Array, separator: int) -> jax.Array:
    """1 after the first separator up to the second, that included, else 0: question and text, of [batch, length].

    >>> types_of(jnp.array([[2, 7, 3, 8, 9, 3, 0]]), 3).tolist()
    [[0, 0, 0, 1, 1, 1, 0]]
    """
    before = jnp.cumsum(x == separator, -1) - (x == separator)
    return (before == 1).astype(jnp.int32)


def answerable(x: jax.Array, segments: jax.Array | None, types: jax.Array | None) -> jax.Array:
    """Whether an answer may begin or end there: place 0, and what is no padding and of a type other than 0.

    >>> answerable(jnp.ones((1, 4), int), jnp.array([[1, 1, 1, 0]]), jnp.array([[0, 0, 1, 1]])).tolist()
    [[True, False, True, False]]
    """
    may = jnp.ones(x.shape, bool)
    for given in (segments, types):
        may = may if given is None else may & (given != 0)
    return may.at[:, 0].set(True)


def best(logits: jax.Array, longest: int) -> dict[str, jax.Array]:
    """The likeliest answer by p(start) p(end): from place 1 on, end - start below `longest`; or none, (0, 0).

    Args:
      logits: [n, length, 2].

    Returns:
      `start` and `end` [n] integers, and `score` [n], the product of the two probabilities.

    >>> logits = jnp.log(jnp.array([[[0.1, 0.1], [0.2, 0.7], [0.7, 0.2]]]))
    >>> {name: round(v.item(), 2) for name, v in best(logits, 2).items()}   # 2 to 1 would be likelier, and is none
    {'start': 1, 'end': 1, 'score': 0.14}
    """
    log = jax.nn.log_softmax(tree.wide(logits), 1)
    start, end = log[..., 0], log[..., 1]
    length = start.shape[1]
    at = jnp.arange(length)

    def further(carry, by):
        top, width = carry
        ends = jnp.where(at + by < length, jnp.roll(end, -by, 1), -jnp.inf)
        score = jnp.where((at > 0) | (by == 0), start + ends, -jnp.inf)
        return (jnp.maximum(top, score), jnp.where(score > top, by, width)), None

    none = (jnp.full_like(start, -jnp.inf), jnp.zeros(start.shape, jnp.int32))
    (top, width), _ = lax.scan(further, none, jnp.arange(min(longest, length), dtype=jnp.int32))
    first = top.argmax(1)
    last = first + jnp.take_along_axis(width, first[:, None], 1)[:, 0]
    return {"start": first, "end": last, "score": jnp.exp(top.max(1))}


def _at(logits, places):
    return jnp.where(places[..., None], logits, _NEVER)
