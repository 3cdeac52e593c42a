"""Tasks: machines with `init`, `update` and `evaluate` (see `base`)."""

from functrain.config import kinds
from functrain.tasks.base import OneLoss
from functrain.tasks.binary import Binary, Multilabel
from functrain.tasks.classification import Classification
from functrain.tasks.custom import CustomTask
from functrain.tasks.detection import Detection
from functrain.tasks.embedding import Embedding
from functrain.tasks.language import Language
from functrain.tasks.regression import Regression
from functrain.tasks.robust import Robust
from functrain.tasks.segmentation import Segmentation

AnyTask = kinds(
    Classification,
    Binary,
    Multilabel,
    Regression,
    Language,
    Robust,
    Segmentation,
    Detection,
    Embedding,
    CustomTask,
)
"""[task]: every task a config can name."""

__all__ = [
    "AnyTask",
    "Binary",
    "Classification",
    "CustomTask",
    "Detection",
    "Embedding",
    "Language",
    "Multilabel",
    "OneLoss",
    "Regression",
    "Robust",
    "Segmentation",
]
