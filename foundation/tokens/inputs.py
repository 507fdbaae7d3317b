"""What a tokenizer takes: named features in stated units, as they were where it was fitted; all else is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from foundation.data.cards import Feature
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError, did_you_mean
from foundation.tokens.transforms import category_size, lowest_value, transform

LOOKED_AT = 10_000
"""Points of a batch, at most, whose values are compared with those of the fit."""
ENOUGH = 200
"""Fewer points say nothing of the scale they are in."""


@dataclass(frozen=True)
class Spread:
    """Where the values of a feature lay in the fit, in the card's transformed space."""

    lowest: float
    tenth: float
    """A tenth of the values lay below it."""
    nine_tenths: float
    highest: float


@dataclass(frozen=True)
class Inputs:
    """The point clouds that a tokenizer was fitted on.

    name:     of the tokenizer, and of its ranges in a vocabulary
    datasets: tags of the datasets it was fitted on
    features: the features that it codes, in the order in which it decodes them
    spread:   of each continuous feature, by name; empty for tokenizers of the first version
    """

    name: str
    datasets: tuple[str, ...]
    features: tuple[Feature, ...]
    spread: Mapping[str, Spread] = field(default_factory=dict)

    @staticmethod
    def fit(name: str, datasets: Sequence[str], features: tuple[Feature, ...], clouds: PointClouds) -> Inputs:
        """The inputs of a tokenizer fitted on `clouds`. Raises DataError where there are no points, or wrong ones."""
        inputs = Inputs(name, tuple(datasets), features)
        if len(clouds.points) == 0:
            raise DataError(f"tokenizer '{name}': there are no points to fit it on")
        inputs.require(clouds)
        spread = {}
        for feature in inputs.continuous:
            x = transform(feature, clouds.feature(feature.name))
            spread[feature.name] = Spread(*np.quantile(x, [0.0, 0.1, 0.9, 1.0]).tolist())
        return Inputs(name, tuple(datasets), features, spread)

    @property
    def continuous(self) -> tuple[Feature, ...]:
        """Features that are real numbers."""
        return tuple(f for f in self.features if f.kind == "continuous")

    @property
    def exact(self) -> tuple[Feature, ...]:
        """Features that are integers or categories."""
        return tuple(f for f in self.features if f.kind != "continuous")

    def transformed(self, clouds: PointClouds, features: Sequence[Feature] | None = None) -> NDArray[np.float64]:
        """Features of all points (the continuous ones unless others are named) in the card's space, [N, F]."""
        chosen = self.continuous if features is None else features
        columns = [transform(f, clouds.feature(f.name)) for f in chosen]
        return np.stack(columns, axis=1) if columns else np.zeros((len(clouds.points), 0))

    def window(self, feature: Feature) -> tuple[float, float]:
        """Lowest and highest value, in physical units, that the tokenizer was made for."""
        if feature.kind != "continuous":
            first = lowest_value(feature)
            return float(first), float(first + category_size(feature) - 1)
        window = feature.range or (-np.inf, np.inf)
        if feature.name in self.spread:
            ends = self.spread[feature.name].lowest, self.spread[feature.name].highest
            low, high = sorted(_physical(feature, x) for x in ends)
            window = max(window[0], low), min(window[1], high)
        return window

    def outside(self, clouds: PointClouds) -> dict[str, int]:
        """How many points lie outside the window of each feature, by its name; only features with any."""
        found = {}
        for feature in self.features:
            values, (low, high) = clouds.feature(feature.name), self.window(feature)
            # float32 values of a float64 border must not count as outside
            margin = 1e-6 * max(*(abs(b) for b in (low, high) if np.isfinite(b)), 1e-3)
            count = int(((values < low - margin) | (values > high + margin)).sum())
            if count:
                found[feature.name] = count
        return found

    def require(self, clouds: PointClouds) -> None:
        """Refuse, with one sentence, point clouds that are not what this tokenizer was fitted on.

        Checked are names, units, conventions, and whether values can be what they are called: numbers at all, above
        zero where a logarithm is taken, and of a size that was seen in the fit.
        """
        for feature in self.features:
            self._require_declared(feature, clouds)
            values = clouds.feature(feature.name)
            self._require_possible(feature, values)
            if feature.name in self.spread and len(values) >= ENOUGH:
                self._require_scale(feature, values)

    def _require_declared(self, feature: Feature, clouds: PointClouds) -> None:
        if feature.name not in clouds.features:
            raise DataError(
                f"tokenizer '{self.name}' needs feature '{feature.name}', which these point clouds do not have"
                f"{did_you_mean(feature.name, clouds.features)}"
            )
        column = clouds.features.index(feature.name)
        if clouds.units[column] != feature.unit:
            raise DataError(
                f"feature '{feature.name}' is in {clouds.units[column]}, but tokenizer '{self.name}' was fitted in "
                f"{feature.unit}: convert it first"
            )
        convention = clouds.conventions[column] if clouds.conventions else ""
        if convention and feature.convention and convention != feature.convention:
            raise DataError(
                f"feature '{feature.name}' follows the convention '{convention}', but tokenizer '{self.name}' was "
                f"fitted with '{feature.convention}': convert it first"
            )

    def _require_possible(self, feature: Feature, values: NDArray[np.float32]) -> None:
        if not np.isfinite(values).all():
            raise DataError(f"feature '{feature.name}' has NaN or infinite values: tokenizer '{self.name}' takes none")
        if feature.log and len(values) and values.min() <= 0:
            raise DataError(
                f"feature '{feature.name}' reaches {values.min():g}, but must be above 0 for tokenizer '{self.name}', "
                f"which takes its logarithm: give values in {feature.unit}, not their logarithm"
            )

    def _require_scale(self, feature: Feature, values: NDArray[np.float32]) -> None:
        fitted = self.spread[feature.name]
        every = max(1, len(values) // LOOKED_AT)
        tenth, nine_tenths = np.quantile(transform(feature, values[::every]), [0.1, 0.9]).tolist()
        if tenth <= fitted.nine_tenths and nine_tenths >= fitted.tenth:
            return
        here = sorted(_physical(feature, x) for x in (tenth, nine_tenths))
        there = sorted(_physical(feature, x) for x in (fitted.tenth, fitted.nine_tenths))
        raise DataError(
            f"feature '{feature.name}' is mostly between {here[0]:.3g} and {here[1]:.3g}, but tokenizer '{self.name}' "
            f"was fitted on values mostly between {there[0]:.3g} and {there[1]:.3g} {feature.unit}: are they really in "
            f"{feature.unit}, and the same quantity?"
        )


def _physical(feature: Feature, x: float) -> float:
    value = x / feature.scale + feature.shift
    return float(np.exp(value)) if feature.log else value
