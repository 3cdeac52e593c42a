"""Environments of gymnasium (extra `control`): many of one kind, stepped on the host, outside of any jitted program."""

import functools
import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from functrain.config import ConfigError


class Gymnasium:
    """Environments of one id side by side, each reset where its episode ends (gymnasium.vector.SyncVectorEnv).

    Not pure: the object holds the environments, and each `step` moves them on.

    observations: how many numbers an observation has; one of another shape is flattened (FlattenObservation).
    actions: how many an action has, or how many actions there are to choose from.
    discrete: whether an action is a whole number, 0 to actions - 1.
    low, high: bounds of continuous actions; empty where they are discrete.
    """

    def __init__(self, id: str, count: int = 1, **settings: Any):
        """
        Args:
          id: as gymnasium registers it: "Pendulum-v1".
          count: how many.
          settings: passed on to `gymnasium.make`.

        Raises:
          ConfigError: gymnasium is not installed, cannot make such an environment, or its actions are neither a vector
            of numbers nor a choice.
          ValueError: a count below 1.
        """
        if count < 1:
            raise ValueError(f"count: found {count}; expected 1 or more environments")
        library = _library()
        make = functools.partial(_make, library, id, settings)
        same_step = library.vector.AutoresetMode.SAME_STEP
        self._envs = library.vector.SyncVectorEnv([make] * count, autoreset_mode=same_step)
        self.count = count
        self.observations = self._envs.single_observation_space.shape[0]
        space = self._envs.single_action_space
        self.discrete = isinstance(space, library.spaces.Discrete)
        if not self.discrete and not (isinstance(space, library.spaces.Box) and len(space.shape) == 1):
            self.close()
            raise ConfigError(f"{id}: its actions are {space}; expected Box with one axis, or Discrete")
        self.actions = int(space.n if self.discrete else space.shape[0])
        self.low = () if self.discrete else tuple(space.low.tolist())
        self.high = () if self.discrete else tuple(space.high.tolist())
        self._first = space.start if self.discrete else 0  # gymnasium's choices need not begin with 0
        self._dtype = space.dtype

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Observations [count, observations] float32 at the start of new episodes, each drawn from its seed.

        Raises:
          ValueError: another number of seeds.
        """
        if len(seeds) != self.count:
            raise ValueError(f"found {len(seeds)} seeds; expected one for each of {self.count} environments")
        observations, _ = self._envs.reset(seed=[int(seed) for seed in seeds])
        return np.asarray(observations, np.float32)

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """One step of each.

        Args:
          actions: [count, actions] floats, handed on as they are; or [count] whole numbers.

        Returns:
          observations [count, observations] float32, where an episode ended the first of the next; rewards [count]
          float32; terminated and truncated [count] bool; final observations [count, observations] float32: what the
          step led to, before any reset.

        Raises:
          ValueError: actions of another shape, or outside the choice.
        """
        actions = np.asarray(actions)
        shape = (self.count,) if self.discrete else (self.count, self.actions)
        if actions.shape != shape:
            raise ValueError(f"found actions of shape {actions.shape}; expected {shape}")
        if self.discrete and not np.isin(actions, np.arange(self.actions)).all():
            raise ValueError(f"found actions {actions.tolist()}; expected whole numbers from 0 to {self.actions - 1}")
        given = (actions + self._first).astype(self._dtype)
        observations, rewards, terminated, truncated, infos = self._envs.step(given)
        observations = np.asarray(observations, np.float32)
        final = observations.copy()
        for i in np.flatnonzero(terminated | truncated):  # gymnasium keeps them as a list
            final[i] = infos["final_obs"][i]
        return observations, rewards.astype(np.float32), terminated, truncated, final

    def close(self) -> None:
        """Let go of windows and the like."""
        self._envs.close()


def _library() -> Any:
    try:
        return importlib.import_module("gymnasium")  # late: an extra
    except ModuleNotFoundError as error:
        if error.name != "gymnasium":
            raise
        raise ConfigError("gymnasium is not installed here; pip install 'functrain[control]'") from None


def _make(library: Any, id: str, settings: dict[str, Any]) -> Any:
    try:
        env = library.make(id, **settings)
    except (library.error.Error, ImportError, TypeError) as error:  # TypeError: a setting that it does not have
        raise ConfigError(f"{id}: gymnasium cannot make it: {str(error).splitlines()[0]}") from None
    space = env.observation_space
    flat = isinstance(space, library.spaces.Box) and len(space.shape) == 1
    return env if flat else library.wrappers.FlattenObservation(env)
