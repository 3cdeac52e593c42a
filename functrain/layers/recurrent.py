"""Recurrent layers: the plain network (Elman 1990), the LSTM and the GRU, stacked and in both directions.

With a the gates' part from the input, W_i x + b_i, and b that from the state, W_h h + b_h, cut into gates:

  rnn_tanh, rnn_relu   h' = f(a + b)
  lstm                 i, f, g, o = a + b;  c' = s(f) c + s(i) tanh(g);  h' = s(o) tanh(c')
  gru                  r = s(a_r + b_r);  z = s(a_z + b_z);  n = tanh(a_n + r b_n);  h' = (1 - z) n + z h

where s is the logistic function: Hochreiter, Schmidhuber 1997 with the forget gates of Gers et al. 2000; Cho et al.
2014 with the reset gate after the product. Order of gates, both biases and all else as in torch.nn.RNN, LSTM and GRU.

A state is `{"layer0": {"forward": {"h": [batch, width], "c": the same, of an lstm}, "backward": ...}, ...}`.

States and gates are in at least float32, products and y in the parameters' dtype. That costs nothing: value and
gradient of an LSTM of 256, batch 32 x 64, took 0.8 to 0.9 of the time of all in bfloat16 (CPU, jax 0.10.2).
"""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from functrain.layers import embedding, initializers, linear, lstm
from functrain.layers.dropout import apply as drop

Cell = Literal["lstm", "gru", "rnn_tanh", "rnn_relu"]

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def init(
    key: jax.Array,
    inputs: int,
    width: int,
    *,
    cell: Cell = "lstm",
    layers: int = 1,
    bidirectional: bool = False,
    bias: bool = True,
    kernel_init: str | initializers.Initializer | None = None,
    dtype: Any = float,
) -> dict[str, Any]:
    """`{"layer0": {"forward": {"input", "hidden"}, "backward": ...}, ...}`: kernels [n, gates * width], biases.

    Args:
      inputs: features of x; later layers take those of the layer before, of both directions.
      kernel_init: draws each gate's kernel by itself, by name (see `initializers`) or `f(key, shape, dtype)`; None is
        uniform in +-1/sqrt(width), as biases are: torch's default.

    Raises:
      ValueError: no such cell.

    >>> params = init(jax.random.key(0), 3, 5, cell="gru", layers=2, bidirectional=True)
    >>> jax.tree.map(jnp.shape, params["layer1"]["backward"]["input"])
    {'bias': (15,), 'kernel': (10, 15)}
    """
    gates = _gates(cell)
    uniform = initializers.torch_bias(width)
    draw = uniform if kernel_init is None else initializers.by_name(kernel_init)

    def each(key, shape, dtype):
        return jnp.concatenate([draw(k, (shape[0], width), dtype) for k in jax.random.split(key, gates)], -1)

    def part(key, n):
        return linear.init(key, n, gates * width, bias=bias, kernel_init=each, bias_init=uniform, dtype=dtype)

    directions = _directions(bidirectional)
    keys = iter(jax.random.split(key, 2 * layers * len(directions)))
    sizes = [inputs] + [len(directions) * width] * (layers - 1)
    return {
        f"layer{i}": {name: {"input": part(next(keys), n), "hidden": part(next(keys), width)} for name in directions}
        for i, n in enumerate(sizes)
    }


def init_state(
    batch: int, width: int, *, cell: Cell = "lstm", layers: int = 1, bidirectional: bool = False, dtype: Any = float
) -> dict[str, Any]:
    """The state before the first token: zeros, in at least float32.

    >>> jax.tree.map(jnp.shape, init_state(2, 3))
    {'layer0': {'forward': {'c': (2, 3), 'h': (2, 3)}}}
    """
    _gates(cell)
    wide = jnp.promote_types(dtype, jnp.float32)
    names = ("h", "c") if cell == "lstm" else ("h",)
    return {
        f"layer{i}": {d: {k: jnp.zeros((batch, width), wide) for k in names} for d in _directions(bidirectional)}
        for i in range(layers)
    }


def apply(
    params: dict[str, Any],
    x: jax.Array,
    *,
    cell: Cell,
    table: jax.Array | None = None,
    lengths: jax.Array | None = None,
    initial: dict[str, Any] | None = None,
    dropout: Any = 0.0,
    key: jax.Array | None = None,
    train: bool = False,
) -> tuple[jax.Array, dict[str, Any]]:
    """All layers over all of a sequence.

    Args:
      x: [batch, length, inputs]; or, with `table`, integers [batch, length].
      cell: that of `init`.
      table: [count, inputs], an embedding's, whose rows x names. What the gates take from the input is computed once
        for each row of it: of 65 characters, in place of 2,048 places.
      lengths: [batch] integers, how many places of each row are tokens, from its first; None is all. What stands in the
        others does not matter. As torch's pack_padded_sequence has it: the backward direction starts at the last token.
      initial: the state to start from; None is zeros.
      dropout: share dropped of the outputs of each layer but the last, in training, and its key.

    Returns:
      (y [batch, length, directions * width], the forward direction first, zero past the lengths; the state after the
      last token, of the backward direction after the first).

    Raises:
      ValueError: kernels that do not fit the cell or x, no such cell, or dropout in training without a key.

    >>> params = init(jax.random.key(0), 3, 4)
    >>> x = jax.random.normal(jax.random.key(1), (2, 5, 3))
    >>> y, state = apply(params, x, cell="lstm", lengths=jnp.array([5, 2]))
    >>> y.shape, bool((y[1, 2:] == 0).all()), bool((state["layer0"]["forward"]["h"] == y[jnp.arange(2), [4, 1]]).all())
    ((2, 5, 4), True, True)
    """
    here = None if lengths is None else jnp.arange(x.shape[1]) < lengths[:, None]
    if here is not None:
        # So that no nan of a place that is none reaches a gradient.
        x = jnp.where(here if table is not None else here[..., None], x, 0)
    final = {}
    for i in range(len(params)):
        layer, found, outputs = params[f"layer{i}"], {}, []
        if i:
            x = drop(x, dropout, key=None if key is None else jax.random.fold_in(key, i), train=train)
        for direction in _directions("backward" in layer):
            start = None if initial is None else initial[f"layer{i}"][direction]
            y, found[direction] = _run(layer[direction], x, table, start, here, cell, direction == "backward")
            outputs.append(y)
        table = None
        x, final[f"layer{i}"] = jnp.concatenate(outputs, -1), found
    return x, final


def step(
    params: dict[str, Any], state: dict[str, Any], x: jax.Array, *, cell: Cell
) -> tuple[jax.Array, dict[str, Any]]:
    """One token more: x [batch, inputs] -> (y [batch, width], state), what `apply` gives for it, without dropout.

    Raises:
      ValueError: the layers go in both directions, or kernels that do not fit the cell or x.

    >>> params = init(jax.random.key(0), 3, 4, cell="gru")
    >>> y, state = step(params, init_state(2, 4, cell="gru"), jnp.ones((2, 3)), cell="gru")
    >>> y.shape
    (2, 4)
    """
    new = {}
    for i in range(len(params)):
        layer, before = params[f"layer{i}"], state[f"layer{i}"]["forward"]
        if "backward" in layer:
            raise ValueError("layers of both directions take a whole sequence, not one token after another")
        _check(layer["forward"], x, cell)
        new[f"layer{i}"] = {
            "forward": _next(layer["forward"], linear.apply(layer["forward"]["input"], x), before, cell)
        }
        x = new[f"layer{i}"]["forward"]["h"].astype(layer["forward"]["hidden"]["kernel"].dtype)
    return x, new


@partial(jax.jit, static_argnames=("cell", "reverse"))
def _run(params, x, table, state, here, cell, reverse):
    """One layer in one direction: the inputs' part of all gates by one product, the rest place by place.

    Traced once for layers of one shape; called outside of a program, compiled once, where a scan would be each time.
    """
    kernel, outside = params["hidden"]["kernel"], partial(linear.apply, params["input"])
    _check(params, x if table is None else table, cell)
    gates = outside(x) if table is None else embedding.apply({"table": outside(table)}, x)
    if state is None:
        state = init_state(len(x), len(kernel), cell=cell, dtype=kernel.dtype)["layer0"]["forward"]
    gates = jnp.swapaxes(gates, 0, 1)
    state = jax.tree.map(
        lambda s: s.astype(jnp.promote_types(jnp.promote_types(s.dtype, jnp.float32), kernel.dtype)), state
    )

    places = None if here is None else here.T[..., None]
    if cell == "lstm":
        wide = state["h"].dtype
        gates = gates.astype(wide) + params["hidden"].get("bias", jnp.zeros((), kernel.dtype)).astype(wide)
        state, y = lstm.recur(gates, kernel, state, places, reverse)
        y = y.astype(kernel.dtype)
        return jnp.swapaxes(y if places is None else jnp.where(places, y, 0), 0, 1), state

    def advance(before, given):
        gates, here = given
        after = _next(params, gates, before, cell)
        y = after["h"].astype(kernel.dtype)
        if here is not None:
            y = jnp.where(here, y, 0)
            after = jax.tree.map(lambda a, b: jnp.where(here, a, b), after, before)
        return after, y

    state, y = lax.scan(advance, state, (gates, places), reverse=reverse)
    return jnp.swapaxes(y, 0, 1), state


def _next(params, gates, state, cell):
    """The state after one place, from the inputs' part of its gates [batch, gates * width]."""
    wide = state["h"].dtype
    a, b = gates.astype(wide), linear.apply(params["hidden"], state["h"]).astype(wide)
    if cell == "lstm":
        i, f, g, o = jnp.split(a + b, 4, -1)
        c = jax.nn.sigmoid(f) * state["c"] + jax.nn.sigmoid(i) * jnp.tanh(g)
        return {"h": jax.nn.sigmoid(o) * jnp.tanh(c), "c": c}
    if cell == "gru":
        (a_r, a_z, a_n), (b_r, b_z, b_n) = jnp.split(a, 3, -1), jnp.split(b, 3, -1)
        r, z = jax.nn.sigmoid(a_r + b_r), jax.nn.sigmoid(a_z + b_z)
        return {"h": (1 - z) * jnp.tanh(a_n + r * b_n) + z * state["h"]}
    return {"h": jnp.tanh(a + b) if cell == "rnn_tanh" else jax.nn.relu(a + b)}


def _check(params, x, cell):
    (n, columns), (width, hidden) = params["input"]["kernel"].shape, params["hidden"]["kernel"].shape
    if columns != hidden or hidden != _gates(cell) * width:
        raise ValueError(f"kernels {(n, columns)} and {(width, hidden)} are not those of a cell {cell!r}")
    if x.shape[-1] != n:
        raise ValueError(f"x {x.shape} must have {n} features")


def _gates(cell):
    if cell not in _GATES:
        raise ValueError(f"cell {cell!r} is not one of: {', '.join(_GATES)}")
    return _GATES[cell]


def _directions(both):
    return ("forward", "backward") if both else ("forward",)
