"""Token files: the batches of memory, bit for bit, with the file left where it is."""

import contextlib
import dataclasses
import json
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import same

from functrain import config
from functrain.building import build
from functrain.built import compile
from functrain.config import LARGEST, ConfigError
from functrain.data import TokenFile, Windows, blocks
from functrain.data.token_file import write
from functrain.data.tokens import BPE, Bytes, Characters
from functrain.experiment import Experiment
from functrain.train.loop import Best, run

TEXT = "Now is the winter of our discontent\nMade glorious summer by this sun of York;\n" * 40


@pytest.fixture
def made(tmp_path):
    """The same text as a file of text and as one of tokens."""
    (tmp_path / "text.txt").write_text(TEXT)
    write(tmp_path / "text.bin", TEXT.splitlines(keepends=True), Bytes())
    return tmp_path


def numbers(path, tokens, dtype="<u2"):
    np.asarray(tokens).astype(dtype).tofile(path)
    return str(path)


def test_text_comes_back(tmp_path):
    """Characters, bytes and byte-pair encoding, written in pieces; what they stand for is beside them."""
    codecs = [Characters.of(TEXT), Bytes()]
    with contextlib.suppress(ConfigError):  # the extra text is not installed
        codecs.append(BPE.of(TEXT, 300))
    for codec in codecs:
        path = tmp_path / "text.bin"
        count = write(path, ["", *TEXT.splitlines(keepends=True)], codec)
        source = TokenFile(path=str(path), block=8, test=0.1, validation=0.1)
        data = source.load()
        parts = [part["tokens"] for part in (data.train, data.validation, data.test)]
        assert count == sum(map(len, parts)) == len(codec.encode(TEXT))
        assert data.classes == codec.size
        kept = TokenFile(path=str(path), **data.found)
        assert kept.decode(np.concatenate(parts)) == TEXT
        assert kept.decode(kept.encode("winter")) == "winter"
        assert data.found["dtype"] == "uint16"
    with pytest.raises(ValueError, match="70000 tokens do not fit into uint16"):
        write(path, [], Bytes(size=70000), "uint16")


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_batches_are_those_of_memory_bitwise(tmp_path, dtype):
    """For each step of windows of several lengths, and another seed has others."""
    tokens = np.random.default_rng(0).integers(0, 500, 301)
    path = numbers(tmp_path / "t.bin", tokens, np.dtype(dtype).newbyteorder("<"))
    source = TokenFile(path=path, dtype=dtype, classes=500, block=7, batch_size=6, validation=0.0)
    data = source.load()
    for seed in (0, 3):
        memory = Windows({"tokens": jnp.asarray(tokens)}, 7, 6, seed, source.prepare)
        stream = dataclasses.replace(source.feed(data, data.train, seed), longest=30)
        of_stream, of_memory = jax.jit(stream.batch), jax.jit(memory.batch)
        for at, count in ((0, 30), (30, 7), (37, 1), (95, 20)):  # an epoch of starts has 49 steps
            window = stream.window(at, count)
            for step in np.arange(at, at + count, dtype=np.int32):
                ours, theirs = of_stream(window, step), of_memory(memory.window(step, 1), step)
                assert same(ours, theirs)
                assert ours["x"].dtype == jnp.int32


def experiment(data, **settings):
    return config.parse(
        Experiment,
        {
            "task": {"kind": "language"},
            "model": {"kind": "gpt", "layers": 1, "heads": 2, "width": 8},
            "data": {"block": 8, "batch_size": 8, "validation": 0.1, "test": 0.1, **data},
            "optimizer": {"peak_lr": 1e-2},
            "train": {"steps": 40, "log_every": 20, "chunk": 7, **settings},
            "evaluate": {"every": 20, "batch_size": 64},
        },
    )


def trained(built, compiled):
    return run(compiled.program, compiled.train_state, compiled.metrics, built.plan, best=Best())


@pytest.mark.usefixtures("quick")
def test_a_run_is_that_of_the_text_in_memory_and_resumes(made):
    """Bitwise the same state and evaluation; stopped after 23 steps it goes on to the same state."""
    memory = build(experiment({"kind": "text", "path": str(made / "text.txt"), "level": "byte"}))
    whole = trained(memory, compile(memory))
    streamed = {"kind": "token_file", "path": str(made / "text.bin"), "evaluated": 10**6}
    built = build(experiment(streamed))
    assert built.feeds["train"].longest == 7
    assert built.config.data.classes == 256
    compiled = compile(built)
    first = compiled.program.members(jax.tree.map(jnp.copy, compiled.train_state))[0]
    ours = trained(built, compiled)
    assert same(ours.train_state, whole.train_state)
    assert ours.validation == whole.validation

    plan = built.plan
    half = run(compiled.program, first, compiled.program.fresh(), dataclasses.replace(plan, steps=23), best=Best())
    resumed = run(compiled.program, half.train_state, compiled.program.fresh(), plan, best=Best())
    assert same(resumed.train_state, whole.train_state)
    assert build(built.config).config == built.config


def test_a_split_is_evaluated_by_blocks_spread_over_it(tmp_path):
    """All of its blocks where they are few enough, else so many, the last ones among them."""
    tokens = np.arange(1003)
    whole = blocks(tokens, 10)
    assert all((a == blocks(tokens, 10, 500)[name]).all() for name, a in whole.items())
    some = blocks(tokens, 10, 7)
    assert some["x"][:, 0].tolist() == [10 * (101 * i // 7) for i in range(7)]
    assert all((a == whole[name][some["x"][:, 0] // 10]).all() for name, a in some.items())

    path = numbers(tmp_path / "t.bin", tokens % 50)
    built = build(experiment({"kind": "token_file", "path": path, "classes": 50, "evaluated": 5}))
    assert built.feeds["validation"].arrays["x"].shape == (5, 8)


def test_validation_may_be_a_file_of_its_own(tmp_path):
    paths = {"path": numbers(tmp_path / "a.bin", np.arange(90))}
    paths["validation_path"] = numbers(tmp_path / "b.bin", np.arange(30))
    data = TokenFile(**paths, block=4, validation=0.5).load()
    assert (len(data.train["tokens"]), len(data.validation["tokens"]), data.test) == (90, 30, {})
    assert data.classes == 50257


def resident():
    """Bytes of memory that this process holds."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_stays_flat(tmp_path):
    """Of a file of 2 GB, 250 MB of whose pages are touched, nothing stays in memory."""
    path = tmp_path / "large.bin"
    with open(path, "wb") as file:
        file.truncate(2 * 10**9)  # holes: no disk is used
    source = TokenFile(path=str(path), block=64, batch_size=100)
    data = source.load()
    stream = source.feed(data, data.train, 0)
    held = blocks(data.validation["tokens"], 64, source.evaluated)
    assert held["x"].shape == (1024, 64)
    jax.block_until_ready(stream.window(0, 1))
    before, most = resident(), 0
    tracemalloc.start()
    for step in range(40):
        stream.window(step, 1)
        most = max(most, resident())
    python = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most - before < 60e6
    assert python < 5e6


def test_files_of_more_than_2_31_tokens(tmp_path):
    """Every third place is a start; the last block can be had too."""
    path = tmp_path / "huge.bin"
    n = 5 * 10**9
    with open(path, "wb") as file:
        file.truncate(2 * n)
        file.seek(2 * (n - 3))
        file.write(np.arange(7, 10, dtype="<u2").tobytes())
    source = TokenFile(path=str(path), block=4, batch_size=2, validation=0.0)
    data = source.load()
    stream = source.feed(data, data.train, 0)
    assert LARGEST // 2 < stream.n < LARGEST
    window = stream.window(10**6, 1)
    assert stream.batch(window, 10**6)["x"].shape == (2, 4)
    assert stream.read(np.array([stream.n - 1]))["y"][0, -3:].max() >= 7


def test_every_mistake_is_named(tmp_path):
    def refused(said, **settings):
        with pytest.raises(ConfigError, match=said) as raised:
            TokenFile(**settings).load()
        assert "\n" not in str(raised.value)

    path = numbers(tmp_path / "t.bin", np.arange(100))
    refused(r"data\.path: no file", path="nowhere.bin")
    refused("train: 99 tokens; expected above data.block = 200", path=path, block=200)
    (tmp_path / "odd.bin").write_bytes(b"abc")
    refused("odd.bin: 3 bytes; expected some, and whole tokens of uint16", path=str(tmp_path / "odd.bin"))
    (tmp_path / "none.bin").write_bytes(b"")
    refused("none.bin: 0 bytes", path=str(tmp_path / "none.bin"))
    refused("not the file that the run began with", path=path, digest="0" * 64)
    (tmp_path / "t.bin.json").write_text("{")
    refused("t.bin.json: cannot be read", path=path)
    for beside, said in (({"classes": "9"}, "classes: found '9'"), ({"dtype": "u8"}, "dtype: found 'u8'")):
        (tmp_path / "t.bin.json").write_text(json.dumps(beside))
        refused(said, path=path)
    (tmp_path / "t.bin.json").unlink()

    source = TokenFile(path=path, classes=90, block=8, batch_size=90, validation=0.0)
    data = source.load()
    with pytest.raises(ConfigError, match=r"t.bin\[9\d\]: token 9\d; expected below 90 \(data.classes\)"):
        source.feed(data, data.train, 0).window(0, 1)
    with pytest.raises(ConfigError, match="nothing says what the tokens of the file stand for"):
        source.encode("text")
    assert source.read_inputs("prompt.txt") is None
    with pytest.raises(ConfigError, match=r"train\.seeds: found 2; what is read from a file has one order"):
        build(experiment({"kind": "token_file", "path": path, "classes": 100}, seeds=2))
