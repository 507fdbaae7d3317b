"""Batches as models take them, laid out from codes: for the sequences of a batch only, and with no padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from foundation.data.ragged import ragged_arange, to_offsets
from foundation.stream.row_stream import Rows
from foundation.stream.rows import length_rule
from foundation.tokens.layout import Layout
from foundation.tokens.vocabulary import BOS, EOS, NONE

NO_LABEL = -100
"""Label of the sequence that stands for a batch without any; PyTorch's losses ignore it."""


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
    sources:  uint64 [B]; which sequence of its dataset it is, as the shards number them
    features: float32 [T, F]; continuous features of the point whose last code the step shows, zero where there is none;
              None where none are asked for
    cursor:   the step after this batch's: to go on behind it, ask the stream for that step
    """

    ids: NDArray[np.int64]
    targets: NDArray[np.int64]
    slots: NDArray[np.int64]
    positions: NDArray[np.int64]
    offsets: NDArray[np.int64]
    labels: NDArray[np.int64]
    dataset: NDArray[np.int64]
    sources: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    cursor: int = 0
    features: NDArray[np.float32] | None = None


def gap_of(layout: Layout, tag: str) -> int:
    """Places before the codes of a sequence with which these lie as its steps do, where a point is a step; else 0."""
    rule = length_rule(layout, tag)
    return rule.extra if rule.scale == 1 else 0


def lay_out(layout: Layout, tags: Sequence[str], parts: Sequence[Rows], cursor: int = 0, features: int = 0) -> Batch:
    """One batch of the sequences of several datasets; tags: of all datasets of the stream, by their number; features:
    how many continuous features of points come beside the ids.

    A batch without sequences (all its blocks were skipped) gets one of a single step, in which nothing is predicted.
    """
    parts = [p for p in parts if len(p)]
    if not parts:
        return _placeholder(layout.columns, cursor, features)
    lengths = [layout.lengths(tags[p.dataset], p.points) - 1 for p in parts]
    borders = np.cumsum([0, *(int(n.sum()) for n in lengths)])
    ids = np.empty((borders[-1], layout.columns), np.int64)
    targets, slots = np.empty_like(ids), np.empty_like(ids)
    for part, steps, first, last in zip(parts, lengths, borders, borders[1:], strict=False):
        write = _write_delayed if part.gap else _write_any
        write(layout, tags[part.dataset], part, steps, ids[first:last], targets[first:last], slots[first:last])
    steps = np.concatenate(lengths)
    beside = np.zeros((borders[-1], features), np.float32) if features else None
    if beside is not None:
        for part, n, first, last in zip(parts, lengths, borders, borders[1:], strict=False):
            _write_features(layout, tags[part.dataset], part, n, beside[first:last])
    return Batch(
        ids=ids,
        targets=targets,
        slots=slots,
        positions=ragged_arange(steps),
        offsets=to_offsets(steps),
        labels=np.concatenate([p.labels for p in parts]),
        dataset=np.repeat([p.dataset for p in parts], [len(p) for p in parts]),
        sources=np.concatenate([p.ids for p in parts]),
        cursor=cursor,
        features=beside,
    )


def _write_features(
    layout: Layout, tag: str, part: Rows, steps: NDArray[np.int64], features: NDArray[np.float32]
) -> None:
    """Features stand where the last code of their point does: before it, they would give away codes to be predicted.

    In the delayed layout of K > 1 streams the last code of the last point is a target only, so its features are left
    out as it is.
    """
    assert part.features is not None
    streams = part.codes.shape[1]
    step, _ = layout.place(streams - 1, ragged_arange(part.points), streams)
    step += layout.prefix_length(tag)
    shown = step < np.repeat(steps, part.points)
    first = np.repeat(np.cumsum(steps) - steps, part.points)
    features[(first + step)[shown]] = part.features[shown]


def _write_delayed(
    layout: Layout, tag: str, part: Rows, steps: NDArray[np.int64], ids: NDArray, targets: NDArray, slots: NDArray
) -> None:
    """One step per point: with gaps before the sequences, a column of the ids is a column of the codes, moved a little.

    What the gaps then hold is written over: prefix, eos, and `none` where a stream begins later or ends earlier.
    """
    prefix, streams = layout.prefix_length(tag), part.codes.shape[1]
    ends = np.cumsum(steps)
    first = ends - steps
    ids[:, streams:], targets[:, streams:], slots[:, streams:] = NONE, -1, -1
    for k in range(streams):
        slot = layout.first_slot[tag] + k
        column, wanted, places = ids[:, k], targets[:, k], slots[:, k]
        _move(part.codes[:, k], layout.slots[slot].start, prefix + k - part.gap, column, wanted)
        places[:] = slot
        # steps before the first code and after the last one
        head, tail = prefix + k, part.gap - prefix - k
        column[np.minimum(first[:, None] + np.arange(head), len(column) - 1)] = NONE
        column[_last(ends, tail)] = NONE
        # eos is predicted as the stream's next id where a sequence may end at any point
        before, after = first[:, None] + np.arange(head - 1), _last(ends, tail if layout.slots[slot].ends else tail + 1)
        wanted[before] = places[before] = wanted[after] = places[after] = -1
    # eos follows the last code of the first stream
    tail = part.gap - prefix
    if layout.slots[layout.first_slot[tag]].ends:
        targets[ends - 1 - tail, 0] = EOS
    if tail:
        ids[ends - tail, 0] = EOS
    ids[first[:, None] + np.arange(prefix), 0] = layout.prefix(tag, part.shown, part.conditions)


def _move(codes: NDArray[np.integer], start: int, later: int, ids: NDArray, targets: NDArray) -> None:
    """Ids of a stream `later` (-K to 1) steps further on than its codes, and the id of the next step as the target."""
    if later > 0:
        np.add(codes[:-1], start, out=ids[1:], dtype=np.int64)
        ids[0], targets[-1] = NONE, int(codes[-1]) + start
    else:
        np.add(codes[-later:], start, out=ids[: len(ids) + later], dtype=np.int64)
        ids[len(ids) + later :], targets[-1] = NONE, NONE
    targets[:-1] = ids[1:]


def _last(ends: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """The last n places of every sequence, [B, n]; none for n below 1."""
    return ends[:, None] - np.arange(1, n + 1)


def _write_any(
    layout: Layout, tag: str, part: Rows, steps: NDArray[np.int64], ids: NDArray, targets: NDArray, slots: NDArray
) -> None:
    """Any layout: whole sequences are laid out, and the last step of each, which is only a target, is left out."""
    sequences = layout.sequences(tag, part.codes, to_offsets(part.points), part.shown, part.conditions)
    kept = np.arange(len(ids)) + np.repeat(np.arange(len(steps)), steps)
    np.take(sequences.ids, kept, axis=0, out=ids)
    kept += 1
    np.take(sequences.slots, kept, axis=0, out=slots)
    np.take(sequences.ids, kept, axis=0, out=targets)
    targets[slots < 0] = -1


def _placeholder(columns: int, cursor: int, features: int) -> Batch:
    nothing = np.full((1, columns), -1)
    return Batch(
        ids=np.array([[BOS] + [NONE] * (columns - 1)]),
        targets=nothing,
        slots=nothing.copy(),
        positions=np.zeros(1, np.int64),
        offsets=np.array([0, 1]),
        labels=np.array([NO_LABEL]),
        dataset=np.zeros(1, np.int64),
        sources=np.zeros(1, np.uint64),
        cursor=cursor,
        features=np.zeros((1, features), np.float32) if features else None,
    )
