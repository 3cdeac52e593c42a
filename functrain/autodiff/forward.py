"""Forward mode: gradients from Jacobian-vector products, with no backward pass and none of its memory."""

import math
from typing import Literal

import jax
import jax.numpy as jnp

from functrain import tree
from functrain.autodiff import directions as along
from functrain.config import Count, Size, configclass


@configclass
class Forward:
    """Forward mode: the exact gradient, a derivative for each parameter; or an unbiased one, along random directions.

    With `directions` = 0 each number of the gradient is the derivative along its axis. Otherwise the gradient is the
    mean of (grad f . v) v over that many directions v, standard normal (the forward gradient: Baydin et al. 2022,
    definition 1). Its mean is the gradient; the variances of the entries of one, summed, are (n + 1) |grad f|^2 for n
    parameters. The loss must have derivatives in forward mode: a `jax.custom_vjp` in it has none.

    Raises:
      ConfigError: `directions` is 0 and there are more parameters than `most`.

    >>> from functrain.metrics import Mean
    >>> from functrain.optim import objective
    >>> def loss(w, state, batch, *, key):
    ...     return Mean((w**2).sum(), jnp.ones(())), state, {}
    >>> goal = objective(loss, {}, {"x": jnp.ones(1)}, None)
    >>> Forward()(goal, jnp.arange(3.0), None)[0].tolist()
    [0.0, 2.0, 4.0]
    >>> Forward(directions=4000)(goal, jnp.arange(3.0), jax.random.key(0))[0].round().astype(int).tolist()
    [0, 2, 4]
    """

    kind: Literal["forward"] = "forward"
    directions: Count = 0
    """Random directions a step; 0 is the axis of every parameter, which is exact."""
    block: Size = 16
    """So many directions go side by side: they share the loss's value, and take the memory of as many tangents."""
    most: Size = 100_000
    """With directions = 0, up to how many parameters (numbers, not arrays) a step is taken."""

    def __call__(self, objective, params, key):
        """The gradient from directional derivatives; value, state and metrics from an evaluation of their own."""
        if not self.directions:
            along.refuse_above(self.most, self, params, "set estimator.directions")

        def slope(direction):
            """The derivative along a direction; tangents have the dtypes of what they belong to."""
            tangents = jax.tree.map(lambda p, v: v.astype(p.dtype), params, direction)
            return jax.jvp(lambda p: objective.value(p)[0], (params,), (tangents,))[1]

        if self.directions:
            keys = along.keys_of(key, self.directions)
            slopes = along.in_blocks(lambda k: slope(along.draw(k, params, "normal")), keys, self.block)
            gradients = along.combined(slopes / self.directions, keys, params, "normal")
        else:
            numbers = jnp.arange(tree.size(params))
            slopes = along.in_blocks(lambda i: slope(along.axis(i, params)), numbers, self.block)
            gradients = along.shaped(slopes, params)
        return gradients, *objective.value(params)

    def evaluations(self, parameters: int) -> float:
        """Of the loss, a step: two for each tangent, one for the value that a block shares, one for the metrics."""
        number = self.directions or parameters
        return 2.0 * number + math.ceil(number / self.block) + 1
