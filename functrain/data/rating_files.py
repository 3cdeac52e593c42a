"""Files of ratings and of items, as MovieLens has them or as any CSV: which cells they hold.

    File(source, where, place).read()  -> ids, ratings and times, in the order of the file
    read_items(source)                 -> the cells of each item of `items_path`, by column

`source` is the config (functrain.data.ratings.Ratings), which says what the columns are called.
"""

import array
import collections
import csv
import dataclasses
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from functrain.config import ConfigError
from functrain.data.cells import number_in, short, short_list
from functrain.data.dataset import find

_GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
"""What the last 19 cells of a line of MovieLens 100k's u.item stand for; its file u.genre names them in this order."""


# -- reading ratings ------------------------------------------------------------------------------

Ids = tuple[np.ndarray, Sequence[str]]
"""[n] codes, and the id that each code stands for."""
_WHOLE = rb"(?:0|[1-9][0-9]{0,14}+)"  # an id that is its number's own text, and exact in 64 bits
_DECIMAL = rb"-?[0-9]{1,15}+(?:\.[0-9]{0,15}+)?+"
_BLOCK = 1 << 26  # bytes parsed at a time


@dataclasses.dataclass(frozen=True)
class File:
    """A file of ratings. `rated`: whether the ratings and times are wanted, or the ids alone."""

    source: Any
    where: str
    place: Path
    rated: bool = True

    def read(self) -> tuple[tuple[Ids, Ids], np.ndarray, np.ndarray | None]:
        """((users, items), ratings [n] float32, times [n] float64 or None), in the order of the file."""
        try:
            with open(self.place, "rb") as file:
                delimiter, names, header = self._form(file)
                columns = self._quickly(file, delimiter, names)
            if columns is None:
                with open(self.place, newline="", encoding="utf-8-sig") as file:
                    columns = self._carefully(file, delimiter, names, header)
        except UnicodeDecodeError:
            raise ConfigError(f"{self.where}: not UTF-8 text") from None
        except OSError as error:
            raise ConfigError(f"{self.where}: {error.strerror}") from None
        return columns

    def _form(self, file: BinaryIO) -> tuple[str, tuple[str, ...], bool]:
        """(delimiter, names of the columns, whether the first line is a header); `file` is left at the first rating."""
        source, start, line, first = self.source, 0, 0, ""
        for raw in iter(file.readline, b""):
            line, first = line + 1, raw.decode("utf-8-sig" if line == 0 else "utf-8")
            if first.strip():
                break
            start = file.tell()
        if not first.strip():
            raise ConfigError(f"{self.where}: no ratings")
        at = f"{self.where}: line {line}"
        delimiter = source.delimiter or {"tab": "\t", "colons": "::"}.get(source.layout) or _delimiter(first)
        if not delimiter:
            raise ConfigError(f'{at}: found {short(first.strip())}; expected cells with a tab or , ; | or "::" between')
        cells = next(_cells(self.where, [first], delimiter))[1]
        named = {source.user, source.item} <= {*cells}
        unnamed = source.layout in ("tab", "colons") or (source.layout == "auto" and number_in(cells[-1]) is not None)
        if named or not (source.names or unnamed):
            wanted = (source.user, source.item, *((source.rating, source.time) if self.rated else ()))
            _check_columns(at, cells, [name for name in wanted if name], source)
            return delimiter, tuple(cells), True
        file.seek(start)
        names = source.names or (source.user, source.item, source.rating, source.time)
        if not self.rated and len(cells) == 2:
            names = tuple(name for name in names if name in (source.user, source.item))
        if not source.names and 2 <= len(cells) <= 4:
            names = names[: len(cells)]
        elif len(cells) != len(names):
            expected = len(names) if source.names else "2 to 4 where there is no header, or data.names"
            raise ConfigError(f"{at}: {len(cells)} cells; expected {expected}")
        return delimiter, names, False

    def _quickly(self, file: BinaryIO, delimiter: str, names: tuple[str, ...]) -> Any:
        """What `read` gives, of a file of plain numbers alone, by numpy's parser; None where it is no such file."""
        source, mark = self.source, delimiter.encode()
        whole = [name in (source.user, source.item) for name in names]
        row = re.escape(mark).join(_WHOLE if is_id else _DECIMAL for is_id in whole)
        plain = re.compile(rb"(?:" + row + rb"\r?+\n)*+")
        kinds = [(f"{i}", np.int64 if is_id else np.float64) for i, is_id in enumerate(whole)]
        wanted = {source.user: np.int64, source.item: np.int64}
        wanted |= {source.rating: np.float32, source.time: np.float64} if self.rated else {}
        at = {name: str(names.index(name)) for name in wanted if name and name in names}
        parts = {name: [] for name in at}
        while block := file.read(_BLOCK) + file.readline():
            block += b"" if block.endswith(b"\n") else b"\n"
            if not plain.fullmatch(block):
                return None
            text = io.BytesIO(block.replace(mark, b"\t"))  # numpy takes one character
            table = np.loadtxt(text, kinds, delimiter="\t", comments=None, ndmin=1)
            for name, part in parts.items():
                part.append(table[at[name]].astype(wanted[name]))
        if not parts[source.user]:
            return None
        columns = {name: np.concatenate(part) for name, part in parts.items()}
        user, item = (_coded(columns.pop(name)) for name in (source.user, source.item))
        rating = columns.get(source.rating, np.ones(len(user[0]), np.float32))
        return (user, item), rating, columns.get(source.time)

    def _carefully(self, file: Iterable[str], delimiter: str, names: tuple[str, ...], header: bool) -> Any:
        """What `read` gives, row by row, each different id kept once."""
        source = self.source
        ids: tuple[dict[str, int], dict[str, int]] = {}, {}
        codes = array.array("i"), array.array("i")
        rating, time = array.array("f"), array.array("d")
        at = [names.index(name) for name in (source.user, source.item)]
        rated, timed = (
            names.index(name) if self.rated and name and name in names else None
            for name in (source.rating, source.time)
        )
        rows = _cells(self.where, file, delimiter)
        if header:
            next(rows)
        for line, row in rows:
            if len(row) != len(names):
                raise ConfigError(f"{self.where}: line {line}: {len(row)} cells; expected {len(names)}")
            for k, column, code in zip(at, ids, codes):
                if not row[k]:
                    raise ConfigError(f"{self.where}: line {line}: column {names[k]!r}: missing; expected an id")
                code.append(column.setdefault(row[k], len(column)))
            for k, numbers in ((rated, rating), (timed, time)):
                if k is None:
                    continue
                number = number_in(row[k])
                if number is None or (k == rated and abs(number) > _LARGEST_RATING):
                    what = "a finite number" if k == rated else "a number, such as seconds"
                    found = f"found {short(row[k])}" if row[k] else "missing"
                    raise ConfigError(f"{self.where}: line {line}: column {names[k]!r}: {found}; expected {what}")
                numbers.append(number)
        if not codes[0]:
            raise ConfigError(f"{self.where}: no ratings")
        users, items = ((np.array(code), list(column)) for code, column in zip(codes, ids))
        ratings = np.ones(len(codes[0]), np.float32) if rated is None else np.array(rating)
        return (users, items), ratings, None if timed is None else np.array(time)


_LARGEST_RATING = float(np.finfo(np.float32).max)


def _cells(where: str, lines: Iterable[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(line, cells without the blanks around them) of each row; empty lines are passed over.

    What has tabs, | or :: between its cells has no quotes.
    """
    if delimiter == "::":
        for line, text in enumerate(lines, 1):
            if text.strip():
                yield line, [cell.strip() for cell in text.split("::")]
        return
    plain: dict[str, Any] = {"quoting": csv.QUOTE_NONE} if delimiter in "\t|" else {"strict": True}
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=delimiter not in " \t", **plain)
    try:
        for row in reader:
            if len(row) > 1 or "".join(row).strip():
                yield reader.line_num, [cell.strip() for cell in row]
    except csv.Error as error:
        raise ConfigError(f"{where}: line {reader.line_num}: {error}") from None


def _delimiter(line: str) -> str:
    """What stands between the cells of a line; empty where it is none of those looked for."""
    return next((mark for mark in ("::", "\t", ",", ";", "|") if mark in line), "")


def _check_columns(where: str, cells: Sequence[str], wanted: Sequence[str], source: Any) -> None:
    """That each column is there once."""
    if twice := [name for name, n in collections.Counter(cells).items() if n > 1]:
        raise ConfigError(f"{where}: column {twice[0]!r} is there twice")
    for name in wanted:
        if name not in cells:
            keys = [key for key in ("user", "item", "rating", "time", "title") if getattr(source, key) == name]
            key = f"data.{keys[0] if keys else 'content'}"
            none = ', or "" for none' if key in ("data.rating", "data.time") else ""
            raise ConfigError(f"{where}: no column {name!r}; it has: {short_list(cells)}; expected one as {key}{none}")


def _coded(ids: np.ndarray) -> Ids:
    """Whole numbers as ids."""
    different, codes = np.unique(ids, return_inverse=True)
    return codes.astype(np.int32), [str(number) for number in different.tolist()]


# -- reading what is known of the items -----------------------------------------------------------


def read_items(source: Any) -> Iterator[tuple[str, dict[str, str]]]:
    """(where, cells by column) of each item of `items_path`."""
    place = find("data.items_path", source.items_path)
    where = f"data.items_path: {place}"
    try:
        raw = place.read_bytes()
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror}") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")  # as MovieLens up to 1M is
    first = next((line for line in io.StringIO(text) if line.strip()), "")
    flags = first.count("|") == 4 + len(_GENRES) and "\t" not in first
    delimiter = "|" if flags else _delimiter(first)
    if not delimiter:
        raise ConfigError(f"{where}: found {short(first.strip())}; expected a table of items")
    rows, header = _cells(where, io.StringIO(text, newline=""), delimiter), where
    if flags:
        names = (source.item, source.title, "released", "released on video", "address", *_GENRES)
    elif delimiter == "::":
        names = (source.item, source.title, "genres")
    else:
        line, cells = next(rows)
        names, header = tuple(cells), f"{where}: line {line}"
    wanted = (source.item, *source.content, *((source.title,) if source.title_words else ()))
    _check_columns(header, (*names[:2], "genres") if flags else names, wanted, source)
    for line, row in rows:
        at = f"{where}: line {line}"
        if len(row) != len(names):
            raise ConfigError(f"{at}: {len(row)} cells; expected {len(names)}")
        cells = dict(zip(names, row))
        if flags:
            if wrong := [cell for cell in row[5:] if cell not in ("0", "1")]:
                raise ConfigError(f"{at}: found {short(wrong[0])}; expected 0 or 1 for each genre")
            cells["genres"] = source.content_separator.join(name for name in _GENRES if cells[name] == "1")
        yield at, cells
