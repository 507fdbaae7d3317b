"""Hits on a grid of voxels, with energies as shares of the incident energy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foundation.data.cards import Feature
from foundation.data.formats.units import unit_factor
from foundation.data.point_clouds import PointClouds
from foundation.data.ragged import rows_of
from foundation.errors import DataError, did_you_mean
from foundation.tokens.config import PatchesConfig
from foundation.tokens.inputs import Inputs
from foundation.tokens.patches.grid import PatchGrid
from foundation.tokens.transforms import category_size, exact_codes, lowest_value


@dataclass(frozen=True)
class Hits:
    """Hits of B showers.

    voxels:   int64 [N]; number of the voxel
    shares:   float64 [N]; energy as a share of the incident energy
    offsets:  int64 [B + 1]
    incident: float64 [B]; incident energy, in its own unit
    """

    voxels: NDArray[np.int64]
    shares: NDArray[np.float64]
    offsets: NDArray[np.int64]
    incident: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.incident)

    def select(self, chosen: NDArray[np.integer]) -> Hits:
        """Hits of the chosen showers."""
        rows, offsets = rows_of(self.offsets, chosen)
        return Hits(self.voxels[rows], self.shares[rows], offsets, self.incident[chosen])

    def parts(self, size: int) -> Iterator[Hits]:
        """`size` showers at a time."""
        for first in range(0, len(self), size):
            yield self.select(np.arange(first, min(first + size, len(self))))


@dataclass(frozen=True)
class Voxels:
    """Which features of a dataset make its grid, and what its energies are divided by.

    name:      of the tokenizer, for messages
    axes:      integer features, in the order of the card
    energy:    the continuous feature
    condition: name of the incident energy
    unit:      of the incident energy
    """

    name: str
    axes: tuple[Feature, ...]
    energy: Feature
    condition: str
    unit: str
    grid: PatchGrid
    periodic: tuple[bool, ...]

    @staticmethod
    def of(inputs: Inputs, config: PatchesConfig, unit: str) -> Voxels:
        """Raises DataError where the features are not axes and one energy, or the settings name other axes."""
        owner = f"tokenizer '{inputs.name}'"
        axes = tuple(f for f in inputs.features if f.kind == "integer")
        if not axes or len(inputs.features) != len(axes) + 1 or len(inputs.continuous) != 1:
            raise DataError(
                f"{owner}: patches need showers on a grid, integer features for its axes and one energy, but the "
                f"features are {', '.join(f'{f.name} ({f.kind})' for f in inputs.features)}: choose with 'features'"
            )
        sizes = {f.name: category_size(f) for f in axes}
        for name in config.periodic:
            if name not in sizes:
                raise DataError(
                    f"{owner}: 'periodic' names '{name}', which is not an axis of the grid ({', '.join(sizes)})"
                    f"{did_you_mean(name, sizes)}"
                )
        grid = PatchGrid.of(sizes, config.patch, owner)
        periodic = tuple(f.name in config.periodic for f in axes)
        return Voxels(inputs.name, axes, inputs.continuous[0], config.condition, unit, grid, periodic)

    @property
    def per_incident(self) -> float:
        """Share of the incident energy that a hit of one unit of energy shows, at one unit of incident energy."""
        return unit_factor(self.energy.unit, self.unit)

    def incident(self, values: NDArray[np.floating] | None) -> NDArray[np.float64]:
        """Incident energies [B], checked. Raises DataError where they are missing, NaN or not above zero."""
        if values is None:
            raise DataError(
                f"tokenizer '{self.name}' divides energies by '{self.condition}': give it for every shower, in "
                f"{self.unit}"
            )
        energies = np.asarray(values, np.float64)
        if not (np.isfinite(energies).all() and (energies > 0).all()):
            raise DataError(
                f"tokenizer '{self.name}' divides energies by '{self.condition}', which must be known and above 0 for "
                f"every shower"
            )
        return energies

    def hits(self, clouds: PointClouds) -> Hits:
        """The hits of these clouds. Raises DataError for values that have no place on the grid."""
        unit = unit_of(clouds, self.name, self.condition)
        if unit != self.unit:
            raise DataError(
                f"condition '{self.condition}' is in {unit}, but tokenizer '{self.name}' was fitted in {self.unit}: "
                f"convert it first"
            )
        incident = self.incident(clouds.condition(self.condition))
        energies = clouds.feature(self.energy.name).astype(np.float64)
        if len(energies) and energies.min() <= 0:
            raise DataError(
                f"feature '{self.energy.name}' reaches {energies.min():g}, but hits on a grid must have energies above "
                f"0: leave the others out first"
            )
        numbers = self.grid.voxel_numbers([exact_codes(f, clouds.feature(f.name)) for f in self.axes])
        shares = energies * self.per_incident / incident[clouds.owners]
        return Hits(numbers, shares, clouds.offsets, incident)

    def values(self, numbers: NDArray[np.int64], energies: NDArray[np.float64]) -> dict[str, NDArray]:
        """Feature name -> values [N] of hits in these voxels with these energies, in the feature's unit."""
        positions = self.grid.voxel_positions(numbers)
        axes = {f.name: p + lowest_value(f) for f, p in zip(self.axes, positions, strict=True)}
        return {**axes, self.energy.name: energies}


def unit_of(clouds: PointClouds, name: str, condition: str) -> str:
    """Unit of the incident energy of clouds. Raises DataError, in the name of the tokenizer, where they have none."""
    if condition not in clouds.condition_names:
        raise DataError(
            f"tokenizer '{name}' divides energies by '{condition}', which these showers do not have"
            f"{did_you_mean(condition, clouds.condition_names)}"
        )
    return clouds.condition_units[clouds.condition_names.index(condition)]
