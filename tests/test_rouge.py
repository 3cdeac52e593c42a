"""ROUGE is the library's, and what it is by hand."""

import sys

import numpy as np
import pytest

from functrain.config import ConfigError
from functrain.metrics import join, read, scalar_names
from functrain.metrics.rouge import PARTS, Rouge, rouge, rouge_of

rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="the extra scores is not installed")

FOUND = ["The cat sat on the mat.", "a b c d", "", "running dogs run"]
WANTED = ["the cat is on the mat", "d c b a", "nothing", "the runner runs a dog"]


def test_by_hand():
    """Lin 2004, section 3: "police kill the gunman" and "the gunman kill police" against "police killed the gunman"."""
    found = rouge(["police kill the gunman", "the gunman kill police"], ["police killed the gunman"] * 2)
    assert found["rouge_1"] == pytest.approx(3 / 4)
    assert found["rouge_2"] == pytest.approx(1 / 3)
    assert found["rouge_l"] == pytest.approx((3 / 4 + 2 / 4) / 2)
    # Lengths that differ: 2 of 3 words of the text, of 5 of the reference; "a a" counts twice, as both have it.
    found = rouge(["a a b"], ["a a c d e"])
    assert found["rouge_1_precision"] == pytest.approx(2 / 3)
    assert found["rouge_1_recall"] == pytest.approx(2 / 5)
    assert found["rouge_1"] == pytest.approx(2 * (2 / 3) * (2 / 5) / (2 / 3 + 2 / 5))
    assert found["rouge_2_precision"] == pytest.approx(1 / 2)
    assert found["rouge_2_recall"] == pytest.approx(1 / 4)


@pytest.mark.parametrize("stem", [False, True])
def test_it_is_the_library_s(stem):
    """The mean of its scores of each text."""
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=stem)
    scores = [scorer.score(wanted, found) for found, wanted in zip(FOUND, WANTED)]
    ours = rouge(FOUND, WANTED, stem=stem)
    for name, theirs in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
        for part, score in (("", "fmeasure"), ("_precision", "precision"), ("_recall", "recall")):
            assert ours[name + part] == pytest.approx(np.mean([getattr(s[theirs], score) for s in scores]), rel=1e-12)
    assert list(ours) == list(PARTS)


def test_the_best_of_several_references():
    """By F, for each of the three."""
    assert rouge(["a b c"], [["x y z", "a b c", "a b"]])["rouge_2"] == 1.0


def test_rows_are_joined_and_read():
    """Of two batches, without the masked row; 0 is no token; by a codec it is the texts' own ROUGE."""
    a = Rouge(np.array([[5, 6, 0], [9, 9, 9]]), np.array([[6, 5, 6, 0], [9, 9, 9, 9]]), mask=np.array([1.0, 0.0]))
    b = Rouge(np.array([[1, 2, 3]]), np.array([[1, 2, 3, 4]]), mask=np.ones(1))
    whole = join([a, b])
    wanted = rouge(["5 6", "1 2 3"], ["6 5 6", "1 2 3 4"])
    assert read({"rouge": whole})["rouge"].numbers() == pytest.approx(wanted)
    assert scalar_names("rouge", whole) == PARTS

    class Codec:
        def decode(self, tokens):
            return " ".join(["-", "one", "two", "two"][i] for i in tokens)

    codec = Codec()
    assert rouge_of(codec) is rouge_of(codec)
    texts = rouge_of(codec)(np.array([[1, 2]]), np.array([[1, 3]]), mask=np.ones(1))
    assert join([texts, texts]).numbers()["rouge_2"] == 1.0


def test_mistakes_and_nothing(monkeypatch):
    """As many references as texts, one at least to each; nothing gives nan; without the library, its extra is named."""
    assert np.isnan(rouge([], [])["rouge_1"])
    with pytest.raises(ValueError, match="1 texts and 2 references"):
        rouge(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="text 0 has no reference"):
        rouge(["a"], [[]])
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    with pytest.raises(ConfigError, match=r"functrain\[scores\]"):
        rouge(["a"], ["a"])
