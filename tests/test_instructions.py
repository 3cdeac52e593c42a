"""Instructions: what is learned of them and what is not, packed as padded, and a run from file to prediction."""

import dataclasses
import json
import tomllib

import jax
import numpy as np
import pytest

from functrain import config, trained
from functrain.building import build
from functrain.cli import main
from functrain.config import ConfigError, dump, parse
from functrain.data import Bucketed, Instructions, PythonDocstrings
from functrain.data.tokens import END
from functrain.experiment import Experiment
from functrain.models import GPT
from functrain.tasks import Language

PAIRS = [{"prompt": f"{a} + {b}?", "response": str(a + b)} for a in range(9) for b in range(1, 9)]


def lines(folder, rows, name="rows.jsonl"):
    """A file of objects, with an empty line in it."""
    (folder / name).write_text("\n".join([json.dumps(rows[0]), "", *map(json.dumps, rows[1:])]) + "\n")
    return str(folder / name)


def examples_of(source, arrays):
    """(all its text, the text that counts, whether its last target is the end) of each example, in the rows' order."""
    found = []
    for x, y, segments, mask in zip(*(arrays[name] for name in ("x", "y", "segments", "mask"))):
        for segment in range(1, segments.max() + 1):
            here = segments == segment
            targets = y[here & (mask == 1)]
            assert x[here][-1] == END or source.longer == "cut"
            found.append((source.decode(x[here]), source.decode(targets), targets[-1] == END))
    return found


@pytest.mark.parametrize("level", ["character", "byte", "bpe"])
@pytest.mark.parametrize("pack", [True, False])
def test_the_response_and_its_end_are_learned(tmp_path, level, pack):
    """Each example comes back whole, once; the mask counts its response and the end after it, and nothing else."""
    if level == "bpe":
        pytest.importorskip("tokenizers", reason="the extra text is not installed")
    made = Instructions(path=lines(tmp_path, PAIRS), level=level, tokens=260, pack=pack, block=24)
    data = made.load()
    source = dataclasses.replace(made, **data.found)
    found = [e for part in (data.train, data.validation, data.test) for e in examples_of(source, part)]
    assert sorted(found) == sorted((f"{p['prompt']}\n{p['response']}", p["response"], True) for p in PAIRS)
    assert (len(data.train["x"]) < 35) == pack
    assert data.inputs == (24,)
    assert max(part["x"].max() for part in (data.train, data.validation)) < data.classes
    assert parse(Instructions, tomllib.loads(dump(source))) == source
    again = source.load()
    assert all((again.train[name] == a).all() for name, a in data.train.items())


def test_templates_name_keys(tmp_path):
    """Any keys, in any order; text that looks like a template is text."""
    rows = [{"instruction": "Add {input}", "input": "{1 + 1}", "output": "2", "id": 7}]
    source = Instructions(
        path=lines(tmp_path, rows),
        level="byte",
        template="# {instruction}\n> {input}\n{{}}: ",
        response="output",
        validation=0.0,
        test=0.0,
    )
    assert examples_of(source, source.load().train) == [("# Add {input}\n> {1 + 1}\n{}: 2", "2", True)]
    for template in ("{prompt.__class__}", "{0}", "{}", "{prompt!r}", "{prompt:>9}", "{prompt"):
        with pytest.raises(ConfigError, match="template: found"):
            parse(Instructions, {"kind": "instructions", "path": "x", "template": template})


def test_conversations(tmp_path):
    """All that the assistant says is learned, each time with its end; nothing that others say."""
    talk = [("system", "Be brief."), ("user", "2 + 2?"), ("assistant", "4"), ("user", "Sure?"), ("assistant", "Yes.")]
    rows = [{"messages": [{"role": role, "content": content} for role, content in talk]}]
    source = Instructions(path=lines(tmp_path, rows), level="byte", block=99, validation=0.0, test=0.0)
    arrays = source.load().train
    whole = "system: Be brief.\nuser: 2 + 2?\nassistant: 4user: Sure?\nassistant: Yes."
    assert examples_of(source, arrays) == [(whole, "4Yes.", True)]
    assert (arrays["y"][arrays["mask"] == 1] == END).sum() == 2
    at = arrays["x"][0].tolist()
    assert source.decode(at[at.index(END) :]) == "user: Sure?\nassistant: Yes."


def test_longer_examples_are_refused_cut_or_dropped(tmp_path):
    rows = [
        {"prompt": "a", "response": "b"},
        {"prompt": "ab", "response": "cdefgh"},
        {"prompt": 9 * "x", "response": "y"},
    ]
    path = lines(tmp_path, rows)
    settings = {"path": path, "level": "byte", "block": 6, "pack": False, "validation": 0.0, "test": 0.0}
    with pytest.raises(ConfigError, match=r"line [34]: 1[02] tokens; expected at most data.block = 6, or data.longer"):
        Instructions(**settings).load()
    source = Instructions(**settings, longer="cut")
    found = {e[:2] for e in examples_of(source, source.load().train)}
    assert found == {("a\nb", "b"), ("ab\ncde", "cde")}  # of the third nothing to learn is left
    source = Instructions(**settings, longer="drop")
    assert [e[0] for e in examples_of(source, source.load().train)] == ["a\nb"]
    with pytest.raises(ConfigError, match=r"train: each example is longer than data\.block = 2"):
        Instructions(**settings | {"block": 2}, longer="cut").load()


@pytest.mark.usefixtures("quick")
def test_packed_rows_have_the_loss_of_padded_ones(tmp_path):
    """Of the whole training part, in float32, to 1e-6."""
    params, losses, model = None, [], None
    for pack in (True, False):
        source = Instructions(path=lines(tmp_path, PAIRS), level="character", pack=pack, block=16)
        data = source.load()
        model = model or GPT(inputs=(16,), outputs=data.classes, layers=1, heads=2, width=8)
        params = params or model.init(jax.random.key(0))[0]
        batch = source.prepare(jax.device_put(data.train))
        losses.append(Language(model=model).full_loss(params, {}, batch, key=None, train=True)[0])
    assert float(losses[0].count) == float(losses[1].count)
    assert float(losses[0].value) == pytest.approx(float(losses[1].value), rel=1e-6)


def settings(path, **data):
    return {
        "task": {"kind": "language"},
        "model": {"kind": "gpt", "layers": 1, "heads": 2, "width": 16},
        "data": {"kind": "instructions", "path": path, "block": 16, "batch_size": 8, "level": "character", **data},
        "optimizer": {"peak_lr": 1e-2},
        "train": {"steps": 12},
        "observe": {"tensorboard": False},
    }


def test_a_run_from_file_to_prediction(tmp_path, monkeypatch, capsys):
    """Trained, padded in two buckets, and given a prompt, which it sees in the template."""
    monkeypatch.chdir(tmp_path)
    lines(tmp_path, PAIRS)
    (tmp_path / "prompt.txt").write_text("1 + 1?\n")
    (tmp_path / "c.toml").write_text(config.tomli_w.dumps(settings("rows.jsonl", pack=False, buckets=2)))
    assert main(["train", "c.toml", "--out", "run"]) == 0
    capsys.readouterr()
    assert main(["predict", "run", "prompt.txt"]) == 0
    by_text = json.loads(capsys.readouterr().out)
    model = trained.load("run")
    logits = model(model.config.data.encode("1 + 1?\n")[None])
    assert by_text["token"] == int(logits[0, -1].argmax())


def test_padded_instructions_go_into_buckets(tmp_path):
    """And packed ones, which need none, stay as they are."""
    packed = build(parse(Experiment, settings(lines(tmp_path, PAIRS), batch_size=4)))
    assert type(packed.task) is Language
    built = build(parse(Experiment, settings(lines(tmp_path, PAIRS), pack=False, buckets=3)))
    feed = built.feeds["train"]
    assert isinstance(feed, Bucketed)
    assert set(feed.widths) == {"x", "y", "segments", "mask"}
    assert type(built.task).__name__ == "TrimmedLanguage"
    with pytest.raises(ConfigError, match="packed rows are all of one length"):
        parse(Experiment, settings("x", buckets=3))


def test_every_mistake_is_named(tmp_path):
    def refused(text, said, **given):
        (tmp_path / "bad.jsonl").write_text(text)
        with pytest.raises(ConfigError, match=said) as raised:
            Instructions(path=str(tmp_path / "bad.jsonl"), **given).load()
        assert "\n" not in str(raised.value)

    good = json.dumps(PAIRS[0])
    refused("", "no training examples")
    refused(f"{good}\n{{", r"bad.jsonl: line 2: not JSON")
    refused("[1]", "line 1: found list; expected an object")
    refused('{"prompt": "a"}', "line 1: no key 'response'; it has: prompt")
    refused('{"prompt": "a", "response": 4}', "line 1: response: found int; expected text")
    refused(good, "no key 'question'", template="{question}")
    for messages in ("4", "[4]", '[{"role": "user"}]', '[{"role": "user", "content": 4}]'):
        refused(f'{{"messages": {messages}}}', "line 1: messages: expected a list of")
    refused('{"messages": [{"role": "user", "content": "a"}]}', "none is the assistant's")
    refused(good, "not the text that the run began with", digest="0" * 64)
    with pytest.raises(ConfigError, match="turn: found"):
        parse(Instructions, {"kind": "instructions", "path": "x", "turn": "{content}"})


def test_docstrings_of_the_interpreters_library():
    """Functions and the first lines of their docstrings, each time the same."""
    source = PythonDocstrings(megabytes=2, block=128)
    data = source.load()
    texts = examples_of(source, data.train)
    assert len(texts) > 100
    assert all(text.startswith("def ") and text.endswith(said) and "\n" not in said for text, said, _ in texts)
    assert (source.load().train["x"] == data.train["x"]).all()
    assert np.mean(data.train["segments"] > 0) > 0.75
    with pytest.raises(ConfigError, match="template: found"):
        parse(PythonDocstrings, {"kind": "python_docstrings", "template": "{name}"})
