"""K-FAC: gradients times the inverse of a Kronecker-factored curvature, by layer (Martens and Grosse 2015)."""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from functrain import tree
from functrain.autodiff.curvature import kfac
from functrain.autodiff.curvature.operators import draw_bernoulli, draw_categorical, draw_normal
from functrain.config import ConfigError, Fraction, NonNegative, Positive, Size, configclass, off
from functrain.optim.base import stage
from functrain.optim.chain import Decoupled

_DRAWS = {"categorical": draw_categorical, "bernoulli": draw_bernoulli, "normal": draw_normal}


class KFACState(NamedTuple):
    """Factors A and G and their damped inverses, by the kernel's path; of every parameter the mean squared gradient."""

    count: jax.Array
    factors: dict[str, Any]
    inverses: dict[str, Any]
    squares: Any


@configclass
class KFAC(Decoupled):
    """K-FAC: each dense and convolutional layer's gradient times (A + a I)^-1 (x) (G + b I)^-1, the damping in a and b.

    A is of the layer's inputs, G of the gradients by its outputs, for targets drawn from the model: their product
    stands for the Fisher matrix of the layer (see `functrain.autodiff.curvature.kfac`). Both are running means, whose
    memory grows as 1 - 1/t up to `b2`; they are inverted each `inverse_every` steps (Martens and Grosse 2015, sections
    5, 6.3 and 8). What is no such layer's, or larger than `largest`, is divided by the running mean of its own n g^2,
    plus the damping. `trust` bounds the step in the metric of the curvature (Ba, Grosse, Martens 2017, section 5).

    For a task of one loss that is a score of outputs, of a model whose examples do not mix.

    Raises:
      ConfigError: no such task, micro-batches, a model with a state, or a loss of which no targets can be drawn.
    """

    kind: Literal["kfac"] = "kfac"
    peak_lr: Positive = 0.1
    """The highest learning rate, reached after the warmup."""
    weight_decay: NonNegative = 0.0
    """Decoupled decay: p = p - lr * weight_decay * p, for the parameters that decay; 0 is off."""
    damping: Positive = 1e-2
    """What is added to the curvature: smaller trusts it further."""
    targets: Literal["mc", "exact", "empirical"] = "mc"
    """Whose gradients make G: of a target drawn for each example; of all, a backward pass an output; of the data's."""
    sharing: Literal["expand", "reduce"] = "expand"
    """Where a layer has many positions, as a convolution: each by itself, or summed (Eschenhagen et al. 2023)."""
    b2: Fraction = 0.95
    """Decay of the running means of factors."""
    momentum: Fraction = 0.9
    """How much of the last update carries over; 0 is off."""
    trust: NonNegative = 1e-3
    """The largest d.Fd of a step d before momentum; 0 is off."""
    factor_every: Size = 1
    """Steps between looks at the curvature."""
    inverse_every: Size = 10
    """Steps between inversions."""
    largest: Size = 2048
    """Inputs or outputs up to which a layer has factors; each inversion takes their third power."""

    def precondition(self):
        """The curvature's inverse, then momentum."""
        momentum = [] if off(self.momentum) else [optax.trace(self.momentum)]  # pyright: ignore
        return [stage(self._init, self._update), *momentum]

    def _init(self, params):
        """Room for the factors of every leaf that may be a kernel."""
        sizes = self._sizes(params)
        eyes = {path: tuple(jnp.eye(n, dtype=dtype) for n in both) for path, (both, dtype) in sizes.items()}
        return KFACState(jnp.int32(0), tree.zeros_like(eyes), eyes, tree.zeros_like(jax.tree.map(tree.wide, params)))

    def _sizes(self, params):
        """Path -> ((inputs, outputs), dtype) of the leaves that may be kernels; a bias beside counts as an input."""
        leaves, found = tree.by_path(params), {}
        for path, p in leaves.items():
            if p.ndim < 2:
                continue
            folder, slash, _ = path.rpartition("/")
            bias = leaves.get(f"{folder}{slash}bias")
            beside = bias is not None and bias.shape == p.shape[-1:]
            both = math.prod(p.shape[:-1]) + beside, p.shape[-1]
            if max(both) <= self.largest:
                found[path] = both, tree.wide(jnp.zeros((), p.dtype)).dtype
        return found

    def _update(self, gradients, state, params, *, objective, key, **extra):
        del extra
        apart = objective.apart
        if apart is None:
            raise ConfigError(
                'optimizer.kind: "kfac" is for a loss that is a score of outputs, of whole batches: a task such as '
                "classification, with train.accumulate = 1"
            )
        draw = _DRAWS.get(apart.likelihood)
        if self.targets == "mc" and draw is None:
            raise ConfigError(
                'optimizer.targets: "mc" draws from the model, and this loss is of no distribution; take "exact"'
            )
        weights = apart.weights(params)
        if isinstance(weights, dict):
            raise ConfigError('optimizer.kind: "kfac" is for one loss; this task has several')

        def seen(params):
            return kfac(
                apart.predict_one,
                apart.score_one,
                params,
                apart.batch,
                kind=self.targets,
                sharing=self.sharing,
                draw=lambda key, outputs: _apart(draw, apart.likelihood)(key, outputs),
                key=key if self.targets == "mc" else None,
                mask=weights,
            )

        layers = {
            path: block
            for path, block in jax.eval_shape(seen, params).blocks.items()
            if path in state.factors and (len(block.A), len(block.G)) == tuple(map(len, state.factors[path]))
        }
        decay = jnp.minimum(1 - 1 / (state.count // self.factor_every + 1), self.b2)

        def looked():
            blocks = seen(params).blocks
            new = {path: (blocks[path].A, blocks[path].G) for path in layers}
            return state.factors | {
                path: tuple(
                    (decay * old + (1 - decay) * x).astype(old.dtype) for old, x in zip(state.factors[path], both)
                )
                for path, both in new.items()
            }

        factors = lax.cond(state.count % self.factor_every == 0, looked, lambda: state.factors)

        def inverted():
            inverses = dict(state.inverses)
            for path, block in layers.items():
                a, g = factors[path]
                inverse = dataclasses.replace(block, A=a, G=g).inverse(self.damping)
                inverses[path] = (inverse.A.astype(a.dtype), inverse.G.astype(g.dtype))
            return inverses

        # At each of the first steps too: the first factors are of one batch.
        due = (state.count % self.inverse_every == 0) | (state.count < self.inverse_every)
        inverses = lax.cond(due, inverted, lambda: state.inverses)

        rows = (weights > 0).sum()
        squares = jax.tree.map(lambda s, g: decay * s + (1 - decay) * rows * g**2, state.squares, gradients)
        leaves = tree.by_path(gradients)
        steps = {path: g / (s + self.damping) for (path, g), s in zip(leaves.items(), jax.tree.leaves(squares))}
        for path, block in layers.items():
            a, g = inverses[path]
            inverse = dataclasses.replace(block, A=a, G=g)
            steps |= block.place.leaves(inverse.product(block.place.matrix(leaves)), leaves)
        if not off(self.trust):
            size = jnp.asarray(sum(jnp.vdot(steps[path], g) for path, g in leaves.items()))  # d.Fd, for d = F^-1 g
            rate = self.rate(state.count)
            share = jnp.minimum(1, jnp.sqrt(self.trust / jnp.maximum(rate**2 * size, jnp.finfo(size.dtype).tiny)))
            steps = {path: (share * d).astype(d.dtype) for path, d in steps.items()}
        squares = jax.tree.map(lambda new, old: new.astype(old.dtype), squares, state.squares)
        updates = tree.map_by_path(lambda path, _: steps[path], gradients)
        return updates, KFACState(state.count + 1, factors, inverses, squares)


def _apart(draw, likelihood):
    """The draw for a score that is the mean over so many answers: its gradients' covariance is the score's Hessian."""

    def scaled(key, outputs):
        answers = outputs.size // outputs.shape[-1] if likelihood == "categorical" else outputs.size
        return draw(key, outputs) / math.sqrt(max(answers, 1))

    return scaled
