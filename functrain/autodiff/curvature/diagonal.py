"""Diagonals of curvature matrices: exact by unit vectors, exact by example, and estimated.

diagonal(operator)                                      n products, any operator
gauss_newton_diagonal(predict, score, params, batch)    a backward pass for each output of an example
hutchinson_diagonal(operator, key, samples)             an estimate and its error
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from functrain import tree
from functrain.autodiff import directions as along
from functrain.autodiff.curvature.examples import score_hessian, shares, summed
from functrain.autodiff.curvature.operators import Operator
from functrain.autodiff.taps import example_of


def diagonal(operator: Operator, *, block: int = 16) -> Any:
    """The exact diagonal, a tree in at least float32: n products with unit vectors, `block` side by side.

    >>> a = Operator(lambda v: jnp.array([[1.0, 5.0], [5.0, 2.0]]) @ v, jnp.zeros(2))
    >>> diagonal(a).tolist()
    [1.0, 2.0]
    """

    def entry(i):
        unit = along.axis(i, operator.like)
        at = jax.tree.map(lambda u, x: jnp.sum(jnp.where(u, x, 0)).astype(operator.dtype), unit, operator @ unit)
        return sum(jax.tree.leaves(at))

    return along.shaped(along.in_blocks(entry, jnp.arange(operator.size), block), operator.like)


def gauss_newton_diagonal(
    predict: Callable[[Any, Any], Any],
    score: Callable[[Any, Any], Any],
    params: Any,
    batch: Any,
    *,
    block: int = 16,
    mask: Any = None,
) -> Any:
    """The exact diagonal of the mean over examples of J_i^T H_i J_i, a tree in at least float32.

    With the eigenvectors u_c of an example's H and their eigenvalues l_c it is the sum of l_c (J^T u_c)^2 (DiagGGN:
    Dangel, Kunstner, Hennig 2020, section 3 and appendix A.4; there with a factor of H, here for an indefinite H too).
    That is as many backward passes as an example has outputs, not a product for each parameter. Held at once are the
    gradients of `block` examples, one each: block * n numbers.

    Args:
      predict: (params, example) -> outputs of one example, a tree of floats; an example is a row of the batch.
      score: (outputs, example) -> the example's loss, a float [].
      batch: a tree of arrays that lead with the axis of examples.
      block: examples side by side.
      mask: weights of the examples, [examples]; the mean is by their sum. None weighs all alike.

    Raises:
      ValueError: arrays of different lengths, a mask of another one, or no examples.

    >>> predict, score = lambda w, x: w * x, lambda y, x: jnp.sum(y**2)
    >>> gauss_newton_diagonal(predict, score, jnp.zeros(2), jnp.array([[1.0, 0.0], [3.0, 2.0]])).tolist()
    [10.0, 4.0]
    """
    example_of(batch)
    weights = shares(mask, (len(jax.tree.leaves(batch)[0]),))

    def of_example(example, weight):
        outputs, pull = jax.vjp(lambda p: predict(p, example), params)
        values, vectors = jnp.linalg.eigh(score_hessian(score, outputs, example))

        def add(total, each):
            value, vector = each
            [gradient] = pull(along.placed(vector, outputs))
            return jax.tree.map(
                lambda t, g: t + value.astype(t.dtype) * jnp.square(g.astype(t.dtype)), total, gradient
            ), None

        return lax.scan(add, zeros, (weight.astype(values.dtype) * values, vectors.T))[0]

    def of_block(examples, weights):
        return jax.tree.map(lambda x: x.sum(0), jax.vmap(of_example)(examples, weights))

    zeros = jax.tree.map(lambda p: jnp.zeros(jnp.shape(p), tree.wide(p).dtype), params)
    return summed(of_block, batch, weights, block)


class Estimated(NamedTuple):
    """What was drawn at random: the mean over samples, and that mean's standard error; numbers or trees of them."""

    value: Any
    error: Any


def hutchinson_diagonal(operator: Operator, key: jax.Array, samples: int) -> Estimated:
    """The diagonal's unbiased estimate: the mean of v * A v over v of 1 and -1 (Bekas, Kokiopoulou, Saad 2007, eq. 3).

    The variance of a sample's i-th number is the sum over j != i of A_ij^2, so that a diagonal matrix is met exactly by
    one. Each sample is a product; beside the sums, one is held at a time.

    Returns:
      trees in at least float32: the estimate, and its standard error from the samples' spread.

    Raises:
      ValueError: fewer than two samples, which have no spread.

    >>> a = Operator(lambda v: jnp.array([3.0, 4.0]) * v, jnp.zeros(2))
    >>> value, error = hutchinson_diagonal(a, jax.random.key(0), 2)
    >>> value.tolist(), error.tolist()
    ([3.0, 4.0], [0.0, 0.0])
    """
    if samples < 2:
        raise ValueError(f"samples: found {samples}; expected at least 2, for the spread between them is the error")

    def add(sums, each):
        count, key = each
        mean, squares = sums
        v = along.draw(key, operator.like, "rademacher")
        found = jax.tree.map(lambda a, x: a.astype(x.dtype) * x, operator @ v, v)
        off = jax.tree.map(jnp.subtract, found, mean)
        mean = jax.tree.map(lambda m, d: m + d / count.astype(d.dtype), mean, off)
        # Summed about the running mean (Welford): of squares less a square of means, rounding alone would be left.
        squares = jax.tree.map(lambda s, d, x, m: s + d * (x - m), squares, off, found, mean)
        return (mean, squares), None

    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32)), operator.like)
    counts, keys = jnp.arange(1, samples + 1), jax.random.split(key, samples)
    (mean, squares), _ = lax.scan(add, (zeros, zeros), (counts, keys))
    return Estimated(mean, jax.tree.map(lambda s: jnp.sqrt(s / (samples * (samples - 1))), squares))
