"""Write point clouds, truth or generated, in the format of a dataset card: the card's `format`, read backwards.

What the clouds do not carry is derived (px of pT and phi, the jet's mass of its constituents) or named as missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foundation.data.card_format import (
    ByValue,
    FileFormat,
    LinkedPoints,
    OneHot,
    PaddedPoints,
    PointRows,
    RaggedPoints,
    VoxelImages,
)
from foundation.data.cards import DatasetCard
from foundation.data.collisions import resolve
from foundation.data.formats.containers.source import Array, Ragged
from foundation.data.formats.containers.writing import ArrayWriter
from foundation.data.formats.conversions import category_arrays, label_arrays, steps_of
from foundation.data.formats.quantities import Quantities
from foundation.data.formats.units import unit_factor
from foundation.data.formats.voxels import hits_to_images
from foundation.data.geometry import n_voxels
from foundation.data.point_clouds import PointClouds
from foundation.data.ragged import ragged_arange
from foundation.errors import DataError

VOXELS_AT_ONCE = 50_000_000
"""Voxels of the images that are in memory together, 8 bytes each at most."""


def write_file(
    card: DatasetCard,
    clouds: PointClouds | Iterable[PointClouds],
    path: Path,
    assume: Mapping[str, float] | None = None,
    source: DatasetCard | None = None,
    places: int | None = None,
    attributes: Mapping[str, str] | None = None,
) -> list[str]:
    """Write the clouds, in one piece or part by part, to one file in the card's format; it appears complete or not.

    assume: quantity -> value for all objects, where the clouds do not have it
    source: the card that the clouds are of, where it is another one: classes and categories are matched by name
    places: places of an object in padded arrays whose size the card leaves open; that of the longest where all clouds
            are given in one piece
    attributes: text that is kept in the file, where the container has a place for it (`ArrayWriter`)

    Returns what a user should know, a line each: columns that are left out, hits that were merged. Raises DataError
    when the format needs something that neither the clouds have nor follows from what they have.
    """
    form = writable_format(card)
    parts = _pieces(card, form, clouds) if isinstance(clouds, PointClouds) else clouds
    left_out: dict[str, None] = {}
    types: dict[str, np.dtype] = {}
    moved = written = 0
    with ArrayWriter(path, form.container, form.tree, attributes) as file:
        for part in parts:
            if isinstance(form.points, VoxelImages):
                assert card.geometry is not None  # writable_format refuses images without
                part, of_part = resolve(part, card.geometry, form.collisions)
                moved += of_part
            numbers = _InFile(card, form, _our_quantities(card, part, assume or {}, source or card))
            arrays = _points(card, form, numbers, places) | _objects(card, form, numbers)
            arrays |= label_arrays(card, form.label, _matched_labels(card, part, source or card))
            file.append({key: _as_before(types, key, _precise(array, form)) for key, array in arrays.items()})
            left_out |= dict.fromkeys(numbers.left_out)
            written += len(part)
        if not written:
            raise DataError(f"{path}: there are no objects to write")
    notes = [f"left out, as the point clouds have nothing to fill them with: {', '.join(left_out)}"] if left_out else []
    if moved:
        what = "added to another one there" if form.collisions == "sum" else "moved to the nearest free voxel"
        notes.append(f"{moved:,} hits shared a voxel: {what}")
    return notes


def _pieces(card: DatasetCard, form: FileFormat, clouds: PointClouds) -> Iterator[PointClouds]:
    """Pieces of VOXELS_AT_ONCE of what becomes images; all else in one, so that its arrays are padded alike."""
    if not isinstance(form.points, VoxelImages) or card.geometry is None:
        yield clouds
        return
    step = max(1, VOXELS_AT_ONCE // n_voxels(card.geometry))
    for start in range(0, max(1, len(clouds)), step):
        yield clouds.select(slice(start, start + step))


def _as_before(types: dict[str, np.dtype], key: str, array: Array) -> Array:
    """The array in the type that it had in the first part: whether a number needs double precision to come back as it
    was depends on the number, and a file has one type. Single precision is then off by its last bit, at most."""
    values = array.values if isinstance(array, Ragged) else array
    if values.dtype.kind != "f":
        return array
    values = values.astype(types.setdefault(key, values.dtype), copy=False)
    return Ragged(values, array.counts) if isinstance(array, Ragged) else values


def writable_format(card: DatasetCard) -> FileFormat:
    """The card's format. Raises DataError when there is none, or one that can only be read."""
    form = card.format
    if form is None:
        raise DataError(f"card '{card.name}' does not say how files are laid out: nothing can be written in its format")
    if isinstance(form.points, LinkedPoints) or (isinstance(form.points, VoxelImages) and "{" in form.points.key):
        raise DataError(f"files of '{card.name}' ({form.points.layout}) can be read but not written")
    if isinstance(form.points, PaddedPoints) and form.points.key in {
        k.partition("[")[0] for k in form.objects.values()
    }:
        raise DataError(
            f"files of '{card.name}' can be read but not written: points and quantities of the object share one array"
        )
    if isinstance(form.points, VoxelImages) and card.geometry is None:
        raise DataError(f"card '{card.name}' has images of voxels, but no geometry")
    return form


def leaves_places_open(card: DatasetCard) -> bool:
    """Whether the card leaves it to the writer how many places its padded arrays have."""
    return (
        card.format is not None and isinstance(card.format.points, PaddedPoints) and card.format.points.places is None
    )


class _InFile:
    """Quantities in the file's conventions, by our name, made from clouds in ours."""

    def __init__(self, card: DatasetCard, form: FileFormat, quantities: Quantities) -> None:
        self.card, self.quantities = card, quantities
        self.left_out: list[str] = []
        self.steps = steps_of(card, form)
        self.said_by: dict[str, str] = {}
        for feature, rule in form.categories.items():
            for name in rule.one_hot.values() if isinstance(rule, OneHot) else [rule.of]:
                self.said_by[name] = feature
        self.rules: Mapping[str, OneHot | ByValue] = form.categories

    def point(self, name: str) -> NDArray:
        """A quantity of the points [N]."""
        if name not in self.quantities.points and name in self.said_by:
            feature = next(f for f in self.card.features if f.name == self.said_by[name])
            return category_arrays(feature, self.rules[feature.name], self.quantities.point(feature.name))[name]
        return self._backward(name, self.quantities.point(name), True)

    def object(self, name: str) -> NDArray:
        """A quantity of the objects [B]."""
        return self._backward(name, self.quantities.object(name), False)

    def _backward(self, name: str, values: NDArray, of_points: bool) -> NDArray:
        step = self.steps.get(name)
        if step is None:
            return np.asarray(values, np.float32)

        def of_object(other: str) -> NDArray:
            found = self.quantities.object(other)
            return found[self.quantities.owners] if of_points else found

        return step.backward(values, of_object)

    def has_point(self, name: str) -> bool:
        """Whether `point` would give it."""
        return name in self.said_by or self.quantities.has_point(name)


def _our_quantities(
    card: DatasetCard, clouds: PointClouds, assume: Mapping[str, float], source: DatasetCard
) -> Quantities:
    """The clouds' features and object-level quantities in the card's units, categories in the card's order."""
    units = card.units
    points: dict[str, NDArray] = {}
    for name, unit in zip(clouds.features, clouds.units, strict=True):
        points[name] = _in_unit(clouds.feature(name), unit, units.get(name, unit))
    for feature in card.features:
        other = next((f for f in source.features if f.name == feature.name), None)
        if feature.kind == "category" and other is not None and other.categories != feature.categories:
            points[feature.name] = _matched_categories(points[feature.name], other.categories, feature.categories, card)
    objects: dict[str, NDArray] = {}
    for name, unit in zip(clouds.condition_names, clouds.condition_units, strict=True):
        values = clouds.condition(name)
        if not np.isnan(values).any():
            objects[name] = _in_unit(values, unit, units.get(name, unit))
    objects |= {name: np.full(len(clouds), value) for name, value in assume.items() if name not in objects}
    return Quantities(points, objects, clouds.counts)


def _in_unit(values: NDArray, unit: str, wanted: str) -> NDArray:
    return values if unit == wanted else np.asarray(values, np.float64) * unit_factor(unit, wanted)


def _matched_categories(values: NDArray, have: tuple[str, ...], want: tuple[str, ...], card: DatasetCard) -> NDArray:
    lacking = [have[i] for i in np.unique(values.astype(int)) if have[i] not in want]
    if lacking:
        raise DataError(f"card '{card.name}' has no category '{lacking[0]}' (it has {', '.join(want)})")
    table = np.array([want.index(name) if name in want else -1 for name in have], np.float32)
    return table[values.astype(int)]


def _matched_labels(card: DatasetCard, clouds: PointClouds, source: DatasetCard) -> NDArray[np.int64]:
    if source.classes == card.classes:
        return clouds.labels
    table = np.array([card.classes.index(c) if c in card.classes else -1 for c in source.classes] + [-1], np.int64)
    return table[clouds.labels]


def _points(card: DatasetCard, form: FileFormat, files: _InFile, places: int | None) -> dict[str, Array]:
    points, counts = form.points, files.quantities.counts
    if isinstance(points, VoxelImages):
        return {points.key: _images(card, points, files)}
    if isinstance(points, RaggedPoints):
        lacking = [key for name, key in points.keys.items() if not files.has_point(name)]
        if len(lacking) == len(points.keys):
            _refuse(card, ["any of " + ", ".join(points.keys)])
        files.left_out += lacking
        return {key: Ragged(files.point(n), counts) for n, key in points.keys.items() if files.has_point(n)}
    assert isinstance(points, PaddedPoints | PointRows)  # writable_format refuses the others
    names = [*points.keys] if isinstance(points, PaddedPoints) and points.key is None else [*points.columns]
    mask = points.real if isinstance(points, PaddedPoints) and points.keep_mask else None
    # A column without a name is one that the card does not read.
    files.left_out += [f"column {i} of '{points.key}' (zeros are written)" for i, n in enumerate(names) if not n]
    wanted = [n for n in names if n and n != mask]
    _refuse(card, [n for n in wanted if not files.has_point(n)])
    columns = {n: files.point(n) for n in wanted}
    if mask is not None:
        columns[mask] = np.ones(int(counts.sum()), np.float32)
    nothing = np.zeros(int(counts.sum()), np.float32)
    table = np.stack([np.asarray(columns.get(n, nothing), np.float32) for n in names], axis=1)
    if isinstance(points, PointRows):
        return {points.key: Ragged(table.reshape(-1), counts * len(names))}
    return _padded(card, points, table, counts, places)


def _padded(
    card: DatasetCard, points: PaddedPoints, table: NDArray, counts: NDArray[np.int64], places: int | None
) -> dict[str, Array]:
    longest = int(counts.max()) if len(counts) else 0
    places = points.places or places or longest
    if longest > places:
        raise DataError(
            f"files of '{card.name}' have {places} places, but an object has {longest} points: "
            "leave points out before writing, if that is what you want"
        )
    array = np.zeros((len(counts), places, table.shape[1]), np.float32)
    # Where the empty places come first, each object's points end at the last place.
    before = np.repeat(places - counts, counts) if points.empty == "first" else 0
    array[np.repeat(np.arange(len(counts)), counts), before + ragged_arange(counts)] = table
    if points.key is None:
        return {key: array[:, :, i] for i, key in enumerate(points.keys.values())}
    if "place" not in points.axes:
        return {points.key: array.reshape(len(array), -1)}
    return {points.key: np.moveaxis(array, [0, 1, 2], [points.axes.index(a) for a in ("object", "place", "column")])}


def _precise(array: Array, form: FileFormat) -> Array:
    """The array in float64 where the format has that; whole numbers stay as they are."""
    if form.precision == "float32":
        return array
    if isinstance(array, Ragged):
        return Ragged(array.values.astype(np.float64), array.counts)
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def _images(card: DatasetCard, points: VoxelImages, files: _InFile) -> NDArray:
    assert card.geometry is not None
    coordinates = {name: files.quantities.point(name) for name in card.geometry.axes}
    return hits_to_images(coordinates, files.point(points.value), files.quantities.counts, card.geometry, points.axes)


def _objects(card: DatasetCard, form: FileFormat, files: _InFile) -> dict[str, Array]:
    """Arrays of object-level quantities, by key."""
    count = form.points.count if isinstance(form.points, PaddedPoints) else None
    if count is not None:
        files.quantities.objects[count] = files.quantities.counts
    _refuse(card, [name for name in form.objects if not files.quantities.has_object(name)])
    return {key: files.object(name) for name, key in form.objects.items()}


def _refuse(card: DatasetCard, lacking: list[str]) -> None:
    if lacking:
        raise DataError(
            f"files of '{card.name}' need {', '.join(lacking)}, which the point clouds have not, nor anything that it "
            f"follows from; a value for all objects can be given: --assume {lacking[0]}=0"
        )
