"""A learner turns a loss into an improvement, as an optimizer turns a gradient into an update:

    init(params)                                   -> Player
    weights(player)                                -> params that evaluation uses
    update(loss, player, state, batch, *, key)     -> (Player, state, metrics)

    loss(params, state, batch, *, key)             -> (Mean or tree of Means, state, metrics)

Accumulation, precision, loss scale, estimator, optimizer, average and the guard against non-finite updates live here,
once, for every task.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from functrain import tree
from functrain.autodiff import Reverse
from functrain.autodiff.remat import remat
from functrain.config import ConfigError
from functrain.metrics import Mean
from functrain.optim import sparse
from functrain.optim.average import NoAverage
from functrain.optim.base import put, take
from functrain.optim.objective import Objective, Scored, objective
from functrain.optim.optimizers import AdamW
from functrain.precision import Float32, LossScale


@struct.dataclass
class Player:
    """Parameters with everything that learns them."""

    params: Any
    optimizer: Any = ()
    average: Any = ()
    scale: LossScale | None = None
    skipped: Any = 0  # updates that were not finite and changed nothing, int32
    history: Any = None  # what the precision policy remembers from step to step (functrain.precision.Float8)


@dataclass(frozen=True, kw_only=True)
class Learner:
    """How one player's parameters are improved.

    >>> learner = Learner(optimizer=AdamW(peak_lr=0.1))
    >>> player = learner.init({"w": jnp.ones((2, 2))})
    >>> def loss(params, state, batch, *, key):
    ...     return Mean(jnp.sum((batch["x"] @ params["w"]) ** 2), jnp.asarray(4.0)), state, {}
    >>> player, state, metrics = learner.update(loss, player, {}, {"x": jnp.ones((2, 2))}, key=jax.random.key(0))
    >>> float(metrics["loss"].value), player.params["w"].round(2).tolist()
    (4.0, [[0.89..., 0.89...], [0.89..., 0.89...]])
    """

    optimizer: Any = field(default_factory=AdamW)
    precision: Any = field(default_factory=Float32)
    estimator: Any = field(default_factory=Reverse)
    average: Any = field(default_factory=NoAverage)
    accumulate: int = 1
    remat: str = "none"  # what the backward pass keeps (functrain.autodiff.remat)
    halts: bool = False  # whether nothing changes any more after an update that was not finite
    shows: bool = False  # whether metrics carry gradient, update and parameters themselves (functrain.observe.seen)
    rows: Callable[[Any], Mapping[str, jax.Array]] | None = None
    """batch -> {path of a table: the rows that it reads}, where nothing else of the table is touched.

    The loss is then given parameters with those rows alone, and a batch that says under "rows" where each stands.
    """

    def init(self, params: Any) -> Player:
        """A player at the start: these parameters, and the optimizer's first state, in at least float32."""
        wide, stored = jax.tree.map(tree.wide, params), self.precision.stored(params)
        moments = self.optimizer.build().init(wide)
        average, policy = self.average.init(params), self.precision
        return Player(stored, moments, average, policy.init_scale(), jnp.int32(0), policy.init_history(params))

    def weights(self, player: Player) -> Any:
        """The parameters that evaluation uses: the average where there is one, of what the optimizer holds for best."""
        return self.average.weights(player.average, self.optimizer.weights(player.optimizer, player.params))

    def update(
        self, loss, player: Player, state: Any, batch: Any, *, key: jax.Array
    ) -> tuple[Player, Any, dict[str, Any]]:
        """One improvement. Where loss or gradient is not finite, nothing changes but `skipped` and the loss scale.

        Returns:
          The player, the loss's state, and metrics: the loss's own with `loss`, `gradient_norm` (before clipping)
          and `learning_rate`. A skipped step counts in none of them.
        """
        if self.rows is None:
            return self._update(loss, player, state, batch, key=key)
        found = sparse.touched(self.rows(batch), player.params)
        batch = batch | {"rows": found.positions}
        learned, state, metrics = self._update(loss, sparse.take(player, found), state, batch, key=key)
        metrics = _rows_counted(metrics, found, player.params) if self.shows else metrics
        return sparse.put(player, learned, found), state, metrics

    def trained(self, params: Any) -> Any:
        """The parameters without the frozen ones: what an objective, an estimator and an optimizer see."""
        trainable = self.optimizer.trainable(params)
        return params if trainable is None else take(params, trainable)

    def goal(self, loss, player: Player, state: Any, batch: Any, *, key: jax.Array, probed: bool = False) -> Objective:
        """The loss on a batch as a function of the trained parameters, in the learner's precision; or of `Probed`."""
        scale = player.scale and player.scale.value

        def at(f):  # as the policy computes it, of trained parameters with the frozen ones beside them as constants
            computed = remat(self.precision(f), self.remat)
            return lambda trained, *rest, key: computed(put(trained, player.params), *rest, key=key)

        def at_probed(f):
            computed = remat(self.precision.remembering(f), self.remat)
            return lambda trained, *rest, key: computed(
                put(trained.params, player.params), player.history, trained.probes, *rest, key=key
            )

        if probed:
            return objective(at_probed(loss), state, batch, key, accumulate=self.accumulate, scale=scale)
        scored = dataclasses.replace(loss, predict=at(loss.predict)) if isinstance(loss, Scored) else None
        return objective(at(loss), state, batch, key, accumulate=self.accumulate, scale=scale, scored=scored)

    def _remembers(self, player):
        """Whether a loss is computed by what the player's policy remembers; another policy may look at the player."""
        return player.history is not None and hasattr(self.precision, "remembering")

    def _remembering(self, loss, player, state, batch, key):
        """What the estimator gives, under a policy that remembers; its history after it; whether all was finite.

        What was greatest in the products is known on the way back alone, and comes from there as a gradient. What is
        infinite in one of them was cut to the largest, and is seen there alone.
        """
        if not (isinstance(self.estimator, Reverse) and self.optimizer.by_gradient):
            raise ConfigError('precision.scaling: "delayed" takes estimator.kind = "reverse"; expected "current"')
        count = len(jax.tree.leaves(batch)[0])
        batch = batch | {"part": jnp.arange(count) % self.accumulate}  # which micro-batch a row goes to
        probed = Probed(self.trained(player.params), {p: jnp.zeros((3, self.accumulate)) for p in player.history})
        goal = self.goal(loss, player, state, batch, key=key, probed=True)
        gradients, value, rest = self.estimator(goal, probed, None)
        greatest = {path: found.max(1) for path, found in gradients.probes.items()}
        history = {path: player.history[path].updated(found) for path, found in greatest.items()}
        return (gradients.params, value, rest), history, jnp.isfinite(tree.norm(greatest))

    def _update(self, loss, player, state, batch, *, key):
        """`update`, of all the parameters that the player holds."""
        old, scale, history = self.trained(player.params), player.scale, player.history
        goal = self.goal(loss, player, state, batch, key=key)
        estimator = self.estimator if self.optimizer.by_gradient else _value_alone
        if not self._remembers(player):
            estimate, whole = estimator(goal, old, jax.random.fold_in(key, 1)), True
        else:
            estimate, history, whole = self._remembering(loss, player, state, batch, key)
        gradients, value, (new_state, metrics) = estimate
        norm = tree.norm(gradients)
        finite = jnp.isfinite(norm) & jnp.isfinite(value) & whole
        if self.halts:
            finite &= player.skipped == 0
        one = jnp.ones((), value.dtype)
        metrics = {"loss": Mean(value, one)} | metrics  # of several means: their sum at each step
        if self.optimizer.by_gradient:
            metrics |= {"gradient_norm": Mean(norm, one)}
        if (rate := self.optimizer.current_rate(player.optimizer)) is not None:
            metrics |= {"learning_rate": Mean(rate * one, one)}

        def improve():
            asked = {"value": value, "grad": gradients, "value_fn": lambda p: goal.value(p)[0]}  # by optax's names
            asked |= {"objective": goal, "key": jax.random.fold_in(key, 2)}
            updates, optimizer = self.optimizer.build().update(gradients, player.optimizer, old, **asked)
            # With 64-bit types enabled, live numbers are float64 and would widen the moments of float32 parameters.
            optimizer = jax.tree.map(lambda new, old: new.astype(old.dtype), optimizer, player.optimizer)
            moved = _arrays("update", updates, one) if self.shows else {}
            params = put(self.precision.updated(old, updates, jax.random.fold_in(key, 3)), player.params)
            average = self.average.update(player.average, self.optimizer.weights(optimizer, params))
            return params, optimizer, average, history, new_state, metrics | noted(optimizer) | moved

        def noted(optimizer):
            return {name: Mean(note * one, one) for name, note in self.optimizer.notes(optimizer).items()}

        # A `cond`, for selecting over parameters and moments would cost 10 to 28 % of a small model's step; around
        # this player alone, for guarding the whole TrainState would copy a replay buffer at each step.
        like = (lambda: improve()[-1]) if self.shows else (lambda: metrics | noted(player.optimizer))
        nothing = tree.zeros_like(jax.eval_shape(like))
        unchanged = (player.params, player.optimizer, player.average, player.history, state, nothing)
        params, optimizer, average, history, state, metrics = lax.cond(finite, improve, lambda: unchanged)
        if self.shows:  # also of a step that is skipped: where its gradient is not finite is what one wants to see
            metrics |= _arrays("parameter", old, one)
            metrics |= _arrays("gradient", gradients, one) if self.optimizer.by_gradient else {}
        if scale is not None:
            scale = scale.updated(finite, self.precision.growth_every)
        return Player(params, optimizer, average, scale, player.skipped + ~finite, history), state, metrics


class Probed(NamedTuple):
    """Trained parameters, and zeros by whose gradient a policy is told what was greatest in the products."""

    params: Any
    probes: dict[str, jax.Array]


def _value_alone(objective, params, key):
    """An estimator for optimizers that go by values: no gradient."""
    del key
    return tree.zeros_like(jax.tree.map(tree.wide, params)), *objective.value(params)


def _arrays(what: str, of: Any, one: jax.Array) -> dict[str, Mean]:
    """`gradient/layer0/kernel` and the like."""
    return {f"{what}/{path}": Mean(leaf, one) for path, leaf in tree.by_path(of).items()}


def _rows_counted(metrics: dict[str, Any], found: sparse.Touched, params: Any) -> dict[str, Any]:
    """Where arrays are shown, those of tables count the rows that are read, and none that only fills a place."""
    tables, counted = tree.by_path(params), dict(metrics)
    for name, metric in metrics.items():
        what, _, path = name.partition("/")
        if what in ("gradient", "update", "parameter") and path in found.rows:
            there = found.rows[path] < len(tables[path])
            count = metric.count * there.reshape(-1, *[1] * (metric.total.ndim - 1))
            counted[name] = Mean(metric.total, count)
    return counted
