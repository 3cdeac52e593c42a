"""Each model names its parts: products and lookups stand in scopes that are prefixes of their parameters' paths."""

import re

import jax
import jax.numpy as jnp
import pytest
from helpers import mlp_task

from functrain import _compat, tree
from functrain.config import kind_table
from functrain.models import (
    BERT,
    CNN,
    DCGAN,
    FCOS,
    GPT,
    MAE,
    MF,
    MLP,
    NCF,
    NIN,
    VAE,
    VGG,
    AlexNet,
    AnyModel,
    CIFARResNet,
    CycleGAN,
    DeepFM,
    DeepSpeech,
    FactorizationMachine,
    LeNet,
    Llama,
    LogisticRegression,
    LoRA,
    Recurrent,
    ResNet,
    StridedCNN,
    TextCNN,
    Transformer,
    UNet,
    ViT,
    WaveNet,
    WideDeep,
)

PRODUCTS = ("dot_general", "conv_general_dilated")
BLOCK = re.compile(r"(.*/)?block\d+(/(attention|cross|feed_forward))?(?=/)")
"""The part of a deep model that a path is of: a block, or in a transformer one of its branches."""


def floats(*shape):
    """Inputs of this shape, without values."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def integers(*shape):
    """Whole numbers likewise."""
    return jax.ShapeDtypeStruct(shape, jnp.int32)


TEXT = {"inputs": (6,), "outputs": 11, "heads": 2, "width": 8}
ROWS = {"fields": (3, 0, 4), "inputs": (3,), "outputs": 1}
PAIR = {"fields": (5, 4), "inputs": (2,), "outputs": 1}
GAN = DCGAN(inputs=(16, 16, 3), latent=5, width=2, spectral=True)
CYCLES = CycleGAN(inputs=(16, 16), width=2, blocks=2, judge_width=2, judge_layers=1)
VIT = ViT(patch=2, layers=2, heads=2, width=8, dropout=0.1)

CASES = {
    "mlp": (MLP(inputs=(4, 4), outputs=3, hidden=(6, 5), norm="layer", dropout=0.1), floats(2, 4, 4)),
    "cnn": (CNN(inputs=(8, 8), outputs=3, channels=(2, 3), hidden=(4,), norm="batch", dropout=0.1), floats(2, 8, 8)),
    "strided_cnn": (StridedCNN(inputs=(16, 16), outputs=3), floats(2, 16, 16)),
    "lenet": (LeNet(inputs=(16, 16), outputs=3), floats(2, 16, 16)),
    "alexnet": (
        AlexNet(inputs=(64, 67), outputs=3, channels=(2, 3, 3, 3, 2), hidden=(8, 7), pooled=2),
        floats(2, 64, 67),
    ),
    "vgg": (VGG(inputs=(32, 32), outputs=3, layers=11, width=2, hidden=(8,), norm="batch"), floats(2, 32, 32)),
    "nin": (NIN(inputs=(8, 8), outputs=3, width=6), floats(2, 8, 8)),
    "resnet": (ResNet(inputs=(17, 17), outputs=3, layers=18, width=2), floats(2, 17, 17)),
    "resnet, bottlenecks": (ResNet(inputs=(5, 5), outputs=3, width=2, stem="small"), floats(2, 5, 5)),
    "cifar_resnet": (CIFARResNet(inputs=(8, 8), outputs=3, layers=14, width=2), floats(2, 8, 8)),
    "vit": (VIT.sized((4, 6), 3), floats(2, 4, 6)),
    "unet": (UNet(inputs=(8, 8), outputs=3, levels=2, width=2, norm="batch"), floats(2, 8, 8)),
    "fcos": (
        FCOS(inputs=(32, 32), outputs=3, width=4, features=4, groups=2, depths=(1, 2), strides=(4, 8, 16)),
        floats(2, 32, 32),
    ),
    "gpt": (GPT(layers=2, dropout=0.1, **TEXT), integers(2, 6)),
    "gpt, untied, packed": (GPT(layers=2, tied=False, **TEXT), integers(2, 6), integers(2, 6)),
    "bert": (BERT(layers=2, **TEXT), integers(2, 6)),
    "bert, classes": (BERT(layers=2, head="classes", vocabulary=9, **TEXT), integers(2, 6)),
    "llama": (Llama(layers=2, kv_heads=1, dropout=0.1, **TEXT), integers(2, 6)),
    "llama, tied": (Llama(layers=2, tied=True, **TEXT), integers(2, 6)),
    "lora": (LoRA(targets=("qkv/kernel",), rank=2).adapt(GPT(layers=2, **TEXT)), integers(2, 6)),
    "transformer": (Transformer(encoder_layers=2, decoder_layers=2, **TEXT), integers(2, 6), integers(2, 5)),
    "transformer, untied": (
        Transformer(encoder_layers=2, decoder_layers=2, tied="none", positions="learned", norm_first=True, **TEXT),
        integers(2, 6),
        integers(2, 5),
    ),
    "recurrent": (
        Recurrent(inputs=(6,), outputs=2, vocabulary=9, width=4, layers=2, pool="last", bidirectional=True),
        integers(2, 6),
    ),
    "recurrent, tied": (Recurrent(inputs=(6,), outputs=9, width=4, cell="gru", tied=True), integers(2, 6)),
    "text_cnn": (TextCNN(inputs=(6,), outputs=2, vocabulary=9, embedding=4, maps=3), integers(2, 6)),
    "deepspeech": (DeepSpeech(inputs=(20, 8), outputs=5, channels=(2, 2), width=4), floats(2, 20, 8), integers(2)),
    "wavenet": (WaveNet(inputs=(9,), outputs=8, layers=2, channels=4, skip=6, classes=3), integers(2, 9), integers(2)),
    "vae": (VAE(inputs=(4, 4), outputs=16, hidden=(6, 5), latent=3), floats(2, 4, 4), floats(2, 3)),
    "dcgan": (GAN.generator, floats(2, 5)),
    "dcgan, discriminator": (GAN.discriminator, floats(2, 16, 16, 3)),
    "cyclegan": (CYCLES.generator, floats(2, 16, 16)),
    "cyclegan, discriminator": (CYCLES.discriminator, floats(2, 16, 16)),
    "mae": (
        MAE(encoder=VIT, decoder_layers=2, decoder_heads=1, decoder_width=4).sized((4, 6), 24),
        floats(2, 4, 6),
        integers(2, 6),
    ),
    "logistic_regression": (LogisticRegression(**ROWS), floats(2, 3)),
    "fm": (FactorizationMachine(**ROWS), floats(2, 3)),
    "wide_deep": (WideDeep(hidden=(5, 4), dropout=0.1, **ROWS), floats(2, 3)),
    "deepfm": (DeepFM(hidden=(5, 4), embed_numbers=True, **ROWS), floats(2, 3)),
    "matrix_factorisation": (MF(features=3, content=4, **PAIR), integers(2, 2)),
    "ncf": (NCF(features=2, mlp_features=3, hidden=(6, 2), **PAIR), integers(2, 2)),
}
"""By kind, the model and what its `apply` takes."""


def named(jaxpr, used, outer=""):
    """(scope, paths of parameters that go in) of each product in a jaxpr and those inside of it, and of each lookup.

    used: id of a variable -> path of the parameter that it is, or is one in another form; those found are added.
    """
    for equation in jaxpr.eqns:
        names = f"{outer}/{equation.source_info.name_stack}".split("/")
        scope = "/".join(name for name in names if name and "->" not in name)  # jnp.einsum adds its formula
        paths = [used.get(id(v)) for v in equation.invars]
        name, inner = equation.primitive.name, _compat.inner_jaxprs(equation)
        if name in PRODUCTS or (name == "gather" and paths[0]):
            yield scope, {path for path in paths if path}
        elif not inner and len(paths) == 1 and paths[0]:  # a cast, a reshape, a part of it
            used[id(equation.outvars[0])] = paths[0]
        for body in inner:
            same = len(body.invars) == len(paths)
            yield from named(body, {id(v): p for v, p in zip(body.invars, paths) if p} if same else {}, scope)


def traced(f, *args):
    """The jaxpr of f."""
    closed = jax.make_jaxpr(f)(*args)
    return getattr(closed, "jaxpr", closed)


def parts(kind):
    """(the paths of what a model of the table is made of, what `named` finds in its `apply`)."""
    model, *inputs = CASES[kind]
    key = jax.random.key(0)
    params, state = jax.eval_shape(model.init, key)
    paths = tree.by_path(params)

    def apply(params, state, key, *inputs):
        given = {"seen": 2} if kind == "mae" else {}
        return model.apply(params, state, *inputs, **given, key=key, train=True)

    jaxpr = traced(apply, params, state, key, *inputs)
    found = list(named(jaxpr, {id(v): path for v, path in zip(jaxpr.invars, paths)}))
    return [*paths, *tree.by_path(state.get("lora_base", {}))], found


def within(path, scope):
    """Whether a scope is a path or a prefix of it."""
    return path == scope or path.startswith(f"{scope}/")


def test_every_kind_is_here():
    """The table has every kind but those whose parts are not ours to name."""
    kinds = {kind.split(",")[0] for kind in CASES}
    assert kinds - {"lora"} == kind_table(AnyModel).keys() - {"huggingface", "flax", "custom"}


@pytest.mark.parametrize("kind", CASES)
def test_every_part_is_named(kind):
    """None without a name, none by another's, every kernel by its own; a block at a time, or a branch of it."""
    paths, found = parts(kind)
    for scope, used in found:
        assert any(within(path, scope) for path in paths), scope
        for path in used:
            block = BLOCK.match(path)
            # Where there are fewer tokens than places, the first layer multiplies the embedding itself.
            assert within(path, scope) or (kind[:9], path, scope) == ("recurrent", "tokens/table", "cells")
            assert block is None or within(scope, block[0]), (path, scope)
    scopes = {scope for scope, _ in found}
    for path in paths:
        if path.endswith("/kernel"):
            block = BLOCK.match(path)
            assert block[0] in scopes if block else any(within(path, scope) for scope in scopes), path


@pytest.mark.parametrize(
    ("kind", "some"),
    [
        ("fcos", {"backbone/stem", "backbone/stage1_block1_2", "pyramid/lateral0", "pyramid/output1", "pyramid/down2"}),
        ("fcos", {"heads/class0", "heads/box1", "heads/classes", "heads/distances", "heads/quality"}),
        ("vae", {"encoder/linear1", "encoder/mean", "encoder/log_variance", "decoder/linear0", "decoder/output"}),
        ("mae", {"encoder/patches", "encoder/block1/attention", "decoder/patches", "decoder/head"}),
        ("ncf", {"gmf/users", "mlp/items", "mlp/layer1", "head"}),
        ("lora", {"lora/block1/attention/qkv/kernel", "block1/attention", "tokens"}),
    ],
)
def test_what_is_nested_is_named_to_the_layer(kind, some):
    """Not by the network that it is in alone."""
    assert some <= {scope for scope, _ in parts(kind)[1]}


def test_a_loss_is_named():
    """What a task adds to its model's outputs stands in a scope of its own."""
    task = mlp_task()
    params, state = jax.eval_shape(task.model.init, jax.random.key(0))
    batch = {"x": floats(2, 8, 8), "y": integers(2)}
    jaxpr = traced(lambda *args: task.full_loss(*args, key=None, train=False), params, state, batch)
    assert {str(equation.source_info.name_stack) for equation in jaxpr.eqns} >= {"layer0", "layer1", "loss"}
