"""Residual networks (He, Zhang, Ren, Sun 2016): ResNet for large images, and the thin ones for CIFAR."""

import itertools
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.nn import initializers as jax_initializers

from functrain.config import ConfigError, Count, Size, configclass
from functrain.layers import batch_norm, conv, initializers, linear, pool
from functrain.models import torch_layout
from functrain.models.base import fitted

_STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Blocks of each stage: table 1 of the paper."""


@configclass
class ResNet:
    """ResNet: four stages of residual blocks; basic ones in ResNet-18 and 34, bottlenecks in 50, 101 and 152.

    The paper's table 1 with projections where the shape changes (option B). A bottleneck that halves the image does it
    in its 3 x 3 convolution, as torchvision's does, not in its first. Initial values as torchvision's: kernels normal
    with variance 2 / fan-out (He et al. 2015, eq. 14), the last layer uniform in +-1/sqrt(fan-in).

    >>> model = ResNet(inputs=(224, 224, 3), outputs=1000, layers=50)
    >>> params, state = jax.eval_shape(model.init, jax.random.key(0))
    >>> sum(p.size for p in jax.tree.leaves(params))
    25557032
    """

    kind: Literal["resnet"] = "resnet"
    layers: Literal[18, 34, 50, 101, 152] = 50
    """Layers with weights, projections not counted."""
    width: Size = 64
    """Maps of the first stage's 3 x 3 convolutions; each later stage has twice those of the one before."""
    stem: Literal["imagenet", "small"] = "imagenet"
    """The beginning: 7 x 7 with stride 2 and pooling, or 3 x 3 with neither for images such as CIFAR's."""
    zero_init: bool = False
    """Whether each block starts as the identity, its last scale zero (Goyal et al. 2017, section 5.1)."""
    inputs: tuple[Size, ...] = ()
    """Shape of one image, (height, width) or (height, width, channels), 17 x 17 up, with the small stem 5 x 5 up; taken
    from the data."""
    outputs: Count = 0
    """Number of classes; taken from the data."""

    def sized(self, inputs: tuple[int, ...], outputs: int) -> "ResNet":
        """The model with its ends fitted to the data."""
        # Smaller ones would be a single place before their last halving.
        smallest = 17 if self.stem == "imagenet" else 5
        if len(inputs) not in (2, 3) or min(inputs[:2]) < smallest:
            small = "" if self.stem == "small" else '; model.stem = "small" takes smaller ones'
            raise ConfigError(
                f"model.kind: resnet takes images from {smallest} x {smallest} up; the data has {list(inputs)}{small}"
            )
        return fitted(self, inputs, outputs)

    def build(self) -> "ResNet":
        """The config is the model."""
        return self

    def _blocks(self) -> Iterator[tuple[str, str, list[tuple[int, int, int, int]]]]:
        """(stage, block, (kernel, inputs, outputs, stride) of each of its convolutions), from first to last."""
        n = self.width
        for stage, count in enumerate(_STAGES[self.layers]):
            m = self.width * 2**stage
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                if self.layers < 50:
                    branch = [(3, n, m, stride), (3, m, m, 1)]
                else:
                    branch = [(1, n, m, 1), (3, m, m, stride), (1, m, 4 * m, 1)]
                yield f"stage{stage + 1}", f"block{block}", branch
                n = branch[-1][2]

    def init(self, key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
        """`({"conv1", "norm1", "stage1": {"block0": {"conv1", "norm1", ..., "shortcut"}, ...}, ..., "linear"}, state)`.

        The state has "mean" and "var" at the paths of the norms.
        """
        keys = (jax.random.fold_in(key, i) for i in itertools.count())
        initial = jax_initializers.variance_scaling(2.0, "fan_out", "normal")
        kernel, channels = 7 if self.stem == "imagenet" else 3, self.inputs[2] if len(self.inputs) == 3 else 1
        params, state = _init(keys, {"1": (kernel, channels, self.width)}, initial)
        features = 0
        for stage, block, branch in self._blocks():
            inputs, features, stride = branch[0][1], branch[-1][2], max(layer[3] for layer in branch)
            made, statistics = _init(keys, {str(i): layer[:3] for i, layer in enumerate(branch, 1)}, initial)
            if self.zero_init:
                last = made[f"norm{len(branch)}"]
                last["scale"] = jnp.zeros_like(last["scale"])
            if stride > 1 or inputs != features:
                made["shortcut"], statistics["shortcut"] = _init(keys, {"": (1, inputs, features)}, initial)
            params.setdefault(stage, {})[block], state.setdefault(stage, {})[block] = made, statistics
        params["linear"] = linear.init(
            next(keys), features, self.outputs, kernel_init="torch", bias_init=initializers.torch_bias(features)
        )
        return params, state

    def apply(self, params, state, x, *, key=None, train=False):
        """Images [batch, height, width(, channels)] -> (logits [batch, outputs], state)."""
        x, new = x.reshape(*x.shape[:3], -1), {}
        with jax.named_scope("conv1"):
            x, new["norm1"] = _normed(params, state, "1", x, 2 if self.stem == "imagenet" else 1, train)
            x = jax.nn.relu(x)
        if self.stem == "imagenet":
            x = pool.max(x, 3, stride=2, padding=1)
        for stage, block, branch in self._blocks():
            p, s, strides = params[stage][block], state[stage][block], [layer[3] for layer in branch]
            with jax.named_scope(stage), jax.named_scope(block):
                h, statistics = _branch(p, s, x, strides, train)
                if "shortcut" in p:
                    x, moved = _normed(p["shortcut"], s["shortcut"], "", x, max(strides), train)
                    statistics["shortcut"] = {"norm": moved}
                x = jax.nn.relu(x + h)
            new.setdefault(stage, {})[block] = statistics
        with jax.named_scope("linear"):
            return linear.apply(params["linear"], pool.global_average(x)), new

    def torchvision_names(self) -> dict[str, str]:
        """Our path of each array -> its name in torchvision's state dict.

        >>> ResNet(inputs=(32, 32, 3), outputs=5).torchvision_names()["state/stage1/block0/shortcut/norm/var"]
        'layer1.0.downsample.1.running_var'
        """

        def module(path):
            path = path.replace("shortcut/conv", "downsample.0").replace("shortcut/norm", "downsample.1")
            for ours, theirs in (("stage", "layer"), ("block", ""), ("norm", "bn"), ("linear", "fc"), ("/", ".")):
                path = path.replace(ours, theirs)
            return path

        params, state = jax.eval_shape(self.init, jax.random.key(0))
        return torch_layout.names_of(params, state, module)


@configclass
class CIFARResNet:
    """The thin ResNet for CIFAR of He et al. 2016, section 4.2: three stages of basic blocks, 6 n + 2 layers.

    Where the shape changes, the shortcut takes every second place and fills up the maps with zeros (option A), so it
    has no parameters. 20 layers have 269,722. Initial values as in He et al. 2015, eq. 10, the last layer's too.

    >>> model = CIFARResNet(inputs=(32, 32, 3), outputs=10)
    >>> params, state = jax.eval_shape(model.init, jax.random.key(0))
    >>> sum(p.size for p in jax.tree.leaves(params))
    269722
    """

    kind: Literal["cifar_resnet"] = "cifar_resnet"
    layers: Size = 20
    """Layers with weights, 6 n + 2 with n from 1; the paper has 20, 32, 44, 56 and 110."""
    width: Size = 16
    """Maps of the first stage; the others have 2 and 4 times as many."""
    inputs: tuple[Size, ...] = ()
    """Shape of one image, (height, width) or (height, width, channels), 3 x 3 up; taken from the data."""
    outputs: Count = 0
    """Number of classes; taken from the data."""

    def sized(self, inputs: tuple[int, ...], outputs: int) -> "CIFARResNet":
        """The model with its ends fitted to the data."""
        if len(inputs) not in (2, 3) or min(inputs[:2]) < 3:
            raise ConfigError(f"model.kind: cifar_resnet takes images from 3 x 3 up; the data has {list(inputs)}")
        return fitted(self, inputs, outputs)

    def build(self) -> "CIFARResNet":
        """The config is the model."""
        if self.layers < 8 or self.layers % 6 != 2:
            raise ConfigError(f"model.layers: found {self.layers}; expected 6 n + 2, such as 20, 32, 44, 56 or 110")
        return self

    def _blocks(self) -> Iterator[tuple[str, str, int, int, int]]:
        """(stage, block, inputs, outputs, stride) of each block."""
        n = self.width
        for stage in range(3):
            for block in range((self.layers - 2) // 6):
                m = self.width * 2**stage
                yield f"stage{stage + 1}", f"block{block}", n, m, 1 if n == m else 2
                n = m

    def init(self, key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
        """`({"conv1", "norm1", "stage1": {"block0": {"conv1", ..., "norm2"}, ...}, ..., "linear"}, state)`.

        The state has "mean" and "var" at the paths of the norms.
        """
        keys = (jax.random.fold_in(key, i) for i in itertools.count())
        channels = self.inputs[2] if len(self.inputs) == 3 else 1
        params, state = _init(keys, {"1": (3, channels, self.width)}, "he_normal")
        for stage, block, n, m, _ in self._blocks():
            made, statistics = _init(keys, {"1": (3, n, m), "2": (3, m, m)}, "he_normal")
            params.setdefault(stage, {})[block], state.setdefault(stage, {})[block] = made, statistics
        params["linear"] = linear.init(next(keys), 4 * self.width, self.outputs, kernel_init="he_normal")
        return params, state

    def apply(self, params, state, x, *, key=None, train=False):
        """Images [batch, height, width(, channels)] -> (logits [batch, outputs], state)."""
        x, new = x.reshape(*x.shape[:3], -1), {}
        with jax.named_scope("conv1"):
            x, new["norm1"] = _normed(params, state, "1", x, 1, train)
            x = jax.nn.relu(x)
        for stage, block, n, m, stride in self._blocks():
            with jax.named_scope(stage), jax.named_scope(block):
                h, statistics = _branch(params[stage][block], state[stage][block], x, (stride, 1), train)
                x = jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (0, m - n)))
                x = jax.nn.relu(x + h)
            new.setdefault(stage, {})[block] = statistics
        with jax.named_scope("linear"):
            return linear.apply(params["linear"], pool.global_average(x)), new


def _init(keys, layers, kernel_init):
    """(params, state) of convolutions (kernel, inputs, outputs) without bias, each with its norm: conv1, norm1 ..."""
    params, state = {}, {}
    for i, (kernel, n, m) in layers.items():
        params[f"conv{i}"] = conv.init(next(keys), n, m, kernel=kernel, bias=False, kernel_init=kernel_init)
        params[f"norm{i}"], state[f"norm{i}"] = batch_norm.init(None, m)
    return params, state


def _normed(params, state, i, x, stride, train):
    """Convolution i and its norm, and the norm's new state."""
    layer = params[f"conv{i}"]
    x = conv.apply(layer, x, stride=stride, padding=layer["kernel"].shape[0] // 2)
    return batch_norm.apply(params[f"norm{i}"], state[f"norm{i}"], x, train=train)


def _branch(params, state, x, strides, train):
    """The convolutions of a block with their norms, a ReLU between each two; and the norms' new state."""
    new = {}
    for i, stride in enumerate(strides, 1):
        x = jax.nn.relu(x) if i > 1 else x
        x, new[f"norm{i}"] = _normed(params, state, str(i), x, stride, train)
    return x, new
