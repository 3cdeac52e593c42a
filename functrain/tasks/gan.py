"""Two players: a generator makes examples, a discriminator tells them from real ones (Goodfellow et al. 2014)."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from functrain import losses, tree
from functrain.config import ConfigError, Fraction, NonNegative, Part, Size, configclass, off
from functrain.metrics import Generated, mean_of
from functrain.observe.grid import grid
from functrain.tasks.base import of_player
from functrain.tasks.teacher import Teacher

_SAMPLES = 64
"""Generated images in a picture."""


@configclass
class GAN:
    """Images, made by one player and judged by another; a step of both learners each.

    First the discriminator learns from the real images of the batch and from as many generated ones, as they are before
    the step; then the generator learns from the discriminator's new parameters. With D(x) a score:

        loss            of the discriminator                               of the generator
        logistic        softplus(-D(x)) + softplus(D(G(z)))                softplus(-D(G(z)))
        hinge           relu(1 - D(x)) + relu(1 + D(G(z)))                 -D(G(z))
        wasserstein     D(G(z)) - D(x)                                     -D(G(z))
        least_squares   ((D(x) - 1)^2 + D(G(z))^2) / 2                     (D(G(z)) - 1)^2 / 2

    (Goodfellow et al. 2014, section 3, its second form for the generator; Lim and Ye 2017; Arjovsky et al. 2017; Mao et
    al. 2017). A player's statistics (batch norm, spectral norm) are moved by its own loss alone: the discriminator's by
    its pass over the real images and then by that over the generated ones, the generator's by the pass that it learns
    from. Every pass of a step is in training mode; pictures and evaluation use the statistics.

    Metrics of a step: each player's loss, gradient norm and rate; the share of real and of generated images that the
    discriminator takes for what they are. With a judge, a classifier on the same images from another run, evaluation
    says what it makes of as many generated images as there are real ones (see `functrain.metrics.Generated`). Pixels
    are in 0..1, where the source must leave them; the players see 2 x - 1.
    """

    kind: Literal["gan"] = "gan"
    loss: Literal["logistic", "hinge", "wasserstein", "least_squares"] = "logistic"
    """What both players learn from."""
    smoothing: Fraction = 0.0
    """Of the logistic loss: real images count as real by 1 less this (Salimans et al. 2016, section 3.4); 0 is off."""
    gradient_penalty: NonNegative = 0.0
    """What (|gradient of D| - 1)^2 between a real and a generated image weighs (Gulrajani et al. 2017); 0 is off."""
    critic_steps: Size = 1
    """Updates of the discriminator for one of the generator, each from its own part of the batch."""
    judge: Teacher | None = None
    """A run of a classifier on the same images, which judges the generated ones."""
    model: Part = None
    generator_learner: Part = None
    discriminator_learner: Part = None

    in_units = True
    constant = ("judge",)

    def outputs(self, dataset) -> int:
        """As many numbers as an image has."""
        if len(dataset.inputs) not in (2, 3):
            raise ConfigError(f"task.kind: gan makes images; the data has examples of {list(dataset.inputs)}")
        return dataset.train["x"][0].size

    def assemble(self, model, learner) -> "GAN":
        """The task with its two models and learners."""
        if not all(hasattr(model, name) for name in ("generator", "discriminator")):
            raise ConfigError("model.kind: task.kind = gan needs a model of two players (dcgan)")
        if not off(self.smoothing) and self.loss != "logistic":
            raise ConfigError(f"task.smoothing: is of the logistic loss; task.loss is {self.loss!r}")
        if self.judge is not None:
            self.judge.check_features("task.judge.run")
        learners = {f"{name}_learner": learner(name) for name in ("generator", "discriminator")}
        return dataclasses.replace(self, model=model, **learners)

    @property
    def learners(self) -> dict[str, Any]:
        """Two players."""
        return {"generator": self.generator_learner, "discriminator": self.discriminator_learner}

    def init(self, key: jax.Array) -> tuple[dict[str, Any], Any]:
        """Parameters and state of both; the judge in the state."""
        keys = jax.random.split(key, 3)
        generator, discriminator = self.model.generator.init(keys[0]), self.model.discriminator.init(keys[1])
        state = {"generator": generator[1], "discriminator": discriminator[1]}
        if self.judge is not None:
            state["judge"] = self.judge.init(keys[2])
        return {"generator": generator[0], "discriminator": discriminator[0]}, state

    # -- a step -----------------------------------------------------------------------------------

    def update(self, train_state: Any, batch: Any, *, key: jax.Array) -> tuple[Any, dict[str, Any]]:
        """`critic_steps` of the discriminator's learner, then one of the generator's."""
        if len(batch["x"]) % self.critic_steps:
            raise ConfigError(
                f"task.critic_steps: found {self.critic_steps}; it does not divide a batch of {len(batch['x'])}"
            )
        noise_key, mix_key, generator_key, *keys = jax.random.split(key, 3 + self.critic_steps)
        n, dtype = len(batch["x"]), tree.wide(batch["x"]).dtype
        # In the batch, so that it is cut for accumulation as the images are.
        batch = batch | {
            "x": 2 * batch["x"] - 1,
            "z": jax.random.normal(noise_key, (n, self.model.latent), dtype),
            "mix": jax.random.uniform(mix_key, (n,), dtype),
        }
        parts = jax.tree.map(lambda x: x.reshape(self.critic_steps, -1, *x.shape[1:]), batch)
        players, state = dict(train_state.players), dict(train_state.state)
        judged = []
        for i, k in enumerate(keys):
            part = jax.tree.map(lambda x, i=i: x[i], parts)
            fake = self._generated(players["generator"].params, state["generator"], part["z"], train=True)
            players["discriminator"], state["discriminator"], metrics = self.discriminator_learner.update(
                self._discriminator_loss,
                players["discriminator"],
                state["discriminator"],
                part | {"fake": jax.lax.stop_gradient(fake)},
                key=k,
            )
            judged.append(metrics)
        loss = self._generator_loss(players["discriminator"].params, state["discriminator"])
        players["generator"], state["generator"], made = self.generator_learner.update(
            loss, players["generator"], state["generator"], part, key=generator_key
        )
        judged = jax.tree.map(lambda *sums: sum(sums), *judged)
        metrics = of_player("discriminator", judged) | of_player("generator", made)
        return train_state.replace(players=players, state=state), metrics

    def _discriminator_loss(self, params, state, batch, *, key):
        """Over real images x and generated ones, `fake`."""
        discriminator, mask = self.model.discriminator, batch.get("mask")
        real, state = discriminator.apply(params, state, batch["x"], train=True)
        fake, state = discriminator.apply(params, state, batch["fake"], train=True)
        real, fake = tree.wide(real), tree.wide(fake)
        each = self._told_apart(real, fake)
        if not off(self.gradient_penalty):
            each = each + self.gradient_penalty * self._penalty(params, state, batch)
        metrics = {"real_accuracy": mean_of(self._looks_real(real), mask)}
        metrics |= {"fake_accuracy": mean_of(~self._looks_real(fake), mask)}
        return mean_of(each, mask), state, metrics

    def _told_apart(self, real, fake):
        """The discriminator's loss from scores [n] of real and of generated images."""
        if self.loss == "logistic":
            kept = 1 - self.smoothing
            return kept * jax.nn.softplus(-real) + (1 - kept) * jax.nn.softplus(real) + jax.nn.softplus(fake)
        if self.loss == "hinge":
            return jax.nn.relu(1 - real) + jax.nn.relu(1 + fake)
        if self.loss == "wasserstein":
            return fake - real
        return ((real - 1) ** 2 + fake**2) / 2

    def _looks_real(self, scores):
        return scores > (0.5 if self.loss == "least_squares" else 0)

    def _penalty(self, params, state, batch):
        """(|gradient of D at a point between a real and a generated image| - 1)^2 of each."""
        mix = batch["mix"].reshape(-1, *[1] * (batch["x"].ndim - 1))
        between = mix * batch["x"] + (1 - mix) * batch["fake"]
        slope = jax.grad(lambda x: tree.wide(self.model.discriminator.apply(params, state, x, train=True)[0]).sum())
        return (losses.length(tree.wide(slope(between)).reshape(len(mix), -1)) - 1) ** 2

    def _generator_loss(self, params, state):
        """The loss of a generator against a discriminator with these parameters."""

        def score(params, state, batch, *, key):
            return self.model.discriminator.apply(params, state, batch["x"], train=True)[0]

        def loss(own_params, own_state, batch, *, key):
            fake, own_state = self.model.generator.apply(own_params, own_state, batch["z"], train=True)
            scores = tree.wide(self.discriminator_learner.precision(score)(params, state, {"x": fake}, key=None))
            if self.loss == "logistic":
                each = jax.nn.softplus(-scores)
            else:
                each = (scores - 1) ** 2 / 2 if self.loss == "least_squares" else -scores
            return mean_of(each, batch.get("mask")), own_state, {}

        return loss

    # -- what a trained generator makes -----------------------------------------------------------

    def _generated(self, params, state, z, *, train):
        """Images in -1..1, in the generator's precision."""

        def apply(params, state, batch, *, key):
            return self.model.generator.apply(params, state, batch["z"], train=train)[0]

        return tree.wide(self.generator_learner.precision(apply)(params, state, {"z": z}, key=None))

    def sample(self, train_state: Any, count: int, *, key: jax.Array) -> jax.Array:
        """`count` images in 0..1, by the weights that evaluation uses."""
        z = jax.random.normal(key, (count, self.model.latent))
        weights = self.generator_learner.weights(train_state.players["generator"])
        return (self._generated(weights, train_state.state["generator"], z, train=False) + 1) / 2

    def outputs_of(self, train_state: Any, x: Any) -> dict[str, jax.Array]:
        """`score` [n], the discriminator's, of images x in 0..1."""

        def apply(params, state, batch, *, key):
            return self.model.discriminator.apply(params, state, batch["x"], train=False)[0]

        weights = self.discriminator_learner.weights(train_state.players["discriminator"])
        precision = self.discriminator_learner.precision
        scores = precision(apply)(weights, train_state.state["discriminator"], {"x": 2 * x - 1}, key=None)
        return {"score": tree.wide(scores)}

    def predict(self, outputs: Any) -> dict[str, Any]:
        """`score` [n]: how real images look to the discriminator."""
        return outputs

    def evaluate(self, train_state: Any, batch: Any, *, key: jax.Array) -> dict[str, Any]:
        """What the discriminator and the judge make of the batch and of as many generated images."""
        x, mask = batch["x"], batch.get("mask")
        made = self.sample(train_state, len(x), key=key)
        real, fake = (self.outputs_of(train_state, images)["score"] for images in (x, made))
        metrics: dict[str, Any] = {"real_accuracy": mean_of(self._looks_real(real), mask)}
        metrics |= {"fake_accuracy": mean_of(~self._looks_real(fake), mask)}
        if self.judge is not None:
            held = train_state.state["judge"]
            metrics["generated"] = Generated(
                self.judge.features(held, x),
                self.judge.features(held, made),
                jax.nn.softmax(self.judge.apply(held, made)),
                mask=jnp.ones(len(x)) if mask is None else mask,
            )
        return metrics

    # -- pictures ---------------------------------------------------------------------------------

    examples_drawn = 1

    def drawn(self, train_state: Any, batch: Any) -> jax.Array:
        """Images of the same vectors each time."""
        return self.sample(train_state, _SAMPLES, key=jax.random.key(0))

    def draw(self, outputs: Any, batch: Any, folder: Path, names: tuple[str, ...]) -> list[Path]:
        """samples.png."""
        grid(outputs, folder / "samples.png")
        return [folder / "samples.png"]
