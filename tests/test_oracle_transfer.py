"""Weights from torchvision and back: a state dict saved by safetensors starts a run, an export loads there."""

import dataclasses

import jax
import numpy as np
import pytest
from torch_vision import torchvision

import functrain
from functrain import config, transfer
from functrain.building import build
from functrain.built import first_states
from functrain.cli import main
from functrain.experiment import Experiment
from functrain.models import torch_layout
from functrain.train.checkpoint import Directory

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'functrain[oracle]'")
weights = pytest.importorskip("safetensors.torch", reason="not installed: pip install 'functrain[weights]'")
models = torchvision().models
torch.set_num_threads(1)

pytestmark = [pytest.mark.oracle, pytest.mark.usefixtures("quick")]

LOGITS = 1e-4  # float32, relative to the largest logit
CONFIG = """\
[task]
kind = "classification"
[model]
kind = "resnet"
layers = 18
[data]
kind = "npz"
path = "images.npz"
batch_size = 4
[train]
steps = 1
[observe]
tensorboard = false
figures = false
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of three classes, the config, and theirs.safetensors: a ResNet-18 of seven, its statistics moved."""
    folder = tmp_path_factory.mktemp("torchvision")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 32, 40, 3)).astype(np.float32)
    np.savez(folder / "images.npz", x=x, y=np.arange(30) % 3)
    (folder / "c.toml").write_text(CONFIG)
    torch.manual_seed(0)
    network = models.resnet18(num_classes=7)
    for name, tensor in network.state_dict().items():
        if "running" in name or ("bn" in name and tensor.dtype == torch.float32):
            tensor += 0.3 * torch.rand_like(tensor)
    weights.save_file(network.state_dict(), folder / "theirs.safetensors")
    return folder


@pytest.fixture
def here(folder, monkeypatch):
    """The working directory."""
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def plain(folder):
    """The config without a start, put together."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return build(config.parse(Experiment, config.read("c.toml")))


def starting(plain, *overrides):
    """The same with a start."""
    settings = config.parse(Experiment, config.read("c.toml", overrides))
    return dataclasses.replace(plain, config=dataclasses.replace(plain.config, start=settings.start))


def theirs_on(state_dict, x, **settings):
    """Logits of torchvision's ResNet-18 in evaluation, from a state dict, whole."""
    network = models.resnet18(**settings)
    network.load_state_dict(state_dict, strict=True)
    with torch.no_grad():
        return network.eval()(torch.tensor(x).permute(0, 3, 1, 2)).numpy()


def close(ours, theirs):
    """Equal to LOGITS of the largest."""
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    assert error <= LOGITS, error


def test_from_torchvision_and_back(here, plain, capsys):
    """With a head of three classes: the trunk is theirs, bit for bit; logits agree; an export loads into theirs."""
    built = starting(plain, "start.file=theirs.safetensors", "start.fresh=['^linear']")
    record = built.start.record()
    assert record["layout"] == "torchvision"
    assert record["unused"] == ["fc.bias", "fc.weight"]
    assert record["fresh"] == {"params/linear/bias": "^linear", "params/linear/kernel": "^linear"}
    assert record["loaded"]["arrays"] == 100
    begun = first_states(built, built.start.arrays)
    params, state = jax.device_get((begun.players["model"].params, begun.state))
    found = torch_layout.to_torch(built.task.model.torchvision_names(), params, state)
    source = weights.load_file("theirs.safetensors")
    for name, array in found.items():
        if not name.startswith("fc."):
            assert array.tobytes() == source[name].numpy().tobytes(), name
    x = np.random.default_rng(1).normal(size=(2, 32, 40, 3)).astype(np.float32)
    head = {name: torch.tensor(found[name]) for name in ("fc.weight", "fc.bias")}
    ours, _ = jax.jit(built.task.model.apply)(params, state, x)
    close(ours, theirs_on(source | head, x, num_classes=3))

    (here / "run").mkdir()
    (here / "run" / "config.toml").write_text(config.dump(built.config))
    store = Directory(here / "run" / "checkpoints")
    store.save(1, {"state": begun}, {"loss": 1.0})
    store.close()
    assert main(["export", "run", "back.safetensors", "--layout", "torchvision"]) == 0
    assert "back.safetensors: 102 arrays" in capsys.readouterr().out
    back = weights.load_file("back.safetensors")
    close(functrain.load("run")(x), theirs_on(back, x, num_classes=3))
    again = starting(plain, "start.file=back.safetensors").start
    assert not again.fresh
    assert not again.unused
    assert all(np.array_equal(again.arrays[path], array) for path, array in built.start.arrays.items())


def test_names_with_a_prefix_and_narrow_numbers(here, plain):
    """As a wrapped model saves them: renamed; bfloat16 gives its own values in float32."""
    source = weights.load_file("theirs.safetensors")
    wrapped = {f"module.{name}": x.bfloat16() if x.is_floating_point() else x for name, x in source.items()}
    weights.save_file(wrapped, "wrapped.safetensors")
    start = ["start.file=wrapped.safetensors", "start.fresh=['^linear']"]
    with pytest.raises(config.ConfigError, match=r"nothing in wrapped.safetensors has the name .* module\.bn1"):
        starting(plain, *start).start  # noqa: B018
    loaded = starting(plain, *start, "start.rename=[['^module\\.', '']]").start
    assert loaded.renamed["module.conv1.weight"] == "params/conv1/kernel"
    expected = source["conv1.weight"].bfloat16().float().permute(2, 3, 1, 0).numpy()
    assert np.array_equal(loaded.arrays["params/model/conv1/kernel"], expected)


def test_another_head_and_a_missing_tensor_are_named(here, plain):
    """Both shapes in torch's layout, or the name that is not there, and what would help."""
    with pytest.raises(config.ConfigError) as caught:
        starting(plain, "start.file=theirs.safetensors").start  # noqa: B018
    line = str(caught.value)
    assert "fc.bias: found shape [7]; params/linear/bias needs [3] in theirs.safetensors" in line
    assert line.endswith("start.fresh would draw it anew (and 1 more)")
    source = weights.load_file("theirs.safetensors")
    del source["layer1.0.conv1.weight"]
    weights.save_file(source, "less.safetensors")
    with pytest.raises(config.ConfigError, match=r"\[3, 3, 64, 64\]: not in less.safetensors as layer1.0.conv1.weight"):
        starting(plain, "start.file=less.safetensors", "start.fresh=['^linear']").start  # noqa: B018


def test_layouts_are_told_apart_by_their_names(here, plain):
    """A model with names in torchvision reads functrain's too, from a file that `export` wrote."""
    arrays = starting(plain, "start.file=theirs.safetensors", "start.fresh=['^linear']").start.arrays
    own = {transfer._public(path): array for path, array in arrays.items()}
    transfer._library("test").numpy.save_file(own, "own.safetensors")
    loaded = starting(plain, "start.file=own.safetensors", "start.fresh=['^linear']").start
    assert loaded.record()["layout"] == "functrain"
    assert all(loaded.arrays[path].tobytes() == array.tobytes() for path, array in arrays.items())
