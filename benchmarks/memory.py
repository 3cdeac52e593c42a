"""Peak memory of a training step of the GPT at three sizes: by remat policy, and PyTorch's beside it, on a CPU.

    pip install '.[bench]'
    python benchmarks/memory.py [--sizes small,medium,large] [--sides torch,none] [--rounds 1] [--cores 1]

Block 256, 65 tokens, AdamW, float32; parameters, batch and settings are the same on all sides, and so must be the
losses (relative 1e-3), or the status is 1. Every measurement is a process of its own. Printed in megabytes (1e6 bytes)
are

  step    the most that was resident while it trained, beyond what was after the imports; what the allocator held unused
          before (the compiler's), it was made to give back
  peak    the most that was ever resident, libraries and compiler included
  XLA     what the compiler says a step takes: the train state and the batch, which it takes over, and temporaries

and a step's time, the least of those taken, and seconds of processors, against torch's in the same round (median over
the rounds). `torch` is eager, with its own fused attention; `torch-blocks` has torch.utils.checkpoint for each block.
"""

import argparse
import ctypes
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SIZES = {"small": (4, 4, 128), "medium": (6, 6, 384), "large": (12, 12, 768)}
"""Layers, heads, width."""
SIDES = ("torch", "torch-blocks", "none", "dots", "blocks", "full")
BLOCK, VOCABULARY, RATE, DECAY, SEED = 256, 65, 1e-3, 0.01, 0
TOLERANCE = 1e-3
"""Between losses, relative."""


def tokens(batch):
    """[batch, BLOCK + 1], each token drawn near the one before, so that there is something to learn."""
    steps = np.random.default_rng(SEED).integers(-2, 3, (batch, BLOCK + 1))
    return (steps.cumsum(1) % VOCABULARY).astype("int32")


# -- one side, in a process of its own ----------------------------------------------------------------


class Functrain:
    """Steps of functrain's own program under a remat policy."""

    def __init__(self, size, batch, policy, params):
        import jax

        from functrain.autodiff.remat import compiler_options
        from functrain.data.feed import Whole
        from functrain.models import GPT
        from functrain.optim import AdamW, Learner
        from functrain.tasks import Language
        from functrain.train import state
        from functrain.train.program import compile_program

        self.resident = _status("VmRSS")
        layers, heads, width = SIZES[size]
        model = GPT(layers=layers, heads=heads, width=width, activation="gelu_tanh")
        model = model.sized((BLOCK,), VOCABULARY).build()
        learner = Learner(optimizer=AdamW(peak_lr=RATE, weight_decay=DECAY, decay=(".",)), remat=policy)
        task, rows = Language(model=model, learner=learner), tokens(batch)
        feed = Whole(jax.device_put({"x": rows[:, :-1], "y": rows[:, 1:]}))
        with np.load(params) as file:
            start = {f"params/model/{path}": file[path] for path in file.files}
        self.state = jax.jit(lambda arrays: state.init(task, jax.random.key(SEED), start=arrays))(start)
        del start
        options = compiler_options(jax.default_backend())
        self.program = compile_program(task, feed, self.state, options=options)
        self.xla = self.program.needs()

    def step(self):
        """One more; its loss."""
        fresh, window = self.program.fresh(), self.program.window(0, 1)
        self.state, metrics, _ = self.program.advance(self.state, fresh, window, 1)
        return self.program.scalars(metrics)["loss"]


class Torch:
    """The same in PyTorch, eager."""

    def __init__(self, size, batch, checkpointed, params):
        import torch
        from peers.given import Given
        from peers.torch_models import GPT
        from torch.utils.checkpoint import checkpoint

        self.resident, self.xla, self.torch = _status("VmRSS"), None, torch
        layers, heads, _ = SIZES[size]
        model = {"layers": layers, "heads": heads, "epsilon": 1e-5}
        with np.load(params) as file:
            arrays = {path: file[path] for path in file.files}
        self.model = GPT(Given({"model": model}, "", 0, VOCABULARY, np.zeros((1, 1), int), {}, arrays, {}))
        del arrays
        if checkpointed:
            for block in self.model.blocks:
                block.forward = _checkpointed(checkpoint, block.forward)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), RATE, weight_decay=DECAY)
        rows = torch.from_numpy(tokens(batch)).long()
        self.x, self.y = rows[:, :-1].contiguous(), rows[:, 1:].flatten()

    def step(self):
        """One more; its loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.torch.nn.functional.cross_entropy(self.model(self.x).flatten(0, 1), self.y)
        loss.backward()
        self.optimizer.step()
        return float(loss)


def _checkpointed(checkpoint, forward):
    return lambda x: checkpoint(forward, x, use_reentrant=False)


def _status(name):
    """Bytes, by the kernel's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def measure(side, size, batch, steps, params):
    """One side, here: a line of JSON."""
    if side.startswith("torch"):
        run = Torch(size, batch, side != "torch", params)
    else:
        run = Functrain(size, batch, side, params)
    run.step()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew from here
    times, cpu, loss = [], time.process_time(), 0.0
    for _ in range(steps):
        start = time.perf_counter()
        loss = run.step()
        times.append(time.perf_counter() - start)
    found = {"step": _status("VmHWM") - run.resident, "xla": run.xla, "loss": loss}
    found |= {"seconds": min(times), "cpu": (time.process_time() - cpu) / steps}
    found["peak"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps(found))


# -- all of them ---------------------------------------------------------------------------------------


def parameters(size, file):
    """What all sides start from: functrain's own, in a file; made by a process of its own."""
    layers, heads, width = SIZES[size]
    program = (
        "import jax, numpy, sys; from functrain import tree; from functrain.models import GPT\n"
        f"model = GPT(layers={layers}, heads={heads}, width={width}).sized(({BLOCK},), {VOCABULARY})\n"
        f"params = tree.by_path(jax.jit(model.init)(jax.random.key({SEED}))[0])\n"
        "numpy.savez(sys.argv[1], **{path: numpy.asarray(x) for path, x in params.items()})"
    )
    subprocess.run([sys.executable, "-c", program, str(file)], check=True)


def main():
    """The table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--sizes", default=",".join(SIZES))
    arguments.add_argument("--sides", default=None, help="of: " + ", ".join(SIDES))
    arguments.add_argument("--batch", type=int, default=8)
    arguments.add_argument("--steps", type=int, default=3, help="measured, after a first one")
    arguments.add_argument("--rounds", type=int, default=1, help="in alternating order")
    arguments.add_argument("--cores", type=int, default=0, help="1 is steadiest where others compute too; 0 is all")
    arguments.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.one:
        side, size, params = given.one
        if given.cores:
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])
        return measure(side, size, given.batch, given.steps, params)
    sides = [side for side in SIDES if given.sides is None or side in given.sides.split(",")]
    wrong = False
    print("| GPT | parameters | | step | peak | XLA | time | processors |\n|---|---|---|---|---|---|---|---|")
    for size in given.sizes.split(","):
        with tempfile.TemporaryDirectory() as folder:
            params = Path(folder) / "params.npz"
            parameters(size, params)
            with np.load(params) as file:
                count = sum(file[path].size for path in file.files)
            rounds = [_round(sides[:: -1 if i % 2 else 1], size, given, params) for i in range(given.rounds)]
        reference = rounds[0][sides[0]]["loss"]
        for side in sides:
            each = [one[side] for one in rounds]
            wall, cpu = (
                statistics.median(one[side][k] / one[sides[0]][k] for one in rounds) for k in ("seconds", "cpu")
            )
            step, peak = (statistics.median(found[what] for found in each) / 1e6 for what in ("step", "peak"))
            xla = "" if each[0]["xla"] is None else f"{each[0]['xla'] / 1e6:,.0f}"
            layers, _, width = SIZES[size]
            name = (f"{layers} x {width}", f"{count / 1e6:.1f} M") if side == sides[0] else ("", "")
            print(
                f"| {name[0]} | {name[1]} | {side} | {step:,.0f} | {peak:,.0f} | {xla} | {wall:.2f} | {cpu:.2f} |",
                flush=True,
            )
            if any(abs(found["loss"] - reference) > TOLERANCE * abs(reference) for found in each):
                print(f"{side}: loss {each[0]['loss']:.6f}, {sides[0]}'s is {reference:.6f}", file=sys.stderr)
                wrong = True
    return int(wrong)


def _round(sides, size, given, params):
    """Every side once."""
    options = ["--batch", str(given.batch), "--steps", str(given.steps), "--cores", str(given.cores)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    found = {}
    for side in sides:
        command = [sys.executable, __file__, *options, "--one", side, size, str(params)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            sys.exit(f"{size}, {side}: {done.stderr.strip().splitlines()[-1]}")
        found[side] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    sys.exit(main())
