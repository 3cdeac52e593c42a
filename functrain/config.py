"""Config: TOML and dotted overrides in, frozen and checked dataclasses out.

    read(path, overrides) -> Source          TOML text as plain data, and where each value came from
    parse(cls, source)    -> cls             checked by pydantic: nothing unknown, nothing converted by guess
    dump(config)          -> str             TOML that parses back equal

Each component declares its settings with `@configclass`: a frozen, keyword-only dataclass whose
fields carry a type with bounds and a docstring. Components that stand for one another are told apart by
`kind` (see `kinds`). Every mistake is a `ConfigError`: one line that says where, what was found
and what is legal. Text is never executed.
"""

import ast
import copy
import dataclasses
import difflib
import functools
import inspect
import itertools
import json
import textwrap
import tomllib
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, dataclass_transform, get_args, get_origin, get_type_hints

import tomli_w
from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError
from pydantic.json_schema import SkipJsonSchema

T = TypeVar("T")


class ConfigError(Exception):
    """A mistake in what the user gave: one readable line. The command prints it and exits with status 2."""


# -- declaring ------------------------------------------------------------------------------------


@dataclass_transform(frozen_default=True, kw_only_default=True)
def configclass(cls: type[T]) -> type[T]:
    """A frozen, keyword-only dataclass that pydantic checks strictly when it is parsed.

    It stays a standard dataclass: `dataclasses.replace` checks nothing, so a field may hold a traced
    array inside a jitted step (see `functrain.train.hyper`).

    >>> @configclass
    ... class Point:
    ...     x: Fraction = 0.5
    >>> Point(x=0.25)
    Point(x=0.25)
    """
    cls = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    cls.__pydantic_config__ = ConfigDict(  # pyright: ignore[reportAttributeAccessIssue]
        extra="forbid", strict=True, allow_inf_nan=False, json_schema_extra=lambda schema: _describe(schema, cls)
    )
    return cls


def _describe(schema: dict[str, Any], cls: type) -> None:
    """Put each field's docstring (the text under it in the source, of a base class too) into the JSON schema."""
    for base in reversed(cls.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # pyright: ignore
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                name = ast.unparse(field.target)
                if name in schema.get("properties", {}):
                    schema["properties"][name]["description"] = inspect.cleandoc(ast.literal_eval(text.value))


def _integral(value):
    """1e3 is a float in TOML, and a count to a person."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _assembled(value):
    raise ValueError("is put together from the other sections, not set here")


LARGEST = 2**31 - 1
Count = Annotated[int, Field(ge=0, le=LARGEST), BeforeValidator(_integral)]
"""A whole number, zero included (zero mostly means off or automatic)."""
Size = Annotated[int, Field(ge=1, le=LARGEST), BeforeValidator(_integral)]
"""A whole number from 1."""
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
"""A share: from 0, below 1."""
Share = Annotated[float, Field(ge=0, le=1)]
"""A share: from 0 to 1."""
Text = Annotated[str, Field(min_length=1)]
Part = Annotated[SkipJsonSchema[Any], BeforeValidator(_assembled)]
"""A field that no config text may set: `building.build` fills it (a task's model and learner)."""


def off(number: Any) -> bool:
    """Whether a setting is off: a Python zero. A traced zero is a value like any other (see functrain.train.hyper).

    >>> off(0.0), off(0.1)
    (True, False)
    """
    return isinstance(number, (int, float)) and number == 0


def kinds(*classes: type, default: str | None = None) -> Any:
    """The union of config classes told apart by their `kind`; `default` is assumed where the text names none."""

    def kind(value):
        return value.get("kind", default) if isinstance(value, dict) else getattr(value, "kind", None)

    tagged = tuple(Annotated[c, Tag(c.__dataclass_fields__["kind"].default)] for c in classes)
    return Annotated[Union[tagged], Discriminator(kind)]  # noqa: UP007 - built from a tuple


def kind_table(annotation: Any) -> dict[str, type]:
    """kind -> class of a union made by `kinds` (optional or not); empty for any other annotation."""
    found = {}
    for part in _parts(annotation):
        if get_origin(part) is Annotated and isinstance(get_args(part)[1], Tag):
            found[get_args(part)[1].tag] = get_args(part)[0]
    return found


def _parts(annotation) -> Iterator[Any]:
    """The alternatives of an annotation, through Annotated, Optional and unions."""
    origin = get_origin(annotation)
    if origin is Annotated and not isinstance(get_args(annotation)[1], Tag):
        yield from _parts(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _parts(part)
    else:
        yield annotation


# -- reading --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Source:
    """Plain data read from TOML, and a name for where each dotted path came from."""

    data: dict[str, Any]
    name: str = "config"
    overrides: dict[str, str] = dataclasses.field(default_factory=dict)  # dotted path -> the argument

    def where(self, path: str) -> str:
        """The argument that set this path (or something in it) last, or else the file."""
        for overridden, argument in reversed(self.overrides.items()):
            if (path + ".").startswith(overridden + ".") or (overridden + ".").startswith(path + "."):
                return _argument(argument)
        return self.name


def read(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Source:
    """A TOML file with `key.path=value` overrides applied.

    Raises:
      ConfigError: no such file, not UTF-8, not TOML (with line and column), an override without
        a key, or one that reaches into something that is no table.
    """
    name = str(path)
    try:
        data = tomllib.loads(Path(path).read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{name}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: not UTF-8 text (byte {error.start})") from None
    except RecursionError:
        raise ConfigError(f"{name}: nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError is one; a number of thousands of digits another
        raise ConfigError(f"{name}: not TOML: {error}") from None
    return override(Source(_plain(data, name), name), overrides)


def override(source: Source, arguments: list[str] | tuple[str, ...]) -> Source:
    """The source with each `key.path=value` set; the value is TOML, or a bare string where it is not.

    >>> override(Source({"train": {"steps": 5}}), ["train.steps=7", "model.kind=mlp"]).data
    {'train': {'steps': 7}, 'model': {'kind': 'mlp'}}
    """
    data = copy.deepcopy(source.data)
    origin = dict(source.overrides)
    for argument in arguments:
        key, equals, text = argument.partition("=")
        key = key.strip()
        if not equals or not all(key.split(".")) or key.count(".") > _DEEPEST:
            raise ConfigError(f"{_argument(argument)}: expected key=value, such as optimizer.peak_lr=3e-4")
        try:
            values = tomllib.loads(f"value = {text}")
        except (ValueError, RecursionError):
            values = {}
        # More than one key means that the text goes on after the value: then it is no value, but a string.
        value = _plain(values["value"] if len(values) == 1 else text.strip(), _argument(argument), key)
        *tables, last = key.split(".")
        at = data
        for i, part in enumerate(tables):
            at = at.setdefault(part, {})
            if not isinstance(at, dict):
                raise ConfigError(f"{_argument(argument)}: {'.'.join(tables[: i + 1])} is no table")
        at[last] = value
        origin.pop(key, None)  # the last to set a key stands last
        origin[key] = argument
    return Source(data, source.name, origin)


_DEEPEST = 40


def _argument(text: str) -> str:
    return f"argument {text if len(text) <= 80 else text[:77] + '...'!r}"


def _plain(value: Any, where: str, path: str = "", depth: int = 0) -> Any:
    """The value, if it is such as JSON has too: tables, arrays, text, numbers of 64 bits, booleans."""

    def refuse(why):
        raise ConfigError(f"{where}: {path[:80]}: {why}" if path else f"{where}: {why}")

    if depth > _DEEPEST:
        refuse("nested too deeply")
    if isinstance(value, dict):
        for key, inner in value.items():
            _plain(inner, where, f"{path}.{key}" if path else key, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _plain(inner, where, path, depth + 1)
    elif isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            refuse("not UTF-8 text")
    elif isinstance(value, int) and abs(value) >= 2**63:
        refuse("a number beyond 64 bits")
    elif not isinstance(value, (int, float)):
        refuse(f"found {value}, a date or time; no key takes one")
    return value


# -- parsing --------------------------------------------------------------------------------------


@functools.cache
def _adapter(cls: Any) -> TypeAdapter:
    return TypeAdapter(cls)


def parse(cls: type[T], source: Source | dict) -> T:
    """Checked config from plain data.

    Types are kept: a string is no number, a boolean is no number, inf and nan are refused; a whole
    float is accepted for an int and an int for a float. Unknown keys are refused.

    Raises:
      ConfigError: the first mistake, as one line.

    >>> @configclass
    ... class Point:
    ...     width: Size = 1
    >>> parse(Point, {"width": 2.0})
    Point(width=2)
    >>> parse(Point, {"wdth": 2})
    Traceback (most recent call last):
    ...
    functrain.config.ConfigError: config: wdth: unknown key; did you mean "width"? legal here: width
    """
    source = source if isinstance(source, Source) else Source(source)
    try:
        return _adapter(cls).validate_json(json.dumps(_plain(source.data, source.name)))
    except ValidationError as error:
        mistakes = error.errors(include_url=False)
        # An unknown key is the cause more often than what it leaves missing.
        first = min(mistakes, key=lambda m: m["type"] != "unexpected_keyword_argument")
        path, line = _explain(cls, first)
        more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
        raise ConfigError(f"{source.where(path)}: {line}{more}") from None


def _explain(cls, mistake) -> tuple[str, str]:
    """(dotted path, one line) for one of pydantic's errors."""
    path, annotation, owner = [], cls, cls
    for part in mistake["loc"]:  # walk the declarations along the path
        table = kind_table(annotation)
        if part in table:  # pydantic names the kind it chose; a person does not
            annotation = table[part]
            continue
        path.append(str(part))
        owner, annotation = annotation, _inside(annotation, part) or annotation
    dotted, table = ".".join(path), kind_table(annotation)
    value, kind, context = mistake["input"], mistake["type"], mistake.get("ctx", {})
    found = json.dumps(value, default=str)
    found = found if len(found) <= 60 else found[:57] + "..."
    if kind == "unexpected_keyword_argument":
        return dotted, f"{dotted}: unknown key; {_likely(cls, owner, path)}"
    if kind.startswith("missing"):
        return dotted, f"{dotted}: missing{f'; a table with a kind: {_list(table)}' if table else ''}"
    if kind.startswith("union_tag"):
        if not isinstance(value, dict):
            return dotted, f"{dotted}: found {found}; expected a table with a kind: {listed(table)}"
        dotted += ".kind"
        if "kind" not in value:
            return dotted, f"{dotted}: missing; legal: {listed(table)}"
        wrong = value["kind"]
        return dotted, f"{dotted}: found {json.dumps(wrong)}; {_meant(str(wrong), table)}legal: {listed(table)}"
    if kind == "value_error":
        return dotted, f"{dotted + ': ' if dotted else ''}{context['error']}"
    if kind == "dataclass_type":
        return dotted, f"{dotted}: found {found}; expected a table"
    expected = mistake["msg"].removeprefix("Input should be ").replace("a valid ", "a ")
    expected = (
        expected.replace("a integer", "an integer").replace("a array", "an array").replace("an object", "a table")
    )
    expected = expected.replace("String should have at least", "text of at least")
    meant = ""
    if kind == "literal_error" and isinstance(value, str):
        meant = _meant(value, [w.strip(" '") for w in context["expected"].replace(" or ", ",").split(",")])
    return dotted, f"{dotted}: found {found}; {meant}expected {expected}"


def _inside(annotation, key) -> Any:
    """The annotation of a field, a list's element or a dict's value."""
    for part in _parts(annotation):
        part = get_args(part)[0] if get_origin(part) is Annotated else part  # one kind of a union
        if dataclasses.is_dataclass(part):
            hint = get_type_hints(part, include_extras=True).get(str(key))
            if hint is not None:
                return hint
        elif get_origin(part) in (tuple, list):
            return get_args(part)[0]
        elif get_origin(part) is dict:
            return get_args(part)[1]
    return None


def _fields(annotation) -> list[str]:
    """The legal keys of a table."""
    for part in _parts(annotation):
        if dataclasses.is_dataclass(part):
            hints = get_type_hints(part, include_extras=True)
            names = [f.name for f in dataclasses.fields(part) if hints[f.name] is not Part]
            return sorted(names, key=lambda name: name != "kind")
    return []


def _likely(root, owner, path) -> str:
    """What an unknown key of the table `owner` may have meant: of another kind, by spelling, in another section."""
    *tables, key = path
    union, legal = root, _fields(owner)
    for table in tables:
        union = _inside(union, table) or union
    kinds_with_it = [k for k, c in kind_table(union).items() if key in _fields(c)]
    hint = _meant(key, legal)
    if kinds_with_it:
        hint = f"it belongs to {'.'.join(tables)}.kind = {' or '.join(map(json.dumps, kinds_with_it))}; "
    elif not hint and (homes := _homes(root, key)):
        hint = f"did you mean {' or '.join(homes[:3])}? "
    return f"{hint}legal here: {_list(legal)}"


def _homes(annotation, key) -> list[str]:
    """Every dotted path at which a key of this name is legal; first those where it is whatever the kinds are."""
    found: dict[str, int] = {}

    def look(annotation, at, chosen):
        for name in _fields(annotation):
            deeper = _inside(annotation, name)
            if name == key:
                found.setdefault(at + name, chosen)
            kinds = kind_table(deeper).values()
            for c in kinds or [p for p in _parts(deeper) if dataclasses.is_dataclass(p)]:
                look(c, f"{at}{name}.", chosen + bool(kinds))

    look(annotation, "", 0)
    return sorted(found, key=found.__getitem__)


def _meant(word, legal) -> str:
    close = difflib.get_close_matches(word, list(legal), n=1, cutoff=0.6)
    return f"did you mean {json.dumps(close[0])}? " if close else ""


def _list(names) -> str:
    return ", ".join(names)


def listed(kinds: Iterable[str]) -> str:
    """Kinds as a message shows them: the first 200 characters or so, and where the others are.

    >>> listed(["mlp", "cnn"]), listed(f"kind{i}" for i in range(99))[-43:]
    ('mlp, cnn', 'kind25, and 73 more that functrain list has')
    """
    kinds, shown = list(kinds), 0
    while shown < len(kinds) and len(_list(kinds[: shown + 1])) <= 200:
        shown += 1
    more = len(kinds) - shown
    return _list(kinds) if not more else f"{_list(kinds[:shown])}, and {more} more that functrain list has"


# -- writing --------------------------------------------------------------------------------------


def to_data(config: Any) -> Any:
    """Plain data for TOML: dataclasses to tables; what is None or empty is left out."""
    if dataclasses.is_dataclass(config):
        items = {f.name: to_data(getattr(config, f.name)) for f in dataclasses.fields(config)}
        kind = {"kind": items.pop("kind")} if "kind" in items else {}  # first, as a person would write it
        return kind | {k: v for k, v in items.items() if v is not None and v != {}}
    if isinstance(config, dict):
        return {k: to_data(v) for k, v in config.items()}
    if isinstance(config, (tuple, list)):
        return [to_data(v) for v in config]
    return config


def dump(config: Any) -> str:
    """The whole config as TOML, every default written out; `parse` gives an equal config back."""
    return tomli_w.dumps(to_data(config))


def flatten(config: Any, at: str = "") -> dict[str, Any]:
    """Dotted path -> value, of a config or of plain data.

    >>> flatten({"train": {"steps": 5, "seed": 0}})
    {'train.steps': 5, 'train.seed': 0}
    """
    data = to_data(config)
    if not isinstance(data, dict):
        return {at.rstrip("."): data}
    return {k: v for name, value in data.items() for k, v in flatten(value, f"{at}{name}.").items()}


def differences(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """Dotted path -> (old, new) where two configs differ; None where one lacks the key.

    >>> differences({"a": 1, "b": 2}, {"a": 1, "b": 3})
    {'b': (2, 3)}
    """
    a, b = flatten(old), flatten(new)
    return {k: (a.get(k), b.get(k)) for k in {**a, **b} if a.get(k) != b.get(k)}


def json_schema(cls: type) -> dict[str, Any]:
    """The JSON schema of a config class, which editors complete and check TOML from."""
    schema = _adapter(cls).json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema
