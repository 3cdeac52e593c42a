"""Packing: short sequences laid into rows of one length, several to a row, so that little padding is computed.

pack(lengths, block)      -> Plan               which sequence goes where
packed(sequences, block)  -> arrays of a batch  several to a row, by that plan
padded(sequences, block)  -> arrays of a batch  one to a row

Models that take `segments` (see functrain.models.context) let no sequence see another, so that the two give the same
loss and the same gradients.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Plan:
    """Where each sequence goes.

    row, start: integers [n], of each sequence.
    segment: integers [n], its number in its row, from 1.
    rows: how many rows there are, of `block` places each.
    filled: the share of all places that hold a token.
    """

    row: np.ndarray
    start: np.ndarray
    segment: np.ndarray
    rows: int
    block: int
    filled: float


def pack(lengths: Sequence[int] | np.ndarray, block: int) -> Plan:
    """Best-fit decreasing: the longest first, each into the row with the least room that still holds it.

    At most 11/9 of the fewest rows possible, and 4 more (Johnson, Demers, Ullman, Garey and Graham 1974). Of equal
    lengths the first goes first: a plan depends on the lengths alone.

    Args:
      lengths: integers [n], each from 1 to `block`.
      block: places in a row.

    Raises:
      ValueError: a length that is not in that range.

    >>> plan = pack([3, 5, 2, 4], 8)
    >>> plan.row.tolist(), plan.start.tolist(), plan.segment.tolist(), plan.filled
    ([0, 0, 1, 1], [5, 0, 4, 0], [2, 1, 2, 1], 0.875)
    """
    lengths = np.asarray(lengths, np.int64)
    if len(wrong := np.flatnonzero((lengths < 1) | (lengths > block))):
        raise ValueError(f"sequence {wrong[0]}: length {lengths[wrong[0]]}; expected 1 to {block}")
    row, start, segment = np.zeros((3, len(lengths)), np.int64)
    with_room: list[list[int]] = [[] for _ in range(block + 1)]  # rows by the room that they have left
    rooms, sequences = 0, []  # bit r of `rooms`: some row has room r; and how many sequences each row has
    for i in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[i])
        enough = rooms >> length
        if enough:
            room = length + (enough & -enough).bit_length() - 1
            to = with_room[room].pop()
            rooms &= ~(0 if with_room[room] else 1 << room)
        else:
            room, to = block, len(sequences)
            sequences.append(0)
        sequences[to] += 1
        row[i], start[i], segment[i] = to, block - room, sequences[to]
        with_room[room - length].append(to)
        rooms |= 1 << (room - length)
    places = len(sequences) * block
    return Plan(row, start, segment, len(sequences), block, float(lengths.sum() / places) if places else 1.0)


def packed(
    sequences: Sequence[np.ndarray], block: int, counted: Sequence[np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """Sequences of tokens as arrays [rows, block]: x, the next token y, segments from 1, and the mask of the loss.

    y is the next token within the same sequence; the last token of each has none, and mask 0 there. Where there is no
    token, all four are 0.

    Args:
      sequences: integers [length] each, of 1 to `block` tokens.
      counted: for each sequence booleans [length]: which of its tokens count as targets; None counts all.

    >>> for name, array in packed([np.array([5, 6, 7]), np.array([8, 9])], 6).items():
    ...     print(name, array.tolist())
    x [[5, 6, 7, 8, 9, 0]]
    y [[6, 7, 0, 9, 0, 0]]
    segments [[1, 1, 1, 2, 2, 0]]
    mask [[1.0, 1.0, 0.0, 1.0, 0.0, 0.0]]
    """
    return _laid_out(sequences, pack([len(s) for s in sequences], block), counted)


def padded(
    sequences: Sequence[np.ndarray], block: int, counted: Sequence[np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """What `packed` gives, with one sequence to a row, in their order.

    >>> padded([np.array([5, 6, 7]), np.array([8, 9])], 4)["segments"].tolist()
    [[1, 1, 1, 0], [1, 1, 0, 0]]
    """
    lengths = np.array([len(s) for s in sequences])
    if len(wrong := np.flatnonzero((lengths < 1) | (lengths > block))):
        raise ValueError(f"sequence {wrong[0]}: length {lengths[wrong[0]]}; expected 1 to {block}")
    n = len(sequences)
    plan = Plan(np.arange(n), np.zeros(n, int), np.ones(n, int), n, block, float(lengths.sum() / (n * block)))
    return _laid_out(sequences, plan, counted)


def _laid_out(sequences, plan, counted):
    shape = (plan.rows, plan.block)
    dtypes = {"x": np.int32, "y": np.int32, "segments": np.int32, "mask": np.float32}
    arrays: dict[str, np.ndarray] = {name: np.zeros(shape, dtype) for name, dtype in dtypes.items()}
    for i, tokens in enumerate(sequences):
        row, at = plan.row[i], slice(plan.start[i], plan.start[i] + len(tokens))
        before = slice(at.start, at.stop - 1)
        arrays["x"][row, at] = tokens
        arrays["segments"][row, at] = plan.segment[i]
        arrays["y"][row, before] = tokens[1:]
        arrays["mask"][row, before] = 1 if counted is None else counted[i][1:]
    return arrays
