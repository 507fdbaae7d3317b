"""Files of the showerdata library (FLC-QU-hep/ShowerData, MIT): showers as point clouds in HDF5.

showers      one vector per shower: its points one after the other, 4 or 5 columns (x, y, layer, energy[, time]) each
energies     [n, 1], directions [n, 3], pdg [n], shower_ids [n], num_points [n]

Showers are read as vectors and not, as `showerdata.load` gives them, padded to the longest of the file: that takes
many times the memory, and cuts a shower that is longer than the file's `shape` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import showerdata
from numpy.typing import NDArray

from foundation.data.formats.containers.damage import damage_as_data_error
from foundation.data.formats.containers.hdf5 import Hdf5Source
from foundation.data.formats.containers.sink import Sink
from foundation.data.formats.containers.source import Array, Ragged
from foundation.data.ragged import ragged_arange
from foundation.errors import DataError, did_you_mean

KEYS = ("showers", "energies", "directions", "pdg", "shower_ids", "num_points")
NEEDED = ("showers", "energies", "pdg")
SHOWERS_AT_ONCE = 500


class ShowerdataSource(Hdf5Source):
    """A showerdata file. The library checks its layout; here the points of each shower are counted as well."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            with damage_as_data_error(path):
                self._most, self._columns = showerdata.get_file_shape(path)[1:]
                self._places.pop("shape")
            for key in NEEDED:
                if key not in self.keys:
                    raise DataError(f"{path}: has no '{key}': it is not a showerdata file")
        except BaseException:
            self.close()
            raise

    def _read(self, names: list[str], start: int, stop: int) -> dict[str, Array]:
        arrays = super()._read(names, start, stop)
        showers = arrays.get("showers")
        if isinstance(showers, Ragged) and "num_points" in self.keys:
            points = super()._read(["num_points"], start, stop)["num_points"]
            assert not isinstance(points, Ragged)
            self._check_points(showers, points.astype(np.int64), start)
        return arrays

    def _check_points(self, showers: Ragged, points: NDArray[np.int64], start: int) -> None:
        wrong = (showers.counts != points * self._columns) | (points > self._most)
        if wrong.any():
            at = int(wrong.argmax())
            raise DataError(
                f"{self.path}: shower {start + at} has {showers.counts[at]} numbers, but num_points is {points[at]} "
                f"(of {self._columns} columns) and the most is {self._most}: the file is damaged"
            )


class ShowerdataSink(Sink):
    """Writes a showerdata file by its library.

    showers are vectors, with num_points beside them, or padded [n, points, 4 or 5]; energies [n] or [n, 1] and pdg [n]
    are needed; directions are (0, 0, 1) and shower_ids are counted where they are not given.

    The library must know the number of showers and the longest of them first, so parts wait in files beside it.
    """

    def __init__(self, path: Path, attributes: Mapping[str, str] | None = None) -> None:
        self._path, self._attributes = path, dict(attributes or {})
        self._parts: list[tuple[Path, tuple[int, int, int]]] = []
        self._written = 0

    def append(self, arrays: Mapping[str, Array]) -> None:
        dense = _checked(arrays)
        total = len(arrays["pdg"]) if not isinstance(arrays["pdg"], Ragged) else 0
        for start in range(0, max(1, total), SHOWERS_AT_ONCE):
            stop = min(total, start + SHOWERS_AT_ONCE)
            points, counts = _padded(arrays, start, stop)
            if not self._parts:
                self._columns = points.shape[2]
            if points.shape[2] != self._columns:
                raise DataError(f"showers have {points.shape[2]} columns, those before {self._columns}")
            part = self._path.with_name(f"{self._path.name}.{len(self._parts)}")
            rest = {key: array[start:stop] for key, array in dense.items()}
            showers = showerdata.Showers(
                points,
                rest["energies"],
                rest["pdg"],
                rest.get("directions"),
                rest.get("shower_ids", self._written + np.arange(stop - start)),
                counts,
            )
            showers.save(part)
            self._parts.append((part, points.shape))
            self._written += stop - start

    def finish(self) -> None:
        most = max(shape[1] for _, shape in self._parts)
        shape = (self._written, most, self._columns)
        at = 0
        with showerdata.ShowerDataFile(self._path, "w", shape) as file:
            file.attrs.update(self._attributes)
            for part, (size, _, _) in self._parts:
                if size:
                    file[at : at + size] = showerdata.load(part)
                at += size
                part.unlink()

    def close(self) -> None:
        for part, _ in self._parts:
            part.unlink(missing_ok=True)


def _checked(arrays: Mapping[str, Array]) -> dict[str, NDArray]:
    """All arrays but those of the points; DataError when one is missing, unknown or of vectors."""
    for key in NEEDED:
        if key not in arrays:
            raise DataError(f"a showerdata file needs '{key}'{did_you_mean(key, arrays)}")
    dense: dict[str, NDArray] = {}
    for key, array in arrays.items():
        if key not in KEYS:
            raise DataError(f"a showerdata file has no place for '{key}'{did_you_mean(key, KEYS)}")
        if key in ("showers", "num_points"):
            continue
        if isinstance(array, Ragged):
            raise DataError(f"'{key}' has vectors of different lengths, which a showerdata file has for showers only")
        dense[key] = array
    return dense


def _padded(arrays: Mapping[str, Array], start: int, stop: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Points of showers start to stop, [n, points, columns], and how many each has."""
    showers, given = arrays["showers"], arrays.get("num_points")
    counts = None if given is None or isinstance(given, Ragged) else given[start:stop].astype(np.int64)
    if not isinstance(showers, Ragged):
        points = np.asarray(showers[start:stop], np.float32)
        if points.ndim != 3:
            raise DataError(f"showers have {points.ndim} axes, where [n, points, columns] are expected")
        if counts is None:
            counts = (points.any(axis=2) * (1 + np.arange(points.shape[1]))).max(axis=1, initial=0)
        return points, counts
    if given is None or isinstance(given, Ragged):
        raise DataError("showers as vectors need 'num_points', to know how many columns they have")
    return _unfolded(showers, given.astype(np.int64), start, stop), given[start:stop].astype(np.int64)


def _unfolded(showers: Ragged, points: NDArray[np.int64], start: int, stop: int) -> NDArray[np.float32]:
    columns = int(showers.counts.sum() // max(1, points.sum())) if points.sum() else 5
    if not np.array_equal(showers.counts, points * columns):
        raise DataError("lengths of the showers are no multiples of 'num_points'")
    counts = points[start:stop]
    first = int(showers.counts[:start].sum())
    table = showers.values[first : first + int(counts.sum()) * columns].reshape(-1, columns)
    padded = np.zeros((len(counts), int(counts.max(initial=1)), columns), np.float32)
    padded[np.repeat(np.arange(len(counts)), counts), ragged_arange(counts)] = table
    return padded
