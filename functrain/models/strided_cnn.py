"""Convolutions with strides and no pooling, then linear layers: small and quick."""

import itertools
import math
from typing import Any, Literal

import jax

from functrain.config import ConfigError, Count, Size, configclass
from functrain.layers import activations, conv, linear
from functrain.models.base import fitted


@configclass
class StridedCNN:
    """Convolutions that shrink the image by their strides, each with an activation; then an MLP.

    The defaults are the network on MNIST of Wong, Rice and Kolter 2020: 166,406 parameters for 28 x 28 and 10 classes.

    >>> model = StridedCNN(inputs=(28, 28), outputs=10)
    >>> params, state = jax.eval_shape(model.init, jax.random.key(0))   # or model.init(key): the arrays themselves
    >>> sum(p.size for p in jax.tree.leaves(params))
    166406
    """

    kind: Literal["strided_cnn"] = "strided_cnn"
    channels: tuple[Size, ...] = (16, 32)
    """Maps of each convolution."""
    kernels: tuple[Size, ...] = (4, 4)
    """Side of each convolution's kernel; it is padded by (kernel - 1) // 2 at both ends."""
    strides: tuple[Size, ...] = (2, 2)
    """Stride of each convolution."""
    hidden: tuple[Size, ...] = (100,)
    """Width of each hidden linear layer."""
    activation: activations.Name = "relu"
    """Nonlinearity after each convolution and hidden layer."""
    inputs: tuple[Size, ...] = ()
    """Shape of one image, (height, width) or (height, width, channels); taken from the data."""
    outputs: Count = 0
    """Number of outputs; taken from the data."""

    def __post_init__(self):
        if not len(self.channels) == len(self.kernels) == len(self.strides):
            raise ValueError(
                f"channels, kernels, strides: found {len(self.channels)}, {len(self.kernels)} and "
                f"{len(self.strides)} of them; expected one of each for every convolution"
            )

    def sized(self, inputs: tuple[int, ...], outputs: int) -> "StridedCNN":
        """The model with its ends fitted to the data."""
        if len(inputs) not in (2, 3):
            raise ConfigError(f"model.kind: strided_cnn takes images; the data has examples of {list(inputs)}")
        if min(self._shrunk(inputs)) < 1:
            raise ConfigError(f"model.strides: nothing is left of images of {list(inputs)}; expected smaller ones")
        return fitted(self, inputs, outputs)

    def build(self) -> "StridedCNN":
        """The config is the model."""
        return self

    def _shrunk(self, inputs) -> tuple[int, int]:
        """Height and width after the convolutions."""
        sides = list(inputs[:2])
        for kernel, stride in zip(self.kernels, self.strides):
            sides = [(n + 2 * ((kernel - 1) // 2) - kernel) // stride + 1 for n in sides]
        return sides[0], sides[1]

    def init(self, key: jax.Array) -> tuple[dict[str, Any], dict]:
        """`({"conv0", ..., "linear0", ...}, {})`, each with kernel and bias."""
        keys = iter(jax.random.split(key, len(self.channels) + len(self.hidden) + 1))
        maps = (self.inputs[2] if len(self.inputs) == 3 else 1, *self.channels)
        params = {
            f"conv{i}": conv.init(next(keys), n, m, kernel=kernel, kernel_init="torch")
            for i, ((n, m), kernel) in enumerate(zip(itertools.pairwise(maps), self.kernels))
        }
        sizes = (math.prod(self._shrunk(self.inputs)) * maps[-1], *self.hidden, self.outputs)
        for i, (n, m) in enumerate(itertools.pairwise(sizes)):
            params[f"linear{i}"] = linear.init(next(keys), n, m, kernel_init="torch")
        return params, {}

    def apply(self, params, state, x, *, key=None, train=False):
        """Images [batch, height, width(, channels)] -> (outputs [batch, outputs], state)."""
        x, state = self.features(params, state, x)
        name = f"linear{len(self.hidden)}"
        with jax.named_scope(name):
            return linear.apply(params[name], x), state

    def features(self, params, state, x, *, key=None, train=False):
        """Images -> (what the last layer is given [batch, features], state)."""
        act = activations.by_name(self.activation)
        x = x.reshape(*x.shape[:3], -1)
        for i, (kernel, stride) in enumerate(zip(self.kernels, self.strides)):
            with jax.named_scope(f"conv{i}"):
                x = act(conv.apply(params[f"conv{i}"], x, stride=stride, padding=(kernel - 1) // 2))
        x = x.reshape(x.shape[0], -1)
        for i in range(len(self.hidden)):
            with jax.named_scope(f"linear{i}"):
                x = act(linear.apply(params[f"linear{i}"], x))
        return x, state
