"""Stochastic rounding to bfloat16: unbiased, exact where there is nothing to round; runs that move with it alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import digits_feed, leaves, mlp_task, same, train

from functrain import config
from functrain.config import ConfigError, Source
from functrain.experiment import Experiment
from functrain.metrics import Mean
from functrain.optim import SGD, Learner
from functrain.precision import BFloat16
from functrain.precision.rounding import added, stochastic

LARGEST = float(jnp.finfo(jnp.bfloat16).max)
SUBNORMAL = 2.0**-133
"""The smallest number of bfloat16 above 0."""


def _bits(x):
    return np.asarray(x).view(np.uint16)


@pytest.mark.parametrize(
    "x", [1 + 2**-9, -1 - 3 * 2**-10, 3.14159, -2.71828e-20, 1.7e30, 2**-126 * 1.003, 0.3 * SUBNORMAL, -7.7 * SUBNORMAL]
)
def test_the_mean_is_the_number(x):
    """Over 200,000 draws to within four standard errors, by the two neighbours alone; negative and subnormal too."""
    n, x = 200_000, np.float32(x)
    drawn = np.asarray(jax.jit(stochastic)(jnp.full(n, x), jax.random.key(3))).astype(np.float64)
    below, above = (_between(x) * np.sign(x)).tolist()
    assert set(drawn.tolist()) == {below, above}
    share = (float(x) - below) / (above - below)
    assert abs((drawn == above).mean() - share) < 4 * np.sqrt(share * (1 - share) / n)


def _between(x):
    """The magnitudes in bfloat16 on both sides of a float32's, in float64."""
    lower = np.abs(np.float32(x)).view(np.uint32) >> 16
    ends = (np.array([lower, lower + 1], np.uint32) << 16).view(np.float32)
    return ends.astype(np.float64)


def test_what_bfloat16_holds_stays():
    """Every one of its 65,536 numbers, zeros of both signs, infinities and subnormal ones included; nan stays nan."""
    every = np.arange(2**16, dtype=np.uint32)
    x = (every << 16).view(np.float32)
    found = jax.jit(stochastic)(jnp.asarray(x), jax.random.key(0))
    nan = np.isnan(x)
    np.testing.assert_array_equal(_bits(found)[~nan], every[~nan])
    assert np.isnan(np.asarray(found)[nan].astype(np.float32)).all()
    odd = np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(np.asarray(stochastic(jnp.asarray(odd), jax.random.key(0))).astype(np.float32)).all()


def test_beyond_the_largest():
    """It, or infinity, with the sign."""
    x = jnp.array([LARGEST * (1 + 2**-9), -LARGEST * (1 + 2**-9)] * 2000, jnp.float32)
    found = np.asarray(stochastic(x, jax.random.key(1))).astype(np.float32)
    assert set(found[::2].tolist()) == {LARGEST, np.inf}
    assert set(found[1::2].tolist()) == {-LARGEST, -np.inf}


def test_other_dtypes_are_refused():
    """Of float32 alone."""
    with pytest.raises(ValueError, match=r"of float32; found float16"):
        stochastic(jnp.zeros(2, jnp.float16), jax.random.key(0))


def test_a_draw_is_of_key_and_path():
    """The same again for the same; another for another path or key; parameters in float32 are not rounded."""
    params = {"a": jnp.ones(999, jnp.bfloat16), "b": jnp.ones(999, jnp.bfloat16), "c": jnp.ones(3)}
    updates = jax.tree.map(lambda p: jnp.full(p.shape, 2**-9), params)
    key = jax.random.key(0)
    found = added(params, updates, key)
    assert same(found, added(params, updates, key))
    assert same(found["b"], jax.jit(added)({"b": params["b"]}, {"b": updates["b"]}, key)["b"])
    assert not same(found["a"], found["b"])
    assert not same(found["a"], added(params, updates, jax.random.key(1))["a"])
    assert found["c"].tolist() == [1 + 2**-9] * 3


def _moved(rounding, steps):
    """Where 1,000 parameters of 1 are after steps of 1/20 of a unit in the last place each."""
    learner = Learner(optimizer=SGD(peak_lr=1.0), precision=BFloat16(parameters="low", rounding=rounding))
    player = learner.init({"w": jnp.ones(1000)})

    def loss(params, state, batch, *, key):
        return Mean(params["w"].astype(jnp.float32).sum() * 2**-7 / 20, jnp.float32(1)), state, {}

    @jax.jit
    def run(player):
        def step(i, player):
            key = jax.random.fold_in(jax.random.key(7), i)
            return learner.update(loss, player, {}, {"x": jnp.ones(1)}, key=key)[0]

        return jax.lax.fori_loop(0, steps, step, player)

    return np.asarray(run(player).params["w"]).astype(np.float64)


def test_small_updates_come_through():
    """200 steps of a twentieth of a unit: 10 units down in the mean (half as wide below 1), none to nearest."""
    assert (_moved("nearest", 200) == 1).all()
    found = _moved("stochastic", 200)
    # The sum of 200 gradients exactly, each rounding's error within half a unit's deviation of 2**-7 at the most.
    wanted, deviation = 1 - 200 * 2**-7 / 20, np.sqrt(200 / 20) * 2**-7
    assert abs(found.mean() - wanted) < 4 * deviation / np.sqrt(1000)
    assert 0.1 * deviation < found.std() < deviation


def test_it_trains_in_any_chunk(digits):
    """Chunks of 1 and of 40 are the same bit for bit, and not what rounding to nearest gives; moments in float32."""
    found = []
    for rounding, chunk in (("stochastic", 1), ("stochastic", 40), ("nearest", 40)):
        policy = BFloat16(parameters="low", rounding=rounding, keep=("bias$",))  # pyright: ignore[reportArgumentType]
        task = mlp_task(precision=policy)
        found.append(train(task, digits_feed(digits), steps=80, chunk=chunk, log_every=40))
    players = [outcome.train_state.players["model"] for outcome, _ in found]
    assert same(*players[:2])
    assert not same(*players[1:])
    assert {leaf.dtype.name for leaf in leaves(players[0].optimizer) if leaf.ndim} == {"float32"}
    assert {leaf.dtype.name for leaf in leaves(players[0].params)} == {"float32", "bfloat16"}
    lines = found[0][1].lines
    assert lines[-1][2]["loss"] < 0.9 * lines[0][2]["loss"]


def test_it_is_of_parameters_in_bfloat16():
    """Of others the config is refused, in a line."""
    text = {"task": {"kind": "classification"}, "precision": {"kind": "bfloat16", "rounding": "stochastic"}}
    with pytest.raises(
        ConfigError, match=r'precision: .*"stochastic" is of parameters kept in bfloat16; expected param'
    ):
        config.parse(Experiment, Source(text))
