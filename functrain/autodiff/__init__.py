"""Derivatives: estimators of gradients, and attacks, which climb the gradient by the inputs."""

from functrain.autodiff import attacks
from functrain.autodiff.check import Checked, gradient_check
from functrain.autodiff.estimators import SAM, AnyEstimator, MinNorm, Reverse
from functrain.autodiff.forward import Forward
from functrain.autodiff.private import DPSGD
from functrain.autodiff.traces import Trace, first_nonfinite, trace
from functrain.autodiff.zeroth_order import SPSA, Central, Evolution

__all__ = [
    "DPSGD",
    "SAM",
    "SPSA",
    "AnyEstimator",
    "Central",
    "Checked",
    "Evolution",
    "Forward",
    "MinNorm",
    "Reverse",
    "Trace",
    "attacks",
    "first_nonfinite",
    "gradient_check",
    "trace",
]
