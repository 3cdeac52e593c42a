"""The optimizers: what each adds to the chain, with its settings and its paper.

The shared settings and the order of the stages are in `functrain.optim.chain`; docs/optimizers.md says how each agrees
with torch. Where optax has another convention than torch, torch's is the default.
"""

from typing import Annotated, Any, Literal

import jax
import optax
from pydantic import Field

from functrain import tree
from functrain.config import ConfigError, Fraction, NonNegative, Positive, Size, Text, configclass, kinds, off
from functrain.optim import preconditioners, transforms
from functrain.optim.adam import Adam, Adamax, AdamW, NAdam, NAdamW, RAdam, RAdamW
from functrain.optim.base import matches
from functrain.optim.chain import Chain, Decoupled
from functrain.optim.cma_es import CMAES
from functrain.optim.foreign import Optax
from functrain.optim.gradient_free import ParticleSwarm, SimulatedAnnealing
from functrain.optim.kfac import KFAC
from functrain.optim.schedules import Plateau
from functrain.optim.second_order import LBFGS, GaussNewton, Newton, NewtonCG

Share = Annotated[float, Field(gt=0, lt=1)]
"""A share that is neither none nor all."""


@configclass
class SGD(Chain):
    """Stochastic gradient descent, with momentum if asked: v = momentum v + g; p = p - lr v (as torch.optim.SGD)."""

    kind: Literal["sgd"] = "sgd"
    momentum: Fraction = 0.0
    """How much of the last update carries over; 0 is off."""
    nesterov: bool = False
    """Look ahead: the update is g + momentum v (Sutskever et al. 2013)."""

    by_row = True

    def precondition(self):
        """The trace of gradients."""
        return [] if off(self.momentum) else [optax.trace(self.momentum, self.nesterov)]  # pyright: ignore


@configclass
class Adagrad(Chain):
    """Adagrad (Duchi et al. 2011): g over the root of the sum of squared gradients (as torch.optim.Adagrad)."""

    kind: Literal["adagrad"] = "adagrad"
    peak_lr: Positive = 1e-2
    """The highest learning rate, reached after the warmup."""
    initial: NonNegative = 0.0
    """What the sum starts with (optax: 0.1)."""
    epsilon: NonNegative = 1e-10
    """Added to the root (optax adds it inside)."""

    by_row = True

    def precondition(self):
        """The sum of squares."""
        return [preconditioners.scale_by_adagrad(self.initial, self.epsilon)]


@configclass
class RowwiseAdagrad(Adagrad):
    """Adagrad with one sum for each row of a table, of its mean squared gradients: a number where Adagrad keeps a row.

    g / (sqrt(s) + epsilon), s += mean of g^2 over the row (Mudigere et al. 2022, section 4.1.1; the fused embeddings of
    PyTorch's FBGEMM). Other arrays are treated as Adagrad does.
    """

    kind: Literal["rowwise_adagrad"] = "rowwise_adagrad"
    tables: tuple[Text, ...] = ("table$",)
    """Patterns of the tables."""

    def precondition(self):
        """The sums of mean squares."""
        return [preconditioners.scale_by_adagrad(self.initial, self.epsilon, lambda path: matches(self.tables, path))]


@configclass
class Adadelta(Chain):
    """Adadelta (Zeiler 2012, algorithm 1), times a learning rate (as torch.optim.Adadelta)."""

    kind: Literal["adadelta"] = "adadelta"
    peak_lr: Positive = 1.0
    """The highest learning rate, reached after the warmup; 1 is the paper's."""
    rho: Fraction = 0.9
    """Decay of the means of squared gradients and squared updates."""
    epsilon: NonNegative = 1e-6
    """Added to both means, inside the roots."""

    def precondition(self):
        """The ratio of the two roots."""
        return [optax.scale_by_adadelta(self.rho, self.epsilon)]


@configclass
class RMSprop(Chain):
    """RMSprop (Hinton 2012, lecture 6e): g over the root of the mean of squared gradients, with momentum if asked."""

    kind: Literal["rmsprop"] = "rmsprop"
    peak_lr: Positive = 1e-2
    """The highest learning rate, reached after the warmup."""
    b2: Fraction = 0.99
    """Decay of the mean of squared gradients."""
    epsilon: NonNegative = 1e-8
    """Added to the root; inside it by optax's convention."""
    momentum: Fraction = 0.0
    """How much of the last update carries over; 0 is off."""
    centered: bool = False
    """Divide by the standard deviation: the mean of gradients is taken off (Graves 2013, eq. 38 to 40)."""
    convention: Literal["torch", "optax"] = "torch"
    """As torch.optim.RMSprop; or as optax.rmsprop, whose momentum is of steps with their rates in them."""

    by_row = True

    def precondition(self):
        """The second moment; in torch's convention momentum of what it scaled."""
        if self.convention == "optax":
            scale = optax.scale_by_stddev if self.centered else optax.scale_by_rms
            return [scale(self.b2, self.epsilon)]
        if self.centered:
            scaled = preconditioners.scale_by_centered_rms(self.b2, self.epsilon)
        else:
            scaled = optax.scale_by_rms(self.b2, self.epsilon, eps_in_sqrt=False)
        return [scaled, *self._momentum()]

    def finish(self):
        """In optax's convention momentum of finished steps."""
        return self._momentum() if self.convention == "optax" else []

    def _momentum(self) -> list[optax.GradientTransformation]:
        return [] if off(self.momentum) else [optax.trace(self.momentum)]  # pyright: ignore


@configclass
class Lion(Decoupled):
    """Lion (Chen et al. 2023, algorithm 2): the sign of a mean of gradients, with decoupled weight decay."""

    kind: Literal["lion"] = "lion"
    peak_lr: Positive = 1e-4
    """The highest learning rate, reached after the warmup; a third to a tenth of AdamW's."""
    weight_decay: NonNegative = 0.1
    """Decoupled decay: p = p - lr * weight_decay * p, for the parameters that decay; 0 is off."""
    b1: Fraction = 0.9
    """How much of the mean is in the update."""
    b2: Fraction = 0.99
    """Decay of the mean of gradients."""

    by_row = True

    def precondition(self):
        """The sign."""
        return [optax.scale_by_lion(self.b1, self.b2)]


@configclass
class Lamb(Decoupled):
    """LAMB (You et al. 2020, algorithm 2): Adam's update and its decay, scaled leaf by leaf to the parameter's norm."""

    kind: Literal["lamb"] = "lamb"
    weight_decay: NonNegative = 0.01
    """Decoupled decay, added to Adam's update before it is scaled, for the parameters that decay; 0 is off."""
    b1: Fraction = 0.9
    """Decay of the mean of gradients."""
    b2: Fraction = 0.999
    """Decay of the mean of squared gradients."""
    epsilon: NonNegative = 1e-6
    """Added to the root of the second moment."""

    def precondition(self):
        """Bias-corrected moments."""
        return [optax.scale_by_adam(self.b1, self.b2, self.epsilon)]

    def rescale(self):
        """|p| / |update|, 1 where either is zero."""
        return [optax.scale_by_trust_ratio()]


@configclass
class Adafactor(Decoupled):
    """Adafactor (Shazeer, Stern 2018, algorithms 4 and 5): second moments of matrices kept as a row and a column.

    By optax's convention (optax.adafactor) leaves are factored from 128 a side, the rate is not bounded by 1 / sqrt(t),
    and epsilon is added to squared gradients. All its numbers may be live.
    """

    kind: Literal["adafactor"] = "adafactor"
    peak_lr: Positive = 1e-2
    """The highest relative learning rate: times the size of each parameter, and by torch at most 1 / sqrt(t)."""
    exponent: NonNegative = 0.8
    """The decay of the second moment at update t is 1 - t^-exponent."""
    epsilon: NonNegative = 0.0
    """Least root of the second moment; 0 is the dtype's machine epsilon (by optax: added to squares; 0 is 1e-30)."""
    smallest: NonNegative = 1e-3
    """Least size of a parameter, as a root mean square, by which its step is multiplied."""
    threshold: Positive = 1.0
    """Largest root mean square of a leaf's scaled gradient."""
    convention: Literal["torch", "optax"] = "torch"
    """As torch.optim.Adafactor, or as optax.adafactor; the decay is times the learning rate in both."""

    def precondition(self):
        """The factored second moment, clipped, times the parameter's size."""
        if self.convention == "torch":
            args = (self.exponent, self.epsilon, self.smallest, self.threshold)
            return [preconditioners.scale_by_adafactor(self.rate, *args)]
        epsilon = 1e-30 if off(self.epsilon) else self.epsilon
        return [
            optax.scale_by_factored_rms(decay_rate=self.exponent, epsilon=epsilon),
            optax.clip_by_block_rms(self.threshold),
            optax.scale_by_param_block_rms(self.smallest),  # pyright: ignore
        ]


@configclass
class Muon(Decoupled):
    """Muon (Jordan et al. 2024): orthogonal momentum for matrices (as torch.optim.Muon), AdamW for all else."""

    kind: Literal["muon"] = "muon"
    weight_decay: NonNegative = 0.1
    """Decoupled decay: p = p - lr * weight_decay * p, for the parameters that decay; 0 is off."""
    matrices: tuple[str, ...] = ()
    """Patterns of the parameters of two axes that are made orthogonal; empty: all of them."""
    momentum: Fraction = 0.95
    """Decay of the mean of gradients."""
    nesterov: bool = True
    """Look ahead: what is made orthogonal is momentum * mean + (1 - momentum) * gradient."""
    iterations: Size = 5
    """Of Newton and Schulz."""
    adjust: Literal["original", "match_rms_adamw"] = "original"
    """A matrix's update times sqrt(max(1, outputs / inputs)), or 0.2 sqrt(max(inputs, outputs)), AdamW's size."""
    epsilon: NonNegative = 1e-7
    """Least norm by which a matrix is divided."""
    adam_b1: Fraction = 0.9
    """Decay of the mean of gradients, for all that is no matrix."""
    adam_b2: Fraction = 0.999
    """Decay of the mean of squared gradients, for all that is no matrix."""
    adam_epsilon: NonNegative = 1e-8
    """Added to the root of the second moment, for all that is no matrix."""

    def precondition(self):
        """Two stages, each for its part of the parameters."""
        muon = preconditioners.scale_by_muon(
            self.momentum, self.epsilon, nesterov=self.nesterov, steps=self.iterations, adjust=self.adjust
        )
        adam = optax.scale_by_adam(self.adam_b1, self.adam_b2, self.adam_epsilon)
        rest = lambda params: jax.tree.map(lambda chosen: not chosen, self._chosen(params))  # noqa: E731
        return [optax.masked(muon, self._chosen), optax.masked(adam, rest)]

    def check(self, params, section="optimizer"):
        """Raises a ConfigError where a pattern matches nothing, or what has not two axes."""
        super().check(params, section)
        try:
            chosen = tree.by_path(tree.select(self.matrices, params))
        except ValueError as error:
            raise ConfigError(f"{section}.matrices: {error}") from None
        for path, p in tree.by_path(params).items():
            if chosen[path] and p.ndim != 2:
                raise ConfigError(f"{section}.matrices: {path} has {p.ndim} axes; expected patterns of matrices alone")

    def _chosen(self, params) -> Any:
        """A tree of booleans: which parameters are made orthogonal."""

        def chosen(path, p):
            return p.ndim == 2 and (not self.matrices or matches(self.matrices, path))

        return tree.map_by_path(chosen, params)


@configclass
class _ScheduleFree(Decoupled):
    """What schedule-free optimizers share: the average that takes the place of a falling rate."""

    b1: Share = 0.9
    """How much of the average is in the parameters at which the gradient is taken."""

    def __post_init__(self):
        if isinstance(self.schedule, Plateau):
            raise ValueError(f"schedule: found plateau; {self.kind} weighs by the schedule's rate alone; take constant")  # pyright: ignore
        if self.lookahead_every:
            raise ValueError(f"lookahead_every: found {self.lookahead_every}; {self.kind} averages already; expected 0")  # pyright: ignore

    def finish(self):
        """The average."""
        return [transforms.schedule_free(self.rate, self.b1)]

    def weights(self, optimizer_state, params):
        """The average x; the parameters are y, where gradients are taken."""
        return transforms.averaged(self.stage_state(optimizer_state, transforms.ScheduleFreeState), params)  # pyright: ignore


@configclass
class ScheduleFreeAdamW(_ScheduleFree):
    """Schedule-free AdamW (Defazio et al. 2024, algorithm 1): no schedule but a warmup; evaluation uses the average."""

    kind: Literal["schedule_free_adamw"] = "schedule_free_adamw"
    peak_lr: Positive = 2.5e-3
    """The learning rate, reached after the warmup; up to ten times AdamW's."""
    weight_decay: NonNegative = 0.01
    """Decoupled decay: z = z - lr * weight_decay * p, for the parameters that decay; 0 is off."""
    b2: Fraction = 0.999
    """Decay of the mean of squared gradients."""
    epsilon: NonNegative = 1e-8
    """Added to the root of the second moment."""

    def precondition(self):
        """The bias-corrected second moment; the average stands for the first."""
        return [optax.scale_by_rms(self.b2, self.epsilon, eps_in_sqrt=False, bias_correction=True)]


@configclass
class ScheduleFreeSGD(_ScheduleFree):
    """Schedule-free SGD (Defazio et al. 2024, eq. 3 to 5): no schedule but a warmup; evaluation uses the average."""

    kind: Literal["schedule_free_sgd"] = "schedule_free_sgd"
    peak_lr: Positive = 1.0
    """The learning rate, reached after the warmup; larger than SGD's with momentum."""

    def precondition(self):
        """None: the average stands for momentum."""
        return []


AnyOptimizer = kinds(
    SGD,
    Adam,
    AdamW,
    Adagrad,
    RowwiseAdagrad,
    Adadelta,
    RMSprop,
    NAdam,
    NAdamW,
    RAdam,
    RAdamW,
    Adamax,
    Lion,
    Lamb,
    Adafactor,
    Muon,
    ScheduleFreeAdamW,
    ScheduleFreeSGD,
    Newton,
    GaussNewton,
    NewtonCG,
    LBFGS,
    KFAC,
    CMAES,
    SimulatedAnnealing,
    ParticleSwarm,
    Optax,
    default="adamw",
)
"""[optimizer]: every optimizer a config can name."""
