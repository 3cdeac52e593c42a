"""Boxes against torchvision, average precision against pycocotools."""

import contextlib
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import agree
from torch_vision import torchvision

from functrain import boxes
from functrain.metrics.detection import Detections

pytestmark = pytest.mark.oracle


# -- average precision ----------------------------------------------------------------------------


def scenes(seed, images=12, classes=4, found=30, true=8, size=160.0, steps=20, crowd=0.2, grain=0.125):
    """Random Detections: most boxes near a true one, scores of few values, some images without one side or both."""
    rng = np.random.default_rng(seed)

    def corners(*shape):
        low = rng.uniform(0, 0.6 * size, (*shape, 2))
        return np.concatenate([low, low + rng.uniform(2, 0.8 * size, (*shape, 2))], -1)

    true_boxes = corners(images, true)
    true_classes = rng.integers(-1, classes - 1, (images, true))  # the last class has no true box
    near = rng.integers(0, true, (images, found))
    boxes = np.take_along_axis(true_boxes, near[..., None], 1) + rng.normal(0, size / 27, (images, found, 4))
    boxes = np.where(rng.random((images, found, 1)) < 0.2, corners(images, found), boxes)
    boxes[..., 2:] = np.maximum(boxes[..., 2:], boxes[..., :2] + grain)
    own = np.take_along_axis(true_classes, near, 1)
    own = np.where(rng.random(own.shape) < 0.2, rng.integers(-1, classes, own.shape), own)
    scores = rng.integers(0, steps, own.shape) / steps  # many are equal; those of 0 are none
    true_classes[0], own[1], true_classes[2], own[2] = -1, -1, -1, -1
    # Few bits, so that x0 + (x1 - x0) is x1 in pycocotools too.
    boxes, true_boxes = np.round(boxes / grain) * grain, np.round(true_boxes / grain) * grain
    ignored = (rng.random(true_classes.shape) < crowd) & (true_classes >= 0)
    scale = np.stack([rng.choice([0.5, 1.0, 2.0], images), rng.choice([0.5, 1.0], images)], 1)
    return Detections(
        boxes.astype(np.float32), scores.astype(np.float32), own, true_boxes.astype(np.float32), true_classes,
        ignored.astype(np.uint8), scale.astype(np.float32), np.ones(images, np.float32),
    )  # fmt: skip


def by_pycocotools(rows):
    """The twelve numbers, nan for its -1; and the same of each class, [12, classes]."""
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    original = np.tile(np.asarray(rows.scale, np.float64), 2)[:, None]
    boxes, true_boxes = rows.boxes * original, rows.true_boxes * original

    def records(boxes, classes, more):
        found = []
        for i, k in zip(*np.nonzero(classes >= 0)):
            x0, y0, x1, y1 = boxes[i, k].tolist()
            box = [x0, y0, x1 - x0, y1 - y0]
            found.append({"image_id": int(i), "category_id": int(classes[i, k]) + 1, "bbox": box, **more(i, k)})
            found[-1] |= {"id": len(found), "area": box[2] * box[3]}
        return found

    classes = int(max(rows.classes.max(), rows.true_classes.max())) + 1
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO()
        truth.dataset = {
            "images": [{"id": i} for i in range(len(rows.boxes))],
            "categories": [{"id": c + 1} for c in range(classes)],
            "annotations": records(true_boxes, rows.true_classes, lambda i, k: {"iscrowd": int(rows.ignored[i, k])}),
        }
        truth.createIndex()
        there = np.where(rows.scores > 0, rows.classes, -1)
        answers = truth.loadRes(records(boxes, there, lambda i, k: {"score": float(rows.scores[i, k])}))
        scored = cocoeval.COCOeval(truth, answers, "bbox")
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
        whole = scored.stats
        every, each = dict(scored.eval), []
        for c in range(classes):
            scored.eval = every | {name: every[name][..., c : c + 1, :, :] for name in ("precision", "recall")}
            scored.summarize()
            each.append(scored.stats)
    return np.where(whole < 0, np.nan, whole), np.where(np.array(each) < 0, np.nan, each).T


CASES = {
    "small": {},
    "much": {"images": 40, "classes": 7, "steps": 1000},
    "more than a hundred in a class": {"images": 4, "classes": 2, "found": 260, "true": 14},
    "no crowd, no ties": {"crowd": 0.0, "steps": 10**6},
    "crowds alone": {"crowd": 1.0},
    "large ones": {"size": 400.0, "classes": 3},
    "small ones": {"size": 30.0, "classes": 3},
    "boxes at the thresholds": {"images": 60, "size": 24.0, "grain": 4.0, "classes": 3},
}


@pytest.mark.parametrize("case", CASES)
def test_average_precision_is_that_of_pycocotools(case):
    """All twelve numbers, and each class's, over random scenes; nan where pycocotools says -1."""
    for seed in range(3):
        rows = scenes(seed, **CASES[case])
        whole, each = by_pycocotools(rows)
        numbers, by_class = rows.numbers(), rows.by_class()
        assert tuple(numbers) == tuple(by_class) == Detections.parts
        np.testing.assert_allclose(list(numbers.values()), whole, rtol=0, atol=1e-12)
        ours = np.stack(list(by_class.values()))
        np.testing.assert_allclose(ours, each[:, : ours.shape[1]], rtol=0, atol=1e-12)
        assert np.isnan(each[:, ours.shape[1] :]).all()
        assert case == "crowds alone" or 0.02 < numbers["ap"] < 0.98


def test_at_most_a_hundred_are_looked_at():
    """The case of that name holds more than a hundred detections of one image and class."""
    rows = scenes(0, **CASES["more than a hundred in a class"])
    assert ((rows.classes == 0) & (rows.scores > 0)).sum(1).max() > 100


# -- boxes ----------------------------------------------------------------------------------------


def pairs(seed, n, m):
    """Boxes [n, 4] and [m, 4], some apart, some equal, one inside another."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(-20, 20, (n + m, 2))
    both = np.concatenate([low, low + rng.uniform(1, 25, (n + m, 2))], -1)
    both[n], both[n + 1] = both[0], np.concatenate([both[1, :2] + 0.25, both[1, 2:] - 0.25])
    return both[:n], both[n:]


def test_overlaps_are_those_of_torchvision(float64, quick):
    """Area and clipping; IoU and generalised IoU with their gradients; in float64."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'functrain[oracle]'")
    ops = torchvision().ops
    a, b = pairs(0, 7, 5)
    agree(jax.jit(boxes.area)(a), ops.box_area(torch.tensor(a)))
    agree(boxes.clip(jnp.asarray(a), 11, 17), ops.clip_boxes_to_image(torch.tensor(a), (11, 17)))

    def both_ways(ours, theirs, a, b):
        """Values, and the gradients of a weighted sum of them."""
        sides = [torch.tensor(side, requires_grad=True) for side in (a, b)]
        value = theirs(*sides)
        cotangent = np.random.default_rng(1).normal(size=value.shape)
        value.backward(torch.tensor(cotangent))
        agree(jax.jit(ours)(a, b), value)
        slopes = jax.jit(jax.grad(lambda a, b: (ours(a, b) * cotangent).sum(), (0, 1)))(a, b)
        for slope, side in zip(slopes, sides):
            agree(slope, side.grad)

    both_ways(boxes.iou, ops.box_iou, a[1:], b[1:])
    both_ways(boxes.giou, lambda a, b: torch.diagonal(ops.generalized_box_iou(a, b)), a[1:5], b[1:])
    loss = lambda a, b: ops.generalized_box_iou_loss(a, b, eps=0.0)  # noqa: E731
    both_ways(boxes.giou_loss, loss, a[1:5], b[1:])
    agree(jax.jit(boxes.iou)(a, b), ops.box_iou(torch.tensor(a), torch.tensor(b)))
    assert float(boxes.giou(jnp.asarray(a[0]), jnp.asarray(b[0]))) == 1.0
