"""Keras 3 on jax: compile and fit, several steps an execution."""

import os

os.environ["KERAS_BACKEND"] = "jax"

import keras
import numpy as np
from keras import layers, ops

from peers.given import Given, timed


class Arrays:
    """Layers that take the arrays at a path once they are built."""

    def __init__(self, given: Given):
        self.given, self.made = given, []

    def add(self, layer, *arrays):
        """The layer, with what it is to start from."""
        self.made.append((layer, arrays))
        return layer

    def layer(self, layer, path: str):
        """A layer whose weights are kernel or scale, then bias, then the statistics, where there are such."""
        arrays = self.given.params | self.given.state
        names = (f"{path}/{name}" for name in ("kernel", "table", "scale", "bias", "mean", "var"))
        return self.add(layer, *(arrays[name] for name in names if name in arrays))

    def dense(self, path: str, activation=None):
        """A dense layer."""
        return self.layer(layers.Dense(self.given.params[f"{path}/kernel"].shape[1], activation), path)

    def fill(self) -> None:
        """Set the weights."""
        for layer, arrays in self.made:
            layer.set_weights(arrays)


def mlp(given: Given, make: Arrays):
    """Dense layers."""
    x = inputs = keras.Input((28, 28))
    x, n = layers.Flatten()(x), len(given.model["hidden"])
    for i in range(n):
        x = make.dense(f"layer{i}", "relu")(x)
    return inputs, make.dense(f"layer{n}")(x)


def lenet(given: Given, make: Arrays):
    """LeNet-5."""
    x = inputs = keras.Input((28, 28))
    x = layers.Reshape((28, 28, 1))(x)
    for name, maps, padding in (("conv0", 6, "same"), ("conv1", 16, "valid")):
        x = make.layer(layers.Conv2D(maps, 5, padding=padding, activation="relu"), name)(x)
        x = layers.MaxPooling2D()(x)
    x = layers.Flatten()(x)
    for name in ("linear0", "linear1"):
        x = make.dense(name, "relu")(x)
    return inputs, make.dense("linear2")(x)


def gelu_tanh(x):
    """The approximation."""
    return keras.activations.gelu(x, approximate=True)


class Positions(layers.Layer):
    """Adds a learned row to each place."""

    def build(self, shape):
        """The table."""
        self.table = self.add_weight(shape=shape[1:])

    def call(self, x):
        """x [batch, block, width]."""
        return x + self.table


def gpt(given: Given, make: Arrays):
    """Pre-norm blocks, the head tied to the embedding."""
    model, params = given.model, given.params
    heads, width, block = model["heads"], model["width"], given.block
    x = inputs = keras.Input((block,), dtype="int32")
    tokens = make.layer(layers.ReversibleEmbedding(given.classes, width), "tokens")

    def norm(path):
        return make.layer(layers.LayerNormalization(epsilon=model["epsilon"]), path)

    x = make.layer(Positions(), "positions")(tokens(x))
    for i in range(model["layers"]):
        at, h = f"block{i}", norm(f"block{i}/norm1")(x)
        qkv, biases = (np.split(params[f"{at}/attention/qkv/{name}"], 3, -1) for name in ("kernel", "bias"))
        pairs = [(k.reshape(width, heads, -1), b.reshape(heads, -1)) for k, b in zip(qkv, biases)]
        out = params[f"{at}/attention/out/kernel"].reshape(heads, -1, width), params[f"{at}/attention/out/bias"]
        arrays = [array for pair in (pairs[0], pairs[1], pairs[2], out) for array in pair]
        x = x + make.add(layers.MultiHeadAttention(heads, width // heads), *arrays)(h, h, use_causal_mask=True)
        up = make.dense(f"{at}/feed_forward/up", gelu_tanh)(norm(f"{at}/norm2")(x))
        x = x + make.dense(f"{at}/feed_forward/down")(up)
    return inputs, tokens(norm("norm")(x), reverse=True)


class Cell(layers.LSTMCell):
    """Keras's cell with a bias of the state's part too, as everybody else has it: Adam moves the two, not their sum."""

    def build(self, shape):
        """One weight more."""
        super().build(shape)
        self.second = self.add_weight(shape=(4 * self.units,), name="second_bias")

    def call(self, inputs, states, training=False):
        """As LSTMCell, without its dropout."""
        z = ops.matmul(inputs, self.kernel) + ops.matmul(states[0], self.recurrent_kernel) + self.bias + self.second
        i, f, g, o = ops.split(z, 4, axis=1)
        c = ops.sigmoid(f) * states[1] + ops.sigmoid(i) * ops.tanh(g)
        h = ops.sigmoid(o) * ops.tanh(c)
        return h, [h, c]


def lstm(given: Given, make: Arrays):
    """An embedding, one layer, a head at every place."""
    width, path = given.model["width"], "cells/layer0/forward"
    arrays = [given.params[f"{path}/{name}"] for name in ("input/kernel", "hidden/kernel", "input/bias", "hidden/bias")]
    inputs = keras.Input((given.block,), dtype="int32")
    x = make.layer(layers.Embedding(given.classes, width), "tokens")(inputs)
    x = make.add(layers.RNN(Cell(width), return_sequences=True), *arrays)(x)
    return inputs, make.dense("head")(x)


def resnet(given: Given, make: Arrays):
    """6 n + 2 layers, the shortcut without parameters."""

    def normed(path, i, x, stride=1):
        maps = given.params[f"{path}conv{i}/kernel"].shape[-1]
        x = layers.ZeroPadding2D(1)(x)  # "same" pads otherwise where the stride is 2
        x = make.layer(layers.Conv2D(maps, 3, stride, use_bias=False), f"{path}conv{i}")(x)
        return make.layer(layers.BatchNormalization(momentum=0.9, epsilon=1e-5), f"{path}norm{i}")(x)

    inputs = keras.Input((32, 32, 3))
    x = ops.relu(normed("", 1, inputs))
    for path in (f"stage{s}/block{b}/" for s in (1, 2, 3) for b in range((given.model["layers"] - 2) // 6)):
        n, m = given.params[f"{path}conv1/kernel"].shape[2:]
        stride = 1 if n == m else 2
        h = normed(path, 2, ops.relu(normed(path, 1, x, stride)))
        x = ops.relu(h + ops.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (0, m - n))))
    return inputs, make.dense("linear")(layers.GlobalAveragePooling2D()(x))


MODELS = {"mlp": mlp, "lenet": lenet, "gpt": gpt, "recurrent": lstm, "cifar_resnet": resnet}


class Fit:
    """A call of fit a round, on the batches in their order, cut before the clock runs."""

    def __init__(self, given: Given):
        self.given, make = given, Arrays(given)
        self.model = keras.Model(*MODELS[given.model["kind"]](given, make))
        make.fill()
        settings = given.config["optimizer"]
        # Keras adds epsilon before the bias of the second moment is corrected, so that it counts for more in the first
        # steps: this one is the others' in the middle of those that are compared.
        epsilon = settings["epsilon"] * np.sqrt(1 - settings["b2"] ** (given.checked / 2))
        common = {"beta_1": settings["b1"], "beta_2": settings["b2"], "epsilon": float(epsilon)}
        if settings["kind"] == "adam":
            optimizer = keras.optimizers.Adam(settings["peak_lr"], **common)
        else:
            optimizer = keras.optimizers.AdamW(settings["peak_lr"], weight_decay=settings["weight_decay"], **common)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.model.compile(optimizer, loss, steps_per_execution=given.checked)

    def batches(self, at: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """x and y of the steps one after another."""
        rows, data = np.concatenate(list(self.given.rows(at, steps))), self.given.data
        if not self.given.block:
            return self.given.units(data["x"][rows].astype(np.float32)), data["y"][rows]
        tokens = data["tokens"][rows[:, None] + np.arange(self.given.block + 1)].astype(np.int32)
        return tokens[:, :-1], tokens[:, 1:]

    def fit(self, x: np.ndarray, y: np.ndarray, epochs: int = 1) -> None:
        """Train."""
        self.model.fit(x, y, batch_size=self.given.order.shape[1], epochs=epochs, shuffle=False, verbose=0)

    def after(self, n: int) -> float:
        """See `given`."""
        self.fit(*self.batches(0, n))
        self.model.reset_metrics()  # the loss it tells is a mean since then
        return float(self.model.train_on_batch(*self.batches(n, 1)))

    def run(self, n: int) -> np.ndarray:
        """See `given`; where a round is longer than the order, as whole epochs of it."""
        some = min(n, len(self.given.order))
        x, y = self.batches(0, some)
        return timed(lambda: self.fit(x, y, n // some))[0]


def build(given: Given, name: str) -> Fit:
    """The one there is."""
    return Fit(given)
