"""What no loader can beat, and formats that need no library."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loaders.contender import Contender, Read, blocks, each
from loaders.samples import RowPacker, Rows, load_samples

PACKING = "bound: packing of blocks in memory"
PACKING_NUMPY = "bound: the same with np.searchsorted"
WIDENING = "bound: widening copy"


@cache
def _in_memory(folder: Path) -> tuple[NDArray[np.uint16], list[tuple[NDArray[np.uint16], NDArray[np.int64]]]]:
    samples = load_samples(folder)
    return np.array(samples.tokens), [(np.array(t), np.array(o)) for t, o in samples.blocks()]


def widening(folder: Path, epoch: int, packer: RowPacker) -> Iterator[Rows]:
    """uint16 to int64, batch by batch, into the same memory: no sequences, no rows."""
    tokens, _ = _in_memory(folder)
    batch = np.zeros(packer.rows * packer.row_tokens, np.int64)
    for start in range(0, len(tokens), len(batch)):
        part = tokens[start : start + len(batch)]
        batch[: len(part)] = part
        batch[len(part) :] = 0
        yield batch, len(part)


def packing(folder: Path, epoch: int, packer: RowPacker) -> Iterator[Rows]:
    """Whole sequences in stored order, one copy for each row."""
    yield from packer.blocks(_in_memory(folder)[1])


def packing_numpy(folder: Path, epoch: int, packer: RowPacker) -> Iterator[Rows]:
    """The same as it is usually written; the borders of each row are looked up in the array of offsets."""
    batch, row, count = np.zeros((packer.rows, packer.row_tokens), np.int64), 0, 0
    for tokens, offsets in _in_memory(folder)[1]:
        i = 0
        while i < len(offsets) - 1:
            j = int(np.searchsorted(offsets, offsets[i] + packer.row_tokens, side="right")) - 1
            size = offsets[j] - offsets[i]
            batch[row, :size] = tokens[offsets[i] : offsets[j]]
            i, row, count = j, row + 1, count + int(size)
            if row == packer.rows:
                yield batch, count
                batch, row, count = np.zeros_like(batch), 0, 0
    yield batch, count


def memmap_blocks(folder: Path, epoch: int) -> Iterator[tuple[NDArray, NDArray]]:
    """Slices of one memory-mapped file, in random order."""
    samples = load_samples(folder)
    found = list(samples.blocks())
    for i in np.random.default_rng(epoch).permutation(len(found)):
        yield found[i]


def memmap_sequences(folder: Path, epoch: int) -> Iterator[NDArray]:
    """One slice per sequence, in random order."""
    samples = load_samples(folder)
    ends = samples.offsets.tolist()
    for i in np.random.default_rng(epoch).permutation(len(samples)).tolist():
        yield samples.tokens[ends[i] : ends[i + 1]]


def memmap_crops(folder: Path, epoch: int, packer: RowPacker) -> Iterator[Rows]:
    """nanoGPT's get_batch: rows that start anywhere, sequences cut at both ends, as many tokens as there are."""
    import torch

    data = np.load(folder / "tokens.npy", mmap_mode="r")
    width = packer.row_tokens
    for _ in range(-(-len(data) // (packer.rows * width))):
        starts = torch.randint(max(1, len(data) - width), (packer.rows,))
        rows = torch.stack([torch.from_numpy(data[i : i + width].astype(np.int64)) for i in starts])
        yield rows.numpy(), rows.numel()


def _plain(name: str, read: Read, guarantees: str = "", whole: bool = True) -> Contender:
    return Contender(name, "samples", read, guarantees, whole=whole)


CONTENDERS = [
    _plain(WIDENING, widening),
    _plain(PACKING, packing),
    _plain(PACKING_NUMPY, packing_numpy),
    _plain("memmap, random crops (nanoGPT)", memmap_crops, whole=False),
    _plain("memmap, blocks shuffled", blocks(memmap_blocks), "O"),
    _plain("memmap, sequences shuffled", each(memmap_sequences), "OS"),
]
