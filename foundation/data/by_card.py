"""From flat columns, of a simulator or a file, to the point clouds that a dataset card describes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from foundation.data.cards import DatasetCard
from foundation.data.point_clouds import PointClouds
from foundation.data.ragged import to_offsets
from foundation.errors import DataError, did_you_mean


def clouds_of_card(
    card: DatasetCard,
    columns: Mapping[str, NDArray],
    owners: NDArray[np.int64],
    labels: NDArray[np.int64],
    conditions: Mapping[str, NDArray],
) -> PointClouds:
    """Point clouds with the card's features, conditions and order.

    columns:    one array [N] per feature that there is; owners: cloud of each point, [N]
    labels:     [B]; conditions: one array [B] per condition that there is

    Raises DataError when the card asks for a feature or a condition that is not there.
    """
    names = tuple(condition.name for condition in card.conditions)
    points = _stacked(card, "feature", columns, card.feature_names, len(owners)).astype(np.float32)
    of_clouds = _stacked(card, "condition", conditions, names, len(labels)).astype(np.float32)
    # The last key of lexsort counts first: clouds, then the card's keys from the first to the last.
    keys: list[NDArray] = []
    for key in reversed(card.order):
        values = points[:, card.feature_names.index(key.lstrip("-"))]
        keys.append(-values if key.startswith("-") else values)
    order = np.lexsort([*keys, owners])
    counts = np.bincount(owners, minlength=len(labels))
    return PointClouds(
        points=points[order],
        offsets=to_offsets(counts),
        features=card.feature_names,
        units=card.feature_units,
        labels=labels.astype(np.int64),
        conditions=of_clouds,
        condition_names=names,
        condition_units=tuple(condition.unit for condition in card.conditions),
        tag=card.tag,
    )


def _stacked(
    card: DatasetCard, what: str, columns: Mapping[str, NDArray], names: tuple[str, ...], rows: int
) -> NDArray[np.float64]:
    for name in names:
        if name not in columns:
            raise DataError(
                f"card '{card.name}' asks for {what} '{name}', which is not there{did_you_mean(name, columns)}"
            )
    return np.stack([columns[name] for name in names], axis=1) if names else np.zeros((rows, 0))
