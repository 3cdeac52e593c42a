"""Pictures of a run, as PNG: curves of each metric, the confusion matrix. Plain matplotlib, no display needed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

_WIDTH = 4.8
_COLOURS = {"train": "#8a8a8a", "validation": "#0b6e99"}


def _figure(rows: int, columns: int, size: tuple[float, float]):
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # late, and without pyplot's global state
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def curves(runs: dict[str, Sequence[dict[str, Any]]], path: Path) -> None:
    """A panel for each metric against the step: training grey, validation blue; several runs in a colour each.

    runs: name -> the lines of its metrics.jsonl.
    """
    names: list[str] = []
    for lines in runs.values():
        for line in lines:
            names += [n for n in line if n not in ("step", "split") and n not in names]
    columns = min(len(names), 2) or 1
    rows = max(1, -(-len(names) // columns))
    figure, axes = _figure(rows, columns, (_WIDTH * columns, 3.2 * rows))
    several = len(runs) > 1
    for name, axis in zip(names, axes.flat):
        values = []
        for number, (run, lines) in enumerate(runs.items()):
            for split in ("train", "validation"):
                points = [(e["step"], e[name]) for e in lines if e["split"] == split and e.get(name) is not None]
                if not points:
                    continue
                steps, heights = zip(*points)
                values += heights
                style: dict[str, Any] = {"color": _COLOURS[split], "label": split}
                if several:
                    style = {"color": f"C{number % 10}", "label": run if split == "validation" else None}
                    style["alpha"] = 1.0 if split == "validation" else 0.35
                axis.plot(steps, heights, marker="." if len(points) < 40 else None, linewidth=1.4, **style)
        axis.set_title(name.replace("_", " "), fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if name != "learning_rate" and values and min(values) > 0 and max(values) / min(values) > 50:
            axis.set_yscale("log")
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8, frameon=False)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def confusion(counts: np.ndarray, path: Path, title: str = "") -> None:
    """Who was taken for whom: a row for each true class, shaded by its share, the counts written in."""
    classes = len(counts)
    side = max(3.6, min(14.0, 0.42 * classes + 1.4))
    figure, axes = _figure(1, 1, (side, side))
    axis = axes[0, 0]
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if classes <= 30:
        for row, column in zip(*np.nonzero(counts)):
            axis.text(
                column,
                row,
                f"{counts[row, column]:.0f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if share[row, column] > 0.5 else "black",
            )
        axis.set_xticks(range(classes))
        axis.set_yticks(range(classes))
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")
    axis.set_title(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
