"""Text as one long sequence of tokens: a file, or the Python interpreter's own library."""

import hashlib
import sysconfig
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np

from functrain.config import ConfigError, Count, Fraction, Size, configclass
from functrain.config import Text as NotEmpty
from functrain.data.base import Source
from functrain.data.dataset import Dataset, find, read_text
from functrain.data.tokens import BPE, Bytes, Characters


@configclass
class Encoded(Source):
    """What sources of text share: what a token is, and what that was found to be."""

    block: Size = 64
    """Tokens in an example."""
    level: Literal["character", "byte", "bpe"] = "character"
    """What a token is: a character, a byte, or a piece found by byte-pair encoding (extra `text`)."""
    tokens: Size = 512
    """How many tokens byte-pair encoding makes; at least 256, for it begins with the bytes."""
    vocabulary: str = ""
    """The characters that are tokens; taken from the training text."""
    tokenizer: str = ""
    """The byte-pair encoding, as JSON of the library tokenizers, or the path of such a file (tokenizer.json); empty: it
    is trained on the training text."""
    digest: str = ""
    """SHA-256 of the text; taken from it. A resumed run refuses another text."""

    def learned(self, name: str, data: bytes, train: str, others: str = "") -> dict[str, str]:
        """What goes into `Dataset.found`: the digest, and the vocabulary or the tokenizer of the training text.

        Args:
          name: what messages call the data.
          data: what the digest is of.
          train, others: the training text, and what else will be encoded.

        Raises:
          ConfigError: it is not the text that the run began with, or too few tokens are asked for.
        """
        digest = hashlib.sha256(data).hexdigest()
        if self.digest and self.digest != digest:
            raise ConfigError(f"{name}: not the text that the run began with (another SHA-256 digest)")
        if self.level == "bpe" and self.tokens < 256:
            raise ConfigError(f"data.tokens: found {self.tokens}; expected at least 256")
        found = {"digest": digest}
        if self.level == "character" and not self.vocabulary:
            found["vocabulary"] = Characters.of(train, others).vocabulary
        if self.level == "bpe" and not self.tokenizer:
            found["tokenizer"] = BPE.of(train, self.tokens).definition
        elif self.level == "bpe" and self.tokenizer.endswith(".json"):
            path = find("data.tokenizer", self.tokenizer)
            found["tokenizer"] = read_text(f"data.tokenizer: {path}", path)
        return found

    def codec(self, vocabulary: str = "", tokenizer: str = "", **_) -> Characters | Bytes | BPE:
        """Text to tokens and back, by the settings, or by what was just found."""
        if self.level == "character":
            return Characters(self.vocabulary or vocabulary)
        return Bytes() if self.level == "byte" else BPE(tokenizer or self.tokenizer)

    def scaled(self, batch: dict) -> dict:
        """Tokens as int32, whatever file they came from."""
        return batch | {name: batch[name].astype(jnp.int32) for name in ("x", "y") if name in batch}

    def prompted(self, text: str) -> str:
        """A text as the beginning of an example, which a model goes on from; here as it is."""
        return text

    def read_inputs(self, path: str) -> np.ndarray | None:
        """The last `block` tokens of a .txt file, [1, block or fewer]: what a language model goes on from."""
        if Path(path).suffix != ".txt":
            return None
        text = read_text(path, path)
        if not text:
            raise ConfigError(f"{path}: holds no text")
        return self.encode(self.prompted(text))[None, -self.block :]

    def encode(self, text: str) -> np.ndarray:
        """Tokens of a text, as in the run whose config this is."""
        return self.codec().encode(text)

    def decode(self, tokens) -> str:
        """The text of tokens."""
        return self.codec().decode(tokens)


@configclass
class Corpus(Encoded):
    """One long text, and which part of it is for what."""

    validation: Fraction = 0.1
    """Share of the text, before the test's, kept apart to choose by."""
    test: Fraction = 0.0
    """Share of the text, at its end, kept apart to be read once."""

    @abstractmethod
    def read(self) -> tuple[str, str]:
        """(the text, what messages call it)."""

    def load(self) -> Dataset:
        """`tokens` [n] of each split: the text cut in three, in its order."""
        text, name = self.read()
        a, b = (round(len(text) * (1 - share)) for share in (self.validation + self.test, self.test))
        parts = {"train": text[:a], "validation": text[a:b], "test": text[b:]}
        found = self.learned(name, text.encode("utf-8", "surrogatepass"), parts["train"], text[a:])
        codec = self.codec(**found)
        splits = {}
        for split, part in parts.items():
            tokens = codec.encode(part) if part else np.zeros(0, np.uint8)
            if (part or split == "train") and len(tokens) <= self.block:
                raise ConfigError(f"{name}: {split}: {len(tokens)} tokens; expected above data.block = {self.block}")
            splits[split] = {"tokens": tokens} if part else {}
        return Dataset(**splits, classes=codec.size, block=self.block, found=found)


@configclass
class TextFile(Corpus):
    """A text file, for language models: its last part for validation, all in its order."""

    kind: Literal["text"] = "text"
    path: NotEmpty
    """The file, UTF-8; looked for in the working directory, then where FUNCTRAIN_DATA points."""

    def read(self):
        """The file's text."""
        path = find("data.path", self.path)
        return read_text(f"data.path: {path}", path), f"data.path: {path}"


@configclass
class PythonSource(Corpus):
    """The interpreter's own standard library: real text on every machine, nothing to download."""

    kind: Literal["python_source"] = "python_source"
    level: Literal["character", "byte", "bpe"] = "byte"
    """What a token is: a character, a byte, or a piece found by byte-pair encoding (extra `text`)."""
    megabytes: Count = 4
    """How much of it, in the order of the files' digests; 0 is all."""

    def read(self):
        """The files one after another, each with its name in a comment, in an order that mixes the packages."""
        texts = [f"# {name}\n{text}\n" for name, text in library_files(self.megabytes)]
        return "".join(texts), f"data.kind: python_source: {library_folder()}"


def library_folder() -> Path:
    """Where the interpreter's own library lies."""
    return Path(sysconfig.get_paths()["stdlib"])


def library_files(megabytes: int = 0) -> Iterator[tuple[str, str]]:
    """(name, text) of the interpreter's own library, in an order that mixes the packages.

    megabytes: how much of it; 0 is all.

    Raises:
      ConfigError: there are no source files.
    """
    folder = library_folder()
    skipped = ("site-packages", "test", "tests", "idle_test", "lib2to3", "__pycache__")
    names = (p.relative_to(folder) for p in folder.rglob("*.py"))
    names = [n for n in names if not set(n.parts[:-1]) & set(skipped)]
    size, limit = 0, megabytes * 10**6
    for name in sorted(names, key=lambda n: hashlib.sha256(n.as_posix().encode()).hexdigest()):
        try:
            text = (folder / name).read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        size += len(f"# {name.as_posix()}\n{text}\n".encode())  # as PythonSource writes it
        if limit and size > limit:
            break
        yield name.as_posix(), text
    if not size:
        raise ConfigError(f"data.kind: no source files in {folder}")
