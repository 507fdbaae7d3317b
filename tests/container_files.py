"""Small files of every container, written and read back: shared by the tests of the containers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from foundation.data.formats.containers.opening import open_source
from foundation.data.formats.containers.source import Array, Ragged
from foundation.data.formats.containers.writing import ArrayWriter

KINDS = ("root", "rntuple", "parquet", "hdf5", "npz", "showerdata")
LENGTHS = [3, 0, 5, 1, 0, 7, 2, 2, 9, 4, 0, 6]


def vectors(lengths: Sequence[int], dtype: type = np.float32, seed: int = 0, times: int = 1) -> Ragged:
    counts = np.asarray(lengths, np.int64) * times
    values = 1 + np.random.default_rng(seed).integers(0, 100, int(counts.sum()))
    return Ragged((values % 2 if dtype is bool else values).astype(dtype), counts)


def sample(kind: str, lengths: Sequence[int] = LENGTHS) -> dict[str, Array]:
    """Arrays of every type that a container holds."""
    n, rng = len(lengths), np.random.default_rng(1)
    if kind == "showerdata":
        return {
            "showers": vectors(lengths, times=5),
            "num_points": np.asarray(lengths, np.int32),
            "energies": rng.uniform(1, 100, (n, 1)).astype(np.float32),
            "directions": rng.normal(size=(n, 3)).astype(np.float32),
            "pdg": np.full(n, 22, np.int32),
            "shower_ids": np.arange(n, dtype=np.int32),
        }
    dense: dict[str, Array] = {
        "jet_pt": rng.uniform(500, 1000, n).astype(np.float32),
        "event": np.arange(n, dtype=np.int64),
        "image": np.where(rng.random((n, 40)) < 0.7, 0, rng.random((n, 40))).astype(np.float64),
    }
    if kind == "npz":
        return dense
    return {
        "part_px": vectors(lengths),
        "part_charge": vectors(lengths, np.int32),
        "part_isMuon": vectors(lengths, bool),
        **dense,
    }


def settings_of(kind: str) -> dict[str, object]:
    is_root = kind in ("root", "rntuple")
    return {
        "container": "root" if is_root else kind,
        "tree": "tree" if is_root else None,
        "rntuple": kind == "rntuple",
    }


def write(kind: str, path: Path, parts: Sequence[Mapping[str, Array]]) -> None:
    with ArrayWriter(path, **settings_of(kind)) as file:  # type: ignore[arg-type]
        for arrays in parts:
            file.append(arrays)


def read(kind: str, path: Path, keys: Sequence[str], edges: Sequence[int] | None = None) -> dict[str, Array]:
    """All entries, in ranges with these edges."""
    with open_source(path, "root" if kind == "rntuple" else kind, settings_of(kind)["tree"]) as source:  # type: ignore[arg-type]
        assert set(source.describe()) == set(source.keys)
        total = source.entries(keys)
        assert source.bytes_per_entry(keys) >= 0
        edges = [0, total // 2, total] if edges is None else edges
        pieces = [source.read(keys, a, b) for a, b in itertools.pairwise(edges)]
    return {key: joined([piece[key] for piece in pieces]) for key in keys}


def joined(arrays: Sequence[Array]) -> Array:
    if isinstance(arrays[0], Ragged):
        assert all(isinstance(a, Ragged) for a in arrays)
        return Ragged(np.concatenate([a.values for a in arrays]), np.concatenate([a.counts for a in arrays]))  # type: ignore[union-attr]
    return np.concatenate(arrays)  # type: ignore[arg-type]


def equal(a: Array, b: Array) -> bool:
    """The same numbers, bit by bit, of the same type."""
    if isinstance(a, Ragged) or isinstance(b, Ragged):
        return (
            isinstance(a, Ragged) and isinstance(b, Ragged) and equal(a.values, b.values) and equal(a.counts, b.counts)
        )
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
