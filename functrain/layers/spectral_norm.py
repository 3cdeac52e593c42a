"""Spectral normalisation (Miyato, Kataoka, Koyama, Yoshida 2018): a kernel over its largest singular value."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def init(key: jax.Array, kernel: Any) -> dict[str, jax.Array]:
    """`{"u": [outputs], "v": [inputs]}`: random directions from which the power iteration starts, in float32 at least.

    kernel: [..., outputs], or anything with its shape and dtype; all axes but the last are inputs.
    """
    u, v = jax.random.split(key)
    dtype = jnp.promote_types(kernel.dtype, jnp.float32)
    outputs = kernel.shape[-1]
    inputs = kernel.size // outputs
    return {"u": _unit(jax.random.normal(u, (outputs,), dtype)), "v": _unit(jax.random.normal(v, (inputs,), dtype))}


def apply(
    kernel: jax.Array, state: dict[str, jax.Array], *, train: bool, iterations: int = 1
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """kernel / sigma with sigma = u W v (eq. 11), W being the kernel as a matrix; and the new state.

    In training u and v come `iterations` steps of the power iteration nearer to the first singular vectors (algorithm
    1), in evaluation they are the state's. The gradient is that of sigma with u and v held fixed, as in
    torch.nn.utils.spectral_norm.

    >>> kernel = jnp.diag(jnp.array([3.0, 1.0]))
    >>> scaled, state = apply(kernel, init(jax.random.key(0), kernel), train=True, iterations=20)
    >>> jnp.diagonal(scaled).round(3).tolist()
    [1.0, 0.3330000042915344]
    """
    u, v = state["u"], state["v"]
    w = kernel.reshape(-1, kernel.shape[-1]).astype(u.dtype)
    if train:
        held = lax.stop_gradient(w)
        for _ in range(iterations):
            v = _unit(held @ u)
            u = _unit(v @ held)
    u, v = lax.stop_gradient((u, v))
    return (kernel / (v @ w @ u)).astype(kernel.dtype), {"u": u, "v": v}


def _unit(x):
    """x over its norm, which torch bounds by 1e-12 below."""
    return x / jnp.maximum(jnp.linalg.norm(x), 1e-12)
