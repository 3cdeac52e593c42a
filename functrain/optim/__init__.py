"""Optimizers, schedules and the learner."""

from functrain.optim.learner import Learner, Player
from functrain.optim.objective import Objective, objective
from functrain.optim.optimizers import SGD, Adam, AdamW, AnyOptimizer
from functrain.optim.schedules import AnySchedule, Constant, Cosine, Linear

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "AnyOptimizer",
    "AnySchedule",
    "Constant",
    "Cosine",
    "Learner",
    "Linear",
    "Objective",
    "Player",
    "objective",
]
