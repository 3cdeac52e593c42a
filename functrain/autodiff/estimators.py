"""Estimators turn an objective into gradients:

estimator(objective, params, key) -> (gradients, value, (state, metrics))
estimator.evaluations(parameters) -> how many evaluations of the loss a step costs, about

What an estimator costs is counted in evaluations of the loss; a gradient by reverse mode counts as three, for a layer's
backward pass is two matrix products where its forward pass is one.
"""

import itertools
from typing import Literal

import jax
import jax.numpy as jnp

from functrain import tree
from functrain.autodiff.forward import Forward
from functrain.autodiff.private import DPSGD
from functrain.autodiff.zeroth_order import SPSA, Central, Evolution
from functrain.config import ConfigError, Positive, configclass, kinds
from functrain.metrics import Mean


@configclass
class Reverse:
    """Reverse-mode differentiation: the exact gradient, at the cost of about three evaluations."""

    kind: Literal["reverse"] = "reverse"

    def __call__(self, objective, params, key):
        """The objective's own gradient; the key is not needed."""
        del key
        return objective.gradient(params)

    def evaluations(self, parameters: int) -> float:
        """Of the loss, a step: one for the value, two for the way back."""
        del parameters
        return 3.0


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

    def evaluations(self, parameters: int) -> float:
        """Of the loss, a step: two gradients."""
        del parameters
        return 6.0


@configclass
class MinNorm:
    """Of several losses, the shortest convex combination of their gradients: downhill for all of them, or a standstill.

    The weights a_i, of sum 1 and none below 0, make |sum a_i g_i|^2 least (Desideri 2012; Sener and Koltun 2018, eq.
    3), the g_i being the gradients of what the losses share. Other parameters, each of one loss alone as a rule, get
    the sum of their gradients (their algorithm 2). The loss must be a dict of means (a task such as many_tasks); each
    costs a backward pass. The weights are in the metrics, `weight_NAME`.

    >>> from functrain.metrics import Mean
    >>> from functrain.optim import objective
    >>> def loss(w, state, batch, *, key):
    ...     return {"a": Mean(2 * w[0], jnp.ones(())), "b": Mean(w[1], jnp.ones(()))}, state, {}
    >>> goal = objective(loss, {}, {"x": jnp.ones(1)}, None)
    >>> MinNorm()(goal, jnp.zeros(2), None)[0].round(3).tolist()   # 0.2 of (2, 0), 0.8 of (0, 1)
    [0.4000000059604645, 0.800000011920929]
    """

    kind: Literal["min_norm"] = "min_norm"
    shared: str = ""
    """A pattern of the paths of what the losses share, such as trunk/; empty is all parameters."""
    normalise: Literal["none", "norm", "loss"] = "none"
    """Whether each gradient is divided by its norm, or by its loss, before the weights are sought."""

    def __call__(self, objective, params, key):
        """The combination, and the sum of the losses as value."""
        del key
        gradients, values, (state, metrics) = objective.parts(params)
        names = list(gradients)
        if len(names) > _MOST_LOSSES:
            raise ConfigError(f"estimator.kind: min_norm takes at most {_MOST_LOSSES} losses; found {len(names)}")
        try:
            there = tree.select([self.shared], params)
        except ValueError as error:
            raise ConfigError(f"estimator.shared: {error}") from None
        shared = [[g for g, t in zip(jax.tree.leaves(gradients[name]), jax.tree.leaves(there)) if t] for name in names]
        flat = jnp.stack([jnp.concatenate([g.ravel() for g in own]) for own in shared])
        size = {
            "none": jnp.ones(len(names), flat.dtype),
            "norm": jnp.linalg.norm(flat, axis=1),
            "loss": jnp.stack([values[name] for name in names]),
        }[self.normalise]
        scale = 1 / jnp.maximum(size, jnp.finfo(flat.dtype).tiny)
        flat = flat * scale[:, None]
        weights = min_norm_weights(flat @ flat.T)

        def combined(t, *parts):
            return sum(w * p for w, p in zip(weights * scale, parts)) if t else sum(parts)

        one = jnp.ones((), weights.dtype)
        metrics = metrics | {f"weight_{name}": Mean(w, one) for name, w in zip(names, weights)}
        mixed = jax.tree.map(combined, there, *(gradients[name] for name in names))
        return mixed, sum(values.values()), (state, metrics)

    def evaluations(self, parameters: int, losses: int = 2) -> float:
        """Of the loss, a step: one for the values, two for each way back; a config does not say how many `losses`."""
        del parameters
        return 1.0 + 2 * losses


_MOST_LOSSES = 8


def min_norm_weights(products: jax.Array) -> jax.Array:
    """Weights a [n] of sum 1, none below 0, that make a M a least, for the products M [n, n] of n vectors; n up to 8.

    Exact: for every subset of the vectors, the shortest point of the plane through them; of those whose weights are
    none below 0, the shortest (Wolfe 1976 comes to it one vector at a time). Where vectors coincide, one of the
    solutions.

    >>> min_norm_weights(jnp.array([[1.0, 0.0], [0.0, 1.0]])).round(3).tolist()
    [0.5, 0.5]
    """
    n = len(products)
    if n > _MOST_LOSSES:
        raise ValueError(f"found {n} losses; expected at most {_MOST_LOSSES}")
    size = jnp.maximum(jnp.trace(products), jnp.finfo(products.dtype).tiny)
    # Vectors that coincide make a singular system; a trace of the identity chooses among its solutions.
    m = products / size + 4 * jnp.finfo(products.dtype).eps * jnp.eye(n, dtype=products.dtype)
    subsets = jnp.array(list(itertools.product((False, True), repeat=n))[1:])

    def shortest(inside):
        """M a = 1 on the subset, then over the sum: the Lagrange condition of a M a with sum 1."""
        both = inside[:, None] & inside[None, :]
        a = jnp.linalg.solve(jnp.where(both, m, jnp.eye(n, dtype=m.dtype)), inside.astype(m.dtype))
        a = jnp.where(inside, a / jnp.where(inside, a, 0).sum(), 0)
        return a, jnp.where((a >= 0).all() & jnp.isfinite(a).all(), a @ m @ a, jnp.inf)

    found, lengths = jax.vmap(shortest)(subsets)
    return found[jnp.argmin(lengths)]


AnyEstimator = kinds(Reverse, SAM, MinNorm, Forward, Central, SPSA, Evolution, DPSGD, default="reverse")
"""[estimator]: every way to a gradient that a config can name."""
