"""Preconditioners of our own: where optax has another convention than torch's, which these follow.

Each is an optax pair, `init(params) -> state` and `update(updates, state, params) -> (updates, state)`. Numbers may be
traced arrays; integers and booleans are structure. Leaves that are masked stay so.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from functrain import tree

MUON_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of Newton and Schulz's iteration, chosen for the steepest slope at zero (Jordan et al. 2024)."""


class AdagradState(NamedTuple):
    """The sum of squared gradients."""

    total: Any


def scale_by_adagrad(
    initial: Any, epsilon: Any, by_row: Callable[[str], bool] = lambda path: False
) -> optax.GradientTransformation:
    """s += g^2; g / (sqrt(s) + epsilon) (Duchi et al. 2011); optax.scale_by_rss adds its epsilon inside the root.

    by_row: path -> whether an array keeps one s for each of its rows, to which the row's mean g^2 is added.
    """

    def row(path, x):
        """The axes that one sum stands for."""
        return tuple(range(1, x.ndim)) if by_row(path) else ()

    def init(params):
        return AdagradState(
            tree.map_by_path(lambda path, p: jnp.full_like(p.mean(row(path, p), keepdims=True), initial), params)
        )

    def update(updates, state, params=None):
        squares = tree.map_by_path(lambda path, g: jnp.square(g).mean(row(path, g), keepdims=True), updates)
        total = jax.tree.map(jnp.add, state.total, squares)
        return jax.tree.map(lambda g, s: g / (jnp.sqrt(s) + epsilon), updates, total), AdagradState(total)

    return optax.GradientTransformation(init, update)


class MomentsState(NamedTuple):
    """Running means of gradients and of squared gradients, and how many there were."""

    count: jax.Array
    mean: Any
    square: Any


def _moments(params) -> MomentsState:
    zeros = jax.tree.map(jnp.zeros_like, params)
    return MomentsState(jnp.int32(0), zeros, jax.tree.map(jnp.zeros_like, params))


def _moved(state: MomentsState, updates, b1, b2) -> MomentsState:
    return MomentsState(
        state.count + 1,
        optax.tree.update_moment(updates, state.mean, b1, 1),
        optax.tree.update_moment(updates, state.square, b2, 2),
    )


def scale_by_centered_rms(decay: Any, epsilon: Any) -> optax.GradientTransformation:
    """g / (sqrt(E[g^2] - E[g]^2) + epsilon) (Graves 2013, eq. 38 to 40, with epsilon outside the root).

    The variance is kept from falling below zero by rounding, where optax.scale_by_stddev and torch give nan.
    """

    def update(updates, state, params=None):
        state = _moved(state, updates, decay, decay)

        def scaled(g, mean, square):
            return g / (jnp.sqrt(jnp.maximum(square - jnp.square(mean), 0)) + epsilon)

        return jax.tree.map(scaled, updates, state.mean, state.square), state

    return optax.GradientTransformation(_moments, update)


class AmsgradState(NamedTuple):
    """Adam's moments, and the largest second moment so far."""

    moments: MomentsState
    largest: Any


def scale_by_amsgrad(b1: Any, b2: Any, epsilon: Any) -> optax.GradientTransformation:
    """Adam over the largest second moment so far (Reddi et al. 2018, algorithm 2; both moments corrected for bias).

    The maximum is taken before the correction, as in torch; optax.scale_by_amsgrad takes it after.
    """

    def init(params):
        return AmsgradState(_moments(params), jax.tree.map(jnp.zeros_like, params))

    def update(updates, state, params=None):
        moments = _moved(state.moments, updates, b1, b2)
        largest = jax.tree.map(jnp.maximum, state.largest, moments.square)
        mean = optax.tree.bias_correction(moments.mean, b1, moments.count)
        square = optax.tree.bias_correction(largest, b2, moments.count)
        scaled = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + epsilon), mean, square)
        return scaled, AmsgradState(moments, largest)

    return optax.GradientTransformation(init, update)


class NAdamState(NamedTuple):
    """Adam's moments, and the product of the momenta so far."""

    moments: MomentsState
    product: jax.Array


def scale_by_nadam(b1: Any, b2: Any, epsilon: Any, momentum_decay: Any) -> optax.GradientTransformation:
    """Adam with Nesterov's momentum, mu_t = b1 (1 - 0.96^(t * momentum_decay) / 2) (Dozat 2016, algorithm 2).

    (1 - mu_t) / (1 - prod mu_1..t) g + mu_t+1 / (1 - prod mu_1..t+1) m, over sqrt(v / (1 - b2^t)) + epsilon; as torch.
    optax.scale_by_adam(nesterov=True) has no such schedule: mu_t = b1.
    """

    def init(params):
        return NAdamState(_moments(params), jnp.ones(()))

    def update(updates, state, params=None):
        moments = _moved(state.moments, updates, b1, b2)
        now, later = (b1 * (1 - 0.5 * 0.96 ** (t * momentum_decay)) for t in (moments.count, moments.count + 1))
        product = state.product * now
        by_gradient, by_mean = (1 - now) / (1 - product), later / (1 - product * later)
        square = optax.tree.bias_correction(moments.square, b2, moments.count)

        def scaled(g, m, v):
            return (by_gradient * g + by_mean * m) / (jnp.sqrt(v) + epsilon)

        return jax.tree.map(scaled, updates, moments.mean, square), NAdamState(moments, product)

    return optax.GradientTransformation(init, update)


def scale_by_radam(b1: Any, b2: Any, epsilon: Any) -> optax.GradientTransformation:
    """Rectified Adam (Liu et al. 2020, algorithm 2): the bare mean until the length rho_t exceeds 5, as in torch.

    r sqrt(1 - b2^t) m / (sqrt(v) + epsilon): epsilon beside the root of the second moment before its bias is corrected,
    where optax.scale_by_radam adds it after, and rectifies from rho_t = 5 on.
    """

    def update(updates, state, params=None):
        state = _moved(state, updates, b1, b2)
        t = state.count
        # 1 - b2^t by expm1: in float32 the difference loses so many digits that rho_t is off by a tenth.
        power = jnp.exp(t * jnp.log1p(b2 - 1))
        corrected = -jnp.expm1(t * jnp.log1p(b2 - 1))
        longest = 2 / (1 - b2) - 1
        length = longest - 2 * t * power / corrected
        square = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        factor = jnp.sqrt(jnp.maximum(square, 0) * corrected)
        mean = optax.tree.bias_correction(state.mean, b1, t)

        def scaled(m, v):
            return jnp.where(length > 5, m * factor / (jnp.sqrt(v) + epsilon), m)

        return jax.tree.map(scaled, mean, state.square), state

    return optax.GradientTransformation(_moments, update)


class AdafactorState(NamedTuple):
    """For each leaf running means of squared gradients: {"row", "column"} of matrices, {"full"} of all else."""

    count: jax.Array
    squares: Any


def scale_by_adafactor(
    rate: Callable[[Any], Any], exponent: Any, epsilon: Any, smallest: Any, threshold: Any
) -> optax.GradientTransformation:
    """Adafactor (Shazeer, Stern 2018, algorithms 4 and 5) as torch.optim.Adafactor has it, less its learning rate.

    V = R C / mean(R) over the last two axes, new squares weighted by t^-exponent; u = g / sqrt(V); times 1 / max(1,
    rms(u) / threshold), max(smallest, rms(p)) and min(1, 1 / (rate sqrt(t))), so that the rate that follows is
    min(rate, 1 / sqrt(t)).
    An epsilon that is a Python zero is the machine epsilon of the leaf's dtype.
    """

    def squares_of(g):
        square = jnp.square(g)
        if g.ndim < 2:
            return {"full": square}
        return {"row": square.mean(-1, keepdims=True), "column": square.mean(-2, keepdims=True)}

    def rms(x):
        return jnp.sqrt(jnp.mean(jnp.square(x)))

    def init(params):
        return AdafactorState(jnp.int32(0), jax.tree.map(lambda p: squares_of(jnp.zeros_like(p)), params))

    def update(updates, state, params=None):
        count = state.count + 1
        t = jnp.asarray(count, float)
        weight = t**-exponent
        peak = rate(state.count)
        step = jnp.where(peak > 0, jnp.minimum(peak, 1 / jnp.sqrt(t)) / jnp.where(peak > 0, peak, 1), 1)
        fresh = jax.tree.map(squares_of, updates)
        squares = jax.tree.map(lambda old, new: old + (new - old) * weight, state.squares, fresh)

        def scaled(g, p, square):
            least = jnp.finfo(g.dtype).eps if isinstance(epsilon, (int, float)) and epsilon == 0 else epsilon
            if "full" in square:
                estimate = square["full"]
            else:
                mean = jnp.maximum(square["row"].mean(-2, keepdims=True), least)
                estimate = square["row"] * square["column"] / mean
            u = g * lax.rsqrt(jnp.maximum(estimate, jnp.square(least)))
            u = u / jnp.maximum(1, rms(u) / threshold)
            return u * (jnp.maximum(smallest, rms(tree.wide(p))) * step)

        leaves, structure = jax.tree.flatten(updates)
        beside = (structure.flatten_up_to(params), structure.flatten_up_to(squares))
        return structure.unflatten(map(scaled, leaves, *beside)), AdafactorState(count, squares)

    return optax.GradientTransformation(init, update)


class MuonState(NamedTuple):
    """The running mean of gradients."""

    mean: Any


def scale_by_muon(momentum: Any, epsilon: Any, *, nesterov: bool, steps: int, adjust: str):
    """Momentum made orthogonal (Jordan et al. 2024), for leaves [inputs, outputs]; in at least float32.

    b = momentum b + (1 - momentum) g; of momentum b + (1 - momentum) g (or of b, without Nesterov) the orthogonal
    factor by `steps` of Newton and Schulz; times sqrt(max(1, outputs / inputs)) for adjust "original", or
    0.2 sqrt(max(inputs, outputs)) for "match_rms_adamw" (Liu et al. 2025, eq. 4). As torch.optim.Muon, which does this
    in bfloat16; optax.contrib.scale_by_muon corrects both terms for bias, and so weighs them otherwise at first.
    """

    def init(params):
        return MuonState(jax.tree.map(jnp.zeros_like, params))

    def update(updates, state, params=None):
        mean = optax.tree.update_moment(updates, state.mean, momentum, 1)

        def scaled(g, b):
            inputs, outputs = g.shape
            ahead = momentum * b + (1 - momentum) * g if nesterov else b
            original = math.sqrt(max(1, outputs / inputs))
            factor = original if adjust == "original" else 0.2 * math.sqrt(max(inputs, outputs))
            return factor * orthogonal(tree.wide(ahead), steps, epsilon)

        return jax.tree.map(scaled, updates, mean), MuonState(mean)

    return optax.GradientTransformation(init, update)


def orthogonal(x: jax.Array, steps: int, epsilon: Any) -> jax.Array:
    """About U V^T of x = U S V^T, its singular values between 0.7 and 1.2: quintic Newton-Schulz on x / |x|.

    >>> import numpy as np
    >>> y = orthogonal(jnp.array([[3.0, 0.0, 1.0], [1.0, 2.0, 0.0]]), 5, 1e-7)
    >>> np.linalg.svd(y, compute_uv=False).round(1).tolist()
    [..., ...]
    """
    a, b, c = MUON_COEFFICIENTS
    tall = x.shape[0] > x.shape[1]
    y = x.T if tall else x  # the smaller Gram matrix of the two
    y = y / jnp.maximum(jnp.linalg.norm(y), epsilon)
    for _ in range(steps):
        gram = y @ y.T
        y = a * y + (b * gram + c * gram @ gram) @ y
    return y.T if tall else y
