"""Pictures of a run, as PNG: curves of each metric, what accumulators hold. Plain matplotlib, no display needed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from functrain.metrics import Calibration, Confusion, Scores, prefix

_WIDTH = 4.8
_COLOURS = {"train": "#8a8a8a", "validation": "#0b6e99"}


def new_figure(rows: int, columns: int, size: tuple[float, float], **grid: Any) -> tuple[Any, Any]:
    """A figure of panels, and they, [rows, columns]. size: in inches; grid: further settings of the panels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # late, and without pyplot's global state
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **grid)


def curves(runs: dict[str, Sequence[dict[str, Any]]], path: Path) -> None:
    """A panel for each metric against the step: training grey, validation blue; several runs in a colour each.

    Of a run of several seeds the mean, with a band of one deviation to both sides.

    runs: name -> the lines of its metrics.jsonl.
    """
    names: list[str] = []
    for lines in runs.values():
        for line in lines:
            names += [n for n in line if n not in ("step", "split", *names) and not n.endswith("_deviation")]
    columns = min(len(names), 2) or 1
    rows = max(1, -(-len(names) // columns))
    figure, axes = new_figure(rows, columns, (_WIDTH * columns, 3.2 * rows))
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
                at = {e["step"]: e.get(f"{name}_deviation") or 0.0 for e in lines if e["split"] == split}
                if any(off := np.array([at[step] for step in steps])):
                    low, high = np.array(heights) - off, np.array(heights) + off
                    axis.fill_between(steps, low, high, color=style["color"], alpha=0.2, linewidth=0)
        axis.set_title(name.replace("_", " "), fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        _plain(axis)
        if name != "learning_rate" and values and min(values) > 0 and max(values) / min(values) > 50:
            axis.set_yscale("log")
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8, frameon=False)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    save_figure(figure, path)


def draw(metrics: Mapping[str, Any], folder: Path, title: str = "") -> list[Path]:
    """A picture of each accumulator that has one; the paths.

    metrics: what `functrain.metrics.read` gives. A confusion matrix is drawn as confusion.png, scores as roc.png,
    precision_recall.png and calibration.png, a calibration as calibration.png; under another name than their own, with
    what comes before it: teacher_confusion.png.
    """
    drawn = []
    for name, metric in metrics.items():
        if not isinstance(metric, (Calibration, Confusion, Scores)):
            continue
        before = prefix(name, metric)
        if isinstance(metric, Confusion):
            drawn.append(folder / f"{before}confusion.png")
            confusion(metric.value, drawn[-1], title)
        if isinstance(metric, Scores):
            drawn += [folder / f"{before}roc.png", folder / f"{before}precision_recall.png"]
            roc(metric, drawn[-2], title)
            precision_recall(metric, drawn[-1], title)
        if isinstance(metric, (Calibration, Scores)):
            drawn.append(folder / f"{before}calibration.png")
            calibration(metric.calibration() if isinstance(metric, Scores) else metric, drawn[-1], title)
    return drawn


def confusion(counts: Any, path: Path, title: str = "") -> None:
    """Who was taken for whom: a row for each true class, shaded by its share, the counts written in.

    counts: [true class, predicted class], or a Confusion.
    """
    counts = counts.value if isinstance(counts, Confusion) else counts
    classes = len(counts)
    side = max(3.6, min(14.0, 0.42 * classes + 1.4))
    figure, axes = new_figure(1, 1, (side, side))
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
    save_figure(figure, path)


_LABELS_DRAWN = 10


def roc(scores: Scores, path: Path, title: str = "") -> None:
    """True positive rate against false positive rate, a line for each of the first ten labels, and that of chance."""
    figure, axis = _square(title, len(scores.counts))
    for label, one in _by_label(scores):
        wrong, right, _ = one.roc_curve()
        axis.plot(wrong, right, linewidth=1.4, label=f"{label}area {one.roc_auc():.3f}")
    axis.plot([0, 1], [0, 1], color="#8a8a8a", linewidth=1, linestyle="--", label="chance")
    axis.set_xlabel("false positive rate", fontsize=9)
    axis.set_ylabel("true positive rate", fontsize=9)
    _legend(axis, "lower right", len(scores.counts))
    save_figure(figure, path)


def precision_recall(scores: Scores, path: Path, title: str = "") -> None:
    """Precision against recall, a line for each of the first ten labels; for one label, that of chance too."""
    figure, axis = _square(title, len(scores.counts))
    labels = _by_label(scores)
    for label, one in labels:
        precision, recall, _ = one.pr_curve()
        axis.step(recall, precision, where="post", linewidth=1.4, label=f"{label}average precision {one.pr_auc():.3f}")
    if len(labels) == 1:
        by_target = np.asarray(scores.counts, np.float64).sum((-3, -1))
        share = by_target[1] / max(by_target.sum(), 1)
        axis.axhline(share, color="#8a8a8a", linewidth=1, linestyle="--", label=f"chance {share:.3f}")
    axis.set_xlabel("recall", fontsize=9)
    axis.set_ylabel("precision", fontsize=9)
    _legend(axis, "lower left", len(labels))
    save_figure(figure, path)


def calibration(found: Calibration, path: Path, title: str = "") -> None:
    """How often what was said with each probability held, and below it how often each was said.

    Of several labels the first ten have a line each.
    """
    labels = 1 if np.ndim(found.count) == 1 else len(found.count)
    figure, axes = new_figure(2, 1, (_width(labels), 5.6), height_ratios=(3, 1), sharex=True)
    above, below = axes[:, 0]
    above.plot([0, 1], [0, 1], color="#8a8a8a", linewidth=1, linestyle="--", label="calibrated")
    probability, held, count = (np.atleast_2d(x) for x in found.curve())
    errors = np.atleast_1d(found.error())
    for label in range(min(labels, _LABELS_DRAWN)):
        name = f"label {label}, " if labels > 1 else ""
        there = count[label] > 0
        text = f"{name}error {errors[label]:.3f}"
        above.plot(probability[label][there], held[label][there], marker=".", linewidth=1.4, label=text)
    bins = count.shape[1]
    below.bar((np.arange(bins) + 0.5) / bins, count.sum(0), width=0.9 / bins, color=_COLOURS["validation"])
    above.set_ylabel("share that held", fontsize=9)
    above.set_xlim(0, 1)
    above.set_ylim(-0.02, 1.02)
    _legend(above, "upper left", labels)
    above.set_title(title, fontsize=10)
    below.set_xlabel("probability", fontsize=9)
    below.set_ylabel("count", fontsize=9)
    for axis in (above, below):
        _plain(axis)
    save_figure(figure, path)


def schedule(rates: Mapping[str, Any], path: Path) -> None:
    """The learning rate of every step, a line for each player.

    rates: player -> [steps], from step 0 on.
    """
    figure, axes = new_figure(1, 1, (_WIDTH * 1.3, 3.2))
    axis = axes[0, 0]
    for player, values in rates.items():
        axis.plot(np.arange(len(values)), np.asarray(values), linewidth=1.4, label=player)
    if len(rates) > 1:
        axis.legend(fontsize=8, frameon=False)
    axis.set_xlabel("step", fontsize=9)
    axis.set_ylabel("learning rate", fontsize=9)
    axis.set_ylim(bottom=0)
    _plain(axis)
    save_figure(figure, path)


def against(curves: Mapping[str, Sequence[Mapping[str, Any]]], x: str, y: str, path: Path) -> None:
    """A line for each of the curves, with a band of one deviation to both sides where there is one.

    curves: name -> points, each with the numbers x and y by name, and `y_deviation` of several seeds.
    """
    figure, axes = new_figure(1, 1, (5.6, 4.0))
    axis = axes[0, 0]
    for number, (name, points) in enumerate(curves.items()):
        points = [point for point in points if point.get(y) is not None]
        at, heights = (np.array([point[key] for point in points], float) for key in (x, y))
        off = np.array([point.get(f"{y}_deviation") or 0.0 for point in points])
        axis.plot(at, heights, color=f"C{number % 10}", marker=".", linewidth=1.4, label=name)
        if off.any():
            axis.fill_between(at, heights - off, heights + off, color=f"C{number % 10}", alpha=0.2, linewidth=0)
    axis.set_xlabel(x.replace("_", " "), fontsize=9)
    axis.set_ylabel(y.replace("_", " "), fontsize=9)
    _plain(axis)
    axis.legend(fontsize=8, frameon=False)
    save_figure(figure, path)


def learning_rate_finder(rates: Any, losses: Any, suggestion: float | None, path: Path) -> None:
    """The loss against a rising learning rate, and the rate that is suggested; None where there is none.

    rates, losses: [trials]; losses that are not finite are left out, those far above the first are cut off.
    """
    rates, losses = np.asarray(rates, np.float64), np.asarray(losses, np.float64)
    there = np.isfinite(losses)
    rates, losses = rates[there], losses[there]
    figure, axes = new_figure(1, 1, (_WIDTH * 1.3, 3.4))
    axis = axes[0, 0]
    axis.plot(rates, losses, linewidth=1.4, color=_COLOURS["validation"])
    if len(losses):
        low, high = losses.min(), min(losses.max(), losses[0] + 1.5 * max(losses[0] - losses.min(), 1e-12))
        margin = 0.06 * (high - low) or 1.0
        axis.set_ylim(low - margin, high + margin)
    if suggestion is not None:
        axis.axvline(suggestion, color="#c44536", linewidth=1, linestyle="--", label=f"suggested {suggestion:.2g}")
        axis.legend(fontsize=8, frameon=False, loc="lower left")
    axis.set_xscale("log")
    axis.set_xlabel("learning rate", fontsize=9)
    axis.set_ylabel("loss", fontsize=9)
    _plain(axis)
    save_figure(figure, path)


def _by_label(scores):
    """(what its line is called, the scores of it alone) of the first ten labels."""
    labels = len(scores.counts)
    shown = range(min(labels, _LABELS_DRAWN))
    return [(f"label {i}, " if labels > 1 else "", Scores(scores.counts[i : i + 1])) for i in shown]


def _width(labels):
    return _WIDTH if labels == 1 else _WIDTH + 2.2


def _legend(axis, inside, labels):
    """Inside where there is one line; beside the panel where there are several."""
    place = {"loc": inside} if labels == 1 else {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)}
    axis.legend(fontsize=8, frameon=False, **place)


def _square(title, labels):
    """A panel of shares against shares, with room beside it where there are several labels."""
    figure, axes = new_figure(1, 1, (_width(labels), _WIDTH))
    axis = axes[0, 0]
    axis.set_xlim(-0.02, 1.02)
    axis.set_ylim(-0.02, 1.02)
    axis.set_aspect("equal")
    axis.set_title(title, fontsize=10)
    _plain(axis)
    return figure, axis


def _plain(axis):
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def save_figure(figure: Any, path: Path) -> None:
    """Write the figure as a PNG; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
