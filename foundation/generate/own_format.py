"""Generated objects in their dataset's own format, part by part, so that official evaluation code reads them."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foundation.data.card_format import LabelFile, PaddedPoints, VoxelImages
from foundation.data.cards import DatasetCard
from foundation.data.collisions import hits_outside
from foundation.data.formats.writing import leaves_places_open, writable_format, write_file
from foundation.data.point_clouds import PointClouds
from foundation.data.ragged import to_offsets
from foundation.errors import DataError

SUFFIXES = {"hdf5": ".h5", "root": ".root", "parquet": ".parquet", "npz": ".npz", "showerdata": ".h5"}
"""Of files, by container."""
LOST = "hits_left_out_of_images"
Clouds = Callable[[], Iterable[PointClouds]]
"""Gives all parts, as often as it is called."""


def own_suffix(card: DatasetCard) -> str:
    """Suffix of files in the dataset's own format. Raises DataError where that can only be read."""
    return SUFFIXES[writable_format(card).container]


def own_places(card: DatasetCard) -> int | None:
    """Places of an object in files of a fixed size; None where there are as many as it takes."""
    points = writable_format(card).points
    return points.places if isinstance(points, PaddedPoints) else None


def try_own_format(card: DatasetCard, clouds: PointClouds, assume: Mapping[str, float]) -> None:
    """Write a few objects, so that what the format lacks is known before a long campaign, and not after it."""
    with tempfile.TemporaryDirectory() as folder:
        write_own_format(card, lambda: [clouds], Path(folder) / f"trial{own_suffix(card)}", assume)


def write_own_format(
    card: DatasetCard,
    clouds: Clouds,
    out: Path,
    assume: Mapping[str, float],
    attributes: Mapping[str, str] | None = None,
) -> tuple[list[Path], list[str], dict[str, int]]:
    """Write all parts to `out`, or to one file per class where files say the class by their name.

    Returns the files, what a user should know, and counts of what the format cannot hold: images have no place for hits
    outside of the geometry.
    """
    files = _files(card, clouds, out)
    places = None
    if leaves_places_open(card):
        places = max(1, *(int(part.counts.max(initial=0)) for part in clouds()))
    notes: dict[str, None] = {}
    counts: Counter[str] = Counter()
    for path, label in files.items():
        parts = _fitting(card, clouds(), label, counts)
        notes |= dict.fromkeys(write_file(card, parts, path, assume, None, places, attributes))
    return list(files), list(notes), dict(counts)


def _files(card: DatasetCard, clouds: Clouds, out: Path) -> dict[Path, int | None]:
    """File -> label of its objects; None where objects of all classes go to one file."""
    label = writable_format(card).label
    if not isinstance(label, LabelFile):
        return {out: None}
    found = sorted({int(n) for part in clouds() for n in np.unique(part.labels)})
    if found[:1] == [-1]:
        raise DataError(f"some objects have no class, but files of '{card.name}' say it by their name: name classes")
    if len(found) == 1 and _class_by_name(label, out) == card.classes[found[0]]:
        return {out: found[0]}
    return {_named(card, label, out, card.classes[n]): n for n in found}


def _named(card: DatasetCard, label: LabelFile, out: Path, name: str) -> Path:
    """A file name that says this class."""
    for pattern in (pattern for pattern, of in label.file.items() if of == name):
        path = out.with_name(f"{pattern.replace('*', '')}_{out.name}")
        if _class_by_name(label, path) == name:
            return path
    raise DataError(f"card '{card.name}': no file name was found that says class '{name}'")


def _class_by_name(label: LabelFile, path: Path) -> str | None:
    return next((name for pattern, name in label.file.items() if fnmatch(path.name, pattern)), None)


def _fitting(
    card: DatasetCard, parts: Iterable[PointClouds], label: int | None, counts: Counter[str]
) -> Iterator[PointClouds]:
    """The clouds of one file; hits that an image has no place for are left out and counted."""
    images = isinstance(writable_format(card).points, VoxelImages)
    for part in parts:
        clouds = part if label is None else part.select(part.labels == label)
        if images and card.geometry is not None:
            lost = hits_outside(clouds, card.geometry)
            counts[LOST] += int(lost.sum())
            clouds = without_points(clouds, lost) if lost.any() else clouds
        if len(clouds):
            yield clouds


def without_points(clouds: PointClouds, lost: NDArray[np.bool_]) -> PointClouds:
    """The clouds without these points, bool [N]."""
    counts = np.bincount(clouds.owners[~lost], minlength=len(clouds))
    return replace(clouds, points=clouds.points[~lost], offsets=to_offsets(counts))
