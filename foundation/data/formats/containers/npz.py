"""npz files: arrays in a zip, read in ranges without holding whole arrays.

A packed member can only be read from its beginning. Ranges that follow each other go on with the same stream, so
reading a file in order costs one pass; going back costs a new one.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from foundation.data.formats.containers.damage import damage_as_data_error
from foundation.data.formats.containers.keyed import Held, KeyedSource, native, not_numbers, shape_in_words
from foundation.data.formats.containers.sink import Sink
from foundation.data.formats.containers.source import Array, Ragged
from foundation.errors import DataError

BLOCK = 2**20
"""Bytes that are skipped or copied at once."""


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype

    @property
    def entry_bytes(self) -> int:
        size = self.dtype.itemsize
        for axis in self.shape[1:]:
            size *= axis
        return size


@dataclass
class _Stream:
    """A member, open before entry `position`."""

    file: IO[bytes]
    header: _Header
    position: int = 0


class NpzSource(KeyedSource):
    """An .npz file, packed or not. Nothing in it is ever unpickled."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with damage_as_data_error(path):
            self._zip = zipfile.ZipFile(path)
            self._members = {name.removesuffix(".npy"): name for name in self._zip.namelist() if name.endswith(".npy")}
        self._streams: dict[str, _Stream] = {}

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self._members)

    def close(self) -> None:
        for stream in self._streams.values():
            stream.file.close()
        self._streams.clear()
        self._zip.close()

    def _look(self, name: str) -> Held:
        with damage_as_data_error(self.path, name):
            stream = self._open(name)
            stream.file.close()
        header = stream.header
        words = shape_in_words(header.dtype, header.shape)
        why = not_numbers(header.dtype)
        if why is None and not header.shape:
            why = "it is a single number, without entries"
        if why is None and header.fortran_order and len(header.shape) > 1:
            why = "its entries lie scattered (Fortran order); save it again as np.ascontiguousarray(array)"
        return Held(header.shape or (0,), float(header.entry_bytes), words, unreadable=why)

    def _open(self, name: str) -> _Stream:
        file = self._zip.open(self._members[name])
        try:
            version = npy.read_magic(file)
            read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
            if read_header is None:
                raise DataError(f"{self.path}: '{name}' has npy format {version}, which is not read")
            return _Stream(file, _Header(*read_header(file)))
        except BaseException:
            file.close()
            raise

    def _read(self, names: list[str], start: int, stop: int) -> dict[str, Array]:
        arrays: dict[str, Array] = {}
        for name in names:
            with damage_as_data_error(self.path, name):
                arrays[name] = self._range(name, start, stop)
        return arrays

    def _range(self, name: str, start: int, stop: int) -> NDArray:
        # Taken out while it is used: a stream that failed is not gone on with.
        stream = self._streams.pop(name, None)
        if stream is None or stream.position > start:
            if stream is not None:
                stream.file.close()
            stream = self._open(name)
        header = stream.header
        self._skip(name, stream, (start - stream.position) * header.entry_bytes)
        array = np.empty((stop - start, *header.shape[1:]), header.dtype)
        if array.size:
            self._fill(name, stream, array.reshape(-1).view(np.uint8))
        stream.position = stop
        if stop == header.shape[0] and stream.file.read(1):
            # Reading to the very end is also what makes zipfile compare the CRC.
            raise DataError(f"{self.path}: '{name}' is longer than its header says: the file is damaged")
        self._streams[name] = stream
        return native(array)

    def _skip(self, name: str, stream: _Stream, size: int) -> None:
        while size > 0:
            data = stream.file.read(min(BLOCK, size))
            if not data:
                raise DataError(f"{self.path}: '{name}' ends too early: the file is damaged")
            size -= len(data)

    def _fill(self, name: str, stream: _Stream, view: NDArray[np.uint8]) -> None:
        at = 0
        while at < len(view):
            data = stream.file.read(min(BLOCK, len(view) - at))
            if not data:
                raise DataError(f"{self.path}: '{name}' ends too early: the file is damaged")
            view[at : at + len(data)] = np.frombuffer(data, np.uint8)
            at += len(data)


class NpzSink(Sink):
    """Writes a packed .npz. Parts wait in files beside it, as a member of a zip is written in one go."""

    def __init__(self, path: Path, attributes: Mapping[str, str] | None = None) -> None:
        self._path, self._attributes = path, dict(attributes or {})
        self._parts: dict[str, Any] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, np.dtype] = {}

    def append(self, arrays: Mapping[str, Array]) -> None:
        for key, array in arrays.items():
            if isinstance(array, Ragged):
                raise DataError(f"'{key}' has vectors of different lengths, which an npz file cannot hold")
            if key not in self._parts:
                self._parts[key] = tempfile.TemporaryFile(dir=self._path.parent)
                self._shapes[key], self._dtypes[key] = (0, *array.shape[1:]), array.dtype
            self._parts[key].write(np.ascontiguousarray(array).tobytes())
            self._shapes[key] = (self._shapes[key][0] + len(array), *array.shape[1:])

    def finish(self) -> None:
        with zipfile.ZipFile(self._path, "w", zipfile.ZIP_DEFLATED) as archive:
            for key, part in self._parts.items():
                header = {
                    "descr": npy.dtype_to_descr(self._dtypes[key]),
                    "fortran_order": False,
                    "shape": self._shapes[key],
                }
                part.seek(0)
                with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                    npy.write_array_header_1_0(member, header)
                    while data := part.read(BLOCK):
                        member.write(data)
            for key, text in self._attributes.items():
                with archive.open(f"{key}.npy", "w") as member:
                    npy.write_array(member, np.array(text), allow_pickle=False)

    def close(self) -> None:
        for part in self._parts.values():
            part.close()
