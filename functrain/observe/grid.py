"""Images side by side, as PNG: examples, what augmentation makes of them, boxes on them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from functrain.observe.figures import new_figure, save_figure

_DPI = 130  # of `save_figure`
_CELL, _GAP, _WIDEST = 112, 3, 2400  # in pixels: a small image is drawn about so large; the picture at most so wide
_POINTS = 6  # of text


def grid(
    images: Any,
    path: Path,
    titles: Sequence[str] | None = None,
    columns: int = 8,
    boxes: Sequence[Any] | None = None,
    labels: Sequence[Sequence[str]] | None = None,
    colours: Sequence[Sequence[str]] | None = None,
) -> None:
    """Draws images row by row, each pixel of a small one as a square; a picture that would be too wide is shrunk.

    Args:
      images: [n, h, w] or [n, h, w, c], c being 1 or 3, in 0..1; what lies outside is cut off.
      path: the PNG; folders are made.
      titles: a line above each image.
      columns: images in a row.
      boxes: for each image [m, 4], (x0, y0, x1, y1) in pixels of the image, drawn as thin rectangles.
      labels: for each image, a text for each of its boxes.
      colours: for each image, a colour of matplotlib's for each of its boxes.

    Raises:
      ValueError: no images, or another number of channels, titles or lists of boxes than fits them.
    """
    x = np.clip(np.asarray(images, np.float32), 0, 1)
    x = x[..., None] if x.ndim == 3 else x
    if x.ndim != 4 or not len(x) or x.shape[3] not in (1, 3):
        raise ValueError(f"images must be [n, h, w] or [n, h, w, 1 or 3], n at least 1; found {np.shape(images)}")
    for name, given in (("titles", titles), ("boxes", boxes), ("labels", labels), ("colours", colours)):
        if given is not None and len(given) != len(x):
            raise ValueError(f"{name} must be as many as the {len(x)} images; found {len(given)}")
    n = len(x)
    columns = min(columns, n)
    zoom = max(1, _CELL // max(x.shape[1:3]))
    x = x.repeat(zoom, 1).repeat(zoom, 2)
    height, width = x.shape[1:3]
    head = 0 if titles is None else round(1.6 * _POINTS * _DPI / 72)
    down, across = head + height + _GAP, width + _GAP
    canvas = np.ones((-(-n // columns) * down + _GAP, columns * across + _GAP, 3), np.float32)
    corners = [(_GAP + i % columns * across, _GAP + head + i // columns * down) for i in range(n)]  # (x, y)
    for image, (left, top) in zip(x, corners):
        canvas[top : top + height, left : left + width] = image

    size, shrink = canvas.shape[:2], min(1, _WIDEST / canvas.shape[1])
    figure, axes = new_figure(1, 1, (size[1] * shrink / _DPI, size[0] * shrink / _DPI))
    figure.set_layout_engine("none")  # so that no margin makes the squares unequal
    axis = axes[0, 0]
    axis.set_position((0, 0, 1, 1))
    axis.axis("off")
    # Corners at whole numbers: a box from 0 to the width encloses the image.
    how = "nearest" if shrink == 1 else "antialiased"
    axis.imshow(canvas, extent=(0, size[1], size[0], 0), interpolation=how, aspect="auto")
    for i, (left, top) in enumerate(corners):
        if titles is not None:
            axis.text(left, top, titles[i], fontsize=_POINTS, va="bottom", ha="left", clip_on=True)
        for j, box in enumerate(() if boxes is None else np.asarray(boxes[i], float).reshape(-1, 4)):
            colour = "#ff3b30" if colours is None else colours[i][j]
            x0, y0, x1, y1 = zoom * box + (left, top, left, top)
            axis.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color=colour, linewidth=0.8)
            if labels is not None:
                style = {"color": "white", "fontsize": _POINTS, "va": "top", "ha": "left", "clip_on": True}
                back = {"facecolor": colour, "edgecolor": "none", "pad": 0.6, "alpha": 0.8}
                axis.text(x0, y0, labels[i][j], bbox=back, **style)
    axis.set_xlim(0, size[1])
    axis.set_ylim(size[0], 0)
    save_figure(figure, path)
