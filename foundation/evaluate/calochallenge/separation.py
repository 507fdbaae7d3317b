"""Separation powers of the CaloChallenge, with its binnings: one number per histogram, and the table of the write-up.

    S = 1/2 sum_i (h_i - g_i)^2 / (h_i + g_i + 1e-16)          (arXiv:2009.03796, eq. 15)

of histograms of truth and generated with unit sum: 0 equal, 1 disjoint. Values outside of the bins do not count, and
the last bin has its upper edge in it, as numpy.histogram has. Bins, as in evaluate_plotting_helper.py (commit 9b41df7):

    response                        100 of E_tot / E_inc in 0.5 .. 1.5
    energy_layer                    39, logarithmic, from the threshold to the highest energy of the truth in this layer
    centre_eta, centre_phi, width_eta, width_phi, centre_r, width_r    100, limits in `Settings`
    sparsity                        20 in 0 .. 1
    voxel                           49, logarithmic, from the threshold to the highest voxel of the truth

A generated sample without any value in the bins has S = 1 here (the official code divides by zero); where the truth has
none, there is no number: NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError
from foundation.evaluate.calochallenge.features import HighLevelFeatures
from foundation.evaluate.calochallenge.settings import Settings
from foundation.evaluate.calochallenge.voxels import chunks, voxels_of
from foundation.evaluate.metrics import Floats, Measurement

RESAMPLINGS = 20
MINIMUM = 2
NAN = float("nan")


@dataclass(frozen=True)
class Separation:
    """Separation power of one observable: of each layer, with the layer's id, and over the layers.

    by_layer: empty where the observable is one of the whole shower
    mean, largest: over the layers with a number; the errors are bootstrap errors over whole showers
    """

    observable: str
    by_layer: dict[int, Measurement]
    mean: Measurement
    largest: Measurement


def separation_powers(truth: HighLevelFeatures, generated: HighLevelFeatures, seed: int = 0) -> tuple[Separation, ...]:
    """Separation powers of all observables that follow from the features: all but that of the voxels.

    Errors: the standard deviation over resamplings of both samples (Poisson weights per shower), layers together.
    Raises DataError where a sample has fewer than two showers, or the samples have other geometries.
    """
    if truth.settings.layer_ids != generated.settings.layer_ids:
        raise DataError("truth and generated showers have other layers: they cannot be compared layer by layer")
    if min(len(truth), len(generated)) < MINIMUM:
        raise DataError(f"separation powers need at least {MINIMUM} showers of truth and of the generated")
    rng = np.random.default_rng(seed)
    weights = [rng.poisson(1.0, (RESAMPLINGS, len(sample))) for sample in (truth, generated)]
    return tuple(
        _separation(name, ids, edges, a, b, weights)
        for (name, ids, edges, a), (_, _, _, b) in zip(
            _observables(truth, truth), _observables(generated, truth), strict=True
        )
    )


def voxel_separation(
    truth: PointClouds, generated: PointClouds, settings: Settings, seed: int = 0, highest: float | None = None
) -> Separation:
    """Separation power of the spectra of voxel energies.

    highest: the highest voxel of the truth in MeV, where it is known (`HighLevelFeatures.highest_voxel`)

    Errors: voxels as independent counts, which those of one shower are not: too small.
    """
    if highest is None:
        highest = max((float(voxels_of(c, settings).energy.max(initial=0)) for c in chunks(truth)), default=0.0)
    edges = log_edges(settings.threshold_mev, highest, 50)
    if edges is None:
        return Separation("voxel", {}, Measurement(NAN, NAN), Measurement(NAN, NAN))
    counts = [_voxel_counts(sample, settings, edges) for sample in (truth, generated)]
    rng = np.random.default_rng(seed)
    drawn = [rng.poisson(c, (RESAMPLINGS, len(c))).astype(np.float64) for c in counts]
    found = Measurement(float(separation(*counts)), _spread(separation(*drawn)))
    return Separation("voxel", {}, found, found)


def separation(truth: Floats, generated: Floats) -> Floats:
    """Separation power of counts along the last axis; see the module's head for empty histograms."""
    sums = [counts.sum(-1, keepdims=True) for counts in (truth, generated)]
    h, g = (
        np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0)
        for counts, total in zip((truth, generated), sums, strict=True)
    )
    power = 0.5 * ((h - g) ** 2 / (h + g + 1e-16)).sum(-1)
    power = np.where(sums[1][..., 0] > 0, power, 1.0)
    return np.where(sums[0][..., 0] > 0, power, NAN)


def log_edges(low: float, high: float, points: int) -> Floats | None:
    """Logarithmic edges as numpy.logspace rounds them; None where nothing is above `low`."""
    return np.logspace(np.log10(low), np.log10(high), points) if high > low else None


def _observables(
    sample: HighLevelFeatures, truth: HighLevelFeatures
) -> Iterator[tuple[str, tuple[int, ...], list[Floats | None], Floats]]:
    """Name, layer ids (none for the whole shower), edges of each column, and the values [B, columns]."""
    settings = truth.settings
    ids = settings.layer_ids
    cut = tuple(ids[i] for i in settings.sectored)

    def to(limits: tuple[float, ...], low: float = 0.0, of: tuple[int, ...] = ids) -> list[Floats | None]:
        return [np.linspace(low * limits[ids.index(i)], limits[ids.index(i)], 101) for i in of]

    yield "response", (), [np.linspace(0.5, 1.5, 101)], (sample.energy / sample.incident_energy)[:, None]
    by_layer = [log_edges(settings.threshold_mev, float(top), 40) for top in truth.layer_energy.max(0)]
    yield "energy_layer", ids, by_layer, sample.layer_energy
    yield "centre_eta", cut, to(settings.centre_mm, -1.0, cut), sample.centre_eta
    yield "centre_phi", cut, to(settings.centre_mm, -1.0, cut), sample.centre_phi
    yield "width_eta", cut, to(settings.width_mm, 0.0, cut), sample.width_eta
    yield "width_phi", cut, to(settings.width_mm, 0.0, cut), sample.width_phi
    yield "sparsity", ids, [np.linspace(0.0, 1.0, 21)] * len(ids), sample.sparsity
    yield "centre_r", ids, to(settings.radius_mm), sample.centre_r
    yield "width_r", ids, to(settings.radial_width_mm), sample.width_r


def _separation(
    name: str,
    ids: tuple[int, ...],
    edges: list[Floats | None],
    truth: Floats,
    generated: Floats,
    weights: list[NDArray[np.int64]],
) -> Separation:
    """[columns] separation powers of the samples, and of their resamplings [RESAMPLINGS, columns]."""
    value = np.full(truth.shape[1], NAN)
    drawn = np.full((RESAMPLINGS, truth.shape[1]), NAN)
    for column, bins in enumerate(edges):
        if bins is None:
            continue
        histograms = [_histograms(x[:, column], bins, w) for x, w in zip((truth, generated), weights, strict=True)]
        powers = separation(*histograms)
        value[column], drawn[:, column] = powers[0], powers[1:]
    by_layer = {i: Measurement(float(v), _spread(d)) for i, v, d in zip(ids, value, drawn.T, strict=False)}
    if np.isnan(value).all():
        return Separation(name, by_layer, Measurement(NAN, NAN), Measurement(NAN, NAN))
    known = ~np.isnan(value)
    mean = Measurement(float(value[known].mean()), _spread(drawn[:, known].mean(1)))
    return Separation(name, by_layer, mean, Measurement(float(value[known].max()), _spread(drawn[:, known].max(1))))


def _histograms(values: Floats, edges: Floats, weights: NDArray[np.int64]) -> Floats:
    """Counts of the sample and of its resamplings, [1 + RESAMPLINGS, bins]."""
    which = _bins(values, edges)
    inside = which >= 0
    which, bins = which[inside], len(edges) - 1
    rows = [np.bincount(which, minlength=bins)]
    rows += [np.bincount(which, weights=w[inside], minlength=bins) for w in weights]
    return np.array(rows, np.float64)


def _bins(values: NDArray[np.floating], edges: Floats) -> NDArray[np.int64]:
    """Bin of each value as numpy.histogram sorts it in, -1 outside."""
    which = np.searchsorted(edges, values, side="right") - 1
    which[values == edges[-1]] = len(edges) - 2
    which[which == len(edges) - 1] = -1
    return which


def _voxel_counts(clouds: PointClouds, settings: Settings, edges: Floats) -> Floats:
    counts = np.zeros(len(edges) - 1)
    for chunk in chunks(clouds):
        which = _bins(voxels_of(chunk, settings).energy.astype(np.float64), edges)
        counts += np.bincount(which[which >= 0], minlength=len(counts))
    return counts


def _spread(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(known.std(ddof=1)) if len(known) > 1 else NAN
