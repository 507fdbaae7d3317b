"""A parametrised detector for jets: tracking efficiency and resolution, ECAL and HCAL towers, energy flow.

The parametrisation is of the kind introduced by DELPHES 3 (arXiv:1307.6346), with the efficiencies, resolutions and
towers of the detector card published with JetClass (arXiv:2202.03772). Left out: the bending of tracks in the magnetic
field, pile-up. Works on flat arrays over the particles of many events at once.
"""

from __future__ import annotations

import numpy as np

from foundation.data.simulate.particles import (
    NEUTRAL_HADRON,
    PHOTON,
    DetectorObjects,
    Particles,
    sorted_by_event,
)
from foundation.data.simulate.towers import ECAL, HCAL, energy_flow, energy_fractions, smeared
from foundation.data.simulate.tracks import impact_parameters, impact_resolution, track_efficiency, track_resolution

ETA_MAX = 2.86
PT_MIN_GEV = 1e-3


def detect(particles: Particles, rng: np.random.Generator) -> DetectorObjects:
    """The tracks and neutral towers that the detector makes of the visible stable particles (no neutrinos).

    Charged particles become tracks with an efficiency; what showers in a tower beyond the energy of its tracks becomes
    a photon (ECAL) or a neutral hadron (HCAL).
    """
    particles = particles.at((np.abs(particles.eta) < ETA_MAX) & (particles.pt > PT_MIN_GEV))
    ecal_fraction, hcal_fraction = energy_fractions(particles.pdg)
    found = np.flatnonzero(rng.random(len(particles.pt)) < track_efficiency(particles))
    track = particles.at(found)
    resolution, mass = track_resolution(track), track.mass
    pt = smeared(track.pt, resolution * track.pt, rng)
    d0_err, dz_err = impact_resolution(pt, track.eta)
    neutrals = []
    for towers, fraction, identity in ((ECAL, ecal_fraction, PHOTON), (HCAL, hcal_fraction, NEUTRAL_HADRON)):
        hit = towers.index(particles.event, particles.eta, particles.phi)
        here, tracks_here = fraction > 0, fraction[found] > 0
        energy = np.hypot(pt * np.cosh(track.eta), mass)
        tower, excess, factor = energy_flow(
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
    d0, dz = impact_parameters(track)
    d0, dz = d0 + d0_err * rng.standard_normal(len(d0)), dz + dz_err * rng.standard_normal(len(dz))
    return sorted_by_event(
        np.concatenate([track.event, event]),
        np.concatenate([pt, neutral_pt]),
        np.concatenate([track.eta, eta]),
        np.concatenate([track.phi, phi]),
        np.concatenate([mass, nothing]),
        np.concatenate([track.identity, kind]),
        np.concatenate([track.charge, nothing.astype(np.int64)]),
        *(np.concatenate([column, nothing]) for column in (d0, d0_err, dz, dz_err)),
    )


def perfect_detector(particles: Particles) -> DetectorObjects:
    """Every particle as it was generated: a detector without any loss, smearing or error."""
    p = particles.at(particles.pt > PT_MIN_GEV)
    (d0, dz), none = impact_parameters(p), np.zeros(len(p.pt))
    return sorted_by_event(p.event, p.pt, p.eta, p.phi, p.mass, p.identity, p.charge, d0, none, dz, none)
