"""Connectionist temporal classification: labels for a sequence of frames, without knowing which frame says which.

A model gives each frame a distribution over the labels and the blank, which says nothing. A path takes one of them a
frame; with repeats merged, then blanks dropped, it is a labelling: a a - a b b is a a b. The probability of a labelling
is the sum over all of its paths (Graves et al. 2006, section 3.1).

loss(logits, labels)    -> -log p(labels)
greedy(logits)          -> the labelling of the likeliest path
beam(logits, width=8)   -> the likeliest labellings, as far as a few kept at each frame tell

Paths that have said the same labels so far are told apart by where they stand: at a blank, or at the last label. After
a blank any label is a new one; after a label, the same is the old one that goes on.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from functrain import tree


def loss(
    logits: jax.Array,
    labels: jax.Array,
    *,
    lengths: jax.Array | None = None,
    label_lengths: jax.Array | None = None,
    blank: int = 0,
    zero_infinity: bool = False,
) -> jax.Array:
    """-log p(labels) of each row in nats, by the forward recursion over its paths, in at least float32.

    Graves et al. 2006, eq. 6 to 8, in logarithms (torch.nn.CTCLoss with reduction "none"). Differentiated as it stands,
    in every mode and order. A backward recursion by hand was no faster, and erred ten times more in float32: like
    torch's, which took twice the time (16 rows of 200 frames, 30 labels, 30 classes; a CPU thread, jax 0.10.2).

    Args:
      logits: [batch, frames, classes], not normalised; -inf is a class that cannot be.
      labels: [batch, n] integers in [0, classes) but the blank; a row with any other has the loss nan.
      lengths: [batch] integers, how many frames of each row count, from its first; None is all. What stands in the
        others does not matter.
      label_lengths: [batch] integers, the same of the labels.
      blank: the class that says nothing.
      zero_infinity: give 0 where no path is long enough, instead of inf.

    Returns:
      [batch]. inf where no path leads to the labels: fewer frames than labels and a blank between equal neighbours, or
      a class that cannot be. The gradient of such a row is 0.

    Raises:
      ValueError: shapes that do not fit one another, or a blank that is no class.

    >>> loss(jnp.zeros((1, 2, 3)), jnp.array([[1]]))[0].round(4)   # 1 1, 1 - and - 1, of nine paths: log 3
    Array(1.0986, dtype=float32)
    """
    _check(logits, lengths, blank)
    if labels.ndim != 2 or len(labels) != len(logits):
        raise ValueError(f"labels {labels.shape}; expected [{len(logits)}, n] for logits {logits.shape}")
    if label_lengths is None:
        label_lengths = jnp.full(len(labels), labels.shape[1])
    elif label_lengths.shape != labels.shape[:1]:
        raise ValueError(f"label_lengths {label_lengths.shape}; expected {labels.shape[:1]}")
    found = _log_likelihood(logits, lengths, labels, label_lengths, blank)
    return jnp.where(found == -jnp.inf, 0.0 if zero_infinity else jnp.inf, -found)


@partial(jax.jit, static_argnames="blank")
def _log_likelihood(logits, lengths, labels, label_lengths, blank):
    log_p, here = _frames(logits, lengths)
    counted = jnp.arange(labels.shape[1]) < label_lengths[:, None]
    legal = (labels >= 0) & (labels != blank)
    # Past the last class stands nan, which a wrong label shall meet, but not padding: nan * 0 is in its gradient.
    index = jnp.where(counted, jnp.where(legal, labels, log_p.shape[-1]), blank)
    of_labels = jnp.take_along_axis(log_p, index[:, None], -1, mode="fill")
    repeated = labels == jnp.pad(labels, ((0, 0), (1, 0)), constant_values=blank)[:, :-1]
    never = jnp.full((len(labels), 1), -jnp.inf, log_p.dtype)

    def advance(before, frame):
        """at_blank, at_label [batch, n + 1]: log p of all paths that have said the first 0, 1 ... n labels."""
        at_blank, at_label = before
        label, nothing, here = frame
        either = _log_add(at_blank, at_label)
        said_before = jnp.where(repeated, at_blank[:, :-1], either[:, :-1])
        said_now = _log_add(at_label[:, 1:], said_before) + label
        after = either + nothing, jnp.concatenate([never, said_now], 1)
        return tree.where(here, after, before), None

    nowhere = jnp.full((len(labels), labels.shape[1] + 1), -jnp.inf, log_p.dtype)
    frames = of_labels, log_p[..., blank, None], here[..., None]
    start = nowhere.at[:, 0].set(0), nowhere
    last, _ = lax.scan(advance, start, jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), frames))
    return jnp.take_along_axis(_log_add(*last), label_lengths[:, None], 1, mode="fill")[:, 0]


def _log_add(a, b):
    """log(e^a + e^b), whose slopes are finite where both are -inf; those of jnp.logaddexp are nan there.

    Without a rule of its own: in a scan jax (0.10.2) keeps such a rule for the first derivative alone, and the second
    was wrong where a = b.
    """
    top = lax.stop_gradient(jnp.maximum(a, b))
    some = top > -jnp.inf
    base = jnp.where(some, top, 0)
    return top + jnp.log(jnp.where(some, jnp.exp(a - base) + jnp.exp(b - base), 1))


def greedy(logits: jax.Array, lengths: jax.Array | None = None, *, blank: int = 0) -> tuple[jax.Array, jax.Array]:
    """The labelling of the likeliest path: the largest of each frame, repeats merged, blanks dropped.

    Graves et al. 2006, section 3.2, "best path decoding". It need not be the likeliest labelling.

    Args:
      logits, lengths, blank: as of `loss`.

    Returns:
      (labels [batch, frames], -1 after the last; how many [batch]), integers. Compiled once for each shape.

    Raises:
      ValueError: as of `loss`.

    >>> labels, lengths = greedy(jax.nn.one_hot(jnp.array([[1, 1, 0, 1, 2, 2]]), 3))
    >>> labels.tolist(), lengths.tolist()
    ([[1, 1, 2, -1, -1, -1]], [3])
    """
    _check(logits, lengths, blank)
    return _greedy(logits, lengths, blank)


@partial(jax.jit, static_argnames="blank")
def _greedy(logits, lengths, blank):
    best = logits.argmax(-1).astype(jnp.int32)
    before = jnp.pad(best, ((0, 0), (1, 0)), constant_values=blank)[:, :-1]
    says = (best != blank) & (best != before) & _here(logits, lengths)
    place = jnp.where(says, jnp.cumsum(says, 1) - 1, best.shape[1])  # what says nothing is put past the end: dropped
    rows = jnp.arange(len(best))[:, None]
    return jnp.full(best.shape, -1, jnp.int32).at[rows, place].set(best, mode="drop"), says.sum(1, dtype=jnp.int32)


def beam(
    logits: jax.Array, lengths: jax.Array | None = None, *, width: int, blank: int = 0
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The likeliest labellings by prefix beam search: after each frame the best `width` prefixes go on.

    After Hannun et al. 2014, algorithm 1, and Graves 2012, section 7.5, without a language model. Paths with one prefix
    are merged, so that a labelling has its whole probability where the beam was wide enough to hold all prefixes that
    it came by; else a lower bound of it.

    Args:
      logits, lengths, blank: as of `loss`.
      width: prefixes kept; the work of a frame grows as width^2 + width * classes.

    Returns:
      (labels [batch, width, frames], -1 after the last; how many [batch, width]; log p [batch, width]), the likeliest
      first. Where there are fewer labellings than `width`, the others are empty, with log p = -inf. Compiled once for
      each shape.

    Raises:
      ValueError: width below 1, or as of `loss`.

    >>> p = jnp.log(jnp.array([[[0.6, 0.4], [0.6, 0.4]]]))   # the likeliest path says nothing: 0.36
    >>> labels, lengths, log_p = beam(p, width=2)
    >>> labels[0].tolist(), lengths[0].tolist(), [f"{p:.2f}" for p in jnp.exp(log_p[0]).tolist()]
    ([[1, -1], [-1, -1]], [1, 0], ['0.64', '0.36'])
    """
    _check(logits, lengths, blank)
    if width < 1:
        raise ValueError(f"width {width}; expected at least 1")
    return _beam(logits, lengths, width, blank)


@partial(jax.jit, static_argnames=("width", "blank"))
def _beam(logits, lengths, width, blank):
    return jax.vmap(partial(_search, width=width, blank=blank))(*_frames(logits, lengths))


def _search(log_p, here, width, blank):
    """One row: log_p [frames, classes], here [frames]."""
    frames, classes = log_p.shape
    slots = jnp.arange(width)

    def advance(before, frame):
        """labels [width, frames + 1] of each prefix, how many, log p of its paths, and which prefix begins which."""
        labels, lengths, at_blank, at_label, begins = before
        log_p, here = frame
        either = jnp.logaddexp(at_blank, at_label)
        last = labels[slots, lengths - 1]  # -1 of the empty prefix: no label ever stands at the place -1
        longer = jnp.where(last[:, None] == jnp.arange(classes), at_blank[:, None], either[:, None]) + log_p
        longer = longer.at[:, blank].set(-jnp.inf)

        # A prefix that another one becomes by its last label has both of their paths. Empty slots are copies: left out.
        real = either > -jnp.inf
        becomes = begins & (lengths[:, None] + 1 == lengths) & real[:, None] & real
        parent, merged = becomes.argmax(0), becomes.any(0)
        gained = jnp.where(merged, longer[parent, last], -jnp.inf)
        longer = longer.at[jnp.where(merged, parent, width), last].set(-jnp.inf, mode="drop")
        stays_at_blank = either + log_p[blank]
        stays_at_label = jnp.logaddexp(at_label + log_p[last], gained)

        scores = jnp.concatenate([jnp.logaddexp(stays_at_blank, stays_at_label), longer.reshape(-1)])
        scores, chosen = lax.top_k(scores, width)
        grows = chosen >= width
        source, label = jnp.where(grows, (chosen - width) // classes, chosen), (chosen - width) % classes
        place = jnp.where(grows, lengths[source], frames + 1)  # past the end: dropped
        labels = labels[source].at[slots, place].set(label.astype(jnp.int32), mode="drop")
        lengths = lengths[source] + grows
        at_blank = jnp.where(grows, -jnp.inf, stays_at_blank[source])
        at_label = jnp.where(grows, scores, stays_at_label[source])

        # i begins j if what i grew from was, or began, what j grew from, and j goes on with the label that i grew by.
        begins = (begins | jnp.eye(width, dtype=bool))[source[:, None], source] & (lengths[:, None] < lengths)
        begins &= ~grows[:, None] | (label[:, None] == labels[:, lengths - 1].T)
        return tree.where(here, (labels, lengths, at_blank, at_label, begins), before), None

    start = (
        jnp.full((width, frames + 1), -1, jnp.int32),
        jnp.zeros(width, jnp.int32),
        jnp.where(slots == 0, 0.0, -jnp.inf).astype(log_p.dtype),
        jnp.full(width, -jnp.inf, log_p.dtype),
        jnp.zeros((width, width), bool),
    )
    (labels, lengths, at_blank, at_label, _), _ = lax.scan(advance, start, (log_p, here))
    found = jnp.logaddexp(at_blank, at_label)
    real = found > -jnp.inf
    return jnp.where(real[:, None], labels[:, :frames], -1), jnp.where(real, lengths, 0), found


# -- helpers --------------------------------------------------------------------------------------


def _check(logits, lengths, blank):
    if logits.ndim != 3:
        raise ValueError(f"logits {logits.shape}; expected [batch, frames, classes]")
    if lengths is not None and lengths.shape != logits.shape[:1]:
        raise ValueError(f"lengths {lengths.shape}; expected {logits.shape[:1]}")
    if not 0 <= blank < logits.shape[2]:
        raise ValueError(f"blank {blank} is not one of {logits.shape[2]} classes")


def _here(logits, lengths):
    """Which frames count, [batch, frames]."""
    if lengths is None:
        return jnp.ones(logits.shape[:2], bool)
    return jnp.arange(logits.shape[1]) < lengths[:, None]


def _frames(logits, lengths):
    """Log-probabilities in at least float32, and which frames count."""
    here = _here(logits, lengths)
    # Selected before the softmax, so that no nan of a frame that does not count reaches a gradient.
    return jax.nn.log_softmax(jnp.where(here[..., None], tree.wide(logits), 0)), here
