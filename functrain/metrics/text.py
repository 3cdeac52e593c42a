"""BLEU and chrF of generated text against one reference each, by sacrebleu (extra `scores`)."""

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from flax import struct

from functrain.config import ConfigError
from functrain.metrics.rows import Rows


@struct.dataclass
class Texts(Rows):
    """Texts and what they should be, as tokens; only a class that `texts_of` makes knows their words.

    found: [n, a] integers.
    wanted: [n, b] integers.
    mask: [n].
    """

    own: ClassVar[str] = "texts"
    parts: ClassVar[tuple[str, ...]] = ("bleu", "chrf")
    codec: ClassVar[Any] = None

    found: Any
    wanted: Any
    mask: Any

    def numbers(self) -> dict[str, Any]:
        """`bleu` and `chrf` of all texts as one corpus, each from 0 to 100; see `scores`."""
        found, wanted = ([self.codec.decode(row) for row in np.asarray(rows)] for rows in (self.found, self.wanted))
        return scores(found, wanted)


@functools.cache
def texts_of(codec: Any) -> type[Texts]:
    """The class of texts that `codec.decode(tokens [n]) -> text` reads; one class for equal codecs.

    The codec belongs to the class, for an instance holds arrays of examples and nothing else (see `Rows`).

    >>> class Words:
    ...     def decode(self, tokens):
    ...         return " ".join("a cat sat on the mat".split()[i] for i in tokens)
    >>> rows = np.array([[0, 1, 2]])
    >>> texts = texts_of(Words())(rows, rows, mask=np.ones(1))
    >>> texts.parts, texts.codec.decode(texts.found[0])
    (('bleu', 'chrf'), 'a cat sat')
    """
    return struct.dataclass(type("Texts", (Texts,), {"codec": codec, "__module__": __name__}))


def scores(found: Sequence[str], wanted: Sequence[str]) -> dict[str, float]:
    """`bleu` (Papineni et al. 2002, with sacrebleu's tokens "13a", cased) and `chrf` (Popović 2015), of a corpus.

    Args:
      found, wanted: as many texts, not split into tokens.
    """
    sacrebleu = library()
    references = [list(wanted)]
    return {
        "bleu": sacrebleu.corpus_bleu(list(found), references).score,
        "chrf": sacrebleu.corpus_chrf(list(found), references).score,
    }


def library() -> Any:
    """The module sacrebleu.

    Raises:
      ConfigError: it is not installed.
    """
    try:
        import sacrebleu  # late: an extra
    except ImportError:
        raise ConfigError("BLEU and chrF need the library sacrebleu: pip install 'functrain[scores]'") from None
    return sacrebleu
