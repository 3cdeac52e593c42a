"""Segmentation: each pixel of an image belongs to one of the classes."""

from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from functrain import losses
from functrain.config import ConfigError, Count, NonNegative, Part, configclass
from functrain.metrics import mean_of
from functrain.metrics.accumulators import over
from functrain.metrics.overlap import overlap_of
from functrain.observe.segmentation_figure import segmentation_picture
from functrain.tasks.base import OneLoss


@configclass
class Segmentation(OneLoss):
    """One class for each pixel, by cross-entropy, soft Dice or both; pixel accuracy, mean IoU and mean Dice as metrics.

    y is [n, height, width], integers; the model gives a logit for each class at each pixel. A batch's `mask` is [n] or
    [n, height, width]; its `weight` [n] weighs the loss. Cross-entropy is a mean over pixels, Dice one over examples.
    """

    kind: Literal["segmentation"] = "segmentation"
    criterion: Literal["cross_entropy", "dice", "both"] = "cross_entropy"
    """The loss: softmax cross-entropy of each pixel, the soft Dice loss of each example, or the sum of the two."""
    dice_weight: NonNegative = 1.0
    """What Dice is times in the sum; for both."""
    class_weights: tuple[NonNegative, ...] = ()
    """What each class weighs in the cross-entropy; empty is off."""
    classes: Count = 0
    """How many classes there are; 0 takes the largest label of all splits."""
    ignore: int = -1
    """The label of pixels that count in neither loss nor metrics, such as 255; -1 is none."""
    background: bool = True
    """Whether class 0 counts in the Dice loss, in mean IoU and in mean Dice."""
    model: Part = None
    learner: Part = None

    def __post_init__(self):
        if self.class_weights and self.criterion == "dice":
            raise ValueError("class_weights: they weigh the cross-entropy; found criterion = dice")
        if self.ignore < -1:
            raise ValueError(f"ignore: found {self.ignore}; expected a label from 0 up, or -1 for none")

    def outputs(self, dataset) -> int:
        """One logit a class, at each pixel."""
        labels = {s: part["y"] for s in ("train", "validation", "test") if "y" in (part := dataset.split(s))}
        first = labels.get("train")
        shape = dataset.inputs[:2]
        if first is None or not np.issubdtype(first.dtype, np.integer) or first.shape[1:] != shape:
            found = "none" if first is None else f"{first.dtype} {list(first.shape[1:])}"
            raise ConfigError(
                f"task.kind: segmentation needs integer labels y for each pixel, {list(shape)}; the data has {found}"
            )
        for split, y in labels.items():
            legal = y >= 0
            if self.classes:
                legal &= (y < self.classes) | (y == self.ignore)
            if not legal.all():
                at = tuple(map(int, np.argwhere(~legal)[0]))
                most = f" to {self.classes - 1}" if self.classes else " up"
                raise ConfigError(f"data: {split} y{list(at)}: label {y[at]}; expected 0{most}, or task.ignore")
        classes = self.classes or 1 + max(int(y[y != self.ignore].max(initial=0)) for y in labels.values())
        if self.class_weights and len(self.class_weights) != classes:
            raise ConfigError(f"task.class_weights: found {len(self.class_weights)}; expected {classes}, one a class")
        if self.class_weights and not any(self.class_weights):
            raise ConfigError("task.class_weights: all are 0; expected one above 0")
        if classes < 2:
            raise ConfigError("task.kind: segmentation needs two classes or more; the data has 1")
        return classes

    def places(self, dataset) -> int:
        """At how many places the model gives outputs: the pixels."""
        height, width = dataset.inputs[:2]
        return height * width

    def loss(self, outputs, batch, *, train):
        """The loss of logits [batch, height, width, classes] with labels [batch, height, width], and metrics."""
        labels, mask = batch["y"].astype(jnp.int32), batch.get("mask")
        if self.ignore >= 0:
            there = (labels != self.ignore).astype(jnp.float32)
            labels = jnp.where(labels == self.ignore, 0, labels)
            mask = there if mask is None else there * over(mask, there)
        predicted = outputs.argmax(-1)
        metrics: dict[str, Any] = {"accuracy": mean_of(predicted == labels, mask)}
        if not train:
            classes = outputs.shape[-1]
            metrics["overlap"] = overlap_of(predicted, labels, classes, mask, background=self.background)
        means = self._means(outputs, labels, losses.weighted(mask, batch.get("weight")))
        if len(means) == 1:
            return means[0], metrics
        return dict(zip(("cross_entropy", "dice_loss"), means)), metrics

    def _means(self, logits, labels, mask):
        """The parts of the loss."""
        means = []
        if self.criterion != "dice":
            means.append(losses.cross_entropy(logits, labels, mask=mask, class_weights=self.class_weights or None))
        if self.criterion != "cross_entropy":
            dice = losses.dice(logits, labels, mask=mask, background=self.background)
            means.append(dice.times(self.dice_weight) if self.criterion == "both" else dice)
        return tuple(means)

    def draw(self, outputs, batch, folder, names) -> list[Path]:
        """segmentation.png: images, true and predicted classes of some examples."""
        path = folder / "segmentation.png"
        segmentation_picture(batch["x"], batch["y"], outputs.argmax(-1), path)
        return [path]

    def predict(self, outputs) -> dict[str, Any]:
        """`class` [n, height, width] from logits [n, height, width, classes]."""
        return {"class": outputs.argmax(-1)}
