"""A plain convolutional network: stages of 3 x 3 convolution and pooling, then linear layers."""

import itertools
import math
from typing import Any, Literal

import jax

from functrain.config import ConfigError, Count, Fraction, Size, configclass
from functrain.layers import activations, batch_norm, conv, dropout, linear, pool
from functrain.models.base import fitted


@configclass
class CNN:
    """Small convolutional network: per stage a 3 x 3 convolution, [norm,] activation and 2 x 2 pooling; then an MLP.

    >>> model = CNN(inputs=(8, 8), outputs=10, channels=(4, 8), hidden=(16,), norm="batch")
    >>> params, state = model.init(jax.random.key(0))
    >>> logits, state = model.apply(params, state, jax.numpy.zeros((5, 8, 8)), train=True)
    >>> logits.shape, sorted(state)
    ((5, 10), ['norm0', 'norm1'])
    """

    kind: Literal["cnn"] = "cnn"
    channels: tuple[Size, ...] = (16, 32)
    """Maps of each stage."""
    hidden: tuple[Size, ...] = (64,)
    """Width of each hidden linear layer."""
    activation: activations.Name = "relu"
    """Nonlinearity after each convolution and hidden layer."""
    norm: Literal["none", "batch"] = "none"
    """Normalisation between a convolution and its activation."""
    dropout: Fraction = 0.0
    """Share of hidden units dropped in training; 0 is off."""
    inputs: tuple[Size, ...] = ()
    """Shape of one image, (height, width) or (height, width, channels); taken from the data."""
    outputs: Count = 0
    """Number of outputs; taken from the data."""

    def sized(self, inputs: tuple[int, ...], outputs: int) -> "CNN":
        """The model with its ends fitted to the data."""
        smallest = 2 ** len(self.channels)
        if len(inputs) not in (2, 3) or min(inputs[:2]) < smallest:
            raise ConfigError(
                f"model.kind: cnn with {len(self.channels)} stages takes images from {smallest} x {smallest} up; "
                f"the data has examples of {list(inputs)}"
            )
        return fitted(self, inputs, outputs)

    def build(self) -> "CNN":
        """The config is the model."""
        return self

    def init(self, key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
        """`({"conv0", "norm0", ..., "linear0", ...}, {"norm0": {"mean", "var"}, ...})`."""
        keys = iter(jax.random.split(key, len(self.channels) + len(self.hidden) + 1))
        maps = (self.inputs[2] if len(self.inputs) == 3 else 1, *self.channels)
        params, state = {}, {}
        for i, (n, m) in enumerate(itertools.pairwise(maps)):
            params[f"conv{i}"] = conv.init(next(keys), n, m, kernel=3, kernel_init="he_normal")
            if self.norm == "batch":
                params[f"norm{i}"], state[f"norm{i}"] = batch_norm.init(None, m)
        shrunk = 2 ** len(self.channels)
        sizes = (math.prod(n // shrunk for n in self.inputs[:2]) * maps[-1], *self.hidden, self.outputs)
        for i, (n, m) in enumerate(itertools.pairwise(sizes)):
            params[f"linear{i}"] = linear.init(next(keys), n, m, kernel_init="he_normal")
        return params, state

    def apply(self, params, state, x, *, key=None, train=False):
        """Images [batch, height, width(, channels)] -> (outputs [batch, outputs], state)."""
        x, state = self.features(params, state, x, key=key, train=train)
        name = f"linear{len(self.hidden)}"
        with jax.named_scope(name):
            return linear.apply(params[name], x), state

    def features(self, params, state, x, *, key=None, train=False):
        """Images -> (what the last layer is given [batch, features], state)."""
        act = activations.by_name(self.activation)
        x, new = x.reshape(*x.shape[:3], -1), {}
        for i in range(len(self.channels)):
            with jax.named_scope(f"conv{i}"):
                x = conv.apply(params[f"conv{i}"], x)
                if self.norm == "batch":
                    x, new[f"norm{i}"] = batch_norm.apply(params[f"norm{i}"], state[f"norm{i}"], x, train=train)
                x = pool.max(act(x), 2)
        x = x.reshape(x.shape[0], -1)
        for i in range(len(self.hidden)):
            with jax.named_scope(f"linear{i}"):
                x = act(linear.apply(params[f"linear{i}"], x))
                x = dropout.apply(x, self.dropout, train=train, key=None if key is None else jax.random.fold_in(key, i))
        return x, new
