"""Metrics are sums: they add over parts, under vmap and scan; what is read from them is scikit-learn's."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functrain import tree
from functrain.config import ConfigError, parse
from functrain.data import dataset
from functrain.metrics import (
    Calibration,
    Confusion,
    Mean,
    Perplexity,
    RootMean,
    Scores,
    calibration_of,
    confusion_of,
    mean_of,
    moments_of,
    read,
    scalar_names,
    scalars,
    scores_of,
    top_k,
)
from functrain.models import MLP
from functrain.observe import figures
from functrain.optim import Learner
from functrain.tasks import AnyTask, Binary, Classification, Multilabel, Regression
from functrain.train import hyper, state

EXACT = 1e-12
N, CLASSES = 60, 4
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, CLASSES, N)
LOGITS = RNG.normal(size=(N, CLASSES)).astype(np.float32) + 1.5 * np.eye(CLASSES, dtype=np.float32)[LABELS]
TARGETS = (RNG.random((N, 3)) < [0.2, 0.5, 0.8]).astype(np.int32)
BINARY = (RNG.normal(size=(N, 3)) * 2 + TARGETS - 0.5).astype(np.float32)
NUMBERS = (1998 + 11 * RNG.normal(size=(N, 2))).astype(np.float32)
GUESSES = (NUMBERS + 6 * RNG.normal(size=(N, 2))).astype(np.float32)
MASK = (RNG.random(N) < 0.7).astype(np.float32)

histogram = jax.jit(scores_of)  # one program is quicker than its operations one by one
MAKE = {
    "mean": (jax.jit(lambda x, y, mask: mean_of(x, mask)), LOGITS, LABELS),
    "top_2": (jax.jit(lambda x, y, mask: top_k(x, y, 2, mask)), LOGITS, LABELS),
    "confusion": (jax.jit(lambda x, y, mask: confusion_of(x.argmax(-1), y, CLASSES, mask)), LOGITS, LABELS),
    "calibration": (jax.jit(calibration_of), LOGITS, LABELS),
    "scores": (histogram, BINARY, TARGETS),
    "moments": (jax.jit(moments_of), GUESSES, NUMBERS),
}


def made(name, rows=slice(None), mask=MASK):
    f, x, y = MAKE[name]
    return f(jnp.asarray(x)[rows], jnp.asarray(y)[rows], None if mask is None else jnp.asarray(mask)[rows])


def numbers(metric):
    return scalars(read({"m": metric}))


def close(a, b, tolerance):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name] == pytest.approx(b[name], rel=tolerance, abs=tolerance), name


# -- sums -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKE)
def test_ragged_parts_add_up_to_the_whole(name):
    """Parts of 1, 22 and 37 rows; the numbers are finite, and differ from those of one part."""
    parts = [made(name, slice(i, j)) for i, j in ((0, 1), (1, 23), (23, 60))]
    total = tree.add(tree.add(parts[0], parts[1]), parts[2])
    close(numbers(total), numbers(made(name)), 1e-6)
    assert all(math.isfinite(v) for v in numbers(total).values())
    assert numbers(total) != numbers(parts[2])


@pytest.mark.parametrize("name", MAKE)
def test_masked_examples_change_nothing(name):
    """The rows that count, alone, unmasked: the same numbers."""
    close(numbers(made(name)), numbers(made(name, np.flatnonzero(MASK), mask=None)), 1e-6)
    assert numbers(made(name)) != numbers(made(name, mask=None))


@pytest.mark.parametrize("name", MAKE)
def test_vmap_scan_and_donation(name):
    """A population's accumulators by vmap; a sum carried through scan, and donated: as one by one."""
    f, x, y = MAKE[name]
    x, y, mask = (jnp.asarray(a).reshape(4, 15, *a.shape[1:]) for a in (x, y, MASK))
    population = jax.vmap(f)(x, y, mask)
    for i in range(4):
        alone = f(x[i], y[i], mask[i])
        assert all(np.allclose(a[i], b, rtol=1e-6) for a, b in zip(jax.tree.leaves(population), jax.tree.leaves(alone)))

    def add(total, part):
        return tree.add(total, f(*part)), None

    scan = jax.jit(lambda zero: jax.lax.scan(add, zero, (x, y, mask))[0], donate_argnums=0)
    zero = tree.zeros_like(jax.eval_shape(f, x[0], y[0], mask[0]))
    close(numbers(scan(zero)), numbers(made(name)), 1e-6)


@pytest.mark.parametrize("name", MAKE)
def test_names_from_shapes_alone(name):
    """scalar_names of eval_shape's result are the names that the numbers have."""
    f, x, y = MAKE[name]
    shapes = jax.eval_shape(f, x, y, MASK)
    for given in (name, f"teacher_{name}", "other"):
        assert list(scalar_names(given, shapes)) == list(scalars(read({given: made(name)})))
    if name == "confusion":
        assert scalar_names("confusion", shapes) == ("precision", "recall", "f1")
        assert scalar_names("teacher_confusion", shapes)[0] == "teacher_precision"
        assert scalar_names("rare", shapes)[0] == "rare_precision"


def test_a_populations_numbers_are_no_scalars():
    """read gives arrays of them; scalars leaves them out, and so does scalar_names."""
    many = jax.vmap(mean_of)(jnp.arange(6.0).reshape(3, 2))
    assert read({"loss": many})["loss"].tolist() == [0.5, 2.5, 4.5]
    assert scalars(read({"loss": many})) == {}
    assert scalar_names("loss", many) == ()
    confusions = jax.vmap(lambda y: confusion_of(y, jnp.array([0, 1]), 2))(jnp.array([[0, 1], [1, 0]]))
    assert read({"confusion": confusions})["confusion"].f1().tolist() == [1.0, 0.0]


def test_perplexity_and_root_mean():
    """They add as means do and are the exp and the root of them; overflow is inf, nothing is nan, without a warning."""
    parts = Perplexity(jnp.float32(3.0), jnp.float32(2.0)), Perplexity(jnp.float32(5.0), jnp.float32(2.0))
    assert read({"p": tree.add(*parts)})["p"] == pytest.approx(math.exp(2), rel=EXACT)
    assert Perplexity(np.float32(1e6), np.float32(1)).value == np.inf
    assert RootMean(np.float32(27), np.float32(3)).value == 3.0
    assert all(np.isnan(c(0.0, 0.0).value) for c in (Mean, Perplexity, RootMean))


def test_a_mask_of_another_shape_is_refused():
    """A mask of length 1 would count all or nothing."""
    with pytest.raises(ValueError, match="does not lead"):
        mean_of(jnp.ones(3), jnp.ones(1))
    with pytest.raises(ValueError, match="differ in shape"):
        scores_of(jnp.ones((3, 1)), jnp.ones(3))
    with pytest.raises(ValueError, match="differ in shape"):
        moments_of(jnp.ones((3, 1)), jnp.ones(3))


# -- degenerate -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKE)
def test_nothing_counted_is_nan(name):
    """And never an exception or a warning."""
    assert all(math.isnan(v) for v in numbers(made(name, mask=np.zeros(N, np.float32))).values())


@pytest.mark.parametrize("target", [0, 1])
def test_one_class_only(target):
    """No area under a curve; recall and f1 only where there is something to find; curves are drawn from nan."""
    found = read({"scores": histogram(jnp.array([-1.0, 0.5, 2.0]), jnp.full(3, target))})["scores"]
    values = found.numbers()
    assert np.isnan(values["roc_auc"])
    assert np.isnan([values[k] for k in ("recall", "f1", "pr_auc")]).all() == (target == 0)
    assert values["precision"] == target
    assert found.accuracy() == pytest.approx([1 / 3, 2 / 3][target])
    assert len(found.roc_curve()[0]) == 4
    assert len(found.pr_curve()[0]) == 4
    both = scores_of(jnp.ones((3, 2)) * jnp.array([[1.0], [2.0], [3.0]]), jnp.array([[target, 0]] * 2 + [[target, 1]]))
    assert read({"s": both})["s"].roc_auc() == 1.0  # of the label that has both


def test_what_is_not_finite():
    """A nan among the scores makes every number of that label nan; infinities are the largest; huge ones too."""
    bad = read({"scores": histogram(jnp.array([1.0, jnp.nan, -1.0]), jnp.array([1, 0, 0]))})
    assert all(math.isnan(v) for v in scalars(bad).values())
    masked = histogram(jnp.array([1.0, jnp.nan, -1.0]), jnp.array([1, 0, 0]), jnp.array([1.0, 0, 1]))
    assert numbers(masked)["m_roc_auc"] == 1.0
    far = histogram(jnp.array([jnp.inf, 1e30, -jnp.inf, -1e30]), jnp.array([1, 1, 0, 0]))
    assert numbers(far)["m_roc_auc"] == numbers(far)["m_f1"] == 1.0
    wrong = top_k(jnp.array([[jnp.nan, 0.0, 0.0]]), jnp.array([0]), 2)
    assert float(wrong.value) == 0.0
    moments = jax.jit(moments_of)
    for y in ([1.0, jnp.nan, 2.0], [1.0, jnp.inf, 2.0], [3.0, 3.0, 3.0]):
        assert math.isnan(numbers(moments(jnp.ones(3), jnp.array(y)))["m_r2"])


# -- scikit-learn ---------------------------------------------------------------------------------


@pytest.fixture
def sklearn():
    return pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed: pip install 'functrain[test]'")


@pytest.mark.parametrize("average", ["macro", "weighted", "none"])
def test_confusion_is_sklearns(sklearn, average):
    """Accuracy, balanced accuracy, precision, recall, f1; of 6 classes one never occurs, one is only predicted."""
    true = RNG.choice([0, 1, 2, 3], 80)
    predicted = np.where(RNG.random(80) < 0.5, true, RNG.choice([0, 1, 3, 4], 80))
    found = confusion_of(jnp.asarray(predicted), jnp.asarray(true), 6)
    asked = {"labels": range(6), "average": None} if average == "none" else {"average": average}
    want = sklearn.precision_recall_fscore_support(true, predicted, zero_division=0, **asked)
    for ours, theirs in zip((found.precision(average), found.recall(average), found.f1(average)), want):
        assert np.abs(ours - theirs).max() < EXACT
    assert found.accuracy() == pytest.approx(sklearn.accuracy_score(true, predicted), abs=EXACT)
    there = true != 4  # sklearn warns of classes that are only predicted
    assert (predicted[there] == 4).any()
    seen = confusion_of(jnp.asarray(true), jnp.asarray(true), 6).counts.sum(1)
    recalls = sklearn.recall_score(true, predicted, average=None, labels=np.flatnonzero(seen), zero_division=0)
    assert found.balanced_accuracy() == pytest.approx(recalls.mean(), abs=EXACT)
    some = np.isin(predicted, [0, 1, 3]) & np.isin(true, [0, 1, 3])
    ours = confusion_of(jnp.asarray(predicted[some]), jnp.asarray(true[some]), 6).balanced_accuracy()
    assert ours == pytest.approx(sklearn.balanced_accuracy_score(true[some], predicted[some]), abs=EXACT)


def test_top_k_is_sklearns(sklearn):
    """For every k; with ties, top_1 is argmax's accuracy."""
    for k in range(1, CLASSES + 1):
        want = 1.0 if k == CLASSES else sklearn.top_k_accuracy_score(LABELS, LOGITS, k=k)
        assert top_k(jnp.asarray(LOGITS), jnp.asarray(LABELS), k).value == pytest.approx(want, abs=1e-7)
    rough = np.round(LOGITS)
    assert top_k(jnp.asarray(rough), jnp.asarray(LABELS), 1).value == np.float32((rough.argmax(-1) == LABELS).mean())


def score_cases():
    """Binary targets and scores: few and many, ties, both signs of zero, all in one place, tiny and large ones."""
    rng = np.random.default_rng(3)
    for n in (7, 200, 2000):
        y = rng.random(n) < 0.3
        y[:2] = [True, False]
        s = rng.normal(size=n) * 2 + 1.5 * y - 1
        yield f"{n}", y, s
        yield f"{n} ties", y, np.round(s)
        yield f"{n} small", y, s * 1e-3
        yield f"{n} large", y, s * 1e3
    yield "one place", np.array([True, False, True]), np.zeros(3)
    yield "zeros", np.array([True, False, True, False]), np.array([0.0, -0.0, -0.0, 1.0])


@pytest.mark.parametrize(("y", "s"), [c[1:] for c in score_cases()], ids=[c[0] for c in score_cases()])
def test_scores_are_sklearns(sklearn, y, s):
    """Areas and curves equal sklearn's on the scores in float16, ties and all; what is read at logit 0, on raw ones."""
    raw = s.astype(np.float32)
    s = raw.astype(np.float16).astype(np.float64)
    found = read({"scores": histogram(jnp.asarray(raw), jnp.asarray(y.astype(np.int32)))})["scores"]
    assert abs(found.roc_auc() - sklearn.roc_auc_score(y, s)) < EXACT
    assert abs(found.pr_auc() - sklearn.average_precision_score(y, s)) < EXACT
    for ours, theirs in zip(found.roc_curve(), sklearn.roc_curve(y, s, drop_intermediate=False)):
        assert ours.shape == theirs.shape
        assert np.array_equal(ours[:1], theirs[:1])  # inf
        assert np.abs(ours[1:] - theirs[1:]).max() < EXACT
    for ours, theirs in zip(found.pr_curve(), sklearn.precision_recall_curve(y, s)):
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() < EXACT
    want = sklearn.precision_recall_fscore_support(y, raw > 0, average="binary", zero_division=0)
    for ours, theirs in zip((found.precision(), found.recall(), found.f1()), want):
        assert abs(ours - theirs) < EXACT
    assert abs(found.accuracy() - sklearn.accuracy_score(y, raw > 0)) < EXACT


def test_scores_are_near_sklearns_on_raw_scores(sklearn):
    """Rounding to float16 moves the areas by less than 1e-3 (measured: 6e-5 and 5e-4 for 200 scores, less for more)."""
    for _, y, s in score_cases():
        if len(y) >= 200 and len(np.unique(s)) > 100:
            found = numbers(histogram(jnp.asarray(s, jnp.float32), jnp.asarray(y.astype(np.int32))))
            assert abs(found["m_roc_auc"] - sklearn.roc_auc_score(y, s)) < 1e-3
            assert abs(found["m_pr_auc"] - sklearn.average_precision_score(y, s)) < 1e-3


def test_scores_of_several_labels(sklearn):
    """The mean over the labels, as sklearn's macro average; masked by row and by element."""
    s = BINARY.astype(np.float16).astype(np.float64)
    found = numbers(histogram(jnp.asarray(BINARY), jnp.asarray(TARGETS)))
    assert abs(found["m_roc_auc"] - sklearn.roc_auc_score(TARGETS, s, average="macro")) < EXACT
    assert abs(found["m_pr_auc"] - sklearn.average_precision_score(TARGETS, s, average="macro")) < EXACT
    want = sklearn.precision_recall_fscore_support(TARGETS, BINARY > 0, average="macro", zero_division=0)
    for name, theirs in zip(("precision", "recall", "f1"), want):
        assert abs(found[f"m_{name}"] - theirs) < EXACT
    mask = (RNG.random(TARGETS.shape) < 0.6).astype(np.float32)
    masked = read({"s": scores_of(jnp.asarray(BINARY), jnp.asarray(TARGETS), jnp.asarray(mask))})["s"]
    areas = [sklearn.roc_auc_score(TARGETS[m > 0, i], s[m > 0, i]) for i, m in enumerate(mask.T)]
    assert abs(masked.roc_auc() - np.mean(areas)) < EXACT


def test_calibration(sklearn):
    """The curve is sklearn's calibration_curve, the error its weighted gap; a softmax by its own formula."""
    from sklearn.calibration import calibration_curve

    y, s = TARGETS[:, 1], BINARY[:, 1]
    p = 1 / (1 + np.exp(-s.astype(np.float16).astype(np.float64)))
    found = read({"s": scores_of(jnp.asarray(s), jnp.asarray(y))})["s"].calibration()
    said, held, count = (x[0] for x in found.curve())
    there = count > 0
    for ours, theirs in zip((held[there], said[there]), calibration_curve(y, p, n_bins=15)):
        assert np.abs(ours - theirs).max() < EXACT
    assert found.error()[0] == pytest.approx((count * abs(held - said))[there].sum() / N, abs=EXACT)

    e = np.exp(LOGITS.astype(np.float64))
    confidence, right = (e / e.sum(1, keepdims=True)).max(1), LOGITS.argmax(1) == LABELS
    at = np.ceil(confidence * 15)
    by_hand = sum(abs(right[at == b].mean() - confidence[at == b].mean()) * (at == b).mean() for b in set(at))
    assert calibration_of(jnp.asarray(LOGITS), jnp.asarray(LABELS)).error() == pytest.approx(by_hand, abs=1e-6)
    assert by_hand > 0.01


@pytest.mark.parametrize(("mean", "spread"), [(0, 1), (3, 1), (1998, 11), (1e-3, 1e-6), (-1000, 1)])
def test_moments_are_sklearns(sklearn, mean, spread):
    """R^2 and explained variance, summed in float32 over parts, to 1e-5 also where a plain sum of squares is lost."""
    rng = np.random.default_rng(5)
    y = (mean + spread * rng.normal(size=(4000, 2)) * [1, 2]).astype(np.float32)
    p = (y + spread * (0.5 * rng.normal(size=(4000, 2)) + 0.2)).astype(np.float32)
    add = jax.jit(lambda total, p, y: tree.add(total, moments_of(p, y)))
    total = moments_of(p[:500], y[:500])
    for i in range(500, 4000, 500):
        total = add(total, p[i : i + 500], y[i : i + 500])
    found = numbers(total)
    want = [f(y.astype(np.float64), p.astype(np.float64)) for f in (sklearn.r2_score, sklearn.explained_variance_score)]
    assert found["m_r2"] == pytest.approx(want[0], abs=1e-5)
    assert found["m_explained_variance"] == pytest.approx(want[1], abs=1e-5)
    assert abs(want[0] - want[1]) > 1e-3


def test_moments_in_float64(sklearn):
    """Weighted, to rounding."""
    with jax.enable_x64(True):
        y, p, w = RNG.normal(size=(50, 2)) + 5, RNG.normal(size=(50, 2)) + 5, RNG.random(50)
        found = numbers(moments_of(jnp.asarray(p), jnp.asarray(y), jnp.asarray(w)))
        assert found["m_r2"] == pytest.approx(sklearn.r2_score(y, p, sample_weight=w), abs=EXACT)
        want = sklearn.explained_variance_score(y, p, sample_weight=w)
        assert found["m_explained_variance"] == pytest.approx(want, abs=EXACT)


# -- tasks ----------------------------------------------------------------------------------------


def evaluation(task):
    """(outputs, batch) -> what evaluation gives, by name."""

    @jax.jit
    def accumulate(outputs, batch):
        loss, metrics = task.loss(outputs, batch, train=False)
        return metrics | {"loss": loss}

    return lambda outputs, batch: scalars(read(accumulate(outputs, batch)))


def test_what_tasks_evaluate():
    """The names of each task's numbers, and that training counts the cheap ones alone."""
    areas = {"precision", "recall", "f1", "roc_auc", "pr_auc", "calibration_error"}
    cases = [
        (
            Classification(top_k=(2, 3)),
            LOGITS,
            LABELS,
            {"calibration_error", "precision", "recall", "f1", "top_2", "top_3"},
        ),
        (Binary(), BINARY[:, :1], TARGETS[:, 0], areas),
        (Multilabel(), BINARY, TARGETS, areas),
        (Regression(), GUESSES, NUMBERS, {"rmse", "r2", "explained_variance"}),
    ]
    for task, outputs, y, more in cases:
        cheap = "absolute_error" if isinstance(task, Regression) else "accuracy"
        assert evaluation(task)(outputs, {"y": y}).keys() == more | {cheap, "loss"}
        assert task.loss(jnp.asarray(outputs), {"y": jnp.asarray(y)}, train=True)[1].keys() == {cheap}
    rmse = np.sqrt(((GUESSES - NUMBERS).astype(np.float64) ** 2).mean())
    assert evaluation(Regression())(GUESSES, {"y": NUMBERS})["rmse"] == pytest.approx(rmse, rel=1e-6)


YES_OR_NO = ("cross_entropy", "focal", "hinge")
CRITERIA = {
    Classification: (YES_OR_NO, LOGITS, LABELS),
    Binary: (YES_OR_NO, BINARY[:, :1], TARGETS[:, 0].astype(np.float32)),
    Multilabel: (YES_OR_NO, BINARY, TARGETS),
    Regression: (("squared_error", "absolute_error", "huber"), GUESSES, NUMBERS),
}


@pytest.mark.parametrize("kind", CRITERIA)
def test_weights_weigh_the_loss_alone(kind):
    """Whole weights are as many copies of the example, for the loss; metrics count each once. Criteria differ."""
    criteria, outputs, y = CRITERIA[kind]
    weight = np.random.default_rng(7).permutation(np.arange(N) % 3)
    again, found = np.repeat(np.arange(N), weight), set()
    for criterion in criteria:
        evaluate = evaluation(kind(criterion=criterion))
        weighed = evaluate(outputs, {"y": y, "weight": weight.astype(np.float32), "mask": MASK})
        copied = evaluate(outputs[again], {"y": y[again], "mask": MASK[again]})
        plain = evaluate(outputs, {"y": y, "mask": MASK})
        assert weighed["loss"] == pytest.approx(copied["loss"], rel=1e-5)
        assert weighed["loss"] != plain["loss"]
        found.add(plain["loss"])
        for name in plain.keys() - {"loss"}:
            assert weighed[name] == plain[name]
    assert len(found) == 3


def test_numbers_of_tasks_are_live():
    """gamma, delta and positive_weight travel as arrays, and change the loss from there."""
    y, x = jnp.asarray(TARGETS[:, 0]), jnp.asarray(BINARY[:, :1])
    task = Binary(criterion="focal", model=MLP(inputs=(2,), outputs=1), learner=Learner())
    start = state.init(task, jax.random.key(0))
    assert {"gamma", "positive_weight"} <= start.hyper.keys()

    @jax.jit
    def loss(live):
        mean = hyper.bind(task, live).loss(x, {"y": y}, train=True)[0]
        return mean.total / mean.count

    for name in ("gamma", "positive_weight"):
        assert loss(start.hyper) != loss(start.hyper | {name: jnp.float32(3.0)})
        direct = dataclasses.replace(task, **{name: 3.0}).loss(x, {"y": y}, train=True)[0].value
        assert loss(start.hyper | {name: jnp.float32(3.0)}) == pytest.approx(float(direct), rel=1e-6)


def test_predictions():
    """Classes and probabilities, in the shape of the labels."""
    one = Binary().predict(jnp.array([[0.0], [2.0]]))
    assert one["class"].tolist() == [0, 1]
    assert one["probability"].tolist() == pytest.approx([0.5, 0.8808], abs=1e-4)
    several = Multilabel().predict(jnp.array([[0.5, -2.0]]))
    assert several["class"].tolist() == [[1, 0]]
    assert several["probability"].shape == (1, 2)


def small(y, **more):
    return dataset("mine", {"train": {"x": np.zeros((len(y), 2), np.float32), "y": np.asarray(y)}, **more})


MISTAKES = [
    (Classification(class_weights=(1.0, 2.0)), [0, 1, 2], "task.class_weights: found 2; expected 3"),
    (Classification(class_weights=(0.0, 0.0)), [0, 1], "task.class_weights: all are 0"),
    (Classification(top_k=(3,)), [0, 1, 2], "task.top_k: found 3; expected fewer than the 3 classes"),
    (Binary(), [0, 1, 2], r"task.kind: binary needs .* train y\[2\] is 2"),
    (Binary(), [0.0, 0.5], r"task.kind: binary needs .* train y\[1\] is 0.5"),
    (Binary(), [[0, 1]], r"task.kind: binary needs .* found y of shape \[1, 2\]"),
    (Multilabel(), [0, 1], r"task.kind: multilabel needs .* found y of shape \[2\]"),
    (Multilabel(), [[0, 1], [1, 7]], r"task.kind: multilabel needs .* train y\[1, 1\] is 7"),
]


@pytest.mark.parametrize(("task", "y", "message"), MISTAKES, ids=[m[2][:40] for m in MISTAKES])
def test_data_that_does_not_fit_a_task(task, y, message):
    """One line that says what was found and what would be right."""
    with pytest.raises(ConfigError, match=message):
        task.outputs(small(y))


def test_data_that_fits():
    """How many outputs each task asks for; configs by kind."""
    assert Classification(class_weights=(1.0, 2.0, 3.0), top_k=(2,)).outputs(small([0, 1, 2])) == 3
    assert Binary().outputs(small([0.0, 1.0])) == Binary().outputs(small([0, 1])) == 1
    assert Multilabel().outputs(small([[0, 1, 1], [1, 0, 0]])) == 3
    table = dataclasses.make_dataclass("Table", [("task", AnyTask)])
    for kind, cls in (("binary", Binary), ("multilabel", Multilabel)):
        assert isinstance(parse(table, {"task": {"kind": kind, "criterion": "focal"}}).task, cls)
    with pytest.raises(ConfigError, match="label_smoothing: goes with criterion = cross_entropy"):
        parse(table, {"task": {"kind": "classification", "criterion": "hinge", "label_smoothing": 0.1}})


# -- figures --------------------------------------------------------------------------------------


def test_figures(tmp_path):
    """A picture of each accumulator, by its name; also where a curve does not exist."""
    metrics = read({name: made(name) for name in MAKE})
    drawn = figures.draw(metrics, tmp_path / "a", "test, step 3")
    assert {p.name for p in drawn} == {"roc.png", "precision_recall.png", "calibration.png", "confusion.png"}
    one = read({"teacher_scores": scores_of(jnp.ones(3), jnp.ones(3))})
    drawn += figures.draw(one, tmp_path / "b")
    assert {p.name for p in drawn[-3:]} == {
        "teacher_roc.png",
        "teacher_precision_recall.png",
        "teacher_calibration.png",
    }
    nothing = {"scores": Scores(np.zeros((1, 2, 65536))), "calibration": Calibration(*[np.zeros(15)] * 3)}
    drawn += figures.draw(nothing | {"confusion": Confusion(np.zeros((3, 3)))}, tmp_path / "c")
    figures.schedule({"model": np.linspace(0, 1, 9), "other": np.ones(9)}, tmp_path / "schedule.png")
    figures.learning_rate_finder([1e-3, 1e-2, 1e-1], [2.0, 1.0, np.nan], 1e-2, tmp_path / "finder.png")
    for path in [*drawn, tmp_path / "schedule.png", tmp_path / "finder.png"]:
        assert path.read_bytes()[:4] == b"\x89PNG"
