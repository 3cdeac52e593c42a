"""Models: frozen configs with pure `init` and `apply` (see `base`)."""

from functrain.config import kinds
from functrain.models.alexnet import AlexNet
from functrain.models.base import Model, Pure
from functrain.models.bert import BERT
from functrain.models.cnn import CNN
from functrain.models.custom import CustomModel
from functrain.models.cyclegan import CycleGAN
from functrain.models.dcgan import DCGAN
from functrain.models.deepfm import DeepFM, FactorizationMachine, LogisticRegression, WideDeep
from functrain.models.deepspeech import DeepSpeech
from functrain.models.detector import FCOS
from functrain.models.factorisation import MF, NCF
from functrain.models.flax_module import FlaxModel
from functrain.models.gpt import GPT
from functrain.models.huggingface import HuggingFace
from functrain.models.lenet import LeNet
from functrain.models.llama import Llama
from functrain.models.lora import LoRA
from functrain.models.mae import MAE
from functrain.models.mlp import MLP
from functrain.models.nin import NIN
from functrain.models.recurrent import Recurrent
from functrain.models.resnet import CIFARResNet, ResNet
from functrain.models.strided_cnn import StridedCNN
from functrain.models.text_cnn import TextCNN
from functrain.models.transformer import Transformer
from functrain.models.unet import UNet
from functrain.models.vae import VAE
from functrain.models.vgg import VGG
from functrain.models.vit import ViT
from functrain.models.wavenet import WaveNet

AnyModel = kinds(
    MLP,
    CNN,
    StridedCNN,
    LeNet,
    AlexNet,
    VGG,
    NIN,
    ResNet,
    CIFARResNet,
    ViT,
    UNet,
    FCOS,
    GPT,
    BERT,
    Recurrent,
    TextCNN,
    Llama,
    Transformer,
    DeepSpeech,
    WaveNet,
    VAE,
    DCGAN,
    CycleGAN,
    MAE,
    LogisticRegression,
    FactorizationMachine,
    WideDeep,
    DeepFM,
    MF,
    NCF,
    HuggingFace,
    FlaxModel,
    CustomModel,
)
"""[model]: every model a config can name."""

__all__ = [
    "BERT",
    "CNN",
    "DCGAN",
    "FCOS",
    "GPT",
    "MAE",
    "MF",
    "MLP",
    "NCF",
    "NIN",
    "VAE",
    "VGG",
    "AlexNet",
    "AnyModel",
    "CIFARResNet",
    "CustomModel",
    "CycleGAN",
    "DeepFM",
    "DeepSpeech",
    "FactorizationMachine",
    "FlaxModel",
    "HuggingFace",
    "LeNet",
    "Llama",
    "LoRA",
    "LogisticRegression",
    "Model",
    "Pure",
    "Recurrent",
    "ResNet",
    "StridedCNN",
    "TextCNN",
    "Transformer",
    "UNet",
    "ViT",
    "WaveNet",
    "WideDeep",
]
