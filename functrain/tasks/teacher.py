"""Another run's trained model that a task asks: a teacher to learn from, a judge of what is generated."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from functrain import tree
from functrain.config import ConfigError, Count, Text, configclass
from functrain.models import AnyModel

# pyright: reportInvalidTypeForm=false


@configclass
class Teacher:
    """A trained model that is asked and never changes.

    It is no player: its parameters and state lie in the train state, under `state`, where a run keeps them once. What
    its data were normalised by comes with it, so that it reads the task's inputs, however those are normalised.
    """

    run: Text
    """A run directory of one model; taken are the weights that its evaluation uses."""
    step: Count | None = None
    """A checkpoint's step of that run; left out, it is the best by validation, else the newest."""
    member: Count = 0
    """Which member of that run, where it has several seeds."""
    model: AnyModel | None = None
    """What it is; taken from the run."""
    centre: tuple[float, ...] = ()
    """What is subtracted from its inputs; taken from the run."""
    spread: tuple[float, ...] = ()
    """What they are divided by; taken from the run."""
    data_centre: tuple[float, ...] = ()
    """What was subtracted from the inputs that it is given here; taken from the data."""
    data_spread: tuple[float, ...] = ()
    """What those were divided by; taken from the data."""

    def init(self, key: jax.Array) -> dict[str, Any]:
        """{"params", "state"} as drawn, which the run's own arrays replace."""
        params, state = self._model.init(key)
        return {"params": params, "state": state}

    def apply(self, held: dict[str, Any], x: jax.Array) -> jax.Array:
        """The task's inputs [n, ...] -> the model's outputs, in at least float32; no gradient into the model."""
        held = jax.lax.stop_gradient(held)
        return tree.wide(self._model.apply(held["params"], held["state"], self.normalised(x), train=False)[0])

    def features(self, held: dict[str, Any], x: jax.Array) -> jax.Array:
        """The task's inputs [n, ...] -> what the model's last layer is given, [n, features]."""
        held = jax.lax.stop_gradient(held)
        return tree.wide(self._model.features(held["params"], held["state"], self.normalised(x), train=False)[0])

    def normalised(self, x: jax.Array) -> jax.Array:
        """The task's inputs as the model reads them: by what its own data were normalised by, not the task's."""
        if (self.centre, self.spread) == (self.data_centre, self.data_spread):
            return x
        x = tree.wide(x)
        if self.data_spread:
            x = x * jnp.asarray(self.data_spread, x.dtype) + jnp.asarray(self.data_centre, x.dtype)
        if self.spread:
            x = (x - jnp.asarray(self.centre, x.dtype)) / jnp.asarray(self.spread, x.dtype)
        return x

    def check_features(self, where: str) -> None:
        """Raises a ConfigError where the model does not say what its last layer is given."""
        if not hasattr(self._model, "features"):
            kind = getattr(self.model, "kind", type(self.model).__name__)
            raise ConfigError(f"{where}: a model of kind {kind!r} gives no features; lenet, cnn, mlp and others do")

    @property
    def _model(self):
        assert self.model is not None  # `building.build` fills it
        return self.model.build()


def teachers(task: Any) -> dict[str, Teacher]:
    """The fields of a task's config that are other runs' models, by name."""
    if not dataclasses.is_dataclass(task):
        return {}
    found = {field.name: getattr(task, field.name) for field in dataclasses.fields(task)}
    return {name: value for name, value in found.items() if isinstance(value, Teacher)}
