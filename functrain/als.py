"""Alternating least squares: a matrix of which few entries are known, as the product of two thin ones.

With the items' factors held still each user's are a small least-squares problem, and the other way round; a sweep
solves all of one side and then all of the other. Nothing is differentiated. The problems of one side are solved
together: rows of like length lie in one array (`bucketed`), each bucket in blocks that bound the memory, so that a
sweep is one program and not a loop over users.

    by_user = bucketed(user, item, value, shape)         by_item = bucketed(item, user, value, shape[::-1])
    params = explicit_sweep(params, by_user, by_item, mean=..., regularisation=...)     ratings, with biases
    params = implicit_sweep(params, by_user, by_item, regularisation=...)               confidences

Give the buckets to a jitted function as arguments: as constants they would be compiled into it, which takes long.

Parameters are plain arrays: users [users, factors], items [items, factors]; for ratings user_bias [users] and item_bias
[items] too.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve

_SHORTEST = 8
"""The least length of a bucket."""
_BLOCK = 1 << 16
"""Entries in a block, about: with 64 factors 16 MiB of gathered factors."""
_MOST_ROWS = 1024
"""Rows in a block at most: with 64 factors 16 MiB of normal equations."""


class Bucket(NamedTuple):
    """Rows of like length: two blocks of them or more, the shorter ones filled up.

    rows: [blocks, n], their numbers; of filling the number of rows that there are.
    columns: [blocks, n, length], where the entries stand; of filling 0.
    values: [blocks, n, length].
    there: [blocks, n, length], 1 for an entry, 0 for filling.
    """

    rows: Any
    columns: Any
    values: Any
    there: Any


def bucketed(rows: np.ndarray, columns: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> list[Bucket]:
    """The entries of a sparse matrix by rows, in buckets whose lengths are powers of two; rows without any are in none.

    rows, columns, values: [entries], in any order; a place that is given twice counts twice.
    shape: rows and columns of the matrix.

    >>> [bucket] = bucketed(np.array([2, 0, 2]), np.array([1, 3, 0]), np.array([5.0, 4.0, 3.0]), (3, 4))
    >>> bucket.rows.tolist(), bucket.columns[1, 0, :2].tolist(), bucket.values[1, 0, :2].tolist()
    ([[0], [2]], [1, 0], [5.0, 3.0])

    Raises:
      ValueError: the arrays differ in length, or an index is outside the shape.
    """
    rows, columns, values = (np.asarray(array) for array in (rows, columns, values))
    if not len(rows) == len(columns) == len(values):
        raise ValueError(f"found {len(rows)} rows, {len(columns)} columns and {len(values)} values; expected as many")
    for name, index, n in (("rows", rows, shape[0]), ("columns", columns, shape[1])):
        if len(index) and not 0 <= index.min() <= index.max() < n:
            raise ValueError(f"{name}: found {index.min()} to {index.max()}; expected 0 to {n - 1}")
    order = np.argsort(rows, kind="stable")
    columns, values = columns[order].astype(np.int32), values[order]
    counts = np.bincount(rows, minlength=shape[0])
    begins = np.concatenate([[0], counts.cumsum()])
    lengths = np.where(counts > 0, np.maximum(_SHORTEST, 1 << np.ceil(np.log2(np.maximum(counts, 1))).astype(int)), 0)
    buckets = []
    for length in np.unique(lengths[lengths > 0]):
        mine = np.flatnonzero(lengths == length)
        n = min(-(-len(mine) // 2), _MOST_ROWS, max(1, _BLOCK // length))
        blocks = max(2, -(-len(mine) // n))  # see _solved
        place = np.arange(length)
        there = place < np.pad(counts[mine], (0, blocks * n - len(mine)))[:, None]
        at = np.where(there, np.pad(begins[mine], (0, blocks * n - len(mine)))[:, None] + place, 0)
        cut = (blocks, n, int(length))
        buckets.append(
            Bucket(
                np.pad(mine, (0, blocks * n - len(mine)), constant_values=shape[0]).astype(np.int32).reshape(blocks, n),
                np.where(there, columns[at], 0).reshape(cut),
                np.where(there, values[at], 0).reshape(cut),
                there.astype(values.dtype).reshape(cut),
            )
        )
    return buckets


def explicit(
    buckets: list[Bucket], fixed: jax.Array, n: int, *, regularisation: Any, offsets: Any = None, weighted: bool = False
) -> jax.Array:
    """For each row the x that makes sum over its entries of (value - offset - x . fixed[column])^2 + l |x|^2 least.

    l is `regularisation`, or with `weighted` that times the number of the row's entries (Zhou et al. 2008, eq. 3, where
    a row with many entries is held back as one with few).

    fixed: [columns, factors]. n: how many rows there are. offsets: [columns], or None.

    Returns:
      [n, factors]; zeros for rows without entries.
    """

    def normal(columns, values, there):
        y = fixed[columns] * there[..., None]
        target = values if offsets is None else (values - offsets[columns]) * there
        count = there.sum(-1) if weighted else jnp.ones(len(there), y.dtype)
        return _products(y, y), jnp.einsum("nlf,nl->nf", y, target, precision="highest"), regularisation * count

    return _solved(buckets, fixed, n, normal)


def implicit(buckets: list[Bucket], fixed: jax.Array, n: int, *, regularisation: Any) -> jax.Array:
    """For each row the x that makes the sum over all columns of c (p - x . fixed[column])^2 + l |x|^2 least.

    An entry's value is its confidence c, its preference p is 1; every other column has c = 1 and p = 0 (Hu, Koren and
    Volinsky 2008, eq. 3 and 4; there c = 1 + alpha r). The columns without entries cost nothing: their part of the
    normal equations is the same for all rows.

    fixed: [columns, factors]. n: how many rows there are.

    Returns:
      [n, factors]; zeros for rows without entries.
    """
    gram = jnp.einsum("cf,cg->fg", fixed, fixed, precision="highest")

    def normal(columns, values, there):
        y = fixed[columns] * there[..., None]
        matrix = gram + _products(y * (values - 1)[..., None], y)
        return matrix, jnp.einsum("nlf,nl->nf", y, values, precision="highest"), jnp.full(len(there), regularisation)

    return _solved(buckets, fixed, n, normal)


def explicit_sweep(
    params: dict[str, jax.Array],
    by_user: list[Bucket],
    by_item: list[Bucket],
    *,
    mean: Any,
    regularisation: Any,
    weighted: bool = False,
) -> dict[str, jax.Array]:
    """All users and their biases, then all items and theirs, of ratings = mean + user_bias + item_bias + users . items.

    A bias is one more factor, against a column of ones (Koren, Bell and Volinsky 2009, eq. 4 and 5); it is regularised
    as the others are.
    """
    settings: dict[str, Any] = {"regularisation": regularisation, "weighted": weighted}
    users, items = ("users", "user_bias"), ("items", "item_bias")
    for (mine, my_bias), (other, other_bias), buckets in ((users, items, by_user), (items, users, by_item)):
        fixed = jnp.concatenate([params[other], jnp.ones((len(params[other]), 1), params[other].dtype)], -1)
        found = explicit(buckets, fixed, len(params[mine]), offsets=mean + params[other_bias], **settings)
        params = params | {mine: found[:, :-1], my_bias: found[:, -1]}
    return params


def implicit_sweep(
    params: dict[str, jax.Array], by_user: list[Bucket], by_item: list[Bucket], *, regularisation: Any
) -> dict[str, jax.Array]:
    """All users, then all items, from confidences."""
    users = implicit(by_user, params["items"], len(params["users"]), regularisation=regularisation)
    items = implicit(by_item, users, len(params["items"]), regularisation=regularisation)
    return params | {"users": users, "items": items}


def _products(a, b):
    """Of each row the sum of the outer products of its entries."""
    return jnp.einsum("nlf,nlg->nfg", a, b, precision="highest")


def _solved(buckets, fixed, n, normal):
    """Solve (matrix + ridge I) x = right of every row; `normal(columns, values, there)` makes the three of a block."""
    found = jnp.zeros((n, fixed.shape[-1]), fixed.dtype)

    def block(part):
        values, there = (array.astype(fixed.dtype) for array in (part.values, part.there))
        matrix, right, ridge = normal(part.columns, values, there)
        # Rows of filling have an empty matrix: any ridge keeps it regular, and nobody reads what comes out.
        ridge = jnp.where(part.rows < n, ridge, 1)
        matrix = matrix + ridge[:, None, None] * jnp.eye(matrix.shape[-1], dtype=matrix.dtype)
        return cho_solve((jnp.linalg.cholesky(matrix), True), right[..., None])[..., 0]

    for bucket in buckets:
        bucket = Bucket(*map(jnp.asarray, bucket))

        def with_block(i, found, bucket=bucket):
            part = jax.tree.map(lambda x: x[i], bucket)
            return found.at[part.rows].set(block(part), mode="drop")

        # There must be a loop, and what it finds goes from bucket to bucket. Factorisations that may run at once
        # wait for one another, each in a thread of the pool that their work is cut over, and on few cores forever
        # (jaxlib 0.10.2 on a CPU). A loop over one block XLA would unroll: hence two at least, the last perhaps empty.
        found = jax.lax.fori_loop(0, (bucket.rows < n).any(1).sum(), with_block, found)
    return found
