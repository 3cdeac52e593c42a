"""Questions whose answers are part of a text: files of the Stanford Question Answering Dataset, 1.1 and 2.0.

An example is one row of tokens, [first] question [separator] text [separator], filled up at its end.
"""

import collections
import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from functrain.config import ConfigError, Count, Size, Text, configclass
from functrain.data.base import Split
from functrain.data.dataset import SPLITS, Dataset, dataset, find, read_text
from functrain.data.tokens import BPE

_SPECIAL = 4
"""Padding, the unknown token, the first and the separator: the numbers 0 to 3 of a vocabulary made here."""
_NAMES = (("[PAD]", "[CLS]", "[SEP]"), ("<pad>", "<s>", "</s>"))
"""What padding, first and separator are called in the tokenizers of BERT and of RoBERTa."""


@dataclasses.dataclass(frozen=True)
class Question:
    """A question on a text.

    where: what messages call it. answer: (from, to) in the text's characters, the end not included; None for none.
    """

    where: str
    text: str
    answer: tuple[int, int] | None


@dataclasses.dataclass(frozen=True)
class Paragraph:
    """A text and the questions on it."""

    text: str
    questions: tuple[Question, ...]


@dataclasses.dataclass(frozen=True)
class Pieces:
    """A tokenizer: `encode(text)` gives (number, from, to) of each token, in the text's characters."""

    encode: Callable[[str], list[tuple[int, int, int]]]
    size: int
    padding: int
    first: int
    separator: int


@configclass
class Questions(Split):
    """Extractive question answering: SQuAD's JSON files, or others of their form.

    Arrays x, types (1 for the text and the separator after it) and segments (0 for padding), all [n, longest], and
    y [n, 2]: the places in x of the answer's first and last token; (0, 0) where there is no answer. Of several
    answers the first counts. Where files are split at random, the questions on one text stay together.

    A text that is too long is cut. In training what is left lies at random, but with the answer in it; an answer that
    is itself too long is left out. For validation and test it is the text's beginning, and y is (-1, -1) where that
    has not the answer: such a question counts as answered wrongly.
    """

    kind: Literal["questions"] = "questions"
    path: Text
    """The JSON file to train on; looked for in the working directory, then where FUNCTRAIN_DATA points."""
    validation_path: str = ""
    """A file to choose by; empty takes some of the first file's texts."""
    test_path: str = ""
    """A file to be read once; empty takes some of the first file's texts."""
    longest: Size = 256
    """Tokens in an example."""
    longest_question: Size = 32
    """Tokens of a question at most; the others are cut."""
    level: Literal["word", "bpe", "file"] = "word"
    """What a token is: a word or a mark in lower case, a piece found by byte-pair encoding (extra `text`), or a piece
    of the tokenizer in a file."""
    tokens: Size = 16384
    """For word and bpe: how many tokens at most, 4 special ones among them; bpe needs at least 260."""
    tokenizer_path: str = ""
    """For file: a tokenizer.json of the library tokenizers with the tokens [PAD], [CLS] and [SEP], or <pad>, <s> and
    </s>. Its padding must be model.padding."""
    vocabulary: str = ""
    """The words from number 4 on, with a space between; taken from the training part."""
    tokenizer: str = ""
    """The tokenizer, as JSON of that library; trained on the training part, or taken from its file."""
    separator: Count = 0
    """The token after the question and after the text; taken from the tokenizer."""

    def __post_init__(self):
        super().__post_init__()
        if self.longest < self.longest_question + _SPECIAL:
            raise ValueError(
                f"longest: found {self.longest}; expected at least {self.longest_question + _SPECIAL}, "
                f"for longest_question = {self.longest_question}"
            )
        if (self.level == "file") != bool(self.tokenizer_path):
            raise ValueError("tokenizer_path: goes with level = file, which needs it")
        if self.level == "bpe" and self.tokens < 256 + _SPECIAL:
            raise ValueError(f"tokens: found {self.tokens}; expected at least {256 + _SPECIAL} for level = bpe")

    def load(self) -> Dataset:
        """x, types and segments [n, longest] and y [n, 2], all int32."""
        parts = {}
        for split, key in zip(SPLITS, ("path", "validation_path", "test_path")):
            if path := getattr(self, key):
                place = find(f"data.{key}", path)
                parts[split] = read(f"data.{key}: {place}", place)
        given = {split: {"row": np.arange(len(part))} for split, part in parts.items() if split != "train"}
        rows = self.split({"row": np.arange(len(parts["train"]))}, given)
        chosen = {s: [parts.get(s, parts["train"])[i] for i in part["row"]] for s, part in rows.items() if part}
        if not chosen.get("train"):
            raise ConfigError(f"data.path: {self.path}: no text is left to train on")

        settled = dataclasses.replace(self, **self._learned(chosen["train"]))
        pieces = settled._pieces()
        rng = np.random.default_rng(self.split_seed)
        splits = {}
        for s, part in chosen.items():
            examples = list(settled._examples(pieces, part, rng if s == "train" else None))
            if not examples:
                raise ConfigError(
                    f"data.path: {s}: no questions; or data.longest = {self.longest} has no room for them"
                )
            splits[s] = _arrays(examples, self.longest, pieces.padding)
        found = {"vocabulary": settled.vocabulary, "tokenizer": settled.tokenizer, "separator": pieces.separator}
        return dataclasses.replace(dataset("data", splits), found=found, vocabulary=pieces.size)

    def read_inputs(self, path: str) -> np.ndarray | None:
        """x [n, longest] of the questions in a .json file of the same form; answers are not needed."""
        if Path(path).suffix != ".json":
            return None
        pieces = self._pieces()
        examples = list(self._examples(pieces, read(path, Path(path), answers=False), None))
        return _arrays(examples, self.longest, pieces.padding)["x"]

    def _examples(self, pieces, paragraphs, rng) -> Iterator[tuple[list[int], list[int], tuple[int, int]]]:
        """(question, text, y) of each that has room: tokens with the special ones, types by their lengths."""
        for paragraph in paragraphs:
            text = pieces.encode(paragraph.text)
            for question in paragraph.questions:
                asked = [number for number, _, _ in pieces.encode(question.text)][: self.longest_question]
                room, span = self.longest - len(asked) - 3, None
                if question.answer is not None:
                    span = _covering(question, text)
                begin = 0 if rng is None else _begin(len(text), room, span, rng)
                if begin is None:
                    continue
                kept, offset = text[begin : begin + room], len(asked) + 2 - begin
                y = (0, 0) if span is None else (span[0] + offset, span[1] + offset)
                if span is not None and span[1] >= begin + room:
                    y = (-1, -1)
                ends = [pieces.separator]
                yield [pieces.first, *asked, *ends], [number for number, _, _ in kept] + ends, y

    def _learned(self, paragraphs: Sequence[Paragraph]) -> dict[str, str]:
        """The vocabulary or the tokenizer, where the settings have none."""
        texts = [text for p in paragraphs for text in (p.text, *(q.text for q in p.questions))]
        if self.level == "word":
            if self.vocabulary:
                return {}
            counts = collections.Counter(word for text in texts for word, _, _ in _words(text))
            often = sorted((-n, word) for word, n in counts.items())[: max(self.tokens - _SPECIAL, 1)]
            return {"vocabulary": " ".join(word for _, word in often)}
        if self.tokenizer:
            return {}
        if self.level == "bpe":
            return {"tokenizer": BPE.of("\n".join(texts), self.tokens - _SPECIAL).definition}
        path = find("data.tokenizer_path", self.tokenizer_path)
        return {"tokenizer": read_text(f"data.tokenizer_path: {path}", path)}

    def _pieces(self) -> Pieces:
        """The tokenizer of these settings."""
        if self.level == "word":
            number = {word: i for i, word in enumerate(self.vocabulary.split(), _SPECIAL)}

            def encode(text):
                return [(number.get(word, 1), start, end) for word, start, end in _words(text)]

            return Pieces(encode, _SPECIAL + len(number), padding=0, first=2, separator=3)
        made = _library(self.tokenizer)
        shift = _SPECIAL if self.level == "bpe" else 0

        def cut(text):
            found = made.encode(text, add_special_tokens=False)
            return [(i + shift, start, end) for i, (start, end) in zip(found.ids, found.offsets)]

        size = made.get_vocab_size() + shift
        if shift:
            return Pieces(cut, size, padding=0, first=2, separator=3)
        for names in _NAMES:
            ids = [i for name in names if (i := made.token_to_id(name)) is not None]
            if len(ids) == len(names):
                return Pieces(cut, size, *ids)
        raise ConfigError(
            f"data.tokenizer_path: {self.tokenizer_path}: found no tokens "
            f"{' nor '.join(', '.join(names) for names in _NAMES)}"
        )


def read(name: str, path: Path, answers: bool = True) -> list[Paragraph]:
    """The paragraphs of a file {"data": [{"paragraphs": [{"context", "qas": [{"question", "answers": ...}]}]}]}.

    An answer is {"text", "answer_start"}; a question without one has none in its text.

    Args:
      name: what messages call the file.
      answers: whether they are read.

    Raises:
      ConfigError: it is no such file, or an answer does not stand where the file says; with the place in it.
    """
    text = read_text(name, path)
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name}: not JSON: {error}") from None
    paragraphs = []
    for at, article in _each(name, whole, "data", ": "):
        for where, paragraph in _each(at, article, "paragraphs"):
            text = _get(where, paragraph, "context", str)
            questions = [
                Question(place, _get(place, q, "question", str), _answer(place, text, q) if answers else None)
                for place, q in _each(where, paragraph, "qas")
            ]
            paragraphs.append(Paragraph(text, tuple(questions)))
    if not any(p.questions for p in paragraphs):
        raise ConfigError(f"{name}: holds no questions")
    return paragraphs


def _answer(where, text, question) -> tuple[int, int] | None:
    """Where in the text the first answer is; None for none."""
    if question.get("is_impossible") is True:
        return None
    given = _each(where, question, "answers")
    if not given:
        return None
    at, answer = given[0]
    words, start = _get(at, answer, "text", str), _get(at, answer, "answer_start", int)
    if not words.strip() or start < 0 or text[start : start + len(words)] != words:
        raise ConfigError(
            f"{at}: found {words[:40]!r} at {start}; the context has {text[max(start, 0) :][:40]!r} there"
        )
    start += len(words) - len(words.lstrip())
    return start, start + len(words.strip())


def _get(where, table, key, kind):
    value = table.get(key) if isinstance(table, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        expected = {str: "text", int: "a whole number", list: "a list"}[kind]
        raise ConfigError(f"{where}: {key}: found {json.dumps(value)[:40]}; expected {expected}")
    return value


def _each(where, table, key, joint=".") -> list[tuple[str, Any]]:
    return [(f"{where}{joint}{key}[{i}]", value) for i, value in enumerate(_get(where, table, key, list))]


def _words(text: str) -> Iterable[tuple[str, int, int]]:
    """Words and marks in lower case, and where each is in the text.

    >>> list(_words("A cat, too"))
    [('a', 0, 1), ('cat', 2, 5), (',', 5, 6), ('too', 7, 10)]
    """
    return ((m.group().lower(), *m.span()) for m in re.finditer(r"\w+|[^\w\s]", text))


def _covering(question: Question, text) -> tuple[int, int]:
    """The first and the last token that has a character of the answer."""
    assert question.answer is not None
    start, end = question.answer
    inside = [i for i, (_, a, b) in enumerate(text) if a < end and b > start]
    if not inside:
        raise ConfigError(f"{question.where}: the answer, characters {start} to {end}, holds no token")
    return inside[0], inside[-1]


def _begin(tokens: int, room: int, span: tuple[int, int] | None, rng: np.random.Generator) -> int | None:
    """Where the part of a text begins that is kept, with the answer in it; None where that has no room."""
    if tokens <= room:
        return 0
    low, high = (0, tokens - room) if span is None else (max(0, span[1] + 1 - room), min(span[0], tokens - room))
    return int(rng.integers(low, high + 1)) if low <= high else None


def _arrays(examples, longest: int, padding: int) -> dict[str, np.ndarray]:
    """Examples as rows."""
    x = np.full((len(examples), longest), padding, np.int32)
    types, segments = np.zeros_like(x), np.zeros_like(x)
    for i, (question, text, _) in enumerate(examples):
        end = len(question) + len(text)
        x[i, :end] = question + text
        types[i, len(question) : end] = 1
        segments[i, :end] = 1
    return {"x": x, "types": types, "segments": segments, "y": np.array([y for _, _, y in examples], np.int32)}


def _library(definition: str):
    try:
        import tokenizers  # late: an extra
    except ImportError:
        raise ConfigError(
            "data.level: bpe and file need the library tokenizers: pip install 'functrain[text]'; word needs none"
        ) from None
    try:
        made = tokenizers.Tokenizer.from_str(definition)
    except Exception as error:  # what the library raises for text that is no tokenizer is a bare Exception
        raise ConfigError(f"data.tokenizer: no tokenizer: {error}") from None
    made.no_truncation()
    made.no_padding()
    return made
