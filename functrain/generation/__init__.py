"""Generation: what changes logits before a token is drawn, sampling, and beam search, over one function

    advance(state, tokens [batch, n]) -> (logits [batch, n, vocabulary], state)

which is `jax.tree_util.Partial(model.apply, params)` for a decoder, with `model.remember(batch, length)` for its state.
"""

from functrain.generation.beam import beam_search
from functrain.generation.processors import (
    DRAW,
    Sampling,
    choose,
    min_p,
    occurring,
    repetition_penalty,
    temperature,
    top_k,
    top_p,
    warp,
)
from functrain.generation.sample import begin, generate, left_padded, more, stream, windowed

__all__ = [
    "DRAW",
    "Sampling",
    "beam_search",
    "begin",
    "choose",
    "generate",
    "left_padded",
    "min_p",
    "more",
    "occurring",
    "repetition_penalty",
    "stream",
    "temperature",
    "top_k",
    "top_p",
    "warp",
    "windowed",
]
