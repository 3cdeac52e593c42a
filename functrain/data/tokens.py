"""Text to tokens and back: characters, bytes, or byte-pair encoding.

Each has `encode(text) -> array`, `decode(tokens) -> text` and `size`, how many tokens there are.
"""

import dataclasses
from typing import Any

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
    def of(cls, text: str, size: int) -> "BPE":
        """Trained on a text, with `size` tokens, the 256 bytes among them."""
        tokenizers = _library()
        made = tokenizers.Tokenizer(tokenizers.models.BPE())
        made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = tokenizers.decoders.ByteLevel()
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        trainer = tokenizers.trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
        made.train_from_iterator(text.splitlines(keepends=True), trainer)
        return cls(made.to_str())

    def _made(self):
        try:
            return _library().Tokenizer.from_str(self.definition)
        except ConfigError:
            raise
        except Exception as error:  # what the library raises for text that is no tokenizer is a bare Exception
            raise ConfigError(f"data.tokenizer: no tokenizer: {error}") from None

    @property
    def size(self) -> int:
        """How many tokens."""
        return self._made().get_vocab_size()

    def encode(self, text: str) -> np.ndarray:
        """[n] uint16 or wider."""
        made = self._made()
        lines = made.encode_batch(text.splitlines(keepends=True))
        return np.concatenate([np.asarray(line.ids, np.int64) for line in lines]).astype(_narrow(made.get_vocab_size()))

    def decode(self, tokens: Any) -> str:
        """The text."""
        return self._made().decode([int(i) for i in tokens], skip_special_tokens=False)


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
