"""The detector and its task: who learns what, what counts and what does not, and that it learns."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import agree, draw
from helpers import gap, same

from functrain import boxes as box
from functrain.config import ConfigError, parse
from functrain.data import Dataset
from functrain.metrics import join, scalars
from functrain.models.detector import FCOS, Points
from functrain.models.mlp import MLP
from functrain.optim import AdamW, Learner, objective
from functrain.precision import Float16
from functrain.tasks.detection import Detection, centreness
from functrain.train import state, step

pytestmark = pytest.mark.usefixtures("quick")

SMALL = FCOS(
    inputs=(27, 42, 3), outputs=3, width=4, features=4, depths=(1, 1), strides=(4, 8), groups=2, convolutions=1
)


def task_of(model=SMALL, **fields):
    """A task with a detector."""
    return Detection(**fields).assemble(model, lambda name: Learner(optimizer=AdamW(peak_lr=1e-2)))


def scenes(seed, n=4, most=6, size=(27, 42), classes=3):
    """A batch without pictures: boxes of many sizes, some empty places and some ignored; the last image has none."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, [size[1] - 4, size[0] - 4], (n, most, 2))
    high = np.minimum(low + rng.uniform(3, 36, (n, most, 2)), [size[1], size[0]])
    labels = rng.integers(-1, classes, (n, most))
    labels[-1] = -1
    return {
        "boxes": np.concatenate([low, high], -1),
        "labels": labels,
        "ignored": (rng.random((n, most)) < 0.25).astype(np.uint8),
    }


def outputs_of(seed, n=4, model=SMALL):
    """Random outputs at the model's points."""
    points = len(model.points.centres)
    return {
        "classes": jnp.asarray(draw(seed, n, points, model.outputs)),
        "distances": jnp.exp(jnp.asarray(draw(seed + 1, n, points, 4))) * model.points.strides[:, None],
        "quality": jnp.asarray(draw(seed + 2, n, points)),
    }


def sum_of(means):
    """The loss as a number."""
    return sum(mean.total / jnp.maximum(mean.count, 1e-30) for mean in means.values())


@functools.partial(jax.jit, static_argnums=0)
def losses_and_slopes(task, outputs, batch):
    """(means, gradient by the outputs) in training."""

    def f(outputs):
        means, _ = task.loss(outputs, batch, train=True)
        return sum_of(means), means

    gradients, means = jax.grad(f, has_aux=True)(outputs)
    return means, gradients


# -- the model ------------------------------------------------------------------------------------


def test_points():
    """The centres of the places, row after row, level after level; as many as the outputs have."""
    model = dataclasses.replace(SMALL, strides=(4, 8, 16), bounds=(10, 20))
    expected = [
        ((i + 0.5) * s, (j + 0.5) * s, s, low, high)
        for s, low, high in ((4, 0, 10), (8, 10, 20), (16, 20, math.inf))
        for j in range(math.ceil(27 / s))
        for i in range(math.ceil(42 / s))
    ]
    points = model.points
    assert np.column_stack([points.centres, points.strides, points.ranges]).tolist() == [list(row) for row in expected]
    params, held = jax.eval_shape(model.init, jax.random.key(0))
    outputs, _ = jax.eval_shape(model.apply, params, held, jnp.zeros((2, 27, 42, 3)))
    assert {name: out.shape for name, out in outputs.items()} == {
        "classes": (2, len(expected), 3),
        "distances": (2, len(expected), 4),
        "quality": (2, len(expected)),
    }
    with pytest.raises(ValueError, match="images of"):
        jax.eval_shape(model.apply, params, held, jnp.zeros((2, 28, 42, 3)))


def test_coco_shape():
    """The paper's strides and ranges: 8 to 128, 64 to 512."""
    model = FCOS(inputs=(800, 1024, 3), outputs=80, depths=(1, 1, 1, 1), strides=(8, 16, 32, 64, 128))
    points = model.points
    assert sorted(set(map(tuple, points.ranges.tolist()))) == [
        (0, 64),
        (64, 128),
        (128, 256),
        (256, 512),
        (512, math.inf),
    ]
    assert len(points.centres) == sum(math.ceil(800 / s) * math.ceil(1024 / s) for s in model.strides)


def test_first_weights():
    """Every class begins with the prior's probability, every side one stride away, but for small weights."""
    params, _ = jax.jit(SMALL.init)(jax.random.key(0))
    heads = params["heads"]
    assert np.abs(np.asarray(jax.nn.sigmoid(heads["classes"]["bias"])) - 0.01).max() < 1e-7
    assert heads["scales"].tolist() == [1, 1]
    assert not np.any(heads["distances"]["bias"])
    assert all(0.005 < float(heads[name]["kernel"].std()) < 0.02 for name in ("classes", "distances", "quality"))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"strides": [4, 16]}, r"strides: found \[4, 16\]"),
        ({"strides": [32, 64]}, r"expected a first of \[4, 8, 16\]"),
        ({"strides": [4, 8]}, "to 16 or beyond"),
        ({"strides": []}, "depths and strides: found none"),
        ({"depths": []}, "depths and strides: found none"),
        ({"bounds": [64, 32]}, r"bounds: found \[64, 32\]; expected 1"),
        ({"width": 12}, "groups: found 8; it does not divide width = 12"),
    ],
)
def test_model_mistakes(section, message):
    """One line, with the key."""
    with pytest.raises(ConfigError, match=message):
        parse(FCOS, section)


# -- who learns what ------------------------------------------------------------------------------


def matched_by_loops(points, boxes, labels, ignored, radius):
    """The rules of the paper, point by point."""
    matched, counted = [], []
    for (x, y), stride, (low, high) in zip(*map(np.float64, points)):
        best, uncertain = -1, False
        for k, (x0, y0, x1, y1) in enumerate(boxes):
            sides = (x - x0, y - y0, x1 - x, y1 - y)
            if labels[k] < 0 or min(sides) <= 0:
                continue
            if ignored[k]:
                uncertain = True
                continue
            if not low <= max(sides) <= high:
                continue
            if radius and max(abs(x - (x0 + x1) / 2), abs(y - (y0 + y1) / 2)) >= radius * stride:
                continue
            size = (x1 - x0) * (y1 - y0)
            if best < 0 or size < (boxes[best][2] - boxes[best][0]) * (boxes[best][3] - boxes[best][1]):
                best = k
        matched.append(best)
        counted.append(best >= 0 or not uncertain)
    return matched, counted


@pytest.mark.parametrize("radius", [1.5, 0.0])
def test_matching(float64, radius):
    """Each point's box against plain loops."""
    task, batch = task_of(radius=radius, model=dataclasses.replace(SMALL, bounds=(12,))), scenes(0, n=8, most=9)
    matched, counted = jax.jit(jax.vmap(task.match))(batch["boxes"], batch["labels"], batch["ignored"])
    positive = 0
    for i in range(8):
        one = [batch[name][i] for name in ("boxes", "labels", "ignored")]
        expected, counts = matched_by_loops(task.model.points, *one, radius)
        assert matched[i].tolist() == expected
        assert counted[i].tolist() == counts
        positive += sum(k >= 0 for k in expected)
    assert positive > 50
    assert 0 < (~counted).sum() < counted.size / 2


def test_centreness():
    """1 at the centre, 0 at a side, the root of both axes' ratios between."""
    assert centreness(jnp.array([[2.0, 5.0, 2.0, 5.0], [0.0, 1.0, 4.0, 1.0], [1.0, 2.0, 4.0, 8.0]])).tolist() == [
        1,
        0,
        0.25,
    ]


# -- what counts ----------------------------------------------------------------------------------


def test_places_without_boxes_change_nothing(float64):
    """More places without a box, whatever stands there: loss and gradient, bit for bit."""
    task, batch, outputs = task_of(), scenes(1), outputs_of(2)
    more = {
        "boxes": np.concatenate([batch["boxes"], np.full((4, 2, 4), [3.0, 3.0, 30.0, 20.0])], 1),
        "labels": np.concatenate([batch["labels"], np.full((4, 2), -1)], 1),
        "ignored": np.concatenate([batch["ignored"], np.tile([[0, 1]], (4, 1))], 1),
    }
    assert same(losses_and_slopes(task, outputs, batch), losses_and_slopes(task, outputs, more))


def test_ignored_boxes_are_neither_learned_nor_background(float64):
    """Its points alone leave the class loss; nothing else changes."""
    task, outputs = task_of(), outputs_of(3, n=1)
    real = {"boxes": np.array([[[1.0, 1.0, 12.0, 12.0], [20.0, 4.0, 40.0, 20.0]]]), "labels": np.array([[0, 2]])}
    alone = real | {"labels": np.array([[0, -1]]), "ignored": np.array([[0, 0]])}
    means, slopes = losses_and_slopes(task, outputs, real | {"ignored": np.array([[0, 1]])})
    expected, expected_slopes = losses_and_slopes(task, outputs, alone)
    centres = task.model.points.centres
    inside = (centres > [20, 4]).all(1) & (centres < [40, 20]).all(1)
    assert inside.sum() > 10
    assert float(means["class_loss"].total) < float(expected["class_loss"].total)
    assert same((means["box_loss"], means["quality_loss"]), (expected["box_loss"], expected["quality_loss"]))
    assert same(means["class_loss"].count, expected["class_loss"].count)
    kept = jax.tree.map(lambda x: np.where(inside.reshape(-1, *[1] * (x.ndim - 2)), 0, x), expected_slopes)
    agree(slopes["classes"], kept["classes"], 1e-12)
    assert same(slopes["distances"], expected_slopes["distances"])
    assert same(slopes["quality"], expected_slopes["quality"])


def test_masked_examples_count_nothing(float64):
    """The losses are those of the examples that count alone, and the others have no slope."""
    task, batch, outputs = task_of(), scenes(4), outputs_of(5)
    means, slopes = losses_and_slopes(task, outputs, batch | {"mask": np.array([1.0, 0.0, 1.0, 0.0])})
    some = [0, 2]
    expected, kept = losses_and_slopes(
        task, jax.tree.map(lambda x: x[np.array(some)], outputs), {name: a[some] for name, a in batch.items()}
    )
    assert gap(means, expected) < 1e-14
    assert gap(jax.tree.map(lambda x: x[np.array(some)], slopes), kept) < 1e-14
    assert all(not np.asarray(x)[[1, 3]].any() for x in jax.tree.leaves(slopes))


def test_no_objects_at_all():
    """Nothing to find: a class loss over one point an image, no other loss, finite slopes."""
    task, outputs = task_of(), outputs_of(6)
    empty = {"boxes": np.zeros((4, 2, 4)), "labels": np.full((4, 2), -1)}
    means, slopes = losses_and_slopes(task, outputs, empty)
    assert float(means["class_loss"].count) == 4
    assert float(means["class_loss"].total) > 0
    assert [float(means[name].total) for name in ("box_loss", "quality_loss")] == [0, 0]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slopes))


@dataclasses.dataclass(frozen=True)
class Scaled:
    """A detector that multiplies its inputs, which are outputs, by its parameters: it compiles in no time."""

    points: Points

    def apply(self, params, state, x, *, key=None, train=False):
        return {name: x[name] * params[name] for name in params}, state


def test_accumulated_equals_whole(float64):
    """Micro-batches with other counts of positive points, one without any: gradients, losses and sums, 1e-12."""
    task = task_of(model=Scaled(SMALL.points))
    params = jax.tree.map(lambda x: 1 + 0.1 * jnp.abs(x[0]), outputs_of(12, n=1))
    batch = scenes(7, n=6) | {"x": outputs_of(8, n=6), "mask": np.array([1.0, 1.0, 0.5, 1.0, 0.0, 1.0])}
    batch["labels"][2::3] = -1  # micro-batches take every third row

    def loss(params, state, batch, *, key):
        return task.full_loss(params, state, batch, key=key, train=True)

    def gradient(params, batch, parts):
        return objective(loss, {}, batch, jax.random.key(1), accumulate=parts).gradient(params)

    whole, cut = (jax.jit(gradient, static_argnums=2)(params, batch, parts) for parts in (1, 3))
    assert gap(cut[0], whole[0]) < 1e-12
    assert gap(cut[1:], whole[1:]) < 1e-12


def test_half_precision_keeps_boxes():
    """Pixels are not rounded to a 16-bit number on the way into the loss."""
    batch = scenes(9) | {"scale": np.ones((4, 2)), "x": np.ones((4, 2))}
    seen = Float16()(lambda params, state, batch, *, key: batch)({}, {}, batch, key=None)
    assert {name for name in batch if seen[name].dtype != batch[name].dtype} == {"x"}


# -- what comes out -------------------------------------------------------------------------------


def perfect(model, task, batch):
    """Outputs that say what is there, and nothing else."""
    matched, _ = jax.vmap(task.match)(batch["boxes"], batch["labels"], batch["ignored"])
    row = np.maximum(matched, 0)
    boxes = np.take_along_axis(batch["boxes"], row[..., None], 1)
    hot = np.eye(model.outputs)[np.take_along_axis(batch["labels"], row, 1)] * (matched >= 0)[..., None]
    distances = box.encode(model.points.centres, boxes)
    quality = np.where(matched >= 0, centreness(jnp.where((matched >= 0)[..., None], distances, 1)), 0)
    return {
        "classes": 30 * hot - 15,
        "distances": jnp.maximum(distances, 0.1),
        "quality": jnp.asarray(20 * quality - 10),
    }


def test_perfect_outputs():
    """Average precision 1, box loss 0; boxes come back as they were."""
    model = dataclasses.replace(SMALL, inputs=(64, 96, 3))
    task = task_of(model=model)
    batch = {
        "boxes": np.array(
            [
                [[4.0, 5, 20, 21], [40, 6, 90, 60.5], [0, 0, 0, 0]],
                [[50, 30, 62, 50], [5, 5, 33, 30], [40, 2, 60, 20]],
            ]
        ),
        "labels": np.array([[0, 2, -1], [1, 1, 2]]),
        "ignored": np.zeros((2, 3), np.uint8),
        "scale": np.array([[2.0, 2.0], [1.0, 3.0]]),
        "mask": np.ones(2),
    }
    outputs = perfect(model, task, batch)
    means, metrics = jax.jit(lambda o, b: task.loss(o, b, train=False))(outputs, batch)
    assert float(means["box_loss"].total) < 1e-4
    assert float(means["class_loss"].value) < 1e-4
    numbers = scalars({"detections": join([metrics["detections"]])})
    assert numbers["ap"] == numbers["ap50"] == 1.0
    found = jax.jit(task.predict)(outputs)
    there = np.asarray(found["classes"]) >= 0
    assert there.sum(1).tolist() == [2, 3]
    assert (np.asarray(found["scores"])[~there] == 0).all()
    assert (np.diff(np.asarray(found["scores"]), axis=1) <= 0).all()
    for i, boxes in enumerate(batch["boxes"]):
        true = sorted(boxes[batch["labels"][i] >= 0].tolist())
        assert np.abs(np.array(sorted(np.asarray(found["boxes"])[i][there[i]].tolist())) - true).max() < 1e-4


def test_few_candidates_and_scores_below_the_least():
    """No more than asked for, and none that is not likely enough."""
    outputs = outputs_of(11, n=2)
    assert (np.asarray(jax.jit(task_of(least_score=0.999).predict)(outputs)["classes"]) == -1).all()
    few = jax.eval_shape(task_of(candidates=7, most=5).predict, outputs)
    assert few["boxes"].shape == (2, 5, 4)
    one = jax.jit(task_of(overlap=0.999999, candidates=10**6, most=3).predict)(outputs)
    scores = np.sqrt(jax.nn.sigmoid(outputs["classes"]) * jax.nn.sigmoid(outputs["quality"])[..., None])
    assert np.abs(np.asarray(one["scores"]) - np.sort(scores.reshape(2, -1))[:, ::-1][:, :3]).max() < 1e-6


def test_task_mistakes():
    """Data without boxes, and a model that is no detector."""
    x = np.zeros((3, 8, 8, 3), np.uint8)
    with pytest.raises(ConfigError, match="needs boxes and labels"):
        Detection().outputs(Dataset({"x": x, "y": np.zeros(3, np.int32)}, classes=2))
    with pytest.raises(ConfigError, match="needs a detector"):
        task_of(model=MLP())
    assert Detection().outputs(Dataset({"x": x, "boxes": x, "labels": x}, classes=2)) == 2


def pictures(seed, n):
    """Squares (class 0) and frames (class 1) on a dark ground, three in each picture."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0.2, 0.02, (n, 32, 40, 3)).astype(np.float32)
    boxes, labels = np.zeros((n, 4, 4), np.float32), np.full((n, 4), -1, np.int32)
    for i in range(n):
        for k, corner in enumerate(rng.permutation([(0, 0), (20, 0), (0, 16), (20, 16)])[:3]):
            side = rng.integers(9, 15)
            x0, y0 = corner + rng.integers(0, [20 - side, 16 - side])
            boxes[i, k], labels[i, k] = (x0, y0, x0 + side, y0 + side), rng.integers(2)
            x[i, y0 : y0 + side, x0 : x0 + side] = 1
            if labels[i, k]:
                x[i, y0 + 3 : y0 + side - 3, x0 + 3 : x0 + side - 3] = 0.2
    return {"x": x, "boxes": boxes, "labels": labels, "ignored": np.zeros((n, 4), np.uint8)}


def test_learns_a_batch_by_heart():
    """AP50 above 0.9 on four pictures after 60 steps, through a task's own update and evaluate."""
    model = FCOS(
        inputs=(32, 40, 3), outputs=2, width=8, features=16, depths=(1,), strides=(4,), groups=4, convolutions=1
    )
    task, batch = task_of(model=model), jax.device_put(pictures(0, 4))
    train_state = jax.jit(lambda: state.init(task, jax.random.key(0)))()
    advance = jax.jit(step.make_step(task))
    for _ in range(60):
        train_state, metrics = advance(train_state, batch)
    assert set(metrics) >= {"loss", "class_loss", "box_loss", "quality_loss"}
    found = jax.jit(lambda ts, b: task.evaluate(ts, b, key=jax.random.key(0)))(train_state, batch)
    numbers = scalars({"detections": join([found["detections"]])})
    assert numbers["ap50"] > 0.9


def test_pictures(tmp_path):
    """The truth and what was found, drawn; classes without names by their numbers."""
    batch = scenes(13, n=2) | {"x": np.zeros((2, 27, 42, 3))}
    paths = task_of().draw(outputs_of(14, n=2), batch, tmp_path, ())
    assert [path.read_bytes()[:4] for path in paths] == [b"\x89PNG"]
