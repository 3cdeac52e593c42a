"""TensorBoard files, written by tensorboardX: scalars, what is seen by parameter, pictures, hyperparameters."""

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from functrain.observe.seen import Seen, drawn


def _summary_writer():
    """tensorboardX's SummaryWriter, imported late and without torch: it would import that wherever it is installed."""
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]
    try:
        from tensorboardX import SummaryWriter
    finally:
        if hidden:
            del sys.modules["torch"]
    return SummaryWriter


class TensorBoard:
    """tensorboard/: `train/loss`, `validation/accuracy`, `gradient_norm/layer0/kernel` and the like."""

    def __init__(self, folder: Path, resume_at: int | None = None):
        """Start, or go on after step `resume_at`: what a killed run had written past it is dropped."""
        self._writer = _summary_writer()(str(folder), purge_step=None if resume_at is None else resume_at + 1)

    def scalars(self, step: int, split: str, values: dict[str, float]) -> None:
        """One point a metric."""
        self._add({f"{split}/{name}": value for name, value in values.items()}, step)

    def layers(self, step: int, seen: Seen) -> None:
        """Numbers under their own names; histograms on the pages HISTOGRAMS and DISTRIBUTIONS."""
        self._add(seen.numbers, step)
        for name, histogram in seen.histograms.items():
            counts, edges = drawn(histogram)
            if not len(counts):  # nothing was counted, or nothing finite
                continue
            # Ends and sums are those of the bins' middles, near enough for a page that draws neither sum.
            middles = (edges[1:] + edges[:-1]) / 2
            sums = float(counts @ middles), float(counts @ middles**2)
            ends = float(edges[0]), float(edges[-1])
            self._writer.add_histogram_raw(
                name, *ends, int(counts.sum()), *sums, edges[1:].tolist(), counts.tolist(), step
            )

    def _add(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            if math.isfinite(value):  # there is none where nothing was counted, such as an episode that ended
                self._writer.add_scalar(name, value, step)

    def pictures(self, step: int, paths: Mapping[str, Path]) -> None:
        """On the page IMAGES."""
        from matplotlib.image import imread  # late, as all of matplotlib

        for name, path in paths.items():
            if path.suffix == ".gif":  # it shows still pictures
                continue
            self._writer.add_image(name, imread(path)[..., :3], step, dataformats="HWC")

    def hyperparameters(self, config: dict[str, Any], results: dict[str, float]) -> None:
        """The config beside what it reached, for TensorBoard's HPARAMS page."""
        plain = {k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in config.items()}
        finite = {k: v for k, v in results.items() if math.isfinite(v)}
        # In a folder of its own: files are named by the second, and one of the same second would replace the other.
        self._writer.add_hparams(plain, finite, name="hparams")

    def flush(self) -> None:
        """To the disk."""
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
