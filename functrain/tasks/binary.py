"""Yes or no: one question an example (binary), or several (multilabel)."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from functrain import losses
from functrain.config import ConfigError, NonNegative, Part, Positive, configclass
from functrain.metrics import mean_of, scores_of
from functrain.tasks.base import OneLoss

_MOST_SCORED = 100
"""Labels up to which evaluation keeps the histograms of `metrics.Scores`: half a megabyte each."""


@configclass
class _YesOrNo(OneLoss):
    """What the two share: a logit for each target, 0 or 1."""

    criterion: Literal["cross_entropy", "focal", "hinge"] = "cross_entropy"
    """The loss: of the sigmoid, cross-entropy; focal, by which easy examples weigh less; hinge."""
    gamma: NonNegative = 2.0
    """How much less easy examples weigh in the focal loss; 0 makes it cross-entropy."""
    positive_weight: Positive = 1.0
    """What the loss of a target 1 is times; above 1 finds more of them."""
    model: Part = None
    learner: Part = None

    @property
    def likelihood(self):
        """Yes or no by the sigmoid, for cross-entropy; `positive_weight`, a live number, is left out of it."""
        return "bernoulli" if self.criterion == "cross_entropy" else ""

    def loss(self, outputs, batch, *, train):
        """The loss of a logit for each target, and the share on the right side of 0."""
        targets, mask = batch["y"], batch.get("mask")
        logits = outputs.reshape(targets.shape)
        metrics: dict[str, Any] = {"accuracy": mean_of((logits > 0) == (targets > 0), mask)}
        if not train and int(np.prod(targets.shape[1:])) <= _MOST_SCORED:
            metrics["scores"] = scores_of(logits, targets, mask)
        return self._criterion(logits, targets, losses.weighted(mask, batch.get("weight"))), metrics

    def averaged(self, outputs: Sequence[jax.Array]) -> jax.Array:
        """The mean of several models' probabilities, as logits."""
        logits = jnp.stack(list(outputs))
        yes, no = (jax.nn.logsumexp(jax.nn.log_sigmoid(sign * logits), 0) for sign in (1, -1))
        return yes - no

    def _criterion(self, logits, targets, mask):
        if self.criterion == "focal":
            return losses.binary_focal(
                logits, targets, mask=mask, gamma=self.gamma, positive_weight=self.positive_weight
            )
        loss = losses.binary_hinge if self.criterion == "hinge" else losses.binary_cross_entropy
        return loss(logits, targets, mask=mask, positive_weight=self.positive_weight)


@configclass
class Binary(_YesOrNo):
    """Yes or no for each example, by one logit; accuracy, precision, recall, f1 and areas under curves as metrics.

    A batch's `weight` [n] weighs the loss (its sum and its count); metrics count what the mask counts, once.
    """

    kind: Literal["binary"] = "binary"

    def outputs(self, dataset) -> int:
        """One logit."""
        _check(dataset, "binary needs targets y [n] of 0 and 1", 1)
        return 1

    def predict(self, outputs) -> dict[str, Any]:
        """`class` [n], 0 or 1, and `probability` [n] of 1, from logits [n, 1]."""
        logits = outputs.reshape(len(outputs))
        return {"class": (logits > 0).astype(int), "probability": jax.nn.sigmoid(logits)}


@configclass
class Multilabel(_YesOrNo):
    """Several labels that each apply to an example or not, by a logit each; metrics are means over the labels.

    The mask is [n], or [n, labels] where some are not known. A batch's `weight` [n] weighs the loss (its sum and its
    count); metrics count what the mask counts once.
    """

    kind: Literal["multilabel"] = "multilabel"

    def outputs(self, dataset) -> int:
        """One logit a label."""
        _check(dataset, "multilabel needs targets y [n, labels] of 0 and 1", 2)
        return dataset.train["y"].shape[1]

    def predict(self, outputs) -> dict[str, Any]:
        """`class` [n, labels], 0 or 1, and `probability` [n, labels] of 1, from logits [n, labels]."""
        return {"class": (outputs > 0).astype(int), "probability": jax.nn.sigmoid(outputs)}


def _check(dataset, needs, axes):
    """That every split's y has so many axes, and holds 0 and 1 alone."""
    for split in ("train", "validation", "test"):
        arrays = dataset.split(split)
        if not arrays:
            continue
        if "y" not in arrays:
            raise ConfigError(f"task.kind: {needs}; the data has no y")
        y = np.asarray(arrays["y"])
        if y.ndim != axes:
            raise ConfigError(f"task.kind: {needs}; found y of shape {list(y.shape)}")
        if len(wrong := np.argwhere((y != 0) & (y != 1))):
            at = tuple(wrong[0].tolist())
            raise ConfigError(f"task.kind: {needs}; {split} y[{', '.join(map(str, at))}] is {y[at]}")
