"""Which dataset gives row g of the mixed stream: an integer schedule, exact at every prefix, with no state."""

from __future__ import annotations

import numpy as np

from foundation.errors import DataError

PERIOD = 1000


class MixtureSchedule:
    """Rows of several datasets interleaved by weight. Rows are equally long, so weights mean tokens.

    Over PERIOD rows each dataset gets its share exactly (after rounding the weights to 1/PERIOD); before that, at any
    prefix, the largest deficit goes next. The dataset and the index of row g inside that dataset are found in O(1).
    """

    def __init__(self, weights: list[float]) -> None:
        w = np.asarray(weights, float)
        if len(w) == 0 or not np.isfinite(w).all() or (w < 0).any() or w.sum() <= 0:
            raise DataError(f"mixture weights must be finite, not negative and not all zero: {weights}")
        self.shares = _round_to_sum(w / w.sum(), PERIOD)
        if ((w > 0) & (self.shares == 0)).any():
            raise DataError(f"a mixture weight is below 1/{PERIOD} of the sum: {weights}")
        credit = np.zeros(len(w), np.int64)
        self._order = np.empty(PERIOD, np.int64)
        self._before = np.zeros((PERIOD, len(w)), np.int64)
        given = np.zeros(len(w), np.int64)
        for g in range(PERIOD):
            credit += self.shares
            chosen = int(np.argmax(credit))
            credit[chosen] -= PERIOD
            self._before[g] = given
            self._order[g] = chosen
            given[chosen] += 1

    def row(self, g: int) -> tuple[int, int]:
        """(dataset, index of the row among that dataset's rows) of global row g."""
        period, place = divmod(g, PERIOD)
        dataset = int(self._order[place])
        return dataset, int(period * self.shares[dataset] + self._before[place, dataset])


def _round_to_sum(fractions: np.ndarray, total: int) -> np.ndarray:
    """Integers nearest to `fractions * total` that add up to `total` (largest remainders)."""
    exact = fractions * total
    whole = np.floor(exact).astype(np.int64)
    rest = np.argsort(-(exact - whole), kind="stable")[: total - int(whole.sum())]
    whole[rest] += 1
    return whole
