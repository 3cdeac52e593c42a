"""Pytrees by path: names of leaves, selection by pattern, norms and counts.

The path of a leaf is its keys joined by "/": `layer0/kernel`, `players/model/params/layer0/kernel`.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import tree_util


def path_of(keys: Iterable[Any]) -> str:
    """The path of a leaf from jax's key path."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in keys)


def by_path(tree: Any) -> dict[str, Any]:
    """Path -> leaf, in the tree's order.

    >>> by_path({"layer0": {"bias": 1, "kernel": 2}})
    {'layer0/bias': 1, 'layer0/kernel': 2}
    """
    return {path_of(keys): leaf for keys, leaf in tree_util.tree_leaves_with_path(tree)}


def map_by_path(f: Callable[[str, Any], Any], tree: Any) -> Any:
    """`f(path, leaf)` for each leaf, in a tree of the same structure."""
    return tree_util.tree_map_with_path(lambda keys, leaf: f(path_of(keys), leaf), tree)


def select(patterns: Iterable[str], tree: Any) -> Any:
    """A tree of booleans: whether any pattern (`re.search`) matches the leaf's path.

    Raises:
      ValueError: a pattern matches no leaf, or is no regular expression.

    >>> select(["kernel$"], {"layer0": {"bias": 1, "kernel": 2}})
    {'layer0': {'bias': False, 'kernel': True}}
    """
    paths = list(by_path(tree))
    compiled = []
    for pattern in patterns:
        try:
            compiled.append(re.compile(pattern))
        except re.error as error:
            raise ValueError(f"pattern {pattern!r} is no regular expression: {error}") from None
        if not any(compiled[-1].search(p) for p in paths):
            raise ValueError(f"pattern {pattern!r} matches no parameter; there are: {', '.join(paths[:12])}")
    return map_by_path(lambda path, _: any(c.search(path) for c in compiled), tree)


def size(tree: Any) -> int:
    """How many numbers a tree holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def nbytes(tree: Any) -> int:
    """How many bytes a tree holds; keys of random numbers, a few bytes each, are left out."""
    arrays = (x for x in jax.tree.leaves(tree) if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key))
    return sum(x.size * x.dtype.itemsize for x in arrays)


def norm(tree: Any) -> jax.Array:
    """The Euclidean norm over all leaves, summed in at least float32."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(wide(leaf))) for leaf in jax.tree.leaves(tree)))


def wide(x: Any) -> jax.Array:
    """The array in at least float32: what reductions, softmax, norms and losses are computed in."""
    return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))


def is_float(x: Any) -> bool:
    """Whether an array (or its shape and dtype) holds floating-point numbers."""
    return jnp.issubdtype(x.dtype, jnp.floating)


def cast(tree: Any, dtype: Any) -> Any:
    """The floating-point leaves in `dtype`; the others as they are."""
    return jax.tree.map(lambda x: x.astype(dtype) if is_float(x) else x, tree)


def add(a: Any, b: Any) -> Any:
    """The sum, leaf by leaf, of two trees of one structure (gradients, metric sums)."""
    return jax.tree.map(jnp.add, a, b)


def scale(factor: Any, tree: Any) -> Any:
    """Each leaf times a scalar."""
    return jax.tree.map(lambda x: factor * x, tree)


def where(condition: Any, new: Any, old: Any) -> Any:
    """`jnp.where` leaf by leaf with one scalar condition."""
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)


def zeros_like(shapes: Any) -> Any:
    """Zeros for a tree of arrays or of `jax.ShapeDtypeStruct`."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
