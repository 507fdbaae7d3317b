"""What may be done to generated objects after they were drawn, when it is asked for: rejection and calibration."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from foundation.data.cards import DatasetCard
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError
from foundation.generate.decoding import energy_sums
from foundation.generate.request_config import Reject

INCIDENT, ENERGY = "incident_energy", "energy"


def accepted(reject: Reject, clouds: PointClouds) -> NDArray[np.bool_]:
    """Which objects are not rejected, bool [B]."""
    good = clouds.counts >= reject.min_points
    if reject.energy_sum is not None:
        envelope, incident = reject.energy_sum, clouds.condition(INCIDENT).astype(np.float64)
        least = envelope.scale * (envelope.factor * incident**envelope.power + envelope.offset)
        good &= energy_sums(clouds) >= least
    return good


def require_shower_energies(card: DatasetCard, what: str) -> None:
    """Refuse what needs hit energies and incident energies where there are none."""
    names = [c.name for c in card.conditions]
    if card.domain != "shower" or INCIDENT not in names or ENERGY not in card.feature_names:
        raise DataError(
            f"{what} needs showers with a feature '{ENERGY}' and the condition '{INCIDENT}': '{card.tag}' has not both"
        )


@dataclass(frozen=True)
class Calibration:
    """Factors of hit energies per bin of the incident energy; edges [n + 1] and factors [n], outer bins are open."""

    edges: tuple[float, ...]
    factors: tuple[float, ...]

    def __call__(self, clouds: PointClouds) -> PointClouds:
        """The showers with calibrated energies; those without an incident energy stay as they are."""
        factor = np.append(self.factors, 1.0)[self._bins(clouds)]
        points = clouds.points.copy()
        points[:, clouds.features.index(ENERGY)] *= np.repeat(factor, clouds.counts).astype(np.float32)
        return replace(clouds, points=points)

    def _bins(self, clouds: PointClouds) -> NDArray[np.int64]:
        """Bin of each shower; the one after the last where its incident energy is not given."""
        incident = clouds.condition(INCIDENT)
        bins = np.searchsorted(self.edges[1:-1], incident, side="right")
        return np.where(np.isnan(incident), len(self.factors), bins)


def calibration_of(
    truth: tuple[NDArray[np.floating], NDArray[np.floating]],
    made: tuple[NDArray[np.floating], NDArray[np.floating]],
    bins: int,
) -> Calibration:
    """Mean response of the truth over that of what was made, per bin of the incident energy.

    truth, made: incident energies [B] and energy sums [B] of showers. The response is their quotient. The bins hold
    equal numbers of true showers; fewer bins where incident energies repeat. Raises DataError where a bin has no
    showers, or none with energy.
    """
    edges = np.unique(np.quantile(truth[0].astype(np.float64), np.linspace(0, 1, bins + 1)))
    if len(edges) == 1:
        edges = np.array([edges[0], edges[0]])
    responses = [_mean_responses(*sample, edges) for sample in (truth, made)]
    if not all(np.isfinite(r).all() and (r > 0).all() for r in responses):
        raise DataError(
            f"energies cannot be calibrated in {len(edges) - 1} bins of the incident energy: a bin holds no showers, "
            "or none with energy; take fewer bins or more objects"
        )
    return Calibration(tuple(edges.tolist()), tuple((responses[0] / responses[1]).tolist()))


def _mean_responses(
    incident: NDArray[np.floating], sums: NDArray[np.floating], edges: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Mean of sum / incident energy in each bin; NaN where a bin is empty."""
    place, n = np.searchsorted(edges[1:-1], incident, side="right"), len(edges) - 1
    total = np.bincount(place, sums.astype(np.float64) / incident, n)
    count = np.bincount(place, minlength=n)
    return np.divide(total, count, out=np.full(n, np.nan), where=count > 0)
