"""Stochastic rounding to bfloat16: up or down by chance, so that the mean of many roundings is the number itself.

Where parameters are kept in bfloat16, an update below half a unit in the last place is lost to rounding to nearest,
each time; rounded stochastically, a share of such updates comes through, and their sum is right in the mean (Gupta et
al. 2015, section 3; for bfloat16 parameters Zamirai et al. 2020).
"""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import tree_map_with_path

from functrain import tree


def stochastic(x: jax.Array, key: jax.Array) -> jax.Array:
    """float32 -> bfloat16: the neighbour beyond with the probability of its nearness, else the one towards zero.

    What bfloat16 holds comes out as it is, infinities and nan among it, and so does the sign of a zero. A number beyond
    the largest becomes that or infinity. bfloat16 is the upper half of a float32's bits, whose integers count the
    magnitudes in order, subnormal ones too: 16 random bits are added to the lower half, and it is cut off.

    >>> x = jnp.full(10_000, 1 + 2**-9)   # a quarter of the way from 1 to 1 + 2**-7
    >>> rounded = stochastic(x, jax.random.key(0)).astype(float)
    >>> sorted(set(rounded.tolist())), round(float((rounded > 1).mean()), 2)
    ([1.0, 1.0078125], 0.25)
    """
    if x.dtype != jnp.float32:
        raise ValueError(f"stochastic rounding is of float32; found {x.dtype}")
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    by_chance = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    upper = ((bits + by_chance) >> 16).astype(jnp.uint16)
    return jnp.where(jnp.isnan(x), jnp.bfloat16(jnp.nan), lax.bitcast_convert_type(upper, jnp.bfloat16))


def added(params: Any, updates: Any, key: jax.Array) -> Any:
    """params + updates: added in float32, and where a parameter is in bfloat16, rounded stochastically.

    Pure: what is drawn is a function of the key and of the parameter's path.

    >>> added({"w": jnp.bfloat16(1)}, {"w": jnp.float32(0)}, jax.random.key(0))["w"].dtype
    dtype(bfloat16)
    """

    def one(keys, p, u):
        if p.dtype != jnp.bfloat16:
            return (p + u).astype(p.dtype)
        own = jax.random.fold_in(key, zlib.crc32(tree.path_of(keys).encode()))
        return stochastic(p.astype(jnp.float32) + u.astype(jnp.float32), own)

    return tree_map_with_path(one, params, updates)
