"""Sounds: clips of a folder or an archive with what their names say of them, and strings of several clips joined.

As it comes from the source, x [n, samples] int16 is a clip and, where it is shorter than the longest, PADDING. On the
device it becomes a wave in -1..1 with its `length` [n] in samples (`scaled`), then features (`normalised`).
"""

import collections
import dataclasses
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from functrain.audio import AnyFeatures, LogMel
from functrain.config import ConfigError, Count, NonNegative, Size, Text, configclass
from functrain.data.archive import Files
from functrain.data.base import Normalised, Split
from functrain.data.clips import PADDING, Clips, filled, read_sound, resampled, write_wav
from functrain.data.dataset import SPLITS, Dataset, dataset
from functrain.data.reading import streamed
from functrain.data.streaming import Streaming

# pyright: reportInvalidTypeForm=false
# The union of kinds is built by a function, which a static checker cannot follow.

__all__ = ["PADDING", "JoinedSounds", "SoundFiles", "read_sound", "resampled", "write_wav"]

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".mp3", ".aif", ".aiff", ".au")
_AT_ONCE = 64
"""Clips whose features are taken together where they are measured."""


@configclass
class SoundFiles(Streaming, Split, Normalised):
    """Clips of sound, one class each, which a part of their names says: LABEL/NAME.wav, or any pattern.

    WAV of whole numbers is read by Python itself; all else (.flac, .ogg, .mp3, WAV of floats) by soundfile (extra
    `audio`). Several channels become their mean.
    """

    kind: Literal["sound_files"] = "sound_files"
    path: Text
    """The folder or archive (.tar.gz, .zip); looked for in the working directory, then where FUNCTRAIN_DATA points."""
    pattern: Text = r"(?P<label>[^/]+)/[^/]+$"
    """A regular expression that is searched for in each file's path; files without it are left out. The default takes
    the folder for the label."""
    label: Text = "label"
    """The named group of the pattern that is the class."""
    test_pattern: str = ""
    """A regular expression: files whose path has it are the test; empty is a share at random."""
    rate: Count = 0
    """Samples a second, to which clips of another rate are brought; 0 is that of the files, which must agree."""
    seconds: NonNegative = 0.0
    """How long a clip is at most, its end cut off; 0 is the longest of the training part."""
    features: AnyFeatures = LogMel()
    """What the model sees of a clip; a table with a kind."""
    normalise: Literal["none", "standard", "range"] = "standard"
    """By feature, over the frames of the training clips: standard, less the mean, over the deviation; range, to 0..1.
    Waves and codes stay as they are."""
    class_names: tuple[str, ...] = ()
    """The classes, in the order of their numbers; taken from the training clips, sorted."""
    samples: Count = 0
    """The longest clip in samples; taken from the training part."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("pattern", "test_pattern"):
            try:
                compiled = re.compile(getattr(self, name))
            except re.error as error:
                raise ValueError(f"{name}: found {getattr(self, name)!r}; no regular expression: {error}") from None
            if name == "pattern" and self.label not in compiled.groupindex:
                groups = ", ".join(compiled.groupindex) or "none"
                raise ValueError(f"label: found {self.label!r}; the pattern's named groups are: {groups}")

    def load(self) -> Dataset:
        """x [n, samples] int16, y [n] the classes."""
        if self.stream:
            return self._streamed()
        parts, rate, names = self.clips()
        samples = self._longest(parts["train"][0], rate)
        arrays = {split: {"x": filled(waves, samples), "y": y} for split, (waves, y) in parts.items()}
        return self.described(dataset(f"data.path: {self.path}", arrays, len(names)), rate, names)

    def _streamed(self) -> Dataset:
        """The training clips left in their files."""
        files, parts, names = self._found()
        if any(isinstance(held, bytes) for held in files.held.values()):
            raise ConfigError(f"{files.where}: an archive is read whole; unpack it, or set data.stream = false")
        if not self.samples and not self.seconds:
            raise ConfigError("data.seconds: missing; where data.stream = true no clip is read to find the longest")
        if not parts.get("train"):
            raise ConfigError(f"{files.where}: no training examples")
        rate = self.rate or read_sound(files.where, Path(str(files.held[parts["train"][0][0]])))[1]
        samples = self.samples or math.ceil(self.seconds * rate)

        def clips(split):
            at, y = parts[split]
            return Clips(files.where, tuple(str(files.held[n]) for n in at), y, rate, not self.rate, samples)

        memory = {s: some.read_batch(np.arange(len(some))) for s in SPLITS[1:] if s in parts for some in [clips(s)]}
        made = streamed(f"data.path: {self.path}", clips("train"), memory, len(names), {"y": parts["train"][1]})
        return self.described(made, rate, names)

    def clips(self) -> tuple[dict[str, tuple[list[np.ndarray], np.ndarray]], int, tuple[str, ...]]:
        """The clips of each split with their labels [n], samples a second, and the classes' names.

        Raises:
          ConfigError: no file has the pattern, one cannot be read, or rates differ.
        """
        files, parts, names = self._found()
        of_split = {split: len(of) for split, (of, _) in parts.items()}
        rate, waves = self._read(files, [name for of, _ in parts.values() for name in of])
        left = iter(waves)
        return {s: ([next(left) for _ in range(n)], parts[s][1]) for s, n in of_split.items()}, rate, names

    def _found(self) -> tuple[Files, dict[str, tuple[list[str], np.ndarray]], tuple[str, ...]]:
        """The files; the names of those of each split, with their labels [n]; and the classes' names."""
        files = Files("data.path", self.path, SUFFIXES)
        found = {name: re.search(self.pattern, name) for name in sorted(files.held) if name.lower().endswith(SUFFIXES)}
        labels = {name: match[self.label] for name, match in found.items() if match}
        if not labels:
            raise ConfigError(f"{files.where}: holds no sounds whose names have data.pattern = {self.pattern!r}")
        given = {n for n in labels if self.test_pattern and re.search(self.test_pattern, n)}
        if self.test_pattern and not given:
            raise ConfigError(f"data.test_pattern: found {self.test_pattern!r}; no file's path has it")
        names = self.class_names or tuple(sorted({labels[n] for n in labels.keys() - given}))
        if strange := [n for n in labels if labels[n] not in names]:
            there = ", ".join(names)[:160]
            raise ConfigError(f"{files.where}: {strange[0]}: no class {labels[strange[0]]!r}; there are: {there}")
        y = np.array([names.index(label) for label in labels.values()], np.int32)
        index, test, at = np.arange(len(y)), np.array([name in given for name in labels]), list(labels)
        apart = {"test": {"i": index[test], "y": y[test]}} if given else {}
        parts = self.split({"i": index[~test], "y": y[~test]}, apart)
        return files, {s: ([at[i] for i in p["i"].tolist()], p["y"]) for s in SPLITS if (p := parts.get(s))}, names

    def described(self, made: Dataset, rate: int, names: tuple[str, ...]) -> Dataset:
        """The dataset with the shape that its features have, and what the training part told."""
        samples = made.train["x"].shape[1]
        found: dict[str, Any] = {"class_names": names, "rate": rate, "samples": samples}
        try:
            shape = self.features.shape(samples, rate)
        except ValueError as error:
            raise ConfigError(f"data.features: {error}") from None
        made = dataclasses.replace(made, shape=shape, vocabulary=self.features.codes, found=found)
        return dataclasses.replace(self, **found).measured(made)

    def measured(self, dataset: Dataset, unit: float = 1.0) -> Dataset:
        """The dataset, with the centre and spread of each feature over the frames of its training clips in `found`."""
        if self.normalise == "none" or self.spread or not self.features.continuous:
            return dataset
        x, of = self.learned(dataset.train["x"]), jax.jit(self._features)
        frames = []
        for i in range(0, len(x), _AT_ONCE):
            found, length = jax.device_get(of(x[i : i + _AT_ONCE]))
            frames.append(found[np.arange(found.shape[1]) < length[:, None]])
        told = super().measured(dataclasses.replace(dataset, train={"x": np.concatenate(frames)}), unit)
        return dataclasses.replace(dataset, found=told.found)

    def _features(self, x):
        wave = self.scaled({"x": x})
        return self.features.apply(wave["x"], wave["length"], self.rate)

    def scaled(self, batch: dict) -> dict:
        """x in -1..1, 0 past the end of a clip, and `length` [n] in samples."""
        x = batch["x"]
        if jnp.issubdtype(x.dtype, jnp.floating):
            return {"length": jnp.full(len(x), x.shape[1])} | batch
        there = x != PADDING
        wave = jnp.where(there, x, 0).astype(jnp.float32) / 32768
        return batch | {"x": wave, "length": there.sum(1)}

    def normalised(self, batch: dict) -> dict:
        """Features of a wave, normalised, 0 past the end; `length` [n] in frames."""
        x, length = self.features.apply(batch["x"], batch["length"], self.rate)
        batch = super().normalised(batch | {"x": x, "length": length})
        if not self.spread:
            return batch
        there = (jnp.arange(x.shape[1]) < length[:, None])[..., None]
        return batch | {"x": jnp.where(there, batch["x"], 0)}

    def read_inputs(self, path: str) -> np.ndarray | None:
        """x [n, samples] int16 of a sound file, or of all those in a folder, sorted by name."""
        if os.path.isdir(path):
            names = sorted(n for n in os.listdir(path) if n.lower().endswith(SUFFIXES))
            if not names:
                raise ConfigError(f"{path}: holds no sounds ({', '.join(SUFFIXES)})")
            return filled([self._one(os.path.join(path, name)) for name in names], self.samples)
        return filled([self._one(path)], self.samples) if path.lower().endswith(SUFFIXES) else None

    def _one(self, path: str) -> np.ndarray:
        found, rate = read_sound(path, Path(path))
        return resampled(found, rate, self.rate)

    def _read(self, files: Files, names: Sequence[str]) -> tuple[int, list[np.ndarray]]:
        """Samples a second, and every clip at that rate."""
        read = [read_sound(f"{files.where}: {name}", files.read(name)) for name in names]
        rates = collections.Counter(rate for _, rate in read)
        if len(rates) > 1 and not self.rate:
            there = ", ".join(f"{n} of {rate}" for rate, n in sorted(rates.items()))
            raise ConfigError(f"data.rate: missing; clips differ in samples a second: {there}")
        rate = self.rate or next(iter(rates))
        return rate, [resampled(found, of, rate) for found, of in read]

    def _longest(self, clips: Sequence[np.ndarray], rate: int) -> int:
        if self.samples:
            return self.samples
        return math.ceil(self.seconds * rate) or max(map(len, clips))


@configclass
class JoinedSounds(SoundFiles):
    """Strings of clips, one after the other, to be told apart: each is said as the classes of its clips, in order.

    Clips of one split make strings of that split alone.
    """

    kind: Literal["joined_sounds"] = "joined_sounds"
    clips_of: tuple[Size, Size] = (1, 5)
    """How many clips a string has: fewest and most."""
    gap: tuple[NonNegative, NonNegative] = (0.0, 0.2)
    """Seconds of silence before, between and after the clips: least and most."""
    train_strings: Size = 4000
    """How many training strings are made."""
    validation_strings: Count = 500
    """How many strings are made to choose by."""
    test_strings: Count = 500
    """How many strings are made to be read once, at the end."""
    string_seed: Count = 0
    """Which strings: everything in them follows from this."""

    def __post_init__(self):
        super().__post_init__()
        if self.stream:
            raise ValueError("stream: found true; strings are joined in memory: expected false")
        for name in ("clips_of", "gap"):
            if getattr(self, name)[0] > getattr(self, name)[1]:
                raise ValueError(f"{name}: found {list(getattr(self, name))}; expected the smaller first")

    def load(self) -> Dataset:
        """x [n, samples] int16, y [n, most] int32: the classes of the clips, -1 where there are no more."""
        parts, rate, names = self.clips()
        counts = (self.train_strings, self.validation_strings, self.test_strings)
        arrays, samples = {}, self.samples or math.ceil(self.seconds * rate)
        for number, (split, count) in enumerate(zip(SPLITS, counts)):
            if split in parts and count:
                rng = np.random.default_rng([self.string_seed, number])
                made = [self._string(*parts[split], rate, samples, rng) for _ in range(count)]
                samples = samples or max(len(wave) for wave, _ in made)
                arrays[split] = {"x": filled([wave for wave, _ in made], samples), "y": np.stack([y for _, y in made])}
        made = dataclasses.replace(dataset(f"data.path: {self.path}", arrays), classes=len(names))
        return self.described(made, rate, names)

    def _string(self, waves, labels, rate, room, rng) -> tuple[np.ndarray, np.ndarray]:
        """A string of clips with silence round them, and their labels; of fewer clips, where more have no room."""
        count = rng.integers(self.clips_of[0], self.clips_of[1] + 1)
        which = rng.integers(len(waves), size=count)
        gaps = [np.zeros(round(g * rate), np.int16) for g in rng.uniform(*self.gap, count + 1)]
        pieces, used, kept = [gaps[0]], len(gaps[0]), []
        for i, gap in zip(which, gaps[1:]):
            used += len(waves[i]) + len(gap)
            if room and kept and used > room:
                break
            pieces, kept = pieces + [waves[i], gap], [*kept, labels[i]]
        y = np.full(self.clips_of[1], -1, np.int32)
        y[: len(kept)] = kept
        return np.concatenate(pieces), y
