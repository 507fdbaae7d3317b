"""What every simulator of showers needs: the incident particles, and point clouds of the hits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foundation.data.by_card import clouds_of_card
from foundation.data.cards import DatasetCard, ShowerSimulator
from foundation.data.formats.units import unit_factor
from foundation.data.geometry import Geometry
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError, did_you_mean

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Incident:
    """B incident particles; all arrays [B]."""

    energy_gev: Floats
    theta: Floats
    """Angle to the depth axis in rad; the particle leans towards +x."""

    def __len__(self) -> int:
        return len(self.energy_gev)

    def at(self, index: Integers) -> Incident:
        """The particles at `index`."""
        return Incident(self.energy_gev[index], self.theta[index])


@dataclass(frozen=True)
class Hits:
    """Cells with energy of B showers; all arrays [N]."""

    shower: Integers
    """Which of the showers, 0 to B - 1."""
    voxel: Integers
    """Voxel number in the geometry."""
    energy_mev: Floats

    @staticmethod
    def joined(parts: list[Hits]) -> Hits:
        """All hits, one part after the other."""
        columns = ([getattr(p, name) for p in parts] for name in ("shower", "voxel", "energy_mev"))
        return Hits(*(np.concatenate(column) for column in columns))


def draw_incident(
    card: DatasetCard, simulator: ShowerSimulator, count: int, rng: np.random.Generator, energies_gev: NDArray | None
) -> Incident:
    """`count` particles of the simulator's spectrum and angles; `energies_gev` [count] replaces the spectrum."""
    low, high = simulator.energy_gev
    if energies_gev is not None:
        energies = np.asarray(energies_gev, float)
    elif simulator.spectrum == "log":
        energies = np.exp(rng.uniform(np.log(low), np.log(high), count))
    else:
        energies = rng.uniform(low, high, count)
    if count < 1 or energies.shape != (count,):
        raise DataError(f"{count} showers are asked for, but energies_gev has shape {energies.shape}")
    theta = np.zeros(count)
    if simulator.theta_deg is not None:
        theta = np.deg2rad(rng.uniform(*simulator.theta_deg, count))
    return Incident(energies, theta)


def label_of(card: DatasetCard, class_name: str | None) -> int:
    """Label of a class of showers; the first where no class is named. Raises DataError when the card has no such."""
    if class_name is None or not card.classes:
        return 0
    if class_name not in card.classes:
        raise DataError(f"card '{card.name}' has no class '{class_name}'{did_you_mean(class_name, card.classes)}")
    return card.classes.index(class_name)


def shower_clouds(card: DatasetCard, geometry: Geometry, label: int, incident: Incident, hits: Hits) -> PointClouds:
    """Point clouds of the hits.

    Features the card may ask for: those of the geometry's axes (indices), energy. Conditions and attributes:
    incident_energy, theta, and direction_x, direction_y, direction_z of the incident particle. All in the card's units.
    """
    visible = {"energy": hits.energy_mev * unit_factor("MeV", _unit(card, "energy", "MeV"))}
    objects = {
        "incident_energy": incident.energy_gev * unit_factor("GeV", _unit(card, "incident_energy", "GeV")),
        "theta": incident.theta * unit_factor("rad", _unit(card, "theta", "rad")),
        "direction_x": np.sin(incident.theta),
        "direction_y": np.zeros(len(incident)),
        "direction_z": np.cos(incident.theta),
    }
    columns = {**geometry.coordinates(hits.voxel), **visible}
    return clouds_of_card(card, columns, hits.shower, np.full(len(incident), label), objects)


def _unit(card: DatasetCard, name: str, default: str) -> str:
    """The unit that the card gives a feature, condition or attribute."""
    units = {feature.name: feature.unit for feature in card.features}
    units |= {condition.name: condition.unit for condition in card.conditions}
    units |= {attribute.name: attribute.unit for attribute in card.attributes}
    return units.get(name, default)
