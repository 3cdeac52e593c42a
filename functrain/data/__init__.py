"""Data: sources (what the examples are), order (which, when), feeds (to the device)."""

from functrain.config import kinds
from functrain.data.adapt import from_iterable, from_splits
from functrain.data.array_record import ArrayRecord
from functrain.data.bucketing import Bucketed
from functrain.data.dataset import SPLITS, Dataset, dataset, fold_at_random, split_at_random
from functrain.data.detection import Coco, Voc
from functrain.data.domains import MnistDomains
from functrain.data.feed import Augmented, InOrder, Memory, Mixed, Stream, Whole, Windows, blocks
from functrain.data.few_labels import FewLabels
from functrain.data.idx import Idx
from functrain.data.images import ImageFolder
from functrain.data.instructions import Instructions, PythonDocstrings
from functrain.data.mixture import Mixture
from functrain.data.named import Known
from functrain.data.order import order, shuffled
from functrain.data.packed import PackedImages
from functrain.data.pairs import MnistPairs
from functrain.data.parallel import ParallelText
from functrain.data.parquet import Parquet
from functrain.data.questions import Questions
from functrain.data.random import Random
from functrain.data.ratings import Ratings
from functrain.data.reading import Examples
from functrain.data.scenes import MnistScenes
from functrain.data.sentences import LabelledText, Polarity
from functrain.data.sounds import JoinedSounds, SoundFiles
from functrain.data.sources import Arrays, CustomData, Digits, Npz
from functrain.data.table import Csv
from functrain.data.text import PythonSource, TextFile
from functrain.data.token_file import TokenFile

AnyData = kinds(
    Digits,
    Known,
    Idx,
    Csv,
    Parquet,
    ArrayRecord,
    Ratings,
    TextFile,
    PythonSource,
    TokenFile,
    Instructions,
    PythonDocstrings,
    Polarity,
    LabelledText,
    ParallelText,
    Questions,
    ImageFolder,
    PackedImages,
    MnistScenes,
    MnistPairs,
    MnistDomains,
    FewLabels,
    Voc,
    Coco,
    SoundFiles,
    JoinedSounds,
    Npz,
    Mixture,
    Random,
    CustomData,
)
"""[data]: every source a config can name."""

__all__ = [
    "SPLITS",
    "AnyData",
    "ArrayRecord",
    "Arrays",
    "Augmented",
    "Bucketed",
    "Coco",
    "Csv",
    "CustomData",
    "Dataset",
    "Digits",
    "Examples",
    "Idx",
    "ImageFolder",
    "InOrder",
    "Instructions",
    "JoinedSounds",
    "Known",
    "LabelledText",
    "Memory",
    "Mixed",
    "Mixture",
    "MnistDomains",
    "MnistPairs",
    "MnistScenes",
    "Npz",
    "PackedImages",
    "ParallelText",
    "Parquet",
    "Polarity",
    "PythonDocstrings",
    "PythonSource",
    "Questions",
    "Random",
    "Ratings",
    "SoundFiles",
    "Stream",
    "TextFile",
    "TokenFile",
    "Voc",
    "Whole",
    "Windows",
    "blocks",
    "dataset",
    "fold_at_random",
    "from_iterable",
    "from_splits",
    "order",
    "shuffled",
    "split_at_random",
]
