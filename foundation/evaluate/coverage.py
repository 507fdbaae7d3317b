"""Coverage and minimum matching distance of jets by the energy mover's distance, as jetnet 0.2.5 defines them.

EMD(A, B) = min_f sum_ij f_ij theta_ij + |sum pT_A - sum pT_B|, where f moves all pT of the jet that has less: Komiske,
Metodiev and Thaler, arXiv:1902.02346, eq. 1 with R = 1; azimuths are not wrapped, as in energyflow 1.4.0's emds. Only
nearest neighbours are asked for, so most pairs are excluded by a lower bound, from potentials of a smoothed problem
(Cuturi, arXiv:1306.0895) made feasible; those left are solved exactly as linear programmes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError
from foundation.evaluate.metrics import Measurement

Floats = NDArray[np.float64]

DEFINITIONS = {"coverage": "cov-emd/jetnet-0.2.5", "mmd": "mmd-emd/jetnet-0.2.5"}
MINIMUM = 20
"""Jets in either sample below which nothing is quoted."""
SMOOTHING, ROUNDS = 0.03, 80
"""Of the potentials: temperature in units of the median angle between the jets, and number of updates."""
FLOWS = 5
"""Flows from and to each constituent that an exact solution starts with."""
LINPROG = {"presolve": False, "primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
PLACES = 131_072
"""Entries of cost matrices that are worked on together: they stay in the cache of a core."""


@dataclass(frozen=True)
class Coverage:
    """Share of truth jets that are nearest to a generated one; mean distance from truth to the nearest generated jet.

    The distance is in the unit of pT. Errors are standard errors over the batches, which jetnet does not give.
    """

    coverage: Measurement
    mmd: Measurement


def coverage_and_mmd(
    truth: PointClouds, generated: PointClouds, *, seed: int = 0, size: int = 100, batches: int = 10
) -> Coverage:
    """Coverage and MMD of `batches` times `size` jets, drawn with replacement from either sample, averaged.

    The draws repeat jets, and batches are small: coverage of truth by truth is far below 1. jetnet draws
    from a generator without a seed; with numpy's default generator of `seed` in its place, it gives these values.
    """
    sides = [_weighted(clouds, side) for clouds, side in ((truth, "first"), (generated, "second"))]
    rng = np.random.default_rng(seed)
    shares, distances = [], []
    for _ in range(batches):
        real, made = (rng.choice(len(jets), size) for jets in sides)
        nearest = nearest_jets([sides[1][k] for k in made], [sides[0][k] for k in real])
        shares.append(len(np.unique(nearest.of_first)) / size)
        distances.append(float(nearest.distance_of_second.mean()))
    return Coverage(_mean(shares), _mean(distances))


@dataclass(frozen=True)
class Nearest:
    """Of each jet of the first sample the nearest of the second, and of each of the second its distance to the first.

    solved: how many distances were calculated exactly
    """

    of_first: NDArray[np.int64]
    distance_of_second: Floats
    solved: int


def nearest_jets(first: list[Floats], second: list[Floats]) -> Nearest:
    """Nearest neighbours by EMD between jets, each a table (pT, eta, phi) [n, 3]; of equal ones the one in front."""
    bounds = _lower_bounds(first, second)
    exact = np.full(bounds.shape, np.nan)
    for row in range(len(first)):
        _search(bounds, exact, [(row, column) for column in np.argsort(bounds[row])], first, second)
    for column in range(len(second)):
        _search(bounds, exact, [(row, column) for row in np.argsort(bounds[:, column])], first, second)
    known = np.where(np.isnan(exact), np.inf, exact)
    return Nearest(known.argmin(1), known.min(0), int((~np.isnan(exact)).sum()))


def _search(
    bounds: Floats, exact: Floats, order: list[tuple[int, int]], first: list[Floats], second: list[Floats]
) -> None:
    """Solve pairs by rising lower bound until no further one can be nearer."""
    best = np.inf
    for pair in order:
        if bounds[pair] > best:
            break
        if np.isnan(exact[pair]):
            exact[pair] = energy_movers_distance(first[pair[0]], second[pair[1]])
        best = min(best, exact[pair])


def energy_movers_distance(a: Floats, b: Floats) -> float:
    """EMD of two jets, tables (pT, eta, phi) [n, 3], in the unit of pT.

    A linear programme of the most promising flows is solved, then those that its prices say are missing are added,
    until none is: which is the optimum of the whole.
    """
    a, b = _balanced(a, b)
    cost, price_a, price_b = (values[0] for values in _prices(a[None], b[None]))
    reduced = cost - price_a[:, None] - price_b[None, :]
    few = min(FLOWS, *cost.shape)
    allowed = _corner_flows(a[:, 0], b[:, 0])  # they are a solution, so that there is one
    np.put_along_axis(allowed, np.argpartition(reduced, few - 1, axis=1)[:, :few], True, 1)
    np.put_along_axis(allowed, np.argpartition(reduced, few - 1, axis=0)[:few], True, 0)
    while True:
        value, rows, columns = _transport(a[:, 0], b[:, 0], cost, allowed)
        missing = cost - rows[:, None] - columns[None, :] < -1e-12 * cost.max()
        missing &= ~allowed
        if not missing.any():
            return value
        allowed |= missing


def _transport(a: Floats, b: Floats, cost: Floats, allowed: NDArray[np.bool_]) -> tuple[float, Floats, Floats]:
    from scipy.optimize import linprog
    from scipy.sparse import coo_array

    i, j = np.nonzero(allowed)
    k = np.arange(len(i))
    ones = np.ones(2 * len(i))
    leaving = coo_array((ones, (np.concatenate([i, len(a) + j]), np.concatenate([k, k]))), (len(a) + len(b), len(i)))
    found = linprog(cost[i, j], A_eq=leaving.tocsc(), b_eq=np.concatenate([a, b]), method="highs-ds", options=LINPROG)
    if found.x is None:
        raise DataError(f"energy mover's distance: no solution was found for two jets ({found.message})")
    prices = found.eqlin.marginals
    return float(cost[i, j] @ found.x), prices[: len(a)], prices[len(a) :]


def _corner_flows(a: Floats, b: Floats) -> NDArray[np.bool_]:
    """Where flows go that fill the jets in order: feasible, whatever the costs."""
    reached = [np.cumsum(weights) for weights in (a, b)]
    reached[1] *= reached[0][-1] / reached[1][-1]
    starts = [r - weights for r, weights in zip(reached, (a, b), strict=True)]
    slack = 1e-9 * reached[0][-1]
    return (starts[0][:, None] <= reached[1] + slack) & (starts[1] <= reached[0][:, None] + slack)


def _balanced(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """The jets with one more point, at distance 1 of everything (marked by NaN), in the one that has less pT."""
    difference = a[:, 0].sum() - b[:, 0].sum()
    extra = np.array([[abs(difference), np.nan, np.nan]])
    if difference == 0:
        return a, b
    return (a, np.concatenate([b, extra])) if difference > 0 else (np.concatenate([a, extra]), b)


def _costs(a: Floats, b: Floats) -> Floats:
    theta = np.hypot(a[..., :, None, 1] - b[..., None, :, 1], a[..., :, None, 2] - b[..., None, :, 2])
    return np.where(np.isnan(theta), 1.0, theta)


def _lower_bounds(first: list[Floats], second: list[Floats]) -> Floats:
    """Lower bounds of EMD between all jets of two samples, [len(first), len(second)]."""
    longest = max(len(jet) for jet in second) + 1
    bounds = np.zeros((len(first), len(second)))
    for row, jet in enumerate(first):
        step = max(1, PLACES // ((len(jet) + 1) * longest))
        for start in range(0, len(second), step):
            others = second[start : start + step]
            pairs = [_balanced(jet, other) for other in others]
            a = _side_by_side([pair[0] for pair in pairs], len(jet) + 1)
            b = _side_by_side([pair[1] for pair in pairs], longest)
            bounds[row, start : start + step] = _dual_values(a, b)
    return bounds


def _side_by_side(jets: list[Floats], longest: int) -> Floats:
    """[b, longest, 3]; places without a point have pT = 0 and lie where the first point of the jet does."""
    table = np.zeros((len(jets), longest, 3))
    for k, jet in enumerate(jets):
        table[k, : len(jet)] = jet
        table[k, len(jet) :, 1:] = jet[0, 1:]
    return table


def _dual_values(a: Floats, b: Floats) -> Floats:
    """A feasible value of the dual of each of b transport problems [b, n, 3], [b, m, 3]: never above the distance."""
    _, price_a, price_b = _prices(a, b)
    return (a[:, :, 0] * price_a).sum(1) + (b[:, :, 0] * price_b).sum(1)


def _prices(a: Floats, b: Floats) -> tuple[Floats, Floats, Floats]:
    """Costs [b, n, m] and prices [b, n], [b, m] that in no place add up to more than the cost."""
    cost = _costs(a, b)
    temperature = SMOOTHING * np.maximum(np.median(cost, axis=(1, 2), keepdims=True), 1e-6)
    kernel = np.exp(np.maximum(-cost / temperature, -600.0))
    backward = np.ascontiguousarray(kernel.swapaxes(1, 2))
    right = np.ones((len(b), b.shape[1], 1))
    for _ in range(ROUNDS):
        left = a[:, :, :1] / (kernel @ right)
        right = b[:, :, :1] / (backward @ left)
    with np.errstate(divide="ignore"):
        price_b = np.where(b[:, :, 0] > 0, (temperature * np.log(right))[:, :, 0], -np.inf)
    price_a = (cost - price_b[:, None, :]).min(2)
    return cost, price_a, (cost - price_a[:, :, None]).min(1)


def _weighted(clouds: PointClouds, side: str) -> list[Floats]:
    """Jets as tables (pT, eta, phi) [n, 3] of constituents with pT > 0."""
    if len(clouds) < MINIMUM:
        raise DataError(f"coverage: the {side} sample has {len(clouds)} jets, at least {MINIMUM} are needed")
    points = np.stack([clouds.feature(name) for name in ("pt", "eta_rel", "phi_rel")], axis=1).astype(np.float64)
    if not np.isfinite(points).all() or points[:, 0].min(initial=0) < 0:
        raise DataError(
            f"coverage: the {side} sample has constituents that are not finite or have pT < 0; leave them out"
        )
    jets = [table[table[:, 0] > 0] for table in np.split(points, clouds.offsets[1:-1])]
    empty = sum(len(jet) == 0 for jet in jets)
    if empty:
        raise DataError(f"coverage: {empty} jets of the {side} sample have no constituents; leave them out")
    return jets


def _mean(values: list[float]) -> Measurement:
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return Measurement(float(np.mean(values)), float(error))
