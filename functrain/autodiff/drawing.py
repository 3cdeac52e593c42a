"""A trace drawn: as SVG, and as one HTML page of its own in which scopes fold and unfold.

Boxes are results, from the function's arguments down to its output; parameters stand before what reads them first. A
box says shape, value and gradient: of a single number itself, else the root mean square and the range. Its colour is
the gradient's size beside the median (of the parameters', of the others'): blue ones vanish, red ones explode, grey
ones are zero, and what is not finite is magenta. A folded scope has the colour of its own median.
"""

import dataclasses
import html
import importlib.resources
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from functrain.autodiff.traces import Node, Statistics, Trace

_MOST = 60
"""Boxes up to which scopes begin unfolded."""

WIDTH, HEIGHT, GAP_X, GAP_Y, PAD, TITLE = 204, 54, 18, 26, 10, 18
"""Of a box, between boxes, and inside a scope's frame, in pixels."""


@dataclasses.dataclass
class Scope:
    """A stretch of the program in one scope: its parts in order, the row of each, and whether it is unfolded."""

    name: str
    parts: list["Scope | Node"]
    rows: list[int] = dataclasses.field(default_factory=list)
    open: bool = True

    def nodes(self) -> Iterator[Node]:
        """Everything inside, in order."""
        for part in self.parts:
            yield from part.nodes() if isinstance(part, Scope) else (part,)


def scopes(traced: Trace) -> Scope:
    """The nodes as a tree of scopes, rows assigned, unfolded as deep as not too many boxes show."""
    users: dict[int, Node] = {}
    for node in traced.nodes:
        for given in node.inputs:
            users.setdefault(id(given), node)
    results = [node for node in traced.nodes if not node.argument]
    places: dict[int, tuple[str, ...]] = {id(node): _parts(node.scope) for node in results}
    before: dict[int, list[Node]] = {}
    for node in traced.nodes:
        if node.argument and (user := users.get(id(node))) is not None:
            places[id(node)] = places[id(user)]
            before.setdefault(id(user), []).append(node)
    ordered = [n for node in results for n in (*before.get(id(node), []), node)]
    root = _tree("", ordered, places, 0)
    _assign_rows(root)
    _fold(root)
    return root


def _parts(scope):
    return tuple(part for part in scope.split("/") if part)


def _tree(name, nodes, places, depth):
    """Nodes one after another in the same scope are one part; a scope that is entered again is another."""
    parts: list[Scope | Node] = []
    at = 0
    while at < len(nodes):
        place = places[id(nodes[at])]
        if len(place) == depth:
            parts.append(nodes[at])
            at += 1
            continue
        end = at
        while end < len(nodes) and places[id(nodes[end])][depth : depth + 1] == place[depth : depth + 1]:
            end += 1
        parts.append(_tree(place[depth], nodes[at:end], places, depth + 1))
        at = end
    if len(parts) == 1 and isinstance(parts[0], Scope) and name:
        return Scope(f"{name}/{parts[0].name}", parts[0].parts)
    return Scope(name, parts)


def _assign_rows(scope):
    """Each part below all parts of its own scope that it is computed from."""
    owner: dict[int, int] = {}
    for i, part in enumerate(scope.parts):
        inside = list(part.nodes()) if isinstance(part, Scope) else [part]
        for node in inside:
            owner[id(node)] = i
        given = {owner[id(g)] for node in inside for g in node.inputs if id(g) in owner} - {i}
        scope.rows.append(1 + max((scope.rows[j] for j in given), default=-1))
        if isinstance(part, Scope):
            _assign_rows(part)
    # A parameter stands right above what reads it, not at the top.
    for i, part in enumerate(scope.parts):
        if isinstance(part, Node) and part.argument:
            readers = [owner[id(n)] for other in scope.parts for n in _inside(other) if part in n.inputs]
            scope.rows[i] = max(0, min((scope.rows[j] for j in readers if j != i), default=1) - 1)


def _inside(part):
    return list(part.nodes()) if isinstance(part, Scope) else [part]


def _fold(root):
    """Close all scopes, then open them level by level, in order, as long as few enough boxes show."""
    level = [part for part in root.parts if isinstance(part, Scope)]
    _close(root)
    root.open = True
    while level:
        for scope in level:
            scope.open = True
            scope.open = len(list(_shown(root))) <= _MOST
        level = [part for scope in level if scope.open for part in scope.parts if isinstance(part, Scope)]


def _close(scope):
    scope.open = False
    for part in scope.parts:
        if isinstance(part, Scope):
            _close(part)


def _shown(scope):
    for part in scope.parts:
        if isinstance(part, Scope) and part.open:
            yield from _shown(part)
        else:
            yield part


# -- what a box says ------------------------------------------------------------------------------


def size_of(statistics: Statistics, count: int) -> float:
    """The root mean square over all steps; nan where something is not finite."""
    if not np.all(statistics.finite):
        return math.nan
    return float(np.sqrt(np.sum(np.square(np.asarray(statistics.norm, np.float64))) / max(count, 1)))


def count_of(node: Node) -> int:
    """How many numbers a node holds, over all steps."""
    return math.prod(node.loops) * math.prod(node.shape)


def text_of(statistics: Statistics, count: int) -> str:
    """`0.12`, of a single number itself; `rms 0.12 (-1.2 to 0.9)`; `3 nan` where something is not finite."""
    counts = {"nan": statistics.nans, "inf": statistics.infs}
    bad = [f"{int(np.sum(n)):,} {what}" for what, n in counts.items() if np.any(n)]
    if bad:
        return ", ".join(bad)
    low, high = float(np.min(statistics.minimum)), float(np.max(statistics.maximum))
    return f"{low:.4f}" if count == 1 else f"rms {size_of(statistics, count):.2g} ({low:.2g} to {high:.2g})"


def colour_of(size: float, median: float) -> str:
    """Of a gradient of this size beside the median: blue 1,000 times smaller, white, red 1,000 times larger."""
    if math.isnan(size):
        return "#e45bd8"
    if size == 0 or median == 0:
        return "#d9d9d9"
    at = max(-1.0, min(1.0, math.log10(size / median) / 3))
    to = (214, 69, 65) if at > 0 else (52, 122, 196)
    return "#" + "".join(f"{round(255 + (c - 255) * abs(at)):02x}" for c in to)


def boxes(traced: Trace, root: Scope) -> dict[str, Any]:
    """The drawing as plain data: parts with ids, rows, lines of text and colours; and edges between nodes."""
    nodes = list(root.nodes())
    sizes = {id(node): size_of(node.gradient, count_of(node)) for node in nodes if node.gradient is not None}
    arrays = any(node.shape for node in nodes if not node.argument)
    medians = {kind: _median([sizes[id(n)] for n in nodes if n.argument == kind]) for kind in (True, False)}

    def colour(node):
        plain = arrays and not node.shape and not node.argument and sizes[id(node)] > 0  # the loss, beside arrays
        return "#ffffff" if plain else colour_of(sizes[id(node)], medians[node.argument])

    ids = {id(node): i for i, node in enumerate(root.nodes())}

    def of_node(node):
        shape = "x".join(map(str, (*node.loops, *node.shape)))
        count = count_of(node)
        return {
            "id": ids[id(node)],
            "name": node.name,
            "argument": node.argument,
            "lines": [shape or "number", text_of(node.value, count), f"grad {text_of(node.gradient, count)}"],
            "title": str(node),
            "colour": colour(node),
        }

    def of_scope(scope):
        inside = [node for node in scope.nodes() if not node.argument]
        found = [sizes[id(node)] for node in inside]
        worst = math.nan if any(map(math.isnan, found)) else _median(found)
        return {
            "name": scope.name,
            "open": scope.open,
            "rows": scope.rows,
            "parts": [of_scope(part) if isinstance(part, Scope) else of_node(part) for part in scope.parts],
            "lines": [f"{len(inside)} results", "not finite" if math.isnan(worst) else f"median grad {worst:.2g}"],
            "colour": colour_of(worst, medians[False]),
        }

    edges = [(ids[id(given)], ids[id(node)]) for node in root.nodes() for given in node.inputs if id(given) in ids]
    return {"root": of_scope(root), "edges": edges, "output": float(traced.output)}


def _median(sizes):
    there = [size for size in sizes if size > 0]
    return float(np.median(there)) if there else 0.0


# -- pictures -------------------------------------------------------------------------------------


def svg(traced: Trace) -> str:
    """The trace as an SVG picture, scopes unfolded as deep as few enough boxes show.

    >>> import jax.numpy as jnp
    >>> from functrain.autodiff import trace
    >>> picture = svg(trace(lambda a, b: jnp.tanh(a * b))(2.0, 0.5))
    >>> picture.startswith("<svg"), picture.count("<rect")
    (True, 4)
    """
    drawn = boxes(traced, scopes(traced))
    marks: list[str] = []
    anchors: dict[int, tuple[float, float, float]] = {}  # id -> (x, top, bottom) of the box that stands for it
    width, height = _place(drawn["root"], GAP_X, GAP_Y, marks, anchors, top=True)
    paths = {_edge(anchors[a], anchors[b]) for a, b in drawn["edges"] if anchors[a] != anchors[b]}
    lines = "".join(f'<path d="{d}" fill="none" stroke="#9aa4ad" stroke-width="1.2"/>' for d in sorted(paths))
    box = f'viewBox="0 0 {width + 2 * GAP_X:.0f} {height + 2 * GAP_Y:.0f}"'
    size = f'width="{width + 2 * GAP_X:.0f}" height="{height + 2 * GAP_Y:.0f}"'
    style = "font-family:Helvetica,Arial,sans-serif;font-size:10px;background:#fff"
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {box} style="{style}">{lines}{"".join(marks)}</svg>\n'


def page(traced: Trace, title: str = "trace") -> str:
    """The trace as one HTML page without anything from elsewhere: scopes fold and unfold on a click."""
    data = json.dumps(boxes(traced, scopes(traced))).replace("</", "<\\/")
    template = importlib.resources.files("functrain.autodiff").joinpath("trace_page.html").read_text()
    sizes = {"WIDTH": WIDTH, "HEIGHT": HEIGHT, "GAP_X": GAP_X, "GAP_Y": GAP_Y, "PAD": PAD, "TITLE": TITLE}
    return (
        template.replace("__TITLE__", html.escape(title))
        .replace("__SIZES__", json.dumps(sizes))
        .replace('"__DATA__"', data)
    )


def _extent(part):
    """(width, height) of a part as it stands."""
    if "parts" not in part or not part["open"]:
        return WIDTH, HEIGHT
    rows: dict[int, list[tuple[float, float]]] = {}
    for child, row in zip(part["parts"], part["rows"]):
        rows.setdefault(row, []).append(_extent(child))
    width = max(sum(w for w, _ in row) + GAP_X * (len(row) - 1) for row in rows.values())
    height = sum(max(h for _, h in row) for row in rows.values()) + GAP_Y * (len(rows) - 1)
    return width + 2 * PAD, height + 2 * PAD + TITLE


def _place(part, x, y, marks, anchors, top=False):
    """Draw a part with its upper left corner at (x, y); its extent."""
    width, height = _extent(part)
    if "parts" not in part or not part["open"]:
        marks.append(_box(part, x, y))
        for i in _ids(part):
            anchors[i] = (x + width / 2, y, y + height)
        return width, height
    if not top:
        name = html.escape(part["name"])
        marks.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="8" fill="none" '
            f'stroke="#b9c2ca"/><text x="{x + 8:.1f}" y="{y + 13:.1f}" fill="#56616b">{name}</text>'
        )
    rows: dict[int, list[Any]] = {}
    for child, row in zip(part["parts"], part["rows"]):
        rows.setdefault(row, []).append(child)
    down = y + PAD + TITLE
    for row in sorted(rows):
        extents = [_extent(child) for child in rows[row]]
        right = x + (width - sum(w for w, _ in extents) - GAP_X * (len(extents) - 1)) / 2
        for child, (w, _) in zip(rows[row], extents):
            _place(child, right, down, marks, anchors)
            right += w + GAP_X
        down += max(h for _, h in extents) + GAP_Y
    return width, height


def _ids(part):
    if "id" in part:
        return [part["id"]]
    return [i for child in part["parts"] for i in _ids(child)]


def _box(part, x, y):
    folded = "parts" in part
    dash = ' stroke-dasharray="4 2"' if folded else ""
    name = part["name"] if len(part["name"]) < 30 else "..." + part["name"][-26:]
    lines = [f"{name}  [{part['lines'][0]}]", *part["lines"][1:]]
    texts = "".join(
        f'<text x="{x + 7:.1f}" y="{y + 14 + 14 * i:.1f}" font-weight="{weight}">{html.escape(line)}</text>'
        for i, (line, weight) in enumerate(zip(lines, ("bold", "normal", "normal")))
    )
    radius = 14 if part.get("argument") else 4
    title = html.escape(part.get("title", part["name"]))
    return (
        f'<g><title>{title}</title><rect x="{x:.1f}" y="{y:.1f}" width="{WIDTH}" height="{HEIGHT}" rx="{radius}" '
        f'fill="{part["colour"]}" stroke="#56616b"{dash}/>{texts}</g>'
    )


def _edge(start, end):
    (x0, _, y0), (x1, y1, _) = start, end
    bend = max(14, abs(y1 - y0) / 2)
    # Past what lies straight between.
    aside = 0.75 * WIDTH if abs(x1 - x0) < 1 and y1 - y0 > HEIGHT else 0
    return f"M{x0:.1f},{y0:.1f} C{x0 + aside:.1f},{y0 + bend:.1f} {x1 + aside:.1f},{y1 - bend:.1f} {x1:.1f},{y1:.1f}"
