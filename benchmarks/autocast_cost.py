"""What autocast costs to trace, and what it gives to run: a training step with and without it, turn about.

    python benchmarks/autocast_cost.py [CONFIG ...]

Without arguments, digits_mlp, mnist_lenet, shakespeare_lstm and shakespeare_gpt_cpu. The step is that of `functrain
train CONFIG` as a dispatch of its own. Printed are the seconds to trace it and to lower it (the median of five) and to
compile it, how often the loss was traced in that, and milliseconds a step, which run takes turn about: in float32, with
everything cast to bfloat16, and under autocast with bfloat16.

On two CPU cores that did other work too, the seconds to trace, and the step's time against float32's:

                     trace                       jax 0.10.2             jax 0.12.0
                     float32  cast  autocast     cast  autocast         cast  autocast
  digits_mlp            0.03  0.03      0.05     1.37      1.28         1.27      1.10
  mnist_lenet           0.06  0.06      0.09     1.90      1.63         1.39      1.22
  shakespeare_lstm      0.03  0.03      0.03     1.24      1.22         1.63      1.44
  shakespeare_gpt_cpu   0.12  0.15      0.20     0.70      0.72         1.34      1.32

The loss was traced twice a step in all of them: once to count, once to differentiate.
"""

import statistics
import sys
import time
from pathlib import Path

import jax
import numpy as np

from functrain.building import build
from functrain.built import first_state
from functrain.config import parse, read
from functrain.experiment import Experiment
from functrain.train import step

CONFIGS = Path(__file__).parent.parent / "configs"
NAMES = ("digits_mlp", "mnist_lenet", "shakespeare_lstm", "shakespeare_gpt_cpu")
POLICIES = ("float32", "bfloat16", "autocast")
TRACES, ROUNDS, SECONDS = 5, 7, 1.0


class Measured:
    """One policy's step: traced, lowered and compiled; `run(n)` takes n steps."""

    def __init__(self, config, policy):
        self.built = build(parse(Experiment, read(config, [f"precision.kind={policy}", "train.seeds=1"])))
        feed, self.state = self.built.feeds["train"], first_state(self.built)
        self.batch = jax.jit(feed.batch)(feed.window(0, 1), np.int32(0))
        self.calls, apply = 0, type(self.built.task).full_loss

        def counted(task, *args, **kwargs):
            self.calls += 1
            return apply(task, *args, **kwargs)

        spent = {"trace": [], "lower": []}
        for _ in range(TRACES):
            self.calls = 0
            type(self.built.task).full_loss = counted
            one_step = jax.jit(lambda state, batch: step.make_step(self.built.task)(state, batch))
            begin = time.perf_counter()
            traced = one_step.trace(self.state, self.batch)
            spent["trace"].append(time.perf_counter() - begin)
            type(self.built.task).full_loss = apply
            begin = time.perf_counter()
            lowered = traced.lower()
            spent["lower"].append(time.perf_counter() - begin)
        begin = time.perf_counter()
        self._step = lowered.compile()
        self.seconds = {name: statistics.median(each) for name, each in spent.items()}
        self.seconds["compile"] = time.perf_counter() - begin

    def run(self, n):
        """Take n steps."""
        for _ in range(n):
            self.state, _ = self._step(self.state, self.batch)
        jax.block_until_ready(self.state)


def main():
    """Print a line for each config and policy."""
    print(f"jax {jax.__version__}")
    for config in map(Path, sys.argv[1:] or [CONFIGS / f"{name}.toml" for name in NAMES]):
        measured = {policy: Measured(config, policy) for policy in POLICIES}
        counts, spent = {}, {policy: [] for policy in POLICIES}
        for policy, one in measured.items():
            one.run(3)
            begin = time.perf_counter()
            one.run(3)
            counts[policy] = max(3, round(3 * SECONDS / (time.perf_counter() - begin)))
        for _ in range(ROUNDS):
            for policy, one in measured.items():
                begin = time.perf_counter()
                one.run(counts[policy])
                spent[policy].append((time.perf_counter() - begin) / counts[policy])
        times = {policy: statistics.median(each) for policy, each in spent.items()}
        for policy, one in measured.items():
            seconds = ", ".join(f"{name} {value:.2f} s" for name, value in one.seconds.items())
            ratio = times[policy] / times["float32"]
            print(
                f"{config.stem:20} {policy:9} {seconds}; the loss traced {one.calls} times; "
                f"{1e3 * times[policy]:.3f} ms a step, {ratio:.2f} of float32"
            )


if __name__ == "__main__":
    main()
