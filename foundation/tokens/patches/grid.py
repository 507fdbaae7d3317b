"""A regular grid of voxels cut into patches: where each voxel lies, and dense showers from ragged hits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from foundation.errors import DataError, did_you_mean


@dataclass(frozen=True)
class PatchGrid:
    """A grid with `cells` voxels along each axis, cut into patches of `patch` voxels along each axis.

    Voxels and patches are numbered in C order, the last axis fastest. Where a patch does not divide an axis, the last
    patches reach beyond it; their places out there are not `real`.
    """

    cells: tuple[int, ...]
    patch: tuple[int, ...]

    @staticmethod
    def of(axes: Mapping[str, int], patch: Mapping[str, int], owner: str) -> PatchGrid:
        """The grid of these axes (name -> voxels), cut as `patch` says (name -> voxels of a patch).

        Raises DataError, in the name of `owner`, where `patch` names other axes or reaches beyond one.
        """
        for name in patch:
            if name not in axes:
                raise DataError(
                    f"{owner}: 'patch' names '{name}', which is not an axis of the grid ({', '.join(axes)})"
                    f"{did_you_mean(name, axes)}"
                )
        for name, cells in axes.items():
            if name not in patch:
                raise DataError(f"{owner}: 'patch' gives no size along '{name}' (1 .. {cells})")
            if not 1 <= patch[name] <= cells:
                raise DataError(f"{owner}: a patch of {patch[name]} along '{name}' does not fit in its {cells} voxels")
        return PatchGrid(tuple(axes.values()), tuple(patch[name] for name in axes))

    @property
    def along(self) -> tuple[int, ...]:
        """Number of patches along each axis."""
        return tuple(-(-cells // size) for cells, size in zip(self.cells, self.patch, strict=True))

    @property
    def patches(self) -> int:
        """Number of patches."""
        return int(np.prod(self.along))

    @property
    def volume(self) -> int:
        """Number of places in a patch."""
        return int(np.prod(self.patch))

    @property
    def voxels(self) -> int:
        """Number of voxels of the grid."""
        return int(np.prod(self.cells))

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """Where each voxel lies in the flattened [patches, volume], int64 [voxels]."""
        position = np.indices(self.cells).reshape(len(self.cells), -1)
        size = np.array(self.patch)[:, None]
        patch = np.ravel_multi_index(tuple(position // size), self.along)
        return patch * self.volume + np.ravel_multi_index(tuple(position % size), self.patch)

    @cached_property
    def real(self) -> NDArray[np.bool_]:
        """Which places of the patches are voxels of the grid, bool [patches, volume]."""
        real = np.zeros(self.patches * self.volume, np.bool_)
        real[self.places] = True
        return real.reshape(self.patches, self.volume)

    @property
    def positions(self) -> NDArray[np.int64]:
        """Position of each patch along each axis, counted in patches, int64 [patches, axes]."""
        return np.indices(self.along).reshape(len(self.along), -1).T

    def voxel_numbers(self, positions: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
        """Numbers [N] of the voxels at these positions along each axis."""
        return np.ravel_multi_index(tuple(positions), self.cells)

    def voxel_positions(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
        """Positions along each axis of the voxels with these numbers [N]."""
        return np.unravel_index(numbers, self.cells)

    def cut(
        self, numbers: NDArray[np.int64], owners: NDArray[np.int64], energies: NDArray[np.floating], objects: int
    ) -> NDArray[np.float64]:
        """Energies of dense patches [objects, patches, volume] from hits: voxel, object and energy of each, [N].

        The energies of hits in the same voxel are summed.
        """
        size = self.patches * self.volume
        dense = np.bincount(owners * size + self.places[numbers], energies, objects * size)
        return dense.astype(np.float64, copy=False).reshape((objects, self.patches, self.volume))

    def joined(self, patches: NDArray) -> NDArray:
        """Values of the voxels, [objects, voxels], from those of the patches, [objects, patches, volume]."""
        return patches.reshape(len(patches), -1)[:, self.places]
