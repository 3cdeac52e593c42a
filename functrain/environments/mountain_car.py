"""A car in a valley that must swing to get out (gymnasium's MountainCarContinuous-v0)."""

from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from functrain.config import NonNegative, Positive, Size, configclass
from functrain.environments.base import GREY, INK, RED, Environment, Line

LEFT, RIGHT, GOAL, FASTEST = -1.2, 0.6, 0.45, 0.07
"""The track's ends, the goal on it, and the bound of the velocity."""


@configclass
class MountainCarContinuous(Environment):
    """A car in a valley, its motor too weak for the slope: it must swing to reach the goal (MountainCarContinuous-v0).

    After Moore 1990, with a continuous force. With x the position, v the velocity and u the action:

        v' = clip(v + power clip(u, +-1) - 0.0025 cos(3 x), +-0.07),   x' = clip(x + v', -1.2, 0.6)
        v' = 0 at the left end, where the car would move on to the left
        terminated: x' >= 0.45 and v' >= goal_velocity
        reward = 100 if terminated, less 0.1 u^2        u as it was given: what is clipped off costs too

    State and observation: [x, v]. Action: [u]. Reset: x uniform in -0.6..-0.4, v 0.

    >>> env = MountainCarContinuous()
    >>> state, reward, terminated = env.step(env.reset(jax.random.key(0)), jnp.array([1.0]), jax.random.key(1))
    >>> round(float(reward), 4), bool(terminated), env.observe(state).shape
    (-0.1, False, (2,))
    """

    kind: Literal["mountain_car_continuous"] = "mountain_car_continuous"
    max_steps: Size = 999
    """Steps after which an episode is truncated."""
    power: Positive = 0.0015
    """What an action of 1 adds to the velocity in a step."""
    goal_velocity: NonNegative = 0.0
    """The least velocity at which the goal counts as reached."""

    observations: ClassVar[int] = 2
    actions: ClassVar[int] = 1

    @property
    def high(self):
        """1."""
        return (1.0,)

    def start(self, key):
        """[x, v]."""
        position = jax.random.uniform(key, minval=-0.6, maxval=-0.4)
        return jnp.stack([position, jnp.zeros_like(position)])

    def dynamics(self, variables, action, key):
        """One step."""
        position, velocity = variables
        push = self.power * jnp.clip(action[0], -1, 1)
        velocity = jnp.clip(velocity + push - 0.0025 * jnp.cos(3 * position), -FASTEST, FASTEST)
        position = jnp.clip(position + velocity, LEFT, RIGHT)
        velocity = jnp.where((position == LEFT) & (velocity < 0), 0, velocity)
        terminated = (position >= GOAL) & (velocity >= self.goal_velocity)
        reward = jnp.where(terminated, 100, 0) - 0.1 * action[0] ** 2
        return jnp.stack([position, velocity]), reward, terminated

    def draw(self, state):
        """The hill, the goal and the car."""

        def place(x, above=0.0):
            return np.stack([(x - LEFT) / (RIGHT - LEFT) * 1.9 - 0.95, 0.5 * np.sin(3 * x) - 0.1 + above], -1)

        car = place(float(state.variables[0]), 0.07)
        pole = np.stack([place(GOAL), place(GOAL, 0.3)])
        hill = Line(place(np.linspace(LEFT, RIGHT, 61)), 0.02, GREY)
        return [hill, Line(pole, 0.03, INK), Line([car], 0.14, RED)]
