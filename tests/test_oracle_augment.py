"""Augmentation by given numbers is torchvision's: in float64 by the formulas, on bytes where it counts in them.

Only hue is compared in float32: torchvision computes it in that whatever it is given.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import agree
from torch_vision import torchvision

from functrain.augment import RandAugment, colour, policies, space

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'functrain[oracle]'")
torchvision()
transforms = pytest.importorskip("torchvision.transforms.v2")
F, BILINEAR = transforms.functional, transforms.InterpolationMode.BILINEAR
torch.set_num_threads(1)

pytestmark = [pytest.mark.oracle, pytest.mark.usefixtures("quick", "float64")]

# Compiled once for each shape: eagerly each operation of each would be compiled alone.
warp = jax.jit(space.warp, static_argnames="fill")
affine, resized_crop = jax.jit(space.affine), jax.jit(space.resized_crop)
operate = jax.jit(policies.operate, static_argnums=1)

FORMULA = 1e-13  # relative to the largest pixel
PLACES = 1e-12  # of a bilinear reading: the places are divided by the size and multiplied again by torch
SHAPES = [(3, 9, 7, 3), (1, 6, 11, 1), (2, 3, 3, 3)]


def pictures(shape, seed=0):
    """Smooth and rough pixels, some exactly 0 and 1, and one channel that is constant."""
    x = np.random.default_rng(seed).random(shape) * 1.3 - 0.15
    x = np.clip(x, 0, 1)
    x[0, ..., 0] = 0.25
    return x


def first(x):
    return torch.tensor(np.moveaxis(np.asarray(x), -1, 1))


def last(t):
    return np.moveaxis(t.numpy(), 1, -1)


def as_bytes(x):
    """Torch's bytes, and the same pixels in 0..1."""
    b = np.round(x * 255).astype(np.uint8)
    return first(b), jnp.asarray(b / 255)


def one_by_one(f, x, numbers):
    """torchvision's function, called for each image with its own number."""
    return np.concatenate([last(f(first(x[i : i + 1]), number)) for i, number in enumerate(numbers)])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (colour.brightness, F.adjust_brightness),
        (colour.contrast, F.adjust_contrast),
        (colour.saturation, F.adjust_saturation),
        (colour.sharpness, F.adjust_sharpness),
        (colour.solarize, F.solarize),
    ],
    ids=lambda f: f.__name__,
)
def test_each_image_has_its_own_factor(ours, theirs, shape):
    """Below 1, above it, 0 and 1; solarize takes thresholds to 1."""
    x, ours_compiled = pictures(shape), jax.jit(ours)
    for factors in ([0.0, 0.6, 1.0], [1.9, 1.0, 0.0], [0.3, 3.0, 1.2]):
        if ours is colour.solarize:
            factors = [f / 3 for f in factors]
        factors = factors[: len(x)]
        agree(ours_compiled(jnp.asarray(x), np.array(factors)), one_by_one(theirs, x, factors), FORMULA)


@pytest.mark.parametrize("shape", [(3, 9, 7, 3), (2, 4, 5, 1)])
def test_hue(shape):
    """All the way round; grey pixels, black ones, and ties between channels."""
    x = pictures(shape).astype(np.float32)
    x[0, 0, 0], x[0, 0, 1] = 0.0, 0.5
    if shape[-1] == 3:
        x[0, 1, :3] = [[0.7, 0.7, 0.2], [0.2, 0.7, 0.7], [0.7, 0.2, 0.7]]
    for shifts in ([-0.5, -0.1, 0.0], [0.5, 0.3, 0.05]):
        shifts = shifts[: len(x)]
        found = jax.jit(colour.hue)(jnp.asarray(x), np.array(shifts))
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, one_by_one(F.adjust_hue, x, shifts), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 9, 7, 3), (1, 6, 11, 1)])
def test_grey_autocontrast(shape):
    """A constant channel stays as it is."""
    x = pictures(shape)
    agree(colour.autocontrast(jnp.asarray(x)), last(F.autocontrast(first(x))), FORMULA)
    agree(colour.grey(jnp.asarray(x)), last(F.rgb_to_grayscale(first(x))), FORMULA)


@pytest.mark.parametrize("shape", [(3, 32, 24, 3), (2, 17, 19, 1), (1, 5, 5, 3)])
def test_posterize_and_equalize_are_those_of_bytes(shape):
    """Exactly, byte for byte; images too small to be equalised stay."""
    x = pictures(shape, 1)
    x[-1, :, 3:] **= 3  # crowded at the dark end
    theirs, ours = as_bytes(x)
    for bits in range(9):
        found = np.round(np.asarray(jax.jit(colour.posterize)(ours, bits)) * 255)
        np.testing.assert_array_equal(found, last(F.posterize(theirs, bits)))
    np.testing.assert_array_equal(np.round(np.asarray(jax.jit(colour.equalize)(ours)) * 255), last(F.equalize(theirs)))


@pytest.mark.parametrize("shape", SHAPES)
def test_rotate(shape):
    """Each image by its own angle, against the clock in torchvision's `rotate`."""
    x, angles = pictures(shape, 2), [33.0, -7.5, 181.0][: shape[0]]
    found = warp(jnp.asarray(x), affine(-np.array(angles)))
    agree(found, one_by_one(lambda t, a: F.rotate(t, a, interpolation=BILINEAR), x, angles), PLACES, 1.0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fill", [0.0, 0.4])
def test_affine(shape, fill):
    """All its parts at once, and shear and shift alone."""
    x = pictures(shape, 3)
    cases = [
        (20.0, (1.5, -2.0), 1.3, (12.0, -5.0)),
        (0.0, (0.0, 0.0), 1.0, (15.0, 0.0)),
        (0.0, (2.0, 0.5), 1.0, (0.0, 9.0)),
    ]
    cases = cases[: shape[0]]
    angle, translate, scale, shear = (np.array(part) for part in zip(*cases, strict=True))
    matrix = affine(angle, (translate[:, 0], translate[:, 1]), scale, (shear[:, 0], shear[:, 1]))

    def theirs(t, case):
        angle, translate, scale, shear = case
        # Not torchvision's own fill: there a pixel on the edge has its share taken twice.
        return F.affine(t - fill, angle, list(translate), scale, list(shear), BILINEAR) + fill

    agree(warp(jnp.asarray(x), matrix, fill=fill), one_by_one(theirs, x, cases), PLACES, 1.0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("fill", "mode"), [("zero", "constant"), ("reflect", "reflect")])
def test_crop_and_flip(shape, fill, mode):
    """Padded and cropped at every kind of place, exactly."""
    x, (height, width) = pictures(shape, 4), shape[1:3]
    offsets = [(0, 4), (2, 2), (3, 0)][: len(x)]

    def theirs(t, at):
        return F.crop(F.pad(t, [2], padding_mode=mode), *at, height, width)

    agree(space.crop(jnp.asarray(x), jnp.array(offsets), 2, fill), one_by_one(theirs, x, offsets), 0)
    every = jnp.ones(len(x), bool)
    agree(space.flip(jnp.asarray(x), every, 2), last(F.hflip(first(x))), 0)
    agree(space.flip(jnp.asarray(x), every, 1), last(F.vflip(first(x))), 0)


def test_resized_crop():
    """Cut out, then resized: torchvision's, for rectangles of whole pixels."""
    x = pictures((4, 9, 7, 3), 5)
    rectangles = [(0, 0, 9, 7), (1, 2, 4, 5), (8, 0, 1, 7), (3, 6, 5, 1)]
    found = resized_crop(jnp.asarray(x), *np.array(rectangles, float).T)
    wanted = one_by_one(lambda t, r: F.resized_crop(t, *r, [9, 7], BILINEAR, antialias=False), x, rectangles)
    agree(found, wanted, PLACES, 1.0)


@pytest.mark.parametrize("magnitude", [0, 9, 30])
def test_randaugment(magnitude):
    """Each operation of torchvision's table, at its magnitude and both signs, by torchvision's own function."""
    height, width = 17, 24
    transform = transforms.RandAugment(interpolation=BILINEAR)
    table = transform._AUGMENTATION_SPACE
    assert len(table) == len(policies.RAND_AUGMENT)
    strengths = RandAugment(magnitude=magnitude).strengths(height, width)
    for i, (name, (magnitudes, signed)) in enumerate(table.items()):
        numbers = magnitudes(31, height, width)
        strength = 0.0 if numbers is None else float(numbers[magnitude])
        assert math.isclose(strengths[i], strength, rel_tol=1e-6)
        assert signed == (policies.RAND_AUGMENT[i] in (*policies.SPACE, *policies.BLENDS))
        for sign in (1, -1) if signed else (1,):
            theirs, ours = as_bytes(pictures((1, height, width, 3), 6))
            counted = name in ("Posterize", "Equalize", "Solarize")
            t = theirs if counted else first(ours)
            wanted = last(
                transform._apply_image_or_video_transform(t, name, sign * strength, BILINEAR, {type(t): None})
            )
            found = operate(ours, policies.RAND_AUGMENT, jnp.array([i]), jnp.array([sign * strength]))
            if counted:
                found, wanted = np.round(np.asarray(found) * 255), wanted.astype(float)
            agree(found, wanted, PLACES, 1.0)


def test_gradients_of_a_warp_are_those_of_torch():
    """By the image, through the bilinear reading."""
    x, weights = pictures((1, 5, 6, 2), 7), np.random.default_rng(8).normal(size=(1, 5, 6, 2))
    matrix = affine(jnp.array([25.0]), (jnp.array([0.5]), jnp.array([1.0])))
    found = jax.grad(lambda x: (warp(x, matrix) * weights).sum())(jnp.asarray(x))
    t = first(x).requires_grad_()
    (F.affine(t, 25.0, [0.5, 1.0], 1.0, [0.0, 0.0], BILINEAR) * first(weights)).sum().backward()
    agree(found, last(t.grad), PLACES)
