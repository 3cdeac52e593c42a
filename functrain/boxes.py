"""Boxes [..., 4]: (x0, y0, x1, y1) in pixels, x to the right and y down; overlap, suppression, distances from points.

A box with x1 <= x0 or y1 <= y0 is empty: its area is 0, and so is its overlap with any other. Everything is pure and
computes in at least float32.
"""

from typing import Any

import jax
import jax.numpy as jnp

from functrain import tree


def area(boxes: jax.Array) -> jax.Array:
    """(x1 - x0) (y1 - y0), 0 for an empty box: [..., 4] -> [...].

    >>> area(jnp.array([[0.0, 0.0, 2.0, 3.0], [5.0, 5.0, 4.0, 9.0]])).tolist()
    [6.0, 0.0]
    """
    boxes = _boxes(boxes)
    return _product(boxes[..., :2], boxes[..., 2:])


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Each of a [n, 4] with each of b [m, 4]: the area of their intersection over that of their union, [n, m].

    0 where both are empty.

    >>> iou(jnp.array([[0.0, 0.0, 3.0, 1.0]]), jnp.array([[0.0, 0.0, 3.0, 1.0], [1.0, 0.0, 4.0, 1.0]])).tolist()
    [[1.0, 0.5]]
    """
    a, b = _boxes(a), _boxes(b)
    return _shared(a[:, None, :], b[None, :, :])[0]


def giou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Generalised IoU of each of a [..., 4] with its own of b [..., 4]: [...], in -1..1.

    IoU - (hull - union) / hull, where the hull is the smallest box around both (Rezatofighi et al. 2019, algorithm 1).
    Values and slopes are finite for empty boxes too.

    Raises:
      ValueError: the shapes differ.

    >>> giou(jnp.array([0.0, 0.0, 1.0, 1.0]), jnp.array([3.0, 0.0, 4.0, 1.0])).tolist()   # hull 4, union 2
    -0.5
    """
    a, b = _boxes(a), _boxes(b)
    if a.shape != b.shape:
        raise ValueError(f"boxes {a.shape} and {b.shape} differ in shape")
    overlap, union = _shared(a, b)
    hull = _product(jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:]))
    return overlap - _ratio(hull - union, hull)


def giou_loss(a: jax.Array, b: jax.Array) -> jax.Array:
    """1 - giou(a, b), elementwise: [...], 0 for equal boxes, up to 2 (Rezatofighi et al. 2019, algorithm 2).

    >>> giou_loss(jnp.array([[0.0, 0.0, 1.0, 1.0]]), jnp.array([[0.0, 0.0, 1.0, 1.0]])).tolist()
    [0.0]
    """
    return 1 - giou(a, b)


def nms(boxes: jax.Array, scores: jax.Array, *, threshold: Any, count: int) -> tuple[jax.Array, jax.Array]:
    """Greedy suppression: the best box is taken, those that overlap it by more than `threshold` go, and so on.

    Of equal scores the lower index comes first. It runs under jit and vmap, in memory for n boxes alone.

    Args:
      boxes: [n, 4].
      scores: [n]; -inf and nan are never taken.
      threshold: the IoU above which a box is suppressed.
      count: how many are taken at most; it is static.

    Returns:
      (index, valid), both [count]: which boxes are taken, best first, and where there is one at all; there the index
      is 0 where there is none.

    >>> boxes = jnp.array([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.1], [5.0, 5.0, 6.0, 6.0]])
    >>> index, valid = nms(boxes, jnp.array([0.5, 0.9, 0.1]), threshold=0.5, count=3)
    >>> index.tolist(), valid.tolist()
    ([1, 2, 0], [True, True, False])
    """
    return nms_by_class(boxes, scores, jnp.zeros(scores.shape, jnp.int32), threshold=threshold, count=count)


def nms_by_class(
    boxes: jax.Array, scores: jax.Array, classes: jax.Array, *, threshold: Any, count: int
) -> tuple[jax.Array, jax.Array]:
    """`nms` in which a box suppresses only those of its own class; the `count` best of all classes are taken.

    Args:
      boxes: [n, 4].
      scores: [n]; -inf and nan are never taken.
      classes: [n] integers.
      threshold: the IoU above which a box is suppressed.
      count: how many are taken at most; it is static.

    Returns:
      (index, valid), both [count], as in `nms`.

    >>> boxes = jnp.array([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.1], [0.0, 0.0, 2.0, 2.0]])
    >>> index, valid = nms_by_class(
    ...     boxes, jnp.array([0.5, 0.9, 0.1]), jnp.array([0, 0, 1]), threshold=0.5, count=2
    ... )
    >>> index.tolist(), valid.tolist()
    ([1, 2], [True, True])
    """
    boxes = _boxes(boxes)
    if boxes.shape != (*scores.shape, 4) or classes.shape != scores.shape or scores.ndim != 1:
        raise ValueError(
            f"boxes {boxes.shape}, scores {scores.shape}, classes {classes.shape}: expected [n, 4] and [n]"
        )
    if not len(scores):
        return jnp.zeros(count, jnp.int32), jnp.zeros(count, bool)

    def take(left, _):
        best = jnp.argmax(left).astype(jnp.int32)  # the first of equal ones
        valid = left[best] > -jnp.inf
        gone = (_shared(boxes[best], boxes)[0] > threshold) & (classes == classes[best])
        # A box need not overlap itself: an empty one has IoU 0 with all.
        gone |= jnp.arange(len(left)) == best
        return jnp.where(gone, -jnp.inf, left), (jnp.where(valid, best, 0), valid)

    left = jnp.where(jnp.isnan(scores), -jnp.inf, tree.wide(scores))
    return jax.lax.scan(take, left, None, length=count)[1]


def encode(points: jax.Array, boxes: jax.Array) -> jax.Array:
    """How far the left, top, right and bottom edge of a box is from a point: (x - x0, y - y0, x1 - x, y1 - y).

    Tian et al. 2019 (FCOS), eq. 1. Negative where the point is outside.

    Args:
      points: [..., 2], x and y.
      boxes: [..., 4]; the leading axes broadcast.

    >>> encode(jnp.array([3.0, 4.0]), jnp.array([1.0, 1.0, 9.0, 5.0])).tolist()
    [2.0, 3.0, 6.0, 1.0]
    """
    points, boxes = tree.wide(points), _boxes(boxes)
    return jnp.concatenate(jnp.broadcast_arrays(points - boxes[..., :2], boxes[..., 2:] - points), -1)


def decode(points: jax.Array, distances: jax.Array) -> jax.Array:
    """The box whose edges are that far from a point, the inverse of `encode`: (x - l, y - t, x + r, y + b).

    Args:
      points: [..., 2], x and y.
      distances: [..., 4], left, top, right, bottom; the leading axes broadcast.

    >>> decode(jnp.array([3.0, 4.0]), jnp.array([2.0, 3.0, 6.0, 1.0])).tolist()
    [1.0, 1.0, 9.0, 5.0]
    """
    points, distances = tree.wide(points), _boxes(distances)
    return jnp.concatenate(jnp.broadcast_arrays(points - distances[..., :2], points + distances[..., 2:]), -1)


def clip(boxes: jax.Array, height: Any, width: Any) -> jax.Array:
    """What of each box [..., 4] lies inside an image; a box outside becomes empty.

    >>> clip(jnp.array([-1.0, 2.0, 9.0, 8.0]), height=4, width=6).tolist()
    [0.0, 2.0, 6.0, 4.0]
    """
    boxes = _boxes(boxes)
    return jnp.clip(boxes, 0, jnp.stack([jnp.asarray(side, boxes.dtype) for side in (width, height, width, height)]))


def _boxes(x):
    """At least float32, with a last axis of four."""
    if x.shape[-1:] != (4,):
        raise ValueError(f"boxes {x.shape}: expected a last axis of 4")
    return tree.wide(x)


def _product(low, high):
    """The area between two corners [..., 2]; 0 where it is empty."""
    sides = jnp.maximum(high - low, 0)
    return sides[..., 0] * sides[..., 1]


def _shared(a, b):
    """(IoU, area of the union) of boxes that broadcast."""
    inside = _product(jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:]))
    union = _product(a[..., :2], a[..., 2:]) + _product(b[..., :2], b[..., 2:]) - inside
    return _ratio(inside, union), union


def _ratio(a, b):
    """a / b; 0, with slope 0, where b is 0."""
    some = b > 0
    return jnp.where(some, a / jnp.where(some, b, 1), 0)
