"""One small range of codes per feature: integer axes exactly, continuous features in bins."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from foundation.data.point_clouds import PointClouds
from foundation.tokens.bins import Bins, chosen, fit_bins, pieces
from foundation.tokens.config import DEFAULT_BINS, PerFeatureConfig, Spacing
from foundation.tokens.inputs import Inputs
from foundation.tokens.tokenizer import NOTHING, Codes, Points, Stream, Tokenizer
from foundation.tokens.transforms import category_size, exact_codes, lowest_value


class PerFeatureTokenizer(Tokenizer):
    """K = F streams: a code for each feature of a point.

    Continuous features are cut into bins. By default decoding draws a value inside the bin from the training sample's
    own density there (its quantile function at 17 knots), so that a spectrum that falls steeply inside a bin keeps its
    mean.
    """

    kind = "per_feature"

    def __init__(self, inputs: Inputs, config: PerFeatureConfig, bins: Mapping[str, Bins]) -> None:
        super().__init__(inputs)
        self.config, self.bins = config, bins

    @staticmethod
    def fit(inputs: Inputs, clouds: PointClouds, config: PerFeatureConfig) -> PerFeatureTokenizer:
        """Fit the bins on `clouds`. Raises DataError where their values do not allow for the bins of `config`."""
        many = chosen(config.bins, DEFAULT_BINS, inputs.continuous, inputs.name, "bins")
        spacing: dict[str, Spacing] = chosen(config.spacing, "linear", inputs.continuous, inputs.name, "spacing")
        bins = {
            f.name: fit_bins(f, clouds.feature(f.name), inputs.window(f), many[f.name], spacing[f.name], config.inside)
            for f in inputs.continuous
        }
        return PerFeatureTokenizer(inputs, config, bins)

    @property
    def edges(self) -> dict[str, NDArray[np.float64]]:
        """Borders [bins + 1] of each continuous feature in the card's transformed space, by name."""
        return {name: bins.edges for name, bins in self.bins.items()}

    @property
    def streams(self) -> tuple[Stream, ...]:
        return tuple(
            Stream(f.name, len(self.bins[f.name]) if f.name in self.bins else category_size(f)) for f in self.features
        )

    def _encode(self, clouds: PointClouds) -> Codes:
        codes = np.empty((len(clouds.points), len(self.features)), np.int64)
        for rows in pieces(len(codes)):
            for k, feature in enumerate(self.features):
                values, bins = clouds.feature(feature.name)[rows], self.bins.get(feature.name)
                codes[rows, k] = bins.codes(values) if bins else exact_codes(feature, values)
        return Codes(codes, clouds.offsets)

    def decode(self, codes: Codes, uniform: NDArray[np.float64], conditions: Mapping[str, NDArray] = NOTHING) -> Points:
        points = np.empty(codes.values.shape, np.float32)
        for rows in pieces(len(points)):
            for k, feature in enumerate(self.features):
                code, bins = codes.values[rows, k], self.bins.get(feature.name)
                points[rows, k] = bins.values(code, uniform[rows, k]) if bins else code + lowest_value(feature)
        return Points(points, codes.offsets)

    def state(self) -> tuple[dict[str, object], dict[str, NDArray]]:
        arrays = {name: array for bins in self.bins.values() for name, array in bins.arrays().items()}
        return self.config.model_dump(), arrays

    @classmethod
    def from_state(cls, inputs: Inputs, settings: dict, arrays: dict[str, NDArray]) -> PerFeatureTokenizer:
        bins = {f.name: Bins.from_arrays(f, arrays) for f in inputs.continuous}
        if not settings:  # the first version
            settings = {"type": cls.kind, "bins": {name: len(b) for name, b in bins.items()}}
        return PerFeatureTokenizer(inputs, PerFeatureConfig(**settings), bins)
