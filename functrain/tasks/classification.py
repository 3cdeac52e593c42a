"""Classification: each example belongs to one of the classes."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from functrain import losses
from functrain.config import ConfigError, Fraction, Part, configclass
from functrain.metrics import confusion_of, mean_of
from functrain.tasks.base import OneLoss

_LARGEST_CONFUSION = 100
"""Classes up to which evaluation counts who was taken for whom."""


@configclass
class Classification(OneLoss):
    """One class for each example, by softmax cross-entropy; accuracy as a metric."""

    kind: Literal["classification"] = "classification"
    label_smoothing: Fraction = 0.0
    """Share of each target spread evenly over the classes, in training; 0 is off."""
    model: Part = None
    learner: Part = None

    def outputs(self, dataset) -> int:
        """One logit a class."""
        if not dataset.classes:
            raise ConfigError("task.kind: classification needs integer labels y [n]; regression takes other targets")
        return dataset.classes

    def loss(self, outputs, batch, *, train):
        """Cross-entropy of logits [batch, classes] with labels [batch], and accuracy."""
        labels, mask = batch["y"], batch.get("mask")
        loss = losses.cross_entropy(outputs, labels, mask=mask, smoothing=self.label_smoothing if train else 0.0)
        predicted = outputs.argmax(-1)
        metrics: dict[str, Any] = {"accuracy": mean_of(predicted == labels, mask)}
        if not train and outputs.shape[-1] <= _LARGEST_CONFUSION:
            metrics["confusion"] = confusion_of(predicted, labels, outputs.shape[-1], mask)
        return loss, metrics

    def predict(self, outputs) -> dict[str, Any]:
        """`class` [n] and `probability` [n] of it, from logits [n, classes]."""
        probabilities = jax.nn.softmax(outputs)
        return {"class": outputs.argmax(-1), "probability": jnp.max(probabilities, -1)}
