"""The linear layer: y = x W + b."""

from typing import Any

import jax
from jax import lax

from functrain.layers import forms, initializers


def init(
    key: jax.Array,
    inputs: int,
    outputs: int,
    *,
    bias: bool = True,
    kernel_init: str | initializers.Initializer = "lecun_normal",
    bias_init: str | initializers.Initializer = "zeros",
    dtype: Any = float,
) -> dict[str, jax.Array]:
    """`{"kernel": [inputs, outputs], "bias": [outputs]}`; initializers by name (see `initializers`).

    The dtype `float` is float32, or float64 where jax has 64-bit types enabled.
    The bias of torch.nn.Linear is uniform in +-1/sqrt(inputs); here it starts at zero unless named otherwise.
    """
    kernel_key, bias_key = jax.random.split(key)
    params = {"kernel": initializers.by_name(kernel_init)(kernel_key, (inputs, outputs), dtype)}
    if bias:
        params["bias"] = initializers.by_name(bias_init)(bias_key, (outputs,), dtype)
    return params


def apply(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """x [..., inputs] -> [..., outputs], in the kernel's dtype.

    >>> params = {"kernel": jax.numpy.array([[1.0], [2.0]]), "bias": jax.numpy.array([0.5])}
    >>> apply(params, jax.numpy.array([3.0, 4.0])).tolist()
    [11.5]
    """
    y = product(x.astype(params["kernel"].dtype), params["kernel"])
    return y + params["bias"] if "bias" in params else y


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x @ kernel: [..., inputs] and [inputs, outputs] -> [..., outputs]; the kernel's gradient has forms of its own.

    >>> product(jax.numpy.ones((3, 2)), jax.numpy.ones((2, 1))).tolist()
    [[2.0], [2.0], [2.0]]
    """
    form = forms.form("product", "transposed" if forms.on_cpu() else "plain")
    return _transposed(x, kernel) if form == "transposed" else x @ kernel


@jax.custom_jvp
def _transposed(x, kernel):
    return x @ kernel


@_transposed.defjvp
def _rule(primals, tangents):
    (x, kernel), (dx, dkernel) = primals, tangents
    return x @ kernel, dx @ kernel + by_kernel(x, dkernel)


def by_kernel(x: jax.Array, dkernel: jax.Array) -> jax.Array:
    """x @ dkernel, for tangents: its transpose is the gradient x^T dy, with x^T an array of its own.

    XLA on a CPU gives a product by rows with a fast kernel, and one by columns of its left side, which this would be,
    with a slow one: 77 of 240 GFLOP/s for 128 x 2,048 by 2,048 x 512 on one core.

    >>> by_kernel(jax.numpy.ones((3, 2)), jax.numpy.ones((2, 1))).tolist()
    [[2.0], [2.0], [2.0]]
    """
    columns = lax.optimization_barrier(x.reshape(-1, x.shape[-1]).T)
    product = lax.dot_general(columns, dkernel, (((0,), (0,)), ((), ())))
    return product.reshape(*x.shape[:-1], dkernel.shape[-1])
