"""Spectra, features, codes and resampling are torchaudio's: in float64 by the formulas, in float32 within 1e-5."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import agree, draw
from torch_audio import torchaudio

from functrain import audio

torchaudio()
from torchaudio import functional as F  # noqa: E402 - there, where torchaudio is
from torchaudio import transforms as T  # noqa: E402

torch = pytest.importorskip("torch")
torch.set_num_threads(1)

pytestmark = [pytest.mark.oracle, pytest.mark.usefixtures("quick", "float64", "_double")]

RATE = 8000
FRAMES: list[dict[str, Any]] = [
    {"size": 256, "hop": 80, "window": "hann", "length": None},
    {"size": 256, "hop": 100, "window": "hamming", "length": 200},
    {"size": 201, "hop": 67, "window": "blackman", "length": 160},
]
FILTERS: list[dict[str, Any]] = [
    {"mels": 23, "low": 20.0, "high": 3800.0, "scale": "htk", "norm": False},
    {"mels": 40, "low": 0.0, "high": None, "scale": "slaney", "norm": True},
    {"mels": 12, "low": 133.3, "high": 3500.0, "scale": "slaney", "norm": False},
]


@pytest.fixture
def _double():
    """torchaudio's tables in float64; it computes them in torch's default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def compiled(f, *args, **settings):
    """f(*args, **settings), compiled with the settings as constants."""
    return jax.jit(functools.partial(f, **settings))(*map(jnp.asarray, args))


def wave(*shape, seed=0):
    """Noise whose loudness goes up and down, within -1..1."""
    x = draw(seed, *shape) * np.sin(np.linspace(0, 9, shape[-1])) * 0.2
    return np.clip(x, -1, 1)


def theirs_of(frames, centre):
    """What torchaudio calls the settings of a transform."""
    return {
        "n_fft": frames["size"],
        "hop_length": frames["hop"],
        "win_length": frames["length"],
        "window_fn": getattr(torch, f"{frames['window']}_window"),
        "center": centre != "none",
        "pad_mode": "reflect" if centre == "reflect" else "constant",
    }


@pytest.mark.parametrize("centre", ["none", "zero", "reflect"])
@pytest.mark.parametrize("frames", FRAMES, ids=lambda f: f["window"])
def test_spectra_and_back(frames, centre):
    """stft, its power, and the inverse of a spectrum that is no wave's."""
    x = wave(2, 1000)
    given = theirs_of(frames, centre)
    expected = T.Spectrogram(**given, power=None)(torch.tensor(x)).mT
    found = np.asarray(compiled(audio.stft, x, **frames, centre=centre))
    agree(np.real(found), expected.real)
    agree(np.imag(found), expected.imag)
    agree(compiled(audio.spectrogram, x, **frames, centre=centre), T.Spectrogram(**given)(torch.tensor(x)).mT)
    if centre != "none":
        other = found * draw(1, *found.shape)
        back = T.InverseSpectrogram(**given)(torch.tensor(other).mT, 970)
        agree(compiled(audio.istft, other, **frames, centre=centre, samples=970), back, 1e-12)


def their_filters(filters):
    """What torchaudio calls the settings of mel filters."""
    return {
        "f_min": filters["low"],
        "f_max": filters["high"] or RATE / 2,
        "n_mels": filters["mels"],
        "norm": "slaney" if filters["norm"] else None,
        "mel_scale": filters["scale"],
    }


@pytest.mark.parametrize("filters", FILTERS, ids=lambda f: f"{f['mels']} {f['scale']}")
def test_mel_filters(filters):
    for size in (256, 400):
        given = their_filters(filters)
        agree(
            audio.mel_filters(RATE, size, **filters), F.melscale_fbanks(size // 2 + 1, sample_rate=RATE, **given), 1e-12
        )


@pytest.mark.parametrize("frames", FRAMES[:2], ids=lambda f: f["window"])
@pytest.mark.parametrize("filters", FILTERS, ids=lambda f: f"{f['mels']} {f['scale']}")
def test_log_mel_and_cepstra(frames, filters):
    """Natural logarithms; decibels with 80 below the loudest; coefficients of both."""
    x = wave(1, 2000, seed=2)
    x[:, :700] *= 1e-9  # so that top_db and the floor do something
    given = theirs_of(frames, "zero")
    more = {**given, **their_filters(filters)}
    mel = T.MelSpectrogram(RATE, **more)(torch.tensor(x)).mT
    expected = torch.log(torch.clamp(mel, min=1e-7))
    found = compiled(audio.log_mel, x, rate=RATE, **frames, **filters, floor=1e-7)
    assert (np.asarray(found) == np.log(1e-7)).any()
    agree(found, expected, 1e-12)
    db = compiled(audio.decibels, mel.numpy())
    agree(db, T.AmplitudeToDB("power", top_db=80)(mel), 1e-12)
    assert np.isclose(np.ptp(db), 80)
    cepstra = T.MFCC(RATE, n_mfcc=11, melkwargs=more)(torch.tensor(x)).mT
    agree(compiled(audio.mfcc, db, count=11), cepstra, 1e-12)
    natural = T.MFCC(RATE, n_mfcc=11, melkwargs=more, log_mels=True)(torch.tensor(x)).mT
    agree(compiled(audio.mfcc, torch.log(mel + 1e-6).numpy(), count=11), natural, 1e-12)


def test_the_path_in_float32():
    """Log-mel energies and cepstra of float32 waves, within 1e-5 of the float64 numbers of torchaudio."""
    x = wave(3, RATE, seed=3)
    more = {"n_fft": 256, "hop_length": 80, "n_mels": 40, "norm": "slaney", "mel_scale": "slaney"}
    mel = T.MelSpectrogram(RATE, **more)(torch.tensor(x)).mT
    y = compiled(audio.log_mel, x.astype(np.float32), rate=RATE, size=256, hop=80, mels=40, centre="reflect")
    assert y.dtype == jnp.float32
    agree(np.asarray(y, np.float64), torch.log(mel), 1e-5)
    dct = F.create_dct(13, 40, "ortho")
    agree(np.asarray(audio.mfcc(y), np.float64), torch.log(mel) @ dct, 1e-5)


@pytest.mark.parametrize("reach", [1, 2, 4])
def test_deltas(reach):
    """The first and the last frame stand for those outside; second derivatives are deltas of deltas."""
    x = draw(4, 2, 30, 5)
    first = compiled(audio.deltas, x, reach=reach)
    expected = F.compute_deltas(torch.tensor(x).mT, 2 * reach + 1)
    agree(first, expected.mT)
    agree(compiled(audio.deltas, first, reach=reach), F.compute_deltas(expected, 2 * reach + 1).mT)


@pytest.mark.parametrize("levels", [256, 1024])
def test_mu_law(levels):
    """The same codes, in float32 but for the few that rounding decides; the same samples for every code."""
    x = np.concatenate([np.random.default_rng(5).uniform(-1, 1, 20000), draw(6, 20000) * 0.01, [0, 1, -1]])
    found = compiled(audio.mu_law_encode, x, levels=levels)
    np.testing.assert_array_equal(found, F.mu_law_encoding(torch.tensor(x), levels))
    single = compiled(audio.mu_law_encode, x.astype(np.float32), levels=levels)
    off = np.abs(single - F.mu_law_encoding(torch.tensor(x, dtype=torch.float32), levels).numpy())
    assert off.max() <= 1
    assert off.mean() < 1e-3
    codes = torch.arange(levels)
    agree(audio.mu_law_decode(jnp.asarray(codes), levels=levels), F.mu_law_decoding(codes.double(), levels))


@pytest.mark.parametrize(("old", "new"), [(16000, 8000), (8000, 16000), (44100, 16000), (22050, 8000), (3, 7)])
@pytest.mark.parametrize(("lobes", "rolloff"), [(6, 0.99), (16, 0.9)])
def test_resample(old, new, lobes, rolloff):
    x = wave(2, 3001, seed=7)
    expected = F.resample(torch.tensor(x), old, new, lowpass_filter_width=lobes, rolloff=rolloff)
    found = compiled(lambda x: audio.resample(x, old, new, lobes=lobes, rolloff=rolloff), x)
    agree(found, expected)
    assert audio.sample_count(3001, old, new) == expected.shape[1]
    single = compiled(lambda x: audio.resample(x, old, new, lobes=lobes, rolloff=rolloff), x.astype(np.float32))
    agree(np.asarray(single, np.float64), expected, 1e-6)
