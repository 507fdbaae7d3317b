"""Tracks of the parametrised detector: which are found, and how well they are measured.

Efficiencies and momentum resolutions are those of the detector card published with JetClass (arXiv:2202.03772).
"""

from __future__ import annotations

import numpy as np

from foundation.data.simulate.particles import MUON, Floats, Particles

TRACK_ETA_MAX = 2.5
TRACK_PT_MIN_GEV = 0.1
# Resolution of the impact parameters in mm, a (+) b / (pT/GeV)^c, by |eta| below 0.9, below 1.4, above. Fitted to the
# values that JetClass's card lists by pT from 0.18 to 150 GeV, which are those of CMS (arXiv:1405.6569, figure 15);
# the formula is within 17 % (d0) and 22 % (dz) of all of them.
IMPACT_ETA = (0.9, 1.4)
D0_RESOLUTION_MM = np.array([[0.0108, 0.0864, 0.775], [0.0098, 0.1035, 0.800], [0.0140, 0.1633, 0.885]])
DZ_RESOLUTION_MM = np.array([[0.0307, 0.1160, 0.747], [0.0344, 0.2020, 0.786], [0.0792, 0.6597, 0.868]])


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


def impact_parameters(particles: Particles) -> tuple[Floats, Floats]:
    """d0 and dz in mm, [N] each; 0 for neutral particles.

    At the point of the track that is nearest to the beam line (x = y = 0) in the transverse plane, from the vertex
    (x, y, z) where the particle was produced:
        d0 = (x py - y px) / pT                      (the sign of DELPHES and JetClass; CMS has the opposite one)
        dz = z - (x px + y py) / pT * pz / pT
    Tracks are taken as straight lines: at 3.8 T a track of 1 GeV bends by 0.06 mm over the first 10 mm, less than
    d0 is measured to.
    """
    x, y, z = particles.vertex.T
    cos, sin = np.cos(particles.phi), np.sin(particles.phi)
    charged = particles.charge != 0
    d0 = x * sin - y * cos
    dz = z - (x * cos + y * sin) * np.sinh(particles.eta)
    return np.where(charged, d0, 0.0), np.where(charged, dz, 0.0)


def impact_resolution(pt: Floats, eta: Floats) -> tuple[Floats, Floats]:
    """sigma(d0) and sigma(dz) in mm of tracks with this pT (GeV) and eta, [N] each."""
    ring = np.searchsorted(IMPACT_ETA, np.abs(eta))
    constant, slope, power = np.stack([D0_RESOLUTION_MM, DZ_RESOLUTION_MM])[:, ring].transpose(2, 0, 1)
    d0_err, dz_err = np.hypot(constant, slope / np.maximum(pt, TRACK_PT_MIN_GEV) ** power)
    return d0_err, dz_err
