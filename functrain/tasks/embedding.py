"""Embeddings: examples of one class shall lie near one another, those of two classes apart, unseen classes too."""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from functrain import losses, tree
from functrain.config import ConfigError, Count, NonNegative, Part, Positive, Size, configclass
from functrain.metrics import Mean, mean_of
from functrain.metrics.verification import Verification
from functrain.models.base import fill
from functrain.tasks.base import OneLoss

Mining = Literal["all", "hard", "semi_hard"]


@configclass
class Embedding(OneLoss):
    """Vectors of length 1 whose nearness says whether two examples are of one class; evaluation verifies pairs.

    Triplets and pairs are those of a batch, which needs several examples of each class: a batch at random has them
    where it is much larger than the number of classes (128 for 10). Cut into micro-batches (train.accumulate) it has
    fewer, another loss. Arcface compares each example with the classes' centres instead, which are parameters of the
    task: {"model": ..., "centres": [classes, width]}. Its loss on held-out classes says nothing, for no example has led
    their centres; what counts is the verification of their pairs.
    """

    kind: Literal["embedding"] = "embedding"
    criterion: Literal["arcface", "triplet", "contrastive"] = "arcface"
    """The loss: arcface, with a margin of angles; triplet, with one of distances; contrastive, over all pairs."""
    width: Size = 64
    """Numbers in an embedding: the model's outputs."""
    margin: NonNegative = 0.5
    """For arcface in radians, below pi / 2; else of Euclidean distances, which are 2 at most."""
    scale: Positive = 64.0
    """What the cosines are multiplied by in arcface."""
    mining: Mining = "hard"
    """Which triplets of a batch count: all, each anchor's hardest, or each pair's with a semi-hard negative."""
    classes: Count = 0
    """How many classes the data has; taken from the data."""
    model: Part = None
    learner: Part = None

    def __post_init__(self):
        if self.criterion == "arcface" and isinstance(self.margin, (int, float)) and self.margin >= math.pi / 2:
            raise ValueError(f"margin: found {self.margin}; expected an angle below pi / 2")

    def sized(self, dataset) -> "Embedding":
        """The task with the number of the data's classes."""
        if not dataset.classes:
            raise ConfigError("task.kind: embedding needs integer labels y [n]")
        return dataclasses.replace(self, classes=fill("task.classes", self.classes, dataset.classes))

    def outputs(self, dataset) -> int:
        """The width of an embedding."""
        return self.width

    def init(self, key: jax.Array) -> tuple[dict[str, Any], Any]:
        """The model's parameters and state; for arcface with the centres, drawn in all directions alike."""
        if self.criterion != "arcface":
            params, state = self.model.init(key)
            return {"model": {"model": params}}, state
        model_key, centres_key = jax.random.split(key)
        params, state = self.model.init(model_key)
        centres = jax.random.normal(centres_key, (self.classes, self.width))
        return {"model": {"model": params, "centres": centres}}, state

    def full_loss(self, params, state, batch, *, key, train):
        """The criterion of the batch's embeddings; in evaluation with the embeddings themselves as metric."""
        outputs, state = self.model.apply(params["model"], state, batch["x"], key=key, train=train)
        embeddings, labels, mask = losses.directions(tree.wide(outputs)), batch["y"], batch.get("mask")
        metrics = {}
        if not train:
            counts = jnp.ones(labels.shape) if mask is None else mask
            metrics["verification"] = Verification(embeddings, labels, mask=counts)
        given: dict[str, Any] = {"mask": losses.weighted(mask, batch.get("weight")), "margin": self.margin}
        if self.criterion == "arcface":
            loss = arcface(embeddings, labels, params["centres"], scale=self.scale, **given)
        elif self.criterion == "triplet":
            loss = batch_triplet(embeddings, labels, mining=self.mining, **given)
        else:
            loss = batch_contrastive(embeddings, labels, **given)
        return loss, state, metrics

    def outputs_of(self, train_state: Any, x: Any) -> jax.Array:
        """The trained model's embeddings [n, width] of inputs x [n, ...], in at least float32."""

        def apply(params, state, batch, *, key):
            return self.model.apply(params["model"], state, batch["x"], key=key, train=False)[0]

        weights = self.learner.weights(train_state.players["model"])
        return losses.directions(
            tree.wide(self.learner.precision(apply)(weights, train_state.state, {"x": x}, key=None))
        )

    def predict(self, outputs) -> dict[str, Any]:
        """`embedding` [n, width]."""
        return {"embedding": outputs}


# -- losses ---------------------------------------------------------------------------------------


def arcface(
    embeddings: jax.Array,
    labels: jax.Array,
    centres: jax.Array,
    *,
    margin: Any = 0.5,
    scale: Any = 64.0,
    mask: jax.Array | None = None,
) -> Mean:
    """Cross-entropy of scale * cosine to each class's centre, with a margin added to the angle to its own.

    -log e^(s cos(t_y + m)) / (e^(s cos(t_y + m)) + sum_{j != y} e^(s cos t_j)) with t_j the angle to centre j (Deng et
    al. 2019, eq. 3). Where t_y + m is beyond pi, and its cosine rises again, cos(t_y) - m sin(m) stands for it, as in
    the authors' program. The slopes are finite at every angle; at 0 the sine's is taken as 0.

    Args:
      embeddings: [batch, features], of any length.
      labels: [batch] integers in [0, classes).
      centres: [classes, features], of any length.
      margin: m in radians, from 0 to below pi / 2.
      scale: s, above 0.
      mask: [batch] weights; None counts all.

    >>> at = jnp.array([[1.0, 0.0]])
    >>> arcface(at, jnp.array([0]), jnp.eye(2), margin=0.0, scale=1.0).value.round(4)   # log(1 + 1 / e)
    np.float32(0.3133)
    """
    if embeddings.shape[:1] != labels.shape or embeddings.shape[1:] != centres.shape[1:] or embeddings.ndim != 2:
        raise ValueError(
            f"embeddings {embeddings.shape}, labels {labels.shape} and centres {centres.shape}; "
            "expected [n, features], [n] and [classes, features]"
        )
    embeddings, centres = losses.directions(tree.wide(embeddings)), losses.directions(tree.wide(centres))
    cosines = embeddings @ centres.T
    own = centres[labels]
    cosine = (embeddings * own).sum(-1)
    # The sine as what is left of the embedding beside its centre: exact near 0, where 1 - cosine^2 is rounding.
    sine = losses.length(embeddings - cosine[:, None] * own)
    margin = jnp.asarray(margin, cosine.dtype)
    moved = jnp.where(
        cosine > -jnp.cos(margin),
        cosine * jnp.cos(margin) - sine * jnp.sin(margin),
        cosine - margin * jnp.sin(margin),
    )
    is_own = jax.nn.one_hot(labels, len(centres), dtype=bool)
    return losses.cross_entropy(scale * jnp.where(is_own, moved[:, None], cosines), labels, mask=mask)


def batch_triplet(
    embeddings: jax.Array,
    labels: jax.Array,
    *,
    margin: Any = 0.2,
    mining: Mining = "hard",
    mask: jax.Array | None = None,
) -> Mean:
    """max(0, |a - p| - |a - n| + margin) over triplets of the batch: p of the anchor's class, n of another.

    all        every triplet, n^3 of them (Hermans et al. 2017, eq. 7)
    hard       for each anchor its farthest p and its nearest n (eq. 5)
    semi_hard  for each anchor and p the nearest n that is farther than p, or the farthest where none is (Schroff et al.
               2015, section 3.2, whose distances are squared); memory for n^3 numbers

    The mean is over what was mined; where nothing was, its count is 0. The slope at distance 0 is 0. The triplets are
    those of the batch: cut into micro-batches it has fewer, another loss.

    Args:
      embeddings: [batch, features].
      labels: [batch] integers.
      margin: from 0.
      mask: [batch]; masked examples are in no triplet, weights are those of the anchors. None counts all.

    >>> x = jnp.array([[0.0], [1.0], [3.0]])
    >>> batch_triplet(x, jnp.array([0, 0, 1]), margin=1.5).value   # anchors 0 and 1: 0 and 0.5
    np.float32(0.25)
    """
    distances, same, other, weights = _compared(embeddings, labels, mask)
    if mining == "hard":
        mined = same.any(1) & other.any(1)
        # Of none, the farthest is at 0 and the nearest beyond all: such an anchor has no loss, no slope, no count.
        near = jnp.where(same, distances, 0).max(1)
        far = jnp.where(other, distances, jnp.finfo(distances.dtype).max / 4).min(1)
    elif mining == "all":
        mined = same[:, :, None] & other[:, None, :]
        near, far = distances[:, :, None], distances[:, None, :]
    else:
        mined = same & other.any(1)[:, None]
        farther = other[:, None, :] & (distances[:, None, :] > distances[:, :, None])
        nearest = jnp.where(farther, distances[:, None, :], jnp.inf).min(-1)
        farthest = jnp.where(other, distances, 0).max(1)[:, None]
        near, far = distances, jnp.where(farther.any(-1), nearest, farthest)
    return mean_of(jax.nn.relu(near - far + margin), mined * weights.reshape(-1, *[1] * (mined.ndim - 1)))


def batch_contrastive(
    embeddings: jax.Array, labels: jax.Array, *, margin: Any = 1.0, mask: jax.Array | None = None
) -> Mean:
    """d^2 / 2 of each pair of one class in the batch, max(0, margin - d)^2 / 2 of each other: see `losses.contrastive`.

    The pairs are those of the batch: cut into micro-batches it has fewer, another loss.

    Args:
      embeddings: [batch, features].
      labels: [batch] integers.
      margin: the distance from which two classes are far enough apart.
      mask: [batch]; a pair weighs what its two examples do, multiplied. None counts all.

    >>> float(batch_contrastive(jnp.array([[0.0], [0.5], [2.0]]), jnp.array([0, 0, 1])).total)   # 0.5^2 / 2
    0.125
    """
    _check(embeddings, labels)
    i, j = jnp.triu_indices(len(labels), 1)
    mask = None if mask is None else tree.wide(mask)[i] * tree.wide(mask)[j]
    return losses.contrastive(embeddings[i], embeddings[j], labels[i] == labels[j], margin=margin, mask=mask)


# -- helpers --------------------------------------------------------------------------------------


def _check(embeddings, labels):
    if embeddings.ndim != 2 or embeddings.shape[:1] != labels.shape:
        raise ValueError(f"embeddings {embeddings.shape} and labels {labels.shape}; expected [n, features] and [n]")


def _compared(embeddings, labels, mask):
    """(distances [n, n], whether two are another pair of one class, or of two, the weight of each row [n])."""
    _check(embeddings, labels)
    x = tree.wide(embeddings)
    weights = jnp.ones(labels.shape, x.dtype) if mask is None else mask.astype(x.dtype)
    counted = (weights != 0)[:, None] & (weights != 0)
    alike = labels[:, None] == labels
    same = alike & ~jnp.eye(len(labels), dtype=bool) & counted
    return losses.length(x[:, None] - x), same, ~alike & counted, weights
