"""FCOS: fully convolutional one-stage detection (Tian, Shen, Chen, He 2019 and 2020), without anchors.

Every place of a feature pyramid says, for the point of the image at its centre, which class the object there has, how
far the four sides of its box are, and how good that box is.
"""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from functrain import tree
from functrain.config import ConfigError, Count, Positive, Size, configclass
from functrain.layers import batch_norm, conv, group_norm
from functrain.models.base import fitted


class Points(NamedTuple):
    """Where a detector looks, float32 in pixels, one row a place, level after level and row after row.

    centres: [points, 2], x and y.
    strides: [points], the distance to the next place of the same level.
    ranges: [points, 2], the least and the largest distance, to the farthest side of a box, that the level answers for.
    """

    centres: np.ndarray
    strides: np.ndarray
    ranges: np.ndarray


@configclass
class FCOS:
    """Detector without anchors: a residual network, a feature pyramid (Lin et al. 2017), heads shared by its levels.

    Stage i of the backbone has stride 4 * 2^i and width * 2^i channels. A pyramid level of a stride that a stage has is
    that stage's 1 x 1 convolution plus the next coarser level, doubled by its nearest neighbours, and a 3 x 3
    convolution; a coarser one is a 3 x 3 convolution of stride 2 of the level before.

    >>> model = FCOS(inputs=(32, 48, 3), outputs=5, width=8, features=8, depths=(1, 1), strides=(4, 8), groups=4)
    >>> params, state = jax.eval_shape(model.init, jax.random.key(0))
    >>> outputs, _ = jax.eval_shape(model.apply, params, state, jnp.zeros((2, 32, 48, 3)))
    >>> {name: output.shape for name, output in outputs.items()}
    {'classes': (2, 120, 5), 'distances': (2, 120, 4), 'quality': (2, 120)}
    >>> model.points.centres[:2].tolist(), model.points.ranges[0].tolist(), model.points.ranges[-1].tolist()
    ([[2.0, 2.0], [6.0, 2.0]], [0.0, 32.0], [32.0, inf])
    """

    kind: Literal["fcos"] = "fcos"
    width: Size = 32
    """Channels of the stem and the first stage; each stage has twice those of the one before."""
    depths: tuple[Size, ...] = (1, 1, 1)
    """Residual blocks of each stage; the strides of the stages are 4, 8, 16, ..."""
    features: Size = 64
    """Channels of the pyramid and the heads."""
    strides: tuple[Size, ...] = (8, 16)
    """Strides of the pyramid's levels: the first is that of a stage, each of the others twice the last."""
    bounds: tuple[Size, ...] = ()
    """The largest distance from a point to a side that each level but the last is for; empty is 8 strides each."""
    convolutions: Size = 2
    """3 x 3 convolutions of each of the two heads before its output (the paper: 4)."""
    norm: Literal["group", "batch"] = "group"
    """Normalisation in the backbone; the heads have group norm, for one statistic of all levels would fit none."""
    groups: Size = 8
    """Groups of a group norm; they divide `width` and `features`."""
    prior: Positive = 0.01
    """The probability of every class that the first weights give (Lin et al. 2017, focal loss, section 4.1)."""
    inputs: tuple[Size, ...] = ()
    """Shape of one image, (height, width) or (height, width, channels); taken from the data."""
    outputs: Count = 0
    """Number of classes; taken from the data."""

    def __post_init__(self):
        if not self.depths or not self.strides:
            raise ValueError("depths and strides: found none; expected one or more of each")
        stages = [4 * 2**i for i in range(len(self.depths))]
        doubled = [self.strides[0] * 2**i for i in range(len(self.strides))]
        if doubled[0] not in stages or doubled[-1] < stages[-1] or list(self.strides) != doubled:
            raise ValueError(
                f"strides: found {list(self.strides)}; expected a first of {stages}, the strides of the {len(stages)} "
                f"stages, and from there on each twice the last, to {stages[-1]} or beyond"
            )
        few = len(self.strides) - 1
        if self.bounds and (len(self.bounds) != few or list(self.bounds) != sorted(set(self.bounds))):
            raise ValueError(
                f"bounds: found {list(self.bounds)}; expected {few} that rise, one for each stride but the last"
            )
        for name in ("width", "features"):
            if getattr(self, name) % self.groups:
                raise ValueError(f"groups: found {self.groups}; it does not divide {name} = {getattr(self, name)}")

    def sized(self, inputs: tuple[int, ...], outputs: int) -> "FCOS":
        """The model with its ends fitted to the data."""
        if len(inputs) not in (2, 3) or min(inputs[:2]) < self.strides[0]:
            raise ConfigError(
                f"model.kind: fcos of strides {list(self.strides)} takes images from {self.strides[0]} x "
                f"{self.strides[0]} up; the data has examples of {list(inputs)}"
            )
        return fitted(self, inputs, outputs)

    def build(self) -> "FCOS":
        """The config is the model."""
        return self

    @property
    def points(self) -> Points:
        """The places of all levels for images of the shape `inputs`."""
        bounds = self.bounds or tuple(8 * stride for stride in self.strides[:-1])
        centres, strides, ranges = [], [], []
        for stride, low, high in zip(self.strides, (0, *bounds), (*bounds, math.inf), strict=True):
            height, width = (-(-n // stride) for n in self.inputs[:2])
            y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
            centres.append((np.stack([x.ravel(), y.ravel()], 1) + 0.5) * stride)
            strides.append(np.full(height * width, stride))
            ranges.append(np.tile([float(low), float(high)], (height * width, 1)))
        return Points(*(np.concatenate(part).astype(np.float32) for part in (centres, strides, ranges)))

    @property
    def _first(self) -> int:
        """The stage from which the finest level is made."""
        return self.strides[0].bit_length() - 3

    def _blocks(self):
        """(name, input channels, output channels, stride) of every residual block."""
        before = self.width
        for i, depth in enumerate(self.depths):
            for j in range(depth):
                yield f"stage{i}_block{j}", before, self.width * 2**i, 2 if j == 0 else 1
                before = self.width * 2**i

    def init(self, key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
        """`({"backbone", "pyramid", "heads"}, statistics of the backbone's batch norms by name)`."""
        keys = (jax.random.fold_in(key, i) for i in range(2**31))
        backbone, state = {}, {}

        def unit(name, n, m, kernel=3):
            backbone[name] = {"conv": conv.init(next(keys), n, m, kernel=kernel, bias=False, kernel_init="he_normal")}
            if self.norm == "batch":
                backbone[name]["norm"], state[name] = batch_norm.init(None, m)
            else:
                backbone[name]["norm"] = group_norm.init(None, m)

        unit("stem", self.inputs[2] if len(self.inputs) == 3 else 1, self.width)
        for name, n, m, stride in self._blocks():
            unit(f"{name}_1", n, m)
            unit(f"{name}_2", m, m)
            if stride > 1:
                unit(f"{name}_skip", n, m, kernel=1)

        pyramid: dict[str, Any] = {}
        f = self.features
        for i in range(len(self.strides)):
            stage = self._first + i
            if stage < len(self.depths):
                pyramid[f"lateral{i}"] = conv.init(next(keys), self.width * 2**stage, f, kernel=1)
                pyramid[f"output{i}"] = conv.init(next(keys), f, f, kernel=3)
            else:
                pyramid[f"down{i}"] = conv.init(next(keys), f, f, kernel=3)

        heads: dict[str, Any] = {}
        for name in ("class", "box"):
            for i in range(self.convolutions):
                made = conv.init(next(keys), f, f, kernel=3, bias=False, kernel_init="he_normal")
                heads[f"{name}{i}"] = {"conv": made, "norm": group_norm.init(None, f)}
        small = jax.nn.initializers.normal(0.01)
        for name, m in (("classes", self.outputs), ("distances", 4), ("quality", 1)):
            heads[name] = conv.init(next(keys), f, m, kernel=3, kernel_init=small)
        heads["classes"]["bias"] += jnp.log(self.prior / (1 - self.prior))
        heads["scales"] = jnp.ones(len(self.strides))
        return {"backbone": backbone, "pyramid": pyramid, "heads": heads}, state

    def apply(self, params, state, x, *, key=None, train=False):
        """Images [batch, height, width(, channels)] -> (outputs, state), the outputs at the `points`:

        classes: [batch, points, classes], logits.
        distances: [batch, points, 4], to the left, upper, right and lower side of the box in pixels, above 0:
          exp(scale * raw) * stride with a scale that each level learns (Tian et al. 2019, section 3.2).
        quality: [batch, points], logits.

        Raises:
          ValueError: the images have not the size `inputs`, of which the points are.
        """
        if x.shape[1:3] != self.inputs[:2]:
            raise ValueError(f"images of {x.shape[1:3]}; the model's points are of {self.inputs[:2]}")
        stages, state = self._backbone(params["backbone"], state, x.reshape(*x.shape[:3], -1), train)
        levels = self._pyramid(params["pyramid"], stages)
        found = [self._heads(params["heads"], level, i) for i, level in enumerate(levels)]
        return {name: jnp.concatenate([one[name] for one in found], 1) for name in found[0]}, state

    @jax.named_scope("backbone")
    def _backbone(self, params, state, x, train):
        new = {}

        def unit(name, h, stride=1):
            kernel = params[name]["conv"]["kernel"]
            with jax.named_scope(name):
                h = conv.apply(params[name]["conv"], h, stride=stride, padding=kernel.shape[0] // 2)
                if self.norm == "group":
                    return group_norm.apply(params[name]["norm"], h, self.groups)
                h, new[name] = batch_norm.apply(params[name]["norm"], state[name], h, train=train)
            return h

        h, stages = jax.nn.relu(unit("stem", x, 2)), []
        for name, _, _, stride in self._blocks():
            branch = unit(f"{name}_2", jax.nn.relu(unit(f"{name}_1", h, stride)))
            if stride > 1:
                stages.append(jax.nn.relu(branch + unit(f"{name}_skip", h, stride)))
            else:
                stages[-1] = jax.nn.relu(branch + h)
            h = stages[-1]
        return stages, new

    @jax.named_scope("pyramid")
    def _pyramid(self, params, stages):
        used = stages[self._first : self._first + len(self.strides)]
        levels, coarser = [], None
        for i in reversed(range(len(used))):
            with jax.named_scope(f"lateral{i}"):
                h = conv.apply(params[f"lateral{i}"], used[i])
            if coarser is not None:
                doubled = coarser.repeat(2, 1).repeat(2, 2)
                h = h + doubled[:, : h.shape[1], : h.shape[2]]
            coarser = h
            with jax.named_scope(f"output{i}"):
                levels.insert(0, conv.apply(params[f"output{i}"], h))
        for i in range(len(used), len(self.strides)):
            h = levels[-1] if i == len(used) else jax.nn.relu(levels[-1])
            with jax.named_scope(f"down{i}"):
                levels.append(conv.apply(params[f"down{i}"], h, stride=2, padding=1))
        return levels

    @jax.named_scope("heads")
    def _heads(self, params, level, i):
        def tower(name):
            h = level
            for j in range(self.convolutions):
                unit = params[f"{name}{j}"]
                with jax.named_scope(f"{name}{j}"):
                    h = jax.nn.relu(group_norm.apply(unit["norm"], conv.apply(unit["conv"], h), self.groups))
            return h

        def output(name, h):
            with jax.named_scope(name):
                h = conv.apply(params[name], h)
            return h.reshape(h.shape[0], -1, h.shape[-1])

        boxes = tower("box")
        raw = tree.wide(output("distances", boxes))
        return {
            "classes": output("classes", tower("class")),
            "distances": jnp.exp(params["scales"][i].astype(raw.dtype) * raw) * self.strides[i],
            "quality": output("quality", boxes)[..., 0],
        }
