"""The works: what is trained, how long a round is, and the file from which every peer starts."""

import json
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from functrain import config as configs
from functrain import tree
from functrain.building import build
from functrain.built import Built, first_state
from functrain.data.feed import as_is
from functrain.experiment import Experiment

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Work:
    """A config, raced.

    steps: in a round, some seconds of functrain's time; a multiple of `checked`.
    checked: after how many the losses are compared.
    """

    name: str
    steps: int
    checked: int = 32

    @property
    def config(self) -> Path:
        """The shipped config."""
        return ROOT / "configs" / f"bench_{self.name.replace('-', '_')}.toml"


WORKS = {
    work.name: work
    for work in (
        Work("mlp", 6144),
        Work("mlp-large", 160),
        Work("lenet", 256),
        Work("gpt", 32, checked=16),
        Work("lstm", 64),
        Work("resnet20", 16, checked=16),
    )
}
MOST_ROWS = 1024
"""Of the order that a peer is given; it then begins again. What a step does is the same."""


def export(work: Work, path: Path) -> None:
    """Write the work's data, first parameters and order, as functrain's own run of the config has them."""
    built = build(configs.parse(Experiment, configs.read(work.config)))
    start, dataset = first_state(built), built.dataset
    assert dataset is not None
    found = {"data": dataset.train, "params": start.players["model"].params, "state": start.state}
    arrays = {name: np.asarray(leaf) for name, leaf in tree.by_path(found).items()}
    settings = {
        "config": configs.to_data(built.config),
        "path": str(work.config),
        "checked": work.checked,
        "classes": dataset.classes,
    }
    rows = min(max(work.steps, 2 * work.checked), MOST_ROWS)
    arrays |= {"settings": np.array(json.dumps(settings)), "order": order(built, rows)}
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]


def order(built: Built, steps: int) -> np.ndarray:
    """[steps, batch]: the examples of each step, or where its rows begin in a text, by the feed of the run itself."""
    assert built.dataset is not None
    block, (name, array) = built.dataset.block, next(iter(built.dataset.train.items()))
    feed = built.feeds["train"]
    feed = type(feed)(**{**vars(feed), "arrays": {name: jnp.arange(len(array))}, "prepare": as_is})

    @jax.jit
    def row(step):
        found = next(iter(feed.batch(feed.arrays, step).values()))
        return found[:, 0] if block else found

    return np.stack([row(np.int32(step)) for step in range(steps)])
