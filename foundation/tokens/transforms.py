"""One feature between physical units and the space a tokenizer works in."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from foundation.data.cards import Feature
from foundation.errors import DataError


def transform(feature: Feature, values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Physical values to the space a tokenizer works in: log, shift, scale as the card declares."""
    x = values.astype(np.float64)
    if feature.log:
        x = np.log(np.maximum(x, 1e-30))
    return (x - feature.shift) * feature.scale


def inverse_transform(feature: Feature, values: NDArray[np.floating]) -> NDArray[np.float64]:
    """The exact inverse of `transform`."""
    x = values.astype(np.float64) / feature.scale + feature.shift
    return np.exp(x) if feature.log else x


def lowest_value(feature: Feature) -> int:
    """The value of an integer or category feature whose code is 0."""
    return int(feature.range[0]) if feature.kind == "integer" and feature.range else 0


def category_size(feature: Feature) -> int:
    """Number of values of an integer or category feature."""
    if feature.kind == "category":
        return len(feature.categories)
    assert feature.range is not None  # the card checks it
    return int(feature.range[1] - feature.range[0]) + 1


def exact_codes(feature: Feature, values: NDArray[np.floating]) -> NDArray[np.int64]:
    """Codes of an integer or category feature: the value itself, counted from the lowest.

    Raises DataError for a value that is not a whole number inside the range: an exact code cannot stand for it.
    """
    low = lowest_value(feature)
    codes = np.rint(values).astype(np.int64) - low
    if len(values) and (np.abs(values - np.rint(values)).max() > 1e-3 or codes.min() < 0):
        raise DataError(f"feature '{feature.name}' must be whole numbers from {low}; found {float(values.min()):g}")
    if len(values) and codes.max() >= category_size(feature):
        raise DataError(
            f"feature '{feature.name}' reaches {float(values.max()):g}, above its range "
            f"(0 .. {category_size(feature) - 1 + low}): widen the card's range"
        )
    return codes
