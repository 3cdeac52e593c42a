"""CycleGAN (Zhu, Park, Isola, Efros 2017): a residual generator from images to images, a discriminator of patches."""

import dataclasses
import itertools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from functrain.config import ConfigError, Count, Size, configclass
from functrain.layers import conv, group_norm
from functrain.models.base import fitted

_SLOPE = 0.2
"""Of the discriminator's leaky ReLU below zero."""


@configclass
class CycleGAN:
    """The networks of both directions: images of one domain to the other's, and what tells them from real ones.

    The defaults are the paper's for 256 x 256 colours (section 7.1): 11,378,179 and 2,764,737 parameters, kernels
    normal with deviation 0.02, instance norm without parameters.

    >>> model = CycleGAN(inputs=(256, 256, 3))
    >>> for part in (model.generator, model.discriminator):
    ...     shapes, _ = jax.eval_shape(part.init, jax.random.key(0))
    ...     print(f"{sum(p.size for p in jax.tree.leaves(shapes)):,}")
    11,378,179
    2,764,737
    """

    kind: Literal["cyclegan"] = "cyclegan"
    width: Size = 64
    """Maps of the generator's first layer; four times as many in its residual blocks."""
    blocks: Size = 9
    """Residual blocks of the generator; the paper has 6 for images of 128 x 128."""
    judge_width: Size = 64
    """Maps of the discriminator's first layer; they double up to eight times as many."""
    judge_layers: Size = 3
    """Layers of the discriminator with a stride of 2; 3 make patches of 70 x 70."""
    inputs: tuple[Size, ...] = ()
    """Shape of an image, (height, width) or (height, width, channels), sides divisible by 4; taken from the data."""
    outputs: Count = 0
    """Pixels times channels; taken from the data."""

    def sized(self, inputs: tuple[int, ...], outputs: int) -> "CycleGAN":
        """The model with its ends fitted to the data."""
        if len(inputs) not in (2, 3) or any(n % 4 for n in inputs[:2]):
            raise ConfigError(f"model.kind: cyclegan takes images of sides divisible by 4; the data has {list(inputs)}")
        if min(inputs[:2]) < 2 ** (self.judge_layers + 1):
            raise ConfigError(
                f"model.judge_layers: found {self.judge_layers}; too many for images of {inputs[0]} x {inputs[1]}"
            )
        return fitted(self, inputs, outputs)

    def build(self) -> "CycleGAN":
        """The config is the model."""
        return self

    @property
    def channels(self) -> int:
        """Of an image."""
        return self.inputs[2] if len(self.inputs) == 3 else 1

    @property
    def generator(self) -> "Translator":
        """From the images of one domain to the other's."""
        return Translator(self.channels, self.width, self.blocks)

    @property
    def discriminator(self) -> "PatchJudge":
        """Of patches."""
        return PatchJudge(self.channels, self.judge_width, self.judge_layers)


def _normal(key, shape, dtype=float):
    return 0.02 * jax.random.normal(key, shape, dtype)


def _reflected(x, by):
    return jnp.pad(x, ((0, 0), (by, by), (by, by), (0, 0)), mode="reflect")


def _normed(x):
    return group_norm.instance({}, x)


@dataclasses.dataclass(frozen=True)
class Translator:
    """Images [n, height, width(, channels)] in -1..1 -> images of the same shape (Johnson, Alahi, Fei-Fei 2016)."""

    channels: int
    width: int
    blocks: int

    def init(self, key: jax.Array) -> tuple[dict[str, Any], dict]:
        """`({"in", "down0", "down1", "block0": {"conv0", "conv1"}, ..., "up0", "up1", "out"}, {})`."""
        keys, w = iter(jax.random.split(key, 6 + 2 * self.blocks)), self.width

        def layer(n, m, kernel):
            return conv.init(next(keys), n, m, kernel=kernel, kernel_init=_normal)

        params: dict[str, Any] = {
            "in": layer(self.channels, w, 7),
            "down0": layer(w, 2 * w, 3),
            "down1": layer(2 * w, 4 * w, 3),
        }
        for i in range(self.blocks):
            params[f"block{i}"] = {name: layer(4 * w, 4 * w, 3) for name in ("conv0", "conv1")}
        return params | {
            "up0": layer(4 * w, 2 * w, 3),
            "up1": layer(2 * w, w, 3),
            "out": layer(w, self.channels, 7),
        }, {}

    def apply(self, params, state, x, *, key=None, train=False):
        """See the class."""
        h = x.reshape(*x.shape[:3], -1)
        with jax.named_scope("in"):
            h = jax.nn.relu(_normed(conv.apply(params["in"], _reflected(h, 3), padding="valid")))
        for name in ("down0", "down1"):
            with jax.named_scope(name):
                h = jax.nn.relu(_normed(conv.apply(params[name], h, stride=2, padding=1)))
        for i in range(self.blocks):
            block = params[f"block{i}"]
            with jax.named_scope(f"block{i}"):
                r = jax.nn.relu(_normed(conv.apply(block["conv0"], _reflected(h, 1), padding="valid")))
                h = h + _normed(conv.apply(block["conv1"], _reflected(r, 1), padding="valid"))
        for name in ("up0", "up1"):
            with jax.named_scope(name):
                h = jax.nn.relu(_normed(conv.transpose(params[name], h, stride=2, padding=1, output_padding=1)))
        with jax.named_scope("out"):
            h = conv.apply(params["out"], _reflected(h, 3), padding="valid")
        return jnp.tanh(h).reshape(x.shape), state


@dataclasses.dataclass(frozen=True)
class PatchJudge:
    """Images [n, height, width(, channels)] in -1..1 -> scores [n, rows, columns] of patches (Isola et al. 2017)."""

    channels: int
    width: int
    layers: int

    def _maps(self) -> list[int]:
        return [self.channels, *(self.width * min(2**i, 8) for i in range(self.layers + 1)), 1]

    def init(self, key: jax.Array) -> tuple[dict[str, Any], dict]:
        """`({"conv0", "conv1", ...}, {})`."""
        maps = self._maps()
        keys = jax.random.split(key, len(maps) - 1)
        return {
            f"conv{i}": conv.init(k, n, m, kernel=4, kernel_init=_normal)
            for i, (k, (n, m)) in enumerate(zip(keys, itertools.pairwise(maps)))
        }, {}

    def apply(self, params, state, x, *, key=None, train=False):
        """See the class."""
        h, last = x.reshape(*x.shape[:3], -1), self.layers + 1
        for i in range(last + 1):
            with jax.named_scope(f"conv{i}"):
                h = conv.apply(params[f"conv{i}"], h, stride=2 if i < self.layers else 1, padding=1)
                if 0 < i < last:
                    h = _normed(h)
                if i < last:
                    h = jax.nn.leaky_relu(h, _SLOPE)
        return h[..., 0], state
