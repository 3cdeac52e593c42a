"""The objective: what estimators and optimizers may ask of a loss.

A loss is `loss(params, state, batch, *, key) -> (means, state, metrics)`, where `means` is a `Mean` or a tree of them
(many tasks: their sum). The objective is the function of the parameters that it leaves: divided by
the counts of the whole batch, accumulated over micro-batches, scaled for float16.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from functrain import tree
from functrain.config import ConfigError
from functrain.metrics import is_metric


class Objective(NamedTuple):
    """A loss on one batch, as functions of the parameters.

    value: params -> (f, (state, metrics)).
    gradient: params -> (gradients, f, (state, metrics)); gradients and f in at least float32, unscaled.
    parts: params -> ({name: gradients}, {name: f}, (state, metrics)), of each of several means by itself.

    To the loss's metrics its means are added, as `loss`, or by their names where there are several.
    """

    value: Callable[[Any], Any]
    gradient: Callable[[Any], Any]
    parts: Callable[[Any], Any]


def objective(loss, state, batch, key, *, accumulate: int = 1, scale=None) -> Objective:
    """The objective of a loss on a batch; accumulated equals whole, also where masks are ragged.

    Args:
      loss: see the module's first lines.
      state: what the loss takes and returns; it passes through the micro-batches in turn.
      batch: a dict of arrays [n, ...]; n divisible by `accumulate`.
      key: each micro-batch gets its own, folded from this one.
      accumulate: into how many micro-batches the batch is cut. Each is divided by the count of the *whole*
        batch, so the sum of their gradients is the gradient of the whole. The counts come from a pass of their
        own that depends on masks alone: XLA drops all else from it.
      scale: the loss scale of float16, or None.
    """
    # Micro-batch i takes every a-th row from row i on, so that where rows lie on several devices each has its share.
    micro = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)

    def over_batches(f, params):
        """The sum of f(params, state, batch, key) -> (addable, state) over the micro-batches."""
        if accumulate == 1:
            return f(params, state, batch, key)

        def body(carry, i):
            total, state = carry
            out, state = f(params, state, jax.tree.map(lambda x: x[i], micro), jax.random.fold_in(key, i))
            return (tree.add(total, out), state), None

        shapes = jax.eval_shape(f, params, state, jax.tree.map(lambda x: x[0], micro), key)[0]
        return lax.scan(body, (tree.zeros_like(shapes), state), jnp.arange(accumulate))[0]

    def counts(params):
        def f(params, state, batch, key):
            means, state, _ = loss(params, state, batch, key=key)
            return jax.tree.map(lambda m: m.count, means, is_leaf=is_metric), state

        return jax.tree.map(lax.stop_gradient, over_batches(f, params)[0])

    def share(mean, count):
        """A mean's sum over the whole batch's count; an empty batch has loss 0, not nan."""
        return mean.total / jnp.maximum(count, jnp.finfo(count.dtype).tiny)

    def total(means, n):
        """The loss as a number."""
        return sum(map(share, jax.tree.leaves(means, is_leaf=is_metric), jax.tree.leaves(n)))

    def named(means):
        """The loss as a metric: its own sum and count, so that steps of few examples weigh less in a mean of steps."""
        return means if isinstance(means, dict) else {"loss": means}

    def value(params):
        n = counts(params)

        def f(params, state, batch, key):
            means, state, metrics = loss(params, state, batch, key=key)
            return (total(means, n), metrics | named(means)), state

        (f_value, metrics), new_state = over_batches(f, params)
        return f_value, (new_state, metrics)

    def gradient(params):
        n = counts(params)

        def f(params, state, batch, key):
            def scalar(params):
                means, new_state, metrics = loss(params, state, batch, key=key)
                f_value = total(means, n)
                return (f_value if scale is None else scale * f_value), (f_value, new_state, metrics | named(means))

            gradients, (f_value, new_state, metrics) = jax.grad(scalar, has_aux=True)(params)
            return (jax.tree.map(tree.wide, gradients), f_value, metrics), new_state

        (gradients, f_value, metrics), new_state = over_batches(f, params)
        if scale is not None:
            gradients = tree.scale(1 / scale, gradients)
        return gradients, f_value, (new_state, metrics)

    def parts(params):
        n = counts(params)
        if not isinstance(n, dict):
            raise ConfigError("estimator.kind: it weighs several losses; this task has one")

        def f(params, state, batch, key):
            def scalars(params):
                means, new_state, metrics = loss(params, state, batch, key=key)
                values = {name: share(mean, n[name]) for name, mean in means.items()}
                scaled = values if scale is None else tree.scale(scale, values)
                return scaled, (values, new_state, metrics | named(means))

            scaled, pull, (values, new_state, metrics) = jax.vjp(scalars, params, has_aux=True)
            one, zero = jax.tree.map(jnp.ones_like, scaled), jax.tree.map(jnp.zeros_like, scaled)
            gradients = {name: jax.tree.map(tree.wide, pull(zero | {name: one[name]})[0]) for name in scaled}
            return (gradients, values, metrics), new_state

        (gradients, values, metrics), new_state = over_batches(f, params)
        if scale is not None:
            gradients = tree.scale(1 / scale, gradients)
        return gradients, values, (new_state, metrics)

    return Objective(value, gradient, parts)
