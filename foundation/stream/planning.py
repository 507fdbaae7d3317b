"""What a run will read, by index arithmetic alone: epochs, tokens, fill, and how much each rank has to fetch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foundation.stream.mixture import Mixture
from foundation.stream.order import RowOrder, Shape
from foundation.stream.reading import ShardedDataset
from foundation.stream.row_stream import open_bytes
from foundation.stream.rows import LengthRule, row_table

LOOKED_AT = 2**18
"""Rows whose addresses are computed to find out which blocks each rank reads."""


@dataclass(frozen=True)
class DatasetPlan:
    """One dataset of a run; numbers per step are those of the part of the mixture in which it has most weight."""

    name: str
    sequences: int
    left_out: int
    share: float
    """Of the rows."""
    rows_per_epoch: int
    steps_per_epoch: float
    """Infinite for a dataset of weight 0."""
    epochs: float
    """Of the whole run; 0 where the number of steps is not given."""
    tokens_per_step: float
    fill: float
    """Tokens of a row as a fraction of its places."""
    lanes: int
    """Blocks that are read side by side."""


@dataclass(frozen=True)
class StreamPlan:
    """What a run reads; tokens and rates are those of the first part of the mixture."""

    datasets: tuple[DatasetPlan, ...]
    row_tokens: int
    rows_per_step: int
    ranks: int
    tokens_per_step: float
    fill: float
    bytes_per_token: float
    """On disk, whole blocks, all members."""
    read_per_use: float
    """Bytes that all ranks together read for every byte that is used: 1 where each block is read by one rank."""
    blocks_per_rank_and_step: float
    tokens_per_second: float | None

    @property
    def bytes_per_second(self) -> float | None:
        """What all ranks together read at `tokens_per_second`."""
        if self.tokens_per_second is None:
            return None
        return self.tokens_per_second * self.bytes_per_token * self.read_per_use

    def lines(self) -> list[str]:
        """The plan in words."""
        out = []
        for d in self.datasets:
            left_out = f", {d.left_out:,} longer than a row and left out" if d.left_out else ""
            out.append(f"{d.name}: {d.sequences:,} sequences{left_out}; {d.rows_per_epoch:,} rows, {d.fill:.1%} full")
            if d.share:
                epochs = f", {d.epochs:.3g} epochs in all" if d.epochs else ""
                out.append(
                    f"  {d.share:.2%} of the rows: {d.tokens_per_step:,.0f} tokens a step, an epoch in "
                    f"{d.steps_per_epoch:,.1f} steps{epochs}; {d.lanes} blocks open"
                )
        out.append(
            f"a step: {self.rows_per_step} rows of {self.row_tokens} over {self.ranks} ranks, "
            f"{self.tokens_per_step:,.0f} tokens, {self.fill:.1%} full"
        )
        out.append(
            f"a rank opens {self.blocks_per_rank_and_step:.3g} blocks a step; together they read every byte "
            f"{self.read_per_use:.2f} times, {self.bytes_per_token * self.read_per_use:.2f} bytes a token"
        )
        if self.bytes_per_second is not None:
            speed, rate = f"{self.tokens_per_second:,.0f} tokens/s", self.bytes_per_second / 1e6
            out.append(f"at {speed}: {rate:,.1f} MB/s in all, {rate / self.ranks:,.2f} MB/s a rank")
        return out


def plan_stream(
    datasets: Sequence[ShardedDataset],
    mixture: Mixture,
    rules: Sequence[LengthRule],
    row_tokens: int,
    rows_per_step: int,
    *,
    ranks: int = 1,
    seed: int = 1,
    steps: int | None = None,
    tokens_per_second: float | None = None,
) -> StreamPlan:
    """Plan a run on these datasets; rules: tokens of a sequence of each (`rows.length_rule`). Reads no block.

    tokens_per_second: of all ranks together, for the rate of reading. Raises DataError as the stream does.
    """
    tables = [row_table(d, rule, row_tokens) for d, rule in zip(datasets, rules, strict=True)]
    shapes = [Shape(d.tag, t["rows"], open_bytes(d)) for d, t in zip(datasets, tables, strict=True)]
    order = RowOrder(shapes, mixture, seed, rows_per_step)
    places = row_tokens * rows_per_step
    given = order.schedule.counts(steps * rows_per_step) if steps else np.zeros(len(datasets), np.int64)
    plans = tuple(
        _dataset_plan(data, table, order, number, row_tokens, int(given[number]))
        for number, (data, table) in enumerate(zip(datasets, tables, strict=True))
    )
    at_start = order.schedule.shares[0]
    tokens = at_start * np.array([p.fill for p in plans]) * places
    size = [_bytes(d) / max(1, int(t["tokens"].sum())) for d, t in zip(datasets, tables, strict=True)]
    rows_per_block = [max(1.0, rows / max(1, d.n_blocks)) for rows, d in zip(order.epoch_rows, datasets, strict=True)]
    times_read = blocks_read(order, ranks)
    return StreamPlan(
        datasets=plans,
        row_tokens=row_tokens,
        rows_per_step=rows_per_step,
        ranks=ranks,
        tokens_per_step=float(tokens.sum()),
        fill=float(tokens.sum()) / places,
        bytes_per_token=float(tokens @ size / tokens.sum()),
        read_per_use=times_read,
        blocks_per_rank_and_step=times_read * float((at_start * rows_per_step / rows_per_block).sum()) / ranks,
        tokens_per_second=tokens_per_second,
    )


def blocks_read(order: RowOrder, ranks: int) -> float:
    """By how many ranks a block is read, on average over the first steps: 1 is the least there can be."""
    steps = max(1, LOOKED_AT // order.rows_per_step)
    rows = order.steps(0, steps)
    block = np.unique(np.stack([rows.dataset, rows.epoch, rows.block]), axis=1, return_inverse=True)[1].ravel()
    rank = np.arange(len(rows)) % order.rows_per_step * ranks // order.rows_per_step
    return len(np.unique(block * ranks + rank)) / len(np.unique(block))


def _dataset_plan(
    data: ShardedDataset, table: NDArray[np.void], order: RowOrder, number: int, row_tokens: int, given: int
) -> DatasetPlan:
    rows = order.epoch_rows[number]
    share = float(np.max(order.schedule.shares, axis=0)[number])
    fill = float(table["tokens"].sum()) / max(1, rows * row_tokens)
    return DatasetPlan(
        name=data.tag,
        sequences=len(data),
        left_out=int(table["left_out"].sum()),
        share=share,
        rows_per_epoch=rows,
        steps_per_epoch=rows / (share * order.rows_per_step) if share else float("inf"),
        epochs=given / max(1, rows),
        tokens_per_step=share * order.rows_per_step * row_tokens * fill,
        fill=fill,
        lanes=order.lanes[number],
    )


def _bytes(data: ShardedDataset) -> float:
    """Of its shards, as far as they are used."""
    total = sum(shard["bytes"] for shard in data.manifest["shards"])
    return total * len(data) / max(1, data.manifest["sequences"])
