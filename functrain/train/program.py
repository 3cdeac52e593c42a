"""The compiled parts of a run: what the loop dispatches."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from functrain import tree
from functrain.data.feed import as_is
from functrain.metrics import read, scalars
from functrain.observe.seen import Seen, see, shown
from functrain.optim import Learner
from functrain.train import step
from functrain.train.evaluate import Evaluation
from functrain.train.later import Later, shape
from functrain.train.state import skipped


@dataclass(frozen=True)
class Program:
    """The compiled parts of a run.

    advance(train_state, metrics, window, count) -> (train_state, metrics, mark): dispatches `count` steps; both states
      are donated, and `mark`, how many updates were skipped so far, is ready when the steps have run.
    window(step, count) -> arrays for those steps.
    fresh() -> a zero running sum of metrics.
    evaluate(train_state) -> metrics of the validation examples, or None where there are none.
    seen(train_state, window, later) -> what is seen of the step that comes next, by parameter (functrain.observe.seen);
      `later` is the window of the step after it, whose gradient is compared; or None.
    watch(train_state, window) -> what else is measured of that step; or None.
    members(tree) -> the train state, or metrics, of each member of the run; mostly there is one.
    scalars(metrics) -> their numbers on the host; of several members, mean and deviation.
    memory: XLA's analysis of `advance`, bytes by name.
    needs() -> bytes, what the largest of advance, seen and watch takes while it runs, the train state included.
    prepare() has what the run calls later (seen, watch, evaluate) compiled in a thread of its own from here on.
    """

    advance: Callable[..., Any]
    window: Callable[[int, int], Any]
    fresh: Callable[[], Any]
    evaluate: Callable[[Any], Any] | None = None
    seen: Callable[[Any, Any, Any], Seen] | None = None
    watch: Callable[[Any, Any], Any] | None = None
    members: Callable[[Any], list[Any]] = lambda tree: [tree]
    scalars: Callable[[Any], dict[str, float]] = lambda metrics: scalars(read(metrics))
    memory: dict[str, int] = field(default_factory=dict)
    needs: Callable[[], int] = lambda: 0
    prepare: Callable[[], None] = lambda: None


def compile_program(
    task: Any,
    feed: Any,
    train_state: Any,
    *,
    metrics: Any = None,
    loop: str = "loop",
    place: Callable[[Any], Any] = as_is,
    sharding: Any = None,
    evaluate: Callable[[Any], Any] | None = None,
    seen: bool = False,
    watch: Callable[[Any, Any], Any] | None = None,
    stacked: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Program:
    """Compile the steps of a task, ahead of time.

    Args:
      task, feed: whose steps, on which batches.
      train_state: the first one, for its shapes and placement; it is not touched, and need not hold arrays.
      metrics: shapes of what a step counts, where they are known; else it is traced for them.
      loop: "loop", many steps in one program, or "step", a dispatch a step.
      place: cuts a batch over devices.
      sharding: where what the host sends lies; None is the default device.
      evaluate, seen, watch: see Program; `seen` says whether anything is, and `watch` is given the batch.
      stacked: whether the train state has a leading axis of members, and the second part of the window their seeds
        (see functrain.train.members).
      options: of XLA's compiler, for programs with gradients (see functrain.autodiff.remat).
    """
    options = dict(options) if options else None
    window = feed.window(0, 1)
    seen = seen and any(learner is not None for learner in task.learners.values())

    def over(f, *axes):
        return jax.vmap(f, axes) if stacked else f

    seeds = (None, 0)
    if metrics is None:
        metrics = jax.eval_shape(over(functools.partial(step.zero_metrics, task, feed), 0, seeds), train_state, window)
    fresh = jax.jit(lambda: tree.zeros_like(metrics), out_shardings=sharding).lower().compile()
    on_device = functools.cache(lambda count: jax.device_put(np.int32(count), sharding))

    def marked(f):
        def g(*arguments):
            train_state, metrics = f(*arguments)
            return (
                train_state,
                metrics,
                skipped(train_state) + 0,
            )  # another buffer, not donated: the host may wait for it

        return jax.jit(g, donate_argnums=(0, 1))

    if loop == "loop":
        many = over(step.make_chunk(task, feed, place), 0, 0, seeds, None)
        steps = marked(many).lower(train_state, fresh(), window, on_device(1)).compile(options)
    else:
        single = over(step.make_body(task, feed, place), 0, 0, seeds)
        steps = marked(single).lower(train_state, fresh(), window).compile(options)

    def chunk(train_state, metrics, window, count):
        return steps(train_state, metrics, window, on_device(count))

    def one_by_one(train_state, metrics, window, count):
        mark = None
        for _ in range(count):
            train_state, metrics, mark = steps(train_state, metrics, window)
        return train_state, metrics, mark

    def watch_step(train_state, window):
        return watch(train_state, place(feed.batch(window, train_state.step)))  # pyright: ignore[reportOptionalCall]

    # A run needs these some steps later: they are compiled while it trains (`prepare`), or when they are first called.
    shapes = jax.tree.map(shape, (train_state, window))
    see_steps = _Late(looking(task, feed, place), (*shapes, shapes[1]), options) if seen else None
    watched = _Late(jax.jit(watch_step), shapes, options) if watch is not None else None

    late = [each for each in (see_steps, watched) if each is not None]

    def prepare():
        for each in late:
            each.program.start()
        if isinstance(evaluate, Evaluation):
            evaluate.prepare(shapes[0])

    def needs():
        return max(_needs(_memory(each)) for each in (steps, *(each.program.result() for each in late)))

    return Program(
        advance=chunk if loop == "loop" else one_by_one,
        window=feed.window,
        fresh=fresh,
        evaluate=evaluate,
        seen=see_steps,
        watch=watched,
        memory=_memory(steps),
        needs=needs,
        prepare=prepare,
    )


class _Late:
    """A function that is compiled in a thread of its own; who calls it waits until it is."""

    def __init__(self, f: Any, arguments: tuple[Any, ...], options: dict[str, Any] | None):
        self.program = Later(lambda: f.lower(*arguments).compile(options))

    def __call__(self, *arguments):
        return self.program.result()(*arguments)


def looking(task: Any, feed: Any, place: Callable[[Any], Any] = as_is) -> Callable[[Any, Any, Any], Seen]:
    """`Program.seen`, to be compiled. It takes the two steps that come, and keeps nothing of them but what it saw."""
    showing = jax.jit(step.make_step(with_learners(task, shows=True)), inline=True)  # traced once for the two steps
    learned = [name for name, learner in task.learners.items() if learner is not None]

    def one(train_state, window):
        train_state, metrics = showing(train_state, place(feed.batch(window, train_state.step)))
        return train_state, shown(metrics)

    def look(train_state, window, later):
        next_state, first = one(train_state, window)
        return see(first, one(next_state, later)[1], learned if len(learned) > 1 else ())

    return jax.jit(look)


def with_learners(part: Any, **changes: Any) -> Any:
    """The task with fields of every learner in it changed."""
    if isinstance(part, Learner):
        return dataclasses.replace(part, **changes)
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        fields = {f.name: getattr(part, f.name) for f in dataclasses.fields(part) if f.init}
        changed = {n: new for n, v in fields.items() if (new := with_learners(v, **changes)) is not v}
        return dataclasses.replace(part, **changed) if changed else part
    return part


def _memory(compiled) -> dict[str, int]:
    analysis = compiled.memory_analysis()
    names = ("argument", "temp", "output", "alias", "generated_code")
    return {name: int(getattr(analysis, f"{name}_size_in_bytes", 0)) for name in names}


def _needs(memory: dict[str, int]) -> int:
    """What a program takes while it runs; results in place of donated arguments count once."""
    return memory["argument"] + memory["output"] - memory["alias"] + memory["temp"] + memory["generated_code"]
