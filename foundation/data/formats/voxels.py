"""Dense images of showers to hits and back, without loss: every voxel that is not empty is a hit."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from foundation.data.geometry import CartesianGeometry, CylindricalGeometry, checked_coordinates, n_voxels
from foundation.errors import DataError, did_you_mean

Layers = CartesianGeometry | CylindricalGeometry


def image_shape(geometry: Layers, axes: tuple[str, ...] = ()) -> tuple[int, ...]:
    """Shape of one image whose axes are in this order; (V,) for an irregular geometry.

    Raises DataError for axes that are not the geometry's, and for an irregular geometry with another order.
    """
    order = axes or geometry.axes
    for name in order:
        if name not in geometry.axes:
            raise DataError(f"the geometry has no axis '{name}'{did_you_mean(name, geometry.axes)}")
    if sorted(order) != sorted(geometry.axes):
        raise DataError(f"axes must name {', '.join(geometry.axes)}, each once")
    shape = geometry.regular_shape
    if shape is None:
        if order != geometry.axes:
            raise DataError(f"layers with different cells have one order of voxels, {', '.join(geometry.axes)}")
        return (n_voxels(geometry),)
    return tuple(shape[geometry.axes.index(name)] for name in order)


def images_to_hits(
    values: NDArray, geometry: Layers, axes: tuple[str, ...] = (), refuse_wrong: bool = True
) -> tuple[dict[str, NDArray], NDArray[np.int64]]:
    """Hits of the voxels that are not zero, and their number per shower, int64 [B].

    values: [B, V], or [B, a, b, c] with the axes in the order of `axes` (the geometry's own where it is not given)

    The columns, [N] each, are the geometry's axes as float32 and `energy` in the type of the images; the hits of a
    shower are in the order of the image's voxels. Raises DataError for images that are not of this geometry and, unless
    the caller looks for them itself, for values that are negative or not finite.
    """
    shape = image_shape(geometry, axes)
    voxels = int(np.prod(shape))
    if values.ndim < 2 or values.shape[1:] not in ((voxels,), shape):
        wanted = " or ".join(dict.fromkeys(str(("B", *s)).replace("'", "") for s in ((voxels,), shape)))
        raise DataError(
            f"images of shape {values.shape} are not of this geometry, which has {voxels} voxels: {wanted} is expected"
        )
    if values.dtype.kind not in "fiu":
        raise DataError(f"images hold {values.dtype}, where numbers are expected")
    flat = np.ascontiguousarray(values).reshape(-1)
    filled = np.flatnonzero(flat)
    held = flat[filled]
    # NaN fails both comparisons
    if refuse_wrong and len(held) and not (held.min() > 0 and held.max() < np.inf):
        raise DataError(_wrong_value(held, filled, voxels))
    starts = np.arange(len(values) + 1) * voxels
    counts = np.diff(np.searchsorted(filled, starts))
    numbers = filled - np.repeat(starts[:-1], counts)
    columns: dict[str, NDArray] = {name: table[numbers] for name, table in _tables(geometry, axes).items()}
    columns["energy"] = held
    return columns, counts


def hits_to_images(
    columns: Mapping[str, NDArray],
    energy: NDArray,
    counts: NDArray[np.int64],
    geometry: Layers,
    axes: tuple[str, ...] = (),
) -> NDArray[np.float32]:
    """Images of B showers, float32: [B, V], or [B, a, b, c] in the order of `axes` where it is given.

    columns: the geometry's axes, [N] each; energy: [N]; counts: hits per shower, [B]

    The inverse of `images_to_hits`. Raises DataError for hits outside the geometry, for several hits in one voxel
    (`collisions.resolve` comes first), and for energies that an image cannot hold: zero, negative or not finite.
    """
    shape = image_shape(geometry, axes)
    voxels = int(np.prod(shape))
    held = np.asarray(energy).astype(np.float32)
    if len(held) and not (held.min() > 0 and held.max() < np.inf):
        at = int(np.flatnonzero(~((held > 0) & np.isfinite(held)))[0])
        owner = int(np.searchsorted(np.cumsum(counts), at, side="right"))
        raise DataError(f"shower {owner} has a hit of energy {energy[at]:g}: in an image it would be lost; remove it")
    cells = checked_coordinates(geometry, columns)
    if shape == (voxels,):
        numbers = geometry.numbers(cells)
    else:
        order = axes or geometry.axes
        numbers = np.ravel_multi_index(tuple(cells[name] for name in order), shape)
    places = np.repeat(np.arange(len(counts)) * voxels, counts) + numbers
    images = np.zeros(len(counts) * voxels, np.float32)
    images[places] = held
    if np.count_nonzero(images) < len(places):
        shared = len(places) - np.count_nonzero(images)
        raise DataError(
            f"{shared} hits share a voxel with another hit of their shower; resolve them first (sum, shift)"
        )
    return images.reshape(len(counts), *(shape if axes else (voxels,)))


@lru_cache(maxsize=8)
def _tables(geometry: Layers, axes: tuple[str, ...]) -> dict[str, NDArray[np.float32]]:
    """Coordinates of every voxel of an image, [V] each, in the image's order: no division per hit."""
    shape = image_shape(geometry, axes)
    if shape == (n_voxels(geometry),):
        tables = geometry.coordinates(np.arange(n_voxels(geometry)))
    else:
        order = axes or geometry.axes
        tables = dict(zip(order, (grid.reshape(-1) for grid in np.indices(shape)), strict=True))
    return {name: tables[name].astype(np.float32) for name in geometry.axes}


def _wrong_value(held: NDArray, filled: NDArray[np.int64], voxels: int) -> str:
    wrong = ~((held > 0) & np.isfinite(held))
    first = int(wrong.argmax())
    shower, voxel = divmod(int(filled[first]), voxels)
    return (
        f"{int(wrong.sum())} voxels are negative or not finite, the first is {held[first]:g} in voxel {voxel} of "
        f"shower {shower}"
    )
