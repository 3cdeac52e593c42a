"""The forms of layers: the same values and gradients, chosen by rule, forced by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functrain.layers import conv, forms, layer_norm, linear, lstm, recurrent
from functrain.observe import flops


def value_and_gradients(f, *args):
    """f's outputs, and gradients of a drawn sum of them by all arguments."""
    weights = jax.random.normal(jax.random.key(9), jax.eval_shape(f, *args).shape)
    return f(*args), jax.grad(lambda *args: (weights * f(*args)).sum(), argnums=tuple(range(len(args))))(*args)


def agree(a, b, tolerance=1e-12):
    """Whether all leaves are equal to a share of the largest."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * max(1, np.abs(y).max()))


@pytest.mark.parametrize("padding", ["same", "valid", 2, ((0, 3), (2, 1))])
@pytest.mark.parametrize("shape", [(3, 9, 7, 2), (1, 5, 6, 1), (2, 3, 8, 8, 2)])
def test_rows_are_the_convolution(float64, padding, shape):
    """Values, and gradients by kernel, bias and input, with any leading axes and paddings, even kernels too."""
    x = jax.random.normal(jax.random.key(0), shape)
    for kernel in (5, (4, 3), (1, 2)):
        params = conv.init(jax.random.key(1), shape[-1], 3, kernel=kernel, bias_init="normal")

        def apply(params, x):
            return conv.apply(params, x, padding=padding)

        with forms.using(convolution="lax"):
            wanted = value_and_gradients(apply, params, x)
        with forms.using(convolution="rows"), forms.noted() as taken:
            found = value_and_gradients(apply, params, x)
        assert ("convolution", "rows") in taken
        agree(found, wanted)


def test_when_rows_are_taken():
    """For few outputs of large kernels on a CPU; never with strides, dilation, groups or another number of axes."""

    def taken(inputs=1, outputs=6, kernel=5, width=28, **settings):
        params = conv.init(jax.random.key(0), inputs, outputs, kernel=kernel, groups=settings.get("groups", 1))
        x = jnp.zeros((1, *[width] * (params["kernel"].ndim - 2), inputs))
        with forms.noted() as found:
            conv.apply(params, x, **settings)
        return ("convolution", "rows") in found

    assert taken()
    assert taken(6, 16, width=14, padding="valid")
    assert not taken(kernel=3)
    assert not taken(outputs=17)
    assert not taken(width=36)
    assert not taken(stride=2)
    assert not taken(dilation=2)
    assert not taken(2, 6, groups=2)
    assert not taken(kernel=(5,))
    assert not taken(kernel=(5, 5, 5), width=6)


def test_no_room_for_an_output():
    """The error of the other form."""
    params = conv.init(jax.random.key(0), 1, 2, kernel=5)
    for form in ("lax", "rows"):
        with forms.using(convolution=form), pytest.raises(ValueError, match="no output is left"):
            conv.apply(params, jnp.zeros((1, 4, 9, 1)), padding="valid")


def test_flops_are_those_of_the_convolution():
    """Whatever its form, and though it was counted before; the primitives are those of the form."""
    params = conv.init(jax.random.key(0), 1, 6, kernel=5)
    x = jnp.zeros((2, 28, 28, 1))

    def f(params, x):
        return conv.apply(params, x)

    for _ in range(2):
        counted, primitives, _ = flops.count(f, params, x)
        assert counted == 2 * 2 * 28 * 28 * 6 * 25
        assert "conv_general_dilated" not in primitives


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_product_and_all_its_derivatives(float64, lead):
    """x @ kernel, its gradients, forward derivatives and Hessian products, with any leading axes, under vmap too."""
    keys = jax.random.split(jax.random.key(0), 4)
    args = jax.random.normal(keys[0], (*lead, 4)), jax.random.normal(keys[1], (4, 5))
    others = jax.random.normal(keys[2], (*lead, 4)), jax.random.normal(keys[3], (4, 5))

    def taken(form, take):
        with forms.using(product=form), forms.noted() as found:
            values = take(lambda x, w: jnp.sin(linear.product(x, w)).sum())
        assert ("product", form) in found
        return values

    for take in (
        lambda f: f(*args),
        lambda f: jax.grad(f, (0, 1))(*args),
        lambda f: jax.jvp(f, args, others),
        lambda f: jax.jvp(jax.grad(f, (0, 1)), args, others),
        lambda f: jax.grad(lambda *args: jax.jvp(f, args, others)[1], (0, 1))(*args),
        lambda f: jax.vmap(lambda s: jax.grad(f, (0, 1))(s * args[0], args[1]))(jnp.array([1.0, 2.0])),
    ):
        agree(taken("transposed", take), taken("plain", take))


def lstm_by_hand(gates, kernel, state, here, reverse):
    """`lstm.recur`, a place after another."""
    h, c, found = state["h"], state["c"], [None] * len(gates)
    for t in reversed(range(len(gates))) if reverse else range(len(gates)):
        i, f, g, o = jnp.split(gates[t] + h @ kernel, 4, -1)
        after = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        new = jax.nn.sigmoid(o) * jnp.tanh(after)
        h, c = (new, after) if here is None else (jnp.where(here[t], new, h), jnp.where(here[t], after, c))
        found[t] = h
    return {"h": h, "c": c}, jnp.stack(found)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_lstm_and_all_its_derivatives(float64, reverse, masked):
    """Values, gradients, forward derivatives and Hessian products, by gates, kernel and state."""
    keys = jax.random.split(jax.random.key(0), 5)
    gates, kernel = jax.random.normal(keys[0], (4, 2, 12)), jax.random.normal(keys[1], (3, 12))
    state = {"h": jax.random.normal(keys[2], (2, 3)), "c": jax.random.normal(keys[3], (2, 3))}
    here = jnp.array([[1, 1], [1, 0], [1, 0], [0, 0]], bool)[..., None] if masked else None
    args = gates, kernel, state
    others = jax.tree.map(lambda x: jax.random.normal(keys[4], x.shape), args)

    def scalar(f):
        weights = jax.random.normal(jax.random.key(7), (4, 2, 3))

        def of(*args):
            after, h = f(*args, here, reverse)
            return (weights * h).sum() + (jnp.sin(after["h"]) * after["c"]).sum()

        return of

    ours, theirs = scalar(lstm.recur), scalar(lstm_by_hand)
    for take in (
        lambda f: f(*args),
        lambda f: jax.grad(f, (0, 1, 2))(*args),
        lambda f: jax.jvp(f, args, others),
        lambda f: jax.jvp(jax.grad(f, (0, 1, 2)), args, others),
        lambda f: jax.grad(lambda *args: jax.jvp(f, args, others)[1], (0, 1, 2))(*args),
        lambda f: jax.vmap(lambda s: jax.grad(f)(s * gates, kernel, state))(jnp.array([1.0, 2.0])),
    ):
        agree(take(ours), take(theirs))


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_the_table_first(float64, cell):
    """Rows of a table by number are the same as those rows, and so are the gradients."""
    params = recurrent.init(jax.random.key(0), 5, 4, cell=cell, layers=2, bidirectional=True)
    table = jax.random.normal(jax.random.key(1), (7, 5))
    ids, lengths = jax.random.randint(jax.random.key(2), (3, 6), 0, 7), jnp.array([6, 2, 0])

    def first(params, table):
        return recurrent.apply(params, ids, cell=cell, table=table, lengths=lengths)[0]

    def last(params, table):
        return recurrent.apply(params, table[ids], cell=cell, lengths=lengths)[0]

    agree(value_and_gradients(first, params, table), value_and_gradients(last, params, table))


def test_a_fence_changes_nothing():
    """But that there is one, on a CPU; the gradient passes through."""
    x, params = jax.random.normal(jax.random.key(0), (4, 6)), layer_norm.init(None, 6)

    def barriers(f):
        return str(jax.make_jaxpr(lambda x: f(x))(x)).count("optimization_barrier")

    def f(x):
        return layer_norm.apply(params, x)

    for kind in (f, jax.grad(lambda x: f(x)[0, 0]), lambda x: jax.jvp(f, (x,), (x,))[1], jax.vmap(f)):
        with forms.using(fence="on"):
            assert barriers(kind)
            fenced = kind(x)
        with forms.using(fence="off"):
            assert not barriers(kind)
            agree(fenced, kind(x), 1e-6)
    assert barriers(f) == (jax.default_backend() == "cpu")


def test_forms_by_hand(monkeypatch):
    """From the environment, and over it by `using`; a wrong one says what there is."""
    monkeypatch.setenv("FUNCTRAIN_FORMS", "convolution=rows,fence=off")
    assert forms.form("convolution", "lax") == "rows"
    with forms.using(convolution="lax"):
        assert forms.form("convolution", "rows") == "lax"
        assert forms.form("fence", "on") == "off"
    with (
        pytest.raises(
            ValueError,
            match=r"found convolution=fft; expected of convolution: lax, rows; fence: off, on; product: plain",
        ),
        forms.using(convolution="fft"),
    ):
        pass
    monkeypatch.setenv("FUNCTRAIN_FORMS", "pooling=fast")
    with pytest.raises(ValueError, match="found pooling=fast"):
        forms.form("fence", "on")


def test_a_wrong_form_ends_a_command(monkeypatch, root, capsys):
    """In one line, with status 2."""
    from functrain.cli import main

    monkeypatch.setenv("FUNCTRAIN_FORMS", "convolution=fft")
    assert main(["inspect", str(root / "configs" / "digits_mlp.toml")]) == 2
    assert capsys.readouterr().err.startswith(
        "functrain: FUNCTRAIN_FORMS: found convolution=fft; expected of convolution"
    )
