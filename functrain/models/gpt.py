"""GPT: the decoder-only transformer of GPT-2 (Radford et al. 2019), in the shape of nanoGPT."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from functrain.config import ConfigError, Count, Fraction, Positive, Size, configclass
from functrain.layers import activations, attention, dropout, embedding, initializers, layer_norm, linear
from functrain.models import context, hub


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
    hidden: Count = 0
    """Features inside a feed-forward layer; 0 is four times the width."""
    bias: bool = True
    """Whether linear layers and norms have biases."""
    dropout: Fraction = 0.0
    """Share dropped of embeddings, attention weights and each branch; 0 is off."""
    activation: activations.Name = "gelu"
    """Nonlinearity of the feed-forward layers; GPT-2's own weights want gelu_tanh."""
    epsilon: Positive = 1e-5
    """Added to the variance in norms."""
    tied: bool = True
    """Whether the output layer is the token embedding."""
    positions: Count = 0
    """Rows of the table of positions, the most that a sequence can have; 0 is the longest sequence of the data."""
    vocabulary: Count = 0
    """Rows of the table of tokens, and logits; 0 is the size of the data's vocabulary."""
    huggingface: str = ""
    """The config.json that the model came with, as text; taken from its folder."""
    inputs: tuple[Size, ...] = ()
    """The longest sequence, (block,); taken from the data."""
    outputs: Count = 0
    """Size of the data's vocabulary; taken from the data."""

    def sized(self, inputs: tuple[int, ...], outputs: int) -> "GPT":
        """The model with its ends fitted to the data."""
        return context.fitted_to_text(self, inputs, outputs)

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
        hidden, vocabulary = self.hidden or 4 * width, self.vocabulary or self.outputs
        params: dict[str, Any] = {
            "tokens": embedding.init(next(keys), vocabulary, width, table_init="normal"),
            "positions": embedding.init(next(keys), self.positions or self.inputs[0], width, table_init="normal"),
        }
        for i in range(self.layers):
            params[f"block{i}"] = {
                "norm1": layer_norm.init(None, width, bias=self.bias),
                "attention": {"qkv": affine(width, 3 * width), "out": affine(width, width, end)},
                "norm2": layer_norm.init(None, width, bias=self.bias),
                "feed_forward": {"up": affine(width, hidden), "down": affine(hidden, width, end)},
            }
        params["norm"] = layer_norm.init(None, width, bias=self.bias)
        if not self.tied:
            params["head"] = {"kernel": normal(next(keys), (width, vocabulary), float)}
        return params, {}

    def apply(self, params, state, x, segments=None, *, key=None, train=False):
        """Tokens [batch, length] -> (logits of the token after each [batch, length, vocabulary], state).

        segments and state: see `functrain.models.context`; with that of `remember`, x goes on from what came before.
        """
        h, state = self.features(params, state, x, segments, key=key, train=train)
        with jax.named_scope("tokens" if self.tied else "head"):
            logits = embedding.attend(params["tokens"], h) if self.tied else linear.apply(params["head"], h)
        return logits, state

    def output_table(self, params):
        """(table [vocabulary, width], None): the logits of `features` h are h @ table.T."""
        return params["tokens"]["table"] if self.tied else params["head"]["kernel"].T, None

    def features(self, params, state, x, segments=None, *, key=None, train=False):
        """As `apply`, up to the last layer: what it is given at each token [batch, length, width], and the state."""
        if x.shape[-1] > len(params["positions"]["table"]):
            raise ValueError(
                f"a sequence of {x.shape[-1]}; the model has {len(params['positions']['table'])} positions"
            )
        drawn = iter([None] * (3 * self.layers + 1) if key is None else jax.random.split(key, 3 * self.layers + 1))
        positions, mask, state = context.place(x, segments, state)
        cache = dict(state.get("cache", {}))

        def drop(h):
            return dropout.apply(h, self.dropout, key=next(drawn), train=train)

        @jax.named_scope("attention")
        def attend(params, h, name):
            """Causal self-attention; queries, keys and values by one matrix product."""
            qkv = linear.apply(params["qkv"], h)
            q, k, v = (x.reshape(*h.shape[:-1], self.heads, -1) for x in jnp.split(qkv, 3, -1))
            given = {"mask": mask, "causal": True, "dropout": self.dropout, "key": next(drawn), "train": train}
            y = attention.attend(q, k, v, cache=cache.get(name), **given)
            if name in cache:
                y, cache[name] = y
            return linear.apply(params["out"], y.reshape(h.shape))

        @jax.named_scope("feed_forward")
        def feed_forward(params, h):
            up = linear.apply(params["up"], h)
            return linear.apply(params["down"], activations.by_name(self.activation)(up))

        with jax.named_scope("tokens"):
            h = embedding.apply(params["tokens"], x)
        with jax.named_scope("positions"):
            h = h + self._positions(params["positions"], positions)
        h = drop(h)
        for name in (f"block{i}" for i in range(self.layers)):
            block = params[name]
            with jax.named_scope(name):
                h = h + drop(attend(block["attention"], self._norm(block["norm1"], h), name))
                h = h + drop(feed_forward(block["feed_forward"], self._norm(block["norm2"], h)))
        with jax.named_scope("norm"):
            h = self._norm(params["norm"], h)
        return h, state | {"cache": cache} if cache else state

    def remember(self, batch: int, length: int, dtype=float):
        """The state with which `apply` goes on from what it was given before; room for `length` tokens a row."""
        return context.remember(self.layers, batch, length, self.heads, self.width // self.heads, dtype)

    def _norm(self, params, h):
        return layer_norm.apply(params, h, epsilon=self.epsilon)

    def _positions(self, params, positions):
        """Rows of the table; of positions that count up from 0, its first ones, which is cheaper."""
        if positions.ndim == 1:
            return params["table"][: len(positions)]
        return embedding.apply(params, positions)

    as_is = r"/block\d+/"  # its linear layers are kept [in, out] there, as here

    def huggingface_names(self) -> dict[str, str]:
        """Our path -> the name in the state dict of GPT2LMHeadModel."""
        names = {"params/tokens/table": "transformer.wte.weight", "params/positions/table": "transformer.wpe.weight"}
        for i in range(self.layers):
            for ours, theirs in _HUGGING_FACE.items():
                names[f"params/block{i}/{ours}/kernel"] = f"transformer.h.{i}.{theirs}.weight"
                names[f"params/block{i}/{ours}/bias"] = f"transformer.h.{i}.{theirs}.bias"
        for norm, theirs in [
            ("norm", "ln_f"),
            *((f"block{i}/norm{j}", f"h.{i}.ln_{j}") for i in range(self.layers) for j in (1, 2)),
        ]:
            names |= {
                f"params/{norm}/scale": f"transformer.{theirs}.weight",
                f"params/{norm}/bias": f"transformer.{theirs}.bias",
            }
        return names if self.tied else names | {"params/head/kernel": "lm_head.weight"}

    def to_huggingface(self) -> dict[str, Any]:
        """The keys of config.json."""
        if not self.bias:
            raise ConfigError("model.bias: found false; GPT-2 there always has biases")
        return {
            "model_type": "gpt2",
            "architectures": ["GPT2LMHeadModel"],
            "vocab_size": self.vocabulary or self.outputs,
            "n_positions": self.positions or self.inputs[0],
            "n_embd": self.width,
            "n_layer": self.layers,
            "n_head": self.heads,
            "n_inner": self.hidden or None,
            "activation_function": hub.their_activation(self.activation),
            "layer_norm_epsilon": self.epsilon,
            "resid_pdrop": self.dropout,
            "embd_pdrop": self.dropout,
            "attn_pdrop": self.dropout,
            "tie_word_embeddings": self.tied,
        }


_HUGGING_FACE = {
    "attention/qkv": "attn.c_attn",
    "attention/out": "attn.c_proj",
    "feed_forward/up": "mlp.c_fc",
    "feed_forward/down": "mlp.c_proj",
}
"""Linear layers of a block, ours and theirs."""


def from_huggingface(config: dict[str, Any]) -> GPT:
    """The model of a config.json of model_type gpt2, without the ends that data say.

    Raises:
      ConfigError: it is a kind of GPT-2 that functrain has not.

    >>> from_huggingface({"vocab_size": 9, "n_positions": 7, "n_embd": 6, "n_layer": 1, "n_head": 2}).width
    6
    """
    hub.refuse(
        config, {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}
    )
    whole = {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "n_inner": None} | config
    return GPT(
        layers=whole["n_layer"],
        heads=whole["n_head"],
        width=whole["n_embd"],
        hidden=whole["n_inner"] or 0,
        dropout=hub.one_rate(whole, "resid_pdrop", "embd_pdrop", "attn_pdrop"),
        activation=hub.activation(whole, "activation_function"),  # pyright: ignore[reportArgumentType]
        epsilon=whole["layer_norm_epsilon"],
        tied=whole.get("tie_word_embeddings", True),
        positions=whole["n_positions"],
        vocabulary=whole["vocab_size"],
    )
