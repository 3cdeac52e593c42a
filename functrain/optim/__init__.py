"""Optimizers, schedules and the learner."""

from functrain.optim.adam import Adam, Adamax, AdamW, NAdam, NAdamW, RAdam, RAdamW
from functrain.optim.average import EMA, SWA, AnyAverage, NoAverage
from functrain.optim.cma_es import CMAES
from functrain.optim.foreign import Optax
from functrain.optim.gradient_free import ParticleSwarm, SimulatedAnnealing
from functrain.optim.kfac import KFAC
from functrain.optim.learner import Learner, Player
from functrain.optim.minimum import Minimum, minimise
from functrain.optim.objective import Objective, Scored, objective
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
    RowwiseAdagrad,
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
from functrain.optim.second_order import LBFGS, GaussNewton, Newton, NewtonCG

__all__ = [
    "CMAES",
    "EMA",
    "KFAC",
    "LBFGS",
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
    "GaussNewton",
    "InverseSqrt",
    "Lamb",
    "Learner",
    "Linear",
    "Lion",
    "Minimum",
    "Muon",
    "NAdam",
    "NAdamW",
    "Newton",
    "NewtonCG",
    "NoAverage",
    "Objective",
    "OneCycle",
    "Optax",
    "ParticleSwarm",
    "Plateau",
    "Player",
    "Polynomial",
    "RAdam",
    "RAdamW",
    "RMSprop",
    "RowwiseAdagrad",
    "ScheduleFreeAdamW",
    "ScheduleFreeSGD",
    "Scored",
    "SimulatedAnnealing",
    "Step",
    "minimise",
    "objective",
]
