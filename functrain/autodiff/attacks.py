"""Attacks: inputs near given ones at which a loss is large. Pure functions of any loss of the inputs.

`loss(x) -> [n]` is a loss for each of the n examples in x [n, ...], where the loss of an example depends on that one
alone (so batch norm stands in evaluation mode): one gradient, that of the sum, then serves them all.

    fgsm           one step of the sign of the gradient
    pgd            many projected steps from a random start; the worst of several restarts
    ascend         the steps of `pgd` from a start that is given
    random_point   where `pgd` starts
    project        the nearest point within reach

Within reach of x are the points at most epsilon away, by the largest change of an entry (`norm` "inf") or by the
Euclidean length of an example's change ("l2"), whose entries lie in [low, high]. `epsilon` and `step_size` may be
traced. What comes back counts as data: no gradient flows through it.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

Norm = Literal["inf", "l2"]
Loss = Callable[[jax.Array], jax.Array]


def fgsm(
    loss: Loss,
    x: jax.Array,
    *,
    epsilon: Any,
    norm: Norm = "inf",
    targeted: bool = False,
    low: float = 0.0,
    high: float = 1.0,
) -> jax.Array:
    """The fast gradient sign method: x + epsilon sign(d loss / d x), cut to [low, high] (Goodfellow et al. 2015, 4).

    Args:
      loss, x: see the module's first lines.
      norm: for "l2" the step is epsilon along each example's gradient.
      targeted: downhill instead: `loss` is of the class that the model shall be made to see.

    >>> print(fgsm(lambda x: (x**2).sum(-1), jnp.array([[0.5, 0.95]]), epsilon=0.1))
    [[0.6 1. ]]
    """
    return ascend(
        loss,
        x,
        start=x,
        epsilon=epsilon,
        step_size=epsilon,
        steps=1,
        norm=norm,
        targeted=targeted,
        low=low,
        high=high,
    )


def pgd(
    loss: Loss,
    x: jax.Array,
    *,
    key: jax.Array | None = None,
    epsilon: Any,
    step_size: Any,
    steps: int,
    norm: Norm = "inf",
    random_start: bool = True,
    restarts: int = 1,
    targeted: bool = False,
    low: float = 0.0,
    high: float = 1.0,
    unroll: int = 10,
) -> jax.Array:
    """Projected gradient ascent: x <- project(x + step_size * direction), `steps` times (Madry et al. 2018, sec. 2.1).

    The direction is the gradient's sign ("inf"), or the gradient over its length ("l2").

    Args:
      loss, x: see the module's first lines.
      key: for the random start; each restart has its own.
      random_start: begin at `random_point` instead of x.
      restarts: as often it is begun anew; of each example the point of the largest loss is kept.
      targeted: downhill instead, and the smallest loss is kept.
      unroll: up to so many steps, over all restarts, the program is written out; above it is a loop. XLA runs
        convolutions in a loop on a CPU 3 times slower (28 x 28 images, 16 and 32 maps), and is the longer about
        compiling the more there are outside of one: 0.2 s a step there.

    Raises:
      ValueError: a random start without a key, restarts that all begin at x, or losses that are not [n].

    >>> ball = dict(epsilon=0.2, step_size=0.05, steps=20)
    >>> x = pgd(lambda x: -((x - 0.4) ** 2).sum(-1), jnp.array([[0.5, 0.9]]), key=jax.random.key(0), **ball)
    >>> print(x.round(1))   # the second cannot come nearer than 0.2
    [[0.4 0.7]]
    """
    if restarts > 1 and not random_start:
        raise ValueError(f"pgd: {restarts} restarts that all begin at x are one; expected random_start")
    within: dict[str, Any] = {"epsilon": epsilon, "norm": norm, "low": low, "high": high}
    settings: dict[str, Any] = {"step_size": step_size, "steps": steps, "targeted": targeted}
    sign, written_out = -1 if targeted else 1, steps * restarts <= unroll

    def attacked(i):
        if not random_start:
            start = x
        elif key is None:
            raise ValueError("pgd: a random start needs a key")
        else:
            start = random_point(x, key=jax.random.fold_in(key, i), **within)
        return ascend(loss, x, start=start, unroll=steps if written_out else 0, **settings, **within)

    if restarts == 1:
        return attacked(0)

    def keep_worse(i, best):
        new = attacked(i)
        worse = sign * _each(loss, new) > sign * _each(loss, best)
        return jnp.where(_over(worse, x), new, best)

    return _repeat(keep_worse, attacked(0), 1, restarts, written_out)


def ascend(
    loss: Loss,
    x: jax.Array,
    *,
    start: jax.Array,
    epsilon: Any,
    step_size: Any,
    steps: int,
    norm: Norm = "inf",
    targeted: bool = False,
    low: float = 0.0,
    high: float = 1.0,
    unroll: int = 10,
) -> jax.Array:
    """The steps of `pgd` around x, from `start`, which need not lie within reach; each step ends there.

    >>> x = jnp.array([[0.5, 0.9]])
    >>> ascend(lambda x: x.sum(-1), x, start=x, epsilon=0.5, step_size=0.25, steps=2, norm="l2").tolist()
    [[0.85..., 1.0]]
    """
    x, sign = lax.stop_gradient(x), -1 if targeted else 1
    slope = jax.grad(lambda z: sign * _each(loss, z).sum())

    def step(_, z):
        moved = z + (step_size * _direction(slope(z), norm)).astype(x.dtype)
        return project(moved, x, epsilon=epsilon, norm=norm, low=low, high=high)

    return lax.stop_gradient(_repeat(step, lax.stop_gradient(start.astype(x.dtype)), 0, steps, steps <= unroll))


def random_point(
    x: jax.Array, *, key: jax.Array, epsilon: Any, norm: Norm = "inf", low: float = 0.0, high: float = 1.0
) -> jax.Array:
    """A point drawn evenly from the ball around each example, cut to [low, high].

    In the Euclidean ball: a direction of normal numbers times epsilon u^(1/d), u even in [0, 1] and d the entries of
    an example (Muller 1959).

    >>> random_point(jnp.array([[0.0, 0.5]]), key=jax.random.key(0), epsilon=0.0).tolist()
    [[0.0, 0.5]]
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    if norm == "inf":
        change = epsilon * jax.random.uniform(key, x.shape, wide, -1, 1)
    else:
        a, b = jax.random.split(key)
        far = jax.random.uniform(b, x.shape[:1], wide) ** (1 / (x.size // max(len(x), 1)))
        change = epsilon * _over(far, x) * _direction(jax.random.normal(a, x.shape, wide), norm)
    return project(x + change.astype(x.dtype), x, epsilon=epsilon, norm=norm, low=low, high=high)


def project(
    z: jax.Array, x: jax.Array, *, epsilon: Any, norm: Norm = "inf", low: float = 0.0, high: float = 1.0
) -> jax.Array:
    """What of z [n, ...] is within reach of x: the change cut or shortened to epsilon, then cut to [low, high].

    For an x within [low, high] the second cut only brings it nearer to x.

    >>> project(jnp.array([[3.0, 4.0]]), jnp.array([[0.0, 0.0]]), epsilon=2.5, norm="l2", high=1.75).tolist()
    [[1.5, 1.75]]
    """
    if norm == "inf":
        reach = jnp.asarray(epsilon, x.dtype)
        return jnp.clip(jnp.clip(z, x - reach, x + reach), low, high)
    length = _length(z - x)
    share = jnp.where(length > epsilon, epsilon / jnp.where(length > 0, length, 1), 1)
    return jnp.clip(x + (z - x) * _over(share, x).astype(x.dtype), low, high)


def _direction(gradient, norm):
    """The step of length 1 by which a linear loss rises most; 0 where the gradient is 0."""
    if norm == "inf":
        return jnp.sign(gradient)
    # First over its largest entry: the squares of the small gradients of a sure model would round to zero.
    largest = jnp.abs(gradient).max(axis=tuple(range(1, gradient.ndim)), keepdims=True)
    gradient = gradient / jnp.where(largest > 0, largest, 1)
    length = _over(_length(gradient), gradient)
    return (gradient / jnp.where(length > 0, length, 1)).astype(gradient.dtype)


def _length(change):
    """[n]: the Euclidean length of each example, in at least float32."""
    change = change.astype(jnp.promote_types(change.dtype, jnp.float32))
    return jnp.sqrt(jnp.square(change).sum(tuple(range(1, change.ndim))))


def _over(each, x):
    """[n] as [n, 1, ...], with the axes of x."""
    return each.reshape(-1, *(1,) * (x.ndim - 1))


def _each(loss, x):
    """The losses, whose shape is checked: of a mean, the sum is no sum over examples."""
    losses = loss(x)
    if losses.shape != x.shape[:1]:
        raise ValueError(f"the loss of x {x.shape} has the shape {losses.shape}; expected one for each of {len(x)}")
    return losses


def _repeat(body, x, start, stop, written_out):
    if not written_out:
        return lax.fori_loop(start, stop, body, x)
    for i in range(start, stop):
        x = body(i, x)
    return x
