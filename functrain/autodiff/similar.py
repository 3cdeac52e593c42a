"""Which examples teach alike: by how their gradients lie to one another.

most_alike(loss, params, examples, given, count)    -> Alike, for each of the given the examples nearest by gradient
scores(loss, params, examples, given)               -> [given, n], all of them
features(loss, params, examples, project=dim)       -> [n, dim], gradients made short at random, to hold and to compare
nearest(features, given, count)                     -> Alike, among what is held

The product of two examples' gradients is what a step of descent on the one changes in the loss of the other, over the
learning rate: TracIn with one checkpoint (Pruthi et al. 2020, section 3). Its sign says whether it helps or harms; an
example of a large gradient has large products with all. The cosine leaves the sizes out.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from functrain.autodiff import directions as along
from functrain.autodiff.per_example import BLOCK, Loss, as_task, numbered, row, value_and_gradient

By = Literal["cosine", "dot"]


class Alike(NamedTuple):
    """indices: [given, count] of examples, the most alike first. scores: [given, count]: their cosines or products."""

    indices: jax.Array
    scores: jax.Array


def most_alike(
    loss: Loss,
    params: Any,
    examples: Any,
    given: Any,
    count: int,
    *,
    by: By = "cosine",
    project: int | None = None,
    law: along.Law = "rademacher",
    seed: int = 0,
    state: Any = None,
    key: jax.Array | None = None,
    block: int = BLOCK,
) -> Alike:
    """For each of the given examples, those whose gradients are most like its own.

    The gradients of all the given ones are held, and of the examples a block. Where that is too much, `project`.
    Compile it where it is called more than once: `jax.jit` of a function of params and arrays.

    Args:
      loss, params, state, key, block: as in `per_example.gradients`.
      examples: a batch of n, those that are looked through.
      given: a batch of one or more, those that they are compared with.
      count: how many are returned of each, at most n.
      by: "cosine", from -1 to 1, and 0 of a gradient that is 0; or "dot", the product.
      project: to so many numbers gradients are shortened before they are compared; see `features`. None: not at all.
      law, seed: of what they are projected on.

    Raises:
      ValueError: a count that is not from 1 to n, another `by`, or what `per_example.gradients` refuses.

    >>> x = jnp.array([[1.0, 0.0], [2.0, 2.0], [0.0, 3.0]])
    >>> most_alike(lambda w, b: b["x"] @ w, jnp.zeros(2), {"x": x}, {"x": jnp.array([[1.0, 0.9]])}, 2).indices.tolist()
    [[1, 0]]
    """
    settings: dict[str, Any] = {"state": state, "key": key, "block": block}
    if project is None:
        return _best(scores(loss, params, examples, given, by=by, **settings), count)
    projection: dict[str, Any] = {"project": project, "law": law, "seed": seed}
    kept, asked = (features(loss, params, batch, **projection, **settings) for batch in (examples, given))
    return nearest(kept, asked, count, by=by)


def scores(
    loss: Loss,
    params: Any,
    examples: Any,
    given: Any,
    *,
    by: By = "cosine",
    state: Any = None,
    key: jax.Array | None = None,
    block: int = BLOCK,
) -> jax.Array:
    """The cosine, or product, of each given example's gradient and each example's: [given, n].

    Arguments and errors are those of `most_alike`.

    >>> scores(lambda w, b: b["x"] * w, jnp.zeros(()), {"x": jnp.array([1.0, -2.0])}, {"x": jnp.ones(1)}, by="dot")
    Array([[ 1., -2.]], dtype=float32)
    """
    _check(by)
    gradient = _gradient(loss, params, state, key)

    def scaled(example):
        found = gradient(example)
        return found * _scale(found) if by == "cosine" else found

    held = along.in_blocks(scaled, numbered(given), block)  # [given, numbers]
    return along.in_blocks(lambda example: _product(held, scaled(example)), numbered(examples), block).T


def features(
    loss: Loss,
    params: Any,
    examples: Any,
    *,
    project: int,
    law: along.Law = "rademacher",
    seed: int = 0,
    state: Any = None,
    key: jax.Array | None = None,
    block: int = BLOCK,
) -> jax.Array:
    """Each example's gradient as a few random sums of its numbers: [n, project], in at least float32.

    R g / sqrt(project), the rows of R being of mean 0 and variance 1: products keep their mean, and err by about
    |g| |g'| / sqrt(project) (Johnson and Lindenstrauss 1984; Achlioptas 2003 for 1 and -1). As many rows of R are held
    as gradients, a block of each, and drawn again for each block of gradients: a larger one costs less.

    Args:
      project: how many numbers; a few thousand tell a tenth of a cosine.
      law: "rademacher", 1 and -1, or "normal".
      seed: of R: the same for what is to be compared.
      loss, params, state, key, block: as in `per_example.gradients`.

    >>> x = {"x": jax.random.normal(jax.random.key(0), (3, 100))}
    >>> features(lambda w, b: b["x"] @ w, jnp.zeros(100), x, project=20).shape
    (3, 20)
    """
    if project < 1:
        raise ValueError(f"project {project}; expected at least 1")
    gradient = _gradient(loss, params, state, key)
    keys = along.keys_of(jax.random.key(seed), project)

    def shortened(example):
        found = gradient(example)

        def on(key):
            return _product(found, along.raveled(along.draw(key, params, law)).astype(found.dtype))

        # The rows depend on no example: those that go side by side share them.
        return along.in_blocks(on, keys, block) / jnp.sqrt(jnp.asarray(project, found.dtype))

    return along.in_blocks(shortened, numbered(examples), block)


def nearest(features: jax.Array, given: jax.Array, count: int, *, by: By = "cosine") -> Alike:
    """Of features [n, dim], for each of the given [m, dim] those most like it.

    Raises:
      ValueError: a count that is not from 1 to n, or another `by`.

    >>> nearest(jnp.eye(3), jnp.array([[0.0, 2.0, 1.0]]), 2).indices.tolist()
    [[1, 2]]
    """
    _check(by)
    if by == "cosine":
        features, given = features * _scale(features), given * _scale(given)
    return _best(_product(given, features.T), count)


def _gradient(loss, params, state, key):
    """(example, number) -> its gradient as a row of numbers."""
    task, state = as_task(loss, state, key)

    def gradient(example):
        return along.raveled(value_and_gradient(task, params, state, *row(example, key))[0])

    return gradient


def _product(a, b):
    """a @ b to the dtype's last digits, on accelerators too: near duplicates differ by little."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _scale(rows):
    """1 / |row| [..., 1]; 0 of a row that is 0."""
    norm = jnp.linalg.norm(rows, axis=-1, keepdims=True)
    return jnp.where(norm > 0, 1 / jnp.where(norm > 0, norm, 1), 0)


def _best(found, count):
    """The highest scores of each row, with where they are."""
    if not 1 <= count <= found.shape[1]:
        raise ValueError(f"count {count}; expected from 1 to {found.shape[1]}, the examples there are")
    top, indices = lax.top_k(found, count)
    return Alike(indices, top)


def _check(by):
    if by not in ("cosine", "dot"):
        raise ValueError(f'by {by!r}; expected "cosine" or "dot"')
