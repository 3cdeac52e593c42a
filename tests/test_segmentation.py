"""Segmentation: losses and metrics against formulas and scikit-learn, scenes of digits, the U-Net's counts."""

import gzip

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import agree, draw
from helpers import gap, metrics_of, train
from small_data import idx, write_mnist

from functrain import losses, tree
from functrain.config import ConfigError, parse
from functrain.data import Dataset, InOrder, Memory, dataset
from functrain.data.scenes import MnistScenes
from functrain.metrics import read, scalar_names, scalars
from functrain.metrics.overlap import overlap_of
from functrain.models import Pure
from functrain.models.unet import UNet
from functrain.models.vit import ViT
from functrain.observe.segmentation_figure import segmentation_picture
from functrain.optim import AdamW, Learner, objective
from functrain.tasks.segmentation import Segmentation

pytestmark = pytest.mark.usefixtures("quick")


def integers(seed, most, *shape):
    return np.random.default_rng(seed).integers(0, most, shape)


# -- metrics --------------------------------------------------------------------------------------


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("masked", ["all", "examples", "pixels"])
def test_overlap_is_that_of_scikit_learn(masked, background):
    """Mean IoU and mean Dice over the classes that occur, in batches of 3 and 2; class 4 of 6 occurs nowhere."""
    metrics = pytest.importorskip("sklearn.metrics")
    labels, predicted = (np.where((y := integers(seed, 6, 5, 7, 3)) == 4, 0, y) for seed in (0, 1))
    mask = {"all": None, "examples": np.array([1, 0, 1, 1, 0]), "pixels": integers(2, 2, 5, 7, 3)}[masked]
    parts = [
        overlap_of(
            jnp.asarray(predicted[rows]),
            jnp.asarray(labels[rows]),
            6,
            None if mask is None else jnp.asarray(mask[rows], jnp.float32),
            background=background,
        )
        for rows in (slice(3), slice(3, 5))
    ]
    overlap = read({"overlap": tree.add(*parts)})["overlap"]
    counted = np.ones(labels.shape, bool) if mask is None else np.broadcast_to(mask.T, labels.T.shape).T != 0
    true, said = labels[counted], predicted[counted]
    classes = [c for c in np.union1d(true, said) if c or background]
    for name, score in (("mean_iou", metrics.jaccard_score), ("mean_dice", metrics.f1_score)):
        assert overlap.numbers()[name] == pytest.approx(score(true, said, labels=classes, average="macro"), abs=1e-15)
    assert np.isnan(overlap.iou("none")).tolist() == [False] * 4 + [True, False]
    assert scalar_names("overlap", overlap) == ("mean_iou", "mean_dice") == tuple(scalars({"overlap": overlap}))


def test_overlap_loses_no_pixel():
    """Beyond 2^24 pixels of one class, where float32 no longer counts by one."""
    many = overlap_of(jnp.zeros((1, 1 << 20), int), jnp.zeros((1, 1 << 20), int), 2)
    many = jax.tree.map(lambda x: 40 * x, many)
    one = overlap_of(jnp.ones((1, 1), int), jnp.zeros((1, 1), int), 2)
    total = tree.add(many, one)
    assert float(total.iou("none")[0]) == 40 * 2**20 / (40 * 2**20 + 1)
    assert float(total.iou("none")[1]) == 0


def test_overlap_by_member():
    """Stacked accumulators, as several seeds have them, give a number each."""
    each = [overlap_of(jnp.asarray(integers(s, 3, 4, 5)), jnp.asarray(integers(9, 3, 4, 5)), 3) for s in range(2)]
    stacked = jax.tree.map(lambda *x: np.stack(x), *each)
    assert stacked.iou().tolist() == [float(one.iou()) for one in each]


def test_overlap_refuses_shapes_that_differ():
    with pytest.raises(ValueError, match="differ in shape"):
        overlap_of(jnp.zeros((2, 3), int), jnp.zeros((2, 1), int), 2)
    with pytest.raises(ValueError, match="does not lead"):
        overlap_of(jnp.zeros((2, 3), int), jnp.zeros((2, 3), int), 2, jnp.zeros(3))


# -- the Dice loss --------------------------------------------------------------------------------


def by_formula(logits, labels, weights, smoothing, background):
    """The mean of 1 - Dice by loops over examples and classes; weights [n, pixels]."""
    each, heaviest = [], weights.max(1)
    for x, y, w, top in zip(logits, labels, weights, heaviest):
        p = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
        w = w / top if top else w
        dice = []
        for c in range(0 if background else 1, x.shape[-1]):
            t = (y == c).astype(float)
            dice.append((2 * (w * p[:, c] * t).sum() + smoothing) / ((w * p[:, c]).sum() + (w * t).sum() + smoothing))
        each.append(1 - np.mean(dice))
    return (np.array(each) * heaviest).sum() / heaviest.sum()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("masked", ["all", "examples", "pixels"])
def test_dice_loss_is_its_formula(masked, background):
    """Values, and the gradient by differences; examples and pixels that weigh 0, 1 and between."""
    logits, labels = draw(0, 4, 3, 5, 4), integers(1, 4, 4, 3, 5)
    mask = {
        "all": None,
        "examples": np.array([1.0, 0.0, 0.5, 2.0]),
        "pixels": integers(2, 3, 4, 3, 5) * np.array([1.0, 0.0, 0.5, 2.0]).reshape(-1, 1, 1),
    }[masked]

    def loss(logits):
        made = losses.dice(jnp.asarray(logits), jnp.asarray(labels), mask=mask, smoothing=0.5, background=background)
        return made.total / made.count

    flat = logits.reshape(4, 15, 4), labels.reshape(4, 15)
    weights = np.ones((4, 15)) if mask is None else np.broadcast_to(mask.T, labels.T.shape).T.reshape(4, 15)
    agree(np.asarray(loss(logits)), np.float64(by_formula(*flat, weights, 0.5, background)), 1e-14)
    direction = draw(3, *logits.shape)
    slope = (loss(logits + 1e-5 * direction) - loss(logits - 1e-5 * direction)) / 2e-5
    agree(np.asarray((jax.grad(loss)(jnp.asarray(logits)) * direction).sum()), np.asarray(slope), 1e-8)


def test_dice_loss_refuses():
    with pytest.raises(ValueError, match="expected labels"):
        losses.dice(jnp.zeros((2, 4, 3)), jnp.zeros((2, 5), int))
    with pytest.raises(ValueError, match="background"):
        losses.dice(jnp.zeros((2, 4, 1)), jnp.zeros((2, 4), int), background=False)


# -- the task -------------------------------------------------------------------------------------


def pixelwise(classes):
    """A model of a matrix for each pixel."""

    def init(key):
        return {"w": jax.random.normal(key, (2, classes))}

    return Pure(init, lambda params, x: x @ params["w"])


def batch_of(n, classes, dtype=jnp.float32, ignore=255):
    y = integers(1, classes, n, 3, 4)
    y[integers(2, 4, n, 3, 4) == 0] = ignore
    y[1] = ignore  # an example that counts nowhere
    return {
        "x": jnp.asarray(draw(0, n, 3, 4, 2), dtype),
        "y": jnp.asarray(y, jnp.uint8),
        "mask": jnp.asarray(np.arange(n) % 3 != 0, dtype),
    }


@pytest.mark.usefixtures("float64")
def test_accumulated_equals_whole():
    """Gradients, both losses and metrics of micro-batches that count another number of pixels each, in float64."""
    task = Segmentation(
        criterion="both",
        ignore=255,
        dice_weight=0.7,
        class_weights=(1.0, 0.5, 2.0),
        model=pixelwise(3),
        learner=Learner(),
    )
    params = {"w": jnp.asarray(draw(5, 2, 3))}
    batch = batch_of(8, 3, jnp.float64)

    def loss(params, state, batch, *, key):
        return task.full_loss(params, state, batch, key=key, train=False)

    whole, cut = (objective(loss, {}, batch, jax.random.key(0), accumulate=n).gradient(params) for n in (1, 4))
    assert set(whole[2][1]) == {"accuracy", "overlap", "cross_entropy", "dice_loss"}
    assert gap(cut[0], whole[0]) < 1e-13
    assert gap(cut[1], whole[1]) < 1e-13
    assert gap(cut[2][1], whole[2][1]) < 1e-13


def test_metrics_skip_what_is_ignored():
    """Accuracy and overlap of the counted pixels alone."""
    task = Segmentation(criterion="both", ignore=255, dice_weight=0.5, background=False)
    batch = batch_of(6, 3)
    outputs = jnp.asarray(draw(3, 6, 3, 4, 3), jnp.float32)
    means, metrics = task.loss(outputs, batch, train=False)
    y, predicted = np.asarray(batch["y"]), np.asarray(task.predict(outputs)["class"])
    counted = (y != 255) & (np.asarray(batch["mask"])[:, None, None] > 0)
    found = scalars(read(metrics | means))
    assert found["accuracy"] == pytest.approx((predicted == y)[counted].mean())
    assert metrics["overlap"].iou("none")[1] == pytest.approx(
        ((predicted == 1) & (y == 1) & counted).sum() / (((predicted == 1) | (y == 1)) & counted).sum()
    )
    plain = losses.dice(
        outputs, jnp.where(batch["y"] == 255, 0, batch["y"]), mask=jnp.asarray(counted), background=False
    )
    assert found["dice_loss"] == pytest.approx(0.5 * float(plain.value))
    assert float(plain.count) == 3  # of 6 examples two are masked, one is ignored
    assert "overlap" not in task.loss(outputs, batch, train=True)[1]


def masks(y, **others):
    n, h, w = np.shape(y)
    return Dataset(train={"x": np.zeros((n, h, w, 2), np.float32), "y": np.asarray(y)}, **others)


def test_classes_come_from_all_splits():
    y = np.array([[[0, 2], [255, 1]]], np.uint8)
    assert Segmentation(ignore=255).outputs(masks(y)) == 3
    more = {"x": np.zeros((1, 2, 2, 2)), "y": np.full((1, 2, 2), 6)}
    assert Segmentation(ignore=255).outputs(masks(y, test=more)) == 7
    assert Segmentation(classes=9, ignore=255).outputs(masks(y)) == 9
    assert Segmentation().outputs(masks(y)) == 256
    assert Segmentation().places(masks(y)) == 4
    assert dataset("mine", {"train": masks(y).train}).train["y"].dtype == np.uint8


@pytest.mark.parametrize(
    ("settings", "y", "said"),
    [
        ({}, np.zeros((1, 2, 2)), "found|the data has float64"),
        ({}, np.zeros((1, 2, 3), int)[..., :1], "needs integer labels"),
        ({}, np.array([[[0, -3], [1, 1]]]), r"train y\[0, 0, 1\]: label -3; expected 0 up"),
        ({"classes": 2}, np.array([[[0, 1], [5, 1]]]), r"train y\[0, 1, 0\]: label 5; expected 0 to 1"),
        ({"class_weights": (1.0,)}, np.array([[[0, 1], [1, 1]]]), "found 1; expected 2"),
        ({"class_weights": (0.0, 0.0)}, np.array([[[0, 1], [1, 1]]]), "all are 0"),
        ({}, np.zeros((1, 2, 2), int), "two classes or more"),
    ],
)
def test_labels_that_do_not_fit(settings, y, said):
    data = Dataset(train={"x": np.zeros((1, 2, 2, 1), np.float32), "y": y})
    with pytest.raises(ConfigError, match=said):
        Segmentation(**settings).outputs(data)


@pytest.mark.parametrize(
    ("cls", "settings", "said"),
    [
        (Segmentation, {"criterion": "dice", "class_weights": [1.0]}, "they weigh the cross-entropy"),
        (Segmentation, {"ignore": -2}, "ignore: found -2"),
        (Segmentation, {"criterion": "dize"}, 'did you mean "dice"'),
        (MnistScenes, {"scales": [2.0, 1.0]}, "the smaller first"),
        (MnistScenes, {"targets": "mask"}, 'did you mean "masks"'),
    ],
)
def test_configs_that_are_refused(cls, settings, said):
    with pytest.raises(ConfigError, match=said):
        parse(cls, settings)


# -- models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("levels", "width", "channels", "classes", "norm"), [(4, 64, 1, 2, "none"), (2, 3, 2, 5, "batch")]
)
def test_parameters_of_a_unet(levels, width, channels, classes, norm):
    """The count, level by level: 9 n m + m a convolution, two more m for a norm, 4 n m + m up, n m + m at the head."""
    model = UNet(levels=levels, width=width, norm=norm).sized((32, 16, channels), classes)
    params, _ = jax.eval_shape(model.init, jax.random.key(0))
    extra = 3 if norm == "batch" else 1

    def level(n, m):
        return 9 * n * m + 9 * m * m + 2 * extra * m

    widths = [width * 2**i for i in range(levels + 1)]
    count = level(channels, width) + sum(map(level, widths, widths[1:]))
    count += sum(4 * 2 * m * m + m + level(2 * m, m) for m in widths[:-1]) + width * classes + classes
    assert sum(p.size for p in jax.tree.leaves(params)) == count
    if width == 64:
        assert count == 31_030_658


@pytest.mark.parametrize(
    ("model", "shape", "said"),
    [
        (UNet(levels=3), (20, 16), "8 does not divide the images' 20 x 16"),
        (UNet(), (16,), "takes images"),
        (ViT(patch=4), (8, 6), "model.patch: found 4"),
        (ViT(), (8,), "takes images"),
    ],
)
def test_images_that_do_not_fit(model, shape, said):
    with pytest.raises(ConfigError, match=said):
        model.sized(shape, 3)


def test_heads_of_a_vit_divide_its_width():
    with pytest.raises(ConfigError, match=r"model\.heads: found 3"):
        ViT(heads=3, width=8).build()
    with pytest.raises(ValueError, match="positions for"):
        ViT(inputs=(8, 8), outputs=2).apply({}, {}, jnp.zeros((1, 8, 4)))


def test_where_a_vit_drops(monkeypatch):
    """After the embedding, of the attention weights, after attention, inside and after each feed-forward layer."""
    drawn, bernoulli = [], jax.random.bernoulli
    monkeypatch.setattr(jax.random, "bernoulli", lambda *args: drawn.append(args[-1]) or bernoulli(*args))

    def draws(train=True, **settings):
        drawn.clear()
        model = ViT(inputs=(4, 4), outputs=2, patch=2, layers=3, heads=1, width=4, **settings)
        params, _ = jax.eval_shape(model.init, jax.random.key(0))
        x, key = jnp.zeros((1, 4, 4)), jax.random.key(0)
        jax.eval_shape(lambda p: model.apply(p, {}, x, key=key, train=train), params)
        return list(drawn)

    assert draws() == draws(train=False, dropout=0.1, attention_dropout=0.1) == []
    assert draws(dropout=0.1) == [(1, 5, 4)] + 3 * [(1, 5, 4), (1, 5, 16), (1, 5, 4)]
    assert len(draws(attention_dropout=0.1)) == 3


def test_a_unet_learns_squares():
    """Bright squares among dark ones are told apart, through the loop; chance alone has mean IoU below one half."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 8, 8, 1)).astype(np.float32), np.zeros((64, 8, 8), np.uint8)
    for i, (row, column) in enumerate(rng.integers(0, 5, (64, 2))):
        sign = 1 if i % 2 else -1
        x[i, row : row + 3, column : column + 3] += 4 * sign
        y[i, row : row + 3, column : column + 3] = 1 if i % 2 else 2
    task = Segmentation(
        criterion="both",
        model=UNet(levels=1, width=8).sized((8, 8, 1), 3),
        learner=Learner(optimizer=AdamW(peak_lr=1e-2)),
    )
    arrays = jax.device_put({"x": x, "y": y})
    outcome, _ = train(task, Memory(arrays, 16), steps=40)
    found = scalars(metrics_of(task, outcome.train_state, InOrder(arrays, 48)))
    assert found["mean_iou"] > 0.7
    assert set(found) == {"accuracy", "cross_entropy", "dice_loss", "loss", "mean_iou", "mean_dice"}


# -- scenes ---------------------------------------------------------------------------------------

PLAIN = {"noise": 0.0, "clutter": 0, "train": 40, "validation": 12, "test": 12, "size": 48}


@pytest.fixture
def mnist(tmp_path, monkeypatch):
    """Images of one grey value each, bright from 40 up; the label is the image's number modulo 10."""
    monkeypatch.setenv("FUNCTRAIN_DATA", str(tmp_path))
    (tmp_path / "mnist").mkdir()
    for name, first, n in (("train", 40, 120), ("t10k", 200, 40)):
        images = np.broadcast_to((first + np.arange(n)).reshape(-1, 1, 1), (n, 28, 28))
        for what, array in (("images-idx3", images), ("labels-idx1", np.arange(n) % 10)):
            (tmp_path / "mnist" / f"{name}-{what}-ubyte.gz").write_bytes(gzip.compress(idx(array), 1, mtime=0))


def test_splits_of_scenes_share_no_digit(mnist):
    made = MnistScenes(**PLAIN).load()
    greys = [set(np.unique(part["x"]).tolist()) - {0} for part in (made.train, made.validation, made.test)]
    assert not greys[0] & greys[1]
    assert greys[0] | greys[1] <= set(range(40, 160))
    assert greys[2] <= set(range(200, 240))
    assert min(map(len, greys)) >= 10


@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.5, 1.3)])
def test_masks_show_what_is_seen(mnist, scales):
    """Grey values tell which digit is on top; the mask says the same."""
    train = MnistScenes(**PLAIN, scales=scales).load().train
    x, y = train["x"][..., 0].astype(int), train["y"]
    assert x.shape == y.shape == (40, 48, 48)
    assert y.dtype == train["x"].dtype == np.uint8
    assert (y == np.where(x > 0, 1 + (x - 40) % 10, 0)).all()
    assert max(len(np.unique(scene)) for scene in x) == 4  # three digits and the background


def test_boxes_are_the_extent(mnist):
    """Of a single digit from the pixels; of several, the same scenes as with masks, and each box holds its digit."""
    one = MnistScenes(**PLAIN, digits=1, targets="boxes", scales=(0.5, 1.6)).load().train
    for x, box in zip(one["x"][..., 0], one["boxes"][:, 0]):
        rows, columns = np.flatnonzero(x.any(1)), np.flatnonzero(x.any(0))
        assert box.tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    sides = one["boxes"][:, 0, 2:] - one["boxes"][:, 0, :2]
    assert sides.min() >= 10
    assert sides.max() <= 45
    assert one["boxes"].min() == 0  # some stick out and are cut
    assert one["boxes"].max() == 48

    boxed, masked = (MnistScenes(**PLAIN, targets=targets).load() for targets in ("boxes", "masks"))
    assert (boxed.test["x"] == masked.test["x"]).all()
    assert boxed.classes == masked.classes == 0
    boxes, labels, y = boxed.train["boxes"], boxed.train["labels"], masked.train["y"]
    assert boxes.shape == (40, 3, 4)
    assert labels.dtype == np.int32
    assert set((labels >= 0).sum(1).tolist()) == {1, 2, 3}
    assert (boxes[labels < 0] == 0).all()
    for scene, scene_boxes, scene_labels in zip(y, boxes.astype(int), labels):
        left = scene.copy()
        for (x0, y0, x1, y1), label in zip(scene_boxes, scene_labels):
            left[y0:y1, x0:x1][left[y0:y1, x0:x1] == label + 1] = 0
        assert not left.any()


def test_scenes_follow_from_their_seed(tmp_path, monkeypatch):
    monkeypatch.setenv("FUNCTRAIN_DATA", str(tmp_path))
    write_mnist(tmp_path / "mnist", np.random.default_rng(0), train=60, test=20)
    settings = {"size": 48, "train": 8, "validation": 4, "test": 4}
    first, again = (MnistScenes(**settings).load() for _ in range(2))
    other = MnistScenes(**settings, scene_seed=1).load()
    fewer = MnistScenes(**settings | {"validation": 0}).load()
    assert all((first.train[k] == again.train[k]).all() for k in ("x", "y"))
    assert (first.train["x"] != other.train["x"]).any()
    assert (first.train["x"] == fewer.train["x"]).all()
    assert fewer.validation == {}
    assert (first.train["x"][first.train["y"] == 0] > 0).any()  # clutter and noise
    scaled = MnistScenes().prepare({"x": jnp.asarray(first.train["x"]), "y": 1})
    assert float(scaled["x"].max()) <= 1
    assert scaled["y"] == 1


def test_files_of_scenes(mnist, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"data.size: found 40; digits are up to 45 large"):
        MnistScenes(**PLAIN | {"size": 40}).load()
    monkeypatch.setenv("FUNCTRAIN_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"data.images: no file .*functrain data get mnist"):
        MnistScenes(**PLAIN).load()


def test_a_picture_of_masks(tmp_path):
    y = integers(0, 3, 2, 8, 8)
    y[0, 0, 0] = 255
    for x in (integers(1, 255, 2, 8, 8, 1).astype(np.uint8), draw(2, 2, 8, 8, 3)):
        segmentation_picture(x, y, np.zeros_like(y), tmp_path / "drawn" / "masks.png")
        assert (tmp_path / "drawn" / "masks.png").read_bytes()[:4] == b"\x89PNG"
