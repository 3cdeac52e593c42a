"""The classic convolutional networks without torch: the papers' counts, shapes, what is refused; that they learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functrain import config, tree
from functrain.config import ConfigError
from functrain.models import resnet, torch_layout
from functrain.models.alexnet import AlexNet
from functrain.models.nin import NIN
from functrain.models.resnet import CIFARResNet, ResNet
from functrain.models.vgg import VGG


def drawn(model):
    """(params, state) drawn by NumPy: an initial draw by jax compiles a program for each shape."""
    rng = np.random.default_rng(0)

    def draw(path, like):
        if path.endswith("kernel"):
            return (rng.normal(size=like.shape) * np.sqrt(2 / np.prod(like.shape[:-1]))).astype("float32")
        return np.full(like.shape, path.endswith(("scale", "var")), "float32")

    return tree.map_by_path(draw, jax.eval_shape(model.init, jax.random.key(0)))


def shapes(model, inputs, outputs):
    """(params, state) as shapes."""
    return jax.eval_shape(model.sized(inputs, outputs).build().init, jax.random.key(0))


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (AlexNet(), 61_100_840),
        (VGG(layers=11), 132_863_336),
        (VGG(layers=13), 133_047_848),
        (VGG(layers=16), 138_357_544),
        (VGG(layers=19), 143_667_240),
        (ResNet(layers=18), 11_689_512),
        (ResNet(layers=34), 21_797_672),
        (ResNet(layers=50), 25_557_032),
        (ResNet(layers=101), 44_549_160),
        (ResNet(layers=152), 60_192_808),
    ],
    ids=lambda value: f"{value.kind}{getattr(value, 'layers', '')}" if not isinstance(value, int) else "",
)
def test_counts_for_imagenet(model, count):
    """1000 classes; VGG's are the paper's 133, 133, 138 and 144 million (table 2)."""
    assert tree.size(shapes(model, (224, 224, 3), 1000)[0]) == count


@pytest.mark.parametrize(("layers", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_counts_for_cifar(layers, millions):
    """He et al. 2016, table 6; exactly, from the construction: kernels, two numbers a map for each norm, one matrix."""
    n = (layers - 2) // 6
    kernels = 9 * (3 * 16 + 2 * n * 16**2 + 16 * 32 + (2 * n - 1) * 32**2 + 32 * 64 + (2 * n - 1) * 64**2)
    norms = 2 * (16 + 2 * n * (16 + 32 + 64))
    count = tree.size(shapes(CIFARResNet(layers=layers), (32, 32, 3), 10)[0])
    assert count == kernels + norms + 64 * 10 + 10
    assert round(count / 1e6, 2 if layers < 110 else 1) == millions


def test_counts_of_nin():
    """Layer by layer, as in the authors' definition for CIFAR-10."""
    layers = [(5, 3, 192), (1, 192, 160), (1, 160, 96), (5, 96, 192), *[(1, 192, 192)] * 2, (3, 192, 192)]
    layers += [(1, 192, 192), (1, 192, 10)]
    params = tree.by_path(shapes(NIN(), (32, 32, 3), 10)[0])
    found = [params[f"block{i}/conv{j}/kernel"].shape for i in range(3) for j in range(3)]
    assert found == [(k, k, n, m) for k, n, m in layers]
    assert sum(p.size for p in params.values()) == sum(k * k * n * m + m for k, n, m in layers) == 966_986


SMALL = [
    AlexNet(channels=(4, 6, 6, 6, 4), hidden=(8,), pooled=2, dropout=0.0).sized((64, 67, 3), 5),
    AlexNet(channels=(4, 6, 6, 6, 4), hidden=(8, 7), stem="small", dropout=0.0).sized((15, 17), 5),
    VGG(layers=11, width=2, hidden=(8,), pooled=1, dropout=0.0).sized((32, 35), 5),
    VGG(layers=13, norm="batch", width=2, hidden=(), dropout=0.0).sized((32, 32, 1), 5),
    ResNet(layers=18, width=4, stem="small").sized((5, 8, 2), 5),
    ResNet(layers=50, width=2, zero_init=True).sized((33, 36, 3), 5),
    CIFARResNet(layers=8, width=4).sized((9, 7), 5),
    NIN(width=6, dropout=0.0).sized((11, 8, 3), 5),
]
"""Each family, on images that are odd, not square, grey or as small as it takes."""


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("model", SMALL, ids=lambda model: f"{model.kind}-{'x'.join(map(str, model.inputs))}")
def test_learns(model, monkeypatch):
    """Shapes, states by the paths of the parameters, finite gradients; a step along them lowers the loss."""
    for layers in (18, 50):  # fewer blocks: compiling is what takes the time
        monkeypatch.setitem(resnet._STAGES, layers, (1, 2, 1, 1))
    params, state = drawn(model)
    x = np.random.default_rng(1).normal(size=(4, *model.inputs)).astype("float32")
    y = jnp.array([0, 3, 1, 4])
    norms = {path.rsplit("/", 1)[0] for path in tree.by_path(params) if path.endswith("scale")}
    assert {path.rsplit("/", 1)[0] for path in tree.by_path(state)} == norms

    @jax.jit
    def step(params):
        def loss(params):
            logits, new = model.apply(params, state, x, train=True)
            return -jax.nn.log_softmax(logits)[jnp.arange(4), y].mean(), (logits, new)

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, (logits, new)), gradients = step(params)
    gradients = jax.tree.map(np.asarray, gradients)
    assert logits.shape == (4, 5)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    length = np.sqrt(sum(np.square(g).sum() for g in jax.tree.leaves(gradients)))
    assert length > 0
    (lower, _), _ = step(jax.tree.map(lambda p, g: p - 1e-2 * g / length, params, gradients))
    assert lower < loss


@pytest.mark.usefixtures("quick")
def test_starts():
    """Where a block starts as the identity, only the norms that end one are zero; initial deviations are as said."""

    def start(model, pattern):
        """The parameters whose paths end so; what is not asked for is not compiled."""
        init = model.sized((64, 64, 3), 4).init
        ends = jax.jit(lambda key: {p: v for p, v in tree.by_path(init(key)[0]).items() if p.endswith(pattern)})
        return jax.tree.map(np.asarray, ends(jax.random.key(0)))

    scales = start(ResNet(layers=18, width=8, zero_init=True), "scale")
    assert all((p == (0 if "block" in path and "norm2" in path else 1)).all() for path, p in scales.items())
    (kernel,) = start(ResNet(layers=18, width=8), "stage4/block0/conv1/kernel").values()
    assert abs(kernel.std() / np.sqrt(2 / (9 * 64)) - 1) < 0.02  # by the 64 maps that it makes, not the 32 it reads
    conv, linear = start(VGG(layers=11, width=16, hidden=(300,)), ("conv1/kernel", "linear0/kernel")).values()
    assert abs(conv.std() / np.sqrt(2 / (9 * 32)) - 1) < 0.04
    assert abs(linear.std() / 0.01 - 1) < 0.02
    kernel, bias = start(AlexNet(channels=(9, 4, 4, 4, 4), hidden=(300,)), ("conv0/kernel", "linear0/bias")).values()
    assert 0.9 < abs(kernel).max() * np.sqrt(3 * 121) <= 1
    assert 0.9 < abs(bias).max() * np.sqrt(4 * 36) <= 1


@pytest.mark.usefixtures("quick")
def test_shortcut_of_the_thin_net():
    """With the branches' last scales and biases zero, a block is its shortcut: every second place, zeros behind."""
    model = CIFARResNet(layers=8, width=2).sized((5, 7), 8)
    params, state = drawn(model)
    for stage in ("stage1", "stage2", "stage3"):
        params[stage]["block0"]["norm2"]["scale"] = jnp.zeros_like(params[stage]["block0"]["norm2"]["scale"])
    params["linear"] = {"kernel": jnp.eye(8), "bias": jnp.zeros(8)}
    params["conv1"]["kernel"] = jnp.zeros((3, 3, 1, 2)).at[1, 1, 0].set(1 / jnp.sqrt(1 / (1 + 1e-5)))
    x = jax.random.uniform(jax.random.key(1), (3, 5, 7))
    y, _ = jax.jit(model.apply)(params, state, x)
    mean = x[:, ::4, ::4].mean((1, 2))
    expected = jnp.stack([mean, mean] + [jnp.zeros(3)] * 6, 1)
    np.testing.assert_allclose(y, expected, rtol=1e-5)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (AlexNet(channels=(4, 4, 4, 4, 4), hidden=(50, 60), stem="small"), (15, 15, 3)),
        (VGG(layers=11, width=2, hidden=(50, 60), pooled=1), (32, 32, 3)),
        (NIN(width=12), (9, 9, 3)),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_dropout(model, shape):
    """Drops in training alone, elsewhere with another key, and wants a key."""
    model = model.sized(shape, 5)
    params, state = drawn(model)
    x = np.random.default_rng(1).normal(size=(2, *shape)).astype("float32")
    logits = jax.jit(lambda key, train: model.apply(params, state, x, key=key, train=train)[0], static_argnums=1)
    a, b, again = (logits(jax.random.key(seed), True) for seed in (2, 3, 2))
    assert (a == again).all()
    assert (a != b).any()
    assert (logits(jax.random.key(2), False) == logits(jax.random.key(3), False)).all()
    with pytest.raises(ValueError, match="key"):
        jax.eval_shape(lambda: model.apply(params, state, x, train=True))


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_computes_in_the_dtype_of_the_parameters(dtype):
    """Logits have it; statistics stay as they are."""
    with jax.enable_x64(True):
        for model in SMALL[1], SMALL[3], SMALL[6], SMALL[7]:
            params, state = drawn(model)
            params = tree.cast(params, dtype)
            x = jnp.ones((2, *model.inputs), "float32")
            out, new = jax.eval_shape(lambda p, s, model=model, x=x: model.apply(p, s, x, train=True), params, state)
            assert out.dtype == dtype
            assert jax.tree.map(lambda s: s.dtype, new) == jax.tree.map(lambda s: s.dtype, state)


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (
            AlexNet(),
            (62, 80, 3),
            r"alexnet takes images from 63 x 63 up; the data has \[62, 80, 3\]; model.stem =",
        ),
        (AlexNet(stem="small"), (14, 15), r"15 x 15 up; the data has \[14, 15\]$"),
        (VGG(), (31, 40, 3), "vgg takes images from 32 x 32 up"),
        (ResNet(), (64, 16, 3), r"resnet takes images from 17 x 17 up; .*; model.stem = \"small\""),
        (ResNet(stem="small"), (4, 4), r"5 x 5 up; the data has \[4, 4\]$"),
        (CIFARResNet(), (2, 9, 3), "cifar_resnet takes images from 3 x 3 up"),
        (NIN(), (3, 3, 3), "nin takes images from 4 x 4 up"),
        (NIN(), (12,), r"nin takes images .* the data has \[12\]"),
    ],
)
def test_refuses_what_is_too_small(model, shape, message):
    """In one line, with what would be right."""
    with pytest.raises(ConfigError, match=message):
        model.sized(shape, 10)


def test_refuses_other_depths():
    """Six layers more or none."""
    with pytest.raises(ConfigError, match="layers: found 18; expected 6 n"):
        CIFARResNet(layers=18).build()
    with pytest.raises(ConfigError, match="found 2;"):
        CIFARResNet(layers=2).build()
    with pytest.raises(ConfigError, match="layers: found 12; expected 11, 13, 16 or 19"):
        config.parse(VGG, {"kind": "vgg", "layers": 12})
    with pytest.raises(ConfigError, match="channels"):
        config.parse(AlexNet, {"kind": "alexnet", "channels": [4, 4, 4, 4]})
    with pytest.raises(ConfigError, match="channels"):
        config.parse(AlexNet, {"kind": "alexnet", "channels": [4, 4, 4, 4, 4, 4]})
    for model in SMALL:
        assert config.parse(type(model), config.to_data(model)) == model


def test_torch_layout():
    """The rule of the axes there and back, bit for bit, and one line for each mistake."""
    model = SMALL[3]  # VGG with batch norm, 7 x 7 x 16 numbers into the one linear layer
    names = model.torchvision_names()
    params, state = drawn(model)
    given = torch_layout.to_torch(names, params, state)
    assert given["features.0.weight"].shape == (2, 1, 3, 3)
    assert given["features.0.weight"][1, 0, 2, 0] == params["conv0"]["kernel"][2, 0, 0, 1]
    assert given["classifier.0.weight"].shape == (5, 784)
    assert given["features.1.running_var"].shape == (2,)
    assert all(array.flags.c_contiguous for array in given.values())
    wanted = jax.eval_shape(model.init, jax.random.key(0))
    back = torch_layout.from_torch(names, given | {"features.1.num_batches_tracked": np.array(3)}, *wanted)
    assert jax.tree.structure(back) == jax.tree.structure((params, state))
    assert jax.tree.all(jax.tree.map(lambda a, b: a.dtype == b.dtype and (a == b).all(), back, (params, state)))
    narrow = torch_layout.from_torch(names, given, tree.cast(params, np.float16), state)[0]
    assert narrow["conv0"]["kernel"].dtype == np.float16

    missing = {name: array for name, array in given.items() if name != "features.1.running_var"}
    with pytest.raises(ValueError, match=r"^features.1.running_var: no such tensor; state/norm0/var"):
        torch_layout.from_torch(names, missing, params, state)
    with pytest.raises(ValueError, match=r"^features.99.weight: the model has no place"):
        torch_layout.from_torch(names, given | {"features.99.weight": np.ones(1)}, params, state)
    turned = {"classifier.0.weight": given["classifier.0.weight"].T}
    with pytest.raises(ValueError, match=r"^classifier.0.weight: found shape \[784, 5\]; .* needs \[5, 784\]"):
        torch_layout.from_torch(names, given | turned, params, state)
    few = {path: name for path, name in names.items() if path != "params/conv0/bias"}
    with pytest.raises(ValueError, match=r"^params/conv0/bias: has no name"):
        torch_layout.to_torch(few, params, state)
    with pytest.raises(ValueError, match=r"^params/conv99/bias: the model has no such array"):
        torch_layout.from_torch(names | {"params/conv99/bias": "x"}, given, params, state)


@pytest.mark.parametrize("model", [AlexNet(stem="small", hidden=(8,)), VGG(hidden=()), ResNet(layers=34)], ids=repr)
def test_names_are_one_to_one(model):
    """Every array has a name of its own."""
    sized = model.sized((32, 32, 3), 5)
    params, state = jax.eval_shape(sized.init, jax.random.key(0))
    names = sized.torchvision_names()
    assert names.keys() == tree.by_path({"params": params, "state": state}).keys()
    assert len(set(names.values())) == len(names)
