"""Calorimeter towers of the parametrised detector, and the energy flow that compares them with the tracks.

The parametrisation is of the kind introduced by DELPHES 3 (arXiv:1307.6346), with the resolutions and towers of the
detector card published with JetClass (arXiv:2202.03772).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from foundation.data.simulate.particles import Floats, Integers


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


def smeared(mean: Floats, sigma: Floats, rng: np.random.Generator) -> Floats:
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


def energy_flow(
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
    seen = np.where(true > 0, smeared(true, towers.resolution(eta, np.maximum(true, 1e-9)), rng), 0.0)
    sigma = towers.resolution(eta, np.maximum(seen, 1e-9))
    seen = np.where((seen < towers.energy_min_gev) | (seen < towers.significance_min * sigma), 0.0, seen)
    excess = np.maximum(seen - tracks, 0.0)
    significance = excess / np.sqrt(track_variance + sigma**2)
    neutral = (excess > towers.energy_min_gev) & (significance > towers.significance_min)
    by_track, by_tower = 1 / np.maximum(track_variance, 1e-30), 1 / np.maximum(sigma**2, 1e-30)
    best = (by_track * tracks + by_tower * seen) / (by_track + by_tower)
    factor = np.where(neutral | (tracks <= 0), 1.0, best / np.maximum(tracks, 1e-12))
    return tower[neutral], excess[neutral], factor[of_track]
