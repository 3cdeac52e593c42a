"""Frames as a GIF."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def animation(frames: Sequence[np.ndarray], path: Path, seconds: float = 0.05) -> list[Path]:
    """Write the frames as a GIF that repeats, where Pillow is installed: [path], or [] with a note.

    Args:
      frames: uint8 [height, width, 3] each, one or more.
      path: of the file.
      seconds: how long each is shown; a GIF counts hundredths.
    """
    try:
        from PIL import Image  # of the extra `images`
    except ImportError:
        warnings.warn(f"{path.name} is not drawn: pip install 'functrain[images]'", stacklevel=2)
        return []
    first, *others = [Image.fromarray(f).quantize(32) for f in frames]
    first.save(path, save_all=True, append_images=others, duration=round(1000 * seconds), loop=0)
    return [path]
