"""Runs for tests: in memory, through the real loop; and whether two run directories hold the same."""

from pathlib import Path

import jax
import numpy as np

from functrain.data import Memory
from functrain.metrics import read
from functrain.models import MLP
from functrain.optim import AdamW, Learner
from functrain.tasks import Classification
from functrain.train import state
from functrain.train.checkpoint import Directory
from functrain.train.evaluate import make_evaluate
from functrain.train.loop import Best, Plan, run
from functrain.train.program import compile_program

DIGITS_VAE = """
[task]
kind = "variational"
[model]
kind = "vae"
hidden = [16]
latent = 3
[data]
kind = "digits"
[optimizer]
kind = "adam"
peak_lr = 1e-2
[train]
steps = 40
log_every = 10
[evaluate]
every = 10
[observe]
tensorboard = false
"""
"""A config of a small VAE of the digits, which draws pictures."""


class Log:
    """A sink that keeps what it is given."""

    def __init__(self):
        self.lines, self.flushed = [], 0

    def scalars(self, step, split, values):
        self.lines.append((step, split, values))

    def flush(self):
        self.flushed += 1


def mlp_task(**learner):
    """A small classifier of the digits with dropout."""
    return Classification(
        model=MLP(inputs=(8, 8), outputs=10, hidden=(16,), dropout=0.1),
        learner=Learner(**{"optimizer": AdamW(peak_lr=3e-3), **learner}),
    )


def digits_feed(digits, size=32):
    """The training digits in memory, pixels to 0..1."""
    x, y = jax.device_put((digits.train["x"].astype("float32") / 16, digits.train["y"]))
    return Memory({"x": x, "y": y}, size)


def start(task, seed=0, sweep=None):
    """The first train state."""
    return jax.jit(lambda: state.init(task, jax.random.key(seed), sweep))()


def train(
    task, feed, steps=40, *, chunk=10, log_every=20, seed=0, train_state=None, evaluation=None, loop="loop", **plan
):
    """(the outcome, the log) of a run through the loop."""
    train_state = start(task, seed) if train_state is None else train_state
    log = Log()
    evaluate = None if evaluation is None else make_evaluate(task, evaluation)
    parts = compile_program(task, feed, train_state, loop=loop, evaluate=evaluate)
    plan = Plan(steps=steps, chunk=chunk, log_every=log_every, **plan)
    outcome = run(parts, train_state, parts.fresh(), plan, best=Best(), sinks=[log])
    return outcome, log


def metrics_of(task, train_state, feed):
    """Evaluation over a feed, divided."""
    return read(make_evaluate(task, feed)(train_state))


def leaves(tree):
    """The leaves as NumPy arrays, random keys by their data."""
    raw = [
        jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        for x in map(jax.numpy.asarray, jax.tree.leaves(tree))
    ]
    return [np.asarray(x) for x in raw]


def same(a, b):
    """Whether two trees are equal, bit for bit."""
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes() for x, y in zip(leaves(a), leaves(b))
    )


def gap(a, b):
    """The largest relative distance of two trees, leaf by leaf: |a - b| / |b| in the Euclidean norm."""
    return max(
        float(np.linalg.norm(x.astype(float) - y.astype(float)) / max(np.linalg.norm(y.astype(float)), 1e-300))
        for x, y in zip(leaves(a), leaves(b), strict=True)
    )


def final_arrays(out):
    """The arrays of a run's last checkpoint."""
    step, arrays = Directory(Path(out) / "checkpoints").load()
    return step, {path: array for path, array in arrays.items() if path.startswith("state/")}


def assert_equal_runs(a, b):
    """The same final state, and the same bytes of log."""
    (step_a, arrays_a), (step_b, arrays_b) = final_arrays(a), final_arrays(b)
    assert step_a == step_b
    assert same(arrays_a, arrays_b)
    assert (Path(a) / "metrics.jsonl").read_bytes() == (Path(b) / "metrics.jsonl").read_bytes()
