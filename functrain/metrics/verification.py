"""How well embeddings tell examples of one class from those of two, by the protocol of Labeled Faces in the Wild."""

from typing import Any, ClassVar

import numpy as np
from flax import struct

from functrain.metrics.rows import Rows

_PAIRS = 3000
"""The most pairs of each sort: 6,000 in all are what the protocol has."""
_FOLDS = 10
_QUERIES = 1000


@struct.dataclass
class Verification(Rows):
    """Embeddings and their labels: is a pair of one class, by the cosine of its two embeddings?

    The pairs are drawn from the rows, as many of one class (genuine) as of two (impostors), each pair once, 3,000 of
    each or what there is; which ones depends on the labels alone. An example may be in several pairs and folds: the
    protocol of Huang et al. 2007 keeps the people of two folds apart, which a handful of classes cannot.

    verification_accuracy   of ten folds, each by the threshold that is best for the other nine (Huang et al. 2007,
                            section 4); the mean
    roc_auc                 the chance that a genuine pair is more alike than an impostor, ties half
    equal_error_rate        where as many genuine pairs are refused as impostors accepted, on the curve's straight lines
    tar_at_1e-2             the share of genuine pairs accepted where at most 1 % of the impostors are
    tar_at_1e-3             and where at most 0.1 % are
    recall_at_1             how often the nearest other example is of the same class: of 1,000 rows at most, among all

    nan is what does not exist: with fewer than two pairs of either sort, or where an embedding is not finite.

    >>> embeddings = np.repeat(np.eye(2), 4, 0)
    >>> found = Verification(embeddings, np.repeat([0, 1], 4), mask=np.ones(8)).numbers()
    >>> {name: float(number) for name, number in found.items() if name in ("roc_auc", "verification_accuracy")}
    {'verification_accuracy': 1.0, 'roc_auc': 1.0}
    """

    own: ClassVar[str] = "verification"
    parts: ClassVar[tuple[str, ...]] = (
        "verification_accuracy",
        "roc_auc",
        "equal_error_rate",
        "tar_at_1e-2",
        "tar_at_1e-3",
        "recall_at_1",
    )

    embeddings: Any
    labels: Any
    mask: Any

    def numbers(self) -> dict[str, Any]:
        """See the class."""
        embeddings, labels = np.asarray(self.embeddings), np.asarray(self.labels)
        rng = np.random.default_rng(0)
        genuine, impostor = drawn_pairs(labels, rng)
        if len(genuine) < 2 or not np.isfinite(embeddings).all():
            return dict.fromkeys(self.parts, np.float64(np.nan))
        directions = _directions(embeddings)
        same, other = (np.einsum("nd,nd->n", *directions[pairs.T]) for pairs in (genuine, impostor))
        false, true = _roc(same, other)
        return {
            "verification_accuracy": _accuracy_by_folds(same, other),
            "roc_auc": np.trapezoid(true, false),
            "equal_error_rate": _equal_error_rate(false, true),
            "tar_at_1e-2": true[false <= 1e-2].max(),
            "tar_at_1e-3": true[false <= 1e-3].max(),
            "recall_at_1": _recall(directions, labels, rng),
        }


def drawn_pairs(labels: np.ndarray, rng: np.random.Generator, most: int = _PAIRS) -> tuple[np.ndarray, np.ndarray]:
    """(pairs of one class, pairs of two classes), [m, 2] rows each: m is `most`, or what there is of both.

    Each is drawn from all pairs of its sort alike, none twice.

    Args:
      labels: [n] integers.
      rng: what draws.

    >>> genuine, impostor = drawn_pairs(np.array([0, 1, 0]), np.random.default_rng(0))
    >>> sorted(genuine[0].tolist()), 1 in impostor[0]
    ([0, 2], True)
    """
    rows = np.argsort(labels, kind="stable")
    ends = np.searchsorted(labels[rows], labels[rows], side="right")  # in `rows`, where each one's class ends
    at = np.arange(len(rows))
    # A pair is a row and a later one: of the same class up to that end, of another class from there on.
    sorts = ((at + 1, ends - at - 1), (ends, len(rows) - ends))
    m = min(most, *(int(counts.sum()) for _, counts in sorts))
    return tuple(_pairs(rows, first, counts, m, rng) for first, counts in sorts)  # pyright: ignore


def _pairs(rows, first, counts, m, rng):
    """m of the pairs of rows[i] with rows[first[i]], ... rows[first[i] + counts[i] - 1]."""
    until = counts.cumsum()
    rank = rng.choice(until[-1], m, replace=False) if m else np.zeros(0, int)
    i = np.searchsorted(until, rank, side="right")
    return np.stack([rows[i], rows[first[i] + rank - until[i] + counts[i]]], -1)


def _directions(x):
    """Each row over its norm, in float64; zeros stay."""
    x = x.astype(np.float64)
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.where(length > 0, length, 1)


def _ranked(same, other):
    """(distinct scores, rising; genuine pairs below each cut; impostors): cuts before each score and after the last."""
    scores = np.sort(np.concatenate([same, other]))
    scores = scores[np.append(True, np.diff(scores) > 0)]
    below = [np.append(np.searchsorted(np.sort(x), scores), len(x)) for x in (same, other)]
    return scores, *below


def _roc(same, other):
    """(share of impostors accepted, share of genuine pairs accepted), from (0, 0) to (1, 1)."""
    _, genuine, impostor = _ranked(same, other)
    return (len(other) - impostor)[::-1] / len(other), (len(same) - genuine)[::-1] / len(same)


def _best_threshold(same, other):
    """Midway between the two scores between which most pairs are told apart; of equal cuts the lowest."""
    scores, genuine, impostor = _ranked(same, other)
    cut = np.argmax(impostor - genuine)
    edges = np.concatenate([[-np.inf], scores, [np.inf]])
    return (edges[cut] + edges[cut + 1]) / 2


def _accuracy_by_folds(same, other):
    fold = np.arange(len(same)) * min(_FOLDS, len(same)) // len(same)
    found = []
    for k in range(fold[-1] + 1):
        threshold = _best_threshold(same[fold != k], other[fold != k])
        found.append(((same[fold == k] > threshold).mean() + (other[fold == k] <= threshold).mean()) / 2)
    return np.mean(found)


def _equal_error_rate(false, true):
    """Where the curve's lines cross false = 1 - true."""
    ahead = false + true - 1
    k = np.argmax(ahead >= 0)
    share = -ahead[k - 1] / (ahead[k] - ahead[k - 1])
    return false[k - 1] + share * (false[k] - false[k - 1])


def _recall(directions, labels, rng):
    """By rows whose class has another one; of equally near examples the first counts."""
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    rows = np.flatnonzero(counts[inverse] > 1)
    rows = rng.choice(rows, min(_QUERIES, len(rows)), replace=False)
    near = directions[rows] @ directions.T
    near[np.arange(len(rows)), rows] = -np.inf
    return (labels[near.argmax(-1)] == labels[rows]).mean()
