"""What was seen of the layers over a run, as one page."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from functrain.observe.figures import new_figure, save_figure
from functrain.observe.seen import HIGHEST, LOWEST, Seen, expanded, folded

_MOST, _FEWEST, _COLUMNS = 12, 4, 4
_DARKEST = 0.25
"""The share of a parameter's numbers from which on a place of its heat map is darkest."""


def layers_figure(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Ratios, norms, dead units and cosines over the steps, and gradients' histograms as heat maps.

    Of more than twelve parameters, those whose paths begin alike are put together (`grouped`). Norms and histograms of
    a group are those of all its numbers, dead units the mean over its kernels, the cosine the mean weighted by squared
    norms.

    lines: of a layers.jsonl, one or more.
    """
    steps, looks = [line["step"] for line in lines], [expanded(line) for line in lines]
    groups = grouped(_paths(looks))
    rows = -(-len(groups) // _COLUMNS)
    heights = [1.7, 1.7, *[1] * rows]
    figure, axes = new_figure(2 + rows, _COLUMNS, (14, 1.9 * sum(heights)), height_ratios=heights)
    grid, half = axes[0, 0].get_gridspec(), _COLUMNS // 2
    for axis in axes[:2].flat:
        axis.remove()
    places = [grid[0, :half], grid[0, half:], grid[1, :half], grid[1, half:]]
    ratio, norm, dead, cosine = (figure.add_subplot(place) for place in places)
    marker = "." if len(steps) < 40 else None
    for paths, style in zip(groups.values(), _styles(groups)):
        for axis, of in ((ratio, _ratio), (norm, _norm), (dead, _dead), (cosine, _cosine)):
            heights = np.array([of(look, paths) for look in looks])
            if np.isfinite(heights).any():
                axis.plot(steps, heights, marker=marker, linewidth=1.2, **style)
    whole = np.array([_whole(look) for look in looks])
    cosine.plot(steps, whole, color="black", linewidth=2.2, label="all parameters")
    ratio.axhline(1e-3, color="black", linewidth=1, linestyle=":")
    cosine.axhline(0, color="black", linewidth=1, linestyle=":")
    dead.set_ylim(-0.02, 1.02)
    titles = {
        ratio: "update / parameter, norms (dotted: 1e-3)",
        norm: "gradient, norm",
        dead: "dead units: share with no gradient in the batch",
        cosine: "cosine of successive gradients (black: all)",
    }
    for axis, title in titles.items():
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if axis in (ratio, norm):
            axis.set_yscale("log")
        axis.tick_params(labelsize=8, which="both")
    handles = [figure.add_artist(_line(style)) for style in _styles(groups)]
    figure.legend(handles, [_short(g) for g in groups], loc="outside right upper", fontsize=8, frameon=False)
    _heat_maps(figure, axes[2:], steps, looks, groups)
    save_figure(figure, path)


def grouped(paths: Sequence[str], most: int = _MOST) -> dict[str, list[str]]:
    """Paths by what stands for them on a page: {label: paths}, at most so many, numbers in their order.

    Each by itself where there is room; else paths are cut at the depth that leaves the most groups there is room for;
    where those would be fewer than four, neighbours of the next depth are joined.

    >>> grouped(["b10/k", "b2/k", "b2/a", "c/k"], most=4)
    {'b2/a': ['b2/a'], 'b2/k': ['b2/k'], 'b10/k': ['b10/k'], 'c/k': ['c/k']}
    >>> list(grouped([f"block{i}/{k}" for i in range(6) for k in "abc"], most=7))
    ['block0', 'block1', 'block2', 'block3', 'block4', 'block5']
    >>> list(grouped([f"{i}/kernel" for i in range(30)], most=4))
    ['0 ... 7', '8 ... 15', '16 ... 23', '24 ... 29']
    """
    ordered = sorted(paths, key=lambda path: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", path)])
    depths = []
    for depth in range(1, 1 + max(path.count("/") + 1 for path in paths)):
        cut: dict[str, list[str]] = {}
        for path in ordered:
            cut.setdefault("/".join(path.split("/")[:depth]), []).append(path)
        depths.append(cut)
    fitting = [cut for cut in depths if len(cut) <= most]
    if fitting and (len(fitting) == len(depths) or len(fitting[-1]) >= _FEWEST):
        return fitting[-1]
    finer = list(depths[len(fitting)].items())
    each = -(-len(finer) // most)
    runs = [finer[i : i + each] for i in range(0, len(finer), each)]
    return {
        run[0][0] if len(run) == 1 else f"{run[0][0]} ... {run[-1][0]}": [path for _, paths in run for path in paths]
        for run in runs
    }


def _paths(looks):
    names = [name.partition("/") for name in looks[0].numbers]
    return [path for what, _, path in names if what == "parameter_norm"]


# -- of a group -----------------------------------------------------------------------------------


def _all(look: Seen, what, paths):
    return np.array([look.numbers.get(f"{what}/{path}", np.nan) for path in paths])


def _together(look, what, paths):
    return float(np.sqrt(np.sum(_all(look, what, paths) ** 2)))


def _norm(look, paths):
    return _together(look, "gradient_norm", paths)


def _ratio(look, paths):
    size = _together(look, "parameter_norm", paths)
    return _together(look, "update_norm", paths) / size if size > 0 else np.nan


def _dead(look, paths):
    shares = _all(look, "dead_units", paths)
    there = np.isfinite(shares)
    return float(shares[there].mean()) if there.any() else np.nan


def _cosine(look, paths):
    cosines, weights = _all(look, "gradient_cosine", paths), _all(look, "gradient_norm", paths) ** 2
    there = np.isfinite(cosines) & np.isfinite(weights)
    return float(np.average(cosines[there], weights=weights[there])) if there.any() else np.nan


def _whole(look):
    """Of all parameters; of several players, the mean."""
    found = [x for name, x in look.numbers.items() if re.fullmatch(r"gradient_cosine/(.*/)?all", name)]
    return float(np.mean(found)) if found else np.nan


# -- drawing --------------------------------------------------------------------------------------


def _styles(groups):
    """A colour for each scope, from dark to light; what stands for a bias alone is dashed and has its kernel's."""
    from matplotlib import colormaps  # late, as all of matplotlib

    scopes = {label: label.rpartition("/")[0] if label in paths else label for label, paths in groups.items()}
    order = list(dict.fromkeys(scopes.values()))
    return [
        {
            "color": colormaps["viridis"](0.92 * order.index(scope) / max(len(order) - 1, 1)),
            "linestyle": "--" if label.endswith("/bias") else "-",
        }
        for label, scope in scopes.items()
    ]


def _line(style):
    from matplotlib.lines import Line2D

    return Line2D([], [], linewidth=1.6, **style)


def _heat_maps(figure, axes, steps, looks, groups):
    """How the sizes of a gradient's numbers are spread, step by step; in the lowest row, how many are zero."""
    maps, bad = [], []
    for paths in groups.values():
        columns, wrong = [], []
        for look in looks:
            found = [look.histograms[f"gradient/{p}"] for p in paths if f"gradient/{p}" in look.histograms]
            sizes = sum((folded(one) for one in found), np.zeros(HIGHEST - LOWEST + 3))
            columns.append(sizes / max(sizes.sum(), 1))
            wrong.append(any(one.nonfinite for one in found))
        maps.append(np.array(columns).T)
        bad.append(wrong)
    peaks = np.max([m[1:].max(1) for m in maps], 0)
    there = np.flatnonzero(peaks > 0.004)
    low, high = (there[0], there[-1] + 1) if len(there) else (0, 1)
    edges = np.array([*(np.array(steps[1:]) + steps[:-1]) / 2])
    ends = (edges[0] - steps[0], steps[-1] - edges[-1]) if len(edges) else (0.5, 0.5)
    edges = np.array([steps[0] - ends[0], *edges, steps[-1] + ends[1]])
    tall = max(2, (high - low) // 12)  # of the row of zeros
    heights = np.array([-2 * tall, -tall, *range(high - low + 1)], float)
    decades = [d for d in range(-12, 7) if low <= d / np.log10(2) - LOWEST + 1 <= high][:: 1 + (high - low) // 24]
    drawn = None
    for axis, label, share, wrong in zip(axes.flat, groups, maps, bad):
        zeros, gap = share[: 1 + low].sum(0, keepdims=True), np.full((1, len(steps)), np.nan)
        rows = np.vstack([zeros, gap, share[1 + low : 1 + high]])
        drawn = axis.pcolormesh(edges, heights, rows, cmap="magma_r", vmin=0, vmax=_DARKEST)
        for step in np.array(steps)[wrong]:
            axis.axvline(step, color="red", linewidth=2)
        axis.set_title(_short(label), fontsize=8)
        axis.set_yticks([-1.5 * tall, *(d / np.log10(2) - LOWEST + 1 - low for d in decades)])
        axis.set_yticklabels(["0", *(f"1e{d}" for d in decades)])
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[len(groups) :]:
        axis.set_visible(False)
    bar = figure.colorbar(drawn, ax=axes, pad=0.01, aspect=30, extend="max")
    bar.set_label("share of a gradient's numbers, by size", fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _short(label, longest=38):
    return label if len(label) <= longest else f"...{label[3 - longest :]}"
