"""Recurrent models of text: an embedding, layers of a cell, and a head at every place or for the whole."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from functrain.config import ConfigError, Count, Fraction, Size, configclass, off
from functrain.layers import dropout, embedding, linear, recurrent
from functrain.models.base import fitted


@configclass
class Recurrent:
    """Recurrent network over tokens: LSTM, GRU or plain; a language model, or with `pool` a classifier of sentences.

    >>> model = Recurrent(inputs=(9,), outputs=2, vocabulary=50, width=8, pool="last", bidirectional=True)
    >>> params, state = model.init(jax.random.key(0))
    >>> model.apply(params, state, jnp.array([[7, 3, 49, 0, 0, 0, 0, 0, 0]]))[0].shape
    (1, 2)
    """

    kind: Literal["recurrent"] = "recurrent"
    cell: recurrent.Cell = "lstm"
    """What a layer computes at each place."""
    layers: Size = 1
    """Layers, each over the outputs of the one before."""
    width: Size = 128
    """Features of a layer's state, in each direction."""
    embedding: Count = 0
    """Features of a token; 0 is the width."""
    bidirectional: bool = False
    """Whether each layer goes over the sequence from its end too; only with a pool."""
    dropout: Fraction = 0.0
    """Share dropped of the embeddings, between layers and before the head; 0 is off."""
    pool: Literal["none", "last", "mean", "max"] = "none"
    """none: outputs at every place (a language model); else one of the whole: the last state, the mean, the largest."""
    tied: bool = False
    """Whether the head is the token embedding; only without a pool, and with embeddings of the width."""
    vocabulary: Count = 0
    """How many tokens there are, or more; 0 is as many as outputs, for a language model. It has a logit for each."""
    inputs: tuple[Size, ...] = ()
    """The shape of one example, (length,), which the model does not depend on; taken from the data."""
    outputs: Count = 0
    """Number of classes, or size of the vocabulary; taken from the data."""

    def sized(self, inputs: tuple[int, ...], outputs: int) -> "Recurrent":
        """The model with its ends fitted to the data."""
        if len(inputs) != 1:
            raise ConfigError(f"model.kind: recurrent takes sequences of tokens; the data has {list(inputs)}")
        return fitted(self, inputs, outputs)

    def build(self) -> "Recurrent":
        """The config is the model."""
        if self.pool == "none" and self.bidirectional:
            raise ConfigError('model.bidirectional: found true; expected false where model.pool = "none"')
        if self.pool != "none" and self.tied:
            raise ConfigError(f'model.tied: found true; expected false where model.pool = "{self.pool}"')
        if self.tied and self._features != self.width:
            raise ConfigError(f"model.tied: found true; needs model.embedding = {self.width}, the width")
        if self.pool != "none" and not self.vocabulary:
            raise ConfigError(f'model.vocabulary: missing; how many tokens there are, where model.pool = "{self.pool}"')
        return self

    @property
    def _features(self):
        return self.embedding or self.width

    @property
    def _shape(self) -> dict[str, Any]:
        return {"cell": self.cell, "layers": self.layers, "bidirectional": self.bidirectional}

    def init(self, key: jax.Array) -> tuple[dict[str, Any], dict]:
        """`({"tokens", "cells", "head"}, {})`: embeddings uniform in +-0.1 (Zaremba et al. 2014), cells as torch's."""
        token_key, cell_key, head_key = jax.random.split(key, 3)

        def uniform(key, shape, dtype):
            return jax.random.uniform(key, shape, dtype, -0.1, 0.1)

        tokens = self.vocabulary or self.outputs
        outputs = tokens if self.pool == "none" else self.outputs
        params = {
            "tokens": embedding.init(token_key, tokens, self._features, table_init=uniform),
            "cells": recurrent.init(cell_key, self._features, self.width, **self._shape),
        }
        if not self.tied:
            params["head"] = linear.init(head_key, self.width * (1 + self.bidirectional), outputs)
        return params, {}

    def apply(self, params, state, x, segments=None, *, key=None, train=False):
        """Tokens [batch, length] -> (outputs [batch, outputs], or [batch, length, outputs] without a pool, state).

        segments: integers [batch, length], 0 for padding; None takes the token 0 for padding where there is a pool, and
          every token for one where there is none. Padding is passed over, on whichever side. A row is one sequence:
          one in which several are packed gives nan.
        state: with that of `remember`, x goes on from what came before.
        """
        keys = [None] * 3 if key is None else jax.random.split(key, 3)
        if segments is None and self.pool != "none":
            segments = x != 0
        lengths, back, packed = None, None, None
        if segments is not None:
            real = segments != 0
            front = jnp.argsort(~real, axis=1, stable=True)  # tokens first, in their order
            x, lengths, back = jnp.take_along_axis(x, front, 1), real.sum(1), jnp.argsort(front, axis=1)
            packed = (real & (segments != segments.max(1, keepdims=True))).any(1)

        h, table = x, params["tokens"]["table"]
        if len(table) >= x.size or (train and not off(self.dropout)):
            with jax.named_scope("tokens"):
                h, table = self._drop(embedding.apply(params["tokens"], x), keys[0], train), None
        given = {"table": table, "lengths": lengths, "initial": state.get("cells"), "dropout": self.dropout}
        with jax.named_scope("cells"):
            h, cells = recurrent.apply(params["cells"], h, cell=self.cell, key=keys[1], train=train, **given)
        if self.pool != "none":
            h = self._pooled(h, cells, lengths)
        elif back is not None:
            h = jnp.take_along_axis(h, back[..., None], 1)
        h = self._drop(h, keys[2], train)
        with jax.named_scope("tokens" if self.tied else "head"):
            outputs = embedding.attend(params["tokens"], h) if self.tied else linear.apply(params["head"], h)
        if packed is not None:
            outputs = jnp.where(packed.reshape(-1, *[1] * (outputs.ndim - 1)), jnp.nan, outputs)
        return outputs, state | {"cells": cells} if "cells" in state else state

    def remember(self, batch: int, length: int, dtype: Any = float) -> dict[str, Any]:
        """The state with which `apply` goes on from what it was given before; of one size, whatever the length."""
        return {"cells": recurrent.init_state(batch, self.width, dtype=dtype, **self._shape)}

    def _drop(self, h, key, train):
        return dropout.apply(h, self.dropout, key=key, train=train)

    def _pooled(self, h, cells, lengths):
        """[batch, features] from h [batch, length, features] or the final state; zeros where there is no token."""
        if self.pool == "last":
            top = cells[f"layer{self.layers - 1}"]
            ends = [top[direction]["h"] for direction in ("forward", "backward") if direction in top]
            return jnp.concatenate(ends, -1).astype(h.dtype)
        if self.pool == "mean":
            total = h.sum(1, dtype=jnp.promote_types(h.dtype, jnp.float32))  # y past the lengths is zero
            return (total / jnp.maximum(lengths, 1)[:, None]).astype(h.dtype)
        real = (jnp.arange(h.shape[1]) < lengths[:, None])[..., None]
        return jnp.where(lengths[:, None] > 0, jnp.where(real, h, -jnp.inf).max(1), 0)
