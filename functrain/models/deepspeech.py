"""DeepSpeech (Hannun et al. 2014; Amodei et al. 2016): convolutions, recurrent layers in both directions, a head."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from functrain.config import ConfigError, Count, Fraction, Size, configclass
from functrain.layers import batch_norm, conv, dropout, linear, recurrent
from functrain.models.base import fitted

_CEILING = 20.0
"""Where the clipped relu ends (Hannun et al. 2014, section 2)."""


@configclass
class DeepSpeech:
    """Deep Speech 2: convolutions over time and frequency, recurrent layers, a linear layer at each frame.

    The paper's has channels (32, 32, 96), kernels of 41, 21 and 21 bins by 11 frames, and 5 or 7 layers of width 1760.

    >>> model = DeepSpeech(inputs=(20, 8), outputs=11, channels=(4,), kernels=((5, 3),), strides=((2, 2),), width=6)
    >>> params, state = jax.eval_shape(model.init, jax.random.key(0))   # or model.init(key): the arrays themselves
    >>> jax.eval_shape(model.apply, params, state, jnp.zeros((3, 20, 8)), length=jnp.array([20, 9, 1]))[0].shape
    (3, 10, 11)
    """

    kind: Literal["deepspeech"] = "deepspeech"
    channels: tuple[Size, ...] = (32, 32)
    """Maps of each convolution."""
    kernels: tuple[tuple[Size, Size], ...] = ((11, 21), (11, 11))
    """Frames and bins of each convolution's kernel, odd."""
    strides: tuple[tuple[Size, Size], ...] = ((2, 2), (1, 2))
    """Frames and bins from one place of each convolution to the next."""
    cell: recurrent.Cell = "gru"
    """What a recurrent layer computes at each frame."""
    layers: Size = 3
    """Recurrent layers."""
    width: Size = 256
    """Features of a recurrent layer's state, in each direction."""
    bidirectional: bool = True
    """Whether the recurrent layers go over the frames from their end too; not where it must follow live speech."""
    dropout: Fraction = 0.0
    """Share dropped between recurrent layers and before the head; 0 is off."""
    inputs: tuple[Size, ...] = ()
    """Frames and features of an example; taken from the data."""
    outputs: Count = 0
    """Outputs at each frame; taken from the data."""

    def __post_init__(self):
        if not len(self.channels) == len(self.kernels) == len(self.strides):
            raise ValueError("channels, kernels, strides: expected as many of each")
        if any(size % 2 == 0 for kernel in self.kernels for size in kernel):
            raise ValueError(f"kernels: found {[list(k) for k in self.kernels]}; expected odd sizes")

    def sized(self, inputs: tuple[int, ...], outputs: int) -> "DeepSpeech":
        """The model with its ends fitted to the data."""
        if len(inputs) != 2:
            raise ConfigError(f"model.kind: deepspeech takes frames of features; the data has {list(inputs)}")
        return fitted(self, inputs, outputs)

    def build(self) -> "DeepSpeech":
        """The config is the model."""
        return self

    def frames(self, length: Any) -> Any:
        """How many frames of outputs there are for so many of inputs: ceil(length / stride) after each convolution.

        >>> DeepSpeech().frames(5)
        3
        """
        for stride, _ in self.strides:
            length = -(-length // stride)
        return length

    def init(self, key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
        """`({"conv0", "norm0", ..., "cells", "head"}, {"norm0": {"mean", "var"}, ...})`."""
        *keys, cell_key, head_key = jax.random.split(key, len(self.channels) + 2)
        params, state, maps, bins = {}, {}, 1, self.inputs[1]
        for i, (k, m, kernel, stride) in enumerate(zip(keys, self.channels, self.kernels, self.strides)):
            params[f"conv{i}"] = conv.init(k, maps, m, kernel=kernel, bias=False, kernel_init="he_normal")
            params[f"norm{i}"], state[f"norm{i}"] = batch_norm.init(None, m)
            maps, bins = m, -(-bins // stride[1])
        shape = {"cell": self.cell, "layers": self.layers, "bidirectional": self.bidirectional}
        params["cells"] = recurrent.init(cell_key, maps * bins, self.width, **shape)
        params["head"] = linear.init(head_key, self.width * (1 + self.bidirectional), self.outputs)
        return params, state

    def apply(self, params, state, x, length=None, *, key=None, train=False):
        """Features [n, frames, bins] -> (logits [n, self.frames(frames), outputs], state).

        length: [n] how many frames of each row are sound; None is all. What stands in the others does not matter.
        """
        keys = [None] * 2 if key is None else jax.random.split(key)
        length = jnp.full(len(x), x.shape[1]) if length is None else length
        h, new = _within(x[..., None], length), {}
        for i, (kernel, stride) in enumerate(zip(self.kernels, self.strides)):
            with jax.named_scope(f"conv{i}"):
                # As many zeros before as after, so that where a row ends does not move its frames.
                h = conv.apply(params[f"conv{i}"], h, stride=stride, padding=(kernel[0] // 2, kernel[1] // 2))
                length = -(-length // stride[0])
                there = jnp.arange(h.shape[1]) < length[:, None]
                h, new[f"norm{i}"] = batch_norm.apply(params[f"norm{i}"], state[f"norm{i}"], h, train=train, mask=there)
                h = _within(jnp.clip(h, 0, _CEILING), length)
        h = h.reshape(*h.shape[:2], -1)
        with jax.named_scope("cells"):
            h, _ = recurrent.apply(
                params["cells"], h, cell=self.cell, lengths=length, dropout=self.dropout, key=keys[0], train=train
            )
        h = dropout.apply(h, self.dropout, key=keys[1], train=train)
        with jax.named_scope("head"):
            return linear.apply(params["head"], h), state | new


def _within(x, length):
    """x [n, frames, ...], 0 past its length."""
    there = jnp.arange(x.shape[1]) < length[:, None]
    return jnp.where(there.reshape(*there.shape, *[1] * (x.ndim - 2)), x, 0)
