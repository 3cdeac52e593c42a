"""WaveNet (van den Oord et al. 2016): dilated causal convolutions, gated, over the codes of a wave."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from functrain.config import ConfigError, Count, Size, configclass
from functrain.layers import conv, embedding, linear
from functrain.models.base import fitted


@configclass
class WaveNet:
    """Each code of a wave from those before it, by stacks of convolutions with dilations 1, 2, 4, ...

    A layer is z = tanh(f) * sigmoid(g), with f and g of a causal convolution and of the class, if there is one (eq. 2
    and 3); z goes into the residual path and, by another product, into the outputs.

    >>> model = WaveNet(outputs=256, stacks=1, layers=3, channels=4, skip=8)
    >>> params, state = jax.eval_shape(model.init, jax.random.key(0))   # or model.init(key): the arrays themselves
    >>> jax.eval_shape(model.apply, params, state, jnp.zeros((2, 9), int))[0].shape, model.receptive_field
    ((2, 9, 256), 8)
    """

    kind: Literal["wavenet"] = "wavenet"
    stacks: Size = 2
    """How often the dilations 1 to 2^(layers - 1) are gone through."""
    layers: Size = 9
    """Layers of a stack."""
    kernel: Size = 2
    """Places that a convolution sees."""
    channels: Size = 32
    """Features of the residual path."""
    skip: Size = 128
    """Features of the path to the outputs."""
    classes: Count = 0
    """How many classes a wave may be conditioned on; 0 is none."""
    inputs: tuple[Size, ...] = ()
    """The length of a wave; taken from the data."""
    outputs: Count = 0
    """How many codes there are; taken from the data."""

    def sized(self, inputs: tuple[int, ...], outputs: int) -> "WaveNet":
        """The model with its ends fitted to the data."""
        if len(inputs) != 1:
            raise ConfigError(f"model.kind: wavenet takes sequences of codes; the data has examples of {list(inputs)}")
        return fitted(self, inputs, outputs)

    def build(self) -> "WaveNet":
        """The config is the model."""
        return self

    @property
    def dilations(self) -> tuple[int, ...]:
        """Of every layer."""
        return tuple(2**i for i in range(self.layers)) * self.stacks

    @property
    def receptive_field(self) -> int:
        """Codes, the newest included, that an output depends on.

        >>> WaveNet(stacks=3, layers=10).receptive_field
        3070
        """
        return (self.kernel - 1) * sum(self.dilations) + 1

    def init(self, key: jax.Array) -> tuple[dict[str, Any], dict]:
        """`({"codes", "layer0": {"conv", "class", "residual", "skip"}, ..., "out0", "out1"}, {})`."""
        code_key, out0, out1, *keys = jax.random.split(key, 3 + len(self.dilations))

        def unit(key, shape, dtype):
            return jax.random.normal(key, shape, dtype)

        params: dict[str, Any] = {"codes": embedding.init(code_key, self.outputs, self.channels, table_init=unit)}
        for i, k in enumerate(keys):
            parts, n = jax.random.split(k, 4), self.channels
            layer = {
                "conv": conv.init(parts[0], n, 2 * n, kernel=(self.kernel,)),
                "skip": linear.init(parts[1], n, self.skip),
            }
            if i + 1 < len(self.dilations):  # nobody would see what the last one adds to the residual path
                layer["residual"] = linear.init(parts[2], n, n)
            if self.classes:
                layer["class"] = embedding.init(parts[3], self.classes, 2 * n)
            params[f"layer{i}"] = layer
        params["out0"] = linear.init(out0, self.skip, self.skip)
        params["out1"] = linear.init(out1, self.skip, self.outputs)
        return params, {}

    def apply(self, params, state, x, label=None, *, key=None, train=False):
        """Codes [n, length] -> (logits of the code after each [n, length, outputs], state).

        label: [n] the class of each wave, where the model has classes.
        state: with that of `remember`, x goes on from what came before, without computing it again (Paine et al. 2016).
        """
        with jax.named_scope("codes"):
            h = embedding.apply(params["codes"], x)
        total, past, new = 0, state.get("past"), {}
        label = state.get("label", label)
        for i, dilation in enumerate(self.dilations):
            layer, name = params[f"layer{i}"], f"layer{i}"
            with jax.named_scope(name):
                if past is None:
                    both = conv.apply(layer["conv"], h, dilation=dilation, padding="causal")
                else:
                    reach = (self.kernel - 1) * dilation
                    seen = jnp.concatenate([past[name].astype(h.dtype), h], 1)
                    both = conv.apply(layer["conv"], seen, dilation=dilation, padding="valid")
                    new[name] = seen[:, -reach:] if reach else seen[:, :0]
                if self.classes:
                    both = both + embedding.apply(layer["class"], label)[:, None]
                f, g = jnp.split(both, 2, -1)
                z = jnp.tanh(f) * jax.nn.sigmoid(g)
                total = total + linear.apply(layer["skip"], z)
                if "residual" in layer:
                    h = h + linear.apply(layer["residual"], z)
        with jax.named_scope("out0"):
            y = linear.apply(params["out0"], jax.nn.relu(total))
        with jax.named_scope("out1"):
            logits = linear.apply(params["out1"], jax.nn.relu(y))
        return logits, state | {"past": new} if past is not None else state

    def remember(self, batch: int, length: int = 0, dtype: Any = float) -> dict[str, Any]:
        """The state with which `apply` goes on from what it was given before; of one size, whatever the length.

        What a layer saw before the first code is zeros, as in `apply` without it. Add `label` [n] for the classes.
        """
        past = {
            f"layer{i}": jnp.zeros((batch, (self.kernel - 1) * dilation, self.channels), dtype)
            for i, dilation in enumerate(self.dilations)
        }
        return {"past": past}
