"""Response and resolution of a calorimeter against the incident energy.

    response    <E_vis / E_inc>         resolution    std(E_vis / E_inc) / <E_vis / E_inc>
    resolution^2 = a^2 / E + b^2 / E^2 + c^2     (E in GeV; stochastic, noise and constant term)

The ratio is taken shower by shower, so that the width of a bin of incident energy does not add to the resolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from foundation.data.formats.units import unit_factor
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError
from foundation.evaluate.metrics import Floats, Measurement

DEFINITIONS = {"response": "response/1", "resolution": "resolution_std/1", "resolution_fit": "resolution_fit/1"}

MINIMUM = 20
"""Showers in a bin below which it has no numbers."""
MOST_DISCRETE = 40
"""Samples with at most as many different incident energies have a bin for each."""
BINS = 10
TERMS = ("stochastic", "noise", "constant")


@dataclass(frozen=True)
class ResponseBin:
    """Showers with incident energies in low .. high (equal where the energies are discrete), all in GeV.

    energy: their mean; response, resolution: dimensionless, errors of Gaussian fluctuations
    """

    low: float
    high: float
    energy: float
    showers: int
    response: Measurement
    resolution: Measurement


@dataclass(frozen=True)
class ResolutionFit:
    """a [sqrt(GeV)], b [GeV] and c of the resolution, none negative; chi2 over degrees of freedom.

    A term at its limit 0 has no error: NaN.
    """

    stochastic: Measurement
    noise: Measurement
    constant: Measurement
    chi2: float
    degrees_of_freedom: int

    def __call__(self, energy_gev: Floats) -> Floats:
        """The fitted resolution at these energies."""
        return _resolution(energy_gev, self.stochastic.value, self.noise.value, self.constant.value)


def response_bins(
    clouds: PointClouds, edges_gev: Floats | None = None, threshold_mev: float = 0.0
) -> tuple[ResponseBin, ...]:
    """Response and resolution in bins of incident energy; bins with fewer than 20 showers are left out.

    edges_gev:     of the bins; without, one bin per energy where there are few, else ten logarithmic ones
    threshold_mev: hits at or below it do not count

    Give truth and generated showers the same edges: `[b.low for b in bins] + [bins[-1].high]`. Raises DataError where
    incident energies are missing or not positive, energies are not finite, or no bin has enough showers.
    """
    incident, visible = _energies(clouds, threshold_mev)
    found = []
    for low, high, chosen in _bins(incident, edges_gev):
        if chosen.sum() >= MINIMUM:
            ratio = visible[chosen] / incident[chosen]
            found.append(_response_bin(low, high, float(incident[chosen].mean()), ratio))
    if not found:
        raise DataError(f"response of '{clouds.tag}': no bin of incident energy has {MINIMUM} showers")
    return tuple(found)


def fit_resolution(bins: tuple[ResponseBin, ...]) -> ResolutionFit:
    """Fit of the three terms to the resolutions of the bins, weighted with their errors.

    Raises DataError with fewer than three bins.
    """
    from scipy.optimize import curve_fit

    if len(bins) < len(TERMS):
        raise DataError(f"the fit of the resolution needs {len(TERMS)} bins of incident energy, there are {len(bins)}")
    energy = np.array([b.energy for b in bins])
    value, error = (np.array([getattr(b.resolution, name) for b in bins]) for name in ("value", "error"))
    if not (value > 0).all():
        raise DataError("the fit of the resolution needs resolutions above zero: a bin has showers of equal response")
    start = [float(np.median(value * np.sqrt(energy))), 1e-3 * float(energy.min()), float(value.min()) / 2]
    found, covariance = curve_fit(
        _resolution, energy, value, p0=start, sigma=error, absolute_sigma=True, bounds=(0, np.inf), maxfev=20_000
    )
    chi2 = float((((_resolution(energy, *found) - value) / error) ** 2).sum())
    at_limit = found < 1e-6 * np.array([1.0, energy.min(), 1.0])
    errors = np.where(at_limit, np.nan, np.sqrt(np.diag(covariance)))
    stochastic, noise, constant = (Measurement(float(v), float(e)) for v, e in zip(found, errors, strict=True))
    return ResolutionFit(stochastic, noise, constant, chi2, len(bins) - len(TERMS))


def _resolution(energy: Floats, stochastic: float, noise: float, constant: float) -> Floats:
    return np.sqrt(stochastic**2 / energy + (noise / energy) ** 2 + constant**2)


def _energies(clouds: PointClouds, threshold_mev: float) -> tuple[Floats, Floats]:
    """Incident and visible energies [B] in GeV."""
    if not len(clouds):
        raise DataError(f"response of '{clouds.tag}': the sample is empty")
    if "incident_energy" not in clouds.condition_names:
        raise DataError(f"response of '{clouds.tag}': the showers have no condition 'incident_energy'")
    unit = clouds.condition_units[clouds.condition_names.index("incident_energy")]
    incident = clouds.condition("incident_energy").astype(np.float64) * unit_factor(unit, "GeV")
    energy = clouds.feature("energy").astype(np.float64)
    if not np.isfinite(energy).all() or not (np.isfinite(incident) & (incident > 0)).all():
        raise DataError(
            f"response of '{clouds.tag}': there are hits whose energy is not finite, or incident energies that are "
            "not positive numbers; leave these showers out"
        )
    unit = clouds.units[clouds.features.index("energy")]
    counted = np.where(energy * unit_factor(unit, "MeV") > threshold_mev, energy, 0.0)
    visible = np.bincount(clouds.owners, counted, len(clouds)) * unit_factor(unit, "GeV")
    return incident, np.asarray(visible, np.float64)


def _bins(incident: Floats, edges: Floats | None) -> list[tuple[float, float, np.ndarray]]:
    """Lower and upper end of each bin, and which showers are in it; the last bin has its upper end in it."""
    if edges is None:
        energies = np.unique(incident)
        if len(energies) <= MOST_DISCRETE:
            return [(float(e), float(e), incident == e) for e in energies]
        edges = np.geomspace(energies[0], energies[-1], BINS + 1)
    which = np.searchsorted(edges, incident, side="right") - 1
    which[incident == edges[-1]] = len(edges) - 2
    return [(float(a), float(b), which == i) for i, (a, b) in enumerate(pairwise(edges))]


def _response_bin(low: float, high: float, energy: float, ratio: Floats) -> ResponseBin:
    n, mean, width = len(ratio), float(ratio.mean()), float(ratio.std(ddof=1))
    resolution = width / mean if mean > 0 else float("nan")
    # the error of a standard deviation, and of the mean it is divided by
    error = resolution * np.sqrt(1 / (2 * (n - 1)) + resolution**2 / n)
    return ResponseBin(
        low, high, energy, n, Measurement(mean, width / np.sqrt(n)), Measurement(resolution, float(error))
    )
