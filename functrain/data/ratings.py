"""Ratings: who rated what, and when; in the files of MovieLens (Harper, Konstan 2015) or in any CSV.

    path, test_path   -> x [n, 2] (user, item) and y [n] the rating; or interactions, each y = 1
    items_path        -> what is known of each item (genres, words of its title), a 0 or a 1 each

Users and items are numbered by the training part; the ids in the order of their numbers are kept in the source's
settings (`users`, `items`), so that new pairs are encoded in the same way, without the data.
"""

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from functrain.config import ConfigError, Count, NonNegative, Size, Text, configclass
from functrain.data.base import Split
from functrain.data.cells import short, short_list
from functrain.data.dataset import SPLITS, Dataset, dataset, find
from functrain.data.rating_files import File, Ids, read_items


@dataclasses.dataclass(frozen=True)
class _Ratings:
    """Ratings of all files, as columns.

    user, item: [n] int32, places in `users` and `items`, the ids in order.
    rating: [n] float32. time: [n] float64, all 0 where `timed` is False. part: [n] int8, which of SPLITS its file is.
    """

    user: np.ndarray
    item: np.ndarray
    rating: np.ndarray
    time: np.ndarray
    part: np.ndarray
    users: tuple[str, ...]
    items: tuple[str, ...]
    timed: bool

    def take(self, rows: np.ndarray) -> "_Ratings":
        """Some of the ratings."""
        names = ("user", "item", "rating", "time", "part")
        return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in names})


@configclass
class Ratings(Split):
    """Who rated what: x [n, 2] of user and item by number, y [n] the rating; MovieLens's files or any CSV.

    A pair of user and item that a file gives more than once keeps its last rating by time (without times, and at equal
    times, the last in the file): a rating that was changed is one rating. `repeated` says how many were left out.
    """

    kind: Literal["ratings"] = "ratings"
    batch_size: Size = 1024
    """Examples in a step, over all devices."""
    path: Text
    """The file, UTF-8; looked for in the working directory, then where FUNCTRAIN_DATA points."""
    validation_path: str = ""
    """A file of ratings to choose by, such as an earlier part of the same; empty takes some of the first file's."""
    test_path: str = ""
    """A file of ratings to be read once, such as u1.test beside u1.base; empty takes some of the first file's."""
    layout: Literal["auto", "tab", "colons", "csv"] = "auto"
    """tab: u.data of MovieLens 100k; colons: ratings.dat of 1M, `::` between; both user, item, rating, time without a
    header (the last two may be left out). csv: a header. auto: a header, unless the first line ends with a number. A
    first line with the names `user` and `item` is a header in any case."""
    delimiter: str = ""
    """What separates the cells, one character or "::"; empty finds it in the first line: :: or tab or , or ; or |."""
    names: tuple[str, ...] = ()
    """The names of the columns, of a file without a header."""
    user: Text = "userId"
    """The column of the users, whose ids may be any text."""
    item: Text = "movieId"
    """The column of the items, in `items_path` too; ids may be any text."""
    rating: str = "rating"
    """The column of the ratings; empty is none: each row is an interaction, y = 1."""
    time: str = "timestamp"
    """The column of the times, numbers that grow, such as seconds; empty is none."""
    split_by: Literal["random", "time", "leave_one_out", "cold_items"] = "random"
    """What is kept apart where no file is given for it. random: any ratings. time: the latest share of all ratings is
    the test, the latest of the rest the validation (at equal times what the file has later). leave_one_out: of each
    user the latest is the test, the one before the validation (without times, the last in the file); who would have
    none left has all in training; a share of 0 turns a part off, others do not count. cold_items: all ratings of a
    share of the items, drawn at random."""
    least_user: Count = 0
    """Users with fewer ratings are left out, and items by `least_item`, in turn until none is left to leave out (the
    k-core). The ratings of all files count."""
    least_item: Count = 0
    """Items with fewer ratings are left out."""
    positive: NonNegative = 0.0
    """Where it is not 0, only ratings from it on are kept, as interactions: y = 1."""
    items_path: str = ""
    """A file that describes the items: u.item, movies.dat, or a CSV with a header (movies.csv); UTF-8, or else latin-1.
    The items of any split that it describes have numbers too: those that training lacks come after the others."""
    content: tuple[str, ...] = ("genres",)
    """The columns of `items_path` whose categories describe an item, several in a cell."""
    content_separator: Text = "|"
    """What stands between the categories in a cell; a blank is any number of blanks."""
    title: Text = "title"
    """The column of the titles, for `title_words`."""
    title_words: Count = 0
    """This many words describe an item too: those in most titles of the training items; lower case, no year."""
    users: tuple[str, ...] = ()
    """The ids of the users, in the order of their numbers; taken from the training part."""
    items: tuple[str, ...] = ()
    """The ids of the items, in the order of their numbers; taken from the training part, then `items_path`."""
    content_names: tuple[str, ...] = ()
    """What each number that describes an item stands for; taken from the training items."""
    repeated: Count = 0
    """Ratings left out because the same user rated the same item later; taken from the files."""

    def __post_init__(self):
        super().__post_init__()
        if self.held_out:
            raise ValueError(
                f'held_out: found {list(self.held_out)}; ratings have no classes; see split_by = "cold_items"'
            )
        if self.folds and self.split_by not in ("random", "cold_items"):
            raise ValueError(f'folds: found {self.folds}; expected 0 where split_by = "{self.split_by}"')
        named = [name for name in (self.user, self.item, self.rating, self.time) if name]
        if twice := [name for name, n in collections.Counter(named).items() if n > 1]:
            raise ValueError(f"user, item, rating, time: found {twice[0]!r} twice; expected a column each")
        if self.delimiter != "::" and (len(self.delimiter) > 1 or self.delimiter in ('"', "\n", "\r")):
            raise ValueError(f'delimiter: found {self.delimiter!r}; expected one character, "::" or "" to find it')
        if self.names and (lacking := [name for name in named if name not in self.names]):
            raise ValueError(f"names: found {short_list(self.names)}; the column {lacking[0]!r} is not among them")
        if self.items_path and not self.content and not self.title_words:
            raise ValueError("content: found []; expected columns of items_path, or title_words from 1")

    def load(self) -> Dataset:
        """x [n, 2] int32, user and item by number; y [n] float32; `fields` how many users and items there are.

        The numbers are those of the training part's ids: in numeric order where all ids are whole numbers, else in that
        of text. Other splits have -1 for a user or an item that training lacks. With `items_path`, the items that it
        describes and that some split has, but training has not, are numbered after the training ones (so that what is
        known of them says something of a cold item), and `Dataset.constants` has `content` [items, d] float32, 0 or 1;
        an item that is not described has zeros.

        Raises:
          ConfigError: with the file and the line, or the setting.
        """
        ratings = self._ratings()
        last = _last_of_each_pair(ratings)
        repeated = len(ratings.rating) - len(last.rating)
        ratings = self._filtered(last)
        rows = self._rows(ratings)
        if not len(rows["train"]):
            raise ConfigError(f"data.path: {self.path}: no ratings are left to train on")

        described = self._described() if self.items_path else {}
        users = self.users or _at(ratings.users, ratings.user[rows["train"]])
        trained = _at(ratings.items, ratings.item[rows["train"]])
        cold = {item for item in _at(ratings.items, ratings.item) if item in described}.difference(trained)
        items = self.items or (*trained, *(item for item in ratings.items if item in cold))

        numbers = np.stack(
            [_look_up(ratings.users, users)[ratings.user], _look_up(ratings.items, items)[ratings.item]], 1
        )
        splits = {split: {"x": numbers[at], "y": ratings.rating[at]} for split, at in rows.items() if len(at)}
        made = dataset(f"data.path: {self.path}", splits)
        found: dict[str, Any] = {"users": users, "items": items, "repeated": repeated}
        constants = {}
        if self.items_path:
            found["content_names"] = self.content_names or self._content_names(trained, described)
            constants["content"] = _multi_hot(items, described, found["content_names"])
        return dataclasses.replace(made, fields=(len(users), len(items)), constants=constants, found=found)

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """x [n, 2] int32 of new pairs, each a dict of cells by column; in a run, whose settings have the ids.

        An id that the run does not know is -1.

        Raises:
          ConfigError: a row lacks a column; with the row, from 0.

        >>> source = Ratings(path="ratings.csv", users=("7", "12"), items=("a", "b"))
        >>> source.encode([{"userId": 12, "movieId": "a"}, {"userId": "8", "movieId": "b"}]).tolist()
        [[1, 0], [-1, 1]]
        """
        x = np.zeros((len(rows), 2), np.int32)
        for k, (name, ids) in enumerate(((self.user, self.users), (self.item, self.items))):
            if lacking := [i for i, row in enumerate(rows) if name not in row]:
                raise ConfigError(f"row {lacking[0]}: no column {name!r}; it has: {short_list(rows[lacking[0]])}")
            x[:, k] = _look_up([str(row[name]).strip() for row in rows], ids)
        return x

    def read_inputs(self, path: str) -> np.ndarray | None:
        """x [n, 2] int32 from a file with the columns of the users and the items; others may be there."""
        endings = (".csv", ".tsv", ".txt", ".data", ".dat", ".inter", ".base", ".test")
        if Path(path).suffix not in endings or not self.users:
            return None
        columns, _, _ = File(self, path, Path(path), rated=False).read()
        numbers = [_look_up(texts, ids)[codes] for (codes, texts), ids in zip(columns, (self.users, self.items))]
        return np.stack(numbers, 1)

    def describe(self) -> dict[str, str]:
        """A line for the users, the items, what describes them, and what was left out."""
        lines = {name: getattr(self, name) for name in ("users", "items", "content_names")}
        lines = {name: f"{len(ids)}: {short_list(ids)}" for name, ids in lines.items() if ids}
        return lines | {"repeated": f"{self.repeated} earlier ratings of the same item by the same user left out"}

    # -- from the files to the splits --

    def _ratings(self) -> _Ratings:
        """The ratings of all files, one after the other."""
        read = []
        for part, key in enumerate(("path", "validation_path", "test_path")):
            if path := getattr(self, key):
                place = find(f"data.{key}", path)
                read.append((part, *File(self, f"data.{key}: {place}", place).read()))
        parts, ids, ratings, times = zip(*read)
        user, users = _together([pair[0] for pair in ids])
        item, items = _together([pair[1] for pair in ids])
        timed = all(time is not None for time in times)
        return _Ratings(
            user=user,
            item=item,
            rating=np.concatenate(ratings),
            time=np.concatenate(times) if timed else np.zeros(len(user)),
            part=np.repeat(np.array(parts, np.int8), [len(rating) for rating in ratings]),
            users=users,
            items=items,
            timed=timed,
        )

    def _filtered(self, ratings: _Ratings) -> _Ratings:
        """The ratings that `positive`, `least_user` and `least_item` leave."""
        if self.positive:
            ratings = ratings.take(ratings.rating >= self.positive)
            if not len(ratings.rating):
                raise ConfigError(f"data.positive: found {self.positive}; no rating is as high")
            ratings = dataclasses.replace(ratings, rating=np.ones_like(ratings.rating))
        while self.least_user > 1 or self.least_item > 1:
            enough = np.bincount(ratings.user)[ratings.user] >= self.least_user
            enough &= np.bincount(ratings.item)[ratings.item] >= self.least_item
            if enough.all():
                break
            ratings = ratings.take(enough)
        if not len(ratings.rating):
            found = f"data.least_user, data.least_item: found {self.least_user}, {self.least_item}"
            raise ConfigError(f"{found}; they leave no ratings")
        return ratings

    def _rows(self, ratings: _Ratings) -> dict[str, np.ndarray]:
        """Which ratings each split has: those of its file, or of the first file by `split_by`."""
        own = np.flatnonzero(ratings.part == 0)
        files = {split: getattr(self, f"{split}_path") for split in SPLITS[1:]}
        given = {split: np.flatnonzero(ratings.part == SPLITS.index(split)) for split, path in files.items() if path}
        marks = {split: {"row": rows} for split, rows in given.items()}
        taken = [split for split in ("test", "validation") if split not in given and getattr(self, split)]
        if self.split_by in ("time", "leave_one_out"):
            if self.split_by == "time" and not ratings.timed:
                raise ConfigError('data.split_by: found "time"; the files have no times')
            by = _by_user if self.split_by == "leave_one_out" else self._by_time
            parts = by(ratings, own, taken)
        elif self.split_by == "cold_items":
            items = self.split({"row": np.unique(ratings.item[own])}, marks)
            parts = {split: own[np.isin(ratings.item[own], part.get("row", []))] for split, part in items.items()}
        else:
            parts = {split: part.get("row", own[:0]) for split, part in self.split({"row": own}, marks).items()}
        return parts | given

    def _by_time(self, ratings: _Ratings, own: np.ndarray, taken: Sequence[str]) -> dict[str, np.ndarray]:
        """The latest ratings are the first of `taken`, the latest of the rest the next."""
        rest, parts = own[np.argsort(ratings.time[own], kind="stable")], {}
        for split in taken:
            at = len(rest) - round(len(own) * getattr(self, split))
            rest, parts[split] = rest[: max(at, 0)], rest[max(at, 0) :]
        return {"train": rest} | parts

    # -- what is known of the items --

    def _described(self) -> dict[str, list[str]]:
        """Item -> what describes it, as `content_names` calls it; words of titles all."""
        found = {}
        for where, cells in read_items(self):
            item = cells[self.item]
            if item in found:
                raise ConfigError(f"{where}: item {short(item)} is there twice")
            blank = None if self.content_separator == " " else self.content_separator
            categories = ((name, part.strip()) for name in self.content for part in cells[name].split(blank))
            found[item] = [f"{name}: {part}" for name, part in categories if part not in ("", "(no genres listed)")]
            if self.title_words:
                found[item] += [_WORD + word for word in _title_words(cells[self.title])]
        return found

    def _content_names(self, trained: Iterable[str], described: Mapping[str, list[str]]) -> tuple[str, ...]:
        """The categories of the training items, in order, then the words of most of their titles."""
        there = [item for item in trained if item in described]
        counts = collections.Counter(name for item in there for name in described[item])
        words = sorted((-n, name) for name, n in counts.items() if name.startswith(_WORD))[: self.title_words]
        names = (*sorted(name for name in counts if not name.startswith(_WORD)), *(name for _, name in words))
        if not names:
            what = "has nothing in the columns of data.content" if there else "describes none of the training items"
            raise ConfigError(f"data.items_path: {self.items_path}: {what}, such as {short_list(trained)}")
        return names


# -- which ratings --------------------------------------------------------------------------------


def _last_of_each_pair(ratings: _Ratings) -> _Ratings:
    """The ratings without those that the same file has again, later, of the same user and item."""
    pair = ratings.part.astype(np.int64) * len(ratings.users) + ratings.user
    pair = pair * len(ratings.items) + ratings.item
    ordered = np.sort(pair)
    if (ordered[1:] != ordered[:-1]).all():
        return ratings
    by = np.lexsort((ratings.time, pair))  # stable: at equal times in the order of the file
    last = np.append(pair[by[1:]] != pair[by[:-1]], True)
    return ratings.take(np.sort(by[last]))


def _by_user(ratings: _Ratings, own: np.ndarray, taken: Sequence[str]) -> dict[str, np.ndarray]:
    """Each user's latest rating is the first of `taken`, the one before the next, where one is left then."""
    rows = own[np.lexsort((ratings.time[own], ratings.user[own]))]
    user = ratings.user[rows]
    counts = np.bincount(user)
    from_the_end = np.cumsum(counts)[user] - 1 - np.arange(len(rows))
    from_the_end = np.where(counts[user] > len(taken), from_the_end, len(taken))
    parts = {split: rows[from_the_end == k] for k, split in enumerate(taken)}
    return {"train": rows[from_the_end >= len(taken)]} | parts


def _together(columns: Sequence[Ids]) -> tuple[np.ndarray, tuple[str, ...]]:
    """([n] int32 of all columns one after the other, the ids in order): numeric where all are whole numbers."""
    texts = {text for _, ids in columns for text in ids}
    if all(re.fullmatch(r"[+-]?[0-9]{1,18}", text) for text in texts):
        ordered = sorted(texts, key=lambda text: (int(text), text))
    else:
        ordered = sorted(texts)
    return np.concatenate([_look_up(ids, ordered)[codes] for codes, ids in columns]), tuple(ordered)


# -- what is known of the items ------------------------------------------------------------------

_WORD = "title word: "


def _title_words(title: str) -> list[str]:
    """The different words of a title, in lower case, without the year.

    >>> _title_words("Ocean's Eleven, the Return (2001)")
    ["ocean's", 'eleven', 'the', 'return']
    """
    return list(dict.fromkeys(re.findall(r"[^\W_]+(?:'[^\W_]+)*", re.sub(r"\(\d{4}\)", " ", title.lower()))))


def _multi_hot(items: Sequence[str], described: Mapping[str, list[str]], names: Sequence[str]) -> np.ndarray:
    """[items, names] float32: 1 where the name is among those that describe the item."""
    place = {name: i for i, name in enumerate(names)}
    pairs = [(row, place[name]) for row, item in enumerate(items) for name in described.get(item, ()) if name in place]
    content = np.zeros((len(items), len(names)), np.float32)
    content[tuple(np.array(pairs, np.int64).reshape(-1, 2).T)] = 1.0
    return content


def _at(texts: tuple[str, ...], codes: Any) -> tuple[str, ...]:
    """The different ids among codes, in order."""
    return tuple(texts[i] for i in np.unique(np.asarray(codes, np.int64)).tolist())


def _look_up(texts: Iterable[str], ids: Iterable[str]) -> np.ndarray:
    """[texts] int32: the place of each text among the ids, -1 where it is not there."""
    number = {text: i for i, text in enumerate(ids)}
    return np.array([number.get(text, -1) for text in texts], np.int32)
