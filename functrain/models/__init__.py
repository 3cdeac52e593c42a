"""Models: frozen configs with pure `init` and `apply` (see `base`)."""

from functrain.config import kinds
from functrain.models.base import Model, Pure
from functrain.models.cnn import CNN
from functrain.models.custom import CustomModel
from functrain.models.flax_module import FlaxModel
from functrain.models.gpt import GPT
from functrain.models.lenet import LeNet
from functrain.models.mlp import MLP

AnyModel = kinds(MLP, CNN, LeNet, GPT, FlaxModel, CustomModel)
"""[model]: every model a config can name."""

__all__ = ["CNN", "GPT", "MLP", "AnyModel", "CustomModel", "FlaxModel", "LeNet", "Model", "Pure"]
