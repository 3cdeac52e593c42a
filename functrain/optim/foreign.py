"""Any optimizer of optax by its name: `{ kind = "optax", name = "adabelief", args = { b1 = 0.9 } }`."""

import dataclasses
import difflib
import inspect
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import optax

from functrain.config import ConfigError, Text, configclass
from functrain.optim import transforms
from functrain.optim.chain import Chain


@configclass
class Optax(Chain):
    """Any optimizer of optax: `name` is called with the live learning rate and `args`, which stay as they are written.

    It is made anew at each update with that update's rate, a number; so those that take no schedule get one too. Weight
    decay set here is an L2 penalty; an optimizer's own is among its arguments.

    >>> optimizer = Optax(name="adabelief", args={"b1": 0.8})
    >>> optimizer.check({"w": jax.ShapeDtypeStruct((2, 3), "float32")})
    >>> Optax(name="adabelif").build()
    Traceback (most recent call last):
    ...
    functrain.config.ConfigError: optimizer.name: found "adabelif"; did you mean "adabelief"? legal: ...
    """

    kind: Literal["optax"] = "optax"
    name: Text
    """The function, as in optax's documentation: "adabelief", "contrib.prodigy"."""
    args: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Its arguments but the learning rate, checked against its signature. They are no live numbers."""

    def precondition(self):
        """None: the optimizer is one stage, which applies the rate too."""
        return []

    def step(self):
        """The optimizer."""
        function = _optimizer("optimizer", self.name)
        args = _arguments("optimizer", self.name, function, self.args)
        return transforms.at_each_rate(lambda rate: function(learning_rate=rate, **args), self.rate)

    def check(self, params, section="optimizer"):
        """Raises a ConfigError where the name, an argument or a pattern is wrong, or it needs more than gradients."""
        super().check(params, section)
        _arguments(section, self.name, _optimizer(section, self.name), self.args)

        def tried(params, peak, loss):
            chain = dataclasses.replace(self, peak_lr=peak).build()
            given = {"value": loss, "grad": params, "value_fn": lambda _: loss}
            return chain.update(params, chain.init(params), params, **given)

        try:
            jax.eval_shape(tried, params, 1.0, 1.0)
        except Exception as error:  # whatever optax raises, it is these arguments that it could not work with
            reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
            raise ConfigError(
                f"{section}: optax.{self.name} cannot take a step with gradient and loss alone: {reason}"
            ) from None


def _optimizer(section: str, name: str) -> Callable[..., Any]:
    """The function of that name."""
    module, _, last = name.rpartition(".")
    if module in ("", "contrib") and re.fullmatch(r"[a-z]\w*", last):
        found = getattr(optax.contrib if module else optax, last, None)
        if _is_optimizer(found):
            return found  # pyright: ignore[reportReturnType]
    legal = [n for n in dir(optax) if n[0] != "_" and _is_optimizer(getattr(optax, n))]
    legal += [f"contrib.{n}" for n in dir(optax.contrib) if _is_optimizer(getattr(optax.contrib, n))]
    close = difflib.get_close_matches(name, legal, n=1, cutoff=0.6)
    meant = f"did you mean {json.dumps(close[0])}? " if close else ""
    own = ", ".join(n for n in legal if "." not in n)
    raise ConfigError(f"{section}.name: found {json.dumps(name)[:40]}; {meant}legal: {own}, contrib.NAME")


def _is_optimizer(found: Any) -> bool:
    """Whether it is a function of a learning rate that wraps no other optimizer and is no single stage."""
    if not inspect.isfunction(found) or found.__name__.startswith("scale_by"):
        return False
    parameters = inspect.signature(found).parameters
    wraps = any(p.default is p.empty and "optimizer" in name for name, p in parameters.items())
    return "learning_rate" in parameters and not wraps


def _arguments(section: str, name: str, function: Callable[..., Any], args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as the signature takes them."""
    parameters = dict(inspect.signature(function).parameters)
    del parameters["learning_rate"]
    for key in args:
        at = f"{section}.args.{key}"
        if key == "learning_rate":
            raise ConfigError(f"{at}: set by {section}.peak_lr and {section}.schedule")
        if key not in parameters:
            close = difflib.get_close_matches(key, list(parameters), n=1, cutoff=0.6)
            meant = f"did you mean {json.dumps(close[0])}? " if close else ""
            raise ConfigError(f"{at}: unknown; {meant}optax.{name} takes: {', '.join(parameters) or 'no more'}")
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in args:
            raise ConfigError(f"{section}.args.{key}: missing; optax.{name} needs it")
    return {key: _checked(f"{section}.args.{key}", value, parameters[key].default) for key, value in args.items()}


def _checked(at: str, value: Any, default: Any) -> Any:
    """The value, of the default's type; where the default says nothing, as it is (a list as a tuple)."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    expected = ""
    if isinstance(default, bool):
        expected = "" if isinstance(value, bool) else "true or false"
    elif isinstance(default, int):
        expected = "" if number and value == int(value) else "a whole number"
        value = value if expected else int(value)
    elif isinstance(default, float):
        expected = "" if number else "a number"
    elif isinstance(default, str):
        expected = "" if isinstance(value, str) else "text"
    elif isinstance(default, tuple):
        expected = "" if isinstance(value, list) else "a list"
    if expected:
        raise ConfigError(f"{at}: found {json.dumps(value)}; expected {expected}")
    return tuple(value) if isinstance(value, list) else value
