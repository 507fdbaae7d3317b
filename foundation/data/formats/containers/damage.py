"""Damaged files: whatever a library raises on one becomes a DataError that names the file and the key.

What the containers themselves can notice of a changed bit:

| container | noticed | not noticed |
|---|---|---|
| ROOT, TTree | in baskets packed with zlib, lzma or lz4 (adler32, crc32, xxhash) | in zstd and unpacked baskets, keys |
| ROOT, RNTuple | in header, footer, page lists (xxh3) and packed pages | in pages that are not packed |
| Parquet | in pages with a CRC32, where the writer set one (we do) | in headers of pages, the footer |
| HDF5 | in chunks with gzip or Fletcher-32, in metadata of version 2 (we write all three) | in vectors, the rest |
| npz | anywhere in an array (CRC32), when its last entry has been read | |
| showerdata | as HDF5 | the points: they are vectors |
"""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from foundation.errors import DataError

LARGEST_READ = 2**32
"""Bytes. No sensible range of entries takes more; sizes in a damaged file can be anything up to 2^64."""

DAMAGE = (
    OSError,  # h5py on truncation, bad checksums and filters; pyarrow on bad thrift and CRC
    EOFError,  # files that end in the middle of a member
    RuntimeError,  # h5py on bad object headers; with RecursionError (references in a circle), NotImplementedError
    ValueError,  # numpy and uproot on sizes that do not fit, with UnicodeError on names; pyarrow.ArrowInvalid
    TypeError,  # uproot and h5py on objects of another kind than expected
    LookupError,  # KeyError, IndexError: h5py and uproot on links to nowhere
    ArithmeticError,  # sizes of zero or beyond 64 bits
    AttributeError,  # uproot, when a damaged streamer left out a member
    AssertionError,  # uproot's own checks, RNTuple checksums among them
    MemoryError,  # absurd sizes
    struct.error,  # uproot, at the end of a truncated file
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
)
LIBRARIES = {"uproot", "awkward", "cramjam", "pyo3_runtime", "pyarrow", "h5py", "showerdata"}
"""Libraries with exceptions of their own that derive from none of the above; pyo3_runtime is a panic of cramjam."""


@contextmanager
def damage_as_data_error(path: Path, key: str | None = None) -> Iterator[None]:
    """Around calls of a library on a file: what they raise becomes a DataError. Other exceptions pass."""
    try:
        # A flipped bit in a number can overflow in a cast; the value itself is judged later, against the card.
        with np.errstate(all="ignore"):
            yield
    except DataError:
        raise
    except BaseException as error:
        if not isinstance(error, DAMAGE) and type(error).__module__.split(".")[0] not in LIBRARIES:
            raise
        what = f"'{key}' cannot be read" if key else "cannot be read"
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DataError(
            f"{path}: {what}: the file is damaged, incomplete or of a kind that is not supported ({said}); "
            f"copy or download it again"
        ) from error


def check_size(path: Path, key: str, size: float) -> None:
    """DataError where one read would take more than LARGEST_READ bytes."""
    if not size <= LARGEST_READ:
        raise DataError(
            f"{path}: '{key}' would take {size / 2**30:.1f} GiB at once; read fewer entries, or the file is damaged"
        )
