"""Streams: the batches and the training of memory, bit for bit, whoever reads them and however far ahead."""

import collections
import contextlib
import dataclasses
import gc
import importlib.util
import io
import itertools
import json
import multiprocessing
import os
import signal
import sys
import tarfile
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import same
from small_data import jpeg, write_digits_said, write_imagenette

from functrain import config
from functrain.building import build
from functrain.built import compile
from functrain.config import ConfigError, parse
from functrain.data import ArrayRecord, Csv, Examples, ImageFolder, Memory, Parquet, SoundFiles, Stream, array_record
from functrain.data import parquet as parquet_files
from functrain.data.ahead import Ahead
from functrain.data.order import order
from functrain.data.reading import Batches, Rows
from functrain.data.sources import Arrays
from functrain.data.streaming import some
from functrain.experiment import Experiment
from functrain.train.loop import Best, run

PATTERN = r"(?P<label>\d)_(?P<speaker>[a-z]+)_(?P<take>\d+)\.wav$"
CSV = """# made up
name,size,kind,"two
lines",y,w

a,1,"x, y",u,no,1
b,2,"said ""so""
twice",v,yes,2
# not a row
"",3.5,x,,no,1
d,-1e3,x,v,yes,0.5
"""


def squares(n=50, width=3):
    """A read function, and how often each step's first index was read."""
    seen = collections.Counter()

    def read(indices):
        seen[int(indices[0])] += 1
        return {"x": np.repeat(indices[:, None] ** 2, width, 1), "y": indices.astype(np.int32)}

    return read, seen


# -- order and windows ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "size", "seed"), [(10, 5, 7), (7, 7, 0), (1000, 3, 2**31 - 1), (130, 64, 3)])
def test_batches_follow_the_order(n, size, seed):
    """Of any step, in epochs of any length, the indices that the device computes."""
    batches = Batches(lambda i: i, n, size, seed)
    for step in (0, 1, 63, 64, 65, 12345, 2**31 - 2):
        assert (batches[step] == order(seed, np.int64(step), n, size, np)).all()
        assert batches[step].dtype == np.int32


@pytest.mark.parametrize("length", [1, 7, 40])
@pytest.mark.parametrize("workers", [1, 3])
def test_windows_are_the_batches_of_their_steps(length, workers):
    """Asked for in order, with looks ahead, shorter windows, far forward and back; each is read once on the way."""
    read, seen = squares()
    batches = Batches(read, 50, 8, 5)
    expected = {step: batches[step] for step in range(400)}
    seen.clear()
    ahead = Ahead(batches, length, workers)
    stops, rng = [0], np.random.default_rng(length)
    while stops[-1] < 90:  # windows that lie across one another too
        stops.append(min(90, stops[-1] + int(rng.integers(1, length + 1))))

    def check(step, count):
        window = ahead.window(step, count)
        rows = window.rows(step, count)
        for s in range(step, step + count):
            assert same(jax.tree.map(lambda x: x[s - window.first], rows), expected[s])  # noqa: B023
            assert rows["x"].ctypes.data % 64 == 0

    for start, end in itertools.pairwise(stops):
        check(start, 1)  # what a look at the layers does
        if start % 3 == 0:
            check(start + 1, 1)
        check(start, end - start)
    times = collections.Counter(int(expected[step]["y"][0]) for step in range(90))
    assert all(seen[first] >= n for first, n in times.items())
    assert sum(seen.values()) <= 90 + 3 * length + 2 * workers  # none twice, and not much ahead
    for step in (300, 0, 299, 7):
        check(step, min(length, 5))


def test_a_stream_is_that_of_memory_and_of_any_window(tmp_path):
    """Chunks of 1 and of 40 steps, 0 to 3 workers: on the device bitwise the batches of the arrays in memory."""
    x = np.random.default_rng(0).normal(size=(60, 2, 3)).astype(np.float32)
    y = np.arange(60, dtype=np.int32)
    memory = Memory({"x": jnp.asarray(x), "y": jnp.asarray(y)}, 7, 3)
    expected = [jax.device_get(memory.batch(memory.arrays, np.int32(s))) for s in range(40)]
    for workers in (0, 1, 3):
        for length in (1, 40):
            stream = Stream(lambda i: {"x": x[i], "y": y[i]}, 60, 7, 1, 3, workers=workers).with_room(length, None)
            assert (stream.ahead is None) == (workers == 0)
            for start in range(0, 40, length):
                window = stream.window(start, length)
                for step in range(start, start + length):
                    assert same(jax.device_get(stream.batch(window, step)), expected[step])
    with pytest.raises(ValueError, match="a window of 41 steps from a stream that holds 40"):
        stream.window(0, 41)


def test_an_error_comes_with_its_step():
    """The steps before it are there, whatever the window; later ones are, when they are asked for."""
    bad = order(1, np.int64(12), 800, 8, np)[3]

    def read(indices):
        if bad in indices:
            raise ConfigError("data.path: a/3.jpg: cannot be read as an image: truncated")
        return {"x": indices}

    batches = Batches(read, 800, 8, 1)
    for length in (1, 5, 40):
        ahead = Ahead(batches, length, 2)
        for step in range(12):
            window = ahead.window(step, 1)
            assert same(window.rows(step, 1)["x"][step - window.first], batches[step]["x"])
        for _ in range(2):
            with pytest.raises(ConfigError, match=r"a/3\.jpg"):
                ahead.window(12, 1).rows(12, 1)
        window = ahead.window(20, 1)
        assert same(window.rows(20, 1)["x"][20 - window.first], batches[20]["x"])


def test_threads_end_with_what_they_serve():
    """Once nobody has the stream; those of one that is cut off in the middle of a batch too."""

    def alive():
        return [t for t in threading.enumerate() if t.name.startswith("functrain-") and t not in before]

    before = set(threading.enumerate())
    stream = Stream(lambda i: time.sleep(0.05) or {"x": i}, 100, 4, 1, workers=2).with_room(500, None)
    window = stream.ahead.window(0, 1)
    assert len(alive()) == 3
    deadline = time.time() + 5  # all of the window would take 12 s
    del stream, window
    gc.collect()
    while alive() and time.time() < deadline:
        time.sleep(0.01)
    assert not alive()
    assert time.time() < deadline


# -- processes ----------------------------------------------------------------------------------------------


class Told(Examples):
    """Says of the process that reads it where it may compute."""

    def __len__(self):
        return 64

    def read(self, i):
        """1 where jax is told to keep to the CPU, and in which process."""
        if i == 40:
            raise ConfigError("data.path: b/40.wav: holds no samples")
        named = multiprocessing.parent_process() is not None and jax.config.jax_platforms == "cpu"
        return {"x": np.full(40_000, i, np.float32), "own": np.int32(named)}


def test_processes_read_the_same(monkeypatch):
    """Bitwise, in shared memory and by a pipe; errors arrive as they are; no device; they end with the stream."""
    pytest.importorskip("grain")
    cloudpickle = pytest.importorskip("cloudpickle")
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)  # what a person's own is
    told = Told()
    stream = Stream(told.read_batch, 64, 4, 1, 2, workers=2, processes=True).with_room(3, None)
    bad = next(s for s in range(16) if 40 in order(2, np.int64(s), 64, 4, np))
    for start in range(0, bad // 3 * 3, 3):
        window = stream.window(start, 3)
        for step in range(start, start + 3):
            batch = jax.device_get(stream.batch(window, step))
            assert (batch["x"][:, 7] == order(2, np.int64(step), 64, 4, np)).all()
            assert (batch["own"] == 1).all()
    with pytest.raises(ConfigError, match=r"^data\.path: b/40\.wav: holds no samples$"):
        stream.window(bad, 1)
    assert same(stream.batch(stream.window(bad + 1, 1), bad + 1)["x"][:, 0], np.float32(order(2, bad + 1, 64, 4)))
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    os.kill(workers[0].pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="Worker process was terminated"):
        collections.deque((stream.window(step, 1) for step in itertools.count(bad + 2) if step != bad), maxlen=0)
    stream.ahead.close()
    deadline = time.time() + 10
    while multiprocessing.active_children() and time.time() < deadline:
        time.sleep(0.05)
    assert not multiprocessing.active_children()


# -- whole runs ---------------------------------------------------------------------------------------------


def write_people(path, n=120):
    """A table with numbers, categories, missing cells and weights."""
    rng = np.random.default_rng(0)
    lines = ["age,city,income,moved,times"]
    for _ in range(n):
        age, city = int(rng.integers(18, 90)), rng.choice(["Bonn", "Ulm", ""])
        income = rng.choice(["", str(float(rng.normal(1000, 50)))])
        lines.append(f"{age},{city},{income},{'yes' if age < 40 else 'no'},{int(rng.integers(1, 4))}")
    path.write_text("\n".join(lines) + "\n")


def write_sources(folder):
    """Settings of sources by kind, with their files."""
    rng = np.random.default_rng(0)
    write_imagenette(folder / "images", rng, each=16)
    write_people(folder / "people.csv")
    write_digits_said(folder / "said", rng, takes=2)
    with tarfile.open(folder / "said" / "recordings.tar.gz") as archive:
        archive.extractall(folder / "said", filter="data")
    made = {
        "image_folder": {"path": str(folder / "images"), "size": [10, 8], "normalise": "standard"},
        "csv": {"path": str(folder / "people.csv"), "target": "moved", "weight": "times"},
        "sound_files": {"path": str(folder / "said"), "pattern": PATTERN, "seconds": 0.15, "test": 0.0},
    }
    if importlib.util.find_spec("pyarrow"):
        x, y = rng.normal(2, 3, (100, 5)), rng.integers(0, 3, 100)
        parquet_files.write(folder / "a.parquet", {"x": x, "y": y, "z": np.arange(100)}, group=16)
        made["parquet"] = {"path": str(folder / "a.parquet"), "target": "y", "normalise": "standard", "cached": 2}
    if importlib.util.find_spec("array_record"):
        rows = ({"image": jpeg(rng.integers(0, 255, (9, 9, 3), np.uint8)), "y": i % 4} for i in range(90))
        array_record.write(folder / "a.array_record", rows)
        made["array_record"] = {"path": str(folder / "a.array_record"), "normalise": "standard"}
    return made


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return write_sources(tmp_path_factory.mktemp("sources"))


def experiment(kind, settings, **train):
    return parse(
        Experiment,
        {
            "task": {"kind": "binary" if kind == "csv" else "classification"},
            "model": {"kind": "mlp", "hidden": [8]},
            "data": {"kind": kind, "batch_size": 8, **settings},
            "train": {"steps": 24, "log_every": 8, "chunk": 5, **train},
            "evaluate": {"every": 12, "batch_size": 64},
        },
    )


def trained(built):
    compiled = compile(built)
    return run(compiled.program, compiled.train_state, compiled.metrics, built.plan, best=Best())


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", ["image_folder", "csv", "sound_files", "parquet", "array_record"])
def test_a_run_is_that_of_memory(sources, kind):
    """Bitwise the same state, evaluation and resolved settings; resumed after 11 steps, in other chunks, too."""
    if kind not in sources:
        pytest.skip("its library is not installed")
    memory = build(experiment(kind, sources[kind]))
    whole = trained(memory)
    built = build(experiment(kind, sources[kind] | {"stream": True, "workers": 2}))
    assert isinstance(built.dataset.train["x"], Rows)
    assert built.feeds["train"].longest == 5
    differ = config.differences(memory.config, built.config)
    assert set(differ) <= {"data.stream", "data.workers"}
    ours = trained(built)
    assert same(ours.train_state, whole.train_state)
    assert ours.validation == whole.validation
    assert build(built.config).config == built.config

    compiled = compile(built)
    plan = dataclasses.replace(built.plan, steps=11)
    half = run(compiled.program, compiled.train_state, compiled.metrics, plan, best=Best())
    other = build(experiment(kind, sources[kind] | {"stream": True, "workers": 0}, chunk=1, loop="loop"))
    program = compile(other).program
    resumed = run(program, half.train_state, program.fresh(), other.plan, best=Best())
    assert same(resumed.train_state, whole.train_state)


@pytest.mark.usefixtures("quick")
def test_augmentation_is_the_step_s(sources):
    """On the device, a function of seed and step, of a stream as of memory."""
    states = []
    for more in ({}, {"stream": True}):
        made = experiment("image_folder", sources["image_folder"] | more)
        flip = parse(Experiment, {**config.to_data(made), "augment": [{"kind": "flip"}]})
        states.append(trained(build(flip)).train_state)
    assert same(*states)


def test_one_order_serves_one_seed(sources):
    with pytest.raises(ConfigError, match=r"train\.seeds: found 2; what is read from a file has one order"):
        build(experiment("image_folder", sources["image_folder"] | {"stream": True}, seeds=2))


def test_the_training_part_stays_in_its_files(sources, monkeypatch):
    """Opening a stream reads one image to be trained on, and those of validation and test."""
    read = []
    monkeypatch.setattr("functrain.data.images.read_image", lambda name, *_: read.append(name) or pixels)
    pixels = np.zeros((10, 8, 3), np.uint8), (10, 8)
    settings = sources["image_folder"] | {"normalise": "none", "stream": True}
    data = parse(ImageFolder, settings).load()
    kept = sum(len(part["x"]) for part in (data.validation, data.test))
    assert len(read) == kept + 1
    assert data.train["x"].shape == (len(data), 10, 8, 3)
    assert data.train["x"].nbytes == 0


def test_rows_are_an_array_that_is_read(sources):
    """Shapes, dtypes and indexing are those of the array in memory; all of it at once is refused."""
    settings = sources["image_folder"]
    memory, stream = (parse(ImageFolder, settings | {"stream": s}).load() for s in (False, True))
    for name, array in memory.train.items():
        rows = stream.train[name]
        assert (rows.shape, rows.dtype, rows.ndim, len(rows)) == (array.shape, array.dtype, array.ndim, len(array))
        if name == "y":
            assert same(rows, array)
            continue
        for key in (3, -1, slice(2, 9, 3), slice(0), np.array([5, 5, 0]), array.reshape(len(array), -1)[:, 0] > 90):
            assert same(rows[key], array[key])
    for whole in (np.asarray, jnp.asarray, lambda x: np.concatenate([x, x])):
        with pytest.raises(ConfigError, match=r"data\.stream: found true; here x of all \d+ training examples"):
            whole(stream.train["x"])


def test_what_takes_examples_whole_refuses_a_stream(sources):
    """Few labels, mixtures, a dataset that is given as it is."""
    source = {"kind": "csv", **sources["csv"], "stream": True}
    for data in ({"sources": [source, source]}, {"source": source, "labels": 20}):
        kind = "mixture" if "sources" in data else "few_labels"
        with pytest.raises(ConfigError, match=r"data\.stream: found true; here x of all 96 training examples"):
            build(experiment(kind, data))
    given = Arrays(examples=dataclasses.replace(parse(Csv, source).load(), found={}), batch_size=8)
    with pytest.raises(ConfigError, match=r"data\.stream: found true; here x of all 96 training examples"):
        build(dataclasses.replace(experiment("csv", sources["csv"]), data=given))


# -- sources ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_rows_of_a_csv_are_where_they_begin(tmp_path, ends, last):
    """Quotes, cells of two lines, blank lines, comments, a byte-order mark: one by one and together as in memory."""
    text = CSV if last else CSV.rstrip()
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", ends).encode())
    settings = {"path": str(tmp_path / "a.csv"), "target": "y", "weight": "w", "comment": "#", "drop": ["name"]}
    settings |= {"validation": 0.0, "test": 0.0}
    memory, stream = (parse(Csv, settings | {"stream": s}).load() for s in (False, True))
    assert config.to_data(memory.found) == config.to_data(stream.found)
    for key in ([0, 1, 2, 3], [2, 0], [3], [1, 1]):
        for name, array in memory.train.items():
            assert same(stream.train[name][np.array(key)], array[key])


def test_a_csv_is_learned_from_some_of_its_rows(tmp_path):
    """Columns from so many rows at random, classes from all rows; what the others have more is no category."""
    lines = [f"{i},{'rare' if i == 3 else 'usual'},{'never' if i == 5 else i % 2}" for i in range(200)]
    (tmp_path / "a.csv").write_text("\n".join(["number,kind,y", *lines]))
    settings = {"path": str(tmp_path / "a.csv"), "target": "y", "validation": 0.0, "test": 0.0, "stream": True}
    part = parse(Csv, settings | {"learned_from": 50}).load()
    number, kind = part.found["columns"]
    whole = parse(Csv, settings).load().found["columns"]
    assert part.found["class_names"] == ("0", "1", "never")
    assert whole[1].categories == ("rare", "usual")
    assert kind.categories in (("usual",), ("rare", "usual"))
    assert 0 < abs(number.centre - whole[0].centre) < 25
    shown = some(200, 50)
    assert len(set(shown.tolist())) == 50
    assert (np.diff(shown) > 0).all()


def test_parquet_columns(tmp_path):
    """By name, side by side or one alone in its own dtype; text as classes; several files; groups are kept."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "t").mkdir()
    for i in range(2):
        table = {"a": np.arange(5) + 5 * i, "b": np.arange(5) / 3, "label": ["u", "v", "u", "w", "u"]}
        parquet.write_table(pa.table(table), tmp_path / "t" / f"{i}.parquet", row_group_size=2)
    settings = {"path": str(tmp_path / "t"), "target": "label", "validation": 0.0, "test": 0.0}
    data = parse(Parquet, settings).load()
    at = np.argsort(data.train["x"][:, 0])
    np.testing.assert_array_equal(data.train["x"][at, 0], np.arange(10))
    np.testing.assert_array_equal(data.train["x"][at, 1], np.tile(np.arange(5) / 3, 2).astype(np.float32))
    assert data.train["y"][at].tolist() == [0, 1, 0, 2, 0] * 2
    assert (data.classes, data.found["class_names"]) == (3, ("u", "v", "w"))
    alone = parse(Parquet, settings | {"inputs": ["a"], "stream": True}).load()
    assert (alone.train["x"].dtype, alone.train["x"].shape) == (np.int32, (10, 1))
    examples = alone.train["x"].examples
    groups, read = examples._groups, []
    reads = groups.read
    groups.read = lambda g: read.append(g) or reads(g)
    for _ in range(2):
        examples.read_batch(np.arange(10))
    assert len(read) == len(set(read)) >= 5  # and one when the source was opened


def test_records_are_arrays_or_images(tmp_path):
    """What is written comes back; images are those of a folder; several files; labels are counted once."""
    pytest.importorskip("array_record")
    rng = np.random.default_rng(0)
    (tmp_path / "f").mkdir()
    x = rng.normal(size=(7, 2, 3))
    for i, part in enumerate(np.split(np.arange(7), [4])):
        rows = ({"x": x[k], "y": k % 3, "mask": np.bool_(k % 2)} for k in part)
        assert array_record.write(tmp_path / "f" / f"{i}.array_record", rows) == len(part)
    settings = {"path": str(tmp_path / "f"), "validation": 0.0, "test": 0.0}
    data = parse(ArrayRecord, settings).load()
    at = np.argsort(data.train["x"][:, 0, 0])
    np.testing.assert_array_equal(data.train["x"][at], x[np.argsort(x[:, 0, 0])].astype(np.float32))
    assert (data.classes, data.found["classes"]) == (3, 3)
    assert data.train["mask"].dtype == np.int32

    pixels = [rng.integers(0, 255, (12, 10, 3), np.uint8) for _ in range(6)]
    for i, one in enumerate(pixels):
        (tmp_path / "im" / f"c{i % 2}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "im" / f"c{i % 2}" / f"{i}.jpg").write_bytes(jpeg(one))
    ordered = sorted(range(6), key=lambda i: (i % 2, i))
    rows = ({"image": jpeg(pixels[i]), "y": i % 2} for i in ordered)
    array_record.write(tmp_path / "im.array_record", rows)
    shared = {"validation": 0.0, "test": 0.0, "size": [6, 7], "crop": True}
    ours = parse(ArrayRecord, shared | {"path": str(tmp_path / "im.array_record"), "stream": True}).load().train
    folder = parse(ImageFolder, shared | {"path": str(tmp_path / "im")}).load().train
    assert same({name: rows[:] for name, rows in ours.items()}, folder)


# -- mistakes -----------------------------------------------------------------------------------------------


def refused(said, act):
    with pytest.raises(ConfigError, match=said) as raised:
        act()
    assert "\n" not in str(raised.value)


def read_all(source):
    train = source.load().train
    return train["x"].examples.read_batch(np.arange(len(train["x"])))


def test_mistakes_in_images_and_sounds(tmp_path, sources):
    """An unreadable file is named when it is read, by a worker as by the caller."""

    def windows(stream):
        return [stream.window(step, 2) for step in (0, 2)]

    write_imagenette(tmp_path / "i", np.random.default_rng(0), each=4)
    source = parse(ImageFolder, {"path": str(tmp_path / "i"), "size": [4, 4], "batch_size": 6, "stream": True})
    data = source.load()
    damaged = next((tmp_path / "i" / "train" / "n02102040").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:100])
    for workers in (0, 2):
        stream = dataclasses.replace(source.feed(data, data.train, 0), workers=workers).with_room(2, None)
        refused(rf"n02102040/{damaged.name}: cannot be read as an image", lambda: windows(stream))  # noqa: B023

    said = sources["sound_files"] | {"stream": True}
    refused("data.seconds: missing; where data.stream = true", parse(SoundFiles, said | {"seconds": 0.0}).load)
    archive = said | {"path": said["path"] + "/recordings.tar.gz"}
    refused(r"recordings.tar.gz: an archive is read whole", parse(SoundFiles, archive).load)
    from functrain.data.sounds import JoinedSounds, write_wav

    with pytest.raises(ConfigError, match="strings are joined in memory: expected false"):
        parse(JoinedSounds, {"path": "p", "stream": True})
    for i, rate in enumerate((8000, 8000, 11025)):
        write_wav(tmp_path / f"{i % 2}_ann_{i}.wav", np.full(100, 0.1), rate)
    mixed = said | {"path": str(tmp_path), "validation": 0.0, "normalise": "none"}
    refused(
        r"data\.rate: missing; .*: \d+ samples a second, the first training clip",
        lambda: read_all(parse(SoundFiles, mixed)),
    )
    assert read_all(parse(SoundFiles, mixed | {"rate": 8000}))["x"].shape == (3, 1200)


def test_mistakes_in_tables(tmp_path):
    """The line, in a message of one."""
    path = tmp_path / "a.csv"

    def source(text, **settings):
        path.write_text(text)
        shared = {"path": str(path), "target": "y", "validation": 0.0, "test": 0.0, "stream": True}
        return parse(Csv, shared | settings)

    rows = "".join(f"{i},{i % 2}\n" for i in range(30))
    refused(r"line 32: 1 cells; expected 2", source("x,y\n" + rows + "3\n").load)
    refused("no rows", source("x,y\n").load)
    refused(r"data\.target: no column 'z' in .*; it has: x, y", source("x,y\n" + rows, target="z").load)
    refused(r"line 32: column 'y': missing; expected a target", lambda: read_all(source("x,y\n" + rows + "3,\n")))
    refused(r"line 32: column 'y': missing; expected a target", lambda: read_all(source("x,y\n" + rows + "3,")))
    few = {"learned_from": 2, "numeric": ["x"]}
    refused(
        r"line 33: column 'x': found 'a'; expected a number", lambda: read_all(source(f"x,y\n{rows}\na,1\n", **few))
    )
    good = source("x,y\n" + rows)
    data = good.load()
    path.write_text("x,y\n" + rows + "1,1\n")
    refused("has changed since it was opened", lambda: data.train["x"][0])
    path.write_bytes(b"x,y\n1,\xff\n")
    refused("not UTF-8 text", good.load)


def test_mistakes_in_parquet_and_records(tmp_path):
    """The file and the column, or the record."""
    if importlib.util.find_spec("pyarrow"):
        import pyarrow as pa
        from pyarrow import parquet

        def source(columns, **settings):
            parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
            return parse(Parquet, {"path": str(tmp_path / "a.parquet"), "target": "y", **settings})

        y = list(range(10))
        refused(r"column 'x': holds string; expected numbers", source({"x": ["a"] * 10, "y": y}).load)
        refused(r"column 'x': a cell is missing", source({"x": [None, *y[1:]], "y": y}).load)
        refused(r"lists of different lengths", source({"x": [[1]] * 9 + [[1, 2]], "y": y}).load)
        refused(r"no column 'z'; it has: x, y", source({"x": y, "y": y}, inputs=["z"]).load)
        refused("no columns are left for the inputs", source({"y": y}).load)
        (tmp_path / "b.parquet").write_bytes(b"PAR1")
        refused(
            r"b\.parquet: cannot be read", parse(Parquet, {"path": str(tmp_path / "b.parquet"), "target": "y"}).load
        )
    if importlib.util.find_spec("array_record"):
        path, shared = str(tmp_path / "a.array_record"), {"validation": 0.0, "test": 0.0}
        source = parse(ArrayRecord, {"path": path, **shared})
        array_record.write(path, [{"x": [1, 2], "y": 0}, {"x": [1, 2, 3], "y": 0}])
        refused(r"\[\d\]: int64|x int64 \[\d\].*; expected all alike|x int32 \[\d\]", source.load)
        array_record.write(path, [{"y": 0}])
        refused(r"\[0\]: holds y; expected x or image", source.load)
        array_record.write(path, [{"x": [1, 2], "y": 7 * (i == 5)} for i in range(6)])
        stream = dataclasses.replace(source, classes=3, stream=True)
        refused(r"\[5\]: label 7; expected 0 to 2", lambda: read_all(stream))
        with pytest.raises(ValueError, match="allow_pickle"):
            array_record.pack({"x": np.array([{}])})
        from array_record.python import array_record_module

        writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
        writer.write(b"something else")
        writer.close()
        refused(r"\[0\]: no record of \.npy arrays", source.load)
        (tmp_path / "b.array_record").write_bytes(b"no records")
        refused(r"b\.array_record: no records", parse(ArrayRecord, {"path": str(tmp_path / "b.array_record")}).load)


# -- the benchmark --------------------------------------------------------------------------------------------


def test_the_benchmark(root, monkeypatch, capsys):
    """A small case of streams, and the set in memory: a line of JSON each, and a table."""
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    import feeding

    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("torch", "grain") else there(name))
    feeding.main(["sounds", "memory", "--small", "--workers", "1", "--markdown"])
    shown = capsys.readouterr()
    rows = [json.loads(line) for line in shown.out.splitlines() if line.startswith("{")]
    assert [row.get("reader") for row in rows] == ["decoder", "batches", "threads", None]
    assert all(row["examples_per_s"] > 0 for row in rows[:-1])
    assert rows[-1]["host_share"] < 0.05
    assert "| sounds | threads | 1 |" in shown.out
    assert "not installed: torch, grain" in shown.err
    with contextlib.redirect_stderr(io.StringIO()), pytest.raises(SystemExit):
        feeding.main(["pictures"])
