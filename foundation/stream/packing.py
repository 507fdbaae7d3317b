"""Whole sequences into rows of a fixed number of tokens: best fit, longest first."""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np
from numpy.typing import NDArray


def pack(lengths: NDArray[np.int64], row_tokens: int) -> list[NDArray[np.int64]]:
    """Indices of the sequences in each row. No sequence is split; those longer than a row are left out.

    How many rows there are depends on the lengths alone, not on their order: every sequence goes, longest first, into
    the row with the least room that still takes it.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []
    for i in np.argsort(-lengths, kind="stable"):
        n = int(lengths[i])
        if n > row_tokens:
            continue
        place = bisect_left(room, (n, -1))
        if place == len(room):
            rows.append([int(i)])
            left, row = row_tokens - n, len(rows) - 1
        else:
            left, row = room.pop(place)
            rows[row].append(int(i))
            left -= n
        if left:
            insort(room, (left, row))
    return [np.array(row, np.int64) for row in rows]
