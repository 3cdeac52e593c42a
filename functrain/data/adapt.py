"""Data at hand as arrays: any Python iterable of examples, and the data sets of Hugging Face (which is not imported).

from_iterable(examples)   -> {"x": [n, ...], "y": [n, ...]}        one split
from_splits(data)         -> {"train": {...}, "test": {...}}       several
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from functrain.config import ConfigError
from functrain.data.dataset import SPLITS

_PLACES = {0: "x", 1: "y"}


def from_iterable(examples: Any, columns: Mapping[Any, str] | None = None) -> dict[str, np.ndarray]:
    """Examples one by one, stacked to arrays; what `functrain.fit` takes.

    Args:
      examples: an iterable of dicts, or of tuples (x, y), or of bare x; a dict of arrays; or an object with
        `column_names` whose columns are had by name, such as a datasets.Dataset. Images of Pillow are numbers too.
      columns: {name in an example: name in a batch}, such as {"image": "x", "label": "y"}; of a tuple, the place
        stands for the name. Others are left out. None takes all, by their own names; of a tuple, x and y.

    Raises:
      ConfigError: an example has other columns than the first, another shape, or is no number; with its index, from 0.

    >>> arrays = from_iterable([([1.0, 2.0], 0), ([3.0, 4.0], 1)])
    >>> arrays["x"].shape, arrays["y"].tolist()
    ((2, 2), [0, 1])
    """
    if isinstance(examples, Mapping):
        found: Mapping[Any, Any] = examples
    elif getattr(examples, "column_names", None) and hasattr(examples, "__getitem__"):
        found = {name: examples[name] for name in examples.column_names if columns is None or name in columns}
    else:
        if not isinstance(examples, Iterable) or isinstance(examples, (str, bytes)):
            raise ConfigError(f"examples: found {type(examples).__name__}; expected an iterable of dicts or tuples")
        rows = list(examples)
        if rows and isinstance(rows[0], tuple) and columns is None:
            columns = _PLACES
        found = _by_column(rows)
    if not found:
        raise ConfigError("examples: there are none")
    columns = {name: str(name) for name in found} if columns is None else columns
    if isinstance(next(iter(found)), int) and (more := [place for place in found if place not in columns]):
        raise ConfigError(f"examples: tuples of {len(found)}; columns says nothing of place {more[0]}")
    if lacking := [name for name in columns if name not in found and columns is not _PLACES]:
        raise ConfigError(f"examples: no column {lacking[0]!r}; there are: {', '.join(map(str, found))}")
    return {to: _stacked(to, found[name]) for name, to in columns.items() if name in found}


def from_splits(data: Any, columns: Mapping[Any, str] | None = None) -> dict[str, dict[str, np.ndarray]]:
    """Each split by `from_iterable`: of a dict by split, such as a datasets.DatasetDict; anything else is for training.

    >>> {split: list(arrays) for split, arrays in from_splits({"train": [(1, 2)], "test": [(3, 4)]}).items()}
    {'train': ['x', 'y'], 'test': ['x', 'y']}
    """
    if not isinstance(data, Mapping) or not data.keys() & set(SPLITS):
        data = {"train": data}
    made = {}
    for split, examples in data.items():
        try:
            made[split] = {} if isinstance(examples, Mapping) and not examples else from_iterable(examples, columns)
        except ConfigError as error:
            raise ConfigError(f"{split}: {error}") from None
    return made


def _by_column(rows: list[Any]) -> dict[Any, list[Any]]:
    """Rows as columns: of dicts by name, of tuples by place; of anything else one, called x."""
    if not rows:
        return {}
    if not isinstance(rows[0], (tuple, Mapping)):
        return {"x": rows}
    kind = tuple if isinstance(rows[0], tuple) else Mapping
    names = list(rows[0]) if kind is Mapping else list(range(len(rows[0])))
    for i, row in enumerate(rows):
        if not isinstance(row, kind) or len(row) != len(names) or (kind is Mapping and set(row) != set(names)):
            what = f"columns {', '.join(map(str, row))}" if isinstance(row, Mapping) else _described(row)
            first = f"columns {', '.join(map(str, names))}" if kind is Mapping else f"a tuple of {len(names)}"
            raise ConfigError(f"example {i}: found {what}; the first one has {first}")
    return {name: [row[name] for row in rows] for name in names}


def _stacked(name: str, values: Any) -> np.ndarray:
    """An array of the values, one for each example."""
    if not hasattr(values, "__array__"):  # an array is one already; so is a jax array
        values = list(values)
    try:
        array = np.asarray(values)
        if array.dtype.kind in "biuf":
            return array
    except (ValueError, TypeError, OverflowError):  # ragged, or things that are no numbers
        pass
    first = None
    for i, value in enumerate(values):
        try:
            shape, kind = np.shape(value), np.asarray(value).dtype.kind
        except ValueError:
            raise ConfigError(f"example {i}: {name}: rows of different lengths make no array") from None
        if kind not in "biuf":
            raise ConfigError(f"example {i}: {name}: found {_described(value)}; expected numbers")
        first = shape if first is None else first
        if shape != first:
            raise ConfigError(f"example {i}: {name}: shape {shape}; that of the first is {first}")
    raise ConfigError(f"{name}: numbers that make no array")


def _described(value: Any) -> str:
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else type(value).__name__
