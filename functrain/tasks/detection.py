"""Detection: which objects are where in an image, each as a box and a class (FCOS: Tian et al. 2019 and 2020)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from functrain import boxes as box
from functrain import losses, tree
from functrain.config import ConfigError, Fraction, NonNegative, Part, Size, configclass, off
from functrain.metrics import Mean, mean_of
from functrain.metrics.detection import Detections
from functrain.observe.boxes_figure import draw_boxes
from functrain.tasks.base import OneLoss

_DRAWN = 0.4
"""The score from which a detection is drawn."""


@configclass
class Detection(OneLoss):
    """Boxes and classes by a detector without anchors: focal loss, generalised IoU and a quality; average precision.

    A batch has `boxes` [n, m, 4] (x0, y0, x1, y1 in pixels of x), `labels` [n, m] (-1 where there is no box) and, for
    evaluation, `scale` [n, 2]; `ignored` [n, m] marks boxes that are neither learned nor counted as background.

    Each loss is a sum over a count of its own, and both add up over examples, so that micro-batches are exact:

    class_loss    focal loss of all points and classes / positive points, at least one an image
    box_loss      centre-ness times 1 - GIoU of the positive points / their centre-ness
    quality_loss  binary cross-entropy of the quality of the positive points / their number
    """

    kind: Literal["detection"] = "detection"
    radius: NonNegative = 1.5
    """How far from the centre of a box its points lie at most, in strides; 0 takes all points inside the box."""
    quality: Literal["centre", "iou"] = "centre"
    """What the third output learns: the centre-ness of its point, or the IoU of its box."""
    alpha: Fraction = 0.25
    """The weight of the positive classes in the focal loss; the others have 1 - alpha. 0 weighs neither."""
    gamma: NonNegative = 2.0
    """How much less easy examples weigh in the focal loss."""
    candidates: Size = 300
    """Boxes of an image, the best of all points and classes, of which the others are suppressed."""
    overlap: Fraction = 0.6
    """The IoU with a better box of the same class above which a box is suppressed."""
    most: Size = 100
    """Boxes given for an image at most."""
    least_score: Fraction = 0.01
    """The score below which a box is not given."""
    model: Part = None
    learner: Part = None

    def outputs(self, dataset) -> int:
        """One logit a class."""
        missing = {"boxes", "labels"} - dataset.train.keys()
        if missing or not dataset.classes:
            raise ConfigError(
                "task.kind: detection needs boxes and labels (data.kind = voc or coco); "
                f"the data has: {', '.join(sorted(dataset.train))}"
            )
        return dataset.classes

    def assemble(self, model, learner) -> "Detection":
        """The task with its model, which must say where its points are."""
        if not hasattr(model, "points"):
            raise ConfigError("model.kind: task.kind = detection needs a detector (fcos)")
        return super().assemble(model, learner)

    def loss(self, outputs, batch, *, train):
        """The three losses of a detector's outputs; in evaluation the detections too."""
        centres = self.model.points.centres
        ignored = batch.get("ignored", jnp.zeros(batch["labels"].shape, bool))
        matched, counted = jax.vmap(self.match)(batch["boxes"], batch["labels"], ignored)
        positive = matched >= 0
        row = jnp.maximum(matched, 0)
        labels = jnp.take_along_axis(batch["labels"], row, 1)
        targets = box.encode(centres, jnp.take_along_axis(batch["boxes"], row[..., None], 1))

        # What is not positive learns no box: ones on both sides, whose slopes are finite.
        targets = jnp.where(positive[..., None], targets, 1)
        found = jnp.where(positive[..., None], outputs["distances"], 1)
        centre = centreness(targets)
        giou = box.giou(box.decode(centres, found), box.decode(centres, targets))

        mask = losses.weighted(batch.get("mask"), batch.get("weight"))
        weights = jnp.ones(len(positive)) if mask is None else mask
        positives = positive * weights[:, None]
        hot = jax.nn.one_hot(jnp.where(positive, labels, -1), outputs["classes"].shape[-1])
        alpha = None if off(self.alpha) else self.alpha
        counts = counted * weights[:, None]
        focal = losses.binary_focal(outputs["classes"], hot, mask=counts, alpha=alpha, gamma=self.gamma)
        # An image without objects counts as one point: a count of the whole batch alone would not add up.
        count = (weights * jnp.maximum(positive.sum(1), 1)).sum().astype(focal.total.dtype)
        quality = centre if self.quality == "centre" else self._overlap(found, targets)
        means = {
            "class_loss": Mean(focal.total, count),
            "box_loss": mean_of(1 - giou, positives * centre),
            "quality_loss": losses.binary_cross_entropy(outputs["quality"], quality, mask=positives),
        }
        return means, {} if train else {"detections": self._detections(outputs, batch, ignored)}

    def match(self, boxes, labels, ignored):
        """Which box each point of one image learns (Tian et al. 2019, section 3.2; 2020, section 3.1).

        A point learns a box in which it lies, at most `radius` strides from the box's centre along each axis, and whose
        farthest side is within the range of the point's level; of several boxes the smallest, of equal ones the first.

        Args:
          boxes: [m, 4].
          labels: [m], -1 where there is no box.
          ignored: [m], nonzero for boxes that no point learns.

        Returns:
          (matched [points], the number of the box or -1; counted [points], false where a point without a box lies in
          an ignored one: it may see an object).
        """
        points = self.model.points
        boxes, present = tree.wide(boxes), labels >= 0
        sides = box.encode(points.centres[:, None], boxes[None])
        inside = sides.min(-1) > 0
        farthest = sides.max(-1)
        fits = inside & (farthest >= points.ranges[:, :1]) & (farthest <= points.ranges[:, 1:])
        if not off(self.radius):
            middle = (boxes[:, :2] + boxes[:, 2:]) / 2
            away = jnp.abs(points.centres[:, None] - middle).max(-1)
            fits &= away < self.radius * points.strides[:, None]
        fits &= present & (ignored == 0)
        matched = jnp.where(fits.any(1), jnp.where(fits, box.area(boxes), jnp.inf).argmin(1), -1)
        uncertain = (inside & present & (ignored != 0)).any(1)
        return matched, (matched >= 0) | ~uncertain

    def _overlap(self, found, targets):
        """The IoU of boxes given by their distances from the same points; nothing is learned through it."""
        shared = jnp.minimum(found, targets)
        area, other, both = ((d[..., 0] + d[..., 2]) * (d[..., 1] + d[..., 3]) for d in (found, targets, shared))
        return jax.lax.stop_gradient(both / (area + other - both))

    def _detections(self, outputs, batch, ignored):
        given = self.predict(outputs)
        n = len(given["scores"])
        return Detections(
            **given,
            true_boxes=batch["boxes"],
            true_classes=batch["labels"],
            ignored=ignored,
            scale=batch.get("scale", jnp.ones((n, 2))),
            mask=batch.get("mask", jnp.ones(n)),
        )

    def predict(self, outputs) -> dict[str, Any]:
        """`boxes` [n, most, 4] in pixels of the model's images, `scores` and `classes` [n, most], the best first.

        The score is the geometric mean of the probabilities of class and quality (Tian et al. 2020, eq. 4). Where there
        is no further box, the score is 0 and the class -1.
        """
        return jax.vmap(self._predict)(outputs)

    def draw(self, outputs, batch, folder: Path, names: Sequence[str]) -> list[Path]:
        """boxes.png: the batch's images with their true boxes and the likelier ones of those found."""
        names = names or [str(c) for c in range(outputs["classes"].shape[-1])]
        found = jax.device_get(jax.jit(self.predict)(outputs))
        path = folder / "boxes.png"
        draw_boxes(batch["x"], batch, found, names, path, least=_DRAWN)
        return [path]

    def _predict(self, outputs):
        points = self.model.points
        log_scores = jax.nn.log_sigmoid(outputs["classes"]) + jax.nn.log_sigmoid(outputs["quality"])[:, None]
        scores = jnp.exp(log_scores / 2)
        best, at = jax.lax.top_k(scores.ravel(), min(self.candidates, scores.size))
        point, classes = at // scores.shape[1], at % scores.shape[1]
        height, width = self.model.inputs[:2]
        boxes = box.clip(box.decode(points.centres, outputs["distances"])[point], height, width)
        best = jnp.where(best >= self.least_score, best, -jnp.inf)
        index, valid = box.nms_by_class(boxes, best, classes, threshold=self.overlap, count=self.most)
        return {
            "boxes": jnp.where(valid[:, None], boxes[index], 0),
            "scores": jnp.where(valid, best[index], 0),
            "classes": jnp.where(valid, classes[index], -1),
        }


def centreness(distances: jax.Array) -> jax.Array:
    """How central a point is in its box, 1 at the centre and 0 at a side, from its distances [..., 4] to the sides.

    sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)): Tian et al. 2019, eq. 3.

    >>> centreness(jnp.array([[2.0, 3.0, 2.0, 3.0], [1.0, 2.0, 4.0, 2.0]])).tolist()
    [1.0, 0.5]
    """
    low, high = (f(distances[..., :2], distances[..., 2:]) for f in (jnp.minimum, jnp.maximum))
    return jnp.sqrt((low / high).prod(-1))
