"""Network in Network (Lin, Chen, Yan 2014): small perceptrons slide over the image, and no linear layer ends it."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from functrain.config import ConfigError, Count, Fraction, Size, configclass
from functrain.layers import conv, dropout, pool
from functrain.models.base import fitted


@configclass
class NIN:
    """Network in Network for CIFAR-10: three mlpconv blocks, a map for each class, its mean; 966,986 parameters.

    Sizes as in the authors' definition for CIFAR-10, and as there every layer ends in a ReLU (the paper's eq. 2), that
    of the classes too. Theirs starts from normal numbers of deviation 0.05, made for 192 maps; here the variance is
    that of He et al. 2015, eq. 10, which suits any width.

    >>> model = NIN(inputs=(32, 32, 3), outputs=10)
    >>> params, state = jax.eval_shape(model.init, jax.random.key(0))
    >>> sum(p.size for p in jax.tree.leaves(params))
    966986
    """

    kind: Literal["nin"] = "nin"
    width: Size = 192
    """Maps of a layer; the first block ends in 5/6 and 1/2 of it, rounded up (160 and 96)."""
    dropout: Fraction = 0.5
    """Share dropped in training between blocks; 0 is off."""
    inputs: tuple[Size, ...] = ()
    """Shape of one image, (height, width) or (height, width, channels), 4 x 4 up; taken from the data."""
    outputs: Count = 0
    """Number of classes; taken from the data."""

    def sized(self, inputs: tuple[int, ...], outputs: int) -> "NIN":
        """The model with its ends fitted to the data."""
        if len(inputs) not in (2, 3) or min(inputs[:2]) < 4:
            raise ConfigError(f"model.kind: nin takes images from 4 x 4 up; the data has {list(inputs)}")
        return fitted(self, inputs, outputs)

    def build(self) -> "NIN":
        """The config is the model."""
        return self

    def _blocks(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """(kernel, maps) of each layer of each block."""
        width = self.width
        return (
            ((5, width), (1, -(-5 * width // 6)), (1, -(-width // 2))),
            ((5, width), (1, width), (1, width)),
            ((3, width), (1, width), (1, self.outputs)),
        )

    def init(self, key: jax.Array) -> tuple[dict[str, Any], dict]:
        """`({"block0": {"conv0", "conv1", "conv2"}, "block1", "block2"}, {})`, each with kernel and bias."""
        keys = iter(jax.random.split(key, 9))
        params, maps = {}, self.inputs[2] if len(self.inputs) == 3 else 1
        for i, block in enumerate(self._blocks()):
            params[f"block{i}"] = {}
            for j, (kernel, m) in enumerate(block):
                layer = conv.init(next(keys), maps, m, kernel=kernel, kernel_init="he_normal")
                params[f"block{i}"][f"conv{j}"], maps = layer, m
        return params, {}

    def apply(self, params, state, x, *, key=None, train=False):
        """Images [batch, height, width(, channels)] -> (logits [batch, outputs], none below zero; state)."""
        x = x.reshape(*x.shape[:3], -1)
        for i, block in enumerate(self._blocks()):
            with jax.named_scope(f"block{i}"):
                for j, (kernel, _) in enumerate(block):
                    x = jax.nn.relu(conv.apply(params[f"block{i}"][f"conv{j}"], x, padding=kernel // 2))
            if i < 2:
                # Windows start at 0 and the last may reach over the end: ceil((n - 3) / 2) + 1 of them. Zeros, after a
                # ReLU, are never larger.
                x = pool.max(jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0))), 3, stride=2)
                x = dropout.apply(x, self.dropout, train=train, key=None if key is None else jax.random.fold_in(key, i))
        return pool.global_average(x), state
