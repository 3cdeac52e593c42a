"""Extractive question answering: the task by hand, the best span by trying all, and the files of questions."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functrain import config
from functrain.building import build
from functrain.built import compile
from functrain.config import ConfigError
from functrain.data.questions import Questions
from functrain.experiment import Experiment
from functrain.tasks.span import Span, answerable, best, types_of
from functrain.train.loop import Best, run

pytestmark = pytest.mark.usefixtures("quick")


# -- the task -------------------------------------------------------------------------------------


@pytest.mark.parametrize("longest", [1, 3, 50])
def test_the_best_span_is_that_of_all(longest):
    """Every pair of places tried; under jit."""
    logits = np.random.default_rng(0).normal(size=(20, 9, 2)).astype(np.float32) * 3
    found = jax.jit(best, static_argnums=1)(logits, longest)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for i in range(20):
        pairs = {(0, 0): p[i, 0, 0] * p[i, 0, 1]} | {
            (a, b): p[i, a, 0] * p[i, b, 1] for a in range(1, 9) for b in range(a, min(a + longest, 9))
        }
        top = max(pairs, key=pairs.__getitem__)
        assert (found["start"][i], found["end"][i]) == top
        assert found["score"][i] == pytest.approx(pairs[top], rel=1e-5)


def test_loss_and_metrics_by_hand():
    """Padding and the question are no places; a row without its answer counts as wrong, and not in the loss."""
    x = jnp.ones((5, 6), int)
    segments = jnp.array([[1, 1, 1, 1, 1, 0]] * 5)
    types = jnp.array([[0, 0, 1, 1, 1, 1]] * 5)
    outputs = np.random.default_rng(1).normal(size=(5, 6, 2))
    outputs[:, 5] = 50.0  # padding
    outputs[:, 1] = 40.0  # the question
    outputs[0, :, 0], outputs[0, :, 1] = [0, 0, 9, 0, 0, 0], [0, 0, 0, 9, 0, 0]  # 2 to 3
    outputs[1, :, 0], outputs[1, :, 1] = [9, 0, 0, 0, 0, 0], [9, 0, 0, 0, 0, 0]  # none
    outputs[2, :, 0], outputs[2, :, 1] = [0, 0, 0, 9, 0, 0], [0, 0, 0, 0, 9, 0]  # 3 to 4
    outputs[3] = outputs[0]
    y = jnp.array([[2, 4], [0, 0], [3, 4], [-1, -1], [2, 3]])
    mask = jnp.array([1.0, 1.0, 1.0, 1.0, 0.0])
    batch = {"x": x, "segments": segments, "types": types, "y": y, "mask": mask}
    loss, metrics = Span().loss(jnp.asarray(outputs), batch, train=False)
    places = [0, 2, 3, 4]
    each = []
    for i in range(3):
        for j in (0, 1):
            each.append(np.log(np.exp(outputs[i, places, j]).sum()) - outputs[i, y[i, j], j])
    assert loss.count == 3
    assert loss.value == pytest.approx(np.mean(each), rel=1e-5)
    assert metrics["exact_match"].value == pytest.approx(2 / 4)
    assert metrics["f1"].value == pytest.approx((0.8 + 1 + 1 + 0) / 4)
    assert Span().loss(jnp.asarray(outputs), batch, train=True)[1] == {}
    assert answerable(x, None, None).all()


def test_types_are_told_by_the_separator():
    """As the source has them."""
    x = jnp.array([[2, 8, 3, 9, 9, 3, 0], [2, 3, 9, 3, 0, 0, 0]])
    assert types_of(x, 3).tolist() == [[0, 0, 0, 1, 1, 1, 0], [0, 0, 1, 1, 0, 0, 0]]


# -- the files ------------------------------------------------------------------------------------

COLOURS = ["red", "dark green", "blue", "pale grey", "gold"]


def squad(n=40, impossible=0, filler=0):
    """A file: things and their colours, one question each; the last `impossible` have no answer."""
    rng, paragraphs = np.random.default_rng(0), []
    for i in range(n):
        parts = [(f"thing{j}", COLOURS[rng.integers(5)]) for j in rng.permutation(9)[:4]]
        text = " ".join(f"The {thing} is {colour}." for thing, colour in parts) + " and so on" * filler
        thing, colour = parts[rng.integers(4)]
        answer = {"text": colour, "answer_start": text.index(f"{thing} is {colour}") + len(thing) + 4}
        none = {"is_impossible": True, "answers": []}
        qas = {"question": f"What is {thing}?", "id": str(i), "answers": [answer]}
        paragraphs.append({"context": text, "qas": [qas | (none if i >= n - impossible else {})]})
    return {"version": "2.0", "data": [{"title": "colours", "paragraphs": paragraphs}]}


@pytest.fixture
def write(tmp_path):
    def write(content, name="train.json"):
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return str(tmp_path / name)

    return write


def texts_of(source, data, split="train"):
    """The words at the answers' places."""
    known = ["", "?", "[first]", "[sep]", *data.found["vocabulary"].split()]
    part = data.split(split)
    return [" ".join(known[t] for t in x[a : b + 1]) for x, (a, b) in zip(part["x"], part["y"])]


def test_answers_stand_at_their_places(write):
    """Of every example; (0, 0) for none; the layout with its types and segments."""
    path = write(squad(impossible=7))
    source = Questions(path=path, longest=64, longest_question=8, validation=0.2, test=0.0)
    data = source.load()
    assert {name: data.train[name].shape for name in ("x", "types", "segments", "y")} == dict.fromkeys(
        ("x", "types", "segments"), (32, 64)
    ) | {"y": (32, 2)}
    assert data.classes == 0
    assert data.vocabulary == 4 + len(data.found["vocabulary"].split())
    assert data.found["separator"] == 3
    none = 0
    for split in ("train", "validation"):
        for answer, (a, _) in zip(texts_of(source, data, split), data.split(split)["y"]):
            assert answer in COLOURS if a else answer == "[first]"
            none += a == 0
    assert none == 7
    x, types, segments = (data.train[name][0] for name in ("x", "types", "segments"))
    first, second = np.flatnonzero(x == 3)
    assert x[0] == 2
    assert first == 5  # what is thing ?
    np.testing.assert_array_equal(types, (np.arange(64) > first) & (np.arange(64) <= second))
    np.testing.assert_array_equal(segments, np.arange(64) <= second)
    np.testing.assert_array_equal(np.asarray(types_of(jnp.asarray(data.train["x"]), 3)), data.train["types"])
    again = Questions(path=path, longest=64, longest_question=8, validation=0.2, test=0.0, **data.found).load()
    np.testing.assert_array_equal(again.train["x"], data.train["x"])
    np.testing.assert_array_equal(source.__class__(path=path, longest=64, **data.found).read_inputs(path)[:, 0], 2)


def test_long_texts_are_cut(write):
    """In training with the answer inside, wherever; else from the beginning, and an answer beyond it is not there."""
    path = write(squad(filler=9))
    source = Questions(path=path, validation_path=path, longest=20, longest_question=5, test=0.0)
    data = source.load()
    assert all(answer in COLOURS for answer in texts_of(source, data))
    assert len(data.train["y"]) == 40
    assert len(set(data.train["y"][:, 0])) > 5
    there = data.validation["y"][:, 0] > 0
    assert 0 < there.sum() < 40
    assert (data.validation["y"][~there] == -1).all()
    assert all(a in COLOURS for a, at in zip(texts_of(source, data, "validation"), there) if at)


def test_pieces_of_a_tokenizer(write, tmp_path):
    """Byte-pair encoding trained here, and a tokenizer.json with special tokens: the answer is covered."""
    tokenizers = pytest.importorskip("tokenizers", reason="the extra text is not installed")
    path = write(squad())
    data = Questions(path=path, longest=90, level="bpe", tokens=300, validation=0.0, test=0.0).load()
    made = tokenizers.Tokenizer.from_str(data.found["tokenizer"])
    words = [made.decode([t - 4 for t in x[a : b + 1]]).strip(" .") for x, (a, b) in zip(*_xy(data))]
    assert set(words) <= set(COLOURS)
    assert data.train["x"].max() < data.vocabulary <= 300

    library = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    library.normalizer = tokenizers.normalizers.BertNormalizer()
    library.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]", "[PAD]", "[SEP]", "[CLS]"]
    trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=60, special_tokens=special, show_progress=False)
    library.train_from_iterator([p["context"] for p in squad()["data"][0]["paragraphs"]], trainer)
    library.enable_truncation(4)
    file = write(library.to_str(), "tokenizer.json")
    data = Questions(path=path, longest=90, level="file", tokenizer_path=file, validation=0.0, test=0.0).load()
    x, y = _xy(data)
    assert (x[:, 0] == 3).all()
    assert (x[data.train["segments"] == 0] == 1).all()
    assert data.found["separator"] == 2
    assert {library.decode(row[a : b + 1].tolist()).replace(" ##", "") for row, (a, b) in zip(x, y)} == set(COLOURS)


def _xy(data):
    return data.train["x"], data.train["y"]


def test_mistakes(write, tmp_path):
    """One line with the place in the file, what was found and what would be right."""

    def changed(change):
        content = squad(3)
        change(content["data"][0]["paragraphs"][1])
        return content

    at = r"train.json: data\[0\]\.paragraphs\[1\]"
    for content, words in (
        ("{", "not JSON"),
        ([], "data: found null; expected a list"),
        ({"data": []}, "holds no questions"),
        (changed(lambda p: p.pop("context")), at + ": context: found null; expected text"),
        (changed(lambda p: p["qas"][0].pop("answers")), at + r"\.qas\[0\]: answers: found null; expected a list"),
        (
            changed(lambda p: p["qas"][0]["answers"][0].update(answer_start=1)),
            at + r"\.qas\[0\]\.answers\[0\]: found '.*' at 1; the context has 'he thing",
        ),
        (
            changed(lambda p: p["qas"][0]["answers"][0].update(answer_start="1")),
            'answer_start: found "1"; expected a whole number',
        ),
    ):
        with pytest.raises(ConfigError, match=words):
            Questions(path=write(content), test=0.0).load()
    assert Questions(path="a", vocabulary="what").read_inputs("a.txt") is None
    for settings, words in (
        ({"longest": 20}, r"longest: found 20; expected at least 36"),
        ({"level": "file"}, "tokenizer_path: goes with level = file"),
        ({"level": "bpe", "tokens": 200}, "tokens: found 200; expected at least 260"),
    ):
        with pytest.raises(ConfigError, match=words):
            config.parse(Questions, {"kind": "questions", "path": "a"} | settings)
    parts = {"task": {"kind": "span"}, "model": {"kind": "bert"}, "data": {"kind": "digits"}, "train": {"steps": 1}}
    with pytest.raises(ConfigError, match="span needs tokens x"):
        build(config.parse(Experiment, parts))


def test_a_model_learns_to_answer(write):
    """From a file to predictions: the loss falls, and inputs alone give what evaluation had beside types."""
    parts = {
        "task": {"kind": "span", "longest": 4},
        "model": {"kind": "bert", "head": "span", "layers": 1, "heads": 2, "width": 32},
        "data": {
            "kind": "questions",
            "path": write(squad(200)),
            "longest": 32,
            "longest_question": 6,
            "batch_size": 20,
        },
        "optimizer": {"peak_lr": 1e-2},
        "train": {"steps": 60, "log_every": 20},
        "evaluate": {"every": 30, "batch_size": 20},
    }
    built = build(config.parse(Experiment, parts))
    assert built.config.model.vocabulary == built.dataset.vocabulary
    compiled = compile(built)
    outcome = run(compiled.program, compiled.train_state, compiled.metrics, built.plan, best=Best())
    assert outcome.validation["loss"] < 2.0 < np.log(20)
    batch = built.feeds["validation"].batch(built.feeds["validation"].arrays, 0)
    found = built.task.predict(jax.jit(built.task.outputs_of)(outcome.train_state, batch["x"]))
    metrics = built.task.evaluate(outcome.train_state, batch, key=jax.random.key(0))
    exact = (found["start"] == batch["y"][:, 0]) & (found["end"] == batch["y"][:, 1])
    assert exact.mean() == pytest.approx(metrics["exact_match"].value)
    assert ((found["start"] == 0) | (np.take_along_axis(batch["types"], found["start"][:, None], 1)[:, 0] == 1)).all()
