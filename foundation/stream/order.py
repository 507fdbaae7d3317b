"""Which block and which row of it stands where in the stream: index arithmetic, no data and no state.

    step ---- rows_per_step ----> global rows
    global row ---- mixture ----> dataset, index of the row among the dataset's rows
    index ---- rows of an epoch ----> epoch, position in it
    position ---- lanes ----> row of the epoch's sequence of blocks, which a keyed permutation gives
    that ---- rows of each block ----> block, row in the block

Lanes: the rows of an epoch, in the order of its blocks, are cut into `lanes` equal pieces, which are read side by side.
So a step takes its rows from many blocks, each lane stays with a block for as many rounds as this has rows, and of
many ranks each reads a few lanes only, not everything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foundation.data.ragged import to_offsets
from foundation.errors import DataError
from foundation.stream.mixture import Mixture, MixtureSchedule

LANE_BYTES = 96 * 2**20
"""Blocks that are read side by side, at most. Part of the order: one process must be able to hold them."""
LANE_ROWS = 4
"""Rows that a lane gives to a step, about: neighbours in a block are faster to fetch, more blocks are more varied."""
CHUNK_ROWS = 512
"""Rows whose addresses are computed at once."""


@dataclass(frozen=True)
class Addresses:
    """Where n rows are found; int64 [n] each. `row` counts in the block's order of this epoch."""

    dataset: NDArray[np.int64]
    epoch: NDArray[np.int64]
    block: NDArray[np.int64]
    row: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[tuple[int, int, int, int]]:
        """(dataset, epoch, block, row) of each."""
        return zip(*(column.tolist() for column in self._columns), strict=True)

    def __getitem__(self, chosen: slice) -> Addresses:
        return Addresses(*(column[chosen] for column in self._columns))

    @property
    def _columns(self) -> tuple[NDArray[np.int64], ...]:
        return self.dataset, self.epoch, self.block, self.row


@dataclass(frozen=True)
class Shape:
    """What the order needs to know of a dataset: its name, the rows of every block, and the bytes of an open block."""

    name: str
    rows: NDArray[np.integer]
    block_bytes: int


class RowOrder:
    """The order of the rows of several datasets.

    Raises DataError where a dataset has a weight but no rows.
    """

    def __init__(self, datasets: Sequence[Shape], mixture: Mixture, seed: int, rows_per_step: int) -> None:
        later = [(step * rows_per_step, weights) for step, weights in mixture.later]
        self.schedule = MixtureSchedule(mixture.weights, later)
        self.rows_per_step, self._seed = rows_per_step, seed
        self._rows = [np.asarray(d.rows) for d in datasets]
        self.epoch_rows = [int(rows.sum()) for rows in self._rows]
        self._chunk_steps = max(1, CHUNK_ROWS // rows_per_step)
        self._chunk: tuple[int, Addresses] | None = None
        self._epochs: dict[tuple[int, int], tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        shares = np.max(self.schedule.shares, axis=0).tolist()
        if len(shares) != len(datasets):
            raise DataError(f"the mixture has {len(shares)} weights for {len(datasets)} datasets")
        for share, dataset, rows in zip(shares, datasets, self.epoch_rows, strict=True):
            if share and not rows:
                raise DataError(f"{dataset.name}: has a weight in the mixture, but no sequences: give it the weight 0")
        self.lanes = [_lanes(share, rows_per_step, d) for share, d in zip(shares, datasets, strict=True)]

    def step(self, step: int, rank: int = 0, world: int = 1) -> Addresses:
        """The rows of one step that belong to a rank: those of the ranks together are the same for any `world`."""
        if self.rows_per_step % world:
            raise DataError(
                f"rows_per_step {self.rows_per_step} cannot be divided over {world} ranks: choose a multiple of {world}"
            )
        chunk, place = divmod(step, self._chunk_steps)
        if self._chunk is None or self._chunk[0] != chunk:
            self._chunk = chunk, self.steps(chunk * self._chunk_steps, self._chunk_steps)
        size = self.rows_per_step // world
        first = place * self.rows_per_step + rank * size
        return self._chunk[1][first : first + size]

    def steps(self, first: int, count: int) -> Addresses:
        """All rows of the steps first .. first + count - 1, step after step.

        Inside a step, the rows of a dataset are sorted by lane: ranks take neighbours, so each meets the same few lanes
        again, step after step.
        """
        datasets, indices = self.schedule.rows(first * self.rows_per_step, (first + count) * self.rows_per_step)
        step = np.repeat(np.arange(count), self.rows_per_step)
        lane = indices % np.array(self.epoch_rows)[datasets] % np.array(self.lanes)[datasets]
        dealt = np.empty_like(indices)
        dealt[np.lexsort((datasets, step))] = indices[np.lexsort((lane, datasets, step))]
        return self.addresses(datasets, dealt)

    def addresses(self, datasets: NDArray[np.int64], indices: NDArray[np.int64]) -> Addresses:
        """Where the rows with these indices among the rows of their datasets are."""
        total = np.array(self.epoch_rows)[datasets]
        epoch, position = np.divmod(indices, total)
        block, row = np.empty_like(indices), np.empty_like(indices)
        for dataset in np.unique(datasets).tolist():
            of_dataset = datasets == dataset
            for e in np.unique(epoch[of_dataset]).tolist():
                chosen = of_dataset & (epoch == e)
                order, starts = self._epoch(dataset, e)
                flat = _across_lanes(position[chosen], self.epoch_rows[dataset], self.lanes[dataset])
                place = np.searchsorted(starts, flat, side="right") - 1
                block[chosen], row[chosen] = order[place], flat - starts[place]
        return Addresses(datasets, epoch, block, row)

    def _epoch(self, dataset: int, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Order of the blocks in this epoch, and the first row of each."""
        key = (dataset, epoch)
        if key not in self._epochs:
            order = np.random.default_rng([self._seed, dataset, epoch]).permutation(len(self._rows[dataset]))
            # a step may lie across the border of two epochs
            for old in [k for k in self._epochs if k[0] == dataset and abs(k[1] - epoch) != 1]:
                del self._epochs[old]
            self._epochs[key] = order, to_offsets(self._rows[dataset][order])
        return self._epochs[key]


def _across_lanes(position: NDArray[np.int64], total: int, lanes: int) -> NDArray[np.int64]:
    """Position in the epoch -> place in the sequence of its rows: a table of `lanes` lines, read column by column."""
    short, longer = divmod(total, lanes)  # the first `longer` lanes have one row more than the others
    lane, column = position % lanes, position // lanes
    return lane * short + np.minimum(lane, longer) + column


def _lanes(share: float, rows_per_step: int, dataset: Shape) -> int:
    """How many blocks of a dataset are read side by side, as far as memory goes."""
    most = LANE_BYTES // max(1, dataset.block_bytes)
    return max(1, min(round(share * min(rows_per_step / LANE_ROWS, most)), len(dataset.rows)))
