"""ViT is torchvision's, the U-Net one written with torch's functions: outputs and gradients from the same weights."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import agree, draw

from functrain.data.scenes import _bilinear
from functrain.models.torch_layout import from_torch, to_torch
from functrain.models.unet import UNet
from functrain.models.vit import ViT

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'functrain[oracle]'")
F = torch.nn.functional
torch.set_num_threads(1)

pytestmark = [pytest.mark.oracle, pytest.mark.usefixtures("quick")]

LOGITS = {np.float32: 1e-4, np.float64: 1e-12}  # relative to the largest of what is compared
GRADIENTS = {np.float32: 1e-3, np.float64: 1e-11}  # relative to the largest of all gradients


def off(ours, theirs, size=None):
    """The largest difference, by the largest of theirs or `size`."""
    ours, theirs = np.asarray(ours, np.float64), theirs.detach().numpy().astype(np.float64)
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs).max() / (np.abs(theirs).max() if size is None else size)


def wide(dtype):
    return jax.enable_x64(True) if dtype == np.float64 else contextlib.nullcontext()


@pytest.mark.parametrize(
    ("sizes", "count"),
    [
        ({"patch": 16, "layers": 12, "heads": 12, "width": 768}, 86_567_656),
        ({"patch": 32, "layers": 12, "heads": 12, "width": 768}, 88_224_232),
        ({"patch": 16, "layers": 24, "heads": 16, "width": 1024}, 304_326_632),
    ],
    ids=["b_16", "b_32", "l_16"],
)
def test_parameters_of_a_vit(sizes, count):
    """As torchvision states them, and a name for each."""
    model = ViT(**sizes).sized((224, 224, 3), 1000)
    params, state = jax.eval_shape(model.init, jax.random.key(0))
    assert sum(p.size for p in jax.tree.leaves(params)) == count
    assert state == {}
    assert len(set(model.torchvision_names().values())) == len(jax.tree.leaves(params))


def same_vit(theirs, model, dtype, train):
    """Our model with the weights of theirs: outputs, and gradients of a weighted sum of them by every parameter."""
    theirs = theirs.to(torch.float64 if dtype == np.float64 else torch.float32).train(train)
    names = model.torchvision_names()
    params, state = from_torch(names, theirs.state_dict(), *jax.eval_shape(model.init, jax.random.key(0)))
    x = draw(1, 2, *model.inputs).astype(dtype)
    weights = draw(2, 2, model.outputs).astype(dtype)

    @jax.jit
    def ours(params, x):
        logits, _ = model.apply(params, state, x, train=train)
        return (logits * weights).sum(), logits

    gradients, logits = jax.grad(ours, has_aux=True)(params, jnp.asarray(x))
    torch_logits = theirs(torch.tensor(x.transpose(0, 3, 1, 2)))
    (torch_logits * torch.tensor(weights)).sum().backward()
    assert off(logits, torch_logits) <= LOGITS[dtype]
    slopes = {name: p.grad for name, p in theirs.named_parameters()}
    largest = max(float(g.abs().max()) for g in slopes.values())
    turned = to_torch(names, gradients, {})
    assert turned.keys() == slopes.keys()
    for name, slope in slopes.items():
        assert turned[name].dtype == dtype
        assert off(turned[name], slope, largest) <= GRADIENTS[dtype], name


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_vit(dtype, train):
    """A small one of torchvision, all its weights drawn."""
    from torch_vision import torchvision

    torch.manual_seed(0)
    theirs = torchvision().models.VisionTransformer(
        image_size=24, patch_size=8, num_layers=2, num_heads=3, hidden_dim=12, mlp_dim=20, num_classes=5
    )
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.3)
    with wide(dtype):
        same_vit(theirs, ViT(patch=8, layers=2, heads=3, width=12, hidden=20).sized((24, 24, 3), 5), dtype, train)


@pytest.mark.slow
def test_vit_b_16():
    """The real one, at 224 x 224, in float32."""
    from torch_vision import torchvision

    torch.manual_seed(0)
    theirs = torchvision().models.vit_b_16()
    torch.nn.init.normal_(theirs.heads.head.weight, std=0.02)
    model = ViT(patch=16, layers=12, heads=12, width=768).sized((224, 224, 3), 1000)
    same_vit(theirs, model, np.float32, train=False)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("norm", "train"), [("none", True), ("batch", True), ("batch", False)])
def test_unet(norm, train):
    """A U-Net written with F.conv2d, F.max_pool2d and F.conv_transpose2d, on images that are not square."""
    model = UNet(levels=2, width=3, norm=norm).sized((8, 12, 2), 4)
    params, state = model.init(jax.random.key(0))
    params = jax.tree.map(lambda p: p + 0.1 * draw(p.size, *p.shape), params)
    state = jax.tree.map(lambda s: 1 + draw(s.size, *s.shape) ** 2, state)
    x, weights = draw(1, 3, 8, 12, 2), draw(2, 3, 8, 12, 4)

    @jax.jit
    def ours(params, x):
        y, new = model.apply(params, state, x, train=train)
        return (y * weights).sum(), (y, new)

    gradients, (y, new) = jax.grad(ours, has_aux=True)(params, jnp.asarray(x))

    theirs = jax.tree.map(lambda p: torch.tensor(np.asarray(p), requires_grad=True), params)
    moving = jax.tree.map(lambda s: torch.tensor(np.asarray(s)), state)

    def convolve(p, h, **settings):
        return F.conv2d(h, p["kernel"].permute(3, 2, 0, 1), p["bias"], **settings)

    def level(name, h):
        for i in ("1", "2"):
            p = theirs[name]
            h = convolve(p["conv" + i], h, padding=1)
            if norm == "batch":
                s, q = moving[name]["norm" + i], p["norm" + i]
                h = F.batch_norm(h, s["mean"], s["var"], q["scale"], q["bias"], training=train)
            h = F.relu(h)
        return h

    first = level("down0", torch.tensor(x).permute(0, 3, 1, 2))
    second = level("down1", F.max_pool2d(first, 2))
    h = level("bottom", F.max_pool2d(second, 2))
    for name, seen in (("up1", second), ("up0", first)):
        up = theirs[name]["up"]
        h = F.conv_transpose2d(h, up["kernel"].permute(2, 3, 0, 1), up["bias"], stride=2)
        h = level(name, torch.cat([seen, h], 1))
    torch_y = convolve(theirs["head"], h).permute(0, 2, 3, 1)
    (torch_y * torch.tensor(weights)).sum().backward()

    agree(y, torch_y, 1e-12)
    slopes = [p.grad for p in jax.tree.leaves(theirs)]
    largest = max(float(g.abs().max()) for g in slopes)
    for slope, torch_slope in zip(jax.tree.leaves(gradients), slopes, strict=True):
        agree(slope, torch_slope, 1e-11, largest)
    for ours_moved, theirs_moved in zip(jax.tree.leaves(new), jax.tree.leaves(moving), strict=True):
        agree(ours_moved, theirs_moved, 1e-12)


@pytest.mark.parametrize("size", [(20, 45), (28, 28), (41, 7)])
def test_scenes_resize_as_torch(size):
    """Bilinear interpolation by two small matrices is F.interpolate, larger and smaller."""
    x = draw(0, 28, 28)
    ours = _bilinear(28, size[0]) @ x @ _bilinear(28, size[1]).T
    theirs = F.interpolate(torch.tensor(x)[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    agree(ours, theirs, 1e-13)
