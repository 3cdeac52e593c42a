"""Every loss is PyTorch's: values and gradients in float64, masked and weighted.

Torch's side is `reduction="none"`, masked by hand over the whole batch; where torch has no such loss, its formula in
torch's words.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import agree, draw

from functrain import losses

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'functrain[oracle]'")
F = torch.nn.functional
torch.set_num_threads(1)

pytestmark = [pytest.mark.oracle, pytest.mark.usefixtures("float64")]

FUNCTION = 1e-13  # of the largest magnitude in the array compared


MASKS = {
    "none": None,
    "ragged": np.array([[1.0, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]]),
    "weights": np.abs(draw(9, 3, 5)),
    "rows": np.array([1.0, 0, 1]),
}


def compare(ours, theirs, arrays, mask, counts=None):
    """The sum, the count and the gradients of sum / count by every array.

    ours: (*arrays, mask) -> Mean. theirs: (*tensors) -> losses, an element each. counts: what each counts, if not 1.
    """
    jax_mask = None if mask is None else jnp.asarray(mask)

    def mean(*arrays):
        loss = ours(*arrays, mask=jax_mask)
        return loss.total / loss.count, loss

    at = tuple(range(len(arrays)))
    (_, loss), gradients = jax.value_and_grad(mean, at, has_aux=True)(*map(jnp.asarray, arrays))

    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    each = theirs(*tensors)
    mask = torch.ones_like(each) if mask is None else torch.tensor(mask)
    mask = mask.reshape(mask.shape + (1,) * (each.ndim - mask.ndim)).expand_as(each)
    total = (each * mask).sum()
    count = mask.sum() if counts is None else (mask * counts).sum()
    (total / count).backward()
    agree(loss.total, total)
    agree(loss.count, count)
    for gradient, tensor in zip(gradients, tensors, strict=True):
        agree(gradient, tensor.grad)


LOGITS, LABELS = 4 * draw(0, 3, 5, 7), np.random.default_rng(1).integers(0, 7, (3, 5))
WEIGHTS = np.abs(draw(2, 7)) + 0.1


def flat(f):
    """A loss of torch that takes [n, classes] alone, for [3, 5, classes]."""
    return lambda x: f(x.reshape(15, 7), torch.tensor(LABELS.ravel())).reshape(3, 5)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_with_class_weights(smoothing, mask):
    """F.cross_entropy with weight and label_smoothing: its sum, and the sum of the labels' weights as the count."""
    compare(
        lambda x, mask: losses.cross_entropy(
            x, jnp.asarray(LABELS), mask=mask, smoothing=smoothing, class_weights=tuple(WEIGHTS)
        ),
        flat(
            lambda x, y: F.cross_entropy(
                x, y, reduction="none", weight=torch.tensor(WEIGHTS), label_smoothing=smoothing
            )
        ),
        [LOGITS],
        MASKS[mask],
        counts=torch.tensor(WEIGHTS[LABELS]),
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_class_weights_divide_as_torch_does(smoothing):
    """total / count is F.cross_entropy's own weighted mean."""
    ours = losses.cross_entropy(
        jnp.asarray(LOGITS), jnp.asarray(LABELS), smoothing=smoothing, class_weights=jnp.asarray(WEIGHTS)
    )
    logits, labels = torch.tensor(LOGITS).reshape(15, 7), torch.tensor(LABELS.ravel())
    theirs = F.cross_entropy(logits, labels, weight=torch.tensor(WEIGHTS), label_smoothing=smoothing)
    agree(ours.total / ours.count, theirs)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("weights", [False, True])
def test_focal(weights, gamma, mask):
    """(1 - p_t)^gamma of F.cross_entropy."""

    def theirs(x, y):
        each = F.cross_entropy(x, y, reduction="none")
        factor = torch.tensor(WEIGHTS)[y] if weights else 1.0
        return factor * (1 - torch.exp(-each)) ** gamma * each

    # p_t from its logarithm loses what is left of 1 - p_t near 1: the logits are milder here.
    compare(
        lambda x, mask: losses.focal(
            x, jnp.asarray(LABELS), mask=mask, gamma=gamma, class_weights=WEIGHTS if weights else None
        ),
        flat(theirs),
        [LOGITS / 8],
        MASKS[mask],
        counts=torch.tensor(WEIGHTS[LABELS]) if weights else None,
    )


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("margin", [1.0, 2.5])
def test_hinge(margin, mask):
    """F.multi_margin_loss."""
    compare(
        lambda x, mask: losses.hinge(x, jnp.asarray(LABELS), mask=mask, margin=margin),
        flat(lambda x, y: F.multi_margin_loss(x, y, margin=margin, reduction="none")),
        [LOGITS],
        MASKS[mask],
    )


def test_hinge_with_class_weights():
    """F.multi_margin_loss with weight: its sum; the count is of the weights."""
    compare(
        lambda x, mask: losses.hinge(x, jnp.asarray(LABELS), mask=mask, class_weights=WEIGHTS),
        flat(lambda x, y: F.multi_margin_loss(x, y, weight=torch.tensor(WEIGHTS), reduction="none")),
        [LOGITS],
        None,
        counts=torch.tensor(WEIGHTS[LABELS]),
    )


def test_crammer_singer():
    """Its formula in torch."""

    def theirs(x, y):
        rival = x.masked_fill(F.one_hot(y, 7).bool(), -torch.inf).max(-1).values
        return torch.relu(1 + rival - x.gather(-1, y[:, None])[:, 0])

    compare(
        lambda x, mask: losses.crammer_singer(x, jnp.asarray(LABELS), mask=mask),
        flat(theirs),
        [LOGITS],
        MASKS["ragged"],
    )


TARGETS = (draw(3, 3, 5) > 0.3).astype(float)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("weight", [None, 3.7])
@pytest.mark.parametrize("soft", [False, True])
def test_binary_cross_entropy(soft, weight, mask):
    """F.binary_cross_entropy_with_logits with pos_weight, for hard and soft targets."""
    targets = 1 / (1 + np.exp(-draw(4, 3, 5))) if soft else TARGETS
    torch_weight = None if weight is None else torch.tensor(weight, dtype=torch.float64)
    compare(
        lambda x, mask: losses.binary_cross_entropy(x, jnp.asarray(targets), mask=mask, positive_weight=weight),
        lambda x: F.binary_cross_entropy_with_logits(
            x, torch.tensor(targets), reduction="none", pos_weight=torch_weight
        ),
        [5 * draw(5, 3, 5)],
        MASKS[mask],
    )


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("alpha", [None, 0.25])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_binary_focal(gamma, alpha, mask):
    """The formula as torchvision writes it."""

    def theirs(x):
        t, p = torch.tensor(TARGETS), torch.sigmoid(x)
        each = F.binary_cross_entropy_with_logits(x, t, reduction="none")
        each = each * (1 - (p * t + (1 - p) * (1 - t))) ** gamma
        return each if alpha is None else (alpha * t + (1 - alpha) * (1 - t)) * each

    compare(
        lambda x, mask: losses.binary_focal(x, jnp.asarray(TARGETS), mask=mask, gamma=gamma, alpha=alpha),
        theirs,
        [draw(5, 3, 5)],
        MASKS[mask],
    )


@pytest.mark.parametrize("mask", MASKS)
def test_binary_hinge(mask):
    """F.hinge_embedding_loss's arm for 1 - s x, written out."""
    compare(
        lambda x, mask: losses.binary_hinge(x, jnp.asarray(TARGETS), mask=mask, positive_weight=2.0),
        lambda x: torch.relu(1 - x * (2 * torch.tensor(TARGETS) - 1)) * (1 + torch.tensor(TARGETS)),
        [draw(5, 3, 5)],
        MASKS[mask],
    )


NUMBERS = {
    "squared_error": (losses.squared_error, F.mse_loss),
    "absolute_error": (losses.absolute_error, F.l1_loss),
    "huber": (
        lambda p, t, mask: losses.huber(p, t, mask=mask, delta=0.7),
        lambda p, t, reduction: F.huber_loss(p, t, reduction=reduction, delta=0.7),
    ),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(name, mask):
    """F.mse_loss, l1_loss and huber_loss, by predictions and targets; some are equal."""
    ours, theirs = NUMBERS[name]
    predictions, targets = draw(0, 3, 5, 2), draw(1, 3, 5, 2)
    targets[0, 0] = predictions[0, 0]
    compare(
        lambda p, t, mask: ours(p, t, mask=mask),
        lambda p, t: theirs(p, t, reduction="none"),
        [predictions, targets],
        MASKS[mask],
    )


@pytest.mark.parametrize("mask", MASKS)
def test_kl_divergence(mask):
    """F.kl_div with log_target, summed over the classes, by both sides."""
    compare(
        losses.kl_divergence,
        lambda p, t: F.kl_div(p.log_softmax(-1), t.log_softmax(-1), reduction="none", log_target=True).sum(-1),
        [draw(0, 3, 5, 7), 3 * draw(1, 3, 5, 7)],
        MASKS[mask],
    )


def test_kl_divergence_is_batchmean():
    """Of [n, classes] it is F.kl_div's "batchmean"."""
    p, t = draw(0, 6, 7), draw(1, 6, 7)
    ours = losses.kl_divergence(jnp.asarray(p), jnp.asarray(t))
    theirs = torch.tensor(p).log_softmax(-1), torch.tensor(t).log_softmax(-1)
    agree(ours.total / ours.count, F.kl_div(*theirs, reduction="batchmean", log_target=True))


@pytest.mark.parametrize("mask", MASKS)
def test_cosine(mask):
    """1 - F.cosine_similarity; one vector is zero."""
    a, b = draw(0, 3, 5, 4), draw(1, 3, 5, 4)
    a[0, 1] = 0.0  # of norms between 0 and 1e-8 torch's slope is not that of its value
    compare(
        losses.cosine,
        lambda a, b: 1 - F.cosine_similarity(a, b, dim=-1),
        [a, b],
        MASKS[mask],
    )


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("margin", [1.0, 0.2])
def test_triplet(margin, mask):
    """F.triplet_margin_loss; one positive is its anchor."""
    anchors, positives, negatives = draw(0, 3, 5, 4), draw(1, 3, 5, 4), draw(2, 3, 5, 4)
    positives[2, 1] = anchors[2, 1]
    compare(
        lambda a, p, n, mask: losses.triplet(a, p, n, mask=mask, margin=margin),
        lambda a, p, n: F.triplet_margin_loss(a, p, n, margin=margin, reduction="none"),
        [anchors, positives, negatives],
        MASKS[mask],
    )


@pytest.mark.parametrize("mask", MASKS)
def test_contrastive(mask):
    """Its formula, with torch's norm (whose slope at 0 is 0 too); one pair of each kind is equal."""
    a, b = draw(0, 3, 5, 2), draw(1, 3, 5, 2)
    same = torch.tensor(TARGETS)
    for wanted in (0, 1):
        at = tuple(np.argwhere(wanted == TARGETS)[0])
        b[at] = a[at]

    def theirs(a, b):
        distance = torch.linalg.vector_norm(a - b, dim=-1)
        return same * distance**2 / 2 + (1 - same) * torch.relu(1.5 - distance) ** 2 / 2

    compare(
        lambda a, b, mask: losses.contrastive(a, b, jnp.asarray(TARGETS), mask=mask, margin=1.5),
        theirs,
        [a, b],
        MASKS[mask],
    )


KEPT = np.array([1.0, 1, 0, 1, 0, 1])


@pytest.mark.parametrize("mask", [None, KEPT], ids=["all", "masked"])
def test_info_nce(mask):
    """F.cross_entropy over the rows that are kept alone: the others never reach torch."""
    q, k = draw(0, 6, 4), draw(1, 6, 4)
    kept = slice(None) if mask is None else np.flatnonzero(mask)

    def theirs(q, k):
        similar = F.normalize(q[kept], dim=-1) @ F.normalize(k[kept], dim=-1).T / 0.3
        each = F.cross_entropy(similar, torch.arange(len(similar)), reduction="none")
        return torch.zeros(6, dtype=torch.float64).index_put((torch.arange(6)[kept],), each)

    compare(lambda q, k, mask: losses.info_nce(q, k, mask=mask, temperature=0.3), theirs, [q, k], mask)


@pytest.mark.parametrize("mask", [None, KEPT], ids=["all", "masked"])
def test_nt_xent(mask):
    """Chen et al. 2020, eq. 1, pair by pair with F.cosine_similarity, over the rows that are kept alone."""
    a, b = draw(0, 6, 4), draw(1, 6, 4)
    kept = np.arange(6) if mask is None else np.flatnonzero(mask)
    n = len(kept)

    def theirs(a, b):
        z, each = torch.cat([a[kept], b[kept]]), []
        for i in range(2 * n):
            similar = F.cosine_similarity(z[i][None], z, dim=-1) / 0.3
            others = torch.cat([similar[:i], similar[i + 1 :]])
            each.append(torch.logsumexp(others, 0) - similar[(i + n) % (2 * n)])
        return torch.stack(each)

    # The mask is spent in the choice of rows: an example counts twice.
    jax_mask = None if mask is None else jnp.asarray(mask)
    compare(
        lambda a, b, mask: losses.nt_xent(a, b, mask=jax_mask, temperature=0.3),
        theirs,
        [a, b],
        None,
    )
