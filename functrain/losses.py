"""Losses as masked sums and counts: each returns a `Mean`, never a number that was divided already.

Every one computes in at least float32, takes a `mask` (or weights) that leads the shape of its elements, and refuses
arrays whose shapes would have to be broadcast.

classes         cross_entropy  focal  hinge  crammer_singer  dice
yes or no       binary_cross_entropy  binary_focal  binary_hinge
numbers         squared_error  absolute_error  huber
distributions   kl_divergence  normal_kl
vectors         cosine  triplet  contrastive  info_nce  nt_xent
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from functrain import tree
from functrain.config import off
from functrain.metrics import Mean, mean_of
from functrain.metrics.accumulators import over

# -- classes --------------------------------------------------------------------------------------


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    mask: jax.Array | None = None,
    smoothing: Any = 0.0,
    class_weights: Any = None,
) -> Mean:
    """Softmax cross-entropy, -log softmax(logits)[label], in at least float32.

    Args:
      logits: [batch, ..., classes].
      labels: [batch, ...] integers in [0, classes).
      mask: weights that lead the labels' shape; None counts all.
      smoothing: the share of each target spread evenly over all classes (Szegedy et al. 2016,
        section 7); 0.0 (a Python float) leaves the term out of the program.
      class_weights: [classes]; an example's loss and its count are times the weight of its label. Of what smoothing
        spreads, each class has its own weight (as in torch.nn.CrossEntropyLoss).

    >>> cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3])).value.round(4)   # log(4)
    np.float32(1.3863)
    """
    logits = _with_classes(logits, labels)
    mean = _mean_by_class(optax.softmax_cross_entropy_with_integer_labels(logits, labels), labels, mask, class_weights)
    if off(smoothing):
        return mean
    each = -jax.nn.log_softmax(logits)
    uniform = mean_of((each if class_weights is None else each * jnp.asarray(class_weights, each.dtype)).mean(-1), mask)
    return Mean((1 - smoothing) * mean.total + smoothing * uniform.total, mean.count)


def focal(
    logits: jax.Array, labels: jax.Array, *, mask: jax.Array | None = None, gamma: Any = 2.0, class_weights: Any = None
) -> Mean:
    """The focal loss of a softmax, -a_t (1 - p_t)^gamma log p_t with p_t = softmax(logits)[label].

    Lin et al. 2017, eq. 5, with classes for their two. For gamma = 0 it is cross-entropy.

    Args:
      logits: [batch, ..., classes], two classes or more.
      labels: [batch, ...] integers in [0, classes).
      class_weights: [classes], the paper's a_t; they weigh the count too, as in `cross_entropy`.

    >>> focal(jnp.zeros((2, 4)), jnp.array([0, 3]), gamma=2.0).value.round(4)   # (3/4)^2 log(4)
    np.float32(0.7798)
    """
    logits = _with_classes(logits, labels)
    if logits.shape[-1] < 2:
        raise ValueError("focal: one class alone; binary_focal takes a single logit")
    # log(1 - p_t) from the other classes' logits: its slope is finite where 1 - p_t rounds to zero.
    own = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    log_others = jax.nn.logsumexp(logits, -1, where=~own) - jax.nn.logsumexp(logits, -1)
    losses = jnp.exp(gamma * log_others) * optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return _mean_by_class(losses, labels, mask, class_weights)


def hinge(
    logits: jax.Array, labels: jax.Array, *, mask: jax.Array | None = None, margin: Any = 1.0, class_weights: Any = None
) -> Mean:
    """The multi-class hinge loss that sums over the other classes: sum_{j != y} max(0, margin - x_y + x_j) / classes.

    Weston and Watkins 1999, section 2, over the number of classes (torch.nn.MultiMarginLoss, p = 1).

    Args:
      logits: [batch, ..., classes]: scores.
      labels: [batch, ...] integers in [0, classes).
      class_weights: [classes]; they weigh the count too, as in `cross_entropy`.

    >>> float(hinge(jnp.array([[2.0, 1.5, -1.0, 0.0]]), jnp.array([0])).value)
    0.125
    """
    logits = _with_classes(logits, labels)
    mine = jnp.take_along_axis(logits, labels[..., None], -1)
    own = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    losses = jnp.where(own, 0, jax.nn.relu(margin - mine + logits)).mean(-1)
    return _mean_by_class(losses, labels, mask, class_weights)


def crammer_singer(logits: jax.Array, labels: jax.Array, *, mask: jax.Array | None = None) -> Mean:
    """The multi-class hinge loss of the strongest rival: max(0, 1 - x_y + max_{j != y} x_j).

    Crammer and Singer 2001, eq. 1 and 5.

    Args:
      logits: [batch, ..., classes]: scores.
      labels: [batch, ...] integers in [0, classes).

    >>> float(crammer_singer(jnp.array([[2.0, 1.5, -1.0, 0.0]]), jnp.array([0])).value)
    0.5
    """
    return mean_of(optax.losses.multiclass_hinge_loss(_with_classes(logits, labels), labels), mask)


def dice(
    logits: jax.Array,
    labels: jax.Array,
    *,
    mask: jax.Array | None = None,
    smoothing: Any = 1.0,
    background: bool = True,
) -> Mean:
    """The soft Dice loss of each example, 1 - mean over c of (2 sum_i p_ic t_ic + s) / (sum_i p_ic + sum_i t_ic + s).

    p is the softmax of the logits, t is 1 at the label's class and 0 elsewhere, s the smoothing, i runs over the pixels
    of one example (Milletari et al. 2016, section 3, by class and with plain sums for their squares). An example
    counts once, so that over micro-batches it adds exactly; sums over the pixels of a whole batch would not.

    Args:
      logits: [batch, ..., classes].
      labels: [batch, ...] integers in [0, classes).
      mask: weights that lead the labels' shape, [batch] or of pixels; None counts all. An example weighs as much as its
        heaviest pixel; inside it the pixels weigh against one another.
      smoothing: above 0; a class that neither is there nor is predicted then has Dice 1.
      background: whether class 0 is among the classes.

    >>> labels = jnp.array([[0, 1, 1, 1]])
    >>> dice(20 * jax.nn.one_hot(labels, 2), labels).value.round(4)   # all right
    np.float32(0.0)
    >>> dice(jnp.zeros((1, 4, 2)), labels).value.round(4)   # 1 - ((1 + 1) / (3 + 1) + (3 + 1) / (5 + 1)) / 2
    np.float32(0.4167)
    """
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"logits {logits.shape} and labels {labels.shape}: expected labels {logits.shape[:-1]}")
    classes = logits.shape[-1]
    if classes < 2 and not background:
        raise ValueError("dice: one class alone, and it is the background")
    weights = over(mask, labels).reshape(len(labels), -1)
    heaviest = weights.max(1)
    within = (weights / jnp.where(heaviest > 0, heaviest, 1)[:, None])[..., None]
    said = jax.nn.softmax(tree.wide(logits)).reshape(len(labels), -1, classes)
    said = jnp.where(within > 0, said * within, 0)
    true = jax.nn.one_hot(labels.reshape(len(labels), -1), classes, dtype=said.dtype)
    both, each = (said * true).sum(1), (said + within * true).sum(1)
    share = (2 * both + smoothing) / (each + smoothing)
    return mean_of(1 - (share if background else share[:, 1:]).mean(-1), heaviest)


# -- yes or no ------------------------------------------------------------------------------------


def binary_cross_entropy(
    logits: jax.Array, targets: jax.Array, *, mask: jax.Array | None = None, positive_weight: Any = None
) -> Mean:
    """-w t log sigmoid(x) - (1 - t) log sigmoid(-x) of every element.

    Args:
      logits: [batch, ...].
      targets: 0 and 1, or anything between, in the shape of the logits.
      positive_weight: w, a number or [...] that broadcasts to the logits; None is 1. The count is not weighted.

    >>> binary_cross_entropy(jnp.zeros(2), jnp.array([0, 1])).value.round(4)   # log(2)
    np.float32(0.6931)
    """
    logits, targets = _alike(logits=logits, targets=targets)
    positive = -jax.nn.log_sigmoid(logits)
    if positive_weight is not None:
        positive = jnp.asarray(positive_weight, logits.dtype) * positive
    return mean_of(targets * positive - (1 - targets) * jax.nn.log_sigmoid(-logits), mask)


def binary_focal(
    logits: jax.Array,
    targets: jax.Array,
    *,
    mask: jax.Array | None = None,
    gamma: Any = 2.0,
    alpha: Any = None,
    positive_weight: Any = None,
) -> Mean:
    """The focal loss, -a_t (1 - p_t)^gamma log p_t with p_t = sigmoid(x) where the target is 1, 1 - sigmoid(x) where 0.

    Lin et al. 2017, eq. 5. For gamma = 0 it is binary cross-entropy.

    Args:
      logits: [batch, ...].
      targets: 0 and 1 in the shape of the logits.
      alpha: the weight of the positive elements; the others have 1 - alpha. None weighs neither.
      positive_weight: what the loss of a positive element is times; None is 1. The count is not weighted.

    >>> binary_focal(jnp.zeros(2), jnp.array([0, 1]), gamma=2.0).value.round(4)   # log(2) / 4
    np.float32(0.1733)
    """
    logits, targets = _alike(logits=logits, targets=targets)
    losses = optax.sigmoid_focal_loss(logits, targets, alpha=alpha, gamma=gamma)
    return mean_of(_by_target(losses, targets, positive_weight), mask)


def binary_hinge(
    logits: jax.Array, targets: jax.Array, *, mask: jax.Array | None = None, positive_weight: Any = None
) -> Mean:
    """max(0, 1 - s x) of every element, with s = 1 where the target is 1 and -1 where it is 0.

    Args:
      logits: [batch, ...]: scores.
      targets: 0 and 1 in the shape of the scores.
      positive_weight: what the loss of a positive element is times; None is 1. The count is not weighted.

    >>> float(binary_hinge(jnp.array([0.5, 0.5]), jnp.array([1, 0])).value)   # 0.5 and 1.5
    1.0
    """
    logits, targets = _alike(logits=logits, targets=targets)
    return mean_of(_by_target(optax.hinge_loss(logits, 2 * targets - 1), targets, positive_weight), mask)


# -- numbers --------------------------------------------------------------------------------------


def squared_error(predictions: jax.Array, targets: jax.Array, *, mask: jax.Array | None = None) -> Mean:
    """The mean squared error over every element, (prediction - target)^2 without a factor of one half.

    Args:
      predictions, targets: [batch, ...] of one shape.

    >>> float(squared_error(jnp.array([1.0, 3.0]), jnp.array([1.0, 1.0])).value)
    2.0
    """
    predictions, targets = _alike(predictions=predictions, targets=targets)
    return mean_of((predictions - targets) ** 2, mask)


def absolute_error(predictions: jax.Array, targets: jax.Array, *, mask: jax.Array | None = None) -> Mean:
    """The mean absolute error over every element; its slope is 0 where the two are equal.

    Args:
      predictions, targets: [batch, ...] of one shape.

    >>> float(absolute_error(jnp.array([1.0, 3.0]), jnp.array([1.0, 1.0])).value)
    1.0
    """
    predictions, targets = _alike(predictions=predictions, targets=targets)
    error = predictions - targets
    return mean_of(error * jnp.sign(error), mask)  # jnp.abs has slope 1 at 0


def huber(predictions: jax.Array, targets: jax.Array, *, mask: jax.Array | None = None, delta: Any = 1.0) -> Mean:
    """e^2 / 2 of an error up to delta, delta (|e| - delta / 2) beyond (Huber 1964; torch.nn.HuberLoss).

    Args:
      predictions, targets: [batch, ...] of one shape.
      delta: where it turns from a square into a line; above 0.

    >>> float(huber(jnp.array([1.0, 4.0]), jnp.array([1.0, 1.0])).value)   # 0 and 2.5
    1.25
    """
    predictions, targets = _alike(predictions=predictions, targets=targets)
    return mean_of(optax.huber_loss(predictions, targets, delta=delta), mask)


# -- distributions --------------------------------------------------------------------------------


def kl_divergence(logits: jax.Array, target_logits: jax.Array, *, mask: jax.Array | None = None) -> Mean:
    """KL(t || p) = sum_c t_c (log t_c - log p_c): how far predictions p are from targets t.

    A distribution counts once: it is summed over its classes and averaged over the batch (torch.nn.KLDivLoss with
    log_target and reduction "batchmean").

    Args:
      logits, target_logits: [batch, ..., classes] of one shape: logits, or log-probabilities (which are logits too). A
        target of -inf is a class without probability.

    >>> p, t = jnp.log(jnp.array([[0.5, 0.5]])), jnp.array([[0.0, -jnp.inf]])
    >>> kl_divergence(p, t).value.round(4)   # log(2)
    np.float32(0.6931)
    """
    logits, target_logits = _alike(logits=logits, target_logits=target_logits)
    log_t = jax.nn.log_softmax(target_logits)
    possible = log_t > -jnp.inf
    log_t = jnp.where(possible, log_t, 0)  # before it meets 0 * inf, in the value or in the slope
    each = jnp.where(possible, jnp.exp(log_t) * (log_t - jax.nn.log_softmax(logits)), 0)
    return mean_of(each.sum(-1), mask)


def normal_kl(mean: jax.Array, log_variance: jax.Array, *, mask: jax.Array | None = None) -> Mean:
    """KL(N(mean, variance) || N(0, 1)) in nats, summed over the last axis: of an example's latent vector.

    1/2 sum mean^2 + variance - 1 - log variance (Kingma and Welling 2014, appendix B).

    Args:
      mean, log_variance: [batch, ..., features] of one shape.
      mask: weights that lead [batch, ...]; None counts all.

    >>> float(normal_kl(jnp.ones((1, 2)), jnp.zeros((1, 2))).value)
    1.0
    """
    mean, log_variance = _alike(mean=mean, log_variance=log_variance)
    return mean_of(0.5 * (mean**2 + jnp.expm1(log_variance) - log_variance).sum(-1), mask)


# -- vectors --------------------------------------------------------------------------------------


def cosine(a: jax.Array, b: jax.Array, *, mask: jax.Array | None = None) -> Mean:
    """1 - a.b / (|a| |b|), from 0 (one direction) to 2 (opposite). Norms below 1e-8 count as 1e-8.

    Args:
      a, b: [batch, ..., features] of one shape.

    >>> cosine(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 3.0]])).value
    np.float32(1.0)
    """
    a, b = _alike(a=a, b=b)
    return mean_of(optax.cosine_distance(a, b, epsilon=1e-16), mask)  # the bound is on the squared norm


def triplet(
    anchors: jax.Array,
    positives: jax.Array,
    negatives: jax.Array,
    *,
    mask: jax.Array | None = None,
    margin: Any = 1.0,
    epsilon: Any = 1e-6,
) -> Mean:
    """max(0, |a - p| - |a - n| + margin): the positive shall be nearer than the negative (Schroff et al. 2015, eq. 3).

    Their distances squared, here Euclidean ones of a - p + epsilon, whose slope is finite for equal vectors
    (torch.nn.TripletMarginLoss).

    Args:
      anchors, positives, negatives: [batch, ..., features] of one shape.

    >>> a, p, n = jnp.zeros((1, 2)), jnp.array([[0.0, 1.0]]), jnp.array([[0.0, 1.5]])
    >>> triplet(a, p, n).value.round(4)
    np.float32(0.5)
    """
    anchors, positives, negatives = _alike(anchors=anchors, positives=positives, negatives=negatives)
    near, far = length(anchors - positives + epsilon), length(anchors - negatives + epsilon)
    return mean_of(jax.nn.relu(near - far + margin), mask)


def contrastive(
    a: jax.Array, b: jax.Array, same: jax.Array, *, mask: jax.Array | None = None, margin: Any = 1.0
) -> Mean:
    """d^2 / 2 of a pair that belongs together, max(0, margin - d)^2 / 2 of one that does not, with d = |a - b|.

    Hadsell, Chopra and LeCun 2006, eq. 4 (whose Y is 1 - same). Vectors that are equal and do not belong together have
    slope 0: no direction leads them apart more than another.

    Args:
      a, b: [batch, ..., features] of one shape.
      same: [batch, ...]: 1 where the two belong together, 0 where not.

    >>> a, b = jnp.zeros((2, 1)), jnp.array([[0.5], [0.5]])
    >>> float(contrastive(a, b, jnp.array([1, 0])).value)
    0.125
    """
    a, b = _alike(a=a, b=b)
    _alike(pairs=a[..., 0], same=same)
    distance = length(a - b)
    apart = jax.nn.relu(margin - distance) ** 2 / 2
    return mean_of(jnp.where(same > 0, jnp.square(a - b).sum(-1) / 2, apart), mask)


def info_nce(queries: jax.Array, keys: jax.Array, *, mask: jax.Array | None = None, temperature: Any = 0.1) -> Mean:
    """Which of the batch's keys belongs to each query: cross-entropy of cos(q_i, k_j) / temperature with j = i.

    Van den Oord et al. 2018, eq. 4, with the cosine for their score. What is compared is the whole batch: masked
    examples are no alternatives, and a batch cut into micro-batches has fewer of them, another loss. For both
    directions add the two calls.

    Args:
      queries, keys: [batch, features] of one shape.
      mask: [batch]; None counts all.

    >>> info_nce(jnp.eye(2), jnp.eye(2), temperature=1.0).value.round(4)   # log(1 + 1 / e)
    np.float32(0.3133)
    """
    queries, keys = _alike(queries=queries, keys=keys)
    counted = _counted(mask, len(keys))
    similar = _counted_directions(queries, counted) @ _counted_directions(keys, counted).T / temperature
    return _own_among(similar, jnp.arange(len(keys)), counted[None, :], mask)


def nt_xent(first: jax.Array, second: jax.Array, *, mask: jax.Array | None = None, temperature: Any = 0.5) -> Mean:
    """Which of the batch's other views shows the same example, from both of its views (Chen et al. 2020, eq. 1).

    For view i with its partner j: -log exp(cos(z_i, z_j) / t) / sum_{k != i} exp(cos(z_i, z_k) / t), k over the other
    2 n - 1 views. An example counts twice, once a view. What is compared is the whole batch: masked examples are no
    alternatives, and a batch cut into micro-batches has fewer of them, another loss.

    Args:
      first, second: [batch, features], two views of each example.
      mask: [batch]; None counts all.

    >>> nt_xent(jnp.eye(2), jnp.eye(2), temperature=1.0).value.round(4)   # log(1 + 2 / e)
    np.float32(0.5514)
    """
    first, second = _alike(first=first, second=second)
    n = len(first)
    mask = None if mask is None else jnp.concatenate([mask, mask])
    counted = _counted(mask, 2 * n)
    views = _counted_directions(jnp.concatenate([first, second]), counted)
    among = counted[None, :] & ~jnp.eye(2 * n, dtype=bool)
    return _own_among(views @ views.T / temperature, (jnp.arange(2 * n) + n) % (2 * n), among, mask)


# -- helpers --------------------------------------------------------------------------------------


def length(x: jax.Array) -> jax.Array:
    """|x| over the last axis, with slope 0 at 0.

    >>> length(jnp.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [5.0, 0.0]
    """
    squared = jnp.square(x).sum(-1)
    some = squared > 0
    return jnp.where(some, jnp.sqrt(jnp.where(some, squared, 1)), 0)


def directions(x: jax.Array) -> jax.Array:
    """Each vector of the last axis over its length; lengths below 1e-8 count as 1e-8.

    >>> directions(jnp.array([[0.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.0, 1.0], [0.0, 0.0]]
    """
    return x / jnp.sqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-16))


def weighted(mask: jax.Array | None, weight: jax.Array | None) -> jax.Array | None:
    """A mask times the weights of the examples: what a loss takes as its `mask` where both are given.

    Args:
      mask: [batch, ...] or None.
      weight: [batch] or None.

    >>> weighted(jnp.array([[1.0, 0.0], [1.0, 1.0]]), jnp.array([2.0, 3.0])).tolist()
    [[2.0, 0.0], [3.0, 3.0]]
    """
    if mask is None or weight is None:
        return weight if mask is None else mask
    if weight.shape != mask.shape[:1]:
        raise ValueError(f"weight {weight.shape} does not lead the mask's shape {mask.shape}")
    return tree.wide(mask) * tree.wide(weight).reshape(-1, *[1] * (mask.ndim - 1))


def _alike(**arrays):
    """The arrays in at least float32, if their shapes are equal: broadcasting is the oldest silent bug of losses."""
    if len({x.shape for x in arrays.values()}) > 1:
        raise ValueError(f"{' and '.join(f'{name} {x.shape}' for name, x in arrays.items())} differ in shape")
    return tuple(map(tree.wide, arrays.values()))


def _with_classes(logits, labels):
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"logits {logits.shape} and labels {labels.shape}: expected labels {logits.shape[:-1]}")
    return tree.wide(logits)


def _mean_by_class(losses, labels, mask, class_weights):
    """The mean of losses, each times its label's weight, over the sum of those weights."""
    if class_weights is None:
        return mean_of(losses, mask)
    weights = jnp.asarray(class_weights, losses.dtype)[labels]
    return Mean(mean_of(losses * weights, mask).total, mean_of(weights, mask).total)


def _by_target(losses, targets, positive_weight):
    """Losses, those of a target 1 times a weight."""
    if positive_weight is None:
        return losses
    return losses * jnp.where(targets > 0, jnp.asarray(positive_weight, losses.dtype), 1)


def _counted_directions(x, counted):
    """Each vector's direction, zero where it is not counted."""
    return directions(jnp.where(counted[:, None], x, 0))


def _counted(mask, n):
    """Which of n examples count."""
    return jnp.ones(n, bool) if mask is None else mask != 0


def _own_among(similar, own, among, mask):
    """Cross-entropy of each row with its `own` column, among the columns that are allowed."""
    # A large number for the logarithm of zero: the slopes of a row that allows no column stay finite.
    return cross_entropy(jnp.where(among, similar, jnp.finfo(similar.dtype).min / 4), own, mask=mask)
