"""Embeddings: verification by hand and by scikit-learn, safe slopes, the task through the loop, classes held out."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import digits_feed, gap, metrics_of, same, start, train
from small_data import write_mnist

from functrain.config import ConfigError, parse
from functrain.data import Digits, InOrder, Known
from functrain.data.dataset import Dataset
from functrain.data.idx import Idx
from functrain.data.known import KNOWN
from functrain.data.sources import Npz
from functrain.metrics import scalars
from functrain.metrics.verification import Verification, drawn_pairs
from functrain.models import MLP
from functrain.optim import Adam, Learner, objective
from functrain.tasks.embedding import Embedding, arcface, batch_contrastive, batch_triplet
from functrain.train.checkpoint import from_arrays, to_arrays

pytestmark = pytest.mark.usefixtures("quick")

# -- verification ---------------------------------------------------------------------------------


def some_embeddings(n=60, classes=4, noise=0.9, seed=0):
    """Rows around a direction for each class, the classes of unequal sizes."""
    rng = np.random.default_rng(seed)
    labels = np.minimum(rng.integers(0, classes + 1, n), classes - 1)
    return rng.normal(size=(classes, 6))[labels] + noise * rng.normal(size=(n, 6)), labels


def verified(embeddings, labels):
    return Verification(embeddings, labels, mask=np.ones(len(labels))).numbers()


def scores_of_pairs(embeddings, labels):
    """(cosines of the genuine pairs, of the impostors) that are drawn."""
    cosine = embeddings @ embeddings.T / np.outer(*2 * [np.linalg.norm(embeddings, axis=1)])
    return [cosine[a, b] for a, b in (pairs.T for pairs in drawn_pairs(labels, np.random.default_rng(0)))]


def test_pairs_are_a_function_of_the_labels_and_none_comes_twice():
    _, labels = some_embeddings()
    everything = list(itertools.combinations(range(60), 2))
    for most in (7, 10**6):
        genuine, impostor = drawn_pairs(labels, np.random.default_rng(0), most)
        there = sum(labels[a] == labels[b] for a, b in everything)
        assert len(genuine) == len(impostor) == min(most, there, len(everything) - there)
        assert (labels[genuine[:, 0]] == labels[genuine[:, 1]]).all()
        assert (labels[impostor[:, 0]] != labels[impostor[:, 1]]).all()
        for pairs in (genuine, impostor):
            assert len({frozenset(pair) for pair in pairs.tolist()}) == len(pairs)
        assert np.array_equal(genuine, drawn_pairs(labels, np.random.default_rng(0), most)[0])
    assert {frozenset(pair) for pair in genuine.tolist()} == {
        frozenset(pair) for pair in everything if labels[pair[0]] == labels[pair[1]]
    }
    assert len(drawn_pairs(np.arange(3000) % 10, np.random.default_rng(0))[0]) == 3000


def test_every_pair_is_drawn_as_often():
    labels = np.array([0, 0, 0, 1, 1, 2])
    found = np.zeros((2, 6, 6))
    for seed in range(3000):
        for k, pairs in enumerate(drawn_pairs(labels, np.random.default_rng(seed), 1)):
            found[k][tuple(np.sort(pairs[0]))] += 1
    upper = np.triu(np.ones((6, 6), bool), 1)
    alike = labels[:, None] == labels
    for k, pairs in enumerate((upper & alike, upper & ~alike)):
        assert (found[k] > 0).tolist() == pairs.tolist()
        expected = 3000 / pairs.sum()
        assert np.abs(found[k][pairs] - expected).max() < 5 * np.sqrt(expected)


@pytest.mark.parametrize("ties", [False, True])
def test_curves_are_sklearns(ties):
    """The area, the accepts at 1 % and 0.1 %, and the crossing of the two rates on scikit-learn's curve."""
    sklearn = pytest.importorskip(
        "sklearn.metrics", reason="scikit-learn is not installed: pip install 'functrain[test]'"
    )
    embeddings, labels = some_embeddings(n=400, noise=1.5)
    embeddings = np.round(embeddings / 2) if ties else embeddings
    embeddings[(embeddings == 0).all(1)] = 1.0
    found = verified(embeddings, labels)
    same_, other = scores_of_pairs(embeddings, labels)
    scores = np.concatenate([same_, other]).round(12)  # equal cosines by two orders of sums
    truth = np.repeat([1, 0], len(same_))
    assert found["roc_auc"] == pytest.approx(sklearn.roc_auc_score(truth, scores), abs=1e-9 if not ties else 1e-3)
    false, true, _ = sklearn.roc_curve(truth, scores, drop_intermediate=False)
    if not ties:
        assert found["tar_at_1e-2"] == true[false <= 0.01].max()
        assert found["tar_at_1e-3"] == true[false <= 0.001].max()
    low, high = 0.0, len(false) - 1.0  # a place along the curve, by halving
    for _ in range(60):
        middle = (low + high) / 2
        at = [np.interp(middle, np.arange(len(false)), rate) for rate in (false, true)]
        low, high = (middle, high) if at[0] < 1 - at[1] else (low, middle)
    assert found["equal_error_rate"] == pytest.approx(at[0], abs=1e-9 if not ties else 1e-3)


def test_accuracy_is_that_of_ten_folds_by_a_plain_loop():
    embeddings, labels = some_embeddings(n=30, noise=0.8)
    genuine, impostor = scores_of_pairs(embeddings, labels)
    m, accuracies = len(genuine), []
    folds = [range(m)[-(-k * m // 10) : -(-(k + 1) * m // 10)] for k in range(10)]
    for fold in folds:
        others = [i for i in range(m) if i not in fold]
        scores = sorted({score for x in (genuine, impostor) for score in x[others]})
        cuts = [-np.inf, *((a + b) / 2 for a, b in itertools.pairwise(scores)), np.inf]
        right = [sum(genuine[i] > cut for i in others) + sum(impostor[i] <= cut for i in others) for cut in cuts]
        best = cuts[right.index(max(right))]
        told = sum(genuine[i] > best for i in fold) + sum(impostor[i] <= best for i in fold)
        accuracies.append(told / (2 * len(fold)))
    assert 0.5 < np.mean(accuracies) < 1
    assert verified(embeddings, labels)["verification_accuracy"] == pytest.approx(np.mean(accuracies), abs=1e-12)


def test_recall_is_that_of_a_plain_loop():
    embeddings, labels = some_embeddings(noise=1.5)
    labels[0] = 9  # alone: it can find nothing, and does not count
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    hits = []
    for i in range(1, len(labels)):
        nearest = max((j for j in range(len(labels)) if j != i), key=lambda j: unit[i] @ unit[j])
        hits.append(labels[nearest] == labels[i])
    assert verified(embeddings, labels)["recall_at_1"] == pytest.approx(np.mean(hits))


def test_verification_is_nan_where_it_does_not_exist():
    x = np.eye(4)
    for labels, embeddings in (([0, 1, 2, 3], x), ([0, 0, 0, 0], x), ([0, 0, 1, 1], x * np.nan), ([], x[:0])):
        assert np.isnan(list(verified(embeddings, np.array(labels, int)).values())).all()


def test_unrelated_embeddings_are_at_chance():
    rng = np.random.default_rng(0)
    found = verified(rng.normal(size=(600, 8)), rng.integers(0, 3, 600))
    assert abs(found["verification_accuracy"] - 0.5) < 0.03
    assert abs(found["roc_auc"] - 0.5) < 0.03
    assert abs(found["equal_error_rate"] - 0.5) < 0.03
    assert found["tar_at_1e-2"] < 0.03


# -- losses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_arcface_has_finite_slopes_at_its_centre_and_opposite(sign):
    centres = jax.random.normal(jax.random.key(0), (3, 8))
    at = sign * 2 * centres[:2]

    def total(embeddings, centres):
        return arcface(embeddings, jnp.array([0, 1]), centres, margin=0.5, scale=64.0).total

    value, slopes = jax.jit(jax.value_and_grad(total, (0, 1)))(at, centres)
    assert np.isfinite(value)
    for slope in slopes:
        assert np.isfinite(slope).all()
        assert np.abs(slope).max() < 200  # of scale 64 over norms near 1


def test_the_margin_makes_every_angle_worse():
    """The logit of the own centre only falls from 0 to pi, through the place where cos(angle + margin) would rise."""
    angles = np.linspace(0, np.pi, 41)
    embeddings = jnp.asarray(np.stack([np.cos(angles), np.sin(angles), 0 * angles], -1), jnp.float32)
    centres = jnp.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # the cosine to the other is 0
    one = jax.vmap(lambda e: arcface(e[None], jnp.array([0]), centres, margin=0.5, scale=1.0).total)
    own = -np.log(np.expm1(np.asarray(jax.jit(one)(embeddings), np.float64)))
    assert (np.diff(own) < 0).all()
    moved = np.where(angles + 0.5 < np.pi, np.cos(angles + 0.5), np.cos(angles) - 0.5 * np.sin(0.5))
    np.testing.assert_allclose(own, moved, atol=1e-6)


@pytest.mark.parametrize("mining", ["all", "hard", "semi_hard"])
def test_equal_embeddings_have_finite_slopes(mining):
    slope = jax.grad(lambda x: batch_triplet(x, jnp.array([0, 0, 1, 1]), margin=0.2, mining=mining).total)
    assert np.array_equal(jax.jit(slope)(jnp.ones((4, 3))), np.zeros((4, 3)))
    alone = batch_triplet(jnp.ones((3, 3)), jnp.array([0, 1, 2]), mining=mining)  # no two of one class
    assert (float(alone.total), float(alone.count)) == (0.0, 0.0)


def test_shapes_that_do_not_fit_are_refused():
    x, y = jnp.ones((3, 2)), jnp.zeros(4, int)
    for call in (
        lambda: arcface(x, y, jnp.ones((5, 2))),
        lambda: arcface(x, y[:3], jnp.ones((5, 3))),
        lambda: batch_triplet(x, y),
        lambda: batch_contrastive(x[..., None], y[:3]),
    ):
        with pytest.raises(ValueError, match="expected"):
            call()


# -- the task -------------------------------------------------------------------------------------


def embedding_task(criterion="arcface", **settings):
    defaults = {"arcface": {"margin": 0.3, "scale": 16.0}, "triplet": {"margin": 0.2}, "contrastive": {"margin": 1.0}}
    return Embedding(
        **{"criterion": criterion, "width": 12, "classes": 10, **defaults[criterion], **settings},
        model=MLP(inputs=(8, 8), outputs=12, hidden=(32,)),
        learner=Learner(optimizer=Adam(peak_lr=3e-3)),
    )


def known_and_unseen():
    """Of the digits with three classes held out: the training feed, and the validation and test examples in order."""
    data = Digits(held_out=(7, 8, 9), validation=0.3, test=0.3).load()
    parts = ((part["x"].astype("float32") / 16, part["y"]) for part in (data.validation, data.test))
    return digits_feed(data, 64), *(InOrder({"x": jnp.asarray(x), "y": jnp.asarray(y)}, 100) for x, y in parts)


@pytest.mark.parametrize("criterion", ["arcface", "triplet", "contrastive"])
def test_it_learns_to_verify(criterion):
    task, (feed, known, unseen) = embedding_task(criterion), known_and_unseen()
    before = scalars(metrics_of(task, start(task), known))
    outcome, _ = train(task, feed, steps=200, chunk=100)
    after = scalars(metrics_of(task, outcome.train_state, known))
    assert after["roc_auc"] > 0.97 > before["roc_auc"] + 0.1, (before, after)
    assert after["verification_accuracy"] > 0.92 > before["verification_accuracy"] + 0.1, (before, after)
    assert set(after) == {"loss", *Verification.parts}
    assert scalars(metrics_of(task, outcome.train_state, unseen))["verification_accuracy"] > 0.6


def test_chunks_and_resume_are_bitwise():
    task, (feed, *_) = embedding_task(), known_and_unseen()
    whole, log = train(task, feed, chunk=40)
    other, other_log = train(task, feed, chunk=1)
    assert same(other.train_state, whole.train_state)
    assert other_log.lines == log.lines
    half, _ = train(task, feed, steps=23)
    restored = jax.tree.map(jnp.copy, from_arrays(to_arrays(half.train_state), half.train_state))
    again, _ = train(task, feed, train_state=restored)
    assert same(again.train_state, whole.train_state)


def test_arcface_accumulates_exactly_and_triplets_do_not():
    rng = np.random.default_rng(0)
    batch = {"x": jnp.asarray(rng.normal(size=(24, 8, 8)), jnp.float32), "y": jnp.asarray(rng.integers(0, 10, 24))}
    batch |= {"mask": jnp.asarray(rng.random(24) < 0.7, jnp.float32), "weight": jnp.asarray(rng.random(24) + 0.5)}
    gaps = {}
    for criterion in ("arcface", "triplet"):
        task = embedding_task(criterion)
        params, state = jax.jit(task.init)(jax.random.key(0))

        def loss(params, state, batch, *, key, task=task):
            return task.full_loss(params, state, batch, key=key, train=True)

        def gradient(params, accumulate, loss=loss, state=state):
            return objective(loss, state, batch, jax.random.key(1), accumulate=accumulate).gradient(params)[0]

        whole, cut = (jax.jit(gradient, static_argnums=1)(params["model"], k) for k in (1, 3))
        gaps[criterion] = gap(cut, whole)
    assert gaps["arcface"] < 2e-6
    assert gaps["triplet"] > 1e-3


def test_outputs_have_length_one_and_the_centres_are_parameters():
    task = embedding_task()
    train_state = start(task)
    params = train_state.players["model"].params
    assert params["centres"].shape == (10, 12)
    assert set(params["model"]) == set(task.model.init(jax.random.key(0))[0])
    x = jax.random.normal(jax.random.key(1), (5, 8, 8))
    embeddings = task.predict(task.outputs_of(train_state, x))["embedding"]
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=-1), 1, rtol=1e-6)
    direct = task.model.apply(params["model"], {}, x)[0]
    np.testing.assert_allclose(
        embeddings * np.linalg.norm(direct, axis=-1, keepdims=True), direct, rtol=1e-5, atol=1e-6
    )
    assert set(start(embedding_task("triplet")).players["model"].params) == {"model"}


def test_the_number_of_classes_is_taken_from_the_data():
    labelled = Dataset({"x": np.zeros((4, 2)), "y": np.arange(4)}, classes=4)
    task = Embedding(width=7).sized(labelled)
    assert (task.classes, task.outputs(labelled)) == (4, 7)
    assert task.sized(labelled) == task
    with pytest.raises(ConfigError, match=r"task\.classes: found 4, but the data has 5"):
        task.sized(Dataset({}, classes=5))
    with pytest.raises(ConfigError, match="needs integer labels"):
        Embedding().sized(Dataset({"x": np.zeros((4, 2))}))


def test_a_margin_of_a_right_angle_is_refused():
    with pytest.raises(ConfigError, match=r"margin: found 1\.6; expected an angle below pi / 2"):
        parse(Embedding, {"kind": "embedding", "margin": 1.6})
    assert parse(Embedding, {"kind": "embedding", "criterion": "triplet", "margin": 1.6}).margin == 1.6


# -- classes held out -----------------------------------------------------------------------------


def classes_of(made):
    return [set(np.unique(made.split(split)["y"]).tolist()) for split in ("train", "validation", "test")]


@pytest.fixture
def mnist(tmp_path, monkeypatch):
    """Small files in the places of MNIST's."""
    write_mnist(tmp_path / "mnist", np.random.default_rng(0))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FUNCTRAIN_DATA", str(tmp_path))
    return tmp_path


def test_held_out_classes_are_in_the_test_alone(mnist):
    """Of a split at random, of given test examples, and of a set known by name."""
    np.savez(mnist / "a.npz", x=np.arange(200.0)[:, None], y=np.arange(200) % 10)
    settings = KNOWN["mnist"].settings
    files = {name: settings[name] for name in ("images", "labels", "test_images", "test_labels")}
    given = {"held_out": (7, 9)}
    sources = [
        Digits(**given),
        Npz(path="a.npz", test=0.3, **given),
        Idx(**files, **given),
        Known(name="mnist", settings={"held_out": [7, 9]}),
    ]
    for source in sources:
        made = source.load()
        assert made.classes == 10
        assert classes_of(made) == [set(range(10)) - {7, 9}] * 2 + [{7, 9}]
    plain, held = (Idx(**files, **more).load() for more in ({}, given))
    for split in ("train", "validation", "test"):
        rows = np.isin(plain.split(split)["y"], [7, 9]) == (split == "test")
        for name in ("x", "y"):
            assert np.array_equal(held.split(split)[name], plain.split(split)[name][rows])


def test_folds_hold_out_too():
    made = Digits(folds=5, fold=2, held_out=(0,)).load()
    assert classes_of(made) == [set(range(1, 10))] * 2 + [{0}]


def test_what_cannot_be_held_out_is_a_mistake(mnist):
    with pytest.raises(
        ConfigError, match=r"data\.held_out: found \[3, 12\]; no test example is of class 12; there are: 0"
    ):
        Digits(held_out=(3, 12)).load()
    with pytest.raises(ConfigError, match="no test example is of class 3; there are: none"):
        Digits(held_out=(3,), test=0.0).load()
    with pytest.raises(ConfigError, match="no training examples"):
        Digits(held_out=tuple(range(10))).load()
    np.savez(mnist / "a.npz", x=np.arange(40.0)[:, None], y=np.arange(40.0))
    with pytest.raises(ConfigError, match="needs examples with integer labels"):
        Npz(path="a.npz", held_out=(1,)).load()
    with pytest.raises(ConfigError, match="held_out"):
        Known(name="mnist", settings={"held_out": [11]}).load()
