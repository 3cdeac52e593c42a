"""Recommendation: what a user takes is told from the items that are there, and evaluated by how it is ranked."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from functrain import losses, tree
from functrain.config import ConfigError, Count, Part, Size, configclass
from functrain.data import SPLITS, Dataset
from functrain.metrics import mean_of, ranking_of
from functrain.models.base import fill
from functrain.tasks.base import OneLoss

_BLOCK = 1 << 22
"""Pairs of a user and an item that are laid out at once on the host."""


@configclass
class Ranked:
    """How users' rankings of items are evaluated.

    The items that a user has in a split shall come first among all items that the user does not have in an earlier one
    (training, then validation, then test). What a user has again, having had it before, is neither relevant nor ranked.
    Users and items that training does not know are left out. A batch for evaluation has x [n], users' numbers, and two
    masks of all items, eight to a byte: `relevant` and `among`, which may be ranked. That is a byte for four items of a
    user: 10,000 users and 27,000 items are 68 megabytes.
    """

    k: Size = 10
    """How many items of a ranking count."""
    sampled: Count = 0
    """Items drawn for each user that the relevant ones are ranked among, none of which the user has anywhere; 0 ranks
    all items. Such metrics do not compare with those of all items (Krichene and Rendle 2020)."""
    most_users: Count = 10_000
    """Users of a split that are evaluated, drawn where there are more; 0 is all."""
    draw_seed: Count = 0
    """Which users and items are drawn for evaluation; the same ones at each."""

    def ranked(self, dataset: Dataset, split: str) -> dict[str, np.ndarray]:
        """The users of a split who have something there: x [n] int32, relevant and among [n, items / 8] uint8.

        >>> x = {"train": [[0, 1], [1, 0]], "validation": [[0, 3], [0, 1]]}
        >>> parts = {split: {"x": np.array(pairs)} for split, pairs in x.items()}
        >>> found = Ranked().ranked(Dataset(**parts, fields=(2, 4)), "validation")
        >>> found["x"].tolist(), [np.unpackbits(found[mask], count=4).tolist() for mask in ("relevant", "among")]
        ([0], [[0, 0, 0, 1], [1, 0, 1, 1]])

        Raises:
          ConfigError: there is nobody.
        """
        items, at = dataset.fields[1], SPLITS.index(split)
        earlier = np.concatenate([_pairs(dataset, name) for name in SPLITS[:at]] or [np.zeros(0, np.int64)])
        own = np.setdiff1d(_pairs(dataset, split), earlier)
        users = np.unique(own // items)
        if not len(users):
            raise ConfigError(f"data: {split}: nobody has a known item there and not before; nothing can be ranked")
        rng = np.random.default_rng([self.draw_seed, at])
        if 0 < self.most_users < len(users):
            users = np.sort(rng.choice(users, self.most_users, replace=False))
        taken = np.concatenate([_pairs(dataset, name) for name in SPLITS]) if self.sampled else earlier
        taken = np.unique(taken)
        relevant, among = [], []
        size = max(1, _BLOCK // items)
        for start in range(0, len(users), size):
            some = users[start : start + size]
            mine, others = _marked(own, some, items), ~_marked(taken, some, items)
            if self.sampled:
                others = _drawn(others, self.sampled, rng)
            relevant.append(np.packbits(mine, axis=1))
            among.append(np.packbits(mine | others, axis=1))
        return {"x": users.astype(np.int32), "relevant": np.concatenate(relevant), "among": np.concatenate(among)}

    def ranking(self, train_state: Any, batch: Any) -> dict[str, Any]:
        """The metrics of `functrain.metrics.ranking_of` for a batch of `ranked`."""
        scores = self.scores_of(train_state, batch["x"])
        relevant, among = (
            jnp.unpackbits(batch[name], axis=-1, count=scores.shape[-1]).astype(bool) for name in ("relevant", "among")
        )
        return ranking_of(scores, relevant, k=self.k, among=among, mask=batch.get("mask"))

    def scores_of(self, train_state: Any, users: jax.Array) -> jax.Array:
        """Users [n] -> the scores of all items [n, items], by the weights that evaluation uses."""
        raise TypeError(f"{type(self).__name__} has no scores")

    def recommend(
        self, train_state: Any, users: Any, k: int = 10, exclude: Any = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k items with the highest scores for each user, highest first, and those scores.

            model = functrain.load("runs/films")
            items, scores = model.task.recommend(model.train_state, [3, 7], k=5)

        Args:
          users: [n] numbers; one below 0 is a user of whom nothing is known.
          exclude: [n, items], true for items that are not wanted, as those that a user has; their score is -inf.

        Returns:
          items [n, k] int32, scores [n, k].

        Raises:
          ValueError: k is no number of items, or `exclude` has another shape.
        """
        scores = self.scores_of(train_state, jnp.asarray(users, jnp.int32))
        if not 1 <= k <= scores.shape[1]:
            raise ValueError(f"k: found {k}; expected 1 to {scores.shape[1]}, the number of items")
        if exclude is not None:
            exclude = np.asarray(exclude, bool)
            if exclude.shape != scores.shape:
                raise ValueError(f"exclude: found shape {exclude.shape}; expected {scores.shape}, users and items")
            scores = jnp.where(exclude, -jnp.inf, scores)
        found, items = jax.lax.top_k(scores, k)
        return np.asarray(items), np.asarray(found)


@configclass
class Recommendation(Ranked, OneLoss):
    """Items for users, learned from what they took: each with `negatives` other items, drawn anew at each step.

    Every row (user, item) of the training part is something taken, whatever its y. With s the model's score:

        criterion        loss of a row, of the item i that was taken and the items j that were drawn
        cross_entropy    the mean of -log sigmoid(s_i) and all -log(1 - sigmoid(s_j))   (He et al. 2017, eq. 7)
        bpr              the mean over j of -log sigmoid(s_i - s_j)                     (Rendle et al. 2009, eq. 4)
        softmax          -log(exp s_i / (exp s_i + sum_j exp s_j)): a sampled softmax

    Items are drawn evenly from those that training has, without i; one that the user took elsewhere may be among them.
    bpr's regularisation is the optimizer's. The draw of a step is in its batch, whose x is then [n, 1 + negatives, 2],
    so that accumulated gradients are those of the whole. In training the metrics are the loss and `pair_accuracy`, the
    share of pairs (i, j) in the right order; evaluation has the metrics of the ranking alone, such as ndcg_at_10: name
    one as evaluate.monitor, with mode = "max".
    """

    kind: Literal["recommendation"] = "recommendation"
    criterion: Literal["cross_entropy", "bpr", "softmax"] = "cross_entropy"
    """The loss."""
    negatives: Size = 4
    """Items drawn for each that was taken."""
    drawn_from: Count = 0
    """Items are drawn from those with numbers below this; taken from the data: up to the last that training has."""
    model: Part = None
    learner: Part = None

    def outputs(self, dataset: Dataset) -> int:
        """One score."""
        return 1

    def sized(self, dataset: Dataset) -> "Recommendation":
        """The config with the items that can be drawn."""
        check_pairs(dataset, self.kind)
        items = int(dataset.train["x"][:, 1].max()) + 1
        if items < 2:
            raise ConfigError(f"data: train has {items} item; task.kind = {self.kind!r} draws others: 2 at least")
        return dataclasses.replace(self, drawn_from=fill("task.drawn_from", self.drawn_from, items))

    def assemble(self, model: Any, learner: Any) -> "Recommendation":
        """The task with its model and learner."""
        if not hasattr(model, "scores"):
            raise ConfigError(
                f"model.kind: task.kind = {self.kind} needs a model that scores items (matrix_factorisation, ncf)"
            )
        return super().assemble(model, learner)

    def examples(self, dataset: Dataset, split: str) -> dict[str, np.ndarray]:
        """The users of a split (see `Ranked`)."""
        return self.ranked(dataset, split)

    def update(self, train_state: Any, batch: Any, *, key: jax.Array) -> tuple[Any, dict[str, Any]]:
        """One step of the learner, with the items that are drawn in the batch."""
        draw_key, key = jax.random.split(key)
        return super().update(train_state, batch | {"x": self.with_others(batch["x"], draw_key)}, key=key)

    def with_others(self, x: jax.Array, key: jax.Array) -> jax.Array:
        """x [n, 2], user and item -> [n, 1 + negatives, 2]: the pair itself first, then the user with other items.

        >>> task = Recommendation(negatives=3, drawn_from=2)
        >>> task.with_others(jnp.array([[5, 0]]), jax.random.key(0)).tolist()
        [[[5, 0], [5, 1], [5, 1], [5, 1]]]
        """
        x = jnp.asarray(x, jnp.int32)
        user, item = x[:, :1], x[:, 1:]
        further = jax.random.randint(key, (len(x), self.negatives), 1, self.drawn_from)
        items = jnp.concatenate([item, (item + further) % self.drawn_from], -1)
        return jnp.stack([jnp.broadcast_to(user, items.shape), items], -1)

    def loss(self, outputs: jax.Array, batch: Any, *, train: bool) -> tuple[Any, dict[str, Any]]:
        """The loss of scores [n, 1 + negatives, 1], the item that was taken first."""
        scores, mask = outputs[..., 0], batch.get("mask")
        over = losses.weighted(mask, batch.get("weight"))
        ahead = scores[:, :1] - scores[:, 1:]
        metrics = {"pair_accuracy": mean_of(ahead > 0, mask)}
        if self.criterion == "bpr":
            return mean_of(jax.nn.softplus(-ahead), over), metrics
        if self.criterion == "softmax":
            return losses.cross_entropy(scores, jnp.zeros(len(scores), jnp.int32), mask=over), metrics
        taken = jnp.zeros_like(scores).at[:, 0].set(1)
        return losses.binary_cross_entropy(scores, taken, mask=over), metrics

    def evaluate(self, train_state: Any, batch: Any, *, key: jax.Array) -> dict[str, Any]:
        """The metrics of the users' rankings."""
        return self.ranking(train_state, batch)

    def scores_of(self, train_state: Any, users: jax.Array) -> jax.Array:
        """Users [n] -> the scores of all items [n, items], by the weights that evaluation uses."""

        def scores(params, state, batch, *, key):
            return self.model.scores(params, state, batch["x"])

        weights = self.learner.weights(train_state.players["model"])
        return tree.wide(self.learner.precision(scores)(weights, train_state.state, {"x": users}, key=None))

    def outputs_of(self, train_state: Any, x: Any) -> jax.Array:
        """Users and items x [n, 2] -> scores [n, 1]."""
        return super().outputs_of(train_state, jnp.asarray(x, jnp.int32))

    def predict(self, outputs: Any) -> dict[str, Any]:
        """`score` [n]: of users and items; how high a user's items stand, and no probability."""
        return {"score": outputs[..., 0]}


def check_pairs(dataset: Dataset, kind: str) -> None:
    """Raises a ConfigError where the data are no users and items, or training has one without a number."""
    if len(dataset.fields) != 2 or 0 in dataset.fields or dataset.inputs != (2,):
        raise ConfigError(f'data: task.kind = {kind!r} needs users and items, x [n, 2], as data.kind = "ratings" gives')
    x = dataset.train["x"]
    wrong = np.flatnonzero(((x < 0) | (x >= np.array(dataset.fields))).any(1))
    if len(wrong):
        users, items = dataset.fields
        raise ConfigError(
            f"data: train x[{wrong[0]}]: found {x[wrong[0]].tolist()}; expected a user below {users} and an item below "
            f"{items}, from 0"
        )


def _pairs(dataset: Dataset, split: str) -> np.ndarray:
    """The different pairs of known users and items of a split in order, each as user * items + item."""
    if "x" not in dataset.split(split):
        return np.zeros(0, np.int64)
    x = dataset.split(split)["x"].astype(np.int64)
    x = x[(x >= 0).all(1)]
    return np.unique(x[:, 0] * dataset.fields[1] + x[:, 1])


def _marked(pairs: np.ndarray, users: np.ndarray, items: int) -> np.ndarray:
    """[users, items], true where the pair is there; pairs and users in order."""
    low, high = np.searchsorted(pairs, [users[0] * items, (users[-1] + 1) * items])
    user, item = np.divmod(pairs[low:high], items)
    at = np.searchsorted(users, user)
    wanted = users[at] == user
    found = np.zeros((len(users), items), bool)
    found[at[wanted], item[wanted]] = True
    return found


def _drawn(free: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Of the items that are free [users, items], `count` of each row at random, or all where there are fewer."""
    order = np.where(free, rng.random(free.shape, np.float32), np.float32(2))
    first = np.argpartition(order, min(count, free.shape[1]) - 1, axis=1)[:, :count]
    drawn = np.zeros_like(free)
    np.put_along_axis(drawn, first, True, axis=1)
    return drawn & free
