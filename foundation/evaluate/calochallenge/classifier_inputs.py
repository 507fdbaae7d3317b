"""What the classifiers of the CaloChallenge see of a shower; dense only batch by batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError, did_you_mean
from foundation.evaluate.calochallenge.features import high_level_features
from foundation.evaluate.calochallenge.settings import Settings
from foundation.evaluate.calochallenge.voxels import incident_energy_mev, voxel_matrix
from foundation.evaluate.metrics import Floats

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Kind = Literal["low", "low_normed", "high", "resnet"]
KINDS: tuple[Kind, ...] = ("low", "low_normed", "high", "resnet")


class ShowerInputs(Protocol):
    """Rows of inputs of B showers, made when they are asked for."""

    width: int

    def __len__(self) -> int: ...

    def rows(self, index: NDArray[np.int64]) -> Floats:
        """float64 [n, width] of the showers at `index` [n]."""


class HighLevelInputs:
    """The vector of the high-level features."""

    def __init__(self, vector: Floats) -> None:
        self.vector, self.width = vector, vector.shape[1]

    def __len__(self) -> int:
        return len(self.vector)

    def rows(self, index: NDArray[np.int64]) -> Floats:
        """float64 [n, width] of the showers at `index` [n]."""
        return self.vector[index]


class VoxelInputs:
    """log10 E_inc and the voxels over E_inc; or, normed, the voxels over E_layer and then log10(E_layer + 1e-8).

    E_layer of normed inputs is divided by as E_layer + 1e-16. Voxels below the threshold are empty, normed or not.
    """

    def __init__(self, matrix: csr_matrix, incident: Floats, voxels_per_layer: NDArray[np.int64], normed: bool) -> None:
        self.matrix, self.incident, self.normed = matrix, incident, normed
        self.voxels_per_layer = voxels_per_layer
        self.width = 1 + matrix.shape[1] + (len(voxels_per_layer) if normed else 0)

    def __len__(self) -> int:
        return len(self.incident)

    def rows(self, index: NDArray[np.int64]) -> Floats:
        """float64 [n, width] of the showers at `index` [n]."""
        voxels = self.matrix[index].toarray().astype(np.float64)
        incident = self.incident[index][:, None]
        if not self.normed:
            return np.concatenate([np.log10(incident), voxels / incident], axis=1)
        first = np.concatenate([[0], np.cumsum(self.voxels_per_layer)[:-1]])
        layers = np.add.reduceat(voxels, first, axis=1)
        voxels /= np.repeat(layers, self.voxels_per_layer, axis=1) + 1e-16
        return np.concatenate([np.log10(incident), voxels, np.log10(layers + 1e-8)], axis=1)


def inputs_of(kind: Kind, clouds: PointClouds, settings: Settings) -> ShowerInputs:
    """Inputs of B showers for this kind of classifier.

    Raises DataError for an unknown kind, an empty sample, or images of a geometry whose layers differ.
    """
    if kind not in KINDS:
        raise DataError(f"no classifier '{kind}'{did_you_mean(kind, KINDS)}")
    if kind == "high":
        return HighLevelInputs(high_level_features(clouds, settings).vector())
    if not len(clouds):
        raise DataError(f"the sample of '{clouds.tag}' is empty: there is nothing to classify")
    if kind == "resnet" and settings.geometry.regular_shape is None:
        raise DataError(
            f"'{settings.name}': the layers have different cells and make no image; the ResNet test is for datasets "
            "such as 2 and 3"
        )
    matrix, incident = voxel_matrix(clouds, settings), incident_energy_mev(clouds)
    return VoxelInputs(matrix, incident, settings.geometry.voxels_per_layer, normed=kind == "low_normed")
