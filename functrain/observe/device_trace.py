"""When each operation of a program ran: a trace of jax's profiler, read.

    read(folder) -> Trace
    busy(trace, containers) -> nanoseconds of each operation, its own

On a CPU a thread may leave an operation long before it is done: the rest is done by other threads, in regions that say
who put them off. What stands in the trace under the operation's name is then a small part of its time.
"""

import bisect
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax

Op = tuple[str, str]
"""(module, name) of an operation."""


class Span(NamedTuple):
    """From and to, in nanoseconds, and the operation at work, or None: the runtime goes from one to the next."""

    start: float
    end: float
    op: Op | None


@dataclass
class Thread:
    """What a thread or a stream did.

    spans: by itself.
    regions: (from, to, number) of what was put off by a thread.
    put_off: (when, number) of what it put off.
    begun, done: number -> the span in which an operation was begun, or when it was done.
    """

    spans: list[Span] = field(default_factory=list)
    regions: list[tuple[float, float, int]] = field(default_factory=list)
    put_off: list[tuple[float, int]] = field(default_factory=list)
    begun: dict[int, Span] = field(default_factory=dict)
    done: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Trace:
    """lines: of each thread, what it worked at; unfinished: from where a thread left an operation until it was done.
    times: how often each was begun."""

    lines: list[list[Span]]
    unfinished: list[Span] = field(default_factory=list)
    times: Counter[Op] = field(default_factory=Counter)


def read(folder: Path) -> Trace:
    """The newest trace in a folder. The operations of an accelerator stand on its streams; of a CPU, on threads."""
    files = sorted(folder.glob("plugins/profile/*/*.xplane.pb"))
    threads = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the binding, to its own developers
        planes = list(jax.profiler.ProfileData.from_file(str(files[-1])).planes) if files else []
        devices = [plane for plane in planes if plane.name.startswith("/device:")]
        for plane in devices or planes:
            threads += [_thread(line, bool(devices)) for line in _working(plane, bool(devices))]
    return joined(threads)


def _working(plane: Any, device: bool) -> list[Any]:
    """The lines of a plane that hold operations themselves, not what was made of them."""
    lines = list(plane.lines)
    if not device:
        return lines
    return [line for line in lines if line.name.startswith("Stream")] or [x for x in lines if x.name == "XLA Ops"]


def _thread(line: Any, device: bool) -> Thread:
    thread, starts, stops = Thread(), [], []
    for event in line.events:
        stats = dict(event.stats)
        if "hlo_op" in stats or device:
            op = str(stats.get("hlo_module", "")), str(stats.get("hlo_op", event.name))
            thread.spans.append(Span(event.start_ns, event.end_ns, op))
            if "_p" in stats:
                thread.begun[stats["_p"]] = thread.spans[-1]
        elif event.name.startswith("end: ") and "_c" in stats:
            thread.done[stats["_c"]] = event.start_ns
        elif event.name == "ThunkExecutor::Execute":
            thread.spans.append(Span(event.start_ns, event.end_ns, None))
        elif event.name == "ThreadpoolListener::Record" and "_p" in stats:
            thread.put_off.append((event.start_ns, stats["_p"]))
        elif event.name == "ThreadpoolListener::StartRegion" and "_c" in stats:
            starts.append((event.start_ns, stats["_c"]))
        elif event.name == "ThreadpoolListener::StopRegion":
            stops.append(event.start_ns)
    stops.sort()
    for start, number in sorted(starts):
        if (i := bisect.bisect_left(stops, start)) < len(stops):
            thread.regions.append((start, stops[i], number))
    return thread


def joined(threads: Sequence[Thread]) -> Trace:
    """The threads with what they did for one another: a region belongs to the operation that put it off.

    >>> a = ("m", "a")
    >>> first = Thread([Span(0, 2, a)], put_off=[(1, 7)], begun={3: Span(0, 2, a)})
    >>> trace = joined([first, Thread(regions=[(4, 9, 7)], done={3: 9})])
    >>> trace.lines[1], trace.unfinished
    ([Span(start=4, end=9, op=('m', 'a'))], [Span(start=2, end=9, op=('m', 'a'))])
    """
    pieces = [_innermost(thread.spans) for thread in threads]
    regions = [sorted(thread.regions) for thread in threads]
    whose: dict[int, Op | None] = {}
    for now, number, i in sorted((now, number, i) for i, t in enumerate(threads) for now, number in t.put_off):
        at = bisect.bisect_right(pieces[i], now, key=lambda span: span.start) - 1
        if at >= 0 and now <= pieces[i][at].end:
            whose[number] = pieces[i][at].op
        else:
            at = bisect.bisect_right(regions[i], now, key=lambda region: region[0]) - 1
            if at >= 0 and now <= regions[i][at][1]:
                whose[number] = whose.get(regions[i][at][2])
    lines = []
    for thread in threads:
        done = [Span(start, end, op) for start, end, n in thread.regions if (op := whose.get(n)) is not None]
        lines.append([*thread.spans, *done])
    ends = {number: end for thread in threads for number, end in thread.done.items()}
    begun = {number: span for thread in threads for number, span in thread.begun.items()}
    unfinished = [Span(s.end, ends[n], s.op) for n, s in begun.items() if ends.get(n, s.end) > s.end]
    times = Counter(span.op for thread in threads for span in thread.spans if span.op is not None)
    return Trace(lines, unfinished, times)


def busy(trace: Trace, containers: Iterable[Op] = ()) -> dict[Op, float]:
    """Nanoseconds of each operation: its own, without those of what it runs.

    An instant belongs in equal parts to the operations that threads work at; where there are none, to that of the
    unfinished ones which began first; then to containers. So all together are the time in which any was at work.

    containers: operations that run others.

    >>> a, b, loop = ("m", "a"), ("m", "b"), ("m", "while")
    >>> trace = Trace([[Span(0, 10, loop), Span(1, 5, a), Span(5, 9, b)], [Span(7, 9, a)]])
    >>> {name: ns for (_, name), ns in sorted(busy(trace, [loop]).items())}
    {'a': 5.0, 'b': 3.0, 'while': 2.0}
    """
    outer = set(containers)
    ranked = [(piece, 2 if piece.op in outer else 0) for line in trace.lines for piece in _innermost(line)]
    ranked += [(span, 1) for span in trace.unfinished if span.op not in outer]
    marks = [(time, change, rank, s.op) for s, rank in ranked if s.op for time, change in ((s.start, 1), (s.end, -1))]
    total: dict[Op, float] = defaultdict(float)
    active: tuple[Counter[Op], ...] = (Counter(), Counter(), Counter())  # each in the order of beginning
    before = 0.0
    for now, change, rank, op in sorted(marks):
        working = next((ops for ops in active if ops), None)
        if now > before and working:
            if working is active[1]:
                working = {next(iter(working)): 1}
            share = (now - before) / sum(working.values())
            for o, n in working.items():
                total[o] += n * share
        before = now
        active[rank][op] += change
        if not active[rank][op]:
            del active[rank][op]
    return dict(total)


def _innermost(line: Sequence[Span]) -> list[Span]:
    """The pieces of a thread's time, each with the innermost span that it is in."""
    pieces: list[Span] = []
    stack: list[Span] = []
    at = float("-inf")

    def until(now):
        nonlocal at
        while stack and stack[-1].end <= now:
            done = stack.pop()
            if done.end > at:
                pieces.append(Span(at, done.end, done.op))
                at = done.end
        if stack and now > at:
            pieces.append(Span(at, now, stack[-1].op))
        at = max(at, now)

    for span in sorted(line, key=lambda span: (span.start, -span.end)):
        until(span.start)
        stack.append(span)
    until(float("inf"))
    return pieces
