"""ROUGE: how much of a reference a text has, by words, pairs of words, and their longest common order (Lin 2004).

For n words in a row, the recall is the share of the reference's that the text has too, each as often as both have it;
the precision, the share of the text's that the reference has; F, 2 P R / (P + R). ROUGE-L counts in their stead the
words of the longest common subsequence. Of many texts, the mean of each.
"""

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from flax import struct

from functrain.config import ConfigError
from functrain.metrics.rows import Rows

_NAMES = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
"""Ours and the library's."""
PARTS = tuple(name + part for name in _NAMES for part in ("", "_precision", "_recall"))
"""What is told of texts."""


def rouge(
    predicted: Sequence[str], references: Sequence[str | Sequence[str]], *, stem: bool = False
) -> dict[str, float]:
    """`rouge_1`, `rouge_2`, `rouge_l` (F), and `_precision` and `_recall` of each, in 0..1, by the library rouge-score.

    Words are runs of letters a to z and digits, in lower case, as in that library: other scripts have none.

    Args:
      predicted: texts.
      references: of each, one text, or several, of which that with the best F counts (for each of the three apart).
      stem: whether to compare words of more than three letters by their stems (Porter's, English).

    Returns:
      nan where there are no texts.

    Raises:
      ValueError: another number of references, or a text without any.
      ConfigError: rouge-score is not installed.

    >>> found = rouge(["the cat sat"], ["the cat ate"])
    >>> round(found["rouge_1"], 4), round(found["rouge_2"], 4), round(found["rouge_l_recall"], 4)
    (0.6667, 0.5, 0.6667)
    """
    return _scored(predicted, references, use_stemmer=stem)


@struct.dataclass
class Rouge(Rows):
    """ROUGE of rows of tokens, each token taken for a word; a class that `rouge_of` makes scores their text.

    found: [n, a] integers, what is scored; 0 is no token, wherever it stands.
    wanted: [n, b] integers, what it should be.
    mask: [n].

    >>> numbers = Rouge(np.array([[7, 8, 9, 0]]), np.array([[7, 8, 4]]), mask=np.ones(1)).numbers()
    >>> [round(numbers[name], 4) for name in ("rouge_1", "rouge_2")]
    [0.6667, 0.5]
    """

    own: ClassVar[str] = "rouge"
    parts: ClassVar[tuple[str, ...]] = PARTS
    codec: ClassVar[Any] = None

    found: Any
    wanted: Any
    mask: Any

    def numbers(self) -> dict[str, Any]:
        """See `rouge`; nan without rows."""
        found, wanted = (np.asarray(rows) for rows in (self.found, self.wanted))
        if self.codec is not None:
            return rouge(*([self.codec.decode(row) for row in rows] for rows in (found, wanted)))
        texts = ([" ".join(str(token) for token in row[row != 0]) for row in rows] for rows in (found, wanted))
        return _scored(*texts, tokenizer=_Spaces())


@functools.cache
def rouge_of(codec: Any) -> type[Rouge]:
    """The class of rows that `codec.decode(tokens [n]) -> text` reads; one class for equal codecs.

    The codec belongs to the class, for an instance holds arrays of examples and nothing else (see `Rows`).

    >>> class Letters:
    ...     def decode(self, tokens):
    ...         return " ".join("-abcd"[i] for i in tokens)
    >>> rows = np.array([[1, 2, 3]])
    >>> rouge_of(Letters())(rows, rows, mask=np.ones(1)).numbers()["rouge_l"]
    1.0
    """
    return struct.dataclass(type("Rouge", (Rouge,), {"codec": codec, "__module__": __name__}))


class _Spaces:
    """Words are what stands between spaces."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()


def _scored(predicted, references, **settings):
    if len(predicted) != len(references):
        raise ValueError(f"{len(predicted)} texts and {len(references)} references: expected as many")
    scorer = _library().RougeScorer(list(_NAMES.values()), **settings)
    rows = []
    for i, (text, of) in enumerate(zip(predicted, references)):
        of = [of] if isinstance(of, str) else list(of)
        if not of:
            raise ValueError(f"text {i} has no reference")
        scores = scorer.score_multi(of, text)
        rows.append([n for name in _NAMES.values() for n in _three(scores[name])])
    return dict(zip(PARTS, np.mean(rows, 0).tolist() if rows else [float("nan")] * len(PARTS)))


def _three(score):
    return score.fmeasure, score.precision, score.recall


def _library():
    try:
        from rouge_score import rouge_scorer  # late: an extra
    except ImportError:
        raise ConfigError("ROUGE needs the library rouge-score: pip install 'functrain[scores]'") from None
    return rouge_scorer
