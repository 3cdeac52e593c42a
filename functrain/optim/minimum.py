"""Minimise a plain function of a pytree by an optimizer of functrain: for programs, and where no batch is drawn."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functrain import tree
from functrain.autodiff.curvature.spectrum import Stationary, stationary
from functrain.metrics import Mean
from functrain.optim.learner import Learner, Player
from functrain.optim.objective import Scored


@dataclass(frozen=True)
class Minimum:
    """Where a minimisation ended.

    value, gradient_norm: there.
    steps: that were taken; values: of the loss before each, and at the end.
    converged: whether the gradient came below the tolerance.
    point: of what kind the point is, where that was asked for.
    """

    params: Any
    value: float
    gradient_norm: float
    steps: int
    values: np.ndarray
    converged: bool
    point: Stationary | None = None


def minimise(
    f: Callable[[Any], Any],
    params: Any,
    optimizer: Any,
    *,
    score: Callable[[Any], Any] | None = None,
    steps: int = 100,
    tolerance: float = 1e-6,
    classify: bool = True,
) -> Minimum:
    """Steps of an optimizer on f from `params`, until the gradient's norm is at most `tolerance`.

    One program, compiled once; the host looks at the gradient after each step.

    Args:
      f: params -> a float []; or, with `score`, params -> outputs, and the loss is score(f(params)), as "gauss_newton"
        needs it.
      optimizer: of functrain.optim, such as `Newton()`, `LBFGS()` or `AdamW()`. A penalty of its own is added to f.
      classify: whether it is asked what kind of point it ended at, by the Hessian's outermost eigenvalues.

    >>> from functrain.optim import Newton
    >>> found = minimise(lambda w: (w[0] - 1) ** 2 + 100 * (w[1] - w[0] ** 2) ** 2, jnp.zeros(2), Newton())
    >>> found.params.round(3).tolist(), found.converged, found.point.verdict
    ([1.0, 1.0], True, 'minimum')
    """
    params = jax.tree.map(jnp.asarray, params)
    f_score = (lambda outputs: outputs) if score is None else score

    def mean(outputs, batch):
        del batch
        value = jnp.asarray(f_score(outputs))
        return Mean(value, jnp.ones((), value.dtype)), {}

    loss = Scored(lambda params, state, batch, *, key: (f(params), state), mean)
    learner = Learner(optimizer=optimizer)
    player, batch = learner.init(params), {"x": jnp.zeros(1)}
    penalised = getattr(optimizer, "whole", lambda goal: lambda params: goal.value(params)[0])

    def whole(params):
        goal = learner.goal(loss, Player(params), {}, batch, key=jax.random.key(0))
        return penalised(goal)(learner.trained(params))

    @jax.jit
    def take(player, i):
        """(the loss, its gradient's norm, the player after a step): XLA computes what both need once."""
        value, gradients = jax.value_and_grad(whole)(player.params)
        after, _, _ = learner.update(loss, player, {}, batch, key=jax.random.fold_in(jax.random.key(0), i))
        return value, tree.norm(gradients), after

    values: list[float] = []
    while True:
        value, slope, after = take(player, len(values))
        values.append(float(value))
        if slope <= tolerance or len(values) > steps:
            break
        player = after
    end = player.params
    point = stationary(whole, end, jax.random.key(1), tolerance=tolerance) if classify else None
    return Minimum(end, values[-1], float(slope), len(values) - 1, np.array(values), bool(slope <= tolerance), point)
