"""Observables of showers in square cells, as published for the ILD's photons (OmniJet-alpha_C, arXiv:2501.05534).

Definitions of github.com/uhh-pd-ml/omnijet_alpha_c (commit 6c02334, plot_paper_plots and plot_compare_gen_showers):
only hits above 0.1 MeV count, half of what a minimum ionising particle leaves in a cell; the spectrum of cell energies
is the exception, it has all hits. Distances are the Wasserstein-1 distance in the unit of the observable, and the
Kullback-Leibler divergence KL(truth || generated) in nats over equally populated bins of the truth.

Otherwise than the published code, whose layer profile has layers 28 and 29 in one bin, each layer is a bin here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foundation.data.cards import Geometry
from foundation.data.formats.units import unit_factor
from foundation.data.geometry import CartesianGeometry
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError
from foundation.evaluate.metrics import Floats, Measurement, binned_wasserstein, finite
from foundation.evaluate.showers import positions_in_mm

DEFINITIONS = {
    "observables": "ild_observables/omnijet_alpha_c-6c02334",
    "kl": "quantiled_kl/omnijet_alpha_c-6c02334",
    "w1": "wasserstein/scipy",
}
"""Name and version of the definitions, for metrics.json: the commit of github.com/uhh-pd-ml/omnijet_alpha_c."""

THRESHOLD_MEV = 0.1
RINGS = 21
"""Rings of one cell's width of the radial profile; what lies further out does not count."""
KL_BINS = {"cell_energy": 50, "energy_sum": 40, "hits": 34, "layer_of_maximum": 33}
"""Bins of the divergences, as many as the published code's histograms have edges; 28 for all others."""
OTHER_KL_BINS = 28
MOST_CELLS = 5_000_000
"""Cell energies of a sample that enter distances: of randomly drawn whole showers, where there are more."""
RESAMPLINGS = 20
MINIMUM = 20
UNITS = {
    "cell_energy": "MeV", "energy_sum": "MeV", "hits": "1", "cog_x": "cell", "cog_y": "cell", "cog_z": "layer",
    "layer_of_maximum": "layer", "longitudinal_profile": "layer", "radial_profile": "cell",
}  # fmt: skip


@dataclass(frozen=True)
class IldShowers:
    """What is measured on B showers; hits above 0.1 MeV but for `cell_energy`.

    cell_energy, cell_showers: of all hits, [N] MeV, and the shower each is of
    observables:      [B] each: energy_sum [MeV], hits, cog_x and cog_y [cell, the first being 0], cog_z [layer],
                      layer_of_maximum (that of the hit with the highest energy; NaN, as the centres, without a hit)
    longitudinal:     energy in each layer, [B, layers] MeV
    radial:           energy in rings around the middle of the layers, one cell wide, [B, 21] MeV
    """

    cell_energy: Floats
    cell_showers: NDArray[np.int64]
    observables: dict[str, Floats]
    longitudinal: Floats
    radial: Floats


@dataclass(frozen=True)
class IldDistance:
    """How far generated showers are from the truth in one observable: w1 in `unit`, kl in nats, with their errors."""

    observable: str
    unit: str
    w1: Measurement
    kl: Measurement


def ild_showers(clouds: PointClouds, geometry: Geometry) -> IldShowers:
    """Measure B showers with layers of square cells; hits in mm are counted in cells from the corner.

    Raises DataError for an empty sample, a geometry of rings, or hits that are not finite.
    """
    if not len(clouds):
        raise DataError(f"the sample of '{clouds.tag}' is empty: there are no showers to measure")
    if not isinstance(geometry, CartesianGeometry):
        raise DataError(
            f"the observables of the ILD need square cells, and those of '{clouds.tag}' are rings; rings have the "
            "CaloChallenge's metrics instead"
        )
    if not np.isfinite(clouds.points).all():
        raise DataError(f"showers of '{clouds.tag}' have hits that are not finite; leave these showers out")
    in_mev = clouds.feature("energy") * np.float32(unit_factor(clouds.units[clouds.features.index("energy")], "MeV"))
    above = in_mev > np.float32(THRESHOLD_MEV)  # a hit stored as 0.1 is not above it
    energy = in_mev.astype(np.float64)
    x, y = _cells(clouds, geometry)
    layer = clouds.feature("layer").astype(np.float64)
    owners, n = clouds.owners[above], len(clouds)
    kept, x, y, layer = energy[above], x[above], y[above], layer[above]
    total = np.bincount(owners, kept, n).astype(np.float64)
    observables: dict[str, Floats] = {"energy_sum": total, "hits": np.bincount(owners, minlength=n).astype(np.float64)}
    for name, position in (("cog_x", x), ("cog_y", y), ("cog_z", layer)):
        moment = np.bincount(owners, kept * position, n)
        observables[name] = np.divide(moment, total, out=np.full(n, np.nan), where=total > 0)
    observables["layer_of_maximum"] = _at_maximum(owners, kept, layer, n)
    middle = (geometry.cells - 1) / 2
    return IldShowers(
        energy,
        clouds.owners,
        observables,
        _profile(owners, layer, kept, n, geometry.n_layers),
        _profile(owners, np.hypot(x - middle, y - middle), kept, n, RINGS),
    )


def ild_distances(truth: IldShowers, generated: IldShowers, seed: int = 0) -> tuple[IldDistance, ...]:
    """W1 and KL of all observables and of both mean profiles; errors from resampling whole showers.

    Raises DataError below 20 showers, or where an observable has fewer than two values.
    """
    smaller = min(len(truth.longitudinal), len(generated.longitudinal))
    if smaller < MINIMUM:
        raise DataError(f"distances of shower observables need {MINIMUM} showers of each sample; one has {smaller}")
    rng = np.random.default_rng(seed)
    weights = [rng.poisson(1.0, (RESAMPLINGS, len(sample.longitudinal))) for sample in (truth, generated)]
    found = []
    for name in ("cell_energy", *truth.observables):
        a, b = (_Values.of(sample, name, w) for sample, w in zip((truth, generated), weights, strict=True))
        kl = _quantiled_kl(a, b, KL_BINS.get(name, OTHER_KL_BINS))
        found.append(IldDistance(name, UNITS[name], _wasserstein(a, b), kl))
    for name in ("longitudinal", "radial"):
        profiles = getattr(truth, name), getattr(generated, name)
        edges = np.arange(profiles[0].shape[1] + 1, dtype=np.float64)
        w1 = binned_wasserstein(*profiles, edges, seed, RESAMPLINGS)
        kl = _measured(_kl(*(np.stack([p.sum(0), *(w @ p)]) for p, w in zip(profiles, weights, strict=True))))
        found.append(IldDistance(f"{name}_profile", UNITS[f"{name}_profile"], w1, kl))
    return tuple(found)


@dataclass(frozen=True)
class _Values:
    """Values [n] of an observable, the shower each is of, and how often resamplings have each shower."""

    values: Floats
    showers: NDArray[np.int64]
    weights: NDArray[np.int64]

    @staticmethod
    def of(sample: IldShowers, name: str, weights: NDArray[np.int64]) -> _Values:
        if name == "cell_energy":
            values, showers = _limited(sample.cell_energy, sample.cell_showers, len(weights[0]))
        else:
            values, showers = sample.observables[name], np.arange(len(sample.longitudinal))
        finite(values, name)
        known = np.isfinite(values)
        return _Values(values[known], showers[known], weights)

    def times(self) -> Iterator[NDArray[np.int64]]:
        """How often each value counts, [n]: in the sample, then in each of its resamplings."""
        yield np.ones(len(self.values), np.int64)
        for weights in self.weights:
            yield weights[self.showers]


def _limited(values: Floats, showers: NDArray[np.int64], count: int) -> tuple[Floats, NDArray[np.int64]]:
    """MOST_CELLS values at most, of whole showers."""
    if len(values) <= MOST_CELLS:
        return values, showers
    order = np.random.default_rng(0).permutation(count)
    kept = np.zeros(count, np.bool_)
    kept[order[np.cumsum(np.bincount(showers, minlength=count)[order]) <= MOST_CELLS]] = True
    return values[kept[showers]], showers[kept[showers]]


def _wasserstein(truth: _Values, generated: _Values) -> Measurement:
    """Wasserstein-1 distance, the integral of |F_truth - F_generated|; values are sorted once for all resamplings."""
    together = np.concatenate([truth.values, generated.values])
    order = np.argsort(together, kind="stable")
    gaps, n = np.diff(together[order]), len(truth.values)

    def cumulated(side: slice, times: NDArray[np.int64]) -> Floats:
        of_all = np.zeros(len(together), np.int64)
        of_all[side] = times
        return np.cumsum(of_all[order])[:-1] / times.sum()

    values = [
        float(np.abs(cumulated(slice(n), a) - cumulated(slice(n, None), b)) @ gaps)
        for a, b in zip(truth.times(), generated.times(), strict=True)
    ]
    return _measured(np.array(values))


def quantiled_kl(truth: Floats, generated: Floats, bins: int, seed: int = 0) -> Measurement:
    """KL(truth || generated) = sum_i p_i ln(p_i / q_i) over bins with edges at quantiles of the truth, in nats.

    The outer bins reach to infinity; q has 1e-10 added, and then both have unit sum. Where the truth has many equal
    values (hits, layers), bins between equal edges are empty. The error is a bootstrap one, the edges staying.
    """
    rng = np.random.default_rng(seed)
    a, b = (_Values(v, np.arange(len(v)), rng.poisson(1.0, (RESAMPLINGS, len(v)))) for v in (truth, generated))
    return _quantiled_kl(a, b, bins)


def _quantiled_kl(truth: _Values, generated: _Values, bins: int) -> Measurement:
    edges = np.quantile(truth.values, np.linspace(0.0, 1.0, bins + 1))
    edges[0], edges[-1] = -np.inf, np.inf
    counts = []
    for side in (truth, generated):
        which = np.minimum(np.searchsorted(edges, side.values, side="right") - 1, bins - 1)
        counts.append(np.array([np.bincount(which, times, bins) for times in side.times()]))
    return _measured(_kl(*counts))


def _measured(values: Floats) -> Measurement:
    """The value of the samples comes first, those of the resamplings follow."""
    return Measurement(float(values[0]), float(values[1:].std(ddof=1)))


def _kl(p: Floats, q: Floats) -> Floats:
    """Of counts along the last axis."""
    p = p / p.sum(-1, keepdims=True)
    q = q / q.sum(-1, keepdims=True) + 1e-10
    q = q / q.sum(-1, keepdims=True)
    return (p * np.log(np.divide(p, q, out=np.ones_like(p), where=p > 0))).sum(-1)


def _cells(clouds: PointClouds, geometry: CartesianGeometry) -> tuple[Floats, Floats]:
    """x and y in cells; the centre of the first cell is 0."""
    x, y = clouds.feature("x").astype(np.float64), clouds.feature("y").astype(np.float64)
    if positions_in_mm(clouds):
        middle = (geometry.cells - 1) / 2
        x, y = x / geometry.cell_mm + middle, y / geometry.cell_mm + middle
    return x, y


def _at_maximum(owners: np.ndarray, energy: Floats, values: Floats, n: int) -> Floats:
    """The value at each shower's hit with the highest energy, the first of equal ones; NaN where there is none."""
    order = np.lexsort([-energy, owners])
    owners = owners[order]
    first = np.append(True, owners[1:] != owners[:-1])[: len(owners)]
    found = np.full(n, np.nan)
    found[owners[first]] = values[order][first]
    return found


def _profile(owners: np.ndarray, position: Floats, energy: Floats, n: int, bins: int) -> Floats:
    """Energy in bins of width 1 from 0, [n, bins]; what lies outside does not count."""
    which = np.floor(position).astype(np.int64)
    inside = (which >= 0) & (which < bins)
    flat = np.bincount(owners[inside] * bins + which[inside], energy[inside], n * bins)
    return np.asarray(flat, np.float64).reshape(n, bins)
