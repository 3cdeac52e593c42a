"""Kronecker-factored curvature: a block A (x) G for each dense or convolutional layer.

blocks = kfac(predict, score, params, batch)
blocks.product(v)                       v -> K v, for trees like the parameters
blocks.inverse(damping).product(v)      v -> (K + damping)^-1 v

The layers are found in the function itself (`functrain.autodiff.taps`); all is pure, and may be jitted.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from functrain import tree
from functrain.autodiff.curvature.examples import score_hessian, shares, summed
from functrain.autodiff.taps import Layout, by_example, example_of

Kind = Literal["exact", "mc", "empirical", "inputs"]
Sharing = Literal["expand", "reduce"]
Damping = Literal["factored", "exact"]


@dataclasses.dataclass(frozen=True)
class Place:
    """Which parameters a block is of: a kernel, a bias, or both, as a matrix m [d_in (+ 1), d_out] with the bias below.

    kernel, bias: their paths, or None.
    layout: how the kernel's leaf is its matrix.
    """

    kernel: str | None
    bias: str | None
    layout: Layout

    def matrix(self, leaves: dict[str, jax.Array]) -> jax.Array:
        """m of the leaves by path."""
        parts = [] if self.kernel is None else [self.layout.matrix(leaves[self.kernel])]
        parts += [] if self.bias is None else [leaves[self.bias].reshape(1, -1)]
        return jnp.concatenate(parts)

    def leaves(self, m: jax.Array, like: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The inverse of `matrix`; like: leaves of the shapes and dtypes that are made."""
        found = {} if self.kernel is None else {self.kernel: self.layout.leaf(m if self.bias is None else m[:-1])}
        found |= {} if self.bias is None else {self.bias: m[-1].reshape(like[self.bias].shape)}
        return {path: x.astype(like[path].dtype) for path, x in found.items()}


@partial(jax.tree_util.register_dataclass, data_fields=["A", "G"], meta_fields=["place"])
@dataclasses.dataclass(frozen=True)
class Block:
    """The matrix A (x) G that acts on m [d_in (+ 1), d_out], raveled row by row.

    A: [d_in, d_in], a row and a column more where the bias is below the kernel; None, of a bias alone, is the number 1.
    G: [d_out, d_out].
    """

    A: Any
    G: jax.Array
    place: Place

    @property
    def bias(self) -> bool:
        """Whether a bias is in the block."""
        return self.place.bias is not None

    def product(self, m: jax.Array) -> jax.Array:
        """(A (x) G) m = A m G."""
        return m @ self.G if self.A is None else self.A @ m @ self.G

    def dense(self) -> jax.Array:
        """The matrix itself, of as many rows as m has numbers."""
        return self.G if self.A is None else jnp.kron(self.A, self.G)

    def inverse(self, damping: Any, how: Damping = "factored") -> "Block | EigenBlock":
        """See `KFAC.inverse`."""
        if self.A is None:
            return Block(None, _inverse(self.G, damping), self.place)
        if how == "exact":
            a, u = jnp.linalg.eigh(self.A)
            g, v = jnp.linalg.eigh(self.G)
            return EigenBlock(u, v, 1 / (jnp.outer(a, g) + damping), self.place)
        means = jnp.trace(self.A) / len(self.A), jnp.trace(self.G) / len(self.G)
        there = (means[0] > 0) & (means[1] > 0)
        pi = jnp.where(there, jnp.sqrt(means[0] / jnp.where(there, means[1], 1)), 1)
        root = jnp.sqrt(damping)
        return Block(_inverse(self.A, pi * root), _inverse(self.G, root / pi), self.place)


@partial(jax.tree_util.register_dataclass, data_fields=["u", "v", "values"], meta_fields=["place"])
@dataclasses.dataclass(frozen=True)
class EigenBlock:
    """The matrix of eigenvectors u (x) v and eigenvalues `values` [d_in (+ 1), d_out]."""

    u: jax.Array
    v: jax.Array
    values: jax.Array
    place: Place

    def product(self, m: jax.Array) -> jax.Array:
        """u (values * (u^T m v)) v^T."""
        return self.u @ (self.values * (self.u.T @ m @ self.v)) @ self.v.T

    def dense(self) -> jax.Array:
        """The matrix itself, of as many rows as m has numbers."""
        both = jnp.kron(self.u, self.v)
        return (both * self.values.ravel()) @ both.T


@partial(jax.tree_util.register_dataclass, data_fields=["blocks", "rest"], meta_fields=["reasons"])
@dataclasses.dataclass(frozen=True)
class KFAC:
    """A block-diagonal matrix over the parameters.

    blocks: by the kernel's path; by the bias's where it has a block of its own.
    rest: the number that stands for the block of every parameter without one: 0, of an inverse 1 / damping.
    reasons: (path, why it has no block) of those parameters.
    """

    blocks: dict[str, Any]
    rest: Any
    reasons: tuple[tuple[str, str], ...] = ()

    @property
    def others(self) -> dict[str, str]:
        """Why a parameter has no block, by its path."""
        return dict(self.reasons)

    def product(self, v: Any) -> Any:
        """K v, for a tree like the parameters; `Operator(blocks.product, params)` is K as an operator.

        Raises:
          ValueError: a tree of other leaves.
        """
        leaves = tree.by_path(v)
        places = [block.place for block in self.blocks.values()]
        expected = {path for place in places for path in (place.kernel, place.bias) if path is not None}
        if set(leaves) != expected | set(self.others):
            wrong = sorted(set(leaves) ^ (expected | set(self.others)))
            raise ValueError(f"found leaves {sorted(leaves)}; expected those of the parameters: not so {wrong}")
        found = {path: (self.rest * leaves[path]).astype(leaves[path].dtype) for path in self.others}
        for block in self.blocks.values():
            found |= block.place.leaves(block.product(block.place.matrix(leaves)), leaves)
        return tree.map_by_path(lambda path, _: found[path], v)

    def inverse(self, damping: Any, how: Damping = "factored") -> "KFAC":
        """The inverse of K + damping * I, in full where `how` is "exact", by eigenvectors of both factors.

        "factored" is (A + pi sqrt(damping) I) (x) (G + sqrt(damping) / pi I), with pi^2 = (tr A / dim A) / (tr G / dim
        G): factored Tikhonov regularisation (Martens and Grosse 2015, section 6.3), which has only Cholesky factors to
        compute. It is more than K + damping * I by two cross terms. A bias's own block, and what has no block, is
        damped in full either way.

        Args:
          damping: above 0, for what has no block is divided by it.

        Raises:
          ValueError: another name of a way.
        """
        if how not in ("factored", "exact"):
            raise ValueError(f'how: found {how!r}; expected "factored" or "exact"')
        blocks = {path: block.inverse(damping, how) for path, block in self.blocks.items()}
        return KFAC(blocks, 1 / jnp.asarray(damping), self.reasons)


def kfac(
    predict: Callable[[Any, Any], Any],
    score: Callable[[Any, Any], Any] | None,
    params: Any,
    batch: Any,
    *,
    kind: Kind = "exact",
    sharing: Sharing = "expand",
    joint: bool = True,
    draw: Callable[[jax.Array, Any], Any] | None = None,
    key: jax.Array | None = None,
    samples: int = 1,
    mask: Any = None,
    block: int = 64,
) -> KFAC:
    """Kronecker factors of the Gauss-Newton matrix of the mean over examples (Martens and Grosse 2015, section 3).

    With rows a_t of a layer's inputs and gradients g_t by its outputs at T positions of an example, averaged over
    examples, and summed over the cotangents that `kind` names (Eschenhagen et al. 2023, section 3):

    expand    A = mean over t of a_t a_t^T,               G = sum over t of g_t g_t^T
    reduce    A = (mean over t of a_t)(mean ...)^T,       G = (sum over t of g_t)(sum ...)^T

    For convolutions "expand" is KFC (Grosse and Martens 2016, eq. 32). With one position they are the same; with one
    example, too, the block is the Gauss-Newton matrix's own.

    Args:
      predict: (params, example) -> outputs of one example, a tree of floats; an example is a row of the batch.
      score: (outputs, example) -> the example's loss, a float []. Neither "mc" nor "inputs" reads it.
      kind: "exact": the Hessian of the score by the outputs, a backward pass for each of these (the type-2 Fisher
        matrix; KFLR of Botev et al. 2017); "mc": gradients of `samples` drawn targets; "empirical": the gradient of the
        score as it is; "inputs": G is the identity, with no backward pass (Benzing 2022).
      sharing: see above; of layers with more than one position.
      joint: whether a layer's bias is in one block with its kernel; else it has the block G.
      draw: for "mc", (key, outputs of one example) -> the gradient by the outputs of the loss of a target drawn from
        the model: `draw_categorical` and the like of `functrain.autodiff.curvature.operators`.
      mask: weights of the examples, [n]; the mean is by their sum. None weighs all alike.
      block: examples side by side; each holds its inputs, and gradients for each cotangent, of all layers.

    Raises:
      ValueError: no layer, a setting of another name, no score, draw or key where one is needed, or batch arrays of
        different lengths.

    >>> params = {"kernel": jnp.ones((2, 1)), "bias": jnp.zeros(1)}
    >>> predict = lambda params, x: x @ params["kernel"] + params["bias"]
    >>> blocks = kfac(predict, lambda y, x: jnp.sum(y**2) / 2, params, jnp.array([[1.0, 2.0]]))
    >>> blocks.blocks["kernel"].dense().tolist()   # of [kernel; bias]
    [[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]
    """
    example_of(batch)
    n = len(jax.tree.leaves(batch)[0])
    weights = shares(mask, (n,))
    keys = _check(kind, sharing, score, draw, key, samples, n)

    def cotangents(outputs, given):
        example, key = given
        flat, unravel = ravel_pytree(outputs)
        if kind == "exact":
            return jax.vmap(unravel)(jnp.eye(flat.size, dtype=flat.dtype))
        if kind == "mc" and draw is not None:
            return jax.vmap(draw, (0, None))(jax.random.split(key, samples), outputs)
        one = jax.tree.map(jnp.zeros_like, outputs)
        if kind == "empirical" and score is not None:
            one = jax.grad(score)(outputs, example)
        return jax.tree.map(lambda x: x[None], one)

    def factors(given, weights):
        examples, _ = given
        taps = by_example(lambda p, given: predict(p, given[0]), cotangents)(params, given)
        curve = None
        if kind == "exact" and score is not None:
            curve = jax.vmap(partial(score_hessian, score))(taps.outputs, examples)
        found = {}
        for path, layer in taps.layers.items():
            a = _inputs(taps.inputs[path], weights, sharing, joint and layer.bias is not None)
            g = _gradients(taps.gradients[path], weights, sharing, curve)
            # The identity is shared out, for it is summed over blocks of examples as the others are.
            found[path] = a, weights.sum() * jnp.eye(layer.outputs, dtype=g.dtype) if kind == "inputs" else g
        static.append((taps.layers, taps.others))
        return found

    static: list[Any] = []
    found = summed(factors, (batch, keys), weights, block)
    layers, others = static[0]
    if not layers:
        raise ValueError(f"found no dense or convolutional layer; expected one or more: {others}")
    blocks = {}
    for path, (a, g) in found.items():
        layer = layers[path]
        blocks[path] = Block(a, g, Place(path, layer.bias if joint else None, layer.layout))
        if layer.bias is not None and not joint:
            blocks[layer.bias] = Block(None, g, Place(None, layer.bias, layer.layout))
    return KFAC(blocks, jnp.zeros(()), tuple(others.items()))


def _inputs(a, weights, sharing, ones):
    """A of inputs [n, positions, d_in]."""
    a = tree.wide(a)
    a = a.mean(1, keepdims=True) if sharing == "reduce" else a
    a = jnp.concatenate([a, jnp.ones((*a.shape[:2], 1), a.dtype)], -1) if ones else a
    return jnp.einsum("n,nti,ntj->ij", weights.astype(a.dtype) / a.shape[1], a, a)


def _gradients(g, weights, sharing, curve):
    """G of gradients [n, k, positions, d_out]; curve: [n, k, k], or None, where the mean over k is taken."""
    g = tree.wide(g)
    g = g.sum(2, keepdims=True) if sharing == "reduce" else g
    if curve is None:
        return jnp.einsum("n,nkti,nktj->ij", weights.astype(g.dtype) / g.shape[1], g, g)
    # No factor of the Hessian is needed: it stands between the gradients by each of the outputs.
    made = jnp.einsum("n,nkti,nktj->ij", weights.astype(g.dtype), g, jnp.einsum("nkl,nlti->nkti", curve, g))
    return (made + made.T) / 2


def _inverse(m, damping):
    eye = jnp.eye(len(m), dtype=m.dtype)
    return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(m + damping * eye), eye)


def _check(kind, sharing, score, draw, key, samples, n):
    """A key for each example, or None where none is drawn."""
    for name, value, names in (("kind", kind, Kind), ("sharing", sharing, Sharing)):
        if value not in names.__args__:
            raise ValueError(f"{name}: found {value!r}; expected one of {', '.join(map(repr, names.__args__))}")
    if kind in ("exact", "empirical") and score is None:
        raise ValueError(f'score: found None; kind "{kind}" needs (outputs, example) -> a float')
    if kind != "mc":
        return None
    if draw is None or key is None or samples < 1:
        raise ValueError(f'kind "mc": found draw {draw}, key {key}, samples {samples}; expected all, samples from 1')
    return jax.random.split(key, n)
