"""Second-order optimizers: beside scipy and scikit-learn, at saddles, in runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from helpers import assert_equal_runs
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from functrain.cli import main
from functrain.config import ConfigError
from functrain.metrics import Mean
from functrain.observe.events import history
from functrain.optim import LBFGS, SGD, GaussNewton, Learner, Newton, NewtonCG, minimise
from functrain.optim.subproblem import conjugate_gradients, exact


@pytest.fixture
def _double():
    with jax.enable_x64(True):
        yield


double = pytest.mark.usefixtures("_double")


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def scipys(method, start, **options):
    """scipy's minimum of the same function."""
    f = scipy.optimize
    return f.minimize(f.rosen, start, method=method, jac=f.rosen_der, hess=f.rosen_hess, options=options)


# -- the model's least ----------------------------------------------------------------------------


def _symmetric(n, low, high, seed=0):
    rng = np.random.default_rng(seed)
    vectors = np.linalg.qr(rng.normal(size=(n, n)))[0]
    return vectors * np.linspace(low, high, n) @ vectors.T, rng.normal(size=n), vectors


@double
@pytest.mark.parametrize("low", [1.0, -2.0])
@pytest.mark.parametrize("radius", [0.01, 1.0, 100.0])
def test_the_exact_step_is_the_least_within_its_radius(low, radius):
    """By the conditions of Moré and Sorensen: (H + m I) d = -g, H + m I not negative, m (|d| - radius) = 0."""
    h, g, _ = _symmetric(12, low, 5.0)
    d = np.asarray(exact(jnp.array(h), jnp.array(g), radius).step)
    assert np.linalg.norm(d) <= radius * (1 + 1e-9)
    m = -(d @ (h @ d + g)) / (d @ d)
    assert h @ d + m * d == pytest.approx(-g, abs=1e-8)
    assert m >= max(0.0, -low) - 1e-8
    assert m * (np.linalg.norm(d) - radius) == pytest.approx(0, abs=1e-7)


@double
def test_the_hard_case():
    """A gradient with nothing along the direction that bends down most: the step takes that direction all the same."""
    h, g, vectors = _symmetric(6, -1.0, 5.0)
    g = g - vectors[:, 0] * (vectors[:, 0] @ g)
    found = exact(jnp.array(h), jnp.array(g), 10.0)
    d = np.asarray(found.step)
    assert bool(found.boundary)
    assert np.linalg.norm(d) == pytest.approx(10.0, rel=1e-9)
    assert h @ d + 1.0 * d == pytest.approx(-g, abs=1e-8)


@double
def test_conjugate_gradients():
    """The solution where H bends up; the boundary where a radius, or a direction that bends down, ends it."""
    h, g, _ = _symmetric(12, 1.0, 5.0)
    solved = conjugate_gradients(lambda v: h @ v, jnp.array(g), tolerance=1e-12, iterations=40)
    assert solved.step == pytest.approx(np.linalg.solve(h, -g), abs=1e-10)
    assert int(solved.products) <= 13
    near = conjugate_gradients(lambda v: h @ v, jnp.array(g), tolerance=1e-12, iterations=40, radius=0.1)
    assert float(jnp.linalg.norm(near.step)) == pytest.approx(0.1)
    assert bool(near.boundary)
    h, g, _ = _symmetric(12, -1.0, 5.0)
    down = conjugate_gradients(lambda v: h @ v, jnp.array(g), tolerance=1e-12, iterations=40, radius=3.0)
    assert float(jnp.linalg.norm(down.step)) == pytest.approx(3.0)
    free = conjugate_gradients(lambda v: h @ v, jnp.array(g), tolerance=1e-12, iterations=40)
    assert float(g @ free.step) < 0
    assert np.isfinite(free.step).all()


# -- beside scipy ---------------------------------------------------------------------------------


@double
@pytest.mark.parametrize("n", [2, 20])
def test_newton_takes_scipys_steps_on_rosenbrock(n):
    """The exact solver as many as trust-exact, to the same minimum; Steihaug's is trust-ncg, step for step."""
    start = np.tile([-1.2, 1.0], n // 2)
    ours, theirs = minimise(rosenbrock, start, Newton(), tolerance=1e-8), scipys("trust-exact", start, gtol=1e-8)
    assert ours.converged
    assert abs(ours.steps - theirs.nit) <= 2
    assert ours.params == pytest.approx(theirs.x, abs=1e-6)
    assert ours.point.verdict == "minimum"
    ours = minimise(rosenbrock, start, Newton(solver="steihaug"), tolerance=1e-8, steps=200, classify=False)
    theirs = scipys("trust-ncg", start, gtol=1e-8)
    assert ours.steps == theirs.nit
    assert ours.params == pytest.approx(theirs.x, abs=1e-9)


@double
@pytest.mark.parametrize("n", [2, 20])
def test_newton_cg_needs_no_more_steps_than_scipys(n):
    """On Rosenbrock, to its minimum."""
    start = np.tile([-1.2, 1.0], n // 2)
    ours, theirs = minimise(rosenbrock, start, NewtonCG(), tolerance=1e-8, steps=200), scipys("newton-cg", start)
    assert ours.converged
    assert ours.steps <= theirs.nit
    assert ours.params == pytest.approx(np.ones(n), abs=1e-8)


@double
def test_lbfgs_on_rosenbrock():
    """As scipy's, in about as many iterations."""
    start = np.array([-1.2, 1.0])
    ours = minimise(rosenbrock, start, LBFGS(), tolerance=1e-8)
    theirs = scipy.optimize.minimize(scipy.optimize.rosen, start, jac=scipy.optimize.rosen_der, method="L-BFGS-B")
    assert ours.converged
    assert ours.steps <= 1.2 * theirs.nit
    assert ours.params == pytest.approx([1, 1], abs=1e-8)


MISRA1A = """77.6 10.07 114.9 14.73 141.1 17.94 190.8 23.93 239.9 29.61 289.0 35.18 332.8 40.02 378.4 44.82
434.8 50.76 477.3 55.05 536.8 61.01 593.1 66.40 689.1 75.47 760.0 81.78"""


@double
def test_gauss_newton_fits_misra1a():
    """NIST's reference set for nonlinear least squares, from its first start: the certified parameters."""
    x, y = jnp.array([float(n) for n in MISRA1A.split()]).reshape(-1, 2).T

    def curve(b):
        return 1000 * b["asymptote"] * -jnp.expm1(-b["rate"] / 1000 * x)

    start = {"asymptote": jnp.array(0.5), "rate": jnp.array(0.1)}
    found = minimise(curve, start, GaussNewton(), score=lambda outputs: jnp.sum((outputs - y) ** 2), tolerance=1e-7)
    assert found.converged
    assert found.steps < 50
    assert 1000 * found.params["asymptote"] == pytest.approx(2.3894212918e2, rel=1e-9)
    assert found.params["rate"] / 1000 == pytest.approx(5.5015643181e-4, rel=1e-9)
    assert found.value == pytest.approx(1.2455138894e-1, rel=1e-9)


# -- beside scikit-learn --------------------------------------------------------------------------


def _logistic(name):
    """(features, labels, outputs of parameters, score of outputs, first parameters)."""
    x, y = {"breast cancer": load_breast_cancer, "wine": load_wine}[name](return_X_y=True)
    x = StandardScaler().fit_transform(x)
    classes = int(y.max()) + 1
    outputs = 1 if classes == 2 else classes

    def predict(params):
        return x @ params["kernel"] + params["bias"]

    def score(logits):
        if classes == 2:
            return jnp.mean(jnp.logaddexp(0, logits[:, 0]) - y * logits[:, 0])
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1))

    return x, y, predict, score, {"kernel": jnp.zeros((x.shape[1], outputs)), "bias": jnp.zeros(outputs)}


@double
@pytest.mark.parametrize("name", ["breast cancer", "wine"])
def test_logistic_regression_in_at_most_ten_steps(name):
    """The coefficients of scikit-learn's newton-cholesky, in no more than ten steps each."""
    x, y, predict, score, params = _logistic(name)
    theirs = LogisticRegression(solver="newton-cholesky", C=1.0, tol=1e-10).fit(x, y)
    decay = 1 / len(x)
    for optimizer in (
        Newton(weight_decay=decay, radius=100.0),
        GaussNewton(weight_decay=decay),
        NewtonCG(weight_decay=decay),
    ):
        found = minimise(predict, params, optimizer, score=score, tolerance=1e-8, classify=False)
        assert found.converged
        assert found.steps <= 10
        assert pytest.approx(theirs.coef_, abs=2e-6) == found.params["kernel"].T


@double
def test_the_penalty_is_in_the_loss():
    """And leaves out what does not decay."""

    def f(params):
        return jnp.sum((params["kernel"] - 2.0) ** 2) + jnp.sum((params["bias"] - 2.0) ** 2)

    params = {"kernel": jnp.zeros((1, 1)), "bias": jnp.zeros(1)}
    for optimizer in (Newton(weight_decay=2.0), NewtonCG(weight_decay=2.0), LBFGS(weight_decay=2.0)):
        found = minimise(f, params, optimizer, tolerance=1e-9)
        assert float(found.params["kernel"][0, 0]) == pytest.approx(1.0)  # 2 (w - 2) + 2 w = 0
        assert float(found.params["bias"][0]) == pytest.approx(2.0)
        assert found.value == pytest.approx(2.0)
    biases = minimise(f, params, Newton(weight_decay=2.0, decay=("bias",)), tolerance=1e-9).params
    assert (float(biases["kernel"][0, 0]), float(biases["bias"][0])) == pytest.approx((2.0, 1.0))


# -- where they stop ------------------------------------------------------------------------------


@double
def test_what_kind_of_point():
    """A minimum, a saddle where a method is started on its ridge, and a valley that is none for sure."""

    def saddle(w):
        return w[0] ** 2 - w[1] ** 2 + w[1] ** 4

    start = jnp.array([1.0, 0.0])
    assert minimise(saddle, start, NewtonCG()).point.verdict == "saddle"
    left = minimise(saddle, start, Newton())
    assert left.point.verdict == "minimum"
    assert abs(left.params) == pytest.approx([0, 0.5**0.5], abs=1e-6)
    valley = minimise(lambda w: (w[0] + w[1] - 1) ** 2, jnp.zeros(2), NewtonCG())
    assert valley.converged
    assert valley.point.verdict == "unknown"
    far = minimise(rosenbrock, np.array([-1.2, 1.0]), SGD(peak_lr=1e-4), steps=3)
    assert not far.converged
    assert far.point.verdict == "unknown"


@double
def test_a_step_never_raises_the_loss():
    """From a start where the quadratic model is wrong, and past a place where the loss is not finite."""

    def f(w):
        return jnp.where(w[0] < 3, jnp.log1p(jnp.sum(w**2)) + jnp.sum(w**2) / 100, jnp.nan)

    start = jnp.array([-6.0, 2.0])
    for optimizer in (Newton(radius=20.0), NewtonCG(), Newton(solver="steihaug", radius=20.0)):
        found = minimise(f, start, optimizer, steps=60)
        assert (np.diff(found.values) <= 1e-12).all()
        assert found.converged


# -- in a run -------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """With a config of softmax regression on all of the digits at once."""
    monkeypatch.chdir(tmp_path)
    lines = ["[task]", 'kind = "classification"', "[model]", 'kind = "mlp"', "hidden = []", "[data]", 'kind = "digits"']
    lines += ["batch_size = 1257", "[train]", "steps = 8", "log_every = 4", "[observe]", "figures = false"]
    (tmp_path / "c.toml").write_text("\n".join(lines))
    return tmp_path


@pytest.mark.parametrize("kind", ["newton", "gauss_newton", "newton_cg", "lbfgs"])
def test_a_run(folder, kind):
    """By one key; the loss falls, the numbers of the steps are logged, and 1 and 4 steps a dispatch are the same."""
    given = [f"optimizer.kind={kind}", "optimizer.weight_decay=1e-3"]
    given += ["optimizer.solver=steihaug"] if kind == "newton" else []  # its matrix takes seconds to make
    assert main(["train", "c.toml", "--out", "a", "train.chunk=1", *given]) == 0
    assert main(["train", "c.toml", "--out", "b", "train.chunk=4", *given]) == 0
    assert_equal_runs(folder / "a", folder / "b")
    lines = [line for line in history(folder / "a" / "metrics.jsonl") if line["split"] == "train"]
    assert lines[-1]["loss"] < 0.35 * lines[0]["loss"]
    if kind != "lbfgs":
        assert lines[-1]["products"] > 0
        assert {"newton": "radius", "gauss_newton": "damping", "newton_cg": "step_size"}[kind] in lines[0]
    assert "learning_rate" not in lines[0]


def test_refusals(folder, capsys):
    """One line each, status 2, nothing written."""
    for given, parts in {
        ("optimizer.kind=newton", "optimizer.solver=exact", "optimizer.most=600"): (
            "optimizer.most",
            "650",
            "steihaug",
        ),
        ("optimizer.kind=gauss_newton", "train.accumulate=3"): ("gauss_newton", "train.accumulate = 1"),
        ("optimizer.kind=newton", "optimizer.decay=['nothing']"): ("optimizer.decay", "matches no parameter"),
        ("optimizer.kind=newton", "optimizer.radius=0"): ("optimizer.radius", "0"),
    }.items():
        assert main(["train", "c.toml", "--out", "r", *given]) == 2
        error = capsys.readouterr().err.strip()
        assert all(part in error for part in parts), error
        assert "\n" not in error
        assert not (folder / "r").exists()


def test_frozen_parameters_stay():
    """And take no part in the model of the loss."""

    def f(params):
        return jnp.sum((params["a"] * params["b"] - 6.0) ** 2)

    params = {"a": jnp.full(1, 2.0), "b": jnp.ones(1)}
    for optimizer in (Newton(freeze=("a",)), NewtonCG(freeze=("a",)), LBFGS(freeze=("a",))):
        found = minimise(f, params, optimizer, tolerance=1e-4)
        assert found.params["a"].tolist() == [2.0]
        assert found.params["b"].tolist() == pytest.approx([3.0], abs=1e-3)


def test_what_needs_a_score():
    """A loss that is no score of outputs."""
    learner = Learner(optimizer=GaussNewton())

    def loss(params, state, batch, *, key):
        return Mean(params.sum(), jnp.ones(())), state, {}

    with pytest.raises(ConfigError, match="is for a loss that is a score of outputs"):
        learner.update(loss, learner.init(jnp.ones(2)), {}, {"x": jnp.ones(1)}, key=jax.random.key(0))
