"""Bins of one feature: where they begin, which of them a value falls into, and a value for a code.

A bin is an interval of the float32 values that point clouds hold. Decoding never leaves it, so that a decoded value has
the code that it was decoded from; and encoding compares physical values, without a logarithm that two machines may
round differently.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from foundation.data.cards import Feature
from foundation.errors import DataError, did_you_mean
from foundation.tokens.config import Inside, Spacing
from foundation.tokens.transforms import category_size, exact_codes, inverse_transform, transform

CELLS = 1024
"""The probabilities at which the quantile function inside a bin is kept are multiples of one over this number."""
TAIL = [0, 1, 2, 4, 8, 16, 32, 64]
PLACES = np.array([*TAIL, *range(128, CELLS - 64, 64), *(CELLS - place for place in TAIL[::-1])])
"""These multiples: dense at both ends, since the values of the last bin may reach far."""
LEFT_OF = np.searchsorted(PLACES, np.arange(CELLS), side="right") - 1
"""Which of the places is the last before each cell."""
ENOUGH = 64
"""Fewer points of the fit say too little of the density inside a bin: it counts as uniform."""
PIECE = 8_192
"""Points that are worked on at once, so that what is needed on the way stays in a core's cache."""
TABLE_BITS = 16
MOST_STEPS = 8
"""More borders than this in one cell of the table, and bisection is faster."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Bins:
    """The n bins of a feature, in the order of its values.

    lowest:  float32 [n], lowest value of each bin, in physical units; a value belongs to the last bin whose lowest
             does not exceed it, and to the first one below all of them
    highest: float32 [n], highest value that decoding gives; equal to the lowest where all points of a bin are alike
    knots:   float64 [n, m], what decoding gives, in the card's transformed space: the quantile function at `PLACES`,
             or at m equidistant probabilities if m is another number
    """

    feature: Feature
    lowest: NDArray[np.float32]
    highest: NDArray[np.float32]
    knots: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.lowest)

    @property
    def edges(self) -> NDArray[np.float64]:
        """Borders [n + 1] in the card's transformed space."""
        return transform(self.feature, np.append(self.lowest, self.highest[-1]))

    @cached_property
    def _search(self) -> _Search:
        return _Search(self.lowest)

    def codes(self, values: NDArray[np.floating]) -> NDArray[np.integer]:
        """Bin of each value [N] in physical units; values outside all bins belong to the first or the last.

        Raises DataError for an integer or category feature whose values are not what they are called.
        """
        if self.feature.kind != "continuous":
            exact_codes(self.feature, values)
            values = np.rint(values)
        return self._search(values.astype(np.float32, copy=False))

    def values(self, codes: NDArray[np.integer], uniform: NDArray[np.float64]) -> NDArray[np.float32]:
        """A value [N] in physical units for each code, at probability `uniform` of the density inside its bin."""
        x = _placed(self.knots, codes, uniform)
        value = inverse_transform(self.feature, x).astype(np.float32)
        if self.feature.kind != "continuous":
            value = np.rint(value)
        return np.clip(value, self.lowest[codes], self.highest[codes])

    def arrays(self) -> dict[str, NDArray]:
        """What `from_arrays` needs to build equal bins."""
        name = self.feature.name
        return {f"lowest.{name}": self.lowest, f"highest.{name}": self.highest, f"knots.{name}": self.knots}

    @staticmethod
    def from_arrays(feature: Feature, arrays: Mapping[str, NDArray]) -> Bins:
        """The bins of a feature, from the arrays of a tokenizer of this version or of the first one."""
        knots = arrays[f"knots.{feature.name}"]
        if f"edges.{feature.name}" in arrays:
            return _first_version(feature, arrays[f"edges.{feature.name}"], knots)
        return Bins(feature, arrays[f"lowest.{feature.name}"], arrays[f"highest.{feature.name}"], knots)


def fit_bins(
    feature: Feature,
    values: NDArray[np.float32],
    window: tuple[float, float],
    bins: int,
    spacing: Spacing,
    inside: Inside,
) -> Bins:
    """Bins of a feature, fitted on its values [N] (all points of many clouds) inside `window`, all in physical units.

    They are fewer than `bins` where there are fewer different values, or float32 cannot tell more borders apart.
    Raises DataError where the values do not allow for these bins.
    """
    _require(feature, values, window, bins, spacing)
    low, high = window
    alike = None
    if spacing == "quantile" and feature.kind != "category":
        lowest, alike = _equally_filled(values[(values >= np.float32(low)) & (values <= np.float32(high))], bins)
        lowest[0] = lowest[0] if alike[0] else low
    else:
        lowest = _equally_wide(feature, low, high, bins, spacing)
    if feature.kind == "continuous":
        ends = np.append(lowest, np.float32(high))
        highest = np.append(np.nextafter(lowest[1:], np.float32(-np.inf)), ends[-1:])
    else:
        ends = np.append(lowest, np.float32(high + 1)) - np.float32(0.5)
        highest = np.append(lowest[1:] - 1, np.float32(high))
    if alike is not None:
        highest = np.where(alike, lowest, highest)
    return Bins(feature, lowest, highest, _knots(feature, values, lowest, ends, inside))


def chosen(
    option: T | Mapping[str, T], default: T, features: Sequence[Feature], tokenizer: str, what: str
) -> dict[str, T]:
    """An option of a recipe for each feature, by name: one for all, or by name with a default for those left out."""
    if not isinstance(option, Mapping):
        return {f.name: option for f in features}
    names = [f.name for f in features]
    for name in option:
        if name not in names:
            raise DataError(
                f"'{what}' of tokenizer '{tokenizer}' names '{name}', which is no feature with bins here"
                f"{did_you_mean(name, names)}"
            )
    return {name: option.get(name, default) for name in names}


def pieces(points: int) -> Iterator[slice]:
    """Slices that cover rows 0 .. points - 1, short enough for a core's cache."""
    return (slice(first, first + PIECE) for first in range(0, points, PIECE))


def _require(
    feature: Feature, values: NDArray[np.float32], window: tuple[float, float], bins: int, spacing: Spacing
) -> None:
    low, high = window
    if len(values) < bins:
        raise DataError(f"{len(values)} points are too few to fit {bins} bins of '{feature.name}'")
    if not ((values >= np.float32(low)) & (values <= np.float32(high))).any():
        raise DataError(f"no value of '{feature.name}' lies inside the range of its card: correct the range")
    if spacing == "log" and low <= 0 and feature.kind != "category":
        raise DataError(
            f"'{feature.name}' reaches {low:g}, and bins with spacing 'log' need values above 0: take 'linear' or "
            f"'quantile', or give the feature's card a range above 0"
        )
    if feature.kind == "continuous":
        return
    exact_codes(feature, values)
    size = category_size(feature)
    if bins > size or (feature.kind == "category" and bins != size):
        allowed = f"{size}" if feature.kind == "category" else f"at most {size}"
        raise DataError(f"'{feature.name}' has {size} values: give it {allowed} bins, not {bins}")


def _equally_wide(feature: Feature, low: float, high: float, bins: int, spacing: Spacing) -> NDArray[np.float32]:
    """Lowest value of bins that are equally wide in the logarithm of the physical value, or in the card's space."""
    if feature.kind == "category":
        return np.arange(bins, dtype=np.float32)
    whole = feature.kind == "integer"
    ends = np.array([low, high + 1.0 if whole else high])
    if spacing == "log":
        borders = np.geomspace(ends[0], ends[1], bins + 1)[:-1]
    else:
        x = transform(feature, ends)
        borders = inverse_transform(feature, np.linspace(x[0], x[1], bins + 1)[:-1])
    borders[0] = low  # as it was given, without rounding
    # a bin of whole numbers begins with the first one that is not below its border
    return np.unique((np.ceil(borders - 1e-6) if whole else borders).astype(np.float32))


def _equally_filled(values: NDArray[np.float32], bins: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Lowest value of bins that hold about equally many of `values`, and whether a bin holds one value repeatedly.

    A value that alone has more points than a bin's share (d0 = 0 of all neutral constituents) gets a bin of its own;
    what lies between such values is divided into the bins that are left. No bin is empty.
    """
    distinct, counts = np.unique(values, return_counts=True)
    below = np.concatenate([[0], np.cumsum(counts)])
    masses = _mass_points(counts, bins)
    starts = np.sort(np.concatenate([masses, *_starts_between(masses, below, bins)]))
    held = np.diff(np.append(starts, len(distinct)))
    return distinct[starts], (held == 1) & (counts[starts] > 1)


def _mass_points(counts: NDArray[np.int64], bins: int) -> NDArray[np.int64]:
    """Indices, rising, of the values that deserve a bin of their own, out of values that occur `counts` times."""
    frequent = np.argsort(-counts, kind="stable")[:bins]
    of_more_frequent = np.cumsum(counts[frequent]) - counts[frequent]
    share = (counts.sum() - of_more_frequent) / (bins - np.arange(len(frequent)))
    above = counts[frequent] > share
    n = len(above) if above.all() else int(np.argmin(above))
    # each gap between them needs a bin as well
    while n + len(_gaps(np.sort(frequent[:n]), len(counts))) > bins:
        n -= 1
    return np.sort(frequent[:n])


def _gaps(masses: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """First index and end [G, 2] of the runs of indices 0 .. size - 1 between `masses`."""
    limits = np.concatenate([[-1], masses, [size]])
    runs = np.stack([limits[:-1] + 1, limits[1:]], axis=1)
    return runs[runs[:, 1] > runs[:, 0]]


def _starts_between(masses: NDArray[np.int64], below: NDArray[np.int64], bins: int) -> Iterator[NDArray[np.int64]]:
    """Indices at which bins begin, for each run of values between the mass points; `below` has the points below."""
    gaps = _gaps(masses, len(below) - 1)
    held = below[gaps[:, 1]] - below[gaps[:, 0]]
    bins_left, points_left = bins - len(masses), int(held.sum())
    for i, points in enumerate(held.tolist()):
        n = min(max(1, round(points * bins_left / points_left)), bins_left - (len(gaps) - 1 - i))
        targets = below[gaps[i, 0]] + points * np.arange(n) / n
        yield np.unique(np.searchsorted(below, targets, side="right") - 1)
        bins_left, points_left = bins_left - n, points_left - points


def _knots(
    feature: Feature,
    values: NDArray[np.float32],
    lowest: NDArray[np.float32],
    ends: NDArray[np.float32],
    inside: Inside,
) -> NDArray[np.float64]:
    """The knots of bins that begin at `lowest` and reach from one of `ends` [n + 1] to the next."""
    borders = transform(feature, ends)
    if inside == "middle":
        return (borders[:-1, None] + borders[1:, None]) / 2
    if inside == "uniform":
        return np.stack([borders[:-1], borders[1:]], axis=1)
    knots = borders[:-1, None] + np.diff(borders)[:, None] * PLACES / CELLS
    ordered = np.sort(values)
    first = np.searchsorted(_Search(lowest)(ordered), np.arange(len(lowest) + 1))
    x = transform(feature, ordered)
    for b in np.flatnonzero(np.diff(first) >= ENOUGH):
        quantiles = np.quantile(x[first[b] : first[b + 1]], PLACES / CELLS)
        # points outside the window are coded by the first and last bin, but decoded inside it
        knots[b] = np.clip(quantiles, *np.sort(borders[b : b + 2]))
    return knots


def _placed(
    knots: NDArray[np.float64], codes: NDArray[np.integer], uniform: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Value at probability `uniform` of the density of bin `codes`; linear between the knots."""
    size = knots.shape[1]
    if size == 1:
        return knots[codes, 0]
    if size == len(PLACES):
        place = uniform * CELLS
        left = LEFT_OF[place.astype(np.int64)]
        place -= PLACES[left]
        place /= np.diff(PLACES)[left]
    else:
        place = uniform * (size - 1)
        left = np.minimum(place.astype(np.int64), size - 2)
        place -= left
    left += codes * size
    flat = knots.ravel()
    a = flat[left]
    left += 1
    return a + place * (flat[left] - a)


class _Search:
    """Finds the bin of float32 values, several times faster than bisection.

    The bits of a float32, read as an integer, rise with its value. The leading ones, counted from the lowest border,
    pick a cell of a table, which says the last bin that begins before the cell; comparisons do the rest.
    """

    def __init__(self, lowest: NDArray[np.float32]) -> None:
        self.lowest = lowest + np.float32(0)
        self.following = np.append(lowest[1:], np.float32(np.inf))
        ranks = _rank(self.lowest)
        self.first, self.last = ranks[0], ranks[-1]
        self.shift = np.uint32(max(0, (int(self.last) - int(self.first)).bit_length() - TABLE_BITS))
        cells = self._cells(self.lowest)
        self.steps = int(np.unique(cells, return_counts=True)[1].max())
        before = np.searchsorted(cells, np.arange(int(cells[-1]) + 1, dtype=np.uint32))
        self.table = np.maximum(before - 1, 0).astype(np.int32)

    def _cells(self, values: NDArray[np.float32]) -> NDArray[np.uint32]:
        # the difference may exceed int32, and is right again as uint32
        return (np.clip(_rank(values), self.first, self.last) - self.first).view(np.uint32) >> self.shift

    def __call__(self, values: NDArray[np.float32]) -> NDArray[np.integer]:
        if self.steps > MOST_STEPS:
            return np.maximum(np.searchsorted(self.lowest, values, side="right") - 1, 0)
        codes = np.empty(len(values), np.int32)
        for rows in pieces(len(values)):
            some = values[rows] + np.float32(0)  # -0 and 0 are one value with two bit patterns
            # no index is out of range; mode "clip" spares numpy the look
            found = self.table.take(self._cells(some), mode="clip")
            for _ in range(self.steps):
                found += some >= self.following.take(found, mode="clip")
            codes[rows] = found
        return codes


def _rank(values: NDArray[np.float32]) -> NDArray[np.int32]:
    """Integers in the order of the float32 values."""
    bits = values.view(np.int32)
    return bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))


def _first_version(feature: Feature, edges: NDArray[np.float64], knots: NDArray[np.float64]) -> Bins:
    """Bins of the first version, which compared values with `edges` in the card's transformed space."""
    if feature.scale <= 0:
        raise DataError(f"'{feature.name}' has a scale of {feature.scale:g}: fit the tokenizer again")
    lowest = _first_reaching(feature, edges[:-1])
    last = inverse_transform(feature, edges[-1:]).astype(np.float32)
    highest = np.append(np.nextafter(lowest[1:], np.float32(-np.inf)), last)
    return Bins(feature, lowest, highest, knots)


def _first_reaching(feature: Feature, edges: NDArray[np.float64]) -> NDArray[np.float32]:
    """The smallest float32 values whose transform is not below `edges`, by bisection of their ranks."""
    largest = int(np.array([np.finfo(np.float32).max]).view(np.int32)[0])
    below, reaching = np.full(len(edges), -largest - 1), np.full(len(edges), largest)
    while np.any(reaching - below > 1):
        middle = (below + reaching) // 2
        enough = transform(feature, _of_rank(middle)) >= edges
        below, reaching = np.where(enough, below, middle), np.where(enough, middle, reaching)
    return _of_rank(reaching)


def _of_rank(ranks: NDArray[np.int64]) -> NDArray[np.float32]:
    """float32 values that rise with `ranks`, one for each: 0 for 0."""
    size = np.abs(ranks).astype(np.int32).view(np.float32)
    return np.where(ranks < 0, -size, size)
