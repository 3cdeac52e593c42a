"""A user's own code, named in a config: `kind = "custom", target = "package.module:name", args = {...}`.

This is the one way by which a config reaches code outside functrain: the module is imported as `import` would, from
the working directory too, and `name` is called with the arguments. Nothing in the text is evaluated.
"""

import importlib
import inspect
import os
import re
import sys
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from functrain.config import ConfigError


def call(section: str, target: str, args: dict[str, Any], offered: dict[str, Any]) -> Any:
    """Import `target` and call it with `args`, and with those of `offered` that it names.

    Args:
      section: the config's section, for messages ("model").
      target: "package.module:name".
      args: the config's own arguments, checked against the signature and its annotations.
      offered: what the experiment knows (such as inputs and outputs); passed where the signature has
        a parameter of that name.

    Raises:
      ConfigError: no such module or name, not callable, an argument unknown, missing or of another type.
    """
    function = resolve(section, target)
    try:
        parameters = signature(function).parameters
    except (TypeError, ValueError):
        raise ConfigError(f"{section}.target: {target!r} cannot be called") from None
    keywords = {n: p for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name, value in args.items():
        if name not in keywords and not takes_any:
            raise ConfigError(
                f"{section}.args.{name}: {target} has no such argument; it takes: {', '.join(keywords) or 'none'}"
            )
        if name in keywords and keywords[name].annotation is not inspect.Parameter.empty:
            args = args | {name: _checked(f"{section}.args.{name}", keywords[name].annotation, value)}
    given = {name: value for name, value in offered.items() if name in keywords} | args
    for name, parameter in keywords.items():
        if parameter.default is inspect.Parameter.empty and name not in given:
            raise ConfigError(f"{section}.args.{name}: missing; {target} needs it")
    return function(**given)


def signature(function: Any) -> inspect.Signature:
    """How `function` is called; a class with a metaclass of its own, which hides it, by its `__init__`.

    Raises:
      TypeError, ValueError: it cannot be called.
    """
    if isinstance(function, type) and type(function).__call__ is not type.__call__:
        found = inspect.signature(function.__init__)
        return found.replace(parameters=list(found.parameters.values())[1:])  # less self
    return inspect.signature(function)


def resolve(section: str, target: str) -> Any:
    """What `target`, "package.module:name", names; the module is imported.

    Raises:
      ConfigError: no such module or name.
    """
    module_name, _, name = target.partition(":")
    if not re.fullmatch(r"\w+(\.\w+)*:\w+", target):
        raise ConfigError(f'{section}.target: found "{target}"; expected "package.module:name"')
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # an installed command does not look where the person stands
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise ConfigError(f"{section}.target: no module {error.name!r} from {os.getcwd()}") from None
        raise
    if not hasattr(module, name):
        raise ConfigError(f"{section}.target: {module_name} has no {name!r}")
    return getattr(module, name)


def _checked(path, annotation, value):
    """The value in the annotated type, strictly; annotations that pydantic cannot read are left alone."""
    try:
        adapter = TypeAdapter(annotation, config=ConfigDict(strict=False, arbitrary_types_allowed=True))
    except Exception:
        return value
    try:
        return adapter.validate_python(tuple(value) if isinstance(value, list) else value, strict=True)
    except ValidationError as error:
        expected = error.errors(include_url=False)[0]["msg"].removeprefix("Input should be ")
        raise ConfigError(f"{path}: found {value!r}; expected {expected}") from None
