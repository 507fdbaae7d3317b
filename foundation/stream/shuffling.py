"""The shuffle over a whole dataset, in two passes that need little memory and run in parallel.

Sequence i of N goes to place p(i), a keyed permutation of 0 .. N - 1; shard s of S owns the places from s N / S on. The
first pass (`scatter`) encodes one part of the dataset after the other and writes each as a *run*: its sequences in the
order of their places. The second (`gather`) takes from every run what belongs to one shard. What a shard holds follows
from the parts and the seed alone, whoever does the work and in whatever order.

A run is one file of plain arrays: starts int64 [S + 1, 2] (sequence and point at which each shard begins), one line per
sequence, codes [points, K], features [points, F].
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from foundation.data.ragged import rows_of, to_offsets
from foundation.errors import DataError
from foundation.stream.shard_index import Columns
from foundation.stream.whole_files import write_json, written_whole

ROUNDS = 8
UNFINISHED = "unfinished"
"""Folder of what is only needed until a dataset is written."""


@dataclass(frozen=True)
class Part:
    """A piece of a dataset that is encoded at once, so that it must fit into memory.

    name:   what the manifest calls it; ids of sequences count through the parts in their order
    source: what `encode` needs to find it, such as paths
    stamp:  anything that changes with the content, such as a hash, so that what was made of other content is not kept
    """

    name: str
    sequences: int
    points: int
    source: tuple[str, ...] = ()
    stamp: str = ""


@dataclass(frozen=True)
class Encoded:
    """The B sequences with N points of a part.

    codes [N, K], offsets [B + 1], labels [B], conditions [B, C], features [N, F] where the dataset has some
    ids:     uint64 [B], where a sequence comes from; a running number over the parts when not given
    counted: things that were counted on the way, by name; the manifest has their sums over the parts
    """

    codes: NDArray[np.integer]
    offsets: NDArray[np.int64]
    labels: NDArray[np.int64]
    conditions: NDArray[np.float32]
    ids: NDArray[np.uint64] | None = None
    features: NDArray[np.floating] | None = None
    counted: Mapping[str, int] = field(default_factory=dict)

    @staticmethod
    def joined(pieces: Sequence[Encoded]) -> Encoded:
        """One after the other; the sequences are numbered anew, so none of them may have ids."""
        features = [p.features for p in pieces if p.features is not None]
        return Encoded(
            codes=np.concatenate([p.codes for p in pieces]),
            offsets=to_offsets(np.concatenate([np.diff(p.offsets) for p in pieces])),
            labels=np.concatenate([p.labels for p in pieces]),
            conditions=np.concatenate([p.conditions for p in pieces]),
            features=np.concatenate(features) if features else None,
            counted=sum_counts([p.counted for p in pieces]),
        )


def sum_counts(counted: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Sum of each count, in the order of the names."""
    names = sorted({name for counts in counted for name in counts})
    return {name: sum(counts.get(name, 0) for counts in counted) for name in names}


Encode = Callable[[Part], Encoded]


@dataclass(frozen=True)
class Plan:
    """What the workers must know of the dataset that is being written."""

    folder: Path
    columns: Columns
    seed: int
    sequences: int
    parts: int
    shards: int
    block_sequences: int
    block_bytes: int

    @property
    def line(self) -> np.dtype:
        """What a run stores of a sequence."""
        return np.dtype(
            [
                ("place", "<u8"),
                ("id", "<u8"),
                ("points", "<u4"),
                ("label", "<i8"),
                ("conditions", "<f4", (self.columns.conditions,)),
            ]
        )

    def run_of(self, part: int) -> Path:
        """The run of a part."""
        return self.folder / UNFINISHED / f"{part:06d}.run"

    def borders(self) -> NDArray[np.uint64]:
        """First place of each shard, and the end; the shards are equally large to one sequence."""
        return np.array([s * self.sequences // self.shards for s in range(self.shards + 1)], np.uint64)


def places(first: int, stop: int, total: int, seed: int) -> NDArray[np.uint64]:
    """Places uint64 [stop - first] of the sequences first .. stop - 1 in the shuffled order of `total` sequences.

    A permutation of 0 .. total - 1 that needs no memory: a Feistel network over the next power of two, walked until
    the value falls inside the range (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
    """
    bits = max(2, (total - 1).bit_length())
    keys = np.random.SeedSequence([seed, total]).generate_state(ROUNDS, np.uint64).astype(np.uint64)
    found = _mixed(np.arange(first, stop, dtype=np.uint64), bits, keys)
    while len(outside := np.flatnonzero(found >= total)):
        found[outside] = _mixed(found[outside], bits, keys)
    return found


def _mixed(values: NDArray[np.uint64], bits: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A permutation of 0 .. 2**bits - 1: the halves of the bits change each other in turn."""
    low_bits = np.uint64(bits // 2)
    low_mask = np.uint64((1 << (bits // 2)) - 1)
    high_mask = np.uint64((1 << (bits - bits // 2)) - 1)
    high, low = values >> low_bits, values & low_mask
    for number, key in enumerate(keys):
        if number % 2:
            low ^= _scrambled(high + key) & low_mask
        else:
            high ^= _scrambled(low + key) & high_mask
    return (high << low_bits) | low


def _scrambled(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Each bit of the result depends on all bits of x (the finaliser of SplitMix64; x is used up)."""
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


@dataclass(frozen=True)
class Scatter:
    """One step of the first pass: part number `number`, whose first sequence is number `first` of the dataset."""

    part: Part
    number: int
    first: int


def scatter(plan: Plan, encode: Encode, work: Scatter) -> dict:
    """Encode a part and write its run, unless a killed run left it; what is known of it afterwards."""
    path = plan.run_of(work.number)
    facts = path.with_suffix(".json")
    if facts.exists():
        found = json.loads(facts.read_text())
        if path.exists() and path.stat().st_size == found["bytes"]:
            return found
    encoded = encode(work.part)
    _check(encoded, work.part, plan.columns)
    with written_whole(path) as f:
        _write_run(f, plan, work, encoded)
    labels, counts = encoded.labels, np.diff(encoded.offsets)
    found = {
        "bytes": path.stat().st_size,
        "labels": [int(labels.min()), int(labels.max())] if len(labels) else [0, 0],
        "longest": int(counts.max()) if len(counts) else 0,
        "counted": dict(encoded.counted),
    }
    write_json(facts, found)
    return found


def _check(encoded: Encoded, part: Part, columns: Columns) -> None:
    """Refuse what does not fit the announcement: silently cut codes or lost sequences would be found much later."""
    n, b, codes = part.points, part.sequences, encoded.codes
    given, f = encoded.features, len(columns.features)
    wrong = {
        f"{len(encoded.offsets) - 1} sequences": len(encoded.offsets) - 1 != b or encoded.offsets[0] != 0,
        f"codes of shape {codes.shape}": codes.shape != (n, columns.streams) or encoded.offsets[-1] != n,
        f"{len(encoded.labels)} labels": len(encoded.labels) != b,
        f"conditions of shape {encoded.conditions.shape}": encoded.conditions.shape != (b, columns.conditions),
        f"features of shape {None if given is None else given.shape}": (None if given is None else given.shape)
        != ((n, f) if f else None),
        "another number of ids": encoded.ids is not None and len(encoded.ids) != b,
    }
    for what, is_wrong in wrong.items():
        if is_wrong:
            raise DataError(f"part '{part.name}' was encoded to {what}; announced were {b} sequences of {n} points")
    if n and not 0 <= codes.min() <= codes.max() <= columns.largest_code:
        raise DataError(
            f"part '{part.name}': codes reach from {codes.min()} to {codes.max()}, allowed are 0 to "
            f"{columns.largest_code}"
        )
    with np.errstate(over="ignore"):
        finite = given is None or np.isfinite(given.astype(columns.feature_type)).all()
    if not finite:
        raise DataError(f"part '{part.name}': a feature is not finite as {columns.feature_type}")


def _write_run(f: BinaryIO, plan: Plan, work: Scatter, encoded: Encoded) -> None:
    place = places(work.first, work.first + work.part.sequences, plan.sequences, plan.seed)
    order = np.argsort(place)
    rows, offsets = rows_of(encoded.offsets, order)
    lines = np.zeros(len(order), plan.line)
    lines["place"] = place[order]
    lines["id"] = work.first + order if encoded.ids is None else encoded.ids[order]
    lines["points"] = np.diff(offsets)
    lines["label"] = encoded.labels[order]
    lines["conditions"] = encoded.conditions[order]
    first = np.searchsorted(lines["place"], plan.borders())
    f.write(np.column_stack([first, offsets[first]]).astype("<i8").tobytes())
    f.write(lines.tobytes())
    f.write(encoded.codes.astype(plan.columns.code_type)[rows].tobytes())
    if encoded.features is not None:
        f.write(encoded.features.astype(plan.columns.feature_type)[rows].tobytes())


@dataclass(frozen=True)
class Gathered:
    """All sequences of a shard. `order` puts them into their places; the arrays are as the runs have them.

    lines [B] as `Plan.line` says, offsets int64 [B + 1], codes [N, K], features [N, F]
    """

    order: NDArray[np.int64]
    lines: NDArray[np.void]
    offsets: NDArray[np.int64]
    codes: NDArray[np.integer]
    features: NDArray[np.floating]


def gather(plan: Plan, shard: int) -> Gathered:
    """What the runs hold of a shard."""
    parts = [_from_run(plan.run_of(part), plan, shard) for part in range(plan.parts)]
    lines, codes, features = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Gathered(np.argsort(lines["place"]), lines, to_offsets(lines["points"]), codes, features)


def _from_run(path: Path, plan: Plan, shard: int) -> tuple[NDArray[np.void], NDArray, NDArray]:
    """Lines, codes and features of a shard in a run."""
    columns, line = plan.columns, plan.line
    with path.open("rb") as f:
        first, first_point, stop, stop_point = np.fromfile(f, "<i8", 4, offset=16 * shard)
        f.seek(16 * plan.shards)
        sequences, points = np.fromfile(f, "<i8", 2)

        def rows(at: int, dtype: np.dtype, width: int, start: int, stop: int) -> NDArray:
            f.seek(at + start * width * dtype.itemsize)
            return np.fromfile(f, dtype, (stop - start) * width)

        at = 16 * (plan.shards + 1)
        lines = rows(at, line, 1, first, stop)
        at += sequences * line.itemsize
        code_type, k = np.dtype(columns.code_type), columns.streams
        codes = rows(at, code_type, k, first_point, stop_point).reshape(-1, k)
        at += points * k * code_type.itemsize
        feature_type, n = np.dtype(columns.feature_type), len(columns.features)
        features = rows(at, feature_type, n, first_point, stop_point).reshape(stop_point - first_point, n)
    return lines, codes, features
