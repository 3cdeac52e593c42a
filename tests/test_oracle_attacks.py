"""Attacks and defences are the same mathematics as PyTorch's: pixels, losses and gradients from the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import agree, draw, numbers

from functrain import tree
from functrain.autodiff import attacks
from functrain.metrics import Mean
from functrain.models import CNN
from functrain.models.strided_cnn import StridedCNN
from functrain.tasks.robust import Robust

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'functrain[oracle]'")
F = torch.nn.functional
torch.set_num_threads(1)

pytestmark = [pytest.mark.oracle, pytest.mark.usefixtures("quick")]

SHAPE = (16, 11, 14, 2)
BALLS = {"inf": {"epsilon": 0.1, "step_size": 0.01}, "l2": {"epsilon": 1.5, "step_size": 0.15}}


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """Both floating types in turn."""
    with jax.enable_x64(request.param == "float64"):
        yield request.param


def images(dtype):
    """Pixels of which a good many are black or white, and labels."""
    rng = np.random.default_rng(0)
    return np.clip(rng.normal(0.5, 0.4, SHAPE), 0, 1).astype(dtype), rng.integers(0, 5, SHAPE[0])


def turned(path, p):
    """Our layout as torch's: kernels of convolutions [out, in, h, w], linear ones [out, in]."""
    return np.transpose(p, {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[p.ndim])


def carried(params, grad=False):
    """Our parameters as torch's, by path."""
    arrays = {path: np.array(turned(path, p)) for path, p in tree.by_path(params).items()}
    return {path: torch.tensor(array, requires_grad=grad) for path, array in arrays.items()}


def drawn(shapes, dtype="float64"):
    """Parameters of these shapes: kernels of a size that keeps the signal's, the others small."""

    def one(path, shape):
        fan_in = np.prod(shape.shape[:-1]) if len(shape.shape) > 1 else 50
        return jnp.asarray((path.endswith("scale") + draw(len(path), *shape.shape) * np.sqrt(2 / fan_in)).astype(dtype))

    return tree.map_by_path(one, shapes)


def strided(dtype):
    """(our logits of x, torch's logits of x) of a network with strides, and both sides' parameters."""
    model = StridedCNN(inputs=SHAPE[1:], outputs=5, channels=(4, 6), kernels=(4, 3), hidden=(9,))
    params = drawn(jax.eval_shape(model.init, jax.random.key(0))[0], dtype)

    def theirs(p, x):
        x = x.permute(0, 3, 1, 2)
        x = F.relu(F.conv2d(x, p["conv0/kernel"], p["conv0/bias"], stride=2, padding=1))
        x = F.relu(F.conv2d(x, p["conv1/kernel"], p["conv1/bias"], stride=2, padding=1))
        x = x.permute(0, 2, 3, 1).flatten(1)
        x = F.relu(F.linear(x, p["linear0/kernel"], p["linear0/bias"]))
        return F.linear(x, p["linear1/kernel"], p["linear1/bias"])

    return (lambda params, x: model.apply(params, {}, x)[0]), theirs, params


def climb(loss, x, start, steps, epsilon, step_size, norm, sign=1):
    """Projected gradient ascent written in torch."""
    z = start
    for _ in range(steps):
        z = z.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(loss(z).sum(), z)
        if norm == "inf":
            z = torch.minimum(torch.maximum(z + sign * step_size * slope.sign(), x - epsilon), x + epsilon)
        else:
            length = slope.flatten(1).norm(dim=1)[:, None, None, None]
            length = length + (length == 0)  # where every unit is off there is no slope
            moved = z + sign * step_size * slope / length
            change = moved - x
            z = x + change * (epsilon / change.flatten(1).norm(dim=1)).clamp(max=1)[:, None, None, None]
        z = z.clamp(0, 1)
    return z.detach()


def same_pixels(ours, theirs, dtype):
    """All of them in float64 to 1e-9, 99.9 % in float32 to 1e-6."""
    ours, theirs = numbers(ours), numbers(theirs)
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype == dtype
    near = np.abs(ours - theirs) <= {"float32": 1e-6, "float64": 1e-9}[dtype]
    assert near.mean() >= {"float32": 0.999, "float64": 1.0}[dtype], f"{near.mean():.4%} agree"


def losses_of(dtype):
    """(our loss of x, torch's), one for each example."""
    ours, theirs, params = strided(dtype)
    _, y = images(dtype)
    p, labels = carried(params), torch.tensor(y)

    def our_loss(x):
        return -jnp.take_along_axis(jax.nn.log_softmax(ours(params, x)), jnp.asarray(y)[:, None], -1)[:, 0]

    return our_loss, lambda x: F.cross_entropy(theirs(p, x), labels, reduction="none")


@pytest.mark.usefixtures("float64")
def test_strided_cnn():
    """Logits, and gradients by every parameter and by the pixels."""
    ours, theirs, params = strided("float64")
    x, _ = images("float64")
    weights = draw(9, SHAPE[0], 5)

    @jax.jit
    def found(p, x):
        def total(p, x):
            logits = ours(p, x)
            return (logits * weights).sum(), logits

        return jax.grad(total, (0, 1), has_aux=True)(p, x)

    (gradients, by_x), our_logits = found(params, jnp.asarray(x))
    p, pixels = carried(params, grad=True), torch.tensor(x, requires_grad=True)
    logits = theirs(p, pixels)
    (logits * torch.tensor(weights)).sum().backward()
    agree(our_logits, logits, 1e-12)
    agree(by_x, pixels.grad, 1e-12)
    for path, gradient in tree.by_path(gradients).items():
        agree(turned(path, gradient), p[path].grad, 1e-12)


@pytest.mark.parametrize("norm", ["inf", "l2"])
def test_fgsm(dtype, norm):
    """One step of the whole epsilon, up and, targeted, down."""
    (ours, theirs), (x, _), epsilon = losses_of(dtype), images(dtype), BALLS[norm]["epsilon"]
    pixels, settings = torch.tensor(x), {"epsilon": epsilon, "norm": norm}
    attack = jax.jit(lambda x: [attacks.fgsm(ours, x, targeted=targeted, **settings) for targeted in (False, True)])
    for found, sign in zip(attack(jnp.asarray(x)), (1, -1), strict=True):
        same_pixels(found, climb(theirs, pixels, pixels, 1, epsilon, epsilon, norm, sign), dtype)


@pytest.mark.parametrize("norm", ["inf", "l2"])
def test_pgd(dtype, norm):
    """40 steps from the same random start."""
    (ours, theirs), (x, _), ball = losses_of(dtype), images(dtype), BALLS[norm]
    key = jax.random.key(3)

    @jax.jit
    def attack(x):
        start = attacks.random_point(x, key=jax.random.fold_in(key, 0), epsilon=ball["epsilon"], norm=norm)
        return start, attacks.pgd(ours, x, key=key, steps=40, norm=norm, **ball)

    start, found = attack(jnp.asarray(x))
    same_pixels(found, climb(theirs, torch.tensor(x), torch.tensor(np.array(start)), 40, norm=norm, **ball), dtype)
    assert np.abs(numbers(found) - numbers(start)).mean() > 0.01  # the steps did something


def test_the_worst_of_three_restarts(dtype):
    """Of each example the point of the largest loss."""
    (ours, theirs), (x, _), ball = losses_of(dtype), images(dtype), BALLS["inf"]
    key, pixels = jax.random.key(4), torch.tensor(x)

    @jax.jit
    def attack(x):
        keys = [jax.random.fold_in(key, i) for i in range(3)]
        starts = [attacks.random_point(x, key=k, epsilon=ball["epsilon"]) for k in keys]
        return starts, attacks.pgd(ours, x, key=key, steps=4, restarts=3, unroll=0, **ball)

    starts, found = attack(jnp.asarray(x))
    points = [climb(theirs, pixels, torch.tensor(np.array(start)), 4, norm="inf", **ball) for start in starts]
    best = torch.stack([theirs(z) for z in points]).argmax(0)
    assert len(set(best.tolist())) == 3
    same_pixels(found, torch.stack(points)[best, torch.arange(len(x))], dtype)


# -- defences -------------------------------------------------------------------------------------


def normed():
    """(our model, its parameters and statistics, torch's logits and new statistics) of a network with batch norm."""
    model = CNN(inputs=SHAPE[1:], outputs=5, channels=(3, 4), hidden=(7,), norm="batch")
    shapes, statistics = jax.eval_shape(model.init, jax.random.key(0))
    params, state = drawn(shapes), {}
    for i, (name, old) in enumerate(statistics.items()):
        mean, var = 0.1 * draw(i, *old["mean"].shape), 1 + draw(9 + i, *old["var"].shape) ** 2
        state[name] = {"mean": jnp.asarray(mean), "var": jnp.asarray(var)}

    def theirs(p, statistics, x, train):
        x = x.permute(0, 3, 1, 2)
        for i in range(2):
            x = F.conv2d(x, p[f"conv{i}/kernel"], p[f"conv{i}/bias"], padding=1)
            mean, var = statistics[f"norm{i}/mean"], statistics[f"norm{i}/var"]  # torch writes into them
            x = F.batch_norm(x, mean, var, p[f"norm{i}/scale"], p[f"norm{i}/bias"], training=train)
            x = F.max_pool2d(F.relu(x), 2)
        x = x.permute(0, 2, 3, 1).flatten(1)
        x = F.relu(F.linear(x, p["linear0/kernel"], p["linear0/bias"]))
        return F.linear(x, p["linear1/kernel"], p["linear1/bias"])

    return model, params, state, theirs


def compare_defence(task, expected, tolerance=1e-12):
    """Loss, gradients and statistics of the task in training beside `expected(theirs, p, statistics, x, y, key)`."""
    _, params, state, theirs = normed()
    x, y = images("float64")
    mask = np.array([1.0] * 12 + [0.0, 2.0, 1.0, 0.5])
    batch = {"x": jnp.asarray(x), "y": jnp.asarray(y), "mask": jnp.asarray(mask)}
    key = jax.random.key(6)

    def loss(params):
        means, new, _ = type(task).full_loss(task, params, state, batch, key=key, train=True)
        assert isinstance(means, Mean)
        return means.total / means.count, new

    (value, new), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    p, statistics = carried(params, grad=True), {k: torch.tensor(np.array(v)) for k, v in tree.by_path(state).items()}
    their_loss = expected(theirs, p, statistics, torch.tensor(x), torch.tensor(y), jax.random.split(key)[0])
    their_value = (their_loss * torch.tensor(mask)).sum() / mask.sum()
    their_value.backward()
    agree(value, their_value, tolerance)
    for path, found in tree.by_path(new).items():
        agree(found, statistics[path], tolerance)
    largest = max(float(q.grad.abs().max()) for q in p.values())
    for path, gradient in tree.by_path(gradients).items():
        agree(turned(path, gradient), p[path].grad, tolerance, largest)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("norm", ["inf", "l2"])
def test_trades(norm):
    """Zhang et al. 2019: the divergence is made large in evaluation mode, both passes that are learned from are not."""
    task = Robust(defence="trades", model=normed()[0], beta=4.0, steps=5, unroll=0, norm=norm, **BALLS[norm])

    def expected(theirs, p, statistics, x, y, key):
        held = {k: v.detach() for k, v in p.items()}
        clean = F.log_softmax(theirs(held, statistics, x, False), -1)

        def divergence(z):
            there = F.log_softmax(theirs(held, statistics, z, False), -1)
            return F.kl_div(there, clean, reduction="none", log_target=True)

        start = x + 0.001 * torch.tensor(np.array(jax.random.normal(key, x.shape, float)))
        near = climb(divergence, x, start, 5, norm=norm, **BALLS[norm])
        logits, there = theirs(p, statistics, x, True), theirs(p, statistics, near, True)
        apart = F.kl_div(F.log_softmax(there, -1), F.softmax(logits, -1), reduction="none").sum(-1)
        return F.cross_entropy(logits, y, reduction="none") + 4.0 * apart

    compare_defence(task, expected)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("defence", ["adversarial", "fast"])
def test_adversarial(defence):
    """Madry et al. 2018 and Wong et al. 2020: an attack in evaluation mode, then cross-entropy at its points."""
    # The lengths of the steps are left to the task; Wong's start is not cut to pixels.
    task = Robust(defence=defence, model=normed()[0], epsilon=0.1, steps=5, unroll=0)
    fast = defence == "fast"

    def expected(theirs, p, statistics, x, y, key):
        held = {k: v.detach() for k, v in p.items()}
        ends = {"low": -9.0, "high": 9.0} if fast else {}
        key = key if fast else jax.random.fold_in(key, 0)
        start = torch.tensor(np.array(attacks.random_point(jnp.asarray(x.numpy()), key=key, epsilon=0.1, **ends)))
        assert (float(start.min()) < 0) == fast

        def loss(z):
            return F.cross_entropy(theirs(held, statistics, z, False), y, reduction="none")

        near = climb(loss, x, start, 1, 0.1, 0.125, "inf") if fast else climb(loss, x, start, 5, 0.1, 0.05, "inf")
        return F.cross_entropy(theirs(p, statistics, near, True), y, reduction="none")

    compare_defence(task, expected)
