"""From codes to point clouds in physical units, and what a shower needs after that: no two hits in one voxel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from foundation.data.cards import DatasetCard
from foundation.data.collisions import hits_outside, in_voxels, resolve
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError
from foundation.generate.beginnings import Beginnings
from foundation.generate.numbers import INSIDE_BINS, keys, uniform_of_points
from foundation.tokens.tokenizer import Codes, Tokenizer


def decoded(
    tokenizer: Tokenizer,
    card: DatasetCard,
    codes: Codes,
    labels: NDArray[np.int64],
    conditions: NDArray[np.float32],
    seed: int,
    index: NDArray[np.int64] | None = None,
    beginnings: Beginnings | None = None,
) -> PointClouds:
    """The clouds that codes stand for; what is random in a tokenizer is drawn from (seed, number of the object).

    index:      numbers of the objects [B]; 0, 1, 2, ... where they are not given
    beginnings: points that the objects were given, which they keep exactly
    """
    index = np.arange(len(codes)) if index is None else index
    drawn = uniform_of_points(keys(seed, INSIDE_BINS, index), np.diff(codes.offsets), len(tokenizer.streams))
    given = dict(zip((c.name for c in card.conditions), conditions.T, strict=True))
    require_known(tokenizer, given, card.tag)
    points = tokenizer.decode(codes, drawn, given)
    return PointClouds(
        points=points.values if beginnings is None else beginnings.placed(points.values, points.offsets),
        offsets=points.offsets,
        features=tuple(f.name for f in tokenizer.features),
        units=tuple(f.unit for f in tokenizer.features),
        conventions=tuple(f.convention for f in tokenizer.features),
        labels=labels,
        conditions=conditions.astype(np.float32),
        condition_names=tuple(c.name for c in card.conditions),
        condition_units=tuple(c.unit for c in card.conditions),
        tag=card.tag,
    )


def require_known(tokenizer: Tokenizer, given: dict[str, NDArray], tag: str) -> None:
    """Refuse to decode without the quantities that the tokenizer needs."""
    for name in tokenizer.conditions:
        if name not in given or np.isnan(given[name]).any():
            raise DataError(f"the tokenizer of '{tag}' cannot decode without '{name}': give it for every object")


def resolved(clouds: PointClouds, card: DatasetCard) -> tuple[PointClouds, int]:
    """Showers in which no two hits share a voxel, by the rule of the card, and how many hits were added or moved.

    Clouds of jets stay as they are. `shift` needs the voxels of a geometry: showers with hits outside of it are summed.
    """
    if card.domain != "shower":
        return clouds, 0
    rule = card.format.collisions if card.format is not None else "sum"
    if rule == "sum" or card.geometry is None or not in_voxels(clouds, card.geometry):
        return resolve(clouds, card.geometry, "sum")
    lost = np.unique(clouds.owners[hits_outside(clouds, card.geometry)])
    if len(lost) == 0:
        return resolve(clouds, card.geometry, "shift")
    whole = np.setdiff1d(np.arange(len(clouds)), lost)
    shifted, moved = resolve(clouds.select(whole), card.geometry, "shift")
    summed, added = resolve(clouds.select(lost), card.geometry, "sum")
    back = np.argsort(np.concatenate([whole, lost]), kind="stable")
    return PointClouds.concatenate([shifted, summed]).select(back), moved + added


def energy_sums(clouds: PointClouds) -> NDArray[np.float64]:
    """Sum of the hits' energies of each shower, [B]."""
    return np.bincount(clouds.owners, clouds.feature("energy").astype(np.float64), len(clouds)).astype(np.float64)
