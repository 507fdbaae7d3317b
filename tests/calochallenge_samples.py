"""Small showers in the voxels of the CaloChallenge: those that the official code was run on, and others like them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from foundation.data.cards import DatasetCard, load_card
from foundation.data.geometry import CylindricalGeometry
from foundation.data.point_clouds import PointClouds
from foundation.data.ragged import to_offsets

FOLDER = Path(__file__).parent / "data" / "calochallenge_official"
NAMES = {"1_photons": "ds1_photons", "1_pions": "ds1_pions", "2": "ds2", "3": "ds3"}


def card_of(name: str) -> DatasetCard:
    """The card of one of NAMES."""
    return load_card(f"calochallenge_{NAMES[name]}")


def read(name: str, sample: str) -> PointClouds:
    """The stored showers as point clouds of the card."""
    card = card_of(name)
    with np.load(FOLDER / "showers.npz") as arrays:
        counts, voxels, energy, incident = (
            arrays[f"{name}_{sample}_{part}"] for part in ("counts", "voxels", "energy", "incident")
        )
    return clouds_of(card, counts, voxels, energy, incident)


def clouds_of(
    card: DatasetCard, counts: np.ndarray, voxels: np.ndarray, energy: np.ndarray, incident_mev: np.ndarray
) -> PointClouds:
    """Showers of these voxel numbers and energies [MeV]."""
    assert isinstance(card.geometry, CylindricalGeometry)
    cells = card.geometry.coordinates(voxels.astype(np.int64))
    points = np.stack([*(cells[axis] for axis in card.geometry.axes), energy], axis=1).astype(np.float32)
    return PointClouds(
        points, to_offsets(counts), card.feature_names, card.feature_units, np.zeros(len(counts), np.int64),
        (incident_mev / 1000)[:, None].astype(np.float32), ("incident_energy",), ("GeV",), card.tag,
    )  # fmt: skip


def spots(card: DatasetCard, count: int, seed: int, smear: float) -> tuple[np.ndarray, ...]:
    """Owners, voxels and energies [MeV] of spots around an axis, and incident energies; the first shower is empty.

    smear: makes spots fluctuate more and lie further out where it is above 1
    """
    geometry = card.geometry
    assert isinstance(geometry, CylindricalGeometry)
    rng = np.random.default_rng(seed)
    incident = 256.0 * 2.0 ** rng.integers(0, 15, count)
    number = rng.poisson(30 + 4 * np.log2(incident / 256))
    number[0] = 0
    owners = np.repeat(np.arange(count), number)
    depth = rng.gamma(3.0, 0.25 * geometry.n_layers / 3, len(owners))
    layer = np.clip(depth.astype(np.int64), 0, geometry.n_layers - 1)
    outer = np.array([group.r_edges_mm[-1] for group in geometry.by_layer])[layer]
    x, y = rng.normal(0.01, 0.12 * smear, (2, len(owners))) * outer
    energy = rng.exponential(1.0, len(owners)) ** smear
    total = np.bincount(owners, energy, count)
    energy *= (0.97 * incident / np.maximum(total, 1e-9) * rng.normal(1, 0.05 * smear, count).clip(0.5, 1.5))[owners]
    voxel = geometry.cell_at(layer, x, y)
    inside = voxel >= 0
    return owners[inside], voxel[inside], energy[inside], incident


def merged(
    count: int, owners: np.ndarray, voxels: np.ndarray, energy: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Voxels per shower, voxel numbers and energies, each voxel once."""
    unique, inverse = np.unique(owners * 100_000 + voxels, return_inverse=True)
    counts = np.bincount(unique // 100_000, minlength=count).astype(np.int32)
    return counts, (unique % 100_000).astype(np.uint16), np.bincount(inverse, energy).astype(np.float32)


def showers(name: str, count: int, seed: int, smear: float = 1.0) -> PointClouds:
    """Showers of spots in the voxels of one of NAMES."""
    owners, voxels, energy, incident = spots(card_of(name), count, seed, smear)
    return clouds_of(card_of(name), *merged(count, owners, voxels, energy), incident)
