"""How exact a gradient is in low precision: measured, taken apart, and chosen so that it stays below a bound.

gradient(task)   (train_state, batch) -> the gradient of the task's one player, as its learner has it
loss_of(...)     a batch's loss as a function of the parameters
watch(task)      (train_state, batch) -> how far that is from the gradient in float32, as a metric
measure(...)     the gradient by a policy beside those in float32 and float64: errors by parameters and primitives
search(...)      the cheapest dtypes for which the error of the gradient stays below a bound
"""

from functrain.precise.gradient import gradient, in_float64, loss_of, relative, watch
from functrain.precise.measure import Group, Measured, Primitives, measure
from functrain.precise.search import Choice, Part, search

__all__ = [
    "Choice",
    "Group",
    "Measured",
    "Part",
    "Primitives",
    "gradient",
    "in_float64",
    "loss_of",
    "measure",
    "relative",
    "search",
    "watch",
]
