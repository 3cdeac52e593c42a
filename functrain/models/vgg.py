"""VGG (Simonyan, Zisserman 2015): stages of 3 x 3 convolutions, each followed by pooling, then linear layers."""

import itertools
from typing import Any, Literal

import jax
from jax.nn import initializers as jax_initializers

from functrain.config import ConfigError, Count, Fraction, Size, configclass
from functrain.layers import batch_norm, conv, dropout, linear, pool
from functrain.models import torch_layout
from functrain.models.base import fitted

_STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Convolutions of each stage: table 1 of the paper, columns A, B, D and E."""
_WIDTHS = (1, 2, 4, 8, 8)


@configclass
class VGG:
    """VGG: five stages of 3 x 3 convolutions with pooling, then linear layers; VGG-16 has 138,357,544 parameters.

    The paper's table 1, and with norm = "batch" torchvision's variant of it. Initial values as torchvision's: kernels
    of convolutions normal with variance 2 / fan-out (He et al. 2015, eq. 14), linear ones normal with deviation 0.01,
    biases zero.

    >>> model = VGG(inputs=(224, 224, 3), outputs=1000)
    >>> params, state = jax.eval_shape(model.init, jax.random.key(0))
    >>> sum(p.size for p in jax.tree.leaves(params))
    138357544
    """

    kind: Literal["vgg"] = "vgg"
    layers: Literal[11, 13, 16, 19] = 16
    """Layers with weights when there are two hidden linear ones."""
    norm: Literal["none", "batch"] = "none"
    """Normalisation between a convolution and its activation."""
    width: Size = 64
    """Maps of the first stage; the others have 2, 4, 8 and 8 times as many."""
    hidden: tuple[Size, ...] = (4096, 4096)
    """Width of each hidden linear layer."""
    dropout: Fraction = 0.5
    """Share of hidden units dropped in training; 0 is off."""
    pooled: Size = 7
    """Side of the map that enters the linear layers, by adaptive averages; 1 fits 32 x 32, which leaves one place."""
    inputs: tuple[Size, ...] = ()
    """Shape of one image, (height, width) or (height, width, channels), 32 x 32 up; taken from the data."""
    outputs: Count = 0
    """Number of classes; taken from the data."""

    def sized(self, inputs: tuple[int, ...], outputs: int) -> "VGG":
        """The model with its ends fitted to the data."""
        if len(inputs) not in (2, 3) or min(inputs[:2]) < 32:
            raise ConfigError(f"model.kind: vgg takes images from 32 x 32 up; the data has {list(inputs)}")
        return fitted(self, inputs, outputs)

    def build(self) -> "VGG":
        """The config is the model."""
        return self

    def init(self, key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
        """`({"conv0", "norm0", ..., "linear0", ...}, {"norm0": {"mean", "var"}, ...})`."""
        stages = _STAGES[self.layers]
        keys = iter(jax.random.split(key, sum(stages) + len(self.hidden) + 1))
        maps = [self.inputs[2] if len(self.inputs) == 3 else 1]
        maps += [self.width * times for count, times in zip(stages, _WIDTHS) for _ in range(count)]
        params, state = {}, {}
        for i, (n, m) in enumerate(itertools.pairwise(maps)):
            fan_out = jax_initializers.variance_scaling(2.0, "fan_out", "normal")
            params[f"conv{i}"] = conv.init(next(keys), n, m, kernel=3, kernel_init=fan_out)
            if self.norm == "batch":
                params[f"norm{i}"], state[f"norm{i}"] = batch_norm.init(None, m)
        sizes = (self.pooled**2 * maps[-1], *self.hidden, self.outputs)
        for i, (n, m) in enumerate(itertools.pairwise(sizes)):
            params[f"linear{i}"] = linear.init(next(keys), n, m, kernel_init=jax_initializers.normal(0.01))
        return params, state

    def apply(self, params, state, x, *, key=None, train=False):
        """Images [batch, height, width(, channels)] -> (logits [batch, outputs], state)."""
        x, new, numbers = x.reshape(*x.shape[:3], -1), {}, itertools.count()
        for count in _STAGES[self.layers]:
            for i in itertools.islice(numbers, count):
                with jax.named_scope(f"conv{i}"):
                    x = conv.apply(params[f"conv{i}"], x, padding=1)
                    if self.norm == "batch":
                        x, new[f"norm{i}"] = batch_norm.apply(params[f"norm{i}"], state[f"norm{i}"], x, train=train)
                    x = jax.nn.relu(x)
            x = pool.max(x, 2)
        with jax.named_scope("linear0"):
            x = pool.adaptive_average(x, self.pooled)
            x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)  # channels first, as torchvision flattens
        for i in range(len(self.hidden)):
            with jax.named_scope(f"linear{i}"):
                x = jax.nn.relu(linear.apply(params[f"linear{i}"], x))
                x = dropout.apply(x, self.dropout, train=train, key=None if key is None else jax.random.fold_in(key, i))
        name = f"linear{len(self.hidden)}"
        with jax.named_scope(name):
            return linear.apply(params[name], x), new

    def torchvision_names(self) -> dict[str, str]:
        """Our path of each array -> its name in torchvision's state dict.

        >>> VGG(inputs=(32, 32, 3), outputs=5, layers=11, norm="batch").torchvision_names()["state/norm1/mean"]
        'features.5.running_mean'
        """
        names, place, numbers = {}, 0, itertools.count()
        for count in _STAGES[self.layers]:
            for i in itertools.islice(numbers, count):
                names |= {f"conv{i}": f"features.{place}", f"norm{i}": f"features.{place + 1}"}
                place += 3 if self.norm == "batch" else 2
            place += 1
        names |= {f"linear{i}": f"classifier.{3 * i}" for i in range(len(self.hidden) + 1)}
        params, state = jax.eval_shape(self.init, jax.random.key(0))
        return torch_layout.names_of(params, state, names.__getitem__)
