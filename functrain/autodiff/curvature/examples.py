"""What curvature by example is made with: weights, sums over blocks of a batch, the Hessian of an example's score."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from functrain import tree


def shares(mask: Any, shape: tuple[int, ...]) -> jax.Array:
    """What each example counts in a mean, of that shape and of sum 1; alike where the mask is None.

    >>> shares(jnp.array([1.0, 0.0, 3.0]), (3,)).tolist()
    [0.25, 0.0, 0.75]
    """
    if mask is None:
        return jnp.full(shape, 1 / max(1, math.prod(shape)))
    if jnp.shape(mask) != shape:
        raise ValueError(f"mask: found shape {jnp.shape(mask)}; expected {shape}, one for each example")
    mask = tree.wide(mask)
    return mask / mask.sum()


def summed(f: Callable[..., Any], examples: Any, weights: jax.Array, block: int) -> Any:
    """The sum, a tree, of `f(examples, weights)` over parts of `block` of the examples [n, ...] and their weights [n].

    f is traced once. Where `block` does not divide n, the last part is filled with the last example, which weighs
    nothing there: what a model makes of zeros is unknown.

    >>> summed(lambda x, weights: (x * weights).sum(), jnp.arange(5.0), jnp.ones(5), 2).tolist()
    10.0
    """
    n = len(weights)
    block = min(block, n)
    rows = jnp.arange(-(-n // block) * block).reshape(-1, block)
    f = jax.jit(f, inline=True)

    def part(rows):
        real = jnp.minimum(rows, n - 1)
        return f(jax.tree.map(lambda x: jnp.asarray(x)[real], examples), jnp.where(rows < n, weights[real], 0))

    if len(rows) == 1:
        return part(rows[0])
    zeros = tree.zeros_like(jax.eval_shape(part, rows[0]))
    return lax.scan(lambda total, rows: (tree.add(total, part(rows)), None), zeros, rows)[0]


def score_hessian(score: Callable[[Any, Any], Any], outputs: Any, example: Any) -> jax.Array:
    """The Hessian [m, m] of the score by the m outputs of an example, in at least float32.

    >>> score_hessian(lambda y, x: x * jnp.sum(y**2), jnp.ones(2), 3.0).tolist()
    [[6.0, 0.0], [0.0, 6.0]]
    """
    flat, unravel = ravel_pytree(outputs)
    return jax.hessian(lambda y: tree.wide(score(unravel(y.astype(flat.dtype)), example)))(tree.wide(flat))
