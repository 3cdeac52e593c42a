"""A pole on a cart: to be balanced (gymnasium's CartPole-v1), or to be swung up first.

Barto, Sutton and Anderson 1983, without friction; the equations as Florian 2007, equations 23 and 24. With x and v the
cart's position and velocity, a and w the pole's angle (0 is upright, to the right is positive) and angular velocity, F
the force, M and m the masses, l half the pole's length:

    s  = (F + m l w^2 sin a) / (M + m)
    w' = (g sin a - s cos a) / (l (4/3 - m cos^2 a / (M + m)))          angular acceleration
    v' = s - m l w' cos a / (M + m)                                     acceleration
"""

from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from functrain.config import Positive, Size, configclass
from functrain.environments.base import GREY, INK, RED, Environment, Line

TRACK = 2.4
"""The cart may go as far to either side, m."""
TILT = 12 * 2 * np.pi / 360
"""The pole may tilt as far to either side, radians."""


@configclass
class Cart(Environment):
    """What the two tasks share: the cart, the pole and their equations (see the module)."""

    max_steps: Size = 500
    """Steps after which an episode is truncated."""
    gravity: Positive = 9.8
    """g, m/s^2."""
    cart_mass: Positive = 1.0
    """M, kg."""
    pole_mass: Positive = 0.1
    """m, kg."""
    half_length: Positive = 0.5
    """l, half the pole's length, m."""
    max_force: Positive = 10.0
    """The force, or its bound, N."""
    time_step: Positive = 0.02
    """Seconds."""

    def slope(self, variables: Any, force: Any) -> Any:
        """The derivative of [x, v, a, w] by time."""
        _, velocity, angle, turning = variables
        sin, cos = jnp.sin(angle), jnp.cos(angle)
        total = self.cart_mass + self.pole_mass
        push = (force + self.pole_mass * self.half_length * turning**2 * sin) / total
        lever = self.half_length * (4 / 3 - self.pole_mass * cos**2 / total)
        angular = (self.gravity * sin - push * cos) / lever
        linear = push - self.pole_mass * self.half_length * angular * cos / total
        return jnp.stack([velocity, linear, turning, angular])

    def energy(self, variables: Any) -> Any:
        """Kinetic and potential, joules; the potential is 0 where the pole is level.

        E = (M + m) v^2 / 2 + m l v w cos a + 2/3 m l^2 w^2 + m g l cos a. Only the force changes it: dE/dt = F v.

        >>> round(float(CartPoleSwingUp().energy(jnp.array([0.0, 1.0, 0.0, 0.0]))), 4)
        1.04
        """
        _, velocity, angle, turning = variables
        moment, cos = self.pole_mass * self.half_length, jnp.cos(angle)
        kinetic = (self.cart_mass + self.pole_mass) * velocity**2 / 2 + moment * velocity * turning * cos
        return kinetic + 2 / 3 * moment * self.half_length * turning**2 + moment * self.gravity * cos

    def draw(self, state):
        """The track, the cart and the pole."""
        x, _, angle, _ = np.asarray(state.variables, float)
        cart = np.array([x / 2.7, -0.1])
        tip = cart + 0.7 * np.array([np.sin(angle), np.cos(angle)])
        track = Line([(-TRACK / 2.7, -0.1), (TRACK / 2.7, -0.1)], 0.02, GREY)
        return [track, Line([cart - [0.08, 0], cart + [0.08, 0]], 0.14, INK), Line([cart, tip], 0.06, RED)]


@configclass
class CartPole(Cart):
    """A pole on a cart, to be balanced by pushes to the left and the right (CartPole-v1).

    One step of explicit Euler, all four variables from the state before it. Terminated: |x| > 2.4 or |a| > 12 degrees.
    The reward is 1 for every step, that which terminates too.

    State and observation: [x, v, a, w]. Action: 0 pushes to the left, 1 to the right, a whole number; inside a trace no
    value can be looked at, and any but 1 pushes to the left. Reset: each variable uniform in +-0.05.

    >>> env = CartPole()
    >>> state, reward, terminated = env.step(env.reset(jax.random.key(0)), 1, jax.random.key(1))
    >>> float(reward), bool(terminated), env.observe(state).shape, env.actions
    (1.0, False, (4,), 2)
    """

    kind: Literal["cartpole"] = "cartpole"

    observations: ClassVar[int] = 4
    actions: ClassVar[int] = 2
    discrete: ClassVar[bool] = True

    def start(self, key):
        """[x, v, a, w]."""
        return jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05)

    def dynamics(self, variables, action, key):
        """One step of explicit Euler."""
        force = jnp.where(action == 1, self.max_force, -self.max_force)
        after = variables + self.time_step * self.slope(variables, force)
        terminated = (jnp.abs(after[0]) > TRACK) | (jnp.abs(after[2]) > TILT)
        return after, jnp.ones_like(after[0]), terminated


@configclass
class CartPoleSwingUp(Cart):
    """A pole that hangs from a cart, to be swung up and held by a continuous force.

    One step of the classical Runge-Kutta method of order 4, the force held during it. Over 500 steps without force the
    energy drifts by less than 1e-6 J from rest near the top, by less than 1e-4 J where the pole goes round at 10 rad/s;
    by semi-implicit Euler it is 0.04 and 0.2 J (the mass matrix depends on the angle: it is not symplectic here).
    Terminated: |x| > 2.4.

        reward = (1 + cos a) / 2        after the step: 0 hanging, 1 upright; never below 0, so that no end is a gain

    State: [x, v, a, w], the angle not normalised. Observation: [x, v, cos a, sin a, w]. Action: [force], N, clipped to
    +-max_force. Reset: hanging, a = pi; to each variable a number uniform in +-0.05 is added.

    >>> env = CartPoleSwingUp()
    >>> state, reward, terminated = env.step(env.reset(jax.random.key(0)), jnp.array([5.0]), jax.random.key(1))
    >>> bool(reward < 0.01), bool(terminated), env.observe(state).shape, env.high
    (True, False, (5,), (10.0,))
    """

    kind: Literal["cartpole_swing_up"] = "cartpole_swing_up"

    observations: ClassVar[int] = 5
    actions: ClassVar[int] = 1

    @property
    def high(self):
        """The largest force."""
        return (self.max_force,)

    def start(self, key):
        """[x, v, a, w]."""
        return jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05) + jnp.array([0, 0, jnp.pi, 0])

    def observe(self, state):
        """[x, v, cos a, sin a, w]."""
        position, velocity, angle, turning = state.variables
        return jnp.stack([position, velocity, jnp.cos(angle), jnp.sin(angle), turning])

    def dynamics(self, variables, action, key):
        """One step of Runge-Kutta."""
        h, force = self.time_step, jnp.clip(action[0], -self.max_force, self.max_force)
        k1 = self.slope(variables, force)
        k2 = self.slope(variables + h / 2 * k1, force)
        k3 = self.slope(variables + h / 2 * k2, force)
        k4 = self.slope(variables + h * k3, force)
        after = variables + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return after, (1 + jnp.cos(after[2])) / 2, jnp.abs(after[0]) > TRACK
