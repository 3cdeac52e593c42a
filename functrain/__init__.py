"""functrain: training by pure functions, in JAX.

    functrain.fit(init, apply, arrays, ...)   train your own pure functions
    functrain.load(run)                       a trained model as a function

All else is imported by name: functrain.layers, functrain.optim, functrain.tasks and so on. Importing
functrain imports none of them, nor jax.
"""

from typing import TYPE_CHECKING, Any

from functrain.version import __version__

if TYPE_CHECKING:
    from functrain.fitting import fit
    from functrain.trained import load

__all__ = ["__version__", "fit", "load"]


def __getattr__(name: str) -> Any:
    if name == "fit":
        from functrain.fitting import fit

        return fit
    if name == "load":
        from functrain.trained import load

        return load
    raise AttributeError(f"module 'functrain' has no attribute {name!r}")
