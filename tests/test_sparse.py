"""Tables of which a step touches the rows that its batch reads: the dense rule where they agree, else the lazy one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functrain import optim, tree
from functrain.config import ConfigError
from functrain.layers import embedding
from functrain.metrics import mean_of
from functrain.optim import sparse

ROWS, FEATURES, BATCH = 50, 3, 6


class Lookup:
    """A model of two tables, one of them read by two columns, and a kernel."""

    def init(self, key):
        a, b, c = jax.random.split(key, 3)
        return {
            "users": embedding.init(a, ROWS, FEATURES, table_init="lecun_normal"),
            "items": embedding.init(b, ROWS, FEATURES, table_init="lecun_normal"),
            "out": {"kernel": jax.random.normal(c, (FEATURES, 1))},
        }, {}

    def rows(self, x):
        return {"users/table": x[:, 0], "items/table": x[:, 1:]}

    def apply(self, params, state, x, *, key=None, train=False, rows=None):
        rows = self.rows(x) | (rows or {})
        users = embedding.known(params["users"], rows["users/table"])
        items = embedding.known(params["items"], rows["items/table"]).sum(1)
        return (users * items + jnp.tanh(items)) @ params["out"]["kernel"], state


MODEL = Lookup()


def loss(params, state, batch, *, key):
    """The squared error of the model, told where the rows stand if they were taken out."""
    outputs, state = MODEL.apply(params, state, batch["x"], rows=batch.get("rows"))
    return mean_of(jnp.square(outputs[:, 0] - batch["y"])), state, {}


def batches(steps, seed=0):
    """Batches whose rows repeat within and between them; some name no row."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        x = rng.integers(0, 20, (BATCH, 3))
        x[0, 1], x[2, 0] = -1, -1
        yield {"x": jnp.asarray(x), "y": jnp.asarray(rng.normal(size=BATCH))}


def learned(optimizer, given, *, lazily, tables=("users/table", "items/table"), **settings):
    """The player after a step on each batch."""

    def rows(batch):
        return {path: ids for path, ids in MODEL.rows(batch["x"]).items() if path in tables}

    learner = optim.Learner(optimizer=optimizer, rows=rows if lazily else None, **settings)
    player = learner.init(MODEL.init(jax.random.key(1))[0])
    step = jax.jit(lambda player, batch: learner.update(loss, player, {}, batch, key=jax.random.key(0))[0])
    return functools.reduce(step, given, player)


def same(one, other, **tolerance):
    """Whether two trees hold the same numbers."""
    for path, leaf in tree.by_path(one).items():
        np.testing.assert_allclose(leaf, tree.by_path(other)[path], err_msg=path, **tolerance)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "optimizer",
    [
        optim.SGD(peak_lr=0.1),
        optim.SGD(peak_lr=0.1, clip_norm=0.5),
        optim.Adagrad(peak_lr=0.1),
        optim.RowwiseAdagrad(peak_lr=0.1, initial=0.1),
    ],
    ids=["sgd", "clipped", "adagrad", "rowwise"],
)
def test_it_is_the_dense_rule_where_a_gradient_of_zero_changes_nothing(optimizer):
    """Parameters and the optimizer's state after 8 steps, also with one table sparse alone, also accumulated."""
    given = list(batches(8))
    dense = learned(optimizer, given, lazily=False)
    same(learned(optimizer, given, lazily=True), dense, rtol=1e-12, atol=1e-14)
    same(learned(optimizer, given, lazily=True, tables=("items/table",)), dense, rtol=1e-12, atol=1e-14)
    same(learned(optimizer, given, lazily=True, accumulate=3), dense, rtol=1e-12, atol=1e-14)


@pytest.mark.usefixtures("float64")
def test_lazy_adam_is_adam_where_every_row_is_read():
    """And elsewhere it is not: dense Adam goes on along the moments of rows that no batch reads."""
    rng = np.random.default_rng(2)
    whole = [
        {
            "x": jnp.asarray(np.stack([rng.permutation(ROWS) for _ in range(3)], 1)),
            "y": jnp.asarray(rng.normal(size=ROWS)),
        }
        for _ in range(5)
    ]
    adam = optim.Adam(peak_lr=0.05)
    same(learned(adam, whole, lazily=True), learned(adam, whole, lazily=False), rtol=1e-11, atol=1e-13)
    few = list(batches(5))
    lazy, dense = (learned(adam, few, lazily=it).params["items"]["table"] for it in (True, False))
    assert np.abs(lazy - dense).max() > 1e-3


@pytest.mark.usefixtures("float64")
def test_what_no_batch_reads_stands_still():
    """Bit for bit: the rows, their moments; with decay too, which rows have when they are read."""
    given = list(batches(4))
    adamw = optim.AdamW(peak_lr=0.1, weight_decay=0.5)
    first = optim.Learner(optimizer=adamw).init(MODEL.init(jax.random.key(1))[0])
    after = tree.by_path(learned(adamw, given, lazily=True))
    read = {
        path: np.unique(np.concatenate([MODEL.rows(b["x"])[path].ravel() for b in given]))
        for path in MODEL.rows(given[0]["x"])
    }
    for path, leaf in tree.by_path(first).items():
        for table, rows in read.items():
            if path.endswith(table):
                untouched = np.setdiff1d(np.arange(ROWS), rows)
                assert len(untouched) >= 30
                np.testing.assert_array_equal(after[path][untouched], leaf[untouched], err_msg=path)
                assert (np.asarray(after[path])[rows[rows >= 0]] != np.asarray(leaf)[rows[rows >= 0]]).all(), path


@pytest.mark.usefixtures("float64")
def test_rowwise_adagrad_is_its_formula():
    """s += mean of g^2 over the row, w -= lr g / (sqrt(s) + epsilon), by a loop over the rows."""
    rng = np.random.default_rng(3)
    w, gradients = rng.normal(size=(4, 3)), rng.normal(size=(6, 4, 3))
    optimizer = optim.RowwiseAdagrad(peak_lr=0.3, initial=0.2, epsilon=1e-3).build()
    params = {"a": {"table": jnp.asarray(w)}, "kernel": jnp.asarray(w)}
    state = optimizer.init(params)
    s, whole, kernel = np.full(4, 0.2), np.full((4, 3), 0.2), w.copy()
    for g in gradients:
        updates, state = optimizer.update({"a": {"table": jnp.asarray(g)}, "kernel": jnp.asarray(g)}, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        for row in range(4):
            s[row] += np.mean(g[row] ** 2)
            w[row] -= 0.3 * g[row] / (np.sqrt(s[row]) + 1e-3)
        whole += g**2
        kernel -= 0.3 * g / (np.sqrt(whole) + 1e-3)
    np.testing.assert_allclose(params["a"]["table"], w, rtol=1e-12)
    np.testing.assert_allclose(params["kernel"], kernel, rtol=1e-12)
    assert [leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim] == [(4, 1), (4, 3)]


def test_a_step_that_is_not_finite_changes_no_row():
    """The tables and their moments bit for bit, and the step is counted as skipped."""
    good, bad = batches(2)
    adam = optim.Adam(peak_lr=0.1)
    one = learned(adam, [good], lazily=True)
    two = learned(adam, [good, bad | {"y": bad["y"].at[1].set(jnp.nan)}], lazily=True)
    for path, leaf in tree.by_path(one).items():
        np.testing.assert_array_equal(tree.by_path(two)[path], leaf + (path == "skipped"), err_msg=path)


def test_rows_that_are_taken_come_back():
    """Several tables, the same ids, ids that name nothing; what is not asked for stays whole."""
    params = {
        "a": {"table": jnp.arange(20.0).reshape(10, 2)},
        "b": {"table": jnp.arange(7.0)},
        "kernel": jnp.ones((10, 2)),
    }
    ids = jnp.array([[3, -1, 6], [6, 0, 3]])
    found = sparse.touched({"a/table": ids, "b/table": ids}, params)
    assert found.rows["a/table"].tolist() == [0, 3, 10, 6, 10, 10]
    assert found.rows["b/table"].tolist() == [0, 3, 7, 6, 7, 7]
    small = sparse.take({"mu": params}, found)
    np.testing.assert_array_equal(small["mu"]["kernel"], params["kernel"])
    there = np.asarray(ids) >= 0
    at = np.asarray(found.positions["a/table"])
    np.testing.assert_array_equal(np.asarray(small["mu"]["a"]["table"])[at[there]], params["a"]["table"][ids[there]])
    assert (at[~there] == -1).all()
    back = sparse.put({"mu": params}, jax.tree.map(lambda x: -x, small), found)
    expected = np.array(params["a"]["table"])
    expected[[0, 3, 6]] *= -1
    np.testing.assert_array_equal(back["mu"]["a"]["table"], expected)
    np.testing.assert_array_equal(back["mu"]["kernel"], -params["kernel"])
    inner = {"t": jnp.zeros((4, 1)), "deep": {"t": jnp.zeros((6, 1))}}
    both = sparse.touched({"t": jnp.array([1]), "deep/t": jnp.array([5])}, inner)
    raised = sparse.put(inner, jax.tree.map(lambda x: x + 1, sparse.take(inner, both)), both)
    assert [raised["t"].argmax(), raised["deep"]["t"].argmax()] == [1, 5]
    beyond = sparse.touched({"b/table": jnp.array([2, 7, 99])}, params)
    assert beyond.positions["b/table"].tolist() == [0, 3, 3]  # no row of what is taken: nan, as in the whole table
    with pytest.raises(ValueError, match="c/table: no such table; there are: a/table, b/table, kernel"):
        sparse.touched({"c/table": ids}, params)


def test_whose_rows_cannot_be_taken_apart_is_refused():
    """An optimizer that looks at whole leaves; settings that do."""
    params = MODEL.init(jax.random.key(0))[0]
    for optimizer, message in (
        (optim.Lamb(sparse=("table$",)), "optimizer.sparse: 'lamb' treats no row of a table by itself"),
        (optim.SGD(sparse=("table$",), lookahead_every=5), "optimizer.lookahead_every: it needs whole tables"),
        (optim.SGD(sparse=("table$",), clip_adaptive=0.1), "optimizer.clip_adaptive: it needs whole tables"),
        (optim.SGD(sparse=("tables",)), "optimizer.sparse: pattern 'tables' matches no parameter"),
    ):
        with pytest.raises(ConfigError, match=message):
            optimizer.check(params)
    optim.Adam(sparse=("table$",)).check(params)
