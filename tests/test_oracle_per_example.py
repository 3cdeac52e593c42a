"""Gradients per example and the clipped mean are the same mathematics as PyTorch's, by torch.func.vmap(grad)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import agree, draw

from functrain import tree
from functrain.autodiff import per_example
from functrain.autodiff.private import DPSGD
from functrain.models import CNN, MLP
from functrain.optim import objective
from functrain.tasks import Classification

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'functrain[oracle]'")
F = torch.nn.functional
torch.set_num_threads(1)

pytestmark = [pytest.mark.oracle, pytest.mark.usefixtures("float64", "quick")]

N, CLASSES = 9, 4
TOLERANCE = 1e-10


def perceptron(p, x):
    """Torch's logits of the MLP, of one example [6]."""
    x = F.relu(F.linear(x, p["layer0/kernel"], p["layer0/bias"]))
    return F.linear(x, p["layer1/kernel"], p["layer1/bias"])


def convolutional(p, x):
    """Torch's logits of the convolutional network, of one example [height, width, channels]."""
    x = F.relu(F.conv2d(x.permute(2, 0, 1)[None], p["conv0/kernel"], p["conv0/bias"], padding=1))
    x = F.max_pool2d(x, 2).permute(0, 2, 3, 1).flatten(1)
    return F.linear(x, p["linear0/kernel"], p["linear0/bias"])[0]


MODELS = {
    "mlp": (MLP(inputs=(6,), outputs=CLASSES, hidden=(5,)), perceptron),
    "cnn": (CNN(inputs=(8, 6, 2), outputs=CLASSES, channels=(3,), hidden=()), convolutional),
}


def to_torch(x, lead=0):
    """Our layout as torch's, behind `lead` axes that stay: convolutions [out, in, h, w], linear kernels [out, in]."""
    axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[x.ndim - lead]
    return np.ascontiguousarray(np.transpose(x, (*range(lead), *(lead + a for a in axes))))


@pytest.fixture(params=MODELS)
def both(request):
    """(our loss, params, batch) and torch's (loss of one example, params, batch) of the same numbers."""
    model, theirs = MODELS[request.param]
    shapes = jax.eval_shape(model.init, jax.random.key(0))[0]
    params = tree.map_by_path(lambda path, s: jnp.asarray(draw(len(path), *s.shape) * 0.5), shapes)
    batch = {"x": jnp.asarray(draw(1, N, *model.inputs)), "y": jnp.arange(N) % CLASSES}
    task = Classification(model=model)

    def loss(params, state, batch, *, key):
        return task.full_loss(params, state, batch, key=key, train=True)

    def one(p, x, y):
        return F.cross_entropy(theirs(p, x), y)

    p = {path: torch.tensor(to_torch(np.asarray(leaf))) for path, leaf in tree.by_path(params).items()}
    x, y = torch.tensor(np.asarray(batch["x"])), torch.tensor(np.asarray(batch["y"]))
    return (loss, params, batch), (one, p, x, y)


def torch_gradients(one, p, x, y):
    """path -> [n, ...]."""
    return torch.func.vmap(torch.func.grad(one), in_dims=(None, 0, 0))(p, x, y)


def test_gradients_per_example(both):
    """Each example's, by leaf, in blocks; and their norms."""
    (loss, params, batch), theirs = both
    found = tree.by_path(per_example.gradients(loss, params, batch, state={}, block=4))
    expected = torch_gradients(*theirs)
    assert found.keys() == expected.keys()
    for path, leaf in found.items():
        agree(to_torch(np.asarray(leaf), lead=1), expected[path], TOLERANCE)
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in expected.values()]).norm(dim=0)
    agree(per_example.norms(loss, params, batch, state={}, block=4), norms, TOLERANCE)


def test_the_clipped_mean(both):
    """DP-SGD without noise, where some examples are clipped and others not."""
    (loss, params, batch), theirs = both
    expected = torch_gradients(*theirs)
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in expected.values()]).norm(dim=0)
    clip = float(norms.median())
    share = (clip / norms).clamp(max=1)

    found = DPSGD(clip=clip, noise=0.0, block=4)(objective(loss, {}, batch, None), params, jax.random.key(0))[0]
    for path, leaf in tree.by_path(found).items():
        agree(to_torch(np.asarray(leaf)), torch.einsum("n,n...->...", share, expected[path]) / N, TOLERANCE)
