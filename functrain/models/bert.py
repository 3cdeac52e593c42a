"""BERT: the encoder of masked language models (Devlin et al. 2019), with the mathematics of transformers' classes."""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from functrain.config import ConfigError, Count, Fraction, Positive, Size, configclass
from functrain.layers import activations, attention, dropout, embedding, layer_norm, linear
from functrain.models import context, hub
from functrain.models.base import fitted


@configclass
class BERT:
    """Encoder: every token sees all others; post-norm blocks, learned positions and types (Devlin et al. 2019).

    What its head gives: masked, logits of the token at each place, by the token embedding [batch, length, vocabulary];
    classes, logits of the whole sequence [batch, outputs]; tags, of each token [batch, length, outputs]; span, those of
    the first and the last token of an answer [batch, length, 2].

    BERT-base has 12 layers, 12 heads, width 768; BERT-large 24, 16 and 1024; both 512 positions and 30,522 tokens.

    >>> model = BERT(inputs=(16,), outputs=50, layers=2, heads=2, width=8)
    >>> params, state = jax.eval_shape(model.init, jax.random.key(0))   # or model.init(key): the arrays themselves
    >>> jax.eval_shape(model.apply, params, state, jnp.ones((3, 16), int))[0].shape
    (3, 16, 50)
    """

    kind: Literal["bert"] = "bert"
    head: Literal["masked", "classes", "span", "tags"] = "masked"
    """What it gives: tokens where some are masked, classes of a sequence, a span of it, or a tag for each token."""
    layers: Size = 4
    """Blocks of attention and feed-forward."""
    heads: Size = 4
    """Heads of attention; they divide the width."""
    width: Size = 128
    """Features of a token."""
    hidden: Count = 0
    """Features inside a feed-forward layer; 0 is four times the width."""
    activation: activations.Name = "gelu"
    """Nonlinearity of the feed-forward layers, and of the masked head."""
    dropout: Fraction = 0.0
    """Share dropped of embeddings and in each branch; 0 is off."""
    attention_dropout: Fraction = 0.0
    """Share dropped of the attention weights; 0 is off."""
    head_dropout: Fraction | None = None
    """Share dropped before the last layer of classes and tags; absent is as `dropout`."""
    epsilon: Positive = 1e-12
    """Added to the variance in norms."""
    pool: Literal["first", "mean"] = "first"
    """What classes are told from: the first token, where each sequence begins with one for that, or the mean of all."""
    padding: Count = 0
    """The token that fills up a sequence, where the data have no segments."""
    types: Size = 2
    """How many types of tokens there are, such as question and text."""
    vocabulary: Count = 0
    """Rows of the table of tokens, and logits of the masked head; taken from the data where it is 0."""
    positions: Count = 0
    """Rows of the table of positions, the most that a sequence can have; 0 is the longest sequence of the data."""
    huggingface: str = ""
    """The config.json that the model came with, as text; taken from its folder."""
    inputs: tuple[Size, ...] = ()
    """The longest sequence, (length,); taken from the data."""
    outputs: Count = 0
    """Number of outputs; taken from the data."""

    def sized(self, inputs: tuple[int, ...], outputs: int) -> "BERT":
        """The model with its ends fitted to the data."""
        if len(inputs) != 1:
            raise ConfigError(f"model.kind: bert takes sequences of tokens; the data has {list(inputs)}")
        if self.positions and inputs[0] > self.positions:
            raise ConfigError(f"model.positions: found {self.positions}; too small for sequences of {inputs[0]} tokens")
        if self.head == "masked" and 0 < self.vocabulary < outputs:
            raise ConfigError(f"model.vocabulary: found {self.vocabulary}; too small for the {outputs} tokens")
        return fitted(self, inputs, outputs)

    def build(self) -> "BERT":
        """The config is the model."""
        if self.width % self.heads:
            raise ConfigError(f"model.heads: found {self.heads}; it does not divide model.width = {self.width}")
        if self.head != "masked" and not self.vocabulary:
            raise ConfigError(f"model.vocabulary: missing; how many tokens there are, for model.head = {self.head!r}")
        if self.head == "span" and self.outputs != 2:
            raise ConfigError(f"model.head: span gives 2 outputs, start and end; the task wants {self.outputs}")
        return self

    def init(self, key: jax.Array) -> tuple[dict[str, Any], dict]:
        """Kernels and tables normal with deviation 0.02; biases zero."""
        keys = iter(jax.random.split(key, 3 * self.layers + 5))

        def affine(n, m):
            return linear.init(next(keys), n, m, kernel_init="normal")

        width, hidden, vocabulary = self.width, self.hidden or 4 * self.width, self.vocabulary or self.outputs
        params: dict[str, Any] = {
            "tokens": embedding.init(next(keys), vocabulary, width),
            "positions": embedding.init(next(keys), self._longest, width),
            "types": embedding.init(next(keys), self.types, width),
            "norm": layer_norm.init(None, width),
        }
        for i in range(self.layers):
            params[f"block{i}"] = {
                "attention": attention.init(next(keys), width, self.heads, kernel_init="normal"),
                "norm1": layer_norm.init(None, width),
                "feed_forward": {"up": affine(width, hidden), "down": affine(hidden, width)},
                "norm2": layer_norm.init(None, width),
            }
        if self.head == "masked":
            params["transform"] = affine(width, width)
            params["transform_norm"] = layer_norm.init(None, width)
            params["head"] = {"bias": jnp.zeros(vocabulary)}
            return params, {}
        if self.head == "classes":
            params["pooler"] = affine(width, width)
        params["head"] = affine(width, self.outputs)
        return params, {}

    def apply(self, params, state, x, segments=None, types=None, *, key=None, train=False):
        """Tokens [batch, length] -> (outputs, see the class; state).

        Args:
          segments: see `functrain.models.context`; None is one sequence to a row, filled up with `padding`. For
            classes each row is one sequence.
          types: integers [batch, length] below `types`; None is all 0.

        What stands at a place of padding is not defined.

        Raises:
          ValueError: a sequence longer than the model has positions.
        """
        rows = len(params["positions"]["table"])
        if x.shape[-1] > rows:
            raise ValueError(f"a sequence of {x.shape[-1]}; the model has {rows} positions")
        draws = 3 * self.layers + 2
        drawn = iter([None] * draws if key is None else jax.random.split(key, draws))
        activation = activations.by_name(self.activation)
        segments = (x != self.padding).astype(jnp.int32) if segments is None else segments
        positions, mask, _ = context.place(x, segments, {})

        def drop(h, rate=self.dropout):
            return dropout.apply(h, rate, key=next(drawn), train=train)

        @jax.named_scope("feed_forward")
        def feed_forward(params, h):
            return linear.apply(params["down"], activation(linear.apply(params["up"], h)))

        with jax.named_scope("tokens"):
            h = embedding.apply(params["tokens"], x)
        with jax.named_scope("positions"):
            h = h + embedding.apply(params["positions"], positions)
        with jax.named_scope("types"):
            h = h + embedding.apply(params["types"], jnp.zeros_like(x) if types is None else types)
        with jax.named_scope("norm"):
            h = self._norm(params["norm"], h)
        h = drop(h)
        given = {"heads": self.heads, "mask": mask, "dropout": self.attention_dropout, "train": train}
        for i in range(self.layers):
            block = params[f"block{i}"]
            with jax.named_scope(f"block{i}"):
                with jax.named_scope("attention"):
                    y = attention.apply(block["attention"], h, **given, key=next(drawn))
                h = self._norm(block["norm1"], h + drop(y))
                h = self._norm(block["norm2"], h + drop(feed_forward(block["feed_forward"], h)))
        if self.head == "masked":
            with jax.named_scope("transform"):
                h = activation(linear.apply(params["transform"], h))
            with jax.named_scope("transform_norm"):
                h = self._norm(params["transform_norm"], h)
            with jax.named_scope("tokens"):
                logits = embedding.attend(params["tokens"], h)
            with jax.named_scope("head"):
                return logits + params["head"]["bias"], state
        if self.head == "classes":
            with jax.named_scope("pooler"):
                h = jnp.tanh(linear.apply(params["pooler"], self._pooled(h, segments != 0)))
        if self.head != "span":
            h = drop(h, self.dropout if self.head_dropout is None else self.head_dropout)
        with jax.named_scope("head"):
            return linear.apply(params["head"], h), state

    as_is = ""

    def huggingface_names(self) -> dict[str, str]:
        """Our path -> the name in the state dict of transformers' class for the head."""
        modules = {
            "tokens": "bert.embeddings.word_embeddings",
            "positions": "bert.embeddings.position_embeddings",
            "types": "bert.embeddings.token_type_embeddings",
            "norm": "bert.embeddings.LayerNorm",
        }
        for i in range(self.layers):
            at = f"bert.encoder.layer.{i}"
            modules |= {f"block{i}/{ours}": f"{at}.{theirs}" for ours, theirs in _PARTS.items()}
        modules |= _HEADS[self.head][1]
        names = {}
        for ours, theirs in modules.items():
            if ours in ("tokens", "positions", "types"):
                names[f"params/{ours}/table"] = f"{theirs}.weight"
            elif ours != "head" or self.head != "masked":
                weight = "scale" if "norm" in ours else "kernel"
                names |= {f"params/{ours}/{weight}": f"{theirs}.weight", f"params/{ours}/bias": f"{theirs}.bias"}
            else:
                names["params/head/bias"] = f"{theirs}.bias"
        return names

    def to_huggingface(self) -> dict[str, Any]:
        """The keys of config.json, for the class of transformers that the head stands for."""
        if self.head == "classes" and self.pool != "first":
            raise ConfigError(f"model.pool: found {self.pool!r}; BERT there always has the first token")
        config = {
            "model_type": "bert",
            "architectures": [_HEADS[self.head][0]],
            "vocab_size": self.vocabulary or self.outputs,
            "max_position_embeddings": self._longest,
            "type_vocab_size": self.types,
            "pad_token_id": self.padding,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "hidden_size": self.width,
            "intermediate_size": self.hidden or 4 * self.width,
            "hidden_act": hub.their_activation(self.activation),
            "hidden_dropout_prob": self.dropout,
            "attention_probs_dropout_prob": self.attention_dropout,
            "classifier_dropout": self.head_dropout,
            "layer_norm_eps": self.epsilon,
            "tie_word_embeddings": True,
        }
        if self.head == "masked":
            return config
        labels = {str(i): f"LABEL_{i}" for i in range(self.outputs)}
        return config | {"id2label": labels, "label2id": {label: int(i) for i, label in labels.items()}}

    @property
    def _longest(self) -> int:
        return self.positions or self.inputs[0]

    def _norm(self, params, h):
        return layer_norm.apply(params, h, epsilon=self.epsilon)

    def _pooled(self, h, real):
        """[batch, width]: the first token of each row that is no padding, or the mean of them."""
        if self.pool == "first":
            return jnp.take_along_axis(h, real.argmax(-1)[:, None, None], 1)[:, 0]
        weights = real[..., None].astype(jnp.promote_types(h.dtype, jnp.float32))
        return ((h * weights).sum(1) / jnp.maximum(weights.sum(1), 1)).astype(h.dtype)


# -- Hugging Face ---------------------------------------------------------------------------------

_PARTS = {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/out": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "feed_forward/up": "intermediate.dense",
    "feed_forward/down": "output.dense",
    "norm2": "output.LayerNorm",
}
"""Modules of a block, ours and theirs."""

_HEADS: Mapping[str, tuple[str, dict[str, str]]] = {
    "masked": (
        "BertForMaskedLM",
        {
            "transform": "cls.predictions.transform.dense",
            "transform_norm": "cls.predictions.transform.LayerNorm",
            "head": "cls.predictions",
        },
    ),
    "classes": ("BertForSequenceClassification", {"pooler": "bert.pooler.dense", "head": "classifier"}),
    "span": ("BertForQuestionAnswering", {"head": "qa_outputs"}),
    "tags": ("BertForTokenClassification", {"head": "classifier"}),
}
"""Their class for each head, and its modules, ours and theirs."""


def from_huggingface(config: Mapping[str, Any]) -> BERT:
    """The model of a config.json of model_type bert, without the ends that data say.

    The head is that of the class it was saved from; masked, where that is the bare model or none is named.

    Raises:
      ConfigError: it is a kind of BERT that functrain has not.
      KeyError: a key is missing that has no default.

    >>> sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 6, "intermediate_size": 7}
    >>> sizes |= {"vocab_size": 9, "max_position_embeddings": 8}
    >>> model = from_huggingface({"architectures": ["BertForQuestionAnswering"], **sizes})
    >>> model.head, model.hidden
    ('span', 7)
    """
    heads = {"BertModel": "masked", "BertForPreTraining": "masked"} | {of: head for head, (of, _) in _HEADS.items()}
    saved = (config.get("architectures") or ["BertModel"])[0]
    if saved not in heads:
        raise ConfigError(f"architectures: found {saved!r}; legal here: {', '.join(heads)}")
    done = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}
    hub.refuse(config, done | {"tie_word_embeddings": True})
    whole = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "type_vocab_size": 2} | dict(config)
    return BERT(
        head=heads[saved],  # pyright: ignore[reportArgumentType]
        layers=whole["num_hidden_layers"],
        heads=whole["num_attention_heads"],
        width=whole["hidden_size"],
        hidden=whole["intermediate_size"],
        activation=hub.activation(whole, "hidden_act"),  # pyright: ignore[reportArgumentType]
        dropout=whole.get("hidden_dropout_prob", 0.1),
        attention_dropout=whole.get("attention_probs_dropout_prob", 0.1),
        head_dropout=whole.get("classifier_dropout"),
        epsilon=whole["layer_norm_eps"],
        padding=whole.get("pad_token_id") or 0,
        types=whole["type_vocab_size"],
        vocabulary=whole["vocab_size"],
        positions=whole["max_position_embeddings"],
    )
