"""What the field plots of a jet: kinematics, groomed mass, N-subjettiness, energy correlations, charge.

Constituents are massless. eta and phi are those of the vector sum in the coordinates of the constituents, relative to
the axis that eta_rel and phi_rel are counted from; all the rest does not depend on that axis. eta is a pseudorapidity,
which a boost does not just shift where the jet has mass: compare jets given in the same coordinates only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from foundation.data.cards import DatasetCard
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError
from foundation.evaluate.clustering import (
    Tree,
    cambridge_aachen_tree,
    four_momenta,
    nearest_neighbours,
    padded_chunks,
    rapidity_phi_pt2,
    squared_distance,
)
from foundation.evaluate.energy_flow import GRAPHS, d2, energy_flow_polynomials
from foundation.evaluate.jets import MINIMUM_CONSTITUENTS, jet_momenta, jet_observables, unphysical

Floats = NDArray[np.float64]

DEFINITIONS = {
    "pt": "jet-pt/vector-sum",
    "eta": "jet-eta/vector-sum",
    "phi": "jet-phi/vector-sum",
    "mass": "jet-mass/massless-constituents",
    "multiplicity": "multiplicity/constituents",
    "soft_drop_mass": "soft-drop-mass/fastjet-contrib-beta0-zcut0.1",
    "tau21": "tau21/exclusive-kt-beta1-omnijet-alpha",
    "tau32": "tau32/exclusive-kt-beta1-omnijet-alpha",
    "d2": "d2/fastjet-contrib-beta1",
    "charge": "jet-charge/kappa0.5",
}
CHARGES = {"negative": -1.0, "neutral": 0.0, "positive": 1.0}
"""Electric charges by the names that dataset cards give to the categories of the feature `charge`."""


def jet_panel(
    clouds: PointClouds, *, card: DatasetCard | None = None, polynomials: Floats | None = None, radius: float = 0.8
) -> dict[str, Floats]:
    """All observables of B jets, float64 [B] each: pt, eta, phi, mass, multiplicity, soft_drop_mass, tau21, tau32, d2.

    With a card whose feature `charge` names the charges, charge, too. polynomials: energy flow polynomials [B, 36] of
    these jets in the order of GRAPHS where they are known already; D2 takes most of the time otherwise.
    NaN, never dropped: everything of a jet with a constituent that is not finite or has pT <= 0, all but the
    multiplicity of a jet without constituents, tau and D2 of a jet with fewer than three (OmniJet-alpha's code refuses
    samples with such jets).
    """
    bad = unphysical(clouds)
    values = jet_observables(clouds, radius)
    with np.errstate(invalid="ignore", over="ignore"):
        eta, phi = _pseudorapidity_phi(jet_momenta(clouds))
    values["eta"], values["phi"] = (np.where(clouds.counts > 0, axis, np.nan) for axis in (eta, phi))
    values["soft_drop_mass"] = soft_drop_mass(clouds)
    if polynomials is None:
        polynomials = energy_flow_polynomials(clouds)
    if polynomials.shape != (len(clouds), len(GRAPHS)):
        raise DataError(
            f"jet observables: polynomials have shape {polynomials.shape}, expected {(len(clouds), len(GRAPHS))}"
        )
    values["d2"] = np.where(clouds.counts >= MINIMUM_CONSTITUENTS, d2(polynomials), np.nan)
    charges = None if card is None else constituent_charges(clouds, card)
    if charges is not None:
        values["charge"] = jet_charge(clouds, charges)
    return {name: np.where(bad, np.nan, values[name]) for name in DEFINITIONS if name in values}


def soft_drop_mass(clouds: PointClouds, *, z_cut: float = 0.1, beta: float = 0.0, radius: float = 0.8) -> Floats:
    """Mass of B jets after soft drop [GeV], float64 [B]: Larkoski et al., arXiv:1402.2657, as fastjet-contrib grooms.

    The jet is clustered by Cambridge/Aachen of unlimited radius and taken apart, following the subjet of larger pT, up
    to min(pT1, pT2) / (pT1 + pT2) > z_cut (dR12 / radius)^beta. One constituent that is left over has mass 0; a jet
    without constituents, or with one that is not finite or has pT <= 0, has NaN.
    """
    masses = np.full(len(clouds), np.nan)
    good = np.flatnonzero(~unphysical(clouds))
    for jets in padded_chunks(clouds.select(good)):
        momenta = four_momenta(jets.pt, jets.eta, jets.phi)
        tree = cambridge_aachen_tree(momenta, jets.counts, nearest_neighbours(jets.eta, jets.phi, jets.counts))
        masses[good[jets.members]] = _groomed_masses(tree, jets.counts, z_cut, beta, radius)
    return masses


def _groomed_masses(tree: Tree, counts: NDArray[np.int64], z_cut: float, beta: float, radius: float) -> Floats:
    longest = tree.parents.shape[1] + 1
    masses = np.zeros(len(counts))
    jet = np.flatnonzero(counts > 1)
    node = np.full(len(jet), longest)
    while len(jet):
        parents = tree.parents[jet, node - longest]
        rapidity, phi, pt2 = rapidity_phi_pt2(tree.momenta[jet[:, None], parents])
        pt = np.sqrt(pt2)
        distance2 = squared_distance(rapidity[:, 0], phi[:, 0], rapidity[:, 1], phi[:, 1])
        passed = pt.min(1) / pt.sum(1) > z_cut * (distance2 / radius**2) ** (beta / 2)
        masses[jet[passed]] = _mass(tree.momenta[jet[passed], node[passed]])
        harder = np.take_along_axis(parents, pt.argmax(1)[:, None], 1)[:, 0]
        further = ~passed & (harder >= longest)
        jet, node = jet[further], harder[further]
    return masses


def _mass(momenta: Floats) -> Floats:
    px, py, pz, energy = momenta.T
    return np.sqrt(np.maximum((energy + pz) * (energy - pz) - px * px - py * py, 0.0))


def _pseudorapidity_phi(momenta: Floats) -> tuple[Floats, Floats]:
    px, py, pz, _ = momenta.T
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.arcsinh(pz / np.hypot(px, py)), np.arctan2(py, px)


def constituent_charges(clouds: PointClouds, card: DatasetCard) -> Floats | None:
    """Electric charges of all constituents in units of e, float64 [N]; None where the card names none.

    Identities without a charge (particle and antiparticle in one category) are not enough.
    """
    if "charge" not in clouds.features:
        return None
    found = [feature for feature in card.features if feature.name == "charge"]
    if not found:
        return None
    if found[0].kind != "category":
        return clouds.feature("charge").astype(np.float64)
    if not set(found[0].categories) <= set(CHARGES):
        return None
    table = np.array([CHARGES[name] for name in found[0].categories])
    codes = clouds.feature("charge")
    known = np.isfinite(codes) & (codes >= 0) & (codes < len(table))
    return np.where(known, table[np.where(known, codes, 0).astype(np.int64)], np.nan)


def jet_charge(clouds: PointClouds, charges: Floats, *, kappa: float = 0.5) -> Floats:
    """Q = sum_i q_i pT,i^kappa / pT,jet^kappa of B jets, float64 [B]: Krohn et al., arXiv:1209.2421, eq. 1.

    pT,jet is that of the vector sum; NaN for a jet without constituents, or with a constituent of unknown charge.
    """
    if len(charges) != len(clouds.points):
        raise DataError(f"jet charge: {len(charges)} charges were given for {len(clouds.points)} constituents")
    with np.errstate(invalid="ignore", divide="ignore"):
        weighted = charges * np.power(clouds.feature("pt").astype(np.float64), kappa)
        pt = np.hypot(*jet_momenta(clouds)[:, :2].T)
        return np.bincount(clouds.owners, weighted, len(clouds)) / np.where(clouds.counts > 0, pt, np.nan) ** kappa
