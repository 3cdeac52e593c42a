"""Packing: every token once, little room lost, and the same loss and gradients as one sequence to a row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functrain.data.packing import pack, packed, padded
from functrain.models import GPT
from functrain.tasks import Language

BLOCK, VOCABULARY = 24, 11


def ragged(n, seed=0, longest=BLOCK):
    """Sequences of random tokens, none of them 0; the first has one token, the second fills a row."""
    rng = np.random.default_rng(seed)
    lengths = [1, longest, *rng.integers(2, longest, n - 2)]
    return [rng.integers(1, VOCABULARY, length) for length in lengths]


@pytest.mark.parametrize("n", [1, 2, 3, 40, 1000])
def test_a_plan_places_each_sequence_once(n):
    """Rows are filled without overlap or gap, numbered from 1, and no more than the bound allows."""
    lengths = np.random.default_rng(n).integers(1, BLOCK + 1, n)
    plan = pack(lengths, BLOCK)
    for row in range(plan.rows):
        mine = np.flatnonzero(plan.row == row)
        mine = mine[np.argsort(plan.start[mine])]
        ends = plan.start[mine] + lengths[mine]
        assert plan.start[mine].tolist() == [0, *ends[:-1]]
        assert ends[-1] <= BLOCK
        assert plan.segment[mine].tolist() == list(range(1, len(mine) + 1))
    assert plan.rows <= 11 / 9 * -(-lengths.sum() // BLOCK) + 4
    assert plan.filled == lengths.sum() / (plan.rows * BLOCK)
    again = pack(lengths.tolist(), BLOCK)
    assert all((getattr(plan, name) == getattr(again, name)).all() for name in ("row", "start", "segment"))


def test_a_plan_is_the_best_where_that_is_known():
    """Pairs that fill their rows exactly are found; of lengths uniform in 1 to 512 hardly any room is lost."""
    rng = np.random.default_rng(0)
    first = rng.integers(17, 32, 200)
    lengths = rng.permutation(np.concatenate([first, 32 - first]))
    assert pack(lengths, 32).filled == 1.0
    assert pack(rng.integers(1, 513, 5000), 512).filled > 0.99


def test_what_does_not_fit_is_named():
    for lengths, said in (([3, 9], "sequence 1: length 9; expected 1 to 8"), ([0], "sequence 0: length 0")):
        with pytest.raises(ValueError, match=said):
            pack(lengths, 8)
        with pytest.raises(ValueError, match=said):
            padded([np.ones(n, int) for n in lengths], 8)


def test_packed_rows_hold_the_sequences():
    """Read back by its segment each is whole, and its targets are its own tokens moved by one."""
    sequences = ragged(40)
    counted = [np.random.default_rng(i).random(len(s)) < 0.5 for i, s in enumerate(sequences)]
    plan, rows = pack([len(s) for s in sequences], BLOCK), packed(sequences, BLOCK, counted)
    for i, tokens in enumerate(sequences):
        here = (plan.row[i], rows["segments"][plan.row[i]] == plan.segment[i])
        assert rows["x"][here].tolist() == tokens.tolist()
        assert rows["y"][here].tolist() == [*tokens[1:], 0]
        assert rows["mask"][here].tolist() == [*counted[i][1:], 0]
    empty = rows["segments"] == 0
    assert all((rows[name][empty] == 0).all() for name in ("x", "y", "mask"))


def errors(dtype, told_apart=True):
    """The largest errors of loss and gradients, packed against padded, relative to the largest of each array.

    The loss is the language task's, of a GPT: a sum over real tokens, over their count.
    """
    model = GPT(inputs=(BLOCK,), outputs=VOCABULARY, layers=2, heads=2, width=16)
    drawn = model.init(jax.random.key(0))[0]
    params = jax.tree.map(lambda p: ((10 if p.ndim > 1 else 1) * p).astype(dtype), drawn)  # attention far from even

    def loss_of(params, batch):
        mean = Language(model=model).full_loss(params, {}, batch, key=None, train=True)[0]
        return mean.total / mean.count

    sequences = ragged(12, seed=1)
    apart, together = padded(sequences, BLOCK), packed(sequences, BLOCK)
    if not told_apart:
        together["segments"] = np.ones_like(together["segments"])  # the same as None: a row is one sequence
    empty = ((0, len(apart["x"]) - len(together["x"])), (0, 0))  # rows of nothing, for one program serves both then
    assert empty[0][1] > 3
    together = {name: np.pad(a, empty) for name, a in together.items()}
    both = jax.jit(jax.value_and_grad(loss_of))
    apart, together = (a | {"mask": a["mask"].astype(dtype)} for a in (apart, together))
    (loss, gradients), (packed_loss, packed_gradients) = both(params, apart), both(params, together)
    assert loss.dtype == dtype
    sizes = jax.tree.map(lambda a, b: float(abs(a - b).max() / abs(a).max()), gradients, packed_gradients)
    return float(abs(loss - packed_loss) / loss), max(jax.tree.leaves(sizes))


@pytest.mark.usefixtures("quick")
def test_packed_is_padded_in_float64(float64):
    """Loss and gradients to 1e-12; and not where segments are left out, so the test can tell."""
    assert max(errors(jnp.float64)) < 1e-12
    assert min(errors(jnp.float64, told_apart=False)) > 1e-3


@pytest.mark.usefixtures("quick")
def test_packed_is_padded_in_float32():
    """To 1e-6 of each array's largest element."""
    assert max(errors(jnp.float32)) < 1e-6
