"""Sequential recombination of many jets at once: exclusive kT jets and the tree of Cambridge/Aachen.

All jets of a chunk take one step at a time, and each pseudojet knows its nearest neighbour, which is all that a step
asks for (FastJet's lemma: Cacciari and Salam, hep-ph/0512210): a jet of n constituents costs n^2 operations and no
matrix is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foundation.data.point_clouds import PointClouds
from foundation.data.ragged import ragged_arange

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

PLACES = 65_536
"""Constituents that are clustered together, padding included: few enough for the tables to stay in the cache."""
FAR = 1e6
"""Rapidity of padding, so that it is nobody's nearest neighbour."""


@dataclass(frozen=True)
class PaddedJets:
    """Jets of falling multiplicity, side by side: pt, eta, phi float64 [b, longest], zero behind the constituents.

    members: int64 [b], which jets of the sample they are; counts: int64 [b]
    """

    members: Indices
    counts: Indices
    pt: Floats
    eta: Floats
    phi: Floats


def padded_chunks(clouds: PointClouds, places: int = PLACES, power: int = 1) -> Iterator[PaddedJets]:
    """All jets with constituents, those of similar multiplicity together; b * longest^power stays below `places`."""
    order = np.argsort(-clouds.counts, kind="stable")
    order = order[: int((clouds.counts > 0).sum())]
    first = 0
    while first < len(order):
        longest = int(clouds.counts[order[first]])
        members = order[first : first + max(1, places // longest**power)]
        part = clouds.select(members)
        place = (part.owners, ragged_arange(part.counts))
        columns = [np.zeros((len(part), longest)) for _ in range(3)]
        for column, name in zip(columns, ("pt", "eta_rel", "phi_rel"), strict=True):
            column[place] = part.feature(name)
        yield PaddedJets(members, part.counts, *columns)
        first += len(members)


def four_momenta(pt: Floats, eta: Floats, phi: Floats) -> Floats:
    """(px, py, pz, E) in GeV of massless particles; float64 [..., 4]."""
    return np.stack([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), pt * np.cosh(eta)], axis=-1)


def rapidity_phi_pt2(momenta: Floats) -> tuple[Floats, Floats, Floats]:
    """Rapidity, azimuth and squared pT of (..., 4) momenta; written to be exact at large rapidity, as FastJet does."""
    px, py, pz, energy = (momenta[..., k] for k in range(4))
    pt2 = px * px + py * py
    mass2 = np.maximum((energy + pz) * (energy - pz) - pt2, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        rapidity = -np.sign(pz) * 0.5 * np.log((pt2 + mass2) / (energy + np.abs(pz)) ** 2)
    return np.where(pt2 > 0, rapidity, 0.0), np.arctan2(py, px), pt2


def squared_distance(rapidity_a: Floats, phi_a: Floats, rapidity_b: Floats, phi_b: Floats) -> Floats:
    """Squared distance in rapidity and azimuth, the latter wrapped."""
    across = np.abs(phi_a - phi_b)
    np.minimum(across, 2 * np.pi - across, out=across)
    across *= across
    along = rapidity_a - rapidity_b
    along *= along
    along += across
    return along


def nearest_neighbours(rapidity: Floats, phi: Floats, counts: Indices) -> tuple[Indices, Floats]:
    """Place of the nearest neighbour of each constituent, and its squared distance; [b, longest] each."""
    jets, longest = rapidity.shape
    near, distance = np.zeros((jets, longest), np.int64), np.full((jets, longest), np.inf)
    if longest < 2:
        return near, distance
    remote = np.where(np.arange(longest) < counts[:, None], rapidity, FAR)
    diagonal = np.arange(longest)
    step = max(1, PLACES * 2 // longest**2)
    for first in range(0, jets, step):
        part = slice(first, first + step)
        pairs = squared_distance(rapidity[part, :, None], phi[part, :, None], remote[part, None, :], phi[part, None, :])
        pairs[:, diagonal, diagonal] = np.inf
        near[part] = pairs.argmin(2)
        distance[part] = np.take_along_axis(pairs, near[part][:, :, None], 2)[:, :, 0]
    return near, distance


class Recombination:
    """b jets of falling multiplicity that merge one pair each per step (E-scheme); pseudojets left lie in front.

    momenta [b, longest, 4]; radius: of the longitudinally invariant kT algorithm, Catani et al., Nucl. Phys. B406
    (1993) 187 (d_ij = min(kT_i^2, kT_j^2) dR_ij^2 / radius^2, d_iB = kT_i^2); None: Cambridge/Aachen without a beam
    (d_ij = dR_ij^2), Dokshitzer et al., hep-ph/9707323.
    """

    def __init__(
        self, momenta: Floats, counts: Indices, neighbours: tuple[Indices, Floats], radius: float | None
    ) -> None:
        self.momenta, self.counts, self.radius = momenta.copy(), counts, radius
        self.rapidity, self.phi, self.pt2 = rapidity_phi_pt2(momenta)
        self.near, self.distance = neighbours[0].copy(), neighbours[1].copy()

    def step(self, m: int) -> tuple[Indices, Indices, NDArray[np.bool_]]:
        """From m > 1 to m - 1 pseudojets in all jets that have m: places (keep, drop) of each, and whether they merged.

        What merges stays at `keep`; place `drop` is taken by the last pseudojet. With the beam, keep == drop.
        """
        active = int(np.searchsorted(-self.counts, -m, side="right"))
        jet = np.arange(active)
        first = self._order(active, m).argmin(1)
        second = self.near[jet, first]
        merged = np.ones(active, np.bool_)
        if self.radius is not None:
            merged &= self.distance[jet, first] < self.radius**2
        second = np.where(merged, second, first)
        keep, drop = np.minimum(first, second), np.maximum(first, second)
        pairs = jet[merged]
        self.momenta[pairs, keep[merged]] += self.momenta[pairs, drop[merged]]
        new = rapidity_phi_pt2(self.momenta[pairs, keep[merged]])
        for values, changed in zip((self.rapidity, self.phi, self.pt2), new, strict=True):
            values[pairs, keep[merged]] = changed
        for table in (self.momenta, self.rapidity, self.phi, self.pt2, self.near, self.distance):
            table[jet, drop] = table[jet, m - 1]
        if m > 2:
            self._renew(m - 1, keep, drop, merged)
        return keep, drop, merged

    def _order(self, active: int, m: int) -> Floats:
        distance = self.distance[:active, :m]
        if self.radius is None:
            return distance
        return np.minimum(distance * self.radius**-2, 1.0) * self.pt2[:active, :m]

    def _renew(self, m: int, keep: Indices, drop: Indices, merged: NDArray[np.bool_]) -> None:
        """Nearest neighbours among the m pseudojets after a step."""
        active = len(keep)
        jet = np.arange(active)
        near, distance = self.near[:active, :m], self.distance[:active, :m]
        rapidity, phi = self.rapidity[:active, :m], self.phi[:active, :m]
        lost = near == drop[:, None]
        lost |= near == keep[:, None]
        np.copyto(near, drop[:, None], where=near == m)  # the last one moved there

        new = np.where(merged, keep, 0)
        to_new = squared_distance(rapidity, phi, rapidity[jet, new][:, None], phi[jet, new][:, None])
        to_new[jet, new] = np.inf
        to_new[~merged] = np.inf
        closer = to_new < distance
        np.copyto(near, keep[:, None], where=closer)
        np.copyto(distance, to_new, where=closer)
        lost &= ~closer
        pairs = jet[merged]
        near[pairs, keep[merged]] = to_new[merged].argmin(1)
        distance[pairs, keep[merged]] = to_new[merged].min(1)
        lost[pairs, keep[merged]] = False

        of, place = np.nonzero(lost)
        again = squared_distance(rapidity[of], phi[of], rapidity[of, place][:, None], phi[of, place][:, None])
        row = np.arange(len(of))
        again[row, place] = np.inf
        found = again.argmin(1)
        near[of, place], distance[of, place] = found, again[row, found]


def exclusive_kt_axes(
    momenta: Floats, counts: Indices, neighbours: tuple[Indices, Floats], radius: float, most: int
) -> dict[int, Floats]:
    """The 1 ... `most` exclusive kT jets (FastJet manual, arXiv:1111.6097, 2.2.1): {n: (px, py, pz, E) [b, n, 4]}."""
    jets = Recombination(momenta, counts, neighbours, radius)
    axes: dict[int, Floats] = {}
    for m in range(momenta.shape[1], 0, -1):
        if m <= most:
            axes[m] = jets.momenta[:, :m].copy()
        if m > 1:
            jets.step(m)
    return axes


@dataclass(frozen=True)
class Tree:
    """How b jets merged. Nodes 0 ... longest - 1 are constituents; node longest is the whole jet.

    parents: int64 [b, longest - 1, 2], the two that merged into node longest + k
    momenta: float64 [b, 2 longest - 1, 4] of all nodes
    """

    parents: Indices
    momenta: Floats


def cambridge_aachen_tree(momenta: Floats, counts: Indices, neighbours: tuple[Indices, Floats]) -> Tree:
    """Cambridge/Aachen with unlimited radius, as contrib's tools recluster a jet. Jets need two constituents."""
    jets = Recombination(momenta, counts, neighbours, None)
    b, longest = momenta.shape[:2]
    parents = np.zeros((b, longest - 1, 2), np.int64)
    nodes = np.concatenate([momenta, np.zeros((b, longest - 1, 4))], axis=1)
    name = np.tile(np.arange(longest), (b, 1))
    for m in range(longest, 1, -1):
        active = int(np.searchsorted(-counts, -m, side="right"))
        jet = np.arange(active)
        last = name[:active, m - 1].copy()
        keep, drop, _ = jets.step(m)
        parents[:active, m - 2, 0], parents[:active, m - 2, 1] = name[jet, keep], name[jet, drop]
        name[jet, drop] = last
        name[jet, keep] = longest + m - 2
        # place `keep` is the front of what is left, also where the last one moved into `drop`
        nodes[:active, longest + m - 2] = jets.momenta[jet, keep]
    return Tree(parents, nodes)
