"""autocast: any function, transformed in any way, keeps its types and nearly its values, with products in bfloat16."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import same
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core, source_info_util
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from functrain import _compat
from functrain.precision import EXEMPT, Float64, Rule, Rules, autocast
from functrain.precision.autocast import Interpreter, _rewritten

BF16, F16, F32, F64 = (np.dtype(jnp.dtype(name)) for name in ("bfloat16", "float16", "float32", "float64"))
MESH = _compat.data_mesh(jax.devices()[:1])


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


X, W, V, B = draw(0, 4, 6), draw(1, 6, 5) / 2, draw(2, 5, 6) / 2, draw(3, 1, 5) / 3
SQUARE = draw(4, 6, 6) / 3
LABELS = jnp.array([0, 3, 1, 4])
KEY = jax.random.key(0)


# -- functions of every kind ----------------------------------------------------------------------


def mlp(p, x):
    return jax.nn.softmax(jax.nn.gelu(x @ p["in"] + p["bias"]) @ p["out"])


def layer_norm(w, b, x):
    h = x @ w
    mean = h.mean(-1, keepdims=True)
    variance = jnp.square(h - mean).mean(-1, keepdims=True)
    return (h - mean) * lax.rsqrt(variance + 2**-16) * (1 + b)


def cross_entropy(w, x, labels):
    logits = jax.nn.log_softmax(x @ w)
    return -jnp.take_along_axis(logits, labels[:, None], 1).mean()


def convolution(x, kernel):
    h = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return lax.reduce_window(jax.nn.relu(h), -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def attention(q, k, v):
    return jax.nn.dot_product_attention(q, k, v, is_causal=True)


def rnn(w, u, x):
    def step(h, x):
        h = jnp.tanh(x @ u + h @ w)
        return h, h.sum(-1)

    return lax.scan(step, jnp.zeros((2, 3), x.dtype), x)


def while_loop(w, x):
    def go_on(carry):
        return (carry[0] < 3) & (jnp.sum(carry[1] ** 2) < 1e4)

    return lax.while_loop(go_on, lambda carry: (carry[0] + 1, jnp.tanh(carry[1] @ w)), (0, x))


def cond(w, x):
    return lax.cond(x[0, 0] > 5, lambda x: x * 2, lambda x: jnp.sin(x @ w), x)


def fori_loop(w, x):
    return lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h @ w) + i, x)


def scan_in_cond_in_jit(w, x):
    def run(x):
        return lax.scan(lambda c, _: (jnp.tanh(c @ w), c.max()), x, length=3)

    inner = jax.jit(lambda x, flag: lax.cond(flag > 0, run, lambda x: (x, jnp.zeros(3, x.dtype)), x))
    return inner(x, x[0, 0] ** 2)


@functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names("kept"))
def checkpoint_by_policy(w, x):
    return jnp.sin(checkpoint_name(x @ w, "kept")) @ w.T


@jax.checkpoint
def checkpoint(w, x):
    return jnp.tanh(2.5 * jnp.exp(x @ w / 2) + 1) @ w.T


@jax.custom_vjp
def doubled(w, x):
    """A product whose gradient is twice what it should be."""
    return x @ w


doubled.defvjp(lambda w, x: (x @ w, (w, x)), lambda saved, g: (2 * saved[1].T @ g, 2 * g @ saved[0].T))


@jax.custom_jvp
def tripled(x, n):
    """n tanh(x), whose derivative is three times what it should be, and the largest places."""
    return jnp.tanh(x) * n, lax.argmax(x, 1, jnp.int32)


@tripled.defjvp
def _(primals, tangents):
    x, n = primals
    y, places = tripled(x, n)
    slope = 3 * n * (1 - jnp.tanh(x) ** 2)  # in float32, for it has a power, where y is in bfloat16
    return (y, places), (slope * tangents[0], np.zeros(places.shape, jax.dtypes.float0))


@jax.custom_vjp
def rows_by_table(table, rows):
    """Products of some rows with all, by a rule of its own, one of whose arguments is of integers."""
    return table[rows] @ table.T


rows_by_table.defvjp(
    lambda table, rows: (table[rows] @ table.T, (table, rows)),
    lambda saved, g: (saved[0].at[saved[1]].add(g @ saved[0]), None),
)


@jax.custom_vjp
def by_constant(x):
    """A product with a constant that the function closes over, with a gradient that is twice what it should be."""
    return x @ W, x.argmax()


by_constant.defvjp(lambda x: ((x @ W, x.argmax()), None), lambda _, g: (2 * g[0] @ W.T,))


def shard_map(w, x):
    def part(w, x):
        return lax.psum(jnp.tanh(x @ w), "data"), lax.pmean(x.sum(), "data")

    return jax.shard_map(part, mesh=MESH, in_specs=(P(), P("data")), out_specs=(P(), P()))(w, x)


def nested_jit(w, x):
    f = jax.jit(lambda w, x: jnp.tanh(x @ w))
    return f(w, x) + 2 * f(w, x + 1)


def inner_grad(w, x):
    return jax.grad(lambda x: jnp.sum(jnp.sin(x @ w) ** 2))(x)


def losses(w, x, labels):
    logits, one_hot = x @ w, jax.nn.one_hot(labels, 5, dtype=x.dtype)
    return (
        optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(),
        optax.sigmoid_binary_cross_entropy(logits, one_hot).sum(),
        optax.huber_loss(logits, one_hot).mean(),
        optax.squared_error(logits, one_hot).mean(),
    )


def activations(w, x):
    functions = (jax.nn.silu, jax.nn.softplus, jax.nn.elu, jax.nn.relu6, jax.nn.logsumexp, jax.nn.glu)
    return [f(x @ w[:, :4]) for f in functions]


def dropout(w, x, key):
    return jnp.where(jax.random.bernoulli(key, 0.75, x.shape), x / 0.75, 0) @ w


def scatter(w, x, rows):
    h = (x @ w) @ w.T
    return x.at[rows].add(h), x.at[rows].set(h * 0.5), jax.ops.segment_sum(h, rows, 5)


def sort(w, x):
    h = x @ w
    return jnp.sort(h, 0), *lax.top_k(h, 2), jnp.argsort(h[0])


def linalg(w, x):
    a = x @ x.T + 10 * jnp.eye(4, dtype=x.dtype)
    return jnp.linalg.solve(a, x @ w), jnp.linalg.cholesky(a)


def callback(w, x):
    h = x @ w
    jax.debug.callback(lambda h: SEEN.append(h.dtype), h)
    return h


SEEN = []
"""The dtypes that the callback was given."""


def exempt(w, x):
    with jax.named_scope(EXEMPT):
        h = jax.jit(lambda x: doubled(w, x) + tripled(x @ w, 2)[0])(x)
        return lax.scan(lambda c, _: (jnp.sin(c @ w.T) @ w, None), h, length=2)[0]


def fft(w, x):
    return jnp.abs(jnp.fft.rfft(x @ w) + 3)


def preferred(w, x):
    return jnp.einsum("ij,jk->ik", x, w, preferred_element_type=jnp.float32)


def associative_scan(w, x):
    def combine(a, b):
        return a[0] * b[0], a[1] * b[0] + b[1]

    return lax.associative_scan(combine, (jax.nn.sigmoid(x @ w), x @ w))[1]


def inner_vmap(w, x):
    return jax.vmap(lambda x: jnp.tanh(w.T @ x) / (1 + jnp.linalg.norm(x)))(x)


class Block(flax.linen.Module):
    """A network by flax.linen."""

    @flax.linen.compact
    def __call__(self, x):
        return flax.linen.Dense(3)(jax.nn.gelu(flax.linen.LayerNorm()(flax.linen.Dense(5)(x))))


LINEN = jax.jit(Block().init)(KEY, X)
NNX_GRAPH, NNX = flax.nnx.split(flax.nnx.Linear(6, 5, rngs=flax.nnx.Rngs(0)))


def whole_numbers(w, x):
    h = x @ w
    return h, h.argmax(-1), h > 0, jnp.int32(4 * x).sum(), jnp.round(x).astype(jnp.int8)


def float8(w, x):
    low = (a.astype(jnp.float8_e4m3fn) for a in (x, w))
    return jnp.dot(*low, preferred_element_type=jnp.float32) + x @ w


def complex_numbers(w, x):
    z = (x @ w + 1j * x[:, :5]) @ (w.T @ w + 1j)
    return z, jnp.abs(z), jnp.exp(-0.25j * z).real


def noise(w, x, key):
    return (x + 0.1 * jax.random.normal(key, x.shape)) @ w


@dataclass(frozen=True)
class Case:
    """A function, what it is called with, and the dtypes of its products under autocast."""

    f: Callable[..., Any]
    args: tuple[Any, ...]
    products: frozenset[Any] = frozenset({BF16})
    reverse: bool = True  # whether it has derivatives in reverse mode in JAX itself


BOTH, OF_COMPLEX = frozenset({BF16, F32}), frozenset({BF16, np.dtype("complex64")})
OF_FLOAT8 = BOTH | {np.dtype(jnp.float8_e4m3fn)}  # a gradient of one has float32 beside it
PAIR, LOOP = (W, X), (SQUARE, X)

CASES = {
    "mlp": Case(mlp, ({"in": W, "bias": B, "out": V}, X)),
    "layer norm": Case(layer_norm, (W, B, X)),
    "cross entropy": Case(cross_entropy, (W, X, LABELS)),
    "convolution": Case(convolution, (draw(5, 1, 4, 4, 2), draw(6, 3, 3, 2, 3))),
    "attention": Case(attention, tuple(draw(i, 1, 4, 2, 8) for i in (7, 8, 9))),
    "rnn": Case(rnn, (draw(10, 3, 3) / 3, draw(11, 4, 3) / 3, draw(12, 5, 2, 4))),
    "while": Case(while_loop, LOOP, reverse=False),
    "cond": Case(cond, LOOP),
    "fori_loop": Case(fori_loop, LOOP),
    "scan in cond in jit": Case(scan_in_cond_in_jit, LOOP),
    "checkpoint by policy": Case(checkpoint_by_policy, PAIR),
    "checkpoint": Case(checkpoint, PAIR),
    "custom_vjp": Case(lambda w, x: jnp.sin(doubled(w, x)), PAIR),
    "custom_vjp, integers": Case(rows_by_table, (V, LABELS)),
    "custom_vjp, a constant": Case(lambda x: lax.scan(lambda c, _: (by_constant(c)[0] @ V, None), x, length=2), (X,)),
    "custom_jvp": Case(lambda w, x: (tripled(x @ w, 2), tripled(x[:, :5], LABELS[:, None])), PAIR),
    "shard_map": Case(shard_map, PAIR),
    "nested jit": Case(nested_jit, PAIR),
    "inner grad": Case(inner_grad, PAIR),
    "inner vmap": Case(inner_vmap, PAIR),
    "losses of optax": Case(losses, (W, X, LABELS)),
    "jax.nn": Case(activations, PAIR),
    "dropout": Case(dropout, (W, X, KEY)),
    "noise": Case(noise, (W, X, KEY)),
    "scatter": Case(scatter, (W, X, LABELS % 3)),
    "sort": Case(sort, PAIR),
    "linalg": Case(linalg, PAIR, BOTH),  # the derivatives of what is left as it is written have products of their own
    "callback": Case(callback, PAIR),
    "exempt": Case(exempt, PAIR, frozenset({F32})),
    "fft": Case(fft, PAIR),
    "preferred_element_type": Case(preferred, PAIR),
    "associative_scan": Case(associative_scan, PAIR),
    "flax.linen": Case(Block().apply, (LINEN, X)),
    "flax.nnx": Case(lambda p, x: jnp.tanh(flax.nnx.merge(NNX_GRAPH, p)(x)), (NNX, X)),
    "whole numbers": Case(whole_numbers, PAIR),
    "float8": Case(float8, PAIR, OF_FLOAT8),
    "complex numbers": Case(complex_numbers, PAIR, OF_COMPLEX),
}


# -- each under each transformation ---------------------------------------------------------------


def pattern(x):
    """Numbers of about 1 in an array of the same kind, none equal to another."""
    return jnp.cos(jnp.arange(x.size) + 0.3).reshape(x.shape).astype(x.dtype)


def differentiable(args):
    """Which arguments have derivatives."""
    return [i for i, a in enumerate(args) if all(jnp.issubdtype(x.dtype, jnp.inexact) for x in jax.tree.leaves(a))]


def gradient(f):
    """Of a sum of all the outputs that are no whole numbers, each number with a factor of its own."""

    def total(*args):
        found = [x for x in jax.tree.leaves(f(*args)) if jnp.issubdtype(x.dtype, jnp.inexact)]
        found = [x.real + x.imag if jnp.iscomplexobj(x) else x for x in found]
        return sum(jnp.sum(x * pattern(x)) for x in found)

    return lambda *args: jax.grad(total, differentiable(args))(*args)


def tangent_of_gradient(f):
    """Forward mode over reverse mode."""

    def g(*args):
        places = differentiable(args)

        def of_floats(*floats):
            filled = list(args)
            for i, x in zip(places, floats):
                filled[i] = x
            return gradient(f)(*filled)

        floats = [args[i] for i in places]
        return jax.jvp(of_floats, floats, jax.tree.map(pattern, floats))[1]

    return g


def batched(f):
    """Over two of each argument."""

    def g(*args):
        def two(x):
            return jnp.stack([x, x * 0.875 if jnp.issubdtype(x.dtype, jnp.inexact) else x])

        return jax.vmap(f)(*jax.tree.map(two, args))

    return g


HOW = {"forward": lambda f: f, "vmap": batched, "gradient": gradient, "jvp of gradient": tangent_of_gradient}
"""The transformations."""


def transformed(case, cast, cast_gradient=None):
    """A function of a case's arguments that gives what each transformation of the function does."""
    how = HOW if case.reverse else {name: HOW[name] for name in ("forward", "vmap")}
    found = {name: transform(cast(case.f)) for name, transform in how.items()}
    if case.reverse:
        found["autocast of gradient"] = (cast_gradient or cast)(gradient(case.f))
    return lambda *args: {name: f(*args) for name, f in found.items()}


def equations(jaxpr):
    """All equations of a jaxpr and of those inside of it."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    for equation in jaxpr.eqns:
        yield equation
        for inner in _compat.inner_jaxprs(equation):
            yield from equations(inner)


def traced(f, *args):
    """All equations of a function."""
    return list(equations(jax.make_jaxpr(f)(*args)))


def dtypes_in(found, *names):
    """The dtypes of the inputs of the primitives of these names, of all that are no whole numbers."""
    inputs = [v.aval.dtype for e in found if e.primitive.name in names for v in e.invars]
    return {dtype for dtype in inputs if jnp.issubdtype(dtype, jnp.inexact)}


PRODUCTS = "dot_general", "conv_general_dilated"


def assert_close(ours, plain, bound=0.05):
    """The same types; whole numbers equal; in each array of other numbers none off by more than bound * the largest.

    A number in bfloat16 is off by up to 2^-9 of itself; 5 % is what a dozen of such errors in a row come to.
    """
    assert jax.tree.structure(ours) == jax.tree.structure(plain)
    for (path, expected), x in zip(jax.tree.flatten_with_path(plain)[0], jax.tree.leaves(ours)):
        name = jax.tree_util.keystr(path)
        assert (x.shape, x.dtype) == (expected.shape, expected.dtype), name
        x, expected = np.asarray(x), np.asarray(expected)
        if not jnp.issubdtype(expected.dtype, jnp.inexact):
            assert (x == expected).all(), name
            continue
        error, size = np.abs(x - expected).max(), np.abs(expected).max()
        assert error <= bound * size, f"{name}: off by {error / size:.1%}"


@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_function_under_every_transformation(name, quick):
    """The types of plain JAX and nearly its values; products in bfloat16, and none of them in anything else."""
    case = CASES[name]
    plain = jax.jit(transformed(case, lambda f: f))(*case.args)
    program = jax.jit(transformed(case, autocast)).trace(*case.args)
    ours = program.lower().compile()(*case.args)
    assert_close(ours, plain)
    assert dtypes_in(equations(program.jaxpr), *PRODUCTS) == case.products
    if name == "exempt":
        assert same(ours, plain)


@pytest.mark.parametrize("name", ["scan in cond in jit", "custom_vjp, integers", "shard_map"])
def test_without_jit(name):
    """The same, one operation at a time."""
    case = CASES[name]
    for transform in HOW["forward"], HOW["gradient"]:
        assert_close(transform(autocast(case.f))(*case.args), jax.jit(transform(case.f))(*case.args))


@pytest.mark.parametrize("name", ["mlp", "convolution", "attention", "rnn", "custom_vjp", "custom_jvp", "shard_map"])
def test_rules_that_say_float32_change_nothing(name, quick):
    """Bit for bit, whether it is the low dtype or what every class is computed in."""
    case = CASES[name]
    everything = tuple(Rule(of=of, dtype="float32") for of in ("matmul", "exponential", "reduction", "elementwise"))
    plain = jax.jit(gradient(case.f))(*case.args)
    for rules in Rules("float32"), Rules(more=everything):
        assert same(jax.jit(gradient(autocast(case.f, rules)))(*case.args), plain)


def test_float16(quick):
    """The other low dtype, which has three more bits than bfloat16."""
    case = CASES["rnn"]
    plain, ours = (jax.jit(gradient(f))(*case.args) for f in (case.f, autocast(case.f, Rules("float16"))))
    assert_close(ours, plain, 0.01)
    assert not same(ours, plain)
    assert dtypes_in(traced(autocast(case.f, Rules("float16")), *case.args), *PRODUCTS) == {F16}


def test_float64_is_left_alone(float64):
    """A function of float64 is computed as it is written, and so is a product of float32 and float64."""
    w, x = np.asarray(W, np.float64), np.asarray(X, np.float64)
    f = CASES["nested jit"].f
    assert same(autocast(f)(w, x), f(w, x))
    assert autocast(f)(w, x).dtype == F64
    found = traced(autocast(lambda w, x: (w @ w.T, x @ w)), W, x)
    assert [dtypes for _, dtypes in scopes_of(found, *PRODUCTS)] == [{BF16}, {F32, F64}]


# -- which dtype ----------------------------------------------------------------------------------


def scopes_of(found, *names):
    """(scope, dtypes of the inputs) of the equations of these names, in order."""
    return [(str(e.source_info.name_stack), dtypes_in([e], *names)) for e in found if e.primitive.name in names]


def two_blocks(w, x):
    with jax.named_scope("block0"):
        x = jnp.tanh(x @ w)
    with jax.named_scope("block1"):
        return jnp.tanh(x @ w)


def test_rules_by_scope():
    """A part in float32 between others in bfloat16, in both directions; of a nested jit by where it is called."""
    rules = Rules(more=(Rule(of="matmul", dtype="float32", scope="block0"),))
    forward = scopes_of(traced(autocast(two_blocks, rules), *LOOP), *PRODUCTS)
    assert forward == [("block0", {F32}), ("block1", {BF16})]
    for f in gradient(autocast(two_blocks, rules)), autocast(gradient(two_blocks), rules):
        found = scopes_of(traced(f, *LOOP), *PRODUCTS)
        assert len(found) == 6
        assert all(dtypes == ({F32} if "block0" in scope else {BF16}) for scope, dtypes in found)

    inner = jax.jit(lambda w, x: lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ w), x))

    def nested(w, x):
        with jax.named_scope("block0"):
            x = inner(w, x)
        with jax.named_scope("block1"):
            return inner(w, x)

    found = [
        dtypes_in(equations(e.params["jaxpr"]), *PRODUCTS)
        for e in jax.make_jaxpr(autocast(nested, rules))(*LOOP).eqns[:3]
        if "jaxpr" in e.params
    ]
    assert found == [{F32}, {BF16}]


def test_the_first_rule_counts():
    """And a rule for a class other than products is obeyed."""
    more = [Rule(of="exponential", dtype="bfloat16", scope="a"), Rule(of="exponential", dtype="float16")]

    def f(x):
        with jax.named_scope("a"):
            x = jnp.exp(x)
        return jnp.log(x)

    found = traced(autocast(f, Rules(more=tuple(more))), X)
    assert scopes_of(found, "exp", "log") == [("a", {BF16}), ("", {F16})]
    with pytest.raises(ValueError, match="no regular expression"):
        Rule(of="matmul", dtype="float32", scope="(")


def test_what_is_asked_for_in_high_precision_stays():
    """By an argument or a context, of products and convolutions; a low one is no wish."""

    def high(w, x):
        with jax.default_matmul_precision("float32"):
            h = x @ w
        return h @ V, jnp.dot(x, w, precision="highest"), jnp.dot(x, w, precision=("default", "high"))

    found = traced(autocast(high), *PAIR)
    assert [dtypes for _, dtypes in scopes_of(found, *PRODUCTS)] == [{F32}, {BF16}, {F32}, {F32}]
    assert dtypes_in(traced(autocast(lambda w, x: jnp.dot(x, w, precision="default")), *PAIR), *PRODUCTS) == {BF16}

    def conv(x, kernel):
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", precision=lax.Precision.HIGHEST)

    assert dtypes_in(traced(autocast(conv), draw(0, 1, 2, 4, 4), draw(1, 3, 2, 3, 3)), *PRODUCTS) == {F32}


def test_an_exempt_scope():
    """Nothing in it is cast, in a nested jit neither; what comes after it is."""

    def f(w, x):
        with jax.named_scope(EXEMPT):
            h = jnp.tanh(jax.jit(lambda x: x @ w)(x @ SQUARE))
        return h @ w.T

    found = traced(autocast(f), *PAIR)
    assert [dtypes for _, dtypes in scopes_of(found, *PRODUCTS)] == [{F32}, {F32}, {BF16}]
    inside = [e for e in found if EXEMPT in str(e.source_info.name_stack)]
    assert not any(e.primitive.name == "convert_element_type" for e in inside)


def test_softmax_after_a_product():
    """The maximum is subtracted in float32, on the way to the exponential; the product itself is in bfloat16."""
    found = traced(autocast(lambda w, x: jax.nn.softmax(x @ w)), *PAIR)
    assert dtypes_in(found, "dot_general") == {BF16}
    assert [dtypes_in(found, name) for name in ("sub", "exp", "reduce_sum", "div")] == [{F32}] * 4


def test_a_literal_does_not_widen():
    """Nor what is broadcast from one, or a number of Python that is an argument, of a nested jit too; an array does."""

    def f(w, x):
        h = 2.5 * (x @ w) + 1
        return jnp.maximum(jnp.where(h > 0.5, h, 0.0), jnp.full(h.shape, 2.0)), jax.jit(lambda x, a: a * x)(h, 3.0)

    found = traced(autocast(f), *PAIR)
    assert dtypes_in(found, "dot_general", "mul", "add", "gt", "select_n", "max") == {BF16}
    assert dtypes_in(traced(autocast(lambda w, x, a: a * (x @ w)), *PAIR, 3.0), "mul") == {BF16}
    assert dtypes_in(traced(autocast(lambda w, x: jnp.sin(x[:, :5]) + x @ w), *PAIR), "add") == {F32}


@pytest.mark.parametrize("bias", [B[0], B], ids=["vector", "row"])
def test_a_bias_does_not_widen(bias):
    """What is added to each row of a product is added in the product's dtype; its gradient is summed in float32."""

    def f(w, x, b):
        return jnp.tanh(x @ w + b)

    assert dtypes_in(traced(autocast(f), *PAIR, bias), "add") == {BF16}
    found = traced(gradient(autocast(f)), *PAIR, bias)
    assert dtypes_in(found, "reduce_sum") == {F32}


def test_a_number_that_is_an_argument_does_not_widen():
    """A learned scale of a product is read in the product's dtype; its gradient is summed in float32."""

    def f(w, x, scale):
        return jnp.tanh(scale * (x @ w))

    assert dtypes_in(traced(autocast(f), *PAIR, jnp.float32(3)), "mul") == {BF16}
    assert dtypes_in(traced(gradient(autocast(f)), *PAIR, jnp.float32(3)), "reduce_sum") == {F32}


def test_a_running_total_keeps_its_digits():
    """Numbers in bfloat16 are added up one by one in float32: in bfloat16 the sum of many twos stands still at 512."""

    def total(w, x):
        return lax.fori_loop(0, 1000, lambda _, total: total + jnp.max(x @ w), jnp.float32(0))

    assert autocast(total)(jnp.ones((2, 2)), jnp.ones((2, 2))) == 2000


def test_a_residual_widens():
    """What is added to a product number by number is no bias: it goes on in float32, through layers too."""
    assert dtypes_in(traced(autocast(lambda w, x: jnp.tanh(x + x @ w)), *LOOP), "add") == {F32}

    def blocks(w, x):
        return lax.scan(lambda x, _: (x + jnp.tanh(x) @ w, None), x, length=3)[0]

    assert dtypes_in(traced(autocast(blocks), *LOOP), "add") == {F32}


MOVES = {
    "concatenate": lambda h: jnp.concatenate([h, h]),
    "stack": lambda h: jnp.stack([h, h]),
    "unstack": lambda h: jnp.unstack(h)[0],
    "pad": lambda h: jnp.pad(h, 1),
    "roll": lambda h: jnp.roll(h, 1),
    "index": lambda h: h[LABELS % 4],
    "slice": lambda h: h[1:3, ::-1].T.reshape(10),
    "sort": lambda h: jnp.sort(h),
    "update": lambda h: lax.dynamic_update_slice(h, h[:2], (1, 0)),
    "constraint": lambda h: lax.with_sharding_constraint(h, NamedSharding(MESH, P("data"))),
    "put": lambda h: jax.device_put(h, NamedSharding(MESH, P("data"))),
    "choose": lambda h: jnp.where(h > 0, h, 0),
    "clip": lambda h: jnp.clip(h, -1, 1),
}


@pytest.mark.parametrize("name", MOVES)
def test_what_moves_values_widens_none(name):
    """A product in bfloat16 stays in it."""
    assert dtypes_in(traced(autocast(lambda w, x: jnp.sin(MOVES[name](x @ w))), *PAIR), "sin") == {BF16}


def test_gradients_of_several_uses_are_summed_in_float32():
    """Of a weight that is used many times over in bfloat16."""

    def f(w, x):
        return sum(jnp.sin(jnp.cos(i * x) @ w).sum() for i in range(64))

    found = traced(gradient(autocast(f)), *PAIR)
    assert dtypes_in(found, "add_any") == {F32}
    one, many = gradient(autocast(f))(*PAIR)[0], gradient(f)(*PAIR)[0]
    assert np.linalg.norm(one - many) < 1e-2 * np.linalg.norm(many)  # summed in bfloat16 it was 3e-2


def test_two_dtypes_of_one_value_are_told_apart():
    """A value that is read in both low dtypes."""
    rules = Rules(more=(Rule(of="matmul", dtype="float16", scope="half"),))

    def f(w, x):
        with jax.named_scope("half"):
            h = x @ w
        return h, x @ w

    assert [dtypes for _, dtypes in scopes_of(traced(autocast(f, rules), *PAIR), *PRODUCTS)] == [{F16}, {BF16}]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_a_loop_carries_keeps_its_dtype(dtype):
    """Of scan, while_loop and cond; and outputs have the dtypes that the function gives."""

    def f(w, x):
        def step(x):
            return jnp.tanh(x @ w).astype(dtype)

        x = lax.scan(lambda c, _: (step(c), None), x, length=2)[0]
        x = lax.while_loop(lambda c: c.sum() < 0, step, x)
        return lax.cond(x.sum() > 0, step, lambda x: x, x)

    w, x = SQUARE.astype(dtype), X.astype(dtype)
    found = jax.make_jaxpr(autocast(f))(w, x)
    for name in "scan", "while", "cond":
        (loop,) = [e for e in found.eqns if e.primitive.name == name]
        assert [v.aval.dtype for v in loop.outvars] == [dtype]
    assert found.out_avals[0].dtype == dtype
    assert dtypes_in(equations(found), *PRODUCTS) == {BF16}


def test_an_unknown_primitive_is_given_what_it_was_written_for():
    """float32 after a product in bfloat16."""
    unknown = core.Primitive("unknown")
    given = []
    unknown.def_abstract_eval(lambda x: given.append(x.dtype) or x)
    assert dtypes_in(traced(autocast(lambda w, x: unknown.bind(x @ w)), *PAIR), "unknown") == {F32}
    assert set(given) == {F32}


def test_random_numbers_are_those_of_float32():
    """The same bits, whatever is computed of them."""

    def draws(key):
        return jax.random.normal(key, (5,)), jax.random.uniform(key, (5,)), jax.random.bernoulli(key, 0.3, (99,))

    assert same(jax.jit(autocast(draws))(KEY), jax.jit(draws)(KEY))


def test_a_watched_value_is_of_the_dtype_that_was_written():
    """What a callback is given."""
    SEEN.clear()
    autocast(callback)(*PAIR)
    jax.effects_barrier()
    assert SEEN == [F32]


def test_any_arguments_and_outputs():
    """Trees, None, keywords, numbers of Python; twice is once."""

    def f(tree, *, w, scale, nothing=None):
        return {"h": scale * (tree["x"] @ w), "nothing": nothing, "same": tree}

    call = {"w": W, "scale": 2.0, "nothing": None}
    ours, plain = autocast(f)({"x": X}, **call), jax.jit(f)({"x": X}, **call)
    assert_close(ours, plain)
    assert same(ours["same"], {"x": X})
    assert same(autocast(autocast(f))({"x": X}, **call), ours)


# -- what stays as it was -------------------------------------------------------------------------


def kept(equation):
    """The parameters of an equation but for functions, and for jaxprs, which are written anew."""
    bodies = ("jaxpr", "call_jaxpr", "branches", "cond_jaxpr", "body_jaxpr")
    return {name: value for name, value in equation.params.items() if name not in bodies and "jvp" not in name}


def everything_that_holds_a_function(w, x):
    sharding = NamedSharding(MESH, P("data"))
    x = jax.jit(jnp.sin, in_shardings=sharding, out_shardings=sharding, donate_argnums=0)(x @ w)
    x, _ = lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, length=4, reverse=True, unroll=2)
    x = lax.while_loop(lambda c: c.sum() < 0, lambda c: c + w.sum(), x)
    x = jax.checkpoint(lambda x: x @ w, prevent_cse=False, policy=jax.checkpoint_policies.dots_saveable)(x)
    x = jax.shard_map(lambda x: jnp.sin(x @ w), mesh=MESH, in_specs=P("data"), out_specs=P("data"))(x)
    return lax.cond(x.sum() > 0, lambda x: x @ w, lambda x: x, jax.nn.relu(x))


def test_parameters_are_kept():
    """Shardings, donation, a loop's length and direction, policies, meshes."""
    holders = ("jit", "pjit", "scan", "while", "cond", "remat2", "checkpoint", "shard_map")
    plain, ours = (
        [e for e in jax.make_jaxpr(f)(*LOOP).eqns if e.primitive.name in holders]
        for f in (everything_that_holds_a_function, autocast(everything_that_holds_a_function))
    )
    assert len({e.primitive.name for e in plain}) == 6
    assert [e.primitive for e in ours] == [e.primitive for e in plain]
    assert [kept(e) for e in ours] == [kept(e) for e in plain]
    assert any(True in e.params.get("donated_invars", ()) for e in ours)


@pytest.mark.parametrize("transform", [lambda f: f, gradient])
def test_scopes_and_lines_are_kept(transform):
    """Each equation is of the scope and line that it is of in JAX itself; a cast is of the line that asks for it."""

    def f(w, x):
        with jax.named_scope("outer"):
            x = jax.jit(jax.named_scope("inner")(lambda x: jnp.tanh(x @ w)))(x)
            x = jax.nn.relu(x)
        x = lax.scan(lambda c, _: (doubled(w, c) / 2, None), x, length=2)[0]
        return jnp.sin(x).sum()

    def places(f):
        found = [(e.primitive.name, str(e.source_info.name_stack), line(e)) for e in traced(f, *LOOP)]
        return [place for place in found if place[0] != "convert_element_type"]

    def line(equation):
        return source_info_util.summarize(equation.source_info)

    plain, cast = transform(f), autocast(transform(f))
    assert places(cast) == places(plain)
    assert {scope for _, scope, _ in places(plain)} >= ({"outer", "inner"} if transform is not gradient else {"inner"})
    outputs = jax.make_jaxpr(cast)(*LOOP).jaxpr.outvars
    lines = {line(e) for e in traced(cast, *LOOP) if str(e.outvars[0]) not in map(str, outputs)}
    assert lines <= {line(e) for e in traced(plain, *LOOP)}


def test_an_error_names_the_line_of_the_function():
    """Not one of autocast's own."""
    with jax.debug_nans(True), pytest.raises(FloatingPointError) as error:
        autocast(lambda x: jnp.log(x - 10))(X)
    assert "test_autocast.py" in str(error.value) or any("test_autocast" in str(e.path) for e in error.traceback)


def test_a_nested_jit_is_traced_once():
    """Whatever it is called from; nor is it rewritten anew."""
    calls = []

    @jax.jit
    def inner(w, x):
        calls.append(1)
        return jnp.tanh(x @ w)

    g = autocast(lambda w, x: inner(w, inner(w, x)))
    first, second = jax.jit(g)(*LOOP), g(*LOOP)
    misses = _rewritten.cache_info().misses
    assert same(g(*LOOP), second)
    assert calls == [1]
    assert _rewritten.cache_info().misses == misses
    assert_close(first, second)


def test_the_cache_is_bounded():
    """So that a process which traces on and on does not keep every jaxpr."""
    assert 0 < _rewritten.cache_info().maxsize <= 4096


def test_custom_rules_are_kept():
    """Wrong as they are: twice and three times what they should be."""
    twice = gradient(autocast(doubled))(*PAIR)
    assert_close(twice, jax.tree.map(lambda g: 2 * g, gradient(lambda w, x: x @ w)(*PAIR)))
    thrice = jax.jvp(autocast(lambda x: tripled(x, 2)[0]), [X], [jnp.ones_like(X)])[1]
    assert_close(thrice, 6 * (1 - jnp.tanh(X) ** 2))
    for f in doubled, lambda w, x: tripled(x @ w, 2)[0]:
        assert dtypes_in(traced(gradient(autocast(f)), *PAIR), *PRODUCTS) == {BF16}


def test_a_custom_rule_may_compute_in_another_dtype_than_its_function():
    """The output is in the function's."""

    @jax.custom_vjp
    def size(x):
        return jnp.abs(x)

    size.defvjp(lambda x: (jnp.sqrt(jnp.square(x)), x), lambda x, g: (g * jnp.sign(x),))
    found = traced(gradient(autocast(lambda w, x: jnp.sin(size(x @ w)))), *PAIR)
    assert dtypes_in(found, "sqrt") == {F32}
    assert dtypes_in(found, "sin") == {BF16}


def test_custom_rules_are_traced_with_the_dtypes_that_they_were_written_for():
    """They need no care for others: lax.mul takes no two dtypes."""

    @jax.custom_vjp
    def scaled(x, g):
        return x * g

    scaled.defvjp(lambda x, g: (x * g, (x, g)), lambda saved, t: (lax.mul(saved[1], t), lax.mul(saved[0], t)))

    @jax.custom_jvp
    def shifted(x, g):
        return x + g

    shifted.defjvp(lambda xs, ts: (shifted(*xs), lax.add(lax.mul(xs[1], ts[0]), lax.mul(xs[0], ts[1]))))

    for f in scaled, shifted:  # one of the inputs in bfloat16, one in float32; so is the cotangent
        for cotangent in jnp.sin, jnp.exp:

            def h(w, x, f=f, cotangent=cotangent):
                return cotangent(f(x @ w, jnp.exp(x[:, :5])) / 8)

            assert_close(gradient(autocast(h))(*PAIR), gradient(h)(*PAIR))


@pytest.mark.parametrize("cast", [jax.jit, autocast, lambda f: jax.jit(autocast(f))])
def test_a_custom_vjp_is_not_differentiated_by_what_it_closes_over(cast):
    """It has no rule for that: an error, as in JAX itself, and no zero."""

    def f(w):
        g = jax.custom_vjp(lambda x: x @ w)
        g.defvjp(lambda x: (x @ w, None), lambda _, g: (g @ w.T,))
        return g(X).sum()

    with pytest.raises(Exception, match=r"clos(es|ed).over|unexpected tracer"):
        jax.jit(jax.grad(cast(f)))(W)


def test_a_constant_output_is_an_array():
    """As it is in JAX itself."""
    assert all(isinstance(x, jax.Array) for x in autocast(lambda x: (x, jnp.zeros(()), jnp.float32(2)))(X))


# -- float64, the reference -----------------------------------------------------------------------


def wide(tree):
    """Floats in float64."""
    return jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == F32 else x, tree)


def in_float64(f, args):
    """A function that is traced in float32 and evaluated in float64."""
    jaxpr, consts = _compat.opened(jax.make_jaxpr(f)(*args))
    with jax.enable_x64(True):
        return jax.jit(Interpreter(Float64()).run, static_argnums=0)(jaxpr, consts, jax.tree.leaves(wide(args)))


def in_both(f):
    """The function and its gradient, flat."""
    return lambda *args: jax.tree.leaves((f(*args), gradient(f)(*args)))


EXACT = [
    *("layer norm", "cross entropy", "convolution", "rnn", "cond", "fori_loop", "scan in cond in jit"),
    *("checkpoint by policy", "checkpoint", "custom_vjp", "custom_vjp, integers", "custom_jvp", "shard_map"),
    *("inner grad", "losses of optax", "scatter", "associative_scan"),
]
"""Functions whose constants have all their digits in float32, and that leave nothing as it is written."""


@pytest.mark.parametrize("name", EXACT)
def test_float64(name, quick):
    """What is traced in float32 is computed as if it had been written in float64: no step is in less."""
    case = CASES[name]
    ours = in_float64(in_both(case.f), case.args)
    with jax.enable_x64(True):
        plain = jax.jit(in_both(case.f))(*wide(case.args))
    assert_close(ours, plain, 1e-12)


def test_float64_draws_what_float32_does():
    """A mask is that of the run in float32, and so is noise; what is computed with them is in float64."""

    def f(w, x, key):
        mask = jax.random.bernoulli(key, 0.75, x.shape)
        return jnp.where(mask, x / 0.75, 0) @ w, jax.random.uniform(key, (99,), minval=4, maxval=5)

    args = W, X, KEY
    mask, expected = jax.random.bernoulli(KEY, 0.75, X.shape), f(*args)[1]
    product, drawn = in_float64(f, args)
    with jax.enable_x64(True):
        native = jnp.where(mask, wide(X) / 0.75, 0) @ wide(W)
        assert_close(product, native, 1e-12)
    assert (np.asarray(drawn) == np.asarray(expected)).all()
