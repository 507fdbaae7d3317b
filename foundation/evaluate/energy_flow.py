"""Energy flow polynomials of jets: Komiske, Metodiev and Thaler, arXiv:1712.07124.

EFP_G = sum_i1 ... sum_in z_i1 ... z_in prod_(k,l in G) theta_ik,il with theta_ij = sqrt(deta^2 + dphi^2), dphi wrapped,
and z_i = pT,i, or pT,i / sum pT where normed: measure "hadr", beta 1, coordinates "ptyphim" of massless constituents in
energyflow 1.4.0. The sums over n constituents need n^2 operations for most graphs, and one product of matrices for all
that have a loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError
from foundation.evaluate.clustering import PaddedJets, padded_chunks

Floats = NDArray[np.float64]
Graph = tuple[str, ...]
"""Connected parts of a graph, whose values are multiplied; "01 02" has edges 0-1 and 0-2, "" is one vertex alone."""

GRAPHS: tuple[Graph, ...] = (
    ("",), ("01",), ("01 01",), ("01 01 01",), ("01 01 01 01",), ("01 02",), ("01 02 02",), ("01 02 02 02",),
    ("01 01 02 02",), ("01 02 12",), ("01 02 02 12",), ("01 02 03",), ("01 02 02 03",), ("01 02 13",),
    ("01 02 02 13",), ("01 01 02 13",), ("01 02 12 03",), ("01 02 13 23",), ("01 02 03 04",), ("01 02 03 14",),
    ("01 02 13 24",), ("01", "01"), ("01", "01 01"), ("01", "01 01 01"), ("01 01", "01 01"), ("01", "01 02"),
    ("01 01", "01 02"), ("01", "01 02 02"), ("01", "01 02 12"), ("01", "01", "01"), ("01", "01 02 03"),
    ("01", "01 02 13"), ("01 02", "01 02"), ("01", "01", "01 01"), ("01", "01", "01 02"), ("01", "01", "01", "01"),
)  # fmt: skip
"""All 36 graphs of up to four edges, in energyflow's order: the features of FPD and KPD."""
W1_GRAPHS: tuple[Graph, ...] = (
    ("01 02 02 03",), ("01 02 02 13",), ("01 01 02 13",), ("01 02 12 03",), ("01 02 13 23",),
)  # fmt: skip
"""The connected ones of four vertices and four edges, in energyflow's order: the features of W1-EFP."""
DEFINITIONS = {"efp": "efp/hadr-beta1-ptyphim/energyflow-1.4.0"}

PAIRS = 65_536
"""Pairs of constituents that are worked on together: their tables stay in the cache of a core."""


def energy_flow_polynomials(
    clouds: PointClouds,
    graphs: Sequence[Graph] = GRAPHS,
    *,
    normed: bool = False,
    precision: Literal["float64", "float32"] = "float64",
) -> Floats:
    """Energy flow polynomials of B jets with features pt, eta_rel and phi_rel; float64 [B, len(graphs)].

    In the unit of pT to the number of vertices, or dimensionless where `normed`. jetnet's metrics take them not normed,
    of pT relative to the jet's (`jets.relative_pt`). NaN for a jet with a constituent that is not finite or has pT < 0;
    zero for a jet without constituents, NaN where normed. "float32" is at best a third faster in jets of 30, costs
    seven digits per jet, and suits plots.
    """
    unknown = {part for graph in graphs for part in graph} - {part for graph in GRAPHS for part in graph}
    if unknown:
        raise DataError(f"energy flow polynomials: no graph '{min(unknown)}'; those of up to four edges are in GRAPHS")
    values = np.zeros((len(clouds), len(graphs)))
    good = np.isfinite(np.stack([clouds.feature(name) for name in ("pt", "eta_rel", "phi_rel")])).all(0)
    good &= clouds.feature("pt") >= 0
    bad = np.bincount(clouds.owners[~good], minlength=len(clouds)) > 0
    index = np.flatnonzero(~bad)
    for jets in padded_chunks(clouds.select(index), PAIRS, 2):
        parts = _connected(jets, np.dtype(precision), normed)
        for column, graph in enumerate(graphs):
            values[index[jets.members], column] = np.prod([parts[part] for part in graph], axis=0)
    values[bad | (normed & (clouds.counts == 0))] = np.nan
    return values


def _connected(jets: PaddedJets, dtype: np.dtype, normed: bool) -> dict[str, Floats]:
    """Values of all connected graphs of up to four edges; padding has z = 0 and adds nothing."""
    z, eta, phi = (values.astype(dtype, copy=False) for values in (jets.pt, jets.eta, jets.phi))
    if normed:
        with np.errstate(invalid="ignore"):
            z = z / z.sum(1, keepdims=True)
    theta2, theta = _angles(eta, phi)
    root = np.sqrt(z)
    # sqrt(z_i) theta_ij sqrt(z_j): with it every sum over a vertex between two edges is a product of matrices
    edge = theta * root[:, :, None]
    edge *= root[:, None, :]
    two_edges = edge @ edge

    one = _times(theta, z)  # at vertex i: sum_j z_j theta_ij
    onward = _times(theta, z * one)  # sum_j z_j theta_ij sum_k z_k theta_jk
    double, double_onward = _times(theta2, z), _times(theta2, z * one)
    cube = theta2 * theta
    triple = _times(cube, z)
    fourth = np.multiply(theta2, theta2, out=cube)
    quadruple = _times(fourth, z)
    closed = np.multiply(edge, two_edges, out=cube)
    at_vertex = closed.sum(2)  # z_i sum_jk z_j z_k theta_ij theta_jk theta_ki

    def total(*factors: Floats) -> Floats:
        return np.prod(np.stack(factors), axis=0, dtype=np.float64).sum(1)

    return {
        "": total(z),
        "01": total(z, one),
        "01 01": total(z, double),
        "01 01 01": total(z, triple),
        "01 01 01 01": total(z, quadruple),
        "01 02": total(z, one, one),
        "01 02 02": total(z, one, double),
        "01 02 02 02": total(z, one, triple),
        "01 01 02 02": total(z, double, double),
        "01 02 12": total(at_vertex),
        "01 02 02 12": _dot(closed, theta),
        "01 02 03": total(z, one, one, one),
        "01 02 02 03": total(z, one, one, double),
        "01 02 13": total(z, one, onward),
        "01 02 02 13": total(z, double, onward),
        "01 01 02 13": total(z, one, double_onward),
        "01 02 12 03": total(at_vertex, one),
        "01 02 13 23": _dot(two_edges, two_edges),
        "01 02 03 04": total(z, one, one, one, one),
        "01 02 03 14": total(z, one, one, onward),
        "01 02 13 24": total(z, onward, onward),
    }


def _angles(eta: Floats, phi: Floats) -> tuple[Floats, Floats]:
    """theta^2 and theta of all pairs, [b, n, n] each."""
    theta2 = eta[:, :, None] - eta[:, None, :]
    theta2 *= theta2
    across = phi[:, :, None] - phi[:, None, :]
    if np.ptp(phi) > np.pi:
        np.abs(across, out=across)
        np.minimum(across, 2 * np.pi - across, out=across)
    across *= across
    theta2 += across
    return theta2, np.sqrt(theta2, out=across)


def _times(matrix: Floats, vector: Floats) -> Floats:
    return (matrix @ vector[:, :, None])[:, :, 0]


def _dot(a: Floats, b: Floats) -> Floats:
    jets = len(a)
    return (a.reshape(jets, 1, -1) @ b.reshape(jets, -1, 1))[:, 0, 0].astype(np.float64)


def d2(polynomials: Floats, graphs: Sequence[Graph] = GRAPHS) -> Floats:
    """D_2 = e_3 / e_2^3 with beta 1 (Larkoski, Moult and Neill, arXiv:1409.6298, eq. 1.1) from [B, len(graphs)].

    e_2 = sum_i<j z_i z_j theta_ij and e_3 = sum_i<j<k z_i z_j z_k theta_ij theta_ik theta_jk are the edge / 2 and the
    triangle / 6; the scale of pT drops out. As contrib's EnergyCorrelatorD2 with the measure pt_R for massless
    constituents. NaN where all constituents are at one place.
    """
    dot, edge, triangle = (polynomials[:, list(graphs).index((name,))] for name in ("", "01", "01 02 12"))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(edge > 0, 4 / 3 * triangle * dot**3 / edge**3, np.nan)
