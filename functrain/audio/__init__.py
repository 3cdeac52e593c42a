"""Audio: waves into spectra and features, pure and on the device.

A wave x is [..., samples], of floating point, in -1..1; all that stands before the last axis is a batch. Everything is
computed in at least float32; float64 gives float64. Time comes before frequency: spectra are [..., frames, bins].

>>> import jax.numpy as jnp
>>> x = jnp.sin(2 * jnp.pi * 440 / 8000 * jnp.arange(8000.0))
>>> mel = log_mel(x, rate=8000, size=256, hop=80, mels=40)
>>> mel.shape, mfcc(mel, 13).shape, deltas(mel).shape
((101, 40), (101, 13), (101, 40))
"""

from functrain.audio.features import decibels, deltas, log_mel, mel_filters, mfcc
from functrain.audio.front import MFCC, AnyFeatures, LogMel, MuLaw, Spectrogram, Wave
from functrain.audio.spectra import frame_count, frames, istft, spectrogram, stft, window
from functrain.audio.waves import mu_law_decode, mu_law_encode, resample, sample_count

__all__ = [
    "MFCC",
    "AnyFeatures",
    "LogMel",
    "MuLaw",
    "Spectrogram",
    "Wave",
    "decibels",
    "deltas",
    "frame_count",
    "frames",
    "istft",
    "log_mel",
    "mel_filters",
    "mfcc",
    "mu_law_decode",
    "mu_law_encode",
    "resample",
    "sample_count",
    "spectrogram",
    "stft",
    "window",
]
