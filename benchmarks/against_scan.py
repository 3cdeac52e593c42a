"""The trainer beside a loop written by hand: steps per second, turn about in one process.

    python benchmarks/against_scan.py [--rounds 9] [--steps 936]

Work: MLP 784-128-10 on 60,000 images of bytes, batch 128, Adam. Both sides start from the same parameters and see the
same batches, so that their losses are the same until rounding, which the steps magnify, tells them apart. The trainer
does what every run does: order and gather on the device, the guard against non-finite updates, accuracy, gradient norm
and learning rate as metrics, logging; the baseline is given the order ready made. Each round times both, one after
the other in alternating order; the ratio is the median over rounds of trainer / baseline.
The last line is JSON: {"ratio": ..., "trainer_steps_per_s": ..., "baseline_steps_per_s": ..., ...}.
"""

import argparse
import json
import statistics
import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from scan_baseline import Baseline

from functrain.building import build
from functrain.built import compile
from functrain.data import dataset, order
from functrain.data.base import Source
from functrain.experiment import Experiment
from functrain.models import MLP
from functrain.observe import Observe
from functrain.optim import Adam
from functrain.tasks import Classification
from functrain.train.loop import Best, Plan, Train, run

BATCH, RATE, CHUNK = 128, 1e-3, 117


def images(n=60_000, seed=0):
    """MNIST-shaped and learnable: a class prototype plus noise, a tenth of the labels wrong."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 10, n)
    prototypes = rng.random((10, 28, 28)) * (rng.random((10, 28, 28)) < 0.3)
    x = prototypes[y] * 160 + rng.normal(0, 60, (n, 28, 28))
    y = np.where(rng.random(n) < 0.1, rng.integers(0, 10, n), y)
    return np.clip(x, 0, 255).astype("uint8"), y.astype("int32")


@dataclass(frozen=True, kw_only=True)
class Bytes(Source):
    """A source of images of bytes at hand."""

    batch_size: int = BATCH

    def load(self):
        x, y = images()
        return dataset("images", {"train": {"x": x, "y": y}}, classes=10)

    def prepare(self, batch):
        return batch | {"x": batch["x"].astype(jnp.float32) / 255}


class Losses:
    """A sink that keeps the training losses."""

    def __init__(self):
        self.values = []

    def scalars(self, step, split, values):
        self.values.append(values["loss"])

    def flush(self):
        pass


class Trainer:
    """functrain's own loop, going on from where the round before ended."""

    def __init__(self, steps):
        self.built = build(
            Experiment(
                model=MLP(hidden=(128,)),
                task=Classification(),
                data=Bytes(),
                optimizer=Adam(peak_lr=RATE),
                train=Train(steps=steps, log_every=CHUNK, chunk=CHUNK),
                observe=Observe(tensorboard=False, figures=False),
            )
        )
        self.compiled = compile(self.built)
        self.train_state, self.at = self.compiled.train_state, 0

    def run(self, steps):
        sink = Losses()
        plan = Plan(steps=self.at + steps, chunk=CHUNK, log_every=CHUNK)
        metrics = self.compiled.program.fresh()
        outcome = run(self.compiled.program, self.train_state, metrics, plan, best=Best(), sinks=[sink])
        self.train_state, self.at = outcome.train_state, outcome.step
        return sink.values


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=9)
    arguments.add_argument("--steps", type=int, default=936, help=f"of each side in a round, a multiple of {CHUNK}")
    given = arguments.parse_args()
    steps = given.steps // CHUNK * CHUNK

    trainer = Trainer(steps)
    x, y = trainer.built.dataset.train["x"], trainer.built.dataset.train["y"]
    start = jax.device_get(trainer.train_state.players["model"].params)
    baseline = Baseline(start, x, y, RATE)
    all_steps = np.arange((given.rounds + 1) * steps)
    indices = np.stack([order(0, s, len(x), BATCH, np) for s in all_steps])

    rows = []
    for round_ in range(given.rounds + 1):  # the first is a warm-up
        seconds = {}
        for side in ("trainer", "baseline") if round_ % 2 else ("baseline", "trainer"):
            begin = time.perf_counter()
            if side == "trainer":
                ours = trainer.run(steps)
            else:
                theirs = baseline.run(indices[round_ * steps : (round_ + 1) * steps], CHUNK)
                theirs.block_until_ready()
            seconds[side] = time.perf_counter() - begin
        theirs = np.asarray(theirs).reshape(-1, CHUNK).mean(1)
        difference = np.abs(np.asarray(ours) - theirs) / theirs
        if round_ == 0:
            print(f"first {CHUNK} steps: mean loss {ours[0]:.6f} and {theirs[0]:.6f} (relative {difference[0]:.1e})")
        rows.append((seconds["baseline"] / seconds["trainer"], steps / seconds["trainer"], steps / seconds["baseline"]))
        print(
            f"round {round_}: trainer {rows[-1][1]:7.0f} steps/s  baseline {rows[-1][2]:7.0f} steps/s  "
            f"mean loss of the last {CHUNK}: {ours[-1]:.5f} and {theirs[-1]:.5f} (relative {difference[-1]:.1e})",
            flush=True,
        )
    ratio, ours, theirs = (statistics.median(column) for column in zip(*rows[1:]))
    print(
        json.dumps(
            {
                "ratio": round(ratio, 3),
                "trainer_steps_per_s": round(ours),
                "baseline_steps_per_s": round(theirs),
                "rounds": given.rounds,
                "steps": steps,
                "jax": jax.__version__,
                "device": jax.devices()[0].device_kind,
            }
        )
    )


if __name__ == "__main__":
    main()
