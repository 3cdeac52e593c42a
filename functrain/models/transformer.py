"""The Transformer, an encoder and a decoder (Vaswani et al. 2017), with the mathematics of torch.nn.Transformer."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from functrain.config import ConfigError, Count, Fraction, Size, configclass
from functrain.layers import activations, attention, dropout, embedding, layer_norm, linear, positions
from functrain.layers.initializers import by_name
from functrain.models import context
from functrain.models.base import fitted


@configclass
class Transformer:
    """Encoder and decoder: a sequence from a sequence, post-norm, sinusoidal positions (Vaswani et al. 2017).

    Tokens are integers [batch, length]; 0 is padding, on whichever side. The blocks, and a last norm of each stack, are
    those of torch.nn.Transformer; embeddings times sqrt(width), plus positions, go in (section 3.4). The paper's base
    model has 6 and 6 layers, 8 heads, width 512, hidden 2048, dropout 0.1 and 37,000 tokens.

    >>> model = Transformer(inputs=(7,), outputs=50, encoder_layers=1, decoder_layers=1, heads=2, width=8)
    >>> params, state = jax.eval_shape(model.init, jax.random.key(0))   # or model.init(key): the arrays themselves
    >>> x, y = jnp.array([[5, 6, 7, 3]]), jnp.array([[2, 9, 9]])
    >>> jax.eval_shape(model.apply, params, state, x, y)[0].shape
    (1, 3, 50)
    >>> state = jax.eval_shape(model.encode, params, x)
    >>> sorted(model.remember(state, batch=1, length=3))   # then `decode` goes on from the tokens before
    ['cache', 'memory', 'seen', 'segments']
    """

    kind: Literal["transformer"] = "transformer"
    encoder_layers: Size = 6
    """Blocks of self-attention and feed-forward."""
    decoder_layers: Size = 6
    """Blocks of self-attention, attention to what was encoded, and feed-forward."""
    heads: Size = 8
    """Heads of attention; they divide the width."""
    width: Size = 512
    """Features of a token."""
    hidden: Count = 0
    """Features inside a feed-forward layer; 0 is four times the width."""
    dropout: Fraction = 0.1
    """Share dropped of embeddings, attention weights, inside each feed-forward layer and of each branch; 0 is off."""
    activation: activations.Name = "relu"
    """Nonlinearity of the feed-forward layers."""
    norm_first: bool = False
    """Whether a norm stands before each branch, or after it is added as in the paper."""
    positions: Literal["sinusoidal", "learned"] = "sinusoidal"
    """Sinusoidal ones are for any length; a learned table of each side has `longest` rows."""
    longest: Count = 0
    """Positions of a learned table; 0 is the longest sequence of the training inputs."""
    tied: Literal["none", "output", "all"] = "all"
    """Which tables are one: the decoder's embedding and the output; the encoder's embedding too; or none."""
    source_vocabulary: Count = 0
    """Size of the encoder's vocabulary; 0 is that of the outputs, one vocabulary for both."""
    inputs: tuple[Size, ...] = ()
    """The longest sequence that is encoded in training, (length,); taken from the data."""
    outputs: Count = 0
    """Size of the decoder's vocabulary; taken from the data."""

    def sized(self, inputs: tuple[int, ...], outputs: int) -> "Transformer":
        """The model with its ends fitted to the data."""
        if len(inputs) != 1:
            raise ConfigError(f"model.kind: transformer takes sequences of tokens; the data has {list(inputs)}")
        return fitted(self, inputs, outputs)

    def build(self) -> "Transformer":
        """The config is the model."""
        if self.width % self.heads:
            raise ConfigError(f"model.heads: found {self.heads}; it does not divide model.width = {self.width}")
        if self.tied == "all" and self.source_vocabulary not in (0, self.outputs):
            raise ConfigError(
                f'model.tied: found "all" with model.source_vocabulary = {self.source_vocabulary}, and '
                f'{self.outputs} outputs; expected one vocabulary, or "output"'
            )
        return self

    @property
    def room(self) -> int | None:
        """How many tokens a sequence may have; None is any number."""
        return None if self.positions == "sinusoidal" else self.longest or self.inputs[0]

    def init(self, key: jax.Array) -> tuple[dict[str, Any], dict]:
        """`({"encoder", "decoder", "target", and where it has them "source", "head", "positions"}, {})`.

        Kernels by Glorot, uniform, those of queries, keys and values as one of [width, 3 width] (as in torch);
        tables normal with deviation 1 / sqrt(width), so that embeddings start at about 1; biases zero.
        """
        keys = iter(jax.random.split(key, 4 * self.encoder_layers + 6 * self.decoder_layers + 5))
        width, hidden = self.width, self.hidden or 4 * self.width

        def affine(n, m):
            return linear.init(next(keys), n, m, kernel_init="glorot_uniform")

        def table(rows):
            return {"table": jax.random.normal(next(keys), (rows, width), float) / math.sqrt(width)}

        def block(*attentions):
            """A norm for each branch, in the order of the branches."""
            made: dict[str, Any] = {
                name: {"qkv": affine(width, 3 * width), "out": affine(width, width)} for name in attentions
            }
            made["feed_forward"] = {"up": affine(width, hidden), "down": affine(hidden, width)}
            return made | {f"norm{i + 1}": layer_norm.init(None, width) for i in range(len(attentions) + 1)}

        def stack(layers, *attentions):
            made = {f"block{i}": block(*attentions) for i in range(layers)}
            return made | {"norm": layer_norm.init(None, width)}

        params: dict[str, Any] = {
            "encoder": stack(self.encoder_layers, "attention"),
            "decoder": stack(self.decoder_layers, "attention", "cross"),
            "target": table(self.outputs),
        }
        if self.tied != "all":
            params["source"] = table(self.source_vocabulary or self.outputs)
        if self.tied == "none":
            params["head"] = {"kernel": by_name("glorot_uniform")(next(keys), (width, self.outputs), float)}
        if self.room is not None:
            params["positions"] = {"source": table(self.room), "target": table(self.room)}
        return params, {}

    def apply(self, params, state, x, y, *, key=None, train=False):
        """Tokens x [batch, n], y [batch, m] -> (logits of what follows each of y [batch, m, outputs], state)."""
        keys = (None, None) if key is None else jax.random.split(key)
        encoded = self.encode(params, x, key=keys[0], train=train)
        return self.decode(params, encoded, y, key=keys[1], train=train)[0], state

    def encode(self, params, x, *, key=None, train=False) -> dict[str, Any]:
        """Tokens x [batch, n] -> the state that `decode` takes, whose arrays all lead with the batch.

        `{"memory": {"block0": {"key", "value"}, ...}, "seen"}`: what each block of the decoder attends to, computed
        once, [batch, n, heads, width / heads], and which of it is no padding, [batch, 1, 1, n].
        """
        drawn = self._keys(key, 4 * self.encoder_layers + 1)
        at, mask, _ = context.place(x, _segments(x), {})
        table = "target" if self.tied == "all" else "source"
        h = self._drop(self._embed(params, table, "source", x, at, x.shape[1]), drawn, train)
        for name in (f"block{i}" for i in range(self.encoder_layers)):
            block = params["encoder"][name]
            with jax.named_scope("encoder"), jax.named_scope(name):
                y = self._before(block["norm1"], h)
                with jax.named_scope("attention"):
                    q, k, v = self._heads(block["attention"], y, 0, 3)
                    y = self._attend(block["attention"], q, k, v, drawn, train, mask=mask)
                h = self._after(block["norm1"], h, y, drawn, train)
                y = self._feed_forward(block["feed_forward"], self._before(block["norm2"], h), drawn, train)
                h = self._after(block["norm2"], h, y, drawn, train)
        with jax.named_scope("encoder"), jax.named_scope("norm"):
            h = layer_norm.apply(params["encoder"]["norm"], h)
        memory = {}
        for name in (f"block{i}" for i in range(self.decoder_layers)):
            with jax.named_scope("decoder"), jax.named_scope(name), jax.named_scope("cross"):
                k, v = self._heads(params["decoder"][name]["cross"], h, 1, 3)
            memory[name] = {"key": k, "value": v}
        return {"memory": memory, "seen": attention.padding_mask(x)}

    def decode(self, params, state, tokens, *, key=None, train=False):
        """Tokens [batch, m] -> (logits of the token after each [batch, m, outputs], state).

        state: of `encode`; with what `remember` adds, the tokens go on from those before.
        """
        drawn = self._keys(key, 6 * self.decoder_layers + 1)
        at, mask, state = context.place(tokens, _segments(tokens), state)
        cache = dict(state.get("cache", {}))
        length = state["segments"].shape[1] if cache else tokens.shape[1]
        h = self._drop(self._embed(params, "target", "target", tokens, at, length), drawn, train)
        for name in (f"block{i}" for i in range(self.decoder_layers)):
            block, memory = params["decoder"][name], state["memory"][name]
            given = {"mask": mask, "causal": True, "cache": cache.get(name)}
            with jax.named_scope("decoder"), jax.named_scope(name):
                y = self._before(block["norm1"], h)
                with jax.named_scope("attention"):
                    q, k, v = self._heads(block["attention"], y, 0, 3)
                    y = self._attend(block["attention"], q, k, v, drawn, train, **given)
                if cache:
                    y, cache[name] = y
                h = self._after(block["norm1"], h, y, drawn, train)
                y = self._before(block["norm2"], h)
                with jax.named_scope("cross"):
                    (q,) = self._heads(block["cross"], y, 0, 1)
                    k, v = memory["key"], memory["value"]
                    y = self._attend(block["cross"], q, k, v, drawn, train, mask=state["seen"])
                h = self._after(block["norm2"], h, y, drawn, train)
                y = self._feed_forward(block["feed_forward"], self._before(block["norm3"], h), drawn, train)
                h = self._after(block["norm3"], h, y, drawn, train)
        with jax.named_scope("decoder"), jax.named_scope("norm"):
            h = layer_norm.apply(params["decoder"]["norm"], h)
        with jax.named_scope("head" if self.tied == "none" else "target"):
            logits = linear.apply(params["head"], h) if self.tied == "none" else embedding.attend(params["target"], h)
        return logits, state | {"cache": cache} if cache else state

    def remember(self, state: dict[str, Any], batch: int, length: int) -> dict[str, Any]:
        """The state of `encode` with room for `length` tokens a row, from which `decode` then goes on."""
        dtype = state["memory"]["block0"]["key"].dtype
        return state | context.remember(self.decoder_layers, batch, length, self.heads, self.width // self.heads, dtype)

    def _keys(self, key, count):
        return iter([None] * count if key is None else jax.random.split(key, count))

    def _drop(self, h, drawn, train):
        return dropout.apply(h, self.dropout, key=next(drawn), train=train)

    def _embed(self, params, table, side, tokens, at, length):
        """Embeddings times sqrt(width), plus the rows `at` of `length` positions of that side."""
        if self.room is not None and length > self.room:
            raise ValueError(f"a sequence of {length}; the model has {self.room} positions (model.longest)")
        with jax.named_scope(table):
            h = embedding.apply(params[table], tokens) * math.sqrt(self.width)
        if self.room is None:
            return h + positions.sinusoidal(length, self.width).astype(h.dtype)[at]
        with jax.named_scope("positions"), jax.named_scope(side):
            return h + params["positions"][side]["table"].astype(h.dtype)[at]

    def _heads(self, params, h, first, end):
        """Queries, keys and values of h, from `first` to before `end`: [batch, n, heads, width / heads] each."""
        columns = slice(first * self.width, end * self.width)
        y = linear.apply({name: leaf[..., columns] for name, leaf in params["qkv"].items()}, h)
        return [part.reshape(*h.shape[:-1], self.heads, -1) for part in jnp.split(y, end - first, -1)]

    def _attend(self, params, q, k, v, drawn, train, cache=None, **given):
        """Attention and its last projection; (y, cache) where a cache is given."""
        given |= {"dropout": self.dropout, "key": next(drawn), "train": train}
        y = attention.attend(q, k, v, cache=cache, **given)
        y, cache = (y, None) if cache is None else y
        y = linear.apply(params["out"], y.reshape(*y.shape[:2], self.width))
        return y if cache is None else (y, cache)

    @jax.named_scope("feed_forward")
    def _feed_forward(self, params, h, drawn, train):
        up = activations.by_name(self.activation)(linear.apply(params["up"], h))
        return linear.apply(params["down"], self._drop(up, drawn, train))

    def _before(self, norm, h):
        """What a branch is given."""
        return layer_norm.apply(norm, h) if self.norm_first else h

    def _after(self, norm, h, y, drawn, train):
        """h with a branch's y added."""
        h = h + self._drop(y, drawn, train)
        return h if self.norm_first else layer_norm.apply(norm, h)


def _segments(tokens):
    """One sequence to a row, 0 where there is padding."""
    return (tokens != 0).astype(jnp.int32)
