"""Order and feeds: a function of (seed, step), the same on host and device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import mlp_task, same, train

from functrain.data import InOrder, Memory, Stream, order, shuffled


@pytest.mark.parametrize("n", [1, 2, 3, 10, 37, 1500])
def test_an_epoch_is_a_permutation(n):
    """Every index once, for any n, and another permutation for each epoch and seed."""
    seen = {(s, e): shuffled(s, e, np.arange(n), n, np) for s in range(3) for e in range(3)}
    for permutation in seen.values():
        assert sorted(permutation.tolist()) == list(range(n))
    if n >= 10:
        assert len({p.tobytes() for p in seen.values()}) == 9


@pytest.mark.parametrize("n", [10, 1500, 60_000])
def test_host_and_device_agree(n):
    """NumPy and the traced program give the same indices."""
    for step in (0, 1, 7, 12_345):
        on_device = jax.jit(lambda s: order(3, s, n, 10))(jnp.int32(step))
        assert (np.asarray(on_device) == order(3, np.int64(step), n, 10, np)).all()


def test_the_shuffle_is_as_even_as_chance():
    """Where an index lands, and which two stand together, is as even over seeds as for true shuffles (chi-squared)."""
    n, seeds = 16, 4000
    many = np.stack([shuffled(seed, seed % 7, np.arange(n), n, np) for seed in range(seeds)])
    places = np.stack([np.bincount(many[:, i], minlength=n) for i in range(n)])
    pairs = np.zeros((n, n))
    np.add.at(pairs, (many[:, 3], many[:, 4]), 1)
    truly = np.random.default_rng(0).permuted(np.tile(np.arange(n), (seeds, 1)), axis=1)
    true_pairs = np.zeros((n, n))
    np.add.at(true_pairs, (truly[:, 3], truly[:, 4]), 1)

    def chi(counts, expected):
        return ((counts - expected) ** 2 / expected).sum()

    # 225 and 224 degrees of freedom: mean 225, standard deviation 21; five of them is far outside of chance.
    assert abs(chi(places, seeds / n) - 225) < 5 * 21
    off = ~np.eye(n, dtype=bool)
    assert pairs[~off].sum() == 0
    assert abs(chi(pairs[off], seeds / (n * (n - 1))) - chi(true_pairs[off], seeds / (n * (n - 1)))) < 5 * 30
    # The same statistic does catch a poor shuffle: one round of rotation.
    poor = (np.arange(n)[None] + np.arange(seeds)[:, None]) % n
    poor_pairs = np.zeros((n, n))
    np.add.at(poor_pairs, (poor[:, 3], poor[:, 4]), 1)
    assert chi(poor_pairs[off], seeds / (n * (n - 1))) > 10_000


def test_an_epoch_s_steps_do_not_overlap():
    """What an epoch leaves over differs from epoch to epoch."""
    n, size = 50, 8
    left = []
    for epoch in range(4):
        seen = np.concatenate([order(1, np.int64(epoch * 6 + s), n, size, np) for s in range(6)])
        assert len(set(seen.tolist())) == 48
        left.append(frozenset(range(n)) - set(seen.tolist()))
    assert len(set(left)) == 4


def test_a_stream_equals_memory_bitwise(digits):
    """Rows read on the host for each chunk train to the same bits as arrays on the device."""
    x, y = digits.train["x"].astype("float32") / 16, digits.train["y"]
    memory = Memory({"x": jnp.asarray(x), "y": jnp.asarray(y)}, 32)
    stream = Stream(lambda i: {"x": x[i], "y": y[i]}, len(x), 32, longest=10)
    a, log_a = train(mlp_task(), memory)
    b, log_b = train(mlp_task(), stream)
    assert same(a.train_state, b.train_state)
    assert log_a.lines == log_b.lines
    with pytest.raises(ValueError, match="a window of 11 steps"):
        stream.window(0, 11)


def test_in_order_keeps_a_mask_of_its_own():
    """The filled-up rows of the last batch count nothing, on top of the mask that the data has."""
    feed = InOrder({"x": jnp.arange(5), "mask": jnp.array([1.0, 0, 1, 1, 1])}, 4)
    masks = [feed.batch(feed.arrays, i)["mask"].tolist() for i in range(len(feed))]
    assert masks == [[1, 0, 1, 1], [1, 0, 0, 0]]
