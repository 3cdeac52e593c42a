"""GPT: the decoder-only transformer of GPT-2 (Radford et al. 2019), in the shape of nanoGPT."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from functrain.config import ConfigError, Count, Fraction, Size, configclass
from functrain.layers import activations, attention, dropout, embedding, initializers, layer_norm, linear
from functrain.models.base import fitted


@configclass
class GPT:
    """Decoder-only transformer: learned positions, pre-norm blocks, tied output (GPT-2; nanoGPT's shape).

    >>> model = GPT(inputs=(16,), outputs=50, layers=2, heads=2, width=8)
    >>> params, state = model.init(jax.random.key(0))
    >>> model.apply(params, state, jnp.zeros((3, 16), int))[0].shape
    (3, 16, 50)
    """

    kind: Literal["gpt"] = "gpt"
    layers: Size = 4
    """Blocks of attention and feed-forward."""
    heads: Size = 4
    """Heads of attention; they divide the width."""
    width: Size = 128
    """Features of a token."""
    bias: bool = True
    """Whether linear layers and norms have biases."""
    dropout: Fraction = 0.0
    """Share dropped of embeddings, attention weights and each branch; 0 is off."""
    activation: activations.Name = "gelu"
    """Nonlinearity of the feed-forward layers; GPT-2's own weights want gelu_tanh."""
    tied: bool = True
    """Whether the output layer is the token embedding."""
    inputs: tuple[Size, ...] = ()
    """The longest sequence, (block,); taken from the data."""
    outputs: Count = 0
    """Size of the vocabulary; taken from the data."""

    def sized(self, inputs: tuple[int, ...], outputs: int) -> "GPT":
        """The model with its ends fitted to the data."""
        if len(inputs) != 1:
            raise ConfigError(f"model.kind: gpt takes sequences of tokens; the data has {list(inputs)}")
        return fitted(self, inputs, outputs)

    def build(self) -> "GPT":
        """The config is the model."""
        if self.width % self.heads:
            raise ConfigError(f"model.heads: found {self.heads}; it does not divide model.width = {self.width}")
        return self

    def init(self, key: jax.Array) -> tuple[dict[str, Any], dict]:
        """Weights normal, deviation 0.02; those that end a branch, 0.02 / sqrt(2 layers); biases zero."""
        keys = iter(jax.random.split(key, 4 * self.layers + 3))
        normal = initializers.by_name("normal")

        def affine(n, m, share=1.0):
            made = linear.init(next(keys), n, m, bias=self.bias, kernel_init="normal")
            return made | {"kernel": share * made["kernel"]}

        width, end = self.width, 1 / math.sqrt(2 * self.layers)
        params: dict[str, Any] = {
            "tokens": embedding.init(next(keys), self.outputs, width, table_init="normal"),
            "positions": embedding.init(next(keys), self.inputs[0], width, table_init="normal"),
        }
        for i in range(self.layers):
            params[f"block{i}"] = {
                "norm1": layer_norm.init(None, width, bias=self.bias),
                "attention": {"qkv": affine(width, 3 * width), "out": affine(width, width, end)},
                "norm2": layer_norm.init(None, width, bias=self.bias),
                "feed_forward": {"up": affine(width, 4 * width), "down": affine(4 * width, width, end)},
            }
        params["norm"] = layer_norm.init(None, width, bias=self.bias)
        if not self.tied:
            params["head"] = {"kernel": normal(next(keys), (width, self.outputs), float)}
        return params, {}

    def apply(self, params, state, x, *, key=None, train=False):
        """Tokens [batch, length] -> (logits of the token after each [batch, length, vocabulary], state)."""
        if x.shape[-1] > self.inputs[0]:
            raise ValueError(f"a sequence of {x.shape[-1]}; the model has {self.inputs[0]} positions")
        drawn = iter([None] * (3 * self.layers + 1) if key is None else jax.random.split(key, 3 * self.layers + 1))

        def drop(h):
            return dropout.apply(h, self.dropout, key=next(drawn), train=train)

        h = drop(embedding.apply(params["tokens"], x) + params["positions"]["table"][: x.shape[-1]])
        for i in range(self.layers):
            block = params[f"block{i}"]
            h = h + drop(self._attend(block["attention"], layer_norm.apply(block["norm1"], h), next(drawn), train))
            up = linear.apply(block["feed_forward"]["up"], layer_norm.apply(block["norm2"], h))
            h = h + drop(linear.apply(block["feed_forward"]["down"], activations.by_name(self.activation)(up)))
        h = layer_norm.apply(params["norm"], h)
        logits = embedding.attend(params["tokens"], h) if self.tied else linear.apply(params["head"], h)
        return logits, state

    def _attend(self, params, h, key, train):
        """Causal self-attention; queries, keys and values by one matrix product."""
        qkv = linear.apply(params["qkv"], h)
        q, k, v = (x.reshape(*h.shape[:-1], self.heads, -1) for x in jnp.split(qkv, 3, -1))
        share = self.dropout if train else 0.0
        y = attention.dot_product(q, k, v, causal=True, dropout=share, key=key)
        return linear.apply(params["out"], y.reshape(h.shape))
