"""What is this file? Its arrays, the cards that describe it, and with the best of them a first look at the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foundation.data.cards import DatasetCard, card_paths, load_card
from foundation.data.describe.text_table import table_lines
from foundation.data.files import is_point_cloud_file, point_cloud_file_size, read_point_clouds
from foundation.data.formats.reading import open_file
from foundation.data.inspect import sanity
from foundation.data.inspect.card_fit import NEAR, Fit, fit
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError

FIRST_OBJECTS = 2000
"""Objects that the statistics are made of: the first ones of the file."""
SHOWN_MISSES = 3
SHOWN_KEYS = 60
SHOWN_CLASSES = 12


@dataclass(frozen=True)
class FeatureLook:
    """First statistics of a feature: its smallest, median and largest finite value, what is not finite or outside."""

    name: str
    unit: str
    low: float
    median: float
    high: float
    not_finite: int
    outside: int
    """Points outside the card's range."""


@dataclass(frozen=True)
class ObjectLook:
    """First statistics of the objects."""

    looked_at: int
    in_file: int
    points: tuple[int, float, int]
    """Fewest, median and most points per object."""
    classes: Mapping[str, int]


@dataclass(frozen=True)
class Inspection:
    """All that is found out about a file."""

    path: Path
    container: str
    arrays: Mapping[str, str]
    """Key -> type and shape in words."""
    fits: tuple[Fit, ...] = ()
    """Cards that fit, the best first, then near misses."""
    card: str | None = None
    """Card that the statistics are made with."""
    features: tuple[FeatureLook, ...] = ()
    objects: ObjectLook | None = None
    notes: tuple[str, ...] = ()
    """What reading counted: values that mean none, objects that are wrong."""
    warnings: tuple[str, ...] = ()
    """Numbers that do not look like what the card says."""

    def lines(self) -> list[str]:
        """For a terminal."""
        lines = [f"{self.path}: {self.container}, {len(self.arrays)} arrays", ""]
        shown = list(self.arrays.items())[:SHOWN_KEYS]
        lines += table_lines(("key", "type and shape"), shown)
        if len(shown) < len(self.arrays):
            lines.append(f"... and {len(self.arrays) - len(shown)} more")
        good, near = [f for f in self.fits if f.fits], [f for f in self.fits if not f.fits]
        if good:
            lines += ["", "cards that fit:", *(f"  {f.words()}" for f in good)]
        elif self.container != PLATFORM:
            lines += ["", "no shipped card fits; copy the nearest one and change its names (docs/how-to/own-data.md)"]
        if near:
            lines += ["near misses:", *(f"  {f.words()}" for f in near[:SHOWN_MISSES])]
        lines += self._look()
        lines += [f"note: {text}" for text in self.notes]
        return [*lines, *(f"warning: {text}" for text in self.warnings)]

    def _look(self) -> list[str]:
        if self.objects is None:
            return []
        look = self.objects
        fewest, middle, most = look.points
        title = f"the first {look.looked_at:,} of {look.in_file:,} objects"
        lines = ["", f"{title}, read with card {self.card}:" if self.card else f"{title}:"]
        lines.append(f"points per object: {fewest} to {most}, median {middle:g}")
        if look.classes:
            frequent = sorted(look.classes.items(), key=lambda item: -item[1])
            more = ", ..." if len(frequent) > SHOWN_CLASSES else ""
            named = ", ".join(f"{name} {n:,}" for name, n in frequent[:SHOWN_CLASSES])
            lines.append(f"{len(frequent)} classes: {named}{more}")
        header = ("feature", "unit", "min", "median", "max", "not finite", "outside")
        rows = [
            (f.name, f.unit, f"{f.low:.4g}", f"{f.median:.4g}", f"{f.high:.4g}", str(f.not_finite), str(f.outside))
            for f in self.features
        ]
        return [*lines, *table_lines(header, rows)]


PLATFORM = "point clouds of this platform"


def inspect(path: Path, cards: Sequence[DatasetCard] | None = None) -> Inspection:
    """Look at a file. `cards` are those to try, by default all that ship.

    Raises DataError when there is no such file, or it is damaged or of no known kind.
    """
    if path.is_dir():
        raise DataError(f"{path}: is a folder; name one of its files")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    cards = [load_card(name) for name in card_paths()] if cards is None else cards
    if is_point_cloud_file(path):
        return _platform_file(path, cards)
    container, arrays, fits = _fits(path, cards)
    best = fits[0].card if fits and fits[0].fits else None
    if best is None:
        return Inspection(path, container, arrays, fits)
    card = next(c for c in cards if c.name == best)
    try:
        return _with_look(Inspection(path, container, arrays, fits, best), card)
    except DataError as error:
        return Inspection(path, container, arrays, fits, best, warnings=(f"cannot be read as {best}: {error}",))


def _fits(path: Path, cards: Sequence[DatasetCard]) -> tuple[str, dict[str, str], tuple[Fit, ...]]:
    """The container, what is in it, and the cards that fit or nearly do, the best first."""
    from foundation.data.formats.containers.opening import container_of, open_source

    container = container_of(path)
    if container is None:
        raise DataError(f"{path}: no ROOT, HDF5, Parquet or npz file; damaged from its first bytes, or another format")
    arrays: dict[str, str] = {}
    found: list[Fit] = []
    kinds = {container, "hdf5"} if container == "showerdata" else {container}  # files of showerdata are HDF5 files
    candidates = [c for c in cards if c.format is not None]
    opened = {(c.format.container, c.format.tree) for c in candidates if c.format is not None}
    for kind, tree in sorted((kind, tree or "") for kind, tree in opened if kind in kinds):
        if tree and tree not in _trees(path):
            continue
        with open_source(path, kind, tree or None) as source:
            arrays |= source.describe()
            for card in candidates:
                assert card.format is not None
                if (card.format.container, card.format.tree or "") == (kind, tree):
                    found.append(fit(card, source))
    if not arrays:
        arrays = _describe(path, container)
    kept = [f for f in found if f.fits or (f.share >= NEAR and (f.problems or f.missing))]
    return container, arrays, tuple(sorted(kept, key=lambda f: f.rank, reverse=True))


def _trees(path: Path) -> tuple[str, ...]:
    from foundation.data.formats.containers.root import trees_of

    return trees_of(path)


def _describe(path: Path, container: str) -> dict[str, str]:
    """The arrays of a file that no card is for; of a ROOT file, those of all its trees."""
    from foundation.data.formats.containers.opening import open_source

    if container != "root":
        with open_source(path, container, None) as source:
            return source.describe()
    arrays: dict[str, str] = {}
    for tree in _trees(path):
        with open_source(path, container, tree) as source:
            arrays |= {f"{tree}/{key}": words for key, words in source.describe().items()}
    return arrays


def _platform_file(path: Path, cards: Sequence[DatasetCard]) -> Inspection:
    """A file of the platform: with the card of its tag where that ships, else with its own names and units."""
    clouds, size = read_point_clouds(path, 0, FIRST_OBJECTS), point_cloud_file_size(path)
    arrays = {
        "points": f"float32 [{size.points}, {len(clouds.features)}]: {', '.join(clouds.features)}",
        "conditions": f"float32 [{size.clouds}, {len(clouds.condition_names)}]: {', '.join(clouds.condition_names)}",
        "labels": f"int64 [{size.clouds}]",
        "tag": clouds.tag,
    }
    inspection = Inspection(path, PLATFORM, arrays)
    card = next((c for c in cards if c.tag == clouds.tag), None)
    if card is not None:
        try:
            return _with_look(Inspection(path, PLATFORM, arrays, card=card.name), card)
        except DataError as error:
            why = (f"not as card '{card.name}' of its tag says: {error}",)
            inspection = Inspection(path, PLATFORM, arrays, warnings=why)
    return Inspection(
        path, PLATFORM, arrays, features=_feature_looks(clouds, {}), objects=_object_look(clouds, size.clouds, ()),
        warnings=inspection.warnings,
    )  # fmt: skip


def _with_look(found: Inspection, card: DatasetCard) -> Inspection:
    """With the statistics of the first objects, read with this card."""
    with open_file(card, found.path) as file:
        if not file.objects:
            return Inspection(
                found.path, found.container, found.arrays, found.fits, found.card, warnings=("there are no objects",)
            )
        # Not more than what is read at a time: a thousand images of 40,000 voxels would fill the memory.
        clouds, report = file.read(0, min(FIRST_OBJECTS, file.ranges()[0].stop), on_bad="keep")
        in_file = file.objects
    ranges = {f.name: f.range for f in card.features if f.range is not None}
    notes = [f"{n:,} objects with {what}" for what, n in report.bad.items()]
    notes += [f"{n:,} values of '{name}' say \"none\" and are read as 0" for name, n in report.missing.items()]
    notes += [f"{n:,} objects are outside the card's selection in '{name}'" for name, n in report.left_out.items()]
    return Inspection(
        found.path, found.container, found.arrays, found.fits, found.card, _feature_looks(clouds, ranges),
        _object_look(clouds, in_file, card.classes), tuple(notes), tuple(sanity.warnings(card, clouds)),
    )  # fmt: skip


def _feature_looks(clouds: PointClouds, ranges: Mapping[str, tuple[float, float]]) -> tuple[FeatureLook, ...]:
    looks = []
    for name, unit in zip(clouds.features, clouds.units, strict=True):
        values = clouds.feature(name)
        finite = values[np.isfinite(values)]
        low, median, high = (float(f(finite)) for f in (np.min, np.median, np.max)) if len(finite) else (np.nan,) * 3
        outside = 0
        if name in ranges:
            outside = int(((finite < ranges[name][0]) | (finite > ranges[name][1])).sum())
        looks.append(FeatureLook(name, unit, low, median, high, len(values) - len(finite), outside))
    return tuple(looks)


def _object_look(clouds: PointClouds, in_file: int, classes: tuple[str, ...]) -> ObjectLook:
    counts = clouds.counts if len(clouds) else np.zeros(1, np.int64)
    points = int(counts.min()), float(np.median(counts)), int(counts.max())
    labels, number = np.unique(clouds.labels, return_counts=True)
    named = {
        classes[k] if 0 <= k < len(classes) else ("no class" if k < 0 else f"label {k}"): int(n)
        for k, n in zip(labels, number, strict=True)
    }
    return ObjectLook(len(clouds), in_file, points, named)
