"""A step of DeepFM with tables of 10,000 to 10,000,000 rows: sparse updates, dense ones, and torch's sparse embedding.

    pip install torch            (left out where it is not installed)
    python benchmarks/sparse_rows.py [PICTURE.png]

The model is that of Guo et al. 2017, section 3.1, on Criteo's columns: 26 of categories, 13 of numbers, vectors of 10,
three hidden layers of 400; a batch has 1,024 examples. Their categories are drawn with chances like 1 / rank, as clicks
have about, and then evenly, the worst case: nearly every lookup in a large table is of another row, which no cache
holds. It is learned by lazy Adam, by row-wise Adagrad (both with `optimizer.sparse`), by dense Adam, and in torch by
SparseAdam for the tables and Adam for the rest. All are timed turn about, some steps at a time; printed are medians in
milliseconds, and what they are times the smallest table's.

On one core (`taskset -c 1`; jax 0.10.2, torch 2.13.0), 10,000 and 10,000,000 rows: lazy Adam 16.2 and 19.3 ms (1.19
times; drawn evenly 1.22), row-wise Adagrad 15.2 and 17.3 (1.14; 1.13), dense Adam 14.1 and 266 (19), torch 33.7 and
48.3 (1.43; 1.53). With hidden layers of 256 and 128 and vectors of 16, where the lookups are more of the step, lazy
Adam took 7.0 and 9.4 ms (1.35): what grows is the time to reach rows that no cache holds.
"""

import functools
import itertools
import os
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

from functrain.data.feed import Memory
from functrain.models import DeepFM
from functrain.optim import Adam, Learner, RowwiseAdagrad
from functrain.tasks import Binary
from functrain.train import state, step

SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
CATEGORIES, NUMBERS, BATCH, EXAMPLES, FEATURES, HIDDEN = 26, 13, 1024, 20_480, 10, (400, 400, 400)
STEPS, ROUNDS = 10, 7
TABLES = ("weight/table", "embedding/table")


def examples(rows, skewed):
    """x [n, 39], the columns of categories first, and y."""
    rng = np.random.default_rng(0)
    count = rows // CATEGORIES
    if skewed:
        rank = (count ** rng.random((EXAMPLES, CATEGORIES))).astype(np.int64)
        categories = rank * 2_654_435_761 % count  # the frequent ones lie apart
    else:
        categories = rng.integers(0, count, (EXAMPLES, CATEGORIES))
    x = np.concatenate([categories, rng.normal(size=(EXAMPLES, NUMBERS))], 1).astype(np.float32)
    return x, rng.integers(0, 2, EXAMPLES).astype(np.int32)


def ours(rows, x, y, optimizer):
    """`f(n)` that takes n steps."""
    fields = (rows // CATEGORIES,) * CATEGORIES + (0,) * NUMBERS
    model = DeepFM(fields=fields, inputs=(len(fields),), outputs=1, features=FEATURES, hidden=HIDDEN).build()
    rows_read = (lambda batch: model.rows(batch["x"])) if optimizer.sparse else None
    task = Binary(model=model, learner=Learner(optimizer=optimizer, rows=rows_read))
    feed = Memory({"x": jnp.asarray(x), "y": jnp.asarray(y)}, BATCH)
    now = [jax.jit(lambda key: state.init(task, key))(jax.random.key(0))]
    zero = step.zero_metrics(task, feed, now[0], feed.window(0, 1))
    chunk = jax.jit(step.make_chunk(task, feed), donate_argnums=0)

    def run(n):
        now[0], _ = chunk(now[0], zero, feed.window(0, n), np.int32(n))
        jax.block_until_ready(now[0])

    return run


def theirs(rows, x, y):
    """The same in torch: one sparse table of vectors, one of weights."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    count = rows // CATEGORIES * CATEGORIES
    vectors = torch.nn.Embedding(count, FEATURES, sparse=True)
    weights = torch.nn.Embedding(count, 1, sparse=True)
    layers = []
    for n, m in itertools.pairwise((CATEGORIES * FEATURES + NUMBERS, *HIDDEN)):
        layers += [torch.nn.Linear(n, m), torch.nn.ReLU()]
    deep = torch.nn.Sequential(*layers, torch.nn.Linear(HIDDEN[-1], 1, bias=False))
    numbers = torch.nn.Linear(NUMBERS, 1)
    lazy = torch.optim.SparseAdam([vectors.weight, weights.weight])
    dense = torch.optim.Adam([*deep.parameters(), *numbers.parameters()])
    ids = torch.tensor(x[:, :CATEGORIES].astype(np.int64) + np.arange(CATEGORIES) * (rows // CATEGORIES))
    values, targets = torch.tensor(x[:, CATEGORIES:]), torch.tensor(y, dtype=torch.float32)
    at = [0]

    def run(n):
        for _ in range(n):
            batch = slice(at[0], at[0] + BATCH)
            at[0] = (at[0] + BATCH) % EXAMPLES
            v = vectors(ids[batch])
            pairs = 0.5 * (v.sum(1) ** 2 - (v**2).sum(1)).sum(1)
            inputs = torch.cat([v.flatten(1), values[batch]], 1)
            logits = numbers(values[batch])[:, 0] + weights(ids[batch]).sum((1, 2)) + pairs + deep(inputs)[:, 0]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets[batch])
            lazy.zero_grad()
            dense.zero_grad()
            loss.backward()
            lazy.step()
            dense.step()

    return run


def measure(skewed):
    """{system: milliseconds a step for each size}."""
    optimizers = {
        "lazy Adam": Adam(sparse=TABLES),
        "row-wise Adagrad": RowwiseAdagrad(sparse=TABLES),
        "dense Adam": Adam(),
    }
    systems: dict = {name: functools.partial(ours, optimizer=one) for name, one in optimizers.items()}
    try:
        import torch  # noqa: F401

        systems["torch, SparseAdam"] = theirs
    except ImportError:
        print("torch is not installed: left out")
    runs = {(name, rows): make(rows, *examples(rows, skewed)) for rows in SIZES for name, make in systems.items()}
    seconds = {key: [] for key in runs}
    for i in range(ROUNDS + 1):
        for (name, rows), run in runs.items():
            n = 1 if name == "dense Adam" and rows > 100_000 else STEPS
            begin = time.perf_counter()
            run(n)
            if i:  # the first round compiles
                seconds[name, rows].append((time.perf_counter() - begin) / n)
    found = {name: [1e3 * statistics.median(seconds[name, rows]) for rows in SIZES] for name in systems}
    for i, rows in enumerate(SIZES):
        print(f"{rows:>12,} rows  " + "  ".join(f"{name} {each[i]:.2f} ms" for name, each in found.items()))
    return found


def draw(every, path):
    """Milliseconds a step against rows, both logarithmic."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(every), figsize=(10, 4), sharey=True, layout="constrained")
    for axes, (title, found) in zip(panels, every.items()):
        for name, each in found.items():
            axes.plot(SIZES, each, marker="o", label=name)
        axes.set(xscale="log", yscale="log", xlabel="rows", title=f"categories drawn {title}")
        axes.grid(alpha=0.3, which="both")
    panels[0].set_ylabel("ms a step of 1,024")
    panels[0].legend()
    figure.savefig(path, dpi=120)
    print(path)


def main():
    """Print the tables, and draw them."""
    every = {}
    for title, skewed in (("like 1 / rank", True), ("evenly", False)):
        print(f"categories drawn {title}")
        every[title] = measure(skewed)
        for name, each in every[title].items():
            print(f"{name}: against the smallest table " + ", ".join(f"{ms / each[0]:.2f}" for ms in each))
    draw(every, sys.argv[1] if len(sys.argv) > 1 else "sparse_rows.png")


if __name__ == "__main__":
    main()
