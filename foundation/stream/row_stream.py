"""Rows of the mixed stream as codes: what a row holds before a layout makes ids of it.

A block is read when the first of its rows is asked for. Its sequences are then put into the order of its rows, so that
a row is one slice; that copy is kept until the memory is needed for others.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from foundation.console import warn
from foundation.data.ragged import to_offsets
from foundation.errors import DataError
from foundation.stream.mixture import Mixture
from foundation.stream.order import Addresses, RowOrder, Shape
from foundation.stream.packing import Packing, pack
from foundation.stream.point_features import feature_columns, require_features
from foundation.stream.reading import Block, ShardedDataset
from foundation.stream.rows import LengthRule, row_table

CACHE_BYTES = 128 * 2**20
"""Blocks that are kept open."""
LENGTH_BITS = 24
"""Enough for the tokens of a row."""
PACKING_BYTES = 48 * 2**20
"""Packings of blocks that are kept from one epoch to the next."""
SEQUENCE_BYTES = 48
"""What an open block needs for a sequence besides its codes, about."""
T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True)
class StreamConfig:
    """How sequences become rows and rows become steps."""

    row_tokens: int
    rows_per_step: int
    seed: int
    class_dropout: float = 0.0
    """Fraction of sequences whose class is shown as `any`; redrawn every epoch."""
    condition_dropout: float = 0.0
    """The same for each condition."""
    too_long: Literal["leave_out", "error"] = "leave_out"
    """What to do with sequences that are longer than a row."""
    features: tuple[str, ...] = ()
    """Continuous features of points that come beside the codes, by name."""


@dataclass(frozen=True)
class Rows:
    """Some rows of one dataset, sequence after sequence.

    dataset:    which dataset of the stream
    codes:      unsigned [N, K]; before the points of each sequence lie `gap` places whose content means nothing
    gap:        places before each sequence
    points:     int64 [B]
    labels:     int64 [B]; true class
    shown:      int64 [B]; class that the sequence shows, -1 for `any`
    conditions: float32 [B, C]; NaN for `any`
    ids:        uint64 [B]; where each sequence comes from
    features:   float16 or float32 [points, F], without gaps; None where none are asked for
    """

    dataset: int
    codes: NDArray[np.integer]
    gap: int
    points: NDArray[np.int64]
    labels: NDArray[np.int64]
    shown: NDArray[np.int64]
    conditions: NDArray[np.float32]
    ids: NDArray[np.uint64]
    features: NDArray[np.floating] | None = None

    def __len__(self) -> int:
        return len(self.points)


@dataclass(frozen=True)
class PackedCodes:
    """Rows as plain numbers: codes int64 [N], the K codes of a point side by side, and offsets int64 [B + 1] of the
    sequences in them."""

    codes: NDArray[np.int64]
    offsets: NDArray[np.int64]


class _OpenBlock:
    """A block as one epoch shows it: its sequences in the order of its rows.

    codes [places, K], gaps included; row r is places[r]:places[r + 1] of them, and sequences rows[r]:rows[r + 1]
    lengths: int64 [B]; numbers in each sequence, K for a place
    features: [points, F] or None; without gaps, so sequence b begins at points[b]
    """

    def __init__(
        self,
        block: Block,
        chosen: NDArray[np.int64],
        rows: NDArray[np.int64],
        gap: int,
        hidden: _Hidden,
        features: NDArray[np.floating] | None = None,
    ) -> None:
        self._block, self._chosen, self._hidden = block, chosen, hidden
        self.codes, starts = gather(block.codes, block.offsets, chosen, gap)
        self.places: list[int] = starts[rows].tolist()
        self.rows: list[int] = rows.tolist()
        self.lengths = np.diff(starts) * self.codes.shape[1]
        self.nbytes = self.codes.nbytes + len(chosen) * SEQUENCE_BYTES
        self.features = None
        if features is not None:
            self.features, self.points = gather(features, block.offsets, chosen, 0)
            self.nbytes += self.features.nbytes

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """True classes [B]."""
        return self._block.labels[self._chosen]

    @cached_property
    def shown(self) -> NDArray[np.int64]:
        """Classes [B], -1 where hidden."""
        hidden = self._hidden.classes
        return self.labels if hidden is None else np.where(hidden[self._chosen], -1, self.labels)

    @cached_property
    def conditions(self) -> NDArray[np.float32]:
        """Conditions [B, C], NaN where hidden."""
        given, hidden = self._block.conditions[self._chosen], self._hidden.conditions
        return given if hidden is None else np.where(hidden[self._chosen], np.float32(np.nan), given)

    @cached_property
    def ids(self) -> NDArray[np.uint64]:
        """Where the sequences come from [B]."""
        return self._block.ids[self._chosen]


class _Hidden(NamedTuple):
    """What an epoch does not show of a block, in stored order; None where it shows all."""

    classes: NDArray[np.bool_] | None
    conditions: NDArray[np.bool_] | None


@dataclass
class _Span:
    """Rows first_row .. last_row - 1 of a block."""

    dataset: int
    block: _OpenBlock
    first_row: int
    last_row: int

    @property
    def first(self) -> int:
        """Its first sequence."""
        return self.block.rows[self.first_row]

    @property
    def last(self) -> int:
        """The one after its last."""
        return self.block.rows[self.last_row]

    def codes(self) -> NDArray[np.integer]:
        """Codes of its sequences, gaps included."""
        return self.block.codes[self.block.places[self.first_row] : self.block.places[self.last_row]]

    def features(self) -> NDArray[np.floating]:
        """Continuous features of its points."""
        assert self.block.features is not None
        return self.block.features[self.block.points[self.first] : self.block.points[self.last]]


class RowStream:
    """Endless, mixed, deterministic stream of packed rows over several sharded datasets.

    rules: tokens of a sequence of each dataset; gaps: places to leave before each sequence, 0 unless given

    Raises DataError where a dataset with a weight has nothing that fits, or, with too_long "error", where a sequence
    does not fit. Not for use by several threads at once.
    """

    def __init__(
        self,
        datasets: Sequence[ShardedDataset],
        mixture: Mixture | Sequence[float],
        rules: Sequence[LengthRule],
        config: StreamConfig,
        gaps: Sequence[int] | None = None,
    ) -> None:
        mixture = mixture if isinstance(mixture, Mixture) else Mixture(tuple(mixture))
        self.datasets, self.config, self._rules = list(datasets), config, list(rules)
        self._gaps = list(gaps) if gaps else [0] * len(self.datasets)
        self.tables = [row_table(d, r, config.row_tokens) for d, r in zip(self.datasets, rules, strict=True)]
        self._report_too_long()
        require_features(self.datasets, config.features)
        shapes = [
            Shape(str(d.folder), t["rows"], open_bytes(d, len(config.features)))
            for d, t in zip(self.datasets, self.tables, strict=True)
        ]
        self.order = RowOrder(
            shapes,
            mixture,
            config.seed,
            config.rows_per_step,
        )
        self._cache: OrderedDict[tuple[int, int, int], _OpenBlock] = OrderedDict()
        self._cached_bytes = 0
        self._packings: dict[tuple[int, int], Packing] = {}
        self._packings_bytes = 0

    def _report_too_long(self) -> None:
        for dataset, table in zip(self.datasets, self.tables, strict=True):
            count, total = int(table["left_out"].sum()), len(dataset)
            said = f"{dataset.folder}: {count} of {total} sequences are longer than {self.config.row_tokens} tokens"
            if count and self.config.too_long == "error":
                raise DataError(f"{said}: raise row_tokens, or let them be left out (too_long: leave_out)")
            if count:
                warn(f"{said} and are left out; raise row_tokens to keep them")

    def rows_per_epoch(self, dataset: int) -> int:
        """Rows that one pass over a dataset takes."""
        return self.order.epoch_rows[dataset]

    @property
    def left_out(self) -> list[int]:
        """Sequences of each dataset that are longer than a row."""
        return [int(t["left_out"].sum()) for t in self.tables]

    def rows(self, step: int, rank: int = 0, world: int = 1) -> list[Rows]:
        """The rows of a step that belong to a rank, one item for each dataset that has any."""
        return self.take(self.order.step(step, rank, world))

    def take(self, addresses: Addresses) -> list[Rows]:
        """The rows at these addresses, one item for each dataset that has any."""
        spans = self._spans(addresses)
        numbers = sorted({span.dataset for span in spans})
        return [self._joined(number, [s for s in spans if s.dataset == number]) for number in numbers]

    def packed_codes(self, step: int, rank: int = 0, world: int = 1) -> PackedCodes:
        """The rows of a step that belong to a rank, widened to int64; gaps, where there are any, included."""
        spans = self._spans(self.order.step(step, rank, world))
        lengths = np.concatenate([s.block.lengths[s.first : s.last] for s in spans])
        codes = np.concatenate([s.codes().reshape(-1) for s in spans], dtype=np.int64)
        return PackedCodes(codes, to_offsets(lengths))

    def _spans(self, addresses: Addresses) -> list[_Span]:
        """Neighbouring rows of a block are one piece; datasets take turns, so each has its own last piece."""
        spans: list[_Span] = []
        following: dict[tuple[int, int, int, int], _Span] = {}
        for dataset, epoch, number, row in addresses:
            span = following.pop((dataset, epoch, number, row), None)
            if span is None:
                span = _Span(dataset, self._block(dataset, epoch, number), row, row)
                spans.append(span)
            span.last_row = row + 1
            following[dataset, epoch, number, row + 1] = span
        return spans

    def _joined(self, dataset: int, spans: list[_Span]) -> Rows:
        def joined(name: str) -> NDArray:
            return np.concatenate([getattr(s.block, name)[s.first : s.last] for s in spans])

        codes = np.concatenate([s.codes() for s in spans])
        gap = self._gaps[dataset]
        return Rows(
            dataset=dataset,
            codes=codes,
            gap=gap,
            points=joined("lengths") // codes.shape[1] - gap,
            labels=joined("labels"),
            shown=joined("shown"),
            conditions=joined("conditions"),
            ids=joined("ids"),
            features=np.concatenate([s.features() for s in spans]) if self.config.features else None,
        )

    def _block(self, dataset: int, epoch: int, number: int) -> _OpenBlock:
        key = (dataset, epoch, number)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        block = self._opened(dataset, epoch, number)
        self._cache[key] = block
        self._cached_bytes += block.nbytes
        while self._cached_bytes > CACHE_BYTES and len(self._cache) > 1:
            self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return block

    def _opened(self, dataset: int, epoch: int, number: int) -> _OpenBlock:
        """Read a block and bring it into the order of this epoch."""
        block = self.datasets[dataset].block(number)
        n_rows = int(self.tables[dataset]["rows"][number])
        rng = np.random.default_rng([self.config.seed, dataset, epoch, number])
        if block.bad:
            chosen, rows = np.zeros(0, np.int64), np.zeros(n_rows + 1, np.int64)
        else:
            tokens = self._rules[dataset].tokens(np.diff(block.offsets))
            chosen, rows = arrange(tokens, self.config.row_tokens, self._packing(dataset, number, tokens), rng)
        if len(rows) != n_rows + 1:
            raise DataError(f"{self.datasets[dataset].folder}: block {number} changed after its rows were counted")
        names = self.config.features
        features = feature_columns(self.datasets[dataset], block, names) if names else None
        return _OpenBlock(block, chosen, rows, self._gaps[dataset], self._hidden(block, rng), features)

    def _packing(self, dataset: int, number: int, tokens: NDArray[np.int64]) -> Packing:
        """The same in every epoch, so it is kept, as far as memory goes."""
        packing = self._packings.get((dataset, number))
        if packing is None:
            packing = pack(tokens, self.config.row_tokens)
            if self._packings_bytes < PACKING_BYTES:
                self._packings[dataset, number] = packing
                self._packings_bytes += packing.row_of_ranks.nbytes
        return packing

    def _hidden(self, block: Block, rng: np.random.Generator) -> _Hidden:
        classes, conditions = self.config.class_dropout, self.config.condition_dropout
        return _Hidden(
            rng.random(len(block)) < classes if classes else None,
            rng.random(block.conditions.shape) < conditions if conditions else None,
        )


def open_bytes(dataset: ShardedDataset, features: int = 0) -> int:
    """Memory of an open block of this dataset, with so many features of points, about."""
    width = dataset.members["codes"]
    point = np.dtype(width.dtype).itemsize * (width.columns or 1)
    if features and "features" in dataset.members:
        point += np.dtype(dataset.members["features"].dtype).itemsize * features
    total = int(dataset.points.sum()) * point + len(dataset) * SEQUENCE_BYTES
    return total // max(1, dataset.n_blocks)


def arrange(
    tokens: NDArray[np.int64], row_tokens: int, packing: Packing, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sequences of a block in the order of its rows, int64 [those that fit], and the rows' offsets in it [rows + 1].

    Drawn anew: which of the sequences of equal length takes which place, and the order of the rows.
    """
    # longest first, by chance where equally long: one sort of (length, random number, sequence) in 64 bits
    bits = len(tokens).bit_length()
    key = rng.integers(0, 2 ** (64 - LENGTH_BITS), len(tokens), np.uint64) >> np.uint64(bits) << np.uint64(bits)
    key |= np.arange(len(tokens), dtype=np.uint64)
    key |= np.maximum(row_tokens + 1 - tokens, 0).astype(np.uint64) << np.uint64(64 - LENGTH_BITS)
    key.sort()
    longest_first = (key[packing.left_out :] & np.uint64(2**bits - 1)).astype(np.int64)
    row = rng.permutation(packing.rows)[packing.row_of_ranks]
    # a stable sort of 16-bit integers is a radix sort
    by_row = np.argsort(row.astype(np.uint16) if packing.rows < 2**16 else row, kind="stable")
    return longest_first[by_row], to_offsets(np.bincount(row, minlength=packing.rows))


def gather(
    codes: NDArray[T], offsets: NDArray[np.int64], chosen: NDArray[np.int64], gap: int
) -> tuple[NDArray[T], NDArray[np.int64]]:
    """Codes (or features) [N, K] of the chosen sequences, with `gap` places before each, and their offsets, gaps
    included.

    For Arrow these are texts of bytes: it copies each in one go, which is several times faster than an index of points.
    """
    import pyarrow

    if len(chosen) == 0:
        return codes[:0], np.zeros(1, np.int64)
    size = codes.shape[1] * codes.itemsize
    if gap:
        codes = np.concatenate([np.zeros((gap, codes.shape[1]), codes.dtype), codes])
        ends = np.concatenate([[0], (offsets + gap) * size])
        chosen = np.stack([np.zeros_like(chosen), chosen + 1], axis=1).ravel()  # the first text is the gap
    else:
        ends = offsets * size
    buffers = [None, pyarrow.py_buffer(ends.astype(np.int32)), pyarrow.py_buffer(np.ascontiguousarray(codes))]
    texts = pyarrow.Array.from_buffers(pyarrow.binary(), len(ends) - 1, buffers).take(pyarrow.array(chosen))
    _, starts, data = texts.buffers()
    places = np.frombuffer(starts, np.int32, len(chosen) + 1)[:: 2 if gap else 1].astype(np.int64) // size
    return np.frombuffer(data, codes.dtype, int(places[-1]) * codes.shape[1]).reshape(-1, codes.shape[1]), places
