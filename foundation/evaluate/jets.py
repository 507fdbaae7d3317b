"""Observables of jets, from massless constituents (pT, eta_rel, phi_rel).

Mass, pT and N-subjettiness are invariant under boosts along the beam and rotations about it, so the coordinates
relative to the jet axis are enough.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError
from foundation.evaluate.clustering import (
    exclusive_kt_axes,
    four_momenta,
    nearest_neighbours,
    padded_chunks,
    rapidity_phi_pt2,
    squared_distance,
)

Floats = NDArray[np.float64]

MINIMUM_CONSTITUENTS = 3
"""tau32 asks for three subjets; jets with fewer constituents have no tau."""


def jet_observables(clouds: PointClouds, radius: float = 0.8) -> dict[str, Floats]:
    """Observables of B jets, each float64 [B]: mass [GeV], pt [GeV], multiplicity, tau21, tau32.

    pt is that of the vector sum of the constituents. A value that does not exist is NaN: mass and pt of a jet without
    constituents, tau of a jet with fewer than three, everything of a jet with a constituent that is not finite or has
    pT <= 0 (count the NaN, do not drop them). Two constituents at the same place count as two.
    """
    n_jets = len(clouds)
    bad = unphysical(clouds)
    total = jet_momenta(clouds)
    values = {
        "mass": jet_mass(clouds),
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


def unphysical(clouds: PointClouds) -> NDArray[np.bool_]:
    """Jets with a constituent that is not finite or has pT <= 0; bool [B]."""
    pt, eta, phi = (clouds.feature(name) for name in ("pt", "eta_rel", "phi_rel"))
    good = np.isfinite(pt) & np.isfinite(eta) & np.isfinite(phi) & (pt > 0)
    return np.bincount(clouds.owners[~good], minlength=len(clouds)) > 0


def jet_momenta(clouds: PointClouds) -> Floats:
    """(px, py, pz, E) in GeV of B jets, the sum of their massless constituents; float64 [B, 4].

    In the coordinates of the constituents: x points along the jet axis that eta_rel and phi_rel are counted from.
    """
    owners = clouds.owners
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite stays so
        momenta = four_momenta(*(clouds.feature(name).astype(np.float64) for name in ("pt", "eta_rel", "phi_rel")))
    return np.stack([np.bincount(owners, momenta[:, k], len(clouds)) for k in range(4)], axis=1)


def jet_mass(clouds: PointClouds) -> Floats:
    """Mass in GeV of B jets, float64 [B]; 0 for a jet without constituents."""
    total = jet_momenta(clouds)
    with np.errstate(invalid="ignore"):
        return np.sqrt(np.maximum(total[:, 3] ** 2 - (total[:, :3] ** 2).sum(1), 0.0))


def relative_pt(clouds: PointClouds, jet_pt: NDArray[np.floating] | None = None) -> PointClouds:
    """The same jets with pt in units of the jet's pT, as JetNet stores them and jetnet's metrics expect them.

    jet_pt: [B]; by default the condition jet_pt, or the pT of the vector sum where there is no such condition. The two
    differ where constituents were cut off: JetNet divides by the pT of the whole jet, so that the sum is below 1.
    """
    if jet_pt is None:
        known = "jet_pt" in clouds.condition_names
        jet_pt = clouds.condition("jet_pt") if known else np.hypot(*jet_momenta(clouds)[:, :2].T)
    jet_pt = np.asarray(jet_pt, np.float64)
    if len(jet_pt) != len(clouds):
        raise DataError(f"relative pT: {len(jet_pt)} values of jet pT were given for {len(clouds)} jets")
    if not (jet_pt[clouds.counts > 0] > 0).all():
        raise DataError("relative pT: a jet has no pT above zero to divide by; give jet_pt, or leave such jets out")
    column = clouds.features.index("pt")
    points = clouds.points.copy()
    points[:, column] /= jet_pt[clouds.owners]
    units = tuple("1" if k == column else unit for k, unit in enumerate(clouds.units))
    return replace(clouds, points=points, units=units)


def n_subjettiness(clouds: PointClouds, radius: float = 0.8) -> Floats:
    """tau_1, tau_2, tau_3 of B jets of at least three constituents each; float64 [B, 3].

    tau_N = sum_i pT_i min_k dR(i, axis_k) / (sum_i pT_i * radius), beta = 1, axes from exclusive kT (E-scheme) with N
    jets: Thaler and Van Tilburg, arXiv:1011.2268, eq. (2.1) and (2.2). dR uses rapidity and azimuth, as FastJet does.
    """
    tau = np.zeros((len(clouds), 3))
    for jets in padded_chunks(clouds):
        neighbours = nearest_neighbours(jets.eta, jets.phi, jets.counts)
        axes = exclusive_kt_axes(four_momenta(jets.pt, jets.eta, jets.phi), jets.counts, neighbours, radius, 3)
        for n in (1, 2, 3):
            rapidity, azimuth, _ = rapidity_phi_pt2(axes[n])
            nearest = squared_distance(jets.eta, jets.phi, rapidity[:, :1], azimuth[:, :1])
            for k in range(1, n):
                distance2 = squared_distance(jets.eta, jets.phi, rapidity[:, k : k + 1], azimuth[:, k : k + 1])
                np.minimum(nearest, distance2, out=nearest)
            # padding has pT = 0 and so adds nothing to either sum
            tau[jets.members, n - 1] = (jets.pt * np.sqrt(nearest)).sum(1) / (jets.pt.sum(1) * radius)
    return tau
