"""The stream that training reads: rows of packed sequences, a pure function of (shards, mixture, seed, step).

Nothing is remembered between steps except caches, so resuming is asking for the next step, on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from foundation.errors import DataError
from foundation.stream.batches import Batch, gap_of, lay_out
from foundation.stream.mixture import Mixture
from foundation.stream.point_features import feature_columns
from foundation.stream.reading import Block, ShardedDataset
from foundation.stream.row_stream import Rows, RowStream, StreamConfig
from foundation.stream.rows import length_rule
from foundation.tokens.layout import Layout

__all__ = ["Batch", "StreamConfig", "TokenStream", "one_pass"]


class TokenStream:
    """Endless, mixed, deterministic stream of batches over several sharded datasets.

    mixture: weights of the datasets, or a Mixture where they change with the step. Not for several threads at once.
    """

    def __init__(
        self,
        datasets: Sequence[ShardedDataset],
        mixture: Mixture | Sequence[float],
        layout: Layout,
        config: StreamConfig,
    ) -> None:
        self.datasets, self.layout, self.config = list(datasets), layout, config
        self._tags = [d.tag for d in datasets]
        rules = [length_rule(layout, tag) for tag in self._tags]
        self.rows = RowStream(datasets, mixture, rules, config, [gap_of(layout, tag) for tag in self._tags])

    def rows_per_epoch(self, dataset: int) -> int:
        """Rows that one pass over a dataset takes."""
        return self.rows.rows_per_epoch(dataset)

    @property
    def left_out(self) -> dict[str, int]:
        """Sequences of each dataset, by tag, that are longer than a row."""
        return dict(zip(self._tags, self.rows.left_out, strict=True))

    def batches(self, step: int, rank: int = 0, world: int = 1, accumulation: int = 1) -> list[Batch]:
        """This rank's micro-batches of this step. The step's rows are the same for any number of ranks."""
        per_step = self.config.rows_per_step
        if per_step % (world * accumulation):
            raise DataError(
                f"rows_per_step {per_step} cannot be divided over {world} ranks of {accumulation} micro-batches: "
                f"choose a multiple of {world * accumulation}"
            )
        mine = self.rows.order.step(step, rank, world)
        size = len(mine) // accumulation
        beside = len(self.config.features)
        return [
            lay_out(self.layout, self._tags, self.rows.take(mine[first : first + size]), step + 1, beside)
            for first in range(0, len(mine), size)
        ]


def one_pass(
    dataset: ShardedDataset,
    layout: Layout,
    max_tokens: int,
    hide_class: bool,
    limit: int | None = None,
    features: tuple[str, ...] = (),
) -> Iterator[Batch]:
    """Every sequence of a dataset once, in stored order, in batches of at most `max_tokens` steps (or one sequence).

    For validation and inference. hide_class shows the class as `any`, as a classifier must see it. features: continuous
    features of points that come beside the codes, by name.
    """
    left = len(dataset) if limit is None else min(limit, len(dataset))
    for number in range(dataset.n_blocks):
        if left <= 0:
            return
        block = dataset.block(number).first(left)
        left -= len(block)
        if block.bad:
            continue
        columns = feature_columns(dataset, block, features) if features else None
        used = np.cumsum(layout.lengths(dataset.tag, np.diff(block.offsets)) - 1)
        first = 0
        while first < len(block):
            spent = used[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(used, spent + max_tokens, side="right")))
            rows = _stored(block, first, last, hide_class, columns)
            yield lay_out(layout, [dataset.tag], [rows], features=len(features))
            first = last


def _stored(block: Block, first: int, last: int, hide_class: bool, features: NDArray[np.floating] | None) -> Rows:
    """Sequences first .. last - 1 of a block as they are stored; features: of all its points."""
    labels = block.labels[first:last]
    points = slice(block.offsets[first], block.offsets[last])
    return Rows(
        dataset=0,
        codes=block.codes[points],
        gap=0,
        points=np.diff(block.offsets[first : last + 1]),
        labels=labels,
        shown=np.full(last - first, -1) if hide_class else labels,
        conditions=block.conditions[first:last],
        ids=block.ids[first:last],
        features=None if features is None else features[points],
    )
