"""Sounds: read from WAV of any width, cut and filled up, turned into features, joined to strings."""

import dataclasses
import sys
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_data import wav, write_digits_said

from functrain.audio import MFCC, LogMel, MuLaw, Spectrogram, Wave
from functrain.building import build
from functrain.config import ConfigError, Source, parse
from functrain.data.feed import Augmented, Whole
from functrain.data.sounds import PADDING, JoinedSounds, SoundFiles, read_sound, resampled, write_wav
from functrain.experiment import Experiment
from functrain.observe import spectrogram_figure

PATTERN = r"(?P<digit>\d)_(?P<speaker>[a-z]+)_(?P<take>\d+)\.wav$"


@pytest.fixture
def said(tmp_path):
    """An archive of 120 clips, where sources look for it."""
    write_digits_said(tmp_path / "fsdd", np.random.default_rng(0))
    return {"path": str(tmp_path / "fsdd" / "recordings.tar.gz"), "pattern": PATTERN, "label": "digit"}


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_wav_of_any_width(width):
    """The same wave, to the step of its width; two channels become their mean."""
    values = np.array([0.5, -0.25, 0.0, -0.5, 0.75])
    found, rate = read_sound("a", wav(values, 11025, width))
    assert rate == 11025
    np.testing.assert_array_equal(found, values * 32768)
    both, _ = read_sound("a", wav(np.stack([values, -values], 1), width=width))
    np.testing.assert_array_equal(both, np.zeros(5))


def test_a_wave_written_is_read(tmp_path):
    """To half a step; what is beyond 1 is cut, and never PADDING."""
    write_wav(tmp_path / "a.wav", np.array([0.1, -0.2, 2.0, -2.0]), 8000)
    found, rate = read_sound("a", tmp_path / "a.wav")
    np.testing.assert_allclose(found / 32768, [0.1, -0.2, 32767 / 32768, -32767 / 32768], atol=0.5 / 32768)
    assert rate == 8000
    assert PADDING not in found


def test_other_formats_need_soundfile(tmp_path, monkeypatch):
    """With it a FLAC file is read; without, the message names the extra."""
    x = np.round(np.sin(np.arange(500) / 9) * 9000).astype(np.int16)
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "a.flac", x, 8000)
    np.testing.assert_array_equal(read_sound("a", tmp_path / "a.flac")[0], x)
    with pytest.raises(ConfigError, match=r"a: cannot be read as a sound"):
        read_sound("a", b"no sound at all")
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(ConfigError, match=r"pip install 'functrain\[audio\]'"):
        read_sound("a", tmp_path / "a.flac")


def test_another_rate_keeps_the_tone():
    """A tone of 200 Hz at 11,025 a second is one at 8,000."""
    x = np.round(9000 * np.sin(2 * np.pi * 200 * np.arange(11025) / 11025)).astype(np.int16)
    wanted = 9000 * np.sin(2 * np.pi * 200 * np.arange(8000) / 8000)
    found = resampled(x, 11025, 8000)
    assert len(found) == 8000
    assert np.abs(found - wanted)[200:-200].max() < 30


def test_splits_and_padding(said):
    """Files whose names say so are the test; PADDING past the end of each, and nowhere else."""
    source = SoundFiles(**said, test_pattern="_0.wav$", seconds=0.15)
    made = source.load()
    assert (len(made.train["x"]), len(made.validation["x"]), len(made.test["x"])) == (90, 10, 20)
    assert made.test["x"].shape == (20, 1200)
    assert np.bincount(made.test["y"]).tolist() == [2] * 10
    assert made.found["class_names"] == tuple("0123456789")
    with tarfile.open(said["path"]) as archive:
        clips = [read_sound("", archive.extractfile(f"recordings/3_{who}_0.wav").read())[0] for who in ("ann", "bob")]
    for row, clip in zip(made.test["x"][made.test["y"] == 3], clips):
        np.testing.assert_array_equal(row[: len(clip)], clip[:1200])
        assert (row[len(clip) :] == PADDING).all()
    scaled = source.scaled({"x": jnp.asarray(made.test["x"])})
    assert scaled["length"].tolist() == (made.test["x"] != PADDING).sum(1).tolist()
    x = np.where(made.test["x"] == PADDING, 0, made.test["x"])
    np.testing.assert_array_equal(scaled["x"] * 32768, x)


@pytest.mark.parametrize("features", [LogMel(mels=12), MFCC(mels=12, coefficients=5, deltas=2), Spectrogram()])
def test_features_are_standardised(said, features):
    """Mean 0 and deviation 1 of each feature over the frames of the training clips; 0 past their ends."""
    source = SoundFiles(**said, features=features)
    made = source.load()
    source = dataclasses.replace(source, **made.found)
    batch = jax.jit(source.prepare)({"x": jnp.asarray(made.train["x"])})
    x, length = np.asarray(batch["x"], np.float64), np.asarray(batch["length"])
    assert x.shape[1:] == made.inputs
    frames = np.concatenate([row[:n] for row, n in zip(x, length)])
    np.testing.assert_allclose(frames.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(frames.std(0), 1, atol=1e-4)
    assert all((row[n:] == 0).all() for row, n in zip(x, length))


@pytest.mark.parametrize("features", [LogMel(mels=12, deltas=1), MFCC(mels=12, coefficients=5), Wave(), MuLaw()])
def test_features_do_not_depend_on_padding(said, features):
    """A clip's own frames are the same, whatever stands past it."""
    x = jax.random.uniform(jax.random.key(0), (2, 900), minval=-1)
    short = jnp.where(jnp.arange(900) < 500, x, 0)
    wide, length = features.apply(short, jnp.array([500, 500]), 8000)
    alone, frames = features.apply(short[:, :500], jnp.array([500, 500]), 8000)
    assert length.tolist() == frames.tolist()
    assert alone.shape[1:] == features.shape(500, 8000)
    np.testing.assert_allclose(wide[:, : frames[0]], alone[:, : frames[0]], atol=2e-5)


def clips_said(x, own, gap):
    """The labels of the clips in a string, each followed by `gap` samples of silence, which it begins with too."""
    rest, labels = x[gap:][x[gap:] != PADDING], []
    assert not x[:gap].any()
    while len(rest):
        n = next(n for n in range(1, len(rest) + 1) if rest[:n].tobytes() in own)
        labels.append(own[rest[:n].tobytes()])
        assert rest[n : n + gap].tolist() == [0] * gap
        rest = rest[n + gap :]
    return labels


@pytest.mark.parametrize("gap", [0, 400])
def test_strings_are_their_clips(said, gap):
    """The wave of a string has the clips of its labels in order, silence round each, and as many as may be; of one
    split's clips alone, each split by its own numbers. Where they are cut, no clip and no silence is."""
    silence = (gap / 8000, gap / 8000)
    source = JoinedSounds(**said, clips_of=(2, 3), gap=silence, train_strings=30, validation_strings=5, test_strings=8)
    made = source.load()
    assert made.train["x"].shape[0] == 30
    assert (made.classes, made.train["y"].shape) == (10, (30, 3))
    parts, rate, _ = source.clips()
    for split in ("train", "test"):
        waves, labels = parts[split]
        own = {wave.tobytes(): label for wave, label in zip(waves, labels)}
        for x, y in zip(made.split(split)["x"], made.split(split)["y"]):
            assert clips_said(x, own, gap) == [label for label in y if label >= 0]
        assert set((made.split(split)["y"] >= 0).sum(1)) == {2, 3}
    counts = [(part["y"] >= 0).sum(1).tolist() for part in (made.train, made.test)]
    assert counts[0][:8] != counts[1]
    cut = JoinedSounds(**said, clips_of=(1, 5), gap=silence, seconds=0.4, train_strings=60).load()
    assert cut.train["x"].shape[1] == 0.4 * rate
    own = {wave.tobytes(): label for wave, label in zip(*parts["train"])}
    for x, y in zip(cut.train["x"], cut.train["y"]):
        assert clips_said(x, own, gap) == [label for label in y if label >= 0] != []


def test_clips_come_to_one_rate_and_length(tmp_path):
    """Those of the training part, whatever the test has; so too the files of a prediction."""
    for name, rate, seconds in (("1_a_1", 8000, 0.1), ("2_a_1", 16000, 0.1), ("1_b_1", 8000, 0.2)):
        x = 0.5 * np.sin(2 * np.pi * 200 * np.arange(round(rate * seconds)) / rate)
        (tmp_path / f"{name}.wav").write_bytes(wav(x, rate))
    given = {"path": str(tmp_path), "pattern": PATTERN, "label": "digit", "rate": 8000, "test_pattern": "_b_"}
    source = SoundFiles(**given, validation=0.0, normalise="none")
    made = source.load()
    every = [*made.train["x"][np.argsort(made.train["y"])], made.test["x"][0]]
    wanted = 16384 * np.sin(2 * np.pi * 200 * np.arange(800) / 8000)
    for row in every:
        assert len(row) == 800
        assert np.abs(row - wanted)[100:-100].max() < 200
    source = dataclasses.replace(source, **made.found)
    np.testing.assert_array_equal(source.read_inputs(str(tmp_path)), [every[0], every[2], every[1]])  # by name


def test_mistakes_are_named(said, tmp_path):
    """One line with the key, what was found and what would be right."""
    for change, words in (
        ({"pattern": "["}, "pattern: found '\\['; no regular expression"),
        ({"label": "who"}, "label: found 'who'; the pattern's named groups are: digit, speaker, take"),
    ):
        with pytest.raises(ValueError, match=words):
            SoundFiles(**said | change)
    for change, words in (
        ({"pattern": r"(?P<digit>\d)\.mp9"}, "holds no sounds whose names have data.pattern"),
        ({"test_pattern": "_77"}, "data.test_pattern: found '_77'; no file's path has it"),
        ({"class_names": ("1", "2")}, "no class '0'; there are: 1, 2"),
        ({"test_pattern": "/9_"}, "no class '9'; there are: 0, 1, 2, 3, 4, 5, 6, 7, 8"),
        ({"features": MFCC(mels=3, coefficients=9)}, "data.features: .*coefficients; expected 1 to 3"),
    ):
        with pytest.raises(ConfigError, match=words):
            SoundFiles(**said | change).load()
    (tmp_path / "two").mkdir()
    for name, rate in (("1_a_1", 8000), ("2_a_1", 16000)):
        (tmp_path / "two" / f"{name}.wav").write_bytes(wav(np.zeros(400), rate))
    two = said | {"path": str(tmp_path / "two")}
    with pytest.raises(
        ConfigError, match=r"data.rate: missing; clips differ in samples a second: 1 of 8000, 1 of 16000"
    ):
        SoundFiles(**two).load()
    (tmp_path / "two" / "3_a_1.wav").write_bytes(b"RIFF")
    with pytest.raises(ConfigError, match=r"two: 3_a_1.wav: "):
        SoundFiles(**two).load()


@dataclasses.dataclass(frozen=True)
class SeededWhole(Whole):
    """A feed with a seed, as those of sources have."""

    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Noted:
    """An augmentation that notes its name and what it saw."""

    name: str
    on_features: bool

    def apply(self, batch, *, key):
        """The batch with its note."""
        return batch | {"notes": [*batch["notes"], self.name]}


def test_features_are_augmented_after_they_are_made(said):
    """Whatever the order of the list; so too where a config is checked."""
    feed = SeededWhole({"notes": []})
    kinds = (Noted("a", True), Noted("b", False), Noted("c", True))
    given = Augmented(feed, kinds, lambda batch: batch | {"notes": [*batch["notes"], "features"]})
    assert given.batch(feed.window(0, 1), 0)["notes"] == ["b", "features", "a", "c"]
    table = {"kind": "sound_files", **said, "seconds": 0.1}
    settings = {"task": {"kind": "classification"}, "model": {"kind": "mlp"}, "train": {"steps": 2}, "data": table}
    kinds = [{"kind": "mask_time"}, {"kind": "shift"}]
    build(parse(Experiment, Source(settings | {"augment": kinds})))
    with pytest.raises(ConfigError, match=r"augment.1: flip: x must be images"):
        build(parse(Experiment, Source(settings | {"augment": [kinds[0], {"kind": "flip"}]})))


def test_spectrograms_stand_in_the_column_of_their_class(tmp_path, monkeypatch):
    """A class without a wave leaves its place empty. A tone of 1 kHz is drawn there, low tones below; ten times
    softer is 20 dB less."""
    seen = []
    monkeypatch.setattr(spectrogram_figure, "save_figure", lambda figure, path: seen.append(figure))
    tone = np.sin(2 * np.pi * 1000 * np.arange(1600) / 8000) * np.where(np.arange(1600) < 800, 1, 0.1)
    spectrogram_figure.spectrogram_picture(
        {"drawn": [tone, tone, tone], "real": [None, tone, None]}, 8000, ("x", "y", "z"), tmp_path / "a.png"
    )
    drawn = [len(axis.images) for axis in seen[0].axes]
    assert drawn == [1, 1, 1, 0, 1, 0]
    assert [axis.get_title() for axis in seen[0].axes[:3]] == ["x", "y", "z"]
    image = seen[0].axes[0].images[0]
    power = np.asarray(image.get_array())
    np.testing.assert_allclose(power[:, [0, -1]].max(0), [0, -20], atol=0.01)
    assert image.get_extent() == [0, 0.2, 0, 4]
    assert image.origin == "lower"
    np.testing.assert_allclose(4 * power.argmax(0)[[0, -1]] / (len(power) - 1), 1)
