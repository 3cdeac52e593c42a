"""Comparing in float64, where two correct programs differ by rounding alone."""

import numpy as np


def draw(seed, *shape):
    """Normal numbers, the same for both sides."""
    return np.random.default_rng(seed).normal(size=shape)


def numbers(x):
    """An array of NumPy from one of jax, or from a tensor of torch."""
    return x.detach().numpy() if hasattr(x, "detach") else np.asarray(x)


def agree(ours, theirs, tolerance=1e-13, size=None):
    """Equal shapes, float64 on both sides, and no element off by more than tolerance * size.

    size: what an error is measured by; None is the largest of theirs. Then an array of zeros must be met exactly; nan
    agrees with nothing.
    """
    ours, theirs = numbers(ours), numbers(theirs)
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype == np.float64
    error, size = np.max(np.abs(ours - theirs)), np.max(np.abs(theirs)) if size is None else size
    assert error <= tolerance * size, f"off by {error / size if size else error:.1e}, allowed {tolerance:.0e}"
