"""What augmentation costs, as a share of a step of ResNet-20 on CIFAR-10.

    python benchmarks/augmentation_cost.py cifar10-jpeg/cifar10_jpeg_bytes.npz

One process; the compiled steps with each augmentation take turns, so that what else the machine does falls on all of
them alike. Prints a line of JSON: milliseconds of a step without augmentation (median), and for each what it adds, as a
share.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import jax

from functrain import config
from functrain.building import build
from functrain.built import first_state
from functrain.experiment import Experiment
from functrain.train import step

CONFIG = Path(__file__).parent.parent / "configs" / "cifar10_resnet20.toml"
KINDS = {
    "none": [],
    "crop, flip": [{"kind": "crop", "padding": 4}, {"kind": "flip"}],
    "crop, flip, cutout": [{"kind": "crop", "padding": 4}, {"kind": "flip"}, {"kind": "cutout"}],
    "colour": [{"kind": "colour"}],
    "rotate": [{"kind": "rotate"}],
    "mixup": [{"kind": "mixup"}],
    "cutmix": [{"kind": "cutmix"}],
    "randaugment": [{"kind": "randaugment"}],
    "augmix": [{"kind": "augmix"}],
}


def main() -> None:
    """See the module's first lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    programs, states = {}, {}
    for name, kinds in KINDS.items():
        source = config.read(CONFIG, [f"data.path={arguments.file}"])
        built = build(config.parse(Experiment, config.Source(source.data | {"augment": kinds})))
        feed, take = built.feeds["train"], step.make_step(built.task)
        window = feed.window(0, 1)

        def one(train_state, window, feed=feed, take=take):
            return take(train_state, feed.batch(window, train_state.step))[0]

        programs[name] = jax.jit(one, donate_argnums=0).lower(first_state(built), window).compile()
        states[name] = first_state(built), window
    seconds = {name: [] for name in KINDS}
    for _ in range(arguments.rounds + 1):
        for name, program in programs.items():
            train_state, window = states[name]
            jax.block_until_ready(train_state)
            begin = time.perf_counter()
            train_state = jax.block_until_ready(program(train_state, window))
            seconds[name].append(time.perf_counter() - begin)
            states[name] = train_state, window
    median = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    plain = median.pop("none")
    shares = {name: round(value / plain - 1, 4) for name, value in median.items()}
    print(
        json.dumps({"step_ms": round(1000 * plain, 1), "shares": shares, "device": str(jax.devices()[0].device_kind)})
    )


if __name__ == "__main__":
    main()
