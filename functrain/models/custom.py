"""A user's own model, named in the config."""

import dataclasses
from typing import Any, Literal

from functrain import custom
from functrain.config import ConfigError, Count, Size, Text, configclass
from functrain.models.base import Pure, fitted


@configclass
class CustomModel:
    """Your own model: `target` is called with `args` and returns a model, or a pair (init, apply)."""

    kind: Literal["custom"] = "custom"
    target: Text
    """What to call, as "package.module:name"; looked for in the working directory too."""
    args: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Keyword arguments, checked against the signature. `inputs` and `outputs` are passed if it names them."""
    inputs: tuple[Size, ...] = ()
    """Shape of one example; taken from the data."""
    outputs: Count = 0
    """Number of outputs; taken from the data."""

    def sized(self, inputs: tuple[int, ...], outputs: int) -> "CustomModel":
        """The model with its ends fitted to the data."""
        return fitted(self, inputs, outputs)

    def build(self) -> Any:
        """What `target` returns: an object with `init` and `apply`, or a pair wrapped as `Pure`."""
        made = custom.call("model", self.target, self.args, {"inputs": self.inputs, "outputs": self.outputs})
        if isinstance(made, tuple) and len(made) == 2 and all(callable(f) for f in made):
            return Pure(*made)
        if callable(getattr(made, "init", None)) and callable(getattr(made, "apply", None)):
            return made
        raise ConfigError(
            f"model.target: {self.target} returned {type(made).__name__}; expected a model with init and apply, "
            "or a pair (init, apply)"
        )
