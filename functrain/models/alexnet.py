"""AlexNet (Krizhevsky, Sutskever, Hinton 2012) in the form without groups of Krizhevsky 2014, which torchvision has."""

import itertools
import math
from typing import Any, Literal

import jax

from functrain.config import ConfigError, Count, Fraction, Size, configclass
from functrain.layers import conv, dropout, initializers, linear, pool
from functrain.models import torch_layout
from functrain.models.base import fitted

_KERNELS = (5, 3, 3, 3)
_SMALLEST = {"imagenet": 63, "small": 15}
"""Images for which the three poolings, 3 x 3 with stride 2, have something left to pool."""


@configclass
class AlexNet:
    """AlexNet: five convolutions, three with pooling, then linear layers; 61,100,840 parameters for 1000 classes.

    The form of Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks", section 5: one
    tower, and no normalisation of the responses. Initial values are uniform in +-1/sqrt(fan-in), biases too, as
    torchvision's are.

    >>> model = AlexNet(inputs=(224, 224, 3), outputs=1000)
    >>> params, state = jax.eval_shape(model.init, jax.random.key(0))
    >>> sum(p.size for p in jax.tree.leaves(params))
    61100840
    """

    kind: Literal["alexnet"] = "alexnet"
    channels: tuple[Size, Size, Size, Size, Size] = (64, 192, 384, 256, 256)
    """Maps of each convolution."""
    hidden: tuple[Size, ...] = (4096, 4096)
    """Width of each hidden linear layer."""
    dropout: Fraction = 0.5
    """Share dropped in training of what enters each hidden linear layer; 0 is off."""
    stem: Literal["imagenet", "small"] = "imagenet"
    """The first convolution: 11 x 11 with stride 4, or 3 x 3 with stride 1 for images such as CIFAR's."""
    pooled: Size = 6
    """Side of the map that enters the linear layers, by adaptive averages; with the small stem at most."""
    inputs: tuple[Size, ...] = ()
    """Shape of one image, (height, width) or (height, width, channels), 63 x 63 up, with the small stem 15 x 15 up;
    taken from the data."""
    outputs: Count = 0
    """Number of classes; taken from the data."""

    def sized(self, inputs: tuple[int, ...], outputs: int) -> "AlexNet":
        """The model with its ends fitted to the data."""
        smallest = _SMALLEST[self.stem]
        if len(inputs) not in (2, 3) or min(inputs[:2]) < smallest:
            small = "" if self.stem == "small" else '; model.stem = "small" takes smaller ones'
            raise ConfigError(
                f"model.kind: alexnet takes images from {smallest} x {smallest} up; the data has {list(inputs)}{small}"
            )
        return fitted(self, inputs, outputs)

    def build(self) -> "AlexNet":
        """The config is the model."""
        return self

    def _pooled(self) -> tuple[int, int]:
        """Height and width of the map that enters the linear layers."""
        if self.stem == "imagenet":
            return self.pooled, self.pooled
        height, width = self.inputs[:2]
        for _ in range(3):
            height, width = (height - 1) // 2, (width - 1) // 2
        return min(height, self.pooled), min(width, self.pooled)

    def init(self, key: jax.Array) -> tuple[dict[str, Any], dict]:
        """`({"conv0", ..., "conv4", "linear0", ...}, {})`, each with kernel and bias."""
        keys = iter(jax.random.split(key, len(self.channels) + len(self.hidden) + 1))
        maps = (self.inputs[2] if len(self.inputs) == 3 else 1, *self.channels)
        params = {}
        for i, (n, m) in enumerate(itertools.pairwise(maps)):
            kernel = (11 if self.stem == "imagenet" else 3, *_KERNELS)[i]
            params[f"conv{i}"] = conv.init(
                next(keys), n, m, kernel=kernel, kernel_init="torch", bias_init=initializers.torch_bias(n * kernel**2)
            )
        sizes = (math.prod(self._pooled()) * maps[-1], *self.hidden, self.outputs)
        for i, (n, m) in enumerate(itertools.pairwise(sizes)):
            params[f"linear{i}"] = linear.init(
                next(keys), n, m, kernel_init="torch", bias_init=initializers.torch_bias(n)
            )
        return params, {}

    def apply(self, params, state, x, *, key=None, train=False):
        """Images [batch, height, width(, channels)] -> (logits [batch, outputs], state)."""
        x = x.reshape(*x.shape[:3], -1)
        for i in range(len(self.channels)):
            first = i == 0 and self.stem == "imagenet"
            stride, padding = (4, 2) if first else (1, params[f"conv{i}"]["kernel"].shape[0] // 2)
            with jax.named_scope(f"conv{i}"):
                x = jax.nn.relu(conv.apply(params[f"conv{i}"], x, stride=stride, padding=padding))
                if i in (0, 1, 4):
                    x = pool.max(x, 3, stride=2)
        with jax.named_scope("linear0"):
            x = pool.adaptive_average(x, self._pooled())
            x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)  # channels first, as torchvision flattens
        for i in range(len(self.hidden)):
            with jax.named_scope(f"linear{i}"):
                x = dropout.apply(x, self.dropout, train=train, key=None if key is None else jax.random.fold_in(key, i))
                x = jax.nn.relu(linear.apply(params[f"linear{i}"], x))
        name = f"linear{len(self.hidden)}"
        with jax.named_scope(name):
            return linear.apply(params[name], x), state

    def torchvision_names(self) -> dict[str, str]:
        """Our path of each array -> its name in torchvision's state dict.

        >>> AlexNet(inputs=(63, 63, 3), outputs=5).torchvision_names()["params/linear2/kernel"]
        'classifier.6.weight'
        """
        places = (0, 3, 6, 8, 10)
        names = {f"conv{i}": f"features.{place}" for i, place in enumerate(places)}
        names |= {f"linear{i}": f"classifier.{3 * i + 1}" for i in range(len(self.hidden))}
        # A dropout stands before each hidden layer, none before the last.
        names[f"linear{len(self.hidden)}"] = f"classifier.{3 * len(self.hidden)}"
        params, state = jax.eval_shape(self.init, jax.random.key(0))
        return torch_layout.names_of(params, state, names.__getitem__)
