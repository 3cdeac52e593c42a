"""Audio: spectra and features are what loops over their formulas give; augmentation draws what it should."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import agree, draw

from functrain import audio
from functrain.audio import spectra
from functrain.augment.spectra import MaskFrequency, MaskTime
from functrain.augment.waves import Gain, Shift, Speed, WhiteNoise
from functrain.config import ConfigError, parse

pytestmark = pytest.mark.usefixtures("quick")

KEY = jax.random.key(0)


def compiled(f, *args, **settings):
    """f(*args, **settings), compiled with the settings as constants."""
    return jax.jit(functools.partial(f, **settings))(*map(jnp.asarray, args))


# -- spectra --------------------------------------------------------------------------------------


def test_windows_are_periodic():
    """NumPy's are symmetric: the periodic one of N is the symmetric one of N + 1 without its last sample."""
    for kind, symmetric in {"hann": np.hanning, "hamming": np.hamming, "blackman": np.blackman}.items():
        for length in (1, 8, 9):
            np.testing.assert_allclose(audio.window(kind, length), symmetric(length + 1)[:-1], atol=1e-15)
    np.testing.assert_array_equal(audio.window("rectangular", 3), 1)
    with pytest.raises(ValueError, match=r"window: found 'hanning'; expected one of rectangular, hann"):
        audio.window("hanning", 8)


FRAMES = [(20, 8, 3), (21, 8, 4), (9, 8, 8), (8, 8, 5), (17, 5, 2), (7, 3, 7), (30, 4, 9)]


def cut(x, size, hop, centre):
    """The frames of one wave, by a loop."""
    if centre != "none":
        x = np.pad(x, size // 2, mode="reflect" if centre == "reflect" else "constant")
    return np.stack([x[start : start + size] for start in range(0, len(x) - size + 1, hop)])


@pytest.mark.parametrize("centre", ["none", "zero", "reflect"])
def test_frames_and_their_count(centre):
    """Those of a loop; as many as `frame_count` says of an int, of an array and of a traced one."""
    count = jax.jit(audio.frame_count, static_argnums=(1, 2), static_argnames="centre")
    for samples, size, hop in FRAMES:
        x = draw(0, 2, samples).astype(np.float32)
        found = compiled(lambda x, *, size=size, hop=hop: audio.frames(x, size, hop, centre=centre), x)
        np.testing.assert_array_equal(found, np.stack([cut(row, size, hop, centre) for row in x]))
        told = audio.frame_count(samples, size, hop, centre=centre)
        assert isinstance(told, int)
        assert told == found.shape[1]
        assert count(jnp.array([samples]), size, hop, centre=centre).tolist() == [told]
    assert audio.frame_count(3, 4, 2, centre="none") == 0
    with pytest.raises(ValueError, match="3 samples are too few for a frame of 4"):
        audio.frames(jnp.zeros(3), 4, 2)
    with pytest.raises(ValueError, match="4 samples cannot be mirrored 4 far"):
        audio.frames(jnp.zeros(4), 8, 2, centre="reflect")
    with pytest.raises(ValueError, match="centre: found 'constant'; expected one of none, zero, reflect"):
        audio.frames(jnp.zeros(8), 4, 2, centre="constant")  # pyright: ignore


@pytest.mark.parametrize("centre", ["none", "zero"])
def test_ragged_clips_have_the_frames_that_they_have_alone(centre):
    """The first frame_count(length) frames of a clip with zeros behind it, deltas too."""
    lengths, size, hop = [40, 17, 8], 8, 3
    x = draw(0, 3, 40).astype(np.float32) * (np.arange(40) < np.array(lengths)[:, None])
    given: dict[str, Any] = {"rate": 8000, "size": size, "hop": hop, "mels": 2, "centre": centre}
    together = compiled(audio.log_mel, x, **given)
    counts = audio.frame_count(jnp.array(lengths), size, hop, centre=centre)
    slopes = jax.jit(audio.deltas)
    moving = slopes(together, length=counts)
    for i, length in enumerate(lengths):
        alone = compiled(audio.log_mel, x[i, :length], **given)
        assert len(alone) == counts[i]
        np.testing.assert_allclose(together[i, : len(alone)], alone, rtol=1e-5)
        np.testing.assert_allclose(moving[i, : len(alone)], slopes(alone), atol=1e-4)


@pytest.mark.parametrize(
    ("size", "hop", "window", "length"), [(8, 3, "hann", 5), (9, 4, "hamming", 6), (8, 8, "blackman", 8)]
)
def test_stft_is_the_sum_of_its_formula(float64, size, hop, window, length):
    """Frame by frame and bin by bin; the window in the middle of the frame."""
    x = draw(1, 30)
    before = (size - length) // 2
    taper = np.zeros(size)
    taper[before : before + length] = audio.window(window, length)
    for centre in ("none", "zero", "reflect"):
        given = {"size": size, "hop": hop, "window": window, "length": length, "centre": centre}
        expected = np.array(
            [
                [
                    sum(taper[n] * piece[n] * np.exp(-2j * np.pi * n * k / size) for n in range(size))
                    for k in range(size // 2 + 1)
                ]
                for piece in cut(x, size, hop, centre)
            ]
        )
        found = compiled(audio.stft, x, **given)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)
        power = compiled(audio.spectrogram, x, **given)
        np.testing.assert_allclose(power, np.abs(expected) ** 2, rtol=0, atol=1e-12)


def test_a_tone_stands_in_its_bin():
    """Under a Hann window a cosine of amplitude a on bin k has a N / 4 there less half that beside it: a N / 2 times
    1/2 and 1/4; elsewhere nothing."""
    size, k, a = 64, 10, 0.5
    x = a * np.cos(2 * np.pi * k / size * np.arange(256)).astype(np.float32)
    found = np.abs(compiled(audio.stft, x, size=size, hop=64, centre="none"))
    expected = np.zeros(size // 2 + 1)
    expected[k - 1 : k + 2] = a * size / 2 * np.array([0.25, 0.5, 0.25])
    np.testing.assert_allclose(found, np.tile(expected, (4, 1)), atol=1e-4)


@pytest.mark.parametrize(
    ("size", "hop", "window", "length", "centre"),
    [
        (8, 2, "hann", None, "zero"),
        (8, 4, "hann", None, "reflect"),
        (16, 3, "blackman", 12, "zero"),
        (9, 4, "hamming", None, "none"),
        (8, 8, "rectangular", None, "none"),
    ],
)
def test_istft_undoes_stft(float64, size, hop, window, length, centre):
    """All samples, the first and the last too, where frames reach over the ends; else all that frames hold."""
    samples = 57 if centre != "none" else hop * 6 + size
    x = draw(2, 2, samples)
    given = {"size": size, "hop": hop, "window": window, "length": length, "centre": centre}
    back = compiled(audio.istft, compiled(audio.stft, x, **given), **given, samples=samples)
    agree(back, x, 1e-14)
    shorter = compiled(audio.istft, compiled(audio.stft, x, **given), **given)
    assert samples - hop < shorter.shape[1] <= samples
    agree(shorter, x[:, : shorter.shape[1]], 1e-14)


def test_istft_refuses_what_no_window_sees():
    """The first sample under a Hann window; samples behind the last frame; gaps between frames."""
    with pytest.raises(ValueError, match="1 samples lie in no window of 5 frames of 8, 2 apart"):
        audio.istft(jnp.zeros((5, 5), complex), size=8, hop=2, centre="none")
    with pytest.raises(ValueError, match="3 samples lie in no window of 2 frames of 8, 8 apart"):
        audio.istft(jnp.zeros((2, 5), complex), size=8, hop=8, centre="none", window="rectangular", samples=19)
    with pytest.raises(ValueError, match="2 samples lie in no window of 2 frames of 4, 6 apart"):
        audio.istft(jnp.zeros((2, 3), complex), size=4, hop=6, centre="none", window="rectangular")
    with pytest.raises(ValueError, match="length: found a window of 9 samples; expected 1 to 8"):
        audio.stft(jnp.zeros(16), size=8, hop=2, length=9)


# -- features -------------------------------------------------------------------------------------


def mel(f, scale):
    """Hertz to mels, one number."""
    if scale == "htk":
        return 2595 * math.log10(1 + f / 700)
    return 3 * f / 200 if f < 1000 else 15 + 27 * math.log(f / 1000) / math.log(6.4)


def hertz(m, scale):
    """Mels to hertz, by halving the interval."""
    low, high = 0.0, 1e5
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if mel(middle, scale) < m else (low, middle)
    return low


@pytest.mark.parametrize("scale", ["slaney", "htk"])
def test_mel_filters_are_triangles(scale):
    """Corners evenly spaced in mels, straight lines between them, by a loop; normed, area 1."""
    rate, size, mels, low, high = 8000, 400, 12, 60.0, 3800.0
    step = (mel(high, scale) - mel(low, scale)) / (mels + 1)
    corners = [hertz(mel(low, scale) + i * step, scale) for i in range(mels + 2)]
    expected = np.zeros((size // 2 + 1, mels))
    for k in range(size // 2 + 1):
        f = k * rate / size
        for m in range(mels):
            a, b, c = corners[m : m + 3]
            if a <= f <= c:
                expected[k, m] = (f - a) / (b - a) if f <= b else (c - f) / (c - b)
    given = {"low": low, "high": high, "scale": scale}
    np.testing.assert_allclose(audio.mel_filters(rate, size, mels, norm=False, **given), expected, atol=1e-11)
    areas = audio.mel_filters(rate, size * 16, mels, **given).sum(0) * rate / (size * 16)
    np.testing.assert_allclose(areas, 1, atol=2e-3)
    heights = audio.mel_filters(rate, size * 16, mels, norm=False, **given).max(0)
    np.testing.assert_allclose(heights, 1, atol=0.02)


def test_mel_filters_say_what_is_wrong():
    """Limits, the scale, and filters that see nothing."""
    with pytest.raises(ValueError, match="found 0 and 4001 Hz; expected 0 <= low < high <= 4000"):
        audio.mel_filters(8000, 256, 40, high=4001.0)
    with pytest.raises(ValueError, match="scale: found 'bark'; expected one of slaney, htk"):
        audio.mel_filters(8000, 256, 40, scale="bark")  # pyright: ignore
    with pytest.warns(UserWarning, match="1 of 20 mel filters hold no bin of 17; use fewer"):
        audio.mel_filters(8000, 32, 20)


GIVEN: dict[str, Any] = {"rate": 8000, "size": 64, "hop": 16, "mels": 10}


def test_log_mel_is_the_natural_logarithm(float64):
    """Of the filtered power; twice the amplitude adds ln 4; below the floor stands its logarithm."""
    x = draw(3, 400) * 0.1
    found = compiled(audio.log_mel, x, **GIVEN)
    taper = audio.window("hann", 64)
    power = np.abs(np.fft.rfft(cut(x, 64, 16, "zero") * taper)) ** 2
    agree(found, np.log(power @ audio.mel_filters(8000, 64, 10)), 1e-12)
    np.testing.assert_allclose(compiled(audio.log_mel, 2 * x, **GIVEN) - found, math.log(4), atol=1e-12)
    np.testing.assert_array_equal(compiled(audio.log_mel, 0 * x, **GIVEN, floor=1e-6), np.log(1e-6))


def test_log_mel_has_finite_slopes(float64):
    """Of silence they are 0; elsewhere those of finite differences."""

    def total(x):
        return jnp.cos(audio.log_mel(x, **GIVEN)).sum()

    slopes = jax.jit(jax.grad(total))
    np.testing.assert_array_equal(slopes(jnp.zeros(200)), 0)
    half = jnp.asarray(draw(4, 200) * (np.arange(200) < 90))
    x, direction, eps = half, jnp.asarray(draw(5, 200)), 1e-6
    assert jnp.isfinite(slopes(x)).all()
    assert (slopes(x) != 0).any()
    x = x + 0.1 * direction
    expected = (total(x + eps * direction) - total(x - eps * direction)) / (2 * eps)
    np.testing.assert_allclose(slopes(x) @ direction, expected, rtol=1e-6)


def test_features_of_a_batch_are_those_of_each(float64):
    """Batched, mapped and one by one; float64 stays, float32 and lower become float32; whole numbers are refused."""
    x = draw(6, 2, 3, 200) * 0.1

    def features(x):
        mel = audio.log_mel(x, **GIVEN)
        db = audio.decibels(audio.spectrogram(x, size=64, hop=16))
        return mel, audio.mfcc(mel, 5), audio.deltas(mel), db, audio.resample(x, 3, 2)

    batched = compiled(features, x)
    mapped = jax.jit(jax.vmap(jax.vmap(features)))(jnp.asarray(x))
    for a, b, one in zip(batched, mapped, features(jnp.asarray(x[1, 2]))):
        assert a.shape[:2] == (2, 3)
        agree(a, b)
        agree(a[1, 2], one)
    for dtype in (jnp.float32, jnp.float16):
        given = jax.ShapeDtypeStruct((2, 200), dtype)
        assert {y.dtype.name for y in jax.eval_shape(features, given)} == {"float32"}
    for f in (functools.partial(audio.stft, size=8, hop=4), audio.mu_law_encode, lambda x: audio.resample(x, 2, 1)):
        with pytest.raises(ValueError, match="of floating point; found int16"):
            f(jnp.zeros(16, jnp.int16))


def test_decibels():
    """10 log10, the floor, and for each example by itself no more than top_db below its loudest."""
    power = jnp.array([[[1.0, 1e-3]], [[1e4, 1e-12]]])
    np.testing.assert_allclose(audio.decibels(power, top_db=None)[:, 0], [[0, -30], [40, -100]], atol=1e-4)
    np.testing.assert_allclose(audio.decibels(power, top_db=50)[:, 0], [[0, -30], [40, -10]], atol=1e-4)
    assert jnp.isfinite(jax.grad(lambda p: audio.decibels(p).sum())(jnp.zeros((1, 2)))).all()


def test_mfcc_is_orthonormal(float64):
    """All coefficients keep lengths and angles; a half cosine over the mels is coefficient 1 alone."""
    basis = np.asarray(audio.mfcc(jnp.eye(10), 10))
    np.testing.assert_allclose(basis.T @ basis, np.eye(10), atol=1e-14)
    wave = np.cos(np.pi * (np.arange(10) + 0.5) / 10)
    np.testing.assert_allclose(audio.mfcc(jnp.asarray(wave), 4), [0, math.sqrt(5), 0, 0], atol=1e-14)
    with pytest.raises(ValueError, match="count: found 11 coefficients; expected 1 to 10"):
        audio.mfcc(jnp.zeros(10), 11)


@pytest.mark.parametrize("reach", [1, 2, 4])
def test_deltas_are_slopes_of_lines(float64, reach):
    """By least squares through the frames around each, the first and last standing for those outside."""
    x = draw(7, 3, 12, 2)
    around = np.arange(-reach, reach + 1)
    expected = np.zeros_like(x)
    for t in range(12):
        near = x[:, np.clip(t + around, 0, 11)]
        for i in range(3):
            expected[i, t] = np.polyfit(around, near[i], 1)[0]
    agree(compiled(audio.deltas, x, reach=reach), expected, 1e-13)
    with pytest.raises(ValueError, match="reach: found 0 frames"):
        audio.deltas(jnp.zeros((5, 1)), reach=0)


def test_what_a_config_says_is_what_is_computed():
    """Windows of 25 ms every 10, in frames of a power of 2; slopes of slopes; as many codes as asked for."""
    x, length = jnp.asarray(draw(11, 2, 800).astype(np.float32) * 0.1), jnp.array([800, 500])
    given: dict[str, Any] = {"mels": 10, "low": 100.0, "high": 3000.0}
    front = audio.LogMel(**given, deltas=2)
    found, frames = jax.jit(lambda x: front.apply(x, length, 8000))(x)
    mel = compiled(audio.log_mel, x, rate=8000, size=256, hop=80, length=200, floor=1e-6, **given)
    slopes = audio.deltas(mel, length=frames)
    expected = jnp.concatenate([mel, slopes, audio.deltas(slopes, length=frames)], -1)
    assert frames.tolist() == [11, 7]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(audio.MuLaw(levels=16).apply(x, length, 8000)[0], audio.mu_law_encode(x, levels=16))


# -- waves ----------------------------------------------------------------------------------------


def test_mu_law_is_wavenets(float64):
    """The formula's codes, each decoded and encoded again; beyond -1..1 the last ones; finer near 0."""
    x = np.concatenate([np.linspace(-1, 1, 5001), [1e-9, -1e-9]])
    f = np.sign(x) * np.log(1 + 255 * np.abs(x)) / np.log(256)
    codes = compiled(audio.mu_law_encode, x)
    assert codes.dtype == jnp.int32
    np.testing.assert_array_equal(codes, np.floor((f + 1) / 2 * 255 + 0.5))
    for levels in (256, 16):
        every = jnp.arange(levels)
        again = compiled(audio.mu_law_encode, compiled(audio.mu_law_decode, every, levels=levels), levels=levels)
        np.testing.assert_array_equal(again, every)
    y = compiled(audio.mu_law_decode, codes)
    assert y.dtype == jnp.float64
    error = np.abs(y - x)
    assert error.max() < 0.0221  # half a step at 1: ln(256) / 255
    assert error[np.abs(x) < 0.01].max() < 0.0004
    assert audio.mu_law_encode(jnp.array([-7.0, 7.0])).tolist() == [0, 255]


@pytest.mark.parametrize(("old", "new"), [(3, 2), (2, 3), (44100, 16000), (8000, 16000), (5, 1)])
def test_resample_is_the_sum_of_its_formula(float64, old, new):
    """Sample by sample, the sum over all samples of the windowed sinc at their distance."""
    x, lobes, rolloff = draw(8, 2, 50), 4, 0.9
    found = compiled(lambda x: audio.resample(x, old, new, lobes=lobes, rolloff=rolloff), x)
    count = math.ceil(50 * new / old)
    cutoff = rolloff * min(old, new)
    expected = np.zeros((2, count))
    for m in range(count):
        for k in range(50):
            t = cutoff * (k / old - m / new)
            if abs(t) < lobes:
                expected[:, m] += cutoff / old * np.sinc(t) * np.cos(np.pi * t / 2 / lobes) ** 2 * x[:, k]
    agree(found, expected, 1e-13)
    assert audio.sample_count(50, old, new) == count
    traced = jax.jit(audio.sample_count, static_argnums=(1, 2))(jnp.array([50, 0, 10_000_000], jnp.int32), old, new)
    assert traced.tolist() == [count, 0, -(-10_000_000 * new // old)]
    assert traced.dtype == jnp.int32


def test_resample_keeps_what_fits_and_drops_the_rest():
    """A low tone is the same tone at the other rate; one above half the rate is gone; equal rates change nothing."""
    time = np.arange(1600) / 16000
    middle = slice(100, 700)
    low = np.sin(2 * np.pi * 1000 * time).astype(np.float32)
    found = compiled(lambda x: audio.resample(x, 16000, 8000), low)
    np.testing.assert_allclose(found[middle], low[::2][middle], atol=2e-3)
    high = np.sin(2 * np.pi * 6000 * time).astype(np.float32)
    assert np.abs(compiled(lambda x: audio.resample(x, 16000, 8000), high)[middle]).max() < 2e-3
    up = compiled(lambda x: audio.resample(x, 8000, 16000), low[::2])
    np.testing.assert_allclose(up[200:1400], low[200:1400], atol=2e-3)
    x = jnp.asarray(low)
    np.testing.assert_array_equal(audio.resample(x, 8000, 8000), x)
    with pytest.raises(ValueError, match="rates: found 8000 and 0"):
        audio.resample(x, 8000, 0)


# -- augmentation of waves ------------------------------------------------------------------------

WAVES = [Shift(share=0.5), WhiteNoise(), Speed(), Gain()]
LENGTHS = jnp.array([100, 40, 1, 0, 73], jnp.int32)


def batch(**others):
    """Waves whose sound has no zeros, and zeros behind it."""
    x = draw(0, 5, 100).astype(np.float32) * 0.1
    x = np.where(np.arange(100) < np.array(LENGTHS)[:, None], np.where(x == 0, 0.1, x), 0)
    return {"x": jnp.asarray(x), "y": jnp.arange(5), "length": LENGTHS} | others


def applied(one, given, seed=0):
    return jax.jit(one.apply)(given, key=jax.random.key(seed))


@pytest.mark.parametrize("one", WAVES, ids=lambda one: one.kind)
def test_waves_change_as_their_key_says(one):
    """The same key, the same bits; another key, other waves; past the length stay zeros; float16 stays float16."""
    given = batch()
    first, again, other = (applied(one, given, k) for k in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first["x"], other["x"])
    assert not np.array_equal(first["x"], given["x"])
    assert set(first) == set(given)
    assert first["length"].dtype == jnp.int32
    np.testing.assert_array_equal(jnp.where(jnp.arange(100) < first["length"][:, None], 0, first["x"]), 0)
    assert jnp.isfinite(first["x"]).all()
    if one.kind != "speed":
        np.testing.assert_array_equal(first["length"], LENGTHS)
    half = jax.eval_shape(one.apply, given | {"x": given["x"].astype(jnp.float16)}, key=KEY)
    assert half["x"].dtype == jnp.float16
    whole = {"x": given["x"][:1]}
    np.testing.assert_array_equal(
        applied(one, whole)["x"], applied(one, whole | {"length": jnp.array([100], jnp.int32)})["x"]
    )


@pytest.mark.parametrize("one", WAVES, ids=lambda one: one.kind)
def test_what_is_no_wave_is_refused(one):
    """Another rank, bytes, a length of another form; for those that move sound, targets of each sample."""
    for x, match in (
        (jnp.zeros((2, 3, 4)), r"x must be waves \[n, samples\]; found shape \(2, 3, 4\)"),
        (jnp.zeros((2, 3), jnp.int16), "x must be samples in -1..1 of floating point; found int16"),
    ):
        with pytest.raises(ValueError, match=match):
            one.apply({"x": x}, key=KEY)
    with pytest.raises(ValueError, match=r"x must be waves .*; found none"):
        one.apply({}, key=KEY)
    for length in (jnp.zeros(2), jnp.zeros((5, 1), jnp.int32)):
        with pytest.raises(ValueError, match=r"length must be whole numbers \[n\]; found .* for n = 5"):
            one.apply(batch(length=length), key=KEY)
    if one.kind in ("shift", "speed"):
        with pytest.raises(ValueError, match="mask lies on the samples and cannot follow"):
            one.apply(batch(mask=jnp.ones((5, 100))), key=KEY)


@pytest.mark.parametrize("one", [Shift(share=0.0), Speed(factor=(1.0, 1.0)), Gain(decibels=(0.0, 0.0))])
def test_nothing_is_done_where_nothing_is_asked(one):
    """Bit for bit the batch."""
    jax.tree.map(np.testing.assert_array_equal, applied(one, batch()), batch())


def test_ranges_are_checked():
    """The least first; no factor of 0; kinds are read from a config."""
    for cls, name, pair in (
        (WhiteNoise, "snr", [3.0, 1.0]),
        (Speed, "factor", [2.0, 1.0]),
        (Gain, "decibels", [1.0, -1.0]),
    ):
        with pytest.raises(ConfigError, match=rf"{name}: found .*; expected the least first"):
            parse(cls, {name: pair})
    with pytest.raises(ConfigError, match="factor"):
        parse(Speed, {"factor": [0.0, 1.0]})
    assert parse(Gain, {"kind": "gain", "decibels": [-3.0, 3.0]}) == Gain(decibels=(-3.0, 3.0))
    assert parse(MaskTime, {"kind": "mask_time", "width": 7}) == MaskTime(width=7)


def test_augmented_waves_eager_compiled_and_mapped_agree():
    """To rounding."""
    keys = jax.random.split(KEY, 2)
    one, given = Speed(), batch()
    mapped = jax.jit(jax.vmap(lambda key: one.apply(given, key=key)))(keys)
    for found in (jax.tree.map(lambda a: a[1], mapped), jax.jit(one.apply)(given, key=keys[1])):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, one.apply(given, key=keys[1]))


def test_shift_moves_by_every_distance_as_often():
    """Up to the share of each length, to both sides; zeros come in and nothing goes past the length."""
    n, samples, length = 4000, 12, 10
    x = jnp.where(jnp.arange(samples) < length, jnp.arange(1.0, samples + 1), 0)
    given = {"x": jnp.tile(x, (n, 1)), "length": jnp.full(n, length)}
    found = np.asarray(applied(Shift(share=0.35), given)["x"])
    expected = {}
    for s in range(-3, 4):
        row = np.zeros(samples)
        for i in range(length):
            if 0 <= i - s < length:
                row[i] = x[i - s]
        expected[tuple(row)] = s
    counts = np.bincount([expected[tuple(row)] + 3 for row in found], minlength=7)
    chi = ((counts - n / 7) ** 2 / (n / 7)).sum()
    assert chi < 6 + 4 * math.sqrt(12)


def test_noise_meets_its_ratio(float64):
    """Each example's power over that of what was added, both over its sound alone, is the ratio drawn: uniform in its
    range, and exact where the range is one number; silence stays silent."""
    length = jnp.asarray(np.random.default_rng(1).integers(30, 101, 2000))
    x = jnp.asarray(draw(9, 2000, 100)) * (jnp.arange(100) < length[:, None]) * jnp.linspace(0.01, 1, 2000)[:, None]

    def ratio(one):
        found = applied(one, {"x": x, "length": length})["x"]
        added = found - x
        return 10 * np.log10(np.sum(np.square(x), 1) / np.sum(np.square(added), 1)), np.asarray(added)

    exact, added = ratio(WhiteNoise(snr=(20.0, 20.0)))
    np.testing.assert_allclose(exact, 20, atol=1e-9)
    inside = np.arange(100) < np.asarray(length)[:, None]
    assert (added[~inside] == 0).all()
    scaled = added / np.sqrt((added**2).sum(1) / np.asarray(length))[:, None]
    pairs = inside[:, 1:]
    assert abs((scaled[:, 1:] * scaled[:, :-1])[pairs].mean()) < 4 / math.sqrt(pairs.sum())  # white
    assert abs((scaled[inside] ** 4).mean() - 3) < 0.15  # normal
    drawn, _ = ratio(WhiteNoise(snr=(0.0, 40.0)))
    assert 0 <= drawn.min() < 0.2
    assert 39.8 < drawn.max() <= 40
    assert abs(drawn.mean() - 20) < 4 * 40 / math.sqrt(12 * 2000)
    silent = applied(WhiteNoise(), {"x": jnp.zeros((2, 10))})["x"]
    np.testing.assert_array_equal(silent, 0)


def test_speed_reads_between_samples():
    """A ramp becomes steeper by the factor, and its length shorter; slower, its end is lost behind the last sample."""
    ramp = jnp.where(jnp.arange(60) < 41, jnp.arange(60.0), 0)
    for factor, after in ((1.25, 33), (2.0, 21), (0.8, 51), (0.5, 60)):
        found = applied(Speed(factor=(factor, factor)), {"x": ramp[None], "length": jnp.array([41])})
        assert found["length"].tolist() == [after]
        expected = np.where(np.arange(60) < after, np.arange(60) * factor, 0)
        np.testing.assert_allclose(found["x"][0], expected, rtol=1e-6)
    line = jnp.tile(jnp.arange(50.0), (2000, 1))
    slopes = np.asarray(applied(Speed(factor=(0.8, 1.2)), {"x": line})["x"])[:, 1]
    assert 0.8 <= slopes.min() < 0.802
    assert 1.198 < slopes.max() <= 1.2001
    assert abs(slopes.mean() - 1) < 4 * 0.4 / math.sqrt(12 * 2000)


def test_gain_is_in_decibels_of_amplitude():
    """A factor of 10 at 20 decibels; uniform in decibels."""
    x = jnp.full((2000, 3), 0.1)
    np.testing.assert_allclose(applied(Gain(decibels=(20.0, 20.0)), {"x": x})["x"], 1, rtol=1e-5)
    drawn = 20 * np.log10(np.asarray(applied(Gain(decibels=(-6.0, 6.0)), {"x": x})["x"]) / 0.1)
    assert np.ptp(drawn, 1).max() < 1e-4
    assert -6.001 < drawn.min() < -5.95
    assert 5.95 < drawn.max() < 6.001
    assert abs(drawn[:, 0].mean()) < 4 * 12 / math.sqrt(12 * 2000)


# -- augmentation of features ---------------------------------------------------------------------


def stretch(hidden):
    """(start, width) of the one stretch in each row of booleans [n, size]; start -1 where it is empty."""
    width = hidden.sum(1)
    start = np.where(width > 0, hidden.argmax(1), -1)
    at = np.arange(hidden.shape[1])
    np.testing.assert_array_equal(hidden, (at >= start[:, None]) & (at < (start + width)[:, None]))
    return start, width


def test_masks_of_time_lie_within_the_sound():
    """Widths 0 .. T as often, starts 0 .. tau - t as often, the last frame of the sound among those masked."""
    n, length, widest = 4000, 7, 3
    given = {"x": jnp.ones((n, 10, 4)), "length": jnp.full(n, length)}
    one = MaskTime(width=widest)
    hidden = np.asarray(applied(one, given)["x"]) == 0
    assert (hidden == hidden[:, :, :1]).all()
    start, width = stretch(hidden[:, :, 0])
    counts = np.bincount(width, minlength=widest + 1)
    assert len(counts) == widest + 1
    assert ((counts - n / 4) ** 2 / (n / 4)).sum() < 3 + 4 * math.sqrt(6)
    for t in range(1, widest + 1):
        places = np.bincount(start[width == t], minlength=length - t + 1)
        assert len(places) == length - t + 1
        expected = places.sum() / len(places)
        assert ((places - expected) ** 2 / expected).sum() < len(places) + 4 * math.sqrt(2 * len(places))
    assert one.on_features
    assert MaskFrequency().on_features
    assert not any(getattr(wave, "on_features", False) for wave in WAVES)


def test_a_share_bounds_the_masks_of_short_sounds():
    """floor(share * length), or T where that is less; each example by its own length; no sound, no mask; many too."""
    n = 3000
    lengths = np.resize([40, 10, 3, 0], n)
    given = {"x": jnp.ones((n, 40, 2)), "length": jnp.asarray(lengths)}
    hidden = np.asarray(applied(MaskTime(width=9, share=0.5), given)["x"][:, :, 0]) == 0
    _, width = stretch(hidden)
    assert [width[lengths == length].max() for length in (40, 10, 3, 0)] == [9, 5, 1, 0]
    everything = np.asarray(applied(MaskTime(width=99), {"x": jnp.ones((n, 5, 2))})["x"][:, :, 0]) == 0
    assert everything.all(1).any()
    many = np.asarray(applied(MaskTime(width=9, share=0.5, count=3), given)["x"][:, :, 0]) == 0
    assert many.sum(1)[lengths == 40].max() > 18
    assert not (many & (np.arange(40) >= lengths[:, None])).any()


@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_masks_of_frequency_cover_all_frames(channels):
    """Each example its own; values elsewhere are untouched, and several masks cover more than one."""
    x = jnp.asarray(draw(10, 500, 6, 8, *channels).astype(np.float32))
    found = np.asarray(applied(MaskFrequency(width=4), {"x": x})["x"])
    hidden = (found == 0).all(tuple(range(3, found.ndim)))
    np.testing.assert_array_equal(hidden, np.repeat(hidden[:, :1], 6, 1))
    start, width = stretch(hidden[:, 0])
    assert width.max() == 4
    assert width.min() == 0
    assert start[width > 0].min() == 0
    assert (start + width).max() == 8
    kept = ~hidden
    np.testing.assert_array_equal(found[kept], np.asarray(x)[kept])
    many = np.asarray(applied(MaskFrequency(width=4, count=2), {"x": x})["x"])
    assert (many == 0).mean() > 1.5 * (found == 0).mean()
    assert ((many == 0).reshape(500, 6, 8, -1)[:, 0, :, 0].sum(1)).max() > 4


@pytest.mark.parametrize("one", [MaskTime(), MaskFrequency()], ids=lambda one: one.kind)
def test_masks_change_as_their_key_says_and_refuse_what_has_no_frames(one):
    given = {"x": jnp.ones((4, 50, 20), jnp.bfloat16), "y": jnp.arange(4)}
    first, again, other = (applied(one, given, k) for k in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first["x"], other["x"])
    assert first["x"].dtype == jnp.bfloat16
    with pytest.raises(ValueError, match=r"x must be features .*; found shape \(2, 9\)"):
        one.apply({"x": jnp.zeros((2, 9))}, key=KEY)
    with pytest.raises(ValueError, match="x must be features of floating point; found int32"):
        one.apply({"x": jnp.zeros((2, 9, 3), jnp.int32)}, key=KEY)
    with pytest.raises(ValueError, match="length must be whole numbers"):
        one.apply({"x": jnp.zeros((2, 9, 3)), "length": jnp.zeros(2)}, key=KEY)


def test_no_window_is_left_out():
    """Every window that is named is tested above against NumPy's."""
    assert set(spectra.WINDOWS) == {"rectangular", "hann", "hamming", "blackman"}
