"""The grammar of a sequence, and sequences of ids built from codes.

    [bos] [tag] [class | any] [condition | any ...] body [eos]

A sequence is a table of steps with S columns. The prefix uses column 0 only. In the body of a dataset with K streams:

    delayed      S = K; stream k of point j stands in column k of body step j + k; eos in column 0 of step n
    interleaved  S = 1; stream k of point j stands in body step j K + k; eos in step n K

Every predicted place has a *slot*: the range of ids that is legal there (with eos where a sequence may end). Training
and sampling take the softmax over the slot's ids alone, so an invalid sequence cannot be made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from foundation.data.ragged import ragged_arange, to_offsets
from foundation.errors import DataError
from foundation.tokens.vocabulary import ANY, BOS, EOS, NONE, DatasetEntry, Vocabulary, condition_bins

Mode = Literal["delayed", "interleaved"]


@dataclass(frozen=True)
class Slot:
    """Legal ids of a place: start .. start + size - 1, and eos where `ends`."""

    start: int
    size: int
    ends: bool

    @property
    def width(self) -> int:
        """Number of legal ids."""
        return self.size + int(self.ends)


@dataclass(frozen=True)
class Sequences:
    """Steps of B sequences: ids int64 [T, S] (`none` where empty), slots int64 [T, S] (-1 where nothing is predicted),
    offsets int64 [B + 1]."""

    ids: NDArray[np.int64]
    slots: NDArray[np.int64]
    offsets: NDArray[np.int64]


class Layout:
    """Layout of every dataset of a vocabulary; `slots` numbers all slots of all datasets."""

    def __init__(self, vocabulary: Vocabulary, mode: Mode = "delayed") -> None:
        self.vocabulary, self.mode = vocabulary, mode
        self.slots: list[Slot] = []
        self.first_slot: dict[str, int] = {}
        for entry in vocabulary.datasets.values():
            self.first_slot[entry.name] = len(self.slots)
            for k, stream in enumerate(entry.streams):
                r = vocabulary.ranges[f"{entry.name}.{stream}"]
                self.slots.append(Slot(r.start, r.size, ends=k == 0))

    @property
    def columns(self) -> int:
        """S, the same for all datasets of the vocabulary."""
        if self.mode == "interleaved":
            return 1
        return max(len(d.streams) for d in self.vocabulary.datasets.values())

    def prefix_length(self, tag: str) -> int:
        """Steps before the body."""
        return 3 + len(self.vocabulary.dataset(tag).conditions)

    def body_lengths(self, tag: str, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Body steps, the one with eos included, of clouds with `counts` points."""
        k = len(self.vocabulary.dataset(tag).streams)
        return counts * k + 1 if self.mode == "interleaved" else counts + max(1, k - 1)

    def lengths(self, tag: str, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """All steps of clouds with `counts` points."""
        return self.prefix_length(tag) + self.body_lengths(tag, counts)

    def prefix(self, tag: str, labels: NDArray[np.int64], conditions: NDArray[np.floating]) -> NDArray[np.int64]:
        """Ids int64 [B, P] of the prefix; label -1 and a NaN condition become `any`."""
        entry, ranges = self.vocabulary.dataset(tag), self.vocabulary.ranges
        columns = [np.full(len(labels), BOS), np.full(len(labels), ranges[f"tag.{tag}"].start)]
        if len(labels) and labels.max() >= len(entry.classes):
            raise DataError(f"label {labels.max()} is not one of the {len(entry.classes)} classes of '{tag}'")
        first_class = ranges[f"class.{tag}"].start if entry.classes else 0
        columns.append(np.where(labels < 0, ANY, first_class + labels))
        for c, condition in enumerate(entry.conditions):
            values = conditions[:, c].astype(np.float64)
            given = np.isfinite(values)
            start = ranges[f"condition.{tag}.{condition.name}"].start
            columns.append(np.where(given, start + condition_bins(condition, np.where(given, values, 1.0)), ANY))
        return np.stack(columns, axis=1).astype(np.int64)

    def sequences(
        self,
        tag: str,
        codes: NDArray[np.integer],
        offsets: NDArray[np.int64],
        labels: NDArray[np.int64],
        conditions: NDArray[np.floating],
    ) -> Sequences:
        """Sequences of clouds given as codes [N, K] with offsets [B + 1], labels [B], conditions [B, C]."""
        entry = self.vocabulary.dataset(tag)
        counts, k = np.diff(offsets), len(entry.streams)
        if codes.shape[1] != k:
            raise DataError(f"codes of '{tag}' have {codes.shape[1]} streams, the vocabulary says {k}")
        starts = np.array([self.vocabulary.ranges[f"{tag}.{s}"].start for s in entry.streams])
        lengths = self.lengths(tag, counts)
        seq = to_offsets(lengths)
        ids = np.full((seq[-1], self.columns), NONE, np.int64)
        slots = np.full((seq[-1], self.columns), -1, np.int64)
        p = self.prefix_length(tag)
        ids[seq[:-1, None] + np.arange(p), 0] = self.prefix(tag, labels, conditions)
        body = np.repeat(seq[:-1] + p, counts)
        j = ragged_arange(counts)
        for stream in range(k):
            row = body + (j * k + stream if self.mode == "interleaved" else j + stream)
            column = 0 if self.mode == "interleaved" else stream
            ids[row, column] = starts[stream] + codes[:, stream]
            slots[row, column] = self.first_slot[tag] + stream
        end = seq[:-1] + p + (counts * k if self.mode == "interleaved" else counts)
        ids[end, 0] = EOS
        slots[end, 0] = self.first_slot[tag]
        return Sequences(ids, slots, seq)

    def entry(self, tag: str) -> DatasetEntry:
        """The vocabulary's entry of a dataset."""
        return self.vocabulary.dataset(tag)
