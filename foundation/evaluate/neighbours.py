"""Nearest neighbours among objects, by a table of features of each: standardised observables, or whole point clouds.

Clouds become vectors whose distance is that of sliced optimal transport: `cloud_vectors`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from foundation.data.cards import DatasetCard
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError
from foundation.evaluate.metrics import Floats
from foundation.evaluate.set_inputs import SetInputs

PLACES = 8_388_608
"""Entries of a table of distances that are in memory at once."""
DIRECTIONS, QUANTILES = 16, 16
CHUNK_POINTS = 2_000_000


@dataclass(frozen=True)
class Neighbours:
    """Of each of B objects, the nearest of the reference: its number int64 [B], and its distance float64 [B]."""

    index: NDArray[np.int64]
    distance: Floats


def nearest(features: Floats, reference: Floats, *, places: int = PLACES) -> Neighbours:
    """Nearest row of reference [C, d] for each row of features [B, d], by Euclidean distance; of equal ones the first.

    |a - b|^2 = |a|^2 + |b|^2 - 2 a.b finds it, one product of matrices per block; the distance itself is calculated
    from the difference, so that a copy has a distance of 0.
    """
    squares = (reference**2).sum(1)
    found = np.zeros(len(features), np.int64)
    step = max(1, places // max(1, len(reference)))
    for start in range(0, len(features), step):
        part = features[start : start + step]
        found[start : start + step] = (squares - 2 * (part @ reference.T)).argmin(1)
    gaps = features - reference[found]
    return Neighbours(found, np.sqrt((gaps**2).sum(1)))


@dataclass(frozen=True)
class Standard:
    """Mean and standard deviation of each feature of the training objects, [d] each; constant features have 1."""

    mean: Floats
    std: Floats

    @staticmethod
    def fit(features: Floats) -> Standard:
        """Of features [B, d]."""
        std = features.std(0)
        return Standard(features.mean(0), np.where(std > 1e-9 * (1 + np.abs(features.mean(0))), std, 1.0))

    def apply(self, features: Floats) -> Floats:
        """Features in units of the standard deviation."""
        return (features - self.mean) / self.std


def cloud_vectors(
    card: DatasetCard,
    samples: dict[str, PointClouds],
    fitted_on: str,
    *,
    seed: int = 0,
    directions: int = DIRECTIONS,
    quantiles: int = QUANTILES,
) -> dict[str, Floats]:
    """Vectors of clouds, name -> float64 [B, directions * quantiles + 1], for the samples' names.

    Points, scaled as networks get them (`SetInputs`, fitted on samples[fitted_on]), are projected on random directions;
    of each, the vector has `quantiles` quantiles of the cloud's points, divided by the root of their number, so that
    the distance of two vectors is the sliced Wasserstein-2 distance (Bonneel et al. 2015) of clouds with points of
    equal weight, as far as the number of directions and quantiles goes. A last entry is the standardised logarithm of
    the number of points, of which equal weights know nothing.
    """
    names = [f.name for f in card.features if all(f.name in clouds.features for clouds in samples.values())]
    inputs = SetInputs.fit(card, names, samples[fitted_on])
    rng = np.random.default_rng(seed)
    axes = rng.normal(size=(inputs.width, directions))
    axes /= np.linalg.norm(axes, axis=0)
    log_counts = np.log(np.maximum(samples[fitted_on].counts, 1))
    scale = max(float(log_counts.std()), 1e-3)
    found = {}
    for name, clouds in samples.items():
        if (clouds.counts == 0).any():
            raise DataError(
                f"nearest neighbours: {int((clouds.counts == 0).sum())} objects of the {name} sample have no points; "
                "leave them out"
            )
        vectors = np.empty((len(clouds), directions * quantiles + 1))
        for part in _pieces(clouds):
            vectors[part, :-1] = _quantiles(clouds.select(part), inputs, axes, quantiles)
        vectors[:, :-1] /= np.sqrt(directions * quantiles)
        vectors[:, -1] = (np.log(clouds.counts) - log_counts.mean()) / scale
        found[name] = vectors
    return found


def _pieces(clouds: PointClouds) -> list[slice]:
    """Clouds in order, in pieces of about CHUNK_POINTS points."""
    piece = clouds.offsets[1:] // CHUNK_POINTS
    edges = [0, *(np.flatnonzero(np.diff(piece)) + 1).tolist(), len(clouds)]
    return [slice(a, b) for a, b in pairwise(edges) if b > a]


def _quantiles(clouds: PointClouds, inputs: SetInputs, axes: Floats, quantiles: int) -> Floats:
    """Quantiles of the projected points of each cloud: float64 [B, directions * quantiles]."""
    projected = inputs.of(clouds).values.astype(np.float64) @ axes
    owners = clouds.owners
    # of n sorted points the k-th quantile function's piece is point floor((k + 1/2) n / quantiles)
    steps = ((np.arange(quantiles) + 0.5) / quantiles * clouds.counts[:, None]).astype(np.int64)
    rows = clouds.offsets[:-1, None] + steps
    found = np.empty((len(clouds), axes.shape[1], quantiles))
    for k in range(axes.shape[1]):
        order = np.lexsort((projected[:, k], owners))
        found[:, k] = projected[order, k][rows]
    return found.reshape(len(clouds), -1)
