"""ArrayRecord files: records at random access, each an example.

A record is arrays one after another, each as a file of NumPy's format .npy has it, of which nothing is pickled: first
the names of the others, in order, then these. `x` is an input, or `image` the bytes of an image file (JPEG, PNG ...),
which becomes one; with them `y`, `weight`, `mask`. `write` makes such files.
"""

import ast
import dataclasses
import functools
import io
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from functrain.config import ConfigError, Count, Size, Text, configclass
from functrain.data.base import Normalised, Split
from functrain.data.dataset import SPLITS, Dataset, dataset, find
from functrain.data.images import read_image
from functrain.data.reading import Examples, narrowed, streamed
from functrain.data.streaming import Streaming

SUFFIXES = (".array_record", ".arrayrecord")
_MAGIC = b"\x93NUMPY"


@configclass
class ArrayRecord(Streaming, Split, Normalised):
    """Records of ArrayRecord files, as `functrain.data.array_record.write` makes them: arrays, or encoded images."""

    kind: Literal["array_record"] = "array_record"
    path: Text
    """The file, or a folder of them (.array_record, sorted by name); looked for in the working directory, then where
    FUNCTRAIN_DATA points."""
    validation_path: str = ""
    """Records to choose by; empty takes some of the first path's."""
    test_path: str = ""
    """Records to be read once; empty takes some of the first path's."""
    size: tuple[Size, Size] | None = None
    """Of encoded images: height and width to which each is resized; it may be left out where all have one size."""
    channels: Literal[1, 3] = 3
    """Of encoded images: 1 is grey, 3 is red, green and blue."""
    crop: bool = False
    """Of encoded images: cut each to the shape of `size` first, around its centre; else it is stretched."""
    classes: Count = 0
    """How many classes integer labels have; 0 reads every label once, and takes the largest training label."""

    def load(self) -> Dataset:
        """x, y and what else the records hold; of encoded images x [n, height, width, channels] uint8."""
        files = {"train": Records(self, "data.path", self.path)}
        for split in SPLITS[1:]:
            if path := getattr(self, f"{split}_path"):
                files[split] = Records(self, f"data.{split}_path", path)
        given = {split: {"record": np.arange(len(some))} for split, some in files.items()}
        parts = {s: part for s, part in self.split(given.pop("train"), given).items() if part}
        some = {s: RecordRows(files.get(s, files["train"]), part["record"], self.classes) for s, part in parts.items()}
        name, train = f"data.path: {self.path}", some.pop("train", None)
        if train is None:
            raise ConfigError(f"{name}: no training examples")
        classes = self.classes or train.classes_found()
        memory = {split: rows.read_batch(np.arange(len(rows))) for split, rows in some.items()}
        if self.stream:
            train.classes = classes
            made = streamed(name, train, memory, classes)
        else:
            made = dataset(name, memory | {"train": train.read_batch(np.arange(len(train)))}, classes)
        bytes_ = made.train["x"].dtype == np.uint8
        return self.measured(dataclasses.replace(made, found={"classes": classes}), 255.0 if bytes_ else 1.0)

    def scaled(self, batch: dict) -> dict:
        """Bytes to 0..1; other inputs as they are."""
        return batch | ({"x": batch["x"].astype(jnp.float32) / 255} if batch["x"].dtype == jnp.uint8 else {})


class Records:
    """The records of one or more files, one after the other.

    Raises:
      ConfigError: there is no file, or one cannot be read.
    """

    def __init__(self, source: ArrayRecord, key: str, path: str):
        if path.endswith(SUFFIXES):
            files = [find(key, path)]
        else:
            files = sorted(p for p in find(key, path, folder=True).iterdir() if p.name.endswith(SUFFIXES))
        self.where = f"{key}: {path}"
        if not files:
            raise ConfigError(f"{self.where}: holds no files {' or '.join(SUFFIXES)}")
        self._files = [str(file) for file in files]
        self._image = (source.channels, source.size, source.crop)
        self._begin()
        self._ends = np.cumsum([self._reader(i).num_records() for i in range(len(files))])
        if not self._ends[-1]:
            raise ConfigError(f"{self.where}: no records")

    def _begin(self) -> None:
        self._readers: dict[int, Any] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_readers", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _reader(self, i: int) -> Any:
        with self._lock:
            if i not in self._readers:
                self._readers[i] = _opened(self.where, self._files[i])
            return self._readers[i]

    def bytes_of(self, records: np.ndarray) -> list[bytes]:
        """Records as they are in the files."""
        of = np.searchsorted(self._ends, records, side="right")
        found: list[bytes] = [b""] * len(records)
        for i in np.unique(of).tolist():
            here = np.flatnonzero(of == i).tolist()
            first = self._ends[i - 1] if i else 0
            try:
                read = self._reader(i).read([int(records[k] - first) for k in here])
            except (RuntimeError, ValueError, IndexError) as error:
                why = " ".join(str(error).split())
                raise ConfigError(f"{self.where}: {self._files[i]}: cannot be read: {why}") from None
            for k, record in zip(here, read):
                found[k] = record
        return found

    def example(self, record: int, data: bytes) -> dict[str, np.ndarray]:
        """A record's arrays, its image decoded."""
        name = f"{self.where}[{record}]"
        arrays = unpack(name, data)
        if "image" in arrays:
            channels, size, crop = self._image
            arrays["x"] = read_image(name, io.BytesIO(arrays.pop("image").tobytes()), channels, size, crop)[0]
        if "x" not in arrays:
            raise ConfigError(f"{name}: holds {', '.join(arrays) or 'nothing'}; expected x or image")
        return {key: narrowed(array) for key, array in arrays.items()}


class RecordRows(Examples):
    """Some records as examples.

    records: [n] which.
    classes: the labels y are below it; 0 does not ask.
    """

    def __init__(self, files: Records, records: np.ndarray, classes: int):
        self._files, self._records, self.classes = files, records, classes

    def __len__(self) -> int:
        return len(self._records)

    def read(self, i: int) -> dict[str, np.ndarray]:
        """One record."""
        return {name: array[0] for name, array in self.read_batch(np.array([i])).items()}

    def read_batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Records of one call to each file."""
        records = self._records[indices]
        found = zip(records.tolist(), self._files.bytes_of(records))
        rows = [self._files.example(record, data) for record, data in found]
        self._check(records, rows)
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def _check(self, records: np.ndarray, rows: list[dict[str, np.ndarray]]) -> None:
        shapes = [{name: f"{array.dtype} {list(array.shape)}" for name, array in row.items()} for row in rows]
        for record, row, shape in zip(records.tolist(), rows, shapes):
            where = f"{self._files.where}[{record}]"
            if shape != shapes[0]:
                had, other = (", ".join(f"{name} {of}" for name, of in s.items()) for s in (shape, shapes[0]))
                raise ConfigError(f"{where}: {had}; record {records[0]} has {other}; expected all alike")
            if self.classes and "y" in row and (row["y"].min() < 0 or row["y"].max() >= self.classes):
                raise ConfigError(f"{where}: label {row['y']}; expected 0 to {self.classes - 1}")

    def classes_found(self) -> int:
        """One more than the largest label y, where all are whole numbers; else 0. It reads every record."""
        most = -1
        for start in range(0, len(self), 1024):
            records = self._records[start : start + 1024]
            for record, data in zip(records.tolist(), self._files.bytes_of(records)):
                y = unpack(f"{self._files.where}[{record}]", data, only="y").get("y")
                if y is None or y.ndim or y.dtype.kind not in "iu":
                    return 0
                most = max(most, int(y))
        return most + 1


def write(path: str | Path, examples: Iterable[Mapping[str, Any]]) -> int:
    """Examples as an ArrayRecord file, one record each; how many there are.

    Args:
      path: should end in .array_record.
      examples: arrays by name: x, or `image`, the bytes of an image file; y, weight, mask.

    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/a.array_record"
    >>> write(path, ({"x": np.full(3, i), "y": i % 2} for i in range(5)))
    5
    >>> ArrayRecord(path=path, validation=0.0, test=0.0).load().train["x"].shape
    (5, 3)
    """
    writer, count = _module().ArrayRecordWriter(str(path), "group_size:1"), 0
    for example in examples:
        writer.write(pack(example))
        count += 1
    writer.close()
    return count


def pack(example: Mapping[str, Any]) -> bytes:
    """An example as a record.

    >>> {name: a.tolist() for name, a in unpack("it", pack({"x": [1, 2], "y": 0})).items()}
    {'x': [1, 2], 'y': 0}
    """
    arrays = {n: np.frombuffer(a, np.uint8) if isinstance(a, bytes) else np.asarray(a) for n, a in example.items()}
    out = io.BytesIO()
    for array in (np.array(list(arrays)), *arrays.values()):
        np.lib.format.write_array(out, np.ascontiguousarray(array).reshape(array.shape), (1, 0), allow_pickle=False)
    return out.getvalue()


def unpack(name: str, record: bytes, only: str = "") -> dict[str, np.ndarray]:
    """The arrays of a record, as views of it.

    Args:
      name: what messages call it.
      record: as `pack` makes it.
      only: one array that is wanted; empty is all.

    Raises:
      ConfigError: it is none.
    """
    try:
        names, at = _array(record, 0)
        arrays = {}
        for key in names.tolist():
            array, at = _array(record, at)
            if only in ("", key):
                arrays[key] = array
    except (ValueError, TypeError, SyntaxError, KeyError, IndexError) as error:
        raise ConfigError(f"{name}: no record of .npy arrays: {' '.join(str(error).split())}") from None
    return arrays


def _array(record: bytes, at: int) -> tuple[np.ndarray, int]:
    """The array at a byte of a record, and where it ends."""
    if record[at : at + 8] != _MAGIC + b"\x01\x00":
        raise ValueError(f"byte {at} begins no .npy of version 1.0")
    start = at + 10 + int.from_bytes(record[at + 8 : at + 10], "little")
    dtype, shape, count = _header(record[at + 10 : start])
    end = start + count * dtype.itemsize
    return np.frombuffer(record, dtype, count, start).reshape(shape), end


@functools.lru_cache(1024)
def _header(text: bytes) -> tuple[np.dtype, tuple[int, ...], int]:
    """(dtype, shape, numbers) of a header; few differ in a file, and reading one costs more than the array."""
    header = ast.literal_eval(text.decode("latin1"))
    dtype, shape = np.dtype(header["descr"]), header["shape"]
    if dtype.hasobject or header["fortran_order"]:
        raise ValueError(f"dtype {dtype}, fortran_order {header['fortran_order']}; expected numbers, row by row")
    return dtype, shape, int(np.prod(shape, dtype=np.int64))


def _opened(where: str, file: str) -> Any:
    try:
        return _module().ArrayRecordReader(file, options="readahead_buffer_size:0", file_reader_buffer_size=32768)
    except (RuntimeError, ValueError, OSError) as error:
        raise ConfigError(f"{where}: {file}: cannot be read: {' '.join(str(error).split())}") from None


def _module() -> Any:
    """array_record: an optional dependency, imported where such files are read or written."""
    try:
        from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError:
        raise ConfigError("ArrayRecord needs array_record: pip install 'functrain[stream]'") from None
    return array_record_module
