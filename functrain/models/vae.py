"""The variational autoencoder of Kingma and Welling (2014): an encoder to a normal distribution, and a decoder."""

import itertools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from functrain.config import Count, Size, configclass
from functrain.layers import activations, initializers, linear
from functrain.models.base import fitted


@configclass
class VAE:
    """An MLP to the mean and the log variance of a latent vector, and an MLP from such a vector back.

    The defaults are 784-400-20 for MNIST: 652,824 parameters.

    >>> model = VAE(inputs=(28, 28), outputs=784)
    >>> params, state = model.init(jax.random.key(0))
    >>> sum(p.size for p in jax.tree.leaves(params))
    652824
    >>> outputs, _ = model.apply(params, state, jnp.zeros((3, 28, 28)))
    >>> {name: value.shape for name, value in outputs.items()}
    {'mean': (3, 20), 'log_variance': (3, 20), 'decoded': (3, 784)}
    """

    kind: Literal["vae"] = "vae"
    hidden: tuple[Size, ...] = (400,)
    """Width of each hidden layer of the encoder; the decoder has them the other way round."""
    latent: Size = 20
    """Numbers of the latent vector."""
    activation: activations.Name = "relu"
    """Nonlinearity after each hidden layer."""
    inputs: tuple[Size, ...] = ()
    """Shape of one input; taken from the data."""
    outputs: Count = 0
    """Numbers of what is decoded; taken from the data."""

    def sized(self, inputs: tuple[int, ...], outputs: int) -> "VAE":
        """The model with its ends fitted to the data."""
        return fitted(self, inputs, outputs)

    def build(self) -> "VAE":
        """The config is the model."""
        return self

    def init(self, key: jax.Array) -> tuple[dict[str, Any], dict]:
        """`({"encoder": {"linear0", ..., "mean", "log_variance"}, "decoder": {"linear0", ..., "output"}}, {})`."""
        encoder, decoder = jax.random.split(key)
        widths = (math.prod(self.inputs), *self.hidden)
        back = (self.latent, *self.hidden[::-1])
        return {
            "encoder": _init(encoder, widths, {"mean": self.latent, "log_variance": self.latent}),
            "decoder": _init(decoder, back, {"output": self.outputs}),
        }, {}

    def apply(self, params, state, x, noise=None, *, key=None, train=False):
        """Inputs x [n, ...] -> ({"mean", "log_variance" [n, latent], "decoded" [n, outputs]}, state).

        noise: [n, latent], standard normal: what is decoded is mean + deviation * noise; None decodes the mean.
        """
        mean, log_variance = self.encode(params, x)
        z = mean if noise is None else mean + jnp.exp(log_variance / 2) * noise.astype(mean.dtype)
        return {"mean": mean, "log_variance": log_variance, "decoded": self.decode(params, z)}, state

    @jax.named_scope("encoder")
    def encode(self, params, x) -> tuple[jax.Array, jax.Array]:
        """Inputs [n, ...] -> (mean, log variance) of the latent vector, [n, latent] each."""
        params = params["encoder"]
        h = self._hidden(params, x.reshape(len(x), -1))
        return _linear(params, "mean", h), _linear(params, "log_variance", h)

    @jax.named_scope("decoder")
    def decode(self, params, z) -> jax.Array:
        """Latent vectors [n, latent] -> what is decoded [n, outputs]."""
        return _linear(params["decoder"], "output", self._hidden(params["decoder"], z))

    def _hidden(self, params, h):
        act = activations.by_name(self.activation)
        for i in range(len(self.hidden)):
            h = act(_linear(params, f"linear{i}", h))
        return h


def _linear(params, name, h):
    with jax.named_scope(name):
        return linear.apply(params[name], h)


def _init(key, widths, heads) -> dict[str, Any]:
    """Linear layers one after another, and heads on the last."""
    keys = iter(jax.random.split(key, len(widths) - 1 + len(heads)))
    pairs = {f"linear{i}": pair for i, pair in enumerate(itertools.pairwise(widths))}
    pairs |= {name: (widths[-1], size) for name, size in heads.items()}
    return {
        name: linear.init(next(keys), n, m, kernel_init="torch", bias_init=initializers.torch_bias(n))
        for name, (n, m) in pairs.items()
    }
