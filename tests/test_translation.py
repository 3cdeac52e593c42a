"""Translation: parallel text as tokens, the task, BLEU and chrF, and a run that translates."""

import dataclasses
import gzip
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functrain import config, trained
from functrain.building import build
from functrain.built import compile
from functrain.cli import main
from functrain.config import ConfigError
from functrain.data import InOrder, ParallelText
from functrain.data.tokens import BEGIN, END, Sentences
from functrain.experiment import Experiment
from functrain.metrics import read, scalars, texts_of
from functrain.metrics.text import scores
from functrain.models import Transformer
from functrain.optim import Learner
from functrain.tasks import Translation
from functrain.train import state
from functrain.train.evaluate import make_evaluate
from functrain.train.loop import Best, run

pytest.importorskip("tokenizers", reason="the extra text is not installed")
sacrebleu = pytest.importorskip("sacrebleu", reason="the extra scores is not installed")

pytestmark = pytest.mark.usefixtures("quick")

NOUNS = {"dog": "Hund", "man": "Mann", "boy": "Junge", "cat": "Kater", "ball": "Ball"}
VERBS = {"sees": "sieht", "likes": "mag", "hears": "hört"}


def pair(rng, twice=False):
    """A sentence of a small language and its translation, whose verb stands last."""
    a, b = rng.choice(list(NOUNS), 2)
    v = rng.choice(list(VERBS))
    first = f"The {a} {v} the {b}.", f"Der {NOUNS[a]} den {NOUNS[b]} {VERBS[v]}."
    return tuple(" ".join(two) for two in zip(first, pair(rng))) if twice else first


@pytest.fixture
def folder(tmp_path):
    """Files of pairs: gzipped ones to train on, plain ones to choose by and to test, some twice as long."""
    rng = np.random.default_rng(0)
    for name, n in (("train", 60), ("val", 13), ("test_2016_flickr", 7)):
        write(tmp_path, name, [pair(rng, twice=i % 5 == 0) for i in range(n)], zipped=name == "train")
    return tmp_path


def write(folder, name, pairs, zipped=False):
    for language, lines in zip(("en", "de"), zip(*pairs)):
        data = "".join(line + "\n" for line in lines).encode()
        path = folder / f"{name}.{language}"
        if zipped:
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(data))
        else:
            path.write_bytes(data)


def test_sentences_are_begun_ended_and_padded(folder):
    """x ends with END, y is begun and ended, 0 comes after; the tokens give the lines back."""
    source = ParallelText(path=str(folder), tokens=300)
    data = source.load()
    source = dataclasses.replace(source, **data.found)
    assert data.classes == 300
    assert len(data.train["x"]) == 60
    for name, split in (("train", data.train), ("val", data.validation), ("test_2016_flickr", data.test)):
        for language, rows in (("en", split["x"]), ("de", split["y"])):
            path = folder / f"{name}.{language}"
            zipped = path.with_name(path.name + ".gz")
            text = path.read_text() if path.exists() else gzip.decompress(zipped.read_bytes()).decode()
            assert rows.dtype == np.int32
            assert [source.decode(row) for row in rows] == text.splitlines()
            ends = (rows != 0).sum(1)
            assert (rows[np.arange(len(rows)), ends - 1] == END).all()
            assert ((rows != 0) == (np.arange(rows.shape[1]) < ends[:, None])).all()
            assert (rows == END).sum() == len(rows)
            assert ends.max() == rows.shape[1]
        assert (split["y"][:, 0] == BEGIN).all()
        assert (split["y"] == BEGIN).sum() == len(split["y"])
    np.testing.assert_array_equal(source.encode([source.decode(row) for row in data.test["x"]]), data.test["x"])
    again = source.load()
    assert again.found == data.found
    np.testing.assert_array_equal(again.train["y"], data.train["y"])


def test_what_is_left_out_of_training(folder):
    """Pairs with more tokens than `longest` on a side, and those with an empty one; never of the other splits."""
    whole = ParallelText(path=str(folder), tokens=300).load()
    most = np.median((whole.train["y"] != 0).sum(1))
    cut = ParallelText(path=str(folder), tokens=300, longest=int(most)).load()
    assert cut.found == whole.found
    n = np.maximum((whole.train["x"] != 0).sum(1), (whole.train["y"] != 0).sum(1) - 1)
    assert len(cut.train["x"]) == (n <= most).sum() < 60
    assert cut.train["y"].shape[1] <= most + 1
    np.testing.assert_array_equal(cut.validation["y"], whole.validation["y"])
    write(folder, "val", [("", "Nichts."), ("A", "Ein"), ("B", "")])
    write(folder, "other", [("", "Nichts."), ("A", "Ein"), ("B", "")])
    data = ParallelText(path=str(folder), train="other", tokens=260).load()
    assert len(data.train["x"]) == 1
    assert len(data.validation["x"]) == 3
    write(folder, "other", [("abcd", "a"), ("abc", "abc"), ("a", "abcd")])  # a token for each letter
    data = ParallelText(path=str(folder), train="other", tokens=260, longest=4).load()
    assert len(data.train["x"]) == 1


def test_buckets_cut_no_token_off(folder):
    """A step's pairs fit into the width of their bucket, and most into one narrower than the longest."""
    source = ParallelText(path=str(folder), tokens=300, buckets=2, batch_size=6)
    data = source.load()
    feed, narrow = source.feed(data, jax.device_put(data.train), 0), 0
    for step in range(10):
        batch = feed.batch(feed.window(step, 1), jnp.int32(step))
        for name in ("x", "y"):
            width = feed.widths[name][int(batch["bucket"])]
            assert (batch[name][:, width:] == 0).all()
            narrow += width < data.train["y"].shape[1]
    assert narrow >= 14


def test_only_a_line_feed_ends_a_line(folder):
    """Not the separators that Unicode has besides; a mark of byte order and blanks are no text; "<end>" is no end."""
    lines = [("\ufeffA\u2028b <end> c  ", "Ein\x85e"), ("x\r", "y\t")]
    write(folder, "val", lines)
    source = ParallelText(path=str(folder), tokens=300, lower=True)
    data = source.load()
    source = dataclasses.replace(source, **data.found)
    found = [[source.decode(row) for row in rows] for rows in (data.validation["x"], data.validation["y"])]
    assert found == [["a\u2028b <end> c", "x"], ["ein\x85e", "y"]]
    codec = Sentences(data.found["tokenizer"])
    assert codec.decode([BEGIN, *codec.rows(["the"])[0], 0, 0, *codec.rows(["man"])[0]]) == "the"
    assert codec.decode([5, 0, 1, 2]) == codec.decode([5])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "val.de").unlink(), r"data\.path: no file .*val\.de\.gz or .*val\.de"),
        (lambda f: (f / "val.de").write_text("Ein\n"), r"val\.en: 13 lines; val\.de has 1; expected as many"),
        (lambda f: (f / "val.de").write_text("\n \n"), r"val\.de: holds no text"),
        (lambda f: (f / "val.de").write_bytes(b"Ein \xff"), r"val\.de: not UTF-8 text \(byte 4\)"),
        (lambda f: (f / "train.de.gz").write_bytes(b"Ein"), r"train\.de\.gz: cannot be read: Not a gzipped file"),
        (lambda f: (f / "train.de.gz").write_bytes((f / "train.de.gz").read_bytes()[:50]), "cannot be read: Compr"),
    ],
)
def test_mistakes_in_files(folder, change, message):
    """One line that says which file, and what is wrong with it."""
    change(folder)
    with pytest.raises(ConfigError, match=message):
        ParallelText(path=str(folder), tokens=300).load()


def test_mistakes_in_settings(folder):
    """The key, what was found, what would be right."""
    path = str(folder)
    with pytest.raises(ConfigError, match=r"data\.path: no folder"):
        ParallelText(path=path + "/none").load()
    with pytest.raises(ConfigError, match=r"data\.tokens: found 256; expected at least 260"):
        ParallelText(path=path, tokens=256).load()
    with pytest.raises(ConfigError, match=r"data\.longest: found 2; no training pair is so short"):
        ParallelText(path=path, tokens=300, longest=2).load()
    with pytest.raises(ConfigError, match="not the text that the run began with"):
        ParallelText(path=path, tokens=300, digest="0").load()
    for settings, message in (
        ({"data": {"kind": "digits"}}, "translation needs pairs of sentences"),
        ({"model": {"kind": "mlp"}}, "mlp takes|translation needs an encoder and a decoder"),
        ({"model": {"kind": "transformer", "width": 8, "heads": 2, "positions": "learned"}}, r"model\.longest: room"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(experiment(folder, **settings))
    write(folder, "val", [("The dog. " * 30, "Der Hund.")])
    learned = {"kind": "transformer", "width": 8, "heads": 2, "positions": "learned", "longest": 60}
    with pytest.raises(ConfigError, match=r"model\.longest: room for 60 tokens; found a source of \d+"):
        build(experiment(folder, model=learned))


def test_the_library_of_scores_is_missed_at_once(folder, monkeypatch):
    """Before a step is taken; and it is not needed where nothing is decoded."""
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ConfigError, match=r"pip install 'functrain\[scores\]'"):
        build(experiment(folder))
    data = ParallelText(path=str(folder), tokens=300).load()
    assert Translation(decode="none").sized(data).longest == data.validation["y"].shape[1] - 1


FOUND = ["Der Hund den Mann sieht.", "Ein Kater, der mag", "", 'Er sagt: "Ja!"']
WANTED = ["Der Hund den Jungen sieht.", "Ein Kater, der den Ball mag.", "Nichts.", 'Er sagte: "Ja!"']


def test_scores_are_sacrebleus():
    """Of token rows, whatever stands after their end, as of the texts given to sacrebleu itself."""
    codec = Sentences.of("\n".join(FOUND + WANTED), 300)
    rows = [np.zeros((4, 40), np.int32), np.zeros((4, 50), np.int32)]
    for to, texts, before in ((rows[0], FOUND, []), (rows[1], WANTED, [BEGIN])):
        for row, tokens in zip(to, codec.rows(texts)):
            row[: len(before) + len(tokens)] = before + tokens
    rows[0][0, -1] = 77
    numbers = texts_of(codec)(*rows, mask=np.ones(4)).numbers()
    assert numbers["bleu"] == sacrebleu.corpus_bleu(FOUND, [WANTED]).score > 10
    assert numbers["chrf"] == sacrebleu.corpus_chrf(FOUND, [WANTED]).score > 10
    assert texts_of(Sentences(codec.definition)) is texts_of(codec)
    # 5 of 6 words, 3 of 5 pairs, 2 of 4 threes, 1 of 3 fours: Papineni et al. 2002, section 2.3
    by_hand = 100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert scores(["the cat sat on the mat"], ["the cat sat on a mat"])["bleu"] == pytest.approx(by_hand)


def small_task(data, **settings):
    model = Transformer(encoder_layers=1, decoder_layers=1, heads=2, width=16, dropout=0.0)
    task = Translation(**settings).sized(data)
    return task.assemble(model.sized(data.inputs, task.outputs(data)).build(), lambda name: Learner())


def test_the_loss_is_that_of_the_next_tokens(folder):
    """The mean of -log p over the tokens after the begin, end included and padding not; smoothed in training alone."""
    data = ParallelText(path=str(folder), tokens=270).load()
    task = small_task(data, label_smoothing=0.1, decode="none")
    train_state = state.init(task, jax.random.key(0))
    params = train_state.players["model"].params
    part = data.validation
    logits = jax.jit(task.model.apply)(params, {}, part["x"], part["y"][:, :-1])[0]
    log_p, next_ones = np.asarray(jax.nn.log_softmax(logits), np.float64), part["y"][:, 1:]
    total, smooth, right, count = 0.0, 0.0, 0, 0
    for i, j in zip(*np.nonzero(next_ones)):
        total -= log_p[i, j, next_ones[i, j]]
        smooth -= 0.9 * log_p[i, j, next_ones[i, j]] + 0.1 * log_p[i, j].mean()
        right += int(log_p[i, j].argmax() == next_ones[i, j])
        count += 1
    feed = InOrder(jax.device_put(part), 5)
    found = scalars(read(make_evaluate(task, feed)(train_state)))
    assert found["loss"] == pytest.approx(total / count, rel=1e-5)
    assert found["perplexity"] == pytest.approx(np.exp(total / count), rel=1e-4)
    assert found["accuracy"] == pytest.approx(right / count, rel=1e-5)
    assert set(found) == {"loss", "perplexity", "accuracy"}
    loss, metrics = task.loss(logits, part, train=True)
    assert loss.value == pytest.approx(smooth / count, rel=1e-5)
    assert metrics == {}
    weighed = task.loss(logits, part | {"weight": jnp.arange(13.0) > 11}, train=False)[0]
    alone = task.loss(logits[12:], {"y": part["y"][12:]}, train=False)[0]
    assert weighed.value == pytest.approx(alone.value, rel=1e-5)


def experiment(folder, **settings):
    given = {
        "task": {"kind": "translation"},
        "model": {"kind": "transformer", "encoder_layers": 1, "decoder_layers": 1, "heads": 2, "width": 32,
                  "dropout": 0.0, "norm_first": True},
        "data": {"kind": "parallel_text", "path": str(folder), "tokens": 300, "batch_size": 20},
        "optimizer": {"peak_lr": 1e-2, "weight_decay": 0.0},
        "train": {"steps": 90, "log_every": 30},
        "evaluate": {"every": 90, "batch_size": 5, "monitor": "bleu", "mode": "max"},
    }  # fmt: skip
    return config.parse(Experiment, given | settings)


def test_it_learns_to_translate(folder):
    """BLEU on unseen sentences: that of the tokens which the forward pass gives one by one, and of the beam's."""
    built = build(experiment(folder))
    compiled = compile(built)
    outcome = run(compiled.program, compiled.train_state, compiled.metrics, built.plan, best=Best())
    found, ts, task = outcome.validation, outcome.train_state, built.task
    assert found["bleu"] > 30

    data, params = built.dataset, ts.players["model"].params
    x, y = data.validation["x"], np.full((13, 1 + task.longest), 0, np.int32)
    y[:, 0], apply = BEGIN, jax.jit(task.model.apply)
    for i in range(task.longest):  # no cache: all tokens anew at each place
        y[:, i + 1] = apply(params, {}, x, y[:, :-1])[0][:, i].argmax(-1)
    decode = Sentences(task.tokenizer).decode
    hypotheses, references = ([decode(row) for row in rows] for rows in (y, data.validation["y"]))
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(hypotheses, [references]).score)
    assert found["chrf"] == pytest.approx(sacrebleu.corpus_chrf(hypotheses, [references]).score)

    beam = dataclasses.replace(task, decode="beam", beams=3)
    translated = jax.jit(beam.outputs_of)(ts, x)["tokens"]
    again = [decode(row) for row in translated]
    assert sacrebleu.corpus_bleu(again, [references]).score > 30
    again = build(built.config)  # what was found is written out, and stays
    assert again.config == built.config


def test_a_run_translates_a_file(folder, tmp_path, monkeypatch, capsys):
    """A line for each of the file's, without the data; longer sentences than those of training too."""
    monkeypatch.chdir(tmp_path)
    less = {"train": {"steps": 2}, "observe": {"tensorboard": False}, "evaluate": {"monitor": "loss"}}
    settings = config.to_data(experiment(folder, task={"kind": "translation", "decode": "none"})) | less
    (tmp_path / "c.toml").write_text(config.tomli_w.dumps(settings))
    assert main(["train", "c.toml", "--out", "r"]) == 0
    for path in [*tmp_path.glob("*.gz"), *tmp_path.glob("val.*"), *tmp_path.glob("test*")]:
        path.unlink()
    (tmp_path / "lines.txt").write_text("The dog sees the man.\n\n" + "The cat. " * 40 + "\n")
    capsys.readouterr()
    assert main(["predict", "r", "lines.txt"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 3
    model = trained.load("r")
    x = model.config.data.read_inputs("lines.txt")
    for row, tokens in zip(rows, model.predict(x)["tokens"]):
        assert row in ({"tokens": tokens.tolist()}, model.task.readable({"tokens": tokens.tolist()}))
        assert isinstance(model.task.readable({"tokens": tokens.tolist()})["translation"], str)
    assert model.config.data.read_inputs("lines.npy") is None
    (tmp_path / "none.txt").write_text("\n")
    for name, message in (("none.txt", "holds no text"), ("missing.txt", "No such file")):
        with pytest.raises(ConfigError, match=message):
            model.config.data.read_inputs(name)
