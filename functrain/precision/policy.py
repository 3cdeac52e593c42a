"""Precision policies: which dtype parameters, computation and outputs have. A policy turns a loss into a loss.

Parameters are kept in float32 and updated there; a 16-bit policy casts them, and the batch's inputs, on the way
into the loss, so that the layers compute in that dtype (see `functrain.layers`). Norms, softmax, losses and every
sum stay in at least float32, and so do the entries of a batch named in `EXACT`.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct

from functrain import tree
from functrain.config import Positive, Size, configclass, kinds

EXACT = ("y", "mask", "weight", "share", "boxes", "scale", "target")
"""Entries of a batch that no policy casts: targets, masks, weights, and what is in pixels."""


@struct.dataclass
class LossScale:
    """The dynamic loss scale (Micikevicius et al. 2018, section 3.2) and the good steps since it last changed."""

    value: Any  # float32
    good: Any  # int32

    def updated(self, finite: Any, growth_every: int) -> "LossScale":
        """Halved after a non-finite gradient; doubled after `growth_every` finite ones in a row.

        It never leaves float32's normal numbers: at either end it stays where it is.

        >>> scale = LossScale(jnp.float32(8), jnp.int32(0))
        >>> float(scale.updated(False, 2).value), float(scale.updated(True, 2).updated(True, 2).value)
        (4.0, 16.0)
        """
        good = jnp.where(finite, self.good + 1, 0)
        grow = good == growth_every
        value = self.value * jnp.where(finite, jnp.where(grow, 2.0, 1.0), 0.5)
        kept = jnp.isfinite(value) & (value >= jnp.finfo(jnp.float32).tiny)
        return LossScale(jnp.where(kept, value, self.value), jnp.where(grow, 0, good))


def casting(loss, dtype):
    """The loss computed in `dtype`: parameters and inputs cast on the way in."""

    def low(params, state, batch, *, key):
        batch = {name: x if name in EXACT else tree.cast(x, dtype) for name, x in batch.items()}
        return loss(tree.cast(params, dtype), state, batch, key=key)

    return low


@configclass
class Float32:
    """Everything as the parameters are: float32 (float64 where jax has 64-bit types enabled)."""

    kind: Literal["float32"] = "float32"

    def __call__(self, loss):
        """The loss itself."""
        return loss

    def init_scale(self) -> LossScale | None:
        """No loss scale."""
        return None


@configclass
class BFloat16:
    """Compute in bfloat16, parameters in float32; its exponent is float32's, so no loss scale is needed."""

    kind: Literal["bfloat16"] = "bfloat16"

    def __call__(self, loss):
        """The loss computed in bfloat16."""
        return casting(loss, jnp.bfloat16)

    def init_scale(self) -> LossScale | None:
        """No loss scale."""
        return None


@configclass
class Float16:
    """Compute in float16, parameters in float32; a dynamic loss scale keeps small gradients from vanishing."""

    kind: Literal["float16"] = "float16"
    initial_scale: Positive = 65536.0
    """The loss scale at the start; it halves by itself where that is too high."""
    growth_every: Size = 2000
    """Good steps in a row after which the scale doubles."""

    def __call__(self, loss):
        """The loss computed in float16."""
        return casting(loss, jnp.float16)

    def init_scale(self) -> LossScale | None:
        """The scale at the start of a run."""
        return LossScale(jnp.asarray(self.initial_scale, jnp.float32), jnp.int32(0))


AnyPrecision = kinds(Float32, BFloat16, Float16, default="float32")
"""[precision]: every policy a config can name."""


def dtype_of(policy: Any) -> jax.typing.DTypeLike:
    """The dtype in which a policy's matrix products run."""
    return {"bfloat16": jnp.bfloat16, "float16": jnp.float16}.get(policy.kind, jnp.float32)
