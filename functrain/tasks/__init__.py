"""Tasks: machines with `init`, `update` and `evaluate` (see `base`)."""

from functrain.config import kinds
from functrain.tasks.als import ALS
from functrain.tasks.base import OneLoss
from functrain.tasks.binary import Binary, Multilabel
from functrain.tasks.classification import Classification
from functrain.tasks.control import DDPG, TD3
from functrain.tasks.ctc import CTC
from functrain.tasks.custom import CustomTask
from functrain.tasks.cyclegan import CycleTranslation
from functrain.tasks.detection import Detection
from functrain.tasks.distillation import Distillation
from functrain.tasks.embedding import Embedding
from functrain.tasks.fixmatch import FixMatch
from functrain.tasks.gan import GAN
from functrain.tasks.language import Language
from functrain.tasks.many import ManyTasks
from functrain.tasks.masked import MaskedLanguage
from functrain.tasks.masked_autoencoder import MaskedAutoencoder
from functrain.tasks.recommendation import Recommendation
from functrain.tasks.regression import Regression
from functrain.tasks.robust import Robust
from functrain.tasks.segmentation import Segmentation
from functrain.tasks.simclr import SimCLR
from functrain.tasks.span import Span
from functrain.tasks.translation import Translation
from functrain.tasks.variational import Variational
from functrain.tasks.waveform import Waveform

AnyTask = kinds(
    Classification,
    Binary,
    Multilabel,
    Regression,
    Language,
    MaskedLanguage,
    Span,
    Robust,
    Segmentation,
    Detection,
    Embedding,
    Translation,
    CTC,
    Waveform,
    Variational,
    GAN,
    CycleTranslation,
    Distillation,
    ManyTasks,
    FixMatch,
    SimCLR,
    MaskedAutoencoder,
    Recommendation,
    ALS,
    DDPG,
    TD3,
    CustomTask,
)
"""[task]: every task a config can name."""

__all__ = [
    "ALS",
    "CTC",
    "DDPG",
    "GAN",
    "TD3",
    "AnyTask",
    "Binary",
    "Classification",
    "CustomTask",
    "CycleTranslation",
    "Detection",
    "Distillation",
    "Embedding",
    "FixMatch",
    "Language",
    "ManyTasks",
    "MaskedAutoencoder",
    "MaskedLanguage",
    "Multilabel",
    "OneLoss",
    "Recommendation",
    "Regression",
    "Robust",
    "Segmentation",
    "SimCLR",
    "Span",
    "Translation",
    "Variational",
    "Waveform",
]
