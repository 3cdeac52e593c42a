"""CTC without an oracle: every path of small cases counted, and a prefix beam search in plain dictionaries."""

import functools
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functrain import ctc
from functrain.tasks.ctc import CTC

pytestmark = pytest.mark.usefixtures("quick")  # many small programs

FRAMES, CLASSES = 5, 3


def draw(seed, *shape):
    return 2 * np.random.default_rng(seed).normal(size=shape)


def labelling(path, blank):
    """Repeats merged, then blanks dropped."""
    return tuple(label for label, _ in itertools.groupby(path) if label != blank)


def by_enumeration(logits, blank=0):
    """labelling -> probability, over every path of logits [frames, classes]."""
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    found = {}
    for path in itertools.product(range(p.shape[1]), repeat=len(p)):
        said = labelling(path, blank)
        found[said] = found.get(said, 0.0) + np.prod([row[c] for row, c in zip(p, path)])
    return found


def padded(rows, width, fill=0):
    return jnp.asarray([list(row) + [fill] * (width - len(row)) for row in rows]), jnp.asarray([len(r) for r in rows])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("blank", range(CLASSES))
def test_the_loss_sums_over_every_path(blank):
    """Of each labelling that five frames have a path for; of longer ones it is inf, or 0 if asked."""
    logits = draw(blank, FRAMES, CLASSES)
    wanted = by_enumeration(logits, blank)
    assert {(), (1,) if blank != 1 else (2,)} < set(wanted)
    others = [label for label in range(CLASSES) if label != blank]
    rows = [row for n in range(FRAMES + 1) for row in itertools.product(others, repeat=n)]
    labels, label_lengths = padded(rows, FRAMES, fill=7)
    every = jnp.broadcast_to(logits, (len(rows), FRAMES, CLASSES))
    losses = ctc.loss(every, labels, label_lengths=label_lengths, blank=blank)
    np.testing.assert_allclose(np.exp(-losses), [wanted.get(row, 0.0) for row in rows], rtol=1e-13)
    assert np.isinf(losses).sum() == len(rows) - len(wanted) > 0
    zeroed = ctc.loss(every, labels, label_lengths=label_lengths, blank=blank, zero_infinity=True)
    np.testing.assert_array_equal(zeroed, np.where(np.isinf(losses), 0, losses))


LABELS = jnp.array([[1, 1, 2, -1], [2, 1, 2, 1], [1, -1, -1, -1], [-1, -1, -1, -1], [1, 1, 1, -1]])
LABEL_LENGTHS = jnp.array([3, 4, 1, 0, 3])
LENGTHS = jnp.array([6, 4, 0, 3, 4])  # the third and the last have no path


def ragged(logits, **settings):
    return ctc.loss(logits, LABELS, lengths=LENGTHS, label_lengths=LABEL_LENGTHS, **settings)


@pytest.mark.usefixtures("float64")
def test_gradients_are_central_differences():
    """First and second derivatives, forward and reverse; zero in frames that do not count and rows without a path."""
    x, step = jnp.asarray(draw(0, 5, 6, 3)), 1e-6

    def total(x):
        return ragged(x, zero_infinity=True).sum()

    losses, pull = jax.vjp(ragged, x)
    assert np.isinf(losses).tolist() == [False, False, True, False, True]
    gradient, totals = jax.jit(jax.grad(total)), jax.jit(jax.vmap(total))
    np.testing.assert_array_equal(pull(jnp.ones(5))[0], gradient(x))  # the same with inf among the losses
    basis = step * jnp.eye(x.size).reshape(-1, *x.shape)
    slopes = (totals(x + basis) - totals(x - basis)).reshape(x.shape) / (2 * step)
    np.testing.assert_allclose(gradient(x), slopes, atol=1e-8)
    counted = [[length > i and possible for i in range(6)] for length, possible in zip(LENGTHS, np.isfinite(losses))]
    np.testing.assert_array_equal(np.abs(gradient(x)).sum(-1) > 0, counted)

    @jax.jit
    def along(at, way):
        """The slope along a way, and the gradient's change: forward over reverse, and reverse over reverse."""
        _, slope = jax.jvp(total, (at,), (way,))
        _, change = jax.jvp(gradient, (at,), (way,))
        return slope, change, jax.grad(lambda x: (gradient(x) * way).sum())(at)

    way = jnp.asarray(draw(1, *x.shape))
    for at in (x, jnp.zeros_like(x)):  # zeros: paths of equal probability everywhere
        slope, change, again = along(at, way)
        np.testing.assert_allclose(slope, (gradient(at) * way).sum(), rtol=1e-12)
        np.testing.assert_allclose(
            change, (gradient(at + step * way) - gradient(at - step * way)) / (2 * step), atol=1e-7
        )
        np.testing.assert_allclose(again, change, atol=1e-12)


def test_padding_does_not_matter():
    """nan in frames past the length, any labels past theirs: the same loss, gradient and labellings, all finite."""
    x = jnp.asarray(draw(0, 5, 6, 3), jnp.float32)
    past = (jnp.arange(6) >= LENGTHS[:, None])[..., None]
    spoiled = jnp.where(past, jnp.nan, x)
    assert np.isnan(spoiled).any()
    for labels in (LABELS, jnp.where(LABELS < 0, 9, LABELS)):

        def loss(x, labels=labels):
            return ctc.loss(x, labels, lengths=LENGTHS, label_lengths=LABEL_LENGTHS)

        np.testing.assert_array_equal(loss(spoiled), ragged(x))
        pulled = jax.vjp(loss, spoiled)[1](jnp.ones(5))[0]
        assert np.isfinite(pulled).all()
        np.testing.assert_array_equal(pulled, jax.vjp(ragged, x)[1](jnp.ones(5))[0])
    for decode in (ctc.greedy, functools.partial(ctc.beam, width=4)):
        for a, b in zip(decode(spoiled, LENGTHS), decode(x, LENGTHS), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_row_is_itself_in_any_batch():
    """Rows that have a path, cut to their own lengths, give what they give in the batch; so under vmap."""
    x = jnp.asarray(draw(0, 5, 6, 3), jnp.float32)
    whole, (greedy, said), beams = ragged(x), ctc.greedy(x, LENGTHS), ctc.beam(x, LENGTHS, width=3)
    for i in (0, 1, 3):
        length, many = int(LENGTHS[i]), int(LABEL_LENGTHS[i])
        row = x[i : i + 1, :length]
        np.testing.assert_allclose(ctc.loss(row, LABELS[i : i + 1, :many])[0], whole[i], rtol=1e-6)
        labels, lengths = ctc.greedy(row)
        assert labels[0, : lengths[0]].tolist() == greedy[i, : said[i]].tolist()
        assert (greedy[i, said[i] :] == -1).all()
        labels, lengths, log_p = ctc.beam(row, width=3)
        np.testing.assert_array_equal(labels[0], beams[0][i, :, :length])
        assert (beams[0][i, :, length:] == -1).all()
        np.testing.assert_array_equal(lengths[0], beams[1][i])
        np.testing.assert_allclose(log_p[0], beams[2][i], rtol=1e-6)
    pair = jnp.stack([x, 2 * x])
    np.testing.assert_allclose(jax.vmap(ragged)(pair), jnp.stack([ragged(x), ragged(2 * x)]), rtol=1e-6)
    assert jax.vmap(ctc.greedy)(pair)[0].shape == (2, 5, 6)


def test_a_class_that_cannot_be():
    """-inf among the logits: its paths are gone, and every gradient is finite."""
    x = jnp.zeros((2, 3, 3)).at[0, 1:, 2].set(-jnp.inf).at[1, :, 2].set(-jnp.inf)
    labels = jnp.array([[2], [2]])
    losses, pull = jax.vjp(lambda x: ctc.loss(x, labels), x)
    np.testing.assert_allclose(losses, [-np.log(1 / 3 * 1 / 2 * 1 / 2), np.inf], rtol=1e-6)  # 2 - -
    gradient = pull(jnp.ones(2))[0]
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[0]).max() > 0.1
    assert (gradient[1] == 0).all()


def test_a_wrong_label_is_loud():
    """The blank, a negative one and one past the classes make the loss of their row nan, and of no other."""
    labels = jnp.array([[1, 2], [1, 0], [-1, 2], [1, 3]])
    assert np.isnan(ctc.loss(jnp.zeros((4, 3, 3)), labels)).tolist() == [False, True, True, True]


@pytest.mark.parametrize("blank", [0, 2])
def test_greedy_is_the_labelling_of_the_best_path(blank):
    """Of random rows, from its definition; repeats with a blank between them stay."""
    paths = np.random.default_rng(0).integers(0, 3, (200, 7))
    paths[0] = [1, 1, blank, 1, 1 - blank // 2, blank, blank]
    lengths = np.random.default_rng(1).integers(0, 8, 200)
    labels, counts = map(np.asarray, ctc.greedy(jax.nn.one_hot(paths, 3), jnp.asarray(lengths), blank=blank))
    for path, length, row, count in zip(paths, lengths, labels, counts):
        wanted = labelling(path[:length], blank)
        assert row.tolist() == [*wanted, *[-1] * (7 - len(wanted))]
        assert count == len(wanted)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("blank", [0, 2])
def test_a_wide_beam_finds_every_labelling(blank):
    """All labellings that have a path, once, in order, with exp(-loss); the places left over are empty.

    In the last rows there are classes that cannot be, so that prefixes die and others come to be after them.
    """
    logits = draw(3, 4, FRAMES, CLASSES)
    logits[2, 2, 1] = logits[3, 2, :2] = logits[3, 3, 2] = -np.inf
    labels, counts, log_p = map(np.asarray, ctc.beam(jnp.asarray(logits), width=60, blank=blank))
    for row in range(4):
        wanted = {said: p for said, p in by_enumeration(logits[row], blank).items() if p > 0}
        found = [tuple(x[:n].tolist()) for x, n in zip(labels[row], counts[row])]
        assert found[: len(wanted)] == sorted(wanted, key=lambda said: -wanted[said])
        np.testing.assert_allclose(np.exp(log_p[row, : len(wanted)]), sorted(wanted.values(), reverse=True), rtol=1e-12)
        assert (log_p[row, len(wanted) :] == -np.inf).all()
        assert set(found[len(wanted) :]) == {()}
        assert len(wanted) < 60
        every = jnp.broadcast_to(logits[row], (60, FRAMES, CLASSES))
        again = ctc.loss(every, jnp.asarray(labels[row]), label_lengths=jnp.asarray(counts[row]), blank=blank)
        np.testing.assert_allclose(log_p[row, : len(wanted)], -again[: len(wanted)], rtol=1e-12, atol=1e-14)


def by_dictionary(logits, width):
    """Prefix beam search, blank 0: prefix -> (probability at a blank, at its last label), the best `width` kept."""
    kept = {(): (1.0, 0.0)}
    returned = 0  # prefixes that some longer one was kept without
    for p in np.exp(logits) / np.exp(logits).sum(-1, keepdims=True):
        after = {}
        for prefix, (at_blank, at_label) in kept.items():
            for c, share in enumerate(p):
                repeats = bool(prefix) and c == prefix[-1]
                moves = [(prefix, (at_blank + at_label) * share, 0.0)] if c == 0 else []
                moves += [(prefix, 0.0, at_label * share)] if repeats else []
                moves += [(prefix + (c,), 0.0, (at_blank + (0.0 if repeats else at_label)) * share)] if c else []
                for said, blank, label in moves:
                    before = after.get(said, (0.0, 0.0))
                    after[said] = before[0] + blank, before[1] + label
        best = sorted(after, key=lambda said: -sum(after[said]))[:width]
        returned += sum(said not in kept and any(k[: len(said)] == said for k in kept) for said in best)
        kept = {said: after[said] for said in best}
    return [(said, sum(kept[said])) for said in kept], returned


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("width", [1, 2, 5, 12])
def test_a_narrow_beam_is_that_of_the_dictionary(width):
    """The same labellings and probabilities; among them prefixes that left the beam and came back below their heirs."""
    logits, returned = draw(4, 40, 12, 4), 0
    labels, counts, log_p = map(np.asarray, ctc.beam(jnp.asarray(logits), width=width))
    for row in range(40):
        wanted, back = by_dictionary(logits[row], width)
        returned += back
        assert [tuple(x[:n].tolist()) for x, n in zip(labels[row], counts[row])] == [said for said, _ in wanted]
        np.testing.assert_allclose(np.exp(log_p[row]), [p for _, p in wanted], rtol=1e-10)
    assert returned > 0 or width == 1


def test_low_precision_is_widened():
    """bfloat16 logits: loss and log p in float32, those of the same numbers."""
    x = jnp.asarray(draw(0, 5, 6, 3), jnp.bfloat16)
    assert ragged(x).dtype == ctc.beam(x, width=2)[2].dtype == jnp.float32
    np.testing.assert_array_equal(ragged(x), ragged(x.astype(jnp.float32)))


@pytest.mark.parametrize("decode", ["greedy", "beam"])
def test_the_task_is_the_loss_of_the_models_frames(decode):
    """Half as many as the data's; label k is class k + 1. Rows that do not count have no errors."""
    model = SimpleNamespace(frames=lambda length: -(-length // 2))
    task = CTC(decode=decode, model=model)
    logits = 9 * jax.nn.one_hot(jnp.array([[1, 0, 2, 2], [3, 0, 1, 1], [3, 1, 3, 1], [2, 0, 0, 1]]), 4)
    y = jnp.array([[0, 1], [2, -1], [1, 1], [1, 1]])
    batch = {"y": y, "length": jnp.array([7, 4, 8, 8]), "mask": jnp.array([1.0, 1.0, 0.0, 1.0])}
    loss, metrics = task.loss(logits, batch, train=False)
    each = ctc.loss(logits, y + 1, lengths=jnp.array([4, 2, 4, 4]), label_lengths=jnp.array([2, 1, 2, 2]))
    np.testing.assert_allclose(loss.total / loss.count, each[jnp.array([0, 1, 3])].mean(), rtol=1e-6)
    errors = metrics["errors"]
    np.testing.assert_array_equal(errors.found, [[0, 1, -1, -1], [2, -1, -1, -1], [2, 0, 2, 0], [1, 0, -1, -1]])
    np.testing.assert_array_equal(errors.found_lengths, [2, 1, 4, 2])
    np.testing.assert_array_equal(errors.mask, batch["mask"])
    assert task.loss(logits, batch, train=True)[1] == {}


def test_nothing_at_all():
    """No rows, no frames, no labels."""
    assert ctc.loss(jnp.zeros((0, 3, 2)), jnp.zeros((0, 1), int)).shape == (0,)
    assert ctc.loss(jnp.zeros((2, 0, 2)), jnp.zeros((2, 0), int)).tolist() == [0, 0]
    assert ctc.loss(jnp.zeros((1, 2, 2)), jnp.zeros((1, 0), int)).tolist() == pytest.approx([2 * np.log(2)])
    assert ctc.greedy(jnp.zeros((2, 0, 2)))[1].tolist() == [0, 0]
    assert ctc.beam(jnp.zeros((1, 0, 2)), width=2)[2].tolist() == [[0, -np.inf]]


def test_refusals():
    """Shapes that would be broadcast, a blank that is no class, no width."""
    x, labels = jnp.zeros((2, 3, 4)), jnp.ones((2, 1), int)
    with pytest.raises(ValueError, match=r"logits \(3, 4\)"):
        ctc.greedy(x[0])
    for wrong in (labels[0], labels[:1]):
        with pytest.raises(ValueError, match=r"labels \("):
            ctc.loss(x, wrong)
    with pytest.raises(ValueError, match=r"label_lengths \(1,\)"):
        ctc.loss(x, labels, label_lengths=jnp.ones(1, int))
    with pytest.raises(ValueError, match=r"lengths \(1,\)"):
        ctc.beam(x, jnp.ones(1, int), width=2)
    for blank in (-1, 4):
        with pytest.raises(ValueError, match=f"blank {blank}"):
            ctc.loss(x, labels, blank=blank)
    with pytest.raises(ValueError, match="width 0"):
        ctc.beam(x, width=0)
