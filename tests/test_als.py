"""Alternating least squares against a solve for each row in numpy, and on data whose factors are known."""

import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functrain import als

pytestmark = pytest.mark.usefixtures("float64")
SHAPE = (60, 45)


@pytest.fixture(params=["one block", "many blocks"])
def entries(request, monkeypatch):
    """(rows, columns, values) of a sparse matrix: rows of 0 to 40 entries, in no order."""
    if request.param == "many blocks":
        monkeypatch.setattr(als, "_BLOCK", 64)
        monkeypatch.setattr(als, "_MOST_ROWS", 5)
    rng = np.random.default_rng(0)
    pairs = [(u, i) for u in range(2, SHAPE[0]) for i in rng.choice(SHAPE[1], rng.integers(0, 41), replace=False)]
    rows, columns = np.array(pairs)[rng.permutation(len(pairs))].T
    return rows, columns, rng.uniform(1, 5, len(rows))


def test_every_entry_is_in_one_place(entries):
    """The buckets hold the matrix, each row in one of them, none longer than twice its entries or 8."""
    rows, columns, values = entries
    found, seen = np.zeros(SHAPE), []
    for bucket in als.bucketed(rows, columns, values, SHAPE):
        blocks, n, length = bucket.columns.shape
        assert blocks >= 2  # of one, XLA makes no loop: two factorisations at once never end on two cores
        assert blocks * n - np.count_nonzero(bucket.rows < SHAPE[0]) < max(n, 2)
        assert n * length <= als._BLOCK or n == 1
        for row, at, value, there in zip(*(np.asarray(a).reshape(blocks * n, *a.shape[2:]) for a in bucket)):
            entries_here = int(there.sum())
            assert (row == SHAPE[0]) == (entries_here == 0)
            assert length == 8 or length < 2 * entries_here or row == SHAPE[0]
            if row < SHAPE[0]:
                seen.append(row)
                np.add.at(found[row], at[there > 0], value[there > 0])
    [alone] = als.bucketed(np.zeros(3, int), np.arange(3), np.ones(3), (1, 4))
    assert alone.rows.tolist() == [[0], [1]]  # the second block is empty
    expected = np.zeros(SHAPE)
    expected[rows, columns] = values
    np.testing.assert_array_equal(found, expected)
    assert sorted(seen) == sorted(set(rows))


@pytest.mark.parametrize("weighted", [False, True])
def test_explicit_is_a_solve_for_each_row(entries, weighted):
    """The normal equations of every row by numpy; rows without entries are zero."""
    rows, columns, values = entries
    rng = np.random.default_rng(1)
    fixed, offsets = rng.normal(size=(SHAPE[1], 6)), rng.normal(size=SHAPE[1])
    buckets = als.bucketed(rows, columns, values, SHAPE)
    found = jax.jit(lambda f, o: als.explicit(buckets, f, SHAPE[0], regularisation=0.3, offsets=o, weighted=weighted))
    x = np.asarray(found(fixed, offsets))
    for row in range(SHAPE[0]):
        mine = rows == row
        y, r = fixed[columns[mine]], values[mine] - offsets[columns[mine]]
        ridge = 0.3 * (mine.sum() if weighted else 1) * np.eye(6)
        expected = np.linalg.solve(y.T @ y + ridge, y.T @ r) if mine.any() else np.zeros(6)
        np.testing.assert_allclose(x[row], expected, rtol=1e-9, atol=1e-11)


def test_implicit_is_a_solve_over_all_columns(entries):
    """Every column counts, those without an entry with confidence 1 and preference 0."""
    rows, columns, values = entries
    fixed = np.random.default_rng(1).normal(size=(SHAPE[1], 6))
    x = np.asarray(
        als.implicit(als.bucketed(rows, columns, values, SHAPE), jnp.asarray(fixed), SHAPE[0], regularisation=0.2)
    )
    confidence, preference = np.ones(SHAPE), np.zeros(SHAPE)
    confidence[rows, columns], preference[rows, columns] = values, 1
    for row in range(SHAPE[0]):
        c = np.diag(confidence[row])
        expected = np.linalg.solve(fixed.T @ c @ fixed + 0.2 * np.eye(6), fixed.T @ c @ preference[row])
        np.testing.assert_allclose(x[row], expected, rtol=1e-9, atol=1e-11)


def test_a_sweep_of_ratings_with_biases(entries):
    """Users first, then items from the new users, biases as one more factor: by a loop in numpy."""
    rows, columns, values = entries
    rng = np.random.default_rng(2)
    params = {
        "users": rng.normal(size=(SHAPE[0], 3)),
        "user_bias": rng.normal(size=SHAPE[0]),
        "items": rng.normal(size=(SHAPE[1], 3)),
        "item_bias": rng.normal(size=SHAPE[1]),
    }
    mean = values.mean()
    buckets = als.bucketed(rows, columns, values, SHAPE), als.bucketed(columns, rows, values, SHAPE[::-1])
    found = als.explicit_sweep(
        {name: jnp.asarray(p) for name, p in params.items()}, *buckets, mean=mean, regularisation=0.1
    )

    def side(n, of, other, factors, bias):
        solved = np.zeros((n, 4))
        for k in set(of):
            mine = of == k
            y = np.column_stack([factors[other[mine]], np.ones(mine.sum())])
            r = values[mine] - mean - bias[other[mine]]
            solved[k] = np.linalg.solve(y.T @ y + 0.1 * np.eye(4), y.T @ r)
        return solved[:, :3], solved[:, 3]

    users, user_bias = side(SHAPE[0], rows, columns, params["items"], params["item_bias"])
    items, item_bias = side(SHAPE[1], columns, rows, users, user_bias)
    expected = {"users": users, "user_bias": user_bias, "items": items, "item_bias": item_bias}
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-9, atol=1e-10)


def test_a_sweep_of_confidences(entries):
    """Users first, then items from the new users."""
    rows, columns, values = entries
    buckets = als.bucketed(rows, columns, values, SHAPE), als.bucketed(columns, rows, values, SHAPE[::-1])
    rng = np.random.default_rng(2)
    params = {name: jnp.asarray(rng.normal(size=(n, 3))) for name, n in zip(("users", "items"), SHAPE)}
    found = als.implicit_sweep(params, *buckets, regularisation=0.1)
    users = als.implicit(buckets[0], params["items"], SHAPE[0], regularisation=0.1)
    items = als.implicit(buckets[1], users, SHAPE[1], regularisation=0.1)
    np.testing.assert_array_equal(found["users"], users)
    np.testing.assert_array_equal(found["items"], items)


def test_low_rank_is_recovered():
    """Of ratings with noise of deviation 0.1 the error on unseen ones is that noise, and the sweeps never climb."""
    rng = np.random.default_rng(3)
    n, m, f, noise = 300, 200, 4, 0.1
    truth = rng.normal(size=(n, f)) @ rng.normal(size=(f, m)) + rng.normal(size=(n, 1)) + rng.normal(size=m) + 3
    seen = rng.random((n, m)) < 0.4
    rows, columns = np.nonzero(seen)
    values = (truth + noise * rng.normal(size=(n, m)))[seen]
    buckets = als.bucketed(rows, columns, values, (n, m)), als.bucketed(columns, rows, values, (m, n))
    params = {name: 0.1 * jnp.asarray(rng.normal(size=(k, f))) for name, k in (("users", n), ("items", m))}
    params |= {"user_bias": jnp.zeros(n), "item_bias": jnp.zeros(m)}
    mean, ridge = values.mean(), 0.02

    def predicted(p):
        return mean + p["user_bias"][:, None] + p["item_bias"] + p["users"] @ p["items"].T

    def objective(p):
        fit = np.square(values - np.asarray(predicted(p))[seen]).sum()
        return fit + ridge * sum(float(jnp.square(x).sum()) for x in p.values())

    sweep = jax.jit(lambda p: als.explicit_sweep(p, *buckets, mean=mean, regularisation=ridge))
    heights = []
    for _ in range(25):
        params = sweep(params)
        heights.append(objective(params))
    assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(heights))
    error = np.sqrt(np.square(np.asarray(predicted(params)) - truth)[~seen].mean())
    # Of the truth itself: the noise is averaged over as many entries as there are for a parameter.
    assert error == pytest.approx(noise * np.sqrt((n + m) * (f + 1) / len(values)), rel=0.2)
    off = truth + noise * rng.normal(size=(n, m)) - np.asarray(predicted(params))
    assert np.sqrt(np.square(off)[~seen].mean()) == pytest.approx(np.hypot(noise, error), rel=0.03)


def test_mistakes():
    """Arrays of different lengths, and places outside the matrix."""
    with pytest.raises(ValueError, match="found 2 rows, 1 columns and 1 values"):
        als.bucketed(np.array([0, 1]), np.array([0]), np.array([1.0]), (2, 2))
    with pytest.raises(ValueError, match="columns: found 0 to 5; expected 0 to 4"):
        als.bucketed(np.array([0, 1]), np.array([0, 5]), np.ones(2), (2, 5))
    assert als.bucketed(np.zeros(0, int), np.zeros(0, int), np.zeros(0), (2, 2)) == []


PROGRAM = """
import jax, numpy as np
from functrain import als
rng = np.random.default_rng(0)
lengths = np.repeat([16, 32, 64, 128, 256], 200)
rows = np.repeat(np.arange(1000), lengths)
columns = np.concatenate([rng.permutation(500)[:n] for n in lengths])
buckets = als.bucketed(rows, columns, np.ones(len(rows), np.float32), (1000, 500))
solve = jax.jit(lambda buckets, fixed: als.explicit(buckets, fixed, 1000, regularisation=0.1))
for _ in range(200):
    x = solve(buckets, rng.normal(size=(500, 33)).astype(np.float32)).block_until_ready()
print(x.shape)
"""


def test_buckets_do_not_wait_for_one_another():
    """On two cores this never ended while the buckets' factorisations could run at once: in a process of its own."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120)
    assert done.stdout == "(1000, 33)\n", done.stderr
