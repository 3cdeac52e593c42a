"""Labelled sentences: words, files, splits, what is found, new sentences."""

import dataclasses
import json
import zipfile

import numpy as np
import pytest

from functrain import config
from functrain.cli import main
from functrain.config import ConfigError
from functrain.data.sentences import LabelledText, Polarity, words

GOOD = ["a fine film", "fine , fine acting !", "a film with heart", "truly fine"]
BAD = ["a dull film", "dull and long", "it isn't good", "dull !"]


@pytest.fixture
def reviews(tmp_path, monkeypatch):
    """The two archives, small."""
    folder = tmp_path / "nltk-sentiment"
    folder.mkdir()
    with zipfile.ZipFile(folder / "sentence_polarity.zip", "w") as archive:
        archive.writestr("sentence_polarity/rt-polarity.neg", "".join(f"{line} \n" for line in BAD * 10))
        archive.writestr("sentence_polarity/rt-polarity.pos", "".join(f"{line} \n" for line in GOOD * 10))
    with zipfile.ZipFile(folder / "subjectivity.zip", "w") as archive:
        archive.writestr("subjectivity/plot.tok.gt9.5000", "he leaves\r\nshe stays\r\n" * 5)
        archive.writestr("subjectivity/quote.tok.gt9.5000", "clich\u00e9s pile up\r\n" * 10)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("I've SEEN it; they'd say we'll -- you're!", "i 've seen it they 'd say we 'll you 're !"),
        ("(a b) [c] \u00a35.50 na\u00efve_x", "( a b ) c 5 50 na\u00efve x"),
        ("  \t", ""),
    ],
)
def test_words(text, wanted):
    """Endings and marks stand alone, the rest of what is no letter or digit is a space."""
    assert words(text) == wanted.split()


def test_film_reviews(reviews):
    """Labels by file, a split at random, words by how often the training part has them, the longest of it."""
    source = Polarity()
    data = source.load()
    assert (data.classes, data.vocabulary) == (2, 2 + len(data.found["vocabulary"].split()))
    assert [len(data.split(s)["y"]) for s in ("train", "validation", "test")] == [64, 8, 8]
    assert data.train["x"].dtype == np.int32
    assert data.inputs == (data.found["longest"],) == (5,)
    settled = dataclasses.replace(source, **data.found)
    for split in ("train", "test"):
        for x, y in zip(data.split(split)["x"], data.split(split)["y"]):
            assert settled.decode(x) in [" ".join(words(t)) for t in (GOOD if y else BAD)]
    texts = [settled.decode(x).split() for x in data.train["x"]]
    counts = [sum(text.count(word) for text in texts) for word in data.found["vocabulary"].split()]
    assert counts == sorted(counts, reverse=True)
    again = settled.load()
    assert (again.train["x"] == data.train["x"]).all()
    assert again.found == data.found
    plots = Polarity(which="subjectivity", test=0.0).load()
    assert (plots.classes, len(plots.train["y"]), plots.train["y"].sum() + plots.validation["y"].sum()) == (2, 18, 10)


def test_folds_see_no_test_sentence(reviews):
    """Each sentence is in one fold's test, and the words are those of that fold's training part."""
    (reviews / "own.csv").write_text("text,label\n" + "".join(f"word{i} x,{i % 2}\n" for i in range(9)))
    seen = []
    for fold in range(3):
        source = LabelledText(path="own.csv", folds=3, fold=fold, validation=0.0)
        data = source.load()
        assert data.vocabulary == 2 + 6 + 1
        assert (data.test["x"][:, 0] == 1).all()  # unknown
        assert (data.test["x"][:, 1] == 2).all()  # the most frequent
        seen += data.test["y"].tolist()
    assert sorted(seen) == [0] * 5 + [1] * 4


def test_most_least_and_longest(reviews):
    """Rare words are unknown, sentences are cut; new sentences too."""
    data = Polarity(most=3, longest=2).load()
    assert data.vocabulary == 5
    assert data.inputs == (2,)
    assert Polarity(least=1000).load().vocabulary == 2
    source = Polarity(vocabulary="dull film", longest=3)
    assert source.encode(["", "a dull dull film"]).tolist() == [[0, 0, 0], [1, 2, 2]]


def test_byte_pairs(reviews):
    """With numbers from 1 on, and any text back."""
    pytest.importorskip("tokenizers", reason="the extra text is not installed")
    source = Polarity(level="bpe", tokens=260, longest=40)
    data = source.load()
    assert data.train["x"].max() < data.vocabulary == 261
    settled = dataclasses.replace(source, **data.found)
    text = "na\u00efve \u20ac5, dull!"
    x = settled.encode([text, ""])
    assert settled.decode(x[0]) == text
    assert not x[1].any()
    with pytest.raises(ConfigError, match=r"data.tokens: found 9; expected at least 256"):
        Polarity(level="bpe", tokens=9).load()


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_own_files(tmp_path, monkeypatch, kind):
    """The same sentences from each format; classes in the order of their names, or of their numbers."""
    monkeypatch.chdir(tmp_path)
    rows = [(f'he said "{i}", so', label) for i, label in enumerate(["10", "9", "9", "10", "9"])]
    lines = {
        "csv": ["no,text,label"] + [f'{i},"{t.replace(chr(34), chr(34) * 2)}",{y}' for i, (t, y) in enumerate(rows)],
        "tsv": ["label\ttext"] + [f"{y}\t{t}" for t, y in rows],
        "jsonl": [json.dumps({"text": t, "label": int(y)}) for t, y in rows],
    }[kind]
    (tmp_path / f"a.{kind}").write_text("\n".join(lines) + "\n\n")
    (tmp_path / f"b.{kind}").write_text("\n".join(lines[:3]) + "\n")
    files = {"path": f"a.{kind}", "validation_path": f"b.{kind}", "test_path": f"b.{kind}"}
    source = LabelledText(**files)
    data = source.load()
    assert data.found["class_names"] == ("9", "10")
    assert sorted(data.train["y"].tolist()) == [0, 0, 0, 1, 1]
    assert len(data.validation["y"]) == len(data.test["y"]) == len(lines[:3]) - (kind != "jsonl")
    settled = dataclasses.replace(source, **data.found)
    assert settled.decode(data.test["x"][0]) == "he said 0 , so"
    assert config.parse(LabelledText, config.to_data(settled)) == settled
    named = LabelledText(**files, class_names=("10", "9")).load()
    assert (named.test["y"] == 1 - data.test["y"]).all()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "text,y\nhi,1\n", r"a.csv: line 1: no column 'label'; it has: text, y"),
        ("a.csv", "text,label\nhi,1\nho,1,2\n", r"a.csv: line 3: 3 cells; expected 2"),
        ("a.csv", "text,label\nhi,1\nho,\n", r"a.csv: line 3: column 'label': missing"),
        ("a.csv", 'text,label\n"hi,1\n', r"a.csv: line 2: unexpected end of data"),
        ("a.csv", "text,label\n", r"a.csv: no sentences"),
        ("a.csv", "text,label\n...,1\n;,2\n", r"no training sentence holds a word"),
        ("a.txt", "hi\n", r"a.txt: expected a file .csv, .tsv or .jsonl"),
        (
            "a.jsonl",
            '{"text": "hi", "label": 1}\n{"text": "ho"}\n',
            r"line 2: found .*; expected an object with 'text'",
        ),
        ("a.jsonl", '{"text": 5, "label": 1}\n', r"line 1: 'text': found 5; expected text"),
        ("a.jsonl", '{"text": "a", "label": 0.5}\n', r"line 1: 'label': found 0.5; expected text or a whole number"),
        ("a.jsonl", "text\n", r"line 1: not JSON"),
        ("a.csv", b"text,label\n\xff,1\n", r"a.csv: not UTF-8 text \(byte 11\)"),
    ],
)
def test_mistakes_in_files(tmp_path, monkeypatch, name, text, message):
    """One line that says where and what."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=message):
        LabelledText(path=name, validation=0.0, test=0.0).load()


def test_mistakes_in_labels_and_archives(reviews):
    """A class that the first file has not; an archive that is none, or another."""
    (reviews / "a.csv").write_text("text,label\nhi,yes\nho,no\n")
    (reviews / "b.csv").write_text("text,label\nhi,yes\nho,maybe\n")
    with pytest.raises(ConfigError, match=r"b.csv: line 3: found maybe; expected one of the classes: no, yes"):
        LabelledText(path="a.csv", test_path="b.csv", validation=0.0).load()
    with pytest.raises(ConfigError, match=r"data.path: no file"):
        LabelledText(path="c.csv").load()
    with pytest.raises(ValueError, match="it is the text"):
        LabelledText(path="a.csv", label="text")
    (reviews / "nltk-sentiment" / "subjectivity.zip").write_bytes(b"PK no archive")
    with pytest.raises(ConfigError, match=r"subjectivity.zip: cannot be read"):
        Polarity(which="subjectivity").load()
    with zipfile.ZipFile(reviews / "nltk-sentiment" / "sentence_polarity.zip", "w") as archive:
        archive.writestr("other", "")
    with pytest.raises(ConfigError, match=r"holds no file sentence_polarity/rt-polarity.neg"):
        Polarity().load()


def test_a_run_predicts_sentences(reviews, capsys):
    """Trained by the command, it tells the class of each line of a file; the vocabulary is in its config."""
    settings = {
        "task": {"kind": "classification"},
        "model": {"kind": "text_cnn", "embedding": 8, "maps": 4, "widths": [1, 2], "dropout": 0.0},
        "data": {"kind": "sentence_polarity", "batch_size": 16},
        "optimizer": {"peak_lr": 3e-2},
        "train": {"steps": 60},
        "observe": {"tensorboard": False},
    }
    (reviews / "c.toml").write_text(config.tomli_w.dumps(settings))
    assert main(["train", "c.toml", "--out", "r"]) == 0
    (reviews / "new.txt").write_text("so fine a heart\nhow dull , how long\n")
    capsys.readouterr()
    assert main(["predict", "r", "new.txt"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["class"] for row in found] == [1, 0]
    written = config.read(reviews / "r" / "config.toml").data
    assert written["model"]["vocabulary"] == 2 + len(written["data"]["vocabulary"].split())
    assert main(["predict", "r", "c.toml"]) == 2
