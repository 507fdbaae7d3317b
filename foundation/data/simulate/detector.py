"""A parametrised detector for jets: tracking efficiency and resolution, ECAL and HCAL towers, energy flow.

The parametrisation is of the kind introduced by DELPHES 3 (arXiv:1307.6346), with the efficiencies, resolutions and
towers of the detector card published with JetClass (arXiv:2202.03772). Left out: the bending of tracks in the magnetic
field, impact parameters, pile-up. Works on flat arrays over the particles of many events at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

CHARGED_HADRON, ELECTRON, MUON, PHOTON, NEUTRAL_HADRON = range(5)
IDENTITIES = ("charged_hadron", "electron", "muon", "photon", "neutral_hadron")
"""Names of the values of `DetectorObjects.identity`."""

ETA_MAX = 2.86
TRACK_ETA_MAX = 2.5
TRACK_PT_MIN_GEV = 0.1
# Long-lived particles that leave a track; the sign is the charge of the particle with the positive PDG number.
CHARGE_OF_PDG = {11: -1, 13: -1, 211: 1, 321: 1, 2212: 1, 3112: -1, 3222: 1, 3312: -1, 3334: -1}


@dataclass(frozen=True)
class Particles:
    """N generated, visible, stable particles of many events: all arrays have shape [N]; GeV and radians."""

    event: Integers
    pdg: Integers
    pt: Floats
    eta: Floats
    phi: Floats
    energy: Floats

    @staticmethod
    def from_momenta(event: Integers, pdg: Integers, px: Floats, py: Floats, pz: Floats, energy: Floats) -> Particles:
        """Particles from Cartesian momenta in GeV."""
        pt = np.maximum(np.hypot(px, py), 1e-9)
        return Particles(event, pdg, pt, np.arcsinh(pz / pt), np.arctan2(py, px), energy)

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
            self.event[index], self.pdg[index], self.pt[index], self.eta[index], self.phi[index], self.energy[index]
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

    @property
    def momenta(self) -> tuple[Floats, Floats, Floats, Floats]:
        """px, py, pz, energy in GeV."""
        px, py, pz = self.pt * np.cos(self.phi), self.pt * np.sin(self.phi), self.pt * np.sinh(self.eta)
        return px, py, pz, np.sqrt(px**2 + py**2 + pz**2 + self.mass**2)


@dataclass(frozen=True, eq=False)
class Towers:
    """A grid of calorimeter towers in eta and phi, its resolution and what counts as a neutral energy excess."""

    eta_edges: Floats
    phi_bins: Integers
    """Towers around the circle in each eta ring, [len(eta_edges) - 1]."""
    resolution: Callable[[Floats, Floats], Floats]
    """sigma(E) in GeV as a function of (eta, E in GeV)."""
    energy_min_gev: float
    significance_min: float

    def index(self, event: Integers, eta: Floats, phi: Floats) -> Integers:
        """One integer per (event, eta ring, phi) tower, [N]."""
        ring = np.clip(np.searchsorted(self.eta_edges, eta, side="right") - 1, 0, len(self.phi_bins) - 1)
        bins = self.phi_bins[ring]
        around = np.clip(np.floor((phi + np.pi) / (2 * np.pi) * bins).astype(np.int64), 0, bins - 1)
        return (event * len(self.phi_bins) + ring) * int(self.phi_bins.max()) + around

    def unpack(self, tower: Integers) -> tuple[Integers, Integers, Integers]:
        """Event, eta ring and position around the circle of each tower, the inverse of `index`."""
        rest, around = np.divmod(tower, int(self.phi_bins.max()))
        event, ring = np.divmod(rest, len(self.phi_bins))
        return event, ring, around

    def centre_eta(self, tower: Integers) -> Floats:
        """eta of the middle of each tower."""
        ring = self.unpack(tower)[1]
        return (self.eta_edges[ring] + self.eta_edges[ring + 1]) / 2

    def point_inside(self, tower: Integers, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """A random (eta, phi) inside each tower, so that the grid does not show in the jets."""
        _, ring, around = self.unpack(tower)
        low, high = self.eta_edges[ring], self.eta_edges[ring + 1]
        eta = low + (high - low) * rng.random(len(tower))
        phi = (around + rng.random(len(tower))) / self.phi_bins[ring] * 2 * np.pi - np.pi
        return eta, phi


def _ecal_resolution(eta: Floats, energy: Floats) -> Floats:
    centre = np.sqrt((0.008 * energy) ** 2 + 0.11**2 * energy + 0.4**2)
    a = np.abs(eta)
    barrel, endcap = (1 + 0.64 * a**2) * centre, (2.16 + 5.6 * (a - 2) ** 2) * centre
    return np.where(a <= 1.5, barrel, np.where(a <= 2.5, endcap, np.sqrt((0.107 * energy) ** 2 + 2.08**2 * energy)))


def _hcal_resolution(eta: Floats, energy: Floats) -> Floats:
    return np.sqrt((0.05 * energy) ** 2 + 1.5**2 * energy)


_ECAL_EDGES = 0.0174 * np.arange(-165.0, 166.0)
_HCAL_OUTER = np.array([1.74, 1.83, 1.93, 2.043, 2.172, 2.322, 2.5, 2.65, 2.868])
_HCAL_EDGES = np.concatenate([-_HCAL_OUTER[::-1], 0.087 * np.arange(-19.0, 20.0), _HCAL_OUTER])
_HCAL_WIDE = np.abs(_HCAL_EDGES[:-1] + _HCAL_EDGES[1:]) / 2 > 1.653
ECAL = Towers(_ECAL_EDGES, np.full(len(_ECAL_EDGES) - 1, 360), _ecal_resolution, 0.5, 2.0)
HCAL = Towers(_HCAL_EDGES, np.where(_HCAL_WIDE, 36, 72), _hcal_resolution, 1.0, 1.0)


def electric_charge(pdg: Integers) -> Integers:
    """Electric charge of long-lived particles by PDG number; 0 for everything that leaves no track."""
    charge = np.zeros(len(pdg), np.int64)
    for number, of_particle in CHARGE_OF_PDG.items():
        charge[np.abs(pdg) == number] = of_particle
    return charge * np.sign(pdg).astype(np.int64)


def track_efficiency(particles: Particles) -> Floats:
    """Probability that a charged particle is found as a track, [N]; 0 for neutral particles."""
    pt, a, identity = particles.pt, np.abs(particles.eta), particles.identity
    # Columns: pT below 1 GeV, up to 100 GeV, above; rows: charged hadron, electron, muon.
    barrel = np.array([[0.70, 0.95, 0.95], [0.73, 0.95, 0.99], [0.75, 0.99, 0.99]])
    endcap = np.array([[0.60, 0.85, 0.85], [0.50, 0.83, 0.90], [0.70, 0.98, 0.98]])
    row, column = np.minimum(identity, MUON), (pt > 1.0).astype(int) + (pt > 100.0)
    efficiency = np.where(a <= 1.5, barrel[row, column], endcap[row, column])
    seen = (particles.charge != 0) & (pt > TRACK_PT_MIN_GEV) & (a < TRACK_ETA_MAX)
    return np.where(seen, efficiency, 0.0)


def track_resolution(particles: Particles) -> Floats:
    """sigma(pT)/pT of the tracks of charged particles, [N]."""
    ring = np.searchsorted([0.5, 1.5], np.abs(particles.eta))
    # Constant term and slope with pT in 1/GeV by eta ring; rows: charged hadron, electron, muon.
    constant = np.array([[0.06, 0.10, 0.25], [0.03, 0.05, 0.15], [0.01, 0.015, 0.025]])
    slope = np.array([[1.3e-3, 1.7e-3, 3.1e-3], [1.3e-3, 1.7e-3, 3.1e-3], [1.0e-4, 1.5e-4, 3.5e-4]])
    row = np.minimum(particles.identity, MUON)
    return np.hypot(constant[row, ring], particles.pt * slope[row, ring])


def _smeared(mean: Floats, sigma: Floats, rng: np.random.Generator) -> Floats:
    """Log-normal with this mean and standard deviation: a Gaussian would give negative energies."""
    mean = np.maximum(mean, 1e-12)
    width2 = np.log1p((sigma / mean) ** 2)
    return np.exp(np.log(mean) - width2 / 2 + np.sqrt(width2) * rng.standard_normal(len(mean)))


def energy_fractions(pdg: Integers) -> tuple[Floats, Floats]:
    """Share of a particle's energy that it leaves in the ECAL and in the HCAL, [N] each."""
    a = np.abs(pdg)
    electromagnetic, shared, muon = np.isin(a, (11, 22, 111)), np.isin(a, (310, 3122)), a == 13
    ecal = np.where(electromagnetic, 1.0, np.where(shared, 0.3, 0.0))
    return ecal, np.where(muon, 0.0, 1.0 - ecal)


def _energy_flow(
    towers: Towers,
    hit: Integers,
    deposited: Floats,
    track_hit: Integers,
    track_energy: Floats,
    track_sigma: Floats,
    rng: np.random.Generator,
) -> tuple[Integers, Floats, Floats]:
    """Compare each tower with the tracks that point at it.

    hit, deposited: tower and energy (GeV) of every particle that showers here; track_hit, track_energy, track_sigma:
    tower, energy and its resolution (GeV) of every track that is expected to shower here. Returns the towers with a
    significant excess, their excess (GeV), and a factor for the energy of each track: where there is no excess, the
    best energy is the average of tracks and tower weighted with their resolutions.
    """
    tower, which = np.unique(np.concatenate([hit, track_hit]), return_inverse=True)
    n, of_track = len(tower), which[len(hit) :]
    true = np.bincount(which[: len(hit)], deposited, n).astype(np.float64)
    tracks = np.bincount(of_track, track_energy, n).astype(np.float64)
    track_variance = np.bincount(of_track, track_sigma**2, n).astype(np.float64)
    eta = towers.centre_eta(tower)
    seen = np.where(true > 0, _smeared(true, towers.resolution(eta, np.maximum(true, 1e-9)), rng), 0.0)
    sigma = towers.resolution(eta, np.maximum(seen, 1e-9))
    seen = np.where((seen < towers.energy_min_gev) | (seen < towers.significance_min * sigma), 0.0, seen)
    excess = np.maximum(seen - tracks, 0.0)
    significance = excess / np.sqrt(track_variance + sigma**2)
    neutral = (excess > towers.energy_min_gev) & (significance > towers.significance_min)
    by_track, by_tower = 1 / np.maximum(track_variance, 1e-30), 1 / np.maximum(sigma**2, 1e-30)
    best = (by_track * tracks + by_tower * seen) / (by_track + by_tower)
    factor = np.where(neutral | (tracks <= 0), 1.0, best / np.maximum(tracks, 1e-12))
    return tower[neutral], excess[neutral], factor[of_track]


def detect(particles: Particles, rng: np.random.Generator) -> DetectorObjects:
    """The tracks and neutral towers that the detector makes of the visible stable particles (no neutrinos).

    Charged particles become tracks with an efficiency; what showers in a tower beyond the energy of its tracks becomes
    a photon (ECAL) or a neutral hadron (HCAL).
    """
    particles = particles.at((np.abs(particles.eta) < ETA_MAX) & (particles.pt > 1e-3))
    ecal_fraction, hcal_fraction = energy_fractions(particles.pdg)
    found = np.flatnonzero(rng.random(len(particles.pt)) < track_efficiency(particles))
    track = particles.at(found)
    resolution, mass = track_resolution(track), track.mass
    pt = _smeared(track.pt, resolution * track.pt, rng)
    neutrals = []
    for towers, fraction, identity in ((ECAL, ecal_fraction, PHOTON), (HCAL, hcal_fraction, NEUTRAL_HADRON)):
        hit = towers.index(particles.event, particles.eta, particles.phi)
        here, tracks_here = fraction > 0, fraction[found] > 0
        energy = np.hypot(pt * np.cosh(track.eta), mass)
        tower, excess, factor = _energy_flow(
            towers,
            hit[here],
            (particles.energy * fraction)[here],
            hit[found][tracks_here],
            (energy * fraction[found])[tracks_here],
            (energy * resolution)[tracks_here],
            rng,
        )
        pt[tracks_here] *= factor
        eta, phi = towers.point_inside(tower, rng)
        neutrals.append((towers.unpack(tower)[0], excess / np.cosh(eta), eta, phi, np.full(len(tower), identity)))
    event, neutral_pt, eta, phi, kind = (np.concatenate(column) for column in zip(*neutrals, strict=True))
    nothing = np.zeros(len(event))
    return _sorted_by_event(
        np.concatenate([track.event, event]),
        np.concatenate([pt, neutral_pt]),
        np.concatenate([track.eta, eta]),
        np.concatenate([track.phi, phi]),
        np.concatenate([mass, nothing]),
        np.concatenate([track.identity, kind]),
        np.concatenate([track.charge, nothing.astype(np.int64)]),
    )


def perfect_detector(particles: Particles) -> DetectorObjects:
    """Every particle as it was generated: a detector without any loss or smearing."""
    p = particles.at(particles.pt > 1e-3)
    return _sorted_by_event(p.event, p.pt, p.eta, p.phi, p.mass, p.identity, p.charge)


def _sorted_by_event(event: Integers, *columns: NDArray) -> DetectorObjects:
    order = np.argsort(event, kind="stable")
    return DetectorObjects(event[order], *(column[order] for column in columns))
