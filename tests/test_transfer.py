"""Starting from another run or from a safetensors file: what is loaded is bitwise that, all else as without it."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import same
from toys import TinyGAN

import functrain
from functrain import config, transfer, tree
from functrain.building import build
from functrain.built import compile, first_states
from functrain.cli import main
from functrain.experiment import Experiment
from functrain.optim import Learner
from functrain.tasks import Classification
from functrain.train import state
from functrain.train.checkpoint import Directory

safetensors = pytest.importorskip("safetensors.numpy", reason="not installed: pip install 'functrain[weights]'")

pytestmark = pytest.mark.usefixtures("quick")

BASE = """\
[task]
kind = "classification"
[model]
kind = "mlp"
hidden = [8, 6]
[data]
kind = "digits"
[optimizer]
peak_lr = 1e-2
[train]
steps = 12
[evaluate]
every = 4
[checkpoint]
every = 4
keep = 9
[observe]
tensorboard = false
figures = false
"""
CNN = ["model={kind='cnn', channels=[2, 3], hidden=[6], norm='batch'}"]
X = np.arange(3 * 64, dtype=np.float32).reshape(3, 8, 8) % 17


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with c.toml and runs: base, trained with an average; seeds (two) and cnn (with statistics), made up."""
    folder = tmp_path_factory.mktemp("transfer")
    jax.config.update("jax_disable_most_optimizations", True)
    (folder / "c.toml").write_text(BASE)
    arguments = ["train", str(folder / "c.toml"), "average={kind='ema', decay=0.9}", "--out", str(folder / "base")]
    assert main(arguments) == 0
    _make_up(folder, "seeds", "train.seeds=2", "train.seed=5")
    _make_up(folder, "cnn", *CNN)
    jax.config.update("jax_disable_most_optimizations", False)
    return folder


def _make_up(folder, name, *overrides):
    """A run directory with a checkpoint at step 12 as if something had been learned."""
    found = build(config.parse(Experiment, config.read(folder / "c.toml", overrides)))

    def moved(x):
        return 1.5 * x + 0.25 if tree.is_float(x) else x

    drawn = first_states(found, {})
    learned = drawn.replace(players=jax.tree.map(moved, drawn.players), state=jax.tree.map(moved, drawn.state))
    store = Directory(folder / name / "checkpoints")
    store.save(12, {"state": learned}, {"loss": 1.0})
    store.close()
    (folder / name / "config.toml").write_text(config.dump(found.config))


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """The same in a folder of this test's own, which is the working directory."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def built(*overrides):
    """The config with these overrides, put together."""
    return build(config.parse(Experiment, config.read("c.toml", overrides)))


def first(*overrides):
    """Its state before the first step."""
    found = built(*overrides)
    return first_states(found, found.start.arrays if found.start else {})


def of(arrays, pattern=""):
    """Path -> bytes of the arrays whose path holds the pattern."""
    return {path: np.asarray(x).tobytes() for path, x in tree.by_path(arrays).items() if pattern in path}


# -- the first state ------------------------------------------------------------------------------


def test_loaded_arrays_and_those_drawn_anew(here):
    """Bit for bit the weights that evaluation uses there; what is fresh is bit for bit what is drawn without it."""
    base = functrain.load("base")
    there = base.task.learner.weights(base.train_state.players["model"])
    assert of(there) != of(base.params), "the average is no other than the parameters: the test says nothing"
    whole = first("start.run=base")
    assert of(whole.players["model"].params) == of(there)
    plain = first()
    part = compile(built("start.run=base", "start.fresh=['^layer2', 'layer1/bias']")).train_state
    params, drawn = part.players["model"].params, plain.players["model"].params
    for path in tree.by_path(params):
        source = drawn if path.startswith("layer2") or path == "layer1/bias" else there
        assert of(params, path) == of(source, path), path
    assert same([part.key, part.step, part.hyper], [plain.key, plain.step, plain.hyper])
    early = first("start.run=base", "start.step=4")
    player = functrain.load("base", 4).train_state.players["model"]
    assert of(early.players["model"].params) == of(base.task.learner.weights(player)) != of(there)


def test_all_that_hangs_on_parameters_begins_from_the_loaded(here):
    """The moments are zero, the average and the slow weights are the loaded parameters."""
    player = first("start.run=base", "average.kind=ema", "optimizer.lookahead_every=2").players["model"]
    base = functrain.load("base")
    assert of(player.params) == of(base.task.learner.weights(base.train_state.players["model"]))
    assert of(player.average.params) == of(player.params)
    inner = {type(stage).__name__: stage for stage in player.optimizer}
    assert of(inner["LookaheadState"].slow) == of(player.params)
    moments = [inner["ScaleByAdamState"].mu, inner["ScaleByAdamState"].nu]
    assert not any(np.any(x) for x in jax.tree.leaves(moments))
    assert int(player.skipped) == 0


@pytest.mark.parametrize("way", ["in_turn", "together"])
def test_several_seeds_start_from_the_same(here, way):
    """Each member begins from the loaded arrays, and draws the others from its own seed."""
    found = first("start.run=base", "start.fresh=['layer2']", "train.seeds=2", f"train.members={way}")
    members = list(found) if way == "in_turn" else [jax.tree.map(lambda x, i=i: x[i], found) for i in range(2)]
    for i, member in enumerate(members):
        alone = first("start.run=base", "start.fresh=['layer2']", f"train.seed={i}")
        assert of(member.players["model"].params) == of(alone.players["model"].params)
    one, two = (of(member.players["model"].params) for member in members)
    assert {path for path in one if one[path] != two[path]} == {"layer2/kernel"}


def test_members_as_a_source(here):
    """A member of a run of several seeds, by its number."""
    for i in range(2):
        expected = functrain.load("seeds", member=i).params
        assert of(first("start.run=seeds", f"start.member={i}").players["model"].params) == of(expected)


def test_batch_statistics(here):
    """They are loaded too, or not; a norm that is drawn anew has both its parameters and its statistics anew."""
    there, plain = functrain.load("cnn").train_state, first(*CNN)
    assert of(there.state) != of(plain.state)
    assert of(first(*CNN, "start.run=cnn").state) == of(there.state)
    without = first(*CNN, "start.run=cnn", "start.state=false")
    assert of(without.state) == of(plain.state)
    assert of(without.players["model"].params) == of(there.players["model"].params)
    mixed = first(*CNN, "start.run=cnn", "start.fresh=['^norm1']")
    assert of(mixed.state, "norm0") == of(there.state, "norm0")
    assert of(mixed.state, "norm1") == of(plain.state, "norm1")
    assert of(mixed.players["model"].params, "norm1") == of(plain.players["model"].params, "norm1")


def test_another_shape_of_model(here):
    """Wider from the second layer on: what fits is loaded, what is drawn anew has the new shapes."""
    wide = ["model.hidden=[8, 7]", "start.run=base", "start.fresh=['layer[12]']"]
    loaded = built(*wide).start
    assert loaded.record()["loaded"]["paths"] == ["params/layer0/bias", "params/layer0/kernel"]
    assert set(loaded.fresh) == {f"params/layer{i}/{part}" for i in (1, 2) for part in ("bias", "kernel")}
    assert set(loaded.unused) == set(loaded.fresh)
    assert first(*wide).players["model"].params["layer1"]["kernel"].shape == (8, 7)


def test_players_by_name():
    """Arrays of a task of several players go by the player's name; a path that nobody draws is refused."""
    gan = TinyGAN()
    trained_state, drawn = (state.init(gan, jax.random.key(i)) for i in (1, 2))

    def begun(start, task, train_state):
        arrays = transfer._plain(transfer.weights(task, train_state))
        source = transfer.Weights("there", {}, list(arrays), arrays.__getitem__)
        loaded = transfer.match(start, source, gan)
        return state.init(gan, jax.random.key(2), start=loaded.arrays).players

    found = begun(transfer.Start(run="there", fresh=("^discriminator",)), gan, trained_state)
    assert of(found["generator"].params) == of(trained_state.players["generator"].params)
    assert of(found["discriminator"].params) == of(drawn.players["discriminator"].params)
    # A model alone goes into one of two players by a rename.
    alone = Classification(model=gan.generator, learner=Learner())
    single = state.init(alone, jax.random.key(3))
    start = transfer.Start(run="there", fresh=("^discriminator",), rename=(("^", "generator/"),))
    assert of(begun(start, alone, single)["generator"].params) == of(single.players["model"].params)
    with pytest.raises(ValueError, match="params/generator/layer9: the task draws no such array"):
        state.init(gan, jax.random.key(0), start={"params/generator/layer9": np.zeros(2)})


# -- runs -----------------------------------------------------------------------------------------


def test_a_run_resumes_evaluates_and_predicts_without_its_source(here, capsys):
    """With the source gone, what is resumed ends bit for bit as the run that nobody touched; the record stays."""
    common = ["train", "c.toml", "start.run=base", "start.fresh=['layer2']", "optimizer.schedule.kind=constant"]
    assert main([*common, "--out", "whole"]) == 0
    shown = capsys.readouterr().out
    for word in ("start from base, step 12", "drawn anew", "layer2/bias, layer2/kernel (by layer2)", "not used"):
        assert word in shown
    assert main([*common, "train.steps=8", "--out", "half"]) == 0
    record = json.loads((here / "half" / "start.json").read_text())
    assert (record["run"], record["step"]) == ("base", 12)
    assert record["loaded"]["numbers"] == 64 * 8 + 8 + 8 * 6 + 6
    assert record["fresh"] == {"params/layer2/bias": "layer2", "params/layer2/kernel": "layer2"}
    shutil.rmtree(here / "base")
    assert main(["train", "--resume", "half", "train.steps=12"]) == 0
    whole, half = (Directory(here / name / "checkpoints").load(12)[1] for name in ("whole", "half"))
    assert whole.keys() == half.keys()
    assert all(whole[path].tobytes() == half[path].tobytes() for path in whole)
    assert main(["eval", "half"]) == 0
    np.save("x.npy", X)
    assert main(["predict", "half", "x.npy"]) == 0
    assert functrain.load("half")(X).shape == (3, 10)
    capsys.readouterr()
    assert main([*common, "--out", "again"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "functrain: start.run: base: no run is there (it has no config.toml)\n"
    assert not (here / "again").exists()


def test_frozen_leaves_stay_and_others_move_by_their_rates(here):
    """After training, what is frozen is bitwise the source's; a rate of a hundredth moves less than a rate of 1."""
    rates = "optimizer.rates=[['linear0', 0.01], ['.', 1.0]]"
    freeze = "optimizer.freeze=['^conv', '^norm']"
    assert main(["train", "c.toml", "start.run=cnn", *CNN, freeze, rates, "train.steps=4", "--out", "frozen"]) == 0
    there, after = functrain.load("cnn").params, functrain.load("frozen", 4).params
    for name in ("conv0", "conv1", "norm0", "norm1"):
        assert of(after[name]) == of(there[name])
    moved = [float(jnp.abs(there[n]["kernel"] - after[n]["kernel"]).mean()) for n in ("linear0", "linear1")]
    assert 0 < 20 * moved[0] < moved[1]


def test_inspect_says_it(here, capsys):
    """The table stands in `inspect` too."""
    assert main(["inspect", "c.toml", "start.run=base", "start.fresh=['^layer2']"]) == 0
    assert "start from base, step 12" in capsys.readouterr().out


# -- files ----------------------------------------------------------------------------------------


def test_export_and_start_from_the_file(here, capsys):
    """What is exported is what evaluation uses, and starts a run with the same bits; the metadata say whose it is."""
    assert main(["export", "cnn", "w.safetensors"]) == 0
    assert "w.safetensors: 16 arrays" in capsys.readouterr().out
    model = functrain.load("cnn")
    expected = {"params": model.params, "state": model.train_state.state}
    found = safetensors.load_file("w.safetensors")
    assert of(found) == of(expected)
    with safetensors.safe_open("w.safetensors", framework="numpy") as file:
        metadata = file.metadata()
    assert metadata["kind"] == "cnn"
    assert metadata["layout"] == "functrain"
    assert metadata["functrain"] == functrain.__version__
    assert metadata["step"] == str(model.step)
    assert config.parse(Experiment, json.loads(metadata["config"])) == model.config
    assert not list(here.glob("*.partial"))
    assert of(first(*CNN, "start.file=w.safetensors").players["model"].params) == of(model.params)
    assert of(first(*CNN, "start.file=w.safetensors").state) == of(model.train_state.state)
    record = built(*CNN, "start.file=w.safetensors").start.record()
    assert len(record["sha256"]) == 64
    assert record["layout"] == "functrain"
    average = transfer.export(functrain.load("base"), "base.safetensors")
    assert of(average["params/layer0/kernel"]) != of(functrain.load("base").params["layer0"]["kernel"])
    assert main(["export", "seeds", "second.safetensors", "--member", "1", "--step", "12"]) == 0
    one = functrain.load("seeds", 12, member=1).params
    assert of(safetensors.load_file("second.safetensors")) == {f"params/{path}": x for path, x in of(one).items()}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_dtypes_are_read_right(here, dtype):
    """A file in another dtype gives its own values, in the model's."""
    arrays = transfer._plain(transfer.weights((t := functrain.load("base")).task, t.train_state))
    narrow = {path: np.asarray(jnp.asarray(a)).astype(np.dtype(dtype)) for path, a in arrays.items()}
    safetensors.save_file(narrow, "narrow.safetensors")
    params = first("start.file=narrow.safetensors").players["model"].params
    for path, x in tree.by_path({"params": params}).items():
        assert x.dtype == np.float32
        assert np.array_equal(np.asarray(x), narrow[path].astype(np.float32)), path


def test_renamed_arrays(here):
    """Patterns turn the names of another model into ours; what they turned is on record."""
    arrays = functrain.load("cnn").params
    names = {"first": arrays["conv0"], "second": arrays["conv1"], "norm0": arrays["norm0"], "norm1": arrays["norm1"]}
    flat = {path: np.asarray(x) for path, x in tree.by_path({"params": {"body": names}}).items()}
    safetensors.save_file(flat | {"params/body/extra": np.zeros(2)}, "other.safetensors")
    rename = "start.rename=[['^body/', ''], ['^first', 'conv0'], ['^(?:second)', 'conv1']]"
    start = ["start.file=other.safetensors", rename, "start.fresh=['^linear']", "start.state=false"]
    params = first(*CNN, *start).players["model"].params
    assert of({k: params[k] for k in ("conv0", "conv1", "norm0")}) == of(
        {k: arrays[k] for k in ("conv0", "conv1", "norm0")}
    )
    record = built(*CNN, *start).start.record()
    assert record["renamed"]["params/body/first/kernel"] == "params/conv0/kernel"
    assert record["unused"] == ["params/body/extra"]
    assert record["fresh"]["state/norm0/mean"] == "start.state = false"


# -- mistakes -------------------------------------------------------------------------------------


def _write_files():
    ones = {"params/layer0/kernel": np.ones((64, 8), np.float32)}
    safetensors.save_file(ones, "part.safetensors")
    safetensors.save_file({"fc.weight": np.ones((2, 2), np.float32)}, "foreign.safetensors")
    whole = {
        f"params/{p}": np.zeros(x.shape, np.float32) for p, x in tree.by_path(functrain.load("base").params).items()
    }
    safetensors.save_file(whole | {"params/layer0/bias": np.full(8, np.nan, np.float32)}, "nan.safetensors")
    safetensors.save_file(whole | {"params/layer0/bias": np.zeros(8, np.int32)}, "int.safetensors")
    safetensors.save_file({}, "empty.safetensors")
    data = safetensors.save(whole)
    for name, content in {"short": data[:-9], "zip": b"PK\x03\x04" + data, "nothing": b"", "model.pt": b"PK"}.items():
        with open(name if "." in name else f"{name}.safetensors", "wb") as file:
            file.write(content)


MISTAKES = {
    # name: (arguments, what the line says)
    "neither": (["start.fresh=['layer2']"], ("start: give run or file",)),
    "both": (["start.run=base", "start.file=x.safetensors"], ("start: give run or file",)),
    "step-of-a-file": (["start.file=part.safetensors", "start.step=3"], ("step and member are of a run",)),
    "no-run": (["start.run=nowhere"], ("start.run: nowhere: no run is there",)),
    "no-step": (["start.run=base", "start.step=5"], ("start.step: found 5", "4, 8, 12")),
    "no-member": (["start.run=base", "start.member=1"], ("start.member: found 1", "base has 1")),
    "other-shape": (
        ["start.run=base", "model.hidden=[8, 7]"],
        ("layer1/bias: [7] here, [6] in base, step 12", "start.fresh", "(and 2 more)"),
    ),
    "missing": (["start.run=base", "model.norm=layer"], ("norm0/bias [8]: not in base, step 12", "start.fresh")),
    "missing-in-a-file": (["start.file=part.safetensors"], ("layer0/bias [8]: not in part.safetensors", "and 4 more")),
    "all-fresh": (["start.run=base", "start.fresh=['.']"], ("start.fresh: covers every parameter",)),
    "fresh-matches-nothing": (["start.run=base", "start.fresh=['head']"], ("start.fresh: pattern 'head' matches no",)),
    "fresh-no-pattern": (["start.run=base", "start.fresh=['(']"], ("start.fresh: pattern '('", "regular expression")),
    "rename-matches-nothing": (["start.run=base", "start.rename=[['head', '']]"], ("start.rename: \"head\" matches",)),
    "rename-no-pattern": (["start.run=base", "start.rename=[['(', '']]"], ("start.rename: [\"(\", \"\"]",)),
    "rename-no-group": (["start.run=base", "start.rename=[['l', '\\7']]"], ("start.rename:", "group")),
    "rename-to-one": (["start.run=base", "start.rename=[['layer.', 'layer']]"], ("start.rename: both", "would be")),
    "rename-to-nothing": (["start.run=base", "start.rename=[['^', 'x']]"], ("start: nothing in base, step 12",)),
    "no-file": (["start.file=none.safetensors"], ("start.file: none.safetensors: cannot be read: No such file",)),
    "folder": (["start.file=base"], ("start.file: base: no model.safetensors is there",)),
    "pickle": (["start.file=model.pt"], ("a pickle may hold code", "safetensors.torch.save_file(model.state_dict()")),
    "cut-short": (["start.file=short.safetensors"], ("not a safetensors file, or damaged",)),
    "zip": (["start.file=zip.safetensors"], ("not a safetensors file, or damaged",)),
    "nothing": (["start.file=nothing.safetensors"], ("not a safetensors file, or damaged",)),
    "empty": (["start.file=empty.safetensors"], ("holds no arrays",)),
    "foreign": (["start.file=foreign.safetensors"], ("it has fc.weight", "expected functrain's names", "MLP")),
    "nan": (["start.file=nan.safetensors"], ("params/layer0/bias: numbers that are not finite",)),
    "integers": (["start.file=int.safetensors"], ("params/layer0/bias: found int32", "float32")),
    "unknown-key": (["start.run=base", "start.freshh=['x']"], ("start.freshh: unknown key", "fresh")),
}  # fmt: skip


def test_mistakes(here):
    """Each is one line that says where, what was found and what would be right."""
    _write_files()
    plain = built()
    for name, (arguments, says) in MISTAKES.items():
        with pytest.raises(config.ConfigError) as caught:
            _start(plain, arguments)
        line = str(caught.value)
        assert "\n" not in line
        assert len(line) <= 390, line
        for part in says:
            assert part in line, (name, line)


def _start(plain, arguments):
    """What the config with these overrides starts from; built anew only where they say more than that."""
    settings = config.parse(Experiment, config.read("c.toml", arguments))
    if all(argument.startswith("start.") for argument in arguments):
        return dataclasses.replace(plain, config=dataclasses.replace(plain.config, start=settings.start)).start
    return build(settings).start


def test_mistakes_of_export(here, capsys):
    """A file that exists, another ending, no such folder, no run, a model without a twin: one line, nothing written."""
    (here / "there.safetensors").write_text("mine")
    before = sorted(here.iterdir())
    for arguments, says in [
        (["base", "there.safetensors"], "exists already"),
        (["base", "w.npz"], "expected a file .safetensors"),
        (["base", "nowhere/w.safetensors"], "in a directory that exists"),
        (["nowhere", "w.safetensors"], "no run is there"),
        (["base", "w.safetensors", "--step", "5"], "--step: found 5"),
        (["base", "w.safetensors", "--member", "1"], "member 1"),
        (["base", "w.safetensors", "--layout", "torchvision"], "has no names in torchvision"),
    ]:
        assert main(["export", *arguments]) == 2, arguments
        line = capsys.readouterr().err
        assert says in line
        assert line.count("\n") == 1
    assert sorted(here.iterdir()) == before
    assert (here / "there.safetensors").read_text() == "mine"


def test_without_safetensors(here, capsys, monkeypatch):
    """Where it is not installed, the line names the extra."""
    monkeypatch.setitem(__import__("sys").modules, "safetensors.numpy", None)
    assert main(["export", "base", "w.safetensors"]) == 2
    assert "pip install 'functrain[weights]'" in capsys.readouterr().err


def test_a_config_keeps_its_start():
    """What is written parses back equal."""
    start = transfer.Start(run="runs/a", step=3, fresh=("x",), rename=(("a", "b"),), state=False)
    whole = config.parse(Experiment, config.to_data(_with_start(start)))
    assert whole.start == start
    assert dataclasses.replace(whole, start=None) == _with_start(None)


def _with_start(start):
    plain = config.parse(Experiment, {"task": {"kind": "classification"}, "model": {"kind": "mlp"}})
    return dataclasses.replace(plain, start=start)
