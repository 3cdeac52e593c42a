"""Text: tokens and back, windows and blocks, the language task."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functrain import config, trained
from functrain.building import build
from functrain.built import compile
from functrain.cli import main
from functrain.config import ConfigError
from functrain.data import PythonSource, TextFile, Windows, blocks
from functrain.data.tokens import BPE, Bytes, Characters
from functrain.experiment import Experiment
from functrain.models import GPT
from functrain.train.loop import Best, run

pytestmark = pytest.mark.usefixtures("quick")

TEXT = "Now is the winter of our discontent\nMade glorious summer by this sun of York;\n" * 40


@pytest.fixture
def corpus(tmp_path):
    """A small text file."""
    (tmp_path / "text.txt").write_text(TEXT + "ß€")
    return str(tmp_path / "text.txt")


def test_gpt_has_nanogpts_parameters():
    """GPT-2's 124M by nanoGPT's count (positions left out), and the small setting for a CPU."""
    for size, shape, wanted in (
        ((50257, 1024), {"layers": 12, "heads": 12, "width": 768}, 124_439_808),
        ((65, 64), {"layers": 4, "heads": 4, "width": 128, "bias": False}, 804_096),
    ):
        model = GPT(inputs=(size[1],), outputs=size[0], **shape)
        params = jax.eval_shape(model.init, jax.random.key(0))[0]
        assert sum(p.size for p in jax.tree.leaves(params)) == wanted


def test_a_gpt_starts_as_gpt_2_does():
    """Deviation 0.02, and 0.02 / sqrt(2 layers) for what ends a branch (Radford et al. 2019, section 2.3)."""
    params, _ = GPT(inputs=(16,), outputs=50, layers=8, heads=2, width=64, tied=False).init(jax.random.key(0))
    block, end = params["block3"], 0.02 / 4
    for kernel, deviation in (
        (block["attention"]["qkv"]["kernel"], 0.02),
        (block["attention"]["out"]["kernel"], end),
        (block["feed_forward"]["up"]["kernel"], 0.02),
        (block["feed_forward"]["down"]["kernel"], end),
        (params["tokens"]["table"], 0.02),
        (params["head"]["kernel"], 0.02),
    ):
        assert float(kernel.std()) == pytest.approx(deviation, rel=0.06)


def test_a_gpt_sees_no_token_ahead():
    """Logits up to a place do not change with the tokens after it, and do with those before."""
    model = GPT(inputs=(12,), outputs=7, layers=2, heads=2, width=8)
    params, _ = model.init(jax.random.key(0))
    x = jax.random.randint(jax.random.key(1), (2, 12), 0, 7)
    logits = model.apply(params, {}, x)[0]
    ahead = model.apply(params, {}, x.at[:, 8:].set((x[:, 8:] + 1) % 7))[0]
    assert (logits[:, :8] == ahead[:, :8]).all()
    behind = model.apply(params, {}, x.at[:, 0].set((x[:, 0] + 1) % 7))[0]
    assert (logits != behind).any(-1).all()


@pytest.mark.parametrize("text", ["hello", "naïve café €5\n\ttab", "\U0001f600", "a\r\nb"])
def test_codecs_give_the_text_back(text):
    """decode(encode(text)) is the text: characters, bytes, and byte-pair encoding where its library is installed."""
    codecs = [Characters.of(text), Bytes()]
    for codec in codecs:
        tokens = codec.encode(text)
        assert codec.decode(tokens) == text
        assert tokens.max() < codec.size


def test_byte_pair_encoding():
    """Trained on a text it is shorter than bytes, and gives any text back."""
    pytest.importorskip("tokenizers", reason="the extra text is not installed")
    codec = BPE.of(TEXT, 300)
    assert codec.size == 300
    assert len(codec.encode(TEXT)) < 0.6 * len(TEXT)
    for text in (TEXT, "naïve €5\n", "\U0001f600"):
        assert codec.decode(codec.encode(text)) == text


def test_a_vocabulary_is_that_of_the_training_text(corpus):
    """Characters that come later alone are U+FFFD; what was found is kept, and another text is refused."""
    source = TextFile(path=corpus, block=8, validation=0.1)
    data = source.load()
    assert data.found["vocabulary"] == "".join(sorted({*TEXT, "\ufffd"}))
    assert data.classes == len(data.found["vocabulary"])
    whole = np.concatenate([data.train["tokens"], data.validation["tokens"]])
    decoded = Characters(data.found["vocabulary"]).decode(whole)
    assert decoded == TEXT + "\ufffd\ufffd"
    kept = TextFile(path=corpus, block=8, validation=0.1, **data.found)
    assert (kept.load().train["tokens"] == data.train["tokens"]).all()
    assert kept.load().found["digest"] == data.found["digest"]
    Path(corpus).write_text(TEXT)
    with pytest.raises(ConfigError, match="not the text that the run began with"):
        kept.load()


def test_windows_show_every_start_once_an_epoch():
    """Over an epoch of the order each start comes once, and y is x moved by one."""
    tokens = jnp.arange(23)
    feed = Windows({"tokens": tokens}, block=5, size=6, seed=3)
    starts = []
    for step in range(3):  # 23 - 5 = 18 starts
        batch = feed.batch(feed.window(step, 1), jnp.int32(step))
        assert (batch["y"] == batch["x"] + 1).all()
        assert (batch["x"] == batch["x"][:, :1] + jnp.arange(5)).all()
        starts += batch["x"][:, 0].tolist()
    assert sorted(starts) == list(range(18))


@pytest.mark.parametrize("n", [6, 7, 11, 31])
def test_blocks_predict_every_token_once(n):
    """Every token but the first stands once, with mask 1, among the targets."""
    cut = blocks(np.arange(n), 5)
    counted = cut["y"][cut["mask"] == 1]
    assert counted.tolist() == list(range(1, n))
    assert (cut["x"][cut["mask"] == 1] == counted - 1).all()


def _experiment(corpus, **data):
    return config.parse(
        Experiment,
        {
            "task": {"kind": "language"},
            "model": {"kind": "gpt", "layers": 1, "heads": 2, "width": 16},
            "data": {"kind": "text", "path": corpus, "block": 8, "batch_size": 8, "test": 0.1, **data},
            "optimizer": {"peak_lr": 1e-2},
            "train": {"steps": 60, "log_every": 20},
            "evaluate": {"every": 20, "batch_size": 64},
        },
    )


def test_a_language_model_learns(corpus):
    """Perplexity falls below half of the vocabulary's size, and is exp of the loss; the vocabulary is in the config."""
    built = build(_experiment(corpus))
    assert built.config.data.vocabulary
    compiled = compile(built)
    outcome = run(compiled.program, compiled.train_state, compiled.metrics, built.plan, best=Best())
    found = outcome.validation
    assert found["perplexity"] == pytest.approx(np.exp(found["loss"]), rel=1e-5)
    assert found["perplexity"] < 0.5 * built.dataset.classes
    again = build(built.config)  # what was found is written out, and stays
    assert again.config == built.config


def test_python_source_is_here():
    """Four megabytes of the interpreter's library, each time the same."""
    data = PythonSource(block=16).load()
    assert 3e6 < len(data.train["tokens"]) < 4e6
    assert data.classes == 256
    assert (PythonSource(block=16).load().train["tokens"] == data.train["tokens"]).all()


def test_mistakes(corpus):
    """A text too short for its block; a task that wants another kind of data."""
    with pytest.raises(ConfigError, match=r"validation: \d+ tokens; expected above data.block"):
        TextFile(path=corpus, block=2000).load()
    with pytest.raises(ConfigError, match="heads"):
        GPT(heads=3, width=8).build()
    parts = {"task": {"kind": "language"}, "model": {"kind": "gpt"}, "data": {"kind": "digits"}, "train": {"steps": 1}}
    with pytest.raises(ConfigError, match="language needs a text"):
        build(config.parse(Experiment, parts))


def test_a_language_run_predicts_what_comes_next(corpus, tmp_path, monkeypatch, capsys):
    """From a text file and from numbers alike; longer texts by their last block."""
    monkeypatch.chdir(tmp_path)
    settings = config.to_data(_experiment(corpus)) | {"train": {"steps": 3}, "observe": {"tensorboard": False}}
    (tmp_path / "c.toml").write_text(config.tomli_w.dumps(settings))
    assert main(["train", "c.toml", "--out", "r"]) == 0
    (tmp_path / "prompt.txt").write_text("Now is the winter")
    source = trained.load("r").config.data
    (tmp_path / "prompt.jsonl").write_text(f"{source.encode('e winter').tolist()}\n")
    capsys.readouterr()
    assert main(["predict", "r", "prompt.txt"]) == 0
    by_text = json.loads(capsys.readouterr().out)
    assert main(["predict", "r", "prompt.jsonl"]) == 0
    assert json.loads(capsys.readouterr().out) == by_text
    assert 0 <= by_text["token"] < source.load().classes


def test_a_tokenizer_from_a_file(tmp_path):
    """A tokenizer.json gives the tokens that the library gives for the whole text, and is kept in the run's config."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed: pip install 'functrain[text]'")
    text = "To be, or not to be:\n\n  that is \nthe question.\n" * 40
    made = BPE.of(text, 300)
    # As those of the hub: with marks round a whole text, which are no part of it.
    theirs = tokenizers.Tokenizer.from_str(made.definition)
    theirs.add_special_tokens(["<s>"])
    theirs.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", theirs.token_to_id("<s>"))]
    )
    theirs.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "text.txt").write_text(text)
    source = TextFile(
        path=str(tmp_path / "text.txt"),
        level="bpe",
        tokenizer=str(tmp_path / "tokenizer.json"),
        validation=0.0,
        block=8,
    )
    dataset = source.load()
    assert dataset.train["tokens"].tolist() == theirs.encode(text, add_special_tokens=False).ids
    assert dataset.classes == theirs.get_vocab_size()
    assert dataset.found["tokenizer"] == (tmp_path / "tokenizer.json").read_text()
    with pytest.raises(ConfigError, match=r"data.tokenizer: no file"):
        TextFile(path=str(tmp_path / "text.txt"), level="bpe", tokenizer="nowhere.json").load()
