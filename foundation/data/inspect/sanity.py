"""Do the numbers look like what the card says they are? Rules that notice a wrong unit or a wrong meaning.

RULES is the table: what is measured, between which limits it is credible, and what it looks like beyond them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foundation.data.cards import DatasetCard
from foundation.data.formats.units import UNITS, unit_factor
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError

Measure = Callable[[PointClouds], float | None]


@dataclass(frozen=True)
class Rule:
    """A credible interval of one number; None for no limit on that side."""

    domain: str
    what: str
    measure: Measure
    low: float | None
    high: float | None
    if_low: str = ""
    if_high: str = ""


def _feature(clouds: PointClouds, name: str, unit: str) -> NDArray[np.float64] | None:
    """Finite values of a feature in this unit; None where there is no such feature."""
    if name not in clouds.features:
        return None
    return _in_unit(clouds.feature(name), clouds.units[clouds.features.index(name)], unit)


def _object(clouds: PointClouds, name: str, unit: str) -> NDArray[np.float64] | None:
    if name not in clouds.condition_names:
        return None
    return _in_unit(clouds.condition(name), clouds.condition_units[clouds.condition_names.index(name)], unit)


def _in_unit(values: NDArray[np.float32], found: str, unit: str) -> NDArray[np.float64] | None:
    try:
        known = values.astype(np.float64) * unit_factor(found, unit)
    except DataError:
        return None
    known = known[np.isfinite(known)]
    return known if len(known) else None


def _median(values: NDArray[np.float64] | None) -> float | None:
    return None if values is None else float(np.median(values))


def _largest(*candidates: NDArray[np.float64] | None) -> float | None:
    """Largest absolute value of all that there are."""
    there = [float(np.abs(values).max()) for values in candidates if values is not None]
    return max(there) if there else None


def constituent_pt(clouds: PointClouds) -> float | None:
    """Median pT of the constituents [GeV]."""
    return _median(_feature(clouds, "pt", "GeV"))


def jet_pt(clouds: PointClouds) -> float | None:
    """Median pT of the jets [GeV], as stated, or the scalar sum of the constituents'."""
    stated = _object(clouds, "jet_pt", "GeV")
    return _median(stated if stated is not None else _summed(clouds, "pt", "GeV"))


def sum_over_jet_pt(clouds: PointClouds) -> float | None:
    """Median of the scalar sum of the constituents' pT over the pT of the jet."""
    total, jet = _summed(clouds, "pt", "GeV"), _object(clouds, "jet_pt", "GeV")
    return None if total is None or jet is None or len(total) != len(jet) else _median_ratio(total, jet)


def shower_response(clouds: PointClouds) -> float | None:
    """Median of the summed energy of the hits over the incident energy."""
    total, incident = _summed(clouds, "energy", "GeV"), _object(clouds, "incident_energy", "GeV")
    return None if total is None or incident is None or len(total) != len(incident) else _median_ratio(total, incident)


def _summed(clouds: PointClouds, name: str, unit: str) -> NDArray[np.float64] | None:
    """Sum over the points of each object, [B]."""
    values = _feature(clouds, name, unit)
    if values is None or len(values) != len(clouds.points):
        return None
    return np.bincount(clouds.owners, values, len(clouds)).astype(np.float64)


def _median_ratio(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    return float(np.median(a[b > 0] / b[b > 0])) if (b > 0).any() else None


def largest_angle(clouds: PointClouds) -> float | None:
    """Largest absolute azimuth [rad] of points, jets or particles."""
    points = (_feature(clouds, name, "rad") for name in ("phi", "phi_rel"))
    return _largest(*points, *(_object(clouds, name, "rad") for name in ("jet_phi", "phi_angle", "theta")))


def largest_eta_rel(clouds: PointClouds) -> float | None:
    """Largest absolute pseudorapidity relative to the jet."""
    return _largest(_feature(clouds, "eta_rel", "1"))


def sum_of_pt_rel(clouds: PointClouds) -> float | None:
    """Median sum of the constituents' share of the jet's pT."""
    return _median(_summed(clouds, "pt_rel", "1"))


RULES = (
    Rule("jet", "median pT of the constituents [GeV]", constituent_pt, 1e-3, 500,
         "looks like TeV, or like values that were scaled", "looks like MeV where the card says GeV"),
    Rule("jet", "median pT of the jets [GeV]", jet_pt, 1, 5000,
         "looks like TeV, or like values that were scaled", "looks like MeV where the card says GeV"),
    Rule("jet", "sum of the constituents' pT over the jet's pT", sum_over_jet_pt, 0.2, 5,
         "the jet's pT and that of its constituents seem to be in different units, or most constituents are missing",
         "the jet's pT and that of its constituents seem to be in different units"),
    Rule("jet", "largest |eta_rel|", largest_eta_rel, None, 6, "",
         "looks like eta itself and not relative to the jet"),
    Rule("jet", "sum of pt_rel", sum_of_pt_rel, 0.2, 5,
         "looks like values that were scaled, or most constituents are missing",
         "looks like pT itself and not relative to the jet"),
    # A constituent's azimuth may be that of its jet plus up to pi, not wrapped (EnergyFlow).
    Rule("jet", "largest angle [rad]", largest_angle, None, 3 * np.pi + 1e-3, "",
         "looks like degrees where the card says radians"),
    Rule("shower", "largest angle [rad]", largest_angle, None, 2 * np.pi + 1e-3, "",
         "looks like degrees where the card says radians"),
    # Sampling calorimeters show some per cent, thin silicon at least half a per cent; no calorimeter shows more energy
    # than came in, noise and calibration aside.
    Rule("shower", "energy of the hits over incident energy", shower_response, 1e-3, 1.5,
         "the hits' energy is too small", "the hits' energy is too large"),
)  # fmt: skip


def warnings(card: DatasetCard, clouds: PointClouds) -> list[str]:
    """One sentence for every rule that the clouds break."""
    found = []
    for rule in RULES:
        value = rule.measure(clouds) if rule.domain == card.domain and len(clouds.points) else None
        if value is None:
            continue
        if rule.low is not None and value < rule.low:
            verdict, limit = rule.if_low, f"below {rule.low:g}"
        elif rule.high is not None and value > rule.high:
            verdict, limit = rule.if_high, f"above {rule.high:.4g}"
        else:
            continue
        if rule.measure is shower_response:
            verdict += better_units(clouds, value)
        found.append(f"{rule.what} is {value:.4g}, {limit}: {verdict}")
    return found


def better_units(clouds: PointClouds, response: float) -> str:
    """Which unit of the hits or of the incident energy would make the response credible, in words."""
    hits = clouds.units[clouds.features.index("energy")]
    incident = clouds.condition_units[clouds.condition_names.index("incident_energy")]
    energies = [unit for unit, (dimension, _) in UNITS.items() if dimension == "energy"]
    words = []
    for unit in energies:
        if unit != hits and 5e-3 <= (new := response * unit_factor(unit, hits)) <= 1.2:
            words.append(f"{new:.2g} if the hits were in {unit} and not in {hits}")
        if unit != incident and 5e-3 <= (new := response * unit_factor(incident, unit)) <= 1.2:
            words.append(f"{new:.2g} if the incident energy were in {unit} and not in {incident}")
    return f"; it would be {', or '.join(words)}" if words else ""
