"""Files that appear under their names complete, or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

from foundation.errors import DataError


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Write to a temporary name beside `path`; the name is given when all is on disk.

    Raises DataError when the file cannot be written, a full disk included; then nothing is left of it.
    """
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}); make room or choose another folder and run again: "
            "what is finished is kept"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, data: object) -> None:
    """Write JSON whole or not at all."""
    with written_whole(path) as f:
        f.write(json.dumps(data, indent=1).encode())


def npy_header(dtype: DTypeLike, shape: tuple[int, ...]) -> bytes:
    """What a .npy file of this type and shape begins with."""
    header = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
    return header.getvalue()


def write_npy(path: Path, dtype: DTypeLike, length: int, pieces: Iterable[NDArray]) -> dict[str, object]:
    """Write `length` rows that come in pieces as one .npy file; its size and sha256, as a manifest has them."""
    digest = hashlib.sha256()
    size = 0
    with written_whole(path) as f:
        for data in _chunks(dtype, length, pieces):
            f.write(data)
            digest.update(data)
            size += len(data)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _chunks(dtype: DTypeLike, length: int, pieces: Iterable[NDArray]) -> Iterator[bytes]:
    yield npy_header(dtype, (length,))
    left = length
    for piece in pieces:
        left -= len(piece)
        yield np.ascontiguousarray(piece, dtype).tobytes()
    assert left == 0, "the pieces do not add up"
