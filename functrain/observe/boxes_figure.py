"""Pictures with their boxes, as PNG: what is there, and what was found."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from functrain.observe.figures import new_figure, save_figure

_SIDE = 3.4


def draw_boxes(
    images: Any,
    truth: Mapping[str, Any] | None,
    found: Mapping[str, Any] | None,
    names: Sequence[str],
    path: Path,
    columns: int = 3,
    *,
    least: float = 0.0,
) -> None:
    """A page of images: true boxes thin, white and dashed; detections in their class's colour, with the score.

    Args:
      images: [n, height, width, 1 or 3], from 0 to 1; what lies outside is cut off.
      truth: boxes [n, m, 4] in pixels of the image and labels [n, m], -1 where there is none, such as a batch has; None
        draws none. Without `found` their classes are written in.
      found: boxes [n, d, 4], scores [n, d] and classes [n, d]; there is none where the class is -1 or the score not
        above `least`; None draws none.
      names: of the classes.
      path: the file.
      columns: images in a row.
      least: the score that a detection must have to be drawn.
    """
    images = np.clip(np.asarray(images, np.float32), 0, 1)
    n, height, width = images.shape[:3]
    columns = max(1, min(columns, n))
    rows = -(-n // columns)
    figure, axes = new_figure(rows, columns, (_SIDE * columns, _SIDE * rows * height / width))
    for i, axis in enumerate(axes.flat):
        axis.set_axis_off()
        if i >= n:
            continue
        picture = images[i].squeeze(-1) if images.shape[-1] == 1 else images[i]
        # Its edges are 0 and its sides, as those of boxes are.
        axis.imshow(picture, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0))
        axis.set_xlim(0, width)
        axis.set_ylim(height, 0)
        if truth is not None:
            for box, label in zip(np.asarray(truth["boxes"])[i], np.asarray(truth["labels"])[i]):
                if label >= 0:
                    _edge(axis, box, color="black", linewidth=1.4, alpha=0.5)  # so that white is seen on white
                    _edge(axis, box, color="white", linewidth=0.8, linestyle=(0, (4, 3)))
                    if found is None:
                        _write(axis, box, names[int(label)], "black")
        if found is not None:
            each = (np.asarray(found[name])[i] for name in ("boxes", "scores", "classes"))
            for box, score, label in sorted(zip(*each), key=lambda one: one[1]):  # the best ones on top
                if label >= 0 and score > least:
                    colour = f"C{int(label) % 10}"
                    _edge(axis, box, color=colour, linewidth=1.3)
                    _write(axis, box, f"{names[int(label)]} {score:.2f}", colour)
    save_figure(figure, path)


def _edge(axis, box, **style):
    x0, y0, x1, y1 = (float(edge) for edge in box)
    axis.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], **style)


def _write(axis, box, text, colour):
    style = {"facecolor": colour, "edgecolor": "none", "alpha": 0.75, "pad": 0.8}
    above = "bottom" if box[1] > 0.06 * axis.get_ylim()[0] else "top"  # inside the box where it begins at the edge
    axis.text(float(box[0]), float(box[1]), text, color="white", fontsize=5, va=above, bbox=style, clip_on=True)
