"""Optimizers: a config that builds one visible optax chain.

The chain is rebuilt inside the traced step, so that its numbers may be live (see `functrain.train.hyper`); a float
that is a Python 0.0 leaves its stage out. The order of the stages, the same for all:

    clip         first: the norm that is bounded is the gradient's own
    L2 penalty   sgd and adam: added to the gradient, before momentum and preconditioner (as in torch)
    precondition
    decay        adamw: after the preconditioner, decoupled from the gradient (Loshchilov, Hutter 2019)
    rate         last: times -(peak_lr * schedule)
"""

import dataclasses
from abc import ABC, abstractmethod
from typing import Any, Literal

import jax
import optax

from functrain import tree
from functrain.config import ConfigError, Fraction, NonNegative, Positive, configclass, kinds
from functrain.optim.schedules import AnySchedule, Constant


def _off(number) -> bool:
    """Whether a setting is off: a Python zero. A traced zero is a value like any other."""
    return isinstance(number, (int, float)) and number == 0


@configclass
class _Optimizer(ABC):
    """The settings that all optimizers share, and the chain."""

    peak_lr: Positive = 1e-3
    """The highest learning rate, reached after the warmup."""
    schedule: AnySchedule = dataclasses.field(default_factory=Constant)  # pyright: ignore[reportInvalidTypeForm]
    """How the learning rate changes over the run."""
    weight_decay: NonNegative = 0.0
    """Decay of the weights: decoupled for adamw, an L2 penalty for sgd and adam; 0 is off."""
    decay: tuple[str, ...] = ()
    """Patterns of the parameters that decay, searched in paths such as layer0/kernel; empty: all of two axes up."""
    clip_norm: NonNegative = 0.0
    """Largest norm of the whole gradient; a larger one is scaled down to it; 0 is off."""

    decoupled = False  # whether weight decay skips the preconditioner

    @abstractmethod
    def precondition(self) -> list[optax.GradientTransformation]:
        """The stages that make this optimizer what it is."""

    def sized(self, steps: int) -> Any:
        """The optimizer with its schedule's horizon known."""
        return dataclasses.replace(self, schedule=self.schedule.sized(steps))

    def check(self, params: Any, section: str = "optimizer") -> None:
        """Raises a ConfigError where a pattern matches no parameter."""
        try:
            tree.select(self.decay, params)
        except ValueError as error:
            raise ConfigError(f"{section}.decay: {error}") from None

    def rate(self, count: Any) -> Any:
        """The learning rate at update `count`."""
        return self.peak_lr * self.schedule.share(count)

    def build(self) -> optax.GradientTransformation:
        """The chain, in the order that the module's first lines give."""
        decay = []
        if not _off(self.weight_decay):
            decay = [optax.add_decayed_weights(self.weight_decay, self.decays)]
        return optax.chain(
            *([] if _off(self.clip_norm) else [optax.clip_by_global_norm(self.clip_norm)]),  # pyright: ignore
            *([] if self.decoupled else decay),
            *self.precondition(),
            *(decay if self.decoupled else []),
            optax.scale_by_schedule(lambda count: -self.rate(count)),
        )

    def updates(self, optimizer_state: Any) -> Any:
        """How many updates were applied: the count of the chain's last stage."""
        return optimizer_state[-1].count

    def decays(self, params: Any) -> Any:
        """A tree of booleans: which parameters decay."""
        if self.decay:
            return tree.select(self.decay, params)
        return jax.tree.map(lambda p: p.ndim >= 2, params)  # biases and norms have one axis


@configclass
class SGD(_Optimizer):
    """Stochastic gradient descent, with momentum if asked: v = momentum v + g; p = p - lr v (as torch.optim.SGD)."""

    kind: Literal["sgd"] = "sgd"
    momentum: Fraction = 0.0
    """How much of the last update carries over; 0 is off."""
    nesterov: bool = False
    """Look ahead: the update is g + momentum v (Sutskever et al. 2013)."""

    def precondition(self):
        """The trace of gradients."""
        return [] if _off(self.momentum) else [optax.trace(self.momentum, self.nesterov)]  # pyright: ignore


@configclass
class Adam(_Optimizer):
    """Adam (Kingma, Ba 2015, algorithm 1); weight decay is an L2 penalty on the gradient (as torch.optim.Adam)."""

    kind: Literal["adam"] = "adam"
    b1: Fraction = 0.9
    """Decay of the mean of gradients."""
    b2: Fraction = 0.999
    """Decay of the mean of squared gradients."""
    epsilon: NonNegative = 1e-8
    """Added to the root of the second moment."""

    def precondition(self):
        """Bias-corrected moments."""
        return [optax.scale_by_adam(self.b1, self.b2, self.epsilon)]


@configclass
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov, Hutter 2019, algorithm 2; the decay is times the learning rate)."""

    kind: Literal["adamw"] = "adamw"
    weight_decay: NonNegative = 0.01
    """Decoupled decay: p = p - lr * weight_decay * p, for the parameters that decay; 0 is off."""

    decoupled = True


AnyOptimizer = kinds(SGD, Adam, AdamW, default="adamw")
"""[optimizer]: every optimizer a config can name."""
