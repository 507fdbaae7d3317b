"""What stands in a shard and where: members of a block, and the index by which any block is found and checked.

A block is a run of whole tar records: the header and the data of one member after the other, padded as tar has it. One
CRC-32 over the run notices every changed bit, in the headers too; those of the members tell which one it was.
"""

from __future__ import annotations

import hashlib
import io
import mmap
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from isal.isal_zlib import crc32
from numpy.typing import NDArray

from foundation.errors import DataError

FORMAT = "foundation/shards/2"
MANIFEST, INDEX, LENGTHS = "manifest.json", "index.npy", "lengths.npy"
NPY_HEADER = 128
"""Bytes before the data of a member: all of them are arrays of one or two axes, whose .npy header has this length."""
TAR_RECORD = 512


@dataclass(frozen=True)
class Columns:
    """What a dataset stores of each point and each sequence.

    streams: K codes per point, none above `largest_code`; conditions: C numbers per sequence; features: names of the F
    continuous features per point that travel beside the codes, in the type `feature_type`
    """

    streams: int
    largest_code: int
    conditions: int = 0
    features: tuple[str, ...] = ()
    feature_type: Literal["float16", "float32"] = "float32"

    @property
    def code_type(self) -> str:
        """The smallest unsigned type that holds every code."""
        return smallest_unsigned(self.largest_code)

    @property
    def point_bytes(self) -> int:
        """Bytes of a point: its codes and features."""
        return (
            self.streams * np.dtype(self.code_type).itemsize + len(self.features) * np.dtype(self.feature_type).itemsize
        )


@dataclass(frozen=True)
class Member:
    """One array of every block; without `columns` it has one axis."""

    dtype: str
    columns: int | None = None

    def shape(self, rows: int) -> tuple[int, ...]:
        """Shape with this many rows."""
        return (rows,) if self.columns is None else (rows, self.columns)

    def size(self, rows: int) -> int:
        """Bytes of the member with this many rows, its .npy header included."""
        return NPY_HEADER + rows * (1 if self.columns is None else self.columns) * np.dtype(self.dtype).itemsize


def members_of(columns: Columns, label_type: str) -> dict[str, Member]:
    """Name -> member, in the order in which they stand in a block (WebDataset sorts them)."""
    members = {
        "codes": Member(columns.code_type, columns.streams),
        "conditions": Member("float32", columns.conditions),
        "features": Member(columns.feature_type, len(columns.features)),
        "ids": Member("uint64"),
        "labels": Member(label_type),
        "offsets": Member("uint32"),
    }
    if not columns.features:
        del members["features"]
    return members


def member_rows(name: str, sequences: int, points: int) -> int:
    """Rows of a member of a block with so many sequences and points."""
    return {"codes": points, "features": points, "offsets": sequences + 1}.get(name, sequences)


def smallest_unsigned(largest: int) -> str:
    """The smallest unsigned type that holds 0 .. largest."""
    return next(name for name in ("uint8", "uint16", "uint32", "uint64") if largest <= np.iinfo(name).max)


def smallest_signed(lowest: int, highest: int) -> str:
    """The smallest signed type that holds lowest .. highest."""
    fits = (name for name in ("int8", "int16", "int32", "int64") if np.iinfo(name).min <= lowest)
    return next(name for name in fits if highest <= np.iinfo(name).max)


def index_type(members: Mapping[str, Member]) -> np.dtype:
    """A line of the index, one per block.

    shard, offset, bytes, crc32: which bytes of which tar are the block (whole tar records), and their CRC-32
    sequences, points:           what is in it
    NAME_at, NAME_bytes, NAME_crc32: where the .npy of a member begins, counted from `offset`, its size and its CRC-32
    """
    fields = [("shard", "<u4"), ("offset", "<u8"), ("bytes", "<u4"), ("crc32", "<u4")]
    fields += [("sequences", "<u4"), ("points", "<u8")]
    for name in members:
        fields += [(f"{name}_at", "<u4"), (f"{name}_bytes", "<u4"), (f"{name}_crc32", "<u4")]
    return np.dtype(fields)


def index_shard(path: Path, number: int, members: Mapping[str, Member]) -> NDArray[np.void]:
    """The lines of the index for a finished tar, found by reading it. Raises DataError when it holds something else."""
    with path.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            with tarfile.open(fileobj=f) as tar:
                found = list(tar)
        except tarfile.TarError as error:
            raise DataError(f"{path}: not a tar, or a damaged one ({error})") from None
        blocks = [found[i : i + len(members)] for i in range(0, len(found), len(members))]
        index = np.zeros(len(blocks), index_type(members))
        index["shard"] = number
        for place, block in enumerate(blocks):
            _describe(index[place], path, block, data, members)
    return index


def _describe(
    line: np.void, path: Path, block: list[tarfile.TarInfo], data: mmap.mmap, members: Mapping[str, Member]
) -> None:
    """Fill the line of one block."""
    key = block[0].name.split(".")[0]
    if [info.name for info in block] != [f"{key}.{name}.npy" for name in members]:
        raise DataError(f"{path}: block {key}: its members are not {', '.join(members)}")
    start, stop = block[0].offset, block[-1].offset_data + -(-block[-1].size // TAR_RECORD) * TAR_RECORD
    line["offset"], line["bytes"], line["crc32"] = start, stop - start, crc32(data[start:stop])
    rows: dict[str, int] = {}
    for info, (name, member) in zip(block, members.items(), strict=True):
        content = data[info.offset_data : info.offset_data + info.size]
        rows[name] = _rows(content, member, f"{path}: block {key}, member {name}.npy")
        line[f"{name}_at"] = info.offset_data - start
        line[f"{name}_bytes"] = info.size
        line[f"{name}_crc32"] = crc32(content)
    line["sequences"], line["points"] = rows["labels"], rows["codes"]
    if any(rows[name] != member_rows(name, rows["labels"], rows["codes"]) for name in members):
        raise DataError(f"{path}: block {key}: its members disagree about the number of sequences or points")


def _rows(content: bytes, member: Member, where: str) -> int:
    """Rows of a .npy file that must be of this member's type."""
    header = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(header)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(header)
    except ValueError as error:
        raise DataError(f"{where}: not a .npy array ({error})") from None
    wanted = version == (1, 0) and not fortran and dtype == np.dtype(member.dtype) and header.tell() == NPY_HEADER
    if not wanted or shape != member.shape(shape[0]):
        raise DataError(f"{where}: an array {dtype} {shape}, expected {member.dtype} with {member.columns} columns")
    return shape[0]


def file_digest(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
