"""The gradient of a task's player, as a function of train state and batch; in float64; and how far two are apart."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functrain import _compat
from functrain.config import ConfigError
from functrain.metrics import Mean
from functrain.optim import Learner, Objective
from functrain.precision import Float32, Float64, LossScale
from functrain.precision.autocast import Interpreter
from functrain.train import step


@dataclass(frozen=True, kw_only=True)
class _Catch(Learner):
    """A learner that takes no step: it notes what it is called with."""

    calls: list[Any] = field(default_factory=list)

    def update(self, loss, player, state, batch, *, key):
        self.calls.append((self, loss, player, state, batch, key))
        return player, state, {}


def gradient(task: Any, precision: Any = None) -> Callable[..., Any]:
    """`(train_state, batch, scale=None) -> gradients` of the task's one player, before clipping, in at least float32.

    Args:
      precision: in place of its learner's.

    Raises:
      ConfigError: the task has no player, or several.
    """
    check_one_player(task, "precision: an error")

    def f(train_state, batch, scale=None):
        learner, player, given = _caught(task, train_state, batch)
        if precision is not None:  # now that the live numbers of the task's own are bound
            learner = dataclasses.replace(learner, precision=precision)
        player = player.replace(scale=None if scale is None else LossScale(scale, jnp.int32(0)))
        loss, state, batch, key = given
        goal = learner.goal(loss, player, state, batch, key=key)
        return goal.gradient(learner.trained(player.params))[0]

    return f


def loss_of(task: Any, train_state: Any, batch: Any) -> tuple[Callable[[Any], Any], Any]:
    """(the loss of a batch as a function of the trained parameters, these), as the next step has it.

    Raises:
      ConfigError: the task has no player, or several.
    """
    goal, params = goal_of(task, train_state, batch)
    return lambda params: goal.value(params)[0], params


def goal_of(task: Any, train_state: Any, batch: Any) -> tuple[Objective, Any]:
    """(the objective of a batch, the trained parameters), as the next step has them, without a loss scale.

    Raises:
      ConfigError: the task has no player, or several.
    """
    check_one_player(task, "a loss")
    learner, player, (loss, state, batch, key) = _caught(task, train_state, batch)
    return learner.goal(loss, player.replace(scale=None), state, batch, key=key), learner.trained(player.params)


def check_one_player(task: Any, what: str) -> None:
    """Raises a ConfigError where a task has no player, or several; what: is of one player."""
    if list(task.learners) != ["model"] or not isinstance(getattr(task, "learner", None), Learner):
        found = ", ".join(task.learners) or "none"
        kind = getattr(task, "kind", type(task).__name__)
        raise ConfigError(f"{what} is of one player; task.kind = {kind!r} has {found}")


def _caught(task, train_state, batch):
    """(learner, player, (loss, state, batch, key)): what a step of the task gives its learner."""
    calls: list[Any] = []
    fields = {f.name: getattr(task.learner, f.name) for f in dataclasses.fields(task.learner)}
    step.make_step(dataclasses.replace(task, learner=_Catch(**fields, calls=calls)))(train_state, batch)
    ((learner, loss, player, state, batch, key),) = calls
    return learner, player, (loss, state, batch, key)


def in_float64(f: Callable[..., Any]) -> Callable[..., Any]:
    """The function with everything that it computes in float64; what it draws at random is what it draws in float32.

    Its constants are those of the float32 program: 1e-5 there is 1e-5 to seven digits.
    It is compiled once, for the first arguments' shapes, and gives arrays of numpy.

    >>> float(in_float64(jnp.sqrt)(jnp.float32(2.0)))
    1.4142135623730951
    """
    made: list[Any] = []

    def run(*args):
        if not made:  # traced before 64-bit types are enabled: they would change what is drawn
            closed, shape = jax.make_jaxpr(f, return_shape=True)(*args)
            jaxpr, consts = _compat.opened(closed)
            compiled = jax.jit(lambda consts, leaves: Interpreter(Float64()).run(jaxpr, consts, leaves))
            made.extend([compiled, consts, jax.tree.structure(shape)])
        compiled, consts, form = made
        with jax.enable_x64(True):
            outputs = compiled(consts, [_widest(x) for x in jax.tree.leaves(args)])
            return jax.tree.unflatten(form, [np.asarray(x) for x in outputs])

    return run


def _widest(x):
    return x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x


def relative(found: Any, reference: Any, xp: Any = jnp) -> Any:
    """The norm of the difference of two trees over that of the reference; inf where either is not finite.

    xp: what computes it: jax.numpy, or numpy in float64.

    >>> round(float(relative({"w": np.array([1.0, 2.2])}, {"w": np.array([1.0, 2.0])})), 4)
    0.0894
    """
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(reference), strict=True))
    apart = sum(xp.sum(xp.square(a - b)) for a, b in pairs)
    size = xp.asarray(sum(xp.sum(xp.square(b)) for _, b in pairs))
    error = xp.sqrt(apart / xp.maximum(size, xp.finfo(size.dtype).tiny))
    return xp.where(xp.isfinite(error), error, xp.inf)


def watch(task: Any) -> Callable[[Any, Any], dict[str, Mean]]:
    """`(train_state, batch) -> {"gradient_error"}`: how far the batch's gradient is from that in float32."""
    low, exact = gradient(task), gradient(task, Float32())

    def f(train_state, batch):
        scale = train_state.players["model"].scale
        error = relative(low(train_state, batch, scale and scale.value), exact(train_state, batch))
        return {"gradient_error": Mean(error, jnp.ones((), error.dtype))}

    return f
