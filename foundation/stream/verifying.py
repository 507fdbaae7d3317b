"""A sharded dataset compared with its manifest and its index, file by file and byte by byte."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from isal.isal_zlib import crc32
from numpy.typing import NDArray

from foundation.console import Progress
from foundation.data.ragged import to_offsets
from foundation.errors import DataError
from foundation.stream.shard_index import (
    FORMAT,
    INDEX,
    LENGTHS,
    MANIFEST,
    TAR_RECORD,
    Member,
    index_type,
    member_rows,
)
from foundation.stream.storage import Storage, open_storage

PIECE = 2**22
"""Bytes of a file that are read at once where there are no blocks."""
AWAY = "not in the manifest: move it away"


class Finding(NamedTuple):
    """One thing that is wrong: in which file, in which block of it ("" for the whole file), and what."""

    file: str
    block: str
    what: str


@dataclass(frozen=True)
class Verified:
    """What was compared and what is wrong."""

    folder: str
    shards: int
    blocks: int
    bytes: int
    findings: tuple[Finding, ...]

    @property
    def bad_blocks(self) -> int:
        """Blocks with a finding of their own."""
        return sum(bool(finding.block) for finding in self.findings)


def read_manifest(folder: Path | str, cache: Path | None = None) -> dict[str, Any]:
    """The manifest of a dataset folder or URL. Raises DataError when there is none of this format."""
    return _manifest(open_storage(folder, cache))


def verify(folder: Path | str, *, quick: bool = False, workers: int = 1) -> Verified:
    """Compare every file of a dataset with its manifest, and every block with the index.

    Full: sizes, sha256, the CRC-32 of every block; each tar header, each .npy header, lengths and offsets must agree.
    quick: sizes, and the index alone. Raises DataError when there is no manifest to compare with.
    """
    storage = open_storage(folder)
    manifest = _manifest(storage)
    findings = list(_unknown_files(storage, manifest["shards"]))
    members = {name: Member(**member) for name, member in manifest["members"].items()}
    arrays: dict[str, NDArray] = {}
    for name in (INDEX, LENGTHS):
        problem = _file_problem(storage, name, manifest["files"][name], hashed=name == INDEX or not quick)
        if not problem:
            arrays[name], problem = _array(storage, name)
        if problem:
            findings.append(Finding(name, "", problem))
    index, lengths = arrays.get(INDEX), arrays.get(LENGTHS)
    if index is not None and (problem := _index_problem(index, manifest, members)):
        findings.append(Finding(INDEX, "", problem))
        index = None
    if index is not None and lengths is not None and (problem := _lengths_problem(index, lengths, manifest, quick)):
        findings.append(Finding(LENGTHS, "", problem))
        lengths = None
    check = partial(_shard_findings, storage, manifest["shards"], index, lengths, members, quick)
    with ThreadPoolExecutor(workers) as pool, Progress("verify", len(manifest["shards"]), "shards") as progress:
        # hashing and reading let other threads run
        for found in pool.map(check, range(len(manifest["shards"]))):
            findings += found
            progress.advance()
    return Verified(
        folder=storage.folder,
        shards=len(manifest["shards"]),
        blocks=sum(shard["blocks"] for shard in manifest["shards"]),
        bytes=sum(about["bytes"] for about in (*manifest["shards"], *manifest["files"].values())),
        findings=tuple(findings),
    )


def _manifest(storage: Storage) -> dict[str, Any]:
    where = storage.where(MANIFEST)
    try:
        manifest = json.loads(storage.read_all(MANIFEST))
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON ({error}): copy it again, or tokenise the dataset again") from None
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise DataError(f"{where}: format is {found}, expected {FORMAT}: tokenise the dataset again")
    return manifest


def _unknown_files(storage: Storage, shards: list[dict]) -> Iterator[Finding]:
    """Tars that nobody announced; an object store is not asked for a list."""
    if storage.local:
        known = {shard["name"] for shard in shards}
        for name in sorted(os.listdir(storage.folder)):
            if name.endswith(".tar") and name not in known:
                yield Finding(name, "", AWAY)


def _file_problem(storage: Storage, name: str, about: Mapping[str, Any], hashed: bool) -> str:
    """What is wrong with a whole file, in words; "" when nothing."""
    try:
        if not storage.exists(name):
            return "missing"
        size = storage.size(name)
        if size != about["bytes"]:
            return f"has {size} bytes, the manifest says {about['bytes']}"
        if hashed and sha256_of(storage, name, size) != about["sha256"]:
            return "sha256 differs from the manifest's"
    except DataError as error:
        return str(error)
    return ""


def sha256_of(storage: Storage, name: str, size: int) -> str:
    """sha256 of the first `size` bytes of a file, a few megabytes at a time."""
    digest = hashlib.sha256()
    for start in range(0, size, PIECE):
        digest.update(storage.read(name, start, min(start + PIECE, size)))
    return digest.hexdigest()


def _array(storage: Storage, name: str) -> tuple[NDArray, str]:
    try:
        return storage.array(name), ""
    except DataError as error:
        return np.zeros(0), str(error)


def _index_problem(index: NDArray, manifest: Mapping[str, Any], members: Mapping[str, Member]) -> str:
    shards = manifest["shards"]
    blocks = [shard["blocks"] for shard in shards]
    if index.dtype != index_type(members) or index.shape != (sum(blocks),):
        return f"does not have {sum(blocks)} lines of the manifest's members"
    if not np.array_equal(index["shard"], np.repeat(np.arange(len(shards)), blocks)):
        return "its blocks are not in the shards that the manifest says"
    for key in ("sequences", "points"):
        if int(index[key].sum()) != manifest[key]:
            return f"adds up to {int(index[key].sum())} {key}, the manifest says {manifest[key]}"
    ends = index["offset"] + index["bytes"]
    first = np.flatnonzero(np.diff(index["shard"], prepend=-1))
    starts = np.roll(ends, 1)
    starts[first] = 0
    if not np.array_equal(starts, index["offset"]):
        return "its blocks do not follow each other without gaps"
    last = np.append(first[1:], len(index)) - 1
    full = np.array([shard["bytes"] for shard in shards if shard["blocks"]])
    return "its blocks go on behind the end of a shard" if (ends[last] > full).any() else ""


def _lengths_problem(index: NDArray, lengths: NDArray, manifest: Mapping[str, Any], quick: bool) -> str:
    if lengths.shape != (manifest["sequences"],) or lengths.dtype.kind != "u":
        return f"does not hold {manifest['sequences']} unsigned numbers"
    if quick or not len(lengths):
        return ""
    firsts = to_offsets(index["sequences"].astype(np.int64))
    for block, (start, stop) in enumerate(zip(firsts[:-1].tolist(), firsts[1:].tolist(), strict=True)):
        if int(lengths[start:stop].sum(dtype=np.int64)) != index["points"][block]:
            return f"block {block} of the dataset does not have the points that {INDEX} says"
    return ""


def _shard_findings(
    storage: Storage,
    shards: list[dict],
    index: NDArray | None,
    lengths: NDArray | None,
    members: Mapping[str, Member],
    quick: bool,
    number: int,
) -> list[Finding]:
    """What is wrong with one shard."""
    shard = shards[number]
    name = shard["name"]
    problem = _file_problem(storage, name, shard, hashed=index is None and not quick)
    found = [Finding(name, "", problem)] if problem else []
    if quick or index is None or problem == "missing":
        return found
    first, stop = np.searchsorted(index["shard"], [number, number + 1])
    digest, size = hashlib.sha256(), storage.size(name)
    at = int(index["sequences"][:first].sum())
    for place, line in enumerate(index[first:stop]):
        sequences = int(line["sequences"])
        own = None if lengths is None else lengths[at : at + sequences]
        at += sequences
        start, end = int(line["offset"]), int(line["offset"]) + int(line["bytes"])
        try:
            data = storage.read(name, min(start, size), min(end, size))
        except DataError as error:
            return [*found, Finding(name, f"{number:06d}-{place:05d}", str(error))]
        digest.update(data)
        if problem := block_problem(data, line, members, own):
            found.append(Finding(name, f"{number:06d}-{place:05d}", problem))
    if not found:
        end = int(index["offset"][stop - 1]) + int(index["bytes"][stop - 1]) if stop > first else 0
        digest.update(storage.read(name, end, size))
        if digest.hexdigest() != shard["sha256"]:
            found.append(Finding(name, "", "sha256 differs, though every block is fine: the end of the tar is changed"))
    return found


def block_problem(
    data: memoryview, line: np.void, members: Mapping[str, Member], lengths: NDArray[np.unsignedinteger] | None
) -> str:
    """What is wrong with the bytes of a block, given its line of the index; "" when nothing.

    lengths: points of its sequences, where they are known from elsewhere
    """
    if len(data) < line["bytes"]:
        return "lies behind the end of the file" if not len(data) else "is cut off by the end of the file"
    if crc32(data) != line["crc32"]:
        return f"{', '.join(_damaged_members(data, line, members)) or 'a tar header'}: CRC differs"
    for name, member in members.items():
        content, header = _bytes_of(data, line, name)
        rows = member_rows(name, int(line["sequences"]), int(line["points"]))
        try:
            info = tarfile.TarInfo.frombuf(bytes(header), "utf-8", "strict")
            array = np.load(io.BytesIO(content), allow_pickle=False)
        except (tarfile.HeaderError, ValueError, EOFError) as error:
            return f"{name}.npy: not a member of a tar, or not a .npy array ({error})"
        if not info.name.endswith(f".{name}.npy") or info.size != len(content):
            return f"{name}.npy: the tar has '{info.name}' of {info.size} bytes in its place"
        if array.dtype != np.dtype(member.dtype) or array.shape != member.shape(rows):
            return f"{name}.npy: {array.dtype} {array.shape}, expected {member.dtype} {member.shape(rows)}"
        if name == "offsets" and (
            array[0] or array[-1] != line["points"] or (np.diff(array.astype(np.int64)) < 0).any()
        ):
            return "offsets.npy: does not divide the points of the block"
        if name == "offsets" and lengths is not None and not np.array_equal(np.diff(array), lengths):
            return f"offsets.npy: does not agree with {LENGTHS}"
    return ""


def _damaged_members(data: memoryview, line: np.void, members: Mapping[str, Member]) -> list[str]:
    contents = {name: _bytes_of(data, line, name)[0] for name in members}
    return [f"{name}.npy" for name, content in contents.items() if crc32(content) != line[f"{name}_crc32"]]


def _bytes_of(data: memoryview, line: np.void, name: str) -> tuple[memoryview, memoryview]:
    """Content of a member and its tar header."""
    start = int(line[f"{name}_at"])
    return data[start : start + int(line[f"{name}_bytes"])], data[start - TAR_RECORD : start]
