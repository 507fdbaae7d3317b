"""Ragged index arithmetic: which rows of a flat array form a small padded group.

Padding exists only inside an attention backend; everything else works on flat arrays and offsets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Bucket:
    """Clouds of similar length, laid side by side.

    rows:  int64 [b, L]; row of the flat array for each place, any row of the same cloud where there is none
    valid: bool [b, L]; True where the place holds a real point
    """

    rows: NDArray[np.int64]
    valid: NDArray[np.bool_]


def length_buckets(offsets: NDArray[np.int64], waste: float = 0.15) -> list[Bucket]:
    """Group the clouds of `offsets` [B + 1] by length so that in no bucket a cloud is padded by more than `waste`."""
    counts = np.diff(offsets)
    order = np.argsort(-counts, kind="stable")
    ordered = counts[order]
    buckets: list[Bucket] = []
    first = 0
    while first < len(order) and ordered[first] > 0:
        longest = int(ordered[first])
        # the smallest length that may still sit beside the longest; at least a few points of slack for short clouds
        shortest = max(1, min(int(np.ceil(longest * (1.0 - waste))), longest - 4))
        last = int(np.searchsorted(-ordered, -shortest, side="right"))
        members = order[first:last]
        place = np.arange(longest)
        valid = place[None, :] < counts[members][:, None]
        rows = offsets[members][:, None] + np.minimum(place[None, :], counts[members][:, None] - 1)
        buckets.append(Bucket(rows, valid))
        first = last
    return buckets


def ragged_arange(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """0 .. c-1 for every c of `counts`, one after the other; int64 [sum(counts)]."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) - np.repeat(ends - counts, counts)


def to_offsets(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Offsets [B + 1] of consecutive pieces with these lengths [B]."""
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def rows_of(offsets: NDArray[np.int64], chosen: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the flat array that belong to the chosen pieces, in their order, and the pieces' new offsets."""
    counts = np.diff(offsets)[chosen]
    return np.repeat(offsets[chosen], counts) + ragged_arange(counts), to_offsets(counts)
