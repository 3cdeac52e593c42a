"""Recurrent layers and the models of text that classify: pieces equal the whole, padding never leaks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functrain.config import ConfigError
from functrain.layers import recurrent
from functrain.models import Recurrent, TextCNN

pytestmark = pytest.mark.usefixtures("quick")

CELLS = ("lstm", "gru", "rnn_tanh", "rnn_relu")


def _close(a, b, tolerance=1e-6):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        np.testing.assert_allclose(np.asarray(one, np.float64), np.asarray(other, np.float64), atol=tolerance, rtol=0)


def _layers(cell, dtype=float, **settings):
    params = recurrent.init(jax.random.key(0), 3, 5, cell=cell, dtype=dtype, **settings)
    return params, jax.random.normal(jax.random.key(1), (3, 7, 3))


# -- the layer ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cell", "dtype"), [*((cell, jnp.float32) for cell in CELLS), ("lstm", jnp.bfloat16)])
def test_pieces_and_single_steps_are_the_whole(cell, dtype):
    """A sequence in two pieces, or token by token, gives the outputs and the state of the whole; in bfloat16 too."""
    params, x = _layers(cell, dtype, layers=2)
    run = partial(recurrent.apply, params, cell=cell)
    y, final = run(x)
    assert y.dtype == dtype
    first, state = run(x[:, :3])
    second, state = run(x[:, 3:], initial=state)
    _close((jnp.concatenate([first, second], 1), state), (y, final))
    state, outputs = recurrent.init_state(3, 5, cell=cell, layers=2, dtype=dtype), []
    for t in range(x.shape[1]):
        out, state = recurrent.step(params, state, x[:, t], cell=cell)
        outputs.append(out)
    # Between products, programs differ in what they round to bfloat16.
    _close((jnp.stack(outputs, 1), state), (y, final), 1e-6 if dtype == jnp.float32 else 0.01)


def test_a_ragged_row_is_as_alone():
    """Outputs, states and gradients of rows of 7, 1 and 4 tokens are those of each cut to its length and run alone."""
    cell = "lstm"
    params, x = _layers(cell, bidirectional=True)
    lengths = (7, 1, 4)

    def together(params, x):
        y, state = recurrent.apply(params, x, cell=cell, lengths=jnp.array(lengths))
        return (y**2).sum() + sum((s**2).sum() for s in jax.tree.leaves(state)), (y, state)

    def alone(params, x):
        rows = [recurrent.apply(params, x[i : i + 1, :n], cell=cell) for i, n in enumerate(lengths)]
        filled = [jnp.pad(y, [(0, 0), (0, 7 - y.shape[1]), (0, 0)]) for y, _ in rows]
        state = jax.tree.map(lambda *rows: jnp.concatenate(rows), *(state for _, state in rows))
        y = jnp.concatenate(filled)
        return (y**2).sum() + sum((s**2).sum() for s in jax.tree.leaves(state)), (y, state)

    strange = x.at[1, 1:].set(jnp.nan).at[2, 4:].set(1e9)  # what stands in the padding does not matter
    both = [jax.jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True)) for f in (together, alone)]
    (_, found), (by_params, by_x) = both[0](params, strange)
    (_, wanted), (params_alone, x_alone) = both[1](params, x)
    _close(found, wanted)
    _close((by_params, by_x), (params_alone, x_alone), 2e-5)


def test_low_precision_is_near_float32():
    """In bfloat16 over 200 tokens: the dtype of y, and no drift beyond the rounding of the weights."""
    params = recurrent.init(jax.random.key(0), 8, 16)
    x = jax.random.normal(jax.random.key(1), (4, 200, 8))
    whole, final = recurrent.apply(params, x, cell="lstm")
    low = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    y, state = recurrent.apply(low, x, cell="lstm")
    assert y.dtype == jnp.bfloat16
    assert {s.dtype for s in jax.tree.leaves(state)} == {jnp.dtype("float32")}
    assert float(jnp.abs(y - whole).max()) < 0.02
    assert float(jnp.abs(state["layer0"]["forward"]["c"] - final["layer0"]["forward"]["c"]).max()) < 0.02


def test_kernels_by_name_are_drawn_gate_by_gate():
    """Each gate's hidden kernel is orthogonal by itself."""
    params = recurrent.init(jax.random.key(0), 3, 6, cell="gru", kernel_init="orthogonal")
    for gate in jnp.split(params["layer0"]["forward"]["hidden"]["kernel"], 3, -1):
        np.testing.assert_allclose(gate @ gate.T, np.eye(6), atol=1e-5)


def test_mistakes_of_the_layer():
    """A cell that the kernels are not of, features that do not fit, both directions token by token."""
    params, x = _layers("gru", bidirectional=True)
    with pytest.raises(ValueError, match="not those of a cell 'lstm'"):
        recurrent.apply(params, x, cell="lstm")
    with pytest.raises(ValueError, match="must have 3 features"):
        recurrent.apply(params, x[..., :2], cell="gru")
    with pytest.raises(ValueError, match="both directions"):
        recurrent.step(params, recurrent.init_state(3, 5, cell="gru", bidirectional=True), x[:, 0], cell="gru")
    with pytest.raises(ValueError, match="one of: lstm, gru"):
        recurrent.init(jax.random.key(0), 3, 5, cell="elman")  # pyright: ignore[reportArgumentType]


# -- the models -----------------------------------------------------------------------------------

SENTENCES = np.array([[5, 3, 8, 0, 0, 0], [2, 0, 0, 0, 0, 0], [4, 4, 9, 1, 7, 6], [0, 0, 0, 0, 0, 0]])


def _made(model):
    params, state = model.build().init(jax.random.key(0))
    return params, lambda x, segments=None: model.apply(params, state, jnp.asarray(x), segments)[0]


CLASSIFIERS = {
    **{pool: Recurrent(outputs=3, vocabulary=10, width=4, pool=pool) for pool in ("last", "mean", "max")},
    "both": Recurrent(outputs=3, vocabulary=10, width=4, layers=2, pool="last", bidirectional=True, cell="gru"),
    "cnn": TextCNN(outputs=3, vocabulary=10, embedding=4, maps=5),
}


@pytest.mark.parametrize("name", ["max", "both", "cnn"])
def test_padding_never_leaks(name):
    """Logits and gradients do not change with more padding, on either side, nor with what other rows a batch has."""
    model = CLASSIFIERS[name]
    params = jax.tree.map(lambda p: p + 0.1, _made(model)[0])  # biases that are not zero, and an embedding of padding

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def both(params, x, segments):
        logits, _ = model.apply(params, {}, x, segments)
        return (logits**2).sum(), logits

    def run(x, real=None):
        segments = None if real is None else jnp.asarray(real, jnp.int32)
        (_, logits), gradients = both(params, jnp.asarray(x), segments)
        return logits, gradients

    logits, gradients = run(SENTENCES)
    assert all(
        np.isfinite(leaf).all() for leaf in jax.tree.leaves((logits, gradients))
    )  # a row of padding alone is harmless
    assert (logits[0] != logits[1]).all()
    assert (gradients["tokens"]["table"][0] == 0).all()  # the padding's own
    longer = np.pad(SENTENCES, [(0, 0), (0, 5)])
    # And a padding id of its own, where the segments say what is padding.
    for x in (longer, np.roll(longer, 3, axis=1)):
        _close(run(np.where(x == 0, 9, x), x != 0), (logits, gradients), 1e-5)
    x = longer[[1, 0, 0, 1]]
    _close(run(x, x != 0)[0], logits[jnp.array([1, 0, 0, 1])])


def test_pools_are_what_they_say():
    """last, mean and max of the cells' own outputs, by hand."""
    lengths = [3, 1, 6]
    for pool in ("last", "mean", "max"):
        model = CLASSIFIERS[pool]
        params, logits = _made(model)
        outputs = recurrent.apply(params["cells"], params["tokens"]["table"][SENTENCES], cell="lstm")[0]
        for row, n in enumerate(lengths):
            y = outputs[row, :n]
            pooled = {"last": y[-1], "mean": y.mean(0), "max": y.max(0)}[pool]
            _close(logits(SENTENCES)[row], pooled @ params["head"]["kernel"] + params["head"]["bias"])


def test_text_cnn_is_kims():
    """By hand, window by window: zeros around, no window of zeros alone, the largest, ReLU."""
    model = CLASSIFIERS["cnn"]
    params, _ = _made(model)
    params = jax.tree.map(np.asarray, params)
    assert (params["tokens"]["table"][0] == 0).all()
    for bias in (0.0, 5.0):  # of 5: a window of zeros would win
        for i in range(3):
            params[f"conv{i}"] = params[f"conv{i}"] | {"bias": np.full(5, bias, np.float32)}
        for row, n in enumerate((3, 1, 6)):
            h, found = params["tokens"]["table"][SENTENCES[row, :n]], []
            for i, width in enumerate((3, 4, 5)):
                padded, kernel = np.pad(h, [(width - 1, width - 1), (0, 0)]), params[f"conv{i}"]["kernel"]
                windows = [(padded[t : t + width, :, None] * kernel).sum((0, 1)) + bias for t in range(n + width - 1)]
                found.append(np.maximum(np.max(windows, 0), 0))
            wanted = np.concatenate(found) @ params["head"]["kernel"] + params["head"]["bias"]
            _close(model.apply(params, {}, jnp.asarray(SENTENCES))[0][row], wanted, 1e-5)


def test_kims_parameters():
    """Embeddings, 300 (3 + 4 + 5) x 100 + 300, and the linear layer of 300."""
    model = TextCNN(inputs=(56,), outputs=2, vocabulary=1000).build()
    params = jax.eval_shape(model.init, jax.random.key(0))[0]
    assert sum(p.size for p in jax.tree.leaves(params)) == 300_000 + 360_000 + 300 + 602


def test_a_recurrent_language_model_goes_on():
    """Token by token, in pieces and after padding on the left, with a state: the logits of the whole; nothing ahead."""
    model = Recurrent(inputs=(7,), outputs=11, width=5, layers=2, embedding=6, cell="gru").build()
    params, nothing = model.init(jax.random.key(0))
    run = jax.jit(lambda state, x, *more: model.apply(params, state, x, *more))
    x = jax.random.randint(jax.random.key(1), (2, 7), 0, 11)
    whole, state = run(nothing, x)
    assert state == {}
    assert whole.shape == (2, 7, 11)
    ahead, _ = run(nothing, x.at[:, 5:].set((x[:, 5:] + 1) % 11))
    assert (ahead[:, :5] == whole[:, :5]).all()
    state, pieces = model.remember(2, 99), []
    for start, end in ((0, 3), (3, 4), (4, 7)):
        logits, after = run(state, x[:, start:end])
        assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
        state = after
        pieces.append(logits)
    _close(jnp.concatenate(pieces, 1), whole)

    segments = jnp.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    prompt = jnp.stack([jnp.pad(x[0, :3], (2, 0)), x[1, :5]])
    logits, state = run(model.remember(2, 99), prompt, segments)
    _close((logits[0, 2:], logits[1]), (whole[0, :3], whole[1, :5]))
    logits, _ = run(state, jnp.stack([x[0, 3:5], x[1, 5:7]]))
    _close((logits[0], logits[1]), (whole[0, 3:5], whole[1, 5:7]))


def test_a_tied_head_is_the_embedding():
    """No kernel of its own: the last layer's outputs by the table of tokens; a logit for each row of a larger table."""
    model = Recurrent(outputs=6, width=3, tied=True, vocabulary=8, cell="rnn_tanh").build()
    params, logits = _made(model)
    assert set(params) == {"tokens", "cells"}
    x = SENTENCES[:, :3] % 6
    y, _ = recurrent.apply(params["cells"], params["tokens"]["table"][x], cell="rnn_tanh")
    _close(logits(x), y @ params["tokens"]["table"].T)


def test_several_sequences_in_a_row_are_no_number():
    """A row is one sequence; where it is not, nan, and no other row's."""
    model = Recurrent(inputs=(4,), outputs=6, width=3)
    _, logits = _made(model)
    found = logits(np.ones((2, 4), int), jnp.array([[1, 1, 2, 2], [2, 2, 2, 0]]))
    assert np.isnan(found[0]).all()
    assert np.isfinite(found[1]).all()


def test_dropout_of_the_models():
    """In training, two keys give two outputs; in evaluation none is needed; without a key, an error."""
    for model in (Recurrent(outputs=2, vocabulary=10, width=8, pool="mean", dropout=0.5), CLASSIFIERS["cnn"]):
        params, _ = _made(model)
        x = jnp.asarray(SENTENCES)
        one, two = (model.apply(params, {}, x, key=jax.random.key(k), train=True)[0] for k in (0, 1))
        assert (one != two).any()
        with pytest.raises(ValueError, match="needs a key"):
            model.apply(params, {}, x, train=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bidirectional": True}, "model.bidirectional: found true"),
        ({"pool": "last", "vocabulary": 9, "tied": True}, "model.tied: found true; expected false"),
        ({"tied": True, "embedding": 3}, r"model.tied: found true; needs model\.embedding = 128"),
        ({"pool": "max"}, "model.vocabulary: missing"),
    ],
)
def test_mistakes_of_the_config(settings, message):
    """Settings that do not go together."""
    with pytest.raises(ConfigError, match=message):
        Recurrent(**settings).build()
    with pytest.raises(ConfigError, match=r"model\.vocabulary: missing"):
        TextCNN().build()
    with pytest.raises(ConfigError, match="takes sequences of tokens"):
        TextCNN().sized((8, 8), 2)
