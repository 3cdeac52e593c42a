"""Gradients per example, the noise scale, examples most alike: against dense Jacobians, loops and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import gap, same
from jax.flatten_util import ravel_pytree

from functrain.autodiff import per_example, similar
from functrain.autodiff.noise_scale import NoiseScale, noise_scale, two_sizes
from functrain.config import ConfigError
from functrain.layers import batch_norm
from functrain.metrics import Mean, mean_of
from functrain.models import MLP
from functrain.optim import objective
from functrain.tasks import Classification

KEY = jax.random.key(3)
pytestmark = pytest.mark.usefixtures("float64", "quick")


# -- losses ---------------------------------------------------------------------------------------


def network(n=7, seed=0):
    """(losses [n] of (params, batch), params, batch) of two layers; leaves of several shapes, a number among them."""
    rng = np.random.default_rng(seed)
    shapes = {"scale": (), "out": (3,), "hidden": {"bias": (3,), "kernel": (2, 3)}}
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s)), shapes, is_leaf=lambda s: type(s) is tuple)
    batch = {"x": jnp.asarray(rng.normal(size=(n, 2))), "y": jnp.asarray(rng.normal(size=n))}
    return losses, params, batch


def losses(params, batch):
    """[n]."""
    hidden = jnp.tanh(batch["x"] @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return (params["scale"] * (hidden @ params["out"]) - batch["y"]) ** 2


def task_loss(params, state, batch, *, key):
    """Of a task: masked, with dropout where there is a key."""
    x = batch["x"] if key is None else batch["x"] * jax.random.bernoulli(key, 0.5, batch["x"].shape)
    found = losses(params, batch | {"x": x})
    return mean_of(found, batch.get("mask")), state, {"seen": mean_of(batch["x"].sum(-1), batch.get("mask"))}


def dense(f, params, batch):
    """[n, numbers]: the Jacobian of a function of (params, batch) that gives [n]."""
    flat, back = ravel_pytree(params)
    return np.asarray(jax.jacrev(lambda p: f(back(p), batch))(flat))


def rows(found):
    """[n, numbers] of a tree of leaves [n, ...], in the order of `ravel_pytree`."""
    return np.asarray(jax.vmap(lambda g: ravel_pytree(g)[0])(found))


def close(a, b, tolerance=1e-12):
    """No element off by more than a share of the largest."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    assert a.dtype == b.dtype == np.float64
    assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


# -- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 3, 7, 100])
def test_the_rows_of_the_jacobian(block):
    """Whatever the block, and where it does not divide n; the norms too."""
    f, params, batch = network()
    exact = dense(f, params, batch)
    found = jax.jit(lambda p: per_example.gradients(f, p, batch, block=block))(params)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    close(rows(found), exact)
    close(per_example.norms(f, params, batch, block=block), np.linalg.norm(exact, axis=1))


def test_a_loop_over_batches_of_one():
    """Of a task's loss with a key: example i as a batch of it alone, with fold_in(key, i); the same in any block."""
    _, params, batch = network()

    def alone(i):
        goal = objective(task_loss, {}, jax.tree.map(lambda x: x[i : i + 1], batch), jax.random.fold_in(KEY, i))
        return goal.gradient(params)[0]

    loop = np.stack([ravel_pytree(alone(i))[0] for i in range(7)])
    for block in (1, 4, 7):
        close(rows(per_example.gradients(task_loss, params, batch, state={}, key=KEY, block=block)), loop)
    assert not np.allclose(loop, dense(losses, params, batch))  # the key has dropped something


def test_masks_and_counts():
    """Mask 0: gradient 0, and the others as without; weights cancel; the mean over examples is the batch's gradient."""
    _, params, batch = network()
    mask = jnp.array([1.0, 0, 1, 1, 0, 1, 3])
    found = rows(per_example.gradients(task_loss, params, batch | {"mask": mask}, state={}))
    assert not found[[1, 4]].any()
    close(found[mask > 0], dense(losses, params, batch)[mask > 0])
    plain = rows(per_example.gradients(task_loss, params, batch, state={}))
    close(plain.mean(0), ravel_pytree(objective(task_loss, {}, batch, None).gradient(params)[0])[0])


def test_several_means():
    """A dict of means: the sum, each over its own count; of one that counts nothing, nothing."""
    _, params, batch = network()
    few = jnp.array([1.0, 1, 0, 0, 0, 0, 0])

    def loss(params, state, batch, *, key):
        found = losses(params, batch)
        return {"a": mean_of(found), "b": Mean((2 * found * batch["few"]).sum(), 4 * batch["few"].sum())}, state, {}

    found = rows(per_example.gradients(loss, params, batch | {"few": few}, state={}))
    close(found, dense(losses, params, batch) * (1 + few / 2)[:, None])


def test_results_are_wide():
    """Gradients of bfloat16 parameters are in float32."""
    f, params, batch = network()
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), batch)
    assert {g.dtype for g in jax.tree.leaves(per_example.gradients(f, low, narrow))} == {jnp.dtype(jnp.float32)}


def test_what_is_refused():
    """One line each: shapes, a loss that is not [n], a key without a state."""
    f, params, batch = network()
    for bad, words in (
        (batch | {"y": batch["y"][:3]}, r"\(3,\), \(7, 2\); expected"),
        ({}, "none; expected"),
        (batch | {"y": jnp.zeros(())}, r"\(\), \(7, 2\)"),
        (jax.tree.map(lambda x: x[:0], batch), r"\(0,\), \(0, 2\)"),
    ):
        with pytest.raises(ValueError, match=words):
            per_example.gradients(f, params, bad)
    with pytest.raises(ValueError, match=r"the loss gives \(\); expected \(1,\)"):
        per_example.gradients(lambda p, b: losses(p, b).sum(), params, batch)
    with pytest.raises(ValueError, match="a key and no state"):
        per_example.norms(f, params, batch, key=KEY)


# -- fold -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 3, 7, 9])
def test_fold_sees_every_example_once(block):
    """Sums over blocks are sums over all, means and metrics too; a loss scale changes nothing."""
    _, params, batch = network()
    batch = batch | {"mask": jnp.array([1.0, 0, 1, 1, 0, 1, 1])}
    squares = lambda carry, g: carry + sum(jnp.sum(x**2) for x in jax.tree.leaves(g))  # noqa: E731
    whole = rows(per_example.gradients(task_loss, params, batch, state={}, key=KEY))
    for scale in (None, 1024.0):
        f = lambda p, s=scale: per_example.fold(  # noqa: E731
            task_loss, p, {}, batch, KEY, squares, jnp.zeros(()), block=block, scale=s
        )
        total, means, metrics = jax.jit(f)(params)
        close(total, (whole**2).sum())
        assert float(means.count) == 5
        close(metrics["seen"].total, (batch["x"].sum(-1) * batch["mask"]).sum())
    # Of no key the value is the whole batch's.
    _, means, _ = per_example.fold(task_loss, params, {}, batch, None, squares, jnp.zeros(()), block=block)
    close(means.total / means.count, objective(task_loss, {}, batch, None).value(params)[0])


def test_memory_is_that_of_a_block(quick):
    """Of 512 examples no more is set aside than of 64, but for their inputs and norms."""
    params = jnp.zeros((30, 40))
    f = lambda w, b: jnp.tanh(b["x"] @ w).sum(-1)  # noqa: E731

    def room(n):
        batch = {"x": jnp.ones((n, 30))}
        program = jax.jit(lambda p, b: per_example.norms(f, p, b, block=8)).lower(params, batch).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert room(512) < room(64) + 448 * 8 * (2 * 30 + 2)
    assert room(512) < 16 * params.nbytes + 512 * 8 * 62


def test_a_changing_state_is_refused():
    """That of batch norm, or of a counter: no gradient per example stands behind it. One that is handed on passes."""
    _, params, batch = network()

    def counting(params, state, batch, *, key):
        mean, _, metrics = task_loss(params, state, batch, key=key)
        return mean, {"calls": state["calls"] + 1}, metrics

    state = {"calls": jnp.zeros(())}
    fold = lambda loss: per_example.fold(loss, params, state, batch, None, lambda c, g: c, 0.0, block=2)  # noqa: E731
    with pytest.raises(ConfigError, match="changes its state"):
        fold(counting)
    jax.jit(lambda: fold(task_loss))()
    per_example.gradients(counting, params, batch, state=state)  # asked for by hand, it is computed


# -- apart ----------------------------------------------------------------------------------------


def normed(params, state, batch, *, key):
    """A loss through batch norm in training."""
    x, _ = batch_norm.apply(params["norm"], state, batch["x"] @ params["kernel"], train=True)
    return mean_of((jax.nn.relu(x) ** 2).sum(-1)), state, {}


def test_what_mixes_is_found():
    """Batch norm, a mean over the batch, a contrast; what does not mix passes, dropout of one key among it."""
    f, params, batch = network(64)
    assert per_example.check_apart(f, params, batch) < 1e-14
    masked = batch | {"mask": (jnp.arange(64) % 3 > 0).astype(float)}
    assert per_example.check_apart(task_loss, params, masked, state={}, key=KEY) < 1e-14
    norm, state = batch_norm.init(KEY, 3)
    with pytest.raises(ValueError, match=r"the examples of a batch mix \(0\."):
        per_example.check_apart(normed, {"norm": norm, "kernel": jnp.ones((2, 3)) * 0.3}, batch, state=state)
    for mixing in (
        lambda p, b: losses(p, b) - 0.01 * losses(p, b).mean() ** 2,
        lambda p, b: -jax.nn.log_softmax(losses(p, b)),
        lambda p, b: losses(p, b | {"x": jnp.roll(b["x"], 1, 0)}) * b["y"],
        lambda p, b: jnp.cumsum(losses(p, b)) ** 2,
    ):
        with pytest.raises(ValueError, match="no gradient per example"):
            per_example.check_apart(mixing, params, batch)
    assert per_example.check_apart(lambda p, b: losses(p, b) ** losses(p, b).mean(), params, batch, tolerance=1) > 1e-3
    with pytest.raises(ValueError, match="found a batch of 1"):
        per_example.check_apart(f, params, jax.tree.map(lambda x: x[:1], batch))


def test_apart_in_float32():
    """A small model in float32, in training with dropout, is within the tolerance."""
    task = Classification(model=MLP(inputs=(8,), outputs=3, hidden=(16,), dropout=0.2))
    params, state = task.model.init(KEY)
    params = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    x = jax.random.normal(KEY, (32, 8), jnp.float32)
    loss = lambda *args, key: task.full_loss(*args, key=key, train=True)  # noqa: E731
    share = per_example.check_apart(loss, params, {"x": x, "y": jnp.arange(32) % 3}, state=state, key=KEY)
    assert share < 1e-6


# -- the noise scale ------------------------------------------------------------------------------

DELTA, SIGMA = np.array([0.5, -0.2, 0.1, 0.0, 0.3]), 0.7
SQUARE = float(DELTA @ DELTA)
TRACE = 6 * SQUARE + 5 * SIGMA**2


def regression(n, seed):
    """Half squared errors of y = x w* + noise at w* + DELTA, x of 5 standard normal numbers.

    An example's gradient is x (x DELTA - e): its mean is DELTA, E |g|^2 = (5 + 2) |DELTA|^2 + 5 SIGMA^2.
    """
    x, e = jax.random.normal(jax.random.key(seed), (n, 5)), jax.random.normal(jax.random.key(seed + 10**6), (n,))
    return {"x": x, "y": SIGMA * e}


def half_squares(w, batch):
    """[n]."""
    return (batch["x"] @ w - batch["y"]) ** 2 / 2


@pytest.mark.parametrize("micro", [1, 4])
def test_the_noise_scale_of_a_linear_model(micro):
    """Both parts are unbiased, over 200 batches of 64; the error is how far values of large batches spread."""
    found = [noise_scale(half_squares, jnp.asarray(DELTA), regression(64, s), micro=micro) for s in range(200)]
    for name, exact in (("trace", TRACE), ("square", SQUARE)):
        values = np.array([getattr(f, name) for f in found])
        error = values.std() / np.sqrt(len(values))
        assert abs(values.mean() - exact) < 3.5 * error
        assert 3.5 * error < 0.15 * exact
    large = [noise_scale(half_squares, jnp.asarray(DELTA), regression(1024, s), micro=micro) for s in range(60)]
    values = np.array([f.value for f in large])
    assert abs(np.mean([f.error for f in large]) / values.std() - 1) < 0.25
    assert abs(values.mean() - TRACE / SQUARE) < 0.1 * TRACE / SQUARE
    assert found[0].examples == 64
    assert found[0].micro == micro


def test_the_noise_scale_by_hand():
    """From the dense Jacobian: sample covariance and squared mean less its bias; leaving out one is leaving it out."""
    f, params, batch = network(12)
    g = dense(f, params, batch)
    found = noise_scale(f, params, batch, block=5)

    def parts(g):
        trace = np.cov(g.T).trace()
        return trace, (g.mean(0) ** 2).sum() - trace / len(g)

    trace, square = parts(g)
    close(np.array([found.trace, found.square, found.value]), np.array([trace, square, trace / square]))
    without = np.array([np.divide(*parts(np.delete(g, i, 0))) for i in range(12)])
    assert (without > 0).all() == np.isfinite(found.error)
    close(np.float64(found.error), np.sqrt(11 / 12 * ((without - without.mean()) ** 2).sum()), 1e-9)
    # Micro-batches: the same of their mean gradients, the covariance being that of an example.
    found = noise_scale(f, params, batch, micro=3)
    trace, square = parts(g.reshape(4, 3, -1).mean(1))
    close(np.array([found.trace, found.square]), np.array([3 * trace, square]), 1e-10)


def test_masked_examples_are_left_out():
    """They are in neither part, nor in the number; in micro-batches they are refused."""
    _, params, batch = network(12)
    there = np.arange(12) % 4 > 0
    masked = batch | {"mask": jnp.asarray(there, float)}
    found = noise_scale(task_loss, params, masked, state={})
    kept = noise_scale(losses, params, jax.tree.map(lambda x: x[there], batch))
    assert found.examples == kept.examples == 9
    close(np.array([found.value, found.error]), np.array([kept.value, kept.error]), 1e-9)
    with pytest.raises(ValueError, match="micro-batches count 1 to 2; expected as much"):
        noise_scale(task_loss, params, masked, state={}, micro=2)
    with pytest.raises(ValueError, match="found 2 gradients of 6 examples; expected at least 3"):
        noise_scale(losses, params, batch, micro=6)
    with pytest.raises(ValueError, match="found 12 examples; expected a multiple of 5"):
        noise_scale(losses, params, batch, micro=5)


def test_the_noise_scale_in_words():
    """What it suggests and costs; and that it is unknown where the gradient is lost in noise."""
    scale = NoiseScale(value=812.4, error=90.1, trace=4.062, square=0.005, examples=1024)
    assert (
        str(scale)
        == "noise scale 812.4 +- 90 examples (tr S 4.062, |G|^2 0.005; of 1,024 examples): batches of about 812"
    )
    assert scale.critical == 812
    steps, examples = scale.cost(812.4)
    assert (steps, examples) == (2, 2)
    steps, examples = scale.cost(100)
    assert (steps - 1) * (examples - 1) == pytest.approx(1)
    x = jnp.array([[1.0], [-1.0], [1.0], [-1.0]])
    lost = noise_scale(lambda w, b: b["x"] @ w, jnp.zeros(1), {"x": x})
    assert lost.value == lost.critical == np.inf
    assert "unknown" in str(lost)
    assert two_sizes(3 + 10 / 2, 3 + 10 / 50, small_size=2, big_size=50) == pytest.approx((10, 3))


# -- most alike -----------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("by", ["cosine", "dot"])
def test_alike_is_the_dense_computation(by, block):
    """Scores, and their order, of several given examples at once."""
    f, params, batch = network(11)
    _, _, given = network(3, seed=5)
    a, b = dense(f, params, given), dense(f, params, batch)
    if by == "cosine":
        a, b = (g / np.linalg.norm(g, axis=1, keepdims=True) for g in (a, b))
    exact = a @ b.T
    close(similar.scores(f, params, batch, given, by=by, block=block), exact)
    found = similar.nearest(jnp.asarray(b), jnp.asarray(a), 4, by="dot")
    np.testing.assert_array_equal(found.indices, np.argsort(-exact, 1)[:, :4])
    found = jax.jit(lambda p: similar.most_alike(f, p, batch, given, 4, by=by, block=block))(params)
    np.testing.assert_array_equal(found.indices, np.argsort(-exact, 1)[:, :4])
    close(found.scores, -np.sort(-exact, 1)[:, :4])


def planted(project=None, **settings):
    """What is most like examples 3 and 8 of 30, where 17 and 21 are their duplicates."""
    f, params, batch = network(30)
    batch = jax.tree.map(lambda x: x.at[17].set(x[3]).at[21].set(x[8]), batch)
    given = jax.tree.map(lambda x: x[jnp.array([3, 8])], batch)
    return similar.most_alike(f, params, batch, given, 2, project=project, **settings)


@pytest.mark.parametrize("project", [None, 200])
def test_a_duplicate_is_first(project):
    """With the example itself, at cosine 1; projected too."""
    found = planted(project)
    np.testing.assert_array_equal(np.sort(found.indices), [[3, 17], [8, 21]])
    np.testing.assert_allclose(found.scores, 1, atol=1e-12)


@pytest.mark.parametrize("law", ["normal", "rademacher"])
def test_projections_keep_products(law):
    """Unbiased over seeds, and as far off as said; with 4,000 numbers, nearly the order of all; in any blocks."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(8, 60)) + rng.normal(size=60))
    f = lambda w, b: b["x"] @ w["a"] + b["x"] @ w["b"].ravel()  # noqa: E731
    params = {"a": jnp.zeros(60), "b": jnp.zeros((6, 10))}
    short = lambda seed, project=50, block=5: similar.features(  # noqa: E731
        f, params, {"x": x}, project=project, law=law, seed=seed, block=block
    )
    exact = 2 * np.asarray(x @ x.T)
    products = np.asarray(jax.jit(jax.vmap(lambda s: (p := short(s)) @ p.T))(jnp.arange(150)))
    errors = products.std(0) / np.sqrt(len(products))
    assert (np.abs(products.mean(0) - exact) < 4.5 * errors).all()
    sizes = np.sqrt(np.outer(exact.diagonal(), exact.diagonal()))
    assert (products.std(0) < 1.7 * sizes / np.sqrt(50)).all()
    close(short(1, block=5), short(1, block=100))
    assert not same(short(1), short(2))
    norms = np.sqrt(exact.diagonal())
    kept = short(0, 4000, 200)
    found = similar.nearest(kept, kept, 8)
    cosines = np.take_along_axis(exact / np.outer(norms, norms), np.asarray(found.indices), 1)
    np.testing.assert_allclose(found.scores, cosines, atol=0.08)
    assert (np.diff(cosines) < 0.12).all()  # nearly in order


def test_alike_refuses():
    """Counts, words and sizes outside of their ranges; a gradient that is 0 is like nothing."""
    f, params, batch = network(5)
    for count in (0, 6):
        with pytest.raises(ValueError, match=f"count {count}; expected from 1 to 5"):
            similar.most_alike(f, params, batch, batch, count)
    with pytest.raises(ValueError, match="by 'l2'"):
        similar.most_alike(f, params, batch, batch, 1, by="l2")
    with pytest.raises(ValueError, match="project 0"):
        similar.most_alike(f, params, batch, batch, 1, project=0)
    masked = batch | {"mask": jnp.array([1.0, 0, 1, 1, 1])}
    found = np.asarray(similar.scores(task_loss, params, masked, masked, state={}))
    assert not found[1].any()
    assert not found[:, 1].any()
    assert gap(np.diag(found)[[0, 2, 3, 4]], np.ones(4)) < 1e-12
