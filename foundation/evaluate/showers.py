"""Observables and profiles of calorimeter showers, from hits: a layer, a place in it and an energy.

The place is a cell of the geometry, (layer, x, y) or (layer, alpha, r), or x and y in mm from the shower axis. Hits
are taken as they are stored: two hits in one cell count as two (the generator merges them before), and a hit of zero
energy counts as a hit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from foundation.data.cards import Geometry
from foundation.data.geometry import CylindricalGeometry
from foundation.data.point_clouds import PointClouds

Floats = NDArray[np.float64]

MEV_PER_GEV = 1000.0


@dataclass(frozen=True)
class Profile:
    """A quantity resolved in bins, per shower, so that its mean and its bootstrap error can be taken.

    name, label, unit: as of an Observable; the axis is `axis_label` in `axis_unit`
    edges:      [n + 1] bin edges in `axis_unit`
    per_shower: [B, n] what each shower has in each bin
    log_axis, log_values: how to draw it
    """

    name: str
    label: str
    axis_label: str
    axis_unit: str
    edges: Floats
    per_shower: Floats
    log_axis: bool = False
    log_values: bool = True

    def select(self, index: NDArray[np.int64]) -> Profile:
        """The profile of the showers at `index`."""
        return replace(self, per_shower=self.per_shower[index])


def shower_observables(clouds: PointClouds, geometry: Geometry) -> dict[str, Floats]:
    """Observables of B showers, each float64 [B].

    energy_sum [MeV], hits, response (visible over incident energy; absent without the condition `incident_energy`),
    and the energy-weighted centre of gravity: cog_layer [layer index], cog_x and cog_y [mm from the shower axis]. Of
    rings, only layers that are cut into sectors count for cog_x and cog_y, as in the CaloChallenge's evaluation. The
    centre of gravity of a shower without visible energy, or with a hit outside a geometry of rings, is NaN, and so is
    everything of a shower with a hit that is not finite.
    """
    owners, n = clouds.owners, len(clouds)
    energy = clouds.feature("energy").astype(np.float64)
    total = np.bincount(owners, energy, n)
    values = {"energy_sum": total, "hits": clouds.counts.astype(np.float64)}
    if "incident_energy" in clouds.condition_names:
        incident = clouds.condition("incident_energy").astype(np.float64) * MEV_PER_GEV
        values["response"] = np.divide(total, incident, out=np.full(n, np.nan), where=incident > 0)
    x, y = cell_positions(clouds, geometry)
    layer = clouds.feature("layer").astype(np.float64)
    across = np.where(_has_direction(layer, geometry), energy, 0.0)
    for name, position, weights in (("cog_layer", layer, energy), ("cog_x", x, across), ("cog_y", y, across)):
        moment, norm = np.bincount(owners, weights * position, n), np.bincount(owners, weights, n)
        values[name] = np.divide(moment, norm, out=np.full(n, np.nan), where=norm > 0)
    bad = np.bincount(owners[~np.isfinite(clouds.points).all(1)], minlength=n) > 0
    return {name: np.where(bad, np.nan, value) for name, value in values.items()}


def cell_positions(clouds: PointClouds, geometry: Geometry) -> tuple[Floats, Floats]:
    """x and y of the hits in mm from the shower axis, float64 [N] each; NaN for hits outside a geometry of rings."""
    if positions_in_mm(clouds):
        return clouds.feature("x").astype(np.float64), clouds.feature("y").astype(np.float64)
    return geometry.centres_mm({name: clouds.feature(name) for name in geometry.axes})


def positions_in_mm(clouds: PointClouds) -> bool:
    """Whether the hits have x and y in mm; otherwise they are in cells of the geometry."""
    units = dict(zip(clouds.features, clouds.units, strict=True))
    return units.get("x") == units.get("y") == "mm"


def _radii(clouds: PointClouds, geometry: Geometry) -> Floats:
    """Distances of the hits from the shower axis in mm, float64 [N]."""
    if positions_in_mm(clouds):
        return np.hypot(*cell_positions(clouds, geometry))
    return geometry.radii_mm({name: clouds.feature(name) for name in geometry.axes})


def _has_direction(layer: Floats, geometry: Geometry) -> NDArray[np.bool_]:
    """False for hits in layers of whole rings, whose place across the axis is not known; bool [N]."""
    if not isinstance(geometry, CylindricalGeometry):
        return np.ones(len(layer), np.bool_)
    whole = np.flatnonzero(geometry.alpha_bins == 1)
    return ~np.isin(layer, whole)


def shower_profiles(clouds: PointClouds, geometry: Geometry) -> tuple[Profile, ...]:
    """Energy per layer [MeV], energy per ring around the axis [MeV], hits per bin of hit energy.

    The rings have the width of one cell where cells are square, and else the edges of the geometry's rings.
    The hit energies have 10 bins per decade from 0.01 MeV to 100 GeV; what lies outside is in the first or last bin.
    """
    energy = clouds.feature("energy").astype(np.float64)
    layers = np.arange(geometry.n_layers + 1, dtype=np.float64) - 0.5
    rings = geometry.radial_edges_mm
    energies: Floats = np.logspace(-2, 5, 71)
    return (
        Profile(
            "layer_profile", "mean energy per layer [MeV]", "layer", "layer", layers,
            _per_shower(clouds, clouds.feature("layer"), layers, energy), log_values=False,
        ),
        Profile(
            "radial_profile", "mean energy per ring [MeV]", "distance from the axis", "mm", rings,
            _per_shower(clouds, _radii(clouds, geometry), rings, energy),
        ),
        Profile(
            "hit_energy", "hits per shower and bin", "hit energy", "MeV", energies,
            _per_shower(clouds, energy, energies, np.ones_like(energy)), log_axis=True,
        ),
    )  # fmt: skip


def _per_shower(clouds: PointClouds, position: NDArray[np.floating], edges: Floats, weights: Floats) -> Floats:
    """Histogram of every shower, float64 [B, n]; what is outside goes to the first or last bin, NaN to none."""
    n = len(edges) - 1
    known = np.isfinite(position) & np.isfinite(weights)
    which = np.clip(np.searchsorted(edges, position[known], side="right") - 1, 0, n - 1)
    flat = np.bincount(clouds.owners[known] * n + which, weights[known], len(clouds) * n)
    return np.asarray(flat, np.float64).reshape(len(clouds), n)
