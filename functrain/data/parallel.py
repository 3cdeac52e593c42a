"""Parallel text: two files with a sentence a line, the one the translation of the other."""

import gzip
import hashlib
import zlib
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from functrain.config import ConfigError, Count, Size, configclass
from functrain.config import Text as NotEmpty
from functrain.data.bucketing import Ragged
from functrain.data.dataset import Dataset, find, read_text
from functrain.data.tokens import BEGIN, RESERVED, Sentences


@configclass
class ParallelText(Ragged):
    """Pairs of sentences to translate, of files NAME.LANGUAGE or NAME.LANGUAGE.gz; one vocabulary for both languages.

    x [n, S] holds the source's tokens and the end, y [n, T] the begin, the target's tokens and the end, both filled up
    with 0 to the longest of the split. Tokens 0 to 3 are padding, unknown, begin and end (extra `text`).
    """

    kind: Literal["parallel_text"] = "parallel_text"
    path: NotEmpty
    """The folder of the files; looked for in the working directory, then where FUNCTRAIN_DATA points."""
    source: NotEmpty = "en"
    """The language to translate from: the end of its files' names."""
    target: NotEmpty = "de"
    """The language to translate into."""
    train: NotEmpty = "train"
    """The beginning of the training files' names: train.en.gz and train.de.gz."""
    validation: str = "val"
    """That of the files to choose by; empty is none."""
    test: str = "test_2016_flickr"
    """That of the files to be read once; empty is none."""
    tokens: Size = 8000
    """How many tokens byte-pair encoding makes, at least 260: the bytes and the four that are reserved."""
    lower: bool = False
    """Whether all is in lower case."""
    longest: Count = 0
    """Training pairs with more tokens on a side, the end among them, are left out; 0 takes all."""
    tokenizer: str = ""
    """The byte-pair encoding, as JSON of the library tokenizers; trained on the training text of both languages."""
    digest: str = ""
    """SHA-256 of the training text; taken from it. A resumed run refuses another text."""
    ragged: ClassVar[tuple[str, ...]] = ("x", "y")

    def load(self) -> Dataset:
        """The pairs as x and y; those of training with an empty side are left out."""
        least = 256 + len(RESERVED)
        if self.tokens < least:
            raise ConfigError(f"data.tokens: found {self.tokens}; expected at least {least}")
        folder = find("data.path", self.path, folder=True)
        names = {"train": self.train, "validation": self.validation, "test": self.test}
        texts = {split: self._pairs(folder, name) for split, name in names.items() if name}
        joined = "\n".join([*texts["train"][0], *texts["train"][1]])
        digest = hashlib.sha256(joined.encode("utf-8")).hexdigest()
        if self.digest and self.digest != digest:
            raise ConfigError(f"data.path: {folder}: not the text that the run began with (another SHA-256 digest)")
        codec = Sentences(self.tokenizer) if self.tokenizer else Sentences.of(joined, self.tokens)
        splits = {}
        for split, (sources, targets) in texts.items():
            pairs = list(zip(codec.rows(sources), codec.rows(targets)))
            if split == "train":
                most = self.longest or max(len(row) for pair in pairs for row in pair)
                pairs = [(a, b) for a, b in pairs if 1 < len(a) <= most and 1 < len(b) <= most]
                if not pairs:
                    raise ConfigError(f"data.longest: found {self.longest}; no training pair is so short")
            splits[split] = {"x": _filled([a for a, _ in pairs]), "y": _filled([[BEGIN, *b] for _, b in pairs])}
        found = {"tokenizer": codec.definition, "digest": digest}
        return Dataset(**splits, classes=codec.size, found=found)

    def read_inputs(self, path: str) -> np.ndarray | None:
        """The sentences of a .txt file, one a line, as x [n, longest]."""
        if Path(path).suffix != ".txt":
            return None
        lines = _lines(read_text(path, path))
        if not any(lines):
            raise ConfigError(f"{path}: holds no text")
        return self.encode(lines)

    def encode(self, sentences: list[str]) -> np.ndarray:
        """Sentences as x [n, longest], as in the run whose config this is."""
        return _filled(self._codec().rows([s.lower() for s in sentences] if self.lower else sentences))

    def decode(self, tokens) -> str:
        """The text of tokens up to their end."""
        return self._codec().decode(tokens)

    def _codec(self):
        return Sentences(self.tokenizer)

    def _pairs(self, folder, name):
        """The lines of both languages; as many of each."""
        paths = [_path(folder, f"{name}.{language}") for language in (self.source, self.target)]
        texts = [_read(path) for path in paths]
        if len(texts[0]) != len(texts[1]):
            counts = f"{len(texts[0])} lines; {paths[1].name} has {len(texts[1])}"
            raise ConfigError(f"data.path: {paths[0]}: {counts}; expected as many, for line by line they are pairs")
        return [[line.lower() for line in lines] if self.lower else lines for lines in texts]


def _path(folder, name) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise ConfigError(f"data.path: no file {folder / name}.gz or {folder / name}")


def _read(path) -> list[str]:
    try:
        found = path.read_bytes()
        lines = _lines((gzip.decompress(found) if path.suffix == ".gz" else found).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"data.path: {path}: not UTF-8 text (byte {error.start})") from None
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"data.path: {path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not any(lines):
        raise ConfigError(f"data.path: {path}: holds no text")
    return lines


def _lines(text: str) -> list[str]:
    """The lines of a text, without blanks at their ends; only a line feed ends one, as where files are aligned."""
    return [line.strip() for line in text.removesuffix("\n").split("\n")]


def _filled(rows) -> np.ndarray:
    """Rows of tokens as one array, int32, filled up with padding."""
    filled = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for to, row in zip(filled, rows):
        to[: len(row)] = row
    return filled
