"""Training GPT-2 124M and about 1B on an accelerator: functrain, with float8 too, beside nanoGPT's arithmetic in torch.

    python benchmarks/gpu.py                       # both sizes; needs a GPU, and torch with CUDA for torch's side
    python benchmarks/gpu.py 124M --programs functrain,functrain-float8,torch --rounds 3
    python benchmarks/gpu.py --small               # all of it in small, on a CPU, in seconds

Programs of one size start from the same parameters and take the same first batches: losses that differ end it with
status 1. Then each is timed on synthetic tokens from a file, several windows of several steps in a process of its own;
the rounds go turn about, for two of them at once would not fit the device. functrain is its own `build` and `compile`
of a config (that of `config_of`), torch is torch.compile with fused AdamW, bfloat16 autocast and
scaled_dot_product_attention (`peers/gpu_torch.py`).

One JSON line a program comes out: tokens/s (the median of all windows), seconds to the first step (in each round; the
first without caches of compiled programs, if there were none), peak memory, the share of 989 TFLOP/s, an H100's in
bfloat16, and of what a matrix product of 8,192 reaches on the device. FLOPs are nanoGPT's count: a token costs
6 N + 12 layers width block, with N the parameters but positions. What does not run here is said on stderr.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
SIZES = {
    "124M": {"layers": 12, "heads": 12, "width": 768, "vocabulary": 50304, "block": 1024, "batch": 32},
    "1B": {"layers": 24, "heads": 14, "width": 1792, "vocabulary": 50304, "block": 1024, "batch": 16},
    "small": {"layers": 2, "heads": 2, "width": 32, "vocabulary": 512, "block": 32, "batch": 4},
}
"""GPTs without biases, their output tied; batch: sequences in a step."""
PROGRAMS = {"functrain": "gpu_functrain", "functrain-float8": "gpu_functrain", "torch": "gpu_torch"}
"""Program -> its module in peers."""
PEAK = 989e12
"""FLOP/s of an H100 (SXM) in bfloat16, without sparsity, by its data sheet."""
OPTIMIZER = {"peak_lr": 6e-4, "b1": 0.9, "b2": 0.95, "epsilon": 1e-8, "weight_decay": 0.1, "clip_norm": 1.0}
CHECKED = 3
"""Steps whose losses are compared."""
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-3, "float8": 2e-2}
"""Between losses, relative."""


class Failed(Exception):
    """A program ended without an answer; its last words."""


def config_of(settings: dict[str, Any]) -> dict[str, Any]:
    """functrain's config for a size, as TOML has it."""
    size = settings["size"]
    task = {"kind": "language", "vocabulary_block": settings["vocabulary_block"]}
    model = {name: size[name] for name in ("layers", "heads", "width")}
    data = {"kind": "token_file", "path": settings["tokens"], "classes": size["vocabulary"], "block": size["block"]}
    return {
        "task": task,
        "model": {"kind": "gpt", "bias": False, **model},
        "data": {**data, "batch_size": size["batch"], "validation": 0.0},
        "optimizer": {"kind": "adamw", **OPTIMIZER, "schedule": {"kind": "constant"}},
        "precision": {"kind": settings["precision"]},
        "train": {"steps": 1_000_000, "chunk": settings["steps"], "remat": settings["remat"], "loop": settings["loop"]},
        "observe": {"tensorboard": False, "figures": False},
    }


def flops_a_token(parameters: int, size: dict[str, Any]) -> float:
    """Forward and backward, as nanoGPT counts them; parameters: without positions."""
    return 6 * parameters + 12 * size["layers"] * size["width"] * size["block"]


def write_tokens(path: Path, size: dict[str, Any], count: int) -> None:
    """A file of tokens, each near the one before, so that there is something to learn."""
    steps = np.random.default_rng(0).integers(-20, 21, count)
    (steps.cumsum() % size["vocabulary"]).astype("<u2").tofile(path)


def run(program: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What a program says of itself, run in a process of its own.

    Raises:
      Failed: it said nothing.
    """
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", f"peers.{PROGRAMS[program]}", json.dumps(settings | {"began": time.time()})]
    done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise Failed(f"{program}: {(said or [f'status {done.returncode}'])[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def missing(programs: list[str], small: bool) -> dict[str, str]:
    """Program -> why it does not run here."""
    found = {}
    if "torch" in programs:
        if importlib.util.find_spec("torch") is None:
            found["torch"] = "torch is not installed"
        elif not small and not _answers("import torch; print(torch.cuda.is_available())"):
            found["torch"] = "torch is installed without CUDA, or finds no GPU"
    if not small and not _answers("import jax; print(jax.default_backend() == 'gpu')"):
        why = "jax finds no GPU (pip install 'jax[cuda12]'); --small runs on a CPU"
        found |= {program: why for program in programs if program.startswith("functrain")}
    return found


def _answers(code: str) -> bool:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.stdout.strip() == "True"


def race(
    name: str, programs: list[str], asked: argparse.Namespace, tell: Callable[[str], None]
) -> list[dict[str, Any]]:
    """A row for each program at one size."""
    size = SIZES[name] | ({"batch": asked.batch} if asked.batch else {})
    answers: dict[str, list[dict[str, Any]]] = {program: [] for program in programs}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_tokens(tokens := Path(folder) / "tokens.bin", size, max(200_000, 200 * size["batch"] * size["block"]))
        common = {"size": size, "tokens": str(tokens), "optimizer": OPTIMIZER, "steps": asked.steps}
        common |= {"windows": asked.windows, "start": str(Path(folder) / "start.npz"), "eager": asked.eager}
        common |= {"remat": asked.remat, "loop": asked.loop, "vocabulary_block": asked.vocabulary_block}
        for i in range(asked.rounds):
            for program in reversed(programs) if i % 2 else programs:
                if program in failed:
                    continue
                tell(f"{name}: round {i + 1} of {asked.rounds}: {program}")
                precision = "float8" if program == "functrain-float8" else asked.precision
                try:  # functrain is the first, and writes where all start
                    checked = 0 if i else CHECKED
                    answers[program].append(run(program, common | {"precision": precision, "checked": checked}))
                except Failed as error:
                    failed[program] = str(error)
    rows = [row(program, name, size, answers) for program in programs if program not in failed]
    return rows + [
        {"program": program, "size": name, "failed": said, "equal": False} for program, said in failed.items()
    ]


def row(program: str, name: str, size: dict[str, Any], answers: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The figures of one program."""
    own, first = answers[program], answers[program][0]
    rates = [rate for answer in own for rate in answer["tokens_per_s"]]
    work = flops_a_token(first["parameters"], size)
    measured = max(answer["matmul_flops"] for other in answers.values() for answer in other)
    losses, wanted = first["losses"], next(iter(answers.values()))[0]["losses"]
    rate, apart = statistics.median(rates), max(abs(a - b) / abs(b) for a, b in zip(losses, wanted))
    found = {"program": program, "size": name, **{k: first[k] for k in ("precision", "device", "versions")}}
    found |= {"tokens_per_s": round(rate, 1), "least": round(min(rates), 1), "most": round(max(rates), 1)}
    if answers.get("torch") and program != "torch":
        others = statistics.median(rate for answer in answers["torch"] for rate in answer["tokens_per_s"])
        found["times_torch"] = round(rate / others, 4)
    found |= {"mfu_of_989": round(rate * work / PEAK, 6), "mfu_of_measured": round(rate * work / measured, 4)}
    found |= {"matmul_tflops": round(measured / 1e12, 3), "parameters": first["parameters"], "batch": size["batch"]}
    found["peak_memory_gb"] = round(max(answer["peak_bytes"] for answer in own) / 1e9, 3)
    found["memory_by"] = first["memory_by"]
    found["first_step_s"] = [round(answer["first_step_s"], 2) for answer in own]
    found |= {"losses": losses, "difference": apart, "equal": apart <= TOLERANCE[first["precision"]]}
    return found | first.get("notes", {})


def arguments(given: list[str] | None) -> argparse.Namespace:
    """The command's."""
    parser = argparse.ArgumentParser(description="GPTs on an accelerator: functrain beside torch, turn about.")
    sizes = [name for name in SIZES if name != "small"]
    parser.add_argument("sizes", nargs="*", metavar="SIZE", help=f"of {', '.join(sizes)} (default: both)")
    parser.add_argument("--small", action="store_true", help="a GPT of two blocks of 32, on whatever is there")
    programs = ",".join(PROGRAMS)
    parser.add_argument("--programs", default="functrain,torch", help=f"of {programs} (default: functrain,torch)")
    parser.add_argument(
        "--precision", default="bfloat16", choices=("float32", "bfloat16"), help="of functrain and torch"
    )
    parser.add_argument("--rounds", type=int, default=2, help="in which each program is started once (default: 2)")
    parser.add_argument("--windows", type=int, default=5, help="timed in each process (default: 5)")
    parser.add_argument("--steps", type=int, default=10, help="in a window (default: 10)")
    parser.add_argument("--batch", type=int, default=0, help="sequences in a step (default: by size)")
    parser.add_argument("--vocabulary-block", type=int, default=0, help="of functrain's loss; 0 holds all logits")
    parser.add_argument("--remat", default="none", help="functrain's train.remat (default: none)")
    parser.add_argument("--loop", default="auto", help="functrain's train.loop (default: auto)")
    parser.add_argument("--eager", action="store_true", help="torch without torch.compile")
    found = parser.parse_args(given)
    found.sizes = ["small"] if found.small else found.sizes or sizes
    found.programs = [program for program in found.programs.split(",") if program]
    for what, asked, known in (("size", found.sizes, SIZES), ("program", found.programs, PROGRAMS)):
        if unknown := [name for name in asked if name not in known]:
            parser.error(f"{what}: found {unknown[0]!r}; expected {', '.join(known)}")
    for name in ("rounds", "windows", "steps"):
        if getattr(found, name) < 1:
            parser.error(f"--{name}: found {getattr(found, name)}; expected at least 1")
    found.programs.sort(key=list(PROGRAMS).index)
    if found.programs[:1] != ["functrain"]:
        parser.error("program: functrain is missing; the others start where it does")
    return found


def main(given: list[str] | None = None) -> int:
    """Run; 0, 1 where losses differ, a program failed or none ran, 2 for a mistake in what was given."""
    asked = arguments(given)

    def tell(line):
        print(line, file=sys.stderr, flush=True)

    absent = missing(asked.programs, asked.small)
    for program, why in absent.items():
        tell(f"not run: {program}: {why}")
    programs = [program for program in asked.programs if program not in absent]
    if "functrain" not in programs:
        return 1
    good = True
    for name in asked.sizes:
        for found in race(name, programs, asked, tell):
            print(json.dumps(found), flush=True)
            good = good and found["equal"]
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
