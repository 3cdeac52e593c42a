"""Estimators turn an objective into gradients:

estimator(objective, params, key) -> (gradients, value, (state, metrics))
"""

from typing import Literal

import jax
import jax.numpy as jnp

from functrain import tree
from functrain.config import Positive, configclass, kinds


@configclass
class Reverse:
    """Reverse-mode differentiation: the exact gradient, at the cost of about three evaluations."""

    kind: Literal["reverse"] = "reverse"

    def __call__(self, objective, params, key):
        """The objective's own gradient; the key is not needed."""
        del key
        return objective.gradient(params)


@configclass
class SAM:
    """Sharpness-aware minimisation: the gradient at the worst point near by; two gradients a step.

    The worst point is w + rho g / |g| (Foret et al. 2021, eq. 2), or, `adaptive`, w + rho w^2 g / |w g| (Kwon et al.
    2021, eq. 10, without its eta). Value, state and metrics are those of w itself.

    >>> from functrain.metrics import Mean
    >>> from functrain.optim import objective
    >>> def loss(w, state, batch, *, key):
    ...     return Mean(w**2, jnp.ones(())), state, {}
    >>> goal = objective(loss, {}, {"x": jnp.ones(1)}, None)
    >>> float(SAM(rho=0.5)(goal, jnp.asarray(1.0), None)[0])   # at w = 1: 2 (w + rho)
    3.0
    """

    kind: Literal["sam"] = "sam"
    rho: Positive = 0.05
    """How far away the worst point is looked for."""
    adaptive: bool = False
    """Distances relative to each weight's size."""

    def __call__(self, objective, params, key):
        """The gradient at the worst point."""
        del key
        gradients, value, rest = objective.gradient(params)
        size = jax.tree.map(lambda p: jnp.abs(tree.wide(p)) if self.adaptive else 1.0, params)
        scaled = jax.tree.map(jnp.multiply, size, gradients)
        norm = tree.norm(scaled)
        step = self.rho / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny)
        worst = jax.tree.map(lambda p, s, g: (p + step * s * g).astype(p.dtype), params, size, scaled)
        return objective.gradient(worst)[0], value, rest


AnyEstimator = kinds(Reverse, SAM, default="reverse")
"""[estimator]: every way to a gradient that a config can name."""
