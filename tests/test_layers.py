"""Layers against their formulas, against one another, and where no other library is needed to tell right from wrong."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import draw

from functrain.layers import (
    attention,
    batch_norm,
    conv,
    embedding,
    group_norm,
    initializers,
    pool,
    positions,
    rms_norm,
)

pytestmark = pytest.mark.usefixtures("float64")


def same(a, b):
    return all(
        (np.asarray(x) == np.asarray(y)).all() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def run(f, *arrays, **settings):
    """f as one program, which compiles faster than its operations one by one."""
    return jax.jit(partial(f, **settings))(*arrays)


attend = jax.jit(attention.apply, static_argnames=("heads", "causal", "rotary_base", "train", "fast"))


def close(a, b, tolerance=1e-13):
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


# -- initial values -------------------------------------------------------------------------------


def test_initializers_by_name_or_function():
    """A name, or f(key, shape, dtype); the fan-in of a kernel is its window times its inputs."""
    kernel = conv.init(jax.random.key(0), 8, 64, kernel=(3, 5), groups=2, kernel_init="torch")["kernel"]
    assert kernel.shape == (3, 5, 4, 64)
    assert 0.99 < np.abs(kernel).max() * np.sqrt(3 * 5 * 4) <= 1
    params = conv.init(
        jax.random.key(0), 1, 2, kernel=(3,), kernel_init=lambda key, shape, dtype: jnp.ones(shape, dtype)
    )
    assert (params["kernel"] == 1).all()
    assert params["kernel"].dtype == jnp.float64
    with pytest.raises(ValueError, match="'lecum' is not one of: zeros"):
        initializers.by_name("lecum")


# -- convolution ----------------------------------------------------------------------------------


def test_same_padding_with_a_stride_is_by_the_formula():
    """ceil(n / stride) outputs; what is missing is halved, the odd one at the end (here 1 and 2)."""
    kernel, x = draw(0, 4, 2, 3), draw(1, 2, 9, 2)
    y = run(conv.apply, {"kernel": kernel}, x, padding="same", stride=2)
    padded = np.pad(x, ((0, 0), (1, 2), (0, 0)))
    expected = np.stack([np.einsum("btc,tco->bo", padded[:, 2 * i : 2 * i + 4], kernel) for i in range(5)], 1)
    close(y, expected)
    close(run(conv.apply, {"kernel": kernel}, x, padding=((1, 2),), stride=2), expected)


def test_leading_axes():
    """None, one or several stand before space."""
    params, x = {"kernel": draw(0, 3, 2, 4, 5), "bias": draw(1, 5)}, draw(2, 2, 3, 6, 5, 4)
    for layer, size in ((conv.apply, (3, 3)), (conv.transpose, (13, 10))):
        y = np.asarray(run(layer, params, x, stride=2))
        assert y.shape == (2, 3, *size, 5)
        close(y[1, 2], run(layer, params, x[1, 2], stride=2))
    close(np.asarray(run(pool.max, x, window=(2, 2)))[1], run(pool.max, x[1], window=2))


@pytest.mark.parametrize("dilation", [1, 2])
def test_transpose_is_the_adjoint(dilation):
    """<conv(x), y> = <x, transpose(y)> for the same kernel, its channels swapped."""
    kernel, x, y = draw(0, 3, 4, 2, 5), draw(1, 1, 9, 12, 2), draw(2, 1, 5, 6, 5)
    settings = {"stride": 2, "dilation": dilation, "padding": (dilation, 3 * dilation // 2)}
    forward = np.asarray(run(conv.apply, {"kernel": kernel}, x, **settings))
    assert forward.shape == y.shape
    turned = {"kernel": np.swapaxes(kernel, -1, -2)}
    back = np.asarray(run(conv.transpose, turned, y, output_padding=(0, dilation - 1), **settings))
    assert back.shape == x.shape
    close((forward * y).sum(), (x * back).sum())


def test_mistakes_in_convolution_and_pooling():
    """Each is told with the numbers in it."""
    params, x = {"kernel": draw(0, 3, 3, 2, 4)}, draw(1, 1, 5, 5, 2)
    for message, call in {
        "must be .batch, 2 spatial axes, 2 channels.": lambda: conv.apply(params, x[..., :1]),
        "groups 2 must divide inputs 3": lambda: conv.init(jax.random.key(0), 3, 4, kernel=3, groups=2),
        "stride .1, 2, 3. must be an int": lambda: conv.apply(params, x, stride=(1, 2, 3)),
        "'full' is not one of": lambda: conv.apply(params, x, padding="full"),
        "causal padding is for one spatial axis": lambda: conv.apply(params, x, padding="causal"),
        "no output is left": lambda: conv.apply(params, x[:, :2], padding="valid"),
        "output_padding .2, 2. must be less": lambda: conv.transpose(params, x, stride=2, output_padding=2),
        "does not fit into x": lambda: pool.max(x, 6),
        "at most half the window": lambda: pool.average(x, 2, padding=2),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


# -- pooling --------------------------------------------------------------------------------------


def test_pooling_in_other_dtypes():
    """16-bit means are taken in float32; integers have a largest value too."""
    x = jnp.full((1, 64, 64, 1), 3.0, jnp.float16)
    assert pool.average(x, 64).item() == pool.global_average(x).item() == 3  # a sum of 12288 has no such float16
    assert pool.adaptive_average(x, 3).dtype == jnp.float16
    assert pool.max(jnp.array([-5, -7], jnp.int8).reshape(1, 2, 1), 1, stride=1).ravel().tolist() == [-5, -7]


# -- norms ----------------------------------------------------------------------------------------


def test_batch_norm_leaves_out_what_the_mask_does():
    """Rows that do not count may hold anything: the statistics and gradients are those of the others by themselves."""
    params, state = {"scale": draw(0, 3), "bias": draw(1, 3)}, batch_norm.init(None, 3)[1]
    x, mask = draw(2, 4, 5, 3), np.array([1.0, 0, 1, 1])
    dirty = x.copy()
    dirty[1] = 1e9

    @jax.jit
    def kept(x, mask=None):
        def loss(x):
            y, new = batch_norm.apply(params, state, x, train=True, mask=mask)
            return jnp.sin(y[jnp.array([0, -2, -1])]).sum(), new

        return jax.value_and_grad(loss, has_aux=True)(x)

    (value, new), gradient = kept(dirty, mask)
    (expected, expected_new), expected_gradient = kept(x[mask != 0])
    close(value, expected)
    close(np.asarray(gradient)[mask != 0], expected_gradient)
    for name in state:
        close(new[name], expected_new[name])


def test_batch_norm_state():
    """The state passes no gradient on, stays in float32 under 16-bit parameters, and does not move by one place."""
    params, state = batch_norm.init(None, 2, dtype=jnp.bfloat16)
    assert state["var"].dtype == jnp.float32
    y, new = run(batch_norm.apply, params, state, np.ones((4, 2), jnp.bfloat16), train=True)
    assert (y.dtype, new["mean"].dtype) == (jnp.bfloat16, jnp.float32)

    x = draw(0, 4, 2)
    params, state = batch_norm.init(None, 2)
    by_x = run(jax.grad(lambda x: batch_norm.apply(params, state, x, train=True)[1]["var"].sum()), x)
    by_state = run(jax.grad(lambda s: batch_norm.apply(params, s, x, train=False)[0].sum()), state)
    assert not np.asarray(by_x).any()
    assert not np.asarray(by_state["mean"]).any()
    train = jax.jit(partial(batch_norm.apply, train=True))
    for mask in ([1, 0, 0, 0], [0, 0, 0, 0]):
        y, new = train(params, state, x, mask=np.array(mask))
        assert np.isfinite(y).all()
        assert same(new, state)
    with pytest.raises(ValueError, match="more than one place"):
        batch_norm.apply(params, state, x[:1], train=True)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_norms_in_16_bit(dtype):
    """Computed in float32: squares of 300 overflow float16; returned in the dtype of x."""
    x, scale = (300 * draw(0, 2, 5, 4)).astype(dtype), {"scale": np.ones(4)}
    for y, wide in (
        (run(rms_norm.apply, scale, x), run(rms_norm.apply, scale, x.astype(float))),
        (run(group_norm.apply, {}, x, groups=2), run(group_norm.apply, {}, x.astype(float), groups=2)),
    ):
        assert y.dtype == dtype
        close(np.asarray(y).astype(float), wide, 2 * jnp.finfo(dtype).eps)


# -- embedding and positions ----------------------------------------------------------------------


def test_embedding_of_wrong_ids():
    """An id out of range gives nan and touches no row; ids are integers."""
    table = draw(0, 3, 2)
    ids = jnp.array([2, 3, -1, 0])
    assert np.isnan(run(embedding.apply, {"table": table}, ids)).all(-1).tolist() == [False, True, True, False]
    gradient = run(jax.grad(lambda table: jnp.nansum(embedding.apply({"table": table}, ids))), table)
    assert gradient.tolist() == [[1, 1], [0, 0], [1, 1]]
    with pytest.raises(TypeError, match="ids must be integers, not float64"):
        embedding.apply({"table": table}, table)


@pytest.mark.parametrize("features", [1, 5, 8])
def test_sinusoidal(features):
    """Element by element, as the paper writes it."""
    table = run(positions.sinusoidal, length=7, features=features, base=50.0)
    expected = [
        [(np.cos if j % 2 else np.sin)(p / 50.0 ** ((j - j % 2) / features)) for j in range(features)] for p in range(7)
    ]
    close(table, np.array(expected), 1e-15)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary(interleaved):
    """Pair by pair as complex numbers; and inner products depend on the distance alone."""
    x, at = draw(0, 2, 3, 5, 6), jnp.array([[0, 1, 2], [7, 3, 1000]])
    y = run(positions.rotary, x, at, base=100.0, interleaved=interleaved)
    first, second = ([0, 2, 4], [1, 3, 5]) if interleaved else ([0, 1, 2], [3, 4, 5])
    angles = np.asarray(at)[:, :, None, None] * 100.0 ** (-2 * np.arange(3) / 6)
    turned = (np.asarray(x)[..., first] + 1j * np.asarray(x)[..., second]) * np.exp(1j * angles)
    expected = np.empty_like(x)
    expected[..., first], expected[..., second] = turned.real, turned.imag
    close(y, expected)

    q, k = draw(1, 1, 1, 6), draw(2, 1, 1, 6)

    @jax.jit
    def product(m, n):
        turned = (positions.rotary(x, p[None], interleaved=interleaved) for x, p in ((q, m), (k, n)))
        return jnp.multiply(*turned).sum()

    close(product(9, 4), product(25, 20))
    assert abs(product(9, 4) - product(9, 5)) > 0.1
    with pytest.raises(ValueError, match="even number of features"):
        positions.rotary(x[..., :5], at)


# -- attention ------------------------------------------------------------------------------------

HEADS, KV_HEADS, D, LENGTH = 4, 2, 6, 7


def attention_params(seed=0, **settings):
    shapes = jax.eval_shape(lambda: attention.init(jax.random.key(0), 8, HEADS, head_features=D, **settings))
    return jax.tree.map(lambda p: draw(p.size + seed, *p.shape) / 3, shapes)


@pytest.mark.parametrize(("kv_heads", "rotary_base"), [(HEADS, 0.0), (KV_HEADS, 100.0), (1, 100.0)])
def test_cached_is_the_full_forward(kv_heads, rotary_base):
    """Tokens one at a time in a jitted scan, and in pieces of 3, 1 and 3, against all at once."""
    params, x = attention_params(kv_heads=kv_heads), draw(1, 2, LENGTH, 8)
    settings = {"heads": HEADS, "causal": True, "rotary_base": rotary_base}
    full = np.asarray(attend(params, x, **settings))
    empty = attention.init_cache(2, LENGTH + 2, kv_heads, D)

    @jax.jit
    def one_at_a_time(params, x, cache):
        def step(cache, token):
            y, cache = attend(params, token[:, None], cache=cache, **settings)
            return cache, y[:, 0]

        cache, y = jax.lax.scan(step, cache, jnp.swapaxes(x, 0, 1))
        return jnp.swapaxes(y, 0, 1), cache

    y, cache = one_at_a_time(params, x, empty)
    close(y, full, 1e-12)
    assert cache["length"] == LENGTH
    assert not np.asarray(cache["key"])[:, LENGTH:].any()

    cache, pieces = empty, []
    for piece in np.split(x, (3, 4), 1):
        y, cache = attend(params, piece, cache=cache, **settings)
        pieces.append(y)
    close(np.concatenate(pieces, 1), full, 1e-12)


def test_a_cache_with_padding_in_front():
    """A prompt padded on the left, its slots masked and its positions shifted, gives what the prompt alone gives."""
    params, x = attention_params(kv_heads=1), draw(1, 1, 5, 8)
    settings = {"heads": HEADS, "causal": True, "rotary_base": 100.0}
    padded = np.concatenate([np.full((1, 2, 8), 9.0), x], 1)
    mask = attention.padding_mask(np.arange(8)[None] >= 2)
    cache = attention.init_cache(1, 8, 1, D)
    first, cache = attend(params, padded[:, :4], cache=cache, mask=mask, positions=jnp.array([0, 0, 0, 1]), **settings)
    then, cache = attend(params, padded[:, 4:], cache=cache, mask=mask, positions=jnp.array([[2, 3, 4]]), **settings)
    close(np.concatenate([first, then], 1)[:, 2:], attend(params, x, **settings), 1e-12)


def test_past_the_end_of_a_cache_is_nan():
    """Inside a program nothing can be raised, so what would be wrong is nan."""
    params, x = attention_params(), draw(1, 1, 4, 8)
    cache = attention.init_cache(1, 5, HEADS, D)
    y, cache = attend(params, x, heads=HEADS, causal=True, cache=cache)
    assert np.isfinite(y).all()
    y, cache = attend(params, x[:, :1], heads=HEADS, causal=True, cache=cache)
    assert np.isfinite(y).all()
    y, cache = attend(params, x[:, :1], heads=HEADS, causal=True, cache=cache)
    assert np.isnan(y).all()
    with pytest.raises(ValueError, match="6 tokens do not fit into a cache of 5"):
        attend(params, draw(1, 1, 6, 8), heads=HEADS, cache=attention.init_cache(1, 5, HEADS, D))


def test_without_causality_a_piece_sees_itself_and_the_cache():
    """The last piece of a cache without causal sees all tokens, as the full forward's last rows do."""
    params, x = attention_params(), draw(1, 2, LENGTH, 8)
    _, cache = attend(params, x[:, :4], heads=HEADS, cache=attention.init_cache(2, LENGTH + 1, HEADS, D))
    y, _ = attend(params, x[:, 4:], heads=HEADS, cache=cache)
    close(y, np.asarray(attend(params, x, heads=HEADS))[:, 4:], 1e-12)


@pytest.mark.parametrize("form", ["dot_product", "low_precision"])
def test_a_query_that_sees_nothing_gets_zeros(form):
    """Value and gradients are zero, not nan, for that query; the others are as if it were not there."""
    dtype = jnp.float64 if form == "dot_product" else jnp.bfloat16
    look = partial(getattr(attention, form), causal=True)
    q, k, v = (draw(i, 2, 3, n, 4).astype(dtype) for i, n in enumerate((4, 2, 2)))

    @jax.jit
    def looked(q, k, v, mask=None):
        def loss(q, k, v):
            y = look(q, k, v, mask=mask)
            return jnp.sin(y.astype(float)).sum(), y

        (_, y), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(q, k, v)
        return jax.tree.map(lambda x: x.astype(float), (y, gradients))

    mask = np.ones((2, 1, 3, 3), bool)
    mask[1, :, 0] = False
    y, gradients = jax.tree.map(np.asarray, looked(q, k, v, mask))
    assert not y[1, 0].any()
    assert y[1, 1].any()
    assert all(np.isfinite(g).all() for g in gradients)
    assert not gradients[0][1, 0].any()
    everyone, _ = jax.tree.map(np.asarray, looked(q, k, v))
    close(y[0], everyone[0])
    close(y[1, 1:], everyone[1, 1:])
    blind = jax.tree.map(np.asarray, looked(q, k, v, np.zeros((1, 1, 1, 1), bool)))
    assert not any(x.any() for x in jax.tree.leaves(blind))


def test_masks_made_three_ways_agree():
    """Lengths, a mask of keys, and a full mask with causality in it; and causal by itself."""
    params, x = attention_params(kv_heads=KV_HEADS), draw(1, 2, 5, 8)
    keys = np.arange(5) < np.array([[3], [5]])
    by_lengths = attend(params, x, heads=HEADS, causal=True, mask=attention.padding_mask(jnp.array([3, 5]), 5))
    by_keys = attend(params, x, heads=HEADS, causal=True, mask=attention.padding_mask(jnp.asarray(keys)))
    square = jnp.asarray(keys[:, None, None] & np.tri(5, dtype=bool))
    by_square = attend(params, x, heads=HEADS, mask=jnp.broadcast_to(square, (2, HEADS, 5, 5)))
    assert same(by_lengths, by_keys)
    close(by_square, by_keys, 1e-14)
    close(np.asarray(attend(params, x, heads=HEADS, causal=True))[1], np.asarray(by_keys)[1], 1e-14)


def test_bfloat16_takes_the_fast_form():
    """Chosen for bfloat16, near float64 in both forms; no other dtype takes it; dropout turns it off."""
    params, x = attention_params(kv_heads=KV_HEADS), draw(1, 2, 5, 8)
    settings = {"heads": HEADS, "causal": True, "mask": np.arange(5) < np.array([3, 5])[:, None, None, None]}
    exact = attend(params, x, **settings)
    low = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    slow, fast, chosen = (attend(low, x, fast=fast, **settings) for fast in (False, True, None))
    assert same(chosen, fast)
    assert fast.dtype == slow.dtype == jnp.bfloat16
    for y in (slow, fast):
        close(np.asarray(y).astype(float), exact, 4 * jnp.finfo(jnp.bfloat16).eps)
    half = attend(jax.tree.map(lambda p: p.astype(jnp.float16), params), x, **settings)
    close(np.asarray(half).astype(float), exact, 4 * jnp.finfo(jnp.float16).eps)
    assert same(exact, attend(params, x, fast=False, **settings))
    assert not same(exact, attend(params, x, fast=True, **settings))
    dropped = {"dropout": 0.5, "key": jax.random.key(0), "train": True}
    assert np.isfinite(np.asarray(attend(low, x, **dropped, **settings)).astype(float)).all()
    with pytest.raises(ValueError, match="fast attention cannot drop weights"):
        attend(low, x, fast=True, **dropped, **settings)


def test_attention_dropout():
    """The weights that stay are divided by the share kept; off in evaluation; a traced rate works."""
    q, k, v = jnp.zeros((1, 1, 1, 2)), jnp.zeros((1, 2000, 1, 2)), jnp.ones((1, 2000, 1, 2))
    y = jax.jit(lambda rate: attention.dot_product(q, k, v, dropout=rate, key=jax.random.key(0)))(0.25)
    assert abs(y[0, 0, 0, 0] - 1) < 0.05
    assert y[0, 0, 0, 0] != 1
    share = y[0, 0, 0, 0] * 2000 * 0.75  # a count of those kept
    assert abs(share - round(float(share))) < 1e-9
    params, x = attention_params(), draw(1, 2, 3, 8)
    plain = attend(params, x, heads=HEADS)
    assert (attend(params, x, heads=HEADS, dropout=0.5, key=jax.random.key(0)) == plain).all()
    close(run(attention.apply, params, x, heads=HEADS, dropout=0, train=True), plain)
    with pytest.raises(ValueError, match="needs a key"):
        attend(params, x, heads=HEADS, dropout=0.5, train=True)


def test_mistakes_in_attention():
    """Each is told in one line."""
    params, x = attention_params(), draw(1, 2, 3, 8)
    key = jax.random.key(0)
    for message, call in {
        "heads 3 must divide features 8": lambda: attention.init(key, 8, 3),
        "kv_heads 3 must divide heads 4": lambda: attention.init(key, 8, 4, kv_heads=3),
        "heads 5 must divide the query kernel's 24 columns": lambda: attend(params, x, heads=5),
        "must be boolean": lambda: attend(params, x, heads=4, mask=jnp.zeros((3, 3))),
        "without a context": lambda: attend(params, x, x, heads=4, rotary_base=10.0),
        "must be .batch, keys.": lambda: attention.padding_mask(jnp.ones(3)),
        "the 3 heads of keys": lambda: attention.dot_product(*(jnp.zeros((1, 1, n, 2)) for n in (4, 3, 3))),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


# -- dtypes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_the_parameters_dtype_is_the_computing_dtype(dtype):
    """Each layer with weights casts its input to them."""
    x, key = draw(0, 2, 5, 4), jax.random.key(0)

    def layers():
        kernel = conv.init(key, 4, 6, kernel=(3,), dtype=dtype)
        table = embedding.init(key, 7, 4, dtype=dtype)
        heads = attention.init(key, 4, 2, dtype=dtype)
        return (
            conv.apply(kernel, x),
            conv.transpose(kernel, x, stride=2),
            embedding.apply(table, jnp.array([1])),
            embedding.attend(table, x),
            attention.apply(heads, x, heads=2, rotary_base=100.0, cache=attention.init_cache(2, 5, 2, 2, dtype)),
        )

    assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(layers))} == {jnp.dtype(dtype), jnp.dtype("int32")}
