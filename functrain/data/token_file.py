"""Token files: text larger than memory, tokenised once, as bare numbers in a file (the .bin of nanoGPT).

write(path, texts, codec)   text piece by piece into such a file
TokenFile                   one as data: the blocks of a chunk of steps are read, and nothing else
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from functrain.config import LARGEST, ConfigError, Count, Fraction, Size, configclass
from functrain.config import Text as NotEmpty
from functrain.data.dataset import Dataset, find, read_text
from functrain.data.feed import Stream
from functrain.data.streaming import Workers
from functrain.data.tokens import BPE, Bytes, Characters

_LOOKED_AT, _BYTES = 64, 1 << 16
"""How many pieces of a file its digest is of, and how long each is."""


def write(path: str | Path, texts: Iterable[str], codec: Any, dtype: str = "") -> int:
    """Text as a file of tokens, little-endian, and what they stand for beside it, in `path`.json; how many there are.

    Args:
      texts: pieces of any length, each encoded on its own and written before the next is asked for: lines, or
        documents with the mark between them that they should have.
      codec: of functrain.data.tokens.
      dtype: "uint16" or "uint32"; empty takes the narrower one that fits.

    Raises:
      ValueError: a vocabulary too large for the dtype.

    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/text.bin"
    >>> write(path, ["to be ", "or not"], Bytes())
    12
    >>> bytes(np.fromfile(path, "<u2").astype("u1"))
    b'to be or not'
    """
    dtype = dtype or ("uint16" if codec.size <= 1 << 16 else "uint32")
    if codec.size > np.iinfo(dtype).max + 1:
        raise ValueError(f"{codec.size} tokens do not fit into {dtype}")
    count = 0
    with open(path, "wb") as file:
        for text in texts:
            if text:
                tokens = codec.encode(text).astype(np.dtype(dtype).newbyteorder("<"))
                file.write(tokens.tobytes())
                count += len(tokens)
    level = {Characters: "character", Bytes: "byte", BPE: "bpe"}[type(codec)]
    made = {"dtype": dtype, "classes": codec.size, "level": level}
    names = {"vocabulary": "vocabulary", "definition": "tokenizer"}
    made |= {name: getattr(codec, key) for key, name in names.items() if hasattr(codec, key)}
    Path(f"{path}.json").write_text(json.dumps(made), "utf-8")
    return count


@configclass
class TokenFile(Workers):
    """A file of tokens, however large, for language models: little-endian numbers and nothing else, as nanoGPT has it.

    It is never read whole: of each chunk of steps the blocks, of a split to evaluate `evaluated` of them. Batches are
    those that the same tokens in memory would give. What the tokens stand for is taken from PATH.json, if there is one.
    """

    kind: Literal["token_file"] = "token_file"
    path: NotEmpty
    """The file; looked for in the working directory, then where FUNCTRAIN_DATA points."""
    validation_path: str = ""
    """Another file to choose by; empty takes a share of the first."""
    dtype: Literal["", "uint16", "uint32"] = ""
    """What a token is in the file; empty is what PATH.json says, or else uint16."""
    classes: Count = 0
    """How many tokens the vocabulary has; 0 is what PATH.json says, or else as many as GPT-2's, 50257."""
    block: Size = 64
    """Tokens in an example."""
    workers: Count = 1
    """Threads, or processes, that read ahead of need; 0 reads at need. Batches do not depend on it, bit for bit."""
    validation: Fraction = 0.01
    """Share of the tokens, before the test's, kept apart to choose by, where there is no validation_path."""
    test: Fraction = 0.0
    """Share of the tokens, at the end, kept apart to be read once."""
    evaluated: Size = 1024
    """Blocks that stand for a split where it is evaluated, spread evenly over it; all of them where it has fewer."""
    level: Literal["", "character", "byte", "bpe"] = ""
    """What a token stands for; taken from PATH.json. Where nothing says it, the model is given tokens, never text."""
    vocabulary: str = ""
    """The characters that are tokens; taken from PATH.json."""
    tokenizer: str = ""
    """The byte-pair encoding, as JSON of the library tokenizers; taken from PATH.json."""
    digest: str = ""
    """SHA-256 of the file's size and of 64 pieces of 64 KiB, spread evenly: not of all of it, which would take minutes.
    Taken from it; a resumed run refuses another file, unless it differs elsewhere alone."""

    @property
    def streamed(self) -> bool:
        """Whether the training part stays in its file: always."""
        return True

    def load(self) -> Dataset:
        """`tokens` [n] of each split, mapped and not read."""
        path = find("data.path", self.path)
        digest = _digest(path)
        if self.digest and self.digest != digest:
            raise ConfigError(f"data.path: {path}: not the file that the run began with (another SHA-256 digest)")
        names = ("dtype", "classes", "level", "vocabulary", "tokenizer")
        given = {name: getattr(self, name) for name in names if getattr(self, name)}
        settled = dataclasses.replace(self, **({"dtype": "uint16", "classes": 50257} | _beside(path) | given))
        tokens = settled._mapped("data.path", path)
        n = len(tokens)
        share = 0.0 if self.validation_path else self.validation
        a, b = (round(n * (1 - part)) for part in (share + self.test, self.test))
        splits = {"train": tokens[:a], "validation": tokens[a:b], "test": tokens[b:]}
        if self.validation_path:
            where = "data.validation_path"
            splits["validation"] = settled._mapped(where, find(where, self.validation_path))
        for split, part in splits.items():
            if (len(part) or split == "train") and len(part) <= self.block:
                raise ConfigError(
                    f"data.path: {path}: {split}: {len(part)} tokens; expected above data.block = {self.block}"
                )
        found = {name: getattr(settled, name) for name in names}
        train, validation, test = ({"tokens": part} if len(part) else {} for part in splits.values())
        return Dataset(
            train, validation, test, classes=settled.classes, block=self.block, found=found | {"digest": digest}
        )

    def _mapped(self, where, path):
        dtype = np.dtype(self.dtype).newbyteorder("<")
        size = path.stat().st_size
        if not size or size % dtype.itemsize:
            raise ConfigError(f"{where}: {path}: {size} bytes; expected some, and whole tokens of {self.dtype}")
        return np.memmap(path, dtype, "r")

    def feed(self, dataset: Dataset, arrays: Any, seed: int) -> Stream:
        """Blocks read for one chunk at a time; every place of the file is a start once in an epoch of the order.

        Of more than 2^31 places every second, third ... is one.
        """
        tokens = dataset.train["tokens"]
        assert isinstance(tokens, np.memmap)
        places = len(tokens) - self.block
        apart = -(-places // LARGEST)
        read = functools.partial(_read, tokens.filename, tokens.dtype, len(tokens), self.block, apart, dataset.classes)
        n = -(-places // apart)
        return Stream(read, n, self.batch_size, 1, seed, self.prepare, self.workers, self.processes)

    def scaled(self, batch: dict) -> dict:
        """Tokens as int32, whatever they are in the file."""
        return batch | {name: batch[name].astype(jnp.int32) for name in ("x", "y") if name in batch}

    def read_inputs(self, path: str) -> np.ndarray | None:
        """The last `block` tokens of a .txt file, [1, block or fewer], where it is known what they stand for."""
        if Path(path).suffix != ".txt" or not self.level:
            return None
        text = read_text(path, path)
        if not text:
            raise ConfigError(f"{path}: holds no text")
        return self.encode(text)[None, -self.block :]

    def encode(self, text: str) -> np.ndarray:
        """Tokens of a text, as those of the file."""
        return self._codec().encode(text)

    def decode(self, tokens) -> str:
        """The text of tokens."""
        return self._codec().decode(tokens)

    def _codec(self):
        if not self.level:
            raise ConfigError("data.level: nothing says what the tokens of the file stand for (PATH.json does)")
        if self.level == "character":
            return Characters(self.vocabulary)
        return Bytes() if self.level == "byte" else BPE(self.tokenizer)


def _read(path, dtype, n, block, apart, classes, indices):
    """x and y [size, block] of the blocks that begin at these places of the first n tokens."""
    tokens = np.memmap(path, dtype, "r", shape=(n,))  # anew each time: pages of one that is kept stay in memory
    start = indices.astype(np.int64) * apart
    rows = tokens[start[:, None] + np.arange(block + 1)].astype(dtype.newbyteorder("="))
    if rows.max() >= classes:
        i, j = np.unravel_index(rows.argmax(), rows.shape)
        raise ConfigError(
            f"data.path: {path}[{start[i] + j}]: token {rows.max()}; expected below {classes} (data.classes)"
        )
    return {"x": rows[:, :-1], "y": rows[:, 1:]}


def _digest(path):
    size = path.stat().st_size
    seen = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for i in range(_LOOKED_AT):
            file.seek(max(size - _BYTES, 0) * i // (_LOOKED_AT - 1))
            seen.update(file.read(_BYTES))
    return seen.hexdigest()


def _beside(path) -> dict[str, Any]:
    """What PATH.json says of the tokens; nothing where there is none."""
    path = Path(f"{path}.json")
    if not path.is_file():
        return {}
    kinds = {"dtype": str, "classes": int, "level": str, "vocabulary": str, "tokenizer": str}
    try:
        found = json.loads(path.read_text("utf-8"))
        wrong = [name for name, value in found.items() if not isinstance(value, kinds[name])]
    except (OSError, ValueError, AttributeError, KeyError) as error:
        raise ConfigError(f"{path}: cannot be read: {error!r}; expected an object with {', '.join(kinds)}") from None
    if wrong or found.get("dtype", "uint16") not in ("uint16", "uint32"):
        name = wrong[0] if wrong else "dtype"
        raise ConfigError(f"{path}: {name}: found {found[name]!r}")
    return found
