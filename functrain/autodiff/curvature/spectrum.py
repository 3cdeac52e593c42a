"""Spectra of operators by Lanczos and by random vectors: extreme eigenvalues, trace, and what kind a point is.

lanczos(operator, key, steps)                    a tridiagonal matrix with the operator's extreme eigenvalues
top_eigenvalues(operator, key, count)            eigenvalues at both ends, with eigenvectors and residuals
trace(operator, key, samples)                    an estimate and its error
stationary(f, params, key)                       minimum, saddle, maximum or unknown
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from functrain import tree
from functrain.autodiff import directions as along
from functrain.autodiff.curvature.diagonal import Estimated
from functrain.autodiff.curvature.operators import Operator, hessian

_ROUNDING = 10.0
"""In units of the dtype's eps and of the largest product so far: what is left of a vector below it is rounding."""


class Lanczos(NamedTuple):
    """A = Q^T T Q where no step is missing: T of `alpha` on its diagonal and `beta` beside it; Q's rows the `basis`.

    alpha: [steps]. beta: [steps - 1], 0 where an invariant subspace ended. basis: [steps, n], orthonormal rows.
    """

    alpha: jax.Array
    beta: jax.Array
    basis: jax.Array


def lanczos(operator: Operator, key: jax.Array, steps: int) -> Lanczos:
    """Lanczos from a random start, with full reorthogonalisation (Golub, Van Loan 2013, section 10.3).

    A product a step, n steps at most. Each new vector is made orthogonal to all before, twice, so the extreme
    eigenvalues of T are those of A with no copies; the basis is held, steps * n numbers. Where the Krylov space is
    invariant before the last step (fewer distinct eigenvalues than steps) beta is 0 there, and a new random vector goes
    on in the rest of the space: nothing becomes nan.

    >>> a = Operator(lambda v: jnp.array([1.0, 2.0, 4.0]) * v, jnp.zeros(3))
    >>> found = lanczos(a, jax.random.key(0), 3)
    >>> t = jnp.diag(found.alpha) + jnp.diag(found.beta, 1) + jnp.diag(found.beta, -1)
    >>> jnp.linalg.eigvalsh(t).round(4).tolist()
    [1.0, 2.0, 4.0]
    """
    basis, t = _krylov(operator, key, steps, 1)
    return Lanczos(jnp.diag(t), jnp.diag(t, -1), basis)


class Eigenpairs(NamedTuple):
    """Eigenvalues, from the extreme one inwards, and how good they are.

    values: [count]. vectors: a tree with a first axis of so many, each of length 1 in all.
    residuals: [count], |A v - value v|: so near to each value there is an eigenvalue.
    converged: [count], whether the residual is within the tolerance.
    """

    values: jax.Array
    vectors: Any
    residuals: jax.Array
    converged: jax.Array


class Extremes(NamedTuple):
    """Both ends of a spectrum: `largest` from the largest down, `smallest` from the smallest, most negative, up."""

    largest: Eigenpairs
    smallest: Eigenpairs


def top_eigenvalues(
    operator: Operator,
    key: jax.Array,
    count: int = 1,
    *,
    smallest: int = 0,
    steps: int | None = None,
    width: int | None = None,
    tolerance: float | None = None,
) -> Extremes:
    """The largest eigenvalues and, where asked for, the smallest, with eigenvectors, by band Lanczos (Ruhe 1979).

    Values come from within the spectrum: the largest found is never above the largest there is, nor the smallest below.
    Each is within its residual, computed by a product of its own, of an eigenvalue. That no eigenvalue is missed is
    certain only with n steps; with fewer it fails with a small chance (see `stationary`), and, of eigenvalues that are
    equal, only `width` are sure to be found.

    Args:
      count, smallest: how many at either end.
      steps: vectors of the basis, held at once, and products; the default is 40 and 20 for each of `width`.
      width: random vectors at the start. The default, the larger of count and smallest, finds eigenvalues that are as
        often repeated; 1 converges in fewer steps where all are distinct.
      tolerance: the residual, as a share of the largest magnitude, within which a value counts as converged; the
        default is sqrt(eps) of the dtype: 3e-4 in float32. A value then errs by tolerance^2 / gap, as a rule.

    Raises:
      ValueError: nothing asked for, or more than there are or than steps.

    >>> a = Operator(lambda v: jnp.array([-1.0, 2.0, 4.0]) * v, jnp.zeros(3))
    >>> largest, smallest = top_eigenvalues(a, jax.random.key(0), 2, smallest=1)
    >>> largest.values.round(4).tolist(), smallest.values.round(4).tolist(), bool(smallest.converged.all())
    ([4.0, 2.0], [-1.0], True)
    """
    most = max(count, smallest)
    width = most if width is None else width
    steps = min(40 + 20 * width if steps is None else steps, operator.size)
    if min(count, smallest) < 0 or most < 1 or most > steps or width < 1:
        raise ValueError(
            f"found count {count}, smallest {smallest}, width {width}; expected one eigenvalue or more, and at most "
            f"{steps}: the lesser of steps and of {operator.size:,} numbers"
        )
    basis, t = _krylov(operator, key, steps, min(width, steps))
    values, rotations = jnp.linalg.eigh(t)
    tolerance = math.sqrt(jnp.finfo(operator.dtype).eps) if tolerance is None else tolerance
    largest = jnp.max(jnp.abs(values))

    def pairs(chosen):
        vectors = rotations.T[chosen] @ basis
        vectors = vectors / jnp.linalg.norm(vectors, axis=1, keepdims=True)
        off = lax.map(lambda each: operator.flat(each[1]) - each[0] * each[1], (values[chosen], vectors))
        residuals = jnp.linalg.norm(off, axis=1)
        return Eigenpairs(
            values[chosen], jax.vmap(operator.unravel)(vectors), residuals, residuals <= tolerance * largest
        )

    order = np.arange(steps)
    return Extremes(pairs(order[::-1][:count]), pairs(order[:smallest]))


def trace(
    operator: Operator,
    key: jax.Array,
    samples: int,
    *,
    method: Literal["hutchinson", "hutch++"] = "hutchinson",
    block: int = 1,
) -> Estimated:
    """The trace's unbiased estimate and its standard error, from `samples` products.

    "hutchinson": the mean of v^T A v over v of 1 and -1 (Hutchinson 1989); nothing but sums is held. "hutch++" (Meyer,
    Musco, Musco, Woodruff 2021, algorithm 1): a third of the products find the range Q of the large eigenvalues, a
    third give the trace there exactly, a third estimate the rest; Q is held, samples / 3 * n numbers. For positive
    semidefinite A its error falls as 1 / samples, Hutchinson's as 1 / sqrt(samples).

    block: products side by side.

    Raises:
      ValueError: too few samples for a spread: under 2, or 6 for "hutch++"; another method.

    >>> a = Operator(lambda v: jnp.array([3.0, 4.0]) * v, jnp.zeros(2))
    >>> value, error = trace(a, jax.random.key(0), 2)
    >>> float(value), float(error)
    (7.0, 0.0)
    """
    least = {"hutchinson": 2, "hutch++": 6}.get(method)
    if least is None:
        raise ValueError(f'method: found {method!r}; expected "hutchinson" or "hutch++"')
    if samples < least:
        raise ValueError(
            f"samples: found {samples}; expected at least {least}, for the spread between them is the error"
        )
    n, dtype = operator.size, operator.dtype
    if method == "hutchinson":
        keys = jax.random.split(key, samples)

        def sample(k):
            v = jax.random.rademacher(k, (n,), dtype)
            return jnp.vdot(v, operator.flat(v))

        return _mean_of(along.in_blocks(sample, keys, block))
    third = samples // 3
    wide, rest = min(third, n), samples - 2 * third
    keys = jax.random.split(key)
    tests = jax.random.rademacher(keys[0], (wide, n), dtype)
    q = jnp.linalg.qr(along.in_blocks(operator.flat, tests, block).T)[0]  # [n, wide]
    within = jnp.sum(along.in_blocks(operator.flat, q.T, block) * q.T)

    def sample(k):
        v = jax.random.rademacher(k, (n,), dtype)
        v = v - q @ (q.T @ v)
        return jnp.vdot(v, operator.flat(v))

    found = _mean_of(along.in_blocks(sample, jax.random.split(keys[1], rest), block))
    return Estimated(within + found.value, found.error)


Verdict = Literal["minimum", "saddle", "maximum", "unknown"]


@dataclass(frozen=True)
class Stationary:
    """What `stationary` found: the verdict, and the numbers that it rests on.

    gradient: the gradient's norm.
    largest, smallest: eigenvalues of the Hessian; the errors are their residuals, and rounding.
    missed: of a minimum or maximum, a bound on the chance that an eigenvalue of the other sign, or zero, went unseen;
      0 where the basis is complete, 1 where it bounds nothing or where no such claim is made.
    note: why, where it is unknown.
    """

    verdict: Verdict
    gradient: float
    largest: float
    largest_error: float
    smallest: float
    smallest_error: float
    missed: float
    note: str = ""

    def __str__(self) -> str:
        """`saddle: gradient 0, eigenvalues from -2 (error 1e-07) to 2 (error 1e-07)`."""
        text = (
            f"{self.verdict}: gradient {self.gradient:.3g}, eigenvalues from {self.smallest:.6g} "
            f"(error {self.smallest_error:.1g}) to {self.largest:.6g} (error {self.largest_error:.1g})"
        )
        if self.verdict in ("minimum", "maximum") and self.missed:
            text += f", another sign missed with chance at most {self.missed:.1g}"
        return text + (f"; {self.note}" if self.note else "")


def stationary(
    f: Callable[[Any], Any],
    params: Any,
    key: jax.Array,
    *,
    tolerance: float = 1e-3,
    steps: int = 100,
    chance: float = 0.01,
) -> Stationary:
    """Whether f has a minimum, a saddle or a maximum at the parameters, by its gradient and its Hessian's extremes.

    Signs of eigenvalues decide, and an eigenvalue within its error of zero has none: where all others agree, the point
    is unknown, as minima are that lie in a valley (scales that relu passes on, a bias before softmax). A value found at
    either end proves that sign; the absence of the other sign it only makes likely. Were there an eigenvalue <= 0 while
    the smallest found is s > 0, Lanczos from a random start would have missed it with a chance of at most
    1.648 sqrt(n) exp(-(2 steps - 1) sqrt(s / largest)) (Kuczynski, Wozniakowski 1992, theorem 4.2): above `chance`, the
    point is unknown too. With n steps all eigenvalues are found.

    Args:
      f: params -> a float, []. It is compiled, once for each f.
      tolerance: the gradient's norm up to which the point counts as stationary.
      steps: products, and vectors held at once.

    >>> bowl = lambda w: jnp.sum(w**2)
    >>> stationary(bowl, jnp.zeros(3), jax.random.key(0)).verdict
    'minimum'
    >>> stationary(lambda w: w[0] * w[1], jnp.zeros(2), jax.random.key(0)).verdict
    'saddle'
    """
    found = jax.device_get(_extremes(f, steps, params, key))
    n = tree.size(jax.tree.map(jnp.asarray, params))
    gradient, high, low, high_error, low_error = map(float, found)
    kind, missed, note = _kind(high, low, high_error, low_error, n, min(steps, n), chance)
    if not gradient <= tolerance:  # nan too
        kind, missed, note = "unknown", 1.0, f"the gradient is above the tolerance {tolerance:g}"
    return Stationary(kind, gradient, high, high_error, low, low_error, missed, note)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _extremes(f, steps, params, key):
    """(the gradient's norm, the largest eigenvalue, the smallest, their errors)."""
    operator = hessian(f, params)
    sides = top_eigenvalues(operator, key, 1, smallest=1, steps=steps)
    (high, low), residuals = ([getattr(side, name)[0] for side in sides] for name in ("values", "residuals"))
    rounding = _ROUNDING * jnp.finfo(operator.dtype).eps * jnp.maximum(jnp.abs(high), jnp.abs(low))
    return tree.norm(jax.grad(f)(params)), high, low, *(r + rounding for r in residuals)


def _kind(high, low, high_error, low_error, n, steps, chance) -> tuple[Verdict, float, str]:
    """(verdict, bound on the chance that it misses an eigenvalue, why it is unknown)."""
    if not all(map(math.isfinite, (high, low, high_error, low_error))):
        return "unknown", 1.0, "an eigenvalue is not finite"
    if low < -low_error and high > high_error:
        return "saddle", 1.0, ""
    if low > low_error:
        verdict, least, most = "minimum", low - low_error, high
    elif high < -high_error:
        verdict, least, most = "maximum", -high - high_error, -low
    else:
        return "unknown", 1.0, "an eigenvalue is within its error of zero"
    missed = 0.0
    if steps < n:
        missed = min(1.0, 1.648 * math.sqrt(n) * math.exp(-(2 * steps - 1) * math.sqrt(least / most)))
    if missed > chance:
        return "unknown", missed, f"a {verdict}, but that {steps} steps may have missed an eigenvalue of another sign"
    return verdict, missed, ""


def _mean_of(samples):
    return Estimated(samples.mean(), samples.std(ddof=1) / math.sqrt(len(samples)))


def _krylov(operator, key, steps, width):
    """(orthonormal basis [m, n] of the block Krylov space from `width` random vectors, A in it [m, m]), m <= n.

    The candidate for vector j + width is A times vector j. Its coefficients with the vectors from j on are a column of
    the matrix and, by symmetry, a row.
    """
    n, dtype = operator.size, operator.dtype
    m = min(steps, n)
    if m < 1:
        raise ValueError(f"steps: found {steps}; expected at least 1")
    keys = jax.random.split(key, m + width)
    least = _ROUNDING * jnp.finfo(dtype).eps

    def orthogonal(w, basis):
        """(w less its part in the basis, that part's coefficients): twice, which is enough (Parlett 1998, 6.9)."""
        first = basis @ w
        w = w - first @ basis
        second = basis @ w
        return w - second @ basis, first + second

    def fresh(key, basis):
        v = jax.random.normal(key, (n,), dtype)
        v = orthogonal(v / jnp.linalg.norm(v), basis)[0]
        v = orthogonal(v / jnp.linalg.norm(v), basis)[0]
        return v / jnp.linalg.norm(v)

    def step(carry, each):
        basis, scale = carry
        j, key = each
        w = operator.flat(basis[j])
        scale = jnp.maximum(scale, jnp.linalg.norm(w))
        w, column = orthogonal(w, basis)
        beta = jnp.linalg.norm(w)
        broken, after = beta <= least * scale, j + width
        # A broken last step has no room for another direction, and no use for it.
        new = lax.cond(broken & (after < m), lambda: fresh(key, basis), lambda: w / jnp.where(broken, 1, beta))
        column = column.at[after].set(jnp.where(broken, 0, beta), mode="drop")
        return (basis.at[after].set(new, mode="drop"), scale), column

    basis = jnp.zeros((m, n), dtype)
    for i in range(width):
        basis = basis.at[i].set(fresh(keys[m + i], basis), mode="drop")
    (basis, _), columns = lax.scan(step, (basis, jnp.zeros((), dtype)), (jnp.arange(m), keys[:m]))
    lower = jnp.tril(columns.T)
    return basis, lower + jnp.tril(lower, -1).T
