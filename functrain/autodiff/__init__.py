"""Derivatives: estimators of gradients."""

from functrain.autodiff.estimators import Reverse

__all__ = ["Reverse"]
