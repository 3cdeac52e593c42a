"""Environment steps a second of DDPG on the pendulum, for 1, 8 and 64 seeds side by side, beside Stable-Baselines3.

    pip install stable-baselines3            (left out where it is not installed)
    python benchmarks/control_seeds.py [PICTURE.png]

Each seed is a whole run: its own environment, replay buffer, actor, critic and targets; a step of it is one step of the
environment and one update of both players. functrain advances all seeds in one program, either together under vmap or
each in turn (`functrain train configs/ddpg_pendulum.toml train.seeds=64 train.members=together`). Stable-Baselines3
runs a seed a process, so that on one core any number of seeds has together the rate of one. Two sizes: that of the
config (hidden layers of 256 and 256, batches of 256), whose arithmetic fills a core, and small ones (32 and 32, batches
of 32), where what is paid for each step stands out. All are timed turn about after the warm-up, some steps at a time;
printed are medians.

On one core (`taskset -c 1`; jax 0.10.2, Stable-Baselines3 2.9.2 with torch 2.13.0), steps a second of all seeds:

                                    1 seed    8 seeds   64 seeds
  as the config    together            568        482        366
                   in turn             563        559        558
                   Stable-Baselines3   167        167        167
  small            together         29,500     52,800     61,600
                   in turn          29,400     29,000     28,700
                   Stable-Baselines3   709        709        709

So on a CPU large networks go in turn, where one seed's parameters stay in the cache, and small ones together.
"""

import statistics
import sys
import time
import warnings
from pathlib import Path

import jax
import matplotlib

from functrain.building import build
from functrain.built import compile
from functrain.config import parse, read
from functrain.experiment import Experiment

SEEDS = (1, 8, 64)
MEMBERS = {"functrain, together": "together", "functrain, in turn": "in_turn"}
SIZES = {"hidden 256 and 256, batches of 256": ((256, 256), 256), "hidden 32 and 32, batches of 32": ((32, 32), 32)}
WARMUP, ROUNDS, SECONDS = 1000, 5, 2.0
CONFIG = Path(__file__).parent.parent / "configs/ddpg_pendulum.toml"


def ours(seeds, hidden, batch, members):
    """`f(n)` that takes n steps of every seed."""
    changes = [f"train.seeds={seeds}", f"task.hidden={list(hidden)}", f"task.batch_size={batch}", "train.loop=loop"]
    if seeds > 1:
        changes.append(f"train.members={members}")
    compiled = compile(build(parse(Experiment, read(CONFIG, changes))))
    program, now, at = compiled.program, [compiled.train_state, compiled.metrics], [0]

    def run(n):
        now[0], now[1], mark = program.advance(*now, program.window(at[0], n), n)
        at[0] += n
        jax.block_until_ready(mark)

    return run


def theirs(hidden, batch):
    """The same of one seed in Stable-Baselines3."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import stable_baselines3

    torch.set_num_threads(1)
    model = stable_baselines3.DDPG(
        "MlpPolicy", "Pendulum-v1", 1e-3, buffer_size=20_000, batch_size=batch, learning_starts=WARMUP, train_freq=1,
        gradient_steps=1, policy_kwargs={"net_arch": list(hidden)}, device="cpu", seed=0,
    )  # fmt: skip
    return lambda n: model.learn(n, reset_num_timesteps=False)


def measure(hidden, batch):
    """{system: [environment steps a second of all seeds, for each number of them]}."""
    runs = {(name, seeds): ours(seeds, hidden, batch, how) for name, how in MEMBERS.items() for seeds in SEEDS}
    try:
        import stable_baselines3  # noqa: F401

        runs["Stable-Baselines3", 1] = theirs(hidden, batch)
    except ImportError:
        print("stable-baselines3 is not installed: left out")
    steps, rates = {}, {key: [] for key in runs}
    for key, run in runs.items():
        run(WARMUP + 1)
        begin = time.perf_counter()
        run(20)
        steps[key] = max(20, round(20 * SECONDS / (time.perf_counter() - begin)))
    for _ in range(ROUNDS):
        for (name, seeds), run in runs.items():
            begin = time.perf_counter()
            run(steps[name, seeds])
            rates[name, seeds].append(seeds * steps[name, seeds] / (time.perf_counter() - begin))
    found = {key: statistics.median(each) for key, each in rates.items()}
    table = {name: [found[name, seeds] for seeds in SEEDS] for name in MEMBERS}
    if ("Stable-Baselines3", 1) in found:
        table["Stable-Baselines3"] = [found["Stable-Baselines3", 1]] * len(SEEDS)
    return table


def draw(tables, path):
    """Environment steps a second against seeds, both logarithmic."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(tables), figsize=(10, 4), sharey=True, layout="constrained")
    for axes, (title, table) in zip(panels, tables.items()):
        for name, each in table.items():
            axes.plot(SEEDS, each, marker="o", label=name)
        axes.set(xscale="log", yscale="log", xlabel="seeds", title=title, xticks=SEEDS, xticklabels=SEEDS)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("environment steps a second, all seeds")
    panels[0].legend()
    figure.savefig(path, dpi=120)
    print(path)


def main():
    """Print the tables, and draw them."""
    tables = {}
    for title, (hidden, batch) in SIZES.items():
        print(title)
        tables[title] = measure(hidden, batch)
        for name, each in tables[title].items():
            print(f"  {name:20}" + ", ".join(f"{n} seed{'s' * (n > 1)} {rate:,.0f}/s" for n, rate in zip(SEEDS, each)))
    draw(tables, sys.argv[1] if len(sys.argv) > 1 else "control_seeds.png")


if __name__ == "__main__":
    main()
