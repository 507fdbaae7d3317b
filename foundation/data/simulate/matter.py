"""What calorimeters are made of: materials, and the one effective medium that a layered calorimeter amounts to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foundation.data.geometry import Geometry, LayerGroup
from foundation.errors import DataError, did_you_mean

Floats = NDArray[np.float64]

SCALE_ENERGY_MEV = 21.2
SCALE_ENERGY_HOMOGENEOUS_MEV = 21.0


@dataclass(frozen=True)
class Material:
    """What the parametrisation needs of a material, and the name that Geant4 has for it."""

    z: float
    """Atomic number; of compounds the mean by mass."""
    density: float
    """g/cm3."""
    radiation_length: float
    """g/cm2."""
    minimum_loss: float
    """Energy loss of a minimum-ionising particle, MeV cm2/g."""
    critical_energy: float
    """MeV, as the parametrisation defines it."""
    geant4: str


def element(
    z: float, a: float, density: float, radiation_length: float, minimum_loss: float, geant4: str = ""
) -> Material:
    """An element, by the Particle Data Group's tables of atomic and nuclear properties."""
    critical_energy = 2.66 * (radiation_length * z / a) ** 1.1
    return Material(z, density, radiation_length, minimum_loss, critical_energy, geant4)


def compound(density: float, parts: Mapping[str, float], geant4: str) -> Material:
    """A compound of `ELEMENTS`, each with its share of the mass (hep-ex/0001020, section 3)."""
    of = [(ELEMENTS[name], share) for name, share in parts.items()]
    radiation_length = 1 / sum(share / e.radiation_length for e, share in of)
    return Material(
        z=sum(share * e.z for e, share in of),
        density=density,
        radiation_length=radiation_length,
        minimum_loss=sum(share * e.minimum_loss for e, share in of),
        critical_energy=radiation_length * sum(share * e.critical_energy / e.radiation_length for e, share in of),
        geant4=geant4,
    )


ELEMENTS = {
    "H": element(1, 1.008, 8.376e-5, 63.04, 4.103),
    "C": element(6, 12.011, 2.210, 42.70, 1.742),
    "O": element(8, 15.999, 1.332e-3, 34.24, 1.801),
    "Si": element(14, 28.085, 2.329, 21.82, 1.664, "G4_Si"),
    "Ar": element(18, 39.948, 1.396, 19.55, 1.508),
    "Fe": element(26, 55.845, 7.874, 13.84, 1.451, "G4_Fe"),
    "Cu": element(29, 63.546, 8.96, 12.86, 1.403, "G4_Cu"),
    "I": element(53, 126.904, 4.93, 8.48, 1.263),
    "Cs": element(55, 132.905, 1.873, 8.31, 1.254),
    "W": element(74, 183.84, 19.30, 6.76, 1.145, "G4_W"),
    "Pb": element(82, 207.2, 11.35, 6.37, 1.122, "G4_Pb"),
}
MATERIALS = {
    **{name: material for name, material in ELEMENTS.items() if material.geant4},
    "LAr": element(18, 39.948, 1.396, 19.55, 1.508, "G4_lAr"),
    "polystyrene": compound(1.060, {"C": 0.9226, "H": 0.0774}, "G4_POLYSTYRENE"),
    "CsI": compound(4.510, {"Cs": 0.5115, "I": 0.4885}, "G4_CESIUM_IODIDE"),
    "PbWO4": compound(8.300, {"Pb": 0.4553, "W": 0.4040, "O": 0.1407}, "G4_PbWO4"),
}


@dataclass(frozen=True)
class Medium:
    """What the parametrisation needs to know of a calorimeter of L layers; see `medium_of`."""

    z: float
    critical_energy_mev: float
    moliere_radius_mm: float
    sampling_frequency: float
    """F_S: effective radiation length over the thickness of an absorber and an active plate; inf if homogeneous."""
    e_over_mip: float
    """Response to electrons over that to minimum-ionising particles."""
    layer_edges_x0: Floats
    """Depth of the layer boundaries in radiation lengths, [L + 1]."""
    layer_depths_mm: Floats
    """Depth of the middle of the active matter of each layer, [L]."""
    sampling_fractions: Floats
    """Visible share of the energy that an electron loses in a layer, [L]."""

    @property
    def homogeneous(self) -> bool:
        """Whether all matter is active."""
        return self.sampling_frequency == np.inf


def plates_of(group: LayerGroup) -> list[tuple[str, float]]:
    """Material and thickness in mm of the plates of one layer's pair, from the front."""
    plates = ((group.absorber, group.absorber_mm), (group.active, group.active_mm))
    return [(name, mm) for name, mm in plates if name is not None]


def is_homogeneous(geometry: Geometry) -> bool:
    """Whether no layer has an absorber.

    Raises DataError when a layer has no active material, or only some layers have an absorber.
    """
    for position, group in enumerate(geometry.layers):
        if group.active is None:
            raise DataError(
                f"entry {position} of the geometry's layers names no active material (active, active_mm): "
                "such a geometry can be read, but no shower can be simulated in it"
            )
    bare = [group.absorber is None for group in geometry.layers]
    if any(bare) and not all(bare):
        raise DataError(
            f"entry {bare.index(True)} of the geometry's layers has no absorber but others have: "
            "a calorimeter is simulated as sampling (all layers with absorber) or homogeneous (none)"
        )
    return all(bare)


def medium_of(geometry: Geometry) -> Medium:
    """The effective medium of a geometry, by mass fractions (hep-ex/0001020, section 3).

    Raises DataError when the geometry names a material that is not in `MATERIALS`, or lacks matter.
    """
    homogeneous = is_homogeneous(geometry)
    for name in {name for group in geometry.layers for name, _ in plates_of(group)} - set(MATERIALS):
        raise DataError(f"the geometry names the material '{name}'{did_you_mean(name, MATERIALS)}")
    plates = [  # (material, thickness in cm of all plates of a group together)
        (MATERIALS[name], group.repeat * group.pairs * mm / 10)
        for group in geometry.layers
        for name, mm in plates_of(group)
    ]
    mass = sum(m.density * cm for m, cm in plates)
    thickness = sum(cm for _, cm in plates)
    thickness += sum(group.repeat * group.pairs * group.gap_mm / 10 for group in geometry.layers)
    share = [m.density * cm / mass for m, cm in plates]
    x0 = 1 / sum(w / m.radiation_length for w, (m, _) in zip(share, plates, strict=True))
    loss = sum(w * m.critical_energy / m.radiation_length for w, (m, _) in zip(share, plates, strict=True))
    x0_mm = 10 * x0 * thickness / mass
    pairs = sum(group.repeat * group.pairs for group in geometry.layers)
    e_over_mip = 1.0 if homogeneous else _e_over_mip(geometry)
    scale = SCALE_ENERGY_HOMOGENEOUS_MEV if homogeneous else SCALE_ENERGY_MEV
    depths = [_depth_x0(group) for group in geometry.layers for _ in range(group.repeat)]
    fractions = [_visible_share(group, e_over_mip) for group in geometry.layers for _ in range(group.repeat)]
    return Medium(
        z=sum(w * m.z for w, (m, _) in zip(share, plates, strict=True)),
        critical_energy_mev=x0 * loss,
        moliere_radius_mm=10 * scale / loss * thickness / mass,
        sampling_frequency=np.inf if homogeneous else x0_mm / (10 * thickness / pairs),
        e_over_mip=e_over_mip,
        layer_edges_x0=np.concatenate([[0.0], np.cumsum(depths)]),
        layer_depths_mm=_active_depths_mm(geometry),
        sampling_fractions=np.array(fractions),
    )


def pair_mm(group: LayerGroup) -> float:
    """Thickness of one absorber plate, one active plate and the gap behind them."""
    return group.absorber_mm + group.active_mm + group.gap_mm


def _e_over_mip(geometry: Geometry) -> float:
    z = {}
    for kind in ("absorber", "active"):
        plates = [(MATERIALS[getattr(g, kind)], g.repeat * g.pairs * getattr(g, f"{kind}_mm")) for g in geometry.layers]
        weights = [m.density * thickness for m, thickness in plates]
        z[kind] = sum(w * m.z for w, (m, _) in zip(weights, plates, strict=True)) / sum(weights)
    return 1 / (1 + 0.007 * (z["absorber"] - z["active"]))


def _depth_x0(group: LayerGroup) -> float:
    """Radiation lengths of one layer."""
    plates = [(MATERIALS[name], mm) for name, mm in plates_of(group)]
    return group.pairs * sum(m.density * mm / 10 / m.radiation_length for m, mm in plates)


def _visible_share(group: LayerGroup, e_over_mip: float) -> float:
    lost = [MATERIALS[name].minimum_loss * (MATERIALS[name].density * mm / 10) for name, mm in plates_of(group)]
    return e_over_mip * lost[-1] / sum(lost)


def _active_depths_mm(geometry: Geometry) -> Floats:
    groups = [group for group in geometry.layers for _ in range(group.repeat)]
    pair = np.array([pair_mm(group) for group in groups])
    pairs = np.array([group.pairs for group in groups])
    first_active = np.array([group.absorber_mm + group.active_mm / 2 for group in groups])
    return np.cumsum(pairs * pair) - pairs * pair + (pairs - 1) / 2 * pair + first_active
