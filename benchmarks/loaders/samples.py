"""The sequences that every loader gets, and the packing that loaders without one of their own share. NumPy only."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

BLOCK = 1024
CODES = 50_000
SHOWERS = 0.05
LONGEST = 1700
Rows = tuple[NDArray[np.int64], int]
"""A batch int64 [rows, L], padded with zeros, and how many tokens it holds."""


@dataclass(frozen=True)
class Samples:
    """Sequences in one flat array: tokens uint16 [N], offsets int64 [B + 1], shower bool [B]."""

    tokens: NDArray[np.uint16]
    offsets: NDArray[np.int64]
    shower: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.shower)

    def first(self, n: int) -> Samples:
        """The first n sequences."""
        n = min(n, len(self))
        return Samples(self.tokens[: self.offsets[n]], self.offsets[: n + 1], self.shower[:n])

    def blocks(self) -> Iterator[tuple[NDArray[np.uint16], NDArray[np.int64]]]:
        """(tokens, offsets) of BLOCK sequences at a time."""
        for i in range(0, len(self), BLOCK):
            cut = self.offsets[i : i + BLOCK + 1]
            yield self.tokens[cut[0] : cut[-1]], cut - cut[0]

    def each(self) -> Iterator[NDArray[np.uint16]]:
        """Tokens of one sequence at a time."""
        ends = self.offsets.tolist()
        for start, end in itertools.pairwise(ends):
            yield self.tokens[start:end]


def make_samples(count: int, seed: int = 1) -> Samples:
    """95 % jets (lognormal, mean about 45, 6 to 260) and 5 % showers (mean about 600, to 1,700), in random order."""
    rng = np.random.default_rng(seed)
    shower = rng.random(count) < SHOWERS
    shower[:2] = False, True
    jets = np.clip(rng.lognormal(np.log(41.5), 0.4, count), 6, 260)
    showers = np.clip(rng.lognormal(np.log(530), 0.5, count), 20, LONGEST)
    offsets = np.concatenate([[0], np.cumsum(np.where(shower, showers, jets).astype(np.int64))])
    # Codes start at 1: a zero in a batch is padding, so the sum of an epoch's batches is the sum of all tokens.
    return Samples(rng.integers(1, CODES, offsets[-1], dtype=np.uint16), offsets, shower)


def save_samples(folder: Path, samples: Samples) -> None:
    """As three files, which are the memory-mapped format too."""
    for name in ("tokens", "offsets", "shower"):
        np.save(folder / f"{name}.npy", getattr(samples, name))


def load_samples(folder: Path) -> Samples:
    """Memory-mapped, without the cost of np.memmap's slices."""
    return Samples(*(np.asarray(np.load(folder / f"{n}.npy", mmap_mode="r")) for n in ("tokens", "offsets", "shower")))


class RowPacker:
    """Next fit: each row takes whole sequences until the next one does not fit. Batches of `rows` rows."""

    def __init__(self, row_tokens: int, rows: int) -> None:
        self.row_tokens, self.rows = row_tokens, rows

    def blocks(self, blocks: Iterable[tuple[NDArray, NDArray]]) -> Iterator[Rows]:
        """One copy for each row: neighbours in a block are neighbours in the row."""
        batch, row, count = self._empty(), 0, 0
        for tokens, offsets in blocks:
            ends = offsets.tolist()
            i, last = 0, len(ends) - 1
            while i < last:
                j = bisect_right(ends, ends[i] + self.row_tokens) - 1
                size = ends[j] - ends[i]
                batch[row, :size] = tokens[ends[i] : ends[j]]
                i, row, count = j, row + 1, count + size
                if row == self.rows:
                    yield batch, count
                    batch, row, count = self._empty(), 0, 0
        yield batch, count

    def each(self, sequences: Iterable[NDArray]) -> Iterator[Rows]:
        """One copy for each sequence."""
        batch, row, used, count = self._empty(), 0, 0, 0
        for tokens in sequences:
            size = len(tokens)
            if used + size > self.row_tokens:
                row, count, used = row + 1, count + used, 0
                if row == self.rows:
                    yield batch, count
                    batch, row, count = self._empty(), 0, 0
            batch[row, used : used + size] = tokens
            used += size
        yield batch, count + used

    def _empty(self) -> NDArray[np.int64]:
        return np.zeros((self.rows, self.row_tokens), np.int64)


def permuted(
    blocks: Iterable[tuple[NDArray, NDArray]], rng: np.random.Generator
) -> Iterator[tuple[NDArray, NDArray[np.int64]]]:
    """Every block with its sequences in another order, by an index of all tokens."""
    for tokens, offsets in blocks:
        starts, lengths = offsets[:-1].astype(np.int64), np.diff(offsets)
        order = rng.permutation(len(lengths))
        new = np.concatenate([[0], np.cumsum(lengths[order], dtype=np.int64)])
        index = np.repeat(starts[order] - new[:-1], lengths[order])
        index += np.arange(new[-1])
        # "clip" goes without the copy that the other modes make, in case an index is wrong
        yield tokens.take(index, mode="clip"), new


def permuted_by_arrow(
    blocks: Iterable[tuple[NDArray, NDArray]], rng: np.random.Generator
) -> Iterator[tuple[NDArray, NDArray[np.int64]]]:
    """The same with each sequence copied in one go, as our own stream does it; several times faster."""
    import pyarrow

    for tokens, offsets in blocks:
        order, size = rng.permutation(len(offsets) - 1), tokens.itemsize
        buffers = [None, *map(pyarrow.py_buffer, ((offsets * size).astype(np.int32), np.ascontiguousarray(tokens)))]
        texts = pyarrow.Array.from_buffers(pyarrow.binary(), len(order), buffers)
        index = pyarrow.Array.from_buffers(pyarrow.int64(), len(order), [None, pyarrow.py_buffer(order)])
        _, starts, data = texts.take(index).buffers()
        new = np.frombuffer(starts, np.int32, len(order) + 1).astype(np.int64) // size
        yield np.frombuffer(data, tokens.dtype, new[-1]), new
