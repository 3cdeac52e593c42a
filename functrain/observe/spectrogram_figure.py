"""A picture of spectrograms, as PNG: waves of several kinds, a row each."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from functrain.observe.figures import new_figure, save_figure

_MOST = 10
"""Waves drawn of each kind, a column each."""
_RANGE = 80.0
"""Decibels below the loudest that are drawn."""


def spectrogram_picture(rows: Mapping[str, Any], rate: int, names: Sequence[str], path: Path) -> None:
    """Spectrograms of waves [n, samples], the first ten of each row, over seconds and kilohertz.

    rows: the title of each row -> its waves. rate: samples a second. names: of the columns.
    """
    rows = {title: np.asarray(waves, np.float64)[:_MOST] for title, waves in rows.items()}
    columns = max(map(len, rows.values()))
    figure, axes = new_figure(len(rows), columns, (1.5 * columns + 0.8, 1.9 * len(rows) + 0.5))
    for line, (title, waves) in zip(axes.reshape(len(rows), columns), rows.items()):
        for axis, wave in zip(line, waves):
            power, times, hertz = _power(wave, rate)
            picture = {"origin": "lower", "aspect": "auto", "cmap": "magma", "vmin": -_RANGE, "vmax": 0}
            axis.imshow(power.T, extent=(0, times, 0, hertz / 1000), **picture)
            axis.tick_params(labelsize=6)
        for axis in line[len(waves) :]:
            axis.set_visible(False)
        line[0].set_ylabel(f"{title}\nkHz", fontsize=8)
    for axis, name in zip(axes.reshape(len(rows), columns)[0], names):
        axis.set_title(str(name), fontsize=8)
    axes.reshape(len(rows), columns)[-1, 0].set_xlabel("seconds", fontsize=8)
    save_figure(figure, path)


def _power(wave: np.ndarray, rate: int) -> tuple[np.ndarray, float, float]:
    """Decibels [frames, bins] below the loudest, of Hann windows of 32 ms every 8 ms; seconds and hertz at the ends."""
    size, hop = max(rate * 32 // 1000, 16), max(rate * 8 // 1000, 4)
    padded = np.pad(wave, (0, max(size - len(wave), 0)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop] * np.hanning(size)
    power = np.abs(np.fft.rfft(frames)) ** 2
    return 10 * np.log10(np.maximum(power / max(power.max(), 1e-20), 1e-12)), len(wave) / rate, rate / 2
