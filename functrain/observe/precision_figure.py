"""A picture of what low precision does to a gradient, as PNG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from functrain.observe.figures import new_figure, save_figure

_LOW, _EXACT = "#0b6e99", "#8a8a8a"
_LEAST = 1e-8
"""Where the axis of errors begins; a smaller one has no bar."""


def precision_picture(
    policy: str,
    low: str,
    groups: Sequence[tuple[str, float, float]],
    classes: Sequence[tuple[str, float]],
    parts: Sequence[tuple[str, float]],
    path: Path,
) -> None:
    """Three panels of bars on one logarithmic axis of relative errors.

    Args:
      policy, low: its kind, and the dtype that classes and parts are in.
      groups: (parameters, error by the policy, in float32).
      classes: (class of primitives, error where it alone is in the low dtype).
      parts: (class and part of the model, the same).
    """
    tallest = max(len(groups), len(classes), len(parts), 4)
    figure, axes = new_figure(1, 3, (14.0, 1.2 + 0.24 * tallest))
    panels: list[tuple[str, Sequence[tuple[Any, ...]]]] = [
        ("gradient of parameters, by the policy", groups),
        (f"all else exact, a class of primitives in {low}", classes),
        (f"all else exact, one part's class in {low}", parts),
    ]
    errors = [error for _, rows in panels for _, *found in rows for error in found if np.isfinite(error)]
    for axis, (title, rows) in zip(axes[0], panels):
        at = np.arange(len(rows))
        for i, (colour, label) in enumerate(((_LOW, policy), (_EXACT, "float32"))):
            heights = [max(row[1 + i], _LEAST) for row in rows if len(row) > 1 + i]
            if heights:
                width = 0.8 / (len(rows[0]) - 1)
                axis.barh(at + width * (i - (len(rows[0]) - 2) / 2), heights, width, color=colour, label=label)
        axis.set_yticks(at, [row[0] for row in rows], fontsize=7)
        axis.set_ylim(tallest - 0.4, -0.6)  # bars are as thick in every panel
        axis.set_xscale("log")
        axis.set_xlim(_LEAST, 2 * max([*errors, 1e-6]))
        axis.set_title(title, fontsize=9)
        axis.grid(axis="x", alpha=0.3)
        axis.tick_params(axis="x", labelsize=7)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[0][0].legend(fontsize=7, frameon=False, loc="lower left")
    figure.supxlabel("relative error of the gradient", fontsize=8)
    save_figure(figure, path)
