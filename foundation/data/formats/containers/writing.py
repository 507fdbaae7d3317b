"""Writing files in any container: part by part, whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from foundation.data.formats.containers.damage import DAMAGE
from foundation.data.formats.containers.keyed import Key, not_numbers
from foundation.data.formats.containers.opening import CONTAINERS
from foundation.data.formats.containers.sink import Sink
from foundation.data.formats.containers.source import Array, Ragged
from foundation.errors import DataError, did_you_mean


class ArrayWriter:
    """A file that is written in parts. Use it as a context manager: it exists only after the block has ended well.

        with ArrayWriter(path, "hdf5") as file:
            for arrays in parts:
                file.append(arrays)

    container:  one of CONTAINERS; tree: name of the tree of a ROOT file
    attributes: text that is kept in the file: attributes of HDF5, metadata of Parquet, named strings of ROOT and npz
    rntuple:    write an RNTuple instead of a TTree (see RootSink for what differs)

    Keys are as for reading: "jet_features[0]", "jet_features[1]" ... become the columns of one array, and
    "p_norm[0,:]" ... the rows of one, in HDF5 only.

    Everything is written in a folder beside the file, which is removed at the end, and moved to its name in one step.
    """

    def __init__(
        self,
        path: Path,
        container: str,
        tree: str | None = None,
        attributes: Mapping[str, str] | None = None,
        rntuple: bool = False,
    ) -> None:
        if container not in CONTAINERS:
            raise DataError(f"no container '{container}'{did_you_mean(container, CONTAINERS)}")
        if container == "root" and not tree:
            raise DataError(f"{path}: a ROOT file needs the name of its tree")
        self.path, self._container, self._tree = path, container, tree
        self._attributes, self._rntuple = dict(attributes or {}), rntuple
        self._kinds: dict[str, str] = {}
        self._sink: Sink | None = None

    def __enter__(self) -> ArrayWriter:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(".part", f".{self.path.name}.", self.path.parent))
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({error})") from None
        return self

    def append(self, arrays: Mapping[str, Array]) -> None:
        """Write the next entries: arrays [B, ...] by key, all of the same B, in every part the same keys and types.

        Raises DataError when they are not, or when the container cannot hold them.
        """
        joined = _joined_columns(arrays)
        self._check(joined)
        try:
            if self._sink is None:
                self._sink = self._new_sink(self._folder / self.path.name)
            self._sink.append(joined)
        except DataError as error:
            raise DataError(f"{self.path}: {error}") from None
        except DAMAGE as error:
            raise DataError(f"{self.path}: cannot be written ({type(error).__name__}: {error})") from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            if self._sink is not None and kind is not None:
                self._abandon()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _finish(self) -> None:
        if self._sink is None:
            raise DataError(f"{self.path}: nothing to write: no part was given")
        try:
            self._sink.finish()
            self._sink.close()
            os.replace(self._folder / self.path.name, self.path)
        except DAMAGE as error:
            raise DataError(f"{self.path}: cannot be written ({type(error).__name__}: {error})") from error

    def _abandon(self) -> None:
        """Close what was begun; the error that ended it matters, not one that follows from it."""
        assert self._sink is not None
        try:
            self._sink.close()
        except DAMAGE:
            pass

    def _new_sink(self, path: Path) -> Sink:
        # The libraries take a second to import, so only the one that is needed is.
        if self._container == "root":
            from foundation.data.formats.containers.root import RootSink

            return RootSink(path, self._tree or "", self._rntuple, self._attributes)
        if self._container == "parquet":
            from foundation.data.formats.containers.parquet import ParquetSink

            return ParquetSink(path, self._attributes)
        if self._container == "npz":
            from foundation.data.formats.containers.npz import NpzSink

            return NpzSink(path, self._attributes)
        if self._container == "showerdata":
            from foundation.data.formats.containers.showerdata import ShowerdataSink

            return ShowerdataSink(path, self._attributes)
        from foundation.data.formats.containers.hdf5 import Hdf5Sink

        return Hdf5Sink(path, self._attributes)

    def _check(self, arrays: Mapping[str, Array]) -> None:
        lengths = {key: len(a.counts) if isinstance(a, Ragged) else len(a) for key, a in arrays.items()}
        if not lengths:
            raise DataError(f"{self.path}: nothing to write: no arrays")
        first = next(iter(lengths))
        for key, length in lengths.items():
            if length != lengths[first]:
                raise DataError(f"{self.path}: {first} has {lengths[first]} entries but {key} has {length}")
        kinds = {key: self._kind(key, array) for key, array in arrays.items()}
        if self._kinds and kinds != self._kinds:
            key = next(k for k in [*kinds, *self._kinds] if kinds.get(k) != self._kinds.get(k))
            now, before = kinds.get(key, "not there"), self._kinds.get(key, "not there")
            raise DataError(f"{self.path}: '{key}' is {now}, but was {before} in the first part")
        self._kinds = kinds

    def _kind(self, key: str, array: Array) -> str:
        """Type and shape of an entry in words; DataError for what is in no file."""
        values = array.values if isinstance(array, Ragged) else array
        why = not_numbers(values.dtype)
        if why is not None:
            raise DataError(f"{self.path}: '{key}' has type {values.dtype}: {why}")
        if not isinstance(array, Ragged):
            # The number of points that showers are padded to may differ from part to part.
            inner = array.shape[2:] if self._container == "showerdata" else array.shape[1:]
            return f"{values.dtype} [*{''.join(f', {n}' for n in inner)}]"
        if values.ndim != 1 or int(array.counts.sum()) != len(values):
            raise DataError(f"{self.path}: '{key}' has {len(values)} values, but its counts add up to otherwise")
        return f"vectors of {values.dtype}"


def write_arrays(
    path: Path,
    container: str,
    arrays: Mapping[str, Array],
    tree: str | None = None,
    attributes: Mapping[str, str] | None = None,
    rntuple: bool = False,
) -> None:
    """Write one file from arrays [B, ...] by key; the settings are those of ArrayWriter."""
    with ArrayWriter(path, container, tree, attributes, rntuple) as file:
        file.append(arrays)


def _joined_columns(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Arrays "name[0]" to "name[k]" as one array [B, k + 1] each, where the first of them stood."""
    columns: dict[str, dict[int, NDArray]] = {}
    joined: dict[str, Array] = {}
    for text, array in arrays.items():
        key = Key.parse(text)
        if key.index is None or key.across:
            joined[text] = array
        elif isinstance(array, Ragged):
            raise DataError(f"'{text}' has vectors of different lengths: it cannot be a column")
        else:
            joined.setdefault(key.name, array)
            columns.setdefault(key.name, {})[key.index] = array
    for name, parts in columns.items():
        if name in arrays or sorted(parts) != list(range(len(parts))):
            raise DataError(f"columns of '{name}' must be given all, from 0 on, and not beside it: {sorted(parts)} are")
        if len({len(part) for part in parts.values()}) > 1:
            raise DataError(f"columns of '{name}' have different numbers of entries")
        joined[name] = np.stack([parts[i] for i in range(len(parts))], axis=1)
    return joined
