"""Derivatives: estimators of gradients."""

from functrain.autodiff.estimators import SAM, AnyEstimator, Reverse

__all__ = ["SAM", "AnyEstimator", "Reverse"]
