"""Low-rank adaptation: it begins as the model, merged is unmerged, the rest never changes and is kept once."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functrain import trained, tree
from functrain.cli import main
from functrain.config import ConfigError
from functrain.models import GPT, MLP, CIFARResNet, LoRA
from functrain.models.lora import plain
from functrain.train.checkpoint import Directory, _read

TOML = """
[task]
kind = "classification"
[model]
kind = "mlp"
hidden = [16]
[lora]
targets = ["layer0/kernel"]
also = ["layer1/"]
rank = 4
[data]
kind = "digits"
[train]
steps = 30
[checkpoint]
every = 10
keep = 5
"""


def drawn(params, seed=1):
    """The same tree, every number drawn: B is zero at first."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(structure, [0.3 * jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves)])


def test_it_begins_as_the_model():
    """Whatever its kernels are: of a convolution, a table, a linear layer."""
    image, text = jnp.linspace(0, 1, 2 * 8 * 8 * 3).reshape(2, 8, 8, 3), jnp.arange(10).reshape(2, 5)
    for model, targets, x in (
        (CIFARResNet(inputs=(8, 8, 3), outputs=3, layers=8, width=4), ("conv.*/kernel",), image),
        (GPT(inputs=(5,), outputs=11, layers=1, heads=2, width=8), ("qkv/kernel", "tokens"), text),
    ):
        adapted = LoRA(targets=targets, rank=2).adapt(model)
        params, state = adapted.init(jax.random.key(0))
        inner, whole, own = plain(adapted, params, state)
        assert inner is model
        assert jax.tree.map(jnp.shape, whole) == jax.tree.map(jnp.shape, model.init(jax.random.key(0))[0])
        for path, kernel in tree.by_path(state["lora_base"]).items():
            np.testing.assert_array_equal(tree.by_path(whole)[path], kernel, err_msg=path)
        wanted = jax.jit(inner.apply)(whole, own, x)[0]
        np.testing.assert_array_equal(jax.jit(adapted.apply)(params, state, x)[0], wanted)
        moved = jax.jit(adapted.apply)(drawn(params), state, x)[0]
        assert np.abs(moved - wanted).max() > 1e-3


def test_merged_is_unmerged():
    """x W + (alpha / rank) (x A) B, written out, to 1e-5; and what is trained whole takes the base's place."""
    adapted = LoRA(targets=("kernel",), also=("bias",), rank=3, alpha=6.0).adapt(
        MLP(inputs=(7,), outputs=5, hidden=(6,), activation="tanh")
    )
    params, state = adapted.init(jax.random.key(0))
    params, x = drawn(params), jax.random.normal(jax.random.key(2), (4, 7))

    def layer(h, name):
        pair, bias = params["lora"][f"{name}/kernel"], params["lora_whole"][f"{name}/bias"]
        return h @ state["lora_base"][name]["kernel"] + 2.0 * (h @ pair["a"]) @ pair["b"] + bias

    wanted = layer(jnp.tanh(layer(x, "layer0")), "layer1")
    np.testing.assert_allclose(adapted.apply(params, state, x)[0], wanted, rtol=1e-5, atol=1e-5)
    inner, whole, own = plain(adapted, params, state)
    np.testing.assert_allclose(inner.apply(whole, own, x)[0], wanted, rtol=1e-5, atol=1e-5)


def test_as_many_as_peft():
    """GPT-2's c_attn with rank 8: 294,912 trained of 124,734,720."""
    model = GPT(inputs=(1024,), outputs=50257, layers=12, heads=12, width=768, activation="gelu_tanh")
    params, state = jax.eval_shape(LoRA(targets=("attention/qkv/kernel",)).adapt(model).init, jax.random.key(0))
    assert tree.size(params) == 294_912
    assert tree.size(params) + tree.size(state["lora_base"]) == 124_734_720


def test_in_low_precision():
    """Parameters cast to bfloat16 compute in bfloat16, whatever the base is kept in."""
    adapted = LoRA(targets=("layer0/kernel",)).adapt(MLP(inputs=(7,), outputs=5, hidden=(6,)))
    params, state = adapted.init(jax.random.key(0))
    outputs, _ = adapted.apply(tree.cast(params, jnp.bfloat16), state, jnp.ones((2, 7), jnp.bfloat16))
    assert outputs.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"targets": ("nothing",)}, "lora: pattern 'nothing' matches no parameter"),
        ({"targets": ("bias",)}, "lora.targets: layer0/bias [6] is no matrix; leave it to lora.also"),
        ({"targets": ("layer0",), "also": ("layer0/bias",)}, "lora.also: layer0/bias is one of lora.targets too"),
    ],
)
def test_mistakes(given, message):
    """Each in one line that says where."""
    with pytest.raises(ConfigError) as caught:
        LoRA(**given).adapt(MLP(inputs=(7,), outputs=5, hidden=(6,)))
    assert message in str(caught.value)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 30 steps with checkpoints at 10, 20 and 30."""
    folder = tmp_path_factory.mktemp("lora")
    (folder / "lora.toml").write_text(TOML)
    assert main(["train", str(folder / "lora.toml"), "--out", str(folder / "run")]) == 0
    return folder / "run"


def test_only_what_is_trained_is_saved(run):
    """The base stands once in the folder of checkpoints, and in none of them; loaded, it is there and as at first."""
    store = Directory(run / "checkpoints")
    assert store.steps() == [10, 20, 30]
    base = "state/state/lora_base/"
    for step in store.steps():
        saved = _read(run / "checkpoints" / f"{step:08d}" / "state")
        assert not any(path.startswith(base) for path in saved)
    assert set(_read(run / "checkpoints" / "constant" / "state")) == {base + "layer0/bias", base + "layer0/kernel"}
    first, last = store.load(10)[1], store.load(30)[1]
    kept = [path for path in first if path.startswith(base)]
    assert kept == [base + "layer0/bias", base + "layer0/kernel"]
    for path in kept:
        np.testing.assert_array_equal(first[path], last[path])
    trained_path = "state/players/model/params/lora/layer0/kernel/b"
    assert np.abs(first[trained_path] - last[trained_path]).max() > 0


def test_resumed_is_uninterrupted(run, tmp_path):
    """From step 20, bitwise; with the base damaged, no checkpoint is used."""
    (tmp_path / "lora.toml").write_text(TOML.replace("steps = 30", "steps = 20"))
    out = tmp_path / "run"
    assert main(["train", str(tmp_path / "lora.toml"), "--out", str(out)]) == 0
    assert main(["train", "--resume", str(out), "train.steps=30"]) == 0
    wanted, found = (Directory(place / "checkpoints").load(30)[1] for place in (run, out))
    assert wanted.keys() == found.keys()
    for path, array in wanted.items():
        np.testing.assert_array_equal(array, found[path], err_msg=path)
    biggest = max((out / "checkpoints" / "constant" / "state").rglob("*"), key=lambda p: p.stat().st_size)
    data = bytearray(biggest.read_bytes())
    data[len(data) // 2] ^= 1
    biggest.write_bytes(data)
    lines = []
    assert Directory(out / "checkpoints").load(report=lines.append) is None
    assert "../constant: " in lines[0]


def test_export_and_start(run, tmp_path, capsys):
    """The whole model merged, or what was trained alone; a run without [lora] starts from the merged weights."""
    assert main(["export", str(run), str(tmp_path / "whole.safetensors")]) == 0
    assert main(["export", str(run), str(tmp_path / "part.safetensors"), "--layout", "adapter"]) == 0
    import safetensors.numpy

    whole, part = (safetensors.numpy.load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "part"))
    assert sorted(whole) == [f"params/layer{i}/{leaf}" for i in (0, 1) for leaf in ("bias", "kernel")]
    pair = ["params/lora/layer0/kernel/a", "params/lora/layer0/kernel/b"]
    assert sorted(part) == ["params/layer1/bias", "params/layer1/kernel", *pair]
    x = np.arange(128).reshape(2, 8, 8) % 17
    wanted = trained.load(run)(x)
    plain_toml = TOML.replace(TOML[TOML.index("[lora]") : TOML.index("[data]")], "")
    start = f'[optimizer]\nkind = "sgd"\npeak_lr = 1e-9\n[start]\nfile = "{tmp_path}/whole.safetensors"\n'
    (tmp_path / "plain.toml").write_text(plain_toml.replace("steps = 30", "steps = 1") + start)
    assert main(["train", str(tmp_path / "plain.toml"), "--out", str(tmp_path / "plain")]) == 0
    np.testing.assert_allclose(trained.load(tmp_path / "plain")(x), wanted, rtol=1e-4, atol=1e-4)
    capsys.readouterr()
    assert main(["export", str(tmp_path / "plain"), str(tmp_path / "no.safetensors"), "--layout", "adapter"]) == 2
    assert "adapter is what [lora] trained; this run has none" in capsys.readouterr().err


def test_it_needs_a_model(tmp_path, monkeypatch, capsys):
    """A task that brings its own is refused, not trained without."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    task = '[task]\nkind = "custom"\ntarget = "toys:TinyGAN"\n'
    (tmp_path / "own.toml").write_text(task + TOML[TOML.index("[lora]") :])
    assert main(["train", str(tmp_path / "own.toml"), "--out", str(tmp_path / "run")]) == 2
    assert "lora: it adapts [model]; there is none beside task.kind = 'custom'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
