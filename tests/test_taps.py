"""Layers found in unedited functions: their rows make up jax's gradients; norms by example are those of the gradients.

Everything is in float64, where two correct programs differ by rounding alone.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen
from float64 import agree, draw
from jax import lax

from functrain import tree
from functrain.autodiff.norms import example_norms
from functrain.autodiff.taps import by_example, tapped
from functrain.layers import conv, embedding, linear
from functrain.models import CNN, GPT, MLP

pytestmark = [pytest.mark.usefixtures("float64", "quick")]

ROUNDING = 1e-12


# -- functions, with the layers that are in them -------------------------------------------------------


def array(*shape):
    return jnp.asarray(draw(sum(shape), *shape))


def dense_params(n, m):
    return {"kernel": array(n, m), "bias": array(m)}


def image(params, x, **settings):
    return conv.apply(params, x, **settings)


def raw_conv(params, x):
    """torch's layout of arrays and kernels, dilation on both sides, uneven padding."""
    settings = {"window_strides": (2, 1), "padding": ((1, 0), (-1, 3)), "lhs_dilation": (1, 2), "rhs_dilation": (2, 1)}
    y = lax.conv_general_dilated(x, params["kernel"], dimension_numbers=("NCHW", "OIHW", "NCHW"), **settings)
    return y + params["bias"].reshape(-1, 1, 1)


class Linen(linen.Module):
    """flax's own layers, with general axes."""

    @linen.compact
    def __call__(self, x):
        x = linen.Conv(4, (3, 3), strides=2, padding="SAME", param_dtype=float)(x)
        x = linen.relu(x).reshape(x.shape[0], -1, 4)
        x = linen.MultiHeadDotProductAttention(num_heads=2, param_dtype=float)(x)
        return linen.DenseGeneral((2, 3), axis=(-2, -1), param_dtype=float)(x)


def linen_case():
    x = array(2, 5, 4, 2)
    params = jax.tree.map(lambda p: array(*p.shape), Linen().init(jax.random.key(0), x)["params"])
    return lambda p, x: Linen().apply({"params": p}, x), params, x


FOUND = {
    # name: f(params, x), params, x; every parameter is of a layer
    "linear": lambda: (linear.apply, dense_params(3, 4), array(5, 3)),
    "one row": lambda: (linear.apply, dense_params(3, 4), array(3)),
    "positions": lambda: (linear.apply, dense_params(3, 4), array(5, 2, 3)),
    "kernel first": lambda: (lambda p, x: p["kernel"] @ x + p["bias"][:, None], dense_params(4, 4), array(4, 5)),
    "one output": lambda: (lambda p, x: x @ p["kernel"], {"kernel": array(3)}, array(5, 3)),
    "turned": lambda: (lambda p, x: embedding.attend(p, x), {"table": array(5, 3)}, array(2, 3)),
    "outer": lambda: (lambda p, x: x[:, None] * 2 @ p["kernel"][None], {"kernel": array(3)}, array(4)),
    "heads": lambda: (
        lambda p, x: jnp.einsum("btd,dhk->bhtk", x, p["kernel"]) + p["bias"][:, None],
        {"kernel": array(3, 2, 4), "bias": array(2, 4)},
        array(2, 5, 3),
    ),
    "merged": lambda: (
        lambda p, x: jnp.einsum("bthk,hkd->btd", x, p["kernel"]).reshape(-1, 4) + p["bias"],
        {"kernel": array(2, 3, 4), "bias": array(4)},
        array(2, 5, 2, 3),
    ),
    "split": lambda: (
        lambda p, x: (x @ p["kernel"].reshape(2, 3, 4).transpose(1, 0, 2).reshape(6, 4)).reshape(5, 2, 2) + p["bias"],
        {"kernel": array(6, 4), "bias": array(2, 2)},
        array(5, 6),
    ),
    "broadcast bias": lambda: (
        lambda p, x: jnp.broadcast_to(p["bias"], (5, 4)) + x @ p["kernel"],
        dense_params(3, 4),
        array(5, 3),
    ),
    "jit, remat": lambda: (
        jax.checkpoint(jax.jit(lambda p, x: jnp.tanh(linear.apply(p, x)))),
        dense_params(3, 4),
        array(5, 3),
    ),
    "conv": lambda: (image, conv.init(jax.random.key(0), 2, 3, kernel=3), array(2, 5, 4, 2)),
    "conv strides": lambda: (
        lambda p, x: image(p, x, stride=2, dilation=(1, 2), padding=(1, (0, 2))),
        conv.init(jax.random.key(0), 2, 3, kernel=(3, 2)),
        array(2, 7, 6, 2),
    ),
    "conv causal": lambda: (
        lambda p, x: image(p, x, padding="causal", dilation=2),
        conv.init(jax.random.key(0), 2, 3, kernel=(3,)),
        array(2, 7, 2),
    ),
    "conv 3d": lambda: (image, conv.init(jax.random.key(0), 2, 1, kernel=(2, 1, 3)), array(2, 3, 2, 4, 2)),
    "raw conv": lambda: (raw_conv, {"kernel": array(3, 2, 2, 3), "bias": array(3)}, array(2, 2, 5, 6)),
    "linen": linen_case,
}


def number(y):
    """A loss of outputs that treats no two of them alike."""
    return jnp.sum(jnp.sin(y) * jnp.cos(1.0 + jnp.arange(y.size)).reshape(y.shape))


def assembled(taps, cotangent, params):
    """The gradients by path, of inputs and gradients of layers."""
    leaves, found = tree.by_path(params), {}
    for path, g in taps.pull(cotangent).items():
        layer = taps.layers[path]
        assert taps.inputs[path].shape == (layer.positions, layer.inputs)
        assert g.shape == (layer.positions, layer.outputs)
        found[path] = layer.layout.leaf(taps.inputs[path].T @ g)
        if layer.bias is not None:
            found[layer.bias] = g.sum(0).reshape(leaves[layer.bias].shape)
    return found


@pytest.mark.parametrize("name", FOUND)
def test_inputs_and_gradients_make_up_the_gradient(name):
    f, params, x = FOUND[name]()
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), params)

    @jax.jit
    def both(params, x):
        taps = tapped(f)(params, x)
        assert taps.others == {}
        found = assembled(taps, jax.grad(number)(taps.outputs), params)
        return taps.outputs, found, f(params, x), jax.grad(lambda p: number(f(p, x)))(params)

    outputs, found, expected_outputs, expected = both(params, x)
    agree(outputs, expected_outputs, ROUNDING)
    expected = tree.by_path(expected)
    assert set(found) == set(expected)
    for path in expected:
        agree(found[path], expected[path], ROUNDING)


@pytest.mark.parametrize("name", ["linear", "positions", "turned", "conv", "conv causal", "raw conv"])
def test_rows_are_what_the_matrix_multiplies(name):
    """The pre-activations are a W + b: rows and columns stand in the orders that the layer says."""
    f, params, x = FOUND[name]()
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), params)

    @jax.jit
    def both(params, x):
        taps = tapped(f)(params, x)
        [(path, layer)] = taps.layers.items()
        leaves = tree.by_path(params)
        y = taps.inputs[path] @ layer.layout.matrix(leaves[path])
        y = y if layer.bias is None else y + leaves[layer.bias]
        outputs = jnp.moveaxis(taps.outputs, 1, -1) if name == "raw conv" else taps.outputs
        return y, outputs.reshape(-1, layer.outputs), layer.layout.leaf(layer.layout.matrix(leaves[path])), leaves[path]

    y, outputs, again, leaf = both(params, x)
    agree(y, outputs, ROUNDING)
    assert jnp.array_equal(again, leaf)


def test_patches_are_in_the_order_of_the_kernel():
    params = {"kernel": array(3, 2, 2, 5)}
    taps = tapped(image)(params, array(2, 6, 6, 2))
    assert taps.layers["kernel"].kind == "conv"
    assert taps.layers["kernel"].settings["padding"] == ((1, 1), (0, 1))
    assert jnp.array_equal(taps.layers["kernel"].layout.matrix(params["kernel"]), params["kernel"].reshape(12, 5))


# -- parameters of no layer ----------------------------------------------------------------------------


@jax.custom_vjp
def straight_through(w, x):
    return jnp.round(x @ w)


straight_through.defvjp(lambda w, x: (jnp.round(x @ w), (w, x)), lambda saved, g: (saved[1].T @ g, g @ saved[0].T))


def looped(p, x):
    return lax.scan(lambda h, _: (jnp.tanh(h @ p["w"]), None), x, None, length=3)[0]


X = (5, 3)
OTHERS = {
    # name: f(params, x), params' shapes, x's shape, what is told of w
    "scale": (lambda p, x: x * p["w"], {"w": (3,)}, X, "used by mul"),
    "shift": (lambda p, x: x + p["w"], {"w": (3,)}, X, "used by add"),
    "masked": (lambda p, x: x @ (p["w"] * 2), {"w": (3, 4)}, X, "used by mul"),
    "tied": (lambda p, x: x @ p["w"] @ p["w"].T, {"w": (3, 4)}, X, "used 2 times: by dot_general, by dot_general"),
    "itself": (
        lambda p, x: x @ (p["w"] @ p["w"]),
        {"w": (3, 3)},
        X,
        "used 2 times: multiplied with w, multiplied with w",
    ),
    "low rank": (lambda p, x: x @ (p["w"] @ p["v"]), {"w": (3, 2), "v": (2, 4)}, X, "multiplied with v"),
    "rows": (lambda p, x: p["w"][jnp.array([1, 1, 0])] @ x.T, {"w": (3, 3)}, X, "used by gather"),
    "scan": (looped, {"w": (3, 3)}, X, "inside scan"),
    "cond": (
        lambda p, x: lax.cond(x[0, 0] > 0, lambda w: x @ w, lambda w: x - x @ w, p["w"]),
        {"w": (3, 3)},
        X,
        "inside cond",
    ),
    "own rule": (lambda p, x: straight_through(p["w"], x), {"w": (3, 4)}, X, "inside custom_vjp_call"),
    "stopped": (lambda p, x: x @ lax.stop_gradient(p["w"]), {"w": (3, 4)}, X, "used by stop_gradient"),
    "unused": (lambda p, x: x @ p["v"], {"w": (3, 4), "v": (3, 4)}, X, "not used"),
    "output": (lambda p, x: (x.sum(), p["w"].T), {"w": (3, 4)}, X, "an output"),
    "groups": (
        lambda p, x: conv.apply({"kernel": p["w"]}, x, groups=2),
        {"w": (3, 3, 1, 4)},
        (2, 5, 5, 2),
        "feature_group_count 2",
    ),
    "batched": (
        lambda p, x: jnp.einsum("gi,gio->go", x, p["w"]),
        {"w": (5, 3, 4)},
        X,
        "batch dimensions of dot_general",
    ),
    "repeated": (
        lambda p, x: x @ jnp.broadcast_to(p["w"][:, None], (3, 4)),
        {"w": (3,)},
        X,
        "repeated before dot_general",
    ),
    "flipped": (lambda p, x: conv.transpose({"kernel": p["w"]}, x), {"w": (3, 2, 4)}, (2, 5, 2), "used by rev"),
    "bias of a scaled kernel": (
        lambda p, x: x @ (2 * p["v"]) + p["w"],
        {"w": (4,), "v": (3, 4)},
        X,
        "used by add",
    ),
    "bias of a tied kernel": (
        lambda p, x: (x @ p["v"] + p["w"]) @ p["v"],
        {"w": (3,), "v": (3, 3)},
        X,
        "added to a product of v, which is no layer",
    ),
    "one number": (lambda p, x: x @ p["v"] + p["w"], {"w": (), "v": (3, 4)}, X, "used by add"),
    "by position": (lambda p, x: x @ p["v"] + p["w"][:, None], {"w": (4,), "v": (3, 4)}, (4, 3), "used by add"),
    "turned bias": (
        lambda p, x: (x @ p["v"]).reshape(5, 2, 2) + p["w"].T,
        {"w": (2, 2), "v": (3, 4)},
        X,
        "used by add",
    ),
    "second bias": (lambda p, x: x @ p["v"] + p["u"] + p["w"], {"w": (4,), "u": (4,), "v": (3, 4)}, X, "used by add"),
    "read before": (
        lambda p, x: ((y := x @ p["v"]) + p["w"]) * y,
        {"w": (4,), "v": (3, 4)},
        X,
        "used by add",
    ),
    "read before, reshaped": (
        lambda p, x: ((y := x @ p["v"]).reshape(5, 2, 2) + p["w"].reshape(2, 2)) * y.sum(),
        {"w": (4,), "v": (3, 4)},
        X,
        "used by add",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_layer_is_told(name):
    f, shapes, size, reason = OTHERS[name]
    params = {path: array(*shape) for path, shape in shapes.items()}

    def total(p, x):
        return sum(number(y) for y in jax.tree.leaves(f(p, x)))

    @jax.jit
    def both(params, x):
        taps = tapped(f)(params, x)
        assert taps.others["w"] == reason
        of_layers = [path for layer in taps.layers.values() for path in (layer.kernel, layer.bias) if path is not None]
        assert sorted([*of_layers, *taps.others]) == sorted(params)
        return assembled(taps, jax.tree.map(jax.grad(number), taps.outputs), params), jax.grad(total)(params, x)

    found, expected = both(params, array(*size))
    for path, gradient in found.items():
        agree(gradient, expected[path], ROUNDING)


def test_rules_of_derivatives_are_kept():
    """A layer before a straight-through estimator has its gradient, not that of rounding."""
    params = {"first": array(3, 3), "second": array(3, 4)}

    def f(p, x):
        return straight_through(p["second"], x @ p["first"])

    taps = tapped(f)(params, array(*X))
    expected = jax.grad(lambda p: number(f(p, array(*X))))(params)
    agree(assembled(taps, jax.grad(number)(taps.outputs), params)["first"], expected["first"], ROUNDING)
    assert np.abs(expected["first"]).max() > 0


def test_integers_are_no_parameters():
    with pytest.raises(ValueError, match="count: found int64; expected floats"):
        tapped(lambda p, x: x @ p["w"])({"count": jnp.arange(3), "w": array(3, 4)}, array(*X))


def test_several_cotangents_give_jacobians():
    """Pulled side by side, the unit vectors give the Jacobian by each example's kernel."""
    params, x = {"hidden": dense_params(3, 4), "out": dense_params(4, 2)}, array(5, 3)

    def f(params, x):
        return linear.apply(params["out"], jnp.tanh(linear.apply(params["hidden"], x)))

    @jax.jit
    def both(params, x):
        found = by_example(f, lambda y, _: jnp.eye(2))(params, x)
        return (
            found.outputs,
            found.inputs,
            found.gradients,
            f(params, x),
            jax.vmap(jax.jacobian(f), (None, 0))(params, x),
        )

    outputs, inputs, gradients, expected, jacobian = both(params, x)
    for name in params:
        path = f"{name}/kernel"
        agree(np.einsum("nti,nkto->nkio", inputs[path], gradients[path]), jacobian[name]["kernel"], ROUNDING)
        agree(gradients[path].sum(2), jacobian[name]["bias"], ROUNDING)
    agree(outputs, expected, ROUNDING)


# -- norms by example ----------------------------------------------------------------------------------


def model_case(model, x, classes):
    params, state = model.init(jax.random.key(0))
    params = jax.tree.map(lambda p: 0.5 * array(*p.shape), params)
    labels = jnp.asarray(np.random.default_rng(0).integers(0, classes, x.shape if x.dtype == int else len(x)))

    def loss(params, batch):
        logits = model.apply(params, state, batch["x"])[0]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
        return losses.reshape(len(losses), -1).sum(1)

    return loss, params, {"x": x, "y": labels}


def ids(*shape):
    return jnp.asarray(np.random.default_rng(1).integers(0, 7, shape))


MODELS = {
    "mlp": lambda: model_case(MLP(inputs=(8,), outputs=4, hidden=(6, 5), norm="layer"), array(4, 8), 4),
    "cnn": lambda: model_case(
        CNN(inputs=(8, 8), outputs=5, channels=(4, 3), hidden=(5,), activation="tanh"), array(3, 8, 8), 5
    ),
    "gpt": lambda: model_case(GPT(inputs=(6,), outputs=7, layers=1, heads=2, width=4), ids(3, 6), 7),
    "gpt, untied": lambda: model_case(
        GPT(inputs=(2,), outputs=7, layers=1, heads=2, width=4, tied=False), ids(3, 2), 7
    ),
    "groups, scan": lambda: (
        lambda p, batch: looped(p, conv.apply({"kernel": p["k"]}, batch, groups=2).sum((1, 2))).sum(1),
        {"w": array(4, 4), "k": array(3, 3, 1, 4)},
        array(3, 5, 5, 2),
    ),
}


def gradients(loss, params, batch):
    """By example."""
    return jax.vmap(jax.grad(lambda p, b: loss(p, jax.tree.map(lambda x: x[None], b))[0]), (None, 0))(params, batch)


@pytest.mark.parametrize("name", MODELS)
def test_norms_are_those_of_the_gradients(name):
    loss, params, batch = MODELS[name]()
    found, expected = jax.jit(lambda p, b: (example_norms(loss, p, b), gradients(loss, p, b)))(params, batch)
    expected = jax.tree.map(lambda g: jnp.sum(g.reshape(len(g), -1) ** 2, 1), expected)
    for (path, ours), theirs in zip(tree.by_path(found.squared).items(), jax.tree.leaves(expected)):
        assert np.all(np.asarray(theirs) > 0), path
        agree(ours, theirs, ROUNDING)
    agree(found.whole, jnp.sqrt(sum(jax.tree.leaves(expected))), ROUNDING)
    agree(jax.tree.leaves(found.leaves)[0], jnp.sqrt(jax.tree.leaves(expected)[0]), ROUNDING)


@pytest.mark.parametrize(("positions", "ghost"), [(1, True), (4, True), (40, False)])
def test_the_cheaper_of_both_ways(positions, ghost):
    """Few positions: products of rows with rows; many: the kernel's gradient itself."""
    params, x = {"kernel": array(10, 12)}, array(3, positions, 10)

    def loss(p, x):
        return jnp.sin(x @ p["kernel"]).sum((1, 2))

    # positions * (10 + 12) < 10 * 12
    made = [
        v.aval.shape
        for e in jax.make_jaxpr(lambda p: example_norms(loss, p, x).squared)(params).eqns
        for v in e.outvars
    ]
    assert ((3, 10, 12) not in made) == ghost
    agree(
        example_norms(loss, params, x).whole,
        jnp.sqrt(jnp.sum(gradients(loss, params, x)["kernel"] ** 2, (1, 2))),
        ROUNDING,
    )


@pytest.mark.parametrize(
    ("loss", "batch", "said"),
    [
        (lambda p, x: jnp.sum(x @ p), (4, 3), "one example; expected its loss"),
        (lambda p, x: x @ p, (0, 3), "of one example or more"),
    ],
)
def test_refusals(loss, batch, said):
    with pytest.raises(ValueError, match=said):
        example_norms(loss, array(3), jnp.zeros(batch))
