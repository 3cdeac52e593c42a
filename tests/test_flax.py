"""flax modules as models: equal to flax used directly; trained, stopped, resumed, evaluated and loaded."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import leaves, same

import functrain
from functrain.cli import main
from functrain.config import ConfigError
from functrain.models import FlaxModel
from functrain.models.flax_module import adapt
from functrain.optim import SGD, Learner
from functrain.tasks import Classification
from functrain.train import state as states
from functrain.train.checkpoint import Directory
from functrain.train.step import make_step
from functrain.tree import by_path

pytestmark = pytest.mark.usefixtures("quick")

NETS = """
import jax
import jax.numpy as jnp
from flax import linen, nnx


class LinenNet(linen.Module):
    outputs: int
    width: int = 4
    rate: float = 0.3

    @linen.compact
    def __call__(self, x, train: bool = False):
        x = linen.Conv(self.width, (3, 3), strides=2)(x[..., None])
        x = linen.relu(linen.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        self.sow("intermediates", "features", x)
        self.sow("losses", "size", jnp.abs(x).mean())
        x = linen.Dropout(self.rate, deterministic=not train)(x.reshape(len(x), -1))
        return linen.Dense(self.outputs)(x)


class NNXNet(nnx.Module):
    def __init__(self, outputs: int, width: int = 4, rate: float = 0.3, *, rngs: nnx.Rngs):
        self.conv = nnx.Conv(1, width, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(width, momentum=0.9, rngs=rngs)
        self.drop = nnx.Dropout(rate, rngs=rngs)
        self.scale = jnp.full(16 * width, 0.5)  # a bare array
        self.readout = nnx.List([nnx.Linear(16 * width, outputs, rngs=rngs)])

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x[..., None])))
        return self.readout[0](self.drop(x.reshape(len(x), -1)) * self.scale)


def linen_function(outputs, width: int = 4):
    return LinenNet(outputs, width)


def nnx_function(outputs, rngs, width: int = 4):
    return NNXNet(outputs, width, rngs=rngs)


def ready(outputs):
    return NNXNet(outputs, rngs=nnx.Rngs(7))


def neither():
    return 3


def neither_drawn(rngs):
    return LinenNet(10)


class Tokens(nnx.Module):
    def __init__(self, outputs, *, rngs):
        self.embed = nnx.Embed(17, outputs, rngs=rngs)

    def __call__(self, x):
        return self.embed(x).mean((1, 2))
"""

CONFIG = """
[model]
kind = "flax"
target = "flax_nets:{name}"
args = {{ width = 3 }}
[task]
kind = "classification"
[data]
kind = "digits"
batch_size = 16
[optimizer]
kind = "adamw"
schedule = {{ kind = "constant" }}
[train]
steps = 12
log_every = 3
[evaluate]
every = 6
[checkpoint]
every = 6
[observe]
tensorboard = false
figures = false
"""
BOTH = pytest.mark.parametrize("name", ["LinenNet", "NNXNet"])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with the nets and a config of each."""
    (tmp_path / "flax_nets.py").write_text(NETS)
    for name in ("LinenNet", "NNXNet"):
        (tmp_path / f"{name}.toml").write_text(CONFIG.format(name=name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture
def nets(folder):
    """The module with the nets."""
    return importlib.import_module("flax_nets")


def model_of(target, **settings):
    """A model by its config, fitted to the digits."""
    return FlaxModel(target=f"flax_nets:{target}", **settings).sized((8, 8), 10).build()


def images(n=16):
    """Images and labels that are no images."""
    rng = np.random.default_rng(9)
    return rng.random((n, 8, 8), np.float32), rng.integers(0, 10, n, np.int32)


def close(a, b):
    """To rounding in float32; of one structure."""
    assert by_path(a).keys() == by_path(b).keys()
    for path, x in by_path(a).items():
        np.testing.assert_allclose(x, by_path(b)[path], atol=1e-6, rtol=1e-6, err_msg=path)


# -- flax itself, by its own API ------------------------------------------------------------------


class DirectLinen:
    """A linen net with its variables, used as flax's pages say."""

    def __init__(self, nets, key):
        self.net = nets.LinenNet(10)
        variables = jax.jit(self.net.init)(key, jnp.zeros((1, 8, 8)))
        self.params, self.state = variables["params"], {"batch_stats": variables["batch_stats"]}

    def call(self, params, state, x, key, train):
        variables = {"params": params, **state}
        if not train:
            return self.net.apply(variables, x), state
        return self.net.apply(variables, x, train=True, rngs={"dropout": key}, mutable=["batch_stats"])


class DirectNNX:
    """An nnx net, used as flax's pages say; its dropout's stream set to what the model documents."""

    def __init__(self, nets, key):
        from flax import nnx

        self.nnx, net = nnx, nets.NNXNet(10, rngs=nnx.Rngs(key))
        self.graph, params, self.streams, state = nnx.split(net, nnx.Param, nnx.RngState, ...)
        self.params, self.state = nnx.to_pure_dict(params), nnx.to_pure_dict(state)

    def call(self, params, state, x, key, train):
        net = self.nnx.merge(self.graph, params, self.streams, state)
        net.set_attributes(deterministic=not train, use_running_average=not train)
        if train:
            net.drop.rngs = self.nnx.RngStream(jax.random.fold_in(key, 0), tag="dropout")
        outputs = net(x)
        return outputs, {"norm": {n: getattr(net.norm, n)[...] for n in ("mean", "var")}, "scale": state["scale"]}


DIRECT = {"LinenNet": DirectLinen, "NNXNet": DirectNNX}


@BOTH
def test_equal_to_flax(nets, name):
    """The same variables of one key, bit for bit; outputs, gradients and statistics, in training and evaluation."""
    direct, model = DIRECT[name](nets, jax.random.key(3)), model_of(name)
    params, state = jax.jit(model.init)(jax.random.key(3))
    assert same(params, direct.params)
    assert same(state, direct.state)
    x, y = images()

    def both_modes(call):
        """Per mode: the gradients, and (outputs, state)."""

        def loss(params, train, key):
            outputs, new = call(params, train, key)
            return optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean(), (outputs, new)

        return jax.jit(lambda p, key: [jax.grad(loss, has_aux=True)(p, train, key) for train in (True, False)])

    ours = both_modes(lambda p, train, key: model.apply(p, state, x, key=key, train=train))
    theirs = both_modes(lambda p, train, key: direct.call(p, state, x, key, train))
    found = ours(params, jax.random.key(5))
    close(found, theirs(params, jax.random.key(5)))
    # Statistics move in training, and then alone.
    (_, (dropped, moved)), (_, (kept, unmoved)) = found
    assert same(unmoved, state)
    assert not same(moved, state)
    # Dropout is on in training and off in evaluation, whatever the key.
    (_, (dropped_otherwise, _)), (_, (kept_too, _)) = ours(params, jax.random.key(6))
    assert not np.allclose(dropped, dropped_otherwise)
    assert same(kept, kept_too)
    assert same(kept, jax.jit(lambda p: model.apply(p, state, x)[0])(params))


@BOTH
def test_three_steps_equal_to_a_loop_of_flax(nets, name):
    """functrain's step against flax and optax by hand, from one key: parameters and batch statistics."""
    direct, model = DIRECT[name](nets, jax.random.key(3)), model_of(name)
    task = Classification(model=model, learner=Learner(optimizer=SGD(peak_lr=0.1)))
    train_state = states.init(task, jax.random.key(0))
    player = train_state.players["model"]
    train_state = train_state.replace(players={"model": player.replace(params=direct.params)}, state=direct.state)
    step, (x, y) = jax.jit(make_step(task)), images(48)

    optimizer = SGD(peak_lr=0.1).build()
    params, state, moments = direct.params, direct.state, optimizer.init(direct.params)

    @jax.jit
    def by_hand(params, state, moments, x, y, key):
        def loss(params):
            outputs, new = direct.call(params, state, x, key, True)
            return optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean(), new

        gradients, state = jax.grad(loss, has_aux=True)(params)
        updates, moments = optimizer.update(gradients, moments, params)
        return optax.apply_updates(params, updates), state, moments

    for i in range(3):
        batch = {"x": x[16 * i : 16 * i + 16], "y": y[16 * i : 16 * i + 16]}
        key = jax.random.fold_in(train_state.key, i)
        train_state, _ = step(train_state, batch)
        params, state, moments = by_hand(params, state, moments, batch["x"], batch["y"], key)
    close(train_state.players["model"].params, params)
    close(train_state.state, state)
    assert not np.allclose(leaves(state)[0], leaves(direct.state)[0], atol=1e-3)


# -- the command ----------------------------------------------------------------------------------


def arrays_of(out):
    """The step and arrays of a run's last checkpoint."""
    return Directory(Path(out) / "checkpoints").load()


@BOTH
def test_a_run_resumed_equals_uninterrupted(folder, nets, name, capsys):
    """Twelve steps at once against six, and six more by --resume: bit for bit. Then `eval` and `load`."""
    assert main(["train", f"{name}.toml", "--out", "whole"]) == 0
    assert main(["train", f"{name}.toml", "train.steps=6", "--out", "parts"]) == 0
    assert arrays_of("parts")[0] == 6
    assert main(["train", "--resume", "parts", "train.steps=12"]) == 0
    (step, whole), (_, parts) = arrays_of("whole"), arrays_of("parts")
    assert step == 12
    assert same(whole, parts)
    assert (folder / "whole/metrics.jsonl").read_bytes() == (folder / "parts/metrics.jsonl").read_bytes()
    moving = [path for path in whole if path.startswith("state/state/") and path.endswith("mean")]
    assert len(moving) == 1
    assert np.abs(whole[moving[0]]).max() > 0

    capsys.readouterr()
    assert main(["eval", "whole"]) == 0
    assert "accuracy" in capsys.readouterr().out
    trained = functrain.load("whole", step=12)
    x = functrain.data.Digits().load().test["x"][:8]
    outputs = trained(x)
    assert outputs.shape == (8, 10)
    state = trained.train_state.state
    if name == "LinenNet":
        expected = nets.LinenNet(10, 3).apply({"params": trained.params, **state}, x / 16)
    else:
        from flax import nnx

        net = nets.NNXNet(10, 3, rngs=nnx.Rngs(0))
        nnx.update(net, trained.params)
        nnx.update(net, state)
        net.eval()
        expected = net(jnp.asarray(x / 16))
    np.testing.assert_allclose(outputs, expected, atol=1e-6)


# -- other modules --------------------------------------------------------------------------------


def test_functions_and_ready_modules(nets):
    """A function that returns a module is as good as its class; a ready module is taken with its values."""
    for function, name in (("linen_function", "LinenNet"), ("nnx_function", "NNXNet")):
        of_class, of_function = (model_of(n, args={"width": 2}).init(jax.random.key(1)) for n in (name, function))
        assert same(of_class, of_function)
    from flax import nnx

    given = nets.NNXNet(10, rngs=nnx.Rngs(7))
    for model in (model_of("ready"), adapt(given), adapt(lambda rngs: given)):
        params, _ = model.init(jax.random.key(1))
        assert same(params["conv"]["kernel"], given.conv.kernel[...])
    assert isinstance(params, dict)
    assert params["readout"].keys() == {0}
    given.drop.deterministic = True  # and what becomes of the object does not reach the model
    model = adapt(nets.LinenNet(10), (8, 8))
    assert jax.eval_shape(model.init, jax.random.key(0))[1].keys() == {"batch_stats"}  # what is sown is no state


def test_tokens(nets):
    """Numbers of tokens reach the module as integers, though predictions come as floats."""
    model = model_of("Tokens", input_dtype="int32")
    params, state = model.init(jax.random.key(0))
    x = jax.random.randint(jax.random.key(1), (3, 8, 8), 0, 17)
    expected = params["embed"]["embedding"][x].mean((1, 2))
    np.testing.assert_allclose(model.apply(params, state, x.astype(float))[0], expected, atol=1e-6)


def test_float_fields_are_no_live_numbers(nets):
    """A linen module is a dataclass; its floats stay as they are."""
    task = Classification(model=model_of("LinenNet"), learner=Learner(optimizer=SGD()))
    assert not [path for path in states.live.numbers(task) if path.startswith("model")]


BAD = {
    "neither": ("flax_nets:neither", {}, "model.target: flax_nets:neither gave int; expected a flax.linen or flax.nnx"),
    "drawn": ("flax_nets:neither_drawn", {}, "gave LinenNet; expected a flax.nnx module, since it names rngs"),
    "missing": ("flax_nets:Missing", {}, "model.target: flax_nets has no 'Missing'"),
    "no module": ("no_such_nets:Net", {}, "model.target: no module 'no_such_nets'"),
    "unknown": ("flax_nets:NNXNet", {"wdth": 3}, "model.args.wdth: flax_nets:NNXNet has no such argument; it takes:"),
    "type": ("flax_nets:NNXNet", {"width": "3"}, "model.args.width: found '3'; expected a valid integer"),
    "unknown field": ("flax_nets:LinenNet", {"wdth": 3}, "model.args.wdth: flax_nets:LinenNet has no such argument"),
    "missing argument": ("flax_nets:needs", {}, "model.args.depth: missing; flax_nets:needs needs it"),
    "missing in a class": ("flax_nets:Needs", {}, "model.args.depth: missing; flax_nets:Needs needs it"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_targets(nets, monkeypatch, case, capsys):
    """One line each, that says where and what."""
    from flax import nnx

    class Needs(nnx.Module):
        def __init__(self, depth, *, rngs):
            pass

    monkeypatch.setattr(nets, "Needs", Needs, raising=False)
    monkeypatch.setattr(nets, "needs", lambda depth: None, raising=False)
    target, args, message = BAD[case]
    with pytest.raises(ConfigError) as caught:
        FlaxModel(target=target, args=args, inputs=(8, 8), outputs=10).build()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "__signature__" not in vars(Needs)


def test_a_bad_target_is_one_line_of_the_command(folder, nets, capsys):
    """The command ends with status 2 and writes nothing; a linen module without inputs is refused too."""
    assert main(["train", "LinenNet.toml", "model.target=flax_nets:neither", "model.args={}", "--out", "bad"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not Path("bad").exists()
    with pytest.raises(ConfigError, match="adapt: a linen module needs inputs"):
        adapt(nets.LinenNet(10))


def test_nnx_is_imported_late(root):
    """Who names no nnx module does not pay for nnx."""
    code = "import sys, functrain.models; print('flax.nnx' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout == "False\n", done.stderr
