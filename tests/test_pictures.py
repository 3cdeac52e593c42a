"""Pictures while a run trains: at their steps, in figures/ and in TensorBoard, and without an effect on the run."""

import io
from pathlib import Path

import numpy as np
import pytest
from helpers import DIGITS_VAE, Log, assert_equal_runs, digits_feed, mlp_task, start
from matplotlib.image import imread
from small_data import write_digits_said

from functrain.cli import main
from functrain.tasks import Variational
from functrain.train.loop import Best, Plan, run
from functrain.train.program import compile_program

IMAGES = {"latent.png", "reconstructions.png", "samples.png", "plane.png"}
DRAWN = ["train.steps=30", "observe.draw_every=10"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory with vae.toml in it."""
    (tmp_path / "vae.toml").write_text(DIGITS_VAE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


_OF_ALL = ("curves", "layers")  # what runs of all tasks have


def pngs(out):
    """{(folder, name): bytes} of a run's pictures, but for the curves and the layers."""
    paths = Path(out, "figures").glob("**/*.png")
    return {(path.parent.name, path.name): path.read_bytes() for path in paths if path.stem not in _OF_ALL}


def pixels(data):
    """[height, width, 3] of a PNG, without its opacity."""
    return imread(io.BytesIO(data))[..., :3]


def images_of(out):
    """{(step, tag): pixels} of a run's TensorBoard files."""
    from tensorboardX.proto import event_pb2

    found = {}
    for path in Path(out, "tensorboard").rglob("events*"):
        data, at = path.read_bytes(), 0
        while at < len(data):  # a record: length (8 bytes), its checksum (4), the event, its checksum (4)
            size = int.from_bytes(data[at : at + 8], "little")
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
            for value in event.summary.value:
                if value.HasField("image"):
                    assert (event.step, value.tag) not in found
                    found[event.step, value.tag] = pixels(value.image.encoded_image_string)
            at += 16 + size
    return found


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A run that drew at 10, at 20 and at its end."""
    folder = tmp_path_factory.mktemp("drawn")
    (folder / "vae.toml").write_text(DIGITS_VAE)
    more = [*DRAWN, "train.chunk=7", "observe.tensorboard=true"]
    assert main(["train", str(folder / "vae.toml"), *more, "--out", str(folder / "run")]) == 0
    return folder / "run"


def test_pictures_come_at_their_steps(drawn):
    """Those of 10 and 20 in folders, those of the end in figures/; TensorBoard has all of them, pixel by pixel."""
    files, steps = pngs(drawn), {"step00000010": 10, "step00000020": 20, "figures": 30}
    assert set(files) == {(at, name) for at in steps for name in IMAGES}
    assert len({files[at, "reconstructions.png"] for at in steps}) == 3
    images = images_of(drawn)
    assert all(images.pop((30, name)).shape[2] == 3 for name in _OF_ALL)
    wanted = {(steps[at], Path(name).stem): pixels(data) for (at, name), data in files.items()}
    assert images.keys() == wanted.keys()
    for where, image in wanted.items():
        np.testing.assert_array_equal(images[where], image)


def test_drawing_changes_nothing(drawn, folder):
    """State and log are those of a run that draws nothing, byte for byte; without figures no step draws."""
    assert main(["train", "vae.toml", "train.steps=30", "observe.figures=false", "--out", "plain"]) == 0
    off = [*DRAWN, "observe.figures=false", "observe.tensorboard=true"]
    assert main(["train", "vae.toml", *off, "--out", "off"]) == 0
    assert_equal_runs(drawn, "plain")
    assert_equal_runs(drawn, "off")
    assert not Path("off", "figures").exists()
    assert images_of("off") == {}


def test_a_resumed_run_draws_what_is_missing(drawn, folder, monkeypatch):
    """A run that dies while it draws step 20 and goes on from a checkpoint before has the pictures of a whole one."""
    draw = Variational.draw

    def die(self, outputs, batch, folder, names):
        if folder.name == "step00000020":
            raise MemoryError
        return draw(self, outputs, batch, folder, names)

    with monkeypatch.context() as patch:
        patch.setattr(Variational, "draw", die)
        with pytest.raises(MemoryError):
            main(["train", "vae.toml", *DRAWN, "checkpoint.every=5", "--out", "cut"])
    assert {at for at, _ in pngs("cut")} == {"step00000010"}
    assert main(["train", "--resume", "cut"]) == 0
    assert_equal_runs(drawn, "cut")
    assert pngs("cut") == pngs(drawn)


@pytest.mark.parametrize("members", ["in_turn", "together"])
def test_of_several_seeds_the_first_is_drawn(members, drawn, folder):
    """A member in turn is bit for bit a run of its own, and so are its pictures; together they are drawn too."""
    several = ["train.steps=11", "train.seeds=2", f"train.members={members}"]
    assert main(["train", "vae.toml", *DRAWN, *several, "--out", "r"]) == 0
    first, found = ({k: v for k, v in pngs(out).items() if k[0] == "step00000010"} for out in (drawn, "r"))
    assert found.keys() == first.keys()
    assert members == "together" or found == first


WAVES = """
[task]
kind = "waveform"
[model]
kind = "wavenet"
stacks = 1
layers = 1
channels = 4
skip = 4
[data]
kind = "sound_files"
path = "fsdd/recordings.tar.gz"
pattern = '(?P<digit>\\d)_[a-z]+_\\d+\\.wav$'
label = "digit"
seconds = 0.01
features = { kind = "mu_law" }
batch_size = 16
[train]
steps = 2
[observe]
tensorboard = false
draw_every = 1
"""


@pytest.mark.usefixtures("quick")
def test_waves_are_drawn_while_they_are_learned(folder):
    """A task whose `draw` computes with jax, and whose files are not all pictures."""
    write_digits_said(folder / "fsdd", np.random.default_rng(0), takes=1)
    (folder / "waves.toml").write_text(WAVES)
    assert main(["train", "waves.toml", "--out", "r"]) == 0
    found = {path.name for path in Path("r", "figures", "step00000001").iterdir()}
    assert found == {"spectrograms.png", *(f"{digit}.wav" for digit in range(10))}


@pytest.mark.usefixtures("quick")
def test_sinks_are_told_in_order(digits):
    """A picture comes after the metrics of the steps before it, which are read late: W&B refuses what is past."""
    task, feed = mlp_task(), digits_feed(digits)
    train_state, log, told = start(task), Log(), []
    log.scalars = lambda step, split, values: told.append((step, split))
    log.pictures = lambda step, paths: told.append((step, paths))
    program = compile_program(task, feed, train_state)
    plan = Plan(steps=20, chunk=20, log_every=7, draw_every=5)
    run(program, train_state, program.fresh(), plan, best=Best(), draw=lambda train_state, step: "drawn", sinks=[log])
    assert sorted(told) == sorted([(s, "drawn") for s in (5, 10, 15)] + [(s, "train") for s in (7, 14, 20)])
    assert told == sorted(told)
