"""A CSV file larger than memory: where its rows begin is kept, and rows are read when they are asked for.

One pass finds the rows and the target's classes. What else is learned of the columns is learned from some of the
training rows (`learned_from`, drawn at random), and from all of them where there are fewer, as of a table in memory.
"""

import array
import dataclasses
import io
import os
from typing import Any

import numpy as np

from functrain.config import ConfigError
from functrain.data.cells import number_in
from functrain.data.dataset import SPLITS, Dataset, find
from functrain.data.reading import Examples, streamed
from functrain.data.streaming import some

_MOST_TARGETS = 1 << 16
"""Different cells of a target that are kept, in the pass over the rows."""


@dataclasses.dataclass(frozen=True)
class Index:
    """Where the rows of a file are.

    place, where: the file, and what messages call it.
    names: of its columns.
    starts: [n + 1] the byte after the row before, and after the last.
    size: of the file.
    targets: of each target's column the different cells, and which of them each row has; where more differ than
      _MOST_TARGETS, the first of them and nothing.
    """

    place: str
    where: str
    names: tuple[str, ...]
    starts: np.ndarray
    size: int
    targets: dict[str, tuple[list[str], np.ndarray]]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def table(self, source: Any, rows: np.ndarray, columns: tuple[str, ...] = (), exact: bool = False) -> Any:
        """Some rows as a table of text, as the source has it; some of its columns, or all.

        exact: with the lines of the rows, for messages: found by reading the file up to there.
        """
        starts, ends = self.starts[rows].tolist(), self.starts[rows + 1].tolist()
        with open(self.place, "rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size != self.size:
                raise ConfigError(f"{self.where}: has changed since it was opened")
            parts = [os.pread(file.fileno(), end - start, start) for start, end in zip(starts, ends)]
        text = (part.decode("utf-8-sig" if start == 0 else "utf-8") for part, start in zip(parts, starts))
        text = io.StringIO("\n".join(text), newline="")
        found = [row for _, row in source.each(self.where, text)]
        if len(found) != len(rows) or any(len(row) != len(self.names) for row in found):
            raise ConfigError(f"{self.where}: has changed since it was opened")
        lines = self.lines(ends) if exact else np.zeros(len(rows), np.int64)
        keep = columns or self.names
        cells = {name: column for name, column in zip(self.names, zip(*found)) if name in keep}
        return source.rows_of(self.where, cells, lines)

    def lines(self, ends: list[int]) -> np.ndarray:
        """The lines, from 1, that end at these bytes."""
        lines, at, line, piece = {}, 0, 0, b""
        with open(self.place, "rb") as file:
            for end in sorted(ends):
                while at < end:
                    piece = file.read(min(end - at, 1 << 24))
                    at, line = at + len(piece), line + piece.count(b"\n")
                lines[end] = line + (not piece.endswith(b"\n"))
        return np.array([lines[end] for end in ends])


def index(source: Any, key: str, path: str, targets: tuple[str, ...]) -> Index:
    """One pass over a file.

    Args:
      source: the settings, a `functrain.data.table.Csv`.
      key, path: the file, and its setting.
      targets: the columns whose different cells are kept.

    Raises:
      ConfigError: it cannot be read, or a row has too few or too many cells.
    """
    place = find(key, path)
    where, names, starts = f"{key}: {place}", source.names, array.array("q")
    kept: dict[int, tuple[dict[str, int], array.array]] = {}
    at = begin = 0  # the byte after the lines that were given, and that at which the next row's lines begin

    def lines(file):
        nonlocal at
        for line in file:
            text = line.decode("utf-8-sig" if at == 0 else "utf-8")
            at += len(line)
            yield text

    try:
        with open(place, "rb") as file:
            for line, row in source.each(where, lines(file)):
                start, begin = begin, at  # csv takes no line more than a row has
                if not names:
                    names = source.header_of(where, line, row)
                    if source.header:
                        continue
                if len(row) != len(names):
                    raise ConfigError(f"{where}: line {line}: {len(row)} cells; expected {len(names)}")
                starts.append(start)
                if len(starts) == 1:
                    kept = {names.index(target): ({}, array.array("i")) for target in targets if target in names}
                for column, (cells, codes) in kept.items():
                    if len(cells) < _MOST_TARGETS:
                        codes.append(cells.setdefault(row[column], len(cells)))
    except UnicodeDecodeError:
        raise ConfigError(f"{where}: not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror}") from None
    if not starts:
        raise ConfigError(f"{where}: no rows")
    starts.append(begin)
    found = {names[i]: (list(cells), np.array(codes)) for i, (cells, codes) in kept.items()}
    return Index(str(place), where, names, np.array(starts), at, found)


class CsvRows(Examples):
    """Rows of a file that is indexed: x, y and weight as the table in memory has them."""

    def __init__(self, source: Any, index: Index, rows: np.ndarray):
        """source: a `Csv` that has learned its columns; rows: which ones, [n]."""
        self._source, self._index, self._rows = source, index, rows
        names = {column.name for column in source.columns} | {*source.targets, source.weight}
        self._names = tuple(name for name in index.names if name in names)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, i: int) -> dict[str, np.ndarray]:
        """One row."""
        return {name: array[0] for name, array in self.read_batch(np.array([i])).items()}

    def read_batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Rows that are parsed and encoded together."""
        rows = self._rows[indices]
        try:
            return self._source.arrays(self._index.table(self._source, rows, self._names))
        except ConfigError:  # again, to say the line
            return self._source.arrays(self._index.table(self._source, rows, self._names, exact=True))


def load_stream(source: Any) -> Dataset:
    """As `Csv.load`, with the training part left in its file."""
    index_ = index(source, "data.path", source.path, source.targets)
    source.check_names(index_.where, index_.names)
    given = source.given()
    parts = source.split(
        {"row": np.arange(len(index_))}, {split: {"row": np.arange(len(table))} for split, table in given.items()}
    )
    rows = {split: part["row"] for split, part in parts.items() if part}
    if not len(rows.get("train", ())):
        raise ConfigError(f"{index_.where}: no rows are left to train on")
    if not source.columns:
        shown = rows["train"][some(len(rows["train"]), source.learned_from)]
        table = index_.table(source, shown, exact=True)
        source = dataclasses.replace(source, columns=source.learn(table, np.arange(len(table))))
    source, y = _targets(source, index_)
    memory = {}
    for split in SPLITS[1:]:
        if split in rows:
            table = given[split] if split in given else index_.table(source, rows[split], exact=True)
            memory[split] = source.arrays(table)
    examples = CsvRows(source, index_, rows["train"])
    known = {} if y is None else {"y": y[rows["train"]]}
    return source.described(streamed(f"data.path: {source.path}", examples, memory, len(source.class_names), known))


def _targets(source: Any, index_: Index) -> tuple[Any, np.ndarray | None]:
    """The source with its target settled, and y of every row; None where more targets differ than are kept."""
    for name, (cells, _) in index_.targets.items():
        text = any(number_in(cell.strip()) is None and cell.strip() not in source.missing for cell in cells)
        if len(cells) == _MOST_TARGETS and (text or source.target_kind == "class") and not source.class_names:
            raise ConfigError(
                f"{index_.where}: column {name!r}: {_MOST_TARGETS} different targets or more; expected fewer classes, "
                'or numbers and data.target_kind = "number"'
            )
    different = {name: cells for name, (cells, _) in index_.targets.items()}
    source = source.settle_target(source.rows_of(index_.where, different, np.zeros(0, np.int64)))
    if any(len(codes) < len(index_) for _, codes in index_.targets.values()):
        return source, None

    def y(lines):
        table = source.rows_of(index_.where, different, lines)
        codes = {name: codes for name, (_, codes) in index_.targets.items()}
        columns = {name: dataclasses.replace(c, codes=c.codes[codes[name]]) for name, c in table.columns.items()}
        return source.targets_of(dataclasses.replace(table, columns=columns))

    try:
        return source, y(np.zeros(len(index_), np.int64))
    except ConfigError:  # again, to say the line
        return source, y(index_.lines(index_.starts[1:].tolist()))
