"""Condition bins: a quantity of an object, such as its incident energy, as one id out of `bins`, and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from foundation.data.cards import Condition
from foundation.errors import DataError

ANY_BIN = -1
"""The bin of a value that is not given."""
INSIDE = 1e-6
"""A value that is placed in a bin keeps this part of it from its borders, so that rounding cannot move it out."""


def require_bins(condition: Condition, dataset: str) -> None:
    """Refuse a condition whose range cannot be divided into bins."""
    low, high = condition.range
    if not low < high:
        raise DataError(
            f"condition '{condition.name}' of '{dataset}' has the range {low:g} to {high:g} {condition.unit}: "
            f"its lower end must be below its upper one"
        )
    if condition.scale == "log" and low <= 0:
        raise DataError(
            f"condition '{condition.name}' of '{dataset}' has logarithmic bins from {low:g} {condition.unit} on: "
            f"start the range above 0, or take the scale 'linear'"
        )


def condition_bins(condition: Condition, values: NDArray[np.floating], dataset: str = "") -> NDArray[np.int64]:
    """Bin of each value, int64, 0 .. bins - 1; ANY_BIN for NaN. Values outside the range are in the first or last bin.

    dataset: the tag that errors name. Raises DataError for a value at or below 0 where the bins are logarithmic.
    """
    values = np.asarray(values, np.float64)
    low, high = condition.range
    given = ~np.isnan(values)
    known = np.where(given, values, low)
    if condition.scale == "log":
        _require_positive(condition, known, dataset)
        place = np.log(known / low) / np.log(high / low)
    else:
        place = (known - low) / (high - low)
    bins = np.clip(place * condition.bins, 0, condition.bins - 1).astype(np.int64)
    return np.where(given, bins, ANY_BIN)


def _require_positive(condition: Condition, values: NDArray[np.float64], dataset: str) -> None:
    if len(values) and values.min() <= 0:
        of = f" of '{dataset}'" if dataset else ""
        raise DataError(
            f"condition '{condition.name}'{of} is {values.min():g} {condition.unit} for an object, but its bins are "
            f"logarithmic: correct the value, make it NaN where it is not known, or take the scale 'linear'"
        )


def condition_values(
    condition: Condition, bins: NDArray[np.integer], uniform: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Value of each bin: its centre in the scale of the bins, or placed in it by `uniform` numbers in [0, 1).

    ANY_BIN becomes NaN. `condition_bins` of the values, kept in float64, are the bins again.
    """
    bins = np.asarray(bins, np.int64)
    if len(bins) and (bins.min() < ANY_BIN or bins.max() >= condition.bins):
        raise DataError(
            f"condition '{condition.name}' has bins 0 to {condition.bins - 1}, not {bins.min()}..{bins.max()}"
        )
    inside = 0.5 if uniform is None else np.clip(uniform, INSIDE, 1.0 - INSIDE)
    values = _value(condition, (bins + inside) / condition.bins)
    return np.where(bins == ANY_BIN, np.nan, values)


def condition_edges(condition: Condition) -> NDArray[np.float64]:
    """Borders of the bins, float64 [bins + 1]."""
    return _value(condition, np.arange(condition.bins + 1) / condition.bins)


def _value(condition: Condition, place: NDArray[np.float64]) -> NDArray[np.float64]:
    """Value at a place in the range, 0 at its lower end and 1 at its upper one."""
    low, high = condition.range
    return low * (high / low) ** place if condition.scale == "log" else low + place * (high - low)


def conditions_outside(
    conditions: Sequence[Condition], values: NDArray[np.floating], dataset: str = ""
) -> dict[str, int]:
    """How many objects have each condition outside its range, by its name; only conditions with any.

    values: [B, C]; NaN is not outside. Raises DataError for values that logarithmic bins cannot take.
    """
    found = {}
    for condition, column in zip(conditions, np.asarray(values, np.float64).T, strict=True):
        condition_bins(condition, column, dataset)
        low, high = condition.range
        # float32 values of a float64 border must not count as outside
        margin = 1e-6 * max(abs(low), abs(high))
        count = int(((column < low - margin) | (column > high + margin)).sum())
        if count:
            found[condition.name] = count
    return found
