"""Precision: policies and the dynamic loss scale."""

from functrain.precision.policy import EXACT, AnyPrecision, BFloat16, Float16, Float32, LossScale, dtype_of

__all__ = ["EXACT", "AnyPrecision", "BFloat16", "Float16", "Float32", "LossScale", "dtype_of"]
