"""Curvature matrices as operators: products with vectors, and never the matrix unless it is asked for.

hessian(f, params)                          of f(params), a number
gauss_newton(predict, score, params)        J^T H J: J of the outputs, H of the score by the outputs
fisher(predict, draw, params, key)          mean of J^T g g^T J, g of targets drawn from the model
empirical_fisher(losses, params)            mean of g g^T, g of the losses themselves

Each linearises once, where it is made, and a product then evaluates none of the functions again. All are pure: they may
be made and multiplied under jit. All but the Hessian need derivatives in forward mode, which a `jax.custom_vjp` in a
function does not have.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from functrain import tree
from functrain.autodiff import directions as along
from functrain.autodiff.curvature.examples import shares


@dataclass(frozen=True, eq=False)
class Operator:
    """A symmetric matrix A that acts on trees like the parameters.

    product: v -> A v; v has the shapes and dtypes of `like`, and so has A v.
    like: the tree of parameters, or of `jax.ShapeDtypeStruct`; all floats.

    >>> a = Operator(lambda v: {"w": v["w"] * jnp.array([1.0, 2.0])}, {"w": jnp.zeros(2)})
    >>> (a.damped(0.5) @ {"w": jnp.ones(2)})["w"].tolist()
    [1.5, 2.5]
    >>> a.dense().tolist()
    [[1.0, 0.0], [0.0, 2.0]]
    """

    product: Callable[[Any], Any]
    like: Any

    def __matmul__(self, v: Any) -> Any:
        """A v, for a tree v of the shapes of `like`; numbers are cast to its dtypes.

        Raises:
          ValueError: a tree of another form, or of other shapes.
        """
        if jax.tree.structure(v) != jax.tree.structure(self.like):
            raise ValueError(
                f"found {jax.tree.structure(v)}; expected {jax.tree.structure(self.like)}, as the parameters"
            )
        for (path, x), p in zip(tree.by_path(v).items(), jax.tree.leaves(self.like)):
            if jnp.shape(x) != p.shape:
                raise ValueError(
                    f"{path or 'vector'}: found shape {jnp.shape(x)}; expected {p.shape}, as the parameters"
                )
        return self.product(jax.tree.map(lambda p, x: jnp.asarray(x, p.dtype), self.like, v))

    @property
    def size(self) -> int:
        """n: how many numbers a vector has in all."""
        return tree.size(self.like)

    @property
    def dtype(self) -> Any:
        """The dtype of vectors made flat: the widest of the leaves', at least float32."""
        return jnp.result_type(jnp.float32, *(p.dtype for p in jax.tree.leaves(self.like)))

    def ravel(self, v: Any) -> jax.Array:
        """A tree as one vector [n]: its leaves in the order of jax.tree.leaves, each in C order."""
        return along.raveled(v)

    def unravel(self, flat: jax.Array) -> Any:
        """A vector [n] as a tree, in at least float32."""
        return along.shaped(flat, self.like)

    def flat(self, vector: jax.Array) -> jax.Array:
        """The product with a vector [n], as a vector [n]."""
        return self.ravel(self @ self.unravel(vector))

    def dense(self, most: int = 4096, block: int = 16) -> jax.Array:
        """The matrix, [n, n], rows and columns in the order of `ravel`: n products, `block` side by side.

        Raises:
          ValueError: n is more than `most`.
        """
        n = self.size
        if n > most:
            raise ValueError(
                f"found {n:,} numbers: the dense matrix would cost {n:,} products and "
                f"{n * n * self.dtype.itemsize / 2**30:,.2f} GiB; expected at most {most:,} (most)"
            )
        columns = along.in_blocks(lambda i: self.ravel(self @ along.axis(i, self.like)), jnp.arange(n), block)
        return columns.T

    def damped(self, by: Any) -> "Operator":
        """A + by I."""
        return Operator(
            lambda v: jax.tree.map(lambda a, x: a + jnp.asarray(by, x.dtype) * x, self.product(v), v), self.like
        )


def hessian(f: Callable[[Any], Any], params: Any) -> Operator:
    """The Hessian of f at the parameters, forward over reverse (Pearlmutter 1994).

    The gradient is linearised once: f runs when the operator is made, and in no product. What its gradient's derivative
    needs is kept as long as the operator is, some two to three times the activations that a backward pass keeps; where
    that is too much, `jax.checkpoint` in f trades it for computing them again. On a stack of linear layers a product
    takes six matrix products a layer, what two forward and backward passes would; nine, where it linearises anew.

    Args:
      f: params -> a float, []; twice differentiable where it is taken seriously (relu counts as linear to both sides).

    Raises:
      ValueError: f gives no single float, or a parameter is no float.

    >>> hessian(lambda w: w[0] ** 2 * w[1], jnp.array([1.0, 3.0])).dense().tolist()
    [[6.0, 2.0], [2.0, 0.0]]
    """
    params = _floats(params, "parameter")
    _, product = jax.linearize(jax.grad(_one_float(f, "f")), params)
    return Operator(product, _shapes(params))


def gauss_newton(predict: Callable[[Any], Any], score: Callable[[Any], Any], params: Any) -> Operator:
    """The generalised Gauss-Newton matrix J^T H J (Schraudolph 2002, section 3).

    J is the Jacobian of the outputs by the parameters, H the Hessian of the score by the outputs: the Hessian without
    the outputs' own second derivatives, positive semidefinite where the score is convex. Each function runs once, when
    the operator is made; kept are what one backward pass keeps. On a stack of linear layers a product takes four matrix
    products a layer: a tangent forward and a gradient back.

    Args:
      predict: params -> outputs, a tree of floats.
      score: outputs -> a float, []: a loss with its targets, its mean over the batch in it.

    Raises:
      ValueError: the score is no single float, or a parameter or output is no float.

    >>> predict = lambda w: w[0] * jnp.array([1.0, 2.0]) + w[1]
    >>> gauss_newton(predict, lambda y: jnp.mean((y - 1.0) ** 2), jnp.zeros(2)).dense().tolist()
    [[5.0, 3.0], [3.0, 2.0]]
    """
    params = _floats(params, "parameter")
    outputs, push, pull = _linearised(predict, params)
    _, curve = jax.linearize(jax.grad(_one_float(score, "score")), outputs)
    return Operator(lambda v: pull(curve(push(v))), _shapes(params))


def fisher(
    predict: Callable[[Any], Any],
    draw: Callable[[jax.Array, Any], Any],
    params: Any,
    key: jax.Array,
    *,
    samples: int = 1,
    batch_axes: int = 1,
    mask: Any = None,
) -> Operator:
    """The Fisher information, its expectation over targets by Monte Carlo (Martens 2020, section 9).

    F = 1/N sum over examples i of the mean over samples of J_i^T g g^T J_i, where g is the gradient by the outputs of
    the loss -log p(y | outputs_i) of a target y drawn from p. Its mean is the Fisher matrix: for softmax and sigmoid
    cross-entropy and for squared errors, the Gauss-Newton matrix of the mean over examples. Targets are drawn when the
    operator is made: it is one fixed matrix, of rank N * samples at most. The gradients are kept, [samples, *outputs],
    and what one backward pass keeps; a product costs what one of `gauss_newton` does.

    Args:
      predict: params -> outputs, a tree of floats.
      draw: (key, outputs) -> gradients of each example's own loss, with no 1/N, like the outputs: `draw_categorical`,
        `draw_bernoulli`, `draw_normal`, or another.
      samples: targets for each example.
      batch_axes: how many leading axes of the outputs count examples: 1 for [n, classes]; 2 where each position is an
        example of its own, [n, positions, classes]. The axes after them belong to one example.
      mask: weights of the examples, of the shape of those axes; N is their sum. None weighs all alike.

    Raises:
      ValueError: samples below 1, a mask or outputs of other axes, or a parameter or output that is no float.

    >>> predict = lambda w: jnp.outer(jnp.array([1.0, 2.0, 3.0, 4.0]), w)   # four examples, two classes
    >>> fisher(predict, draw_categorical, jnp.zeros(2), jax.random.key(0)).dense().tolist()
    [[1.875, -1.875], [-1.875, 1.875]]
    """
    if samples < 1:
        raise ValueError(f"samples: found {samples}; expected at least 1")
    params = _floats(params, "parameter")
    outputs, push, pull = _linearised(predict, params)
    shapes = {leaf.shape[:batch_axes] for leaf in jax.tree.leaves(outputs)}
    if len(shapes) != 1 or len(batch := shapes.pop()) != batch_axes:
        found = [leaf.shape for leaf in jax.tree.leaves(outputs)]
        raise ValueError(f"batch_axes {batch_axes}: found outputs {found}; expected that all lead with the same axes")
    weights = shares(mask, batch)
    drawn = jax.vmap(lambda k: draw(k, outputs))(jax.random.split(key, samples))

    def project(g, u):
        """<g, u> for each example."""
        each = (
            jnp.sum(tree.wide(a * b).reshape(*batch, -1), -1) for a, b in zip(jax.tree.leaves(g), jax.tree.leaves(u))
        )
        return weights * sum(each)

    def spread(g, c):
        return jax.tree.map(lambda a: a * c.reshape(*c.shape, *(1,) * (a.ndim - batch_axes)).astype(a.dtype), g)

    def product(v):
        u = push(v)
        weighted = jax.vmap(lambda g: spread(g, project(g, u) / samples))(drawn)
        return pull(jax.tree.map(lambda x, like: x.sum(0).astype(like.dtype), weighted, outputs))

    return Operator(product, _shapes(params))


def empirical_fisher(losses: Callable[[Any], jax.Array], params: Any, *, mask: Any = None) -> Operator:
    """The mean over examples of g_i g_i^T, g_i the gradient of the i-th loss: J^T J / n, J of the losses.

    The targets are those of the data, so it is not the Fisher matrix (Kunstner, Balles, Hennig 2019). No example's
    gradient is held: a product is a tangent forward and a gradient back, and the losses run once, when it is made.

    Args:
      losses: params -> unreduced losses [n], of any number of axes: each number is an example.
      mask: weights of the examples, of the same shape; n is their sum. None weighs all alike.

    >>> empirical_fisher(lambda w: w * jnp.array([1.0, 3.0]), jnp.array(0.0)).dense().tolist()
    [[5.0]]
    """
    params = _floats(params, "parameter")
    values, push, pull = _linearised(losses, params)
    if not hasattr(values, "shape"):
        raise ValueError(f"losses: found {jax.tree.structure(values)}; expected one array")
    weights = shares(mask, values.shape)
    return Operator(lambda v: pull((weights * push(v)).astype(values.dtype)), _shapes(params))


# -- targets drawn from the model's own distribution ------------------------------------------------------------------


def draw_categorical(key: jax.Array, logits: jax.Array) -> jax.Array:
    """Gradients by logits [..., classes] of softmax cross-entropy with a drawn class: softmax - one-hot.

    >>> float(draw_categorical(jax.random.key(0), jnp.zeros(4)).max())
    0.25
    """
    wide = tree.wide(logits)
    labels = jax.random.categorical(key, wide)
    return (jax.nn.softmax(wide) - jax.nn.one_hot(labels, logits.shape[-1], dtype=wide.dtype)).astype(logits.dtype)


def draw_bernoulli(key: jax.Array, logits: jax.Array) -> jax.Array:
    """Gradients by logits, of any shape, of sigmoid cross-entropy with each answer drawn: sigmoid - answer.

    The loss of an example is the sum over its answers.

    >>> float(abs(draw_bernoulli(jax.random.key(0), jnp.zeros(()))))
    0.5
    """
    p = jax.nn.sigmoid(tree.wide(logits))
    return (p - jax.random.bernoulli(key, p)).astype(logits.dtype)


def draw_normal(key: jax.Array, outputs: jax.Array) -> jax.Array:
    """Gradients by outputs, of any shape, of squared errors e^2 (no factor 1/2) with drawn targets: 2 e.

    The loss of an example is the sum over its outputs; the density that goes with it, in proportion to exp(-e^2), has
    variance 1/2.

    >>> draw_normal(jax.random.key(0), jnp.zeros(10000)).var().round(1).tolist()
    2.0
    """
    noise = jax.random.normal(key, outputs.shape, tree.wide(outputs).dtype)
    return (math.sqrt(2) * noise).astype(outputs.dtype)


# -- what the constructors share --------------------------------------------------------------------------------------


def _linearised(function, params):
    """(outputs, v -> J v, u -> J^T u), from one evaluation: the way back is the transpose of the way forward."""
    outputs, push = jax.linearize(function, params)
    _floats(outputs, "output")
    transposed = jax.linear_transpose(push, params)
    return outputs, push, lambda u: transposed(u)[0]


def _shapes(params):
    return jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)


def _floats(given, what):
    arrays = jax.tree.map(jnp.asarray, given)
    if not jax.tree.leaves(arrays):
        raise ValueError(f"found no {what}; expected at least one array of floats")
    for path, x in tree.by_path(arrays).items():
        if not tree.is_float(x):
            raise ValueError(f"{what} {path}: found {x.dtype}; expected floats".replace(" :", ":"))
    return arrays


def _one_float(function, what):
    def checked(given):
        made = function(given)
        if getattr(made, "shape", None) != () or not tree.is_float(made):
            raise ValueError(f"{what} gives {jax.tree.map(jax.typeof, made)}; expected a float, []")
        return made

    return checked
