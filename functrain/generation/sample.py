"""Tokens one after another: `generate` all at once, or `stream` them while they are made.

`advance(state, tokens [batch, n]) -> (logits [batch, n, vocabulary], state)` goes on from what the state remembers.
Give it as `jax.tree_util.Partial(model.apply, params)`: then the parameters are an argument of the compiled programs.
Any other function is part of them, and one that holds arrays has them compiled in.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from functrain.generation.processors import DRAW, Sampling, choose, occurring

Advance = Callable[..., tuple[jax.Array, Any]]


class Going(NamedTuple):
    """Where a generation stands.

    state: what `advance` remembers, of all tokens but the last.
    token: [batch] the last one.
    made: how many were chosen in each row, and of those `real` [batch] up to the row's end.
    done: [batch] whether a row has met its end.
    occurred: [batch, vocabulary], where a penalty needs it.
    """

    state: Any
    token: jax.Array
    made: jax.Array
    real: jax.Array
    done: jax.Array
    occurred: jax.Array | None


def generate(
    advance: Advance,
    state: Any,
    prompt: Any,
    *,
    length: int,
    end: Any = None,
    key: jax.Array | None = None,
    sampling: Sampling = DRAW,
    segments: Any = None,
    padding: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """`length` tokens that go on from each prompt, by one call of `advance` on the prompt and one for each token.

    Compiled once for each shape; it may stand inside another compiled function.

    Args:
      advance, state: see the module's first lines; the state has room for prompt and length, less one.
      prompt: integers [batch, n]. Where prompts differ in length, with padding before the shorter ones.
      length: how many; fewer calls where every row has met its end.
      end: the token that ends a row; None is no such token.
      key: of the draws; position i uses fold_in(key, i). Temperature 0 needs none.
      sampling: see `Sampling`.
      segments: [batch, n], 0 where the prompt is padding, else 1; goes to `advance` with the prompt. None has none.
      padding: the token that stands after a row's end.

    Returns:
      (tokens [batch, length], how many of each row are real [batch], its end included).

    Raises:
      ValueError: length below 1, an empty prompt, sampling without a key.

    >>> def count(state, tokens):  # after each token the next larger one
    ...     return jax.nn.one_hot(tokens + 1, 9), state
    >>> tokens, real = generate(count, {}, [[2], [4]], length=4, end=7, sampling=Sampling(temperature=0.0))
    >>> tokens.tolist(), real.tolist()
    ([[3, 4, 5, 6], [5, 6, 7, 0]], [4, 3])
    """
    _check(length)
    given = {"end": end, "key": key, "sampling": sampling, "padding": padding}
    going = begin(advance, state, prompt, segments=segments, **given)
    first = going.token[:, None] + 0  # a copy: `more` takes the buffers of `going`
    if length == 1:
        return first, going.real
    tokens, going = more(advance, going, length - 1, block=length - 1, **given)
    return jnp.concatenate([first, tokens], 1), going.real


def stream(
    advance: Advance,
    state: Any,
    prompt: Any,
    *,
    length: int,
    block: int = 16,
    end: Any = None,
    key: jax.Array | None = None,
    sampling: Sampling = DRAW,
    segments: Any = None,
    padding: int = 0,
) -> Iterator[Any]:
    """What `generate` makes of the same arguments, token for token, in blocks on the host [batch, up to `block`].

    The first holds one token, so that it is there as soon as the prompt is read; the others are a dispatch each of one
    program, for any length. It ends where every row has met its end.

    Args:
      block: how many tokens a dispatch.
      others: those of `generate`.

    >>> def count(state, tokens):
    ...     return jax.nn.one_hot(tokens + 1, 9), state
    >>> [b.tolist() for b in stream(count, {}, [[2]], length=4, block=2, sampling=Sampling(temperature=0.0))]
    [[[3]], [[4, 5]], [[6]]]
    """
    _check(length)
    given = {"end": end, "key": key, "sampling": sampling, "padding": padding}
    going = begin(advance, state, prompt, segments=segments, **given)
    yield jax.device_get(going.token)[:, None]
    made = 1
    while made < length and not jax.device_get(going.done).all():
        tokens, going = more(advance, going, min(block, length - made), block=block, **given)
        now = int(going.made)
        yield jax.device_get(tokens)[:, : now - made]
        made = now


def begin(
    advance: Advance,
    state: Any,
    prompt: Any,
    *,
    segments: Any = None,
    end: Any = None,
    key: jax.Array | None = None,
    sampling: Sampling = DRAW,
    padding: int = 0,
) -> Going:
    """The prompt read, and the first token chosen; see `generate` for the arguments."""
    prompt = jnp.asarray(prompt, jnp.int32)
    if prompt.ndim != 2 or not prompt.size:
        raise ValueError(f"a prompt of shape {prompt.shape}; expected [batch, n], one token or more in each row")
    segments = None if segments is None else jnp.asarray(segments, jnp.int32)
    return _begin(as_argument(advance), state, prompt, segments, end, key, sampling, padding)


def more(
    advance: Advance,
    going: Going,
    count: Any,
    *,
    block: int,
    end: Any = None,
    key: jax.Array | None = None,
    sampling: Sampling = DRAW,
    padding: int = 0,
) -> tuple[jax.Array, Going]:
    """(tokens [batch, block], what to go on from): `count` tokens more, which may be traced, at most `block`.

    Fewer where every row has met its end; `made` says how many. What stands after them is padding. The buffers of
    `going` are used again: go on from what is returned. The other arguments are those of `generate`.
    """
    return _more(as_argument(advance), going, jnp.asarray(count, jnp.int32), end, key, sampling, padding, block=block)


@jax.jit
def _begin(advance, state, prompt, segments, end, key, sampling, padding):
    logits, state = advance(state, prompt) if segments is None else advance(state, prompt, segments)
    batch, vocabulary = logits.shape[0], logits.shape[-1]
    occurred = occurring(prompt, segments, vocabulary) if sampling.penalises else None
    zeros = jnp.zeros(batch, jnp.int32)
    going = Going(state, zeros, jnp.int32(0), zeros, jnp.zeros(batch, bool), occurred)
    return _chosen(going, state, logits, end, key, sampling, padding)


@functools.partial(jax.jit, static_argnames="block", donate_argnames="going")
def _more(advance, going, count, end, key, sampling, padding, *, block):
    def unfinished(carry):
        going, _, at = carry
        return (at < count) & ~going.done.all()

    def one(carry):
        going, tokens, at = carry
        logits, state = advance(going.state, going.token[:, None])
        going = _chosen(going, state, logits, end, key, sampling, padding)
        return going, tokens.at[:, at].set(going.token), at + 1

    tokens = jnp.full((len(going.token), block), padding, jnp.int32)
    going, tokens, _ = lax.while_loop(unfinished, one, (going, tokens, jnp.int32(0)))
    return tokens, going


def _chosen(going, state, logits, end, key, sampling, padding) -> Going:
    """A token more in each row that goes on, by the last of the logits."""
    key = None if key is None else jax.random.fold_in(key, going.made)
    token = choose(logits[:, -1], sampling, key=key, occurred=going.occurred)
    token = jnp.where(going.done, jnp.int32(padding), token)
    occurred = going.occurred
    if occurred is not None:
        occurred = occurred.at[jnp.arange(len(token)), token].set(True)
    done = going.done if end is None else going.done | (token == end)
    return Going(state, token, going.made + 1, going.real + ~going.done, done, occurred)


def left_padded(prompts: Sequence[Sequence[int]], padding: int = 0) -> tuple[jax.Array, jax.Array]:
    """Prompts of different lengths as one array, padding before the shorter: (tokens, segments), each [batch, longest].

    >>> tokens, segments = left_padded([[5, 6, 7], [8]])
    >>> tokens.tolist(), segments.tolist()
    ([[5, 6, 7], [0, 0, 8]], [[1, 1, 1], [0, 0, 1]])
    """
    longest = max(map(len, prompts))
    tokens = [[padding] * (longest - len(p)) + list(map(int, p)) for p in prompts]
    segments = [[0] * (longest - len(p)) + [1] * len(p) for p in prompts]
    return jnp.array(tokens, jnp.int32), jnp.array(segments, jnp.int32)


def windowed(apply: Callable[[jax.Array], jax.Array], seen: Any, block: int) -> tuple[Advance, dict[str, jax.Array]]:
    """(advance, state) of a model that remembers nothing: each call computes the last `block` tokens anew.

    Args:
      apply: tokens [batch, block] -> logits [batch, block, vocabulary], causal: a token's logits come from it and
        those before it. As a `Partial` of its parameters, like `advance`.
      seen: integers [batch, n], n from 0: what the state remembers at first. It does not change the programs.

    At most `block` tokens at once. Short of `block` the window holds tokens to come, which a causal model does not see.

    >>> advance, state = windowed(lambda x: jax.nn.one_hot(x + 1, 9), [[0, 1]], 3)
    >>> generate(advance, state, [[2]], length=4, sampling=Sampling(temperature=0.0))[0].tolist()
    [[3, 4, 5, 6]]
    """
    seen = jnp.asarray(seen, jnp.int32)[:, -block:]
    length = seen.shape[1]
    state = {"window": jnp.pad(seen, ((0, 0), (0, block - length))), "length": jnp.int32(length)}
    return Partial(_windowed, as_argument(apply)), state


def _windowed(apply, state, tokens):
    batch, block = state["window"].shape
    new = tokens.shape[1]
    if new > block:
        raise ValueError(f"{new} tokens at once; the window has {block}")
    room = jnp.concatenate([state["window"], jnp.zeros((batch, new), jnp.int32)], 1)
    room = lax.dynamic_update_slice_in_dim(room, tokens, state["length"], 1)
    length = state["length"] + new
    window = lax.dynamic_slice_in_dim(room, jnp.maximum(length - block, 0), block, 1)
    length = jnp.minimum(length, block)
    logits = lax.dynamic_slice_in_dim(apply(window), length - new, new, 1)
    return logits, {"window": window, "length": length}


def as_argument(f):
    """A callable that is a pytree, as the arguments of a compiled function have to be."""
    return f if isinstance(f, Partial) else Partial(f)


def _check(length):
    if length < 1:
        raise ValueError(f"length {length}: expected at least 1")
