"""Scenes: digits of MNIST at random places and scales on a larger canvas, with what is where.

Pieces of other digits lie about as clutter (Mnih et al. 2014, section 4.1, on cluttered images), and noise over all.
"""

from typing import Any, Literal

import numpy as np

from functrain.config import ConfigError, Count, Fraction, Positive, Size, configclass
from functrain.data.dataset import SPLITS, Dataset, dataset
from functrain.data.mnist_digits import MnistDigits

_FAINT = 32
"""Grey values below this are no part of a digit: the smear around strokes that resizing leaves."""
_PIECE = 8
"""Height and width of a piece of clutter."""
_AT_ONCE = 512
"""Scenes for which numbers are drawn together."""


@configclass
class MnistScenes(MnistDigits):
    """Scenes made of MNIST (`functrain data get mnist`): digits on a canvas, with the class of each pixel or boxes.

    Each scene has from one digit to `digits` of them, each drawn at random, resized bilinearly, and pasted over those
    before; up to a quarter of it may stick out. The test scenes are made of the test digits, those for validation of a
    sixth of the training digits, which no training scene uses.
    """

    kind: Literal["mnist_scenes"] = "mnist_scenes"
    targets: Literal["masks", "boxes"] = "masks"
    """What is learned: the class of each pixel that is seen, or a box around each digit, seen or covered."""
    size: Size = 64
    """Height and width of a scene."""
    digits: Size = 3
    """Most digits of a scene."""
    scales: tuple[Positive, Positive] = (0.7, 1.6)
    """The smallest and the largest size of a digit, in units of the images' own 28 x 28."""
    clutter: Count = 6
    """Pieces of 8 x 8 of other digits in each scene, which belong to the background."""
    noise: Fraction = 0.1
    """Deviation of the normal noise of every pixel, as a share of the full brightness."""
    train: Size = 4000
    """How many training scenes are made."""
    validation: Count = 500
    """How many scenes are made to choose by."""
    test: Count = 1000
    """How many scenes are made to be read once, at the end."""
    scene_seed: Count = 0
    """Which scenes: everything in them follows from this."""

    def __post_init__(self):
        if self.scales[0] > self.scales[1]:
            raise ValueError(f"scales: found {list(self.scales)}; expected the smaller first")

    def load(self) -> Dataset:
        """x [n, size, size, 1] uint8, and y or boxes and labels.

        For masks y [n, size, size] uint8: 0 the background, 1 + k a pixel on which digit k is seen. For boxes `boxes`
        [n, digits, 4] float32 (x0, y0, x1, y1), the edges of a digit's pixels in the canvas, and `labels`
        [n, digits] int32, -1 where there is none (and a box of zeros).

        Raises:
          ConfigError: a file is missing or no IDX file, holds no images of bytes, or the digits do not fit a scene.
        """
        pools, parts = self.pools(self.scene_seed), {}
        for number, (split, count) in enumerate(zip(SPLITS, (self.train, self.validation, self.test))):
            if count:
                x, y = self._checked(pools[split])
                parts[split] = self._scenes(x, y, count, np.random.default_rng([self.scene_seed, number]))
        return dataset("data: mnist_scenes", parts)

    def _checked(self, pool: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The images and labels that scenes of one split are made of."""
        x, y = pool["x"], pool["y"]
        if min(x.shape[1:]) < _PIECE:
            raise ConfigError(f"data.images: found {x.dtype} {list(x.shape)}; expected bytes [n, 28, 28] or the like")
        if y.max() > 254:
            raise ConfigError(f"data.labels: found {y.max()}; expected labels up to 254, to be bytes in a mask")
        largest = round(max(x.shape[1:]) * self.scales[1])
        if largest > self.size:
            raise ConfigError(f"data.size: found {self.size}; digits are up to {largest} large, by data.scales")
        return x, y

    def _scenes(self, x: np.ndarray, y: np.ndarray, count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """`count` scenes of the digits x [m, height, width] with labels y [m]."""
        made = [self._some(x, y, min(_AT_ONCE, count - i), rng) for i in range(0, count, _AT_ONCE)]
        return {name: np.concatenate([part[name] for part in made]) for name in made[0]}

    def _some(self, x: np.ndarray, y: np.ndarray, count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        scenes = np.zeros((count, self.size, self.size), np.uint8)
        self._clutter(scenes, x, rng)
        which = rng.integers(len(x), size=(count, self.digits))
        scale = rng.uniform(*self.scales, (count, self.digits))
        place = rng.random((count, self.digits, 2))
        wanted = np.arange(self.digits) < rng.integers(1, self.digits + 1, count)[:, None]

        masks = np.zeros((count, self.size, self.size), np.uint8)
        boxes = np.zeros((count, self.digits, 4), np.float32)
        labels = np.full((count, self.digits), -1, np.int32)
        pictures = _resized(x, which[wanted], scale[wanted])
        for (scene, k), picture in zip(np.argwhere(wanted), pictures):
            begins, inside = zip(*(_placed(n, self.size, p) for n, p in zip(picture.shape, place[scene, k])))
            seen = picture[inside]
            on = seen > 0
            rows, columns = np.flatnonzero(on.any(1)), np.flatnonzero(on.any(0))
            if not len(rows):
                continue
            at = tuple(slice(begin, begin + n) for begin, n in zip(begins, seen.shape))
            digit = y[which[scene, k]]
            scenes[scene][at][on] = seen[on]
            masks[scene][at][on] = 1 + digit
            top, left = begins
            boxes[scene, k] = left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1
            labels[scene, k] = digit
        if self.noise:
            noise = rng.standard_normal(scenes.shape, np.float32) * np.float32(255 * self.noise)
            scenes = np.clip(scenes + noise, 0, 255).astype(np.uint8)
        arrays: dict[str, Any] = {"x": scenes[..., None]}
        return arrays | ({"y": masks} if self.targets == "masks" else {"boxes": boxes, "labels": labels})

    def _clutter(self, scenes: np.ndarray, x: np.ndarray, rng: np.random.Generator) -> None:
        """Paste pieces of digits into the scenes, where they are."""
        shape = (len(scenes), self.clutter)
        which = rng.integers(len(x), size=shape)
        # From the middle half of the images: their margins are empty.
        out = [rng.integers(n // 4, max(3 * n // 4 - _PIECE, n // 4) + 1, shape) for n in x.shape[1:]]
        to = rng.integers(self.size - _PIECE + 1, size=(2, *shape))
        for scene, k in np.ndindex(shape):
            (top, left), (row, column) = (out[0][scene, k], out[1][scene, k]), to[:, scene, k]
            piece = x[which[scene, k], top : top + _PIECE, left : left + _PIECE]
            there = scenes[scene, row : row + _PIECE, column : column + _PIECE]
            np.maximum(there, piece, out=there)


def _placed(n: int, size: int, share: float) -> tuple[int, slice]:
    """Where a picture n long begins on an axis, and which part of it is inside; up to a quarter of it sticks out."""
    begin = round(share * (size - n + 2 * (n // 4))) - n // 4
    return max(begin, 0), slice(max(-begin, 0), min(n, size - begin))


def _resized(x: np.ndarray, which: np.ndarray, scale: np.ndarray) -> list[np.ndarray]:
    """The images x[which], each times its scale by bilinear interpolation, as bytes; what is faint is 0."""
    sizes = np.rint(scale[:, None] * np.array(x.shape[1:])).astype(int)
    made: list[Any] = [None] * len(which)
    for size in np.unique(sizes, axis=0):
        rows = np.flatnonzero((sizes == size).all(1))
        down, across = (_bilinear(n, m).astype(np.float32) for n, m in zip(x.shape[1:], size))
        grey = np.rint(down @ x[which[rows]].astype(np.float32) @ across.T).astype(np.uint8)
        for row, picture in zip(rows, np.where(grey < _FAINT, 0, grey)):
            made[row] = picture
    return made


def _bilinear(n: int, m: int) -> np.ndarray:
    """The matrix [m, n] that resamples n values to m: place i of the new ones lies at (i + 1/2) n / m - 1/2.

    >>> _bilinear(2, 4).tolist()
    [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    """
    at = np.clip((np.arange(m) + 0.5) * n / m - 0.5, 0, n - 1)
    low = np.minimum(at.astype(int), max(n - 2, 0))
    matrix = np.zeros((m, n))
    matrix[np.arange(m), low] = 1 - (at - low)
    matrix[np.arange(m), np.minimum(low + 1, n - 1)] += at - low
    return matrix
