"""Learning from few labels and many images (Sohn et al. 2020)."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from functrain import losses, tree
from functrain.augment import AnyAugment, Crop, Cutout, RandAugment
from functrain.config import Part, Positive, Share, configclass
from functrain.metrics import Mean, mean_of
from functrain.tasks.base import OneLoss
from functrain.tasks.classification import Classification
from functrain.tasks.views import view

# pyright: reportInvalidTypeForm=false
# The union of kinds is built by a function, which a static checker cannot follow.


@configclass
class FixMatch(Classification):
    """Classification of examples of which few are labelled, `labelled` [n] being 1 for those (source few_labels):

        supervised     cross-entropy of the labelled examples, weakly augmented
        unsupervised   weight times, over the others, 1[max q >= threshold] H(argmax q, p(strong)), where q is what the
                       model says of the weakly augmented example and no slope leads through it

    (Sohn et al. 2020, eq. 3 and 4, means over the labelled and over the unlabelled examples of a batch). Both views go
    through the model in one batch. Metrics of a step: each part, `confident`, the share of the unlabelled examples that
    count, and `accuracy` of the labelled ones. Pixels are in 0..1, where the source must leave them.
    """

    kind: Literal["fixmatch"] = "fixmatch"  # pyright: ignore[reportIncompatibleVariableOverride]
    weak: tuple[AnyAugment, ...] = (Crop(padding=2),)
    """What is done to an example that is looked at for its label."""
    strong: tuple[AnyAugment, ...] = (Crop(padding=2), RandAugment(), Cutout())
    """What is done to one that must get the same label."""
    threshold: Share = 0.95
    """How sure the model must be of a label."""
    weight: Positive = 1.0
    """What the unlabelled examples weigh beside the labelled ones."""
    model: Part = None
    learner: Part = None

    in_units = True
    mixes = False

    def update(self, train_state: Any, batch: Any, *, key: jax.Array) -> tuple[Any, dict[str, Any]]:
        """One step of the learner, with both views in the batch."""
        weak_key, strong_key, key = jax.random.split(key, 3)
        x = batch["x"]
        views = {"x": view(self.weak, x, weak_key), "strong": view(self.strong, x, strong_key)}
        return OneLoss.update(self, train_state, batch | views, key=key)

    def full_loss(self, params, state, batch, *, key, train):
        """Both parts as a dict of means; in evaluation the loss of the labels alone."""
        if not train:
            return OneLoss.full_loss(self, params, state, batch, key=key, train=False)
        n, mask = len(batch["x"]), batch.get("mask")
        both = jnp.concatenate([batch["x"], batch["strong"]])
        logits, state = self.model.apply(params, state, both, key=key, train=True)
        weak, strong = tree.wide(logits[:n]), tree.wide(logits[n:])
        labelled = losses.weighted(batch["labelled"], mask) if mask is not None else batch["labelled"]
        others = (1 - batch["labelled"]) * (1 if mask is None else mask)
        target = jax.lax.stop_gradient(jax.nn.softmax(weak))
        sure = (target.max(-1) >= self.threshold).astype(target.dtype)
        pseudo = losses.cross_entropy(strong, target.argmax(-1), mask=others * sure)
        means = {
            "supervised": self._criterion(weak, batch["y"], labelled, True),
            "unsupervised": Mean(self.weight * pseudo.total, others.sum()),
        }
        metrics = {"accuracy": mean_of(weak.argmax(-1) == batch["y"], labelled), "confident": mean_of(sure, others)}
        return means, state, metrics
