"""Models of speech: rows do not see their padding, waves not their future, and what is cached is what is computed."""

import dataclasses
import json
import tarfile
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_data import write_digits_said

from functrain.audio import mu_law_decode
from functrain.cli import main
from functrain.data.sounds import read_sound, write_wav
from functrain.models import DeepSpeech, WaveNet
from functrain.tasks import waveform
from functrain.tasks.waveform import Waveform

SMALL = DeepSpeech(
    inputs=(24, 9), outputs=5, channels=(3, 4), kernels=((5, 3), (3, 3)), strides=((2, 2), (2, 1)), width=6, layers=2
)


def test_a_row_does_not_depend_on_its_padding(float64):
    """Whatever stands past a row's end, nan too, and however much; the statistics in training neither."""
    params, state = jax.jit(SMALL.init)(jax.random.key(0))
    apply = jax.jit(SMALL.apply, static_argnames="train")
    x = jax.random.normal(jax.random.key(1), (3, 24, 9))
    length = jnp.array([24, 13, 7])
    there = jnp.arange(24) < length[:, None]
    for train in (False, True):
        wanted, new = apply(params, state, jnp.where(there[..., None], x, 0.0), length, train=train)
        found, other = apply(params, state, jnp.where(there[..., None], x, jnp.nan), length, train=train)
        frames = SMALL.frames(length)
        assert frames.tolist() == [6, 4, 2]
        for a, b, n in zip(wanted, found, frames):
            np.testing.assert_array_equal(a[:n], b[:n])
        jax.tree.map(np.testing.assert_array_equal, new, other)
    alone = apply(params, state, x[1:2, :13], length[1:2])[0][0]
    np.testing.assert_allclose(apply(params, state, x, length)[0][1, :4], alone, rtol=1e-12)


def test_statistics_are_of_the_sound_alone(float64, quick):
    """In a wider batch the same outputs in training and the same new state; a row's last frame is read."""
    model = dataclasses.replace(SMALL, layers=1)
    params, state = jax.jit(model.init)(jax.random.key(0))
    x, length = jax.random.normal(jax.random.key(1), (3, 24, 9)), jnp.array([24, 13, 7])
    apply = jax.jit(model.apply, static_argnames="train")
    wanted, new = apply(params, state, x, length, train=True)
    found, other = apply(params, state, jnp.pad(x, ((0, 0), (0, 8), (0, 0))), length, train=True)
    for a, b, n in zip(wanted, found, SMALL.frames(length)):
        np.testing.assert_allclose(a[:n], b[:n], rtol=1e-10)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), new, other)
    assert all((new[name]["mean"] != state[name]["mean"]).all() for name in state)
    wanted, found = (apply(params, state, x, length)[0] for x in (x, x.at[1, 12].add(1)))
    assert (wanted[1, 3] != found[1, 3]).all()


def test_wavenet_is_its_equations(float64, quick):
    """Layer by layer in NumPy: gate and filter of this place and of that so many before, the class in both; residuals
    on the way, and of all layers the sum, which goes through two products."""
    model = WaveNet(outputs=7, stacks=2, layers=2, channels=3, skip=5, classes=2)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: rng.normal(size=p.shape), model.init(jax.random.key(0))[0])
    x, label = rng.integers(0, 7, (2, 12)), np.array([1, 0])

    def product(layer, h):
        return h @ layer["kernel"] + layer["bias"]

    h, total = params["codes"]["table"][x], 0
    for i, dilation in enumerate((1, 2, 1, 2)):
        layer = params[f"layer{i}"]
        before = np.pad(h, ((0, 0), (dilation, 0), (0, 0)))[:, :12]
        both = before @ layer["conv"]["kernel"][0] + h @ layer["conv"]["kernel"][1] + layer["conv"]["bias"]
        both = both + layer["class"]["table"][label][:, None]
        z = np.tanh(both[..., :3]) / (1 + np.exp(-both[..., 3:]))
        total = total + product(layer["skip"], z)
        h = h + product(layer["residual"], z) if i < 3 else h
    wanted = product(params["out1"], np.maximum(product(params["out0"], np.maximum(total, 0)), 0))
    np.testing.assert_allclose(jax.jit(model.apply)(params, {}, x, label)[0], wanted, rtol=1e-12)


def test_no_leak_from_the_future():
    """A changed code changes no logits before it, and those after it as far as the receptive field reaches."""
    model = WaveNet(outputs=16, stacks=2, layers=3, channels=4, skip=5, kernel=3)
    params, state = model.init(jax.random.key(0))
    x = jax.random.randint(jax.random.key(1), (1, 60), 0, 16)
    changed = x.at[0, 20].set((x[0, 20] + 1) % 16)
    apply = jax.jit(lambda x: model.apply(params, state, x)[0][0])
    moved = np.flatnonzero(np.abs(apply(x) - apply(changed)).max(-1) > 0)
    assert model.receptive_field == 2 * 2 * (1 + 2 + 4) + 1
    assert (moved.min(), moved.max()) == (20, 20 + model.receptive_field - 1)
    assert WaveNet(stacks=3, layers=10).receptive_field == 3070


@pytest.mark.parametrize("pieces", [[1] * 30, [7, 1, 22]])
def test_cached_is_full(pieces):
    """Code by code, or piece by piece, with a class: the logits of the whole."""
    model = WaveNet(outputs=16, stacks=2, layers=3, channels=4, skip=5, classes=3)
    params, state = model.init(jax.random.key(0))
    x, label = jax.random.randint(jax.random.key(1), (2, 30), 0, 16), jnp.array([2, 0])
    wanted = model.apply(params, state, x, label)[0]
    memory, found, at = model.remember(2) | {"label": label}, [], 0
    apply = jax.jit(lambda memory, x: model.apply(params, memory, x))
    for n in pieces:
        logits, memory = apply(memory, x[:, at : at + n])
        found, at = [*found, logits], at + n
    np.testing.assert_allclose(jnp.concatenate(found, 1), wanted, rtol=1e-4, atol=1e-5)
    other = model.apply(params, state, x, jnp.array([1, 0]))[0]
    assert np.abs(other[0] - wanted[0]).max() > 1e-3
    np.testing.assert_array_equal(other[1], wanted[1])


@dataclasses.dataclass(frozen=True)
class Counting:
    """A model of 16 codes that expects after each the one that lies 1 and the class higher."""

    classes: int = 0

    def apply(self, params, state, x, label=None, *, key=None, train=False):
        """Logits of 99 less, or 3 less in training, for all others."""
        label = state.get("label", label)
        after = (x + 1 + (0 if label is None else label[:, None])) % 16
        return (3.0 if train else 99.0) * jax.nn.one_hot(after, 16), state

    def remember(self, batch):
        """Nothing."""
        return {}


@pytest.fixture
def counting():
    """The task with that model; a learner that changes no weights."""
    learner = SimpleNamespace(weights=lambda player: player, precision=lambda f: f)
    return Waveform(codes=16, rate=4000, classes=3).assemble(Counting(), lambda name: learner)


def test_codes_are_told_from_those_before(counting):
    """The first from silence, 8; in bits a sample, of the sound in the rows that count."""
    codes = (8 + np.array([[1], [3], [2]]) * np.arange(1, 9)) % 16
    batch = {"x": codes, "y": np.array([0, 2, 0]), "length": np.array([8, 5, 8]), "mask": np.array([1.0, 1.0, 0.0])}
    batch["x"][1, 5:] = 8
    for train, bits in ((True, np.log2(1 + 15 * np.exp(-3))), (False, 0)):
        loss, _, metrics = counting.full_loss({}, {}, jax.tree.map(jnp.asarray, batch), key=None, train=train)
        np.testing.assert_allclose(metrics["bits"].total / 13, bits, rtol=1e-5)
        np.testing.assert_allclose(loss.total, metrics["bits"].total * np.log(2), rtol=1e-6)
        assert loss.count == metrics["bits"].count == 13
    assert metrics["accuracy"].total == 13


def test_a_wave_of_each_class_is_drawn(counting, tmp_path, monkeypatch):
    """From silence on, at the rate of the data, beside the first real one of its class."""
    shown = []
    monkeypatch.setattr(waveform, "spectrogram_picture", lambda *given: shown.append(given))
    state = SimpleNamespace(players={"model": {}}, state={})
    outputs = counting.outputs_of(state, jnp.zeros((4, 20), int))
    wanted = (8 + np.array([[1], [2], [3], [1]]) * np.arange(1, 21)) % 16
    np.testing.assert_array_equal(outputs["codes"], wanted)
    outputs = counting.drawn(state, {"x": jnp.zeros((2, 20), int)})  # of fewer examples than classes
    np.testing.assert_array_equal(outputs["codes"], wanted[:3])
    real = np.linspace(-1, 1, 4)[:, None] * np.ones(20)
    counting.draw(outputs, {"x": real, "y": np.array([2, 0, 2, 0])}, tmp_path, ("no", "o/ne", "yes"))
    for name, codes in zip(("no", "o_ne", "yes"), wanted):
        found, rate = read_sound("", tmp_path / f"{name}.wav")
        assert rate == 4000
        np.testing.assert_allclose(found / 32768, mu_law_decode(codes, levels=16), atol=1e-4)
    rows, rate, names, _ = shown[0]
    assert (rate, names, len(rows["drawn"])) == (4000, ["no", "o/ne", "yes"], 3)
    assert [None if x is None else x[0] for x in rows["real"]] == [real[1, 0], None, real[0, 0]]
    told_nothing = dataclasses.replace(counting, conditioned=False, classes=0)
    outputs = told_nothing.drawn(state, {"x": jnp.zeros((2, 20), int)})
    np.testing.assert_array_equal(outputs["codes"], (8 + np.arange(1, 21))[None] % 16)
    paths = told_nothing.draw(outputs, {"x": real, "y": np.zeros(4, int)}, tmp_path, ("no", "one"))
    assert [path.name for path in paths] == ["wave.wav", "spectrograms.png"]
    assert shown[1][2] == ["wave"]


CLIPS = """
path = "fsdd/recordings.tar.gz"
pattern = '(?P<digit>\\d)_[a-z]+_\\d+\\.wav$'
label = "digit"
test_pattern = '_0\\.wav$'
batch_size = 16
"""

STRINGS = (
    """
[task]
kind = "ctc"
[model]
kind = "deepspeech"
channels = [8]
kernels = [[5, 5]]
strides = [[2, 2]]
layers = 1
width = 32
[data]
kind = "joined_sounds"
clips_of = [1, 2]
train_strings = 300
validation_strings = 40
test_strings = 40
features = { kind = "log_mel", mels = 20 }
"""
    + CLIPS
    + """
[optimizer]
kind = "adam"
peak_lr = 1e-2
schedule = { kind = "cosine" }
[train]
steps = 600
[observe]
figures = false
tensorboard = false
[evaluate]
monitor = "error_rate"
"""
)

WAVES = (
    """
[task]
kind = "waveform"
[model]
kind = "wavenet"
stacks = 1
layers = 5
channels = 8
skip = 16
[data]
kind = "sound_files"
seconds = 0.1
features = { kind = "mu_law" }
"""
    + CLIPS
    + """
[optimizer]
kind = "adam"
peak_lr = 1e-2
[train]
steps = 60
[observe]
tensorboard = false
"""
)


@pytest.fixture
def trained_on(tmp_path, monkeypatch, capsys):
    """The folder of a run of a config on tones for digits."""

    def train(config):
        write_digits_said(tmp_path / "fsdd", np.random.default_rng(0))
        monkeypatch.chdir(tmp_path)
        (tmp_path / "said.toml").write_text(config)
        assert main(["train", "said.toml", "--out", "run"]) == 0
        capsys.readouterr()
        return tmp_path / "run"

    return train


def reached(run):
    """What a run reached on the test."""
    return json.loads((run / "result.json").read_text())["test"]


def test_strings_are_learned_and_read(trained_on, capsys):
    """By CTC most are read, and a WAV file is, by the command."""
    run = trained_on(STRINGS)
    assert reached(run)["error_rate"] < 0.3  # 1 by chance
    silence = np.zeros(800)  # as there is before and after every string that it was trained on
    (run.parent / "said").mkdir()
    with tarfile.open("fsdd/recordings.tar.gz") as archive:
        for digit in range(10):
            clip, rate = read_sound("", archive.extractfile(f"recordings/{digit}_ann_0.wav").read())
            write_wav(run.parent / "said" / f"{digit}.wav", np.concatenate([silence, clip / 32768, silence]), rate)
    assert main(["predict", "run", "said"]) == 0
    found = [json.loads(line)["labels"] for line in capsys.readouterr().out.splitlines()]
    assert sum(labels == [str(digit)] for digit, labels in enumerate(found)) >= 6


@pytest.mark.usefixtures("quick")
def test_waves_are_learned_and_drawn(trained_on):
    """Bits a sample fall; each class has a WAV file, and the spectrograms a picture."""
    run = trained_on(WAVES)
    assert reached(run)["bits"] < 7.2  # 8 by chance
    figures = {path.name for path in (run / "figures").iterdir()}
    assert {f"{digit}.wav" for digit in range(10)} | {"spectrograms.png"} <= figures
