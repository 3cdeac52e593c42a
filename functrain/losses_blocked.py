"""Softmax cross-entropy of a last linear layer, by blocks of the vocabulary: logits of all tokens are never held.

    losses, likeliest = by_tokens(hidden, table, labels)     of the logits hidden @ table.T, made a block at a time
    cross_entropy_of(hidden, table, labels) -> Mean          `functrain.losses.cross_entropy` of them

Forward, a scan over blocks keeps a running maximum and a running sum for each token (Milakov and Gimelshein 2018,
algorithm 3); backward, each block's logits are made again, and with the sum known their softmax is at hand. That is one
product more than with all logits held: four in place of three. Sums and logits are in at least float32; products take
hidden states, table and the slope of the logits in the dtype of the table.

The rule is one for the way back alone: forward mode (Hessian products, curvature) is refused by jax, and wants the
plain loss.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from functrain.config import off
from functrain.metrics import Mean, mean_of

BLOCK = 8192
"""Classes in a block, where nothing else is said."""


def cross_entropy_of(
    hidden: jax.Array,
    table: jax.Array,
    labels: jax.Array,
    *,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    smoothing: Any = 0.0,
    block: int = BLOCK,
) -> Mean:
    """The mean of -log softmax(hidden @ table.T + bias)[label].

    Args:
      mask: weights that lead the labels' shape; None counts all.
      others: those of `by_tokens`.

    >>> hidden, table = jnp.ones((2, 3)), jnp.zeros((4, 3))
    >>> cross_entropy_of(hidden, table, jnp.array([0, 3]), block=2).value.round(4)   # log(4)
    np.float32(1.3863)
    """
    return mean_of(by_tokens(hidden, table, labels, bias=bias, smoothing=smoothing, block=block)[0], mask)


def by_tokens(
    hidden: jax.Array,
    table: jax.Array,
    labels: jax.Array,
    *,
    bias: jax.Array | None = None,
    smoothing: Any = 0.0,
    block: int = BLOCK,
) -> tuple[jax.Array, jax.Array]:
    """(cross-entropy of each token [batch, ...] in at least float32, its likeliest class [batch, ...] int32).

    Args:
      hidden: [batch, ..., features]; taken in the dtype of the table.
      table: [vocabulary, features]: an embedding that is the head too, or a head's kernel transposed.
      labels: [batch, ...] integers in [0, vocabulary); the loss of any other is nan.
      bias: [vocabulary] or None.
      smoothing: the share of each target spread evenly over all classes; a Python 0 leaves the term out.
      block: at most so many classes at once; blocks are made of one size, and the last may overlap the one before it.

    Raises:
      ValueError: shapes that do not fit one another, or a block below 1.

    >>> losses, likeliest = by_tokens(jnp.eye(3), 2 * jnp.eye(3), jnp.array([0, 1, 1]), block=2)
    >>> losses.round(2).tolist(), likeliest.tolist()
    ([0.23999999463558197, 0.23999999463558197, 2.240000009536743], [0, 1, 2])
    """
    if table.ndim != 2 or hidden.shape[-1:] != table.shape[1:]:
        raise ValueError(f"hidden {hidden.shape} and table {table.shape}: expected [..., n] and [vocabulary, n]")
    if hidden.shape[:-1] != labels.shape:
        raise ValueError(f"hidden {hidden.shape} and labels {labels.shape}: expected labels {hidden.shape[:-1]}")
    if bias is not None and bias.shape != table.shape[:1]:
        raise ValueError(f"bias {bias.shape} and table {table.shape}: expected bias {table.shape[:1]}")
    if block < 1:
        raise ValueError(f"block: found {block}; expected at least 1")
    rows = hidden.reshape(-1, hidden.shape[-1]).astype(table.dtype)
    share = None if off(smoothing) else jnp.asarray(smoothing, _wide(table))
    found: Any = _by_rows(_cut(len(table), block), rows, table, bias, share, labels.reshape(-1))
    return found[0].reshape(labels.shape), found[1].reshape(labels.shape)


class _Cut(NamedTuple):
    """A vocabulary cut into blocks of one size."""

    classes: int
    size: int
    count: int

    @property
    def firsts(self) -> jax.Array:
        """The first class that is each block's own."""
        return self.size * jnp.arange(self.count, dtype=jnp.int32)


def _cut(classes: int, block: int) -> _Cut:
    """Blocks about even, so that little is computed twice, and a multiple of 128 where that fits."""
    even = math.ceil(classes / math.ceil(classes / block))
    size = min(classes, block, 128 * math.ceil(even / 128))
    return _Cut(classes, size, math.ceil(classes / size))


class _Block(NamedTuple):
    """A block: where it begins, its part of the table, logits [tokens, size], which of its classes are the label's
    [tokens, size], and which are its own rather than the block's before it ([size], or None: all).
    """

    start: jax.Array
    rows: jax.Array
    logits: jax.Array
    hit: jax.Array
    own: jax.Array | None

    def of_own(self, x: jax.Array, other: Any) -> jax.Array:
        """x for the block's own classes, and `other` elsewhere."""
        return x if self.own is None else jnp.where(self.own, x, other)


def _block(cut, hidden, table, bias, labels, first):
    start = jnp.minimum(first, cut.classes - cut.size)
    rows = lax.dynamic_slice_in_dim(table, start, cut.size)
    logits = lax.dot_general(hidden, rows, (((1,), (1,)), ((), ())), preferred_element_type=_wide(table))
    if bias is not None:
        logits += lax.dynamic_slice_in_dim(bias, start, cut.size).astype(logits.dtype)
    classes = start + jnp.arange(cut.size)
    own = None if cut.classes % cut.size == 0 else classes >= first
    return _Block(start, rows, logits, classes == labels[:, None], own)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_rows(cut, hidden, table, bias, share, labels):
    return _forward(cut, hidden, table, bias, share, labels)[0]


def _forward(cut, hidden, table, bias, share, labels):
    """((losses, likeliest classes), what the way back needs)."""
    zero = jnp.zeros(len(labels), _wide(table))

    def step(carry, first):
        most, likeliest, total, picked, every = carry
        block = _block(cut, hidden, table, bias, labels, first)
        logits = block.of_own(block.logits, -jnp.inf)
        here = logits.max(-1)
        likeliest = jnp.where(here > most, block.start + lax.argmax(logits, 1, jnp.int32), likeliest)
        new = jnp.maximum(most, here)
        shift = jnp.where(new > -jnp.inf, new, 0)  # a block may be -inf throughout
        total = total * jnp.exp(most - shift) + jnp.exp(logits - shift[:, None]).sum(-1)
        picked += jnp.where(block.hit, block.of_own(logits, 0), 0).sum(-1)
        if share is not None:
            every += block.of_own(logits, 0).sum(-1)
        return (new, likeliest, total, picked, every), None

    start = (zero - jnp.inf, jnp.zeros(len(labels), jnp.int32), zero, zero, zero)
    (most, likeliest, total, picked, every), _ = lax.scan(step, start, cut.firsts)
    whole = most + jnp.log(total)
    picked = jnp.where((labels >= 0) & (labels < cut.classes), picked, jnp.nan)
    beyond = None if share is None else every / cut.classes - picked  # of the mean logit, over the label's
    losses = whole - (picked if share is None else picked + share * beyond)
    return (losses, likeliest), (hidden, table, bias, share, labels, whole, beyond)


def _backward(cut, saved, cotangents):
    hidden, table, bias, share, labels, whole, beyond = saved
    slope, _ = cotangents

    def step(carry, first):
        by_hidden, by_table, by_bias = carry
        block = _block(cut, hidden, table, bias, labels, first)
        target = block.hit if share is None else (1 - share) * block.hit + share / cut.classes
        by_logits = slope[:, None] * block.of_own(jnp.exp(block.logits - whole[:, None]) - target, 0)
        low, wide = by_logits.astype(table.dtype), by_logits.dtype
        by_hidden += lax.dot_general(low, block.rows, (((1,), (0,)), ((), ())), preferred_element_type=wide)
        by_rows = lax.dot_general(low, hidden, (((0,), (0,)), ((), ())), preferred_element_type=wide)
        by_table = lax.dynamic_update_slice_in_dim(by_table, by_rows.astype(table.dtype), block.start, 0)
        if bias is not None:
            summed = by_logits.sum(0).astype(bias.dtype)
            by_bias = lax.dynamic_update_slice_in_dim(by_bias, summed, block.start, 0)
        return (by_hidden, by_table, by_bias), None

    nothing = (
        jnp.zeros(hidden.shape, whole.dtype),
        jnp.zeros_like(table),
        None if bias is None else jnp.zeros_like(bias),
    )
    # From the last block on: it writes zeros over what is the own of the one before it, which then writes them itself.
    (by_hidden, by_table, by_bias), _ = lax.scan(step, nothing, cut.firsts, reverse=True)
    by_share = None if share is None else -(slope * beyond).sum()
    return by_hidden.astype(hidden.dtype), by_table, by_bias, by_share, None


_by_rows.defvjp(_forward, _backward)


def _wide(x):
    return jnp.promote_types(x.dtype, jnp.float32)
