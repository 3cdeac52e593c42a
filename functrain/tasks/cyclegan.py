"""Images of one domain to another's and back, learned without pairs (Zhu, Park, Isola, Efros 2017)."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from functrain import tree
from functrain.config import ConfigError, Count, NonNegative, Part, configclass, off
from functrain.metrics import mean_of
from functrain.observe.grid import grid
from functrain.tasks.base import of_player
from functrain.tasks.teacher import Teacher

_SHOWN = 8
"""Images of each domain in a picture."""


@configclass
class CycleTranslation:
    """Two generators, G from domain x to domain `other` and F back, and a discriminator of patches for each domain.

    A batch has x and other, images of the two domains that do not belong together. First the generators learn

        adversarial   (D_other(G(x)) - 1)^2 + (D_x(F(other)) - 1)^2
        cycle         cycle (|F(G(x)) - x| + |G(F(other)) - other|)
        identity      cycle identity (|G(other) - other| + |F(x) - x|)

    (eq. 1 with the squares of section 4, eq. 2, section 5.2), means over pixels and patches; then the discriminators
    ((D(real) - 1)^2 + D(fake)^2) / 2 each, where the fake image comes from the pool of its domain: the generators'
    image, or, once `pool` images are kept, half of the time one of those, whose place it then takes (Shrivastava et al.
    2017, section 2.3). The pool is part of the train state. Fake images are those of the generators before the step.

    Both generators are one player, `generators`, and both discriminators another. With a judge, a classifier of domain
    x, evaluation says how often the class of x survives the round trip F(G(x)), and how often F(other) is taken for the
    class `y_other`. Pixels are in 0..1, where the source must leave them; the players see 2 x - 1.
    """

    kind: Literal["cycle_translation"] = "cycle_translation"
    cycle: NonNegative = 10.0
    """What the way there and back weighs."""
    identity: NonNegative = 0.5
    """What leaving alone an image of the domain itself weighs, beside the cycle; 0 is off."""
    pool: Count = 50
    """Images that each pool keeps; 0 is none."""
    judge: Teacher | None = None
    """A run of a classifier of images of domain x."""
    model: Part = None
    generators_learner: Part = None
    discriminators_learner: Part = None

    in_units = True
    constant = ("judge",)

    def outputs(self, dataset) -> int:
        """As many numbers as an image has."""
        x, other = (dataset.train.get(name) for name in ("x", "other"))
        if x is None or other is None or x.ndim not in (3, 4) or x.shape[1:] != other.shape[1:]:
            raise ConfigError(
                "task.kind: cycle_translation needs images x and other of one shape; the data has "
                + ", ".join(f"{name} {list(a.shape)}" for name, a in dataset.train.items())
            )
        return x[0].size

    def assemble(self, model, learner) -> "CycleTranslation":
        """The task with its networks and learners."""
        if not all(hasattr(model, name) for name in ("generator", "discriminator", "judge_layers")):
            raise ConfigError("model.kind: task.kind = cycle_translation needs networks of two domains (cyclegan)")
        learners = {f"{name}_learner": learner(name) for name in ("generators", "discriminators")}
        return dataclasses.replace(self, model=model, **learners)

    @property
    def learners(self) -> dict[str, Any]:
        """Two players."""
        return {"generators": self.generators_learner, "discriminators": self.discriminators_learner}

    def init(self, key: jax.Array) -> tuple[dict[str, Any], Any]:
        """Parameters by domain; empty pools, and the judge, in the state."""
        keys = jax.random.split(key, 5)
        generator, discriminator = self.model.generator, self.model.discriminator
        players = {
            "generators": {"there": generator.init(keys[0])[0], "back": generator.init(keys[1])[0]},
            "discriminators": {"x": discriminator.init(keys[2])[0], "other": discriminator.init(keys[3])[0]},
        }
        images = jnp.zeros((self.pool, *self.model.inputs))
        state = {"pools": {name: {"images": images, "kept": jnp.int32(0)} for name in ("x", "other")}}
        if self.judge is not None:
            state["judge"] = self.judge.init(keys[4])
        return players, state

    # -- a step -----------------------------------------------------------------------------------

    def update(self, train_state: Any, batch: Any, *, key: jax.Array) -> tuple[Any, dict[str, Any]]:
        """The generators' learner, then the discriminators'."""
        x_key, other_key, generators_key, discriminators_key = jax.random.split(key, 4)
        batch = batch | {name: 2 * batch[name] - 1 for name in ("x", "other")}
        players, state = dict(train_state.players), train_state.state
        there, back = self._translated(players["generators"].params, batch)
        loss = self._generators_loss(players["discriminators"].params)
        players["generators"], _, made = self.generators_learner.update(
            loss, players["generators"], {}, batch, key=generators_key
        )
        pools = dict(state["pools"])
        fake_x, pools["x"] = from_pool(pools["x"], back, key=x_key)
        fake_other, pools["other"] = from_pool(pools["other"], there, key=other_key)
        players["discriminators"], _, judged = self.discriminators_learner.update(
            self._discriminators_loss,
            players["discriminators"],
            {},
            batch | {"fake_x": fake_x, "fake_other": fake_other},
            key=discriminators_key,
        )
        metrics = of_player("generators", made) | of_player("discriminators", judged)
        return train_state.replace(players=players, state=state | {"pools": pools}), metrics

    def _translated(self, params, batch):
        """(G(x), F(other)) in the generators' precision, to be judged."""

        def apply(params, state, batch, *, key):
            return self._generated(params["there"], batch["x"]), self._generated(params["back"], batch["other"])

        found = self.generators_learner.precision(apply)(params, {}, batch, key=None)
        return jax.lax.stop_gradient(jax.tree.map(tree.wide, found))

    def _generated(self, params, x):
        return self.model.generator.apply(params, {}, x, train=True)[0]

    def _scores(self, params, x):
        return tree.wide(self.model.discriminator.apply(params, {}, x, train=True)[0])

    def _generators_loss(self, judges):
        """The loss of the generators against discriminators with these parameters."""

        def score(params, state, batch, *, key):
            return self._scores(params["other"], batch["other"]), self._scores(params["x"], batch["x"])

        def loss(params, state, batch, *, key):
            x, other, mask = batch["x"], batch["other"], batch.get("mask")
            there, back = self._generated(params["there"], x), self._generated(params["back"], other)
            scores = self.discriminators_learner.precision(score)(judges, {}, {"other": there, "x": back}, key=None)
            fooled = [_by_image((s - 1) ** 2) for s in scores]
            means = {"adversarial": mean_of(fooled[0] + fooled[1], mask)}
            if not off(self.cycle):
                again, other_again = self._generated(params["back"], there), self._generated(params["there"], back)
                apart = _apart(again, x) + _apart(other_again, other)
                means["cycle"] = mean_of(apart, mask).times(self.cycle)
                if not off(self.identity):
                    same, other_same = self._generated(params["back"], x), self._generated(params["there"], other)
                    apart = _apart(same, x) + _apart(other_same, other)
                    means["identity"] = mean_of(apart, mask).times(self.cycle * self.identity)
            return means, state, {}

        return loss

    def _discriminators_loss(self, params, state, batch, *, key):
        """Of both domains, over real images and those from the pools."""
        mask, each, metrics = batch.get("mask"), [], {}
        for name in ("x", "other"):
            real, fake = self._scores(params[name], batch[name]), self._scores(params[name], batch[f"fake_{name}"])
            each.append((_by_image((real - 1) ** 2) + _by_image(fake**2)) / 2)
            metrics[f"real_accuracy_{name}"] = mean_of(_by_image(real > 0.5), mask)
            metrics[f"fake_accuracy_{name}"] = mean_of(_by_image(fake <= 0.5), mask)
        return mean_of(each[0] + each[1], mask), state, metrics

    # -- what the trained generators make ---------------------------------------------------------

    def outputs_of(self, train_state: Any, x: Any) -> dict[str, jax.Array]:
        """`there`, images of the other domain from x in 0..1, and `round_trip`, those back again."""
        return self._ways(train_state, x, "there", "back")

    def _ways(self, train_state, x, first, second):

        def apply(params, state, batch, *, key):
            there = self._generated(params[first], batch["x"])
            return there, self._generated(params[second], there)

        weights = self.generators_learner.weights(train_state.players["generators"])
        found = self.generators_learner.precision(apply)(weights, {}, {"x": 2 * x - 1}, key=None)
        return {name: (tree.wide(image) + 1) / 2 for name, image in zip(("there", "round_trip"), found)}

    def predict(self, outputs: Any) -> dict[str, Any]:
        """`there` [n, ...]: images of the other domain."""
        return {"there": outputs["there"]}

    def evaluate(self, train_state: Any, batch: Any, *, key: jax.Array) -> dict[str, Any]:
        """How far the round trips lead astray, in pixels of 0..1; and what the judge says."""
        x, other, mask = batch["x"], batch["other"], batch.get("mask")
        there, back = self._ways(train_state, x, "there", "back"), self._ways(train_state, other, "back", "there")
        metrics: dict[str, Any] = {
            "cycle_error_x": mean_of(_apart(there["round_trip"], x), mask),
            "cycle_error_other": mean_of(_apart(back["round_trip"], other), mask),
        }
        if self.judge is None:
            return metrics
        held = train_state.state["judge"]
        for name, images, labels in (
            ("accuracy", x, "y"),
            ("round_trip_accuracy", there["round_trip"], "y"),
            ("translated_accuracy", back["there"], "y_other"),
        ):
            if labels in batch:
                metrics[name] = mean_of(self.judge.apply(held, images).argmax(-1) == batch[labels], mask)
        return metrics

    # -- pictures ---------------------------------------------------------------------------------

    examples_drawn = _SHOWN

    def drawn(self, train_state: Any, batch: Any) -> dict[str, Any]:
        """There and round trip from both domains."""
        ways = {"x": ("there", "back"), "other": ("back", "there")}
        return {name: {"from": batch[name]} | self._ways(train_state, batch[name], *way) for name, way in ways.items()}

    def draw(self, outputs: Any, batch: Any, folder: Path, names: tuple[str, ...]) -> list[Path]:
        """there.png and back.png: a row of images, of what they become, and of the round trips."""
        paths = []
        for name, file in (("x", "there"), ("other", "back")):
            paths.append(folder / f"{file}.png")
            rows = [outputs[name][part] for part in ("from", "there", "round_trip")]
            grid(np.concatenate(rows), paths[-1], columns=len(rows[0]))
        return paths


def from_pool(pool: dict[str, jax.Array], fake: jax.Array, *, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Images [n, ...] to be judged in place of the generated ones, and the pool after; one image after another.

    While the pool is not full an image is kept, and is what is judged. Then it is either judged itself, or a kept one
    is, and it takes that one's place: with even chances.

    pool: {"images": [size, ...], "kept": how many of them are}; of size 0 the images themselves are judged.
    """
    size = len(pool["images"])
    if not size:
        return fake, pool

    def one(pool, given):
        image, key = given
        coin, which = jax.random.split(key)
        full = pool["kept"] >= size
        at = jnp.where(full, jax.random.randint(which, (), 0, size), pool["kept"])
        swap = full & jax.random.bernoulli(coin)
        old = pool["images"][at]
        new = jnp.where(full & ~swap, old, image.astype(old.dtype))
        pool = {"images": pool["images"].at[at].set(new), "kept": jnp.minimum(pool["kept"] + 1, size)}
        return pool, jnp.where(swap, old, image)

    pool, judged = jax.lax.scan(one, pool, (fake, jax.random.split(key, len(fake))))
    return judged, pool


def _by_image(x):
    """The mean of each image's values."""
    return tree.wide(x).reshape(len(x), -1).mean(-1)


def _apart(a, b):
    """The mean absolute difference of each image."""
    return _by_image(jnp.abs(tree.wide(a) - tree.wide(b)))
