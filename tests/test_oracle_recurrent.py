"""Recurrent layers are the same mathematics as PyTorch's: float64, outputs, final states and every gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import agree, draw

from functrain.layers import recurrent

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'functrain[oracle]'")
torch.set_num_threads(1)

pytestmark = [pytest.mark.oracle, pytest.mark.usefixtures("float64")]

FUNCTION = 1e-12
"""All layers forward and backward over a whole sequence, relative to the largest magnitude in the array compared."""

INPUTS, WIDTH = 3, 4
LENGTHS = [5, 2, 1, 4]
"""Of a ragged batch: not sorted, the longest of all places, one of one token."""


# -- torch's names and layouts --------------------------------------------------------------------


def torch_layer(cell, layers, bidirectional, bias, dropout=0.0):
    """torch.nn's layer of a cell, in float64."""
    kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}.get(cell, torch.nn.RNN)
    other = {} if cell in ("lstm", "gru") else {"nonlinearity": cell.removeprefix("rnn_")}
    settings = {"num_layers": layers, "bidirectional": bidirectional, "bias": bias, "dropout": dropout, **other}
    return kind(INPUTS, WIDTH, batch_first=True, dtype=torch.float64, **settings)


def names(params):
    """(our part, its kernel or bias, torch's name) of every parameter: weight_ih_l0, bias_hh_l1_reverse ..."""
    for layer in params:
        for direction in params[layer]:
            end = f"l{layer.removeprefix('layer')}{'_reverse' if direction == 'backward' else ''}"
            for part, short in (("input", "ih"), ("hidden", "hh")):
                for leaf in params[layer][direction][part]:
                    which = "weight" if leaf == "kernel" else "bias"
                    yield params[layer][direction][part], leaf, f"{which}_{short}_{end}"


def to_torch(params, module):
    """Our parameters into torch's module."""
    with torch.no_grad():
        for part, leaf, name in names(params):
            getattr(module, name).copy_(torch.tensor(np.asarray(part[leaf]).T))


def packed_states(state, leaf):
    """Our states as torch's [layers * directions, batch, width]."""
    return np.stack(
        [
            np.asarray(state[f"layer{i}"][direction][leaf])
            for i in range(len(state))
            for direction in ("forward", "backward")
            if direction in state[f"layer{i}"]
        ]
    )


def drawn_like(tree, seed):
    """Normal numbers in the place of every leaf."""
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, [draw((seed, i), *leaf.shape) for i, leaf in enumerate(leaves)])


def compare(cell, layers, bidirectional, ragged, bias):
    """Values and all gradients of y and the final state, with a drawn cotangent for each."""
    settings = {"cell": cell, "layers": layers, "bidirectional": bidirectional}
    params = drawn_like(recurrent.init(jax.random.key(0), INPUTS, WIDTH, bias=bias, **settings), 1)
    params = jax.tree.map(lambda p: 0.5 * p, params)
    batch, length = len(LENGTHS), max(LENGTHS)
    x, initial = draw(2, batch, length, INPUTS), drawn_like(recurrent.init_state(batch, WIDTH, **settings), 3)
    lengths = np.array(LENGTHS) if ragged else None
    by_y, by_state = draw(4, batch, length, WIDTH * (1 + bidirectional)), drawn_like(initial, 5)

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def ours(params, x, initial):
        run = partial(recurrent.apply, cell=cell, lengths=None if lengths is None else jnp.asarray(lengths))
        (y, final), pull = jax.vjp(lambda p, x, s: run(p, x, initial=s), params, x, initial)
        return y, final, pull((by_y, by_state))

    with jax.disable_jit(ragged):  # a third of the time; the others see to the compiled program
        y, final, (of_params, of_x, of_initial) = ours(*jax.tree.map(jnp.asarray, (params, x, initial)))

    module = torch_layer(cell, layers, bidirectional, bias)
    to_torch(params, module)
    torch_x = torch.tensor(x, requires_grad=True)
    leaves = ("h", "c") if cell == "lstm" else ("h",)
    start = [torch.tensor(packed_states(initial, leaf), requires_grad=True) for leaf in leaves]
    given = torch_x
    if ragged:
        given = torch.nn.utils.rnn.pack_padded_sequence(torch_x, lengths, batch_first=True, enforce_sorted=False)
    theirs, end = module(given, tuple(start) if cell == "lstm" else start[0])
    if ragged:
        theirs, _ = torch.nn.utils.rnn.pad_packed_sequence(theirs, batch_first=True, total_length=length)
    end = end if cell == "lstm" else (end,)
    loss = (theirs * torch.tensor(by_y)).sum()
    loss = loss + sum((e * torch.tensor(packed_states(by_state, leaf))).sum() for e, leaf in zip(end, leaves))
    loss.backward()

    agree(y, theirs, FUNCTION)
    agree(of_x, torch_x.grad, FUNCTION)
    for leaf, s, e in zip(leaves, start, end):
        agree(packed_states(final, leaf), e, FUNCTION)
        agree(packed_states(of_initial, leaf), s.grad, FUNCTION)
    compared = {}
    for part, leaf, name in names(of_params):
        agree(np.asarray(part[leaf]).T, getattr(module, name).grad, FUNCTION)
        compared[name] = True
    assert set(compared) == {name for name, _ in module.named_parameters()}


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
def test_ragged_rows(cell, layers, bidirectional):
    """With pack_padded_sequence: outputs, final states, and the gradients by inputs, initial states, parameters."""
    compare(cell, layers, bidirectional, ragged=True, bias=True)


@pytest.mark.parametrize(("layers", "bidirectional"), [(1, False), (2, True), (3, False)])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
def test_whole_rows_without_bias(cell, layers, bidirectional):
    """Without lengths, and without biases."""
    compare(cell, layers, bidirectional, ragged=False, bias=False)


# -- dropout, initial values ----------------------------------------------------------------------


def test_dropout_stands_between_layers():
    """A share of a layer's outputs is zero for the next, the rest over what is kept; the last's stay whole."""
    cell, rate, settings = "gru", 0.4, {"cell": "gru", "layers": 2}
    params = recurrent.init(jax.random.key(0), INPUTS, WIDTH, **settings)
    x, key = jnp.asarray(draw(1, 40, 5, INPUTS)), jax.random.key(3)
    off, _ = recurrent.apply(params, x, cell=cell)
    zero, _ = recurrent.apply(params, x, cell=cell, dropout=0.0, key=key, train=True)
    assert (off == zero).all()
    assert (off == recurrent.apply(params, x, cell=cell, dropout=rate, key=key)[0]).all()
    dropped, state = recurrent.apply(params, x, cell=cell, dropout=rate, key=key, train=True)
    assert (dropped != off).mean() > 0.99
    assert (dropped != 0).all()  # the last layer's are all there
    _, first = recurrent.apply({"layer0": params["layer0"]}, x, cell=cell)
    agree(state["layer0"]["forward"]["h"], first["layer0"]["forward"]["h"], 0.0)

    # Layers whose kernels pass on what they are given: y of the second tells the mask of the first's outputs.
    plain = {
        "input": {"kernel": jnp.eye(WIDTH), "bias": jnp.zeros(WIDTH)},
        "hidden": {"kernel": jnp.zeros((WIDTH, WIDTH)), "bias": jnp.zeros(WIDTH)},
    }
    through = {f"layer{i}": {"forward": plain} for i in range(3)}
    ones = jnp.ones((100, 5, WIDTH))
    y, _ = recurrent.apply(through, ones, cell="rnn_relu", dropout=rate, key=key, train=True)
    kept = 1 / (1 - rate) ** 2  # by two masks, between three layers
    assert np.isclose(np.asarray(y), 0).sum() + np.isclose(np.asarray(y), kept).sum() == y.size
    assert abs(np.isclose(np.asarray(y), kept).mean() - (1 - rate) ** 2) < 0.03
    once, _ = recurrent.apply({"layer0": through["layer0"]}, ones, cell="rnn_relu", dropout=rate, key=key, train=True)
    assert (once == ones).all()


def test_torch_drops_in_the_same_places():
    """torch.nn.RNN with the same kernels and dropout: the same two values, as often."""
    rate = 0.4
    module = torch.nn.RNN(WIDTH, WIDTH, 3, nonlinearity="relu", dropout=rate, bias=False, dtype=torch.float64)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.copy_(torch.eye(WIDTH) if "ih" in name else torch.zeros(WIDTH, WIDTH))
    torch.manual_seed(0)
    y = module(torch.ones(5, 100, WIDTH, dtype=torch.float64))[0].detach().numpy()
    kept = 1 / (1 - rate) ** 2
    assert np.isclose(y, 0).sum() + np.isclose(y, kept).sum() == y.size
    assert abs(np.isclose(y, kept).mean() - (1 - rate) ** 2) < 0.03


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_initial_values_are_torchs(cell):
    """As many parameters of the same shapes, uniform in +-1/sqrt(width)."""
    params = recurrent.init(jax.random.key(0), 3, 64, cell=cell, layers=2, bidirectional=True)
    torch.manual_seed(0)
    module = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}.get(cell, torch.nn.RNN)(3, 64, 2, bidirectional=True)
    theirs = dict(module.named_parameters())
    found = {name: part[leaf] for part, leaf, name in names(params)}
    assert {name: p.shape[::-1] for name, p in found.items()} == {name: tuple(p.shape) for name, p in theirs.items()}
    for p in (*found.values(), *(p.detach().numpy() for p in theirs.values())):
        assert np.abs(p).max() <= 1 / 8
        if p.ndim == 2:  # of a bias there are few numbers
            assert np.abs(p).max() > 0.97 / 8
            assert float(p.std()) == pytest.approx(1 / 8 / np.sqrt(3), rel=0.12)
