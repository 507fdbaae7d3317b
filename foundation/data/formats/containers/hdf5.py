"""HDF5 files, by h5py: dense datasets, vectors (vlen), and fields of tables.

Keys are paths. A field of a compound dataset is one more step of the path: "table/table/values_block_0" in the tables
that pandas and PyTables write.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from foundation.data.formats.containers.damage import check_size, damage_as_data_error
from foundation.data.formats.containers.hdf5_heap import check_vectors
from foundation.data.formats.containers.keyed import Held, Key, KeyedSource, native, not_numbers, shape_in_words
from foundation.data.formats.containers.sink import Sink
from foundation.data.formats.containers.source import Array, Ragged
from foundation.data.ragged import to_offsets
from foundation.errors import DataError

CHUNK_BYTES = 2**19
"""Of files that are written, before packing."""


@dataclass(frozen=True)
class _Place:
    """Where a key is found: a dataset, and the field of its rows if they have fields."""

    dataset: Any
    field: str | None = None

    @property
    def dtype(self) -> np.dtype:
        return self.dataset.dtype if self.field is None else self.dataset.dtype[self.field]

    def rows(self, start: int, stop: int) -> Any:
        if self.dtype.hasobject and self.field is None:
            check_vectors(self.dataset, start, stop)
        return self.dataset[start:stop] if self.field is None else self.dataset.fields(self.field)[start:stop]


class Hdf5Source(KeyedSource):
    """An HDF5 file. Links out of the file are not followed."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._places: dict[str, _Place] = {}
        with damage_as_data_error(path):
            self._file = h5py.File(path, "r")
            try:
                self._file.visititems(self._found)
            except BaseException:
                self._file.close()
                raise

    def _found(self, name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        fields = item.dtype.names
        if fields is None:
            self._places[name] = _Place(item)
        else:
            self._places |= {f"{name}/{field}": _Place(item, field) for field in fields}

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self._places)

    def close(self) -> None:
        self._file.close()

    def _look(self, name: str) -> Held:
        place = self._places[name]
        with damage_as_data_error(self.path, name):
            shape, vector = place.dataset.shape, h5py.check_vlen_dtype(place.dtype)
            if shape is None or not shape:
                return Held(
                    (0,), 0.0, shape_in_words(place.dtype, ()), unreadable="it is a single value without entries"
                )
            if vector is not None and isinstance(vector, np.dtype) and len(shape) == 1:
                size = self._mean_length(place) * vector.itemsize + 8
                return Held(shape, size, shape_in_words(vector, (*shape, "*")), True, not_numbers(vector))
            dtype, inner = place.dtype.base, place.dtype.shape
            if place.dtype.kind == "O":
                words = shape_in_words("text or references", shape)
                return Held(shape, 0.0, words, unreadable=not_numbers(place.dtype))
            shape = (*shape, *inner)
            size = dtype.itemsize * float(np.prod([float(axis) for axis in shape[1:]]))
            return Held(shape, size, shape_in_words(dtype.newbyteorder("="), shape), unreadable=not_numbers(dtype))

    def _mean_length(self, place: _Place) -> float:
        """Mean length of up to 100 vectors, in five places of the file."""
        total = place.dataset.shape[0]
        starts = {int(start) for start in np.linspace(0, max(0, total - 20), 5)}
        lengths = [len(row) for start in starts for row in place.rows(start, min(total, start + 20))]
        return float(np.mean(lengths)) if lengths else 0.0

    def _read(self, names: list[str], start: int, stop: int) -> dict[str, Array]:
        arrays: dict[str, Array] = {}
        for name in names:
            with damage_as_data_error(self.path, name):
                self._check_filters(name)
                rows = self._places[name].rows(start, stop)
                arrays[name] = self._ragged(name, rows) if self._held(name).ragged else native(rows)
        return arrays

    def _read_across(self, name: str, row: int, start: int, stop: int) -> NDArray:
        check_size(self.path, name, 8.0 * (stop - start))
        with damage_as_data_error(self.path, name):
            self._check_filters(name)
            return native(self._places[name].dataset[row, start:stop])

    def _ragged(self, name: str, rows: NDArray[np.object_]) -> Ragged:
        counts = np.fromiter((len(row) for row in rows), np.int64, len(rows))
        check_size(self.path, name, 8.0 * float(counts.sum()))
        kind = h5py.check_vlen_dtype(self._places[name].dtype)
        values = np.concatenate(rows) if len(rows) else np.empty(0, kind)
        return Ragged(native(values), counts)

    def _check_filters(self, name: str) -> None:
        """A packing that the library here does not know has nothing to do with damage."""
        settings = self._places[name].dataset.id.get_create_plist()
        for i in range(settings.get_nfilters()):
            number, _, _, label = settings.get_filter(i)
            if not _can_unpack(number):
                called = label.decode(errors="replace") or f"filter {number}"
                raise DataError(
                    f"{self.path}: '{name}' is packed with {called}, which HDF5 here cannot unpack; "
                    f"install the package hdf5plugin, or save the file again with gzip"
                )


class Hdf5Sink(Sink):
    """Writes dense datasets packed by gzip, as the CaloChallenge and JetNet files are, and vectors as vlen datasets.

    Checksums: Fletcher-32 of every chunk, and metadata in the format of HDF5 1.10, which has its own. HDF5 keeps
    vectors in a heap that neither packing nor checksums reach.

    A key "p_norm[0,:]" is a row of a dataset [rows, entries].
    """

    def __init__(self, path: Path, attributes: Mapping[str, str] | None = None) -> None:
        self._file = h5py.File(path, "w", libver=("v110", "v110"))
        self._file.attrs.update(attributes or {})

    def append(self, arrays: Mapping[str, Array]) -> None:
        rows: dict[str, list[Array]] = {}
        for text, array in arrays.items():
            key = Key.parse(text)
            if key.across:
                rows.setdefault(key.name, []).append(array)
            elif isinstance(array, Ragged):
                self._append_vectors(text, array)
            else:
                self._append(text, array, axis=0)
        for name, parts in rows.items():
            self._append(name, np.stack([np.asarray(part) for part in parts]), axis=1)

    def _append(self, name: str, array: NDArray, axis: int) -> None:
        if name not in self._file:
            chunks = _chunks(array, axis)
            limit = tuple(None if i == axis else n for i, n in enumerate(array.shape))
            empty = tuple(0 if i == axis else n for i, n in enumerate(array.shape))
            options = {"compression": "gzip", "fletcher32": True} if 0 not in chunks else {}
            self._file.create_dataset(name, empty, array.dtype, maxshape=limit, chunks=chunks, **options)
        dataset = self._file[name]
        old, size = dataset.shape[axis], array.shape[axis]
        dataset.resize(old + size, axis)
        dataset[(slice(None),) * axis + (slice(old, old + size),)] = array

    def _append_vectors(self, name: str, array: Ragged) -> None:
        if name not in self._file:
            kind = h5py.vlen_dtype(array.values.dtype)
            self._file.create_dataset(name, (0,), kind, maxshape=(None,), chunks=(1024,))
        dataset = self._file[name]
        old = len(dataset)
        dataset.resize(old + len(array.counts), 0)
        # Not `dataset[old:] = ...`: h5py takes a list of vectors of one length for an array of numbers.
        rows = vectors(array).astype(dataset.dtype)
        place = dataset.id.get_space()
        place.select_hyperslab((old,), rows.shape)
        dataset.id.write(h5py.h5s.create_simple(rows.shape), place, rows)

    def finish(self) -> None:
        pass

    def close(self) -> None:
        self._file.close()


def _can_unpack(number: int) -> bool:
    """Whether HDF5 has this filter, if need be by the optional package with those of PyTables (blosc) and others."""
    if not h5py.h5z.filter_avail(number) and importlib.util.find_spec("hdf5plugin"):
        importlib.import_module("hdf5plugin")
    return bool(h5py.h5z.filter_avail(number))


def vectors(array: Ragged) -> NDArray[np.object_]:
    """One array per entry, as h5py wants them, object [B]; also where all lengths are equal."""
    pieces = np.split(array.values, to_offsets(array.counts)[1:-1])
    return np.fromiter(pieces, np.object_, len(array.counts))


def _chunks(array: NDArray, axis: int) -> tuple[int, ...]:
    """Whole entries, as many as fit, so that a range of entries unpacks little more than itself."""
    others = array.nbytes // max(1, array.shape[axis]) or array.dtype.itemsize
    along = max(1, min(CHUNK_BYTES // others, 2**16))
    return tuple(along if i == axis else max(1, n) for i, n in enumerate(array.shape))


def has_attribute(path: Path, name: str) -> bool:
    """Whether the file itself has an attribute of this name."""
    with damage_as_data_error(path), h5py.File(path, "r") as file:
        return name in file.attrs
