"""LeNet-5 (LeCun, Bottou, Bengio, Haffner 1998, section II.B), as it is built today."""

from typing import Any, Literal

import jax

from functrain.config import ConfigError, Count, Size, configclass
from functrain.layers import activations, conv, linear, pool
from functrain.models.base import fitted


@configclass
class LeNet:
    """LeNet-5: two convolutions with pooling, three linear layers; 61,706 parameters for 28 x 28 and 10 classes.

    The paper's table of partial connections, its trained pooling and its Gaussian output layer are left out, as
    everywhere today; every unit of a layer sees every map of the one before.

    >>> model = LeNet(inputs=(28, 28), outputs=10)
    >>> params, state = jax.eval_shape(model.init, jax.random.key(0))   # or model.init(key): the arrays themselves
    >>> sum(p.size for p in jax.tree.leaves(params))
    61706
    """

    kind: Literal["lenet"] = "lenet"
    activation: activations.Name = "relu"
    """Nonlinearity after each layer but the last; the paper's is tanh."""
    pooling: Literal["max", "average"] = "max"
    """How 2 x 2 neighbours become one; the paper's is the average."""
    inputs: tuple[Size, ...] = ()
    """Shape of one image, (height, width) or (height, width, channels), 16 x 16 up; taken from the data."""
    outputs: Count = 0
    """Number of classes; taken from the data."""

    def sized(self, inputs: tuple[int, ...], outputs: int) -> "LeNet":
        """The model with its ends fitted to the data."""
        if len(inputs) not in (2, 3) or min(inputs[:2]) < 16:
            raise ConfigError(f"model.kind: lenet takes images from 16 x 16 up; the data has {list(inputs)}")
        return fitted(self, inputs, outputs)

    def build(self) -> "LeNet":
        """The config is the model."""
        return self

    def _padding(self) -> int:
        """The first layer's padding: 2 makes the 28 x 28 of MNIST the paper's 32 x 32."""
        return 2 if min(self.inputs[:2]) < 32 else 0

    def init(self, key: jax.Array) -> tuple[dict[str, Any], dict]:
        """`({"conv0", "conv1", "linear0", "linear1", "linear2"}, {})`, each with kernel and bias."""
        keys = jax.random.split(key, 5)
        channels = self.inputs[2] if len(self.inputs) == 3 else 1
        height, width = (((n + 2 * self._padding() - 4) // 2 - 4) // 2 for n in self.inputs[:2])
        sizes = (16 * height * width, 120, 84, self.outputs)
        params = {
            "conv0": conv.init(keys[0], channels, 6, kernel=5, kernel_init="he_normal"),
            "conv1": conv.init(keys[1], 6, 16, kernel=5, kernel_init="he_normal"),
        }
        for i in range(3):
            params[f"linear{i}"] = linear.init(keys[2 + i], sizes[i], sizes[i + 1], kernel_init="he_normal")
        return params, {}

    def apply(self, params, state, x, *, key=None, train=False):
        """Images [batch, height, width(, channels)] -> (logits [batch, outputs], state)."""
        x, state = self.features(params, state, x)
        with jax.named_scope("linear2"):
            return linear.apply(params["linear2"], x), state

    def features(self, params, state, x, *, key=None, train=False):
        """Images -> (what the last layer is given [batch, 84], state)."""
        act = activations.by_name(self.activation)
        shrink = pool.max if self.pooling == "max" else pool.average
        x = x.reshape(*x.shape[:3], -1)
        for name, padding in (("conv0", self._padding()), ("conv1", "valid")):
            with jax.named_scope(name):
                x = shrink(act(conv.apply(params[name], x, padding=padding)), 2)
        x = x.reshape(x.shape[0], -1)
        for name in ("linear0", "linear1"):
            with jax.named_scope(name):
                x = act(linear.apply(params[name], x))
        return x, state
