"""What a model is.

A model is a frozen config with two pure methods, one signature for all:

    init(key)                                            -> (params, state)
    apply(params, state, *inputs, key=None, train=False) -> (outputs, state)

`state` is whatever goes in and comes out and no optimizer touches (batch statistics, a cache); `{}` for most.
A model without state passes through what it was given. Some have a third, for what is learned from them:

    features(params, state, x, key=None, train=False)    -> (what the last layer is given [batch, features], state)

and some a fourth, where they look up rows of tables and use a table in no other way: which rows those are, by the
table's path. Then `apply` takes such a dict as `rows` too, which says it anew for the tables that it names: of those,
params hold a few rows (functrain.optim.sparse).

    rows(x)                                              -> {"users/table": integers [batch, ...], ...}

A model of tokens may have a fifth, which with `features` (here [batch, length, features]) lets a loss go by blocks of
the vocabulary (functrain.losses_blocked): its last layer's own parameters; logits are features @ table.T + bias.

    output_table(params)                                 -> (table [outputs, features], bias [outputs] or None)

A number below 0 there stands for what nothing is known of, and reads zeros (functrain.layers.embedding.known).

The config of a model has two more, which fit it to data and turn it into the model:

    sized(inputs, outputs) -> config    the shape of one example, and how many outputs the task wants
    build()                -> model     the config itself, unless the model comes from elsewhere
"""

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import jax

from functrain.config import ConfigError


class Model(Protocol):
    """See the module's first lines."""

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """Parameters and state, drawn from the key."""
        ...

    def apply(self, params: Any, state: Any, *inputs: Any, key: Any = None, train: bool = False) -> tuple[Any, Any]:
        """Outputs and the new state."""
        ...


def fill(name: str, given: Any, found: Any) -> Any:
    """What the data says, unless the config said it too and differently.

    Raises:
      ConfigError: both speak and disagree.
    """
    if given and given != found:
        given, found = (list(v) if isinstance(v, tuple) else v for v in (given, found))
        raise ConfigError(f"{name}: found {given}, but the data has {found}; leave the key out")
    return found


M = TypeVar("M")


def fitted(model: M, inputs: tuple[int, ...], outputs: int) -> M:
    """The config of a model with its ends, `inputs` and `outputs`, fitted to the data."""
    ends = {
        "inputs": fill("model.inputs", model.inputs, tuple(inputs)),  # pyright: ignore[reportAttributeAccessIssue]
        "outputs": fill("model.outputs", model.outputs, outputs),  # pyright: ignore[reportAttributeAccessIssue]
    }
    return dataclasses.replace(model, **ends)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Pure:
    """A model from a user's own pair `init(key) -> params`, `apply(params, x) -> y`.

    `apply` may take `key` and `train` by keyword; it is given those that it names.

    >>> import jax.numpy as jnp
    >>> model = Pure(lambda key: {"w": jnp.ones(3)}, lambda params, x: x @ params["w"])
    >>> params, state = model.init(jax.random.key(0))
    >>> model.apply(params, state, jnp.ones((2, 3)))[0].tolist()
    [3.0, 3.0]
    """

    init_function: Callable[[jax.Array], Any]
    apply_function: Callable[..., Any]

    def sized(self, inputs: tuple[int, ...], outputs: int) -> "Pure":
        """Itself: the functions know their sizes."""
        return self

    def build(self) -> "Pure":
        """Itself."""
        return self

    def init(self, key):
        """The user's parameters, and no state."""
        return self.init_function(key), {}

    def apply(self, params, state, *inputs, key=None, train=False):
        """The user's outputs; the state passes through."""
        named = inspect.signature(self.apply_function).parameters
        extra = {name: value for name, value in (("key", key), ("train", train)) if name in named}
        return self.apply_function(params, *inputs, **extra), state
