"""A picture of segmented images, as PNG: the image, the truth, the prediction."""

from pathlib import Path
from typing import Any

import numpy as np

from functrain.observe.figures import new_figure, save_figure

_MOST = 8
"""Images drawn, a column each."""


def segmentation_picture(x: Any, labels: Any, predicted: Any, path: Path) -> None:
    """Rows of images, of their true classes and of those predicted, for the first eight; a key names the classes.

    x: [n, height, width] or [n, height, width, channels] of 1 or 3; bytes, or floats from 0 to 1.
    labels, predicted: [n, height, width] integers; class 0 is black, what is outside 0 to 20 (a label to ignore) white.
    """
    from matplotlib.patches import Patch  # late, as all of matplotlib

    x, labels, predicted = (np.asarray(a)[:_MOST] for a in (x, labels, predicted))
    x = x.astype(np.float32) / (255 if np.issubdtype(x.dtype, np.integer) else 1)
    x = np.clip(x[..., 0] if x.ndim == 4 and x.shape[-1] == 1 else x, 0, 1)
    colours = _colours()
    maps = (np.where((m >= 0) & (m < len(colours) - 1), m, -1).astype(int) for m in (labels, predicted))
    rows = [x, *(colours[m] for m in maps)]
    figure, axes = new_figure(3, len(x), (1.4 * len(x) + 1.1, 4.4))
    for row, (name, pictures) in enumerate(zip(("image", "truth", "predicted"), rows)):
        for axis, picture in zip(axes[row], pictures):
            axis.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
        axes[row, 0].set_ylabel(name, fontsize=9)
    there = [int(c) for c in np.union1d(labels, predicted) if 0 <= c < len(colours) - 1]
    patches = [Patch(facecolor=colours[c], edgecolor="#8a8a8a", label=str(c)) for c in there]
    figure.legend(handles=patches, loc="outside right center", fontsize=8, frameon=False, title="class")
    save_figure(figure, path)


def _colours():
    """[22, 3]: black, the twenty of tab20, of which neighbours are unlike, and white for the rest."""
    from matplotlib import colormaps

    twenty = np.asarray(colormaps["tab20"](range(20)))[:, :3]
    return np.concatenate([np.zeros((1, 3)), twenty[::2], twenty[1::2], np.ones((1, 3))])
