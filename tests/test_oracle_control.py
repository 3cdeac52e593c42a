"""DDPG and TD3 against Stable-Baselines3: updates from equal weights on equal batches, with equal noise."""

import warnings

import jax
import numpy as np
import pytest
from float64 import agree, draw
from helpers import start

from functrain.environments import Pendulum
from functrain.metrics import read
from functrain.optim import Adam, Learner
from functrain.optim.schedules import Constant
from functrain.tasks import DDPG, TD3

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'functrain[oracle]'")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    baselines = pytest.importorskip("stable_baselines3", reason="not installed: pip install 'functrain[oracle]'")
torch.set_num_threads(1)

pytestmark = [pytest.mark.oracle, pytest.mark.usefixtures("float64", "quick")]

HIDDEN, N, RATE = (7, 5), 12, 3e-3
CONSTANT = Constant()


class OneBatch:
    """A buffer that holds a batch, and gives all of it."""

    def __init__(self, arrays):
        names = ("observation", "action", "next_observation", "terminated", "reward")
        columns = [torch.tensor(arrays[name].reshape(N, -1), dtype=torch.float64) for name in names]
        self.samples = baselines.common.type_aliases.ReplayBufferSamples(*columns)

    def sample(self, count, env=None):
        """The batch."""
        assert count == N
        return self.samples


def theirs(kind, **settings):
    """A model of Stable-Baselines3 in float64."""
    model = getattr(baselines, kind)(
        "MlpPolicy", "Pendulum-v1", RATE, gamma=0.97, tau=0.05, buffer_size=10, device="cpu", seed=0,
        policy_kwargs={"net_arch": list(HIDDEN)}, **settings,
    )  # fmt: skip
    model.policy.double()
    model.set_logger(baselines.common.logger.Logger(None, []))
    return model


def arrays(network):
    """A sequence of torch's layers as ours."""
    layers = [layer for layer in network if isinstance(layer, torch.nn.Linear)]
    return {f"layer{i}": {"kernel": x.weight.detach().numpy().T.copy(), "bias": x.bias.detach().numpy().copy()}
            for i, x in enumerate(layers)}  # fmt: skip


def critics(network):
    """The critics of torch's as ours."""
    return {f"critic{i}": arrays(q) for i, q in enumerate(network.q_networks)}


@pytest.mark.parametrize("kind", ["DDPG", "TD3"])
def test_updates(kind, monkeypatch):
    """Critics, actor, targets and losses after each of four updates; the actor of TD3 has its turn at every second."""
    model = theirs(kind, **({"policy_delay": 2, "target_policy_noise": 0.4} if kind == "TD3" else {}))
    task = {"DDPG": DDPG, "TD3": TD3}[kind](
        environment=Pendulum(), hidden=HIDDEN, discount=0.97, target_rate=0.05, capacity=N, batch_size=N, warmup=0,
        **({"smoothing": 0.4} if kind == "TD3" else {}),
    )  # fmt: skip
    task = task.assemble(None, lambda name: Learner(optimizer=Adam(peak_lr=RATE, schedule=CONSTANT)))
    with torch.no_grad():  # targets that differ from what they follow
        for target in (model.actor_target, model.critic_target):
            for p in target.parameters():
                p.add_(torch.tensor(draw(3, *p.shape)) * 0.1)
    begun = start(task)
    params = {"actor": arrays(model.actor.mu), "critic": critics(model.critic)}
    targets = {"actor": arrays(model.actor_target.mu), "critic": critics(model.critic_target)}
    players = {name: player.replace(params=params[name]) for name, player in begun.players.items()}
    updates, improve = begun.state["updates"], jax.jit(task.improve)
    for t in range(4):
        batch = {"observation": draw(t, N, 3), "action": np.tanh(draw(t + 10, N, 1)), "reward": draw(t + 20, N)}
        batch |= {"next_observation": draw(t + 30, N, 3), "terminated": np.arange(N) % 4 == 1}
        key = jax.random.key(t)
        noise = torch.tensor(np.asarray(jax.random.normal(jax.random.split(key, 3)[0], (N, 1))))
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "normal_", lambda self, mean, std, noise=noise: self.copy_(mean + std * noise))
            patch.setattr(baselines.common.policies, "preprocess_obs", lambda x, *_, **__: x)  # to float32, else
            model.replay_buffer = OneBatch(batch)
            model.train(gradient_steps=1, batch_size=N)
        players, targets, updates, metrics = improve(players, targets, updates, batch, key=key)
        logged, found = model.logger.name_to_value, read(metrics)
        assert found["critic_loss"] == pytest.approx(logged["train/critic_loss"], rel=1e-12)
        acts = kind == "DDPG" or t % 2 == 1
        assert float(metrics["actor_loss"].count) == (N if acts else 0)
        if acts:
            assert found["actor_loss"] == pytest.approx(logged["train/actor_loss"], rel=1e-12)
        expected = {"actor": arrays(model.actor.mu), "critic": critics(model.critic)}
        followed = {"actor": arrays(model.actor_target.mu), "critic": critics(model.critic_target)}
        ours = {name: player.params for name, player in players.items()}
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), expected, params)
        assert min(jax.tree.leaves(moved["critic"])) > 1e-3
        assert (min(jax.tree.leaves(moved["actor"])) > 1e-3) == (acts or t > 0)
        for mine, other in ((ours, expected), (targets, followed)):
            jax.tree.map(lambda a, b: agree(a, b, 1e-12), mine, other)
