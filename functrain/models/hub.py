"""What the models that Hugging Face knows too have in common: how its config.json is read.

Such a model's file has `from_huggingface(config) -> model`, and the model:

    huggingface_names()  -> {our path: the name in the state dict}
    to_huggingface()     -> the keys of config.json that say what the model is
    as_is                -> a pattern of kernels that lie there as here, [in, out]; all others are torch.nn.Linear's
"""

from collections.abc import Mapping
from typing import Any

from functrain.config import ConfigError

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
    "mish": "mish",
}
"""Their names and ours; of several that are the same function, the first is written."""


def activation(config: Mapping[str, Any], key: str) -> str:
    """Our name of an activation.

    Raises:
      ConfigError: it is none of ours.

    >>> activation({"act": "gelu_new"}, "act")
    'gelu_tanh'
    """
    if config[key] not in ACTIVATIONS:
        raise ConfigError(f"{key}: found {config[key]!r}; legal here: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[config[key]]


def their_activation(name: str) -> str:
    """Their name of an activation.

    Raises:
      ConfigError: they have none.
    """
    for theirs, ours in ACTIVATIONS.items():
        if ours == name:
            return theirs
    raise ConfigError(f"model.activation: {name!r} has no name there; legal: {', '.join(set(ACTIVATIONS.values()))}")


def refuse(config: Mapping[str, Any], done: Mapping[str, Any]) -> None:
    """Raises a ConfigError where a config has another value than the one we do; a key that it lacks is no fault.

    >>> refuse({"scale": True}, {"scale": True, "other": False})
    """
    for key, value in done.items():
        if config.get(key, value) != value:
            raise ConfigError(f"{key}: found {config[key]!r}; functrain's model does {value!r} alone")


def one_rate(config: Mapping[str, Any], *keys: str) -> float:
    """The rate of dropout that several keys agree on; the largest, where they do not.

    A model here has one rate; it changes training alone, and a config may say another.

    >>> one_rate({"a": 0.1, "b": 0.1}, "a", "b")
    0.1
    """
    return max(float(config.get(key) or 0.0) for key in keys)
