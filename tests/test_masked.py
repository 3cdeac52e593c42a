"""The masked language task: what is hidden, what counts, and that neither batch nor accumulation changes it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import leaves

from functrain import config
from functrain.building import build
from functrain.built import compile
from functrain.config import ConfigError
from functrain.data import InOrder, blocks
from functrain.experiment import Experiment
from functrain.metrics import read
from functrain.models.bert import BERT
from functrain.optim import SGD, Learner
from functrain.tasks.masked import MaskedLanguage, key_of
from functrain.train import state
from functrain.train.evaluate import make_evaluate
from functrain.train.loop import Best, run

pytestmark = pytest.mark.usefixtures("quick")

TEXT = "".join(40 * c for c in "abcdefghij") * 8


def task(**settings):
    model = BERT(inputs=(12,), outputs=31, layers=1, heads=2, width=8)
    settings = {"share": 0.4, "learner": Learner(optimizer=SGD(peak_lr=0.1))} | settings
    return MaskedLanguage(tokens=30, model=model, **settings)


@functools.cache
def first_state():
    """Where it starts."""
    return jax.jit(lambda: state.init(task(), jax.random.key(0)))()


def tokens(n=8, length=12, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 30, (n, length)), jnp.int32)


def test_what_becomes_of_the_tokens():
    """15 % are chosen: 80 % of them masked, 10 % drawn from the whole vocabulary, 10 % kept; no other changes."""
    x = tokens(400, 500)
    plain = MaskedLanguage(tokens=30)
    batch = plain._hidden({"x": x}, plain._draw(jax.random.key(0), x.shape))
    chosen = np.asarray(batch["chosen"]) == 1
    hidden, true = np.asarray(batch["x"]), np.asarray(batch["y"])
    np.testing.assert_array_equal(true, x)
    np.testing.assert_array_equal(hidden[~chosen], true[~chosen])
    assert chosen.mean() == pytest.approx(0.15, abs=0.004)
    assert (hidden[chosen] == 30).mean() == pytest.approx(0.8, abs=0.01)
    assert (hidden[chosen] == true[chosen]).mean() == pytest.approx(0.1 + 0.1 / 30, abs=0.01)
    others = hidden[chosen & (hidden != true) & (hidden != 30)]
    assert set(others) == set(range(30))
    named = MaskedLanguage(tokens=30, mask_token=4)
    assert (named._hidden({"x": x}, named._draw(jax.random.key(0), x.shape))["x"] == 30).sum() == 0


def test_the_loss_is_that_of_the_chosen_tokens():
    """By hand from the model's logits; the metrics too; a masked row counts nothing."""
    it, x = task(), tokens()
    params = first_state().players["model"].params
    batch = it._hidden({"x": x, "mask": jnp.array([1.0] * 7 + [0.0])}, it._draw(jax.random.key(1), x.shape))
    loss, _, metrics = jax.jit(lambda batch: it.full_loss(params, {}, batch, key=None, train=False))(batch)
    logits = np.asarray(jax.jit(it.model.apply)(params, {}, batch["x"], jnp.ones_like(x))[0], np.float64)
    each = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, np.asarray(x)[..., None], -1)[..., 0]
    chosen = np.asarray(batch["chosen"]) == 1
    assert not chosen[7].any()
    assert loss.count == chosen.sum() > 10
    assert loss.value == pytest.approx(each[chosen].mean(), rel=1e-5)
    assert metrics["perplexity"].value == pytest.approx(np.exp(each[chosen].mean()), rel=1e-5)
    assert metrics["accuracy"].value == pytest.approx((logits.argmax(-1) == np.asarray(x))[chosen].mean())


def test_evaluation_does_not_depend_on_batches_nor_keys():
    """The same choice for the same tokens, each time and in whatever batch; another for other tokens."""
    it = task()
    train_state = first_state()
    cut = blocks(np.asarray(tokens(1, 200)[0]), 12)
    feeds = [InOrder(jax.device_put(cut), size) for size in (5, 17)]
    a, b = (read(make_evaluate(it, feed)(train_state)) for feed in feeds)
    for name in ("loss", "accuracy"):
        assert a[name] == pytest.approx(b[name], rel=1e-5)
    params = train_state.players["model"].params
    x = jnp.concatenate([tokens(3), tokens(3)])
    loss = jax.jit(lambda key: it.full_loss(params, {}, {"x": x}, key=key, train=False)[0].total)
    assert loss(jax.random.key(1)) == loss(jax.random.key(2))
    choices = np.asarray(jax.vmap(lambda row: it._draw(key_of(row), row.shape)[0])(x))
    np.testing.assert_array_equal(choices[:3], choices[3:])
    assert not (choices[0] == choices[1]).all()


def largest(a, b):
    """The largest difference of two trees."""
    return max(float(np.abs(x - y).max()) for x, y in zip(leaves(a), leaves(b), strict=True))


@pytest.mark.parametrize("accumulate", [4])
def test_accumulated_equals_whole(accumulate):
    """Tokens are hidden before the batch is cut, so micro-batches see what the whole does."""
    after = []
    for n in (1, accumulate):
        it = task(learner=Learner(optimizer=SGD(peak_lr=0.1), accumulate=n))
        train_state = first_state()
        new, metrics = jax.jit(it.update)(train_state, {"x": tokens()}, key=jax.random.key(7))
        after.append((new.players["model"].params, metrics["loss"].value))
    # The gradient of the keys' bias is zero but for rounding: a softmax does not see what all its logits share.
    assert largest(after[1][0], after[0][0]) < 1e-7
    assert largest(train_state.players["model"].params, after[0][0]) > 1e-3
    assert after[1][1] == pytest.approx(after[0][1], rel=1e-6)
    other, _ = jax.jit(it.update)(train_state, {"x": tokens()}, key=jax.random.key(8))
    assert largest(other.players["model"].params, after[0][0]) > 1e-4


def test_what_fills_up_the_last_block_is_not_seen():
    """Its tokens neither count nor matter to others, and a token 0 of the text is no padding."""
    it = task()
    params = first_state().players["model"].params
    x, mask = tokens(2), jnp.ones((2, 12)).at[1, 5:].set(0)
    drawn = it._draw(jax.random.key(3), x.shape)

    @jax.jit
    def loss(x):
        return it.full_loss(params, {}, it._hidden({"x": x, "mask": mask}, drawn), key=None, train=False)[0]

    a, b = loss(x), loss(x.at[1, 5:].set(3))
    assert a.total == b.total
    assert a.count == b.count == (np.asarray(drawn[0]) & (np.asarray(mask) != 0)).sum()
    zeros = it._hidden({"x": jnp.zeros_like(x)}, drawn)
    assert (zeros["segments"] == 1).all()


def _experiment(path, **task):
    return config.parse(
        Experiment,
        {
            "task": {"kind": "masked_language", **task},
            "model": {"kind": "bert", "layers": 1, "heads": 2, "width": 16},
            "data": {"kind": "text", "path": str(path), "block": 16, "batch_size": 16},
            "optimizer": {"peak_lr": 1e-2},
            "train": {"steps": 60, "log_every": 20},
            "evaluate": {"every": 60, "batch_size": 16},
        },
    )


def test_a_masked_language_model_learns(tmp_path):
    """From a text of characters: the vocabulary has one token more, and perplexity falls below half of it."""
    (tmp_path / "text.txt").write_text(TEXT)
    built = build(_experiment(tmp_path / "text.txt"))
    assert built.config.model.outputs == built.dataset.classes + 1 == built.config.task.tokens + 1
    compiled = compile(built)
    outcome = run(compiled.program, compiled.train_state, compiled.metrics, built.plan, best=Best())
    assert outcome.validation["perplexity"] == pytest.approx(np.exp(outcome.validation["loss"]), rel=1e-5)
    assert outcome.validation["perplexity"] < 0.5 * built.dataset.classes
    outputs = built.task.outputs_of(outcome.train_state, jnp.full((2, 16), built.config.task.tokens))
    found = built.task.predict(outputs)
    assert found["token"].shape == found["probability"].shape == (2, 16)


def test_mistakes(tmp_path):
    """Data that are no text, shares above 1, a vocabulary that is not the data's."""
    (tmp_path / "text.txt").write_text(TEXT)
    with pytest.raises(ConfigError, match=r"task: random: found 0\.5; with masked = 0\.8 it is above 1"):
        _experiment(tmp_path / "text.txt", random=0.5)
    with pytest.raises(ConfigError, match=r"task\.tokens: found 7, but the data has"):
        build(_experiment(tmp_path / "text.txt", tokens=7))
    parts = {
        "task": {"kind": "masked_language"},
        "model": {"kind": "bert"},
        "data": {"kind": "digits"},
        "train": {"steps": 1},
    }
    with pytest.raises(ConfigError, match="masked_language needs a text"):
        build(config.parse(Experiment, parts))
