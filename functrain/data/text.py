"""Text as one long sequence of tokens: a file, or the Python interpreter's own library."""

import hashlib
import sysconfig
from abc import abstractmethod
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np

from functrain.config import ConfigError, Count, Fraction, Size, configclass
from functrain.config import Text as NotEmpty
from functrain.data.base import Source
from functrain.data.dataset import Dataset, find
from functrain.data.tokens import BPE, Bytes, Characters


@configclass
class Corpus(Source):
    """What sources of text share: the tokens, and which part of the text is for what."""

    block: Size = 64
    """Tokens in an example."""
    level: Literal["character", "byte", "bpe"] = "character"
    """What a token is: a character, a byte, or a piece found by byte-pair encoding (extra `text`)."""
    tokens: Size = 512
    """How many tokens byte-pair encoding makes; at least 256, for it begins with the bytes."""
    validation: Fraction = 0.1
    """Share of the text, before the test's, kept apart to choose by."""
    test: Fraction = 0.0
    """Share of the text, at its end, kept apart to be read once."""
    vocabulary: str = ""
    """The characters that are tokens; taken from the training text."""
    tokenizer: str = ""
    """The byte-pair encoding, as JSON of the library tokenizers; trained on the training text."""
    digest: str = ""
    """SHA-256 of the text; taken from it. A resumed run refuses another text."""

    @abstractmethod
    def read(self) -> tuple[str, str]:
        """(the text, what messages call it)."""

    def load(self) -> Dataset:
        """`tokens` [n] of each split: the text cut in three, in its order."""
        text, name = self.read()
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        if self.digest and self.digest != digest:
            raise ConfigError(f"{name}: not the text that the run began with (another SHA-256 digest)")
        if self.level == "bpe" and self.tokens < 256:
            raise ConfigError(f"data.tokens: found {self.tokens}; expected at least 256")
        a, b = (round(len(text) * (1 - share)) for share in (self.validation + self.test, self.test))
        parts = {"train": text[:a], "validation": text[a:b], "test": text[b:]}
        found = {"digest": digest}
        if self.level == "character" and not self.vocabulary:
            found["vocabulary"] = Characters.of(parts["train"], text[a:]).vocabulary
        if self.level == "bpe" and not self.tokenizer:
            found["tokenizer"] = BPE.of(parts["train"], self.tokens).definition
        codec = self._codec(**found)
        splits = {}
        for split, part in parts.items():
            tokens = codec.encode(part) if part else np.zeros(0, np.uint8)
            if (part or split == "train") and len(tokens) <= self.block:
                raise ConfigError(f"{name}: {split}: {len(tokens)} tokens; expected above data.block = {self.block}")
            splits[split] = {"tokens": tokens} if part else {}
        return Dataset(**splits, classes=codec.size, block=self.block, found=found)

    def _codec(self, vocabulary: str = "", tokenizer: str = "", **_) -> Characters | Bytes | BPE:
        if self.level == "character":
            return Characters(self.vocabulary or vocabulary)
        return Bytes() if self.level == "byte" else BPE(self.tokenizer or tokenizer)

    def scaled(self, batch: dict) -> dict:
        """Tokens as int32, whatever file they came from."""
        return batch | {"x": batch["x"].astype(jnp.int32)}

    def read_inputs(self, path: str) -> np.ndarray | None:
        """The last `block` tokens of a .txt file, [1, block or fewer]: what a language model goes on from."""
        if Path(path).suffix != ".txt":
            return None
        try:
            text = Path(path).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from None
        if not text:
            raise ConfigError(f"{path}: holds no text")
        return self.encode(text)[None, -self.block :]

    def encode(self, text: str) -> np.ndarray:
        """Tokens of a text, as in the run whose config this is."""
        return self._codec().encode(text)

    def decode(self, tokens) -> str:
        """The text of tokens."""
        return self._codec().decode(tokens)


@configclass
class TextFile(Corpus):
    """A text file, for language models: its last part for validation, all in its order."""

    kind: Literal["text"] = "text"
    path: NotEmpty
    """The file, UTF-8; looked for in the working directory, then where FUNCTRAIN_DATA points."""

    def read(self):
        """The file's text."""
        path = find("data.path", self.path)
        try:
            text = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"data.path: {path}: not UTF-8 text (byte {error.start})") from None
        except OSError as error:
            raise ConfigError(f"data.path: {path}: cannot be read: {error.strerror}") from None
        return text, f"data.path: {path}"


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
        folder = Path(sysconfig.get_paths()["stdlib"])
        skipped = ("site-packages", "test", "tests", "idle_test", "lib2to3", "__pycache__")
        names = (p.relative_to(folder) for p in folder.rglob("*.py"))
        names = [n for n in names if not set(n.parts[:-1]) & set(skipped)]
        texts, size, limit = [], 0, self.megabytes * 10**6
        for name in sorted(names, key=lambda n: hashlib.sha256(n.as_posix().encode()).hexdigest()):
            try:
                text = f"# {name.as_posix()}\n{(folder / name).read_text('utf-8')}\n"
            except (OSError, UnicodeDecodeError):
                continue
            size += len(text.encode())
            if limit and size > limit:
                break
            texts.append(text)
        if not texts:
            raise ConfigError(f"data.kind: python_source: no source files in {folder}")
        return "".join(texts), f"data.kind: python_source: {folder}"
