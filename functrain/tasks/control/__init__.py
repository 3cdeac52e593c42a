"""Control: a policy that learns by acting in an environment."""

from functrain.tasks.control.actor_critic import DDPG, TD3
from functrain.tasks.control.noise import Gaussian, OrnsteinUhlenbeck

__all__ = ["DDPG", "TD3", "Gaussian", "OrnsteinUhlenbeck"]
