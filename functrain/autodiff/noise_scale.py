"""The gradient noise scale: how many examples a batch may have before more of them stop paying.

noise_scale(loss, params, batch)    -> NoiseScale, from the gradients of a batch's examples, or of its micro-batches
two_sizes(small, big, ...)          -> (trace, square), from squared norms at two batch sizes, taken anywhere

McCandlish et al. 2018, "An Empirical Model of Large-Batch Training".
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functrain import tree
from functrain.autodiff import directions as along
from functrain.autodiff.per_example import BLOCK, Loss, as_task, numbered, over_blocks, row, value_and_gradient
from functrain.metrics import is_metric


@dataclass(frozen=True)
class NoiseScale:
    """The simple noise scale B = tr(S) / |G|^2 (eq. 2.9), and what it was made of.

    G is the gradient's mean over all examples there may be and S the covariance of one example's gradient. Both
    estimates are unbiased; their quotient is not quite, the less the more examples.

    value: B, in examples; inf where the estimate of |G|^2 is not above 0: more examples are needed.
    error: its standard error, by the jackknife; inf where |G|^2 is not told from 0.
    trace: the estimate of tr(S).
    square: the estimate of |G|^2.
    examples: how many they are from.
    micro: how many examples each gradient was of.
    """

    value: float
    error: float
    trace: float
    square: float
    examples: int
    micro: int = 1

    @property
    def critical(self) -> float:
        """The critical batch size, B rounded, or inf: twice the fewest steps there are, at twice the fewest examples.

        Of plain descent at its best learning rate. Below it, a batch twice as large takes nearly half as many steps;
        above, nearly as many.
        """
        return max(1, round(self.value)) if math.isfinite(self.value) else self.value

    def cost(self, batch_size: float) -> tuple[float, float]:
        """(steps, examples) that batches of a size take to a loss, each over the fewest there are (section 2.3).

        >>> NoiseScale(value=100.0, error=5.0, trace=50.0, square=0.5, examples=256).cost(50)
        (3.0, 1.5)
        """
        return 1 + self.value / batch_size, 1 + batch_size / self.value

    def __str__(self) -> str:
        """`noise scale 812 +- 90 examples (tr S 4.1, |G|^2 0.005; of 1,024 examples): batches of about 812`."""
        made = f"tr S {self.trace:.4g}, |G|^2 {self.square:.4g}; of {self.examples:,} examples"
        if not math.isfinite(self.value):
            return f"noise scale unknown ({made}): the gradient is not told from 0; more examples are needed"
        error = f" +- {self.error:.2g}" if math.isfinite(self.error) else ", very uncertain"
        return f"noise scale {self.value:.4g}{error} examples ({made}): batches of about {self.critical:,}"


def noise_scale(
    loss: Loss,
    params: Any,
    batch: Any,
    *,
    state: Any = None,
    key: jax.Array | None = None,
    micro: int = 1,
    block: int = BLOCK,
) -> NoiseScale:
    """The simple noise scale from one batch: from gradients per example, or of micro-batches of `micro` examples.

    Both are the estimator of appendix A.1 with batches of `micro` examples and of all; of one example, it is the
    sample variance, and the square of the mean less its bias. The gradients are computed twice, for all are never
    held. It gives numbers, so it is not for use inside a jitted function, and is compiled once for one `loss`.

    Args:
      loss, params, batch, state, key, block: as in `per_example.gradients`; with micro-batches, of a block of those.
      micro: examples in a micro-batch. Larger ones cost less, and the estimate errs more. Where the loss mixes
        examples, as with batch norm, that is within micro-batches then.

    Raises:
      ValueError: as in `per_example.gradients`; a length that `micro` does not divide; fewer than 3 gradients; or
        micro-batches of which masks leave each another count. (Examples that a mask leaves out are left out.)

    >>> x = jax.random.normal(jax.random.key(0), (4000, 10))   # of a gradient (1, 1, ...) with unit noise: B is 1
    >>> print(noise_scale(lambda w, b: (b["x"] + 1) @ w, jnp.zeros(10), {"x": x}))
    noise scale 1.0... +- 0.0... examples (tr S ..., |G|^2 ...; of 4,000 examples): batches of about 1
    """
    found = _products(loss, params, batch, state, key, micro=micro, block=block)
    whole, dots, squares, counts = (np.asarray(x, np.float64) for x in found)
    if micro > 1 and np.ptp(counts, 0).any():
        found = f"{counts.sum(1).min():g} to {counts.sum(1).max():g}"
        raise ValueError(f"micro-batches count {found}; expected as much in each: no masked examples, or micro 1")
    there = counts.sum(1) > 0
    if (k := int(there.sum())) < 3:
        raise ValueError(f"found {k} gradients of {micro} examples; expected at least 3")
    squares, dots = squares[there], dots[there]
    trace, square = two_sizes(squares.mean(), whole / k**2, small_size=micro, big_size=micro * k)
    # The jackknife: each gradient left out in turn (Efron and Stein 1981).
    without = two_sizes(
        (squares.sum() - squares) / (k - 1),
        (whole - 2 * dots + squares) / (k - 1) ** 2,
        small_size=micro,
        big_size=micro * (k - 1),
    )
    value = trace / square if square > 0 else math.inf
    error = math.inf
    if math.isfinite(value) and (without[1] > 0).all():
        values = without[0] / without[1]
        error = math.sqrt((k - 1) / k * np.sum((values - values.mean()) ** 2))
    return NoiseScale(float(value), error, float(trace), float(square), k * micro, micro)


@functools.partial(jax.jit, static_argnames=("loss", "micro", "block"))
def _products(loss, params, batch, state, key, *, micro, block):
    """Of gradients g_i, with T their sum: (|T|^2, g_i . T [k], |g_i|^2 [k], counts [k, means])."""
    task, state = as_task(loss, state, key)
    pieces = numbered(batch, micro)

    def gradient(piece):
        found, means, _ = value_and_gradient(task, params, state, *row(piece, key))
        counts = [mean.count for mean in jax.tree.leaves(means, is_leaf=is_metric)]
        return found, jnp.stack(counts)

    def add(total, part):
        found = jax.vmap(lambda piece: gradient(piece)[0])(part)
        return tree.add(total, jax.tree.map(lambda g: g.sum(0), found))

    total = over_blocks(add, jax.tree.map(lambda p: jnp.zeros_like(tree.wide(p)), params), pieces, block)

    def against(piece):
        found, counts = gradient(piece)
        return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, found, total))), tree.norm(found) ** 2, counts

    return tree.norm(total) ** 2, *along.in_blocks(against, pieces, block)


def two_sizes(small: Any, big: Any, *, small_size: Any, big_size: Any) -> tuple[Any, Any]:
    """(tr S, |G|^2), unbiased, from the mean squared norms of gradients at two batch sizes (appendix A.1).

    E |G_B|^2 = |G|^2 + tr(S) / B, solved for both. Average each over steps before one is divided by the other.

    Args:
      small, big: mean of |G_B|^2 over batches of `small_size` examples, and of `big_size`.

    >>> two_sizes(1.0 + 40.0 / 8, 1.0 + 40.0 / 64, small_size=8, big_size=64)
    (40.0, 1.0)
    """
    trace = (small - big) / (1 / small_size - 1 / big_size)
    square = (big_size * big - small_size * small) / (big_size - small_size)
    return trace, square
