"""Traces: every value and gradient of a function, where it stands, the first that is not finite, and the drawing."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from functrain.autodiff import drawing, traces
from functrain.autodiff.traces import first_nonfinite, trace
from functrain.cli import main

W = 0.3 * jax.random.normal(jax.random.key(0), (6, 6))
X = jax.random.normal(jax.random.key(1), (4, 6))


def micrograd(a, b):
    """The example of micrograd's README."""
    c = a + b
    d = a * b + b**3
    c = c + (c + 1)
    c = c + (1 + c + (-a))
    d = d + (d * 2 + jax.nn.relu(b + a))
    d = d + (3 * d + jax.nn.relu(b - a))
    e = c - d
    f = e**2
    return f / 2.0 + 10.0 / f


def test_the_numbers_of_micrograd():
    """24.7041, and 138.8338 and 645.5773 by its arguments, as its README says."""
    found = trace(micrograd)(-4.0, 2.0)
    assert round(float(found.output), 4) == 24.7041
    assert {n.name: round(float(n.gradients), 4) for n in found.nodes if n.argument} == {"a": 138.8338, "b": 645.5773}
    assert [n.name for n in found.nodes].count("relu") == 2


@jax.custom_vjp
def thrice(x):
    return x * 2


thrice.defvjp(lambda x: (x * 2, None), lambda _, g: (3 * g,))


def everything(w, x):
    """One of each that holds functions."""
    with jax.named_scope("first"):
        h = jax.jit(lambda x: jax.nn.gelu(x @ w))(x)
    h, ys = lax.scan(lambda c, row: (jnp.tanh(c @ w) + row, c.sum()), h, jnp.arange(3.0))
    h = lax.cond(h.sum() > 0, jnp.sin, lambda h: h * 2, h)
    h = jax.checkpoint(lambda h: jax.nn.softmax(thrice(h) @ w))(h)
    return (h**2).sum() + ys.sum()


def test_gradients_are_those_of_grad():
    """Of arguments as jax.grad has them; of results as the derivative by something that is added there."""
    found = trace(everything)(W, X)
    wanted = jax.grad(everything, (0, 1))(W, X)
    for node, want in zip(found.nodes, wanted):
        np.testing.assert_allclose(node.gradients, want, atol=2e-6)
    np.testing.assert_allclose(found.output, everything(W, X), rtol=1e-6)

    def moved(at):
        def f(w, x):
            h = jax.jit(lambda x: jax.nn.gelu(x @ w))(x)
            h, ys = lax.scan(lambda c, row: (jnp.tanh(c @ w) + at[row.astype(int)] + row, c.sum()), h, jnp.arange(3.0))
            h = lax.cond(h.sum() > 0, jnp.sin, lambda h: h * 2, h)
            h = jax.checkpoint(lambda h: jax.nn.softmax(thrice(h) @ w))(h)
            return (h**2).sum() + ys.sum()

        return f(W, X)

    (tanh,) = [n for n in found.nodes if n.name == "tanh" and n.loops]
    assert (tanh.loops, tanh.shape, tanh.values.shape) == ((3,), (4, 6), (3, 4, 6))
    np.testing.assert_allclose(tanh.gradients, jax.grad(moved)(jnp.zeros((3, 4, 6))), atol=2e-6)


def test_where_a_result_stands():
    """Scope, loop, branch and this file's own line; what is computed from what."""
    nodes = trace(everything)(W, X).nodes
    by_name = {}
    for node in nodes:
        by_name.setdefault(node.name, node)
    assert by_name["erf" if "erf" in by_name else "tanh"].scope.startswith("first/")
    assert all(Path(n.source.split(":")[0]).name == "test_trace.py" for n in nodes if not n.argument)
    text = Path(__file__).read_text().splitlines()
    line = int(by_name["thrice"].source.split(":")[1])
    assert "thrice(h) @ w" in text[line - 1]
    assert {n.name for n in nodes if n.branch} == {"sin", "mul"}
    (given,) = by_name["thrice"].inputs
    assert given.branch
    taken = {n.name: float(np.abs(n.values).max()) for n in nodes if n.branch}
    assert min(taken.values()) == 0 < max(taken.values())


def test_statistics():
    """Of each step of a loop; what is not finite is counted apart; kept or not, they are the same."""
    rows = jnp.array([[1.0, -2.0, 0.0], [jnp.inf, 4.0, jnp.nan]])

    def f(rows):
        return lax.scan(lambda total, row: (total + 0 * row[1], row * 2), 0.0, rows)[1][0].sum()

    for keep in (True, False):
        (node,) = [n for n in trace(f, keep=keep)(rows).nodes if n.name == "mul" and n.shape == (3,)]
        told = node.value
        assert told.minimum.tolist() == [-4, 8]
        assert told.maximum.tolist() == [2, 8]
        assert told.mean.tolist() == pytest.approx([-2 / 3, 8])
        assert told.norm.tolist() == pytest.approx([np.sqrt(20), 8])
        assert [told.zeros.tolist(), told.nans.tolist(), told.infs.tolist()] == [[1, 0], [0, 1], [0, 1]]
        assert (node.values is None) == (not keep)


def test_statistics_on_the_device(monkeypatch):
    """Where there is much of it, they are taken there: the same."""

    here = trace(everything, keep=False)(W, X)
    monkeypatch.setattr(traces, "_FETCHED", 0)
    there = trace(everything, keep=False)(W, X)
    for a, b in zip(here.nodes, there.nodes):
        for name in ("minimum", "mean", "norm", "zeros"):
            np.testing.assert_allclose(getattr(a.gradient, name), getattr(b.gradient, name), rtol=1e-5, atol=1e-6)


def test_what_has_no_one_float_is_refused():
    """An array, a whole number."""
    for f in (lambda x: x * 2, lambda x: (x.sum(), x.sum()), lambda x: x.argmax()):
        with pytest.raises(TypeError, match="expected one float"):
            trace(f)(X)


# -- the first number that is not finite --------------------------------------------------------------


def log_in_a_loop(x):
    return lax.scan(lambda c, t: (jnp.log(c - 0.4 * t) + 1.0, c), jnp.abs(x) + 0.5, jnp.arange(6.0))[0].sum()


def masked_root(x):
    y = jnp.maximum(x @ W, 0.0)
    return jnp.where(y > 0, jnp.sqrt(y), 0.0).sum()


def norm_of_nothing(x):
    return jnp.linalg.norm(0.0 * x)


@jax.custom_vjp
def wrong(x):
    return x * 2


wrong.defvjp(lambda x: (x * 2, x), lambda x, g: (g / (x - x),))


def late_in_a_loop(x):
    return lax.scan(lambda c, t: (jnp.where(t == 4, c / 0.0, c), None), jnp.abs(x).sum(), jnp.arange(6))[0]


@pytest.mark.parametrize(
    ("f", "backward", "name", "what", "step", "line"),
    [
        (log_in_a_loop, False, "log", "nan", (3,), "jnp.log(c"),
        (late_in_a_loop, False, "div", "inf", (0,), "c / 0.0"),
        (masked_root, True, "sqrt", "nan", (), "jnp.sqrt(y)"),
        (norm_of_nothing, True, "sqrt", "inf", (), "jnp.linalg.norm"),
        (lambda x: wrong(x @ W).sum(), True, "wrong", "inf", (), "wrong(x @ W)"),
    ],
    ids=["log in a loop", "division in a branch", "masked root", "norm at 0", "wrong custom_vjp"],
)
def test_the_first_that_is_not_finite(f, backward, name, what, step, line):
    """Forward and backward, with line, step of the loop, and what it was computed from."""
    x = X if f is not log_in_a_loop else jnp.ones_like(X)
    (found,) = first_nonfinite(trace(f)(x))
    assert (found.backward, found.node.name) == (backward, name)
    assert found.what == what
    at = int(found.node.source.split(":")[1])
    assert line in Path(__file__).read_text().splitlines()[at - 1]
    if not backward:
        assert found.step == step
        assert found.inputs[0][1] <= found.inputs[0][2]
    assert f"{name} float32" in str(found)


def test_the_log_was_given_less_than_zero():
    """Its range at that step says so."""
    (found,) = first_nonfinite(trace(log_in_a_loop)(jnp.ones_like(X)))
    ((_, low, _),) = found.inputs
    assert low < 0


@pytest.mark.parametrize(
    "f",
    [
        lambda x: jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((4, 6))) > 0, x, -jnp.inf)).var(),
        lambda x: jnp.maximum(jnp.where(x > 0, x, -jnp.inf), -1.0).sum(),
        lambda x: jnp.minimum(x, jnp.inf).sum(),
        lambda x: everything(W, x),
    ],
    ids=["a mask of -inf", "infinities taken away", "a bound", "nothing"],
)
def test_no_false_alarm(f):
    """Infinities that the output does not see are no mistake."""
    found = trace(f)(X)
    assert np.isfinite(found.output)
    assert first_nonfinite(found) == []


# -- the drawing ----------------------------------------------------------------------------------


def two_blocks(params, x):
    for name in ("block0", "block1"):
        with jax.named_scope(name):
            x = jnp.tanh(x @ params[name])
    with jax.named_scope("block0"):
        return (x**2).sum()


def test_scopes_are_stretches_of_the_program():
    """A scope that is entered again is another part; parameters stand with what reads them; rows go down."""
    root = drawing.scopes(trace(two_blocks)({"block0": W, "block1": W}, X))
    scopes = [part for part in root.parts if isinstance(part, drawing.Scope)]
    assert [s.name for s in scopes] == ["block0", "block1", "block0"]
    assert [n.name for n in scopes[1].nodes()] == ["params/block1", "dot_general", "tanh"]
    rows = dict(zip([id(p) for p in root.parts], root.rows))
    assert [rows[id(s)] for s in scopes] == sorted({rows[id(s)] for s in scopes})
    for scope in scopes:
        owner = {id(n): row for part, row in zip(scope.parts, scope.rows) for n in [part]}
        for part in scope.parts:
            assert all(owner[id(i)] < owner[id(part)] for i in part.inputs if id(i) in owner)


def test_colours():
    """Blue below the median, red above, grey for nothing, magenta for what is not finite."""
    assert drawing.colour_of(1.0, 1.0) == "#ffffff"
    assert drawing.colour_of(0.0, 1.0) == "#d9d9d9"
    assert drawing.colour_of(float("nan"), 1.0) == "#e45bd8"
    small, large = (drawing.colour_of(size, 1.0) for size in (1e-5, 1e5))
    assert small == "#347ac4"
    assert large == "#d64541"


def test_a_large_trace_begins_folded():
    """No more boxes than can be read; everything is in the page all the same."""

    def deep(x):
        for i in range(30):
            with jax.named_scope(f"layer{i}"):
                for _ in range(3):
                    x = jnp.sin(x)
        return x.sum()

    found = trace(deep)(X)
    picture = drawing.svg(found)
    assert picture.count("<rect") < 80
    page = drawing.page(found, "deep & narrow")
    assert "deep &amp; narrow" in page
    data = json.loads(re.search(r"const drawn = (.*), size = ", page).group(1).replace("<\\/", "</"))
    assert len([1 for part in data["root"]["parts"] if "parts" in part]) == 30
    assert len(data["edges"]) == 91
    assert not re.search(r"https?://(?!www\.w3\.org)", page)


def test_the_command(tmp_path, monkeypatch, capsys):
    """A table by parts, a page and a picture; mistakes are one line."""
    monkeypatch.chdir(tmp_path)
    Path("c.toml").write_text(
        '[task]\nkind = "classification"\n[model]\nkind = "mlp"\nhidden = [8]\n[data]\nkind = "digits"\n'
        "[train]\nsteps = 2\n"
    )
    assert main(["trace", "c.toml", "--page", "p.html", "--svg", "p.svg", "--examples", "4", "--steps", "1"]) == 0
    said = capsys.readouterr().out
    assert all(part in said for part in ("layer0", "layer1", "loss"))
    assert "params/layer0/kernel" in Path("p.html").read_text()
    assert Path("p.svg").read_text().startswith("<svg")
    for wrong_line in (["--page", "p.txt"], ["--svg", "no/p.svg"], ["--examples", "-1"]):
        assert main(["trace", "c.toml", *wrong_line]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
