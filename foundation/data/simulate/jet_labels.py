"""Which generated partons a jet comes from: the rules that give jets their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foundation.data.cards import PythiaProcess
from foundation.data.simulate.jet_finding import FoundJets, wrapped
from foundation.data.simulate.particles import Floats, Integers

RESONANCES = (6, 23, 24, 25)
COLOURED = (1, 2, 3, 4, 5, 21)
CHARGED_LEPTONS = (11, 13, 15)
# What leaves the hard process, and what a heavy resonance decays to before anything is radiated (Pythia's status code).
STATUS_HARD = 23
ANCESTORS_MAX = 100


@dataclass(frozen=True)
class Partons:
    """Quarks, gluons and charged leptons out of the hard process and of resonance decays, [N] each, by event."""

    event: Integers
    flavour: Integers
    """PDG number without its sign."""
    eta: Floats
    phi: Floats
    origin: Integers
    """Row of the heavy resonance (top, W, Z, Higgs) that the parton comes from; of the parton itself if none."""

    def at(self, keep: NDArray[np.bool_]) -> Partons:
        """The partons where `keep` is true."""
        return Partons(self.event[keep], self.flavour[keep], self.eta[keep], self.phi[keep], self.origin[keep])


def hard_partons(event: Integers, flat: Mapping[str, NDArray]) -> Partons:
    """The partons among generated particles: columns id, status, mother1 (a row), px, py, pz, and event of each."""
    number = np.abs(flat["id"])
    rows = np.flatnonzero((np.abs(flat["status"]) == STATUS_HARD) & np.isin(number, COLOURED + CHARGED_LEPTONS))
    origin = rows
    for _ in range(ANCESTORS_MAX):
        mother = flat["mother1"][origin]
        climbs = np.isin(number[mother], RESONANCES)
        if not climbs.any():
            break
        # Copies of the resonance, and a W from a top or a Higgs, lead on to the first of the chain.
        origin = np.where(climbs, mother, origin)
    px, py, pz = flat["px"][rows], flat["py"][rows], flat["pz"][rows]
    eta = np.arcsinh(pz / np.maximum(np.hypot(px, py), 1e-9))
    return Partons(event[rows], number[rows], eta, np.arctan2(py, px), origin)


def matched(
    jets: FoundJets, partons: Partons, n_events: int, process: PythiaProcess, radius: float
) -> NDArray[np.bool_]:
    """Jets that carry the label of `process` by its rule, [J]; `radius` is that of the jets."""
    if process.matched == "decay":
        return _holds_decay(jets, partons, n_events, process.decay_products, radius)
    return _starts_from(jets, partons.at(np.isin(partons.flavour, COLOURED)), n_events, process.flavours, radius / 2)


def _starts_from(
    jets: FoundJets, partons: Partons, n_events: int, flavours: Sequence[int], radius: float
) -> NDArray[np.bool_]:
    """Jets whose nearest hard quark or gluon is within `radius` and of one of these flavours, [J]."""
    jet, parton, distance = _pairs(jets, partons, n_events)
    # From far to near: what is written last, the nearest, stays.
    order = np.argsort(-distance, kind="stable")
    nearest = np.full(len(jets.event), -1)
    nearest[jet[order]] = order
    found = nearest >= 0
    result = np.zeros(len(found), bool)
    result[found] = (distance[nearest[found]] < radius) & np.isin(partons.flavour[parton[nearest[found]]], flavours)
    return result


def _holds_decay(jets: FoundJets, partons: Partons, n_events: int, products: int, radius: float) -> NDArray[np.bool_]:
    """Jets that hold all `products` seen decay products of one resonance within `radius`, [J]."""
    jet, parton, distance = _pairs(jets, partons, n_events)
    group, which = np.unique(np.stack([jet, partons.origin[parton]]), axis=1, return_inverse=True)
    which = which.reshape(-1)
    total, inside = np.bincount(which), np.bincount(which[distance < radius], minlength=group.shape[1])
    whole = (total == products) & (inside == products)
    return np.bincount(group[0][whole], minlength=len(jets.event)) > 0


def _pairs(jets: FoundJets, partons: Partons, n_events: int) -> tuple[Integers, Integers, Floats]:
    """All (jet, parton) of the same event, and their distance in (eta, phi)."""
    counts = np.bincount(partons.event, minlength=n_events)
    first = np.cumsum(counts) - counts
    per_jet = counts[jets.event]
    jet = np.repeat(np.arange(len(jets.event)), per_jet)
    within = np.arange(len(jet)) - np.repeat(np.cumsum(per_jet) - per_jet, per_jet)
    parton = first[jets.event[jet]] + within
    distance = np.hypot(partons.eta[parton] - jets.eta[jet], wrapped(partons.phi[parton] - jets.phi[jet]))
    return jet, parton, distance
