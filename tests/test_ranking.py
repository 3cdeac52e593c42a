"""Ranking metrics against a plain loop over queries and ranks."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functrain import tree
from functrain.metrics import ranking_of


def by_hand(scores, relevant, k, among=None, mask=None):
    """The metrics of every query that counts, in plain Python; then their means."""
    found = {name: [] for name in ("precision", "recall", "hit_rate", "mrr", "map", "ndcg")}
    for q in range(len(scores)):
        items = [i for i in range(len(scores[q])) if among is None or among[q][i]]
        wanted = {i for i in items if relevant[q][i]}
        if not wanted or (mask is not None and not mask[q]):
            continue
        ranking = sorted(items, key=lambda i: (-scores[q][i], i))[:k]
        ranks = [rank for rank, i in enumerate(ranking, 1) if i in wanted]
        found["precision"].append(len(ranks) / k)
        found["recall"].append(len(ranks) / len(wanted))
        found["hit_rate"].append(float(bool(ranks)))
        found["mrr"].append(1 / ranks[0] if ranks else 0.0)
        found["map"].append(sum((n + 1) / rank for n, rank in enumerate(ranks)) / min(len(wanted), k))
        ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(len(wanted), k) + 1))
        found["ndcg"].append(sum(1 / math.log2(rank + 1) for rank in ranks) / ideal)
    return {f"{name}_at_{k}": np.mean(values) for name, values in found.items()}


@pytest.fixture
def queries():
    """Scores of 40 queries for 30 items with many ties, relevant ones (of some none), and which may be ranked."""
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 12, (40, 30)) / 4.0
    relevant = rng.random((40, 30)) < rng.uniform(0, 0.4, (40, 1))
    relevant[:3] = False
    return scores, relevant, rng.random((40, 30)) < 0.6, rng.random(40) < 0.8


@pytest.mark.parametrize("k", [1, 3, 10, 30, 50])
@pytest.mark.usefixtures("float64")
def test_equal_a_plain_loop(queries, k):
    """All items, those that may be ranked, and queries that count: to rounding, under jit, and cut into batches."""
    scores, relevant, among, mask = queries
    for given in ({}, {"among": among}, {"mask": mask}, {"among": among, "mask": mask}):
        expected = by_hand(scores, relevant, k, **given)
        arrays = {name: jnp.asarray(array) for name, array in given.items()}
        found = jax.jit(lambda s, r, a: ranking_of(s, r, k=k, **a))(jnp.asarray(scores), jnp.asarray(relevant), arrays)
        assert found.keys() == expected.keys()
        for name, mean in found.items():
            np.testing.assert_allclose(mean.value, expected[name], rtol=1e-13)
        parts = [
            ranking_of(scores[i : i + 16], jnp.asarray(relevant[i : i + 16]), k=k, **cut(arrays, i))
            for i in range(0, 40, 16)
        ]
        whole = tree.add(tree.add(parts[0], parts[1]), parts[2])
        for name, mean in whole.items():
            np.testing.assert_allclose(mean.value, expected[name], rtol=1e-13)


def cut(arrays, i):
    """Rows i to i + 16 of each."""
    return {name: array[i : i + 16] for name, array in arrays.items()}


def test_known_values():
    """A perfect ranking has 1 in all but precision; the worst has 0; nothing relevant is nothing counted."""
    relevant = jnp.array([[1, 1, 0, 0, 0]])
    best = ranking_of(jnp.array([[5.0, 4, 3, 2, 1]]), relevant, k=3)
    assert {name: round(float(m.value), 6) for name, m in best.items()} == {
        "precision_at_3": 0.666667,
        "recall_at_3": 1.0,
        "hit_rate_at_3": 1.0,
        "mrr_at_3": 1.0,
        "map_at_3": 1.0,
        "ndcg_at_3": 1.0,
    }
    worst = ranking_of(jnp.array([[1.0, 2, 3, 4, 5]]), relevant, k=3)
    assert all(float(m.value) == 0 for m in worst.values())
    none = ranking_of(jnp.ones((2, 5)), jnp.zeros((2, 5)), k=3)
    assert all(np.isnan(m.value) for m in none.values())
    with pytest.raises(ValueError, match="k: found 0"):
        ranking_of(jnp.ones((1, 2)), jnp.ones((1, 2)), k=0)
