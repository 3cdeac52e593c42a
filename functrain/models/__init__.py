"""Models: frozen configs with pure `init` and `apply` (see `base`)."""

from functrain.config import kinds
from functrain.models.base import Model, Pure
from functrain.models.custom import CustomModel
from functrain.models.mlp import MLP

AnyModel = kinds(MLP, CustomModel)
"""[model]: every model a config can name."""

__all__ = ["MLP", "AnyModel", "CustomModel", "Model", "Pure"]
