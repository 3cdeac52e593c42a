"""Regression: each example has a number, or several."""

from typing import Any, Literal

import numpy as np

from functrain import losses
from functrain.config import ConfigError, Part, configclass
from functrain.metrics import mean_of
from functrain.tasks.base import OneLoss


@configclass
class Regression(OneLoss):
    """Numbers for each example, by mean squared error; mean absolute error as a metric."""

    kind: Literal["regression"] = "regression"
    model: Part = None
    learner: Part = None

    def outputs(self, dataset) -> int:
        """One output a target."""
        if "y" not in dataset.train:
            raise ConfigError("task.kind: regression needs targets y [n] or [n, targets]")
        return int(np.prod(dataset.train["y"].shape[1:]))

    def loss(self, outputs, batch, *, train):
        """Mean squared error of predictions [batch, targets]."""
        targets, mask = batch["y"].reshape(outputs.shape), batch.get("mask")
        loss = losses.squared_error(outputs, targets, mask=mask)
        return loss, {"absolute_error": mean_of(abs(outputs - targets), mask)}

    def predict(self, outputs) -> dict[str, Any]:
        """`prediction` [n, targets]."""
        return {"prediction": outputs}
