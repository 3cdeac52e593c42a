"""Noise that is added to actions in -1..1, so that a deterministic policy explores.

start(shape, dtype)      -> state
draw(state, *, key)      -> (state, noise [environments, actions])
reset(state, ended)      -> state, as at the start where an episode ended
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from functrain.config import NonNegative, Positive, configclass, kinds


@configclass
class Gaussian:
    """Independent normal noise at each step (Fujimoto et al. 2018, algorithm 1).

    >>> noise = Gaussian(deviation=0.5)
    >>> _, drawn = noise.draw(noise.start((2, 1)), key=jax.random.key(0))
    >>> drawn.shape
    (2, 1)
    """

    kind: Literal["gaussian"] = "gaussian"
    deviation: NonNegative = 0.1
    """Its standard deviation, where actions are in -1..1; 0 is off."""

    def start(self, shape: tuple[int, ...], dtype: Any = None) -> jax.Array:
        """Zeros: the noise has no memory, and its state says its shape alone."""
        return jnp.zeros(shape, dtype)

    def draw(self, state: jax.Array, *, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The state as it was, and noise of its shape."""
        return state, (self.deviation * jax.random.normal(key, state.shape, state.dtype)).astype(state.dtype)

    def reset(self, state: jax.Array, ended: jax.Array) -> jax.Array:
        """The state as it was."""
        return state


@configclass
class OrnsteinUhlenbeck:
    """Noise that remembers (Uhlenbeck and Ornstein 1930), with which Lillicrap et al. 2016 (section 7) explore:

        x' = x - reversion x interval + deviation sqrt(interval) normal

    by Euler and Maruyama, from x = 0 at the start of each episode. The noise is x'.

    >>> noise = OrnsteinUhlenbeck(deviation=0.0, reversion=0.25)
    >>> state, drawn = noise.draw(jnp.array([[1.0]]), key=jax.random.key(0))
    >>> drawn.tolist(), noise.reset(state, jnp.array([True])).tolist()
    ([[0.75]], [[0.0]])
    """

    kind: Literal["ornstein_uhlenbeck"] = "ornstein_uhlenbeck"
    deviation: NonNegative = 0.2
    """What the normal numbers are multiplied by, where actions are in -1..1 (sigma); 0 is off."""
    reversion: Positive = 0.15
    """Which share of itself the noise loses in a unit of time (theta)."""
    interval: Positive = 1.0
    """How much time passes in a step."""

    def start(self, shape: tuple[int, ...], dtype: Any = None) -> jax.Array:
        """The noise at the start of an episode: zeros."""
        return jnp.zeros(shape, dtype)

    def draw(self, state: jax.Array, *, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The noise one step later, as the state and as what is added."""
        kick = self.deviation * jnp.sqrt(self.interval) * jax.random.normal(key, state.shape, state.dtype)
        state = (state - self.reversion * self.interval * state + kick).astype(state.dtype)
        return state, state

    def reset(self, state: jax.Array, ended: jax.Array) -> jax.Array:
        """Zeros where an episode ended [environments]."""
        return jnp.where(ended[:, None], 0, state)


AnyNoise = kinds(Gaussian, OrnsteinUhlenbeck, default="gaussian")
"""Every kind of noise that a task can explore with."""
