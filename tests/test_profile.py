"""Where the time of a run goes: the costliest operations with their source lines, and the account of the loop."""

import dataclasses
import gzip
import inspect
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import Log, digits_feed, mlp_task, start

from functrain import profiling
from functrain.cli import main
from functrain.layers import linear
from functrain.observe import hlo
from functrain.observe.device_trace import Span, Thread, Trace, busy, joined, read
from functrain.train.loop import Best, Plan, Seconds, run
from functrain.train.program import compile_program

WIDE = """
[model]
kind = "mlp"
hidden = [1024, 1024]
[task]
kind = "classification"
[data]
kind = "digits"
batch_size = 256
[optimizer]
kind = "sgd"
[train]
steps = 3
"""
"""A config whose costliest operation is known: the products of the second layer have most of a step's FLOPs."""


def ops(*names):
    """Operations of one module."""
    return [("m", name) for name in names]


# -- whose time it is -----------------------------------------------------------------------------


def test_time_is_given_to_the_innermost_and_shared_by_those_at_work_together():
    """Nested, on two threads, between two operations, and of an operation that nobody is at until it is done."""
    loop, a, b, c = ops("while", "a", "b", "c")
    nested = Trace([[Span(0, 100, loop), Span(10, 40, a), Span(20, 30, b), Span(50, 60, a)]])
    assert busy(nested, [loop]) == {loop: 60, a: 30, b: 10}
    assert busy(Trace([[Span(0, 10, a)], [Span(5, 15, b)]])) == {a: 7.5, b: 7.5}
    between = Trace([[Span(0, 100, a), Span(10, 90, None), Span(20, 30, b)]])
    assert busy(between) == {a: 20, b: 10}
    waiting = Trace([[Span(0, 1, a), Span(1, 2, b), Span(2, 30, c)]], [Span(1, 40, a), Span(2, 45, b)])
    assert busy(waiting) == {a: 11, b: 6, c: 28}  # c while a thread is at it, then a, which began first


def test_a_container_waits_for_what_it_runs_elsewhere():
    """A loop whose body runs on another thread has only the time in which nothing of it runs, whenever it was done."""
    loop, a = ops("while", "a")
    trace = Trace([[Span(0, 20, loop)], [Span(5, 25, a)]], [Span(20, 90, loop)])
    assert busy(trace, [loop]) == {loop: 5, a: 20}


def test_what_a_thread_puts_off_is_the_operations_own():
    """Also where it is put off again from there; what the runtime puts off between operations is nobody's."""
    a, b = ops("a", "b")
    first = Thread(
        [Span(0, 10, None), Span(2, 4, a), Span(6, 8, b)], put_off=[(3, 1), (5, 2)], begun={9: Span(2, 4, a)}
    )
    second = Thread([Span(60, 61, b)], regions=[(20, 30, 1), (50, 70, 2)], put_off=[(25, 3)], done={9: 45})
    third = Thread(regions=[(40, 44, 3), (46, 48, 4)])
    trace = joined([first, second, third])
    assert busy(trace) == {a: 2 + (45 - 4) - 2, b: 2 + 1}  # b while a was unfinished, and after
    assert [span.op for span in trace.lines[1]] == [b, a]
    assert trace.lines[2] == [Span(40, 44, a)]
    assert trace.times == {a: 1, b: 2}


def test_all_together_are_the_time_at_work():
    """At random: the sum over operations is the length of the union of their spans."""
    rng = np.random.default_rng(0)
    lines, covered = [], np.zeros(10_000, bool)
    for _ in range(3):
        cuts = np.sort(rng.choice(10_000, 200, replace=False))
        line = [Span(float(s), float(e), ("m", str(rng.integers(9)))) for s, e in zip(cuts[::2], cuts[1::2])]
        lines.append(line)
        for span in line:
            covered[int(span.start) : int(span.end)] = True
    assert sum(busy(Trace(lines)).values()) == pytest.approx(covered.sum())


# -- what it is -----------------------------------------------------------------------------------


def halves(x):
    with jax.named_scope("half"):
        return jnp.tanh(x @ x)


def test_an_operation_is_told_by_its_line_and_scope():
    """Of a program compiled here: the product's line, its scope, forward and backward; no library's."""

    def loss(x):
        return optax.losses.softmax_cross_entropy_with_integer_labels(halves(x), jnp.arange(64)).mean()

    program = hlo.parse(jax.jit(jax.grad(loss)).lower(jnp.ones((64, 64))).compile().as_text())
    told = [hlo.about(program, name) for name in program.instructions]
    lines, first = inspect.getsourcelines(halves)
    line = first + next(i for i, text in enumerate(lines) if "x @ x" in text)
    products = {t for t in told if t.what.endswith("dot f32[64,64] x f32[64,64]")}
    assert {t.part for t in products} == {"half"}
    assert {t.backward for t in products} == {False, True}
    assert {Path(t.source).name for t in products} == {f"test_profile.py:{line}"}
    sources = {t.source.removeprefix("near ") for t in told if t.source}
    assert not any("optax" in source for source in sources)
    assert any(source.endswith(f"test_profile.py:{inspect.getsourcelines(loss)[1] + 1}") for source in sources)


def test_a_program_kept_from_before_an_edit_is_not_taken():
    """The cache of compiled programs looks at no source lines; here it does, so that those told are of this source."""

    def lines_of(empty):
        names = {"jnp": jnp}
        exec(compile("\n" * empty + "def f(x):\n    return jnp.sin(x) @ x", "made.py", "exec"), names)
        program = hlo.parse(jax.jit(names["f"]).lower(jnp.ones((32, 32))).compile().as_text())
        return {hlo.about(program, name).source.removeprefix("near ") for name in program.instructions} - {""}

    with profiling.own_lines():
        assert lines_of(0) == {"made.py:2"}
        assert lines_of(9) == {"made.py:11"}


FUSED = """HloModule jit_f, is_scheduled=true

FileNames
1 "a.py"

FunctionNames
1 "f"

FileLocations
1 {file_name_id=1 function_name_id=1 line=3 end_line=3 column=1 end_column=2}
2 {file_name_id=1 function_name_id=1 line=9 end_line=9 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=1}

%inner (p: f32[8,4], q: f32[4,2]) -> f32[8,2] {
  %p = f32[8,4]{1,0} parameter(0)
  %q = f32[4,2]{1,0} parameter(1)
  %dot.1 = f32[8,2]{1,0} dot(%p, %q), lhs_contracting_dims={1}, metadata={op_name="jit(f)/a/dot" stack_frame_id=1}
  ROOT %neg.1 = f32[8,2]{1,0} negate(%dot.1), metadata={op_name="jit(f)/b/neg" stack_frame_id=2}
}

ENTRY %main (x: f32[8,4], y: f32[4,2]) -> (f32[8,2], /*index=1*/s32[]) {
  %x = f32[8,4]{1,0:T(8,128)} parameter(0)
  %y = f32[4,2]{1,0} parameter(1)
  %copy.1 = f32[8,4]{0,1} copy(%x)
  %fusion.1 = f32[8,2]{1,0} fusion(%copy.1, %y), calls=%inner, metadata={op_name="jit(f)/b/neg" stack_frame_id=2}
  ROOT %w = (f32[8,2]{1,0}, /*index=1*/s32[]) while(%fusion.1), condition=%c, body=%d, metadata={op_name="jit(f)/while"}
}
"""


def test_a_fusion_is_told_by_the_product_in_it():
    """Not by its root; and a copy that XLA made by the operation that it is for."""
    program = hlo.parse(FUSED)
    told = hlo.about(program, "fusion.1")
    assert (told.what, told.part, told.source) == ("fusion of dot f32[8,4] x f32[4,2]", "a", "a.py:3")
    assert hlo.about(program, "neg.1").source == "a.py:9"
    copied = hlo.about(program, "copy.1")
    assert (copied.what, copied.part, copied.source) == ("copy f32[8,4]", "b", "near a.py:9")
    assert hlo.about(program, "w").what == "while f32[8,2] and 1 more"
    assert hlo.about(program, "not there") == hlo.About("not there")


def test_operations_of_a_trace_are_a_steps():
    """Seconds and times a step, the costliest first, with what the program says of them; a loop keeps its own time."""
    program = hlo.parse(FUSED)
    loop, dot, other = ("jit_f", "w"), ("jit_f", "fusion.1"), ("jit_g", "x")
    steps = [[Span(t, t + 100, loop), Span(t + 10, t + 70, dot), Span(t + 70, t + 90, dot)] for t in (0, 100)]
    trace = joined([Thread([span for step in steps for span in step]), Thread([Span(300, 400, other)])])
    found = profiling.summary(trace, {"jit_f": program}, steps=2)
    assert [(o.name, o.seconds, o.times) for o in found] == [
        ("fusion.1", pytest.approx(80e-9), 2),
        ("x", pytest.approx(50e-9), 0.5),
        ("w", pytest.approx(20e-9), 1),
    ]
    assert found[0].share == pytest.approx(80 / 150)
    parts = [(name, pytest.approx(forward), back) for name, forward, back in profiling.by_part(found)]
    assert parts == [("a", 80e-9, 0), ("made by XLA", 70e-9, 0)]


def test_a_product_that_is_cut_over_threads_has_its_whole_time(tmp_path):
    """Of a chain of products and of little else, the products have nearly all; each weighs as much as the others."""

    def chain(x, y):
        for _ in range(2):
            x = jnp.sin(x @ y)
            y = jnp.cos(x.T @ y)
        return x, y

    x = jnp.ones((1024, 1024)) / 1024
    compiled = jax.jit(chain).lower(x, x).compile()
    jax.block_until_ready(compiled(x, x))
    with jax.profiler.trace(str(tmp_path)):
        jax.block_until_ready(compiled(x, x))
    program = hlo.parse(compiled.as_text())
    found = profiling.summary(read(tmp_path), {program.name: program}, steps=1)
    products = [o.share for o in found if "dot f32" in o.what]
    assert len(products) == 4
    assert sum(products) > 0.7
    assert min(products) > 0.3 * max(products)


# -- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", ["loop", "step"])
def test_the_costliest_is_named_with_its_line(loop, tmp_path, monkeypatch, capsys):
    """In one program and a dispatch a step alike; it is counted once a step, and the loop's body not twice."""
    monkeypatch.chdir(tmp_path)
    Path("wide.toml").write_text(WIDE)
    assert main(["profile", "wide.toml", f"train.loop={loop}", "--steps", "4", "--top", "5"]) == 0
    said = capsys.readouterr().out.splitlines()
    found = json.loads(said[-1])
    first = found["operations"][0]
    file, _, line = first["source"].partition(":")
    text = inspect.getsource(linear).splitlines()[int(line) - 1]
    assert (file, "x @ kernel" in text or "dot_general" in text) == ("functrain/layers/linear.py", True)
    assert (first["part"], first["times"]) == ("layer1", 1)
    assert any(f"dot f32[{sides}] x" in first["what"] for sides in ("256,1024", "1024,256"))
    assert said[1].split()[3] == first["name"]
    assert next(iter(found["parts"])) == "layer1"
    assert found["flops_per_step"] == 2 * 256 * (3 * (64 * 1024 + 1024 * 1024 + 1024 * 10) - 64 * 1024)
    seconds = found["seconds"]
    assert 0 < seconds["device"] < 1.01 * seconds["traced"]
    assert sum(o["share"] for o in found["operations"]) < 1.001
    assert sum(map(sum, found["parts"].values())) < 1.001 * seconds["device"]
    (trace,) = Path("runs/wide-profile").glob("plugins/profile/*/*.trace.json.gz")
    assert json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]


def test_a_mistake_is_one_line(tmp_path, monkeypatch, capsys):
    """Status 2, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    Path("wide.toml").write_text(WIDE)
    Path("full").mkdir()
    Path("full/x").write_text("")
    for wrong, said in (
        (["--steps", "0"], "--steps: found 0; expected at least 1"),
        (["--top", "0"], "--top: found 0; expected at least 1"),
        (["--out", "full"], "--out: full exists; choose another"),
        (["--out", "full/x/y"], "--out: full/x/y: Not a directory"),
        (["train.loops=step"], "train.loops: unknown key"),
        (["another.toml"], "expected one config file"),
    ):
        assert main(["profile", "wide.toml", *wrong]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert said in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "wide.toml"]


# -- the account of the loop ----------------------------------------------------------------------


def test_the_loop_tells_where_its_time_went(digits):
    """A slow feed, device, sink and evaluation each on its own account; the parts lie in `train`."""
    task, feed = mlp_task(), digits_feed(digits)
    train_state = start(task)
    program = compile_program(task, feed, train_state)
    log, seconds = Log(), Seconds()
    tell, burnt = log.scalars, []

    def slowly(f, wait):
        def g(*args):
            time.sleep(wait)
            return f(*args)

        return g

    def evaluate(train_state):
        until = time.process_time() + 0.2
        while time.process_time() < until:  # at work, and that is no part of training
            burnt.append(0)
        return program.fresh()

    log.scalars = slowly(tell, 0.03)
    slow = dataclasses.replace(
        program,
        window=slowly(program.window, 0.02),
        scalars=slowly(program.scalars, 0.05),
        advance=slowly(program.advance, 0.04),
        evaluate=evaluate,
    )
    plan = Plan(steps=20, chunk=10, log_every=10, evaluate_every=20)
    run(slow, train_state, program.fresh(), plan, best=Best(), sinks=[log], seconds=seconds)
    wanted = {"data": 2 * 0.02, "dispatch": 2 * 0.04, "device": 2 * 0.05, "log": 3 * 0.03, "evaluate": 0.2 + 0.05}
    for name, least in wanted.items():
        assert least <= getattr(seconds, name) < least + 5, name  # on a machine that does other work too
    of_train = [getattr(seconds, name) for name in ("data", "dispatch", "device", "log")]
    assert 0.5 * seconds.train < sum(of_train) <= seconds.train
    assert 0 <= seconds.cpu < 0.15
