"""functrain beside PyTorch, torch.compile, Lightning, Keras and plain jax on the same work, turn about, on a CPU.

    pip install '.[bench]'
    python benchmarks/race.py [WORK ...] [--rounds 5] [--peers torch-eager,jax] [--cores 1] [--json FILE]

functrain is `functrain train configs/bench_WORK.toml`, nothing else. Every peer is a process of its own, starts from
the parameters of functrain's run and sees its batches: after some steps all losses must be equal but for rounding
(relative 1e-3 at most), or the status is 1. Then each round visits all of them, in alternating order, so that what
else the machine does falls on all alike; all compile before, one at a time. A ratio is the time of torch-eager (of
functrain, where that does not run) over the peer's own in the same round, the median over the rounds: above 1 is
faster. Where others compute on the machine too, --cores 1 and the ratio of CPU seconds are the steadiest.

The work `process` is a whole process each: import, reading MNIST, three epochs, accuracy on the test.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # torch, too, computes there

from peers import MODULES, PACKAGES
from peers.functrain_peer import train
from peers.works import WORKS, Work, export

import functrain
from functrain.config import ConfigError
from functrain.data.known import KNOWN, locate

HERE = Path(__file__).resolve().parent
TOLERANCE = 1e-3
"""Between losses, relative."""
ACCURACY = 0.01
"""Between accuracies of whole processes, whose examples come in another order."""
PROCESS = ("functrain", "torch-eager", "lightning", "keras")
COLUMNS = ("peer", "version", "ms a step", "best", "CPU ms", "ratio", "CPU ratio", "loss", "difference")


class Failed(Exception):
    """A peer ended without an answer; its last words."""


@contextlib.contextmanager
def pinned(cores: int) -> Iterator[None]:
    """Processes started meanwhile run on so many cores (0: all), where the system can do that."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def last_words(log: TextIO) -> str:
    """The last error that a process wrote, or else its last line."""
    log.seek(0)
    lines = [line.strip() for line in log if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]+Error\b", line)]
    return (errors or lines or ["it said nothing"])[-1]


class Peer:
    """A live process that trains when it is asked to."""

    def __init__(self, name: str, file: Path, cores: int):
        self.name = name
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (open as long as the process)
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.log, "text": True}
        with pinned(cores):
            command = [sys.executable, "-m", "peers.worker", name, str(file)]
            self.process = subprocess.Popen(command, cwd=HERE, env=environment(), **pipes)

    def answer(self) -> dict[str, Any]:
        """The next line of what it says."""
        line = self.process.stdout.readline()  # pyright: ignore[reportOptionalMemberAccess]
        if not line:
            raise Failed(f"{self.name}: {last_words(self.log)}")
        return json.loads(line)

    def round(self, steps: int) -> dict[str, Any]:
        """The seconds of so many steps."""
        with contextlib.suppress(BrokenPipeError):  # it has ended: its log says why
            self.process.stdin.write(f"{steps}\n")  # pyright: ignore[reportOptionalMemberAccess]
            self.process.stdin.flush()  # pyright: ignore[reportOptionalMemberAccess]
        return self.answer()

    def close(self) -> None:
        """End it."""
        self.process.communicate()
        self.log.close()


def environment() -> dict[str, str]:
    """That of a peer: the functrain that runs here, from whatever folder."""
    paths = [str(Path(functrain.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def progress(line: str) -> None:
    """Tell a person that waits."""
    print(line, file=sys.stderr, flush=True)


def turn_about(peers: list[str], rounds: int, take: Callable[[str], Any]) -> dict[str, list[Any]]:
    """What each peer took in each round; every second round goes backwards."""
    taken: dict[str, list[Any]] = {peer: [] for peer in peers}
    for i in range(rounds):
        progress(f"  round {i + 1} of {rounds}")
        for peer in reversed(peers) if i % 2 else peers:
            taken[peer].append(take(peer))
    return taken


def race(work: Work, peers: list[str], rounds: int, steps: int, cores: int) -> list[dict[str, Any]]:
    """A row for each peer, functrain's first."""
    live: dict[str, Peer] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        export(work, file := Path(folder) / "work.npz")
        starts, failed = {}, {}
        for name in peers:
            progress(f"  {name} compiles")
            peer = Peer(name, file, cores)
            stack.callback(peer.close)
            try:
                starts[name], live[name] = peer.answer(), peer
            except Failed as error:
                failed[name] = str(error)

        def take(name):
            return live[name].round(steps)

        taken = turn_about(list(live), rounds, take)
    rows = [row(name, starts[name]["loss"], taken, steps) for name in live]
    reference = starts.get("functrain", {}).get("loss")
    for found in rows:
        found["difference"] = reference and abs(found["loss"] - reference) / abs(reference)
        found["equal"] = found["difference"] is not None and found["difference"] <= TOLERANCE
    return rows + [{"peer": name, "failed": words, "equal": False} for name, words in failed.items()]


def whole(peers: list[str], rounds: int, steps: int, cores: int) -> list[dict[str, Any]]:
    """A row for each peer: seconds of whole processes, and accuracies."""
    files = [file for wanted in KNOWN["mnist"].files if (file := locate(wanted))]
    if len(files) < len(KNOWN["mnist"].files):
        raise ConfigError("process: mnist is not here; get it with: functrain data get mnist")
    accuracies: dict[str, float] = {}

    def take(name):
        began, before = time.perf_counter(), os.times()
        with pinned(cores), tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as log:
            if name == "functrain":
                out = train(str(WORKS["mlp"].config), folder, f"train.steps={steps}")
                wall, test = time.perf_counter() - began, json.loads((out / "result.json").read_text())["test"]
                accuracies[name] = test["accuracy"]
            else:
                command = [sys.executable, "-m", "peers.whole", name, str(files[0].parent)]
                pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": log, "text": True}
                done = subprocess.run(command, cwd=HERE, env=environment(), **pipes)
                wall = time.perf_counter() - began
                if done.returncode:
                    raise Failed(f"{name}: {last_words(log)}")
                accuracies[name] = float(done.stdout)
        cpu = sum(after - then for after, then in zip(os.times()[2:4], before[2:4]))  # of processes that have ended
        return {"wall": wall, "cpu": cpu}

    progress("  functrain compiles")
    take("functrain")
    taken = turn_about(peers, rounds, take)
    rows = [row(name, accuracies[name], taken, 1) for name in peers]
    for found in rows:
        found["difference"] = abs(found["loss"] - accuracies["functrain"])
        found["equal"] = found["difference"] <= ACCURACY
    return rows


def row(name: str, loss: float, taken: dict[str, list[dict[str, Any]]], steps: int) -> dict[str, Any]:
    """The figures of one peer; times in milliseconds a step."""
    base = taken["torch-eager" if "torch-eager" in taken else next(iter(taken))]
    found: dict[str, Any] = {"peer": name, "version": version_of(PACKAGES[name][0]), "loss": loss}
    for kind in ("wall", "cpu"):
        own, others = ([entry[kind] for entry in entries] for entries in (taken[name], base))
        found[f"{kind}_ms"] = None if None in own else [1e3 * seconds / steps for seconds in own]
        ratios = [b / a for a, b in zip(own, others) if a and b]
        found[f"{kind}_ratio"] = statistics.median(ratios) if ratios else None
    return found


def version_of(package: str) -> str:
    """The installed version."""
    try:
        return version(package)
    except PackageNotFoundError:  # functrain, run from its sources
        return functrain.__version__ if package == "functrain" else "none"


def table(rows: list[dict[str, Any]], columns: tuple[str, ...] = COLUMNS) -> str:
    """Rows as Markdown, in columns that line up."""

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    lines = [columns]
    for found in rows:
        if "failed" in found:
            lines.append((found["peer"], "failed", *["-"] * (len(columns) - 2)))
            continue
        wall, cpu = found["wall_ms"], found["cpu_ms"]
        times = (statistics.median(wall), min(wall), cpu and statistics.median(cpu))
        cells = [found["peer"], found["version"], *(number(value, ".4g") for value in times)]
        cells += [number(found[f"{kind}_ratio"], ".2f") for kind in ("wall", "cpu")]
        lines.append((*cells, number(found["loss"], ".6f"), number(found["difference"], ".1e")))
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    lines.insert(1, tuple("-" * (width - (i > 1)) + ":" * (i > 1) for i, width in enumerate(widths)))
    aligned = (
        [cell.rjust(w) if i > 1 else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths))] for line in lines
    )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in aligned)


def verdict(rows: list[dict[str, Any]], what: str) -> str:
    """Whether the peers did the same work; and which failed, of what."""
    lines = [f"failed: {found['failed']}" for found in rows if "failed" in found]
    ran = [found for found in rows if "failed" not in found]
    worst = max((found["difference"] for found in ran if found["difference"] is not None), default=0.0)
    if unequal := [found["peer"] for found in ran if not found["equal"]]:
        lines.append(f"{what} are NOT equal: {', '.join(unequal)} (largest difference {worst:.1e})")
    else:
        lines.append(f"{what} are equal (largest difference {worst:.1e})")
    return "\n".join(lines)


def machine(cores: int) -> dict[str, Any]:
    """What it ran on."""
    cpu = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", cpu.read_text()) if cpu.exists() else None
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "cpu": model[1] if model else platform.processor(),
        "cores": min(cores or there, there),
        "system": platform.platform(),
    }


def arguments(given: list[str] | None) -> argparse.Namespace:
    """The command's."""
    parser = argparse.ArgumentParser(description="functrain beside its peers on the same work, turn about, on a CPU.")
    works, others = (*WORKS, "process"), [peer for peer in MODULES if peer != "functrain"]
    parser.add_argument("works", nargs="*", metavar="WORK", help=f"of {', '.join(works)} (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="in which each peer is timed once (default: 5)")
    parser.add_argument("--peers", default=",".join(others), help=f"beside functrain (default: {','.join(others)})")
    parser.add_argument("--cores", type=int, default=0, help="on which each peer runs (default: all)")
    parser.add_argument("--steps", type=int, default=0, help="in a round (default: some seconds of functrain's)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all figures here")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write the tables here")
    found = parser.parse_args(given)
    found.works, found.peers = found.works or list(works), [peer for peer in found.peers.split(",") if peer]
    for what, asked, known in (("work", found.works, works), ("peer", found.peers, others)):
        if unknown := [name for name in asked if name not in known]:
            raise ConfigError(f"{what}: found {unknown[0]!r}; expected {', '.join(known)}")
    for name, least in (("rounds", 1), ("cores", 0), ("steps", 0)):
        if getattr(found, name) < least:
            raise ConfigError(f"--{name}: found {getattr(found, name)}; expected at least {least}")
    return found


def main(given: list[str] | None = None) -> int:
    """Race; 0, 1 where losses differ or a peer failed, 2 for a mistake in what was given."""
    try:
        asked = arguments(given)
        missing = {p: [m for m in PACKAGES[p] if importlib.util.find_spec(m) is None] for p in asked.peers}
        peers = ["functrain", *(peer for peer in asked.peers if not missing[peer])]
        head = machine(asked.cores)
        packages = sorted({package for peer in peers for package in PACKAGES[peer]})
        versions = {package: version_of(package) for package in packages}
        report = {"date": time.strftime("%Y-%m-%d"), "machine": head, "versions": versions, "works": []}
        pages = [
            f"{head['cpu']}, {head['cores']} cores, {report['date']}; "
            + ", ".join(f"{name} {number}" for name, number in versions.items())
        ]
        absent = [f"{peer} (needs {', '.join(names)})" for peer, names in missing.items() if names]
        pages.append(f"not installed: {', '.join(absent) or 'none'}")
        print("\n\n".join(pages), flush=True)
        good = True
        for name in asked.works:
            progress(f"{name}: {asked.rounds} rounds")
            if name == "process":
                steps = asked.steps or 3 * (60_000 // 128)
                rows = whole([peer for peer in peers if peer in PROCESS], asked.rounds, steps, asked.cores)
                columns, what = (*COLUMNS[:2], "ms", "best", *COLUMNS[4:7], "accuracy", "difference"), "accuracies"
                title = f"process: MLP 784-128-10, {steps} steps of 128, whole processes"
            else:
                work = WORKS[name]
                steps = -(-(asked.steps or work.steps) // work.checked) * work.checked
                rows = race(work, peers, asked.rounds, steps, asked.cores)
                columns, what = COLUMNS, f"losses after {work.checked} steps"
                title = f"{name}: {work.config.name}, {steps} steps a round"
            found = f"{title}, {asked.rounds} rounds\n\n{table(rows, columns)}\n\n{verdict(rows, what)}"
            print(f"\n{found}", flush=True)
            pages.append(found)
            report["works"].append({"work": name, "rounds": asked.rounds, "steps": steps, "peers": rows})
            good = good and all(found["equal"] for found in rows)
        if asked.json:
            asked.json.write_text(json.dumps(report, indent=1) + "\n")
        if asked.markdown:
            asked.markdown.write_text("\n\n".join(pages) + "\n")
    except ConfigError as error:
        print(f"race.py: {error}", file=sys.stderr)
        return 2
    except Failed as error:
        print(f"race.py: {error}", file=sys.stderr)
        return 1
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
