"""From the arrays of a file to flat quantities under our names: one function per layout of a card's `format.points`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foundation.data.card_format import (
    FileFormat,
    LabelNumber,
    LabelOneHot,
    LinkedPoints,
    PaddedPoints,
    PointRows,
    RaggedPoints,
    VoxelImages,
)
from foundation.data.cards import DatasetCard
from foundation.data.formats.containers.source import Array, Ragged, Source
from foundation.data.formats.quantities import Quantities
from foundation.data.formats.voxels import images_to_hits
from foundation.data.ragged import to_offsets
from foundation.errors import DataError

Counts = NDArray[np.int64]
NUMBER = r"(-?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)"


@dataclass(frozen=True)
class Part:
    """Entries of a file that are read alike: the key of the points, and numbers that the names of key and file hold."""

    points_key: str | None
    constants: dict[str, float]
    entries: int


def parts_of(source: Source, card: DatasetCard, form: FileFormat) -> list[Part]:
    """The parts of a file in order: one, or one per key where a key has numbers in its name."""
    constants = {**form.constants, **numbers_in_name(form.from_file_name, source.path.name, source.path)}
    if not isinstance(form.points, VoxelImages) or "{" not in form.points.key:
        points_key = form.points.key if isinstance(form.points, VoxelImages) else None
        return [Part(points_key, constants, source.entries(keys_of(form, points_key)))]
    found = []
    for key in source.keys:
        numbers = _numbers(form.points.key, key)
        if numbers is not None:
            found.append((tuple(numbers.values()), key, numbers))
    if not found:
        raise DataError(f"{source.path}: no key is like '{form.points.key}', as card '{card.name}' says")
    return [
        Part(key, {**constants, **numbers}, source.entries(keys_of(form, key))) for _, key, numbers in sorted(found)
    ]


def numbers_in_name(pattern: str | None, name: str, path: Path) -> dict[str, float]:
    """Numbers where the pattern has {quantity}; DataError when the name is not like the pattern."""
    if pattern is None:
        return {}
    numbers = _numbers(pattern, name)
    if numbers is None:
        raise DataError(f"{path}: the name of the file should be like '{pattern}', as numbers are read from it")
    return numbers


def _numbers(pattern: str, name: str) -> dict[str, float] | None:
    pieces = re.split(r"\{(\w+)\}", pattern)
    expression = "".join(NUMBER if i % 2 else re.escape(piece).replace(r"\*", ".*") for i, piece in enumerate(pieces))
    match = re.fullmatch(expression, name)
    return None if match is None else {k: float(v) for k, v in zip(pieces[1::2], match.groups(), strict=True)}


def keys_of(form: FileFormat, points_key: str | None = None) -> list[str]:
    """Every key that is read, without repeats; `points_key` instead of a key of images that has numbers in its name."""
    points = form.points
    if isinstance(points, LinkedPoints):
        keys = [points.object_index, points.point_index, *points.keys.values(), *points.link_keys.values()]
    elif isinstance(points, VoxelImages):
        keys = [points_key or points.key]
    elif isinstance(points, PointRows):
        keys = [points.key]
    else:
        keys = [*([points.key] if isinstance(points, PaddedPoints) and points.key else []), *points.keys.values()]
    return list(dict.fromkeys([*keys, *form.objects.values(), *label_keys(form)]))


def label_keys(form: FileFormat) -> list[str]:
    """Keys that labels are read from."""
    if isinstance(form.label, LabelOneHot):
        return list(form.label.one_hot.values())
    return [form.label.key] if isinstance(form.label, LabelNumber) else []


@dataclass(frozen=True)
class Raw:
    """What a part of a file holds in a range of entries, in the file's own units: quantities, and arrays of labels."""

    quantities: Quantities
    labels: dict[str, NDArray]


def read_raw(source: Source, card: DatasetCard, form: FileFormat, part: Part, start: int, stop: int) -> Raw:
    """Entries start to stop of a part. Raises DataError when the arrays are not laid out as the card says."""
    arrays = source.read(keys_of(form, part.points_key), start, stop)
    try:
        if isinstance(form.points, LinkedPoints):
            return _linked(form, form.points, arrays, part)
        objects = {name: one_per_object(arrays[key], key) for name, key in form.objects.items()}
        labels = {key: one_per_object(arrays[key], key) for key in label_keys(form)}
        points, counts = _points(card, form, arrays, objects, part)
    except DataError as error:
        raise DataError(f"{source.path}: {error}") from None
    objects |= {name: np.full(len(counts), value) for name, value in part.constants.items()}
    return Raw(Quantities(points, objects, counts, form.axis == "constituents"), labels)


def one_per_object(array: Array, key: str) -> NDArray:
    """An array [B] or [B, 1] as [B]."""
    if isinstance(array, Ragged):
        raise DataError(f"'{key}' has vectors of different lengths, where one number per object is expected")
    if array.ndim == 1:
        return array
    if array.ndim == 2 and array.shape[1] == 1:
        return array[:, 0]
    raise DataError(f"'{key}' has shape [n, {', '.join(map(str, array.shape[1:]))}], where one number is expected")


def _points(
    card: DatasetCard, form: FileFormat, arrays: Mapping[str, Array], objects: Mapping[str, NDArray], part: Part
) -> tuple[dict[str, NDArray], Counts]:
    points = form.points
    if isinstance(points, RaggedPoints):
        return _ragged({name: arrays[key] for name, key in points.keys.items()}, points.keys)
    if isinstance(points, PaddedPoints):
        return _padded(points, arrays, objects)
    if isinstance(points, PointRows):
        return _rows(points, arrays[points.key], objects)
    if card.geometry is None:
        raise DataError(f"card '{card.name}' has images of voxels, but no geometry")
    assert isinstance(points, VoxelImages) and part.points_key is not None
    images = arrays[part.points_key]
    if isinstance(images, Ragged):
        raise DataError(f"'{part.points_key}' has vectors of different lengths, where images are expected")
    # Wrong values become hits here: the reader finds them in all layouts alike, and can skip their objects.
    columns, counts = images_to_hits(images, card.geometry, points.axes, refuse_wrong=False)
    columns[points.value] = columns.pop("energy")
    return columns, counts


def _ragged(arrays: Mapping[str, Array], keys: Mapping[str, str]) -> tuple[dict[str, NDArray], Counts]:
    values: dict[str, NDArray] = {}
    first: tuple[str, Counts] | None = None
    for name, array in arrays.items():
        if not isinstance(array, Ragged):
            raise DataError(f"'{keys[name]}' has one number per object, where a vector per object is expected")
        if first is None:
            first = (name, array.counts)
        elif not np.array_equal(first[1], array.counts):
            at = int((first[1] != array.counts).argmax())
            raise DataError(
                f"object {at} of the range has {first[1][at]} values of '{keys[first[0]]}' but "
                f"{array.counts[at]} of '{keys[name]}'"
            )
        values[name] = array.values
    assert first is not None  # the schema wants at least one key
    return values, first[1]


def _padded(
    points: PaddedPoints, arrays: Mapping[str, Array], objects: Mapping[str, NDArray]
) -> tuple[dict[str, NDArray], Counts]:
    """The real places of padded arrays, in their order."""
    columns = _columns_of_one_array(points, arrays) if points.key else {n: arrays[k] for n, k in points.keys.items()}
    shape = None
    for name, array in columns.items():
        if isinstance(array, Ragged) or array.ndim != 2 or (shape is not None and array.shape != shape):
            raise DataError(f"'{points.keys.get(name, points.key)}' is not an array [objects, places] like the others")
        shape = array.shape
    assert shape is not None
    if points.real is not None:
        real = np.asarray(columns[points.real]) != 0
    else:
        assert points.count is not None
        place = np.arange(shape[1]) if points.empty == "last" else np.arange(shape[1])[::-1]
        real = place < _number_of_points(objects, points.count, shape[1])[:, None]
    skip = {""} | ({points.real} if points.keep_mask else set())
    values = {name: np.asarray(array)[real] for name, array in columns.items() if name not in skip}
    return values, real.sum(axis=1).astype(np.int64)


def _number_of_points(objects: Mapping[str, NDArray], name: str, places: int) -> Counts:
    if name not in objects:
        raise DataError(f"the number of points '{name}' is not among the quantities of the objects")
    number = np.asarray(objects[name])
    if len(number) and not (number.min() >= 0 and number.max() <= places and np.array_equal(number, np.rint(number))):
        raise DataError(f"the numbers of points '{name}' should be whole, from 0 to {places}: there are others")
    return number.astype(np.int64)


def _columns_of_one_array(points: PaddedPoints, arrays: Mapping[str, Array]) -> dict[str, Array]:
    assert points.key is not None
    array = arrays[points.key]
    if isinstance(array, Ragged):
        raise DataError(f"'{points.key}' has vectors of different lengths, where a padded array is expected")
    wanted = len(points.columns)
    if "place" not in points.axes:
        assert points.places is not None
        if array.ndim != 2 or array.shape[1] < points.places * wanted:
            raise DataError(
                f"'{points.key}' has shape {list(array.shape)}; {points.places} places of {wanted} columns are expected"
            )
        array = array[:, : points.places * wanted].reshape(len(array), points.places, wanted)
    elif array.ndim != 3:
        raise DataError(f"'{points.key}' has {array.ndim} axes, where {', '.join(points.axes)} are expected")
    else:
        array = np.moveaxis(array, [points.axes.index(a) for a in ("object", "place", "column")], [0, 1, 2])
    if array.shape[2] < wanted:
        raise DataError(
            f"'{points.key}' has {array.shape[2]} columns; {wanted} are expected: {_listed(points.columns)}"
        )
    return {name: array[:, :, i] for i, name in enumerate(points.columns) if name}


def _listed(names: Sequence[str]) -> str:
    return ", ".join(name or "(unused)" for name in names)


def _rows(points: PointRows, array: Array, objects: Mapping[str, NDArray]) -> tuple[dict[str, NDArray], Counts]:
    width = len(points.columns)
    if not isinstance(array, Ragged):
        raise DataError(f"'{points.key}' is a dense array, where a vector per object is expected")
    counts, rest = np.divmod(array.counts, width)
    if rest.any():
        at = int(rest.argmax())
        raise DataError(f"'{points.key}' of object {at} has {array.counts[at]} numbers: no multiple of {width} columns")
    if "n_points" in objects and not np.array_equal(counts, objects["n_points"]):
        at = int((counts != objects["n_points"]).argmax())
        raise DataError(
            f"'{points.key}' of object {at} has {array.counts[at]} numbers for {int(objects['n_points'][at])} points, "
            f"not {width} columns each: {_listed(points.columns)}"
        )
    table = array.values.reshape(-1, width)
    return {name: table[:, i] for i, name in enumerate(points.columns) if name}, counts


def _linked(form: FileFormat, points: LinkedPoints, arrays: Mapping[str, Array], part: Part) -> Raw:
    """Objects of events, and the event's particles that each of them points at."""
    links, of_event = _ragged(
        {key: arrays[key] for key in (points.object_index, points.point_index, *points.link_keys.values())},
        {key: key for key in arrays},
    )
    particles, n_particles = _ragged({n: arrays[k] for n, k in points.keys.items()}, points.keys)
    in_event = {**form.objects, **{key: key for key in label_keys(form)}}
    if not in_event:
        raise DataError("linked points need at least one quantity of the objects, to know how many there are")
    objects, n_objects = _ragged({n: arrays[k] for n, k in in_event.items()}, in_event)
    event = np.repeat(np.arange(len(of_event)), of_event)
    owner = _global_index(links[points.object_index], event, n_objects, points.object_index)
    row = _global_index(links[points.point_index], event, n_particles, points.point_index)
    order = np.argsort(owner, kind="stable")
    values = {name: array[row[order]] for name, array in particles.items()}
    values |= {name: links[key][order] for name, key in points.link_keys.items()}
    counts = np.bincount(owner, minlength=int(n_objects.sum())).astype(np.int64)
    labels = {key: objects.pop(key) for key in label_keys(form)}
    objects |= {name: np.full(len(counts), value) for name, value in part.constants.items()}
    return Raw(Quantities(values, objects, counts, form.axis == "constituents"), labels)


def _global_index(index: NDArray, event: Counts, sizes: Counts, key: str) -> Counts:
    """Rows of the flat table, from indices that count within an event of these sizes."""
    index = index.astype(np.int64)
    bad = (index < 0) | (index >= sizes[event])
    if bad.any():
        at = int(bad.argmax())
        raise DataError(
            f"'{key}' points at {index[at]} in an event with {sizes[event[at]]}: {int(bad.sum())} such links"
        )
    return to_offsets(sizes)[event] + index
