"""Point clouds as a network on sets takes them: columns of numbers near one, scaled as one sample was.

Per point: its features in the card's space, the share of the cloud's sum that it carries (of each feature that the card
takes the logarithm of: pT, hit energy), and for jets its energy and its distance to the axis: the inputs that taggers
use (Particle Transformer, arXiv:2202.03772). All of them derive from the points themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foundation.data.cards import DatasetCard, Feature
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError
from foundation.tokens.transforms import transform

Floats = NDArray[np.float64]

SMALLEST = 1e-30
"""Stands for what is not above zero under a logarithm."""
LARGEST = 10.0
"""Scaled values are cut here: beyond are numbers that the reference sample has practically none of."""
JET_AXES = ("pt", "eta_rel", "phi_rel")


@dataclass(frozen=True)
class PointSets:
    """B sets of points, N in all: values float32 [N, F], offsets int64 [B + 1]."""

    values: NDArray[np.float32]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True)
class Scale:
    """x -> (squash((x - centre) / width) - mean) / std, where squash is asinh for long tails, else nothing."""

    centre: float = 0.0
    width: float = 1.0
    long_tails: bool = False
    mean: float = 0.0
    std: float = 1.0

    def apply(self, values: Floats) -> Floats:
        """Scaled values, of the shape of `values`."""
        x = (values - self.centre) / self.width
        x = np.arcsinh(x) if self.long_tails else x
        return ((x - self.mean) / self.std).clip(-LARGEST, LARGEST)

    @staticmethod
    def fit(values: Floats, kind: str) -> Scale:
        """The scale that brings `values` to mean 0 and standard deviation 1; flags stay 0 or 1.

        Long tails: impact parameters reach hundreds of times the resolution in which the core of their distribution
        carries its information; asinh around the core keeps both, and loses nothing.
        """
        if kind == "flag":
            return Scale()
        scale = Scale()
        if kind == "long_tails":
            low, centre, high = np.quantile(values, [0.16, 0.5, 0.84]).tolist()
            scale = Scale(centre, _positive((high - low) / 2, float(values.std())), True)
        x = (values - scale.centre) / scale.width
        x = np.arcsinh(x) if scale.long_tails else x
        return Scale(scale.centre, scale.width, scale.long_tails, float(x.mean()), _positive(float(x.std())))


@dataclass(frozen=True)
class SetInputs:
    """Which columns there are, and the scale of each: fitted on one sample, for all that are compared with it."""

    features: tuple[Feature, ...]
    jets: bool
    scales: tuple[Scale, ...]

    @staticmethod
    def fit(card: DatasetCard, names: Sequence[str], clouds: PointClouds) -> SetInputs:
        """Inputs made of the named features of the card's point clouds, scaled as `clouds` are."""
        features = tuple(f for f in card.features if f.name in names)
        jets = card.domain == "jet" and set(JET_AXES) <= set(names)
        if not features:
            raise DataError(f"none of the features {list(names)} is one of dataset '{card.name}'")
        if not len(clouds.points):
            raise DataError(f"dataset '{card.name}': there are no points to scale a network's inputs by")
        scales = tuple(Scale.fit(values, kind) for kind, values in _columns(features, jets, clouds))
        return SetInputs(features, jets, scales)

    @property
    def width(self) -> int:
        """Number of columns."""
        return len(self.scales)

    def of(self, clouds: PointClouds) -> PointSets:
        """The inputs of these clouds."""
        values = np.empty((len(clouds.points), self.width), np.float32)
        columns = _columns(self.features, self.jets, clouds)
        for i, (scale, (_, column)) in enumerate(zip(self.scales, columns, strict=True)):
            values[:, i] = scale.apply(column)
        if not np.isfinite(values).all():
            raise DataError(f"point clouds of '{clouds.tag}' have NaN or infinite values: no network can take them")
        return PointSets(values, clouds.offsets)


def _columns(features: Sequence[Feature], jets: bool, clouds: PointClouds) -> Iterator[tuple[str, Floats]]:
    """Kind ("plain", "long_tails" or "flag") and values [N] of each column, one at a time to save memory."""
    for feature in features:
        values = clouds.feature(feature.name)
        if feature.kind == "category":
            for code in range(len(feature.categories)):
                yield "flag", (np.rint(values) == code).astype(np.float64)
            continue
        yield (
            ("long_tails" if feature.kind == "continuous" and not feature.log else "plain"),
            transform(feature, values),
        )
        if feature.log:
            yield "plain", _log_share(values.astype(np.float64), clouds)
    if jets:
        pt, eta, phi = (clouds.feature(name).astype(np.float64) for name in JET_AXES)
        # with the jet's axis at eta = 0: the energy that a boost along the beam to there leaves
        energy = pt * np.cosh(eta)
        yield "plain", np.log(np.maximum(energy, SMALLEST))
        yield "plain", _log_share(energy, clouds)
        yield "long_tails", np.hypot(eta, phi)


def _log_share(values: Floats, clouds: PointClouds) -> Floats:
    """Logarithm of the share of its cloud's sum that each point has."""
    total = np.bincount(clouds.owners, values, len(clouds))
    return np.log(np.maximum(values, SMALLEST)) - np.repeat(np.log(np.maximum(total, SMALLEST)), clouds.counts)


def _positive(width: float, otherwise: float = 1.0) -> float:
    """`width`, or what else there is where all values are (nearly) the same."""
    return width if width > 1e-9 else otherwise if otherwise > 1e-9 else 1.0
