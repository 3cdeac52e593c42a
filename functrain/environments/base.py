"""What an environment has, episodes one after another, and pictures.

An environment is a frozen config with pure functions over one environment; `jax.vmap` makes many, `jax.jit` and
`jax.lax.scan` a program of them, and so does a training step that holds their states.

    reset(key) -> state
    observe(state) -> observation [observations]
    step(state, action, key) -> (state, reward, terminated)
    truncated(state) -> bool            the time limit, apart from an end that the environment itself comes to
    draw(state) -> [Line, ...]          in NumPy; see `frame`

Actions are in the environment's own units: [actions] floats between `low` and `high`, what lies outside is clipped; or
of a discrete one a whole number from 0, below `actions`.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from functrain.config import Size, configclass

INK, RED, GREY = (40, 40, 48), (214, 68, 60), (150, 156, 168)
"""Colours of pictures."""


class State(NamedTuple):
    """Where an environment stands.

    variables: [k] floats; each environment says which.
    steps: int32, taken since the reset.
    """

    variables: Any
    steps: Any


@configclass
class Environment(ABC):
    """What environments share: the step count, the time limit and the check of actions. A subclass gives

    observations, actions, discrete        sizes, and whether an action is a whole number
    low, high                              bounds of continuous actions, a tuple each
    start(key) -> variables                drawn at a reset
    dynamics(variables, action, key) -> (variables, reward, terminated)
    observe(state), draw(state)
    """

    kind: str
    max_steps: Size
    """Steps after which an episode is truncated."""

    observations: ClassVar[int]
    actions: ClassVar[int]
    discrete: ClassVar[bool] = False

    @property
    def high(self) -> tuple[Any, ...]:
        """The largest action, by number of the action; empty for a discrete environment."""
        return ()

    @property
    def low(self) -> tuple[Any, ...]:
        """The smallest action: as far below zero."""
        return tuple(-bound for bound in self.high)

    @abstractmethod
    def start(self, key: jax.Array) -> Any:
        """The variables after a reset."""

    @abstractmethod
    def dynamics(self, variables: Any, action: Any, key: jax.Array) -> tuple[Any, Any, Any]:
        """The variables after a step, its reward, and whether the episode came to its end."""

    def observe(self, state: State) -> Any:
        """[observations]: the variables, unless an environment says otherwise."""
        return state.variables

    def draw(self, state: State) -> "list[Line]":
        """Lines of a picture, from back to front; none, unless an environment says otherwise."""
        return []

    def reset(self, key: jax.Array) -> State:
        """The state at the start of an episode."""
        return State(self.start(key), jnp.int32(0))

    def step(self, state: State, action: Any, key: jax.Array) -> tuple[State, Any, Any]:
        """The state after an action, the reward (a float) and whether the episode came to its end (a bool).

        key: of what is drawn in a step; an environment without chance does not look at it.

        Raises:
          ValueError: an action of another shape, or a discrete one that is no whole number.
        """
        action = self._checked(action, state.variables.dtype)
        variables, reward, terminated = self.dynamics(state.variables, action, key)
        return State(variables, state.steps + 1), reward, terminated

    def truncated(self, state: State) -> Any:
        """Whether the time limit is reached."""
        return state.steps >= self.max_steps

    def _checked(self, action, dtype):
        action = jnp.asarray(action)
        if self.discrete and (action.shape or not jnp.issubdtype(action.dtype, jnp.integer)):
            found = f"{action.dtype} of shape {action.shape}"
            raise ValueError(f"{self.kind}: found an action {found}; expected one whole number below {self.actions}")
        if not self.discrete and action.shape != (self.actions,):
            raise ValueError(f"{self.kind}: found an action of shape {action.shape}; expected ({self.actions},)")
        return action if self.discrete else action.astype(dtype)


# -- episodes -------------------------------------------------------------------------------------


class Episode(NamedTuple):
    """An environment's state in the midst of an episode.

    state: of the environment.
    total: the sum of rewards so far.
    length: int32, steps so far.
    """

    state: Any
    total: Any
    length: Any


def begin(env: Any, key: jax.Array) -> Episode:
    """A new episode."""
    return Episode(env.reset(key), jnp.zeros(()), jnp.int32(0))


def auto_reset_step(env: Any, episode: Episode, action: Any, key: jax.Array) -> tuple[Episode, dict[str, Any]]:
    """One step; where it ends the episode, terminated or truncated, the next one begins at once.

    Args:
      env: an environment.
      episode: of `begin`, or of the step before.
      action: see `Environment`.
      key: for the step and for the reset.

    Returns:
      The episode after the step, or a new one; and the transition, what a learner needs of the step:

      observation, action, reward
      next_observation                 what the step led to: of the same episode, before any reset
      terminated                       no reward follows; a value is learned from the reward alone
      truncated                        the time limit: the value of next_observation still counts
      episode_return, episode_length   up to and with this step: those of the whole episode where it ended

    >>> from functrain.environments import Pendulum
    >>> env = Pendulum(max_steps=3)
    >>> def body(episode, key):
    ...     return auto_reset_step(env, episode, jnp.zeros(1), key)
    >>> keys = jax.random.split(jax.random.key(0), 7)
    >>> _, transitions = jax.lax.scan(body, begin(env, jax.random.key(1)), keys)
    >>> transitions["observation"].shape, transitions["episode_length"].tolist()
    ((7, 3), [1, 2, 3, 1, 2, 3, 1])
    >>> transitions["truncated"].astype(int).tolist()
    [0, 0, 1, 0, 0, 1, 0]
    """
    step_key, reset_key = jax.random.split(key)
    state, reward, terminated = env.step(episode.state, action, step_key)
    truncated = env.truncated(state)
    total, length = episode.total + reward, episode.length + 1
    transition = {
        "observation": env.observe(episode.state),
        "action": action,
        "reward": reward,
        "next_observation": env.observe(state),
        "terminated": terminated,
        "truncated": truncated,
        "episode_return": total,
        "episode_length": length,
    }
    ended = terminated | truncated
    # Both are computed under vmap in any case; a reset costs a few random numbers.
    after = jax.tree.map(
        lambda new, old: jnp.where(ended, new, old), begin(env, reset_key), Episode(state, total, length)
    )
    return after, transition


# -- pictures -------------------------------------------------------------------------------------


class Line(NamedTuple):
    """A line with round ends through points, in a picture that reaches from -1 to 1 both ways.

    points: [n, 2], to the right and up; a single point is a disc.
    width: in the same units.
    colour: red, green and blue, 0 to 255.
    """

    points: Any
    width: float
    colour: tuple[int, int, int] = INK


def frame(env: Any, state: Any, size: int = 128) -> np.ndarray:
    """A picture of one environment's state: uint8 [size, size, 3], dark on white, edges smoothed over a pixel.

    >>> from functrain.environments import CartPole
    >>> env = CartPole()
    >>> picture = frame(env, env.reset(jax.random.key(0)), size=64)
    >>> picture.shape, picture.dtype, picture[0, 0].tolist()
    ((64, 64, 3), dtype('uint8'), [255, 255, 255])
    """
    centres = (np.arange(size) + 0.5) * 2 / size - 1
    right, up = np.meshgrid(centres, -centres)  # the first row is the highest
    picture = np.full((size, size, 3), 255.0)
    for line in env.draw(state):
        away = _distance(right, up, np.asarray(line.points, float))
        cover = np.clip((line.width / 2 - away) * size / 2 + 0.5, 0, 1)[..., None]
        picture += cover * (np.asarray(line.colour) - picture)
    return np.round(picture).astype(np.uint8)


def _distance(x: np.ndarray, y: np.ndarray, points: np.ndarray) -> np.ndarray:
    """From each place to the nearest point of a line through points."""
    nearest = np.full(x.shape, np.inf)
    ends = points[1:] if len(points) > 1 else points
    for (ax, ay), (bx, by) in zip(points, ends):
        along, across = bx - ax, by - ay
        length = along**2 + across**2
        share = np.clip(((x - ax) * along + (y - ay) * across) / (length or 1), 0, 1)
        nearest = np.minimum(nearest, np.hypot(x - ax - share * along, y - ay - share * across))
    return nearest
