"""Regression: each example has a number, or several."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from functrain import losses
from functrain.config import ConfigError, Part, Positive, configclass
from functrain.metrics import RootMean, moments_of
from functrain.tasks.base import OneLoss

_MOST_EXPLAINED = 100
"""Targets up to which evaluation sums what R^2 needs (`metrics.Moments`): 0.2 megabytes each."""


@configclass
class Regression(OneLoss):
    """Numbers for each example, by squared error, absolute error or Huber's; mean absolute error as a metric.

    A batch's `weight` [n] weighs the loss (its sum and its count); metrics count what the mask counts, once.
    """

    kind: Literal["regression"] = "regression"
    criterion: Literal["squared_error", "absolute_error", "huber"] = "squared_error"
    """The loss: a square; an absolute value, which outliers pull less; huber: a square up to delta, then a line."""
    delta: Positive = 1.0
    """Where the huber loss turns from a square into a line, in the targets' unit."""
    model: Part = None
    learner: Part = None

    @property
    def likelihood(self):
        """Normal with variance 1/2 about the prediction, for squared error."""
        return "normal" if self.criterion == "squared_error" else ""

    def outputs(self, dataset) -> int:
        """One output a target."""
        if "y" not in dataset.train:
            raise ConfigError("task.kind: regression needs targets y [n] or [n, targets]")
        return int(np.prod(dataset.train["y"].shape[1:]))

    def loss(self, outputs, batch, *, train):
        """The loss of predictions [batch, targets], and the mean absolute error."""
        targets, mask = batch["y"].reshape(outputs.shape), batch.get("mask")
        metrics: dict[str, Any] = {"absolute_error": losses.absolute_error(outputs, targets, mask=mask)}
        if not train:
            squares = losses.squared_error(outputs, targets, mask=mask)
            metrics["rmse"] = RootMean(squares.total, squares.count)
            if int(np.prod(targets.shape[1:])) <= _MOST_EXPLAINED:
                metrics["moments"] = moments_of(outputs, targets, mask)
        return self._criterion(outputs, targets, losses.weighted(mask, batch.get("weight"))), metrics

    def _criterion(self, predictions, targets, mask):
        if self.criterion == "huber":
            return losses.huber(predictions, targets, mask=mask, delta=self.delta)
        loss = losses.absolute_error if self.criterion == "absolute_error" else losses.squared_error
        return loss(predictions, targets, mask=mask)

    def averaged(self, outputs: Sequence[jax.Array]) -> jax.Array:
        """The mean of several models' predictions."""
        return jnp.stack(list(outputs)).mean(0)

    def predict(self, outputs) -> dict[str, Any]:
        """`prediction` [n, targets]."""
        return {"prediction": outputs}
