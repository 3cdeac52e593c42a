"""Averages of the parameters over the run; evaluation uses them in place of the last ones.

An average is a config with three pure methods:

    init(params)            -> state      what a player keeps beside its parameters
    update(state, params)   -> state      after each update
    weights(state, params)  -> params     what evaluation uses

Statistics of a batch norm are not averaged: evaluation takes those of training, of the parameters as they are.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct

from functrain import tree
from functrain.config import Count, Fraction, Size, configclass, kinds


@struct.dataclass
class Averaged:
    """An average: of what, and over how many updates."""

    params: Any  # in at least float32
    updates: Any  # int32: seen so far
    count: Any  # int32: averaged so far


@configclass
class NoAverage:
    """The parameters as they are."""

    kind: Literal["none"] = "none"

    def sized(self, steps: int) -> "NoAverage":
        """Itself."""
        return self

    def init(self, params):
        """Nothing is kept."""
        return ()

    def update(self, state, params):
        """Nothing is kept."""
        return state

    def weights(self, state, params):
        """The parameters."""
        return params


class _Average:
    def init(self, params) -> Averaged:
        """The first parameters, not yet counted."""
        return Averaged(jax.tree.map(tree.wide, params), jnp.int32(0), jnp.int32(0))

    def weights(self, state, params):
        """The average, in the parameters' dtypes; the parameters themselves before there is one."""
        started = state.count > 0
        return jax.tree.map(lambda a, p: jnp.where(started, a, p).astype(p.dtype), state.params, params)


def _towards(average, params, share):
    """Each average moved by a share of the way to the parameters; a share of 0 moves nothing, bit for bit."""
    return jax.tree.map(lambda a, p: (a + share * (p - a)).astype(a.dtype), average, params)


@configclass
class EMA(_Average):
    """Exponential moving average of the parameters: a = decay a + (1 - decay) p (Polyak, Juditsky 1992 in spirit).

    Early on the decay is min(decay, (1 + t) / (10 + t)) at update t, so that the average does not stay near where the
    parameters started.

    >>> ema = EMA(decay=0.5)
    >>> state = ema.init(jnp.asarray(0.0))
    >>> state = ema.update(ema.update(state, 1.0), 1.0)
    >>> round(float(ema.weights(state, jnp.asarray(1.0))), 4)   # 1 - 0.1 * 2 / 11
    0.9818
    """

    kind: Literal["ema"] = "ema"
    decay: Fraction = 0.999
    """How much of the average stays at each update."""
    warmup: bool = True
    """Whether the decay rises as (1 + t) / (10 + t) until it is reached."""

    def sized(self, steps: int) -> "EMA":
        """Itself."""
        return self

    def update(self, state, params):
        """Move towards the parameters."""
        t = state.updates.astype(float)
        decay = jnp.minimum(self.decay, (1 + t) / (10 + t)) if self.warmup else self.decay
        average = _towards(state.params, params, 1 - decay)
        return Averaged(average, state.updates + 1, state.count + 1)


@configclass
class SWA(_Average):
    """Stochastic weight averaging: the mean of the parameters over the last part of the run (Izmailov et al. 2018).

    >>> swa = SWA(start=0.5, steps=4)
    >>> state = swa.init(jnp.asarray(0.0))
    >>> for p in (9.0, 9.0, 1.0, 2.0):
    ...     state = swa.update(state, p)
    >>> float(swa.weights(state, jnp.asarray(2.0)))
    1.5
    """

    kind: Literal["swa"] = "swa"
    start: Fraction = 0.75
    """The share of the run after which averaging begins."""
    every: Size = 1
    """Updates between the parameters that are averaged."""
    steps: Count = 0
    """Updates in the run; 0 takes the run's own."""

    def sized(self, steps: int) -> "SWA":
        """The average with the run's length known."""
        return dataclasses.replace(self, steps=self.steps or steps)

    def update(self, state, params):
        """Count the parameters in, where it is their turn."""
        since = state.updates - jnp.asarray(self.start * self.steps, int)
        due = (since >= 0) & (since % self.every == 0)
        count = state.count + due
        average = _towards(state.params, params, jnp.where(due, 1 / jnp.maximum(count, 1), 0.0))
        return Averaged(average, state.updates + 1, count)


AnyAverage = kinds(NoAverage, EMA, SWA, default="none")
"""[average]: every average a config can name."""
