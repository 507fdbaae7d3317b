"""Check of the heaps in which HDF5 keeps vectors, before the library reads them.

HDF5 walks through a heap object by object. When a damaged size leads it to a place of zeros it never comes out again,
and a damaged length makes it ask for gigabytes. Heaps have no checksum, so their sizes are followed here first. The
layout is that of the HDF5 File Format Specification (global heap, variable-length datatypes).
"""

from __future__ import annotations

import os
import struct
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

HEAP = struct.Struct("<4sB3xQ")  # signature, version, size of the heap with this header
OBJECT = struct.Struct("<HH4xQ")  # index (0: the space that is free), references, size of its data
VECTOR = np.dtype([("length", "<u4"), ("heap", "<u8"), ("index", "<u4")])


def check_vectors(dataset: Any, start: int, stop: int) -> None:
    """Raises ValueError, OSError or struct.error where the vectors of rows start to stop cannot be where they should.

    Files with addresses of other sizes than 8 bytes, with a user block or with packed references are not looked at:
    they are written only where somebody asks for it.
    """
    settings = dataset.file.id.get_create_plist()
    layout = dataset.id.get_create_plist()
    if settings.get_sizes() != (8, 8) or settings.get_userblock() or layout.get_nfilters():
        return
    file = dataset.file.id.get_vfd_handle()
    vectors = _references(dataset, layout.get_layout(), file, start, stop)
    vectors = vectors[vectors["length"] > 0]
    item = h5py.check_vlen_dtype(dataset.dtype).itemsize
    end = os.fstat(file).st_size
    heaps = {int(address): _sizes(file, int(address), end) for address in np.unique(vectors["heap"])}
    for length, address, index in vectors.tolist():
        if length * item > heaps[address].get(index, -1):
            raise ValueError(f"a vector of {length} numbers is not in its heap")


def _references(dataset: Any, layout: int, file: int, start: int, stop: int) -> NDArray[np.void]:
    """Where the vectors of these rows are, as the file says."""
    if layout == h5py.h5d.CONTIGUOUS:
        first = dataset.id.get_offset()
        return _at(file, None if first is None else first + start * VECTOR.itemsize, stop - start)
    if layout != h5py.h5d.CHUNKED:
        return np.empty(0, VECTOR)
    size = dataset.chunks[0]
    pieces = [np.empty(0, VECTOR)]
    for chunk in range(start // size * size, stop, size):
        place = dataset.id.get_chunk_info_by_coord((chunk,)).byte_offset
        pieces.append(_at(file, place, size)[max(start - chunk, 0) : stop - chunk])
    return np.concatenate(pieces)


def _at(file: int, place: int | None, rows: int) -> NDArray[np.void]:
    """References at a place of the file; none where nothing was written."""
    if place is None:
        return np.empty(0, VECTOR)
    return np.frombuffer(os.pread(file, rows * VECTOR.itemsize, place), VECTOR)


def _sizes(file: int, address: int, end: int) -> dict[int, int]:
    """Bytes of the objects of a heap, by index."""
    signature, version, size = HEAP.unpack(os.pread(file, HEAP.size, address))
    if signature != b"GCOL" or version != 1 or address + size > end:
        raise ValueError(f"there is no heap at {address}")
    sizes: dict[int, int] = {}
    at, end = address + HEAP.size, address + size
    while end - at >= OBJECT.size:
        index, _, bytes_ = OBJECT.unpack(os.pread(file, OBJECT.size, at))
        # The size of free space is that with its header, and not rounded.
        taken = OBJECT.size + (bytes_ + 7) // 8 * 8 if index else bytes_
        if taken < OBJECT.size or at + taken > end:
            raise ValueError(f"the heap at {address} is damaged")
        sizes[index] = bytes_
        at += taken
    return sizes
