"""What the containers have in common: keys with a column, lengths that must agree, ranges inside the file.

A key may name a part of an array: "jet_features[3]" is a column of an array [entries, columns], as [entries], and
"p_norm[0,:]" is a row of an array [rows, entries], as [entries].
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foundation.data.formats.containers.damage import check_size
from foundation.data.formats.containers.source import Array, Ragged, Source
from foundation.errors import DataError, did_you_mean

PART_OF_ARRAY = re.compile(r"(?P<name>.+)\[(?P<index>\d+)(?P<across>,:)?\]")


@dataclass(frozen=True)
class Key:
    """A key taken apart: the array, and which column of it, or which row where the entries are the second axis."""

    text: str
    name: str
    index: int | None = None
    across: bool = False

    @classmethod
    def parse(cls, text: str) -> Key:
        """From "name", "name[3]" or "name[0,:]"."""
        match = PART_OF_ARRAY.fullmatch(text.replace(", :", ",:"))
        if match is None:
            return cls(text, text)
        return cls(text, match["name"], int(match["index"]), match["across"] is not None)


@dataclass(frozen=True)
class Held:
    """What a file holds under a name.

    shape:      (entries, ...) of a dense array, (entries,) of vectors
    bytes:      memory of one entry, about
    words:      type and shape for people
    unreadable: why it cannot be read as numbers, or None
    """

    shape: tuple[int, ...]
    bytes: float
    words: str
    ragged: bool = False
    unreadable: str | None = None


class KeyedSource(Source):
    """A source that knows the shapes of its arrays; containers say how one is found and read."""

    _cache: dict[str, Held]

    @abstractmethod
    def _look(self, name: str) -> Held:
        """What is held under a name of `keys`."""

    @abstractmethod
    def _read(self, names: list[str], start: int, stop: int) -> dict[str, Array]:
        """Arrays of entries start to stop of these names, of numbers in the machine's byte order."""

    def _read_across(self, name: str, row: int, start: int, stop: int) -> NDArray:
        """Columns start to stop of a row of an array [rows, entries]."""
        raise DataError(f"{self.path}: '{name}[{row},:]': rows along the entries can be read from HDF5 files only")

    def entries(self, keys: Sequence[str]) -> int:
        """Number of entries, the same for all these keys."""
        lengths = {key: self._length(self._parsed(key)) for key in keys}
        if not lengths:
            raise DataError(f"{self.path}: no keys are asked for")
        first = next(iter(lengths))
        for key, length in lengths.items():
            if length != lengths[first]:
                raise DataError(f"{self.path}: {first} has {lengths[first]} entries but {key} has {length}")
        return lengths[first]

    def bytes_per_entry(self, keys: Sequence[str]) -> float:
        """Memory that one entry of these keys takes when it is read, about."""
        parsed = [self._parsed(key) for key in keys]
        whole = {key.name for key in parsed if not key.across}
        across = sum(8.0 for key in parsed if key.across)
        return across + sum(self._held(name).bytes for name in whole)

    def read(self, keys: Sequence[str], start: int, stop: int) -> dict[str, Array]:
        """The arrays of entries start to stop (exclusive), by key."""
        total = self.entries(keys)
        if not 0 <= start <= stop <= total:
            raise DataError(f"{self.path}: entries {start} to {stop} are asked for, but there are {total}")
        parsed = [self._parsed(key) for key in keys]
        names = list(dict.fromkeys(key.name for key in parsed if not key.across))
        for name in names:
            check_size(self.path, name, self._held(name).bytes * (stop - start))
        arrays = self._read(names, start, stop) if names else {}
        for name, array in arrays.items():
            self._check_length(name, array, stop - start)
        return {key.text: self._part(key, arrays, start, stop) for key in parsed}

    def describe(self) -> dict[str, str]:
        """Key -> its type and shape in words."""
        return {key: self._held(key).words for key in self.keys}

    def _held(self, name: str) -> Held:
        if "_cache" not in self.__dict__:
            self._cache = {}
        if name not in self._cache:
            self._cache[name] = self._look(name)
        return self._cache[name]

    def _parsed(self, text: str) -> Key:
        """The key, after looking that there is such an array of numbers."""
        key = Key(text, text) if text in self.keys else Key.parse(text)
        if key.name not in self.keys:
            raise DataError(f"{self.path}: has no '{key.name}'{did_you_mean(key.name, self.keys)}")
        held = self._held(key.name)
        if held.unreadable is not None:
            raise DataError(f"{self.path}: '{key.name}' is {held.words}: {held.unreadable}")
        if key.index is None:
            return key
        axis = 0 if key.across else 1
        if held.ragged or len(held.shape) < 2:
            raise DataError(f"{self.path}: '{text}' asks for a part of '{key.name}', which is {held.words}")
        if key.index >= held.shape[axis]:
            what = "rows" if key.across else "columns"
            raise DataError(f"{self.path}: '{text}' is not there: '{key.name}' has {held.shape[axis]} {what}, from 0")
        return key

    def _length(self, key: Key) -> int:
        return self._held(key.name).shape[1 if key.across else 0]

    def _check_length(self, name: str, array: Array, wanted: int) -> None:
        """Damaged files can give fewer entries than they promise, without an exception."""
        there = len(array.counts) if isinstance(array, Ragged) else len(array)
        if there != wanted:
            raise DataError(f"{self.path}: '{name}' gave {there} entries instead of {wanted}: the file is damaged")
        if isinstance(array, Ragged) and (
            (len(array.counts) and array.counts.min() < 0) or int(array.counts.sum()) != len(array.values)
        ):
            raise DataError(f"{self.path}: lengths of the vectors of '{name}' do not fit: the file is damaged")

    def _part(self, key: Key, arrays: Mapping[str, Array], start: int, stop: int) -> Array:
        if key.across:
            assert key.index is not None
            return self._read_across(key.name, key.index, start, stop)
        array = arrays[key.name]
        if key.index is None or isinstance(array, Ragged):
            return array
        return array[:, key.index]


def native(array: NDArray) -> NDArray:
    """The same numbers in the machine's byte order; no copy where they already are."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def not_numbers(dtype: np.dtype) -> str | None:
    """Why arrays of this type are not read, or None for numbers and flags."""
    if dtype.hasobject:
        return "Python objects are never read from files; save it as an array of numbers"
    return None if dtype.kind in "biuf" else "it does not hold numbers"


def shape_in_words(dtype: object, shape: tuple[int | str, ...]) -> str:
    """ "float32 [100, 30, 4]" """
    return f"{dtype} [{', '.join(map(str, shape))}]"
