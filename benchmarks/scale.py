# ruff: noqa: E402 (what the process keeps is set before threads begin)
"""What a step costs beside a program written by hand, as the work grows: by parameters, by batch, by leaves.

    python benchmarks/scale.py [params] [batch] [leaves] [--rounds 7] [--figure scale.png] [--json FILE] [--small]

The model is the same function on both sides: x W0, the mean of `depth` layers tanh(h W + b) side by side, W1 and W2,
cross-entropy, Adam in float32. What is written by hand is a `lax.scan` over batches whose indices are given, with
value_and_grad and optax, the state donated; functrain also computes the order of the examples, the gradient's norm,
accuracy, and guards against updates that are not finite. Each round times both, in alternating order; the same number
of steps go in a dispatch. A row has medians over the rounds: microseconds a step of each side, and of their difference
within a round; of processor time too, which is steadier where others compute.

    params    32-w-w-10 at batch 32, from ten thousand to a hundred million parameters
    batch     784-128-10, from 1 to 4,096 examples
    leaves    16 x 16 and 16 in turn, from 10 to 3,000 of them, at batch 16

The loss after the first round is the same on both sides, to 1e-4 of it, or the status is 1.
"""

import argparse
import functools
import json
import math
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from functrain.process import keep_memory

keep_memory()

import jax
import jax.numpy as jnp
import numpy as np
import optax

from functrain.building import build
from functrain.built import compile
from functrain.data import dataset, order
from functrain.data.base import Source
from functrain.experiment import Experiment
from functrain.observe import Observe
from functrain.optim import Adam
from functrain.tasks import Classification
from functrain.train.loop import Train

RATE, EXAMPLES, SECONDS = 1e-3, 8192, 0.4
"""Of Adam; in the data; of a side's part of a round, about."""
WITHIN = 1e-4
"""Between losses, relative: both sides round in their own way."""


@dataclass(frozen=True, kw_only=True)
class Numbers(Source):
    """Examples of so many numbers, in ten classes."""

    inputs: int

    def load(self):
        rng = np.random.default_rng(0)
        y = rng.integers(0, 10, EXAMPLES).astype("int32")
        x = rng.normal(0, 1, (EXAMPLES, self.inputs)) + rng.normal(0, 1, (10, self.inputs))[y]
        return dataset("numbers", {"train": {"x": x.astype("float32"), "y": y}}, classes=10)


@dataclass(frozen=True)
class Model:
    """The function that both sides train."""

    inputs: int
    width: int
    depth: int = 0
    square: bool = False  # whether there is a W1

    kind = "scale"

    def sized(self, inputs, outputs):
        return self

    def build(self):
        return self

    def init(self, key):
        shapes = {"w0": (self.inputs, self.width), "w2": (self.width, 10)}
        shapes |= {"w1": (self.width, self.width)} if self.square else {}
        params = {
            name: jax.random.normal(jax.random.fold_in(key, i), shape) / math.sqrt(shape[0])
            for i, (name, shape) in enumerate(shapes.items())
        }
        for i in range(self.depth):
            kernel = jax.random.normal(jax.random.fold_in(key, 9 + i), (self.width, self.width))
            params |= {f"kernel{i}": kernel / math.sqrt(self.width), f"bias{i}": jnp.zeros(self.width)}
        return params, {}

    def apply(self, params, state, x, *, key=None, train=False):
        h = jnp.tanh(x @ params["w0"])
        if self.depth:  # side by side: in a deep one rounding would soon tell the sides apart
            h = sum(jnp.tanh(h @ params[f"kernel{i}"] + params[f"bias{i}"]) for i in range(self.depth)) / self.depth
        if self.square:
            h = jnp.tanh(h @ params["w1"])
        return h @ params["w2"], state


@dataclass(frozen=True)
class Point:
    """One place on a curve: the number it stands for, and the work."""

    axis: str
    at: int
    model: Model
    batch: int


def points(small: bool) -> list[Point]:
    """All there are; `small` ones run in seconds."""
    wide = [24, 80] if small else [80, 300, 984, 3146, 9984]
    batches = [1, 64] if small else [1, 8, 64, 512, 4096]
    leaves = [10, 40] if small else [10, 30, 100, 300, 1000, 3000]
    by_params = [Model(32, w, square=True) for w in wide]
    found = [Point("params", m.width * (m.width + 42), m, 32) for m in by_params]
    found += [Point("batch", n, Model(784, 128), n) for n in batches]
    return found + [Point("leaves", n, Model(16, 16, depth=n // 2 - 1), 16) for n in leaves]


class Trainer:
    """functrain's programs, as its loop dispatches them."""

    def __init__(self, point: Point):
        self.config = Experiment(
            model=point.model,  # pyright: ignore[reportArgumentType]
            task=Classification(),
            data=Numbers(inputs=point.model.inputs, batch_size=point.batch),  # pyright: ignore[reportArgumentType]
            optimizer=Adam(peak_lr=RATE),
            train=Train(steps=1_000_000),
            observe=Observe(tensorboard=False, figures=False),
        )
        self.built = build(self.config)
        compiled = compile(self.built)
        self.chunk, self.program, self.at = self.built.config.train.chunk, compiled.program, 0
        self.train_state = compiled.train_state

    def run(self, steps: int) -> float:
        """The mean loss of so many steps, whole chunks."""
        metrics = self.program.fresh()
        for _ in range(steps // self.chunk):
            window = self.program.window(self.at, self.chunk)
            self.train_state, metrics, _ = self.program.advance(self.train_state, metrics, window, self.chunk)
            self.at += self.chunk
        return self.program.scalars(metrics)["loss"]


class ByHand:
    """A loop as one would write it in jax and optax."""

    def __init__(self, model: Model, params: Any, data: dict[str, np.ndarray], batch: int, chunk: int):
        self.data, self.chunk, self.at, self.batch = jax.device_put((data["x"], data["y"])), chunk, 0, batch
        tx = optax.adam(RATE)
        self.state = jax.tree.map(jnp.copy, (params, tx.init(params)))

        def loss(params, x, y):
            return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, {}, x)[0], y).mean()

        @functools.partial(jax.jit, donate_argnums=0)
        def steps(state, data, indices):
            def body(state, i):
                params, moments = state
                value, gradients = jax.value_and_grad(loss)(params, data[0][i], data[1][i])
                updates, moments = tx.update(gradients, moments, params)
                return (optax.apply_updates(params, updates), moments), value

            return jax.lax.scan(body, state, indices)

        self.steps = steps

    def indices(self, steps: int) -> np.ndarray:
        """Of the next so many batches, [steps, batch]: what it is given ready-made."""
        return np.stack([order(0, self.at + i, EXAMPLES, self.batch, np) for i in range(steps)])

    def run(self, indices: np.ndarray) -> float:
        """The mean loss of the steps."""
        losses = []
        for i in range(0, len(indices), self.chunk):
            self.state, values = self.steps(self.state, self.data, indices[i : i + self.chunk])
            losses.append(values)
        self.at += len(indices)
        return float(np.mean([np.asarray(values) for values in losses]))


def measure(point: Point, rounds: int, seconds: float) -> dict[str, Any]:
    """The row of a point."""
    trainer = Trainer(point)
    start = jax.device_get(trainer.train_state.players["model"].params)
    by_hand = ByHand(point.model, start, trainer.built.dataset.train, point.batch, trainer.chunk)
    steps, losses = trainer.chunk, {}
    times: dict[str, list[tuple[float, float]]] = {"functrain": [], "by_hand": []}
    for i in range(-2, rounds):  # one to compile, one to choose how many steps a round has
        indices = by_hand.indices(steps)
        for side in ("functrain", "by_hand") if i % 2 else ("by_hand", "functrain"):
            began, cpu = time.perf_counter(), time.process_time()
            losses[side] = trainer.run(steps) if side == "functrain" else by_hand.run(indices)
            passed = time.perf_counter() - began, time.process_time() - cpu
            times[side].append(tuple(1e6 * t / steps for t in passed))
        if i == -2:
            first = dict(losses)
        if i == -1:
            one = times["by_hand"][-1][0] / 1e6
            steps = trainer.chunk * max(1, round(seconds / one / trainer.chunk))
    times = {side: rows[2:] for side, rows in times.items()}
    row: dict[str, Any] = {"axis": point.axis, "at": point.at, "steps": steps, "chunk": trainer.chunk}
    for k, name in enumerate(("us", "cpu_us")):
        ours, theirs = ([row[k] for row in times[side]] for side in ("functrain", "by_hand"))
        row |= {f"functrain_{name}": statistics.median(ours), f"by_hand_{name}": statistics.median(theirs)}
        row[f"difference_{name}"] = statistics.median(a - b for a, b in zip(ours, theirs))
        row[f"ratio_{name}"] = statistics.median(a / b for a, b in zip(ours, theirs))
    row["loss_difference"] = abs(first["functrain"] - first["by_hand"]) / abs(first["by_hand"])
    return row


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """The curves, a panel an axis."""
    import matplotlib.pyplot as plt
    from matplotlib.figure import Figure

    axes = list(dict.fromkeys(row["axis"] for row in rows))
    figure: Figure = plt.figure(figsize=(4.2 * len(axes), 3.6), layout="constrained")
    for i, axis in enumerate(axes):
        panel, here = figure.add_subplot(1, len(axes), i + 1), [row for row in rows if row["axis"] == axis]
        at = [row["at"] for row in here]
        panel.loglog(at, [row["by_hand_us"] for row in here], "o-", color="0.6", label="by hand")
        panel.loglog(at, [row["functrain_us"] for row in here], "o-", color="tab:blue", label="functrain")
        panel.set_xlabel({"params": "parameters", "batch": "examples in a batch", "leaves": "leaves"}[axis])
        panel.set_ylabel("microseconds a step" if i == 0 else "")
        panel.grid(alpha=0.3)
        panel.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("axes", nargs="*", metavar="AXIS", help="params, batch, leaves; none is all")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--small", action="store_true", help="two small points an axis, in seconds")
    parser.add_argument("--most", type=int, default=0, help="leave out points beyond this number; 0 is none")
    parser.add_argument("--figure", type=Path, metavar="PNG")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    if unknown := set(given.axes) - {"params", "batch", "leaves"}:
        parser.error(f"found {min(unknown)}; expected params, batch or leaves")
    rows = []
    print(f"{'axis':8}{'at':>12}{'functrain us':>14}{'by hand us':>12}{'difference':>12}{'ratio':>7}{'CPU':>7}")
    for point in points(given.small):
        if (given.axes and point.axis not in given.axes) or (given.most and point.at > given.most):
            continue
        row = measure(point, given.rounds, SECONDS / 20 if given.small else SECONDS)
        rows.append(row)
        print(
            f"{row['axis']:8}{row['at']:12,}{row['functrain_us']:14,.1f}{row['by_hand_us']:12,.1f}"
            f"{row['difference_us']:12,.1f}{row['ratio_us']:7.3f}{row['ratio_cpu_us']:7.3f}",
            flush=True,
        )
    if given.figure:
        draw(rows, given.figure)
    facts = {"jax": jax.__version__, "device": jax.devices()[0].device_kind, "rounds": given.rounds, "rows": rows}
    if given.json:
        given.json.write_text(json.dumps(facts, indent=1) + "\n")
    wrong = [row for row in rows if not row["loss_difference"] <= WITHIN]
    for row in wrong:
        print(f"{row['axis']} {row['at']}: losses differ by {row['loss_difference']:.1e} of them", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
