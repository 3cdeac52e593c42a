"""Many tasks at once: a shared trunk with a head for each."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from functrain import losses, tree
from functrain.config import ConfigError, Count, NonNegative, Part, Size, Text, configclass
from functrain.layers import linear
from functrain.metrics import Mean, RootMean, confusion_of, mean_of
from functrain.tasks.base import OneLoss


@configclass
class Head:
    """One of the tasks: its column of the targets y [n, tasks]."""

    name: Text
    """What its metrics and its parameters are called."""
    kind: Literal["classification", "regression"] = "classification"
    """A class by cross-entropy, or a number by squared error."""
    weight: NonNegative = 1.0
    """What its loss weighs, where weights are fixed."""
    classes: Count = 0
    """How many classes it has; taken from the data."""


@configclass
class ManyTasks(OneLoss):
    """Several classes or numbers for each example, from one trunk: [model], of which `width` outputs are the features.

    Each head is linear, on the relu of the features. The loss is the sum of the heads' losses L_i, weighed by

        fixed         weight_i
        uncertainty   exp(-s_i) L_i + s_i / 2 for classes, exp(-s_i) L_i / 2 + s_i / 2 for numbers, with s_i = log
                      sigma_i^2 learned along (Kendall, Gal, Cipolla 2018, eq. 7 to 10)

    or, with `[estimator] kind = "min_norm"`, by what makes their gradients' sum shortest (see functrain.autodiff).
    Metrics are each head's loss without weights, its accuracy or root mean squared error, and `accuracy`, how often all
    classes of an example are right.
    """

    kind: Literal["many_tasks"] = "many_tasks"
    heads: tuple[Head, ...]
    """The tasks, in the order of the targets' columns."""
    width: Size = 64
    """Features that the trunk gives."""
    weighting: Literal["fixed", "uncertainty"] = "fixed"
    """How the losses are weighed."""
    model: Part = None
    learner: Part = None

    def __post_init__(self):
        names = [head.name for head in self.heads]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"heads: found {', '.join(names) or 'none'}; expected one or more, of different names")

    def sized(self, dataset) -> "ManyTasks":
        """The task with the classes of each head."""
        y = dataset.train.get("y")
        if y is None or y.ndim != 2 or y.shape[1] != len(self.heads):
            found = "none" if y is None else f"y {list(y.shape)}"
            raise ConfigError(f"task.heads: {len(self.heads)} of them; expected targets y [n, heads], found {found}")
        heads = []
        for i, head in enumerate(self.heads):
            if head.kind == "classification":
                parts = (dataset.split(split) for split in ("train", "validation", "test"))
                column = np.concatenate([part["y"][:, i] for part in parts if part])
                low, high = column.min(), column.max()
                if low < 0 or (column != np.floor(column)).any():
                    raise ConfigError(f"task.heads.{i}: its targets are no classes; expected whole numbers from 0")
                if head.classes and high >= head.classes:
                    raise ConfigError(f"task.heads.{i}.classes: found {head.classes}; the data has class {high:g}")
                head = dataclasses.replace(head, classes=head.classes or int(high) + 1)
            heads.append(head)
        return dataclasses.replace(self, heads=tuple(heads))

    def outputs(self, dataset) -> int:
        """The features."""
        return self.width

    def init(self, key: jax.Array) -> tuple[dict[str, Any], Any]:
        """Parameters `trunk`, `heads` by name, and of learned weights `log_variance` by name; the trunk's state."""
        trunk_key, *keys = jax.random.split(key, 1 + len(self.heads))
        trunk, state = self.model.init(trunk_key)
        heads = {
            head.name: linear.init(k, self.width, head.classes or 1, kernel_init="he_normal")
            for head, k in zip(self.heads, keys)
        }
        params = {"trunk": trunk, "heads": heads}
        if self.weighting == "uncertainty":
            params["log_variance"] = {head.name: jnp.zeros(()) for head in self.heads}
        return {"model": params}, state

    def full_loss(self, params, state, batch, *, key, train):
        """A mean for each head, by its name."""
        outputs, state = self._outputs(params, state, batch["x"], key=key, train=train)
        mask = batch.get("mask")
        weights = losses.weighted(mask, batch.get("weight"))
        means, metrics, right = {}, {}, True
        for i, head in enumerate(self.heads):
            out, y = outputs[head.name], batch["y"][:, i]
            if head.kind == "classification":
                y, chosen = y.astype(jnp.int32), out.argmax(-1)
                loss = losses.cross_entropy(out, y, mask=weights)
                metrics[f"{head.name}_accuracy"] = mean_of(chosen == y, mask)
                if not train:
                    metrics[f"{head.name}_confusion"] = confusion_of(chosen, y, head.classes, mask)
                right = right & (chosen == y)
            else:
                loss = losses.squared_error(out[:, 0], y, mask=weights)
                squares = losses.squared_error(out[:, 0], y, mask=mask)
                metrics[f"{head.name}_rmse"] = RootMean(squares.total, squares.count)
            metrics[f"{head.name}_loss"] = loss
            means[head.name] = self._weighed(params, head, loss) if train else loss
        if right is not True:
            metrics["accuracy"] = mean_of(right, mask)
        return means, state, metrics

    def _weighed(self, params, head: Head, loss: Mean) -> Mean:
        if self.weighting == "fixed":
            return loss.times(head.weight)
        s = tree.wide(params["log_variance"][head.name])
        factor = jnp.exp(-s) * (1 if head.kind == "classification" else 0.5)
        return Mean(factor * loss.total + s / 2 * loss.count, loss.count)

    def _outputs(self, params, state, x, *, key, train):
        features, state = self.model.apply(params["trunk"], state, x, key=key, train=train)
        h = jax.nn.relu(features)
        return {name: tree.wide(linear.apply(head, h)) for name, head in params["heads"].items()}, state

    def outputs_of(self, train_state: Any, x: Any) -> dict[str, jax.Array]:
        """Logits [n, classes], or a number [n, 1], by the name of each head."""

        def apply(params, state, batch, *, key):
            return self._outputs(params, state, batch["x"], key=key, train=False)[0]

        weights = self.learner.weights(train_state.players["model"])
        return self.learner.precision(apply)(weights, train_state.state, {"x": x}, key=None)

    def predict(self, outputs: dict[str, jax.Array]) -> dict[str, Any]:
        """By the name of each head, its class [n] or its number [n]."""
        return {
            head.name: outputs[head.name].argmax(-1) if head.kind == "classification" else outputs[head.name][:, 0]
            for head in self.heads
        }
