"""Instructions: prompts with the responses that are learned, and conversations."""

import ast
import dataclasses
import hashlib
import json
import string
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np

from functrain.config import ConfigError, Count, Size, configclass
from functrain.config import Text as NotEmpty
from functrain.data.base import Split
from functrain.data.bucketing import Ragged
from functrain.data.dataset import Dataset, dataset, find, read_text
from functrain.data.packing import packed, padded
from functrain.data.text import Encoded, library_files, library_folder
from functrain.data.tokens import END, RESERVED


class Piece(NamedTuple):
    """Some text of an example; `learned` where the model is to give it, and the end after it."""

    text: str
    learned: bool


@dataclasses.dataclass(frozen=True)
class Example:
    """One example: what messages call it, and its text in pieces."""

    where: str
    pieces: tuple[Piece, ...]


def pieces_of_turns(messages: Iterable[tuple[str, str]], turn: str) -> Iterator[Piece]:
    """A conversation of (role, content) as text; what the assistant says is learned, and an end stands after it.

    >>> for piece in pieces_of_turns([("user", "Two and two?"), ("assistant", "Four.")], "{role}: {content}\\n"):
    ...     print(piece)
    Piece(text='user: Two and two?\\n', learned=False)
    Piece(text='assistant: ', learned=False)
    Piece(text='Four.', learned=True)
    """
    for role, content in messages:
        if role == "assistant":
            yield Piece(filled(turn.partition("{content}")[0], {"role": role}), False)
            yield Piece(content, True)
        else:
            yield Piece(filled(turn, {"role": role, "content": content}), False)


def filled(template: str, values: dict[str, str]) -> str:
    """A template with its {names} filled in; nothing but names is understood.

    >>> filled("{question}\\n{answer}", {"question": "{answer}?", "answer": "No."})
    '{answer}?\\nNo.'
    """
    return "".join(text + (values[name] if name is not None else "") for text, name, _, _ in _parsed(template))


def names_in(template: str) -> list[str]:
    """The names that a template has to be filled in.

    Raises:
      ValueError: braces that hold no plain name.

    >>> names_in("{instruction}\\n{input}\\n")
    ['instruction', 'input']
    """
    parsed = _parsed(template)
    if not all(name is None or (name.isidentifier() and not spec and not how) for _, name, spec, how in parsed):
        raise ValueError(f"found {template!r}; expected plain names in braces, such as {{prompt}}")
    return [name for _, name, _, _ in parsed if name is not None]


def _parsed(template):
    try:
        return list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"found {template!r}; {error}") from None


@configclass
class Taught(Encoded, Split, Ragged):
    """What sources of prompts and responses share: tokens, the mask of the loss, and the rows that they fill.

    Tokens 0 to 3 are padding, unknown, begin and end, as in vocabularies of sentences; then come those of `level`.
    """

    template: NotEmpty = "{prompt}\n"
    """How a prompt is written; names in braces are keys of the example."""
    pack: bool = True
    """Whether several examples share a row, none seeing another; else each has one, filled up with padding."""
    longer: Literal["refuse", "cut", "drop"] = "refuse"
    """What becomes of an example of more tokens than `block`: a mistake, cut at its end, or left out."""
    ragged = ("x", "y", "segments", "mask")

    def __post_init__(self):
        super().__post_init__()
        try:
            names_in(self.template)
        except ValueError as error:
            raise ValueError(f"template: {error}") from None
        if self.pack and self.buckets > 1:
            raise ValueError(f"buckets: found {self.buckets}; packed rows are all of one length: expected pack = false")

    @abstractmethod
    def read(self) -> tuple[str, bytes, list[Example]]:
        """(what messages call the data, what its digest is of, the examples)."""

    def load(self) -> Dataset:
        """x, y, segments and mask [n, block] of each split; the mask counts tokens of responses and their ends."""
        name, data, examples = self.read()
        numbers = self.split({"example": np.arange(len(examples))})
        parts = {split: [examples[i] for i in part["example"]] for split, part in numbers.items() if part}
        if not parts.get("train"):
            raise ConfigError(f"{name}: no training examples")
        texts = {split: "\n".join(p.text for e in part for p in e.pieces) for split, part in parts.items()}
        found = self.learned(name, data, texts.pop("train"), "".join(texts.values()))
        codec = self.codec(**found)
        splits: dict[str, Any] = {}
        for split, part in parts.items():
            coded = [self._coded(codec, example) for example in part]
            coded = [pair for pair in coded if pair is not None]
            if not coded:
                raise ConfigError(f"{name}: {split}: each example is longer than data.block = {self.block}")
            sequences, counted = zip(*coded)
            splits[split] = (packed if self.pack else padded)(sequences, self.block, counted)
        made = dataset(name, splits)
        return dataclasses.replace(made, classes=codec.size + len(RESERVED), found=found)

    def _coded(self, codec, example):
        """(tokens, which of them are learned) of an example; None where it is left out."""
        tokens, counted = [], []
        for piece in example.pieces:
            new = codec.encode(piece.text).astype(np.int32) + len(RESERVED) if piece.text else np.zeros(0, np.int32)
            new = np.append(new, END) if piece.learned else new
            tokens.append(new)
            counted.append(np.full(len(new), piece.learned))
        tokens, counted = np.concatenate(tokens), np.concatenate(counted)
        if len(tokens) > self.block:
            if self.longer == "refuse":
                much = f"{len(tokens)} tokens; expected at most data.block = {self.block}"
                raise ConfigError(f'{example.where}: {much}, or data.longer = "cut" or "drop"')
            tokens, counted = tokens[: self.block], counted[: self.block]
            if self.longer == "drop" or not counted[1:].any():  # nothing to learn is left of it
                return None
        return tokens, counted

    def prompted(self, text: str) -> str:
        """A prompt in the template, where that has one name; a template of several needs them filled in already."""
        names = names_in(self.template)
        return filled(self.template, {names[0]: text.removesuffix("\n")}) if len(names) == 1 else text

    def encode(self, text: str) -> np.ndarray:
        """Tokens of a text, as in the run whose config this is."""
        return self.codec().encode(text).astype(np.int32) + len(RESERVED)

    def decode(self, tokens) -> str:
        """The text of tokens, without those that are reserved."""
        return self.codec().decode([int(i) - len(RESERVED) for i in tokens if i >= len(RESERVED)])


@configclass
class Instructions(Taught):
    """Prompts and responses, or conversations, of a .jsonl file: an object a line.

    An object has the keys that the template names and a response, {"prompt": "2 + 2?", "response": "4"}; or messages,
    {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}.
    """

    kind: Literal["instructions"] = "instructions"
    path: NotEmpty
    """The file, UTF-8; looked for in the working directory, then where FUNCTRAIN_DATA points."""
    response: NotEmpty = "response"
    """The key of what is learned."""
    turn: NotEmpty = "{role}: {content}\n"
    """How a message is written; of what the assistant says, the end token stands for all after {content}."""

    def __post_init__(self):
        super().__post_init__()
        if names_in(self.turn) != ["role", "content"]:
            raise ValueError(f"turn: found {self.turn!r}; expected {{role}} and {{content}}, in this order")

    def read(self):
        """The file's lines; empty ones are passed over."""
        path = find("data.path", self.path)
        name = f"data.path: {path}"
        text = read_text(name, path)
        lines = ((f"{name}: line {i}", line) for i, line in enumerate(text.split("\n"), 1) if line.strip())
        return name, text.encode(), [self._example(where, line) for where, line in lines]

    def _example(self, where, line):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{where}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ConfigError(f"{where}: found {type(row).__name__}; expected an object")
        if "messages" in row:
            return Example(where, tuple(pieces_of_turns(_turns(where, row["messages"]), self.turn)))
        for name in (*names_in(self.template), self.response):
            if name not in row:
                raise ConfigError(f"{where}: no key {name!r}; it has: {', '.join(row) or 'none'}")
            if not isinstance(row[name], str):
                raise ConfigError(f"{where}: {name}: found {type(row[name]).__name__}; expected text")
        return Example(where, (Piece(filled(self.template, row), False), Piece(row[self.response], True)))


def _turns(where, messages):
    """Checked (role, content) of a conversation, in which the assistant says something."""
    if not isinstance(messages, list) or not all(
        isinstance(m, dict) and all(isinstance(m.get(key), str) for key in ("role", "content")) for m in messages
    ):
        raise ConfigError(f'{where}: messages: expected a list of {{"role": text, "content": text}}')
    turns = [(m["role"], m["content"]) for m in messages]
    if not any(role == "assistant" for role, _ in turns):
        raise ConfigError(f"{where}: messages: none is the assistant's; there is nothing to learn")
    return turns


@configclass
class PythonDocstrings(Taught):
    """The interpreter's own library: what a function is called and takes, and the first line of its docstring."""

    kind: Literal["python_docstrings"] = "python_docstrings"
    level: Literal["character", "byte", "bpe"] = "byte"
    """What a token is: a character, a byte, or a piece found by byte-pair encoding (extra `text`)."""
    block: Size = 256
    """Tokens in an example."""
    longer: Literal["refuse", "cut", "drop"] = "drop"
    """What becomes of an example of more tokens than `block`: a mistake, cut at its end, or left out."""
    megabytes: Count = 4
    """Of how much source text, in the order of the files' digests; 0 is all."""

    def __post_init__(self):
        super().__post_init__()
        if names_in(self.template) != ["prompt"]:
            raise ValueError(f"template: found {self.template!r}; expected {{prompt}} in it, and no other name")

    def read(self):
        """Functions with a docstring, in an order that mixes the packages; the keys are prompt and response."""
        examples, seen = [], hashlib.sha256()
        for name, text in library_files(self.megabytes):
            for node in ast.walk(_parsed_source(text)):
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (said := ast.get_docstring(node)):
                    prompt = filled(self.template, {"prompt": f"def {node.name}({ast.unparse(node.args)})"})
                    pieces = (Piece(prompt, False), Piece(said.splitlines()[0], True))
                    examples.append(Example(f"{name}: line {node.lineno}", pieces))
                    seen.update("".join(piece.text for piece in pieces).encode("utf-8", "surrogatepass"))
        return f"data.kind: {self.kind}: {library_folder()}", seen.digest(), examples


def _parsed_source(text):
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError):
        return ast.Module([], [])
