"""The gradient of a task with low precision imitated, one program for every choice of dtypes."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functrain.layers import forms
from functrain.observe import flops
from functrain.precise.gradient import gradient, relative
from functrain.precision.emulate import Cost, Unit, emulated

_SCALES = (2.0**16, 2.0**12, 2.0**8, 2.0**4, 1.0)


@dataclass(frozen=True)
class _Imitated:
    """A policy that imitates a choice."""

    units: dict[Unit, Cost]
    choice: Any = None

    def __call__(self, loss):
        imitated = emulated(loss, self.units, self.choice, flops.of_equation)

        @functools.wraps(loss)
        def plain(*args, **kwargs):  # a form's own derivative would hide the parts that its products belong to
            with forms.using(**forms.PLAIN):
                return imitated(*args, **kwargs)

        return plain


class Imitation:
    """The gradient of a task with the dtype of each unit as a number: one program for every choice."""

    def __init__(self, task: Any, train_state: Any, batch: Any):
        self.units: dict[Unit, Cost] = {}
        jax.eval_shape(gradient(task, _Imitated(self.units)), train_state, batch)
        self._state = train_state

        @jax.jit
        def run(train_state, batch, choice, scale):
            return gradient(task, _Imitated(self.units, choice))(train_state, batch, scale)

        self._run, self._error = run, jax.jit(relative)

    def gradient(self, batch: Any, choice: Sequence[int], scale: float = 1.0) -> Any:
        """The gradient with unit i in `DTYPES[choice[i]]`."""
        return self._run(self._state, batch, jnp.asarray(choice, jnp.int32), jnp.float32(scale))

    def error(self, batch: Any, choice: Sequence[int], reference: Any, scale: float = 1.0) -> float:
        """How far that is from a reference."""
        return float(self._error(self.gradient(batch, choice, scale), reference))

    def scale(self, batch: Any) -> float | None:
        """The largest loss scale at which a gradient with all products in float16 is finite; None where none is."""
        products = [2 if of == "matmul" else 0 for of, _ in self.units]
        exact = self.gradient(batch, [0] * len(products))
        return next((s for s in _SCALES if np.isfinite(self.error(batch, products, exact, s))), None)
