"""Showers as the voxels that are above the readout threshold, chunk by chunk or as one sparse matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from foundation.data.formats.units import unit_factor
from foundation.data.geometry import CylindricalGeometry, inside, n_voxels
from foundation.data.point_clouds import PointClouds
from foundation.data.ragged import to_offsets
from foundation.errors import DataError
from foundation.evaluate.calochallenge.settings import Settings

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Floats = NDArray[np.float64]
Integers = NDArray[np.int32]

HITS_PER_CHUNK = 100_000
"""Few enough that what is made of them stays in the cache: that makes a factor of two."""
SMALLEST_ENERGY_MEV = 1e-30
"""Empty voxels have no energy, whatever the threshold."""


@dataclass(frozen=True)
class Voxels:
    """The voxels with energy of B showers.

    numbers: of the voxels in the geometry [N], rising within a shower
    energy:  float32 [N], MeV, as the hits have it
    offsets: shower i has the voxels offsets[i] to offsets[i + 1], [B + 1]
    """

    numbers: Integers
    energy: NDArray[np.float32]
    offsets: NDArray[np.int64]


def chunks(clouds: PointClouds, hits: int = HITS_PER_CHUNK) -> Iterator[PointClouds]:
    """The showers in order, in pieces of about `hits` hits that share the memory of `clouds`."""
    starts = [0]
    while starts[-1] < len(clouds):
        end = int(np.searchsorted(clouds.offsets, clouds.offsets[starts[-1]] + hits, side="right")) - 1
        starts.append(min(len(clouds), max(end, starts[-1] + 1)))
    for a, b in pairwise(starts):
        first, last = clouds.offsets[a], clouds.offsets[b]
        yield replace(
            clouds,
            points=clouds.points[first:last],
            offsets=clouds.offsets[a : b + 1] - first,
            labels=clouds.labels[a:b],
            conditions=clouds.conditions[a:b],
        )


def voxels_of(clouds: PointClouds, settings: Settings) -> Voxels:
    """Voxels above the threshold: hits in one voxel are added first, as writing them to the challenge's file does.

    Raises DataError for a hit outside the geometry or an energy that is not finite.
    """
    voxels = Voxels(_numbers(clouds, settings.geometry), _energy(clouds), clouds.offsets)
    if not _rising(voxels.numbers, voxels.offsets):
        voxels = _added(voxels, clouds.owners, n_voxels(settings.geometry))
    threshold = np.float32(max(settings.threshold_mev, SMALLEST_ENERGY_MEV))
    if voxels.energy.min(initial=np.inf) >= threshold:
        return voxels
    kept = voxels.energy >= threshold
    lost_before = np.searchsorted(np.flatnonzero(~kept), voxels.offsets)
    return Voxels(voxels.numbers[kept], voxels.energy[kept], voxels.offsets - lost_before)


def voxel_matrix(clouds: PointClouds, settings: Settings) -> csr_matrix:
    """Voxels above the threshold as a sparse matrix [B, voxels], float32 [MeV]: 8 bytes per voxel with energy."""
    from scipy.sparse import csr_matrix

    parts = [voxels_of(chunk, settings) for chunk in chunks(clouds)]
    pointers = to_offsets(np.concatenate([np.zeros(0, np.int64), *(np.diff(part.offsets) for part in parts)]))
    energy = np.concatenate([np.zeros(0, np.float32), *(part.energy for part in parts)])
    numbers = np.concatenate([np.zeros(0, np.int32), *(part.numbers for part in parts)])
    return csr_matrix((energy, numbers, pointers), shape=(len(clouds), n_voxels(settings.geometry)))


def incident_energy_mev(clouds: PointClouds) -> Floats:
    """Incident energies [B] in MeV. Raises DataError where they are missing or not positive."""
    if "incident_energy" not in clouds.condition_names:
        raise DataError(
            f"the showers of '{clouds.tag}' have no incident energy; the CaloChallenge's metrics need it as the "
            "condition 'incident_energy'"
        )
    unit = clouds.condition_units[clouds.condition_names.index("incident_energy")]
    energy = clouds.condition("incident_energy").astype(np.float64) * unit_factor(unit, "MeV")
    if not (np.isfinite(energy) & (energy > 0)).all():
        bad = int((~(energy > 0) | ~np.isfinite(energy)).sum())
        raise DataError(f"{bad} showers of '{clouds.tag}' have an incident energy that is not a positive number")
    return energy


def _energy(clouds: PointClouds) -> NDArray[np.float32]:
    energy = np.ascontiguousarray(clouds.feature("energy"))
    if not np.isfinite([energy.min(initial=0), energy.max(initial=0)]).all():
        bad = int((~np.isfinite(energy)).sum())
        raise DataError(f"{bad} hits of '{clouds.tag}' have an energy that is not finite; leave these showers out")
    factor = unit_factor(clouds.units[clouds.features.index("energy")], "MeV")
    return energy if factor == 1.0 else energy * np.float32(factor)


@dataclass(frozen=True)
class _Numbering:
    """How voxels of a geometry are counted: cells of its layers, [L] each, and the largest of them."""

    sectors: Integers
    rings: Integers
    first: Integers
    largest: tuple[int, int, int]
    regular: bool


@lru_cache(maxsize=8)
def _numbering(geometry: CylindricalGeometry) -> _Numbering:
    """Kept, as a chunk is worked off in less time than this takes."""
    sectors, rings = geometry.alpha_bins.astype(np.int32), geometry.r_bins.astype(np.int32)
    first = np.concatenate([[0], np.cumsum(geometry.voxels_per_layer)[:-1]]).astype(np.int32)
    largest = geometry.n_layers - 1, int(sectors.max()) - 1, int(rings.max()) - 1
    return _Numbering(sectors, rings, first, largest, geometry.regular_shape is not None)


def _numbers(clouds: PointClouds, geometry: CylindricalGeometry) -> Integers:
    """Voxel number of every hit [N]."""
    cells = _numbering(geometry)
    columns = [np.ascontiguousarray(clouds.feature(name)) for name in geometry.axes]  # each is read several times
    for values, most in zip(columns, cells.largest, strict=True):
        within = values.min(initial=0) >= 0 and values.max(initial=0) <= most
        if not within or not np.array_equal(np.trunc(values), values):
            _refuse(clouds, geometry)
    layer, alpha, r = (values.astype(np.int32) for values in columns)
    if cells.regular:
        return (layer * cells.sectors[0] + alpha) * cells.rings[0] + r
    rings_here = cells.rings[layer]
    if not (np.all(alpha < cells.sectors[layer]) and np.all(r < rings_here)):
        _refuse(clouds, geometry)
    return cells.first[layer] + alpha * rings_here + r


def _refuse(clouds: PointClouds, geometry: CylindricalGeometry) -> None:
    values = {name: clouds.feature(name) for name in geometry.axes}
    whole = {name: np.where(np.isfinite(v), np.floor(v), -1).astype(np.int64) for name, v in values.items()}
    known = inside(geometry, whole) & np.all([values[name] == whole[name] for name in whole], axis=0)
    raise DataError(
        f"{int((~known).sum())} hits of '{clouds.tag}' are in no voxel of the geometry; leave them out before the "
        "CaloChallenge's metrics are computed"
    )


def _rising(numbers: Integers, offsets: NDArray[np.int64]) -> bool:
    """Whether the numbers rise within every shower."""
    rises = numbers[1:] > numbers[:-1]
    starts = offsets[(offsets > 0) & (offsets < len(numbers))]
    rises[starts - 1] = True
    return bool(rises.all())


def _added(voxels: Voxels, owners: NDArray[np.int64], of_geometry: int) -> Voxels:
    """Voxels in rising order, each once, with the sum of the energies in it."""
    key = owners * of_geometry + voxels.numbers
    order = np.argsort(key, kind="stable")
    key = key[order]
    first = np.flatnonzero(np.append(True, key[1:] != key[:-1]))
    total = np.add.reduceat(voxels.energy[order].astype(np.float64), first)
    counts = np.bincount(key[first] // of_geometry, minlength=len(voxels.offsets) - 1)
    return Voxels((key[first] % of_geometry).astype(np.int32), total.astype(np.float32), to_offsets(counts))
