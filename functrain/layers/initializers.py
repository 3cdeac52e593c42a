"""Initial values of parameters, by name. Each is `f(key, shape, dtype=float32) -> array`.

The variance-scaling family draws with variance scale / n, where n is the fan-in (`lecun`, `he`) or the mean of
fan-in and fan-out (`glorot`); the last two axes of `shape` are (in, out), axes before them a receptive field.

  lecun   scale 1   LeCun, Bottou, Orr, Müller 1998, "Efficient BackProp"
  glorot  scale 2 / (in + out)   Glorot, Bengio 2010, eq. 16
  he      scale 2   He, Zhang, Ren, Sun 2015, eq. 10
  torch   uniform in +-1/sqrt(fan-in): variance 1 / (3 fan-in), the default of torch.nn.Linear and Conv

>>> by_name("orthogonal")(jax.random.key(0), (4, 4)).shape
(4, 4)
"""

from collections.abc import Callable
from typing import Literal, get_args

import jax
from jax.nn import initializers as jax_initializers

Initializer = Callable[..., jax.Array]

Name = Literal[
    "zeros",
    "ones",
    "normal",
    "truncated_normal",
    "uniform",
    "lecun_normal",
    "lecun_uniform",
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "torch",
    "orthogonal",
]

_TABLE: dict[str, Initializer] = {
    "zeros": jax_initializers.zeros,
    "ones": jax_initializers.ones,
    "normal": jax_initializers.normal(0.02),  # standard deviation 0.02: Radford et al. 2018 (GPT)
    "truncated_normal": jax_initializers.truncated_normal(0.02),  # cut at two standard deviations: BERT, ViT
    "uniform": lambda key, shape, dtype=jax.numpy.float32: jax.random.uniform(key, shape, dtype, -0.05, 0.05),
    "lecun_normal": jax_initializers.lecun_normal(),
    "lecun_uniform": jax_initializers.lecun_uniform(),
    "glorot_normal": jax_initializers.glorot_normal(),
    "glorot_uniform": jax_initializers.glorot_uniform(),
    "he_normal": jax_initializers.he_normal(),
    "he_uniform": jax_initializers.he_uniform(),
    "torch": jax_initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
    "orthogonal": jax_initializers.orthogonal(),  # Saxe, McClelland, Ganguli 2014
}


def by_name(name: str | Initializer) -> Initializer:
    """The initializer called `name`; a function `f(key, shape, dtype)` is returned as it is.

    Raises:
      ValueError: no such name; the message lists them.
    """
    if callable(name):
        return name
    if name not in _TABLE:
        raise ValueError(f"initializer {name!r} is not one of: {', '.join(get_args(Name))}")
    return _TABLE[name]


def torch_bias(inputs: int) -> Initializer:
    """Uniform in +-1/sqrt(inputs): torch's for the bias of a layer in which each output sees `inputs`.

    >>> bool(abs(torch_bias(100)(jax.random.key(0), (1000,))).max() <= 0.1)
    True
    """
    bound = inputs**-0.5
    return lambda key, shape, dtype=float: jax.random.uniform(key, shape, dtype, -bound, bound)
