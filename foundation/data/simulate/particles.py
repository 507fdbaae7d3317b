"""Generated particles and reconstructed objects of many events at once, as flat arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

CHARGED_HADRON, ELECTRON, MUON, PHOTON, NEUTRAL_HADRON = range(5)
IDENTITIES = ("charged_hadron", "electron", "muon", "photon", "neutral_hadron")
"""Names of the values of `DetectorObjects.identity`."""

# Long-lived particles that leave a track; the sign is the charge of the particle with the positive PDG number.
CHARGE_OF_PDG = {11: -1, 13: -1, 211: 1, 321: 1, 2212: 1, 3112: -1, 3222: 1, 3312: -1, 3334: -1}


def electric_charge(pdg: Integers) -> Integers:
    """Electric charge of long-lived particles by PDG number; 0 for everything that leaves no track."""
    charge = np.zeros(len(pdg), np.int64)
    for number, of_particle in CHARGE_OF_PDG.items():
        charge[np.abs(pdg) == number] = of_particle
    return charge * np.sign(pdg).astype(np.int64)


@dataclass(frozen=True)
class Particles:
    """N generated, visible, stable particles of many events: all arrays but one have shape [N]; GeV and radians."""

    event: Integers
    pdg: Integers
    pt: Floats
    eta: Floats
    phi: Floats
    energy: Floats
    vertex: Floats
    """Where the particle was produced: x, y, z in mm, [N, 3]. The protons collide at the origin."""

    @staticmethod
    def from_momenta(
        event: Integers, pdg: Integers, px: Floats, py: Floats, pz: Floats, energy: Floats, vertex: Floats
    ) -> Particles:
        """Particles from Cartesian momenta in GeV and production vertices in mm."""
        pt = np.maximum(np.hypot(px, py), 1e-9)
        return Particles(event, pdg, pt, np.arcsinh(pz / pt), np.arctan2(py, px), energy, vertex)

    @property
    def mass(self) -> Floats:
        """Mass in GeV, from energy and momentum."""
        return np.sqrt(np.maximum(self.energy**2 - (self.pt * np.cosh(self.eta)) ** 2, 0.0))

    @property
    def charge(self) -> Integers:
        """Electric charge, -1, 0 or 1."""
        return electric_charge(self.pdg)

    @property
    def identity(self) -> Integers:
        """What a perfect detector would call the particle: an index into `IDENTITIES`."""
        kind = np.where(self.charge != 0, CHARGED_HADRON, NEUTRAL_HADRON)
        for pdg, identity in ((11, ELECTRON), (13, MUON), (22, PHOTON)):
            kind = np.where(np.abs(self.pdg) == pdg, identity, kind)
        return kind

    def at(self, index: NDArray[np.bool_] | Integers) -> Particles:
        """The particles at `index`."""
        return Particles(
            self.event[index],
            self.pdg[index],
            self.pt[index],
            self.eta[index],
            self.phi[index],
            self.energy[index],
            self.vertex[index],
        )


@dataclass(frozen=True)
class DetectorObjects:
    """N reconstructed objects (tracks and neutral towers), sorted by event; all arrays have shape [N]; GeV, radians."""

    event: Integers
    pt: Floats
    eta: Floats
    phi: Floats
    mass: Floats
    identity: Integers
    """Index into `IDENTITIES`."""
    charge: Integers
    """-1, 0 or 1."""
    d0: Floats
    """Transverse impact parameter in mm, signed as in `impact_parameters`; 0 for what is neutral."""
    d0_err: Floats
    """Resolution of d0 in mm; 0 for what is neutral, and without a detector."""
    dz: Floats
    """Longitudinal impact parameter in mm; 0 for what is neutral."""
    dz_err: Floats
    """Resolution of dz in mm; 0 for what is neutral, and without a detector."""

    @property
    def momenta(self) -> tuple[Floats, Floats, Floats, Floats]:
        """px, py, pz, energy in GeV."""
        px, py, pz = self.pt * np.cos(self.phi), self.pt * np.sin(self.phi), self.pt * np.sinh(self.eta)
        return px, py, pz, np.sqrt(px**2 + py**2 + pz**2 + self.mass**2)


def sorted_by_event(event: Integers, *columns: NDArray) -> DetectorObjects:
    """Objects from the columns of `DetectorObjects` in its order; within an event they keep theirs."""
    order = np.argsort(event, kind="stable")
    return DetectorObjects(event[order], *(column[order] for column in columns))
