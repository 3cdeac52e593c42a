"""Labelled sentences: film reviews of Pang and Lee, or your own files; each sentence a row of tokens, then 0.

What the training part tells (the words, the longest sentence, the classes) is kept in the source's settings, so that
new sentences are encoded in the same way, without the data.
"""

import collections
import csv
import dataclasses
import io
import itertools
import json
import re
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from functrain.config import ConfigError, Count, Size, Text, configclass
from functrain.data.base import Split
from functrain.data.bucketing import Ragged
from functrain.data.dataset import SPLITS, Dataset, dataset, find, read_text
from functrain.data.tokens import BPE, UNKNOWN

_NO_WORD = re.compile(r"[^\w(),!?'`]|_")
_ENDINGS = re.compile(r"('s|'ve|n't|'re|'d|'ll)")
_MARKS = re.compile(r"([,!()?])")
_WORDS = 2
"""The number of the first word, after padding and the unknown one."""


def words(text: str) -> list[str]:
    """The words of a sentence, by the rule of the code of Kim 2014, but for letters of any alphabet.

    In lower case; letters, digits and ( ) , ! ? ' ` stay, all else is a space; the endings 's 've n't 're 'd 'll are
    words of their own, and so is each of ( ) , ! ?.

    >>> words("It's a first-rate film, isn't it?")
    ['it', "'s", 'a', 'first', 'rate', 'film', ',', 'is', "n't", 'it', '?']
    """
    text = _NO_WORD.sub(" ", text.lower())
    return _MARKS.sub(r" \1 ", _ENDINGS.sub(r" \1", text)).split()


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Sentences with their labels.

    texts, labels, where: one of each a sentence; the last is what messages call it.
    """

    texts: Sequence[str]
    labels: Sequence[str]
    where: Sequence[str]


@configclass
class Sentences(Split, Ragged):
    """What sources of labelled sentences share: the tokens and how many, and the split at random."""

    level: Literal["word", "bpe"] = "word"
    """What a token is: a word (see `words`), or a piece found by byte-pair encoding (extra `text`)."""
    most: Count = 0
    """Words at most, the most frequent of the training part; the others are unknown. 0 is all."""
    least: Size = 1
    """How often a word must occur in the training part; rarer ones are unknown."""
    tokens: Size = 2048
    """How many tokens byte-pair encoding makes, padding not counted; at least 256, for it begins with the bytes."""
    longest: Count = 0
    """Tokens of a sentence at most, longer ones are cut; 0 is the longest of the training part."""
    vocabulary: str = ""
    """The words from number 2 on, with a space between; 0 is padding, 1 unknown. Taken from the training part."""
    tokenizer: str = ""
    """The byte-pair encoding, as JSON of the library tokenizers; trained on the training part. Numbers from 1 on."""

    @abstractmethod
    def read(self) -> tuple[str, dict[str, Labelled], tuple[str, ...]]:
        """(what messages call the data, the sentences of each split that has a file, the classes in order)."""

    def load(self) -> Dataset:
        """x [n, longest] int32, 0 past a sentence's end; y [n] in 0..classes - 1."""
        if self.level == "bpe" and self.tokens < 256:
            raise ConfigError(f"data.tokens: found {self.tokens}; expected at least 256")
        name, parts, classes = self.read()
        given = {split: {"row": np.arange(len(part.texts))} for split, part in parts.items()}
        splits = self.split(given.pop("train"), given)
        rows: dict[str, list[int]] = {s: part["row"].tolist() for s, part in splits.items() if part}
        if not rows.get("train"):
            raise ConfigError(f"{name}: no sentences are left to train on")

        parts = {s: parts.get(s, parts["train"]) for s in rows}
        texts = {s: [parts[s].texts[i] for i in which] for s, which in rows.items()}
        settled = dataclasses.replace(self, **self._learned(texts["train"]))
        encoded = {s: settled._numbers(part) for s, part in texts.items()}
        longest = self.longest or max(map(len, encoded["train"]))
        if not longest:
            raise ConfigError(f"{name}: no training sentence holds a word")
        settled = dataclasses.replace(settled, longest=longest)

        number = {label: i for i, label in enumerate(classes)}
        arrays = {}
        for s, which in rows.items():
            part = parts[s]
            if wrong := [i for i in which if part.labels[i] not in number]:
                found = f"{part.where[wrong[0]]}: found {_short(part.labels[wrong[0]])}"
                raise ConfigError(f"{found}; expected one of the classes: {', '.join(classes)[:160]}")
            y = np.array([number[part.labels[i]] for i in which], np.int32)
            arrays[s] = {"x": _filled(encoded[s], longest), "y": y}
        found = {key: getattr(settled, key) for key in ("vocabulary", "tokenizer", "longest")} | self._also(classes)
        made = dataset(name, arrays, len(classes))
        return dataclasses.replace(made, found=found, vocabulary=settled._size)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """x [n, longest] int32 of new sentences, in a run, whose settings have what the training part told.

        >>> source = Polarity(vocabulary="a film", longest=4)
        >>> source.encode(["A dull film", "film a film a film"]).tolist()
        [[2, 1, 3, 0], [3, 2, 3, 2]]
        """
        rows = self._numbers(texts)
        return _filled(rows, self.longest or max([1, *map(len, rows)]))

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of a row, without its padding; words with a space between, U+FFFD where one is unknown.

        >>> Polarity(vocabulary="a film").decode([2, 1, 3, 0])
        'a \ufffd film'
        """
        numbers = [int(i) for i in tokens if i]
        if self.level == "bpe":
            return BPE(self.tokenizer).decode([i - 1 for i in numbers])
        known = ["", UNKNOWN, *self.vocabulary.split()]
        return " ".join(known[i] for i in numbers)

    def read_inputs(self, path: str) -> np.ndarray | None:
        """x [n, longest] from a .txt file with a sentence a line."""
        if Path(path).suffix != ".txt":
            return None
        lines = _unix(read_text(path, path)).removesuffix("\n").split("\n")
        if not any(line.strip() for line in lines):
            raise ConfigError(f"{path}: holds no text")
        return self.encode(lines)

    def _also(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """Other settings that the data told."""
        return {}

    def _learned(self, texts: list[str]) -> dict[str, Any]:
        """The vocabulary or the tokenizer, of the training sentences where the settings have none."""
        if self.level == "bpe":
            return {} if self.tokenizer else {"tokenizer": BPE.of("\n".join(texts), self.tokens).definition}
        if self.vocabulary:
            return {}
        counts = collections.Counter(itertools.chain.from_iterable(map(words, texts)))
        often = sorted((-n, word) for word, n in counts.items() if n >= self.least)
        return {"vocabulary": " ".join(word for _, word in often[: self.most or None])}

    @property
    def _size(self) -> int:
        """How many tokens, padding among them."""
        return 1 + BPE(self.tokenizer).size if self.level == "bpe" else _WORDS + len(self.vocabulary.split())

    def _numbers(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each sentence."""
        if self.level == "bpe":
            encode = BPE(self.tokenizer).encode
            return [[int(i) + 1 for i in encode(text)] if text else [] for text in texts]
        number = {word: i for i, word in enumerate(self.vocabulary.split(), _WORDS)}
        return [[number.get(word, 1) for word in words(text)] for text in texts]


_FILES = {
    "polarity": ("sentence_polarity", {"negative": "rt-polarity.neg", "positive": "rt-polarity.pos"}),
    "subjectivity": ("subjectivity", {"objective": "plot.tok.gt9.5000", "subjective": "quote.tok.gt9.5000"}),
}
"""Archive, and the file of each class in it."""


@configclass
class Polarity(Sentences):
    """Sentences of film reviews, positive or negative (Pang, Lee 2005), or subjective or not (2004); from nltk_data."""

    kind: Literal["sentence_polarity"] = "sentence_polarity"
    which: Literal["polarity", "subjectivity"] = "polarity"
    """polarity: 5,331 negative and 5,331 positive ones; subjectivity: 5,000 objective and 5,000 subjective ones."""
    folder: Text = "nltk-sentiment"
    """Where the two .zip files are; looked for in the working directory, then where FUNCTRAIN_DATA points."""

    def read(self):
        """The archive's two files: a sentence a line."""
        archive, files = _FILES[self.which]
        path = find("data.folder", f"{self.folder}/{archive}.zip")
        texts, labels, where = [], [], []
        for label, file in files.items():
            lines = _member(path, f"{archive}/{file}").removesuffix("\n").split("\n")
            texts += lines
            labels += [label] * len(lines)
            where += [f"{path}: {file}: line {i}" for i in range(1, len(lines) + 1)]
        return f"data.folder: {path}", {"train": Labelled(texts, labels, where)}, tuple(files)


@configclass
class LabelledText(Sentences):
    """Your own sentences with a label each, in .csv, .tsv or .jsonl files."""

    kind: Literal["labelled_text"] = "labelled_text"
    path: Text
    """The file, UTF-8; looked for in the working directory, then where FUNCTRAIN_DATA points. A .tsv has no quotes."""
    validation_path: str = ""
    """A file of sentences to choose by; empty takes some of the first file's."""
    test_path: str = ""
    """A file of sentences to be read once; empty takes some of the first file's."""
    text: Text = "text"
    """The column, or the key, of the text."""
    label: Text = "label"
    """The column, or the key, of the label."""
    class_names: tuple[str, ...] = ()
    """The labels, in the order of their numbers; taken from the first file."""

    def __post_init__(self):
        super().__post_init__()
        if self.text == self.label:
            raise ValueError(f"label: found {self.label!r}; it is the text")

    def read(self):
        """The files' sentences."""
        parts = {}
        for split, key in zip(SPLITS, ("path", "validation_path", "test_path")):
            if path := getattr(self, key):
                parts[split] = self._read(f"data.{key}", find(f"data.{key}", path))
        return f"data.path: {self.path}", parts, self.class_names or _in_order({*parts["train"].labels})

    def _also(self, classes):
        return {"class_names": classes}

    def _read(self, key: str, path: Path) -> Labelled:
        name = f"{key}: {path}"
        text = _unix(read_text(name, path))
        if path.suffix == ".jsonl":
            rows = list(_json_lines(name, text, (self.text, self.label)))
        elif path.suffix in (".csv", ".tsv"):
            rows = list(_table(name, text, path.suffix == ".tsv", (self.text, self.label)))
        else:
            raise ConfigError(f"{name}: expected a file .csv, .tsv or .jsonl")
        if not rows:
            raise ConfigError(f"{name}: no sentences")
        where, texts, labels = zip(*rows)
        return Labelled(texts, labels, where)


def _table(name: str, text: str, plain: bool, columns: tuple[str, str]) -> Iterator[tuple[str, str, str]]:
    """(where, text, label) of each row; the first line has the columns' names."""
    settings: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if plain else {"strict": True}
    reader = csv.reader(io.StringIO(text, newline="\n"), **settings)
    header: list[str] = []
    at: list[int] = []
    try:
        for row in reader:
            where = f"{name}: line {reader.line_num}"
            if not "".join(row).strip():
                continue
            if not header:
                header = [cell.strip() for cell in row]
                if missing := [column for column in columns if column not in header]:
                    raise ConfigError(f"{where}: no column {missing[0]!r}; it has: {', '.join(header)[:160]}")
                at = [header.index(column) for column in columns]
                continue
            if len(row) != len(header):
                raise ConfigError(f"{where}: {len(row)} cells; expected {len(header)}")
            sentence, label = (row[i].strip() for i in at)
            if not label:
                raise ConfigError(f"{where}: column {columns[1]!r}: missing; expected a label in each row")
            yield where, sentence, label
    except csv.Error as error:
        raise ConfigError(f"{name}: line {reader.line_num}: {error}") from None


def _json_lines(name: str, text: str, keys: tuple[str, str]) -> Iterator[tuple[str, str, str]]:
    """(where, text, label) of each line, an object; labels are text, whole numbers or booleans."""
    for i, line in enumerate(text.split("\n"), 1):
        where = f"{name}: line {i}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise ConfigError(f"{where}: not JSON") from None
        if not isinstance(row, dict) or any(key not in row for key in keys):
            raise ConfigError(f"{where}: found {_short(line)}; expected an object with {keys[0]!r} and {keys[1]!r}")
        sentence, label = (row[key] for key in keys)
        if not isinstance(sentence, str):
            raise ConfigError(f"{where}: {keys[0]!r}: found {_short(json.dumps(sentence))}; expected text")
        if not isinstance(label, (str, int)) or label == "":
            raise ConfigError(
                f"{where}: {keys[1]!r}: found {_short(json.dumps(label))}; expected text or a whole number"
            )
        yield where, sentence, str(label)


def _in_order(labels: set[str]) -> tuple[str, ...]:
    """The different labels, in the order of numbers where all are whole numbers."""
    numbers = all(re.fullmatch(r"[+-]?[0-9]{1,18}", label) for label in labels)
    return tuple(sorted(labels, key=int) if numbers else sorted(labels))


def _filled(rows: Sequence[Sequence[int]], longest: int) -> np.ndarray:
    """[n, longest] int32: rows cut, or filled up with 0."""
    x = np.zeros((len(rows), longest), np.int32)
    for to, row in zip(x, rows):
        to[: len(row)] = row[:longest]
    return x


def _unix(text: str) -> str:
    """The text with line feeds alone at the ends of its lines."""
    return text.replace("\r\n", "\n")


def _member(path: Path, name: str) -> str:
    """The text of a file in an archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _unix(archive.read(name).decode("utf-8"))
    except KeyError:
        raise ConfigError(f"data.folder: {path}: holds no file {name}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"data.folder: {path}: {name}: not UTF-8 text (byte {error.start})") from None
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise ConfigError(f"data.folder: {path}: cannot be read: {error}") from None


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
