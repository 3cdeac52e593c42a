"""Pure accumulators: sums and counts that are divided once, when read."""

from functrain.metrics.accumulators import (
    Accumulator,
    Mean,
    Perplexity,
    RootMean,
    Total,
    finite,
    is_metric,
    mean_of,
    prefix,
    read,
    scalar_names,
    scalars,
)
from functrain.metrics.calibration import Calibration, calibration_of
from functrain.metrics.classes import Confusion, confusion_of, top_k
from functrain.metrics.detection import Detections
from functrain.metrics.edits import Errors, character_error_rate, edits, word_error_rate
from functrain.metrics.generated import Generated, frechet_distance
from functrain.metrics.moments import Moments, moments_of
from functrain.metrics.overlap import Overlap, overlap_of
from functrain.metrics.ranking import ranking_of
from functrain.metrics.rouge import Rouge, rouge, rouge_of
from functrain.metrics.rows import Rows, join
from functrain.metrics.scores import Scores, scores_of
from functrain.metrics.text import Texts, texts_of
from functrain.metrics.verification import Verification

__all__ = [
    "Accumulator",
    "Calibration",
    "Confusion",
    "Detections",
    "Errors",
    "Generated",
    "Mean",
    "Moments",
    "Overlap",
    "Perplexity",
    "RootMean",
    "Rouge",
    "Rows",
    "Scores",
    "Texts",
    "Total",
    "Verification",
    "calibration_of",
    "character_error_rate",
    "confusion_of",
    "edits",
    "finite",
    "frechet_distance",
    "is_metric",
    "join",
    "mean_of",
    "moments_of",
    "overlap_of",
    "prefix",
    "ranking_of",
    "read",
    "rouge",
    "rouge_of",
    "scalar_names",
    "scalars",
    "scores_of",
    "texts_of",
    "top_k",
    "word_error_rate",
]
