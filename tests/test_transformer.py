"""The Transformer by itself: its cache, its padding, what it cannot see, and that it learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functrain import losses, tree
from functrain.config import ConfigError
from functrain.models import Transformer
from functrain.optim import AdamW, Learner

pytestmark = pytest.mark.usefixtures("quick")

SMALL = Transformer(
    inputs=(9,), outputs=11, encoder_layers=1, decoder_layers=1, heads=2, width=10, hidden=14, dropout=0.2
)


def drawn(model, seed=0):
    """Parameters of which none is zero, and tokens of two sentences, as long as their arrays."""
    params = jax.eval_shape(model.init, jax.random.key(seed))[0]
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape, scale=0.5)), params)
    return params, rng.integers(1, model.outputs, (2, 5)), rng.integers(1, model.outputs, (2, 7))


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "settings", [{}, {"norm_first": True, "positions": "learned", "tied": "none"}], ids=["paper", "other"]
)
def test_decoding_with_a_cache_is_the_forward_pass(settings):
    """A token or several at a time, of sources of different lengths, give the logits of all at once; steps are one
    program, and room to spare changes nothing."""
    model = dataclasses.replace(SMALL, decoder_layers=2, **settings)
    params, x, y = drawn(model)
    x[1, 3:] = 0
    whole = jax.jit(model.apply)(params, {}, x, y)[0]
    assert whole.dtype == jnp.float64
    encoded = jax.jit(model.encode)(params, x)
    decode = jax.jit(model.decode)
    for room, pieces in ((7, [1] * 7), (9, [3, 4])):
        state, at = model.remember(encoded, 2, room), 0
        for n in pieces:
            logits, state = decode(params, state, y[:, at : at + n])
            close(logits, whole[:, at : at + n])
            at += n
        assert int(state["cache"]["block0"]["length"]) == 7
    for leaf in jax.tree.leaves(state):  # what a beam search gathers
        assert leaf.ndim == 0 or leaf.shape[0] == 2


@pytest.mark.usefixtures("float64")
def test_padding_changes_nothing():
    """Before or after a sentence, in the source, in the target, and in both: logits and gradients are the same."""
    params, x, y = drawn(SMALL)

    @jax.jit
    def weighed(params, x, y):
        logits = SMALL.apply(params, {}, x, y)[0]
        return (logits * jnp.sin(y)[..., None] * (y != 0)[..., None]).sum(), logits

    both = jax.jit(jax.grad(weighed, has_aux=True))
    gradients, logits = both(params, x, y)
    for source, target in (((0, 3), (0, 2)), ((3, 0), (2, 0)), ((2, 1), (0, 2))):
        padded = both(params, np.pad(x, ((0, 0), source)), np.pad(y, ((0, 0), target)))
        close(padded[1][:, target[0] : target[0] + 7], logits)
        jax.tree.map(close, padded[0], gradients)


def test_what_a_token_sees():
    """All of the source, and of the target itself and what is before it; nothing of what is ahead."""
    params, x, y = drawn(SMALL)
    apply = jax.jit(lambda x, y: SMALL.apply(params, {}, x, y)[0])
    logits = apply(x, y)
    ahead = y.copy()
    ahead[:, 4:] = ahead[:, 4:] % 10 + 1
    assert (apply(x, ahead)[:, :4] == logits[:, :4]).all()
    assert (apply(x, ahead)[:, 4:] != logits[:, 4:]).any(-1).all()
    other = x.copy()
    other[:, -1] = other[:, -1] % 10 + 1
    assert (apply(other, y) != logits).any(-1).all()


@pytest.mark.usefixtures("float64")
def test_dropout_is_drawn_in_training_alone():
    """By the key, at a rate that may be traced."""
    params, x, y = drawn(SMALL)

    @jax.jit
    def trained(key, rate):
        return dataclasses.replace(SMALL, dropout=rate).apply(params, {}, x, y, key=key, train=True)[0]

    a, b = jax.random.split(jax.random.key(0))
    assert (trained(a, 0.3) == trained(a, 0.3)).all()
    assert (trained(a, 0.3) != trained(b, 0.3)).mean() > 0.9
    close(trained(a, 1e-300), jax.jit(SMALL.apply)(params, {}, x, y)[0])


def test_parameters_that_are_one():
    """Three tables, two or one; a source vocabulary of its own; positions with room for the longest."""

    def count(**settings):
        model = dataclasses.replace(SMALL, **settings).build()
        return tree.size(jax.eval_shape(model.init, jax.random.key(0))[0])

    whole = count()
    assert count(tied="output") == whole + 110
    assert count(tied="none") == whole + 220
    assert count(tied="output", source_vocabulary=20) == whole + 200
    assert count(positions="learned") == whole + 2 * 9 * 10
    assert count(positions="learned", longest=30) == whole + 2 * 30 * 10


def test_it_learns_to_reverse_digits():
    """Seven tokens from seven, the other way round; decoded from the source alone."""
    model = Transformer(
        inputs=(7,), outputs=14, encoder_layers=1, decoder_layers=1, heads=2, width=32, dropout=0.0, norm_first=True
    )
    learner = Learner(optimizer=AdamW(peak_lr=5e-3, weight_decay=0.0))

    def loss(params, state, batch, *, key):
        begin = jnp.full((len(batch["x"]), 1), 2)
        y = batch["x"][:, ::-1]
        logits, state = model.apply(params, state, batch["x"], jnp.concatenate([begin, y[:, :-1]], 1))
        return losses.cross_entropy(logits, y), state, {}

    def step(player, i):
        x = jax.random.randint(jax.random.fold_in(jax.random.key(1), i), (64, 7), 4, 14)
        player, _, metrics = learner.update(loss, player, {}, {"x": x}, key=jax.random.key(0))
        return player, metrics["loss"].total / metrics["loss"].count

    player = learner.init(model.init(jax.random.key(0))[0])
    player, value = jax.jit(lambda player: jax.lax.scan(step, player, jnp.arange(400)))(player)
    assert value[-1] < 0.05 < 2 < value[0]

    x = jax.random.randint(jax.random.key(9), (50, 7), 4, 14)
    state = model.remember(model.encode(player.params, x), 50, 7)
    token, decode, found = jnp.full((50, 1), 2), jax.jit(model.decode), []
    for _ in range(7):
        logits, state = decode(player.params, state, token)
        token = logits.argmax(-1)
        found.append(token)
    assert (jnp.concatenate(found, 1) == x[:, ::-1]).mean() > 0.98


def test_mistakes():
    """Each names its key."""
    with pytest.raises(ConfigError, match=r"model\.heads: found 3; it does not divide model\.width = 10"):
        dataclasses.replace(SMALL, heads=3).build()
    with pytest.raises(ConfigError, match=r'model\.tied: found "all" with model\.source_vocabulary = 12, and 11'):
        dataclasses.replace(SMALL, source_vocabulary=12).build()
    with pytest.raises(ConfigError, match="transformer takes sequences of tokens; the data has"):
        Transformer().sized((8, 8), 10)
    assert Transformer().sized((8,), 10).inputs == (8,)
    learned = dataclasses.replace(SMALL, positions="learned")
    params = jax.eval_shape(learned.init, jax.random.key(0))[0]
    with pytest.raises(ValueError, match=r"a sequence of 10; the model has 9 positions \(model\.longest\)"):
        jax.eval_shape(learned.encode, params, jnp.ones((1, 10), int))
