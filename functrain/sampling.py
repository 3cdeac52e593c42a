"""Text from a trained language model: what `functrain sample` does.

A model that can `remember` reads the prompt once and then a token at a time, as far as its block reaches; then it goes
on from the last half of what it saw. Any other computes the last `block` tokens anew for each token.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

from functrain import tree
from functrain.config import LARGEST, ConfigError
from functrain.data.base import reader
from functrain.data.dataset import read_text
from functrain.generation import DRAW, Sampling, beam_search, left_padded, stream, windowed
from functrain.models.lora import plain
from functrain.precision import dtype_of
from functrain.trained import Trained

SEPARATOR = "-" * 20
"""The line between one text and the next."""
UNKNOWN = "\ufffd"
"""What decoding makes of bytes that are no character, or not yet one."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is asked for: `tokens` after each prompt, `number` texts of each, by `beams` if any, else by `sampling`."""

    tokens: int = 200
    number: int = 1
    seed: int = 0
    beams: int = 0
    sampling: Sampling = DRAW


def wanted(
    *, tokens: int = 200, number: int = 1, seed: int = 0, beams: int | None = None, **sampling: float | None
) -> Wanted:
    """What is asked for, checked; None is what was not asked for.

    Raises:
      ConfigError: a value out of its range, or beams and numbers for drawing together.

    >>> wanted(tokens=5, top_k=3, temperature=None).sampling.top_k
    3
    >>> wanted(temperature=-1.0)
    Traceback (most recent call last):
    ...
    functrain.config.ConfigError: --temperature: found -1.0; expected a number from 0
    """
    given = {name: value for name, value in sampling.items() if value is not None}
    for name, value, legal, expected in (
        ("tokens", tokens, 1 <= tokens <= LARGEST, "a whole number from 1"),
        ("number", number, 1 <= number <= LARGEST, "a whole number from 1"),
        ("seed", seed, 0 <= seed <= LARGEST, "a whole number from 0"),
        ("beams", beams, beams is None or 1 <= beams <= LARGEST, "a whole number from 1"),
        *((name, value, LEGAL[name][0](value), LEGAL[name][1]) for name, value in given.items()),
    ):
        if not legal:
            raise ConfigError(f"{_flag(name)}: found {value}; expected {expected}")
    if beams is not None and given:
        raise ConfigError(f"--beams: looks for the likeliest text; {_flag(next(iter(given)))} is for drawing one")
    if beams is not None and number > beams:
        raise ConfigError(f"--number: found {number}; there are as many texts as --beams = {beams}")
    return Wanted(tokens, number, seed, beams or 0, Sampling(**given))  # pyright: ignore[reportArgumentType]


LEGAL: dict[str, tuple[Callable[[Any], bool], str]] = {
    "temperature": (lambda v: math.isfinite(v) and v >= 0, "a number from 0"),
    "top_k": (lambda v: 1 <= v <= LARGEST, "a whole number from 1"),
    "top_p": (lambda v: 0 < v <= 1, "a number above 0, at most 1"),
    "min_p": (lambda v: 0 <= v <= 1, "a number from 0 to 1"),
    "repetition_penalty": (lambda v: math.isfinite(v) and v > 0, "a number above 0"),
}
"""What may be asked of `Sampling` by the command: a test of each value, and what it expects in words."""


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def read_prompts(path: Path) -> list[str]:
    """The lines of a text file, a prompt each; empty ones are left out.

    Raises:
      ConfigError: no such file, not UTF-8, no line.
    """
    lines = read_text(f"--file: {path}", path).splitlines()
    if not any(lines):
        raise ConfigError(f"--file: {path}: holds no prompt; expected one a line")
    return [line for line in lines if line]


class Writer:
    """A trained language model that goes on from prompts.

    name: of the run, for messages.

    Raises:
      ConfigError: the run is no language model.
    """

    def __init__(self, model: Trained, name: Any = "the run"):
        config = model.config
        if config.task.kind != "language":
            raise ConfigError(f"{name}: task.kind = {config.task.kind!r} goes on from no text; expected 'language'")
        data: Any = reader(config.data)
        if not hasattr(data, "encode"):
            raise ConfigError(f"{name}: data.kind = {data.kind!r} does not say what text its tokens are")
        self.data, self.block = data, data.block
        self._model: Any = model.task.model
        learner, player = model.task.learner, model.train_state.players["model"]
        params, state, self._dtype = learner.weights(player), model.train_state.state, float
        self._model, params, state = plain(self._model, params, state)
        if learner.precision.kind != "float32":  # all at once, not at each token; autocast's products are in that too
            self._dtype = dtype_of(learner.precision)
            params = tree.cast(params, self._dtype)
        self._remembers, self._state = hasattr(self._model, "remember"), state
        # Rows of a larger table that stand for no token of the data are never drawn.
        apply, known = self._model.apply, getattr(self._model, "outputs", 0) or None

        def advance(params, state, tokens, *segments):
            logits, state = apply(params, state, tokens, *segments)
            return logits[..., :known], state

        self._advance = Partial(advance, params)
        self._logits = Partial(lambda params, state, window: advance(params, state, window)[0], params, state)

    def encode(self, prompt: str, where: str = "--prompt") -> np.ndarray:
        """A prompt's last `block` tokens; of an empty one a newline, or the vocabulary's first where it has no newline.

        Raises:
          ConfigError: a character is not in the vocabulary.
        """
        try:
            tokens = np.asarray(self.data.encode(prompt or "\n"), np.int32)
        except ConfigError as error:
            if prompt:
                raise ConfigError(f"{where}: {error}") from None
            return np.zeros(1, np.int32)
        if not prompt and self.data.decode(tokens) != "\n":
            return np.zeros(1, np.int32)
        return tokens[-self.block :]

    def tokens(
        self, prompt: np.ndarray, wanted: Wanted, key: jax.Array, lengths: Sequence[int] = ()
    ) -> Iterator[np.ndarray]:
        """`wanted.tokens` tokens that go on from a prompt's, in blocks.

        lengths: of all the prompts that there will be, so that what is compiled serves them all.
        """
        seen, left, part = prompt, wanted.tokens, 0
        lengths = [*lengths, len(prompt)]
        room = self.block + max(lengths) - min(lengths)
        while left:
            # The last token is chosen, not read: so many go into the block, and one more.
            length = min(left, self.block + 1 - len(seen)) if self._remembers else left
            advance, state, tokens, segments = self._start(seen, room, 0 if part else max(lengths))
            given = {"key": jax.random.fold_in(key, part), "sampling": wanted.sampling, "segments": segments}
            for block in stream(advance, state, tokens, length=length, **given):
                yield block[0]
                seen = np.concatenate([seen, block[0]])
            seen, left, part = seen[-self._half :], left - length, part + 1

    def prepare(self, prompts: Sequence[np.ndarray], wanted: Wanted) -> None:
        """Compile what `tokens`, or `likeliest`, of these prompts will run."""
        by_length = {len(prompt): prompt for prompt in prompts}
        if wanted.beams:
            for prompt in by_length.values():
                self.likeliest(prompt, wanted)
            return
        longest = by_length[max(by_length)]
        two = dataclasses.replace(wanted, tokens=min(wanted.tokens, 2))
        for _ in self.tokens(longest, two, jax.random.key(0), list(by_length)):
            pass
        if self._remembers and len(longest) + wanted.tokens - 1 > self.block:
            room = self.block + max(by_length) - min(by_length)
            advance, state, tokens, _ = self._start(longest[:1].repeat(self._half), room)
            next(stream(advance, state, tokens, length=1, key=jax.random.key(0), sampling=wanted.sampling))

    def likeliest(self, prompt: np.ndarray, wanted: Wanted) -> np.ndarray:
        """[number, tokens]: the best that beam search finds.

        Raises:
          ConfigError: prompt and tokens together are longer than the model's block.
        """
        if len(prompt) + wanted.tokens > self.block + 1:
            raise ConfigError(
                f"--tokens: found {wanted.tokens}; after a prompt of {len(prompt)} tokens, with --beams, "
                f"the model's block of {self.block} has room for {self.block + 1 - len(prompt)}"
            )
        advance, state, tokens, _ = self._start(prompt, self.block)
        found, _ = beam_search(advance, state, tokens, beams=wanted.beams, length=wanted.tokens)
        return np.asarray(found[0, : wanted.number])

    @property
    def _half(self) -> int:
        return max(1, self.block // 2)

    def _start(self, prompt: np.ndarray, room: int, width: int = 0) -> tuple[Any, Any, Any, Any]:
        """(advance, state, tokens [1, n], segments) that go on from a prompt, padded to `width` where it is shorter."""
        if not self._remembers:  # all but the last token are in the window: prompts of any length are one program
            return *windowed(self._logits, prompt[None, :-1], self.block), prompt[None, -1:], None
        state = self._state | self._model.remember(1, room, self._dtype)
        if room == self.block or not width:
            return self._advance, state, prompt[None], None
        tokens, segments = left_padded([prompt.tolist(), [0] * width])
        return self._advance, state, tokens[:1], segments[:1]


class Pieces:
    """Text from tokens that come in blocks: only what no later token can change.

    decode: tokens -> text. A character cut between two blocks, which decodes to U+FFFD, is held back.

    >>> pieces = Pieces(lambda tokens: bytes(tokens).decode("utf-8", "replace"))
    >>> pieces.add([110, 195]), pieces.add([169]), pieces.rest()
    ('n', 'é', '')
    """

    def __init__(self, decode: Callable[[Any], str]):
        self._decode = decode
        self._tokens: list[int] = []
        self._shown = 0

    def add(self, block: Any) -> str:
        """The text that is certain now and was not before."""
        self._tokens += [int(token) for token in block]
        text = self._decode(self._tokens)
        certain = len(text) - text.endswith(UNKNOWN)
        new, self._shown = text[self._shown : certain], max(self._shown, certain)
        if certain == len(text):  # begin anew, with this block before it: a piece may be written by what precedes it
            self._tokens = [int(token) for token in block]
            self._shown = len(self._decode(self._tokens))
        return new

    def rest(self) -> str:
        """What was held back, at the end."""
        return self._decode(self._tokens)[self._shown :]


def write(
    writer: Writer, prompts: Sequence[str], wanted: Wanted, show: Callable[[str], None], where: str = "--prompt"
) -> dict[str, float]:
    """Show each text, its prompt first, as it comes: {"tokens": how many, "seconds", "compile": in seconds, before}."""
    start = time.perf_counter()
    encoded = [writer.encode(prompt, where) for prompt in prompts]
    writer.prepare(encoded, wanted)
    compiled = time.perf_counter()
    key, lengths, at = jax.random.key(wanted.seed), [len(tokens) for tokens in encoded], 0
    for prompt, tokens in zip(prompts, encoded):
        found = writer.likeliest(tokens, wanted) if wanted.beams else []
        for n in range(wanted.number):
            show(f"{SEPARATOR}\n" * (at > 0) + prompt)
            own = jax.random.fold_in(key, at)
            blocks = [found[n]] if wanted.beams else writer.tokens(tokens, wanted, own, lengths)
            pieces, last = Pieces(writer.data.decode), prompt
            for block in blocks:
                piece = pieces.add(block)
                show(piece)
                last = piece or last
            rest = pieces.rest()
            show(rest if (rest or last).endswith("\n") else f"{rest}\n")
            at += 1
    seconds = time.perf_counter() - compiled
    return {"tokens": at * wanted.tokens, "seconds": seconds, "compile": compiled - start}
