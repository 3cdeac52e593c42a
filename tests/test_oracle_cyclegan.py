"""CycleGAN is the same mathematics as its networks and losses in PyTorch: forward, losses, gradients and a run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import agree, draw

from functrain import tree
from functrain.models import CycleGAN
from functrain.optim import Adam, Learner
from functrain.tasks import CycleTranslation
from functrain.tasks.cyclegan import from_pool
from functrain.train import state

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'functrain[oracle]'")
F, nn = torch.nn.functional, torch.nn
torch.set_num_threads(1)

pytestmark = [pytest.mark.oracle, pytest.mark.usefixtures("float64", "quick")]

WIDTH, BLOCKS, JUDGE, SIDE, RATE = 3, 2, 2, 16, 2e-3


class Block(nn.Module):
    """A residual block."""

    def __init__(self, n):
        super().__init__()
        conv = [nn.ReflectionPad2d(1), nn.Conv2d(n, n, 3), nn.InstanceNorm2d(n)]
        again = [nn.ReflectionPad2d(1), nn.Conv2d(n, n, 3), nn.InstanceNorm2d(n)]
        self.layers = nn.Sequential(*conv, nn.ReLU(), *again)

    def forward(self, x):
        return x + self.layers(x)


def generator():
    """torch's."""
    w, down, up = WIDTH, [], []
    for n in (w, 2 * w):
        down += [nn.Conv2d(n, 2 * n, 3, 2, 1), nn.InstanceNorm2d(2 * n), nn.ReLU()]
    for n in (4 * w, 2 * w):
        up += [nn.ConvTranspose2d(n, n // 2, 3, 2, 1, output_padding=1), nn.InstanceNorm2d(n // 2), nn.ReLU()]
    ends = [nn.ReflectionPad2d(3), nn.Conv2d(1, w, 7), nn.InstanceNorm2d(w), nn.ReLU()]
    out = [nn.ReflectionPad2d(3), nn.Conv2d(w, 1, 7), nn.Tanh()]
    return nn.Sequential(*ends, *down, *(Block(4 * w) for _ in range(BLOCKS)), *up, *out).double()


def judge():
    """torch's, of patches."""
    w = WIDTH
    layers = [nn.Conv2d(1, w, 4, 2, 1), nn.LeakyReLU(0.2)]
    layers += [nn.Conv2d(w, 2 * w, 4, 2, 1), nn.InstanceNorm2d(2 * w), nn.LeakyReLU(0.2)]
    layers += [nn.Conv2d(2 * w, 4 * w, 4, 1, 1), nn.InstanceNorm2d(4 * w), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(4 * w, 1, 4, 1, 1)).double()


def ours(module, names):
    """Its parameters in our layout, by our names in torch's order."""
    flat = {}
    convs = [m for m in module.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    for name, layer in zip(names, convs, strict=True):
        axes = (2, 3, 0, 1) if isinstance(layer, nn.ConvTranspose2d) else (2, 3, 1, 0)
        pair = {"kernel": layer.weight.permute(axes), "bias": layer.bias}
        flat[name] = {part: jnp.asarray(value.detach().numpy().copy()) for part, value in pair.items()}
    nested = {}
    for name, leaf in flat.items():
        head, _, rest = name.partition("/")
        nested = nested | {head: nested.get(head, {}) | {rest: leaf} if rest else leaf}
    return nested


BLOCK_NAMES = [f"block{i}/conv{j}" for i in range(BLOCKS) for j in range(2)]
GENERATOR = ["in", "down0", "down1", *BLOCK_NAMES, "up0", "up1", "out"]
JUDGE_NAMES = [f"conv{i}" for i in range(4)]


@pytest.fixture
def both():
    """torch's four networks, our task, and its train state with their weights."""
    torch.manual_seed(0)
    nets = {"there": generator(), "back": generator(), "x": judge(), "other": judge()}
    model = CycleGAN(width=WIDTH, blocks=BLOCKS, judge_width=WIDTH, judge_layers=JUDGE, inputs=(SIDE, SIDE))
    learner = Learner(optimizer=Adam(peak_lr=RATE, b1=0.5))
    learners = {"generators_learner": learner, "discriminators_learner": learner}
    task = dataclasses.replace(CycleTranslation(pool=4), model=model, **learners)
    train_state = jax.jit(lambda: state.init(task, jax.random.key(0)))()
    params = {
        "generators": {name: ours(nets[name], GENERATOR) for name in ("there", "back")},
        "discriminators": {name: ours(nets[name], JUDGE_NAMES) for name in ("x", "other")},
    }
    for name, own in params.items():
        shapes = jax.tree.map(jnp.shape, train_state.players[name].params)
        assert jax.tree.map(jnp.shape, own) == shapes
    players = {name: learner.init(own) for name, own in params.items()}
    return nets, task, train_state.replace(players=players)


def images(seed, n=3):
    """Images of both domains in 0..1."""
    return {
        name: jnp.asarray(1 / (1 + np.exp(-draw(seed + i, n, SIDE, SIDE)))) for i, name in enumerate(("x", "other"))
    }


def theirs(x):
    """Images as torch's, in -1..1."""
    return torch.tensor(2 * np.asarray(x) - 1)[:, None]


def generators_loss(nets, x, other, cycle=10.0, identity=0.5):
    """The paper's, in torch."""
    there, back = nets["there"](x), nets["back"](other)
    a, b = nets["other"](there), nets["x"](back)
    adversarial = F.mse_loss(a, torch.ones_like(a)) + F.mse_loss(b, torch.ones_like(b))
    again = F.l1_loss(nets["back"](there), x) + F.l1_loss(nets["there"](back), other)
    same = F.l1_loss(nets["back"](x), x) + F.l1_loss(nets["there"](other), other)
    parts = {"adversarial": adversarial, "cycle": cycle * again, "identity": cycle * identity * same}
    return parts, there, back


def judges_loss(nets, name, real, fake):
    """Of one domain."""
    a, b = nets[name](real), nets[name](fake)
    return 0.5 * (F.mse_loss(a, torch.ones_like(a)) + F.mse_loss(b, torch.zeros_like(b)))


def test_forward_and_losses(both):
    """Images, scores of patches, every part of the generators' loss and every gradient."""
    nets, task, train_state = both
    batch = images(0)
    x, other = theirs(batch["x"]), theirs(batch["other"])
    parts, there, _ = generators_loss(nets, x, other)
    found = task.outputs_of(train_state, batch["x"])
    agree(found["there"], (there[:, 0] + 1) / 2, 1e-12)
    agree(found["round_trip"], (nets["back"](there)[:, 0] + 1) / 2, 1e-12)
    judges = train_state.players["discriminators"].params
    scores, _ = task.model.discriminator.apply(judges["x"], {}, 2 * batch["x"] - 1)
    agree(scores, nets["x"](x)[:, 0], 1e-12)
    loss = task._generators_loss(judges)
    scaled = {name: 2 * image - 1 for name, image in batch.items()}

    def total(params):
        means, _, _ = loss(params, {}, scaled, key=None)
        return sum(m.total / m.count for m in means.values()), means

    slopes, means = jax.grad(total, has_aux=True)(train_state.players["generators"].params)
    for name, part in parts.items():
        agree(means[name].value, part, 1e-12)
    sum(parts.values()).backward()
    for name in ("there", "back"):
        with torch.no_grad():
            for p in nets[name].parameters():
                p.copy_(p.grad)
        for path, leaf in tree.by_path(ours(nets[name], GENERATOR)).items():
            # A bias before instance norm has no gradient but rounding.
            agree(tree.by_path(slopes[name])[path], leaf, 1e-10, size=max(np.abs(leaf).max(), 1e-3))


def test_a_run(both):
    """Twelve steps, past the filling of pools of 4: every loss of both players."""
    nets, task, train_state = both
    optimizers = [
        torch.optim.Adam([p for name in names for p in nets[name].parameters()], RATE, (0.5, 0.999))
        for names in (("there", "back"), ("x", "other"))
    ]
    pools = {name: {"images": jnp.zeros((4, SIDE, SIDE)), "kept": jnp.int32(0)} for name in ("x", "other")}
    update = jax.jit(task.update)
    found, expected, swapped = [], [], 0
    for step in range(12):
        batch, key = images(10 * step), jax.random.key(step)
        train_state, metrics = update(train_state, batch, key=key)
        x, other = theirs(batch["x"]), theirs(batch["other"])
        optimizers[0].zero_grad()
        parts, there, back = generators_loss(nets, x, other)
        made = sum(parts.values())
        made.backward()
        optimizers[0].step()
        keys, fakes = jax.random.split(key, 4)[:2], {}
        for name, k, image in (("x", keys[0], back), ("other", keys[1], there)):
            image = jnp.asarray(image.detach()[:, 0].numpy())
            chosen, pools[name] = from_pool(pools[name], image, key=k)
            swapped += int((np.asarray(chosen) != np.asarray(image)).any((1, 2)).sum())
            fakes[name] = torch.tensor(np.asarray(chosen))[:, None]
        optimizers[1].zero_grad()
        judged = judges_loss(nets, "x", x, fakes["x"]) + judges_loss(nets, "other", other, fakes["other"])
        judged.backward()
        optimizers[1].step()
        expected.append([made.item(), judged.item()])
        found.append([float(metrics[f"{name}_loss"].value) for name in ("generators", "discriminators")])
    assert 5 < swapped < 60
    assert np.ptp(expected, 0).min() > 0.1
    agree(np.array(found), np.array(expected), 1e-9)
    agree(train_state.state["pools"]["x"]["images"], pools["x"]["images"], 1e-7)


def test_the_pool():
    """The first images are kept and judged; then each is judged itself or changes places with a kept one, evenly."""
    pool = {"images": jnp.zeros((5, 1)), "kept": jnp.int32(0)}
    judged, pool = from_pool(pool, jnp.arange(1.0, 4.0)[:, None], key=jax.random.key(0))
    assert judged.ravel().tolist() == [1, 2, 3]
    assert pool["images"].ravel().tolist() == [1, 2, 3, 0, 0]
    fake = jnp.arange(4.0, 2004.0)[:, None]
    judged, after = from_pool(pool, fake, key=jax.random.key(1))
    assert judged[:2].ravel().tolist() == [4, 5]
    itself = np.asarray(judged == fake).ravel()[2:]
    assert abs(itself.mean() - 0.5) < 0.05
    seen = np.concatenate([judged.ravel(), after["images"].ravel()])
    # None is lost; those that were kept while there was room were judged then, and once more.
    assert sorted(seen[seen != 0].tolist()) == sorted([*fake.ravel().tolist(), 1, 2, 3, 4, 5])
    empty = {"images": jnp.zeros((0, 1)), "kept": jnp.int32(0)}
    assert from_pool(empty, fake, key=jax.random.key(2))[0] is fake
