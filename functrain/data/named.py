"""The source of known sets: a name in place of files and of how they are read."""

import dataclasses
from typing import Any, Literal

from functrain import config as configs
from functrain.config import ConfigError, Count, Fraction, Size, configclass
from functrain.data.base import Source
from functrain.data.cifar import CifarBinary
from functrain.data.dataset import Dataset
from functrain.data.idx import Idx
from functrain.data.known import KNOWN, folders, locate
from functrain.data.table import Csv
from functrain.data.text import TextFile

READERS: dict[str, type] = {"idx": Idx, "csv": Csv, "text": TextFile, "cifar_binary": CifarBinary}
"""The sources that read the known sets, by kind."""


@configclass
class Known(Source):
    """A data set known by name (`functrain data list`), once `functrain data get NAME` has downloaded it."""

    kind: Literal["known"] = "known"
    name: Literal[
        "mnist",
        "fashion_mnist",
        "kmnist",
        "cifar10",
        "cifar100",
        "tiny_shakespeare",
        "names",
        "text8",
        "enwik8",
        "adult",
        "california_housing",
        "penguins",
    ]
    """Which one."""
    validation: Fraction | None = None
    """Share of the examples kept apart to choose by, where the files have none for that."""
    test: Fraction | None = None
    """Share kept apart to be read once, at the end, where the files have none for that."""
    split_seed: Count | None = None
    """Which examples go where, where they are split at random."""
    folds: Count | None = None
    """For k-fold cross-validation: k."""
    fold: Count | None = None
    """Which of the folds is the test, from 0."""
    normalise: Literal["none", "standard", "range"] | None = None
    """standard: less the mean, over the deviation; range: to 0..1."""
    block: Size | None = None
    """Tokens in an example, of a text."""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Any other setting of the source that reads the set."""
    found: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What the training part told (a mean, a vocabulary); written into a run's config."""

    def __post_init__(self):
        try:
            _ = self.source
        except ConfigError as error:
            raise ValueError(str(error)) from None

    @property
    def source(self) -> Any:
        """The source that reads the set, with the settings of the set, of this config, and what was found."""
        return self._source({})

    def _source(self, places: dict[str, str]) -> Any:
        """`source`, with the files at these places."""
        known = KNOWN[self.name].settings
        own = ("batch_size", "validation", "test", "split_seed", "folds", "fold", "normalise", "block")
        given = {key: value for key in own if (value := getattr(self, key)) is not None}
        data = {**known, **given, **self.settings, **self.found}
        if data["kind"] != known["kind"]:
            raise ConfigError(f"settings: {self.name} is read by the source {known['kind']}, and by no other")
        data = {key: _placed(value, places) for key, value in data.items()}
        return configs.parse(READERS[known["kind"]], configs.Source(data, f"{self.name} ({known['kind']})"))

    def load(self) -> Dataset:
        """The examples, from files in the working directory, the folder of FUNCTRAIN_DATA, or where `get` put them.

        Raises:
          ConfigError: a file is missing, or is not of the size that it has in the set.
        """
        places = {}
        for file in KNOWN[self.name].files:
            place = locate(file)
            if place is None:
                looked = ", ".join(str(folder)[:90] for folder in folders())
                raise ConfigError(
                    f"data.name: {self.name} is not here; get it with: functrain data get {self.name} "
                    f"({file.path} was looked for in {looked})"
                )
            places[file.path] = str(place)
        dataset = self._source(places).load()
        return dataclasses.replace(dataset, found={"found": {**self.found, **configs.to_data(dataset.found)}})

    def scaled(self, batch: dict) -> dict:
        """As the set's own source has it."""
        return self.source.scaled(batch)

    def normalised(self, batch: dict) -> dict:
        """As the set's own source has it."""
        return self.source.normalised(batch)

    @property
    def streamed(self) -> bool:
        """As the set's own source has it."""
        return self.source.streamed

    def feed(self, dataset: Dataset, arrays: Any, seed: int) -> Any:
        """As the set's own source has it."""
        return self.source.feed(dataset, arrays, seed)

    def read_inputs(self, path: str) -> Any:
        """What the set's own source makes of a file of inputs; None where it makes nothing of it."""
        read = getattr(self.source, "read_inputs", None)
        return None if read is None else read(path)


def _placed(value: Any, places: dict[str, str]) -> Any:
    if isinstance(value, list):
        return [_placed(v, places) for v in value]
    return places.get(value, value) if isinstance(value, str) else value
