"""k-means tokenizer: the nearest of `codes` centroids for the continuous features, exact codes for categories.

The discrete targets of masked particle modelling (arXiv:2409.12589): each constituent is labelled by the cluster that
its standardised features fall into, whatever its neighbours are. Nothing is trained but the centroids.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from foundation.data.point_clouds import PointClouds
from foundation.data.ragged import ragged_arange, to_offsets
from foundation.errors import DataError
from foundation.tokens.config import KMeansConfig
from foundation.tokens.inputs import Inputs
from foundation.tokens.tokenizer import NOTHING, Codes, Points, Stream, Tokenizer
from foundation.tokens.transforms import category_size, exact_codes, inverse_transform, lowest_value
from foundation.tokens.vq.nearest import NearestCode, k_means
from foundation.tokens.vq.point_groups import passes

POINTS_PER_PASS = 200_000
"""Points that are encoded or decoded at once, so that memory does not grow with the file."""
KEPT_RESIDUALS = 32
"""Points of a cluster, at most, whose distances from the centroid are kept to decode with."""


class KMeansTokenizer(Tokenizer):
    """Stream `code0`, then the integer and category features exactly.

    centroids: float64 [codes, F] in standardised features
    residuals: float32 [R, F], of kept points of the fit from their centroids; cluster c has rows
               residual_offsets[c]:residual_offsets[c + 1]; none where decoding gives the centroid
    """

    kind = "kmeans"

    def __init__(
        self,
        inputs: Inputs,
        config: KMeansConfig,
        mean: NDArray[np.float64],
        std: NDArray[np.float64],
        centroids: NDArray[np.float64],
        residuals: NDArray[np.float32],
        residual_offsets: NDArray[np.int64],
    ) -> None:
        super().__init__(inputs)
        self.config, self.mean, self.std, self.centroids = config, mean, std, centroids
        self.residuals, self.residual_offsets = residuals, residual_offsets
        self.nearest = NearestCode(centroids)

    @property
    def streams(self) -> tuple[Stream, ...]:
        exact = (Stream(f.name, category_size(f)) for f in self.inputs.exact)
        return (Stream("code0", len(self.centroids)), *exact)

    @staticmethod
    def fit(inputs: Inputs, clouds: PointClouds, config: KMeansConfig, seed: int) -> KMeansTokenizer:
        """Find the clusters of the points of `clouds`. Raises DataError where there are no features to code."""
        if not inputs.continuous:
            raise DataError(f"tokenizer '{inputs.name}': kmeans needs continuous features")
        rng = np.random.default_rng(seed)
        x = inputs.transformed(clouds)
        mean, std = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-6)
        x = (x - mean) / std
        if len(x) < config.codes:
            raise DataError(
                f"tokenizer '{inputs.name}': {config.codes:,} clusters cannot be found from {len(x):,} points: "
                "give fewer codes or more objects"
            )
        fitted_on = x[rng.permutation(len(x))[: config.fit_points]]
        centroids, owners = k_means(fitted_on, config.codes, rng, config.rounds)
        residuals, offsets = np.zeros((0, x.shape[1]), np.float32), np.zeros(config.codes + 1, np.int64)
        if config.inside == "residual":
            residuals, offsets = _kept_residuals(fitted_on - centroids[owners], owners, config.codes)
        return KMeansTokenizer(inputs, config, mean, std, centroids, residuals, offsets)

    def _encode(self, clouds: PointClouds) -> Codes:
        codes = np.empty((len(clouds.points), len(self.streams)), np.int64)
        for first, last in passes(clouds.offsets, POINTS_PER_PASS):
            part = clouds.select(slice(first, last))
            here = codes[clouds.offsets[first] : clouds.offsets[last]]
            here[:, 0] = self.nearest((self.inputs.transformed(part) - self.mean) / self.std)
            for k, feature in enumerate(self.inputs.exact):
                here[:, 1 + k] = exact_codes(feature, part.feature(feature.name))
        return Codes(codes, clouds.offsets)

    def decode(self, codes: Codes, uniform: NDArray[np.float64], conditions: Mapping[str, NDArray] = NOTHING) -> Points:
        values = np.empty((len(codes.values), len(self.features)), np.float32)
        for start in range(0, len(values), POINTS_PER_PASS):
            here = slice(start, start + POINTS_PER_PASS)
            values[here] = self._decode(codes.values[here], uniform[here, 0])
        return Points(values, codes.offsets)

    def _decode(self, codes: NDArray[np.int64], uniform: NDArray[np.float64]) -> NDArray[np.float32]:
        x = self.centroids[codes[:, 0]]
        kept = np.diff(self.residual_offsets)[codes[:, 0]]
        if len(self.residuals):
            row = self.residual_offsets[codes[:, 0]] + (uniform * kept).astype(np.int64)
            # a cluster without kept points gives its centroid
            x = x + np.where(kept[:, None] > 0, self.residuals[np.minimum(row, len(self.residuals) - 1)], 0.0)
        x = x * self.std + self.mean
        columns = {f.name: inverse_transform(f, x[:, i]) for i, f in enumerate(self.inputs.continuous)}
        for k, f in enumerate(self.inputs.exact):
            columns[f.name] = (codes[:, 1 + k] + lowest_value(f)).astype(np.float64)
        return np.stack([columns[f.name] for f in self.features], axis=1).astype(np.float32)

    def code_vectors(self) -> dict[str, NDArray[np.float32]]:
        return {"code0": self.centroids.astype(np.float32)}

    def state(self) -> tuple[dict[str, object], dict[str, NDArray]]:
        return self.config.model_dump(), {
            "mean": self.mean,
            "std": self.std,
            "centroids": self.centroids,
            "residuals": self.residuals,
            "residual_offsets": self.residual_offsets,
        }

    @classmethod
    def from_state(cls, inputs: Inputs, settings: dict, arrays: dict[str, NDArray]) -> KMeansTokenizer:
        return KMeansTokenizer(inputs, KMeansConfig(**settings), **arrays)


def _kept_residuals(
    residuals: NDArray[np.float64], owners: NDArray[np.int64], codes: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The first few residuals of each cluster, and where those of each begin; points come in random order."""
    order = np.argsort(owners, kind="stable")
    counts = np.bincount(owners, minlength=codes)
    kept = order[ragged_arange(counts) < KEPT_RESIDUALS]
    return residuals[kept].astype(np.float32), to_offsets(np.minimum(counts, KEPT_RESIDUALS))
