"""The variational autoencoder is PyTorch's: losses, gradients and a trajectory in float64 from one noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import agree, draw

from functrain import tree
from functrain.metrics import read
from functrain.models import VAE
from functrain.optim import Adam, Learner
from functrain.tasks import Variational
from functrain.train import state, step

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'functrain[oracle]'")
F = torch.nn.functional
torch.set_num_threads(1)

pytestmark = [pytest.mark.oracle, pytest.mark.usefixtures("quick", "float64")]

KINDS = pytest.mark.parametrize(
    "settings",
    [{"beta": 1.0}, {"beta": 4.0}, {"likelihood": "normal", "deviation": 0.3, "beta": 0.5}],
    ids=["bernoulli", "beta", "normal"],
)
COUNTED = np.arange(9) % 3 > 0


class Twin(torch.nn.Module):
    """The same model with torch.nn.Linear, from our parameters."""

    def __init__(self, params):
        super().__init__()
        paths = tree.by_path(params)
        self.layers = torch.nn.ModuleDict()
        for path in sorted({path.rpartition("/")[0] for path in paths}):
            kernel = torch.tensor(np.asarray(paths[f"{path}/kernel"]))
            self.layers[path] = torch.nn.Linear(*kernel.shape, dtype=torch.float64)
            with torch.no_grad():
                self.layers[path].weight.copy_(kernel.T)
                self.layers[path].bias.copy_(torch.tensor(np.asarray(paths[f"{path}/bias"])))

    def forward(self, x, noise):
        """(mean, log variance, what is decoded)."""
        h = torch.tanh(self.layers["encoder/linear1"](torch.tanh(self.layers["encoder/linear0"](x.flatten(1)))))
        mean, log_variance = self.layers["encoder/mean"](h), self.layers["encoder/log_variance"](h)
        h = torch.tanh(self.layers["decoder/linear0"](mean + torch.exp(0.5 * log_variance) * noise))
        return mean, log_variance, self.layers["decoder/output"](torch.tanh(self.layers["decoder/linear1"](h)))

    def bound(self, x, noise, *, likelihood="bernoulli", deviation=1.0, beta=1.0):
        """(loss, reconstruction, KL), means over the rows."""
        x, noise = torch.tensor(np.asarray(x)), torch.tensor(np.asarray(noise))
        mean, log_variance, decoded = self(x, noise)
        if likelihood == "bernoulli":
            reconstruction = F.binary_cross_entropy_with_logits(decoded, x.flatten(1), reduction="sum")
        else:
            reconstruction = -torch.distributions.Normal(decoded, deviation).log_prob(x.flatten(1)).sum()
        posterior = torch.distributions.Normal(mean, torch.exp(0.5 * log_variance))
        kl = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum()
        return (reconstruction + beta * kl) / len(x), reconstruction / len(x), kl / len(x)

    def by_path(self):
        """Torch's parameters by our paths."""
        named = {"weight": "kernel", "bias": "bias"}
        return {f"{path}/{named[k]}": p for path, layer in self.layers.items() for k, p in layer.named_parameters()}


def small(settings):
    """The task with a small VAE that has two hidden layers of unequal width."""
    model = VAE(inputs=(4, 3), outputs=12, hidden=(7, 5), latent=2, activation="tanh")
    return Variational(model=model, learner=Learner(optimizer=Adam(peak_lr=1e-2)), **settings)


def pixels(seed, n=9):
    """Grey values in 0..1 [n, 4, 3]."""
    return 1 / (1 + np.exp(-2 * draw(seed, n, 4, 3)))


def turned(path, array):
    """In torch's layout."""
    return array.T if path.endswith("kernel") else array


@KINDS
def test_loss_parts_and_gradients(settings):
    """Of a batch in which rows that are masked hold other numbers: torch is given the others alone."""
    task = small(settings)
    params, _ = task.model.init(jax.random.key(0))
    twin, x, noise = Twin(params), pixels(1), draw(2, 9, 2)
    batch = {"x": jnp.asarray(x), "noise": jnp.asarray(noise), "mask": jnp.asarray(COUNTED, float)}

    @jax.jit
    def ours(params):
        means, _, metrics = task.full_loss(params, {}, batch, key=None, train=True)
        return means.total / means.count, metrics

    (loss, metrics), gradients = jax.value_and_grad(ours, has_aux=True)(params)
    parts = twin.bound(x[COUNTED], noise[COUNTED], **settings)
    parts[0].backward()
    metrics = read(metrics)
    agree(loss, parts[0], 1e-12)
    agree(metrics["reconstruction"], parts[1], 1e-12)
    agree(metrics["kl"], parts[2], 1e-12)
    agree(metrics["negative_elbo"], parts[1] + parts[2], 1e-12)
    theirs = twin.by_path()
    assert tree.by_path(gradients).keys() == theirs.keys()
    for path, gradient in tree.by_path(gradients).items():
        agree(turned(path, gradient), theirs[path].grad, 1e-12)


@KINDS
def test_a_trajectory(settings):
    """30 updates by Adam: the loss at each is torch's, with the noise that `update` draws from the step's key."""
    task = small(settings)
    train_state = jax.jit(lambda: state.init(task, jax.random.key(0)))()
    twin, advance = Twin(train_state.players["model"].params), jax.jit(step.make_step(task))
    optimizer = torch.optim.Adam(twin.parameters(), lr=1e-2)
    found = []
    for i in range(30):
        x = pixels(10 + i)
        key = jax.random.fold_in(train_state.key, i)
        noise = np.asarray(jax.random.normal(jax.random.split(key)[0], (9, 2)))
        train_state, metrics = advance(train_state, {"x": jnp.asarray(x), "mask": jnp.asarray(COUNTED, float)})
        optimizer.zero_grad()
        loss = twin.bound(x[COUNTED], noise[COUNTED], **settings)[0]
        loss.backward()
        optimizer.step()
        agree(metrics["loss"].value, loss, 1e-10)
        found.append(loss.item())
    assert found[-1] < found[0]
    for path, p in tree.by_path(train_state.players["model"].params).items():
        agree(turned(path, p), twin.by_path()[path], 1e-10)
