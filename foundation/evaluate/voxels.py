"""Decoded against true showers voxel by voxel, for tokenizers whose points do not correspond to those of the truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foundation.data.cards import Geometry
from foundation.data.geometry import n_voxels
from foundation.data.point_clouds import PointClouds
from foundation.evaluate.metrics import Floats

NAN = float("nan")


@dataclass(frozen=True)
class VoxelBin:
    """Voxels whose true energy lies in low .. high [MeV].

    found:    share of them that have a hit after decoding, too
    response: mean decoded over mean true energy; a voxel without decoded hit counts as zero
    width:    half of the central 68 % of decoded over true energy of the found ones
    """

    low: float
    high: float
    voxels: int
    found: float
    response: float
    width: float


@dataclass(frozen=True)
class VoxelResponse:
    """How well the voxels of showers come back; a voxel's hits are summed.

    found:          share of the true voxels that have a hit after decoding, too
    made_up:        share of the decoded voxels that are empty in truth
    made_up_energy: energy in these over all true energy
    bins:           by decades of the true energy
    """

    found: float
    made_up: float
    made_up_energy: float
    bins: tuple[VoxelBin, ...]


@dataclass(frozen=True)
class VoxelPairs:
    """Energies [MeV] of voxels: truth [n], decoded in the same voxels [n], and decoded where truth is empty [m]."""

    truth: NDArray[np.float32]
    decoded: NDArray[np.float32]
    made_up: NDArray[np.float32]


def voxel_pairs(truth: PointClouds, decoded: PointClouds, geometry: Geometry) -> VoxelPairs:
    """Match the voxels of the same B showers."""
    true_keys, true_energy = _voxels(truth, geometry)
    keys, energy = _voxels(decoded, geometry)
    place = np.searchsorted(keys, true_keys)
    inside = place < len(keys)
    found = np.zeros(len(true_keys), np.bool_)
    found[inside] = keys[place[inside]] == true_keys[inside]
    same = np.zeros(len(true_keys))
    same[found] = energy[place[found]]
    made_up = energy[~np.isin(keys, true_keys, assume_unique=True)]
    return VoxelPairs(*(x.astype(np.float32) for x in (true_energy, same, made_up)))


def _voxels(clouds: PointClouds, geometry: Geometry) -> tuple[NDArray[np.int64], Floats]:
    """Number of each voxel that is hit, counted on from shower to shower and rising, and its energy."""
    places = {name: np.rint(clouds.feature(name)).astype(np.int64) for name in geometry.axes}
    keys = clouds.owners * n_voxels(geometry) + geometry.numbers(places)
    unique, inverse = np.unique(keys, return_inverse=True)
    energy = np.bincount(inverse, clouds.feature("energy").astype(np.float64), len(unique))
    return unique, energy.astype(np.float64)


def voxel_response(pairs: list[VoxelPairs]) -> VoxelResponse:
    """Response of all voxels of these parts of a sample."""
    truth, decoded, made_up = (
        np.concatenate([getattr(p, name) for p in pairs]).astype(np.float64) for name in ("truth", "decoded", "made_up")
    )
    found = decoded > 0
    positive = truth[truth > 0]
    ends = np.floor(np.log10([positive.min(), positive.max()])).astype(int) if len(positive) else (0, -1)
    bins = [_bin(truth, decoded, 10.0**k, 10.0 ** (k + 1)) for k in range(ends[0], ends[1] + 1)]
    return VoxelResponse(
        found=float(found.mean()) if len(found) else NAN,
        made_up=len(made_up) / max(1, len(made_up) + int(found.sum())),
        made_up_energy=float(made_up.sum() / truth.sum()) if truth.sum() > 0 else NAN,
        bins=tuple(b for b in bins if b.voxels),
    )


def _bin(truth: Floats, decoded: Floats, low: float, high: float) -> VoxelBin:
    inside = (truth >= low) & (truth < high)
    e, d = truth[inside], decoded[inside]
    if not len(e):
        return VoxelBin(low, high, 0, NAN, NAN, NAN)
    ratio = d[d > 0] / e[d > 0]
    width = float(np.diff(np.quantile(ratio, [0.16, 0.84]))[0]) / 2 if len(ratio) else NAN
    return VoxelBin(low, high, len(e), float((d > 0).mean()), float(d.mean() / e.mean()), width)
