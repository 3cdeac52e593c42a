"""Live numbers: the floats of a task's config as arrays in the train state.

A float in a config is data, an int is structure, and a zero means off. The floats travel in `TrainState.hyper` by
dotted path and are bound back into the task inside the trace: no signature mentions a hyperparameter, a population
is a `vmap`, and each live value can be logged. All non-zero floats are live, for a constant and an array give
results that differ in the last bit.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import jax.numpy as jnp

T = TypeVar("T")


def numbers(config: Any, at: str = "") -> dict[str, float]:
    """Dotted path -> non-zero float, over a tree of dataclasses.

    >>> from functrain.optim import Learner, SGD
    >>> numbers(Learner(optimizer=SGD(peak_lr=0.5, lookahead_share=0.0)))
    {'optimizer.peak_lr': 0.5}
    """
    found = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found |= numbers(value, f"{at}{field.name}.")
        elif isinstance(value, float) and value != 0.0:
            found[at + field.name] = value
    return found


def bind(config: T, hyper: Mapping[str, Any]) -> T:
    """The config with some of its numbers replaced, by traced arrays as a rule.

    Raises:
      ValueError: a path that is no field of the config.

    >>> from functrain.optim import SGD
    >>> bind(SGD(), {"peak_lr": 0.25}).peak_lr
    0.25
    """
    changes: dict[str, Any] = {}
    deeper: dict[str, dict[str, Any]] = {}
    for path, value in hyper.items():
        head, _, rest = path.partition(".")
        if not any(field.name == head for field in dataclasses.fields(config)):  # pyright: ignore
            raise ValueError(f"{type(config).__name__} has no number {path!r}; it has: {', '.join(numbers(config))}")
        if rest:
            deeper.setdefault(head, {})[rest] = value
        else:
            changes[head] = value
    changes |= {head: bind(getattr(config, head), rest) for head, rest in deeper.items()}
    return dataclasses.replace(config, **changes)  # pyright: ignore


def arrays(task: Any, sweep: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The task's live numbers as arrays; `sweep` sets some, and makes numbers live that a zero had switched off."""
    return {path: jnp.asarray(value, float) for path, value in (numbers(task) | dict(sweep or {})).items()}
