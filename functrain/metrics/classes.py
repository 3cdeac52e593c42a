"""How well classes are told apart: the confusion matrix and what follows from it, and accuracy among the k best."""

from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from functrain.metrics.accumulators import Accumulator, Mean, divided, mean_of, over

Average = Literal["macro", "weighted", "none"]


@struct.dataclass
class Confusion(Accumulator):
    """Counts[true class, predicted class].

    Precision, recall and f1 of a class are 0 where they would divide by nothing. Their average is over the classes that
    occur, as true or as predicted: "macro" counts each once, "weighted" as often as it is true; "none" gives all.

    >>> confusion = Confusion(np.array([[8, 2], [1, 9]]))
    >>> confusion.accuracy(), confusion.recall("none").tolist()
    (np.float64(0.85), [0.8, 0.9])
    """

    own: ClassVar[str] = "confusion"
    parts: ClassVar[tuple[str, ...]] = ("precision", "recall", "f1")

    counts: Any

    @property
    def value(self) -> np.ndarray:
        """The counts, on the host."""
        return np.asarray(self.counts)

    def numbers(self) -> dict[str, Any]:
        """Precision, recall and f1, each class counted once."""
        return {"precision": self.precision(), "recall": self.recall(), "f1": self.f1()}

    def accuracy(self) -> np.ndarray:
        """The share of examples whose class is predicted."""
        right, true, _ = self._sums()
        return divided(right.sum(-1), true.sum(-1))

    def balanced_accuracy(self) -> np.ndarray:
        """The mean recall of the classes that occur (Brodersen et al. 2010)."""
        right, true, _ = self._sums()
        return divided(_or_zero(right, true).sum(-1), (true > 0).sum(-1))

    def precision(self, average: Average = "macro") -> np.ndarray:
        """The share of those predicted to be of a class that are."""
        right, _, predicted = self._sums()
        return self._average(_or_zero(right, predicted), average)

    def recall(self, average: Average = "macro") -> np.ndarray:
        """The share of those of a class that are predicted to be."""
        right, true, _ = self._sums()
        return self._average(_or_zero(right, true), average)

    def f1(self, average: Average = "macro") -> np.ndarray:
        """2 right / (true + predicted), the harmonic mean of precision and recall."""
        right, true, predicted = self._sums()
        return self._average(_or_zero(2 * right, true + predicted), average)

    def _sums(self):
        counts = np.asarray(self.counts, np.float64)
        return np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1), counts.sum(-2)

    def _average(self, values, average):
        if average == "none":
            return values
        _, true, predicted = self._sums()
        weights = true if average == "weighted" else (true + predicted > 0).astype(np.float64)
        return divided((values * weights).sum(-1), weights.sum(-1))


def confusion_of(predicted: jax.Array, labels: jax.Array, classes: int, mask: jax.Array | None = None) -> Confusion:
    """How often each class (row) was taken for each class (column).

    Args:
      predicted, labels: [batch, ...] integers in [0, classes).
      mask: weights that lead the labels' shape; None counts all.

    >>> confusion_of(jnp.array([0, 1, 1]), jnp.array([0, 1, 0]), 2).counts.tolist()
    [[1.0, 1.0], [0.0, 1.0]]
    """
    if predicted.shape != labels.shape:
        raise ValueError(f"predicted {predicted.shape} and labels {labels.shape} differ in shape")
    return Confusion(jnp.zeros((classes, classes)).at[labels, predicted].add(over(mask, labels)))


def top_k(logits: jax.Array, labels: jax.Array, k: int, mask: jax.Array | None = None) -> Mean:
    """How often the label is among the k largest logits; of equal logits the first class ranks first, as in `argmax`.

    Args:
      logits: [batch, ..., classes].
      labels: [batch, ...] integers in [0, classes).
      mask: weights that lead the labels' shape; None counts all.

    >>> logits = jnp.array([[0.1, 0.2, 0.7], [0.5, 0.2, 0.3]])
    >>> [float(top_k(logits, jnp.array([1, 1]), k).value) for k in (1, 2, 3)]
    [0.0, 0.5, 1.0]
    """
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"logits {logits.shape} and labels {labels.shape}: expected labels {logits.shape[:-1]}")
    mine = jnp.take_along_axis(logits, labels[..., None], -1)
    before = jnp.arange(logits.shape[-1]) < labels[..., None]
    # Not "larger", but "not smaller or equal": a logit that is nan ranks before the label's, and so does every one if
    # the label's own is nan.
    ahead = ~(logits <= mine) | ((logits == mine) & before)
    return mean_of(ahead.sum(-1) < k, mask)


def _or_zero(a, b):
    return np.where(b > 0, divided(a, np.where(b > 0, b, 1)), 0.0)
