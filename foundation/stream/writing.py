"""Tokenised point clouds to WebDataset shards of ragged blocks, with an index beside each shard and a manifest.

    manifest.json              what the dataset is: card, vocabulary and tokenizer hashes, shards with sizes and sha256
    000000.tar                 a plain WebDataset shard; each sample is a block of about 1,000 sequences:
        00000000.codes.npy       uint16 or uint32 [points, K]
        00000000.offsets.npy     int64 [sequences + 1]
        00000000.labels.npy      int64 [sequences]
        00000000.conditions.npy  float32 [sequences, C]
    000000.index.json          per block: sequences, points, and offset, size and CRC-32 of every member

Everything is written under a temporary name and renamed; the manifest comes last, so a folder without it is unfinished.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foundation.data.ragged import rows_of
from foundation.errors import DataError

FORMAT = "foundation/shards/1"
MEMBERS = ("codes.npy", "offsets.npy", "labels.npy", "conditions.npy")
BLOCK_SEQUENCES = 1000
SHARD_BYTES = 256 * 2**20


def write_shards(
    folder: Path,
    tag: str,
    codes: NDArray[np.integer],
    offsets: NDArray[np.int64],
    labels: NDArray[np.int64],
    conditions: NDArray[np.float32],
    *,
    largest_code: int,
    identity: dict[str, object],
    seed: int,
    block_sequences: int = BLOCK_SEQUENCES,
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, object]:
    """Shuffle the sequences once, write them as blocks and return the manifest.

    codes [N, K], offsets [B + 1], labels [B], conditions [B, C]. `identity` goes into the manifest (card, vocabulary
    and tokenizer hashes). The same input gives the same bytes.
    """
    import webdataset

    if len(offsets) < 2:
        raise DataError(f"{folder}: no sequences to write for '{tag}'")
    folder.mkdir(parents=True, exist_ok=True)
    dtype = np.uint16 if largest_code < 2**16 else np.uint32
    order = np.random.default_rng(seed).permutation(len(offsets) - 1)
    finished: list[Path] = []

    def finish(name: str) -> None:
        final = Path(name.removesuffix(".part"))
        os.replace(name, final)
        finished.append(final)

    pattern = str(folder / "%06d.tar.part")
    with webdataset.ShardWriter(pattern, maxcount=10**9, maxsize=shard_bytes, mtime=0, post=finish, verbose=0) as sink:
        for number, first in enumerate(range(0, len(order), block_sequences)):
            chosen = order[first : first + block_sequences]
            rows, block_offsets = rows_of(offsets, chosen)
            sink.write(
                {
                    "__key__": f"{number:08d}",
                    "codes.npy": codes[rows].astype(dtype),
                    "offsets.npy": block_offsets,
                    "labels.npy": labels[chosen].astype(np.int64),
                    "conditions.npy": conditions[chosen].astype(np.float32),
                }
            )
    manifest: dict[str, object] = {
        "format": FORMAT,
        "tag": tag,
        "seed": seed,
        "sequences": len(offsets) - 1,
        "points": int(offsets[-1]),
        "streams": int(codes.shape[1]),
        **identity,
        "shards": [index_shard(path) for path in finished],
    }
    write_json(folder / "manifest.json", manifest)
    return manifest


def index_shard(path: Path) -> dict[str, object]:
    """Write the index of a finished shard beside it and return the shard's line for the manifest."""
    blocks: dict[str, dict] = {}
    with tarfile.open(path) as tar, path.open("rb") as raw:
        for member in tar:
            key, name = member.name.split(".", 1)
            raw.seek(member.offset_data)
            data = raw.read(member.size)
            block = blocks.setdefault(key, {"key": key, "members": {}})
            block["members"][name] = [member.offset_data, member.size, zlib.crc32(data)]
    with path.open("rb") as raw:
        digest = hashlib.file_digest(raw, "sha256").hexdigest()
    write_json(path.with_suffix(".index.json"), {"format": FORMAT, "shard": path.name, "blocks": list(blocks.values())})
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest, "blocks": len(blocks)}


def write_json(path: Path, data: object) -> None:
    """Write JSON whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(data, indent=1))
    os.replace(part, path)
