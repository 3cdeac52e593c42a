"""How a run's loss bends about its parameters: `functrain curvature`, and what is said of a second-order run's end."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import jax
from rich.console import Console
from rich.table import Table

from functrain import tree
from functrain.autodiff.curvature.density import Density, draw_density, spectral_density
from functrain.autodiff.curvature.diagonal import Estimated
from functrain.autodiff.curvature.operators import Operator, empirical_fisher, gauss_newton, hessian
from functrain.autodiff.curvature.spectrum import Extremes, Stationary, stationary, top_eigenvalues, trace
from functrain.built import Built, after, batches
from functrain.config import ConfigError
from functrain.observe.console import fact_table
from functrain.precise.gradient import goal_of

Matrix = Literal["hessian", "gauss_newton", "empirical_fisher"]

_HELD = 2e8
"""Numbers that the vectors of one Lanczos run may hold together: 0.8 gigabytes in float32."""


@dataclass(frozen=True)
class Curvature:
    """Of one matrix about some parameters: its size, outermost eigenvalues, trace and density."""

    matrix: Matrix
    size: int
    ends: Extremes
    trace: Estimated
    density: Density

    def record(self) -> dict[str, Any]:
        """As plain data."""
        ends = {"largest": self.ends.largest, "smallest": self.ends.smallest}
        eigenvalues = {name: [float(x) for x in side.values] for name, side in ends.items()}
        trace = {"trace": float(self.trace.value), "trace_error": float(self.trace.error)}
        return {"matrix": self.matrix, "size": self.size} | eigenvalues | trace


def show(console: Console, found: Curvature, figure: Path | None = None, title: str = "") -> None:
    """The eigenvalues with their errors, the trace; and the density, drawn where a file is given."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("largest", "error", "smallest", "error"):
        table.add_column(name, justify="right")
    (high, high_errors), (low, low_errors) = ((side.values, side.residuals) for side in found.ends)
    for row in zip(high, high_errors, low, low_errors):
        table.add_row(*(f"{float(x):.{digits}g}" for x, digits in zip(row, (5, 1, 5, 1))))
    mean = float(found.trace.value) / found.size
    facts = {
        "matrix": f"{found.matrix}, {found.size:,} parameters",
        "trace": f"{float(found.trace.value):.4g} +- {float(found.trace.error):.1g}, the mean eigenvalue {mean:.3g}",
    }
    console.print(fact_table(facts))
    console.print(table)
    if figure is not None:
        draw_density(figure, found.density, title=f"{title}: {found.matrix}" if title else found.matrix)
        console.print(f"drawn: {figure}")


def measure(
    built: Built,
    *,
    matrix: str = "hessian",
    count: int = 5,
    samples: int = 10,
    examples: int = 0,
    steps: int = 0,
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> Curvature:
    """The curvature of the loss on a training batch, about the trained parameters.

    Args:
      matrix: of `Matrix`: the Hessian; the Gauss-Newton matrix, which for cross-entropy and squared error is the Fisher
        matrix; or that of the data's own targets.
      count: eigenvalues at either end.
      samples: random vectors, for trace and density.
      examples: of the batch, the first so many; 0 is all.
      steps: of training that come first.
      tell: called with how much is done.

    Raises:
      ConfigError: no such matrix of this task, or numbers that make no sense.
    """
    if matrix not in get_args(Matrix):
        raise ConfigError(f"--matrix: found {matrix!r}; expected one of: {', '.join(get_args(Matrix))}")
    if min(count, samples) < 1 or min(examples, steps) < 0:
        raise ConfigError("--count, --samples: expected at least 1; --examples, --steps: at least 0")
    tell(0, 4)
    (batch,) = batches(built, steps, 1)
    if examples:
        batch = jax.tree.map(lambda x: x[:examples], batch)
    train_state = after(built, steps)
    operator = _operator(built, matrix, train_state, batch)
    count = min(count, operator.size)
    width = min(80, max(count, int(_HELD // operator.size)), operator.size)
    tell(1, 4)
    keys = jax.random.split(jax.random.key(built.config.train.seed), 3)

    def computed(f):  # the batch and the parameters are arguments, so that they are no constants of the program
        def inside(train_state, batch, key):
            return f(_operator(built, matrix, train_state, batch), key)

        return jax.jit(inside)

    ends = computed(lambda a, key: top_eigenvalues(a, key, count, smallest=count, steps=max(width, 2 * count), width=1))
    found = jax.device_get(ends(train_state, batch, keys[0]))
    tell(2, 4)
    mean = jax.device_get(computed(lambda a, key: trace(a, key, max(samples, 2)))(train_state, batch, keys[1]))
    tell(3, 4)
    density = computed(lambda a, key: spectral_density(a, key, samples=samples, steps=width))
    spread = jax.device_get(density(train_state, batch, keys[2]))
    tell(4, 4)
    return Curvature(matrix, operator.size, found, mean, spread)  # pyright: ignore[reportArgumentType]


def _operator(built: Built, matrix: str, train_state: Any, batch: Any) -> Operator:
    """The matrix of the next step's loss."""
    goal, params = goal_of(built.task, train_state, batch)
    if matrix == "hessian":
        return hessian(lambda params: goal.value(params)[0], params)
    apart = goal.apart
    if apart is None:
        raise ConfigError(f"--matrix {matrix}: it is of a loss that is one score of outputs, with train.accumulate = 1")
    if matrix == "gauss_newton":
        return gauss_newton(apart.predict, apart.score, params)
    weights = apart.weights(params)
    if isinstance(weights, dict):
        raise ConfigError(f"--matrix {matrix}: it is of one loss; this task has several")

    def losses(params):
        return jax.vmap(lambda row: apart.score_one(apart.predict_one(params, row), row))(apart.batch)

    return empirical_fisher(losses, params, mask=weights)


def stationary_point(built: Built, train_state: Any) -> Stationary:
    """What kind of point a second-order run ended at, for its loss and penalty on the batch that would come next."""
    (batch,) = batches(built, int(train_state.step), 1)
    goal, params = goal_of(built.task, train_state, batch)
    steps = max(2, min(100, int(_HELD // tree.size(params))))
    key = jax.random.key(built.config.train.seed)
    return stationary(built.task.learner.optimizer.whole(goal), params, key, steps=steps)
