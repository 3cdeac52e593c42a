"""Error rates of sequences: the fewest edits between what was found and what it should be, for each wanted element.

An edit substitutes an element, inserts one (found, not wanted) or deletes one (wanted, not found); Levenshtein 1966. Of
a corpus, the sum of the edits over the sum of the wanted lengths: 0 is all right, and above 1 is possible. A sequence
that should be empty adds to the edits alone; where all should be, the rate is inf, and nan if nothing was found either.
"""

from collections.abc import Hashable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from flax import struct

from functrain.metrics.accumulators import divided
from functrain.metrics.rows import Rows

_TOGETHER = 256
"""How many pairs of about one length are compared at once."""


class Edits(NamedTuple):
    """How many of each kind, [n] integers."""

    substitutions: np.ndarray
    insertions: np.ndarray
    deletions: np.ndarray


def edits(found: Any, wanted: Any, *, found_lengths: Any, wanted_lengths: Any) -> Edits:
    """The fewest edits from each wanted row to what was found; of several ways, that with the most substitutions.

    Args:
      found, wanted: [n, a] and [n, b] integers; what stands past a row's length does not matter.
      found_lengths, wanted_lengths: [n].

    Raises:
      ValueError: shapes that do not fit one another.

    >>> edits([[1, 2, 3]], [[2, 3, 4]], found_lengths=[3], wanted_lengths=[2]).insertions.tolist()
    [1]
    """
    found, wanted = np.asarray(found), np.asarray(wanted)
    found_lengths, wanted_lengths = np.asarray(found_lengths, np.int64), np.asarray(wanted_lengths, np.int64)
    shapes = found.shape[:1], wanted.shape[:1], found_lengths.shape, wanted_lengths.shape
    if found.ndim != 2 or wanted.ndim != 2 or len(set(shapes)) > 1:
        raise ValueError(f"found {found.shape}, wanted {wanted.shape}, of lengths {shapes[2]} and {shapes[3]}")
    counts = np.zeros((len(found), 2), np.int64)
    order = np.argsort(wanted_lengths, kind="stable")
    for at in (order[i : i + _TOGETHER] for i in range(0, len(order), _TOGETHER)):
        counts[at] = _fewest(found[at], wanted[at], found_lengths[at], wanted_lengths[at])
    every, added = counts.T
    # Insertions less deletions is what the lengths differ by.
    insertions = (added + found_lengths - wanted_lengths) // 2
    return Edits(every - added, insertions, added - insertions)


def _fewest(found, wanted, found_lengths, wanted_lengths):
    """[n, 2]: all edits, and those among them that insert or delete."""
    found = found[:, : found_lengths.max()]
    # One number for both: an edit costs more than all that insert or delete could add, and those cost 1 beyond it.
    edit = found.shape[1] + wanted_lengths.max() + 1
    # costs[:, j] for j found elements, less what it costs to insert them all: insertions are then a running minimum.
    costs, total = np.zeros((len(found), found.shape[1] + 1), np.int64), np.zeros(len(found), np.int64)
    for i in range(wanted_lengths.max() + 1):
        ends = wanted_lengths == i
        total[ends] = costs[ends, found_lengths[ends]] + found_lengths[ends] * (edit + 1)
        if i < wanted_lengths.max():
            matched = costs[:, :-1] + edit * (found != wanted[:, i, None]) - (edit + 1)
            costs = costs + (edit + 1)  # deleted
            np.minimum(costs[:, 1:], matched, out=costs[:, 1:])
            np.minimum.accumulate(costs, 1, out=costs)
    return np.stack(np.divmod(total, edit), 1)


def word_error_rate(found: Sequence[str], wanted: Sequence[str]) -> float:
    """The error rate of texts by words, which are what stands between white space; case and marks count.

    Args:
      found, wanted: as many texts.

    Raises:
      ValueError: another number of them, or one text in their place.

    >>> word_error_rate(["the cat sat", ""], ["the cat sat down", "yes"])   # two of five deleted
    0.4
    """
    return _rate([text.split() for text in _texts(found)], [text.split() for text in _texts(wanted)])


def character_error_rate(found: Sequence[str], wanted: Sequence[str]) -> float:
    """The error rate of texts by characters (code points), without white space around a text, with that inside.

    Args:
      found, wanted: as many texts.

    Raises:
      ValueError: another number of them, or one text in their place.

    >>> character_error_rate(["cat sad"], ["the cat sat"])   # four deleted, one substituted
    0.45454545454545453
    """
    return _rate([text.strip() for text in _texts(found)], [text.strip() for text in _texts(wanted)])


@struct.dataclass
class Errors(Rows):
    """The error rate of rows of labels, such as those of `functrain.ctc.greedy`.

    found: [n, a] integers, what stands past a row's length does not matter.
    found_lengths: [n].
    wanted: [n, b] integers, what should have been found.
    wanted_lengths: [n].
    mask: [n].

    >>> rows, lengths = np.array([[7, 8, 9, -1]]), np.array([3])
    >>> wanted, wanted_lengths = np.array([[7, 9]]), np.array([2])
    >>> Errors(rows, lengths, wanted, wanted_lengths, mask=np.ones(1)).numbers()["error_rate"]
    0.5
    """

    own: ClassVar[str] = "errors"
    parts: ClassVar[tuple[str, ...]] = ("error_rate", "substitution_rate", "insertion_rate", "deletion_rate")

    found: Any
    found_lengths: Any
    wanted: Any
    wanted_lengths: Any
    mask: Any

    def numbers(self) -> dict[str, Any]:
        """Edits over wanted labels, all and each kind; nan without rows."""
        counts = edits(self.found, self.wanted, found_lengths=self.found_lengths, wanted_lengths=self.wanted_lengths)
        kinds = [int(kind.sum()) for kind in counts]
        return dict(zip(self.parts, divided([sum(kinds), *kinds], np.sum(self.wanted_lengths)).tolist()))


# -- helpers --------------------------------------------------------------------------------------


def _texts(texts):
    if isinstance(texts, str):
        raise ValueError("one text; expected a list of texts")
    return texts


def _rate(found, wanted):
    if len(found) != len(wanted):
        raise ValueError(f"{len(found)} texts found and {len(wanted)} wanted: expected as many")
    known: dict[Hashable, int] = {}
    (found, found_lengths), (wanted, wanted_lengths) = _rows(found, known), _rows(wanted, known)
    counts = edits(found, wanted, found_lengths=found_lengths, wanted_lengths=wanted_lengths)
    return float(divided(np.sum(counts), wanted_lengths.sum()))


def _rows(sequences, known):
    """The elements as numbers, [n, longest], and the lengths."""
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    rows = np.zeros((len(lengths), lengths.max(initial=0)), np.int64)
    numbers = [known.setdefault(element, len(known)) for sequence in sequences for element in sequence]
    rows[np.arange(rows.shape[1]) < lengths[:, None]] = numbers
    return rows, lengths
