"""The layers beyond the first few are the same mathematics as PyTorch's: float64, values and every gradient.

Torch's side is written in torch's own words: channels first, weights [out, in, ...], one packed projection in
attention. Both sides share numbers drawn by numpy. See tests/test_oracle.py for the rest.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import agree, draw

from functrain.layers import attention, batch_norm, conv, embedding, group_norm, pool, rms_norm

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'functrain[oracle]'")
F = torch.nn.functional
torch.set_num_threads(1)  # on arrays this small, threads only wait for one another

pytestmark = [pytest.mark.oracle, pytest.mark.usefixtures("float64")]

FUNCTION = 1e-13
"""One forward or backward pass, relative to the largest magnitude in the array compared."""


# -- helpers --------------------------------------------------------------------------------------


def tensor(x, grad=True):
    """A torch tensor of its own memory."""
    return torch.tensor(np.asarray(x), requires_grad=grad)


def first(x):
    """Channels from last to first after the batch: [b, *space, c] -> [b, c, *space]."""
    return np.moveaxis(np.asarray(x), -1, 1)


def last(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)


def pulled(f, cotangent, *arguments):
    """The value of f, and the gradients of sum(value * cotangent) by every argument; one program, compiled once."""

    # Less work for LLVM: a third of the time of this file, and the same program before that.
    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def both(cotangent, *arguments):
        value, pull = jax.vjp(f, *arguments)
        return value, pull(cotangent)

    return both(*jax.tree.map(jnp.asarray, (cotangent, *arguments)))


# -- convolution ----------------------------------------------------------------------------------


def kernel_to_torch(kernel):
    """[*kernel, in / groups, out] -> [out, in / groups, *kernel]."""
    return np.moveaxis(kernel, (-1, -2), (0, 1))


def kernel_to_torch_transposed(kernel, groups):
    """[*kernel, in / groups, out] -> [in, out / groups, *kernel]: each group's block turned by itself."""
    blocks = [np.moveaxis(block, (-2, -1), (0, 1)) for block in np.split(kernel, groups, -1)]
    return np.concatenate(blocks)


CONVOLUTIONS = {
    # space, in, out, kernel, torch's settings
    "plain": ((7, 5), 3, 4, (3, 2), {}),
    "stride": ((8, 5), 3, 4, (3, 2), {"stride": (2, 3), "padding": (1, 0)}),
    "dilation": ((9, 8), 2, 3, (3, 2), {"dilation": (2, 3), "padding": 2}),
    "groups": ((6, 5), 4, 6, (3, 3), {"groups": 2, "padding": 1, "stride": 2}),
    "depthwise": ((5, 6), 3, 6, (3, 3), {"groups": 3, "padding": 1}),
    "same": ((6, 7), 2, 3, (3, 4), {"padding": "same"}),
    "same dilated": ((6, 7), 2, 3, (3, 2), {"padding": "same", "dilation": (1, 3)}),
    "valid": ((6, 7), 2, 3, (3, 4), {"padding": "valid", "stride": 2}),
    "one pixel": ((1, 1), 1, 1, (1, 1), {}),
    "one channel": ((1, 5), 1, 2, (1, 3), {"padding": (0, 1)}),
    "no bias": ((4, 5), 2, 3, (2, 2), {"bias": False}),
    "1d": ((9,), 3, 4, (4,), {"stride": 3, "padding": 2}),
    "1d groups dilation": ((11,), 4, 2, (3,), {"groups": 2, "dilation": 4, "padding": 3}),
    "1d same": ((6,), 2, 3, (4,), {"padding": "same"}),
    "3d": ((4, 3, 5), 2, 3, (2, 3, 2), {"padding": (1, 0, 1), "stride": (1, 1, 2)}),
}


def compare_convolutions(ours, theirs, x, params, to_torch, cotangent_seed=9):
    """Value, and gradients by input, kernel and bias; ours(params, x) with theirs(x, weight, bias)."""
    torch_x, weight = tensor(first(x)), tensor(to_torch(params["kernel"]))
    bias = tensor(params["bias"]) if "bias" in params else None
    torch_y = theirs(torch_x, weight, bias)
    cotangent = draw(cotangent_seed, *last(torch_y).shape)
    torch_y.backward(tensor(first(cotangent), grad=False))

    y, (by_params, by_x) = pulled(ours, cotangent, params, x)
    agree(y, last(torch_y))
    agree(by_x, last(torch_x.grad))
    agree(to_torch(np.asarray(by_params["kernel"])), weight.grad)
    if bias is not None:
        agree(by_params["bias"], bias.grad)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(name):
    """conv.apply with F.conv1d to F.conv3d."""
    space, inputs, outputs, kernel, settings = CONVOLUTIONS[name]
    settings = {"padding": 0} | settings
    bias = settings.pop("bias", True)
    groups = settings.get("groups", 1)
    params = {"kernel": draw(1, *kernel, inputs // groups, outputs)} | ({"bias": draw(2, outputs)} if bias else {})
    theirs = (F.conv1d, F.conv2d, F.conv3d)[len(space) - 1]
    compare_convolutions(
        lambda params, x: conv.apply(params, x, **settings),
        lambda x, weight, bias: theirs(x, weight, bias, **settings),
        draw(0, 2, *space, inputs),
        params,
        kernel_to_torch,
    )


def test_causal_convolution():
    """Causal is F.conv1d on an input padded at its start."""
    params = {"kernel": draw(1, 3, 2, 4), "bias": draw(2, 4)}
    compare_convolutions(
        lambda params, x: conv.apply(params, x, padding="causal", dilation=2, stride=2),
        lambda x, weight, bias: F.conv1d(F.pad(x, (4, 0)), weight, bias, dilation=2, stride=2),
        draw(0, 2, 7, 2),
        params,
        kernel_to_torch,
    )


TRANSPOSED = {
    "plain": ((4, 3), 2, 3, (3, 2), {}),
    "stride": ((4, 3), 2, 3, (4, 4), {"stride": 2, "padding": 1}),
    "output padding": ((4, 3), 2, 3, (3, 3), {"stride": (2, 3), "padding": 1, "output_padding": (1, 2)}),
    "wide stride": ((4, 3), 2, 3, (2, 1), {"stride": (3, 4), "output_padding": (2, 3)}),
    "one stride": ((4, 3), 2, 3, (3, 3), {"stride": (1, 2), "padding": (2, 0), "output_padding": (0, 1)}),
    "groups": ((3, 4), 4, 6, (3, 2), {"stride": 2, "groups": 2, "padding": (1, 0)}),
    "depthwise": ((3, 4), 3, 6, (3, 2), {"stride": 2, "groups": 3}),
    "groups, no stride": ((3, 4), 4, 6, (3, 2), {"groups": 2, "padding": 1}),
    "dilation": ((4, 5), 2, 3, (3, 2), {"dilation": (2, 3), "padding": 1}),
    "dilation stride": ((4, 5), 4, 2, (3, 2), {"dilation": 2, "stride": 3, "output_padding": 2, "groups": 2}),
    "dilation, much padding": ((6, 5), 2, 2, (2, 2), {"dilation": 2, "stride": 2, "padding": 3, "output_padding": 1}),
    "much padding": ((6, 5), 2, 2, (2, 2), {"stride": 2, "padding": 3, "output_padding": 1}),
    "one pixel": ((1, 1), 1, 1, (3, 3), {"stride": 2}),
    "no bias": ((3, 2), 2, 3, (3, 3), {"stride": 2, "bias": False}),
    "1d": ((5,), 3, 2, (5,), {"stride": 3, "padding": 2, "output_padding": 1}),
    "1d groups dilation": ((5,), 4, 2, (3,), {"stride": 2, "dilation": 3, "groups": 2, "padding": 1}),
}


@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_convolution(name):
    """conv.transpose with F.conv_transpose1d and F.conv_transpose2d."""
    space, inputs, outputs, kernel, settings = TRANSPOSED[name]
    settings = dict(settings)
    bias = settings.pop("bias", True)
    groups = settings.get("groups", 1)
    params = {"kernel": draw(1, *kernel, inputs // groups, outputs)} | ({"bias": draw(2, outputs)} if bias else {})
    theirs = (F.conv_transpose1d, F.conv_transpose2d)[len(space) - 1]
    compare_convolutions(
        lambda params, x: conv.transpose(params, x, **settings),
        lambda x, weight, bias: theirs(x, weight, bias, **settings),
        draw(0, 2, *space, inputs),
        params,
        lambda kernel: kernel_to_torch_transposed(kernel, groups),
    )


# -- pooling --------------------------------------------------------------------------------------

WINDOWS = {
    "square": ((6, 6), 2, {}),
    "odd": ((7, 5), (3, 2), {}),
    "stride": ((7, 8), 3, {"stride": (2, 1), "padding": 1}),
    "gaps": ((9, 8), 2, {"stride": 3, "padding": (1, 0)}),
    "whole": ((3, 2), (3, 2), {}),
    "1d": ((9,), 3, {"stride": 2, "padding": 1}),
}


def compare_pooling(ours, theirs, x):
    torch_x = tensor(first(x))
    torch_y = theirs(torch_x)
    cotangent = draw(9, *last(torch_y).shape)
    torch_y.backward(tensor(first(cotangent), grad=False))
    y, (by_x,) = pulled(ours, cotangent, x)
    agree(y, last(torch_y))
    agree(by_x, last(torch_x.grad))


@pytest.mark.parametrize("name", WINDOWS)
def test_max_pooling(name):
    """pool.max with F.max_pool: of equal largest values (rounding makes many), the same one takes the gradient."""
    space, window, settings = WINDOWS[name]
    x = np.round(draw(0, 2, *space, 3))
    theirs = (F.max_pool1d, F.max_pool2d)[len(space) - 1]
    compare_pooling(lambda x: pool.max(x, window, **settings), lambda x: theirs(x, window, **settings), x)


@pytest.mark.parametrize("count_padding", [True, False])
@pytest.mark.parametrize("name", WINDOWS)
def test_average_pooling(name, count_padding):
    """pool.average with F.avg_pool, padding counted or not."""
    space, window, settings = WINDOWS[name]
    theirs = (F.avg_pool1d, F.avg_pool2d)[len(space) - 1]
    compare_pooling(
        lambda x: pool.average(x, window, count_padding=count_padding, **settings),
        lambda x: theirs(x, window, count_include_pad=count_padding, **settings),
        draw(0, 2, *space, 3),
    )


ADAPTIVE = {
    "divides": ((6, 4), (3, 2)),
    "odd": ((7, 5), (3, 2)),
    "one axis divides": ((6, 5), (3, 3)),
    "overlap": ((5, 7), (4, 5)),
    "larger": ((3, 2), (5, 4)),
    "one": ((5, 3), (1, 1)),
    "1d": ((10,), (4,)),
}


@pytest.mark.parametrize("kind", ["average", "max"])
@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_pooling(name, kind):
    """pool.adaptive_average and adaptive_max with F.adaptive_avg_pool and adaptive_max_pool."""
    space, size = ADAPTIVE[name]
    x = draw(0, 2, *space, 3)
    if kind == "average":
        theirs, ours = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d)[len(space) - 1], pool.adaptive_average
    else:
        theirs, ours = (F.adaptive_max_pool1d, F.adaptive_max_pool2d)[len(space) - 1], pool.adaptive_max
        x = np.round(x)  # many windows have several largest values
    compare_pooling(lambda x: ours(x, size), lambda x: theirs(x, size), x)


def test_global_pooling():
    """pool.global_average and global_max with torch's mean, and its adaptive pooling to one place."""
    x = draw(0, 2, 5, 3, 4)
    compare_pooling(pool.global_average, lambda x: x.mean((2, 3)), x)
    compare_pooling(pool.global_max, lambda x: F.adaptive_max_pool2d(x, 1)[:, :, 0, 0], np.round(x))


# -- norms ----------------------------------------------------------------------------------------


def compare_norms(ours, theirs, x, params, channels_first=True):
    """ours(params, x) with theirs(x, *params in the order given): value, gradients by input and parameters."""
    torch_x = tensor(first(x) if channels_first else x)
    torch_params = {name: tensor(p) for name, p in params.items()}
    torch_y = theirs(torch_x, *torch_params.values())
    cotangent = draw(9, *x.shape)
    torch_y.backward(tensor(first(cotangent) if channels_first else cotangent, grad=False))
    y, (by_params, by_x) = pulled(ours, cotangent, params, x)
    agree(y, last(torch_y) if channels_first else torch_y)
    agree(by_x, last(torch_x.grad) if channels_first else torch_x.grad)
    for name, p in torch_params.items():
        agree(by_params[name], p.grad)


def affine(features):
    return {"scale": draw(2, features), "bias": draw(3, features)}


@pytest.mark.parametrize(("features", "epsilon"), [(7, 1e-6), (1, 1e-2)])
def test_rms_norm(features, epsilon):
    """rms_norm.apply with F.rms_norm; of one feature, a small epsilon would leave a gradient of rounding alone."""
    compare_norms(
        lambda params, x: rms_norm.apply(params, x, epsilon=epsilon),
        lambda x, scale: F.rms_norm(x, (features,), scale, eps=epsilon),
        3 * draw(0, 2, 3, features) + 1,
        {"scale": draw(1, features)},
        channels_first=False,
    )


@pytest.mark.parametrize(("space", "groups"), [((5, 3), 2), ((7,), 6), ((), 2), ((1, 4), 1)], ids=str)
def test_group_norm(space, groups):
    """group_norm.apply with F.group_norm."""
    compare_norms(
        lambda params, x: group_norm.apply(params, x, groups),
        lambda x, scale, bias: F.group_norm(x, groups, scale, bias),
        3 * draw(0, 2, *space, 6) + 1,
        affine(6),
    )


@pytest.mark.parametrize("params", [{}, affine(3)], ids=["plain", "affine"])
@pytest.mark.parametrize("space", [(5, 3), (4,)], ids=str)
def test_instance_norm(space, params):
    """group_norm.instance with F.instance_norm."""
    compare_norms(
        group_norm.instance,
        lambda x, scale=None, bias=None: F.instance_norm(x, weight=scale, bias=bias, eps=1e-5),
        3 * draw(0, 2, *space, 3) + 1,
        params,
    )


@pytest.mark.parametrize("space", [(4, 3), (5,), ()], ids=str)
def test_batch_norm(space):
    """batch_norm.apply with torch.nn.BatchNorm: five training steps, the running statistics, then evaluation."""
    theirs = (torch.nn.BatchNorm1d, torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)[len(space)](3, dtype=torch.float64)
    params = affine(3)
    with torch.no_grad():
        theirs.weight.copy_(tensor(params["scale"]))
        theirs.bias.copy_(tensor(params["bias"]))
    _, state = batch_norm.init(None, 3)
    assert state["mean"].dtype == jnp.float64

    @partial(jax.jit, static_argnames="train")
    def ours(params, state, x, cotangent, train):
        y, pull, new = jax.vjp(lambda p, x: batch_norm.apply(p, state, x, train=train), params, x, has_aux=True)
        return y, pull(cotangent), new

    for step in range(6):
        train = step < 5
        theirs.train(train)
        x, cotangent = (2 + step) * draw(step, 4, *space, 3) + step, draw(50 + step, 4, *space, 3)
        torch_x = tensor(first(x))
        theirs.zero_grad()
        torch_y = theirs(torch_x)
        torch_y.backward(tensor(first(cotangent), grad=False))

        y, (by_params, by_x), state = ours(params, state, x, cotangent, train)
        agree(y, last(torch_y))
        agree(by_x, last(torch_x.grad))
        agree(by_params["scale"], theirs.weight.grad)
        agree(by_params["bias"], theirs.bias.grad)
        agree(state["mean"], theirs.running_mean)
        agree(state["var"], theirs.running_var)


def test_batch_norm_with_a_mask_is_torch_on_the_rows_that_count():
    """The counted places, gathered into a batch by themselves: values, statistics, and gradients through both."""
    x, cotangent, mask = 2 * draw(0, 3, 5, 4) + 1, draw(1, 3, 5, 4), draw(2, 3, 5) > -0.3
    params, state = affine(4), batch_norm.init(None, 4)[1]
    theirs = torch.nn.BatchNorm1d(4, momentum=0.3, eps=1e-3, dtype=torch.float64)
    with torch.no_grad():
        theirs.weight.copy_(tensor(params["scale"]))
        theirs.bias.copy_(tensor(params["bias"]))
    torch_x = tensor(x)
    torch_y = theirs(torch_x[torch.tensor(mask)])
    torch_y.backward(tensor(cotangent[mask], grad=False))

    def ours(params, x):
        y, new = batch_norm.apply(params, state, x, train=True, decay=0.7, epsilon=1e-3, mask=jnp.asarray(mask))
        return {"y": y[mask], "new": new}

    still = jax.tree.map(np.zeros_like, state)  # no gradient is asked of the statistics
    value, (by_params, by_x) = pulled(ours, {"y": cotangent[mask], "new": still}, params, x)
    y, new = value["y"], value["new"]
    agree(y, torch_y)
    agree(by_x, torch_x.grad)
    agree(by_params["scale"], theirs.weight.grad)
    agree(new["mean"], theirs.running_mean)
    agree(new["var"], theirs.running_var)


# -- embedding ------------------------------------------------------------------------------------


def test_embedding():
    """embedding.apply with F.embedding, and attend with F.linear by the same table."""
    ids, table = np.random.default_rng(0).integers(0, 7, (3, 4)), draw(1, 7, 5)

    def ours(params):
        x = embedding.apply(params, jnp.asarray(ids))
        return jnp.concatenate([x, embedding.attend(params, jnp.sin(x))], -1)

    torch_table = tensor(table)
    torch_x = F.embedding(torch.tensor(ids), torch_table)
    torch_y = torch.cat([torch_x, F.linear(torch.sin(torch_x), torch_table)], -1)
    cotangent = draw(2, 3, 4, 12)
    torch_y.backward(tensor(cotangent, grad=False))
    y, (by_params,) = pulled(ours, cotangent, {"table": table})
    agree(y, torch_y)
    agree(by_params["table"], torch_table.grad)


# -- attention ------------------------------------------------------------------------------------

DOT_PRODUCTS = {
    # heads, kv heads, queries, keys, mask shape, causal, scale
    "plain": (2, 2, 3, 5, None, False, None),
    "one token": (1, 1, 1, 1, None, False, None),
    "causal": (2, 2, 5, 5, None, True, None),
    "causal, fewer queries": (2, 2, 3, 5, None, True, 0.3),
    "grouped": (6, 2, 3, 5, None, False, None),
    "one key head, causal": (3, 1, 4, 4, None, True, None),
    "mask": (2, 2, 3, 5, (2, 2, 3, 5), False, None),
    "mask by head, grouped": (6, 2, 3, 5, (1, 6, 3, 5), False, None),
    "mask by key, grouped": (4, 2, 3, 5, (2, 1, 1, 5), False, 1.5),
}


@pytest.mark.parametrize("name", DOT_PRODUCTS)
def test_dot_product(name):
    """attention.dot_product with F.scaled_dot_product_attention, grouped queries by enable_gqa."""
    heads, kv_heads, queries, keys, mask, causal, scale = DOT_PRODUCTS[name]
    q, k = 2 * draw(0, 2, queries, heads, 4), 2 * draw(1, 2, keys, kv_heads, 4)
    v, cotangent = draw(2, 2, keys, kv_heads, 4), draw(3, 2, queries, heads, 4)
    if mask is not None:
        mask = draw(4, *mask) > -0.5
        mask[..., 0] = True
    y, gradients = pulled(
        lambda q, k, v: attention.dot_product(
            q, k, v, mask=None if mask is None else jnp.asarray(mask), causal=causal, scale=scale
        ),
        cotangent,
        *(q, k, v),
    )
    theirs = [tensor(x.swapaxes(1, 2)) for x in (q, k, v)]
    torch_mask = None if mask is None else torch.tensor(mask)
    torch_y = F.scaled_dot_product_attention(
        *theirs, attn_mask=torch_mask, is_causal=causal, scale=scale, enable_gqa=heads != kv_heads
    )
    torch_y.backward(tensor(cotangent.swapaxes(1, 2), grad=False))
    agree(y, torch_y.transpose(1, 2))
    for ours, x in zip(gradients, theirs):
        agree(ours, x.grad.transpose(1, 2))


ATTENTIONS = {
    # queries, keys (0: self), context features, padding, causal, bias
    "self": (5, 0, 6, False, False, True),
    "self without bias": (5, 0, 6, False, False, False),
    "causal with padding": (5, 0, 6, True, True, True),
    "cross": (3, 5, 6, False, False, True),
    "cross of other features, padding": (3, 5, 4, True, False, True),
    "one token": (1, 0, 6, False, True, True),
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention(name):
    """attention.apply with torch.nn.MultiheadAttention: value, gradients by inputs and all parameters."""
    queries, keys, features, padded, causal, bias = ATTENTIONS[name]
    heads, batch = 3, 2
    shapes = jax.eval_shape(lambda: attention.init(jax.random.key(0), 6, heads, context_features=features, bias=bias))
    params = jax.tree.map(lambda p: draw(p.size, *p.shape) / 2, shapes)
    x, context = draw(0, batch, queries, 6), draw(1, batch, keys, features) if keys else None
    cotangent = draw(2, batch, queries, 6)
    total = keys or queries
    there = np.arange(total) < np.array([[total - 1], [total]]) if padded else np.ones((batch, total), bool)

    y, (by_params, by_x, by_context) = pulled(
        lambda params, x, context: attention.apply(
            params, x, context, heads=heads, causal=causal, mask=attention.padding_mask(there)
        ),
        cotangent,
        *(params, x, context),
    )

    theirs = torch.nn.MultiheadAttention(
        6, heads, bias=bias, kdim=features, vdim=features, batch_first=True, dtype=torch.float64
    )
    parts = ("query", "key", "value")
    with torch.no_grad():
        kernels = [tensor(params[part]["kernel"].T) for part in parts]
        if features == 6:
            theirs.in_proj_weight.copy_(torch.cat(kernels))
        else:
            for part, kernel in zip("qkv", kernels):
                getattr(theirs, f"{part}_proj_weight").copy_(kernel)
        theirs.out_proj.weight.copy_(tensor(params["out"]["kernel"].T))
        if bias:
            theirs.in_proj_bias.copy_(torch.cat([tensor(params[part]["bias"]) for part in parts]))
            theirs.out_proj.bias.copy_(tensor(params["out"]["bias"]))
    torch_x = tensor(x)
    torch_context = torch_x if context is None else tensor(context)
    torch_y, _ = theirs(
        torch_x,
        torch_context,
        torch_context,
        key_padding_mask=torch.tensor(~there),
        attn_mask=torch.triu(torch.ones(total, total, dtype=torch.bool), 1) if causal else None,
        need_weights=False,
    )
    torch_y.backward(tensor(cotangent, grad=False))

    agree(y, torch_y)
    agree(by_x, torch_x.grad)
    if context is not None:
        agree(by_context, torch_context.grad)
    agree(by_params["out"]["kernel"].T, theirs.out_proj.weight.grad)
    packed = theirs.in_proj_weight if features == 6 else None
    for i, part in enumerate(parts):
        weight = getattr(theirs, f"{'qkv'[i]}_proj_weight").grad if packed is None else packed.grad.chunk(3)[i]
        agree(by_params[part]["kernel"].T, weight)
        if bias and part != "key":
            agree(by_params[part]["bias"], theirs.in_proj_bias.grad.chunk(3)[i])
    if bias:
        # A bias of the keys adds one number to all logits of a query: its gradient is zero but for rounding.
        assert np.abs(by_params["key"]["bias"]).max() < 1e-14
        agree(by_params["out"]["bias"], theirs.out_proj.bias.grad)
