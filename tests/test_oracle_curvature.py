"""Curvature is that of curvlinops and BackPACK: of a small convolutional network, in float64, from the same weights."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import agree, draw
from torch_vision import torchvision

from functrain.autodiff import curvature
from functrain.layers import conv, linear, pool

torchvision()
torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'functrain[oracle]'")
pytest.importorskip("curvlinops", reason="curvlinops is not installed: pip install curvlinops-for-pytorch==3.0.1")
pytest.importorskip("backpack", reason="BackPACK is not installed: pip install backpack-for-pytorch==1.7.1")
torch.set_num_threads(1)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what they warn of where they are imported is theirs
    import backpack
    import curvlinops
    from backpack import extensions
    from curvlinops.fisher import make_grad_output_sampler

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.usefixtures("quick", "float64"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]

TOLERANCE = 1e-10  # of the largest entry
EXAMPLES, CLASSES = 8, 3
KEY = jax.random.key(0)


# -- the network, twice ---------------------------------------------------------------------------


def network():
    """(params, x [8, 6, 6, 2], labels, targets [8, 3]): convolution, tanh, max pool, two linear layers, relu."""
    params = {
        "conv": {"kernel": 0.5 * draw(0, 3, 3, 2, 3), "bias": draw(1, 3)},
        "linear0": {"kernel": 0.5 * draw(2, 12, 4), "bias": draw(3, 4)},
        "linear1": {"kernel": draw(4, 4, CLASSES), "bias": draw(5, CLASSES)},
    }
    labels = np.random.default_rng(6).integers(0, CLASSES, EXAMPLES)
    return jax.tree.map(jnp.asarray, params), draw(7, EXAMPLES, 6, 6, 2), labels, draw(8, EXAMPLES, CLASSES)


def predict(params, x):
    """[n, 6, 6, 2] -> logits [n, classes]."""
    y = jnp.tanh(conv.apply(params["conv"], x, padding="valid"))
    y = pool.max(y, 2).reshape(len(x), -1)
    y = jax.nn.relu(linear.apply(params["linear0"], y))
    return linear.apply(params["linear1"], y)


def torch_network(params):
    """The same in torch; the linear layer after the pool takes its rows in torch's order, channels first."""
    layers = [torch.nn.Conv2d(2, 3, 3), torch.nn.Tanh(), torch.nn.MaxPool2d(2), torch.nn.Flatten()]
    layers += [torch.nn.Linear(12, 4), torch.nn.ReLU(), torch.nn.Linear(4, CLASSES)]
    net = torch.nn.Sequential(*layers).double()
    with torch.no_grad():
        for p, array in zip(net.parameters(), in_torch_order(params)):
            p.copy_(torch.tensor(np.array(array)))
    return net


def in_torch_order(tree):
    """Leaves of a tree like the parameters as torch has them; leading axes stay."""

    def turned(path, x):
        x = np.asarray(x)
        if path == "conv":  # [..., height, width, in, out] -> [..., out, in, height, width]
            return np.moveaxis(x, (-1, -2), (-4, -3))
        if path == "linear0":  # rows [2, 2, 3] of ours -> [3, 2, 2]
            x = np.moveaxis(x.reshape(*x.shape[:-2], 2, 2, 3, 4), -2, -4).reshape(x.shape)
        return np.swapaxes(x, -1, -2)

    return [
        array
        for name in ("conv", "linear0", "linear1")
        for array in (turned(name, tree[name]["kernel"]), np.asarray(tree[name]["bias"]))
    ]


def rows_in_torch_order(make, params):
    """Our dense matrix [n, n] with both axes in the order of torch's parameters, flattened; made under jit."""
    operator = curvature.Operator(lambda v: v, params)

    def turned(rows):
        tree = jax.vmap(operator.unravel)(rows)
        return np.concatenate([array.reshape(len(rows), -1) for array in in_torch_order(tree)], 1)

    return turned(jnp.asarray(turned(jax.jit(lambda p: make(p).dense())(params))).T)


def cross_entropy(logits, label):
    return -jax.nn.log_softmax(logits)[label]


def squared(outputs, target):
    return jnp.sum((outputs - target) ** 2)


LOSSES = {
    # name: (ours of one example, torch's mean, what its mean divides by for each example, the draw)
    "cross entropy": (cross_entropy, torch.nn.CrossEntropyLoss(), 1, curvature.draw_categorical),
    "squared": (squared, torch.nn.MSELoss(), CLASSES, curvature.draw_normal),  # torch's mean is over all elements
}
each = pytest.mark.parametrize("name", LOSSES)


def problem(name):
    """(params, x, targets, ours(outputs, target) of one example as torch counts it, torch net, torch loss, data)."""
    params, x, labels, targets = network()
    own, criterion, divisor, _ = LOSSES[name]
    targets = labels if name == "cross entropy" else targets
    loss = lambda y, t: own(y, t) / divisor  # noqa: E731
    data = [(torch.tensor(x.transpose(0, 3, 1, 2).copy()), torch.tensor(targets))]
    return params, jnp.asarray(x), jnp.asarray(targets), loss, torch_network(params), criterion, data


def theirs(linear_operator, net):
    return linear_operator @ torch.eye(sum(p.numel() for p in net.parameters()), dtype=torch.float64)


def test_the_networks_are_the_same():
    params, x, _, _, net, _, [(their_x, _)] = problem("squared")
    agree(predict(params, x), net(their_x), 1e-14)


# -- curvlinops -----------------------------------------------------------------------------------


@each
def test_hessian(name):
    """HessianLinearOperator."""
    params, x, targets, loss, net, criterion, data = problem(name)
    hessian = lambda p: curvature.hessian(lambda p: jax.vmap(loss)(predict(p, x), targets).mean(), p)  # noqa: E731
    agree(rows_in_torch_order(hessian, params), theirs(operator_of("Hessian", net, criterion, data), net), TOLERANCE)


def operator_of(kind, net, criterion, data, **settings):
    return getattr(curvlinops, f"{kind}LinearOperator")(net, criterion, list(net.parameters()), data, **settings)


@each
def test_gauss_newton(name):
    """GGNLinearOperator."""
    params, x, targets, loss, net, criterion, data = problem(name)
    score = lambda y: jax.vmap(loss)(y, targets).mean()  # noqa: E731
    ggn = lambda p: curvature.gauss_newton(lambda p: predict(p, x), score, p)  # noqa: E731
    agree(rows_in_torch_order(ggn, params), theirs(operator_of("GGN", net, criterion, data), net), TOLERANCE)


@each
def test_empirical_fisher(name):
    """EFLinearOperator, which is of the loss with no 1 / classes, divided by it once."""
    params, x, targets, _, net, criterion, data = problem(name)
    own, _, divisor, _ = LOSSES[name]
    fisher = lambda p: curvature.empirical_fisher(lambda p: jax.vmap(own)(predict(p, x), targets), p)  # noqa: E731
    expected = divisor * theirs(operator_of("EF", net, criterion, data), net)
    agree(rows_in_torch_order(fisher, params), expected, TOLERANCE)


@each
def test_fisher_of_their_draws(name):
    """FisherMCLinearOperator, given the very gradients that its generator draws."""
    params, x, _, _, net, criterion, data = problem(name)
    divisor, samples = LOSSES[name][2], 3
    expected = theirs(operator_of("FisherMC", net, criterion, data, seed=7, mc_samples=samples), net)
    generator = torch.Generator().manual_seed(7)
    drawn = make_grad_output_sampler(criterion)(net(data[0][0]).detach(), samples, data[0][1], generator)
    drawn = jnp.asarray(drawn.double().numpy())
    given = lambda p, g: curvature.fisher(lambda p: predict(p, x), lambda key, y: g, p, KEY)  # noqa: E731
    one = [rows_in_torch_order(lambda p, g=g: given(p, g), params) for g in drawn]
    agree(sum(one) / samples, divisor * expected, TOLERANCE)


# -- BackPACK -------------------------------------------------------------------------------------


def extended(net, criterion, data, extension, field):
    """What BackPACK leaves at each parameter."""
    net, criterion = backpack.extend(net), backpack.extend(criterion)
    [(x, targets)] = data
    net.zero_grad()
    with backpack.backpack(extension):
        criterion(net(x), targets).backward()
    return [getattr(p, field) for p in net.parameters()]


def agree_by_leaf(ours, theirs):
    for a, b in zip(in_torch_order(ours), theirs, strict=True):
        agree(a, b, TOLERANCE)


@each
def test_hessian_diagonal(name):
    """DiagHessian."""
    params, x, targets, loss, net, criterion, data = problem(name)
    mean = lambda p: jax.vmap(loss)(predict(p, x), targets).mean()  # noqa: E731
    found = extended(net, criterion, data, extensions.DiagHessian(), "diag_h")
    agree_by_leaf(jax.jit(lambda p: curvature.diagonal(curvature.hessian(mean, p)))(params), found)


@each
def test_gauss_newton_diagonal(name):
    """DiagGGNExact, both by example and by unit vectors."""
    params, x, targets, loss, net, criterion, data = problem(name)
    found = extended(net, criterion, data, extensions.DiagGGNExact(), "diag_ggn_exact")
    score = lambda y: jax.vmap(loss)(y, targets).mean()  # noqa: E731

    @jax.jit
    def ours(params):
        by_example = curvature.gauss_newton_diagonal(
            lambda p, e: predict(p, e[0][None])[0], lambda y, e: loss(y, e[1]), params, (x, targets), block=3
        )
        return by_example, curvature.diagonal(curvature.gauss_newton(lambda p: predict(p, x), score, params))

    for diagonal in ours(params):
        agree_by_leaf(diagonal, found)


@each
def test_monte_carlo_diagonal_in_law(name):
    """DiagGGNMC and the diagonal of our Fisher with as many samples: equal means within their errors, equal spreads."""
    params, x, _, _, net, criterion, data = problem(name)
    divisor, samples, many = LOSSES[name][2], 8, 200
    torch.manual_seed(0)
    runs = [extended(net, criterion, data, extensions.DiagGGNMC(mc_samples=samples), "diag_ggn_mc") for _ in range(40)]
    their = np.array([np.concatenate([np.ravel(a) for a in run]) for run in runs])

    def diagonal(key):
        f = lambda p: predict(p, x)  # noqa: E731
        return curvature.diagonal(curvature.fisher(f, LOSSES[name][3], params, key, samples=samples))

    our = jax.jit(lambda keys: jax.lax.map(diagonal, keys))(jax.random.split(KEY, many))
    our = np.concatenate([array.reshape(many, -1) for array in in_torch_order(our)], 1) / divisor
    error = np.sqrt(our.var(0) / len(our) + their.var(0) / len(their))
    alive = error > 0
    z = (our.mean(0) - their.mean(0))[alive] / error[alive]
    assert np.abs(z).max() < 5
    np.testing.assert_array_equal(our.mean(0)[~alive], their.mean(0)[~alive])
    ratio = np.sqrt(our.var(0)[alive].sum() / their.var(0)[alive].sum())
    assert 0.85 < ratio < 1.18, ratio
