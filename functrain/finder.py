"""The learning-rate finder: the loss while the learning rate rises from step to step (Smith 2017, section 3.3)."""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from functrain.building import build
from functrain.built import first_state
from functrain.config import ConfigError
from functrain.experiment import Experiment
from functrain.metrics import read, scalars
from functrain.optim import Constant
from functrain.optim.chain import Chain
from functrain.train import step

_RATE = "learner.optimizer.peak_lr"
_DIVERGED = 4.0  # times the lowest loss so far


@dataclass(frozen=True)
class Found:
    """Rates tried, the loss at each (smoothed), and the rate at which it falls fastest."""

    rates: np.ndarray
    losses: np.ndarray
    suggestion: float


def find_rate(
    config: Experiment, *, lowest: float = 1e-6, highest: float = 1.0, steps: int = 200, smoothing: float = 0.95
) -> Found:
    """Train `steps` steps on the run's own batches, the rate rising evenly on a log scale, until the loss diverges.

    All is as in the run but the schedule, which is constant. The loss is an exponential mean, corrected for its start.
    The suggestion is the rate at which that mean falls fastest; a good peak_lr lies there or a little above.

    Raises:
      ConfigError: a task whose rate is not one number, a range that does not rise, or a loss that never fell.
    """
    if not 0 < lowest < highest or steps < 10:
        raise ConfigError(f"rates from {lowest:g} to {highest:g} in {steps} steps; expected 0 < from < to, 10 steps up")
    if not isinstance(config.optimizer, Chain):
        raise ConfigError(f"optimizer.kind: {config.optimizer.kind!r} has no learning rate to find")
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, schedule=Constant()))
    built = build(dataclasses.replace(config, train=dataclasses.replace(config.train, seeds=1)))
    train_state = first_state(built)
    if _RATE not in train_state.hyper:
        raise ConfigError("the finder takes a task of one learner; this one has several, or none")
    feed = built.feeds["train"]
    take = jax.jit(step.make_body(built.task, feed, built.place), donate_argnums=0)
    zero = step.zero_metrics(built.task, feed, train_state, feed.window(0, 1))
    rates, mean, losses = np.geomspace(lowest, highest, steps), 0.0, []
    for i, rate in enumerate(rates):
        number = jnp.asarray(rate, train_state.hyper[_RATE].dtype)
        bound = train_state.replace(hyper=train_state.hyper | {_RATE: number})
        train_state, metrics = take(bound, zero, feed.window(i, 1))
        loss = scalars(read(metrics)).get("loss", np.nan)
        mean = smoothing * mean + (1 - smoothing) * loss
        losses.append(mean / (1 - smoothing ** (i + 1)))
        if not np.isfinite(loss) or losses[-1] > _DIVERGED * min(losses):
            losses = losses[:-1]
            break
    rates, losses = rates[: len(losses)], np.array(losses)
    if len(losses) < 10:
        raise ConfigError(f"the loss diverged after {len(losses)} steps, at a rate of {rates[-1:]}; begin lower")
    # The ends tell nothing: the mean has not settled at the first, and at the last the loss is on its way up.
    low, high = len(losses) // 20, max(int(np.argmin(losses)), 2)
    slopes = np.gradient(losses, np.log(rates))[low:high]
    if not len(slopes) or slopes.min() >= 0:
        raise ConfigError(f"the loss never fell between {rates[0]:g} and {rates[-1]:g}; try another range")
    return Found(rates, losses, float(rates[low + int(np.argmin(slopes))]))
