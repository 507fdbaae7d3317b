"""Observables of jets, from massless constituents (pT, eta_rel, phi_rel).

Mass, pT and N-subjettiness are invariant under boosts along the beam and rotations about it, so the coordinates
relative to the jet axis are enough.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from foundation.data.point_clouds import PointClouds
from foundation.data.ragged import ragged_arange

Floats = NDArray[np.float64]

MINIMUM_CONSTITUENTS = 3
"""tau32 asks for three subjets; jets with fewer constituents have no tau."""
CHUNK = 128
"""Jets clustered together: small enough for the distance matrices to stay in the cache."""


def jet_observables(clouds: PointClouds, radius: float = 0.8) -> dict[str, Floats]:
    """Observables of B jets, each float64 [B]: mass [GeV], pt [GeV], multiplicity, tau21, tau32.

    pt is that of the vector sum of the constituents. A value that does not exist is NaN: mass and pt of a jet without
    constituents, tau of a jet with fewer than three, everything of a jet with a constituent that is not finite or has
    pT <= 0 (count the NaN, do not drop them). Two constituents at the same place count as two.
    """
    owners, n_jets = clouds.owners, len(clouds)
    pt, eta, phi = (clouds.feature(name).astype(np.float64) for name in ("pt", "eta_rel", "phi_rel"))
    good_point = np.isfinite(pt) & np.isfinite(eta) & np.isfinite(phi) & (pt > 0)
    bad = np.bincount(owners[~good_point], minlength=n_jets) > 0
    pt, eta, phi = (np.where(good_point, values, 0.0) for values in (pt, eta, phi))
    momenta = four_momenta(pt, eta, phi)
    total = np.stack([np.bincount(owners, momenta[:, k], n_jets) for k in range(4)], axis=1)

    mass2 = total[:, 3] ** 2 - (total[:, :3] ** 2).sum(1)
    values = {
        "mass": np.sqrt(np.maximum(mass2, 0.0)),
        "pt": np.hypot(total[:, 0], total[:, 1]),
        "multiplicity": clouds.counts.astype(np.float64),
    }
    empty = clouds.counts == 0
    values["mass"][empty] = values["pt"][empty] = np.nan
    clustered = np.flatnonzero(~bad & (clouds.counts >= MINIMUM_CONSTITUENTS))
    tau = np.full((n_jets, 3), np.nan)
    tau[clustered] = n_subjettiness(clouds.select(clustered), radius)
    with np.errstate(divide="ignore", invalid="ignore"):
        values["tau21"] = np.where(tau[:, 0] > 0, tau[:, 1] / tau[:, 0], np.nan)
        values["tau32"] = np.where(tau[:, 1] > 0, tau[:, 2] / tau[:, 1], np.nan)
    return {name: np.where(bad, np.nan, value) for name, value in values.items()}


def four_momenta(pt: Floats, eta: Floats, phi: Floats) -> Floats:
    """(px, py, pz, E) in GeV of massless particles; float64 [N, 4]."""
    return np.stack([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), pt * np.cosh(eta)], axis=-1)


def n_subjettiness(clouds: PointClouds, radius: float = 0.8) -> Floats:
    """tau_1, tau_2, tau_3 of B jets of at least three constituents each; float64 [B, 3].

    tau_N = sum_i pT_i min_k dR(i, axis_k) / (sum_i pT_i * radius), beta = 1, axes from exclusive kT (E-scheme) with N
    jets: Thaler and Van Tilburg, arXiv:1011.2268, eq. (2.1) and (2.2). dR uses rapidity and azimuth, as FastJet does.
    """
    tau = np.zeros((len(clouds), 3))
    order = np.argsort(-clouds.counts, kind="stable")
    for first in range(0, len(order), CHUNK):
        jets = order[first : first + CHUNK]
        part = clouds.select(jets)
        place = (part.owners, ragged_arange(part.counts))
        pt, eta, phi = (np.zeros((len(part), int(part.counts.max()))) for _ in range(3))
        for padded, name in ((pt, "pt"), (eta, "eta_rel"), (phi, "phi_rel")):
            padded[place] = part.feature(name)
        axes = _exclusive_kt_axes(four_momenta(pt, eta, phi), part.counts, radius)
        for n in (1, 2, 3):
            rapidity, azimuth, _ = _rapidity_phi_pt2(axes[n])
            distance2 = _distance2(eta[:, :, None], phi[:, :, None], rapidity[:, None, :], azimuth[:, None, :])
            # padding has pT = 0 and so adds nothing to either sum
            tau[jets, n - 1] = (pt * np.sqrt(distance2.min(2))).sum(1) / (pt.sum(1) * radius)
    return tau


def _exclusive_kt_axes(momenta: Floats, counts: NDArray[np.int64], radius: float) -> dict[int, Floats]:
    """The 1, 2 and 3 exclusive kT jets of each jet: {n: (px, py, pz, E) [B, n, 4]}.

    Longitudinally invariant kT (Catani et al., Nucl. Phys. B406 (1993) 187; FastJet manual, arXiv:1111.6097, 2.2.1):
    d_ij = min(kT_i^2, kT_j^2) dR_ij^2 / radius^2, d_iB = kT_i^2, momenta added on recombination. The jets come with
    falling counts, and all pseudojets left of a jet lie at the front of its row; so at the step from m to m - 1
    pseudojets the jets at work are the first ones, each with exactly m, and there is nothing to mask.
    """
    longest = momenta.shape[1]
    momenta = momenta.copy()
    rapidity, azimuth, pt2 = _rapidity_phi_pt2(momenta)
    distance = _distance2(rapidity[:, :, None], azimuth[:, :, None], rapidity[:, None, :], azimuth[:, None, :])
    distance *= np.minimum(pt2[:, :, None], pt2[:, None, :]) / radius**2
    diagonal = np.arange(longest)
    distance[:, diagonal, diagonal] = pt2  # the distance to the beam
    axes: dict[int, Floats] = {}
    for m in range(longest, 0, -1):
        if m <= MINIMUM_CONSTITUENTS:
            axes[m] = momenta[:, :m].copy()
            if m == 1:
                break
        active = int(np.searchsorted(-counts, -m, side="right"))
        jet = np.arange(active)
        nearest = distance[:active, :m, :m].reshape(active, m * m).argmin(1)
        keep, drop = np.minimum(nearest // m, nearest % m), np.maximum(nearest // m, nearest % m)
        pair = keep != drop
        momenta[jet[pair], keep[pair]] += momenta[jet[pair], drop[pair]]
        rapidity[jet, keep], azimuth[jet, keep], pt2[jet, keep] = _rapidity_phi_pt2(momenta[jet, keep])
        row = _distance2(
            rapidity[:active, :m], azimuth[:active, :m], rapidity[jet, keep][:, None], azimuth[jet, keep][:, None]
        )
        row *= np.minimum(pt2[:active, :m], pt2[jet, keep][:, None]) / radius**2
        row[jet, keep] = pt2[jet, keep]
        distance[jet, keep, :m] = row
        distance[jet, :m, keep] = row
        # the last pseudojet moves to the place that became free; with the beam (keep == drop) that is all that happens
        last = m - 1
        distance[jet, drop, :m] = distance[jet, last, :m]
        distance[jet, :m, drop] = distance[jet, :m, last]
        distance[jet, drop, drop] = pt2[jet, last]
        for values in (momenta, rapidity, azimuth, pt2):
            values[jet, drop] = values[jet, last]
    return axes


def _rapidity_phi_pt2(momenta: Floats) -> tuple[Floats, Floats, Floats]:
    """Rapidity, azimuth and squared pT of (..., 4) momenta; written to be exact at large rapidity, as FastJet does."""
    px, py, pz, energy = (momenta[..., k] for k in range(4))
    pt2 = px * px + py * py
    mass2 = np.maximum((energy + pz) * (energy - pz) - pt2, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        rapidity = -np.sign(pz) * 0.5 * np.log((pt2 + mass2) / (energy + np.abs(pz)) ** 2)
    return np.where(pt2 > 0, rapidity, 0.0), np.arctan2(py, px), pt2


def _distance2(rapidity_a: Floats, phi_a: Floats, rapidity_b: Floats, phi_b: Floats) -> Floats:
    """Squared distance in rapidity and azimuth, the latter wrapped."""
    dphi = np.abs(phi_a - phi_b)
    dphi = np.where(dphi > np.pi, 2 * np.pi - dphi, dphi)
    return (rapidity_a - rapidity_b) ** 2 + dphi**2
