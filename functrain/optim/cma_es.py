"""CMA-ES: an evolution strategy that learns the covariance of its steps."""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from functrain.autodiff import directions as along
from functrain.config import ConfigError, Count, Positive, Size, configclass
from functrain.optim.base import stage
from functrain.optim.gradient_free import GradientFree, finite_or_worst


class CMAState(NamedTuple):
    """Of n parameters, their mean apart: that is the parameters themselves."""

    count: Any  # generations, int32
    sigma: Any
    path_sigma: Any  # [n], of steps made round: what sigma goes by
    path: Any  # [n], of steps: what the covariance goes by
    covariance: Any  # [n, n], or [n] where it is diagonal
    axes: Any  # [n, n], its eigenvectors; () where it is diagonal
    scales: Any  # [n], the roots of its eigenvalues


class Constants(NamedTuple):
    """The strategy's numbers, named as in the tutorial, section A."""

    weights: np.ndarray  # [population], by rank
    mu_eff: float
    c_sigma: float
    d_sigma: float
    c_c: float
    c_1: float
    c_mu: float
    chi: float  # the mean norm of n standard normal numbers


@configclass
class CMAES(GradientFree):
    """CMA-ES (Hansen 2016, arXiv:1604.00772, equations 38 to 47): a normal population around the parameters.

    The parameters move to a weighted mean of the better half; the covariance grows along the steps that led there and,
    by negative weights, shrinks along those that led to the worse half; sigma grows while steps point alike. With
    `covariance` "diagonal" it is sep-CMA-ES (Ros and Hansen 2008): no negative weights, learning rates (n + 2) / 3
    times as high, and of the population one member is held at a time. A member whose loss is not finite ranks last and
    has no part in the mean.

    Raises:
      ConfigError: a full covariance of more parameters than `most`.

    >>> from functrain.optim.objective import objective
    >>> from functrain.metrics import Mean
    >>> def loss(w, state, batch, *, key):
    ...     return Mean((w**2).sum(), jnp.ones(())), state, {}
    >>> goal, strategy = objective(loss, {}, {"x": jnp.ones(1)}, None), CMAES(sigma=0.5).build()
    >>> w = jnp.ones(3)
    >>> updates, state = strategy.update(w, strategy.init(w), w, objective=goal, key=jax.random.key(0))
    >>> float(goal.value(w + updates)[0]) < 3
    True
    """

    kind: Literal["cma_es"] = "cma_es"
    population: Count = 0
    """Members of a generation; 0 is 4 + 3 ln n, rounded down."""
    sigma: Positive = 0.1
    """The standard deviation of what is added to each parameter, at the start."""
    covariance: Literal["full", "diagonal"] = "full"
    """Of all pairs of parameters, or of each by itself."""
    most: Size = 2_000
    """Up to how many parameters (numbers, not arrays) a full covariance is taken."""
    block: Size = 1
    """So many members are evaluated side by side, each with parameters of its own."""

    def stages(self):
        """The strategy."""
        return stage(self._init, self._update)

    def _init(self, params):
        zero = jnp.zeros_like(along.raveled(params))
        one, sigma = zero + 1, jnp.asarray(self.sigma, zero.dtype)
        if self.covariance == "diagonal":
            return CMAState(jnp.int32(0), sigma, zero, zero, one, (), one)
        identity = jnp.eye(zero.size, dtype=zero.dtype)
        return CMAState(jnp.int32(0), sigma, zero, zero, identity, identity, one)

    def _update(self, gradients, state, params, *, objective, key, **_):
        del gradients
        n, dtype = state.path.size, state.path.dtype
        c = constants(n, self._number(n), diagonal=self.covariance == "diagonal")
        keys = along.keys_of(key, self._number(n))

        def drawn(key):
            return jax.random.normal(key, (n,), dtype)

        def loss(y):
            return objective.value(along.moved(params, state.sigma, along.shaped(y, params)))[0]

        if self.covariance == "diagonal":
            losses = along.in_blocks(lambda key: loss(state.scales * drawn(key)), keys, self.block)
            weights = by_rank(losses, c.weights).astype(dtype)

            def add(sums, each):
                weight, z = each[0], drawn(each[1])  # again, rather than to hold them all
                return (sums[0] + weight * z, sums[1] + weight * z**2), None

            (mean, squares), _ = lax.scan(add, (jnp.zeros(n, dtype), jnp.zeros(n, dtype)), (weights, keys))
            step, white, spread = state.scales * mean, mean, state.covariance * squares
        else:
            z = jax.vmap(drawn)(keys)
            y = (z * state.scales) @ state.axes.T
            losses = along.in_blocks(loss, y, self.block)
            weights = by_rank(losses, c.weights).astype(dtype)
            upward = jnp.maximum(weights, 0)
            step, white = upward @ y, state.axes @ (upward @ z)
            # Equation 46: of those that are pushed away, the length in units of the covariance is made that of n.
            lengths = jnp.where(weights < 0, n / jnp.maximum(jnp.sum(z**2, 1), jnp.finfo(dtype).tiny), 1)
            spread = y.T @ ((weights * lengths)[:, None] * y)
        new = self._adapted(state, c, step, white, spread, weights.sum())
        return along.shaped(state.sigma * step, params), new

    def _adapted(self, state, c, step, white, spread, total):
        """The state after a generation: equations 43 to 47.

        step, white: the mean step in units of sigma, and what it was before it was shaped by the covariance.
        spread: the weighted sum of squared steps. total: the sum of the weights.
        """
        n, count = step.size, state.count + 1
        path_sigma = (1 - c.c_sigma) * state.path_sigma + math.sqrt(c.c_sigma * (2 - c.c_sigma) * c.mu_eff) * white
        norm = jnp.linalg.norm(path_sigma)
        sigma = state.sigma * jnp.exp(c.c_sigma / c.d_sigma * (norm / c.chi - 1))
        settled = jnp.sqrt(-jnp.expm1(2 * count * math.log1p(-c.c_sigma))).astype(norm.dtype)
        moves = (norm < (1.4 + 2 / (n + 1)) * c.chi * settled).astype(norm.dtype)  # h_sigma: not where sigma is behind
        path = (1 - c.c_c) * state.path + moves * math.sqrt(c.c_c * (2 - c.c_c) * c.mu_eff) * step
        kept = 1 + c.c_1 * (1 - moves) * c.c_c * (2 - c.c_c) - c.c_1 - c.c_mu * total
        if self.covariance == "diagonal":
            covariance = kept * state.covariance + c.c_1 * path**2 + c.c_mu * spread
            return CMAState(count, sigma, path_sigma, path, covariance, (), jnp.sqrt(covariance))
        covariance = kept * state.covariance + c.c_1 * jnp.outer(path, path) + c.c_mu * spread
        covariance = (covariance + covariance.T) / 2
        every = max(1, int(1 / (10 * n * (c.c_1 + c.c_mu))))  # section B.2: the eigenvectors change slowly
        held = (state.axes, state.scales)
        axes, scales = lax.cond(count % every == 0, decomposed, lambda _: held, covariance)
        return CMAState(count, sigma, path_sigma, path, covariance, axes, scales)

    def _number(self, n: int) -> int:
        """Members of a generation for n parameters."""
        return self.population or 4 + int(3 * math.log(n))

    def check(self, params, section="optimizer"):
        """Raises a ConfigError where a pattern matches nothing, or the covariance would be too large."""
        super().check(params, section)
        if self.population == 1:
            raise ConfigError(f"{section}.population: found 1; expected at least 2, or 0 to choose")
        n = self.trained_size(params)
        if self.covariance == "full" and n > self.most:
            raise ConfigError(
                f"{section}.most: the covariance of {n:,} parameters would take {8 * n**2 / 1e9:,.2f} GB with its "
                f"eigenvectors, and these {9 * n**3 / 1e12:,.2f} TFLOP each time; a full one is taken up to "
                f'{self.most:,}; raise {section}.most, or set {section}.covariance = "diagonal"'
            )

    def evaluations(self, parameters: int) -> float:
        """Of the loss, a step: one for each member, one for the metrics."""
        return self._number(parameters) + 1.0

    def notes(self, optimizer_state):
        """Sigma, and the covariance's condition: its largest eigenvalue over its smallest."""
        state = self.stage_state(optimizer_state, CMAState)
        assert state is not None
        return {"sigma": state.sigma, "condition": (state.scales.max() / state.scales.min()) ** 2}


def constants(n: int, population: int, *, diagonal: bool = False) -> Constants:
    """The tutorial's default numbers for n parameters (equations 49 to 58, table 1).

    >>> [round(float(w), 2) for w in constants(10, 10).weights]
    [0.46, 0.27, 0.16, 0.09, 0.03, -0.08, -0.22, -0.34, -0.45, -0.55]
    """
    raw = math.log((population + 1) / 2) - np.log(np.arange(1, population + 1))
    better, worse = raw[: population // 2], raw[population // 2 :]
    mu_eff, mu_worse = (float(part.sum() ** 2 / (part**2).sum()) for part in (better, worse))
    c_c = (4 + mu_eff / n) / (n + 4 + 2 * mu_eff / n)
    c_1 = 2 / ((n + 1.3) ** 2 + mu_eff)
    c_mu = min(1 - c_1, 2 * (1 / 4 + mu_eff + 1 / mu_eff - 2) / ((n + 2) ** 2 + mu_eff))
    if diagonal:
        c_1, c_mu = c_1 * (n + 2) / 3, c_mu * (n + 2) / 3
        c_mu = min(1 - c_1, c_mu)
        worst = 0.0
    else:
        worst = min(1 + c_1 / c_mu, 1 + 2 * mu_worse / (mu_eff + 2), (1 - c_1 - c_mu) / (n * c_mu))
    weights = np.where(raw >= 0, raw / better.sum(), worst * raw / -worse.sum())
    c_sigma = (mu_eff + 2) / (n + mu_eff + 5)
    d_sigma = 1 + 2 * max(0.0, math.sqrt((mu_eff - 1) / (n + 1)) - 1) + c_sigma
    chi = math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n**2))
    return Constants(weights, mu_eff, c_sigma, d_sigma, c_c, c_1, c_mu, chi)


def by_rank(losses: jax.Array, weights: np.ndarray) -> jax.Array:
    """Each member's weight, by its loss's rank; where a loss is not finite, none that would draw the mean there.

    >>> by_rank(jnp.array([3.0, 1.0, jnp.nan, 2.0]), np.array([0.5, 0.25, 0.25, -1.0])).tolist()
    [0.25, 0.5, -1.0, 0.25]
    >>> by_rank(jnp.full(2, jnp.nan), np.array([1.0, -1.0])).tolist()
    [0.0, -1.0]
    """
    losses = finite_or_worst(losses)
    found = jnp.zeros(len(weights)).at[jnp.argsort(losses)].set(weights)
    return jnp.where(jnp.isfinite(losses), found, jnp.minimum(found, 0))


def decomposed(covariance: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvectors [n, n] of a covariance, and the roots of its eigenvalues [n], none below what rounding leaves."""
    values, axes = jnp.linalg.eigh(covariance)
    return axes, jnp.sqrt(jnp.maximum(values, jnp.finfo(values.dtype).eps * values[-1]))
