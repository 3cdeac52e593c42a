"""Two domains without pairs: the data made of digits, laws of resuming, the pool, what is refused, pictures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_equal_runs, final_arrays
from small_data import write_mnist

from functrain import trained
from functrain.cli import main
from functrain.config import ConfigError
from functrain.data import MnistDomains
from functrain.data.domains import _edges
from functrain.tasks.cyclegan import from_pool

JUDGE = """
[task]
kind = "classification"
[model]
kind = "mlp"
hidden = [16]
[data]
kind = "known"
name = "mnist"
normalise = "standard"
[train]
steps = 20
[observe]
figures = false
tensorboard = false
"""
TOML = """
[task]
kind = "cycle_translation"
pool = 6
[task.judge]
run = "judge"
[model]
kind = "cyclegan"
width = 2
blocks = 1
judge_width = 2
judge_layers = 1
[data]
kind = "mnist_domains"
batch_size = 4
limit = 12
[optimizer]
kind = "adam"
peak_lr = 1e-3
b1 = 0.5
[train]
steps = 8
log_every = 2
[evaluate]
every = 4
[checkpoint]
every = 4
[observe]
tensorboard = false
figures = false
"""


@pytest.fixture
def mnist(tmp_path, monkeypatch):
    """A working directory with small files of MNIST."""
    write_mnist(tmp_path / "mnist", np.random.default_rng(0), train=120, test=30)
    monkeypatch.setenv("FUNCTRAIN_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("change", ["inverted", "edges"])
def test_each_digit_is_in_one_domain(mnist, change):
    """Undone, the other domain's images are digits too, of their own labels, and none of them is among ours."""
    made = MnistDomains(change=change).load()
    whole = MnistDomains(change=change, domain_seed=1).load()
    assert not np.array_equal(made.train["x"], whole.train["x"])
    for split, n in (("train", 50), ("validation", 10), ("test", 15)):
        part = made.split(split)
        assert part["x"].shape == part["other"].shape == (n, 28, 28)
        if change == "inverted":
            undone = 255 - np.rot90(part["other"], -1, axes=(1, 2))
            rows = 2 * part["y_other"] + 4  # where a digit's bar lies
            assert (undone[np.arange(n), rows, 4:24] == 250).all()
            assert not {x.tobytes() for x in part["x"]} & {x.tobytes() for x in np.ascontiguousarray(undone)}
        assert (part["x"][np.arange(n), 2 * part["y"] + 4, 4:24] == 250).all()
    batch = MnistDomains().prepare({name: jnp.asarray(part[name]) for name in ("x", "other", "y")})
    for name in ("x", "other"):
        np.testing.assert_allclose(batch[name], part[name] / 255, rtol=1e-6)


def test_edges_are_slopes():
    """Of a ramp its slope, in both directions; flat areas have none."""
    ramp = np.tile(np.arange(0, 60, 10, dtype=np.uint8), (6, 1))
    np.testing.assert_array_equal(_edges(ramp[None])[0], np.full((6, 6), 10))
    np.testing.assert_array_equal(_edges(ramp.T[None])[0], np.full((6, 6), 10))
    both = (3 * np.arange(8)[:, None] + 4 * np.arange(8)).astype(np.uint8)
    np.testing.assert_array_equal(_edges(both[None])[0], np.full((8, 8), 5))


def test_the_pool():
    """It fills with what it is given, which is judged; then half of what is judged is older, and is replaced."""
    pool = {"images": jnp.zeros((3, 2)), "kept": jnp.int32(0)}
    given = jnp.arange(1.0, 5.0)[:, None] * jnp.ones(2)
    draw = jax.jit(from_pool)
    judged, pool = draw(pool, given[:3], key=jax.random.key(0))
    np.testing.assert_array_equal(judged, given[:3])
    np.testing.assert_array_equal(pool["images"], given[:3])
    older = 0
    for i in range(200):
        new = jnp.full((1, 2), 100.0 + i)
        judged, after = draw(pool, new, key=jax.random.key(i))
        if judged[0, 0] != new[0, 0]:
            older += 1
            at = np.flatnonzero((after["images"] == new).all(1))
            assert len(at) == 1
            np.testing.assert_array_equal(pool["images"][at], judged)
        else:
            np.testing.assert_array_equal(pool["images"], after["images"])
        pool = after
    assert 70 < older < 130
    none = {"images": jnp.zeros((0, 2)), "kept": jnp.int32(0)}
    np.testing.assert_array_equal(from_pool(none, given, key=jax.random.key(0))[0], given)


@pytest.mark.usefixtures("quick")
def test_runs(mnist):
    """Stopped and resumed is the same bit for bit, the pools with it; chunks change nothing; pictures; predictions."""
    (mnist / "judge.toml").write_text(JUDGE)
    (mnist / "cycle.toml").write_text(TOML)
    assert main(["train", "judge.toml", "--out", "judge"]) == 0
    drawn = ["observe.figures=true", "observe.draw_every=4"]
    assert main(["train", "cycle.toml", "--out", "whole", "train.chunk=1", *drawn]) == 0
    assert main(["train", "cycle.toml", "--out", "cut", "train.chunk=2", "train.steps=4"]) == 0
    assert main(["train", "--resume", "cut", "train.steps=8"]) == 0
    assert_equal_runs("whole", "cut")
    pools = {path: array for path, array in final_arrays(mnist / "whole")[1].items() if "/pools/" in path}
    assert len(pools) == 4
    assert all(array == 6 for path, array in pools.items() if path.endswith("kept"))
    assert all(array.any() for array in pools.values())
    figures = mnist / "whole" / "figures"
    assert {path.name for path in figures.glob("*.png")} == {"curves.png", "there.png", "back.png"}
    assert {path.name for path in (figures / "step00000004").iterdir()} == {"there.png", "back.png"}
    found = trained.evaluate(mnist / "whole")
    assert {"round_trip_accuracy", "translated_accuracy", "cycle_error_x", "cycle_error_other"} <= found.keys()


def test_mistakes(mnist, capsys):
    """Sources without two domains, models without two networks, files that are no images: one line, status 2."""
    (mnist / "cycle.toml").write_text(TOML)
    for arguments, words in (
        (["data={kind='digits'}"], "task.kind: cycle_translation needs images x and other of one shape"),
        (["model={kind='mlp'}"], "model.kind: task.kind = cycle_translation needs networks of two domains (cyclegan)"),
        (["task.judge.run=gone"], "gone"),
        (["data.images=gone.gz"], "data.images: no file"),
    ):
        with_judge = [] if "task.judge.run=gone" in arguments else ["task={kind='cycle_translation'}"]
        assert main(["train", "cycle.toml", "--out", "run", *with_judge, *arguments]) == 2
        assert words in capsys.readouterr().err
        assert not (mnist / "run").exists()
    write_mnist(mnist / "few" / "mnist", np.random.default_rng(0), train=3, test=3)
    few = {"images": "train-images-idx3", "labels": "train-labels-idx1"}
    few |= {"test_images": "t10k-images-idx3", "test_labels": "t10k-labels-idx1"}
    with pytest.raises(ConfigError, match=r"data\.images: holds too few digits"):
        MnistDomains(**{name: f"few/mnist/{file}-ubyte.gz" for name, file in few.items()}).load()
