"""Losses without an oracle: masks, sums over parts, refusals, slopes at awkward points, dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functrain import losses


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


LABELS = jnp.asarray(np.random.default_rng(1).integers(0, 4, 8))
TARGETS = (LABELS > 1).astype(jnp.int32)

# A loss of arrays [8, ...] by rows: (f, its arrays).
ROWS = {
    "cross_entropy": (losses.cross_entropy, (draw(0, 8, 4), LABELS)),
    "smoothed": (lambda *a, mask: losses.cross_entropy(*a, mask=mask, smoothing=0.1), (draw(0, 8, 4), LABELS)),
    "class_weights": (
        lambda *a, mask: losses.cross_entropy(*a, mask=mask, smoothing=0.1, class_weights=(1.0, 2.0, 0.0, 0.5)),
        (draw(0, 8, 4), LABELS),
    ),
    "focal": (losses.focal, (draw(0, 8, 4), LABELS)),
    "hinge": (losses.hinge, (draw(0, 8, 4), LABELS)),
    "crammer_singer": (losses.crammer_singer, (draw(0, 8, 4), LABELS)),
    "binary_cross_entropy": (
        lambda *a, mask: losses.binary_cross_entropy(*a, mask=mask, positive_weight=3.0),
        (draw(0, 8), TARGETS),
    ),
    "binary_focal": (losses.binary_focal, (draw(0, 8), TARGETS)),
    "binary_hinge": (losses.binary_hinge, (draw(0, 8), TARGETS)),
    "squared_error": (losses.squared_error, (draw(0, 8, 3), draw(1, 8, 3))),
    "absolute_error": (losses.absolute_error, (draw(0, 8, 3), draw(1, 8, 3))),
    "huber": (losses.huber, (draw(0, 8, 3), draw(1, 8, 3))),
    "kl_divergence": (losses.kl_divergence, (draw(0, 8, 3), draw(1, 8, 3))),
    "cosine": (losses.cosine, (draw(0, 8, 3), draw(1, 8, 3))),
    "triplet": (losses.triplet, (draw(0, 8, 3), draw(1, 8, 3), draw(2, 8, 3))),
    "contrastive": (losses.contrastive, (draw(0, 8, 3), draw(1, 8, 3), TARGETS)),
}
WHOLE = {  # these compare all rows with one another
    "info_nce": (losses.info_nce, (draw(0, 8, 3), draw(1, 8, 3))),
    "nt_xent": (losses.nt_xent, (draw(0, 8, 3), draw(1, 8, 3))),
}
# One program is quicker than its operations one by one.
ROWS, WHOLE = ({name: (jax.jit(f), arrays) for name, (f, arrays) in table.items()} for table in (ROWS, WHOLE))
ALL = ROWS | WHOLE
MASK = jnp.array([1.0, 0, 1, 1, 0, 1, 1, 0])


def gradients(f, arrays, mask):
    floats = [i for i, a in enumerate(arrays) if jnp.issubdtype(a.dtype, jnp.floating)]
    return jax.jit(jax.grad(lambda *a: f(*a, mask=mask).total, floats))(*arrays)


@pytest.mark.parametrize("name", ROWS)
def test_ragged_parts_add_up_to_the_whole(name):
    """Sums and counts over parts of 3, 3 and 2 rows are those of all rows."""
    f, arrays = ROWS[name]
    whole = f(*arrays, mask=MASK)
    parts = [f(*(a[i:j] for a in arrays), mask=MASK[i:j]) for i, j in ((0, 3), (3, 6), (6, 8))]
    assert sum(p.total for p in parts) == pytest.approx(float(whole.total), rel=1e-6)
    assert sum(p.count for p in parts) == pytest.approx(float(whole.count), rel=1e-6)
    assert whole.count > 0


@pytest.mark.parametrize("name", ALL)
def test_a_masked_example_changes_nothing(name):
    """Other numbers in the masked rows: the same loss and count to the bit, and a gradient of zero there."""
    f, arrays = ALL[name]
    changed = tuple(
        jnp.where(MASK.reshape(-1, *[1] * (a.ndim - 1)) != 0, a, (7.0 * a + 3).astype(a.dtype) % 3) for a in arrays
    )
    ours, theirs = f(*arrays, mask=MASK), f(*changed, mask=MASK)
    assert (ours.total, ours.count) == (theirs.total, theirs.count)
    assert ours.total != f(*arrays, mask=None).total
    for gradient in gradients(f, changed, MASK):
        assert np.isfinite(gradient).all()
        assert not np.asarray(gradient)[np.asarray(MASK) == 0].any()


@pytest.mark.parametrize("name", ALL)
def test_no_row_counted_is_zero_and_finite(name):
    """An empty batch: sum, count and gradients are 0, none of them nan."""
    f, arrays = ALL[name]
    mean = f(*arrays, mask=jnp.zeros(8))
    assert float(mean.total) == float(mean.count) == 0.0
    assert not any(np.asarray(g).any() for g in gradients(f, arrays, jnp.zeros(8)))


@pytest.mark.parametrize("name", ALL)
def test_at_least_float32(name):
    """bfloat16 in, float32 out; equal to float32 of the same rounded numbers."""
    f, arrays = ALL[name]
    narrow = [a.astype(jnp.bfloat16) if a.dtype == jnp.float32 else a for a in arrays]
    wide = [a.astype(jnp.float32) if a.dtype == jnp.bfloat16 else a for a in narrow]
    mean = f(*narrow, mask=None)
    assert mean.total.dtype == mean.count.dtype == jnp.float32
    assert mean.total == f(*wide, mask=None).total


@pytest.mark.parametrize("name", ALL)
def test_shapes_that_would_broadcast_are_refused(name):
    """[8, ...] with [1, ...], and a mask of another length, are errors."""
    f, arrays = ALL[name]
    with pytest.raises(ValueError, match=r"differ in shape|expected labels"):
        f(arrays[0], *(a[:1] for a in arrays[1:]), mask=None)
    with pytest.raises(ValueError, match=r"mask|shape|broadcast"):
        f(*arrays, mask=jnp.ones(1))


def test_slopes_are_finite_for_equal_and_zero_vectors():
    """triplet, contrastive, cosine and the in-batch losses where a distance or a norm is zero, masked or not."""
    zeros, some = jnp.zeros((3, 4)), draw(0, 3, 4)
    cases = [
        (losses.cosine, (zeros, some)),
        (losses.cosine, (zeros, zeros)),
        (losses.cosine, (some, some)),
        (losses.triplet, (some, some, some)),
        (losses.triplet, (zeros, zeros, some)),
        (lambda *a, mask: losses.contrastive(*a, jnp.array([1, 0, 0]), mask=mask), (some, some)),
        (lambda *a, mask: losses.contrastive(*a, jnp.array([1, 0, 0]), mask=mask), (zeros, zeros)),
        (losses.info_nce, (zeros, some)),
        (losses.nt_xent, (zeros, zeros)),
        (losses.nt_xent, (some, some)),
    ]
    for f, arrays in cases:
        for mask in (None, jnp.array([1.0, 0, 1])):
            assert np.isfinite(f(*arrays, mask=mask).total)
            for gradient in gradients(f, arrays, mask):
                assert np.isfinite(gradient).all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_slopes_are_finite_for_sure_predictions(gamma):
    """Logits of +-200, right and wrong: losses and slopes of the logarithmic losses stay finite; focal's tend to 0."""
    logits = jnp.array([[200.0, -200.0, 0.0], [-200.0, 200.0, 0.0]])
    labels = jnp.array([0, 0])
    for f in (
        lambda x, mask: losses.focal(x, labels, mask=mask, gamma=gamma),
        lambda x, mask: losses.cross_entropy(x, labels, mask=mask),
        lambda x, mask: losses.binary_focal(x[:, 0], jnp.array([1, 1]), mask=mask, gamma=gamma),
        lambda x, mask: losses.binary_cross_entropy(x[:, 0], jnp.array([1, 1]), mask=mask),
    ):
        assert np.isfinite(f(logits, None).total)
        gradient = gradients(f, (logits,), None)[0]
        assert np.isfinite(gradient).all()
        assert abs(gradient[0]).max() < 1e-6 < abs(gradient[1]).max()


def test_a_target_without_probability():
    """kl_divergence of a target of -inf: that class adds nothing, and slopes stay finite on both sides."""
    p, t = draw(0, 2, 3), jnp.array([[0.0, -jnp.inf, 0.0], [0.0, 0.0, 0.0]])
    by_hand = jnp.log(0.5) - jax.nn.log_softmax(p[0])[jnp.array([0, 2])].mean()
    assert losses.kl_divergence(p[:1], t[:1]).total == pytest.approx(float(by_hand), rel=1e-5)
    for gradient in gradients(losses.kl_divergence, (p, t), None):
        assert np.isfinite(gradient).all()


def test_focal_without_focus_is_cross_entropy():
    """gamma = 0, and a focal loss that is less than cross-entropy above it."""
    logits, plain = draw(0, 8, 4), losses.cross_entropy(draw(0, 8, 4), LABELS).total
    assert losses.focal(logits, LABELS, gamma=0.0).total == pytest.approx(float(plain), rel=1e-6)
    assert losses.focal(logits, LABELS, gamma=2.0).total < plain


def test_huber_lies_between_its_two():
    """Half the squared error for a large delta; delta times the absolute error, less a constant, for a small one."""
    p, t = draw(0, 8, 3), draw(1, 8, 3)
    half = losses.squared_error(p, t).total / 2
    assert losses.huber(p, t, delta=100.0).total == pytest.approx(float(half), rel=1e-6)
    far = losses.absolute_error(p, t).total * 1e-3
    assert losses.huber(p, t, delta=1e-3).total == pytest.approx(float(far), rel=1e-2)


def test_weighted():
    """A mask times weights; either may be missing; shapes must fit."""
    mask, weight = jnp.array([[1.0, 0.0], [1.0, 1.0]]), jnp.array([2.0, 3.0])
    assert losses.weighted(None, None) is None
    assert losses.weighted(mask, None) is mask
    assert losses.weighted(None, weight) is weight
    with pytest.raises(ValueError, match="weight"):
        losses.weighted(mask, jnp.ones(3))


def test_live_numbers_may_be_traced():
    """gamma, delta, smoothing, margin, positive_weight and temperature as traced arrays, and differentiable."""

    def total(v):
        logits, numbers = draw(0, 8, 4), draw(1, 8, 4)
        return (
            losses.focal(logits, LABELS, gamma=v).total
            + losses.cross_entropy(logits, LABELS, smoothing=v).total
            + losses.hinge(logits, LABELS, margin=v).total
            + losses.huber(logits, numbers, delta=v).total
            + losses.binary_cross_entropy(logits[:, 0], TARGETS, positive_weight=v).total
            + losses.binary_focal(logits[:, 0], TARGETS, gamma=v, alpha=v, positive_weight=v).total
            + losses.nt_xent(logits, numbers, temperature=v).total
        )

    assert np.isfinite(jax.jit(jax.grad(total))(0.3))
