"""Augmentation: what is drawn has the distribution it should, the same key gives the same, targets follow."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functrain import augment
from functrain.augment import (
    AnyAugment,
    AugMix,
    Colour,
    Crop,
    CutMix,
    Cutout,
    Flip,
    Mixup,
    RandAugment,
    colour,
    policies,
    space,
)
from functrain.config import ConfigError, configclass, kind_table, parse
from functrain.data.feed import Augmented, Memory
from functrain.observe.grid import grid

pytestmark = pytest.mark.usefixtures("quick")

KINDS = {
    "affine": {"degrees": 10.0, "translate": 0.1, "scale": [0.9, 1.1], "shear": 5.0},
    "colour": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    "grey": {"probability": 0.5},
}
"""Settings by which a kind does something, where its own do nothing."""


@configclass
class Listed:
    augment: tuple[AnyAugment, ...] = ()
    """A list such as the config's."""


def made(kind, **settings):
    """A kind as a config names it."""
    return parse(Listed, {"augment": [{"kind": kind, **KINDS.get(kind, {}), **settings}]}).augment[0]


def applied(one, given, seed=0):
    """The images that one kind makes, compiled."""
    return jax.jit(one.apply)(given, key=jax.random.key(seed))["x"]


def batch(n=6, size=(8, 10), channels=3, **others):
    x = np.random.default_rng(0).random((n, *size, channels), np.float32)
    return {"x": jnp.asarray(x), "y": jnp.arange(n) % 10} | others


OF_IMAGES = [kind for kind, of in kind_table(AnyAugment).items() if not of.__module__.endswith((".waves", ".spectra"))]
"""Those of sounds are tested with sounds (tests/test_audio.py)."""


@pytest.mark.parametrize("kind", OF_IMAGES)
def test_every_kind_is_a_pure_function_of_its_key(kind):
    """The same key, the same bits; another key, another batch; pixels stay in 0..1; no convolution; x of any form."""
    one, given = made(kind), batch()
    apply = jax.jit(lambda batch, key: one.apply(batch, key=key))
    first, again, other = (apply(given, jax.random.key(k)) for k in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first["x"], other["x"])
    assert first["x"].shape == given["x"].shape
    assert first["x"].dtype == jnp.float32
    assert first["x"].min() >= -1e-6
    assert first["x"].max() <= 1 + 1e-6
    np.testing.assert_array_equal(first["y"], given["y"])
    assert "conv_general_dilated" not in str(jax.make_jaxpr(apply)(given, jax.random.key(0)))
    assert "share" in first or len(first) == 2
    grey = {"x": jnp.zeros((3, 5, 7)), "y": jnp.zeros(3, int)}
    assert jax.eval_shape(apply, grey, jax.random.key(0))["x"].shape == (3, 5, 7)
    with pytest.raises(ValueError, match="x must be images"):
        one.apply({"x": jnp.zeros((3, 5))}, key=jax.random.key(0))
    with pytest.raises(ValueError, match="floating point; found uint8"):
        one.apply({"x": jnp.zeros((3, 5, 5), jnp.uint8), "y": given["y"]}, key=jax.random.key(0))


@pytest.mark.parametrize("kind", ["crop", "colour"])
def test_eager_compiled_and_vmapped_agree(kind):
    """To rounding; and a key is all that an example's numbers depend on."""
    one, given = made(kind), batch(n=4)
    keys = jax.random.split(jax.random.key(3), 2)
    vmapped = jax.jit(jax.vmap(lambda key: one.apply(given, key=key)))(keys)
    compiled = jax.jit(lambda key: one.apply(given, key=key))(keys[1])
    eager = one.apply(given, key=keys[1])
    for found in (compiled, jax.tree.map(lambda x: x[1], vmapped)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-6), found, eager)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("flip", {"probability": 0.0}),
        ("rotate", {"degrees": 0.0}),
        ("affine", {"degrees": 0.0, "translate": 0.0, "scale": [1.0, 1.0], "shear": 0.0}),
        ("resized_crop", {"scale": [1.0, 1.0], "ratio": [1.0, 1.0]}),
        ("colour", {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}),
        ("grey", {"probability": 0.0}),
        ("noise", {"deviation": 0.0}),
        ("randaugment", {"operations": 0}),
        ("mixup", {"probability": 0.0}),
        ("cutmix", {"probability": 0.0}),
    ],
)
def test_nothing_is_done_where_nothing_is_asked(kind, settings):
    """Bit for bit the batch."""
    given = batch(n=3, size=(7, 7))
    found = jax.jit(made(kind, **settings).apply)(given, key=jax.random.key(0))
    np.testing.assert_array_equal(found["x"], given["x"])
    if "share" in found:
        np.testing.assert_array_equal(found["share"], 1)


def test_operations_of_strength_zero_are_the_identity():
    """Those of RandAugment that have a strength; posterize keeps all of 8 bits."""
    names = ("identity", *policies.SPACE, *policies.BLENDS, "posterize")
    x = batch(n=len(names))["x"]
    strength = jnp.array([0.0] * (len(names) - 1) + [8.0])
    found = jax.jit(policies.operate, static_argnums=1)(x, names, jnp.arange(len(names)), strength)
    np.testing.assert_array_equal(found, x)


def test_flip_and_crop_draw_uniformly():
    """4,000 examples: half are flipped; each of 9 x 9 shifts is as likely (chi-squared); each image is its own."""
    n = 4000
    x = jnp.tile(jnp.arange(1.0, 13.0).reshape(1, 3, 4, 1), (n, 1, 1, 1)) / 12
    flipped = applied(Flip(probability=0.3), {"x": x})
    share = (flipped[:, 0, 0, 0] != x[0, 0, 0, 0]).mean()
    assert abs(share - 0.3) < 4 * np.sqrt(0.3 * 0.7 / n)
    one = jnp.zeros((n, 9, 9, 1)).at[:, 4, 4].set(1)
    moved = applied(Crop(padding=4), {"x": one}, 1)
    np.testing.assert_array_equal(moved.sum((1, 2, 3)), 1)
    counts = np.asarray(moved.sum((0, 3))).ravel()
    chi = ((counts - n / 81) ** 2 / (n / 81)).sum()
    assert 80 - 4 * np.sqrt(160) < chi < 80 + 4 * np.sqrt(160)


def test_cutout_covers_squares_around_uniform_centres():
    """Inside, a square covers size^2 pixels; the pixels in the middle are covered equally often."""
    n, size = 2000, 4
    x = jnp.zeros((n, 12, 12, 1))
    covered = np.asarray(applied(Cutout(size=size, fill=1.0), {"x": x}))[..., 0]
    assert covered.sum((1, 2)).max() == size**2
    assert covered.sum((1, 2)).min() == (size // 2) ** 2  # a centre at the corner
    middle = covered.mean(0)[4:8, 4:8]
    expected = size**2 / 144
    assert np.abs(middle - expected).max() < 4.5 * np.sqrt(expected / n)
    assert applied(Cutout(size=3, count=2), {"x": x[:1]}).sum() <= 0.5 * 2 * 4


def test_rotations_scales_and_factors_stay_in_their_ranges():
    """A factor of brightness is uniform in max(0, 1 - b) .. 1 + b; the area of a resized crop in its range."""
    x = jnp.full((2000, 1, 2, 1), 0.25)
    factor = np.asarray(applied(Colour(brightness=2.0), {"x": x}))[:, 0, 0, 0] / 0.25
    assert 0 <= factor.min() < 0.01
    assert 2.99 < factor.max() <= 3
    assert abs(factor.mean() - 1.5) < 4 * np.sqrt(9 / 12 / 2000)
    ramp = jnp.tile((jnp.arange(16.0) / 16)[None, None, :, None], (500, 16, 1, 1))
    crop = made("resized_crop", scale=[0.25, 0.25], ratio=[1.0, 1.0])
    found = np.asarray(applied(crop, {"x": ramp}, 1))[:, 8, :, 0]
    np.testing.assert_allclose(found[:, 9] - found[:, 6], 3 / 2 / 16, atol=1e-6)  # half the side: half the slope
    left = found[:, 6] * 16 - 2.75
    assert 0 <= left.min() < 0.1
    assert 7.9 < left.max() <= 8.0001


def test_randaugment_draws_each_operation_and_sign_as_often():
    """At magnitude 30 the image of one bright pixel tells shifts to the left from those to the right."""
    n = 2800
    x = jnp.zeros((n, 9, 31, 1)).at[:, 4, 15].set(1)
    found = np.asarray(applied(RandAugment(operations=1, magnitude=30), {"x": x}))[..., 0]
    for column in (1, 29):  # 14 pixels, which is 150 / 331 * 31 rounded down
        share = ((found[:, 4, column] == 1) & (found.sum((1, 2)) < 2)).mean()  # solarized, all others are bright
        assert abs(share - 1 / 28) < 4 * np.sqrt(1 / 28 / n)


def test_augmix_is_a_mixture():
    """A white image in its middle: solarized and posterised chains are darker, all else white, and the mean between."""
    n = 400
    x = jnp.ones((n, 3, 3, 1))
    found = np.asarray(applied(AugMix(severity=3.0), {"x": x}))[:, 1, 1, 0]
    assert found.min() >= 0
    assert found.max() <= 1 + 1e-6
    assert 0.6 < found.mean() < 0.99


def test_mixup_and_cutmix():
    """x and the labels are mixed with the same partner by the same share, which is Beta distributed."""
    n = 2000
    given = {
        "x": jnp.broadcast_to(jnp.arange(n, dtype=jnp.float32)[:, None, None, None], (n, 6, 6, 1)),
        "y": jnp.arange(n),
    }
    mixed = jax.jit(lambda key: Mixup(alpha=0.4).apply(given, key=key))(jax.random.key(0))
    share, partner = mixed["share"], mixed["y_mixed"]
    np.testing.assert_allclose(mixed["x"][:, 2, 3, 0], share * given["y"] + (1 - share) * partner, rtol=1e-5, atol=1e-3)
    assert sorted(np.asarray(partner)) == list(range(n))
    variance = 1 / (4 * (2 * 0.4 + 1))
    assert abs(share.mean() - 0.5) < 4 * np.sqrt(variance / n)
    assert abs(share.var() - variance) < 0.015

    cut = jax.jit(lambda key: CutMix(probability=0.5).apply(given, key=key))(jax.random.key(1))
    share, x = np.asarray(cut["share"]), np.asarray(cut["x"])[..., 0]
    own = x == np.arange(n)[:, None, None]
    other = x == np.asarray(cut["y_mixed"])[:, None, None]
    assert (own | other).all()
    np.testing.assert_allclose(own.mean((1, 2)), np.where(cut["y_mixed"] == given["y"], 1, share), atol=1e-6)
    for which in np.flatnonzero(share < 1)[:50]:
        rows, columns = (~own[which]).any(1), (~own[which]).any(0)
        assert (~own[which] == rows[:, None] & columns).all()  # a rectangle
    assert (share == 1).mean() > 0.5
    assert share.min() < 0.6


def test_mixed_examples_keep_their_masks_and_weights():
    """The masked are left alone, and weight * (share * a + (1 - share) * b) weighs each label as its example did."""
    n = 64
    mask, weight = jnp.arange(n) % 4 != 0, 1.0 + jnp.arange(n) % 3
    given = batch(n=n, mask=mask.astype(jnp.float32)) | {"y": jnp.arange(n)}
    key = jax.random.key(0)
    mix = jax.jit(Mixup(alpha=1.0).apply)
    plain = mix(given | {"weight": jnp.ones(n)}, key=key)
    np.testing.assert_array_equal(plain["weight"], 1)
    untouched = ~mask | ~mask[plain["y_mixed"]]
    np.testing.assert_array_equal(plain["share"] == 1, untouched)
    np.testing.assert_array_equal(plain["x"][untouched], given["x"][untouched])
    weighed = mix(given | {"weight": weight}, key=key)
    share, other = plain["share"], weight[plain["y_mixed"]]
    np.testing.assert_allclose(weighed["weight"] * weighed["share"], share * weight, rtol=1e-6)
    np.testing.assert_allclose(weighed["weight"] * (1 - weighed["share"]), (1 - share) * other, rtol=1e-5, atol=1e-6)


def test_boxes_and_maps_follow_flips():
    """A box around bright pixels encloses them afterwards; what fills up stays; a map turns with its image."""
    x = jnp.zeros((64, 8, 10)).at[:, 2:4, 1:6].set(1)
    boxes = jnp.tile(jnp.array([[1.0, 2.0, 6.0, 4.0], [0.0, 0.0, 0.0, 0.0]]), (64, 1, 1))
    given = {"x": x, "boxes": boxes, "labels": jnp.tile(jnp.array([3, -1]), (64, 1))}
    for i, axis in enumerate(("horizontal", "vertical")):
        given = jax.jit(Flip(axis=axis).apply)(given, key=jax.random.key(i))
    assert len(np.unique(given["boxes"], axis=0)) == 4
    np.testing.assert_array_equal(_drawn(given["boxes"][:, 0], (8, 10)), given["x"])
    np.testing.assert_array_equal(given["boxes"][:, 1], 0)
    given = jax.jit(Crop(padding=5).apply)(given, key=jax.random.key(3))
    there = np.asarray(given["labels"][:, 0]) == 3
    np.testing.assert_array_equal(_drawn(given["boxes"][:, 0], (8, 10)), given["x"])
    np.testing.assert_array_equal(there, given["x"].sum((1, 2)) > 0)
    assert not there.all()
    np.testing.assert_array_equal(given["boxes"][:, 1], 0)

    values = jax.random.randint(jax.random.key(0), (16, 8, 10), 0, 9)
    labelled = {"x": values / 10, "y": values, "mask": (values > 2).astype(jnp.float32)}
    for i, one in enumerate((Flip(), Crop(padding=3, fill="reflect"))):
        labelled = jax.jit(one.apply)(labelled, key=jax.random.key(i))
        np.testing.assert_array_equal(labelled["y"], jnp.round(labelled["x"] * 10))
        np.testing.assert_array_equal(labelled["mask"], labelled["y"] > 2)


def _drawn(boxes, size):
    """Boxes [n, 4] of whole pixels as images of 0 and 1."""
    row, column = np.arange(size[0])[:, None], np.arange(size[1])
    x0, y0, x1, y1 = (np.asarray(boxes)[:, i, None, None] for i in range(4))
    return (row >= y0) & (row < y1) & (column >= x0) & (column < x1)


def test_what_cannot_follow_is_refused():
    """One line says what it was that lies on the images."""
    boxed = batch(boxes=jnp.zeros((6, 2, 4)), labels=jnp.zeros((6, 2), int))
    labelled = batch() | {"y": jnp.zeros((6, 8, 10), int)}
    for kind in ("resized_crop", "rotate", "affine", "randaugment", "augmix", "mixup", "cutmix"):
        for given, name in ((boxed, "boxes"), (labelled, "y")):
            with pytest.raises(ValueError, match=f"^{name} lies on the images"):
                made(kind).apply(given, key=jax.random.key(0))
    for given, fill, message in ((labelled, "zero", "no labels"), (boxed, "reflect", "what is mirrored")):
        with pytest.raises(ValueError, match=message):
            made("crop", fill=fill).apply(given, key=jax.random.key(0))
    with pytest.raises(ValueError, match="does not lie on images of 8 x 10"):
        Flip().apply(batch() | {"y": jnp.zeros((6, 4, 5), int)}, key=jax.random.key(0))
    with pytest.raises(ValueError, match="padding 8 must be less"):
        Crop(padding=8, fill="reflect").apply(batch(), key=jax.random.key(0))
    with pytest.raises(ValueError, match="1 or 3 channels; found 2"):
        Colour().apply(batch(channels=2), key=jax.random.key(0))
    with pytest.raises(ValueError, match="mixed already"):
        CutMix().apply(batch(share=jnp.ones(6)), key=jax.random.key(1))
    with pytest.raises(ValueError, match=r"y must be a class.* found float32"):
        Mixup().apply(batch() | {"y": jnp.zeros(6)}, key=jax.random.key(0))
    with pytest.raises(ConfigError, match=r"augment.0.*scale: found \[1.0, 0.5\]"):
        made("resized_crop", scale=[1.0, 0.5])
    with pytest.raises(ConfigError, match=r"augment.0.*magnitude"):
        made("randaugment", magnitude=31)


def test_hue_is_that_of_the_library(float64):
    """Of Python's colorsys, in float64: to the last digits."""
    x = np.random.default_rng(0).random((1, 4, 5, 3))
    found = np.asarray(colour.hue(jnp.asarray(x), 0.3)).reshape(-1, 3)
    for pixel, ours in zip(x.reshape(-1, 3), found):
        h, s, v = colorsys.rgb_to_hsv(*pixel)
        np.testing.assert_allclose(ours, colorsys.hsv_to_rgb((h + 0.3) % 1, s, v), rtol=0, atol=1e-14)


def test_a_warp_by_a_quarter_turn_is_exact(float64):
    """Bilinear reading at whole places: the image turned clockwise, to rounding; far outside there is only the fill."""
    x = np.random.default_rng(0).random((2, 5, 5, 2))
    warp = jax.jit(space.warp, static_argnames="fill")
    found = warp(jnp.asarray(x), space.affine(jnp.array([90.0, -90.0])))
    for i, turns in enumerate((-1, 1)):
        np.testing.assert_allclose(found[i], np.rot90(x[i], turns), rtol=0, atol=1e-14)
    away = warp(jnp.asarray(x), space.affine(translate=(jnp.array([7.5, 1e9]), 0.0)), fill=0.25)
    np.testing.assert_array_equal(away, 0.25)


def test_a_feed_augments_by_seed_and_step():
    """The batch of a step is the same however one gets there; steps and seeds differ; preview shows the same kinds."""
    arrays = {"x": batch(n=12)["x"], "y": jnp.arange(12)}
    augments = (Crop(padding=2), Flip())
    feed = Augmented(Memory(arrays, size=4), augments, seed=1)
    take = jax.jit(lambda step: feed.batch(feed.window(0, 1), step))
    np.testing.assert_array_equal(take(5)["x"], take(5)["x"])
    assert not np.array_equal(take(5)["x"], take(8)["x"])  # three steps are an epoch
    shown = augment.preview(augments, arrays, key=jax.random.key(0), copies=2)
    assert shown.shape == (36, 8, 10, 3)
    np.testing.assert_array_equal(shown[::3], arrays["x"])
    assert not np.array_equal(shown[1::3], shown[2::3])


def test_grid(tmp_path):
    """Every pixel is a square of its own colour; boxes are drawn around theirs; what does not fit is refused."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install 'functrain[images]'")
    x = np.random.default_rng(0).random((5, 8, 8, 3))
    grid(x, tmp_path / "deep" / "grid.png", columns=3)
    found = np.asarray(image.open(tmp_path / "deep" / "grid.png").convert("RGB"))
    zoom, gap = 112 // 8, 3
    assert found.shape == (2 * (112 + gap) + gap, 3 * (112 + gap) + gap, 3)
    tile = found[gap : gap + 112, gap : gap + 112].reshape(8, zoom, 8, zoom, 3)
    assert np.abs(tile - 255 * x[0][:, None, :, None]).max() <= 1
    boxes = [np.array([[0.0, 0.0, 8.0, 4.0]]), np.zeros((0, 4))]
    grid(np.zeros((2, 8, 8)), tmp_path / "boxes.png", titles=["a", "b"], boxes=boxes, labels=[["one"], []])
    found = np.asarray(image.open(tmp_path / "boxes.png").convert("RGB")).astype(int)
    red = (found[..., 0] - found[..., 1] > 60).nonzero()
    assert red[1].max() <= gap + 112 + 1
    assert 50 < np.ptp(red[0]) < 60
    with pytest.raises(ValueError, match="titles must be as many as the 2 images; found 1"):
        grid(np.zeros((2, 8, 8)), tmp_path / "x.png", titles=["a"])
    with pytest.raises(ValueError, match="images must be"):
        grid(np.zeros((2, 8, 8, 2)), tmp_path / "x.png")
