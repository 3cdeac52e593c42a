"""What DDPG and TD3 are made of, as functions of arrays."""

from typing import Any

import jax
import jax.numpy as jnp


def bootstrapped(reward: jax.Array, terminated: jax.Array, value: jax.Array, discount: Any) -> jax.Array:
    """reward + discount (1 - terminated) value: what a critic is to tell (Lillicrap et al. 2016, eq. 5).

    Args:
      reward, terminated, value: [n]; `value` is of the next state and action. An episode that a time limit cut is not
        terminated: the states beyond have a value too.
      discount: of what comes a step later, 0..1 (gamma).

    >>> bootstrapped(jnp.array([1.0, 1.0]), jnp.array([False, True]), jnp.array([4.0, 4.0]), 0.5).tolist()
    [3.0, 1.0]
    """
    return reward + discount * jnp.where(terminated, 0, value)


def smoothed(action: jax.Array, noise: jax.Array, most: Any) -> jax.Array:
    """The action with noise of at most `most` to either side, kept in -1..1 (Fujimoto et al. 2018, eq. 14).

    >>> smoothed(jnp.array([0.0, 0.0, 0.75]), jnp.array([0.25, -2.0, 2.0]), 0.5).tolist()
    [0.25, -0.5, 1.0]
    """
    return jnp.clip(action + jnp.clip(noise, -most, most), -1, 1)


def soft_update(target: Any, params: Any, rate: Any) -> Any:
    """(1 - rate) target + rate params, of each array of a tree (Lillicrap et al. 2016, section 3; rate is tau).

    >>> soft_update({"w": jnp.array([0.0, 8.0])}, {"w": jnp.array([4.0, 8.0])}, 0.25)["w"].tolist()
    [1.0, 8.0]
    """
    return jax.tree.map(lambda t, p: ((1 - rate) * t + rate * p).astype(t.dtype), target, params)


def scaled(action: jax.Array, low: Any, high: Any) -> jax.Array:
    """An action in -1..1 in the units of an environment, whose bounds are `low` and `high`.

    >>> scaled(jnp.array([-1.0, 0.0, 1.0]), -2.0, 4.0).tolist()
    [-2.0, 1.0, 4.0]
    """
    return low + (action + 1) / 2 * (high - low)
