"""Learning-rate schedules: the share of `peak_lr` at each update, a function of the number of updates done.

Each has `warmup`: a linear rise over that many updates, whose first is peak / warmup and never zero.

>>> [float(Linear(warmup=2, steps=4).share(jnp.asarray(i))) for i in range(5)]
[0.5, 1.0, 1.0, 0.5, 0.0]
"""

import dataclasses
from abc import ABC, abstractmethod
from typing import Any, Literal

import jax.numpy as jnp

from functrain.config import Count, NonNegative, configclass, kinds


class _Schedule(ABC):
    """What the schedules share: warmup first, then `after(progress)`, progress from 0 to 1 at the horizon."""

    warmup: int
    steps: int

    def sized(self, steps: int) -> Any:
        """The schedule with its horizon: the run's steps, unless the config gives one."""
        return dataclasses.replace(self, steps=self.steps or steps) if hasattr(self, "steps") else self  # pyright: ignore

    def share(self, count: Any) -> Any:
        """The share of the peak at update `count` (0 is the first)."""
        count = jnp.asarray(count, float)
        progress = (count - self.warmup) / max(getattr(self, "steps", 0) - self.warmup, 1)
        share = self.after(jnp.clip(progress, 0, 1))
        return jnp.where(count < self.warmup, (count + 1) / self.warmup, share) if self.warmup else share

    @abstractmethod
    def after(self, progress: Any) -> Any:
        """The share of the peak, `progress` in [0, 1] of the way from the warmup to the horizon."""


@configclass
class Constant(_Schedule):
    """The peak throughout, after the warmup."""

    kind: Literal["constant"] = "constant"
    warmup: Count = 0
    """Updates of linear rise to the peak."""

    def after(self, progress):
        """1."""
        return jnp.ones_like(progress)


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

    def after(self, progress):
        """1 - (1 - final) progress."""
        return 1 - (1 - self.final) * progress


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

    def after(self, progress):
        """final + (1 - final) (1 + cos(pi progress)) / 2."""
        return self.final + (1 - self.final) * (1 + jnp.cos(jnp.pi * progress)) / 2


AnySchedule = kinds(Constant, Linear, Cosine, default="constant")
"""[optimizer.schedule]: every schedule a config can name."""
