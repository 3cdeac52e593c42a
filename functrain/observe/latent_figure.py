"""A picture of where examples lie in a plane, as PNG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from functrain.observe.figures import new_figure, save_figure

_MOST = 20
"""Classes that have a colour of their own."""


def latent_picture(points: Any, labels: Any, names: Sequence[str], units: Sequence[int], path: Path) -> None:
    """A point for each example, coloured by its class where it has one.

    points: [n, 2]; of one unit alone [n, 1], drawn against their order.
    labels: [n] integers, or None; of other labels (real numbers, several an example) there is no colour.
    names: of the classes; without them they are numbers.
    units: which ones of a latent vector the axes are.
    """
    points = np.asarray(points)
    if points.shape[1] == 1:
        points = np.stack([points[:, 0], np.arange(len(points))], 1)
    labels = None if labels is None else np.asarray(labels)
    figure, axes = new_figure(1, 1, (5.6, 4.8))
    axis = axes[0, 0]
    style = {"s": 9, "linewidths": 0, "alpha": 0.8}
    if labels is not None and labels.ndim == 1 and labels.dtype.kind in "iu" and labels.max() < _MOST:
        from matplotlib import colormaps  # late, as all of matplotlib

        colours = colormaps["tab10" if labels.max() < 10 else "tab20"]
        for c in np.unique(labels):
            name = names[c] if c < len(names) else str(c)
            axis.scatter(*points[labels == c].T, color=colours(int(c)), label=name, **style)
        figure.legend(loc="outside right center", fontsize=8, frameon=False, markerscale=2)
    else:
        axis.scatter(*points.T, color="#0b6e99", **style)
    axis.set_xlabel(f"unit {units[0]}", fontsize=9)
    axis.set_ylabel(f"unit {units[1]}" if len(units) > 1 else "example", fontsize=9)
    axis.tick_params(labelsize=8)
    save_figure(figure, path)
