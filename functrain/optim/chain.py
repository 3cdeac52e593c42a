"""What every optimizer shares: the settings, and one visible optax chain.

The chain is rebuilt inside the traced step, so that its numbers may be live (see `functrain.train.hyper`); a float
that is a Python 0.0 leaves its stage out. The order of the stages, the same for all:

    clip          first, for what is bounded is the gradient's own: elements, then units, then the whole; each only
                  scales down, and so keeps the bounds before it
    penalties     l1, and L2 (weight_decay, or l2 where that is decoupled): added to the gradient, before momentum and
                  preconditioner (as in torch)
    precondition  what makes the optimizer what it is
    decay         decoupled: after the preconditioner, and so untouched by it (Loshchilov, Hutter 2019)
    rescale       lamb: by the ratio of the norms of parameter and update, the decay in it (You et al. 2020)
    rate          times -(peak_lr * schedule); what follows works on finished steps
    rates         times the factor of each parameter
    plateau       times what the loss has left of the rate
    finish        schedule-free's average; momentum of finished steps in optax's RMSprop
    lookahead     last: it needs the parameters as the step leaves them
"""

import dataclasses
import re
from abc import abstractmethod
from typing import Any

import optax

from functrain import tree
from functrain.config import ConfigError, Count, Fraction, NonNegative, Positive, Text, configclass, off
from functrain.optim import transforms
from functrain.optim.base import Optimizer, matches
from functrain.optim.schedules import AnySchedule, Constant


@configclass
class Chain(Optimizer):
    """The settings of all that scale a gradient, and the chain."""

    peak_lr: Positive = 1e-3
    """The highest learning rate, reached after the warmup."""
    schedule: AnySchedule = dataclasses.field(default_factory=Constant)  # pyright: ignore[reportInvalidTypeForm]
    """How the learning rate changes over the run."""
    weight_decay: NonNegative = 0.0
    """Decay of the weights: decoupled where the kind says so, an L2 penalty for the others; 0 is off."""
    decay: tuple[str, ...] = ()
    """Patterns of the parameters that decay, searched in paths such as layer0/kernel; empty: all of two axes up."""
    l1: NonNegative = 0.0
    """L1 penalty, for the parameters that decay: l1 * sign(p) is added to the gradient; 0 is off."""
    clip_norm: NonNegative = 0.0
    """Largest norm of the whole gradient; a larger one is scaled down to it; 0 is off."""
    clip_value: NonNegative = 0.0
    """Largest size of any element of the gradient; 0 is off."""
    clip_adaptive: NonNegative = 0.0
    """Largest norm of a unit's gradient, as a share of its weights' norm (Brock et al. 2021, eq. 3); 0 is off."""
    rates: tuple[tuple[Text, NonNegative], ...] = ()
    """Pairs [pattern, factor]: the learning rate of parameters, as a multiple; the first that matches; 0 freezes."""
    sparse: tuple[str, ...] = ()
    """Patterns of the tables of which a step touches only the rows that its batch reads (see docs/optimizers.md)."""
    lookahead_every: Count = 0
    """Updates after which slow weights move towards the parameters and replace them (Zhang et al. 2019); 0 is off."""
    lookahead_share: Fraction = 0.5
    """How far the slow weights move, as a share of the way."""

    decoupled = False  # whether weight decay skips the preconditioner
    by_row = False  # whether what it does to a row of an array depends on that row alone, now and before

    @abstractmethod
    def precondition(self) -> list[optax.GradientTransformation]:
        """The stages that make this optimizer what it is."""

    def rescale(self) -> list[optax.GradientTransformation]:
        """The stages between decay and rate."""
        return []

    def step(self) -> optax.GradientTransformation:
        """The stage that applies the rate, and counts."""
        return optax.scale_by_schedule(lambda count: -self.rate(count))

    def finish(self) -> list[optax.GradientTransformation]:
        """The stages that work on finished steps."""
        return []

    def stages(self) -> optax.GradientTransformation:
        """The chain, in the order that the module's first lines give."""
        decay = []
        if not off(self.weight_decay):
            decay = [optax.add_decayed_weights(self.weight_decay, self.decays)]
        l2 = getattr(self, "l2", 0.0)
        plateau = self.schedule.stage()
        return optax.chain(
            *([] if off(self.clip_value) else [optax.clip(self.clip_value)]),
            *([] if off(self.clip_adaptive) else [transforms.adaptive_clip(self.clip_adaptive)]),
            *([] if off(self.clip_norm) else [optax.clip_by_global_norm(self.clip_norm)]),  # pyright: ignore
            *([] if off(self.l1) else [optax.masked(transforms.add_sign(self.l1), self.decays)]),
            *([] if off(l2) else [optax.add_decayed_weights(l2, self.decays)]),
            *([] if self.decoupled else decay),
            *self.precondition(),
            *(decay if self.decoupled else []),
            *self.rescale(),
            self.step(),
            *([transforms.scale_by_path(self._factor)] if self.rates else []),
            *([] if plateau is None else [plateau]),
            *self.finish(),
            *([transforms.lookahead(self.lookahead_every, self.lookahead_share)] if self.lookahead_every else []),
        )

    # -- what a learner asks ----------------------------------------------------------------------

    def sized(self, steps: int) -> Any:
        """The optimizer with its schedule's horizon known."""
        return dataclasses.replace(self, schedule=self.schedule.sized(steps))

    def check(self, params: Any, section: str = "optimizer") -> None:
        """Raises a ConfigError where a pattern matches no parameter, or a parameter is left out."""
        if self.sparse:
            self._check_sparse(section)
        super().check(params, section)
        factors = self.patterns()["rates"]
        for path in tree.by_path(params) if self.rates else ():
            if not matches(factors, path):
                raise ConfigError(f'{section}.rates: no pattern matches {path}; end the list with [".", 1.0]')

    def patterns(self) -> dict[str, tuple[str, ...]]:
        """Key -> patterns, each of which must match a parameter."""
        rates = tuple(pattern for pattern, _ in self.rates)
        return super().patterns() | {"decay": self.decay, "rates": rates, "sparse": self.sparse}

    def rate(self, count: Any) -> Any:
        """The learning rate at update `count`, by the schedule."""
        return self.peak_lr * self.schedule.share(count)

    def current_rate(self, optimizer_state: Any) -> Any:
        """The learning rate that the next update will use: the schedule's, times what a plateau has left of it."""
        rate = self.rate(self.updates(optimizer_state))
        plateau = self.stage_state(optimizer_state, transforms.PlateauState)
        return rate if plateau is None else rate * plateau.factor

    def updates(self, optimizer_state: Any) -> Any:
        """How many updates were applied."""
        counter = (optax.ScaleByScheduleState, transforms.CountedState)
        return self.stage_state(optimizer_state, counter).count  # pyright: ignore[reportOptionalMemberAccess]

    def decays(self, params: Any) -> Any:
        """By `decay`."""
        return self._decaying(self.decay, params)

    def _check_sparse(self, section: str) -> None:
        """Raises a ConfigError where rows that a batch does not read would have to change, or be looked at."""
        if not self.by_row:
            raise ConfigError(f"{section}.sparse: {getattr(self, 'kind', '')!r} treats no row of a table by itself")
        for key in ("lookahead_every", "clip_adaptive"):
            if getattr(self, key):
                raise ConfigError(f"{section}.{key}: it needs whole tables; leave it out, or {section}.sparse")

    # -- patterns ---------------------------------------------------------------------------------

    @property
    def _freezes(self) -> bool:
        return super()._freezes or any(factor == 0 for _, factor in self.rates)

    def _still(self, path: str) -> bool:
        """Whether a parameter is frozen."""
        return super()._still(path) or self._factor(path) == 0

    def _factor(self, path: str) -> float:
        """What the rates make of a parameter's learning rate."""
        return next((factor for pattern, factor in self.rates if re.search(pattern, path)), 1.0)


@configclass
class Decoupled(Chain):
    """Those whose weight decay skips the preconditioner: they have a key of its own for an L2 penalty."""

    l2: NonNegative = 0.0
    """L2 penalty, for the parameters that decay: l2 * p is added to the gradient; 0 is off."""

    decoupled = True
