"""Several hits of one shower in one voxel: a voxel can be read out once, so they are added or moved apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from foundation.data.geometry import CartesianGeometry, CylindricalGeometry, checked_coordinates, inside, n_voxels
from foundation.data.point_clouds import PointClouds
from foundation.data.ragged import to_offsets
from foundation.errors import DataError

Layers = CartesianGeometry | CylindricalGeometry
Integers = NDArray[np.int64]

NOT_A_PLACE = ("energy", "time")
BLOCK_VOXELS = 50_000_000
"""Voxels of the showers that are searched together for free places: a byte each."""


def resolve(clouds: PointClouds, geometry: Layers | None, rule: Literal["sum", "shift"]) -> tuple[PointClouds, int]:
    """Showers in which no two hits share a voxel, and how many hits were added to another or moved.

    sum:   hits in one voxel become one with the sum of their energies, which stands where the first one stood. Hits
           outside the geometry are treated alike, by their indices. Without a geometry, hits with the same index
           features share a voxel; hits that have no indices (positions in mm) never do.
    shift: the most energetic hit stays. The others of a layer, in falling energy (of equal ones the earlier first),
           move to the nearest free voxel of the layer: distance in cells, alpha periodic. Of voxels at one distance
           that of the smallest step along the first transverse axis counts first; then, for hits in a voxel of even
           number, the falling index first (along the first axis, then the second), for odd number the rising index:
           without random numbers, and without a preferred side. When the layer is full the energy is added to the
           hit that stays in the original voxel.

    The energy of a shower is kept up to the rounding of float32, and the order of the hits that remain. Raises
    DataError where `shift` meets hits without voxels of the geometry.
    """
    if rule == "sum":
        return _sum(clouds, geometry)
    if geometry is None or not in_voxels(clouds, geometry):
        raise DataError("hits can be moved to free voxels only where they are indices of a geometry's cells")
    return _shift(clouds, geometry)


def in_voxels(clouds: PointClouds, geometry: Layers) -> bool:
    """Whether hits are given by the indices of the geometry's cells, and not by positions."""
    units = dict(zip(clouds.features, clouds.units, strict=True))
    return all(units.get(name) == "index" for name in geometry.axes)


def hits_outside(clouds: PointClouds, geometry: Layers) -> NDArray[np.bool_]:
    """Hits without a voxel in the geometry, bool [N]; none where hits are not given by indices.

    A model that draws a hit's indices one by one can name a sector that a layer has not.
    """
    if not in_voxels(clouds, geometry):
        return np.zeros(len(clouds.points), np.bool_)
    return ~inside(geometry, {name: clouds.feature(name).astype(np.int64) for name in geometry.axes})


def _places(clouds: PointClouds, geometry: Layers | None) -> tuple[str, ...]:
    """Names of the features that say in which voxel a hit is; none where positions are not indices."""
    if geometry is not None:
        return geometry.axes if in_voxels(clouds, geometry) else ()
    units = {n: u for n, u in zip(clouds.features, clouds.units, strict=True) if n not in NOT_A_PLACE}
    return tuple(units) if set(units.values()) == {"index"} else ()


def _sum(clouds: PointClouds, geometry: Layers | None) -> tuple[PointClouds, int]:
    names = _places(clouds, geometry)
    if not names or len(clouds.points) == 0:
        return clouds, 0
    key = clouds.owners
    for name in names:
        index = clouds.feature(name).astype(np.int64)
        key = key * (int(np.ptp(index)) + 1) + (index - index.min())
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    added = len(key) - len(first)
    if added == 0:
        return clouds, 0
    points = clouds.points[first].copy()
    energy = clouds.features.index("energy")
    points[:, energy] = np.bincount(inverse.ravel(), weights=clouds.points[:, energy])
    order = np.argsort(first)
    counts = np.bincount(clouds.owners[first], minlength=len(clouds))
    return replace(clouds, points=points[order], offsets=to_offsets(counts)), added


def _shift(clouds: PointClouds, geometry: Layers) -> tuple[PointClouds, int]:
    step = max(1, BLOCK_VOXELS // n_voxels(geometry))
    parts, changed = [], 0
    for start in range(0, len(clouds), step):
        part, count = _shift_block(clouds.select(slice(start, start + step)), geometry)
        parts.append(part)
        changed += count
    return (PointClouds.concatenate(parts), changed) if changed else (clouds, 0)


def _shift_block(clouds: PointClouds, geometry: Layers) -> tuple[PointClouds, int]:
    cells = checked_coordinates(geometry, {name: clouds.feature(name) for name in geometry.axes})
    energy = clouds.feature("energy").astype(np.float64)
    owners, numbers, layers = clouds.owners, geometry.numbers(cells), cells["layer"]
    voxels = owners * n_voxels(geometry) + numbers
    stays, stayer = _strongest(voxels, energy)
    if stays.all():
        return clouds, 0
    taken = np.zeros(len(clouds) * n_voxels(geometry), np.bool_)
    taken[voxels[stays]] = True
    group = owners * geometry.n_layers + layers
    used = np.bincount(group[stays], minlength=len(clouds) * geometry.n_layers)
    moving = np.flatnonzero(~stays)
    moving = moving[np.lexsort([-energy[moving], group[moving]])]
    turn = _turns(group[moving])
    # as many as there are free voxels can move, the weaker ones are added
    fits = turn < geometry.voxels_per_layer[layers[moving]] - used[group[moving]]
    for k in range(int(turn[fits].max(initial=-1)) + 1):
        _move(moving[fits & (turn == k)], cells, numbers, owners * n_voxels(geometry), taken, geometry)
    points = clouds.points.copy()
    for name in geometry.axes:
        points[:, clouds.features.index(name)] = cells[name]
    added = moving[~fits]
    kept = np.ones(len(points), np.bool_)
    kept[added] = False
    np.add.at(energy, stayer[added], energy[added])
    points[:, clouds.features.index("energy")] = energy
    counts = np.bincount(owners[kept], minlength=len(clouds))
    return replace(clouds, points=points[kept], offsets=to_offsets(counts)), len(moving)


def _strongest(voxels: Integers, energy: NDArray[np.float64]) -> tuple[NDArray[np.bool_], Integers]:
    """Which hits are the most energetic of their voxel, the first of equal ones; and that hit for every hit."""
    order = np.lexsort([-energy, voxels])
    ordered = voxels[order]
    leads = np.append(True, ordered[1:] != ordered[:-1])[: len(order)]
    stays = np.zeros(len(voxels), np.bool_)
    stays[order[leads]] = True
    stayer = np.empty(len(voxels), np.int64)
    stayer[order] = order[leads][np.cumsum(leads) - 1]
    return stays, stayer


def _turns(groups: Integers) -> Integers:
    """0, 1, 2, ... within each run of equal values."""
    new = np.append(True, groups[1:] != groups[:-1])[: len(groups)]
    starts = np.flatnonzero(new)
    return np.arange(len(groups)) - starts[np.cumsum(new) - 1]


def _move(
    hits: Integers,
    cells: dict[str, Integers],
    numbers: Integers,
    first_voxel: Integers,
    taken: NDArray[np.bool_],
    geometry: Layers,
) -> None:
    """Move these hits, at most one per layer of a shower, to the nearest free voxel: changes `cells` and `taken`."""
    names = geometry.axes[1:]
    towards = np.where(numbers[hits] % 2 == 0, 1, -1)
    limits = geometry.bounds(cells["layer"][hits])
    origin = {name: cells[name][hits] for name in geometry.axes}
    todo = np.arange(len(hits))
    for step in _steps(geometry):
        if len(todo) == 0:
            return
        target = {"layer": origin["layer"][todo]}
        exists = np.ones(len(todo), np.bool_)
        for name, distance in zip(names, step, strict=True):
            index, limit = origin[name][todo] + towards[todo] * distance, limits[name][todo]
            if name == "alpha":
                index = index % limit
            exists &= (index >= 0) & (index < limit)
            target[name] = index
        voxel = first_voxel[hits[todo]] + geometry.numbers({n: np.where(exists, v, 0) for n, v in target.items()})
        free = exists & ~taken[voxel]
        taken[voxel[free]] = True
        for name in names:
            cells[name][hits[todo[free]]] = target[name][free]
        todo = todo[~free]


def _steps(geometry: Layers) -> Integers:
    """Steps along the transverse axes [n, 2] from the nearest to the farthest, as `resolve` says."""
    all_layers = geometry.bounds(np.arange(geometry.n_layers))
    reach = [int(all_layers[name].max()) // (2 if name == "alpha" else 1) for name in geometry.axes[1:]]
    first, second = (grid.ravel() for grid in np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij"))
    order = np.lexsort([second, first, np.abs(first), first**2 + second**2])
    return np.stack([first, second], axis=1)[order]
