"""jax and optax by hand, nothing of functrain: a scan over steps, or, with convolutions, a dispatch a step.

XLA's convolution is several times slower inside a loop on a CPU (https://github.com/jax-ml/jax/issues/12868).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from peers.given import Given, timed


def linear(p, x):
    return x @ p["kernel"] + p["bias"]


def conv(p, x, padding, stride=1):
    y = lax.conv_general_dilated(x, p["kernel"], (stride,) * 2, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return y + p["bias"] if "bias" in p else y


def mlp(settings, p, state, x):
    x = x.reshape(len(x), -1)
    for i in range(len(p) - 1):
        x = jax.nn.relu(linear(p[f"layer{i}"], x))
    return linear(p[f"layer{len(p) - 1}"], x), state


def lenet(settings, p, state, x):
    x = x[..., None]
    for name, padding in (("conv0", "SAME"), ("conv1", "VALID")):
        x = jax.nn.relu(conv(p[name], x, padding))
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    x = x.reshape(len(x), -1)
    for name in ("linear0", "linear1"):
        x = jax.nn.relu(linear(p[name], x))
    return linear(p["linear2"], x), state


def layer_norm(p, x, epsilon):
    return jax.nn.standardize(x, epsilon=epsilon) * p["scale"] + p["bias"]


def gpt(settings, p, state, x):
    heads, epsilon = settings["heads"], settings["epsilon"]
    h = p["tokens"]["table"][x] + p["positions"]["table"]
    for i in range(settings["layers"]):
        block = p[f"block{i}"]
        qkv = linear(block["attention"]["qkv"], layer_norm(block["norm1"], h, epsilon))
        q, k, v = (part.reshape(*h.shape[:2], heads, -1) for part in jnp.split(qkv, 3, -1))
        y = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        h = h + linear(block["attention"]["out"], y.reshape(h.shape))
        up = linear(block["feed_forward"]["up"], layer_norm(block["norm2"], h, epsilon))
        h = h + linear(block["feed_forward"]["down"], jax.nn.gelu(up, approximate=True))
    return layer_norm(p["norm"], h, epsilon) @ p["tokens"]["table"].T, state


def lstm(settings, p, state, x):
    h = p["tokens"]["table"][x].swapaxes(0, 1)  # [length, batch, width]
    inputs, hidden = (p["cells"]["layer0"]["forward"][name] for name in ("input", "hidden"))
    zero = jnp.zeros((x.shape[0], settings["width"]))

    def cell(carry, a):
        c, h = carry
        i, f, g, o = jnp.split(a + linear(hidden, h), 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (c, h), h

    _, y = lax.scan(cell, (zero, zero), linear(inputs, h))
    return linear(p["head"], y.swapaxes(0, 1)), state


def normed(p, state, i, x, stride=1):
    x = conv(p[f"conv{i}"], x, ((1, 1), (1, 1)), stride)
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    scale = p[f"norm{i}"]["scale"] * lax.rsqrt(var + 1e-5)
    count = x.size // x.shape[-1]
    new = {"mean": mean, "var": var * (count / (count - 1))}
    new = jax.tree.map(lambda old, now: 0.9 * old + 0.1 * now, state[f"norm{i}"], new)
    return x * scale + (p[f"norm{i}"]["bias"] - mean * scale), new


def resnet(settings, p, state, x):
    new = {}
    x, new["norm1"] = normed(p, state, 1, x)
    x = jax.nn.relu(x)
    for stage in ("stage1", "stage2", "stage3"):
        new[stage] = {}
        for name in sorted(p[stage]):
            block, old, found = p[stage][name], state[stage][name], {}
            n, m = block["conv1"]["kernel"].shape[2:]
            stride = 1 if n == m else 2
            h, found["norm1"] = normed(block, old, 1, x, stride)
            h, found["norm2"] = normed(block, old, 2, jax.nn.relu(h))
            x = jax.nn.relu(h + jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (0, m - n))))
            new[stage][name] = found
    return linear(p["linear"], x.mean((1, 2))), new


MODELS = {"mlp": mlp, "lenet": lenet, "gpt": gpt, "recurrent": lstm, "cifar_resnet": resnet}
WITH_CONVOLUTIONS = ("lenet", "cifar_resnet")


def nested(arrays: dict[str, np.ndarray]) -> dict:
    """Paths as nested dicts."""
    tree: dict = {}
    for path, array in arrays.items():
        *above, name = path.split("/")
        functools.reduce(lambda at, key: at.setdefault(key, {}), above, tree)[name] = jnp.array(array)
    return tree


class Steps:
    """The data on the device; what a step changes is donated."""

    def __init__(self, given: Given):
        self.given, self.at = given, 0
        self.data = jax.device_put(given.data)
        model, settings = functools.partial(MODELS[given.model["kind"]], given.model), given.config["optimizer"]
        common = {"b1": settings["b1"], "b2": settings["b2"], "eps": settings["epsilon"]}
        if settings["kind"] == "adam":
            optimizer = optax.adam(settings["peak_lr"], **common)
        else:
            optimizer = optax.adamw(settings["peak_lr"], weight_decay=settings["weight_decay"], **common)
        params = nested(given.params)
        self.carry = params, jax.jit(optimizer.init)(params), nested(given.state)

        def batch(data, row):
            if given.block:
                tokens = data["tokens"][row[:, None] + jnp.arange(given.block + 1)].astype("int32")
                return tokens[:, :-1], tokens[:, 1:]
            return given.units(data["x"][row].astype("float32")), data["y"][row]

        def loss(params, state, x, y):
            logits, state = model(params, state, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), state

        def step(carry, row, data):
            params, memory, state = carry
            (value, state), gradient = jax.value_and_grad(loss, has_aux=True)(params, state, *batch(data, row))
            updates, memory = optimizer.update(gradient, memory, params)
            return (optax.apply_updates(params, updates), memory, state), value

        def scan(carry, rows, data):
            return lax.scan(lambda carry, row: step(carry, row, data), carry, rows)

        self.one_by_one = given.model["kind"] in WITH_CONVOLUTIONS
        self.program = jax.jit(step if self.one_by_one else scan, donate_argnums=0)

    def losses(self, n: int) -> list:
        """Train; the losses, on the device."""
        rows, found, many = list(self.given.rows(self.at, n)), [], 1 if self.one_by_one else self.given.checked
        for i in range(0, n, many):
            some = rows[i] if many == 1 else np.stack(rows[i : i + many])
            self.carry, value = self.program(self.carry, some, self.data)
            found.append(value)
        self.at += n
        return jax.block_until_ready(found)

    def after(self, n: int) -> float:
        """See `given`."""
        if self.one_by_one:
            return float(self.losses(n + 1)[-1])
        return float(self.losses(2 * n)[1][0])

    def run(self, n: int) -> np.ndarray:
        """See `given`."""
        return timed(lambda: self.losses(n))[0]


def build(given: Given, name: str) -> Steps:
    """The one there is."""
    return Steps(given)
