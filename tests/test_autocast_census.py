"""What autocast computes in which dtype, beside torch's lists for CUDA.

The lists are those of torch's page "Automatic Mixed Precision package - torch.amp", "CUDA Op-Specific Behavior".
Its lists for CPU are others: there softmax, sums and norms stay in bfloat16.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from functrain import _compat
from functrain.precision import CLASSES, autocast, class_of

BF16, F32 = np.dtype(jnp.bfloat16), np.dtype("float32")

TORCH = {
    name: functions.split()
    for name, functions in {
        "low": """__matmul__ addbmm addmm addmv addr baddbmm bmm multi_dot conv1d conv2d conv3d conv_transpose1d
            conv_transpose2d conv_transpose3d GRUCell linear LSTMCell matmul mm mv prelu RNNCell""",
        "float32": """__pow__ __rdiv__ __rpow__ __rtruediv__ acos asin binary_cross_entropy_with_logits cosh
            cosine_embedding_loss cdist cosine_similarity cross_entropy cumprod cumsum dist erfinv exp expm1 group_norm
            hinge_embedding_loss kl_div l1_loss layer_norm log log_softmax log10 log1p log2 margin_ranking_loss mse_loss
            multilabel_margin_loss multi_margin_loss nll_loss norm normalize pdist poisson_nll_loss pow prod reciprocal
            rsqrt sinh smooth_l1_loss soft_margin_loss softmax softmin softplus sum renorm tan triplet_margin_loss""",
        "widest": "addcdiv addcmul atan2 bilinear cross dot grid_sample index_put scatter_add tensordot",
    }.items()
}
"""What torch casts to the low dtype, what to float32, and for what it casts the inputs to the widest of theirs.

What is in no list runs in what its inputs have; several of them are promoted to the widest.
"""

# -- by primitive ---------------------------------------------------------------------------------

IS = {
    "__matmul__ addbmm addmm addmv addr baddbmm bmm multi_dot linear matmul mm mv": "dot_general",
    "GRUCell LSTMCell RNNCell": "dot_general",
    "dot tensordot bilinear": "dot_general",
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d": "conv_general_dilated",
    "pow __pow__ __rpow__": "pow integer_pow square",
    "__rdiv__ __rtruediv__ reciprocal": "div",
    "exp": "exp",
    "expm1": "expm1",
    "log log10": "log",
    "log2": "log2",
    "log1p": "log1p",
    "rsqrt": "rsqrt",
    "acos": "acos",
    "asin": "asin",
    "cosh": "cosh",
    "sinh": "sinh",
    "tan": "tan",
    "erfinv": "erf_inv",
    "sum": "reduce_sum",
    "prod": "reduce_prod",
    "cumsum": "cumsum",
    "cumprod": "cumprod",
    "atan2": "atan2",
    "addcdiv addcmul cross grid_sample": "add sub mul",
    # of no list
    "tanh": "tanh one_minus_square",
    "sigmoid": "logistic",
    "relu leaky_relu": "max select_n",
    "cat stack unbind": "concatenate stack unstack",
    "max_pool2d": "reduce_window_max",
    "avg_pool2d": "reduce_window_sum",
    "sqrt": "sqrt",
    "exp2": "exp2",
    "acosh": "acosh",
    "asinh": "asinh",
    "atanh": "atanh",
    "lgamma": "lgamma",
    "digamma": "digamma",
    "logcumsumexp": "cumlogsumexp",
}
"""Functions of torch, and the primitives that they are here, or that most of their work is."""

DEPARTURES = {
    "dot_general": "torch's dot, tensordot and bilinear are not told apart from its matmul",
    "div": "a number divided by an array is not told apart from an array divided by an array",
    "ragged_dot": "a product of matrices, which torch's page does not have",
    "ragged_dot_general": "likewise",
    "exp2": "it grows as exp does",
    "sqrt": "it stands in norms beside rsqrt; its derivative overflows where that of rsqrt does",
    "cbrt": "likewise",
    "acosh": "a logarithm and a root; torch has acos in its list",
    "asinh": "likewise",
    "atanh": "likewise",
    "lgamma": "a logarithm",
    "digamma": "its derivative",
    "cumlogsumexp": "it is made of exponentials, logarithms and sums",
    "reduce_window_sum": "a sum, of which torch's mean pooling is made",
    "psum": "a sum over devices; torch leaves communication to others",
    "psum_invariant": "likewise",
    "reduce_scatter": "likewise",
}
"""Primitive -> why it is not in what torch's lists say."""

GROUPS = {"matmul": "low", "exponential": "float32", "reduction": "float32"} | dict.fromkeys(
    ("elementwise", "comparison", "structure"), "widest"
)
"""Class -> what torch calls its dtype."""


def by_torch(primitive):
    """In what the functions of torch that are this primitive run; "widest" where there are none."""
    functions = [f for names, primitives in IS.items() if primitive in primitives.split() for f in names.split()]
    lists = {f: name for name, listed in TORCH.items() for f in listed}
    return {lists.get(f, "widest") for f in functions} or {"widest"}


def test_each_primitive_is_in_what_torch_says():
    """But for the departures, none of which is there for nothing."""
    primitives = set().union(*CLASSES.values(), *(names.split() for names in IS.values()))
    assert CLASSES.keys() == GROUPS.keys()
    found = {p for p in primitives if by_torch(p) != {GROUPS.get(class_of(p), "as written")}}
    assert found == DEPARTURES.keys()


def test_no_primitive_is_in_two_classes():
    """Else the last would count."""
    assert sum(map(len, CLASSES.values())) == len(set().union(*CLASSES.values()))


# -- by function ----------------------------------------------------------------------------------


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


X, W, Y, LABELS = draw(0, 4, 6), draw(1, 6, 5), draw(2, 4, 5), jnp.array([0, 3, 1, 4])
SIGNS = jnp.where(Y > 0, 1.0, -1.0)


def norm(h, groups=1):
    """Layer norm, or group norm."""
    h = h.reshape(len(h), groups, -1)
    h = h - h.mean(-1, keepdims=True)
    return h * lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + 1e-5)


def hinge(h, margin=1.0):
    return jnp.maximum(0, margin - h).mean()


def distances(h, g):
    return jnp.linalg.norm(h[:, None] - g[None], axis=-1)


def picked(h):
    return jnp.take_along_axis(h, LABELS[:, None], 1)


FLOAT32 = {
    "softmax": jax.nn.softmax,
    "softmin": lambda h: jax.nn.softmax(-h),
    "log_softmax": jax.nn.log_softmax,
    "softplus": jax.nn.softplus,
    "layer_norm": norm,
    "group_norm": lambda h: norm(h[:, :4], groups=2),
    "norm": jnp.linalg.norm,
    "normalize": lambda h: h / jnp.linalg.norm(h, axis=-1, keepdims=True),
    "renorm": lambda h: h * jnp.minimum(1, 2 / jnp.linalg.norm(h, axis=-1, keepdims=True)),
    "dist": lambda h: jnp.linalg.norm(h - Y),
    "cdist": lambda h: distances(h, Y),
    "pdist": lambda h: distances(h, h)[jnp.triu_indices(4, 1)],
    "cosine_similarity": lambda h: optax.cosine_similarity(h, Y),
    "cosine_embedding_loss": lambda h: (1 - optax.cosine_similarity(h, Y)).mean(),
    "cross_entropy": lambda h: optax.softmax_cross_entropy_with_integer_labels(h, LABELS).mean(),
    "nll_loss": lambda h: -picked(h).mean(),
    "binary_cross_entropy_with_logits": lambda h: optax.sigmoid_binary_cross_entropy(h, Y > 0).mean(),
    "kl_div": lambda h: optax.kl_divergence(h, jax.nn.softmax(Y)).mean(),
    "l1_loss": lambda h: jnp.abs(h - Y).mean(),
    "mse_loss": lambda h: optax.squared_error(h, Y).mean(),
    "smooth_l1_loss": lambda h: optax.huber_loss(h, Y).mean(),
    "poisson_nll_loss": lambda h: (jnp.exp(h) - Y * h).mean(),
    "soft_margin_loss": lambda h: jnp.log1p(jnp.exp(-SIGNS * h)).mean(),
    "hinge_embedding_loss": lambda h: jnp.where(SIGNS > 0, h, jnp.maximum(0, 1 - h)).mean(),
    "margin_ranking_loss": lambda h: hinge(SIGNS * (h - h[:, ::-1])),
    "multi_margin_loss": lambda h: hinge(picked(h) - h),
    "multilabel_margin_loss": lambda h: hinge(picked(h) - h[:, :2]),
    "triplet_margin_loss": lambda h: hinge(jnp.linalg.norm(h - Y, axis=-1) - jnp.linalg.norm(h + Y, axis=-1)),
}
"""Functions of torch's list that are several primitives here."""

FIRST_STEPS = {
    "hinge_embedding_loss": {"sub"},
    "pdist": {"sub"},
    "softplus": {"add"},
    "binary_cross_entropy_with_logits": {"add"},
}
"""What is in bfloat16 all the same: a step before a nested jit (jnp.where and jnp.linalg.norm are jits), into which
nobody looks, and softplus's sum for arguments that are nan."""

WIDEST = {
    "addcdiv": lambda h, g: h + 0.5 * h / g,
    "addcmul": lambda h, g: h + 0.5 * h * g,
    "cross": lambda h, g: jnp.cross(h[:, :3], g[:, :3]),
    "tanh": lambda h, g: jnp.tanh(h) * g,
    "sigmoid": lambda h, g: jax.nn.sigmoid(h) * g,
    "relu": lambda h, g: jax.nn.relu(h) * g,
    "leaky_relu": lambda h, g: jax.nn.leaky_relu(h) + g,
    "prelu": lambda h, g: jnp.where(h > 0, h, g * h),
    "index_put": lambda h, g: h.at[LABELS[:2]].set(g[:2]),
    "scatter_add": lambda h, g: h.at[LABELS[:2]].add(g[:2]),
}
"""Functions of several, and some that are in no list; prelu is the one of torch's list for the low dtype."""

ROUNDING = CLASSES["exponential"] | CLASSES["reduction"] | {"add", "add_any", "sub", "mul", "div", "tanh", "logistic"}
"""Primitives that round; what chooses or moves numbers is exact in any dtype."""


def census(f, *args):
    """Primitive -> the dtypes of its inputs, of those of floats, over a function and all that it calls."""
    found = {}

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            dtypes = [v.aval.dtype for v in equation.invars if hasattr(v.aval, "dtype")]
            floats = {dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)}
            found.setdefault(equation.primitive.name, set()).update(floats)
            for inner in _compat.inner_jaxprs(equation):
                walk(inner)

    walk(jax.make_jaxpr(f)(*args).jaxpr)
    return {primitive: dtypes for primitive, dtypes in found.items() if dtypes}


def test_every_function_of_torch_is_here():
    """As a primitive or as a function."""
    named = {f for names in IS for f in names.split()} | FLOAT32.keys() | WIDEST.keys()
    assert set().union(*TORCH.values()) <= named
    assert FLOAT32.keys() <= set(TORCH["float32"])


@pytest.mark.parametrize("name", FLOAT32)
def test_what_torch_computes_in_float32(name):
    """From the first step after a product in bfloat16, but for the steps named above."""
    found = census(autocast(lambda w, x: FLOAT32[name](x @ w)), W, X)
    assert found.pop("dot_general") == {BF16}
    low = {primitive for primitive in found.keys() & ROUNDING if found[primitive] != {F32}}
    assert low <= FIRST_STEPS.get(name, set())
    assert found.keys() & ROUNDING


@pytest.mark.parametrize("name", WIDEST)
def test_what_torch_computes_in_the_widest(name):
    """In bfloat16 where all inputs are, so that the output is cast at last; in float32 where one of them is."""
    f = WIDEST[name]
    low = jax.make_jaxpr(autocast(lambda w, x, y: f(x @ w, x @ w + 1)))(W, X, Y).eqns[-1]
    assert (low.primitive.name, low.invars[0].aval.dtype) == ("convert_element_type", BF16)
    wide = jax.make_jaxpr(autocast(lambda w, x, y: f(x @ w, y)))(W, X, Y).eqns[-1]
    assert wide.outvars[0].aval.dtype == F32
    assert wide.primitive.name != "convert_element_type"


# -- a transformer --------------------------------------------------------------------------------


@jax.custom_vjp
def product(w, x):
    """A product with a rule of its own."""
    return x @ w


product.defvjp(
    lambda w, x: (x @ w, (w, x)),
    lambda saved, g: (jnp.einsum("...i,...j->ij", saved[1], g), g @ saved[0].T),
)


def block(p, x):
    h = norm(x).reshape(x.shape) * p["scale"]
    q, k, v = jnp.split((h @ p["qkv"] + p["qkv_bias"]).reshape(*x.shape[:-1], 6, 4), 3, -2)
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / 2)
    x = x + product(p["out"], jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape))
    return x + jax.nn.gelu(norm(x).reshape(x.shape) @ p["up"] + p["up_bias"]) @ p["down"]


def loss(params, tokens):
    x = params["tokens"][tokens]
    x, _ = lax.scan(lambda x, p: (block(p, x), None), x, params["blocks"])
    logits = jax.nn.log_softmax(x @ params["tokens"].T)
    return -jnp.take_along_axis(logits, tokens[..., None], -1).mean()


SHAPES = {"qkv": (8, 24), "qkv_bias": (1, 1, 24), "out": (8, 8), "up": (8, 16), "up_bias": (1, 1, 16), "down": (16, 8)}
PARAMS = {
    "tokens": draw(0, 11, 8) / 3,
    "blocks": {name: draw(i, 2, *shape) / 3 for i, (name, shape) in enumerate(SHAPES.items())}
    | {"scale": 1 + draw(9, 2, 1, 1, 8) / 3},
}
TOKENS = jnp.arange(12).reshape(2, 6) % 11


def test_what_goes_through_the_layers_is_in_float32():
    """And so are parameters on the way to them; the products inside are not."""
    found = census(autocast(loss), PARAMS, TOKENS)
    assert found["scan"] == {F32}
    assert found["custom_vjp_call"] >= {BF16}


@pytest.mark.parametrize(
    ("f", "low"),
    [
        (autocast(loss), {"add"}),
        (jax.grad(autocast(loss)), {"add", "add_any"}),
        (autocast(jax.grad(loss)), {"add", "add_any"}),
    ],
    ids=["forward", "gradient", "autocast of gradient"],
)
def test_a_transformer(f, low):
    """Products in bfloat16; exponentials and sums in float32; of the rest what a bias and a head's parts need."""
    found = census(f, PARAMS, TOKENS)
    assert found["dot_general"] == {BF16}
    assert set().union(*found.values()) == {BF16, F32}
    for name in ("exponential", "reduction"):
        there = found.keys() & CLASSES[name]
        assert len(there) >= 3 - 2 * (name == "reduction")
        assert {primitive: found[primitive] for primitive in there} == {primitive: {F32} for primitive in there}
    assert {primitive for primitive in found.keys() & ROUNDING if BF16 in found[primitive]} <= low
    assert BF16 in found["add"]


def test_a_transformer_learns_nearly_the_same(quick):
    """The loss within 1 %; each gradient within 5 % of its largest entry."""
    plain, ours = (jax.jit(jax.value_and_grad(f))(PARAMS, TOKENS) for f in (loss, autocast(loss)))
    assert ours[0] == pytest.approx(float(plain[0]), rel=0.01)
    for x, expected in zip(jax.tree.leaves(ours[1]), jax.tree.leaves(plain[1]), strict=True):
        assert x.dtype == expected.dtype
        assert np.abs(x - expected).max() <= 0.05 * np.abs(expected).max()
