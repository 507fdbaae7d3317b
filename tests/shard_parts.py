"""Small tokenised parts in files, encoded by functions that worker processes can import; and a writer to be killed."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foundation.data.dask_workers import running
from foundation.data.ragged import to_offsets
from foundation.stream.shard_index import Columns
from foundation.stream.shuffling import Encoded, Part
from foundation.stream.writing import write_dataset

COLUMNS = Columns(streams=2, largest_code=300, conditions=1, features=("pt", "eta"), feature_type="float16")
IDENTITY = {"card": "toy", "vocabulary": "v" * 64, "tokenizer": "t" * 64}
SMALL = {"block_sequences": 20, "shard_bytes": 3000}


def sequences(n: int, seed: int, longest: int = 12, largest_code: int = 300) -> Encoded:
    """Random sequences, some of them empty; everything tells where it comes from."""
    rng = np.random.default_rng(seed)
    offsets = to_offsets(rng.integers(0, longest + 1, n))
    points = int(offsets[-1])
    return Encoded(
        codes=rng.integers(0, largest_code + 1, (points, 2)),
        offsets=offsets,
        labels=rng.integers(-1, 4, n),
        conditions=rng.normal(size=(n, 1)).astype(np.float32),
        features=rng.normal(size=(points, 2)).astype(np.float32),
        counted={"outside.pt": seed},
    )


def parts(count: int, size: int = 40) -> list[Part]:
    """Parts that `encode` makes of their names."""
    return [Part(str(seed), size, len(sequences(size, seed).codes)) for seed in range(1, count + 1)]


@dataclass(frozen=True)
class SlowEncode:
    """Encodes a part, takes its time and notes that it did."""

    notes: Path
    seconds: float = 0.0

    def __call__(self, part: Part) -> Encoded:
        with self.notes.open("a") as f:
            f.write(part.name + "\n")
        time.sleep(self.seconds)
        return sequences(part.sequences, int(part.name))


def write(folder: Path, notes: Path, *, count: int = 6, seconds: float = 0.0, workers: int = 1, seed: int = 3) -> dict:
    """A dataset of some shards."""
    with running(workers) as run:
        return write_dataset(
            folder,
            "toy",
            parts(count),
            SlowEncode(notes, seconds),
            COLUMNS,
            identity=IDENTITY,
            seed=seed,
            run=run,
            **SMALL,
        )


def contents(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of all files."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]), seconds=float(sys.argv[3]))
