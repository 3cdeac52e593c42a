"""What each primitive is computed in: the table behind `functrain.precision.autocast`.

class         primitives                                      in what
matmul        matrix products and convolutions                the low dtype
exponential   exponentials, logarithms, powers, roots         float32
reduction     sums and products                               float32
elementwise   sums of two, products of two, selections ...    the widest of the inputs
comparison    what gives no floats                            the widest of the inputs
structure     what moves values and changes none              as they are

Every other primitive is computed in the dtypes that it was written for, and so is what makes random floats of random
bits: nothing is drawn otherwise. The classes are those of torch's autocast on
CUDA (its page "Automatic Mixed Precision package", "CUDA Op-Specific Behavior"), by the primitives that its functions
are made of here. tests/test_autocast_census.py has each departure, with its reason.
"""

import dataclasses
import functools
import re
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from functrain.config import configclass

CLASSES: dict[str, frozenset[str]] = {
    name: frozenset(primitives.split())
    for name, primitives in {
        "matmul": "dot_general conv_general_dilated ragged_dot ragged_dot_general",
        "exponential": """exp exp2 expm1 log log1p log2 pow integer_pow square sqrt rsqrt cbrt tan acos asin cosh sinh
            acosh asinh atanh erf_inv lgamma digamma""",
        "reduction": """reduce_sum reduce_prod cumsum cumprod cumlogsumexp reduce_window_sum psum psum_invariant
            reduce_scatter""",
        "elementwise": """add add_any sub mul div rem max min pmax pmin one_minus_square polynomial neg abs sign floor
            ceil round tanh logistic sin cos atan atan2 erf erfc clamp select_n reduce_max reduce_min cummax cummin
            reduce_window_max reduce_window_min""",
        "comparison": "is_finite eq ne lt le gt ge argmax argmin",
        "structure": """reshape broadcast_in_dim transpose squeeze rev slice split pad concatenate
            dynamic_slice dynamic_update_slice gather copy stop_gradient optimization_barrier name sort top_k
            stack unstack tile pvary pcast all_gather all_to_all ppermute sharding_constraint reshard mesh_cast""",
    }.items()
}
"""Class -> its primitives."""

Name = Literal["matmul", "exponential", "reduction", "elementwise"]
Floating = Literal["bfloat16", "float16", "float32"]

EXEMPT = "no_autocast"
"""The name of the scope in which everything is computed as it is written: `with jax.named_scope(EXEMPT): ...`."""

_CLASS_OF = {primitive: name for name, primitives in CLASSES.items() for primitive in primitives}


def class_of(primitive: str) -> str:
    """The class of a primitive; "other" where it has none.

    >>> class_of("dot_general"), class_of("cholesky")
    ('matmul', 'other')
    """
    return _CLASS_OF.get(primitive, "other")


@configclass
class Rule:
    """What primitives of a class are computed in, in part of a function."""

    of: Name
    """The class."""
    dtype: Floating
    """In what."""
    scope: str = ""
    """A regular expression for where (`re.search`): the scopes that a model's parts have are the paths of their
    parameters, such as block0/attention; empty is everywhere."""

    def __post_init__(self):
        try:
            re.compile(self.scope)
        except re.error as error:
            raise ValueError(f"scope: {self.scope!r} is no regular expression: {error}") from None


@dataclasses.dataclass(frozen=True)
class Rules:
    """What autocast goes by: the table above with a low dtype, and what differs from it.

    >>> rules = Rules("bfloat16", (Rule(of="matmul", dtype="float32", scope="head"),))
    >>> [str(rules.choose("dot_general", scope)) for scope in ("block0/attention", "head")]
    ['bfloat16', 'float32']
    >>> str(rules.choose("exp", "head")), rules.choose("add", "head"), rules.choose("cholesky", "head")
    ('float32', 'widest', 'as written')
    """

    low: Floating = "bfloat16"
    more: tuple[Rule, ...] = ()  # the first that holds counts, before the table

    def choose(self, primitive: str, scope: str) -> Any:
        """A dtype; "widest" of the inputs; "moved", which is no computation; or "as written"."""
        return _choose(self, primitive, scope)

    @property
    def scoped(self) -> bool:
        """Whether any rule looks at scopes."""
        return any(rule.scope for rule in self.more)

    def casts(self, dtype: Any) -> bool:
        """Whether values of this dtype may be cast: float64 and the dtypes of 8 bits are somebody's own choice."""
        return jnp.issubdtype(dtype, jnp.floating) and np.dtype(dtype).itemsize in (2, 4)

    def carried(self, dtype: Any) -> Any:
        """In what a loop keeps a value that was written in `dtype`."""
        return dtype


TABLE = Rules()
"""The table as it stands, with bfloat16."""


@dataclasses.dataclass(frozen=True)
class Float64(Rules):
    """Everything in float64: the reference for errors. What is drawn at random keeps the bits that it has in float32.

    64-bit types must be enabled while a function runs by it.
    """

    def choose(self, primitive, scope):
        """float64 for each class."""
        found = class_of(primitive)
        if found == "other" and primitive not in _OF_ANY_FLOATS:
            return "as written"
        return "moved" if found == "structure" else np.dtype("float64")

    def casts(self, dtype):
        """Every float."""
        return jnp.issubdtype(dtype, jnp.floating)

    def carried(self, dtype):
        """Floats in float64."""
        return np.dtype("float64") if jnp.issubdtype(dtype, jnp.floating) else dtype


_SPECIAL = "igamma igammac bessel_i0e bessel_i1e random_gamma_grad regularized_incomplete_beta nextafter"
_LINEAR = "cholesky triangular_solve tridiagonal_solve lu qr householder_product eigh svd select_and_scatter_add"
_OF_ANY_FLOATS = frozenset(f"{_SPECIAL} {_LINEAR}".split())
"""Primitives without a class that take float64 as they take float32."""


@functools.lru_cache(4096)
def _choose(rules: Rules, primitive: str, scope: str) -> Any:
    found = class_of(primitive)
    for rule in rules.more:
        if rule.of == found and re.search(rule.scope, scope):
            return np.dtype(jnp.dtype(rule.dtype))
    default = {"matmul": rules.low, "exponential": "float32", "reduction": "float32"}
    if found in default:
        return np.dtype(jnp.dtype(default[found]))
    others = {"elementwise": "widest", "comparison": "widest", "structure": "moved"}
    return others.get(found, "as written")
