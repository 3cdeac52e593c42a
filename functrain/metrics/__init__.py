"""Pure accumulators: sums and counts that are divided once, when read."""

from functrain.metrics.accumulators import (
    Accumulator,
    Mean,
    Perplexity,
    RootMean,
    is_metric,
    mean_of,
    prefix,
    read,
    scalar_names,
    scalars,
)
from functrain.metrics.calibration import Calibration, calibration_of
from functrain.metrics.classes import Confusion, confusion_of, top_k
from functrain.metrics.moments import Moments, moments_of
from functrain.metrics.scores import Scores, scores_of

__all__ = [
    "Accumulator",
    "Calibration",
    "Confusion",
    "Mean",
    "Moments",
    "Perplexity",
    "RootMean",
    "Scores",
    "calibration_of",
    "confusion_of",
    "is_metric",
    "mean_of",
    "moments_of",
    "prefix",
    "read",
    "scalar_names",
    "scalars",
    "scores_of",
    "top_k",
]
