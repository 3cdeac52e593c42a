"""A picture of several ways to train: the loss against what it cost, as PNG."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from functrain.observe.figures import new_figure, save_figure

_COLOURS = ("#0b6e99", "#c4541f", "#3a8f4e", "#8a4fa3", "#b8890f", "#4d4d4d", "#d14f87", "#2aa6a1")
_STYLES = ("-", (0, (5, 1.5)), (0, (1.5, 1)))
_APART = 0.052
"""Between two labels, as a share of a panel's height."""


def comparison_picture(curves: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray]], path: Path) -> None:
    """Two panels, the loss against evaluations and against seconds on log scales; each line's name at its end.

    curves: (name, evaluations [n], seconds [n], losses [n]) of each.
    """
    figure, axes = new_figure(1, 2, (13.0, 5.2), sharey=True)
    known = [finite for *_, losses in curves if len(finite := losses[np.isfinite(losses)])] or [np.ones(1)]
    # What diverged must not flatten the others.
    low, high = min(f.min() for f in known), min(max(f.max() for f in known), 1.5 * max(f[0] for f in known))
    panels = (
        (axes[0][0], "evaluations of the loss", [evaluations for _, evaluations, _, _ in curves]),
        (axes[0][1], "seconds of training", [seconds for _, _, seconds, _ in curves]),
    )
    for axis, label, costs in panels:
        axis.set_xscale("log")
        if low > 0 and high / low > 30:
            axis.set_yscale("log")
            axis.set_ylim(low / 1.2, high * 1.2)
        else:
            room = 0.05 * (high - low) or 0.05
            axis.set_ylim(low - room, high + room)
        for i, (cost, curve) in enumerate(zip(costs, curves)):
            style = {"color": _COLOURS[i % len(_COLOURS)], "linestyle": _STYLES[i // len(_COLOURS) % len(_STYLES)]}
            axis.plot(cost, curve[3], linewidth=1.5, **style)
        if curves:
            axis.set_xlim(min(cost[0] for cost in costs) / 1.3, 1.3 * max(cost[-1] for cost in costs))
        axis.set_xlabel(label, fontsize=9)
        axis.grid(alpha=0.25)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("training loss", fontsize=9)
    figure.canvas.draw()  # so that places of ends are known
    for axis, _, costs in panels:
        _name_ends(axis, [(curve[0], cost[-1], curve[3][-1]) for cost, curve in zip(costs, curves)])
    save_figure(figure, path)


def _name_ends(axis, ends) -> None:
    """Names at the panel's right side, in the order of the lines' ends, none over another, a thin line to each."""
    to_panel = axis.transData + axis.transAxes.inverted()
    heights = np.array([np.clip(to_panel.transform((x, y))[1], 0, 1) if np.isfinite(y) else 1.0 for _, x, y in ends])
    order = np.argsort(heights, kind="stable")
    for i, place in zip(order, spread(heights[order], _APART)):
        name, x, y = ends[i]
        colour = _COLOURS[i % len(_COLOURS)]
        line = {
            "arrowstyle": "-",
            "color": colour,
            "linewidth": 0.6,
            "alpha": 0.5,
            "shrinkA": 1,
            "shrinkB": 1,
            "relpos": (0, 0.5),
        }
        axis.annotate(
            name,
            xy=(x, np.clip(y, *axis.get_ylim()) if np.isfinite(y) else axis.get_ylim()[1]),
            xytext=(1.03, place),
            textcoords="axes fraction",
            fontsize=8,
            color=colour,
            va="center",
            arrowprops=line,
            annotation_clip=False,
        )


def spread(heights: np.ndarray, apart: float) -> np.ndarray:
    """Rising heights moved as little as it takes for each to be `apart` from the next; within 0..1 if there is room.

    >>> [round(float(x), 2) for x in spread(np.array([0.3, 0.3, 0.9]), 0.1)]
    [0.25, 0.35, 0.9]
    """
    steps = apart * np.arange(len(heights))
    blocks: list[list[float]] = []  # means of neighbours that move as one, and how many they are
    for height in heights - steps:  # these must not fall: isotonic regression, by pooling
        blocks.append([float(height), 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, n), (b, m) = blocks[-2:]
            blocks[-2:] = [[(a * n + b * m) / (n + m), n + m]]
    placed = np.repeat([mean for mean, _ in blocks], [int(n) for _, n in blocks])
    return np.clip(placed, 0, max(0.0, 1 - apart * (len(heights) - 1))) + steps
