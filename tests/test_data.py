"""Sources that read files: IDX, CSV, folders of images; examples at hand; mixtures; folds."""

import dataclasses
import functools
import gzip
import json
import os
import time
import tomllib
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from small_data import idx, write_small_data

import functrain
from functrain.building import build
from functrain.cli import main
from functrain.config import ConfigError, configclass, dump, parse
from functrain.data import Memory, order
from functrain.data.adapt import from_iterable, from_splits
from functrain.data.base import Normalised, Split
from functrain.data.dataset import Dataset, dataset
from functrain.data.feed import InOrder, Mixed
from functrain.data.idx import Idx, read_idx
from functrain.data.images import ImageFolder
from functrain.data.mixture import Mixture, apportion
from functrain.data.sources import Npz
from functrain.data.table import Csv
from functrain.experiment import Experiment
from functrain.models import MLP
from functrain.tasks import Classification
from functrain.train.loop import Train

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Small data in the formats of the real ones."""
    return write_small_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FUNCTRAIN_DATA", raising=False)


_DATA = os.environ.get("FUNCTRAIN_DATA")  # before the fixture above hides it


def real(path, size):
    """A file of the real data, known by its size; or a skip that says what is missing."""
    for place in (_DATA, ROOT.parent / "shared" / "data"):
        if place and (Path(place) / path).is_file() and (Path(place) / path).stat().st_size == size:
            return Path(place) / path
    return pytest.skip(f"the real {path} ({size} bytes) is not where FUNCTRAIN_DATA points")


def settled(source, made=None):
    """The source as a run's config keeps it: with what it found, through TOML."""
    kept = dataclasses.replace(source, **(made or source.load()).found)
    again = parse(type(source), tomllib.loads(dump(kept)))
    assert again == kept
    return again


def mistake(call, *parts):
    """The one line of a mistake, which holds each of the parts."""
    with pytest.raises(ConfigError) as raised:
        call()
    line = str(raised.value)
    assert "\n" not in line
    assert len(line) < 400
    for part in parts:
        assert part in line, line
    return line


# -- what sources share ---------------------------------------------------------------------------


@configclass
class Numbers(Split, Normalised):
    """Numbers of a test."""

    columns: int = 3
    """How many."""

    def load(self):
        x = np.random.default_rng(0).normal(5.0, 3.0, (50, self.columns)).astype(np.float32)
        x[:, 0] = 0.1  # does not vary
        return self.measured(dataset("numbers", self.split({"x": x, "y": np.arange(50.0)})))


@pytest.mark.parametrize("normalise", ["standard", "range"])
def test_normalisation_is_by_the_training_part_alone(normalise):
    source = Numbers(normalise=normalise, validation=0.2, test=0.2)
    made = source.load()
    x = source_x = made.train["x"].astype(np.float64)
    centre, spread = (x.mean(0), x.std(0)) if normalise == "standard" else (x.min(0), x.max(0) - x.min(0))
    spread[0] = 1.0
    np.testing.assert_allclose(made.found["centre"], centre, rtol=1e-12)
    np.testing.assert_allclose(made.found["spread"], spread, rtol=1e-12)
    prepared = settled(source, made).prepare({"x": jnp.asarray(made.train["x"])})["x"]
    np.testing.assert_allclose(prepared, (source_x - centre) / spread, atol=1e-6)
    assert settled(source, made).load().found == {}  # a resumed run uses what the first one found
    assert np.ptp(made.test["x"][:, 1]) > 0  # the other parts are there, and not what was measured
    everything = np.concatenate([part["x"] for part in (made.train, made.validation, made.test)])
    assert abs(everything[:, 1].mean() - centre[1]) > 1e-3


def test_channels_and_images_are_measured_each_in_its_way():
    x = np.random.default_rng(0).integers(0, 256, (30, 5, 4, 3)).astype(np.uint8)
    found = Numbers(normalise="standard").measured(Dataset({"x": x}), 255.0).found
    np.testing.assert_allclose(found["centre"], (x / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(found["spread"], (x / 255).std((0, 1, 2)), rtol=1e-12)
    found = Numbers(normalise="standard").measured(Dataset({"x": x[..., 0]}), 255.0).found
    np.testing.assert_allclose(found["centre"], [(x[..., 0] / 255).mean()], rtol=1e-12)


def _every_source(folder):
    """A source of each kind over the small data, whose test examples are taken at random."""
    mnist = folder / "mnist"
    np.savez(folder.parent / "a.npz", x=np.arange(40.0)[:, None], y=np.arange(40) % 4)
    images(folder.parent / "pictures", n=5)
    return [
        Idx(images=str(mnist / "t10k-images-idx3-ubyte.gz"), labels=str(mnist / "t10k-labels-idx1-ubyte.gz")),
        Csv(path=str(folder / "tabular/penguins/penguins.csv"), target=("species",)),
        ImageFolder(path=str(folder.parent / "pictures"), size=(4, 4)),
        Npz(path=str(folder.parent / "a.npz")),
        functrain.data.Digits(),
    ]


@pytest.mark.parametrize("i", range(5))
def test_over_all_folds_each_example_is_tested_once(small, i):
    pytest.importorskip("PIL", reason="Pillow (extra images)")
    source = _every_source(small)[i]
    whole = dataclasses.replace(source, validation=0.0, test=0.0).load()
    parts = [dataclasses.replace(source, folds=4, fold=k, split_seed=3).load() for k in range(4)]
    tested = np.concatenate([part.test["y"] for part in parts])
    assert len(tested) == len(whole)
    assert Counter(tested.tolist()) == Counter(whole.train["y"].tolist())
    assert {part.classes for part in parts} == {whole.classes}
    if not isinstance(source, Csv):  # whose x is told by each training part
        rows = Counter(row.tobytes() for part in parts for row in part.test["x"])
        assert rows == Counter(row.tobytes() for row in whole.train["x"])
    for part in parts:
        assert len(part.train["y"]) + len(part.validation["y"]) + len(part.test["y"]) == len(whole)
        assert len(part.validation["y"]) > 0


def test_folds_and_given_test_examples_are_refused(small):
    mnist = small / "mnist"
    source = Idx(images=str(mnist / "t10k-images-idx3-ubyte.gz"), test_images=str(mnist / "t10k-images-idx3-ubyte.gz"))
    mistake(dataclasses.replace(source, folds=3).load, "data.folds: found 3", "test")
    housing = str(small / "tabular/california-housing/housing.csv")
    table = Csv(path=housing, test_path=housing, target=("median_house_value",), folds=3)
    mistake(table.load, "data.folds: found 3", "test")


# -- IDX ------------------------------------------------------------------------------------------

TYPES = [(0x08, "u1"), (0x09, "i1"), (0x0B, "i2"), (0x0C, "i4"), (0x0D, "f4"), (0x0E, "f8")]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shape", [(7,), (3, 1), (2, 3, 4), (2, 1, 3, 5)])
@pytest.mark.parametrize(("code", "dtype"), TYPES)
def test_idx_is_read_back(tmp_path, code, dtype, shape, packed):
    """Every type and number of axes; compressed or not by what is in it, whatever the name."""
    array = np.random.default_rng(0).normal(0, 40, shape)
    array = np.abs(array).astype(dtype) if dtype == "u1" else array.astype(dtype)
    text = idx(array, code, dtype)
    path = tmp_path / ("a.idx" if packed else "a.gz")
    path.write_bytes(gzip.compress(text) if packed else text)
    found = read_idx("a", path)
    assert found.dtype == array.dtype
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, array)


def test_idx_as_a_source(small, monkeypatch):
    """Bytes stay bytes on the device and become 0..1; what a run keeps prepares numbers from elsewhere alike."""
    places = {f"{s}{w}": f"mnist/{n}-{f}-ubyte.gz" for s, n in (("", "train"), ("test_", "t10k"))
              for w, f in (("images", "images-idx3"), ("labels", "labels-idx1"))}  # fmt: skip
    monkeypatch.setenv("FUNCTRAIN_DATA", str(small))
    source = parse(Idx, {"kind": "idx", "validation": 0.25, "normalise": "standard", **places})
    made = source.load()
    assert made.train["x"].shape == (480, 28, 28)
    assert made.train["x"].dtype == np.uint8
    assert [len(part["y"]) for part in (made.validation, made.test)] == [160, 160]
    assert made.classes == 10
    np.testing.assert_allclose(made.found["centre"], [(made.train["x"] / 255).mean()], rtol=1e-12)
    run = settled(source, made)
    assert run.divide_by == 255.0
    prepared = run.prepare({"x": jnp.asarray(made.test["x"])})["x"]
    assert prepared.dtype == jnp.float32
    expected = (made.test["x"] / 255 - made.found["centre"][0]) / made.found["spread"][0]
    np.testing.assert_allclose(prepared, expected, atol=2e-6)
    np.testing.assert_array_equal(run.prepare({"x": jnp.asarray(made.test["x"], jnp.float32)})["x"], prepared)
    plain = dataclasses.replace(source, normalise="none")
    np.testing.assert_array_equal(plain.prepare({"x": jnp.uint8([0, 255])})["x"], [0.0, 1.0])
    raw = read_idx("x", small / places["test_images"])
    np.testing.assert_array_equal(run.read_inputs(str(small / places["test_images"])), raw)
    assert run.read_inputs("nothing.npy") is None
    assert run.read_inputs("-") is None
    unlabelled = Idx(images=places["images"], validation_images=places["test_images"]).load()
    assert list(unlabelled.train) == ["x"]
    assert len(unlabelled.validation["x"]) == 160


IMAGES = idx(np.arange(24).reshape(6, 2, 2))
BAD = [
    (b"", "begins with nothing"),
    (b"\x89PNG\r\n", "begins with 89 50 4e 47"),
    (b"\0\0\x07\x01\0\0\0\x01\0", "no IDX file"),
    (b"\0\0\x08\x00", "no IDX file"),
    (IMAGES[:9], "ends in its header, which says 3 axes"),
    (IMAGES[:-1], "6x2x2 uint8, 24 bytes; found 23"),
    (IMAGES + b"\0", "24 bytes; found more"),
    (b"\0\0\x08\x02" + b"\xff" * 8 + b"\0", "4294967295x4294967295 uint8, 18446744065119617025 bytes; the file is too"),
    (gzip.compress(IMAGES)[:-9], "gzip file is cut short"),
    (gzip.compress(IMAGES)[:-8] + b"\0" * 8, "gzip file is damaged"),
    (gzip.compress(IMAGES, 0)[:13] + b"\0\0" + gzip.compress(IMAGES, 0)[15:], "gzip file is damaged: "),
    (gzip.compress(b"\0\0\x0e\x01\x7f\xff\xff\xff" + b"\0" * 10), "too short for that"),
    (gzip.compress(idx(np.zeros((0, 2, 2)))), "no examples"),
]


@pytest.mark.parametrize(("content", "message"), BAD, ids=[m for _, m in BAD])
def test_bad_idx_files(tmp_path, content, message):
    (tmp_path / "images").write_bytes(content)
    mistake(Idx(images="images").load, "data.images", "images", message)


def test_idx_reads_no_more_than_it_says(tmp_path):
    """A quarter of a gigabyte behind a small header is refused without being unpacked."""
    with gzip.open(tmp_path / "images", "wb", 1) as file:
        file.write(IMAGES)
        for _ in range(16):
            file.write(bytes(1 << 24))
    start = time.thread_time()
    mistake(Idx(images="images").load, "found more")
    assert time.thread_time() - start < 0.1


def test_idx_mistakes_of_the_config(tmp_path):
    (tmp_path / "images").write_bytes(IMAGES)
    (tmp_path / "five").write_bytes(idx(np.zeros(5)))
    (tmp_path / "six").write_bytes(idx(np.arange(6)))
    (tmp_path / "wide").write_bytes(idx(np.zeros((6, 3, 2))))
    mistake(Idx(images="nothing").load, "data.images: no file nothing")
    mistake(Idx(images="images", labels="five").load, "data.labels: five", "holds 5 labels; images has 6 examples")
    mistake(Idx(images="images", labels="six", classes=5).load, "label 5; expected 0 to 4")
    mistake(Idx(images="images", test_images="wide").load, "test x", "(3, 2)", "(2, 2)")
    for more, message in [
        ({"labels": "six", "test_images": "images"}, "test_labels: missing"),
        ({"test_images": "images", "test_labels": "six"}, 'test_labels: found "six"'),
        ({"labels": "six", "validation_labels": "six"}, 'validation_labels: found "six"'),
        ({"folds": 1}, "folds: found 1"),
        ({"test_image": "images"}, 'did you mean "test_images"'),
    ]:
        mistake(functools.partial(parse, Idx, {"kind": "idx", "images": "images", **more}), message)


def test_the_real_mnist():
    folder = real("mnist/train-images-idx3-ubyte.gz", 9_912_422).parent
    names = {"images": "train-images-idx3", "labels": "train-labels-idx1"}
    names |= {"test_images": "t10k-images-idx3", "test_labels": "t10k-labels-idx1"}
    source = Idx(**{key: str(folder / f"{name}-ubyte.gz") for key, name in names.items()}, validation=0.0)
    made = source.load()
    assert made.train["x"].shape == (60_000, 28, 28)
    assert made.test["x"].shape == (10_000, 28, 28)
    assert np.bincount(made.train["y"]).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(made.test["y"]).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert made.train["x"].sum(dtype=np.int64) == 1_567_298_545
    assert made.test["x"].sum(dtype=np.int64) == 264_923_200


# -- CSV ------------------------------------------------------------------------------------------

TABLE = """\
age,city,height,label
20,Bonn,1.5,no
30,Ulm,?,yes
40,Bonn,1.7,no
,NA,1.9,yes
60,Rome,1.6,no
"""
OTHER = """\
age,city,height,label
35,Oslo,1.8,yes
NA,,,no
"""


def table(tmp_path, text=TABLE, other=OTHER, **more):
    """A source over a table of training rows, and one of rows for the test."""
    (tmp_path / "a.csv").write_text(text)
    (tmp_path / "b.csv").write_text(other)
    settings = {"path": "a.csv", "test_path": "b.csv", "target": "label", "validation": 0.0} | more
    return parse(Csv, {"kind": "csv"} | settings)


@pytest.mark.parametrize("normalise", ["standard", "range", "none"])
def test_a_table_is_encoded_by_the_formula(tmp_path, normalise):
    """The median for what is missing, then the scale; 1 where it was missing; categories, missing, none for unknown."""
    source = table(tmp_path, normalise=normalise)
    made = source.load()
    age, height = np.array([20, 30, 40, 35, 60.0]), np.array([1.5, 1.65, 1.7, 1.9, 1.6])

    def scaled(values, by):
        if normalise == "none":
            return values
        return (values - by.mean()) / by.std() if normalise == "standard" else (values - by.min()) / np.ptp(by)

    cities = [[1, 0, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 1, 0, 0]]  # Bonn, Rome, Ulm, missing
    gone = np.eye(5)
    expected = np.column_stack([scaled(age, age), gone[3], cities, scaled(height, height), gone[1]])
    rows = source.split({"row": np.arange(5)}, {"test": {"row": np.arange(2)}})["train"]["row"]
    np.testing.assert_allclose(made.train["x"], expected[rows], atol=1e-6)
    assert made.train["y"].tolist() == np.array([0, 1, 0, 1, 0])[rows].tolist()
    age, height, gone = (np.array(values) for values in ([35, 35.0], [1.8, 1.65], [0, 1]))
    cities = [[0, 0, 0, 0], [0, 0, 0, 1]]
    by = np.array([20, 30, 40, 35, 60.0]), np.array([1.5, 1.65, 1.7, 1.9, 1.6])
    expected = np.column_stack([scaled(age, by[0]), gone, cities, scaled(height, by[1]), gone])
    np.testing.assert_allclose(made.test["x"], expected, atol=1e-6)
    assert made.train["x"].dtype == np.float32
    assert made.test["y"].tolist() == [1, 0]
    assert made.classes == 2
    assert made.found["class_names"] == ("no", "yes")
    described = settled(source, made).describe()
    assert described["age"] == "numeric, median 35, 1 missing in training"
    assert described["city"] == "categorical, 3 categories, 1 missing in training"
    assert described["label"] == "target, classes: no, yes"


def test_only_the_training_rows_say_how(tmp_path):
    """Another test file, and other rows in the validation part, change nothing in what was found."""
    one = table(tmp_path).load()
    two = table(tmp_path, other=OTHER.replace("35", "9999").replace("Oslo", "Rome")).load()
    assert one.found == two.found
    np.testing.assert_array_equal(one.train["x"], two.train["x"])
    rng = np.random.default_rng(0)
    lines = [f"{rng.normal():.3f},{'abcdefgh'[i % 8]},{i % 2}" for i in range(80)]
    source = table(tmp_path, "n,c,label\n" + "\n".join(lines), test_path="", test=0.25, validation=0.25)
    parts = source.split({"row": np.arange(80)})
    made = source.load()
    numbers = np.array([float(line.split(",")[0]) for line in lines])[parts["train"]["row"]]
    column = made.found["columns"][0]
    np.testing.assert_allclose((column.median, column.centre), (np.median(numbers), numbers.mean()), rtol=1e-12)
    np.testing.assert_allclose(made.train["x"][:, 0].std(), 1.0, rtol=1e-6)
    for i in np.concatenate([parts["validation"]["row"], parts["test"]["row"]]):
        lines[i] = f"1e6,unseen,{i % 2}"
    other = table(tmp_path, "n,c,label\n" + "\n".join(lines), test_path="", test=0.25, validation=0.25).load()
    assert other.found == made.found
    assert other.test["x"][:, 1:].sum() == 0  # a category that training has not seen


def test_a_run_encodes_new_rows_without_its_data(tmp_path):
    source = table(tmp_path)
    made = source.load()
    run = settled(source, made)
    (tmp_path / "a.csv").unlink()
    np.testing.assert_array_equal(run.read_inputs("b.csv"), made.test["x"])
    rows = [{"age": 35, "city": "Oslo", "height": "1.8"}, {"age": None, "city": "", "height": "NA", "more": "x"}]
    np.testing.assert_array_equal(run.encode(rows), made.test["x"])
    (tmp_path / "new.csv").write_text("height,name,city,age\n1.8,x,Oslo,35\n,y,,\n")  # in another order, with another
    np.testing.assert_array_equal(run.read_inputs("new.csv"), made.test["x"])
    assert run.read_inputs("new.npy") is None
    assert run.read_inputs("-") is None
    mistake(lambda: run.read_inputs("gone.csv"), "gone.csv: No such file")
    mistake(lambda: run.encode([rows[0], {"age": "1"}]), "row 1: no column 'city'; it has: age")
    mistake(lambda: run.encode([rows[0] | {"age": "old"}]), "rows: line 0: column 'age': found 'old'")
    (tmp_path / "new.csv").write_text("height,city\n1.8,Oslo\n")
    mistake(lambda: run.read_inputs("new.csv"), "new.csv: no column 'age'; it has: height, city")
    (tmp_path / "new.csv").write_text("height,city,age\n1.8,Oslo,35\n1.8,Oslo,x\n")
    mistake(lambda: run.read_inputs("new.csv"), "new.csv: line 3: column 'age': found 'x'; expected a number")


def test_a_resumed_run_uses_what_it_found(tmp_path):
    """The file may have changed since: the columns and classes are those of the run."""
    run = settled(table(tmp_path))
    (tmp_path / "a.csv").write_text(TABLE.replace("60", "6000").replace("Rome", "Paris"))
    made = run.load()
    assert made.found["columns"] == run.columns
    np.testing.assert_array_equal(made.test["x"], table(tmp_path).load().test["x"])


def test_a_file_without_header(tmp_path):
    """Names from the config, or numbers; new rows may leave the target out."""
    text, other = ("\n".join(t.splitlines()[1:]) for t in (TABLE, OTHER))
    names = ["age", "city", "height", "label"]
    expected = table(tmp_path).load()
    named = table(tmp_path, text, other, header=False, names=names)
    np.testing.assert_array_equal(named.load().test["x"], expected.test["x"])
    numbered = table(tmp_path, text, other, header=False, target="3")
    np.testing.assert_array_equal(numbered.load().test["x"], expected.test["x"])
    for text in ("35,Oslo,1.8\nNA,,\n", "35,Oslo,1.8,?\nNA,,,\n"):
        (tmp_path / "new.csv").write_text(text)
        for source in (named, numbered):
            np.testing.assert_array_equal(settled(source).read_inputs("new.csv"), expected.test["x"])
    (tmp_path / "new.csv").write_text("35,Oslo,1.8,?\nNA,,\n")
    mistake(lambda: settled(named).read_inputs("new.csv"), "new.csv: line 2: 3 cells; expected 4")


def test_what_files_look_like(tmp_path):
    """A byte order mark, Windows lines, blanks, semicolons, quotes, comments, empty lines, cells read as others."""
    text = '\ufeffage; city ;label\r\n# so; "it\r\n\r\n 20 ; "Bonn; B";no.\r\n  \r\n30;Ulm;yes\r\n40;Ulm;no\r\n\r\n'
    source = table(
        tmp_path, text, delimiter=";", comment="#", replace={"no.": "no"}, test_path="", test=0.0, normalise="none"
    )
    made = source.load()
    assert made.found["class_names"] == ("no", "yes")
    assert made.found["columns"][1].categories == ("Bonn; B", "Ulm")
    assert sorted(made.train["x"].tolist()) == [[20, 1, 0], [30, 0, 1], [40, 0, 1]]
    tabs = table(tmp_path, "a\tlabel\n1\t0\n2\t1\n", delimiter="\t", test_path="", test=0.0)
    assert tabs.load().classes == 2


def test_rare_categories_are_others(tmp_path):
    cells = "aaaabbbccd?"
    text = "c,label\n" + "".join(f"{c},{i}.5\n" for i, c in enumerate(cells))
    x = {}
    for more, kept in [({"min_count": 2}, "abc"), ({"max_categories": 2}, "ab"), ({"min_count": 5}, ""), ({}, "abcd")]:
        source = table(tmp_path, text, "c,label\nz,1\na,1\n?,1\n", **more)
        made = source.load()
        column = made.found["columns"][0]
        assert column.categories == tuple(kept)
        assert column.other == (kept != "abcd")
        x[kept] = made.test["x"].tolist()
        np.testing.assert_array_equal(made.train["x"].sum(1), np.ones(11))
        order_ = source.split({"c": np.array(list(cells))}, {"test": {"c": cells}})["train"]["c"]
        others = sum(c in "abcd" and c not in kept for c in order_)
        assert made.train["x"][:, -1].sum() == (others if column.other else 1)
    assert x["abc"] == [[0, 0, 0, 0, 1], [1, 0, 0, 0, 0], [0, 0, 0, 1, 0]]
    assert x["abcd"] == [[0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 1]]


def test_a_column_that_does_not_vary(tmp_path):
    """It stays at zero, although the mean of ten times 0.3 is not 0.3 in float64."""
    text = "a,b,label\n" + "".join(f"0.3,{i},{i % 2}\n" for i in range(10))
    for normalise in ("standard", "range"):
        made = table(tmp_path, text, test_path="", test=0.0, normalise=normalise).load()
        assert abs(made.train["x"][:, 0]).max() < 1e-6
        assert made.found["columns"][0].spread == 1.0


def test_targets(tmp_path):
    """Text is a class; so are few whole numbers, in the order of numbers; other numbers are numbers."""

    def made(values, **more):
        text = "x,label\n" + "".join(f"{i},{v}\n" for i, v in enumerate(values))
        source = table(tmp_path, text, test_path="", test=0.0, **more)
        loaded = source.load()
        by_row = dict(zip(loaded.train["x"][:, 0].argsort().argsort().tolist(), loaded.train["y"].tolist()))
        return loaded, [by_row[i] for i in range(len(values))]

    loaded, y = made(["10", "9", "-1", "9"])
    assert (y, loaded.found["class_names"], loaded.classes) == ([2, 1, 0, 1], ("-1", "9", "10"), 3)
    assert loaded.train["y"].dtype == np.int32
    loaded, y = made(["b", "a", "1", "b"])
    assert (y, loaded.found["class_names"]) == ([2, 1, 0, 2], ("1", "a", "b"))
    loaded, y = made(["b", "a", "b", "a"], class_names=["b", "a"])
    assert y == [0, 1, 0, 1]
    loaded, y = made([1.5, 2, 3, 4])
    assert (y, loaded.classes, loaded.found["target_kind"]) == ([1.5, 2, 3, 4], 0, "number")
    loaded, y = made(range(21))
    assert (y, loaded.train["y"].dtype) == (list(range(21)), np.float32)
    assert made(range(21), target_kind="class")[0].classes == 21
    assert made([0, 1, 1], target_kind="number", target_unit=2.0)[1] == [0, 0.5, 0.5]
    several = table(tmp_path, "a,b,c\n1,2,3\n4,5,6\n", test_path="", test=0.0, target=["a", "c"], target_unit=10)
    y = several.load().train["y"]
    np.testing.assert_allclose(y[y[:, 0].argsort()], [[0.1, 0.3], [0.4, 0.6]], rtol=1e-6)
    mistake(dataclasses.replace(several, target_kind="class").load, "data.target: found 2 columns")


def test_weights(tmp_path):
    source = table(tmp_path, "w,x,label\n1.5,1,a\n0,2,b\n3,3,a\n", "w,x,label\n2,2,a\n", weight="w")
    made = source.load()
    assert made.test["weight"].tolist() == [2.0]
    assert made.test["x"].shape == (1, 1)
    assert sorted(made.train["weight"].tolist()) == [0, 1.5, 3]
    mistake(table(tmp_path, "w,x,label\n1,1,a\n-1,2,b\n", weight="w").load, "a.csv: line 3: column 'w': found '-1'")
    mistake(table(tmp_path, "w,x,label\n1,1,a\n,2,b\n", weight="w").load, "a.csv: line 3: column 'w': missing")


def in_order(source, made):
    """The training part's x in the order of the file's rows."""
    n = len(made.train["x"])
    rows = source.split({"row": np.arange(n)}, {"test": {"row": np.arange(1)}})["train"]["row"]
    x = np.empty_like(made.train["x"])
    x[rows] = made.train["x"]
    return x


def test_categories_by_number(tmp_path):
    """One column of x for a column of categories: its number, missing and others after the rest, -1 for unseen ones."""
    source = table(tmp_path, normalise="none", categories="numbers")
    made = source.load()
    assert made.fields == (0, 0, 4, 0, 0)  # age and whether it is missing, city, height and whether it is missing
    assert made.train["x"].dtype == np.float32
    cities = [0, 2, 0, 3, 1]  # Bonn, Rome, Ulm, missing
    expected = np.array([[20, 0], [30, 0], [40, 0], [35, 1], [60, 0.0]])
    np.testing.assert_array_equal(in_order(source, made)[:, :3], np.column_stack([expected, cities]))
    np.testing.assert_array_equal(made.test["x"][:, 2], [-1, 3])  # Oslo, missing
    run = settled(source, made)
    np.testing.assert_array_equal(run.read_inputs("b.csv"), made.test["x"])
    few = table(tmp_path, normalise="none", categories="numbers", max_categories=1)
    assert few.load().fields == (0, 0, 3, 0, 0)
    np.testing.assert_array_equal(in_order(few, few.load())[:, 2], [0, 2, 0, 1, 2])  # Bonn, missing, others
    np.testing.assert_array_equal(few.load().test["x"][:, 2], [2, 1])
    assert table(tmp_path).load().fields == ()


@pytest.mark.parametrize("more", [{}, {"hashed": {"c": 3}}, {"max_categories": 2}, {"bucketed": {"n": 3}}])
def test_one_hot_is_the_number(tmp_path, more):
    """For every kind of column, 1 in the place of the category's number, and no 1 where that is -1."""
    text = "c,n,label\n" + "".join(f"{c},{i % 7},{i}.5\n" for i, c in enumerate("aaaabbbccde"))
    other = "c,n,label\nz,9,1\n?,-1,1\na,?,1\n"
    numbers = table(tmp_path, text, other, categories="numbers", **more).load()
    one_hot = table(tmp_path, text, other, **more).load()
    assert numbers.found == one_hot.found
    for split in ("train", "test"):
        at = 0
        for column, size in zip(numbers.split(split)["x"].T, numbers.fields):
            width = size or 1
            part = one_hot.split(split)["x"][:, at : at + width]
            expected = column[:, None] == np.arange(size) if size else column[:, None]
            np.testing.assert_array_equal(part, expected)
            at += width
        assert at == one_hot.train["x"].shape[1]
    assert (-1 in numbers.test["x"]) == ("max_categories" not in more)


def test_hashed_categories(tmp_path):
    """The place is the hash of the text, the same for ever; unseen ones have one; what is missing has its own."""

    digests = {
        "Köln": "a9b862ce85040280",
        "07": "2c2eb8f9ebe6597c",
        "7": "e75017cace788f82",
        "Rome": "9c8d976daa3afef0",
    }
    digests["Oslo"] = "5db7be70fe92f0fc"  # as GNU coreutils' b2sum -l 64 gives them

    def place(text, buckets):
        return int.from_bytes(bytes.fromhex(digests[text]), "little") % buckets

    cells = ["Köln", "", "07", "7", "Köln", "Rome"]
    text = "c,label\n" + "".join(f"{c},{i}.5\n" for i, c in enumerate(cells))
    source = table(tmp_path, text, "c,label\nOslo,1\n?,1\n", hashed={"c": 10}, categories="numbers")
    made = source.load()
    assert made.fields == (11,)
    np.testing.assert_array_equal(in_order(source, made)[:, 0], [place(c, 10) if c else 10 for c in cells])
    assert len({place(c, 10) for c in digests}) > 2
    np.testing.assert_array_equal(made.test["x"][:, 0], [place("Oslo", 10), 10])
    assert settled(source, made).describe()["c"] == "hashed, 10 buckets, 1 missing in training"
    assert settled(source, made).encode([{"c": "Oslo"}]).tolist() == [[place("Oslo", 10)]]
    never = table(tmp_path, text.replace("\n,", "\nUlm,"), "c,label\n?,1\n", hashed={"c": 10}, categories="numbers")
    assert never.load().fields == (10,)
    assert never.load().test["x"].tolist() == [[-1]]


def test_numbers_cut_into_buckets(tmp_path):
    """As many training rows in each; a boundary belongs to the bucket below; fewer where rows tie; none is empty."""

    def cut(values, buckets, other=(1,)):
        text, more = ("x,label\n" + "".join(f"{value},0\n" for value in cells) for cells in (values, other))
        source = table(tmp_path, text, more, bucketed={"x": buckets}, categories="numbers", target_kind="number")
        made = source.load()
        return made, in_order(source, made)[:, 0].tolist()

    values = np.random.default_rng(0).permutation(100) / 4
    made, x = cut(values, 4, [-5, 6, 6.1, 12, 30, 18.0])
    assert made.fields == (4,)
    assert x == (values * 4 // 25).tolist()
    assert made.found["columns"][0].boundaries == (6.0, 12.25, 18.5)
    assert made.test["x"][:, 0].tolist() == [0, 0, 1, 1, 3, 2]
    made, x = cut([0] * 17 + [5, 7, 9], 10)
    assert made.found["columns"][0].boundaries == (0.0, 5.0)
    assert x == [0] * 17 + [1, 2, 2]
    made, x = cut([3, 2] + [9] * 18, 4)  # many rows at the largest number
    assert x == [0, 0] + [1] * 18
    made, x = cut([4, 4, 4], 5, [3, 4, 5])
    assert (made.fields, made.test["x"].tolist()) == ((1,), [[0], [0], [0]])
    for buckets in (2, 3, 7, 50):
        made, x = cut([1.5, 2.5, 2.5, "", -1e9, 1e9, "NA"], buckets, ["?", 0])
        found = made.found["columns"][0]
        assert sorted(set(x)) == list(range(made.fields[0]))
        assert made.fields[0] == len(found.boundaries) + 2 <= buckets + 1
        assert made.test["x"][0] == x[3] == x[6] == made.fields[0] - 1
    made, _ = cut([1, 2, 3], 3, ["?"])
    assert made.test["x"].tolist() == [[-1]]
    assert [c.describe() for c in made.found["columns"]] == ["bucketed, 3 buckets cut at 1, 2, 0 missing in training"]


def test_buckets_are_of_the_training_rows(tmp_path):
    """Numbers of the rows kept apart move no boundary, and a run keeps those that it found."""
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=60)
    source = table(tmp_path, "", test_path="", test=0.25, validation=0.25, bucketed={"x": 5}, categories="numbers")

    def write(numbers):
        (tmp_path / "a.csv").write_text(
            "x,label\n" + "".join(f"{n!r},{i % 2}\n" for i, n in enumerate(numbers.tolist()))
        )

    write(numbers)
    made, parts = source.load(), source.split({"row": np.arange(60)})
    train = np.sort(numbers[parts["train"]["row"]])
    assert made.found["columns"][0].boundaries == tuple(train[[5, 11, 17, 23]].tolist())  # 30 rows, 6 in each
    assert np.bincount(made.train["x"][:, 0].astype(int)).tolist() == [6] * 5
    run = settled(source, made)
    numbers[parts["test"]["row"]] += 100
    write(numbers)
    assert source.load().found == made.found
    write(numbers * 2)
    assert run.load().found["columns"] == made.found["columns"]
    assert run.encode([{"x": float(train[5])}, {"x": float(np.nextafter(train[5], 9))}]).tolist() == [[0], [1]]


WRONG = [
    ("a,label\n1,x\n2\n", {}, ["a.csv: line 3: 1 cells; expected 2"]),
    ("a,label\n", {}, ["a.csv: no rows"]),
    ("", {}, ["a.csv: no rows"]),
    ("a,a,label\n1,2,x\n", {}, ["a.csv: line 1: column 'a' is there twice"]),
    ("a,b\n1,2\n", {}, ["data.target: no column 'label' in data.path: a.csv; it has: a, b"]),
    ("a,label\n1,x\n", {"drop": ["z"]}, ["data.drop: no column 'z'"]),
    ("label\nx\n", {}, ["no columns are left for the inputs"]),
    ("a,label\n1,x\n2,\n", {}, ["line 3: column 'label': missing; expected a target in each row"]),
    ("a,label\n1,x\nb,y\n", {"numeric": ["a"]}, ["line 3: column 'a': found 'b'; expected a number"]),
    ("a,label\n1,x\n2,y\n3,y\nb3,y\n", {}, ["line 5: column 'a': found 'b3'", "categorical"]),
    ("a,label\n1_0,x\n2,y\n3,y\n4,y\n", {}, ["line 2: column 'a': found '1_0'"]),
    ("a,label\ninf,x\n2,y\n3,y\n4,y\n", {}, ["line 2: column 'a': found 'inf'"]),
    ("a,label\n1e999,x\n2,y\n3,y\n4,y\n", {}, ["line 2: column 'a': found '1e999'"]),
    ("a,label\n1e300,x\n-1e300,y\n3,y\n4,y\n", {}, ["column 'a': numbers too large"]),
    ("a,label\n1e300,x\n1e2,y\n", {"normalise": "none"}, ["line 2: column 'a': found '1e300'; expected a number that"]),
    ("a,b,label\n?,1,x\nNA,2,y\n", {}, ["column 'a' is missing in every training row; add it to drop"]),
    ('a,label\n1,x\n"2"3,y\n', {}, ["a.csv: line 3: "]),
    ("a,label\n1,x\n2,y\n", {"target_kind": "number"}, ["line 2: column 'label': found 'x'; expected a number"]),
    ("a,label\n1,x\n2,y\n", {"hashed": {"z": 5}}, ["data.hashed: no column 'z' in data.path: a.csv; it has: a, label"]),
    ("a,label\n1,x\n2,y\n", {"bucketed": {"z": 5}}, ["data.bucketed: no column 'z'"]),
    ("a,label\n1,x\nb,y\n", {"bucketed": {"a": 5}}, ["line 3: column 'a': found 'b'; expected a number"]),
    ("a,b,label\n?,1,x\n?,2,y\n", {"hashed": {"a": 5}}, ["column 'a' is missing in every training row"]),
    (
        "b,a,label\n1,1,x\n2,2,y\n",
        {"hashed": {"a": 2**24 + 1, "b": 9}, "categories": "numbers"},
        ["data.path: a.csv: column 'a': 16777217 categories; expected at most 16777216"],
    ),
    ("a,label\n1,x\n2,y\n", {"class_names": ["x"]}, ["line 3: column 'label': found 'y'", "one of the classes: x"]),
    ("a,label\n" + "1" * 200_000 + ",x\n", {}, ["a.csv: line 2: field larger"]),
]


@pytest.mark.parametrize(("text", "more", "message"), WRONG, ids=[m[-1] for *_, m in WRONG])
def test_bad_tables(tmp_path, text, more, message):
    mistake(table(tmp_path, text, test_path="", test=0.0, **more).load, *message)


def test_bad_rows_of_another_file_and_bad_settings(tmp_path):
    mistake(
        table(tmp_path, other=OTHER.replace("35", "x")).load, "data.test_path: b.csv: line 2: column 'age': found 'x'"
    )
    mistake(table(tmp_path, other=OTHER.replace("yes", "maybe")).load, "b.csv: line 2: column 'label': found 'maybe'")
    mistake(table(tmp_path, other=OTHER.replace("age", "Age")).load, "b.csv: no column 'age'; it has: Age")
    mistake(table(tmp_path, path="c.csv").load, "data.path: no file c.csv")
    (tmp_path / "c.csv").write_bytes(b"a,label\n\xff\xfe,x\n")
    mistake(table(tmp_path, path="c.csv").load, "data.path: c.csv: not UTF-8 text")
    for more, message in [
        ({"delimiter": ";;"}, "delimiter"),
        ({"delimiter": "\n"}, "delimiter: found '\\n'"),
        ({"names": ["a"]}, "names: found some; expected none where header = true"),
        ({"drop": ["label"]}, "drop: column 'label' is in target too"),
        ({"numeric": ["age"], "categorical": ["age"]}, "categorical: column 'age' is in numeric too"),
        ({"hashed": {"age": 1}}, "hashed.age: found 1; expected at least 2 buckets"),
        ({"bucketed": {"age": 1}}, "bucketed.age: found 1; expected at least 2 buckets"),
        ({"hashed": {"age": 9}, "categorical": ["age"]}, "hashed: column 'age' is in categorical too"),
        ({"hashed": {"age": 9}, "bucketed": {"age": 9}}, "bucketed: column 'age' is in hashed too"),
        ({"bucketed": {"label": 9}}, "bucketed: column 'label' is in target too"),
        ({"categories": "number"}, "categories: found"),
        ({"target": []}, "target"),
        ({"target": 5}, "target: found 5; expected an array"),
        ({"normalise": "std"}, 'normalise: found "std"; expected'),
    ]:
        mistake(lambda more=more: table(tmp_path, **more), message)


def test_the_shipped_configs_load(small, monkeypatch):
    """On small data of the same formats, by the [data] of the configs."""
    monkeypatch.setenv("FUNCTRAIN_DATA", str(small))
    settings = {c: tomllib.loads((ROOT / f"configs/{c}_mlp.toml").read_text()) for c in ("adult", "housing")}
    made = parse(Csv, settings["adult"]["data"]).load()
    assert made.classes == 2
    assert made.found["class_names"] == ("<=50K", ">50K")
    assert len(made.test["y"]) == 200
    made = parse(Csv, settings["housing"]["data"]).load()
    assert made.classes == 0
    assert 0.1 < made.train["y"].min() < made.train["y"].max() < 10
    assert [c.missing > 0 for c in made.found["columns"]] == [c.name == "total_bedrooms" for c in made.found["columns"]]


def test_the_real_tables():
    """Adult, California housing and penguins, with the figures that their publishers and pandas give."""
    root = real("tabular/adult/adult-train.csv", 3_974_305).parent.parent
    data = tomllib.loads((ROOT / "configs/adult_mlp.toml").read_text())["data"]
    data |= {key: str(root.parent / data[key]) for key in ("path", "test_path")} | {"validation": 0.0}
    start = time.thread_time()
    made = parse(Csv, data).load()
    assert time.thread_time() - start < 1.5
    assert np.bincount(made.train["y"]).tolist() == [24720, 7841]
    assert np.bincount(made.test["y"]).tolist() == [12435, 3846]
    missing = {c.name: c.missing for c in made.found["columns"] if c.missing}
    assert missing == {"workclass": 1836, "occupation": 1843, "native-country": 583}  # 4,262 in all
    path = str(root / "california-housing/housing.csv")
    made = Csv(path=path, target=("median_house_value",), validation=0.0, test=0.0).load()
    assert len(made) == 20_640
    assert round(float(made.train["y"].mean(dtype=np.float64))) == 206_856
    assert {c.name: c.missing for c in made.found["columns"] if c.missing} == {"total_bedrooms": 207}
    made = Csv(path=str(root / "penguins/penguins.csv"), target=("species",), validation=0.0, test=0.0).load()
    assert np.bincount(made.train["y"]).tolist() == [152, 68, 124]
    assert sum(c.missing for c in made.found["columns"]) == 19


# -- images ---------------------------------------------------------------------------------------


def images(folder, n=3, size=(6, 5), classes=("cat", "ant"), seed=0):
    """Small pictures of random colours in a folder for each class."""
    image = pytest.importorskip("PIL.Image", reason="Pillow (extra images)")
    rng = np.random.default_rng(seed)
    arrays = {}
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            array = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
            image.fromarray(array).save(folder / name / f"{i}.png")
            arrays[name, i] = array
    return arrays


def test_a_folder_of_images(tmp_path):
    """Classes and files sorted by name; pixels as they are where the size is; grey, stretched and cut."""
    image = pytest.importorskip("PIL.Image", reason="Pillow (extra images)")
    arrays = images(tmp_path / "p")
    (tmp_path / "p/ant/notes.txt").write_text("no image")
    (tmp_path / "p/.hidden").mkdir()
    source = parse(ImageFolder, {"path": "p", "size": [6, 5], "validation": 0.0, "test": 0.0, "normalise": "standard"})
    made = source.load()
    assert made.found["class_names"] == ("ant", "cat")
    rows = source.split({"i": np.arange(6)})["train"]["i"]
    expected = np.stack([arrays[name, i] for name in ("ant", "cat") for i in range(3)])
    np.testing.assert_array_equal(made.train["x"], expected[rows])
    assert made.train["y"].tolist() == np.array([0, 0, 0, 1, 1, 1])[rows].tolist()
    run = settled(source, made)
    x = (expected / 255 - (expected / 255).mean((0, 1, 2))) / (expected / 255).std((0, 1, 2))
    np.testing.assert_allclose(run.prepare({"x": jnp.asarray(expected)})["x"], x, atol=2e-6)
    np.testing.assert_array_equal(run.read_inputs("p/cat/1.png"), arrays["cat", 1][None])
    np.testing.assert_array_equal(run.read_inputs("p/ant"), expected[:3])
    assert run.read_inputs("p.npy") is None
    grey = dataclasses.replace(source, channels=1, size=(3, 7)).load()
    assert grey.train["x"].shape == (6, 3, 7, 1)
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, 2:6] = 200  # the middle square
    image.fromarray(wide).save(tmp_path / "wide.png")
    cut = dataclasses.replace(source, size=(2, 2), crop=True).read_inputs("wide.png")
    stretched = dataclasses.replace(source, size=(2, 2)).read_inputs("wide.png")
    assert (cut == 200).all()
    assert 0 < stretched.min() < stretched.max() + 1 < 200
    checks = np.indices((8, 8)).sum(0) % 2 * 255
    image.fromarray(np.repeat(checks[..., None], 3, 2).astype(np.uint8)).save(tmp_path / "checks.png")
    smaller = dataclasses.replace(source, size=(2, 2)).read_inputs("checks.png")
    assert abs(smaller.astype(int) - 127).max() <= 8  # antialiased: a mean, and no pixel picked out


def test_image_folders_with_their_own_splits(tmp_path):
    for seed, split in enumerate(("train", "validation", "test")):
        images(tmp_path / "p" / split, n=4 - seed, seed=seed)
    source = ImageFolder(path="p", size=(6, 5))
    made = source.load()
    assert [len(part["y"]) for part in (made.train, made.validation, made.test)] == [8, 6, 4]
    assert made.found["class_names"] == ("ant", "cat")
    images(tmp_path / "p/test", classes=["dog"])
    mistake(source.load, "test/dog: no such class; there are: ant, cat")


def test_bad_image_folders(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="Pillow (extra images)")
    source = ImageFolder(path="p", size=(6, 5))
    mistake(source.load, "data.path: no folder p")
    (tmp_path / "p").mkdir()
    mistake(source.load, "p: holds no folders; expected one for each class")
    images(tmp_path / "p")
    (tmp_path / "p/bee").mkdir()
    mistake(source.load, "p/bee: holds no images")
    good = (tmp_path / "p/cat/0.png").read_bytes()
    for bad in (b"", b"text", good[:-30], good[:60], good[:40] + b"\0\0\0\0" + good[44:]):
        (tmp_path / "p/bee/1.png").write_bytes(bad)
        mistake(source.load, "p/bee/1.png: cannot be read as an image: ")
    image.fromarray(np.full((6, 5), 40_000, np.uint16)).save(tmp_path / "p/bee/1.png")
    mistake(source.load, "p/bee/1.png", "8 bits")
    mistake(lambda: parse(ImageFolder, {"path": "p", "size": [6]}), "size")
    mistake(lambda: parse(ImageFolder, {"path": "p", "size": [6, 5], "channels": 2}), "channels: found 2")


def test_images_without_pillow(tmp_path, monkeypatch):
    (tmp_path / "p/a").mkdir(parents=True)
    (tmp_path / "p/a/0.png").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    mistake(ImageFolder(path="p", size=(2, 2)).load, "pip install 'functrain[images]'")


# -- examples at hand -----------------------------------------------------------------------------


class Columns:
    """What functrain uses of a datasets.Dataset: column_names, and columns by name (in its newer versions no lists)."""

    def __init__(self, **columns):
        self.column_names = list(columns)
        self._columns = columns

    def __getitem__(self, name):
        return iter_only(self._columns[name])


class iter_only:
    """A column that can be passed over, and no more."""

    def __init__(self, values):
        self.values = values

    def __iter__(self):
        return iter(self.values)


def test_iterables_become_arrays():
    pairs = from_iterable(((float(i), i + 0.5), i % 2) for i in range(4))
    assert pairs["x"].tolist() == [[i, i + 0.5] for i in range(4)]
    assert pairs["y"].tolist() == [0, 1, 0, 1]
    rows = [{"pixels": np.full((2, 2), i), "digit": i, "name": "x"} for i in range(3)]
    named = from_iterable(rows, {"pixels": "x", "digit": "y"})
    assert {k: v.shape for k, v in named.items()} == {"x": (3, 2, 2), "y": (3,)}
    places = from_iterable([(1, 2.0, 3), (4, 5.0, 6)], {0: "y", 1: "x", 2: "weight"})
    assert {k: v.tolist() for k, v in places.items()} == {"y": [1, 4], "x": [2.0, 5.0], "weight": [3, 6]}
    assert from_iterable([[1, 2], [3, 4]])["x"].shape == (2, 2)
    assert from_iterable({"x": [1, 2], "y": jnp.array([1, 0])})["y"].tolist() == [1, 0]
    assert from_iterable([(True,), (False,)])["x"].tolist() == [True, False]


def test_data_sets_of_hugging_face():
    image = pytest.importorskip("PIL.Image", reason="Pillow (extra images)")
    pixels = [np.full((3, 2), 20 * i, np.uint8) for i in range(4)]
    data = Columns(image=[image.fromarray(p) for p in pixels], label=[0, 1, 2, 1], text=list("abcd"))
    arrays = from_iterable(data, {"image": "x", "label": "y"})
    np.testing.assert_array_equal(arrays["x"], np.stack(pixels))
    assert arrays["x"].dtype == np.uint8
    assert arrays["y"].tolist() == [0, 1, 2, 1]
    mistake(lambda: from_iterable(data), "example 0: text: found str; expected numbers")
    splits = from_splits({"train": data, "test": Columns(image=pixels[:2], label=[2, 0])}, {"image": "x", "label": "y"})
    made = dataset("mine", splits)
    assert (made.classes, len(made), len(made.test["y"])) == (3, 4, 2)
    mistake(lambda: from_splits({"train": data}), "train: example 0: text: found str")


def test_splits_of_anything():
    assert list(from_splits([(1, 2), (3, 4)])) == ["train"]
    assert list(from_splits({"x": [1, 2], "y": [3, 4]})) == ["train"]
    made = from_splits({"train": {"x": [1.0], "y": [0]}, "validation": {}, "test": [(2.0, 1)]})
    assert [list(made[split]) for split in ("train", "validation", "test")] == [["x", "y"], [], ["x", "y"]]


REFUSED = [
    ([], "there are none"),
    (5, "found int; expected an iterable"),
    ("text", "found str"),
    ([(1, 2), (1,)], "example 1: found a tuple of 1; the first one has a tuple of 2"),
    ([{"x": 1}, {"y": 1}], "example 1: found columns y; the first one has columns x"),
    ([{"x": 1}, (1,)], "example 1: found a tuple of 1; the first one has columns x"),
    ([{"x": 1}, 7], "example 1: found int"),
    ([([1, 2], 0), ([1], 0)], "example 1: x: shape (1,); that of the first is (2,)"),
    ([([[1], [2, 3]], 0)], "example 0: x: rows of different lengths"),
    ([(1, 0), (2, "b")], "example 1: y: found str; expected numbers"),
    ([(1, 0), (None, 1)], "example 1: x: found NoneType"),
    ([(1, 0, 2)], "tuples of 3; columns says nothing of place 2"),
]


@pytest.mark.parametrize(("examples", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_examples_that_are_refused(examples, message):
    mistake(lambda: from_iterable(examples), message)


def test_columns_that_are_not_there():
    mistake(lambda: from_iterable([{"a": 1}], {"b": "x"}), "no column 'b'; there are: a")
    mistake(lambda: from_iterable([{"a": 1}, {"a": 10**30}]), "example 1: a: found int; expected numbers")


def test_fit_takes_them():
    examples = (((float(i % 7), float(i % 3)), float(i % 7) * 2 - i % 3) for i in range(84))

    def init(key):
        return {"w": jnp.zeros((2, 1))}

    model = functrain.fit(
        init,
        lambda params, x: x @ params["w"],
        from_iterable(examples),
        optimizer=functrain.optim.AdamW(peak_lr=0.1, weight_decay=0.0),
        steps=200,
    )
    np.testing.assert_allclose(model.params["w"].ravel(), [2.0, -1.0], atol=0.05)


# -- mixtures -------------------------------------------------------------------------------------


SHARES = [(10, (3, 2, 2)), (32, (1, 1)), (7, (0.1, 0.2, 0.7)), (5, (1e-3, 1)), (64, (5, 3, 1, 1))]


@pytest.mark.parametrize(("size", "weights"), SHARES)
def test_apportion(size, weights):
    """Shares add up, none is a whole one away from the exact share, and a larger weight has no smaller share."""
    shares = apportion(size, weights)
    assert sum(shares) == size
    for share, weight in zip(shares, weights):
        assert abs(share - size * weight / sum(weights)) < 1
    assert sorted(zip(weights, shares)) == sorted(zip(weights, shares), key=lambda pair: (pair[1], pair[0]))


def test_mixed_batches():
    """So many of each, each source in its own order and at its own rate, a pure function of (seed, step)."""
    rows = {"x": jnp.arange(25), "source": jnp.array([0] * 12 + [1] * 7 + [2] * 6)}
    parts = ((12, 4), (7, 1), (6, 3))
    feed = Mixed(rows, parts, seed=5)
    batch = jax.jit(feed.batch)
    seen = [batch(feed.window(0, 1), np.int32(step)) for step in range(42)]
    for each in seen:
        assert each["source"].tolist() == [0] * 4 + [1] + [2] * 3
    drawn = np.stack([np.asarray(each["x"]) for each in seen])
    first, second, third = drawn[:, :4], drawn[:, 4:5], drawn[:, 5:]
    for part, low, n, epoch in ((first, 0, 12, 3), (second, 12, 7, 7), (third, 19, 6, 2)):
        for start in range(0, 42, epoch):  # within an epoch of its own, each example of a source once
            assert sorted(part[start : start + epoch].ravel().tolist()) == list(range(low, low + n))
    np.testing.assert_array_equal(first, [order(5, np.int64(s), 12, 4, np) for s in range(42)])
    assert (second[:7] != second[7:14]).any()  # epochs differ
    again = batch(feed.window(0, 1), np.int32(17))
    np.testing.assert_array_equal(again["x"], drawn[17])
    other = jax.jit(Mixed(rows, parts, seed=6).batch)(rows, np.int32(0))
    assert (np.asarray(other["x"]) != drawn[0]).any()
    equal = Mixed({"x": jnp.arange(12)}, ((6, 3), (6, 3)))  # two sources of one size: not the same order twice
    batch = jax.jit(equal.batch)
    pairs = np.stack([np.asarray(batch(equal.arrays, np.int32(s))["x"]) for s in range(8)])
    assert (pairs[:, :3] != pairs[:, 3:] - 6).any()
    one, memory = Mixed({"x": jnp.arange(12)}, ((12, 4),), seed=5), Memory({"x": jnp.arange(12)}, 4, 5)
    batches = jax.jit(one.batch), jax.jit(memory.batch)
    for step in range(7):  # a mixture of one source is that source
        x = [batch(one.arrays, np.int32(step))["x"] for batch in batches]
        np.testing.assert_array_equal(*x)


def two_sources(tmp_path, **more):
    """A mixture of bytes from IDX files, and of numbers that are normalised, from an .npz file."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").write_bytes(idx(rng.integers(0, 256, (40, 3, 2))))
    (tmp_path / "labels").write_bytes(idx(np.arange(40) % 3))
    np.savez(tmp_path / "b.npz", x=rng.normal(10, 4, (30, 3, 2)).astype(np.float32), y=np.arange(30) % 5)
    sources = [
        {"kind": "idx", "images": "images", "labels": "labels", "test": 0.2},
        {"kind": "npz", "path": "b.npz", "normalise": "standard", "validation": 0.0, "test": 0.2},
    ]
    return parse(Mixture, {"sources": sources, "batch_size": 8, "weights": [3, 1]} | more)


def test_a_mixture_of_sources(tmp_path):
    """Parts one after the other; each row prepared as its own source would, in training and in evaluation."""
    source = two_sources(tmp_path)
    made = source.load()
    alone = [part.load() for part in source.sources]
    assert len(made) == len(alone[0]) + len(alone[1]) == 28 + 24
    assert made.classes == 5
    assert made.test["source"].tolist() == [0] * 8 + [1] * 6
    assert made.validation["source"].tolist() == [0] * 4
    np.testing.assert_array_equal(made.test["y"], np.concatenate([part.test["y"] for part in alone]))
    run = settled(source, made)
    own = [dataclasses.replace(part, **one.found) for part, one in zip(source.sources, alone)]
    expected = np.concatenate([part.prepare({"x": jnp.asarray(one.test["x"])})["x"] for part, one in zip(own, alone)])
    feed = InOrder(jax.device_put(made.test), 5, run.prepare)
    batches = [jax.jit(feed.batch)(feed.arrays, np.int32(i)) for i in range(3)]  # the second has rows of both
    found = np.concatenate([np.asarray(batch["x"]) for batch in batches])
    np.testing.assert_allclose(found[:14], expected, rtol=1e-6)
    assert sum(int(batch["mask"].sum()) for batch in batches) == 14
    train = run.feed(made, jax.device_put(made.train), 3)
    assert train.parts == ((28, 6), (24, 2))
    batch = jax.jit(train.batch)(train.window(0, 1), np.int32(2))
    at = order(3, np.int64(2), 28, 6, np)
    np.testing.assert_allclose(batch["x"][:6], alone[0].train["x"][at] / np.float32(255), rtol=1e-6)
    assert batch["source"].tolist() == [0] * 6 + [1] * 2
    x = jnp.asarray(alone[1].test["x"])
    bare = dataclasses.replace(run, inputs_of=1).prepare({"x": x})
    np.testing.assert_array_equal(bare["x"], own[1].prepare({"x": x})["x"])
    built = build(Experiment(task=Classification(), model=MLP(hidden=(4,)), data=source, train=Train(steps=2)))
    assert built.config.data == run
    assert isinstance(built.feeds["train"], Mixed)


def test_mixtures_that_do_not_fit(tmp_path):
    np.savez(tmp_path / "other.npz", x=np.zeros((9, 2, 2)), y=np.arange(9))
    np.savez(tmp_path / "bare.npz", x=np.zeros((9, 3, 2)))
    np.savez(tmp_path / "numbers.npz", x=np.zeros((9, 3, 2)), y=np.arange(9.0))
    first = two_sources(tmp_path).sources[0]

    def mixed(path, **more):
        return Mixture(sources=(first, Npz(path=path)), **more).load

    mistake(two_sources(tmp_path, weights=[100, 1]).load, "data.batch_size: found 8", "sources.1", "at least 51")
    assert apportion(51, (100, 1)) == (50, 1)
    mistake(two_sources(tmp_path, batch_size=64).load, "data.sources.0: 28 training examples", "64 has 48 of them")
    mistake(mixed("other.npz"), "data.sources.1: x: shape (2, 2); in sources.0 it is (3, 2)")
    mistake(mixed("bare.npz"), "data.sources.1: has x; sources.0 has x, y")
    mistake(mixed("numbers.npz"), "data.sources.1: y is a number; in sources.0 y is a class")
    mistake(mixed("gone.npz"), "data.sources.1.path: no file gone.npz")
    for more, message in [
        ({"weights": [1]}, "weights: found 1; expected 2"),
        ({"weights": [1, 0]}, "weights"),
        ({"inputs_of": 2}, "inputs_of: found 2"),
        ({"sources": []}, "sources: found 0"),
        ({"sources": [{"kind": "digits", "batch_size": 8}, {"kind": "digits"}]}, "sources.0.batch_size: found 8"),
        ({"sources": [{"kind": "mixture"}, {"kind": "digits"}]}, 'kind: found "mixture"'),
        ({"sources": [{"kind": "digits"}, {"kind": "npz", "pth": "a"}]}, "sources.1.pth: unknown key"),
    ]:
        mistake(lambda more=more: two_sources(tmp_path, **more), message)


def test_predictions_of_a_table_by_its_columns(tmp_path, monkeypatch, capsys):
    """`functrain predict RUN new.csv` encodes its columns as in training, in any order; `inspect` tells them."""
    monkeypatch.chdir(tmp_path)
    rows = [f"{'red' if i % 3 else 'blue'},{i},{'yes' if i % 3 else 'no'}" for i in range(90)]
    (tmp_path / "t.csv").write_text("\n".join(["colour,size,answer", *rows, ""]))
    (tmp_path / "c.toml").write_text(
        '[task]\nkind = "binary"\n[model]\nkind = "mlp"\nhidden = [8]\n'
        '[data]\nkind = "csv"\npath = "t.csv"\ntarget = "answer"\n'
        "[optimizer]\npeak_lr = 0.05\n[train]\nsteps = 60\n[observe]\ntensorboard = false\nfigures = false\n"
    )
    assert main(["inspect", "c.toml"]) == 0
    assert "categorical, 2 categories, 0 missing" in capsys.readouterr().out
    assert main(["train", "c.toml", "--out", "r"]) == 0
    (tmp_path / "t.csv").unlink()
    (tmp_path / "new.csv").write_text("size,colour\n3,blue\n4,red\n,red\n")
    capsys.readouterr()
    assert main(["predict", "r", "new.csv"]) == 0
    assert [json.loads(line)["class"] for line in capsys.readouterr().out.splitlines()] == [0, 1, 1]
    (tmp_path / "new.csv").write_text("size,colour\nmany,blue\n")
    assert main(["predict", "r", "new.csv"]) == 2
    assert "line 2: column 'size': found 'many'; expected a number" in capsys.readouterr().err


@pytest.mark.parametrize("scale", [1.0, 1 / 255])
def test_scale_comes_before_normalisation(tmp_path, scale):
    """Normalised numbers of an .npz file have mean 0 and deviation 1, whatever they were multiplied by."""
    x = np.random.default_rng(0).integers(0, 256, (200, 3)).astype(np.uint8)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(200) % 2)
    source = Npz(path=str(tmp_path / "a.npz"), scale=scale, normalise="standard")
    dataset = source.load()
    prepared = dataclasses.replace(source, **dataset.found).prepare({"x": dataset.train["x"]})["x"]
    np.testing.assert_allclose(prepared.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(prepared.std(0), 1, atol=1e-5)
