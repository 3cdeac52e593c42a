"""A model of the data with a latent vector, learned by the evidence lower bound (Kingma and Welling 2014)."""

import math
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri

from functrain import losses, tree
from functrain.config import ConfigError, Part, Positive, Size, configclass
from functrain.metrics import Mean, Total, mean_of
from functrain.observe.grid import grid
from functrain.observe.latent_figure import latent_picture
from functrain.tasks.base import OneLoss

_SAMPLES = 64
"""Examples that are decoded from the prior for a picture."""
_SHOWN = 16
"""Examples drawn beside what becomes of them."""
_SIDE = 15
"""Points on each side of the plane that is decoded."""


@configclass
class Variational(OneLoss):
    """The evidence lower bound of each example x, in nats:

        loss = -log p(x | z) + beta KL(q(z | x) || p(z)),   z = mean + deviation * noise

    with one z an example (Kingma and Welling 2014, eq. 10); beta above 1 is the beta-VAE of Higgins et al. 2017, eq. 4.
    As metrics `reconstruction`, the first part, `kl`, the second without beta, and `negative_elbo`, their sum. A step's
    noise is drawn into its batch, so that accumulated gradients are those of the whole.

    A Bernoulli likelihood takes x in 0..1 as it is, grey values as probabilities, and so the source must not normalise.
    Of images, figures/ has reconstructions.png, samples.png and, of the two units of the latent vector whose means vary
    most, latent.png (where the examples lie in their plane) and plane.png (what the plane decodes to).
    """

    kind: Literal["variational"] = "variational"
    likelihood: Literal["bernoulli", "normal"] = "bernoulli"
    """Of a number given what is decoded: its logit, or the mean of a normal distribution."""
    deviation: Positive = 1.0
    """The deviation of that normal distribution."""
    beta: Positive = 1.0
    """What the divergence weighs in the loss."""
    samples: Size = 1
    """Latent vectors drawn an example in evaluation; their bounds are averaged."""
    model: Part = None
    learner: Part = None

    examples_drawn = 1000

    @property
    def in_units(self) -> bool:
        """Whether the inputs must be as the source scales them."""
        return self.likelihood == "bernoulli"

    def outputs(self, dataset) -> int:
        """As many numbers as an input has."""
        return math.prod(dataset.inputs)

    def assemble(self, model, learner) -> "Variational":
        """The task with its model."""
        if not all(hasattr(model, name) for name in ("encode", "decode", "latent")):
            raise ConfigError("model.kind: task.kind = variational needs a model with a latent vector (vae)")
        return super().assemble(model, learner)

    def update(self, train_state, batch, *, key):
        """One step of the learner, with noise in the batch."""
        noise_key, key = jax.random.split(key)
        return super().update(train_state, self._with_noise(batch, noise_key), key=key)

    def evaluate(self, train_state, batch, *, key):
        """The mean bound over `samples` draws."""
        found = []
        for k in jax.random.split(key, self.samples):
            found.append(super().evaluate(train_state, self._with_noise(batch, k), key=k))
        return jax.tree.map(lambda *totals: sum(totals) / self.samples, *found)

    def _with_noise(self, batch, key):
        """The batch with its noise, and with x once more, which no precision rounds, to be compared with."""
        return batch | {"noise": self._noise(len(batch["x"]), key), "target": batch["x"]}

    def _noise(self, n, key):
        return jax.random.normal(key, (n, self.model.latent))

    def full_loss(self, params, state, batch, *, key, train):
        """The bound of each x with its `noise` [n, latent]."""
        outputs, state = self.model.apply(params, state, batch["x"], batch["noise"], key=key, train=train)
        means, metrics = self.loss(jax.tree.map(tree.wide, outputs), batch, train=train)
        return means, state, metrics

    def loss(self, outputs, batch, *, train):
        """The bound from the model's outputs."""
        mask = losses.weighted(batch.get("mask"), batch.get("weight"))
        x = batch.get("target", batch["x"])
        x = tree.wide(x.reshape(len(x), -1))
        reconstruction = mean_of(self._unlikely(outputs["decoded"], x).sum(-1), mask)
        kl = losses.normal_kl(outputs["mean"], outputs["log_variance"], mask=mask)
        metrics = {"reconstruction": reconstruction, "kl": kl, "negative_elbo": Total((reconstruction, kl))}
        return Mean(reconstruction.total + self.beta * kl.total, kl.count), metrics

    def _unlikely(self, decoded, x):
        """-log p of each number."""
        if self.likelihood == "bernoulli":
            return -x * jax.nn.log_sigmoid(decoded) - (1 - x) * jax.nn.log_sigmoid(-decoded)
        return 0.5 * ((x - decoded) / self.deviation) ** 2 + jnp.log(self.deviation * math.sqrt(2 * math.pi))

    def _seen(self, decoded):
        """What is decoded, as the model's inputs are."""
        return jax.nn.sigmoid(decoded) if self.likelihood == "bernoulli" else decoded

    def outputs_of(self, train_state, x) -> dict[str, Any]:
        """`mean` and `log_variance` [n, latent], and `decoded` [n, ...] of the mean, as inputs are."""
        outputs = super().outputs_of(train_state, x)
        return outputs | {"decoded": self._seen(outputs["decoded"]).reshape(x.shape)}

    def predict(self, outputs) -> dict[str, Any]:
        """`mean` and `log_variance` [n, latent]: where the examples lie."""
        return {name: outputs[name] for name in ("mean", "log_variance")}

    # -- pictures ---------------------------------------------------------------------------------

    def drawn(self, train_state, batch) -> dict[str, Any]:
        """The outputs of the batch's x; beside them `samples` of the prior, and `plane` with its two `axes`."""
        outputs = self.outputs_of(train_state, batch["x"])
        latent = self.model.latent
        axes = jnp.argsort(-outputs["mean"].var(0))[: min(2, latent)]
        # Points of equal probability of the prior along each axis, as in the paper's figure 4.
        at = ndtri((jnp.arange(_SIDE) + 0.5) / _SIDE)
        points = jnp.stack(jnp.meshgrid(at, -at), -1).reshape(-1, 2)[:, : len(axes)]
        plane = jnp.zeros((len(points), latent)).at[:, axes].set(points)
        z = jnp.concatenate([self._noise(_SAMPLES, jax.random.key(0)), plane])

        def decode(params, state, batch, *, key):
            return tree.wide(self.model.decode(params, batch["z"]))

        weights = self.learner.weights(train_state.players["model"])
        decoded = self._seen(self.learner.precision(decode)(weights, train_state.state, {"z": z}, key=None))
        decoded = decoded.reshape(len(z), *batch["x"].shape[1:])
        pictures = {"x": batch["x"], "samples": decoded[:_SAMPLES], "plane": decoded[_SAMPLES:]}
        return outputs | pictures | {"axes": axes}

    def draw(self, outputs, batch, folder: Path, names: tuple[str, ...]) -> list[Path]:
        """latent.png; of images also reconstructions.png, samples.png and plane.png."""
        paths = [folder / "latent.png"]
        latent_picture(outputs["mean"][:, outputs["axes"]], batch.get("y"), names, outputs["axes"], paths[0])
        x = outputs["x"]  # as the model reads it, which is also what it decodes
        if x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[-1] not in (1, 3)):
            return paths
        low, high = (0, 1) if self.likelihood == "bernoulli" else (x.min(), x.max())
        outputs = {name: (outputs[name] - low) / (high - low) for name in ("x", "decoded", "samples", "plane")}
        pairs = np.stack([outputs["x"][:_SHOWN], outputs["decoded"][:_SHOWN]], 1).reshape(-1, *x.shape[1:])
        for name, images, columns in (
            ("reconstructions", pairs, 8),  # each beside what became of it
            ("samples", outputs["samples"], 8),
            ("plane", outputs["plane"], _SIDE),
        ):
            paths.append(folder / f"{name}.png")
            grid(images, paths[-1], columns=columns)
        return paths
