"""Random access to the blocks of a sharded dataset, each checked as it is read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from isal.isal_zlib import crc32
from numpy.typing import NDArray

from foundation.console import warn
from foundation.errors import DataError, did_you_mean
from foundation.stream.shard_index import (
    FORMAT,
    INDEX,
    LENGTHS,
    MANIFEST,
    NPY_HEADER,
    Member,
    index_type,
    member_rows,
)
from foundation.stream.storage import CACHE_BYTES, Storage, open_storage

OnBadBlock = Literal["error", "skip"]
WRITTEN = ("tag", "sequences", "points", "members", "files", "shards", "npy_header")
"""What reading needs of a manifest."""
COPY_AGAIN = "damaged, or of another dataset: copy it again"


@dataclass(frozen=True)
class Block:
    """Some thousand tokenised clouds; codes, conditions, ids and features are read-only views of what was read.

    codes:      unsigned [N, K]
    offsets:    int64 [B + 1]; cloud b owns rows offsets[b]:offsets[b + 1]
    labels:     int64 [B]; -1 where unknown
    conditions: float32 [B, C]
    ids:        uint64 [B]; where each cloud comes from, a running number over the sources of the manifest as a rule
    features:   float16 or float32 [N, F], or None where the dataset has none
    bad:        could not be read and is skipped: all its clouds are empty
    """

    codes: NDArray[np.integer]
    offsets: NDArray[np.int64]
    labels: NDArray[np.int64]
    conditions: NDArray[np.float32]
    ids: NDArray[np.uint64]
    features: NDArray[np.floating] | None = None
    bad: bool = False

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def first(self, n: int) -> Block:
        """The first `n` clouds."""
        n = min(n, len(self))
        if n == len(self):
            return self
        end = self.offsets[n]
        features = None if self.features is None else self.features[:end]
        return Block(
            self.codes[:end],
            self.offsets[: n + 1],
            self.labels[:n],
            self.conditions[:n],
            self.ids[:n],
            features,
            self.bad,
        )


class ShardedDataset:
    """A folder written by `write_dataset`, or its URL; blocks are addressed by number over all shards.

    vocabulary_digest: of the model's vocabulary; shards of another one are refused
    limit:        use the first `limit` sequences only (they were shuffled when written), for label budgets
    on_bad_block: `error` raises DataError at a block that is missing or damaged; `skip` gives empty clouds in its
                  place, says so once and keeps the reason in `bad_blocks`
    cache:        folder for copies of remote files, kept to `cache_bytes`
    expected:     other things that the manifest must say, such as {"tag": "jets", "tokenizer": digest}

    Raises DataError when the files of the folder do not belong together. Starting looks into no shard: sizes are
    compared with the manifest when a shard is first read.
    """

    def __init__(
        self,
        folder: Path | str,
        vocabulary_digest: str,
        limit: int | None = None,
        on_bad_block: OnBadBlock = "error",
        cache: Path | None = None,
        expected: Mapping[str, object] | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        if on_bad_block not in ("error", "skip"):
            raise DataError(f"on_bad_block is '{on_bad_block}'{did_you_mean(on_bad_block, ('error', 'skip'))}")
        self._arguments = (folder, vocabulary_digest, limit, on_bad_block, cache, expected, cache_bytes)
        self.folder, self.on_bad_block, self.cache = folder, on_bad_block, cache
        self.bad_blocks: dict[int, str] = {}
        self._storage: Storage = open_storage(folder, cache, cache_bytes)
        text = self._storage.read_all(MANIFEST)
        self.digest = hashlib.sha256(text).hexdigest()
        where = self._storage.where(MANIFEST)
        self.manifest = _checked_manifest(text, where, {"vocabulary": vocabulary_digest, **(expected or {})})
        self.tag: str = self.manifest["tag"]
        self.members = {name: Member(**member) for name, member in self.manifest["members"].items()}
        for shard in self.manifest["shards"]:
            self._storage.expect(shard["name"], shard["bytes"], shard["sha256"])
        self._look_for_shards()
        self._index, self._lengths = self._array(INDEX), self._array(LENGTHS)
        self._check_index()
        self._apply(limit)

    def __reduce__(self) -> tuple[type[ShardedDataset], tuple]:
        """Opened anew in another process, so that the memory maps do not travel as copies."""
        return ShardedDataset, self._arguments

    def __len__(self) -> int:
        """Number of sequences."""
        return int(self._firsts[-1])

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return len(self._firsts) - 1

    @property
    def sequences(self) -> NDArray[np.int64]:
        """Sequences of each block, int64 [n_blocks]."""
        return np.diff(self._firsts)

    @property
    def points(self) -> NDArray[np.int64]:
        """Points of each block, int64 [n_blocks]."""
        points = self._index["points"][: self.n_blocks].astype(np.int64)
        if self.n_blocks:
            points[-1] = self.lengths_of(self.n_blocks - 1).sum()  # the limit may cut the last block
        return points

    def lengths_of(self, block: int) -> NDArray[np.int64]:
        """Points of each sequence of a block, int64 [sequences], without reading the block."""
        return self._lengths[self._firsts[block] : self._firsts[block + 1]].astype(np.int64)

    def block(self, number: int) -> Block:
        """Read one block.

        Raises DataError naming shard, block and member when a byte is not what was written (or skips, see above).
        """
        try:
            return self._read(number)
        except DataError as error:
            if self.on_bad_block == "error":
                raise
            if number not in self.bad_blocks:
                self.bad_blocks[number] = str(error)
                warn(f"skipped {len(self.lengths_of(number))} sequences: {error}")
            return self._empty(number)

    def name_of(self, number: int) -> tuple[str, str]:
        """Shard and key of a block, such as ("000002.tar", "000002-00017")."""
        shard = int(self._index["shard"][number])
        first = int(np.searchsorted(self._index["shard"], shard))
        return self.manifest["shards"][shard]["name"], f"{shard:06d}-{number - first:05d}"

    def _read(self, number: int) -> Block:
        line = self._index[number]
        start, size = int(line["offset"]), int(line["bytes"])
        shard = self.manifest["shards"][line["shard"]]["name"]
        try:
            data = self._storage.read(shard, start, start + size)
        except DataError as error:
            raise DataError(f"{error} (block {self.name_of(number)[1]})") from error
        if len(data) != size or crc32(data) != line["crc32"]:
            raise DataError(f"{self._where(number)}{self._damage(line, data)}")
        arrays = {name: self._member(number, line, data, name) for name in self.members}
        offsets = arrays["offsets"].astype(np.int64)
        lengths = self._lengths[self._firsts[number] : self._firsts[number + 1]]
        if offsets[0] != 0 or not np.array_equal(np.diff(offsets[: len(lengths) + 1]), lengths):
            raise DataError(f"{self._where(number)}offsets do not fit {LENGTHS}: write the dataset again")
        if offsets[-1] != line["points"]:
            raise DataError(f"{self._where(number)}its members disagree about the number of points")
        labels = arrays["labels"].astype(np.int64)
        block = Block(arrays["codes"], offsets, labels, arrays["conditions"], arrays["ids"], arrays.get("features"))
        return block.first(len(lengths))

    def _member(self, number: int, line: np.void, data: memoryview, name: str) -> NDArray[Any]:
        """View of a member; nothing is parsed, because the type is in the manifest and the shape follows."""
        member, rows = self.members[name], member_rows(name, int(line["sequences"]), int(line["points"]))
        if line[f"{name}_bytes"] != member.size(rows):
            raise DataError(f"{self._where(number)}its members disagree: {name}.npy does not hold {rows} rows")
        start = int(line[f"{name}_at"])
        shape = member.shape(rows)
        flat = np.frombuffer(data[start + NPY_HEADER : start + member.size(rows)], member.dtype)
        return flat.reshape(shape)

    def _damage(self, line: np.void, data: memoryview) -> str:
        """Which member is not as it was written."""
        for name in self.members:
            start = int(line[f"{name}_at"])
            if crc32(data[start : start + int(line[f"{name}_bytes"])]) != line[f"{name}_crc32"]:
                return f"member {name}.npy: CRC differs: {COPY_AGAIN}"
        return f"a tar header: CRC differs: {COPY_AGAIN}"

    def _where(self, number: int) -> str:
        shard, key = self.name_of(number)
        return f"{self._storage.where(shard)}: block {key}: "

    def _empty(self, number: int) -> Block:
        """A block of the same number of sequences without points."""
        n = len(self.lengths_of(number))

        def none(name: str, rows: int, fill: float) -> NDArray[Any]:
            return np.full(self.members[name].shape(rows), fill, self.members[name].dtype)

        return Block(
            codes=none("codes", 0, 0),
            offsets=np.zeros(n + 1, np.int64),
            labels=np.full(n, -1, np.int64),
            conditions=none("conditions", n, np.nan),
            ids=none("ids", n, 0),
            features=none("features", 0, 0) if "features" in self.members else None,
            bad=True,
        )

    # Starting: do the files belong together?

    def _look_for_shards(self) -> None:
        """Missing and additional shards, by the names in a local folder: that is one look, however many there are."""
        if not self._storage.local:
            return
        there = {name for name in os.listdir(self.folder) if name.endswith(".tar")}
        ours = {shard["name"] for shard in self.manifest["shards"]}
        if extra := sorted(there - ours):
            raise DataError(f"{self._storage.where(extra[0])}: not a shard of this dataset: move it away")
        if self.on_bad_block == "error" and (missing := sorted(ours - there)):
            raise DataError(f"{self._storage.where(missing[0])}: shard is missing: copy it again")

    def _array(self, name: str) -> NDArray[Any]:
        about, where = self.manifest["files"][name], self._storage.where(name)
        self._storage.expect(name, about["bytes"], about["sha256"])
        array = self._storage.array(name)
        # A remote file is checked as it is fetched. The lengths are checked block by block, as blocks are read.
        if name == INDEX and self._storage.local:
            content = self._storage.read(name, 0, about["bytes"])
            if hashlib.sha256(content).hexdigest() != about["sha256"]:
                raise DataError(f"{where}: does not belong to this {MANIFEST}, or is damaged: copy it again")
        return array

    def _check_index(self) -> None:
        manifest, index = self.manifest, self._index
        blocks = sum(shard["blocks"] for shard in manifest["shards"])
        if index.dtype != index_type(self.members) or index.shape != (blocks,):
            raise DataError(f"{self._storage.where(INDEX)}: does not have {blocks} lines of the members in {MANIFEST}")
        lengths = self._lengths
        self._firsts = np.zeros(blocks + 1, np.int64)
        np.cumsum(index["sequences"], out=self._firsts[1:])
        known = (manifest["sequences"], manifest["points"])
        if (len(self), int(index["points"].sum())) != known:
            raise DataError(f"{self._storage.where(INDEX)}: does not add up to {known[0]} sequences, {known[1]} points")
        if lengths.shape != (known[0],) or lengths.dtype.kind != "u":
            raise DataError(f"{self._storage.where(LENGTHS)}: does not hold the lengths of {known[0]} sequences")

    def _apply(self, limit: int | None) -> None:
        if limit is None:
            return
        if limit > len(self):
            raise DataError(f"{self.folder}: {limit} sequences asked for, but there are {len(self)}")
        blocks = int(np.searchsorted(self._firsts, limit))
        self._firsts = np.append(self._firsts[:blocks], limit)


def _checked_manifest(text: bytes, where: str, expected: Mapping[str, object]) -> dict[str, Any]:
    """The manifest, if it is one of this format and says what is expected."""
    try:
        manifest = json.loads(text)
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON ({error}); tokenise the dataset again") from None
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise DataError(f"{where}: format is {found}, expected {FORMAT}: tokenise the dataset again")
    if missing := [key for key in WRITTEN if key not in manifest]:
        raise DataError(f"{where}: says nothing about {', '.join(missing)}: damaged; tokenise the dataset again")
    for key, value in expected.items():
        if manifest.get(key) != value:
            said, wanted = (str(v)[:12] for v in (manifest.get(key), value))
            raise DataError(
                f"{where}: written for {key} {said}, but {wanted} is needed: use the shards and the model of the same "
                "tokenize stage"
            )
    if manifest["npy_header"] != NPY_HEADER:
        raise DataError(f"{where}: npy_header is {manifest['npy_header']}, expected {NPY_HEADER}")
    return manifest
