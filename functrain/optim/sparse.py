"""Tables of which a step changes the rows that its batch reads, and no others, however long they are.

The rows are taken out of the table, and of all that an optimizer keeps of it; the step works on those few as on any
other parameters; then they go back. Which rows a batch reads, its model says (`rows`, see functrain.models.base).

    touched(ids, params) -> Touched         the different rows, and where in them each id stands
    take(tree, touched)  -> smaller tree    wherever a leaf's path ends with a table's
    put(tree, small, touched) -> tree

An optimizer whose update of a row depends on that row's own past alone becomes its lazy form: while nobody reads a row
it stands still, and so do its moments. Where a gradient of zero changes nothing (sgd without momentum, adagrad), that
is the dense rule itself; lazy Adam is torch.optim.SparseAdam.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from functrain import tree


class Touched(NamedTuple):
    """The rows of tables that a batch reads.

    rows: of each table, by path, the ids in ascending order, [as many as there are]; in the place of one that has been
      there, or is below 0, the number of rows that the table has.
    positions: where in `rows` each id stands, in the shape of the ids; below 0 where the id is, and beyond `rows` where
      the id is beyond the table.
    """

    rows: dict[str, jax.Array]
    positions: dict[str, jax.Array]


def touched(ids: Mapping[str, jax.Array], params: Any) -> Touched:
    """Which rows of the tables at these paths of `params` the ids name.

    ids: path -> integers of any shape; those below 0 name no row.

    Raises:
      ValueError: there is no such path.

    >>> found = touched({"t/table": jnp.array([[5, 2], [5, -1]])}, {"t": {"table": jnp.zeros((9, 1))}})
    >>> found.rows["t/table"].tolist(), found.positions["t/table"].tolist()
    ([2, 5, 9, 9], [[1, 0], [1, -1]])
    """
    leaves, rows, positions = tree.by_path(params), {}, {}
    sorted_once: dict[Any, Any] = {}  # tables that are read by the same ids share the sorting
    for path, wanted in ids.items():
        if path not in leaves:
            raise ValueError(f"{path}: no such table; there are: {', '.join(leaves)}")
        count = len(leaves[path])
        key = (id(wanted), count)
        if key not in sorted_once:
            ordered = jnp.sort(jnp.where(wanted < 0, count, wanted).reshape(-1))
            first = jnp.concatenate([ordered[:1] >= 0, ordered[1:] != ordered[:-1]])
            # Found by halves: to sort the ids with their places, as jnp.unique does, takes four times as long.
            at = jnp.searchsorted(ordered, wanted)
            at = jnp.where(wanted < 0, -1, jnp.where(wanted < count, at, wanted.size))
            sorted_once[key] = jnp.where(first, ordered, count), at
        rows[path], positions[path] = sorted_once[key]
    return Touched(rows, positions)


def take(whole: Any, found: Touched) -> Any:
    """The tree with the rows alone of every leaf whose path ends with a table's; in place of no row, the last one."""

    def taken(path, leaf):
        rows = _rows_of(path, found)
        return leaf if rows is None else leaf.at[rows].get(mode="clip")

    return tree.map_by_path(taken, whole)


def put(whole: Any, small: Any, found: Touched) -> Any:
    """The whole tree with the rows of the small one in their places, and its other leaves as the small one has them.

    >>> whole = {"t": {"table": jnp.zeros((4, 1))}, "b": jnp.zeros(1)}
    >>> found = touched({"t/table": jnp.array([3, 1])}, whole)
    >>> changed = put(whole, jax.tree.map(lambda x: x + 1, take(whole, found)), found)
    >>> changed["t"]["table"].ravel().tolist(), changed["b"].tolist()
    ([0.0, 1.0, 0.0, 1.0], [1.0])
    """
    given = tree.by_path(small)

    def back(path, leaf):
        rows = _rows_of(path, found)
        return given[path] if rows is None else leaf.at[rows].set(given[path], mode="drop")

    return tree.map_by_path(back, whole)


def _rows_of(path: str, found: Touched) -> jax.Array | None:
    """The rows that are touched of the leaf at a path; None where it is no table's."""
    tables = [table for table in found.rows if f"/{path}".endswith(f"/{table}")]
    return found.rows[max(tables, key=len)] if tables else None  # a table's path may end with another's
