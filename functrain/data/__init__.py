"""Data: sources (what the examples are), order (which, when), feeds (to the device)."""

from functrain.data.feed import InOrder, Memory, Stream, Whole
from functrain.data.order import order, shuffled
from functrain.data.sources import SPLITS, AnyData, Arrays, CustomData, Dataset, Digits, Npz, dataset, split_at_random

__all__ = [
    "SPLITS",
    "AnyData",
    "Arrays",
    "CustomData",
    "Dataset",
    "Digits",
    "InOrder",
    "Memory",
    "Npz",
    "Stream",
    "Whole",
    "dataset",
    "order",
    "shuffled",
    "split_at_random",
]
