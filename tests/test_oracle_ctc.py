"""CTC is PyTorch's, values and gradients, over ragged rows in float64 and float32; error rates are jiwer's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import agree

from functrain import ctc
from functrain.metrics.edits import character_error_rate, word_error_rate

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'functrain[oracle]'")
torch.set_num_threads(1)

pytestmark = pytest.mark.oracle

ROWS, FRAMES, LABELS = 24, 30, 10


def case(seed, classes, blank):
    """Logits; labels with many repeats, and lengths: rows 0 to 3 are empty, without frames, both, and too long."""
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(ROWS, FRAMES, classes))
    others = np.array([c for c in range(classes) if c != blank])
    labels = others[rng.integers(0, len(others), (ROWS, LABELS))]
    lengths, label_lengths = rng.integers(1, FRAMES + 1, ROWS), rng.integers(0, LABELS + 1, ROWS)
    lengths[:5], label_lengths[:5] = [FRAMES, 0, 0, 5, FRAMES], [0, 3, 0, LABELS, LABELS]
    return logits, (labels, lengths, label_lengths)


def theirs(logits, wanted, blank, zero_infinity, weights):
    x = torch.tensor(logits, requires_grad=True)
    losses = torch.nn.CTCLoss(blank=blank, reduction="none", zero_infinity=zero_infinity)(
        x.log_softmax(-1).transpose(0, 1), *map(torch.tensor, wanted)
    )
    (losses * torch.tensor(weights)).sum().backward()
    return losses.detach(), x.grad


def ours(logits, wanted, blank, zero_infinity, weights):
    labels, lengths, label_lengths = map(jnp.asarray, wanted)

    def loss(x):
        return ctc.loss(
            x, labels, lengths=lengths, label_lengths=label_lengths, blank=blank, zero_infinity=zero_infinity
        )

    losses, pull = jax.vjp(loss, jnp.asarray(logits))
    return losses, pull(jnp.asarray(weights))[0]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("zero_infinity", [False, True])
@pytest.mark.parametrize(("seed", "classes", "blank"), [(0, 3, 0), (1, 8, 3), (2, 2, 1)])
def test_the_loss_and_its_gradient(seed, classes, blank, zero_infinity):
    """To 1e-12. Rows without a path: inf on both sides, where torch's gradient is nan and ours is 0."""
    logits, wanted = case(seed, classes, blank)
    weights = np.random.default_rng(9).normal(size=ROWS)
    their_losses, their_gradient = theirs(logits, wanted, blank, zero_infinity, weights)
    losses, gradient = ours(logits, wanted, blank, zero_infinity, weights)
    possible = np.isfinite(ours(logits, wanted, blank, False, weights)[0])
    assert 0 < possible.sum() < ROWS
    np.testing.assert_array_equal(losses[~possible], their_losses[~possible])
    assert (gradient[~possible] == 0).all()
    agree(losses[possible], their_losses[possible], 1e-12)
    agree(gradient[possible], their_gradient[possible], 1e-12)


def test_float32():
    """Losses to 1e-6 of theirs in float64, and a gradient nearer to that than their own in float32."""
    logits, wanted = case(3, 8, 0)
    exact, slopes = theirs(logits, wanted, 0, True, np.ones(ROWS))
    single = logits.astype(np.float32)
    losses, gradient = ours(single, wanted, 0, True, np.ones(ROWS, np.float32))
    assert losses.dtype == gradient.dtype == jnp.float32
    np.testing.assert_allclose(losses, exact, rtol=1e-6)
    _, their_gradient = theirs(single, wanted, 0, True, np.ones(ROWS, np.float32))
    error = np.abs(gradient - slopes.numpy()).max()
    assert error < 2e-5
    assert error <= np.abs((their_gradient - slopes).numpy()).max()


def test_error_rates_are_those_of_jiwer():
    """Over random corpora with empty texts, to the bit."""
    jiwer = pytest.importorskip("jiwer", reason="jiwer is not installed: pip install 'functrain[oracle]'")
    rng = np.random.default_rng(0)
    for size in (1, 3, 300):
        for longest in (1, 4, 12):

            def texts(size=size, longest=longest):
                words = ["a", "ab", "b", "ba", "Ab,", "é"]
                return [" ".join(rng.choice(words, rng.integers(0, longest + 1))) for _ in range(size)]

            found, wanted = texts(), texts()
            found[0], wanted[-1] = "", " two  words "
            assert word_error_rate(found, wanted) == jiwer.wer(wanted, found)
            assert character_error_rate(found, wanted) == jiwer.cer(wanted, found)
