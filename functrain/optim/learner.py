"""A learner turns a loss into an improvement, as an optimizer turns a gradient into an update:

    init(params)                                   -> Player
    weights(player)                                -> params that evaluation uses
    update(loss, player, state, batch, *, key)     -> (Player, state, metrics)

    loss(params, state, batch, *, key)             -> (Mean or tree of Means, state, metrics)

Accumulation, precision, loss scale, estimator, optimizer, average and the guard against non-finite updates live here,
once, for every task.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax

from functrain import tree
from functrain.autodiff import Reverse
from functrain.metrics import Mean
from functrain.optim import sparse
from functrain.optim.average import NoAverage
from functrain.optim.objective import Objective, objective
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
    norms: bool = False  # whether metrics carry the norms of gradient, update and parameters by leaf
    rows: Callable[[Any], Mapping[str, jax.Array]] | None = None
    """batch -> {path of a table: the rows that it reads}, where nothing else of the table is touched.

    The loss is then given parameters with those rows alone, and a batch that says under "rows" where each stands.
    """

    def init(self, params: Any) -> Player:
        """A player at the start: these parameters, and the optimizer's first state, in at least float32."""
        wide, stored = jax.tree.map(tree.wide, params), self.precision.stored(params)
        moments = self.optimizer.build().init(wide)
        return Player(stored, moments, self.average.init(params), self.precision.init_scale(), jnp.int32(0))

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
        return sparse.put(player, learned, found), state, metrics

    def goal(self, loss, player: Player, state: Any, batch: Any, *, key: jax.Array) -> Objective:
        """The loss on a batch as a function of the parameters, in the learner's precision."""
        if (trainable := self.optimizer.trainable(player.params)) is not None:
            loss = _frozen(loss, trainable)
        scale = player.scale and player.scale.value
        return objective(self.precision(loss), state, batch, key, accumulate=self.accumulate, scale=scale)

    def _update(self, loss, player, state, batch, *, key):
        """`update`, of all the parameters that the player holds."""
        old, scale = player.params, player.scale
        goal = self.goal(loss, player, state, batch, key=key)
        gradients, value, (new_state, metrics) = self.estimator(goal, old, jax.random.fold_in(key, 1))
        norm = tree.norm(gradients)
        finite = jnp.isfinite(norm) & jnp.isfinite(value)
        one = jnp.ones((), value.dtype)
        rate = self.optimizer.current_rate(player.optimizer)
        metrics = {"loss": Mean(value, one)} | metrics  # of several means: their sum at each step
        metrics |= {
            "gradient_norm": Mean(norm, one),
            "learning_rate": Mean(rate * one, one),
        }

        def improve():
            updates, optimizer = self.optimizer.build().update(gradients, player.optimizer, old, value=value)
            # With 64-bit types enabled, live numbers are float64 and would widen the moments of float32 parameters.
            optimizer = jax.tree.map(lambda new, old: new.astype(old.dtype), optimizer, player.optimizer)
            norms = _norms_by_leaf(gradients, updates, old) if self.norms else {}
            params = optax.apply_updates(old, updates)
            average = self.average.update(player.average, self.optimizer.weights(optimizer, params))
            return params, optimizer, average, new_state, metrics | norms

        # A `cond`, for selecting over parameters and moments would cost 10 to 28 % of a small model's step; around
        # this player alone, for guarding the whole TrainState would copy a replay buffer at each step.
        nothing = tree.zeros_like(jax.eval_shape(lambda: improve()[-1]))
        unchanged = (old, player.optimizer, player.average, state, nothing)
        params, optimizer, average, state, metrics = lax.cond(finite, improve, lambda: unchanged)
        if scale is not None:
            scale = scale.updated(finite, self.precision.growth_every)
        return Player(params, optimizer, average, scale, player.skipped + ~finite), state, metrics


def _frozen(loss, trainable):
    """The loss with no gradient by the parameters that are not trainable: what leads only there is never computed."""

    def held(params, state, batch, *, key):
        params = jax.tree.map(lambda p, t: p if t else lax.stop_gradient(p), params, trainable)
        return loss(params, state, batch, key=key)

    return held


def _norms_by_leaf(gradients, updates, params) -> dict[str, Mean]:
    """`gradient_norm/layer0/kernel` and the like."""
    one = jnp.ones(())
    return {
        f"{name}/{path}": Mean(tree.norm(leaf), one)
        for name, of in (("gradient_norm", gradients), ("update_norm", updates), ("parameter_norm", params))
        for path, leaf in tree.by_path(of).items()
    }
