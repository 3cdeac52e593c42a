"""Models of a user and an item, each of which has numbers of its own: matrix factorisation, and NCF.

Both take x [..., 2], a user's and an item's number, and give one score [..., 1]. They have two methods more:

    rows(x)                       -> which rows of which tables they look up (see functrain.models.base)
    scores(params, state, users)  -> [n, items], of every item at once

A user or an item below 0 is one of which nothing is known: its numbers are zeros.
"""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from functrain import tree
from functrain.config import ConfigError, Count, Positive, Size, configclass
from functrain.layers import embedding, linear
from functrain.models.base import M, fitted


@configclass
class MF:
    """Matrix factorisation: mean + user bias + item bias + user . item (Koren, Bell and Volinsky 2009, eq. 4).

    With `content`, numbers that describe the items, an item's factors and its bias have a second part, linear in those:
    sums of what each of its features has, as in LightFM (Kula 2015, section 3), here beside the item's own numbers.
    Those then start at zero, so that an item that training never saw has what its content says and nothing else. The
    descriptions [items, content] are constants in the state, which the data puts there.

    >>> model = MF(fields=(5, 4), features=3)
    >>> params, state = model.init(jax.random.key(0))
    >>> score, _ = model.apply(params, state, jnp.array([[4, 0], [-1, 3]]))
    >>> score.shape, model.scores(params, state, jnp.array([4, -1])).shape
    ((2, 1), (2, 4))
    """

    kind: Literal["matrix_factorisation"] = "matrix_factorisation"
    features: Size = 32
    """Factors of each user and each item."""
    biases: bool = True
    """Whether users and items have a bias, beside their factors."""
    mean: float | None = None
    """The score of whom and what nothing is known of; taken from the data: the mean of the ratings, 0 for a ranking."""
    deviation: Positive = 0.1
    """Standard deviation of the factors at the start."""
    content: Count = 0
    """How many numbers describe an item; taken from the data."""
    fields: tuple[Count, ...] = ()
    """How many users and how many items there are; taken from the data."""
    inputs: tuple[Size, ...] = ()
    """Shape of one example, a user and an item: [2]; taken from the data."""
    outputs: Count = 0
    """Number of outputs, one; taken from the task."""

    def sized(self, inputs: tuple[int, ...], outputs: int) -> "MF":
        """The model, if the data is of users and items and the task wants one number."""
        return _sized(self, inputs, outputs)

    def build(self) -> "MF":
        """The config is the model."""
        return self

    def init(self, key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
        """`({"users": {"table"}, "items": {"table"}, "user_bias": {"table"}, ..., "content": {"kernel"}}, state)`.

        The state is `{"content": zeros [items, content]}`, or {} without content. Biases start at zero.
        """
        users, items = self.fields
        keys = jax.random.split(key, 3)
        params = {
            "users": _table(keys[0], users, self.features, self.deviation),
            "items": _table(keys[1], items, self.features, 0.0 if self.content else self.deviation),
        }
        if self.biases:
            params |= {"user_bias": {"table": jnp.zeros((users, 1))}, "item_bias": {"table": jnp.zeros((items, 1))}}
        if not self.content:
            return params, {}
        kernel = _table(keys[2], self.content, self.features, self.deviation)["table"]
        params["content"] = {"kernel": jnp.pad(kernel, ((0, 0), (0, int(self.biases))))}
        return params, {"content": jnp.zeros((items, self.content))}

    def rows(self, x: jax.Array) -> dict[str, jax.Array]:
        """x [..., 2] -> {"users/table": [...], "items/table": [...], and with biases those of their tables}."""
        return self._rows("user", x[..., 0]) | self._rows("item", x[..., 1])

    def apply(self, params, state, x, *, rows=None, key=None, train=False):
        """x [..., 2], user and item -> (scores [..., 1] in at least float32, state)."""
        rows = self.rows(x) | (rows or {})
        user, user_bias = self._own(params, rows, "user")
        item, item_bias = self._described(params, state, _ids(x[..., 1]), *self._own(params, rows, "item"))
        score = (user * item).sum(-1, keepdims=True) + user_bias + item_bias
        return score + self._mean(score.dtype), state

    def scores(self, params, state, users):
        """Users [n] -> the scores of all items [n, items], by one product of matrices."""
        items = jnp.arange(self.fields[1])
        user, user_bias = self._own(params, self._rows("user", users), "user")
        item = self._own(params, self._rows("item", items), "item")
        item, item_bias = self._described(params, state, items, *item)
        product = jnp.matmul(user, item.T, precision="highest")
        return product + user_bias + item_bias[:, 0] + self._mean(product.dtype)

    def _rows(self, side, ids):
        tables = (f"{side}s/table", f"{side}_bias/table")
        return dict.fromkeys(tables if self.biases else tables[:1], _ids(ids))

    def _own(self, params, rows, side):
        """The factors [..., features] of one side's rows, and their biases [..., 1]."""
        factors = _looked_up(params, rows, f"{side}s")
        if not self.biases:
            return factors, jnp.zeros((*factors.shape[:-1], 1), factors.dtype)
        return factors, _looked_up(params, rows, f"{side}_bias")

    def _described(self, params, state, ids, factors, bias):
        """An item's factors and bias with what its content adds to them."""
        if not self.content:
            return factors, bias
        with jax.named_scope("content"):
            more = tree.wide(linear.apply(params["content"], embedding.known({"table": state["content"]}, ids)))
        return factors + more[..., : self.features], bias + more[..., self.features :] if self.biases else bias

    def _mean(self, dtype):
        return jnp.asarray(0.0 if self.mean is None else self.mean, dtype)


@configclass
class NCF:
    """Neural collaborative filtering (He et al. 2017): a logit from the numbers of a user and of an item.

    gmf: a weighted sum of their products (eq. 8 and 9). mlp: a tower of linear layers and relu on both, one after the
    other (eq. 10). neumf: both parts, which share the last layer alone (eq. 12). The last layer has a bias too.

    >>> model = NCF(fields=(5, 4), features=2, mlp_features=3, hidden=(6, 2))
    >>> params, state = model.init(jax.random.key(0))
    >>> logit, _ = model.apply(params, state, jnp.array([[4, 0], [-1, 3]]))
    >>> logit.shape, model.scores(params, state, jnp.array([4, -1])).shape
    ((2, 1), (2, 4))
    """

    kind: Literal["ncf"] = "ncf"
    parts: Literal["gmf", "mlp", "neumf"] = "neumf"
    """Products, a tower, or both."""
    features: Size = 32
    """Factors of each user and each item in the products."""
    mlp_features: Size = 32
    """Numbers of each user and each item that the tower reads, other ones than the factors."""
    hidden: tuple[Size, ...] = (64, 32, 16)
    """Width of each layer of the tower."""
    deviation: Positive = 0.01
    """Standard deviation of the tables at the start."""
    fields: tuple[Count, ...] = ()
    """How many users and how many items there are; taken from the data."""
    inputs: tuple[Size, ...] = ()
    """Shape of one example, a user and an item: [2]; taken from the data."""
    outputs: Count = 0
    """Number of outputs, one; taken from the task."""

    def sized(self, inputs: tuple[int, ...], outputs: int) -> "NCF":
        """The model, if the data is of users and items and the task wants one number."""
        return _sized(self, inputs, outputs)

    def build(self) -> "NCF":
        """The config is the model."""
        return self

    @property
    def _widths(self) -> dict[str, int]:
        """The parts there are, and the width of their tables."""
        both = {"gmf": self.features, "mlp": self.mlp_features}
        return both if self.parts == "neumf" else {self.parts: both[self.parts]}

    def init(self, key: jax.Array) -> tuple[dict[str, Any], dict]:
        """`({"gmf": {"users": {"table"}, "items"}, "mlp": {"users", "items", "layer0", ...}, "head"}, {})`."""
        params: dict[str, Any] = {}
        for i, (part, width) in enumerate(self._widths.items()):
            keys = jax.random.split(jax.random.fold_in(key, i))
            params[part] = {
                side: _table(k, n, width, self.deviation) for side, k, n in zip(("users", "items"), keys, self.fields)
            }
        last = {"gmf": self.features, "mlp": 2 * self.mlp_features}
        if "mlp" in params:
            for i, width in enumerate(self.hidden):
                k = jax.random.fold_in(key, 2 + i)
                params["mlp"][f"layer{i}"] = linear.init(k, last["mlp"], width, kernel_init="he_normal")
                last["mlp"] = width
        head_key = jax.random.fold_in(key, 2 + len(self.hidden))
        params["head"] = linear.init(head_key, sum(last[part] for part in self._widths), 1)
        return params, {}

    def rows(self, x: jax.Array) -> dict[str, jax.Array]:
        """x [..., 2] -> {"gmf/users/table": [...], "gmf/items/table": [...], "mlp/users/table": [...], ...}."""
        return self._rows("users", x[..., 0]) | self._rows("items", x[..., 1])

    def apply(self, params, state, x, *, rows=None, key=None, train=False):
        """x [..., 2], user and item -> (logits [..., 1], state)."""
        rows = self.rows(x) | (rows or {})
        return self._logits(params, self._own(params, rows, "users"), self._own(params, rows, "items")), state

    def scores(self, params, state, users):
        """Users [n] -> the logits of all items [n, items], user after user, which bounds the memory."""
        n = self.fields[1]
        item = self._own(params, self._rows("items", jnp.arange(n)), "items")

        def of_user(user):
            every = {part: jnp.broadcast_to(vector, (n, len(vector))) for part, vector in user.items()}
            return self._logits(params, every, item)[:, 0]

        return jax.lax.map(of_user, self._own(params, self._rows("users", users), "users"))

    def _rows(self, side, ids):
        return {f"{part}/{side}/table": _ids(ids) for part in self._widths}

    def _own(self, params, rows, side):
        """By part the numbers [..., width] of one side's rows."""
        found = {}
        for part in self._widths:
            with jax.named_scope(part), jax.named_scope(side):
                found[part] = embedding.known(params[part][side], rows[f"{part}/{side}/table"])
        return found

    def _logits(self, params, user, item):
        parts = []
        if "gmf" in user:
            parts.append(user["gmf"] * item["gmf"])
        if "mlp" in user:
            h = jnp.concatenate([user["mlp"], item["mlp"]], -1)
            for i in range(len(self.hidden)):
                with jax.named_scope("mlp"), jax.named_scope(f"layer{i}"):
                    h = jax.nn.relu(linear.apply(params["mlp"][f"layer{i}"], h))
            parts.append(h)
        with jax.named_scope("head"):
            return linear.apply(params["head"], jnp.concatenate(parts, -1))


def _sized(model: M, inputs: tuple[int, ...], outputs: int) -> M:
    kind, fields = model.kind, model.fields  # pyright: ignore[reportAttributeAccessIssue]
    if tuple(inputs) != (2,):
        raise ConfigError(f"model.kind: {kind!r} reads a user and an item, x [n, 2]; found examples of {list(inputs)}")
    if outputs != 1:
        raise ConfigError(f"model.kind: {kind!r} gives one number; the task wants {outputs}")
    if len(fields) != 2 or min(fields) < 1:
        raise ConfigError(f"model.fields: found {list(fields)}; expected [users, items], each at least 1")
    return fitted(model, inputs, outputs)


def _table(key, count, features, deviation) -> dict[str, jax.Array]:
    return embedding.init(key, count, features, table_init=jax.nn.initializers.normal(deviation))


def _ids(x) -> jax.Array:
    """Integers; inputs for a trained model may come as floats."""
    return jnp.asarray(x, jnp.int32)


def _looked_up(params: Mapping[str, Any], rows: Mapping[str, jax.Array], name: str) -> jax.Array:
    with jax.named_scope(name):
        return tree.wide(embedding.known(params[name], rows[f"{name}/table"]))
