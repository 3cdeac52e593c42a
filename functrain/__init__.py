"""functrain: training by pure functions, in JAX.

    functrain.fit(init, apply, arrays, ...)   train your own pure functions
    functrain.load(run)                       a trained model as a function
    functrain.layers, .optim, .tasks, ...     the parts, each imported when it is first named

Importing functrain imports none of them, nor jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

from functrain.version import __version__

if TYPE_CHECKING:
    from functrain.fitting import fit
    from functrain.trained import load

__all__ = ["__version__", "fit", "load"]

_PARTS = (
    "augment",
    "autodiff",
    "boxes",
    "config",
    "data",
    "experiment",
    "generation",
    "layers",
    "losses",
    "metrics",
    "models",
    "observe",
    "optim",
)
_PARTS += ("parallel", "precision", "runs", "tasks", "train", "transfer", "tree")


def __getattr__(name: str) -> Any:
    if name == "fit":
        return importlib.import_module("functrain.fitting").fit
    if name == "load":
        return importlib.import_module("functrain.trained").load
    if name in _PARTS:
        return importlib.import_module(f"functrain.{name}")
    raise AttributeError(f"module 'functrain' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_PARTS])
