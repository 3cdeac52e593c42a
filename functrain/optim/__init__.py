"""Optimizers, schedules and the learner."""

from functrain.optim.adam import Adam, Adamax, AdamW, NAdam, NAdamW, RAdam, RAdamW
from functrain.optim.average import EMA, SWA, AnyAverage, NoAverage
from functrain.optim.foreign import Optax
from functrain.optim.learner import Learner, Player
from functrain.optim.objective import Objective, objective
from functrain.optim.optimizers import (
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    AnyOptimizer,
    Lamb,
    Lion,
    Muon,
    RMSprop,
    ScheduleFreeAdamW,
    ScheduleFreeSGD,
)
from functrain.optim.schedules import (
    WSD,
    AnySchedule,
    Constant,
    Cosine,
    Exponential,
    InverseSqrt,
    Linear,
    OneCycle,
    Plateau,
    Polynomial,
    Step,
)

__all__ = [
    "EMA",
    "SGD",
    "SWA",
    "WSD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "AnyAverage",
    "AnyOptimizer",
    "AnySchedule",
    "Constant",
    "Cosine",
    "Exponential",
    "InverseSqrt",
    "Lamb",
    "Learner",
    "Linear",
    "Lion",
    "Muon",
    "NAdam",
    "NAdamW",
    "NoAverage",
    "Objective",
    "OneCycle",
    "Optax",
    "Plateau",
    "Player",
    "Polynomial",
    "RAdam",
    "RAdamW",
    "RMSprop",
    "ScheduleFreeAdamW",
    "ScheduleFreeSGD",
    "Step",
    "objective",
]
