"""anti-kT jets of many events at once, by FastJet (arXiv:0802.1189, arXiv:1111.6097)."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from foundation.data.simulate.particles import DetectorObjects, Floats, Integers


@dataclass(frozen=True)
class FoundJets:
    """J jets and their constituents: `objects[i]` belongs to jet `jet[i]`, jets count from 0. GeV, radians."""

    event: Integers
    pt: Floats
    eta: Floats
    phi: Floats
    energy: Floats
    objects: Integers
    jet: Integers

    @property
    def mass(self) -> Floats:
        """Mass in GeV of the sum of the constituents, [J]."""
        return np.sqrt(np.maximum(self.energy**2 - (self.pt * np.cosh(self.eta)) ** 2, 0.0))

    @property
    def n_constituents(self) -> Integers:
        """Constituents of each jet, [J]."""
        return np.bincount(self.jet, minlength=len(self.event))

    def at(self, keep: NDArray[np.bool_]) -> FoundJets:
        """The jets where `keep` is true, counted from 0 again."""
        inside = keep[self.jet]
        number = np.cumsum(keep) - 1
        return FoundJets(
            self.event[keep],
            self.pt[keep],
            self.eta[keep],
            self.phi[keep],
            self.energy[keep],
            self.objects[inside],
            number[self.jet[inside]],
        )


def find_jets(
    objects: DetectorObjects, n_events: int, radius: float, pt_min: float, fastjet: ModuleType, awkward: ModuleType
) -> FoundJets:
    """anti-kT jets of all events with pT above `pt_min` in GeV."""
    px, py, pz, energy = objects.momenta
    counts = np.bincount(objects.event, minlength=n_events)
    momenta = awkward.zip({"px": px, "py": py, "pz": pz, "E": energy}, with_name="Momentum4D")
    definition = fastjet.JetDefinition(fastjet.antikt_algorithm, radius)
    cluster = fastjet.ClusterSequence(awkward.unflatten(momenta, counts), definition)
    members = cluster.constituent_index(min_pt=pt_min)
    event = np.repeat(np.arange(n_events), awkward.to_numpy(awkward.num(members)))
    size = awkward.to_numpy(awkward.num(awkward.flatten(members), axis=1))
    jet = np.repeat(np.arange(len(size)), size)
    inside = awkward.to_numpy(awkward.flatten(members, axis=None)).astype(np.int64)
    rows = inside + (np.cumsum(counts) - counts)[event[jet]]
    # The axis of the jet is that of the sum of its constituents, whatever their masses.
    x, y, z, e = (np.bincount(jet, component[rows], len(size)) for component in (px, py, pz, energy))
    pt = np.hypot(x, y)
    return FoundJets(event, pt, np.arcsinh(z / pt), np.arctan2(y, x), e.astype(np.float64), rows, jet)


def wrapped(angle: Floats) -> Floats:
    """The same angle in [-pi, pi)."""
    return (angle + np.pi) % (2 * np.pi) - np.pi
