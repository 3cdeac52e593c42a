"""ViT, the Vision Transformer (Dosovitskiy et al. 2021), with the mathematics of torchvision's."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from functrain.config import ConfigError, Count, Fraction, Size, configclass
from functrain.layers import activations, attention, conv, dropout, initializers, layer_norm, linear
from functrain.models.base import fitted

_EPSILON = 1e-6
_PARTS = {
    "norm1/scale": "ln_1.weight",
    "norm1/bias": "ln_1.bias",
    "attention/qkv/kernel": "self_attention.in_proj_weight",
    "attention/qkv/bias": "self_attention.in_proj_bias",
    "attention/out/kernel": "self_attention.out_proj.weight",
    "attention/out/bias": "self_attention.out_proj.bias",
    "norm2/scale": "ln_2.weight",
    "norm2/bias": "ln_2.bias",
    "feed_forward/up/kernel": "mlp.0.weight",
    "feed_forward/up/bias": "mlp.0.bias",
    "feed_forward/down/kernel": "mlp.3.weight",
    "feed_forward/down/bias": "mlp.3.bias",
}
"""Names inside a block, ours and torchvision's."""


@configclass
class ViT:
    """Vision Transformer: an image is a sequence of patches, read off at a class token (Dosovitskiy et al. 2021).

    Pre-norm blocks, exact GELU, learned positions, norms with epsilon 1e-6. ViT-B/16 has patch 16, 12 layers, 12 heads,
    width 768; ViT-L has 24 layers, 16 heads, width 1024.

    >>> model = ViT(inputs=(6, 9, 2), outputs=5, patch=3, layers=2, heads=2, width=8)
    >>> params, state = model.init(jax.random.key(0))
    >>> params["positions"].shape, model.apply(params, state, jnp.zeros((4, 6, 9, 2)))[0].shape
    ((1, 7, 8), (4, 5))
    """

    kind: Literal["vit"] = "vit"
    patch: Size = 4
    """Height and width of a patch; it divides those of the image."""
    layers: Size = 6
    """Blocks of attention and feed-forward."""
    heads: Size = 4
    """Heads of attention; they divide the width."""
    width: Size = 128
    """Features of a patch."""
    hidden: Count = 0
    """Features inside a feed-forward layer; 0 is four times the width."""
    dropout: Fraction = 0.0
    """Share dropped of embeddings and in each branch; 0 is off."""
    attention_dropout: Fraction = 0.0
    """Share dropped of the attention weights; 0 is off."""
    inputs: tuple[Size, ...] = ()
    """Shape of one image, (height, width) or (height, width, channels); taken from the data."""
    outputs: Count = 0
    """Number of outputs; taken from the data."""

    def sized(self, inputs: tuple[int, ...], outputs: int) -> "ViT":
        """The model with its ends fitted to the data."""
        if len(inputs) not in (2, 3):
            raise ConfigError(f"model.kind: vit takes images; the data has examples of {list(inputs)}")
        if any(n % self.patch for n in inputs[:2]):
            raise ConfigError(
                f"model.patch: found {self.patch}; it does not divide the images' {inputs[0]} x {inputs[1]}"
            )
        return fitted(self, inputs, outputs)

    def build(self) -> "ViT":
        """The config is the model."""
        if self.width % self.heads:
            raise ConfigError(f"model.heads: found {self.heads}; it does not divide model.width = {self.width}")
        return self

    def init(self, key: jax.Array) -> tuple[dict[str, Any], dict]:
        """`({"patches", "class_token", "positions", "block0", ..., "norm", "head"}, {})`.

        Drawn as in torchvision: patches with variance 1 / fan-in, positions normal with deviation 0.02, queries,
        keys and values and the feed-forward layers by Glorot; class token, head and biases are zero.
        """
        keys = iter(jax.random.split(key, 4 * self.layers + 3))
        width, hidden = self.width, self.hidden or 4 * self.width
        channels = self.inputs[2] if len(self.inputs) == 3 else 1
        places = (self.inputs[0] // self.patch) * (self.inputs[1] // self.patch)
        params: dict[str, Any] = {
            "patches": conv.init(next(keys), channels, width, kernel=self.patch),
            "class_token": jnp.zeros((1, 1, width)),
            "positions": initializers.by_name("normal")(next(keys), (1, places + 1, width), float),
        }
        for i in range(self.layers):
            params[f"block{i}"] = {
                "norm1": layer_norm.init(None, width),
                "attention": {
                    "qkv": linear.init(next(keys), width, 3 * width, kernel_init="glorot_uniform"),
                    "out": linear.init(next(keys), width, width, kernel_init="torch"),
                },
                "norm2": layer_norm.init(None, width),
                "feed_forward": {
                    "up": linear.init(next(keys), width, hidden, kernel_init="glorot_uniform"),
                    "down": linear.init(next(keys), hidden, width, kernel_init="glorot_uniform"),
                },
            }
        params["norm"] = layer_norm.init(None, width)
        params["head"] = linear.init(next(keys), width, self.outputs, kernel_init="zeros")
        return params, {}

    def apply(self, params, state, x, *, key=None, train=False):
        """Images [batch, height, width(, channels)] -> (outputs [batch, outputs], state).

        Raises:
          ValueError: images of another size than the positions are for.
        """
        h = self.encode(params, self.patches(params, x), key=key, train=train)
        with jax.named_scope("norm"):
            h = layer_norm.apply(params["norm"], h[:, 0], epsilon=_EPSILON)
        with jax.named_scope("head"):
            return linear.apply(params["head"], h), state

    def patches(self, params, x) -> jax.Array:
        """Images -> their patches with their positions [batch, places, width].

        Raises:
          ValueError: images of another size than the positions are for.
        """
        if x.shape[1:3] != self.inputs[:2]:
            raise ValueError(f"images of {x.shape[1:3]}; the model has positions for {self.inputs[:2]}")
        with jax.named_scope("patches"):
            patches = conv.apply(params["patches"], x.reshape(*x.shape[:3], -1), stride=self.patch, padding="valid")
            patches = patches.reshape(x.shape[0], -1, self.width)
        with jax.named_scope("positions"):
            return patches + params["positions"][:, 1:]

    def encode(self, params, patches, *, key=None, train=False) -> jax.Array:
        """Patches [batch, places, width], all or some -> features [batch, 1 + places, width] before the last norm.

        The first are those of the class token.
        """
        draws = 4 * self.layers + 1
        drawn = iter([None] * draws if key is None else jax.random.split(key, draws))

        def drop(h):
            return dropout.apply(h, self.dropout, key=next(drawn), train=train)

        @jax.named_scope("feed_forward")
        def feed_forward(params, h):
            up = drop(activations.by_name("gelu")(linear.apply(params["up"], h)))
            return linear.apply(params["down"], up)

        token = params["class_token"] + params["positions"][:, :1]
        h = drop(jnp.concatenate([jnp.broadcast_to(token, (len(patches), 1, self.width)), patches], 1))
        for i in range(self.layers):
            block = params[f"block{i}"]
            with jax.named_scope(f"block{i}"):
                normed = layer_norm.apply(block["norm1"], h, epsilon=_EPSILON)
                h = h + drop(self._attend(block["attention"], normed, next(drawn), train))
                normed = layer_norm.apply(block["norm2"], h, epsilon=_EPSILON)
                h = h + drop(feed_forward(block["feed_forward"], normed))
        return h

    def torchvision_names(self) -> dict[str, str]:
        """Our path -> the name in the state dict of torchvision's VisionTransformer."""
        names = {
            "params/patches/kernel": "conv_proj.weight",
            "params/patches/bias": "conv_proj.bias",
            "params/class_token": "class_token",
            "params/positions": "encoder.pos_embedding",
            "params/norm/scale": "encoder.ln.weight",
            "params/norm/bias": "encoder.ln.bias",
            "params/head/kernel": "heads.head.weight",
            "params/head/bias": "heads.head.bias",
        }
        for i in range(self.layers):
            at = f"encoder.layers.encoder_layer_{i}"
            names |= {f"params/block{i}/{ours}": f"{at}.{theirs}" for ours, theirs in _PARTS.items()}
        return names

    @jax.named_scope("attention")
    def _attend(self, params, h, key, train):
        """Self-attention; queries, keys and values by one matrix product."""
        qkv = linear.apply(params["qkv"], h)
        q, k, v = (x.reshape(*h.shape[:-1], self.heads, -1) for x in jnp.split(qkv, 3, -1))
        y = attention.dot_product(q, k, v, dropout=self.attention_dropout if train else 0.0, key=key)
        return linear.apply(params["out"], y.reshape(h.shape))
