"""Curvature: operators, diagonals and spectra against dense matrices in float64; estimates against their laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from float64 import agree
from jax.flatten_util import ravel_pytree

from functrain import losses, tree
from functrain.autodiff import curvature
from functrain.autodiff.curvature import Operator
from functrain.models import LeNet

pytestmark = [pytest.mark.usefixtures("quick")]
double = pytest.mark.usefixtures("float64")
KEY = jax.random.key(5)
EXACT = 1e-12  # of the largest entry


# -- small problems -------------------------------------------------------------------------------


def network(dtype=np.float64, examples=7, classes=3):
    """(predict(params, x), params, x, labels): tanh layers; leaves of several shapes, a single number among them."""
    rng = np.random.default_rng(0)
    shapes = {"scale": (), "out": (3, classes), "hidden": {"bias": (3,), "kernel": (2, 3)}}
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s), dtype), shapes, is_leaf=lambda s: type(s) is tuple)

    def predict(params, x):
        hidden = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
        return params["scale"] * (hidden @ params["out"])

    x = jnp.asarray(rng.normal(size=(examples, 2)), dtype)
    return predict, params, x, jnp.asarray(rng.integers(0, classes, examples))


def cross_entropy(outputs, labels):
    """The losses [n], or one."""
    return -jnp.take_along_axis(jax.nn.log_softmax(outputs), labels[..., None], -1)[..., 0]


def jacobian(f, params):
    """[outputs, n] of a function of the parameters, all raveled."""
    flat, back = ravel_pytree(params)
    return np.asarray(jax.jit(jax.jacobian(lambda v: ravel_pytree(f(back(v)))[0]))(flat))


def dense(make, *args):
    """The dense matrix of an operator that is made inside jit."""
    return jax.jit(lambda args: make(*args).dense(block=5))(args)


def like(n):
    """Shapes of n numbers in a tree of four leaves, one of none."""
    shapes = {"a": (), "b": (n // 3, 1), "c": (0, 2), "d": (n - 1 - n // 3,)}
    return {k: jax.ShapeDtypeStruct(s, np.float64) for k, s in shapes.items()}


def symmetric(values, seed=0):
    """A random symmetric matrix with these eigenvalues, and its operator."""
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))[0]
    a = (q * np.asarray(values, float)) @ q.T
    return a, of_matrix((a + a.T) / 2)


def of_matrix(a):
    back = Operator(lambda v: v, like(len(a)))
    return Operator(lambda v: back.unravel(jnp.asarray(a) @ back.ravel(v)), like(len(a)))


def on(f):
    """A function of an operator and a key, jitted as one of the matrix: compiled once for all of a shape."""
    return jax.jit(lambda a, key: f(of_matrix(a), key))


SPECTRA = {
    "distinct": np.linspace(-2, 5, 12),
    "degenerate": [3.0] * 4 + [1.0] * 5 + [-2.0] * 3,
    "rank one": [0.0] * 11 + [7.0],
    "identity": [1.0] * 12,
    "zero": [0.0] * 12,
    "geometric": 10.0 ** -np.arange(12),
    "tiny": 1e-150 * np.arange(-4.0, 8),
    "huge": 1e150 * np.arange(-4.0, 8),
}
spectra = pytest.mark.parametrize("name", SPECTRA)


# -- operators ------------------------------------------------------------------------------------


@double
def test_hessian_and_gauss_newton_are_the_dense_matrices():
    """By products and as a whole, for a loss, and for a score that is not convex."""
    predict, params, x, labels = network()
    loss = lambda p: cross_entropy(predict(p, x), labels).mean()  # noqa: E731
    flat, back = ravel_pytree(params)
    matrix = jax.jit(jax.hessian(lambda v: loss(back(v))))(flat)

    @jax.jit
    def found(params, v):
        operator = curvature.hessian(loss, params)
        assert operator.size == 19
        return operator.dense(), operator.damped(0.3).dense(), operator.ravel(operator @ back(v)), operator.flat(v)

    v = jnp.cos(jnp.arange(19.0))
    for ours, theirs in zip(found(params, v), (matrix, matrix + 0.3 * np.eye(19), matrix @ v, matrix @ v)):
        agree(ours, theirs, EXACT)
    agree(ravel_pytree(curvature.hessian(loss, params) @ back(v))[0], matrix @ v, EXACT)  # without jit too

    j, outputs = jacobian(lambda p: predict(p, x), params), predict(params, x)
    for score in (lambda y: cross_entropy(y, labels).mean(), lambda y: jnp.sum(jnp.sin(y) * y[::-1])):
        h = np.asarray(jax.hessian(lambda y, score=score: score(y.reshape(outputs.shape)))(outputs.ravel()))
        ggn = dense(lambda p, score=score: curvature.gauss_newton(lambda p: predict(p, x), score, p), params)
        agree(ggn, j.T @ h @ j, EXACT)
    assert np.linalg.eigvalsh(ggn)[0] < -0.1  # the second is indefinite: signs are kept


@double
def test_outputs_may_be_any_tree():
    """The score of two outputs that meet in it, and the Fisher of two leaves with one batch axis."""
    predict, params, x, _ = network()

    def both(p):
        y = predict(p, x)
        return {"first": y[:, 0], "rest": (jnp.exp(y[:, 1:] / 3),)}

    def score(y):
        return jnp.sum(jnp.tanh(y["first"]) * y["rest"][0][:, 0]) + jnp.sum(y["rest"][0] ** 3)

    j, (flat, back) = jacobian(both, params), ravel_pytree(both(params))
    h = np.asarray(jax.hessian(lambda y: score(back(y)))(flat))
    agree(dense(lambda p: curvature.gauss_newton(both, score, p), params), j.T @ h @ j, EXACT)

    draw = lambda key, y: jax.tree.map(lambda leaf: jnp.cos(7 * leaf), y)  # noqa: E731
    g = draw(None, both(params))
    parts = (
        jacobian(lambda p: both(p)["first"], params),
        jacobian(lambda p: both(p)["rest"][0], params).reshape(7, 2, 19),
    )
    each = g["first"][:, None] * parts[0] + np.einsum("ic,icn->in", g["rest"][0], parts[1])
    agree(dense(lambda p: curvature.fisher(both, draw, p, KEY), params), each.T @ each / 7, EXACT)


def fisher_by_hand(j, g, weights):
    """j: [n, outputs, parameters]; g: [samples, n, outputs]; weights: [n]."""
    each = np.einsum("sic,icn->sin", g, j)
    return np.einsum("sin,i,sim->nm", each, weights / weights.sum(), each) / len(g)


@double
@pytest.mark.parametrize("batch_axes", [1, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_fisher_of_given_draws(batch_axes, masked):
    """F is the mean of outer products of each example's gradient, with positions as examples, and with a mask."""
    predict, params, x, _ = network(examples=6)
    shape = (6, 3) if batch_axes == 1 else (2, 3, 3)
    f = lambda p: predict(p, x).reshape(shape)  # noqa: E731
    keys = jax.random.split(KEY, 4)
    g = np.asarray(jax.vmap(lambda k: jax.random.normal(k, shape))(keys)).reshape(4, 6, 3)
    weights = np.array([1.0, 0, 2, 1, 0.5, 0]) if masked else np.ones(6)
    mask = weights.reshape(shape[:batch_axes]) if masked else None
    normal = lambda key, y: jax.random.normal(key, y.shape)  # noqa: E731
    settings = {"samples": 4, "batch_axes": batch_axes, "mask": mask}
    found = dense(lambda p: curvature.fisher(f, normal, p, KEY, **settings), params)
    agree(found, fisher_by_hand(jacobian(f, params).reshape(6, 3, -1), g, weights), EXACT)


@double
def test_empirical_fisher():
    """Mean outer product of the losses' gradients; of a matrix of losses; with weights."""
    predict, params, x, labels = network(examples=6)
    f = lambda p: cross_entropy(predict(p, x), labels)  # noqa: E731
    j = jacobian(f, params)
    w = np.array([1.0, 0, 2, 1, 0.5, 0])
    agree(dense(lambda p: curvature.empirical_fisher(f, p), params), j.T @ j / 6, EXACT)
    agree(dense(lambda p: curvature.empirical_fisher(f, p, mask=w), params), (j.T * w) @ j / w.sum(), EXACT)
    matrix = lambda p: f(p).reshape(2, 3)  # noqa: E731
    agree(dense(lambda p: curvature.empirical_fisher(matrix, p), params), j.T @ j / 6, EXACT)


LAWS = {
    "categorical": (curvature.draw_categorical, lambda y, t: cross_entropy(y, jnp.zeros(y.shape[0], int)).sum()),
    "bernoulli": (curvature.draw_bernoulli, lambda y, t: jnp.sum(jax.nn.softplus(y))),
    "normal": (curvature.draw_normal, lambda y, t: jnp.sum(y**2)),
}


@double
@pytest.mark.parametrize("law", LAWS)
def test_draws_have_the_law_of_the_loss(law):
    """Gradients have mean 0, and their second moment is the Hessian of the loss: within four standard errors."""
    draw, loss = LAWS[law]
    y = jnp.array([[0.3, -1.0, 2.0], [0.0, 0.5, 0.1]])
    g = np.asarray(jax.vmap(lambda k: draw(k, y))(jax.random.split(KEY, 20000)))
    hessian = np.asarray(jax.hessian(loss)(y, None))
    assert_mean(g, np.zeros((2, 3)))
    for i in range(2):
        assert_mean(g[:, i, :, None] * g[:, i, None, :], hessian[i, :, i])
    assert_mean(g[:, 0, :, None] * g[:, 1, None, :], np.zeros((3, 3)))  # examples are drawn independently


def assert_mean(samples, expected, most=4.5):
    """Of independent samples on the first axis."""
    error = samples.std(0, ddof=1) / np.sqrt(len(samples))
    off = np.abs(samples.mean(0) - expected)
    assert np.all(off <= most * error + 1e-12), np.max(off / np.maximum(error, 1e-300))


@double
@pytest.mark.parametrize("law", LAWS)
def test_fisher_converges_to_gauss_newton(law):
    """The mean over keys is the Gauss-Newton matrix within its error, which falls as 1 / sqrt(samples)."""
    draw, loss = LAWS[law]
    predict, params, x, _ = network(examples=5)
    f = lambda p: predict(p, x)  # noqa: E731
    target = np.asarray(curvature.gauss_newton(f, lambda y: loss(y, None) / 5, params).dense())

    @jax.jit
    def drawn(keys):
        return jax.vmap(lambda k: curvature.fisher(f, draw, params, k).dense())(keys)

    found = np.asarray(drawn(jax.random.split(KEY, 1000)))
    assert_mean(found, target)
    off = np.linalg.norm(found - target, axis=(1, 2))
    many = jax.jit(jax.vmap(lambda k: curvature.fisher(f, draw, params, k, samples=16).dense()))
    fewer = np.linalg.norm(np.asarray(many(jax.random.split(KEY, 200))) - target, axis=(1, 2))
    ratio = np.sqrt(np.mean(off**2) / np.mean(fewer**2))
    assert 3.4 < ratio < 4.6, ratio


def counted(f):
    """(f, how often it ran) — traced or not."""
    calls = []

    def counting(*args):
        calls.append(0)
        return f(*args)

    return counting, calls


def dots(jaxpr):
    return sum(equation.primitive.name == "dot_general" for equation in jaxpr.eqns)


def test_what_a_product_costs():
    """The functions run once, when an operator is made; a product takes the matrix products that is said, no more."""
    layers = 5
    kernels = [jnp.eye(4) + 0.1 * i for i in range(layers)]
    x = jnp.ones((3, 4))

    def predict(kernels):
        y = x
        for kernel in kernels:
            y = jnp.tanh(y @ kernel)
        return y

    score = lambda y: jnp.sum(y**4)  # noqa: E731
    f, f_calls = counted(lambda p: score(predict(p)))
    counted_predict, predict_calls = counted(predict)
    losses_of, losses_calls = counted(lambda p: predict(p)[:, 0])
    makers = {
        # no tangent and no gradient by the first layer's input: it has two matrix products
        "hessian": (lambda: curvature.hessian(f, kernels), f_calls, 6 * layers - 4),
        "gauss_newton": (
            lambda: curvature.gauss_newton(counted_predict, score, kernels),
            predict_calls,
            4 * layers - 2,
        ),
        "empirical": (lambda: curvature.empirical_fisher(losses_of, kernels), losses_calls, 4 * layers - 2),
    }
    for name, (make, calls, expected) in makers.items():
        operator = make()
        assert len(calls) == 1, name
        found = dots(jax.make_jaxpr(operator.product)(kernels).jaxpr)
        assert found == expected, (name, found)
        operator @ kernels
        operator.dense()
        assert len(calls) == 1, name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_under_jit_in_other_dtypes(dtype):
    """Vectors have the parameters' dtypes; what is summed is wide; operators are made and used inside jit."""
    predict, params, x, labels = network(dtype)
    wide, wide_x = tree.cast(params, np.float32), x.astype(np.float32)

    def products(params, x):
        f = lambda p: cross_entropy(predict(p, x), labels)  # noqa: E731
        outputs = lambda p: predict(p, x)  # noqa: E731
        made = [
            curvature.hessian(lambda p: f(p).mean(), params),
            curvature.gauss_newton(outputs, lambda y: cross_entropy(y, labels).mean(), params),
            curvature.fisher(outputs, curvature.draw_normal, params, KEY, samples=2),
            curvature.empirical_fisher(f, params),
        ]
        return [operator @ jax.tree.map(lambda p: jnp.ones(p.shape), params) for operator in made]

    found, expected = jax.jit(products)(params, x), jax.jit(products)(wide, wide_x)
    for a, b in zip(found, expected):
        assert {leaf.dtype for leaf in jax.tree.leaves(a)} == {np.dtype(dtype)}
        if dtype == "float32":
            for ours, theirs in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
                np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
        assert all(np.isfinite(leaf.astype(np.float32)).all() for leaf in jax.tree.leaves(a))
    assert curvature.hessian(lambda p: jnp.sum(p**3), jnp.ones(2, dtype)).dense().dtype == np.float32


def test_a_flax_module():
    """The apply of a linen module, in float32, against its Hessian."""

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(2)(jnp.tanh(linen.Dense(3)(x)))

    net, x = Net(), jax.random.normal(KEY, (5, 2))
    params = jax.jit(net.init)(KEY, x)
    f = lambda p: cross_entropy(net.apply(p, x), jnp.arange(5) % 2).mean()  # noqa: E731
    flat, back = ravel_pytree(params)
    found = jax.jit(lambda p: curvature.hessian(f, p).dense())(params)
    np.testing.assert_allclose(found, jax.jit(jax.hessian(lambda v: f(back(v))))(flat), atol=1e-6)
    ggn = dense(lambda p: curvature.gauss_newton(lambda p: net.apply(p, x), lambda y: jnp.sum(y**2), p), params)
    j = jacobian(lambda p: net.apply(p, x), params)
    np.testing.assert_allclose(ggn, 2 * j.T @ j, atol=1e-5)


def test_lenet_in_float32():
    """61,706 parameters: products under jit are derivatives of gradients; dense is refused; the spectrum is found."""
    model = LeNet(inputs=(28, 28), outputs=10)
    params, state = jax.jit(model.init)(KEY)
    x, labels = jax.random.normal(KEY, (4, 28, 28)), jnp.arange(4)

    def f(params):
        mean = losses.cross_entropy(model.apply(params, state, x)[0], labels)
        return mean.total / mean.count

    v = jax.tree.map(lambda p: jax.random.normal(KEY, p.shape), params)

    @jax.jit
    def both(params, v):
        ggn = curvature.gauss_newton(
            lambda p: model.apply(p, state, x)[0], lambda y: cross_entropy(y, labels).mean(), params
        )
        found = curvature.top_eigenvalues(ggn, KEY, 1, steps=20).largest
        return curvature.hessian(f, params) @ v, ggn @ v, jax.jvp(jax.grad(f), (params,), (v,))[1], found

    product, ggn, expected, found = both(params, v)
    for a, b in zip(jax.tree.leaves(product), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, atol=2e-5 * float(tree.norm(expected)))
    assert sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(ggn), jax.tree.leaves(v))) > 0
    assert bool(found.converged[0])
    assert found.values[0] > 0
    with pytest.raises(ValueError, match=r"61,706 numbers.*61,706 products and 14.18 GiB; expected at most 4,096"):
        Operator(lambda v: v, params).dense()


def test_functions_of_all_kinds():
    """Loops, remat, rules of one's own; parameters that nothing uses, and that hold no number; a lone Python float."""
    params = {"used": jnp.ones(2), "unused": jnp.ones(1), "empty": jnp.zeros((0, 2))}

    def loop(w):
        return jax.lax.scan(lambda h, x: (jnp.tanh(h * w + x), h), w, jnp.ones((3, 2)))[1]

    for f in (loop, jax.checkpoint(loop)):
        outputs = lambda p, f=f: f(p["used"])  # noqa: E731
        found = dense(lambda p, g=outputs: curvature.gauss_newton(g, lambda y: jnp.sum(y**2), p), params)
        j = jax.jacobian(lambda w: loop(w).ravel())(jnp.ones(2))
        np.testing.assert_allclose(found, np.pad(2 * j.T @ j, (1, 0)), atol=1e-6)
    square = jax.custom_vjp(lambda x: x**2)
    square.defvjp(lambda x: (x**2, x), lambda x, g: (2 * x * g,))
    np.testing.assert_allclose(curvature.hessian(lambda w: jnp.sum(square(w)), jnp.ones(2)).dense(), 2 * np.eye(2))
    assert curvature.hessian(lambda w: w**3, 1.0).dense().tolist() == [[6.0]]


def test_what_operators_refuse():
    """One line that says what was found and what was expected."""
    f = lambda p: jnp.sum(p["w"] ** 2)  # noqa: E731
    params = {"w": jnp.ones(3)}
    operator = curvature.hessian(f, params)
    with pytest.raises(ValueError, match=r"w: found shape \(4,\); expected \(3,\)"):
        operator @ {"w": jnp.ones(4)}
    with pytest.raises(ValueError, match="as the parameters"):
        operator @ jnp.ones(3)
    with pytest.raises(ValueError, match="expected a float, \\[\\]"):
        curvature.hessian(lambda p: p["w"], params)
    with pytest.raises(ValueError, match="score gives"):
        curvature.gauss_newton(lambda p: p, lambda y: y, params)
    with pytest.raises(ValueError, match="parameter w: found int32; expected floats"):
        curvature.hessian(f, {"w": jnp.arange(3)})
    with pytest.raises(ValueError, match="output: found int32; expected floats"):
        curvature.gauss_newton(lambda p: jnp.arange(3), jnp.sum, params)
    with pytest.raises(ValueError, match="no parameter"):
        curvature.hessian(lambda p: 0.0, {})
    outputs = lambda p: p["w"]  # noqa: E731
    with pytest.raises(ValueError, match="samples: found 0"):
        curvature.fisher(outputs, curvature.draw_normal, params, KEY, samples=0)
    with pytest.raises(ValueError, match="batch_axes 2"):
        curvature.fisher(outputs, curvature.draw_normal, params, KEY, batch_axes=2)
    with pytest.raises(ValueError, match=r"mask: found shape \(2,\); expected \(3,\)"):
        curvature.fisher(outputs, curvature.draw_normal, params, KEY, mask=jnp.ones(2))
    with pytest.raises(ValueError, match="expected one array"):
        curvature.empirical_fisher(lambda p: p, params)


# -- diagonals ------------------------------------------------------------------------------------


DIAGONAL = on(lambda operator, key: curvature.diagonal(operator, block=5))


@double
@spectra
def test_diagonal(name):
    """Of any operator, as a tree like the parameters."""
    a, operator = symmetric(SPECTRA[name])
    found = DIAGONAL(a, KEY)
    assert jax.tree.structure(found) == jax.tree.structure(operator.like)
    agree(operator.ravel(found), np.diag(a), EXACT, max(np.abs(a).max(), 1e-300))


@double
@pytest.mark.parametrize(("block", "masked"), [(1, False), (3, True), (50, False)])
def test_gauss_newton_diagonal(block, masked):
    """As the dense one's, whatever the block; also with weights, and with a score that is not convex."""
    predict, params, x, labels = network()
    weights = np.array([1.0, 0, 2, 1, 0.5, 0, 3]) if masked else np.ones(7)

    def wild(y, label):
        return jnp.sin(y[0] * y[1] + label) * y[2]

    for each in (cross_entropy, wild):

        def score(y):
            return jax.vmap(each)(y, labels) @ weights / weights.sum()  # noqa: B023

        expected = np.diag(curvature.gauss_newton(lambda p: predict(p, x), score, params).dense())
        found = jax.jit(
            lambda p: curvature.gauss_newton_diagonal(
                lambda p, e: predict(p, e["x"]),
                lambda y, e: each(y, e["labels"]),  # noqa: B023
                p,
                {"x": x, "labels": labels},
                block=block,
                mask=weights if masked else None,
            )
        )(params)
        agree(ravel_pytree(found)[0], expected, EXACT)
    assert expected.min() < 0


def test_gauss_newton_diagonal_runs_the_model_once():
    """One trace for all outputs and blocks; float32 and bfloat16 parameters give float32."""
    for dtype in ("float32", "bfloat16"):
        predict, params, x, labels = network(dtype)
        f, calls = counted(lambda p, e: predict(p, e[0]))  # noqa: B023
        found = curvature.gauss_newton_diagonal(f, lambda y, e: cross_entropy(y, e[1]), params, (x, labels), block=2)
        assert len(calls) == 1
        assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(np.float32)}
        assert all(bool(jnp.all(leaf >= 0)) for leaf in jax.tree.leaves(found))
    with pytest.raises(ValueError, match="expected arrays of the same first axis"):
        curvature.gauss_newton_diagonal(predict, lambda y, e: y, params, (x, labels[:3]))
    with pytest.raises(ValueError, match="mask: found shape"):
        curvature.gauss_newton_diagonal(predict, lambda y, e: y, params, x, mask=jnp.ones(3))


@double
def test_hutchinson_diagonal():
    """Unbiased, with the error it says, whose square is the sum of the row's other squares over the samples."""
    a, operator = symmetric(SPECTRA["distinct"])
    value, error = curvature.hutchinson_diagonal(operator, KEY, 4000)
    value, error = operator.ravel(value), operator.ravel(error)
    exact = np.sqrt(((a**2).sum(1) - np.diag(a) ** 2) / 4000)
    np.testing.assert_allclose(error, exact, rtol=0.1)
    assert np.all(np.abs(value - np.diag(a)) < 4 * exact)
    for name in ("identity", "zero"):
        a, operator = symmetric(SPECTRA[name])
        value, error = curvature.hutchinson_diagonal(operator, KEY, 3)
        np.testing.assert_allclose(operator.ravel(value), np.diag(a), atol=1e-14)
        np.testing.assert_allclose(operator.ravel(error), 0, atol=1e-14)
    with pytest.raises(ValueError, match="samples: found 1"):
        curvature.hutchinson_diagonal(operator, KEY, 1)


# -- spectra --------------------------------------------------------------------------------------


def tridiagonal(found):
    return np.diag(found.alpha) + np.diag(found.beta, 1) + np.diag(found.beta, -1)


LANCZOS = {
    steps: on(lambda operator, key, steps=steps: curvature.lanczos(operator, key, steps)) for steps in (1, 5, 40)
}


@double
@spectra
@pytest.mark.parametrize("steps", LANCZOS)
def test_lanczos(name, steps):
    """The basis is orthonormal, T is A in it, and with n steps T has all eigenvalues, as often as they occur."""
    a, _ = symmetric(SPECTRA[name])
    found = LANCZOS[steps](a, KEY)
    m, size = min(steps, len(a)), max(np.abs(SPECTRA[name]).max(), 1e-300)
    q, t = np.asarray(found.basis), tridiagonal(found)
    assert (q.shape, found.beta.shape) == ((m, len(a)), (m - 1,))
    agree(q @ q.T, np.eye(m), 1e-13)
    agree(q @ a @ q.T, t, 1e-12, size)
    if m == len(a):
        agree(np.linalg.eigvalsh(t), np.sort(SPECTRA[name]), 1e-12, size)


def test_lanczos_in_float32():
    """A thousand numbers, three distinct eigenvalues: orthonormal still, and no nan where the Krylov space ends."""
    values = jnp.concatenate([jnp.full(10, 4.0), jnp.full(900, 1.0), jnp.full(90, -2.0)]).astype(np.float32)
    run = jax.jit(lambda values: curvature.lanczos(Operator(lambda v: values * v, values), KEY, 60))
    for scale in (1e-8, 1.0, 1e8):
        found = run(scale * values)
        q = np.asarray(found.basis)
        np.testing.assert_allclose(q @ q.T, np.eye(60), atol=1e-5)
        np.testing.assert_allclose(np.linalg.eigvalsh(tridiagonal(found))[[0, -1]] / scale, [-2, 4], rtol=1e-5)


TOP = {
    steps: on(lambda operator, key, steps=steps: curvature.top_eigenvalues(operator, key, 3, smallest=2, steps=steps))
    for steps in (6, 12)
}


@double
@spectra
@pytest.mark.parametrize("steps", TOP)
def test_top_eigenvalues(name, steps):
    """Both ends, repeated ones too, with vectors of length 1 and residuals that are what they say."""
    a, operator = symmetric(SPECTRA[name])
    size, values = max(np.abs(SPECTRA[name]).max(), 1e-300), np.sort(SPECTRA[name])
    largest, smallest = TOP[steps](a, KEY)
    for found, expected in ((largest, values[::-1][:3]), (smallest, values[:2])):
        vectors = np.asarray(jax.vmap(operator.ravel)(found.vectors))
        np.testing.assert_allclose(vectors @ vectors.T, np.eye(len(expected)), atol=1e-10)
        residuals = np.linalg.norm(vectors @ a - np.asarray(found.values)[:, None] * vectors, axis=1)
        np.testing.assert_allclose(found.residuals, residuals, atol=1e-13 * size)
        off = np.abs(np.asarray(found.values)[:, None] - values).min(1)
        assert np.all(off <= found.residuals + 1e-13 * size)  # the bound that the docstring states
        assert np.all(np.asarray(found.converged) == (residuals <= 1.49e-8 * np.abs(values).max()))
        if steps >= len(a) or name in ("rank one", "identity", "zero"):
            agree(found.values, expected, 1e-12, size)
            assert np.all(found.converged)


@double
def test_eigenvalues_that_have_not_converged_say_so():
    """Few steps of many eigenvalues: within the spectrum, not converged, and the default steps do converge."""
    values = np.concatenate([np.linspace(-1, 1, 120), [3.0, 3.0, 3.5]])
    a, operator = symmetric(values)

    @on
    def found(operator, key):
        few = curvature.top_eigenvalues(operator, key, 3, steps=6)
        alone = curvature.top_eigenvalues(operator, key, 3, width=1, steps=24)
        together = curvature.top_eigenvalues(operator, key, 3, steps=24)
        return few.largest, alone.largest, together.largest, *curvature.top_eigenvalues(operator, key, 3, smallest=1)

    few, alone, together, largest, smallest = found(a, KEY)
    assert not few.converged.any()
    assert few.values[0] < 3.5
    agree(largest.values, np.array([3.5, 3.0, 3.0]), 1e-10)
    assert largest.converged.all()
    assert not smallest.converged.any()
    assert -1 <= smallest.values[0] < -0.99
    agree(alone.values[:2], np.array([3.5, 3.0]), 1e-8)
    assert alone.values[2] < 2  # of two that are equal, one start finds one, until rounding brings the other
    agree(together.values, np.array([3.5, 3.0, 3.0]), 1e-4)
    with pytest.raises(ValueError, match="found count 0, smallest 0"):
        curvature.top_eigenvalues(operator, KEY, 0)
    with pytest.raises(ValueError, match="at most 4"):
        curvature.top_eigenvalues(operator, KEY, 5, steps=4)


@double
@pytest.mark.parametrize("method", ["hutchinson", "hutch++"])
def test_trace(method):
    """Unbiased, with the error that it says."""
    _, operator = symmetric(SPECTRA["distinct"] ** 3)
    estimate = jax.jit(jax.vmap(lambda k: curvature.trace(operator, k, 12, method=method)))
    values, errors = map(np.asarray, estimate(jax.random.split(KEY, 2000)))
    exact = np.sum(SPECTRA["distinct"] ** 3)
    assert_mean(values, exact)
    assert values.std() == pytest.approx(np.sqrt(np.mean(errors**2)), rel=0.1)


HUTCH = on(lambda operator, key: curvature.trace(operator, key, 60, method="hutch++", block=4))


@double
def test_trace_where_it_is_exact():
    """Diagonal matrices; and with hutch++ low rank, and as many products as numbers."""
    for name in SPECTRA:
        a, _ = symmetric(SPECTRA[name])
        size = max(np.abs(SPECTRA[name]).max(), 1e-300)
        value, error = HUTCH(a, KEY)
        assert abs(value - np.trace(a)) <= 1e-12 * size
        assert error <= 1e-12 * size
    _, operator = symmetric([0.0] * 38 + [5.0, 2.0])
    value, error = curvature.trace(operator, KEY, 9, method="hutch++")
    assert value == pytest.approx(7, rel=1e-12)
    assert curvature.trace(operator, KEY, 9).error > 0.1
    with pytest.raises(ValueError, match="samples: found 5; expected at least 6"):
        curvature.trace(operator, KEY, 5, method="hutch++")
    with pytest.raises(ValueError, match="found 'exact'"):
        curvature.trace(operator, KEY, 5, method="exact")


DENSITY = on(lambda operator, key: curvature.spectral_density(operator, key, samples=3, points=300))


@double
@spectra
def test_spectral_density(name):
    """It integrates to 1; the quadrature has the moments of the spectrum; identity and zero are one bump."""
    found = DENSITY(symmetric(SPECTRA[name])[0], KEY)
    assert np.trapezoid(found.density, found.eigenvalues) == pytest.approx(1, rel=1e-12)
    assert np.all(np.isfinite(found.density))
    assert np.all(np.asarray(found.density) >= 0)
    np.testing.assert_allclose(np.asarray(found.weights).sum(1), 1, rtol=1e-12)
    if name in ("identity", "zero"):
        assert found.eigenvalues[np.argmax(found.density)] == pytest.approx(SPECTRA[name][0], abs=5e-3)


@double
def test_spectral_density_is_the_spectrum_smoothed():
    """Against the normal densities around all eigenvalues, within what the random starts allow."""
    values = np.concatenate([np.random.default_rng(0).normal(size=297) / 3, [4.0, 4.5, -3.0]])
    _, operator = symmetric(values)
    found = curvature.spectral_density(operator, KEY, samples=60, steps=60, width=0.03)
    at, deviation = np.asarray(found.eigenvalues), 0.03 * 7.5
    exact = np.exp(-0.5 * ((at[:, None] - values) / deviation) ** 2).mean(1) / (deviation * np.sqrt(2 * np.pi))
    assert np.trapezoid(np.abs(found.density - exact), at) < 0.03
    assert (at[0], at[-1]) == pytest.approx((-3 - 6 * deviation, 4.5 + 6 * deviation), rel=1e-9)
    for power in (1, 2, 3):
        each = (np.asarray(found.weights) * np.asarray(found.nodes) ** power).sum(1)
        assert_mean(each, np.mean(values**power))
    with pytest.raises(ValueError, match="at least 10,0"):
        curvature.spectral_density(operator, KEY, width=1e-4)


def test_a_picture_of_the_density(tmp_path):
    found = curvature.spectral_density(Operator(lambda v: jnp.arange(30.0) * v, jnp.zeros(30)), KEY, samples=2)
    path = tmp_path / "of" / "density.png"
    curvature.draw_density(path, found, title="a line")
    assert path.read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="not finite"):
        curvature.draw_density(path, found._replace(density=found.density * jnp.nan))


# -- what a point is ------------------------------------------------------------------------------


def quadratic(values):
    return lambda w: jnp.sum(jnp.asarray(values) * w**2) / 2


POINTS = {
    "minimum": [1.0, 2.0, 3.0],
    "maximum": [-1.0, -2.0, -3.0],
    "saddle": [-1.0, 2.0, 3.0],
    "unknown": [0.0, 2.0, 3.0],
}


@double
@pytest.mark.parametrize("verdict", POINTS)
def test_stationary(verdict):
    """Of quadratic functions, with the eigenvalues; elsewhere than at 0 the gradient speaks."""
    values = POINTS[verdict]
    found = curvature.stationary(quadratic(values), jnp.zeros(3), KEY)
    assert found.verdict == verdict
    assert (found.smallest, found.largest) == pytest.approx((min(values), max(values)), abs=1e-12)
    assert found.missed == (1 if verdict in ("saddle", "unknown") else 0)
    assert (found.note != "") == (verdict == "unknown")
    assert str(found).startswith(verdict)
    away = curvature.stationary(quadratic(values), jnp.ones(3), KEY)
    assert away.verdict == "unknown"
    assert "gradient" in away.note
    assert away.gradient == pytest.approx(np.linalg.norm(values))


def test_stationary_points_in_float32():
    """Of a flat valley's zero nothing is said, however it is rounded; nor of what is not finite."""
    for seed in range(5):
        q = np.linalg.qr(np.random.default_rng(seed).normal(size=(20, 20)))[0]
        a = jnp.asarray((q * np.array([0.0] + [1.0] * 10 + list(range(1, 10)))) @ q.T, np.float32)
        found = curvature.stationary(lambda w: w @ (a + a.T) @ w, jnp.zeros(20), KEY)  # noqa: B023
        assert found.verdict == "unknown"
        assert "within its error of zero" in found.note
    found = curvature.stationary(lambda w: jnp.sum(jnp.sqrt(w)), jnp.zeros(2), KEY, tolerance=np.inf)
    assert found.verdict == "unknown"
    found = curvature.stationary(lambda w: jnp.sum(w**2) + jnp.nan * jnp.sum(w), jnp.zeros(2), KEY)
    assert (found.verdict, found.smallest) == ("unknown", 2)  # the Hessian alone would say a minimum


@double
def test_stationary_says_when_steps_are_too_few():
    """A lone negative eigenvalue among many can be missed: no minimum is claimed but where the bound allows it."""
    f = quadratic([-1e-4] + [0.05] * 300 + [1.0] * 199)
    missing = curvature.stationary(f, jnp.zeros(500), KEY, steps=2)
    assert missing.smallest > missing.smallest_error > 0  # it is missed, and the residual does not show it
    assert missing.verdict == "unknown"
    assert "2 steps may have missed" in missing.note
    assert curvature.stationary(f, jnp.zeros(500), KEY, steps=3).verdict == "saddle"
    sure = curvature.stationary(quadratic(np.linspace(0.1, 1, 500)), jnp.zeros(500), KEY, steps=30)
    assert sure.verdict == "minimum"
    assert 0 < sure.missed < 0.01
    assert "missed with chance at most" in str(sure)


@double
def test_the_bound_on_what_is_missed():
    """Of many random starts no larger share errs by s than 1.648 sqrt(n) exp(-(2k - 1) sqrt(s)) allows, for PSD A."""
    values = np.concatenate([np.cos(np.linspace(0, np.pi, 59)) * 0.45 + 0.45, [1.0]])
    operator = Operator(lambda v: jnp.asarray(values) * v, jnp.zeros(60))
    for k in (5, 12):
        find = jax.jit(jax.vmap(lambda key: curvature.top_eigenvalues(operator, key, 1, steps=k).largest.values[0]))  # noqa: B023
        error = 1 - np.asarray(find(jax.random.split(KEY, 300)))
        for s in (0.02, 0.05, 0.09):
            bound = 1.648 * np.sqrt(60) * np.exp(-(2 * k - 1) * np.sqrt(s))
            assert np.mean(error > s) <= bound + 0.02
