"""functrain is the same mathematics as PyTorch: layers, losses, optimizers, schedules, whole runs and the loss scale.

Everything but the loss scale is in float64, where two correct programs differ by rounding alone (about 1e-15) and a
wrong one by far more: the tolerances lie between. The two sides share numbers drawn by numpy, and for the optimizers
one formula. Torch's side is written in torch's own words (weights [out, in], one pass over the whole batch), so that
agreement says something.
"""

import math
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from float64 import agree, draw, numbers

from functrain import losses, tree
from functrain.layers import activations, layer_norm, linear
from functrain.models import MLP
from functrain.optim import SGD, Adam, AdamW, Constant, Cosine, Learner, Linear
from functrain.precision import Autocast, Float16, LossScale
from functrain.tasks import Classification, Regression
from functrain.train import state as train_state
from functrain.train.step import make_step

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'functrain[oracle]'")
F = torch.nn.functional
torch.set_num_threads(1)  # on arrays this small, threads only wait for one another

pytestmark = [pytest.mark.oracle, pytest.mark.usefixtures("float64")]

# Each is relative to the largest magnitude in the array compared.
FUNCTION = 1e-13  # one forward or backward pass
STEPS = 1e-12  # 100 updates of an optimizer
RATE = 1e-13  # one learning rate; torch finds some of them by recursion
RUN_LOSS = 1e-12  # every loss of a whole run
RUN_PARAMS = 1e-12  # the parameters at its end


# -- helpers --------------------------------------------------------------------------------------


def tensor(x, grad=True):
    """A torch tensor of its own memory: torch updates in place, and jax may hold numpy's memory as it is."""
    return torch.tensor(np.asarray(x), requires_grad=grad)


def pulled(f, cotangent, *arguments):
    """The value of f, and the gradients of sum(value * cotangent) by every argument."""
    value, pull = jax.vjp(f, *jax.tree.map(jnp.asarray, arguments))
    return value, pull(jnp.asarray(cotangent))


def to_torch(params):
    """Our nested parameters as torch's: path -> tensor, kernels turned to [out, in]."""
    return {path: tensor(_turned(path, p)) for path, p in tree.by_path(params).items()}


def agree_all(params, theirs, tolerance):
    """Our nested parameters agree with torch's by path."""
    ours = tree.by_path(params)
    assert ours.keys() == theirs.keys()
    for path, p in ours.items():
        agree(_turned(path, p), theirs[path], tolerance)


def _turned(path, p):
    return numbers(p).T if path.endswith("kernel") else numbers(p)


# -- layers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("lead", [(3,), (2, 3), ()], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_linear(bias, lead):
    """linear.apply with F.linear: value, and gradients by input, kernel and bias."""
    x, cotangent = draw(0, *lead, 5), draw(1, *lead, 7)
    params = {"kernel": draw(2, 5, 7)} | ({"bias": draw(3, 7)} if bias else {})
    y, (by_params, by_x) = pulled(linear.apply, cotangent, params, x)

    torch_x, torch_params = tensor(x), to_torch(params)
    torch_y = F.linear(torch_x, torch_params["kernel"], torch_params.get("bias"))
    torch_y.backward(tensor(cotangent, grad=False))
    agree(y, torch_y, FUNCTION)
    agree(by_x, torch_x.grad, FUNCTION)
    agree_all(by_params, {path: p.grad for path, p in torch_params.items()}, FUNCTION)


@pytest.mark.parametrize("epsilon", [None, 1e-2], ids=["default epsilon", "large epsilon"])
@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm(bias, epsilon):
    """layer_norm.apply with F.layer_norm: value, and gradients by input, scale and bias; both default epsilons too."""
    x, cotangent = 3 * draw(0, 3, 5, 7) + 2, draw(1, 3, 5, 7)
    params = {"scale": draw(2, 7)} | ({"bias": draw(3, 7)} if bias else {})
    ours = {} if epsilon is None else {"epsilon": epsilon}
    theirs = {} if epsilon is None else {"eps": epsilon}
    y, (by_params, by_x) = pulled(lambda params, x: layer_norm.apply(params, x, **ours), cotangent, params, x)

    torch_x, torch_params = tensor(x), to_torch(params)
    torch_y = F.layer_norm(torch_x, (7,), torch_params["scale"], torch_params.get("bias"), **theirs)
    torch_y.backward(tensor(cotangent, grad=False))
    agree(y, torch_y, FUNCTION)
    agree(by_x, torch_x.grad, FUNCTION)
    agree_all(by_params, {path: p.grad for path, p in torch_params.items()}, FUNCTION)


ACTIVATIONS = {
    "identity": lambda x: x * 1.0,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "selu": F.selu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "softplus": F.softplus,  # linear above 20 in torch, and so off by up to 2e-9 there: the values end at 20
    "sigmoid": F.sigmoid,
    "tanh": torch.tanh,
}


@pytest.mark.parametrize("name", get_args(activations.Name))
def test_activation(name):
    """Each activation with its torch counterpart: value and slope from -20 to 20, at zero too."""
    x, cotangent = np.concatenate([[0.0, -20.0, 20.0], np.linspace(-20, 20, 40), 3 * draw(0, 62)]), draw(1, 105)
    if name == "leaky_relu":
        cotangent[0] = 0.0  # at its kink any slope from 0.01 to 1 is a subgradient: jax takes 1, torch 0.01
    y, (by_x,) = pulled(activations.by_name(name), cotangent, x)

    torch_x = tensor(x)
    torch_y = ACTIVATIONS[name](torch_x)
    torch_y.backward(tensor(cotangent, grad=False))
    agree(y, torch_y, FUNCTION)
    agree(by_x, torch_x.grad, FUNCTION)


# -- losses ---------------------------------------------------------------------------------------

MASKS = {
    "none": lambda: None,
    "ragged": lambda: np.array([[1.0, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]]),
    "weights": lambda: np.abs(draw(9, 3, 5)),
    "rows": lambda: np.array([1.0, 0, 1]),  # leads the labels' shape: one entry a row
}


def masked(values, mask):
    """Torch's side of a masked mean: the sum over the counted elements, and how many they are."""
    mask = torch.ones_like(values) if mask is None else tensor(mask, grad=False)
    mask = mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim)).expand_as(values)
    return (values * mask).sum(), mask.sum()


def agree_mean(ours, theirs):
    (total, count), (torch_total, torch_count) = ours, theirs
    agree(total, torch_total, FUNCTION)
    agree(count, torch_count, FUNCTION)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(smoothing, mask):
    """losses.cross_entropy with F.cross_entropy (reduction none, masked by hand): sum, count and gradient."""
    logits, labels = 4 * draw(0, 3, 5, 7), np.random.default_rng(1).integers(0, 7, (3, 5))
    mask = MASKS[mask]()

    def mean(logits):
        loss = losses.cross_entropy(logits, jnp.asarray(labels), mask=_jax(mask), smoothing=smoothing)
        return loss.total / loss.count, (loss.total, loss.count)

    (_, ours), by_logits = jax.value_and_grad(mean, has_aux=True)(jnp.asarray(logits))

    torch_logits = tensor(logits)
    # Torch wants the classes on the second axis.
    each = F.cross_entropy(
        torch_logits.movedim(-1, 1), tensor(labels, grad=False), reduction="none", label_smoothing=smoothing
    )
    theirs = masked(each, mask)
    (theirs[0] / theirs[1]).backward()
    agree_mean(ours, theirs)
    agree(by_logits, torch_logits.grad, FUNCTION)


@pytest.mark.parametrize("mask", MASKS)
def test_squared_error(mask):
    """losses.squared_error with F.mse_loss: sum, count and gradients by predictions and targets."""
    predictions, targets = draw(0, 3, 5, 7), draw(1, 3, 5, 7)
    name, mask = mask, MASKS[mask]()

    def mean(predictions, targets):
        loss = losses.squared_error(predictions, targets, mask=_jax(mask))
        return loss.total / loss.count, (loss.total, loss.count)

    gradient = jax.value_and_grad(mean, (0, 1), has_aux=True)
    (value, ours), gradients = gradient(jnp.asarray(predictions), jnp.asarray(targets))

    pair = tensor(predictions), tensor(targets)
    theirs = masked(F.mse_loss(*pair, reduction="none"), mask)
    (theirs[0] / theirs[1]).backward()
    agree_mean(ours, theirs)
    agree(gradients[0], pair[0].grad, FUNCTION)
    agree(gradients[1], pair[1].grad, FUNCTION)
    if name == "none":
        agree(value, F.mse_loss(*pair), FUNCTION)


def _jax(x):
    return None if x is None else jnp.asarray(x)


# -- optimizers -----------------------------------------------------------------------------------


def network_loss(params, x, y, tanh):
    """A loss that is not convex, in operators that jax and torch share."""
    hidden = tanh(x @ params["kernel0"] + params["bias0"])
    return ((tanh(hidden @ params["kernel1"] + params["bias1"]) - y) ** 2).mean()


def descend_both(optimizer, torch_optimizer, *, steps=100, clip=None):
    """Both optimizers on `network_loss` from one start, compared after every update.

    Returns:
      The norm of the gradient before each update.
    """
    start = {"kernel0": draw(0, 3, 5), "bias0": draw(1, 5), "kernel1": draw(2, 5, 2), "bias1": draw(3, 2)}
    x, y = draw(4, 7, 3), np.tanh(draw(5, 7, 2))
    chain = optimizer.build()

    @jax.jit
    def step(params, state):
        gradients = jax.grad(network_loss)(params, jnp.asarray(x), jnp.asarray(y), jnp.tanh)
        updates, state = chain.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.asarray, start)
    state = chain.init(params)
    theirs = {name: tensor(value) for name, value in start.items()}
    torch_optimizer = torch_optimizer(theirs.values())
    norms = []
    for _ in range(steps):
        params, state = step(params, state)
        torch_optimizer.zero_grad()
        network_loss(theirs, tensor(x, grad=False), tensor(y, grad=False), torch.tanh).backward()
        norms.append(clip_in_torch(theirs.values(), clip))
        torch_optimizer.step()
        for name, value in params.items():
            agree(value, theirs[name], STEPS)
    return norms


def clip_in_torch(params, clip):
    """torch.nn.utils.clip_grad_norm_ less its 1e-6; the norm before."""
    params = list(params)
    norm = float(torch.nn.utils.clip_grad_norm_(params, math.inf if clip is None else clip))
    if clip is not None and norm > clip:
        # Torch divides by norm + 1e-6 against a zero norm, where optax compares first and divides by the norm itself:
        # the factor takes that out, and what is left must agree to rounding.
        for p in params:
            p.grad *= (norm + 1e-6) / norm
    return norm


ALL = {"decay": (".",)}  # torch decays every parameter; ours those with two or more axes, unless a pattern says more
OPTIMIZERS = {
    "sgd": (
        SGD(peak_lr=0.3),
        lambda p: torch.optim.SGD(p, lr=0.3),
    ),
    "sgd momentum": (
        SGD(peak_lr=0.1, momentum=0.9),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    ),
    "sgd nesterov": (
        SGD(peak_lr=0.1, momentum=0.9, nesterov=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    ),
    "sgd decay": (
        SGD(peak_lr=0.3, weight_decay=0.01, **ALL),
        lambda p: torch.optim.SGD(p, lr=0.3, weight_decay=0.01),
    ),
    "sgd momentum decay": (
        SGD(peak_lr=0.1, momentum=0.8, weight_decay=0.01, **ALL),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, weight_decay=0.01),
    ),
    "sgd nesterov decay": (
        SGD(peak_lr=0.1, momentum=0.8, nesterov=True, weight_decay=0.01, **ALL),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, nesterov=True, weight_decay=0.01),
    ),
    "adam": (
        Adam(peak_lr=0.02),
        lambda p: torch.optim.Adam(p, lr=0.02),
    ),
    # An epsilon as large as the gradients' roots, so that where it is added counts.
    "adam epsilon": (
        Adam(peak_lr=0.02, b1=0.8, b2=0.95, epsilon=0.01),
        lambda p: torch.optim.Adam(p, lr=0.02, betas=(0.8, 0.95), eps=0.01),
    ),
    "adam decay": (
        Adam(peak_lr=0.02, weight_decay=0.01, **ALL),
        lambda p: torch.optim.Adam(p, lr=0.02, weight_decay=0.01),
    ),
    "adamw default decay": (
        AdamW(peak_lr=0.02, **ALL),
        lambda p: torch.optim.AdamW(p, lr=0.02),  # 0.01 in both
    ),
    "adamw decay": (
        AdamW(peak_lr=0.02, weight_decay=0.3, b1=0.8, b2=0.95, **ALL),
        lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.3, betas=(0.8, 0.95)),
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer(name):
    """Each optimizer's chain with torch.optim: the parameters after each of 100 updates."""
    descend_both(*OPTIMIZERS[name])


CLIPPED = {
    "sgd": (
        SGD(peak_lr=0.3, clip_norm=0.2),
        lambda p: torch.optim.SGD(p, lr=0.3),
    ),
    "sgd momentum decay": (
        SGD(peak_lr=0.1, momentum=0.8, weight_decay=0.01, clip_norm=0.2, **ALL),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, weight_decay=0.01),
    ),
    "adamw": (
        AdamW(peak_lr=0.02, weight_decay=0.1, clip_norm=0.2, epsilon=0.01, **ALL),
        lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1, eps=0.01),
    ),
}


@pytest.mark.parametrize("name", CLIPPED)
def test_clipping(name):
    """clip_norm with clip_grad_norm_ before torch's step, on the way from gradients above the bound to some below."""
    norms = descend_both(*CLIPPED[name], clip=0.2)
    assert max(norms) > 0.2 > min(norms)


@pytest.mark.parametrize("clip", [0.5, 100.0])
def test_clipping_as_torch_has_it(clip):
    """The clipped gradient itself with clip_grad_norm_, torch's 1e-6 left in: relatively 1e-6 / norm apart, no more."""
    gradients = {"a": draw(0, 3, 5), "b": draw(1, 7)}
    chain = SGD(peak_lr=1.0, clip_norm=clip).build()
    ours = jax.tree.map(jnp.asarray, gradients)
    updates, _ = chain.update(ours, chain.init(ours), ours)

    theirs = {name: tensor(np.zeros_like(g)) for name, g in gradients.items()}
    for name, p in theirs.items():
        p.grad = tensor(gradients[name], grad=False)
    norm = float(torch.nn.utils.clip_grad_norm_(theirs.values(), clip))
    assert 0.5 < norm < 100  # one bound bites, the other does not
    for name, p in theirs.items():
        agree(-updates[name], p.grad, 1.001e-6 / norm if norm > clip else FUNCTION)


# -- schedules ------------------------------------------------------------------------------------

PEAK = 0.3
lr = torch.optim.lr_scheduler


def after_warmup(optimizer, warmup, after):
    """Torch's schedule after a linear rise 1/warmup, 2/warmup, ... 1, whose last update is its first at the peak."""
    rise = lr.LinearLR(optimizer, 1 / warmup, 1.0, total_iters=warmup - 1)
    return lr.SequentialLR(optimizer, [rise, after], [warmup])


# Name: our schedule, torch's, and how many updates to compare. CosineAnnealingLR rises again beyond its
# end, where ours stays, so that the cosines coincide up to the horizon and no further.
SCHEDULES = {
    "constant": (
        Constant(),
        lambda o: lr.LambdaLR(o, lambda i: 1.0),
        10,
    ),
    "constant warmup": (
        Constant(warmup=4),
        lambda o: after_warmup(o, 4, lr.ConstantLR(o, 1.0)),
        10,
    ),
    "linear": (
        Linear(steps=20),
        lambda o: lr.LinearLR(o, 1.0, 0.0, total_iters=20),
        30,
    ),
    "linear final": (
        Linear(steps=20, final=0.25),
        lambda o: lr.LinearLR(o, 1.0, 0.25, total_iters=20),
        30,
    ),
    "linear warmup": (
        Linear(steps=20, warmup=5, final=0.25),
        lambda o: after_warmup(o, 5, lr.LinearLR(o, 1.0, 0.25, total_iters=15)),
        30,
    ),
    "cosine": (
        Cosine(steps=20),
        lambda o: lr.CosineAnnealingLR(o, 20),
        21,
    ),
    "cosine final": (
        Cosine(steps=20, final=0.25),
        lambda o: lr.CosineAnnealingLR(o, 20, eta_min=0.25 * PEAK),
        21,
    ),
    "cosine warmup": (
        Cosine(steps=20, warmup=5, final=0.25),
        lambda o: after_warmup(o, 5, lr.CosineAnnealingLR(o, 15, eta_min=0.25 * PEAK)),
        21,
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule(name):
    """The rate that a functrain chain applies at each update with torch.optim.lr_scheduler's."""
    schedule, torch_schedule, updates = SCHEDULES[name]
    ours = SGD(peak_lr=PEAK, schedule=schedule)
    chain, one = ours.build(), jnp.ones(1)
    state = chain.init(one)

    torch_optimizer = torch.optim.SGD([tensor(np.zeros(1))], lr=PEAK)
    torch_schedule = torch_schedule(torch_optimizer)
    said, applied, theirs = [], [], []
    for _ in range(updates):
        said.append(ours.rate(ours.updates(state)))
        update, state = chain.update(one, state, one)
        applied.append(-update[0])
        theirs.append(torch_optimizer.param_groups[0]["lr"])
        torch_optimizer.step()
        torch_schedule.step()
    agree(jnp.stack(said), np.array(theirs), RATE)
    agree(jnp.stack(applied), np.array(theirs), RATE)


# -- whole runs -----------------------------------------------------------------------------------


def begin(task, seed):
    """A train state whose parameters numpy drew, norms and biases included, in float64."""
    state = jax.jit(lambda: train_state.init(task, jax.random.key(0)))()
    shapes = state.players["model"].params
    count = iter(range(seed, seed + 1000))
    params = jax.tree.map(lambda p: jnp.asarray(0.5 * draw(next(count), *p.shape)), shapes)
    return state.replace(players={"model": task.learner.init(params)})


def run(task, state, batches):
    """The train state after a step on each batch, and every step's metrics divided."""
    step = jax.jit(make_step(task))
    history = []
    for batch in batches:
        state, metrics = step(state, jax.tree.map(jnp.asarray, batch))
        history.append({name: metric.value for name, metric in metrics.items()})
    assert int(train_state.skipped(state)) == 0
    return state, history


def ragged_batches(count, rows, target, seed=1):
    """Batches {x, y, mask} whose masks count differently many rows, a whole micro-batch of two empty at times."""
    generator = np.random.default_rng(seed)
    for i in range(count):
        mask = (generator.random(rows) < 0.6).astype(float)
        if i % 10 == 0:
            mask[1::2] = 0.0
        mask[0] = 1.0
        yield {"x": generator.normal(size=(rows, 3, 5)), "y": target(generator), "mask": mask}


def torch_logits(params, x, activation):
    """Two hidden layers with layer norm, by hand."""
    x = x.flatten(1)
    for i in range(2):
        x = F.linear(x, params[f"layer{i}/kernel"], params[f"layer{i}/bias"])
        x = activation(F.layer_norm(x, x.shape[-1:], params[f"norm{i}/scale"], params[f"norm{i}/bias"]))
    return F.linear(x, params["layer2/kernel"], params["layer2/bias"])


@pytest.mark.parametrize("activation", ["tanh", "gelu"])
def test_classification_run(activation):
    """50 steps of a classification task, accumulated over two micro-batches, with torch on the whole batches.

    MLP with layer norm, label smoothing, AdamW that decays kernels alone, clipping, warmup and cosine, ragged masks:
    every loss, gradient norm, learning rate and accuracy, the last parameters, and evaluation on one batch more.
    """
    steps, warmup, peak, clip = 50, 5, 0.02, 0.7
    task = Classification(
        label_smoothing=0.1,
        model=MLP(inputs=(3, 5), outputs=4, hidden=(7, 6), norm="layer", activation=activation),
        learner=Learner(
            optimizer=AdamW(
                peak_lr=peak, weight_decay=0.1, clip_norm=clip, schedule=Cosine(warmup=warmup, steps=steps, final=0.1)
            ),
            accumulate=2,
        ),
    )
    *batches, held_out = ragged_batches(steps + 1, 8, lambda generator: generator.integers(0, 4, 8))
    start = begin(task, seed=100)
    state, history = run(task, start, batches)

    theirs = to_torch(start.players["model"].params)
    torch_optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in theirs.values() if p.ndim >= 2], "weight_decay": 0.1},
            {"params": [p for p in theirs.values() if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=peak,
    )

    def share(i):
        if i < warmup:
            return (i + 1) / warmup
        return 0.1 + 0.9 * (1 + math.cos(math.pi * (i - warmup) / (steps - warmup))) / 2

    schedule = lr.LambdaLR(torch_optimizer, share)
    clipped = 0
    for batch, metrics in zip(batches, history, strict=True):
        x, y, mask = (tensor(batch[name], grad=False) for name in ("x", "y", "mask"))
        logits = torch_logits(theirs, x, ACTIVATIONS[activation])
        loss = (F.cross_entropy(logits, y, reduction="none", label_smoothing=0.1) * mask).sum() / mask.sum()
        torch_optimizer.zero_grad()
        loss.backward()
        norm = clip_in_torch(theirs.values(), clip)
        clipped += norm > clip
        agree(metrics["loss"], loss, RUN_LOSS)
        agree(metrics["gradient_norm"], np.float64(norm), RUN_LOSS)
        agree(metrics["learning_rate"], np.float64(torch_optimizer.param_groups[0]["lr"]), RATE)
        assert metrics["accuracy"] == np.float32(((logits.argmax(-1) == y) * mask).sum() / mask.sum())
        torch_optimizer.step()
        schedule.step()
    assert 0 < clipped < steps
    agree_all(state.players["model"].params, theirs, RUN_PARAMS)

    # Evaluation smooths no labels.
    evaluate = jax.jit(lambda state, batch: task.evaluate(state, batch, key=jax.random.key(0)))
    metrics = evaluate(state, jax.tree.map(jnp.asarray, held_out))
    x, y, kept = tensor(held_out["x"], grad=False), held_out["y"], held_out["mask"] == 1
    logits = torch_logits(theirs, x, ACTIVATIONS[activation])[kept]
    agree(metrics["loss"].value, F.cross_entropy(logits, tensor(y[kept], grad=False)), RUN_LOSS)
    confusion = np.zeros((4, 4))
    np.add.at(confusion, (y[kept], numbers(logits.argmax(-1))), 1)
    assert (metrics["confusion"].value == confusion).all()


@pytest.mark.parametrize("width", [(), (2,)], ids=["y [n]", "y [n, 2]"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_regression_run(accumulate, width):
    """20 steps of a regression task by SGD with momentum, with a torch.nn.Sequential: losses, errors, parameters."""
    task = Regression(
        model=MLP(inputs=(3, 5), outputs=math.prod(width), hidden=(7,), activation="tanh"),
        learner=Learner(optimizer=SGD(peak_lr=0.02, momentum=0.9, weight_decay=0.01), accumulate=accumulate),
    )
    batches = list(ragged_batches(20, 6, lambda generator: generator.normal(size=(6, *width))))
    start = begin(task, seed=200)
    state, history = run(task, start, batches)

    names = ["layer0/kernel", "layer0/bias", "layer1/kernel", "layer1/bias"]
    nn = torch.nn
    model = nn.Sequential(nn.Flatten(), nn.Linear(15, 7), nn.Tanh(), nn.Linear(7, math.prod(width))).double()
    theirs = dict(zip(names, model.parameters(), strict=True))
    with torch.no_grad():
        for path, value in to_torch(start.players["model"].params).items():
            theirs[path].copy_(value)
    decayed, others = ([p for p in theirs.values() if (p.ndim >= 2) is two] for two in (True, False))
    torch_optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": 0.01}, {"params": others}], lr=0.02, momentum=0.9
    )
    for batch, metrics in zip(batches, history, strict=True):
        kept = batch["mask"] == 1  # rows that are not counted do not reach torch at all
        x, y = (tensor(batch[name][kept], grad=False) for name in ("x", "y"))
        outputs = model(x)
        loss = F.mse_loss(outputs, y.reshape(outputs.shape))
        torch_optimizer.zero_grad()
        loss.backward()
        torch_optimizer.step()
        agree(metrics["loss"], loss, RUN_LOSS)
        agree(metrics["absolute_error"], F.l1_loss(outputs, y.reshape(outputs.shape)), RUN_LOSS)
    agree_all(state.players["model"].params, theirs, RUN_PARAMS)


# -- the loss scale -------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [Float16, Autocast])
def test_loss_scale(policy):
    """300 updates, some not finite: scale, skipped updates and parameters equal torch.amp.GradScaler's exactly.

    Both LossScale.updated by itself and a float16 learner, whose finite gradient is 2^-14: a power of two, exact in
    float16 under every scale that the sequence reaches.
    """
    finite = np.random.default_rng(0).random(300) < 0.9
    growth_every, gradient, rate = 7, 2.0**-14, 2.0**-3

    parameter = torch.ones(1, requires_grad=True)
    sgd = torch.optim.SGD([parameter], lr=rate)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=growth_every)
    low = {"dtype": "float16"} if policy is Autocast else {}
    learner = Learner(optimizer=SGD(peak_lr=rate), precision=policy(growth_every=growth_every, **low))
    player = learner.init({"w": jnp.ones(1, jnp.float32)})
    alone = LossScale(jnp.float32(2.0**16), jnp.int32(0))

    def loss(params, state, batch, *, key):
        assert params["w"].dtype == (jnp.float16 if policy is Float16 else jnp.float32)  # autocast is traced in float32
        return losses.mean_of(tree.wide(params["w"]) * batch["weight"]), state, {}

    update = jax.jit(lambda player, x: learner.update(loss, player, {}, {"weight": x}, key=jax.random.key(0))[0])
    updated = jax.jit(LossScale.updated, static_argnums=2)
    scales, skipped = [], 0
    for is_finite in finite:
        factor = gradient if is_finite else math.inf
        sgd.zero_grad()
        before = parameter.item()
        scaler.scale((parameter * factor).sum()).backward()
        scaler.step(sgd)
        scaler.update()
        skipped += parameter.item() == before

        player = update(player, jnp.full(1, factor, jnp.float32))
        alone = updated(alone, jnp.asarray(is_finite), growth_every)
        scales.append(scaler.get_scale())
        assert float(alone.value) == float(player.scale.value) == scales[-1]
        assert int(player.skipped) == skipped
        assert player.params["w"].item() == parameter.item()
    assert alone.value.dtype == player.scale.value.dtype == jnp.float32
    assert skipped == np.sum(~finite) > 20
    assert max(scales) > 2.0**16 > min(scales)  # it grew beyond the start and fell below it
    assert max(scales) * gradient < np.finfo(np.float16).max
