"""Every value and gradient in a run's loss: `functrain trace`."""

import jax

from functrain.autodiff.traces import Trace, trace
from functrain.config import ConfigError
from functrain.experiment import Built, after, batches
from functrain.precise import loss_of


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
    (batch,) = batches(built, steps, 1)
    if examples:
        batch = jax.tree.map(lambda x: x[:examples], batch)
    loss, params = loss_of(built.task, after(built, steps), batch)
    return trace(loss, keep=False)(params)
