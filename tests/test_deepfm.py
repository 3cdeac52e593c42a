"""Models of categories and numbers against their formulas written out over one-hot rows, in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functrain import config, tree
from functrain.building import build
from functrain.built import compile
from functrain.config import ConfigError, parse
from functrain.experiment import Experiment
from functrain.models.deepfm import DeepFM, FactorizationMachine, LogisticRegression, WideDeep, pairwise
from functrain.train.loop import Best, run

FIELDS = (3, 0, 4, 0, 2)
"""Categories and numbers by turns, so that a wrong order shows."""
NUMBERS, CATEGORIES, STARTS = [1, 3], [0, 2, 4], [0, 3, 7]
X = np.array([[2, 0.5, 0, -1.5, 1], [0, 2.0, 3, 0.25, 0], [-1, 1.0, 2, 3.0, -1], [1, -0.5, -1, 0.0, 1]])
KINDS = {
    "logistic_regression": LogisticRegression(),
    "fm": FactorizationMachine(features=3),
    "fm, numbers embedded": FactorizationMachine(features=3, embed_numbers=True),
    "wide_deep": WideDeep(features=3, hidden=(5, 4), activation="tanh"),
    "deepfm": DeepFM(features=3, hidden=(5, 4), activation="tanh"),
    "deepfm, numbers embedded": DeepFM(features=3, hidden=(5, 4), activation="tanh", embed_numbers=True),
}


def made(name, outputs=1, fields=FIELDS, **changes):
    """The model of a kind, and parameters that are all drawn: at zeros, mistakes would not show."""
    model = dataclasses.replace(KINDS[name], fields=fields, **changes).sized((len(fields),), outputs).build()
    params, _ = model.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape)), params)


def by_hand(model, params, x):
    """[n, outputs]: loops over the row as Rendle writes it, categories one-hot, numbers themselves."""
    p = jax.tree.map(np.asarray, params)
    out = []
    for row in x:
        known = [(c, STARTS[i] + int(row[c])) for i, c in enumerate(CATEGORIES) if row[c] >= 0]
        y = p["bias"] + sum(p["weight"]["table"][r] for _, r in known) + row[NUMBERS] @ p["numbers"]["kernel"]
        if isinstance(model, LogisticRegression):
            out.append(y)
            continue
        table = p["embedding"]["table"]
        entries = [(1.0, table[r]) for _, r in known]  # every x_i that is not zero, with its vector
        numbers = p["number_embedding"]["table"] if model.embed_numbers else None
        if numbers is not None:
            entries += [(row[c], numbers[j]) for j, c in enumerate(NUMBERS)]
        if model.pairs:
            for i in range(len(entries)):
                for j in range(i + 1, len(entries)):
                    (a, v), (b, w) = entries[i], entries[j]
                    y = y + np.dot(v, w) * a * b
        if hasattr(model, "hidden"):
            of = dict(known)
            h = [table[of[c]] if c in of else np.zeros(model.features) for c in CATEGORIES]
            h += [row[NUMBERS]] if numbers is None else [row[c] * numbers[j] for j, c in enumerate(NUMBERS)]
            h = np.concatenate(h)
            for i in range(len(model.hidden)):
                h = np.tanh(h @ p[f"layer{i}"]["kernel"] + p[f"layer{i}"]["bias"])
            y = y + h @ p[f"layer{len(model.hidden)}"]["kernel"]
        out.append(y)
    return np.array(out)


@pytest.mark.usefixtures("float64")
def test_pairs_are_rendles_double_sum():
    """Eq. 1's sum over all pairs, by two loops; over any axes before; of one vector nothing."""
    v = np.random.default_rng(0).normal(size=(2, 3, 6, 4))
    expected = sum(np.einsum("abk,abk->ab", v[:, :, i], v[:, :, j]) for i in range(6) for j in range(i + 1, 6))
    np.testing.assert_allclose(pairwise(jnp.asarray(v)), expected, rtol=1e-12)
    np.testing.assert_allclose(pairwise(jnp.asarray(v[:, :, :1])), np.zeros((2, 3)), atol=1e-13)
    assert pairwise(jnp.ones((3, 2), jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", KINDS)
def test_the_sum_of_its_parts(name):
    """Equal to the formula over known and unknown categories; and where numbers or categories are all there is."""
    model, params = made(name)
    y, state = model.apply(params, {"kept": 1}, jnp.asarray(X))
    assert state == {"kept": 1}
    np.testing.assert_allclose(y, by_hand(model, params, X), rtol=1e-12, atol=1e-13)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["logistic_regression", "wide_deep"])
def test_several_outputs(name):
    """Each output is the model with its own columns of what gives outputs."""
    model, params = made(name, outputs=3)
    y = model.apply(params, {}, jnp.asarray(X))[0]
    assert y.shape == (4, 3)
    np.testing.assert_allclose(y, by_hand(model, params, X), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("name", "fields"), [("logistic_regression", (0, 0)), ("wide_deep", (0, 0)), ("fm", (2, 3))])
def test_numbers_alone_and_categories_alone(name, fields):
    """No table where there are no categories, no weights of numbers where there are none."""
    model, params = made(name, fields=fields)
    x = jnp.ones((4, 2))
    assert model.apply(params, {}, x)[0].shape == (4, 1)
    assert ("weight" in params) == ("embedding" in params or (name == "logistic_regression" and fields[0] > 0))
    assert ("weight" in params) == bool(model.rows(x)) == (fields[0] > 0)
    assert ("numbers" in params) == (fields[0] == 0)


@pytest.mark.parametrize("name", KINDS)
def test_how_it_starts(name):
    """The shapes of all parameters; the linear part at zero, the vectors as wide as said, no bias in the last layer."""
    fields = (300, 0, 400, 0, 2)
    model = dataclasses.replace(KINDS[name], fields=fields).sized((5,), 1).build()
    if hasattr(model, "features"):
        model = dataclasses.replace(model, embedding_std=0.3)
    params, state = model.init(jax.random.key(1))
    shapes = {path: leaf.shape for path, leaf in tree.by_path(params).items()}
    expected = {"bias": (1,), "weight/table": (702, 1), "numbers/kernel": (2, 1)}
    assert all(not params_.any() for path, params_ in tree.by_path(params).items() if path in expected)
    if hasattr(model, "features"):
        expected["embedding/table"] = (702, 3)
        assert 0.28 < params["embedding"]["table"].std() < 0.32
    if model.embed_numbers:
        expected["number_embedding/table"] = (2, 3)
    if hasattr(model, "hidden"):
        expected |= {"layer0/kernel": (15 if model.embed_numbers else 11, 5), "layer0/bias": (5,)}
        expected |= {"layer1/kernel": (5, 4), "layer1/bias": (4,), "layer2/kernel": (4, 1)}
    assert (shapes, state) == (expected, {})


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["logistic_regression", "deepfm"])
def test_only_the_rows_that_are_looked_up_learn(name):
    """A gradient for the rows of a batch and for no other; none from a category that is not known."""
    model, params = made(name)
    x = jnp.asarray(X[2:3])  # the first and the last category are not known
    gradient = jax.jit(jax.grad(lambda params: model.apply(params, {}, x)[0].sum()))(params)
    for table in model.tables:
        assert np.flatnonzero(np.asarray(gradient[table]["table"]).any(1)).tolist() == [3 + 2]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["logistic_regression", "fm", "wide_deep", "deepfm"])
def test_a_few_rows_in_place_of_the_tables(name):
    """`rows` says what is read; with those rows alone, and where they stand, the outputs are the same."""
    model, params = made(name)
    rows = model.rows(jnp.asarray(X))
    expected = [[2, 3, 8], [0, 6, 7], [-1, 5, -1], [1, -1, 8]]
    assert {path: ids.tolist() for path, ids in rows.items()} == {f"{t}/table": expected for t in model.tables}
    assert all(jnp.issubdtype(ids.dtype, jnp.integer) for ids in rows.values())
    y = model.apply(params, {}, jnp.asarray(X))[0]
    for tables in {model.tables, model.tables[-1:]}:  # all of them, and one alone
        few, places = dict(params), {}
        for table in tables:
            order = np.array([8, 0, 5, 2, 3, 1, 6, 7])  # row 4 is not read
            where = {int(row): i for i, row in enumerate(order)} | {-1: -1}
            few[table] = {"table": params[table]["table"][order]}
            places[f"{table}/table"] = jnp.asarray(np.vectorize(where.get)(rows[f"{table}/table"]))
        np.testing.assert_array_equal(model.apply(few, {}, jnp.asarray(X), rows=places)[0], y)


def test_a_number_that_is_no_category_is_never_anothers():
    """Beyond its column, or nan: nan in that row, and the others as they were."""
    model, params = made("deepfm")
    good = np.asarray(model.apply(params, {}, jnp.asarray(X, jnp.float32))[0])
    for bad, column in ((3, 0), (4, 2), (2, 4), (np.nan, 0)):
        x = X.copy()
        x[1, column] = bad
        y = np.asarray(model.apply(params, {}, jnp.asarray(x, jnp.float32))[0])
        assert np.isnan(y[1]).all()
        np.testing.assert_array_equal(y[[0, 2, 3]], good[[0, 2, 3]])


def test_large_numbers_keep_apart():
    """Rows up to 2^24 + 5 are exact although x is float32: the column's start is added in whole numbers."""
    model = dataclasses.replace(KINDS["logistic_regression"], fields=(2**24, 6)).sized((2,), 1).build()
    x = jnp.array([[2**24 - 1, 5], [2**24 - 2, 1]], jnp.float32)
    assert model.rows(x)["weight/table"].tolist() == [[2**24 - 1, 2**24 + 5], [2**24 - 2, 2**24 + 1]]


def test_sixteen_bits():
    """They hold the numbers of few categories, and refuse those of more than they tell apart."""
    model, params = made("deepfm")
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    y = model.apply(low, {}, jnp.asarray(X, jnp.bfloat16))[0]
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, model.apply(params, {}, jnp.asarray(X, jnp.float32))[0], atol=0.1)
    for dtype, most in ((jnp.bfloat16, 257), (jnp.float16, 2049)):
        numbers = np.arange(most)
        model = dataclasses.replace(KINDS["logistic_regression"], fields=(most,)).sized((1,), 1).build()
        rows = model.rows(jnp.asarray(numbers[:, None], dtype))["weight/table"]
        np.testing.assert_array_equal(rows[:, 0], numbers)
        model = dataclasses.replace(model, fields=(most + 1,))
        with pytest.raises(ConfigError, match=rf"precision.kind: {jnp.dtype(dtype)} does not tell {most + 1} categ"):
            model.rows(jnp.zeros((1, 1), dtype))


def test_dropout_is_of_the_hidden_units_in_training():
    model, params = made("wide_deep", dropout=0.5)
    x = jnp.asarray(X, jnp.float32)
    y = model.apply(params, {}, x)[0]
    np.testing.assert_array_equal(model.apply(params, {}, x, key=jax.random.key(0))[0], y)
    one, two = (model.apply(params, {}, x, key=jax.random.key(i), train=True)[0] for i in (0, 1))
    assert (one != y).any()
    assert (one != two).any()
    last = jax.tree.map(jnp.zeros_like, params) | {"layer2": {"kernel": jnp.ones((4, 1))}}
    last["layer1"]["bias"] = jnp.full(4, 0.7)
    y = model.apply(last, {}, jnp.tile(x[:1], (1000, 1)), key=jax.random.key(0), train=True)[0]
    kept = np.asarray(y) / (2 * np.tanh(0.7))  # of the last four hidden units, each twice what it is, half of the time
    np.testing.assert_allclose(kept, kept.round(), atol=1e-5)
    assert abs(kept.mean() - 2) < 0.15
    with pytest.raises(ValueError, match="needs a key"):
        model.apply(params, {}, x, train=True)


REFUSED = [
    (lambda: KINDS["deepfm"].sized((8, 8), 1), "model.kind: deepfm takes rows of a table; the data has [8, 8]"),
    (lambda: made("fm", outputs=2), "model.kind: fm has one output; the data wants 2"),
    (lambda: made("deepfm", outputs=2), "model.kind: deepfm has one output; the data wants 2"),
    (lambda: made("fm", fields=(4, 0, 0)), "model.kind: fm pairs columns of categories; found 1; expected 2"),
    (lambda: made("fm, numbers embedded", fields=(4,)), "model.kind: fm pairs columns of categories; found 1"),
    (lambda: KINDS["wide_deep"].build(), "model.fields: found 0; expected one a column"),
    (lambda: dataclasses.replace(KINDS["fm"], fields=(2, 2)).sized((3,), 1).build(), "model.fields: found 2"),
    (lambda: made("logistic_regression", fields=(2**30, 2**30)), "model.fields: found 2147483648 categories"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_what_is_refused(call, message):
    with pytest.raises(ConfigError) as raised:
        call()
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


@pytest.fixture
def crossed(tmp_path, monkeypatch):
    """A table in which the answer is a cross of two columns, and neither alone says anything."""
    rng = np.random.default_rng(0)
    a, b, noise = rng.integers(0, 4, 400), rng.integers(0, 4, 400), rng.normal(size=400)
    lines = [f"a{i},b{j},{n:.3f},{'yes' if (i + j) % 2 else 'no'}" for i, j, n in zip(a, b, noise)]
    (tmp_path / "crossed.csv").write_text("a,b,n,label\n" + "\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)


def trained(kind, **settings):
    """A built experiment on the crossed table, and its validation metrics after 150 steps."""
    data = {"kind": "csv", "path": "crossed.csv", "target": "label", "categories": "numbers"}
    text = {
        "task": {"kind": "binary"},
        "model": {"kind": kind, **settings},
        "data": data | {"validation": 0.3, "test": 0.0, "batch_size": 70},
        "optimizer": {"kind": "adam", "peak_lr": 0.05, "schedule": {"kind": "constant"}},
        "train": {"steps": 150},
        "observe": {"tensorboard": False},
    }
    built = build(parse(Experiment, config.Source(text)))
    compiled = compile(built)
    outcome = run(compiled.program, compiled.train_state, compiled.metrics, built.plan, best=Best())
    return built, compiled.program.scalars(compiled.evaluate["validation"](outcome.train_state))


@pytest.mark.parametrize(("kind", "low", "high"), [("logistic_regression", 0.0, 0.7), ("fm", 0.99, 1.0)])
def test_a_cross_is_learned_by_pairs_alone(crossed, quick, kind, low, high):
    """The data says how many categories there are; a linear model cannot tell a cross, the machine can."""
    built, metrics = trained(kind)
    assert built.config.model.fields == (4, 4, 0)
    assert low <= metrics["roc_auc"] <= high
