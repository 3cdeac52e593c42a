"""Boxes: overlap by counting pixels, suppression against a plain loop, slopes that stay finite, distances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import agree

from functrain import boxes

pytestmark = pytest.mark.usefixtures("quick")


def corners(seed, *shape, size=20, whole=False):
    """Random boxes [*shape, 4] that are not empty."""
    rng = np.random.default_rng(seed)
    low, sides = rng.uniform(0, size, (*shape, 2)), rng.uniform(1, 10, (*shape, 2))
    both = np.concatenate([low, low + sides], -1)
    return np.round(both) if whole else both


def pixels(box, size=40):
    """The box as a mask of unit squares."""
    at = np.arange(size)
    inside = [(at >= box[k]) & (at < box[k + 2]) for k in (0, 1)]
    return inside[1][:, None] & inside[0][None, :]


def test_overlap_is_that_of_counted_pixels(float64):
    """Area, IoU and generalised IoU of boxes on whole pixels, empty ones among them."""
    a, b = corners(0, 12, whole=True), corners(1, 9, whole=True)
    a[3], b[4] = [5, 5, 5, 9], [7, 6, 3, 9]
    masks_a, masks_b = [pixels(box) for box in a], [pixels(box) for box in b]
    agree(jax.jit(boxes.area)(a), np.array([m.sum() for m in masks_a], np.float64))
    counted = np.array([[(m & k).sum() / max((m | k).sum(), 1) for k in masks_b] for m in masks_a])
    agree(jax.jit(boxes.iou)(a, b), counted)
    hulls = [np.concatenate([np.minimum(p[:2], q[:2]), np.maximum(p[2:], q[2:])]) for p, q in zip(a, b)]
    hulls = np.array([pixels(hull).sum() for hull in hulls])
    union = np.array([(m | k).sum() for m, k in zip(masks_a, masks_b)])
    elementwise = np.diagonal(counted)
    agree(jax.jit(boxes.giou)(a[:9], b), elementwise - (hulls - union) / hulls)
    agree(jax.jit(boxes.giou_loss)(a[:9], b), 1 - elementwise + (hulls - union) / hulls)


def test_generalised_iou_has_finite_slopes_everywhere():
    """Of boxes without an area, turned round, equal, touching and far apart; in float32, and below the mask too."""
    cases = [[0, 0, 0, 0], [3, 3, 1, 1], [2, 2, 2, 5], [0, 0, 4, 4], [4, 0, 8, 4], [1e4, 1e4, 1e4 + 1, 1e4 + 1]]
    cases = jnp.array(cases, jnp.float32)
    a, b = (x.reshape(-1, 4) for x in jnp.broadcast_arrays(cases[:, None], cases[None]))
    value, slopes = jax.jit(jax.value_and_grad(lambda *ab: boxes.giou(*ab).sum(), (0, 1)))(a, b)
    assert np.isfinite(value)
    assert all(np.isfinite(slope).all() for slope in slopes)
    each = np.asarray(jax.jit(boxes.giou)(a, b))
    assert each.min() >= -1
    assert each.max() <= 1
    with pytest.raises(ValueError, match="differ in shape"):
        boxes.giou(a, b[:3])
    with pytest.raises(ValueError, match="last axis of 4"):
        boxes.area(a[:, :3])


def plain_nms(box, scores, classes, threshold, count):
    """What suppression is, with two loops."""
    taken = []
    for i in sorted(np.flatnonzero(np.isfinite(scores)).tolist(), key=lambda i: (-scores[i], i)):
        rivals = [box[j] for j in taken if classes[j] == classes[i]]
        if len(taken) < count and all(share(box[i], rival) <= threshold for rival in rivals):
            taken.append(i)
    return taken


def share(a, b):
    """The IoU of two boxes."""
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    inside, one, other = (np.prod(np.maximum(k, 0)) for k in (high - low, a[2:] - a[:2], b[2:] - b[:2]))
    return inside / (one + other - inside) if inside else 0.0


def check(found, expected, count):
    """What is taken, in that order, and nothing more."""
    index, valid = map(np.asarray, found)
    assert index.shape == valid.shape == (count,)
    assert index[valid].tolist() == expected
    assert valid.tolist() == [True] * len(expected) + [False] * (count - len(expected))
    assert not index[~valid].any()


def test_suppression_is_that_of_two_plain_loops(float64):
    """Random boxes with many equal scores, some empty and some left out; with classes and without, and over images."""
    n, count, threshold = 40, 25, 0.3
    one = jax.jit(lambda b, s: boxes.nms(b, s, threshold=threshold, count=count))
    many = jax.jit(jax.vmap(lambda b, s, c: boxes.nms_by_class(b, s, c, threshold=threshold, count=count)))
    box = np.stack([corners(seed, n, size=3 + 8 * seed) for seed in range(6)])
    rng = np.random.default_rng(9)
    scores = rng.integers(0, 8, (6, n)) / 8
    box[:, 5], scores[:, 7], scores[:, 8], scores[2] = 3.0, -np.inf, np.nan, -np.inf
    classes = rng.integers(0, 3, (6, n))
    by_class = many(box, scores, classes)
    lengths = []
    for i in range(6):
        expected = plain_nms(box[i], scores[i], np.zeros(n), threshold, count)
        check(one(box[i], scores[i]), expected, count)
        check([part[i] for part in by_class], plain_nms(box[i], scores[i], classes[i], threshold, count), count)
        lengths.append(len(expected))
    assert lengths[2] == 0
    assert min(lengths[:2]) < count == max(lengths)


def test_suppression_at_the_edges():
    """IoU at the threshold stays, a large coordinate does not blur classes, none of nothing, more than there are."""
    box = jnp.array([[0.0, 0.0, 2.0, 1.0], [0.0, 0.0, 1.0, 1.0]])  # IoU one half
    check(boxes.nms(box, jnp.array([1.0, 0.5]), threshold=0.5, count=2), [0, 1], 2)
    check(boxes.nms(box, jnp.array([1.0, 0.5]), threshold=0.49, count=3), [0], 3)
    check(boxes.nms(jnp.zeros((0, 4)), jnp.zeros(0), threshold=0.5, count=2), [], 2)
    far = box + 2.0**20  # an offset of 90 classes times this would swallow the boxes' sides
    found = boxes.nms_by_class(far, jnp.array([0.5, 0.5]), jnp.array([0, 90]), threshold=0.1, count=2)
    check(found, [0, 1], 2)
    with pytest.raises(ValueError, match="expected"):
        boxes.nms(box, jnp.ones(3), threshold=0.5, count=1)


def test_distances_give_the_box_back(float64):
    """Encoding is the formula, decoding its inverse; points and boxes broadcast; clipping cuts, and empties."""
    points, box = np.random.default_rng(0).uniform(0, 20, (7, 1, 2)), corners(3, 5)
    distances = boxes.encode(jnp.asarray(points), jnp.asarray(box))
    x, y = points[..., 0], points[..., 1]
    agree(distances, np.stack([x - box[:, 0], y - box[:, 1], box[:, 2] - x, box[:, 3] - y], -1))
    agree(boxes.decode(jnp.asarray(points), distances), np.broadcast_to(box, (7, 5, 4)).copy())
    clipped = np.asarray(boxes.clip(jnp.asarray(box - 5), height=8, width=11))
    assert (clipped >= 0).all()
    assert clipped[:, [0, 2]].max() == 11
    assert clipped[:, [1, 3]].max() == 8
    assert float(boxes.area(boxes.clip(jnp.array([-9.0, 1.0, -2.0, 3.0]), 8, 11))) == 0
    low = boxes.iou(jnp.asarray(box, jnp.bfloat16), jnp.asarray(box, jnp.bfloat16))
    assert low.dtype == jnp.float32
