"""The objective: what estimators and optimizers may ask of a loss.

A loss is `loss(params, state, batch, *, key) -> (means, state, metrics)`, where `means` is a `Mean` or a tree of them
(many tasks: their sum). The objective is the function of the parameters that it leaves: divided by
the counts of the whole batch, accumulated over micro-batches, scaled for float16.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from functrain import tree
from functrain.autodiff import per_example
from functrain.config import ConfigError
from functrain.metrics import is_metric


@dataclass(frozen=True)
class Scored:
    """A loss that is a score of a model's outputs, the two known apart: curvature asks for that.

    predict(params, state, batch, *, key) -> (outputs, state)
    score(outputs, batch) -> (Mean or tree of Means, metrics)
    likelihood: the distribution of the targets of which the score is the negative logarithm: "categorical",
      "bernoulli", "normal", or "" for none.

    >>> from functrain.metrics import Mean
    >>> line = lambda w, state, batch, *, key: (w * batch["x"], state)
    >>> square = lambda outputs, batch: (Mean((outputs**2).sum(), jnp.float32(2)), {})
    >>> goal = objective(Scored(line, square), {}, {"x": jnp.array([1.0, 2.0])}, None)
    >>> goal.apart.predict(3.0).tolist(), float(goal.apart.score(jnp.array([3.0, 6.0]))), float(goal.value(3.0)[0])
    ([3.0, 6.0], 22.5, 22.5)
    """

    predict: Callable[..., tuple[Any, Any]]
    score: Callable[[Any, Any], tuple[Any, dict[str, Any]]]
    likelihood: str = ""

    def __call__(self, params, state, batch, *, key):
        """The loss."""
        outputs, state = self.predict(params, state, batch, key=key)
        means, metrics = self.score(outputs, batch)
        return means, state, metrics


class Apart(NamedTuple):
    """An objective f as score(predict(params)), `likelihood` as of `Scored`; and example by example.

    f is the mean over rows i of the batch of score_one(predict_one(params, batch[i]), batch[i]), weighed by weights()
    [n], where a row's outputs depend on that row alone and the loss is one mean.
    """

    predict: Callable[[Any], Any]
    score: Callable[[Any], jax.Array]
    likelihood: str
    batch: Any
    predict_one: Callable[[Any, Any], Any]
    score_one: Callable[[Any, Any], jax.Array]
    weights: Callable[[Any], jax.Array]


class Objective(NamedTuple):
    """A loss on one batch, as functions of the parameters.

    value: params -> (f, (state, metrics)).
    gradient: params -> (gradients, f, (state, metrics)); gradients and f in at least float32, unscaled.
    parts: params -> ({name: gradients}, {name: f}, (state, metrics)), of each of several means by itself.
    each: (params, consume, carry, block) -> (carry, f, (state, metrics)): the gradients of single examples, folded a
      block at a time (see `functrain.autodiff.per_example.fold`).
    apart: the model and its score, where the loss is `Scored` and the batch whole; else None.

    To the loss's metrics its means are added, as `loss`, or by their names where there are several.
    """

    value: Callable[[Any], Any]
    gradient: Callable[[Any], Any]
    parts: Callable[[Any], Any]
    each: Callable[..., Any]
    apart: Apart | None = None


def objective(loss, state, batch, key, *, accumulate: int = 1, scale=None, scored: Scored | None = None) -> Objective:
    """The objective of a loss on a batch; accumulated equals whole, also where masks are ragged.

    Args:
      loss: see the module's first lines.
      state: what the loss takes and returns; it passes through the micro-batches in turn.
      batch: a dict of arrays [n, ...]; n divisible by `accumulate`.
      key: each micro-batch gets its own, folded from this one.
      accumulate: into how many micro-batches the batch is cut. Each is divided by the count of the *whole*
        batch, so the sum of their gradients is the gradient of the whole. Of several, the counts come from a pass
        of their own that depends on masks alone: XLA drops all else from it.
      scale: the loss scale of float16, or None.
      scored: the loss with model and score apart, where it is not itself a `Scored`.
    """
    scored = loss if isinstance(loss, Scored) else scored
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

    def counted(means):
        return jax.tree.map(lambda m: lax.stop_gradient(m.count), means, is_leaf=is_metric)

    def counts(params):
        """Of the whole batch; None where one micro-batch is the whole, and its own are meant."""
        if accumulate == 1:
            return None

        def f(params, state, batch, key):
            means, state, _ = loss(params, state, batch, key=key)
            return counted(means), state

        return over_batches(f, params)[0]

    def share(mean, count):
        """A mean's sum over the whole batch's count; an empty batch has loss 0, not nan."""
        return mean.total / jnp.maximum(count, jnp.finfo(count.dtype).tiny)

    def total(means, n):
        """The loss as a number."""
        n = counted(means) if n is None else n
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

        def f(params, state, batch, key):
            def scalars(params):
                means, new_state, metrics = loss(params, state, batch, key=key)
                if not isinstance(means, dict):
                    raise ConfigError("estimator.kind: it weighs several losses; this task has one")
                whole = counted(means) if n is None else n
                values = {name: share(mean, whole[name]) for name, mean in means.items()}
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

    def each(params, consume, carry, block):
        carry, means, metrics = per_example.fold(
            loss, params, state, batch, key, consume, carry, block=block, scale=scale
        )
        return carry, total(means, None), (state, metrics | named(means))

    def apart(scored: Scored) -> Apart:
        def with_count(outputs, batch):
            """(the score as a number, its count where it is one mean)."""
            means, _ = scored.score(outputs, batch)
            n = counted(means)
            return jnp.asarray(total(means, n)), n

        def predict(params, batch=batch):
            return scored.predict(params, state, batch, key=key)[0]

        def alone(tree):
            return jax.tree.map(lambda x: jnp.asarray(x)[None], tree)

        def predict_one(params, example):
            return jax.tree.map(lambda x: x[0], predict(params, alone(example)))

        def score_one(outputs, example):
            return with_count(alone(outputs), alone(example))[0]

        def weights(params):  # of masks alone: XLA drops all else
            one = lambda example: with_count(alone(predict_one(params, example)), alone(example))[1]  # noqa: E731
            return jax.vmap(one)(batch)

        return Apart(
            predict,
            lambda outputs: with_count(outputs, batch)[0],
            scored.likelihood,
            batch,
            predict_one,
            score_one,
            weights,
        )

    known = apart(scored) if scored is not None and accumulate == 1 else None
    return Objective(value, gradient, parts, each, known)
