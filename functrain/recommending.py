"""functrain recommend: the items that a trained model ranks highest for a user."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from functrain.config import ConfigError
from functrain.data import SPLITS, Ratings
from functrain.data.base import reader
from functrain.data.cells import short_list
from functrain.data.rating_files import read_items
from functrain.trained import Trained


def recommend(model: Trained, users: Sequence[str], k: int = 10, again: bool = False) -> Iterator[dict[str, Any]]:
    """For each user, by id, the k items with the highest scores: {"user", "items": [{"item", "title", "score"}, ...]}.

    Items that the user has in the data, in any split, are left out, unless `again`; then the data is not read. A title
    is there where the source has `items_path`.

    Raises:
      ConfigError: the run is of no users and items, does not know a user, or its data is gone.
    """
    source = reader(model.config.data)
    if not isinstance(source, Ratings):
        raise ConfigError('data.kind: recommend needs a run of users and items, data.kind = "ratings"')
    numbers = {user: i for i, user in enumerate(source.users)}
    for user in users:
        if user not in numbers:
            raise ConfigError(
                f"user {user!r}: training has {len(numbers)} users, not this one; they are: {short_list(numbers)}"
            )
    if not 1 <= k <= len(source.items):
        raise ConfigError(f"--k: found {k}; expected 1 to {len(source.items)}, the number of items")
    pairs = np.zeros((0, 2), np.int32) if again else _pairs(source)
    titles = _titles(source)
    for user in users:
        x = np.stack([np.full(len(source.items), numbers[user]), np.arange(len(source.items))], 1).astype(np.int32)
        scores = np.array(model(x), np.float64)[:, 0]
        scores[pairs[pairs[:, 0] == numbers[user], 1]] = -np.inf
        found = []
        for i in np.argsort(-scores, kind="stable")[:k]:
            if np.isfinite(scores[i]):
                item = source.items[i]
                title = {"title": titles[item]} if item in titles else {}
                found.append({"item": item} | title | {"score": round(float(scores[i]), 6)})
        yield {"user": user, "items": found}


def _pairs(source: Ratings) -> np.ndarray:
    """[n, 2] the users and items of all splits that the run knows."""
    dataset = source.load()
    every = np.concatenate([dataset.split(split)["x"] for split in SPLITS if dataset.split(split)])
    return every[(every >= 0).all(1)]


def _titles(source: Ratings) -> dict[str, str]:
    """Item -> title, where the source has a file that says it."""
    if not source.items_path:
        return {}
    return {cells[source.item]: cells[source.title] for _, cells in read_items(source) if source.title in cells}
