"""Whether the gradient of a run's loss is right: `functrain check`, on a few examples, by the first parameters."""

import dataclasses
from collections.abc import Callable

import jax

from functrain import precise
from functrain.autodiff.check import Checked, gradient_check
from functrain.building import build
from functrain.built import batches, first_state
from functrain.config import ConfigError
from functrain.experiment import Experiment
from functrain.optim import AdamW
from functrain.precise.gradient import check_one_player
from functrain.precision import Float32


def check(
    config: Experiment,
    *,
    directions: int = 3,
    examples: int = 8,
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> Checked:
    """`gradient_check` of the loss on the first training batch, by the first parameters, in float64.

    By frozen parameters too, and without [precision]. What a step draws at random, as for dropout, it draws from the
    first step's key: the same at each evaluation.

    Args:
      directions: random ones in each array of parameters, and in all.
      examples: how many of the batch; a task that takes its data whole keeps them so.
      tell: called with how many of the arrays are done.

    Raises:
      ConfigError: a task that has not one player, numbers below 1, or a loss that is not finite.
    """
    if directions < 1 or examples < 1:
        raise ConfigError(f"--directions {directions} --examples {examples}: expected at least 1 of each")
    # The loss alone: no cast to a low dtype, no frozen parameters, whose derivative would be 0, no micro-batches.
    train = dataclasses.replace(config.train, seeds=1, accumulate=1)
    built = build(dataclasses.replace(config, precision=Float32(), optimizer=AdamW(), players={}, train=train))
    check_one_player(built.task, "check: a loss")
    train_state, (batch,) = first_state(built), batches(built, 0, 1)

    def f(params, train_state, batch):
        return precise.loss_of(built.task, train_state, batch)[0](params)

    if built.config.data is not None and not hasattr(built.config.task, "whole"):
        batch = jax.tree.map(lambda x: x[:examples], batch)
    params = train_state.players["model"].params
    try:
        return gradient_check(f, directions=directions, tell=tell)(params, train_state, batch)
    except FloatingPointError as error:
        raise ConfigError(f"check: the loss: {error}") from None
