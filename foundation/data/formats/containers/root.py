"""ROOT files, by uproot: a TTree or an RNTuple with numbers, arrays of fixed size or vectors of numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import uproot
from numpy.typing import NDArray

from foundation.data.formats.containers.damage import damage_as_data_error
from foundation.data.formats.containers.keyed import Held, KeyedSource, native, not_numbers, shape_in_words
from foundation.data.formats.containers.sink import Sink
from foundation.data.formats.containers.source import Array, Ragged
from foundation.data.ragged import to_offsets
from foundation.errors import DataError, did_you_mean

TREES = ("TTree", "TNtuple", "TNtupleD", "ROOT::RNTuple")
LARGEST_WINDOW = 2**29
"""Bytes of whole baskets that are kept for the next range: beyond it, baskets at the edges are unpacked twice."""
UNPACKED = 3.0
"""Size of numbers in memory over that in an RNTuple's file, about."""
ENTRIES_PER_BASKET = 8192
"""Of files that are written: a range of entries then unpacks little more than itself."""


def trees_of(path: Path) -> tuple[str, ...]:
    """Names of the TTrees and RNTuples of a ROOT file."""
    with damage_as_data_error(path), _opened(path) as file:
        return _tree_names(file)


def _opened(path: Path) -> Any:
    # Plain reads of the file: uproot's default goes through fsspec, which is slower, and a memory map turns an I/O
    # error into a signal that ends the process.
    return uproot.open(path, handler=uproot.source.file.MultithreadedFileSource, array_cache=None, object_cache=None)


def _tree_names(file: Any) -> tuple[str, ...]:
    names = file.classnames(cycle=False)
    return tuple(name for name, kind in names.items() if kind in TREES)


@dataclass(frozen=True)
class _Window:
    """Entries start to stop of some branches, as whole baskets."""

    names: tuple[str, ...]
    start: int
    stop: int
    arrays: dict[str, Array]


class RootSource(KeyedSource):
    """One TTree or RNTuple of a ROOT file.

    tree: its name; without it, the only one of the file
    """

    def __init__(self, path: Path, tree: str | None = None) -> None:
        super().__init__(path)
        with damage_as_data_error(path):
            self._file = _opened(path)
            try:
                self._tree = self._file[self._chosen(tree)]
                self._is_rntuple = not hasattr(self._tree, "branches")
                self._keys = tuple(dict.fromkeys(self._tree.keys()))
            except BaseException:
                self._file.close()
                raise
        self._window: _Window | None = None
        self._boundaries: dict[tuple[str, ...], NDArray[np.int64]] = {}

    def _chosen(self, tree: str | None) -> str:
        names = _tree_names(self._file)
        if tree is None and len(names) == 1:
            return names[0]
        if tree is None:
            raise DataError(f"{self.path}: has {len(names)} trees; say which one ({', '.join(names)})")
        if tree not in names:
            raise DataError(f"{self.path}: has no tree '{tree}'{did_you_mean(tree, names)}")
        return tree

    @property
    def keys(self) -> tuple[str, ...]:
        return self._keys

    def close(self) -> None:
        self._window = None
        self._file.close()

    def _look(self, name: str) -> Held:
        with damage_as_data_error(self.path, name):
            branch = self._tree[name]
            entries, kind = int(branch.num_entries), str(branch.typename)
            if self._is_rntuple:
                dtype, inner, ragged = _type_of_form(branch.to_akform())
                # Reading a few entries would unpack whole clusters; the file's size says enough for the size of ranges.
                size = UNPACKED * self.path.stat().st_size / max(1, entries) / len(self._keys)
            else:
                dtype, inner, ragged = _type_of_branch(branch)
                size = branch.uncompressed_bytes / max(1, entries)
        if dtype is None:
            return Held((entries,), size, f"{kind} [{entries}]", unreadable="only numbers and vectors of them are read")
        words = shape_in_words(dtype, (entries, "*") if ragged else (entries, *inner))
        # One entry of a damaged branch may claim any size; baskets hold at least the bytes they unpack to.
        return Held((entries, *inner), size, words, ragged, not_numbers(dtype))

    def _read(self, names: list[str], start: int, stop: int) -> dict[str, Array]:
        """Ranges that follow each other unpack each basket once: what is left of the last one is kept."""
        wanted = tuple(names)
        window = self._window
        if window is not None and window.names == wanted and window.start <= start <= window.stop:
            if stop <= window.stop:
                return _entries_of(window, start, stop)
            head = [_entries_of(window, start, window.stop)] if start < window.stop else []
            tail_start = window.stop
        else:
            head, tail_start = [], start
        self._window = None
        tail = self._whole_baskets(wanted, tail_start, stop)
        if tail.stop > stop:
            self._window = tail
        pieces = [*head, _entries_of(tail, tail_start, stop)]
        return {name: _joined([piece[name] for piece in pieces]) for name in names}

    def _whole_baskets(self, names: tuple[str, ...], start: int, stop: int) -> _Window:
        edges = self._edges(names)
        first = int(edges[np.searchsorted(edges, start, side="right") - 1])
        last = int(edges[min(int(np.searchsorted(edges, stop)), len(edges) - 1)])
        if first > start or last < stop or (last - first) * self.bytes_per_entry(names) > LARGEST_WINDOW:
            first, last = start, stop
        with damage_as_data_error(self.path, ", ".join(names)):
            arrays = self._arrays(names, first, last)
        return _Window(names, first, last, arrays)

    def _edges(self, names: tuple[str, ...]) -> NDArray[np.int64]:
        """Entries at which a basket (or a cluster) begins in all these branches, and the end."""
        if names not in self._boundaries:
            with damage_as_data_error(self.path, ", ".join(names)):
                ends = np.asarray([0, self._held(names[0]).shape[0]], np.int64)
                if self._is_rntuple:
                    found = np.asarray([c.num_first_entry for c in self._tree.cluster_summaries], np.int64)
                else:
                    found = np.asarray(self._tree[names[0]].entry_offsets, np.int64)
                    for name in names[1:]:
                        found = np.intersect1d(found, np.asarray(self._tree[name].entry_offsets, np.int64))
            self._boundaries[names] = np.union1d(found[(found >= 0) & (found <= ends[1])], ends)
        return self._boundaries[names]

    def _arrays(self, names: tuple[str, ...], start: int, stop: int) -> dict[str, Array]:
        options: dict[str, Any] = {"entry_start": start, "entry_stop": stop, "array_cache": None}
        if self._is_rntuple:
            # All at once: a field alone would unpack the pages of all the others too.
            table = self._tree.arrays(list(names), **options)
            return {name: _of_layout(table[name].layout) for name in names}
        options["library"] = "ak"
        return {name: _of_layout(self._tree[name].array(**options).layout) for name in names}


def _type_of_branch(branch: Any) -> tuple[np.dtype | None, tuple[int, ...], bool]:
    """Type of numbers, inner shape, and whether they are vectors; None where it is anything else."""
    interpretation = branch.interpretation
    ragged = isinstance(interpretation, uproot.AsJagged)
    content = interpretation.content if ragged else interpretation
    if not isinstance(content, uproot.AsDtype) or content.to_dtype.fields or (ragged and content.inner_shape):
        return None, (), False
    return content.to_dtype.base.newbyteorder("="), tuple(content.inner_shape), ragged


def _type_of_form(form: Any) -> tuple[np.dtype | None, tuple[int, ...], bool]:
    """As `_type_of_branch`, of a field of an RNTuple."""
    form = form[0] if isinstance(form, tuple) else form
    if form.is_record and len(form.contents) == 1:
        form = form.contents[0]
    inner: tuple[int, ...] = ()
    ragged = bool(form.is_list and not form.is_regular)
    content = form.content if ragged else form
    while content.is_regular:
        inner, content = (*inner, content.size), content.content
    if not content.is_numpy or content.parameter("__array__") is not None or (ragged and inner):
        return None, (), False
    return np.dtype(content.primitive), (*inner, *content.inner_shape), ragged


def _of_layout(layout: Any) -> Array:
    """The arrays inside an awkward array, not copied."""
    if not layout.is_list or layout.is_regular:
        return native(np.asarray(ak.to_numpy(layout)))
    layout = layout.to_ListOffsetArray64(False)
    offsets, content = np.asarray(layout.offsets.data), layout.content
    if not content.is_numpy:
        content = content.to_packed()
    values = native(np.asarray(content.data)[offsets[0] : offsets[-1]])
    return Ragged(values, np.diff(offsets).astype(np.int64, copy=False))


def _entries_of(window: _Window, start: int, stop: int) -> dict[str, Array]:
    if (start, stop) == (window.start, window.stop):
        return window.arrays
    return {name: entries_of(array, start - window.start, stop - window.start) for name, array in window.arrays.items()}


def entries_of(array: Array, start: int, stop: int) -> Array:
    """Entries start to stop of an array, not copied."""
    if not isinstance(array, Ragged):
        return array[start:stop]
    before = int(array.counts[:start].sum())
    counts = array.counts[start:stop]
    return Ragged(array.values[before : before + int(counts.sum())], counts)


def _joined(arrays: list[Array]) -> Array:
    if len(arrays) == 1:
        return arrays[0]
    values = [array.values if isinstance(array, Ragged) else array for array in arrays]
    counts = [array.counts for array in arrays if isinstance(array, Ragged)]
    return Ragged(np.concatenate(values), np.concatenate(counts)) if counts else np.concatenate(values)


class RootSink(Sink):
    """Writes a TTree, or an RNTuple.

    uproot cannot write std::vector branches into a TTree. A vector becomes a C array of variable length,
    `part_px[npart_px]/F`, with a branch `npart_px` that counts: uproot, awkward, RDataFrame and coffea read it like a
    vector of the JetClass files; C++ code that calls SetBranchAddress with a std::vector* does not. An RNTuple has
    true std::vector<float> fields, and needs ROOT 6.34 or uproot to read. Both are packed by zlib, as the published
    files are.
    """

    def __init__(self, path: Path, tree: str, rntuple: bool = False, attributes: Mapping[str, str] | None = None):
        self._file = uproot.recreate(path, compression=uproot.ZLIB(1))
        self._name, self._rntuple, self._attributes = tree, rntuple, dict(attributes or {})
        self._tree: Any = None

    def append(self, arrays: Mapping[str, Array]) -> None:
        total = len(next(iter(awkward_arrays(arrays).values())))
        for start in range(0, max(total, 1), ENTRIES_PER_BASKET):
            stop = min(total, start + ENTRIES_PER_BASKET)
            self._extend({key: entries_of(array, start, stop) for key, array in arrays.items()})

    def _extend(self, arrays: Mapping[str, Array]) -> None:
        data = awkward_arrays(arrays)
        if self._tree is None:
            types = {key: _branch_type(array) for key, array in arrays.items()}
            if self._rntuple:
                self._tree = self._file.mkrntuple(self._name, ak.Array(data)[:0])
            else:
                self._tree = self._file.mktree(self._name, types)
        self._tree.extend(data)

    def finish(self) -> None:
        for name, text in self._attributes.items():
            self._file[name] = text

    def close(self) -> None:
        self._file.close()


def awkward_arrays(arrays: Mapping[str, Array]) -> dict[str, Any]:
    """The same arrays as awkward has them, not copied."""
    return {
        key: ak.Array(
            ak.contents.ListOffsetArray(
                ak.index.Index64(to_offsets(array.counts)), ak.contents.NumpyArray(np.ascontiguousarray(array.values))
            )
        )
        if isinstance(array, Ragged)
        else np.ascontiguousarray(array)
        for key, array in arrays.items()
    }


def _branch_type(array: Array) -> Any:
    if isinstance(array, Ragged):
        return f"var * {array.values.dtype}"
    return np.dtype((array.dtype, array.shape[1:])) if array.ndim > 1 else array.dtype
