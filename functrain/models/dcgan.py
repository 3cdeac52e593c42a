"""DCGAN (Radford, Metz, Chintala 2016): a generator of images and a discriminator of them, both convolutional."""

import dataclasses
import itertools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from functrain.config import ConfigError, Count, Size, configclass
from functrain.layers import batch_norm, conv, group_norm, spectral_norm
from functrain.models.base import fitted

_SLOPE = 0.2
"""Of the discriminator's leaky ReLU below zero."""


@configclass
class DCGAN:
    """A generator and a discriminator, mirror images: strides of 2 in place of pooling.

    The defaults are the paper's for 64 x 64 colours, with the widths of the program that everyone starts from:
    3,576,704 and 2,765,568 parameters, every kernel normal with deviation 0.02, the scales of batch norm with the same
    about 1. Sides are 4 to 7 times a power of two: a map of that size is what the generator starts from.

    >>> model = DCGAN(inputs=(64, 64, 3))
    >>> for part in (model.generator, model.discriminator):
    ...     params, state = jax.eval_shape(part.init, jax.random.key(0))   # or part.init(key): the arrays themselves
    ...     print(f"{sum(p.size for p in jax.tree.leaves(params)):,}")
    3,576,704
    2,765,568
    """

    kind: Literal["dcgan"] = "dcgan"
    latent: Size = 100
    """Numbers that an image is made from."""
    width: Size = 64
    """Maps of the layer next to the image, of both; the next has twice as many, and so on."""
    norm: Literal["batch", "instance", "none"] = "batch"
    """Normalisation of the discriminator's inner layers; a gradient penalty wants no batch norm there."""
    spectral: bool = False
    """Whether the discriminator's kernels are divided by their largest singular value."""
    inputs: tuple[Size, ...] = ()
    """Shape of an image, (height, width) or (height, width, channels); taken from the data."""
    outputs: Count = 0
    """Pixels times channels; taken from the data."""

    def sized(self, inputs: tuple[int, ...], outputs: int) -> "DCGAN":
        """The model with its ends fitted to the data."""
        if len(inputs) not in (2, 3) or inputs[0] != inputs[1] or inputs[0] < 8 or _start(inputs[0]) > 7:
            raise ConfigError(
                "model.kind: dcgan makes square images with sides of 4, 5, 6 or 7 times a power of two from 2 up; the "
                f"data has {list(inputs)}"
            )
        return fitted(self, inputs, outputs)

    def build(self) -> "DCGAN":
        """The config is the model."""
        return self

    @property
    def generator(self) -> "Generator":
        """Of images."""
        return Generator(self.latent, self.width, self.inputs)

    @property
    def discriminator(self) -> "Discriminator":
        """Of images."""
        return Discriminator(self.width, self.norm, self.spectral, self.inputs)


def _start(side: int) -> int:
    """The side of the smallest map: halved while it is even and at least 8."""
    while side % 2 == 0 and side >= 8:
        side //= 2
    return side


def _maps(width: int, side: int) -> list[int]:
    """Maps of each layer, from next to the image on."""
    return [width * 2**i for i in range((side // _start(side)).bit_length() - 1)]


def _normal(key, shape, dtype=float):
    return 0.02 * jax.random.normal(key, shape, dtype)


def _norm(key, features):
    params, state = batch_norm.init(None, features)
    return params | {"scale": 1 + _normal(key, (features,))}, state


@dataclasses.dataclass(frozen=True)
class Generator:
    """Vectors [n, latent] -> images [n, height, width(, channels)] in -1..1."""

    latent: int
    width: int
    inputs: tuple[int, ...]

    def init(self, key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
        """`({"conv0", "norm0", ..., the last conv without a norm}, {"norm0", ...})`, from the vector on."""
        side, channels = self.inputs[0], self.inputs[2] if len(self.inputs) == 3 else 1
        maps = [self.latent, *reversed(_maps(self.width, side)), channels]
        keys = jax.random.split(key, (len(maps), 2))
        params, state = {}, {}
        for i, (n, m) in enumerate(itertools.pairwise(maps)):
            kernel = 4 if i else _start(side)
            params[f"conv{i}"] = conv.init(keys[i, 0], n, m, kernel=kernel, bias=False, kernel_init=_normal)
            if i + 2 < len(maps):
                params[f"norm{i}"], state[f"norm{i}"] = _norm(keys[i, 1], m)
        return params, state

    def apply(self, params, state, z, *, key=None, train=False):
        """See the class."""
        h, new = z[:, None, None, :], {}
        for i in range(len(state) + 1):
            with jax.named_scope(f"conv{i}"):
                h = conv.transpose(params[f"conv{i}"], h, stride=2 if i else 1, padding=1 if i else 0)
                if (norm := f"norm{i}") in state:
                    h, new[norm] = batch_norm.apply(params[norm], state[norm], h, train=train)
                    h = jax.nn.relu(h)
        return jnp.tanh(h).reshape(len(z), *self.inputs), new


@dataclasses.dataclass(frozen=True)
class Discriminator:
    """Images [n, height, width(, channels)] in -1..1 -> scores [n], high for what looks real."""

    width: int
    norm: str
    spectral: bool
    inputs: tuple[int, ...]

    def init(self, key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
        """`({"conv0", "conv1", "norm1", ..., the last conv without a norm}, {"norm1", ..., "spectral0", ...})`."""
        side, channels = self.inputs[0], self.inputs[2] if len(self.inputs) == 3 else 1
        maps = [channels, *_maps(self.width, side), 1]
        keys = jax.random.split(key, (len(maps), 3))
        params, state = {}, {}
        for i, (n, m) in enumerate(itertools.pairwise(maps)):
            kernel = 4 if i + 2 < len(maps) else _start(side)
            params[f"conv{i}"] = conv.init(keys[i, 0], n, m, kernel=kernel, bias=False, kernel_init=_normal)
            if 0 < i < len(maps) - 2 and self.norm != "none":
                params[f"norm{i}"], statistics = _norm(keys[i, 1], m)
                if self.norm == "batch":
                    state[f"norm{i}"] = statistics
            if self.spectral:
                state[f"spectral{i}"] = spectral_norm.init(keys[i, 2], params[f"conv{i}"]["kernel"])
        return params, state

    def apply(self, params, state, x, *, key=None, train=False):
        """See the class."""
        h, new = x.reshape(*x.shape[:3], -1), {}
        last = len(_maps(self.width, self.inputs[0]))
        for i in range(last + 1):
            layer, spectral = params[f"conv{i}"], f"spectral{i}"
            with jax.named_scope(f"conv{i}"):
                if self.spectral:
                    kernel, new[spectral] = spectral_norm.apply(layer["kernel"], state[spectral], train=train)
                    layer = {"kernel": kernel}
                h = conv.apply(layer, h, stride=2 if i < last else 1, padding=1 if i < last else "valid")
                if (norm := f"norm{i}") in state:
                    h, new[norm] = batch_norm.apply(params[norm], state[norm], h, train=train)
                elif norm in params:
                    h = group_norm.instance(params[norm], h)
                if i < last:
                    h = jax.nn.leaky_relu(h, _SLOPE)
        return h.reshape(len(x)), new
