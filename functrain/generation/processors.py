"""What is done to logits [batch, vocabulary] before a token is drawn from them.

Each function gives logits in at least float32, -inf for the tokens that it excludes; the likeliest is never excluded.
They are those of the library transformers, and `choose` has them in its order: the repetition penalty, then
temperature, top_k, top_p and min_p.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax, tree_util

from functrain import tree
from functrain.config import Count, NonNegative, Positive, Share, configclass, off


@tree_util.register_pytree_node_class
@configclass
class Sampling:
    """How a token is drawn from logits.

    A pytree of those of its floats that are on: as an argument of a compiled function another temperature is another
    number, not another program.

    >>> len(jax.tree.leaves(Sampling(temperature=0.7, top_k=5))), len(jax.tree.leaves(Sampling(temperature=0.0)))
    (1, 0)
    """

    temperature: NonNegative = 1.0
    """What logits are divided by: below 1 the likely grow likelier; 0 takes the likeliest."""
    top_k: Count = 0
    """Only the k likeliest tokens, and those as likely as the last of them; 0 is off."""
    top_p: Share = 0.0
    """Only the likeliest tokens whose probabilities add up to this; 0 and 1 are off."""
    min_p: Share = 0.0
    """Only tokens at least this share as likely as the likeliest; 0 is off."""
    repetition_penalty: Positive = 1.0
    """What the logits of tokens that occurred are divided by, or times where they are negative; 1 is off."""

    def tree_flatten(self):
        """The floats that are on, as leaves; all else is structure."""
        on = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if self._live(f.name)}
        return tuple(on.values()), (tuple(on), dataclasses.replace(self, **dict.fromkeys(on, 0.0)))

    @classmethod
    def tree_unflatten(cls, structure, leaves):
        """With the leaves in their places."""
        names, rest = structure
        return dataclasses.replace(rest, **dict(zip(names, leaves)))

    def _live(self, name: str) -> bool:
        value = getattr(self, name)
        one_is_off = name in ("top_p", "repetition_penalty") and isinstance(value, (int, float)) and value == 1
        return name != "top_k" and not off(value) and not one_is_off

    @property
    def penalises(self) -> bool:
        """Whether it matters which tokens occurred."""
        return self._live("repetition_penalty")


DRAW = Sampling()
"""Drawn from the model's own distribution."""


def choose(
    logits: jax.Array, sampling: Sampling, *, key: jax.Array | None = None, occurred: jax.Array | None = None
) -> jax.Array:
    """A token for each row: drawn from softmax(`warp`(logits)), or at temperature 0 the likeliest, the first of equals.

    Args:
      logits: [batch, vocabulary].
      key: of the draw; the likeliest needs none.
      occurred: boolean [batch, vocabulary], for the repetition penalty.

    Raises:
      ValueError: a draw without a key, a penalty without `occurred`.

    >>> choose(jnp.array([[0.0, 2.0, 1.0]]), Sampling(temperature=0.0)).tolist()
    [1]
    """
    if sampling.penalises:
        if occurred is None:
            raise ValueError("a repetition penalty needs to know which tokens occurred")
        logits = _penalised(logits, occurred, sampling.repetition_penalty)
    if off(sampling.temperature):
        return logits.argmax(-1).astype(jnp.int32)
    if key is None:
        raise ValueError("sampling needs a key; with temperature 0 it needs none")
    return jax.random.categorical(key, warp(logits, sampling)).astype(jnp.int32)


def warp(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """Temperature, top_k, top_p and min_p, one after another, where they are on: the logits that are drawn from.

    >>> warp(jnp.array([[0.0, 1.0, 2.0, 3.0]]), Sampling(temperature=0.5, top_k=3)).tolist()
    [[-inf, 2.0, 4.0, 6.0]]
    """
    logits = temperature(logits, sampling.temperature)
    if sampling.top_k:
        logits = top_k(logits, sampling.top_k)
    if sampling._live("top_p"):
        logits = top_p(logits, sampling.top_p)
    return min_p(logits, sampling.min_p) if sampling._live("min_p") else logits


def temperature(logits: jax.Array, value: Any) -> jax.Array:
    """logits / value; the value is above 0 (Ackley, Hinton and Sejnowski 1985, eq. 5).

    >>> temperature(jnp.array([[1.0, 2.0]]), 0.5).tolist()
    [[2.0, 4.0]]
    """
    return tree.wide(logits) / value


def top_k(logits: jax.Array, k: int) -> jax.Array:
    """Without the tokens less likely than the k-th likeliest (Fan et al. 2018, section 5.1.3).

    Those as likely as it all stay, so there may be more than k. k from 1; beyond the vocabulary it excludes none.

    >>> top_k(jnp.array([[3.0, 1.0, 2.0, 2.0]]), 2).tolist()
    [[3.0, -inf, 2.0, 2.0]]
    """
    if k < 1:
        raise ValueError(f"top_k {k}: expected at least 1")
    logits = tree.wide(logits)
    last = lax.top_k(logits, min(k, logits.shape[-1]))[0][..., -1:]
    return jnp.where(logits < last, -jnp.inf, logits)


def top_p(logits: jax.Array, p: Any) -> jax.Array:
    """The fewest tokens, the likeliest first, whose probabilities add up to p or more (Holtzman et al. 2020, eq. 2).

    Of equally likely ones those of larger index stay. p in (0, 1]; 1 excludes none that has a probability.

    >>> top_p(jnp.log(jnp.array([[0.5, 0.1, 0.4]])), 0.8).round(2).tolist()[0][1]
    -inf
    """
    logits = tree.wide(logits)
    order = jnp.argsort(logits, axis=-1, stable=True)
    below = jnp.cumsum(jax.nn.softmax(jnp.take_along_axis(logits, order, -1), -1), -1) <= 1 - p
    below = below.at[..., -1].set(False)
    excluded = jnp.put_along_axis(jnp.zeros_like(below), order, below, axis=-1, inplace=False)
    return jnp.where(excluded, -jnp.inf, logits)


def min_p(logits: jax.Array, p: Any) -> jax.Array:
    """Without the tokens whose probability is below p times that of the likeliest (Nguyen et al. 2024, section 3).

    p in [0, 1].

    >>> min_p(jnp.log(jnp.array([[0.5, 0.1, 0.4]])), 0.5).round(2).tolist()[0][1]
    -inf
    """
    logits = tree.wide(logits)
    probabilities = jax.nn.softmax(logits, -1)
    return jnp.where(probabilities < p * probabilities.max(-1, keepdims=True), -jnp.inf, logits)


def repetition_penalty(
    logits: jax.Array, tokens: jax.Array, counted: jax.Array | None = None, penalty: Any = 1.0
) -> jax.Array:
    """The logits of tokens that occurred over the penalty where positive, times it where negative (Keskar et al. 2019).

    Section 4.1 there divides all; the library transformers tells signs apart, so that a penalty above 1 always lowers.

    Args:
      logits: [batch, vocabulary].
      tokens: [batch, n] what occurred, the prompt's among them. One that occurred twice is penalised once.
      counted: [batch, n], nonzero for those that count (not for padding); None counts all.
      penalty: above 0; 1 changes nothing.

    >>> repetition_penalty(jnp.array([[2.0, -2.0, 1.0]]), jnp.array([[0, 1, 2]]), jnp.array([[1, 1, 0]]), 2.0).tolist()
    [[1.0, -4.0, 1.0]]
    """
    return _penalised(logits, occurring(tokens, counted, logits.shape[-1]), penalty)


def occurring(tokens: jax.Array, counted: jax.Array | None, vocabulary: int) -> jax.Array:
    """Which tokens occur: [batch, n], [batch, n] or None (all count) -> boolean [batch, vocabulary].

    >>> occurring(jnp.array([[0, 2, 2]]), jnp.array([[0, 1, 1]]), 4).astype(int).tolist()
    [[0, 0, 1, 0]]
    """
    counted = jnp.ones(tokens.shape, bool) if counted is None else counted != 0
    rows = jnp.arange(len(tokens))[:, None]
    return jnp.zeros((len(tokens), vocabulary), bool).at[rows, tokens].max(counted)


def _penalised(logits, occurred, penalty):
    logits = tree.wide(logits)
    return jnp.where(occurred, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)
