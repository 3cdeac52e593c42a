"""A deterministic policy and its critics as networks, and what a trained one does: acts, is evaluated, is drawn."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from functrain import tree
from functrain.config import Part, Size, configclass
from functrain.environments import AnyEnvironment, auto_reset_step, begin, frame
from functrain.layers import activations
from functrain.metrics import mean_of
from functrain.models import MLP
from functrain.tasks.control.animation import animation
from functrain.tasks.control.equations import scaled

# pyright: reportInvalidTypeForm=false
# The unions of kinds are built from tables by a function, which a static checker cannot follow.

_SIDE, _EVERY, _SECONDS = 160, 2, 0.04
"""Of the animation: pixels a side, which steps are shown, and how long one of them takes."""


@configclass
class Policy:
    """An actor and its critics, MLPs over one environment: the part of a task that does not learn.

    Both see actions in -1..1; the environment is given them in its own units.
    """

    kind: str
    environment: AnyEnvironment
    """Where it acts."""
    hidden: tuple[Size, ...] = (256, 256)
    """Width of each hidden layer, of the actor and of the critics."""
    activation: activations.Name = "relu"
    """Nonlinearity after each hidden layer."""
    episodes: Size = 10
    """Whole episodes in an evaluation."""
    actor_learner: Part = None
    critic_learner: Part = None

    critics = 1

    @property
    def learners(self) -> dict[str, Any]:
        """Two players."""
        return {"actor": self.actor_learner, "critic": self.critic_learner}

    @property
    def inputs(self) -> tuple[int]:
        """The shape of an observation."""
        return (self.environment.observations,)

    @property
    def _actor_model(self) -> MLP:
        return self._mlp(self.environment.observations, self.environment.actions)

    @property
    def _critic_model(self) -> MLP:
        return self._mlp(self.environment.observations + self.environment.actions, 1)

    def _mlp(self, inputs: int, outputs: int) -> MLP:
        return MLP(hidden=self.hidden, activation=self.activation, inputs=(inputs,), outputs=outputs)

    # -- the two functions ------------------------------------------------------------------------

    def _chosen(self, params, observation):
        """Observations [n, observations] -> actions [n, actions] in -1..1, at least float32."""
        return jnp.tanh(tree.wide(self._actor_model.apply(params, {}, observation)[0]))

    def _told(self, params, observation, action):
        """What each critic makes of observations and actions, [critics, n], at least float32."""
        x = jnp.concatenate([observation, action.astype(observation.dtype)], -1)
        values = [self._critic_model.apply(params[f"critic{i}"], {}, x)[0][:, 0] for i in range(self.critics)]
        return tree.wide(jnp.stack(values))

    def _policy(self, params, observation):
        """`_chosen` in the actor's precision, outside of its own loss."""

        def apply(params, state, batch, *, key):
            return self._chosen(params, batch["observation"])

        return self.actor_learner.precision(apply)(params, {}, {"observation": observation}, key=None)

    def _values(self, params, observation, action):
        """`_told` in the critics' precision, outside of their own loss."""

        def apply(params, state, batch, *, key):
            return self._told(params, batch["observation"], batch["action"])

        given = {"observation": observation, "action": action}
        return self.critic_learner.precision(apply)(params, {}, given, key=None)

    def _scaled(self, action):
        """An action in -1..1 in the environment's units."""
        return scaled(action, jnp.asarray(self.environment.low), jnp.asarray(self.environment.high))

    # -- what a trained one does ------------------------------------------------------------------

    def outputs_of(self, train_state: Any, x: Any) -> jax.Array:
        """Observations x [n, observations] -> actions [n, actions] in the environment's units, without noise."""
        weights = self.actor_learner.weights(train_state.players["actor"])
        return self._scaled(self._policy(weights, x))

    def predict(self, outputs: Any) -> dict[str, Any]:
        """`action` [n, actions]."""
        return {"action": outputs}

    def evaluate(self, train_state: Any, batch: Any, *, key: jax.Array) -> dict[str, Any]:
        """`return` and `length` of `episodes` whole episodes, side by side."""
        act = jax.vmap(functools.partial(auto_reset_step, self.environment))
        start_key, act_key = jax.random.split(key)

        def body(carry):
            step, episodes, total, length, running = carry
            observation = jax.vmap(self.environment.observe)(episodes.state)
            keys = jax.random.split(jax.random.fold_in(act_key, step), self.episodes)
            episodes, seen = act(episodes, self.outputs_of(train_state, observation), keys)
            total, length = total + jnp.where(running, seen["reward"], 0), length + running
            return step + 1, episodes, total, length, running & ~(seen["terminated"] | seen["truncated"])

        first = jax.vmap(functools.partial(begin, self.environment))(jax.random.split(start_key, self.episodes))
        carry = jnp.int32(0), first, first.total, first.length, jnp.ones(self.episodes, bool)
        _, _, total, length, _ = lax.while_loop(lambda carry: carry[-1].any(), body, carry)
        return {"return": mean_of(total), "length": mean_of(length.astype(total.dtype))}

    # -- pictures ---------------------------------------------------------------------------------

    def drawn(self, train_state: Any, batch: Any) -> tuple[Any, jax.Array]:
        """(states [max_steps + 1, ...], which of them are of the episode) of one, from the same start each time."""
        env, keys = self.environment, jax.random.split(jax.random.key(0), self.environment.max_steps + 1)

        def body(carry, key):
            state, there, running = carry
            action = self.outputs_of(train_state, env.observe(state)[None])[0]
            after, _, terminated = env.step(state, action, key)
            return (after, running, running & ~terminated), (state, there)

        return lax.scan(body, (env.reset(keys[0]), jnp.bool_(True), jnp.bool_(True)), keys)[1]

    def draw(self, outputs: Any, batch: Any, folder: Path, names: tuple[str, ...]) -> list[Path]:
        """episode.gif: an episode of the policy without noise."""
        states, there = outputs
        episode = [jax.tree.map(lambda x, i=i: x[i], states) for i in np.flatnonzero(there)]
        frames = [frame(self.environment, state, _SIDE) for state in (*episode[:-1:_EVERY], episode[-1])]
        return animation(frames, folder / "episode.gif", seconds=_EVERY * _SECONDS)
