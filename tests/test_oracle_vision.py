"""The classic convolutional networks are the same mathematics as torchvision's: counts, logits, gradients, statistics.

Weights go over by `torch_layout.from_torch`, from torchvision's models with everything drawn: at zeros and ones of
biases, scales and running statistics, mistakes would hide.
"""

import functools
import math

import jax
import numpy as np
import pytest
from float64 import draw
from torch_vision import torchvision

from functrain import tree
from functrain.models import resnet, torch_layout
from functrain.models.alexnet import AlexNet
from functrain.models.nin import NIN
from functrain.models.resnet import CIFARResNet, ResNet
from functrain.models.vgg import VGG

tv = torchvision()
torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'functrain[oracle]'")
torch.set_num_threads(1)

pytestmark = pytest.mark.oracle

MODELS = {"alexnet": AlexNet()}
MODELS |= {f"vgg{n}": VGG(layers=n) for n in (11, 13, 16, 19)}
MODELS |= {f"vgg{n}_bn": VGG(layers=n, norm="batch") for n in (11, 13, 16, 19)}
MODELS |= {f"resnet{n}": ResNet(layers=n) for n in (18, 34, 50, 101, 152)}

# Relative to the largest of the array compared.
FLOAT64 = 1e-9  # rounding comes to 1e-14, and to 1e-11 through many batch norms of few places
FLOAT32 = 1e-4


def sized(name, inputs, outputs, hidden=()):
    """Ours, with no dropout, and with other hidden layers where it has any."""
    changes = {} if name.startswith("resnet") else {"dropout": 0.0} | ({"hidden": hidden} if hidden else {})
    return type(MODELS[name])(**(vars(MODELS[name]) | changes)).sized(inputs, outputs)


def drawn(name, outputs, dtype, hidden=()):
    """Torchvision's, every number in it drawn; `hidden` stands in for its two layers of 4096 units."""
    extra = {} if name.startswith("resnet") else {"dropout": 0.0}
    with torch.device("meta"):
        model = getattr(tv.models, name)(num_classes=outputs, **extra)
        if hidden:
            places = [i for i, layer in enumerate(model.classifier) if isinstance(layer, torch.nn.Linear)]
            maps = [layer for layer in model.features if isinstance(layer, torch.nn.Conv2d)][-1].out_channels
            sizes = (maps * math.prod(model.avgpool.output_size), *hidden, outputs)
            for i, n, m in zip(places, sizes, sizes[1:]):
                model.classifier[i] = torch.nn.Linear(n, m)
    model = model.to_empty(device="cpu").to(getattr(torch, dtype))
    generator = torch.Generator().manual_seed(0)
    for name, array in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            array.zero_()
            continue
        array.normal_(generator=generator)
        if array.ndim > 1:
            array.mul_((2 / array[0].numel()) ** 0.5)
        else:
            array.mul_(0.1).add_(1.0 if name.endswith(("var", "weight")) else 0.0)
    return model


def thin(monkeypatch):
    """A quarter of the maps on both sides in VGG and ResNet, and fewer blocks in ResNet-50.

    Torchvision has no such setting, but its classes and its forward passes stay.
    """
    for name, model in MODELS.items():
        if name != "alexnet":
            monkeypatch.setitem(MODELS, name, type(model)(**(vars(model) | {"width": 16})))
    vggs, resnets = tv.models.vgg, tv.models.resnet
    for column, stages in vggs.cfgs.items():
        monkeypatch.setitem(vggs.cfgs, column, [m if m == "M" else m // 4 for m in stages])

    class Thin(resnets.ResNet):
        def __init__(self, block, layers, num_classes):
            super().__init__(block, layers, num_classes)
            self.conv1, self.bn1 = torch.nn.Conv2d(3, 16, 7, 2, 3, bias=False), torch.nn.BatchNorm2d(16)
            self.fc = torch.nn.Linear(128 * block.expansion, num_classes)

        def _make_layer(self, block, planes, blocks, stride=1, dilate=False):
            self.inplanes = 16 if planes == 64 else self.inplanes
            return super()._make_layer(block, planes // 4, blocks, stride, dilate)

    few = (1, 2, 1, 1)
    monkeypatch.setitem(resnet._STAGES, 50, few)
    monkeypatch.setattr(tv.models, "resnet18", lambda num_classes: Thin(resnets.BasicBlock, (2, 2, 2, 2), num_classes))
    monkeypatch.setattr(tv.models, "resnet50", lambda num_classes: Thin(resnets.Bottleneck, few, num_classes))


def off(ours, theirs, size=None):
    """The largest difference, as a share of `size` or else of the largest of theirs."""
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    error = np.abs(ours - theirs).max()
    assert np.isfinite(error)
    return error / (size or np.abs(theirs).max())


def compare(name, side, batch, outputs=10, steps=5):
    """Logits and gradients in training and in evaluation mode, then the statistics after steps in training mode."""
    hidden = () if name.startswith("resnet") else (24, 16)
    ours, theirs = sized(name, (side, side, 3), outputs, hidden), drawn(name, outputs, "float64", hidden)
    names = ours.torchvision_names()
    tensors = {n: t.numpy().copy() for n, t in theirs.state_dict().items()}
    params, state = torch_layout.from_torch(names, tensors, *jax.eval_shape(ours.init, jax.random.key(0)))
    back = torch_layout.to_torch(names, params, state)
    assert back.keys() == {n for n in tensors if not n.endswith("num_batches_tracked")}
    assert all(back[n].dtype == tensors[n].dtype and (back[n] == tensors[n]).all() for n in back)
    start = {n: torch.tensor(t) for n, t in tensors.items()}
    weights = draw(1, batch, outputs)

    @functools.partial(jax.jit, static_argnums=3)
    @functools.partial(jax.grad, has_aux=True)
    def pulled(params, state, x, train):
        logits, new = ours.apply(params, state, x, train=train)
        return (logits * weights).sum(), (logits, new)

    errors = {}
    for train in (True, False):
        x = draw(2, batch, side, side, 3)
        gradients, (logits, new) = pulled(params, state, x, train)
        theirs.load_state_dict(start)
        theirs.train(train).zero_grad()
        torch_logits = theirs(torch.tensor(x).permute(0, 3, 1, 2))
        (torch_logits * torch.tensor(weights)).sum().backward()
        errors[f"logits, train={train}"] = off(np.asarray(logits), torch_logits.detach().numpy())
        wanted = {n: p.grad.numpy() for n, p in theirs.named_parameters()}
        largest = max(np.abs(g).max() for g in wanted.values())
        found = torch_layout.to_torch({path: n for path, n in names.items() if n in wanted}, gradients, {})
        # A bias before a batch norm in training mode has no gradient but rounding: the largest of all is the measure.
        without = {n for path, n in names.items() if train and state and "conv" in path and path.endswith("bias")}
        each = [off(found[n], g, largest if n in without else None) for n, g in wanted.items()]
        errors[f"gradients, train={train}"] = max(each)
        if not train:
            assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), new, state))
    if state:
        theirs.load_state_dict(start)
        theirs.train()
        new = state
        for i in range(steps):
            x = draw(10 + i, batch, side, side, 3)
            _, (_, new) = pulled(params, new, x, True)
            with torch.no_grad():
                theirs(torch.tensor(x).permute(0, 3, 1, 2))
        found = torch_layout.to_torch({p: n for p, n in names.items() if p.startswith("state")}, {}, new)
        wanted = theirs.state_dict()
        errors["statistics"] = max(off(found[n], wanted[n].numpy()) for n in found)
    print(name, {what: f"{error:.1e}" for what, error in errors.items()})
    assert max(errors.values()) <= FLOAT64, errors


@pytest.mark.parametrize("name", MODELS)
def test_counts_and_names(name):
    """At 1000 classes: as many parameters as torchvision, and under each of its names as many numbers."""
    with torch.device("meta"):
        theirs = getattr(tv.models, name)()
    ours = sized(name, (224, 224, 3), 1000)
    params, state = jax.eval_shape(ours.init, jax.random.key(0))
    assert tree.size(params) == sum(p.numel() for p in theirs.parameters())
    names, leaves = ours.torchvision_names(), tree.by_path({"params": params, "state": state})
    wanted = {n: t.numel() for n, t in theirs.state_dict().items() if not n.endswith("num_batches_tracked")}
    assert {names[path]: leaf.size for path, leaf in leaves.items()} == wanted


@pytest.mark.usefixtures("quick", "float64")
@pytest.mark.parametrize("name", ["alexnet", "vgg11", "vgg11_bn", "resnet18", "resnet50"])
def test_same_function(name, monkeypatch):
    """On small images and with fewer maps: logits, gradients, statistics; the tensors come back bit for bit.

    In float64: in float32 a ReLU near zero falls to the other side here and there, which on maps of a few places shows
    in the gradients of the layers before it.
    """
    thin(monkeypatch)
    compare(name, side=64 if name == "alexnet" else 32, batch=2 if name == "alexnet" else 4)


@pytest.mark.slow
@pytest.mark.usefixtures("quick", "float64")
@pytest.mark.parametrize("name", MODELS)
def test_same_function_of_all(name):
    """Every variant with all its maps and blocks; float64."""
    # On 32 x 32 a batch norm of the last stage sees 4 places, and 150 of them one after another magnify rounding.
    compare(name, side=64 if name in ("alexnet", "resnet101", "resnet152") else 32, batch=4)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_logits_at_full_size(name):
    """Every variant as it stands, 224 x 224 and 1000 classes, in evaluation mode, in float32."""
    theirs, ours = drawn(name, 1000, "float32").eval(), sized(name, (224, 224, 3), 1000)
    tensors = {n: t.numpy() for n, t in theirs.state_dict().items()}
    shapes = jax.eval_shape(ours.init, jax.random.key(0))
    params, state = torch_layout.from_torch(ours.torchvision_names(), tensors, *shapes)
    x = draw(0, 2, 224, 224, 3).astype("float32")
    logits, _ = jax.jit(ours.apply)(params, state, x)
    with torch.no_grad():
        expected = theirs(torch.tensor(x).permute(0, 3, 1, 2))
    error = off(np.asarray(logits), expected.numpy())
    print(name, f"224 logits {error:.1e}")
    assert error <= FLOAT32


def functional(model, forward, train):
    """Logits, gradients and new statistics of a model that torchvision has not, beside `forward` written with torch.

    `forward` gets every array by its path, kernels of four axes in torch's layout; it moves the statistics in place.
    """
    shapes = dict(zip(("params", "state"), jax.eval_shape(model.init, jax.random.key(0))))
    places = {path: i for i, path in enumerate(tree.by_path(shapes))}

    def number(path, like):
        spread = math.sqrt(2 / math.prod(like.shape[:-1])) if path.endswith("kernel") else 0.1
        return spread * draw(places[path], *like.shape) + path.endswith(("scale", "var"))

    arrays = tree.map_by_path(number, shapes)
    x, weights = draw(100, 3, *model.inputs), draw(101, 3, model.outputs)

    def ours(params):
        logits, new = model.apply(params, arrays["state"], x, train=train)
        return (logits * weights).sum(), (logits, new)

    gradients, (logits, new) = jax.jit(jax.grad(ours, has_aux=True))(arrays["params"])
    names = {path: path for path in places}
    given = torch_layout.to_torch(names, arrays["params"], arrays["state"])
    tensors = {path: torch.tensor(a, requires_grad=path.startswith("params")) for path, a in given.items()}
    torch_logits = forward(tensors, torch.tensor(x).permute(0, 3, 1, 2))
    (torch_logits * torch.tensor(weights)).sum().backward()
    assert off(np.asarray(logits), torch_logits.detach().numpy()) <= FLOAT64
    for path, found in torch_layout.to_torch(names, gradients, new).items():
        theirs = tensors[path].grad if path.startswith("params") else tensors[path]
        assert off(found, theirs.numpy()) <= FLOAT64, path


@pytest.mark.usefixtures("quick", "float64")
@pytest.mark.parametrize("shape", [(10, 13, 3), (4, 5, 1)], ids=str)
def test_nin(shape):
    """Poolings reach over the end, as torch's do with ceil_mode."""
    F = torch.nn.functional

    def forward(p, x):
        for i in range(3):
            for j in range(3):
                kernel = p[f"params/block{i}/conv{j}/kernel"]
                x = F.relu(F.conv2d(x, kernel, p[f"params/block{i}/conv{j}/bias"], padding=kernel.shape[-1] // 2))
            x = F.max_pool2d(x, 3, 2, ceil_mode=True) if i < 2 else x
        return x.mean((2, 3))

    functional(NIN(width=7, dropout=0.0, inputs=shape, outputs=5), forward, train=True)


@pytest.mark.usefixtures("quick", "float64")
@pytest.mark.parametrize("train", [True, False])
def test_cifar_resnet(train):
    """The paper's, with shortcuts of option A."""
    F = torch.nn.functional

    def forward(p, x):
        def normed(at, i, x, stride=1):
            x = F.conv2d(x, p[f"params/{at}conv{i}/kernel"], stride=stride, padding=1)
            mean, var = (p[f"state/{at}norm{i}/{name}"] for name in ("mean", "var"))
            scale, bias = (p[f"params/{at}norm{i}/{name}"] for name in ("scale", "bias"))
            return F.batch_norm(x, mean, var, scale, bias, training=train)

        x = F.relu(normed("", 1, x))
        for stage in (1, 2, 3):
            for block in (0, 1):
                at, stride = f"stage{stage}/block{block}/", 2 if stage > 1 and block == 0 else 1
                h = normed(at, 2, F.relu(normed(at, 1, x, stride)))
                x = F.pad(F.avg_pool2d(x, 1, stride), (0, 0, 0, 0, 0, h.shape[1] - x.shape[1]))
                x = F.relu(x + h)
        return F.linear(x.mean((2, 3)), p["params/linear/kernel"], p["params/linear/bias"])

    functional(CIFARResNet(layers=14, width=3, inputs=(11, 9, 3), outputs=5), forward, train)
