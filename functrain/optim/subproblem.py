"""The quadratic model g.d + d.Hd / 2 of a loss about a point, made small: what second-order methods solve at each step.

Vectors are flat, [n]; H is given by its products, or as a matrix. All is pure, and runs inside a compiled step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Solved(NamedTuple):
    """A step d, whether it ends on the trust region's boundary, and how many products with H it took."""

    step: jax.Array
    boundary: jax.Array
    products: jax.Array


def conjugate_gradients(
    product: Callable[[jax.Array], jax.Array],
    gradient: jax.Array,
    *,
    tolerance: Any,
    iterations: int,
    radius: Any = jnp.inf,
) -> Solved:
    """Truncated conjugate gradients (Steihaug 1983; Nocedal and Wright 2006, algorithm 7.2).

    From d = 0 until the residual |H d + g| is at most `tolerance`, or after `iterations`. Where it would leave the
    region |d| <= radius, or meets a direction of negative curvature, the step goes on to the boundary and ends there;
    without a region it ends before such a direction, or, where that is the first, follows it some way.

    >>> h = jnp.array([1.0, 2.0])
    >>> found = conjugate_gradients(lambda v: h * v, jnp.array([1.0, 1.0]), tolerance=1e-6, iterations=10)
    >>> found.step.round(4).tolist(), bool(found.boundary), int(found.products)
    ([-1.0, -0.5], False, 2)
    """
    g = gradient

    def go_on(at):
        return ~at["done"] & (at["i"] < iterations)

    def advance(at):
        d, r, p = at["d"], at["r"], at["p"]
        hp = product(p)
        bend, rr = p @ hp, r @ r
        negative = bend <= 0
        share = rr / jnp.where(negative, 1, bend)
        outside = jnp.linalg.norm(d + share * p) >= radius
        stop = negative | outside
        # Where H bends down it does so as far as the boundary; without one, the step so far is the answer.
        to_edge = _to_boundary(d, p, radius)
        first = jnp.where(at["i"] == 0, rr / jnp.maximum(jnp.abs(bend), jnp.finfo(g.dtype).tiny), 0)
        along = jnp.where(stop, jnp.where(jnp.isfinite(radius), to_edge, jnp.where(negative, first, share)), share)
        d = d + along * p
        r_new = r + along * hp
        small = jnp.linalg.norm(r_new) <= tolerance
        p = -r_new + (r_new @ r_new) / jnp.where(rr == 0, 1, rr) * p
        return {"d": d, "r": r_new, "p": p, "i": at["i"] + 1, "done": stop | small, "edge": stop & jnp.isfinite(radius)}

    start = {"d": jnp.zeros_like(g), "r": g, "p": -g, "i": jnp.int32(0)}
    start |= {"done": jnp.linalg.norm(g) <= tolerance, "edge": jnp.bool_(False)}
    end = lax.while_loop(go_on, advance, start)
    return Solved(end["d"], end["edge"], end["i"])


def exact(matrix: jax.Array, gradient: jax.Array, radius: Any) -> Solved:
    """The least of the model within |d| <= radius, from the eigenvectors of H [n, n] (Moré and Sorensen 1983).

    d = -(H + m I)^-1 g with the least m >= 0 for which H + m I is not negative anywhere and |d| <= radius; where g has
    nothing in the direction in which H bends down most (the hard case) that direction takes what is left of the radius.

    >>> exact(jnp.diag(jnp.array([2.0, 4.0])), jnp.array([2.0, 4.0]), 10.0).step.round(4).tolist()   # Newton's own
    [-1.0, -1.0]
    >>> abs(exact(jnp.diag(jnp.array([-1.0, 4.0])), jnp.array([0.0, 0.0]), 2.0).step).round(4).tolist()   # a saddle
    [2.0, 0.0]
    """
    values, vectors = jnp.linalg.eigh(matrix)
    a = vectors.T @ gradient
    tiny = jnp.finfo(a.dtype).eps * jnp.maximum(jnp.abs(values).max(), jnp.finfo(a.dtype).tiny)

    def inside(m):
        bent = values + m
        return jnp.where(bent > tiny, -a / jnp.where(bent > tiny, bent, 1), 0)

    def halve(ends, _):
        low, high = ends
        middle = (low + high) / 2
        longer = jnp.linalg.norm(inside(middle)) > radius
        return (jnp.where(longer, middle, low), jnp.where(longer, high, middle)), None

    least = jnp.maximum(0, -values[0])
    # The length falls with m from here on; at the upper end it is at most the radius.
    ends = (least, least + jnp.linalg.norm(a) / radius)
    (_, m), _ = lax.scan(halve, ends, length=jnp.finfo(a.dtype).nmant + 40)
    interior = (values[0] > tiny) & (jnp.linalg.norm(inside(0.0)) <= radius)
    d = inside(jnp.where(interior, 0, m))
    left = jnp.sqrt(jnp.maximum(radius**2 - d @ d, 0))
    sign = jnp.where(a[0] > 0, -1, 1)
    d = d.at[0].add(jnp.where(interior | (values[0] > tiny), 0, sign * left * (jnp.abs(d[0]) < left)))
    return Solved(vectors @ d, ~interior, jnp.int32(len(a)))


def _to_boundary(d, p, radius):
    """The t >= 0 for which |d + t p| is the radius."""
    a, b, c = p @ p, 2 * d @ p, d @ d - radius**2
    return 2 * -c / jnp.maximum(b + jnp.sqrt(jnp.maximum(b**2 - 4 * a * c, 0)), jnp.finfo(d.dtype).tiny)
