"""Kronecker factors equal to those of curvlinops and BackPACK, on one convolutional network with one set of weights.

torch has kernels [out, in, *space], and rows of patches in the order (channel, *space); here they are [*space, in,
out], in the order (*space, channel). Everything is in float64.
"""

import warnings
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import agree, draw
from torch_vision import torchvision

from functrain import tree
from functrain.autodiff.curvature.kfac import kfac
from functrain.layers import conv, linear

torchvision()
torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # both import what torch deprecates
    curvlinops = pytest.importorskip("curvlinops", reason="pip install curvlinops-for-pytorch==3.0.1")
    backpack = pytest.importorskip("backpack", reason="pip install backpack-for-pytorch==1.7.1")
    from backpack.extensions import KFLR
torch.set_num_threads(1)

pytestmark = [pytest.mark.oracle, pytest.mark.usefixtures("float64", "quick")]

TOLERANCE = 1e-10
N, CLASSES = 5, 3
KERNELS = {"conv0": (3, 2, 2, 3), "conv1": (2, 2, 3, 4), "linear0": (32, 5), "linear1": (5, CLASSES)}
LAYERS = {"conv0": "0", "conv1": "2", "linear0": "5", "linear1": "7"}  # names in torch's Sequential


# -- the network, here and there -----------------------------------------------------------------------


@cache
def weights():
    return {
        name: {"kernel": 0.5 * draw(i, *shape), "bias": draw(10 + i, shape[-1])}
        for i, (name, shape) in enumerate(KERNELS.items())
    }


@cache
def data(loss):
    x = draw(20, N, 6, 5, 2)
    return x, np.arange(N) % CLASSES if loss == "entropy" else draw(21, N, CLASSES)


def predict(params, example):
    h = jnp.tanh(conv.apply(params["conv0"], example[0][None], stride=(2, 1), padding=(1, 0)))
    h = jnp.tanh(conv.apply(params["conv1"], h, padding=((0, 0), (1, 1)), dilation=(1, 2)))
    h = jnp.moveaxis(h, -1, 1).reshape(-1)  # as torch flattens
    return linear.apply(params["linear1"], jnp.tanh(linear.apply(params["linear0"], h)))


def entropy(y, example):
    return jax.nn.logsumexp(y) - y[example[1]]


def squares(y, example):
    return jnp.sum((y - example[1]) ** 2)


SCORES = {"entropy": entropy, "squares": squares}


def turned(kernel):
    """A kernel as torch has it."""
    kernel = np.moveaxis(np.asarray(kernel), -1, 0)
    return torch.tensor(np.ascontiguousarray(np.moveaxis(kernel, -1, 1) if kernel.ndim > 2 else kernel))


def back(weight):
    """A weight of torch's as a kernel."""
    weight = np.asarray(weight.detach())
    return np.moveaxis(np.moveaxis(weight, 1, -1) if weight.ndim > 2 else weight, 0, -1)


def rows(name, joint=False):
    """Where a row of ours stands among theirs."""
    *space, channels, _ = KERNELS[name]
    order = np.moveaxis(np.arange(channels * int(np.prod(space))).reshape(channels, *space), 0, -1).ravel()
    return np.append(order, len(order)) if joint else order


def network():
    layers = [
        torch.nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0)),
        torch.nn.Tanh(),
        torch.nn.Conv2d(3, 4, (2, 2), padding=(0, 1), dilation=(1, 2)),
        torch.nn.Tanh(),
        torch.nn.Flatten(),
        torch.nn.Linear(32, 5),
        torch.nn.Tanh(),
        torch.nn.Linear(5, CLASSES),
    ]
    net = torch.nn.Sequential(*layers).double()
    for name, at in LAYERS.items():
        layer = net.get_submodule(at)
        layer.weight.data = turned(weights()[name]["kernel"])
        layer.bias.data = torch.tensor(weights()[name]["bias"])
    return net


def torch_data(loss):
    x, y = data(loss)
    return torch.tensor(np.moveaxis(x, -1, 1)), torch.tensor(y)


def torch_loss(loss):
    # Of squared errors the sum: a mean is over the outputs too, in which curvlinops' kinds differ by a factor.
    return torch.nn.CrossEntropyLoss() if loss == "entropy" else torch.nn.MSELoss(reduction="sum")


def ours(loss, **given):
    batch = jax.tree.map(jnp.asarray, data(loss))
    return jax.jit(lambda p: kfac(predict, SCORES[loss], p, batch, **given))(jax.tree.map(jnp.asarray, weights()))


def test_both_networks_are_one():
    y = jax.vmap(lambda x: predict(weights(), (x, None)))(data("entropy")[0])
    agree(y, network()(torch_data("entropy")[0]), 1e-13)


# -- curvlinops ----------------------------------------------------------------------------------------


def vector():
    return {
        name: {part: draw(30 + i, *np.shape(x)) for part, x in layer.items()}
        for i, (name, layer) in enumerate(weights().items())
    }


def theirs_of(v):
    """A tree as the list of torch's parameters."""
    return [t for layer in v.values() for t in (turned(layer["kernel"]), torch.tensor(layer["bias"]))]


def as_ours(tensors):
    """The list of torch's parameters as a tree."""
    pairs = zip(KERNELS, tensors[::2], tensors[1::2])
    return {name: {"kernel": back(w), "bias": np.asarray(b.detach())} for name, w, b in pairs}


def same_trees(a, b):
    for (path, x), y in zip(tree.by_path(a).items(), tree.by_path(b).values(), strict=True):
        assert np.abs(y).max() > 0, path
        agree(x, np.ascontiguousarray(y), TOLERANCE)


KINDS = {"exact": "type-2", "empirical": "empirical", "inputs": "forward-only"}


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", SCORES)
def test_curvlinops(loss, kind, sharing, joint):
    """Factors, products, and inverses by both ways of damping."""
    net = network()
    operator = curvlinops.KFACLinearOperator(
        net,
        torch_loss(loss),
        list(net.parameters()),
        [torch_data(loss)],
        fisher_type=KINDS[kind],
        kfac_approx=sharing,
        separate_weight_and_bias=not joint,
        check_deterministic=False,
    )
    found = ours(loss, kind=kind, sharing=sharing, joint=joint)
    operator.compute_kronecker_factors()
    # The sum over examples leaves gradients undivided, and inputs not; ones are the same either way.
    n = N if loss == "squares" and kind != "inputs" else 1
    for name, at in LAYERS.items():
        order, block = rows(name, joint), found.blocks[f"{name}/kernel"]
        agree(block.A, operator._input_covariances[at].numpy()[np.ix_(order, order)], TOLERANCE)
        agree(n * block.G, operator._gradient_covariances[at].numpy(), TOLERANCE)
    v = vector()
    same_trees(tree.scale(n, found.product(v)), as_ours(operator @ theirs_of(v)))
    for how, named in (("factored", "use_heuristic_damping"), ("exact", "use_exact_damping")):
        inverse = curvlinops.KFACInverseLinearOperator(operator, damping=0.1 * n, **{named: True})
        expected = as_ours(inverse @ theirs_of(v))
        if how == "factored" and not joint:
            # Theirs damps a bias's own block by the share of the kernel's G; ours in full, as there is no other factor.
            for name, at in LAYERS.items():
                damped = operator._gradient_covariances[at].numpy() + 0.1 * n * np.eye(len(v[name]["bias"]))
                expected[name]["bias"] = np.linalg.solve(damped, v[name]["bias"])
        same_trees(tree.scale(1 / n, jax.jit(lambda k, v, how=how: k.inverse(0.1, how).product(v))(found, v)), expected)


# -- BackPACK ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", SCORES)
def test_backpack(loss):
    """KFLR. For a convolution it has the factor A of "expand", summed over positions, and the factor G of "reduce"."""
    net, (x, y) = backpack.extend(network()), torch_data(loss)
    criterion = backpack.extend(torch.nn.CrossEntropyLoss() if loss == "entropy" else torch.nn.MSELoss())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of hooks
        with backpack.backpack(KFLR()):
            criterion(net(x), y).backward()
    scale = 1 if loss == "entropy" else CLASSES  # a mean over the outputs too
    by_sharing = {sharing: ours(loss, sharing=sharing, joint=False) for sharing in ("expand", "reduce")}
    positions = {"conv0": 3 * 4, "conv1": 2 * 4}
    for name, at in LAYERS.items():
        layer, order = net.get_submodule(at), rows(name)
        g, a = (factor.numpy() for factor in layer.weight.kflr)
        a = a[np.ix_(order, order)] / positions.get(name, 1)
        agree(by_sharing["expand"].blocks[f"{name}/kernel"].A, a, TOLERANCE)
        agree(by_sharing["reduce"].blocks[f"{name}/kernel"].G, scale * g, TOLERANCE)
        agree(by_sharing["reduce"].blocks[f"{name}/bias"].dense(), scale * layer.bias.kflr[0].numpy(), TOLERANCE)
