"""Models of speech: rows do not see their padding, waves not their future, and what is cached is what is computed."""

import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_data import write_digits_said

from functrain import trained
from functrain.cli import main
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


DATA = """
[data]
path = "fsdd/recordings.tar.gz"
pattern = '(?P<digit>\\d)_(?P<speaker>[a-z]+)_(?P<take>\\d+)\\.wav$'
label = "digit"
test_pattern = '_0\\.wav$'
batch_size = 16
"""


def test_strings_are_learned_and_read(tmp_path, monkeypatch, capsys):
    """Tones for digits, by CTC: most are read, and a WAV file is, by the command."""
    write_digits_said(tmp_path / "fsdd", np.random.default_rng(0))
    monkeypatch.chdir(tmp_path)
    strings = '[data]\nkind = "joined_sounds"\nclips_of = [1, 2]\ntrain = 300\nvalidation_strings = 40\ntest_strings = 40\nfeatures = { kind = "log_mel", mels = 20 }\n'
    (tmp_path / "ctc.toml").write_text(
        '[task]\nkind = "ctc"\n[model]\nkind = "deepspeech"\nchannels = [8]\nkernels = [[5, 5]]\nstrides = [[2, 2]]\n'
        "layers = 1\nwidth = 32\n" + DATA.replace("[data]\n", strings) + "[optimizer]\nkind = 'adam'\npeak_lr = 1e-2\n"
        "schedule = { kind = 'cosine' }\n[train]\nsteps = 600\n[evaluate]\nmonitor = 'error_rate'\n"
    )
    assert main(["train", "ctc.toml", "--out", "run"]) == 0
    capsys.readouterr()
    assert trained.evaluate(tmp_path / "run")["error_rate"] < 0.3
    with tarfile.open("fsdd/recordings.tar.gz") as archive:
        (tmp_path / "said.wav").write_bytes(archive.extractfile("recordings/7_ann_0.wav").read())
    capsys.readouterr()
    assert main(["predict", "run", "said.wav"]) == 0
    assert capsys.readouterr().out == '{"labels": ["7"]}\n'


def test_waves_are_learned_and_drawn(tmp_path, monkeypatch):
    """Bits a sample fall; each class has a WAV file, and the spectrograms a picture."""
    write_digits_said(tmp_path / "fsdd", np.random.default_rng(0))
    monkeypatch.chdir(tmp_path)
    sounds = '[data]\nkind = "sound_files"\nseconds = 0.1\nlengths = true\nfeatures = { kind = "mu_law" }\n'
    (tmp_path / "wave.toml").write_text(
        '[task]\nkind = "waveform"\n[model]\nkind = "wavenet"\nstacks = 1\nlayers = 5\nchannels = 8\nskip = 16\n'
        + DATA.replace("[data]\n", sounds)
        + "[optimizer]\nkind = 'adam'\npeak_lr = 1e-2\n[train]\nsteps = 60\n"
    )
    assert main(["train", "wave.toml", "--out", "run"]) == 0
    assert trained.evaluate(tmp_path / "run")["bits"] < 7.2  # 8 by chance
    figures = {path.name for path in (tmp_path / "run" / "figures").iterdir()}
    assert {f"{digit}.wav" for digit in range(10)} | {"spectrograms.png"} <= figures
