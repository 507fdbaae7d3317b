"""Whole sequences into rows of a fixed number of tokens: best fit, longest first, on the histogram of the lengths.

Sequences of equal length are interchangeable, so whole runs of rows are filled at once: the work grows with the number
of different lengths, not of sequences.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foundation.data.ragged import ragged_arange

VERSION = 1
"""Raised when the same lengths give other rows."""


@dataclass(frozen=True)
class Packing:
    """Rows of packed sequences; a sequence is known by its rank, 0 being the longest that fits into a row.

    placed:   uint32 [P, 3], rank after rank: first row, number of rows, sequences that each of these rows takes
    rows:     how many rows there are
    left_out: how many sequences are longer than a row
    """

    placed: NDArray[np.uint32]
    rows: int
    left_out: int

    def row_of_ranks(self) -> NDArray[np.int64]:
        """Row of each sequence that fits, int64 [their number], the longest first."""
        first, rows, each = self.placed.astype(np.int64).T
        row = np.repeat(first, rows) + ragged_arange(rows)
        return np.repeat(row, np.repeat(each, rows))


def pack(lengths: NDArray[np.integer], row_tokens: int) -> Packing:
    """Pack sequences of these lengths [B] into rows of `row_tokens` >= 1 tokens. A pure function of the histogram.

    Best fit decreasing: every sequence goes, longest first, into the row with the least room that still takes it. No
    sequence is split; those longer than a row are left out and counted.
    """
    histogram, left_out = _histogram(lengths, row_tokens)
    rows, placed = _best_fit(histogram, row_tokens)
    return Packing(np.array(placed, np.uint32).reshape(-1, 3), rows, left_out)


def _histogram(lengths: NDArray[np.integer], row_tokens: int) -> tuple[NDArray[np.int64], int]:
    """How many sequences there are of each length 0 .. row_tokens, and how many are longer; none is shorter than 1."""
    counts = np.bincount(lengths, minlength=row_tokens + 1)
    counts[1], counts[0] = counts[0] + counts[1], 0
    return counts[: row_tokens + 1], int(counts[row_tokens + 1 :].sum())


def _best_fit(histogram: NDArray[np.int64], row_tokens: int) -> tuple[int, list[tuple[int, int, int]]]:
    """Number of rows, and (first row, rows, sequences in each) of every placement, longest sequences first."""
    values = np.flatnonzero(histogram)[::-1]
    placed: list[tuple[int, int, int]] = []
    n_rows = 0
    if len(values) == 0:
        return n_rows, placed
    least = int(values[-1])
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
    return n_rows, placed
