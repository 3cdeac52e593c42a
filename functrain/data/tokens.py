"""Text to tokens and back: characters, bytes, or byte-pair encoding.

Each has `encode(text) -> array`, `decode(tokens) -> text` and `size`, how many tokens there are.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from functrain.config import ConfigError

UNKNOWN = "\ufffd"


@dataclasses.dataclass(frozen=True)
class Characters:
    """One token a character; `vocabulary` holds each once, in the order of their code points.

    >>> characters = Characters.of("hello")
    >>> characters.encode("hole").tolist(), characters.decode([1, 0, 2, 2, 3])
    ([1, 3, 2, 0], 'hello')
    """

    vocabulary: str

    @classmethod
    def of(cls, text: str, others: str = "") -> "Characters":
        """The characters of a text; where `others` have more, the replacement character joins to stand for them."""
        known = set(text)
        return cls("".join(sorted(known if set(others) <= known else known | {UNKNOWN})))

    @property
    def size(self) -> int:
        """How many characters."""
        return len(self.vocabulary)

    def encode(self, text: str) -> np.ndarray:
        """[n] uint8 or wider; a character that is not in the vocabulary becomes U+FFFD.

        Raises:
          ConfigError: a character is not in the vocabulary, nor is U+FFFD.
        """
        known = np.frombuffer(self.vocabulary.encode("utf-32-le"), np.uint32)
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        at = np.minimum(np.searchsorted(known, codes), len(known) - 1)
        if len(strange := np.flatnonzero(known[at] != codes)):
            if UNKNOWN not in self.vocabulary:
                raise ConfigError(f"character {text[strange[0]]!r} is not in the vocabulary of the training text")
            at[strange] = self.vocabulary.index(UNKNOWN)
        return at.astype(_narrow(self.size))

    def decode(self, tokens: Any) -> str:
        """The text."""
        return "".join(self.vocabulary[i] for i in tokens)


@dataclasses.dataclass(frozen=True)
class Bytes:
    """One token a byte of UTF-8.

    >>> Bytes().encode("né").tolist(), Bytes().decode([110, 195, 169])
    ([110, 195, 169], 'né')
    """

    size: int = 256

    def encode(self, text: str) -> np.ndarray:
        """[n] uint8."""
        return np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)

    def decode(self, tokens: Any) -> str:
        """The text; bytes that are no UTF-8 become U+FFFD."""
        return bytes(int(i) for i in tokens).decode("utf-8", "replace")


@dataclasses.dataclass(frozen=True)
class BPE:
    """Byte-pair encoding on bytes (Sennrich et al. 2016; Radford et al. 2019), by the library `tokenizers`.

    definition: the tokenizer as that library's JSON.
    """

    definition: str

    @classmethod
    def of(cls, text: str, size: int, reserved: Sequence[str] = ()) -> Self:
        """Trained on a text, `size` tokens: first those `reserved`, which no text gives, then the 256 bytes."""
        tokenizers = _library()
        made = tokenizers.Tokenizer(tokenizers.models.BPE())
        made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = tokenizers.decoders.ByteLevel()
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        given = {"initial_alphabet": alphabet, "special_tokens": list(reserved), "show_progress": False}
        trainer = tokenizers.trainers.BpeTrainer(vocab_size=size, **given)
        made.train_from_iterator(_pieces(text), trainer)
        return cls(made.to_str())

    def _made(self):
        return _tokenizer(self.definition)

    @property
    def size(self) -> int:
        """How many tokens."""
        return self._made().get_vocab_size()

    def encode(self, text: str) -> np.ndarray:
        """[n] uint16 or wider."""
        made = self._made()
        narrow = _narrow(made.get_vocab_size())
        return np.concatenate([np.array(made.encode(p, add_special_tokens=False).ids, narrow) for p in _pieces(text)])

    def decode(self, tokens: Any) -> str:
        """The text."""
        return self._made().decode([int(i) for i in tokens], skip_special_tokens=False)


RESERVED = ("<padding>", "<unknown>", "<begin>", "<end>")
PADDING, UNKNOWN_TOKEN, BEGIN, END = range(4)
"""The first tokens of a vocabulary of sentences."""


@dataclasses.dataclass(frozen=True)
class Sentences(BPE):
    """Byte-pair encoding of sentences: its tokens 0 to 3 are padding, unknown, begin and end, which no text gives."""

    @classmethod
    def of(cls, text: str, size: int, reserved: Sequence[str] = RESERVED) -> Self:
        """Trained on a text, `size` tokens: those reserved, the 256 bytes, and pieces of words."""
        return super().of(text, size, reserved)

    def rows(self, sentences: Sequence[str]) -> list[list[int]]:
        """The tokens of each sentence, and END after them."""
        return [[*one.ids, END] for one in self._made().encode_batch(list(sentences))]

    def decode(self, tokens: Any) -> str:
        """The text of tokens up to the first END, without those that are reserved."""
        tokens = [int(i) for i in tokens]
        tokens = tokens[: tokens.index(END)] if END in tokens else tokens
        return super().decode([i for i in tokens if i >= len(RESERVED)])


@functools.lru_cache(maxsize=8)  # parsing takes longer than encoding a sentence
def _tokenizer(definition):
    try:
        made = _library().Tokenizer.from_str(definition)
    except ConfigError:
        raise
    except Exception as error:  # what the library raises for text that is no tokenizer is a bare Exception
        raise ConfigError(f"data.tokenizer: no tokenizer: {error}") from None
    made.encode_special_tokens = True  # a text that has "<end>" in it has no end there
    return made


_PIECE = 1 << 20


def _pieces(text):
    """The text in pieces of about a million characters, each of whole lines: encoding takes 200 times the memory."""
    pieces, start = [], 0
    while len(text) - start > _PIECE:
        end = text.rfind("\n", start, start + _PIECE) + 1 or start + _PIECE
        pieces.append(text[start:end])
        start = end
    return [*pieces, text[start:]]


def _narrow(size):
    return np.uint8 if size <= 256 else np.uint16 if size <= 65536 else np.int32


def _library():
    try:
        import tokenizers  # late: an extra
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ImportError:
        raise ConfigError(
            "data.level: bpe needs the library tokenizers: pip install 'functrain[text]'; character and byte need none"
        ) from None
    return tokenizers
