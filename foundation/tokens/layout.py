"""The grammar of a sequence, and sequences of ids built from codes.

    [bos] [tag] [class | any] [condition | any ...] body [eos]

A sequence is a table of steps with S columns. The prefix uses column 0 only. In the body of a dataset with K streams:

    delayed      S = K; stream k of point j stands in column k of body step j + k; eos in column 0 of step n
    interleaved  S = 1; stream k of point j stands in body step j K + k; eos in step n K

Every predicted place has a *slot*: the range of ids that is legal there (with eos where a sequence may end). Training
and sampling take the softmax over the slot's ids alone, so an invalid sequence cannot be made. Where every object has
the same number of tokens (patches), eos has its fixed place, and nothing is predicted there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from foundation.data.ragged import ragged_arange, to_offsets
from foundation.errors import DataError
from foundation.tokens.conditions import ANY_BIN, condition_bins
from foundation.tokens.vocabulary import ANY, BOS, EOS, NONE, DatasetEntry, Vocabulary

Mode = Literal["delayed", "interleaved"]
NO_SLOT = -1
"""Stands where nothing is predicted."""


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
    """Layout of every dataset of a vocabulary; `slots` numbers all slots, which datasets of one tokenizer share."""

    def __init__(self, vocabulary: Vocabulary, mode: Mode = "delayed") -> None:
        self.vocabulary, self.mode = vocabulary, mode
        self.slots: list[Slot] = []
        first_of: dict[str, int] = {}
        for name, entry in vocabulary.tokenizers.items():
            first_of[name] = len(self.slots)
            for k, r in enumerate(vocabulary.stream_ranges(entry.name)):
                self.slots.append(Slot(r.start, r.size, ends=k == 0 and entry.tokens_per_object is None))
        self.first_slot = {entry.name: first_of[entry.codes] for entry in vocabulary.datasets.values()}

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

    def end_step(self, tag: str, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Body step whose column 0 holds eos, of clouds with `counts` points."""
        return counts * len(self.vocabulary.dataset(tag).streams) if self.mode == "interleaved" else counts

    def place(self, stream: int, points: NDArray[np.int64], streams: int) -> tuple[NDArray[np.int64], int]:
        """Body steps and column in which a stream of these points stands, of a dataset with so many streams."""
        if self.mode == "interleaved":
            return points * streams + stream, 0
        return points + stream, stream

    def prefix(self, tag: str, labels: NDArray[np.int64], conditions: NDArray[np.floating]) -> NDArray[np.int64]:
        """Ids int64 [B, P] of the prefix; label -1 and a NaN condition become `any`."""
        entry = self.vocabulary.dataset(tag)
        columns = [np.full(len(labels), BOS), np.full(len(labels), self.vocabulary.tag_id(tag))]
        if len(labels) and labels.max() >= len(entry.classes):
            raise DataError(f"label {labels.max()} is not one of the {len(entry.classes)} classes of '{tag}'")
        columns.append(np.where(labels < 0, ANY, self.vocabulary.class_range(tag).start + labels))
        for c, condition in enumerate(entry.conditions):
            bins = condition_bins(condition, conditions[:, c], tag)
            start = self.vocabulary.condition_range(tag, condition.name).start
            columns.append(np.where(bins == ANY_BIN, ANY, start + bins))
        return np.stack(columns, axis=1).astype(np.int64)

    def sequences(
        self,
        tag: str,
        codes: NDArray[np.integer],
        offsets: NDArray[np.int64],
        labels: NDArray[np.int64],
        conditions: NDArray[np.floating],
    ) -> Sequences:
        """Sequences of clouds given as codes [N, K] with offsets [B + 1], labels [B], conditions [B, C].

        Raises DataError for another number of streams or, where that is fixed, of tokens than the vocabulary says.
        """
        ranges = self.vocabulary.stream_ranges(tag)
        counts, k = np.diff(offsets), len(ranges)
        if codes.shape[1] != k:
            raise DataError(f"codes of '{tag}' have {codes.shape[1]} streams, the vocabulary says {k}")
        self._require_counts(tag, counts)
        seq = to_offsets(self.lengths(tag, counts))
        ids = np.full((seq[-1], self.columns), NONE, np.int64)
        slots = np.full((seq[-1], self.columns), NO_SLOT, np.int64)
        p = self.prefix_length(tag)
        ids[seq[:-1, None] + np.arange(p), 0] = self.prefix(tag, labels, conditions)
        body = np.repeat(seq[:-1] + p, counts)
        j = ragged_arange(counts)
        for stream, r in enumerate(ranges):
            step, column = self.place(stream, j, k)
            ids[body + step, column] = codes[:, stream].astype(np.int64) + r.start
            slots[body + step, column] = self.first_slot[tag] + stream
        end = seq[:-1] + p + self.end_step(tag, counts)
        ids[end, 0] = EOS
        if self.slots[self.first_slot[tag]].ends:
            slots[end, 0] = self.first_slot[tag]
        return Sequences(ids, slots, seq)

    def _require_counts(self, tag: str, counts: NDArray[np.int64]) -> None:
        fixed = self.vocabulary.dataset(tag).tokens_per_object
        if fixed is not None and (counts != fixed).any():
            wrong = int(np.flatnonzero(counts != fixed)[0])
            raise DataError(
                f"every object of '{tag}' has {fixed} tokens, but object {wrong} has {counts[wrong]}: "
                f"these codes are of another tokenizer"
            )

    def entry(self, tag: str) -> DatasetEntry:
        """The vocabulary's entry of a dataset."""
        return self.vocabulary.dataset(tag)
