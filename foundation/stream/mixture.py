"""Which dataset gives row g of the mixed stream: an integer schedule, exact at every prefix, with no state.

With weights w the first n rows hold, for every dataset d and every n, less than one row more or less than w_d n. That
is the chairman assignment problem; the rule is R. Tijdeman's (Discrete Mathematics 32 (1980) 323-330).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from foundation.errors import DataError

LONGEST_PERIOD = 100_000
"""Rows after which a schedule repeats, at most. Weights that need more are rounded to multiples of 1/LONGEST_PERIOD."""


@dataclass(frozen=True)
class Mixture:
    """Weights of the datasets. Rows are equally long, so weights mean tokens.

    weights: from the first step on
    later:   (step, weights from that step on), steps ascending
    """

    weights: tuple[float, ...]
    later: tuple[tuple[int, tuple[float, ...]], ...] = ()


def temperature_weights(tokens: Sequence[int], temperature: float) -> tuple[float, ...]:
    """Weights proportional to tokens ** (1 / temperature): 1 keeps the natural shares, more evens them out.

    A dataset without tokens gets weight 0.
    """
    if not temperature > 0:
        raise DataError(f"the temperature of a mixture must be above 0, not {temperature}")
    largest = max(tokens, default=0)
    if largest == 0:
        raise DataError("no dataset of the mixture has any tokens")
    return tuple((n / largest) ** (1.0 / temperature) if n else 0.0 for n in tokens)


class MixtureSchedule:
    """Rows of several datasets interleaved by weight.

    weights: of every dataset, from row 0 on
    later:   (row, weights from that row on), rows ascending; the shares count from there

    The dataset of row g, and the index of the row among the rows of that dataset, are found in O(1).
    """

    def __init__(self, weights: Sequence[float], later: Sequence[tuple[int, Sequence[float]]] = ()) -> None:
        self.starts = [0, *(row for row, _ in later)]
        if any(b <= a for a, b in zip(self.starts, self.starts[1:], strict=False)):
            raise DataError(f"the parts of a mixture must start one after the other, not at rows {self.starts}")
        self._periods = [_Period(exact_shares(w)) for w in (weights, *(w for _, w in later))]
        if len({len(p.shares) for p in self._periods}) > 1:
            raise DataError("the parts of a mixture need one weight for each dataset")
        # rows of every dataset before each part
        self._before = [np.zeros(len(weights), np.int64)]
        for part, (a, b) in enumerate(zip(self.starts, self.starts[1:], strict=False)):
            self._before.append(self._before[-1] + self._periods[part].counts(b - a))

    @property
    def shares(self) -> list[NDArray[np.float64]]:
        """Fraction of the rows that each dataset gets, for every part."""
        return [p.shares / p.length for p in self._periods]

    def row(self, g: int) -> tuple[int, int]:
        """(dataset, index of the row among that dataset's rows) of global row g."""
        dataset, index = self.rows(g, g + 1)
        return int(dataset[0]), int(index[0])

    def rows(self, first: int, last: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Dataset and index, int64 [last - first] each, of global rows first .. last - 1."""
        datasets, indices = [], []
        while first < last:
            part = bisect_right(self.starts, first) - 1
            end = min(last, self.starts[part + 1]) if part + 1 < len(self.starts) else last
            dataset, index = self._periods[part].rows(first - self.starts[part], end - self.starts[part])
            datasets.append(dataset)
            indices.append(self._before[part][dataset] + index)
            first = end
        if len(datasets) == 1:
            return datasets[0], indices[0]
        return np.concatenate([np.zeros(0, np.int64), *datasets]), np.concatenate([np.zeros(0, np.int64), *indices])

    def counts(self, n: int) -> NDArray[np.int64]:
        """Rows of every dataset [D] among the first n rows."""
        part = bisect_right(self.starts, n) - 1
        return self._before[part] + self._periods[part].counts(n - self.starts[part])


class _Period:
    """One period of a schedule with these integer shares: after it, every dataset had exactly its share."""

    def __init__(self, shares: NDArray[np.int64]) -> None:
        self.shares = shares
        self.length = int(shares.sum())
        self._dataset = _tijdeman(shares)
        self._places = [np.flatnonzero(self._dataset == d) for d in range(len(shares))]
        self._index = np.empty(self.length, np.int64)
        for places in self._places:
            self._index[places] = np.arange(len(places))

    def rows(self, first: int, last: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        period, place = np.divmod(np.arange(first, last), self.length)
        dataset = self._dataset[place]
        return dataset, period * self.shares[dataset] + self._index[place]

    def counts(self, n: int) -> NDArray[np.int64]:
        period, place = divmod(n, self.length)
        inside = [int(np.searchsorted(places, place)) for places in self._places]
        return period * self.shares + np.array(inside, np.int64)


def exact_shares(weights: Sequence[float]) -> NDArray[np.int64]:
    """The smallest integers in the proportion of the weights as they are written in decimals.

    Where their sum would be above LONGEST_PERIOD, the nearest integers with that sum.
    """
    if not weights or not all(math.isfinite(w) and w >= 0 for w in weights) or sum(weights) <= 0:
        raise DataError(f"mixture weights must be finite, not negative and not all zero: {list(weights)}")
    exact = [Fraction(repr(float(w))) for w in weights]
    unit = sum(exact, Fraction(0))
    fractions = [w / unit for w in exact]
    total = math.lcm(*(f.denominator for f in fractions))
    shares = [int(f * total) for f in fractions] if total <= LONGEST_PERIOD else _rounded(fractions, LONGEST_PERIOD)
    if any(w > 0 and n == 0 for w, n in zip(weights, shares, strict=True)):
        raise DataError(f"a mixture weight is below 1/{LONGEST_PERIOD} of the sum: {list(weights)}")
    return np.array(shares, np.int64)


def _rounded(fractions: list[Fraction], total: int) -> list[int]:
    """Integers nearest to `fractions * total` that add up to `total` (largest remainders)."""
    shares = [int(f * total) for f in fractions]
    by_remainder = sorted(range(len(shares)), key=lambda i: shares[i] - fractions[i] * total)
    for i in by_remainder[: total - sum(shares)]:
        shares[i] += 1
    return shares


def _tijdeman(shares: NDArray[np.int64]) -> NDArray[np.int64]:
    """Dataset of every row of a period, int64 [sum of the shares].

    With k datasets and c = 1 / (2k - 2), the (j + 1)-th row of a dataset of weight w may come at row n from
    (j + c) / w on and must have come at (j + 1 - c) / w; among those that may, the most urgent comes first.
    """
    total = int(shares.sum())
    used = [d for d, share in enumerate(shares.tolist()) if share]
    if len(used) == 1:
        return np.full(total, used[0], np.int64)
    c = 2 * len(used) - 2
    waiting: list[tuple[int, int, int]] = []  # (may come at, must have come at, dataset)

    def enqueue(dataset: int, given: int) -> None:
        share = c * int(shares[dataset])
        release, deadline = -(-(given * c + 1) * total // share), ((given + 1) * c - 1) * total // share
        heappush(waiting, (release, deadline, dataset))

    for dataset in used:
        enqueue(dataset, 0)
    ready: list[tuple[int, int]] = []  # (must have come at, dataset)
    given = [0] * len(shares)
    order = np.empty(total, np.int64)
    for n in range(1, total + 1):
        while waiting and waiting[0][0] <= n:
            _, deadline, dataset = heappop(waiting)
            heappush(ready, (deadline, dataset))
        _, dataset = heappop(ready)
        order[n - 1] = dataset
        given[dataset] += 1
        if given[dataset] < shares[dataset]:
            enqueue(dataset, given[dataset])
    return order
