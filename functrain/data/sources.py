"""Sources that need no format of their own: the digits in the package, .npz files, your own function, arrays."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from functrain import custom
from functrain.config import ConfigError, Count, Fraction, Positive, Text, configclass
from functrain.data.adapt import from_splits
from functrain.data.base import Normalised, Source, Split
from functrain.data.dataset import SPLITS, Dataset, dataset, find, read_npz


@configclass
class Digits(Split):
    """1,797 images of handwritten digits, 8 x 8 (UCI; part of the package, nothing to download)."""

    kind: Literal["digits"] = "digits"
    validation: Fraction = 0.15
    """Share of the images kept apart to choose by."""
    test: Fraction = 0.15
    """Share of the images kept apart to be read once, at the end."""

    def load(self) -> Dataset:
        """x [n, 8, 8] uint8 in 0..16, y [n] in 0..9."""
        with np.load(Path(__file__).parent / "files" / "digits.npz") as file:
            arrays = {"x": file["x"], "y": file["y"]}
        return dataset("digits", self.split(arrays), classes=10)

    def scaled(self, batch: dict) -> dict:
        """Pixels to 0..1."""
        return batch | {"x": batch["x"].astype(jnp.float32) / 16}


@configclass
class Npz(Split, Normalised):
    """Your own arrays in a NumPy .npz file: x and y, or x_train, y_train, x_validation, ... x_test, y_test."""

    kind: Literal["npz"] = "npz"
    path: Text
    """The file; looked for in the working directory, then where FUNCTRAIN_DATA points."""
    classes: Count = 0
    """How many classes integer labels have; 0 takes the largest training label."""
    scale: Positive = 1.0
    """What x is multiplied by, on the device, before it is normalised; 0.00392156862745098 (1/255) for bytes."""

    def load(self) -> Dataset:
        """The file's arrays; pickled objects are refused."""
        path = find("data.path", self.path)
        try:
            arrays = read_npz(path)
        except ConfigError as error:
            raise ConfigError(f"data.path: {error}") from None
        splits = {s: {k.removesuffix(f"_{s}"): a for k, a in arrays.items() if k.endswith(f"_{s}")} for s in SPLITS}
        if not splits["train"]:
            splits["train"] = {k: a for k, a in arrays.items() if k in ("x", "y", "mask", "weight")}
        if "x" not in splits["train"]:
            raise ConfigError(f"data.path: {path} holds {', '.join(arrays) or 'nothing'}; expected x or x_train")
        name = f"data.path: {path}"
        whole = dataset(name, {"train": splits["train"]}, self.classes)  # checked before rows change their index
        parts = self.split(whole.train, {s: splits[s] for s in ("validation", "test")})
        return self.measured(dataset(name, parts, self.classes or whole.classes), 1 / self.scale)

    def scaled(self, batch: dict) -> dict:
        """x times `scale`."""
        return batch if self.scale == 1.0 else batch | {"x": batch["x"].astype(jnp.float32) * self.scale}


@configclass
class CustomData(Source):
    """Your own source: `target` is called with `args` and returns a dict of splits, each a dict of arrays."""

    kind: Literal["custom"] = "custom"
    target: Text
    """What to call, as "package.module:name"; looked for in the working directory too."""
    args: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Keyword arguments, checked against the signature."""
    classes: Count = 0
    """How many classes integer labels have; 0 takes the largest training label."""

    def load(self) -> Dataset:
        """What `target` returns, checked."""
        made = custom.call("data", self.target, self.args, {})
        if isinstance(made, Dataset):
            made, classes = {split: made.split(split) for split in SPLITS}, made.classes or self.classes
        else:
            classes = self.classes
        if not isinstance(made, dict) or not all(isinstance(v, dict) for v in made.values()):
            try:
                made = from_splits(made)  # examples one by one, or Hugging Face's
            except ConfigError as error:
                raise ConfigError(f"data.target: {self.target}: {error}") from None
        return dataset(f"data.target: {self.target}", made, classes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arrays(Source):
    """Arrays at hand, for `functrain.fit`; no config text can name them."""

    examples: Dataset = dataclasses.field(hash=False)

    def load(self) -> Dataset:
        """The arrays."""
        return self.examples
