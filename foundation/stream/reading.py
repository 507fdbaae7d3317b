"""Random access to the blocks of a sharded dataset, each checked as it is read."""

from __future__ import annotations

import io
import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foundation.errors import DataError
from foundation.stream.writing import FORMAT, MEMBERS


@dataclass(frozen=True)
class Block:
    """About a thousand tokenised clouds: codes [N, K], offsets [B + 1], labels [B], conditions [B, C]."""

    codes: NDArray[np.integer]
    offsets: NDArray[np.int64]
    labels: NDArray[np.int64]
    conditions: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def first(self, n: int) -> Block:
        """The first `n` clouds."""
        n = min(n, len(self))
        end = self.offsets[n]
        return Block(self.codes[:end], self.offsets[: n + 1], self.labels[:n], self.conditions[:n])


class ShardedDataset:
    """A folder written by `write_shards`; blocks are addressed by number over all shards.

    limit: use the first `limit` sequences only (they were shuffled when written), for label budgets.
    """

    def __init__(self, folder: Path, vocabulary_digest: str, limit: int | None = None) -> None:
        self.folder = folder
        self.manifest = _read_json(folder / "manifest.json", "tokenise the dataset again")
        if self.manifest.get("format") != FORMAT:
            raise DataError(f"{folder}/manifest.json: format is {self.manifest.get('format')}, expected {FORMAT}")
        if self.manifest["vocabulary"] != vocabulary_digest:
            raise DataError(
                f"{folder}: tokenised with vocabulary {self.manifest['vocabulary'][:12]}, but the model has "
                f"{vocabulary_digest[:12]}: use the shards and the model of the same tokenize stage"
            )
        self.tag: str = self.manifest["tag"]
        self._entries: list[tuple[Path, dict]] = []
        for shard in self.manifest["shards"]:
            path = folder / shard["name"]
            if not path.is_file():
                raise DataError(f"{path}: shard is missing")
            if path.stat().st_size != shard["bytes"]:
                raise DataError(f"{path}: shard has {path.stat().st_size} bytes, the manifest says {shard['bytes']}")
            index = _read_json(path.with_suffix(".index.json"), "write the shard's index again")
            if len(index["blocks"]) != shard["blocks"]:
                raise DataError(f"{path}: index has {len(index['blocks'])} blocks, the manifest says {shard['blocks']}")
            self._entries += [(path, block) for block in index["blocks"]]
        self.lengths = [np.diff(self._member(b, "offsets.npy")) for b in range(len(self._entries))]
        self._apply(limit)

    def _apply(self, limit: int | None) -> None:
        if limit is None:
            return
        if limit > len(self):
            raise DataError(f"{self.folder}: {limit} sequences asked for, but there are {len(self)}")
        kept, left = [], limit
        for lengths in self.lengths:
            if left <= 0:
                break
            kept.append(lengths[:left])
            left -= len(lengths)
        self.lengths = kept

    def __len__(self) -> int:
        return sum(len(counts) for counts in self.lengths)

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return len(self.lengths)

    def block(self, number: int) -> Block:
        """Read one block. Raises DataError naming shard, block and member when a byte is not what was written."""
        block = Block(*(self._member(number, name) for name in MEMBERS))
        if block.offsets[-1] != len(block.codes) or not len(block) == len(block.labels) == len(block.conditions):
            path, entry = self._entries[number]
            raise DataError(f"{path}: block {entry['key']}: its members disagree about the number of sequences")
        return block.first(len(self.lengths[number]))

    def _member(self, number: int, name: str) -> NDArray:
        path, entry = self._entries[number]
        if name not in entry["members"]:
            raise DataError(f"{path}: block {entry['key']} has no member {name}")
        offset, size, crc = entry["members"][name]
        with path.open("rb") as f:
            f.seek(offset)
            data = f.read(size)
        if len(data) != size or zlib.crc32(data) != crc:
            raise DataError(f"{path}: block {entry['key']}, member {name}: damaged (CRC differs); copy the shard again")
        return np.load(io.BytesIO(data), allow_pickle=False)


def _read_json(path: Path, remedy: str) -> dict:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(f"{path}: missing; {remedy}") from None
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); {remedy}") from None
