"""Features without labels: two views of an example are told from those of all others (Chen et al. 2020)."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from functrain import losses, tree
from functrain.augment import AnyAugment, Crop, RandAugment
from functrain.config import Part, Positive, Size, configclass
from functrain.layers import linear
from functrain.metrics import Verification
from functrain.tasks.base import OneLoss
from functrain.tasks.views import view

# pyright: reportInvalidTypeForm=false
# The union of kinds is built by a function, which a static checker cannot follow.


@configclass
class SimCLR(OneLoss):
    """The features of [model], of which `width` outputs are asked, learned from two views of each example.

    Each view goes through the model and, after a relu, through a projection of two linear layers; the loss is NT-Xent
    over the batch (Chen et al. 2020, eq. 1): a batch cut for accumulation has fewer others to tell from, another loss.
    Evaluation is of the features themselves, of the examples as they are: where these have labels y, how often the
    nearest example is of the same class (`recall_at_1`), and the other metrics of `functrain.metrics.Verification`.
    A classification starts from such a run with `rename = [["^trunk/", ""]]`. Pixels are in 0..1.
    """

    kind: Literal["simclr"] = "simclr"
    width: Size = 128
    """Features that the model gives."""
    projection: tuple[Size, Size] = (128, 64)
    """Width of the projection's hidden layer and of its output."""
    temperature: Positive = 0.5
    """What similarities are divided by."""
    views: tuple[AnyAugment, ...] = (Crop(padding=3), RandAugment())
    """What is done to an example for each of its views."""
    model: Part = None
    learner: Part = None

    in_units = True

    def outputs(self, dataset) -> int:
        """The features."""
        return self.width

    def init(self, key: jax.Array) -> tuple[dict[str, Any], Any]:
        """Parameters `trunk` and `projection`; the trunk's state."""
        trunk_key, a, b = jax.random.split(key, 3)
        trunk, state = self.model.init(trunk_key)
        hidden, outputs = self.projection
        projection = {
            "linear0": linear.init(a, self.width, hidden, kernel_init="he_normal"),
            "linear1": linear.init(b, hidden, outputs),
        }
        return {"model": {"trunk": trunk, "projection": projection}}, state

    def update(self, train_state: Any, batch: Any, *, key: jax.Array) -> tuple[Any, dict[str, Any]]:
        """One step of the learner, with both views in the batch."""
        views_key, key = jax.random.split(key)
        return super().update(train_state, self._with_views(batch, views_key), key=key)

    def evaluate(self, train_state: Any, batch: Any, *, key: jax.Array) -> dict[str, Any]:
        """The loss of two views, and what the features of the examples themselves are worth."""
        return super().evaluate(train_state, self._with_views(batch, key), key=key)

    def _with_views(self, batch, key):
        first, second = jax.random.split(key)
        return batch | {"first": view(self.views, batch["x"], first), "second": view(self.views, batch["x"], second)}

    def full_loss(self, params, state, batch, *, key, train):
        """NT-Xent of both views, which go through the model in one batch; in evaluation the features as metric."""
        n, mask, metrics = len(batch["x"]), batch.get("mask"), {}
        both = jnp.concatenate([batch["first"], batch["second"]])
        features, new = self.model.apply(params["trunk"], state, both, key=key, train=train)
        layers = params["projection"]
        h = jax.nn.relu(linear.apply(layers["linear0"], jax.nn.relu(features)))
        z = tree.wide(linear.apply(layers["linear1"], h))
        loss = losses.nt_xent(z[:n], z[n:], mask=mask, temperature=self.temperature)
        if not train and "y" in batch and batch["y"].ndim == 1:
            features, _ = self.model.apply(params["trunk"], state, batch["x"], key=key, train=False)
            counts = jnp.ones(n) if mask is None else mask
            metrics["verification"] = Verification(tree.wide(features), batch["y"], mask=counts)
        return loss, new, metrics

    def outputs_of(self, train_state: Any, x: Any) -> jax.Array:
        """The trained model's features [n, width]."""

        def apply(params, state, batch, *, key):
            return self.model.apply(params["trunk"], state, batch["x"], key=key, train=False)[0]

        weights = self.learner.weights(train_state.players["model"])
        return tree.wide(self.learner.precision(apply)(weights, train_state.state, {"x": x}, key=None))

    def predict(self, outputs: Any) -> dict[str, Any]:
        """`features` [n, width]."""
        return {"features": outputs}
