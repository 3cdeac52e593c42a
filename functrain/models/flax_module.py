"""Any flax module as a model: `kind = "flax", target = "package.module:Name", args = {...}`.

A flax.linen module is a pure function of its variables already: they are split into parameters and the other
collections, which are the model's state. A flax.nnx module is an object that holds its variables: it is taken apart
into a graph and plain dicts of arrays, and put together again inside each call. In both, what a step draws comes from
the step's key alone, so that a step is a pure function of the train state.
"""

import dataclasses
import inspect
import sys
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import core

from functrain import custom
from functrain.config import ConfigError, Count, Size, Text, configclass
from functrain.models.base import fitted

InputDtype = Literal["float32", "int32"]


@configclass
class FlaxModel:
    """Your own flax module: a linen or nnx module class, or a function that returns a module; called with `args`."""

    kind: Literal["flax"] = "flax"
    target: Text
    """What to call, as "package.module:Name"; looked for in the working directory too."""
    args: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Keyword arguments, checked against the signature. `inputs`, `outputs` and `rngs` are passed if it names them."""
    input_dtype: InputDtype = "float32"
    """What the module takes: int32 for a module whose input are numbers of tokens."""
    inputs: tuple[Size, ...] = ()
    """Shape of one example; taken from the data."""
    outputs: Count = 0
    """Number of outputs; taken from the data."""

    def sized(self, inputs: tuple[int, ...], outputs: int) -> "FlaxModel":
        """The model with its ends fitted to the data."""
        return fitted(self, inputs, outputs)

    def build(self) -> Any:
        """The module as a model (see `adapt`).

        Where `target` names `rngs`, it is called again at `init`, with streams made of the key.
        """
        offered = {"inputs": self.inputs, "outputs": self.outputs}

        def make(**rngs):
            return custom.call("model", self.target, self.args, offered | rngs)

        named = custom.signature(custom.resolve("model", self.target)).parameters
        made = (lambda rngs: make(rngs=rngs)) if "rngs" in named else make()
        return adapt(made, self.inputs, self.input_dtype, where=f"model.target: {self.target}")


def adapt(
    module: Any, inputs: tuple[int, ...] | None = None, input_dtype: InputDtype = "float32", *, where: str = "adapt"
) -> "Linen | NNX":
    """A flax module as a model.

    Args:
      module: a linen module; an nnx module, whose values `init` then gives, whatever the key; or a function of `rngs`
        that returns an nnx module, which `init` calls with `nnx.Rngs(key)`.
      inputs: the shape of one example; a linen module needs it, for it makes its parameters from an input.
      input_dtype: what the module takes. To int32 its inputs are converted.
      where: what messages begin with.

    Raises:
      ConfigError: no module, or a linen module without `inputs`.

    >>> from flax import linen
    >>> model = adapt(linen.Dense(3), inputs=(2,))
    >>> params, state = model.init(jax.random.key(0))
    >>> params["kernel"].shape, state
    ((2, 3), {})
    >>> model.apply(params, state, jnp.ones((5, 2)))[0].shape
    (5, 3)
    """
    if _is(module, "linen"):
        if inputs is None:
            raise ConfigError(f"{where}: a linen module needs inputs, the shape of one example")
        return Linen(module, inputs, input_dtype)
    if _is(module, "nnx"):
        return NNX(lambda: module, input_dtype, where)
    if inspect.isfunction(module) and "rngs" in inspect.signature(module).parameters:
        return NNX(module, input_dtype, where)
    raise _no_module(where, module)


class Linen:
    """A flax.linen module as a model. State: {collection: variables}, for all collections but the parameters.

    What a module sows is not kept: a collection with tuples in it, which sowing makes, is no state.
    """

    def __init__(self, module: Any, inputs: tuple[int, ...], input_dtype: InputDtype):
        """See `adapt`."""
        self._module, self._dtype = module, input_dtype
        self._example = jax.ShapeDtypeStruct((1, *inputs), input_dtype)
        self._call = type(module).__call__

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """What `module.init(key, example)` gives, for a batch of one example of zeros; in evaluation mode."""
        example = jnp.zeros(self._example.shape, self._example.dtype)
        variables = self._module.init(key, example, **_mode(self._call, train=False))
        variables = _plain(variables)
        params = variables.pop("params", {})
        return params, {name: found for name, found in variables.items() if not _has_tuple(found)}

    def apply(self, params, state, *inputs, key=None, train=False):
        """The module's outputs; in training its collections are mutable, and the stream `dropout` starts from the key.

        Other streams start from another key, folded from it.
        """
        rngs = None if key is None else {"dropout": key, "params": jax.random.fold_in(key, 1)}
        mutable = sorted(state) if train and state else False
        found = self._module.apply(
            {"params": params, **state},
            *_inputs(inputs, self._dtype),
            rngs=rngs,
            mutable=mutable,
            **_mode(self._call, train),
        )
        outputs, new = found if mutable else (found, {})
        return outputs, _like(state, _plain(new))


class NNX:
    """A flax.nnx module as a model. State: every variable but the parameters and the streams of random numbers.

    The streams are no state: each call sets them anew, from its key (without one, from key 0).
    """

    def __init__(self, make: Callable[..., Any], input_dtype: InputDtype, where: str):
        """See `adapt`. A `make` that names `rngs` is traced here for its graph and shapes; nothing is drawn."""
        self._make, self._dtype, self._where = make, input_dtype, where
        self._drawn = "rngs" in inspect.signature(make).parameters
        graphs = []

        def trace(key):
            graph, params, streams, counts, state = self._split(key)
            graphs.append(graph)
            return params, streams, counts, state

        if self._drawn:
            _, self._streams, self._counts, _ = jax.eval_shape(trace, jax.random.key(0))
        else:
            params, self._streams, self._counts, state = trace(None)
            self._given = params, state
        self._graph = graphs[0]

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """The variables of the module made with `nnx.Rngs(key)`, as plain dicts; of a ready module, its own."""
        if not self._drawn:
            return self._given
        _, params, _, _, state = self._split(key)
        return params, state

    def apply(self, params, state, *inputs, key=None, train=False):
        """The module's outputs, in training or evaluation mode; its other variables change in training alone."""
        from flax import nnx

        streams, structure = jax.tree.flatten(self._streams)
        key = jax.random.key(0) if key is None else key
        keys = [_keys(jax.random.fold_in(key, i), stream.shape) for i, stream in enumerate(streams)]
        counts = jax.tree.map(lambda count: jnp.zeros(count.shape, count.dtype), self._counts)
        module = nnx.merge(self._graph, params, jax.tree.unflatten(structure, keys), counts, state)
        module.train() if train else module.eval()
        outputs = module(*_inputs(inputs, self._dtype), **_mode(type(module).__call__, train))
        return outputs, _like(state, nnx.to_pure_dict(nnx.state(module))) if train else state

    def _split(self, key):
        """(graph, parameters, keys of streams, their counts, the other variables) of the module, as plain dicts."""
        from flax import nnx  # late: it costs a quarter to half a second, and only such a model needs it

        module = self._make(rngs=nnx.Rngs(key)) if self._drawn else self._make()
        if not _is(module, "nnx"):
            raise _no_module(self._where, module, "a flax.nnx module, since it names rngs")
        if self._drawn:
            for _, part in nnx.iter_modules(module):
                for name, value in vars(part).items():
                    # While it is traced, nnx takes a bare array for a static attribute.
                    if isinstance(value, jax.Array) and not nnx.is_data(value):
                        setattr(part, name, nnx.data(value))
        graph, *states = nnx.split(module, nnx.Param, nnx.RngKey, nnx.RngCount, ...)
        return graph, *(jax.tree.map(jnp.asarray, nnx.to_pure_dict(state)) for state in states)


def _is(module, library):
    """Whether it is a module of flax.linen or flax.nnx; whoever made it has imported that."""
    return f"flax.{library}" in sys.modules and isinstance(module, sys.modules[f"flax.{library}"].Module)


def _no_module(where, found, expected="a flax.linen or flax.nnx module"):
    name = f"the class {found.__name__}" if isinstance(found, type) else type(found).__name__
    return ConfigError(f"{where} gave {name}; expected {expected}")


def _mode(call, train):
    """Training or evaluation, by those keywords that the module's `__call__` names."""
    named = inspect.signature(call).parameters
    says = {"train": train, "training": train, "is_training": train}
    says |= {"deterministic": not train, "use_running_average": not train}
    return {name: value for name, value in says.items() if name in named}


def _inputs(inputs, dtype):
    """Numbers of tokens as integers, however they came; else as given, for precision decides on floats."""
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), inputs) if dtype == "int32" else inputs


def _plain(variables):
    """Plain dicts of arrays, without linen's boxes of metadata."""
    return core.unfreeze(core.meta.unbox(variables))


def _like(old, new):
    """What stands in `new` at the places of `old`, in the old dtypes; what is missing stays."""
    if isinstance(old, dict):
        return {name: _like(value, new[name]) if name in new else value for name, value in old.items()}
    return None if old is None else jnp.asarray(new, old.dtype)


def _keys(key, shape):
    return jax.random.split(key, shape) if shape else key


def _has_tuple(tree):
    return isinstance(tree, tuple) or (isinstance(tree, dict) and any(map(_has_tuple, tree.values())))
