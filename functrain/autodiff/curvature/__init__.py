"""Curvature of functions of pytrees: operators, their diagonals and their spectra."""

from functrain.autodiff.curvature.density import Density, draw_density, spectral_density
from functrain.autodiff.curvature.diagonal import Estimated, diagonal, gauss_newton_diagonal, hutchinson_diagonal
from functrain.autodiff.curvature.kfac import KFAC, Block, EigenBlock, kfac
from functrain.autodiff.curvature.operators import (
    Operator,
    draw_bernoulli,
    draw_categorical,
    draw_normal,
    empirical_fisher,
    fisher,
    gauss_newton,
    hessian,
)
from functrain.autodiff.curvature.spectrum import (
    Eigenpairs,
    Extremes,
    Lanczos,
    Stationary,
    lanczos,
    stationary,
    top_eigenvalues,
    trace,
)

__all__ = [
    "KFAC",
    "Block",
    "Density",
    "EigenBlock",
    "Eigenpairs",
    "Estimated",
    "Extremes",
    "Lanczos",
    "Operator",
    "Stationary",
    "diagonal",
    "draw_bernoulli",
    "draw_categorical",
    "draw_density",
    "draw_normal",
    "empirical_fisher",
    "fisher",
    "gauss_newton",
    "gauss_newton_diagonal",
    "hessian",
    "hutchinson_diagonal",
    "kfac",
    "lanczos",
    "spectral_density",
    "stationary",
    "top_eigenvalues",
    "trace",
]
