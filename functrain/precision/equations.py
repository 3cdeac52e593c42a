"""Values cast, and equations of jaxprs bound again: what autocast is made of."""

import math
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core


def dtype_of(value: Any) -> Any:
    """The dtype of a value, a number included; None of what has none, such as a token."""
    return getattr(jax.typeof(value), "dtype", None)


def cast(value: Any, dtype: Any) -> Any:
    """A value of floats in another dtype of floats; any other value, and one that has the dtype, as it is."""
    found = dtype_of(value)
    if found is None or found == dtype or not (_is_float(found) and _is_float(dtype)):
        return value
    return lax.convert_element_type(value, dtype)


def as_written(values: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
    """Values in the dtypes that variables were traced with."""
    return [cast(x, getattr(v.aval, "dtype", None)) for x, v in zip(values, variables, strict=True)]


def bind(equation: Any, values: Sequence[Any], dtype: Any = None) -> list[Any]:
    """The outputs of an equation's primitive for these values.

    dtype: what a product gives that was told what to give; None leaves it.
    """
    params = equation.primitive.get_bind_params(equation.params)
    if dtype is not None and params.get("preferred_element_type") is not None:
        params = params | {"preferred_element_type": dtype}
    outputs = equation.primitive.bind(*values, **params)
    return list(outputs) if equation.primitive.multiple_results else [outputs]


def asks_for_more(equation: Any) -> bool:
    """Whether a product is asked for in a high precision: somebody's own choice."""
    asked = equation.params.get("precision")
    asked = asked if isinstance(asked, tuple) else (asked,)
    return any(p in (lax.Precision.HIGH, lax.Precision.HIGHEST) for p in asked)


def made_of_bits(equation: Any, drawn: Collection[Any]) -> bool:
    """Whether an equation makes floats of integers' bits, or of such floats (the variables `drawn`) and single numbers.

    So jax.random makes floats of random bits, between bounds that it is given.
    """
    if equation.primitive.name == "bitcast_convert_type":
        return True
    variables = [v for v in equation.invars if not isinstance(v, core.Literal)]
    return any(v in drawn for v in variables) and all(v in drawn or math.prod(v.aval.shape) == 1 for v in variables)


def are_numbers(equation: Any) -> bool:
    """Whether all inputs of an equation are single numbers."""
    return all(isinstance(v, core.Literal) or math.prod(v.aval.shape) == 1 for v in equation.invars)


def _is_float(dtype):
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating)
