"""What the estimators that move along directions share: drawing directions, going through them, the price of all."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from functrain import tree
from functrain.config import ConfigError

Law = Literal["normal", "rademacher"]
"""How each number of a direction is drawn: standard normal, or 1 or -1 alike. Both have mean 0 and variance 1."""

_APART = 0x5EED
"""Folded into an estimator's key, which may be a micro-batch's too: no direction may follow from a dropout mask."""


def keys_of(key: jax.Array, number: int) -> jax.Array:
    """A key for each of so many directions [number], apart from all that the loss draws."""
    return jax.random.split(jax.random.fold_in(key, _APART), number)


def draw(key: jax.Array, params: Any, law: Law) -> Any:
    """A direction: a tree like the parameters, in at least float32, of independent numbers.

    >>> draw(jax.random.key(0), {"a": jnp.zeros(3), "b": jnp.zeros((1, 2))}, "rademacher")["b"].shape
    (1, 2)
    """
    sample = {"normal": jax.random.normal, "rademacher": jax.random.rademacher}[law]
    leaves, form = jax.tree.flatten(params)
    drawn = [sample(jax.random.fold_in(key, i), p.shape, _wide(p)) for i, p in enumerate(leaves)]
    return jax.tree.unflatten(form, drawn)


def moved(params: Any, size: Any, direction: Any) -> Any:
    """params + size direction, in the dtypes of the parameters."""
    return jax.tree.map(lambda p, v: (p + size * v).astype(p.dtype), params, direction)


def combined(weights: jax.Array, keys: jax.Array, params: Any, law: Law) -> Any:
    """The sum over i of weights[i] draw(keys[i]): a tree like the parameters, in at least float32.

    Every direction is drawn again from its key: of all of them, one is held at a time.
    """

    def add(total, each):
        weight, key = each
        return jax.tree.map(lambda t, v: t + weight.astype(v.dtype) * v, total, draw(key, params, law)), None

    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, _wide(p)), params)
    return lax.scan(add, zeros, (weights, keys))[0]


def both_sides(objective: Any, params: Any, size: Any, keys: jax.Array, law: Law, block: int = 1) -> jax.Array:
    """The losses at params + size v and params - size v for each direction v: [2, directions].

    Each of them draws its direction anew: beside the parameters, those moved are all that is held.

    >>> from functrain.metrics import Mean
    >>> from functrain.optim import objective
    >>> goal = objective(lambda w, s, b, *, key: (Mean(w, jnp.ones(())), s, {}), {}, {"x": jnp.ones(1)}, None)
    >>> both_sides(goal, jnp.asarray(1.0), 0.5, keys_of(jax.random.key(0), 3), "rademacher").sum(0).tolist()
    [2.0, 2.0, 2.0]
    """

    def loss(each):
        sign, key = each
        return objective.value(moved(params, sign * size, draw(key, params, law)))[0]

    signs = jnp.repeat(jnp.array([1.0, -1.0], jnp.float32), len(keys))
    return in_blocks(loss, (signs, jnp.concatenate([keys, keys])), block).reshape(2, -1)


def in_blocks(f: Callable[[Any], Any], xs: Any, block: int) -> Any:
    """f of each entry of xs, `block` of them side by side."""
    return lax.map(f, xs, batch_size=block if block > 1 else None)


def axis(i: Any, params: Any) -> Any:
    """A tree like the parameters, True at the i-th of all their numbers.

    >>> axis(2, {"a": jnp.zeros(2), "b": jnp.zeros((1, 2))})["b"].tolist()
    [[True, False]]
    """
    leaves, form = jax.tree.flatten(params)
    starts = [sum(p.size for p in leaves[:i]) for i in range(len(leaves))]
    there = [(jnp.arange(start, start + p.size) == i).reshape(p.shape) for start, p in zip(starts, leaves)]
    return jax.tree.unflatten(form, there)


def shaped(numbers: jax.Array, params: Any) -> Any:
    """A tree like the parameters, in at least float32, of numbers [as many] in their order.

    >>> shaped(jnp.arange(3.0), {"a": jnp.zeros(1), "b": jnp.zeros((1, 2))})["b"].tolist()
    [[1.0, 2.0]]
    """
    leaves, form = jax.tree.flatten(params)
    ends = [sum(p.size for p in leaves[: i + 1]) for i in range(len(leaves))]
    cut = [numbers[end - p.size : end].reshape(p.shape).astype(_wide(p)) for end, p in zip(ends, leaves)]
    return jax.tree.unflatten(form, cut)


def raveled(params: Any) -> jax.Array:
    """The numbers of a tree in a row [n], in at least float32; `shaped` and `placed` are the way back.

    >>> raveled({"a": jnp.ones(1), "b": jnp.zeros((1, 2))}).tolist()
    [1.0, 0.0, 0.0]
    """
    return jnp.concatenate([tree.wide(p).ravel() for p in jax.tree.leaves(params)])


def placed(numbers: jax.Array, params: Any) -> Any:
    """`shaped`, in the dtypes of the parameters.

    >>> placed(jnp.arange(3.0), {"a": jnp.ones(1, "bfloat16"), "b": jnp.zeros((1, 2))})["a"].dtype
    dtype(bfloat16)
    """
    return jax.tree.map(lambda x, p: x.astype(p.dtype), shaped(numbers, params), params)


def refuse_above(most: int, estimator: Any, params: Any, instead: str) -> None:
    """Raises a ConfigError where there are more parameters than `most`, with what a step would cost."""
    if (parameters := tree.size(params)) > most:
        raise ConfigError(
            f"estimator.most: {estimator.kind} would cost {estimator.evaluations(parameters):,.0f} loss evaluations a "
            f"step for {parameters:,} parameters, and takes at most {most:,}; raise estimator.most, or {instead}"
        )


def _wide(p):
    """The dtype in which a parameter's gradient is."""
    return jnp.promote_types(p.dtype, jnp.float32)
