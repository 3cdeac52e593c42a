"""Adam and its kin: what each adds to the chain (see `functrain.optim.chain`), with its settings and its paper."""

from typing import Literal

import optax

from functrain.config import Fraction, NonNegative, Positive, configclass
from functrain.optim import preconditioners
from functrain.optim.chain import Chain, Decoupled


@configclass
class Adam(Chain):
    """Adam (Kingma, Ba 2015, algorithm 1); weight decay is an L2 penalty on the gradient (as torch.optim.Adam)."""

    kind: Literal["adam"] = "adam"
    b1: Fraction = 0.9
    """Decay of the mean of gradients."""
    b2: Fraction = 0.999
    """Decay of the mean of squared gradients."""
    epsilon: NonNegative = 1e-8
    """Added to the root of the second moment."""
    amsgrad: bool = False
    """Divide by the largest second moment so far (Reddi et al. 2018, algorithm 2)."""

    by_row = True

    def precondition(self):
        """Bias-corrected moments."""
        if self.amsgrad:
            return [preconditioners.scale_by_amsgrad(self.b1, self.b2, self.epsilon)]
        return [optax.scale_by_adam(self.b1, self.b2, self.epsilon)]


@configclass
class AdamW(Adam, Decoupled):
    """Adam with decoupled weight decay (Loshchilov, Hutter 2019, algorithm 2; the decay is times the learning rate)."""

    kind: Literal["adamw"] = "adamw"
    weight_decay: NonNegative = 0.01
    """Decoupled decay: p = p - lr * weight_decay * p, for the parameters that decay; 0 is off."""


@configclass
class NAdam(Chain):
    """Adam with Nesterov's momentum (Dozat 2016, algorithm 2); weight decay is an L2 penalty (as torch.optim.NAdam)."""

    kind: Literal["nadam"] = "nadam"
    peak_lr: Positive = 2e-3
    """The highest learning rate, reached after the warmup."""
    b1: Fraction = 0.9
    """Decay of the mean of gradients."""
    b2: Fraction = 0.999
    """Decay of the mean of squared gradients."""
    epsilon: NonNegative = 1e-8
    """Added to the root of the second moment."""
    momentum_decay: NonNegative = 4e-3
    """How fast the momentum rises from b1 / 2 to b1; torch's convention alone has it."""
    convention: Literal["torch", "optax"] = "torch"
    """As torch.optim.NAdam, with a schedule of the momentum; or as optax.nadam, without."""

    def precondition(self):
        """Moments, the first one step ahead."""
        if self.convention == "optax":
            return [optax.scale_by_adam(self.b1, self.b2, self.epsilon, nesterov=True)]
        return [preconditioners.scale_by_nadam(self.b1, self.b2, self.epsilon, self.momentum_decay)]


@configclass
class NAdamW(NAdam, Decoupled):
    """NAdam with decoupled weight decay (as torch.optim.NAdam with decoupled_weight_decay)."""

    kind: Literal["nadamw"] = "nadamw"
    weight_decay: NonNegative = 0.01
    """Decoupled decay: p = p - lr * weight_decay * p, for the parameters that decay; 0 is off."""


@configclass
class RAdam(Chain):
    """Rectified Adam (Liu et al. 2020, algorithm 2); weight decay is an L2 penalty (as torch.optim.RAdam)."""

    kind: Literal["radam"] = "radam"
    b1: Fraction = 0.9
    """Decay of the mean of gradients."""
    b2: Fraction = 0.999
    """Decay of the mean of squared gradients."""
    epsilon: NonNegative = 1e-8
    """Added to the root of the second moment."""
    convention: Literal["torch", "optax"] = "torch"
    """As torch.optim.RAdam, epsilon beside the root before its bias is corrected; or as optax.radam, after."""

    def precondition(self):
        """Moments, the second used once it can be trusted."""
        if self.convention == "optax":
            return [optax.scale_by_radam(self.b1, self.b2, self.epsilon)]
        return [preconditioners.scale_by_radam(self.b1, self.b2, self.epsilon)]


@configclass
class RAdamW(RAdam, Decoupled):
    """RAdam with decoupled weight decay (as torch.optim.RAdam with decoupled_weight_decay)."""

    kind: Literal["radamw"] = "radamw"
    weight_decay: NonNegative = 0.01
    """Decoupled decay: p = p - lr * weight_decay * p, for the parameters that decay; 0 is off."""


@configclass
class Adamax(Chain):
    """Adamax (Kingma, Ba 2015, algorithm 2); weight decay is an L2 penalty (as torch.optim.Adamax)."""

    kind: Literal["adamax"] = "adamax"
    peak_lr: Positive = 2e-3
    """The highest learning rate, reached after the warmup."""
    b1: Fraction = 0.9
    """Decay of the mean of gradients."""
    b2: Fraction = 0.999
    """Decay of the largest size of gradients."""
    epsilon: NonNegative = 1e-8
    """Added to the size of each gradient."""

    def precondition(self):
        """The mean over the largest size."""
        return [optax.scale_by_adamax(self.b1, self.b2, self.epsilon)]
