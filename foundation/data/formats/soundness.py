"""What cannot be right in point clouds, whatever file they come from, and what lies outside a card's ranges."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from foundation.data.cards import DatasetCard
from foundation.data.point_clouds import PointClouds

ROWS_AT_ONCE = 64


def wrong_objects(card: DatasetCard, clouds: PointClouds) -> dict[str, NDArray[np.bool_]]:
    """What cannot be right -> the objects it is true of, [B]: NaN or infinity, negative pT or energy, a jet of nothing,
    an index that is no whole number."""
    wrong: dict[str, NDArray[np.bool_]] = {}

    def note(what: str, points: NDArray[np.bool_]) -> None:
        if points.any():
            mask = np.zeros(len(clouds), bool)
            mask[np.searchsorted(clouds.offsets, np.flatnonzero(points), side="right") - 1] = True
            wrong[what] = mask

    # Extremes of all columns first; NaN spreads to them. What is wrong is looked for only when something is.
    low, high = _extremes(clouds.points)
    for i, feature in enumerate(card.features):
        if len(clouds.points) and not (np.isfinite(low[i]) and np.isfinite(high[i])):
            note(f"NaN or infinite '{feature.name}'", ~np.isfinite(clouds.points[:, i]))
        if feature.name in ("pt", "energy") and not low[i] >= 0:
            note(f"negative '{feature.name}'", clouds.points[:, i] < 0)
        if feature.kind != "continuous":
            values = np.ascontiguousarray(clouds.points[:, i])
            note(f"'{feature.name}' that is no whole number", values != np.rint(values))
    for i, condition in enumerate(card.conditions):
        values = clouds.conditions[:, i]
        if not np.isfinite(values).all():
            wrong[f"NaN or infinite '{condition.name}'"] = ~np.isfinite(values)
    if card.domain == "jet" and (clouds.counts == 0).any():
        wrong["no constituents"] = clouds.counts == 0
    return wrong


def points_outside(card: DatasetCard, clouds: PointClouds) -> dict[str, int]:
    """Feature -> number of points outside the card's range, where there are any."""
    found = {}
    lowest, highest = _extremes(clouds.points)
    for i, feature in enumerate(card.features):
        if feature.range is None:
            continue
        # The border of a range is a number of single precision too, as the values are.
        low, high = np.float32(feature.range[0]), np.float32(feature.range[1])
        if not (lowest[i] >= low and highest[i] <= high):
            values = clouds.points[:, i]
            found[feature.name] = int(((values < low) | (values > high)).sum())
    return {name: count for name, count in found.items() if count}


def _extremes(points: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Smallest and largest value of each column, [F]; NaN where it has one; without points, what is never wrong."""
    width = points.shape[1]
    if not len(points):
        return np.full(width, np.inf, np.float32), np.full(width, -np.inf, np.float32)
    # Many rows side by side make long vectors, which numpy compares ten times as fast as short ones.
    whole = len(points) // ROWS_AT_ONCE * ROWS_AT_ONCE
    wide, rest = points[:whole].reshape(-1, ROWS_AT_ONCE * width), points[whole:]
    pieces = [(rest.min(axis=0), rest.max(axis=0))] if len(rest) else []
    if len(wide):
        low, high = (extreme.reshape(ROWS_AT_ONCE, width) for extreme in (wide.min(axis=0), wide.max(axis=0)))
        pieces.append((low.min(axis=0), high.max(axis=0)))
    return np.min([a for a, _ in pieces], axis=0), np.max([b for _, b in pieces], axis=0)
