"""Many tasks at once: weights of losses, the shortest combination of gradients, and pairs of digits."""

import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import agree, draw
from helpers import assert_equal_runs

from functrain import trained, tree
from functrain.autodiff import MinNorm
from functrain.autodiff.estimators import min_norm_weights
from functrain.cli import main
from functrain.config import ConfigError
from functrain.data.pairs import MnistPairs
from functrain.metrics import Mean
from functrain.models import MLP
from functrain.optim import SGD, Learner, objective
from functrain.tasks import ManyTasks
from functrain.tasks.many import Head
from functrain.train import state

HEADS = (Head(name="a", classes=3, weight=0.5), Head(name="b", kind="regression", weight=2.0))


# -- the shortest combination ---------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_weights_are_a_solvers(n):
    """Those of scipy's solver to 1e-6; and no vector lies nearer than the point they make: the law of the optimum."""
    optimize = pytest.importorskip("scipy.optimize", reason="scipy comes with jax")
    inside = 0
    for seed in range(20):
        g = draw(seed, n, 6) + 0.7 * draw(seed + 100, 6)
        m = g @ g.T
        weights = np.asarray(min_norm_weights(jnp.asarray(m)))
        point = weights @ g
        assert abs(weights.sum() - 1) < 1e-12
        assert weights.min() >= 0
        assert (g @ point).min() >= point @ point - 1e-9 * np.abs(m).max()
        sums = {"type": "eq", "fun": lambda a: a.sum() - 1}
        start, bounds, options = np.full(n, 1 / n), [(0, 1)] * n, {"ftol": 1e-15, "maxiter": 500}
        settings = {"bounds": bounds, "constraints": sums, "options": options}
        found = optimize.minimize(lambda a, m=m: a @ m @ a, start, jac=lambda a, m=m: 2 * m @ a, **settings)
        np.testing.assert_allclose(weights, found.x, atol=1e-6)
        inside += (weights > 1e-9).sum()
    assert n == 1 or n * 4 < inside < n * 20  # some vectors count, some do not


def test_vectors_that_coincide():
    """Or are zero: weights all the same."""
    for g in (np.ones((3, 4)), np.zeros((2, 4)), np.array([[1.0, 0], [1, 0], [0, 2]])):
        weights = np.asarray(min_norm_weights(jnp.asarray(g @ g.T, jnp.float32)))
        assert abs(weights.sum() - 1) < 1e-5
        point = weights @ g
        assert (g @ point).min() >= point @ point - 1e-5


def losses_of(seed=0):
    """Two losses of a shared matrix and one of a vector, each by its own; an objective of them, and parameters."""
    x = jnp.asarray(draw(seed, 8, 3))
    params = {"shared": jnp.asarray(draw(seed + 1, 3, 2)), "own": jnp.asarray(draw(seed + 2, 2))}

    def loss(params, state, batch, *, key):
        h = jnp.tanh(batch["x"] @ params["shared"])
        one = batch["mask"].sum()
        a = (batch["mask"] * (h @ params["own"] - 1) ** 2).sum()
        b = (batch["mask"] * (h[:, 0] + 2) ** 2).sum()
        return {"a": Mean(a, one), "b": Mean(b, one)}, state, {}

    return loss, params, {"x": x, "mask": jnp.array([1.0, 1, 0, 1, 1, 1, 0, 1])}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("accumulate", "scale"), [(1, None), (4, None), (1, 128.0)])
def test_parts_of_an_objective(accumulate, scale):
    """Each loss's own gradient and value; their sums are the whole's; micro-batches and loss scale change nothing."""
    loss, params, batch = losses_of()
    goal = objective(loss, {}, batch, jax.random.key(0), accumulate=accumulate, scale=scale)
    gradients, values, _ = goal.parts(params)
    whole, value, _ = goal.gradient(params)
    for name in "ab":

        def one(params, name=name):
            mean = loss(params, {}, batch, key=None)[0][name]
            return mean.total / mean.count

        expected, slope = jax.value_and_grad(one)(params)
        agree(values[name], expected, 1e-13)
        for path, leaf in tree.by_path(slope).items():
            agree(tree.by_path(gradients[name])[path], leaf, 1e-13, size=1)
    agree(values["a"] + values["b"], value, 1e-13)
    for path, leaf in tree.by_path(whole).items():
        agree(tree.by_path(gradients["a"])[path] + tree.by_path(gradients["b"])[path], leaf, 1e-13, size=1)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("normalise", ["none", "norm", "loss"])
def test_the_combination(normalise):
    """Of what is shared, the weighed sum; of the rest the sum; a step of it lowers both losses where any can."""
    loss, params, batch = losses_of()
    goal = objective(loss, {}, batch, jax.random.key(0))
    parts, values, _ = goal.parts(params)
    found, value, (_, metrics) = MinNorm(shared="shared", normalise=normalise)(goal, params, None)
    a, b = (np.asarray(parts[name]["shared"]).ravel() for name in "ab")
    sizes = {"none": (1, 1), "norm": (np.linalg.norm(a), np.linalg.norm(b)), "loss": (values["a"], values["b"])}
    a, b = a / sizes[normalise][0], b / sizes[normalise][1]
    share = np.clip(((b - a) @ b) / ((a - b) @ (a - b)), 0, 1)  # Sener and Koltun's eq. 4 for two
    agree(found["shared"].ravel(), share * a + (1 - share) * b, 1e-12)
    agree(found["own"], parts["a"]["own"] + parts["b"]["own"], 1e-13)
    agree(value, values["a"] + values["b"], 1e-13)
    np.testing.assert_allclose(metrics["weight_a"].value, share, atol=1e-12)
    after = {**params, "shared": params["shared"] - 1e-4 * found["shared"]}
    assert all(goal.parts(after)[1][name] < values[name] for name in "ab")
    whole = MinNorm(normalise=normalise)(goal, params, None)[0]
    assert np.abs(whole["own"] - found["own"]).max() > 1e-3
    with pytest.raises(ConfigError, match="it weighs several losses"):
        objective(lambda p, s, b, *, key: (Mean(p.sum(), jnp.ones(())), s, {}), {}, batch, None).parts(jnp.ones(2))


# -- the task -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
def test_the_loss_is_its_formula():
    """Cross-entropy and squared error of each head, weighed by numbers or by learned variances; a masked row out."""
    batch = {"x": jnp.asarray(draw(0, 4, 5)), "y": jnp.asarray([[0, 0.5], [2, -1], [1, 2], [1, 9]])}
    batch["mask"] = jnp.array([1.0, 1, 1, 0])
    for weighting in ("fixed", "uncertainty"):
        task = ManyTasks(heads=HEADS, width=6, weighting=weighting)
        task = task.assemble(MLP(inputs=(5,), outputs=6, hidden=(4,)), lambda name: Learner())
        params, held = task.init(jax.random.key(0))
        params = params["model"]
        s = {"a": 0.3, "b": -0.7}
        if weighting == "uncertainty":
            params["log_variance"] = {name: jnp.asarray(v) for name, v in s.items()}
        means, _, metrics = task.full_loss(params, held, batch, key=None, train=True)
        features = np.maximum(np.asarray(task.model.apply(params["trunk"], held, batch["x"])[0]), 0)[:3]
        a, b = (features @ np.asarray(p["kernel"]) + np.asarray(p["bias"]) for p in params["heads"].values())
        nll = np.mean(np.log(np.exp(a).sum(1)) - a[np.arange(3), [0, 2, 1]])
        square = np.mean((b[:, 0] - [0.5, -1, 2]) ** 2)
        agree(metrics["a_loss"].value, np.asarray(nll), 1e-13)
        agree(metrics["b_loss"].value, np.asarray(square), 1e-13)
        agree(metrics["b_rmse"].value, np.sqrt(square), 1e-13)
        np.testing.assert_allclose(metrics["accuracy"].value, np.mean(a.argmax(1) == [0, 2, 1]), rtol=1e-6)
        expected = {"a": 0.5 * nll, "b": 2 * square}
        if weighting == "uncertainty":
            expected = {"a": np.exp(-0.3) * nll + 0.15, "b": np.exp(0.7) / 2 * square - 0.35}
        for name, value in expected.items():
            agree(means[name].value, np.asarray(value), 1e-13)
        plain, _, _ = task.full_loss(params, held, batch, key=None, train=False)
        agree(plain["a"].value, np.asarray(nll), 1e-13)


def test_learned_weights_settle_at_the_loss():
    """With predictions that cannot improve, sigma^2 goes to the mean squared error: the minimum of the formula."""
    task = ManyTasks(heads=HEADS[1:], width=1, weighting="uncertainty")
    learner = Learner(optimizer=SGD(peak_lr=0.5, freeze=("trunk", "heads")))
    task = task.assemble(MLP(inputs=(1,), outputs=1, hidden=()), lambda name: learner)
    train_state = jax.jit(lambda: state.init(task, jax.random.key(0)))()
    batch = {"x": jnp.zeros((2, 1)), "y": jnp.array([[3.0], [-1.0]])}  # the head says 0: a mean square of 5
    update = jax.jit(lambda ts: task.update(ts, batch, key=jax.random.key(0))[0])
    for _ in range(60):
        train_state = update(train_state)
    found = train_state.players["model"].params["log_variance"]["b"]
    assert float(found) == pytest.approx(np.log(5), abs=1e-3)


TOML = """
[task]
kind = "many_tasks"
width = 16
heads = [{ name = "left" }, { name = "right" }, { name = "sum", kind = "regression", weight = 0.01 }]
[model]
kind = "mlp"
hidden = [32]
[data]
kind = "npz"
path = "many.npz"
batch_size = 32
[estimator]
kind = "min_norm"
shared = "trunk/"
[optimizer]
kind = "adamw"
peak_lr = 1e-2
[train]
steps = 120
log_every = 30
[observe]
tensorboard = false
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Numbers with two classes and their sum as targets, and many.toml."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, (400, 2))
    x = np.concatenate([np.eye(3)[y[:, 0]], np.eye(3)[y[:, 1]]], 1) + 0.3 * rng.normal(size=(400, 6))
    np.savez(tmp_path / "many.npz", x=x.astype(np.float32), y=np.column_stack([y, y.sum(1)]).astype(np.float32))
    (tmp_path / "many.toml").write_text(TOML)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run(folder):
    """It learns all three; resumed and whole are the same bit for bit; weights in the log; predictions by name."""
    assert main(["train", "many.toml", "--out", "whole"]) == 0
    assert main(["train", "many.toml", "--out", "cut", "train.steps=60", "train.chunk=7"]) == 0
    assert main(["train", "--resume", "cut", "train.steps=120"]) == 0
    assert_equal_runs("whole", "cut")
    found = trained.evaluate(folder / "whole")
    assert min(found["left_accuracy"], found["right_accuracy"], found["accuracy"]) > 0.8
    assert found["sum_rmse"] < 0.8
    lines = [json.loads(line) for line in (folder / "whole" / "metrics.jsonl").read_text().splitlines()]
    weights = np.array(
        [[line[f"weight_{name}"] for name in ("left", "right", "sum")] for line in lines if "weight_sum" in line]
    )
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-4)
    assert weights.min() >= 0
    figures = {path.name for path in (folder / "whole" / "figures").iterdir()}
    assert figures >= {"left_confusion.png", "right_confusion.png"}
    rows = list(trained.load("whole").rows(np.eye(6, dtype=np.float32)[:2]))
    assert rows[0].keys() == {"left", "right", "sum"}
    assert isinstance(rows[0]["left"], int)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["task.heads=[{ name = 'one' }]"], "task.heads: 1 of them; expected targets y [n, heads], found y [320, 3]"),
        (["task.heads=[]"], "heads: found none"),
        (["task.heads=[{ name = 'a' }, { name = 'a' }]"], "heads: found a, a"),
        (["task.heads=[{ name = 'a' }, { name = 'b', classes = 2 }, { name = 'c' }]"], "task.heads.1.classes: found 2"),
        (["estimator.shared=nothing"], "nothing"),
        (["task.kind=regression", "task.width=1"], "task.width"),
    ],
    ids=str,
)
def test_mistakes(folder, capsys, arguments, said):
    """One line, and nothing written."""
    assert main(["train", "many.toml", "--out", "r", *arguments]) == 2
    line = capsys.readouterr().err.strip()
    assert said in line
    assert "\n" not in line
    assert not (folder / "r").exists()


def test_min_norm_of_one_loss(folder, capsys):
    """A task of one loss is told so."""
    (folder / "one.toml").write_text(
        '[task]\nkind = "classification"\n[model]\nkind = "mlp"\n[data]\nkind = "digits"\n'
        '[estimator]\nkind = "min_norm"\n[train]\nsteps = 1\n'
    )
    assert main(["train", "one.toml", "--out", "r"]) == 2
    assert "estimator.kind: it weighs several losses; this task has one" in capsys.readouterr().err


def test_pairs_of_digits(tmp_path, monkeypatch):
    """Where each digit lies, the brighter pixel over the other, two classes always, splits of digits of their own."""

    rng = np.random.default_rng(0)
    for name, n in (("train", 120), ("t10k", 40)):
        x = rng.integers(1, 200, (n, 8, 8)).astype(np.uint8) + (50 if name == "t10k" else 0)
        y = rng.integers(0, 4, n).astype(np.uint8)
        axes = [b"".join(n.to_bytes(4, "big") for n in a.shape) for a in (x, y)]
        header = [bytes([0, 0, 8, 3]) + axes[0], bytes([0, 0, 8, 1]) + axes[1]]
        (tmp_path / "mnist").mkdir(exist_ok=True)
        for kind, head, a in (("images-idx3", header[0], x), ("labels-idx1", header[1], y)):
            (tmp_path / "mnist" / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + a.tobytes()))
        if name == "train":
            train, labels = x, {image.tobytes(): label for image, label in zip(x, y)}
    monkeypatch.chdir(tmp_path)
    data = MnistPairs(size=10, train=300, validation=50, test=60).load()
    for split, n in (("train", 300), ("validation", 50), ("test", 60)):
        part = data.split(split)
        assert part["x"].shape == (n, 10, 10)
        assert (part["y"][:, 0] != part["y"][:, 1]).all()
    tops = {split: {a[:2, :2].tobytes() for a in data.split(split)["x"]} for split in ("train", "validation", "test")}
    known = {a[:2, :2].tobytes() for a in train}
    assert tops["train"] | tops["validation"] <= known
    assert not tops["train"] & tops["validation"]
    assert not tops["test"] & known
    x = data.train["x"]
    assert (x[:, :2, 8:] == 0).all()
    assert (x[:, 8:, :2] == 0).all()
    firsts = {a.tobytes(): a for a in train}
    overlap = 0
    for image, y in zip(x[:20], data.train["y"]):
        a = next(f for f in firsts.values() if (f[:2] == image[:2, :8]).all() and (f[:, :2] == image[:8, :2]).all())
        b = next(f for f in firsts.values() if (f[-2:] == image[-2:, 2:]).all() and (f[:, -2:] == image[2:, -2:]).all())
        expected = np.zeros((10, 10), np.uint8)
        expected[:8, :8] = a
        expected[2:, 2:] = np.maximum(expected[2:, 2:], b)
        np.testing.assert_array_equal(image, expected)
        assert y.tolist() == [labels[a.tobytes()], labels[b.tobytes()]]  # the upper left one first
        overlap += 1
    assert overlap == 20
