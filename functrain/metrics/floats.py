"""Floating-point numbers as integers that sort as they do: bins whose width goes with the size of the number."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def ordered(x: jax.Array) -> jax.Array:
    """float16 as uint16, float32 as uint32: larger numbers are larger integers, 0.0 and -0.0 one.

    Negative numbers have their bits turned over, the others their sign set. nan lies outside, beyond the infinities.

    >>> ordered(jnp.array([-1.0, -0.0, 0.0, 1.0], jnp.float16)).tolist()
    [17407, 32768, 32768, 48128]
    """
    dtype = np.dtype(f"uint{8 * x.dtype.itemsize}")
    sign = dtype.type(1 << (8 * dtype.itemsize - 1))
    code = lax.bitcast_convert_type(jnp.where(x == 0, 0, x), dtype)
    return jnp.where(code >= sign, ~code, code | sign)


def number_of(codes: np.ndarray, dtype: Any) -> np.ndarray:
    """The numbers that `ordered` made these integers of, on the host.

    >>> number_of(np.array([17407, 32768, 48128]), np.float16).tolist()
    [-1.0, 0.0, 1.0]
    """
    bits = np.dtype(f"uint{8 * np.dtype(dtype).itemsize}")
    sign = bits.type(1 << (8 * bits.itemsize - 1))
    codes = np.asarray(codes).astype(bits)
    values = np.where(codes >= sign, codes ^ sign, ~codes).view(dtype)
    return np.where(np.isnan(values), np.dtype(dtype).type(np.nan), values)  # a quiet nan: others warn when cast
