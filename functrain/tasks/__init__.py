"""Tasks: machines with `init`, `update` and `evaluate` (see `base`)."""

from functrain.config import kinds
from functrain.tasks.base import OneLoss
from functrain.tasks.binary import Binary, Multilabel
from functrain.tasks.classification import Classification
from functrain.tasks.custom import CustomTask
from functrain.tasks.language import Language
from functrain.tasks.regression import Regression

AnyTask = kinds(Classification, Binary, Multilabel, Regression, Language, CustomTask)
"""[task]: every task a config can name."""

__all__ = ["AnyTask", "Binary", "Classification", "CustomTask", "Language", "Multilabel", "OneLoss", "Regression"]
