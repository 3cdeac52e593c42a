"""Batch normalisation (Ioffe, Szegedy 2015, algorithms 1 and 2): a layer with state, channels last."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def init(
    key: jax.Array | None, features: int, *, dtype: Any = float
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """`({"scale": ones, "bias": zeros}, {"mean": zeros, "var": ones})`, each [features]; the key may be None.

    The state is in float32 at least, whatever the dtype of the parameters.
    """
    del key
    params = {"scale": jnp.ones(features, dtype), "bias": jnp.zeros(features, dtype)}
    wide = jnp.promote_types(params["scale"].dtype, jnp.float32)
    return params, {"mean": jnp.zeros(features, wide), "var": jnp.ones(features, wide)}


def apply(
    params: dict[str, jax.Array],
    state: dict[str, jax.Array],
    x: jax.Array,
    *,
    train: bool,
    decay: Any = 0.9,
    epsilon: Any = 1e-5,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(x - mean) / sqrt(var + epsilon) * scale + bias, for x [batch, ..., features]; and the new state.

    In training, mean and (biased) variance are those of x over all axes but the last, and the state moves:
    running = decay * running + (1 - decay) * batch, with the unbiased variance, as torch has it (its momentum is
    1 - decay). In evaluation they are the state's, which stays. No gradient flows into or out of the state.

    Computed in at least float32, y returned in the dtype of x. Where jit spreads the batch over devices, the
    statistics are still those of the whole batch.

    Args:
      mask: [batch] or more of x's leading axes, nonzero where x counts. What does not count is normalised with the
        rest but adds nothing to the statistics. A batch of fewer than two counted places moves no state.

    Raises:
      ValueError: training on a single place without a mask: it has no variance.

    >>> params, state = init(None, 1)
    >>> y, state = apply(params, state, jnp.array([[1.0], [3.0]]), train=True)
    >>> y.round(3).ravel().tolist(), round(state["mean"].item(), 3), round(state["var"].item(), 3)
    ([-1.0, 1.0], 0.2, 1.1)
    """
    h = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if train:
        mean, var, count = _statistics(h, mask)
        keep = jnp.where(count > 1, decay, 1)
        unbiased = var * (count / jnp.maximum(count - 1, 1))
        new = {
            "mean": _moved(state["mean"], mean, keep),
            "var": _moved(state["var"], unbiased, keep),
        }
    else:
        mean, var, new = *(lax.stop_gradient(state[name]).astype(h.dtype) for name in ("mean", "var")), state
    y = (h - mean) * (lax.rsqrt(var + epsilon) * params["scale"].astype(h.dtype)) + params["bias"].astype(h.dtype)
    return y.astype(x.dtype), new


def _statistics(h, mask):
    axes = tuple(range(h.ndim - 1))
    if mask is None:
        if h.size == h.shape[-1]:
            raise ValueError(f"batch norm in training needs more than one place; x is {h.shape}")
        mean = h.mean(axes)
        return mean, jnp.square(h - mean).mean(axes), h.size // h.shape[-1]
    counts = jnp.broadcast_to((mask != 0).reshape(mask.shape + (1,) * (h.ndim - mask.ndim)), (*h.shape[:-1], 1))
    count = counts.sum(dtype=h.dtype)
    n = jnp.maximum(count, 1)
    mean = jnp.where(counts, h, 0).sum(axes) / n
    return mean, jnp.square(jnp.where(counts, h - mean, 0)).sum(axes) / n, count


def _moved(running, batch, keep):
    batch = lax.stop_gradient(batch).astype(running.dtype)
    keep = jnp.asarray(keep, running.dtype)
    return lax.stop_gradient(keep * running + (1 - keep) * batch)
