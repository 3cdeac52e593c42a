"""Accumulated equals full batch, also where masks are ragged: gradients' relative norm by leaf."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import gap

from functrain.metrics import Mean, mean_of
from functrain.models import MLP
from functrain.optim import Learner, objective
from functrain.precision import Float16
from functrain.tasks import Classification, Regression

LIMIT = {jnp.float32: 2e-6, jnp.float64: 1e-12}


def _case(kind, dtype):
    """(loss, params, batch): 48 rows, of which each micro-batch counts another number."""
    rng = np.random.default_rng(0)
    task = {"classification": Classification, "regression": Regression}[kind](
        model=MLP(inputs=(9,), outputs=5, hidden=(16,), activation="tanh", norm="layer"), learner=Learner()
    )
    params, _ = task.model.init(jax.random.key(0))
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    mask = (rng.random(48) < np.tile([0.1, 0.9, 0.5, 0.6], 12)).astype(float)  # micro-batches take every a-th row
    y = rng.integers(0, 5, 48) if kind == "classification" else rng.normal(size=(48, 5))
    batch = {"x": jnp.asarray(rng.normal(size=(48, 9)), dtype), "mask": jnp.asarray(mask, dtype)}
    batch["y"] = jnp.asarray(y) if kind == "classification" else jnp.asarray(y, dtype)

    def loss(params, state, batch, *, key):
        return task.full_loss(params, state, batch, key=key, train=True)

    return loss, params, batch


@pytest.mark.parametrize("accumulate", [2, 4, 12])
@pytest.mark.parametrize("kind", ["classification", "regression"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=["float32", "float64"])
def test_accumulated_gradients_equal_whole(dtype, kind, accumulate):
    """Gradients, loss and metric sums, in float32 to 2e-6 and in float64 to 1e-12."""
    with jax.enable_x64(True) if dtype == jnp.float64 else contextlib.nullcontext():
        loss, params, batch = _case(kind, dtype)
        key = jax.random.key(1)

        def gradient(params, batch, parts):
            return objective(loss, {}, batch, key, accumulate=parts).gradient(params)

        whole = jax.jit(gradient, static_argnums=2)(params, batch, 1)
        cut = jax.jit(gradient, static_argnums=2)(params, batch, accumulate)
        assert gap(cut[0], whole[0]) < LIMIT[dtype]
        assert gap(cut[1], whole[1]) < LIMIT[dtype]
        assert gap(cut[2][1], whole[2][1]) < LIMIT[dtype]
        # The two arms differ in how they got there, and the naive mean of micro-batch means is far off.
        programs = [str(jax.make_jaxpr(gradient, static_argnums=2)(params, batch, k)) for k in (1, accumulate)]
        assert "scan" not in programs[0]
        assert "scan" in programs[1]
        micro = [jax.tree.map(lambda x, i=i: x[i::accumulate], batch) for i in range(accumulate)]
        naive = [gradient(params, m, 1)[0] for m in micro]
        naive = jax.tree.map(lambda *g: sum(g) / accumulate, *naive)
        assert gap(naive, whole[0]) > 1e-2


def test_a_tree_of_means_is_their_sum():
    """Two tasks with counts of their own: the objective is the sum of their means, accumulated or not."""

    def loss(params, state, batch, *, key):
        first = mean_of((batch["x"] @ params["w"]) ** 2, batch["a"])
        second = mean_of(jnp.abs(batch["x"] @ params["w"] - 1), batch["b"])
        return {"first": first, "second": second}, state, {}

    rng = np.random.default_rng(1)
    params = {"w": jnp.asarray(rng.normal(size=3), jnp.float32)}
    batch = {"x": rng.normal(size=(8, 3)), "a": np.arange(8) < 3, "b": np.arange(8) % 3 == 0}
    batch = {k: jnp.asarray(v, jnp.float32) for k, v in batch.items()}
    by_hand = lambda w: ((batch["x"] @ w) ** 2)[:3].mean() + jnp.abs(batch["x"] @ w - 1)[::3].mean()  # noqa: E731
    for parts in (1, 4):
        value, (_, _) = objective(loss, {}, batch, jax.random.key(0), accumulate=parts).value(params)
        gradients, again, _ = objective(loss, {}, batch, jax.random.key(0), accumulate=parts).gradient(params)
        assert value == pytest.approx(float(by_hand(params["w"])), rel=1e-6)
        assert again == pytest.approx(float(value), rel=1e-6)
        assert gap(gradients["w"], jax.grad(by_hand)(params["w"])) < 2e-6


def test_a_batch_that_counts_nothing_is_no_step():
    """All rows masked: loss 0 and gradient 0, not nan."""
    loss, params, batch = _case("classification", jnp.float32)
    batch |= {"mask": jnp.zeros(48)}
    gradients, value, _ = objective(loss, {}, batch, jax.random.key(0), accumulate=2).gradient(params)
    assert value == 0
    assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(gradients))


def test_the_loss_scale_leaves_no_trace_in_the_gradient():
    """Scaled by a power of two, differentiated and unscaled: the same bits."""
    loss, params, batch = _case("regression", jnp.float32)
    key = jax.random.key(0)
    plain = objective(loss, {}, batch, key).gradient(params)
    scaled = objective(loss, {}, batch, key, scale=jnp.float32(2.0**10)).gradient(params)
    assert gap(scaled[0], plain[0]) < 1e-6
    assert scaled[1] == plain[1]
    assert Float16().init_scale().value == 2**16


def test_accumulated_metrics_are_sums():
    """Metrics add over micro-batches: counts of the whole batch, not of the last part."""
    loss, params, batch = _case("classification", jnp.float32)
    metrics = objective(loss, {}, batch, jax.random.key(0), accumulate=4).gradient(params)[2][1]
    assert isinstance(metrics["accuracy"], Mean)
    assert float(metrics["accuracy"].count) == float(batch["mask"].sum())
