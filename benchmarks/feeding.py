"""What feeding costs: examples a second of streams beside the bare decoder and torch's DataLoader; sets in memory.

    pip install '.[stream]' torch
    python benchmarks/feeding.py [CASE ...] [--rounds 3] [--seconds 3] [--workers 1,2] [--markdown] [--small]

Cases: images (CIFAR-10's JPEGs of 32 x 32, a file each), photos (the same enlarged to 480 x 480, resized to 224 x 224
when read), sounds (spoken digits, WAV), csv (the adult set, many times over), parquet (its numbers), array_record
(CIFAR-10's JPEGs again), memory. The files are those of FUNCTRAIN_DATA; what is not there is made up.

Of a stream, in batches of 128 in a random order: `decoder` reads one example after another and does nothing with it;
`threads` and `processes` are functrain's workers, up to arrays on the device, in windows of 8 steps, while nothing is
computed; `torch` is a DataLoader over the same decoder, given whole batches to read, in a process of its own. A line of
JSON each: examples a second (best of the rounds), the ratio to the decoder, microseconds of processors an example,
seconds to the first batch, and to opening the source.

Of MNIST in memory (configs/mnist_mlp.toml): `host_share`, what of the loop's time the host spends on feeding, and
`step_share`, what a step takes longer than one that is given batches ready made, turn about: order and gather, by the
clock and in seconds of processors.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import io
import itertools
import json
import operator
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from functrain import config
from functrain.config import ConfigError
from functrain.data import array_record, parquet
from functrain.data.dataset import find
from functrain.data.feed import as_is
from functrain.data.images import ImageFolder
from functrain.data.known import KNOWN, locate
from functrain.data.order import order
from functrain.data.sounds import SoundFiles, write_wav
from functrain.data.table import Csv

CASES = ("images", "photos", "sounds", "csv", "parquet", "array_record", "memory")
BATCH, WINDOW = 128, 8
HERE = Path(__file__).resolve().parent


# -- the files ------------------------------------------------------------------------------------------


def jpegs(count):
    """(bytes, label) of CIFAR-10's training images, or of noise."""
    from PIL import Image

    try:
        with np.load(find("images", "cifar10-jpeg/cifar10_jpeg_bytes.npz")) as file:
            data, offsets, y = (file[f"train_{name}"] for name in ("jpeg", "offsets", "y"))
        return [(data[offsets[i] : offsets[i + 1]].tobytes(), int(y[i])) for i in range(count)]
    except ConfigError:
        made, rng = [], np.random.default_rng(0)
        for i in range(count):
            out = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(out, "JPEG", quality=75)
            made.append((out.getvalue(), i % 10))
        return made


def images(folder, small):
    """A folder of JPEG files."""
    for i, (data, label) in enumerate(jpegs(512 if small else 20_000)):
        (folder / f"class{label}").mkdir(exist_ok=True)
        (folder / f"class{label}" / f"{i}.jpg").write_bytes(data)
    return ImageFolder, {"path": str(folder), "size": [32, 32]}


def photos(folder, small):
    """A folder of larger JPEG files."""
    from PIL import Image

    for i, (data, label) in enumerate(jpegs(160 if small else 1_000)):
        (folder / f"class{label}").mkdir(exist_ok=True)
        picture = Image.open(io.BytesIO(data)).resize((480, 480), Image.Resampling.BICUBIC)
        picture.save(folder / f"class{label}" / f"{i}.jpg", quality=90)
    return ImageFolder, {"path": str(folder), "size": [224, 224]}


def sounds(folder, small):
    """A folder of WAV files."""
    try:
        with tarfile.open(find("sounds", "fsdd/recordings.tar.gz")) as archive:
            archive.extractall(folder, filter="data")
    except ConfigError:
        for i in range(300):
            x = np.random.default_rng(i).uniform(-0.5, 0.5, 3000 + 10 * i)
            write_wav(folder / f"{i % 10}_ann_{i}.wav", x, 8000)
    pattern = r"(?P<label>\d)_[a-z]+_\d+\.wav$"
    return SoundFiles, {"path": str(folder), "pattern": pattern, "seconds": 1.0, "normalise": "none"}


def adult(folder, small):
    """The text of the adult set's training part, and how often it is to be repeated."""
    settings = KNOWN["adult"].settings
    place = next((locate(file) for file in KNOWN["adult"].files if file.path == settings["path"]), None)
    if place is not None:
        text = place.read_text()
    else:
        rng, rows = np.random.default_rng(0), []
        for age, hours in rng.integers(17, 80, (400, 2)):
            school, job = rng.choice(["HS-grad", "Masters"]), rng.choice(["Sales", "?"])
            row = [age, "Private", 99, school, 9, "Divorced", job, "Wife", "White", "Male", 0, 0, hours, "Mexico"]
            rows.append(", ".join(map(str, [*row, ">50K" if age > 40 else "<=50K"])))
        text = "\n".join(rows) + "\n"
    return "\n".join(line for line in text.splitlines() if line) + "\n", 1 if small else 20


def csv(folder, small):
    """One CSV file."""
    text, times = adult(folder, small)
    with open(folder / "adult.csv", "w") as file:
        for _ in range(times):
            file.write(text)
    settings = {k: v for k, v in KNOWN["adult"].settings.items() if k not in ("kind", "test_path")}
    return Csv, settings | {"path": str(folder / "adult.csv"), "learned_from": 10_000}


def parquet_file(folder, small):
    """One Parquet file, in groups of 256 rows."""
    text, times = adult(folder, small)
    rows = [[float(line.split(",")[i]) for i in (0, 2, 4, 10, 11, 12)] for line in text.splitlines()]
    label = [int(">50K" in line) for line in text.splitlines()]
    x = np.tile(np.array(rows, np.float32).T, (1, times))
    columns = {f"column{i}": column for i, column in enumerate(x)} | {"y": np.tile(np.array(label, np.int32), times)}
    parquet.write(folder / "adult.parquet", columns)
    return parquet.Parquet, {"path": str(folder / "adult.parquet"), "target": "y"}


def records(folder, small):
    """One ArrayRecord file of JPEGs."""
    path = folder / "cifar.array_record"
    array_record.write(path, ({"image": data, "y": label} for data, label in jpegs(512 if small else 20_000)))
    return array_record.ArrayRecord, {"path": str(path), "classes": 10}


FILES = {"images": images, "photos": photos, "sounds": sounds, "csv": csv}
FILES |= {"parquet": parquet_file, "array_record": records}


# -- reading them ---------------------------------------------------------------------------------------


def source_of(kind, settings):
    """The source, its training part left in its files."""
    settings = {"batch_size": BATCH, "validation": 0.0, "test": 0.0, "stream": True, **settings}
    return config.parse(kind, config.Source(settings))


def processors():
    """Seconds of processors that this process and those that it started have had; 0 where /proc does not say."""
    parents, spent = {}, {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            _, _, rest = place.read_text().rpartition(") ")
            fields = rest.split()
            parents[int(place.parent.name)] = int(fields[1])
            spent[int(place.parent.name)] = sum(map(int, fields[11:15]))
    ours = {os.getpid()}
    while more := {child for child, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return sum(spent.get(one, 0) for one in ours) / os.sysconf("SC_CLK_TCK")


def timed(batches, warm, seconds):
    """(examples a second after `warm` batches, seconds to the first one, seconds of processors for an example)."""
    begin, counts = time.perf_counter(), 0
    next(batches)
    first = time.perf_counter() - begin
    for _ in range(warm):
        next(batches)
    begin, cpu = time.perf_counter(), processors()
    while time.perf_counter() - begin < seconds:
        counts += next(batches)
    return counts / (time.perf_counter() - begin), first, (processors() - cpu) / counts


def decoder(source, examples):
    """One example after another."""
    for step in itertools.count():
        for i in order(0, np.int64(step), len(examples), source.batch_size, np).tolist():
            examples.read(i)
        yield source.batch_size


def batched(source, examples):
    """Whole batches, one after another, in the caller."""
    for step in itertools.count():
        examples.read_batch(order(0, np.int64(step), len(examples), source.batch_size, np))
        yield source.batch_size


def functrain(source, dataset, workers, processes):
    """Windows on the device."""
    feed = source.feed(dataset, dataset.train, 0)
    feed = dataclasses.replace(feed, workers=workers, processes=processes).with_room(WINDOW, None)
    for k in itertools.count():
        jax.block_until_ready(feed.window(k * WINDOW, WINDOW))
        yield WINDOW * source.batch_size


class Items:
    """Examples as torch wants them: whole batches, as tensors."""

    def __init__(self, examples):
        self.examples = examples

    def __len__(self):
        return len(self.examples)

    def __getitems__(self, indices):
        """A batch."""
        import torch

        return {name: torch.from_numpy(a) for name, a in self.examples.read_batch(np.array(indices)).items()}


def torch_side(case, given):
    """Of the process that has torch: a line of JSON."""
    import torch

    module, name, settings, workers, seconds = json.loads(given)
    source = source_of(getattr(importlib.import_module(module), name), settings)
    examples = source.load().train["x"].examples

    n, size = len(examples), source.batch_size
    sampler = (order(0, np.int64(step), n, size, np).tolist() for step in itertools.count())
    method = "spawn" if case == "array_record" else None  # its readers have threads, which no fork survives
    loader = torch.utils.data.DataLoader(
        Items(examples), batch_sampler=sampler, num_workers=workers, collate_fn=as_is, multiprocessing_context=method
    )
    print(json.dumps(timed((len(batch["x"]) for batch in loader), 2 * workers + 2, seconds)))


def run_torch(case, kind, settings, workers, seconds):
    """`torch_side` in a process of its own, in which jax is imported and never begun."""
    given = json.dumps([kind.__module__, kind.__name__, settings, workers, seconds])
    command = [sys.executable, "-W", "ignore", __file__, case, "--torch-side", given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"torch on {case}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(case, given):
    """Rows of one case."""
    with tempfile.TemporaryDirectory() as folder:
        kind, settings = FILES[case](Path(folder), given.small)
        source = source_of(kind, settings)
        begin = time.perf_counter()
        dataset = source.load()
        opened, examples = time.perf_counter() - begin, dataset.train["x"].examples
        sides = {("decoder", 0): decoder, ("batches", 0): batched}
        sides = {name: functools.partial(timed, of(source, examples), 1, given.seconds) for name, of in sides.items()}

        def ours(workers, processes):
            batches = functrain(source, dataset, workers, processes)
            return timed(batches, 2, given.seconds)

        for workers in given.workers:
            sides["threads", workers] = functools.partial(ours, workers, False)
            if importlib.util.find_spec("grain") is not None:
                sides["processes", workers] = functools.partial(ours, workers, True)
            if importlib.util.find_spec("torch") is not None:
                sides["torch", workers] = functools.partial(run_torch, case, kind, settings, workers, given.seconds)
        found = {name: [] for name in sides}
        for _ in range(given.rounds):
            for name, side in sides.items():
                found[name].append(side())
    bare = max(rate for rate, _, _ in found["decoder", 0])
    for (reader, workers), values in found.items():
        rate = max(rate for rate, _, _ in values)  # what other processes take away is no property of a reader
        _, first, cpu = (min(column) for column in zip(*values))
        row = {"case": case, "reader": reader, "workers": workers, "examples_per_s": round(rate)}
        row |= {"of_decoder": round(rate / bare, 2), "cpu_us": round(cpu * 1e6, 1), "first_s": round(first, 2)}
        yield row | {"opened_s": round(opened, 2)}


# -- in memory ------------------------------------------------------------------------------------------


class Ready:
    """Batches that lie on the device one after another: no order, no gather."""

    def __init__(self, feed, steps):
        self.feed, self.steps = feed, steps
        n = len(feed.arrays["x"])
        which = [order(0, step, n, feed.size) for step in range(steps)]
        batches = [jax.tree.map(operator.itemgetter(i), feed.arrays) for i in which]
        self.rows = jax.tree.map(lambda *x: jnp.stack(x), *batches)

    def window(self, step, count):
        """All of them."""
        return self.rows

    def batch(self, rows, step):
        """One of them, prepared."""
        return self.feed.prepare(jax.tree.map(lambda x: x[step % self.steps], rows))


def memory(given):
    """The row of a set in memory."""
    from functrain.building import build
    from functrain.built import compile
    from functrain.experiment import Experiment
    from functrain.train.loop import Best, Seconds, run

    settings = ["train.epochs=1", "observe.tensorboard=false", "observe.figures=false"]
    if given.small or any(locate(file) is None for file in KNOWN["mnist"].files):
        settings += ['data={"kind"="digits", "batch_size"=128}', "model.hidden=[64]"]
    built = build(config.parse(Experiment, config.read(HERE.parent / "configs" / "mnist_mlp.toml", settings)))
    sides = {}
    for name in ("feed", "ready"):
        feed = built.feeds["train"]
        feeds = (
            built.feeds if name == "feed" else built.feeds | {"train": Ready(feed, len(feed.arrays["x"]) // feed.size)}
        )
        sides[name] = compile(dataclasses.replace(built, feeds=feeds))
    states = {name: (one.train_state, one.metrics) for name, one in sides.items()}
    plan, ratios, cpu, shares, rates = built.plan, [], [], [], []
    steps = 20 if given.small else max(100, plan.chunk)
    plan = type(plan)(steps=0, chunk=plan.chunk, log_every=steps)
    for k in range(3 * given.rounds + 1):
        spent = {}
        for name in ("feed", "ready") if k % 2 else ("ready", "feed"):
            seconds, program = Seconds(), sides[name].program
            to = type(plan)(steps=(k + 1) * steps, chunk=plan.chunk, log_every=steps)
            outcome = run(program, states[name][0], program.fresh(), to, best=Best(), seconds=seconds)
            states[name], spent[name] = (outcome.train_state, None), seconds
        if k:
            ratios.append(spent["feed"].train / spent["ready"].train - 1)
            cpu.append(spent["feed"].cpu / spent["ready"].cpu - 1)
            shares.append(spent["feed"].data / spent["feed"].train)
            rates.append(steps / spent["feed"].train)
    row = {"case": "memory", "steps_per_s": round(statistics.median(rates))}
    shares = {"host_share": shares, "step_share": ratios, "step_cpu_share": cpu}
    yield row | {name: round(statistics.median(values), 5) for name, values in shares.items()}


def table(rows):
    """The rows in markdown."""
    heads = ("case", "reader", "workers", "examples/s", "to the decoder", "processors, us an example", "first batch, s")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        if "reader" in row:
            cells = [row["case"], row["reader"], row["workers"] or "", f"{row['examples_per_s']:,}"]
            lines.append("| " + " | ".join(map(str, [*cells, row["of_decoder"], row["cpu_us"], row["first_s"]])) + " |")
    return "\n".join(lines)


def main(arguments=None):
    """See the module's first lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--workers", default="1,2", type=lambda text: [int(w) for w in text.split(",")])
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--small", action="store_true", help="little data, one round, a tenth of a second each")
    parser.add_argument("--torch-side", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if unknown := [case for case in given.cases if case not in CASES]:
        parser.error(f"no case {unknown[0]}; there are: {', '.join(CASES)}")
    if given.torch_side:
        torch_side(given.cases[0], given.torch_side)
        return
    if given.small:
        given.rounds, given.seconds = 1, 0.1
    missing = [name for name in ("torch", "grain", "pyarrow", "array_record") if importlib.util.find_spec(name) is None]
    print(f"not installed: {', '.join(missing) or 'none'}", file=sys.stderr)
    rows = []
    for case in given.cases or CASES:
        if {"parquet": "pyarrow", "array_record": "array_record"}.get(case) in missing:
            continue
        for row in memory(given) if case == "memory" else measure(case, given):
            rows.append(row)
            print(json.dumps(row), flush=True)
    if given.markdown:
        print(table(rows))


if __name__ == "__main__":
    main()
