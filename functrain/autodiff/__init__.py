"""Derivatives: estimators of gradients, and attacks, which climb the gradient by the inputs."""

from functrain.autodiff import attacks
from functrain.autodiff.estimators import SAM, AnyEstimator, Reverse

__all__ = ["SAM", "AnyEstimator", "Reverse", "attacks"]
