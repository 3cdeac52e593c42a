"""Gradient transformations of our own, for the stages around the preconditioner.

Each is an optax pair, `init(params) -> state` and `update(updates, state, params, **extra) -> (updates, state)`.
Numbers may be traced arrays; integers and booleans are structure. Leaves that are masked stay so.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from functrain import tree

# -- gradients ------------------------------------------------------------------------------------


def adaptive_clip(share: Any, smallest: Any = 1e-3) -> optax.GradientTransformation:
    """g * min(1, share * max(|p|, smallest) / |g|) unit by unit (Brock et al. 2021, eq. 3).

    A unit is what feeds one output: all axes but the last. A leaf of one axis or none is one unit.
    (optax.adaptive_grad_clip takes axis 0 alone of three, which is not the unit of a one-dimensional convolution.)
    """

    def norm(x):
        axes = tuple(range(x.ndim - 1)) if x.ndim > 1 else None
        return jnp.sqrt(jnp.sum(jnp.square(tree.wide(x)), axes, keepdims=True))

    def clip(g, p):
        size, most = norm(g), share * jnp.maximum(norm(p), smallest)
        return jnp.where(size > most, g * (most / jnp.where(size > most, size, 1)), g)

    return _stateless(lambda updates, params: jax.tree.map(clip, updates, params))


def add_sign(strength: Any) -> optax.GradientTransformation:
    """g + strength * sign(p): the gradient of an L1 penalty, strength * sum |p|."""
    return _stateless(lambda updates, params: jax.tree.map(lambda g, p: g + strength * jnp.sign(p), updates, params))


def scale_by_path(factor: Callable[[str], float]) -> optax.GradientTransformation:
    """Each leaf times `factor(path)`, a Python number; a leaf of factor 1 is left as it is."""

    def scaled(path, update):
        number = factor(path)
        return update if number == 1 else number * update

    return _stateless(lambda updates, params: tree.map_by_path(scaled, updates))


def _stateless(f: Callable[[Any, Any], Any]) -> optax.GradientTransformation:
    return optax.GradientTransformation(
        lambda params: optax.EmptyState(), lambda updates, state, params=None: (f(updates, params), state)
    )


# -- after the rate -------------------------------------------------------------------------------


class PlateauState(NamedTuple):
    """The factor in force, and what decides when it falls."""

    factor: jax.Array
    best: jax.Array
    total: jax.Array  # of the losses in this window
    seen: jax.Array  # how many they are
    bad: jax.Array  # windows since the best
    cooldown: jax.Array  # windows in which bad ones do not count


def scale_on_plateau(
    *, window: int, patience: int, cooldown: int, factor: Any, smallest: Any, threshold: Any
) -> optax.GradientTransformationExtraArgs:
    """The update times a factor that falls when the loss (`value`), averaged over windows, has stopped falling.

    As torch's ReduceLROnPlateau (mode min, relative threshold, eps 0): more than `patience` windows in a row without a
    mean below best * (1 - threshold) multiply the factor by `factor`, down to `smallest`. This update's loss acts on
    the next update, so that the rate is known before the step (optax.contrib.reduce_on_plateau applies it at once).
    """

    def init(params):
        counts = (jnp.int32(0) for _ in range(3))
        return PlateauState(jnp.ones(()), jnp.full((), jnp.inf), jnp.zeros(()), *counts)

    def update(updates, state, params=None, *, value, **extra):
        scaled = jax.tree.map(lambda u: state.factor.astype(u.dtype) * u, updates)
        total, seen = state.total + value, state.seen + 1
        full = seen == window
        mean = total / window
        better = mean < state.best * (1 - threshold)
        cooling = state.cooldown > 0
        bad = jnp.where(better | cooling, 0, state.bad + 1)
        falls = bad > patience
        decided = PlateauState(
            jnp.where(falls, jnp.minimum(jnp.maximum(state.factor * factor, smallest), state.factor), state.factor),
            jnp.where(better, mean, state.best),
            jnp.zeros_like(total),
            jnp.zeros_like(seen),
            jnp.where(falls, 0, bad),
            jnp.where(falls, cooldown, state.cooldown - cooling),
        )
        return scaled, tree.where(full, decided, state._replace(total=total, seen=seen))

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


class ScheduleFreeState(NamedTuple):
    """The base iterate z, and what the average x is made with; the parameters are y."""

    z: Any
    b1: jax.Array  # kept, for x is asked for where no live numbers are bound
    weights: jax.Array  # the sum of squared rates
    count: jax.Array


def schedule_free(rate: Callable[[Any], Any], b1: Any) -> optax.GradientTransformation:
    """Schedule-free averaging of finished steps (Defazio et al. 2024, algorithm 1).

    z += u;  c = rate^2 / sum of rates^2;  x = (1 - c) x + c z;  y = (1 - b1) z + b1 x. The gradient is taken at y, the
    parameters; x = (y - (1 - b1) z) / b1 is what evaluation uses. The count starts at 0, as the schedule's does
    (optax.contrib.schedule_free looks up the rate one update ahead of the one it applies).
    """

    def init(params):
        z = jax.tree.map(lambda p: jnp.array(p, copy=True), params)  # of its own memory: both are donated
        return ScheduleFreeState(z, jnp.asarray(b1, float), jnp.zeros(()), jnp.int32(0))

    def update(updates, state, params=None):
        weight = jnp.square(jnp.asarray(rate(state.count), float))
        weights = state.weights + weight
        share = jnp.where(weights > 0, weight / jnp.where(weights > 0, weights, 1), 0)
        z = optax.apply_updates(state.z, updates)

        def moved(y, old, new):
            x = (y - (1 - b1) * old) / b1
            return b1 * ((1 - share) * x + share * new) + (1 - b1) * new - y

        return jax.tree.map(moved, params, state.z, z), ScheduleFreeState(z, state.b1, weights, state.count + 1)

    return optax.GradientTransformation(init, update)


def averaged(state: ScheduleFreeState, params: Any) -> Any:
    """The average x of parameters y; leaves that do not train as they are."""

    def x(z, y):
        return y if isinstance(z, optax.MaskedNode) else ((y - (1 - state.b1) * z) / state.b1).astype(y.dtype)

    return jax.tree.map(x, state.z, params, is_leaf=lambda leaf: isinstance(leaf, optax.MaskedNode))


class LookaheadState(NamedTuple):
    """The slow weights, and updates since they moved."""

    slow: Any
    since: jax.Array


def lookahead(every: int, share: Any) -> optax.GradientTransformation:
    """Each `every` updates, slow += share * (fast - slow) and fast = slow (Zhang et al. 2019, algorithm 1).

    The parameters are the fast weights. (optax.lookahead wants pairs of parameters in place of parameters.)
    """

    def init(params):
        return LookaheadState(jax.tree.map(lambda p: jnp.array(p, copy=True), params), jnp.int32(0))

    def update(updates, state, params=None):
        since = state.since + 1

        def meet():
            slow = jax.tree.map(lambda s, p, u: (s + share * (p + u - s)).astype(s.dtype), state.slow, params, updates)
            return jax.tree.map(lambda s, p, u: (s - p).astype(u.dtype), slow, params, updates), slow

        moved, slow = lax.cond(since == every, meet, lambda: (updates, state.slow))
        return moved, LookaheadState(slow, since % every)

    return optax.GradientTransformation(init, update)


# -- optimizers of others -------------------------------------------------------------------------


class CountedState(NamedTuple):
    """The state of an optimizer, and how many updates it has made."""

    count: jax.Array
    inner: Any


def at_each_rate(make: Callable[[Any], optax.GradientTransformation], rate: Callable[[Any], Any]):
    """The optimizer `make(learning rate)`, made anew at each update with that update's rate."""

    def init(params):
        return CountedState(jnp.int32(0), make(rate(jnp.int32(0))).init(params))

    def update(updates, state, params=None, *, objective=None, key=None, **extra):
        del objective, key  # a line search of optax refuses what it does not know
        inner = optax.with_extra_args_support(make(rate(state.count)))
        updates, new = inner.update(updates, state.inner, params, **extra)
        return updates, CountedState(state.count + 1, new)

    return optax.GradientTransformationExtraArgs(init, update)
