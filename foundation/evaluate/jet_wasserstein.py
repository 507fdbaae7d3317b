"""Wasserstein-1 distances of jets as jetnet 0.2.5 defines them: W1-M, W1-P and W1-EFP (arXiv:2106.11535, section 4).

All three draw `batches` times `size` jets with replacement from either sample and give mean and standard deviation
(ddof 0) over the batches, so that truth against itself is not 0: read them beside their floor. Published numbers are of
pT relative to the jet's (`jets.relative_pt`), and often multiplied by 1e3 or 1e5. jetnet draws from a generator without
a seed; with numpy's default generator of `seed` in its place (`gen_metrics.rng`), it gives these values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError
from foundation.evaluate.energy_flow import W1_GRAPHS, energy_flow_polynomials
from foundation.evaluate.jets import jet_mass
from foundation.evaluate.metrics import Measurement

Floats = NDArray[np.float64]
Weights = NDArray[np.int64]

DEFINITIONS = {"w1m": "w1m/jetnet-0.2.5", "w1p": "w1p/jetnet-0.2.5", "w1efp": "w1efp/jetnet-0.2.5"}
CONSTITUENT_FEATURES = ("eta_rel", "phi_rel", "pt")
SIZE, BATCHES = 50_000, 5
MINIMUM = 20
"""Jets in either sample below which no distance is quoted; jetnet recommends 50,000."""


def w1m(
    truth: PointClouds, generated: PointClouds, *, seed: int = 0, size: int = SIZE, batches: int = BATCHES
) -> Measurement:
    """W1 of the jet mass, in the unit of pT; constituents are massless, a jet without constituents has mass 0."""
    masses = [jet_mass(side) for side in _checked(truth, generated)]
    return _measured(masses[0][:, None], masses[1][:, None], seed, size, batches)[0]


def w1efp(
    truth: PointClouds | Floats,
    generated: PointClouds | Floats,
    *,
    seed: int = 0,
    size: int = SIZE,
    batches: int = BATCHES,
) -> tuple[Measurement, ...]:
    """W1 of each energy flow polynomial of `W1_GRAPHS`, not normed: in the unit of pT to the fourth power.

    Takes jets, or tables [B, n] of polynomials that are known already (one distance per column). Papers quote the mean
    over the polynomials.
    """
    if isinstance(truth, PointClouds) and isinstance(generated, PointClouds):
        truth, generated = (energy_flow_polynomials(side, W1_GRAPHS) for side in _checked(truth, generated))
    a, b = np.asarray(truth, np.float64), np.asarray(generated, np.float64)
    for side, table in (("first", a), ("second", b)):
        if len(table) < MINIMUM or not np.isfinite(table).all():
            raise DataError(
                f"W1-EFP: the {side} sample has {len(table)} jets, {int((~np.isfinite(table)).any(1).sum())} of them "
                f"with values that are not finite; give at least {MINIMUM} jets with finite values"
            )
    return _measured(a, b, seed, size, batches)


def w1p(
    truth: PointClouds,
    generated: PointClouds,
    *,
    features: Sequence[str] = CONSTITUENT_FEATURES,
    seed: int = 0,
    size: int = SIZE,
    batches: int = BATCHES,
) -> dict[str, Measurement]:
    """W1 of each feature over all constituents of the drawn jets, in its unit.

    Constituents all of whose `features` are exactly 0 are left out, as jetnet does with its padding. "W1-P" in papers
    is the plain mean over eta, phi and pt, the mean weighted with inverse variances, or pt alone: say which.
    """
    sides = _checked(truth, generated)
    tables = [np.stack([side.feature(name) for name in features], axis=1) for side in sides]
    real = [(table != 0).any(1) for table in tables]
    drawn = list(_draws((len(truth), len(generated)), seed, size, batches))
    found = {}
    for k, name in enumerate(features):
        values = [table[kept, k].astype(np.float64) for table, kept in zip(tables, real, strict=True)]
        owners = [side.owners[kept] for side, kept in zip(sides, real, strict=True)]
        found[name] = _over_batches(values, owners, drawn)
    return found


def _measured(a: Floats, b: Floats, seed: int, size: int, batches: int) -> tuple[Measurement, ...]:
    """One distance per column, all of the same draws."""
    drawn = list(_draws((len(a), len(b)), seed, size, batches))
    owners = [np.arange(len(a)), np.arange(len(b))]
    return tuple(_over_batches([a[:, k], b[:, k]], owners, drawn) for k in range(a.shape[1]))


def _draws(lengths: tuple[int, int], seed: int, size: int, batches: int) -> Iterator[tuple[Weights, Weights]]:
    """How many times each object of either sample is drawn, batch by batch."""
    rng = np.random.default_rng(seed)
    for _ in range(batches):
        first, second = (np.bincount(rng.choice(length, size), minlength=length) for length in lengths)
        yield first, second


def _over_batches(
    values: Sequence[Floats], owners: Sequence[NDArray[np.int64]], drawn: Sequence[tuple[Weights, Weights]]
) -> Measurement:
    """W1 of weighted values: they are sorted once, and each batch is two sums along them."""
    joined = np.concatenate(values)
    order = np.argsort(joined)
    gaps = np.diff(joined[order])
    of_first = order < len(values[0])
    owner = np.concatenate(owners)[order]
    distances = []
    for weights in drawn:
        times = [np.where(of_first, weights[0][np.where(of_first, owner, 0)], 0)]
        times.append(np.where(of_first, 0, weights[1][np.where(of_first, 0, owner)]))
        reached = [np.cumsum(t) for t in times]
        if reached[0][-1] == 0 or reached[1][-1] == 0:
            distances.append(np.inf)
            continue
        shares = [r[:-1] / r[-1] for r in reached]
        distances.append(float(np.abs(shares[0] - shares[1]) @ gaps))
    return Measurement(float(np.mean(distances)), float(np.std(distances)))


def _checked(truth: PointClouds, generated: PointClouds) -> tuple[PointClouds, PointClouds]:
    for side, clouds in (("first", truth), ("second", generated)):
        if len(clouds) < MINIMUM:
            raise DataError(f"W1: the {side} sample has {len(clouds)} jets, at least {MINIMUM} are needed")
        points = np.stack([clouds.feature(name) for name in CONSTITUENT_FEATURES])
        broken = int((~np.isfinite(points)).any(0).sum())
        if broken:
            raise DataError(f"W1: {broken} constituents of the {side} sample are not finite; leave out their jets")
    return truth, generated
