"""Models: frozen configs with pure `init` and `apply` (see `base`)."""

from functrain.config import kinds
from functrain.models.alexnet import AlexNet
from functrain.models.base import Model, Pure
from functrain.models.cnn import CNN
from functrain.models.custom import CustomModel
from functrain.models.detector import FCOS
from functrain.models.flax_module import FlaxModel
from functrain.models.gpt import GPT
from functrain.models.lenet import LeNet
from functrain.models.mlp import MLP
from functrain.models.nin import NIN
from functrain.models.resnet import CIFARResNet, ResNet
from functrain.models.strided_cnn import StridedCNN
from functrain.models.unet import UNet
from functrain.models.vgg import VGG
from functrain.models.vit import ViT

AnyModel = kinds(
    MLP, CNN, StridedCNN, LeNet, AlexNet, VGG, NIN, ResNet, CIFARResNet, ViT, UNet, FCOS, GPT, FlaxModel, CustomModel
)
"""[model]: every model a config can name."""

__all__ = [
    "CNN",
    "FCOS",
    "GPT",
    "MLP",
    "NIN",
    "VGG",
    "AlexNet",
    "AnyModel",
    "CIFARResNet",
    "CustomModel",
    "FlaxModel",
    "LeNet",
    "Model",
    "Pure",
    "ResNet",
    "StridedCNN",
    "UNet",
    "ViT",
]
