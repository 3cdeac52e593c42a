"""Precision: autocast for any function, policies for training, and the dynamic loss scale."""

from functrain.precision.autocast import autocast
from functrain.precision.policy import (
    EXACT,
    AnyPrecision,
    Auto,
    Autocast,
    BFloat16,
    Float8,
    Float16,
    Float32,
    LossScale,
    dtype_of,
)
from functrain.precision.rules import CLASSES, EXEMPT, Float64, Rule, Rules, class_of

__all__ = [
    "CLASSES",
    "EXACT",
    "EXEMPT",
    "AnyPrecision",
    "Auto",
    "Autocast",
    "BFloat16",
    "Float8",
    "Float16",
    "Float32",
    "Float64",
    "LossScale",
    "Rule",
    "Rules",
    "autocast",
    "class_of",
    "dtype_of",
]
