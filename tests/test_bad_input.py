"""Mistakes of a user: one readable line (where, what was found, what is legal), status 2, nothing left behind."""

import contextlib
import importlib.util
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tomllib
import unicodedata
import warnings
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import functrain
from functrain import config as configs
from functrain import runs
from functrain.building import build
from functrain.cli import main
from functrain.config import ConfigError, Source, parse, read
from functrain.experiment import Experiment

ROOT = Path(functrain.__file__).parent.parent
MODULE = "mistaken_user_code"
LONGEST = 400
"""Characters that a person still reads as one line."""
FOREIGN = ("Traceback", "Input should", "String should", "Invalid JSON", "a array", "an object", "unsafely")
FOREIGN += ("inhomogeneous", "context manager", "is not a file in the archive")
"""What a library says to a programmer, and no line of ours to a user."""

CONFIG = """\
[task]
kind = "classification"
[model]
kind = "mlp"
hidden = [4]
[data]
kind = "digits"
[train]
steps = 3
[observe]
tensorboard = false
figures = false
"""
TASK = '[task]\nkind = "classification"\n'
MODEL = '[model]\nkind = "mlp"\nhidden = [4]\n'
DATA = '[data]\nkind = "digits"\n'


# -- what every mistake must hold -----------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory; whatever a command changes in this process is put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FUNCTRAIN_CACHE", str(tmp_path.with_name(f"{tmp_path.name}-cache")))
    monkeypatch.delenv("FUNCTRAIN_DATA", raising=False)
    monkeypatch.setattr(runs, "use_compilation_cache", lambda: None)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    with warnings.catch_warnings():
        yield tmp_path
    sys.modules.pop(MODULE, None)


def contents(folder: Path) -> dict[str, bytes | None]:
    """Path -> bytes of every file below a folder, None for a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def status(arguments: list[str]) -> int:
    """The exit status of a command run in this process."""
    try:
        return main(arguments)
    except SystemExit as end:  # argparse ends so
        return end.code


def assert_one_line(line: str, says: tuple[str, ...] = ()) -> None:
    """`line` is one line, readable, not of a library's making, and holds every part of `says`."""
    assert line.endswith("\n")
    assert line.count("\n") == 1, line
    assert len(line) <= LONGEST, f"{len(line)} characters: {line[:200]}..."
    assert not [c for c in line[:-1] if unicodedata.category(c) in ("Cc", "Cs")], f"control characters: {line!r}"
    assert line.startswith("functrain"), line
    for part in FOREIGN:
        assert part not in line, line
    for part in says:
        assert part in line, f"{part!r} is not said: {line}"


@pytest.fixture
def refused(here, capsys):
    """`refused(arguments, says)`: run a command, which must be refused as every mistake is."""

    def check(arguments: list[str], says: tuple[str, ...] = ()) -> None:
        before, handler = contents(here), signal.getsignal(signal.SIGTERM)
        capsys.readouterr()
        ended = status(arguments)
        out, line = capsys.readouterr()
        assert ended == 2, (ended, out, line)
        assert_one_line(line, says)
        assert out == ""
        assert contents(here) == before, "something was left behind"
        assert signal.getsignal(signal.SIGTERM) == handler

    return check


# -- the text of a config -------------------------------------------------------------------------


def changed(old: str, new: str, text: str = CONFIG) -> str:
    """A config's text with one part replaced."""
    assert text.count(old) == 1, old
    return text.replace(old, new)


TEXT = {
    # name: (the config's text, what the line says)
    "unknown-key-by-spelling": (
        changed("hidden =", "hiden ="),
        ("model.hiden", "unknown key", '"hidden"', "activation"),
    ),
    "unknown-section": (changed("[observe]", "[obsrve]"), ("obsrve", "unknown key", '"observe"', "checkpoint")),
    "key-of-another-kind": (
        CONFIG + '[optimizer]\nkind = "adamw"\nmomentum = 0.9\n',
        ("optimizer.momentum", 'optimizer.kind = "sgd"', "weight_decay"),
    ),
    "key-in-the-wrong-section": (
        changed("[train]", "[train]\nbatch_size = 8"),
        ("train.batch_size", "data.batch_size"),
    ),
    "key-at-the-root": (changed("[task]", "steps = 3\n[task]"), ("steps: unknown key", "train.steps")),
    "string-for-a-number": (changed("steps = 3", 'steps = "many"'), ("train.steps", '"many"', "integer")),
    "number-in-quotes": (changed("steps = 3", 'steps = "3"'), ("train.steps", '"3"', "integer")),
    "boolean-for-an-int": (changed("steps = 3", "steps = true"), ("train.steps", "true", "integer")),
    "float-for-an-int": (changed("steps = 3", "steps = 10.5"), ("train.steps", "10.5", "integer")),
    "int-for-a-string": (changed("[train]", "[evaluate]\nmonitor = 3\n[train]"), ("evaluate.monitor", "3", "string")),
    "int-for-a-boolean": (changed("figures = false", "figures = 0"), ("observe.figures", "0", "boolean")),
    "string-for-a-boolean": (changed("figures = false", 'figures = "no"'), ("observe.figures", '"no"', "boolean")),
    "date": (changed("steps = 3", "steps = 3\nseed = 2026-01-01"), ("train.seed", "2026-01-01", "date")),
    "time-in-a-list": (changed("[4]", "[12:00:00]"), ("model.hidden", "12:00:00", "time")),
    "zero": (changed("steps = 3", "steps = 0"), ("train.steps", "0", "greater than or equal to 1")),
    "negative": (changed("steps = 3", "steps = 3\nseed = -1"), ("train.seed", "-1", "greater than or equal to 0")),
    "too-large": (changed("steps = 3", "steps = 3_000_000_000"), ("train.steps", "3000000000", "2147483647")),
    "larger-than-any-int": (changed("steps = 3", f"steps = {'9' * 5000}"), ()),
    "larger-than-any-int-in-hex": (changed("steps = 3", f"steps = 0x{'f' * 5000}"), ("train.steps",)),
    "missing-kind": (changed('kind = "mlp"\n', ""), ("model.kind", "missing", "mlp, cnn, strided_cnn, lenet")),
    "wrong-kind-by-spelling": (
        changed('"mlp"', '"mpl"'),
        ("model.kind", '"mpl"', 'did you mean "mlp"', "mlp, cnn, strided_cnn, lenet"),
    ),
    "wrong-kind": (changed('"digits"', '"xyz"'), ("data.kind", '"xyz"', "digits, known, idx, csv")),
    "kind-of-another-type": (changed('"mlp"', "3"), ("model.kind", "3", "mlp, cnn, strided_cnn, lenet")),
    "missing-task": (changed(TASK, ""), ("task", "missing", "classification, binary, multilabel")),
    "section-as-a-number": ("train = 3\n" + changed("[train]\nsteps = 3\n", ""), ("train", "found 3", "table")),
    "section-as-a-list": (changed("[train]", "[[train]]"), ("train", "table")),
    "kinds-as-a-list": (changed("[model]", "[[model]]"), ("model", "table", "mlp, cnn, strided_cnn, lenet")),
    "nested-list": (changed("[4]", "[[4]]"), ("model.hidden", "[4]", "integer")),
    "number-for-a-list": (changed("[4]", "4"), ("model.hidden", "found 4", "array")),
    "element-of-a-list": (changed("[4]", "[4, 0]"), ("model.hidden.1", "found 0", "1")),
    "wrong-literal": (
        changed("[train]", '[evaluate]\nmode = "maxx"\n[train]'),
        ("evaluate.mode", "maxx", '"max"', "'min'"),
    ),
    "steps-and-epochs": (changed("steps = 3", "steps = 3\nepochs = 2"), ("train", "steps or epochs", "not both")),
    "part-that-is-not-set": (changed("[model]", "learner = 3\n[model]"), ("task.learner", "not set here")),
    "missing-key-of-a-kind": (changed('"digits"', '"npz"'), ("data.path", "missing")),
    "syntax": (changed("steps = 3", "steps = = 3"), ("TOML", "line 9")),
    "key-twice": (changed("steps = 3", "steps = 3\nsteps = 4"), ("TOML", "line 10")),
    "deep-array": (changed("[task]", f"x = {'[' * 5000}{']' * 5000}\n[task]"), ("nested too deeply",)),
    "deep-array-not-closed": (changed("[task]", f"x = {'[' * 5000}\n[task]"), ("nested too deeply",)),
    "deep-array-that-toml-reads": (changed("[4]", "[" * 400 + "]" * 400), ()),
    "deep-table": (changed("[task]", f"{'.'.join('a' * 3000)} = 1\n[task]"), ()),
    "deep-inline-table": (changed("[task]", f"x = {'{a = ' * 2000}1{'}' * 2000}\n[task]"), ("nested too deeply",)),
    "augment-of-no-kind": (CONFIG + '[[augment]]\nkind = "spin"\n', ("augment.0.kind", '"spin"', "flip, crop")),
    "augment-as-a-table": (CONFIG + '[augment]\nkind = "flip"\n', ("augment", "expected an array")),
    "augment-out-of-range": (
        CONFIG + '[[augment]]\nkind = "flip"\nprobability = 2.0\n',
        ("augment.0.probability", "found 2.0", "equal to 1"),
    ),
    "start-from-two": (CONFIG + '[start]\nrun = "a"\nfile = "b"\n', ("start", "run or file, one of them")),
    "start-from-nothing": (CONFIG + "[start]\n", ("start", "run or file, one of them")),
    "layers-of-no-resnet": (
        changed('"mlp"\nhidden = [4]', '"resnet"\nlayers = 20'),
        ("model.layers", "found 20", "18, 34, 50, 101"),
    ),
    "epsilon-below-zero": (
        changed('"classification"', '"robust"\nepsilon = -1.0'),
        ("task.epsilon", "found -1.0", "equal to 0"),
    ),
    "line-break-in-a-value": (changed('"mlp"', '"ml\\np"'), ("model.kind", "mlp, cnn, strided_cnn, lenet")),
    "line-break-in-a-key": (changed("[observe]", '[players."a\\nb"]\n[observe]'), ("players", "model")),
}


@pytest.mark.parametrize("name", TEXT)
def test_text(name, refused):
    """A mistake in the file is told with the file's name and the dotted key."""
    text, says = TEXT[name]
    Path("c.toml").write_text(text)
    where = () if name == "line-break-in-a-key" else ("c.toml",)  # known only when the task is put together
    refused(["train", "c.toml"], (*where, *says))


FILES = {
    "missing": (None, ("c.toml", "no such file")),
    "directory": (Path, ("c.toml", "directory")),
    "latin-1": (changed("mlp", "mlp\u00e9").encode("latin-1"), ("c.toml", "UTF-8", "50")),
    "utf-16": (CONFIG.encode("utf-16"), ("c.toml", "UTF-8")),
    "empty": (b"", ("c.toml", "task", "missing", "classification, binary, multilabel")),
    "null-character": (changed("mlp", "m\0lp").encode(), ("c.toml", "TOML", "line 4")),
}


@pytest.mark.parametrize("name", FILES)
def test_file(name, refused):
    """A config that is no text, or is not there."""
    content, says = FILES[name]
    if content is Path:
        Path("c.toml").mkdir()
    elif content is not None:
        Path("c.toml").write_bytes(content)
    refused(["train", "c.toml"], says)


# -- overrides ------------------------------------------------------------------------------------

ARGUMENTS = {
    # name: (the arguments after the config, what the line says)
    "unknown-key": (["optimizer.peak_rl=0.1"], ("optimizer.peak_rl", '"peak_lr"', "weight_decay")),
    "unknown-section": (["tain.steps=3"], ("argument 'tain.steps=3'", "unknown key", '"train"')),
    "unknown-key-of-a-player": (["players.model.optimizr.kind=sgd"], ("argument 'players.model.opt", '"optimizer"')),
    "key-of-another-kind": (["optimizer.momentum=0.9"], ("optimizer.momentum", 'optimizer.kind = "sgd"', "epsilon")),
    "key-of-two-other-kinds": (
        ["optimizer.schedule.final=0.1"],
        ("optimizer.schedule.final", 'optimizer.schedule.kind = "linear"', '"cosine"', "warmup"),
    ),
    "key-of-another-source": (["data.scale=0.5"], ("data.scale", 'data.kind = "npz"', "split_seed")),
    "key-at-the-root": (["steps=5"], ("argument 'steps=5'", "unknown key", "train.steps")),
    "section-at-the-root": (["schedule.kind=cosine"], ("argument 'schedule.kind=cosine'", "optimizer.schedule")),
    "wrong-type": (["train.steps=many"], ("argument 'train.steps=many'", '"many"', "integer")),
    "nothing-after-equals": (["train.steps="], ("argument 'train.steps='", "integer")),
    "empty-where-text-is-needed": (["data.kind=npz", "data.path="], ("argument 'data.path='", "data.path", '""')),
    "infinite": (["optimizer.peak_lr=inf"], ("argument 'optimizer.peak_lr=inf'", "finite")),
    "minus-infinite": (["optimizer.peak_lr=-inf"], ("optimizer.peak_lr", "finite")),
    "not-a-number": (["optimizer.peak_lr=nan"], ("argument 'optimizer.peak_lr=nan'", "finite")),
    "infinite-for-an-int": (["train.seed=inf"], ("train.seed", "integer")),
    "date": (["train.epochs=2026-01-01"], ("argument 'train.epochs=2026-01-01'", "train.epochs", "date")),
    "negative": (["optimizer.peak_lr=-1"], ("optimizer.peak_lr", "-1", "greater than 0")),
    "zero": (["optimizer.peak_lr=0"], ("optimizer.peak_lr", "greater than 0")),
    "share-of-one": (["model.dropout=1.0"], ("model.dropout", "1.0", "less than 1")),
    "too-large": (["train.chunk=1e12"], ("train.chunk", "1000000000000", "2147483647")),
    "wrong-kind": (["optimizer.kind=adamv"], ("optimizer.kind", "adamv", "did you mean", "sgd, adam, adamw")),
    "kind-without-table": (
        ["optimizer=adamw"],
        ("argument 'optimizer=adamw'", "table with a kind", "sgd, adam, adamw"),
    ),
    "table-as-a-number": (["players=3"], ("argument 'players=3'", "players", "found 3", "table")),
    "free-table-as-a-number": (["model={kind='custom', target='a:b', args=3}"], ("model.args", "found 3", "table")),
    "wrong-literal": (["model.activation=rellu"], ("model.activation", '"rellu"', '"relu"', "'gelu'")),
    "text-for-patterns": (["optimizer.decay=kernel"], ("optimizer.decay", '"kernel"', "array")),
    "number-for-a-pattern": (["optimizer.decay=[3]"], ("optimizer.decay.0", "3", "string")),
    "steps-and-epochs": (["train.epochs=2"], ("argument 'train.epochs=2'", "steps or epochs", "not both")),
    "no-key": (["=3"], ("argument '=3'", "key=value")),
    "no-part-of-a-key": (["train..steps=3"], ("argument 'train..steps=3'", "key=value")),
    "no-equals": (["train.steps"], ("one config file", "key=value", "c.toml, train.steps")),
    "into-a-number": (["train.steps.x=3"], ("argument 'train.steps.x=3'", "train.steps is no table")),
    "two-overrides-the-last": (
        ["model={kind='mlp'}", "model.hidden=[0]"],
        ("argument 'model.hidden=[0]'", "model.hidden.0", "found 0"),
    ),
    "two-overrides-the-whole": (
        ["model.hidden=[4]", "model={kind='mlp', hidden=[0]}"],
        ('argument "model={', "model.hidden.0", "found 0"),
    ),
    "more-than-one-value": (["train.steps=3\n[model]\nhidden = [2]"], ("argument 'train.steps=3", "integer")),
    "deep": ([f"model.hidden={'[' * 5000}{']' * 5000}"], ("argument 'model.hidden=[[[",)),
    "deep-that-toml-reads": ([f"model.hidden={'[' * 400}{']' * 400}"], ("argument 'model.hidden=[[[",)),
    "deep-key": (["model." + ".".join("a" * 2000) + "=3"], ()),
    "not-unicode": (["model.kind=\udcff"], ("argument 'model.kind=", "not UTF-8 text")),
    "two-configs": (["c.toml"], ("one config file", "c.toml, c.toml")),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_argument(name, refused):
    """A mistake in an override is told with the argument."""
    arguments, says = ARGUMENTS[name]
    Path("c.toml").write_text(CONFIG)
    refused(["train", "c.toml", *arguments], says)


# -- parts that do not fit one another ------------------------------------------------------------

MISFITS = {
    "batch-larger-than-the-data": (["data.batch_size=5000"], ("data.batch_size", "5000", "1257")),
    "accumulate-does-not-divide": (["train.accumulate=5"], ("train.accumulate", "32", "5")),
    "too-many-devices": (["train.devices=4096"], ("train.devices", "4096", "this machine has")),
    "unknown-monitor": (["evaluate.monitor=acuracy"], ("evaluate.monitor", "acuracy", "accuracy", "loss")),
    "monitor-that-is-no-number": (
        ["evaluate.monitor=confusion"],
        ("evaluate.monitor", "confusion", "accuracy, calibration_error, f1, loss"),
    ),
    "patience-without-validation": (
        ["data.validation=0.0", "evaluate.patience=3"],
        ("evaluate.patience", "no validation examples"),
    ),
    "monitor-without-validation": (
        ["data.validation=0.0", "evaluate.monitor=loss"],
        ("evaluate.monitor", "no validation examples"),
    ),
    "unknown-player": (["players.modle.optimizer.kind=sgd"], ("players.modle", "no such player", "model")),
    "pattern-without-a-match": (
        ["optimizer.decay=['nothing']"],
        ("optimizer.decay", "'nothing'", "matches no parameter", "layer0/kernel"),
    ),
    "pattern-that-is-none": (["optimizer.decay=['(']"], ("optimizer.decay", "'('", "no regular expression")),
    "pattern-of-a-player": (
        ["players.model.optimizer.kind=sgd", "players.model.optimizer.decay=['nothing']"],
        ("players.model.optimizer.decay", "'nothing'", "matches no parameter", "layer0/kernel"),
    ),
    "inputs-that-the-data-has-not": (["model.inputs=[3]"], ("model.inputs", "[3]", "[8, 8]")),
    "outputs-that-the-data-has-not": (["model.outputs=3"], ("model.outputs", "3", "10")),
    "no-training-examples": (["data.test=0.99"], ("digits", "no training examples")),
    "images-too-small": (["model={kind='lenet'}"], ("model.kind", "16 x 16", "[8, 8]")),
    "stages-too-many": (["model={kind='cnn', channels=[2,2,2,2]}"], ("model.kind", "16 x 16", "[8, 8]")),
    "images-for-a-gpt": (["model={kind='gpt'}"], ("model.kind", "sequences of tokens", "[8, 8]")),
    "ten-classes-as-yes-or-no": (["task={kind='binary'}"], ("task.kind", "0 and 1")),
    "classes-as-text": (["task={kind='language'}"], ("task.kind", "language needs a text")),
    "class-weights": (["task.class_weights=[1,2]"], ("task.class_weights", "2", "10")),
    "top-of-all-classes": (["task.top_k=[10]"], ("task.top_k", "10", "fewer than the 10")),
    "smoothing-of-another-loss": (
        ["task.criterion=focal", "task.label_smoothing=0.1"],
        ("task", "label_smoothing", "cross_entropy"),
    ),
    "rates-that-leave-parameters-out": (
        ["optimizer.rates=[['layer0', 0.1]]"],
        ("optimizer.rates", "layer1", '[".", 1.0]'),
    ),
    "rates-without-a-match": (["optimizer.rates=[['x', 0.1], ['.', 1.0]]"], ("optimizer.rates", "'x'", "matches no")),
    "all-frozen": (["optimizer.freeze=['.']"], ("optimizer", "frozen", "nothing is left to train")),
    "unknown-optimizer-of-optax": (
        ["optimizer={kind='optax', name='adabelif'}"],
        ("optimizer.name", '"adabelif"', 'did you mean "adabelief"'),
    ),
    "unknown-argument-of-optax": (
        ["optimizer={kind='optax', name='adabelief', args={b3=1}}"],
        ("optimizer.args.b3", "unknown", "b1"),
    ),
    "optax-that-needs-more": (
        ["optimizer={kind='optax', name='contrib.sophia'}"],
        ("optimizer", "sophia", "cannot take a step"),
    ),
    "milestones-that-fall": (
        ["optimizer.schedule={kind='step', milestones=[5, 2]}"],
        ("optimizer.schedule", "milestones"),
    ),
    "one-fold": (["data.folds=1"], ("data", "folds", "found 1", "at least 2")),
    "fold-beyond": (["data.folds=3", "data.fold=3"], ("data", "fold", "found 3", "below folds = 3")),
    "more-folds-than-examples": (["data.folds=2000"], ("data.folds", "2000", "1797")),
    "tracker-not-installed": (["observe.wandb=project"], ("observe.wandb", "pip install 'functrain[wandb]'")),
}


@pytest.mark.parametrize("name", MISFITS)
def test_misfit(name, refused):
    """What is legal by itself and does not fit the data, the model or the machine is told before anything runs."""
    arguments, says = MISFITS[name]
    if name == "tracker-not-installed" and importlib.util.find_spec("wandb"):
        pytest.skip("wandb is installed")
    Path("c.toml").write_text(CONFIG)
    refused(["train", "c.toml", *arguments], says)


ON_A_CONFIG = {
    "folds-without-folds": (["folds", "c.toml", "--out", "k"], ("data.folds", "missing", "at least 2")),
    "folds-without-a-place": (["folds", "c.toml", "data.folds=2"], ("--out",)),
    "rates-that-fall": (
        ["find-rate", "c.toml", "--from", "1", "--to", "0.1"],
        ("from 1 to 0.1", "expected 0 < from < to"),
    ),
    "rates-in-no-steps": (["find-rate", "c.toml", "--steps", "3"], ("3 steps", "10 steps up")),
    "rates-drawn-nowhere": (["find-rate", "c.toml", "--figure", "no/a.png"], ("--figure", "no/a.png")),
    "rate-drawn-as-text": (["inspect", "c.toml", "--figure", "a.txt"], ("--figure", "a.txt", ".png")),
    "unknown-set": (["data", "get", "mnits"], ("mnits", "mnist")),
    "set-that-is-not-here": (
        ["train", "c.toml", "data={kind='known', name='mnist'}"],
        ("data.name", "mnist is not here", "functrain data get mnist"),
    ),
}


@pytest.mark.parametrize("name", ON_A_CONFIG)
def test_command_on_a_config(name, refused):
    """What the other commands refuse."""
    arguments, says = ON_A_CONFIG[name]
    Path("c.toml").write_text(CONFIG)
    refused(arguments, says)


LACKING = {
    "steps-and-epochs": (changed("steps = 3\n", ""), ("train", "missing", "steps or epochs")),
    "model": (changed(MODEL, ""), ("model", "missing", "mlp, cnn, strided_cnn, lenet")),
    "data": (changed(DATA, ""), ("data", "missing", "digits, known, idx, csv")),
    "data-for-epochs": (changed(f"{DATA}[train]\nsteps = 3", "[train]\nepochs = 2"), ("data",)),
}


@pytest.mark.parametrize("name", LACKING)
def test_lacking(name, refused):
    """A part that this task needs is asked for, with what it may be."""
    text, says = LACKING[name]
    Path("c.toml").write_text(text)
    refused(["train", "c.toml"], says)


PICTURES = {
    "mixed-twice": (
        CONFIG + '[[augment]]\nkind = "mixup"\n[[augment]]\nkind = "cutmix"\n',
        ("augment.1", "cutmix", "mixed already"),
    ),
    "mixed-labels-that-a-task-knows-not": (
        changed('"classification"', '"embedding"', CONFIG + '[[augment]]\nkind = "mixup"\n'),
        ("augment", "task.kind", "embedding"),
    ),
    "padding-too-wide": (
        CONFIG + '[[augment]]\nkind = "crop"\npadding = 9\nfill = "reflect"\n',
        ("augment.0", "crop", "padding 9", "8 x 8"),
    ),
    "augment-what-is-no-image": (
        changed('"digits"', '"random"', CONFIG + '[[augment]]\nkind = "flip"\n'),
        ("augment.0", "flip", "images"),
    ),
    "start-from-no-run": (CONFIG + '[start]\nrun = "nowhere"\n', ("start.run", "nowhere", "no run")),
    "start-from-no-file": (CONFIG + '[start]\nfile = "no.safetensors"\n', ("start.file", "no.safetensors", "No such")),
    "start-from-a-pickle": (CONFIG + '[start]\nfile = "w.pt"\n', ("start.file", "pickle", "save_file")),
    "detection-of-digits": (
        changed('"classification"', '"detection"'),
        ("task.kind", "boxes and labels", "voc or coco"),
    ),
    "segmentation-of-digits": (changed('"classification"', '"segmentation"'), ("task.kind", "each pixel", "[8, 8]")),
    "held-out-class-that-is-not-there": (
        changed('"digits"', '"digits"\nheld_out = [11]'),
        ("data.held_out", "[11]", "class 11", "0, 1, 2"),
    ),
    "robust-on-normalised-pixels": (
        changed('"digits"', '"npz"\npath = "a.npz"\nnormalise = "standard"', changed('"classification"', '"robust"')),
        ("data.normalise", "robust", "none"),
    ),
    "patches-that-do-not-fit": (
        changed('"mlp"\nhidden = [4]', '"vit"\npatch = 3'),
        ("model.patch", "found 3", "8 x 8"),
    ),
    "images-too-small": (changed('"mlp"\nhidden = [4]', '"vgg"'), ("model.kind", "vgg", "32 x 32", "[8, 8]")),
    "levels-that-do-not-fit": (
        changed('"mlp"\nhidden = [4]', '"unet"\nlevels = 4'),
        ("model.levels", "found 4", "8 x 8"),
    ),
    "no-folder-of-pictures": (
        changed('"digits"', '"voc"\npath = "nowhere"\nsize = [8, 8]'),
        ("data.path", "no folder", "nowhere"),
    ),
    "no-mnist-for-scenes": (changed('"digits"', '"mnist_scenes"'), ("data.images", "functrain data get mnist")),
}


@pytest.mark.parametrize("name", PICTURES)
def test_images(name, refused):
    """What does not fit images, what is done to them, or the weights to start from."""
    text, says = PICTURES[name]
    Path("c.toml").write_text(text)
    refused(["train", "c.toml"], says)


def test_epochs_that_are_too_many_steps():
    """Epochs are written out as steps, which have a largest number too."""
    data = tomllib.loads(changed("steps = 3", "epochs = 1e9"))
    with pytest.raises(ConfigError, match=r"train\.epochs.*2147483647"):
        build(parse(Experiment, data))


# -- data -----------------------------------------------------------------------------------------

NPZ = changed(DATA, '[data]\nkind = "npz"\npath = "d.npz"\nbatch_size = 8\n')
X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
Y = np.arange(40) % 3
ONLY_TRAIN = {"x_train": X, "y_train": Y}


def npz(**arrays) -> bytes:
    """The bytes of an .npz file."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def npy(array) -> bytes:
    """The bytes of an .npy file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


OBJECTS = np.array([{}] * 40, dtype=object)
ARRAYS = {
    # name: (the bytes of d.npz, overrides, what the line says beside data.path and d.npz)
    "missing": (None, [], ("no file",)),
    "garbage": (b"garbage" * 100, [], ("no .npz",)),
    "nothing": (b"", [], ("no .npz",)),
    "cut-short": (npz(x=X, y=Y)[:-100], [], ("data.path", "d.npz", "cannot be read")),
    "flipped-bits": (npz(x=X, y=Y).replace(X[5].tobytes(), b"\xff" * 12), [], ("d.npz", "its array 'x'", "CRC")),
    "npy-by-another-name": (npy(X), [], ("no .npz",)),
    "pickled-objects": (npz(x=OBJECTS, y=Y), [], ("its array 'x' holds Python objects",)),
    "pickled-labels": (npz(x=X, y=OBJECTS), [], ("its array 'y' holds Python objects",)),
    "no-x": (npz(a=X, y=Y), [], ("a, y", "x or x_train")),
    "no-arrays": (npz(), [], ("nothing", "x or x_train")),
    "label-outside": (npz(x=X, y=Y), ["data.classes=2"], ("train y[2]", "label 2", "0 to 1")),
    "validation-label-outside": (
        npz(**ONLY_TRAIN, x_validation=X, y_validation=Y + 1),
        [],
        ("validation y[2]", "label 3", "0 to 2"),
    ),
    "test-label-outside": (npz(**ONLY_TRAIN, x_test=X, y_test=Y + 1), [], ("test y[2]", "label 3", "0 to 2")),
    "negative-label": (npz(x=X, y=Y - 1), [], ("train y[0]", "label -1", "0 to")),
    "label-beyond-an-int": (npz(x=X, y=Y + 2**40), [], ("train y[", "label 1099511627")),
    "no-examples": (npz(x=X[:0], y=Y[:0]), [], ("train", "no examples")),
    "no-validation-examples": (
        npz(**ONLY_TRAIN, x_validation=X[:0], y_validation=Y[:0]),
        [],
        ("validation", "no exam"),
    ),
    "lengths": (npz(x=X, y=Y[:39]), [], ("x has 40", "y has 39")),
    "length-of-the-mask": (npz(x=X, y=Y, mask=np.ones(39)), [], ("mask has 39",)),
    "shape-of-the-mask": (npz(x=X, y=Y, mask=np.ones((40, 2))), [], ("mask",)),
    "text": (npz(x=X.astype(str), y=Y), [], ("train x", "numbers")),
    "dates": (npz(x=X.astype("datetime64[s]"), y=Y), [], ("train x", "numbers")),
    "complex": (npz(x=X.astype(complex), y=Y), [], ("train x", "complex128", "numbers")),
    "single-number": (npz(x=X[0, 0], y=Y), [], ("train x", "0 axes")),
    "examples-of-nothing": (npz(x=X[:, :0], y=Y), [], ("train x",)),
    "shape-of-validation": (npz(**ONLY_TRAIN, x_validation=X[:, :2], y_validation=Y), [], ("validation x", "(2,)")),
    "validation-without-labels": (npz(**ONLY_TRAIN, x_validation=X), [], ("validation", "y")),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays(name, refused):
    """A data file that cannot be trained on is told with the file, the split, the array and the example."""
    content, arguments, says = ARRAYS[name]
    Path("c.toml").write_text(NPZ)
    if content is not None:
        Path("d.npz").write_bytes(content)
    refused(["train", "c.toml", *arguments], ("data.path", "d.npz", *says))


TARGETS = {
    "float-labels": (npz(x=X, y=Y.astype(np.float32)), "classification", ("task.kind", "integer labels", "regression")),
    "labels-with-two-axes": (npz(x=X, y=Y[:, None]), "classification", ("task.kind", "integer labels")),
    "no-labels": (npz(x=X), "classification", ("task.kind", "labels y")),
    "no-targets": (npz(x=X), "regression", ("task.kind", "targets y")),
}


@pytest.mark.parametrize("name", TARGETS)
def test_targets(name, refused):
    """Data that is of another task."""
    content, task, says = TARGETS[name]
    Path("c.toml").write_text(NPZ)
    Path("d.npz").write_bytes(content)
    refused(["train", "c.toml", f"task.kind={task}"], says)


@pytest.mark.parametrize("path", [".", "a" * 300, "a\nb", "a\x1b[31mb"], ids=["folder", "long", "line-break", "escape"])
def test_path_of_data(path, refused):
    """A path at which no file can be."""
    Path("c.toml").write_text(changed('"d.npz"', json.dumps(path), NPZ))
    refused(["train", "c.toml"], ("data.path", "no file"))


# -- a user's own code ----------------------------------------------------------------------------

CODE = """\
import dataclasses

import jax.numpy as jnp
import numpy as np

LOADED = True
NUMBER = 3


def model(inputs, outputs, width: int = 4, name: str = "mine"):
    def apply(params, x):
        return x.reshape(len(x), -1) @ params["w"]

    return lambda key: {"w": jnp.zeros((64, outputs))}, apply


def needy(outputs, depth):
    return model(None, outputs)


def narrow():
    return model(None, 3)


def no_model():
    return None


class NoTask:
    init = update = evaluate = learners = None


def arrays(n: int = 40):
    return {"train": {"x": np.ones((n, 2)), "y": np.arange(n) % 2}}


def no_dict():
    return 3


def strange_split():
    return arrays() | {"valid": arrays()["train"]}


def ragged():
    return {"train": {"x": [[1.0], [1.0, 2.0]], "y": [0, 1]}}


def only_y():
    return {"train": {"y": [0, 1] * 20}}
"""
OWN_MODEL = changed(MODEL, f'[model]\nkind = "custom"\ntarget = "{MODULE}:model"\n')
OWN_TASK = changed(TASK, f'[task]\nkind = "custom"\ntarget = "{MODULE}:model"\n')
OWN_DATA = changed(DATA, f'[data]\nkind = "custom"\ntarget = "{MODULE}:arrays"\n')
OWN = {
    # name: (config, override, what the line says)
    "dot-for-colon": (OWN_MODEL, f"model.target={MODULE}.model", ("model.target", "package.module:name")),
    "no-name": (OWN_MODEL, f"model.target={MODULE}:", ("model.target", "package.module:name")),
    "no-module": (OWN_MODEL, "model.target=:model", ("model.target", "package.module:name")),
    "relative-module": (OWN_MODEL, f"model.target=.{MODULE}:model", ("model.target", "package.module:name")),
    "path-for-a-module": (OWN_MODEL, f"model.target=./{MODULE}:model", ("model.target", "package.module:name")),
    "number": (OWN_MODEL, "model.target=3", ("argument 'model.target=3'", "string")),
    "missing-module": (OWN_MODEL, "model.target=no_such_module:f", ("model.target", "no module 'no_such_module'")),
    "missing-name": (OWN_MODEL, f"model.target={MODULE}:modle", ("model.target", MODULE, "no 'modle'")),
    "not-callable": (OWN_MODEL, f"model.target={MODULE}:NUMBER", ("model.target", "cannot be called")),
    "unknown-argument": (OWN_MODEL, "model.args.widht=3", ("model.args.widht", "no such argument", "width")),
    "missing-argument": (OWN_MODEL, f"model.target={MODULE}:needy", ("model.args.depth", "missing")),
    "argument-of-a-wrong-type": (OWN_MODEL, "model.args.width=wide", ("model.args.width", "wide", "integer")),
    "float-argument-for-an-int": (OWN_MODEL, "model.args.width=4.5", ("model.args.width", "4.5", "integer")),
    "boolean-argument-for-an-int": (OWN_MODEL, "model.args.width=true", ("model.args.width", "integer")),
    "int-argument-for-a-string": (OWN_MODEL, "model.args.name=3", ("model.args.name", "3", "string")),
    "no-model": (OWN_MODEL, f"model.target={MODULE}:no_model", ("model.target", "NoneType", "init and apply")),
    "outputs-of-another-width": (OWN_MODEL, f"model.target={MODULE}:narrow", ("model", "3", "10")),
    "no-task": (OWN_TASK, f"task.target={MODULE}:no_model", ("task.target", "no task", "init, update, evaluate")),
    "task-of-another-class": (OWN_TASK, f"task.target={MODULE}:NoTask", ("task.target", "NoTask", "dataclass")),
    "no-splits": (OWN_DATA, f"data.target={MODULE}:no_dict", ("data.target", "no_dict", "expected an iterable")),
    "unknown-split": (OWN_DATA, f"data.target={MODULE}:strange_split", ("'valid'", "train, validation, test")),
    "ragged": (OWN_DATA, f"data.target={MODULE}:ragged", ("data.target", "train x")),
    "no-inputs": (OWN_DATA, f"data.target={MODULE}:only_y", ("data", "no array x", "it has: y")),
    "unknown-argument-of-data": (OWN_DATA, "data.args.m=3", ("data.args.m", "no such argument", "n")),
    "too-few-examples": (OWN_DATA, "data.args.n=5", ("data.batch_size", "32", "5")),
}


@pytest.mark.parametrize("name", OWN)
def test_own_code(name, refused):
    """A target that is not there, or does not take or give what it should."""
    text, argument, says = OWN[name]
    Path(f"{MODULE}.py").write_text(CODE)
    Path("c.toml").write_text(text)
    refused(["train", "c.toml", argument], says)


# -- the command ----------------------------------------------------------------------------------

COMMANDS = {
    "none": ([], ("COMMAND",)),
    "unknown": (["trian", "c.toml"], ("trian", "train", "eval", "predict", "compare")),
    "unknown-flag": (["train", "c.toml", "--ot", "x"], ("--ot", "--help")),
    "flag-for-a-key": (["train", "c.toml", "--steps=3"], ("--steps=3", "--help")),
    "flag-without-a-value": (["train", "c.toml", "--out"], ("--out", "expected one argument")),
    "no-config": (["train"], ("one config file", "none")),
    "only-an-override": (["train", "train.steps=3"], ("one config file", "none")),
    "two-configs": (["train", "c.toml", "d.toml"], ("one config file", "c.toml, d.toml")),
    "empty-path": (["train", ""], ()),
    "line-break-in-a-path": (["train", "a\nb.toml"], ("no such file",)),
    "file-below-a-file": (["train", "c.toml/d.toml"], ("c.toml/d.toml",)),
    "inspect-a-mistake": (["inspect", "c.toml", "train.steps=a"], ("argument 'train.steps=a'", "integer")),
    "out-is-a-file": (["train", "c.toml", "--out", "c.toml"], ("--out", "c.toml")),
    "out-below-a-file": (["train", "c.toml", "--out", "c.toml/x"], ("--out", "c.toml/x")),
    "eval-no-run": (["eval", "nope"], ("nope", "no run", "config.toml")),
    "eval-a-file": (["eval", "c.toml"], ("c.toml", "no run")),
    "eval-two-runs": (["eval", "a", "b"], ("b", "--help")),
    "eval-step-of-text": (["eval", "nope", "--step", "last"], ("--step", "last", "int")),
    "predict-no-run": (["predict", "nope", "x.npy"], ("nope", "no run")),
    "compare-no-run": (["compare", "nope"], ("nope", "no run")),
    "compare-nothing": (["compare"], ("RUN",)),
    "resume-no-run": (["train", "--resume", "nope"], ("nope", "no run", "config.toml")),
    "resume-a-file": (["train", "--resume", "c.toml"], ("c.toml", "no run")),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_command(name, refused):
    """Arguments that make no command, and paths at which nothing is."""
    arguments, says = COMMANDS[name]
    Path("c.toml").write_text(CONFIG)
    refused(arguments, says)


# -- trained runs ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of three steps, trained into a folder that was there and empty."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "c.toml").write_text(CONFIG)
    (folder / "run").mkdir()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("FUNCTRAIN_CACHE", str(folder / "cache"))
        patch.setattr(runs, "use_compilation_cache", lambda: None)
        with contextlib.redirect_stdout(io.StringIO()):
            assert main(["train", str(folder / "c.toml"), "--out", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture
def run(trained, here):
    """A copy of the trained run, as `run` in the working directory."""
    return shutil.copytree(trained, here / "run")


def file(name, content=b""):
    """Something that writes a file when it is called."""
    return lambda: Path(name).write_bytes(content.encode() if isinstance(content, str) else content)


def unfinished(result):
    """A second run, whose result.json is another text, or missing."""

    def make():
        shutil.copytree("run", "second")
        os.remove("second/result.json") if result is None else Path("second/result.json").write_text(result)

    return make


IMAGES = np.zeros((5, 8, 8))
ROW = ",".join(["0"] * 64)
LIST = f"[{ROW}]\n"
ON_A_RUN = {
    # name: (arguments, what is made before, what the line says)
    "out-exists": (["train", "c.toml", "--out", "run"], file("c.toml", CONFIG), ("--out", "run", "--resume run")),
    "resume-and-out": (["train", "--resume", "run", "--out", "z"], None, ("--resume", "--out")),
    "resume-and-config": (["train", "--resume", "run", "c.toml"], None, ("--resume", "CONFIG")),
    "resume-a-folder": (["train", "--resume", "empty"], lambda: Path("empty").mkdir(), ("empty", "no run")),
    "resume-another-rate": (
        ["train", "--resume", "run", "optimizer.peak_lr=0.5"],
        None,
        ("optimizer.peak_lr", "0.001", "0.5", "train.steps", "evaluate.patience"),
    ),
    "resume-another-seed": (
        ["train", "--resume", "run", "train.seed=4"],
        None,
        ("train.seed", "0", "4", "train.steps"),
    ),
    "resume-another-kind": (
        ["train", "--resume", "run", "optimizer.kind=sgd"],
        None,
        ("optimizer.kind", "adamw", "sgd"),
    ),
    "resume-unknown-key": (["train", "--resume", "run", "train.stepz=4"], None, ("train.stepz", '"steps"')),
    "resume-fewer-steps": (["train", "--resume", "run", "train.steps=2"], None, ("train.steps", "2", "step 3")),
    "resume-epochs": (["train", "--resume", "run", "train.epochs=2"], None, ("train.epochs=2", "steps or epochs")),
    "resume-broken-config": (["train", "--resume", "run"], file("run/config.toml", "[["), ("run/config.toml", "TOML")),
    "resume-no-checkpoint": (
        ["train", "--resume", "run"],
        lambda: shutil.rmtree("run/checkpoints"),
        ("no sound check",),
    ),
    "predict-missing-file": (["predict", "run", "nope.npy"], None, ("nope.npy", "no such file")),
    "predict-wrong-shape": (
        ["predict", "run", "x.npy"],
        file("x.npy", npy(np.zeros((5, 7)))),
        ("x.npy", "[7]", "[8, 8]"),
    ),
    "predict-single-number": (["predict", "run", "x.npy"], file("x.npy", npy(np.zeros(()))), ("x.npy",)),
    "predict-no-examples": (["predict", "run", "x.npy"], file("x.npy", npy(IMAGES[:0])), ("x.npy",)),
    "predict-text": (["predict", "run", "x.npy"], file("x.npy", npy(IMAGES.astype(str))), ("x.npy", "numbers")),
    "predict-objects": (["predict", "run", "x.npy"], file("x.npy", npy(OBJECTS)), ("x.npy",)),
    "predict-suffix": (["predict", "run", "x.txt"], file("x.txt", ROW), ("x.txt", ".npy, .npz, .csv or .jsonl")),
    "predict-directory": (["predict", "run", "x.npy"], lambda: Path("x.npy").mkdir(), ("x.npy", "directory")),
    "predict-garbage": (["predict", "run", "x.npy"], file("x.npy", "garbage"), ("x.npy",)),
    "predict-garbage-npz": (["predict", "run", "x.npz"], file("x.npz", "garbage"), ("x.npz",)),
    "predict-npy-as-npz": (["predict", "run", "x.npz"], file("x.npz", npy(IMAGES)), ("x.npz",)),
    "predict-npz-as-npy": (["predict", "run", "x.npy"], file("x.npy", npz(x=IMAGES)), ("x.npy",)),
    "predict-npz-without-x": (
        ["predict", "run", "x.npz"],
        file("x.npz", npz(a=IMAGES)),
        ("x.npz", "holds a", "x_test"),
    ),
    "csv-text-in-a-line": (
        ["predict", "run", "x.csv"],
        file("x.csv", f"{ROW}\n{ROW}\na{ROW}\n"),
        ("x.csv", "line 3", "numbers"),
    ),
    "csv-longer-line": (["predict", "run", "x.csv"], file("x.csv", f"{ROW}\n{ROW},3\n"), ("x.csv", "line 2")),
    "csv-narrow": (
        ["predict", "run", "x.csv"],
        file("x.csv", "1,2,3\n"),
        ("x.csv", "line 1", "expected 64 numbers, found 3"),
    ),
    "csv-only-names": (["predict", "run", "x.csv"], file("x.csv", "a,b\n"), ("x.csv",)),
    "csv-not-utf-8": (["predict", "run", "x.csv"], file("x.csv", b"\xff\xfe\n"), ("x.csv",)),
    "csv-one-long-cell": (["predict", "run", "x.csv"], file("x.csv", "1" * 200_000), ("x.csv",)),
    "jsonl-not-json": (["predict", "run", "x.jsonl"], file("x.jsonl", LIST + "{bad\n"), ("x.jsonl", "line 2")),
    "jsonl-text": (["predict", "run", "x.jsonl"], file("x.jsonl", LIST + '["a"]\n'), ("x.jsonl", "line 2")),
    "jsonl-shorter-line": (["predict", "run", "x.jsonl"], file("x.jsonl", LIST + "[1]\n"), ("x.jsonl", "line 2")),
    "jsonl-no-x": (["predict", "run", "x.jsonl"], file("x.jsonl", LIST + '{"y": 3}\n'), ("x.jsonl", "line 2", "x")),
    "jsonl-deep": (["predict", "run", "x.jsonl"], file("x.jsonl", "[" * 100_000), ("x.jsonl",)),
    "jsonl-huge-number": (["predict", "run", "x.jsonl"], file("x.jsonl", f"[{'1' * 500}]"), ("x.jsonl",)),
    "jsonl-nothing": (["predict", "run", "x.jsonl"], file("x.jsonl"), ("x.jsonl",)),
    "predict-step": (["predict", "run", "x.npy", "--step", "7"], file("x.npy", npy(IMAGES)), ("--step", "7", "2, 3")),
    "eval-split": (["eval", "run", "--split", "tset"], None, ("--split", "'tset'", "train, validation, test")),
    "eval-step": (["eval", "run", "--step", "99"], None, ("--step", "99", "2, 3")),
    "compare-unfinished": (["compare", "run", "second"], unfinished(None), ("second", "not finished", "result.json")),
    "compare-half-a-result": (["compare", "run", "second"], unfinished("{"), ("second", "result.json")),
    "compare-an-empty-result": (["compare", "run", "second"], unfinished("{}"), ("second", "result.json")),
    "figure-suffix": (["compare", "run", "--figure", "x.bogus"], None, ("--figure", "x.bogus", "png")),
    "figure-is-a-directory": (["compare", "run", "--figure", "."], None, ("--figure",)),
    "figure-below-a-file": (
        ["compare", "run", "--figure", "run/result.json/x.png"],
        None,
        ("--figure", "run/result.json/x.png"),
    ),
}


@pytest.mark.parametrize("name", ON_A_RUN)
def test_on_a_run(name, run, refused):
    """A mistake in what is asked of a trained run changes nothing in it."""
    arguments, make, says = ON_A_RUN[name]
    if make is not None:
        make()
    refused(arguments, says)


def test_predictions_of_what_is_no_number_are_json(run, capsys):
    """An input with nan is refused, or predicted in lines that are JSON; never a bare NaN."""
    np.save("x.npy", np.full((1, 64), np.nan))
    ended = status(["predict", "run", "x.npy"])
    out, line = capsys.readouterr()
    if ended == 2:
        assert_one_line(line, ("x.npy",))
    for entry in out.splitlines():
        json.loads(entry, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


# -- the same through a process -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "says"),
    [("train.steps=many", ("argument 'train.steps=many'", "integer")), ("data.batch_size=5000", ("5000", "1257"))],
    ids=["parsed", "built"],
)
def test_process(argument, says, here):
    """`python -m functrain` ends with status 2, one line on standard error, and nothing on standard output."""
    Path("c.toml").write_text(CONFIG)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    ended = subprocess.run(
        [sys.executable, "-m", "functrain", "train", "c.toml", argument],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 2
    assert_one_line(ended.stderr, says)
    assert ended.stdout == ""
    assert list(contents(here)) == ["c.toml"]


# -- what is legal --------------------------------------------------------------------------------


def test_whole_floats_are_ints_and_ints_are_floats():
    """10.0 is a count, and 1 is a rate; the types are those that were declared."""
    data = tomllib.loads(changed("[4]", "[4.0, 1e1]", changed("steps = 3", "steps = 10.0\nseed = 0.0")))
    config = parse(Experiment, data | {"optimizer": {"peak_lr": 1}})
    found = (config.train.steps, config.train.seed, config.model.hidden, config.optimizer.peak_lr)
    assert found == (10, 0, (4, 10), 1.0)
    assert [type(v) for v in (*found[:2], *found[2], found[3])] == [int, int, int, int, float]


def test_an_argument_is_as_good_as_the_file(here):
    """The same values by overrides give the config that the file gives."""
    Path("c.toml").write_text(CONFIG)
    Path("d.toml").write_text(TASK)
    flat = configs.flatten(tomllib.loads(CONFIG))
    arguments = [f"{key}={json.dumps(value)}" for key, value in flat.items() if not key.startswith("task.")]
    assert len(arguments) == 6
    assert parse(Experiment, read("d.toml", arguments)) == parse(Experiment, read("c.toml"))


def test_resolved_config_parses_back_and_builds_to_itself(trained):
    """The config.toml of a run is whole: nothing in it is automatic, and it is a fixed point of `build`."""
    text = (trained / "config.toml").read_text()
    config = runs.read_config(trained)
    assert config == parse(Experiment, tomllib.loads(text))
    assert parse(Experiment, tomllib.loads(configs.dump(config))) == config
    assert configs.dump(config) == text
    assert build(config).config == config
    assert config != parse(Experiment, tomllib.loads(CONFIG)), "the text that was given left something open"
    assert config.train.chunk > 0
    assert config.train.loop != "auto"
    assert config.evaluate.every > 0


def test_schema(here, capsys, trained):
    """The schema takes the configs that ship and that of a run, and refuses what `parse` refuses."""
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    shipped = sorted((ROOT / "configs").glob("*.toml"))
    assert shipped
    for path in [*shipped, trained / "config.toml"]:
        validator.validate(tomllib.loads(path.read_text()))
        parse(Experiment, read(path))
    good = tomllib.loads(CONFIG)
    validator.validate(good)
    for section, change in {
        "model": {"hiden": [4]},
        "train": {"steps": "3"},
        "evaluate": {"mode": "maxx"},
        "data": {"kind": "npz"},
        "task": {"learner": {}},
        "sgd": {},
    }.items():
        bad = good | {section: good.get(section, {}) | change}
        assert not validator.is_valid(bad), section
        with pytest.raises(ConfigError):
            parse(Experiment, bad)


@pytest.mark.parametrize("key", ["model.kind", "model.activation", "data.path", "evaluate.monitor", "model.target"])
def test_text_is_never_executed(key, refused, here):
    """Text that is Python stays text, wherever a name is expected."""
    code = "__import__('os').system('touch hacked')"
    Path("c.toml").write_text(CONFIG)
    section, name = key.split(".")
    assert read("c.toml", [f"{key}={code}"]).data[section][name] == code
    kind = {"data.path": ["data.kind=npz"], "model.target": ["model={kind='custom'}"]}.get(key, [])
    refused(["train", "c.toml", *kind, f"{key}={code}"], (key,))
    refused(["train", "c.toml", *kind, f"{key}={json.dumps(code + ':x')}"], (key,))
    assert list(contents(here)) == ["c.toml"]


def test_text_stays_a_string():
    """A string of Python code that is legal where it stands is kept, letter for letter."""
    code = "__import__('os').system('touch hacked')"
    config = parse(Experiment, Source(tomllib.loads(CONFIG) | {"evaluate": {"monitor": code}}))
    assert config.evaluate.monitor == code
    assert tomllib.loads(configs.dump(config))["evaluate"]["monitor"] == code


def test_a_float_survives_the_text():
    """Numbers are written so that they are read back equal, to the last bit."""
    data = tomllib.loads(CONFIG) | {"optimizer": {"peak_lr": math.nextafter(0.1, 1), "epsilon": 5e-324}}
    config = parse(Experiment, data)
    assert parse(Experiment, tomllib.loads(configs.dump(config))) == config
