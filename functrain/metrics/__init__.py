"""Pure accumulators: sums and counts that are divided once, when read."""

from functrain.metrics.accumulators import Confusion, Mean, confusion_of, is_metric, mean_of, read, scalars

__all__ = ["Confusion", "Mean", "confusion_of", "is_metric", "mean_of", "read", "scalars"]
