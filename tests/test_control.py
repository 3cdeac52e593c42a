"""DDPG and TD3: the buffer, the noise and the update against plain loops; whole runs; what a trained policy does."""

import json
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import agree
from float64 import draw as normal
from helpers import assert_equal_runs, gap, same, start, train

import functrain
from functrain.cli import main
from functrain.config import Count, configclass
from functrain.data import InOrder, Whole
from functrain.environments import Environment, Pendulum
from functrain.models import MLP
from functrain.optim import SGD, Adam, Learner
from functrain.tasks import DDPG, TD3
from functrain.tasks.control import Gaussian, OrnsteinUhlenbeck, replay
from functrain.tasks.control.animation import animation
from functrain.tasks.control.equations import soft_update
from functrain.train.checkpoint import Directory, from_arrays, to_arrays
from functrain.train.evaluate import make_evaluate
from functrain.train.members import Seeded
from functrain.train.program import compile_program


def put_together(kind, optimizer=None, accumulate=1, **settings):
    """A small task with its learners."""
    given = {"environment": Pendulum(max_steps=7), "hidden": (8,), "capacity": 40, "batch_size": 8, "warmup": 5}
    learner = Learner(optimizer=optimizer or Adam(peak_lr=1e-2), accumulate=accumulate)
    return kind(**(given | settings)).assemble(None, lambda name: learner)


# -- toy environments -----------------------------------------------------------------------------


@configclass
class Countdown(Environment):
    """A reward of 1 at each step; an episode ends after 1 to 6 steps, which are drawn at its start."""

    kind: Literal["countdown"] = "countdown"
    max_steps: Count = 100
    observations: ClassVar[int] = 1
    actions: ClassVar[int] = 1
    high = (1.0,)

    def start(self, key):
        """[steps that are left]"""
        return jax.random.randint(key, (1,), 1, 7).astype(float)

    def dynamics(self, variables, action, key):
        """One less."""
        return variables - 1, jnp.ones(()), variables[0] - 1 <= 0


@configclass
class Rewarding(Environment):
    """A reward of 1 at each step, and nothing to be seen; it ends at each step by itself, or by the limit alone."""

    kind: Literal["rewarding"] = "rewarding"
    max_steps: Count = 1
    ends: bool = False
    observations: ClassVar[int] = 1
    actions: ClassVar[int] = 1
    high = (1.0,)

    def start(self, key):
        """Always the same."""
        return jnp.ones(1)

    def dynamics(self, variables, action, key):
        """Nothing changes."""
        return variables, jnp.ones(()), jnp.bool_(self.ends)


# -- the parts ------------------------------------------------------------------------------------


def test_the_buffer_is_a_list():
    """After every write it holds the newest transitions of a plain list; what is drawn is in it, evenly."""
    rng, capacity = np.random.default_rng(0), 7
    buffer = replay.empty({"a": jnp.zeros(2), "b": jnp.zeros((), jnp.int32)}, capacity)
    add, rows, seen = jax.jit(replay.add), [None] * capacity, 0
    for n in (1, 3, 2, 7, 3, 3, 1, 7, 2):
        new = {"a": rng.normal(size=(n, 2)).astype(np.float32), "b": np.arange(seen, seen + n, dtype=np.int32)}
        buffer = add(buffer, new)
        for i in range(n):
            rows[(seen + i) % capacity] = (new["a"][i], new["b"][i])
        seen += n
        assert int(buffer.count) == min(seen, capacity)
        assert int(buffer.index) == seen % capacity
        for i in range(int(buffer.count)):
            assert (np.asarray(buffer.transitions["a"][i]) == rows[i][0]).all()
            assert int(buffer.transitions["b"][i]) == rows[i][1]
        drawn = replay.sample(buffer, 700, key=jax.random.key(seen))
        found, counts = np.unique(drawn["b"], return_counts=True)
        assert found.tolist() == sorted(row[1] for row in rows if row is not None)
        expected = 700 / len(found)
        assert ((counts - expected) ** 2 / expected).sum() < 35  # chi-squared of at most 6 degrees: 1 in 10^5
        by_number = {row[1]: row[0] for row in rows if row is not None}
        assert all((a == by_number[b]).all() for a, b in zip(np.asarray(drawn["a"]), drawn["b"].tolist()))
    with pytest.raises(ValueError, match="transitions: found 8; the buffer has 7 rows"):
        replay.add(buffer, {"a": jnp.zeros((8, 2)), "b": jnp.zeros(8, jnp.int32)})


@pytest.mark.usefixtures("float64")
def test_targets_follow():
    """After k updates towards p that stands still: p + (1 - rate)^k (first - p)."""
    first, params = {"w": normal(0, 3, 2)}, {"w": normal(1, 3, 2)}
    target = jax.tree.map(jnp.asarray, first)
    for _ in range(5):
        target = soft_update(target, params, 0.2)
    agree(target["w"], params["w"] + 0.8**5 * (first["w"] - params["w"]))


@pytest.mark.usefixtures("float64")
def test_noise_is_a_plain_loop():
    """Ornstein-Uhlenbeck, with episodes that end at different steps; Gaussian, without memory."""
    noise, n, rng = OrnsteinUhlenbeck(deviation=0.3, reversion=0.2, interval=0.5), 3, np.random.default_rng(0)
    ended = rng.random((20, n)) < 0.2
    state, plain = noise.start((n, 2)), np.zeros((n, 2))
    for t in range(20):
        key = jax.random.key(t)
        state, drawn = noise.draw(state, key=key)
        kicks = np.asarray(jax.random.normal(key, (n, 2)))
        for i in range(n):
            for j in range(2):
                plain[i, j] += 0.2 * (0 - plain[i, j]) * 0.5 + 0.3 * np.sqrt(0.5) * kicks[i, j]
        agree(drawn, plain)
        state = noise.reset(state, jnp.asarray(ended[t]))
        plain[ended[t]] = 0
    assert ended.any()
    gaussian = Gaussian(deviation=0.4)
    state = gaussian.start((4000, 2))
    state, drawn = gaussian.draw(state, key=jax.random.key(0))
    assert not np.asarray(state).any()
    assert np.std(drawn) == pytest.approx(0.4, rel=0.05)
    assert abs(np.mean(drawn)) < 0.4 * 5 / np.sqrt(8000)


def chosen(params, observation):
    """A linear actor of one action on one observation, by numpy."""
    return np.tanh(observation @ params["layer0"]["kernel"][:, 0] + params["layer0"]["bias"][0])


def told(params, observation, action):
    """A linear critic on one observation and action."""
    return np.append(observation, action) @ params["layer0"]["kernel"][:, 0] + params["layer0"]["bias"][0]


def plain_improve(players, targets, batch, noise, *, discount, rate, lr, acts):
    """One update of DDPG or TD3 with linear networks and plain descent, a transition at a time: (loss, loss, q)."""
    n, critics, losses, q = len(batch["reward"]), players["critic"], [0.0, None], 0.0
    gradients = jax.tree.map(np.zeros_like, critics)
    for i in range(n):
        s, a, after = batch["observation"][i], batch["action"][i], batch["next_observation"][i]
        next_action = np.clip(chosen(targets["actor"], after) + noise[i], -1, 1)
        lowest = min(told(critic, after, next_action) for critic in targets["critic"].values())
        y = batch["reward"][i] + (0 if batch["terminated"][i] else discount * lowest)
        for name, critic in critics.items():
            error = told(critic, s, a) - y
            losses[0] += error**2 / n
            gradients[name]["layer0"]["kernel"][:, 0] += 2 * error * np.append(s, a) / n
            gradients[name]["layer0"]["bias"][0] += 2 * error / n
        q += told(critics["critic0"], s, a) / n
    players["critic"] = jax.tree.map(lambda p, g: p - lr * g, critics, gradients)
    if acts:
        critic, actor, losses[1] = players["critic"]["critic0"], players["actor"], 0.0
        gradient = jax.tree.map(np.zeros_like, actor)
        for s in batch["observation"]:
            mu = chosen(actor, s)
            losses[1] -= told(critic, s, mu) / n
            slope = -critic["layer0"]["kernel"][-1, 0] * (1 - mu**2) / n
            gradient["layer0"]["kernel"][:, 0] += slope * s
            gradient["layer0"]["bias"][0] += slope
        players["actor"] = jax.tree.map(lambda p, g: p - lr * g, actor, gradient)
        for name in targets:
            targets[name] = jax.tree.map(lambda t, p: (1 - rate) * t + rate * p, targets[name], players[name])
    return (*losses, q)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("kind", [DDPG, TD3])
@pytest.mark.usefixtures("float64", "quick")
def test_an_update_is_a_plain_loop(kind, accumulate):
    """Losses, q, parameters and targets of five updates; some transitions are terminated; accumulated is whole."""
    settings = {"hidden": (), "discount": 0.9, "target_rate": 0.3, "batch_size": 6}
    more = {"smoothing": 0.6, "smoothing_most": 0.5} if kind is TD3 else {}
    task = put_together(kind, SGD(peak_lr=0.1), accumulate, **settings, **more)
    begun = start(task)
    players, targets = begun.players, jax.tree.map(lambda x: x + 0.5, begun.state["targets"])
    plain = {name: jax.tree.map(np.array, player.params) for name, player in players.items()}
    plain_targets = jax.tree.map(np.array, targets)
    updates, improve = begun.state["updates"], jax.jit(task.improve)
    for t in range(5):
        batch = {"observation": normal(t, 6, 3), "action": np.tanh(normal(t + 9, 6, 1)), "reward": normal(t + 5, 6)}
        batch |= {"next_observation": normal(t + 7, 6, 3), "terminated": np.arange(6) % 3 == t % 2}
        key = jax.random.key(t)
        noise = np.zeros(6)
        if kind is TD3:
            raw = np.asarray(jax.random.normal(jax.random.split(key, 3)[0], (6, 1)))[:, 0]
            noise = np.clip(0.6 * raw, -0.5, 0.5)
            assert (abs(noise) == 0.5).any()
        players, targets, updates, metrics = improve(players, targets, updates, batch, key=key)
        acts = kind is DDPG or (t + 1) % 2 == 0
        expected = plain_improve(plain, plain_targets, batch, noise, discount=0.9, rate=0.3, lr=0.1, acts=acts)
        read = functrain.metrics.read(metrics)
        np.testing.assert_allclose(read["critic_loss"], expected[0], rtol=1e-11)
        np.testing.assert_allclose(read["q"], expected[2], rtol=1e-9)
        if acts:
            np.testing.assert_allclose(read["actor_loss"], expected[1], rtol=1e-9)
        assert float(metrics["actor_loss"].count) == (6 if acts else 0)
        found = {name: player.params for name, player in players.items()}
        for ours, theirs in ((found, plain), (targets, plain_targets)):
            for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
                agree(a, b, 1e-11)
    assert int(updates) == 5


# -- a step ---------------------------------------------------------------------------------------


def test_chunks_and_resume_are_bitwise():
    """Chunks of 1 and 5, and a run cut at step 21, with noise that remembers and several updates in a step.

    At step 21 all episodes have just ended, so that the noise begins anew.
    """
    task = put_together(TD3, environments=3, updates=2, noise=OrnsteinUhlenbeck())
    whole, log = train(task, Whole(), chunk=5)
    other, other_log = train(task, Whole(), chunk=1)
    assert same(other.train_state, whole.train_state)
    assert repr(other_log.lines) == repr(log.lines)
    half, _ = train(task, Whole(), steps=21)
    assert not np.asarray(half.train_state.state["noise"]).any()
    assert np.asarray(whole.train_state.state["noise"]).all()
    restored = jax.tree.map(jnp.copy, from_arrays(to_arrays(half.train_state), half.train_state))
    assert not same(restored, whole.train_state)
    again, _ = train(task, Whole(), train_state=restored)
    assert same(again.train_state, whole.train_state)
    assert int(whole.train_state.state["updates"]) == 2 * 35
    moved = [gap(player.params, start(task).players[name].params) for name, player in whole.train_state.players.items()]
    assert min(moved) > 1e-2


def test_what_is_stored_is_what_happened():
    """The buffer after twenty steps, by the equations of the pendulum: torque, reward, successor, ends, returns."""
    task = put_together(DDPG, environments=2, noise=Gaussian(deviation=5.0), warmup=9)
    outcome, log = train(task, Whole(), steps=20, chunk=20, log_every=1)
    held = jax.tree.map(np.asarray, outcome.train_state.state["replay"].transitions)
    assert (np.asarray(outcome.train_state.state["replay"].count), held["reward"].dtype) == (40, np.float32)
    s, after = held["observation"], held["next_observation"]
    angle, torque = np.arctan2(s[:, 1], s[:, 0]), 2 * held["action"][:, 0]
    np.testing.assert_allclose(held["reward"], -(angle**2 + 0.1 * s[:, 2] ** 2 + 0.001 * torque**2), rtol=1e-4)
    speed = np.clip(s[:, 2] + 0.05 * (15 * np.sin(angle) + 3 * torque), -8, 8)
    np.testing.assert_allclose(after[:, 2], speed, atol=1e-5)
    np.testing.assert_allclose(after[:, 0], np.cos(angle + 0.05 * speed), atol=1e-5)
    assert not held["terminated"].any()
    of_step = held["reward"].reshape(20, 2)
    follows = np.abs(after.reshape(20, 2, 3)[:-1] - s.reshape(20, 2, 3)[1:]).max((1, 2)) < 1e-6
    assert np.flatnonzero(~follows).tolist() == [6, 13]  # after seven steps each begins anew
    for at, _, values in log.lines:
        if at in (7, 14):
            assert values["return"] == pytest.approx(of_step[at - 7 : at].sum() / 2, rel=1e-5)
            assert values["length"] == 7
        else:
            assert np.isnan(values["return"])
            assert np.isnan(values["length"])
        assert np.isnan(values["q"]) == np.isnan(values["critic_loss"]) == (at <= 9)
    early, late = held["action"].reshape(20, 2)[:9], held["action"].reshape(20, 2)[9:]
    assert (abs(early) < 1).all()
    assert np.mean(abs(late) == 1) > 0.5  # such noise is clipped mostly


def test_actions_are_uniform_and_then_the_policy_s():
    """Without noise; in the environment's units they are twice as large."""
    task = put_together(DDPG, environments=500, noise=Gaussian(deviation=0.0), warmup=1, capacity=1000)
    first = start(task)
    outcome, _ = train(task, Whole(), steps=2, chunk=2)
    held = jax.tree.map(np.asarray, outcome.train_state.state["replay"].transitions)
    uniform, policy = np.split(held["action"][:, 0], 2)
    assert np.quantile(uniform, [0.1, 0.25, 0.5, 0.75, 0.9]) == pytest.approx([-0.8, -0.5, 0, 0.5, 0.8], abs=0.15)
    known = jax.jit(task.outputs_of)(first, held["observation"][500:])
    np.testing.assert_allclose(2 * policy, known[:, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("ends", "value"), [(False, 2.0), (True, 1.0)])
@pytest.mark.parametrize("kind", [DDPG, TD3])
def test_a_time_limit_does_not_end_the_value(kind, ends, value):
    """A reward of 1 at each step, discounted by a half: worth 2 where a limit of one step cuts, 1 where it ends."""
    settings = {"environment": Rewarding(ends=ends), "hidden": (), "discount": 0.5, "target_rate": 0.1}
    settings |= {"noise": Gaussian(deviation=1.0)}
    task = put_together(kind, SGD(peak_lr=0.1), **settings)
    outcome, log = train(task, Whole(), steps=600, chunk=100, log_every=600)
    held = outcome.train_state.state["replay"].transitions
    assert np.asarray(held["terminated"]).all() == ends
    last, _ = train(task, Whole(), steps=601, train_state=outcome.train_state, chunk=1, log_every=1)
    assert log.lines[-1][2]["length"] == 1
    players = last.train_state.players["critic"].params
    for params in players.values():
        x = np.array([[1.0, action] for action in (-1.0, 0.0, 1.0)], np.float32)
        told = MLP(hidden=(), inputs=(2,), outputs=1).apply(params, {}, x)[0]
        assert told[:, 0] == pytest.approx([value] * 3, abs=0.05)


@pytest.mark.parametrize("members", [0, 2])
def test_the_buffer_is_never_copied(members):
    """What a program holds beside its state is smaller than the buffer's least column, under vmap too."""
    capacity = 100_000
    task = put_together(TD3, capacity=capacity, environments=2, updates=2)
    first, feed = start(task), Whole()
    if members:
        first = jax.tree.map(lambda x: jnp.stack([x] * members), first)
        feed = Seeded(feed, jnp.arange(members, dtype=jnp.uint32))
    held = compile_program(task, feed, first, stacked=bool(members)).memory
    assert held["temp"] < capacity  # of terminated, a byte each
    assert held["alias"] > sum(x.nbytes for x in jax.tree.leaves(first.state["replay"]))  # it is written in place


# -- what a trained one does ----------------------------------------------------------------------


def test_evaluation_counts_whole_episodes():
    """Episodes of different lengths, a reward of 1 a step: the return is the length, nothing of what comes after."""
    task = put_together(DDPG, environment=Countdown(), episodes=50)
    first = start(task)
    found = functrain.metrics.read(make_evaluate(task, InOrder({}, 1))(first))
    keys = jax.random.split(jax.random.split(jax.random.fold_in(first.key, 0))[0], 50)
    lengths = [float(task.environment.reset(k).variables[0]) for k in keys]
    assert len(set(lengths)) == 6
    assert found["return"] == found["length"] == pytest.approx(np.mean(lengths))


def test_evaluation_is_a_plain_loop():
    """The policy without noise in three episodes of a pendulum, a step and an episode at a time."""
    task = put_together(DDPG, episodes=3)
    first, env = start(task), task.environment
    found = functrain.metrics.read(make_evaluate(task, InOrder({}, 1))(first))
    keys = jax.random.split(jax.random.split(jax.random.fold_in(first.key, 0))[0], 3)
    total, act, advance = 0.0, jax.jit(task.outputs_of), jax.jit(env.step)
    for key in keys:
        state = env.reset(key)
        while not env.truncated(state):
            state, reward, _ = advance(state, act(first, env.observe(state)[None])[0], key)
            total += float(reward) / 3
    assert found["return"] == pytest.approx(total, rel=1e-5)
    assert found["length"] == 7


def test_an_animation(tmp_path, monkeypatch):
    """Every second state of an episode, the last steps too, until it ends; without Pillow a note."""
    from PIL import Image

    task = put_together(DDPG)
    outputs = jax.device_get(jax.jit(task.drawn)(start(task), {}))
    assert outputs[1].tolist() == [True] * 8
    assert outputs[0].steps.tolist() == list(range(8))
    [path] = task.draw(outputs, {}, tmp_path, ())
    with Image.open(path) as picture:
        assert (path.name, picture.n_frames, picture.size) == ("episode.gif", 5, (160, 160))
    ended = put_together(DDPG, environment=Countdown())
    states, running = jax.device_get(jax.jit(ended.drawn)(start(ended), {}))
    assert running.sum() == states.variables[0, 0] + 1
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.warns(UserWarning, match=r"functrain\[images\]"):
        assert animation([np.zeros((4, 4, 3), np.uint8)], tmp_path / "none.gif") == []
    assert not (tmp_path / "none.gif").exists()


# -- whole runs -----------------------------------------------------------------------------------

CONFIG = """\
[task]
kind = "td3"
environment = { kind = "pendulum", max_steps = 5 }
environments = 2
hidden = [8]
capacity = 30
batch_size = 8
warmup = 4
episodes = 2
[optimizer]
kind = "adam"
peak_lr = 1e-2
schedule = { kind = "constant" }
[players.actor.optimizer]
kind = "sgd"
peak_lr = 1e-3
schedule = { kind = "constant" }
[train]
steps = 12
log_every = 6
[evaluate]
every = 6
monitor = "return"
mode = "max"
[observe]
tensorboard = false
figures = false
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a config."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.toml").write_text(CONFIG)
    return tmp_path


def test_a_run(folder):
    """Chunks, resuming, the best step by the return, and the policy that comes out of it."""
    assert main(["train", "c.toml", "--out", "whole", "train.chunk=5"]) == 0
    assert main(["train", "c.toml", "--out", "single", "train.chunk=1"]) == 0
    assert_equal_runs("whole", "single")
    assert main(["train", "c.toml", "--out", "cut", "train.chunk=5", "train.steps=6"]) == 0
    assert main(["train", "--resume", "cut", "train.steps=12"]) == 0
    assert_equal_runs("whole", "cut")
    lines = [json.loads(line) for line in (folder / "whole/metrics.jsonl").read_text().splitlines()]
    validation = [line for line in lines if line["split"] == "validation"]
    assert [set(line) for line in validation] == [{"step", "split", "return", "length"}] * 2
    result = json.loads((folder / "whole/result.json").read_text())
    assert result["best"]["return"] == max(line["return"] for line in validation)
    model = functrain.load(folder / "whole")
    observations = normal(0, 5, 3).astype(np.float32)
    actions = model(observations)
    assert actions.shape == (5, 1)
    assert abs(np.asarray(actions)).max() <= 2
    assert len(set(np.asarray(actions)[:, 0].tolist())) == 5
    rows = list(model.rows(observations))
    assert [row["action"] for row in rows] == np.asarray(actions).tolist()


def test_what_a_run_leaves(folder, capsys):
    """Curves and episode.gif, at the steps that are asked for too; nothing is said of numbers that are none."""
    drawn = ["observe.figures=true", "observe.tensorboard=true", "observe.draw_every=6", "--out", "r"]
    assert main(["train", "c.toml", *drawn]) == 0
    said = capsys.readouterr()
    assert "nan" not in (said.out + said.err).lower()
    assert "  return " in said.out + said.err  # as it trains, beside the losses
    assert {path.name for path in (folder / "r/figures").glob("*.*")} == {"curves.png", "episode.gif"}
    assert [path.parent.name for path in (folder / "r/figures").glob("step*/episode.gif")] == ["step00000006"]
    (folder / "x.jsonl").write_text("[1.0, 0.0, 0.5]\n")
    assert main(["predict", "r", "x.jsonl"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["action"]


def test_seeds(folder):
    """Two in turn are bit for bit the runs of their seeds; together they are those to rounding."""
    for i in range(2):
        assert main(["train", "c.toml", f"train.seed={3 + i}", "--out", f"one{i}"]) == 0
    for way in ("in_turn", "together"):
        arguments = ["train.seed=3", "train.seeds=2", f"train.members={way}", "--out", way]
        assert main(["train", "c.toml", *arguments]) == 0
    arrays = {
        run: Directory(folder / run / "checkpoints").load(12)[1] for run in ("one0", "one1", "in_turn", "together")
    }
    for i in range(2):
        for path, array in arrays[f"one{i}"].items():
            if path.startswith("state/"):
                inner = path.removeprefix("state/")
                assert arrays["in_turn"][f"state/{i}/{inner}"].tobytes() == array.tobytes(), path
                if array.dtype.kind == "f":
                    np.testing.assert_allclose(arrays["together"][path][i], array, rtol=1e-3, atol=1e-4, err_msg=path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["task.batch_size=31"], "task: batch_size: found 31; the buffer holds 30 (capacity)"),
        (["task.warmup=31"], "task: warmup: found 31; the buffer holds 30 (capacity)"),
        (["task.environments=31"], "task: environments: found 31; the buffer holds 30 (capacity)"),
        (["task.environment={kind='cartpole'}"], "task.environment.kind: found 'cartpole', of discrete actions"),
        (["task.environment={kind='chess'}"], 'task.environment.kind: found "chess"; legal:'),
        (["task.target_rate=0"], "task.target_rate: found 0; expected"),
        (["task.target_rate=1.5"], "task.target_rate: found 1.5; expected"),
        (["task.discount=1"], "task.discount: found 1; expected"),
        (["task.delay=0"], "task.delay: found 0; expected"),
        (["task.kind=ddpg", "task.delay=2"], "task.delay: unknown key"),
        (["task.noise={deviation=-1}"], "task.noise.deviation: found -1; expected"),
        (["train.accumulate=3"], "train.accumulate: found 3; it does not divide task.batch_size = 8"),
        (["model.kind=mlp"], "model: task.kind = 'td3' has its own (task.hidden); leave [model] out"),
        (["data.kind=digits"], "data: task.kind = 'td3' acts in task.environment; leave [data] out"),
        (["evaluate.monitor=loss"], "evaluate.monitor: found 'loss'; the task evaluates: length, return"),
        (["players.model.average={kind='ema'}"], "players.model: no such player; this task has: actor, critic"),
        (["train.steps=0", "train.epochs=1"], "train.steps: found 0"),
    ],
)
def test_mistakes(folder, capsys, arguments, said):
    """One line each, exit status 2, nothing written."""
    assert main(["train", "c.toml", "--out", "r", *arguments]) == 2
    line = capsys.readouterr().err.strip()
    assert said in line
    assert "\n" not in line
    assert not (folder / "r").exists()
