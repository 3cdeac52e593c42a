"""Precision policies: which dtype parameters, computation and outputs have. A policy turns a loss into a loss.

policy            parameters           computation                                         outputs
float32           float32              float32                                             float32
bfloat16, float16 float32, or low      what layers of parameters cast to it compute        float32: losses and sums
float8            float32, or low      as bfloat16, products of linear layers in float8    float32: losses and sums
autocast          float32              by primitive                                        float32
auto              as autocast, with rules chosen before the first step

bfloat16 and float16 cast parameters, and the batch's inputs, on the way into the loss, so that the layers compute in
that dtype (see `functrain.layers`). Norms, softmax, losses and every sum stay in at least float32, and so do the
entries of a batch named in `EXACT`.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct

from functrain import tree
from functrain.config import ConfigError, Count, NonNegative, Positive, Size, configclass, kinds
from functrain.precision import float8, rounding
from functrain.precision.autocast import autocast
from functrain.precision.rules import Rule, Rules

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


def casting(loss, dtype, keep=()):
    """The loss computed in `dtype`: parameters and inputs cast on the way in, but for parameters that match `keep`."""

    def low(params, state, batch, *, key):
        batch = {name: x if name in EXACT else tree.cast(x, dtype) for name, x in batch.items()}
        kept = tree.select(keep, params)
        params = jax.tree.map(lambda p, k: p if k else tree.cast(p, dtype), params, kept)
        return loss(params, state, batch, key=key)

    return low


class Policy:
    """What policies have beside `__call__(loss) -> loss`; here, parameters that are kept as they are."""

    def check(self, params: Any, section: str) -> None:
        """Raises a ConfigError where the policy does not fit the parameters."""

    def stored(self, params: Any) -> Any:
        """Parameters as they are kept between steps."""
        return params

    def updated(self, params: Any, updates: Any, key: jax.Array) -> Any:
        """Parameters and their updates added up, as they are kept."""
        del key
        return optax.apply_updates(params, updates)

    def init_scale(self) -> LossScale | None:
        """The loss scale at the start; None where there is none."""
        return None

    def init_history(self, params: Any) -> Any:
        """What the policy remembers from step to step, at the start; None is nothing (see `Float8`)."""
        del params


@configclass
class Float32(Policy):
    """Everything as the parameters are: float32 (float64 where jax has 64-bit types enabled)."""

    kind: Literal["float32"] = "float32"

    def __call__(self, loss):
        """The loss itself."""
        return loss


@configclass
class Casting(Policy):
    """What bfloat16 and float16 share: parameters and inputs are cast; layers compute in what their parameters have."""

    keep: tuple[str, ...] = ()
    """Parameters that stay in float32, by patterns of their paths; so does what their layers compute."""
    parameters: Literal["float32", "low"] = "float32"
    """In what parameters are kept between steps: float32, or low, the dtype that is computed in: half the memory, but
    an update that is small beside its parameter is lost to rounding. Those of `keep` stay in float32."""

    dtype = "bfloat16"

    def __call__(self, loss):
        """The loss computed in the low dtype."""
        return casting(loss, jnp.dtype(self.dtype), self.keep)

    def check(self, params: Any, section: str) -> None:
        """Raises a ConfigError where a pattern of `keep` matches no parameter."""
        try:
            tree.select(self.keep, params)
        except ValueError as error:
            raise ConfigError(f"{section}.keep: {error}") from None

    def stored(self, params: Any) -> Any:
        """Parameters as they are kept."""
        if self.parameters == "float32":
            return params
        kept = tree.select(self.keep, params)
        return jax.tree.map(lambda p, k: p if k else tree.cast(p, jnp.dtype(self.dtype)), params, kept)


@configclass
class Rounding(Casting):
    """What policies with bfloat16 parameters share: how an update is rounded."""

    rounding: Literal["nearest", "stochastic"] = "nearest"
    """With `parameters = "low"`, how a parameter is rounded after its update, which is added in float32: to the
    nearest, or up or down by chance, so that in the mean no update is lost (see functrain.precision.rounding)."""

    def __post_init__(self):
        if self.rounding == "stochastic" and self.parameters != "low":
            raise ValueError('rounding: "stochastic" is of parameters kept in bfloat16; expected parameters = "low"')

    def updated(self, params: Any, updates: Any, key: jax.Array) -> Any:
        """Parameters and their updates added up, rounded as `rounding` says."""
        if self.rounding == "nearest":
            return super().updated(params, updates, key)
        return rounding.added(params, updates, key)


@configclass
class BFloat16(Rounding):
    """Compute in bfloat16, parameters in float32; its exponent is float32's, so no loss scale is needed."""

    kind: Literal["bfloat16"] = "bfloat16"


@configclass
class Float8(Rounding):
    """Compute in bfloat16, and products of linear layers in float8: e4m3 forward, e5m2 for gradients; parameters in
    float32. Faster on GPUs that multiply float8, and nowhere else (see functrain.precision.float8).

    With delayed scaling a player keeps histories, and while it trains, its loss is `remembering`; all else, such as
    evaluation, scales by the arrays themselves.
    """

    kind: Literal["float8"] = "float8"
    layers: tuple[str, ...] = ("kernel$",)
    """Kernels whose products are in float8, by patterns of their paths: those of two axes; not those of `keep`."""
    scaling: Literal["delayed", "current"] = "delayed"
    """By what arrays are scaled: the greatest magnitude of the steps before, or their own, which is read first."""
    history: Size = 1024
    """How many steps delayed scaling looks back upon."""

    def __call__(self, loss):
        """The loss with its products in float8, scaled by the arrays themselves."""

        def low(params, *args, **kwargs):
            within = float8.with_float8(loss, self._chosen(params))
            return casting(within, jnp.dtype(self.dtype), self.keep)(params, *args, **kwargs)

        return low

    def remembering(self, loss):
        """The loss while a player trains, scaled by histories: `low(params, histories, zeros, state, batch, *, key)`.

        zeros: by path [3, parts]; as their gradient comes back what was greatest in the products, in the place of the
          micro-batch's part, which `batch["part"]` names.
        """

        def low(params, histories, zeros, state, batch, *, key):
            part = batch["part"][0]
            batch = {name: array for name, array in batch.items() if name != "part"}
            probes = {path: float8.Probe(array, part) for path, array in zeros.items()}
            within = float8.with_float8(loss, self._chosen(params), histories, probes)
            return casting(within, jnp.dtype(self.dtype), self.keep)(params, state, batch, key=key)

        return low

    def init_history(self, params):
        """A history for each kernel, by path; None where scaling is current."""
        if self.scaling == "current":
            return None
        leaves = tree.by_path(params)
        return {path: float8.History.start(self.history, leaves[path]) for path in self._chosen(params)}

    def check(self, params, section):
        """Raises a ConfigError where `keep` or `layers` matches no parameter, or no kernel."""
        super().check(params, section)
        try:
            tree.select(self.layers, params)
        except ValueError as error:
            raise ConfigError(f"{section}.layers: {error}") from None
        if not self._chosen(params):
            raise ConfigError(
                f"{section}.layers: found {list(self.layers)}; they match no kernel of two axes to compute"
            )

    def _chosen(self, params):
        """Paths of the kernels whose products are in float8."""
        wanted, kept = (tree.by_path(tree.select(patterns, params)) for patterns in (self.layers, self.keep))
        return [path for path, p in tree.by_path(params).items() if p.ndim == 2 and wanted[path] and not kept[path]]


@configclass
class Scaled:
    """A dynamic loss scale, by the rule of torch.amp.GradScaler: float16 needs it, for small gradients vanish."""

    initial_scale: Positive = 65536.0
    """The loss scale at the start; it halves by itself where that is too high."""
    growth_every: Size = 2000
    """Good steps in a row after which the scale doubles."""

    def first_scale(self) -> LossScale:
        """The scale at the start of a run."""
        return LossScale(jnp.asarray(self.initial_scale, jnp.float32), jnp.int32(0))


@configclass
class Float16(Scaled, Casting):
    """Compute in float16, parameters in float32; a dynamic loss scale keeps small gradients from vanishing."""

    kind: Literal["float16"] = "float16"

    dtype = "float16"

    def init_scale(self) -> LossScale | None:
        """The scale at the start of a run."""
        return self.first_scale()


@configclass
class Autocast(Scaled, Policy):
    """Each primitive in a dtype of its own (`functrain.precision.autocast`), parameters in float32.

    Where float16 is among them, gradients have a dynamic loss scale.
    """

    kind: Literal["autocast"] = "autocast"
    dtype: Literal["bfloat16", "float16"] = "bfloat16"
    """Of matrix products and convolutions."""
    rules: tuple[Rule, ...] = ()
    """What is computed in something else, and where; the first that holds counts."""
    bound: NonNegative = 0.0
    """The gradient's relative error above which the run warns; 0 measures none. See `kind = "auto"`."""
    watch_every: Count = 0
    """How often, in steps, the error of a batch's gradient is measured and logged as gradient_error; 0 is never."""

    def __call__(self, loss):
        """The loss under autocast."""
        return autocast(loss, Rules(self.dtype, self.rules))

    def init_scale(self) -> LossScale | None:
        """The scale at the start of a run, where float16 is used."""
        return self.first_scale() if "float16" in (self.dtype, *(rule.dtype for rule in self.rules)) else None


@configclass
class Auto(Scaled, Policy):
    """Chooses for each class of primitives in each part of the model the cheapest dtype that a bound on the gradient's
    error allows, before the first step; the run's config has what was chosen, as the rules of `kind = "autocast"`.
    """

    kind: Literal["auto"] = "auto"
    bound: Positive = 1e-2
    """The most that the gradient may differ from that in float32: the norm of the difference over the norm."""
    batches: Size = 4
    """On how many batches of the training data it must hold."""
    watch_every: Count = 100
    """How often, in steps, the error is measured again while the run trains; 0 is never."""

    def __call__(self, loss):
        """Never: a config is built with what was chosen."""
        raise TypeError("precision.kind = 'auto' is chosen by functrain.building.build")


AnyPrecision = kinds(Float32, BFloat16, Float16, Float8, Autocast, Auto, default="float32")
"""[precision]: every policy a config can name."""


def dtype_of(policy: Any) -> jax.typing.DTypeLike:
    """The dtype in which a policy's matrix products run."""
    return jnp.dtype(getattr(policy, "dtype", "float32"))
