"""Whole sequences into rows of a fixed number of tokens, so that every row holds long and short ones.

The longest first, each goes into the emptiest row. Then rows that are too full and rows with room swap sequences of
suitable lengths. What is still too full is packed by best fit. That gives rows as full as best fit decreasing alone,
which would put sequences of equal length side by side: a training step of few rows would then see few lengths.

Whole rounds of rows are served at once. Only integers and stable sorts, so every machine finds the same rows.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foundation.data.ragged import ragged_arange

VERSION = 2
"""Raised when the same lengths give other rows."""
LARGEST_LOSS = 0.005
"""Rows may be emptier than those of best fit decreasing by this share of their tokens, not by more."""
SPARE_ROWS = 0.004
"""Share of rows beyond the fewest that could hold all tokens: makes it likely that nothing stays too full."""
LEVELLING_ROUNDS = 32
"""Last sequences of a row that are dealt one after the other; those before need no such care."""
SWAP_ROUNDS = 8
WORTHWHILE = 0.9
"""Swapping ends when a round leaves more than this part of the tokens that are too many."""
SWAP_CHOICES = 6
"""Sequences of a row that are looked at for a swap."""


@dataclass(frozen=True)
class Packing:
    """Rows of packed sequences; a sequence is known by its rank, 0 being the longest that fits into a row.

    row_of_ranks: uint16, or uint32 where there are many rows, [sequences that fit]; row of each
    rows:         how many rows there are, none of them empty
    left_out:     how many sequences are longer than a row
    """

    row_of_ranks: NDArray[np.unsignedinteger]
    rows: int
    left_out: int


def pack(lengths: NDArray[np.integer], row_tokens: int) -> Packing:
    """Pack sequences of these lengths [B] into rows of `row_tokens` >= 1 tokens. A pure function of the histogram.

    No sequence is split; those longer than a row are left out and counted. Where mixed rows would be emptier than those
    of best fit decreasing by more than LARGEST_LOSS, the latter are taken: it happens where a row takes few sequences.
    """
    longest_first, left_out = _sorted(lengths, row_tokens)
    row, rows = _mixed(longest_first, row_tokens)
    full_rows = int(longest_first.sum()) / row_tokens
    if _loss(rows, math.ceil(full_rows), full_rows) > LARGEST_LOSS:
        plain, plain_rows = _best_fit(longest_first, row_tokens)
        if _loss(rows, plain_rows, full_rows) > LARGEST_LOSS:
            row, rows = plain, plain_rows
    return Packing(_narrow(row, rows), rows, left_out)


def _narrow(row: NDArray[np.int64], rows: int) -> NDArray[np.unsignedinteger]:
    """Numbers of rows in 16 bits where these are enough: a stable sort of them is a radix sort."""
    return row.astype(np.uint16 if rows <= 2**16 else np.uint32)


def _loss(rows: int, other_rows: int, full_rows: float) -> float:
    """How much less full so many rows are than the others; full_rows: how many rows all tokens would fill entirely."""
    return full_rows / max(1, other_rows) - full_rows / max(1, rows)


def _sorted(lengths: NDArray[np.integer], row_tokens: int) -> tuple[NDArray[np.int64], int]:
    """Lengths that fit, none shorter than 1, longest first; and how many are longer than a row."""
    counts = np.bincount(lengths, minlength=row_tokens + 1)
    counts[1], counts[0] = counts[0] + counts[1], 0
    fitting = counts[: row_tokens + 1]
    values = np.flatnonzero(fitting)[::-1]
    return np.repeat(values, fitting[values]), int(counts[row_tokens + 1 :].sum())


def _mixed(lengths: NDArray[np.int64], row_tokens: int) -> tuple[NDArray[np.int64], int]:
    """Row of each sequence, and the number of rows: dealt, evened out, and the rest packed by best fit."""
    tokens = int(lengths.sum())
    rows = min(len(lengths), max(-(-tokens // row_tokens), int(tokens / row_tokens * (1 + SPARE_ROWS))))
    row = _deal(lengths, rows)
    row = _even_out(lengths, row, rows, row_tokens)
    too_full = np.bincount(row, lengths, minlength=rows) > row_tokens
    again = np.flatnonzero(too_full[row])
    refitted, more = _best_fit(lengths[again], row_tokens)
    kept = rows - int(too_full.sum())
    row = (np.cumsum(~too_full) - 1)[row]
    row[again] = kept + refitted
    return row, kept + more


def _deal(lengths: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
    """Row of each sequence, all rows about equally full: the longest sequences first, each into the emptiest row.

    (Longest processing time first: Graham, SIAM J. Appl. Math. 17 (1969) 416.) All rows whose turn is before the second
    turn of the emptiest one are served at once.
    """
    bits = rows.bit_length()
    emptiest_first = np.arange(rows)  # tokens in a row << bits | number of the row: one sort orders both
    added = lengths << bits
    row = np.empty(len(lengths), np.int64)
    last = max(0, len(lengths) - LEVELLING_ROUNDS * rows)
    uneven = int(lengths[last:].sum()) // max(1, rows)  # what the last rounds can level
    i = 0
    while i < len(lengths):
        k = int(emptiest_first.searchsorted(emptiest_first[0] + added[i]))
        twice = (last - i) // (2 * rows)
        if k == rows and twice > 0 and lengths[i] < uneven:  # many short ones: there and back, without sorting
            turn = np.concatenate([emptiest_first, emptiest_first[::-1]])
            row[i : i + 2 * rows * twice] = np.tile(turn, twice)
            both = added[i : i + 2 * rows * twice].reshape(twice, 2, rows).sum(axis=0)
            emptiest_first += both[0] + both[1, ::-1]
            k = 2 * rows * twice
        else:
            k = min(k, len(lengths) - i)
            row[i : i + k] = emptiest_first[:k]
            emptiest_first[:k] += added[i : i + k]
        emptiest_first.sort()
        i += k
    return row & ((1 << bits) - 1)


def _even_out(lengths: NDArray[np.int64], row: NDArray[np.int64], rows: int, row_tokens: int) -> NDArray[np.int64]:
    """Rows of the sequences after swaps between the fullest rows and the emptiest, as long as any is too full."""
    if np.bincount(row, lengths).max(initial=0) <= row_tokens:
        return row
    counts = np.bincount(row, minlength=rows)
    starts = np.cumsum(counts) - counts
    ranks = np.argsort(_narrow(row, rows), kind="stable")  # sequences row after row
    held = lengths[ranks]
    excess = int(lengths.sum())
    for turn in range(SWAP_ROUNDS):
        tokens = np.add.reduceat(held, starts)
        over = tokens[tokens > row_tokens] - row_tokens
        pairs, before, excess = min(len(over), rows // 2), excess, int(over.sum())
        if pairs == 0 or excess > WORTHWHILE * before:
            break
        order = np.argsort(tokens, kind="stable")
        shift = turn % (rows - 2 * pairs + 1)  # other partners in every round
        full, empty = order[::-1][:pairs], order[shift : shift + pairs]
        gap = (tokens[full] - tokens[empty] + 1) // 2
        a, b = _swaps(held, _choices(starts, counts, full, turn), _choices(starts, counts, empty, turn), gap)
        held[a], held[b] = held[b], held[a]
        ranks[a], ranks[b] = ranks[b], ranks[a]
    swapped = np.empty_like(row)
    swapped[ranks] = np.repeat(np.arange(rows), counts)
    return swapped


def _choices(
    starts: NDArray[np.int64], counts: NDArray[np.int64], rows: NDArray[np.int64], turn: int
) -> NDArray[np.int64]:
    """Places of SWAP_CHOICES sequences of each row [n, SWAP_CHOICES], from its longest to its shortest."""
    count = counts[rows, None]
    return starts[rows, None] + (np.arange(SWAP_CHOICES) * count // SWAP_CHOICES + turn) % count


def _swaps(
    held: NDArray[np.int64], a: NDArray[np.int64], b: NDArray[np.int64], gap: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each pair of rows the two places whose swap takes nearly `gap` [n] tokens over, if that evens them out.

    a, b: places [n, SWAP_CHOICES] in the fuller and the emptier row
    """
    surplus = (held[a] - gap[:, None]).astype(np.int32)
    off = np.abs(surplus[:, :, None] - held[b].astype(np.int32)[:, None, :]).reshape(len(a), -1)
    best = off.argmin(axis=1)
    pair = np.flatnonzero(off[np.arange(len(a)), best] < gap)
    return a[pair, best[pair] // SWAP_CHOICES], b[pair, best[pair] % SWAP_CHOICES]


def _best_fit(lengths: NDArray[np.int64], row_tokens: int) -> tuple[NDArray[np.int64], int]:
    """Row of each of these sequences, longest first, and the number of rows: best fit decreasing.

    Every sequence goes into the row with the least room that still takes it. Those of equal length are
    interchangeable, so whole runs of rows are filled at once: the work grows with the number of different lengths.
    """
    placed = np.array(_placed(np.bincount(lengths, minlength=1), row_tokens), np.int64).reshape(-1, 3)
    first, rows, each = placed.T
    row = np.repeat(np.repeat(first, rows) + ragged_arange(rows), np.repeat(each, rows))
    return row, int((first + rows).max(initial=0))


def _placed(histogram: NDArray[np.int64], row_tokens: int) -> list[tuple[int, int, int]]:
    """(first row, rows, sequences in each) of every placement, longest sequences first."""
    values = np.flatnonzero(histogram)[::-1]
    placed: list[tuple[int, int, int]] = []
    n_rows = 0
    least = int(values[-1]) if len(values) else 0
    # started rows that still take the shortest sequence: the rooms they have left, ascending, and for each room the
    # runs (first row, end) of neighbouring rows that have it
    rooms: list[int] = []
    runs: dict[int, list[tuple[int, int]]] = {}
    for length, count in zip(values.tolist(), histogram[values].tolist(), strict=True):
        while count:
            place = bisect_left(rooms, length)
            if place == len(rooms):  # nothing takes it: as many new rows as the rest of this length needs
                new = -(-count // (row_tokens // length))
                rooms.append(row_tokens)
                runs[row_tokens] = [(n_rows, n_rows + new)]
                n_rows += new
            room = rooms[place]
            run = runs[room]
            first, last = run.pop()
            each, rows = room // length, 1
            if count < each:
                each = count
            elif last - first > 1:
                rows = min(last - first, count // each)
            placed.append((first, rows, each))
            count -= rows * each
            if first + rows < last:
                run.append((first + rows, last))
            elif not run:
                del runs[room], rooms[place]
            room -= each * length
            if room >= least:
                if room in runs:
                    runs[room].append((first, first + rows))
                else:
                    runs[room] = [(first, first + rows)]
                    insort(rooms, room)
    return placed
