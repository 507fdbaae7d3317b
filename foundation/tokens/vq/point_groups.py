"""Which points a network sees at once: a few thousand, with clouds of equal length side by side where they matter."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


def passes(offsets: NDArray[np.int64], most: int) -> Iterator[tuple[int, int]]:
    """First and last + 1 of the clouds of each pass over `offsets` [B + 1]: about `most` points, one cloud at least."""
    first, clouds = 0, len(offsets) - 1
    while first < clouds:
        last = int(np.searchsorted(offsets, offsets[first] + most, side="right")) - 1
        last = min(max(last, first + 1), clouds)
        yield first, last
        first = last


def whole_clouds(offsets: NDArray[np.int64], most: int) -> Iterator[NDArray[np.int64]]:
    """Rows [b, L] of the points of b clouds that have L points each: nothing is padded, and no cloud is cut.

    most: points at once, if no cloud has more
    """
    counts = np.diff(offsets)
    order = np.argsort(counts, kind="stable")
    lengths, starts = np.unique(counts[order], return_index=True)
    for length, start, end in zip(lengths.tolist(), starts, [*starts[1:], len(order)], strict=True):
        if length == 0:
            continue
        at_once = max(1, most // length)
        for first in range(start, end, at_once):
            members = order[first : min(first + at_once, end)]
            yield offsets[members][:, None] + np.arange(length)


def single_points(offsets: NDArray[np.int64], most: int) -> Iterator[NDArray[np.int64]]:
    """Rows [1, L] of `most` points after the other, for networks to which clouds do not matter."""
    for first in range(0, int(offsets[-1]), most):
        yield np.arange(first, min(first + most, int(offsets[-1])))[None]
