"""Order: which examples a step sees, a function of (seed, step). There is no iterator, and so none to save.

The shuffle is swap-or-not (Hoang, Morris, Rogaway 2012, "An Enciphering Scheme Based on a Card Shuffle"): index i of a
permutation of range(n) costs a few dozen integer operations, whatever n, on host and device alike, bit for bit.
Device code computes it inside the step, where `jax.random.permutation` would sort the whole set.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax


def shuffled(seed: Any, epoch: Any, i: Any, n: int, xp: Any = jnp) -> Any:
    """Where the examples `i` of an epoch stand: elements of a permutation of range(n).

    Args:
      seed, epoch: whole numbers; each pair has its own permutation.
      i: an integer array, each in [0, n).
      n: how many there are.
      xp: jax.numpy or numpy; both give the same bits.

    >>> sorted(shuffled(0, 0, np.arange(5), 5, np).tolist())
    [0, 1, 2, 3, 4]
    """
    u = xp.uint32

    def mix(x):  # a bijective hash of 32 bits (constants: Wellons, "lowbias32")
        x = (x ^ (x >> u(16))) * u(0x7FEB352D)
        x = (x ^ (x >> u(15))) * u(0x846CA68B)
        return x ^ (x >> u(16))

    def swap_or_not(i, constants):
        k, salt = constants
        partner = k + (u(n) - i)
        partner = xp.minimum(partner, partner - u(n))  # mod n without a division: below n the difference wraps round
        return xp.where(mix(xp.maximum(i, partner) ^ salt) & u(1), partner, i)

    with np.errstate(over="ignore"):  # unsigned arithmetic wraps by design
        start = mix(xp.asarray(seed).astype(u) ^ mix(xp.asarray(epoch).astype(u) + u(0x9E3779B9)))
        rounds = xp.arange(4 * max(n - 1, 1).bit_length(), dtype=u)
        k, salt = mix(start + u(2) * rounds) % u(n), mix(start + u(2) * rounds + u(1))
        i = i.astype(u)
        if xp is np:
            for constants in zip(k, salt):
                i = swap_or_not(i, constants)
        else:  # a loop: unrolled, it took XLA seconds to compile and ran no faster
            i = lax.scan(lambda i, c: (swap_or_not(i, c), None), i, (k, salt))[0]
        return i.astype(xp.int32)


def order(seed: Any, step: Any, n: int, size: int, xp: Any = jnp) -> Any:
    """The indices of a step's batch: [size], all different.

    An epoch is n // size steps over a fresh permutation; what it leaves over differs each epoch.

    >>> epoch = [order(7, np.int64(s), 10, 5, np) for s in range(2)]
    >>> sorted(np.concatenate(epoch).tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    steps = n // size
    return shuffled(seed, step // steps, (step % steps) * size + xp.arange(size), n, xp)
