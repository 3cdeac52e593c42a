"""Tasks: machines with `init`, `update` and `evaluate` (see `base`)."""

from functrain.config import kinds
from functrain.tasks.base import OneLoss
from functrain.tasks.classification import Classification
from functrain.tasks.custom import CustomTask
from functrain.tasks.regression import Regression

AnyTask = kinds(Classification, Regression, CustomTask)
"""[task]: every task a config can name."""

__all__ = ["AnyTask", "Classification", "CustomTask", "OneLoss", "Regression"]
