"""Tokenised point clouds to WebDataset shards of ragged blocks, with one index and a manifest.

    manifest.json   what the dataset is: card, vocabulary and tokenizer hashes, members, sources, and of every file its
                    size and sha256; written last, so a folder without it is unfinished
    index.npy       one line per block over all shards: where it is, CRC-32, sequences, points (see `shard_index`)
    made_from       sha256 of parts, identity and settings: a run of the same keeps what a killed one finished
    lengths.npy     points of every sequence, uint16 or uint32, in the order of the blocks
    000000.tar ...  plain WebDataset shards; each sample is a block of up to some thousand sequences:
        000000-00000.codes.npy       uint8, uint16 or uint32 [points, K]
        000000-00000.conditions.npy  float32 [sequences, C]
        000000-00000.features.npy    float16 or float32 [points, F], where the dataset has continuous features
        000000-00000.ids.npy         uint64 [sequences], where each comes from
        000000-00000.labels.npy      the smallest signed type that fits, [sequences]
        000000-00000.offsets.npy     uint32 [sequences + 1]

Everything is written under a temporary name and renamed. The same input gives the same bytes, with any number of
workers, and also when a killed run is continued.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from foundation.console import Progress
from foundation.data.dask_workers import Run, running
from foundation.data.ragged import rows_of
from foundation.errors import DataError
from foundation.stream.shard_index import (
    FORMAT,
    INDEX,
    LENGTHS,
    MANIFEST,
    NPY_HEADER,
    Columns,
    Member,
    file_digest,
    index_shard,
    index_type,
    members_of,
    smallest_signed,
    smallest_unsigned,
)
from foundation.stream.shuffling import (
    UNFINISHED,
    Encode,
    Encoded,
    Gathered,
    Part,
    Plan,
    Scatter,
    gather,
    scatter,
    sum_counts,
)
from foundation.stream.whole_files import write_json, write_npy, written_whole

BLOCK_SEQUENCES = 8192
BLOCK_BYTES = 2**20
SHARD_BYTES = 256 * 2**20
LARGEST_BLOCK_BYTES = 2**30
OWN_FILES = re.compile(r"\d{6,}\.tar|index\.npy|lengths\.npy|manifest\.json|\d{6,}\.index\.json")
"""What a dataset folder holds, the indices of format 1 included."""
MADE_FROM = "made_from"
"""File with the sha256 of what the dataset is made from, by which a later run knows what it may keep."""
BYTES_PER_SEQUENCE = 16
"""Id, offset and label; for the size of shards it need not be exact."""


def write_dataset(
    folder: Path,
    tag: str,
    parts: Sequence[Part],
    encode: Encode,
    columns: Columns,
    *,
    identity: Mapping[str, object],
    seed: int,
    run: Run | None = None,
    block_sequences: int = BLOCK_SEQUENCES,
    block_bytes: int = BLOCK_BYTES,
    shard_bytes: int = SHARD_BYTES,
    keep: bool = True,
) -> dict:
    """Encode the parts, shuffle all their sequences once, write them as shards and return the manifest.

    encode:     makes codes of a part; it travels to the workers, where there are any, so it must be of a module
    identity:   goes into the manifest: card, vocabulary and tokenizer (hashes)
    run:        the workers, from `foundation.data.dask_workers.running`, which must see `folder`; without, this process
    block_sequences, block_bytes: most sequences, and bytes of codes and features, of a block, about
    keep:       use what an earlier run of the same parts, identity and settings finished, killed or not

    Memory: one part per worker, then two shards per worker. Disk: about twice the dataset, half of it given back.
    Raises DataError when a part is not as announced and when a file cannot be written, a full disk included.
    """
    plan = _plan(folder, tag, parts, columns, seed, block_sequences, block_bytes, shard_bytes)
    title = f"{tag} {folder.name}"
    made_from = _digest_of(plan, tag, identity, parts) if keep else ""
    if there := _finished(plan.folder, made_from):
        return there
    _prepare(plan.folder, made_from)
    with running() if run is None else nullcontext(run) as run:
        found = _scatter_all(plan, parts, encode, run, title)
        labels = [border for f in found for border in f["labels"]]
        members = members_of(columns, smallest_signed(min(labels), max(labels)))
        shards = _write_all(plan, members, run, title)
    longest = max(f["longest"] for f in found)
    manifest = {
        "format": FORMAT,
        "tag": tag,
        "seed": seed,
        "sequences": plan.sequences,
        "points": sum(part.points for part in parts),
        "longest": longest,
        "streams": columns.streams,
        "features": list(columns.features),
        **identity,
        "counted": sum_counts([f["counted"] for f in found]),
        "sources": [{"name": part.name, "sequences": part.sequences} for part in parts],
        "block_sequences": block_sequences,
        "block_bytes": block_bytes,
        "npy_header": NPY_HEADER,
        "members": {name: asdict(member) for name, member in members.items()},
        "files": _write_index(plan, members, shards, smallest_unsigned(max(2**8, longest))),
        "shards": shards,
    }
    write_json(folder / MANIFEST, manifest)
    shutil.rmtree(folder / UNFINISHED)
    return manifest


def write_shards(
    folder: Path,
    tag: str,
    codes: NDArray[np.integer],
    offsets: NDArray[np.int64],
    labels: NDArray[np.int64],
    conditions: NDArray[np.float32],
    *,
    largest_code: int,
    identity: Mapping[str, object],
    seed: int,
    features: NDArray[np.floating] | None = None,
    feature_names: tuple[str, ...] = (),
    feature_type: Literal["float16", "float32"] = "float32",
    block_sequences: int = BLOCK_SEQUENCES,
    block_bytes: int = BLOCK_BYTES,
    shard_bytes: int = SHARD_BYTES,
) -> dict:
    """Write sequences that are in memory, as `write_dataset` does with parts; the manifest.

    codes [N, K], offsets [B + 1], labels [B], conditions [B, C], features [N, F] with their names, or none.
    """
    encoded = Encoded(codes, offsets, labels, conditions, features=features)
    return write_dataset(
        folder,
        tag,
        [Part("memory", len(offsets) - 1, int(offsets[-1]))],
        lambda _: encoded,
        Columns(codes.shape[1], largest_code, conditions.shape[1], feature_names, feature_type),
        identity=identity,
        seed=seed,
        block_sequences=block_sequences,
        block_bytes=block_bytes,
        shard_bytes=shard_bytes,
        keep=False,
    )


def _plan(
    folder: Path,
    tag: str,
    parts: Sequence[Part],
    columns: Columns,
    seed: int,
    block_sequences: int,
    block_bytes: int,
    shard_bytes: int,
) -> Plan:
    sequences, points = sum(part.sequences for part in parts), sum(part.points for part in parts)
    if sequences == 0:
        raise DataError(f"{folder}: no sequences to write for '{tag}'")
    if block_sequences < 1 or not 1 <= block_bytes <= LARGEST_BLOCK_BYTES or shard_bytes < 1:
        raise DataError("a block holds at least 1 sequence and 1 to 2**30 bytes, a shard at least 1 byte")
    size = points * columns.point_bytes + sequences * (BYTES_PER_SEQUENCE + 4 * columns.conditions)
    return Plan(
        folder=folder.resolve(),
        columns=columns,
        seed=seed,
        sequences=sequences,
        parts=len(parts),
        shards=min(sequences, -(-size // shard_bytes)),
        block_sequences=block_sequences,
        block_bytes=block_bytes,
    )


def _digest_of(plan: Plan, tag: str, identity: Mapping[str, object], parts: Sequence[Part]) -> str:
    """What the bytes of the dataset follow from, as one sha256."""
    settings = {key: value for key, value in asdict(plan).items() if key != "folder"}
    content = [(part.name, part.sequences, part.points, part.stamp) for part in parts]
    return hashlib.sha256(json.dumps([FORMAT, tag, identity, settings, content], sort_keys=True).encode()).hexdigest()


def _finished(folder: Path, made_from: str) -> dict | None:
    """The manifest of an earlier run that made the same, if its files are still there."""
    if not _is_made_from(folder, made_from):
        return None
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        sizes = {shard["name"]: shard["bytes"] for shard in manifest["shards"]}
        sizes |= {name: about["bytes"] for name, about in manifest["files"].items()}
        if any((folder / name).stat().st_size != size for name, size in sizes.items()):
            return None
    except (OSError, ValueError, KeyError):
        return None
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    return manifest


def _is_made_from(folder: Path, made_from: str) -> bool:
    path = folder / MADE_FROM
    return bool(made_from) and path.exists() and path.read_text() == made_from


def _prepare(folder: Path, made_from: str) -> None:
    """A folder that holds nothing of a dataset, or what a killed run finished of the same one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made a folder ({error.strerror})") from None
    (folder / MANIFEST).unlink(missing_ok=True)
    if not _is_made_from(folder, made_from):
        (folder / MADE_FROM).unlink(missing_ok=True)
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
        shutil.rmtree(folder / "rows", ignore_errors=True)
        for path in folder.iterdir():
            if OWN_FILES.fullmatch(path.name.removesuffix(".part")):
                path.unlink()
        if made_from:
            with written_whole(folder / MADE_FROM) as f:
                f.write(made_from.encode())
    (folder / UNFINISHED).mkdir(exist_ok=True)


# First pass: encode every part.


def _scatter_all(plan: Plan, parts: Sequence[Part], encode: Encode, run: Run, title: str) -> list[dict]:
    firsts = np.cumsum([0, *(part.sequences for part in parts)]).tolist()
    work = [Scatter(part, number, firsts[number]) for number, part in enumerate(parts)]
    found: dict[int, dict] = {}
    with Progress(f"encode {title}", plan.sequences, "objects") as progress:
        for number, facts in run(partial(scatter, plan, encode), work):
            found[number] = facts
            progress.advance(parts[number].sequences)
    return [found[number] for number in range(len(parts))]


# Second pass: write every shard.


def _write_all(plan: Plan, members: Mapping[str, Member], run: Run, title: str) -> list[dict]:
    found: dict[int, dict] = {}
    with Progress(f"write {title}", plan.shards, "shards") as progress:
        for shard, line in run(partial(write_shard, plan, members), range(plan.shards)):
            found[shard] = line
            progress.advance()
    return [found[shard] for shard in range(plan.shards)]


def write_shard(plan: Plan, members: Mapping[str, Member], shard: int) -> dict:
    """Write a shard and its piece of the index, unless a killed run left them; the shard's line for the manifest."""
    path, piece = plan.folder / f"{shard:06d}.tar", plan.folder / UNFINISHED / f"{shard:06d}"
    facts = piece.with_suffix(".shard.json")
    if facts.exists():
        line = json.loads(facts.read_text())
        if path.exists() and path.stat().st_size == line["bytes"]:
            return line
    gathered = gather(plan, shard)
    _write_tar(path, shard, _blocks(plan, members, shard, gathered))
    index = index_shard(path, shard, members)
    write_npy(piece.with_suffix(".index.npy"), index.dtype, len(index), [index])
    write_npy(piece.with_suffix(".lengths.npy"), "<u4", len(gathered.order), [gathered.lines["points"][gathered.order]])
    line = {"name": path.name, "bytes": path.stat().st_size, "sha256": file_digest(path), "blocks": len(index)}
    write_json(facts, line)
    return line


def _write_tar(path: Path, shard: int, blocks: Iterator[dict[str, object]]) -> None:
    import webdataset

    with (
        written_whole(path) as f,
        webdataset.ShardWriter(
            "%06d.tar", 2**63, 2**63, start_shard=shard, opener=lambda _: f, mtime=0, verbose=0
        ) as sink,
    ):
        for block in blocks:
            sink.write(block)


def _blocks(plan: Plan, members: Mapping[str, Member], shard: int, gathered: Gathered) -> Iterator[dict[str, object]]:
    """The blocks of a shard, equally many sequences each, as samples for webdataset."""
    count = len(gathered.order)
    point_bytes = int(gathered.offsets[-1]) * plan.columns.point_bytes
    blocks = min(count, max(-(-count // plan.block_sequences), -(-point_bytes // plan.block_bytes)))
    for number in range(blocks):
        chosen = gathered.order[number * count // blocks : (number + 1) * count // blocks]
        rows, offsets = rows_of(gathered.offsets, chosen)
        lines = gathered.lines[chosen]
        arrays: dict[str, NDArray] = {
            "codes": gathered.codes[rows],
            "conditions": lines["conditions"],
            "features": gathered.features[rows],
            "ids": lines["id"],
            "labels": lines["label"],
            "offsets": offsets,
        }
        content = {f"{name}.npy": np.ascontiguousarray(arrays[name], members[name].dtype) for name in members}
        yield {"__key__": f"{shard:06d}-{number:05d}", **content}


def _write_index(plan: Plan, members: Mapping[str, Member], shards: Sequence[Mapping], lengths: str) -> dict:
    """Join the pieces of index and lengths; what the manifest says of the two files."""

    def pieces(ending: str) -> Iterator[NDArray]:
        for shard in range(plan.shards):
            yield np.load(plan.folder / UNFINISHED / f"{shard:06d}.{ending}", allow_pickle=False)

    blocks = sum(shard["blocks"] for shard in shards)
    return {
        INDEX: write_npy(plan.folder / INDEX, index_type(members), blocks, pieces(INDEX)),
        LENGTHS: write_npy(plan.folder / LENGTHS, lengths, plan.sequences, pieces(LENGTHS)),
    }
