"""One small range of codes per feature: integer axes exactly, continuous features in bins."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError
from foundation.tokens.config import PerFeatureConfig
from foundation.tokens.inputs import Inputs
from foundation.tokens.tokenizer import NOTHING, Codes, Points, Stream, Tokenizer
from foundation.tokens.transforms import category_size, exact_codes, inverse_transform, lowest_value, transform

KNOTS = 17


class PerFeatureTokenizer(Tokenizer):
    """K = F streams: a code for each feature of a point.

    Continuous features are cut into bins of equal width in the card's transformed space. Decoding draws a value inside
    the bin from the training sample's own density there (its quantile function at 17 knots), so that a spectrum that
    falls steeply inside a bin keeps its mean.
    """

    kind = "per_feature"

    def __init__(self, inputs: Inputs, edges: dict[str, NDArray], knots: dict[str, NDArray]) -> None:
        super().__init__(inputs)
        self.edges = edges
        self.knots = knots

    @staticmethod
    def fit(inputs: Inputs, clouds: PointClouds, config: PerFeatureConfig) -> PerFeatureTokenizer:
        """Fit edges and in-bin densities on `clouds`."""
        edges, knots, bins = {}, {}, config.bins
        for feature in inputs.continuous:
            x = transform(feature, clouds.feature(feature.name))
            if len(x) < bins:
                raise DataError(f"{len(x)} points are too few to fit {bins} bins of '{feature.name}'")
            low, high = (float(x.min()), float(x.max()))
            if feature.range is not None:
                window = np.sort(transform(feature, np.asarray(feature.range)))
                low, high = max(low, float(window[0])), min(high, float(window[1]))
            edges[feature.name] = np.linspace(low, high, bins + 1)
            knots[feature.name] = _quantile_knots(x, edges[feature.name])
        return PerFeatureTokenizer(inputs, edges, knots)

    @property
    def streams(self) -> tuple[Stream, ...]:
        return tuple(
            Stream(f.name, len(self.edges[f.name]) - 1 if f.kind == "continuous" else category_size(f))
            for f in self.features
        )

    def _encode(self, clouds: PointClouds) -> Codes:
        columns = []
        for feature in self.features:
            values = clouds.feature(feature.name)
            if feature.kind == "continuous":
                edges = self.edges[feature.name]
                code = np.searchsorted(edges, transform(feature, values), side="right") - 1
                columns.append(np.clip(code, 0, len(edges) - 2))
            else:
                columns.append(exact_codes(feature, values))
        return Codes(np.stack(columns, axis=1).astype(np.int64), clouds.offsets)

    def decode(self, codes: Codes, uniform: NDArray[np.float64], conditions: Mapping[str, NDArray] = NOTHING) -> Points:
        columns: list[NDArray] = []
        for k, feature in enumerate(self.features):
            if feature.kind == "continuous":
                x = _inside_bin(self.knots[feature.name], codes.values[:, k], uniform[:, k])
                columns.append(inverse_transform(feature, x))
            else:
                columns.append(codes.values[:, k] + lowest_value(feature))
        return Points(np.stack(columns, axis=1).astype(np.float32), codes.offsets)

    def state(self) -> tuple[dict[str, object], dict[str, NDArray]]:
        arrays = {f"edges.{k}": v for k, v in self.edges.items()} | {f"knots.{k}": v for k, v in self.knots.items()}
        return {}, arrays

    @classmethod
    def from_state(cls, inputs: Inputs, settings: dict, arrays: dict[str, NDArray]) -> PerFeatureTokenizer:
        edges = {k.removeprefix("edges."): v for k, v in arrays.items() if k.startswith("edges.")}
        knots = {k.removeprefix("knots."): v for k, v in arrays.items() if k.startswith("knots.")}
        return PerFeatureTokenizer(inputs, edges, knots)


def _quantile_knots(x: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quantile function of `x` inside each bin at KNOTS equidistant probabilities, [bins, KNOTS].

    A bin with too few training values gets a uniform density.
    """
    bins = len(edges) - 1
    knots = np.linspace(edges[:-1], edges[1:], KNOTS, axis=1)
    code = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, bins - 1)
    order = np.argsort(code, kind="stable")
    starts = np.searchsorted(code[order], np.arange(bins + 1))
    for b in range(bins):
        inside = x[order[starts[b] : starts[b + 1]]]
        if len(inside) >= 4 * KNOTS:
            knots[b] = np.clip(np.quantile(inside, np.linspace(0, 1, KNOTS)), edges[b], edges[b + 1])
    return knots


def _inside_bin(
    knots: NDArray[np.float64], code: NDArray[np.int64], uniform: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Value at probability `uniform` of the density of bin `code`; linear between the knots."""
    place = uniform * (KNOTS - 1)
    left = np.minimum(place.astype(np.int64), KNOTS - 2)
    a, b = knots[code, left], knots[code, left + 1]
    return a + (place - left) * (b - a)
