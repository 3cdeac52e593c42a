"""A masked autoencoder: what is masked is not seen, the loss is of that alone, and a classification starts from it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import agree, draw
from helpers import assert_equal_runs, gap

from functrain import trained
from functrain.cli import main
from functrain.models import MAE, ViT
from functrain.optim import SGD, Learner
from functrain.tasks import MaskedAutoencoder
from functrain.train import state

ENCODER = ViT(patch=2, layers=1, heads=2, width=8)
MODEL = MAE(encoder=ENCODER, decoder_layers=1, decoder_heads=1, decoder_width=4).sized((4, 6, 2), 48)


def task_of(accumulate=1, **settings):
    """The task with a small model."""
    return MaskedAutoencoder(**settings).assemble(
        MODEL, lambda name: Learner(optimizer=SGD(peak_lr=0.1), accumulate=accumulate)
    )


def test_patches_are_cut_and_joined():
    """Row by row, a patch's pixels in their order; joined again they are the image."""
    x = jnp.arange(3 * 48.0).reshape(3, 4, 6, 2)
    patches = MODEL.cut(x)
    for place, (row, column) in enumerate((r, c) for r in range(2) for c in range(3)):
        block = x[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].reshape(3, -1)
        np.testing.assert_array_equal(patches[:, place], block)
    np.testing.assert_array_equal(MODEL.joined(patches), x)
    grey = MAE(encoder=ENCODER).sized((4, 6), 24)
    np.testing.assert_array_equal(grey.joined(grey.cut(x[..., 0])), x[..., 0])


@pytest.mark.usefixtures("float64", "quick")
def test_what_is_masked_is_not_seen():
    """Pixels of masked patches change no output, those of seen ones every one; the order of the seen does nothing."""
    params, _ = MODEL.init(jax.random.key(0))
    params = jax.tree.map(lambda p: jnp.asarray(draw(p.size, *p.shape)), params)
    x, order = jnp.asarray(draw(0, 2, 4, 6, 2)), jnp.array([[4, 1, 0, 2, 3, 5], [0, 5, 1, 2, 3, 4]])
    apply = jax.jit(lambda x, order: MODEL.apply(params, {}, x, order, seen=2)[0])
    outputs = apply(x, order)
    assert outputs["masked"].tolist() == [[1, 0, 1, 1, 0, 1], [0, 1, 1, 1, 1, 0]]
    masked = MODEL.joined(outputs["masked"][..., None] * jnp.ones((2, 6, 8)))
    agree(apply(x + masked, order)["patches"], outputs["patches"], 0.0)
    moved = apply(x + 1 - masked, order)["patches"]
    assert (jnp.abs(moved - outputs["patches"]).max(-1) > 1e-9).all()
    agree(apply(x, order[:, jnp.array([1, 0, 5, 4, 3, 2])])["patches"], outputs["patches"], 1e-12)
    whole = MODEL.apply(params, {}, x)[0]
    assert not whole["masked"].any()
    encoder, vit = params["encoder"], MODEL.vit
    head = {"kernel": jnp.eye(8)[:, :1], "bias": jnp.zeros(1)}
    features = vit.apply(encoder | {"head": head}, {}, x)[0]
    h = vit.encode(encoder, vit.patches(encoder, x))[:, 0]
    h = (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-6)
    agree(features[:, 0], (h * encoder["norm"]["scale"] + encoder["norm"]["bias"])[:, 0], 1e-12)


@pytest.mark.usefixtures("float64", "quick")
@pytest.mark.parametrize("normalise", [False, True])
def test_the_loss_is_of_what_is_masked(normalise):
    """Squared errors of masked patches of rows that count, in units of the patch where that is asked for."""
    task = task_of(normalise=normalise, seen=3)
    params, _ = MODEL.init(jax.random.key(0))
    order = jnp.asarray(np.argsort(draw(1, 3, 6), -1))
    batch = {"x": jnp.asarray(draw(0, 3, 4, 6, 2)), "order": order, "mask": jnp.array([1.0, 0, 1])}
    found, _, _ = task.full_loss(params, {}, batch, key=None, train=True)
    outputs, _ = MODEL.apply(params, {}, batch["x"], order, seen=3)
    patches = np.asarray(MODEL.cut(batch["x"]))
    if normalise:
        patches = patches - patches.mean(-1, keepdims=True)
        patches = patches / np.sqrt(patches.var(-1, ddof=1, keepdims=True) + 1e-6)
    errors = ((np.asarray(outputs["patches"]) - patches) ** 2).mean(-1)
    expected = np.mean([errors[i, place] for i in (0, 2) for place in np.asarray(order)[i, 3:]])
    agree(found.value, np.asarray(expected), 1e-13)
    assert found.count == 6


def test_what_is_masked_is_drawn():
    """For each image and each step otherwise, every patch as often; what is told is not rounded by a precision."""
    batch = {"x": jnp.ones((300, 4, 6, 2))}
    one, two = (task_of()._with_order(batch, jax.random.key(i))["order"] for i in (0, 1))
    assert (jnp.sort(one, -1) == jnp.arange(6)).all()
    assert (one != two).any(-1).mean() > 0.9
    assert (one[1:] != one[:-1]).any(-1).mean() > 0.9
    counts = np.stack([np.bincount(one[:, place], minlength=6) for place in range(6)])
    assert (np.abs(counts - 50) < 5 * np.sqrt(50)).all()

    task, params = task_of(), MODEL.init(jax.random.key(0))[0]
    x = jnp.asarray(draw(0, 2, 4, 6, 2), jnp.float32)
    batch = {"order": jnp.asarray(one[:2]), "target": x}
    rounded = x.astype(jnp.bfloat16).astype(jnp.float32)
    given, _ = MODEL.apply(params, {}, rounded, batch["order"], seen=task._seen)
    errors = ((given["patches"] - MODEL.cut(x)) ** 2).mean(-1)
    found, _, _ = task.full_loss(params, {}, batch | {"x": rounded}, key=None, train=True)
    np.testing.assert_allclose(found.value, (errors * given["masked"]).sum() / given["masked"].sum(), rtol=1e-6)


@pytest.mark.usefixtures("float64", "quick")
def test_accumulated_is_whole():
    """The order of the patches is drawn for the whole batch."""
    batch = {"x": jnp.asarray(draw(0, 8, 4, 6, 2)), "mask": jnp.array([1.0, 1, 0, 1, 1, 1, 1, 0])}
    changed = []
    for parts in (1, 4):
        task = task_of(parts)
        before = jax.jit(lambda task=task: state.init(task, jax.random.key(0)))()
        after, _ = jax.jit(task.update)(before, batch, key=jax.random.key(1))
        changed.append(jax.tree.map(jnp.subtract, after.players["model"].params, before.players["model"].params))
    assert gap(changed[1], changed[0]) < 1e-11


TOML = """
[task]
kind = "masked_autoencoder"
seen = 8
[model]
kind = "mae"
decoder_layers = 1
decoder_heads = 2
decoder_width = 32
[model.encoder]
patch = 2
layers = 2
heads = 2
width = 32
[data]
kind = "digits"
batch_size = 64
[optimizer]
kind = "adamw"
peak_lr = 2e-3
[train]
steps = 800
log_every = 100
[evaluate]
every = 200
[observe]
tensorboard = false
"""


def test_a_run(tmp_path, monkeypatch):
    """It tells more than the mean of the pixels; resumed is whole; it draws; a vit starts from its encoder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mae.toml").write_text(TOML)
    assert main(["train", "mae.toml", "--out", "whole"]) == 0
    few = ["observe.figures=false", "evaluate.every=20", "train.log_every=10"]
    assert main(["train", "mae.toml", "--out", "few", *few, "train.steps=40"]) == 0
    assert main(["train", "mae.toml", "--out", "cut", *few, "train.steps=20"]) == 0
    assert main(["train", "--resume", "cut", "train.steps=40"]) == 0
    assert_equal_runs("few", "cut")
    loss = json.loads((tmp_path / "whole" / "result.json").read_text())["test"]["loss"]
    model = trained.load("whole")
    x = model.config.data.load().test["x"] / 16.0
    assert loss < 0.8 * np.square(x - x.mean(0)).mean()
    assert (tmp_path / "whole" / "figures" / "masked.png").is_file()
    told = np.asarray(model(16 * x[:4])["told"])
    assert told.shape == (4, 8, 8)
    assert np.isclose(told, x[:4], atol=1e-6).reshape(4, -1).mean() >= 0.5  # what is seen is kept
    vit = TOML[TOML.index("[data]") :] + (
        '[task]\nkind = "classification"\n[model]\nkind = "vit"\npatch = 2\nlayers = 2\nheads = 2\nwidth = 32\n'
        '[start]\nrun = "whole"\nrename = [["^encoder/", ""]]\nfresh = ["^head/"]\n'
    )
    (tmp_path / "vit.toml").write_text(vit)
    assert main(["train", "vit.toml", "--out", "vit", "train.steps=1", "optimizer.peak_lr=1e-9"]) == 0
    mine, theirs = trained.load("vit").params, model.params["encoder"]
    pair = [params["block1"]["attention"]["qkv"]["kernel"] for params in (mine, theirs)]
    np.testing.assert_allclose(*pair, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["model.encoder.patch=3"], "model.encoder.patch: found 3; it does not divide 8 x 8"),
        (["model.encoder.heads=5"], "model.heads: found 5"),
        (["task.seen=16"], "task.seen: found 16; the images have 16 patches"),
        (["model={ kind = 'mlp' }"], "model.kind: task.kind = masked_autoencoder needs a model of patches"),
    ],
    ids=str,
)
def test_mistakes(tmp_path, monkeypatch, capsys, arguments, said):
    """One line."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mae.toml").write_text(TOML)
    assert main(["train", "mae.toml", "--out", "r", *arguments]) == 2
    line = capsys.readouterr().err.strip()
    assert said in line
    assert "\n" not in line
