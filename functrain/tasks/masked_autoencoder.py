"""Images told from few of their patches (He et al. 2022)."""

from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from functrain import losses, tree
from functrain.config import ConfigError, Count, Part, configclass
from functrain.metrics import mean_of
from functrain.observe.grid import grid
from functrain.tasks.base import OneLoss

_SHOWN = 8
"""Images in a picture."""
_EPSILON = 1e-6
"""Added to the variance of a patch, as in the authors' program."""


@configclass
class MaskedAutoencoder(OneLoss):
    """The mean squared error of the pixels of the patches that are not seen; which those are is drawn at each step.

    With `normalise` the pixels are told in units of their own patch: less its mean, over its deviation (He et al. 2022,
    section 4.1). The draw of a step is in its batch, so that accumulated gradients are those of the whole. figures/ has
    masked.png: images, what is seen of them, and those with the rest as told.
    """

    kind: Literal["masked_autoencoder"] = "masked_autoencoder"
    seen: Count = 0
    """How many patches of an image are seen; 0 is a quarter of them, the paper's share."""
    normalise: bool = False
    """Whether each patch is told in units of its own."""
    model: Part = None
    learner: Part = None

    examples_drawn = _SHOWN

    def outputs(self, dataset) -> int:
        """As many numbers as an image has."""
        return dataset.train["x"][0].size

    def assemble(self, model, learner) -> "MaskedAutoencoder":
        """The task with its model."""
        if not all(hasattr(model, name) for name in ("cut", "joined", "places")):
            raise ConfigError("model.kind: task.kind = masked_autoencoder needs a model of patches (mae)")
        if self.seen >= model.places:
            raise ConfigError(f"task.seen: found {self.seen}; the images have {model.places} patches")
        return super().assemble(model, learner)

    @property
    def _seen(self) -> int:
        return self.seen or max(1, round(self.model.places / 4))

    def update(self, train_state, batch, *, key):
        """One step of the learner, with the order of the patches in the batch."""
        order_key, key = jax.random.split(key)
        return super().update(train_state, self._with_order(batch, order_key), key=key)

    def evaluate(self, train_state, batch, *, key):
        """The loss, with patches drawn for evaluation."""
        return super().evaluate(train_state, self._with_order(batch, key), key=key)

    def _with_order(self, batch, key):
        """The batch with a permutation of each image's patches, and with x once more, which no precision rounds."""
        order = jnp.argsort(jax.random.uniform(key, (len(batch["x"]), self.model.places)), -1)
        return batch | {"order": order, "target": batch["x"]}

    def full_loss(self, params, state, batch, *, key, train):
        """The squared error of the patches that are not seen."""
        x, order = batch["x"], batch["order"]
        outputs, state = self.model.apply(params, state, x, order, seen=self._seen, key=key, train=train)
        target, *_ = self._target(batch.get("target", x))
        each = jnp.square(tree.wide(outputs["patches"]) - target).mean(-1)
        weights = losses.weighted(batch.get("mask"), batch.get("weight"))
        masked = outputs["masked"] if weights is None else losses.weighted(outputs["masked"], weights)
        return mean_of(each, masked), state, {}

    def _target(self, x):
        """(pixels of patches as they are told, their means, their deviations)."""
        patches = tree.wide(self.model.cut(x))
        if not self.normalise:
            return patches, 0, 1
        mean, deviation = patches.mean(-1, keepdims=True), jnp.sqrt(patches.var(-1, ddof=1, keepdims=True) + _EPSILON)
        return (patches - mean) / deviation, mean, deviation

    def outputs_of(self, train_state, x) -> dict[str, jax.Array]:
        """`seen`, images x with the patches that are not seen black, and `told`, those with the rest as told."""
        order = self._with_order({"x": x}, jax.random.key(0))["order"]

        def apply(params, state, batch, *, key):
            return self.model.apply(params, state, batch["x"], batch["order"], seen=self._seen, train=False)[0]

        weights = self.learner.weights(train_state.players["model"])
        batch = {"x": x, "order": order}
        outputs = self.learner.precision(apply)(weights, train_state.state, batch, key=None)
        _, mean, deviation = self._target(x)
        patches, masked = tree.wide(self.model.cut(x)), outputs["masked"][..., None]
        told = tree.wide(outputs["patches"]) * deviation + mean
        seen = patches * (1 - masked)
        return {"seen": self.model.joined(seen), "told": self.model.joined(seen + told * masked)}

    def predict(self, outputs) -> dict[str, Any]:
        """`told` [n, ...]: the images with the patches that were not seen as the model tells them."""
        return {"told": outputs["told"]}

    def drawn(self, train_state, batch) -> dict[str, Any]:
        """The images as the model reads them, and its outputs."""
        return self.outputs_of(train_state, batch["x"]) | {"x": batch["x"]}

    def draw(self, outputs, batch, folder: Path, names: tuple[str, ...]) -> list[Path]:
        """masked.png."""
        low, high = outputs["x"].min(), outputs["x"].max()
        rows = np.concatenate([outputs[name] for name in ("x", "seen", "told")])
        grid((rows - low) / max(high - low, 1e-12), folder / "masked.png", columns=len(outputs["x"]))
        return [folder / "masked.png"]
