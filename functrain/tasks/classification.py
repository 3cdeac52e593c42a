"""Classification: each example belongs to one of the classes."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from functrain import losses, tree
from functrain.config import ConfigError, Fraction, NonNegative, Part, Size, configclass, off
from functrain.metrics import calibration_of, confusion_of, mean_of, top_k
from functrain.tasks.base import OneLoss

_LARGEST_CONFUSION = 100
"""Classes up to which evaluation counts who was taken for whom."""


@configclass
class Classification(OneLoss):
    """One class for each example, by softmax cross-entropy, the focal loss or the hinge loss; accuracy as a metric.

    A batch's `weight` [n] weighs the loss (its sum and its count); metrics count what the mask counts, once. Where
    mixup or cutmix has mixed the batch, the loss is share l(y) + (1 - share) l(y_mixed); training accuracy is by y.
    """

    kind: Literal["classification"] = "classification"
    criterion: Literal["cross_entropy", "focal", "hinge"] = "cross_entropy"
    """The loss: softmax cross-entropy; focal, by which easy examples weigh less; hinge, the sum over the classes."""
    label_smoothing: Fraction = 0.0
    """Share of each target spread evenly over the classes, in training; 0 is off. For cross_entropy."""
    gamma: NonNegative = 2.0
    """How much less easy examples weigh in the focal loss; 0 makes it cross-entropy."""
    class_weights: tuple[NonNegative, ...] = ()
    """What each class weighs in the loss; empty is off."""
    top_k: tuple[Size, ...] = ()
    """Each k for which evaluation says how often the class is among the k likeliest, as `top_k`."""
    model: Part = None
    learner: Part = None
    beside = ("segments", "types")

    mixes = True  # whether the loss knows labels that mixup and cutmix have mixed

    def __post_init__(self):
        if self.criterion != "cross_entropy" and not off(self.label_smoothing):
            raise ValueError(f"label_smoothing: goes with criterion = cross_entropy alone; found {self.criterion}")

    @property
    def likelihood(self):
        """Classes by softmax, where the loss is their plain cross-entropy."""
        plain = self.criterion == "cross_entropy" and off(self.label_smoothing) and not self.class_weights
        return "categorical" if plain else ""

    def outputs(self, dataset) -> int:
        """One logit a class."""
        if not dataset.classes:
            raise ConfigError("task.kind: classification needs integer labels y [n]; regression takes other targets")
        if self.class_weights and len(self.class_weights) != dataset.classes:
            raise ConfigError(
                f"task.class_weights: found {len(self.class_weights)}; expected {dataset.classes}, one a class"
            )
        if self.class_weights and not any(self.class_weights):
            raise ConfigError("task.class_weights: all are 0; expected one above 0")
        if self.criterion == "focal" and dataset.classes < 2:
            raise ConfigError("task.criterion: focal needs two classes or more; the data has 1")
        for k in self.top_k:
            if k >= dataset.classes:
                raise ConfigError(f"task.top_k: found {k}; expected fewer than the {dataset.classes} classes")
        return dataset.classes

    def loss(self, outputs, batch, *, train):
        """The loss of logits [batch, classes] with labels [batch], and accuracy."""
        labels, mask = batch["y"], batch.get("mask")
        predicted = outputs.argmax(-1)
        metrics: dict[str, Any] = {"accuracy": mean_of(predicted == labels, mask)}
        if not train:
            metrics["calibration"] = calibration_of(outputs, labels, mask)
            if outputs.shape[-1] <= _LARGEST_CONFUSION:
                metrics["confusion"] = confusion_of(predicted, labels, outputs.shape[-1], mask)
            metrics |= {f"top_{k}": top_k(outputs, labels, k, mask) for k in self.top_k}
        weights = losses.weighted(mask, batch.get("weight"))
        if "share" not in batch:
            return self._criterion(outputs, labels, weights, train), metrics
        own, others = (losses.weighted(weights, share) for share in (batch["share"], 1 - batch["share"]))
        mixed = self._criterion(outputs, batch["y_mixed"], others, train)
        return tree.add(self._criterion(outputs, labels, own, train), mixed), metrics

    def _criterion(self, logits, labels, mask, train):
        given: dict[str, Any] = {"mask": mask, "class_weights": self.class_weights or None}
        if self.criterion == "focal":
            return losses.focal(logits, labels, gamma=self.gamma, **given)
        if self.criterion == "hinge":
            return losses.hinge(logits, labels, **given)
        return losses.cross_entropy(logits, labels, smoothing=self.label_smoothing if train else 0.0, **given)

    def averaged(self, outputs: Sequence[jax.Array]) -> jax.Array:
        """The mean of several models' probabilities, as logits: their logarithms (Lakshminarayanan et al. 2017)."""
        logs = jnp.stack([jax.nn.log_softmax(logits) for logits in outputs])
        return jax.nn.logsumexp(logs, 0) - math.log(len(logs))

    def predict(self, outputs) -> dict[str, Any]:
        """`class` [n] and `probability` [n] of it, from logits [n, classes]."""
        probabilities = jax.nn.softmax(outputs)
        return {"class": outputs.argmax(-1), "probability": jnp.max(probabilities, -1)}
