"""Runs as processes: bitwise equality of chunks, repeats and resumed runs; signals; locks; damage."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_equal_runs, final_arrays, same

from functrain import config, runs
from functrain.cli import main
from functrain.config import ConfigError
from functrain.experiment import Experiment
from functrain.train.checkpoint import Directory, damage
from functrain.trained import load

CONFIG = """
[model]
kind = "mlp"
hidden = [16]
dropout = 0.1
[task]
kind = "classification"
[data]
kind = "digits"
[optimizer]
kind = "adamw"
schedule = { kind = "cosine", warmup = 5 }
[train]
steps = 120
log_every = 7
[evaluate]
every = 30
[checkpoint]
every = 25
[observe]
tensorboard = false
figures = false
"""


LETTERS = """
[task]
kind = "language"
[model]
kind = "gpt"
layers = 1
heads = 1
width = 8
[data]
kind = "text"
path = "letters.txt"
block = 16
batch_size = 4
[train]
steps = 4
[observe]
tensorboard = false
figures = false
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory with small.toml in it."""
    (tmp_path / "small.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments):
    """A `functrain` process."""
    return subprocess.Popen(
        [sys.executable, "-m", "functrain", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(runs.__file__).parent.parent)},
    )


def test_chunks_and_repeats_are_bitwise(folder):
    """Chunk 1, 10 and 40, and a repeat in a process of its own: the same state and the same log, byte for byte."""
    for name, chunk in (("a", 1), ("b", 10), ("c", 40)):
        assert main(["train", "small.toml", f"train.chunk={chunk}", "--out", name]) == 0
    process = command("train", "small.toml", "train.chunk=40", "--out", "d")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    for other in "bcd":
        assert_equal_runs("a", other)
    # It is not that nothing was compared: another seed is another run.
    assert main(["train", "small.toml", "train.seed=1", "--out", "e"]) == 0
    assert not same(final_arrays("a")[1], final_arrays("e")[1])
    assert read_config("a").train.chunk == 1


def read_config(out):
    """The resolved config."""
    return runs.read_config(Path(out))


LONGER = ["train.steps=3000", "train.chunk=3", "train.log_every=70", "evaluate.every=500", "checkpoint.every=150"]


def _kill(process, out, rng, after_a_checkpoint):
    """SIGKILL at a random moment: of the start, or after the first checkpoint."""
    began = time.monotonic()
    steps = Directory(out / "checkpoints").steps
    while after_a_checkpoint and not steps() and process.poll() is None and time.monotonic() - began < 60:
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.7 if after_a_checkpoint else 3.0))
    killed = process.poll() is None
    process.kill()
    process.communicate()
    return killed


def _survives(out, rng, kills):
    """Kill a run again and again, resume it until it is done, and compare with the run that nobody touched."""
    killed = _kill(command("train", "small.toml", *LONGER, "--out", out), out, rng, after_a_checkpoint=True)
    for _ in range(kills - 1):
        if not (out / "result.json").exists():
            killed += _kill(command("train", "--resume", out), out, rng, after_a_checkpoint=rng.random() < 0.5)
    process = command("train", "--resume", out)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len({(e["step"], e["split"]) for e in lines}) == len(lines)  # no step twice
    assert_equal_runs("whole", out)
    return killed


def test_resumed_after_kills_equals_uninterrupted(folder):
    """SIGKILL at random times, resumed, killed again, resumed: bitwise the run that nobody touched."""
    assert main(["train", "small.toml", *LONGER, "--out", "whole"]) == 0
    assert _survives(Path("killed"), random.Random(0), kills=3) >= 1


@pytest.mark.slow
def test_resumed_after_many_kills(folder):
    """The same for fifteen runs."""
    assert main(["train", "small.toml", *LONGER, "--out", "whole"]) == 0
    killed = sum(_survives(Path(f"killed{i}"), random.Random(i), kills=3) for i in range(15))
    print(f"{killed} kills survived")
    assert killed >= 15


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_with_a_checkpoint(folder, number, status):
    """SIGTERM and Ctrl-C: a checkpoint at a step boundary, the exit status, one line that says how to go on."""
    process = command("train", "small.toml", "train.steps=2000000", "--out", "long")
    while not (folder / "long" / "metrics.jsonl").exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.5)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    assert "with a checkpoint; go on with: functrain train --resume long" in output
    step, _ = final_arrays("long")
    assert step > 0
    assert not (folder / "long" / "result.json").exists()
    lines = [json.loads(line) for line in (folder / "long" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] <= step
    assert main(["train", "--resume", "long", f"train.steps={step + 3}"]) == 0
    assert json.loads((folder / "long" / "result.json").read_text())["steps"] == step + 3


def test_a_signal_during_start_up_is_acted_on(folder):
    """SIGTERM before the first step: the run ends after it, with a checkpoint."""
    process = command("train", "small.toml", "train.steps=2000000", "train.chunk=1", "--out", "early")
    time.sleep(1.0)  # within imports or compilation
    process.terminate()
    _, errors = process.communicate(timeout=60)
    if process.returncode != -signal.SIGTERM:  # before the handler stands, the default ends the process
        assert process.returncode == 75, errors
        assert final_arrays("early")[0] <= 3


def test_two_processes_cannot_share_a_run(folder, capsys):
    """The second is refused in one line while the first holds the directory."""
    process = command("train", "small.toml", "train.steps=2000000", "checkpoint.every=50", "--out", "held")
    while not Directory(folder / "held" / "checkpoints").steps() and process.poll() is None:
        time.sleep(0.01)
    assert main(["train", "--resume", "held"]) == 2
    assert "another process is training there" in capsys.readouterr().err
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 75


def test_a_damaged_checkpoint_is_passed_over(folder, capsys):
    """A flipped bit is found by its digest, the older checkpoint used, and the result is the same all the same."""
    assert main(["train", "small.toml", "--out", "whole"]) == 0
    assert main(["train", "small.toml", "--out", "bad"]) == 0
    newest = sorted((folder / "bad" / "checkpoints").iterdir())[-1]
    victim = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    assert "is not what was written" in damage(newest)
    with pytest.raises(OSError, match="is not what was written"):
        Directory(folder / "bad" / "checkpoints").load(120)
    log = folder / "bad" / "metrics.jsonl"
    log.write_text(log.read_text() + '{"step": 119, "split": "tr')  # and half a line of log
    capsys.readouterr()
    assert main(["train", "--resume", "bad"]) == 0
    assert "checkpoint passed over" in capsys.readouterr().err
    assert (folder / "whole" / "metrics.jsonl").read_bytes() == (folder / "bad" / "metrics.jsonl").read_bytes()
    assert (
        json.loads((folder / "bad" / "result.json").read_text())["test"]
        == json.loads((folder / "whole" / "result.json").read_text())["test"]
    )


def test_a_run_directory_holds_what_it_should(folder):
    """Every file, the keys of result.json, the resolved config equal to itself, and JSON that is JSON."""
    assert main(["train", "small.toml", "--out", "r", "observe.tensorboard=true", "observe.figures=true"]) == 0
    out = folder / "r"
    names = {p.name for p in out.iterdir()} - {".lock"}
    assert names == {*runs.FILES, "layers.jsonl", "checkpoints", "tensorboard", "figures"}
    assert {p.name for p in (out / "figures").iterdir()} == {
        "curves.png",
        "layers.png",
        "confusion.png",
        "calibration.png",
    }
    result = json.loads((out / "result.json").read_text())
    wanted = {"final", "best", "test", "steps", "steps_per_s", "examples_per_s", "flops_per_step", "peak_fraction"}
    assert wanted | {"peak_rss_mb", "skipped_steps", "seconds", "parameters"} <= result.keys()
    assert {"import", "compile", "train", "evaluate", "checkpoint"} == result["seconds"].keys()
    spent = result["train_seconds"]
    assert {"data", "dispatch", "device", "log", "cpu"} == spent.keys()
    assert 0 < sum(spent.values()) - spent["cpu"] <= result["seconds"]["train"]
    assert spent["cpu"] > 0
    assert result["tokens_per_s"] is None
    assert result["parameters"] == 64 * 16 + 16 + 16 * 10 + 10
    assert result["flops_per_step"] == 2 * 32 * (3 * (64 * 16 + 16 * 10) - 64 * 16)
    assert 0 < result["peak_fraction"] < 1
    resolved = read_config("r")
    assert config.parse(Experiment, config.Source(config.to_data(resolved))) == resolved
    assert (resolved.train.chunk, resolved.train.loop) == (100, "loop")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [e["step"] for e in lines if e["split"] == "validation"] == [30, 60, 90, 120]
    assert all({"step", "split", "loss", "accuracy"} <= e.keys() for e in lines)
    environment = json.loads((out / "environment.json").read_text())
    assert {"functrain", "python", "packages", "devices", "flags", "command"} <= environment.keys()


def test_a_run_over_text_tells_tokens(folder, capsys):
    """Tokens a second are the blocks' tokens; and the parts of the training time are shown in a line."""
    (folder / "letters.txt").write_text("a rose is a rose is a rose. " * 40)
    (folder / "letters.toml").write_text(LETTERS)
    assert main(["train", "letters.toml", "--out", "r"]) == 0
    result = json.loads((folder / "r" / "result.json").read_text())
    assert result["tokens_per_s"] == pytest.approx(16 * result["examples_per_s"])
    shown = [line for line in capsys.readouterr().out.splitlines() if "tokens/s" in line or "dispatch " in line]
    assert [line.split()[0] for line in shown[-2:]] == ["speed", "train"]


def test_tensorboard_holds_scalars_and_norms_by_layer(folder):
    """Losses of both splits, learning rate, and norms of gradient, update and parameter for each parameter."""
    from tensorboardX.proto import event_pb2

    assert main(["train", "small.toml", "--out", "r", "observe.tensorboard=true", "observe.norms_every=40"]) == 0
    tags = set()
    for path in (folder / "r" / "tensorboard").rglob("events*"):
        data, at = path.read_bytes(), 0
        while at < len(data):  # a record: length (8 bytes), its checksum (4), the event, its checksum (4)
            size = int.from_bytes(data[at : at + 8], "little")
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
            tags |= {value.tag for value in event.summary.value}
            at += 16 + size
    assert {"train/loss", "validation/accuracy", "train/learning_rate"} <= tags
    assert {"_hparams_/experiment", "_hparams_/session_start_info", "test/accuracy"} <= tags
    for what in ("gradient_norm", "update_norm", "parameter_norm"):
        for parameter in ("layer0/kernel", "layer0/bias", "layer1/kernel", "layer1/bias"):
            assert f"{what}/{parameter}" in tags


def test_nan_is_null_in_the_log(folder):
    """A run whose loss is nan throughout: every line is JSON, every step skipped and counted, the weights the first."""
    x = np.full((64, 4), np.nan, np.float32)
    np.savez("nan.npz", x=x, y=np.arange(64) % 2)
    data = ["data.kind=npz", "data.path=nan.npz"]
    assert main(["train", "small.toml", *data, "--out", "r", "train.steps=20", "evaluate.every=10"]) == 0
    lines = (folder / "r" / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line, parse_constant=pytest.fail) for line in lines)
    assert {json.loads(line)["loss"] for line in lines} == {None}
    result = json.loads((folder / "r" / "result.json").read_text(), parse_constant=pytest.fail)
    assert result["skipped_steps"] == 20
    assert result["best"] is None


def test_early_stopping_and_the_best_step(folder):
    """Patience ends the run; the test is read at the best step; resuming a finished run changes nothing."""
    quick = ["optimizer.peak_lr=0.05", "evaluate.patience=2", "train.steps=3000", "evaluate.every=20"]
    assert main(["train", "small.toml", *quick, "--out", "r"]) == 0
    result = json.loads((folder / "r" / "result.json").read_text())
    lines = [json.loads(line) for line in (folder / "r" / "metrics.jsonl").read_text().splitlines()]
    validation = {e["step"]: e["loss"] for e in lines if e["split"] == "validation"}
    best = min(validation, key=validation.get)
    assert result["ended"] == "early"
    assert result["best"]["step"] == best == result["test"]["step"] == result["steps"] - 40
    assert load("r").step == best
    before = (folder / "r" / "metrics.jsonl").read_bytes()
    assert main(["train", "--resume", "r"]) == 0
    assert (folder / "r" / "metrics.jsonl").read_bytes() == before
    assert json.loads((folder / "r" / "result.json").read_text())["test"] == result["test"]


def test_eval_and_predict_speak_of_the_trained_model(folder, capsys):
    """`eval` gives the test metrics of result.json; `predict` agrees with them, example by example."""
    assert main(["train", "small.toml", "--out", "r"]) == 0
    result = json.loads((folder / "r" / "result.json").read_text())
    capsys.readouterr()
    assert main(["eval", "r"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"split": "test"} | result["test"]
    test = read_config("r").data.load().test
    np.savez("test.npz", x=test["x"])
    assert main(["predict", "r", "test.npz"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    share = np.mean([row["class"] == y for row, y in zip(rows, test["y"], strict=True)])
    assert share == pytest.approx(found["accuracy"], abs=1e-6)
    (folder / "one.jsonl").write_text(json.dumps({"x": test["x"][0].ravel().tolist()}) + "\n")
    assert main(["predict", "r", "one.jsonl"]) == 0
    assert json.loads(capsys.readouterr().out)["class"] == rows[0]["class"]


def test_compare_shows_what_differs(folder, capsys):
    """Two runs: the key in which they differ, their results, and a picture of both."""
    for name, rate in (("a", 1e-3), ("b", 1e-2)):
        assert main(["train", "small.toml", f"optimizer.peak_lr={rate}", "--out", name]) == 0
    capsys.readouterr()
    assert main(["compare", "a", "b", "--figure", "both.png"]) == 0
    shown = capsys.readouterr().out
    assert "optimizer.peak_lr" in shown
    assert "train.steps" not in shown
    assert (folder / "both.png").read_bytes()[:4] == b"\x89PNG"


def test_four_devices_give_the_same_run(folder):
    """A batch cut over four devices trains to the same losses as on one (to rounding), and says so."""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    environment = os.environ | flags | {"PYTHONPATH": str(Path(runs.__file__).parent.parent)}
    arguments = [sys.executable, "-m", "functrain", "train", "small.toml"]
    done = subprocess.run([*arguments, "--out", "four"], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "4 x cpu" in done.stdout
    assert main(["train", "small.toml", "--out", "one", "train.devices=1"]) == 0
    read = lambda out: [json.loads(line) for line in (folder / out / "metrics.jsonl").read_text().splitlines()]  # noqa: E731
    for a, b in zip(read("four"), read("one"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-4)
    # The two differ in how they got there: each device computes 8 of the 32 rows, and gradients are summed over them.
    done = subprocess.run(
        [sys.executable, "-c", PARTITIONED], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "True True\n", done.stderr
    bad = [*arguments, "data.batch_size=30", "--out", "no"]
    done = subprocess.run(bad, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "30 examples cannot be cut evenly over 4 devices" in done.stderr


PARTITIONED = """
import jax
from functrain import config
from functrain.building import build
from functrain.built import first_state
from functrain.experiment import Experiment
from functrain.train import step

built = build(config.parse(Experiment, config.read("small.toml")))
feed, train_state = built.feeds["train"], first_state(built)
window = feed.window(0, 1)
zero = step.zero_metrics(built.task, feed, train_state, window)
program = jax.jit(step.make_body(built.task, feed, built.place)).lower(train_state, zero, window).compile().as_text()
print("all-reduce" in program, "f32[8,16]" in program and "f32[32,16]" not in program)
"""


def test_resume_refuses_what_may_not_change(folder):
    """Another rate is refused with both values; more steps are allowed."""
    assert main(["train", "small.toml", "--out", "r"]) == 0
    with pytest.raises(ConfigError, match=r"optimizer.peak_lr: 0.001 in the run, 0.5 asked for"):
        runs.resume(Path("r"), ["optimizer.peak_lr=0.5"])
    with contextlib.redirect_stdout(None):
        assert main(["train", "--resume", "r", "train.steps=130"]) == 0
    assert json.loads((folder / "r" / "result.json").read_text())["steps"] == 130


def test_a_short_run_goes_on_for_longer(folder):
    """One of fewer than 20 steps, which looks at no layers, to more than 20."""
    short = ["observe.figures=true", "train.steps=15", "optimizer.schedule.kind=constant"]
    assert main(["train", "small.toml", "--out", "r", *short]) == 0
    assert not (folder / "r" / "layers.jsonl").exists()
    assert main(["train", "--resume", "r", "train.steps=40"]) == 0
    assert [json.loads(line)["step"] for line in (folder / "r" / "layers.jsonl").read_text().splitlines()][:1] == [30]


def test_the_way_of_dispatch_is_kept_on_resume(folder):
    """A custom model with a convolution: a dispatch a step, written to config.toml, kept by a resumed run, bitwise."""
    (folder / "convolution.py").write_text(CONVOLUTION)
    arguments = ["train", "small.toml", "--out", "r"]
    config_text = CONFIG.replace(
        'kind = "mlp"\nhidden = [16]\ndropout = 0.1', 'kind = "custom"\ntarget = "convolution:model"'
    )
    (folder / "small.toml").write_text(config_text)
    assert main(arguments) == 0
    assert (read_config("r").train.loop, read_config("r").train.chunk) == ("step", 100)
    assert main(["train", "small.toml", "--out", "s", "train.steps=60"]) == 0
    assert main(["train", "--resume", "s", "train.steps=120"]) == 0
    assert (read_config("s").train.loop, read_config("s").train.chunk) == ("step", 100)
    assert load("r")(np.zeros((3, 8, 8), np.uint8)).shape == (3, 10)


CONVOLUTION = """
import jax
import jax.numpy as jnp

def model():
    def init(key):
        return {"kernel": jax.random.normal(key, (3, 3, 1, 4)) / 3, "out": jnp.zeros((4, 10))}
    def apply(params, x):
        layout = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x[..., None], params["kernel"], (1, 1), "SAME", dimension_numbers=layout)
        return jax.nn.relu(y).mean((1, 2)) @ params["out"]
    return init, apply
"""


def test_a_damaged_best_checkpoint_costs_the_choice_alone(folder, capsys):
    """Where the best step's checkpoint cannot be used, the test is read at the last step, and a line says so."""
    quick = ["optimizer.peak_lr=0.05", "evaluate.patience=2", "train.steps=3000", "evaluate.every=20"]
    assert main(["train", "small.toml", *quick, "--out", "r"]) == 0
    best = json.loads((folder / "r" / "result.json").read_text())["best"]["step"]
    (folder / "r" / "checkpoints" / f"{best:08d}" / "state" / "_METADATA").write_text("{}")
    capsys.readouterr()
    assert main(["train", "--resume", "r"]) == 0
    assert "the test is read at the last step" in capsys.readouterr().err
    result = json.loads((folder / "r" / "result.json").read_text())
    assert result["test"]["step"] == result["steps"] > best
