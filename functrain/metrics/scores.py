"""How well scores tell yes from no, at every threshold: histograms that add exactly.

The area under a curve is no mean over batches. But it depends on the scores through their order alone, and a histogram
over the 65,536 values of float16 keeps that order up to a rounding of 2^-11 of each score. What is read from it is what
scikit-learn gives for scores rounded to float16 (beyond +-65504 they count as that), ties and all.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from functrain import tree
from functrain.metrics.accumulators import Accumulator, divided, over
from functrain.metrics.calibration import BINS, EDGES, Calibration
from functrain.metrics.floats import number_of, ordered

_VALUES = 1 << 16
_LARGEST = 65504.0


@struct.dataclass
class Scores(Accumulator):
    """Counts[label, 0 or 1, bin of the logit] for one label or several; every number is the mean over the labels.

    nan is what does not exist: the area under a curve where one of the two does not occur, recall and f1 where there
    is nothing to find, everything where a score was nan. Labels without a number are left out of the mean. Precision is
    0 where nothing was predicted. Half a megabyte a label.

    >>> scores = scores_of(jnp.array([-2.0, -1.0, 0.5, 3.0]), jnp.array([0, 1, 0, 1]))
    >>> float(scores.roc_auc()), float(scores.recall())
    (0.75, 0.5)
    """

    own: ClassVar[str] = "scores"
    parts: ClassVar[tuple[str, ...]] = ("precision", "recall", "f1", "roc_auc", "pr_auc", "calibration_error")

    counts: Any

    def numbers(self) -> dict[str, Any]:
        """Each part: the mean over the labels."""
        return {
            "precision": self.precision(),
            "recall": self.recall(),
            "f1": self.f1(),
            "roc_auc": self.roc_auc(),
            "pr_auc": self.pr_auc(),
            "calibration_error": _over_labels(self.calibration().error()),
        }

    def accuracy(self) -> np.ndarray:
        """The share of elements on the right side of logit 0."""
        right, negatives, positives, predicted = self._at_zero()
        wrong_yes, right_no = predicted - right, negatives - (predicted - right)
        return _over_labels(divided(right + right_no, right_no + wrong_yes + positives))

    def precision(self) -> np.ndarray:
        """The share of logits above 0 whose target is 1."""
        right, negatives, positives, predicted = self._at_zero()
        share = np.where(predicted == 0, 0.0, divided(right, predicted))
        return _over_labels(np.where(negatives + positives > 0, share, np.nan))

    def recall(self) -> np.ndarray:
        """The share of targets 1 whose logit is above 0."""
        right, _, positives, _ = self._at_zero()
        return _over_labels(divided(right, positives))

    def f1(self) -> np.ndarray:
        """The harmonic mean of precision and recall."""
        right, _, positives, predicted = self._at_zero()
        return _over_labels(np.where(positives > 0, divided(2 * right, positives + predicted), np.nan))

    def roc_auc(self) -> np.ndarray:
        """The chance that a positive has the larger score than a negative, ties half (Hanley and McNeil 1982)."""
        _, counts = self._occupied()
        negative, positive = counts[..., 0, :], counts[..., 1, :]
        above = positive[..., ::-1].cumsum(-1)[..., ::-1] - positive
        pairs = negative.sum(-1) * positive.sum(-1)
        return _over_labels(divided((negative * (above + positive / 2)).sum(-1), pairs))

    def pr_auc(self) -> np.ndarray:
        """Average precision: sum_k (recall_k - recall_{k-1}) precision_k over the thresholds."""
        _, counts = self._occupied()
        found = counts[..., ::-1].cumsum(-1)[..., ::-1]
        predicted = found.sum(-2)
        precision = divided(found[..., 1, :], np.where(predicted > 0, predicted, 1))
        positive = counts[..., 1, :]
        return _over_labels(divided((positive * precision).sum(-1), positive.sum(-1)))

    def roc_curve(self, label: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(false positive rate, true positive rate, threshold) of one label, from (0, 0) at inf to (1, 1)."""
        values, counts = self._occupied(label)
        found = np.concatenate([np.zeros((2, 1)), counts[:, ::-1].cumsum(-1)], -1)
        rates = divided(found, counts.sum(-1, keepdims=True))
        return rates[0], rates[1], np.concatenate([[np.inf], values[::-1]])

    def pr_curve(self, label: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(precision, recall, threshold) of one label, thresholds rising; the last point is (1, 0) and has none."""
        values, counts = self._occupied(label)
        found = counts[:, ::-1].cumsum(-1)[:, ::-1]
        precision = divided(found[1], found.sum(0))
        recall = divided(found[1], counts[1].sum())
        return np.append(precision, 1.0), np.append(recall, 0.0), values

    def calibration(self) -> Calibration:
        """The probability that the target is 1 against how often it is, by label."""
        values, counts = self._occupied()
        with np.errstate(over="ignore"):
            probability = 1 / (1 + np.exp(-values))
        at = np.searchsorted(EDGES, probability)
        one_hot = (at[:, None] == np.arange(BINS)).astype(np.float64)
        total = counts.sum(-2)
        return Calibration(total @ one_hot, (total * probability) @ one_hot, counts[..., 1, :] @ one_hot)

    def _occupied(self, label=None):
        """(values, counts) of the bins that hold anything; counts are nan for a label that holds a nan."""
        counts = np.asarray(self.counts)
        counts = counts if label is None else counts[label]
        at = np.flatnonzero(counts.any(tuple(range(counts.ndim - 1))))
        values, counts = number_of(at, np.float16).astype(np.float64), counts[..., at].astype(np.float64)
        lost = (counts[..., np.isnan(values)] != 0).any((-2, -1))
        counts = np.where(lost[..., None, None], np.nan, counts)
        return values[~np.isnan(values)], counts[..., ~np.isnan(values)]

    def _at_zero(self):
        """(right ones above 0, negatives, positives, all above 0) by label."""
        values, counts = self._occupied()
        above = counts[..., values > 0].sum(-1) + 0 * counts.sum(-1)
        return above[..., 1], counts[..., 0, :].sum(-1), counts[..., 1, :].sum(-1), above.sum(-1)


def scores_of(logits: jax.Array, targets: jax.Array, mask: jax.Array | None = None) -> Scores:
    """The histogram of logits, apart for targets 0 and 1.

    Args:
      logits: [batch], or [batch, labels].
      targets: 0 and 1 in the shape of the logits.
      mask: weights that lead the logits' shape; None counts all. Whole numbers add exactly up to 2^24 in a bin.

    >>> scores_of(jnp.zeros((5, 3)), jnp.ones((5, 3))).counts.shape
    (3, 2, 65536)
    """
    if logits.shape != targets.shape:
        raise ValueError(f"logits {logits.shape} and targets {targets.shape} differ in shape")
    weights = over(mask, logits)
    logits, targets, weights = (x.reshape(len(x), -1) for x in (logits, targets, weights))
    labels = logits.shape[1]
    at = ordered(jnp.clip(tree.wide(logits), -_LARGEST, _LARGEST).astype(jnp.float16)).astype(jnp.int32)
    counts = jnp.zeros((labels, 2, _VALUES), weights.dtype)
    return Scores(counts.at[jnp.arange(labels)[None, :], (targets > 0).astype(jnp.int32), at].add(weights))


def _over_labels(values):
    """The mean over the labels (the last axis) that have a value; nan where none has."""
    there = ~np.isnan(values)
    return divided(np.where(there, values, 0).sum(-1), there.sum(-1))
