"""Environments against gymnasium's, step by step from the same state with the same actions."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functrain.environments import CartPole, MountainCarContinuous, Pendulum, State

gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install 'functrain[control]'")
from gymnasium.envs.classic_control import continuous_mountain_car  # noqa: E402

pytestmark = pytest.mark.oracle

STEPS = 200
KEY = jax.random.key(0)


def swings(rng, state):
    """Any torque, a third of them beyond the bounds."""
    return rng.uniform(-3, 3, 1)


def climbs(rng, state):
    """Along with the velocity, so that the goal is reached; beyond the bounds at times."""
    return np.array([1 if state[1] >= 0 else -1]) * rng.uniform(0.5, 1.5, 1)


def pushes(rng, state):
    """To either side. Near the upright pole errors grow as exp(4 t), t in seconds: rounding alone, 3e6 times in 200
    steps that balanced it."""
    return int(rng.integers(2))


CASES = {
    "pendulum": ("Pendulum-v1", Pendulum(), swings, [10, 8]),
    "mountain_car": ("MountainCarContinuous-v0", MountainCarContinuous(), climbs, [0.7, 0.07]),
    "cartpole": ("CartPole-v1", CartPole(), pushes, [2.35, 2, 0.2, 1]),
}
"""Its name there, ours, actions, and how far from theirs an episode's start is moved, to either side."""


@pytest.fixture
def double(monkeypatch):
    """gymnasium's mountain car without its rounding of the state to float32 after every step."""
    monkeypatch.setattr(continuous_mountain_car, "np", types.SimpleNamespace(**vars(np) | {"float32": np.float64}))


def compare(name, seed, dtype, tolerance, forced=False):
    """Step both until both have ended an episode, for 200 steps or more; how many were terminated, and truncated.

    forced: every step is taken from their state; else only the first one of an episode is.
    """
    id, env, policy, spread = CASES[name]
    rng = np.random.default_rng(seed)
    theirs = gymnasium.make(id, disable_env_checker=True)
    step, observe = jax.jit(env.step), jax.jit(env.observe)
    episodes = terminations = truncations = 0
    taken, state = 0, None
    while taken < STEPS or not episodes:
        if state is None:
            theirs.reset(seed=seed + episodes)
            start = theirs.unwrapped.state + rng.uniform(-1, 1, len(spread)) * spread
            theirs.unwrapped.state = start.astype(dtype).astype(float)
            state = State(jnp.asarray(theirs.unwrapped.state, dtype), jnp.int32(0))
        elif forced:
            state = state._replace(variables=jnp.asarray(theirs.unwrapped.state, dtype))
        action = policy(rng, theirs.unwrapped.state)
        action = action if env.discrete else action.astype(dtype).astype(float)
        observation, their_reward, terminated, truncated, _ = theirs.step(action)
        state, reward, our_end = step(state, action, KEY)
        assert state.variables.dtype == dtype
        np.testing.assert_allclose(state.variables, theirs.unwrapped.state, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(reward, their_reward, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(observe(state), observation, rtol=max(tolerance, 2e-7), atol=max(tolerance, 2e-7))
        assert (bool(our_end), bool(env.truncated(state))) == (terminated, truncated), taken
        taken += 1
        if terminated or truncated:
            episodes, terminations, truncations = episodes + 1, terminations + terminated, truncations + truncated
            state = None
    return terminations, truncations


@pytest.mark.usefixtures("float64", "double")
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_trajectories_equal_gymnasiums(name, seed):
    """Whole episodes in float64: states, rewards, observations (theirs are float32), both kinds of end."""
    terminations, truncations = compare(name, seed, np.float64, 1e-10)
    assert terminations > 0 if name != "pendulum" else truncations > 0


@pytest.mark.usefixtures("float64", "double")
@pytest.mark.parametrize("name", CASES)
def test_steps_equal_gymnasiums(name):
    """Each step from their state, in float64."""
    compare(name, 4, np.float64, 1e-14, forced=True)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_float32_equals_gymnasiums(name, seed):
    """In float32; the pendulum each step from their state, for its errors grow as a pole's do and no end stops them."""
    compare(name, seed, np.float32, 1e-5, forced=name == "pendulum")


def test_time_limits_equal_gymnasiums():
    """The steps after which an episode is truncated."""
    for id, env, *_ in CASES.values():
        assert gymnasium.spec(id).max_episode_steps == env.max_steps


def test_sizes_and_bounds_equal_gymnasiums():
    """Of observations and actions."""
    for id, env, *_ in CASES.values():
        theirs = gymnasium.make(id)
        assert theirs.observation_space.shape == (env.observations,)
        if env.discrete:
            assert theirs.action_space.n == env.actions
        else:
            assert theirs.action_space.shape == (env.actions,)
            assert (theirs.action_space.low == env.low).all()
            assert (theirs.action_space.high == env.high).all()
