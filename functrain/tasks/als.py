"""Alternating least squares as a task: each step solves for all users, then for all items; nobody descends."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from functrain import als
from functrain.config import ConfigError, Count, Positive, Size, configclass
from functrain.data import Dataset
from functrain.layers import embedding
from functrain.losses import absolute_error, squared_error
from functrain.metrics import Mean, RootMean
from functrain.models.base import fill
from functrain.precision import Float32
from functrain.tasks.recommendation import Ranked, check_pairs

_DEVIATION = 0.1
"""Standard deviation of the factors at the start."""


@configclass
class ALS(Ranked):
    """Factors of users and items by alternating least squares; a step is a sweep over both, in float32.

    Ratings (`implicit` off): mean + user bias + item bias + user . item, the regularised squared error of the ratings
    that there are (Koren, Bell and Volinsky 2009, eq. 4 and 5). A user and an item given twice count twice. Training
    and evaluation have the `loss` (squared error), `rmse` and, in evaluation, `absolute_error`.

    Interactions (`implicit`): for each user and item the preference, 1 where the rating is above 0 and else 0, from
    user . item with confidence 1 + alpha rating (Hu, Koren and Volinsky 2008, eq. 2 and 3), 1 where there is none;
    ratings of one pair add up. The `loss` of a step is their eq. 3 after the sweep, over every user and item and with
    the regularisation: a sum, which never rises. Evaluation has the metrics of the ranking, such as ndcg_at_10.

    The task owns its parameters: no [model], and [optimizer] plays no part. A user or an item that training does not
    know has factors and bias zero.

    >>> task = ALS(features=1, users=2, items=3, mean=3.0)
    >>> params, _ = task.init(jax.random.key(0))
    >>> {name: p.shape for name, p in params["model"].items()}
    {'users': (2, 1), 'items': (3, 1), 'user_bias': (2,), 'item_bias': (3,)}
    """

    kind: Literal["als"] = "als"
    features: Size = 64
    """Factors of each user and each item."""
    implicit: bool = False
    """Whether ratings say how often or how long something was taken, and not how much it was liked."""
    alpha: Positive = 40.0
    """Of interactions: by how much a rating of 1 adds to the confidence."""
    regularisation: Positive = 0.1
    """What the squares of factors and biases weigh."""
    weighted: bool = False
    """Of ratings: whether that is times the number of the user's or item's ratings (Zhou et al. 2008, eq. 3)."""
    users: Count = 0
    """How many users there are; taken from the data."""
    items: Count = 0
    """How many items there are; taken from the data."""
    mean: float = 0.0
    """The mean of the ratings; taken from the data."""

    def __post_init__(self):
        if self.weighted and self.implicit:
            raise ValueError("weighted: is of ratings; implicit is true")

    # -- putting together -------------------------------------------------------------------------

    def sized(self, dataset: Dataset) -> "ALS":
        """The config with how many users and items there are, and the mean of the ratings."""
        check_pairs(dataset, self.kind)
        if "y" not in dataset.train:
            raise ConfigError(f"data: task.kind = {self.kind!r} needs ratings y [n]")
        if self.implicit and (least := dataset.train["y"].min()) < 0:
            raise ConfigError(f"data: train y: found a rating of {least:g}; task.implicit needs 0 or more")
        if self.implicit and not dataset.train["y"].any():
            raise ConfigError("data: train y: found no rating above 0; task.implicit needs some")
        mean = 0.0 if self.implicit else float(dataset.train["y"].mean(dtype=np.float64))
        users, items = dataset.fields
        changes = {"users": users, "items": items, "mean": mean}
        return dataclasses.replace(
            self, **{name: fill(f"task.{name}", getattr(self, name), found) for name, found in changes.items()}
        )

    def outputs(self, dataset: Dataset) -> None:
        """Nothing of a model: the task has its own parameters."""
        return

    def assemble(self, model: Any, learner: Any) -> "ALS":
        """Itself, if nothing else is asked of it."""
        if model is not None:
            raise ConfigError(f"model: task.kind = {self.kind} has its own; leave [model] out")
        if not self.users:
            raise ConfigError(f'data: missing; task.kind = {self.kind} needs users and items (kind = "ratings")')
        unused = learner("model")
        if unused.accumulate > 1:
            raise ConfigError(
                f"train.accumulate: found {unused.accumulate}; task.kind = {self.kind} sweeps over all: 1"
            )
        if not isinstance(unused.precision, Float32):
            found = getattr(unused.precision, "kind", unused.precision)
            raise ConfigError(f'precision.kind: found {found!r}; task.kind = {self.kind} solves in "float32"')
        return self

    def whole(self, dataset: Dataset) -> dict[str, list[als.Bucket]]:
        """The training ratings by users and by items, in buckets."""
        x, y = dataset.train["x"], dataset.train["y"]
        user, item, value = x[:, 0], x[:, 1], y.astype(np.float32)
        if self.implicit:
            user, item, value = _added_up(user, item, value, self.items)
        return {
            "by_user": als.bucketed(user, item, value, (self.users, self.items)),
            "by_item": als.bucketed(item, user, value, (self.items, self.users)),
        }

    def examples(self, dataset: Dataset, split: str) -> dict[str, np.ndarray]:
        """Of ratings those of the split; of interactions its users (see `Ranked`)."""
        if self.implicit:
            return self.ranked(dataset, split)
        return {name: dataset.split(split)[name] for name in ("x", "y")}

    # -- a step -----------------------------------------------------------------------------------

    @property
    def learners(self) -> dict[str, None]:
        """One player, which descends nowhere."""
        return {"model": None}

    def init(self, key: jax.Array) -> tuple[dict[str, Any], dict]:
        """`users` [users, features], `items` [items, features]; of ratings `user_bias` and `item_bias` too, zeros."""
        sizes = {"users": self.users, "items": self.items}
        keys = jax.random.split(key)
        params = {
            name: _DEVIATION * jax.random.normal(k, (n, self.features)) for k, (name, n) in zip(keys, sizes.items())
        }
        if not self.implicit:
            params |= {"user_bias": jnp.zeros(self.users), "item_bias": jnp.zeros(self.items)}
        return {"model": params}, {}

    def update(self, train_state: Any, batch: Any, *, key: jax.Array) -> tuple[Any, dict[str, Any]]:
        """One sweep, and how well its result fits."""
        player = train_state.players["model"]
        if self.implicit:
            batch = {side: [self._confident(bucket) for bucket in buckets] for side, buckets in batch.items()}
            params = als.implicit_sweep(player.params, **batch, regularisation=self.regularisation)
            metrics = {"loss": self._implicit_loss(params, batch["by_user"])}
        else:
            params = als.explicit_sweep(
                player.params,
                **batch,
                mean=self._mean(player.params),
                regularisation=self.regularisation,
                weighted=self.weighted,
            )
            total = self._summed(params, batch["by_user"], lambda score, value: (value - score) ** 2)
            count = sum(bucket.there.sum() for bucket in batch["by_user"])
            metrics = {"loss": Mean(total, count), "rmse": RootMean(total, count)}
        return train_state.replace(players={"model": player.replace(params=params)}), metrics

    def _confident(self, bucket: als.Bucket) -> als.Bucket:
        return bucket._replace(values=1 + self.alpha * bucket.values)

    def _implicit_loss(self, params, by_user) -> Mean:
        """Hu et al. 2008, eq. 3: as if all preferences were 0 with confidence 1, by two small matrices; then entries.

        sum over all u, i of (x_u . y_i)^2 = sum over f, g of (X'X)_fg (Y'Y)_fg.
        """
        grams = [jnp.einsum("nf,ng->fg", x, x, precision="highest") for x in (params["users"], params["items"])]
        entries = self._summed(params, by_user, lambda score, c: c * (1 - score) ** 2 - score**2)
        squares = sum(jnp.trace(gram) for gram in grams)
        total = (grams[0] * grams[1]).sum() + entries + self.regularisation * squares
        return Mean(total, jnp.ones((), total.dtype))

    def _summed(self, params, by_user, each: Callable[[Any, Any], Any]):
        """The sum over the entries of each(score, value), block by block."""

        def block(part):
            user = jnp.minimum(part.rows, self.users - 1)[:, None]  # rows of filling are beyond, and count nowhere
            values = each(self._told(params, user, part.columns), part.values)
            return jnp.where(part.there > 0, values, 0).sum()

        return sum(jax.lax.map(block, als.Bucket(*map(jnp.asarray, bucket))).sum() for bucket in by_user)

    def _told(self, params, user, item):
        """The scores of users and items, integers of shapes that broadcast."""
        score = (_known(params["users"], user) * _known(params["items"], item)).sum(-1)
        if self.implicit:
            return score
        bias = _known(params["user_bias"][:, None], user) + _known(params["item_bias"][:, None], item)
        return score + bias[..., 0] + self._mean(params)

    def _mean(self, params):
        return jnp.asarray(self.mean, params["users"].dtype)

    # -- what a trained one says ------------------------------------------------------------------

    def evaluate(self, train_state: Any, batch: Any, *, key: jax.Array) -> dict[str, Any]:
        """Of ratings the errors of a split's; of interactions the metrics of the users' rankings."""
        if self.implicit:
            return self.ranking(train_state, batch)
        told, y, mask = self.outputs_of(train_state, batch["x"])[:, 0], batch["y"], batch.get("mask")
        squares = squared_error(told, y, mask=mask)
        return {
            "loss": squares,
            "rmse": RootMean(squares.total, squares.count),
            "absolute_error": absolute_error(told, y, mask=mask),
        }

    def scores_of(self, train_state: Any, users: jax.Array) -> jax.Array:
        """Users [n] -> the scores of all items [n, items]."""
        params = train_state.players["model"].params
        scores = jnp.matmul(_known(params["users"], users), params["items"].T, precision="highest")
        if self.implicit:
            return scores
        return scores + _known(params["user_bias"][:, None], users) + params["item_bias"] + self._mean(params)

    def outputs_of(self, train_state: Any, x: Any) -> jax.Array:
        """Users and items x [n, 2] -> scores [n, 1]: of ratings what a rating would be."""
        x = jnp.asarray(x, jnp.int32)
        return self._told(train_state.players["model"].params, x[:, 0], x[:, 1])[:, None]

    def predict(self, outputs: Any) -> dict[str, Any]:
        """`prediction` [n, 1] of ratings, `score` [n] of interactions."""
        return {"score": outputs[:, 0]} if self.implicit else {"prediction": outputs}


def _known(table, ids):
    return embedding.known({"table": table}, ids)


def _added_up(user, item, value, items: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The different pairs that have a value above 0, each with the sum of its values."""
    pairs, which = np.unique(user.astype(np.int64) * items + item, return_inverse=True)
    value = np.bincount(which, value, len(pairs)).astype(np.float32)
    pairs, value = pairs[value > 0], value[value > 0]
    return pairs // items, pairs % items, value
