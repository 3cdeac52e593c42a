"""Kronecker-factored blocks against dense matrices of plain jax, in the cases in which the factors lose nothing.

Everything is in float64. J^T H J is built here from whole Jacobians, one example after the other.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import agree, draw
from jax.flatten_util import ravel_pytree

from functrain import tree
from functrain.autodiff.curvature.kfac import KFAC, kfac
from functrain.autodiff.curvature.operators import draw_categorical, draw_normal
from functrain.layers import conv, linear

pytestmark = [pytest.mark.usefixtures("float64", "quick")]

ROUNDING = 1e-12


def array(*shape):
    return jnp.asarray(draw(sum(shape), *shape))


def affine(n, m, bias=True):
    return {"kernel": array(n, m), "bias": array(m)} if bias else {"kernel": array(n, m)}


def entropy(y, example):
    return jax.nn.logsumexp(y) - y[example[1]]


def squares(y, example):
    return jnp.sum((y - example[1]) ** 2)


@jax.jit
def _block(jacobian, hessian):
    return jnp.einsum("nki,nkl,nlj->ij", jacobian, hessian, jacobian) / len(jacobian)


def gauss_newton_block(predict, score, params, batch, name):
    """The mean of J^T H J, of the layer called name alone, as [kernel; bias] raveled."""

    def outputs(flat, example):
        return ravel_pytree(predict(params | {name: unravel(flat)}, example))[0]

    def unravel(flat):
        n, m = params[name]["kernel"].reshape(-1, params[name]["kernel"].shape[-1]).shape
        kernel = flat[: n * m].reshape(params[name]["kernel"].shape)
        return {"kernel": kernel, "bias": flat[n * m :]} if "bias" in params[name] else {"kernel": kernel}

    parts = [params[name][part].ravel() for part in ("kernel", "bias") if part in params[name]]
    flat = jnp.concatenate(parts)
    like = jax.eval_shape(predict, params, jax.tree.map(lambda x: x[0], batch))
    back = ravel_pytree(jax.tree.map(lambda x: jnp.zeros(x.shape), like))[1]

    def one(example):
        y = outputs(flat, example)
        return jax.jacrev(outputs)(flat, example), jax.hessian(lambda y: score(back(y), example))(y)

    return _block(*jax.jit(jax.vmap(one))(batch))


def deep(params, example):
    """Dense layers with tanh between them."""
    return linear.apply(params["out"], jnp.tanh(linear.apply(params["hidden"], example[0])))


def compiled(predict, score, params, batch, **given):
    """`kfac` under jit, which is quicker than operation by operation."""
    return jax.jit(lambda p, b: kfac(predict, score, p, b, **given))(params, batch)


def labels(n, classes):
    return jnp.arange(n) % classes


def deep_case(n):
    return {"hidden": affine(3, 4), "out": affine(4, 3)}, (array(n, 3), labels(n, 3))


# -- where the factors lose nothing --------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_one_example_is_exact(bias):
    params, batch = {"hidden": affine(3, 4, bias), "out": affine(4, 3, bias)}, deep_case(1)[1]
    found = jax.jit(lambda p: kfac(deep, entropy, p, batch))(params)
    assert list(found.blocks) == ["hidden/kernel", "out/kernel"]
    for name in params:
        block = found.blocks[f"{name}/kernel"]
        assert block.bias == bias
        agree(block.dense(), gauss_newton_block(deep, entropy, params, batch, name), ROUNDING)


def linear_net(params, example):
    return linear.apply(params["out"], linear.apply(params["hidden"], example[0]))


def pooled(params, example):
    return linear.apply(params["out"], linear.apply(params["hidden"], example[0]).mean(0))


def pooled_conv(params, example):
    y = conv.apply(params["hidden"], example[0][None], stride=(2, 1), padding=(1, 0))[0]
    return linear.apply(params["out"], y.mean((0, 1)))


EXACT = {
    # name: predict, kernel of the hidden layer, shapes of x and y, sharing (Eschenhagen et al. 2023, section 3.3)
    "dense": (linear_net, (3, 4), (3,), (2,), "expand"),
    "a loss for each position": (linear_net, (3, 4), (5, 3), (5, 2), "expand"),
    "a loss of the mean": (pooled, (3, 4), (5, 3), (2,), "reduce"),
    "convolution": (pooled_conv, (3, 2, 2, 4), (6, 4, 2), (2,), "reduce"),
}


@pytest.mark.parametrize("name", EXACT)
def test_deep_linear_networks_are_exact(name):
    """With squared errors, gradients are those of any example: the mean of the products is the product of the means."""
    predict, kernel, x, y, sharing = EXACT[name]
    params = {"hidden": {"kernel": array(*kernel), "bias": array(4)}, "out": affine(4, 2)}
    batch = array(6, *x), array(6, *y)
    found = jax.jit(lambda p: kfac(predict, squares, p, batch, sharing=sharing))(params)
    for layer in params:
        expected = gauss_newton_block(predict, squares, params, batch, layer)
        agree(found.blocks[f"{layer}/kernel"].dense(), expected, ROUNDING)


def test_many_examples_are_the_product_of_the_means():
    """Of a network that is not linear: factors from Jacobians by what the layer gives, made by hand."""
    params, (x, y) = deep_case(7)
    found = compiled(deep, entropy, params, (x, y))

    def after(h):
        return linear.apply(params["out"], jnp.tanh(h))

    @jax.jit
    def by_hand(x, y):
        h = linear.apply(params["hidden"], x)
        hessian = jax.vmap(jax.hessian(lambda z, y: entropy(z, (None, y))))(jax.vmap(after)(h), y)
        return jax.vmap(jax.jacobian(after))(h), hessian

    a = jnp.concatenate([x, jnp.ones((7, 1))], 1)
    agree(found.blocks["hidden/kernel"].A, a.T @ a / 7, ROUNDING)
    agree(found.blocks["hidden/kernel"].G, _block(*by_hand(x, y)), ROUNDING)


# -- kinds ---------------------------------------------------------------------------------------------


def test_empirical_is_of_the_gradients():
    params, batch = deep_case(5)
    found = compiled(deep, entropy, params, batch, kind="empirical").blocks["out/kernel"].G
    expected = jax.nn.softmax(jax.vmap(deep, (None, 0))(params, batch)) - jax.nn.one_hot(batch[1], 3)
    agree(found, expected.T @ expected / 5, ROUNDING)


@pytest.mark.parametrize(("score", "drawing"), [(entropy, draw_categorical), (squares, draw_normal)])
def test_drawn_targets_give_the_exact_factors_on_average(score, drawing):
    params, batch = deep_case(4)
    batch = batch if score is entropy else (batch[0], array(4, 3))
    drawn = jax.jit(
        jax.vmap(lambda k: kfac(deep, None, params, batch, kind="mc", draw=drawing, key=k, samples=20).blocks)
    )(jax.random.split(jax.random.key(0), 400))
    exact = compiled(deep, score, params, batch).blocks
    for path, block in exact.items():
        agree(drawn[path].A[0], block.A, ROUNDING)
        off = np.asarray(drawn[path].G.mean(0) - block.G)
        error = np.asarray(drawn[path].G.std(0)) / np.sqrt(400)
        assert np.all(error < 0.02 * np.abs(np.diag(block.G)).max())
        assert np.all(np.abs(off) < 4.5 * error + ROUNDING)


def test_each_example_draws_its_own():
    params, (x, y) = deep_case(1)
    batch = jnp.repeat(x, 50, 0), jnp.repeat(y, 50)
    given = {"kind": "mc", "draw": draw_categorical, "key": jax.random.key(0)}
    g = compiled(deep, None, params, batch, **given).blocks["out/kernel"].G
    assert np.linalg.matrix_rank(np.asarray(g), 1e-9) == 2  # of one draw it would be 1


def test_inputs_alone():
    params, batch = deep_case(5)
    found = compiled(deep, None, params, batch, kind="inputs", block=2).blocks["hidden/kernel"]
    agree(found.G, np.eye(4), ROUNDING)
    agree(found.A, compiled(deep, entropy, params, batch).blocks["hidden/kernel"].A, ROUNDING)


# -- masks, blocks of examples, what has no block ------------------------------------------------------


def same_blocks(a, b):
    assert list(a.blocks) == list(b.blocks)
    for ours, theirs in zip(jax.tree.leaves(a.blocks), jax.tree.leaves(b.blocks), strict=True):
        agree(ours, theirs, ROUNDING)


@pytest.mark.parametrize("kind", ["exact", "mc"])
def test_examples_block_by_block(kind):
    params, batch = deep_case(7)
    given = {"kind": kind, "draw": draw_categorical, "key": jax.random.key(1)}
    whole = compiled(deep, entropy, params, batch, **given)
    same_blocks(compiled(deep, entropy, params, batch, block=3, **given), whole)


def test_masked_examples_are_not_there():
    params, (x, y) = deep_case(7)
    mask = jnp.array([1.0, 0, 1, 1, 0, 1, 0])
    there = mask > 0
    masked = compiled(deep, entropy, params, (x, y), mask=mask, block=3)
    same_blocks(masked, compiled(deep, entropy, params, (x[there], y[there])))


def scaled(params, example):
    return deep(params, example) * params["scale"]


def test_what_has_no_block_is_told():
    params, batch = deep_case(5)
    params["scale"] = array(3)
    found = compiled(scaled, entropy, params, batch)
    assert found.others == {"scale": "used by mul"}
    v = jax.tree.map(jnp.ones_like, params)
    assert np.all(found.product(v)["scale"] == 0)
    agree(found.inverse(0.5).product(v)["scale"], np.full(3, 2.0))
    with pytest.raises(ValueError, match=r"expected those of the parameters: not so \['scale'\]"):
        found.product({name: v[name] for name in ("hidden", "out")})


# -- products and inverses -----------------------------------------------------------------------------


def dense_of(found, params):
    """The whole matrix, of leaves in the tree's order."""
    flat, unravel = ravel_pytree(params)
    return np.asarray(jax.jit(jax.vmap(lambda v: ravel_pytree(found.product(unravel(v)))[0]))(jnp.eye(flat.size)))


def places(params, paths):
    """Where leaves stand in the raveled parameters."""
    numbers = ravel_pytree(params)[1](jnp.arange(float(tree.size(params))))
    return np.concatenate([np.asarray(tree.by_path(numbers)[path]).ravel() for path in paths]).astype(int)


@pytest.mark.parametrize("joint", [True, False])
def test_products_are_those_of_the_dense_blocks(joint):
    """Leaves in, leaves out; no block reaches into another; the exact inverse is that of the damped matrix."""
    params, batch = deep_case(5)
    found = compiled(deep, entropy, params, batch, joint=joint)
    expected = np.zeros((tree.size(params),) * 2)
    for block in found.blocks.values():
        at = places(params, [path for path in (block.place.kernel, block.place.bias) if path is not None])
        expected[np.ix_(at, at)] = block.dense()
    agree(dense_of(found, params), expected, ROUNDING)
    if not joint:
        agree(found.blocks["out/bias"].dense(), found.blocks["out/kernel"].G, 0)
    inverse = jax.jit(lambda k: k.inverse(0.1, "exact"))(found)
    assert isinstance(inverse, KFAC)
    agree(dense_of(inverse, params), np.linalg.inv(expected + 0.1 * np.eye(len(expected))), 1e-11)


def test_factored_damping():
    params, batch = deep_case(5)
    found = compiled(deep, entropy, params, batch)
    inverse = found.inverse(0.1)
    for path, block in found.blocks.items():
        a, g = np.asarray(block.A), np.asarray(block.G)
        pi = np.sqrt((np.trace(a) / len(a)) / (np.trace(g) / len(g)))
        damped = np.kron(a + pi * np.sqrt(0.1) * np.eye(len(a)), g + np.sqrt(0.1) / pi * np.eye(len(g)))
        agree(inverse.blocks[path].dense(), np.linalg.inv(damped), 1e-11)


def test_eigenblocks_are_dense_matrices():
    params, batch = deep_case(5)
    block = compiled(deep, entropy, params, batch).blocks["hidden/kernel"]
    expected = np.linalg.inv(np.asarray(block.dense()) + 0.1 * np.eye(16))
    agree(block.inverse(0.1, "exact").dense(), expected, 1e-11)


@pytest.mark.parametrize("how", ["factored", "exact"])
def test_a_block_of_zeros_leaves_the_damping(how):
    params, batch = deep_case(5)
    found = compiled(deep, lambda y, _: jnp.sum(y), params, batch)
    v = {"kernel": array(3, 4), "bias": array(4)}
    inverse = found.inverse(0.25, how).product({"hidden": v, "out": affine(4, 3)})["hidden"]
    if how == "exact":
        agree(inverse["kernel"], 4 * v["kernel"], ROUNDING)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(inverse))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kind": "type-2"}, "kind: found 'type-2'; expected one of 'exact', 'mc', 'empirical', 'inputs'"),
        ({"sharing": "both"}, "sharing: found 'both'"),
        ({"score": None}, "score: found None"),
        ({"kind": "mc"}, 'kind "mc": found draw None'),
        ({"mask": jnp.ones(3)}, r"mask: found shape \(3,\); expected \(5,\)"),
        ({"predict": lambda p, e: jnp.tanh(p["out"]["bias"])}, "no dense or convolutional layer"),
    ],
)
def test_refusals(given, said):
    params, batch = deep_case(5)
    given = {"predict": deep, "score": entropy} | given
    with pytest.raises(ValueError, match=said):
        kfac(given.pop("predict"), given.pop("score"), params, batch, **given)
    with pytest.raises(ValueError, match="how: found 'full'"):
        kfac(deep, None, params, batch, kind="inputs").inverse(0.1, "full")  # pyright: ignore[reportArgumentType]
