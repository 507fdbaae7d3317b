"""One code per point: the product of the bins of its features, the baseline of OmniJet-alpha (arXiv:2403.05618)."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np
from numpy.typing import NDArray

from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError
from foundation.tokens.bins import Bins, chosen, fit_bins, pieces
from foundation.tokens.config import BinningConfig, Spacing
from foundation.tokens.inputs import Inputs
from foundation.tokens.tokenizer import NOTHING, Codes, Points, Stream, Tokenizer
from foundation.tokens.transforms import category_size, exact_codes, lowest_value

MOST_CODES = 2**22
DIGITS = 53
"""Random binary digits of a uniform number."""


class BinningTokenizer(Tokenizer):
    """Stream `code0` is the cell of a point in the grid of all bins, the last feature's bin changing fastest (C order).

    All continuous features are in the product, and the integer and category features that `bins` names; the others
    have streams of their own after it, exactly.
    """

    kind = "binning"

    def __init__(self, inputs: Inputs, config: BinningConfig, bins: Mapping[str, Bins]) -> None:
        super().__init__(inputs)
        self.config, self.bins = config, bins
        self._exact = tuple(f for f in inputs.exact if f.name not in bins)

    @staticmethod
    def fit(inputs: Inputs, clouds: PointClouds, config: BinningConfig) -> BinningTokenizer:
        """Fit the bins on `clouds`. Raises DataError where their values do not allow for the bins of `config`."""
        many = _bins_of(inputs, config)
        axes = tuple(f for f in inputs.features if f.name in many)
        spacing: dict[str, Spacing] = chosen(config.spacing, "linear", axes, inputs.name, "spacing")
        _require_size(inputs, many)
        bins = {
            f.name: fit_bins(f, clouds.feature(f.name), inputs.window(f), many[f.name], spacing[f.name], config.inside)
            for f in axes
        }
        return BinningTokenizer(inputs, config, bins)

    @property
    def streams(self) -> tuple[Stream, ...]:
        cells = prod(len(bins) for bins in self.bins.values())
        return (Stream("code0", cells), *(Stream(f.name, category_size(f)) for f in self._exact))

    def _encode(self, clouds: PointClouds) -> Codes:
        codes = np.zeros((len(clouds.points), 1 + len(self._exact)), np.int64)
        for rows in pieces(len(codes)):
            cell = codes[rows, 0]
            for name, bins in self.bins.items():
                cell *= len(bins)
                cell += bins.codes(clouds.feature(name)[rows])
            for k, feature in enumerate(self._exact, 1):
                codes[rows, k] = exact_codes(feature, clouds.feature(feature.name)[rows])
        return Codes(codes, clouds.offsets)

    def decode(self, codes: Codes, uniform: NDArray[np.float64], conditions: Mapping[str, NDArray] = NOTHING) -> Points:
        points = np.empty((len(codes.values), len(self.features)), np.float32)
        column = {f.name: k for k, f in enumerate(self.features)}
        grid = [len(bins) for bins in self.bins.values()]
        for rows in pieces(len(points)):
            places = np.unravel_index(codes.values[rows, 0], grid)
            digits = uniform[rows, 0]
            for (name, bins), place in zip(self.bins.items(), places, strict=True):
                points[rows, column[name]] = bins.values(place, digits)
                digits = _later_digits(digits, DIGITS // len(grid))
            for k, feature in enumerate(self._exact, 1):
                points[rows, column[feature.name]] = codes.values[rows, k] + lowest_value(feature)
        return Points(points, codes.offsets)

    def state(self) -> tuple[dict[str, object], dict[str, NDArray]]:
        arrays = {name: array for bins in self.bins.values() for name, array in bins.arrays().items()}
        return self.config.model_dump(), arrays

    @classmethod
    def from_state(cls, inputs: Inputs, settings: dict, arrays: dict[str, NDArray]) -> BinningTokenizer:
        bins = {f.name: Bins.from_arrays(f, arrays) for f in inputs.features if f"lowest.{f.name}" in arrays}
        return BinningTokenizer(inputs, BinningConfig(**settings), bins)


def _bins_of(inputs: Inputs, config: BinningConfig) -> dict[str, int]:
    """Bins of each feature in the product, by name."""
    features = inputs.continuous if isinstance(config.bins, int) else inputs.features
    many = chosen(config.bins, 0, features, inputs.name, "bins")
    for feature in inputs.continuous:
        if not many[feature.name]:
            raise DataError(
                f"'bins' of tokenizer '{inputs.name}' does not say how many '{feature.name}' has: name it as well, or "
                f"leave the feature out of the tokenizer's 'features'"
            )
    if not any(many.values()):
        raise DataError(f"tokenizer '{inputs.name}' has no continuous features: name in 'bins' those to put in bins")
    return {name: number for name, number in many.items() if number}


def _require_size(inputs: Inputs, many: Mapping[str, int]) -> None:
    if prod(many.values()) > MOST_CODES:
        raise DataError(
            f"the bins of tokenizer '{inputs.name}' make {' x '.join(f'{n} {name}' for name, n in many.items())} = "
            f"{prod(many.values()):,} codes, more than {MOST_CODES:,}: take fewer bins or features, or the tokenizer "
            f"'per_feature', which has a code for each feature"
        )


def _later_digits(uniform: NDArray[np.float64], used: int) -> NDArray[np.float64]:
    """The number in [0, 1) behind the first `used` binary digits of `uniform`: one draw serves several features."""
    shifted = uniform * 2.0**used
    return shifted - np.floor(shifted)
