"""Every value and gradient in a run's loss: `functrain trace`."""

from typing import Any

import jax
import jax.numpy as jnp

from functrain.autodiff.traces import Trace, first_nonfinite, trace
from functrain.built import Built, after, batches
from functrain.config import ConfigError
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
    return trace_step(built, after(built, steps), steps, examples)


def trace_step(built: Built, train_state: Any, step: int, examples: int = 0) -> Trace:
    """The loss that a step has, from the state before it; see `trace_loss`."""
    (batch,) = batches(built, step, 1)
    if examples:
        batch = jax.tree.map(lambda x: x[:examples], batch)
    loss, params = loss_of(built.task, train_state, batch)
    return trace(loss, keep=False)(params)


def trace_nonfinite(built: Built, members: list[Any]) -> str:
    """What the end of a run with `train.on_nonfinite = "stop"` says: at which step, and where it came from.

    members: the last train state of each member; since the step that was not finite nothing in it has changed but the
      counters of steps and of skipped updates.
    """
    train = built.config.train
    skipped = [{name: int(p.skipped) for name, p in jax.device_get(member.players).items()} for member in members]
    which = next(i for i, each in enumerate(skipped) if any(each.values()))
    player = max(skipped[which], key=skipped[which].__getitem__)
    step = int(members[which].step) - skipped[which][player]
    of = f" of {player}" if len(skipped[which]) > 1 else ""
    told = [f"step {step}: the loss{of} or its gradient is not finite; nothing was changed by it or after it"]
    if len(members) > 1:
        seed = train.seed + which
        return f"{told[0]}; the same from train.seeds=1 train.seed={seed} says where it came from"
    try:
        found = first_nonfinite(trace_step(built, members[0].replace(step=jnp.int32(step)), step))
    except ConfigError as error:
        found = [f"no trace: {error}"]
    return "\n".join([*told, *map(str, found or ["each result in it is finite when it is computed by itself"])])
