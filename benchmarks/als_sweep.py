"""A sweep of implicit alternating least squares over a million ratings, beside the library `implicit`.

    pip install implicit
    python benchmarks/als_sweep.py [FACTORS]        64 factors unless told

The matrix has the shape of MovieLens 1M (6,040 users, 3,706 items, 1,000,209 entries), its entries drawn with users and
items as unequal as power laws make them. Sweeps are timed turn about in one process, from the same factors; printed are
the medians, their ratio, and how far the factors are apart after the last.

On one core (`OPENBLAS_NUM_THREADS=1 taskset -c 1`) of a machine that did other work too, with 64 factors: 0.74 s a
sweep, implicit 1.40 s, 1.4e-5 apart (jax 0.10.2, implicit 0.7.3).
"""

import statistics
import sys
import time

import jax
import numpy as np
from implicit.als import AlternatingLeastSquares
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from functrain import als

USERS, ITEMS, ENTRIES, SWEEPS = 6040, 3706, 1_000_209, 5


def entries(rng):
    """(rows, columns, confidences), each place once."""
    p, q = (rng.pareto(2.5, n) + 0.2 for n in (USERS, ITEMS))
    keys = np.unique(
        rng.choice(USERS, 3 * ENTRIES, p=p / p.sum()) * ITEMS + rng.choice(ITEMS, 3 * ENTRIES, p=q / q.sum())
    )
    keys = rng.permutation(keys)[:ENTRIES]
    return keys // ITEMS, keys % ITEMS, 1 + rng.integers(1, 6, len(keys)).astype(np.float32)


def main():
    """Print the table."""
    factors = int(sys.argv[1]) if len(sys.argv) > 1 else 64
    rng = np.random.default_rng(0)
    rows, columns, values = entries(rng)
    params = {
        name: rng.normal(0, 0.1, (n, factors)).astype(np.float32) for name, n in (("users", USERS), ("items", ITEMS))
    }
    theirs = AlternatingLeastSquares(
        factors=factors, regularization=0.1, alpha=1.0, use_cg=False, use_gpu=False, iterations=1
    )
    theirs.user_factors, theirs.item_factors = params["users"].copy(), params["items"].copy()
    matrix = csr_matrix((values, (rows, columns)), (USERS, ITEMS))
    begin = time.perf_counter()
    buckets = als.bucketed(rows, columns, values, (USERS, ITEMS)), als.bucketed(columns, rows, values, (ITEMS, USERS))
    print(f"{len(rows):,} entries, {factors} factors; buckets made in {time.perf_counter() - begin:.2f} s")
    by_user, by_item = jax.device_put(buckets)
    sweep = jax.jit(lambda p, a, b: als.implicit_sweep(p, a, b, regularisation=0.1))
    begin = time.perf_counter()
    jax.block_until_ready(sweep(params, by_user, by_item))
    print(f"first sweep, with compiling {time.perf_counter() - begin:.2f} s")
    seconds = {"functrain": [], "implicit": []}
    for _ in range(SWEEPS):
        begin = time.perf_counter()
        params = jax.block_until_ready(sweep(params, by_user, by_item))
        seconds["functrain"].append(time.perf_counter() - begin)
        begin = time.perf_counter()
        with threadpool_limits(1, "blas"):  # its own threads are over users
            theirs.fit(matrix, show_progress=False)
        seconds["implicit"].append(time.perf_counter() - begin)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, median in medians.items():
        print(f"{name:10} {median:6.2f} s a sweep")
    print(f"ratio      {medians['implicit'] / medians['functrain']:6.2f} (above 1: functrain is faster)")
    apart = np.abs(np.asarray(params["users"]) - theirs.user_factors).max() / np.abs(theirs.user_factors).max()
    print(f"apart      {apart:.1e} of the largest user factor after {SWEEPS} sweeps")


if __name__ == "__main__":
    main()
