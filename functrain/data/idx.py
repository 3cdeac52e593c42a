"""IDX, the format of MNIST: arrays in a file of their own, compressed by gzip or not.

A file is 0, 0, a byte for the type, a byte for the number of axes, the length of each axis (4 bytes, big-endian) and
the numbers, big-endian (Y. LeCun, C. Cortes, C. Burges, "The MNIST database", at its end).
"""

import dataclasses
import gzip
import math
import os
import zlib
from pathlib import Path
from typing import IO, Any, Literal

import jax.numpy as jnp
import numpy as np

from functrain.config import ConfigError, Count, NonNegative, Text, configclass
from functrain.data.base import Normalised, Split
from functrain.data.dataset import SPLITS, Dataset, dataset, find

_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MOST_PACKED = 1100
"""gzip makes a thousand bytes out of one at most; a header that wants more is wrong."""
_PIECE = 1 << 20


@configclass
class Idx(Split, Normalised):
    """Images and labels in IDX files, the format of MNIST (.gz or not)."""

    kind: Literal["idx"] = "idx"
    images: Text
    """The file of the training inputs, of any shape; looked for in the working directory, then in FUNCTRAIN_DATA."""
    labels: str = ""
    """The file of their labels; empty is none."""
    validation_images: str = ""
    """The inputs to choose by; empty takes some of the training inputs."""
    validation_labels: str = ""
    """Their labels."""
    test_images: str = ""
    """The inputs to be read once; empty takes some of the training inputs."""
    test_labels: str = ""
    """Their labels."""
    classes: Count = 0
    """How many classes integer labels have; 0 takes the largest training label."""
    divide_by: NonNegative = 0.0
    """What x is divided by, on the device, before it is normalised; 0 is 255 for bytes, and 1 for other numbers."""

    def __post_init__(self):
        super().__post_init__()
        for split in ("validation", "test"):
            images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
            if bool(labels) != bool(images and self.labels):
                what = "missing" if images and self.labels else f'found "{labels}"'
                raise ValueError(f"{split}_labels: {what}; expected a file where there are {split}_images and labels")

    def load(self) -> Dataset:
        """x [n, ...] as in the file, y [n]."""
        given = {"train": self._read("images", "labels")}
        for split in ("validation", "test"):
            if getattr(self, f"{split}_images"):
                given[split] = self._read(f"{split}_images", f"{split}_labels")
        name = f"data.images: {self.images}"
        whole = dataset(name, given, self.classes)  # checked before rows change their index
        parts = self.split(whole.train, {s: whole.split(s) for s in SPLITS[1:]})
        divide_by = self.divide_by or (255.0 if whole.train["x"].dtype == np.uint8 else 1.0)
        split = dataset(name, parts, whole.classes)
        return self.measured(dataclasses.replace(split, found={"divide_by": divide_by}), divide_by)

    def scaled(self, batch: dict) -> dict:
        """x over `divide_by`."""
        divide_by = self.divide_by or (255.0 if batch["x"].dtype == jnp.uint8 else 1.0)
        return batch | {"x": batch["x"].astype(jnp.float32) / divide_by}

    def read_inputs(self, path: str) -> np.ndarray | None:
        """The array of an IDX file, by its beginning."""
        if not os.path.isfile(path):
            return None
        with open(path, "rb") as file:
            begin = file.read(2)
        return read_idx(path, Path(path)) if begin in (b"\x1f\x8b", b"\0\0") else None

    def _read(self, images: str, labels: str) -> dict[str, Any]:
        where = f"data.{images}"
        path = find(where, getattr(self, images))
        arrays = {"x": read_idx(f"{where}: {path}", path)}
        if getattr(self, labels):
            where = f"data.{labels}"
            other = find(where, getattr(self, labels))
            arrays["y"] = read_idx(f"{where}: {other}", other)
            if len(arrays["y"]) != len(arrays["x"]):
                n, m = len(arrays["y"]), len(arrays["x"])
                raise ConfigError(f"{where}: {other}: holds {n} labels; {path} has {m} examples")
        return arrays


def read_idx(name: str, path: Path) -> np.ndarray:
    """The array of an IDX file, compressed by gzip or not (told by its content), in the machine's byte order.

    Args:
      name: what messages call the file.
      path: the file.

    Raises:
      ConfigError: it is no such file, cut short, damaged, or has more or fewer numbers than its header says.
    """
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            room = os.path.getsize(path) * (_MOST_PACKED if packed else 1)
            if not packed:
                return _parse(name, file, room)
            with gzip.open(file) as unpacked:
                return _parse(name, unpacked, room)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        what = "cut short" if isinstance(error, EOFError) else f"damaged: {error}"
        raise ConfigError(f"{name}: the gzip file is {what}") from None
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror or error}") from None


def _parse(name: str, file: IO[bytes] | gzip.GzipFile, room: int) -> np.ndarray:
    """The array; `room` is how many bytes there can be at most."""
    begin = file.read(4)
    if len(begin) < 4 or begin[:2] != b"\0\0" or begin[2] not in _TYPES or begin[3] == 0:
        raise ConfigError(f"{name}: begins with {begin.hex(' ') or 'nothing'}; no IDX file (00 00, a type, its axes)")
    lengths = file.read(4 * begin[3])
    if len(lengths) < 4 * begin[3]:
        raise ConfigError(f"{name}: ends in its header, which says {begin[3]} axes")
    shape = tuple(np.frombuffer(lengths, ">u4").tolist())
    dtype = np.dtype(_TYPES[begin[2]])
    size = math.prod(shape) * dtype.itemsize
    says = f"its header says {'x'.join(map(str, shape))} {dtype.newbyteorder('=')}, {size} bytes"
    if size > room:
        raise ConfigError(f"{name}: {says}; the file is too short for that")
    data = bytearray()
    while piece := file.read(min(_PIECE, size + 1 - len(data))):  # never more than it says
        data += piece
    if len(data) != size:
        raise ConfigError(f"{name}: {says}; found {len(data) if len(data) < size else 'more'}")
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)
