"""Tables in CSV files: numeric columns standardised, categories one-hot or by number, missing cells said to be missing.

What the training part shows of each column (its median, its categories) is kept in the source's settings as `columns`,
so that new rows are encoded in the same way, without the data.
"""

import collections
import csv
import dataclasses
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field

from functrain.config import ConfigError, Count, Positive, Size, Text, configclass, kinds
from functrain.data.base import Split
from functrain.data.cells import number_in, short, short_list
from functrain.data.dataset import SPLITS, Dataset, dataset, find
from functrain.data.streaming import Streaming
from functrain.data.table_stream import load_stream

# pyright: reportInvalidTypeForm=false
# The union of kinds is built by a function, which a static checker cannot follow.

_MOST_CLASSES = 20
"""Different whole numbers up to which a target is taken for a class."""
_MOST_CATEGORIES = 2**24
"""Categories of a column by number at most: float32 tells all whole numbers up to there apart."""


@configclass
class Numeric:
    """A column of numbers: (number - centre) / spread, the median where it is missing; then 1 where it was missing."""

    kind: Literal["numeric"] = "numeric"
    name: str
    """The column's name."""
    missing: Count = 0
    """Training rows without a number; where there are any, a second column of x says which."""
    median: float = 0.0
    """Of the training rows that have a number; it stands for a missing one."""
    centre: float = 0.0
    """What is subtracted."""
    spread: float = 1.0
    """What is divided by."""

    @property
    def width(self) -> int:
        """Columns of x."""
        return 2 if self.missing else 1

    @property
    def fields(self) -> tuple[int, ...]:
        """How many categories each column of x has: none."""
        return (0,) * self.width

    def encode(self, cells: "Cells", categories: str = "one_hot") -> np.ndarray:
        """x [n, width] float32, whatever is done with categories."""
        numbers = cells.numbers()
        gone = np.isnan(numbers)
        x = (np.where(gone, self.median, numbers) - self.centre) / self.spread
        return np.stack([x, gone][: self.width], 1).astype(np.float32)

    def describe(self) -> str:
        """A line for a person."""
        return f"numeric, median {self.median:.6g}, {self.missing} missing in training"


class _Categories(ABC):
    """What columns of categories share. A subclass says how many there are, and which one a cell is.

    size: how many categories; what is missing and what is rare may be one.
    category(cells): [n] integers, the number of each row's category from 0, or -1 for one that has no place.
    """

    size: int

    @property
    def fields(self) -> tuple[int, ...]:
        """How many categories each column of x has, where they are numbers."""
        return (self.size,)

    @abstractmethod
    def category(self, cells: "Cells") -> np.ndarray:
        """[n] integers, as above."""

    def encode(self, cells: "Cells", categories: str = "one_hot") -> np.ndarray:
        """x float32: "numbers" [n, 1], or "one_hot" [n, size], at most one 1 in a row."""
        at = self.category(cells)
        if categories == "numbers":
            return at[:, None].astype(np.float32)
        known = np.flatnonzero(at >= 0)
        x = np.zeros((len(at), self.size), np.float32)
        x[known, at[known]] = 1.0
        return x


@configclass
class Categorical(_Categories):
    """A column of categories: a place for each, then one for missing and one for all others."""

    kind: Literal["categorical"] = "categorical"
    name: str
    """The column's name."""
    missing: Count = 0
    """Training rows without a category; where there are any, missing is a category."""
    categories: tuple[str, ...] = ()
    """The categories of the training rows that have a place of their own."""
    other: bool = False
    """Whether there is a place for all others; without it they have none."""

    @property
    def size(self) -> int:
        """How many places there are."""
        return len(self.categories) + bool(self.missing) + self.other

    def category(self, cells: "Cells") -> np.ndarray:
        """[n] integers; see `_Categories`."""
        places = {category: i for i, category in enumerate(self.categories)}
        other = self.size - 1 if self.other else -1
        return cells.look_up(places, len(self.categories) if self.missing else other, other)

    def describe(self) -> str:
        """A line for a person."""
        others = " and others" if self.other else ""
        return f"categorical, {len(self.categories)} categories{others}, {self.missing} missing in training"


@configclass
class Hashed(_Categories):
    """A column of categories by the hash of their text: unseen ones have a place too, and different ones may share it.

    The hash is BLAKE2b of the text as UTF-8, 8 bytes, the lowest first: the same on every machine. Weinberger et al.
    2009, "Feature Hashing for Large Scale Multitask Learning".
    """

    kind: Literal["hashed"] = "hashed"
    name: str
    """The column's name."""
    missing: Count = 0
    """Training rows without a category; where there are any, missing is a category after the buckets."""
    buckets: Size
    """How many places the hashes have."""

    @property
    def size(self) -> int:
        """How many places there are."""
        return self.buckets + bool(self.missing)

    def category(self, cells: "Cells") -> np.ndarray:
        """[n] integers; see `_Categories`."""
        places = {cell: _hash(cell) % self.buckets for cell in cells.values}
        return cells.look_up(places, self.buckets if self.missing else -1, -1)

    def describe(self) -> str:
        """A line for a person."""
        return f"hashed, {self.buckets} buckets, {self.missing} missing in training"


@configclass
class Bucketed(_Categories):
    """A column of numbers cut into categories: number i lies above i boundaries, and at most at the next."""

    kind: Literal["bucketed"] = "bucketed"
    name: str
    """The column's name."""
    missing: Count = 0
    """Training rows without a number; where there are any, missing is a category after the buckets."""
    boundaries: tuple[float, ...] = ()
    """Where the column is cut, rising; each belongs to the bucket below it."""

    @property
    def size(self) -> int:
        """How many places there are."""
        return len(self.boundaries) + 1 + bool(self.missing)

    def category(self, cells: "Cells") -> np.ndarray:
        """[n] integers; see `_Categories`."""
        numbers = cells.numbers()
        at = np.searchsorted(self.boundaries, numbers, side="left")
        return np.where(np.isnan(numbers), len(self.boundaries) + 1 if self.missing else -1, at)

    def describe(self) -> str:
        """A line for a person."""
        cuts = short_list(f"{cut:.6g}" for cut in self.boundaries)
        buckets = f"{len(self.boundaries) + 1} buckets cut at {cuts}" if cuts else "1 bucket"
        return f"bucketed, {buckets}, {self.missing} missing in training"


AnyColumn = kinds(Numeric, Categorical, Hashed, Bucketed)
"""What is known of a column."""
_Column = Numeric | Categorical | Hashed | Bucketed
_NAMING = ("drop", "numeric", "categorical", "hashed", "bucketed")
"""Settings that name columns, each of which may stand in one of them."""


@dataclasses.dataclass(frozen=True)
class Cells:
    """The cells of one column, each different text once: that is what makes a large table quick to read."""

    name: str
    values: list[str]  # the different cells
    gone: np.ndarray  # [values] whether it says that there is nothing
    codes: np.ndarray  # [n] which of them each row has
    lines: np.ndarray  # [n] the line of each row
    file: str

    def take(self, rows: np.ndarray) -> "Cells":
        """The cells of some rows."""
        return dataclasses.replace(self, codes=self.codes[rows], lines=self.lines[rows])

    def counts(self) -> dict[str, int]:
        """How many rows have each cell; missing ones left out."""
        counts = np.bincount(self.codes, minlength=len(self.values)).tolist()
        return {cell: n for cell, n, gone in zip(self.values, counts, self.gone) if n and not gone}

    def look_up(self, table: Mapping[str, Any], missing: Any, others: Any) -> np.ndarray:
        """[n] what the table says of each cell."""
        values = [missing if gone else table.get(cell, others) for cell, gone in zip(self.values, self.gone)]
        return np.array(values)[self.codes]

    def numbers(self) -> np.ndarray:
        """[n] float64, NaN where missing."""
        table = {cell: number for cell in self.values if (number := number_in(cell)) is not None}
        numbers = self.look_up(table, math.nan, math.inf)  # a cell gives no infinity itself
        if wrong := np.flatnonzero(np.isinf(numbers)).tolist():
            raise self.mistake(wrong[0], "a number")
        return numbers

    def mistake(self, row: int, expected: str) -> ConfigError:
        """What to raise for the cell of one row."""
        code = self.codes[row]
        found = "missing" if self.gone[code] else f"found {short(self.values[code])}"
        return ConfigError(f"{self.file}: line {self.lines[row]}: column {self.name!r}: {found}; expected {expected}")


@dataclasses.dataclass(frozen=True)
class Table:
    """A table as text: its columns by name, and the line of each row."""

    file: str
    columns: Mapping[str, Cells]
    lines: np.ndarray

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, name: str) -> Cells:
        if name not in self.columns:
            raise ConfigError(f"{self.file}: no column {name!r}; it has: {short_list(self.columns)}")
        return self.columns[name]


def _listed(value: Any) -> Any:
    """One name as several; pydantic wants a tuple where a function has looked at the value first."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


@configclass
class Csv(Streaming, Split):
    """A table in a CSV file: numbers standardised, categories one-hot or by number, by what the training rows say."""

    kind: Literal["csv"] = "csv"
    path: Text
    """The file; looked for in the working directory, then where FUNCTRAIN_DATA points."""
    validation_path: str = ""
    """A file of rows to choose by; empty takes some of the first file's."""
    test_path: str = ""
    """A file of rows to be read once; empty takes some of the first file's."""
    target: Annotated[
        tuple[Text, ...], Field(min_length=1), BeforeValidator(_listed, json_schema_input_type=str | list[str])
    ]
    """The column to be told from the others; or several, of numbers."""
    target_kind: Literal["auto", "class", "number"] = "auto"
    """What the target is; auto takes text, and whole numbers of which at most 20 differ, for classes."""
    target_unit: Positive = 1.0
    """What targets that are numbers are divided by."""
    weight: str = ""
    """A column that says how much each row counts; empty is none."""
    header: bool = True
    """Whether the first line has the columns' names."""
    names: tuple[Text, ...] = ()
    """The columns' names where the file has no header; empty calls them 0, 1, 2 ..."""
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","
    """What stands between two cells."""
    comment: str = ""
    """What lines begin with that are no rows; empty is nothing."""
    missing: tuple[str, ...] = ("", "NA", "?", "nan", "NaN")
    """Cells that say that there is nothing."""
    replace: dict[str, str] = dataclasses.field(default_factory=dict)
    """Cells to be read as others, such as { "yes." = "yes" }."""
    drop: tuple[str, ...] = ()
    """Columns to leave out."""
    numeric: tuple[str, ...] = ()
    """Columns that are numbers; by itself, one is if all its training cells are."""
    categorical: tuple[str, ...] = ()
    """Columns that are categories although they look like numbers."""
    hashed: dict[str, Size] = dataclasses.field(default_factory=dict)
    """Columns whose categories are hashes of their text, and into how many buckets, such as { "city" = 1000 }."""
    bucketed: dict[str, Size] = dataclasses.field(default_factory=dict)
    """Columns of numbers to be categories, cut into so many buckets of as many training rows; fewer where rows tie."""
    categories: Literal["one_hot", "numbers"] = "one_hot"
    """How x holds a category: a column for each, or all as one column of numbers, which models with tables look up."""
    normalise: Literal["none", "standard", "range"] = "standard"
    """standard: numbers less their mean, over their deviation; range: to 0..1; both by column."""
    min_count: Size = 1
    """Training rows that a category must have; rarer ones are counted as others."""
    max_categories: Size = 128
    """Categories of a column at most, the most frequent; the rest is counted as others."""
    learned_from: Size = 100_000
    """Of a stream: training rows, drawn at random, that say what `columns` are; all, where there are fewer."""
    columns: tuple[AnyColumn, ...] = ()
    """What is known of each column of the inputs; taken from the training rows."""
    class_names: tuple[str, ...] = ()
    """The target's classes, in the order of their numbers; taken from the rows."""

    def __post_init__(self):
        super().__post_init__()
        if self.delimiter in '\r\n"':
            raise ValueError(f"delimiter: found {self.delimiter!r}; expected another character")
        if self.header and self.names:
            raise ValueError("names: found some; expected none where header = true")
        named = [("target", c) for c in _listed(self.target)] + [("weight", self.weight)] * bool(self.weight)
        named += [(key, c) for key in _NAMING for c in getattr(self, key)]
        first: dict[str, str] = {}
        for key, column in named:
            if first.setdefault(column, key) != key:
                raise ValueError(f"{key}: column {column!r} is in {first[column]} too")
        for key in ("hashed", "bucketed"):
            for column, buckets in getattr(self, key).items():
                if buckets < 2:
                    raise ValueError(f"{key}.{column}: found {buckets}; expected at least 2 buckets")

    @property
    def targets(self) -> tuple[str, ...]:
        """The columns to be told from the others."""
        return _listed(self.target)

    def load(self) -> Dataset:
        """x [n, columns] float32; y [n] in 0..classes - 1, or [n] or [n, targets] float32; weight [n].

        Where categories are numbers, the data set has `fields`: how many there are in each column of x.
        """
        if self.stream:
            return load_stream(self)
        tables = {"train": self._read("data.path", self.path)} | self.given()
        first = tables["train"]
        self.check_names(first.file, tuple(first.columns))
        given = {split: {"row": np.arange(len(table))} for split, table in tables.items() if split != "train"}
        parts = self.split({"row": np.arange(len(first))}, given)
        rows = {split: part["row"] for split, part in parts.items() if part}
        if not len(rows.get("train", ())):
            raise ConfigError(f"{first.file}: no rows are left to train on")

        settled = self if self.columns else dataclasses.replace(self, columns=self.learn(first, rows["train"]))
        settled = settled.settle_target(first)
        whole = {split: settled.arrays(table) for split, table in tables.items()}
        splits = {split: {key: a[rows[split]] for key, a in whole.get(split, whole["train"]).items()} for split in rows}
        return settled.described(dataset(f"data.path: {self.path}", splits, len(settled.class_names)))

    def given(self) -> "dict[str, Table]":
        """The files that are there for validation and test, in memory."""
        paths = {split: getattr(self, f"{split}_path") for split in SPLITS[1:]}
        return {split: self._read(f"data.{split}_path", path) for split, path in paths.items() if path}

    def described(self, made: Dataset) -> Dataset:
        """The dataset with its fields, and what was learned: of a source that has it.

        Raises:
          ConfigError: a column has too many categories to be told apart by number.
        """
        found = {key: getattr(self, key) for key in ("columns", "class_names", "target_kind")}
        fields = tuple(size for column in self.columns for size in column.fields)
        if self.categories == "one_hot":
            return dataclasses.replace(made, found=found)
        if max(fields) > _MOST_CATEGORIES:
            name = next(column.name for column in self.columns if max(column.fields) > _MOST_CATEGORIES)
            raise ConfigError(
                f"data.path: {self.path}: column {name!r}: {max(fields)} categories; expected at most "
                f'{_MOST_CATEGORIES} where data.categories = "numbers"'
            )
        return dataclasses.replace(made, found=found, fields=fields)

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """x [n, columns] of new rows, each a dict of cells by column; in a run, whose settings have `columns`.

        Raises:
          ConfigError: a row lacks a column, or a cell is no number; with the row, from 0.

        >>> source = Csv(path="a.csv", target=("y",), columns=(Categorical(name="city", categories=("Bonn", "Ulm")),))
        >>> source.encode([{"city": "Ulm"}, {"city": "Rome"}]).tolist()
        [[0.0, 1.0], [0.0, 0.0]]
        """
        columns = {}
        for name in (column.name for column in self.columns):
            if lacking := [i for i, row in enumerate(rows) if name not in row]:
                raise ConfigError(f"row {lacking[0]}: no column {name!r}; it has: {short_list(rows[lacking[0]])}")
            columns[name] = ["" if row[name] is None else str(row[name]) for row in rows]
        return self._inputs(self.rows_of("rows", columns, np.arange(len(rows))))

    def read_inputs(self, path: str) -> np.ndarray | None:
        """x [n, columns] from a .csv file (.tsv, .txt, .data) with the columns of the inputs; others may be there."""
        if Path(path).suffix not in (".csv", ".tsv", ".txt", ".data") or not self.columns:
            return None
        return self._inputs(self._read(path, path, exact=True))

    def describe(self) -> dict[str, str]:
        """A line for each column, and for the target."""
        lines = {column.name: column.describe() for column in self.columns}
        names = f"classes: {short_list(self.class_names)}" if self.class_names else "numbers"
        return lines | {", ".join(self.targets): f"target, {names}"}

    def _inputs(self, table: Table) -> np.ndarray:
        parts = []
        for column in self.columns:
            with np.errstate(over="ignore"):
                part = column.encode(table[column.name], self.categories)
            if wrong := np.flatnonzero(~np.isfinite(part).all(1)).tolist():
                raise table[column.name].mistake(wrong[0], "a number that float32 can hold")
            parts.append(part)
        return np.concatenate(parts, 1)

    def arrays(self, table: Table) -> dict[str, np.ndarray]:
        """x, y and weight of every row."""
        arrays = {"x": self._inputs(table), "y": self.targets_of(table)}
        if self.weight:
            cells = table[self.weight]
            weight = cells.numbers()
            if wrong := np.flatnonzero(~(weight >= 0)).tolist():
                raise cells.mistake(wrong[0], "a number from 0")
            arrays["weight"] = weight.astype(np.float32)
        return arrays

    def targets_of(self, table: Table) -> np.ndarray:
        """y of every row."""
        targets = [table[name] for name in self.targets]
        for cells in targets:
            if missing := np.flatnonzero(cells.gone[cells.codes]).tolist():
                raise cells.mistake(missing[0], "a target in each row")
        if self.target_kind == "class":
            labels = targets[0].look_up({name: i for i, name in enumerate(self.class_names)}, -1, -1)
            if wrong := np.flatnonzero(labels < 0).tolist():
                raise targets[0].mistake(wrong[0], f"one of the classes: {short_list(self.class_names)}")
            return labels.astype(np.int32)
        y = np.stack([cells.numbers() for cells in targets], 1) / self.target_unit
        return (y if len(targets) > 1 else y[:, 0]).astype(np.float32)

    def settle_target(self, table: Table) -> "Csv":
        """With `target_kind` and `class_names` as the rows say, where the settings do not."""
        targets = [table[name] for name in self.targets]
        kind = self.target_kind
        if kind == "auto":
            numbers = [number_in(cell) for cell in targets[0].counts()]
            whole = all(n is not None and n.is_integer() for n in numbers) and len(numbers) <= _MOST_CLASSES
            is_class = len(targets) == 1 and (whole or None in numbers or bool(self.class_names))
            kind = "class" if is_class else "number"
        if kind == "number":
            return dataclasses.replace(self, target_kind=kind, class_names=())
        if len(targets) > 1:
            raise ConfigError(f'data.target: found {len(targets)} columns; expected one where target_kind = "class"')
        return dataclasses.replace(self, target_kind=kind, class_names=self.class_names or _sorted(targets[0]))

    def learn(self, table: Table, rows: np.ndarray) -> tuple[_Column, ...]:
        """What the training rows say of each column of the inputs."""
        others = {*self.targets, self.weight, *self.drop}
        columns = [self._learn_column(table[name].take(rows)) for name in table.columns if name not in others]
        if not columns:
            raise ConfigError(f"{table.file}: no columns are left for the inputs")
        return tuple(columns)

    def _learn_column(self, cells: Cells) -> _Column:
        counts = cells.counts()
        present = sum(counts.values())
        missing = len(cells.codes) - present
        if not present:
            raise ConfigError(f"{cells.file}: column {cells.name!r} is missing in every training row; add it to drop")
        if cells.name in self.hashed:
            return Hashed(name=cells.name, missing=missing, buckets=self.hashed[cells.name])
        if cells.name in self.bucketed:
            return self._learn_buckets(cells, missing)
        text = {cell: 1 for cell in counts if number_in(cell) is None}
        numeric = present - sum(counts[cell] for cell in text)
        if cells.name in self.numeric or (cells.name not in self.categorical and not text):
            return self._learn_numbers(cells, missing)
        if cells.name not in self.categorical and 2 * numeric > present:
            first = int(cells.look_up(text, 0, 0).argmax())
            raise cells.mistake(first, "a number as in most rows, or the cell in missing, or the column in categorical")
        frequent = sorted((-n, cell) for cell, n in counts.items() if n >= self.min_count)[: self.max_categories]
        categories = tuple(sorted(cell for _, cell in frequent))
        return Categorical(name=cells.name, missing=missing, categories=categories, other=len(categories) < len(counts))

    def _learn_numbers(self, cells: Cells, missing: int) -> Numeric:
        numbers = cells.numbers()
        median = float(np.nanmedian(numbers))
        filled = np.where(np.isnan(numbers), median, numbers)
        low, high = float(filled.min()), float(filled.max())
        centre, spread = 0.0, 1.0
        with np.errstate(over="ignore", invalid="ignore"):  # looked at below
            if self.normalise == "standard":
                centre, spread = float(filled.mean()), float(filled.std())
            elif self.normalise == "range":
                centre, spread = low, high - low
        spread = spread if high > low else 1.0
        if not math.isfinite(centre) or not math.isfinite(spread):
            raise ConfigError(f"{cells.file}: column {cells.name!r}: numbers too large to be normalised")
        return Numeric(name=cells.name, missing=missing, median=median, centre=centre, spread=spread)

    def _learn_buckets(self, cells: Cells, missing: int) -> Bucketed:
        """Cut at the quantiles k / buckets of the training rows, each the number of a row: no bucket is empty."""
        numbers = cells.numbers()
        numbers = numbers[~np.isnan(numbers)]
        below = numbers[numbers < numbers.max()]
        if not len(below):
            return Bucketed(name=cells.name, missing=missing)
        buckets = self.bucketed[cells.name]
        cuts = np.quantile(numbers, np.arange(1, buckets) / buckets, method="inverted_cdf")
        # A cut at the largest number would have nothing above it; where many rows tie there, they get a bucket.
        boundaries = np.unique(np.minimum(cuts, below.max())).tolist()
        return Bucketed(name=cells.name, missing=missing, boundaries=tuple(boundaries))

    def check_names(self, where: str, columns: Sequence[str]) -> None:
        """Raises a ConfigError where a setting names a column that is not there."""
        named = {"target": self.targets, "weight": [self.weight] * bool(self.weight)}
        named |= {key: getattr(self, key) for key in _NAMING}
        for key, names in named.items():
            for name in names:
                if name not in columns:
                    raise ConfigError(f"data.{key}: no column {name!r} in {where}; it has: {short_list(columns)}")

    def _read(self, key: str, path: str, exact: bool = False) -> Table:
        """The file as text, by column; `exact` looks for no file elsewhere, and asks for no targets."""
        place = Path(path) if exact else find(key, path)
        where = path if exact else f"{key}: {place}"
        rows, lines, names = [], [], self.names
        try:
            with open(place, newline="", encoding="utf-8-sig") as file:
                for line, row in self.each(where, file):
                    if not names:
                        names = self.header_of(where, line, row)
                        if self.header:
                            continue
                    if exact and not self.header and not rows and len(row) == len(names) - len(self.targets):
                        names = tuple(name for name in names if name not in self.targets)
                    if len(row) != len(names):
                        raise ConfigError(f"{where}: line {line}: {len(row)} cells; expected {len(names)}")
                    rows.append(row)
                    lines.append(line)
        except UnicodeDecodeError:
            raise ConfigError(f"{where}: not UTF-8 text") from None
        except OSError as error:
            raise ConfigError(f"{where}: {error.strerror}") from None
        if not rows:
            raise ConfigError(f"{where}: no rows")
        return self.rows_of(where, dict(zip(names, zip(*rows))), np.array(lines))

    def each(self, where: str, lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
        """(line, cells) of each row, blank lines left out; the line from 1, where the row ends."""
        text = ("\n" if self.comment and line.startswith(self.comment) else line for line in lines)
        reader = csv.reader(text, delimiter=self.delimiter, skipinitialspace=self.delimiter != " ", strict=True)
        try:
            for row in reader:
                if len(row) > 1 or "".join(row).strip():
                    yield reader.line_num, row
        except csv.Error as error:
            raise ConfigError(f"{where}: line {reader.line_num}: {error}") from None

    def header_of(self, where: str, line: int, row: Sequence[str]) -> tuple[str, ...]:
        """The columns' names, by the first row."""
        names = tuple(cell.strip() if self.header else str(i) for i, cell in enumerate(row))
        if twice := [name for name, n in collections.Counter(names).items() if n > 1]:
            raise ConfigError(f"{where}: line {line}: column {twice[0]!r} is there twice")
        return names

    def rows_of(self, where: str, columns: Mapping[str, Sequence[str]], lines: np.ndarray) -> Table:
        """Columns of text, each different cell looked at once."""
        table = {}
        for name, column in columns.items():
            raw: dict[str, int] = {}
            codes = np.array([raw.setdefault(cell, len(raw)) for cell in column], np.int64)
            values: dict[str, int] = {}
            clean = (self.replace.get(cell.strip(), cell.strip()) for cell in raw)
            meant = np.array([values.setdefault(cell, len(values)) for cell in clean], np.int64)
            gone = np.array([value in self.missing for value in values], bool)
            table[name] = Cells(name, list(values), gone, meant[codes], lines, where)
        return Table(where, table, lines)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _sorted(cells: Cells) -> tuple[str, ...]:
    """The different cells, in the order of numbers where all are numbers."""
    present = sorted(cells.counts())
    numbers = [number_in(cell) for cell in present]
    return tuple(present) if None in numbers else tuple(sorted(present, key=float))
