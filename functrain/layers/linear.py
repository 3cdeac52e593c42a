"""The linear layer: y = x W + b."""

from typing import Any

import jax

from functrain.layers import initializers


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
    y = x.astype(params["kernel"].dtype) @ params["kernel"]
    return y + params["bias"] if "bias" in params else y
