"""Environments against their formulas in plain Python, episodes one after another, energy, pictures; gymnasium's."""

import dataclasses
import itertools
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functrain.config import ConfigError, configclass, parse
from functrain.environments import (
    AnyEnvironment,
    CartPole,
    CartPoleSwingUp,
    Gymnasium,
    MountainCarContinuous,
    Pendulum,
    State,
    auto_reset_step,
    begin,
    frame,
    normalised_angle,
)

KEY = jax.random.key(0)
ALL = [Pendulum(), MountainCarContinuous(), CartPole(), CartPoleSwingUp()]
NAMES = [env.kind for env in ALL]


def an_action(env, rng):
    """Of continuous ones some beyond the bounds."""
    return int(rng.integers(env.actions)) if env.discrete else np.array(env.high) * rng.uniform(-1.5, 1.5)


# -- the formulas in plain Python -----------------------------------------------------------------


def pendulum(s, action):
    """Pendulum-v1."""
    angle, speed = s
    u = min(max(action[0], -2), 2)
    turned = math.atan2(math.sin(angle), math.cos(angle))
    reward = -(turned**2 + 0.1 * speed**2 + 0.001 * u**2)
    speed = min(max(speed + 0.05 * (15 * math.sin(angle) + 3 * u), -8), 8)
    return [angle + 0.05 * speed, speed], reward, False


def mountain_car(s, action):
    """MountainCarContinuous-v0."""
    x, v = s
    v += 0.0015 * min(max(action[0], -1), 1) - 0.0025 * math.cos(3 * x)
    v = min(max(v, -0.07), 0.07)
    x += v
    if x <= -1.2:
        x, v = -1.2, max(v, 0)
    x = min(x, 0.6)
    end = x >= 0.45 and v >= 0
    return [x, v], (100 if end else 0) - 0.1 * action[0] ** 2, end


def cart_slope(s, force):
    """From Lagrange's equations, by the mass matrix."""
    _, v, a, w = s
    sin, cos = math.sin(a), math.cos(a)
    masses = [[1.1, 0.05 * cos], [0.05 * cos, 4 / 3 * 0.1 * 0.25]]
    forces = [force + 0.05 * w**2 * sin, 0.05 * 9.8 * sin]
    linear, angular = np.linalg.solve(masses, forces)
    return np.array([v, linear, w, angular])


def cartpole(s, action):
    """CartPole-v1."""
    s = np.array(s) + 0.02 * cart_slope(s, 10 if action == 1 else -10)
    return s, 1, abs(s[0]) > 2.4 or abs(s[2]) > math.radians(12)


def swing_up(s, action):
    """Runge-Kutta's tableau."""
    force = min(max(action[0], -10), 10)
    slopes = [np.zeros(4)]
    for share in (0, 0.5, 0.5, 1):
        slopes.append(cart_slope(np.array(s) + share * 0.02 * slopes[-1], force))
    s = np.array(s) + 0.02 * np.average(slopes[1:], 0, weights=[1, 2, 2, 1])
    return s, (1 + math.cos(s[2])) / 2, abs(s[0]) > 2.4


LOOPS = {"pendulum": pendulum, "mountain_car_continuous": mountain_car, "cartpole": cartpole}
LOOPS |= {"cartpole_swing_up": swing_up}
WIDE = {"pendulum": [9, 8], "mountain_car_continuous": [0.95, 0.07], "cartpole": [2.4, 3, 0.21, 2]}
WIDE |= {"cartpole_swing_up": [2.4, 3, 9, 8]}
"""Where steps begin, to either side."""


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("env", ALL, ids=NAMES)
def test_steps_equal_plain_python(env):
    """2000 steps from all over: state, reward, end; ends and none of them are among them."""
    rng = np.random.default_rng(1)
    spread = np.array(WIDE[env.kind])
    starts = rng.uniform(-1, 1, (2000, len(spread))) * spread - ([0.3, 0] if "mountain" in env.kind else 0)
    actions = np.stack([an_action(env, rng) for _ in starts])
    states = State(jnp.asarray(starts), jnp.arange(2000))
    states, rewards, ends = jax.jit(jax.vmap(env.step, (0, 0, None)))(states, jnp.asarray(actions), KEY)
    expected = [LOOPS[env.kind](start, action) for start, action in zip(starts.tolist(), actions)]
    np.testing.assert_allclose(states.variables, [e[0] for e in expected], rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(rewards, [e[1] for e in expected], rtol=1e-12, atol=1e-13)
    np.testing.assert_array_equal(ends, [e[2] for e in expected])
    np.testing.assert_array_equal(states.steps, np.arange(1, 2001))
    assert ends.any() == (env.kind != "pendulum")
    assert not ends.all()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("env", ALL, ids=NAMES)
def test_vmap_and_jit_equal_one_by_one(env):
    """Five environments at once, compiled, and each alone, not compiled."""
    rng = np.random.default_rng(2)
    keys = jax.random.split(KEY, 5)
    actions = np.stack([an_action(env, rng) for _ in keys]).astype(int if env.discrete else np.float32)

    def first(key, action):
        state, *rest = env.step(env.reset(key), action, key)
        return state, *rest, env.observe(state), env.truncated(state)

    together = jax.jit(jax.vmap(first))(keys, actions)
    for i in range(5):
        alone = first(keys[i], actions[i])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a[i], b, rtol=1e-6, atol=1e-6), together, alone)  # noqa: B023
        assert all(a.dtype == b.dtype for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone)))
    assert len(np.unique(together[0].variables[:, 0])) == 5


# -- resets, sizes, limits ------------------------------------------------------------------------

RESETS = {
    "pendulum": ([-math.pi, -1], [math.pi, 1]),
    "mountain_car_continuous": ([-0.6, 0], [-0.4, 0]),
    "cartpole": ([-0.05] * 4, [0.05] * 4),
    "cartpole_swing_up": ([-0.05, -0.05, math.pi - 0.05, -0.05], [0.05, 0.05, math.pi + 0.05, 0.05]),
}


@pytest.mark.parametrize("env", ALL, ids=NAMES)
def test_resets_are_uniform_within_their_bounds(env):
    """By the least, the greatest, the mean and the deviation of 4000 of them; sizes are as stated."""
    states = jax.vmap(env.reset)(jax.random.split(KEY, 4000))
    low, high = np.array(RESETS[env.kind])
    width = high - low
    x = np.asarray(states.variables, float)
    assert (x.min(0) >= low - 1e-6).all()
    assert (x.max(0) <= high + 1e-6).all()
    assert (x.min(0) <= low + 0.01 * width + 1e-6).all()
    assert (x.max(0) >= high - 0.01 * width - 1e-6).all()
    np.testing.assert_allclose(x.mean(0), (low + high) / 2, atol=0.02 * width.max())
    np.testing.assert_allclose(x.std(0), width / math.sqrt(12), atol=0.01 * width.max())
    assert not states.steps.any()
    assert jax.vmap(env.observe)(states).shape == (4000, env.observations)
    assert len(env.low) == len(env.high) == (0 if env.discrete else env.actions)


@pytest.mark.parametrize(("env", "limit"), list(zip(ALL, [200, 999, 500, 500])), ids=NAMES)
def test_the_time_limit(env, limit):
    """Truncated at the limit, not a step before."""
    state = env.reset(KEY)._replace(steps=jnp.int32(limit - 1))
    assert not env.truncated(state)
    action = 0 if env.discrete else jnp.zeros(env.actions)
    assert env.truncated(env.step(state, action, KEY)[0])
    assert dataclasses.replace(env, max_steps=7).truncated(state._replace(steps=jnp.int32(7)))


def test_observations():
    """Angles as cosine and sine; the others as they are."""
    variables = jnp.array([0.1, 0.2, 0.3, 0.4])
    swing = CartPoleSwingUp().observe(State(variables, 0))
    np.testing.assert_allclose(swing, [0.1, 0.2, math.cos(0.3), math.sin(0.3), 0.4], rtol=1e-6)
    np.testing.assert_array_equal(CartPole().observe(State(variables, 0)), variables)
    turned = Pendulum().observe(State(jnp.array([0.3, -2.0]), 0))
    np.testing.assert_allclose(turned, [math.cos(0.3), math.sin(0.3), -2], rtol=1e-6)


def test_angles_are_normalised_at_both_ends():
    """pi and -pi are one angle, -pi; just inside it nothing changes; whole turns change nothing."""
    with jax.enable_x64(True):
        angles = np.array([math.pi, -math.pi, math.pi - 1e-9, 1e-9 - math.pi, 0, 3 * math.pi, 7 - 20 * math.pi])
        found = normalised_angle(jnp.asarray(angles))
        expected = [-math.pi, -math.pi, math.pi - 1e-9, 1e-9 - math.pi, 0, -math.pi, 7 - 2 * math.pi]
        np.testing.assert_allclose(found, expected, atol=1e-13)
    assert normalised_angle(jnp.float32(jnp.pi)) == -np.float32(math.pi)


def test_settings_may_be_traced():
    """A sweep over gravity, and the derivative by it."""
    start = State(jnp.array([1.0, 0.5]), jnp.int32(0))

    def speed(gravity):
        return dataclasses.replace(Pendulum(), gravity=gravity).step(start, jnp.zeros(1), KEY)[0].variables[1]

    expected = [0.5 + 0.05 * 1.5 * gravity * math.sin(1) for gravity in (5, 10)]
    found, slope = jax.jit(jax.vmap(jax.value_and_grad(speed)))(jnp.array([5.0, 10.0]))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(slope, 0.05 * 1.5 * math.sin(1), rtol=1e-6)


def test_the_goal_may_ask_for_a_velocity():
    """The same step with less and with more of it asked for: the end and its reward."""
    start = State(jnp.array([0.44, 0.03]), jnp.int32(0))
    step = jax.jit(jax.vmap(lambda least: MountainCarContinuous(goal_velocity=least).step(start, jnp.ones(1), KEY)))
    _, rewards, ends = step(jnp.array([0.02, 0.04]))
    np.testing.assert_allclose(rewards, [99.9, -0.1], rtol=1e-5)
    assert ends.tolist() == [True, False]


# -- energy ---------------------------------------------------------------------------------------


def trajectory(env, start, force, steps):
    """Variables [steps + 1, 4], the force the same throughout."""

    def body(state, _):
        after = env.step(state, jnp.array([force]), KEY)[0]
        return after, after.variables

    start = jnp.asarray(start)
    _, after = jax.lax.scan(body, State(start, jnp.int32(0)), length=steps)
    return jnp.concatenate([start[None], after])


@pytest.mark.usefixtures("float64", "quick")
def test_energy_is_kept_without_force():
    """Within the bounds that the docstring states, from rest near the top and going round at 10 rad/s; it does move."""
    env = CartPoleSwingUp()
    starts = jnp.array([[0, 0, 1e-3, 0], [0, 0.5, 2, 0], [0, 0, 0.1, 10]])
    paths = jax.jit(jax.vmap(lambda start: trajectory(env, start, 0.0, 500)))(starts)
    energies = np.asarray(jax.vmap(jax.vmap(env.energy))(paths))
    assert (np.ptp(np.asarray(paths[..., 2]), 1) > 2).all()
    assert (np.abs(energies - energies[:, :1]).max(1) < [1e-6, 1e-6, 1e-4]).all()


@pytest.mark.usefixtures("float64", "quick")
def test_work_equals_the_change_of_energy_to_the_fourth_order():
    """A force held for one second: the error of the balance falls 16 times when the step is halved."""
    errors = []
    for time_step in (0.02, 0.01, 0.005):
        env = CartPoleSwingUp(time_step=time_step)
        path = trajectory(env, [0, 0.1, 2, 3.0], 4.0, round(1 / time_step))
        work = 4.0 * (path[-1, 0] - path[0, 0])
        assert abs(work) > 1
        errors.append(abs(float(env.energy(path[-1]) - env.energy(path[0]) - work)))
    assert errors[0] < 1e-5
    for coarse, fine in itertools.pairwise(errors):
        assert 12 < coarse / fine < 22


# -- episodes -------------------------------------------------------------------------------------


def rollout(env, policy, steps):
    """Transitions [steps, ...] and the episode at the end."""

    def body(episode, key):
        return auto_reset_step(env, episode, policy(env.observe(episode.state)), key)

    return jax.jit(lambda key: jax.lax.scan(body, begin(env, key), jax.random.split(key, steps)))(KEY)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("env", "policy", "how"),
    [
        (Pendulum(max_steps=6), lambda o: o[:1], "truncated"),
        (CartPole(), lambda o: jnp.int32(1), "terminated"),
        (CartPole(max_steps=9), lambda o: jnp.int32(1), "either"),
    ],
    ids=["truncated", "terminated", "either"],
)
def test_episodes_follow_each_other(env, policy, how):
    """What a step led to stands apart from what the next begins with; returns and lengths are those of each episode."""
    last, t = rollout(env, policy, 50)
    t = {name: np.asarray(x) for name, x in t.items()}
    ended = t["terminated"] | t["truncated"]
    assert 4 < ended.sum() < 12
    assert t["terminated"].any() == (how != "truncated")
    assert t["truncated"].any() == (how != "terminated")
    if how == "either":
        assert (t["terminated"] != t["truncated"])[ended].any()
    assert t["observation"].shape == t["next_observation"].shape == (50, env.observations)
    # Within an episode one observation leads to the next.
    on = ~ended[:-1]
    np.testing.assert_array_equal(t["next_observation"][:-1][on], t["observation"][1:][on])
    begun = t["observation"][1:][~on]
    assert (t["next_observation"][:-1][~on] != begun).any(1).all()
    assert len(np.unique(begun[:, 0])) == len(begun)  # each drawn anew
    if env.kind == "cartpole":
        assert (np.abs(begun) <= 0.05).all()
        assert (np.abs(t["next_observation"][ended]).max(1) > 0.1).all()
    total = length = 0
    for i in range(50):
        total, length = total + t["reward"][i], length + 1
        np.testing.assert_allclose(t["episode_return"][i], total, rtol=1e-5)
        assert t["episode_length"][i] == length
        if ended[i]:
            total = length = 0
    assert (last.length, last.state.steps) == (length, length)
    np.testing.assert_allclose(last.total, total, rtol=1e-5)
    # The transitions are the environment's own steps.
    if env.kind == "cartpole":
        again = jax.vmap(env.step, (0, 0, None))(State(t["observation"], t["episode_length"] - 1), t["action"], KEY)
        np.testing.assert_allclose(again[0].variables, t["next_observation"], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(again[2], t["terminated"])


@pytest.mark.usefixtures("quick")
def test_many_episodes_at_once():
    """vmapped: they end at their own times."""
    env = CartPole()
    episodes = jax.vmap(lambda key: begin(env, key))(jax.random.split(KEY, 8))
    step = jax.jit(jax.vmap(lambda e, key: auto_reset_step(env, e, jax.random.randint(key, (), 0, 2), key)))
    lengths = []
    for i in range(40):
        episodes, t = step(episodes, jax.random.split(jax.random.fold_in(KEY, i), 8))
        ended = t["terminated"]
        lengths += np.asarray(t["episode_length"])[ended].tolist()
        assert not np.asarray(episodes.length)[ended].any()
        np.testing.assert_array_equal(episodes.length, episodes.state.steps)
    assert len(set(lengths)) > 3


# -- pictures -------------------------------------------------------------------------------------


def centre(picture):
    """Of what is red: (right, up) from the middle, in shares of half the picture."""
    red = (picture[..., 0] > 180) & (picture[..., 1] < 120)
    rows, columns = np.nonzero(red)
    return columns.mean() * 2 / len(picture) - 1, 1 - rows.mean() * 2 / len(picture)


def test_pictures_show_the_state():
    """Up is up, and each moves to where its variables say."""

    def at(env, *variables):
        picture = frame(env, State(np.array(variables, np.float32), 0), 96)
        assert picture.shape == (96, 96, 3)
        assert picture.dtype == np.uint8
        return centre(picture)

    assert at(Pendulum(), 0, 0)[1] > 0.3
    assert at(Pendulum(), math.pi, 0)[1] < -0.3
    assert at(Pendulum(), 1, 0)[0] < -0.2
    assert at(CartPole(), 0, 0, 0.2, 0)[0] > 0.03
    assert at(CartPoleSwingUp(), 2, 0, math.pi, 0)[0] > 0.6
    assert at(CartPoleSwingUp(), 0, 0, math.pi, 0)[1] < -0.3
    valley, goal = at(MountainCarContinuous(), -0.5, 0), at(MountainCarContinuous(), 0.45, 0)
    assert goal[0] > valley[0] + 0.5
    assert goal[1] > valley[1] + 0.5


# -- mistakes -------------------------------------------------------------------------------------


@configclass
class Holder:
    """A config with an environment in it."""

    env: AnyEnvironment


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"kind": "pendulum", "mass": 0.0}, "env.mass"),
        ({"kind": "cartpole", "max_steps": 0}, "env.max_steps"),
        ({"kind": "cartpole_swing_up", "half_length": -1.0}, "env.half_length"),
        ({"kind": "mountain_car_continuous", "goal_velocity": -0.1}, "env.goal_velocity"),
        ({"kind": "pendulum", "masss": 1.0}, 'did you mean "mass"'),
        ({"kind": "acrobot"}, "pendulum, mountain_car_continuous, cartpole, cartpole_swing_up"),
    ],
)
def test_bad_settings_are_one_clear_line(settings, line):
    """They say where and what."""
    with pytest.raises(ConfigError) as error:
        parse(Holder, {"env": settings})
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_good_settings_are_parsed():
    """By kind, and equal to the class's own."""
    for env in ALL:
        assert parse(Holder, {"env": {"kind": env.kind}}).env == env


@pytest.mark.parametrize(
    ("env", "action", "line"),
    [
        (Pendulum(), jnp.zeros(()), r"pendulum: found an action of shape \(\); expected \(1,\)"),
        (CartPoleSwingUp(), jnp.zeros(2), r"cartpole_swing_up: found an action of shape \(2,\)"),
        (CartPole(), 0.5, "expected one whole number below 2"),
        (CartPole(), jnp.zeros(1, int), r"int32 of shape \(1,\); expected one whole number below 2"),
    ],
)
def test_actions_of_another_shape_are_refused(env, action, line):
    """Before anything is computed."""
    with pytest.raises(ValueError, match=line):
        env.step(env.reset(KEY), action, KEY)


def test_gymnasium_says_which_extra_it_needs(monkeypatch):
    """Where it is not installed."""
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ConfigError, match=r"functrain\[control\]"):
        Gymnasium("Pendulum-v1")


# -- gymnasium's, on the host ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def library():
    """gymnasium, with two small environments of our own in it."""
    gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install 'functrain[control]'")

    class Counting(gymnasium.Env):
        """Observes [[seed, steps], [last action, 0]]; ends after as many steps as the seed says."""

        observation_space = gymnasium.spaces.Box(-1e6, 1e6, (2, 2), np.float64)
        action_space = gymnasium.spaces.Discrete(3, start=5)

        def reset(self, *, seed=None, options=None):
            self.seed, self.steps = seed if seed is not None else 100, 0
            return np.array([[self.seed, 0.0], [0, 0]]), {}

        def step(self, action):
            self.steps += 1
            observation = np.array([[self.seed, self.steps], [action, 0.0]])
            return observation, float(action), self.steps == self.seed, self.steps == 4, {}

    class Odd(Counting):
        action_space = gymnasium.spaces.MultiDiscrete([2, 2])

    gymnasium.register("functrain/Counting-v0", Counting, disable_env_checker=True)
    gymnasium.register("functrain/Odd-v0", Odd, disable_env_checker=True)
    return gymnasium


def test_the_adapter_steps_as_gymnasium_does(library):
    """CartPole and Pendulum against environments stepped one by one, over ends and resets."""
    for id, low, high in [("CartPole-v1", (), ()), ("Pendulum-v1", (-2.0,), (2.0,))]:
        ours, alone = Gymnasium(id, 3), [library.make(id) for _ in range(3)]
        assert (ours.low, ours.high, ours.discrete) == (low, high, id == "CartPole-v1")
        rng = np.random.default_rng(0)
        found = ours.reset([4, 9, 2])
        expected = [env.reset(seed=seed)[0] for env, seed in zip(alone, [4, 9, 2])]
        np.testing.assert_array_equal(found, expected)
        ends = 0
        for _ in range(60):
            actions = rng.integers(2, size=3) if ours.discrete else rng.uniform(-2, 2, (3, 1)).astype(np.float32)
            observations, rewards, terminated, truncated, final = ours.step(actions)
            for i, env in enumerate(alone):
                observation, reward, terminates, truncates, _ = env.step(actions[i])
                np.testing.assert_array_equal(final[i], observation)
                if terminates or truncates:
                    ends, observation = ends + 1, env.reset()[0]
                    assert (final[i] != observation).any()
                np.testing.assert_array_equal(observations[i], observation)
                assert rewards[i] == np.float32(reward)
                assert (terminated[i], truncated[i]) == (terminates, truncates)
        assert ends > 3 if ours.discrete else ends == 0
        ours.close()


def test_the_adapter_flattens_observations_and_counts_actions_from_zero(library):
    """Of an environment whose choices begin with 5; both kinds of end."""
    envs = Gymnasium("functrain/Counting-v0", 2)
    assert (envs.observations, envs.actions, envs.discrete) == (4, 3, True)
    np.testing.assert_array_equal(envs.reset([2, 9]), [[2, 0, 0, 0], [9, 0, 0, 0]])
    seen = [envs.step(np.array([1, 2])) for _ in range(4)]
    np.testing.assert_array_equal(seen[0][0], [[2, 1, 6, 0], [9, 1, 7, 0]])
    np.testing.assert_array_equal(seen[0][1], [6, 7])
    assert [s[2].tolist() for s in seen] == [[False, False], [True, False], [False, False], [False, False]]
    assert [s[3].tolist() for s in seen] == [[False, False]] * 3 + [[False, True]]
    np.testing.assert_array_equal(seen[1][0], [[100, 0, 0, 0], [9, 2, 7, 0]])
    np.testing.assert_array_equal(seen[1][4], [[2, 2, 6, 0], [9, 2, 7, 0]])
    assert {x.dtype.name for s in seen for x in (s[0], s[1], s[4])} == {"float32"}


def test_mistakes_with_gymnasium_are_one_clear_line(library):
    """Ids, settings, spaces, counts, seeds and actions."""
    for error, line, make in [
        (ConfigError, "NoSuch-v1: gymnasium cannot make it", lambda: Gymnasium("NoSuch-v1")),
        (ConfigError, "CartPole-v1: gymnasium cannot make it", lambda: Gymnasium("CartPole-v1", wings=2)),
        (ConfigError, r"functrain/Odd-v0: its actions are MultiDiscrete", lambda: Gymnasium("functrain/Odd-v0")),
        (ValueError, "count: found 0", lambda: Gymnasium("CartPole-v1", 0)),
    ]:
        with pytest.raises(error, match=line) as raised:
            make()
        assert "\n" not in str(raised.value)
    envs = Gymnasium("CartPole-v1", 2)
    with pytest.raises(ValueError, match="found 1 seeds; expected one for each of 2"):
        envs.reset([3])
    envs.reset([3, 4])
    with pytest.raises(ValueError, match=r"shape \(2, 1\); expected \(2,\)"):
        envs.step(np.zeros((2, 1), int))
    with pytest.raises(ValueError, match=r"found actions \[0, 2\]; expected whole numbers from 0 to 1"):
        envs.step([0, 2])


def test_importing_environments_leaves_gymnasium_alone(root):
    """It is imported where one is made."""
    code = "import sys, functrain.environments; print('gymnasium' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=60)
    assert done.stdout == "False\n", done.stderr
