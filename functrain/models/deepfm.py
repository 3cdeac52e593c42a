"""Models of categories and numbers: logistic regression, factorisation machines, wide and deep, DeepFM.

All read x [batch, columns], of which `fields` says how many categories each column has, 0 for a column of numbers, and
give a bias and a sum of parts:

    linear  sum_c w[c] + sum_j u_j x_j         over the row's categories c and its numbers j
    pairs   sum_{c < d} <v[c], v[d]>           the factorisation machine's, of the categories' vectors
    deep    hidden layers over [v[c] for each c, x_j for each j], then one without bias

w and v are one table each for all columns: the rows of a column begin after those of the columns before it. A category
below 0 is one that is not known: zeros in every part.
"""

import itertools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from functrain import tree
from functrain.config import LARGEST, ConfigError, Count, Fraction, Positive, Size, configclass
from functrain.layers import activations, dropout, embedding, linear
from functrain.models.base import fitted


def pairwise(v: jax.Array) -> jax.Array:
    """The sum of the inner products of all pairs: vectors [..., n, features] -> [...], in at least float32.

    Rendle 2010, "Factorization Machines", eq. 1, where v holds the vectors times their values, in the form of lemma
    3.1: the sum over features of ((sum v)^2 - sum v^2) / 2, which takes time n and not n^2.

    >>> pairwise(jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])).item()  # 11 + 17 + 39
    67.0
    """
    v = tree.wide(v)
    return 0.5 * (v.sum(-2) ** 2 - (v**2).sum(-2)).sum(-1)


@configclass
class _Linear:
    """What the family shares: the linear part, and the rows of the tables."""

    fields: tuple[Count, ...] = ()
    """How many categories each column has, 0 for a column of numbers; taken from the data."""
    inputs: tuple[Size, ...] = ()
    """Shape of one example, (columns,); taken from the data."""
    outputs: Count = 0
    """Number of outputs; taken from the data (the classes, or the targets' width)."""

    tables = ("weight",)  # what holds a row for each category
    pairs = False  # whether the pairs are a part, for which there is one output
    embed_numbers = False

    def sized(self, inputs: tuple[int, ...], outputs: int) -> Any:
        """The model with its ends fitted to the data."""
        if len(inputs) != 1:
            raise ConfigError(f"model.kind: {self._kind} takes rows of a table; the data has {list(inputs)}")
        return fitted(self, inputs, outputs)

    def build(self) -> Any:
        """The config is the model."""
        if not self.fields or self.inputs != (len(self.fields),):
            raise ConfigError(f"model.fields: found {len(self.fields)}; expected one a column, inputs {self.inputs}")
        if sum(self.fields) >= LARGEST:
            raise ConfigError(f"model.fields: found {sum(self.fields)} categories; expected below {LARGEST}")
        if self.pairs and self.outputs != 1:
            raise ConfigError(f"model.kind: {self._kind} has one output; the data wants {self.outputs}")
        if self.pairs and (n := len(self.fields if self.embed_numbers else self._categories)) < 2:
            raise ConfigError(
                f"model.kind: {self._kind} pairs columns of categories; found {n}; expected 2, or numbers too by "
                "embed_numbers = true"
            )
        return self

    @property
    def _kind(self) -> str:
        return self.kind  # pyright: ignore[reportAttributeAccessIssue] - every kind of the family has one

    @property
    def _categories(self) -> np.ndarray:
        """The columns of categories."""
        return np.flatnonzero(self.fields)

    @property
    def _numbers(self) -> np.ndarray:
        """The columns of numbers."""
        return np.flatnonzero(np.array(self.fields) == 0)

    def init(self, key: jax.Array) -> tuple[dict[str, Any], dict]:
        """`({"bias": [outputs], "weight": {"table": [rows, outputs]}, "numbers": {"kernel"}}, {})`, all zeros."""
        params: dict[str, Any] = {"bias": jnp.zeros(self.outputs)}
        if len(self._categories):
            params["weight"] = embedding.init(key, sum(self.fields), self.outputs, table_init="zeros")
        if len(self._numbers):
            params["numbers"] = linear.init(key, len(self._numbers), self.outputs, bias=False, kernel_init="zeros")
        return params, {}

    def rows(self, x: jax.Array) -> dict[str, jax.Array]:
        """The tables' rows that x looks up: integers [batch, columns of categories] by the table's path.

        -1 is a category that is not known. A number beyond its column's categories gives a row beyond the table, so
        nan, and never another column's row.

        Raises:
          ConfigError: x has 16 bits, which do not tell so many categories apart.
        """
        columns, total = self._categories, sum(self.fields)
        if not len(columns):
            return {}
        sizes = np.array(self.fields)[columns]
        if jnp.issubdtype(x.dtype, jnp.floating) and sizes.max() - 1 > 2 ** (jnp.finfo(x.dtype).nmant + 1):
            raise ConfigError(
                f"precision.kind: {x.dtype} does not tell {sizes.max()} categories of a column apart; "
                'expected "float32"'
            )
        x, starts = x[:, columns], (np.cumsum(sizes) - sizes).astype(np.int32)
        ids = x.astype(jnp.int32)  # sums and bounds are exact in whole numbers alone
        rows = jnp.where((x >= 0) & (ids < sizes), ids + starts, jnp.where(x < 0, -1, total))
        return {f"{table}/table": rows for table in self.tables}

    def apply(self, params, state, x, *, rows=None, key=None, train=False):
        """x [batch, columns] -> ([batch, outputs], state), in at least float32; rows: see `functrain.models.base`."""
        rows = self.rows(x) | (rows or {})
        numbers = x[:, self._numbers]
        y = tree.wide(params["bias"])
        if "weight" in params:
            with jax.named_scope("weight"):
                y = y + tree.wide(embedding.known(params["weight"], rows["weight/table"])).sum(1)
        if "numbers" in params:
            with jax.named_scope("numbers"):
                y = y + tree.wide(linear.apply(params["numbers"], numbers))
        return y + self._more(params, rows, numbers, key=key, train=train), state

    def _more(self, params, rows, numbers, *, key, train) -> Any:
        """The parts beside the linear one [batch, outputs]."""
        return 0.0


@configclass
class LogisticRegression(_Linear):
    """The linear part alone: logistic regression on categories and numbers; where the task wants numbers, linear.

    >>> model = LogisticRegression(fields=(3, 0), inputs=(2,), outputs=1).build()
    >>> params = {"bias": jnp.array([9.0]), "weight": {"table": jnp.array([[1.0], [2.0], [3.0]])}}
    >>> params["numbers"] = {"kernel": jnp.array([[10.0]])}
    >>> model.apply(params, {}, jnp.array([[2, 0.5], [-1, 0.5]]))[0].tolist()
    [[17.0], [14.0]]
    """

    kind: Literal["logistic_regression"] = "logistic_regression"


@configclass
class _Embedded(_Linear):
    """The linear part, and a vector for each category."""

    features: Size = 8
    """Numbers in a category's vector."""
    embedding_std: Positive = 0.01
    """Standard deviation of the vectors before training."""

    tables = ("weight", "embedding")

    def init(self, key: jax.Array) -> tuple[dict[str, Any], dict]:
        """Those of the linear part, and `"embedding": {"table": [rows, features]}`, normal; so for embedded numbers."""
        params, state = super().init(key)
        normal = jax.nn.initializers.normal(self.embedding_std)
        counts = {"embedding": sum(self.fields), "number_embedding": len(self._numbers) * self.embed_numbers}
        for i, (name, count) in enumerate(counts.items()):
            if count:
                params[name] = embedding.init(jax.random.fold_in(key, i), count, self.features, table_init=normal)
        return params, state

    def _vectors(self, params, rows, numbers):
        """[batch, n, features]: the vector of each category, then of each number, times it, where those have one."""
        vectors = [jnp.zeros((len(numbers), 0, self.features), params["bias"].dtype)]
        if "embedding" in params:
            with jax.named_scope("embedding"):
                vectors.append(embedding.known(params["embedding"], rows["embedding/table"]))
        if "number_embedding" in params:
            table = params["number_embedding"]["table"]
            with jax.named_scope("number_embedding"):
                vectors.append(numbers[..., None].astype(table.dtype) * table)
        return jnp.concatenate(vectors, 1)


@configclass
class FactorizationMachine(_Embedded):
    """Linear and pairs: the factorisation machine of Rendle 2010 (degree 2).

    >>> model = FactorizationMachine(fields=(3, 4, 0), inputs=(3,), outputs=1, features=2).build()
    >>> params, state = model.init(jax.random.key(0))
    >>> model.apply(params, state, jnp.array([[2, 0, 0.5]]))[0].shape
    (1, 1)
    """

    kind: Literal["fm"] = "fm"
    embed_numbers: bool = False
    """Whether each number has a vector too, which times the number joins the pairs, as in Rendle's eq. 1."""

    pairs = True

    def _more(self, params, rows, numbers, *, key, train):
        return pairwise(self._vectors(params, rows, numbers))[:, None]


@configclass
class _Deep(_Embedded):
    """The linear part, vectors, and hidden layers over them."""

    hidden: tuple[Size, ...] = (256, 128)
    """Width of each hidden layer."""
    activation: activations.Name = "relu"
    """Nonlinearity after each hidden layer."""
    dropout: Fraction = 0.0
    """Share of hidden units dropped in training; 0 is off."""

    def init(self, key: jax.Array) -> tuple[dict[str, Any], dict]:
        """Beside the others `"layer0": {"kernel", "bias"}, ...`; the last layer has no bias, which is there already."""
        params, state = super().init(key)
        embedded = len(self.fields) if self.embed_numbers else len(self._categories)
        width = embedded * self.features + (0 if self.embed_numbers else len(self._numbers))
        for i, (n, m) in enumerate(itertools.pairwise((width, *self.hidden, self.outputs))):
            last = i == len(self.hidden)
            params[f"layer{i}"] = linear.init(jax.random.fold_in(key, 2 + i), n, m, bias=not last)
        return params, state

    def _more(self, params, rows, numbers, *, key, train):
        vectors = self._vectors(params, rows, numbers)
        x = vectors.reshape(len(numbers), -1)
        if not self.embed_numbers:
            x = jnp.concatenate([x, numbers.astype(x.dtype)], 1)
        for i in range(len(self.hidden)):
            with jax.named_scope(f"layer{i}"):
                x = activations.by_name(self.activation)(linear.apply(params[f"layer{i}"], x))
                x = dropout.apply(x, self.dropout, train=train, key=None if key is None else jax.random.fold_in(key, i))
        name = f"layer{len(self.hidden)}"
        with jax.named_scope(name):
            deep = tree.wide(linear.apply(params[name], x))
        return deep + pairwise(vectors)[:, None] if self.pairs else deep


@configclass
class WideDeep(_Deep):
    """Linear and deep: the wide and deep network of Cheng et al. 2016; crosses are columns of the data, if any.

    >>> model = WideDeep(fields=(3, 4, 0), inputs=(3,), outputs=1, features=2, hidden=(5,)).build()
    >>> params, state = model.init(jax.random.key(0))
    >>> model.apply(params, state, jnp.array([[2, 0, 0.5]]))[0].shape, params["layer0"]["kernel"].shape
    ((1, 1), (5, 5))
    """

    kind: Literal["wide_deep"] = "wide_deep"


@configclass
class DeepFM(_Deep):
    """Linear, pairs and deep, over the same vectors: the network of Guo et al. 2017, eq. 1.

    >>> model = DeepFM(fields=(3, 4, 0), inputs=(3,), outputs=1, features=2, hidden=(5,)).build()
    >>> params, state = model.init(jax.random.key(0))
    >>> {path: rows.tolist() for path, rows in model.rows(jnp.array([[2, 0, 0.5], [-1, 3, 0.5]])).items()}
    {'weight/table': [[2, 3], [-1, 6]], 'embedding/table': [[2, 3], [-1, 6]]}
    >>> model.apply(params, state, jnp.array([[2, 0, 0.5]]))[0].shape
    (1, 1)
    """

    kind: Literal["deepfm"] = "deepfm"
    embed_numbers: bool = False
    """Whether each number has a vector too, which times the number joins the pairs, and is what the deep part reads."""

    pairs = True
