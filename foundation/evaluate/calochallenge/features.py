"""The high-level features of the CaloChallenge: per-layer energies, centres of energy, widths and sparsities.

They agree with HighLevelFeatures.CalculateFeatures of github.com/CaloChallenge/homepage (commit 9b41df7), after voxels
below the threshold are set to zero. Per layer, with E the energies of its voxels and x the positions of their centres:

    E_layer = sum E        sparsity = 1 - share of voxels with E > 0
    centre  = sum x E / (sum E + 1e-16)
    width   = sqrt(max(sum x^2 E / (sum E + 1e-16) - centre^2, 0))

for x = eta (r cos alpha) and phi (r sin alpha) in mm where the layer is cut in alpha, and x = r in every layer. An
empty layer has centres and widths 0. The width of a layer with one voxel is zero up to the rounding of a difference of
two large numbers, a few 1e-7 of its distance from the axis, in the official code as here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foundation.data.geometry import CylindricalGeometry, n_voxels
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError
from foundation.evaluate.calochallenge.settings import Settings
from foundation.evaluate.calochallenge.voxels import Voxels, chunks, incident_energy_mev, voxels_of

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class HighLevelFeatures:
    """Features of B showers with L layers, S of them cut in alpha.

    incident_energy, energy:   [B], MeV; the sum of all voxels
    layer_energy, sparsity:    [B, L]; MeV, and the share of empty voxels
    centre_r, width_r:         [B, L], mm
    centre_eta, centre_phi, width_eta, width_phi: [B, S], mm
    highest_voxel:             highest energy of a voxel in the sample, MeV
    """

    settings: Settings
    incident_energy: Floats
    energy: Floats
    layer_energy: Floats
    sparsity: Floats
    centre_r: Floats
    width_r: Floats
    centre_eta: Floats
    centre_phi: Floats
    width_eta: Floats
    width_phi: Floats
    highest_voxel: float

    def __len__(self) -> int:
        return len(self.energy)

    def vector(self) -> Floats:
        """The input of the high-level classifier, of FPD and of KPD: float64 [B, 2 + 4 L + 4 S].

        log10 E_inc, log10(E_layer + 1e-8), centres in eta and phi, widths in eta and phi, log10(E_tot + 1e-8),
        sparsities, centres in r, widths in r; energies in MeV, lengths in 100 mm.
        """
        columns = [
            np.log10(self.incident_energy)[:, None],
            np.log10(self.layer_energy + 1e-8),
            *(x / 1e2 for x in (self.centre_eta, self.centre_phi, self.width_eta, self.width_phi)),
            np.log10(self.energy + 1e-8)[:, None],
            self.sparsity,
            self.centre_r / 1e2,
            self.width_r / 1e2,
        ]
        return np.concatenate(columns, axis=1)


def high_level_features(clouds: PointClouds, settings: Settings) -> HighLevelFeatures:
    """The features of B showers; work and memory go with the hits, chunk by chunk, not with the voxels.

    Raises DataError for an empty sample, missing incident energies, hits outside the geometry or without finite energy.
    """
    if not len(clouds):
        raise DataError(f"the sample of '{clouds.tag}' is empty: there are no showers to compute features of")
    incident = incident_energy_mev(clouds)
    grid, cut = _Grid.of(settings.geometry), settings.sectored
    found = _Layers.empty(len(clouds), settings.geometry.n_layers)
    highest, start = 0.0, 0
    for chunk in chunks(clouds):
        voxels = voxels_of(chunk, settings)
        found.fill(slice(start, start + len(chunk)), voxels, grid)
        highest, start = max(highest, float(voxels.energy.max(initial=0))), start + len(chunk)
    (eta, phi, r), (eta_width, phi_width, r_width) = found.centres, found.widths
    return HighLevelFeatures(
        settings, incident, found.energy.sum(1), found.energy, found.sparsity, r, r_width,
        eta[:, cut], phi[:, cut], eta_width[:, cut], phi_width[:, cut], highest,
    )  # fmt: skip


@dataclass(frozen=True)
class _Grid:
    """Of all voxels: positions [V, 7] in mm as _positions has them, and their layers [V]; voxels of each layer [L]."""

    positions: Floats
    layer_of_voxel: NDArray[np.int16]
    voxels_per_layer: NDArray[np.int64]

    @staticmethod
    def of(geometry: CylindricalGeometry) -> _Grid:
        """The voxels of this geometry."""
        layers = np.repeat(np.arange(geometry.n_layers, dtype=np.int16), geometry.voxels_per_layer)
        return _Grid(_positions(geometry), layers, geometry.voxels_per_layer)


@dataclass(frozen=True)
class _Layers:
    """What is measured in each layer: energy and sparsity [B, L], centres and widths in eta, phi and r [3, B, L]."""

    energy: Floats
    sparsity: Floats
    centres: Floats
    widths: Floats

    @staticmethod
    def empty(showers: int, layers: int) -> _Layers:
        """Of showers without energy."""
        shape = showers, layers
        return _Layers(np.zeros(shape), np.ones(shape), np.zeros((3, *shape)), np.zeros((3, *shape)))

    def fill(self, showers: slice, voxels: Voxels, grid: _Grid) -> None:
        """Measure the layers with energy of these showers."""
        from scipy.sparse import csr_matrix

        layers = grid.layer_of_voxel[voxels.numbers]
        # voxels are in the order of showers and layers: a new group starts where either changes
        new = np.ones(len(layers), np.bool_)
        np.not_equal(layers[1:], layers[:-1], out=new[1:])
        new[voxels.offsets[voxels.offsets < len(layers)]] = True
        starts = np.flatnonzero(new)
        place = np.searchsorted(voxels.offsets, starts, side="right") - 1, layers[starts]
        pointers = np.append(starts, len(layers)).astype(np.int32)
        # a row per group: its product with the positions is all sums over the group's voxels at once
        energies = csr_matrix(
            (voxels.energy.astype(np.float64), voxels.numbers, pointers), shape=(len(starts), len(grid.positions))
        )
        sums = np.ascontiguousarray((energies @ grid.positions).T)
        self.energy[showers][place] = sums[0]
        self.sparsity[showers][place] = 1.0 - np.diff(pointers) / grid.voxels_per_layer[place[1]]
        total = sums[0] + 1e-16
        for axis in range(3):
            centre = sums[1 + 2 * axis] / total
            self.centres[axis, showers][place] = centre
            width = np.sqrt(np.clip(sums[2 + 2 * axis] / total - centre**2, 0.0, None))
            self.widths[axis, showers][place] = width


def _positions(geometry: CylindricalGeometry) -> Floats:
    """1, eta, eta^2, phi, phi^2, r, r^2 of all voxels, [V, 7] in mm."""
    cells = geometry.coordinates(np.arange(n_voxels(geometry)))
    r, angle = geometry.radii_mm(cells), np.empty(n_voxels(geometry))
    for sectors in np.unique(geometry.alpha_bins):
        # to the last bit as the official code: a centre in eta of a sector at 90 degrees is on the edge of a bin at 0
        edges = np.linspace(-np.pi, np.pi, sectors + 1)
        here = geometry.alpha_bins[cells["layer"]] == sectors
        angle[here] = (edges[:-1] + np.diff(edges) / 2)[cells["alpha"][here]]
    eta, phi = r * np.cos(angle), r * np.sin(angle)
    return np.stack([np.ones_like(r), eta, eta * eta, phi, phi * phi, r, r * r], axis=1)
