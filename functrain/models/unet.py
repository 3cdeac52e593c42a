"""U-Net (Ronneberger, Fischer, Brox 2015), padded so that what comes out has the size of what goes in."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from functrain.config import ConfigError, Count, Size, configclass
from functrain.layers import batch_norm, conv, pool
from functrain.models.base import fitted


@configclass
class UNet:
    """U-Net: down by pooling, up by transposed convolutions, each level joined to its like; outputs for each pixel.

    A level is two 3 x 3 convolutions with ReLU; the channels double on the way down (Ronneberger et al. 2015, figure
    1). Their convolutions are unpadded and cut the joined maps to size; these are padded and cut nothing. The paper has
    4 levels and width 64.

    >>> model = UNet(inputs=(8, 12), outputs=3, levels=2, width=4, norm="batch")
    >>> params, state = jax.eval_shape(model.init, jax.random.key(0))   # or model.init(key): the arrays themselves
    >>> logits, state = jax.eval_shape(model.apply, params, state, jnp.zeros((5, 8, 12)))
    >>> logits.shape, sorted(params)
    ((5, 8, 12, 3), ['bottom', 'down0', 'down1', 'head', 'up0', 'up1'])
    """

    kind: Literal["unet"] = "unet"
    levels: Size = 3
    """How often the image is halved; 2^levels divides its height and width."""
    width: Size = 16
    """Channels of the first level; each further one has twice those before."""
    norm: Literal["none", "batch"] = "none"
    """Normalisation between a convolution and its ReLU."""
    inputs: tuple[Size, ...] = ()
    """Shape of one image, (height, width) or (height, width, channels); taken from the data."""
    outputs: Count = 0
    """Outputs for each pixel; taken from the data."""

    def sized(self, inputs: tuple[int, ...], outputs: int) -> "UNet":
        """The model with its ends fitted to the data."""
        if len(inputs) not in (2, 3):
            raise ConfigError(f"model.kind: unet takes images; the data has examples of {list(inputs)}")
        if any(n % 2**self.levels for n in inputs[:2]):
            raise ConfigError(
                f"model.levels: found {self.levels}; {2**self.levels} does not divide the images' "
                f"{inputs[0]} x {inputs[1]}"
            )
        return fitted(self, inputs, outputs)

    def build(self) -> "UNet":
        """The config is the model."""
        return self

    def init(self, key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
        """`({"down0", ..., "bottom", ..., "up0", "head"}, state of the norms likewise, or {})`.

        Kernels normal with variance 2 / fan-in, as the paper's section 3 has it; biases zero.
        """
        keys = iter(jax.random.split(key, 5 * self.levels + 3))
        channels = self.inputs[2] if len(self.inputs) == 3 else 1
        params, state = {}, {}

        def level(name, n, m):
            params[name], norms = {}, {}
            for i, size in ((1, n), (2, m)):
                params[name][f"conv{i}"] = conv.init(next(keys), size, m, kernel=3, kernel_init="he_normal")
                if self.norm == "batch":
                    params[name][f"norm{i}"], norms[f"norm{i}"] = batch_norm.init(None, m)
            if norms:
                state[name] = norms

        widths = [self.width * 2**i for i in range(self.levels + 1)]
        for i in range(self.levels):
            level(f"down{i}", widths[i - 1] if i else channels, widths[i])
        level("bottom", widths[-2], widths[-1])
        for i in reversed(range(self.levels)):
            level(f"up{i}", 2 * widths[i], widths[i])
            up = conv.init(next(keys), widths[i + 1], widths[i], kernel=2, kernel_init="he_normal")
            params[f"up{i}"]["up"] = up
        params["head"] = conv.init(next(keys), self.width, self.outputs, kernel=1, kernel_init="he_normal")
        return params, state

    def apply(self, params, state, x, *, key=None, train=False):
        """Images [batch, height, width(, channels)] -> (outputs [batch, height, width, outputs], state)."""
        h, new, seen = x.reshape(*x.shape[:3], -1), {}, []

        def level(name, h):
            norms = {}
            for i in (1, 2):
                h = conv.apply(params[name][f"conv{i}"], h, padding=1)
                if self.norm == "batch":
                    norm, old = params[name][f"norm{i}"], state[name][f"norm{i}"]
                    h, norms[f"norm{i}"] = batch_norm.apply(norm, old, h, train=train)
                h = jax.nn.relu(h)
            if norms:
                new[name] = norms
            return h

        for i in range(self.levels):
            with jax.named_scope(f"down{i}"):
                seen.append(level(f"down{i}", h))
                h = pool.max(seen[-1], 2)
        with jax.named_scope("bottom"):
            h = level("bottom", h)
        for i in reversed(range(self.levels)):
            with jax.named_scope(f"up{i}"):
                h = conv.transpose(params[f"up{i}"]["up"], h, stride=2)
                h = level(f"up{i}", jnp.concatenate([seen[i], h], -1))
        with jax.named_scope("head"):
            return conv.apply(params["head"], h), new
