"""The LSTM's recurrence over a sequence, with a derivative that does outside of the loop what can be done there.

Differentiated as it stands, a loop adds to the gradient of its matrix at each place, and works each gate's derivative
out anew. Here one product over all places gives the matrix's gradient, the gates' derivatives are had all at once, and
what is left in the loop is one product and one multiplication. The rule is a derivative like any other: forward,
backward, of any order. Value and gradient of 1 x 256, batch 32, length 64 (input of 256): docs/speed.md.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from functrain.layers import linear


@partial(jax.custom_jvp, nondiff_argnums=(4,))
def recur(
    gates: jax.Array, kernel: jax.Array, state: dict[str, jax.Array], here: jax.Array | None, reverse: bool
) -> tuple[dict[str, jax.Array], jax.Array]:
    """i, f, g, o = gates + h W;  c' = s(f) c + s(i) tanh(g);  h' = s(o) tanh(c')   (functrain.layers.recurrent)

    Args:
      gates: the part of the gates from the input, both biases in it, [length, batch, 4 * width], in the state's dtype.
      kernel: W [width, 4 * width]; the product is in its dtype.
      state: {"h", "c"}, each [batch, width].
      here: [length, batch, 1], False where a place is none: the state goes past it. None is all.
      reverse: from the last place to the first.

    Returns:
      (the state after the last place, h at every place [length, batch, width]).
    """
    state, (h, _, _) = _values(gates, kernel, state, here, reverse)
    return state, h


def _values(gates, kernel, state, here, reverse):
    """(state after, (h, c, the gates' values) at every place)."""

    def advance(before, given):
        gates, here = given
        values = _activated(gates + _product(before["h"], kernel))
        i, f, g, o = jnp.split(values, 4, -1)
        c = f * before["c"] + i * g
        after = {"h": o * jnp.tanh(c), "c": c}
        if here is not None:
            after = jax.tree.map(lambda a, b: jnp.where(here, a, b), after, before)
        return after, (after["h"], after["c"], values)

    return lax.scan(advance, state, (gates, here), reverse=reverse)


def _activated(z):
    """The logistic function of i, f and o, tanh of g, by one tanh over all: s(z) = (1 + tanh(z / 2)) / 2."""
    width = z.shape[-1] // 4
    half = jnp.repeat(jnp.array([0.5, 0.5, 1, 0.5], z.dtype), width)
    return jnp.tanh(half * z) * half + (1 - half)


def _product(h, kernel):
    return (h.astype(kernel.dtype) @ kernel).astype(h.dtype)


@recur.defjvp
def _rule(reverse, primals, tangents):
    (gates, kernel, state, here), (dgates, dkernel, dstate, _) = primals, tangents
    after, (h, c, values) = _values(gates, kernel, state, here, reverse)
    h_before, c_before = _before(h, state["h"], reverse), _before(c, state["c"], reverse)

    # With c' = f c + i g and h' = o tanh(c'), all of these by what stood before the logistic function or tanh:
    i, f, g, o = jnp.split(values, 4, -1)
    t = jnp.tanh(c)
    through = o * (1 - t * t)
    own = jnp.stack([g * i * (1 - i), c_before * f * (1 - f), i * (1 - g * g), t * o * (1 - o)], -2)
    kept = None
    if here is not None:
        own = jnp.where(here[..., None], own, 0)
        through, f, kept = jnp.where(here, through, 0), jnp.where(here, f, 1), jnp.where(here, 0, 1).astype(h.dtype)

    # The barrier keeps the transposed matrix as an array, which the transposed loop multiplies by as it lies.
    across = lax.optimization_barrier(kernel.T)
    outside = dgates + linear.by_kernel(h_before.astype(kernel.dtype), dkernel).astype(dgates.dtype)

    def advance(before, given):
        outside, own, through, f, kept = given
        dh, dc = before["h"], before["c"]
        product = lax.dot_general(dh.astype(kernel.dtype), across, (((1,), (1,)), ((), ()))).astype(dh.dtype)
        each = own * (outside + product).reshape(own.shape)
        dc = f * dc + each[:, :3].sum(1)
        new = through * dc + each[:, 3]
        after = {"h": new if kept is None else new + kept * dh, "c": dc}
        return after, after["h"]

    dafter, dh = lax.scan(advance, dstate, (outside, own, through, f, kept), reverse=reverse)
    return (after, h), (dafter, dh)


def _before(x: Any, first: jax.Array, reverse: bool) -> jax.Array:
    """The values [length, ...] one place earlier in the order of the loop."""
    return jnp.concatenate([x[1:], first[None]] if reverse else [first[None], x[:-1]])[: len(x)]
