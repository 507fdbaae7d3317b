"""Read files of any dataset as its card describes them: ranges of objects become point clouds, and a report says what
was done on the way. Nothing is dropped without being counted.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foundation.data.by_card import clouds_and_moved
from foundation.data.cards import DatasetCard
from foundation.data.files import is_point_cloud_file, point_cloud_file_size, read_point_clouds
from foundation.data.formats.containers.opening import container_of, open_source
from foundation.data.formats.containers.source import Source
from foundation.data.formats.conversions import convert, labels_of
from foundation.data.formats.layouts import Part, keys_of, parts_of, read_raw
from foundation.data.formats.read_report import ReadReport
from foundation.data.formats.soundness import points_outside, wrong_objects
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError, did_you_mean

# Arrays of a range as they lie in the file, in bytes. All that is made of them takes a few times as much.
RANGE_BYTES = 96 * 2**20
MAX_RANGE = 200_000


@dataclass(frozen=True)
class Range:
    """Objects start to stop (exclusive) of a file."""

    start: int
    stop: int


class ObjectFile(ABC):
    """A file of objects, open for reading range by range as a card describes them. A context manager."""

    card: DatasetCard
    path: Path
    objects: int
    """Objects in the file, before the card's selection."""

    def __enter__(self) -> ObjectFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Let go of the file."""

    @abstractmethod
    def ranges(self) -> list[Range]:
        """Ranges of objects that fit into memory; they follow from the file and the card alone."""

    @abstractmethod
    def _chunks(self, start: int, stop: int) -> Iterator[Chunk]:
        """Objects start to stop, in one piece or several."""

    def read(self, start: int, stop: int, on_bad: str = "error") -> tuple[PointClouds, ReadReport]:
        """Point clouds of objects start to stop, and what was met.

        on_bad: "error" raises DataError at an object that cannot be right (NaN, negative energy, a jet without
        constituents); "skip" leaves it out and counts it; "keep" counts it alone, for `checking`.
        """
        clouds, report, _ = self.read_kept(start, stop, on_bad)
        return clouds, report

    def read_kept(
        self, start: int, stop: int, on_bad: str = "error"
    ) -> tuple[PointClouds, ReadReport, NDArray[np.bool_]]:
        """As `read`, and which of the objects start to stop are among the clouds, bool [stop - start]."""
        done = [self._checked(chunk, on_bad) for chunk in self._chunks(start, stop)]
        if not done:
            raise DataError(f"{self.path}: objects {start} to {stop} are asked for, but it holds {self.objects}")
        clouds, reports, kept = zip(*done, strict=True)
        together = clouds[0] if len(clouds) == 1 else PointClouds.concatenate(clouds)
        return together, sum(reports, ReadReport()), np.concatenate(kept)

    def _checked(self, chunk: Chunk, on_bad: str) -> tuple[PointClouds, ReadReport, NDArray[np.bool_]]:
        clouds, card = chunk.clouds, self.card
        left_out, keep = _selected(card, chunk.of_objects, len(clouds))
        bad = {what: keep & mask for what, mask in wrong_objects(card, clouds).items() if (keep & mask).any()}
        if bad and on_bad == "error":
            what, mask = next(iter(bad.items()))
            raise DataError(
                f"{self.path}: {int(mask.sum())} objects with {what}, the first is number "
                f"{chunk.first + int(mask.argmax())}; correct the file, or skip such objects with --skip-bad "
                "(skip_bad in a recipe)"
            )
        for mask in bad.values() if on_bad != "keep" else ():
            keep &= ~mask
        if not keep.all():
            clouds = clouds.select(keep)
        report = ReadReport(
            objects=len(clouds),
            points=len(clouds.points),
            missing=chunk.missing,
            outside=points_outside(card, clouds),
            left_out=left_out,
            bad={what: int(mask.sum()) for what, mask in bad.items()},
            empty=int((clouds.counts == 0).sum()),
            reordered=chunk.moved,
            unused_keys=chunk.unused_keys,
        )
        return clouds, report, keep


@dataclass(frozen=True)
class Chunk:
    """Objects as a card describes them, before anything is left out; `first` is the number of the first in its file."""

    clouds: PointClouds
    first: int
    of_objects: Mapping[str, NDArray]
    moved: int
    missing: Mapping[str, int] = field(default_factory=dict)
    unused_keys: tuple[str, ...] = ()


class DatasetFile(ObjectFile):
    """A file in the format of its card."""

    def __init__(self, card: DatasetCard, path: Path) -> None:
        if card.format is None:
            raise DataError(
                f"{path}: card '{card.name}' does not say how files are laid out, so it reads only files of point "
                "clouds that this platform wrote"
            )
        self.card, self.path, self.form = card, path, card.format
        container = self.form.container_of_file(container_of(path))
        self.source: Source = open_source(path, container, self.form.tree)
        try:
            self.parts = parts_of(self.source, card, self.form)
        except BaseException:
            self.source.close()
            raise
        self.objects = sum(part.entries for part in self.parts)

    def close(self) -> None:
        self.source.close()

    def ranges(self) -> list[Range]:
        ranges, first = [], 0
        for part in self.parts:
            size = self.source.bytes_per_entry(keys_of(self.form, part.points_key))
            ranges += _ranges(first, part.entries, size)
            first += part.entries
        return ranges

    def _chunks(self, start: int, stop: int) -> Iterator[Chunk]:
        first = 0
        for part in self.parts:
            a, b = max(start - first, 0), min(stop - first, part.entries)
            if a < b:
                yield self._chunk(part, a, b, first)
            first += part.entries

    def _chunk(self, part: Part, start: int, stop: int, first: int) -> Chunk:
        raw = read_raw(self.source, self.card, self.form, part, start, stop)
        quantities, card = raw.quantities, self.card
        try:
            missing = convert(card, self.form, quantities)
            labels = labels_of(card, self.form.label, raw.labels, len(quantities.counts), self.path)
            columns = {name: quantities.point(name) for name in card.feature_names}
            of_objects = {name: quantities.object(name) for name in _object_names(card)}
            clouds, moved = clouds_and_moved(card, columns, quantities.owners, labels, of_objects)
        except DataError as error:
            raise DataError(f"{self.path}, objects {first + start} to {first + stop - 1}: {error}") from None
        return Chunk(clouds, first + start, of_objects, moved, missing, self._unused())

    def _unused(self) -> tuple[str, ...]:
        if any("{" in key for key in keys_of(self.form)):
            return ()
        # "table[3]" is a column of the key "table".
        used = {key.partition("[")[0] for key in keys_of(self.form)}
        return tuple(key for key in self.source.keys if key.partition("[")[0] not in used)


class PlatformFile(ObjectFile):
    """A file of point clouds that `write_point_clouds` wrote; features are taken by name, in the card's units."""

    def __init__(self, card: DatasetCard, path: Path) -> None:
        self.card, self.path = card, path
        self.size = point_cloud_file_size(path)
        self.objects = self.size.clouds

    def close(self) -> None:
        """Nothing is kept open between ranges."""

    def ranges(self) -> list[Range]:
        return _ranges(0, self.objects, self.size.bytes_per_cloud)

    def _chunks(self, start: int, stop: int) -> Iterator[Chunk]:
        stop = min(stop, self.objects)
        if start >= stop:
            return
        clouds, card = read_point_clouds(self.path, start, stop), self.card
        for name, unit in zip(card.feature_names, card.feature_units, strict=True):
            if name in clouds.features and (found := clouds.units[clouds.features.index(name)]) != unit:
                raise DataError(f"{self.path}: feature '{name}' is in {found}, but the card says {unit}")
        if len(clouds) and clouds.labels.max() >= len(card.classes):
            last = len(card.classes)
            raise DataError(f"{self.path}: label {clouds.labels.max()} is not one of the card's {last} classes")
        columns = {name: clouds.feature(name) for name in clouds.features}
        of_objects = {name: clouds.condition(name) for name in clouds.condition_names}
        try:
            ordered, moved = clouds_and_moved(card, columns, clouds.owners, clouds.labels, of_objects)
        except DataError as error:
            raise DataError(f"{self.path}: {error}") from None
        unused = [n for n in clouds.features if n not in card.feature_names]
        yield Chunk(ordered, start, of_objects, moved, unused_keys=tuple(unused))


def open_file(card: DatasetCard, path: Path) -> ObjectFile:
    """A file of objects: in the card's format, or written by this platform.

    Raises DataError when there is no such file, it is damaged, or it is not laid out as the card says.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    return PlatformFile(card, path) if is_point_cloud_file(path) else DatasetFile(card, path)


def _ranges(first: int, entries: int, bytes_per_entry: float) -> list[Range]:
    step = int(np.clip(RANGE_BYTES / max(bytes_per_entry, 1.0), 1, MAX_RANGE))
    return [Range(first + a, first + min(a + step, entries)) for a in range(0, entries, step)]


def _object_names(card: DatasetCard) -> list[str]:
    return [*card.object_units, *card.selection]


def plan(card: DatasetCard, path: Path) -> list[Range]:
    """Ranges of objects of a file that fit into memory; they follow from the file and the card alone."""
    with open_file(card, path) as file:
        return file.ranges()


def read_range(
    card: DatasetCard, path: Path, start: int, stop: int, on_bad: str = "error"
) -> tuple[PointClouds, ReadReport]:
    """Objects start to stop of a file. See `DatasetFile.read`."""
    with open_file(card, path) as file:
        return file.read(start, stop, on_bad)


def read_in_ranges(card: DatasetCard, path: Path, on_bad: str = "error") -> Iterator[tuple[PointClouds, ReadReport]]:
    """The objects of a file, a range at a time."""
    with open_file(card, path) as file:
        for part in file.ranges():
            yield file.read(part.start, part.stop, on_bad)


def read_file(card: DatasetCard, path: Path, on_bad: str = "error") -> tuple[PointClouds, ReadReport]:
    """All objects of a file. Raises DataError when there are none."""
    parts = list(read_in_ranges(card, path, on_bad))
    if not parts:
        raise DataError(f"{path}: holds no objects")
    return PointClouds.concatenate([c for c, _ in parts]), sum((r for _, r in parts), ReadReport())


def read_first(card: DatasetCard, paths: Sequence[Path], wanted: int) -> tuple[PointClouds, ReadReport]:
    """The first objects of the files, as many of each, and what was met; objects that are wrong are left out, counted.

    Raises DataError when there are no objects.
    """
    parts, report, left = list[PointClouds](), ReadReport(), wanted
    for number, path in enumerate(paths):
        share = math.ceil(left / (len(paths) - number))
        with open_file(card, path) as file:
            for part in file.ranges():
                if part.start < share:
                    clouds, seen = file.read(part.start, min(part.stop, share), on_bad="skip")
                    parts.append(clouds)
                    report, left = report + seen, left - len(clouds)
    if not sum(map(len, parts)):
        raise DataError(f"{paths[0]}: holds no objects" + (f" ({'; '.join(report.lines()[1:])})" if report.bad else ""))
    return PointClouds.concatenate(parts), report


def with_features(card: DatasetCard, names: tuple[str, ...], ordered: bool = True) -> DatasetCard:
    """The card with these features only, in the card's order; all of them where no name is given.

    ordered: the features must be enough to order the points. Raises DataError for unknown names.
    """
    for name in names:
        if name not in card.feature_names:
            raise DataError(f"card '{card.name}' has no feature '{name}'{did_you_mean(name, card.feature_names)}")
    if not names:
        return card
    lacking = [key.lstrip("-") for key in card.order if key.lstrip("-") not in names]
    if ordered and lacking:
        raise DataError(f"card '{card.name}' orders its points by '{lacking[0]}': add it to the features")
    kept = tuple(f for f in card.features if f.name in names)
    order = tuple(key for key in card.order if key.lstrip("-") in names)
    return card.model_copy(update={"features": kept, "order": order})


def _selected(
    card: DatasetCard, of_objects: Mapping[str, NDArray], count: int
) -> tuple[dict[str, int], NDArray[np.bool_]]:
    keep, left_out = np.ones(count, bool), {}
    for name, (low, high) in card.selection.items():
        outside = keep & ~((of_objects[name] >= low) & (of_objects[name] <= high))
        if outside.any():
            left_out[name] = int(outside.sum())
            keep &= ~outside
    return left_out, keep
