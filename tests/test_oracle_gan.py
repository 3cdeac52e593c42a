"""A DCGAN learns as its twin in PyTorch does: every loss, parameter and statistic of a run, from the same noise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import agree, draw

from functrain import tree
from functrain.layers import spectral_norm
from functrain.models import DCGAN
from functrain.optim import Adam, Learner
from functrain.tasks import GAN
from functrain.train import state

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'functrain[oracle]'")
F, nn = torch.nn.functional, torch.nn
torch.set_num_threads(1)

pytestmark = [pytest.mark.oracle, pytest.mark.usefixtures("float64", "quick")]

SIDE, LATENT, WIDTH, RATE = 16, 5, 3, 2e-3


def twins(spectral=False, norm="batch", side=SIDE):
    """torch's generator and discriminator of two strides, written out."""
    start = side // 4
    generator = nn.Sequential(
        nn.ConvTranspose2d(LATENT, 2 * WIDTH, start, bias=False),
        nn.BatchNorm2d(2 * WIDTH),
        nn.ReLU(),
        nn.ConvTranspose2d(2 * WIDTH, WIDTH, 4, 2, 1, bias=False),
        nn.BatchNorm2d(WIDTH),
        nn.ReLU(),
        nn.ConvTranspose2d(WIDTH, 1, 4, 2, 1, bias=False),
        nn.Tanh(),
    )
    normed = nn.utils.spectral_norm if spectral else (lambda layer: layer)
    middle = {"batch": [nn.BatchNorm2d(2 * WIDTH)], "instance": [nn.InstanceNorm2d(2 * WIDTH, affine=True)], "none": []}
    discriminator = nn.Sequential(
        normed(nn.Conv2d(1, WIDTH, 4, 2, 1, bias=False)),
        nn.LeakyReLU(0.2),
        normed(nn.Conv2d(WIDTH, 2 * WIDTH, 4, 2, 1, bias=False)),
        *middle[norm],
        nn.LeakyReLU(0.2),
        normed(nn.Conv2d(2 * WIDTH, 1, start, bias=False)),
        nn.Flatten(0),
    )
    return generator.double(), discriminator.double()


def layers(module):
    """torch's layers with parameters by our names: conv0, norm0 ..."""
    found, convs = {}, -1
    for layer in module:
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            convs += 1
            found[f"conv{convs}"] = layer
        elif isinstance(layer, (nn.BatchNorm2d, nn.InstanceNorm2d)):
            found[f"norm{convs}"] = layer
    return found


def turned(layer, kernel):
    """A kernel of torch's in our layout, [height, width, inputs, outputs]."""
    return kernel.permute(2, 3, 0, 1) if isinstance(layer, nn.ConvTranspose2d) else kernel.permute(2, 3, 1, 0)


def ours(module):
    """(parameters, state) of torch's module as ours."""
    params, held = {}, {}
    for name, layer in layers(module).items():
        own = dict(layer.named_parameters())
        if name.startswith("conv"):
            params[name] = {"kernel": turned(layer, own.get("weight_orig", own.get("weight")))}
            if hasattr(layer, "weight_u"):
                # torch's rows are (inputs, height, width), ours (height, width, inputs)
                v = layer.weight_v.reshape(layer.weight.shape[1:]).permute(1, 2, 0).reshape(-1)
                held[f"spectral{name[4:]}"] = {"u": layer.weight_u, "v": v}
        else:
            params[name] = {"scale": own["weight"], "bias": own["bias"]}
            if isinstance(layer, nn.BatchNorm2d):
                held[name] = {"mean": layer.running_mean, "var": layer.running_var}
    return jax.tree.map(lambda x: jnp.asarray(x.detach().numpy().copy()), (params, held))


def task_of(generator, discriminator, side=SIDE, spectral=False, norm="batch", **settings):
    """(our task, its train state with torch's weights)."""
    model = DCGAN(latent=LATENT, width=WIDTH, norm=norm, spectral=spectral, inputs=(side, side))
    learner = Learner(optimizer=Adam(peak_lr=RATE, b1=0.5))
    task = GAN(**settings)
    task = dataclasses.replace(task, model=model, generator_learner=learner, discriminator_learner=learner)
    train_state = jax.jit(lambda: state.init(task, jax.random.key(0)))()
    parts = {"generator": ours(generator), "discriminator": ours(discriminator)}
    players = {name: learner.init(params) for name, (params, _) in parts.items()}
    held = {name: own for name, (_, own) in parts.items()}
    assert jax.tree.map(jnp.shape, held) == jax.tree.map(jnp.shape, train_state.state)
    return task, train_state.replace(players=players, state=held)


def losses_of(kind, real, fake, smoothing=0.0):
    """The discriminator's loss in torch."""
    one, zero = torch.ones_like(real), torch.zeros_like(fake)
    if kind == "logistic":
        bce = F.binary_cross_entropy_with_logits
        return bce(real, one * (1 - smoothing)) + bce(fake, zero)
    if kind == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    if kind == "wasserstein":
        return fake.mean() - real.mean()
    return 0.5 * (F.mse_loss(real, one) + F.mse_loss(fake, zero))


def made_of(kind, fake):
    """The generator's loss in torch."""
    if kind == "logistic":
        return F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake))
    return 0.5 * F.mse_loss(fake, torch.ones_like(fake)) if kind == "least_squares" else -fake.mean()


class Program:
    """The training program of the paper's followers, in torch."""

    def __init__(self, generator, discriminator, kind="logistic", penalty=0.0, smoothing=0.0):
        self.g, self.d, self.kind, self.penalty, self.smoothing = generator, discriminator, kind, penalty, smoothing
        self.opt_g, self.opt_d = (torch.optim.Adam(m.parameters(), RATE, (0.5, 0.999)) for m in (self.g, self.d))

    def learn_to_judge(self, x, z, mix):
        """A step of the discriminator; its loss."""
        self.opt_d.zero_grad()
        with torch.no_grad():
            held = {k: v.clone() for k, v in self.g.state_dict().items()}
            fake = self.g(z)
            self.g.load_state_dict(held)  # the generator's statistics are moved by its own loss alone
        loss = losses_of(self.kind, self.d(x), self.d(fake), self.smoothing)
        if self.penalty:
            # For a penalty without batch norm: a pass through it would move the statistics.
            mix = mix.reshape(-1, 1, 1, 1)
            between = (mix * x + (1 - mix) * fake).requires_grad_(True)
            slope = torch.autograd.grad(self.d(between).sum(), between, create_graph=True)[0]
            loss = loss + self.penalty * ((slope.flatten(1).norm(dim=1) - 1) ** 2).mean()
        loss.backward()
        self.opt_d.step()
        return loss

    def learn_to_make(self, z):
        """A step of the generator; its loss."""
        self.opt_g.zero_grad()
        held = {k: v.clone() for k, v in self.d.named_buffers()}
        loss = made_of(self.kind, self.d(self.g(z)))
        loss.backward()
        self.opt_g.step()
        for k, v in self.d.named_buffers():
            v.copy_(held[k])  # nor are the discriminator's moved by the generator's loss
        return loss


def theirs(x):
    """Images [n, height, width] in 0..1 as torch's."""
    return torch.tensor(2 * np.asarray(x) - 1)[:, None]


def followed(settings, steps, side=SIDE, batch=8, **model):
    """Losses of our task and of the program, [steps, 2] each, and both at their end."""
    torch.manual_seed(0)
    generator, discriminator = twins(side=side, **model)
    with torch.no_grad():  # from the same noise, statistics apart from their first values
        generator(torch.randn(8, LATENT, 1, 1, dtype=torch.float64))
    task, train_state = task_of(generator, discriminator, side, **model, **settings)
    names = {"loss": "kind", "gradient_penalty": "penalty", "smoothing": "smoothing"}
    program = Program(generator, discriminator, **{names[k]: v for k, v in settings.items() if k in names})
    update, critic = jax.jit(task.update), settings.get("critic_steps", 1)
    found, expected = [], []
    for step in range(steps):
        x = 1 / (1 + np.exp(-draw(step, batch * critic, side, side)))
        key = jax.random.key(step)
        train_state, metrics = update(train_state, {"x": jnp.asarray(x)}, key=key)
        noise_key, mix_key = jax.random.split(key, 3 + critic)[:2]
        z = torch.tensor(np.asarray(jax.random.normal(noise_key, (len(x), LATENT))))[..., None, None]
        mix = torch.tensor(np.asarray(jax.random.uniform(mix_key, (len(x),))))
        parts = [slice(i * batch, (i + 1) * batch) for i in range(critic)]
        judged = [program.learn_to_judge(theirs(x[part]), z[part], mix[part]).item() for part in parts]
        expected.append([np.mean(judged), program.learn_to_make(z[parts[-1]]).item()])
        found.append([metrics[f"{name}_loss"].value for name in ("discriminator", "generator")])
    return np.array(found), np.array(expected), train_state, (generator, discriminator)


def test_fifty_steps():
    """Every loss of 50 steps; then parameters and running statistics of both players."""
    found, expected, train_state, modules = followed({}, 50)
    assert np.ptp(expected, 0).min() > 0.1
    agree(found, expected, 1e-9)
    for name, module in zip(("generator", "discriminator"), modules):
        params, held = ours(module)
        for mine, other in ((train_state.players[name].params, params), (train_state.state[name], held)):
            for path, leaf in tree.by_path(other).items():
                agree(tree.by_path(mine)[path], leaf, 1e-7)


@pytest.mark.parametrize(
    ("settings", "model"),
    [
        ({"smoothing": 0.1}, {}),
        ({"loss": "least_squares"}, {}),
        ({"loss": "hinge"}, {"spectral": True, "norm": "none"}),
        ({"loss": "hinge"}, {"spectral": True}),
        ({"loss": "wasserstein", "gradient_penalty": 10.0, "critic_steps": 3}, {"norm": "instance"}),
        ({"gradient_penalty": 2.0}, {"norm": "none"}),
    ],
    ids=str,
)
def test_each_loss(settings, model):
    """Ten steps of each loss, norm and penalty."""
    found, expected, *_ = followed(settings, 10, **model)
    assert np.ptp(expected, 0).min() > 1e-3
    agree(found, expected, 1e-9)


def test_sides():
    """Maps that start at 5 and 7 places make sides of 20 and 28."""
    for side in (20, 28):
        found, expected, *_ = followed({}, 3, side=side, batch=4)
        agree(found, expected, 1e-11)


def test_evaluation_mode():
    """Images and scores by the running statistics, in 0..1 and as torch gives them."""
    *_, train_state, (generator, discriminator) = followed({}, 5)
    task, _ = task_of(generator, discriminator)
    key = jax.random.key(7)
    images = task.sample(train_state, 6, key=key)
    z = torch.tensor(np.asarray(jax.random.normal(key, (6, LATENT))))[..., None, None]
    generator.eval()
    agree(images, (generator(z)[:, 0] + 1) / 2, 1e-8)
    discriminator.eval()
    agree(task.outputs_of(train_state, images)["score"], discriminator(theirs(images)), 1e-8)


def test_spectral_norm():
    """Kernel, directions and gradient of torch's, in training and evaluation; and after many steps sigma itself."""
    torch.manual_seed(1)
    layer = nn.utils.spectral_norm(nn.Linear(7, 4, bias=False).double())
    kernel = jnp.asarray(layer.weight_orig.detach().numpy().T)
    held = {"u": jnp.asarray(layer.weight_u.numpy()), "v": jnp.asarray(layer.weight_v.numpy())}
    weights = draw(0, 7, 4)
    for train in (True, True, False):
        layer.train(train)
        x = torch.eye(7, dtype=torch.float64)
        out = layer(x)
        (out * torch.tensor(weights)).sum().backward()

        def ours_of(kernel, held=held, train=train):
            scaled, new = spectral_norm.apply(kernel, held, train=train)
            return (scaled * weights).sum(), (scaled, new)

        slope, (scaled, held) = jax.grad(ours_of, has_aux=True)(kernel)
        agree(scaled, out, 1e-13)
        agree(slope.T, layer.weight_orig.grad, 1e-12)
        agree(held["u"], layer.weight_u, 1e-13)
        layer.weight_orig.grad = None
    scaled, _ = spectral_norm.apply(kernel, held, train=True, iterations=500)
    assert abs(np.linalg.norm(np.asarray(scaled), 2) - 1) < 1e-12
