"""functrain: `functrain train` with the shipped config, a process a round, by its own account of the time."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from peers.given import Given


class Command:
    """Each run begins anew: its imports, data and (cached) compilation are not part of its training seconds."""

    def __init__(self, given: Given):
        self.given = given

    def after(self, n: int) -> float:
        """The loss logged at step n + 1."""
        with tempfile.TemporaryDirectory() as folder:
            out = train(self.given.path, folder, f"train.steps={n + 1}", "train.log_every=1")
            lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
            return next(line["loss"] for line in lines if line["split"] == "train" and line["step"] == n + 1)

    def run(self, n: int) -> tuple[float, float | None]:
        """By result.json."""
        with tempfile.TemporaryDirectory() as folder:
            out = train(self.given.path, folder, f"train.steps={n}")
            result = json.loads((out / "result.json").read_text())
            return result["seconds"]["train"], result.get("train_seconds", {}).get("cpu")


def train(config: str, folder: str, *overrides: str) -> Path:
    """Run the command; the run directory.

    Raises:
      RuntimeError: it failed; its last line.
    """
    out = Path(folder) / "run"
    command = [sys.executable, "-m", "functrain", "train", config, *overrides, "--out", str(out)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(" ".join(done.stderr.splitlines()[-1:]) or f"status {done.returncode}")
    return out


def build(given: Given, name: str) -> Command:
    """The one there is."""
    return Command(given)
