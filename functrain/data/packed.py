"""Encoded images (JPEG, PNG ...), one after another in the arrays of one .npz file."""

import dataclasses
import io
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import jax.numpy as jnp
import numpy as np

from functrain.config import ConfigError, Text, configclass
from functrain.data.base import Normalised, Split
from functrain.data.dataset import SPLITS, Dataset, dataset, find, read_npz
from functrain.data.images import read_image

_AT_ONCE = 256
"""Images that a thread decodes at a time."""


@configclass
class PackedImages(Split, Normalised):
    """Encoded images in one .npz file: train_jpeg, train_offsets, train_y; validation and test likewise.

    Image i is the bytes jpeg[offsets[i] : offsets[i + 1]], a file of any format that Pillow knows; `offsets` has one
    number more than there are images. `class_names`, where the file has it, says how many classes there are.
    """

    kind: Literal["packed_images"] = "packed_images"
    path: Text = "cifar10-jpeg/cifar10_jpeg_bytes.npz"
    """The file; looked for in the working directory, then where FUNCTRAIN_DATA points."""
    channels: Literal[1, 3] = 3
    """1 is grey, 3 is red, green and blue."""
    class_names: tuple[str, ...] = ()
    """The classes, in the order of their numbers; taken from the file."""

    def load(self) -> Dataset:
        """x [n, height, width, channels] uint8, y [n]; all images of one size."""
        path = find("data.path", self.path)
        try:
            arrays = read_npz(path)
        except ConfigError as error:
            raise ConfigError(f"data.path: {error}") from None
        name = f"data.path: {path}"
        names = self.class_names or tuple(map(str, np.ravel(arrays.get("class_names", []))))
        there = ["train"] + [split for split in SPLITS[1:] if f"{split}_jpeg" in arrays]
        whole = dataset(name, {split: self._read(name, arrays, split) for split in there}, len(names))
        made = dataset(name, self.split(whole.train, {s: whole.split(s) for s in SPLITS[1:]}), whole.classes)
        return self.measured(dataclasses.replace(made, found={"class_names": names}), 255.0)

    def scaled(self, batch: dict) -> dict:
        """Bytes to 0..1."""
        return batch | {"x": batch["x"].astype(jnp.float32) / 255}

    def _read(self, name: str, arrays: dict[str, np.ndarray], split: str) -> dict[str, np.ndarray]:
        """The images and labels of a split."""
        keys = [f"{split}_{what}" for what in ("jpeg", "offsets", "y")]
        if missing := [key for key in keys if key not in arrays]:
            raise ConfigError(f"{name}: holds {', '.join(arrays) or 'nothing'}; expected {missing[0]}")
        data, offsets, y = (arrays[key] for key in keys)
        _check(f"{name}: {split}", data, offsets, y)
        return {"x": decode(f"{name}: {split}", data, offsets, self.channels), "y": y}


def _check(name: str, data: np.ndarray, offsets: np.ndarray, y: np.ndarray) -> None:
    if data.ndim != 1 or data.dtype != np.uint8:
        raise ConfigError(f"{name}_jpeg: {data.dtype} {list(data.shape)}; expected uint8, one axis")
    if offsets.ndim != 1 or offsets.dtype.kind not in "iu" or len(offsets) < 2:
        raise ConfigError(
            f"{name}_offsets: {offsets.dtype} {list(offsets.shape)}; expected integers, one axis, 2 or more"
        )
    if y.ndim != 1 or y.dtype.kind not in "iu" or len(y) != len(offsets) - 1:
        raise ConfigError(
            f"{name}_y: {y.dtype} {list(y.shape)}; expected integers, one for each of the {len(offsets) - 1} images"
        )
    offsets = offsets.astype(np.int64)
    if len(wrong := np.flatnonzero(np.diff(offsets) <= 0)):
        i = wrong[0]
        raise ConfigError(f"{name}_offsets[{i + 1}]: found {offsets[i + 1]}; expected more than {offsets[i]} before it")
    if offsets[0] != 0 or offsets[-1] != len(data):
        raise ConfigError(
            f"{name}_offsets: from {offsets[0]} to {offsets[-1]}; expected from 0 to {len(data)}, the bytes there are"
        )


def decode(name: str, data: np.ndarray, offsets: np.ndarray, channels: int) -> np.ndarray:
    """The images [n, height, width, channels] uint8 that follow one another in `data`, decoded by several threads.

    Args:
      name: what messages call them.
      data: [bytes] uint8.
      offsets: [n + 1]: where each begins, and where the last ends.
      channels: 1 or 3.

    Raises:
      ConfigError: Pillow is missing; an image is damaged, or its size is not that of the first; with its index.
    """
    raw, at = data.tobytes(), offsets.tolist()

    def read(i: int) -> np.ndarray:
        return read_image(f"{name}[{i}]", io.BytesIO(raw[at[i] : at[i + 1]]), channels)[0]

    first = read(0)
    images = np.empty((len(at) - 1, *first.shape), np.uint8)

    def fill(start: int) -> None:
        for i in range(start, min(start + _AT_ONCE, len(images))):
            one = read(i)
            if one.shape != first.shape:
                sizes = ["x".join(map(str, x.shape[:2])) for x in (one, first)]
                raise ConfigError(
                    f"{name}[{i}]: height x width {sizes[0]}; the first has {sizes[1]}; expected one size"
                )
            images[i] = one

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        for _ in threads.map(fill, range(0, len(images), _AT_ONCE)):
            pass  # raises what `fill` raised: of several mistakes the first
    return images
