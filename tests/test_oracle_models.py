"""Models are the same mathematics as PyTorch's: logits and gradients in float64 from the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import agree, draw

from functrain import tree
from functrain.models import CNN, GPT, LeNet

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'functrain[oracle]'")
F = torch.nn.functional
torch.set_num_threads(1)

pytestmark = [pytest.mark.oracle, pytest.mark.usefixtures("quick", "float64")]

LOGITS = 1e-12  # relative to the largest magnitude of the array compared
GRADIENTS = 1e-11  # relative to the largest of all gradients


def perturbed(params):
    """Biases and scales too are drawn: at their zeros and ones, mistakes would hide."""
    paths = {path: i for i, path in enumerate(tree.by_path(params))}
    return tree.map_by_path(lambda path, p: p + 0.1 * draw(paths[path], *p.shape), params)


def compare(model, params, state, x, forward, *, turned=lambda path, p: p, train=False):
    """Logits, and gradients of a weighted sum of them by every parameter; `turned` gives torch's layout."""
    weights = None

    def ours(params):
        logits, _ = model.apply(params, state, jnp.asarray(x), train=train)
        return (logits * weights).sum(), logits

    weights = jnp.asarray(draw(99, *jax.eval_shape(lambda: model.apply(params, state, jnp.asarray(x)))[0].shape))
    gradients, logits = jax.grad(ours, has_aux=True)(params)
    arrays = {path: np.asarray(turned(path, p)) for path, p in tree.by_path(params).items()}
    theirs = {path: torch.tensor(array, requires_grad=True) for path, array in arrays.items()}
    torch_logits = forward(theirs, torch.tensor(x))
    (torch_logits * torch.tensor(np.asarray(weights))).sum().backward()
    agree(logits, torch_logits, LOGITS)
    # Some gradients are zero but for rounding (a bias before a batch norm): the largest of all is the measure.
    largest = max(float(p.grad.abs().max()) for p in theirs.values())
    for path, gradient in tree.by_path(gradients).items():
        agree(turned(path, gradient), theirs[path].grad, GRADIENTS, largest)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_gpt(tied, bias):
    """A GPT written with F.layer_norm, F.linear, F.scaled_dot_product_attention and F.gelu."""
    model = GPT(inputs=(11,), outputs=13, layers=3, heads=2, width=10, tied=tied, bias=bias)
    params, state = model.init(jax.random.key(0))
    params = perturbed(params)
    tokens = np.random.default_rng(1).integers(0, 13, (3, 9))

    def forward(p, tokens):
        def affine(name, x):
            return F.linear(x, p[f"{name}/kernel"].T, p.get(f"{name}/bias"))

        def norm(name, x):
            return F.layer_norm(x, (10,), p[f"{name}/scale"], p.get(f"{name}/bias"))

        h = p["tokens/table"][tokens] + p["positions/table"][:9]
        for i in range(3):
            at = f"block{i}"
            q, k, v = affine(f"{at}/attention/qkv", norm(f"{at}/norm1", h)).split(10, -1)
            q, k, v = (t.view(3, 9, 2, 5).transpose(1, 2) for t in (q, k, v))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(3, 9, 10)
            h = h + affine(f"{at}/attention/out", y)
            up = F.gelu(affine(f"{at}/feed_forward/up", norm(f"{at}/norm2", h)))
            h = h + affine(f"{at}/feed_forward/down", up)
        h = norm("norm", h)
        return h @ p["tokens/table"].T if tied else affine("head", h)

    compare(model, params, state, tokens, forward)


def _channels_first(path, p):
    """Our convolution kernels [h, w, in, out] as torch's [out, in, h, w]; linear ones as they are."""
    return np.transpose(p, (3, 2, 0, 1)) if path.startswith("conv") and path.endswith("kernel") else p


@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize("shape", [(28, 28), (32, 36, 3)], ids=str)
def test_lenet(shape, pooling):
    """LeNet-5 written with F.conv2d; the flattened maps are turned to our order, channels last."""
    model = LeNet(inputs=shape, outputs=10, pooling=pooling, activation="tanh")
    params, state = model.init(jax.random.key(0))
    x = draw(1, 3, *shape)
    shrink = F.max_pool2d if pooling == "max" else F.avg_pool2d

    def forward(p, x):
        x = x.reshape(*x.shape[:3], -1).permute(0, 3, 1, 2)
        x = shrink(torch.tanh(F.conv2d(x, p["conv0/kernel"], p["conv0/bias"], padding=2 if shape[0] < 32 else 0)), 2)
        x = shrink(torch.tanh(F.conv2d(x, p["conv1/kernel"], p["conv1/bias"])), 2)
        x = x.permute(0, 2, 3, 1).flatten(1)
        for i in range(3):
            x = F.linear(x, p[f"linear{i}/kernel"].T, p[f"linear{i}/bias"])
            x = torch.tanh(x) if i < 2 else x
        return x

    compare(model, perturbed(params), state, x, forward, turned=_channels_first)


@pytest.mark.parametrize("train", [True, False])
def test_cnn(train):
    """The small CNN with batch norm, in training and in evaluation mode."""
    model = CNN(inputs=(9, 11, 2), outputs=4, channels=(3, 5), hidden=(7,), norm="batch")
    params, state = model.init(jax.random.key(0))
    state = {
        name: {"mean": draw(i, *old["mean"].shape), "var": 1 + draw(9 + i, *old["var"].shape) ** 2}
        for i, (name, old) in enumerate(state.items())
    }
    x = draw(1, 3, 9, 11, 2)

    def forward(p, x):
        x = x.permute(0, 3, 1, 2)
        for i in range(2):
            x = F.conv2d(x, p[f"conv{i}/kernel"], p[f"conv{i}/bias"], padding=1)
            mean, var = (torch.tensor(np.asarray(state[f"norm{i}"][k])) for k in ("mean", "var"))
            x = F.batch_norm(x, mean, var, p[f"norm{i}/scale"], p[f"norm{i}/bias"], training=train)
            x = F.max_pool2d(F.relu(x), 2)
        x = x.permute(0, 2, 3, 1).flatten(1)
        x = F.relu(F.linear(x, p["linear0/kernel"].T, p["linear0/bias"]))
        return F.linear(x, p["linear1/kernel"].T, p["linear1/bias"])

    compare(model, perturbed(params), state, x, forward, turned=_channels_first, train=train)
