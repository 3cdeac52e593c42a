"""Beam search: the likeliest sequences, as far as a few kept at each step tell."""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from functrain import tree
from functrain.generation.sample import Advance, as_argument

_NEVER = -1e9
"""A score below every real one; not -inf, for differences are taken."""


class _Search(NamedTuple):
    """Where a search stands: sequences [batch, beams, length] that go on, and the best that have ended."""

    state: Any  # of batch * beams rows, without the last token
    made: jax.Array
    running: jax.Array
    running_scores: jax.Array  # [batch, beams] sums of log p
    ended: jax.Array
    ended_scores: jax.Array  # [batch, beams] over length ** penalty
    is_ended: jax.Array  # [batch, beams]
    hopeful: jax.Array  # [batch] whether what goes on may still beat what ended


def beam_search(
    advance: Advance,
    state: Any,
    first: Any,
    *,
    beams: int,
    length: int,
    end: int | None = None,
    length_penalty: Any = 1.0,
    early_stopping: bool | Literal["never"] = False,
    segments: Any = None,
    padding: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """The best `beams` sequences of at most `length` tokens after each prompt, by sum log p / tokens ** length_penalty.

    At each step the best 2 * beams continuations are looked at: those among the first `beams` that end are kept where
    they are better than those kept before, the best `beams` that do not end go on (the search of the library
    transformers, after Graves 2012, section 2.3, and Wu et al. 2016, section 7, with a plainer penalty). One beam
    takes the likeliest token at each step.

    Args:
      advance, state: as of `functrain.generation.generate`, of batch rows. Every array of the state with an axis is
        repeated and gathered along its first; scalars stay.
      first: integers [batch, n]: the prompt, or the token that begins a translation.
      length: at most so many tokens are made, the end among them.
      end: the token that ends a sequence; None is no such token.
      length_penalty: above 0 favours long sequences, below 0 short ones.
      early_stopping: True stops at `beams` ended sequences; False where the best that goes on, as it is, is no better
        than the worst of them; "never" where it cannot become better (for a penalty above 0: at full length).
      segments, padding: as of `generate`; padding stands after a sequence's end.

    Returns:
      (tokens [batch, beams, length], scores [batch, beams]), the best first. Compiled once for each shape.

    Raises:
      ValueError: beams or length below 1, an empty prompt.

    >>> table = jnp.log(jnp.array([[0.0, 0.6, 0.4], [0.5, 0.25, 0.25], [0.0, 0.1, 0.9]]))
    >>> advance = lambda state, tokens: (table[tokens], state)
    >>> tokens, scores = beam_search(advance, {}, [[0]], beams=2, length=2)
    >>> tokens.tolist(), [f"{p:.2f}" for p in jnp.exp(2 * scores)[0].tolist()]   # 0.4 * 0.9 and 0.6 * 0.5
    ([[[2, 2], [1, 0]]], ['0.36', '0.30'])
    """
    first = jnp.asarray(first, jnp.int32)
    if beams < 1 or length < 1:
        raise ValueError(f"beams {beams}, length {length}: expected at least 1 of each")
    if first.ndim != 2 or not first.size:
        raise ValueError(f"a prompt of shape {first.shape}; expected [batch, n], one token or more in each row")
    segments = None if segments is None else jnp.asarray(segments, jnp.int32)
    return _beam_search(
        as_argument(advance),
        state,
        first,
        segments,
        length_penalty,
        beams=beams,
        length=length,
        end=end,
        early="always" if beams == 1 or early_stopping is True else early_stopping or "seldom",
        padding=padding,
    )


@functools.partial(jax.jit, static_argnames=("beams", "length", "end", "early", "padding"))
def _beam_search(advance, state, first, segments, penalty, *, beams, length, end, early, padding):
    batch = len(first)
    logits, state = advance(state, first) if segments is None else advance(state, first, segments)
    wide = jnp.promote_types(logits.dtype, jnp.float32)

    def select(search: _Search, logits) -> _Search:
        """One token more: logits [batch, beams, vocabulary] of what comes after each running sequence."""
        vocabulary = logits.shape[-1]
        scores = jax.nn.log_softmax(tree.wide(logits), -1) + search.running_scores[..., None]
        candidates = min(2 * beams, beams * vocabulary)
        scores, at = lax.top_k(scores.reshape(batch, -1), candidates)
        beam, token = at // vocabulary, (at % vocabulary).astype(jnp.int32)
        sequences = _take(search.running, beam).at[:, :, search.made].set(token)
        made = search.made + 1
        stops = jnp.broadcast_to(made == length, token.shape)
        if end is not None:
            stops |= token == end

        open_scores, going = lax.top_k(jnp.where(stops, scores + _NEVER, scores), beams)
        rows = (_take(beam, going) + beams * jnp.arange(batch)[:, None]).reshape(-1)
        state = _rows(search.state, rows)

        ends = stops & (jnp.arange(candidates) < beams) & search.hopeful[:, None]
        if early == "always":
            ends &= ~search.is_ended.all(1, keepdims=True)
        scores = scores / made.astype(wide) ** penalty
        scores = jnp.where(ends, scores, _NEVER)
        ended_scores, best = lax.top_k(jnp.concatenate([search.ended_scores, scores], 1), beams)
        ended = _take(jnp.concatenate([search.ended, sequences], 1), best)
        is_ended = _take(jnp.concatenate([search.is_ended, ends], 1), best)

        reach = jnp.where(penalty > 0, length, made) if early == "never" else made
        hope = open_scores[:, :1] / reach.astype(wide) ** penalty
        worst = jnp.where(is_ended, ended_scores[:, -1:], _NEVER)
        hopeful = search.hopeful & (hope > worst).any(1)
        return _Search(state, made, _take(sequences, going), open_scores, ended, ended_scores, is_ended, hopeful)

    def unfinished(search: _Search):
        full = search.is_ended.all() & (early == "always")
        return (search.made < length) & search.hopeful.any() & ~full

    def one(search: _Search) -> _Search:
        last = lax.dynamic_index_in_dim(search.running, search.made - 1, 2, keepdims=False)
        logits, state = advance(search.state, last.reshape(-1, 1))
        return select(search._replace(state=state), logits[:, -1].reshape(batch, beams, -1))

    empty = jnp.full((batch, beams, length), padding, jnp.int32)
    none = jnp.full((batch, beams), _NEVER, wide)
    search = _Search(
        _rows(state, jnp.repeat(jnp.arange(batch), beams)),
        jnp.int32(0),
        empty,
        none.at[:, 0].set(0),  # the beams are one at first
        empty,
        none,
        jnp.zeros((batch, beams), bool),
        jnp.ones(batch, bool),
    )
    search = select(search, jnp.repeat(logits[:, -1:], beams, 1))
    search = lax.while_loop(unfinished, one, search)
    return search.ended, search.ended_scores


def _take(x, index):
    """x [batch, n, ...] and index [batch, m] -> x at those, [batch, m, ...]."""
    return jnp.take_along_axis(x, index.reshape(index.shape + (1,) * (x.ndim - 2)), axis=1)


def _rows(state, rows):
    """The state with its rows gathered; scalars as they are."""
    return jax.tree.map(lambda x: x[rows] if x.ndim else x, state)
