"""How good a ranking is: what stands among the first k of the items that are put in order for a query or a user."""

import jax
import jax.numpy as jnp

from functrain.metrics.accumulators import Mean, mean_of


def ranking_of(
    scores: jax.Array,
    relevant: jax.Array,
    *,
    k: int = 10,
    among: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> dict[str, Mean]:
    """Metrics of the k items with the highest scores, means over the queries that have a relevant item.

    With r of a query's items relevant, and rel(i) 1 where the i-th of the ranking is one of them:

        precision_at_k   sum of rel(i) / k
        recall_at_k      sum of rel(i) / r
        hit_rate_at_k    whether there is one
        mrr_at_k         1 / rank of the first, 0 where none is among the k
        map_at_k         sum over i of rel(i) (precision at i) / min(r, k)
        ndcg_at_k        sum of rel(i) / log2(i + 1), over that of a ranking with the relevant items first
                         (Jarvelin and Kekalainen 2002, with gains of 0 and 1)

    Of equal scores the item with the lower number comes first. Of fewer than k items all are ranked, and precision is
    still over k. A sampled evaluation gives the scores of its candidates alone; sampled metrics and full ones do not
    compare, nor need they put models in the same order (Krichene and Rendle 2020).

    scores: [queries, items], not nan.
    relevant: [queries, items], true or 1 for the items that should come first.
    among: [queries, items], which ones may be in the ranking at all, as those that a user does not have yet; None is
      all. Relevant ones that may not count nowhere.
    mask: [queries], 1 for those that count.

    >>> scores = jnp.array([[0.9, 0.8, 0.1, 0.7]])
    >>> found = ranking_of(scores, jnp.array([[0, 1, 0, 1]]), k=2)
    >>> {name: round(float(mean.value), 4) for name, mean in found.items()}   # item 1 is second, item 3 is missed
    {'precision_at_2': 0.5, 'recall_at_2': 0.5, 'hit_rate_at_2': 1.0,
     'mrr_at_2': 0.5, 'map_at_2': 0.25, 'ndcg_at_2': 0.3869}

    Raises:
      ValueError: k is below 1.
    """
    if k < 1:
        raise ValueError(f"k: found {k}; expected at least 1")
    relevant = relevant.astype(bool)
    if among is not None:
        relevant &= among.astype(bool)
        scores = jnp.where(among, scores, -jnp.inf)
    _, first = jax.lax.top_k(scores, min(k, scores.shape[-1]))  # of equal ones the lower index first
    dtype = jnp.promote_types(scores.dtype, jnp.float32)
    hits = jnp.take_along_axis(relevant, first, -1).astype(dtype)
    rank = jnp.arange(1, hits.shape[-1] + 1, dtype=dtype)
    there = relevant.sum(-1)
    best = jnp.minimum(there, k).astype(dtype)
    counts = (there > 0).astype(dtype) * (1 if mask is None else mask)
    discount = 1 / jnp.log2(rank + 1)
    ideal = jnp.where(rank <= best[:, None], discount, 0).sum(-1)
    at_least_one = jnp.maximum(best, 1)  # what has none is not counted, and not nan either
    each = {
        "precision": hits.sum(-1) / k,
        "recall": hits.sum(-1) / jnp.maximum(there, 1),
        "hit_rate": hits.max(-1),
        "mrr": (hits / rank).max(-1),
        "map": (hits * hits.cumsum(-1) / rank).sum(-1) / at_least_one,
        "ndcg": (hits * discount).sum(-1) / jnp.where(ideal > 0, ideal, 1),
    }
    return {f"{name}_at_{k}": mean_of(values, counts) for name, values in each.items()}
