"""A pendulum to be swung up and held (gymnasium's Pendulum-v1)."""

from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from functrain.config import Positive, Size, configclass
from functrain.environments.base import INK, RED, Environment, Line


def normalised_angle(angle):
    """The same angle between -pi and pi, radians; pi itself becomes -pi.

    >>> round(float(normalised_angle(3.5 * jnp.pi) / jnp.pi), 4)
    -0.5
    """
    return (angle + jnp.pi) % (2 * jnp.pi) - jnp.pi


@configclass
class Pendulum(Environment):
    """A rod on a pivot, to be swung up and held there by a motor too weak to lift it (Pendulum-v1).

    With a the angle (0 is upright), w the angular velocity, u the torque clipped to +-max_torque and h the time step:

        reward = -(normalised_angle(a)^2 + 0.1 w^2 + 0.001 u^2)        of the state before the step
        w' = clip(w + h (3 g / (2 l) sin a + 3 / (m l^2) u), +-max_speed),   a' = a + h w'

    State: [a, w], the angle not normalised. Observation: [cos a, sin a, w]. Action: [u], N m. Reset: a uniform in +-pi,
    w in +-1. It never terminates.

    >>> env = Pendulum()
    >>> state = env.reset(jax.random.key(0))
    >>> state, reward, terminated = env.step(state, jnp.array([2.0]), jax.random.key(1))
    >>> env.observe(state).shape, bool(reward < 0), bool(terminated), env.low, env.high
    ((3,), True, False, (-2.0,), (2.0,))
    """

    kind: Literal["pendulum"] = "pendulum"
    max_steps: Size = 200
    """Steps after which an episode is truncated."""
    gravity: Positive = 10.0
    """g, m/s^2."""
    mass: Positive = 1.0
    """m of the rod, kg."""
    length: Positive = 1.0
    """l of the rod, m."""
    max_speed: Positive = 8.0
    """Bound of the angular velocity, rad/s."""
    max_torque: Positive = 2.0
    """Bound of the torque, N m."""
    time_step: Positive = 0.05
    """h, seconds."""

    observations: ClassVar[int] = 3
    actions: ClassVar[int] = 1

    @property
    def high(self):
        """The largest torque."""
        return (self.max_torque,)

    def start(self, key):
        """[a, w]."""
        bounds = jnp.array([jnp.pi, 1.0])
        return jax.random.uniform(key, (2,), minval=-bounds, maxval=bounds)

    def observe(self, state):
        """[cos a, sin a, w]."""
        angle, speed = state.variables
        return jnp.stack([jnp.cos(angle), jnp.sin(angle), speed])

    def dynamics(self, variables, action, key):
        """One step of semi-implicit Euler."""
        angle, speed = variables
        torque = jnp.clip(action[0], -self.max_torque, self.max_torque)
        reward = -(normalised_angle(angle) ** 2 + 0.1 * speed**2 + 0.001 * torque**2)
        fall = 3 * self.gravity / (2 * self.length) * jnp.sin(angle)
        push = 3 / (self.mass * self.length**2) * torque
        speed = jnp.clip(speed + self.time_step * (fall + push), -self.max_speed, self.max_speed)
        return jnp.stack([angle + self.time_step * speed, speed]), reward, jnp.bool_(False)

    def draw(self, state):
        """The rod, its tip to the left for a positive angle."""
        angle = float(state.variables[0])
        tip = 0.8 * np.array([-np.sin(angle), np.cos(angle)])
        return [Line([(0, 0), tip], 0.16, RED), Line([(0, 0)], 0.06, INK)]
