"""What is seen while training: every number against plain numpy, and nothing of it reaches the training."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_equal_runs, digits_feed, mlp_task, same, start
from matplotlib.image import imread
from test_run import CONFIG

from functrain.cli import main
from functrain.data import Memory
from functrain.layers import embedding
from functrain.metrics import Mean, mean_of
from functrain.models import MLP
from functrain.observe.events import LayerLines, layer_history
from functrain.observe.layers_figure import grouped, layers_figure
from functrain.observe.seen import BINS, EDGES, LOWEST, Seen, compact, drawn, expanded, folded, see
from functrain.observe.tensorboard import TensorBoard
from functrain.optim import SGD, AdamW, Learner, sparse
from functrain.tasks.base import of_player
from functrain.tasks.classification import Classification
from functrain.train import state, step
from functrain.train.loop import Best, Plan, run
from functrain.train.program import compile_program, looking

ONE = jnp.ones(())


def arrays(**named):
    """Arrays as a learner shows them: gradient_kernel=... is gradient/kernel."""
    return {name.replace("_", "/"): Mean(jnp.asarray(x), ONE) for name, x in named.items()}


def read_numbers(seen):
    """The numbers of a look, on the host."""
    return {name: float(x) for name, x in jax.device_get(seen).numbers.items()}


# -- against numpy --------------------------------------------------------------------------------

CLIP, RATE, DEAD = 0.05, 0.3, 5


def relu_task(**model):
    """A ReLU network on eight numbers, plain SGD that clips."""
    return Classification(
        model=MLP(inputs=(8,), outputs=3, hidden=(16,), **model),
        learner=Learner(optimizer=SGD(peak_lr=RATE, clip_norm=CLIP)),
    )


def relu_feed(n=60, size=12):
    """Random examples in memory."""
    rng = np.random.default_rng(0)
    return Memory({"x": jnp.asarray(rng.normal(size=(n, 8))), "y": jnp.asarray(rng.integers(0, 3, n))}, size)


def planted(train_state, leaf="layer0"):
    """The state with DEAD units of the hidden layer that no input wakes."""
    params = dict(train_state.players["model"].params)
    params[leaf] = params[leaf] | {"bias": params[leaf]["bias"].at[:DEAD].set(-1e6)}
    return train_state.replace(players={"model": train_state.players["model"].replace(params=params)})


def backpropagated(p, batch):
    """The gradient of the mean cross-entropy of a ReLU network with one hidden layer, by hand."""
    x, y = np.asarray(batch["x"]), np.asarray(batch["y"])
    before = x @ p["layer0"]["kernel"] + p["layer0"]["bias"]
    hidden = np.maximum(before, 0)
    logits = hidden @ p["layer1"]["kernel"] + p["layer1"]["bias"]
    likely = np.exp(logits - logits.max(1, keepdims=True))
    off = (likely / likely.sum(1, keepdims=True) - np.eye(3)[y]) / len(x)
    back = off @ p["layer1"]["kernel"].T * (before > 0)
    return {
        "layer0/bias": back.sum(0),
        "layer0/kernel": x.T @ back,
        "layer1/bias": off.sum(0),
        "layer1/kernel": hidden.T @ off,
    }


def cosine(a, b):
    """Of two arrays, or of several pairs as one."""
    return np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b))


def test_every_number_is_numpys(float64):
    """Two steps of a ReLU network done by hand in float64; five of sixteen units dead: that share exactly."""
    task, feed = relu_task(), relu_feed()
    train_state = planted(start(task))
    seen = jax.device_get(looking(task, feed)(train_state, feed.arrays, feed.arrays))
    p = jax.tree.map(np.asarray, train_state.players["model"].params)
    first = backpropagated(p, feed.batch(feed.arrays, 0))
    norm = np.sqrt(sum(np.sum(g**2) for g in first.values()))
    assert norm > CLIP  # or the clipping would not be seen
    update = {path: -RATE * g * min(1, CLIP / norm) for path, g in first.items()}
    flat = {f"{scope}/{leaf}": x for scope, leaves in p.items() for leaf, x in leaves.items()}
    moved = {path: flat[path] + update[path] for path in flat}
    later = {s: {leaf: moved[f"{s}/{leaf}"] for leaf in ("bias", "kernel")} for s in p}
    second = backpropagated(later, feed.batch(feed.arrays, 1))
    wanted = {"dead_units/layer0/kernel": DEAD / 16, "dead_units/layer1/kernel": 0.0}
    for path in flat:
        for what, of in (("gradient", first), ("update", update), ("parameter", flat)):
            wanted[f"{what}_norm/{path}"] = np.linalg.norm(of[path])
            one, plain = seen.histograms[f"{what}/{path}"], of[path].ravel()
            assert one.counts.tolist() == counted(plain).tolist()
            assert one.counts.sum() + one.zeros == plain.size
            assert one.zeros == np.sum(plain == 0)
        if np.any(flat[path]):
            wanted[f"update_ratio/{path}"] = np.linalg.norm(update[path]) / np.linalg.norm(flat[path])
        wanted[f"gradient_cosine/{path}"] = cosine(first[path], second[path])
    both = (np.concatenate([of[path].ravel() for path in flat]) for of in (first, second))
    wanted["gradient_cosine/all"] = cosine(*both)
    found = {name: float(x) for name, x in seen.numbers.items()}
    assert np.isnan(found.pop("update_ratio/layer1/bias"))  # a bias begins at zero
    assert found.keys() == wanted.keys()
    for name, number in wanted.items():
        assert found[name] == pytest.approx(number, rel=1e-10, abs=1e-12), name
    assert seen.histograms["gradient/layer0/kernel"].zeros == DEAD * 8


def counted(x):
    """The bins of numbers by the edges alone, each number on its own; zeros in none."""
    counts = np.zeros(BINS, int)
    positive = EDGES[len(EDGES) // 2 :]
    for value in x[(x != 0) & np.isfinite(x)]:
        i = int(np.searchsorted(positive, abs(value), side="right")) if abs(value) < positive[-1] else len(positive) - 1
        counts[BINS // 2 + int(np.sign(value)) * i] += 1
    return counts


def test_histograms_count_everything():
    """Numbers on edges and beside them, tiny, subnormal, beyond the range, zero, inf and nan; they sum to the size."""
    edges = EDGES[len(EDGES) // 2 :].astype(np.float32)
    sides = [edges, np.nextafter(edges, np.float32(0)), np.nextafter(edges, np.float32(np.inf))]
    odd = np.array([1e-30, 1e-40, 1e30, 3.4e38, 5e-13], np.float32)
    x = np.concatenate([*sides, odd])
    x = np.concatenate([x, -x, [0, 0, -0.0, np.inf, -np.inf, np.nan]]).astype(np.float32)
    found = jax.device_get(see(arrays(gradient_w=x))).histograms["gradient/w"]
    plain = x[np.abs(x) != np.float32(1e-40)]  # XLA takes subnormal numbers for zero on some devices
    extra = found.counts - counted(plain)
    assert extra[BINS // 2] + found.zeros == 3 + 2
    assert np.delete(extra, BINS // 2).tolist() == [0] * (BINS - 1)
    assert found.nonfinite == 3
    assert found.counts.sum() + found.zeros + found.nonfinite == x.size
    counts, ends = drawn(found)
    assert counts.sum() == x.size - 3
    assert (ends[0], ends[-1]) == (EDGES[0], EDGES[-1])
    sizes = folded(found)
    assert (sizes[0], sizes[1:].sum()) == (found.zeros, found.counts.sum())
    assert sizes[1 + 3 - LOWEST + 1] == np.sum((np.abs(x) >= 8) & (np.abs(x) < 16))


def test_low_precision_is_counted_as_it_is():
    """bfloat16 and float16 have the bins of their float32 values; their norms are summed in float32."""
    x = np.random.default_rng(0).normal(size=500).astype(np.float32) * 1e-3
    for dtype in (jnp.bfloat16, jnp.float16):
        low = jnp.asarray(x, dtype)
        seen = jax.device_get(see({"gradient/w": Mean(low, ONE)}))
        wide = np.asarray(low.astype(jnp.float32))
        assert seen.histograms["gradient/w"].counts.tolist() == counted(wide).tolist()
        assert seen.numbers["gradient_norm/w"] == pytest.approx(np.linalg.norm(wide), rel=1e-6)


# -- dead units -----------------------------------------------------------------------------------


def test_dead_units_of_each_kind_of_leaf():
    """The last axis of kernels; a bias that moves keeps its unit alive; nan is not zero; tables have no units."""
    conv = np.zeros((3, 3, 2, 4))
    conv[1, 2, 0, 1] = 1e-30
    linear = np.array([[0, 1.0, 0], [0, 0, 0]])
    shown = arrays(
        gradient_conv_kernel=conv,
        gradient_a_kernel=linear,
        gradient_a_bias=np.array([0, 0, 2.0]),
        gradient_b_kernel=linear,
        gradient_c_kernel=np.array([[np.nan, 0]]),
        gradient_norm_scale=np.array([0, 0, 0, 1.0]),
        gradient_norm_bias=np.array([1.0, 0, 0, 0]),
        gradient_tokens_table=np.zeros((5, 4)),
        gradient_one_kernel=np.zeros(3),
    )
    found = {name: x for name, x in read_numbers(see(shown)).items() if name.startswith("dead_units/")}
    shares = {"conv": 0.75, "a": 1 / 3, "b": 2 / 3, "c": 0.5}
    wanted = {f"dead_units/{name}/kernel": share for name, share in shares.items()} | {"dead_units/norm/scale": 0.5}
    assert found == pytest.approx(wanted)


def test_dead_units_behind_a_norm():
    """A layer norm between kernel and ReLU mixes the units: its own scale shows which are dead."""
    task, feed = relu_task(norm="layer"), relu_feed()
    look = looking(task, feed)(planted(start(task), "norm0"), feed.arrays, feed.arrays)
    assert read_numbers(look)["dead_units/norm0/scale"] == DEAD / 16
    assert read_numbers(looking(task, feed)(start(task), feed.arrays, feed.arrays))["dead_units/norm0/scale"] == 0


# -- tasks and learners ---------------------------------------------------------------------------


def test_a_step_that_is_skipped_says_where_it_was_not_finite():
    """A nan in the batch: no update, and the histograms of gradients count what is not finite."""
    task, feed = relu_task(), relu_feed()
    bad = dataclasses.replace(feed, arrays=feed.arrays | {"x": feed.arrays["x"].at[:, 0].set(jnp.nan)})
    seen = jax.device_get(looking(task, bad)(start(task), bad.arrays, bad.arrays))
    assert seen.histograms["gradient/layer0/kernel"].nonfinite > 0
    assert seen.histograms["update/layer0/kernel"].counts.sum() == seen.histograms["update/layer0/kernel"].zeros == 0
    assert np.isnan(seen.numbers["update_norm/layer0/kernel"])
    assert np.isfinite(seen.numbers["parameter_norm/layer0/kernel"])
    assert compact(seen)["numbers"]["update_ratio/layer0/kernel"] is None


def test_frozen_parameters_are_not_seen():
    """Nor is a gradient where the optimizer goes by values alone (as `by_gradient` says)."""
    task, feed = relu_task(), relu_feed()
    task = dataclasses.replace(task, learner=Learner(optimizer=SGD(peak_lr=RATE, freeze=("layer0",))))
    names = read_numbers(looking(task, feed)(start(task), feed.arrays, feed.arrays))
    assert {name.split("/")[1] for name in names} == {"layer1", "all"}


@dataclasses.dataclass(frozen=True)
class Duel:
    """Two players, the second of which is improved twice in a step."""

    first: Learner = dataclasses.field(default_factory=lambda: Learner(optimizer=SGD(peak_lr=0.1)))
    second: Learner = dataclasses.field(default_factory=lambda: Learner(optimizer=SGD(peak_lr=0.1)))

    @property
    def learners(self):
        return {"first": self.first, "second": self.second}

    def init(self, key):
        del key
        return {name: {"w": jnp.array([1.0, 2.0])} for name in self.learners}, {}

    def update(self, train_state, batch, *, key):
        players = dict(train_state.players)

        def loss(params, state, batch, *, key):
            return mean_of((batch["x"] @ params["w"]) ** 2 / 2), state, {}

        players["first"], _, one = self.first.update(loss, players["first"], {}, batch, key=key)
        players["second"], _, two = self.second.update(loss, players["second"], {}, batch, key=key)
        players["second"], _, more = self.second.update(loss, players["second"], {}, batch, key=key)
        two = jax.tree.map(jnp.add, two, more)
        return train_state.replace(players=players), of_player("first", one) | of_player("second", two)


def test_players_by_name_and_the_mean_of_several_updates(float64):
    """Of two updates in a step the mean gradient, update and parameters; a cosine for each player."""
    feed = relu_feed()
    feed = dataclasses.replace(feed, arrays={"x": feed.arrays["x"][:, :2]})
    found = read_numbers(looking(Duel(), feed)(start(Duel()), feed.arrays, feed.arrays))
    x = np.asarray(feed.batch(feed.arrays, 0)["x"])
    w = np.array([1.0, 2.0])
    g = x.T @ (x @ w) / len(x)
    h = x.T @ (x @ (w - 0.1 * g)) / len(x)
    assert found["gradient_norm/first/w"] == pytest.approx(np.linalg.norm(g), rel=1e-10)
    assert found["gradient_norm/second/w"] == pytest.approx(np.linalg.norm((g + h) / 2), rel=1e-10)
    assert found["update_norm/second/w"] == pytest.approx(0.1 * np.linalg.norm((g + h) / 2), rel=1e-10)
    assert found["parameter_norm/second/w"] == pytest.approx(np.linalg.norm(w - 0.05 * g), rel=1e-10)
    assert found["gradient_cosine/first/all"] == pytest.approx(found["gradient_cosine/first/w"])
    assert "gradient_cosine/second/all" in found
    assert "gradient_cosine/all" not in found


def test_a_table_counts_the_rows_that_are_read(float64):
    """Of a table updated by rows those that the batch reads, each once; no cosine, for the next step has others."""
    params = {"t": {"table": jax.random.normal(jax.random.key(0), (9, 2))}, "b": jnp.ones(2)}
    x = jnp.array([5, 2, 5, -1])

    def loss(params, state, batch, *, key):
        rows = embedding.known(params["t"], batch["rows"]["t/table"])
        return mean_of(jnp.sum((rows * params["b"]) ** 2, 1)), state, {}

    learner = Learner(optimizer=AdamW(peak_lr=0.1), rows=lambda batch: {"t/table": batch["x"]}, shows=True)
    _, _, metrics = learner.update(loss, learner.init(params), {}, {"x": x}, key=jax.random.key(1))
    shown = {name: m for name, m in metrics.items() if "/" in name}
    seen = jax.device_get(see(shown, shown))
    table = np.asarray(params["t"]["table"])
    gradient = np.zeros_like(table)
    for i in (5, 2, 5):
        gradient[i] += 2 * table[i] / 4
    assert seen.numbers["gradient_norm/t/table"] == pytest.approx(np.linalg.norm(gradient), rel=1e-10)
    assert seen.numbers["parameter_norm/t/table"] == pytest.approx(np.linalg.norm(table[[2, 5]]), rel=1e-10)
    for what in ("gradient", "update", "parameter"):
        one = seen.histograms[f"{what}/t/table"]
        assert (one.counts.sum(), one.zeros) == (4, 0)
    assert "gradient_cosine/b" in seen.numbers
    assert "gradient_cosine/t/table" not in seen.numbers
    assert sparse.touched({"t/table": x}, params).rows["t/table"].tolist() == [2, 5, 9, 9]


def test_members_under_vmap_are_each_their_own():
    """Three members in one program: the histograms of each alone, its numbers to rounding."""
    task, feed = relu_task(), relu_feed()
    look = looking(task, feed)
    states = [start(task, seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)
    together = jax.device_get(jax.vmap(look, (0, None, None))(stacked, feed.arrays, feed.arrays))
    for i, one in enumerate(states):
        alone = jax.device_get(look(one, feed.arrays, feed.arrays))
        np.testing.assert_allclose(together.values[i], alone.values, rtol=2e-5, atol=1e-6)
        of_params = [k for k, name in enumerate(alone.arrays) if name.startswith("parameter/")]
        assert np.array_equal(together.counts[i][of_params], alone.counts[of_params])
        assert together.counts[i].sum() == alone.counts.sum()


def test_histograms_add_up():
    """Of two arrays, the sum of their histograms is that of both together."""
    a, b = np.random.default_rng(0).normal(size=(2, 40)) * [[1e-3], [1e4]]
    apart = jax.device_get(see(arrays(gradient_a=a, gradient_b=b))).histograms
    whole = jax.device_get(see(arrays(gradient_w=np.concatenate([a, b])))).histograms["gradient/w"]
    assert np.array_equal(apart["gradient/a"].counts + apart["gradient/b"].counts, whole.counts)


# -- through the loop -----------------------------------------------------------------------------


class Kept:
    """A sink that keeps what is seen."""

    def __init__(self):
        self.looks, self.order = {}, []

    def scalars(self, step, split, values):
        self.order.append(step)
        assert not any("/" in name for name in values)

    def layers(self, step, seen):
        self.order.append(step)
        self.looks[step] = seen

    def pictures(self, step, paths):
        """None."""

    def flush(self):
        """Nothing."""

    def close(self):
        """Nothing."""


def looped(program, task, **plan):
    """(the final state, what was seen) of a run of twelve steps."""
    sink, plan = Kept(), Plan(steps=12, chunk=5, log_every=3, **plan)
    outcome = run(program, start(task), program.fresh(), plan, best=Best(), sinks=[sink])
    return outcome.train_state, sink


@pytest.mark.parametrize("loop", ["loop", "step"])
def test_looking_changes_nothing(digits, loop):
    """With and without it, and at whatever steps: bitwise the same final state, random masks and moments among it."""
    task, feed = mlp_task(), digits_feed(digits)
    program = compile_program(task, feed, start(task), loop=loop, seen=True)
    plain, none = looped(program, task)
    for every in (1, 4):
        watched, sink = looped(program, task, norms_every=every)
        assert same(plain, watched)
        assert list(sink.looks) == list(range(every, 12, every))
        assert sink.order == sorted(sink.order)
    assert not none.looks


def test_a_look_is_compiled_apart_in_the_same_types(digits, float64):
    """In another thread, which knows of 64-bit types what this one does."""
    task, feed = mlp_task(), digits_feed(digits)
    train_state = start(task)
    program = compile_program(task, feed, train_state, seen=True)
    found = program.seen(train_state, program.window(0, 1), program.window(1, 1))
    assert jax.tree.leaves(train_state.players)[0].dtype == np.float64
    assert same(found, looking(task, feed)(train_state, program.window(0, 1), program.window(1, 1)))


def test_a_look_is_of_the_step_that_comes(digits):
    """That of step 4 is what the fifth update does, with its dropout; the cosine is with the sixth's gradient."""
    task, feed = mlp_task(), digits_feed(digits)
    _, sink = looped(compile_program(task, feed, start(task), seen=True), task, norms_every=1)
    take, train_state = jax.jit(step.make_step(task)), start(task)
    for i in range(4):
        train_state, _ = take(train_state, feed.batch(feed.arrays, jnp.int32(i)))
    after, metrics = take(train_state, feed.batch(feed.arrays, jnp.int32(4)))
    old, new = (s.players["model"].params["layer0"]["kernel"] for s in (train_state, after))
    look = sink.looks[4].numbers
    assert look["update_norm/layer0/kernel"] == pytest.approx(float(jnp.linalg.norm(new - old)), rel=1e-4)
    assert look["parameter_norm/layer0/kernel"] == pytest.approx(float(jnp.linalg.norm(old)), rel=1e-5)
    norms = [look[f"gradient_norm/{path}"] for path in ("layer0/bias", "layer0/kernel", "layer1/bias", "layer1/kernel")]
    assert np.linalg.norm(norms) == pytest.approx(float(metrics["gradient_norm"].total), rel=1e-5)
    assert sink.looks[11].numbers["gradient_cosine/all"] < 1  # also of the run's last step: order has no end


def test_a_task_without_learners_has_nothing_to_see():
    """As of alternating least squares."""

    @dataclasses.dataclass(frozen=True)
    class Still:
        @property
        def learners(self):
            return {"model": None}

        def init(self, key):
            return {"model": {"w": jnp.ones(2)}}, {}

        def update(self, train_state, batch, *, key):
            return train_state, {"loss": Mean(ONE, ONE)}

    feed = relu_feed()
    first = jax.jit(lambda: state.init(Still(), jax.random.key(0)))()
    assert compile_program(Still(), feed, first, seen=True).seen is None


# -- what is kept ---------------------------------------------------------------------------------


def some(seed=0):
    """What might have been seen of a step."""
    rng = np.random.default_rng(seed)
    shown = arrays(**{f"{w}_{p}": rng.normal(size=(4, 3)) for w in ("gradient", "update", "parameter") for p in "ab"})
    return jax.device_get(see(shown, shown))


def test_lines_hold_everything():
    """Numbers to their last bit, all counts; nan is null and comes back."""
    seen = some()
    odd = Seen(np.append(seen.values, np.float32(np.nan)), seen.counts, (*seen.names, "update_ratio/c"), seen.arrays)
    line = json.loads(json.dumps(compact(odd), allow_nan=False))
    back = expanded(line)
    assert back.names == odd.names
    assert back.values.astype(np.float32).tobytes() == odd.values.tobytes()
    assert np.array_equal(back.counts, odd.counts)
    assert back.arrays == odd.arrays


def test_layer_lines_are_cut_at_the_resumed_step(tmp_path):
    """Also where a kill left half a line; before a look there is no file."""
    path = tmp_path / "layers.jsonl"
    LayerLines(path, 5).close()
    assert not path.exists()
    sink = LayerLines(path)
    for i in (2, 4, 6, 8):
        sink.layers(i, some(i))
    sink.flush()
    whole = path.read_bytes()
    sink.close()
    path.write_bytes(whole[:-30])
    sink = LayerLines(path, 4)
    assert [line["step"] for line in layer_history(path)] == [2, 4]
    for i in (6, 8):
        sink.layers(i, some(i))
    sink.close()
    assert path.read_bytes() == whole


def test_tensorboard_has_the_histograms(tmp_path):
    """Read back: the buckets of the counts, with the limits of the bins; one that is empty is not there."""
    from tensorboardX.proto import event_pb2

    seen = some()
    empty = Seen(
        seen.values, np.concatenate([seen.counts, 0 * seen.counts[:1]]), seen.names, (*seen.arrays, "update/c")
    )
    board = TensorBoard(tmp_path)
    board.layers(7, empty)
    board.close()
    (path,) = tmp_path.iterdir()
    data, at, found = path.read_bytes(), 0, {}
    while at < len(data):  # a record: length (8 bytes), its checksum (4), the event, its checksum (4)
        size = int.from_bytes(data[at : at + 8], "little")
        event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
        found |= {value.tag: (event.step, value) for value in event.summary.value}
        at += 16 + size
    assert "update/c" not in found
    assert found["gradient_norm/a"][1].simple_value == seen.numbers["gradient_norm/a"]
    for name, histogram in seen.histograms.items():
        when, value = found[name]
        counts, edges = drawn(histogram)
        assert when == 7
        assert list(value.histo.bucket) == counts.tolist()
        assert list(value.histo.bucket_limit) == edges[1:].tolist()
        assert (value.histo.min, value.histo.max, value.histo.num) == (edges[0], edges[-1], 12)


def test_a_page_of_many_layers(tmp_path):
    """Of 150 parameters the groups; a step with nan in it; one line alone."""
    paths = [
        f"block{i}/{part}/{leaf}"
        for i in range(25)
        for part in ("attention", "mlp")
        for leaf in ("bias", "kernel", "scale")
    ]
    labels = grouped(paths)
    assert len(labels) <= 12
    assert [path for group in labels.values() for path in group] == sorted(
        paths, key=lambda p: int(p.split("/")[0][5:])
    )
    rng = np.random.default_rng(0)
    whats = ("gradient", "update", "parameter")
    numbers = [f"{what}_norm/{path}" for what in whats for path in paths]
    numbers += [f"{what}/{path}" for what in ("dead_units", "gradient_cosine") for path in paths]
    counts = rng.integers(0, 9, (3 * len(paths), BINS + 2))
    arrays = tuple(f"{what}/{path}" for what in whats for path in paths)
    seen = Seen(rng.uniform(size=len(numbers)), counts, tuple(numbers), arrays)
    lines = [{"step": i} | compact(seen) for i in range(3)]
    lines[1]["numbers"][numbers[0]] = None
    for some_lines in (lines, lines[:1]):
        layers_figure(some_lines, tmp_path / "layers.png")
        assert imread(tmp_path / "layers.png").shape[0] > 800


# -- a run ----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory with small.toml in it."""
    (tmp_path / "small.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_that_is_resumed_has_the_same_layers(folder):
    """Cut back to its checkpoint at step 50 and resumed: the same bytes and the same final state."""
    more = ["observe.norms_every=10", "checkpoint.every=50", "checkpoint.keep=9", "observe.figures=true"]
    assert main(["train", "small.toml", *more, "--out", "a"]) == 0
    whole = Path("a/layers.jsonl").read_bytes()
    assert [line["step"] for line in layer_history(Path("a/layers.jsonl"))] == list(range(10, 120, 10))
    assert imread("a/figures/layers.png").ndim == 3
    shutil.copytree("a", "b")
    for checkpoint in Path("b/checkpoints").iterdir():
        if checkpoint.name.isdigit() and int(checkpoint.name) > 50:
            shutil.rmtree(checkpoint)
    Path("b/layers.jsonl").write_bytes(whole + b'{"step": 120, "numb')
    Path("b/figures/layers.png").unlink()
    assert main(["train", "--resume", "b"]) == 0
    assert Path("b/layers.jsonl").read_bytes() == whole
    assert Path("b/figures/layers.png").exists()
    assert_equal_runs("a", "b")
