"""Losses as masked sums and counts: each returns a `Mean`, never a number that was divided already."""

import jax
import optax

from functrain import tree
from functrain.metrics import Mean, mean_of


def cross_entropy(logits: jax.Array, labels: jax.Array, *, mask: jax.Array | None = None, smoothing=0.0) -> Mean:
    """Softmax cross-entropy, -log softmax(logits)[label], in at least float32.

    Args:
      logits: [batch, ..., classes].
      labels: [batch, ...] integers in [0, classes).
      mask: weights that lead the labels' shape; None counts all.
      smoothing: the share of each target spread evenly over all classes (Szegedy et al. 2016,
        section 7); 0.0 (a Python float) leaves the term out of the program.

    >>> import jax.numpy as jnp
    >>> cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3])).value.round(4)   # log(4)
    np.float32(1.3863)
    """
    logits = tree.wide(logits)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if not (isinstance(smoothing, float) and smoothing == 0.0):
        uniform = -jax.nn.log_softmax(logits).mean(-1)
        losses = (1 - smoothing) * losses + smoothing * uniform
    return mean_of(losses, mask)


def squared_error(predictions: jax.Array, targets: jax.Array, *, mask: jax.Array | None = None) -> Mean:
    """The mean squared error over every element, (prediction - target)^2 without a factor of one half.

    Args:
      predictions, targets: [batch, ...] of one shape.

    >>> import jax.numpy as jnp
    >>> float(squared_error(jnp.array([1.0, 3.0]), jnp.array([1.0, 1.0])).value)
    2.0
    """
    if predictions.shape != targets.shape:  # broadcasting here is the oldest silent bug of regression
        raise ValueError(f"predictions {predictions.shape} and targets {targets.shape} differ in shape")
    return mean_of((tree.wide(predictions) - tree.wide(targets)) ** 2, mask)
