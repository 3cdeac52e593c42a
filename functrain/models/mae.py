"""The masked autoencoder (He et al. 2022): a Vision Transformer that sees few patches; a small one tells the rest."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from functrain.config import ConfigError, Count, Size, configclass
from functrain.layers import layer_norm, linear
from functrain.models.base import fitted
from functrain.models.vit import ViT

_EPSILON = 1e-6


@configclass
class MAE:
    """An encoder of the patches that are seen, and a decoder from their features to the pixels of all of them.

    Both are Vision Transformers; the decoder's image has a feature vector of the encoder's in each place that was seen
    and zeros in the others, so that the bias of its embedding is what stands for a masked patch. A classification with
    a vit of the encoder's sizes starts from it with `rename = [["^encoder/", ""]]` and `fresh = ["^head/"]`.

    >>> encoder = ViT(patch=2, layers=1, heads=2, width=8)
    >>> model = MAE(encoder=encoder, decoder_width=4, decoder_heads=1, decoder_layers=1).sized((4, 6), 24)
    >>> params, state = jax.jit(model.init)(jax.random.key(0))
    >>> order = jnp.array([[5, 0, 1, 2, 3, 4]])   # two are seen, the sixth and the first
    >>> outputs, _ = jax.jit(model.apply, static_argnames="seen")(params, state, jnp.zeros((1, 4, 6)), order, seen=2)
    >>> outputs["patches"].shape, outputs["masked"].tolist()
    ((1, 6, 4), [[0.0, 1.0, 1.0, 1.0, 1.0, 0.0]])
    """

    kind: Literal["mae"] = "mae"
    encoder: ViT = dataclasses.field(default_factory=ViT)
    """The Vision Transformer that is learned."""
    decoder_layers: Size = 2
    """Blocks of the decoder."""
    decoder_heads: Size = 4
    """Its heads."""
    decoder_width: Size = 64
    """Its width."""
    inputs: tuple[Size, ...] = ()
    """Shape of one image, (height, width) or (height, width, channels); taken from the data."""
    outputs: Count = 0
    """Pixels times channels; taken from the data."""

    def sized(self, inputs: tuple[int, ...], outputs: int) -> "MAE":
        """The model with its ends fitted to the data."""
        if len(inputs) not in (2, 3):
            raise ConfigError(f"model.kind: mae takes images; the data has examples of {list(inputs)}")
        if any(n % self.encoder.patch for n in inputs[:2]):
            raise ConfigError(
                f"model.encoder.patch: found {self.encoder.patch}; it does not divide {inputs[0]} x {inputs[1]}"
            )
        return fitted(self, inputs, outputs)

    def build(self) -> "MAE":
        """The config is the model."""
        for vit in (self.vit, self.decoder):
            vit.build()
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.inputs[0] // self.encoder.patch, self.inputs[1] // self.encoder.patch

    @property
    def places(self) -> int:
        """Patches of an image."""
        return self.grid[0] * self.grid[1]

    @property
    def vit(self) -> ViT:
        """The encoder, of the data's images."""
        return dataclasses.replace(self.encoder, inputs=self.inputs, outputs=1)

    @property
    def decoder(self) -> ViT:
        """The decoder, of images of features."""
        return ViT(
            patch=1,
            layers=self.decoder_layers,
            heads=self.decoder_heads,
            width=self.decoder_width,
            inputs=(*self.grid, self.encoder.width),
            outputs=self.outputs // self.places,
        )

    def init(self, key: jax.Array) -> tuple[dict[str, Any], dict]:
        """`({"encoder": a ViT's without its head, "decoder": a ViT's}, {})`."""
        a, b = jax.random.split(key)
        encoder, decoder = self.vit.init(a)[0], self.decoder.init(b)[0]
        return {"encoder": {name: part for name, part in encoder.items() if name != "head"}, "decoder": decoder}, {}

    def apply(self, params, state, x, order=None, *, seen=None, key=None, train=False):
        """Images [n, height, width(, channels)] -> ({"patches", "masked"}, state).

        order: [n, places], a permutation of each image's patches; the first `seen` of it are seen. None shows all.

        Returns:
          patches [n, places, pixels of a patch] as they are told, and masked [n, places], 1 where a patch was not seen.
        """
        n, rows = len(x), jnp.arange(len(x))[:, None]
        seen = self.places if order is None or seen is None else seen
        order = jnp.broadcast_to(jnp.arange(self.places), (n, self.places)) if order is None else order
        a, b = (None, None) if key is None else jax.random.split(key)
        shown = order[:, :seen]
        with jax.named_scope("encoder"):
            patches = self.vit.patches(params["encoder"], x)[rows, shown]
            h = self.vit.encode(params["encoder"], patches, key=a, train=train)[:, 1:]
            with jax.named_scope("norm"):
                h = layer_norm.apply(params["encoder"]["norm"], h, epsilon=_EPSILON)
        canvas = jnp.zeros((n, self.places, self.encoder.width), h.dtype).at[rows, shown].set(h)
        decoder = self.decoder
        with jax.named_scope("decoder"):
            canvas = decoder.patches(params["decoder"], canvas.reshape(n, *self.grid, -1))
            h = decoder.encode(params["decoder"], canvas, key=b, train=train)[:, 1:]
            with jax.named_scope("norm"):
                h = layer_norm.apply(params["decoder"]["norm"], h, epsilon=_EPSILON)
        masked = jnp.ones((n, self.places)).at[rows, shown].set(0)
        with jax.named_scope("decoder"), jax.named_scope("head"):
            patches = linear.apply(params["decoder"]["head"], h)
        return {"patches": patches, "masked": masked}, state

    def cut(self, x) -> jax.Array:
        """Images -> the pixels of their patches [n, places, pixels]."""
        rows, columns, side = *self.grid, self.encoder.patch
        x = x.reshape(len(x), rows, side, columns, side, -1).swapaxes(2, 3)
        return x.reshape(len(x), rows * columns, -1)

    def joined(self, patches) -> jax.Array:
        """The images of these patches: what `cut` undoes."""
        rows, columns, side = *self.grid, self.encoder.patch
        x = patches.reshape(len(patches), rows, columns, side, side, -1).swapaxes(2, 3)
        return x.reshape(len(patches), *self.inputs)
