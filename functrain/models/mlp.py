"""The multi-layer perceptron: linear layers with an activation between them."""

import itertools
import math
from typing import Any, Literal

import jax

from functrain.config import Count, Fraction, Size, configclass
from functrain.layers import activations, dropout, initializers, layer_norm, linear
from functrain.models.base import fitted


@configclass
class MLP:
    """Multi-layer perceptron: linear layers, each but the last followed by [norm,] activation and dropout.

    >>> model = MLP(inputs=(8, 8), outputs=10, hidden=(32,))
    >>> params, state = model.init(jax.random.key(0))
    >>> logits, state = model.apply(params, state, jax.numpy.zeros((5, 8, 8)))
    >>> logits.shape
    (5, 10)
    """

    kind: Literal["mlp"] = "mlp"
    hidden: tuple[Size, ...] = (128,)
    """Width of each hidden layer; empty makes the model linear."""
    activation: activations.Name = "relu"
    """Nonlinearity after each hidden layer."""
    norm: Literal["none", "layer"] = "none"
    """Normalisation between a hidden layer and its activation."""
    dropout: Fraction = 0.0
    """Share of hidden units dropped in training; 0 is off."""
    kernel_init: initializers.Name = "lecun_normal"
    """How the weights start."""
    bias_init: initializers.Name = "zeros"
    """How the biases start."""
    inputs: tuple[Size, ...] = ()
    """Shape of one example, flattened by the model; taken from the data."""
    outputs: Count = 0
    """Number of outputs; taken from the data (the classes, or the targets' width)."""

    def sized(self, inputs: tuple[int, ...], outputs: int) -> "MLP":
        """The model with its ends fitted to the data."""
        return fitted(self, inputs, outputs)

    def build(self) -> "MLP":
        """The config is the model."""
        return self

    def init(self, key: jax.Array) -> tuple[dict[str, Any], dict]:
        """`({"layer0": {"kernel", "bias"}, "norm0": {"scale", "bias"}, ...}, {})`."""
        sizes = (math.prod(self.inputs), *self.hidden, self.outputs)
        params = {}
        for i, (n, m) in enumerate(itertools.pairwise(sizes)):
            params[f"layer{i}"] = linear.init(
                jax.random.fold_in(key, i), n, m, kernel_init=self.kernel_init, bias_init=self.bias_init
            )
            if self.norm == "layer" and i < len(self.hidden):
                params[f"norm{i}"] = layer_norm.init(None, m)
        return params, {}

    def apply(self, params, state, x, *, key=None, train=False):
        """x [batch, *inputs] -> ([batch, outputs], state)."""
        x, state = self.features(params, state, x, key=key, train=train)
        name = f"layer{len(self.hidden)}"
        with jax.named_scope(name):
            return linear.apply(params[name], x), state

    def features(self, params, state, x, *, key=None, train=False):
        """x -> (what the last layer is given [batch, features], state)."""
        x = x.reshape(x.shape[0], -1)
        for i in range(len(self.hidden)):
            with jax.named_scope(f"layer{i}"):
                x = linear.apply(params[f"layer{i}"], x)
                if self.norm == "layer":
                    x = layer_norm.apply(params[f"norm{i}"], x)
                x = activations.by_name(self.activation)(x)
                x = dropout.apply(x, self.dropout, train=train, key=None if key is None else jax.random.fold_in(key, i))
        return x, state
