"""A picture of spectrograms, as PNG: waves of several kinds, a row each."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from functrain.observe.figures import new_figure, save_figure

_MOST = 10
"""Waves drawn of each kind, a column each."""
_RANGE = 80.0
"""Decibels below the loudest that are drawn."""


def spectrogram_picture(
    rows: Mapping[str, Sequence[np.ndarray | None]], rate: int, names: Sequence[str], path: Path
) -> None:
    """Spectrograms of waves [samples], the first ten of each row, over seconds and kilohertz.

    rows: the title of each row -> its waves, of one number in each; None leaves a place empty.
    rate: samples a second.
    names: of the columns.
    """
    columns = min(_MOST, *map(len, rows.values()))
    figure, axes = new_figure(len(rows), columns, (1.5 * columns + 0.8, 1.9 * len(rows) + 0.5))
    axes = axes.reshape(len(rows), columns)
    for line, (title, waves) in zip(axes, rows.items()):
        for axis, wave in zip(line, waves):
            axis.tick_params(labelsize=6)
            if wave is None:
                axis.set(xticks=[], yticks=[])
                continue
            power, seconds, hertz = _power(np.asarray(wave, np.float64), rate)
            picture = {"origin": "lower", "aspect": "auto", "cmap": "magma", "vmin": -_RANGE, "vmax": 0}
            axis.imshow(power.T, extent=(0, seconds, 0, hertz / 1000), **picture)
        line[0].set_ylabel(f"{title}\nkHz", fontsize=8)
    for axis, name in zip(axes[0], names):
        axis.set_title(str(name), fontsize=8)
    axes[-1, 0].set_xlabel("seconds", fontsize=8)
    save_figure(figure, path)


def _power(wave: np.ndarray, rate: int) -> tuple[np.ndarray, float, float]:
    """Decibels [frames, bins] below the loudest, of Hann windows of 32 ms every 8 ms; seconds and hertz at the ends."""
    size, hop = max(rate * 32 // 1000, 16), max(rate * 8 // 1000, 4)
    padded = np.pad(wave, (0, max(size - len(wave), 0)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop] * np.hanning(size)
    power = np.abs(np.fft.rfft(frames)) ** 2
    return 10 * np.log10(np.maximum(power / max(power.max(), 1e-20), 1e-12)), len(wave) / rate, rate / 2
