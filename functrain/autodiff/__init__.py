"""Derivatives: estimators of gradients, and attacks, which climb the gradient by the inputs."""

from functrain.autodiff import attacks
from functrain.autodiff.estimators import SAM, AnyEstimator, MinNorm, Reverse

__all__ = ["SAM", "AnyEstimator", "MinNorm", "Reverse", "attacks"]
