"""Learning-rate schedules: the share of `peak_lr` at each update, a function of the number of updates done.

Each has `warmup`: a linear rise over that many updates, whose first is peak / warmup and never zero (one_cycle has a
rise of its own). Where a schedule ends, its horizon `steps` is the run's length unless the config gives another.

>>> [float(Linear(warmup=2, steps=4).share(jnp.asarray(i))) for i in range(5)]
[0.5, 1.0, 1.0, 0.5, 0.0]
"""

import dataclasses
import itertools
from abc import ABC, abstractmethod
from typing import Any, Literal

import jax.numpy as jnp
import optax

from functrain.config import Count, Fraction, NonNegative, Positive, Size, configclass, kinds, off
from functrain.optim import transforms


class _Schedule(ABC):
    """What the schedules share: warmup first, then `after(count)`."""

    warmup: int
    steps: int

    def sized(self, steps: int) -> Any:
        """The schedule with its horizon: the run's steps, unless the config gives one."""
        return dataclasses.replace(self, steps=self.steps or steps) if hasattr(self, "steps") else self  # pyright: ignore

    def share(self, count: Any) -> Any:
        """The share of the peak at update `count` (0 is the first)."""
        count = jnp.asarray(count, float)
        share = self.after(count)
        return jnp.where(count < self.warmup, (count + 1) / self.warmup, share) if self.warmup else share

    def progress(self, count: Any) -> Any:
        """How far `count` is on the way from the warmup to the horizon: 0 to 1."""
        progress = (count - self.warmup) / max(getattr(self, "steps", 0) - self.warmup, 1)
        return jnp.clip(progress, 0, 1)

    @abstractmethod
    def after(self, count: Any) -> Any:
        """The share of the peak at update `count`, a float, once the warmup is over."""

    def stage(self) -> optax.GradientTransformationExtraArgs | None:
        """What the schedule adds to the optimizer's chain: a stage for one that depends on the loss."""
        return None


@configclass
class Constant(_Schedule):
    """The peak throughout, after the warmup."""

    kind: Literal["constant"] = "constant"
    warmup: Count = 0
    """Updates of linear rise to the peak."""

    def after(self, count):
        """1."""
        return jnp.ones_like(count)


@configclass
class Linear(_Schedule):
    """From the peak down to `final` times the peak, in a straight line."""

    kind: Literal["linear"] = "linear"
    warmup: Count = 0
    """Updates of linear rise to the peak."""
    steps: Count = 0
    """The update at which the end is reached; 0 is the run's length."""
    final: NonNegative = 0.0
    """What is left of the peak at the end, as a share."""

    def after(self, count):
        """1 - (1 - final) progress."""
        return 1 - (1 - self.final) * self.progress(count)


@configclass
class Cosine(_Schedule):
    """From the peak down to `final` times the peak along half a cosine (Loshchilov, Hutter 2017, eq. 5)."""

    kind: Literal["cosine"] = "cosine"
    warmup: Count = 0
    """Updates of linear rise to the peak."""
    steps: Count = 0
    """The update at which the end is reached; 0 is the run's length."""
    final: NonNegative = 0.0
    """What is left of the peak at the end, as a share."""

    def after(self, count):
        """final + (1 - final) (1 + cos(pi progress)) / 2."""
        return self.final + (1 - self.final) * (1 + jnp.cos(jnp.pi * self.progress(count))) / 2


@configclass
class Exponential(_Schedule):
    """From the peak down to `final` times the peak, by the same factor at each update."""

    kind: Literal["exponential"] = "exponential"
    warmup: Count = 0
    """Updates of linear rise to the peak."""
    steps: Count = 0
    """The update at which the end is reached; 0 is the run's length."""
    final: Positive = 0.01
    """What is left of the peak at the end, as a share."""

    def after(self, count):
        """final^progress."""
        return self.final ** self.progress(count)


@configclass
class Step(_Schedule):
    """Times `gamma` at each of the milestones, which count from the run's first update, warmup included."""

    kind: Literal["step"] = "step"
    warmup: Count = 0
    """Updates of linear rise to the peak."""
    steps: Count = 0
    """The updates of which shares are taken; 0 is the run's length."""
    milestones: tuple[Positive, ...] = (0.5, 0.75)
    """When the rate falls: all shares of the run (below 1), or all updates (from 1), rising."""
    gamma: Positive = 0.1
    """By what the rate is multiplied."""

    def __post_init__(self):
        found = f"milestones: found {list(self.milestones)}; expected"
        if any(a >= b for a, b in itertools.pairwise(self.milestones)):
            raise ValueError(f"{found} numbers that rise")
        if not self._shares and not all(m >= 1 and m == int(m) for m in self.milestones):
            raise ValueError(f"{found} shares of the run below 1, or whole numbers of updates, not both")

    @property
    def _shares(self) -> bool:
        return all(m < 1 for m in self.milestones)

    def after(self, count):
        """gamma^(how many milestones are reached)."""
        at = [round(m * self.steps) if self._shares else m for m in self.milestones]
        return self.gamma ** sum((count >= m).astype(count.dtype) for m in at) if at else jnp.ones_like(count)


@configclass
class Polynomial(_Schedule):
    """From the peak down to `final` times the peak, as a power of what is left of the way."""

    kind: Literal["polynomial"] = "polynomial"
    warmup: Count = 0
    """Updates of linear rise to the peak."""
    steps: Count = 0
    """The update at which the end is reached; 0 is the run's length."""
    final: NonNegative = 0.0
    """What is left of the peak at the end, as a share."""
    power: Positive = 2.0
    """The exponent; 1 is linear."""

    def after(self, count):
        """final + (1 - final) (1 - progress)^power."""
        return self.final + (1 - self.final) * (1 - self.progress(count)) ** self.power


@configclass
class OneCycle(_Schedule):
    """Up from `start` to the peak and down to `final`, each along half a cosine (Smith, Topin 2018).

    As torch's OneCycleLR in two phases: the peak at update rise * steps - 1, the end at the last update, steps - 1.
    """

    kind: Literal["one_cycle"] = "one_cycle"
    steps: Count = 0
    """The updates of the cycle; 0 is the run's length."""
    rise: Fraction = 0.3
    """The share of the cycle in which the rate rises."""
    start: NonNegative = 0.04
    """The rate of the first update, as a share of the peak."""
    final: NonNegative = 4e-6
    """What is left of the peak at the end, as a share."""

    warmup = 0  # the rise is one

    def after(self, count):
        """start or final + (1 - it) (1 + cos(pi p)) / 2, p the distance from the peak, 1 at either end."""
        peak, last = self.rise * self.steps - 1, self.steps - 1
        rising = count <= peak
        ahead = (peak - count) / jnp.where(peak > 0, peak, 1)
        behind = (count - peak) / jnp.maximum(last - peak, 1e-6)
        end = jnp.where(rising, self.start, self.final)
        return end + (1 - end) * (1 + jnp.cos(jnp.pi * jnp.clip(jnp.where(rising, ahead, behind), 0, 1))) / 2


@configclass
class InverseSqrt(_Schedule):
    """After the warmup, by the inverse root of the update's number (Vaswani et al. 2017, eq. 3, its peak as 1)."""

    kind: Literal["inverse_sqrt"] = "inverse_sqrt"
    warmup: Count = 0
    """Updates of linear rise to the peak."""

    def after(self, count):
        """sqrt(max(warmup, 1) / (count + 1))."""
        return jnp.sqrt(max(self.warmup, 1) / (count + 1))


@configclass
class WSD(_Schedule):
    """Warmup, then the peak, then a decay to `final` at the end (Hu et al. 2024, section 4; Hägele et al. 2024)."""

    kind: Literal["wsd"] = "wsd"
    warmup: Count = 0
    """Updates of linear rise to the peak."""
    steps: Count = 0
    """The update at which the end is reached; 0 is the run's length."""
    decay: Fraction = 0.2
    """The last share of the steps, in which the rate decays; 0 is none."""
    shape: Literal["linear", "sqrt", "cosine"] = "linear"
    """How it decays: 1 - p, 1 - sqrt(p) or (1 + cos(pi p)) / 2, p from 0 to 1."""
    final: NonNegative = 0.0
    """What is left of the peak at the end, as a share."""

    def after(self, count):
        """final + (1 - final) shape(p)."""
        if off(self.decay):
            return jnp.ones_like(count)
        length = self.decay * self.steps
        p = jnp.clip((count - (self.steps - length)) / jnp.maximum(length, 1e-6), 0, 1)
        shapes = {"linear": 1 - p, "sqrt": 1 - jnp.sqrt(p), "cosine": (1 + jnp.cos(jnp.pi * p)) / 2}
        return self.final + (1 - self.final) * shapes[self.shape]


@configclass
class Plateau(_Schedule):
    """The peak, and less of it each time the TRAINING loss has stopped falling (as torch's ReduceLROnPlateau decides).

    A step knows the loss of its own batch and no other: what is watched is the training loss, averaged over windows of
    `window` updates, not the validation loss.
    """

    kind: Literal["plateau"] = "plateau"
    warmup: Count = 0
    """Updates of linear rise to the peak; the loss is watched from the first."""
    window: Size = 100
    """Updates over which the training loss is averaged."""
    patience: Count = 10
    """Windows in a row without a better mean that are borne; one more lowers the rate."""
    cooldown: Count = 0
    """Windows after a fall in which none counts as bad."""
    factor: Fraction = 0.1
    """By what the rate is multiplied."""
    threshold: NonNegative = 1e-4
    """By how much a mean has to be below the best, as a share of it."""
    final: NonNegative = 0.0
    """The least that is left of the peak, as a share."""

    def after(self, count):
        """1; the factor is in the optimizer's state."""
        return jnp.ones_like(count)

    def stage(self):
        """The stage that watches the loss."""
        return transforms.scale_on_plateau(
            window=self.window,
            patience=self.patience,
            cooldown=self.cooldown,
            factor=self.factor,
            smallest=self.final,
            threshold=self.threshold,
        )


AnySchedule = kinds(
    Constant,
    Linear,
    Cosine,
    Exponential,
    Step,
    Polynomial,
    OneCycle,
    InverseSqrt,
    WSD,
    Plateau,
    default="constant",
)
"""[optimizer.schedule]: every schedule a config can name."""
