"""Factorisation models, recommendation by ranking and ALS as a task: against plain loops, and on data of known make."""

import itertools
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import agree, draw
from helpers import assert_equal_runs, gap, metrics_of, same, start, train
from test_ranking import by_hand

from functrain import trained
from functrain.building import build
from functrain.built import first_state
from functrain.cli import main
from functrain.config import ConfigError
from functrain.data import Arrays, Dataset, InOrder, Memory, Whole
from functrain.experiment import Experiment
from functrain.metrics import read
from functrain.models import MF, NCF
from functrain.optim import SGD, Adam, Learner
from functrain.optim.schedules import Cosine
from functrain.tasks import ALS, Recommendation, Regression
from functrain.train import state, step
from functrain.train.checkpoint import from_arrays, to_arrays
from functrain.train.loop import Train

USERS, ITEMS = 7, 5
MODELS = {
    "mf": MF(features=3, mean=0.5),
    "mf without biases": MF(features=3, biases=False),
    "mf with content": MF(features=3, mean=0.5, content=4),
    "mf with content, without biases": MF(features=3, biases=False, content=4),
    "gmf": NCF(parts="gmf", features=3),
    "mlp": NCF(parts="mlp", mlp_features=3, hidden=(6, 4)),
    "neumf": NCF(features=2, mlp_features=3, hidden=(6, 4)),
}


def model_of(name):
    """(the model, parameters that are all other than zero, a state)."""
    model = MODELS[name].__class__(**{**MODELS[name].__dict__, "fields": (USERS, ITEMS)}).sized((2,), 1)
    params, there = model.init(jax.random.key(0))
    params = jax.tree.map(lambda p: jnp.asarray(draw(p.size, *p.shape), p.dtype), params)
    return model, params, jax.tree.map(lambda p: jnp.asarray(draw(p.size + 1, *p.shape), p.dtype), there)


def pairs():
    """Every user with every item, with the ones that are not known: x [(users + 1) (items + 1), 2]."""
    return np.array([(u, i) for u in range(-1, USERS) for i in range(-1, ITEMS)], np.int32)


# -- models ---------------------------------------------------------------------------------------


def formula(model, params, there, user, item):
    """The score of one pair from the papers' formulas; numbers of who is not known are zeros."""
    row = lambda table, k: np.asarray(table["table"])[k] if k >= 0 else np.zeros(table["table"].shape[1])  # noqa: E731
    if isinstance(model, MF):
        p, q = row(params["users"], user), row(params["items"], item)
        score = model.mean or 0.0
        if model.biases:
            score += row(params["user_bias"], user)[0] + row(params["item_bias"], item)[0]
        if model.content and item >= 0:
            described = np.asarray(there["content"])[item] @ np.asarray(params["content"]["kernel"])
            q = q + described[: model.features]
            score += described[model.features] if model.biases else 0.0
        return score + p @ q
    phi = []
    if model.parts != "mlp":
        phi.append(row(params["gmf"]["users"], user) * row(params["gmf"]["items"], item))
    if model.parts != "gmf":
        h = np.concatenate([row(params["mlp"]["users"], user), row(params["mlp"]["items"], item)])
        for i in range(len(model.hidden)):
            layer = params["mlp"][f"layer{i}"]
            h = np.maximum(h @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"]), 0)
        phi.append(h)
    return (np.concatenate(phi) @ np.asarray(params["head"]["kernel"]) + np.asarray(params["head"]["bias"]))[0]


@pytest.mark.usefixtures("float64", "quick")
@pytest.mark.parametrize("name", MODELS)
def test_a_score_is_the_formula(name):
    """Of every pair, known or not; of a batch with more axes; as one of all items; from floats as from integers."""
    model, params, there = model_of(name)
    x = pairs()
    found, after = jax.jit(model.apply)(params, there, x)
    assert after.keys() == there.keys()
    agree(found[:, 0], np.array([formula(model, params, there, *pair) for pair in x]), 1e-13)
    agree(model.apply(params, there, x.reshape(2, -1, 1, 2))[0].reshape(-1, 1), found, 1e-13)
    agree(model.apply(params, there, x.astype(np.float32))[0], found, 1e-13)
    scores = jax.jit(model.scores)(params, there, np.arange(-1, USERS))
    agree(scores, np.asarray(found).reshape(USERS + 1, ITEMS + 1)[:, 1:], 1e-12)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", ["mf with content", "neumf"])
def test_scores_in_float32(name):
    """All items at once as pair by pair."""
    model, params, there = model_of(name)
    found = model.apply(params, there, pairs())[0].reshape(USERS + 1, ITEMS + 1)[:, 1:]
    scores = model.scores(params, there, np.arange(-1, USERS))
    np.testing.assert_allclose(scores, found, rtol=0, atol=1e-6 * np.abs(found).max())


@pytest.mark.usefixtures("float64", "quick")
@pytest.mark.parametrize("name", ["mf", "mf with content", "neumf"])
def test_few_rows_are_the_whole(name):
    """A step on the rows that a batch reads alone changes what a step on whole tables changes."""
    model, params, there = model_of(name)
    x = np.array([[4, 0], [1, 2], [4, 2], [-1, 0], [1, -1], [4, 0]], np.int32)
    batch, changed = {"x": jnp.asarray(x), "y": jnp.asarray(draw(3, 6))}, []
    for rows in (None, lambda batch: model.rows(batch["x"])):
        task = Regression(model=model, learner=Learner(optimizer=SGD(peak_lr=0.1), rows=rows))
        before = start(task).replace(state=there)
        before = before.replace(players={"model": before.players["model"].replace(params=params)})
        after, _ = jax.jit(task.update)(before, batch, key=jax.random.key(1))
        changed.append(jax.tree.map(jnp.subtract, after.players["model"].params, params))
    assert set(model.rows(x)) == {p for p in map("/".join, _paths(params)) if p.endswith("table")}
    assert gap(changed[1], changed[0]) < 1e-13


def _paths(params, before=()):
    """The keys that lead to each leaf."""
    if not isinstance(params, dict):
        return [before]
    return [path for key, part in params.items() for path in _paths(part, (*before, key))]


def test_models_at_the_start():
    """Sizes, and deviations of what is drawn; with content, an item's own row is zero, so that content says all."""
    model = MF(features=8, fields=(400, 300), deviation=0.2, content=50)
    params, there = model.init(jax.random.key(0))
    assert {name: jax.tree.leaves(part)[0].shape for name, part in params.items()} == {
        "users": (400, 8),
        "items": (300, 8),
        "user_bias": (400, 1),
        "item_bias": (300, 1),
        "content": (50, 9),
    }
    assert there["content"].shape == (300, 50)
    assert not params["items"]["table"].any()
    assert not params["content"]["kernel"][:, 8].any()
    for drawn in (params["users"]["table"], params["content"]["kernel"][:, :8]):
        assert np.std(drawn) == pytest.approx(0.2, rel=0.1)
    plain = MF(features=8, fields=(400, 300)).init(jax.random.key(0))[0]["items"]["table"]
    assert np.std(plain) == pytest.approx(0.1, rel=0.1)
    ncf, _ = NCF(fields=(400, 300)).init(jax.random.key(0))
    tables = [ncf[part][side]["table"] for part in ("gmf", "mlp") for side in ("users", "items")]
    assert all(np.std(table) == pytest.approx(0.01, rel=0.1) for table in tables)
    assert ncf["head"]["kernel"].shape == (32 + 16, 1)
    assert ncf["mlp"]["layer0"]["kernel"].shape == (64, 64)
    assert gap(tables[0], tables[2]) > 0.5  # each part draws its own


@pytest.mark.parametrize(
    ("fields", "inputs", "outputs", "said"),
    [
        ((3, 4), (5,), 1, r"model.kind: '.*' reads a user and an item, x \[n, 2\]; found examples of \[5\]"),
        ((3, 4), (2,), 3, "model.kind: '.*' gives one number; the task wants 3"),
        ((3, 4, 5), (2,), 1, r"model.fields: found \[3, 4, 5\]; expected \[users, items\]"),
        ((3, 0), (2,), 1, r"model.fields: found \[3, 0\]"),
    ],
)
def test_models_that_do_not_fit(fields, inputs, outputs, said):
    """One line that says what was found."""
    for model in (MF(fields=fields), NCF(fields=fields)):
        with pytest.raises(ConfigError, match=said):
            model.sized(inputs, outputs)


# -- recommendation -------------------------------------------------------------------------------


def recommendation(accumulate=1, rate=0.1, **settings):
    """The task with a small model of 7 users and 5 items."""
    model = MF(features=3, deviation=1.0, fields=(USERS, ITEMS)).sized((2,), 1)
    task = Recommendation(drawn_from=ITEMS, **settings)
    return task.assemble(model, lambda name: Learner(optimizer=SGD(peak_lr=rate), accumulate=accumulate))


@pytest.mark.usefixtures("float64", "quick")
@pytest.mark.parametrize("criterion", ["cross_entropy", "bpr", "softmax"])
def test_the_loss_is_a_plain_loop(criterion):
    """Over rows that count and their weights; the share of pairs in order counts rows once."""
    task = recommendation(criterion=criterion)
    scores = draw(0, 6, 4)
    mask, weight = np.array([1.0, 1, 0, 1, 1, 1]), np.array([1.0, 2, 1, 0.5, 1, 1])
    batch = {"mask": jnp.asarray(mask), "weight": jnp.asarray(weight)}
    found, metrics = task.loss(jnp.asarray(scores)[..., None], batch, train=True)
    total = count = 0.0
    order = []
    for (taken, *others), counts, w in zip(scores, mask, weight):
        if not counts:
            continue
        order += [taken > other for other in others]
        if criterion == "cross_entropy":
            parts = [math.log1p(math.exp(-taken))] + [math.log1p(math.exp(other)) for other in others]
        elif criterion == "bpr":
            parts = [-math.log(1 / (1 + math.exp(other - taken))) for other in others]
        else:
            parts = [-math.log(math.exp(taken) / sum(map(math.exp, (taken, *others))))]
        total, count = total + w * sum(parts), count + w * len(parts)
    np.testing.assert_allclose(found.value, total / count, rtol=1e-13)
    np.testing.assert_allclose(metrics["pair_accuracy"].value, np.mean(order), rtol=1e-6)


def test_others_are_drawn_evenly():
    """The pair first, then the same user with other items, each as often; by the key alone."""
    task = recommendation(negatives=3)
    x = jnp.array([[u % USERS, u % ITEMS] for u in range(4000)])
    found = np.asarray(task.with_others(x, jax.random.key(0)))
    assert found.shape == (4000, 4, 2)
    np.testing.assert_array_equal(found[:, 0], x)
    assert (found[..., 0] == np.asarray(x)[:, :1]).all()
    for item in range(ITEMS):
        others = np.bincount(found[found[:, 0, 1] == item][:, 1:, 1].ravel(), minlength=ITEMS)
        assert others[item] == 0
        assert np.abs(np.delete(others, item) / others.sum() - 1 / (ITEMS - 1)).max() < 0.03
    np.testing.assert_array_equal(task.with_others(x, jax.random.key(0)), found)
    assert (np.asarray(task.with_others(x, jax.random.key(1))) != found).any()


@pytest.mark.usefixtures("float64", "quick")
@pytest.mark.parametrize("criterion", ["bpr", "softmax"])
def test_accumulated_is_whole(criterion):
    """The items of a step are drawn for the whole batch, which may be ragged."""
    batch = {"x": jnp.asarray(np.random.default_rng(0).integers(0, ITEMS, (8, 2))), "y": jnp.ones(8)}
    batch["mask"] = jnp.array([1.0, 1, 0, 1, 1, 1, 1, 0])
    changed = []
    for parts in (1, 4):
        task = recommendation(parts, criterion=criterion)
        before = start(task)
        after, _ = jax.jit(task.update)(before, batch, key=jax.random.key(1))
        changed.append(jax.tree.map(jnp.subtract, after.players["model"].params, before.players["model"].params))
    for one in changed:  # it cancels in differences of a user's scores
        assert float(jnp.abs(one.pop("user_bias")["table"]).max()) < 1e-16
    assert gap(changed[1], changed[0]) < 1e-12
    assert float(jnp.abs(changed[0]["items"]["table"]).max()) > 1e-3


def dataset_at_random(seed=0, users=23, items=19):
    """Users and items in three splits: some pairs in several, some unknown users and items, some users nowhere."""
    rng = np.random.default_rng(seed)
    parts = {}
    for split, n in (("train", 160), ("validation", 50), ("test", 50)):
        x = np.stack([rng.integers(0, users - 3, n), rng.integers(0, items, n)], 1).astype(np.int32)
        if split != "train":
            x[rng.random((n, 2)) < 0.1] = -1
            x[0], x[1] = parts["train"]["x"][0], parts["train"]["x"][1]
        parts[split] = {"x": x, "y": np.ones(n, np.float32)}
    return Dataset(**parts, fields=(users, items))


def had(data, *splits):
    """user -> the items that the user has in these splits, by a plain loop over known pairs."""
    found = {}
    for split in splits:
        for user, item in data.split(split)["x"].tolist():
            if user >= 0 and item >= 0:
                found.setdefault(user, set()).add(item)
    return found


def masks_of(found, items):
    """(user, relevant items, items that may be ranked) of each row of examples."""
    unpacked = [np.unpackbits(found[name], axis=1, count=items).astype(bool) for name in ("relevant", "among")]
    return [(int(u), *({*np.flatnonzero(m).tolist()} for m in row)) for u, *row in zip(found["x"], *unpacked)]


@pytest.mark.parametrize("block", [1 << 22, 60])
def test_examples_are_a_plain_loop(monkeypatch, block):
    """Who is evaluated, what is relevant and what is ranked, in every split; however many are laid out at once."""
    monkeypatch.setattr("functrain.tasks.recommendation._BLOCK", block)
    data, before = dataset_at_random(), ()
    for split in ("train", "validation", "test"):
        found = Recommendation().examples(data, split)
        assert found["x"].dtype == np.int32
        earlier, own = had(data, *before), had(data, split)
        expected = []
        for user in sorted(own):
            relevant = own[user] - earlier.get(user, set())
            if relevant:
                expected.append((user, relevant, set(range(19)) - earlier.get(user, set())))
        assert masks_of(found, 19) == expected
        before += (split,)
    repeated = had(data, "train")
    assert any(own & repeated.get(u, set()) for u, own in had(data, "test").items())  # else the above says little


def test_examples_that_are_drawn(monkeypatch):
    """Relevant ones, and so many that the user has nowhere, drawn evenly by the seed; of many users some."""
    data = dataset_at_random()
    everywhere, full = had(data, "train", "validation", "test"), masks_of(Recommendation().examples(data, "test"), 19)
    counts = np.zeros(19)
    for seed in range(60):
        found = Recommendation(sampled=3, draw_seed=seed).examples(data, "test")
        for (user, relevant, among), (same_user, wanted, _) in zip(masks_of(found, 19), full, strict=True):
            assert (user, relevant) == (same_user, wanted)
            drawn = among - relevant
            assert relevant <= among
            assert len(drawn) == 3
            assert not drawn & everywhere[user]
            if user == full[0][0]:
                counts[list(drawn)] += 1
    free = sorted(set(range(19)) - everywhere[full[0][0]])
    assert np.abs(counts[free] / counts.sum() - 1 / len(free)).max() < 0.1
    few = Recommendation(sampled=3, draw_seed=1)
    assert same(few.examples(data, "test"), few.examples(data, "test"))
    monkeypatch.setattr("functrain.tasks.recommendation._BLOCK", 40)
    assert same(few.examples(data, "test"), Recommendation(sampled=3, draw_seed=1).examples(data, "test"))
    every = masks_of(Recommendation(sampled=50).examples(data, "test"), 19)
    assert all(among == relevant | (set(range(19)) - everywhere[u]) for u, relevant, among in every)
    some = [masks_of(Recommendation(most_users=6, draw_seed=s).examples(data, "test"), 19) for s in (0, 1)]
    assert all(len(one) == 6 and [row for row in full if row in one] == one for one in some)
    assert some[0] != some[1]


def test_what_a_user_had_is_not_ranked():
    """Training pairs with the highest scores of all change no metric; the metrics are those of a plain loop."""
    data = dataset_at_random()
    model = MF(features=3, fields=data.fields, deviation=1.0).sized((2,), 1)
    task = Recommendation(k=4).sized(data).assemble(model, lambda name: Learner(optimizer=SGD()))
    train_state, feed = start(task), InOrder(jax.device_put(task.examples(data, "test")), 7)
    users, relevant, among = zip(*masks_of(task.examples(data, "test"), 19))
    dense = [np.array([[i in items for i in range(19)] for items in rows]) for rows in (relevant, among)]
    scores = np.asarray(task.scores_of(train_state, np.array(users)))
    expected = by_hand(scores, dense[0], 4, dense[1])
    found = metrics_of(task, train_state, feed)
    assert {name: pytest.approx(value, rel=1e-6) for name, value in expected.items()} == found

    seen = np.zeros(data.fields, np.float32)
    for user, items in had(data, "train", "validation").items():
        seen[user, list(items)] = 100

    class Remembers(MF):
        """The model, but with 100 more for whatever is in training or validation."""

        def scores(self, params, state, users):
            return super().scores(params, state, users) + jnp.asarray(seen)[users]

    again = task.assemble(Remembers(**model.__dict__), lambda name: task.learner)
    assert metrics_of(again, train_state, feed) == found
    best = np.asarray(again.scores_of(train_state, np.array(users))).argmax(1)
    assert seen[list(users), best].all()  # without the mask, each user's first would be one that the user has


def test_recommended_items():
    """The highest first, without those that are excluded; of a user of whom nothing is known by biases alone."""
    task = recommendation()
    train_state = start(task)
    params = train_state.players["model"].params
    params = params | {"item_bias": {"table": jnp.array([[0.3], [0.1], [0.5], [0.2], [0.4]])}}
    train_state = train_state.replace(players={"model": train_state.players["model"].replace(params=params)})
    scores = np.asarray(task.scores_of(train_state, jnp.array([3, -1])))
    exclude = np.zeros((2, ITEMS), bool)
    exclude[0, scores[0].argmax()] = exclude[1, 2] = True
    items, found = task.recommend(train_state, [3, -1], k=3, exclude=exclude)
    assert items[0].tolist() == np.argsort(-scores[0])[1:4].tolist()
    assert items[1].tolist() == [4, 0, 3]
    np.testing.assert_array_equal(found, np.take_along_axis(scores, items, 1))
    np.testing.assert_allclose(found[1], [0.4, 0.3, 0.2])
    with pytest.raises(ValueError, match="k: found 6; expected 1 to 5"):
        task.recommend(train_state, [0], k=6)
    with pytest.raises(ValueError, match=r"exclude: found shape \(5,\); expected \(1, 5\)"):
        task.recommend(train_state, [0], k=2, exclude=np.zeros(5))


# -- alternating least squares --------------------------------------------------------------------


def rated(seed=0, users=30, items=20):
    """Ratings 1 to 5 (of interactions how often), a tenth of the pairs twice, some unknown ones in the test."""
    rng = np.random.default_rng(seed)
    parts = {}
    for split, n in (("train", 240), ("test", 60)):
        x = np.stack([rng.integers(0, users, n), rng.integers(0, items, n)], 1).astype(np.int32)
        parts[split] = {"x": x, "y": rng.integers(1, 6, n).astype(np.float32)}
    parts["test"]["x"][:5] = [[-1, 3], [2, -1], [-1, -1], [0, 0], [1, 1]]
    return Dataset(**parts, fields=(users, items))


def swept(task, data, steps):
    """(the task, the train state after so many sweeps, the metrics of each)."""
    task = task.sized(data).assemble(None, lambda name: Learner())
    train_state, batch = start(task), task.whole(data)
    update = jax.jit(lambda s, batch: task.update(s, batch, key=jax.random.key(0)))
    found = []
    for _ in range(steps):
        train_state, metrics = update(train_state, batch)
        found.append(read(metrics))
    return task, train_state, found


@pytest.mark.usefixtures("float64")
def test_the_implicit_loss_never_rises():
    """And is equation 3 of Hu et al., summed by a loop over all users and items; ratings of a pair add up."""
    data = rated()
    data.train["y"][::7] = 0  # nothing at all
    task, train_state, found = swept(ALS(features=4, implicit=True, alpha=2.0, regularisation=0.3), data, 12)
    often = np.zeros(data.fields)
    np.add.at(often, tuple(data.train["x"].T), data.train["y"])
    params = jax.tree.map(np.asarray, train_state.players["model"].params)
    assert params.keys() == {"users", "items"}
    expected = 0.3 * sum((p**2).sum() for p in params.values())
    for u, i in itertools.product(*map(range, data.fields)):
        expected += (1 + 2.0 * often[u, i]) * ((often[u, i] > 0) - params["users"][u] @ params["items"][i]) ** 2
    np.testing.assert_allclose(found[-1]["loss"], expected, rtol=1e-12)
    heights = [metrics["loss"] for metrics in found]
    assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(heights))
    assert heights[-1] < 0.9 * heights[0]
    agree(task.outputs_of(train_state, np.array([[3, 5]]))[0, 0], params["users"][3] @ params["items"][5], 1e-13)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("weighted", [False, True])
def test_the_errors_of_ratings(weighted):
    """After a sweep, of every training rating; in evaluation, of a split's, where what is unknown counts as zero."""
    data = rated()
    task, train_state, found = swept(ALS(features=3, regularisation=0.5, weighted=weighted), data, 3)
    params = jax.tree.map(np.asarray, train_state.players["model"].params)
    mean = data.train["y"].astype(np.float64).mean()

    def told(user, item):
        score = mean + (params["user_bias"][user] if user >= 0 else 0) + (params["item_bias"][item] if item >= 0 else 0)
        return score + (params["users"][user] @ params["items"][item] if user >= 0 <= item else 0)

    errors = {
        split: np.array([told(u, i) - y for (u, i), y in zip(data.split(split)["x"].tolist(), data.split(split)["y"])])
        for split in ("train", "test")
    }
    assert found[-1]["rmse"] == pytest.approx(np.sqrt((errors["train"] ** 2).mean()), rel=1e-12)
    assert found[-1]["loss"] == pytest.approx((errors["train"] ** 2).mean(), rel=1e-12)
    feed = InOrder(jax.device_put(task.examples(data, "test")), 16)
    metrics = metrics_of(task, train_state, feed)
    assert metrics["rmse"] == pytest.approx(np.sqrt((errors["test"] ** 2).mean()), rel=1e-6)
    assert metrics["loss"] == pytest.approx((errors["test"] ** 2).mean(), rel=1e-6)
    assert metrics["absolute_error"] == pytest.approx(np.abs(errors["test"]).mean(), rel=1e-6)
    mine = data.train["x"][:, 1] == 5  # items are solved last: those of one, from the users that there are now
    user = data.train["x"][mine, 0]
    y = np.column_stack([params["users"][user], np.ones(mine.sum())])
    ridge = 0.5 * (mine.sum() if weighted else 1) * np.eye(4)
    own = np.linalg.solve(y.T @ y + ridge, y.T @ (data.train["y"][mine] - mean - params["user_bias"][user]))
    agree(np.append(params["items"][5], params["item_bias"][5]), own, 1e-9)
    x = data.test["x"]
    agree(task.outputs_of(train_state, x)[:, 0], np.array([told(*pair) for pair in x.tolist()]), 1e-12)
    every = np.array([[told(u, i) for i in range(20)] for u in (4, -1)])
    agree(task.scores_of(train_state, jnp.array([4, -1])), every, 1e-12)


@pytest.mark.parametrize("kind", ["recommendation", "ratings", "interactions"])
def test_chunks_and_resume_are_bitwise(kind):
    """Chunks of 1, 5 and 20, and a run cut at step 13 and taken up from its arrays, end in the same state and log."""
    data = rated()
    if kind == "recommendation":
        task = Recommendation(criterion="bpr", negatives=2).sized(data)
        model = MF(features=3, fields=data.fields).sized((2,), 1)
        task = task.assemble(model, lambda name: Learner(optimizer=Adam(peak_lr=1e-2)))
        feed = Memory(jax.device_put(data.train), 32)
    else:
        task = ALS(features=3, implicit=kind == "interactions").sized(data).assemble(None, lambda name: Learner())
        feed = Whole(jax.device_put(task.whole(data)))
    whole, log = train(task, feed, steps=20, chunk=20, log_every=10)
    for chunk in (1, 5):
        other, other_log = train(task, feed, steps=20, chunk=chunk, log_every=10)
        assert same(other.train_state, whole.train_state)
        assert other_log.lines == log.lines
    half, _ = train(task, feed, steps=13, log_every=10)
    restored = jax.tree.map(jnp.copy, from_arrays(to_arrays(half.train_state), half.train_state))
    assert not same(restored, whole.train_state)
    again, _ = train(task, feed, steps=20, log_every=10, train_state=restored)
    assert same(again.train_state, whole.train_state)


def test_a_population_of_regularisations():
    """Live numbers: two members under vmap are the two alone."""
    data = rated()
    task = ALS(features=3, implicit=True).sized(data).assemble(None, lambda name: Learner())
    batch, key = task.whole(data), jax.random.key(0)

    def final(regularisation, alpha, batch):
        numbers = {"regularisation": regularisation, "alpha": alpha}
        train_state = state.init(task, key, numbers)
        for _ in range(2):
            train_state, _ = step.make_step(task)(train_state, batch)
        return train_state.players["model"].params

    both = jax.jit(jax.vmap(final, (0, 0, None)))(jnp.array([0.1, 20.0]), jnp.array([40.0, 3.0]), batch)
    for i, (regularisation, alpha) in enumerate([(0.1, 40.0), (20.0, 3.0)]):
        alone = ALS(features=3, implicit=True, regularisation=regularisation, alpha=alpha)
        _, train_state, _ = swept(alone, data, 2)
        assert gap(jax.tree.map(lambda x, i=i: x[i], both), train_state.players["model"].params) < 1e-4
    assert gap(jax.tree.map(lambda x: x[0], both), jax.tree.map(lambda x: x[1], both)) > 0.1


# -- they learn -----------------------------------------------------------------------------------


def trained_on(data, task, model=None, *, steps, rate=1e-2):
    """(the task, its last train state, the numbers of its test) of a run on arrays at hand."""
    built = build(
        Experiment(
            task=task,
            model=model,
            data=Arrays(examples=data, batch_size=512),
            optimizer=Adam(peak_lr=rate, schedule=Cosine()),
            train=Train(steps=steps),
        )
    )
    first = first_state(built)
    outcome, _ = train(built.task, built.feeds["train"], steps=steps, chunk=steps, log_every=steps, train_state=first)
    return built.task, outcome.train_state, metrics_of(built.task, outcome.train_state, built.feeds["test"])


def low_rank(noise=0.3, users=300, items=200, rank=2):
    """Ratings about 3.5 of rank 2 with biases and noise, a third of all; 2000 of them as test."""
    rng = np.random.default_rng(3)
    truth = 3.5 + 0.5 * (rng.normal(size=(users, 1)) + rng.normal(size=items))
    truth = truth + rng.normal(size=(users, rank)) @ rng.normal(size=(rank, items))
    x = rng.permutation(np.argwhere(np.ones((users, items))))[:22_000].astype(np.int32)
    y = (truth[tuple(x.T)] + noise * rng.normal(size=len(x))).astype(np.float32)
    return Dataset({"x": x[2000:], "y": y[2000:]}, test={"x": x[:2000], "y": y[:2000]}, fields=(users, items))


def test_ratings_to_their_noise():
    """Of ratings of rank 2 with noise 0.3, both ways: errors on unseen ones within a tenth of the noise."""
    data, noise = low_rank(), 0.3
    task, _, found = trained_on(data, Regression(), MF(features=2), steps=1500, rate=3e-2)
    assert task.model.mean == pytest.approx(data.train["y"].mean(), rel=1e-6)
    assert noise * 0.95 < found["rmse"] < 1.1 * noise
    _, _, found = trained_on(data, ALS(features=2, regularisation=0.3), steps=20)
    assert noise * 0.95 < found["rmse"] < 1.1 * noise
    assert data.train["y"].std() > 4 * noise


def taken_by_taste(users=200, items=120, tastes=4):
    """Users take 20 items, mostly of their own taste, popular ones more often; four of them are the test."""
    rng = np.random.default_rng(5)
    own, of = rng.integers(0, tastes, users), rng.integers(0, tastes, items)
    wanted = 1.5 * rng.normal(size=items) + 3 * (own[:, None] == of) + rng.gumbel(size=(users, items))
    taken = rng.permuted(np.argsort(-wanted, 1)[:, :20], axis=1)
    x = np.stack([np.repeat(np.arange(users), 20), taken.ravel()], 1).astype(np.int32).reshape(users, 20, 2)
    parts = {"train": x[:, 4:].reshape(-1, 2), "test": x[:, :4].reshape(-1, 2)}
    return Dataset(**{s: {"x": p, "y": np.ones(len(p), np.float32)} for s, p in parts.items()}, fields=(users, items))


@pytest.mark.parametrize("criterion", ["bpr", "cross_entropy", "softmax", "als"])
def test_tastes_are_better_than_popularity(criterion):
    """What users take by their taste is ranked far better than by how often it was taken."""
    data = taken_by_taste()
    if criterion == "als":
        task, model = ALS(features=4, implicit=True, alpha=5.0, regularisation=5.0), None
    else:
        task, model = Recommendation(criterion=criterion), MF(features=4)
    task, _, found = trained_on(data, task, model, steps=20 if criterion == "als" else 400, rate=3e-2)
    users, relevant, among = zip(*masks_of(task.examples(data, "test"), 120))
    dense = [np.array([[i in items for i in range(120)] for items in rows]) for rows in (relevant, among)]
    often = np.bincount(data.train["x"][:, 1], minlength=120).astype(float)
    popular = by_hand(np.tile(often, (len(users), 1)), dense[0], 10, dense[1])
    assert found["ndcg_at_10"] > 1.3 * popular["ndcg_at_10"] > 0.1
    assert found["recall_at_10"] > 1.2 * popular["recall_at_10"]


def described(y_of, users=200, items=150, cold=30):
    """Pairs of users with items, whose content says how they are liked; the last items are in the test alone."""
    rng = np.random.default_rng(7)
    content = (rng.random((items, 8)) < 0.3).astype(np.float32)
    liked = rng.normal(size=(users, 8)) @ content.T + content @ rng.normal(size=8)
    x = np.argwhere(rng.random((users, items)) < 0.3).astype(np.int32)
    x, y = y_of(rng, x, liked)
    parts = {}
    for split, mine in (("train", x[:, 1] < items - cold), ("test", x[:, 1] >= items - cold)):
        parts[split] = {"x": x[mine], "y": y[mine].astype(np.float32)}
    return Dataset(**parts, fields=(users, items)), {"content": content}


def test_ratings_of_cold_items():
    """Items that training never saw: content says how they are rated, without it nothing but a user's bias does."""
    data, constants = described(lambda rng, x, liked: (x, liked[tuple(x.T)] + 0.3 * rng.normal(size=len(x))))
    _, _, without = trained_on(data, Regression(), MF(features=8), steps=500, rate=3e-2)
    data = Dataset(train=data.train, test=data.test, fields=data.fields, constants=constants)
    task, train_state, found = trained_on(data, Regression(), MF(features=8), steps=500, rate=3e-2)
    assert task.model.content == 8
    np.testing.assert_array_equal(train_state.state["content"], constants["content"])
    assert not train_state.players["model"].params["items"]["table"][120:].any()
    assert found["rmse"] < 0.7 < 1.5 < without["rmse"]


def test_rankings_of_cold_items():
    """The same of what is taken: cold items are not drawn as others, and those that fit stand first."""

    def best(rng, x, liked):
        taken = np.argwhere(liked >= np.quantile(liked, 0.85, axis=1, keepdims=True)).astype(np.int32)
        return taken, np.ones(len(taken))

    data, constants = described(best)
    task = Recommendation(criterion="bpr", sampled=20)
    data = Dataset(train=data.train, test=data.test, fields=data.fields, constants=constants)
    task, train_state, found = trained_on(data, task, MF(features=8), steps=300, rate=3e-2)
    assert task.drawn_from == 120
    params = train_state.players["model"].params
    assert not params["items"]["table"][120:].any()
    assert not params["item_bias"]["table"][120:].any()
    assert params["item_bias"]["table"][:120].any()
    users, relevant, among = zip(*masks_of(task.examples(data, "test"), 150))
    dense = [np.array([[i in items for i in range(150)] for items in rows]) for rows in (relevant, among)]
    guessed = by_hand(np.random.default_rng(0).random((len(users), 150)), dense[0], 10, dense[1])
    assert found["ndcg_at_10"] > 0.8 > 0.4 > guessed["ndcg_at_10"]


# -- runs -----------------------------------------------------------------------------------------

RATINGS = """
[task]
kind = "als"
features = 3
[data]
kind = "ratings"
path = "ratings.csv"
time = ""
batch_size = 64
[train]
steps = 6
log_every = 2
[evaluate]
every = 2
[checkpoint]
every = 2
[observe]
tensorboard = false
"""
TAKEN = (
    RATINGS.replace('kind = "als"\nfeatures = 3', 'kind = "recommendation"\nk = 5\nnegatives = 2')
    + """
[model]
kind = "matrix_factorisation"
features = 4
[optimizer]
kind = "adam"
peak_lr = 1e-2
"""
).replace("[evaluate]\n", '[evaluate]\nmonitor = "ndcg_at_5"\nmode = "max"\n')


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with ratings.csv, of users a0, a1, ... and items b0, b1, ..., and two configs."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    pairs = rng.permutation(np.argwhere(np.ones((40, 30))))[:700]
    rows = [f"a{u},b{i},{y}" for (u, i), y in zip(pairs, rng.integers(1, 6, 700))]
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating\n" + "\n".join(rows) + "\n")
    (tmp_path / "als.toml").write_text(RATINGS)
    (tmp_path / "mf.toml").write_text(TAKEN)
    return tmp_path


def test_a_sparse_run_is_the_dense_one(folder):
    """Where a gradient of zero changes nothing: parameters after six steps, and the ranking."""
    descent = ["optimizer={kind='sgd', peak_lr=0.5}", "train.steps=6"]
    assert main(["train", "mf.toml", "--out", "dense", *descent]) == 0
    assert main(["train", "mf.toml", "--out", "sparse", *descent, 'optimizer.sparse=["table$"]']) == 0
    dense, sparse = (trained.load(out).params for out in ("dense", "sparse"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), dense, sparse)
    results = [json.loads((folder / out / "result.json").read_text())["test"] for out in ("dense", "sparse")]
    assert results[0]["ndcg_at_5"] == pytest.approx(results[1]["ndcg_at_5"], abs=1e-6)


RANKING = {f"{name}_at_5" for name in ("precision", "recall", "hit_rate", "mrr", "map", "ndcg")}


@pytest.mark.parametrize(
    ("config", "more", "names"),
    [
        ("als", [], {"loss", "rmse", "absolute_error"}),
        ("als", ["task.implicit=true", "task.k=5", "train.seeds=2"], RANKING),
        ("mf", ['model={ kind = "ncf", features = 2, mlp_features = 4, hidden = [8, 4] }'], RANKING),
        ("mf", ['optimizer.sparse=["table$"]', "train.seeds=2"], RANKING),
    ],
    ids=["ratings", "interactions", "ncf", "sparse"],
)
def test_a_run(folder, capsys, config, more, names):
    """Its metrics by name; resumed is whole; loaded again it scores, recommends and predicts for ids of a file."""
    assert main(["train", f"{config}.toml", "--out", "whole", *more]) == 0
    assert main(["train", f"{config}.toml", "--out", "cut", *more, "train.steps=4"]) == 0
    assert main(["train", "--resume", "cut", "train.steps=6"]) == 0
    assert_equal_runs("whole", "cut")
    result = json.loads((folder / "whole" / "result.json").read_text())
    said = {name for name in result["test"] if name != "step" and not name.endswith("_deviation")}
    assert {name.removesuffix("_mean") for name in said} >= names
    assert (folder / "whole" / "figures" / "curves.png").is_file()
    lines = [json.loads(line) for line in (folder / "whole" / "metrics.jsonl").read_text().splitlines()]
    training = [line for line in lines if line["split"] == "train"]
    assert all(name in training[-1] for name in ("loss", *(["pair_accuracy"] if config == "mf" else [])))
    model = trained.load("whole")
    source = model.config.data
    x = source.encode([{"userId": "a3", "movieId": "b5"}, {"userId": "nobody", "movieId": "b5"}])
    scores = np.asarray(model.task.scores_of(model.train_state, x[:, 0]))
    np.testing.assert_allclose(np.asarray(model(x))[:, 0], scores[:, x[0, 1]], rtol=1e-5, atol=1e-6)
    items, best = model.task.recommend(model.train_state, x[:1, 0], k=3)
    np.testing.assert_allclose(best[0], np.sort(scores[0])[::-1][:3], rtol=1e-6)
    assert scores[0, items[0, 0]] == scores[0].max()
    capsys.readouterr()
    (folder / "new.csv").write_text("userId,movieId\na3,b5\nnobody,b5\n")
    assert main(["predict", "whole", "new.csv"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    name = "prediction" if names == {"loss", "rmse", "absolute_error"} else "score"
    np.testing.assert_allclose(np.ravel([row[name] for row in rows]), np.asarray(model(x))[:, 0], rtol=1e-6)
    assert main(["eval", "whole", "--split", "train"]) == 0


@pytest.mark.parametrize(
    ("config", "arguments", "said"),
    [
        ("als", ["model.kind=mlp"], "model: task.kind = als has its own"),
        ("als", ["train.accumulate=2"], "train.accumulate: found 2; task.kind = als sweeps over all: 1"),
        ("als", ["precision.kind=bfloat16"], "precision.kind: found 'bfloat16'; task.kind = als solves in"),
        ("als", ["task.weighted=true", "task.implicit=true"], "weighted: is of ratings; implicit is true"),
        ("als", ["task.regularisation=0"], "task.regularisation: found 0"),
        ("als", ["task.users=9"], "task.users: found 9, but the data has 40"),
        ("als", ["data={ kind = 'digits' }"], "data: task.kind = 'als' needs users and items, x [n, 2]"),
        ("mf", ["data={ kind = 'digits' }"], "data: task.kind = 'recommendation' needs users and items, x [n, 2]"),
        ("mf", ["model={ kind = 'mlp' }"], "model.kind: 'mlp' reads numbers; the data has categories by number"),
        ("als", ["train.devices=2"], "train.devices: found 2; task.kind = 'als' takes one"),
        ("als", ["augment=[{ kind = 'noise' }]"], "augment: task.kind = 'als' takes the data as they are"),
        ("mf", ["augment=[{ kind = 'noise' }]"], "augment: it changes numbers; the data has categories by number"),
        ("mf", ["average.kind=ema", 'optimizer.sparse=["table$"]'], "average.kind: 'ema' needs whole tables"),
        ("mf", ['optimizer.sparse=["items/"]', "optimizer.kind=lamb"], "optimizer.sparse: 'lamb' treats no row"),
        ("mf", ['optimizer.sparse=["rows"]'], "optimizer.sparse: pattern 'rows' matches no parameter"),
        (
            "mf",
            ["data={ kind = 'digits' }", "task={ kind = 'classification' }", "model={ kind = 'mlp' }"]
            + ['optimizer.sparse=["kernel"]'],
            "optimizer.sparse: a model of kind 'mlp' has no tables that it only looks up",
        ),
        (
            "mf",
            ["data={ kind = 'digits' }", "task={ kind = 'classification' }"],
            "reads categories by number; they are",
        ),
        ("mf", ["task.drawn_from=3"], "task.drawn_from: found 3, but the data has 30"),
        ("mf", ["evaluate.monitor=loss"], "evaluate.monitor: found 'loss'; the task evaluates: hit_rate_at_5"),
    ],
    ids=str,
)
def test_mistakes(folder, capsys, config, arguments, said):
    """One line."""
    assert main(["train", f"{config}.toml", "--out", "r", *arguments]) == 2
    line = capsys.readouterr().err.strip()
    assert said in line
    assert "\n" not in line


def test_content_without_a_place(folder, capsys):
    """What describes the items is refused where nothing reads it; a table that is no lookup alone is not sparse."""
    Path("movies.csv").write_text("movieId,title,genres\nb1,One,Drama\nb2,Two,Drama|War\n")
    described = "data.items_path=movies.csv"
    for arguments, said in (
        (["als.toml", described], "data: it has content of each item; the model and task have no place for that"),
        (["mf.toml", described, "model={ kind = 'ncf' }"], "data: it has content of each item"),
        (
            ["mf.toml", described, 'optimizer.sparse=["content"]'],
            "optimizer.sparse: pattern 'content' matches no table",
        ),
    ):
        assert main(["train", *arguments, "--out", "r"]) == 2
        line = capsys.readouterr().err.strip()
        assert said in line
        assert "\n" not in line
    assert not Path("r").exists()


def test_data_that_do_not_fit():
    """One line: an unknown item in training, a negative rating, nothing to rank, no ratings at all."""
    unknown, negative = rated(), rated()
    unknown.train["x"][7, 1] = -1
    negative.train["y"][7] = -2
    for task in (ALS(), Recommendation()):
        with pytest.raises(ConfigError, match=r"data: train x\[7\]: found \[\d+, -1\]; expected a user below 30"):
            task.sized(unknown)
    with pytest.raises(ConfigError, match=r"found a rating of -2; task\.implicit needs 0 or more"):
        ALS(implicit=True).sized(negative)
    negative.train["y"][:] = 0
    with pytest.raises(ConfigError, match="found no rating above 0"):
        ALS(implicit=True).sized(negative)
    with pytest.raises(ConfigError, match=r"needs ratings y \[n\]"):
        ALS().sized(Dataset({"x": rated().train["x"]}, fields=(30, 20)))
    again = Dataset(rated().train, test=rated().train, fields=(30, 20))
    with pytest.raises(ConfigError, match="data: test: nobody has a known item there and not before"):
        Recommendation().examples(again, "test")
    with pytest.raises(ConfigError, match=r"train has 1 item; .* draws others: 2 at least"):
        Recommendation().sized(Dataset({"x": np.zeros((3, 2), np.int32)}, fields=(1, 4)))


def test_what_is_recommended(folder, capsys):
    """The best items by the model's own scores, without those that the user has; titles; mistakes in one line."""
    lines = [f"{u},{i},{1 + (u * i) % 5}" for u in range(12) for i in range(20) if (3 * u + 7 * i) % 4]
    Path("ratings.csv").write_text("\n".join(["userId,movieId,rating", *lines]) + "\n")
    Path("movies.csv").write_text(
        "\n".join(["movieId,title,genres", *(f"{i},Film {i},Drama" for i in range(20))]) + "\n"
    )
    data = "data={kind='ratings', path='ratings.csv', time='', items_path='movies.csv', batch_size=16}"
    short = ["train.steps=20", "observe.tensorboard=false"]
    assert main(["train", "mf.toml", "--out", "r", data, *short]) == 0
    capsys.readouterr()
    assert main(["recommend", "r", "3", "0", "--k", "4"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["user"] for row in rows] == ["3", "0"]
    model = trained.load("r")
    source = model.config.data
    for row in rows:
        x = np.array([[source.users.index(row["user"]), i] for i in range(20)], np.int32)
        scores = np.asarray(model(x))[:, 0]
        new = [i for i in range(20) if not (3 * int(row["user"]) + 7 * int(source.items[i])) % 4]
        best = sorted(new, key=lambda i: -scores[i])[:4]
        assert [found["item"] for found in row["items"]] == [source.items[i] for i in best]
        assert [found["title"] for found in row["items"]] == [f"Film {source.items[i]}" for i in best]
        np.testing.assert_allclose([found["score"] for found in row["items"]], scores[best], atol=1e-6)
    assert main(["recommend", "r", "3", "--k", "20", "--again"]) == 0
    assert len(json.loads(capsys.readouterr().out)["items"]) == 20
    for arguments, said in (
        (["77"], "user '77': training has 12 users, not this one; they are: 0, 1, 2"),
        (["3", "--k", "0"], "--k: found 0; expected 1 to 20, the number of items"),
    ):
        assert main(["recommend", "r", *arguments]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
