"""COCO's average precision and recall of detections, on the host, as its own evaluation counts them.

The rules are those of the COCO challenge (Lin et al. 2014; cocodataset.org, "Detection evaluation"):

- In each image and class, the detections are looked at from the best score on, 100 at most. Each takes that true box of
  its class which it overlaps most and by at least the threshold, if no better one has taken it already.
- Precision, made to fall with recall, is read at the recalls 0, 0.01 ... 1 and averaged; 0 where recall ends before.
- A crowd's overlap is the intersection over the detection's own area; any number of detections may take it. These count
  neither as right nor as wrong, nor do those that take a true box outside the range of areas, nor those outside of it
  that take none.
"""

from typing import Any, ClassVar

import numpy as np
from flax import struct

from functrain.metrics.accumulators import divided
from functrain.metrics.rows import Rows

THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""Of IoU."""
RECALLS = np.linspace(0, 1, 101)
"""At which precision is read."""
AREAS = {"": (0.0, 1e10), "_small": (0.0, 32.0**2), "_medium": (32.0**2, 96.0**2), "_large": (96.0**2, 1e10)}
"""Ranges of a box's area in pixels of the original image, both ends included."""
MOST = (1, 10, 100)
"""Detections in an image and class, the best ones."""
_GROUPS = 256
"""Groups that are matched at once; a group is what one image has of one class."""


@struct.dataclass
class Detections(Rows):
    """What was found in each image, and what is there.

    boxes: [n, d, 4], x0, y0, x1, y1.
    scores: [n, d].
    classes: [n, d] integers; where one is -1, or its score is not above 0, there is no detection.
    true_boxes: [n, m, 4].
    true_classes: [n, m] integers, -1 where there is no box.
    ignored: [n, m], 1 for a crowd (VOC's difficult objects are taken for one).
    scale: [n, 2], what x and y are times to be pixels of the original image, in which areas are measured.
    mask: [n].

    The area of a true box is the box's own; COCO's files have for some objects that of an outline, which is smaller.

    >>> box = np.array([[[0.0, 0.0, 9.0, 9.0]]])
    >>> one, none = np.ones((1, 1)), np.zeros((1, 1), int)
    >>> numbers = Detections(box, one, none, box + 1, none, none, np.ones((1, 2)), np.ones(1)).numbers()
    >>> [round(numbers[part], 2) for part in ("ap50", "ap75", "ap")]   # IoU 64 / 98: four of ten thresholds
    [1.0, 0.0, 0.4]
    """

    own: ClassVar[str] = "detections"
    parts: ClassVar[tuple[str, ...]] = (
        *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
        *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
    )

    boxes: Any
    scores: Any
    classes: Any
    true_boxes: Any
    true_classes: Any
    ignored: Any
    scale: Any
    mask: Any

    def numbers(self) -> dict[str, Any]:
        """COCO's twelve numbers, each the mean over the classes that have a true box in its range; nan if none has.

        ap: over the ten thresholds 0.5, 0.55 ... 0.95; ap50, ap75: at one. ap_small: areas up to 32^2 pixels;
        ap_medium: up to 96^2; ap_large. ar1, ar10, ar100: the recall with so many detections, over the thresholds.
        """
        return {part: float(_mean(values)) for part, values in self.by_class().items()}

    def by_class(self) -> dict[str, np.ndarray]:
        """The same of each class, [classes], up to the largest true one; nan for one without a true box in range."""
        true_classes = np.asarray(self.true_classes)
        classes = int(true_classes.max(initial=-1)) + 1
        crowd = np.asarray(self.ignored) != 0
        true = self._flat(true_classes >= 0, boxes=self.true_boxes, classes=true_classes, crowd=crowd)
        true["ignored"] = true["crowd"][:, None] | _outside(true["boxes"])
        found = self._found(classes)
        right, wrong = _judged(found, _sorted(true))

        shape = (classes, len(AREAS), len(THRESHOLDS))
        precision, recall = np.full(shape, np.nan), np.full((len(MOST), *shape), np.nan)
        for c in range(classes):
            count = (~true["ignored"][true["classes"] == c]).sum(0)
            own = np.flatnonzero(found["classes"] == c)
            own = own[np.argsort(-found["scores"][own], kind="stable")]  # equal ones in the order of the images
            precision[c] = _precision(right[own], wrong[own], count)
            for i, most in enumerate(MOST):
                first = own[found["rank"][own] < most]
                recall[i, c] = divided(right[first].sum(0), count[:, None])
        ranges = [(i, name) for i, name in enumerate(AREAS) if name]
        parts = {"ap": precision[:, 0].mean(-1), "ap50": precision[:, 0, 0], "ap75": precision[:, 0, 5]}
        parts |= {f"ap{name}": precision[:, i].mean(-1) for i, name in ranges}
        parts |= {f"ar{most}": recall[i, :, 0].mean(-1) for i, most in enumerate(MOST)}
        return parts | {f"ar{name}": recall[-1, :, i].mean(-1) for i, name in ranges}

    def _flat(self, there, **arrays):
        """The arrays, where a box is there, and the `images` that it is of; boxes in original pixels."""
        at = np.nonzero(there)
        flat = {name: np.asarray(array)[at] for name, array in arrays.items()}
        scale = np.asarray(self.scale, np.float64)[at[0]]
        return flat | {"boxes": flat["boxes"] * np.concatenate([scale, scale], -1), "images": at[0]}

    def _found(self, classes):
        """The detections that count, by image, class and falling score; `rank` is from 0 in each image and class."""
        scores, own = np.asarray(self.scores), np.asarray(self.classes)
        there = (own >= 0) & (own < classes) & (scores > 0)
        found = self._flat(there, boxes=self.boxes, classes=own, scores=scores)
        found = _sorted(found, -found["scores"])
        _, start, count = _groups(found)
        found["rank"] = np.arange(len(found["scores"])) - np.repeat(start, count)
        return {name: values[found["rank"] < MOST[-1]] for name, values in found.items()}


def _judged(found, true):
    """Which detections are right, and which are wrong: [detections, areas, thresholds] each; some are neither."""
    shape = (len(found["rank"]), len(AREAS), len(THRESHOLDS))
    hit, right = np.zeros(shape, bool), np.zeros(shape, bool)
    (keys, start, count), (true_keys, true_start, true_count) = _groups(found), _groups(true)
    _, mine, theirs = np.intersect1d(keys, true_keys, assume_unique=True, return_indices=True)
    by_size = np.argsort(true_count[theirs], kind="stable")  # like sizes together: little padding
    for at in range(0, len(by_size), _GROUPS):
        part = by_size[at : at + _GROUPS]
        part = part[np.argsort(-count[mine[part]], kind="stable")]
        rows, some = _padded(start[mine[part]], count[mine[part]])
        columns, there = _padded(true_start[theirs[part]], true_count[theirs[part]])
        crowd, ignored = true["crowd"][columns], true["ignored"][columns]
        overlap = np.where(there[:, None, :], _iou(found["boxes"][rows], true["boxes"][columns], crowd), -1.0)
        hits, rights = _matched(overlap, some.sum(0), crowd, ignored.swapaxes(1, 2))
        hit[rows[some]], right[rows[some]] = hits[some], rights[some]
    return right, ~hit & ~_outside(found["boxes"])[:, :, None]


def _matched(overlap, groups, crowd, ignored):
    """Which detections take a true box, and which take one that is not ignored: [g, d, areas, thresholds].

    overlap: [g, d, m] of g groups; groups [d]: how many of them, from the first on, have a detection of that rank.
    crowd: [g, m]. ignored: [g, areas, m].
    """
    g, d, m = overlap.shape
    hits = np.zeros((g, d, len(AREAS), len(THRESHOLDS)), bool)
    rights = np.zeros_like(hits)
    taken = np.zeros((g, len(AREAS), len(THRESHOLDS), m), bool)
    crowd = crowd[:, None, None, :]
    # Among those free and near enough: first one not ignored, then the largest overlap, then the last.
    order = np.argsort(np.argsort(overlap, -1, kind="stable"), -1) + 1
    above = np.where(ignored, 0, m)
    for i, n in enumerate(groups):
        near = overlap[:n, i, None, None, :] >= THRESHOLDS[:, None]
        wish = (order[:n, i, None, :] + above[:n])[:, :, None, :] * (near & (crowd[:n] | ~taken[:n]))
        best = wish.argmax(-1)[..., None]
        wish = np.take_along_axis(wish, best, -1)
        hits[:n, i], rights[:n, i] = wish[..., 0] > 0, wish[..., 0] > m
        np.put_along_axis(taken[:n], best, np.take_along_axis(taken[:n], best, -1) | (wish > 0), -1)
    return hits, rights


def _precision(right, wrong, count):
    """Its mean over the recalls, [areas, thresholds], of detections by falling score; nan where count [areas] is 0."""
    right, wrong = right.cumsum(0), wrong.cumsum(0)
    precision = right / (right + wrong + np.spacing(1.0))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    recall = divided(right, count[:, None])
    read = np.concatenate([precision, np.zeros((1, *precision.shape[1:]))])
    values = np.full(precision.shape[1:], np.nan)
    for a, t in np.ndindex(*values.shape):
        if count[a]:
            values[a, t] = read[np.searchsorted(recall[:, a, t], RECALLS), a, t].mean()
    return values


def _iou(a, b, crowd):
    """[g, d, m] of a [g, d, 4] and b [g, m, 4]; with a crowd, over the area of a alone."""
    a, b = a[:, :, None, :], b[:, None, :, :]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    inside = np.where((sides > 0).all(-1), sides[..., 0] * sides[..., 1], 0)
    union = np.where(crowd[:, None, :], _area(a), _area(a) + _area(b) - inside)
    return np.where(inside > 0, divided(inside, union), 0)


def _area(boxes):
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _outside(boxes):
    """[n, areas]: whether a box's area is outside the range."""
    low, high = np.array(list(AREAS.values())).T
    area = _area(boxes)[:, None]
    return (area < low) | (area > high)


def _sorted(flat, *then):
    """By image, class and what comes then; equal ones stay in their order."""
    order = np.lexsort((*then, flat["classes"], flat["images"]))
    return {name: values[order] for name, values in flat.items()}


def _groups(flat):
    """(key, start, count) of what each image has of each class, of boxes sorted by them."""
    key = flat["images"].astype(np.int64) << 32 | flat["classes"].astype(np.int64)
    return np.unique(key, return_index=True, return_counts=True)


def _padded(start, count):
    """Indices [groups, largest count] from each start on, and which of them there are; 0 where there is none."""
    place = np.arange(count.max())
    there = place < count[:, None]
    return np.where(there, start[:, None] + place, 0), there


def _mean(values):
    """Over the classes that have a value."""
    there = ~np.isnan(values)
    return divided(values[there].sum(), there.sum())
