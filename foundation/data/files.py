"""The platform's own file of point clouds: ragged HDF5, written whole or not at all.

points      float32 [N, F]     attribute `features`, `units` on the file (JSON)
offsets     int64   [B + 1]
labels      int64   [B]
conditions  float32 [B, C]     attribute `condition_names`, `condition_units`
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError

SCHEMA = "foundation/point-clouds/1"
JSON_ATTRIBUTES = ("features", "units", "conventions", "condition_names", "condition_units")


def write_point_clouds(path: Path, clouds: PointClouds, provenance: dict[str, object] | None = None) -> None:
    """Write `clouds` to `path`: to a temporary name first, so that a file that exists is complete.

    The bytes depend on the clouds and the provenance alone, so equal content has an equal hash.
    """
    write_point_cloud_parts(path, [clouds], len(clouds), len(clouds.points), provenance)


def write_point_cloud_parts(
    path: Path,
    parts: Iterable[PointClouds],
    clouds: int,
    points: int,
    provenance: dict[str, object] | None = None,
    synced: bool = False,
) -> None:
    """Write clouds that come in parts, one after the other, as `write_point_clouds` would write them in one piece.

    clouds, points: how many there are in all parts; the parts need not be in memory at the same time
    synced:         the file is on the disk before it has its name, so that it is whole also after a power cut

    Raises DataError when the parts differ in features, units, conditions or tag, or do not add up.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part_file = path.with_name(path.name + ".part")
    with h5py.File(part_file, "w") as f:
        head: PointClouds | None = None
        cloud = point = 0
        for part in parts:
            if head is None:
                head = part
                _begin(f, part, clouds, points, provenance)
            _require_alike(path, head, part)
            last_cloud, last_point = cloud + len(part), point + len(part.points)
            if last_cloud > clouds or last_point > points:
                break
            f["points"][point:last_point] = part.points
            f["offsets"][cloud : last_cloud + 1] = point + part.offsets
            f["labels"][cloud:last_cloud], f["conditions"][cloud:last_cloud] = part.labels, part.conditions
            cloud, point = last_cloud, last_point
        if head is None or (cloud, point) != (clouds, points):
            raise DataError(f"{path}: not written, as the parts do not add up to {clouds} objects of {points} points")
    if synced:
        with part_file.open("rb") as written:
            os.fsync(written.fileno())
    os.replace(part_file, path)


def _begin(f: h5py.File, first: PointClouds, clouds: int, points: int, provenance: dict[str, object] | None) -> None:
    f.attrs["schema"] = SCHEMA
    f.attrs["tag"] = first.tag
    f.attrs["provenance"] = json.dumps(provenance or {}, sort_keys=True)
    for name in JSON_ATTRIBUTES:
        f.attrs[name] = json.dumps(getattr(first, name))
    f.create_dataset("points", (points, len(first.features)), first.points.dtype)
    f.create_dataset("offsets", (clouds + 1,), first.offsets.dtype)
    f.create_dataset("labels", (clouds,), first.labels.dtype)
    f.create_dataset("conditions", (clouds, len(first.condition_names)), first.conditions.dtype)


def _require_alike(path: Path, first: PointClouds, part: PointClouds) -> None:
    for name in (*JSON_ATTRIBUTES, "tag"):
        if getattr(part, name) != getattr(first, name):
            raise DataError(
                f"{path}: parts with different {name} cannot be joined: {getattr(first, name)} and "
                f"{getattr(part, name)}"
            )


def is_point_cloud_file(path: Path) -> bool:
    """Whether the file says of itself that `write_point_clouds` wrote it."""
    try:
        with h5py.File(path) as f:
            return f.attrs.get("schema") == SCHEMA
    except (OSError, KeyError, ValueError, RuntimeError):
        return False


def read_point_clouds(path: Path, start: int = 0, stop: int | None = None) -> PointClouds:
    """Read one file written by `write_point_clouds`, or its clouds from `start` to `stop` (exclusive).

    Raises DataError when the file is missing, damaged, of another layout, or holds values that are not finite.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file of point clouds")
    try:
        with h5py.File(path) as f:
            if f.attrs.get("schema") != SCHEMA:
                raise DataError(f"{path}: not a point-cloud file of this platform (schema is not {SCHEMA})")
            # files of earlier versions say nothing of conventions
            names = {name: tuple(json.loads(f.attrs.get(name, "[]"))) for name in JSON_ATTRIBUTES}
            offsets = np.asarray(f["offsets"][start : None if stop is None else stop + 1], np.int64)
            rows = slice(int(offsets[0]), None if stop is None else int(offsets[-1]))
            clouds = PointClouds(
                points=np.asarray(f["points"][rows], np.float32),
                offsets=offsets - offsets[0],
                labels=np.asarray(f["labels"][start:stop], np.int64),
                conditions=np.asarray(f["conditions"][start:stop], np.float32),
                tag=str(f.attrs["tag"]),
                **names,
            )
    except (OSError, KeyError, ValueError, RuntimeError, IndexError) as error:
        raise DataError(f"{path}: damaged or incomplete point-cloud file ({error}); make or copy it again") from error
    except DataError as error:
        raise DataError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None
    bad = ~np.isfinite(clouds.points).all(axis=0)
    if bad.any():
        raise DataError(f"{path}: feature '{clouds.features[int(bad.argmax())]}' has NaN or infinite values")
    return clouds


@dataclass(frozen=True)
class FileSize:
    """How much is in a file of point clouds."""

    clouds: int
    points: int
    bytes_per_cloud: float
    """Memory that one takes on average."""


def point_cloud_file_size(path: Path) -> FileSize:
    """How much is in a file, without reading it. Raises DataError when it is damaged."""
    try:
        with h5py.File(path) as f:
            clouds, points = len(f["offsets"]) - 1, len(f["points"])
            size = 4 * (f["points"].size + f["conditions"].size) + 16 * clouds
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise DataError(f"{path}: damaged or incomplete point-cloud file ({error}); make or copy it again") from error
    return FileSize(clouds, points, size / max(1, clouds))


def read_many(paths: Sequence[Path]) -> PointClouds:
    """The clouds of several files, in the order given."""
    return PointClouds.concatenate([read_point_clouds(path) for path in paths])
