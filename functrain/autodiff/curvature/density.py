"""The density of a spectrum by stochastic Lanczos quadrature, and its picture."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from functrain.autodiff.curvature.operators import Operator
from functrain.autodiff.curvature.spectrum import lanczos


class Density(NamedTuple):
    """Where eigenvalues are: `density` over `eigenvalues`, both [points], with integral 1 by the trapezoid rule.

    nodes, weights: [samples, steps], the quadrature that was smoothed: n * the mean over samples of sum w g(node)
    estimates the trace of g(A).
    """

    eigenvalues: jax.Array
    density: jax.Array
    nodes: jax.Array
    weights: jax.Array


def spectral_density(
    operator: Operator,
    key: jax.Array,
    *,
    samples: int = 10,
    steps: int = 80,
    points: int = 1024,
    width: float = 0.01,
) -> Density:
    """The density of the eigenvalues, each a normal one (Ghorbani, Krishnan, Xiao 2019, section 2 and algorithm 1).

    From each random start Lanczos gives eigenvalues of T and, squared, the first entries of their eigenvectors: nodes
    and weights of a Gauss quadrature, exact for polynomials up to degree 2 steps - 1. Costs samples * steps products;
    one basis is held at a time, steps * n numbers.

    Args:
      width: the normal densities' deviation, as a share of the span of the spectrum (of the largest magnitude, or of 1,
        where all eigenvalues are equal).
      points: of the grid, which ends six deviations outside the spectrum.

    Raises:
      ValueError: fewer points than resolve the width, or no samples.

    >>> a = Operator(lambda v: jnp.array([0.0, 0.0, 0.0, 1.0]) * v, jnp.zeros(4))
    >>> at, density, *_ = spectral_density(a, jax.random.key(0), samples=100)
    >>> bool(abs(jnp.trapezoid(density * (at > 0.5), at) - 1 / 4) < 0.1)   # a quarter of them are 1
    True
    """
    reach = 6 * width
    needed = int(np.ceil((1 + 2 * reach) / width)) + 1 if width > 0 else 0
    if not needed or points < needed or samples < 1:
        raise ValueError(
            f"found samples {samples}, points {points}, width {width:g}; expected a sample or more, a width above 0, "
            f"and at least {needed:,} points, which lie a width apart"
        )

    def quadrature(key):
        found = lanczos(operator, key, steps)
        t = jnp.diag(found.alpha) + jnp.diag(found.beta, 1) + jnp.diag(found.beta, -1)
        nodes, vectors = jnp.linalg.eigh(t)
        return nodes, jnp.square(vectors[0])

    nodes, weights = lax.map(quadrature, jax.random.split(key, samples))
    low, high = nodes.min(), nodes.max()
    largest = jnp.maximum(jnp.abs(low), jnp.abs(high))
    rounding = 100 * jnp.finfo(nodes.dtype).eps * largest
    deviation = width * jnp.where(high - low > rounding, high - low, jnp.where(largest > 0, largest, 1))
    grid = jnp.linspace(low - 6 * deviation, high + 6 * deviation, points)

    def smoothed(total, each):
        node, weight = each
        return total + weight * jnp.exp(-0.5 * jnp.square((grid - node) / deviation)), None

    density, _ = lax.scan(smoothed, jnp.zeros_like(grid), (nodes.ravel(), weights.ravel()))
    return Density(grid, density / jnp.trapezoid(density, grid), nodes, weights)


def draw_density(path: Path | str, found: Density, *, title: str = "", floor: float = 1e-7) -> None:
    """A picture of the density, as PNG, on a logarithmic scale; folders are made.

    floor: how far below the highest point the picture ends, as a share of it.

    Raises:
      ValueError: a density that is not finite.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # late, as all of matplotlib, and without pyplot
    from matplotlib.figure import Figure

    at, density = np.asarray(found.eigenvalues, np.float64), np.asarray(found.density, np.float64)
    if not (np.isfinite(at).all() and np.isfinite(density).all()):
        raise ValueError("found a density that is not finite; expected the spectrum of a finite operator")
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axis: Any = figure.subplots()
    bottom = floor * density.max()
    axis.fill_between(at, bottom, np.maximum(density, bottom), color="#0b6e99", alpha=0.25, linewidth=0)
    axis.plot(at, np.maximum(density, bottom), color="#0b6e99", linewidth=1.2)
    axis.axvline(0, color="#8a8a8a", linewidth=0.8, linestyle=":")
    axis.set(yscale="log", ylim=(bottom, 3 * density.max()), xlim=(at[0], at[-1]), title=title)
    axis.set_xlabel("eigenvalue")
    axis.set_ylabel("density")
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
