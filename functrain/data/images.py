"""Images in folders, one folder a class."""

import dataclasses
import os
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from functrain.config import ConfigError, Size, Text, configclass
from functrain.data.base import Normalised, Split
from functrain.data.dataset import SPLITS, Dataset, dataset, find
from functrain.data.reading import Examples, streamed
from functrain.data.streaming import Streaming

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclasses.dataclass(frozen=True)
class Images(Examples):
    """Image files with labels: x [height, width, channels] uint8, y int32.

    root, names: the folder, and the files in it.
    labels: [n].
    size, channels, crop: as `read_image` has them.
    """

    root: str
    names: tuple[str, ...]
    labels: np.ndarray
    size: tuple[int, int]
    channels: int
    crop: bool

    def __len__(self) -> int:
        return len(self.names)

    def read(self, i: int) -> dict[str, np.ndarray]:
        """One image and its label."""
        path = os.path.join(self.root, self.names[i])
        return {"x": read_image(path, path, self.channels, self.size, self.crop)[0], "y": self.labels[i]}


@configclass
class ImageFolder(Streaming, Split, Normalised):
    """Images in one folder for each class: path/CLASS/NAME.png, or path/train/CLASS/..., path/test/CLASS/..."""

    kind: Literal["image_folder"] = "image_folder"
    path: Text
    """The folder; looked for in the working directory, then where FUNCTRAIN_DATA points."""
    size: tuple[Size, Size]
    """Height and width to which every image is resized."""
    channels: Literal[1, 3] = 3
    """1 is grey, 3 is red, green and blue."""
    crop: bool = False
    """Cut each image to the shape of `size`, around its centre, before it is resized; else it is stretched."""
    class_names: tuple[str, ...] = ()
    """The classes, in the order of their numbers; taken from the training folders, sorted by name."""

    def load(self) -> Dataset:
        """x [n, height, width, channels] uint8, y [n]; files in the order of their names."""
        root = find("data.path", self.path, folder=True)
        folders = {split: root / split for split in SPLITS if (root / split).is_dir()}
        if "train" not in folders or not _inside(folders["train"], folders=True):
            folders = {"train": root}
        names = self.class_names or tuple(_inside(folders["train"], folders=True))
        if not names:
            raise ConfigError(f"data.path: {folders['train']}: holds no folders; expected one for each class")
        found = {split: self._files(root, folder, names) for split, folder in folders.items()}
        given = {split: {"at": np.arange(len(y)), "y": y} for split, (_, y) in found.items()}
        parts = self.split(given["train"], {split: given.get(split) for split in SPLITS[1:]})
        images = {}
        for split, part in parts.items():
            if part:
                files = found[split if split in found else "train"][0]
                files = tuple(files[i] for i in part["at"].tolist())
                images[split] = Images(str(root), files, part["y"], self.size, self.channels, self.crop)
        name = f"data.path: {root}"
        train = images.pop("train") if self.stream and images.get("train") else None
        memory = {split: some.read_batch(np.arange(len(some))) for split, some in images.items()}
        if train is None:
            made = dataset(name, memory, len(names))
        else:
            made = streamed(name, train, memory, len(names), {"y": train.labels})
        return self.measured(dataclasses.replace(made, found={"class_names": names}), 255.0)

    def scaled(self, batch: dict) -> dict:
        """Bytes to 0..1."""
        return batch | {"x": batch["x"].astype(jnp.float32) / 255}

    def read_inputs(self, path: str) -> np.ndarray | None:
        """x [n, height, width, channels] uint8 of an image, or of all those in a folder, sorted by name."""
        if os.path.isdir(path):
            return np.stack([self._read(file) for file in images_in(Path(path))])
        return self._read(Path(path))[None] if path.lower().endswith(SUFFIXES) else None

    def _files(self, root: Path, folder: Path, names: tuple[str, ...]) -> tuple[list[str], np.ndarray]:
        """The images of a split, by their paths in the root, and their labels [n]."""
        found = _inside(folder, folders=True)
        if unknown := [name for name in found if name not in names]:
            raise ConfigError(f"data.path: {folder / unknown[0]}: no such class; there are: {', '.join(names)[:160]}")
        inside = {name: folder.relative_to(root) / name for name in found}
        files = {name: [f"{inside[name]}/{file.name}" for file in images_in(folder / name)] for name in found}
        labels = np.repeat([names.index(name) for name in found], [len(files[name]) for name in found])
        return [file for some in files.values() for file in some], labels.astype(np.int32)

    def _read(self, path: Path) -> np.ndarray:
        return read_image(str(path), path, self.channels, self.size, self.crop)[0]


def read_image(
    name: str, file: Any, channels: int, size: tuple[int, int] | None = None, crop: bool = False
) -> tuple[np.ndarray, tuple[int, int]]:
    """An image [height, width, channels] of bytes, and the width and height that its file had.

    Args:
      name: what messages call it.
      file: its path, or an open file.
      channels: 1 is grey, 3 is red, green and blue.
      size: height and width to which it is resized; None keeps its own.
      crop: cut it to the shape of `size` first, around its centre; else it is stretched.

    Raises:
      ConfigError: there is no such file, it is no image of 8 bits, or Pillow is not installed.
    """
    image, ops = _pillow()
    try:
        with image.open(file) as opened:
            if opened.mode.startswith(("I", "F")):
                raise ValueError(f"numbers of mode {opened.mode}; expected 8 bits for each channel")
            picture = ops.exif_transpose(opened).convert("L" if channels == 1 else "RGB")
    except FileNotFoundError:
        raise ConfigError(f"{name}: no such file") from None
    except Exception as error:  # Pillow's decoders raise errors of many kinds
        raise ConfigError(f"{name}: cannot be read as an image: {' '.join(str(error).split())}") from None
    had = picture.size
    if size is not None:
        height, width = size
        if crop:
            picture = picture.crop(_centre(picture.width, picture.height, width / height))
        if picture.size != (width, height):
            picture = picture.resize((width, height), image.Resampling.BILINEAR)  # a mean over what becomes one pixel
    return np.asarray(picture, np.uint8).reshape(picture.height, picture.width, channels), had


def _centre(width: int, height: int, shape: float) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the largest part of a picture around its centre with width / height = shape."""
    w, h = max(1, min(width, round(height * shape))), max(1, min(height, round(width / shape)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _inside(folder: Path, folders: bool) -> list[str]:
    """Sorted names of the folders, or files, in a folder; hidden ones left out."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir() == folders)


def images_in(folder: Path) -> list[Path]:
    """The images in a folder, sorted by name.

    Raises:
      ConfigError: it holds none.
    """
    files = [folder / name for name in _inside(folder, folders=False) if name.lower().endswith(SUFFIXES)]
    if not files:
        raise ConfigError(f"data.path: {folder}: holds no images ({', '.join(SUFFIXES)})")
    return files


def _pillow() -> tuple[Any, Any]:
    """Pillow's Image and ImageOps: an optional dependency, imported where images are read."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise ConfigError("images need Pillow: pip install 'functrain[images]'") from None
    return Image, ImageOps
