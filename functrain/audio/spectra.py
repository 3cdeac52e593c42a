"""Waves [..., samples] cut into frames, and their short-time Fourier transforms [..., frames, bins]."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from functrain import tree

Centre = Literal["none", "zero", "reflect"]
"""Where frame i lies. none: it begins at sample i * hop; zero, reflect: its middle is there, and what it needs before
the first sample and after the last is zeros, or the wave mirrored at its outermost samples."""

WINDOWS = {
    "rectangular": (1.0,),
    "hann": (0.5, 0.5),
    "hamming": (0.54, 0.46),
    "blackman": (0.42, 0.5, 0.08),
}
"""Each as its cosines: w[n] = a0 - a1 cos(2 pi n / N) + a2 cos(4 pi n / N) (Harris 1978)."""


def window(kind: str, length: int) -> np.ndarray:
    """A periodic window [length]: the sample that would follow is the first again, as overlapping frames need it.

    kind: one of `WINDOWS`.

    Raises:
      ValueError: an unknown kind.

    >>> window("hann", 4).round(3).tolist()
    [0.0, 0.5, 1.0, 0.5]
    """
    if kind not in WINDOWS:
        raise ValueError(f"window: found {kind!r}; expected one of {', '.join(WINDOWS)}")
    angle = 2 * np.pi * np.arange(length) / length
    cosines = [(-1) ** k * a * np.cos(k * angle) for k, a in enumerate(WINDOWS[kind])]
    return np.sum(cosines, axis=0)


def frame_count(length: Any, size: int, hop: int, *, centre: Centre = "zero") -> Any:
    """How many frames a wave has: 1 + (length - size) // hop, or centred 1 + length // hop for an even size.

    Of a batch of clips filled up with zeros, the first frame_count(length) frames of each are its own. With "none" and
    "zero" they are those that it would have alone; with "reflect" those near its end see zeros instead.

    length: in samples, an int or an array of them, traced or not; the answer is of the same kind. It is 0 where a clip
    is shorter than a frame that is not centred.

    >>> frame_count(8000, 256, 80), frame_count(jnp.array([8000, 100]), 256, 80, centre="none").tolist()
    (101, [97, 0])
    """
    count = 1 + (length + 2 * _edge(size, centre) - size) // hop
    return max(count, 0) if isinstance(count, int) else jnp.maximum(count, 0)


def frames(x: jax.Array, size: int, hop: int, *, centre: Centre = "none") -> jax.Array:
    """Pieces of `size` samples, the next `hop` later: [..., samples] -> [..., frames, size].

    Raises:
      ValueError: the wave is shorter than a frame, or too short to be mirrored half a frame far.

    >>> frames(jnp.arange(5), 3, 2).tolist(), frames(jnp.arange(1, 5), 3, 2, centre="reflect").tolist()
    ([[0, 1, 2], [2, 3, 4]], [[2, 1, 2], [2, 3, 4]])
    """
    samples, edge = x.shape[-1], _edge(size, centre)
    if edge:
        if centre == "reflect" and samples <= edge:
            raise ValueError(f"{samples} samples cannot be mirrored {edge} far; frames of {size} need more than that")
        pads = [(0, 0)] * (x.ndim - 1) + [(edge, edge)]
        x = jnp.pad(x, pads, mode="reflect" if centre == "reflect" else "constant")
    count = frame_count(samples, size, hop, centre=centre)
    if not count:
        raise ValueError(f"{samples} samples are too few for a frame of {size}")
    return x.at[..., _places(count, size, hop)].get(mode="promise_in_bounds")


def stft(
    x: jax.Array,
    *,
    size: int,
    hop: int,
    window: str = "hann",
    length: int | None = None,
    centre: Centre = "zero",
) -> jax.Array:
    """X[t, k] = sum over n of w[n] x_t[n] exp(-2 pi i n k / size), x_t frame t: the short-time Fourier transform.

    Args:
      x: [..., samples].
      size: of a frame and of its transform, in samples.
      hop: samples from a frame to the next.
      window: one of `WINDOWS`, periodic.
      length: of the window, which lies in the middle of the frame, zeros around it; None is all of it.
      centre: where a frame lies; see `Centre`.

    Returns:
      [..., frames, size // 2 + 1], complex; bin k is the frequency k * rate / size.

    Raises:
      ValueError: x is not of floating point or shorter than a frame, the window is longer than a frame or unknown.

    >>> jnp.abs(stft(jnp.cos(jnp.pi / 2 * jnp.arange(8.0)), size=4, hop=4, window="rectangular"))[1].round(3).tolist()
    [0.0, 2.0, 0.0]
    """
    pieces = frames(wave(x), size, hop, centre=centre)
    return jnp.fft.rfft(pieces * _taper(window, size, length).astype(pieces.dtype))


def istft(
    spectrum: jax.Array,
    *,
    size: int,
    hop: int,
    window: str = "hann",
    length: int | None = None,
    centre: Centre = "zero",
    samples: int | None = None,
) -> jax.Array:
    """The wave whose `stft` is nearest to a spectrum, and the wave itself where the spectrum is one's.

    x[n] = sum over t of w x_t / sum over t of w^2, at sample n of each frame that has it (Griffin and Lim 1984, eq. 6).

    Args:
      spectrum: [..., frames, size // 2 + 1].
      samples: how many there are; None is as many as the frames tell for sure, perhaps up to hop - 1 too few.

    Returns:
      [..., samples].

    Raises:
      ValueError: samples that no window sees: behind the last frame, between short ones, or the first, uncentred, of a
        window that begins with 0.

    >>> x = jnp.arange(10.0)
    >>> bool(jnp.allclose(istft(stft(x, size=4, hop=2), size=4, hop=2, samples=10), x, atol=1e-5))
    True
    """
    pieces, taper = jnp.fft.irfft(spectrum, size), _taper(window, size, length)
    count, edge = spectrum.shape[-2], _edge(size, centre)
    at, total = _places(count, size, hop), hop * (count - 1) + size
    samples = total - 2 * edge if samples is None else samples
    weight = np.bincount(at.ravel(), np.tile(taper**2, count), edge + samples)[edge : edge + samples]
    if unseen := int((weight < 1e-10).sum()):
        raise ValueError(f"{unseen} samples lie in no window of {count} frames of {size}, {hop} apart")
    summed = jnp.zeros((*pieces.shape[:-2], total), pieces.dtype).at[..., at].add(pieces * taper.astype(pieces.dtype))
    return summed[..., edge : edge + samples] / weight.astype(pieces.dtype)


def spectrogram(
    x: jax.Array,
    *,
    size: int,
    hop: int,
    window: str = "hann",
    length: int | None = None,
    centre: Centre = "zero",
) -> jax.Array:
    """The power |X|^2 of the `stft`: [..., samples] -> [..., frames, size // 2 + 1], with finite slopes at silence.

    >>> spectrogram(jnp.ones(4), size=4, hop=4, window="rectangular", centre="none").tolist()
    [[16.0, 0.0, 0.0]]
    """
    spectrum = stft(x, size=size, hop=hop, window=window, length=length, centre=centre)
    return jnp.square(spectrum.real) + jnp.square(spectrum.imag)


def wave(x: Any) -> jax.Array:
    """x in at least float32.

    Raises:
      ValueError: x is not of floating point: whole numbers are no samples in -1..1.
    """
    if not tree.is_float(x):
        raise ValueError(f"a wave has samples in -1..1 of floating point; found {x.dtype}")
    return tree.wide(x)


def _edge(size, centre):
    """How many samples are added on either side."""
    if centre not in ("none", "zero", "reflect"):
        raise ValueError(f"centre: found {centre!r}; expected one of none, zero, reflect")
    return 0 if centre == "none" else size // 2


def _places(count, size, hop):
    """Which samples each frame has, [count, size]."""
    return np.arange(count)[:, None] * hop + np.arange(size)


def _taper(kind, size, length):
    """The window, in the middle of a frame."""
    length = size if length is None else length
    if not 1 <= length <= size:
        raise ValueError(f"length: found a window of {length} samples; expected 1 to {size}, the size of a frame")
    before = (size - length) // 2
    return np.pad(window(kind, length), (before, size - length - before))
