"""The norm of each example's own gradient, without the gradients themselves."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from functrain import tree
from functrain.autodiff.taps import Program, example_of


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ExampleNorms:
    """Norms of the gradients by example.

    squared: a tree like the parameters of squared Euclidean norms [n], in at least float32.
    """

    squared: Any

    @property
    def leaves(self) -> Any:
        """By leaf, a tree of [n]."""
        return jax.tree.map(jnp.sqrt, self.squared)

    @property
    def whole(self) -> jax.Array:
        """Over all leaves, [n]."""
        return jnp.sqrt(sum(jax.tree.leaves(self.squared)))


def example_norms(loss: Callable[[Any, Any], jax.Array], params: Any, batch: Any) -> ExampleNorms:
    """The norms of the gradients of the examples' losses, leaf by leaf; of dense layers at the cost of one gradient.

    Of a dense or convolutional layer y = a W + b with T positions (see `functrain.autodiff.taps`) the gradient of an
    example is a^T g, for inputs a [T, d_in] and gradients g [T, d_out]. Its squared norm is

    - |a|^2 |g|^2 for one position (Goodfellow 2015, section 2),
    - the sum over t, t' of (a_t . a_t') (g_t . g_t') (Li et al. 2022, section 4, ghost clipping), or
    - |a^T g|^2 of the matrix itself, where it costs no more: T (d_in + d_out) >= d_in d_out.

    The last two cost T^2 (d_in + d_out) and T d_in d_out multiplications; what each holds at once is n T^2 or
    n d_in d_out numbers. Of a bias it is |sum of g_t|^2. Gradients by the other parameters (embeddings, norms, tied
    weights, those in loops) are taken example by example, [n, *leaf], in the same backward pass.

    Args:
      loss: (params, batch) -> unreduced losses [n]. It is given batches of one example each: nothing may depend on the
        examples together, as batch norm in training does, and what it draws at random it draws from keys in the batch.
      batch: a tree of arrays that lead with the axis of examples.

    Raises:
      ValueError: a loss that does not give one float for each example, batch arrays of different lengths, or a
        parameter that holds no floats.

    >>> loss = lambda w, x: (x @ w) ** 2 / 2
    >>> example_norms(loss, jnp.array([1.0, 0.0]), jnp.array([[3.0, 4.0], [0.0, 1.0]])).whole.tolist()   # |x.w| |x|
    [15.0, 0.0]
    """

    def of_one(params, example):
        losses = loss(params, jax.tree.map(lambda x: x[None], example))
        if getattr(losses, "shape", None) != (1,) or not tree.is_float(losses):
            raise ValueError(f"loss: found {losses} of a batch of one example; expected its loss, a float [1]")
        return losses[0]

    program = Program(of_one, params, example_of(batch))

    def one(example):
        value, pull, inputs = program.pullback(params, example, others=True)
        gradients, found = pull(jnp.ones_like(value))
        found = {path: jnp.sum(jnp.square(tree.wide(g))) for path, g in found.items()}
        for path, layer in program.layers.items():
            a, g = tree.wide(inputs[path]), tree.wide(gradients[path])
            found[path] = _kernel(a, g)
            if layer.bias is not None:
                found[layer.bias] = jnp.sum(jnp.square(g.sum(0)))
        return tree.map_by_path(lambda path, _: found[path], params)

    return ExampleNorms(jax.vmap(one)(jax.tree.map(jnp.asarray, batch)))


def _kernel(a, g):
    """|a^T g|^2 in the way that multiplies less."""
    (positions, d_in), (_, d_out) = a.shape, g.shape
    if positions > 1 and positions * (d_in + d_out) >= d_in * d_out:
        return jnp.sum(jnp.square(a.T @ g))
    return jnp.sum((a @ a.T) * (g @ g.T))
