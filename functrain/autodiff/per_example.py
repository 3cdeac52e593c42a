"""Gradients per example: what each example of a batch, by itself, would change.

gradients(loss, params, batch)      -> a tree like params, each leaf with a leading axis [n]
norms(loss, params, batch)          -> [n], their Euclidean norms
check_apart(loss, params, batch)    -> raises where the examples of a batch mix
fold(loss, params, state, batch, key, consume, carry)   -> what is made of them, a block held at a time

A loss is, without `state`, `loss(params, batch) -> [n]`, a loss for each example; with one, a task's loss,
`loss(params, state, batch, *, key) -> (Mean or tree of Means, state, metrics)`. In a batch's arrays examples lie along
the first axis.

An example's gradient is that of the loss of a batch of it alone: of its means, each divided by its own count and added
up. So an example whose mask is 0 has gradient 0; a weight that is not 0 cancels; and the mean over the examples is the
gradient of the batch's loss where all count alike.

What mixes examples has no gradient per example: batch norm in training normalises each by all, a contrastive loss
compares them, mixup adds them. In a batch of one they are something else, which is what is computed here;
`check_apart` tells.

With a key, example i of the batch draws from `fold_in(key, i)`: the same whatever the block, and other numbers where it
stands elsewhere in a batch, or where the whole batch is computed at once.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from functrain import tree
from functrain.autodiff import directions as along
from functrain.config import ConfigError
from functrain.metrics import is_metric, mean_of

Loss = Callable[..., Any]

BLOCK = 32
"""So many examples' gradients are computed side by side, where nothing else is said."""

_ROWS = 8


def gradients(
    loss: Loss, params: Any, batch: Any, *, state: Any = None, key: jax.Array | None = None, block: int = BLOCK
) -> Any:
    """The gradient of each example's loss: a tree like the parameters, in at least float32, each leaf [n, ...].

    Args:
      loss, batch: see the module's first lines.
      state: what a task's loss takes; None means that the loss is `loss(params, batch) -> [n]`.
      key: for a task's loss; None where it draws nothing.
      block: so many examples go side by side: what lies between their losses and gradients is held for as many.

    Raises:
      ValueError: arrays of different lengths, a loss that is not [n], or a key without a state.

    >>> batch = {"x": jnp.array([[1.0, 0.0], [1.0, 2.0]]), "y": jnp.array([0.0, 4.0])}
    >>> gradients(lambda w, b: (b["x"] @ w - b["y"]) ** 2, jnp.ones(2), batch).tolist()
    [[2.0, 0.0], [-2.0, -4.0]]
    """
    loss, state = as_task(loss, state, key)

    def one(example):
        return value_and_gradient(loss, params, state, *row(example, key))[0]

    return along.in_blocks(one, numbered(batch), block)


def norms(
    loss: Loss, params: Any, batch: Any, *, state: Any = None, key: jax.Array | None = None, block: int = BLOCK
) -> jax.Array:
    """The Euclidean norm of each example's gradient: [n], with no more than a block of them held.

    Arguments and errors are those of `gradients`.

    >>> norms(lambda w, b: b["x"] @ w, jnp.ones(2), {"x": jnp.array([[3.0, 4.0], [0.0, 1.0]])}).tolist()
    [5.0, 1.0]
    """
    loss, state = as_task(loss, state, key)

    def one(example):
        return tree.norm(value_and_gradient(loss, params, state, *row(example, key))[0])

    return along.in_blocks(one, numbered(batch), block)


def fold(
    loss: Loss,
    params: Any,
    state: Any,
    batch: Any,
    key: jax.Array | None,
    consume: Callable[[Any, Any], Any],
    carry: Any,
    *,
    block: int = BLOCK,
    scale: Any = None,
) -> tuple[Any, Any, dict[str, Any]]:
    """What `consume(carry, gradients) -> carry` makes of all examples' gradients, of which a block is held at a time.

    Args:
      loss, state, key: of a task: see the module's first lines.
      consume: takes gradients as `gradients` has them, of up to `block` examples; in which order they come is not said.
      carry: what it starts with; shapes and dtypes stay.
      scale: the loss scale of float16; the gradients are unscaled.

    Returns:
      The last carry; the means of the loss and its metrics, added up over the examples.

    Raises:
      ConfigError: the loss changes its state, as batch norm does: it learns from a batch past all gradients.

    >>> def loss(w, state, batch, *, key):
    ...     return mean_of(batch["x"] * w), state, {}
    >>> batch = {"x": jnp.array([1.0, -5.0, 2.0])}
    >>> most, means, _ = fold(loss, jnp.ones(()), {}, batch, None, lambda c, g: jnp.maximum(c, g.max()), 0.0, block=2)
    >>> float(most), float(means.total), float(means.count)
    (2.0, -2.0, 3.0)
    """

    def one(example):
        return value_and_gradient(loss, params, state, *row(example, key), scale=scale)

    def step(carry, examples):
        kept, sums = carry
        found, *new = jax.vmap(one)(examples)
        return consume(kept, found), tree.add(sums, jax.tree.map(lambda x: x.sum(0, dtype=x.dtype), new))

    def check(params, state, batch):
        if not _same(loss(params, state, batch, key=key)[1], state):
            raise ConfigError(
                "estimator.kind: the loss changes its state (as batch norm does), from examples that mix there; "
                "expected one that has a gradient per example"
            )

    # Of the whole batch, for of one example batch norm itself refuses, in other words.
    jax.eval_shape(check, params, state, batch)
    examples = numbered(batch)
    shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], examples))[1:]
    kept, (means, metrics) = over_blocks(step, (carry, tree.zeros_like(list(shapes))), examples, block)
    return kept, means, metrics


def check_apart(
    loss: Loss,
    params: Any,
    batch: Any,
    *,
    state: Any = None,
    key: jax.Array | None = None,
    tolerance: float | None = None,
) -> float:
    """How far the loss's sum is from one of terms that belong to an example each; for `gradients` it must be one.

    Of the first examples, at most 8, for among many a batch norm shows less. With a second batch, the first turned by
    one place, F(S) is the gradient of the loss's sum where the rows S are the second's. Of terms that belong to a row
    each, F(all) + F(none) = F(S) + F(all but S), whatever a row draws at random: four gradients, S every other row.

    Args:
      loss, params, batch, state, key: as in `gradients`.
      tolerance: the largest difference that passes, as a share of the gradients' norms; None is the root of the
        dtype's eps: 3e-4 in float32. Above it are the sums of a loss that computes in 16 bits.

    Returns:
      The difference, as such a share. Where all rows are equal, or all gradients 0, it is 0 and says nothing.

    Raises:
      ValueError: it is above the tolerance; or a batch of one.

    >>> batch = {"x": jnp.array([[1.0], [2.0], [4.0], [7.0]])}
    >>> check_apart(lambda w, b: (b["x"] @ w) ** 2, jnp.ones(1), batch)
    0.0
    >>> check_apart(lambda w, b: ((b["x"] - b["x"].mean(0)) @ w) ** 2, jnp.ones(1), batch)
    Traceback (most recent call last):
    ...
    ValueError: the examples of a batch mix (0.11 of the gradient; 0.00035 passes): there is no gradient per example
    """
    loss, state = as_task(loss, state, key)
    n = min(len(numbered(batch)[1]), _ROWS)
    batch = jax.tree.map(lambda x: x[:n], batch)
    if n < 2:
        raise ValueError("found a batch of 1; expected 2 examples or more, to see whether they mix")

    def total(params, batch):
        means = loss(params, state, batch, key=key)[0]
        return sum(mean.total for mean in jax.tree.leaves(means, is_leaf=is_metric))

    @jax.jit
    def shares(params, batch):
        def of(rows):
            def pick(x):
                return jnp.where(rows.reshape(-1, *[1] * (x.ndim - 1)), jnp.roll(x, 1, 0), x)

            return jax.tree.map(tree.wide, jax.grad(total)(params, jax.tree.map(pick, batch)))

        some = jnp.arange(n) % 2 == 0
        found = [of(rows) for rows in (some | True, some & False, some, ~some)]
        apart = jax.tree.map(lambda a, b, c, d: a + b - c - d, *found)
        return tree.norm(apart), sum(map(tree.norm, found))

    apart, size = shares(params, batch)
    share = float(apart / size) if size else 0.0
    tolerance = math.sqrt(jnp.finfo(apart.dtype).eps) if tolerance is None else tolerance
    if not share <= tolerance:
        raise ValueError(
            f"the examples of a batch mix ({share:.2g} of the gradient; {tolerance:.2g} passes): "
            "there is no gradient per example"
        )
    return share


# -- what the modules beside build on -------------------------------------------------------------


def as_task(loss: Loss, state: Any, key: jax.Array | None) -> tuple[Loss, Any]:
    """(a task's loss, its state) from either form of a loss.

    Raises:
      ValueError: a key without a state.
    """
    if state is not None:
        return loss, state
    if key is not None:
        raise ValueError("found a key and no state; expected both, of loss(params, state, batch, *, key)")

    def task(params, state, batch, *, key):
        values, n = loss(params, batch), len(jax.tree.leaves(batch)[0])
        if jnp.shape(values) != (n,):
            raise ValueError(f"the loss gives {jnp.shape(values)}; expected ({n},), a loss for each example")
        return mean_of(values), state, {}

    return task, ()


def numbered(batch: Any, size: int = 1) -> tuple[Any, jax.Array]:
    """(the batch in pieces of `size` examples [n / size, size, ...], their numbers [n / size]).

    Raises:
      ValueError: no array, arrays of different lengths, no examples, or a number of them that `size` does not divide.
    """
    lengths = {jnp.shape(x)[:1] for x in jax.tree.leaves(batch)}
    if len(lengths) != 1 or not (length := lengths.pop()) or not length[0]:
        raise ValueError(f"the arrays of a batch have shapes {_shapes(batch)}; expected [n, ...], one n in all, from 1")
    if length[0] % size:
        raise ValueError(f"found {length[0]} examples; expected a multiple of {size}")
    pieces = jax.tree.map(lambda x: jnp.reshape(x, (-1, size, *jnp.shape(x)[1:])), batch)
    return pieces, jnp.arange(length[0] // size)


def over_blocks(step: Callable[[Any, Any], Any], carry: Any, pieces: Any, block: int) -> Any:
    """The last carry of `step(carry, part) -> carry` over parts of `block` of the pieces [n, ...], the last of fewer.

    >>> over_blocks(lambda carry, part: carry + part.max(), 0, jnp.arange(5), 2).tolist()   # of 0 2, 1 3 and 4
    9
    """
    n = len(jax.tree.leaves(pieces)[0])
    blocks = n // block
    if blocks:
        # Every blocks-th row from a row on, so that where rows lie on several devices each has its share of a block.
        cut = jax.tree.map(lambda x: x[: blocks * block].reshape(block, blocks, *x.shape[1:]).swapaxes(0, 1), pieces)
        carry = lax.scan(lambda carry, part: (step(carry, part), None), carry, cut)[0]
    return step(carry, jax.tree.map(lambda x: x[blocks * block :], pieces)) if n % block else carry


def row(example: tuple[Any, jax.Array], key: jax.Array | None) -> tuple[Any, jax.Array | None]:
    """(batch, key) of one of what `numbered` gives."""
    piece, i = example
    return piece, None if key is None else jax.random.fold_in(key, i)


def value_and_gradient(
    loss: Loss, params: Any, state: Any, batch: Any, key: Any, *, scale: Any = None
) -> tuple[Any, Any, dict[str, Any]]:
    """(the gradient of a batch's own loss, unscaled and in at least float32; the loss's means; its metrics)."""

    def scalar(params):
        means, _, metrics = loss(params, state, batch, key=key)
        value = sum(map(_own, jax.tree.leaves(means, is_leaf=is_metric)))
        return (value if scale is None else scale * value), (means, metrics)

    found, (means, metrics) = jax.grad(scalar, has_aux=True)(params)
    found = jax.tree.map(tree.wide, found)
    return (found if scale is None else tree.scale(1 / scale, found)), means, metrics


def _own(mean):
    """A mean over its own count; 0 where nothing counts, with gradient 0 whatever the loss scale."""
    there = mean.count > 0
    return jnp.where(there, mean.total, 0) / jnp.where(there, mean.count, 1)


def _same(after, before):
    """Whether a traced loss hands its state on: the very arrays."""
    if jax.tree.structure(after) != jax.tree.structure(before):
        return False
    return all(a is b for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(before)))


def _shapes(batch):
    return ", ".join(map(str, sorted({jnp.shape(x) for x in jax.tree.leaves(batch)}))) or "none"
