"""Environments to act in, as pure functions; and gymnasium's, on the host."""

from functrain.config import kinds
from functrain.environments.base import Environment, Episode, Line, State, auto_reset_step, begin, frame
from functrain.environments.cartpole import CartPole, CartPoleSwingUp
from functrain.environments.gymnasium import Gymnasium
from functrain.environments.mountain_car import MountainCarContinuous
from functrain.environments.pendulum import Pendulum, normalised_angle

AnyEnvironment = kinds(Pendulum, MountainCarContinuous, CartPole, CartPoleSwingUp)
"""Every environment that runs inside a step, told apart by `kind`."""

__all__ = [
    "AnyEnvironment",
    "CartPole",
    "CartPoleSwingUp",
    "Environment",
    "Episode",
    "Gymnasium",
    "Line",
    "MountainCarContinuous",
    "Pendulum",
    "State",
    "auto_reset_step",
    "begin",
    "frame",
    "normalised_angle",
]
