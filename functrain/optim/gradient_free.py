"""Optimizers that ask a loss for values alone: simulated annealing, particle swarms; CMA-ES is in `cma_es`.

One step is one generation on the step's own batch. Losses of two batches are not compared: what a method holds from
before is evaluated again on the present batch, and `evaluations` counts that. Populations are of flat parameters, in at
least float32.

They are written here, for evosax 0.3 compares today's losses with those that it kept from yesterday's batches, and adds
1e-8 to its CMA-ES's covariance at each step (tests/test_oracle_gradient_free.py compares).
"""

from abc import abstractmethod
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from functrain import tree
from functrain.autodiff import directions as along
from functrain.config import ConfigError, NonNegative, Positive, Share, Size, configclass, off
from functrain.optim.base import Optimizer, stage


@configclass
class GradientFree(Optimizer):
    """What they share: no gradient, no learning rate."""

    by_gradient = False

    @abstractmethod
    def evaluations(self, parameters: int) -> float:
        """Of the loss, a step, that of the parameters as they are among them."""


def finite_or_worst(losses: jax.Array) -> jax.Array:
    """Losses, infinite where they are not a number: those rank worst."""
    return jnp.where(jnp.isnan(losses), jnp.inf, losses)


# -- simulated annealing --------------------------------------------------------------------------


class AnnealingState(NamedTuple):
    """Numbers."""

    temperature: Any
    sigma: Any
    accepted: Any  # the share of the last step's proposals


@configclass
class SimulatedAnnealing(GradientFree):
    """Simulated annealing (Kirkpatrick et al. 1983): a walk that goes uphill the less often the colder it is.

    A step makes `proposals` moves one after another on its batch. Each adds normal numbers of deviation sigma to all
    parameters, and is taken with probability min(1, exp(-(f' - f) / T)) (Metropolis et al. 1953); after the step T is
    multiplied by `cooling`. A move to where the loss is not a number is never taken.

    With `acceptance` sigma follows the share of moves taken, as in Corana et al. (1987), by the factor exp((taken -
    acceptance) / sqrt(n + 1)) of (1 + 1) evolution strategies (Hansen et al. 2015): right where a step sees all the
    data, as then sigma shrinks towards a minimum. On small batches it runs away, for a long move is taken that fits
    its batch alone.

    The loss of the point on the present batch is the one that every step is given: nothing is evaluated twice.

    >>> from functrain.optim.objective import objective
    >>> from functrain.metrics import Mean
    >>> def loss(w, state, batch, *, key):
    ...     return Mean((w**2).sum(), jnp.ones(())), state, {}
    >>> goal, w = objective(loss, {}, {"x": jnp.ones(1)}, None), jnp.ones(3)
    >>> walk = SimulatedAnnealing(sigma=0.1, proposals=1000).build()
    >>> updates, _ = walk.update(w, walk.init(w), w, objective=goal, value=goal.value(w)[0], key=jax.random.key(0))
    >>> float(goal.value(w + updates)[0]) < 0.1
    True
    """

    kind: Literal["simulated_annealing"] = "simulated_annealing"
    temperature: NonNegative = 1e-3
    """At the start, in units of the loss; 0 takes no move uphill."""
    cooling: Positive = 0.999
    """By what the temperature is multiplied after each step."""
    sigma: Positive = 0.02
    """The standard deviation of what is added to each parameter; with `acceptance`, at the start."""
    acceptance: Share = 0.0
    """The share of moves taken above which sigma grows and below which it shrinks, such as 0.2; 0 keeps it."""
    proposals: Size = 32
    """Moves a step."""

    def stages(self):
        """The walk."""

        def init(params):
            dtype = along.raveled(params).dtype
            return AnnealingState(*(jnp.asarray(x, dtype) for x in (self.temperature, self.sigma, 0.0)))

        def update(gradients, state, params, *, objective, value, key, **_):
            del gradients
            rate = 1 / (tree.size(params) + 1) ** 0.5

            def move(carry, key):
                away, loss, sigma = carry
                draw, chance = jax.random.split(key)
                there = jax.tree.map(lambda a, v: a + sigma * v, away, along.draw(draw, params, "normal"))
                new = objective.value(along.moved(params, 1, there))[0].astype(loss.dtype)
                # exp(-(new - loss) / T) > u, without dividing by a T that may be 0: -log u is exponential.
                taken = new <= loss + state.temperature * jax.random.exponential(chance, dtype=loss.dtype)
                if not off(self.acceptance):
                    sigma = sigma * jnp.exp(rate * (taken - self.acceptance)).astype(sigma.dtype)
                return (tree.where(taken, there, away), jnp.where(taken, new, loss), sigma), taken

            away = tree.zeros_like(jax.tree.map(tree.wide, params))
            start = (away, jnp.asarray(value, state.sigma.dtype), state.sigma)
            (away, _, sigma), taken = lax.scan(move, start, along.keys_of(key, self.proposals))
            return away, AnnealingState(state.temperature * self.cooling, sigma, taken.mean(dtype=sigma.dtype))

        return stage(init, update)

    def evaluations(self, parameters: int) -> float:
        """Of the loss, a step: one for each proposal, one for where it starts."""
        del parameters
        return self.proposals + 1.0

    def notes(self, optimizer_state):
        """Temperature, sigma, and the share of moves that the last step took."""
        return self.stage_state(optimizer_state, AnnealingState)._asdict()  # pyright: ignore


# -- particle swarm -------------------------------------------------------------------------------


class SwarmState(NamedTuple):
    """Of a swarm of m particles, of n numbers each."""

    count: Any  # generations, int32
    positions: Any  # [m, n]
    velocities: Any  # [m, n]
    bests: Any  # [m, n]: the best place that each has seen
    losses: Any  # [m]: there, on the batch on which they were evaluated last


@configclass
class ParticleSwarm(GradientFree):
    """Particle swarm optimization (Kennedy and Eberhart 1995; with inertia: Shi and Eberhart 1998).

    v = inertia v + cognitive r (own best - x) + social s (swarm's best - x) and x = x + v, r and s uniform in 0..1 for
    each number. The defaults are those of Clerc and Kennedy's (2002) constriction, with which a swarm comes to rest. It
    starts at rest, the first particle at the parameters, the others around them. The parameters become the swarm's best
    place by the present batch. It holds three arrays of `population` times the parameters.

    >>> from functrain.optim.objective import objective
    >>> from functrain.metrics import Mean
    >>> def loss(w, state, batch, *, key):
    ...     return Mean((w**2).sum(), jnp.ones(())), state, {}
    >>> goal, swarm = objective(loss, {}, {"x": jnp.ones(1)}, None), ParticleSwarm(sigma=1.0).build()
    >>> w = jnp.ones(3)
    >>> updates, _ = swarm.update(w, swarm.init(w), w, objective=goal, key=jax.random.key(0))
    >>> float(goal.value(w + updates)[0]) < 2   # the best of 40 places around it
    True
    """

    kind: Literal["particle_swarm"] = "particle_swarm"
    population: Size = 40
    """How many particles there are."""
    sigma: Positive = 0.1
    """The standard deviation of the first places around the parameters."""
    inertia: Share = 0.7298
    """How much of its velocity a particle keeps."""
    cognitive: NonNegative = 1.49618
    """How strongly each is drawn to its own best place."""
    social: NonNegative = 1.49618
    """How strongly each is drawn to the swarm's best place."""
    reevaluate: bool = True
    """Best places are evaluated again on each batch, as many evaluations more; false where all batches are the same."""
    block: Size = 1
    """So many particles are evaluated side by side."""

    def stages(self):
        """The swarm."""

        def init(params):
            place = along.raveled(params)
            rest = jnp.zeros((self.population, place.size), place.dtype)
            worst = jnp.full(self.population, jnp.inf, place.dtype)
            return SwarmState(jnp.int32(0), rest + place, rest, rest + place, worst)

        def scattered(state, key):
            """At the first step, for `init` has no key: the places around the parameters, but for the first's."""
            away = self.sigma * jax.random.normal(key, state.positions.shape, state.positions.dtype).at[0].set(0)
            places = state.positions + away.astype(state.positions.dtype)
            return state._replace(positions=places, bests=places)

        def update(gradients, state, params, *, objective, key, **_):
            del gradients
            start, own, social = along.keys_of(key, 3)
            state = lax.cond(state.count == 0, scattered, lambda state, _: state, state, start)
            x, v, bests = state.positions, state.velocities, state.bests

            def losses_at(places):
                losses = along.in_blocks(lambda p: objective.value(along.placed(p, params))[0], places, self.block)
                return finite_or_worst(losses).astype(x.dtype)

            new, old = losses_at(x), losses_at(bests) if self.reevaluate else state.losses
            better = new < old
            bests, losses = jnp.where(better[:, None], x, bests), jnp.where(better, new, old)
            best = jnp.argmin(losses)
            r, s = (jax.random.uniform(key, x.shape, x.dtype) for key in (own, social))
            v = self.inertia * v + self.cognitive * r * (bests - x) + self.social * s * (bests[best] - x)
            place = jnp.where(jnp.isfinite(losses[best]), bests[best], along.raveled(params))
            updates = along.shaped(place - along.raveled(params), params)
            return updates, SwarmState(state.count + 1, x + v, v, bests, losses)

        return stage(init, update)

    def check(self, params, section="optimizer"):
        """Raises a ConfigError where a pattern matches nothing, or there is no swarm."""
        super().check(params, section)
        if self.population < 2:
            raise ConfigError(f"{section}.population: found {self.population}; expected at least 2")

    def evaluations(self, parameters: int) -> float:
        """Of the loss, a step: one for each particle and its best place, one for the metrics."""
        del parameters
        return self.population * (1.0 + self.reevaluate) + 1

    def notes(self, optimizer_state):
        """The swarm's size: the root mean square of a number's distance from its mean over particles."""
        state = self.stage_state(optimizer_state, SwarmState)
        return {"spread": jnp.sqrt(jnp.var(state.positions, axis=0).mean())}  # pyright: ignore
