"""Off-policy control with a deterministic policy, DDPG and TD3: environment and replay buffer are inside the step."""

import dataclasses
import functools
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from pydantic import Field

from functrain import tree
from functrain.config import ConfigError, Count, Fraction, NonNegative, Size, configclass, off
from functrain.environments import auto_reset_step, begin
from functrain.metrics import mean_of
from functrain.tasks.base import of_player
from functrain.tasks.control import replay
from functrain.tasks.control.equations import bootstrapped, smoothed, soft_update
from functrain.tasks.control.noise import AnyNoise, Gaussian
from functrain.tasks.control.policy import Policy

# pyright: reportInvalidTypeForm=false
# The unions of kinds are built from tables by a function, which a static checker cannot follow.

Rate = Annotated[float, Field(gt=0, le=1)]


@configclass
class ActorCritic(Policy):
    """A policy and what tells the value of its actions, both MLPs, learned from what the policy did before.

    A step of the run: each environment acts once, what came of it goes into the replay buffer, and both players learn
    from `updates` batches that are drawn from the buffer. Before `warmup` steps have passed, actions are uniform and
    nobody learns; after that they are the policy's with noise. In an update

        y = reward + discount (1 - terminated) Q'(next observation, mu'(next observation))

    is computed with the target networks Q' and mu', the critics take a step on (y - Q(observation, action))^2, summed
    over the critics, the actor one on -Q(observation, mu(observation)) of the first, and the targets move by
    `target_rate` towards both. An episode that a time limit ends is not terminated: y goes on beyond it.

    Actions are in -1..1 for both players and the noise, and in the environment's units where it takes them. The task
    owns its models and makes its data: there is no [model] and no [data]. A schedule counts the updates of its own
    player.

    Metrics of a step: critic_loss, actor_loss, q (the first critic's mean over the batch), and over the episodes that
    ended in it their return and length. Evaluation has the return and the length of whole episodes without noise, from
    the same starts each time.
    """

    environments: Size = 1
    """How many of them act side by side; each step puts as many transitions into the buffer."""
    discount: Fraction = 0.99
    """What a reward a step later is worth (gamma)."""
    target_rate: Rate = 0.005
    """How far the targets move towards the parameters in an update (tau)."""
    capacity: Size = 1_000_000
    """Transitions that the buffer holds."""
    batch_size: Size = 256
    """Transitions in an update."""
    warmup: Count = 1000
    """Steps at the start with uniform actions, in which nobody learns."""
    updates: Size = 1
    """Updates in a step."""
    noise: AnyNoise = Gaussian()
    """What is added to the policy's actions."""

    # What TD3 has otherwise.
    delay = 1
    smoothing = 0.0
    smoothing_most = 0.0

    def __post_init__(self):
        for name in ("batch_size", "environments", "warmup"):
            if (found := getattr(self, name)) > self.capacity:
                raise ValueError(f"{name}: found {found}; the buffer holds {self.capacity} (capacity)")

    # -- putting together -------------------------------------------------------------------------

    def sized(self, dataset: Any) -> None:
        """Raises a ConfigError: the environment is the data."""
        raise ConfigError(f"data: task.kind = {self.kind!r} acts in task.environment; leave [data] out")

    def outputs(self, dataset: Any) -> None:
        """Nothing of a model: the task has its own."""
        return

    def assemble(self, model: Any, learner: Any) -> "ActorCritic":
        """The task with its learners."""
        if model is not None:
            raise ConfigError(f"model: task.kind = {self.kind!r} has its own (task.hidden); leave [model] out")
        if self.environment.discrete:
            raise ConfigError(
                f"task.environment.kind: found {self.environment.kind!r}, of discrete actions; "
                f"task.kind = {self.kind!r} needs continuous ones"
            )
        task = dataclasses.replace(self, actor_learner=learner("actor"), critic_learner=learner("critic"))
        if self.batch_size % (accumulate := task.critic_learner.accumulate):
            raise ConfigError(
                f"train.accumulate: found {accumulate}; it does not divide task.batch_size = {self.batch_size}"
            )
        return task

    def init(self, key: jax.Array) -> tuple[dict[str, Any], Any]:
        """Parameters of both; in the state the targets, equal to them, the environments, and an empty buffer."""
        actor_key, critic_key, start_key = jax.random.split(key, 3)
        params = {
            "actor": self._actor_model.init(actor_key)[0],
            "critic": {
                f"critic{i}": self._critic_model.init(k)[0]
                for i, k in enumerate(jax.random.split(critic_key, self.critics))
            },
        }
        episodes = jax.vmap(functools.partial(begin, self.environment))(jax.random.split(start_key, self.environments))
        observation = jax.eval_shape(jax.vmap(self.environment.observe), episodes.state)
        noise = self.noise.start((self.environments, self.environment.actions), observation.dtype)
        one = jax.ShapeDtypeStruct(observation.shape[1:], observation.dtype)
        reward = jnp.zeros((), observation.dtype)
        transition = {"observation": one, "action": noise[0], "reward": reward, "next_observation": one}
        transition |= {"terminated": jnp.zeros((), bool)}
        state = {
            "targets": params,
            "episodes": episodes,
            "noise": noise,
            "replay": replay.empty(transition, self.capacity),
            "updates": jnp.int32(0),
        }
        return params, state

    # -- a step -----------------------------------------------------------------------------------

    def update(self, train_state: Any, batch: Any, *, key: jax.Array) -> tuple[Any, dict[str, Any]]:
        """Every environment acts once, and after the warm-up both players learn."""
        act_key, pick_key, learn_key = jax.random.split(key, 3)
        state, transitions, metrics = self._act(train_state, key=act_key)
        state["replay"] = replay.add(state["replay"], transitions)
        # Read here, and not by the `cond`: what goes into one is copied.
        rows = replay.sample(state["replay"], self.updates * self.batch_size, key=pick_key)
        batches = jax.tree.map(lambda x: x.reshape(self.updates, self.batch_size, *x.shape[1:]), rows)
        before = train_state.players, state["targets"], state["updates"]

        def learn():
            def one(learned, given):
                *learned, new = self.improve(*learned, **given)
                return tuple(learned), new

            keys = jax.random.split(learn_key, self.updates)
            learned, new = lax.scan(one, before, {"batch": batches, "key": keys})
            return learned, jax.tree.map(lambda x: x.sum(0), new)

        learned, new = _when(train_state.step >= self.warmup, learn, before)
        players, state["targets"], state["updates"] = learned
        return train_state.replace(players=players, state=state), metrics | new

    def _act(self, train_state, *, key):
        """(state, transitions [environments, ...], metrics) after a step of every environment."""
        state = dict(train_state.state)
        noise_key, random_key, step_key = jax.random.split(key, 3)
        observation = jax.vmap(self.environment.observe)(state["episodes"].state)
        noise_state, noise = self.noise.draw(state["noise"], key=noise_key)
        wanted = self._policy(train_state.players["actor"].params, observation) + noise
        random = jax.random.uniform(random_key, noise.shape, noise.dtype, -1, 1)
        action = jnp.where(train_state.step < self.warmup, random, jnp.clip(wanted, -1, 1)).astype(noise.dtype)
        act = jax.vmap(functools.partial(auto_reset_step, self.environment))
        keys = jax.random.split(step_key, self.environments)
        state["episodes"], seen = act(state["episodes"], self._scaled(action), keys)
        ended = seen["terminated"] | seen["truncated"]
        state["noise"] = self.noise.reset(noise_state, ended)
        transitions = {
            "observation": observation,
            "action": action,
            "reward": seen["reward"].astype(noise.dtype),
            "next_observation": seen["next_observation"],
            "terminated": seen["terminated"],
        }
        metrics = {name: mean_of(seen[f"episode_{name}"].astype(noise.dtype), ended) for name in ("return", "length")}
        return state, transitions, metrics

    def improve(self, players: Any, targets: Any, updates: Any, batch: Any, *, key: jax.Array) -> tuple[Any, ...]:
        """One update from a batch of transitions: (players, targets, updates, metrics).

        updates: how many there were before, which says whether the actor's turn has come.
        """
        noise_key, critic_key, actor_key = jax.random.split(key, 3)
        action = self._policy(targets["actor"], batch["next_observation"])
        if not off(self.smoothing):
            noise = self.smoothing * jax.random.normal(noise_key, action.shape, action.dtype)
            action = smoothed(action, noise, self.smoothing_most)
        value = self._values(targets["critic"], batch["next_observation"], action).min(0)
        target = bootstrapped(batch["reward"], batch["terminated"], value, self.discount)
        critic, _, of_critic = self.critic_learner.update(
            self._critic_loss, players["critic"], {}, batch | {"target": target}, key=critic_key
        )
        q, updates = of_critic.pop("q"), updates + 1

        def improve_actor():
            loss = self._actor_loss(critic.params)
            actor, _, of_actor = self.actor_learner.update(loss, players["actor"], {}, batch, key=actor_key)
            params = {"actor": actor.params, "critic": critic.params}
            return (actor, soft_update(targets, params, self.target_rate)), of_actor

        (actor, targets), of_actor = _when(updates % self.delay == 0, improve_actor, (players["actor"], targets))
        metrics = of_player("critic", of_critic) | of_player("actor", of_actor) | {"q": q}
        return {"actor": actor, "critic": critic}, targets, updates, metrics

    def _critic_loss(self, params, state, batch, *, key):
        values = self._told(params, batch["observation"], batch["action"])
        errors = ((values - batch["target"]) ** 2).sum(0)
        return mean_of(errors), state, {"q": mean_of(values[0])}

    def _actor_loss(self, critic):
        """The loss of an actor whose actions a critic with these parameters tells the value of."""

        def loss(params, state, batch, *, key):
            action = self._chosen(params, batch["observation"])
            return mean_of(-self._values(critic, batch["observation"], action)[0]), state, {}

        return loss


@configclass
class DDPG(ActorCritic):
    """Deep deterministic policy gradient (Lillicrap et al. 2016, algorithm 1): one critic, and a target of each.

    See `ActorCritic` for what a step does. Published with weight decay, batch norm and Ornstein-Uhlenbeck noise, which
    are settings here.

    >>> from functrain.environments import Pendulum
    >>> task = DDPG(environment=Pendulum(), hidden=(4,), capacity=16, batch_size=8, warmup=8)
    >>> params, state = task.init(jax.random.key(0))
    >>> sorted(params), state["replay"].transitions["observation"].shape
    (['actor', 'critic'], (16, 3))
    """

    kind: Literal["ddpg"] = "ddpg"


@configclass
class TD3(ActorCritic):
    """Twin delayed DDPG (Fujimoto et al. 2018, algorithm 1), which does not believe its critics too well of an action.

    See `ActorCritic` for what a step does. There are two critics, and y is of the lower value; the target's action has
    noise, clipped; the actor and all targets are updated once in `delay` updates of the critics.

    >>> from functrain.environments import Pendulum
    >>> params, _ = TD3(environment=Pendulum(), hidden=(4,)).init(jax.random.key(0))
    >>> sorted(params["critic"])
    ['critic0', 'critic1']
    """

    kind: Literal["td3"] = "td3"
    delay: Size = 2
    """Updates of the critics for one of the actor and of the targets."""
    smoothing: NonNegative = 0.2
    """Standard deviation of the noise in the target's action; 0 is off."""
    smoothing_most: NonNegative = 0.5
    """Where that noise is clipped, to both sides."""

    critics = 2


def _when(condition, do, unchanged):
    """do(), where the condition holds; else (what it would change as it is, no metrics counted)."""
    nothing = tree.zeros_like(jax.eval_shape(lambda: do()[1]))
    return lax.cond(condition, do, lambda: (unchanged, nothing))
