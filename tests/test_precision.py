"""Precision: policies, low precision imitated, the reference in float64, the report, and the search for dtypes."""

import itertools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_equal_runs, digits_feed, final_arrays, gap, leaves, mlp_task, same, start, train
from jax import lax

from functrain import _compat, precise, tree
from functrain.cli import main
from functrain.config import ConfigError
from functrain.models import MLP
from functrain.observe.console import BoundLine
from functrain.optim import Learner
from functrain.precise.measure import _group
from functrain.precise.search import _choices
from functrain.precision import Auto, Autocast, BFloat16, Float16, Float32, Rule, Rules, autocast
from functrain.precision.emulate import emulated, part_of
from functrain.runs import read_config
from functrain.tasks import GAN, Classification
from functrain.train import step

# -- policies -------------------------------------------------------------------------------------


def _products(task, digits):
    """The dtypes of the inputs of every matrix product in a step, in order."""
    train_state, feed = start(task), digits_feed(digits)
    batch = jax.eval_shape(feed.batch, feed.arrays, train_state.step)
    found = []

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                found.append({v.aval.dtype.name for v in equation.invars})
            for inner in _compat.inner_jaxprs(equation):
                walk(inner)

    walk(_compat.live_jaxpr(jax.make_jaxpr(step.make_step(task))(train_state, batch)))
    return found


def test_autocast_is_a_policy(digits):
    """Products in its dtype but where a rule says otherwise; a loss scale where float16 is used, else none."""
    assert _products(mlp_task(precision=Autocast()), digits) == [{"bfloat16"}] * 5
    first = Rule(of="matmul", dtype="float32", scope="layer0")
    found = _products(mlp_task(precision=Autocast(dtype="float16", rules=(first,))), digits)
    assert [found.count({dtype}) for dtype in ("float16", "float32")] == [3, 2]
    mixed = Autocast(rules=(Rule(of="matmul", dtype="float16", scope="layer1"),))
    for policy in (mixed, Autocast(dtype="float16")):
        assert float(start(mlp_task(precision=policy)).players["model"].scale.value) == 65536
    assert start(mlp_task(precision=Autocast())).players["model"].scale is None


def test_kept_parameters_compute_in_float32(digits):
    """Patterns of paths; a pattern of nothing is named, of one player too."""
    found = _products(mlp_task(precision=BFloat16(keep=("layer0/",))), digits)
    assert [found.count({dtype}) for dtype in ("bfloat16", "float32")] == [3, 2]
    params = start(mlp_task()).players["model"].params
    with pytest.raises(ConfigError, match=r"players.x.precision.keep: pattern 'head' matches no parameter"):
        Float16(keep=("head",)).check(params, "players.x.precision")


@pytest.mark.parametrize("policy", [BFloat16(parameters="low", keep=("bias$",)), Float16(parameters="low")])
def test_parameters_may_be_kept_low(digits, policy):
    """They stay in that dtype while they train, the moments in float32; those of `keep` too."""
    outcome, log = train(mlp_task(precision=policy), digits_feed(digits), steps=120, chunk=40, log_every=40)
    player = outcome.train_state.players["model"]
    for path, leaf in tree.by_path(player.params).items():
        assert leaf.dtype == (jnp.float32 if policy.keep and path.endswith("bias") else jnp.dtype(policy.dtype))
    assert {leaf.dtype.name for leaf in leaves(player.optimizer) if leaf.ndim} == {"float32"}
    assert log.lines[-1][2]["loss"] < 0.8 * log.lines[0][2]["loss"]


@pytest.mark.parametrize("policy", [Autocast(), Autocast(dtype="float16")])
def test_autocast_trains_in_any_chunk(digits, policy):
    """Chunks of 1 and of 40 are the same bit for bit; what comes out is not what float32 gives."""
    found = [
        train(mlp_task(precision=p), digits_feed(digits), steps=80, chunk=chunk, log_every=80)[0].train_state
        for p, chunk in ((policy, 1), (policy, 40), (Float32(), 40))
    ]
    assert same(*(f.players["model"] for f in found[:2]))
    assert 1e-5 < gap(found[0].players["model"].params, found[2].players["model"].params) < 0.2


# -- imitation ------------------------------------------------------------------------------------


def test_rounding_is_that_of_the_dtypes():
    """bfloat16 and float16 as numpy casts to them: small ones, the smallest, too large ones; cotangents alike."""
    exponents = np.arange(-30, 18)
    x = (np.random.default_rng(0).uniform(1, 2, (400, len(exponents))) * 2.0**exponents).astype(np.float32)
    x = np.concatenate([x.ravel(), -x.ravel(), [0, 65504, 65520, 65519.9, 2.0**-24, 2.0**-25, 1e-30]]).astype(
        np.float32
    )
    units = {}

    def f(x):
        return lax.neg(x)

    emulated(f, units)(x)
    for number, dtype in ((1, jnp.bfloat16), (2, np.float16)):
        with np.errstate(over="ignore"):
            want = x.astype(dtype).astype(np.float32)
        found, pull = jax.vjp(emulated(f, units, jnp.array([number])), x)
        np.testing.assert_array_equal(found, -want)
        np.testing.assert_array_equal(pull(jnp.asarray(x))[0], -want)


@jax.custom_vjp
def _thrice(x):
    return x * 2


_thrice.defvjp(lambda x: (x * 2, jnp.sum(x)), lambda s, g: (3 * g,))


@jax.custom_jvp
def _twice(x, n):
    return jnp.sin(x) * n


_twice.defjvp(lambda xs, ts: (_twice(*xs), 2 * jnp.cos(xs[0]) * ts[0] * xs[1]))


def _nested(w, x):
    """One of each that holds functions."""

    def body(carry, row):
        carry = jnp.tanh(row @ w + carry)
        return carry, _thrice(carry)

    carry, ys = lax.scan(body, jnp.zeros(3), x)
    y = lax.cond(carry.sum() > 0, lambda c: c @ w, lambda c: 2.0 * c, carry)
    y = jax.checkpoint(lambda y: jax.jit(jnp.exp)(y @ w))(y)
    n = lax.stop_gradient(lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] * 1.5), (0, carry[0]))[1])
    return jnp.sum(_twice(y, 2)) + ys.sum() + n


@pytest.mark.usefixtures("quick")
def test_an_imitation_of_float32_is_exact():
    """Through loops, branches, remat and custom rules, which stay the user's; costs count how often a loop runs."""
    w, x = (jax.random.normal(jax.random.key(i), (n, 3)) for i, n in enumerate((3, 5)))
    units = {}
    emulated(_nested, units, flops=lambda e: int(e.primitive.name == "dot_general"))(w, x)
    assert units["matmul", ""].flops == 5 + 1 + 1
    zero = jnp.zeros(len(units), int)
    for choice in (None, zero):
        found = jax.jit(jax.value_and_grad(emulated(_nested, dict(units), choice), (0, 1)))(w, x)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(jax.value_and_grad(_nested, (0, 1))(w, x))):
            np.testing.assert_allclose(a, b, rtol=2e-6)
    low = jax.jit(lambda choice: jax.grad(emulated(_nested, dict(units), choice), (0, 1))(w, x))
    for i in range(len(units)):
        error = float(precise.relative(low(zero.at[i].set(1)), low(zero)))
        least = 0 if list(units)[i][0] == "reduction" else 1e-5  # a sum's derivative is 1 in any dtype
        assert least <= error < 0.3, list(units)[i]


def test_parts_are_named_by_their_first_two_scopes():
    """Without what transformations, jits and methods add."""
    for scope, part in {
        "jvp(block0)/attention/jit(_where)": "block0/attention",
        "transpose(jvp(stage1))/block2/conv1": "stage1/block2",
        "vmap(layer0)": "layer0",
        "while/body/closed_call/layer1": "layer1",
        "": "",
    }.items():
        assert part_of(scope) == part


# -- the gradient ---------------------------------------------------------------------------------


def _task(**settings):
    """A classifier of digits with a learner."""
    precision = settings.pop("precision", Float32())
    model = MLP(inputs=(8, 8), outputs=10, hidden=(24, 16), **settings)
    return Classification(model=model, learner=Learner(precision=precision))


def _batches(digits, count=4, size=32):
    feed = digits_feed(digits, size)
    return [jax.jit(feed.batch)(feed.arrays, jnp.int32(i)) for i in range(count)]


@pytest.mark.usefixtures("quick")
def test_the_gradient_in_float64(digits):
    """That of the same loss in numbers of 64 bits; with dropout, the mask is that of the run."""
    batch = _batches(digits, 1)[0]
    task = _task(activation="tanh")
    train_state = start(task)
    found = precise.in_float64(precise.gradient(task))(train_state, batch)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(found)} == {"float64"}
    with jax.enable_x64(True):
        wide = tree.cast(train_state.players["model"].params, jnp.float64)
        inputs = tree.cast(batch, jnp.float64)

        def loss(params):
            mean, _, _ = task.full_loss(params, {}, inputs, key=None, train=False)
            return mean.total / mean.count

        want = jax.tree.map(np.asarray, jax.grad(loss)(wide))
    assert float(precise.relative(found, want, np)) < 1e-13
    single = jax.tree.map(np.asarray, precise.gradient(task)(train_state, batch))
    assert 1e-9 < float(precise.relative(single, found, np)) < 1e-6
    task = _task(dropout=0.5)
    train_state = start(task)
    exact = precise.in_float64(precise.gradient(task))(train_state, batch)
    assert float(precise.relative(jax.device_get(precise.gradient(task)(train_state, batch)), exact, np)) < 1e-6


@pytest.mark.usefixtures("quick")
def test_what_is_drawn_stays(digits):
    """Dropout's mask is the same however low elementwise steps are; imitated too."""
    batch = _batches(digits, 1)[0]
    task = _task(dropout=0.5)
    train_state = start(task)
    exact = precise.gradient(task)(train_state, batch)
    low = Autocast(dtype="float16", rules=(Rule(of="elementwise", dtype="float16"),))
    found = precise.gradient(task, low)(train_state, batch, jnp.float32(1024))
    assert 1e-5 < float(precise.relative(found, exact)) < 0.02  # another mask would be about 1


@pytest.mark.usefixtures("quick")
def test_a_policy_errs_as_it_is_imitated(digits):
    """Products in bfloat16, and in float16: the report's figure for that class is the policy's own error."""
    batches = _batches(digits, 2)
    for dtype in ("bfloat16", "float16"):
        task = _task(precision=Autocast(dtype=dtype, rules=(Rule(of="elementwise", dtype="float32"),)))
        found = precise.measure(task, start(task), batches)
        by_name = {row.name: row for row in found.classes}
        assert found.error == pytest.approx(by_name["matmul"].alone, rel=0.05)
        assert by_name["elementwise"].rest == pytest.approx(by_name["matmul"].alone, rel=1e-3)
        assert found.exact < 1e-6 < 1e-4 < found.error < 0.1
        assert {group.name for group in found.groups} == {"layer0", "layer1", "layer2"}
        assert sum(row.flops for row in found.classes) == pytest.approx(1)
        assert found.parts["matmul", "layer0"] < by_name["matmul"].alone


def test_errors_are_taken_in_float64():
    """A gradient of some 1e-25, whose squares float32 does not hold, has its error all the same."""
    double = 1e-25 * np.array([1.0, 1e-4])
    found = _group("layer0", [[[x] for x in (1e-25 * np.array([1.0, 0.0]), double * (1 + 1e-9), double)]])
    assert found.error == pytest.approx(1e-4, rel=1e-3)
    assert found.exact == pytest.approx(1e-9, rel=1e-3)
    assert (found.under, found.over) == (0.5, 0.0)


@pytest.mark.usefixtures("quick")
def test_underflow_is_counted(digits):
    """A tiny loss: most of the gradient is zero in float16, and its scale brings it back."""
    batches = _batches(digits, 1)
    shares = []
    for scale in (2.0**-20, 2.0**16):
        task = _task(precision=Autocast(dtype="float16", initial_scale=scale))
        found = precise.measure(task, start(task), batches)
        shares.append((max(g.under for g in found.groups), max(row.under for row in found.classes)))
    assert shares[0][0] > 0.2 > 0.01 > shares[1][0]
    assert shares[0][1] > shares[1][1]


def test_only_one_player_is_measured():
    """A GAN has two gradients."""
    with pytest.raises(ConfigError, match=r"task.kind = 'gan' has generator, discriminator"):
        precise.gradient(GAN())


# -- the search -----------------------------------------------------------------------------------


def test_choices_go_from_cheap_to_exact():
    """Each by one change, and less error with each; of what may be saved within a target at least two thirds are."""
    rng = np.random.default_rng(1)
    price = np.array([1.0, 0.5, 0.5])
    for _ in range(40):
        errors = np.stack([np.zeros(5), *(rng.lognormal(-5, 1.2, (2, 5)) * [[1], [0.2]])], 1)
        errors[rng.random(5) < 0.2, 2] = np.inf
        costs, target = rng.lognormal(0, 1, 5), 0.007
        choices = _choices(errors, costs)
        sums = [sum(errors[range(5), c] ** 2) for c in choices]
        assert choices[0] == [1] * 5
        assert sums[-1] == 0
        assert all(sum(a != b for a, b in zip(*two)) == 1 for two in itertools.pairwise(choices))
        assert all(later < before for before, later in itertools.pairwise(sums))
        chosen = next(c for c, found in zip(choices, sums) if found <= target**2)
        best = max(
            sum((1 - price[list(c)]) * costs)
            for c in itertools.product(range(3), repeat=5)
            if sum(errors[range(5), list(c)] ** 2) <= target**2
        )
        assert sum((1 - price[chosen]) * costs) >= 2 / 3 * best


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("bound", "low"), [(1e-2, (0.75, 1.0)), (1.0, (1.0, 1.0)), (1e-6, (0.0, 0.0))])
def test_a_search_keeps_its_bound(digits, bound, low):
    """On batches that it has not seen; a wide bound takes all of it low, one that only float32 keeps nothing."""
    task, batches = _task(activation="tanh"), _batches(digits, 12)
    train_state = start(task)
    seen = []
    chosen = precise.search(task, train_state, batches[:4], Auto(bound=bound), lambda done, of: seen.append((done, of)))
    assert seen[-1][0] == seen[-1][1] == len(seen)
    assert low[0] <= chosen.low <= low[1]
    scale = None if chosen.policy.init_scale() is None else jnp.float32(chosen.policy.initial_scale)
    found, exact = (jax.jit(precise.gradient(task, p)) for p in (chosen.policy, Float32()))
    for batch in batches:
        assert float(precise.relative(found(train_state, batch, scale), exact(train_state, batch))) <= bound
    dtypes = {(part.of, part.scope): part.dtype for part in chosen.parts}
    rules = chosen.policy.rules
    for (of, scope), dtype in dtypes.items():
        written = next((r.dtype for r in rules if r.of == of and _matches(r.scope, scope)), chosen.policy.dtype)
        assert written == dtype
    for of in {rule.of for rule in rules}:  # people read the loss
        in_loss = [rule.dtype for rule in rules if rule.of == of and _matches(rule.scope, "loss")]
        assert in_loss[:1] in ([], ["float32"])


def _matches(pattern, scope):
    return re.search(pattern, scope) is not None


def test_parts_with_names_like_others_keep_their_own_rules():
    """layer1 is not layer10."""
    policy = Autocast(rules=(Rule(of="matmul", dtype="float32", scope="^layer1(/|$)"),))

    def f(w):
        with jax.named_scope("layer1"):
            w = w @ w
        with jax.named_scope("layer10"):
            return w @ w

    jaxpr = jax.make_jaxpr(autocast(f, Rules("bfloat16", policy.rules)))(jnp.ones((2, 2)))
    found = [e.invars[0].aval.dtype.name for e in jaxpr.eqns if e.primitive.name == "dot_general"]
    assert found == ["float32", "bfloat16"]


# -- by the command -------------------------------------------------------------------------------

SMALL = """
[task]
kind = "classification"
[model]
kind = "mlp"
hidden = [24, 16]
activation = "gelu"
dropout = 0.2
[data]
kind = "digits"
batch_size = 32
[train]
steps = 60
log_every = 20
[evaluate]
every = 30
[observe]
figures = false
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder with a config."""
    (tmp_path / "c.toml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_auto_is_written_out(folder, capsys):
    """The run's config has rules, and is that of a run that is given them; its error is watched; it resumes bitwise."""
    auto = ["precision.kind=auto", "precision.watch_every=20", "precision.batches=2"]
    assert main(["train", "c.toml", *auto, "--out", "a"]) == 0
    said = capsys.readouterr()
    assert "dtypes chosen" in said.out
    assert "of the matrix products' FLOPs are in 16 bits" in said.out
    found = read_config(Path("a")).precision
    assert isinstance(found, Autocast)
    assert (found.bound, found.watch_every) == (0.01, 20)
    lines = [json.loads(line) for line in Path("a/metrics.jsonl").read_text().splitlines()]
    watched = {line["step"]: line["gradient_error"] for line in lines if "gradient_error" in line}
    assert set(watched) == {20, 40}
    assert all(1e-6 < error < 0.05 for error in watched.values())
    assert main(["train", "a/config.toml", "--out", "b"]) == 0
    assert "dtypes chosen" not in capsys.readouterr().out
    assert_equal_runs(folder / "a", folder / "b")
    assert main(["train", "a/config.toml", "--out", "d", "train.steps=30"]) == 0
    assert main(["train", "--resume", "d", "train.steps=60"]) == 0
    assert same(*(final_arrays(folder / name) for name in ("a", "d")))


def test_an_error_above_its_bound_is_told():
    """Once, and where it has doubled; what is no error is passed over."""
    told = []
    line = BoundLine(told.append, 0.01)
    for at, error in enumerate([0.005, 0.011, 0.015, 0.023, 0.5]):
        line.scalars(at, "train", {"gradient_error": error})
        line.scalars(at, "train", {"loss": 9.0})
    assert [text.split(":")[0] for text in told] == ["step 1", "step 3", "step 4"]
    assert "is 0.011, above precision.bound = 0.01" in told[0]


@pytest.mark.usefixtures("quick")
def test_the_report(folder, capsys):
    """Tables, a picture, and a line of JSON; after steps of training too."""
    line = ["precision", "c.toml", "precision.kind=float16", "--steps", "3", "--batches", "1", "--figure", "p.png"]
    assert main(line) == 0
    said = capsys.readouterr().out
    for text in ("by parameters", "layer2", "by primitives, in float16", "most error", "of float32's time"):
        assert text in said
    found = json.loads(said.splitlines()[-1])
    assert found["float32"] < 1e-6 < found["gradient_error"] < 0.05
    assert Path("p.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["precision", "c.toml", "--batches", "0"], "--batches 0 --steps 0: expected at least 1 and 0"),
        (["precision", "c.toml", "--figure", "no/p.png"], "expected a file .png in a directory that exists"),
        (["train", "c.toml", "precision.kind=auto", "precision.bound=0"], "precision.bound"),
        (["train", "c.toml", "precision.kind=bfloat16", "precision.keep=['x']"], "pattern 'x' matches no parameter"),
        (
            ["train", "c.toml", "precision={kind='autocast', rules=[{of='matmul', dtype='float32', scope='('}]}"],
            "'(' is no regular expression",
        ),
        (["train", "c.toml", "precision={kind='autocast', rules=[{of='conv', dtype='float32'}]}"], "precision.rules"),
        (["train", "c.toml", "players={model={precision={kind='auto'}}}"], '"auto" is for a task of one player'),
    ],
)
def test_mistakes(folder, capsys, arguments, said):
    """One line, status 2, nothing written."""
    arguments = [*arguments, "--out", "r"] if arguments[0] == "train" else arguments
    assert main(arguments) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert said in told[0]
    assert {path.name for path in folder.iterdir()} == {"c.toml"}
