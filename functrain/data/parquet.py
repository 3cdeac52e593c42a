"""Tables in Parquet files: columns of numbers, and of rows of numbers, by name.

A row can be had only with the group of rows that it was written in. In the order of training, rows come from all over
the file, so that nearly each costs a group unless the groups in use fit into those that are kept (`cached`): a file
that is to be streamed is written in groups of a few hundred rows, as `write` does.
"""

import collections
import dataclasses
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from functrain.config import ConfigError, Size, Text, configclass
from functrain.data.base import Normalised, Split
from functrain.data.cells import short_list
from functrain.data.dataset import SPLITS, Dataset, dataset, find
from functrain.data.reading import Examples, narrowed, streamed
from functrain.data.streaming import Streaming


@configclass
class Parquet(Streaming, Split, Normalised):
    """A table in Parquet files: inputs from columns of numbers, or of lists of them, a target of numbers or of text."""

    kind: Literal["parquet"] = "parquet"
    path: Text
    """The file, or a folder of them (.parquet, sorted by name); looked for in the working directory, then where
    FUNCTRAIN_DATA points."""
    validation_path: str = ""
    """Rows to choose by; empty takes some of the first path's."""
    test_path: str = ""
    """Rows to be read once; empty takes some of the first path's."""
    target: Text
    """The column to be told from the inputs: text and whole numbers are classes, others are numbers."""
    inputs: tuple[Text, ...] = ()
    """Columns that make x, side by side; empty is all others. A single one keeps its dtype, several become float32."""
    weight: str = ""
    """A column that says how much each row counts; empty is none."""
    class_names: tuple[str, ...] = ()
    """The classes of a target of text, in the order of their numbers; taken from the rows."""
    cached: Size = 64
    """Of a stream: groups of rows that each worker keeps."""

    def load(self) -> Dataset:
        """x [n, columns], y [n] or [n, targets], weight [n]."""
        groups = {"train": Groups(self, "data.path", self.path)}
        for split in SPLITS[1:]:
            if path := getattr(self, f"{split}_path"):
                groups[split] = Groups(self, f"data.{split}_path", path)
        y = {split: some.targets() for split, some in groups.items()}
        if y["train"].dtype == object:
            names = self.class_names or tuple(sorted(set(y["train"].tolist())))
            numbers = {name: i for i, name in enumerate(names)}
            for split, some in y.items():
                if strange := [name for name in some.tolist() if name not in numbers]:
                    where = f"{groups[split].where}: column {self.target!r}"
                    raise ConfigError(f"{where}: {strange[0]!r} is no class; there are: {short_list(names)}")
            y = {split: np.array([numbers[name] for name in some.tolist()], np.int32) for split, some in y.items()}
            classes = len(names)
        else:
            names, classes = (), int(y["train"].max()) + 1 if y["train"].dtype.kind in "iu" else 0
        given = {split: {"row": np.arange(len(some)), "y": some} for split, some in y.items()}
        parts = {s: p for s, p in self.split(given.pop("train"), given).items() if p}
        rows = {s: ParquetRows(groups.get(s, groups["train"]), p["row"], p["y"], self.cached) for s, p in parts.items()}
        name, train = f"data.path: {self.path}", rows.pop("train") if self.stream and "train" in rows else None
        memory = {split: some.read_batch(np.arange(len(some))) for split, some in rows.items()}
        if train is None:
            made = dataset(name, memory, classes)
        else:
            made = streamed(name, train, memory, classes, {"y": parts["train"]["y"]})
        return self.measured(dataclasses.replace(made, found={"class_names": names}))


class Groups:
    """The groups of rows of one or more files.

    key, path: the setting that messages name, and where it says that they are.

    Raises:
      ConfigError: there is no file, one cannot be read, or a column is not there or no numbers.
    """

    def __init__(self, source: Parquet, key: str, path: str):
        if path.endswith(".parquet"):
            files = [find(key, path)]
        else:
            files = sorted(find(key, path, folder=True).glob("*.parquet"))
            if not files:
                raise ConfigError(f"{key}: {path}: holds no .parquet files")
        self.where, self.target, self.weight = f"{key}: {path}", source.target, source.weight
        self.files = [str(file) for file in files]
        self._open = _Opened(self.where)
        sizes, names = [], []
        for file in self.files:
            opened = self._open(file)
            there = opened.schema_arrow.names
            sizes.append([opened.metadata.row_group(g).num_rows for g in range(opened.num_row_groups)])
            names = names or there
            for name in {self.target, *source.inputs, *([self.weight] if self.weight else [])}:
                if name not in there:
                    raise ConfigError(f"{self.where}: {file}: no column {name!r}; it has: {short_list(there)}")
        self.inputs = source.inputs or tuple(name for name in names if name not in (self.target, self.weight))
        if not self.inputs:
            raise ConfigError(f"{self.where}: no columns are left for the inputs")
        self.of_file = [(i, g) for i, groups in enumerate(sizes) for g in range(len(groups))]
        self.starts = np.cumsum([0, *(n for groups in sizes for n in groups)])
        if not self.starts[-1]:
            raise ConfigError(f"{self.where}: no rows")

    def targets(self) -> np.ndarray:
        """[n] of all rows: numbers, or text as objects."""
        parts = []
        for file in self.files:
            column = self._open(file).read(columns=[self.target]).column(0).combine_chunks()
            parts.append(self._array(file, self.target, column, text=True))
        kinds = {part.dtype == object for part in parts}
        if len(kinds) > 1:
            raise ConfigError(f"{self.where}: column {self.target!r}: text in some files, numbers in others")
        return np.concatenate(parts)

    def read(self, group: int) -> dict[str, np.ndarray]:
        """x and weight of all rows of a group."""
        i, inside = self.of_file[group]
        columns = [*self.inputs, *([self.weight] if self.weight else [])]
        pa, _ = _pyarrow()
        try:
            table = self._open(self.files[i]).read_row_group(inside, columns=columns, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            why = " ".join(str(error).split())
            raise ConfigError(f"{self.where}: {self.files[i]}: group {inside} cannot be read: {why}") from None
        arrays = {name: self._array(self.files[i], name, table.column(name).combine_chunks()) for name in columns}
        parts = [arrays[name] for name in self.inputs]
        if len(parts) == 1:
            x = parts[0] if parts[0].ndim > 1 else parts[0][:, None]
        else:
            x = np.concatenate([part.reshape(len(part), -1).astype(np.float32) for part in parts], 1)
        return {"x": x} | ({"weight": arrays[self.weight].astype(np.float32)} if self.weight else {})

    def _array(self, file: str, name: str, column: Any, text: bool = False) -> np.ndarray:
        """A column as [n, ...]."""
        pa, _ = _pyarrow()

        def mistake(what):
            return ConfigError(f"{self.where}: {file}: column {name!r}: {what}")

        if column.null_count:
            raise mistake("a cell is missing; expected none")
        kind, shape = column.type, [len(column)]
        while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            inner = column.flatten()
            if inner.null_count:
                raise mistake("a number is missing in a list; expected none")
            if not pa.types.is_fixed_size_list(kind) and len(np.unique(np.diff(np.asarray(column.offsets)))) > 1:
                raise mistake("lists of different lengths; expected one length")
            shape.append(len(inner) // max(len(column), 1))
            column, kind = inner, inner.type
        if text and (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)):
            return np.array(column.to_pylist(), object)
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            raise mistake(f"holds {kind}; expected numbers")
        return narrowed(column.to_numpy(zero_copy_only=False)).reshape(shape)


class _Opened:
    """Files by path, opened once in each thread (pyarrow's are not for several) and none of them pickled."""

    def __init__(self, where: str):
        self._where, self._local = where, threading.local()

    def __reduce__(self) -> Any:
        return _Opened, (self._where,)

    def __call__(self, file: str) -> Any:
        pa, parquet = _pyarrow()
        if not hasattr(self._local, "files"):
            self._local.files = {}
        try:
            if file not in self._local.files:
                self._local.files[file] = parquet.ParquetFile(file)
        except (pa.ArrowException, OSError) as error:
            raise ConfigError(f"{self._where}: {file}: cannot be read: {' '.join(str(error).split())}") from None
        return self._local.files[file]


class ParquetRows(Examples):
    """Rows of groups: x, y and perhaps weight.

    rows, y: [n] which, and their targets.
    cached: groups that are kept, the ones used last.
    """

    def __init__(self, groups: Groups, rows: np.ndarray, y: np.ndarray, cached: int):
        self._groups, self._rows, self._y, self._cached = groups, rows, y, cached
        self._begin()

    def _begin(self) -> None:
        self._kept: collections.OrderedDict[int, dict[str, np.ndarray]] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_kept", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        self._begin()

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, i: int) -> dict[str, np.ndarray]:
        """One row."""
        return {name: array[0] for name, array in self.read_batch(np.array([i])).items()}

    def read_batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Rows, each of their groups read once."""
        rows = self._rows[indices]
        of = np.searchsorted(self._groups.starts, rows, side="right") - 1
        made: dict[str, np.ndarray] = {}
        for group in np.unique(of).tolist():
            here = np.flatnonzero(of == group)
            for name, array in self._group(group).items():
                made.setdefault(name, np.empty((len(rows), *array.shape[1:]), array.dtype))
                made[name][here] = array[rows[here] - self._groups.starts[group]]
        return {"x": made["x"], "y": self._y[indices]} | {n: a for n, a in made.items() if n != "x"}

    def _group(self, group: int) -> dict[str, np.ndarray]:
        with self._lock:
            if group in self._kept:
                self._kept.move_to_end(group)
                return self._kept[group]
        arrays = self._groups.read(group)
        with self._lock:
            self._kept[group] = arrays
            while len(self._kept) > self._cached:
                self._kept.popitem(last=False)
        return arrays


def write(path: str | Path, columns: Mapping[str, np.ndarray], group: int = 256) -> None:
    """Columns [n] or [n, k] as a Parquet file with small groups of rows, as streams want them.

    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/a.parquet"
    >>> write(path, {"x": np.arange(6.0).reshape(3, 2), "y": np.array([0, 1, 0])})
    >>> Parquet(path=path, target="y", validation=0.0, test=0.0).load().train["x"].shape
    (3, 2)
    """
    pa, parquet = _pyarrow()
    arrays = {}
    for name, column in columns.items():
        flat = pa.array(np.ascontiguousarray(column).reshape(-1))
        arrays[name] = flat if column.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, column[0].size)
    parquet.write_table(pa.table(arrays), str(path), row_group_size=group)


def _pyarrow() -> tuple[Any, Any]:
    """pyarrow: an optional dependency, imported where Parquet is read."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError("Parquet needs pyarrow: pip install 'functrain[stream]'") from None
    return pyarrow, pyarrow.parquet
