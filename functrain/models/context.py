"""What a decoder's token stands in: its position, the tokens it may see, and those that a cache remembers.

Sequences of different lengths share a batch in one of two ways, and `segments`, integers [batch, length], says which:
0 is padding, on whichever side, and tokens of one number are one sequence. One sequence to a row is padding as usual;
several are packed, each with its own positions, none seeing another.

A decoder's state is `{}`, or what `remember` gives: then it goes on from what it was given before.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from functrain.config import ConfigError
from functrain.layers import attention
from functrain.models.base import fitted

M = TypeVar("M")


def fitted_to_text(model: M, inputs: tuple[int, ...], outputs: int) -> M:
    """The config of a language model, fitted to the block and the vocabulary of the data.

    Its own `positions` and `vocabulary`, where it has them, are the sizes of its tables and may be larger.

    Raises:
      ConfigError: the data are no sequences of tokens, or the model is too small for them.
    """
    made: Any = model
    if len(inputs) != 1:
        raise ConfigError(f"model.kind: {made.kind} takes sequences of tokens; the data has {list(inputs)}")
    for name, needed, what in (
        ("positions", inputs[0], f"data.block = {inputs[0]}"),
        ("vocabulary", outputs, f"the {outputs} tokens of the data"),
    ):
        if 0 < getattr(made, name, 0) < needed:
            raise ConfigError(f"model.{name}: found {getattr(made, name)}; too small for {what}")
    return fitted(model, inputs, outputs)


def remember(
    blocks: int, batch: int, length: int, kv_heads: int, head_features: int, dtype: Any = float
) -> dict[str, Any]:
    """The state of a decoder that remembers `length` tokens: `{"cache": {"block0": ...}, "segments": zeros}`.

    A cache serves one sequence to a row: its segments are 0 and 1.

    >>> state = remember(2, 3, 9, 1, 4)
    >>> sorted(state["cache"]), state["segments"].shape
    (['block0', 'block1'], (3, 9))
    """
    cache = {f"block{i}": attention.init_cache(batch, length, kv_heads, head_features, dtype) for i in range(blocks)}
    return {"cache": cache, "segments": jnp.zeros((batch, length), jnp.int32)}


def place(x: jax.Array, segments: jax.Array | None, state: Any) -> tuple[jax.Array, jax.Array | None, Any]:
    """Where the tokens x [batch, length] stand.

    Args:
      segments: integers [batch, length]; None is one sequence to a row, without padding.
      state: the decoder's.

    Returns:
      (positions [length] or [batch, length]; the mask for `attention.attend`, or None where each token may see all;
      the state with the segments of x written). The mask leaves causality to attention.

    >>> positions, mask, _ = place(jnp.zeros((1, 5), int), jnp.array([[1, 1, 2, 2, 0]]), {})
    >>> positions.tolist(), mask[0, 0].astype(int).tolist()[1:3]
    ([[0, 1, 0, 1, 0]], [[1, 1, 0, 0, 0], [0, 0, 1, 1, 0]])
    """
    n = x.shape[-1]
    if "cache" not in state:
        if segments is None:
            return jnp.arange(n), None, state
        mask = (segments[:, :, None] == segments[:, None, :]) & (segments != 0)[:, None, :]
        return within(segments), mask[:, None], state
    start = next(iter(state["cache"].values()))["length"]
    new = jnp.ones(x.shape, jnp.int32) if segments is None else segments.astype(jnp.int32)
    seen = lax.dynamic_update_slice_in_dim(state["segments"], new, start, axis=1)
    before = (state["segments"] != 0).sum(1, keepdims=True)
    positions = jnp.maximum(before + jnp.cumsum(new != 0, axis=1) - 1, 0)
    return positions, (seen != 0)[:, None, None, :], state | {"segments": seen}


def within(segments: jax.Array) -> jax.Array:
    """The position of each token in its own sequence, from 0: integers [..., length] -> the same shape.

    >>> within(jnp.array([0, 0, 3, 3, 3, 1])).tolist()
    [0, 1, 0, 1, 2, 0]
    """
    at = jnp.arange(segments.shape[-1])
    first = jnp.concatenate([jnp.ones_like(segments[..., :1], bool), segments[..., 1:] != segments[..., :-1]], -1)
    return at - lax.cummax(jnp.where(first, at, 0), axis=segments.ndim - 1)
