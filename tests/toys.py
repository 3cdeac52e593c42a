"""Three toy tasks that prove the contract: two players in turn, no gradient at all, an environment in the step.

Each is a few dozen lines; the loop, checkpoints and population know none of them.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from functrain.layers import linear
from functrain.metrics import Mean, mean_of
from functrain.models import MLP
from functrain.optim import Adam, Learner


def _named(**metrics):
    return {f"{who}_{name}": metric for who, found in metrics.items() for name, metric in found.items()}


# -- two players in turn --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TinyGAN:
    """A generator of points on a line against a discriminator (Goodfellow et al. 2014, non-saturating)."""

    generator: Any = MLP(inputs=(4,), outputs=2, hidden=(16,))
    discriminator: Any = MLP(inputs=(2,), outputs=1, hidden=(16,))
    generator_learner: Learner = field(default_factory=lambda: Learner(optimizer=Adam(peak_lr=3e-3, b1=0.5)))
    discriminator_learner: Learner = field(default_factory=lambda: Learner(optimizer=Adam(peak_lr=3e-3, b1=0.5)))

    @property
    def learners(self):
        return {"generator": self.generator_learner, "discriminator": self.discriminator_learner}

    def init(self, key):
        a, b = jax.random.split(key)
        return {"generator": self.generator.init(a)[0], "discriminator": self.discriminator.init(b)[0]}, {}

    def update(self, train_state, batch, *, key):
        noise_key, d_key, g_key = jax.random.split(key, 3)
        # Noise is drawn into the batch, so that micro-batches see the same noise as the whole.
        batch = batch | {"z": jax.random.normal(noise_key, (len(batch["x"]), 4))}
        g, d = train_state.players["generator"], train_state.players["discriminator"]

        def score(params, x):
            return self.discriminator.apply(params, {}, x)[0][:, 0]

        def d_loss(params, state, batch, *, key):
            fake = self.generator.apply(g.params, {}, batch["z"])[0]
            loss = jax.nn.softplus(-score(params, batch["x"])) + jax.nn.softplus(score(params, fake))
            return mean_of(loss), state, {}

        def g_loss(params, state, batch, *, key):
            fake = self.generator.apply(params, {}, batch["z"])[0]
            return mean_of(jax.nn.softplus(-score(d.params, fake))), state, {}

        d, _, d_metrics = self.discriminator_learner.update(d_loss, d, {}, batch, key=d_key)
        g, _, g_metrics = self.generator_learner.update(g_loss, g, {}, batch, key=g_key)
        return train_state.replace(players={"generator": g, "discriminator": d}), _named(d=d_metrics, g=g_metrics)

    def evaluate(self, train_state, batch, *, key):
        z = jax.random.normal(key, (256, 4))
        fake = self.generator.apply(train_state.players["generator"].params, {}, z)[0]
        return {"gap": mean_of(jnp.abs(fake.mean(0) - batch["x"].mean(0)))}


# -- a closed-form alternating update -------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TinyALS:
    """Alternating least squares on a small table of ratings: nobody descends."""

    users: int = 20
    items: int = 15
    rank: int = 2
    ridge: float = 1e-3

    @property
    def learners(self):
        return {"factors": None}

    def init(self, key):
        a, b = jax.random.split(key)
        params = {
            "user": jax.random.normal(a, (self.users, self.rank)),
            "item": jax.random.normal(b, (self.items, self.rank)),
        }
        return {"factors": params}, {}

    def update(self, train_state, batch, *, key):
        def solve(other, ratings, seen):
            gram = jnp.einsum("ui,ik,il->ukl", seen, other, other) + self.ridge * jnp.eye(self.rank)[None]
            return jnp.linalg.solve(gram, ((seen * ratings) @ other)[..., None])[..., 0]

        player = train_state.players["factors"]
        user = solve(player.params["item"], batch["x"], batch["seen"])
        item = solve(user, batch["x"].T, batch["seen"].T)
        train_state = train_state.replace(players={"factors": player.replace(params={"user": user, "item": item})})
        return train_state, self.evaluate(train_state, batch, key=key)

    def evaluate(self, train_state, batch, *, key):
        params = train_state.players["factors"].params
        error = (batch["x"] - params["user"] @ params["item"].T) ** 2
        return {"loss": mean_of(error, batch["seen"])}


# -- an environment with a replay buffer inside the step ------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TinyControl:
    """A point pushed towards the origin: a linear policy learns from a replay buffer that the step itself fills."""

    learner: Learner = field(default_factory=lambda: Learner(optimizer=Adam(peak_lr=1e-2)))
    capacity: int = 64
    sample: int = 16
    noise: float = 0.3

    @property
    def learners(self):
        return {"policy": self.learner}

    def init(self, key):
        a, b = jax.random.split(key)
        state = {"at": jax.random.normal(b, (2,)), "replay": jnp.zeros((self.capacity, 2))}
        return {"policy": linear.init(a, 2, 2)}, state

    def update(self, train_state, batch, *, key):
        act_key, pick_key, learn_key = jax.random.split(key, 3)
        player, state, step = train_state.players["policy"], train_state.state, train_state.step
        push = linear.apply(player.params, state["at"]) + self.noise * jax.random.normal(act_key, (2,))
        at = jnp.clip(state["at"] + 0.1 * push, -2, 2)
        replay = state["replay"].at[step % self.capacity].set(at)
        picked = jax.random.randint(pick_key, (self.sample,), 0, jnp.minimum(step + 1, self.capacity))

        def loss(params, state, batch, *, key):
            after = batch["x"] + 0.1 * linear.apply(params, batch["x"])
            return mean_of(jnp.sum(after**2, -1)), state, {}

        player, _, metrics = self.learner.update(loss, player, {}, {"x": replay[picked]}, key=learn_key)
        train_state = train_state.replace(players={"policy": player}, state={"at": at, "replay": replay})
        return train_state, metrics | {"distance": Mean(jnp.sqrt(jnp.sum(at**2)), jnp.ones(()))}

    def evaluate(self, train_state, batch, *, key):
        params = train_state.players["policy"].params
        start = jax.random.normal(key, (8, 2))
        end = jax.lax.fori_loop(0, 50, lambda _, at: at + 0.1 * linear.apply(params, at), start)
        return {"distance": mean_of(jnp.sqrt(jnp.sum(end**2, -1)))}
