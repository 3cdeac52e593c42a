"""Models of speech: rows do not see their padding, waves not their future, and what is cached is what is computed."""

import json
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_data import write_digits_said

from functrain import trained
from functrain.cli import main
from functrain.data.sounds import read_sound, write_wav
from functrain.models import DeepSpeech, WaveNet

SMALL = DeepSpeech(
    inputs=(24, 9), outputs=5, channels=(3, 4), kernels=((5, 3), (3, 3)), strides=((2, 2), (2, 1)), width=6, layers=2
)


def test_a_row_does_not_depend_on_its_padding(float64):
    """Whatever stands past a row's end, nan too, and however much; the statistics in training neither."""
    params, state = SMALL.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (3, 24, 9))
    length = jnp.array([24, 13, 7])
    there = jnp.arange(24) < length[:, None]
    for train in (False, True):
        wanted, new = SMALL.apply(params, state, jnp.where(there[..., None], x, 0.0), length, train=train)
        found, other = SMALL.apply(params, state, jnp.where(there[..., None], x, jnp.nan), length, train=train)
        frames = SMALL.frames(length)
        assert frames.tolist() == [6, 4, 2]
        for a, b, n in zip(wanted, found, frames):
            np.testing.assert_array_equal(a[:n], b[:n])
        jax.tree.map(np.testing.assert_array_equal, new, other)
    alone = SMALL.apply(params, state, x[1:2, :13], length[1:2])[0][0]
    np.testing.assert_allclose(SMALL.apply(params, state, x, length)[0][1, :4], alone, rtol=1e-12)


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


def test_strings_are_learned_and_read(trained_on, capsys):
    """By CTC most are read, and a WAV file is, by the command."""
    run = trained_on(STRINGS)
    assert trained.evaluate(run)["error_rate"] < 0.3  # 1 by chance
    silence = np.zeros(800)  # as there is before and after every string that it was trained on
    (run.parent / "said").mkdir()
    with tarfile.open("fsdd/recordings.tar.gz") as archive:
        for digit in range(10):
            clip, rate = read_sound("", archive.extractfile(f"recordings/{digit}_ann_0.wav").read())
            write_wav(run.parent / "said" / f"{digit}.wav", np.concatenate([silence, clip / 32768, silence]), rate)
    assert main(["predict", "run", "said"]) == 0
    found = [json.loads(line)["labels"] for line in capsys.readouterr().out.splitlines()]
    assert sum(labels == [str(digit)] for digit, labels in enumerate(found)) >= 6


def test_waves_are_learned_and_drawn(trained_on):
    """Bits a sample fall; each class has a WAV file, and the spectrograms a picture."""
    run = trained_on(WAVES)
    assert trained.evaluate(run)["bits"] < 7.2  # 8 by chance
    figures = {path.name for path in (run / "figures").iterdir()}
    assert {f"{digit}.wav" for digit in range(10)} | {"spectrograms.png"} <= figures
