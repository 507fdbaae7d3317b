"""Calorimeter geometries: layers of square cells, or of rings cut into sectors; and the numbering of their voxels.

A voxel has integer coordinates along the geometry's `axes`. Its number counts them with the last axis fastest, layer
by layer; in a regular geometry that is the C order of an array [layer, x, y] or [layer, alpha, r].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from foundation.data.section import Section
from foundation.errors import DataError

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


class LayerGroup(Section):
    """Identical layers, one behind the other: an absorber plate, then the active plate that is read out.

    The matter is needed to simulate showers, not to read them. Without an absorber the calorimeter is homogeneous.
    """

    repeat: int = Field(1, ge=1)
    pairs: int = Field(1, ge=1)
    """Pairs of an absorber and an active plate, with a gap behind each, that are read out together as one layer."""
    absorber: str | None = None
    absorber_mm: float = Field(0.0, ge=0)
    active: str | None = None
    active_mm: float = Field(0.0, ge=0)
    gap_mm: float = Field(0.0, ge=0)
    """Space for boards, glue and air behind the plates: it widens a shower, its matter is not counted."""

    @model_validator(mode="after")
    def _plates_have_thickness(self) -> LayerGroup:
        for name in ("absorber", "active"):
            if (getattr(self, name) is None) != (getattr(self, f"{name}_mm") == 0):
                raise ValueError(f"{name} and {name}_mm go together: a material and its thickness")
        return self


class RingLayers(LayerGroup):
    """Identical layers whose cells are rings around the axis, cut into sectors of equal angle."""

    r_edges_mm: tuple[float, ...] = Field(min_length=2)
    """Edges of the rings, rising, the first usually 0."""
    alpha_bins: int = Field(1, ge=1)
    """Sectors; the first starts at -pi."""
    id: int | None = None
    """Number of the layer in the experiment's own counting, where it differs from its position."""

    @model_validator(mode="after")
    def _edges_rise(self) -> RingLayers:
        if any(b <= a for a, b in zip(self.r_edges_mm[:-1], self.r_edges_mm[1:], strict=True)):
            raise ValueError("r_edges_mm must rise")
        if self.id is not None and self.repeat > 1:
            raise ValueError("a layer with an id cannot be repeated")
        return self


class CartesianGeometry(Section):
    """Layers of square cells, the particle entering along the depth; all layers have the same cells."""

    axes: ClassVar[tuple[str, str, str]] = ("layer", "x", "y")
    kind: Literal["cartesian"] = "cartesian"
    cells: int = Field(ge=1)
    """Cells per side, both in x and in y."""
    cell_mm: float = Field(gt=0)
    layers: tuple[LayerGroup, ...] = Field(min_length=1)

    @property
    def n_layers(self) -> int:
        """Number of active layers."""
        return sum(group.repeat for group in self.layers)

    @property
    def voxels_per_layer(self) -> Integers:
        """Voxels of each layer, [L]."""
        return np.full(self.n_layers, self.cells**2, np.int64)

    @property
    def regular_shape(self) -> tuple[int, int, int]:
        """Voxels along each axis."""
        return self.n_layers, self.cells, self.cells

    def numbers(self, coordinates: Mapping[str, Integers]) -> Integers:
        """Voxel number of each hit [N] from its integer coordinates along `axes`, [N] each."""
        return (coordinates["layer"] * self.cells + coordinates["x"]) * self.cells + coordinates["y"]

    def coordinates(self, numbers: Integers) -> dict[str, Integers]:
        """Integer coordinates along `axes` of voxel numbers [N]; the inverse of `numbers`."""
        layer, in_layer = np.divmod(numbers, self.cells**2)
        x, y = np.divmod(in_layer, self.cells)
        return {"layer": layer, "x": x, "y": y}

    def bounds(self, layer: Integers) -> dict[str, Integers]:
        """Number of cells along the axes after the layer, in each of these layers [N]."""
        full = np.full(len(layer), self.cells, np.int64)
        return {"x": full, "y": full}

    def centres_mm(self, coordinates: Mapping[str, NDArray]) -> tuple[Floats, Floats]:
        """Transverse positions in mm of voxel centres, the shower axis at the origin."""
        centre = (self.cells - 1) / 2
        x, y = ((np.asarray(coordinates[name], np.float64) - centre) * self.cell_mm for name in ("x", "y"))
        return x, y

    def radii_mm(self, coordinates: Mapping[str, NDArray]) -> Floats:
        """Distances of voxel centres from the shower axis in mm."""
        return np.hypot(*self.centres_mm(coordinates))

    @property
    def radial_edges_mm(self) -> Floats:
        """Bins of a radial profile: rings of one cell's width, out to the corners of the layers."""
        return np.arange(int(np.ceil(self.cells / np.sqrt(2))) + 1, dtype=np.float64) * self.cell_mm

    def cell_at(self, layer: Integers, x_mm: Floats, y_mm: Floats) -> Integers:
        """Voxel number at transverse positions in mm, the shower axis at the origin; -1 outside the geometry."""
        x, y = (np.floor(v / self.cell_mm + self.cells / 2).astype(np.int64) for v in (x_mm, y_mm))
        inside = (x >= 0) & (x < self.cells) & (y >= 0) & (y < self.cells)
        return np.where(inside, self.numbers({"layer": layer, "x": x, "y": y}), -1)


class CylindricalGeometry(Section):
    """Layers of rings cut into sectors, around the direction of the particle; layers may differ."""

    axes: ClassVar[tuple[str, str, str]] = ("layer", "alpha", "r")
    kind: Literal["cylindrical"]
    layers: tuple[RingLayers, ...] = Field(min_length=1)

    @property
    def n_layers(self) -> int:
        """Number of active layers."""
        return sum(group.repeat for group in self.layers)

    @property
    def by_layer(self) -> tuple[RingLayers, ...]:
        """The layers one by one, repeats written out."""
        return tuple(group for group in self.layers for _ in range(group.repeat))

    @property
    def alpha_bins(self) -> Integers:
        """Sectors of each layer, [L]."""
        return np.array([layer.alpha_bins for layer in self.by_layer], np.int64)

    @property
    def r_bins(self) -> Integers:
        """Rings of each layer, [L]."""
        return np.array([len(layer.r_edges_mm) - 1 for layer in self.by_layer], np.int64)

    @property
    def voxels_per_layer(self) -> Integers:
        """Voxels of each layer, [L]."""
        return self.alpha_bins * self.r_bins

    @property
    def regular_shape(self) -> tuple[int, int, int] | None:
        """Voxels along each axis, where all layers have the same cells."""
        alpha, r = self.alpha_bins, self.r_bins
        same = len(set(alpha.tolist())) == len(set(r.tolist())) == 1
        return (self.n_layers, int(alpha[0]), int(r[0])) if same else None

    def numbers(self, coordinates: Mapping[str, Integers]) -> Integers:
        """Voxel number of each hit [N] from its integer coordinates along `axes`, [N] each."""
        layer = coordinates["layer"]
        return self._first_of_layer[layer] + coordinates["alpha"] * self.r_bins[layer] + coordinates["r"]

    def coordinates(self, numbers: Integers) -> dict[str, Integers]:
        """Integer coordinates along `axes` of voxel numbers [N]; the inverse of `numbers`."""
        layer = np.searchsorted(self._first_of_layer, numbers, side="right") - 1
        alpha, r = np.divmod(numbers - self._first_of_layer[layer], self.r_bins[layer])
        return {"layer": layer.astype(np.int64), "alpha": alpha, "r": r}

    def bounds(self, layer: Integers) -> dict[str, Integers]:
        """Number of cells along the axes after the layer, in each of these layers [N]."""
        return {"alpha": self.alpha_bins[layer], "r": self.r_bins[layer]}

    def centres_mm(self, coordinates: Mapping[str, NDArray]) -> tuple[Floats, Floats]:
        """Transverse positions in mm of voxel centres; NaN where there is no such voxel.

        They are eta and phi of the CaloChallenge's XMLHandler and HighLevelFeatures: r cos(alpha) and r sin(alpha),
        with r in the middle of the ring and alpha in the middle of the sector, -pi + (i + 1/2) 2 pi / n.
        """
        cells, known = self._existing(coordinates)
        angle = -np.pi + (cells["alpha"] + 0.5) * 2 * np.pi / self.alpha_bins[cells["layer"]]
        radius = np.where(known, self._ring_centres[cells["layer"], cells["r"]], np.nan)
        return radius * np.cos(angle), radius * np.sin(angle)

    def radii_mm(self, coordinates: Mapping[str, NDArray]) -> Floats:
        """Distances of voxel centres from the axis in mm; NaN where there is no such voxel."""
        cells, known = self._existing(coordinates)
        return np.where(known, self._ring_centres[cells["layer"], cells["r"]], np.nan)

    @property
    def radial_edges_mm(self) -> Floats:
        """Bins of a radial profile: the edges of the rings of all layers."""
        return np.unique(np.concatenate([layer.r_edges_mm for layer in self.layers]))

    def cell_at(self, layer: Integers, x_mm: Floats, y_mm: Floats) -> Integers:
        """Voxel number at transverse positions in mm, the shower axis at the origin; -1 outside the geometry."""
        radius, angle = np.hypot(x_mm, y_mm), np.arctan2(y_mm, x_mm)
        bins = self.alpha_bins[layer]
        alpha = np.clip(np.floor((angle + np.pi) / (2 * np.pi) * bins).astype(np.int64), 0, bins - 1)
        r = np.full(len(layer), -1, np.int64)
        for i, group in enumerate(self.by_layer):
            here = layer == i
            r[here] = np.searchsorted(group.r_edges_mm, radius[here], side="right") - 1
        inside = (r >= 0) & (r < self.r_bins[layer])
        return np.where(inside, self.numbers({"layer": layer, "alpha": alpha, "r": r}), -1)

    def _existing(self, coordinates: Mapping[str, NDArray]) -> tuple[dict[str, Integers], NDArray[np.bool_]]:
        """The coordinates as integers, 0 where there is no such voxel, and where there is one."""
        values = {name: np.asarray(coordinates[name]) for name in self.axes}
        cells = {name: np.where(np.isfinite(v), v, -1).astype(np.int64) for name, v in values.items()}
        known = inside(self, cells)
        return {name: np.where(known, v, 0) for name, v in cells.items()}, known

    @property
    def _ring_centres(self) -> Floats:
        centres = np.full((self.n_layers, int(self.r_bins.max())), np.nan)
        for i, layer in enumerate(self.by_layer):
            edges = np.array(layer.r_edges_mm)
            centres[i, : len(edges) - 1] = (edges[:-1] + edges[1:]) / 2
        return centres

    @property
    def _first_of_layer(self) -> Integers:
        return np.concatenate([[0], np.cumsum(self.voxels_per_layer)[:-1]]).astype(np.int64)


Geometry = Annotated[CartesianGeometry | CylindricalGeometry, Field(discriminator="kind")]


def n_voxels(geometry: CartesianGeometry | CylindricalGeometry) -> int:
    """Voxels of all layers together."""
    return int(geometry.voxels_per_layer.sum())


def inside(geometry: CartesianGeometry | CylindricalGeometry, coordinates: Mapping[str, Integers]) -> NDArray[np.bool_]:
    """Which hits have a voxel in the geometry, bool [N], by their integer coordinates along its axes."""
    layer = coordinates["layer"]
    found = (layer >= 0) & (layer < geometry.n_layers)
    for name, bound in geometry.bounds(np.where(found, layer, 0)).items():
        found &= (coordinates[name] >= 0) & (coordinates[name] < bound)
    return found


def checked_coordinates(
    geometry: CartesianGeometry | CylindricalGeometry, coordinates: Mapping[str, NDArray]
) -> dict[str, Integers]:
    """The coordinates as integers.

    Raises DataError when one is not an integer or lies outside the geometry.
    """
    whole = {name: np.asarray(coordinates[name]) for name in geometry.axes}
    for name, values in whole.items():
        if not np.array_equal(values, np.rint(values)):
            raise DataError(f"'{name}' must be the index of a cell, but there are values such as {_first_odd(values)}")
    found = {name: values.astype(np.int64) for name, values in whole.items()}
    limits = {"layer": np.full(len(found["layer"]), geometry.n_layers)}
    outside = (found["layer"] < 0) | (found["layer"] >= geometry.n_layers)
    limits |= geometry.bounds(np.where(outside, 0, found["layer"]))
    for name, values in found.items():
        bad = (values < 0) | (values >= limits[name])
        if bad.any():
            at = int(bad.argmax())
            raise DataError(
                f"'{name}' is {values[at]} in {int(bad.sum())} hits or more; there the geometry has 0 to "
                f"{int(limits[name][at]) - 1}"
            )
    return found


def _first_odd(values: NDArray) -> float:
    return float(values[values != np.rint(values)][0])
