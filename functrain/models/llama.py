"""Llama (Touvron et al. 2023; Grattafiori et al. 2024): a decoder with RMS norms, rotary positions and SwiGLU."""

import math
from typing import Any, Literal

import jax

from functrain.config import ConfigError, Count, Fraction, NonNegative, Positive, Size, configclass, off
from functrain.layers import activations, attention, embedding, initializers, linear, positions, rms_norm
from functrain.models import context, hub


@configclass
class Llama:
    """Decoder-only transformer: pre-norm by root mean square, rotary positions, grouped queries, gated feed-forward.

    Llama 2 7B has 32 layers, 32 heads, width 4096, hidden 11008; Llama 3 8B has 8 kv_heads, hidden 14336 and
    rotary_base 500000; Llama 3.1 adds stretch 8.

    >>> model = Llama(inputs=(16,), outputs=50, layers=2, heads=4, kv_heads=2, width=16)
    >>> params, state = jax.eval_shape(model.init, jax.random.key(0))   # or model.init(key): the arrays themselves
    >>> jax.eval_shape(model.apply, params, state, jax.numpy.zeros((3, 16), int))[0].shape
    (3, 16, 50)
    """

    kind: Literal["llama"] = "llama"
    layers: Size = 4
    """Blocks of attention and feed-forward."""
    heads: Size = 4
    """Heads of the queries."""
    kv_heads: Count = 0
    """Heads of keys and values, each for heads / kv_heads queries; 0 is one for each."""
    head_features: Count = 0
    """Features of a head; 0 is width / heads."""
    width: Size = 128
    """Features of a token."""
    hidden: Count = 0
    """Features inside a feed-forward layer; 0 is 8/3 of the width, up to a multiple of 32."""
    activation: activations.Name = "silu"
    """Nonlinearity of the gate."""
    bias: bool = False
    """Whether attention's projections have biases."""
    feed_forward_bias: bool = False
    """Whether the feed-forward layers have biases."""
    dropout: Fraction = 0.0
    """Share dropped of the attention weights; 0 is off."""
    epsilon: Positive = 1e-5
    """Added to the mean square in norms."""
    rotary_base: Positive = 10000.0
    """Base of the rotary angles; see functrain.layers.positions."""
    stretch: NonNegative = 0.0
    """How many times as many tokens as `stretch_from` it should read (Llama 3.1); 0 is off."""
    stretch_from: Count = 8192
    """Tokens it read before it was stretched."""
    stretch_slow: Positive = 1.0
    """Angles that go round fewer times than this in `stretch_from` tokens are stretched whole."""
    stretch_fast: Positive = 4.0
    """Angles that go round more often stay as they are."""
    tied: bool = False
    """Whether the output layer is the token embedding."""
    positions: Count = 0
    """The most tokens that it is meant to read: data.block may be no longer; 0 is no bound."""
    vocabulary: Count = 0
    """Rows of the table of tokens, and logits; 0 is the size of the data's vocabulary."""
    huggingface: str = ""
    """The config.json that the model came with, as text; taken from its folder."""
    inputs: tuple[Size, ...] = ()
    """The longest sequence, (block,); taken from the data."""
    outputs: Count = 0
    """Size of the data's vocabulary; taken from the data."""

    def sized(self, inputs: tuple[int, ...], outputs: int) -> "Llama":
        """The model with its ends fitted to the data."""
        return context.fitted_to_text(self, inputs, outputs)

    def build(self) -> "Llama":
        """The config is the model."""
        if self.width % self.heads and not self.head_features:
            raise ConfigError(f"model.heads: found {self.heads}; it does not divide model.width = {self.width}")
        if self.heads % (self.kv_heads or self.heads):
            raise ConfigError(f"model.kv_heads: found {self.kv_heads}; it does not divide model.heads = {self.heads}")
        if self._head % 2:
            raise ConfigError(f"model.head_features: found {self._head}; rotary positions need an even number")
        return self

    def init(self, key: jax.Array) -> tuple[dict[str, Any], dict]:
        """Weights normal, deviation 0.02; those that end a branch, 0.02 / sqrt(2 layers); norms one."""
        tokens, head, *keys = jax.random.split(key, 2 + 2 * self.layers)
        normal, end = initializers.by_name("normal"), 1 / math.sqrt(2 * self.layers)
        width, vocabulary = self.width, self.vocabulary or self.outputs
        hidden = self._hidden
        params: dict[str, Any] = {"tokens": embedding.init(tokens, vocabulary, width, table_init="normal")}
        for i in range(self.layers):
            heads = {"kv_heads": self.kv_heads or self.heads, "head_features": self._head, "bias": self.bias}
            attend = attention.init(keys[2 * i], width, self.heads, **heads, kernel_init="normal")
            ends = {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}
            feed = {
                name: linear.init(k, n, m, bias=self.feed_forward_bias, kernel_init="normal")
                for k, (name, (n, m)) in zip(jax.random.split(keys[2 * i + 1], 3), ends.items())
            }
            for last in (attend["out"], feed["down"]):
                last["kernel"] = end * last["kernel"]
            params[f"block{i}"] = {
                "norm1": rms_norm.init(None, width),
                "attention": attend,
                "norm2": rms_norm.init(None, width),
                "feed_forward": feed,
            }
        params["norm"] = rms_norm.init(None, width)
        if not self.tied:
            params["head"] = {"kernel": normal(head, (width, vocabulary), float)}
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
        at, mask, state = context.place(x, segments, state)
        cache = dict(state.get("cache", {}))
        keys = [None] * self.layers if key is None else jax.random.split(key, self.layers)
        by = positions.turns(self._head, base=self.rotary_base)
        if not off(self.stretch):
            stretch = {"factor": self.stretch, "length": self.stretch_from}
            by = positions.stretched(by, **stretch, slow=self.stretch_slow, fast=self.stretch_fast)

        @jax.named_scope("attention")
        def attend(params, h, key, name):
            """Causal self-attention with turned queries and keys."""
            q, k, v = (linear.apply(params[part], h) for part in ("query", "key", "value"))
            q, k, v = (part.reshape(*part.shape[:-1], -1, self._head) for part in (q, k, v))
            q, k = (positions.rotary(part, at, by=by) for part in (q, k))
            given = {"mask": mask, "causal": True, "dropout": self.dropout, "key": key, "train": train}
            y = attention.attend(q, k, v, cache=cache.get(name), **given)
            if name in cache:
                y, cache[name] = y
            return linear.apply(params["out"], y.reshape(*y.shape[:-2], -1))

        @jax.named_scope("feed_forward")
        def feed_forward(params, h):
            """SwiGLU: down(silu(gate(h)) * up(h)) (Shazeer 2020)."""
            gate = activations.by_name(self.activation)(linear.apply(params["gate"], h))
            return linear.apply(params["down"], gate * linear.apply(params["up"], h))

        with jax.named_scope("tokens"):
            h = embedding.apply(params["tokens"], x)
        for i in range(self.layers):
            block = params[f"block{i}"]
            with jax.named_scope(f"block{i}"):
                normed = rms_norm.apply(block["norm1"], h, epsilon=self.epsilon)
                h = h + attend(block["attention"], normed, keys[i], f"block{i}")
                h = h + feed_forward(block["feed_forward"], rms_norm.apply(block["norm2"], h, epsilon=self.epsilon))
        with jax.named_scope("norm"):
            h = rms_norm.apply(params["norm"], h, epsilon=self.epsilon)
        return h, state | {"cache": cache} if cache else state

    def remember(self, batch: int, length: int, dtype=float):
        """The state with which `apply` goes on from what it was given before; room for `length` tokens a row."""
        return context.remember(self.layers, batch, length, self.kv_heads or self.heads, self._head, dtype)

    @property
    def _hidden(self) -> int:
        return self.hidden or -(-8 * self.width // 96) * 32

    @property
    def _head(self) -> int:
        return self.head_features or self.width // self.heads

    as_is = ""

    def huggingface_names(self) -> dict[str, str]:
        """Our path -> the name in the state dict of LlamaForCausalLM."""
        names = {"params/tokens/table": "model.embed_tokens.weight", "params/norm/scale": "model.norm.weight"}
        for i in range(self.layers):
            for ours, theirs in _HUGGING_FACE.items():
                leaf, biased = ("scale", False) if "norm" in ours else ("kernel", self._biased(ours))
                names[f"params/block{i}/{ours}/{leaf}"] = f"model.layers.{i}.{theirs}.weight"
                if biased:
                    names[f"params/block{i}/{ours}/bias"] = f"model.layers.{i}.{theirs}.bias"
        return names if self.tied else names | {"params/head/kernel": "lm_head.weight"}

    def _biased(self, path: str) -> bool:
        return self.bias if path.startswith("attention") else self.feed_forward_bias

    def to_huggingface(self) -> dict[str, Any]:
        """The keys of config.json."""
        turns: dict[str, Any] = {"rope_theta": self.rotary_base, "rope_type": "default"}
        if not off(self.stretch):
            turns |= {
                "rope_type": "llama3",
                "factor": self.stretch,
                "original_max_position_embeddings": self.stretch_from,
                "low_freq_factor": self.stretch_slow,
                "high_freq_factor": self.stretch_fast,
            }
        return {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": self.vocabulary or self.outputs,
            "hidden_size": self.width,
            "intermediate_size": self._hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads or self.heads,
            "head_dim": self._head,
            "hidden_act": hub.their_activation(self.activation),
            "max_position_embeddings": max(self.inputs[0], self.positions),
            "rms_norm_eps": self.epsilon,
            "rope_parameters": turns,
            "attention_bias": self.bias,
            "mlp_bias": self.feed_forward_bias,
            "attention_dropout": self.dropout,
            "tie_word_embeddings": self.tied,
        }


_HUGGING_FACE = {
    "norm1": "input_layernorm",
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/out": "self_attn.o_proj",
    "norm2": "post_attention_layernorm",
    "feed_forward/gate": "mlp.gate_proj",
    "feed_forward/up": "mlp.up_proj",
    "feed_forward/down": "mlp.down_proj",
}
"""Layers of a block, ours and theirs."""


def from_huggingface(config: dict[str, Any]) -> Llama:
    """The model of a config.json of model_type llama, without the ends that data say.

    Raises:
      ConfigError: it is a kind of Llama that functrain has not.

    >>> sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    >>> from_huggingface({"vocab_size": 9, **sizes}).width
    8
    """
    hub.refuse(config, {"pretraining_tp": 1})
    whole = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "max_position_embeddings": 2048} | config
    # Until transformers 5 the base stood beside the rest, and the rest was "rope_scaling".
    turns = whole.get("rope_parameters") or whole.get("rope_scaling") or {}
    kind = turns.get("rope_type", turns.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise ConfigError(f"rope_parameters.rope_type: found {kind!r}; legal here: default, llama3")
    stretch = {}
    if kind == "llama3":
        stretch = {
            "stretch": float(turns["factor"]),
            "stretch_from": turns["original_max_position_embeddings"],
            "stretch_slow": float(turns["low_freq_factor"]),
            "stretch_fast": float(turns["high_freq_factor"]),
        }
    return Llama(
        layers=whole["num_hidden_layers"],
        heads=whole["num_attention_heads"],
        kv_heads=whole.get("num_key_value_heads") or 0,
        head_features=whole.get("head_dim") or 0,
        width=whole["hidden_size"],
        hidden=whole["intermediate_size"],
        activation=hub.activation(whole, "hidden_act"),  # pyright: ignore[reportArgumentType]
        bias=whole.get("attention_bias", False),
        feed_forward_bias=whole.get("mlp_bias", False),
        dropout=whole.get("attention_dropout") or 0.0,
        epsilon=whole["rms_norm_eps"],
        rotary_base=float(turns.get("rope_theta", whole.get("rope_theta", 10000.0))),
        **stretch,
        tied=whole.get("tie_word_embeddings", False),
        positions=whole["max_position_embeddings"],
        vocabulary=whole["vocab_size"],
    )
