"""The stream that training reads: rows of packed sequences, a pure function of (shards, mixture, seed, step).

Nothing is remembered between steps except caches, so resuming is asking for the next step, on any number of ranks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foundation.console import warn
from foundation.data.ragged import ragged_arange, to_offsets
from foundation.errors import DataError
from foundation.stream.mixture import MixtureSchedule
from foundation.stream.packing import pack
from foundation.stream.reading import Block, ShardedDataset
from foundation.tokens.layout import Layout, Sequences

CACHED_BLOCKS = 16


@dataclass(frozen=True)
class Batch:
    """Packed sequences of one micro-batch; no padding.

    ids:      int64 [T, S]; input ids of every step
    targets:  int64 [T, S]; id of the next step, -1 where none is predicted
    slots:    int64 [T, S]; slot (legal range) of the target, -1 where none is predicted
    positions: int64 [T]; step number inside its sequence
    offsets:  int64 [B + 1]; sequence b owns steps offsets[b]:offsets[b + 1]
    labels:   int64 [B]; class, also where the sequence does not show it
    dataset:  int64 [B]; which dataset of the stream each sequence comes from
    """

    ids: NDArray[np.int64]
    targets: NDArray[np.int64]
    slots: NDArray[np.int64]
    positions: NDArray[np.int64]
    offsets: NDArray[np.int64]
    labels: NDArray[np.int64]
    dataset: NDArray[np.int64]


@dataclass(frozen=True)
class StreamConfig:
    """How sequences become batches."""

    row_tokens: int
    rows_per_step: int
    seed: int
    class_dropout: float = 0.0
    """Fraction of sequences whose class is shown as `any`; redrawn every epoch."""
    condition_dropout: float = 0.0
    """The same for each condition."""


class TokenStream:
    """Endless, mixed, deterministic stream over several sharded datasets."""

    def __init__(
        self, datasets: list[ShardedDataset], weights: list[float], layout: Layout, config: StreamConfig
    ) -> None:
        self.datasets, self.layout, self.config = datasets, layout, config
        self.schedule = MixtureSchedule(weights)
        self._rows = [self._count_rows(d) for d in datasets]
        self._order: dict[tuple[int, int], tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        self._cache: OrderedDict[tuple[int, int, int], tuple[Sequences, Block, list[NDArray[np.int64]]]] = OrderedDict()

    def _input_lengths(self, dataset: ShardedDataset, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        # the last step of a sequence is only ever a target
        return self.layout.lengths(dataset.tag, counts) - 1

    def _count_rows(self, dataset: ShardedDataset) -> NDArray[np.int64]:
        """Rows of every block; they depend on the lengths alone."""
        rows, too_long = [], 0
        for counts in dataset.lengths:
            lengths = self._input_lengths(dataset, counts)
            too_long += int((lengths > self.config.row_tokens).sum())
            rows.append(len(pack(lengths, self.config.row_tokens)))
        if sum(rows) == 0:
            raise DataError(f"{dataset.folder}: no sequence fits into {self.config.row_tokens} tokens")
        if too_long:
            warn(
                f"{dataset.folder}: {too_long} of {len(dataset)} sequences are longer than {self.config.row_tokens} "
                "tokens and are left out; raise row_tokens to keep them"
            )
        return np.array(rows)

    def rows_per_epoch(self, dataset: int) -> int:
        """Rows that one pass over a dataset takes."""
        return int(self._rows[dataset].sum())

    def batches(self, step: int, rank: int = 0, world: int = 1, accumulation: int = 1) -> list[Batch]:
        """This rank's micro-batches of this step: row r of the step goes to rank r mod world."""
        per_step = self.config.rows_per_step
        if per_step % (world * accumulation):
            raise DataError(
                f"rows_per_step {per_step} cannot be divided over {world} ranks of {accumulation} micro-batches: "
                f"choose a multiple of {world * accumulation}"
            )
        mine = [step * per_step + r for r in range(rank, per_step, world)]
        size = len(mine) // accumulation
        return [self._assemble(mine[i : i + size]) for i in range(0, len(mine), size)]

    def _assemble(self, rows: list[int]) -> Batch:
        parts = []
        for g in rows:
            dataset, index = self.schedule.row(g)
            epoch, position = divmod(index, self.rows_per_epoch(dataset))
            order, starts = self._epoch_order(dataset, epoch)
            place = int(np.searchsorted(starts, position, side="right")) - 1
            sequences, block, packed = self._block(dataset, epoch, int(order[place]))
            parts.append((dataset, sequences, block.labels, packed[position - int(starts[place])]))
        return join_sequences(parts)

    def _epoch_order(self, dataset: int, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Order of the blocks in this epoch, and the first row of each."""
        if (dataset, epoch) not in self._order:
            rng = np.random.default_rng([self.config.seed, dataset, epoch])
            order = rng.permutation(len(self._rows[dataset]))
            self._order = {k: v for k, v in self._order.items() if k[0] != dataset}
            self._order[dataset, epoch] = order, to_offsets(self._rows[dataset][order])
        return self._order[dataset, epoch]

    def _block(self, dataset: int, epoch: int, number: int) -> tuple[Sequences, Block, list[NDArray[np.int64]]]:
        """Sequences of a block as this epoch shows them, and its rows in this epoch's order."""
        key = (dataset, epoch, number)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        source = self.datasets[dataset]
        block = source.block(number)
        rng = np.random.default_rng([self.config.seed, dataset, epoch, number])
        shuffle = rng.permutation(len(block))
        lengths = self._input_lengths(source, np.diff(block.offsets))
        rows = [shuffle[row] for row in pack(lengths[shuffle], self.config.row_tokens)]
        rows = [rows[r] for r in rng.permutation(len(rows))]
        hide_class = rng.random(len(block)) < self.config.class_dropout
        hide_condition = rng.random(block.conditions.shape) < self.config.condition_dropout
        sequences = self.layout.sequences(
            source.tag,
            block.codes,
            block.offsets,
            np.where(hide_class, -1, block.labels),
            np.where(hide_condition, np.nan, block.conditions),
        )
        self._cache[key] = sequences, block, rows
        if len(self._cache) > CACHED_BLOCKS:
            self._cache.popitem(last=False)
        return self._cache[key]


def join_sequences(
    parts: list[tuple[int, Sequences, NDArray[np.int64], NDArray[np.int64]]],
) -> Batch:
    """One batch out of (dataset, sequences, labels, which sequences) each."""
    ids, targets, slots, counts, labels, dataset = [], [], [], [], [], []
    for number, sequences, known, chosen in parts:
        n = np.diff(sequences.offsets)[chosen] - 1
        rows = np.repeat(sequences.offsets[chosen], n) + ragged_arange(n)
        ids.append(sequences.ids[rows])
        slots.append(sequences.slots[rows + 1])
        targets.append(np.where(slots[-1] >= 0, sequences.ids[rows + 1], -1))
        counts.append(n)
        labels.append(known[chosen])
        dataset.append(np.full(len(chosen), number))
    steps = np.concatenate(counts)
    return Batch(
        ids=np.concatenate(ids),
        targets=np.concatenate(targets),
        slots=np.concatenate(slots),
        positions=ragged_arange(steps),
        offsets=to_offsets(steps),
        labels=np.concatenate(labels),
        dataset=np.concatenate(dataset),
    )


def one_pass(
    dataset: ShardedDataset, layout: Layout, max_tokens: int, hide_class: bool, limit: int | None = None
) -> Iterator[Batch]:
    """Every sequence of a dataset once, in stored order, in batches of at most `max_tokens` steps (or one sequence).

    For validation and inference. hide_class shows the class as `any`, as a classifier must see it.
    """
    left = len(dataset) if limit is None else min(limit, len(dataset))
    for number in range(dataset.n_blocks):
        block = dataset.block(number).first(left)
        left -= len(block)
        if len(block) == 0:
            return
        labels = np.full(len(block), -1) if hide_class else block.labels
        sequences = layout.sequences(dataset.tag, block.codes, block.offsets, labels, block.conditions)
        used = np.cumsum(np.diff(sequences.offsets) - 1)
        first = 0
        while first < len(block):
            spent = used[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(used, spent + max_tokens, side="right")))
            yield join_sequences([(0, sequences, block.labels, np.arange(first, last))])
            first = last
