"""Optimizers that ask a loss how it bends: Newton's method, Gauss and Newton's, and L-BFGS.

Each minimises the loss of the batch it is given, with all that a step needs: it is meant for whole data sets, where
`data.batch_size` is the number of examples. There is no learning rate: the length of a step is what the model of the
loss, or a search along a line, says. `functrain.optim.minimise` takes any of them to a plain function.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from functrain import tree
from functrain.autodiff.curvature.operators import Operator, gauss_newton, hessian
from functrain.autodiff.directions import moved
from functrain.config import ConfigError, NonNegative, Positive, Size, configclass, off
from functrain.optim.base import Optimizer, stage, take
from functrain.optim.subproblem import Solved, conjugate_gradients, exact


class Trusted(NamedTuple):
    """What the next step needs to know, and how the last one went: numbers."""

    size: jax.Array  # radius of the trust region, damping, or length along the line
    growth: jax.Array  # of the damping where the next step fails
    products: jax.Array  # with the matrix of the curvature
    taken: jax.Array  # 1, or 0 where the loss would not have fallen


@configclass
class SecondOrder(Optimizer):
    """What they share: a penalty in the loss, and steps that are made of the whole of it."""

    weight_decay: NonNegative = 0.0
    """L2 penalty in the loss: weight_decay / 2 of the squares of the parameters that decay; 0 is off."""
    decay: tuple[str, ...] = ()
    """Patterns of the parameters that decay, searched in paths such as layer0/kernel; empty: all of two axes up."""

    def patterns(self):
        """Those that decay too."""
        return super().patterns() | {"decay": self.decay}

    def decays(self, params):
        """By `decay`."""
        return self._decaying(self.decay, params)

    def penalty(self, params: Any) -> Any:
        """What is added to the loss."""
        if off(self.weight_decay):
            return 0.0
        decaying = take(params, self.decays(params))
        return self.weight_decay / 2 * sum(jnp.sum(jnp.square(tree.wide(p))) for p in jax.tree.leaves(decaying))

    def whole(self, objective: Any) -> Any:
        """The loss with its penalty: params -> a number."""
        return lambda params: objective.value(params)[0] + self.penalty(params)

    def with_penalty(self, gradients: Any, params: Any) -> Any:
        """The gradients of the loss with its penalty."""
        return gradients if off(self.weight_decay) else tree.add(gradients, jax.grad(self.penalty)(params))

    def _refuse_above(self, most: int, params: Any, section: str, instead: str) -> None:
        """Raises a ConfigError where `solver` is "exact" with more trained parameters than `most`."""
        n = self.trained_size(params)
        if getattr(self, "solver", "") == "exact" and n > most:
            raise ConfigError(
                f'{section}.most: solver = "exact" would factorise a matrix of {n:,} rows at each step, and takes at '
                f'most {most:,}; raise {section}.most, or take solver = "{instead}"'
            )

    def start(self, size: Any) -> Trusted:
        """Before the first step."""
        return Trusted(*(jnp.asarray(x, jnp.float32) for x in (size, 2, 0, 1)))

    def notes(self, optimizer_state):
        """The size that the next step starts from, by its name; of the last one `products`, and `taken`, 1 or 0."""
        found = self.stage_state(optimizer_state, Trusted)
        return {} if found is None else {self.size_name: found.size, "products": found.products, "taken": found.taken}

    size_name = "step_size"


def _gain(before: Any, after: Any, said: Any) -> Any:
    """What came true of a gain, as a share: -1 where the loss after is not finite.

    What rounding leaves of two losses that are nearly equal says nothing; there the model is believed.
    """
    eps = jnp.finfo(jnp.result_type(before)).eps
    noise = 10 * eps * jnp.maximum(jnp.abs(before), jnp.finfo(jnp.result_type(before)).tiny)
    gained = before - after
    share = gained / jnp.where(said > 0, said, 1)
    share = jnp.where(said > noise, share, jnp.where(gained >= -noise, 1, -1))
    return jnp.where(jnp.isfinite(after), share, -1)


@configclass
class Newton(SecondOrder):
    """Newton's method in a trust region: the least of a quadratic model within a radius that follows its success.

    The radius is a quarter where less than a quarter of the predicted gain came true, and doubles where more than three
    quarters did and the step ended on the boundary; a step is taken where at least 0.15 of it came true (Nocedal and
    Wright 2006, algorithm 4.1). It leaves saddles, which Newton's method without a region is drawn to.

    Raises:
      ConfigError: `solver` is "exact" with more parameters than `most`.
    """

    kind: Literal["newton"] = "newton"
    solver: Literal["auto", "exact", "steihaug"] = "auto"
    """How that is found: by eigenvectors of the Hessian, or by conjugate gradients; auto goes by `most`."""
    most: Size = 2000
    """Parameters up to which auto takes the exact solver, and above which it is refused."""
    radius: Positive = 1.0
    """The first radius, in the parameters' unit."""
    largest: Positive = 1000.0
    """The largest radius."""
    iterations: Size = 200
    """Products with the Hessian a step, at most, for solver "steihaug"."""

    size_name = "radius"

    def check(self, params, section="optimizer"):
        """Raises a ConfigError where there are too many parameters for the exact solver."""
        super().check(params, section)
        self._refuse_above(self.most, params, section, "steihaug")

    def stages(self):
        """One stage."""

        def update(gradients, state, params, *, value, objective, **extra):
            del extra
            f = self.whole(objective)
            operator = hessian(f, params)
            g, radius = operator.ravel(self.with_penalty(gradients, params)), state.size
            if self.solver == "exact" or (self.solver == "auto" and operator.size <= self.most):
                solved = exact(operator.dense(most=operator.size), g, radius)
            else:
                size = jnp.linalg.norm(g)
                tolerance = jnp.minimum(0.5, jnp.sqrt(size)) * size
                solved = conjugate_gradients(
                    operator.flat, g, tolerance=tolerance, iterations=self.iterations, radius=radius
                )
            d = solved.step
            said = -(g @ d + d @ operator.flat(d) / 2)
            share = _gain(value + self.penalty(params), f(moved(params, 1, operator.unravel(d))), said)
            wider = jnp.where((share > 0.75) & solved.boundary, jnp.minimum(2 * radius, self.largest), radius)
            taken = share > 0.15
            found = (jnp.where(share < 0.25, radius / 4, wider), state.growth, solved.products + 1, taken)
            return operator.unravel(jnp.where(taken, d, 0)), Trusted(*(x.astype(jnp.float32) for x in found))

        return stage(lambda params: self.start(self.radius), update)


@configclass
class GaussNewton(SecondOrder):
    """Gauss and Newton's method, damped by Levenberg and Marquardt: d = -(G + damping I)^-1 g.

    G is the generalised Gauss-Newton matrix, J^T H J, which is nowhere negative: of squared errors 2 J^T J / n, of
    cross-entropy the Fisher matrix, and d then the natural gradient. The damping follows how much of the predicted gain
    came true (Nielsen 1999, eq. 2.4): falling to a third where all of it, doubled, fourfold, ... where nothing; a step
    that would raise the loss is not taken. For a task of one loss that is a score of outputs.

    Raises:
      ConfigError: no such task, or micro-batches.
    """

    kind: Literal["gauss_newton"] = "gauss_newton"
    solver: Literal["auto", "exact", "cg"] = "auto"
    """By a Cholesky factor of G, or by conjugate gradients; auto goes by `most`."""
    most: Size = 2000
    """Parameters up to which auto takes the exact solver, and above which it is refused."""
    damping: Positive = 1e-3
    """The first damping."""
    iterations: Size = 200
    """Products with G a step, at most, for solver "cg"."""
    tolerance: Positive = 1e-6
    """The residual at which solver "cg" ends, as a share of the gradient's norm."""

    size_name = "damping"

    def check(self, params, section="optimizer"):
        """Raises a ConfigError where there are too many parameters for the exact solver."""
        super().check(params, section)
        self._refuse_above(self.most, params, section, "cg")

    def stages(self):
        """One stage."""

        def update(gradients, state, params, *, value, objective, **extra):
            del extra
            if objective.apart is None:
                raise ConfigError(
                    'optimizer.kind: "gauss_newton" is for a loss that is a score of outputs, of whole batches: a task '
                    'such as regression or classification, with train.accumulate = 1; take "newton_cg"'
                )
            f, apart = self.whole(objective), objective.apart
            operator = gauss_newton(apart.predict, apart.score, params)
            if not off(self.weight_decay):
                model, penalty = operator, hessian(self.penalty, params)
                operator = Operator(lambda v: tree.add(model.product(v), penalty.product(v)), model.like)
            g, damped = operator.ravel(self.with_penalty(gradients, params)), operator.damped(state.size)
            if self.solver == "exact" or (self.solver == "auto" and operator.size <= self.most):
                factor = jax.scipy.linalg.cho_factor(damped.dense(most=operator.size))
                solved = Solved(-jax.scipy.linalg.cho_solve(factor, g), jnp.bool_(False), jnp.int32(operator.size))
            else:
                tolerance = self.tolerance * jnp.linalg.norm(g)
                solved = conjugate_gradients(damped.flat, g, tolerance=tolerance, iterations=self.iterations)
            d = solved.step
            said = -(g @ d + d @ operator.flat(d) / 2)
            share = _gain(value + self.penalty(params), f(moved(params, 1, operator.unravel(d))), said)
            taken = share > 0
            damping = state.size * jnp.where(taken, jnp.maximum(1 / 3, 1 - (2 * share - 1) ** 3), state.growth)
            growth = jnp.where(taken, 2, 2 * state.growth)
            found = (jnp.maximum(damping, jnp.finfo(jnp.float32).tiny), growth, solved.products + 1, taken)
            return operator.unravel(jnp.where(taken, d, 0)), Trusted(*(x.astype(jnp.float32) for x in found))

        return stage(lambda params: self.start(self.damping), update)


@configclass
class NewtonCG(SecondOrder):
    """Newton's method by products alone: truncated conjugate gradients, and a search along the direction they give.

    The equations are solved the better the smaller the gradient g is, to min(1/2, |g|^(1/2)) |g|, and no further than
    to a direction of negative curvature (Nocedal and Wright 2006, algorithm 7.1); a step is halved until the loss falls
    by 1e-4 of what its slope says (Armijo).
    """

    kind: Literal["newton_cg"] = "newton_cg"
    iterations: Size = 200
    """Products with the Hessian a step, at most."""
    halvings: Size = 30
    """Of a step, at most; where the loss has not fallen by then, there is none."""

    def stages(self):
        """One stage."""

        def update(gradients, state, params, *, value, objective, **extra):
            del extra
            f = self.whole(objective)
            before, operator = value + self.penalty(params), hessian(f, params)
            g = operator.ravel(self.with_penalty(gradients, params))
            size = jnp.linalg.norm(g)
            tolerance = jnp.minimum(0.5, jnp.sqrt(size)) * size
            solved = conjugate_gradients(operator.flat, g, tolerance=tolerance, iterations=self.iterations)
            d, slope = solved.step, g @ solved.step
            noise = jnp.finfo(g.dtype).eps * jnp.abs(before)

            def falls(share):
                after = f(moved(params, share, operator.unravel(d)))
                return after <= before + 1e-4 * share * slope + noise  # near the end rounding is all there is

            def go_on(at):
                share, fell = at
                return ~fell & (share > 2.0**-self.halvings)

            def halve(at):
                share, _ = at
                return share / 2, falls(share / 2)

            one = jnp.ones((), g.dtype)
            share, fell = lax.while_loop(go_on, halve, (one, falls(one)))
            found = (share, state.growth, solved.products, fell)
            return operator.unravel(jnp.where(fell, share * d, 0)), Trusted(*(x.astype(jnp.float32) for x in found))

        return stage(lambda params: self.start(1.0), update)


@configclass
class LBFGS(SecondOrder):
    """L-BFGS: a model of the curvature from the last gradients, and a search for the strong Wolfe conditions along it.

    Liu and Nocedal 1989, with the line search of Nocedal and Wright 2006, algorithms 3.5 and 3.6, both of optax; each
    of the search's evaluations is a gradient.
    """

    kind: Literal["lbfgs"] = "lbfgs"
    memory: Size = 10
    """Pairs of steps and gradients' differences that are kept: so many copies of the parameters, twice."""
    evaluations_most: Size = 20
    """Of loss and gradient in a search, at most."""

    def stages(self):
        """optax's two stages, of the loss with its penalty."""
        # Until a search is over its gradients are kept, and each search begins with those of the last.
        search = optax.scale_by_zoom_linesearch(self.evaluations_most, initial_guess_strategy="one")
        inner = optax.chain(optax.scale_by_lbfgs(self.memory), optax.scale(-1.0), search)

        def update(gradients, state, params, *, value, objective, **extra):
            del extra
            gradients = self.with_penalty(gradients, params)
            value = value + self.penalty(params)
            return inner.update(gradients, state, params, value=value, grad=gradients, value_fn=self.whole(objective))

        return stage(inner.init, update)
