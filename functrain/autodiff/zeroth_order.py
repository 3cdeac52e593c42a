"""Gradients from values of the loss alone: the loss need not be differentiable, nor is anything kept for a way back."""

import math
from typing import Literal

import jax
import jax.numpy as jnp

from functrain import tree
from functrain.autodiff import directions as along
from functrain.config import ConfigError, NonNegative, Positive, Size, configclass, off


@configclass
class Central:
    """Central differences: the gradient to a rounding error, at two evaluations a parameter.

    (f(w + h e_i) - f(w - h e_i)) / 2h for each parameter w_i. Its error is at most h^2 / 6 |f'''| by the series and
    e |f| / h by rounding, e the relative error of f; their sum is least near h = e^(1/3) (Nocedal and Wright 2006,
    section 8.1), which leaves about e^(2/3): 2e-5 in float32, 4e-11 in float64. So h is eps^(1/3) max(|w_i|, 1) with
    the eps of the parameter's dtype. Where the loss computes in 16 bits e is larger: give a `step`, such as 0.1.

    Raises:
      ConfigError: there are more parameters than `most`.

    >>> from functrain.metrics import Mean
    >>> from functrain.optim import objective
    >>> def loss(w, state, batch, *, key):
    ...     return Mean((w**2).sum(), jnp.ones(())), state, {}
    >>> goal = objective(loss, {}, {"x": jnp.ones(1)}, None)
    >>> Central(step=0.5)(goal, jnp.arange(3.0), None)[0].tolist()   # exact: a square has no third derivative
    [0.0, 2.0, 4.0]
    """

    kind: Literal["central"] = "central"
    step: NonNegative = 0.0
    """How far each parameter is moved to either side; 0 chooses by parameter, from its dtype and size."""
    block: Size = 16
    """So many parameters are moved side by side, each in a copy of all."""
    most: Size = 100_000
    """Up to how many parameters (numbers, not arrays) a step is taken."""

    def __call__(self, objective, params, key):
        """The quotients; value, state and metrics from an evaluation of their own. The key is not needed."""
        del key
        along.refuse_above(self.most, self, params, 'take estimator.kind = "spsa"')

        def end(sign):
            return jax.tree.map(lambda p: (p + sign * self._reach(p)).astype(p.dtype), params)

        high, low = end(1), end(-1)
        # What was added and what p + h holds differ by rounding: divided by what lies between the ends, it cancels.
        widths = jax.tree.map(lambda a, b: tree.wide(a) - tree.wide(b), high, low)

        def difference(i):
            there = along.axis(i, params)
            above, below = (objective.value(jax.tree.map(jnp.where, there, e, params))[0] for e in (high, low))
            return above - below

        differences = along.in_blocks(difference, jnp.arange(tree.size(params)), self.block)
        gradients = jax.tree.map(jnp.divide, along.shaped(differences, params), widths)
        return gradients, *objective.value(params)

    def _reach(self, p):
        """h for each number of a leaf."""
        if off(self.step):
            return math.cbrt(jnp.finfo(p.dtype).eps) * jnp.maximum(jnp.abs(tree.wide(p)), 1)
        return self.step

    def evaluations(self, parameters: int) -> float:
        """Of the loss, a step: two for each parameter, one for the metrics."""
        return 2.0 * parameters + 1


@configclass
class SPSA:
    """Simultaneous perturbation: all parameters moved at once along random directions, two evaluations for each.

    The mean of (f(w + c v) - f(w - c v)) / 2c v over `directions`, c the `radius`; v of 1 and -1 (Spall 1992, eq.
    2.2: there divided by v_i, which is the same for these), or standard normal (MeZO: Malladi et al. 2023, definition
    1, here with both ends counted from w). Unbiased up to c^2 times third derivatives. As in MeZO a direction is not
    kept but drawn again from its key: nothing is stored for a way back, and more directions take no more memory.

    >>> from functrain.metrics import Mean
    >>> from functrain.optim import objective
    >>> def loss(w, state, batch, *, key):
    ...     return Mean((w**2).sum(), jnp.ones(())), state, {}
    >>> goal = objective(loss, {}, {"x": jnp.ones(1)}, None)
    >>> gradient = SPSA(radius=0.5)(goal, jnp.asarray(3.0), jax.random.key(0))[0]
    >>> float(gradient)   # of one parameter v^2 = 1, of a square there is no third derivative: exact
    6.0
    """

    kind: Literal["spsa"] = "spsa"
    directions: Size = 1
    """Random directions a step: the noise's variance falls as 1 / directions."""
    radius: Positive = 1e-3
    """How far parameters are moved to either side: what each number of v is multiplied by."""
    direction: along.Law = "rademacher"
    """What each number of v is: 1 or -1, or, normal, as in MeZO."""

    def __call__(self, objective, params, key):
        """The mean over directions; value, state and metrics from an evaluation of their own."""
        keys = along.keys_of(key, self.directions)
        high, low = along.both_sides(objective, params, self.radius, keys, self.direction)
        slopes = (high - low) / (2 * self.radius)
        gradients = along.combined(slopes / self.directions, keys, params, self.direction)
        return gradients, *objective.value(params)

    def evaluations(self, parameters: int) -> float:
        """Of the loss, a step: two for each direction, one for the metrics."""
        del parameters
        return 2.0 * self.directions + 1


@configclass
class Evolution:
    """Evolution strategies: the gradient of the loss's mean over normal parameters around w, from antithetic pairs.

    With v standard normal, the gradient of E f(w + s v) is E f(w + s v) v / s (Salimans et al. 2017, section 2), s the
    `sigma`. A `population` is drawn as pairs w + s v and w - s v, in which terms of f that are even about w cancel
    (mirrored sampling there). Unbiased with `shaping` "none"; "ranks" puts in each loss's place its rank, from -1/2 to
    1/2 in equal steps: whatever the losses' scale and outliers, their order alone counts. Losses that are equal share
    their ranks' mean, and one that is not a number ranks with the worst.

    Raises:
      ConfigError: `population` is odd.

    >>> from functrain.metrics import Mean
    >>> from functrain.optim import objective
    >>> def loss(w, state, batch, *, key):
    ...     return Mean((jnp.abs(w) > 1).astype(float).sum(), jnp.ones(())), state, {}   # flat but for steps
    >>> goal = objective(loss, {}, {"x": jnp.ones(1)}, None)
    >>> gradient = Evolution(population=4000, sigma=1.0)(goal, jnp.array([0.0, 1.0]), jax.random.key(0))[0]
    >>> gradient.round(1).tolist()   # the second: the normal density at 0 less that at 2, 0.345
    [0.0..., 0.3...]
    """

    kind: Literal["evolution"] = "evolution"
    population: Size = 32
    """Evaluations a step, in pairs: an even number."""
    sigma: Positive = 0.02
    """The standard deviation of what is added to each parameter."""
    shaping: Literal["none", "ranks"] = "none"
    """What weighs each member: its loss, or its loss's rank."""
    block: Size = 1
    """So many members are evaluated side by side, each with parameters of its own."""

    def __call__(self, objective, params, key):
        """The weighted sum of the directions; value, state and metrics from an evaluation of their own."""
        if self.population % 2:
            raise ConfigError(f"estimator.population: found {self.population}; expected an even number, for pairs")
        keys = along.keys_of(key, self.population // 2)
        losses = along.both_sides(objective, params, self.sigma, keys, "normal", self.block)
        if self.shaping == "ranks":
            losses = centred_ranks(losses.ravel()).reshape(losses.shape)
        weights = (losses[0] - losses[1]) / (self.population * self.sigma)
        return along.combined(weights, keys, params, "normal"), *objective.value(params)

    def evaluations(self, parameters: int) -> float:
        """Of the loss, a step: one for each member, one for the metrics."""
        del parameters
        return self.population + 1.0


def centred_ranks(losses: jax.Array) -> jax.Array:
    """Ranks of losses [n] from -1/2 (the least) to 1/2 in equal steps; equal losses share the mean of theirs.

    n from 2. A rank is the share of losses below less that of losses above, halved; what is not a number counts as
    infinite.

    >>> centred_ranks(jnp.array([3.0, 1.0, jnp.nan, 1.0, 2.0])).tolist()
    [0.25, -0.375, 0.5, -0.375, 0.0]
    """
    losses = jnp.where(jnp.isnan(losses), jnp.inf, losses)
    above = (losses[:, None] > losses[None, :]).sum(1) - (losses[:, None] < losses[None, :]).sum(1)
    return above.astype(losses.dtype) / (2 * (len(losses) - 1))
