"""The check of derivatives: right ones pass, wrong ones planted in every layer are named, kinks are no mistakes."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functrain import ctc, losses, tree
from functrain.autodiff.check import WHOLE, gradient_check, slopes
from functrain.cli import main
from functrain.layers import (
    attention,
    batch_norm,
    conv,
    dropout,
    embedding,
    group_norm,
    layer_norm,
    linear,
    pool,
    recurrent,
    rms_norm,
)

pytestmark = pytest.mark.usefixtures("quick")
KEY = jax.random.key(0)
IDS = jnp.array([[0, 2, 1], [4, 2, 2]])


def draw(*shape):
    return jax.random.normal(jax.random.fold_in(KEY, len(shape)), shape)


def moved(params):
    """Parameters away from ones and zeros, at which many a mistake does not show."""
    return jax.tree.map(lambda x: x + 0.3 * jax.random.normal(KEY, x.shape), params)


def normalised(params, x):
    return batch_norm.apply(params, batch_norm.init(None, 3)[1], x, train=True)[0]


def entropy(params, labels):
    mean = losses.cross_entropy(params["x"], labels)
    return mean.total / mean.count


LAYERS = {
    # name: (parameters, f(parameters, x), x)
    "linear": (linear.init(KEY, 3, 2), linear.apply, draw(4, 3)),
    "conv": (conv.init(KEY, 2, 3, kernel=(3, 2)), conv.apply, draw(2, 5, 4, 2)),
    "conv_transpose": (conv.init(KEY, 2, 3, kernel=3), lambda p, x: conv.transpose(p, x, stride=2), draw(2, 4, 2)),
    "layer_norm": (layer_norm.init(None, 3), layer_norm.apply, draw(4, 3)),
    "group_norm": (group_norm.init(None, 4), lambda p, x: group_norm.apply(p, x, 2), draw(2, 3, 4)),
    "rms_norm": (rms_norm.init(None, 3), rms_norm.apply, draw(4, 3)),
    "batch_norm": (batch_norm.init(None, 3)[0], normalised, draw(4, 3)),
    "attention": (
        attention.init(KEY, 4, 2),
        lambda p, x: attention.apply(p, x, heads=2, causal=True),
        draw(2, 3, 4),
    ),
    "embedding": (embedding.init(KEY, 5, 3), lambda p, x: embedding.apply(p, IDS), None),
    "lstm": (recurrent.init(KEY, 2, 3), lambda p, x: recurrent.apply(p, x, cell="lstm")[0], draw(2, 4, 2)),
    "gru": (recurrent.init(KEY, 2, 3, cell="gru"), lambda p, x: recurrent.apply(p, x, cell="gru")[0], draw(2, 4, 2)),
    "max_pool": ({"x": draw(2, 4, 4, 3)}, lambda p, _: pool.max(p["x"], 2), None),
    "average_pool": ({"x": draw(2, 5, 3)}, lambda p, _: pool.average(p["x"], 2), None),
    "dropout": ({"x": draw(6, 5)}, lambda p, key: dropout.apply(p["x"], 0.4, key=key, train=True), KEY),
    "cross_entropy": ({"x": draw(6, 5)}, entropy, jnp.arange(6) % 5),
    "ctc": ({"x": draw(2, 5, 4)}, lambda p, y: ctc.loss(p["x"], y), jnp.array([[1, 2], [3, 3]])),
}


def number(y):
    """A loss of a layer's outputs that treats no two of them alike."""
    return jnp.sum(jnp.sin(y) * jnp.cos(1.0 + jnp.arange(y.size)).reshape(y.shape))


def rows(checked):
    return {(row.path, row.check): row for row in checked.rows}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_pass(name):
    """Differences decide every leaf of every layer, closely; forward mode agrees; the complex step where it can."""
    params, f, x = LAYERS[name]
    found = gradient_check(lambda p, x: number(f(p, x)))(moved(params), x)
    assert found.passed, found.failed
    assert {row.path for row in found.rows} - {WHOLE} == set(tree.by_path(params))
    for row in found.rows:
        assert row.verdict == ("skipped" if row.check == "complex step" and row.note else "ok"), row
        assert row.verdict == "skipped" or row.error <= row.tolerance < 1e-4


WAYS = {
    "factor": lambda g: g * (1 + 1e-4),
    "sign": lambda g: -g,
    "index": lambda g: jnp.roll(g.ravel(), 1).reshape(g.shape),
    "dropped": lambda g: g.at[(slice(None),) * (g.ndim - 1) + (0,)].set(0),
}


def spoilt(f, path, wrong):
    """The function with a backward of its own, wrong at one parameter."""

    @jax.custom_vjp
    def g(params, x):
        return f(params, x)

    def backward(kept, y):
        params, x = kept
        gradients = jax.vjp(lambda p: f(p, x), params)[1](y)[0]
        return tree.map_by_path(lambda at, leaf: wrong(leaf) if at == path else leaf, gradients), None

    g.defvjp(lambda params, x: (f(params, x), (params, x)), backward)
    return g


@pytest.mark.parametrize("name", LAYERS)
def test_a_wrong_backward_is_caught_and_named(name):
    """In every layer, at one parameter or two of them, ways to be wrong in turn: their rows fail, and no other's."""
    params, f, x = LAYERS[name]
    params, at = moved(params), list(LAYERS).index(name)
    paths = [path for path in tree.by_path(params) if path != "key/bias"]  # softmax takes no notice of that one
    ways = [("factor", "sign", "index", "dropped")[(at + i) % 4] for i in (0, 1)]
    chosen = dict(zip([paths[at % len(paths)], paths[(at + 1) % len(paths)]], ways))
    wrong = f
    for path, way in chosen.items():
        wrong = spoilt(wrong, path, WAYS[way])
    found = gradient_check(lambda p, x: number(wrong(p, x)), directions=2)(params, x)
    by = rows(found)
    assert {row.path for row in found.failed} == chosen.keys() | ({WHOLE} if len(paths) > 1 else set())
    assert found.worst.path in chosen
    with jax.enable_x64(True):
        exact = jax.grad(lambda p: number(f(p, _wide(x))))(_wide(params))
    for path, way in chosen.items():
        row, right = by[path, "differences"], tree.by_path(exact)[path]
        assert row.verdict == "wrong", way
        # The number named is wrong indeed, and both values are of that number.
        with jax.enable_x64(True):
            given = WAYS[way](right)
        assert row.reverse == pytest.approx(float(given[row.index]), rel=1e-9)
        assert row.found == pytest.approx(float(right[row.index]), rel=1e-6, abs=1e-8)
        assert abs(row.reverse - row.found) > 1e-8
        assert by[path, "forward mode"].verdict == "skipped"  # of a custom_vjp: said, not passed over
        assert "forward" in by[path, "forward mode"].note


def _wide(x):
    with jax.enable_x64(True):
        return tree.cast(x, jnp.float64)


def test_polynomials():
    """To the last digits, also far from 1, near the end of a domain, and where the value is far larger."""

    def f(p, c):
        return p["a"] ** 3 * c + jnp.sum(p["b"] ** 2) + p["a"] * p["b"][1]

    found = gradient_check(f)({"a": 2.0, "b": jnp.array([1.0, -3.0]), "n": jnp.int32(4)}, 0.5)
    assert found.passed
    assert len(found.rows) == 9  # two leaves and the whole, by three checks; integers have no derivative
    assert all(row.verdict == "ok" and row.error < 1e-11 for row in found.rows)
    assert gradient_check(lambda p: jnp.sum(jnp.log(p)))(jnp.array([1e-2, 1e5])).passed
    assert gradient_check(lambda p: 1e8 + jnp.sum(jnp.tanh(p)))(draw(5)).passed
    assert gradient_check(lambda p: jnp.sum(jnp.exp(30 * p)))(draw(5)).passed
    assert gradient_check(lambda p: jnp.sum(0 * p))(draw(5)).passed


def test_tolerances_are_those_of_the_error():
    """Over many functions the estimated error holds, and is no excuse: it is small too."""
    cases = {
        "exp": (np.exp, np.exp),
        "sin(20 x)": (lambda x: np.sin(20 * x), lambda x: 20 * np.cos(20 * x)),
        "x^5 + 1e6": (lambda x: x**5 + 1e6, lambda x: 5 * x**4),
        "1 / (x + 0.3)": (lambda x: 1 / (x + 0.3), lambda x: -1 / (x + 0.3) ** 2),
        "sqrt": (np.sqrt, lambda x: 0.5 / np.sqrt(x)),
        "a kink aside": (lambda x: abs(x - 0.5), lambda x: np.sign(x - 0.5)),
    }
    for name, (f, derivative) in cases.items():
        ratios = []
        for x in np.random.default_rng(1).uniform(0.02, 2, 50):
            found = slopes(lambda h: f(x + h))  # noqa: B023
            ratios.append(abs(found.central - derivative(x)) / found.error)
            assert found.error < 1e-7 * max(1, abs(f(x))), (name, x)
            assert not found.kinked, (name, x)
        assert max(ratios) < 5, (name, max(ratios))


def test_an_inconsistent_pair_of_rules():
    """A transpose that is not the forward rule's: forward mode differs from reverse; differences say who errs."""
    by = jax.custom_derivatives.linear_call

    def f(params):
        turn = by(lambda r, x: r * x, lambda r, y: r * y * jnp.array([1.0, 1.0, 1 + 1e-6]), 2.0, params["w"])
        return jnp.sum(jnp.sin(turn) + params["v"])

    found = rows(gradient_check(f)({"v": draw(3), "w": draw(3)}))
    assert found["w", "forward mode"].verdict == "wrong"
    assert found["w", "forward mode"].index == (2,)
    assert found["w", "differences"].verdict == "wrong"
    assert all(found["v", check].passed for check in ("differences", "forward mode"))

    @jax.custom_jvp
    def square(x):
        return x**2

    square.defjvp(lambda at, d: (at[0] ** 2, 2.001 * at[0] * d[0]))  # wrong, but both ways alike
    found = rows(gradient_check(lambda p: jnp.sum(square(p)))(draw(4)))
    assert found["params", "forward mode"].verdict == "ok"
    assert found["params", "differences"].verdict == found["params", "complex step"].verdict == "wrong"


def test_kinks_are_not_mistakes():
    """relu at random points passes; at its kink the row says so; a wrong backward is wrong there too."""
    assert all(row.verdict != "kink" for row in gradient_check(lambda p: jnp.sum(jax.nn.relu(p)))(draw(50)).rows)
    for f in (jnp.abs, jax.nn.relu, lambda x: jnp.maximum(x, 2 * x)):
        found = gradient_check(lambda p: jnp.sum(f(p)))(jnp.zeros(9))  # noqa: B023
        assert rows(found)["params", "differences"].verdict == "kink"
        assert found.passed
        wrong = spoilt(lambda p, x: f(p), "", lambda g: 1.001 * g)  # noqa: B023
        found = gradient_check(lambda p: jnp.sum(wrong(p, None)))(jnp.zeros(9))  # noqa: B023
        assert rows(found)["params", "differences"].verdict == "wrong"

    def net(p, x):
        return jnp.sum(jnp.sin(jax.nn.relu(x @ p["a"] + p["b"]) @ p["c"]))

    # Rows of zeros with a bias of zero, as the edges of pictures are: many units lie at their kink.
    x = draw(20, 6).at[::2].set(0)
    params = {"a": draw(6, 30), "b": jnp.zeros(30), "c": draw(30, 2)}
    found = gradient_check(net)(params, x)
    assert found.passed
    assert rows(found)["b", "differences"].verdict == "kink"
    wrong = spoilt(net, "b", WAYS["factor"])
    found = gradient_check(wrong)(params, x)
    assert {row.path for row in found.failed} == {"b", WHOLE}


def test_what_cannot_be_decided_does_not_pass():
    """A jump at each point, and a part that is rounded to nothing: unclear or wrong, never passed over."""
    rough = lambda p: jnp.sum(p**2) + 1e-3 * jnp.sum(jnp.sin(1e12 * p))  # noqa: E731
    found = gradient_check(lambda p: rough(p))(draw(5))
    assert not found.passed
    straight = lambda p: jnp.sum(p**2 + p + jax.lax.stop_gradient(jnp.round(p) - p))  # noqa: E731
    assert gradient_check(straight)(draw(5)).worst.verdict == "wrong"
    low = lambda p: 1e-4 * jnp.sum(p) + jnp.sum((10 * p**2).astype(jnp.float16)).astype(p.dtype)  # noqa: E731
    assert "float16" in gradient_check(low)(draw(5)).worst.note
    root = gradient_check(lambda p: jnp.sum(jnp.sqrt(jnp.abs(p))))(jnp.array([0.0, 1.0]))
    assert not root.passed


def test_the_complex_step_where_it_is_possible():
    """Analytic: used, and exact enough for what differences cannot see. Otherwise skipped, with the reason."""
    tiny = spoilt(lambda p, x: jnp.sum(jnp.exp(p)), "", lambda g: g.at[2].multiply(1 + 1e-9))
    found = rows(gradient_check(lambda p: tiny(p, None))(draw(4)))
    assert found["params", "complex step"].verdict == "wrong"
    assert found["params", "complex step"].index == (2,)
    for f, why in (
        (lambda p: jnp.sum(jnp.abs(p + 3)), "real value"),
        (lambda p: jnp.sum(p * jnp.conj(p) * p), "not analytic"),
        (lambda p: jnp.sum(jax.lax.erf(p)), "takes no complex numbers"),
    ):
        found = gradient_check(f)(draw(4))
        assert found.passed
        row = rows(found)["params", "complex step"]
        assert row.verdict == "skipped"
        assert why in row.note


def test_random_numbers_and_types_of_arguments():
    """Keys, integers and what is no array go through; floats are wide, whatever they were."""
    seen = {}

    def f(params, batch, key, power):
        seen.update(jax.tree.map(lambda x: x.dtype, batch))
        return jnp.sum(jax.random.normal(key, (3,)) * params["w"] ** power * batch["x"][batch["i"]])

    batch = {"x": np.ones(4, np.float32), "i": np.array([0, 1, 3])}
    assert gradient_check(f)({"w": jnp.ones(3, jnp.bfloat16), "none": jnp.zeros((0, 2))}, batch, KEY, 2).passed
    assert seen == {"x": np.float64, "i": np.int64} or seen == {"x": np.float64, "i": np.int32}
    told = []
    gradient_check(lambda p: p["a"] * p["b"], tell=lambda *at: told.append(at))({"a": 1.0, "b": 2.0})
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_what_is_refused():
    """Nothing to differentiate, no number, not finite."""
    with pytest.raises(ValueError, match="no floating-point number"):
        gradient_check(jnp.sum)(jnp.arange(3))
    with pytest.raises(ValueError, match="expected a float"):
        gradient_check(jnp.sin)(jnp.ones(3))
    with pytest.raises(ValueError, match="directions 0"):
        gradient_check(jnp.sum, directions=0)
    with pytest.raises(FloatingPointError, match="nan"):
        gradient_check(lambda p: jnp.sum(jnp.log(p)))(-jnp.ones(3))


# -- the command ----------------------------------------------------------------------------------

CONFIG = """
task.kind = "classification"
data.kind = "digits"
optimizer.kind = "adamw"
train.steps = 10
"""
MLP = CONFIG + 'model = { kind = "mlp", hidden = [8], dropout = 0.2 }\n'
OWN = CONFIG + 'model = { kind = "custom", target = "checked_model:model" }\n'
MODEL = """
import jax
import jax.numpy as jnp


@jax.custom_vjp
def scaled(x, scale):
    return x * scale


scaled.defvjp(lambda x, s: (x * s, (x, s)), lambda r, g: (g * r[1], (g * r[0]).sum(0) * (1 + 1e-4)))


def model():
    def init(key):
        return {"out": jax.random.normal(key, (64, 10)) / 8, "scale": jnp.ones(10)}
    def apply(params, x):
        return scaled(x.reshape(len(x), -1) @ params["out"], params["scale"])
    return init, apply
"""


def command(capsys, *arguments):
    status = main(["check", *arguments])
    out, line = capsys.readouterr()
    return status, out, line


def test_the_command(tmp_path, monkeypatch, capsys):
    """Status 0 and every parameter in the table; 1 and the parameter's name where a model's own backward is wrong."""
    monkeypatch.chdir(tmp_path)
    Path("c.toml").write_text(MLP)
    status, out, _ = command(capsys, "c.toml", "--examples", "4", "--directions", "2", "precision.kind=bfloat16")
    assert status == 0
    assert all(name in out for name in ("layer0/kernel", "layer1/bias", "vs differences", "vs forward mode"))
    last = json.loads(out.splitlines()[-1])
    assert last["passed"] is True
    assert last["worst"]["verdict"] == "ok"
    Path("checked_model.py").write_text(MODEL)
    Path("c.toml").write_text(OWN)
    status, out, _ = command(capsys, "c.toml", "optimizer.freeze=['out']")  # what is frozen is checked as well
    assert status == 1
    last = json.loads(out.splitlines()[-1])
    assert (last["passed"], last["worst"]["parameter"], last["worst"]["verdict"]) == (False, "scale", "wrong")
    assert last["worst"]["reverse"] == pytest.approx(last["worst"]["found"] * (1 + 1e-4), rel=1e-6)
    assert "scale[" in out
    assert "out  " in out
    assert "no forward mode" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["model.hiden=3"], ("model.hiden", "hidden")),
        (["--examples", "0"], ("--examples 0",)),
        (["--directions", "0"], ("--directions 0",)),
        (["optimizer.peak_lr=x"], ("optimizer.peak_lr",)),
    ],
)
def test_mistakes_are_one_line(arguments, says, tmp_path, monkeypatch, capsys):
    """Status 2."""
    monkeypatch.chdir(tmp_path)
    Path("c.toml").write_text(MLP)
    status, out, line = command(capsys, "c.toml", *arguments)
    assert (status, out) == (2, "")
    assert line.count("\n") == 1
    assert all(part in line for part in says), line


TWO_PLAYERS = """
from dataclasses import dataclass

import numpy as np
from toys import TinyGAN


@dataclass(frozen=True, kw_only=True)
class Task(TinyGAN):
    kind: str = "two_players"


def arrays():
    return {"train": {"x": np.ones((64, 2))}}
"""


def test_a_task_of_two_players_is_refused(tmp_path, monkeypatch, capsys):
    """In one line, as of `functrain precision`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(Path(__file__).parent)
    Path("two_players.py").write_text(TWO_PLAYERS)
    own = "{ kind = 'custom', target = '%s' }"
    text = f"task = {own % 'two_players:Task'}\ndata = {own % 'two_players:arrays'}\ntrain.steps = 10\n"
    Path("c.toml").write_text(text)
    status, out, line = command(capsys, "c.toml")
    assert (status, out, line.count("\n")) == (2, "", 1)
    assert "check: a loss is of one player" in line
    assert "generator, discriminator" in line
