"""Packed images: what Pillow decodes one by one, every mistake named, and the real CIFAR-10 as JPEG bit for bit."""

import dataclasses
import hashlib
import io
import os
import sys
import tomllib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

from functrain.config import ConfigError, dump, parse
from functrain.data import packed
from functrain.data.packed import PackedImages, decode

_DATA = os.environ.get("FUNCTRAIN_DATA")


@pytest.fixture(scope="module")
def image():
    return pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install 'functrain[images]'")


def files(image, n, seed=0, size=(6, 5), kind="JPEG", mode="RGB"):
    """Encoded images of noise."""
    rng, made = np.random.default_rng(seed), []
    for _ in range(n):
        pixels = rng.integers(0, 256, (*size, 3) if mode == "RGB" else size).astype(np.uint8)
        file = io.BytesIO()
        image.fromarray(pixels).save(file, kind)
        made.append(file.getvalue())
    return made


def pack(encoded):
    """(bytes, offsets) of encoded images."""
    return np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([0, *map(len, encoded)])


def arrays_of(image, train=40, test=12, **settings):
    """What a packed file holds, of noise."""
    found = {"class_names": np.array(["ant", "bee", "cat"])}
    for split, n in (("train", train), ("test", test)):
        data, offsets = pack(files(image, n, seed=n, **settings))
        labels = (np.arange(n) % 3).astype(np.uint8)
        found |= {f"{split}_jpeg": data, f"{split}_offsets": offsets, f"{split}_y": labels}
    return found


def source(folder, arrays, **settings):
    np.savez(folder / "packed.npz", **arrays)
    return PackedImages(path=str(folder / "packed.npz"), **settings)


def mistake(call, *parts):
    """The one line of a mistake, which holds each of the parts."""
    with pytest.raises(ConfigError) as raised:
        call()
    line = str(raised.value)
    assert "\n" not in line
    for part in parts:
        assert part in line, line


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP"])
def test_decoding_is_pillows_one_by_one(image, kind, monkeypatch):
    """Colour and grey, of odd sizes, in pieces that do not divide their number."""
    monkeypatch.setattr(packed, "_AT_ONCE", 4)
    for mode in ("RGB", "L"):
        encoded = files(image, 11, kind=kind, mode=mode)
        data, offsets = pack(encoded)
        for channels, to in ((3, "RGB"), (1, "L")):
            found = decode("x", data, offsets, channels)
            assert found.shape == (11, 6, 5, channels)
            assert found.dtype == np.uint8
            each = [np.asarray(image.open(io.BytesIO(one)).convert(to)).reshape(6, 5, channels) for one in encoded]
            assert np.array_equal(found, each)


def test_splits_names_and_normalisation(image, tmp_path):
    """The test is the file's, the validation taken from its training images; a run keeps what was found."""
    arrays = arrays_of(image)
    given = source(tmp_path, arrays, validation=0.25, normalise="standard")
    made = given.load()
    assert [len(made.split(s)["x"]) for s in ("train", "validation", "test")] == [30, 10, 12]
    assert made.classes == 3
    assert made.found["class_names"] == ("ant", "bee", "cat")
    assert np.array_equal(made.test["x"], decode("x", arrays["test_jpeg"], arrays["test_offsets"], 3))
    assert np.array_equal(made.test["y"], arrays["test_y"])
    np.testing.assert_allclose(made.found["centre"], (made.train["x"] / 255).mean((0, 1, 2)), rtol=1e-12)
    kept = dataclasses.replace(given, **made.found)
    assert parse(PackedImages, tomllib.loads(dump(kept))) == kept
    assert kept.load().found == {"class_names": ("ant", "bee", "cat")}
    batch = kept.scaled({"x": jnp.asarray(made.train["x"])})
    assert (float(batch["x"].min()), float(batch["x"].max())) == (0.0, 1.0)
    assert abs(float(kept.normalised(batch)["x"].mean())) < 1e-4
    assert float(kept.prepare({"x": jnp.asarray(made.train["x"])})["x"].std()) == pytest.approx(1, abs=1e-3)


def test_a_file_without_test_images_or_names(image, tmp_path):
    arrays = {name: a for name, a in arrays_of(image).items() if name.startswith("train")}
    made = source(tmp_path, arrays, held_out=(2,)).load()
    assert made.classes == 3
    assert set(made.test["y"].tolist()) == {2}
    assert 2 not in made.train["y"]


def test_every_mistake_is_named(image, tmp_path):
    good = arrays_of(image)

    def refused(*parts, **changes):
        arrays = {name: a for name, a in {**good, **changes}.items() if a is not None}
        mistake(source(tmp_path, arrays).load, "data.path", *parts)

    at = good["test_offsets"]
    for from_, to in ((at[7] + 10, at[8]), (at[7], at[7] + 40)):  # no end, no begin: what Pillow says differs
        hurt = good["test_jpeg"].copy()
        hurt[from_:to] = 0
        refused("test[7]: cannot be read as an image", test_jpeg=hurt)
    cut = np.delete(good["test_jpeg"], np.arange(at[3] + 300, at[4]))
    shorter = np.concatenate([at[:4], at[4:] - (at[4] - at[3] - 300)])
    refused("test[3]: cannot be read as an image: ", test_jpeg=cut, test_offsets=shorter)

    other = files(image, 1, size=(5, 6))[0]
    data, offsets = pack([*files(image, 4), other, other])
    refused(
        "train[4]: height x width 5x6; the first has 6x5",
        train_jpeg=data,
        train_offsets=offsets,
        train_y=np.zeros(6, int),
    )

    refused("expected train_jpeg", train_jpeg=None)
    refused("expected test_offsets", test_offsets=None)
    refused("expected train_y", train_y=None)
    refused("train_jpeg: float64", train_jpeg=good["train_jpeg"].astype(float))
    refused("test_offsets: float64", test_offsets=at.astype(float))
    refused("expected integers, one for each of the 12 images", test_y=good["test_y"][:-1])
    refused("test_offsets[3]: found 0; expected more than", test_offsets=np.where(np.arange(13) == 3, 0, at))
    refused(f"from 0 to {at[-1] + 1}; expected from 0 to {at[-1]}", test_offsets=np.append(at[:-1], at[-1] + 1))
    refused("from 1 to", test_offsets=np.append([1], at[1:]))
    refused("test y[2]: label 2; expected 0 to 1", class_names=np.array(["a", "b"]), train_y=good["train_y"] % 2)
    refused("Python objects", class_names=np.array(["a", None], object))
    mistake(PackedImages(path="nowhere.npz").load, "data.path: no file")


def test_without_pillow_it_says_what_to_install(image, monkeypatch, tmp_path):
    given = source(tmp_path, arrays_of(image, train=2, test=2))
    monkeypatch.setitem(sys.modules, "PIL", None)
    mistake(given.load, "need Pillow: pip install 'functrain[images]'")


def test_cifar10_is_decoded_bit_for_bit(image):
    """The digests are of the pixels of a file decoded elsewhere from the same JPEGs, and known by its own digest."""
    path = next(
        (p for d in (_DATA, ROOT.parent / "shared" / "data") if d and (p := Path(d) / PackedImages().path).is_file()),
        None,
    )
    if path is None:
        pytest.skip("the CIFAR-10 of JPEGs is not where FUNCTRAIN_DATA points")
    with np.load(path) as file:
        test = decode("test", file["test_jpeg"], file["test_offsets"], 3)
    digest = "b7018a062865e9348a704e72416eb53c816b43cc8ac42ab43276a2b967508ab6"
    assert hashlib.sha256(test.tobytes()).hexdigest() == digest
