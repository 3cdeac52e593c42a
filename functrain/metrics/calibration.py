"""Whether a model is as often right as it says."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from functrain import tree
from functrain.metrics.accumulators import Accumulator, divided, over

BINS = 15
"""As in Guo et al. 2017."""
EDGES = np.linspace(0, 1, BINS + 1)[1:-1]
"""Between the bins; a probability that is an edge lies in the lower one."""


@struct.dataclass
class Calibration(Accumulator):
    """How many predictions lie in each of 15 bins of probability, the sum of their probabilities, and how many held.

    count, probability, held: [..., bins].

    >>> Calibration(np.array([10.0, 10.0]), np.array([2.0, 9.0]), np.array([3.0, 8.0])).error()
    np.float64(0.1)
    """

    own: ClassVar[str] = "calibration"
    parts: ClassVar[tuple[str, ...]] = ("calibration_error",)

    count: Any
    probability: Any
    held: Any

    def numbers(self) -> dict[str, Any]:
        """The expected calibration error."""
        return {"calibration_error": self.error()}

    def error(self) -> np.ndarray:
        """sum_b |held_b - probability_b| / n, the expected calibration error (Guo et al. 2017, eq. 5)."""
        count, probability, held = self._host()
        return divided(abs(held - probability).sum(-1), count.sum(-1))

    def curve(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(mean probability, share that held, count) of each bin: the reliability diagram; nan where a bin is empty."""
        count, probability, held = self._host()
        return divided(probability, count), divided(held, count), count

    def _host(self):
        return tuple(np.asarray(x, np.float64) for x in (self.count, self.probability, self.held))


def calibration_of(logits: jax.Array, labels: jax.Array, mask: jax.Array | None = None) -> Calibration:
    """How sure a softmax is of the class it predicts, against how often that is the label.

    Args:
      logits: [batch, ..., classes].
      labels: [batch, ...] integers.
      mask: weights that lead the labels' shape; None counts all.

    >>> sure = calibration_of(jnp.array([[9.0, 0.0], [9.0, 0.0]]), jnp.array([0, 1]))
    >>> sure.error().round(3)   # right once where 1.000 was said twice
    np.float64(0.5)
    """
    logits = tree.wide(logits)
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"logits {logits.shape} and labels {labels.shape}: expected labels {logits.shape[:-1]}")
    confidence = jax.nn.softmax(logits).max(-1).ravel()
    weights = over(mask, labels).astype(logits.dtype).ravel()
    at = jnp.searchsorted(jnp.asarray(EDGES, confidence.dtype), confidence)
    zeros = jnp.zeros(BINS, logits.dtype)
    return Calibration(
        zeros.at[at].add(weights),
        zeros.at[at].add(jnp.where(weights != 0, weights * confidence, 0)),
        zeros.at[at].add(weights * (logits.argmax(-1) == labels).ravel()),
    )
