"""The baseline of against_scan.py: a training loop as one would write it by hand in jax and optax, nothing else.

An MLP on images of bytes, cross-entropy, Adam; the data set on the device, `chunk` steps a dispatch by `lax.scan`, the
state donated. It shares no code with functrain.
"""

import functools

import jax
import jax.numpy as jnp
import optax


def logits_of(params, x):
    x = x.reshape(len(x), -1)
    for i in range(len(params) - 1):
        x = jax.nn.relu(x @ params[f"layer{i}"]["kernel"] + params[f"layer{i}"]["bias"])
    last = params[f"layer{len(params) - 1}"]
    return x @ last["kernel"] + last["bias"]


class Baseline:
    def __init__(self, params, images, labels, lr):
        self.data = jax.device_put((images, labels))
        tx = optax.adam(lr)
        self.state = jax.tree.map(jnp.copy, (params, tx.init(params)))

        def loss(params, x, y):
            logits = logits_of(params, x.astype("float32") / 255)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        @functools.partial(jax.jit, donate_argnums=0)
        def chunk(state, data, indices):
            def body(state, i):
                params, opt = state
                value, grads = jax.value_and_grad(loss)(params, data[0][i], data[1][i])
                updates, opt = tx.update(grads, opt, params)
                return (optax.apply_updates(params, updates), opt), value

            return jax.lax.scan(body, state, indices)

        self.chunk = chunk

    def run(self, indices, chunk):
        """Train on the batches `indices` [steps, batch], `chunk` steps a dispatch; the losses [steps]."""
        losses = []
        for i in range(0, len(indices), chunk):
            self.state, values = self.chunk(self.state, self.data, indices[i : i + chunk])
            losses.append(values)
        return jnp.concatenate(losses)
