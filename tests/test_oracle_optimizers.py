"""Optimizers and schedules are torch.optim's: trajectories of 100 updates in float64.

Both sides start from the same numbers and descend the same loss, each in its own operators, and are compared after each
update. Errors are relative to the largest magnitude in the array compared. torch.optim.Muon works in bfloat16; its
comparison lets it work in float64.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from functrain.metrics import Mean
from functrain.optim import (
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Exponential,
    Learner,
    Muon,
    NAdam,
    NAdamW,
    OneCycle,
    Plateau,
    Polynomial,
    RAdam,
    RAdamW,
    RMSprop,
    Step,
)
from functrain.train import hyper

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'functrain[oracle]'")
torch.set_num_threads(1)  # on arrays this small, threads only wait for one another

pytestmark = [pytest.mark.oracle, pytest.mark.usefixtures("float64")]

QUICK = {"xla_backend_optimization_level": 0}  # these programs take longer to compile than to run
STEPS = 1e-12  # 100 updates of an optimizer
RATE = 1e-13  # one learning rate; torch finds some of them by recursion


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)  # torch.optim.NAdam keeps its product of momenta in it
    with jax.enable_x64(True):
        yield
    torch.set_default_dtype(torch.float32)


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def tensor(x, grad=True):
    return torch.tensor(np.asarray(x), requires_grad=grad)


def agree(ours, theirs, tolerance):
    """Equal shapes, float64 on both sides, and no element off by more than tolerance * the largest of theirs."""
    ours, theirs = np.asarray(ours), np.asarray(theirs.detach() if isinstance(theirs, torch.Tensor) else theirs)
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype == np.float64
    error, size = np.max(np.abs(ours - theirs)), np.max(np.abs(theirs))
    assert error <= tolerance * size, f"off by {error / size:.1e}, allowed {tolerance:.0e}"


def network_loss(params, x, y, tanh):
    """A loss that is not convex, in operators that jax and torch share; parameters of two axes, one and none."""
    hidden = tanh(params["scale"] * (x @ params["kernel0"] + params["bias0"]))
    return ((tanh(hidden @ params["kernel1"] + params["bias1"]) - y) ** 2).mean()


START = {
    "kernel0": draw(0, 3, 5),
    "bias0": draw(1, 5),
    "kernel1": draw(2, 5, 2),
    "bias1": draw(3, 2),
    "scale": np.asarray(1.2),
}
X, Y = draw(4, 7, 3), np.tanh(draw(5, 7, 2))


def ours(optimizer, start, steps=100):
    """The parameters after each update, with every number of the optimizer traced."""

    def run(numbers, params):
        chain = hyper.bind(optimizer, numbers).build()

        def step(carry, _):
            params, state = carry
            updates, state = chain.update(gradient(params), state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        return jax.lax.scan(step, (params, chain.init(params)), length=steps)[1]

    return numbered(jax.jit(run, compiler_options=QUICK)(hyper.arrays(optimizer), jax.tree.map(jnp.asarray, start)))


def gradient(params):
    return jax.grad(network_loss)(params, jnp.asarray(X), jnp.asarray(Y), jnp.tanh)


def numbered(trajectory):
    return jax.tree.map(np.asarray, trajectory)


def descend_both(optimizer, torch_optimizer, start=START, transposed=False):
    """Both optimizers from one start, compared after every update; torch's kernels may stand as [out, in]."""
    trajectory = ours(optimizer, start)
    turn = (lambda v: v.T if v.ndim == 2 else v) if transposed else lambda v: v
    theirs = {name: tensor(turn(value)) for name, value in start.items()}
    torch_optimizer = torch_optimizer(theirs)
    torch_optimizer = torch_optimizer if isinstance(torch_optimizer, list) else [torch_optimizer]
    for i in range(100):
        for one in torch_optimizer:
            one.zero_grad()
        turned = {name: turn(value) for name, value in theirs.items()}
        network_loss(turned, tensor(X, grad=False), tensor(Y, grad=False), torch.tanh).backward()
        for one in torch_optimizer:
            one.step()
        for name, value in trajectory.items():
            agree(value[i], turn(theirs[name]), STEPS)
    moved = max(np.abs(value[-1] - start[name]).max() for name, value in trajectory.items())
    assert moved > 0.05  # they went somewhere


o = torch.optim
ALL = {"decay": (".",)}  # torch decays every parameter
# Numbers are chosen away from the defaults, and epsilons large enough that where they are added counts.
OPTIMIZERS = {
    "adagrad": (
        Adagrad(peak_lr=0.1, epsilon=0.1, initial=0.2, weight_decay=0.01, **ALL),
        lambda p: o.Adagrad(p, lr=0.1, eps=0.1, initial_accumulator_value=0.2, weight_decay=0.01),
    ),
    "adadelta": (
        Adadelta(peak_lr=0.5, rho=0.8, epsilon=0.01, weight_decay=0.01, **ALL),
        lambda p: o.Adadelta(p, lr=0.5, rho=0.8, eps=0.01, weight_decay=0.01),
    ),
    "rmsprop": (
        RMSprop(peak_lr=0.02, b2=0.9, epsilon=0.1, weight_decay=0.01, **ALL),
        lambda p: o.RMSprop(p, lr=0.02, alpha=0.9, eps=0.1, weight_decay=0.01),
    ),
    "rmsprop momentum": (
        RMSprop(peak_lr=0.01, b2=0.9, epsilon=0.1, momentum=0.8),
        lambda p: o.RMSprop(p, lr=0.01, alpha=0.9, eps=0.1, momentum=0.8),
    ),
    "rmsprop centered momentum": (
        RMSprop(peak_lr=0.01, b2=0.9, epsilon=0.1, momentum=0.8, centered=True),
        lambda p: o.RMSprop(p, lr=0.01, alpha=0.9, eps=0.1, momentum=0.8, centered=True),
    ),
    "adam amsgrad": (
        Adam(peak_lr=0.05, b1=0.8, b2=0.7, epsilon=0.01, amsgrad=True),
        lambda p: o.Adam(p, lr=0.05, betas=(0.8, 0.7), eps=0.01, amsgrad=True),
    ),
    "adamw amsgrad": (
        AdamW(peak_lr=0.05, b1=0.8, b2=0.7, epsilon=0.01, amsgrad=True, **ALL),
        lambda p: o.AdamW(p, lr=0.05, betas=(0.8, 0.7), eps=0.01, amsgrad=True),
    ),
    "nadam": (NAdam(), lambda p: o.NAdam(p)),
    "nadam epsilon": (
        NAdam(peak_lr=0.02, b1=0.8, b2=0.95, epsilon=0.01, momentum_decay=0.1, weight_decay=0.01, **ALL),
        lambda p: o.NAdam(p, lr=0.02, betas=(0.8, 0.95), eps=0.01, momentum_decay=0.1, weight_decay=0.01),
    ),
    "nadamw": (
        NAdamW(peak_lr=0.02, weight_decay=0.1, **ALL),
        lambda p: o.NAdam(p, lr=0.02, weight_decay=0.1, decoupled_weight_decay=True),
    ),
    "radam": (RAdam(peak_lr=0.02), lambda p: o.RAdam(p, lr=0.02)),
    "radam epsilon": (
        RAdam(peak_lr=0.02, b1=0.8, b2=0.95, epsilon=0.01, weight_decay=0.01, **ALL),
        lambda p: o.RAdam(p, lr=0.02, betas=(0.8, 0.95), eps=0.01, weight_decay=0.01),
    ),
    "radamw": (
        RAdamW(peak_lr=0.02, epsilon=0.01, weight_decay=0.1, **ALL),
        lambda p: o.RAdam(p, lr=0.02, eps=0.01, weight_decay=0.1, decoupled_weight_decay=True),
    ),
    "adamax": (
        Adamax(peak_lr=0.02, b1=0.8, b2=0.95, epsilon=0.01, weight_decay=0.01, **ALL),
        lambda p: o.Adamax(p, lr=0.02, betas=(0.8, 0.95), eps=0.01, weight_decay=0.01),
    ),
    "adafactor": (Adafactor(peak_lr=0.01), lambda p: o.Adafactor(p, lr=0.01)),
    "adafactor settings": (
        Adafactor(peak_lr=0.01, exponent=0.6, epsilon=0.02, smallest=0.9, threshold=1.1, weight_decay=0.01, **ALL),
        lambda p: o.Adafactor(p, lr=0.01, beta2_decay=-0.6, eps=(0.02, 0.9), d=1.1, weight_decay=0.01),
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer(name):
    """Each optimizer with torch.optim's: the parameters after each of 100 updates, its numbers live."""
    optimizer, theirs = OPTIMIZERS[name]
    descend_both(optimizer, lambda params: theirs(params.values()))


def test_adafactor_where_the_rate_is_bounded():
    """A rate above 1 / sqrt(t) most of the time, on gradients that are given: descent at such a rate is chaotic."""
    settings = {"exponent": 0.7, "epsilon": 0.3, "smallest": 0.9, "threshold": 0.8}
    chain = Adafactor(peak_lr=0.2, **settings).build()
    gradients = {name: 0.5 * draw(i, 100, *value.shape) for i, (name, value) in enumerate(START.items())}

    def step(carry, g):
        updates, state = chain.update(g, carry[1], carry[0])
        params = optax.apply_updates(carry[0], updates)
        return (params, state), params

    params = jax.tree.map(jnp.asarray, START)
    trajectory = numbered(jax.jit(lambda p, g: jax.lax.scan(step, (p, chain.init(p)), g)[1])(params, gradients))
    theirs = {name: tensor(value) for name, value in START.items()}
    torch_optimizer = o.Adafactor(theirs.values(), lr=0.2, beta2_decay=-0.7, eps=(0.3, 0.9), d=0.8 + 0.2)
    torch_optimizer.param_groups[0]["d"] = 0.8  # the constructor wants 1 or more; below it every step is clipped
    for i in range(100):
        for name, p in theirs.items():
            p.grad = tensor(gradients[name][i], grad=False)
        torch_optimizer.step()
        for name, value in trajectory.items():
            agree(value[i], theirs[name], STEPS)


@pytest.mark.parametrize(("adjust", "nesterov"), [("original", True), ("match_rms_adamw", False)])
def test_muon(adjust, nesterov, monkeypatch):
    """torch.optim.Muon for the kernels, which torch has as [out, in], and AdamW for the rest."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)  # so that rounding is all that may differ

    def theirs(params):
        rest = [p for p in params.values() if p.ndim != 2]
        kernels = [p for p in params.values() if p.ndim == 2]
        muon = o.Muon(kernels, lr=0.02, momentum=0.9, nesterov=nesterov, adjust_lr_fn=adjust)
        return [muon, o.AdamW(rest, lr=0.02, weight_decay=0.0)]

    # kernel0 is wide, kernel1 tall; torch's default decay, 0.1, is ours, and spares parameters of one axis.
    descend_both(Muon(peak_lr=0.02, momentum=0.9, nesterov=nesterov, adjust=adjust), theirs, transposed=True)


@pytest.mark.parametrize(
    ("here", "there"),
    [
        (RMSprop(b2=0.9, convention="optax"), optax.rmsprop(1e-2)),
        (RMSprop(momentum=0.8, convention="optax"), optax.rmsprop(1e-2, 0.99, momentum=0.8)),
        (
            RMSprop(centered=True, momentum=0.8, convention="optax"),
            optax.rmsprop(1e-2, 0.99, centered=True, momentum=0.8),
        ),
        (NAdam(convention="optax"), optax.nadam(2e-3)),
        (NAdamW(convention="optax", **ALL), optax.nadamw(2e-3, weight_decay=0.01)),
        (RAdam(convention="optax", epsilon=0.01), optax.radam(1e-3, eps=0.01)),
        (Adafactor(convention="optax"), optax.adafactor(1e-2)),
    ],
    ids=lambda x: getattr(x, "kind", ""),
)
def test_the_conventions_of_optax(here, there):
    """By name they are optax's, to rounding."""

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(params):
        def step(carry, _):
            updates, state = there.update(gradient(carry[0]), carry[1], carry[0])
            params = optax.apply_updates(carry[0], updates)
            return (params, state), params

        return jax.lax.scan(step, (params, there.init(params)), length=20)[1]

    theirs = numbered(run(jax.tree.map(jnp.asarray, START)))
    trajectory = ours(here, START, steps=20)
    for name, value in trajectory.items():
        # optax.adafactor takes its power of t in float32, and of a number in another last bit where that is live.
        agree(value, theirs[name], 1e-6 if here.kind == "adafactor" else STEPS)


# -- schedules ------------------------------------------------------------------------------------

PEAK = 0.3
lr = torch.optim.lr_scheduler


def after_warmup(optimizer, warmup, after):
    """Torch's schedule after a linear rise 1/warmup, 2/warmup, ... 1, whose last update is its first at the peak."""
    rise = lr.LinearLR(optimizer, 1 / warmup, 1.0, total_iters=warmup - 1)
    return lr.SequentialLR(optimizer, [rise, after], [warmup])


# Name: our schedule, torch's, and how many updates to compare.
SCHEDULES = {
    "exponential": (Exponential(steps=20, final=0.05), lambda s: lr.ExponentialLR(s, 0.05 ** (1 / 20)), 21),
    "exponential warmup": (
        Exponential(steps=24, warmup=4, final=0.05),
        lambda s: after_warmup(s, 4, lr.ExponentialLR(s, 0.05 ** (1 / 20))),
        25,
    ),
    "step": (Step(milestones=(5, 6, 12), gamma=0.3, steps=20), lambda s: lr.MultiStepLR(s, [5, 6, 12], 0.3), 30),
    # 0.07 * 100 and 0.55 * 100 are a little above 7 and 55
    "step shares": (Step(milestones=(0.07, 0.55), steps=100), lambda s: lr.MultiStepLR(s, [7, 55]), 60),
    "polynomial": (Polynomial(steps=20), lambda s: lr.PolynomialLR(s, 20, 2.0), 30),
    "polynomial warmup": (
        Polynomial(steps=23, warmup=3, power=0.7),
        lambda s: after_warmup(s, 3, lr.PolynomialLR(s, 20, 0.7)),
        30,
    ),
    "one cycle": (OneCycle(steps=20), lambda s: lr.OneCycleLR(s, PEAK, total_steps=20, cycle_momentum=False), 20),
    "one cycle settings": (
        OneCycle(steps=31, rise=0.45, start=0.2, final=0.002),
        lambda s: lr.OneCycleLR(
            s, PEAK, total_steps=31, pct_start=0.45, div_factor=5, final_div_factor=100, cycle_momentum=False
        ),
        31,
    ),
    "one cycle without a rise": (
        OneCycle(steps=12, rise=0.0),
        lambda s: lr.OneCycleLR(s, PEAK, total_steps=12, pct_start=0.0, cycle_momentum=False),
        12,
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule(name):
    """The rate that a functrain chain applies at each update with torch.optim.lr_scheduler's."""
    schedule, torch_schedule, updates = SCHEDULES[name]
    optimizer = SGD(peak_lr=PEAK, schedule=schedule)
    chain, one = optimizer.build(), jnp.ones(1)
    state = chain.init(one)
    torch_optimizer = torch.optim.SGD([tensor(np.zeros(1))], lr=PEAK)
    torch_schedule = torch_schedule(torch_optimizer)
    said, applied, theirs = [], [], []
    for _ in range(updates):
        said.append(optimizer.current_rate(state))
        update, state = chain.update(one, state, one)
        applied.append(-update[0])
        theirs.append(torch_optimizer.param_groups[0]["lr"])
        torch_optimizer.step()
        torch_schedule.step()
    agree(jnp.stack(said), np.array(theirs), RATE)
    agree(jnp.stack(applied), np.array(theirs), RATE)


@pytest.mark.parametrize(
    "settings",
    [
        {"patience": 0},
        {"patience": 2, "factor": 0.5, "threshold": 0.01},
        {"patience": 1, "factor": 0.3, "cooldown": 3, "final": 0.01},
        {"patience": 1, "factor": 0.5, "window": 4},
    ],
    ids=str,
)
def test_plateau(settings):
    """The rate after each update with ReduceLROnPlateau fed the means of the same windows."""
    optimizer = SGD(peak_lr=PEAK, schedule=Plateau(**({"window": 1} | settings)))
    chain, one = optimizer.build(), jnp.ones(1)
    state = chain.init(one)
    torch_optimizer = torch.optim.SGD([tensor(np.zeros(1))], lr=PEAK)
    names = {"patience": 10, "factor": 0.1, "threshold": 1e-4, "cooldown": 0}
    torch_schedule = lr.ReduceLROnPlateau(
        torch_optimizer,
        eps=0,
        min_lr=PEAK * settings.get("final", 0),
        **{k: settings.get(k, v) for k, v in names.items()},
    )
    # A loss that falls, stays, falls by less than the threshold, and rises.
    rng = np.random.default_rng(0)
    losses = np.concatenate([np.linspace(2, 1, 12), np.ones(12), np.linspace(1, 0.95, 12), np.linspace(0.9, 2, 12)])
    losses = losses + 0.01 * rng.normal(size=48)
    window = settings.get("window", 1)
    update_once = jax.jit(lambda state, value: chain.update(one, state, one, value=value))
    said, applied, theirs = [], [], []
    for i, loss in enumerate(losses):
        said.append(optimizer.current_rate(state))
        theirs.append(torch_optimizer.param_groups[0]["lr"])
        update, state = update_once(state, loss)
        applied.append(-update[0])
        torch_optimizer.step()
        if i % window == window - 1:
            torch_schedule.step(losses[i + 1 - window : i + 1].mean())
    agree(jnp.stack(said), np.array(theirs), RATE)
    agree(jnp.stack(applied), np.array(theirs), RATE)
    assert len(set(theirs)) > 2


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        # torch adds this epsilon before it corrects the bias, in SparseAdam alone
        (Adam(peak_lr=0.05, epsilon=1e-100), lambda p: torch.optim.SparseAdam(p, lr=0.05, eps=1e-100)),
        (Adagrad(peak_lr=0.05), lambda p: torch.optim.Adagrad(p, lr=0.05)),
        (SGD(peak_lr=0.05), lambda p: torch.optim.SGD(p, lr=0.05)),
    ],
    ids=["adam", "adagrad", "sgd"],
)
def test_sparse_tables_are_torchs_sparse_gradients(ours, theirs):
    """30 steps on a table of which each reads a few rows, some twice: torch.nn.Embedding(sparse=True)."""
    start, ids, target = draw(0, 40, 3), np.random.default_rng(1).integers(0, 15, (30, 5)), draw(2, 30, 5, 3)
    table = torch.nn.Embedding(40, 3, sparse=True, _weight=tensor(start, grad=False))
    optimizer = theirs(table.parameters())

    def loss(params, state, batch, *, key):
        rows = params["t"]["table"][batch["rows"]["t/table"]]
        return Mean(jnp.sum(jnp.square(rows - batch["y"]) * rows), jnp.ones(())), state, {}

    learner = Learner(optimizer=ours, rows=lambda batch: {"t/table": batch["x"]})
    player = learner.init({"t": {"table": jnp.asarray(start)}})
    step = jax.jit(lambda player, batch: learner.update(loss, player, {}, batch, key=jax.random.key(0))[0])
    for x, y in zip(ids, target):
        player = step(player, {"x": jnp.asarray(x), "y": jnp.asarray(y)})
        optimizer.zero_grad()
        rows = table(torch.tensor(x))
        (torch.square(rows - tensor(y, grad=False)) * rows).sum().backward()
        optimizer.step()
        agree(player.params["t"]["table"], table.weight.detach(), STEPS)
