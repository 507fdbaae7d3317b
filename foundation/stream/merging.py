"""Several folders of shards joined to one without reading a sequence: shards are linked, the index is written anew."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foundation.console import Progress
from foundation.errors import DataError
from foundation.stream.shard_index import INDEX, LENGTHS, MANIFEST, Member, index_type, smallest_unsigned
from foundation.stream.shuffling import sum_counts
from foundation.stream.storage import Storage, open_storage
from foundation.stream.verifying import read_manifest, sha256_of
from foundation.stream.whole_files import write_json, write_npy, written_whole

PIECE = 2**24
NO_LINK = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS)
"""Why a file system makes no hard link; then the file is copied."""
PER_FOLDER = {
    "sequences", "points", "longest", "seed", "made_from", "counted", "sources", "merged", "block_sequences",
    "block_bytes", "files", "shards",
}  # fmt: skip
"""What may differ between folders that are merged. All the rest says what the sequences mean."""


def merge(folders: Sequence[Path | str], to: Path) -> dict[str, Any]:
    """Write the sequences of several folders as one dataset and return its manifest.

    Shards are hard-linked where the file system can, else copied and compared with their sha256; they are renumbered in
    the order of the folders. The result appears under its name when it is complete.

    Raises DataError when the folders do not hold the same kind of sequences, or a shard twice.
    """
    if len(folders) < 2:
        raise DataError("merge: give at least two folders")
    if to.exists():
        raise DataError(f"{to}: exists already; give the name of a new folder")
    storages = [open_storage(folder) for folder in folders]
    manifests = [read_manifest(folder) for folder in folders]
    for folder, manifest in zip(folders[1:], manifests[1:], strict=True):
        _check_same_kind(manifests[0], manifest, f"{folder} and {folders[0]}")
    _check_shards_differ(folders, manifests)
    part = to.with_name(to.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        manifest = {
            **manifests[0],
            **_sums(manifests),
            "seed": None,
            "made_from": None,
            "merged": [entry for m, s in zip(manifests, storages, strict=True) for entry in _origin(m, s)],
            "files": _join_files(storages, manifests, part),
            "shards": _bring_shards(storages, manifests, part),
        }
        write_json(part / MANIFEST, manifest)
        os.rename(part, to)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return manifest


def _check_same_kind(first: Mapping[str, Any], other: Mapping[str, Any], which: str) -> None:
    for key in sorted((set(first) | set(other)) - PER_FOLDER):
        if first.get(key) != other.get(key):
            ours, theirs = (str(m.get(key, "not given"))[:60] for m in (other, first))
            raise DataError(
                f"{which} cannot be merged: {key} is {ours} and {theirs}; tokenise both in one stage, or give both as "
                "datasets of a mixture"
            )


def _check_shards_differ(folders: Sequence[Path | str], manifests: Sequence[Mapping[str, Any]]) -> None:
    """The same shard twice would be the same sequences twice in every epoch."""
    seen: dict[str, str] = {}
    for folder, manifest in zip(folders, manifests, strict=True):
        for shard in manifest["shards"]:
            where = f"{folder}/{shard['name']}"
            if shard["sha256"] in seen:
                raise DataError(f"{where} is the same as {seen[shard['sha256']]}: leave one of the folders out")
            seen[shard["sha256"]] = where


def _sums(manifests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        **{key: sum(m[key] for m in manifests) for key in ("sequences", "points")},
        **{key: max(m[key] for m in manifests) for key in ("longest", "block_sequences", "block_bytes")},
        "counted": sum_counts([m["counted"] for m in manifests]),
        "sources": [source for m in manifests for source in m["sources"]],
    }


def _origin(manifest: Mapping[str, Any], storage: Storage) -> list[dict[str, Any]]:
    """Where a run of shards comes from: their ids count through their own sources."""
    if manifest.get("merged"):
        return list(manifest["merged"])
    digest = hashlib.sha256(storage.read_all(MANIFEST)).hexdigest()
    counts = {"shards": len(manifest["shards"]), "sources": len(manifest["sources"])}
    return [{"manifest": digest, "seed": manifest["seed"], "sequences": manifest["sequences"], **counts}]


def _bring_shards(storages: Sequence[Storage], manifests: Sequence[Mapping[str, Any]], to: Path) -> list[dict]:
    """Link or copy all shards under new numbers; their lines for the manifest."""
    found = [(storage, shard) for storage, m in zip(storages, manifests, strict=True) for shard in m["shards"]]
    lines = []
    with Progress("merge", len(found), "shards") as progress:
        for number, (storage, shard) in enumerate(found):
            name = f"{number:06d}.tar"
            if not (storage.local and _linked(storage, shard, to / name)):
                _copy(storage, shard, to / name)
            lines.append({**shard, "name": name})
            progress.advance()
    return lines


def _linked(storage: Storage, shard: Mapping[str, Any], to: Path) -> bool:
    """Make a hard link, unless the file system cannot."""
    if (size := storage.size(shard["name"])) != shard["bytes"]:
        raise DataError(
            f"{storage.where(shard['name'])}: has {size} bytes, the manifest says {shard['bytes']}: run "
            "`foundation shards verify` and copy the shard again"
        )
    try:
        os.link(storage.where(shard["name"]), to)
    except OSError as error:
        if error.errno in NO_LINK:
            return False
        raise
    return True


def _copy(storage: Storage, shard: Mapping[str, Any], to: Path) -> None:
    digest = hashlib.sha256()
    with written_whole(to) as f:
        for start in range(0, shard["bytes"], PIECE):
            data = storage.read(shard["name"], start, min(start + PIECE, shard["bytes"]))
            f.write(data)
            digest.update(data)
    if digest.hexdigest() != shard["sha256"]:
        raise DataError(
            f"{storage.where(shard['name'])}: sha256 differs from the manifest's: run `foundation shards verify` and "
            "copy the shard again"
        )


def _join_files(storages: Sequence[Storage], manifests: Sequence[Mapping[str, Any]], to: Path) -> dict[str, dict]:
    """Write index and lengths of all folders, one after the other; what the manifest says of the two files."""
    members = {name: Member(**member) for name, member in manifests[0]["members"].items()}
    firsts = np.cumsum([0, *(len(m["shards"]) for m in manifests)]).tolist()

    def indices() -> Iterator[NDArray]:
        for storage, first, manifest in zip(storages, firsts[:-1], manifests, strict=True):
            index = _array(storage, INDEX, manifest).copy()
            index["shard"] += first
            yield index

    def lengths() -> Iterator[NDArray]:
        for storage, manifest in zip(storages, manifests, strict=True):
            yield _array(storage, LENGTHS, manifest)

    blocks = sum(shard["blocks"] for m in manifests for shard in m["shards"])
    narrow = smallest_unsigned(max(2**8, *(m["longest"] for m in manifests)))
    return {
        INDEX: write_npy(to / INDEX, index_type(members), blocks, indices()),
        LENGTHS: write_npy(to / LENGTHS, narrow, sum(m["sequences"] for m in manifests), lengths()),
    }


def _array(storage: Storage, name: str, manifest: Mapping[str, Any]) -> NDArray:
    """The array of a file that is what the manifest says."""
    about = manifest["files"][name]
    storage.expect(name, about["bytes"], about["sha256"])
    array = storage.array(name)
    if sha256_of(storage, name, about["bytes"]) != about["sha256"]:
        raise DataError(f"{storage.where(name)}: does not belong to this {MANIFEST}, or is damaged: copy it again")
    return array
