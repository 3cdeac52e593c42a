"""Every value and gradient in a run's loss: `functrain trace`."""

from typing import Any

import jax
import numpy as np

from functrain.autodiff.traces import Trace, trace
from functrain.config import ConfigError
from functrain.experiment import Built, first_state
from functrain.precise import loss_of
from functrain.train import step


def trace_loss(built: Built, *, examples: int = 0, steps: int = 0) -> Trace:
    """The loss of a training batch, traced by the parameters.

    Args:
      examples: of the batch, the first so many; 0 is all.
      steps: of training that come first.

    Raises:
      ConfigError: a task that has not one player, or numbers below what makes sense.
    """
    if examples < 0 or steps < 0:
        raise ConfigError(f"--examples {examples} --steps {steps}: expected at least 0")
    task, feed, train_state = built.task, built.feeds["train"], first_state(built)
    take = jax.jit(step.make_body(task, feed, built.place), donate_argnums=0)
    zero = step.zero_metrics(task, feed, train_state, feed.window(0, 1))
    for i in range(steps):
        train_state, _ = take(train_state, zero, feed.window(i, 1))
    batch: Any = jax.jit(feed.batch)(feed.window(steps, 1), np.int32(steps))
    if examples:
        batch = jax.tree.map(lambda x: x[:examples], batch)
    loss, params = loss_of(task, train_state, batch)
    return trace(loss, keep=False)(params)
