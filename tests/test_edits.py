"""Error rates: edits by their definition, by hand, and joined over batches."""

import functools

import numpy as np
import pytest

from functrain.metrics import join, read, scalar_names, scalars
from functrain.metrics.edits import Errors, character_error_rate, edits, word_error_rate


def shortest(found, wanted):
    """(edits, those that insert or delete) of the best way, by recursion over what stands at the end."""

    @functools.cache
    def best(i, j):
        if not i or not j:
            return i + j, i + j
        differs = found[i - 1] != wanted[j - 1]
        ways = [(best(i - 1, j - 1), differs, 0), (best(i - 1, j), 1, 1), (best(i, j - 1), 1, 1)]
        return min((many + more, moved + shift) for (many, moved), more, shift in ways)

    return best(len(found), len(wanted))


def test_edits_are_the_fewest():
    """Of 600 ragged pairs over few labels, more than are compared at once, against the recursion."""
    rng = np.random.default_rng(0)
    found, wanted = rng.integers(0, 3, (600, 9)), rng.integers(0, 3, (600, 7))
    found_lengths, wanted_lengths = rng.integers(0, 10, 600), rng.integers(0, 8, 600)
    counts = edits(found, wanted, found_lengths=found_lengths, wanted_lengths=wanted_lengths)
    for i, (a, b) in enumerate(zip(found_lengths, wanted_lengths)):
        s, insertions, deletions = (int(kind[i]) for kind in counts)
        assert (s + insertions + deletions, insertions + deletions) == shortest(
            tuple(found[i, :a].tolist()), tuple(wanted[i, :b].tolist())
        )
        assert insertions - deletions == a - b
        assert min(s, insertions, deletions) >= 0


def test_by_hand():
    """kitten and sitting: two substituted, one inserted. Case counts, white space parts words and no more."""
    assert character_error_rate(["sitting"], ["kitten"]) == 3 / 6
    assert word_error_rate(["The  cat\tsat\n"], [" the cat sat"]) == 1 / 3
    assert character_error_rate([" a b "], ["ab"]) == 1 / 2
    assert word_error_rate(["a b c d"], ["a"]) == 3.0
    # Sums over the corpus, not a mean of rates: 1 of 1 and 0 of 3.
    assert word_error_rate(["x", "a b c"], ["a", "a b c"]) == 1 / 4
    # All three in one: b for x, one less, one more.
    counts = edits([[1, 2, 3, 4]], [[1, 9, 3, 4, 5]], found_lengths=[4], wanted_lengths=[5])
    assert [kind.tolist() for kind in counts] == [[1], [0], [1]]


def test_empty_texts():
    """An empty hypothesis deletes all; an empty reference adds what was found; of nothing but those, inf or nan."""
    assert word_error_rate([""], ["a b"]) == character_error_rate([""], ["ab"]) == 1.0
    assert word_error_rate(["a b", "c"], ["", "c"]) == 2.0
    assert word_error_rate(["a b"], [""]) == np.inf
    assert np.isnan(word_error_rate([""], [" "]))
    assert np.isnan(word_error_rate([], []))


def test_rows_are_joined_and_read():
    """Two batches, without the masked row and whatever stands past the lengths, are one corpus."""
    first = Errors(
        np.array([[1, 2, -1], [5, 5, 5]]), np.array([2, 3]), np.array([[1, 3, 0, 0], [1, 1, 1, 1]]), np.array([2, 4]),
        mask=np.array([1.0, 0.0]),
    )  # fmt: skip
    second = Errors(
        np.array([[4, 4, 4]]), np.array([3]), np.array([[4, 9, 9, 9]]), np.array([1]), mask=np.ones(1, bool)
    )
    whole = join([first, second])
    wanted = {"error_rate": 1.0, "substitution_rate": 1 / 3, "insertion_rate": 2 / 3, "deletion_rate": 0.0}
    assert scalars(read({"errors": whole})) == wanted
    assert scalar_names("errors", whole) == tuple(wanted)
    nothing = Errors(np.zeros((0, 3), int), np.zeros(0, int), np.zeros((0, 3), int), np.zeros(0, int), mask=np.zeros(0))
    assert np.isnan(list(nothing.numbers().values())).all()


def test_refusals():
    """Another number of texts, a text in place of texts, rows that are none."""
    with pytest.raises(ValueError, match="1 texts found and 2 wanted"):
        word_error_rate(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="one text"):
        character_error_rate("ab", "ab")
    for found, lengths in (([1, 2], [2]), ([[1, 2]], [2, 2])):
        with pytest.raises(ValueError, match="of lengths"):
            edits(found, [[1]], found_lengths=lengths, wanted_lengths=[1])
